import tracemalloc
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from levit_search.pareto import (
    Points,
    hypervolume,
    knee,
    minimised,
    non_dominated,
    non_dominated_ranks,
    reference_values,
)


def random_points(objectives: int, seed: int, count: int = 40) -> Points:
    """Points on a coarse grid, so that ties and duplicates are common."""
    chance = np.random.default_rng(seed)
    return chance.integers(0, 6, size=(count, objectives)).astype(np.float64)


def obvious_front(points: Points) -> list[bool]:
    return [
        not any((other <= point).all() and (other < point).any() for other in points)
        for point in points
    ]


def obvious_ranks(points: Points) -> list[int]:
    """The front is taken away again and again."""
    ranks = np.full(len(points), -1)
    left, rank = np.arange(len(points)), 0
    while len(left) > 0:
        mask = np.array(obvious_front(points[left]))
        ranks[left[mask]] = rank
        left, rank = left[~mask], rank + 1
    return ranks.tolist()


def obvious_hypervolume(points: Points, reference: Points) -> float:
    """By inclusion and exclusion of the boxes between each point and the reference."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in combinations(points, size):
            sides = np.clip(reference - np.max(chosen, axis=0), 0, None)
            total += (-1) ** (size + 1) * float(np.prod(sides))
    return total


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_front_is_that_of_the_obvious_loop(objectives: int, seed: int) -> None:
    points = random_points(objectives, seed)
    assert non_dominated(points).tolist() == obvious_front(points)


def test_equal_points_are_kept_together() -> None:
    points = np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [1.0, 3.0], [2.0, 2.0]])
    assert non_dominated(points).tolist() == [True, True, True, False, False]
    assert non_dominated_ranks(points).tolist() == [0, 0, 0, 1, 1]


def samples(objectives: int, seed: int) -> list[Points]:
    """Points with and without ties, few of them and many, with infinite ones, all on the front."""
    chance = np.random.default_rng(seed)
    spread = chance.random((60, objectives))
    ends = random_points(objectives, seed)
    ends[chance.random(ends.shape) < 0.1] = np.inf
    front = np.column_stack([-spread.sum(axis=1), spread])
    return [random_points(objectives, seed), spread, spread[:1], ends, front]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_ranks_are_those_of_fronts_taken_away_one_by_one(objectives: int, seed: int) -> None:
    for points in samples(objectives, seed):
        ranks = non_dominated_ranks(points)
        assert ranks.tolist() == obvious_ranks(points)
        assert non_dominated(points).tolist() == (ranks == 0).tolist()


def test_many_points_need_little_memory() -> None:
    spread = np.random.default_rng(0).random((5_000, 2))
    points = np.column_stack([-spread.sum(axis=1), spread])  # all of them on the front
    tracemalloc.start()
    try:
        assert non_dominated(points).all()
        assert (non_dominated_ranks(points) == 0).all()
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_no_points_have_an_empty_front_and_no_volume() -> None:
    for objectives in (1, 2, 3):
        none = np.empty((0, objectives))
        assert non_dominated(none).shape == (0,)
        assert non_dominated_ranks(none).shape == (0,)
    assert hypervolume(np.empty((0, 3)), np.ones(3)) == 0.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_hypervolume_is_that_of_inclusion_and_exclusion(objectives: int, seed: int) -> None:
    # A reference amid the points: some lie inside, some on its faces and some beyond.
    points = random_points(objectives, seed, count=9)
    reference = np.full(objectives, 5.0 - seed % 2)
    expected = obvious_hypervolume(points, reference)
    assert hypervolume(points, reference) == pytest.approx(expected)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_hypervolume_is_that_of_optuna(objectives: int) -> None:
    optuna_hypervolume = pytest.importorskip(
        "optuna._hypervolume", reason="this optuna keeps its hypervolume elsewhere"
    ).compute_hypervolume
    points = np.random.default_rng(objectives).random((30, objectives))
    reference = np.full(objectives, 0.9)
    inside = points[(points < reference).all(axis=1)]
    expected = optuna_hypervolume(inside, reference)
    assert hypervolume(points, reference) == pytest.approx(expected)


def test_points_beyond_the_reference_count_nothing() -> None:
    reference = np.array([1.0, 1.0, 1.0])
    inside = np.array([[0.5, 0.5, 0.5], [0.2, 0.8, 0.9]])
    beyond = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0], [3.0, 3.0, 3.0]])
    volume = hypervolume(inside, reference)
    assert volume == pytest.approx(0.125 + 0.8 * 0.2 * 0.1 - 0.5 * 0.2 * 0.1)
    assert hypervolume(np.concatenate([beyond, inside]), reference) == volume
    assert hypervolume(beyond, reference) == 0.0


def test_a_reference_is_what_is_given_or_a_limit_or_a_tenth_beyond_the_worst() -> None:
    objectives = ("top1_percent", "latency_ms", "latency_ms@phone", "flops", "params")
    found = reference_values(
        objectives,
        {"params": 5e6},
        {"latency_ms": 4.0, "flops": None, "params": 7e6},
        guess_percent=12.5,
        worst={"latency_ms": 1.0, "latency_ms@phone": 30.0, "flops": 2e8, "params": 1e6},
    )
    expected = {"top1_percent": 12.5, "latency_ms": 4.0, "latency_ms@phone": 33.0}
    assert found == pytest.approx({**expected, "flops": 2.2e8, "params": 5e6})


# The front of 80.1, 78.4, 75.8 and 71 %, the reference at guessing one of ten.
ROWS = ((80.1, 4.0), (78.4, 1.0), (75.8, 0.95), (71.0, 0.94))
USELESS = (12.0, 0.3)
NETWORKS, REFERENCE_ROW = (*ROWS, USELESS), (10.0, 5.0)


def as_points(rows: Sequence[tuple[float, float]]) -> Points:
    named = [{"top1_percent": percent, "latency_ms": ms} for percent, ms in rows]
    return minimised(named, ("top1_percent", "latency_ms"))


def knee_by_ranges(points: Points) -> int:
    """As it was: closest to the best of everything, on axes of the range that the points span."""
    low, high = points.min(axis=0), points.max(axis=0)
    return int(np.argmin(np.linalg.norm((points - low) / (high - low), axis=1)))


def test_a_useless_cheap_network_does_not_move_the_knee() -> None:
    (reference,) = as_points([REFERENCE_ROW])
    assert NETWORKS[knee_by_ranges(as_points(ROWS))][0] == 78.4
    assert NETWORKS[knee_by_ranges(as_points(NETWORKS))][0] == 75.8
    assert NETWORKS[knee(as_points(ROWS), reference)][0] == 78.4
    assert NETWORKS[knee(as_points(NETWORKS), reference)][0] == 78.4


@pytest.mark.parametrize("objectives", [2, 3])
def test_who_joins_a_front_is_the_knee_or_does_not_move_it(objectives: int) -> None:
    """Dominated ones, extreme ones, and any others; on axes of ranges it often moves."""
    reference, moved, by_ranges = np.ones(objectives), 0, 0
    for seed in range(300):
        chance = np.random.default_rng(seed)
        points = chance.random((12, objectives)) ** 2
        points = points[non_dominated(points)]
        extreme = chance.random(objectives)
        extreme[seed % objectives] *= 0.01
        for newcomer in (extreme, points[0] + 0.1, chance.random(objectives) * 1.2):
            more = np.concatenate([points, newcomer[None]])
            before, after = knee(points, reference), knee(more, reference)
            assert after in (before, len(points))
            moved += after == len(points)
            if len(points) > 1:
                by_ranges += knee_by_ranges(more) not in (knee_by_ranges(points), len(points))
    assert moved > 10 and by_ranges > 50


@pytest.mark.parametrize("unit", [(1, 1), (1e6, 1), (1, 1e6)])
def test_the_knee_has_the_largest_product_of_gains_in_any_unit(unit: tuple[float, float]) -> None:
    cost = np.array([1.0, 2.0, 3.0, 5.0, 9.0])
    points, reference = np.stack([cost, 9 / cost], axis=1), np.array([10.0, 10.0])
    assert np.argmax((10 - cost) * (10 - 9 / cost)) == 2
    assert knee(points * unit, reference * unit) == 2
    assert knee(points * unit - 100.0, reference * unit - 100.0) == 2


def test_an_objective_that_is_the_same_for_all_does_not_move_the_knee() -> None:
    points = np.array([[0.0, 4.0, 5.0], [1.0, 1.0, 5.0], [4.0, 0.0, 5.0]])
    for last in (5.1, 50.0):
        assert knee(points, np.array([5.0, 5.0, last])) == 1
        assert knee(points[:1], np.array([5.0, 5.0, last])) == 0


def test_where_nothing_is_below_the_reference_the_knee_is_beyond_it_least() -> None:
    points = np.array([[0.0, 4.0], [1.0, 1.5], [4.0, 0.0]])
    assert knee(points, np.array([1.0, 1.0])) == 1
    assert knee(points, np.array([2.0, 2.0])) == 1
    assert knee(points, np.array([-1.0, 9.0])) == 0


def test_better_is_smaller_in_every_objective() -> None:
    worse = {"top1_percent": 71.0, "latency_ms": 20.0, "flops": 3e8, "params": 1e7}
    better = {"top1_percent": 75.0, "latency_ms": 2.0, "flops": 3e7, "params": 1e6}
    points = minimised([worse, better], ["top1_percent", "latency_ms", "flops", "params"])
    assert (points[1] < points[0]).all()
    assert points[0, 0] == pytest.approx(0.29)
    np.testing.assert_allclose(points[0, 1:] - points[1, 1:], 1.0)  # decades


def test_columns_follow_the_objectives_asked_for() -> None:
    row = {"top1_percent": 100.0, "latency_ms": 10.0, "flops": 1e3}
    np.testing.assert_allclose(minimised([row], ["flops", "top1_percent"]), [[3.0, 0.0]])
    assert minimised([], ["flops", "top1_percent"]).shape == (0, 2)


def test_figures_of_further_targets_are_columns_of_their_own() -> None:
    row = {"top1_percent": 75.0, "latency_ms": 10.0, "latency_ms@phone": 100.0}
    objectives = ["latency_ms@phone", "top1_percent", "latency_ms"]
    np.testing.assert_allclose(minimised([row], objectives), [[2.0, 0.25, 1.0]])
