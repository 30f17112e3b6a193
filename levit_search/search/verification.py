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
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any

import numpy as np

from levit_search import table
from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.errors import GOES_ON, BudgetError
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
from levit_search.search.baselines import Baselines
from levit_search.search.callbacks import CallbackList
from levit_search.search.engine import FIRST_BASELINE, Engine, Event, pass_on_warnings
from levit_search.search.ledger import Ledger
from levit_search.search.tally import Tally
from levit_search.study import (
    MEASURED,
    REMEASURED,
    BaselineRecord,
    Record,
    Study,
    compared,
    training_file,
    with_measured,
)

# Where so many in a row cannot be verified it is not their fault.
_FAILURES = 3
_REFRESH_S = 0.25
# Beside the front so many networks are measured again at most, those that miss it by the least.
_RIVALS = 8
# More are measured in several goes: their files lie on the target at once, and each go is kept.
_TOGETHER = 24


Measured = Record | BaselineRecord
"""What has latencies."""


class Verification:
    """Verifies until nothing that the front needs is estimated, or measured once, only.

    Args:
        study: which one.
        ledger: where what is found is kept, as attributes of the study.
        baselines: what the search is compared with.
    """

    def __init__(self, study: Study, ledger: Ledger, baselines: Baselines) -> None:
        self._study, self._config, self._ledger = study, study.config, ledger
        self._baselines = baselines
        self._running: dict[int, Record] = {}
        self._failed: dict[str, dict[str, Any]] = {}
        """What failed since something worked last; kept once something works again."""
        self._works = False
        self._seconds: list[float] = []
        """What each took that was verified in this session."""
        self._unmeasured: set[str] = set()
        """What could not be measured again in this session."""
        self._lost: str | None = None
        """Why nothing can be measured any more."""

    def lay_over(self, tally: Tally) -> Tally:
        """A tally with what was found in the place of estimates."""
        limit_ms = self._config.limits.latency_ms
        found = self._ledger.attributes
        records = [with_measured(each, found, limit_ms) for each in tally.records]
        return Tally(self._config.objectives, records)

    def left(self, tally: Tally, aside: Collection[str] = ()) -> list[Record]:
        """Records that are to be verified, those ``aside`` left out."""
        config, objectives = self._config, self._config.objectives
        records = [
            record
            for record in tally.records
            if record.architecture is None or _key(record) not in aside
        ]
        if config.inherits:
            wanted = worth_verifying(records, objectives, config.supernet.rivals)
        elif config.is_measured and config.latency.method == "predicted":
            wanted = table.front(records, objectives)
        else:
            wanted = []
        return [record for record in wanted if _key(record) not in self._ledger.attributes]

    def left_again(self, tally: Tally) -> list[Measured]:
        """What is to be measured again, together.

        These are baselines, members of the front and near rivals of which this was not done by
        today's protocol. Where it was done to each member, rivals alone are no reason.
        """
        config = self._config
        if not config.is_measured and not config.also_measured:
            return []
        again: list[Measured] = [each for each in self._baselines.records() if each.is_complete]
        front = table.front(tally.records, config.objectives)
        if any(map(self._is_unrepeated, front)):
            again += [*front, *near_rivals(tally.records, config.objectives, _RIVALS)]
        return [each for each in again if self._is_unrepeated(each)]

    def run(
        self,
        engine: Engine,
        tally: Tally,
        callbacks: CallbackList,
        is_asked_to_stop: Callable[[], bool],
    ) -> Tally:
        """Verify and measure again until nothing is left, or somebody asks to stop.

        Once asked, what is verified goes on to its next rung or its end, and what is measured again
        ends at once. A network that cannot be verified leaves the front once others have been;
        where several fail in a row they stay for the next session. One that cannot be measured
        again keeps the search's figures, with a warning, until the next session.

        Raises:
            BudgetError: nothing can be verified, or a disk refuses.
        """
        while True:
            tally = self._verified(engine, tally, callbacks, is_asked_to_stop)
            records = self.left_again(tally)
            if not records or is_asked_to_stop():
                return tally
            for start in range(0, len(records), _TOGETHER):
                some = records[start : start + _TOGETHER]
                if self._lost is not None:
                    self._leave(some, self._lost)
                    continue
                tally = self._measured_again(engine, some, tally, callbacks, is_asked_to_stop)

    def _measured_again(
        self,
        engine: Engine,
        records: list[Measured],
        tally: Tally,
        callbacks: CallbackList,
        is_asked_to_stop: Callable[[], bool],
    ) -> Tally:
        """The tally with ``records`` measured again; as it was if somebody asks to stop."""
        networks = [_network(record) for record in records]
        trials = [record.trial for record in records if isinstance(record, Record)]
        trial, is_begun = next(iter(trials), FIRST_BASELINE), False
        callbacks.on_progress(f"{_told(records)}: measured again", None)
        while not is_asked_to_stop():
            if not is_begun and engine.has_room():
                engine.remeasure(trial, networks)
                is_begun = True
            for event in pass_on_warnings(engine.events(_REFRESH_S)):
                if event.kind == "failed" and event.trial in (None, trial):
                    if refusal := event.content.get("refused_by_disk"):
                        raise BudgetError(f"{refusal}; {GOES_ON}")
                    self._lost = event.text if event.trial is None else None
                    self._leave(records, event.text)
                    return tally
                if event.trial != trial:
                    continue
                if event.kind == "done":
                    return self._noted(records, event.content["results"], tally, callbacks)
                callbacks.on_progress(event.text, event.fraction)
            callbacks.on_loop_end()
        return tally

    def _noted(
        self,
        records: list[Measured],
        results: list[dict[str, Any]],
        tally: Tally,
        callbacks: CallbackList,
    ) -> Tally:
        """Keep what was measured again, and say what became of the front."""
        finished = datetime.now().isoformat(timespec="seconds")
        for record, result in zip(records, results, strict=True):
            if "failed" in result:
                self._leave([record], result["failed"])
                continue
            found = {name: result[name] for name in ("values", "latency", "targets")}
            found |= {"protocol": PROTOCOL, "finished": finished}
            self._ledger.set_attribute(_key(record, REMEASURED), found)
        before = {record.trial for record in tally.front}
        tally = self.lay_over(tally)
        after = {record.trial for record in tally.front}
        lost, won = len(before - after), len(after - before)
        callbacks.on_progress(f"measured again: {lost} left the front, {won} came onto it", None)
        return tally

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
        found = self._ledger.attributes.get(key, {})
        return key not in self._unmeasured and found.get("protocol") != PROTOCOL

    def _verified(
        self,
        engine: Engine,
        tally: Tally,
        callbacks: CallbackList,
        is_asked_to_stop: Callable[[], bool],
    ) -> Tally:
        """The tally without estimates on its front, as far as nobody asks to stop."""
        if count := len(self.left(tally)):
            callbacks.on_progress(self._announced(count), None)
        while True:
            while engine.has_room() and not is_asked_to_stop():
                if len(self._failed) >= _FAILURES or not (record := self._next(tally)):
                    break
                self._running[record.trial] = record
                assert record.architecture is not None
                engine.verify(record.trial, record.architecture)
                callbacks.on_trial_start(record.trial, record.architecture)
            if not self._running and (engine.has_room() or is_asked_to_stop()):
                if not self._failed or not self._works or len(self._failed) >= _FAILURES:
                    break
                tally = self._kept(tally)  # and look at what comes onto the front now
                continue
            for event in pass_on_warnings(engine.events(_REFRESH_S)):
                tally = self._handle(engine, event, tally, callbacks, is_asked_to_stop)
            callbacks.on_loop_end()
        if self._failed and not is_asked_to_stop():
            reason = next(reversed(self._failed.values()))["failed"]
            raise BudgetError(
                f"{len(self._failed)} networks on the front could not be verified, the last with: "
                f"{reason}; the same command tries again"
            )
        return tally

    def _next(self, tally: Tally) -> Record | None:
        aside = {*self._failed, *(_key(record) for record in self._running.values())}
        if not self._config.inherits and self._running:
            return None  # what comes onto the front next depends on what is found
        return next(iter(self.left(tally, aside)), None)

    def _handle(
        self,
        engine: Engine,
        event: Event,
        tally: Tally,
        callbacks: CallbackList,
        is_asked_to_stop: Callable[[], bool],
    ) -> Tally:
        if event.trial is None:
            if event.kind == "failed":
                raise BudgetError(event.text)
            return tally
        record = self._running.get(event.trial)
        if record is None:
            return tally
        match event.kind:
            case "progress":
                callbacks.on_trial_progress(event.trial, event.text, event.fraction)
                return tally
            case "rung":
                accuracy = event.content["values"]["top1_percent"]
                callbacks.on_trial_result(event.trial, event.content["epoch"], accuracy)
                if is_asked_to_stop():  # goes on from its checkpoint the next time
                    del self._running[event.trial]
                else:
                    engine.answer(event.trial, True)
                return tally
            case "failed":
                if refusal := event.content.get("refused_by_disk"):
                    raise BudgetError(f"{refusal}; {GOES_ON}")
                self._failed[_key(record)] = {"failed": event.text}
            case "done":
                self._works = True
                self._seconds.append(event.content.get("seconds", 0.0))
                names = ("values", "latency", "training", "seconds")
                found = {name: event.content[name] for name in names if name in event.content}
                found["finished"] = datetime.now().isoformat(timespec="seconds")
                self._ledger.set_attribute(_key(record), found)
                tally = self._kept(tally)
        del self._running[event.trial]
        assert record.architecture is not None
        training_file(self._study.folder, record.architecture.id).unlink(missing_ok=True)
        shown = next(each for each in tally.records if each.trial == record.trial)
        callbacks.on_trial_complete(shown, tally, self._left_s(tally))
        return tally

    def _announced(self, count: int) -> str:
        if self._config.inherits:
            return f"{_networks(count)} of the front and near to it: trained alone"
        return f"{_networks(count)} of the front: measured"

    def _left_s(self, tally: Tally) -> float | None:
        """The time that the rest will take, where it is known which networks that will be."""
        if not self._config.inherits or not self._seconds:
            return None
        count = len(self.left(tally, self._failed))
        return count * statistics.fmean(self._seconds) / self._config.engine.jobs

    def _kept(self, tally: Tally) -> Tally:
        """Write down what failed, and lay over all that was found."""
        for key, content in self._failed.items():
            self._ledger.set_attribute(key, content)
        self._failed = {}
        return self.lay_over(tally)


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
