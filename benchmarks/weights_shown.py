"""The tables of ``weights.py``, out of its lines."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fidelity import agreement, difference
from teachers import spread

Rows = Sequence[Mapping[str, Any]]
TEST = "test_top1_percent"


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The lines of a file, without one that a kill left unfinished; none where there is no file."""
    if not file.exists():
        return []
    found = []
    for line in file.read_text("utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def document_of(folder: Path) -> dict[str, Any]:
    """All figures of a folder, as JSON holds them; of parts that are not measured there is none."""
    found: dict[str, Any] = {}
    for part, summary in _SUMMARIES.items():
        rows = rows_of(folder / f"{part}.jsonl")
        if rows:
            found[part] = {"made": made_of(rows), "cells": len(rows), **summary(rows)}
    return found


def made_of(rows: Rows) -> dict[str, Any]:
    """Where figures were measured, and by which revisions."""
    revisions = sorted({str(row["made"]["revision"]) for row in rows})
    return {
        "machines": sorted({f"{row['made']['cpu']}, {row['made']['cores']} cores" for row in rows}),
        "torch": sorted({row["made"]["packages"]["torch"] for row in rows}),
        "timm": sorted({row["made"]["packages"]["timm"] for row in rows}),
        "revisions": revisions,
        "is_dirty": any(each == "None" or each.endswith("-dirty") for each in revisions),
        "seconds": sum(row["cell_seconds"] for row in rows),
    }


def grouped(rows: Rows, *names: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Rows by what their keys say of ``names``, in the order in which these are met."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row["key"][name] for name in names), []).append(row)
    return found


def paired(rows: Rows, others: Rows, figure: str = TEST) -> dict[str, Any]:
    """By how much a figure is higher than in the rows of the same seeds: mean, standard deviation,
    half of the mean's 95 % interval, and what that says."""
    base = {row["key"]["seed"]: row[figure] for row in others if figure in row}
    gains = [
        row[figure] - base[row["key"]["seed"]]
        for row in rows
        if figure in row and row["key"]["seed"] in base
    ]
    return {**spread(gains), "seeds": len(gains), "says": said(spread(gains))}


def said(gain: Mapping[str, float]) -> str:
    """``better`` or ``worse`` where the interval of a gain is beside nothing, else ``not told
    apart``; of a single seed ``one seed``."""
    if "half_interval" not in gain:
        return "one seed" if gain else ""
    if abs(gain["mean"]) <= gain["half_interval"]:
        return "not told apart"
    return "better" if gain["mean"] > 0 else "worse"


def over_seeds(rows: Rows, *figures: str) -> dict[str, Any]:
    """Mean, standard deviation and range of each figure."""
    found: dict[str, Any] = {"seeds": sorted(row["key"]["seed"] for row in rows)}
    for figure in figures:
        values = [row[figure] for row in rows if figure in row]
        if values:
            found[figure] = {**spread(values), "range": [min(values), max(values)]}
    return found


# --- the parts


def starts(rows: Rows) -> dict[str, Any]:
    """Each source on each target, beside fresh weights with as many steps."""
    table = []
    by_cell = grouped(rows, "target", "share", "source")
    for (target, share, source), cells in by_cell.items():
        row: dict[str, Any] = {"target": target, "share": share, "source": source}
        row |= over_seeds(cells, TEST, "val_top1_percent", "seconds")
        row["test_images"], row["steps"] = cells[0]["test_images"], cells[0]["steps"]
        row["started_from"] = cells[0]["started_from"]
        if source != "fresh":
            row["gain"] = paired(cells, by_cell.get((target, share, "fresh"), []))
            whole = max(each for name, each, _ in by_cell if name == target)
            if share < whole:
                row["gain_to_whole_fresh"] = paired(
                    cells, by_cell.get((target, whole, "fresh"), [])
                )
        table.append(row)
    return {"rows": table}


def sizes(rows: Rows) -> dict[str, Any]:
    """Each way of getting attention biases for 48 px, beside fresh ones."""
    return _by_arm(rows, "fresh_biases", "epochs")


def slices(rows: Rows) -> dict[str, Any]:
    """Each order of importance, beside fresh training and beside leading channels."""
    found = _by_arm(rows, "fresh", "epochs", "lr")
    leading = _by_arm(rows, "leading", "epochs", "lr")
    for row, other in zip(found["rows"], leading["rows"], strict=True):
        row["gain_to_leading"] = other.get("gain", {})
    return found


def _by_arm(rows: Rows, base: str, *names: str) -> dict[str, Any]:
    table = []
    by_cell = grouped(rows, *names, "arm")
    for key, cells in sorted(by_cell.items(), key=lambda each: each[0][:-1]):
        row = dict(zip((*names, "arm"), key, strict=True))
        row |= over_seeds(cells, TEST, "calibrated_top1_percent", "seconds")
        if row["arm"] != base:
            others = by_cell.get((*key[:-1], base), [])
            row["gain"] = paired(cells, others)
            row["calibrated_gain"] = paired(cells, others, "calibrated_top1_percent")
        table.append(row)
    return {"rows": table}


def fidelity(rows: Rows) -> dict[str, Any]:
    """How finetuned slices, inherited accuracies and short trainings rank networks, against their
    long trainings, and what they cost as shares of these."""
    truth = {row["key"]["network"]: float(np.mean(row["long_top1_percent"])) for row in rows}
    by_cell = grouped(rows, "images", "arm")
    alone = by_cell.get((max(images for images, _ in by_cell), "alone"), [])
    long_seconds = {
        row["key"]["network"]: row["seconds"] * row["long_epochs"] / row["epochs"] for row in alone
    }
    seeds = np.array([row["long_top1_percent"] for row in {_network(r): r for r in rows}.values()])
    found: dict[str, Any] = {"networks": len(truth), "rows": []}
    if seeds.shape[1] > 1 and len(truth) > 2:
        pair = [dict(zip(truth, column, strict=True)) for column in seeds.T[:2].tolist()]
        found["between_two_seeds"] = agreement(*pair)
    predictors: dict[tuple[int, str], dict[str, float]] = {}
    for (images, arm), cells in by_cell.items():
        for name, figure in ((arm, "val_top1_percent"), ("inherited", "inherited_top1_percent")):
            values = {_network(row): row[figure] for row in cells if figure in row}
            if len(values) < 3:
                continue
            predictors[images, name] = values
            row = {"images": images, "predictor": name, **agreement(values, truth)}
            if name != "inherited":
                shares = [
                    each["seconds"] / long_seconds[_network(each)]
                    for each in cells
                    if _network(each) in long_seconds
                ]
                row["seconds"] = spread([each["seconds"] for each in cells])
                row["share_of_training"] = spread(shares)
                row["views_share"] = (
                    images
                    * cells[0]["epochs"]
                    / (max(each for each, _ in by_cell) * cells[0]["long_epochs"])
                )
            if "supernet_seconds" in cells[0]:
                row["supernet_seconds"] = cells[0]["supernet_seconds"]
            found["rows"].append(row)
    found["differences"] = [
        {"images": images, "of": "finetuned", "to": other, **difference(mine, theirs, truth)}
        for (images, name), mine in predictors.items()
        if name == "finetuned"
        for other in ("inherited", "alone")
        if (theirs := predictors.get((images, other))) is not None
    ]
    return found


def _network(row: Mapping[str, Any]) -> str:
    return str(row["key"]["network"])


def teacher(rows: Rows) -> dict[str, Any]:
    """What the adapted teacher's answers give, by the length of training."""
    table, teachers = [], {}
    by_cell = grouped(rows, "target", "times", "distillation")
    for (target, times, kind), cells in by_cell.items():
        row: dict[str, Any] = {"target": target, "times": times, "distillation": kind}
        row |= over_seeds(cells, TEST, "val_top1_percent", "seconds", "fill_seconds")
        row["steps"] = cells[0]["steps"]
        if kind != "none":
            row["gain"] = paired(cells, by_cell.get((target, times, "none"), []))
            names = ("teacher_id", "teacher_val_top1_percent", "teacher_test_top1_percent")
            teachers[target] = {name: cells[0][name] for name in (*names, "teacher_seconds")}
            teachers[target]["test_images"] = cells[0]["test_images"]
        table.append(row)
    return {"rows": table, "teachers": teachers}


def timm(rows: Rows) -> dict[str, Any]:
    """How far our logits are from timm's, by network and size, as shares of what two images make of
    a difference; ``file`` is at timm's own size."""
    names = [name.removeprefix("max_difference_") for name in rows[0] if "max_difference" in name]
    table = [
        {
            "network": _network(row),
            "params": row["params"],
            **{
                name: row[f"max_difference_{name}"]
                / row[f"logit_sd_{'224' if name == 'file' else name}"]
                for name in names
            },
        }
        for row in rows
    ]
    worst = {name: max(row[name] for row in table) for name in names}
    return {"networks": len(rows), "worst": worst, "rows": table}


_SUMMARIES: dict[str, Callable[[Rows], dict[str, Any]]] = {
    "starts": starts,
    "sizes": sizes,
    "slices": slices,
    "fidelity": fidelity,
    "teacher": teacher,
    "timm": timm,
}


# --- in Markdown


def as_markdown(document: Mapping[str, Any]) -> str:
    """All tables, each with the machine and the revision that it was measured with."""
    lines = [
        "# Weights to start from",
        "",
        "By `python benchmarks/weights.py`. Accuracies are top-1 on test in percent: mean over "
        "seeds ± standard deviation. Gains are points, paired by seed, with the 95 % interval of "
        "their mean (Student's t); *better* and *worse* stand where that does not hold 0.",
    ]
    for part, found in document.items():
        lines += [
            "",
            f"## {_TITLES[part]}",
            "",
            made_in_short(found["made"]),
            "",
            *_TABLES[part](found),
        ]
    return "\n".join(lines) + "\n"


_TITLES = {
    "starts": "Sources on pictures",
    "sizes": "From 32 px to 48 px",
    "slices": "A part of a trained network",
    "fidelity": "Finetuned slices of a supernet",
    "teacher": "An adapted teacher",
    "timm": "timm's LeViTs from files",
}


def made_in_short(made: Mapping[str, Any]) -> str:
    dirty = " **Some lines are of a revision with changes that were not committed.**"
    return (
        f"{'; '.join(made['machines'])}; torch {', '.join(made['torch'])}; revision "
        f"{', '.join(made['revisions'])}; {made['seconds'] / 60:.0f} min in all."
        f"{dirty if made['is_dirty'] else ''}"
    )


def _starts_table(found: Mapping[str, Any]) -> list[str]:
    cells = [
        (
            row["target"],
            f"{row['steps']:,}",
            row["source"],
            _mean(row[TEST]),
            _gain(row.get("gain")),
            _gain(row.get("gain_to_whole_fresh")),
            f"{row['seconds']['mean'] / 60:.1f}",
            len(row["seeds"]),
        )
        for row in found["rows"]
    ]
    head = ("pictures", "steps", "source", "test %", "gain over fresh, as many steps")
    lines = markdown_table((*head, "over fresh, all steps", "min", "seeds"), cells)
    hurt = [row for row in found["rows"] if row.get("gain", {}).get("says") == "worse"]
    told = [f"{row['source']} on {row['target']}, {row['steps']:,} steps" for row in hurt]
    return [*lines, "", f"Worse than fresh weights: {'; '.join(told) or 'none'}."]


def _sizes_table(found: Mapping[str, Any]) -> list[str]:
    cells = [(row["epochs"], row["arm"].replace("_", " "), *_figures(row)) for row in found["rows"]]
    return markdown_table(
        ("epochs", "biases", "test %", "gain over fresh biases", "calibrated %"), cells
    )


def _slices_table(found: Mapping[str, Any]) -> list[str]:
    cells = [
        (
            row["epochs"],
            f"{row['lr']:g}" if row["epochs"] else "",
            row["arm"],
            *_figures(row),
            _gain(row.get("gain_to_leading")),
        )
        for row in found["rows"]
    ]
    head = ("epochs", "lr", "order", "test %", "gain over fresh", "calibrated %")
    return markdown_table((*head, "gain over leading"), cells)


def _figures(row: Mapping[str, Any]) -> tuple[str, str, str]:
    calibrated = row.get("calibrated_top1_percent", {})
    return _mean(row[TEST]), _gain(row.get("gain")), _mean(calibrated)


def _fidelity_table(found: Mapping[str, Any]) -> list[str]:
    cells = [
        (
            f"{row['images']:,}",
            row["predictor"],
            f"{row['tau']:.3f} ({row['tau_low']:.2f} to {row['tau_high']:.2f})",
            f"{row['rho']:.3f}",
            _mean(row.get("seconds", {}), 1),
            _mean(row.get("share_of_training", {}), 3),
            f"{row['supernet_seconds'] / 60:.1f}" if "supernet_seconds" in row else "",
        )
        for row in found["rows"]
    ]
    head = ("images", "ranked by", "tau (95 %)", "rho", "s a candidate", "share of its training")
    lines = [f"{found['networks']} networks, against the means of their long trainings."]
    if "between_two_seeds" in found:
        lines.append(
            f"Two seeds of these agree by a tau of {found['between_two_seeds']['tau']:.3f}."
        )
    lines += ["", *markdown_table((*head, "supernet, min"), cells), ""]
    return [
        *lines,
        *(
            f"- {row['images']:,} images: tau of {row['of']} less that of {row['to']} "
            f"{row['tau']:+.3f} ({row['tau_low']:+.2f} to {row['tau_high']:+.2f})"
            for row in found["differences"]
        ),
    ]


def _teacher_table(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {target}: the teacher has {card['teacher_test_top1_percent']:.1f} % of "
        f"{card['test_images']} test images and {card['teacher_val_top1_percent']:.1f} % of val, "
        f"adapted in {card['teacher_seconds']:.0f} s"
        for target, card in found["teachers"].items()
    ]
    cells = [
        (
            row["target"],
            f"{row['times']}x, {row['steps']:,}",
            row["distillation"],
            _mean(row[TEST]),
            _gain(row.get("gain")),
            _mean(row["seconds"], 0),
            _mean(row.get("fill_seconds", {}), 0),
        )
        for row in found["rows"]
    ]
    head = ("pictures", "steps", "distillation", "test %", "gain over none", "s", "s asking")
    return [*lines, "", *markdown_table(head, cells)]


def _timm_table(found: Mapping[str, Any]) -> list[str]:
    names = list(found["worst"])
    cells = [
        (row["network"], f"{row['params'] / 1e6:.1f}", *(f"{row[name]:.1e}" for name in names))
        for row in found["rows"]
    ]
    return [
        "The largest difference of logits, between our network that began with the file and timm's "
        "that has its weights, as a share of the deviation of what two random images differ by; by "
        "size in px. `file`: timm's network whose weights the file holds. In double "
        "precision; zero is bit by bit, and 1x1 convolutions sum in another order than linear "
        "layers.",
        "",
        *markdown_table(("network", "params, M", *names), cells),
    ]


_TABLES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "starts": _starts_table,
    "sizes": _sizes_table,
    "slices": _slices_table,
    "fidelity": _fidelity_table,
    "teacher": _teacher_table,
    "timm": _timm_table,
}


def markdown_table(head: Sequence[str], cells: Iterable[Sequence[object]]) -> list[str]:
    rows = [list(map(str, row)) for row in cells]
    return [f"| {' | '.join(row)} |" for row in (list(head), ["---"] * len(head), *rows)]


def _mean(found: Mapping[str, Any], digits: int = 2) -> str:
    if "mean" not in found:
        return ""
    text = f"{found['mean']:.{digits}f}"
    return f"{text} ± {found['sd']:.{digits}f}" if "sd" in found else text


def _gain(gain: Mapping[str, Any] | None) -> str:
    if not gain or "mean" not in gain:
        return ""
    if "half_interval" not in gain:
        return f"{gain['mean']:+.2f} (one seed)"
    low, high = (gain["mean"] + sign * gain["half_interval"] for sign in (-1, 1))
    told = f", {gain['says']}" if gain["says"] != "not told apart" else ""
    return f"{gain['mean']:+.2f} ({low:+.2f} to {high:+.2f}{told})"
