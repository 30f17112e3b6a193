"""Records as tables: in the terminal, as CSV, Markdown and JSON."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from levit_search.files import write_atomically
from levit_search.pareto import (
    ACCURACIES,
    IN_INT8,
    PAIRED,
    Objective,
    figure_and_target,
    is_maximised,
    minimised,
    non_dominated,
    on_target,
)
from levit_search.significance import UNJUDGED, Accuracy, Verdict, judged
from levit_search.study import BaselineRecord, Record, Study, compared
from levit_search.study.record import ERRORS, ESTIMATES, REPEATS, SEARCHED

if TYPE_CHECKING:
    from rich.table import Table

# How each figure is headed and written for people; one multiply-add is one FLOP.
_COLUMNS: dict[str, tuple[str, str]] = {
    "top1_percent": ("top-1 %", "{:.2f}"),
    "top1_int8_percent": ("int8 top-1 %", "{:.2f}"),
    "int8_drop_points": ("int8 drop", "{:.2f}"),
    "top1_inherited_percent": ("inherited %", "{:.2f}"),
    "top1_int8_inherited_percent": ("int8 inherited %", "{:.2f}"),
    "latency_ms": ("latency ms", "{:.4g}"),
    "latency_predicted_ms": ("predicted ms", "{:.4g}"),
    "prediction_error_percent": ("error %", "{:+.1f}"),
    "latency_ms_repeats_percent": ("± %", "{:.1f}"),
    "latency_search_ms": ("in search ms", "{:.4g}"),
    "latency_int8_ms": ("int8 ms", "{:.4g}"),
    "latency_int8_predicted_ms": ("int8 predicted ms", "{:.4g}"),
    "prediction_error_int8_percent": ("int8 error %", "{:+.1f}"),
    "latency_int8_ms_repeats_percent": ("int8 ± %", "{:.1f}"),
    "latency_int8_search_ms": ("int8 in search ms", "{:.4g}"),
    "latency_median_ms": ("median ms", "{:.4g}"),
    "latency_p95_ms": ("p95 ms", "{:.4g}"),
    "peak_memory_mb": ("memory MB", "{:.4g}"),
    "model_bytes": ("file MB", "{:.3g}"),
    "flops": ("MFLOPs", "{:.4g}"),
    "params": ("params M", "{:.3g}"),
    "activations": ("activations M", "{:.3g}"),
}
# What is told in millions, and the word for it.
_PER_MILLION = {
    "flops": "FLOPs",
    "params": "params",
    "activations": "activations",
    "model_bytes": "bytes",
}

KNOWN = tuple(_COLUMNS)
"""The figures that have a column, those of a probe without their target."""


def front(records: Sequence[Record], objectives: Sequence[Objective]) -> list[Record]:
    """The non-dominated ones of :func:`levit_search.study.compared`, the cheapest in the first cost
    objective first."""
    complete = compared(records)
    if not complete:
        return []
    mask = non_dominated(minimised([record.values for record in complete], objectives))
    by = next((name for name in objectives if not is_maximised(name)), objectives[0])
    kept = [record for record, keep in zip(complete, mask, strict=True) if keep]
    return sorted(kept, key=lambda record: (record.values[by], record.trial))


def as_json(record: Record, verdict: Verdict = UNJUDGED) -> dict[str, object]:
    """A record of the front: ``{trial, id, top1_percent, latency_ms, latency_ms_repeats_percent,
    latency_search_ms, flops, params, top1_percent_ci95, val_images, vs_best, architecture}``, and
    ``latency_ms@NAME`` and so forth where it was measured on further targets; what was not measured
    is null. The ``verdict`` is on the accuracies of its study; where it is on those in int8, the
    interval is ``top1_int8_percent_ci95``.
    """
    assert record.architecture is not None
    return {
        "trial": record.trial,
        "id": record.architecture.id,
        **_figures_json(record, verdict.figure, verdict.by_trial.get(record.trial)),
        "architecture": record.architecture.model_dump(mode="json"),
    }


def baseline_as_json(record: BaselineRecord, verdict: Verdict = UNJUDGED) -> dict[str, object]:
    """A network to compare with, with the figures of :func:`as_json`: ``{trial, baseline, weights,
    reason, top1_percent, ..., top1_percent_ci95, val_images, vs_best, architecture}``.

    ``trial`` and ``architecture`` are null, ``baseline`` is its name, ``reason`` why it failed;
    where it did, or is not trained yet, the figures are null.
    """
    return {
        "trial": None,
        "baseline": record.config.name,
        "weights": record.config.weights,
        "reason": record.reason,
        **_figures_json(record, verdict.figure, verdict.by_baseline.get(record.config.id)),
        "architecture": None,
    }


def _figures_json(
    record: Record | BaselineRecord, accuracy: Objective, found: Accuracy | None
) -> dict[str, object]:
    return {
        **{name: record.values.get(name) for name in _known([record])},
        f"{accuracy}_ci95": [found.low_percent, found.high_percent] if found else None,
        "val_images": found.images if found else None,
        "vs_best": found.vs_best if found else None,
    }


def beside_baselines(
    front: Sequence[Record], baselines: Sequence[BaselineRecord], objectives: Sequence[Objective]
) -> str:
    """What the front is worth beside networks to compare with, by their figures as they stand.

    Returns:
        A few sentences: which members each baseline dominates, or which dominate it, and what
        failed or is not trained yet. Empty without baselines.
    """
    whole = [each for each in baselines if each.is_complete]
    told, is_beaten = [], False
    values = [record.values for record in front]
    points = minimised([*values, *(each.values for each in whole)], objectives)
    members = points[: len(front)]
    for each, point in zip(whole, points[len(front) :], strict=True):
        better = (point <= members).all(axis=1) & (point < members).any(axis=1)
        worse = (members <= point).all(axis=1) & (members < point).any(axis=1)
        is_beaten |= bool(better.any())
        if better.any():
            told.append(f"{each.summary} dominates {_which(front, better)}")
        elif worse.any():
            told.append(f"{each.summary} is dominated by {_which(front, worse)}")
        else:
            told.append(f"{each.summary} would be on the front, and dominates none there")
    sentences = [f"By {' and '.join(objectives)}: {'; '.join(told)}."] if told else []
    if told and not is_beaten:
        sentences.append("No baseline dominates a network of the front.")
    for each in baselines:
        if each.reason is not None:
            sentences.append(f"{each.summary} failed: {each.reason.rstrip('.')}.")
        elif not each.is_complete:
            sentences.append(f"{each.summary} is not trained yet.")
    return " ".join(sentences)


def _which(front: Sequence[Record], mask: Any) -> str:
    """How many of a front, and the numbers of their trials."""
    trials = sorted(record.trial for record, is_one in zip(front, mask, strict=True) if is_one)
    of = "1 network" if len(front) == 1 else f"{len(front)} networks"
    return f"{len(trials)} of {of} (trial {', '.join(map(str, trials))})"


def figure(name: str, value: float | None) -> str:
    """A figure for people, in the unit of its column's head."""
    if value is None:
        return ""
    _, form = _COLUMNS[figure_and_target(name)[0]]
    return form.format(in_unit(name, value))


def named_figure(name: str, value: float) -> str:
    """A figure with its name and unit, for a line of text: ``latency_ms 1.5``, ``12.3 M FLOPs``."""
    text, word = figure(name, value), _PER_MILLION.get(name)
    return f"{name} {text}" if word is None else f"{text} M {word}"


def in_unit(name: str, value: float) -> float:
    """A figure in the unit of its :func:`heading`."""
    return value / scale(name)


def scale(name: str) -> float:
    """What a figure is divided by for people, who read counts in millions."""
    return 1e6 if name in _PER_MILLION else 1.0


def heading(name: str) -> str:
    """What a figure is called where people read it, with its unit and target."""
    known, target = figure_and_target(name)
    head, _ = _COLUMNS[known]
    return head if target is None else f"{head} @{target}"


BESIDE_LATENCY = {figure: (REPEATS[figure], SEARCHED[figure]) for figure in PAIRED}
"""By latency what stands beside one that was measured again: how well it repeats, and what the
search had measured."""

_ESTIMATED = (*ESTIMATES.values(), *ERRORS.values())
_TOGETHER = (*ACCURACIES, "int8_drop_points", *PAIRED, "model_bytes")


def in_int8(records: Iterable[Record | BaselineRecord]) -> list[str]:
    """The figures to be seen beside each other where networks are known in int8, those in float
    included, each with its targets; empty where none is known in int8."""
    known = dict.fromkeys(name for record in records for name in record.values)
    figures = {name: figure_and_target(name)[0] for name in known}
    if not set(IN_INT8) & set(figures.values()):
        return []
    return [name for each in _TOGETHER for name in known if figures[name] == each]


def _shown(
    records: Sequence[Record | BaselineRecord], objectives: Sequence[Objective]
) -> list[str]:
    """The objectives first, a latency with :data:`BESIDE_LATENCY`, then what is known of networks
    in float and in int8, what was estimated and the costs worth seeing beside them."""
    known, shown = {name for r in records for name in r.values}, list[str]()
    for name in objectives:
        figure, target = figure_and_target(name)
        beside = [on_target(each, target) for each in BESIDE_LATENCY.get(figure, ())]
        shown += [name, *(each for each in beside if each in known)]
    shown += [name for name in in_int8(records) if name not in shown]
    estimated = [name for name in _ESTIMATED if name in known]
    costs = [name for name in ("flops", "params") if name not in objectives]
    return [*shown, *estimated, *costs]


def latency_legend(records: Sequence[Record], objectives: Sequence[Objective]) -> str:
    """What the columns beside latencies mean that were measured again; empty without them."""
    shown = _shown(records, objectives)
    figures = {figure_and_target(name)[0] for name in shown}
    if not any(figures.intersection(each) for each in BESIDE_LATENCY.values()):
        return ""
    return (
        "latency ms: the front and near rivals were measured again at the search's end, together. "
        "± %: another measurement is expected within so much of it, in 95 % of cases. in search "
        "ms: what the search itself had measured."
    )


def _rows(
    records: Sequence[Record],
    objectives: Sequence[Objective],
    verdict: Verdict,
    baselines: Sequence[BaselineRecord],
) -> tuple[list[str], list[list[str]]]:
    """The heads of a table for people and its cells, those of complete baselines last; an accuracy
    has its interval beside it, and how it stands to the best, where these are known."""
    others = [each for each in baselines if each.is_complete]
    rows: list[Record | BaselineRecord] = [*records, *others]
    trials = [str(record.trial) for record in records]
    columns: dict[str, list[str]] = {"trial": [*trials, *["baseline"] * len(others)]}
    for name in _shown(rows, objectives):
        columns[heading(name)] = [figure(name, each.values.get(name)) for each in rows]
        if name == verdict.figure and verdict.by_trial:
            found = [verdict.by_trial.get(record.trial) for record in records]
            found += [verdict.by_baseline.get(each.config.id) for each in others]
            columns["95 % interval"] = [each.interval() if each else "" for each in found]
            if verdict.compared > 1 or others:
                columns["vs best"] = [(each and each.vs_best) or "" for each in found]
    networks = [record.architecture for record in records]
    summaries = [network.summary() if network else "" for network in networks]
    columns["architecture"] = [*summaries, *(each.summary for each in others)]
    return list(columns), [list(cells) for cells in zip(*columns.values(), strict=True)]


def _known(records: Sequence[Record | BaselineRecord]) -> list[str]:
    """All figures by name, those of further targets last; those of int8 only where a network has
    them."""
    known = dict.fromkeys(name for record in records for name in record.values)
    usual = [n for n in _COLUMNS if n in known or ("int8" not in n and n != "model_bytes")]
    return list(dict.fromkeys([*usual, *known]))


def terminal(
    records: Sequence[Record],
    objectives: Sequence[Objective],
    title: str,
    verdict: Verdict = UNJUDGED,
    baselines: Sequence[BaselineRecord] = (),
) -> "Table":
    """A rich table of records, then of those baselines that are complete."""
    from rich.table import Table

    heads, rows = _rows(records, objectives, verdict, baselines)
    shown = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for head in heads:
        right = head != "architecture"
        shown.add_column(head, justify="right" if right else "left", no_wrap=right)
    for cells in rows:
        shown.add_row(*cells)
    return shown


def markdown(
    records: Sequence[Record],
    objectives: Sequence[Objective],
    verdict: Verdict = UNJUDGED,
    baselines: Sequence[BaselineRecord] = (),
) -> str:
    """A Markdown table of records, then of those baselines that are complete."""
    heads, rows = _rows(records, objectives, verdict, baselines)
    lines = [heads, ["---:"] * (len(heads) - 1) + ["---"], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def as_csv(records: Sequence[Record], verdict: Verdict = UNJUDGED) -> str:
    """All that is known of each record, one a row, figures in plain units, networks as JSON."""
    found = columns(records, verdict)
    networks = [record.architecture for record in records]
    found["architecture"] = [
        json.dumps(network.model_dump(mode="json")) if network else None for network in networks
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(found)
    writer.writerows(zip(*found.values(), strict=True))
    return text.getvalue()


def columns(records: Sequence[Record], verdict: Verdict = UNJUDGED) -> dict[str, list[Any]]:
    """All that is known of each record by column, figures in plain units; None where it is not."""
    accuracies = [verdict.by_trial.get(record.trial) for record in records]
    networks = [record.architecture for record in records]
    latencies = [record.evaluation.get("latency") or {} for record in records]
    intervals = [latency.get("ratio_ci95", (None, None)) for latency in latencies]
    return {
        "trial": [record.trial for record in records],
        "state": [record.state for record in records],
        "id": [network.id if network else None for network in networks],
        **{name: [record.values.get(name) for record in records] for name in _known(records)},
        f"{verdict.figure}_ci95_low": [each and each.low_percent for each in accuracies],
        f"{verdict.figure}_ci95_high": [each and each.high_percent for each in accuracies],
        "val_images": [each and each.images for each in accuracies],
        "vs_best": [each and each.vs_best for each in accuracies],
        "ratio_to_reference": [latency.get("ratio_to_reference") for latency in latencies],
        "ratio_ci95_low": [low for low, _ in intervals],
        "ratio_ci95_high": [high for _, high in intervals],
        "seconds": [record.seconds for record in records],
        "reused_from": [record.reused_from for record in records],
        "resumes": [record.resumes for record in records],
        "reason": [record.reason or None for record in records],
        "architecture": [network.summary() if network else None for network in networks],
    }


def write_tables(study: Study, records: Sequence[Record], attributes: Mapping[str, Any]) -> None:
    """Write ``trials.csv`` and ``front.csv`` into the folder of a study with these attributes."""
    verdict = judged(records, attributes, study.config)
    best = front(records, study.config.objectives)
    write_atomically(study.folder / "trials.csv", as_csv(records, verdict))
    write_atomically(study.folder / "front.csv", as_csv(best, verdict))
