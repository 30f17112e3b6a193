"""The end of a search: what its front holds gets figures of its own, and latencies a second look.

Where latencies are predicted, the front is measured until nothing on it is predicted only. Where
accuracies are inherited from a supernet, the front by estimates and the networks that come closest
to it are trained, and measured too if their latency was predicted.

A front of measured latencies is a selection of lucky minutes: of two networks that are as fast, the
one comes onto it that was measured too fast. So its members, and rivals that miss it by no more
than the noise of their latencies, are measured anew and together, and the front is what these
figures say. What comes onto it then is measured, too, until nothing on it was measured once only.
The networks that the search is compared with are measured with the first of these. Those are
trained before, when the search's own budget is used up: the same seed gives the same trials with
them as without.
"""

import math
import statistics
import warnings
from collections.abc import Collection, Mapping
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
    PAIRED,
    Objective,
    accuracy_of,
    figure_and_target,
    is_time,
    minimised,
    non_dominated,
)
from levit_search.search.callbacks import CallbackList
from levit_search.search.loop import Loop
from levit_search.search.trials import TrialStore, finding
from levit_search.study import (
    BASELINE,
    MEASURED,
    REMEASURED,
    BaselineRecord,
    Record,
    Study,
    baselines_of,
    compared,
    latency_of,
    training_file,
)

_MOST_TRIES = 2  # of a network to compare with that fails, each in a session of its own
_MOST_RESERVED = 0.5  # of a session
# Where so many in a row cannot be verified it is not their fault.
_FAILURES = 3
# Beside the front so many networks are measured again at most, those that miss it by the least.
_RIVALS = 8
# More are measured in several goes: their files lie on the target at once, and each go is kept.
_TOGETHER = 24

Measured = Record | BaselineRecord
"""What has latencies."""


class Comparisons:
    """Trains and measures once the networks of timm that a search is compared with.

    What comes of it is kept as attributes of the study.

    Raises:
        InputError: what earlier sessions kept is not what they wrote.
    """

    def __init__(self, study: Study, store: TrialStore, callbacks: CallbackList) -> None:
        self._study, self._config = study, study.config
        self._store, self._callbacks = store, callbacks
        self.running: dict[int, BaselineConfig] = {}
        self._waiting: list[BaselineConfig] = []
        self._tried: set[str] = set()  # what failed in this session
        self.records()

    def records(self) -> list[BaselineRecord]:
        """All of them, as they are known now."""
        return baselines_of(self._config, self._store.attributes)

    def left(self) -> list[BaselineConfig]:
        """Those that are to be trained in this session."""
        return [each for each in self._config.compare if self._is_left(each)]

    def _is_left(self, given: BaselineConfig) -> bool:
        found = self._store.attributes.get(f"{BASELINE}{given.id}")
        if found is None or given.has_changed(found.get("weights_sha256")):
            return True
        return given.id not in self._tried and found.get("tries", _MOST_TRIES) < _MOST_TRIES

    def reserved_s(self, front: list[Record]) -> float:
        """The time to leave for those that are left, at most half of a session.

        What the plan has not timed is taken to last as long as the members of the ``front`` did on
        average, and no time at all as long as there are none.
        """
        limit_s, left = self._config.search.time_s, self.left()
        if limit_s is None or not left:
            return 0.0
        timed = self._config.plan.baselines_s if self._config.plan is not None else {}
        usual_s = statistics.fmean(record.seconds for record in front) if front else 0.0
        seconds = [timed.get(each.id, usual_s) for each in left]
        needed_s = max(max(seconds), math.fsum(seconds) / self._config.engine.jobs)
        return min(needed_s, _MOST_RESERVED * limit_s)

    def run(self, loop: Loop) -> None:
        """Train what is left. One that fails is told in a warning, and tried once more in the next
        session. Errors are those of :meth:`levit_search.search.loop.Loop.run`."""
        self._waiting = self.left()
        loop.run(self)

    def start_next(self, engine: Engine) -> bool:
        if not self._waiting:
            return False
        given = self._waiting.pop(0)
        number = FIRST_BASELINE - self._config.compare.index(given)
        self.running[number] = given
        engine.submit(number, given)
        self._callbacks.on_trial_start(number, given)
        return True

    def is_done(self) -> bool:
        return not self._waiting

    def at_rung(self, *_: object) -> bool:
        return True

    def done(self, number: int, content: Mapping[str, Any]) -> None:
        names = ("values", "latency", "targets", "int8", "training", "seconds")
        self._keep(number, finding(content, names))

    def failed(self, number: int, event: Event) -> None:
        """Note a failure; what may be there the next time, such as weights, does not count."""
        given = self.running[number]
        self._tried.add(given.id)
        tries = self._store.attributes.get(f"{BASELINE}{given.id}", {}).get("tries", 0)
        tries += "wrong_input" not in event.content
        again = "the same command tries again" if tries < _MOST_TRIES else "it is left alone now"
        warnings.warn(f"not compared with {given.summary()}: {event.text}; {again}", stacklevel=2)
        self._keep(number, {"failed": event.text, "tries": tries})

    def _keep(self, number: int, found: dict[str, object]) -> None:
        given = self.running.pop(number)
        if (digest := given.weights_sha256()) is not None:
            found = {**found, "weights_sha256": digest}
        self._store.set_attribute(f"{BASELINE}{given.id}", found)
        training_file(self._study.folder, given.id).unlink(missing_ok=True)
        record = next(each for each in self.records() if each.config == given)
        self._callbacks.on_baseline_complete(number, record)


class FinalEvaluation:
    """Verifies until nothing that the front needs is estimated, or measured once, only.

    What is found is kept as attributes of the study.
    """

    def __init__(
        self, study: Study, store: TrialStore, comparisons: Comparisons, callbacks: CallbackList
    ) -> None:
        self._study, self._config, self._store = study, study.config, store
        self._comparisons, self._callbacks = comparisons, callbacks
        self.running: dict[int, Record] = {}
        # Why it failed, since something worked last; kept once something works again.
        self._failed: dict[str, str] = {}
        self._works = False
        self._seconds: list[float] = []  # of each that was verified in this session
        self._unmeasured: set[str] = set()  # what could not be measured again in this session
        self._lost: str | None = None  # why nothing can be measured any more

    def left(self, aside: Collection[str] = ()) -> list[Record]:
        """Records that are to be verified, those ``aside`` left out."""
        config, objectives = self._config, self._config.objectives
        wanted: list[Record] = []
        records = [
            record
            for record in self._store.status.records
            if record.architecture is None or _key(record) not in aside
        ]
        if config.inherits:
            wanted = worth_verifying(records, objectives, config.supernet.rivals)
        elif config.is_measured and config.latency.method == "predicted":
            wanted = table.front(records, objectives)
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
            if count := len(self.left()):
                what = "of the front: measured"
                if self._config.inherits:
                    what = "of the front and near to it: trained alone"
                self._callbacks.on_progress(f"{_networks(count)} {what}", None)
            loop.run(self)
            if self._failed and not loop.is_asked_to_stop():
                *_, last = self._failed.values()
                raise BudgetError(
                    f"{len(self._failed)} networks on the front could not be verified, the last "
                    f"with: {last}; the same command tries again"
                )
            records = self.left_again()
            if not records or loop.is_asked_to_stop():
                return
            for start in range(0, len(records), _TOGETHER):
                some = records[start : start + _TOGETHER]
                if self._lost is not None:
                    self._leave(some, self._lost)
                else:
                    self._measure_again(loop, some)

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
        names = ("values", "latency", "int8", "training", "seconds")
        self._store.set_attribute(_key(record), finding(content, names))
        self._keep_failed()
        self._ended(record)

    def failed(self, number: int, event: Event) -> None:
        record = self.running.pop(number)
        self._failed[_key(record)] = event.text
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
        for key, reason in self._failed.items():
            self._store.set_attribute(key, {"failed": reason})
        self._failed = {}
        self._store.recount()

    def _ended(self, record: Record) -> None:
        """Tell what became of a network that was verified, and the time that the rest takes."""
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
        for record, result in zip(records, event.content["results"], strict=True):
            if "failed" in result:
                self._leave([record], result["failed"])
                continue
            names = ("values", "latency", "targets", "int8")
            found = {**finding(result, names), "protocol": PROTOCOL}
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
    all other objectives. What counts are estimates, also of those verified already, so that the
    choice does not depend on what was verified. ``rivals`` are how many come beside the front.
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
    name = accuracy_of(objectives)
    assert name is not None
    accuracy = objectives.index(name)
    others = [column for column in range(len(objectives)) if column != accuracy]
    front, beside = points[on_front], np.flatnonzero(~on_front)
    missed = []
    for point in points[beside]:
        no_worse = front[(front[:, others] <= point[others]).all(axis=1)]
        missed.append(point[accuracy] - no_worse[:, accuracy].min())
    near = beside[np.argsort(missed, kind="stable")][:rivals]
    return [known[place] for place in (*np.flatnonzero(on_front), *near)]


def near_rivals(
    records: Collection[Record], objectives: tuple[Objective, ...], most: int
) -> list[Record]:
    """The networks that miss the front by no more than the noise of their latencies.

    A network misses the front by the least part of each of its latencies' noise by which all of
    them have to be lower for no member to dominate it. The noise of a latency is what
    :func:`levit_search.latency.protocol.repeats_percent` says of it.

    Returns:
        The nearest first, ``most`` of them; none without a latency among the objectives, and none
        whose latency was predicted only.
    """
    times = [column for column, name in enumerate(objectives) if is_time(name)]
    known = compared(list(records))
    if not times or not known:
        return []
    points = minimised([record.values for record in known], objectives)
    on_front = non_dominated(points)
    front, found = points[on_front], []
    for place in np.flatnonzero(~on_front):
        record = known[place]
        latencies = [latency_of(record.evaluation, name) or {} for name in PAIRED]
        if any(each.get("method") == "predicted" for each in latencies):
            continue
        noise = np.array([_noise(record, objectives[column]) for column in times])
        dominating = front[(front <= points[place]).all(axis=1)]
        missed = ((points[place, times] - dominating[:, times]) / noise).min(axis=1).max()
        if missed <= 1:
            found.append((missed, record))
    return [record for _, record in sorted(found, key=lambda each: each[0])[:most]]


def _noise(record: Record, name: Objective) -> float:
    """The noise of a latency as a minimised number."""
    figure, _ = figure_and_target(name)
    if figure in PLAIN_TIME_SDS:
        return math.log10(1 + 1.96 * math.sqrt(2) * PLAIN_TIME_SDS[figure])
    found = latency_of(record.evaluation, name)
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
