"""The loop of a search: work is handed to an engine, and what the engine tells is handed back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.engine.interface import Engine, Event, pass_on_warnings
from levit_search.errors import GOES_ON, BudgetError, InputError, LevitSearchError
from levit_search.search.callbacks import CallbackList

_REFRESH_S = 0.25


class Work(Protocol):
    """Evaluations of one kind: of candidates, of networks to compare with, or of a front."""

    running: dict[int, Any]
    """By the number that its events go by, what is being evaluated."""

    def start_next(self, engine: Engine) -> bool:
        """Begin one more evaluation, or settle what needs none; False where there is none now."""

    def is_done(self) -> bool:
        """Whether there will be none any more, asked when nothing is running."""

    def at_rung(self, number: int, epoch: int, values: Mapping[str, float], /) -> bool:
        """Whether an evaluation goes on from a rung."""

    def done(self, number: int, content: Mapping[str, Any]) -> None:
        """An evaluation has given ``content``, and runs no longer."""

    def failed(self, number: int, event: Event) -> None:
        """An evaluation has failed, and runs no longer."""


class Loop:
    """Carries work out by an engine until there is no more, or somebody asks to stop.

    ``prepared`` is called with what the engine prepared, before the first evaluation and for each
    worker that takes the place of another.
    """

    def __init__(
        self,
        engine: Engine,
        callbacks: CallbackList,
        is_asked_to_stop: Callable[[], bool],
        prepared: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._engine, self._callbacks = engine, callbacks
        self.is_asked_to_stop = is_asked_to_stop
        self._prepared, self._is_prepared = prepared, False

    def prepare(self) -> None:
        """Wait until the engine has what all evaluations need, and room for one.

        Raises:
            InputError: what all of them need is wrong or missing.
            BudgetError: it cannot be prepared.
            KeyboardInterrupt: asked to stop; what is prepared keeps checkpoints of its own.
        """
        while not (self._is_prepared and self._engine.has_room()):
            for event in self._events(_REFRESH_S):
                self._handle_preparation(event)
            self._callbacks.on_loop_end()
            if self.is_asked_to_stop():
                raise KeyboardInterrupt

    def run(self, work: Work) -> None:
        """Begin and handle evaluations until there are no more, or somebody asks to stop.

        Once asked, what runs goes on to its next rung or its end.

        Raises:
            BudgetError: nothing can be evaluated any more, or a disk refuses.
            InputError: a new worker finds wrong or missing what all evaluations need.
        """
        while True:
            while not self.is_asked_to_stop() and self._engine.has_room():
                if not work.start_next(self._engine):
                    break
            if not work.running and (self.is_asked_to_stop() or work.is_done()):
                return
            if self.is_asked_to_stop():
                count = len(work.running)
                what = "1 network goes" if count == 1 else f"{count} networks go"
                text = f"interrupted: {what} on to the next rung or the end; Ctrl-C again stops now"
                self._callbacks.on_progress(text, None)
            is_waiting = work.running or not self._engine.has_room()
            for event in self._events(_REFRESH_S if is_waiting else 0):
                if event.trial is None:
                    self._handle_preparation(event)
                elif event.trial in work.running:  # else it stopped at a rung, and its worker died
                    self._handle(work, event.trial, event)
            self._callbacks.on_loop_end()

    def measure(
        self, number: int, networks: Sequence[Architecture | BaselineConfig], text: str
    ) -> Event | None:
        """Measure networks anew and together, by one worker; ``text`` is shown before.

        Returns:
            The last event: ``done`` with ``results`` for each of them, or ``failed``, for the trial
            None if nothing can be evaluated any more; None where somebody asks to stop.

        Raises:
            BudgetError: a disk refuses.
        """
        self._callbacks.on_progress(text, None)
        is_begun = False
        while not self.is_asked_to_stop():
            if not is_begun and self._engine.has_room():
                self._engine.remeasure(number, networks)
                is_begun = True
            for event in self._events(_REFRESH_S):
                if event.kind == "failed" and event.trial in (None, number):
                    _check_disk(event)
                    return event
                if event.trial is None:
                    self._handle_preparation(event)
                elif event.trial == number and event.kind == "done":
                    return event
                elif event.trial == number:
                    self._callbacks.on_progress(event.text, event.fraction)
            self._callbacks.on_loop_end()
        return None

    def _events(self, wait_s: float) -> list[Event]:
        return pass_on_warnings(self._engine.events(wait_s))

    def _handle_preparation(self, event: Event) -> None:
        """News that are of no evaluation."""
        match event.kind:
            case "progress":
                self._callbacks.on_progress(event.text, event.fraction)
            case "done":
                self._prepared(event.content)
                self._is_prepared = True
            case "failed":  # perhaps a new worker, of what the old one could
                raise unprepared(event)

    def _handle(self, work: Work, number: int, event: Event) -> None:
        match event.kind:
            case "progress":
                self._callbacks.on_trial_progress(number, event.text, event.fraction)
            case "rung":
                goes_on = work.at_rung(number, event.content["epoch"], event.content["values"])
                if goes_on and self.is_asked_to_stop():
                    del work.running[number]  # goes on from its checkpoint the next time
                else:
                    self._engine.answer(number, goes_on)
            case "done":
                work.done(number, event.content)
            case "failed":
                _check_disk(event)
                work.failed(number, event)


def unprepared(event: Event) -> LevitSearchError:
    """Why nothing can be evaluated, or nothing any more."""
    _check_disk(event)
    kind = InputError if event.content.get("wrong_input") else BudgetError
    return kind(event.text)


def _check_disk(failed: Event) -> None:
    if refusal := failed.content.get("refused_by_disk"):
        raise BudgetError(f"{refusal}; {GOES_ON}")
