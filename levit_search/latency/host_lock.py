"""The host's lock: training pauses while a probe measures, and keeps to cores of its own.

The other side, a probe's hold on the host, is in :mod:`levit_search.latency.worker`, whose one file
has to do on any device.
"""

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from levit_search.latency.worker import lock_paths, open_lock

_Batch = TypeVar("_Batch")


def between_probes(batches: Iterable[_Batch]) -> AbstractContextManager[Iterator[_Batch]]:
    """Batches of work that pause while a probe, of whichever process, has the host to itself.

    The host is shared while a batch is made and worked on; a probe that waits comes before the next
    one.
    """
    return contextlib.closing(_paused(batches))


def _paused(batches: Iterable[_Batch]) -> Generator[_Batch, None, None]:
    try:
        import fcntl
    except ImportError:  # Windows has no such locks, and its probes hold none
        yield from batches
        return
    with contextlib.ExitStack() as stack:
        gate, cores = (open_lock(path) for path in lock_paths())
        stack.callback(os.close, gate)
        stack.callback(os.close, cores)
        iterator = iter(batches)
        while True:
            fcntl.flock(gate, fcntl.LOCK_SH)
            fcntl.flock(gate, fcntl.LOCK_UN)
            fcntl.flock(cores, fcntl.LOCK_SH)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            yield batch
            fcntl.flock(cores, fcntl.LOCK_UN)


@contextlib.contextmanager
def while_no_probe_runs() -> Iterator[None]:
    """One piece of work, of seconds at most, that begins when no probe has the host to itself.

    A probe waits for its end.
    """
    with between_probes([None]) as once:
        for _ in once:
            yield


@contextlib.contextmanager
def on_cores(cores: frozenset[int] | None) -> Iterator[None]:
    """Keep this process and what it starts meanwhile to some cores; None leaves them as they are.

    What it started before, such as a probe's worker, stays where it was.
    """
    if cores is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    _move_threads(cores)
    try:
        yield
    finally:
        _move_threads(before)


def _move_threads(cores: Iterable[int]) -> None:
    # Linux keeps a set of cores for each thread, and torch may have started some.
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.sched_setaffinity(int(thread.name), cores)
