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
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
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

Answer = TypeVar("Answer")


class _NumberTakenError(Exception):
    """Somebody else has written a trial of that number."""


class _RefusedError(BudgetError):
    """Nothing more can be written."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; {GOES_ON}")


class SearchStatus:
    """What a search has found so far: records of finished trials, their counts and their front."""

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
        is_new = record.reused_from is None
        is_resumed = record.resumes is not None
        # What a limit of latency_ms ended before its training has cost no evaluation.
        is_whole = record.state in ("complete", "failed")
        was_trained = record.evaluation.get("training") is not None
        is_evaluated = is_new and record.taken_from is None and (is_whole or was_trained)
        is_first = is_evaluated and not is_resumed
        self.counts[record.state] += 1
        self.counts["reused"] += not is_new
        self.counts["evaluated"] += is_first
        self.counts["stopped"] += (record.is_stopped and is_new) - is_resumed
        self.counts["infeasible"] += record.state == "pruned" and is_new and not record.is_stopped
        self.counts["taken"] += record.taken_from is not None
        is_rejected = not is_evaluated and record.taken_from is None
        self.consecutive_rejections = self.consecutive_rejections + 1 if is_rejected else 0
        if record.architecture is not None and record.state == "failed":
            self.failures.setdefault(record.architecture.id, []).append(record.trial)
        if record.architecture is not None and record.evaluation and is_new:
            if is_resumed:
                self.known[record.architecture.id] = kept
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

    The storage is created if it is not there. One that fails later ends the search with a
    BudgetError; what was written stays.

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
        self._ids: dict[int, int] = {}  # in the storage, of trials begun or gone on with
        # Until they are asked for, or one is written.
        self._just_read: Sequence[FrozenTrial] | None = opened.trials
        self.status = SearchStatus(study.config.objectives)
        self._tables_at = 0.0  # when they may be written again

    def trials(self) -> Sequence[FrozenTrial]:
        """All of them, read from the storage."""
        trials, self._just_read = self._just_read, None
        if trials is None:
            trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return trials

    def add(
        self,
        state: TrialState,
        values: Sequence[float] | None,
        params: Mapping[str, Any],
        notes: Mapping[str, Any],
        excess: Mapping[str, float],
        kept: Mapping[str, Any],
    ) -> None:
        """Write a trial in any state.

        Args:
            state: running, or already finished.
            values: of the objectives, if it is complete.
            params: for the distributions.
            notes: plain data by name.
            excess: by constraint, how far above its limit; <= 0 keeps it.
            kept: what the sampler keeps with it.
        """
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
        with _disk(self._study.folder / "study.yaml"):
            self._study.keep_reference(values)
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
            raise _RefusedError(refusal) from None
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
        with _disk(self._backup.path):
            self._backup.append([line])

    def _written(self, write: Callable[[], Answer]) -> Answer:
        """What ``write`` returns, called again while a server does not answer.

        What it writes may have been written by an earlier call.

        Raises:
            BudgetError: the storage refuses, or has not answered for long.
        """
        since: float | None = None
        minutes = f"{_PATIENCE_S / 60:.0f} min"
        while True:
            try:
                with self._study.place.errors(_RefusedError):
                    try:
                        answer = write()
                        break
                    except ServerAwayError as error:
                        reason = self._study.place.reason(error)
            except (UpdateFinishedTrialError, _NumberTakenError):
                raise BudgetError(
                    f"{self._study.folder}: another search writes to the same storage, perhaps "
                    "from a copy of the folder"
                ) from None
            if since is None:
                since = time.monotonic()
                self._tell(f"does not answer ({reason}); waiting for up to {minutes}")
            if time.monotonic() - since > _PATIENCE_S:
                raise BudgetError(
                    f"{self._study.place}: has not answered for {minutes} ({reason}); what was "
                    "finished is kept, and the same command goes on"
                )
            time.sleep(_LOOK_AGAIN_S)
        if since is not None:
            self._tell(f"answers again after {time.monotonic() - since:.0f} s")
        return answer

    def _tell(self, text: str) -> None:
        # Python shows a warning of one place and text once; this one may come again.
        warnings.warn(f"[{time.strftime('%H:%M:%S')}] {self._study.place}: {text}", stacklevel=2)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Raise what keeps the block from writing to ``path`` as a :class:`_RefusedError`."""
    try:
        yield
    except OSError as error:
        raise _RefusedError(f"{path}: {error.strerror or error}") from None


def finding(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, object]:
    """Those parts of an evaluation that are kept with the study, and when it has ended."""
    found = {name: content[name] for name in names if name in content}
    return {**found, "finished": datetime.now().isoformat(timespec="seconds")}


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

    def _unpacked(self) -> Mapping[str, Any]:
        content: Mapping[str, Any] = marshal.loads(zlib.decompress(self._packed))
        return content
