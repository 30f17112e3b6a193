"""The one writer of a study's trials in Optuna's storage.

A proposal is written whole, with its parameters, what is known of it and its constraints, in one
transaction; a kill leaves a trial or none. One that costs no evaluation is written finished.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from levit_search.errors import BudgetError
from levit_search.study import Study

_SOMEBODY_ELSE = "{}: another search writes to the same storage, perhaps from a copy of the folder"


class Ledger:
    """The trials of a study, read once and written from then on.

    A storage that fails later ends the search with a BudgetError; what was written stays.

    Args:
        study: its storage is created if it is not there.
        distributions: of all parameters.

    Raises:
        InputError: the storage cannot be reached or read, or belongs to another study.
    """

    def __init__(self, study: Study, distributions: Mapping[str, BaseDistribution]) -> None:
        self._study, self._distributions = study, dict(distributions)
        self._storage, self._study_id = study.open_storage()
        with study.storage_errors():
            self.attributes = dict(self._storage.get_study_user_attrs(self._study_id))
            """Of the study."""
            self._ids = {trial.number: trial._trial_id for trial in self.trials()}

    def trials(self) -> Sequence[FrozenTrial]:
        """All of them, read from the storage."""
        return self._storage.get_all_trials(self._study_id, deepcopy=False)

    @property
    def next_number(self) -> int:
        """Of the trial that is written next."""
        return len(self._ids)

    def begin(
        self,
        params: Mapping[str, Any],
        notes: Mapping[str, Any],
        excess: Mapping[str, float],
        kept: Mapping[str, Any],
    ) -> None:
        """Write a running trial.

        Args:
            params: for the distributions.
            notes: plain data by name.
            excess: by constraint, how far above its limit; <= 0 keeps it.
            kept: what the sampler keeps with it.
        """
        self.add(TrialState.RUNNING, None, params, notes, excess, kept)

    def add(
        self,
        state: TrialState,
        values: Sequence[float] | None,
        params: Mapping[str, Any],
        notes: Mapping[str, Any],
        excess: Mapping[str, float],
        kept: Mapping[str, Any],
    ) -> None:
        """Write a trial in any state, usually finished; ``values`` are those of the objectives if
        it is complete. The rest is as of :meth:`begin`."""
        trial = create_trial(
            state=state,
            values=values,
            params=dict(params),
            distributions=self._distributions,
            user_attrs=dict(notes),
            system_attrs=dict(kept),
            constraints=dict(excess),
        )
        number = self.next_number
        with self._writing():
            trial_id = self._storage.create_new_trial(self._study_id, trial)
            found = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        if found != trial_id:
            raise BudgetError(_SOMEBODY_ELSE.format(self._study.folder))
        self._ids[number] = trial_id

    def note(self, number: int, key: str, value: Any) -> None:
        """Note plain data with a running trial."""
        with self._writing():
            self._storage.set_trial_user_attr(self._ids[number], key, value)

    def constrain(self, number: int, key: str, excess: float) -> None:
        """Note how far above its limit a running trial turned out to be."""
        spelt = create_trial(state=TrialState.PRUNED, constraints={key: excess}).system_attrs
        with self._writing():
            for name, value in spelt.items():
                self._storage.set_trial_system_attr(self._ids[number], name, value)

    def finish(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """End a running trial."""
        with self._writing():
            self._storage.set_trial_state_values(self._ids[number], state, values)

    def set_attribute(self, key: str, value: Any) -> None:
        """Note plain data with the study."""
        with self._writing():
            self._storage.set_study_user_attr(self._study_id, key, value)
        self.attributes[key] = value

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._study.storage_errors(BudgetError):
                yield
        except UpdateFinishedTrialError:
            raise BudgetError(_SOMEBODY_ELSE.format(self._study.folder)) from None
