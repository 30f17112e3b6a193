"""Records as tables: in the terminal, as CSV, Markdown and JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from levit_search.files import write_atomically
from levit_search.pareto import (
    Objective,
    figure_and_target,
    is_maximised,
    minimised,
    non_dominated,
)
from levit_search.study import Record, Study

if TYPE_CHECKING:
    from rich.table import Table

# How each figure is headed and written for people; one multiply-add is one FLOP.
_COLUMNS: dict[str, tuple[str, str]] = {
    "top1_percent": ("top-1 %", "{:.2f}"),
    "latency_ms": ("latency ms", "{:.4g}"),
    "latency_predicted_ms": ("predicted ms", "{:.4g}"),
    "prediction_error_percent": ("error %", "{:+.1f}"),
    "latency_median_ms": ("median ms", "{:.4g}"),
    "latency_p95_ms": ("p95 ms", "{:.4g}"),
    "peak_memory_mb": ("memory MB", "{:.4g}"),
    "flops": ("MFLOPs", "{:.4g}"),
    "params": ("params M", "{:.3g}"),
    "activations": ("activations M", "{:.3g}"),
}
_PER_MILLION = ("flops", "params", "activations")


def front(records: Sequence[Record], objectives: Sequence[Objective]) -> list[Record]:
    """The complete, non-dominated records, the cheapest in the first cost objective first.

    A network that was proposed again stands there once.
    """
    complete = [r for r in records if r.state == "complete" and r.reused_from is None]
    if not complete:
        return []
    mask = non_dominated(minimised([record.values for record in complete], objectives))
    by = next((name for name in objectives if not is_maximised(name)), objectives[0])
    kept = [record for record, keep in zip(complete, mask, strict=True) if keep]
    return sorted(kept, key=lambda record: (record.values[by], record.trial))


def as_json(record: Record) -> dict[str, Any]:
    """A record of the front: ``{trial, id, top1_percent, latency_ms, flops, params,
    architecture}``, and ``latency_ms@NAME`` and so forth where it was measured on further targets;
    what was not measured is null."""
    assert record.architecture is not None
    figures = {name: record.values.get(name) for name in _known([record])}
    return {
        "trial": record.trial,
        "id": record.architecture.id,
        **figures,
        "architecture": record.architecture.model_dump(mode="json"),
    }


def figure(name: str, value: float | None) -> str:
    """A figure for people, in the unit of its column's head."""
    if value is None:
        return ""
    _, form = _COLUMNS[figure_and_target(name)[0]]
    return form.format(value / 1e6 if name in _PER_MILLION else value)


_PREDICTION = ("latency_predicted_ms", "prediction_error_percent")


def _shown(records: Sequence[Record], objectives: Sequence[Objective]) -> list[str]:
    """The objectives first, then what was predicted and the costs worth seeing beside them."""
    predicted = [name for name in _PREDICTION if any(name in r.values for r in records)]
    costs = [name for name in ("flops", "params") if name not in objectives]
    return [*objectives, *predicted, *costs]


def _cells(record: Record, names: Sequence[str]) -> list[str]:
    summary = record.architecture.summary() if record.architecture else ""
    return [str(record.trial), *(figure(n, record.values.get(n)) for n in names), summary]


def _heads(names: Sequence[str]) -> list[str]:
    return ["trial", *map(_head, names), "architecture"]


def _head(name: str) -> str:
    known, target = figure_and_target(name)
    head, _ = _COLUMNS[known]
    return head if target is None else f"{head} @{target}"


def _known(records: Sequence[Record]) -> list[str]:
    """All figures by name, those of further targets last."""
    return list(dict.fromkeys([*_COLUMNS, *(name for r in records for name in r.values)]))


def terminal(records: Sequence[Record], objectives: Sequence[Objective], title: str) -> "Table":
    """A rich table."""
    from rich.table import Table

    names = _shown(records, objectives)
    shown = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for head in _heads(names):
        right = head != "architecture"
        shown.add_column(head, justify="right" if right else "left", no_wrap=right)
    for record in records:
        shown.add_row(*_cells(record, names))
    return shown


def markdown(records: Sequence[Record], objectives: Sequence[Objective]) -> str:
    """A Markdown table."""
    names = _shown(records, objectives)
    heads = _heads(names)
    lines = [heads, ["---:"] * (len(heads) - 1) + ["---"]]
    lines += [_cells(record, names) for record in records]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def as_csv(records: Sequence[Record]) -> str:
    """All that is known of each record, one a row, figures in plain units."""
    names = _known(records)
    columns = ["trial", "state", "id", *names, "ratio_to_reference", "ratio_ci95_low"]
    columns += ["ratio_ci95_high", "seconds", "reused_from", "reason", "architecture"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow(_csv_row(record, names))
    return text.getvalue()


def _csv_row(record: Record, names: Sequence[str]) -> Mapping[str, Any]:
    network = record.architecture
    latency = record.evaluation.get("latency") or {}
    low, high = latency.get("ratio_ci95", ("", ""))
    return {
        "trial": record.trial,
        "state": record.state,
        "id": network.id if network else "",
        **{name: record.values.get(name, "") for name in names},
        "ratio_to_reference": latency.get("ratio_to_reference", ""),
        "ratio_ci95_low": low,
        "ratio_ci95_high": high,
        "seconds": record.seconds,
        "reused_from": "" if record.reused_from is None else record.reused_from,
        "reason": record.reason or "",
        "architecture": json.dumps(network.model_dump(mode="json")) if network else "",
    }


def write_tables(study: Study, records: Sequence[Record]) -> None:
    """Write ``trials.csv`` and ``front.csv`` into the study folder."""
    write_atomically(study.folder / "trials.csv", as_csv(records))
    write_atomically(study.folder / "front.csv", as_csv(front(records, study.config.objectives)))
