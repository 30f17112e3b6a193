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
    "top1_int8_percent",
    "latency_ms",
    "latency_int8_ms",
    "latency_median_ms",
    "latency_p95_ms",
    "peak_memory_mb",
    "model_bytes",
    "flops",
    "params",
    "activations",
]
"""What can be known of a network and serve as an objective."""

Objective = str
"""A figure's name, or ``FIGURE@TARGET``, that figure as measured on a further target."""

OBJECTIVES: tuple[Figure, ...] = get_args(Figure)
ACCURACIES: tuple[Figure, ...] = ("top1_percent", "top1_int8_percent")
PAIRED: tuple[Figure, ...] = ("latency_ms", "latency_int8_ms")
"""Latencies that are measured in pairs with a reference; they can be predicted, too."""
IN_INT8: tuple[Figure, ...] = ("top1_int8_percent", "latency_int8_ms")
"""Figures of networks in int8, whatever precision latencies are measured in otherwise."""
PROBED: tuple[Figure, ...] = (
    *PAIRED,
    "latency_median_ms",
    "latency_p95_ms",
    "peak_memory_mb",
)
"""Those that a probe measures."""

_BEYOND = 1.1  # of the worst: a network that is no better in anything is worth nothing

Points = NDArray[np.float64]


def figure_and_target(objective: Objective) -> tuple[Figure, str | None]:
    """What an objective's name is made of; the target is None where it names none."""
    figure, separator, target = objective.partition("@")
    return cast(Figure, figure), target if separator else None


def on_target(figure: str, target: str | None) -> Objective:
    """The name of a figure as measured on a further target, or with None on the study's own."""
    return figure if target is None else f"{figure}@{target}"


def is_time(objective: Objective) -> bool:
    """Whether it is a latency, as a probe measures it on whichever target."""
    figure, _ = figure_and_target(objective)
    return figure in PROBED and figure != "peak_memory_mb"


def is_maximised(objective: Objective) -> bool:
    """Accuracy is better when higher; every cost when lower."""
    return objective in ACCURACIES


def accuracy_of(objectives: Sequence[Objective]) -> Objective | None:
    """The accuracy by which networks are judged where one is enough: the first of the objectives
    that is one."""
    return next(filter(is_maximised, objectives), None)


def minimised(rows: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> Points:
    """Named values as points: the error as a share, and costs on a decimal log scale."""
    values = [[row[name] for name in objectives] for row in rows]
    points = np.array(values, dtype=np.float64).reshape(len(rows), len(objectives))
    for column, name in enumerate(objectives):
        given = points[:, column]
        points[:, column] = 1 - given / 100 if is_maximised(name) else np.log10(given)
    return points


def reference_values(
    objectives: Sequence[Objective],
    given: Mapping[Objective, float],
    limits: Mapping[str, float | None],
    guess_percent: float,
    worst: Mapping[Objective, float],
) -> dict[Objective, float]:
    """The reference of a study, from which hypervolumes and the knee are measured.

    It is what a study has without a search: of each objective the value that is ``given``, else the
    limit, else for an accuracy that of guessing and for a cost a tenth beyond the ``worst``.

    Args:
        objectives: of the study.
        given: by the user, by objective.
        limits: upper bounds by figure, None where there is none; they are on no further target.
        guess_percent: the accuracy of always answering the largest class.
        worst: by cost, the largest of a fixed sample of the study's feasible networks, or what was
            measured of the one of them with the most FLOPs.
    """
    bounds = {name: limit for name, limit in limits.items() if limit is not None}
    known = {**bounds, **given}
    for name in objectives:
        if name not in known:
            known[name] = guess_percent if is_maximised(name) else _BEYOND * worst[name]
    return {name: float(known[name]) for name in objectives}


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
    distinct, places = np.unique(points, axis=0, return_inverse=True)
    return distinct, places.reshape(-1)  # its shape differs between versions of numpy


def hypervolume(points: Points, reference: NDArray[np.float64]) -> float:
    """The volume that ``points`` dominate below ``reference``; larger is better.

    Slices along the last objective and recurses (Zitzler's hypervolume by slicing objectives),
    which is exact and quick for the few objectives and small fronts of a search.

    Args:
        points: [points, objectives], smaller is better; those beyond ``reference`` count nothing.
        reference: [objectives]; see :func:`reference_values`.
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


def knee(points: Points, reference: Points) -> int:
    """The index of the point with the largest product of gains below ``reference``.

    This is Nash's solution of a bargain between the objectives ("The Bargaining Problem",
    Econometrica 18, 1950), who get the reference where they do not agree. Units do not matter to
    it, nor which other points there are: one that joins is the knee itself, or moves nothing.
    Where no point is below the reference in all objectives, it is the one that is beyond it least.

    Args:
        points: [points, objectives], smaller is better.
        reference: [objectives]; see :func:`reference_values`.
    """
    gains = reference - points
    worth = np.where((gains > 0).all(axis=1), gains.prod(axis=1), gains.min(axis=1))
    return int(np.argmax(worth))
