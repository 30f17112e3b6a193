"""What replayed searches are worth along the way, as a table and as pictures."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levit_search.pareto import hypervolume

Floats = NDArray[np.float64]

SHARES = (0.10, 0.20, 0.33, 0.50, 1.00)
OURS = "levit-search"
_UNITS = ("epochs", "seconds")
_RESAMPLES = 2000
_CURVE = np.linspace(0.02, 1.0, 50)
_SHOWN = 7  # searchers in a picture
_PARTED_BY = ("num_stages", "stem.layers")  # tables, to look at each part alone


class Worth:
    """The value of acts in a table as :func:`search_quality.exported` has it.

    Args:
        table: with ``points`` by the truth.
        linear: costs as they are, in the place of their logarithms.
        only: networks that count, by their place; None for all.
    """

    def __init__(
        self, table: Mapping[str, Any], linear: bool = False, only: Sequence[int] | None = None
    ) -> None:
        self._epochs = int(table["epochs"])
        self._seconds = np.array(table["seconds"])
        self._points, self._reference = np.array(table["points"]), np.array(table["reference"])
        if linear:
            is_cost = [
                name not in ("top1_percent", "top1_int8_percent") for name in table["objectives"]
            ]
            scale = 10 ** self._reference[is_cost]
            self._points[:, is_cost] = 10 ** self._points[:, is_cost] / scale
            self._reference[is_cost] = 1.0
        self._only = set(range(len(self._points)) if only is None else only)
        self._all = hypervolume(self._points[sorted(self._only)], self._reference)
        count = len(self._points)
        self.budgets = {
            "epochs": count // 2 * self._epochs,
            "seconds": float(self._seconds[:, -1].sum() / 2),
        }

    def steps(self, acts: Sequence[tuple[int, int]], unit: str) -> tuple[Floats, Floats]:
        """What was spent when a network was trained to the end, and the share of the hypervolume
        then."""
        spent, at, ends = 0.0, dict[int, int](), list[tuple[float, int]]()
        for network, epoch in acts:
            before = at.get(network, 0)
            spent += self._price(network, epoch, unit) - self._price(network, before, unit)
            at[network] = epoch
            if epoch == self._epochs and network in self._only:
                ends.append((spent, network))
        shares, worth, found = [], 0.0, list[int]()
        for _, network in ends:
            point = self._points[network]
            known = self._points[found]
            if not len(known) or not (known <= point).all(axis=1).any():
                found.append(network)
                worth = hypervolume(self._points[found], self._reference) / self._all
            shares.append(worth)
        return np.array([each for each, _ in ends]), np.array(shares)

    def _price(self, network: int, epoch: int, unit: str) -> float:
        if unit == "epochs" or not epoch:
            return float(epoch)
        return float(self._seconds[network, epoch - 1])


def at(steps: tuple[Floats, Floats], spent: Floats) -> Floats:
    """The shares when so much was spent."""
    ends, shares = steps
    places = np.searchsorted(ends, spent + 1e-9, side="right")
    return np.concatenate([[0.0], shares])[places]


def document_of(
    folder: Path, tables: Mapping[tuple[str, str], Mapping[str, Any]]
) -> dict[str, Any]:
    """What all runs of the folder come to, by table, objectives and unit.

    Args:
        folder: with lines of runs.
        tables: by name and objectives, as :func:`search_quality.exported` has it.
    """
    rows = [
        json.loads(line)
        for file in sorted(folder.glob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]
    found: dict[str, Any] = {}
    for (name, label), table in tables.items():
        mine = [
            row
            for row in rows
            if row["table"] == name
            and row["objectives"] == label
            and row["networks"] == len(table["networks"])
        ]
        if mine:
            mine.sort(key=lambda row: (row["searcher"], row["seed"]))
            by = {key: [*each] for key, each in groupby(mine, lambda row: row["searcher"])}
            found[f"{name}, {label}"] = _of_table(table, by)
    return found


def _of_table(
    table: Mapping[str, Any], by_searcher: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    views = {"": Worth(table), "linear": Worth(table, linear=True)}
    name = _PARTED_BY[table["slots"].keys() >= {"stem.layers"}]
    values = np.array(table["values"])[:, list(table["slots"]).index(name)]
    for place, choice in enumerate(table["slots"][name]):
        only = np.flatnonzero(values == place).tolist()
        views[f"{name} {choice}"] = Worth(table, only=only)
    document: dict[str, Any] = {
        "networks": len(table["networks"]),
        "objectives": list(table["objectives"]),
        "budgets": views[""].budgets,
        "searchers": {},
    }
    ends: dict[tuple[str, str], Floats] = {}
    for searcher, runs in by_searcher.items():
        told: dict[str, Any] = {
            "seeds": len(runs),
            "proposal_ms": float(np.median([run["proposal_ms"] for run in runs])),
            "versions": runs[0].get("versions", {}),
        }
        for unit in _UNITS:
            spent = np.array(SHARES) * views[""].budgets[unit]
            for view, worth in views.items():
                steps = [worth.steps(run["acts"], unit) for run in runs]
                shares = np.array([at(each, spent) for each in steps])
                key = f"{unit}, {view}" if view else unit
                told[key] = {
                    name: np.quantile(shares, q, axis=0).tolist()
                    for name, q in (("median", 0.5), ("low", 0.25), ("high", 0.75))
                }
                if not view:
                    ends[searcher, unit] = shares
                    curve = np.array([at(each, _CURVE * worth.budgets[unit]) for each in steps])
                    told[key]["curve"] = {
                        name: np.quantile(curve, q, axis=0).tolist()
                        for name, q in (("median", 0.5), ("low", 0.25), ("high", 0.75))
                    }
                    whole = [_reached(each, worth.budgets[unit]) for each in steps]
                    told[key]["share_of_budget_to"] = {
                        goal: float(np.median([each[goal] for each in whole])) for goal in whole[0]
                    }
        document["searchers"][searcher] = told
    if OURS in by_searcher:
        for searcher in by_searcher:
            if searcher != OURS:
                document["searchers"][searcher]["ours_ahead"] = {
                    unit: _difference(ends[OURS, unit], ends[searcher, unit]) for unit in _UNITS
                }
        for unit in _UNITS:  # how far apart halves of our own seeds are
            shares = ends[OURS, unit]
            document[f"noise, {unit}"] = _noise(shares)
    return document


def _reached(steps: tuple[Floats, Floats], budget: float) -> dict[str, float]:
    """The share of the budget after which so much of the hypervolume was there, or infinite."""
    ends, shares = steps
    return {
        f"{goal:g}": float(ends[place] / budget)
        if (place := int(np.searchsorted(shares, goal))) < len(ends)
        else float("inf")
        for goal in (0.95, 0.99, 0.999)
    }


def _difference(ours: Floats, others: Floats) -> dict[str, list[float]]:
    """Of medians, in points, with a bootstrap interval of 95 %."""
    rng = np.random.default_rng(0)

    def drawn(shares: Floats) -> Floats:
        rows = rng.integers(len(shares), size=(_RESAMPLES, len(shares)))
        return np.asarray(np.median(shares[rows], axis=1))

    apart = 100 * (drawn(ours) - drawn(others))
    return {
        "points": (100 * (np.median(ours, axis=0) - np.median(others, axis=0))).tolist(),
        "low": np.quantile(apart, 0.025, axis=0).tolist(),
        "high": np.quantile(apart, 0.975, axis=0).tolist(),
    }


def _noise(shares: Floats) -> list[float]:
    """By how many points medians of two halves of the seeds differ, at the 95th percentile."""
    rng = np.random.default_rng(0)
    half = len(shares) // 2
    apart = []
    for _ in range(_RESAMPLES):
        order = rng.permutation(len(shares))
        one, other = shares[order[:half]], shares[order[half:]]
        apart.append(np.abs(np.median(one, axis=0) - np.median(other, axis=0)))
    return (100 * np.quantile(apart, 0.95, axis=0)).tolist() if half else [float("nan")] * 5


def as_markdown(document: Mapping[str, Any]) -> str:
    """The tables, best searchers first."""
    heads = [f"{share:.0%}" for share in SHARES]
    lines = [
        "# How much front each epoch of training buys",
        "",
        "Medians over seeds of the hypervolume in % of that of all networks, after shares of the "
        "budget (what half of the networks take that are trained to the end), by epochs and by "
        "recorded seconds. Below: how far levit-search is ahead in points of the median, with "
        "bootstrap intervals of 95 %. Made by `benchmarks/search_quality.py` and "
        "`benchmarks/peers.py`.",
    ]
    for name, told in document.items():
        lines += ["", f"## {name}: {told['networks']} networks", ""]
        for unit in _UNITS:
            lines += [
                f"By {unit}; the whole budget is {told['budgets'][unit]:,.0f} {unit}.",
                "",
                f"| | {' | '.join(heads)} | to 95 % | to 99 % | seeds | ms a proposal |",
                "|---|" + "---:|" * (len(heads) + 4),
            ]
            ranked = sorted(
                told["searchers"].items(), key=lambda item: -sum(item[1][unit]["median"])
            )
            for searcher, row in ranked:
                cells = [f"{100 * each:.1f}" for each in row[unit]["median"]]
                goals = [
                    f"{100 * row[unit]['share_of_budget_to'][g]:.0f} %".replace("inf %", "-")
                    for g in ("0.95", "0.99")
                ]
                lines.append(
                    f"| {searcher} | {' | '.join(cells)} | {' | '.join(goals)} | {row['seeds']} | "
                    f"{row['proposal_ms']:.0f} |"
                )
            if f"noise, {unit}" in told:
                noise = " | ".join(f"{each:.1f}" for each in told[f"noise, {unit}"])
                lines.append(f"| halves of our own seeds, 95th percentile | {noise} | | | | |")
            lines.append("")
            others = [(s, r) for s, r in ranked if "ours_ahead" in r]
            if others:
                lines += [
                    f"| ahead of, by {unit} | {' | '.join(heads)} |",
                    "|---|" + "---|" * len(heads),
                ]
            for searcher, row in others:
                ahead = row["ours_ahead"][unit]
                cells = [
                    f"{each:+.1f} ({low:+.1f} to {high:+.1f})"
                    for each, low, high in zip(
                        ahead["points"], ahead["low"], ahead["high"], strict=True
                    )
                ]
                lines.append(f"| {searcher} | {' | '.join(cells)} |")
            lines.append("")
        views = ["linear", *_parts(told)]
        lines += [
            "By epochs, with costs on a linear scale, and of a part of the networks alone:",
            "",
            f"| | {' | '.join(f'{view}, {head}' for view in views for head in heads[:3])} |",
            "|---|" + "---:|" * (3 * len(views)),
        ]
        for searcher, row in told["searchers"].items():
            cells = [
                f"{100 * each:.1f}"
                for view in views
                for each in row[f"epochs, {view}"]["median"][:3]
            ]
            lines.append(f"| {searcher} | {' | '.join(cells)} |")
        picture = _file(name)
        lines += ["", f"![hypervolume along the way]({picture})"]
    return "\n".join(lines) + "\n"


def _parts(told: Mapping[str, Any]) -> list[str]:
    row = next(iter(told["searchers"].values()))
    views = [key.partition(", ")[2] for key in row if key.startswith("epochs, ")]
    return [view for view in views if view != "linear"]


def _file(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name) + ".svg"


def draw(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Attainment along the budget, median and quartiles, a picture a table, by file name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = {}
    for name, told in document.items():
        ranked = sorted(
            told["searchers"], key=lambda each: -sum(told["searchers"][each]["epochs"]["median"])
        )
        chosen = [each for each in ranked if each == OURS] + [r for r in ranked if r != OURS]
        with plt.rc_context({"svg.hashsalt": "levit-search", "svg.fonttype": "none"}):
            figure, places = plt.subplots(
                1, 2, figsize=(11, 4.5), layout="constrained", sharey=True
            )
            for axes, unit in zip(places, _UNITS, strict=True):
                for place, searcher in enumerate(chosen[:_SHOWN]):
                    curve = told["searchers"][searcher][unit]["curve"]
                    color = f"C{place}"
                    axes.plot(
                        100 * _CURVE,
                        100 * np.array(curve["median"]),
                        color=color,
                        linewidth=2.5 if searcher == OURS else 1.2,
                        label=searcher,
                    )
                    low, high = (100 * np.array(curve[each]) for each in ("low", "high"))
                    axes.fill_between(100 * _CURVE, low, high, color=color, alpha=0.12)
                axes.set_xlabel(f"% of the budget in {unit}")
                axes.set_ylim(60, 100.5)
                axes.grid(alpha=0.3)
            places[0].set_ylabel("hypervolume, % of all networks'")
            places[1].legend(frameon=False, fontsize=8, loc="lower right")
            figure.suptitle(name)
            file = io.BytesIO()
            figure.savefig(file, format="svg", metadata={"Date": None})
            plt.close(figure)
        found[_file(name)] = file.getvalue()
    return found
