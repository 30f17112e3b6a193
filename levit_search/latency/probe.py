"""Probes: networks measured on a target by the protocol of :mod:`levit_search.latency.protocol`."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from levit_search import baseline
from levit_search.architecture import Architecture
from levit_search.baseline import Baseline
from levit_search.errors import InputError, TrialError
from levit_search.latency.cache import Cache, cache_key
from levit_search.latency.channel import Channel
from levit_search.latency.host_lock import while_no_probe_runs
from levit_search.latency.protocol import (
    FEWEST_ROUNDS,
    Measurement,
    Round,
    Samples,
    estimate,
    is_settled,
    measurement,
    pooled_reference_ms,
)
from levit_search.latency.targets import (
    TORCH_RUNTIMES,
    CommandTarget,
    Int8Format,
    LatencyConfig,
    LocalTarget,
    package_of,
)
from levit_search.latency.worker import Device, JobNetwork, WorkerAnswer, WorkerJob, filled
from levit_search.progress import Progress, no_progress

if TYPE_CHECKING:
    from levit_search.model import Layout

Network = Architecture | Baseline
Entry = Path | JobNetwork
"""What stands for a network in jobs: its ONNX file, or for torch a description."""

# Fewer rounds have an interval of no use, where the time is up after two: Student's quantile of two
# is 12.7. Of earlier ones, no more than the latest are gone on with.
_FEWEST_ROUNDS = 4
_MOST_ROUNDS = 48
# A network's first run may compile it for so long, on a GPU in several ways.
_COMPILING_S = 900.0
# A round is started if it can be expected to end by then.
_TIME_IS_UP = 1.02
# Runs on random numbers that ranges of random weights are calibrated on.
_CALIBRATED_RUNS = 2


class Probe:
    """Measures networks on a target through one worker that is kept between them.

    Use it as a context manager; the worker is started when it is needed first. What measures raises
    a TrialError where that failed (:meth:`measure_all` returns it), with target and cause, and an
    InputError where the reference does not fit the images.

    Args:
        config: the target and how to measure.
        reference_ms: the settled figure of reference networks by their id; a study keeps it, so
            that all its latencies are multiples of one figure.
        fresh: measure again what the cache holds, and put it there.
        cache: where samples are kept; by default the user's cache.
        report: told what is being measured.
        int8_format: what all networks are quantized to, where the precision is int8 and the
            configuration leaves it to measuring; None measures each network in every format.
        beside: another probe of the same target and runtime, such as in float where this one is in
            int8; its worker and its reference's figures serve both. Close it last.
    """

    def __init__(
        self,
        config: LatencyConfig,
        reference_ms: dict[str, float] | None = None,
        fresh: bool = False,
        cache: Cache | None = None,
        report: Progress = no_progress,
        int8_format: Int8Format | None = None,
        beside: "Probe | None" = None,
    ) -> None:
        self.config = config
        self.int8_format = int8_format
        self.reference_ms: dict[str, float] = dict(reference_ms or {})
        if beside is not None:
            self.reference_ms = beside.reference_ms
        self.cache = cache or Cache()
        self._fresh = fresh
        self._report = report
        self._folder = tempfile.TemporaryDirectory(prefix="levit-search-probe-")
        self._channel: Channel | None = None
        self._beside = beside
        self._references: set[Path] = set()
        self._saturates: bool | None = None

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._folder.cleanup()

    def connect(self) -> Device:
        """Start the worker if it does not run; returns its account of the device."""
        if self._beside is not None:
            device = self._beside.connect()
            self._channel = self._beside._channel
            return device
        if self._channel is None or not self._channel.is_usable:
            self._stop()
            self._channel = Channel(
                self.config.target,
                self.config.runtime,
                self.config.huge_pages,
                lambda: self._report("waiting for another probe or training on that host", 0.0),
                patience_s=self.config.patience_s,
            )
        return self._channel.device

    @contextmanager
    def reporting(self, report: Progress) -> Iterator[None]:
        """Tell ``report`` what is being measured, in place of whoever is told usually."""
        usual, self._report = self._report, report
        try:
            yield
        finally:
            self._report = usual

    def measure(self, network: Network, reference: Network | None = None) -> Measurement:
        """Time one network; see :meth:`measure_all`."""
        return _sound(self.measure_all([network], reference)[0])

    def measure_all(
        self,
        networks: Sequence[Network],
        reference: Network | None = None,
        fresh: bool = False,
    ) -> list[Measurement | TrialError]:
        """Time networks with fresh weights against a reference.

        Rounds of different networks alternate, so that each one's are spread over the whole time:
        what disturbs a machine lasts for seconds to minutes.

        Args:
            networks: in the layout and precision that the configuration names, where they are ours.
                Of several layouts, or formats of int8, the fastest counts.
            reference: what to compare with, in the same layout; by default the configuration's,
                fitted to each network's images and always in the layout of tokens. Where networks
                are in int8 it stays in float.
            fresh: measure again what the cache holds, as a probe that is ``fresh`` always does.

        Returns:
            For each network its measurement, or why it has none.
        """
        by_network = []
        for index, network in enumerate(networks):
            self._report(f"preparing {network.id}", index / len(networks))
            against = reference or self._reference(network)
            against_layout = "tokens" if reference is None else self._layouts(against)[0]
            by_network.append(
                [
                    self._task(network, layout, against, against_layout, fresh, int8_format)
                    for layout in self._layouts(network)
                    for int8_format in self._int8_formats()
                ]
            )
        tasks = [task for several in by_network for task in several]
        self._run(tasks)
        for task in tasks:
            self._forget(task.entries[1:])  # large files; the references' are needed again
        return self._outcomes(by_network)

    def measure_graph(
        self, path: Path, network: Network, int8_format: Int8Format | None = None
    ) -> Measurement:
        """Time an exported ONNX file as :meth:`measure` times a network; never from the cache.

        The runtimes of torch run no ONNX graph, but what :meth:`measure` times.

        Args:
            path: the graph; where it takes any number of images, ``batch_size`` of them.
            network: what was exported, which the configuration's reference is fitted to.
            int8_format: that of the graph, where it is one in int8.

        Returns:
            The measurement, with ``exported`` for the layout.
        """
        if self.config.runtime in TORCH_RUNTIMES:
            raise TrialError(
                f"runtime {self.config.runtime} runs no ONNX graphs, so that {path.name} cannot be "
                "timed with it; onnxruntime and openvino run them, on CPUs"
            )
        device = self.connect()
        reference, reference_graph = self.reference_graph(network)
        # Files that are sent are known by their names; this one's may be as common as model.onnx.
        copied = Path(self._folder.name) / f"{network.id}-exported.onnx"
        shutil.copyfile(path, copied)
        entries = [reference_graph, copied]
        task = _Task(
            path.name, reference.id, ["exported"], entries, device, int8_format=int8_format
        )
        try:
            self._run([task])
        finally:
            self._forget([copied])
        return task.measurements(self.config, self.reference_ms.get(reference.id))[0]

    def time_graphs(
        self,
        candidates: Sequence[Path],
        reference: Path,
        config: LatencyConfig | None = None,
        warm: bool = True,
    ) -> list[Measurement]:
        """Time ONNX files in turn against one; all inputs are filled with random numbers.

        Args:
            candidates: what is measured.
            reference: what they are compared with.
            config: the probe's with another ``seconds``, ``rounds`` or ``interval_percent``.
            warm: bring short ones into the caches before they are timed; parts of a network find
                them full of its other parts' data when it runs.
        """
        names, device = [path.stem for path in candidates], self.connect()
        entries = [reference, *candidates]
        task = _Task(", ".join(names), reference.stem, names, entries, device, warm)
        self._run([task], config, with_peak=False)
        if self._channel is not None:
            for path in candidates:
                self._channel.forget(path)
        return task.measurements(self.config)

    def reference_graph(self, network: Network) -> tuple[Architecture, Path]:
        """The configuration's reference for ``network``'s images, and its ONNX file."""
        reference = self._reference(network)
        graph = self._graph(reference, "tokens")
        self._references.add(graph)
        return reference, graph

    def settle_reference(self, network: Network) -> Measurement:
        """Time the reference for ``network``'s images against a copy of itself and keep its figure.

        Its ``ratio_to_reference`` should be 1; how far it is from 1 is this machine's error.
        """
        reference = self._reference(network)
        task = self._task(reference, "tokens", reference, "tokens")
        self._run([task])
        found = _sound(self._outcomes([[task]])[0])
        self.reference_ms[reference.id] = found.reference_ms
        return found

    def settle_int8(self, network: Network) -> Int8Format:
        """Choose the format of int8 that is fastest on the target, and quantize to it from now on.

        The reference for ``network``'s images is measured in each, unless the configuration says
        which, or :attr:`int8_format` does; if that saturates there, a warning says so.

        Raises:
            TrialError: the target cannot run graphs in int8.
            InputError: nncf is asked for and not installed, or :attr:`int8_format` overflows here.
        """
        asked, kept = self.config.int8.format, self.int8_format
        # Of what is on this machine accuracies are computed as it computes.
        is_here = isinstance(self.config.target, LocalTarget)
        if asked == "auto" and kept in ("u8", "nncf") and is_here and self.saturates():
            raise InputError(
                f"networks were quantized to {kept} where products do not overflow, and here they "
                "do: go on there, or begin another study"
            )
        if kept is None and self.saturates() and asked in ("u8", "nncf"):
            warnings.warn(
                f"int8.format: {asked}: {self.config.target.label} adds products in 16 bits, which "
                f"overflow; {asked}-reduced does not",
                stacklevel=2,
            )
        found, *others = self._int8_formats()
        if others:
            found = self.measure(self._reference(network)).int8_format
        assert found is not None, "the precision is int8"
        if found.startswith("nncf") and find_spec("nncf") is None:
            raise InputError(
                f"int8.format: {found}: nncf is not installed; pip install 'levit-search[intel]'"
            )
        self.int8_format = found
        return found

    def _int8_formats(self) -> Sequence[Int8Format | None]:
        """The formats of int8 to try; None is the network as it is, in another precision."""
        if self.config.precision != "int8":
            return [None]
        asked = self.config.int8.format
        if asked != "auto":
            return [asked]
        if self.int8_format is not None:
            return [self.int8_format]
        unsigned: Int8Format = "u8"
        by_nncf: Int8Format = "nncf"
        if self.saturates():
            unsigned, by_nncf = "u8-reduced", "nncf-reduced"
        if self.config.runtime == "onnxruntime":
            return [unsigned, "s8"]
        has_nncf = find_spec("nncf") is not None and self.config.int8.calibration == "minmax"
        return [unsigned, by_nncf] if has_nncf else [unsigned]

    def saturates(self) -> bool:
        """Whether the target's runtime adds products of u8 and s8 in 16 bits, where they overflow.

        Raises:
            TrialError: it cannot run graphs in int8.
        """
        from levit_search.model.quantization import SATURATION_LOGIT, saturating_graph

        if self._saturates is None:
            path = Path(self._folder.name) / "saturates.onnx"
            saturating_graph(path)
            try:
                found = self._ask("logits", [path], seconds=0.0)["logits"]
            except TrialError as error:
                raise self._without_int8(error) from None
            self._saturates = min(found) < 0.99 * SATURATION_LOGIT
        return self._saturates

    def _without_int8(self, error: TrialError) -> TrialError:
        """What a worker says of a graph in int8, with what may be the reason."""
        if self._channel is not None and not self._channel.is_usable:  # it died, or is not reached
            return error
        package = package_of(self.config.runtime)
        version = self.connect()["runtimes"].get(package, "?")
        return TrialError(
            f"{error}; its {package} {version} may not run int8 graphs (QDQ form): a newer one does"
        )

    def _reference(self, network: Network) -> Architecture:
        return self.config.reference_for(
            image_size=network.image_size,
            in_channels=network.in_channels,
            num_classes=network.num_classes or 1,  # baselines may have none
        )

    def _layouts(self, network: Network) -> "list[Layout]":
        """The layouts to try; timm's networks have one of their own."""
        if isinstance(network, Baseline):
            return ["tokens"]
        layout = self.config.layout
        return ["tokens", "maps"] if layout == "fastest" else [layout]

    def _task(
        self,
        network: Network,
        layout: "Layout",
        against: Network,
        against_layout: "Layout",
        fresh: bool = False,
        int8_format: Int8Format | None = None,
    ) -> "_Task":
        """A network's task, with what the cache knows of it or with its graphs written."""
        task = _Task(network.id, against.id, [layout], int8_format=int8_format)
        try:
            task.device = self.connect()
            name = f"{network.id}-{layout}" + (f"-{int8_format}" if int8_format else "")
            task.key = cache_key(self.config, task.device, name, f"{against.id}-{against_layout}")
            if not (self._fresh or fresh):
                task.earlier = self.cache.find(task.key, self.config.clock)
                task.is_known = task.is_settled(self.config)
            if not task.is_known:
                reference = self._entry(against, against_layout)
                if isinstance(reference, Path):
                    self._references.add(reference)
                task.entries = [reference, self._entry(network, layout, int8_format)]
        except TrialError as error:
            task.error = error
        return task

    def _entry(
        self, network: Network, layout: "Layout", int8_format: Int8Format | None = None
    ) -> Entry:
        if int8_format is not None:
            graph = self._graph(network, layout)
            try:
                return self.int8_graph(graph, int8_format)
            finally:
                self._forget([graph])
        if self.config.runtime not in TORCH_RUNTIMES:
            return self._graph(network, layout)
        if isinstance(network, Baseline):
            return {"timm": asdict(network)}
        return {"architecture": network.model_dump(mode="json"), "layout": layout}

    def _graph(self, network: Network, layout: "Layout") -> Path:
        """The ONNX file of a network; its weights are random, which latency does not mind."""
        from torch.onnx import OnnxExporterError

        from levit_search.model import build, export_onnx

        batch_size = self.config.batch_size
        assert isinstance(batch_size, int)
        path = Path(self._folder.name) / f"{network.id}-{layout}-{batch_size}.onnx"
        if path.exists():
            return path
        partial = path.with_suffix(".partial")
        try:
            with while_no_probe_runs():
                if isinstance(network, Baseline):
                    baseline.export_onnx(network, partial, batch_size)
                else:
                    export_onnx(build(network, layout), partial, batch_size)
        except OnnxExporterError as error:
            reason = str(error).strip().partition("\n")[0]
            raise TrialError(f"{network.id} cannot be written as ONNX: {reason}") from error
        partial.replace(path)
        return path

    def int8_graph(self, graph: Path, int8_format: Int8Format) -> Path:
        """The int8 form of an ONNX file of random weights, calibrated on random numbers, beside it.

        Raises:
            TrialError: it cannot be quantized.
            InputError: nncf is asked for and not installed.
        """
        from levit_search.model.quantization import graph_inputs, quantize

        path = graph.with_name(f"{graph.stem}-{int8_format}.onnx")
        if not path.exists():
            inputs = graph_inputs(graph)
            runs = [filled(inputs, seed) for seed in range(_CALIBRATED_RUNS)]
            partial = path.with_suffix(".partial")
            with while_no_probe_runs():
                quantize(graph, partial, runs, self.config.int8, int8_format)
            partial.replace(path)
        return path

    def _run(
        self, tasks: "list[_Task]", config: LatencyConfig | None = None, with_peak: bool = True
    ) -> None:
        """Measure a round of each task in turn until all have failed or are known well enough."""
        config = config or self.config
        running = todo = [task for task in tasks if task.error is None and not task.is_known]
        while todo:
            for task in todo:
                done = sum(each.share(config) for each in running) / len(running)
                self._report(f"measuring {task.name}", done)
                try:
                    if with_peak and not task.peaks:
                        # A GPU tells the memory of each network; a CPU that of a process.
                        on_gpu = self.config.target.device == "cuda"
                        task.peaks = [
                            self._ask("own_peak" if on_gpu else "peak", [each])["bytes"]
                            for each in task.entries[1:]
                        ]
                    seconds = config.seconds / config.rounds
                    task.add(self._ask("round", task.entries, seconds, task.warm))
                except TrialError as error:
                    is_first = task.int8_format is not None and not task.rounds
                    task.error = self._without_int8(error) if is_first else error
            todo = [task for task in todo if not task.is_done(config)]

    def _ask(
        self,
        do: Literal["round", "logits", "peak", "own_peak"],
        entries: Sequence[Entry],
        seconds: float = 0.0,
        warm: bool = True,
    ) -> WorkerAnswer:
        """A job's answer; a worker that died before is started again."""
        self.connect()
        assert self._channel is not None
        channel, config = self._channel, self.config
        job: WorkerJob = {
            "do": do,
            "networks": [channel.place(e) if isinstance(e, Path) else e for e in entries],
            "seconds": seconds,
            "warm": warm,
            "seed": 0,
            "device": config.target.device,
            "runtime": config.runtime,
            "threads": config.threads,
            "precision": config.precision,
            "batch_size": config.batch_size,
        }
        if isinstance(config.target, CommandTarget):
            job["python"] = [*config.target.python]
        compiling_s = _COMPILING_S if config.runtime == "torch-compiled" else 0.0
        return channel.ask(job, seconds + compiling_s, config.clock)

    def _outcomes(self, by_network: "list[list[_Task]]") -> list[Measurement | TrialError]:
        """Measurements on one scale: networks with one reference share its milliseconds.

        Of a network's tasks, one for each layout and format of int8, the one with the lowest ratio
        counts; where one of several formats fails, the others do.
        """
        clock = self.config.clock
        sound = [t for tasks in by_network for t in tasks if t.error is None]
        for task in sound:
            if not task.is_known:
                self.cache.keep(task.key, task.samples(1))
        outcomes: list[Measurement | TrialError] = []
        for tasks in by_network:
            errors = [task.error for task in tasks if task.error is not None]
            if errors and (tasks[0].int8_format is None or len(errors) == len(tasks)):
                outcomes.append(errors[0])
                continue
            best = min(
                (task for task in tasks if task.error is None),
                key=lambda task: estimate(task.samples(1).rounds, clock).ratio,
            )
            same = [task.samples(1) for task in sound if task.reference == best.reference]
            settled_ms = self.reference_ms.get(best.reference)
            scale_ms = settled_ms or pooled_reference_ms(same, clock)
            file = str(self.cache.path(best.key))
            found = measurement(self.config, best.samples(1), scale_ms, file, best.is_known)
            outcomes.append(found)
        return outcomes

    def _forget(self, entries: Sequence[Entry]) -> None:
        for path in entries:
            if isinstance(path, Path) and path not in self._references:
                path.unlink(missing_ok=True)
                if self._channel is not None:
                    self._channel.forget(path)

    def _stop(self) -> None:
        if self._channel is not None and self._beside is None:
            self._channel.close()
        self._channel = None


@dataclass
class _Task:
    """Graphs that are timed in turn with a reference: a network in a layout, or blocks."""

    name: str
    reference: str
    layouts: list[str]
    entries: Sequence[Entry] = ()
    """The reference's, then one for each of ``layouts``."""
    device: Device = field(default_factory=Device)
    warm: bool = True
    key: Mapping[str, object] = field(default_factory=dict)
    earlier: Samples | None = None
    """From the cache, of a network; measuring goes on with them."""
    is_known: bool = False
    """Whether the earlier ones are enough."""
    rounds: list[Round] = field(default_factory=list)
    peaks: list[int | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: TrialError | None = None
    int8_format: Int8Format | None = None

    def add(self, answer: WorkerAnswer) -> None:
        sizes, self.notes = answer["batch_sizes"], answer["notes"]
        last = Round(answer["cycles"], sizes, answer["prepare_s"], answer["timing_s"])
        self.rounds.append(last)
        if self.earlier is not None:
            then = [self.earlier.note, *self.earlier.rounds[-1].batch_sizes]
            if then != [self.notes[1], *sizes]:  # the GPU was fuller then
                self.earlier = None

    def share(self, config: LatencyConfig) -> float:
        """Which part of the time it may take is gone."""
        if self.error is not None:
            return 1.0
        return min(1.0, sum(each.timing_s for each in self.rounds) / config.seconds)

    def is_done(self, config: LatencyConfig) -> bool:
        """Whether it failed, is known well enough, or has had its time."""
        if self.error is not None:
            return True
        count = len(self.rounds)
        if count < min(_FEWEST_ROUNDS, max(FEWEST_ROUNDS, config.rounds)):
            return False
        with_next_s = sum(each.timing_s for each in self.rounds) * (count + 1) / count
        return self.is_settled(config) or with_next_s > _TIME_IS_UP * config.seconds

    def is_settled(self, config: LatencyConfig) -> bool:
        """Whether what is known of all is narrow enough to end measuring."""
        numbers = range(1, len(self.layouts) + 1)
        wanted = config.clock, config.interval_percent
        return all(is_settled(self._rounds_of(number), *wanted) for number in numbers)

    def _rounds_of(self, number: int) -> list[Round]:
        earlier = self.earlier.rounds if self.earlier is not None else []
        out = max(0, len(earlier) + len(self.rounds) - _MOST_ROUNDS)
        return [*earlier[out:], *(each.of(number) for each in self.rounds)]

    def samples(self, number: int) -> Samples:
        """What was taken of the entry ``number``, now and earlier."""
        if self.is_known:
            assert self.earlier is not None
            return self.earlier
        return Samples(
            rounds=self._rounds_of(number),
            layout=self.layouts[number - 1],
            note=self.notes[number],
            peak_memory_bytes=self.peaks[number - 1] if self.peaks else None,
            device=self.device,
            int8_format=self.int8_format,
        )

    def measurements(
        self, config: LatencyConfig, reference_ms: float | None = None
    ) -> list[Measurement]:
        """What was measured of each entry; without a figure of the reference, on its own scale."""
        if self.error is not None:
            raise self.error
        found = map(self.samples, range(1, len(self.entries)))
        return [
            measurement(config, each, reference_ms or pooled_reference_ms([each], config.clock))
            for each in found
        ]


def _sound(outcome: Measurement | TrialError) -> Measurement:
    if isinstance(outcome, TrialError):
        raise outcome
    return outcome
