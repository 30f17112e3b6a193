"""What the driver of a search and Ray Tune's loop hand each other, each in a thread of its own.

A trial of Tune's is a turn: a worker that is ready asks for one piece of work, does it, and is kept
for the next turn. Turns are opened before there is work for them. So Tune, which lets all idle
workers but one go, has none that are idle; a worker that dies before its turn has cost no network
anything; and the oldest work is done first, by whichever worker is ready.

The driver's words, work as well as answers about rungs, come when it is ready, and Tune's loop does
not wait for them: workers ask again after a while.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Literal

from levit_search.search.engine import Event, restarted

_MOST_DEATHS = 2  # of workers at one piece of work
_MOST_IN_A_ROW = 3  # of workers that had none yet
_RETURN_S = 10.0


Do = Literal["evaluate", "evaluate_untaught", "verify", "remeasure"]


@dataclass
class Task:
    """One piece of work."""

    do: Do
    trial: int
    networks: list[dict[str, Any]]
    deaths: int = 0


class Desk:
    """Work and answers go one way, events the other.

    Args:
        settled_ms: the reference's latency by id, as far as it is known.
        workers: how many there should be, once the first has prepared.
    """

    def __init__(self, settled_ms: dict[str, float], workers: int) -> None:
        self.settled_ms = settled_ms
        self.workers_wanted = 1
        self.is_prepared = self.is_closed = False
        self._workers = workers
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._tasks: deque[Task] = deque()
        self._running: dict[str, Task] = {}  # by turn
        self._asking: set[str] = set()
        self._returning: deque[float] = deque()  # when they ended their turns
        self._answers: dict[int, bool | None] = {}  # of trials that wait at a rung
        self._deaths = 0

    # The driver's side

    def has_room(self) -> bool:
        """Whether more workers are ready, or will be in a moment, than there is work for."""
        with self._changed:
            while self._returning and self._returning[0] < time.monotonic() - _RETURN_S:
                self._returning.popleft()  # it has died on the way
            return len(self._tasks) < len(self._asking) + len(self._returning)

    def give(self, task: Task) -> None:
        with self._changed:
            self._tasks.append(task)
            self._changed.notify_all()

    def answer(self, trial: int, goes_on: bool) -> None:
        with self._changed:
            if trial in self._answers:
                self._answers[trial] = goes_on
                self._changed.notify_all()

    def events(self, patience_s: float) -> list[Event]:
        """What happened since; waits for at most ``patience_s``."""
        with self._changed:
            self._changed.wait_for(lambda: self._events, patience_s)
            events = list(self._events)
            self._events.clear()
            return events

    def close(self) -> None:
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    # Tune's side; a turn goes by its trial's name

    def ready(self, turn: str, is_new: bool) -> None:
        """A worker, that was just started or is back from another turn, asks for work."""
        with self._changed:
            self._deaths = 0
            if turn not in self._asking:
                self._asking.add(turn)
                if not is_new and self._returning:
                    self._returning.popleft()

    def take(self, turn: str, patience_s: float) -> Task | None:
        """The oldest work, as soon as there is any."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self.is_closed, patience_s)
            if not self._tasks:
                return None
            self._asking.discard(turn)
            self._running[turn] = task = self._tasks.popleft()
            return task

    def waits_at_rung(self, turn: str) -> bool:
        task = self._running.get(turn)
        return task is not None and task.trial in self._answers

    def answered(self, turn: str, patience_s: float) -> bool | None:
        """The driver's word on the rung that a trial waits at, as soon as there is one."""
        with self._changed:
            trial = self._running[turn].trial
            self._changed.wait_for(
                lambda: self._answers[trial] is not None or self.is_closed, patience_s
            )
            found = self._answers[trial]
            if found is not None:
                del self._answers[trial]
            return found

    def tell(self, turn: str, event: Event) -> None:
        """Pass on what a worker told."""
        with self._changed:
            if event.trial is None:
                self._note_preparation(event)
                return
            if event.kind == "rung":
                self._answers[event.trial] = None
            elif event.kind in ("done", "failed"):
                del self._running[turn]
                self._returning.append(time.monotonic())
            self._put(event)

    def _note_preparation(self, event: Event) -> None:
        """Only the first worker's is told, unless it fails."""
        if event.kind == "warning":
            self._put(event)
        elif event.kind == "failed":
            self.workers_wanted -= 1
            content = {**event.content, "wrong_input": False} if self.is_prepared else event.content
            self._put(replace(event, content=content))
        elif not self.is_prepared:
            if event.kind == "done":
                self.is_prepared = True
                self.settled_ms = event.content["settled_ms"]
                self.workers_wanted = self._workers
            self._put(event)

    def bury(self, turn: str, reason: str) -> None:
        """A worker is dead: its work is done once more, by another."""
        with self._changed:
            self._asking.discard(turn)
            task = self._running.pop(turn, None)
            if self.is_closed:
                return
            if task is None:
                self._bury_idle(reason)
                return
            self._answers.pop(task.trial, None)
            task.deaths += 1
            if task.deaths < _MOST_DEATHS:
                self._tasks.appendleft(task)
                self._put(restarted(task.trial, reason))
            else:
                self._put(Event("failed", task.trial, reason))

    def _bury_idle(self, reason: str) -> None:
        self._deaths += 1
        limit = _MOST_IN_A_ROW if self.is_prepared else _MOST_DEATHS
        if self.workers_wanted and self._deaths >= limit:
            self.fail(reason)

    def fail(self, reason: str) -> None:
        """There will be no more workers."""
        with self._changed:
            self.workers_wanted = 0
            self._put(Event("failed", None, reason, content={"wrong_input": False}))

    def bury_all(self, reason: str) -> None:
        """All workers are gone."""
        with self._changed:
            busy = list(self._running)
            self._asking.clear()
            self._returning.clear()
            for turn in busy or [""]:
                self.bury(turn, reason)

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._changed.notify_all()
