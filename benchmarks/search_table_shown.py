"""What a recorded table is like, and its card."""

import csv
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from levit_search.pareto import hypervolume, minimised, non_dominated

Floats = NDArray[np.float64]

OBJECTIVES = ("top1_percent", "flops")
FIGURES = ("network", "params", "flops")


@dataclass(frozen=True)
class Recorded:
    """A table as its files have it, for the networks that were trained."""

    networks: list[str]
    slots: dict[str, list[int]]
    """By slot, all values that it takes, ascending."""
    values: list[dict[str, int]]
    """A network's value of each slot."""
    costs: dict[str, Floats]
    """FLOPs and params, and where all were measured ``latency_ms`` and ``latency_int8_ms``."""
    top1_percent: dict[int, Floats]
    """By seed, accuracies on val, [networks, epochs]; NaN where a network has no such seed."""
    cpu_s: dict[int, Floats]
    """The same for processor seconds since the start."""
    top1_int8_percent: dict[int, Floats]
    """By seed, [networks]."""

    def __len__(self) -> int:
        return len(self.networks)

    def truth(self) -> Floats:
        """The mean of the last accuracies over a network's seeds, [networks]."""
        return np.nanmean([each[:, -1] for each in self.top1_percent.values()], axis=0)

    def several(self) -> NDArray[np.bool_]:
        """Which networks have all seeds."""
        last = [each[:, -1] for each in self.top1_percent.values()]
        return np.asarray(np.isfinite(last).all(axis=0))


def read_table(folder: Path) -> Recorded:
    """A table from its folder."""
    given = {row["network"]: row for row in _rows(folder / "networks.csv")}
    trainings = _rows(folder / "trainings.csv")
    networks = [each for each in given if each in {row["network"] for row in trainings}]
    place = {network: index for index, network in enumerate(networks)}
    names = [name for name in next(iter(given.values())) if name not in FIGURES]
    epochs = sum(name.startswith("top1_percent_") for name in trainings[0])
    seeds = sorted({int(row["seed"]) for row in trainings})
    shape = len(networks), epochs
    accuracies = {seed: np.full(shape, np.nan) for seed in seeds}
    seconds = {seed: np.full(shape, np.nan) for seed in seeds}
    in_int8 = {seed: np.full(len(networks), np.nan) for seed in seeds}
    for row in trainings:
        at, seed = place[row["network"]], int(row["seed"])
        for epoch in range(1, epochs + 1):
            accuracies[seed][at, epoch - 1] = float(row[f"top1_percent_{epoch}"])
            seconds[seed][at, epoch - 1] = float(row[f"cpu_s_{epoch}"])
        in_int8[seed][at] = float(row["top1_int8_percent"])
    costs = {
        name: np.array([float(given[each][name]) for each in networks]) for name in FIGURES[1:]
    }
    for precision, name in (("fp32", "latency_ms"), ("int8", "latency_int8_ms")):
        found = {
            row["network"]: float(row["latency_ms"])
            for row in _rows(folder / "latency.csv")
            if row["precision"] == precision
        }
        if all(each in found for each in networks):
            costs[name] = np.array([found[each] for each in networks])
    return Recorded(
        networks,
        {name: sorted({int(row[name]) for row in given.values()}) for name in names},
        [{name: int(given[each][name]) for name in names} for each in networks],
        costs,
        accuracies,
        seconds,
        in_int8,
    )


def document_of(folder: Path) -> dict[str, Any]:
    """The figures of the card."""
    found = read_table(folder)
    settings = json.loads((folder / "settings.json").read_text())
    truth, first = found.truth(), found.top1_percent[0]
    by_factor = {name: _r2_of_groups(found, name, truth) for name in found.slots}
    stages = np.array([each["num_stages"] for each in found.values])
    chosen = {"all": np.ones(len(found), bool)}
    chosen |= {f"{count} stages": stages == count for count in found.slots["num_stages"]}
    rank = {
        name: {
            f"epoch {epoch}": _tau(first[rows, epoch - 1], first[rows, -1]) for epoch in (1, 3, 6)
        }
        for name, rows in chosen.items()
    }
    points = _points(truth, found.costs["flops"])
    front = np.flatnonzero(non_dominated(points))
    front = front[np.argsort(found.costs["flops"][front])]
    worst = points.max(axis=0)
    whole = hypervolume(points, worst)
    alone = [hypervolume(points[[each]], worst) / whole for each in front]
    pairs = [
        hypervolume(points[list(pair)], worst) / whole for pair in itertools.combinations(front, 2)
    ]
    several = found.several()
    by_seed = np.array([each[several, -1] for each in found.top1_percent.values()])
    drop = first[:, -1] - found.top1_int8_percent[0]
    seconds = found.cpu_s[0][:, -1]
    log_flops = np.log(found.costs["flops"])
    return {
        "networks": len(found),
        "trainings": int(sum(np.isfinite(each[:, -1]).sum() for each in found.cpu_s.values())),
        "networks_with_all_seeds": int(several.sum()),
        "seeds": len(found.top1_percent),
        "epochs": first.shape[1],
        "top1_percent": _quantiles(truth),
        "cpu_s": _quantiles(seconds),
        "cpu_s_of_flops_r2": float(np.corrcoef(log_flops, np.log(seconds))[0, 1] ** 2),
        "r2_of_single_factors": by_factor,
        "r2_of_flops": float(np.corrcoef(log_flops, truth)[0, 1] ** 2),
        "r2_of_a_linear_model": _r2_of_a_linear_model(found, truth),
        "tau_with_the_last_epoch": rank,
        "noise_of_a_seed": float(by_seed.std(axis=0, ddof=1).mean()) if several.any() else None,
        "tau_between_seeds": _tau(by_seed[0], by_seed[1]) if several.sum() > 2 else None,
        "front": [
            {
                "network": found.networks[each],
                "top1_percent": float(truth[each]),
                "flops": int(found.costs["flops"][each]),
                **found.values[each],
            }
            for each in front
        ],
        "best_single_share_of_hypervolume": max(alone),
        "cheapest_share_of_hypervolume": alone[0],
        "best_pair_share_of_hypervolume": max(pairs, default=None),
        "drop_in_int8": _quantiles(drop),
        "tau_of_int8": _tau(first[:, -1], found.top1_int8_percent[0]),
        "correlations_of_log_costs": {
            name: float(np.corrcoef(log_flops, np.log(each))[0, 1])
            for name, each in found.costs.items()
            if name != "flops"
        },
        "costs": list(found.costs),
        "settings": settings["settings"],
        "machines": sorted({each["cpu"] for each in settings["sessions"]}),
    }


def as_markdown(document: Mapping[str, Any]) -> str:
    """The card: what the table is, how it was made, its columns, and what it is like."""
    told = document
    factors = sorted(told["r2_of_single_factors"].items(), key=lambda item: -item[1])
    stated = told["settings"]
    probed = " and probed in both precisions" if "latency_int8_ms" in told["costs"] else ""
    lines = [
        "# A table of trained LeViTs in which searches can be replayed",
        "",
        f"{told['networks']} networks of `spaces/levit-fashion.yaml` behind a stem of one "
        "convolution (patches of 4 px) in the place of its own, drawn at random within its "
        f"limit of {stated['flops_limit'] / 1e6:g}M FLOPs (seed {stated['drawn_with_seed']}), each "
        f"trained for {told['epochs']} epochs on {stated['data']['train_images']:,} images of "
        f"Fashion-MNIST at 32 px, {told['networks_with_all_seeds']} of them with {told['seeds']} "
        "seeds; the truth is the mean. Accuracies are those on "
        f"{60000 * stated['data']['val_share']:,.0f} other images of the training set. Each "
        f"network was quantized to int8 ({stated['int8_format']}) after its last epoch{probed}. "
        "Networks come in the order in which they were drawn: the first "
        "so many are a fair sample, too. It grows: `python benchmarks/search_table.py train` goes "
        "on.",
        "",
        "## Files",
        "",
        "- `networks.csv`: all that were drawn, trained or not: `network` (an id), a column a slot "
        "of the space, `params`, `flops` (one multiply-add is one).",
        "- `trainings.csv`: a row a training: `network`, `seed`, `top1_percent_E` and `cpu_s_E` "
        "after epoch E (processor seconds of one thread since the start, the teacher's answers at "
        "hand), `top1_int8_percent` after the last.",
        "- `latency.csv`, once they are probed: `network`, `precision`, milliseconds an image with "
        "their 95 % interval on the CPU, one thread.",
        "- `settings.json`: the recipe, and the machine and revision of each session.",
        "- `results.json`: the figures below.",
        "",
        "A reader:",
        "",
        "```python",
        *_READER.strip().splitlines(),
        "```",
        "",
        "## What it is like",
        "",
        "| | |",
        "|---|---|",
        f"| trainings | {told['trainings']} |",
        f"| accuracy in % | {_spread(told['top1_percent'])} |",
        f"| processor seconds a training | {_spread(told['cpu_s'], 0)} |",
        f"| share of the variance of accuracy by the strongest factor | {factors[0][0]} "
        f"{factors[0][1]:.2f}, then {factors[1][0]} {factors[1][1]:.2f}, {factors[2][0]} "
        f"{factors[2][1]:.2f} |",
        f"| by log FLOPs | {told['r2_of_flops']:.2f} |",
        f"| by a linear model of all factors, left one out | {told['r2_of_a_linear_model']:.2f} |",
        f"| best single network, cheapest, best two: share of the hypervolume, from the worst | "
        f"{told['best_single_share_of_hypervolume']:.3f}, "
        f"{told['cheapest_share_of_hypervolume']:.3f}, "
        f"{told['best_pair_share_of_hypervolume']:.3f} |",
        f"| networks on the front | {len(told['front'])} |",
        f"| drop in int8 in points | {_spread(told['drop_in_int8'])} |",
        f"| Kendall tau of accuracies in float and in int8 | {told['tau_of_int8']:.3f} |",
        f"| share of the variance of log seconds by log FLOPs | {told['cpu_s_of_flops_r2']:.2f} |",
    ]
    if told["noise_of_a_seed"] is not None:
        lines += [
            f"| standard deviation over seeds in points | {told['noise_of_a_seed']:.2f} |",
            f"| Kendall tau between two seeds | {told['tau_between_seeds']:.3f} |",
        ]
    epochs = list(next(iter(told["tau_with_the_last_epoch"].values())))
    lines += [
        "",
        "Kendall tau of the accuracy after some epochs with the last one (same seed):",
        "",
        f"| | {' | '.join(epochs)} |",
        "|---|" + "---|" * len(epochs),
    ]
    for name, row in told["tau_with_the_last_epoch"].items():
        lines.append(f"| {name} | " + " | ".join(f"{row[each]:.2f}" for each in epochs) + " |")
    lines += [
        "",
        "The front of accuracy and FLOPs:",
        "",
        "| network | top-1 % | MFLOPs | stages | widths |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{each['network']}` | {each['top1_percent']:.2f} | {each['flops'] / 1e6:.2f} | "
        f"{each['num_stages']} | "
        + "-".join(str(each[f"stages.{stage}.embed_dim"]) for stage in range(each["num_stages"]))
        + " |"
        for each in told["front"]
    ]
    lines += [
        "",
        f"Measured on {', '.join(told['machines'])}. The table may be used like the rest of the "
        "project (Apache 2.0); Fashion-MNIST's images, which it does not hold, are under the MIT "
        "license.",
        "",
    ]
    return "\n".join(lines)


_READER = """
import csv
from collections import defaultdict

curves = defaultdict(list)  # by network, a learning curve a seed
with open("studies/table/trainings.csv", newline="") as file:
    for row in csv.DictReader(file):
        curves[row["network"]].append([float(row[f"top1_percent_{e}"]) for e in range(1, 10)])
with open("studies/table/networks.csv", newline="") as file:
    flops = {row["network"]: int(row["flops"]) for row in csv.DictReader(file)}
best = max(curves, key=lambda network: curves[network][0][-1])
print(best, max(curves[best][0]), flops[best])
"""


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def _points(top1_percent: Floats, flops: Floats) -> Floats:
    rows = [
        dict(zip(OBJECTIVES, each, strict=True)) for each in zip(top1_percent, flops, strict=True)
    ]
    return minimised(rows, OBJECTIVES)


def _r2_of_groups(found: Recorded, name: str, truth: Floats) -> float:
    """The share of the variance that the means of a factor's groups explain; networks of two stages
    are a group of their own for factors of the third."""
    is_beyond = name.startswith("stages.2.") or name == "shrinks.1.attn_ratio"
    labels = np.array(
        [-1 if is_beyond and each["num_stages"] < 3 else each[name] for each in found.values]
    )
    between = sum(
        (labels == label).sum() * (truth[labels == label].mean() - truth.mean()) ** 2
        for label in np.unique(labels)
    )
    return float(between / ((truth - truth.mean()) ** 2).sum())


def _r2_of_a_linear_model(found: Recorded, truth: Floats) -> float:
    """Of least squares on all factors, each network predicted from the others."""
    columns = [[float(each[name]) for name in found.slots] for each in found.values]
    design = np.column_stack([np.ones(len(found)), np.array(columns)])
    hat = design @ np.linalg.pinv(design)
    left_out = (truth - hat @ truth) / (1 - np.diag(hat))
    return float(1 - (left_out**2).sum() / ((truth - truth.mean()) ** 2).sum())


def _tau(a: Floats, b: Floats) -> float:
    return float(kendalltau(a, b).statistic)


def _quantiles(values: Floats) -> dict[str, float]:
    names = ("lowest", "lower quartile", "median", "upper quartile", "highest")
    found = np.quantile(values, (0, 0.25, 0.5, 0.75, 1))
    return dict(zip(names, map(float, found), strict=True))


def _spread(found: Mapping[str, float], digits: int = 2) -> str:
    low, first, middle, last, high = (f"{each:.{digits}f}" for each in found.values())
    return f"{middle} (quartiles {first} to {last}, all {low} to {high})"
