"""What samplers learn from: a study's trials as each sampler can make use of them.

Optuna's samplers read trials from a study. This one lives in memory and differs from the stored one
where that serves the sampler:

- values are minimised numbers (:func:`levit_search.pareto.minimised`): the error, costs on a log
  scale;
- a candidate stopped at a rung is complete, with the accuracy that it is expected to reach, so that
  short trainings teach as much about the space as whole ones;
- a proposal over a limit is a pruned trial to TPE, which sorts those by their violation, and a
  complete one to the others, which read nothing else: NSGA-II and -III order it by its violation,
  and a Gaussian process models the violation. Its accuracy, which nobody knows, is the middle of
  those seen;
- a network proposed again by the very same parameters, and one that failed, are not there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from levit_search.pareto import Objective, minimised
from levit_search.search.moasha import MultiObjectiveASHA

_NAME = "history"
_KEPT = ":generation"  # the end of the one attribute that evolution needs again after a restart
_PARENTS = ":parent:"


class History:
    """The trials of a study, told one by one in the order of their numbers.

    Args:
        objectives: of the study.
        distributions: of all parameters, by name.
        constraints: names of everything that a proposal may violate.
        pruned: whether the sampler reads pruned trials.
        rungs: what is expected of candidates that were stopped; None where none are.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        distributions: Mapping[str, BaseDistribution],
        constraints: Sequence[str],
        pruned: bool,
        rungs: MultiObjectiveASHA | None,
    ) -> None:
        self._objectives, self._distributions = tuple(objectives), dict(distributions)
        self._constraints, self._pruned, self._rungs = tuple(constraints), pruned, rungs
        self._storage = InMemoryStorage()
        directions = [StudyDirection.MINIMIZE] * len(self._objectives)
        self._study_id = self._storage.create_new_study(directions, _NAME)
        self._ids: dict[int, int] = {}
        self._stopped: list[tuple[int, int, dict[str, float]]] = []
        self._gains: tuple[float, ...] = ()
        self._refreshed = 0  # how many of the stopped ones had these gains told
        self._seen: set[tuple[Any, ...]] = set()
        self._values: list[Any] = []

    def study(self) -> optuna.Study:
        """The trials as they are now; Optuna's studies keep what they have read, so take a new one
        for each proposal."""
        return optuna.load_study(study_name=_NAME, storage=self._storage, sampler=RandomSampler())

    @property
    def evaluated(self) -> int:
        """How many networks have figures."""
        return len(self._values)

    def begin(self, number: int, attributes: Mapping[str, Any] | None = None) -> None:
        """A running trial without parameters.

        Args:
            number: in the study.
            attributes: those stored with it in an earlier session.
        """
        self._ids[number] = self._storage.create_new_trial(self._study_id)
        for key, value in (attributes or {}).items():
            if key.endswith(_KEPT):
                self._storage.set_trial_system_attr(self._ids[number], key, value)

    def attributes(self, number: int) -> dict[str, Any]:
        """What the sampler keeps with a trial and needs again in a later session."""
        kept = self._storage.get_trial(self._ids[number]).system_attrs
        return {key: value for key, value in kept.items() if key.endswith(_KEPT)}

    def parents(self) -> dict[str, Any]:
        """Which trials evolution chose for parents, by generation; needed again as well, since what
        is expected of them changes."""
        return dict(self._storage.get_study_system_attrs(self._study_id))

    def restore_parents(self, attributes: Mapping[str, Any]) -> None:
        """Put back what :meth:`parents` gave, out of all attributes of the study."""
        for key, value in attributes.items():
            if _PARENTS in key:
                self._storage.set_study_system_attr(self._study_id, key, value)

    def propose(self, number: int, params: Mapping[str, Any]) -> None:
        """Give a running trial its parameters, of all distributions or of none."""
        assert not params or params.keys() == self._distributions.keys()
        trial = self._storage.get_trial(self._ids[number])
        # Optuna would copy both for each of them; the distributions are those of all trials.
        trial.params = dict(params)
        trial.distributions = self._distributions if params else {}

    def complete(
        self, number: int, values: Mapping[str, float], excess: Mapping[str, float]
    ) -> None:
        """A trial has all of its objectives.

        Args:
            number: of the trial.
            values: by name; what is no objective is ignored.
            excess: by constraint, how far above its limit, as a share of it; <= 0 keeps it.
        """
        key = self._key(number)
        if key in self._seen:
            self.drop(number)
            return
        self._seen.add(key)
        point = minimised([values], self._objectives)[0].tolist()
        self._values.append(point)
        self._end(number, TrialState.COMPLETE, point, excess)

    def stop(
        self, number: int, epoch: int, values: Mapping[str, float], excess: Mapping[str, float]
    ) -> None:
        """A trial was stopped at a rung, where its accuracy was that in ``values``."""
        assert self._rungs is not None
        self._stopped.append((number, epoch, dict(values)))
        expected = self._rungs.expected(epoch, values["top1_percent"])
        self.complete(number, {**values, "top1_percent": expected}, excess)

    def violate(self, number: int, known: Mapping[str, float], excess: Mapping[str, float]) -> None:
        """A proposal breaks a limit, or is no network at all.

        Args:
            number: of the trial.
            known: those objectives that are known all the same.
            excess: as of :meth:`complete`.
        """
        if self._pruned:
            self._end(number, TrialState.PRUNED, None, excess)
            return
        middle = (
            np.median(self._values, axis=0) if self._values else np.zeros(len(self._objectives))
        )
        point = [
            minimised([known], [name])[0, 0].item() if name in known else middle[index].item()
            for index, name in enumerate(self._objectives)
        ]
        self._end(number, TrialState.COMPLETE, point, excess)

    def drop(self, number: int) -> None:
        """A trial teaches nothing."""
        self._storage.set_trial_state_values(self._ids[number], TrialState.FAIL)

    def refresh(self) -> None:
        """Bring what is expected of stopped candidates up to date."""
        if self._rungs is None:
            return
        gains = self._rungs.gains()
        first = self._refreshed if gains == self._gains else 0
        self._gains, self._refreshed = gains, len(self._stopped)
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        for number, epoch, values in self._stopped[first:]:
            trial = trials[self._ids[number]]
            if trial.state == TrialState.COMPLETE:
                expected = self._rungs.expected(epoch, values["top1_percent"])
                full = {**values, "top1_percent": expected}
                trial.values = minimised([full], self._objectives)[0].tolist()

    def _key(self, number: int) -> tuple[Any, ...]:
        params = self._storage.get_trial(self._ids[number]).params
        return tuple(params[name] for name in self._distributions)

    def _end(
        self,
        number: int,
        state: TrialState,
        values: list[float] | None,
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
        self._storage.set_trial_state_values(self._ids[number], state, values)
