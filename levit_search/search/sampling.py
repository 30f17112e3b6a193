"""Samplers by name, whose proposals depend on the study's seed, the trial's number and the trials
before it: a study that goes on after a kill proposes what an undisturbed one would have.

Optuna's samplers read trials from a study. The one that they read here lives in memory and differs
from the stored one where that serves them:

- values are minimised numbers (:func:`levit_search.pareto.minimised`): the error, costs on a log
  scale;
- a candidate stopped at a rung is complete, with the accuracy that it is expected to reach, so that
  short trainings teach as much about the space as whole ones;
- a proposal over a limit is a pruned trial to TPE, which sorts those by their violation, and a
  complete one to the others, which read nothing else: NSGA-II and -III order it by its violation,
  and a Gaussian process models the violation. Its accuracy, which nobody knows, is the middle of
  those seen;
- a network proposed again by the very same parameters, and one that failed, are not there.

``freeze-thaw`` is ours (:mod:`levit_search.search.freeze_thaw`). It begins with ``startup_trials``
networks that are spread over the space, the cheapest first, then chooses among random ones,
neighbours of the best, and those that are paused. Where its model does not predict, new networks
are TPE's.

``random`` and ``grid`` learn nothing; they pass over what breaks a limit in closed form, or is
known, without making a trial of it. So do evolution with the children that it breeds, since the
best parents lie close to the limits, the first ``startup_trials`` of the others, and one proposal
after four in a row that were rejected. In the place of a network that is known already, models
propose one that differs from it in a place or a few: they often come back to what is best so far.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, islice
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
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
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from levit_search.pareto import ACCURACIES, Objective, is_maximised, minimised
from levit_search.search.freeze_thaw import Candidate, FreezeThaw
from levit_search.search.moasha import MultiObjectiveASHA
from levit_search.study import SamplerName, SearchConfig, StudyConfig

_MOST_REJECTIONS = 4  # in a row, before one proposal is drawn at random
_DRAWS = 2000  # random networks that are looked at before nothing new is left
_NEIGHBOURS = 120  # that are looked at in the place of a network that is known
_FURTHEST = 4  # places in which they differ at most
_CHILDREN = 50  # that evolution breeds at most for one proposal
_POPULATION = (10, 50)  # of a generation: fewest and most
_GENERATIONS = 8  # that a budget should suffice for
# TPE learns from fewer trials than evolution does, but takes longer with each of them; a Gaussian
# process takes seconds and needs torch in the driver, and has to be asked for.
_TPE_TRIALS = 5000
_MODEL_TRIALS = 2000
_EVOLUTION = ("nsga2", "nsga3")
_STUDY = "trials"
_GENERATION = ":generation"  # the end of the one attribute that evolution needs after a restart
_PARENTS = ":parent:"

_SPREAD = 200  # random networks among which those of the start are chosen
_POOL = (8, 8)  # random networks for each of so many latest trials, among which a model chooses
_BRED = (6, 6)  # of so many good networks, so many neighbours each


class Proposal(NamedTuple):
    """What parameters come to."""

    status: Literal["new", "known", "infeasible"]
    """What is known of the network; ``infeasible`` if it is none."""
    candidate: Candidate | None = None
    """The network, if it is one that is within the limits."""


def chosen(config: StudyConfig) -> SamplerName:
    """The sampler that ``auto`` stands for: freeze-thaw where candidates are trained, else, by the
    budget in trials, TPE or for very many trials NSGA-II."""
    given, trials = config.search.sampler, config.search.trials or 0
    if given != "auto":
        return given
    if config.trains_candidates and trials <= _MODEL_TRIALS:
        return "freeze-thaw"
    return "tpe" if trials <= _TPE_TRIALS else "nsga2"


def population_of(config: SearchConfig) -> int:
    """How many networks a generation of evolution has, by the budget in trials."""
    fewest, most = _POPULATION
    return min(most, max(fewest, (config.trials or most * _GENERATIONS) // _GENERATIONS))


class Sampler:
    """Proposes parameters for one trial after another, and is told what came of them.

    Args:
        name: of the sampler, resolved.
        config: the search's settings.
        distributions: of all parameters, by name, which are the same in every trial.
        objectives: of the study.
        constraints: names of everything that a proposal may violate.
        look: tells what parameters come to.
        population: of a generation of evolution, see :func:`population_of`.
        asha: what is expected of candidates that were stopped; None where none are.
    """

    def __init__(
        self,
        name: SamplerName,
        config: SearchConfig,
        distributions: Mapping[str, BaseDistribution],
        objectives: Sequence[Objective],
        constraints: Sequence[str],
        look: Callable[[Mapping[str, Any]], Proposal],
        population: int,
        asha: MultiObjectiveASHA | None = None,
    ) -> None:
        assert name != "auto"
        self._name, self._config, self._population = name, config, population
        self._distributions, self._objectives = dict(distributions), tuple(objectives)
        self._constraints, self._asha = tuple(constraints), asha
        self._look = look
        self._storage = InMemoryStorage()
        directions = [StudyDirection.MINIMIZE] * len(self._objectives)
        self._study_id = self._storage.create_new_study(directions, _STUDY)
        self._ids: list[int] = []
        self._next = 0  # the trial that parameters are chosen for next
        self._known: set[tuple[Any, ...]] = set()
        self._values: list[Any] = []
        # By parameters: the trial, the epoch of the rung and the figures there.
        self._stopped: dict[tuple[Any, ...], tuple[int, int, Mapping[str, float]]] = {}
        self._gains: tuple[float, ...] = ()
        # What int8 costs candidates that were trained to the end, where both accuracies count.
        self._drops: list[float] = []
        self._stale: set[tuple[Any, ...]] = set()  # stopped ones without the values of these gains
        self._grid = self._choices()  # gone on with: what was passed over once always is
        self._drawn: dict[int, list[Candidate]] = {}  # by trial, what a model may choose then
        self._is_dry = False  # nothing new was found any more
        if isinstance(asha, FreezeThaw):
            asha.fresh, asha.cheapest = self._fresh, cache(self._cheapest)

    def begin(self, number: int, attributes: Mapping[str, Any] | None = None) -> None:
        """A trial runs, without parameters. It has its generation, whether it is bred or not.

        Trials begin in the order of their numbers. ``attributes`` are those stored with it in an
        earlier session.
        """
        if number < len(self._ids):  # nothing was found for it before
            return
        assert number == len(self._ids)
        self._ids.append(self._storage.create_new_trial(self._study_id))
        for key, value in (attributes or {}).items():
            if key.endswith(_GENERATION):
                self._storage.set_trial_system_attr(self._ids[number], key, value)
        if self._name in _EVOLUTION:
            self._evolution(0).get_trial_generation(self.study(), self._trial(number))

    def attributes(self, number: int) -> dict[str, object]:
        """What is needed of a trial in a later session."""
        kept = self._trial(number).system_attrs
        return {key: value for key, value in kept.items() if key.endswith(_GENERATION)}

    def parents(self) -> dict[str, object]:
        """Which trials evolution chose for parents, by generation; needed again as well, since what
        is expected of them changes."""
        return dict(self._storage.get_study_system_attrs(self._study_id))

    def restore_parents(self, attributes: Mapping[str, Any]) -> None:
        """Put back what :meth:`parents` gave, out of all attributes of the study."""
        for key, value in attributes.items():
            if _PARENTS in key:
                self._storage.set_study_system_attr(self._study_id, key, value)

    def suggest(self, number: int, consecutive_rejections: int) -> dict[str, object] | None:
        """What a trial that has begun should be, or None where nothing new was found.

        ``consecutive_rejections`` says how many proposals before it came to nothing.
        """
        if self._name == "grid":
            return self._first_new(self._grid)
        if isinstance(self._asha, FreezeThaw):
            act = self._asha.next_act()
            return None if act is None else dict(act.candidate.params)
        is_model = self._name != "random" and consecutive_rejections < _MOST_REJECTIONS
        if is_model and len(self._values) >= self._config.startup_trials and self._distributions:
            params = self._by_model(number)
            if self._look(params).status == "known":
                return self._first_new(self._neighbours(number, params)) or params
            return params
        return self._first_new(self._random(number))

    def set_params(self, number: int, params: Mapping[str, Any]) -> None:
        """Give a running trial its parameters, of all distributions or of none."""
        assert not params or params.keys() == self._distributions.keys()
        self._next = number + 1
        trial = self._trial(number)
        # Optuna would copy both for each of them; the distributions are those of all trials.
        trial.params = dict(params)
        trial.distributions = self._distributions if params else {}

    def tell(
        self,
        number: int,
        values: Mapping[str, float] | None,
        excess: Mapping[str, float],
        stopped_at: int | None = None,
    ) -> None:
        """A trial has ended.

        Args:
            number: of the trial, which has its parameters.
            values: figures by name, all objectives unless a limit is broken; None where it failed,
                and nothing is to be learnt of it.
            excess: by constraint, how far above its limit, as a share of it; <= 0 keeps it.
            stopped_at: the epoch of the rung that ended it, with whose accuracy it is told.
        """
        is_over = any(each > 0 for each in excess.values())
        params = self._trial(number).params
        key = tuple(params.get(name) for name in self._distributions)
        if values is not None and key in self._stopped and not is_over:  # it went on after all
            self._storage.set_trial_state_values(self._ids[number], TrialState.FAIL)
            first, *_ = self._stopped.pop(key)
            self._stale.discard(key)
            if stopped_at is not None:
                self._stopped[key] = first, stopped_at, values
                self._stale.add(key)
            else:
                self._trial(first).values = minimised([values], self._objectives)[0].tolist()
        elif values is None or (key in self._known and not is_over):
            self._storage.set_trial_state_values(self._ids[number], TrialState.FAIL)
        elif is_over and self._name in ("tpe", "freeze-thaw"):
            self._end(number, TrialState.PRUNED, None, excess)
        elif is_over:
            middle = np.median(self._values or [[0.0] * len(self._objectives)], axis=0)
            point = [
                minimised([values], [name])[0, 0].item() if name in values else middle[index].item()
                for index, name in enumerate(self._objectives)
            ]
            self._end(number, TrialState.COMPLETE, point, excess)
        else:
            if stopped_at is not None:
                self._stopped[key] = number, stopped_at, values
                values = self._expected(stopped_at, values)
            elif set(ACCURACIES) <= set(self._objectives):
                self._drops.append(values["top1_percent"] - values["top1_int8_percent"])
            self._known.add(key)
            point = minimised([values], self._objectives)[0].tolist()
            self._values.append(point)
            self._end(number, TrialState.COMPLETE, point, excess)

    def study(self) -> optuna.Study:
        """The trials as they are now, stopped candidates with what is expected of them by now.

        Optuna's studies keep what they have read: take a new one for each proposal.
        """
        gains = (*self._asha.gains(), self._drop()) if self._asha is not None else ()
        if gains != self._gains:
            self._gains, self._stale = gains, set(self._stopped)
        for key in self._stale:
            number, epoch, values = self._stopped[key]
            point = minimised([self._expected(epoch, values)], self._objectives)[0]
            self._trial(number).values = point.tolist()
        self._stale = set()
        return optuna.load_study(study_name=_STUDY, storage=self._storage, sampler=RandomSampler())

    def _expected(self, epoch: int, values: Mapping[str, float]) -> dict[str, float]:
        """Figures of a rung with the accuracy that they promise in the end."""
        assert self._asha is not None
        accuracy = self._asha.accuracy
        expected = self._asha.expected(epoch, values[accuracy])
        found = {**values, accuracy: expected}
        for other in filter(is_maximised, self._objectives):
            if other != accuracy:
                apart = -self._drop() if other == "top1_int8_percent" else self._drop()
                found[other] = max(0.0, min(100.0, expected + apart))
        return found

    def _drop(self) -> float:
        """The points that int8 usually costs, to a tenth; 0 where nothing is known yet."""
        return round(median(self._drops), 1) if self._drops else 0.0

    def _end(
        self,
        number: int,
        state: TrialState,
        point: list[float] | None,
        excess: Mapping[str, float],
    ) -> None:
        # A Gaussian process needs every constraint of every trial; of those that were not looked at
        # nothing is known but that the proposal is no good.
        worst = max(excess.values(), default=0.0)
        constraints = {name: excess.get(name, worst) for name in self._constraints}
        # Optuna says in no other public way how constraints are spelt.
        spelt = create_trial(state=TrialState.PRUNED, constraints=constraints).system_attrs
        for key, value in spelt.items():
            self._storage.set_trial_system_attr(self._ids[number], key, value)
        self._storage.set_trial_state_values(self._ids[number], state, point)

    def _by_model(self, number: int) -> dict[str, object]:
        seed = self._seed(number)
        match self._name:
            case "tpe" | "freeze-thaw":
                sampler: BaseSampler = TPESampler(
                    seed=seed, multivariate=True, n_startup_trials=0, constant_liar=True
                )
            case "gp":
                sampler = GPSampler(seed=seed, n_startup_trials=1, deterministic_objective=False)
            case _:
                return self._child(seed, self._trial(number))
        return sampler.sample_relative(self.study(), self._trial(number), self._distributions)

    def _child(self, seed: int, trial: FrozenTrial) -> dict[str, object]:
        """The parents of a generation are the same for each of its trials, whichever asks first."""
        study = self.study()
        sampler = self._evolution(seed)
        last = sampler.get_trial_generation(study, trial)
        for generation in range(1, last + 1):  # each is chosen from the one before it
            parents = self._evolution(self._seed(generation, "parents"))
            parents.get_parent_population(study, generation)
        params: dict[str, object] = {}
        for _ in range(_CHILDREN):
            params = sampler.sample_relative(study, trial, self._distributions)
            for name, distribution in self._distributions.items():  # mutated ones
                if name not in params:
                    params[name] = sampler.sample_independent(study, trial, name, distribution)
            if self._look(params).status == "new":
                break
        return params

    def _evolution(self, seed: int) -> BaseGASampler:
        kind = NSGAIISampler if self._name == "nsga2" else NSGAIIISampler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return kind(population_size=self._population, seed=seed)

    def _fresh(self) -> Sequence[Candidate]:
        """New networks for the next trial: at the start one, then several to choose from."""
        assert isinstance(self._asha, FreezeThaw)
        model, number = self._asha, self._next
        found: Sequence[Candidate]
        cheapest = model.cheapest() if model.is_starting else None
        if cheapest is not None and self._look(cheapest.params).status == "new":
            found = [cheapest]
        elif model.is_starting:
            spread = self._spread(0, _SPREAD)
            found = model.farthest([each for each in spread if each.network not in model.met])
        elif model.predicts or number == len(self._ids):  # TPE asks for a trial
            drawn = (self._spread(number - back, _POOL[0]) for back in range(_POOL[1]))
            rng = np.random.default_rng(self._seed(number, "parents"))
            good = model.promising()
            parents = (good[place].params for place in rng.permutation(len(good))[: _BRED[0]])
            bred = (islice(self._neighbours(number, each), _BRED[1]) for each in parents)
            found = [*chain(*drawn), *self._new(chain(*bred))]
        else:
            params = self._by_model(number)
            found = self._new(chain([params], self._neighbours(number, params)), 1)
        found = [each for each in found if each.network not in model.met]
        if not found and not self._is_dry:
            found = self._new(self._uniform(number, "last"), 1)
            self._is_dry = not found
        return found

    def _spread(self, number: int, count: int) -> list[Candidate]:
        """Random networks, the same whenever they are asked for, be they known or not."""
        if number not in self._drawn:
            drawn = islice(self._uniform(max(0, number), f"spread {number}"), 5 * count)
            feasible = (each for _, each in map(self._look, drawn) if each is not None)
            self._drawn[number] = list(islice(feasible, count))
            self._drawn.pop(number - _POOL[1], None)
        return self._drawn[number]

    def _uniform(self, number: int, purpose: str) -> Iterator[dict[str, object]]:
        rng = np.random.default_rng(self._seed(number, purpose))
        values = {name: _values(each) for name, each in self._distributions.items()}
        for _ in range(_DRAWS):
            yield {name: each[rng.integers(len(each))] for name, each in values.items()}

    def _cheapest(self) -> Candidate | None:
        """The network of the fewest FLOPs that is found by changing a random one place by place."""
        drawn = self._spread(0, _SPREAD)
        best = min(drawn, key=lambda each: each.figures["flops"], default=None)
        while best is not None:
            cheaper = [
                each
                for name, distribution in self._distributions.items()
                for value in _values(distribution)
                for _, each in [self._look({**best.params, name: value})]
                if each is not None and each.figures["flops"] < best.figures["flops"]
            ]
            if not cheaper:
                break
            best = min(cheaper, key=lambda each: each.figures["flops"])
        return best

    def _new(
        self, proposals: Iterable[Mapping[str, object]], most: int | None = None
    ) -> list[Candidate]:
        """Networks that are not known and within the limits, each once, so many at most."""
        found: dict[str, Candidate] = {}
        for params in proposals:
            status, candidate = self._look(params)
            if status == "new" and candidate is not None:
                found[candidate.network] = candidate
            if len(found) == most:
                break
        return list(found.values())

    def _neighbours(self, number: int, params: Mapping[str, Any]) -> Iterator[dict[str, object]]:
        """Parameters that differ in one place from what is known already, then in more."""
        rng = np.random.default_rng(self._seed(number, "neighbours"))
        values = {name: _values(each) for name, each in self._distributions.items()}
        places = [name for name, each in values.items() if len(each) > 1]
        for draw in range(_NEIGHBOURS):
            changed = dict(params)
            count = min(len(places), 1 + draw * _FURTHEST // _NEIGHBOURS)
            for name in rng.choice(places, count, replace=False):
                others = [value for value in values[name] if value != params[name]]
                changed[name] = others[rng.integers(len(others))]
            yield changed

    def _random(self, number: int) -> Iterator[dict[str, object]]:
        study, trial = self.study(), self._trial(number)
        sampler = RandomSampler(seed=self._seed(number, "random"))
        for _ in range(_DRAWS):
            yield {
                name: sampler.sample_independent(study, trial, name, distribution)
                for name, distribution in self._distributions.items()
            }

    def _choices(self) -> Iterator[dict[str, object]]:
        """All choices there are, each once, in an order that the seed shuffles.

        The order steps through the choices' numbers by a stride that has no divisor in common with
        their count, which needs no memory.
        """
        values = {name: _values(each) for name, each in self._distributions.items()}
        count = math.prod(map(len, values.values()))
        rng = np.random.default_rng(self._seed(0, "grid"))
        start, stride = (int(rng.integers(count)) for _ in range(2))
        while math.gcd(stride, count) != 1:
            stride += 1
        for step in range(count):
            rest = (start + step * stride) % count
            params = {}
            for name, each in values.items():
                rest, place = divmod(rest, len(each))
                params[name] = each[place]
            yield params

    def _first_new(self, proposals: Iterator[dict[str, object]]) -> dict[str, object] | None:
        return next((params for params in proposals if self._look(params).status == "new"), None)

    def _trial(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._ids[number])

    def _seed(self, number: int, purpose: str = "") -> int:
        entropy = (self._config.seed, number, *purpose.encode())
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _values(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution)
    return list(range(distribution.low, distribution.high + 1))
