"""A worker, or what reaches it, as a process of this machine: its streams, bounded on all sides.

However much it prints, little of it is kept here. The module needs the standard library alone, and
:mod:`levit_search.latency.ray_node` sends it to nodes that have nothing else.
"""

import collections
import contextlib
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence

# A round of ten minutes at the shortest timings has some thirty megabytes.
LONGEST_LINE = 64 << 20
_LINES_AHEAD = 4  # what nobody asks for is not read on
_KEPT_ERRORS, _LONGEST_ERROR = 200, 2000
LONGEST_TOLD = 300
"""Characters of what a worker says that are shown to people."""


class ProcessPipe:
    """The standard streams of a process, which is started.

    Args:
        command: and its arguments.
        env: variables beside our own.
        explain: what its exit code and error lines mean, where that is known.

    Raises:
        OSError: the command cannot be started.
    """

    def __init__(
        self,
        command: list[str],
        env: dict[str, str] | None = None,
        explain: Callable[[int, list[str]], str | None] | None = None,
    ) -> None:
        self._explain = explain
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            start_new_session=True,  # Ctrl-C is for whoever started us to answer
        )
        self._lines: queue.Queue[bytes] = queue.Queue(_LINES_AHEAD)
        self._unsent: queue.Queue[bytes | None] = queue.Queue()
        self._errors: collections.deque[str] = collections.deque(maxlen=_KEPT_ERRORS)
        self._is_closed = threading.Event()
        self._error_reader = threading.Thread(target=self._read_errors, daemon=True)
        for thread in (
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._send, daemon=True),
            self._error_reader,
        ):
            thread.start()

    def write(self, data: bytes) -> None:
        """Send to the process; returns at once."""
        self._unsent.put(data)

    def read_line(self, patience_s: float) -> bytes | None:
        """The next line, empty at the end of the output, or None after ``patience_s``.

        One of more than ``LONGEST_LINE`` bytes is cut off there.
        """
        with contextlib.suppress(queue.Empty):
            return self._lines.get(timeout=patience_s)
        return None

    def is_running(self) -> bool:
        """Whether it is not known to have ended."""
        return self._process.poll() is None

    def last_words(self) -> str:
        """How it ended, in one line; only after the end of its output."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        self._error_reader.join(timeout=1)  # they may still be on their way
        explained = self._explain(code, [*self._errors]) if self._explain else None
        last = last_line(self._errors) or "no message"
        return explained or f"the worker ended with {exit_name(code)} ({last})"

    def close(self) -> None:
        """End the process and wait for it."""
        self._is_closed.set()
        self._unsent.put(None)
        # The end of its input ends a worker; whatever does not listen is killed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=0.5)
        self._process.kill()
        self._process.wait()

    def _read_lines(self) -> None:
        """Pass whole lines on, as fast as they are taken; one that was not ended is none."""
        assert self._process.stdout is not None
        is_whole = True
        while is_whole and not self._is_closed.is_set():
            line = self._process.stdout.readline(LONGEST_LINE)
            is_whole = line.endswith(b"\n") or len(line) == LONGEST_LINE
            while not self._is_closed.is_set():
                with contextlib.suppress(queue.Full):
                    self._lines.put(line if is_whole else b"", timeout=0.5)
                    break

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        while line := self._process.stderr.readline(_LONGEST_ERROR):
            self._errors.append(line.decode(errors="replace").strip())

    def _send(self) -> None:
        assert self._process.stdin is not None
        # Whoever does not read any more has ended, which its output tells.
        with contextlib.suppress(OSError):
            while (data := self._unsent.get()) is not None:
                self._process.stdin.write(data)
                self._process.stdin.flush()
            self._process.stdin.close()


def last_line(errors: Sequence[str]) -> str:
    """The last one that says something."""
    return next((line[:LONGEST_TOLD] for line in reversed(errors) if line), "")


def exit_name(code: int | None) -> str:
    """An exit code, or the signal that it stands for."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            # What the system does to whoever has the most when there is none left.
            return f"{name} (out of memory?)" if name == "SIGKILL" else name
    return f"exit code {code}"
