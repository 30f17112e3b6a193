"""The networks of timm that a search is compared with: each is trained and measured once.

That is done when the search's own budget is used up, and before its front is measured again, which
they are measured with. So the same seed gives the same trials with them as without.
"""

import math
import statistics
import warnings
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from levit_search.baseline import BaselineConfig
from levit_search.engine.interface import FIRST_BASELINE, Engine, Event
from levit_search.search.callbacks import CallbackList
from levit_search.search.loop import Loop
from levit_search.search.trials import TrialStore
from levit_search.study import BASELINE, BaselineRecord, Record, Study, baselines_of, training_file

_MOST_TRIES = 2  # of a network that fails, each in a session of its own
_MOST_RESERVED = 0.5  # of a session


class Comparisons:
    """Trains what is not trained yet, and keeps what comes of it.

    Args:
        study: which one.
        store: where what is found is kept, as attributes of the study.
        callbacks: told what happens.

    Raises:
        InputError: what earlier sessions kept is not what they wrote.
    """

    def __init__(self, study: Study, store: TrialStore, callbacks: CallbackList) -> None:
        self._study, self._config = study, study.config
        self._store, self._callbacks = store, callbacks
        self.running: dict[int, BaselineConfig] = {}
        self._waiting: list[BaselineConfig] = []
        self._tried: set[str] = set()
        """What failed in this session."""
        self.records()

    def records(self) -> list[BaselineRecord]:
        """All of them, as they are known now."""
        return baselines_of(self._config, self._store.attributes)

    def left(self) -> list[BaselineConfig]:
        """Those that are to be trained in this session."""
        return [each for each in self._config.compare if self._is_left(each)]

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
        session.

        Raises:
            BudgetError: as :meth:`levit_search.search.loop.Loop.run`.
        """
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
        names = ("values", "latency", "targets", "training", "seconds")
        found = {name: content[name] for name in names if name in content}
        finished = datetime.now().isoformat(timespec="seconds")
        self._keep(number, {**found, "finished": finished})

    def failed(self, number: int, event: Event) -> None:
        """Note a failure; what may be there the next time, such as weights, does not count."""
        given = self.running[number]
        self._tried.add(given.id)
        tries = self._store.attributes.get(f"{BASELINE}{given.id}", {}).get("tries", 0)
        tries += "wrong_input" not in event.content
        again = "the same command tries again" if tries < _MOST_TRIES else "it is left alone now"
        warnings.warn(f"not compared with {given.summary()}: {event.text}; {again}", stacklevel=2)
        self._keep(number, {"failed": event.text, "tries": tries})

    def _is_left(self, given: BaselineConfig) -> bool:
        found = self._store.attributes.get(f"{BASELINE}{given.id}")
        if found is None or given.has_changed(found.get("weights_sha256")):
            return True
        return given.id not in self._tried and found.get("tries", _MOST_TRIES) < _MOST_TRIES

    def _keep(self, number: int, found: dict[str, object]) -> None:
        given = self.running.pop(number)
        if (digest := given.weights_sha256()) is not None:
            found = {**found, "weights_sha256": digest}
        self._store.set_attribute(f"{BASELINE}{given.id}", found)
        training_file(self._study.folder, given.id).unlink(missing_ok=True)
        record = next(each for each in self.records() if each.config == given)
        self._callbacks.on_baseline_complete(number, record)
