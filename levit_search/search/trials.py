"""The trials of a search: written in Optuna's storage, and in memory what is asked of them again
and again."""

import marshal
import statistics
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from optuna.distributions import BaseDistribution

from levit_search import table
from levit_search.errors import GOES_ON, BudgetError, refused_by_disk
from levit_search.pareto import Objective
from levit_search.search.ledger import Ledger
from levit_search.study import Record, Study, with_measured

_LATEST = 200  # trials that say how long the next ones take
# Tables are for people to look at meanwhile; writing them should cost a fiftieth of the time.
_TABLES_EVERY_S = 5.0
_TABLES_SHARE = 50

COUNTS = ("complete", "pruned", "failed", "reused", "evaluated", "stopped", "infeasible", "taken")
"""What is counted: trials by state ``complete``, ``pruned`` and ``failed``; ``reused`` ones were
known already; ``evaluated`` ones cost an evaluation, of which ``stopped`` ones ended at a rung;
``infeasible`` ones were no network or over a limit, ``taken`` ones another study's."""


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


class TrialStore(Ledger):
    """The trials of a study, with what they come to."""

    def __init__(self, study: Study, distributions: Mapping[str, BaseDistribution]) -> None:
        super().__init__(study, distributions)
        self.status = SearchStatus(study.config.objectives)
        self._tables_at = 0.0

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
