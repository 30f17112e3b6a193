"""The exported graph timed again where the front's latencies were measured."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from levit_search.architecture import Architecture
from levit_search.errors import InputError, TrialError
from levit_search.latency import LatencyConfig, Probe
from levit_search.latency.targets import TORCH_RUNTIMES, check_programs
from levit_search.pareto import on_target
from levit_search.progress import Progress
from levit_search.search.evaluate import settled_on
from levit_search.study import Record, Study, StudyConfig

if TYPE_CHECKING:
    from levit_search.model import Layout

AGREES_PERCENT = 6.0
"""Two latencies of one network agree within this, or where their intervals meet."""


@dataclass(frozen=True)
class Again:
    """The latency of an exported graph beside the one that its network has in the study."""

    figure: str
    """``latency_ms``, or ``latency_ms@TARGET``."""
    before: dict[str, Any]
    """What the study knows; see :class:`levit_search.latency.Measurement`."""
    now: dict[str, Any] | None
    """What was measured; None where it could not be."""
    reason: str | None = None
    """Why it could not be measured, or cannot be compared."""
    timed: str = "model.onnx"
    """What was timed; with the runtimes of torch it is the network itself."""
    repeats_percent: float | None = None
    """Within what another measurement was expected; None where the front was measured once."""

    @property
    def difference_percent(self) -> float | None:
        """Between the two ratios to the reference; None where they cannot be compared."""
        if self.now is None or self.reason is not None:
            return None
        before, now = self.before["ratio_to_reference"], self.now["ratio_to_reference"]
        return float(100 * (now / before - 1))

    @property
    def agrees(self) -> bool:
        """Whether both intervals meet, or the figures are close. True where nothing can be said."""
        difference = self.difference_percent
        if difference is None or self.is_expected:
            return True
        assert self.now is not None
        (low, high), (low_now, high_now) = self.before["ratio_ci95"], self.now["ratio_ci95"]
        return abs(difference) <= AGREES_PERCENT or (low <= high_now and low_now <= high)

    @property
    def is_expected(self) -> bool | None:
        """Whether it lies within ``repeats_percent``; None where that cannot be said."""
        if self.difference_percent is None or self.repeats_percent is None:
            return None
        return abs(self.difference_percent) <= self.repeats_percent

    def compared(self) -> str:
        """What it is beside the study's figure, in words."""
        if self.difference_percent is None:
            return f"not compared: {self.reason}"
        if self.repeats_percent is None:
            return f"{self.difference_percent:+.1f} % of the search's"
        where = "within" if self.is_expected else "outside"
        return (
            f"{self.difference_percent:+.1f} % of the front's, {where} its "
            f"±{self.repeats_percent:.1f} %"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "difference_percent": self.difference_percent,
            "agrees": self.agrees,
            "is_expected": self.is_expected,
            "compared": self.compared(),
        }


def probed_again(study: Study, record: Record, graph: Path, progress: Progress) -> list[Again]:
    """Time an exported graph on every target on which its network was measured.

    One whose ratio to the reference does not agree is measured once more, for twice as long.

    Args:
        study: with its settled reference latencies.
        record: of the network.
        graph: its ONNX file, of dynamic batch.
        progress: told what is being measured.

    Returns:
        One for each target; none where the study measured nothing.
    """
    assert record.architecture is not None
    exported = _Exported(record.architecture, graph, graph_layout(study, record))
    settled_ms = study.attributes().get("settled_ms", {})
    return [
        _again(known, settled_on(known.target, settled_ms), exported, progress)
        for known in latencies(study.config, record)
    ]


class Known(NamedTuple):
    """What a study knows of a network's latency on one target."""

    target: str | None
    """None is that of ``latency``."""
    config: LatencyConfig
    found: dict[str, Any]
    """See :class:`levit_search.latency.Measurement`."""
    repeats_percent: float | None
    """Within what another measurement is expected; None where it was measured once."""
    search_ms: float | None
    """What the search had measured; None where it was measured once."""


def latencies(config: StudyConfig, record: Record) -> list[Known]:
    """What a study knows of a network's latency, by target.

    A trial that was taken over has those of its own study, too, whose sections are not known here.
    """
    evaluation, values = record.evaluation, record.values
    found = [(None, config.latency, evaluation.get("latency"))] if config.is_measured else []
    targets = evaluation.get("targets", {})
    others = [(name, each, targets.get(name)) for name, each in config.also_measured.items()]
    return [
        Known(
            name,
            section,
            known,
            values.get(on_target("latency_ms_repeats_percent", name)),
            values.get(on_target("latency_search_ms", name)),
        )
        for name, section, known in (*found, *others)
        if known
    ]


class _Exported(NamedTuple):
    network: Architecture
    graph: Path
    layout: "Layout"


def _again(
    known: Known,
    settled_ms: dict[str, float],
    exported: "_Exported",
    progress: Progress,
) -> Again:
    name, config, before = on_target("latency_ms", known.target), known.config, known.found
    if before.get("method") == "predicted":
        return Again(name, before, None, "it was predicted, not measured")
    try:
        check_programs({"latency": config}, "study.yaml")
    except InputError as error:
        return Again(name, before, None, str(error))
    timed, layout = exported.graph.name, exported.layout
    if config.runtime in TORCH_RUNTIMES:
        timed, layout = "the network in torch", before.get("layout", layout)
    found = None
    for seconds in (config.seconds, 2 * config.seconds):
        progress(f"timing {timed} on {config.target.label}", None)
        longer = config.model_copy(update={"seconds": seconds})
        try:
            with Probe(longer, settled_ms, fresh=True) as probe:
                if config.runtime in TORCH_RUNTIMES:
                    measured = probe.measure(exported.network)
                else:
                    measured = probe.measure_graph(exported.graph, exported.network)
        except TrialError as error:
            return found or Again(name, before, None, str(error), timed)
        now = measured.as_json()
        reason = _incomparable(before, now, layout)
        found = Again(name, before, now, reason, timed, known.repeats_percent)
        if found.agrees:
            return found
    assert found is not None
    return found


def graph_layout(study: Study, record: Record) -> "Layout":
    """The layout of a network's ``model.onnx``: the one that it was measured or predicted in."""
    latency = record.evaluation.get("latency") or {}
    return "maps" if latency.get("layout", study.config.latency.layout) == "maps" else "tokens"


def _incomparable(before: dict[str, Any], now: dict[str, Any], layout: str) -> str | None:
    """Why two measurements are not of one thing, the second of a network in ``layout``."""
    if not {"ratio_to_reference", "ratio_ci95"} <= before.keys():
        return "the study has no ratio to a reference"
    devices = [_device_name(found.get("device") or {}) for found in (before, now)]
    if devices[0] != devices[1]:
        return f"the study's is of another device, {devices[0]}"
    if before.get("runtime") != now["runtime"]:
        return f"the study's is of another runtime, {before.get('runtime')}"
    if before.get("layout") != layout:
        return f"the study's is of the layout {before.get('layout')}, this one of {layout}"
    return None


def _device_name(device: dict[str, Any]) -> str | None:
    return device.get("gpu") or device.get("cpu")
