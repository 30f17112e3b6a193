"""Functions run at once, each with a time after which it is not waited for any longer."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Value = TypeVar("Value")


class DeadlineError(Exception):
    """A function's time is up, and it has not returned."""


def run_with_deadlines(
    jobs: Sequence[tuple[Callable[[], Value], float]],
) -> Iterator[tuple[int, Value | Exception]]:
    """Run functions in threads and give what each returns as soon as it does.

    Args:
        jobs: functions, each with the seconds that it may take.

    Yields:
        The index of a job with its value or with what it raised, once for each job; a
        :class:`DeadlineError` where its time is up.
    """
    ended: queue.Queue[tuple[int, Value | Exception]] = queue.Queue()

    def work(index: int, job: Callable[[], Value]) -> None:
        try:
            ended.put((index, job()))
        except Exception as error:  # for whoever asked to judge
            ended.put((index, error))

    begun = time.monotonic()
    due = {index: begun + limit_s for index, (_, limit_s) in enumerate(jobs)}
    for index, (job, _) in enumerate(jobs):
        # One that hangs in a system call cannot be stopped; the process's end does not wait for it.
        threading.Thread(target=work, args=(index, job), daemon=True).start()
    while due:
        first = min(due, key=due.__getitem__)
        outcome: Value | Exception
        try:
            index, outcome = ended.get(timeout=max(0.0, due[first] - time.monotonic()))
        except queue.Empty:
            index, outcome = first, DeadlineError()
        if due.pop(index, None) is not None:  # an answer may come after its time was up
            yield index, outcome
