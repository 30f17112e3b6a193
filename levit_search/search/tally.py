"""All that a search has found so far, with what is asked of it again and again kept up to date."""

import marshal
import statistics
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from levit_search import table
from levit_search.pareto import Objective, minimised
from levit_search.study import Record

_LATEST = 200  # trials that say how long the next ones take


class Tally:
    """Records in the order in which they were told, their counts and their front.

    Args:
        objectives: of the study.
        records: those there are already.
    """

    def __init__(self, objectives: Sequence[Objective], records: Sequence[Record] = ()) -> None:
        self._objectives = tuple(objectives)
        self.records: list[Record] = []
        self.known: dict[str, Record] = {}
        """By network id, the trial that evaluated it."""
        self.states: Counter[str] = Counter()
        """How many trials are ``complete``, ``pruned`` or ``failed``."""
        self.reused = 0
        """Trials whose network was known already."""
        self.taken = 0
        """Trials of another study."""
        self.stopped = 0
        """Candidates that a rung ended."""
        self.over = 0
        """Proposals that were no network, or over a limit."""
        self.failures: dict[str, list[int]] = {}
        """By network id, the trials that failed."""
        self.spent = 0
        """Trials that cost this study an evaluation."""
        self._front, self._estimated_front = (_Front(self._objectives) for _ in range(2))
        self._seconds: deque[float] = deque(maxlen=_LATEST)
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count a trial that has ended."""
        kept = replace(record, evaluation=_Packed(record.evaluation))
        self.records.append(kept)
        self.states[record.state] += 1
        self.reused += record.reused_from is not None
        self.taken += record.taken_from is not None
        self.stopped += record.is_stopped and record.reused_from is None
        self.spent += is_spent(record)
        is_over = record.state == "pruned" and record.reused_from is None and not record.is_stopped
        self.over += is_over
        if record.state == "failed" and record.architecture is not None:
            self.failures.setdefault(record.architecture.id, []).append(record.trial)
        if record.evaluation and record.architecture is not None and record.reused_from is None:
            self.known.setdefault(record.architecture.id, kept)
        if record.seconds > 0 and record.taken_from is None:
            self._seconds.append(record.seconds)
        if record.is_candidate:
            (self._front if record.is_evaluated else self._estimated_front).add(kept)

    @property
    def front(self) -> list[Record]:
        """The non-dominated records as by :func:`levit_search.table.front`."""
        return table.front([*self._front.records, *self._estimated_front.records], self._objectives)

    def seconds(self) -> float | None:
        """What a trial takes, by the median of the latest."""
        return statistics.median(self._seconds) if self._seconds else None

    def fruitless(self) -> int:
        """How many proposals in a row, up to the latest, came to nothing."""
        latest = sorted(self.records, key=lambda record: record.trial)
        count = 0
        for record in reversed(latest):
            if is_spent(record) or record.taken_from is not None:
                break
            count += 1
        return count


class _Front:
    """Non-dominated records, found while they come."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = objectives
        self.records: list[Record] = []
        self._points = np.empty((0, len(objectives)))

    def add(self, record: Record) -> None:
        point = minimised([record.values], self._objectives)[0]
        no_worse = (self._points <= point).all(axis=1)
        if (no_worse & (self._points < point).any(axis=1)).any():
            return
        kept = ~((point <= self._points).all(axis=1) & (point < self._points).any(axis=1))
        self.records = [each for each, keep in zip(self.records, kept, strict=True) if keep]
        self.records.append(record)
        self._points = np.vstack([self._points[kept], point])


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


def is_spent(record: Record) -> bool:
    """Whether a trial cost its study an evaluation: neither turned down by a limit before it was
    trained, nor known already, nor another study's."""
    if record.reused_from is not None or record.taken_from is not None:
        return False
    was_trained = record.evaluation.get("training") is not None
    return was_trained or record.state in ("complete", "failed")
