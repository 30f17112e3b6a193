"""What trainings of a table's rows come to: means over seeds, differences, and which claims hold.

A row is trained with each learning rate by the first seed; the best on the validation split is its
own, and the other seeds use it. A difference is taken seed by seed, between trainings that saw the
same images in the same order; its interval of 95 % is Student's over the seeds.
"""

import statistics
from collections.abc import Mapping, Sequence
from math import inf, sqrt
from typing import Any, Literal, NamedTuple

from levit_search.reproduce import PaperTable, Run

Training = Mapping[str, Any]
"""Of one row: ``seed``, ``lr`` and either ``failed`` or the figures, the accuracies among them."""
Verdict = Literal["holds", "reversed", "cannot be told"]

_EARLY = _LATE = 1 / 3  # of the epochs


class Difference(NamedTuple):
    """How many points a figure is above another, and the 95 % interval of that."""

    points: float
    low: float
    high: float
    seeds: int

    def verdict(self, paper: float) -> Verdict:
        """Whether the sign is the paper's."""
        if self.low <= 0 <= self.high or not paper:
            return "cannot be told"
        return "holds" if (self.points > 0) == (paper > 0) else "reversed"


class Claim(NamedTuple):
    """A statement of the paper's, and by how many points it is true here."""

    text: str
    difference: Difference

    @property
    def verdict(self) -> Verdict:
        """Whether it holds."""
        return self.difference.verdict(1.0)


def trainings_of(run: Run, row: str) -> list[Training]:
    """All trainings of a row."""
    return list(run.rows.get(row, {}).get("trainings", ()))


def chosen_lr(trainings: Sequence[Training], lrs: Sequence[float], seed: int) -> float | None:
    """The learning rate that is best on the validation split by the first seed; None where one was
    not tried yet, or none led anywhere."""
    percents: dict[float, float] = {
        each["lr"]: each.get("val_top1_percent", -inf) for each in trainings if each["seed"] == seed
    }
    if not percents.keys() >= {*lrs}:
        return None
    best = max(lrs, key=lambda lr: percents[lr])
    return best if percents[best] > -inf else None


def by_seed(run: Run, row: str) -> dict[int, Training]:
    """The trainings of a row that count, those with its own learning rate."""
    trainings = trainings_of(run, row)
    lr = chosen_lr(trainings, run.settings["lrs"], run.settings["seed"])
    return {each["seed"]: each for each in trainings if each["lr"] == lr and "failed" not in each}


def summary(run: Run, row: str) -> dict[str, Any]:
    """The figures of a row over its seeds; empty where it has none yet."""
    known = by_seed(run, row)
    if not known:
        return {}
    found: dict[str, Any] = {"seeds": len(known), "lr": next(iter(known.values()))["lr"]}
    for name in ("test_top1_percent", "val_top1_percent", "training_seconds"):
        values = [each[name] for each in known.values()]
        found[name] = statistics.fmean(values)
        if name == "test_top1_percent" and len(values) > 1:
            found["test_top1_sd"] = statistics.stdev(values)
    return found


def difference(run: Run, row: str, base: str) -> Difference | None:
    """How much more accurate a row is on the test split than another; None without a seed of
    both."""
    first, second = by_seed(run, row), by_seed(run, base)
    return interval(
        [
            first[seed]["test_top1_percent"] - second[seed]["test_top1_percent"]
            for seed in first.keys() & second.keys()
        ]
    )


def interval(points: Sequence[float]) -> Difference | None:
    """The mean of differences with its interval; infinite for one of them, None for none."""
    if not points:
        return None
    mean = statistics.fmean(points)
    if len(points) == 1:
        return Difference(mean, -inf, inf, 1)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(points) - 1)) * statistics.stdev(points) / sqrt(len(points))
    return Difference(mean, mean - half, mean + half, len(points))


def claims(table: PaperTable, run: Run) -> list[Claim]:
    """What the paper says of Figure 3, beside curves of ours; nothing of other tables.

    Following is measured by the distance between curves on the validation split: how much nearer
    the grafts between the two ends are to one end than to the other, in the first and the last
    third of the epochs.
    """
    if table.name != "grafting":
        return []
    vit, *middle, resnet = (by_seed(run, row.name) for row in table.built)
    seeds = set(vit).intersection(resnet, *middle)

    def nearer(seed: int, part: slice, to: Mapping[int, Training], other: Any) -> float:
        """By how many points the grafts' curves are, on average."""
        ends = [_curve(each[seed])[part] for each in (to, other)]
        return statistics.fmean(
            abs(theirs - graft) - abs(own - graft)
            for curve in middle
            for own, theirs, graft in zip(*ends, _curve(curve[seed])[part], strict=True)
        )

    count = min((len(_curve(each)) for each in vit.values()), default=0)
    early, late = slice(0, max(1, int(count * _EARLY))), slice(-max(1, int(count * _LATE)), None)
    final = {
        seed: [each[seed]["test_top1_percent"] for each in (vit, *middle, resnet)] for seed in seeds
    }
    best = table.extra["base"]
    place = [row.name for row in table.built].index(best)
    stated = {
        "early, grafts follow the ResNet": [nearer(s, early, resnet, vit) for s in sorted(seeds)],
        "late, grafts follow the DeiT": [nearer(s, late, vit, resnet) for s in sorted(seeds)],
        f"in the end {best}, of the middle, is better than both ends": [
            each[place] - max(each[0], each[-1]) for each in final.values()
        ],
    }
    found = {text: interval(points) for text, points in stated.items()}
    return [Claim(text, each) for text, each in found.items() if each is not None]


def _curve(training: Training) -> list[float]:
    return [point["val_top1_percent"] for point in training["curve"]]
