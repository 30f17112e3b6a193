"""Samplers by name: what they propose, what they learn of the infeasible, and what they repeat."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from levit_search.search import sampling
from levit_search.search.freeze_thaw import Candidate, FreezeThaw
from levit_search.search.moasha import MultiObjectiveASHA
from levit_search.search.sampling import Proposal, Sampler, chosen, population_of
from levit_search.study import SamplerName, SearchConfig, StudyConfig

OBJECTIVES = ("top1_percent", "flops")
SPACE: dict[str, BaseDistribution] = {
    **{f"x{index}": IntDistribution(0, 9) for index in range(5)},
    "kind": CategoricalDistribution(["a", "b"]),
}
LIMIT = 16.0
"""Of the sum of x0 to x4: one in five of all proposals keeps it."""
LEARNING: tuple[SamplerName, ...] = ("tpe", "nsga2", "nsga3", "gp")
ALL: tuple[SamplerName, ...] = (*LEARNING, "random", "grid")
# A Gaussian process takes seconds a proposal.
TESTED = [pytest.param(name, marks=[pytest.mark.slow] * (name == "gp")) for name in ALL]


def size(params: Mapping[str, Any]) -> float:
    return float(sum(params[f"x{index}"] for index in range(5)))


def figures(params: Mapping[str, Any]) -> dict[str, float]:
    """Larger is more accurate and costs more; ``a`` is better."""
    total = size(params)
    return {"top1_percent": 40 + total + 5 * (params["kind"] == "a"), "flops": 10 + total**2}


class Searched:
    """A search of the space above by one sampler, one proposal after another."""

    def __init__(self, name: SamplerName, seed: int = 0, startup: int = 10) -> None:
        config = SearchConfig(sampler=name, seed=seed, startup_trials=startup, trials=100)
        limits, population = ["valid", "size"], population_of(config)
        self.sampler = Sampler(name, config, SPACE, OBJECTIVES, limits, self.look, population)
        self.known: set[tuple[Any, ...]] = set()
        self.proposed: list[dict[str, Any]] = []
        self.infeasible: list[bool] = []
        self._rejections = 0

    def look(self, params: Mapping[str, Any]) -> Proposal:
        if size(params) > LIMIT:
            return Proposal("infeasible")
        return Proposal("known" if tuple(params.values()) in self.known else "new")

    def step(self) -> bool:
        number = len(self.proposed)
        self.sampler.begin(number)
        params = self.sampler.suggest(number, self._rejections)
        if params is None:
            return False
        self.sampler.set_params(number, params)
        excess = {"valid": 0.0, "size": size(params) / LIMIT - 1}
        is_new = tuple(params.values()) not in self.known
        if excess["size"] > 0:
            self.sampler.tell(number, {"flops": figures(params)["flops"]}, excess)
        else:
            self.sampler.tell(number, figures(params), excess)
        self.known.add(tuple(params.values()))
        self.proposed.append(params)
        self.infeasible.append(excess["size"] > 0)
        self._rejections = 0 if excess["size"] <= 0 and is_new else self._rejections + 1
        return True


def searched(name: SamplerName, steps: int, seed: int = 0) -> Searched:
    found = Searched(name, seed)
    for _ in range(steps):
        assert found.step()
    return found


def test_four_in_five_of_random_proposals_are_infeasible() -> None:
    choices = itertools.product(range(10), repeat=5)
    share = sum(sum(choice) > LIMIT for choice in choices) / 10**5
    assert 0.78 < share < 0.85


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "tpe")) for name in ALL]
)
def test_late_proposals_are_feasible(name: SamplerName) -> None:
    """One in twenty at most; of the few that a Gaussian process has time for here, one."""
    steps = 26 if name == "gp" else 300
    infeasible = searched(name, steps).infeasible
    late = infeasible[len(infeasible) // 2 :]
    assert sum(late) <= max(1, 0.05 * len(late))


@pytest.mark.parametrize("name", TESTED)
def test_a_seed_repeats_itself_and_another_differs(name: SamplerName) -> None:
    steps = 13 if name == "gp" else 40
    one = searched(name, steps).proposed
    assert searched(name, steps).proposed == one
    assert searched(name, steps, seed=1).proposed != one


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_samplers_find_what_random_draws_find_rarely(name: SamplerName) -> None:
    """Those that learn come to prefer the better kind; random draws do not."""
    found = searched(name, 150)
    late = found.proposed[-50:]
    better = sum(params["kind"] == "a" for params in late) / len(late)
    assert better < 0.75 if name == "random" else better > 0.75


def test_a_grid_meets_every_choice_once_and_ends() -> None:
    choices = {name: SPACE[name] for name in ("x0", "x1", "kind")}
    seen: list[tuple[Any, ...]] = []

    def look(params: Mapping[str, Any]) -> Proposal:
        return Proposal("new" if params["x0"] + params["x1"] <= 12 else "infeasible")

    grid = Sampler("grid", SearchConfig(), choices, OBJECTIVES, ["valid"], look, 10)
    while (params := grid.suggest(len(seen), 0)) is not None:
        seen.append(tuple(params.values()))
    assert len(seen) == len(set(seen))
    assert set(seen) == {
        (x0, x1, kind) for x0 in range(10) for x1 in range(10) for kind in "ab" if x0 + x1 <= 12
    }
    assert seen != sorted(seen), "in an order of its own"


def _study(objectives: tuple[str, ...] = OBJECTIVES, **search: Any) -> StudyConfig:
    given = {"name": "s", "architecture": {"stages": [{"depth": 1}]}, "objectives": objectives}
    return StudyConfig(**given, search=SearchConfig(**search))


def test_the_choice_of_auto_depends_on_what_is_trained_and_on_the_budget() -> None:
    assert chosen(_study(trials=30)) == chosen(_study(trials=None)) == "freeze-thaw"
    untrained = ("flops", "params")
    assert chosen(_study(untrained, trials=30)) == "tpe"
    assert chosen(_study(untrained, trials=20_000)) == chosen(_study(trials=20_000)) == "nsga2"
    assert chosen(_study(sampler="grid")) == "grid"
    with pytest.raises(ValueError, match="freeze-thaw divides epochs"):
        _study(untrained, sampler="freeze-thaw")


def taught(asha: MultiObjectiveASHA | None) -> Sampler:
    return Sampler(
        "tpe", SearchConfig(), SPACE, OBJECTIVES, ["valid"], lambda _: Proposal("new"), 10, asha
    )


def test_a_stopped_candidate_teaches_what_it_is_expected_to_reach() -> None:
    asha = MultiObjectiveASHA((1,), 3.0, OBJECTIVES)
    sampler = taught(asha)
    params = {**{f"x{index}": 1 for index in range(5)}, "kind": "a"}
    for number, (first, last) in enumerate([(40.0, None), (50.0, 70.0)]):
        sampler.begin(number)
        sampler.set_params(number, {**params, "x0": number})
        values = {"top1_percent": first, "flops": 100.0}
        asha.enter(1, str(number), values, last is not None)
        if last is None:
            sampler.tell(number, values, {"valid": 0.0}, stopped_at=1)
        else:
            asha.complete(str(number), last)
            sampler.tell(number, {**values, "top1_percent": last}, {"valid": 0.0})
    trials = sampler.study().get_trials()
    errors = [trial.values[0] for trial in trials]
    assert errors == pytest.approx([0.4, 0.3]), "40 % and the 20 points that the other gained"
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}


def test_what_goes_on_after_all_teaches_what_it_comes_to() -> None:
    asha = MultiObjectiveASHA((1, 3), 3.0, OBJECTIVES)
    sampler = taught(asha)
    params = {**{f"x{index}": 1 for index in range(5)}, "kind": "a"}
    for number, (percent, stopped_at) in enumerate([(40.0, 1), (45.0, 3), (47.0, None)]):
        sampler.begin(number)
        sampler.set_params(number, params)
        values = {"top1_percent": percent, "flops": 100.0}
        sampler.tell(number, values, {"valid": 0.0}, stopped_at=stopped_at)
        first, *later = sampler.study().get_trials()
        assert first.values[0] == pytest.approx(1 - percent / 100)
        assert {trial.state for trial in later} <= {TrialState.FAIL}


def test_the_same_parameters_again_teach_nothing() -> None:
    sampler = taught(None)
    for number in range(2):
        sampler.begin(number)
        sampler.set_params(number, {**{f"x{index}": 1 for index in range(5)}, "kind": "a"})
        sampler.tell(number, {"top1_percent": 50.0, "flops": 10.0}, {"valid": 0.0})
    states = [trial.state for trial in sampler.study().get_trials()]
    assert states == [TrialState.COMPLETE, TrialState.FAIL]


def test_where_its_model_predicts_nothing_freeze_thaw_asks_tpe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def tpe(seed: int, **options: Any) -> TPESampler:
        asked.append(seed)
        return TPESampler(seed=seed, **options)

    monkeypatch.setattr(sampling, "TPESampler", tpe)

    def look(params: Mapping[str, Any]) -> Proposal:
        name = "-".join(map(str, params.values()))
        costs = dict.fromkeys(("flops", "params", "activations"), 10 + size(params))
        status = "known" if name in model.met else "new"
        return Proposal(status, Candidate(name, dict(params), costs))

    config = SearchConfig(startup_trials=4, trials=None, time_s=1.0)
    model = FreezeThaw((), 1.0, OBJECTIVES, 3, SPACE, None, 4, lambda: np.array([0.9, 4.0]))
    sampler = Sampler("freeze-thaw", config, SPACE, OBJECTIVES, ["valid"], look, 10, model)
    chance = np.random.default_rng(0)
    for number in range(16):
        sampler.begin(number)
        params = sampler.suggest(number, 0)
        assert params is not None
        candidate = look(params).candidate
        assert candidate is not None
        model.begin(candidate)
        sampler.set_params(number, params)
        values = {**candidate.figures, "top1_percent": float(chance.normal(50, 5))}
        model.finish(candidate.network, values)
        sampler.tell(number, values, {"valid": 0.0})
    assert len(asked) > 4, "noise cannot be predicted"
    assert len(model.met) == 16
