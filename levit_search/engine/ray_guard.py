"""Ends a Ray of our own once its driver is gone, however it went.

Run as a program of its own that holds the other end of a pipe. Ray ends most of its processes
itself, but its agents wait more than a minute for a head that is no more. They are known by a mark
in their environment, or as children of those who have it. Both may be gone at the end: a process
that gives itself a title writes it over its environment, and the children of the dead are init's.
So they are looked for while the driver lives.
"""

import contextlib
import select
import sys
import time

import psutil

MARK = "LEVIT_SEARCH_RAY"
"""In the environment of all its processes, with a value of its own."""

_LOOK_S = 0.3
_START_S = 60.0  # agents start with their node
_LOOK_LATER_S = 5.0
_PASSES = 50  # one that is killed may have started another, and takes a moment to end
_PASS_S = 0.1


def main() -> None:
    """Wait for the end of stdin, and kill what is left then."""
    found: set[psutil.Process] = set()
    end_of_start = time.monotonic() + _START_S
    patience_s = _LOOK_S
    while not select.select([sys.stdin], [], [], patience_s)[0]:
        note(sys.argv[1], found)
        patience_s = _LOOK_S if time.monotonic() < end_of_start else _LOOK_LATER_S
    for _ in range(_PASSES):
        alive = note(sys.argv[1], found)
        if not alive:
            return
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(_PASS_S)


def note(mark: str, found: set[psutil.Process]) -> set[psutil.Process]:
    """Add the processes with a mark, and all that they started; returns which are alive."""
    parents: dict[psutil.Process, int] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # another user's, or ended just now
            if process.status() != psutil.STATUS_ZOMBIE:
                parents[process] = process.ppid()
                if process.environ().get(MARK) == mark:
                    found.add(process)
    alive = found & parents.keys()
    while new := {p for p, parent in parents.items() if parent in {a.pid for a in alive}} - alive:
        alive |= new
        found |= new
    return alive


if __name__ == "__main__":
    main()
