"""Dominance, fronts, hypervolume and knee; numpy only.

Points are rows of minimised numbers, [points, objectives], none of them NaN. :func:`minimised` is
the one place where named objectives become such rows.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

Figure = Literal[
    "top1_percent",
    "latency_ms",
    "latency_median_ms",
    "latency_p95_ms",
    "peak_memory_mb",
    "flops",
    "params",
    "activations",
]
"""What can be known of a network and serve as an objective."""

Objective = str
"""A figure's name, or ``FIGURE@TARGET``, that figure as measured on a further target."""

OBJECTIVES: tuple[Figure, ...] = get_args(Figure)
PROBED: tuple[Figure, ...] = (
    "latency_ms",
    "latency_median_ms",
    "latency_p95_ms",
    "peak_memory_mb",
)
"""Those that a probe measures."""

# Beyond what any candidate is worth considering for, so that hypervolumes of studies compare.
FIXED_REFERENCE: dict[Figure, float] = {
    "top1_percent": 0.0,
    "latency_ms": 1e3,
    "latency_median_ms": 1e3,
    "latency_p95_ms": 1e3,
    "peak_memory_mb": 1e5,
    "flops": 1e11,
    "params": 1e9,
    "activations": 1e9,
}

Points = NDArray[np.float64]


def figure_and_target(objective: Objective) -> tuple[Figure, str | None]:
    """What an objective's name is made of; the target is None where it names none."""
    figure, separator, target = objective.partition("@")
    return cast(Figure, figure), target if separator else None


def is_maximised(objective: Objective) -> bool:
    """Accuracy is better when higher; every cost when lower."""
    return objective == "top1_percent"


def minimised(rows: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> Points:
    """Named values as points: the error as a share, and costs on a decimal log scale."""
    values = [[row[name] for name in objectives] for row in rows]
    points = np.array(values, dtype=np.float64).reshape(len(rows), len(objectives))
    for column, name in enumerate(objectives):
        given = points[:, column]
        points[:, column] = 1 - given / 100 if is_maximised(name) else np.log10(given)
    return points


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """Which points no other point is as good as in all objectives and better in one.

    Of equal points all are kept.

    Args:
        points: [points, objectives], smaller is better.

    Returns:
        A mask [points].
    """
    distinct, places = _in_order(points)
    dominated = np.zeros(len(distinct), dtype=np.bool_)
    if points.shape[1] <= 2:
        lowest = np.minimum.accumulate(distinct[:, -1])
        dominated[1:] = distinct[1:, -1] >= lowest[:-1]
        return ~dominated[places]
    columns = np.ascontiguousarray(distinct.T)
    for index in range(len(distinct)):
        if not dominated[index]:
            later, this = columns[:, index + 1 :], columns[:, index : index + 1]
            dominated[index + 1 :] |= (this <= later).all(axis=0)
    return ~dominated[places]


def non_dominated_ranks(points: Points) -> NDArray[np.int_]:
    """Which front each point lies on: 0 is the front, 1 that of the others, and so forth.

    Args:
        points: [points, objectives], smaller is better.

    Returns:
        Ranks [points].
    """
    distinct, places = _in_order(points)
    ranks = np.zeros(len(distinct), dtype=np.int_)
    if points.shape[1] <= 2:
        lowest: list[float] = []  # of each front so far, in the last objective; ascending
        for index, value in enumerate(distinct[:, -1].tolist()):
            rank = ranks[index] = bisect_right(lowest, value)
            lowest[rank : rank + 1] = [value]
        return ranks[places]
    columns = np.ascontiguousarray(distinct.T[1:])  # in the first one earlier points are no worse
    for index in range(len(distinct)):
        above = (columns[:, :index] <= columns[:, index : index + 1]).all(axis=0)
        ranks[index] = ranks[:index][above].max(initial=-1) + 1
    return ranks[places]


def _in_order(points: Points) -> tuple[Points, NDArray[np.int_]]:
    """The distinct points in lexicographic order, in which each is dominated by earlier ones only,
    and where among them every point stands."""
    order = np.lexsort(points.T[::-1])
    arranged = points[order]
    is_new = np.ones(len(points), dtype=np.bool_)
    is_new[1:] = (arranged[1:] != arranged[:-1]).any(axis=1)
    places = np.empty(len(points), dtype=np.int_)
    places[order] = np.cumsum(is_new) - 1
    return arranged[is_new], places


def hypervolume(points: Points, reference: NDArray[np.float64]) -> float:
    """The volume that ``points`` dominate below ``reference``; larger is better.

    Slices along the last objective and recurses (Zitzler's hypervolume by slicing objectives),
    which is exact and quick for the few objectives and small fronts of a search.

    Args:
        points: [points, objectives], smaller is better; those beyond ``reference`` count nothing.
        reference: [objectives].
    """
    inside = points[(points < reference).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    if inside.shape[1] == 1:
        return float(reference[0] - inside[:, 0].min())
    inside = inside[non_dominated(inside)]
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    heights = np.append(inside[1:, -1], reference[-1]) - inside[:, -1]
    if inside.shape[1] == 2:
        return float(heights @ (reference[0] - inside[:, 0]))
    volume = 0.0
    for index, height in enumerate(heights):
        if height > 0:
            volume += height * hypervolume(inside[: index + 1, :-1], reference[:-1])
    return float(volume)


def knee(points: Points) -> int:
    """The index of the point that is closest to the best of everything.

    Objectives are scaled to the range that the points span; the knee has the smallest distance to
    the corner where each objective has its best value.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    return int(np.argmin(np.linalg.norm(scaled, axis=1)))
