"""The one writer of a study's trials in Optuna's storage, and in the backup beside it.

A proposal is written whole, with its parameters, what is known of it and its constraints, in one
transaction; a kill leaves a trial or none. One that costs no evaluation is written finished. A
server that does not answer is waited for, and nothing is written twice when it does again.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from levit_search.errors import GOES_ON, BudgetError
from levit_search.pareto import Objective
from levit_search.study import Study
from levit_search.study.backends import ServerAwayError
from levit_search.study.backup import Line, study_line, trial_line

_SOMEBODY_ELSE = "{}: another search writes to the same storage, perhaps from a copy of the folder"

# A server that is restarted, or a network that is mended, takes minutes.
_PATIENCE_S = 600.0
_LOOK_AGAIN_S = 2.0

# Notes that are written as a trial ends, and are in the backup as soon as it has ended.
_OF_THE_END = ("evaluation", "reason")

Answer = TypeVar("Answer")


class _NumberTakenError(Exception):
    """Somebody else has written a trial of that number."""


class _RefusedError(BudgetError):
    """Nothing more can be written."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; {GOES_ON}")


class Ledger:
    """The trials of a study, read once and written from then on.

    A storage that fails later ends the search with a BudgetError; what was written stays.

    Args:
        study: its storage is created if it is not there.
        distributions: of all parameters.

    Raises:
        InputError: the storage cannot be reached or read, belongs to another study, or is not as it
            was left.
    """

    def __init__(self, study: Study, distributions: Mapping[str, BaseDistribution]) -> None:
        self._study, self._distributions = study, dict(distributions)
        opened = study.open_to_write(self._distributions)
        self._storage, self._study_id = opened.storage, opened.study_id
        self._backup = opened.backup
        self.attributes = opened.attributes
        """Of the study."""
        self.next_number = len(opened.trials)
        """Of the trial that is written next."""
        self._ids: dict[int, int] = {}
        """In the storage, of trials that were begun or gone on with."""
        self._just_read: Sequence[FrozenTrial] | None = opened.trials
        """Until they are asked for, or one is written."""

    def trials(self) -> Sequence[FrozenTrial]:
        """All of them, read from the storage."""
        trials, self._just_read = self._just_read, None
        if trials is None:
            trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return trials

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
        number, tries = self.next_number, 0

        def create() -> int:
            nonlocal tries
            tries += 1
            trial_id = self._stored_id(number)
            if trial_id is None:
                return self._storage.create_new_trial(self._study_id, trial)
            found = self._storage.get_trial(trial_id)
            wanted = json.loads(json.dumps(trial.user_attrs))
            if tries == 1 or (found.params, found.user_attrs) != (trial.params, wanted):
                raise _NumberTakenError
            return trial_id  # the answer to an earlier try was lost

        self._ids[number] = self._written(create)
        self._back_up(number)
        self.next_number += 1

    def note(self, number: int, key: str, value: Any) -> None:
        """Note plain data with a running trial."""
        self._just_read = None
        if key not in _OF_THE_END:
            self._log({"trial": number, "note": key, "value": value})
        trial_id = self._id(number)
        self._written(partial(self._storage.set_trial_user_attr, trial_id, key, value))

    def constrain(self, number: int, key: str, excess: float) -> None:
        """Note how far above its limit a running trial turned out to be."""
        spelt = create_trial(state=TrialState.PRUNED, constraints={key: excess}).system_attrs
        trial_id = self._id(number)
        for name, value in spelt.items():
            self._written(partial(self._storage.set_trial_system_attr, trial_id, name, value))

    def finish(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """End a running trial."""
        trial_id, tries = self._id(number), 0

        def end() -> None:
            nonlocal tries
            tries += 1
            try:
                self._storage.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                found = self._storage.get_trial(trial_id)
                wanted = None if values is None else list(values)
                if tries == 1 or (found.state, found.values) != (state, wanted):
                    raise

        self._written(end)
        self._back_up(number)

    def set_attribute(self, key: str, value: Any) -> None:
        """Note plain data with the study."""
        self._log({"attribute": key, "value": value})
        self._written(partial(self._storage.set_study_user_attr, self._study_id, key, value))
        self.attributes[key] = value

    def keep_reference(self, values: Mapping[Objective, float]) -> None:
        """Keep what hypervolumes are measured from with the study's settings."""
        try:
            self._study.keep_reference(values)
        except OSError as error:
            path = self._study.folder / "study.yaml"
            raise _RefusedError(f"{path}: {error.strerror or error}") from None
        name = self._written(partial(self._storage.get_study_name_from_id, self._study_id))
        self._log(study_line(name, self._study.config, self._distributions))

    def _stored_id(self, number: int) -> int | None:
        try:
            return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        except KeyError:
            return None

    def _id(self, number: int) -> int:
        """Of a running trial in the storage."""
        if number not in self._ids:
            found = self._written(partial(self._stored_id, number))
            assert found is not None, "it was there when all were read"
            self._ids[number] = found
        return self._ids[number]

    def _back_up(self, number: int) -> None:
        """Write down a trial as the storage has it."""

        def read() -> FrozenTrial:
            found = self._storage.get_trial(self._ids[number])
            if found.number != number:
                raise _NumberTakenError
            return found

        self._just_read = None
        self._log(trial_line(self._written(read)))

    def _log(self, line: Line) -> None:
        try:
            self._backup.append([line])
        except OSError as error:
            raise _RefusedError(f"{self._backup.path}: {error.strerror or error}") from None

    def _written(self, write: Callable[[], Answer]) -> Answer:
        """What ``write`` returns, called again while a server does not answer.

        What it writes may have been written by an earlier call.
        """
        since: float | None = None
        while True:
            with self._writing():
                try:
                    answer = write()
                    break
                except ServerAwayError as error:
                    reason = self._study.place.reason(error)
            since = self._wait(reason, since)
        if since is not None:
            self._tell(f"answers again after {time.monotonic() - since:.0f} s")
        return answer

    def _wait(self, reason: str, since: float | None) -> float:
        """Wait a little; returns since when it waits in all.

        Raises:
            BudgetError: that is long enough.
        """
        minutes = f"{_PATIENCE_S / 60:.0f} min"
        if since is None:
            since = time.monotonic()
            self._tell(f"does not answer ({reason}); waiting for up to {minutes}")
        if time.monotonic() - since > _PATIENCE_S:
            raise BudgetError(
                f"{self._study.place}: has not answered for {minutes} ({reason}); what was "
                "finished is kept, and the same command goes on"
            )
        time.sleep(_LOOK_AGAIN_S)
        return since

    def _tell(self, text: str) -> None:
        # Python shows a warning of one place and text once; this one may come again.
        warnings.warn(f"[{time.strftime('%H:%M:%S')}] {self._study.place}: {text}", stacklevel=2)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._study.storage_errors(_RefusedError):
                yield
        except (UpdateFinishedTrialError, _NumberTakenError):
            raise BudgetError(_SOMEBODY_ELSE.format(self._study.folder)) from None
