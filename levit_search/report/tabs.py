"""The costs that accuracy is drawn against, each with what is best at it."""

from collections.abc import Mapping, Sequence
from typing import Any

from levit_search import table
from levit_search.pareto import PROBED, Objective, figure_and_target, is_maximised
from levit_search.study import Record, Study

_DIGITS = 7  # significant ones, beyond what any figure is good for

TITLES: dict[str, tuple[str, str]] = {
    "top1_percent": ("Top-1 accuracy", "%"),
    "latency_ms": ("Latency", "ms"),
    "latency_predicted_ms": ("Predicted latency", "ms"),
    "prediction_error_percent": ("Prediction error", "%"),
    "latency_ms_repeats_percent": ("Repeats within ±", "%"),
    "latency_search_ms": ("Latency in the search", "ms"),
    "latency_median_ms": ("Median latency", "ms"),
    "latency_p95_ms": ("95th percentile of latency", "ms"),
    "peak_memory_mb": ("Peak memory", "MB"),
    "flops": ("FLOPs", "M"),
    "params": ("Parameters", "M"),
    "activations": ("Activations", "M"),
}
"""What each figure is called, and the unit in which people read it."""


def upwards(objectives: Sequence[Objective]) -> Objective:
    """The figure that is drawn upwards: accuracy where there is one."""
    return next((name for name in objectives if is_maximised(name)), objectives[0])


def tabs(
    study: Study,
    records: Sequence[Record],
    attributes: Mapping[str, Any],
    references: Mapping[str, str],
) -> list[dict[str, Any]]:
    """The costs that accuracy is drawn against: latency on each target, then the others."""
    config = study.config
    up = upwards(config.objectives)
    complete = [record for record in records if record.is_evaluated]
    found = [name for name in config.objectives if name != up]
    if config.is_measured:
        found += ["latency_ms", *(f"latency_ms@{name}" for name in config.also_measured)]
    found += ["flops", "params"]
    known = [
        name
        for name in dict.fromkeys(found)
        if name != up and not is_maximised(name) and all(name in r.values for r in complete)
    ]
    # Latencies first, in the order of the objectives; what is counted comes last.
    known.sort(key=lambda name: (not name.startswith("latency_ms"), name in ("flops", "params")))
    return [_tab(study, name, up, complete, attributes, references) for name in known]


def _tab(
    study: Study,
    name: str,
    up: str,
    complete: Sequence[Record],
    attributes: Mapping[str, Any],
    references: Mapping[str, str],
) -> dict[str, Any]:
    figure, target = figure_and_target(name)
    title, unit = TITLES[figure]
    beside: dict[str, Any] = {"reference": None, "device": None, "runtime": None}
    if figure in PROBED:
        config = study.config
        section = config.latency if target is None else config.targets[target]
        device = attributes.get("device") if target is None else None
        if target is not None:
            device = (attributes.get("devices") or {}).get(target)
        cpu = device.get("gpu") or device.get("cpu") if isinstance(device, dict) else None
        beside["device"] = f"{section.target.label}: {cpu}" if cpu else section.target.label
        beside["runtime"] = (
            f"{section.runtime}, {section.precision}, {_count(section.threads, 'thread')}, "
            f"batch {section.batch_size}"
        )
        if figure == "latency_ms":
            beside["reference"] = _reference(target, complete, attributes, references)
    return {
        "figure": name,
        "title": title if target is None else f"{title} on {target}",
        "unit": unit,
        "scale": table.scale(name),
        "log": True,
        "objective": name in study.config.objectives,
        "front": [record.trial for record in table.front(complete, (name, up))],
        **beside,
    }


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _reference(
    target: str | None,
    complete: Sequence[Record],
    attributes: Mapping[str, Any],
    references: Mapping[str, str],
) -> dict[str, Any] | None:
    """The network that latencies are relative to, its own, and the trial that trained it."""
    prefix = "" if target is None else f"{target}:"
    for known, name in references.items():
        ms = attributes.get("settled_ms", {}).get(f"{prefix}{known}")
        if ms is not None:
            trial = next((r.trial for r in complete if network_id(r) == known), None)
            return {"name": name, "ms": rounded(ms), "trial": trial}
    return None


def rounded(value: float) -> float:
    """A figure as a document has it, shorter than in the storage."""
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def network_id(record: Record) -> str | None:
    """Of the network that a trial proposed; None where it is none."""
    return record.architecture.id if record.architecture is not None else None
