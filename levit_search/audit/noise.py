"""What seeds and timings leave open: each network's chance to belong on the front.

Points are those of :func:`levit_search.pareto.minimised`, in which all noise adds up: an accuracy's
as a share, a latency's relative error as that of its decimal logarithm.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from levit_search.latency.protocol import PLAIN_TIME_SDS, repeat_sd
from levit_search.pareto import (
    Figure,
    Objective,
    Points,
    figure_and_target,
    is_maximised,
    is_time,
    non_dominated,
)
from levit_search.study import Record

DRAWS = 4000

# What predictions are off by where none of the study's was measured: 2.5 % in the mean
# (docs/device.md).
_PREDICTED_WITHIN = 0.025 * math.sqrt(math.pi / 2)
# Single runs' own times are what the machine does in these seconds, which no reference cancels:
# which figure of a measurement tells their spread over its rounds, in percent, and the least it is.
_PLAIN_TIMES: dict[Figure, tuple[str, float]] = {
    "latency_median_ms": ("median_sd_percent", PLAIN_TIME_SDS["latency_median_ms"]),
    "latency_p95_ms": ("p95_sd_percent", PLAIN_TIME_SDS["latency_p95_ms"]),
}

BEYOND_DOUBT = 3.0  # standard deviations
_Z95 = 1.96


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


def student_factor(freedom: int, deviations: float = _Z95) -> float:
    """How many times as many estimated standard deviations leave out what known ones do (Student).

    Args:
        freedom: degrees of freedom of the estimate.
        deviations: how many known ones; by default those that leave out 5 %.
    """
    from scipy.stats import norm, t

    return float(t.isf(norm.sf(deviations), freedom) / deviations)


def latency_sd(
    record: Record, objective: Objective = "latency_ms", errors_percent: Sequence[float] = ()
) -> float:
    """The relative standard deviation of a network's measured or predicted time.

    It is no less than measurements minutes apart differ by: an interval of an earlier release may
    be narrower, but tells nothing of the next. That of few replicates is as wide as Student's
    quantiles ask for.

    Args:
        record: with its ``evaluation``.
        objective: a time, of the study's own target or a further one.
        errors_percent: those of the study's predictions that were measured later.
    """
    figure, target = figure_and_target(objective)
    evaluation = record.evaluation
    latency = evaluation.get("latency") if target is None else evaluation["targets"][target]
    latency = latency or {}
    if figure in _PLAIN_TIMES:
        name, least = _PLAIN_TIMES[figure]
        percent = latency.get(name)  # measurements of earlier releases have none
        if percent is None or latency.get("rounds", 0) < 2:
            return least
        return max(least, float(percent) / 100 * student_factor(latency["rounds"] - 1))
    least = repeat_sd(record.values[objective])
    if latency.get("method") == "predicted":
        if len(errors_percent) > 1:
            ratios = np.log1p(np.array(errors_percent) / 100)
            wide = student_factor(len(ratios))
            return max(least, wide * float(np.sqrt(np.mean(ratios**2))))
        return max(least, _PREDICTED_WITHIN)
    if "ratio_ci95" not in latency:
        return least
    low, high = latency["ratio_ci95"]
    return max(least, math.log(high / low) / (2 * _Z95))


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
        elif is_time(name):
            relative = [latency_sd(record, name, errors_percent) for record in records]
            columns[:, column] = np.array(relative) / math.log(10)
    return columns


def could_belong(points: Points, sds: Points, members: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask of the members and of others that no member dominates beyond doubt, [points]."""
    best, worst = points - BEYOND_DOUBT * sds, points + BEYOND_DOUBT * sds
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
    rng: np.random.Generator,
    accuracies_percent: NDArray[np.float64] | None = None,
    draws: int = DRAWS,
) -> NDArray[np.float64]:
    """Each point's chance to be non-dominated among all, if each is known as well as it is.

    A true value is normal around the known one, except for accuracies that are given. A network's
    median and 95th percentile on one target are off together, and all else independently.

    Args:
        points: [points, objectives], means over what was measured.
        sds: of these means.
        objectives: by column.
        rng: where randomness comes from.
        accuracies_percent: what true accuracies may be, [draws, points].
        draws: how many.

    Returns:
        Chances from 0 to 1, [points].
    """
    runs: dict[str | None, list[int]] = {}
    for column, name in enumerate(objectives):
        figure, target = figure_and_target(name)
        if figure in _PLAIN_TIMES:
            runs.setdefault(target, []).append(column)
    accuracy = [column for column, name in enumerate(objectives) if is_maximised(name)]
    wins = np.zeros(len(points))
    for index in range(draws):
        noise = rng.standard_normal(points.shape)
        for columns in runs.values():
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
