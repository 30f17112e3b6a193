"""Ends a Ray of our own once its driver is gone, however it went.

Run as a program of its own that holds the other end of a pipe. Ray ends most of its processes
itself, but its agents wait more than a minute for a head that is no more.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

MARK = "LEVIT_SEARCH_RAY"
"""In the environment of all its processes, with a value of its own."""

_PASSES = 50  # one that is killed may have started another, and takes a moment to end
_PASS_S = 0.1


def main() -> None:
    sys.stdin.read()
    mark = f"{MARK}={sys.argv[1]}".encode()
    for _ in range(_PASSES):
        # Elsewhere than on Linux there is nothing to see, and Ray has its time.
        entries = Path("/proc").glob("[0-9]*")
        found = [int(entry.name) for entry in entries if mark in _environment(entry)]
        if not found:
            return
        for process_id in found:
            _kill(process_id)
        time.sleep(_PASS_S)


def _environment(entry: Path) -> list[bytes]:
    try:
        return (entry / "environ").read_bytes().split(b"\0")
    except OSError:  # another user's, or ended just now
        return []


def _kill(process_id: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process_id, signal.SIGKILL)


if __name__ == "__main__":
    main()
