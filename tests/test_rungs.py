"""Successive halving by non-dominated order."""

import itertools
import random

import numpy as np
import pytest

from levit_search.search.rungs import Rungs

OBJECTIVES = ("top1_percent", "flops")


def rungs(reduction: float = 3.0) -> Rungs:
    return Rungs((1, 3), reduction, OBJECTIVES)


def come(to: Rungs, epoch: int, name: str, top1_percent: float, flops: float) -> bool:
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
def test_one_in_reduction_goes_on_of_candidates_that_do_not_dominate_each_other(
    reduction: float,
) -> None:
    found = rungs(reduction)
    places = [(index * 37) % 101 for index in range(101)]
    gone_on = sum(come(found, 1, str(p), 40 + p / 3, 10 ** (5 + p / 50)) for p in places)
    assert gone_on == pytest.approx(101 / reduction, abs=1)


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
