"""Optuna's journal file, so written that a killed writer neither damages it nor locks others out.

The file and its lock are Optuna's own; its dashboard may be at work on the same file.
"""

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

# The lock is held for one write, a few milliseconds; one that is this old was left by a process
# that was killed. A whole Optuna would wait for 30 s, and for ever if the folder was moved.
_STALE_S = 5.0
_LOOK_AGAIN_S = 0.005


class DamagedJournalError(Exception):
    """A line of the file that is not the last is no record."""


def journal(path: Path) -> JournalStorage:
    """The storage in a journal file, made if it is not there.

    Raises:
        DamagedJournalError: the file is no journal.
        OSError: it cannot be read, or not be made.
    """
    return JournalStorage(_Backend(str(path.absolute()), _Lock(path.absolute())))


class _Backend(JournalFileBackend):
    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        number = log_number_from
        try:
            for log in super().read_logs(log_number_from):
                if not isinstance(log, dict) or "op_code" not in log:
                    raise ValueError
                number += 1
                yield log
        except ValueError:
            raise DamagedJournalError(f"line {number + 1} is no record of Optuna's") from None


class _Lock(JournalFileSymlinkLock):
    """Optuna's symbolic link beside the file.

    Whoever gets the lock finds whole lines: what a killed writer left of one is taken away, where
    Optuna would append to it and never be able to read the file again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._link = path.with_name(f"{path.name}.lock")

    def acquire(self) -> bool:
        seen, since = None, time.monotonic()
        while True:
            try:
                self._link.symlink_to(self._path)
                break
            except FileExistsError:
                held = self._holder()
                if held != seen:
                    seen, since = held, time.monotonic()
                elif held is not None and time.monotonic() - since > _STALE_S:
                    self.release()
                time.sleep(_LOOK_AGAIN_S)
        self._drop_torn_line()
        return True

    def release(self) -> None:
        self._link.unlink(missing_ok=True)

    def _holder(self) -> tuple[int, int] | None:
        """What tells one lock from the next."""
        try:
            status = self._link.lstat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _drop_torn_line(self) -> None:
        with self._path.open("r+b") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
