"""Successive halving by non-dominated order."""

import itertools
import random

import numpy as np
import pytest

from levit_search.pareto import non_dominated
from levit_search.search.moasha import MultiObjectiveASHA

OBJECTIVES = ("top1_percent", "flops")


def rungs(reduction: float = 3.0) -> MultiObjectiveASHA:
    return MultiObjectiveASHA((1, 3), reduction, OBJECTIVES)


def come(to: MultiObjectiveASHA, epoch: int, name: str, top1_percent: float, flops: float) -> bool:
    return to.judge(epoch, name, {"top1_percent": top1_percent, "flops": flops, "latency_ms": 1.0})


def test_the_first_goes_on_and_a_dominated_one_ends() -> None:
    found = rungs()
    assert come(found, 1, "a", 50, 100)
    assert not come(found, 1, "b", 40, 200)


def test_a_slow_network_goes_on_only_if_it_is_accurate_for_its_cost() -> None:
    found = rungs(reduction=2)
    for index in range(9):
        come(found, 1, f"small-{index}", 50 - index, 100 + index)
    assert not come(found, 1, "slow and no better", 40, 1000)
    assert come(found, 1, "slow and better", 60, 1000)


@pytest.mark.parametrize("reduction", [2.0, 3.0, 4.0])
def test_one_in_reduction_goes_on_of_candidates_in_random_order(reduction: float) -> None:
    """Of those that do not dominate each other, and of any others."""
    for gained in (20.0, 0.0):
        shares = []
        for seed in range(10):
            rng = np.random.default_rng(seed)
            found, cost = rungs(reduction), rng.uniform(0, 2, 100)
            percents = 40 + gained * cost + 5 * (1 - gained / 20) * rng.normal(size=100)
            came = zip(percents.tolist(), (10 ** (5 + cost)).tolist(), strict=True)
            shares.append(np.mean([come(found, 1, str(n), *each) for n, each in enumerate(came)]))
        assert np.mean(shares) == pytest.approx(1 / reduction, abs=0.06)


def test_a_good_candidate_that_comes_late_goes_on_though_others_had_the_room() -> None:
    found = rungs()
    assert come(found, 1, "a", 60, 1.0)
    come(found, 1, "b", 61, 1.1)
    assert come(found, 1, "c", 90, 1.2)
    assert not come(found, 1, "d", 60.9, 1.09), "right beside another"


def searched(seed: int, count: int, in_order_of_cost: bool) -> tuple[float, float]:
    """Candidates whose accuracy at the rung is off by a point from that in the end.

    Returns:
        The share that goes on, and which share of the true front's members does not.
    """
    rng, found = np.random.default_rng(seed), rungs()
    cost = rng.uniform(0, 1.5, count)
    if in_order_of_cost:  # small networks are quick to train, and come first where many run at once
        cost.sort()
    final = 70 + 25 * (1 - np.exp(-2 * cost)) - 6 * np.abs(rng.normal(size=count))
    at_rung = final + rng.normal(size=count)
    came = zip(at_rung.tolist(), (10**cost).tolist(), strict=True)
    went = np.array([come(found, 1, str(number), *each) for number, each in enumerate(came)])
    members = non_dominated(np.stack([-final, cost], axis=1))
    return float(went.mean()), float((members & ~went).sum() / members.sum())


@pytest.mark.parametrize(
    ("count", "in_order_of_cost", "most_lost"),
    # With room given in order of arrival 0.50, 0.29 and 0.24 were lost.
    [(12, True, 0.12), (60, True, 0.22), (60, False, 0.28)],
)
def test_few_members_of_the_true_front_are_stopped(
    count: int, in_order_of_cost: bool, most_lost: float
) -> None:
    found = [searched(seed, count, in_order_of_cost) for seed in range(40)]
    went_on, lost = np.mean(found, axis=0)
    assert lost < most_lost
    if not in_order_of_cost:
        assert went_on == pytest.approx(1 / 3, abs=0.06)


def test_the_best_so_far_always_goes_on() -> None:
    found = rungs(reduction=4)
    for index in range(40):
        assert come(found, 1, f"better-{index}", 50 + index, 1000 - index)
        assert not come(found, 1, f"worse-{index}", 30, 2000)


def test_each_rung_is_a_competition_of_its_own() -> None:
    found = rungs()
    come(found, 1, "a", 90, 100)
    assert come(found, 3, "b", 50, 200), "nobody else came that far"


def test_what_an_earlier_session_judged_counts_once() -> None:
    """As many go on after a restart as would have without."""
    whole, restarted = rungs(), rungs()
    values = [{"top1_percent": 50.0 + (7 * i) % 20, "flops": 100.0 + i} for i in range(30)]
    for index, each in enumerate(values[:20]):
        goes_on = whole.judge(1, str(index), each)
        for _ in range(2):
            restarted.enter(1, str(index), each, goes_on)
    for index, each in enumerate(values[20:]):
        assert whole.judge(1, f"new-{index}", each) == restarted.judge(1, f"new-{index}", each)


def test_expected_accuracy_is_the_rung_s_and_the_median_gain_of_those_that_went_on() -> None:
    found = rungs()
    for name, curve in {"a": (50, 60, 70), "b": (40, 54, 62), "c": (30, 42, None)}.items():
        come(found, 1, name, curve[0], 100)
        come(found, 3, name, curve[1] or 0, 100)
        if curve[2] is not None:
            found.complete(name, curve[2])
    assert found.gains() == (12.0, 9.0)
    assert found.expected(1, 20.0) == pytest.approx(41.0)
    assert found.expected(3, 20.0) == pytest.approx(29.0)
    assert found.expected(1, 95.0) == 100.0


def test_nothing_is_expected_before_anybody_has_gone_on() -> None:
    found = rungs()
    come(found, 1, "a", 50, 100)
    assert found.expected(1, 50.0) == 50.0


@pytest.mark.parametrize("seed", range(20))
def test_gains_are_medians_in_whatever_order_networks_are_told(seed: int) -> None:
    chance = random.Random(seed)
    found, levels = rungs(), [{}, {}, {}]
    names = [str(number) for number in range(15)]
    for _ in range(60):
        level, name = chance.randrange(3), chance.choice(names)
        percent = chance.choice([50.0, 60.25, 71.3]) + level * chance.random()
        if level == 2:
            found.complete(name, percent)
            levels[2][name] = percent  # the latest counts
        else:
            values = {"top1_percent": percent, "flops": 100.0, "latency_ms": 1.0}
            found.enter((1, 3)[level], name, values, True)
            levels[level].setdefault(name, percent)
        gained = [
            [after[each] - before[each] for each in after if each in before]
            for before, after in itertools.pairwise(levels)
        ]
        plain = [0.5 * round(float(np.median(each)) / 0.5) if each else 0.0 for each in gained]
        assert list(found.gains()) == plain
