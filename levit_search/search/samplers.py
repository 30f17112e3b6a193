"""Samplers by name, whose proposals depend on the study's seed, the trial's number and the history.

A study that goes on after a kill then proposes what an undisturbed one would have.

What the samplers make of candidates that break a limit or were stopped at a rung is written down
in :mod:`levit_search.search.history`. ``random`` and ``grid`` learn nothing; they pass over what
breaks a limit in closed form, or is known, without making a trial of it. So do evolution with the
children that it breeds, since the best parents lie close to the limits, the first
``startup_trials`` of the others, and one proposal after four in a row that came to nothing. In the
place of a network that is known already, models propose one that differs from it in a place or a
few: they often come back to what is best so far.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseGASampler,
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial

from levit_search.search.history import History
from levit_search.study import SamplerName, SearchConfig

_FRUITLESS = 4  # proposals in a row that came to nothing, before one is drawn at random
_DRAWS = 2000  # random networks that are looked at before nothing new is left
_NEIGHBOURS = 120  # that are looked at in the place of a network that is known
_FURTHEST = 4  # places in which they differ at most
_CHILDREN = 50  # that evolution breeds at most for one proposal
_POPULATION = (10, 50)  # of a generation: fewest and most
_GENERATIONS = 8  # that a budget should suffice for
# TPE learns from fewer trials than evolution does, but takes longer with each of them; a Gaussian
# process takes seconds and needs torch in the driver, and has to be asked for.
_TPE_TRIALS = 5000
_EVOLUTION = ("nsga2", "nsga3")

Standing = Literal["new", "known", "infeasible"]
Judge = Callable[[Mapping[str, Any]], Standing]
"""What is known of the network that parameters make, ``infeasible`` if it is none."""


def chosen(config: SearchConfig) -> SamplerName:
    """The sampler that ``auto`` stands for, by the budget in trials: TPE, or for very many trials
    NSGA-II."""
    if config.sampler != "auto":
        return config.sampler
    return "tpe" if (config.trials or 0) <= _TPE_TRIALS else "nsga2"


def reads_pruned(name: SamplerName) -> bool:
    """Whether a sampler learns from pruned trials."""
    return name == "tpe"


class Proposer:
    """Parameters for one trial after another.

    Args:
        name: of the sampler, resolved.
        config: the search's settings.
        distributions: of all parameters, which are the same in every trial.
        history: what is known; a trial that is proposed has begun there.
        judge: tells what would cost no evaluation.
        population: of a generation of evolution, see :func:`population_of`.
    """

    def __init__(
        self,
        name: SamplerName,
        config: SearchConfig,
        distributions: Mapping[str, BaseDistribution],
        history: History,
        judge: Judge,
        population: int,
    ) -> None:
        assert name != "auto"
        self._name, self._config = name, config
        self._distributions = dict(distributions)
        self._history, self._judge = history, judge
        self._population = population
        self._grid = self._choices()  # gone on with: what was passed over once always is

    def place(self, number: int) -> None:
        """Give a trial that has begun its generation; one that was not bred counts as well."""
        if self._name in _EVOLUTION:
            study = self._history.study()
            trial = study.get_trials(deepcopy=False)[number]
            self._evolution(0).get_trial_generation(study, trial)

    def propose(self, number: int, fruitless: int) -> dict[str, Any] | None:
        """What a trial should be, or None where nothing new was found.

        Args:
            number: of the trial.
            fruitless: how many proposals before it came to nothing.
        """
        if self._name == "grid":
            return self._first_accepted(self._grid)
        at_start = self._history.evaluated < self._config.startup_trials
        by_model = self._name != "random" and not at_start and fruitless < _FRUITLESS
        if by_model and self._distributions:
            params = self._by_model(number)
            if self._judge(params) == "known":
                return self._first_accepted(self._neighbours(number, params)) or params
            return params
        return self._first_accepted(self._random(number))

    def _by_model(self, number: int) -> dict[str, Any]:
        self._history.refresh()
        study = self._history.study()
        trial = study.get_trials(deepcopy=False)[number]
        seed = self._seed(number)
        match self._name:
            case "tpe":
                sampler: BaseSampler = TPESampler(
                    seed=seed, multivariate=True, n_startup_trials=0, constant_liar=True
                )
            case "gp":
                sampler = GPSampler(seed=seed, n_startup_trials=1, deterministic_objective=False)
            case _:
                return self._child(seed, trial)
        return sampler.sample_relative(study, trial, self._distributions)

    def _child(self, seed: int, trial: FrozenTrial) -> dict[str, Any]:
        """The parents of a generation are the same for each of its trials, whichever asks first."""
        study = self._history.study()
        sampler = self._evolution(seed)
        last = sampler.get_trial_generation(study, trial)
        for generation in range(1, last + 1):  # each is chosen from the one before it
            parents = self._evolution(self._seed(generation, "parents"))
            parents.get_parent_population(study, generation)
        params: dict[str, Any] = {}
        for _ in range(_CHILDREN):
            params = sampler.sample_relative(study, trial, self._distributions)
            for name, distribution in self._distributions.items():  # mutated ones
                if name not in params:
                    params[name] = sampler.sample_independent(study, trial, name, distribution)
            if self._judge(params) == "new":
                break
        return params

    def _evolution(self, seed: int) -> BaseGASampler:
        kind = NSGAIISampler if self._name == "nsga2" else NSGAIIISampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return kind(population_size=self._population, seed=seed)

    def _neighbours(self, number: int, params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Parameters that differ in one place from what is known already, then in more."""
        chance = np.random.default_rng(self._seed(number, "neighbours"))
        values = {name: _values(each) for name, each in self._distributions.items()}
        places = [name for name, each in values.items() if len(each) > 1]
        for draw in range(_NEIGHBOURS):
            changed = dict(params)
            count = min(len(places), 1 + draw * _FURTHEST // _NEIGHBOURS)
            for name in chance.choice(places, count, replace=False):
                others = [value for value in values[name] if value != params[name]]
                changed[name] = others[chance.integers(len(others))]
            yield changed

    def _random(self, number: int) -> Iterator[dict[str, Any]]:
        study = self._history.study()
        trial = study.get_trials(deepcopy=False)[number]
        sampler = RandomSampler(seed=self._seed(number, "random"))
        for _ in range(_DRAWS):
            yield {
                name: sampler.sample_independent(study, trial, name, distribution)
                for name, distribution in self._distributions.items()
            }

    def _choices(self) -> Iterator[dict[str, Any]]:
        """All choices there are, each once, in an order that the seed shuffles.

        The order steps through the choices' numbers by a stride that has no divisor in common with
        their count, which needs no memory.
        """
        values = {name: _values(each) for name, each in self._distributions.items()}
        count = math.prod(map(len, values.values()))
        chance = np.random.default_rng(self._seed(0, "grid"))
        start, stride = (int(chance.integers(count)) for _ in range(2))
        while math.gcd(stride, count) != 1:
            stride += 1
        for step in range(count):
            rest = (start + step * stride) % count
            params = {}
            for name, each in values.items():
                rest, place = divmod(rest, len(each))
                params[name] = each[place]
            yield params

    def _first_accepted(self, proposals: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        return next((params for params in proposals if self._judge(params) == "new"), None)

    def _seed(self, number: int, purpose: str = "") -> int:
        entropy = (self._config.seed, number, *purpose.encode())
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _values(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution)
    return list(range(distribution.low, distribution.high + 1))


def population_of(config: SearchConfig) -> int:
    """How many networks a generation of evolution has, by the budget in trials."""
    fewest, most = _POPULATION
    return min(most, max(fewest, (config.trials or most * _GENERATIONS) // _GENERATIONS))
