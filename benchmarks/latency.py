"""How well latency repeats, for small and for large networks, and what it is worth.

    python benchmarks/latency.py --json benchmarks/latency.json     # all parts: most of an hour
    python benchmarks/latency.py --parts small,front --passes 2     # a try

``small``: networks of ``spaces/levit-fashion.yaml``, 0.05 to 0.6 ms, each measured by itself as a
search does, in passes with a probe session of their own; quiet and, in turn with that, beside a
neighbour that computes in bursts on each other core. ``large``: the same for networks of
``spaces/levit-imagenet.yaml`` at 224 px, which are measured together. Beside the probe's figures
stand the mean of 20 runs and the minimum of many, taken in the same passes.
``threads``: latency on two threads by the probe, whose reference has a session in the same process,
against that of a session alone in a process, in turn. ``front``: eight networks are measured
together, as at the end of a search, and then each one's ONNX file alone, as by an export; how often
is the second figure within what is stated of the first? ``prepare``: building, folding, exporting a
network and building its inference session. ``predict``: latency predicted from blocks, calibrated
on networks of its own, against measured latency of others; and from FLOPs alone. One multiply-add
is one FLOP.

Prints tables. With ``--json`` each part goes to its key of that file, with the revision and the
machine it was measured on; parts that were not asked for stay as they are. What has been measured
is kept beside the file until all is done, and an interrupted run goes on.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from job_pool import drawn, say
from numpy.typing import NDArray
from scipy.stats import kendalltau

from levit_search.architecture import Architecture, parse, published
from levit_search.cost import cost
from levit_search.errors import TrialError
from levit_search.files import write_json
from levit_search.latency import LatencyConfig, Measurement, Probe
from levit_search.latency.cache import Cache
from levit_search.latency.latency_model import LatencyModel
from levit_search.latency.protocol import repeats_percent
from levit_search.model import build, export_onnx
from levit_search.progress import Progress
from levit_search.study import StudyConfig, read_config
from levit_search.study.folder import environment

SPACES = Path(__file__).parents[1] / "spaces"
CONDITIONS = ("quiet", "neighbour")
PASSES = {"small": 12, "large": 3, "threads": 5, "front": 20}
MEMBERS = 8  # of a front
SMALL_MS = (0.05, 0.6)
SEED = 7
TESTED, CALIBRATION = 24, 8  # networks that are predicted, and those that calibrate
POOL_PER_NETWORK = 4  # small networks to choose from

Floats = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help=", ".join(PARTS))
    parser.add_argument("--networks", type=int, default=12, help="in a pass of small and large")
    parser.add_argument("--passes", type=int, help=f"instead of {PASSES}, to try it")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"--parts: no {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    passes = PASSES if options.passes is None else dict.fromkeys(PASSES, options.passes)
    unfinished = options.json.with_name(f"{options.json.name}.partial") if options.json else None
    settings = {"networks": options.networks, "passes": passes, "seed": SEED}
    steps = Steps(unfinished, settings, planned(parts, passes))
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(steps, options.networks, passes, Path(folder))
        for part in parts:
            found = PARTS[part](bench)
            document[part] = {"environment": steps.environment, **rounded(found)}
            print(f"{SHOWN[part](document[part])}\n", flush=True)
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        every = {**known, **document}
        write_json(options.json, {part: every[part] for part in PARTS if part in every})
        steps.forget()


def planned(parts: Sequence[str], passes: Mapping[str, int]) -> dict[str, tuple[int, float]]:
    """How often each kind of step is taken, and the seconds it may take."""
    known = {
        "pool": (1, 80.0),
        **{f"small {condition}": (passes["small"], 40.0) for condition in CONDITIONS},
        **{f"large {condition}": (passes["large"], 80.0) for condition in CONDITIONS},
        "threads": (passes["threads"], 35.0),
        "settled": (1, 5.0),
        "front": (passes["front"], 45.0),
        "prepare": (1, 40.0),
        "predict": (1, 250.0),
    }
    wanted = {kind: each for kind, each in known.items() if kind.split()[0] in parts}
    shared = ("pool", "settled") if {"small", "threads", "front"} & set(parts) else ()
    return {**{name: known[name] for name in shared}, **wanted}


class Steps:
    """Steps of a long measurement, each taken once: a file keeps the results of those that ended.

    Args:
        file: where they are kept; None keeps nothing. What another revision, machine or other
            settings left there is not gone on with.
        settings: what the steps depend on.
        planned: for each kind of step how often it is taken, and expected seconds.
    """

    def __init__(
        self, file: Path | None, settings: dict[str, Any], planned: dict[str, tuple[int, float]]
    ) -> None:
        self._file, self._planned = file, planned
        self.environment = environment(sys.argv)
        self._kept: dict[str, Any] = {
            "settings": settings,
            "environment": self.environment,
            "taken": {},
        }
        if file is not None and file.exists():
            found = json.loads(file.read_text())
            if self._identity(found) == self._identity(self._kept):
                self._kept, self.environment = found, found["environment"]
                say(f"going on with {file}")
            else:
                say(f"{file} is of another revision, machine or other settings: beginning anew")

    def once(self, kind: str, number: int, work: Callable[[], Any]) -> Any:
        """What ``work`` found, as JSON has it, now or in an earlier run.

        Args:
            kind: of the step.
            number: from 0; those of a kind are taken in order.
            work: the step.
        """
        taken = self._kept["taken"].setdefault(kind, [])
        if number < len(taken):
            return taken[number]["found"]
        assert number == len(taken)
        say(f"{kind} {number + 1} of {self._planned[kind][0]}, {self._left_s() / 60:.0f} min left")
        start = time.monotonic()
        found = work()
        taken.append({"seconds": time.monotonic() - start, "found": found})
        if self._file is not None:
            write_json(self._file, self._kept)
        return found

    def seconds(self, kind: str) -> float:
        """How long the steps of a kind took together."""
        return float(sum(step["seconds"] for step in self._kept["taken"][kind]))

    def forget(self) -> None:
        if self._file is not None:
            self._file.unlink()

    def _left_s(self) -> float:
        left_s = 0.0
        for kind, (count, expected_s) in self._planned.items():
            seconds = [step["seconds"] for step in self._kept["taken"].get(kind, [])]
            left_s += (count - len(seconds)) * float(np.mean(seconds or [expected_s]))
        return left_s

    @staticmethod
    def _identity(kept: dict[str, Any]) -> list[Any]:
        place = kept["environment"]
        return [kept["settings"], *(place[name] for name in ("revision", "cpu", "cores"))]


@dataclass(frozen=True)
class Bench:
    """What the parts share."""

    steps: Steps
    networks: int
    passes: Mapping[str, int]
    folder: Path
    """For files of this run alone."""

    def probe(self, config: LatencyConfig, reference_ms: dict[str, float] | None = None) -> Probe:
        """A probe session that knows nothing of earlier ones."""
        return Probe(config, reference_ms, fresh=True, cache=Cache(self.folder / "cache"))

    def graph(self, network: Architecture, batch_size: int | None) -> Path:
        """The ONNX file of a network, with random weights."""
        path = self.folder / f"{network.id}-{batch_size or 'any'}.onnx"
        if not path.exists():
            export_onnx(build(network), path, batch_size)
        return path

    def pool(self) -> list[tuple[Architecture, float]]:
        """Small networks with a first figure of their latency in milliseconds."""

        def measured() -> list[Any]:
            count = POOL_PER_NETWORK * self.networks
            several = drawn(_small().space(), 20 * count, _seeded())  # few are quick
            networks = spread([(each, cost(each).flops) for each in several], count, 1, np.inf)
            config = _small().latency.model_copy(update={"seconds": 0.4})
            with self.probe(config) as probe:
                found = sound(probe.measure_all(networks))
            return [
                [network.model_dump(mode="json"), each.latency_ms]
                for network, each in zip(networks, found, strict=True)
            ]

        return [(parse(dump), ms) for dump, ms in self.steps.once("pool", 0, measured)]

    def reference_ms(self) -> dict[str, float]:
        """The small networks' reference by its id, settled once, as a study does."""

        def measured() -> dict[str, float]:
            with self.probe(_small().latency) as probe:
                probe.settle_reference(self.pool()[0][0])
                return probe.reference_ms

        found: dict[str, float] = self.steps.once("settled", 0, measured)
        return found


def _small() -> StudyConfig:
    return read_config(SPACES / "levit-fashion.yaml")


def _large() -> StudyConfig:
    return read_config(SPACES / "levit-imagenet.yaml")


def _seeded() -> np.random.Generator:
    return np.random.default_rng(SEED)


def spread(
    pool: Sequence[tuple[Architecture, float]], count: int, low: float, high: float
) -> list[Architecture]:
    """Networks whose figures are about evenly apart, in logarithms, as far as the pool has them.

    Args:
        pool: networks, each with its figure, such as milliseconds.
        count: how many to take.
        low: the smallest figure wanted.
        high: the largest one wanted.
    """
    figures = [figure for _, figure in pool]
    left = list(pool)
    found: list[tuple[Architecture, float]] = []
    for wanted in np.geomspace(max(low, min(figures)), min(high, max(figures)), count):
        found.append(min(left, key=lambda each: abs(np.log(each[1] / wanted))))
        left.remove(found[-1])
    return [network for network, _ in sorted(found, key=lambda each: each[1])]


def sound(found: Sequence[Measurement | TrialError]) -> list[Measurement]:
    """Measurements; the first failure among them is raised."""
    for each in found:
        if isinstance(each, TrialError):
            raise each
    return list(found)  # type: ignore[arg-type]


def rounded(value: Any) -> Any:
    """Five digits of every figure."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


# --- the neighbour

# It keeps to one core: its affinity is set before numpy makes its threads.
_BURSTS = """
import os, random, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
import numpy
rng, parent = random.Random(int(sys.argv[1])), os.getppid()
square = numpy.random.default_rng(0).random((1500, 1500))
print("ready", flush=True)
while os.getppid() == parent:
    end = time.perf_counter() + rng.expovariate(1 / 0.5)
    while time.perf_counter() < end:
        square @ square
    time.sleep(rng.expovariate(1 / 0.25))
"""


@contextlib.contextmanager
def surroundings(condition: str) -> Iterator[None]:
    """Nothing, or processes that multiply matrices in bursts on all cores but the first: half a
    second in the mean, then a quarter of one of rest."""
    with contextlib.ExitStack() as stack:
        if condition == "neighbour":
            others = sorted(os.sched_getaffinity(0))[1:]
            if not others:
                raise SystemExit("a neighbour needs a second core")
            for core in others:
                command = [sys.executable, "-c", _BURSTS, str(core)]
                process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
                stack.callback(process.kill)
                assert process.stdout is not None
                process.stdout.readline()
        yield


# --- small and large

Pass = dict[str, list[float]]
"""Figures of all networks, in their order."""

PROTOCOLS = ("probe", "mean of 20", "minimum")


def small(bench: Bench) -> dict[str, Any]:
    """Passes over small networks, each measured by itself in an order of the pass's own."""
    config = _small().latency
    networks = spread(bench.pool(), bench.networks, *SMALL_MS)
    reference_ms = bench.reference_ms()

    def one_by_one(number: int) -> list[Measurement]:
        found: dict[int, Measurement] = {}
        with bench.probe(config, reference_ms) as probe:
            for index in np.random.default_rng(number).permutation(len(networks)):
                found[index] = probe.measure(networks[index])
        return [found[index] for index in range(len(networks))]

    passes = in_turn(bench, "small", networks, one_by_one, plain_s=0.25)
    return {
        "settings": {"space": "levit-fashion", **told(config), "passes": bench.passes["small"]},
        "must": {"quiet": {"sd": 2.5}, "neighbour": {"sd": 4.0}, "disjoint_percent": 7.0},
        "networks": [network.id for network in networks],
        "found": {condition: spreads(each) for condition, each in passes.items()},
        "passes": passes,
    }


def large(bench: Bench) -> dict[str, Any]:
    """Passes over networks of 224 px, which are measured together."""
    # The whole time is used, so that every network of every pass has the same.
    config = LatencyConfig(seconds=2.0, interval_percent=0)
    networks = drawn(_large().space(), bench.networks, _seeded())

    def together(number: int) -> list[Measurement]:
        with bench.probe(config) as probe:
            return sound(probe.measure_all(networks))

    passes = in_turn(bench, "large", networks, together, plain_s=1.0)
    return {
        "settings": {"space": "levit-imagenet", **told(config), "passes": bench.passes["large"]},
        "must": {"median": 1.5, "worst": 6.0, "tau": 0.98, "timing_s": 2.0},
        "networks": [network.id for network in networks],
        "found": {
            condition: {
                **{each: agreement(several[each]) for each in PROTOCOLS},
                "timing_s": float(np.mean(several["timing_s"])),
                "seconds": float(np.mean(several["seconds"])),
            }
            for condition, several in passes.items()
        },
        "seconds": sum(bench.steps.seconds(f"large {condition}") for condition in CONDITIONS),
        "passes": passes,
    }


def told(config: LatencyConfig) -> dict[str, Any]:
    """How networks are measured."""
    return config.model_dump(
        mode="json", include={"seconds", "rounds", "interval_percent", "threads", "batch_size"}
    )


def in_turn(
    bench: Bench,
    part: str,
    networks: Sequence[Architecture],
    measured: Callable[[int], list[Measurement]],
    plain_s: float,
) -> dict[str, dict[str, list[list[float]]]]:
    """Passes quiet and beside the neighbour in turn: by condition and figure [passes][networks]."""
    found: dict[str, list[Pass]] = {condition: [] for condition in CONDITIONS}
    for number, condition in itertools.product(range(bench.passes[part]), CONDITIONS):

        def one_pass(number: int = number, condition: str = condition) -> Pass:
            graphs = [bench.graph(network, 1) for network in networks]
            with surroundings(condition):
                plain = [plain_timing(graph, plain_s) for graph in graphs]
                several = measured(number)
            return {
                "ms": [each.latency_ms for each in several],
                "reference_ms": [each.own_reference_ms for each in several],
                "probe": [each.ratio_to_reference for each in several],
                "low": [each.ratio_ci95[0] for each in several],
                "high": [each.ratio_ci95[1] for each in several],
                "mean of 20": [mean for mean, _ in plain],
                "minimum": [minimum for _, minimum in plain],
                "timing_s": [each.timing_seconds for each in several],
                "seconds": [each.seconds for each in several],
            }

        found[condition].append(bench.steps.once(f"{part} {condition}", number, one_pass))
    return {
        condition: {name: [each[name] for each in passes] for name in passes[0]}
        for condition, passes in found.items()
    }


def plain_timing(graph: Path, seconds: float) -> tuple[float, float]:
    """Milliseconds of wall time: the mean of 20 runs after 5, and the minimum over ``seconds``."""
    session = session_of(graph)
    (images,) = session.get_inputs()
    feed = {images.name: np.zeros(images.shape, dtype=np.float32)}
    for _ in range(5):
        session.run(None, feed)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 20 or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, feed)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.mean(times[:20])), min(times)


def session_of(graph: Path) -> Any:
    """ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def spreads(passes: Mapping[str, Any]) -> dict[str, Any]:
    """How far the passes of one condition are apart; everything but ``*_ms`` and ``*_s`` in %."""
    low, high, ratios = (np.array(passes[name]) for name in ("low", "high", "probe"))
    return {
        **{name: pooled(sd_percent(np.array(passes[name]))) for name in PROTOCOLS},
        "disjoint_percent": float(disjoint_percent(low, high).mean()),
        "half_width_percent": float(np.median(50 * (high - low) / ratios)),
        "by_pass": deviation_by_pass(ratios).tolist(),
        "by_network": {
            "median_ms": np.median(passes["ms"], axis=0).tolist(),
            "sd": sd_percent(ratios).tolist(),
            "disjoint_percent": disjoint_percent(low, high).tolist(),
        },
        "timing_s": float(np.mean(passes["timing_s"])),
        "seconds": float(np.mean(passes["seconds"])),
    }


def sd_percent(figures: Floats) -> Floats:
    """Each network's standard deviation between passes in percent of its mean.

    Args:
        figures: [passes, networks].
    """
    found: Floats = 100 * figures.std(axis=0, ddof=1) / figures.mean(axis=0)
    return found


def pooled(deviations: Floats) -> float:
    """The standard deviation of the mean variance."""
    return float(np.sqrt(np.mean(deviations**2)))


def disjoint_percent(low: Floats, high: Floats) -> Floats:
    """Of each network, the share of pairs of passes whose intervals have nothing in common.

    Args:
        low: ends of the intervals [passes, networks].
        high: their other ends.
    """
    pairs = list(itertools.combinations(range(len(low)), 2))
    apart = [(low[a] > high[b]) | (low[b] > high[a]) for a, b in pairs]
    found: Floats = 100 * np.mean(apart, axis=0)
    return found


def deviation_by_pass(figures: Floats) -> Floats:
    """How far the networks of each pass are in the mean from their means of all passes, in percent.

    Args:
        figures: [passes, networks].
    """
    found: Floats = 100 * (figures / figures.mean(axis=0) - 1).mean(axis=1)
    return found


def agreement(passes: Sequence[Sequence[float]]) -> dict[str, float]:
    """How far pairs of passes over the same networks are apart: median and worst of all pairs and
    networks in percent, and the lowest Kendall tau of two passes."""
    apart, taus = [], []
    for first, second in itertools.combinations(np.array(passes), 2):
        apart.append(100 * np.abs(first - second) / ((first + second) / 2))
        taus.append(kendalltau(first, second).statistic)
    return {
        "median": float(np.median(apart)),
        "worst": float(np.max(apart)),
        "tau": float(min(taus)),
    }


# --- threads

_THREADS = 2

# Another network's session is nowhere near. Spinning is what ONNX Runtime does if nothing is said.
_ALONE = """
import json, sys, time
import numpy, onnxruntime
path, threads, spinning, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
(images,) = session.get_inputs()
shape = images.shape
feed = {images.name: numpy.random.default_rng(0).standard_normal(shape, dtype=numpy.float32)}
times, start = [], time.perf_counter()
while (now := time.perf_counter()) < start + seconds + 0.2:
    session.run(None, feed)
    if now > start + 0.2:
        times.append(1000 * (time.perf_counter() - now))
print(numpy.median(times))
"""


def threads(bench: Bench) -> dict[str, Any]:
    """Latency on two threads by the probe and by a session that has a process to itself."""
    update = {"threads": _THREADS, "seconds": 2.0}
    large, small = LatencyConfig(**update), _small().latency.model_copy(update=update)
    (quick,) = spread(bench.pool(), 1, 0.4, 0.4)
    cases: list[tuple[str, Architecture, LatencyConfig]] = [
        ("LeViT-128S", published("LeViT-128S"), large),
        ("LeViT-256", published("LeViT-256"), large),
        ("one of 0.4 ms", quick, small),
    ]

    def by_probe(network: Architecture, config: LatencyConfig) -> float:
        with bench.probe(config) as probe:
            return probe.measure(network).latency_ms

    def once(number: int) -> list[dict[str, float]]:
        rows = []
        for _, network, config in cases:
            graph = bench.graph(network, 1)
            ways: dict[str, Callable[[], float]] = {
                "alone_ms": lambda graph=graph: alone_ms(graph, True),
                "alone_without_spinning_ms": lambda graph=graph: alone_ms(graph, False),
                "probe_ms": lambda network=network, config=config: by_probe(network, config),
            }
            order = list(ways)[:: -1 if number % 2 else 1]
            rows.append({name: ways[name]() for name in order})
        return rows

    several = [
        bench.steps.once("threads", number, lambda number=number: once(number))
        for number in range(bench.passes["threads"])
    ]
    rows = {}
    for index, (name, _, _) in enumerate(cases):
        found = {key: [each[index][key] for each in several] for key in several[0][index]}
        above = 100 * (np.array(found["probe_ms"]) / np.array(found["alone_ms"]) - 1)
        rows[name] = {
            **{key: float(np.median(values)) for key, values in found.items()},
            "above_alone_percent": float(np.median(above)),
            "lowest_percent": float(above.min()),
            "highest_percent": float(above.max()),
        }
    return {
        "settings": {**told(large), "passes": bench.passes["threads"]},
        "must": {"within_percent": 5.0},
        "found": rows,
    }


def alone_ms(graph: Path, spinning: bool, seconds: float = 1.5) -> float:
    """The median of a network's runs in a new process, in milliseconds of wall time."""
    command = [sys.executable, "-c", _ALONE, str(graph), str(_THREADS), str(int(spinning))]
    # Its memory lies as that of a probe's worker does.
    env = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    found = subprocess.run([*command, str(seconds)], env=env, stdout=subprocess.PIPE, check=True)
    return float(found.stdout)


# --- front


def front(bench: Bench) -> dict[str, Any]:
    """Fronts that are measured together, and each of their networks exported and timed alone."""
    config = _small().latency
    pool, reference_ms = bench.pool(), bench.reference_ms()

    def one(number: int) -> list[dict[str, float]]:
        rng = np.random.default_rng(number)
        several = [pool[index] for index in rng.choice(len(pool), len(pool) // 2, replace=False)]
        members = spread(several, min(MEMBERS, len(several)), *SMALL_MS)
        with bench.probe(config, reference_ms) as probe:
            together = sound(probe.measure_all(members))
        rows = []
        for network, found in zip(members, together, strict=True):
            with bench.probe(config, reference_ms) as probe:
                again = probe.measure_graph(bench.graph(network, None), network)
            low, high = found.ratio_ci95
            rows.append(
                {
                    "front_ms": found.latency_ms,
                    "half_width_percent": 50 * (high - low) / found.ratio_to_reference,
                    "stated_percent": repeats_percent(found.as_json()),
                    "exported_ms": again.latency_ms,
                }
            )
        return rows

    fronts = [
        bench.steps.once("front", number, lambda number=number: one(number))
        for number in range(bench.passes["front"])
    ]
    return {
        "settings": {**told(config), "fronts": bench.passes["front"], "members": len(fronts[0])},
        "must": {"within_stated_percent": 90.0},
        "found": kept_promises([row for rows in fronts for row in rows]),
        "fronts": fronts,
    }


def kept_promises(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """How often an exported network's latency is within what its front's figure said."""
    front_ms, half, stated, exported_ms = (
        np.array([row[name] for row in rows])
        for name in ("front_ms", "half_width_percent", "stated_percent", "exported_ms")
    )
    away = 100 * np.abs(exported_ms / front_ms - 1)
    return {
        "within_stated_percent": float(100 * np.mean(away <= stated)),
        "within_interval_percent": float(100 * np.mean(away <= half)),
        "within_root_2_percent": float(100 * np.mean(away <= np.sqrt(2) * half)),
        "median_stated_percent": float(np.median(stated)),
        "median_half_width_percent": float(np.median(half)),
        "median_away_percent": float(np.median(away)),
        "worst_away_percent": float(away.max()),
        "mean_shift_percent": float(100 * np.mean(exported_ms / front_ms - 1)),
    }


# --- prepare


def prepare(bench: Bench) -> dict[str, Any]:
    """Seconds of each step for three LeViTs: medians of five, in a process that has its imports."""
    return {"found": bench.steps.once("prepare", 0, lambda: _prepared(bench.folder))}


def _prepared(folder: Path) -> dict[str, dict[str, float]]:
    import torch

    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    for name in ("LeViT-128S", "LeViT-256", "LeViT-384"):
        path = folder / f"{name}.onnx"
        steps: list[list[float]] = []
        for _ in range(6):
            model, build_s = timed(lambda name=name: build(published(name)))
            _, export_s = timed(lambda model=model, path=path: export_onnx(model, path, 1))
            _, session_s = timed(lambda path=path: session_of(path))
            steps.append([build_s, export_s, session_s])
        # The first one is a warm-up.
        build_s, export_s, session_s = np.median(steps[1:], axis=0)
        rows[name] = {
            "build_s": float(build_s),
            "fold_and_export_s": float(export_s),
            "session_s": float(session_s),
            "total_s": float(np.median(np.sum(steps[1:], axis=1))),
        }
    return rows


def timed(step: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return step(), time.perf_counter() - start


# --- predict


def predict(bench: Bench) -> dict[str, Any]:
    """Predictions of networks none of which calibrates the predictor, against measurements."""
    # The whole time is used, so that every network has the same.
    config = LatencyConfig(seconds=2.0, interval_percent=0, calibration=CALIBRATION)
    return {
        "settings": {"space": "levit-imagenet", **told(config), "calibration": CALIBRATION},
        "found": bench.steps.once("predict", 0, lambda: _predicted(config, bench.folder)),
    }


def _predicted(config: LatencyConfig, folder: Path) -> dict[str, Any]:
    space = _large().space()
    tested = drawn(space, TESTED, np.random.default_rng(SEED + 1))
    cache = Cache(folder / "predicting")
    report = told_now_and_then()
    with Probe(config, cache=cache, report=report) as probe:
        probe.settle_reference(tested[0])
        model = LatencyModel(probe, space, SEED + 2, folder / "predictor.json")
        _, prepare_s = timed(lambda: model.prepare(report))
        found, predict_s = timed(lambda: [model.predict(each, report) for each in tested])
        say("predict: measuring the tested networks whole")
        truth = np.array([each.latency_ms for each in sound(probe.measure_all(tested))])
        sums_ms = np.array([model.table.sum_ms(network) for network in tested])
    flops = np.array([[cost(network).flops / 1e9] for network in tested])
    params = np.array([cost(network).params / 1e6 for network in tested])
    with_offset = np.column_stack([flops, np.ones(len(flops))])
    predictions = {
        "calibrated on others": np.array([each.latency_ms for each in found]),
        "leave one out": left_out(np.column_stack([sums_ms, params]), truth),
        "sum of blocks": sums_ms,
        "FLOPs, leave one out": left_out(flops, truth),
        "FLOPs + 1, leave one out": left_out(with_offset, truth),
    }
    inside = [f.low_ms <= ms <= f.high_ms for f, ms in zip(found, truth, strict=True)]
    return {
        "methods": {name: error(values, truth) for name, values in predictions.items()},
        "share_inside_interval": float(np.mean(inside)),
        "calibration": model.predictor.as_json(),
        "blocks": len(model.table.blocks_ms),
        "prepare_s": prepare_s,
        "predict_s": predict_s,
        "measured_ms": truth.tolist(),
        "predicted_ms": [each.latency_ms for each in found],
        "flops": flops.ravel().tolist(),
    }


def left_out(terms: Any, truth: Any) -> Any:
    """Each network predicted by least squares on the relative errors of all others."""
    rows = terms / truth[:, None]
    predicted = []
    for index in range(len(truth)):
        others = np.delete(rows, index, axis=0)
        coefficients = np.linalg.lstsq(others, np.ones(len(others)), rcond=None)[0]
        predicted.append(terms[index] @ coefficients)
    return np.array(predicted)


def error(predicted: Any, truth: Any) -> dict[str, float]:
    away = 100 * np.abs(predicted / truth - 1)
    return {
        "mape_percent": float(away.mean()),
        "worst_percent": float(away.max()),
        "kendall_tau": float(kendalltau(predicted, truth).statistic),
    }


def told_now_and_then() -> Progress:
    """A report that speaks every 20 s at most."""
    last = [0.0]

    def report(text: str, fraction: float | None) -> None:
        if time.monotonic() - last[0] > 20:
            last[0] = time.monotonic()
            say(f"predict: {text} ({fraction or 0.0:.0%})")

    return report


# --- shown


def head(part: str, document: Mapping[str, Any]) -> str:
    """Where a part was measured."""
    place = document["environment"]
    return (
        f"{part}: {place['cpu']}, {place['cores']} cores, onnxruntime "
        f"{place['packages']['onnxruntime']}, {place['started'][:10]}, revision {place['revision']}"
    )


def small_shown(document: Mapping[str, Any]) -> str:
    found, must = document["found"], document["must"]
    by_network = [found[condition]["by_network"] for condition in CONDITIONS]
    rows = zip(
        document["networks"],
        by_network[0]["median_ms"],
        *(each[name] for name in ("sd", "disjoint_percent") for each in by_network),
        strict=True,
    )
    lines = [
        head("small", document),
        f"{len(document['networks'])} networks, {document['settings']['passes']} passes: standard "
        "deviation between passes in %, and pairs of passes with disjoint 95 % intervals",
        f"{'':12}     sd (must)  mean of 20  minimum  disjoint % (must)  +- %  timing s  seconds",
        *(
            f"{condition:12} {each['probe']:6.2f} {must[condition]['sd']:7.1f} "
            f"{each['mean of 20']:11.1f} {each['minimum']:8.1f} {each['disjoint_percent']:11.1f} "
            f"{must['disjoint_percent']:6.1f} {each['half_width_percent']:5.2f} "
            f"{each['timing_s']:9.2f} {each['seconds']:8.2f}"
            for condition, each in found.items()
        ),
        *(
            f"all networks by pass, {condition}, %: "
            + " ".join(f"{value:+.1f}" for value in each["by_pass"])
            for condition, each in found.items()
        ),
        "network           ms  sd quiet  neighbour  disjoint % quiet  neighbour",
        *(
            f"{name:12} {ms:7.3f} {quiet:9.2f} {busy:10.2f} {apart:17.1f} {apart_busy:10.1f}"
            for name, ms, quiet, busy, apart, apart_busy in rows
        ),
    ]
    return "\n".join(lines)


def large_shown(document: Mapping[str, Any]) -> str:
    must = document["must"]
    lines = [
        head("large", document),
        f"{len(document['networks'])} networks at 224 px, {document['settings']['passes']} passes: "
        f"differences of pairs of passes; must: {must['median']:g} %, {must['worst']:g} %, "
        f"{must['tau']:g}, {must['timing_s']:g} s of timing",
        "                           median %  worst %    tau",
    ]
    for condition, found in document["found"].items():
        lines += [
            f"{condition:12} {protocol:12} {found[protocol]['median']:9.2f} "
            f"{found[protocol]['worst']:8.2f} {found[protocol]['tau']:6.3f}"
            for protocol in PROTOCOLS
        ]
        lines.append(
            f"{condition:12} a network: {found['timing_s']:.2f} s of timing, "
            f"{found['seconds']:.2f} s with its sessions"
        )
    return "\n".join([*lines, f"{document['seconds']:.0f} s in all"])


def threads_shown(document: Mapping[str, Any]) -> str:
    lines = [
        head("threads", document),
        f"{document['settings']['threads']} threads, medians of {document['settings']['passes']}; "
        f"must: within {document['must']['within_percent']:g} %",
        "                  alone ms  without spinning  probe ms  above alone %",
        *(
            f"{name:15} {row['alone_ms']:10.3f} {row['alone_without_spinning_ms']:17.3f} "
            f"{row['probe_ms']:9.3f} {row['above_alone_percent']:+14.1f} "
            f"({row['lowest_percent']:+.1f} to {row['highest_percent']:+.1f})"
            for name, row in document["found"].items()
        ),
    ]
    return "\n".join(lines)


def front_shown(document: Mapping[str, Any]) -> str:
    found, settings = document["found"], document["settings"]
    return "\n".join(
        [
            head("front", document),
            f"{settings['fronts']} fronts of {settings['members']} members, exported one by one:",
            f"{found['within_stated_percent']:.1f} % within what is stated, +-"
            f"{found['median_stated_percent']:.2f} % in the median (must: "
            f"{document['must']['within_stated_percent']:g} %)",
            f"{found['within_interval_percent']:.1f} % within the front's own 95 % interval, +-"
            f"{found['median_half_width_percent']:.2f} %; {found['within_root_2_percent']:.1f} % "
            "within sqrt(2) times that",
            f"away by {found['median_away_percent']:.2f} % in the median, "
            f"{found['worst_away_percent']:.2f} % at worst; in the mean "
            f"{found['mean_shift_percent']:+.2f} %",
        ]
    )


def prepare_shown(document: Mapping[str, Any]) -> str:
    lines = [
        head("prepare", document),
        "seconds               build  fold+export  session  total",
        *(
            f"{name:20} {row['build_s']:6.2f} {row['fold_and_export_s']:12.2f} "
            f"{row['session_s']:8.2f} {row['total_s']:6.2f}"
            for name, row in document["found"].items()
        ),
    ]
    return "\n".join(lines)


def predict_shown(document: Mapping[str, Any]) -> str:
    found = document["found"]
    lines = [
        head("predict", document),
        "                             MAPE %  worst %    tau",
        *(
            f"{name:26} {row['mape_percent']:8.2f} {row['worst_percent']:8.2f} "
            f"{row['kendall_tau']:6.3f}"
            for name, row in found["methods"].items()
        ),
        f"{found['share_inside_interval']:.0%} inside their 95 % interval; {found['blocks']} "
        f"blocks; {found['prepare_s']:.0f} s to calibrate, then "
        f"{found['predict_s'] / len(found['measured_ms']):.2f} s a network",
    ]
    return "\n".join(lines)


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "small": small,
    "large": large,
    "threads": threads,
    "front": front,
    "prepare": prepare,
    "predict": predict,
}
SHOWN: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "small": small_shown,
    "large": large_shown,
    "threads": threads_shown,
    "front": front_shown,
    "prepare": prepare_shown,
    "predict": predict_shown,
}

if __name__ == "__main__":
    main()
