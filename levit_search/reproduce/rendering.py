"""A reproduction as JSON rows, CSV, Markdown, a table for the terminal, and learning curves."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any, get_args

from levit_search.drawing.chart import Axis, Chart, Mark, Series, picture
from levit_search.image_size import size_text
from levit_search.reproduce import (
    COLUMNS,
    PaperRow,
    PaperTable,
    ReproductionStore,
    Run,
    paper_ratios,
)
from levit_search.reproduce.accuracies import Difference, by_seed, claims, difference, summary
from levit_search.results import markdown_table

_COLORS = ("front", "reference", "known", "published", "start", "compared", "stopped", "dominated")
_NOT_FLAT = ("trainings", "unsupported")
# Heads of columns that hold words and not figures.
_WORDS = ("network", "what", "agrees", "stem", "faster", "slower", "verdict", "claim")


def as_rows(table: PaperTable, store: ReproductionStore) -> list[Mapping[str, Any]]:
    """``[{name, paper, here}]``; ``here`` joins the figures of the latest run of each group.

    To these come deviations from what the paper has: ``speed_deviation_percent`` of the speed
    relative to the first row (against the paper's CPU, or its GPU where it names no other),
    ``levit_to_deit_deviation_percent``, ``top1_deviation_points``, and ``difference_points`` of the
    accuracy from that of the table's base, with the paper's and a verdict.
    """
    rows: list[Mapping[str, Any]] = []
    for row in table.rows:
        paper = row.paper
        here: dict[str, Any] = {}
        for run in store.shown():
            here.update(run.rows.get(row.name, {}))
            if run.columns == "accuracy":
                here.update(_accuracy(table, run, row))
        ratios = paper_ratios(row, table.rows[0])
        if "speed_ratio" in here and ratios:
            speed = ratios.get("intel", ratios["gpu"])
            here["speed_deviation_percent"] = round(100 * (here["speed_ratio"] / speed - 1), 1)
        if "levit_to_deit" in here and "levit_us" in paper:
            deviation = 100 * (here["levit_to_deit"] / (paper["levit_us"] / paper["deit_us"]) - 1)
            here["levit_to_deit_deviation_percent"] = round(deviation, 1)
        if "test_top1_percent" in here and "top1_percent" in paper:
            points = here["test_top1_percent"] - paper["top1_percent"]
            here["top1_deviation_points"] = round(points, 2)
        rows.append({"name": row.name, "paper": paper, "here": here})
    return rows


def _accuracy(table: PaperTable, run: Run, row: PaperRow) -> dict[str, Any]:
    """The figures of a row over its seeds, and how far it is from the base."""
    found = summary(run, row.name)
    base = next(each for each in table.rows if each.name == table.extra["base"])
    if row == base or (apart := difference(run, row.name, base.name)) is None:
        return found
    found["difference_points"] = apart.points
    if apart.seeds > 1:
        found["difference_points_ci95"] = [apart.low, apart.high]
    if "top1_percent" in row.paper:
        paper = round(row.paper["top1_percent"] - base.paper["top1_percent"], 2)
        found |= {"paper_difference_points": paper, "verdict": apart.verdict(paper)}
    return found


def cells(
    table: PaperTable, store: ReproductionStore, groups: Sequence[str] = COLUMNS
) -> tuple[list[str], list[list[str]]]:
    """Heads and text cells of groups of columns: our figures, the paper's, the deviation."""
    columns: list[_Column] = [("network", "name", "", 1)]
    if any(row.what for row in table.rows):
        columns.append(("what", "what", "", 1))
    for group in groups:
        if store.latest(group):
            columns += _columns(table, group)
    body = []
    for row, found in zip(table.rows, as_rows(table, store), strict=True):
        ratios = {f"paper_{name}_ratio": x for name, x in paper_ratios(row, table.rows[0]).items()}
        if "levit_us" in row.paper:
            ratios["paper_levit_to_deit"] = row.paper["levit_us"] / row.paper["deit_us"]
        figures = {**_flat(found), **ratios, "what": row.what}
        body.append([_cell(figures, name, spec, unit) for _, name, spec, unit in columns])
    return [head for head, *_ in columns], body


_Column = tuple[str, str, str, float]
"""A head, the figure below it, how that is written (as it is where empty) and in which unit."""


def _columns(table: PaperTable, group: str) -> list[_Column]:
    first = table.rows[0]
    if table.name == "blocks":
        return [
            ("DeiT-Tiny us", "deit_us", ".1f", 1),
            ("paper", "paper_deit_us", "", 1),
            ("LeViT-256 us", "levit_us", ".1f", 1),
            ("paper", "paper_levit_us", "", 1),
            ("LeViT / DeiT", "levit_to_deit", ".2f", 1),
            ("paper", "paper_levit_to_deit", ".2f", 1),
            ("deviation %", "levit_to_deit_deviation_percent", "+.1f", 1),
        ]
    if group == "accuracy":
        return [
            ("seeds", "seeds", "", 1),
            ("lr", "lr", "g", 1),
            ("top-1 % test", "test_top1_percent", ".2f", 1),
            ("sd", "test_top1_sd", ".2f", 1),
            ("paper", "paper_top1_percent", "", 1),
            (f"from {table.extra['base']}", "difference_points", "+.2f", 1),
            ("paper", "paper_difference_points", "+.1f", 1),
            ("verdict", "verdict", "", 1),
        ]
    if group == "speed":
        heads = {"gpu": "paper V100 x", "intel": "paper Intel x", "arm": "paper ARM x"}
        known = {device for row in table.rows for device in paper_ratios(row, first)}
        against = "Intel" if "intel_ips" in first.paper else "V100"
        return [
            ("images/s", "throughput_ips", ".4g", 1),
            ("speed x", "speed_ratio", ".3f", 1),
            *((heads[name], f"paper_{name}_ratio", ".3f", 1) for name in heads if name in known),
            (f"to {against} %", "speed_deviation_percent", "+.1f", 1),
        ]
    counts: list[_Column] = [
        ("MFLOPs", "flops", ".1f", 1e6),
        ("paper", "paper_mflops", "", 1),
        ("deviation %", "flops_deviation_percent", "+.2f", 1),
    ]
    if table.name == "grafting":
        counts = [
            ("conv MFLOPs", "conv_flops", ".0f", 1e6),
            ("+ batch norm", "conv_flops_with_norm", ".0f", 1e6),
            ("paper", "paper_conv_mflops", "", 1),
            ("deviation %", "conv_flops_with_norm_deviation_percent", "+.2f", 1),
            ("transformer MFLOPs", "transformer_flops", ".0f", 1e6),
            ("paper", "paper_transformer_mflops", "", 1),
            ("deviation %", "transformer_flops_deviation_percent", "+.2f", 1),
        ]
    return [
        ("params M", "params", ".2f", 1e6),
        ("paper", "paper_params_m", "", 1),
        ("agrees", "params_agree", "", 1),
        *counts,
    ]


def _cell(figures: Mapping[str, Any], name: str, spec: str, unit: float = 1) -> str:
    """A figure, with its 95 % interval where it has one."""
    value = figures.get(name)
    if value is None or not spec:
        return "" if value is None else str(value)
    low, high = figures.get(f"{name}_ci95", (None, None))
    to = " to " if spec.startswith("+") else "-"
    interval = "" if low is None else f" ({low:{spec}}{to}{high:{spec}})"
    return f"{value / unit:{spec}}{interval}"


def _flat(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row's figures by name, the paper's under ``paper_`` names."""
    paper = {f"paper_{name}": value for name, value in row["paper"].items()}
    here = {name: value for name, value in row["here"].items() if name not in _NOT_FLAT}
    return {"name": row["name"], **paper, **here}


def as_csv(table: PaperTable, store: ReproductionStore) -> str:
    """All figures in plain units, the paper's under ``paper_`` names."""
    flat = [_flat(row) for row in as_rows(table, store)]
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in flat for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    for row in flat:
        lists = {name: " ".join(map(str, x)) for name, x in row.items() if isinstance(x, list)}
        writer.writerow({**row, **lists})
    return text.getvalue()


def as_markdown(table: PaperTable, store: ReproductionStore) -> str:
    """The table with where its figures come from, what differs, and the picture."""
    static, speed, accuracy = (store.latest(columns) for columns in COLUMNS)
    lines = [f"# {table.title}", "", f"Paper: {table.regime}. One multiply-add is one FLOP.", ""]
    lines += [*markdown_table(*cells(table, store), _WORDS), "", *notes(table, store)]
    if static and (stems := static.extra.get("stems")):
        lines += ["", "## Stems: images of 224 px to 14x14 under LeViT-256", ""]
        heads = ["stem", "MFLOPs, whole", "main path", "paper", "deviation %"]
        body = [
            [
                stem["name"],
                _cell(stem["here"], "flops", ".1f", 1e6),
                _cell(stem["here"], "main_path_flops", ".1f", 1e6),
                _cell(stem["paper"], "mflops", "g"),
                _cell(stem["here"], "deviation_percent", "+.2f"),
            ]
            for stem in stems
        ]
        lines += markdown_table(heads, body, _WORDS)
    if speed and (comparisons := speed.extra.get("comparisons")):
        lines += ["", "## Faster than what is as accurate, and than the next larger", ""]
        heads = ["faster", "slower", "times faster here", "paper, Intel"]
        times = ("times_faster", "paper_times_faster")
        body = [
            [pair["faster"], pair["slower"], *(_cell(pair, name, ".2f") for name in times)]
            for pair in comparisons
        ]
        lines += markdown_table(heads, body, _WORDS)
    if accuracy and (stated := claims(table, accuracy)):
        lines += ["", "## What the paper says", ""]
        body = [
            [
                claim.text,
                _cell(_with_interval(claim.difference), "points", "+.2f"),
                str(claim.difference.seeds),
                claim.verdict,
            ]
            for claim in stated
        ]
        lines += markdown_table(["claim", "points", "seeds", "verdict"], body, _WORDS)
    if accuracy and any(map(partial(by_seed, accuracy), accuracy.rows)):
        lines += ["", "## Accuracy by epoch", "", "![accuracy by epoch](curves.svg)"]
    return "\n".join(lines) + "\n"


def _with_interval(apart: Difference) -> dict[str, Any]:
    interval = {"points_ci95": [apart.low, apart.high]} if apart.seeds > 1 else {}
    return {"points": apart.points, **interval}


def notes(table: PaperTable, store: ReproductionStore) -> list[str]:
    """What differs from the paper, by group of columns, in words."""
    written = {"static": _static_notes, "speed": _speed_notes, "accuracy": _accuracy_notes}
    lines = []
    for run in store.shown():
        lines += written[run.columns](table, run)
        failed = {name: row["failed"] for name, row in run.rows.items() if "failed" in row}
        lines += [f"- {name} failed: {reason}" for name, reason in failed.items()]
    return lines


def _static_notes(table: PaperTable, run: Run) -> list[str]:
    lines = [
        "- Counts: the softmax counts once an element; batch norm, activations and additions do "
        "not count."
    ]
    if table.name == "grafting":
        lines.append(
            "- The published convolution column agrees with counts that include batch norm (two "
            "FLOPs an element): `+ batch norm` is compared with it. The published parameters of "
            "graft-1-9, graft-2-6 and graft-3-3 are those with a distillation token and head, "
            "which these rows have; the published FLOPs are those without, hence about 1 % more "
            "here in the transformer column."
        )
    cut = [name for name, row in run.rows.items() if row.get("params_agree") == "truncated"]
    if cut:
        lines.append(f"- Published parameters cut off, not rounded: {', '.join(cut)}.")
    missed = [name for name, row in run.rows.items() if row.get("params_agree") == "no"]
    if missed:
        lines.append(f"- Parameters that do not agree: {', '.join(missed)}.")
    if table.name == "ablation":
        lines.append("- One head is counted throughout, as in the paper.")
    unsupported = sorted({op for row in run.rows.values() for op in row.get("unsupported", {})})
    if unsupported:
        lines.append(
            "- timm's networks are counted by fvcore, norms taken off; it does not count "
            f"{', '.join(unsupported)}."
        )
    return lines


def _speed_notes(table: PaperTable, run: Run) -> list[str]:
    s = run.settings
    against = (
        "each component in turn with its counterpart"
        if table.name == "blocks"
        else f"in turn with {table.rows[0].name}"
    )
    device = s.get("gpu") or s["cpu"]
    version = [s[name] for name in ("onnxruntime", "openvino", "torch") if name in s]
    runtime = " ".join([s["runtime"], *version])
    # Protocol 3 of latency has other figures than those before; results of the first name none.
    estimate = "mean of the rounds" if s.get("protocol", 1) >= 3 else "median of pairs"
    lines = [
        f"- Speed: {device}, {runtime}, {s.get('precision', 'fp32')}, "
        f"{s['threads']} thread(s), batch {s['batch_size']}, batch norms folded, {s['layout']} "
        f"layout; {against}; {estimate} with its 95 % interval; measured {_when(run)}."
    ]
    if table.name == "blocks":
        lines.append(
            "- `projection` includes the activation before it, `layer norm` is both of a layer. "
            "`total` is the whole layer timed at once, with its residual additions; the paper's is "
            "the sum of its rows, which have no softmax."
        )
    return lines


def _accuracy_notes(table: PaperTable, run: Run) -> list[str]:
    s = run.settings
    data, train, teacher = s["data"], s["train"], s["teacher"]
    count = f"{data['train_images']} training images" if data["train_images"] else "all of it"
    taught = f"teacher {teacher['name']}" if teacher else "no teacher"
    if teacher and table.name == "variants":
        taught += " for the LeViTs"
    if teacher and table.name == "ablation":
        taught += " but for A4"
    rates = ", ".join(f"{lr:g}" for lr in s["lrs"])
    chosen = (
        f"lr {rates}"
        if len(s["lrs"]) == 1
        else f"for each row the lr of {rates} that seed {s['seed']} has best on val"
    )
    lines = [
        f"- Accuracy: {data['name']} ({count}) at {size_text(data['image_size'])} px, widths x "
        f"{s['width_scale']:g}, {train['epochs']} epochs, AdamW, {chosen}, batch "
        f"{train['batch_size']}, {taught}; {_when(run)}. The paper's column is ImageNet: only "
        "differences can be compared. They are taken seed by seed, on the test split, with "
        "Student's interval of 95 % over the seeds; a verdict is given where that leaves zero out."
    ]
    for card in run.extra.get("teacher", ()):
        lines.append(f"- The teacher has {card['val_top1_percent']:.2f} % on val.")
    by_machine: dict[str, list[float]] = {}
    for each in by_seed(run, table.extra["base"]).values():
        by_machine.setdefault(each.get("cpu", ""), []).append(each["test_top1_percent"])
    if len(by_machine) > 1:
        told = (f"{cpu} {fmean(found):.2f} ({len(found)})" for cpu, found in by_machine.items())
        lines.append(f"- {table.extra['base']} by machine (seeds): {', '.join(told)}.")
    untrained = [row.name for row in table.built if row.name not in run.rows]
    if untrained and run.finished:
        lines.append(
            f"- Not trained, since timm's networks have no width to scale: {', '.join(untrained)}."
        )
    return lines


def _when(run: Run) -> str:
    return run.finished or "not all rows yet"


def draw_curves(run: Run, table: PaperTable) -> str | None:
    """Figure 3 of the paper from ``run``: accuracy by epoch, one line a row, the mean of its seeds
    with a band from the lowest to the highest, as an SVG file; None where no row was trained."""
    looks = itertools.cycle(_COLORS), itertools.cycle(get_args(Mark))
    known = {name: [*each.values()] for name in run.rows if (each := by_seed(run, name))}
    series = []
    for (name, trainings), color, mark in zip(known.items(), *looks, strict=False):
        epochs = [point["epoch"] for point in trainings[0]["curve"]]
        percents = [[point["val_top1_percent"] for point in each["curve"]] for each in trainings]
        columns = list(zip(*percents, strict=True))
        series.append(Series(name, epochs, [*map(fmean, columns)], color, mark, line="straight"))
        if len(trainings) > 1:  # there and back again
            around = [*map(min, columns), *map(max, reversed(columns))]
            there = [*epochs, *reversed(epochs)]
            band = Series("", there, around, color, None, line="area", opacity=0.15)
            series.insert(0, band)
    data = run.settings["data"]
    title = (
        f"{table.name}: {data['name']} at {size_text(data['image_size'])} px, widths x "
        f"{run.settings['width_scale']:g}"
    )
    axes = Axis("epoch", is_whole=True), Axis("top-1 on the validation split, %")
    return picture([Chart(title, *axes, series)]) if series else None
