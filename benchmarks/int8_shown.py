"""The tables of ``int8.py``, out of its lines."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from fidelity import agreement
from teachers import spread
from weights_shown import Rows, grouped, made_in_short, made_of, markdown_table, rows_of

MEDIAN_MOST, WORST_MOST = 0.3, 1.0
"""Points that the default may lose."""
DEFAULT = "u8"
PARTS = ("train", "quantize", "speed", "repeat")


def document_of(folder: Path, order: Sequence[str]) -> dict[str, Any]:
    """All figures of a folder, as JSON holds them; of parts that are not measured there is none.

    Args:
        folder: with the lines of each part.
        order: of methods in the tables.
    """
    rows = {part: rows_of(folder / f"{part}.jsonl") for part in PARTS}
    rows["quantize"].sort(
        key=lambda row: (*order, row["key"]["method"]).index(row["key"]["method"])
    )
    trained = {_network(row): row for row in rows["train"]}
    tables: dict[str, Callable[[Rows], dict[str, Any]]] = {
        "train": trainings,
        "quantize": lambda given: {**methods(given), "slots": slots(given, trained)},
        "activations": lambda given: activations(given, trained),
        "speed": speeds,
        "repeat": repeats,
    }
    rows["activations"] = [row for row in rows["quantize"] if row["key"]["set"] == "activations"]
    rows["quantize"] = [row for row in rows["quantize"] if row["key"]["set"] == "supernet"]
    found: dict[str, Any] = {}
    for part, summary in tables.items():
        if rows[part]:
            found[part] = {"made": made(rows[part]), **summary(rows[part])}
    if rows["speed"] and rows["repeat"]:
        found["repeat"]["choices"] = choices(found["speed"]["rows"], found["repeat"]["rows"])
    return found


def made(rows: Rows) -> dict[str, Any]:
    """Where and by what, with the versions of what makes int8 graphs and runs them."""
    told = {**made_of(rows)}
    for name in ("onnxruntime", "openvino", "nncf"):
        told[name] = sorted({row["versions"][name] for row in rows if "versions" in row})
    return told


def _network(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["key"]["set"], row["key"]["network"], row["key"]["seed"]


def trainings(rows: Rows) -> dict[str, Any]:
    """How near the trainings came to the recorded ones."""
    recorded = [row for row in rows if "recorded_top1_percent" in row]
    apart = [abs(row["val_top1_percent"] - row["recorded_top1_percent"]) for row in recorded]
    return {
        "networks": {name: len(cells) for (name,), cells in grouped(rows, "set").items()},
        "recorded": len(recorded),
        "farthest_from_recorded": max(apart, default=None),
        "images": {
            name: cells[0]["settings"]["setup"]["data"]["train_images"]
            for (name,), cells in grouped(rows, "set").items()
        },
    }


# --- accuracy


def drop_of(row: Mapping[str, Any]) -> float:
    """Points that a network loses in int8."""
    return float(row["float_top1_percent"] - row["val_top1_percent"])


def methods(rows: Rows) -> dict[str, Any]:
    """Each method over the networks: what is lost, how networks rank, how large files are."""
    return {
        "val_images": rows[0]["val_images"],
        "rows": [_of_method(name, cells) for (name,), cells in grouped(rows, "method").items()],
    }


def _of_method(name: str, cells: Rows) -> dict[str, Any]:
    drops = np.array([drop_of(row) for row in cells])
    worst = cells[int(drops.argmax())]
    low, middle, high = np.quantile(drops, (0.25, 0.5, 0.75))
    found = {
        "method": name,
        "runtime": cells[0]["settings"]["runtime"],
        "networks": len(cells),
        "median": float(middle),
        "quartiles": [float(low), float(high)],
        "drop": spread(drops.tolist()),
        "worst": float(drops.max()),
        "worst_network": worst["key"]["network"],
        "best": float(drops.min()),
        # Of a difference of two shares of the same images (McNemar).
        "noise": float(np.median([_noise(row) for row in cells])),
        "within": bool(middle <= MEDIAN_MOST and drops.max() <= WORST_MOST),
        "times_smaller": float(np.median([row["float_bytes"] / row["bytes"] for row in cells])),
        "quantize_seconds": float(np.median([row["quantize_seconds"] for row in cells])),
        "in_int8_percent": _in_int8_percent(cells),
    }
    if len(cells) > 2:
        in_float, in_int8 = (
            {row["key"]["network"]: row[figure] for row in cells}
            for figure in ("float_top1_percent", "val_top1_percent")
        )
        found["ranks"] = agreement(in_int8, in_float)
    return found


def _in_int8_percent(cells: Rows) -> dict[str, float]:
    """Of the operators of each group that were to be quantized, how many are."""
    counts = {
        kind: {
            group: sum(row[kind].get(group, 0) for row in cells)
            for row in cells
            for group in row[kind]
        }
        for kind in ("quantized", "left")
    }
    groups = sorted(counts["quantized"].keys() | counts["left"].keys())
    found = {}
    for group in groups:
        done, left = (counts[kind].get(group, 0) for kind in ("quantized", "left"))
        found[group] = 100 * done / (done + left)
    return found


def _noise(row: Mapping[str, Any]) -> float:
    """The standard error of a drop, in points."""
    changed = row["lost"] + row["gained"] - (row["lost"] - row["gained"]) ** 2 / row["val_images"]
    return float(100 * changed**0.5 / row["val_images"])


SLOTS: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "params": lambda row: row["params"],
    "flops": lambda row: row["flops"],
    "accuracy in float": lambda row: row["val_top1_percent"],
    "stem layers": lambda row: len(row["architecture"]["stem"]["channels"]),
    "stages": lambda row: len(row["architecture"]["stages"]),
    "depth": lambda row: sum(_of_stages(row, "depth")),
    "embed_dim, mean": lambda row: fmean(_of_stages(row, "embed_dim")),
    "embed_dim, last": lambda row: _of_stages(row, "embed_dim")[-1],
    "num_heads, mean": lambda row: fmean(_of_stages(row, "num_heads")),
    "key_dim, mean": lambda row: fmean(_of_stages(row, "key_dim")),
    "mlp_ratio, mean": lambda row: fmean(_of_stages(row, "mlp_ratio")),
    "shrinks.attn_ratio, mean": lambda row: fmean(
        shrink["attn_ratio"] for shrink in row["architecture"]["shrinks"]
    ),
}


def _of_stages(row: Mapping[str, Any], slot: str) -> list[float]:
    return [stage[slot] for stage in row["architecture"]["stages"]]


def slots(
    rows: Rows, trained: Mapping[tuple[str, str, int], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Spearman's rho of what a method loses with what networks are like."""
    found = []
    for (method,), cells in grouped(rows, "method").items():
        drops = {row["key"]["network"]: drop_of(row) for row in cells}
        for slot, value in SLOTS.items():
            values = {row["key"]["network"]: value(trained[_network(row)]) for row in cells}
            if len(set(values.values())) > 1 and len(set(drops.values())) > 1:
                told = agreement(values, drops)
                names = ("networks", "rho", "rho_low", "rho_high")
                found.append({"method": method, "slot": slot, **{n: told[n] for n in names}})
    return found


def activations(
    rows: Rows, trained: Mapping[tuple[str, str, int], Mapping[str, Any]]
) -> dict[str, Any]:
    """What each activation loses, and how much more than hardswish does with the same widths and
    seed."""
    by_cell: dict[tuple[str, str], dict[tuple[Any, ...], Mapping[str, Any]]] = {}
    for row in rows:
        network = trained[_network(row)]["architecture"]
        widths = tuple(stage["embed_dim"] for stage in network["stages"])
        cell = by_cell.setdefault((row["key"]["method"], network["activation"]), {})
        cell[(*widths, row["key"]["seed"])] = row
    table = []
    for (method, activation), cells in by_cell.items():
        drops = [drop_of(row) for row in cells.values()]
        row = {
            "method": method,
            "activation": activation,
            "networks": len(cells),
            "float_top1_percent": spread([each["float_top1_percent"] for each in cells.values()]),
            "drop": spread(drops),
            "worst": max(drops),
            "noise": float(np.median([_noise(each) for each in cells.values()])),
        }
        by_width: dict[tuple[Any, ...], list[float]] = {}
        for (*widths, _), each in cells.items():
            by_width.setdefault(tuple(widths), []).append(drop_of(each))
        row["by_width"] = [
            {"embed_dims": widths, **spread(several)} for widths, several in by_width.items()
        ]
        base = by_cell.get((method, "hardswish"), {})
        if activation != "hardswish":
            row["over_hardswish"] = {
                name: spread(
                    [figure(cells[key]) - figure(base[key]) for key in cells if key in base]
                )
                for name, figure in (("drop", drop_of), ("float_top1_percent", _in_float))
            }
        table.append(row)
    return {"val_images": rows[0]["val_images"], "rows": table}


def _in_float(row: Mapping[str, Any]) -> float:
    return float(row["float_top1_percent"])


# --- time


def speeds(rows: Rows) -> dict[str, Any]:
    """Time of each int8 graph as a share of its float graph's, by network, over the sessions."""
    table, apart = [], []
    for (runtime, network), cells in grouped(rows, "runtime", "network").items():
        for method in cells[0]["graphs"]:
            graphs = [row["graphs"][method] for row in cells]
            ratios = [graph["ratio"] for graph in graphs]
            table.append(
                {
                    "runtime": runtime,
                    "network": network,
                    "method": method,
                    "ratio": float(np.exp(np.mean(np.log(ratios)))),
                    "low": min(graph["low"] for graph in graphs),
                    "high": max(graph["high"] for graph in graphs),
                    "sessions": ratios,
                    "float_ms": [row["float_ms"] for row in cells],
                    "times_smaller": cells[0]["float_bytes"] / graphs[0]["bytes"],
                }
            )
            apart += [
                {"runtime": runtime, "percent": _apart(*pair), "network": network, "method": method}
                for pair in itertools.combinations(ratios, 2)
            ]
    return {
        "saturates": {
            str(runtime): sorted({row["saturates"] for row in cells})
            for (runtime,), cells in grouped(rows, "runtime").items()
        },
        "rows": table,
        "repeats": _repeats(apart),
    }


def _apart(first: float, second: float) -> float:
    return 200 * abs(first - second) / (first + second)


def _repeats(apart: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How far two sessions are apart: the median and the worst, in percent, by runtime."""
    found = []
    for runtime, several in itertools.groupby(
        sorted(apart, key=lambda each: each["runtime"]), key=lambda each: each["runtime"]
    ):
        pairs = list(several)
        worst = max(pairs, key=lambda each: each["percent"])
        median = float(np.median([each["percent"] for each in pairs]))
        found.append({"runtime": runtime, "pairs": len(pairs), "median": median, "worst": worst})
    return found


def repeats(rows: Rows) -> dict[str, Any]:
    """How far two probe sessions are apart in each precision, and int8 beside fp32."""
    table = []
    by_cell = grouped(rows, "set", "runtime", "precision")
    for (of, runtime, precision), cells in by_cell.items():
        pairs = list(itertools.combinations([row["ratios"] for row in cells], 2))
        apart = [_apart(a[name][0], b[name][0]) for a, b in pairs for name in a]
        row: dict[str, Any] = {
            "set": of,
            "runtime": runtime,
            "precision": precision,
            "sessions": len(cells),
            "formats": sorted({each["format"] for each in cells if "format" in each}),
            "saturates": sorted({each["saturates"] for each in cells if "saturates" in each}),
        }
        if apart:
            row |= {"median": float(np.median(apart)), "worst": max(apart)}
        base = by_cell.get((of, runtime, "fp32"))
        if precision == "int8" and base:
            row["to_fp32"] = {
                name: _mean(cells, name) / _mean(base, name) for name in cells[0]["ms"]
            }
        table.append(row)
    return {"rows": table}


def _mean(cells: Rows, network: str) -> float:
    return float(np.exp(np.mean([np.log(row["ratios"][network][0]) for row in cells])))


FORMATS: Mapping[str, Mapping[str, str]] = {
    "onnxruntime": {"u8": "u8", "s8": "s8"},
    "openvino": {"u8": "u8 in openvino", "nncf": "nncf"},
}
"""What a probe chooses among where nothing saturates, with the method of its graphs."""


def choices(
    timed: Iterable[Mapping[str, Any]], probed: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The format that probes chose by their reference, and the networks that were faster in the
    other one, by more than the intervals of both."""
    graphs = {(row["runtime"], row["network"], row["method"]): row for row in timed}
    found = []
    for row in probed:
        for chosen in row["formats"]:
            methods = FORMATS[row["runtime"]]
            slower = [
                name
                for name in row.get("to_fp32", {})
                for other in methods.values()
                if graphs[row["runtime"], name, other]["high"]
                < graphs[row["runtime"], name, methods[chosen]]["low"]
            ]
            told = {"set": row["set"], "runtime": row["runtime"], "format": chosen}
            found.append(
                {**told, "networks": len(row.get("to_fp32", {})), "faster_in_other": slower}
            )
    return found


# --- in Markdown


def as_markdown(document: Mapping[str, Any]) -> str:
    """All tables, each with the machine and the revision that it was measured with."""
    lines = [
        "# What int8 costs and gains",
        "",
        "By `python benchmarks/int8.py`. Fashion-MNIST at 32 px. A drop is top-1 on val in float "
        "less that in int8, in points, of the same images in the same runtime; calibrated on 128 "
        "images of train. One multiply-add is one FLOP.",
    ]
    for part, found in document.items():
        versions = [
            f"{name} {', '.join(found['made'][name])}"
            for name in ("onnxruntime", "openvino", "nncf")
            if found["made"][name]
        ]
        told = " ".join([made_in_short(found["made"]), ", ".join(versions)]).strip()
        lines += ["", f"## {_TITLES[part]}", "", told, "", *_TABLES[part](found)]
    return "\n".join(lines) + "\n"


_TITLES = {
    "train": "What was trained",
    "quantize": "Accuracy: the networks of studies/supernet",
    "activations": "Accuracy: activations",
    "speed": "Time of an int8 graph as a share of its float graph's",
    "repeat": "How well probes repeat",
}


def _train_table(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {name}: {count} trainings on {found['images'][name]:,} images"
        for name, count in found["networks"].items()
    ]
    if found["farthest_from_recorded"] is not None:
        lines.append(
            f"- {found['recorded']} beside their recorded accuracies: at most "
            f"{found['farthest_from_recorded']:.3f} points away"
        )
    return lines


def _quantize_table(found: Mapping[str, Any]) -> list[str]:
    cells = [
        (
            row["method"],
            row["runtime"],
            row["networks"],
            f"{row['median']:.2f} ({row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f})",
            f"{row['worst']:.2f} ({row['worst_network']})",
            _gain(row["drop"]),
            f"{row['drop'].get('sd', 0):.2f}, {row['noise']:.2f}",
            _tau(row.get("ranks")),
            f"{row['times_smaller']:.1f}",
            _left(row["in_int8_percent"]) or "none",
        )
        for row in found["rows"]
    ]
    head = ("method", "runtime", "networks", "drop: median (quartiles)", "worst", "mean (95 %)")
    lines = [
        f"{found['val_images']:,} images of val. Sd: over networks; noise: what another sample of "
        "images alone would give (the median of the drops' standard errors). Tau: Kendall's, of "
        "accuracies in float and in int8, bootstrapped over networks. Left in float: operators "
        "that were to be quantized. `nncf corrected`: with NNCF's correction of biases, as "
        "revision 01336bf04c6b had it.",
        "",
        *markdown_table(
            (*head, "sd, noise", "tau (95 %)", "times smaller", "left in float"), cells
        ),
        "",
        "Spearman's rho of the drop with what networks are like (95 %, bootstrapped; one in twenty "
        "intervals is beside nothing by chance):",
        "",
    ]
    names = [row["method"] for row in found["rows"] if row["method"] in (DEFAULT, "nncf")]
    by_cell = {(row["method"], row["slot"]): row for row in found["slots"]}
    cells = [(slot, *(_rho(by_cell.get((name, slot))) for name in names)) for slot in SLOTS]
    return [*lines, *markdown_table(("slot", *names), cells)]


def _tau(ranks: Mapping[str, float] | None) -> str:
    if ranks is None:
        return ""
    return f"{ranks['tau']:.3f} ({ranks['tau_low']:.2f} to {ranks['tau_high']:.2f})"


def _rho(row: Mapping[str, float] | None) -> str:
    if row is None:
        return ""
    return f"{row['rho']:+.2f} ({row['rho_low']:+.2f} to {row['rho_high']:+.2f})"


def _left(percent: Mapping[str, float]) -> str:
    told = [f"{100 - done:.0f} % of {group}" for group, done in percent.items() if done < 100]
    return ", ".join(told)


def _activations_table(found: Mapping[str, Any]) -> list[str]:
    cells = [
        (
            row["method"],
            row["activation"],
            row["networks"],
            _spread(row["float_top1_percent"]),
            _spread(row["drop"]),
            f"{row['worst']:.2f}",
            _gain(row.get("over_hardswish", {}).get("drop")),
            "; ".join(_spread(each) for each in row["by_width"]),
        )
        for row in found["rows"]
    ]
    widths = ", ".join("-".join(map(str, e["embed_dims"])) for e in found["rows"][0]["by_width"])
    head = ("method", "activation", "networks", "float %", "drop", "worst", "drop over hardswish's")
    return [
        f"`activation` and `attention_activation` alike; three seeds of the widths {widths}. "
        "Mean ± standard deviation; differences are paired by widths and seed, with the 95 % "
        "interval of their mean.",
        "",
        *markdown_table((*head, "drop by widths, over seeds"), cells),
    ]


def _spread(found: Mapping[str, float]) -> str:
    text = f"{found['mean']:.2f}"
    return f"{text} ± {found['sd']:.2f}" if "sd" in found else text


def _gain(found: Mapping[str, float] | None) -> str:
    if not found or "half_interval" not in found:
        return ""
    low, high = (found["mean"] + sign * found["half_interval"] for sign in (-1, 1))
    return f"{found['mean']:+.2f} ({low:+.2f} to {high:+.2f})"


def _speed_table(found: Mapping[str, Any]) -> list[str]:
    lines = [
        "One thread, batch 1, on the clock of the thread or process. Published networks at 224 px "
        "with random weights; the others trained, at 32 px. With 95 % intervals, of "
        "all sessions together. `float` is a copy of the float graph.",
    ]
    for runtime, rows in _by(found["rows"], "runtime").items():
        names = list(dict.fromkeys(row["method"] for row in rows))
        cells = []
        for network, several in _by(rows, "network").items():
            by_method = {row["method"]: row for row in several}
            milliseconds = f"{fmean(several[0]['float_ms']):.3g}"
            cells.append((network, milliseconds, *(_ratio(by_method.get(name)) for name in names)))
        saturates = "saturates" if True in found["saturates"][runtime] else "does not saturate"
        lines += ["", f"{runtime} ({saturates} here):", ""]
        lines += markdown_table(("network", "float ms", *names), cells)
    told = [
        f"- {row['runtime']}: two sessions are {row['median']:.1f} % apart in the median and "
        f"{row['worst']['percent']:.1f} % at most ({row['worst']['network']}, "
        f"{row['worst']['method']}), of {row['pairs']} pairs"
        for row in found["repeats"]
    ]
    return [*lines, "", *told] if told else lines


def _ratio(row: Mapping[str, float] | None) -> str:
    if row is None:
        return ""
    return f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def _by(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found


def _repeat_table(found: Mapping[str, Any]) -> list[str]:
    cells = [
        (
            row["set"],
            row["runtime"],
            " ".join([row["precision"], *row["formats"]]),
            row["sessions"],
            *((f"{row['median']:.1f}", f"{row['worst']:.1f}") if "median" in row else ("", "")),
            ", ".join(f"{name} {ratio:.2f}" for name, ratio in row.get("to_fp32", {}).items()),
        )
        for row in found["rows"]
    ]
    head = ("networks", "runtime", "precision", "sessions", "median apart, %", "worst, %")
    return [
        "Networks measured together against the reference in float by sessions of their own, the "
        "format of int8 chosen by each.",
        "",
        *markdown_table((*head, "int8 as a share of fp32"), cells),
        "",
        *(
            f"- {row['set']}, {row['runtime']}: {row['format']} was chosen; faster in the other "
            f"format by more than the intervals: {', '.join(row['faster_in_other']) or 'none'} of "
            f"{row['networks']}"
            for row in found.get("choices", ())
        ),
    ]


_TABLES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "train": _train_table,
    "quantize": _quantize_table,
    "activations": _activations_table,
    "speed": _speed_table,
    "repeat": _repeat_table,
}
