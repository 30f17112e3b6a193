"""Ends a Ray of our own once its driver is gone, however it went.

Run as a program of its own that holds the other end of a pipe. Ray ends most of its processes
itself, but its agents wait more than a minute for a head that is no more. They are known by a mark
in their environment, or as children of those who have it. Both may be gone at the end: a process
that gives itself a title writes it over its environment, and the children of the dead are init's.
So they are looked for while the driver lives.
"""

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

MARK = "LEVIT_SEARCH_RAY"
"""In the environment of all its processes, with a value of its own."""

_LOOK_S = 0.3
_START_S = 60.0  # agents start with their node
_LOOK_LATER_S = 5.0
_PASSES = 50  # one that is killed may have started another, and takes a moment to end
_PASS_S = 0.1


def main() -> None:
    """Wait for the end of stdin, and kill what is left then."""
    mark = f"{MARK}={sys.argv[1]}".encode()
    found: dict[int, str] = {}
    end_of_start = time.monotonic() + _START_S
    patience_s = _LOOK_S
    while not select.select([sys.stdin], [], [], patience_s)[0]:
        note(mark, found)
        patience_s = _LOOK_S if time.monotonic() < end_of_start else _LOOK_LATER_S
    for _ in range(_PASSES):
        alive = note(mark, found)
        if not alive:
            return
        for process_id in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        time.sleep(_PASS_S)


def note(mark: bytes, found: dict[int, str]) -> list[int]:
    """Add the processes with a mark, and all that they started; returns which are alive.

    Args:
        mark: ``name=value`` in the environment.
        found: when each started, by its number, which may come to be another's.
    """
    parents, starts = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):  # nothing elsewhere than on Linux
        with contextlib.suppress(OSError):  # another user's, or ended just now
            state, parent, *rest = (entry / "stat").read_text().rpartition(")")[2].split()
            if state != "Z":
                number = int(entry.name)
                parents[number], starts[number] = int(parent), rest[17]
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[number] = starts[number]
    alive = {number for number, start in found.items() if starts.get(number) == start}
    while new := {number for number, parent in parents.items() if parent in alive} - alive:
        alive |= new
        found.update({number: starts[number] for number in new})
    return sorted(alive)


if __name__ == "__main__":
    main()
