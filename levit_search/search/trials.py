"""The trials of a search: written in Optuna's storage and the backup beside it, and in memory what
is asked of them again and again.

A proposal is written whole, with its parameters, what is known of it and its constraints, in one
transaction; a kill leaves a trial or none. One that costs no evaluation is written finished. A
server that does not answer is waited for, and nothing is written twice when it does again.
"""

import json
import marshal
import statistics
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from levit_search import table
from levit_search.errors import GOES_ON, BudgetError, refused_by_disk
from levit_search.pareto import Objective
from levit_search.study import Record, Study, with_measured
from levit_search.study.backends import ServerAwayError
from levit_search.study.backup import Line, study_line, trial_line

# A server that is restarted, or a network that is mended, takes minutes.
_PATIENCE_S = 600.0
_LOOK_AGAIN_S = 2.0

# Notes that are written as a trial ends, and are in the backup as soon as it has ended.
_OF_THE_END = ("evaluation", "reason")

_LATEST = 200  # trials that say how long the next ones take
# Tables are for people to look at meanwhile; writing them should cost a fiftieth of the time.
_TABLES_EVERY_S = 5.0
_TABLES_SHARE = 50

COUNTS = ("complete", "pruned", "failed", "reused", "evaluated", "stopped", "infeasible", "taken")
"""What is counted: trials by state ``complete``, ``pruned`` and ``failed``; ``reused`` ones were
known already; ``evaluated`` ones cost an evaluation, of which ``stopped`` ones ended at a rung;
``infeasible`` ones were no network or over a limit, ``taken`` ones another study's."""

_SOMEBODY_ELSE = "{}: another search writes to the same storage, perhaps from a copy of the folder"

Answer = TypeVar("Answer")


class _NumberTakenError(Exception):
    """Somebody else has written a trial of that number."""


class _RefusedError(BudgetError):
    """Nothing more can be written."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; {GOES_ON}")


class SearchStatus:
    """What a search has found so far: records of finished trials, their counts and their front.

    Args:
        objectives: of the study.
        records: those there are already.
    """

    def __init__(self, objectives: Sequence[Objective], records: Sequence[Record] = ()) -> None:
        self._objectives = tuple(objectives)
        self.records: list[Record] = []
        """In the order in which they were told."""
        self.front: list[Record] = []
        """The non-dominated records as by :func:`levit_search.table.front`."""
        self.known: dict[str, Record] = {}
        """By network id, the trial that evaluated it."""
        self.failures: dict[str, list[int]] = {}
        """By network id, the trials that failed."""
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        """How many trials there are of each kind of :data:`COUNTS`."""
        self.consecutive_rejections = 0
        """How many proposals in a row, up to the latest, came to nothing."""
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count a trial that has ended."""
        kept = replace(record, evaluation=_Packed(record.evaluation))
        self.records.append(kept)
        is_new, is_evaluated = record.reused_from is None, _is_evaluated(record)
        is_over = record.state == "pruned" and is_new and not record.is_stopped
        self.counts[record.state] += 1
        self.counts["reused"] += not is_new
        self.counts["evaluated"] += is_evaluated
        self.counts["stopped"] += record.is_stopped and is_new
        self.counts["infeasible"] += is_over
        self.counts["taken"] += record.taken_from is not None
        is_rejected = not is_evaluated and record.taken_from is None
        self.consecutive_rejections = self.consecutive_rejections + 1 if is_rejected else 0
        if record.architecture is not None and record.state == "failed":
            self.failures.setdefault(record.architecture.id, []).append(record.trial)
        if record.architecture is not None and record.evaluation and is_new:
            self.known.setdefault(record.architecture.id, kept)
        if record.is_candidate:
            self.front = table.front([*self.front, kept], self._objectives)

    def trial_s(self) -> float | None:
        """What a trial takes, by the median of the latest."""
        own = (each.seconds for each in reversed(self.records) if each.taken_from is None)
        latest = list(islice(filter(None, own), _LATEST))
        return statistics.median(latest) if latest else None


class TrialStore:
    """The trials of a study, read once and written from then on, with what they come to.

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
        self._backup = study.backup
        self.attributes = opened.attributes
        """Of the study."""
        self.next_number = len(opened.trials)
        """Of the trial that is written next."""
        self._ids: dict[int, int] = {}
        """In the storage, of trials that were begun or gone on with."""
        self._just_read: Sequence[FrozenTrial] | None = opened.trials
        """Until they are asked for, or one is written."""
        self.status = SearchStatus(study.config.objectives)
        self._tables_at = 0.0

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

    def count(self, record: Record) -> Record:
        """Count a trial that has ended; returns it with what was found of its network later."""
        found = with_measured(record, self.attributes, self._study.config.limits.latency_ms)
        self.status.add(found)
        return found

    def recount(self) -> None:
        """Count all trials again, with what was found of their networks meanwhile."""
        records, self.status = self.status.records, SearchStatus(self._study.config.objectives)
        for record in records:
            self.count(record)

    def write_tables(self, now_and_then: bool = False) -> None:
        """Write the tables that people look at; ``now_and_then`` not for each trial.

        Raises:
            BudgetError: the disk refuses.
        """
        start = time.monotonic()
        if now_and_then and start < self._tables_at:
            return
        records = sorted(self.status.records, key=lambda each: each.trial)
        try:
            table.write_tables(self._study, records, self.attributes)
        except OSError as error:
            refusal = refused_by_disk(error) or f"{self._study.folder}: {error}"
            raise BudgetError(f"{refusal}; {GOES_ON}") from None
        took_s = time.monotonic() - start
        self._tables_at = start + max(_TABLES_EVERY_S, _TABLES_SHARE * took_s)

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
            with self._study.place.errors(_RefusedError):
                yield
        except (UpdateFinishedTrialError, _NumberTakenError):
            raise BudgetError(_SOMEBODY_ELSE.format(self._study.folder)) from None


class _Packed(Mapping[str, Any]):
    """Plain data in little room: the learning curves of thousands of trials are much, and seldom
    looked at."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._packed = zlib.compress(marshal.dumps(dict(content)), 1)  # which only we read

    def __getitem__(self, key: str) -> Any:
        return self._unpacked()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._unpacked())

    def __len__(self) -> int:
        return len(self._unpacked())

    def _unpacked(self) -> dict[str, Any]:
        content: dict[str, Any] = marshal.loads(zlib.decompress(self._packed))
        return content


def _is_evaluated(record: Record) -> bool:
    """Whether a trial cost its study an evaluation: neither turned down by a limit before it was
    trained, nor known already, nor another study's."""
    if record.reused_from is not None or record.taken_from is not None:
        return False
    was_trained = record.evaluation.get("training") is not None
    return was_trained or record.state in ("complete", "failed")
