"""The end of a search by predicted latencies: what its front holds is measured."""

from collections.abc import Callable, Collection
from typing import Any

from levit_search import table
from levit_search.errors import BudgetError
from levit_search.search.engine import Engine, Event, pass_on_warnings
from levit_search.search.ledger import Ledger
from levit_search.search.outcome import Display
from levit_search.search.tally import Tally
from levit_search.study import MEASURED, Record, Study, with_measured

# Where so many in a row cannot be measured it is not their fault.
_FAILURES = 3
_REFRESH_S = 0.25


class Verification:
    """Measures until nothing on the front is predicted only.

    Args:
        study: which one.
        ledger: where measurements are kept, as attributes of the study.
    """

    def __init__(self, study: Study, ledger: Ledger) -> None:
        self._config, self._ledger = study.config, ledger

    def lay_over(self, tally: Tally) -> Tally:
        """A tally with what was measured in the place of what was predicted."""
        limit_ms = self._config.limits.latency_ms
        measured = self._ledger.attributes
        records = [with_measured(each, measured, limit_ms) for each in tally.records]
        return Tally(self._config.objectives, records)

    def unmeasured(self, tally: Tally, aside: Collection[str] = ()) -> list[Record]:
        """Records whose latency is predicted only, on the front of all but those ``aside``."""
        if self._config.latency.method == "measured" or not self._config.is_measured:
            return []
        records = [
            record
            for record in tally.records
            if record.architecture is None or _key(record) not in aside
        ]
        return [
            record
            for record in table.front(records, self._config.objectives)
            if _key(record) not in self._ledger.attributes
        ]

    def run(
        self, engine: Engine, tally: Tally, display: Display, is_asked_to_stop: Callable[[], bool]
    ) -> Tally:
        """Measure what is on the front, then what comes onto it, until all of it is measured or
        somebody asks to stop.

        A network that fails leaves the front once others have been measured; where several fail in
        a row they stay for the next session.

        Raises:
            BudgetError: the device cannot measure.
        """
        failed: dict[str, dict[str, Any]] = {}
        works = False
        while (left := self.unmeasured(tally, failed)) and not is_asked_to_stop():
            found = self._measured(engine, left[0], display)
            failed[_key(left[0])] = found
            works = works or "failed" not in found
            if "failed" not in found or (works and not self.unmeasured(tally, failed)):
                for key, content in failed.items():
                    self._ledger.set_attribute(key, content)
                tally = self.lay_over(tally)
                failed = {}
            shown = next(each for each in tally.records if each.trial == left[0].trial)
            display.finished(shown, tally, None)
            if len(failed) == _FAILURES:
                break
        if len(failed) == _FAILURES or (failed and not is_asked_to_stop()):
            reason = next(reversed(failed.values()))["failed"]
            raise BudgetError(
                f"{len(failed)} networks on the front could not be measured, the last with: "
                f"{reason}; the same command tries again"
            )
        return tally

    def _measured(self, engine: Engine, record: Record, display: Display) -> dict[str, Any]:
        """What measuring a network gave, or ``failed`` with the reason."""
        while not engine.has_room():  # a worker may have ended
            _check_prepared(pass_on_warnings(engine.events(_REFRESH_S)))
            display.tick()
        assert record.architecture is not None
        engine.verify(record.trial, record.architecture)
        display.started(record.trial, record.architecture)
        while True:
            events = pass_on_warnings(engine.events(_REFRESH_S))
            _check_prepared(events)
            for event in events:
                if event.trial is None:
                    continue
                match event.kind:
                    case "progress":
                        display.progress(event.trial, event.text, event.fraction)
                    case "failed":
                        if refusal := event.content.get("refused_by_disk"):
                            raise BudgetError(f"{refusal}; the same command tries again")
                        return {"failed": event.text}
                    case "done":
                        return {name: event.content[name] for name in ("values", "latency")}
            display.tick()


def _check_prepared(events: list[Event]) -> None:
    for event in events:
        if event.trial is None and event.kind == "failed":
            raise BudgetError(event.text)


def _key(record: Record) -> str:
    assert record.architecture is not None
    return f"{MEASURED}{record.architecture.id}"
