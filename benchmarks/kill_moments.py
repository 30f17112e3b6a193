"""A search in a process of its own, and moments of it at which it is killed."""

import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Moment = Literal["folder", "storage", "start", "proposal", "training", "rung", "end", "write"]
"""``folder`` and ``storage``: while they are made. ``end``: a network has just been trained, and
its weights are written. ``write``: a transaction is open."""
AT_FIRST: tuple[Moment, ...] = ("folder", "storage")
LATER: tuple[Moment, ...] = ("start", "proposal", "training", "rung", "end", "write")

ENDED_S = 15.0
"""By then nothing that a killed driver started may be left."""

_MARK = "LEVIT_SEARCH_KILLS"  # in the environment of all that a session starts
_LOOK_S = 0.001
_LOOK_CLOSELY_S = 0.0001  # a transaction takes milliseconds
_SCAN_S = 0.3
# A trial that ended; those that cost no evaluation are told otherwise.
_ENDED = re.compile(r"^\[[\d:]+\] trial (\d+)\b", re.MULTILINE)
_EVALUATED = re.compile(
    r"^\[[\d:]+\] trial \d+(?:: top1_percent| stopped at|.* failed:)(?!.*\(known from)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Pace:
    """How fast a search goes by itself."""

    prepared_s: float
    """From the command to the first proposal."""
    trial_s: float
    epoch_s: Mapping[str, float]
    """By a network's id."""


class Session:
    """One driver from its start to its end, and whatever it starts.

    Args:
        arguments: of ``levit-search``.
        folder: of the study.
        log: takes what is told on stderr.
    """

    def __init__(self, arguments: Sequence[object], folder: Path, log: Path) -> None:
        self.folder, self._log = folder, log
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        self.started = time.time()
        with log.open("w") as lines:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "levit_search", *map(str, arguments)],
                stdout=subprocess.DEVNULL,
                stderr=lines,
                env={**os.environ, name: value},
            )
        self._family: dict[int, str] = {}
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def told(self) -> set[int]:
        """Trials of which was told that they have ended."""
        return {int(number) for number in _ENDED.findall(self._lines())}

    def last_line(self) -> str:
        return self._lines().rstrip().rpartition("\n")[2]

    def wait(self) -> int:
        """The exit code of a driver that is left alone."""
        return self.process.wait()

    def kill(self) -> bool:
        """Send SIGKILL to the driver alone; returns whether it was still there."""
        self.process.kill()
        return self.process.wait() < 0

    def left(self) -> dict[int, str]:
        """Processes of this session other than the driver that are there now, by their ids.

        Told by the session's mark in their environment, or by having been seen among the driver's
        descendants: who gives itself a title loses the former.
        """
        now = _processes()
        marked = {pid for pid in now if self._mark.encode() in _read(pid, "environ").split(b"\0")}
        known = {pid for pid, born in self._family.items() if pid in now and now[pid][1] == born}
        return {pid: _title(pid) for pid in (marked | known) - {self.process.pid}}

    def reach(
        self, moment: Moment, evaluations: int, pace: Pace, chance: np.random.Generator
    ) -> bool:
        """Wait for a random moment of some kind after so many evaluations in this session.

        Returns:
            False where the driver ended before.
        """
        folder = self.folder
        if moment == "folder":
            return self._until(folder.exists) and self._pass(chance.uniform(0, 0.02))
        if moment == "storage":
            return self._until((folder / "study.db").exists) and self._pass(chance.uniform(0, 0.3))
        if moment == "start":
            return self._begins(chance.uniform(0, pace.prepared_s))
        if moment == "proposal":
            evaluations = max(1, evaluations)
        if evaluations:
            begun = self._until(lambda: len(_EVALUATED.findall(self._lines())) >= evaluations)
        else:
            begun = self._begins(pace.prepared_s)
        if not begun:
            return False
        match moment:
            case "proposal":
                return self._pass(chance.uniform(0, 0.05))
            case "training":
                return self._pass(chance.uniform(0, pace.trial_s))
            case "rung":
                return self._changed("*.training.pt") and self._pass(chance.uniform(0, 0.03))
            case "end":
                return self._changed("*.safetensors") and self._pass(chance.uniform(0, 0.03))
        journal = folder / "study.db-journal"
        is_later = self._pass(chance.uniform(0, pace.trial_s))
        return is_later and self._until(journal.exists, _LOOK_CLOSELY_S)

    def _lines(self) -> str:
        """Whole ones."""
        text = self._log.read_text()
        return text[: text.rfind("\n") + 1]

    def _changed(self, pattern: str) -> bool:
        """Wait for a new or another checkpoint."""

        def files() -> set[tuple[str, int]]:
            found = set()
            for path in (self.folder / "checkpoints").glob(pattern):
                if not path.name.startswith("."):
                    try:
                        found.add((path.name, path.stat().st_mtime_ns))
                    except FileNotFoundError:
                        continue
            return found

        before = files()
        return self._until(lambda: bool(files() - before))

    def _pass(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        return self._until(lambda: time.monotonic() >= end)

    def _begins(self, seconds: float) -> bool:
        """As :meth:`_pass`, but until a first trial has ended at most: a machine has its moods."""
        end = time.monotonic() + seconds
        return self._until(lambda: time.monotonic() >= end or bool(self.told()))

    def _until(self, condition: Callable[[], bool], look_s: float = _LOOK_S) -> bool:
        while not condition():
            if self.process.poll() is not None:
                return False
            time.sleep(look_s)
        return True

    def _watch(self) -> None:
        """Remember the driver's descendants, and theirs."""
        while self.process.returncode is None:
            now = _processes()
            alive = [p for p, born in self._family.items() if p in now and now[p][1] == born]
            family = {self.process.pid, *alive}
            for pid, (parent, born) in sorted(now.items(), key=lambda item: int(item[1][1])):
                if parent in family:
                    family.add(pid)
                    self._family[pid] = born
            time.sleep(_SCAN_S)


def _processes() -> dict[int, tuple[int, str]]:
    """Parent and time of birth of all that live; those that have ended and wait to be noticed by
    their parents are left out."""
    found = {}
    for pid in _ids():
        fields = _read(pid, "stat").rpartition(b") ")[2].split()
        if fields and fields[0] not in (b"Z", b"X"):
            found[pid] = int(fields[1]), fields[19].decode()
    return found


def _ids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _title(pid: int) -> str:
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace").strip()[:120]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""
