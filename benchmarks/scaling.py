"""How the rate of trials grows with the workers, and what Ray costs beside local processes.

Two parts, each of variants in turn and every other time in reverse order:

sleep   trials a second of the Ray engine on a local cluster of four nodes, with 1, 2, 4, 8 and 16
        workers whose evaluation sleeps for two seconds.
train   trials an hour of real training with one thread each: the local engine with one job and
        with two, and the Ray engine with two, on the same networks, the largest first.

The clock starts when as many trials as there are workers have run at once, and stops with the last
of a list. Prints tables; ``--json`` takes the figures, and what they were measured with, to a file.

    python benchmarks/scaling.py --parts sleep --rounds 3 --json benchmarks/scaling.json
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from job_pool import drawn, say
from paired import ratio
from training_shown import spread

from levit_search.architecture import Architecture
from levit_search.cost import cost
from levit_search.engine.interface import Engine
from levit_search.errors import TrialError
from levit_search.study import Study, StudyConfig, parse_settings, read_config

NODES = 4
WORKERS = (1, 2, 4, 8, 16)
SLEEP_S = 2.0
TRAIN = (("local", 1), ("local", 2), ("ray", 2))
_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Slept:
    """As an evaluation looks."""

    values: dict[str, float]
    latency: None = None
    training: None = None
    seconds: float = SLEEP_S

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Sleeping:
    """What workers of the first part do their work with; it imports nothing heavy."""

    def __init__(self, *_: Any) -> None: ...

    def prepare(self, *_: Any) -> dict[str, Any]:
        return {"settled_ms": {}, "device": {}, "teacher": {}}

    def evaluate(self, *_: Any) -> Slept:
        time.sleep(SLEEP_S)
        return Slept({"top1_percent": 0.0})

    def close(self) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default="sleep,train")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="of sleep")
    parser.add_argument("--each", type=int, default=10, help="trials of each sleeping worker")
    parser.add_argument("--networks", type=int, default=12, help="to train")
    parser.add_argument("--space", type=Path, default=_ROOT / "spaces" / "levit-fashion.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the space file"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the networks")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    changes = {
        "teacher": None,
        "objectives": ["top1_percent", "flops"],  # a clock would have the host to itself
        "search.reduction": None,
        "train.threads": 1,
        "train.device": "cpu",
        **parse_settings(options.set),
    }
    config = read_config(options.space, changes)
    document: dict[str, Any] = {
        "settings": {name: str(value) for name, value in vars(options).items()},
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
    }
    parts = options.parts.split(",")
    if "sleep" in parts:
        document["sleep"] = sleep(config, options.workers, options.each, options.rounds)
        print("\n".join(shown_sleep(document["sleep"])))
    if "train" in parts:
        networks = drawn(config.space(), options.networks, np.random.default_rng(options.seed))
        networks.sort(key=lambda network: cost(network).flops, reverse=True)
        document["train"] = train(config, networks, options.rounds)
        print("\n".join(shown_train(document["train"])))
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=2) + "\n")


def sleep(
    config: StudyConfig, workers: Sequence[int], each: int, rounds: int
) -> list[dict[str, Any]]:
    """Trials a second of each number of workers, and their share of a straight line."""
    seconds: dict[int, list[float]] = {count: [] for count in workers}
    network = drawn(config.space(), 1, np.random.default_rng(0))[0]
    with _cluster():
        for number in range(rounds):
            for count in workers if number % 2 == 0 else reversed(workers):
                with _engine(config, "ray", count, network, "scaling:Sleeping") as engine:
                    took = timed(engine, count, [network] * (each * count), network)
                seconds[count].append(took)
                say(f"round {number + 1}: {count} workers, {each * count / took:.3f} trials/s")
    rates = {n: [each * n / took for took in found] for n, found in seconds.items()}
    least = min(workers)
    alone = [rate / least for rate in rates[least]]
    return [
        {
            "workers": n,
            "trials_per_second": rates[n],
            "of_linear": ratio(rates[n], [n * rate for rate in alone]),
            "of_ideal": float(np.median(rates[n])) * SLEEP_S / n,
        }
        for n in workers
    ]


def train(config: StudyConfig, networks: Sequence[Architecture], rounds: int) -> dict[str, Any]:
    """Trials an hour of each engine."""
    rates: dict[str, list[float]] = {f"{kind} {jobs}": [] for kind, jobs in TRAIN}
    evaluator = "levit_search.search.evaluate:Evaluator"
    for number in range(rounds):
        for kind, jobs in TRAIN if number % 2 == 0 else reversed(TRAIN):
            with _engine(config, kind, jobs, networks[0], evaluator) as engine:
                took = timed(engine, jobs, networks, networks[-1])
            rates[f"{kind} {jobs}"].append(3600 * len(networks) / took)
            say(f"round {number + 1}: {kind} {jobs}, {rates[f'{kind} {jobs}'][-1]:.0f} trials/h")
    return {
        "trials_per_hour": rates,
        "two_local_jobs_to_one": ratio(rates["local 2"], rates["local 1"]),
        "ray_to_local": ratio(rates["ray 2"], rates["local 2"]),
    }


def timed(
    engine: Engine, workers: int, networks: Iterable[Architecture], first: Architecture
) -> float:
    """Seconds for some networks, once all workers have been at work on another at once."""
    numbers = itertools.count()
    _run(engine, numbers, itertools.repeat(first), lambda running: running == workers)
    start = time.perf_counter()
    _run(engine, numbers, networks, lambda _: False)
    return time.perf_counter() - start


def _run(
    engine: Engine,
    numbers: Iterator[int],
    networks: Iterable[Architecture],
    is_enough: Callable[[int], bool],
) -> None:
    """Evaluate until there are no more networks, or so many run at once, and then to the end.

    Raises:
        TrialError: one failed.
    """
    waiting = iter(networks)
    running: set[int] = set()
    is_over = False
    while running or not is_over:
        while not is_over and engine.has_room():
            network = next(waiting, None)
            if network is None:
                is_over = True
                break
            number = next(numbers)
            engine.submit(number, network)
            running.add(number)
            is_over = is_enough(len(running))
        for event in engine.events(0.2):
            if event.kind == "failed":
                raise TrialError(event.text)
            if event.kind == "rung":
                assert event.trial is not None
                engine.answer(event.trial, True)
            elif event.kind == "done" and event.trial is not None:
                running.remove(event.trial)


@contextlib.contextmanager
def _engine(
    config: StudyConfig, kind: str, jobs: int, sample: Architecture, evaluator: str
) -> Iterator[Engine]:
    """An engine of a study of its own."""
    from levit_search.engine.local import LocalEngine
    from levit_search.engine.ray import RayEngine

    engine = config.engine.model_copy(update={"kind": kind, "jobs": jobs})
    make = RayEngine if kind == "ray" else LocalEngine
    with tempfile.TemporaryDirectory(prefix="levit-search-scaling-") as folder:
        config = config.model_copy(update={"engine": engine})
        study = Study.create(Path(folder) / "study", config, sys.argv)
        made = make(study, sample, {}, evaluator)
        try:
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def _cluster() -> Iterator[None]:
    """A cluster of nodes that are processes here, which engines find by RAY_ADDRESS."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    store = {"object_store_memory": 80 * 1024**2}
    head = {"num_cpus": 0, "include_dashboard": False, **store}
    cluster: Any = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=max(WORKERS) // NODES, **store)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        cluster.shutdown()


def shown_sleep(rows: Sequence[dict[str, Any]]) -> list[str]:
    return ["workers  trials/s  of linear (95 %)     of ideal"] + [
        f"{row['workers']:7}  {np.median(row['trials_per_second']):8.3f}  "
        f"{spread(row['of_linear'])}  {row['of_ideal']:8.3f}"
        for row in rows
    ]


def shown_train(found: dict[str, Any]) -> list[str]:
    lines = ["engine, jobs  trials/hour"]
    lines += [
        f"{name:12}  {np.median(rates):11.0f}" for name, rates in found["trials_per_hour"].items()
    ]
    lines.append(f"two local jobs to one  {spread(found['two_local_jobs_to_one'])}")
    lines.append(f"ray to local           {spread(found['ray_to_local'])}")
    return lines


if __name__ == "__main__":
    main()
