"""The end of a search by estimates: what its front holds gets figures of its own.

Where latencies are predicted, the front is measured until nothing on it is predicted only. Where
accuracies are inherited from a supernet, the front by estimates and the networks that come closest
to it are trained, and measured too if their latency was predicted.
"""

import statistics
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

import numpy as np

from levit_search import table
from levit_search.errors import GOES_ON, BudgetError
from levit_search.pareto import Objective, is_maximised, minimised, non_dominated
from levit_search.search.engine import Engine, Event, pass_on_warnings
from levit_search.search.ledger import Ledger
from levit_search.search.outcome import Display
from levit_search.search.tally import Tally
from levit_search.study import MEASURED, Record, Study, training_file, with_measured

# Where so many in a row cannot be verified it is not their fault.
_FAILURES = 3
_REFRESH_S = 0.25


class Verification:
    """Verifies until nothing that the front needs is estimated only.

    Args:
        study: which one.
        ledger: where what is found is kept, as attributes of the study.
    """

    def __init__(self, study: Study, ledger: Ledger) -> None:
        self._study, self._config, self._ledger = study, study.config, ledger
        self._running: dict[int, Record] = {}
        self._failed: dict[str, dict[str, Any]] = {}
        """What failed since something worked last; kept once something works again."""
        self._works = False
        self._seconds: list[float] = []
        """What each took that was verified in this session."""

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

    def run(
        self, engine: Engine, tally: Tally, display: Display, is_asked_to_stop: Callable[[], bool]
    ) -> Tally:
        """Verify until nothing is left, or somebody asks to stop.

        Once asked, what runs goes on to its next rung or its end. A network that fails leaves the
        front once others have been verified; where several fail in a row they stay for the next
        session.

        Raises:
            BudgetError: nothing can be verified.
        """
        if count := len(self.left(tally)):
            display.preparing(self._announced(count), None)
        while True:
            while engine.has_room() and not is_asked_to_stop():
                if len(self._failed) >= _FAILURES or not (record := self._next(tally)):
                    break
                self._running[record.trial] = record
                assert record.architecture is not None
                engine.verify(record.trial, record.architecture)
                display.started(record.trial, record.architecture)
            if not self._running and (engine.has_room() or is_asked_to_stop()):
                if not self._failed or not self._works or len(self._failed) >= _FAILURES:
                    break
                tally = self._kept(tally)  # and look at what comes onto the front now
                continue
            for event in pass_on_warnings(engine.events(_REFRESH_S)):
                tally = self._handle(engine, event, tally, display, is_asked_to_stop)
            display.tick()
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
        display: Display,
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
                display.progress(event.trial, event.text, event.fraction)
                return tally
            case "rung":
                accuracy = event.content["values"]["top1_percent"]
                display.at_rung(event.trial, event.content["epoch"], accuracy)
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
        display.finished(shown, tally, self._left_s(tally))
        return tally

    def _announced(self, count: int) -> str:
        networks = "1 network" if count == 1 else f"{count} networks"
        if self._config.inherits:
            return f"{networks} of the front and near to it: trained alone"
        return f"{networks} of the front: measured"

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


def _key(record: Record) -> str:
    assert record.architecture is not None
    return f"{MEASURED}{record.architecture.id}"
