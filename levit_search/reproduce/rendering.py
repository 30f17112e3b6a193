"""A reproduction as JSON rows, CSV, Markdown, a table for the terminal, and learning curves."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from levit_search.drawing.svg import COLORS, MARKERS
from levit_search.image_size import size_text
from levit_search.reproduce import (
    COLUMNS,
    PaperRow,
    PaperTable,
    ReproductionStore,
    Run,
    paper_ratios,
)
from levit_search.results import Document, markdown_table, svg

_NOT_FLAT = ("curve", "network", "unsupported")
# Heads of columns that hold words and not figures.
_WORDS = ("network", "what", "agrees", "stem", "faster", "slower")


def as_rows(table: PaperTable, store: ReproductionStore) -> list[Document]:
    """``[{name, paper, here}]``; ``here`` joins the figures of the latest run of each group.

    To these come deviations from what the paper has: ``speed_deviation_percent`` of the speed
    relative to the first row (against the paper's CPU, or its GPU where it names no other),
    ``levit_to_deit_deviation_percent``, and ``top1_deviation_points``.
    """
    rows = []
    for row in table.rows:
        paper = row.paper
        here: Document = {}
        for run in store.shown():
            here |= run.rows.get(row.name, {})
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


_Column = tuple[str, Callable[[PaperRow, Document], str]]
"""A head and what stands under it, given the row and our figures."""


def cells(
    table: PaperTable, store: ReproductionStore, groups: Sequence[str] = COLUMNS
) -> tuple[list[str], list[list[str]]]:
    """Heads and text cells of groups of columns: our figures, the paper's, the deviation."""
    columns: list[_Column] = [("network", lambda row, _: row.name)]
    if any(row.what for row in table.rows):
        columns.append(("what", lambda row, _: row.what))
    if table.name == "blocks":
        columns += _component_columns()
    else:
        there = [name for name in groups if store.latest(name)]
        columns += _static_columns(table) if "static" in there else []
        columns += _speed_columns(table) if "speed" in there else []
        columns += _accuracy_columns() if "accuracy" in there else []
    here = {row["name"]: row["here"] for row in as_rows(table, store)}
    body = [[cell(row, here[row.name]) for _, cell in columns] for row in table.rows]
    return [head for head, _ in columns], body


def _static_columns(table: PaperTable) -> list[_Column]:
    params: list[_Column] = [
        _ours("params M", "params", ".2f", 1e6),
        _paper("params_m"),
        ("agrees", lambda _, here: here.get("params_agree", "")),
    ]
    if table.name == "grafting":
        return [
            *params,
            _ours("conv MFLOPs", "conv_flops", ".0f", 1e6),
            _ours("+ batch norm", "conv_flops_with_norm", ".0f", 1e6),
            _paper("conv_mflops"),
            _ours("deviation %", "conv_flops_with_norm_deviation_percent", "+.2f"),
            _ours("transformer MFLOPs", "transformer_flops", ".0f", 1e6),
            _paper("transformer_mflops"),
            _ours("deviation %", "transformer_flops_deviation_percent", "+.2f"),
        ]
    return [
        *params,
        _ours("MFLOPs", "flops", ".1f", 1e6),
        _paper("mflops"),
        _ours("deviation %", "flops_deviation_percent", "+.2f"),
    ]


def _speed_columns(table: PaperTable) -> list[_Column]:
    first = table.rows[0]
    columns = [
        _ours("images/s", "throughput_ips", ".4g"),
        _interval("speed x", "speed_ratio", ".3f"),
    ]
    devices = {"gpu": "paper V100 x", "intel": "paper Intel x", "arm": "paper ARM x"}
    for device, head in devices.items():
        if any(device in paper_ratios(row, first) for row in table.rows):

            def ratio(row: PaperRow, _: Document, device: str = device) -> str:
                return _number(paper_ratios(row, first).get(device), ".3f")

            columns.append((head, ratio))
    against = "Intel" if "intel_ips" in first.paper else "V100"
    return [*columns, _ours(f"to {against} %", "speed_deviation_percent", "+.1f")]


def _accuracy_columns() -> list[_Column]:
    return [
        _ours("top-1 % test", "test_top1_percent", ".2f"),
        _ours("val", "val_top1_percent", ".2f"),
        _paper("top1_percent"),
        _ours("points", "top1_deviation_points", "+.1f"),
    ]


def _component_columns() -> list[_Column]:
    def ratio(row: PaperRow, _: Document) -> str:
        if "levit_us" not in row.paper:
            return ""
        return _number(row.paper["levit_us"] / row.paper["deit_us"], ".2f")

    return [
        _ours("DeiT-Tiny us", "deit_us", ".1f"),
        _paper("deit_us"),
        _ours("LeViT-256 us", "levit_us", ".1f"),
        _paper("levit_us"),
        _interval("LeViT / DeiT", "levit_to_deit", ".2f"),
        ("paper", ratio),
        _ours("deviation %", "levit_to_deit_deviation_percent", "+.1f"),
    ]


def _ours(head: str, name: str, spec: str, unit: float = 1) -> _Column:
    return head, lambda _, here: _number(here.get(name), spec, unit)


def _interval(head: str, name: str, spec: str) -> _Column:
    """A ratio with its 95 % interval."""

    def cell(_: PaperRow, here: Document) -> str:
        if name not in here:
            return ""
        ratio, low, high = (format(x, spec) for x in (here[name], *here[f"{name}_ci95"]))
        return f"{ratio} ({low}-{high})"

    return head, cell


def _paper(name: str) -> _Column:
    """As published, its decimals included."""
    return "paper", lambda row, _: str(row.paper.get(name, ""))


def _number(value: float | None, spec: str, unit: float = 1) -> str:
    return "" if value is None else format(value / unit, spec)


def as_csv(table: PaperTable, store: ReproductionStore) -> str:
    """All figures in plain units, the paper's under ``paper_`` names."""

    def plain(value: Any) -> Any:
        return " ".join(map(str, value)) if isinstance(value, list) else value

    flat = [
        {
            "name": row["name"],
            **{f"paper_{name}": value for name, value in row["paper"].items()},
            **{name: plain(value) for name, value in row["here"].items() if name not in _NOT_FLAT},
        }
        for row in as_rows(table, store)
    ]
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(flat)
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
                _number(stem["here"]["flops"], ".1f", 1e6),
                _number(stem["here"]["main_path_flops"], ".1f", 1e6),
                _number(stem["paper"].get("mflops"), "g"),
                _number(stem["here"].get("deviation_percent"), "+.2f"),
            ]
            for stem in stems
        ]
        lines += markdown_table(heads, body, _WORDS)
    if speed and (comparisons := speed.extra.get("comparisons")):
        lines += ["", "## Faster than what is as accurate, and than the next larger", ""]
        heads = ["faster", "slower", "times faster here", "paper, Intel"]
        body = [
            [
                pair["faster"],
                pair["slower"],
                f"{pair['times_faster']:.2f}",
                f"{pair['paper_times_faster']:.2f}",
            ]
            for pair in comparisons
        ]
        lines += markdown_table(heads, body, _WORDS)
    if accuracy:
        lines += ["", "## Accuracy by epoch", "", "![accuracy by epoch](curves.svg)"]
    return "\n".join(lines) + "\n"


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
    lines = [
        f"- Accuracy: {data['name']} ({count}) at {size_text(data['image_size'])} px, widths x "
        f"{s['width_scale']:g}, {train['epochs']} epochs, AdamW, lr {train['lr']:g}, batch "
        f"{train['batch_size']}, {taught}, seed {s['seed']}; "
        f"{run.environment.get('cpu', '')}; {_when(run)}. The paper's column is ImageNet: only "
        "the order of rows can be compared, and one seed on a short schedule tells little of it."
    ]
    untrained = [row.name for row in table.built if row.name not in run.rows]
    if untrained and run.finished:
        lines.append(
            f"- Not trained, since timm's networks have no width to scale: {', '.join(untrained)}."
        )
    return lines


def _when(run: Run) -> str:
    return run.finished or "not all rows yet"


def draw_curves(run: Run, table: PaperTable) -> bytes:
    """Figure 3 of the paper from ``run``: accuracy by epoch, one line a row, as an SVG file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    curves = {name: row["curve"] for name, row in run.rows.items() if "curve" in row}
    for index, (name, curve) in enumerate(curves.items()):
        epochs, accuracies = ([p[key] for p in curve] for key in ("epoch", "val_top1_percent"))
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        axes.plot(epochs, accuracies, color=color, marker=marker, markersize=5, label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 on the validation split, %")
    data = run.settings["data"]
    axes.set_title(
        f"{table.name}: {data['name']} at {size_text(data['image_size'])} px, widths x "
        f"{run.settings['width_scale']:g}",
        loc="left",
        fontsize=10,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
    return svg(figure)
