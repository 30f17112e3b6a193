"""A worker, or what reaches it, as a process of this machine.

However much it prints, little of it is kept here.
"""

import collections
import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

# A round of ten minutes at the shortest timings has some thirty megabytes.
LONGEST_LINE = 64 << 20
_LINES_AHEAD = 4  # what nobody asks for is not read on
_KEPT_ERRORS, _LONGEST_ERROR = 200, 2000
LONGEST_TOLD = 300
"""Characters of what a worker says that are shown to people."""


class ProcessPipe:
    """A process of this machine, be it the worker or what reaches it.

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
        assert self._process.stdout is not None and self._process.stderr is not None
        assert self._process.stdin is not None
        _in_background(_forward, self._process.stdout, self._lines, self._is_closed)
        _in_background(_send, self._process.stdin, self._unsent)
        self._error_reader = _in_background(_collect, self._process.stderr, self._errors)

    @property
    def process_id(self) -> int:
        return self._process.pid

    def write(self, data: bytes) -> None:
        self._unsent.put(data)

    def read_line(self, patience_s: float) -> bytes | None:
        try:
            return self._lines.get(timeout=patience_s)
        except queue.Empty:
            return None

    def is_running(self) -> bool:
        return self._process.poll() is None

    def last_words(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        self._error_reader.join(timeout=1)  # they may still be on their way
        explained = self._explain(code, [*self._errors]) if self._explain else None
        if explained is not None:
            return explained
        return (
            f"the worker ended with {exit_name(code)} ({last_line(self._errors) or 'no message'})"
        )

    def close(self) -> None:
        self._is_closed.set()
        self._unsent.put(None)
        if self._process.poll() is None:
            # The end of its input ends a worker; whatever does not listen is killed.
            deadline = time.monotonic() + 0.5
            while self._process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            self._process.kill()
        self._process.wait()


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


def _in_background(function: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _forward(stream: IO[bytes], lines: "queue.Queue[bytes]", is_closed: threading.Event) -> None:
    """Pass whole lines on, as fast as they are taken; one that its writer did not end is none."""
    while not is_closed.is_set():
        line = stream.readline(LONGEST_LINE)
        is_whole = line.endswith(b"\n") or len(line) == LONGEST_LINE
        _put(lines, line if is_whole else b"", is_closed)
        if not is_whole:
            return


def _put(lines: "queue.Queue[bytes]", line: bytes, is_closed: threading.Event) -> None:
    while not is_closed.is_set():
        with contextlib.suppress(queue.Full):
            lines.put(line, timeout=0.5)
            return


def _collect(stream: IO[bytes], errors: "collections.deque[str]") -> None:
    while line := stream.readline(_LONGEST_ERROR):
        errors.append(line.decode(errors="replace").strip())


def _send(stream: IO[bytes], unsent: "queue.Queue[bytes | None]") -> None:
    try:
        while (data := unsent.get()) is not None:
            stream.write(data)
            stream.flush()
        stream.close()
    except OSError:
        return  # whoever does not read any more has ended, which its output tells
