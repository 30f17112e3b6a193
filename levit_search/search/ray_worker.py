"""A worker as Ray Tune knows it: a Trainable that is kept from trial to trial.

Tune calls :meth:`Work.step` again and again. The work itself is done by a thread, so that a step
can end with whatever there is to tell or to ask, and after a while in any case. What is told is
packed, so that Tune does not take it apart.
"""

import contextlib
import os
import pickle
import pkgutil
import queue
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray as typed_in_part
from ray import tune

from levit_search.configuration import validated
from levit_search.errors import InputError
from levit_search.latency.sharing import while_no_probe_runs
from levit_search.search.engine import Event
from levit_search.search.worker import Evaluates, Steps
from levit_search.study import StudyConfig

ray: Any = typed_in_part

_BEAT_S = 1.0  # a step takes no longer, so that progress is seen and the end of the search heard
_SHORT_S = 0.02
_ASK_S = 0.5
_END_S = 5.0


@dataclass(frozen=True)
class Order:
    """What all workers of a search are told: plain values, and absolute paths."""

    config: dict[str, Any]
    folder: str
    working_folder: str
    """That of the driver, which relative paths of the configuration start from."""
    sample: dict[str, Any]
    evaluator: str
    """``module:attribute``, see :class:`levit_search.search.worker.Evaluates`."""


class Work(tune.Trainable):
    """Prepares, and then does one piece of work for each trial of Tune's."""

    order: Order

    def setup(self, config: dict[str, Any]) -> None:
        self._changed = threading.Condition()
        self._told: list[Event] = []
        self._words: queue.SimpleQueue[Any] = queue.SimpleQueue()  # of the driver
        self._is_idle = self._asks_anew = False
        self._is_new = True
        self._asked_at: float | None = None
        self._thread = threading.Thread(
            target=self._live, args=[config["settled_ms"]], daemon=True, name="levit-search-work"
        )
        self._thread.start()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        del new_config  # nothing is new but the trial
        self._is_new = False
        with self._changed:
            self._asks_anew = self._is_idle
        return True

    def word(self, word: Any) -> None:
        """What the driver has to say to whatever was asked; called between two steps."""
        self._asked_at = None
        self._is_idle = False
        self._words.put(word)

    def step(self) -> dict[str, Any]:
        """Work for a while, or until there is something to tell or to ask.

        Returns:
            ``told``, packed events; ``asks``, whether it wants work; ``asks_anew``, whether that,
            or an answer about a rung, is asked for the first time; ``is_new``, whether this is the
            worker's first trial.
        """
        with self._changed:
            self._changed.wait_for(self._must_speak, self._patience_s())
            told, self._told = self._told, []
            is_new_question = self._asks_anew or any(event.kind == "rung" for event in told)
            self._asks_anew = False
        if not told and not self._thread.is_alive():
            raise RuntimeError("it could not prepare")  # so that Tune does not keep it
        if is_new_question:
            self._asked_at = time.monotonic()
        return {
            "told": pack(told),
            "asks": self._is_idle,
            "asks_anew": is_new_question,
            "is_new": self._is_new,
        }

    def cleanup(self) -> None:
        """End in good order if idle; whatever else there is ends with this process."""
        if self._is_idle:
            self._words.put(None)
            self._thread.join(_END_S)

    def _must_speak(self) -> bool:
        return self._asks_anew or (bool(self._told) and self._told[-1].kind != "progress")

    def _patience_s(self) -> float:
        """Words come between two steps; one that is waited for long may wait as long."""
        if self._asked_at is None:
            return _BEAT_S
        return min(_ASK_S, max(_SHORT_S, time.monotonic() - self._asked_at))

    # The thread that works

    def _live(self, settled_ms: dict[str, float]) -> None:
        with contextlib.suppress(OSError):
            os.chdir(self.order.working_folder)
        try:
            made = self._made(settled_ms)
        except Exception as error:
            traceback.print_exc()
            wrong_input = isinstance(error, InputError)
            text = str(error) if wrong_input else f"{type(error).__name__}: {error}"
            self._tell(Event("failed", None, text, content={"wrong_input": wrong_input}))
            return
        with contextlib.closing(made):
            steps = Steps(made, self._tell, self._words.get)
            is_prepared = steps.prepare(self.order.sample)
            while is_prepared:
                self._ask()
                work = self._words.get()
                if work is None:
                    return
                steps.take(work["do"], work["trial"], work["networks"])

    def _made(self, settled_ms: dict[str, float]) -> Evaluates:
        order, folder = self.order, Path(self.order.folder)
        if not (folder / "study.yaml").is_file():
            node = ray.util.get_node_ip_address()
            raise InputError(
                f"the node {node} does not see the study's folder {folder}; a search on several "
                "machines needs it on a file system that they share"
            )
        with while_no_probe_runs():
            make: Callable[..., Evaluates] = pkgutil.resolve_name(order.evaluator)
        return make(validated(StudyConfig, order.config, order.folder), folder, settled_ms, None)

    def _tell(self, event: Event) -> None:
        with self._changed:
            last = self._told[-1] if self._told else None
            if last is not None and (last.kind, last.text) == ("progress", event.text):
                self._told.pop()  # only the fraction differs
            self._told.append(event)
            self._changed.notify_all()

    def _ask(self) -> None:
        with self._changed:
            self._is_idle = self._asks_anew = True
            self._changed.notify_all()


def ordered(order: Order) -> type[Work]:
    """A class for Tune, which takes its order along to wherever it becomes an actor."""
    return type("Work", (Work,), {"order": order})


def pack(events: list[Event]) -> bytes:
    return zlib.compress(pickle.dumps(events)) if events else b""


def unpack(told: bytes) -> list[Event]:
    events: list[Event] = pickle.loads(zlib.decompress(told)) if told else []
    return events
