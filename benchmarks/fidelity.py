"""What learning curves say about rankings by short schedules: agreement, seed noise, fronts.

Accuracies are in percent; a schedule's truth is the accuracy after the longest one. A predictor is
``epoch 3 of 9`` (a rung of the longest schedule), ``3 epochs`` (a schedule of its own), or a cost.
"""

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from levit_search.errors import InputError
from levit_search.pareto import hypervolume, minimised, non_dominated, reference_values

Floats = NDArray[np.float64]
Values = Mapping[str, float]
"""One figure for each network."""

RUNGS = (1, 3)
_RESAMPLES = 1000
_GUESS_PERCENT = 10.0  # of ten classes of equal size
_OBJECTIVES = ("top1_percent", "flops")


@dataclass(frozen=True)
class Curves:
    """What is known of the networks."""

    by_run: dict[tuple[str, int, int], list[float]]
    """Accuracies by epoch, by (network, seed, epochs of the schedule)."""
    costs: dict[str, dict[str, float]]
    """``params`` and ``flops`` by network."""

    @property
    def longest(self) -> int:
        return max(epochs for _, _, epochs in self.by_run)

    def after(self, epoch: int, schedule: int, seed: int) -> dict[str, float]:
        """By network, the accuracy after ``epoch`` epochs of ``schedule``."""
        return {
            network: curve[epoch - 1]
            for (network, s, epochs), curve in self.by_run.items()
            if (s, epochs) == (seed, schedule)
        }

    def cost(self, name: str) -> dict[str, float]:
        return {network: costs[name] for network, costs in self.costs.items()}


def read_curves(path: Path) -> Curves:
    """The curves in a CSV of one row an epoch.

    Raises:
        InputError: there is none, or no network trained by the longest schedule with seed 0.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; train first")
    by_run: dict[tuple[str, int, int], list[float]] = {}
    costs: dict[str, dict[str, float]] = {}
    with path.open(newline="") as text:
        for row in csv.DictReader(text):
            key = row["network"], int(row["seed"]), int(row["schedule_epochs"])
            curve = by_run.setdefault(key, [])
            assert int(row["epoch"]) == len(curve) + 1, f"{path}: epochs of {key} out of order"
            curve.append(float(row["val_top1_percent"]))
            costs[row["network"]] = {name: float(row[name]) for name in ("params", "flops")}
    curves = Curves(by_run, costs)
    if not by_run or len(curves.after(1, curves.longest, 0)) < 3:
        raise InputError(f"{path}: fewer than three networks, nothing to rank")
    return curves


def report(curves: Curves) -> dict[str, Any]:
    """All figures, as JSON holds them."""
    longest = curves.longest
    truth = curves.after(longest, longest, 0)
    predictors = predictors_of(curves, seed=0)
    return {
        "longest": longest,
        "networks": len(truth),
        "accuracy": summary(list(truth.values())),
        "agreement": {name: agreement(values, truth) for name, values in predictors.items()},
        "tau_by_epoch": [
            agreement(curves.after(epoch, longest, 0), truth) for epoch in range(1, longest)
        ],
        "differences": differences(predictors, truth),
        "noise": noise(curves),
        "fronts": {
            name: with_epochs(name, front_worth(values, truth, curves.cost("flops")), longest)
            for name, values in predictors.items()
            if name != "FLOPs"  # which is the other objective
        },
        "fronts_across_seeds": fronts_across_seeds(curves),
    }


def summary(accuracies: Sequence[float]) -> dict[str, float]:
    return {
        "lowest": min(accuracies),
        "median": float(np.median(accuracies)),
        "highest": max(accuracies),
        "sd": float(np.std(accuracies, ddof=1)),
    }


def predictors_of(curves: Curves, seed: int) -> dict[str, dict[str, float]]:
    """What a ranking may be taken from, by name; those of which nothing is known are left out."""
    longest = curves.longest
    rungs = [rung for rung in RUNGS if rung < longest]
    found = {f"epoch {rung} of {longest}": curves.after(rung, longest, seed) for rung in rungs}
    found |= {plural(rung): curves.after(rung, rung, seed) for rung in rungs}
    found |= {"params": curves.cost("params"), "FLOPs": curves.cost("flops")}
    return {name: values for name, values in found.items() if len(values) > 2}


def plural(epochs: int) -> str:
    return f"{epochs} epoch{'s' if epochs > 1 else ''}"


def epochs_of(predictor: str) -> int:
    """How long each network is trained for it."""
    words = predictor.split()
    if words[0] == "epoch":
        return int(words[1])
    return int(words[0]) if words[0].isdigit() else 0


# --- agreement


def paired(a: Values, b: Values) -> tuple[Floats, Floats]:
    """The figures of the networks that both know, in one order."""
    common = sorted(a.keys() & b.keys())
    return np.array([a[n] for n in common]), np.array([b[n] for n in common])


def tau(a: Floats, b: Floats) -> float:
    """Kendall's tau (b)."""
    return float(taus(a, b, np.arange(len(a))[None])[0])


def taus(a: Floats, b: Floats, rows: Any) -> Floats:
    """Kendall's tau of each of the samples ``rows``, [samples, drawn]; NaN where all are equal."""
    order_a, order_b = (np.sign(each[:, None] - each[None]) for each in (a, b))
    found = np.full(len(rows), np.nan)
    for index, drawn in enumerate(rows):
        sample_a, sample_b = (order[np.ix_(drawn, drawn)] for order in (order_a, order_b))
        pairs = np.sqrt(np.abs(sample_a).sum() * np.abs(sample_b).sum())
        if pairs:
            found[index] = (sample_a * sample_b).sum() / pairs
    return found


def rhos(a: Floats, b: Floats, rows: Any) -> Floats:
    """Spearman's rho of each of the samples ``rows``, [samples, drawn]; NaN where all are equal."""
    ranks = [rankdata(each[rows], axis=1) for each in (a, b)]
    away_a, away_b = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    size = np.sqrt((away_a**2).sum(axis=1) * (away_b**2).sum(axis=1))
    size[size == 0] = np.nan
    found: Floats = (away_a * away_b).sum(axis=1) / size
    return found


def agreement(predicted: Values, truth: Values) -> dict[str, float]:
    """Kendall's tau (b) and Spearman's rho with their 95 % bootstrap intervals over networks."""
    a, b = paired(predicted, truth)
    found: dict[str, float] = {"networks": len(a)}
    for name, statistic in (("tau", taus), ("rho", rhos)):
        found[name] = float(statistic(a, b, np.arange(len(a))[None])[0])
        drawn = statistic(a, b, _resamples(len(a)))
        found[f"{name}_low"], found[f"{name}_high"] = _interval(drawn)
    return found


def differences(predictors: Mapping[str, Values], truth: Values) -> list[dict[str, Any]]:
    """How much larger the tau of one predictor is than another's, on the same networks.

    A schedule of its own beside the rung after as many epochs, and every schedule beside the better
    one of the costs.
    """
    trained = [name for name in predictors if epochs_of(name)]
    pairs = [
        (own, rung)
        for own, rung in itertools.product(trained, trained)
        if own[0].isdigit() and rung.startswith("epoch") and epochs_of(own) == epochs_of(rung)
    ]
    cost = max(("params", "FLOPs"), key=lambda name: tau(*paired(predictors[name], truth)))
    pairs += [(name, cost) for name in trained]
    return [{"of": a, "to": b, **difference(predictors[a], predictors[b], truth)} for a, b in pairs]


def difference(first: Values, second: Values, truth: Values) -> dict[str, float]:
    """The tau of ``first`` less that of ``second``, with a 95 % interval."""
    common = sorted(first.keys() & second.keys() & truth.keys())
    a, b, t = (np.array([values[n] for n in common]) for values in (first, second, truth))
    rows = _resamples(len(common))
    low, high = _interval(taus(a, t, rows) - taus(b, t, rows))
    return {"tau": tau(a, t) - tau(b, t), "tau_low": low, "tau_high": high}


def _resamples(count: int) -> Any:
    return np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))


def _interval(drawn: Floats) -> tuple[float, float]:
    # A resample of equal figures has no ranking.
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return float(low), float(high)


# --- seeds


def noise(curves: Curves) -> dict[str, Any] | None:
    """What another seed changes, over the networks trained with several; None where none was.

    ``sd`` is the standard deviation over seeds by epoch, pooled over networks; ``tau`` the mean
    over pairs of seeds, and ``other_seed`` each rung's and schedule's with the truth of its own
    seed and of another.
    """
    longest = curves.longest
    seeds, networks = several(curves)
    if len(seeds) < 2 or len(networks) < 3:
        return None
    # [networks, seeds, epochs]
    points = np.array([[curves.by_run[n, s, longest] for s in seeds] for n in networks])
    final = points[:, :, -1]
    pairs = list(itertools.combinations(range(len(seeds)), 2))

    rows = _resamples(len(networks))
    of_pairs = [tau(final[:, a], final[:, b]) for a, b in pairs]
    low, high = _interval(np.mean([taus(final[:, a], final[:, b], rows) for a, b in pairs], axis=0))
    return {
        "networks": len(networks),
        "seeds": seeds,
        "sd": np.sqrt(points.var(axis=1, ddof=1).mean(axis=0)).tolist(),
        "sd_between_networks": float(final.mean(axis=1).std(ddof=1)),
        "tau": float(np.mean(of_pairs)),
        "tau_low": low,
        "tau_high": high,
        "tau_of_pairs": of_pairs,
        "other_seed": other_seeds(curves, seeds, networks),
    }


def several(curves: Curves) -> tuple[list[int], list[str]]:
    """The seeds, and the networks trained by the longest schedule with every one of them."""
    longest = curves.longest
    seeds = sorted({seed for _, seed, epochs in curves.by_run if epochs == longest})
    # A seed that has only been begun would leave nothing to compare.
    seeds = [seed for seed in seeds if len(curves.after(longest, longest, seed)) > 2]
    networks = [
        n
        for n in sorted(curves.costs)
        if all((n, seed, longest) in curves.by_run for seed in seeds)
    ]
    return seeds, networks


def other_seeds(
    curves: Curves, seeds: Sequence[int], networks: Sequence[str]
) -> dict[str, dict[str, float]]:
    """By predictor, the mean tau with the truth of its own seed, and with that of the others."""
    longest = curves.longest
    truth = {seed: _only(networks, curves.after(longest, longest, seed)) for seed in seeds}
    found: dict[str, dict[str, list[float]]] = {}
    for seed, other in itertools.product(seeds, seeds):
        for name, values in predictors_of(curves, seed).items():
            if epochs_of(name):
                here = found.setdefault(name, {"same": [], "other": []})
                a, b = paired(_only(networks, values), truth[other])
                if len(a) > 2:
                    here["same" if seed == other else "other"].append(tau(a, b))
    return {
        name: {kind: float(np.mean(each)) for kind, each in kinds.items()}
        for name, kinds in found.items()
        if all(kinds.values())
    }


def _only(networks: Sequence[str], values: Values) -> dict[str, float]:
    return {n: values[n] for n in networks if n in values}


# --- fronts


def front_worth(predicted: Values, truth: Values, flops: Values) -> dict[str, float]:
    """What a front by (``predicted``, FLOPs) is worth once its members are trained to the end.

    ``hypervolume_share`` is what its members' true accuracies hold of the true front's hypervolume,
    as a study of all networks has it (docs/search.md#hypervolume).
    ``recall`` is the share of the true front's members in it, ``regret_points`` the mean over the
    true front's members of how much less accurate its best member of no more FLOPs is.
    """
    networks = sorted(predicted.keys() & truth.keys())
    prices = np.array([flops[n] for n in networks])
    accuracies = np.array([truth[n] for n in networks])
    found = front(np.array([predicted[n] for n in networks]), prices)
    true = front(accuracies, prices)
    rows = [{"top1_percent": a, "flops": f} for a, f in zip(accuracies, prices, strict=True)]
    points = minimised(rows, _OBJECTIVES)
    worst = {"flops": max(flops.values())}
    (reference,) = minimised(
        [reference_values(_OBJECTIVES, {}, {}, _GUESS_PERCENT, worst)], _OBJECTIVES
    )
    regrets = [
        accuracies[i] - accuracies[found & (prices <= prices[i])].max()
        for i in np.flatnonzero(true)
    ]
    return {
        "networks": len(networks),
        "members": int(found.sum()),
        "true_members": int(true.sum()),
        "hypervolume_share": hypervolume(points[found], reference)
        / hypervolume(points[true], reference),
        "recall": float((found & true).sum() / true.sum()),
        "regret_points": float(np.mean(regrets)),
        "worst_regret_points": float(np.max(regrets)),
    }


def with_epochs(name: str, worth: Mapping[str, float], longest: int) -> dict[str, float]:
    """``worth`` with ``epochs_share``: what the front costs of training every network in full.

    Its members are trained in full too; those of a rung go on from there.
    """
    epochs, members = epochs_of(name), worth["members"] / worth["networks"]
    left = longest - epochs if name.startswith("epoch") else longest
    share = (epochs + members * (0 if epochs == longest else left)) / longest
    return {**worth, "epochs_share": share}


def front(worth: Floats, prices: Floats) -> NDArray[np.bool_]:
    """Which networks no cheaper one is as good as."""
    return non_dominated(np.column_stack([-worth, prices]))


def fronts_across_seeds(curves: Curves) -> dict[str, dict[str, float]]:
    """:func:`front_worth` where front and truth are of different seeds: means over ordered pairs.

    The longest schedule is there too: what a front loses by seed noise alone.
    """
    longest = curves.longest
    seeds, networks = several(curves)
    if len(networks) < 3:
        return {}
    flops = curves.cost("flops")
    found: dict[str, list[dict[str, float]]] = {}
    for seed, other in itertools.permutations(seeds, 2):
        truth = _only(networks, curves.after(longest, longest, other))
        predictors = {
            **{n: v for n, v in predictors_of(curves, seed).items() if epochs_of(n)},
            plural(longest): curves.after(longest, longest, seed),
        }
        for name, values in predictors.items():
            known = _only(networks, values)
            if len(known) == len(networks):
                worth = with_epochs(name, front_worth(known, truth, flops), longest)
                found.setdefault(name, []).append(worth)
    return {
        name: {key: float(np.mean([worth[key] for worth in worths])) for key in worths[0]}
        for name, worths in found.items()
    }
