"""Dominance, front, hypervolume and knee; numpy only.

Points are rows of minimised numbers, [points, objectives]. :func:`minimised` is the one place where
named objectives become such rows.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Objective = Literal[
    "top1_percent",
    "latency_ms",
    "latency_median_ms",
    "latency_p95_ms",
    "peak_memory_mb",
    "flops",
    "params",
    "activations",
]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
PROBED: tuple[Objective, ...] = (
    "latency_ms",
    "latency_median_ms",
    "latency_p95_ms",
    "peak_memory_mb",
)
"""Those that a probe measures."""

# Beyond what any candidate is worth considering for, so that hypervolumes of studies compare.
FIXED_REFERENCE: dict[Objective, float] = {
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


def is_maximised(objective: Objective) -> bool:
    """Accuracy is better when higher; every cost when lower."""
    return objective == "top1_percent"


def minimised(rows: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> Points:
    """Named values as points: the error as a share, and costs on a decimal log scale."""
    return np.array(
        [
            [
                1 - row[name] / 100 if is_maximised(name) else np.log10(row[name])
                for name in objectives
            ]
            for row in rows
        ],
        dtype=np.float64,
    ).reshape(len(rows), len(objectives))


def non_dominated(points: Points) -> NDArray[np.bool_]:
    """Which points no other point is as good as in all objectives and better in one.

    Of equal points all are kept.

    Args:
        points: [points, objectives], smaller is better.

    Returns:
        A mask [points].
    """
    no_worse = (points[:, None] <= points[None]).all(axis=2)
    better = (points[:, None] < points[None]).any(axis=2)
    return np.asarray(~(no_worse & better).any(axis=0))


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
    ends = np.append(inside[1:, -1], reference[-1])
    volume = 0.0
    for index, end in enumerate(ends):
        height = end - inside[index, -1]
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
