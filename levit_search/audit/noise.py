"""What seeds and timings leave open: each network's chance to belong on the front.

Points are those of :func:`levit_search.pareto.minimised`, in which all noise adds up: an accuracy's
as a share, a latency's relative error as that of its decimal logarithm.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from levit_search.pareto import (
    PROBED,
    Objective,
    Points,
    figure_and_target,
    is_maximised,
    non_dominated,
)
from levit_search.study import Record

DRAWS = 4000

# Two passes over the same networks, minutes apart, differ by 1.1 % in the median (README, "How well
# it repeats"), which is so much of a standard deviation of each. An interval within one pass may be
# narrower, but tells nothing of the next pass.
REPEATS_WITHIN = 0.011 / (0.6745 * math.sqrt(2))
# What predictions are off by where none of the study's was measured: 2.5 % in the mean (README).
_PREDICTED_WITHIN = 0.025 * math.sqrt(math.pi / 2)

_NOT_TIMES = ("peak_memory_mb",)
_BEYOND_DOUBT = 3.0  # standard deviations


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """The standard deviation within groups that have one in common.

    Args:
        groups: one network's figures with different seeds each; of single ones nothing is learned.

    Returns:
        It, or None where it is unknown, and its degrees of freedom.
    """
    freedom = sum(len(group) - 1 for group in groups if group)
    if not freedom:
        return None, 0
    squares = sum(float(((g := np.array(group)) - g.mean()) @ (g - g.mean())) for group in groups)
    return math.sqrt(squares / freedom), freedom


def latency_sd(
    record: Record, target: str | None = None, errors_percent: Sequence[float] = ()
) -> float:
    """The relative standard deviation of a network's measured or predicted latency.

    Args:
        record: with its ``evaluation``; the half-width of a ratio's 95 % interval is 1.96 of it.
        target: a further one, or None for the study's own.
        errors_percent: those of the study's predictions that were measured later.
    """
    evaluation = record.evaluation
    latency = evaluation.get("latency") if target is None else evaluation["targets"][target]
    latency = latency or {}
    if latency.get("method") == "predicted":
        if len(errors_percent) > 1:
            ratios = np.log1p(np.array(errors_percent) / 100)
            return max(REPEATS_WITHIN, float(np.sqrt(np.mean(ratios**2))))
        return _PREDICTED_WITHIN
    if "ratio_ci95" not in latency:
        return REPEATS_WITHIN
    low, high = latency["ratio_ci95"]
    return max(REPEATS_WITHIN, math.log(high / low) / (2 * 1.96))


def spreads(
    records: Sequence[Record],
    accuracy_sds_percent: Sequence[float] | NDArray[np.float64],
    objectives: Sequence[Objective],
    errors_percent: Sequence[float] = (),
) -> Points:
    """Standard deviations as minimised numbers, [records, objectives].

    Costs in closed form have none, and a peak of memory is taken as exact.
    """
    columns = np.zeros((len(records), len(objectives)))
    for column, name in enumerate(objectives):
        if is_maximised(name):
            columns[:, column] = np.array(accuracy_sds_percent) / 100
        elif _is_time(name):
            _, target = figure_and_target(name)
            relative = [latency_sd(record, target, errors_percent) for record in records]
            columns[:, column] = np.array(relative) / math.log(10)
    return columns


def _is_time(name: Objective) -> bool:
    figure, _ = figure_and_target(name)
    return figure in PROBED and figure not in _NOT_TIMES


def could_belong(points: Points, sds: Points, members: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask of the members and of others that no member dominates beyond doubt, [points]."""
    best, worst = points - _BEYOND_DOUBT * sds, points + _BEYOND_DOUBT * sds
    doubtful = members.copy()
    for index in np.flatnonzero(~members):
        no_worse = (worst[members] <= best[index]).all(axis=1)
        better = (worst[members] < best[index]).any(axis=1)
        doubtful[index] = not (no_worse & better).any()
    return doubtful


def chances(
    points: Points,
    sds: Points,
    objectives: Sequence[Objective],
    chance: np.random.Generator,
    accuracies_percent: NDArray[np.float64] | None = None,
    draws: int = DRAWS,
) -> NDArray[np.float64]:
    """Each point's chance to be non-dominated among all, if each is known as well as it is.

    A true value is normal around the known one, except for accuracies that are given. A network's
    times on one target are off together, and different networks independently.

    Args:
        points: [points, objectives], means over what was measured.
        sds: of these means.
        objectives: by column.
        chance: where randomness comes from.
        accuracies_percent: what true accuracies may be, [draws, points].
        draws: how many.

    Returns:
        Chances from 0 to 1, [points].
    """
    times: dict[str | None, list[int]] = {}
    for column, name in enumerate(objectives):
        if _is_time(name):
            times.setdefault(figure_and_target(name)[1], []).append(column)
    accuracy = [column for column, name in enumerate(objectives) if is_maximised(name)]
    wins = np.zeros(len(points))
    for index in range(draws):
        noise = chance.standard_normal(points.shape)
        for columns in times.values():
            noise[:, columns] = noise[:, columns[:1]]
        drawn = points + sds * noise
        if accuracies_percent is not None:
            drawn[:, accuracy] = 1 - accuracies_percent[index][:, None] / 100
        wins += non_dominated(drawn)
    return wins / draws


def binomial_error_percent(percent: float, images: int) -> float:
    """The standard error of an accuracy that was counted on so many images, in points."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)
