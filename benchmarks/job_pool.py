"""Networks to work on, jobs for worker processes that are kept, and results that are gone on with.

Workers are kept since importing torch and timm is dear.
"""

import argparse
import contextlib
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from levit_search.architecture import Architecture
from levit_search.cost import cost
from levit_search.errors import InputError, TrialError
from levit_search.space import Space

Job = TypeVar("Job")
Result = TypeVar("Result")


def add_options(parser: argparse.ArgumentParser, space: Path, folder: Path) -> None:
    """The options of all scripts that train networks of a space and keep what has ended."""
    parser.add_argument("--space", type=Path, default=space)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change the space file"
    )
    parser.add_argument("--folder", type=Path, default=folder)
    parser.add_argument("--train-images", type=int, default=6000)
    parser.add_argument("--jobs", type=int, default=2, help="worker processes of one thread each")
    parser.add_argument("--minutes", type=float, help="start no training after that time")
    parser.add_argument("--json", action="store_true")


def drawn(space: Space, count: int, rng: np.random.Generator) -> list[Architecture]:
    """Different networks within the space's limits, in the order in which they were drawn."""
    found: dict[str, Architecture] = {}
    while len(found) < count:
        with contextlib.suppress(InputError):
            network = space.draw(rng)
            if all(excess <= 0 for excess in space.limits.excess(cost(network)).values()):
                found[network.id] = network
    return list(found.values())


def carried_out(
    work: Callable[[Job], Result], jobs: Iterable[Job], processes: int, minutes: float | None = None
) -> Iterator[tuple[Job, Result | TrialError]]:
    """Each job with what came of it, in the order in which they end.

    Jobs are started in their order, and none after ``minutes``; those that run are waited for. A
    worker has one thread.

    Args:
        work: a function of a module, called in a worker.
        jobs: what can be sent to another process.
        processes: workers.
        minutes: None for no limit.

    Raises:
        LevitSearchError: whatever ``work`` raised but a TrialError, which is a result.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the workers' torch when it is imported
    end = time.monotonic() + 60 * (math.inf if minutes is None else minutes)
    waiting = iter(jobs)
    running: dict[Future[Result], Job] = {}
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        while True:
            while len(running) < processes and time.monotonic() < end:
                job = next(waiting, None)
                if job is None:
                    break
                running[pool.submit(work, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                error = future.exception()
                if error is None:
                    yield job, future.result()
                elif isinstance(error, TrialError):
                    yield job, error
                else:
                    raise error


class Progress:
    """Lines on stderr: what has ended, and how long the rest will take."""

    def __init__(self, done: int, total: int) -> None:
        self._first, self._done, self._total = done, done, total
        self._start = time.monotonic()

    def step(self, text: str) -> None:
        """Tell of one more job."""
        self._done += 1
        each_s = (time.monotonic() - self._start) / (self._done - self._first)
        left = (self._total - self._done) * each_s / 60
        say(f"{self._done}/{self._total} {text}; {left:.0f} min left")


def refuse_others(folder: Path, kept: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """See that results are gone on with by the settings that began them.

    Raises:
        InputError: ``given`` differs from the settings ``kept`` in ``folder``; the message says
            in what.
    """
    before, now = dict(_leaves(kept)), dict(_leaves(given))
    other = [
        f"{name} was {before.get(name)}, here {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if other:
        raise InputError(
            f"{folder}: was made with other settings: {'; '.join(other[:4])}. Give those, or "
            "choose another --folder"
        )


def _leaves(tree: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", value


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
