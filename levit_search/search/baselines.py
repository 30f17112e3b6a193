"""The networks of timm that a search is compared with: each is trained and measured once.

That is done when the search's own budget is used up, and before its front is measured again, which
they are measured with. So the same seed gives the same trials with them as without.
"""

import math
import statistics
import warnings
from collections.abc import Callable
from datetime import datetime

from levit_search.baseline import BaselineConfig
from levit_search.errors import GOES_ON, BudgetError
from levit_search.search.callbacks import CallbackList
from levit_search.search.engine import FIRST_BASELINE, Engine, Event, pass_on_warnings
from levit_search.search.ledger import Ledger
from levit_search.search.tally import Tally
from levit_search.study import BASELINE, BaselineRecord, Study, baselines_of, training_file

_MOST_TRIES = 2  # of a network that fails, each in a session of its own
_MOST_RESERVED = 0.5  # of a session
_REFRESH_S = 0.25


class Baselines:
    """Trains what is not trained yet, and keeps what comes of it.

    Args:
        study: which one.
        ledger: where what is found is kept, as attributes of the study.

    Raises:
        InputError: what earlier sessions kept is not what they wrote.
    """

    def __init__(self, study: Study, ledger: Ledger) -> None:
        self._study, self._config, self._ledger = study, study.config, ledger
        self._running: dict[int, BaselineConfig] = {}
        self._tried: set[str] = set()
        """What failed in this session."""
        self.records()

    def records(self) -> list[BaselineRecord]:
        """All of them, as they are known now."""
        return baselines_of(self._config, self._ledger.attributes)

    def left(self) -> list[BaselineConfig]:
        """Those that are to be trained in this session."""
        return [each for each in self._config.compare if self._is_left(each)]

    def reserved_s(self, tally: Tally) -> float:
        """The time to leave for those that are left, at most half of a session.

        What the plan has not timed is taken to last as long as the front's members did on average,
        and no time at all as long as there are none.
        """
        limit_s, left = self._config.search.time_s, self.left()
        if limit_s is None or not left:
            return 0.0
        timed = self._config.plan.baselines_s if self._config.plan is not None else {}
        front = [record.seconds for record in tally.front]
        usual_s = statistics.fmean(front) if front else 0.0
        seconds = [timed.get(each.id, usual_s) for each in left]
        needed_s = max(max(seconds), math.fsum(seconds) / self._config.engine.jobs)
        return min(needed_s, _MOST_RESERVED * limit_s)

    def run(
        self, engine: Engine, callbacks: CallbackList, is_asked_to_stop: Callable[[], bool]
    ) -> None:
        """Train what is left, as many at once as there is room for, until somebody asks to stop.

        Once asked, what runs goes on to its next rung or its end. One that fails is told in a
        warning, and tried once more in the next session.

        Raises:
            BudgetError: there are no workers any more, or a disk refuses.
        """
        left = self.left()
        while True:
            while left and engine.has_room() and not is_asked_to_stop():
                given = left.pop(0)
                trial = FIRST_BASELINE - self._config.compare.index(given)
                self._running[trial] = given
                engine.submit(trial, given)
                callbacks.on_trial_start(trial, given)
            if not self._running and (not left or is_asked_to_stop()):
                return
            for event in pass_on_warnings(engine.events(_REFRESH_S)):
                self._handle(engine, event, callbacks, is_asked_to_stop)
            callbacks.on_loop_end()

    def _is_left(self, given: BaselineConfig) -> bool:
        found = self._ledger.attributes.get(f"{BASELINE}{given.id}")
        if found is None or given.has_changed(found.get("weights_sha256")):
            return True
        return given.id not in self._tried and found.get("tries", _MOST_TRIES) < _MOST_TRIES

    def _handle(
        self,
        engine: Engine,
        event: Event,
        callbacks: CallbackList,
        is_asked_to_stop: Callable[[], bool],
    ) -> None:
        if event.trial is None and event.kind == "failed":
            raise BudgetError(event.text)
        given = self._running.get(event.trial) if event.trial is not None else None
        if given is None or event.trial is None:
            return
        match event.kind:
            case "progress":
                callbacks.on_trial_progress(event.trial, event.text, event.fraction)
                return
            case "rung":
                if is_asked_to_stop():  # goes on from its checkpoint the next time
                    del self._running[event.trial]
                else:
                    engine.answer(event.trial, True)
                return
            case "failed":
                if refusal := event.content.get("refused_by_disk"):
                    raise BudgetError(f"{refusal}; {GOES_ON}")
                self._fail(given, event.text, is_lasting="wrong_input" not in event.content)
            case "done":
                names = ("values", "latency", "targets", "training", "seconds")
                found = {name: event.content[name] for name in names if name in event.content}
                finished = datetime.now().isoformat(timespec="seconds")
                self._keep(given, {**found, "finished": finished})
        del self._running[event.trial]
        training_file(self._study.folder, given.id).unlink(missing_ok=True)
        record = next(each for each in self.records() if each.config == given)
        callbacks.on_baseline_complete(event.trial, record)

    def _fail(self, given: BaselineConfig, reason: str, is_lasting: bool) -> None:
        """Note a failure; what may be there the next time, such as weights, does not count."""
        self._tried.add(given.id)
        tries = self._ledger.attributes.get(f"{BASELINE}{given.id}", {}).get("tries", 0)
        tries += is_lasting
        again = "the same command tries again" if tries < _MOST_TRIES else "it is left alone now"
        warnings.warn(f"not compared with {given.summary()}: {reason}; {again}", stacklevel=2)
        self._keep(given, {"failed": reason, "tries": tries})

    def _keep(self, given: BaselineConfig, found: dict[str, object]) -> None:
        if (digest := given.weights_sha256()) is not None:
            found = {**found, "weights_sha256": digest}
        self._ledger.set_attribute(f"{BASELINE}{given.id}", found)
