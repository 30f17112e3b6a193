"""A reproduction as JSON rows, CSV, Markdown and a table for the terminal."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from levit_search.image_size import size_text
from levit_search.reproduce.paper import Row, Table
from levit_search.reproduce.results import COLUMNS, Results, Run
from levit_search.reproduce.speed import paper_ratios


def as_rows(table: Table, results: Results) -> list[dict[str, Any]]:
    """``[{name, paper, here}]``; ``here`` joins the figures of the latest run of each group.

    To these come deviations from what the paper has: ``speed_deviation_percent`` of the speed
    relative to the first row (against the paper's CPU, or its GPU where it names no other),
    ``levit_to_deit_deviation_percent``, and ``top1_deviation_points``.
    """
    rows = []
    for row in table.rows:
        here: dict[str, Any] = {}
        for run in results.shown():
            here |= run.rows.get(row.name, {})
        here |= _deviations(row, table.rows[0], here)
        rows.append({"name": row.name, "paper": row.paper, "here": here})
    return rows


def _deviations(row: Row, first: Row, here: dict[str, Any]) -> dict[str, float]:
    found = {}
    ratios = paper_ratios(row, first)
    if "speed_ratio" in here and ratios:
        paper = ratios.get("intel", ratios["gpu"])
        found["speed_deviation_percent"] = round(100 * (here["speed_ratio"] / paper - 1), 1)
    if "levit_to_deit" in here and "levit_us" in row.paper:
        paper = row.paper["levit_us"] / row.paper["deit_us"]
        deviation = 100 * (here["levit_to_deit"] / paper - 1)
        found["levit_to_deit_deviation_percent"] = round(deviation, 1)
    if "test_top1_percent" in here and "top1_percent" in row.paper:
        points = here["test_top1_percent"] - row.paper["top1_percent"]
        found["top1_deviation_points"] = round(points, 2)
    return found


@dataclass(frozen=True)
class _Column:
    """A head and what stands under it, given the row, the first row, and our figures."""

    head: str
    cell: Callable[[Row, Row, dict[str, Any]], str]


def cells(
    table: Table, results: Results, groups: Sequence[str] = COLUMNS
) -> tuple[list[str], list[list[str]]]:
    """Heads and text cells of groups of columns: our figures, the paper's, the deviation."""
    columns = [_Column("network", lambda row, _first, _here: row.name)]
    if any(row.what for row in table.rows):
        columns.append(_Column("what", lambda row, _first, _here: row.what))
    if table.name == "blocks":
        columns += _BLOCKS
    else:
        there = [name for name in groups if results.latest(name)]
        columns += _static_columns(table) if "static" in there else []
        columns += _speed_columns(table) if "speed" in there else []
        columns += _ACCURACY if "accuracy" in there else []
    first = table.rows[0]
    here = {row["name"]: row["here"] for row in as_rows(table, results)}
    body = [[c.cell(row, first, here[row.name]) for c in columns] for row in table.rows]
    return [column.head for column in columns], body


def _static_columns(table: Table) -> list[_Column]:
    columns = [
        _ours("params M", "params", 1e6, ".2f"),
        _paper("paper", "params_m"),
        _Column("agrees", lambda _r, _f, here: here.get("params_agree", "")),
    ]
    if table.name == "grafting":
        columns += [
            _ours("conv MFLOPs", "conv_flops", 1e6, ".0f"),
            _ours("+ batch norm", "conv_flops_with_norm", 1e6, ".0f"),
            _paper("paper", "conv_mflops"),
            _ours("deviation %", "conv_flops_with_norm_deviation_percent", 1, "+.2f"),
            _ours("transformer MFLOPs", "transformer_flops", 1e6, ".0f"),
            _paper("paper", "transformer_mflops"),
            _ours("deviation %", "transformer_flops_deviation_percent", 1, "+.2f"),
        ]
    else:
        columns += [
            _ours("MFLOPs", "flops", 1e6, ".1f"),
            _paper("paper", "mflops"),
            _ours("deviation %", "flops_deviation_percent", 1, "+.2f"),
        ]
    return columns


def _speed_columns(table: Table) -> list[_Column]:
    columns = [
        _ours("images/s", "throughput_ips", 1, ".4g"),
        _Column("speed x", lambda _r, _f, here: _speed(here)),
    ]
    for device, head in (
        ("gpu", "paper V100 x"),
        ("intel", "paper Intel x"),
        ("arm", "paper ARM x"),
    ):
        if any(device in paper_ratios(row, table.rows[0]) for row in table.rows):

            def ratio(row: Row, first: Row, _here: dict[str, Any], device: str = device) -> str:
                return _number(paper_ratios(row, first).get(device), 1, ".3f")

            columns.append(_Column(head, ratio))
    against = "Intel" if "intel_ips" in table.rows[0].paper else "V100"
    return [*columns, _ours(f"to {against} %", "speed_deviation_percent", 1, "+.1f")]


def _speed(here: dict[str, Any]) -> str:
    if "speed_ratio" not in here:
        return ""
    low, high = here["speed_ratio_ci95"]
    return f"{here['speed_ratio']:.3f} ({low:.3f}-{high:.3f})"


def _number(value: float | None, scale: float, spec: str) -> str:
    return "" if value is None else format(value / scale, spec)


def _ours(head: str, name: str, scale: float, spec: str) -> _Column:
    return _Column(head, lambda _r, _f, here: _number(here.get(name), scale, spec))


def _paper(head: str, name: str) -> _Column:
    """As published, its decimals included."""
    return _Column(head, lambda row, _f, _here: str(row.paper.get(name, "")))


_ACCURACY = [
    _ours("top-1 % test", "test_top1_percent", 1, ".2f"),
    _ours("val", "val_top1_percent", 1, ".2f"),
    _paper("paper", "top1_percent"),
    _ours("points", "top1_deviation_points", 1, "+.1f"),
]

_BLOCKS = [
    _ours("DeiT-Tiny us", "deit_us", 1, ".1f"),
    _paper("paper", "deit_us"),
    _ours("LeViT-256 us", "levit_us", 1, ".1f"),
    _paper("paper", "levit_us"),
    _Column("LeViT / DeiT", lambda _r, _f, here: _levit_to_deit(here)),
    _Column(
        "paper",
        lambda row, _f, _here: (
            _number(row.paper["levit_us"] / row.paper["deit_us"], 1, ".2f")
            if "levit_us" in row.paper
            else ""
        ),
    ),
    _ours("deviation %", "levit_to_deit_deviation_percent", 1, "+.1f"),
]


def _levit_to_deit(here: dict[str, Any]) -> str:
    if "levit_to_deit" not in here:
        return ""
    low, high = here["levit_to_deit_ci95"]
    return f"{here['levit_to_deit']:.2f} ({low:.2f}-{high:.2f})"


def as_csv(table: Table, results: Results) -> str:
    """All figures in plain units, the paper's under ``paper_`` names."""
    flat = [
        {
            "name": row["name"],
            **{f"paper_{name}": value for name, value in row["paper"].items()},
            **{name: _plain(value) for name, value in row["here"].items() if name not in _NOT_FLAT},
        }
        for row in as_rows(table, results)
    ]
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


_NOT_FLAT = ("curve", "network", "unsupported")


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def as_markdown(table: Table, results: Results) -> str:
    """The table with where its figures come from, what differs, and the picture."""
    heads, body = cells(table, results)
    lines = [f"# {table.title}", "", f"Paper: {table.regime}. One multiply-add is one FLOP.", ""]
    lines += _markdown_table(heads, body)
    lines += ["", *notes(table, results)]
    stems = (run.extra.get("stems") if (run := results.latest("static")) else None) or []
    if stems:
        lines += ["", "## Stems: images of 224 px to 14x14 under LeViT-256", ""]
        lines += _markdown_table(*_stem_cells(stems))
    comparisons = (run.extra.get("comparisons") if (run := results.latest("speed")) else None) or []
    if comparisons:
        lines += ["", "## Faster than what is as accurate, and than the next larger", ""]
        lines += _markdown_table(
            ["faster", "slower", "times faster here", "paper, Intel"],
            [
                [
                    c["faster"],
                    c["slower"],
                    f"{c['times_faster']:.2f}",
                    f"{c['paper_times_faster']:.2f}",
                ]
                for c in comparisons
            ],
        )
    if results.latest("accuracy"):
        lines += ["", "## Accuracy by epoch", "", "![accuracy by epoch](curves.svg)"]
    return "\n".join(lines) + "\n"


def _markdown_table(heads: list[str], body: Iterable[list[str]]) -> list[str]:
    rules = ["---" if head in _WORDS else "---:" for head in heads]
    rows = [heads, rules, *body]
    return [f"| {' | '.join(row)} |" for row in rows]


# Heads of columns that hold words and not figures.
_WORDS = ("network", "what", "agrees", "stem", "faster", "slower")


def _stem_cells(stems: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    heads = ["stem", "MFLOPs, whole", "main path", "paper", "deviation %"]
    body = [
        [
            stem["name"],
            f"{stem['here']['flops'] / 1e6:.1f}",
            f"{stem['here']['main_path_flops'] / 1e6:.1f}",
            _number(stem["paper"].get("mflops"), 1, "g"),
            _number(stem["here"].get("deviation_percent"), 1, "+.2f"),
        ]
        for stem in stems
    ]
    return heads, body


def notes(table: Table, results: Results) -> list[str]:
    """What differs from the paper, by group of columns, in words."""
    lines = []
    static, speed, accuracy = (results.latest(columns) for columns in COLUMNS)
    if static:
        lines += _static_notes(table, static)
    if speed:
        lines += _speed_notes(table, speed) + _failed(speed)
    if accuracy:
        lines += _accuracy_notes(table, accuracy) + _failed(accuracy)
    return lines


def _static_notes(table: Table, run: Run) -> list[str]:
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


def _speed_notes(table: Table, run: Run) -> list[str]:
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


def _accuracy_notes(table: Table, run: Run) -> list[str]:
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


def _failed(run: Run) -> list[str]:
    return [
        f"- {name} failed: {row['failed']}" for name, row in run.rows.items() if "failed" in row
    ]


def _when(run: Run) -> str:
    return run.finished or "not all rows yet"
