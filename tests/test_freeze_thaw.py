"""Freeze-thaw: the model, what is expected of candidates, and what is done next."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from scipy.optimize import check_grad

from levit_search.pareto import hypervolume
from levit_search.search.freeze_thaw import (
    Candidate,
    FreezeThaw,
    expected_improvement,
    has_settled,
)
from levit_search.search.gaussian_process import GaussianProcess

_OBJECTIVES = ("top1_percent", "flops")
_SLOTS: dict[str, BaseDistribution] = {
    "width": IntDistribution(0, 4),
    "depth": IntDistribution(0, 3),
    "kind": CategoricalDistribution(("a", "b")),
}


def _noisy(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = rng.random((count, 3))
    groups = rng.integers(2, size=count)
    values = (
        np.sin(4 * inputs[:, 0])
        + inputs[:, 1]
        + np.array([0.02, 0.4])[groups] * rng.normal(size=count)
    )
    return inputs, values, groups


# --- the model


def test_the_gradient_of_the_fit_is_that_of_its_function() -> None:
    model = GaussianProcess(*_noisy(), 2)
    rng = np.random.default_rng(1)
    for _ in range(5):
        at = rng.normal(0, 0.7, len(model.hyperparameters))
        apart = check_grad(
            lambda x: model._improbability(x)[0], lambda x: model._improbability(x)[1], at
        )
        assert apart < 1e-3


def test_it_predicts_what_it_has_not_seen_and_knows_how_well() -> None:
    inputs, values, groups = _noisy(120)
    model = GaussianProcess(inputs, values, groups, 2)
    rng = np.random.default_rng(5)
    fresh = rng.random((400, 3))
    truth = np.sin(4 * fresh[:, 0]) + fresh[:, 1]
    mean, deviation = model.predict(fresh)
    assert np.abs(mean - truth).mean() < 0.05
    within = np.abs(mean - truth) < 2 * deviation
    assert 0.85 < within.mean() <= 1.0
    lengths = np.exp(model.hyperparameters[:3])
    assert lengths[2] > 2 * lengths[0], "what does not matter has a long scale"
    noise = np.exp(model.hyperparameters[-2:])
    assert noise[1] > 10 * noise[0], "each group has its own noise"


def test_what_is_left_out_is_predicted_by_a_model_without_it() -> None:
    inputs, values, groups = _noisy(20)
    members = [str(each // 2) for each in range(20)]
    model = GaussianProcess(inputs, values, groups, 2)
    left = model.left_out(members)
    for member in ("0", "7"):
        own = np.array(members) == member
        scaled = (values - values.mean()) / values.std()  # by all values, as the model does it
        covariance = model._factor @ model._factor.T
        kept = covariance[np.ix_(~own, ~own)]
        between = covariance[np.ix_(own, ~own)]
        expected = values.mean() + values.std() * between @ np.linalg.solve(kept, scaled[~own])
        assert left[own] == pytest.approx(expected)


def test_constant_values_and_two_observations_are_no_error() -> None:
    inputs = np.array([[0.0, 0.0], [1.0, 1.0]])
    model = GaussianProcess(inputs, np.array([70.0, 70.0]), np.zeros(2, int), 1)
    mean, deviation = model.predict(np.array([[0.5, 0.5]]))
    assert mean == pytest.approx(70.0)
    assert np.isfinite(deviation).all()


# --- what is expected


@pytest.mark.parametrize("costs", [0, 1, 2])
def test_the_expected_improvement_is_the_mean_of_improvements(costs: int) -> None:
    rng = np.random.default_rng(costs)
    front = rng.random((8, 1 + costs)) * 0.6
    reference = np.full(1 + costs, 0.9)
    error, deviation = rng.random(5) * 0.5, 0.05 + 0.1 * rng.random(5)
    prices = rng.random((5, costs)) * 0.8
    found, chances = expected_improvement(front, reference, error, deviation, prices)
    before = hypervolume(front, reference)
    for place in range(5):
        draws = rng.normal(error[place], deviation[place], 400)
        gains = [
            hypervolume(np.vstack([front, [draw, *prices[place]]]), reference) - before
            for draw in draws
        ]
        assert found[place] == pytest.approx(np.mean(gains), rel=0.25, abs=5e-4)
        assert chances[place] == pytest.approx(np.mean(np.array(gains) > 0), abs=0.08)


def test_without_a_front_all_that_is_within_the_reference_counts() -> None:
    gains, chances = expected_improvement(
        np.empty((0, 2)),
        np.array([0.9, 1.0]),
        np.array([0.4, 0.4]),
        np.array([1e-6, 1e-6]),
        np.array([[0.5], [2.0]]),
    )
    assert gains == pytest.approx([0.25, 0.0])
    assert chances == pytest.approx([1.0, 1.0])


# --- what is done


def _candidate(width: int, depth: int, kind: str = "a") -> Candidate:
    flops = 1e6 * (1 + width) * (1 + depth)
    costs = {"flops": flops, "params": flops / 10, "activations": flops / 20}
    return Candidate(f"{width}{depth}{kind}", {"width": width, "depth": depth, "kind": kind}, costs)


def _percent(candidate: Candidate, epoch: int) -> float:
    params = candidate.params
    best = 60 + 6 * params["width"] + 2 * params["depth"] - 4 * (params["kind"] == "b")
    return float(best - 20 / epoch)


def _judge(trials: int | None = None, startup: int = 4) -> FreezeThaw:
    found = FreezeThaw(
        [1, 3], 3.0, _OBJECTIVES, 9, _SLOTS, trials, startup, lambda: np.array([0.9, 8.0])
    )
    everything = [_candidate(w, d, k) for w in range(5) for d in range(4) for k in "ab"]
    found.fresh = lambda: [each for each in everything if each.network not in found.met]
    found.cheapest = lambda: everything[0]
    return found


def _carried_out(judge: FreezeThaw, most: int) -> list[tuple[str, int]]:
    """Acts in their order, as a driver with one worker has them."""
    acts: list[tuple[str, int]] = []
    while len(acts) < most and (act := judge.next_act()) is not None:
        each = act.candidate
        at = max((epoch for name, epoch in acts if name == each.network), default=0)
        judge.begin(each, at)
        for epoch in (1, 3, 9):
            if epoch <= at:
                continue
            acts.append((each.network, epoch))
            values = {**each.figures, "top1_percent": _percent(each, epoch)}
            if epoch == 9:
                judge.finish(each.network, values)
            elif not judge.judge(epoch, each.network, values):
                break
    return acts


def test_the_cheapest_network_goes_to_the_end_and_others_of_the_start_pause() -> None:
    judge = _judge()
    acts = _carried_out(judge, 6)
    first = acts[0][0]
    assert [each for each in acts if each[0] == first] == [(first, 1), (first, 3), (first, 9)]
    assert [epoch for name, epoch in acts if name != first] == [1, 1, 1]
    assert len(judge.paused()) == 3


def test_the_front_is_found_before_most_networks_are_trained() -> None:
    judge = _judge()
    acts = _carried_out(judge, 70)
    whole = {name for name, epoch in acts if epoch == 9}
    points = {
        each.network: (100 - _percent(each, 9), each.figures["flops"])
        for each in (_candidate(w, d, k) for w in range(5) for d in range(4) for k in "ab")
    }
    front = {
        name
        for name, (error, flops) in points.items()
        if not any(
            e <= error and f <= flops and (e, f) != (error, flops) for e, f in points.values()
        )
    }
    assert front <= whole
    assert len(whole) < 30


def test_paused_networks_go_on_later() -> None:
    acts = _carried_out(_judge(), 60)
    resumed = [
        name
        for place, (name, epoch) in enumerate(acts)
        if epoch == 3 and acts[place - 1] != (name, 1)
    ]
    assert resumed


def test_a_number_of_trials_begins_as_many_and_takes_the_epochs_of_halving() -> None:
    judge = _judge(trials=20)
    acts = _carried_out(judge, 500)
    begun = {name for name, _ in acts}
    assert len(begun) == 20
    spent = sum(epoch - {1: 0, 3: 1, 9: 3}[epoch] for _, epoch in acts)
    assert 20 * (1 + 2 / 3 + 6 / 9) - 6 < spent <= 20 * (1 + 2 / 3 + 6 / 9)
    assert judge.next_act() is None
    assert not judge.can_go_on()


def test_what_an_earlier_session_did_leads_to_the_same_acts() -> None:
    undisturbed = _carried_out(_judge(), 40)
    first, second = _judge(), _judge()
    acts = _carried_out(first, 25)
    at: dict[str, int] = {}
    for name, epoch in acts:
        if name not in at:
            second.begin(next(each for each in second.fresh() if each.network == name))
        else:
            second.begin(second.candidates[name], at[name])
        values = {
            **second.candidates[name].figures,
            "top1_percent": _percent(second.candidates[name], epoch),
        }
        if epoch == 9:
            second.finish(name, values)
        else:
            second.enter(epoch, name, values, False)
            second.pause(name)
        at[name] = epoch
    rest = _carried_out(second, 15)
    assert [*acts, *rest][: len(undisturbed)] == undisturbed


def test_what_runs_is_not_begun_again_and_teaches_what_is_expected() -> None:
    judge = _judge()
    _carried_out(judge, 12)
    act = judge.next_act()
    assert act is not None
    judge.begin(act.candidate)
    other = judge.next_act()
    assert other is not None
    assert other.candidate.network != act.candidate.network


def test_a_network_that_failed_is_out_of_the_race() -> None:
    judge = _judge()
    acts = _carried_out(judge, 12)
    judge.drop(acts[0][0], {})
    act = judge.next_act()
    assert act is not None
    assert acts[0][0] not in judge.candidates


def test_what_is_surely_over_the_limit_of_latency_is_left_alone() -> None:
    judge = _judge()
    judge._limit_ms = 6.0
    everything = {each.network: each for each in judge.fresh()}
    over = []
    for number in range(25):
        act = judge.next_act()
        assert act is not None
        each = everything[act.candidate.network]
        judge.begin(each)
        known = {"latency_ms": each.figures["flops"] / 1e6, "top1_percent": _percent(each, 9)}
        if known["latency_ms"] > 6:
            judge.drop(each.network, known)
            over.append(number)
        else:
            judge.finish(each.network, {**each.figures, **known})
    assert sum(number >= 8 for number in over) <= 2, "most networks of the space are over it"


def test_few_checkpoints_are_kept() -> None:
    judge = _judge(startup=30)
    _carried_out(judge, 32)
    kept = len(judge.paused())
    lost = judge.superfluous()
    assert len(lost) == kept - 16
    assert not judge.superfluous()
    assert len(judge.paused()) == kept, "they may still go on, from the beginning"


def test_a_front_has_settled_when_nothing_is_expected_any_more() -> None:
    judge = _judge()
    _carried_out(judge, 90)
    assert judge.outlook_percent is not None
    early = _judge()
    _carried_out(early, 10)
    early.next_act()
    assert early.outlook_percent is not None
    assert early.outlook_percent > judge.outlook_percent
    assert not has_settled([0.05] * 9)
    assert not has_settled([0.05] * 5 + [0.2] + [0.05] * 9)
    assert has_settled([3.0] + [0.05] * 10)


def test_another_study_is_an_input_that_counts_as_far_as_it_tells_something() -> None:
    everything = [_candidate(w, d, k) for w in range(5) for d in range(4) for k in "ab"]
    rng = np.random.default_rng(0)

    def truth(each: Candidate) -> float:
        wave = np.sin(5.0 * each.params["width"]) * np.cos(4.0 * each.params["depth"])
        return _percent(each, 9) + 6 * float(wave)

    earlier = [(each.params, 0.5 * truth(each) + rng.normal(0, 0.3)) for each in everything]

    def error(told: list[tuple[Mapping[str, Any], float]]) -> float:
        judge = FreezeThaw(
            [1, 3], 3.0, _OBJECTIVES, 9, _SLOTS, None, 4, lambda: np.array([0.9, 8.0]), None, told
        )
        for each in everything[::3]:
            judge.begin(each)
            judge.finish(each.network, {**each.figures, "top1_percent": truth(each)})
        points = judge._encoding.points(everything, np.zeros(len(everything)))
        mean, _ = judge._model().predict(points)
        return float(np.abs(mean - [truth(each) for each in everything]).mean())

    noise = [(params, float(rng.normal())) for params, _ in earlier]
    assert error(earlier) < 0.5 * error([])
    assert error(noise) < 1.5 * error([])
