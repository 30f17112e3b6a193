"""Worker processes on this machine."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from levit_search.architecture import Architecture
from levit_search.engine.interface import Event, Settled, settled_in
from levit_search.engine.tasks import EVALUATOR, Task, TaskEngine, evaluator_maker, work
from levit_search.escaping import escape_what_streams_lack
from levit_search.latency.process_pipe import exit_name
from levit_search.study import Study, StudyConfig

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

# So many workers in a row that die before they are prepared are no accident.
_MOST_DEATHS = 2
_END_S = 5.0


class LocalEngine(TaskEngine):
    """``engine.jobs`` worker processes, kept between trials, since importing torch takes seconds.

    The first worker prepares alone, which trains the teacher and times the reference where nobody
    did before; the others import meanwhile and then prepare with what it found. Trials go to the
    first worker that is free, so that with one job the same search does the same.

    Training keeps to cores of its worker's own, consecutive ones, where the cores that this process
    may use are enough for ``train.threads`` of every job; otherwise it runs on any, and an event
    says so. A probe may use any core: it has the host to itself (see
    :mod:`levit_search.latency.host_lock`), and reads the same whatever the number of jobs.

    In the place of a worker that dies a new one is started, which goes on with its trial; the trial
    fails where that ends in the same way.

    It is made as by :func:`levit_search.engine.make_engine`; ``evaluator`` says where
    workers find what they do their work with, a :class:`levit_search.engine.tasks.Evaluates`.
    """

    def __init__(
        self,
        study: Study,
        sample: Architecture,
        settled: Settled,
        evaluator: str = EVALUATOR,
    ) -> None:
        self._study, self._evaluator = study, evaluator
        self._sample, self._settled = sample, settled
        self._is_prepared = False
        self._deaths = 0
        config, usable = study.config, usable_cores()
        jobs, threads = config.engine.jobs, config.train.threads
        self._cores = core_shares(jobs, threads, usable)
        self._notes: list[Event] = []
        if config.is_trained and config.train.device != "cuda" and jobs * threads > len(usable):
            text = f"{jobs} jobs of {threads} threads each share {len(usable)} cores"
            self._notes.append(Event("progress", None, f"{text}, and slow each other down"))
        self._workers: list[_Worker] = []
        try:
            for number in range(jobs):
                self._workers.append(_Worker(number, study, evaluator, self._cores[number]))
            self._workers[0].send((sample, settled))
        except BaseException:
            self.close()
            raise

    def has_room(self) -> bool:
        return any(worker.is_free for worker in self._workers)

    def give(self, task: Task) -> None:
        worker = next(worker for worker in self._workers if worker.is_free)
        worker.task = task
        worker.send(task)

    def answer(self, trial: int, goes_on: bool) -> None:
        for worker in self._workers:  # none has it where its worker died since it asked
            if worker.task is not None and worker.task.trial == trial:
                worker.send(goes_on)

    def events(self, patience_s: float) -> list[Event]:
        events, self._notes = self._notes, []
        # Something to receive, or nothing ever again.
        signs = [each for w in self._workers for each in (w.connection, w.process.sentinel)]
        multiprocessing.connection.wait(signs, 0 if events else patience_s)
        for worker in list(self._workers):
            was_alive = worker.process.is_alive()
            for event in worker.received():
                events += self._noted(worker, event)
            if not was_alive or worker.is_deaf:
                events += self._replaced(worker)
        return events

    def close(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + _END_S
        for worker in self._workers:
            worker.end(deadline - time.monotonic())
        self._workers = []

    def _noted(self, worker: "_Worker", event: Event) -> list[Event]:
        """Whatever of an event concerns the driver."""
        if event.trial is not None:
            if event.kind in ("done", "failed"):
                worker.task = None
            return [event]
        is_first = not self._is_prepared
        match event.kind:
            case "warning":
                return [event]
            case "failed":
                worker.is_given_up = True
                content = event.content if is_first else {**event.content, "wrong_input": False}
                return [replace(event, content=content)]
            case "done":
                worker.is_prepared = self._is_prepared = True
                self._deaths = 0
                if worker.task is not None:  # of the worker that it replaces
                    worker.send(worker.task)
                if is_first:
                    self._settled = settled_in(event.content)
                    for other in self._workers:
                        if other is not worker:
                            other.send((self._sample, self._settled))
        return [event] if is_first else []

    def _replaced(self, worker: "_Worker") -> list[Event]:
        """Put a new worker in the place of one that has ended."""
        worker.end(_END_S)
        if worker.is_given_up:  # its failure has been told
            self._workers.remove(worker)
            return []
        how = exit_name(worker.process.exitcode)
        text = f"the worker process ended with {how}; see {worker.log}"
        if not worker.is_prepared:
            self._deaths += 1
            is_first = worker.number == 0 and not self._is_prepared  # which prepares alone
            if is_first or self._deaths > _MOST_DEATHS:
                self._workers.remove(worker)
                return [Event("failed", None, text, content={"wrong_input": False})]
        number = worker.number
        successor = _Worker(number, self._study, self._evaluator, self._cores[number])
        if self._is_prepared:
            successor.send((self._sample, self._settled))
        self._workers[self._workers.index(worker)] = successor
        if worker.task is None:
            return [Event("progress", None, text)]
        told = worker.task.note_death(text, was_begun=worker.is_prepared)
        if told.kind != "failed":
            successor.task = worker.task
        return [told]


class _Worker:
    """A process, and how far it has come; its training keeps to ``cores``."""

    def __init__(
        self, number: int, study: Study, evaluator: str, cores: frozenset[int] | None
    ) -> None:
        self.number = number
        self.log = study.folder / f"worker-{number + 1}.log"
        self.task: Task | None = None
        self.is_prepared = self.is_given_up = self.is_deaf = False
        arguments = (study.config, study.folder, self.log, evaluator, cores)
        name = f"levit-search-worker-{number + 1}"
        self.process, self.connection = start_aside(_serve, arguments, name, daemon=True)

    @property
    def is_free(self) -> bool:
        return self.is_prepared and self.task is None

    def send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # a dead worker shows in received()
            self.connection.send(message)

    def received(self) -> Iterator[Event]:
        """What came; at the end of it the worker is deaf."""
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except (EOFError, OSError):
            self.is_deaf = True

    def end(self, patience_s: float) -> None:
        """Wait for the process to end, and kill it after a while."""
        self.process.join(max(0.0, patience_s))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def _serve(
    connection: "Connection",
    config: StudyConfig,
    folder: Path,
    log: Path,
    evaluator: str,
    cores: frozenset[int] | None,
) -> None:
    """The main function of a worker process, which ends when the driver is gone.

    Everything is imported at once, since that takes seconds, and then waits to be told to prepare.
    The driver sends ``sample`` and ``settled`` by ``connection``, then one task after another
    and the answers about rungs; events come back. What is printed goes to ``log``.
    """
    serve_aside()
    lines = log.open("a", buffering=1)  # lives as long as we
    os.dup2(lines.fileno(), 1)
    os.dup2(lines.fileno(), 2)
    escape_what_streams_lack()
    make = evaluator_maker(evaluator, config, folder)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
        sample, settled = connection.recv()
        told = connection.recv
        work(lambda: make(settled, cores), sample, connection.send, told, told)


def serve_aside() -> None:
    """Let this process, which :func:`start_aside` started as a daemon, end with its parent."""
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # Ctrl-C is the driver's to answer
    # SIGTERM must reach the probe's worker as well; ending by exception runs the clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Pictures are read by processes of our own, which a daemon may not have; we end them ourselves.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]


def _end_with_parent() -> None:
    """End at once when the driver is gone, however it went: nobody would read the result."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def start_aside(
    target: Callable[..., None], arguments: Sequence[object], name: str, daemon: bool = False
) -> "tuple[BaseProcess, Connection]":
    """Start a spawned process that leaves Ctrl-C to its parent and does not import its script.

    Returns:
        The process, and our end of a pipe; ``target`` is called with the other, then ``arguments``.
    """
    context = multiprocessing.get_context("spawn")
    connection, far_end = context.Pipe()
    process = context.Process(target=target, args=(far_end, *arguments), name=name, daemon=daemon)
    # Ctrl-C goes to every process of the terminal; a child that inherits deafness to it does not
    # end with a traceback while it is still importing.
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A spawned process imports the script that is run. Workers need nothing of it, and one that
    # searches without asking whether it is ``__main__`` would do so again in each of them.
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main
        signal.signal(signal.SIGINT, answer)
    far_end.close()
    return process, connection


def usable_cores() -> list[int]:
    """The numbers of the cores that this process may use, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def core_shares(jobs: int, threads: int, cores: list[int]) -> list[frozenset[int] | None]:
    """The cores of each job: consecutive ones, as many for each; None for any.

    One job has them all, and so have jobs whose ``threads`` are more than there are ``cores``.
    """
    if jobs == 1 or jobs * threads > len(cores):
        return [None] * jobs
    bounds = [len(cores) * number // jobs for number in range(jobs + 1)]
    return [frozenset(cores[bounds[n] : bounds[n + 1]]) for n in range(jobs)]
