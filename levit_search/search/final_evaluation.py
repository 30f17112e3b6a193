"""The end of a search: what its front holds gets figures of its own, and latencies a second look.

Where latencies are predicted, the front is measured until nothing on it is predicted only. Where
accuracies are inherited from a supernet, the front by estimates and the networks that come closest
to it are trained, and measured too if their latency was predicted.

A front of measured latencies is a selection of lucky minutes: of two networks that are as fast, the
one comes onto it that was measured too fast. So its members, and rivals that miss it by no more
than the noise of their latencies, are measured anew and together, and the front is what these
figures say. What comes onto it then is measured, too, until nothing on it was measured once only.
The networks that the search is compared with are measured with the first of these.
"""

import math
import statistics
import warnings
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import numpy as np

from levit_search import table
from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.engine.interface import FIRST_BASELINE, Engine, Event
from levit_search.errors import BudgetError
from levit_search.latency.protocol import PLAIN_TIME_SDS, repeats_percent
from levit_search.latency.worker import PROTOCOL
from levit_search.pareto import (
    Objective,
    Points,
    figure_and_target,
    is_maximised,
    is_time,
    minimised,
    non_dominated,
)
from levit_search.search.callbacks import CallbackList
from levit_search.search.comparisons import Comparisons
from levit_search.search.loop import Loop
from levit_search.search.trials import TrialStore
from levit_search.study import (
    MEASURED,
    REMEASURED,
    BaselineRecord,
    Record,
    Study,
    compared,
    training_file,
)

# Where so many in a row cannot be verified it is not their fault.
_FAILURES = 3
# Beside the front so many networks are measured again at most, those that miss it by the least.
_RIVALS = 8
# More are measured in several goes: their files lie on the target at once, and each go is kept.
_TOGETHER = 24


Measured = Record | BaselineRecord
"""What has latencies."""


class FinalEvaluation:
    """Verifies until nothing that the front needs is estimated, or measured once, only.

    Args:
        study: which one.
        store: its trials; what is found is kept there as attributes of the study.
        comparisons: what the search is compared with.
        callbacks: told what happens.
    """

    def __init__(
        self, study: Study, store: TrialStore, comparisons: Comparisons, callbacks: CallbackList
    ) -> None:
        self._study, self._config, self._store = study, study.config, store
        self._comparisons, self._callbacks = comparisons, callbacks
        self.running: dict[int, Record] = {}
        self._failed: dict[str, dict[str, Any]] = {}
        """What failed since something worked last; kept once something works again."""
        self._works = False
        self._seconds: list[float] = []
        """What each took that was verified in this session."""
        self._unmeasured: set[str] = set()
        """What could not be measured again in this session."""
        self._lost: str | None = None
        """Why nothing can be measured any more."""

    def left(self, aside: Collection[str] = ()) -> list[Record]:
        """Records that are to be verified, those ``aside`` left out."""
        config, objectives = self._config, self._config.objectives
        records = [
            record
            for record in self._store.status.records
            if record.architecture is None or _key(record) not in aside
        ]
        if config.inherits:
            wanted = worth_verifying(records, objectives, config.supernet.rivals)
        elif config.is_measured and config.latency.method == "predicted":
            wanted = table.front(records, objectives)
        else:
            wanted = []
        return [record for record in wanted if _key(record) not in self._store.attributes]

    def left_again(self) -> list[Measured]:
        """What is to be measured again, together.

        These are baselines, members of the front and near rivals of which this was not done by
        today's protocol. Where it was done to each member, rivals alone are no reason.
        """
        config, status = self._config, self._store.status
        if not config.is_measured and not config.also_measured:
            return []
        again: list[Measured] = [each for each in self._comparisons.records() if each.is_complete]
        if any(map(self._is_unrepeated, status.front)):
            again += [*status.front, *near_rivals(status.records, config.objectives, _RIVALS)]
        return [each for each in again if self._is_unrepeated(each)]

    def run(self, loop: Loop) -> None:
        """Verify and measure again until nothing is left, or somebody asks to stop.

        Once asked, what is verified goes on to its next rung or its end, and what is measured again
        ends at once. A network that cannot be verified leaves the front once others have been;
        where several fail in a row they stay for the next session. One that cannot be measured
        again keeps the search's figures, with a warning, until the next session.

        Raises:
            BudgetError: nothing can be verified, or a disk refuses.
        """
        while True:
            self._verify(loop)
            records = self.left_again()
            if not records or loop.is_asked_to_stop():
                return
            for start in range(0, len(records), _TOGETHER):
                some = records[start : start + _TOGETHER]
                if self._lost is not None:
                    self._leave(some, self._lost)
                else:
                    self._measure_again(loop, some)

    def _verify(self, loop: Loop) -> None:
        """Find figures in the place of estimates on the front, as far as nobody asks to stop."""
        if count := len(self.left()):
            what = "of the front: measured"
            if self._config.inherits:
                what = "of the front and near to it: trained alone"
            self._callbacks.on_progress(f"{_networks(count)} {what}", None)
        loop.run(self)
        if self._failed and not loop.is_asked_to_stop():
            reason = next(reversed(self._failed.values()))["failed"]
            raise BudgetError(
                f"{len(self._failed)} networks on the front could not be verified, the last with: "
                f"{reason}; the same command tries again"
            )

    def start_next(self, engine: Engine) -> bool:
        record = self._next()
        if record is None:
            return False
        assert record.architecture is not None
        self.running[record.trial] = record
        engine.verify(record.trial, record.architecture)
        self._callbacks.on_trial_start(record.trial, record.architecture)
        return True

    def is_done(self) -> bool:
        may_be_kept = self._failed and self._works and len(self._failed) < _FAILURES
        if may_be_kept and self._next() is None:
            self._keep_failed()  # and look at what comes onto the front now
        return self._next() is None

    def at_rung(self, number: int, epoch: int, values: Mapping[str, float]) -> bool:
        self._callbacks.on_trial_result(number, epoch, values["top1_percent"])
        return True

    def done(self, number: int, content: Mapping[str, Any]) -> None:
        record = self.running.pop(number)
        self._works = True
        self._seconds.append(content.get("seconds", 0.0))
        names = ("values", "latency", "training", "seconds")
        found = {name: content[name] for name in names if name in content}
        found["finished"] = datetime.now().isoformat(timespec="seconds")
        self._store.set_attribute(_key(record), found)
        self._keep_failed()
        self._ended(record)

    def failed(self, number: int, event: Event) -> None:
        record = self.running.pop(number)
        self._failed[_key(record)] = {"failed": event.text}
        self._ended(record)

    def _next(self) -> Record | None:
        """What is to be verified next; None if nothing is now."""
        if len(self._failed) >= _FAILURES:
            return None
        if not self._config.inherits and self.running:
            return None  # what comes onto the front next depends on what is found
        aside = {*self._failed, *(_key(record) for record in self.running.values())}
        return next(iter(self.left(aside)), None)

    def _keep_failed(self) -> None:
        """Write down what failed, and count with all that was found."""
        for key, content in self._failed.items():
            self._store.set_attribute(key, content)
        self._failed = {}
        self._store.recount()

    def _ended(self, record: Record) -> None:
        """Show what became of a network that was verified, and of those that are left."""
        training_file(self._study.folder, _network(record).id).unlink(missing_ok=True)
        status, left_s = self._store.status, None
        if self._config.inherits and self._seconds:  # else it is not known which ones are left
            left = len(self.left(self._failed))
            left_s = left * statistics.fmean(self._seconds) / self._config.engine.jobs
        shown = next(each for each in status.records if each.trial == record.trial)
        self._callbacks.on_trial_complete(shown, status, left_s)

    def _measure_again(self, loop: Loop, records: list[Measured]) -> None:
        """Measure records again and together, and say what became of the front."""
        trials = [record.trial for record in records if isinstance(record, Record)]
        number = next(iter(trials), FIRST_BASELINE)
        networks = [_network(record) for record in records]
        event = loop.measure(number, networks, f"{_told(records)}: measured again")
        if event is None:
            return
        if event.kind == "failed":
            self._lost = event.text if event.trial is None else None
            self._leave(records, event.text)
            return
        finished = datetime.now().isoformat(timespec="seconds")
        for record, result in zip(records, event.content["results"], strict=True):
            if "failed" in result:
                self._leave([record], result["failed"])
                continue
            found = {name: result[name] for name in ("values", "latency", "targets")}
            found |= {"protocol": PROTOCOL, "finished": finished}
            self._store.set_attribute(_key(record, REMEASURED), found)
        before = {record.trial for record in self._store.status.front}
        self._store.recount()
        after = {record.trial for record in self._store.status.front}
        lost, won = len(before - after), len(after - before)
        text = f"measured again: {lost} left the front, {won} came onto it"
        self._callbacks.on_progress(text, None)

    def _leave(self, records: list[Measured], reason: str) -> None:
        """Leave records with the search's figures for this session."""
        self._unmeasured |= {_key(record, REMEASURED) for record in records}
        warnings.warn(
            f"not measured again: {_told(records, named=True)}: {reason}; the search's own figures "
            "stay, and the same command tries again",
            stacklevel=2,
        )

    def _is_unrepeated(self, record: Measured) -> bool:
        key = _key(record, REMEASURED)
        found = self._store.attributes.get(key, {})
        return key not in self._unmeasured and found.get("protocol") != PROTOCOL


def worth_verifying(
    records: Collection[Record], objectives: tuple[Objective, ...], rivals: int
) -> list[Record]:
    """The front by estimates, then the networks that miss it by the least accuracy.

    A network misses the front by what its accuracy lacks to the best network that is no worse in
    all other objectives.

    Args:
        records: in any states; what counts are estimates, also of those verified already, so that
            the choice does not depend on what was verified.
        objectives: one of them is ``top1_percent``.
        rivals: how many beside the front.
    """
    known = [
        record
        for record in records
        if record.reused_from is None
        and "top1_inherited_percent" in record.values
        and (record.state == "complete" or "verified" in record.evaluation)
    ]
    if not known:
        return []
    points = minimised([record.estimates for record in known], objectives)
    on_front = non_dominated(points)
    accuracy = [name for name, each in enumerate(objectives) if is_maximised(each)]
    others = [column for column in range(len(objectives)) if column not in accuracy]
    front = points[on_front]
    missed = np.zeros(len(known))
    for place, point in enumerate(points):
        no_worse = front[(front[:, others] <= point[others]).all(axis=1)]
        if not on_front[place]:
            missed[place] = point[accuracy[0]] - no_worse[:, accuracy[0]].min()
    order = np.argsort(missed, kind="stable")
    chosen = [place for place in order if on_front[place]]
    chosen += [place for place in order if not on_front[place]][:rivals]
    return [known[place] for place in chosen]


def near_rivals(
    records: Collection[Record], objectives: tuple[Objective, ...], most: int
) -> list[Record]:
    """The networks that miss the front by no more than the noise of their latencies.

    A network misses the front by the least part of each of its latencies' noise by which all of
    them have to be lower for no member to dominate it. The noise of a latency is what
    :func:`levit_search.latency.protocol.repeats_percent` says of it.

    Args:
        records: in any states.
        objectives: of the study.
        most: how many.

    Returns:
        The nearest first; none without a latency among the objectives, and none whose latency was
        predicted only.
    """
    times = [column for column, name in enumerate(objectives) if is_time(name)]
    known = compared(list(records))
    if not times or not known:
        return []
    points = minimised([record.values for record in known], objectives)
    on_front = non_dominated(points)
    found = []
    for place in np.flatnonzero(~on_front):
        record = known[place]
        if (record.evaluation.get("latency") or {}).get("method") == "predicted":
            continue
        noise = np.array([_noise(record, objectives[column]) for column in times])
        missed = _missed(points[place], points[on_front], times, noise)
        if missed <= 1:
            found.append((missed, record))
    return [record for _, record in sorted(found, key=lambda each: each[0])[:most]]


def _missed(point: Points, front: Points, times: list[int], noise: Points) -> float:
    """By which part of its ``noise`` a dominated ``point`` misses the front.

    Args:
        point: [objectives], minimised.
        front: [points, objectives].
        times: the columns that have noise.
        noise: of each of ``times``.
    """
    dominating = front[(front <= point).all(axis=1)]
    needed = (point[times] - dominating[:, times]) / noise
    return float(needed.min(axis=1).max())


def _noise(record: Record, name: Objective) -> float:
    """The noise of a latency as a minimised number."""
    figure, target = figure_and_target(name)
    if figure in PLAIN_TIME_SDS:
        return math.log10(1 + 1.96 * math.sqrt(2) * PLAIN_TIME_SDS[figure])
    found: Mapping[str, Any] | None = record.evaluation.get("latency")
    if target is not None:
        found = record.evaluation.get("targets", {}).get(target)
    found = found if found and "latency_ms" in found else {"latency_ms": record.values[name]}
    return math.log10(1 + repeats_percent(found) / 100)


def _networks(count: int) -> str:
    return "1 network" if count == 1 else f"{count} networks"


def _told(records: list[Measured], named: bool = False) -> str:
    """How many networks of the search there are, and how many baselines; or which."""
    trials = [str(record.trial) for record in records if isinstance(record, Record)]
    others = [record.summary for record in records if isinstance(record, BaselineRecord)]
    parts = []
    if trials:
        which = f" (trial {', '.join(trials)})" if named else ""
        parts.append(f"{_networks(len(trials))} of the front and near to it{which}")
    if others:
        count = "1 baseline" if len(others) == 1 else f"{len(others)} baselines"
        parts.append(f"{count} ({', '.join(others)})" if named else count)
    return " and ".join(parts)


def _network(record: Measured) -> Architecture | BaselineConfig:
    if isinstance(record, BaselineRecord):
        return record.config
    assert record.architecture is not None
    return record.architecture


def _key(record: Measured, kind: str = MEASURED) -> str:
    return f"{kind}{_network(record).id}"
