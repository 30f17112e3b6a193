"""What carries evaluations out: the interface, and worker processes on this machine."""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from levit_search import architecture as architectures
from levit_search.architecture import Architecture
from levit_search.configuration import validated
from levit_search.errors import InputError, LevitSearchError
from levit_search.latency.channel import exit_name
from levit_search.study import Study, StudyConfig


@dataclass(frozen=True)
class Event:
    """News of a running trial (or of the preparation, whose trial is None)."""

    kind: Literal["progress", "done", "failed"]
    trial: int | None
    text: str = ""
    """What is being done, or why it failed."""
    fraction: float | None = None
    content: dict[str, Any] = field(default_factory=dict)
    """An evaluation (also of what was only measured), or what
    :meth:`levit_search.evaluate.Evaluator.prepare` returned."""


class Engine(Protocol):
    """Evaluates networks somewhere; a trial that fails is an event, never an exception."""

    def submit(self, trial: int, network: Architecture) -> None:
        """Start an evaluation. Only while :meth:`has_room`."""

    def verify(self, trial: int, network: Architecture) -> None:
        """Start measuring a network whose latency was predicted. Only while :meth:`has_room`."""

    def has_room(self) -> bool:
        """Whether another trial can start now."""

    def events(self, patience_s: float) -> list[Event]:
        """What happened; waits for at most ``patience_s``."""

    def close(self) -> None:
        """Stop everything that runs."""


class LocalEngine:
    """One worker process, kept between trials, since importing torch and timm takes seconds.

    A worker that dies takes its trial with it: the trial fails, and the next one gets a new worker.

    Args:
        study: evaluated networks' weights go into its folder.
        sample: any network of its space.
        settled_ms: the reference's latency by id, where an earlier session settled it.
    """

    def __init__(self, study: Study, sample: Architecture, settled_ms: dict[str, float]) -> None:
        self._study, self._sample = study, sample
        self._settled_ms = settled_ms
        self._running: int | None = None
        self._prepared = False
        self._start()

    def has_room(self) -> bool:
        return self._prepared and self._running is None

    def submit(self, trial: int, network: Architecture) -> None:
        self._send("evaluate", trial, network)

    def verify(self, trial: int, network: Architecture) -> None:
        self._send("measure", trial, network)

    def _send(self, do: str, trial: int, network: Architecture) -> None:
        assert self.has_room()
        self._running = trial
        with contextlib.suppress(BrokenPipeError):  # a dead worker shows in events()
            self._connection.send((do, trial, network.model_dump(mode="json")))

    def events(self, patience_s: float) -> list[Event]:
        events: list[Event] = []
        while self._connection.poll(0 if events else patience_s):
            try:
                event = self._connection.recv()
            except (EOFError, ConnectionResetError):
                return [*events, self._buried()]
            if event.kind == "done" and event.trial is None:
                self._prepared = True
                self._settled_ms = event.content["settled_ms"]
            elif event.kind in ("done", "failed"):
                self._running = None
            events.append(event)
        return events

    def close(self) -> None:
        self._process.terminate()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, far_end = context.Pipe()
        self._process = context.Process(
            target=serve,
            args=(
                far_end,
                self._study.config.model_dump(mode="json"),
                str(self._study.folder),
                self._sample.model_dump(mode="json"),
                self._settled_ms,
            ),
            name="levit-search-worker",
            daemon=True,
        )
        # Ctrl-C goes to every process of the terminal; a child that inherits deafness to it does
        # not end with a traceback while it is still importing.
        answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, answer)
        far_end.close()

    def _buried(self) -> Event:
        self._process.join()
        code, trial = self._process.exitcode, self._running
        self._connection.close()
        self._running = None
        log = self._study.folder / "worker.log"
        text = f"the worker process ended with {exit_name(code)}; see {log}"
        if self._prepared or trial is not None:
            self._prepared = False
            self._start()
        return Event("failed", trial, text)


def serve(
    connection: "multiprocessing.connection.Connection",
    config: dict[str, Any],
    folder: str,
    sample: dict[str, Any],
    settled_ms: dict[str, float],
) -> None:
    """The worker's life: prepare once, then evaluate what is sent until the driver is gone."""
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # Ctrl-C is the driver's to answer
    # SIGTERM must reach the probe's worker as well; ending by exception runs the clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _end_with_parent()
    log = open(Path(folder) / "worker.log", "a", buffering=1)  # noqa: SIM115 (lives as long as we)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)

    from levit_search.evaluate import Evaluator

    settings = validated(StudyConfig, config, folder)
    evaluator = Evaluator(settings, Path(folder), settled_ms)
    with contextlib.closing(evaluator), contextlib.suppress(EOFError, BrokenPipeError):
        network = architectures.parse(sample)
        prepared = _attempt(connection, None, lambda tell: evaluator.prepare(network, tell))
        while prepared:
            do, trial, described = connection.recv()
            candidate = architectures.parse(described)
            step = evaluator.evaluate if do == "evaluate" else evaluator.measure
            _attempt(connection, trial, lambda tell, s=step, c=candidate: s(c, tell).as_json())


def _attempt(connection: Any, trial: int | None, step: Any) -> bool:
    """Run one step and send its outcome; whatever it raises is the trial's reason, not our end."""

    def tell(text: str, fraction: float | None) -> None:
        connection.send(Event("progress", trial, text, fraction))

    try:
        content = step(tell)
    except (BrokenPipeError, EOFError):
        raise
    except Exception as error:
        traceback.print_exc()
        expected = isinstance(error, LevitSearchError)
        text = str(error) if expected else f"{type(error).__name__}: {error}"
        wrong_input = {"wrong_input": isinstance(error, InputError)}
        connection.send(Event("failed", trial, " ".join(text.split())[:500], content=wrong_input))
        return False
    connection.send(Event("done", trial, content=json.loads(json.dumps(content))))
    return True


def _end_with_parent() -> None:
    """End at once when the driver is gone, however it went: nobody would read the result."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
