"""Runs on a node of a Ray cluster: starts the worker there and passes its streams on.

Ray sends this module's class to the node by value, which needs nothing of this package.
"""

import contextlib
import os
import queue
import subprocess
import sys
import threading
from typing import Any


class Relay:
    """The worker's process on the node; ``arguments`` are of the node's own Python, ``env`` is
    added to its environment."""

    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        ours = dict(os.environ)
        if not ours.get("CUDA_VISIBLE_DEVICES"):
            ours.pop("CUDA_VISIBLE_DEVICES", None)  # older Rays hide a GPU from whoever claims none
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**ours, **env},
        )
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._errors: list[str] = []
        threading.Thread(target=self._forward, daemon=True).start()
        self._error_reader = threading.Thread(target=self._collect, daemon=True)
        self._error_reader.start()

    def write(self, data: bytes) -> None:
        """Send to the worker's input."""
        stdin: Any = self._process.stdin
        try:
            stdin.write(data)
            stdin.flush()
        except OSError:
            pass  # it has ended, which its output tells

    def read_line(self, patience_s: float) -> bytes | None:
        """The next line of its output, empty at the end, or None after ``patience_s``."""
        try:
            return self._lines.get(timeout=patience_s)
        except queue.Empty:
            return None

    def last_words(self) -> str:
        """How it ended."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        self._error_reader.join(timeout=1)  # they may still be on their way
        last = next((line for line in reversed(self._errors) if line), "no message")
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        return f"the worker ended with {how} ({last})"

    def close(self) -> None:
        """End it: by the end of its input, so that it removes its files, or else by force."""
        # A write to a worker that does not read holds the pipe until the kill.
        threading.Thread(target=self._hang_up, daemon=True).start()
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _hang_up(self) -> None:
        stdin: Any = self._process.stdin
        with contextlib.suppress(OSError):  # it may have ended before
            stdin.close()

    def _forward(self) -> None:
        stdout: Any = self._process.stdout
        for line in stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _collect(self) -> None:
        stderr: Any = self._process.stderr
        self._errors.extend(line.decode(errors="replace").strip() for line in stderr)
