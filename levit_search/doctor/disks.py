"""Folders that are written to: permissions, room, and locks that hold."""

import contextlib
import errno
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

from levit_search.doctor.finding import Finding, fail, ok, warn
from levit_search.printable import quoted

_BLOCK = 1 << 20
_NO_ROOM_MB, _LITTLE_ROOM_MB = 100, 2000
# File systems on other machines, whose locks are not to be trusted by SQLite.
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "gpfs", "glusterfs", "beegfs"}


def folder(name: str, path: Path, breaks: str, elsewhere: str, locks: bool) -> list[Finding]:
    """A folder in which files are made.

    Args:
        name: of the finding.
        path: it need not be there yet.
        breaks: what fails where it cannot be written.
        elsewhere: how another one is chosen.
        locks: whether a study is kept in it, with SQLite's locks and ours.
    """
    place = next((each for each in (path, *path.absolute().parents) if each.exists()), Path("/"))
    found = f"{path}" if place == path else f"{path} (to be made in {place})"
    try:
        with tempfile.TemporaryDirectory(prefix=".levit-search-doctor-", dir=place) as scratch:
            _write(Path(scratch))
            if locks:
                broken = _broken_locks(Path(scratch))
                if broken is not None:
                    return [fail("disk", name, f"{found}: {broken}", _LOCKS, _ELSEWHERE)]
    except OSError as error:
        reason = error.strerror or str(error)
        return [fail("disk", name, f"{found}: {reason}", breaks, _way_out(error, place, elsewhere))]
    kind = _file_system(place)
    free_mb = shutil.disk_usage(place).free / 1e6
    found = f"{found}: {_size(free_mb)} free" + (f", {kind}" if kind else "")
    if free_mb < _NO_ROOM_MB:
        return [fail("disk", name, found, breaks, f"make room in {place}, or {elsewhere}")]
    if locks and (kind in _REMOTE or kind.startswith("fuse.")):
        return [
            warn(
                "disk",
                name,
                f"{found}, which is on another machine",
                "SQLite's locks may not hold there, and each trial takes longer to write",
                "run with --set storage=journal, or in a folder of this machine",
            )
        ]
    if free_mb < _LITTLE_ROOM_MB:
        told = "weights and answers of teachers may fill it"
        return [warn("disk", name, found, told, f"make room, or {elsewhere}")]
    return [ok("disk", name, found)]


_LOCKS = "two searches could write to one study at once"
_ELSEWHERE = "keep studies in a folder of this machine: --study DIR"


def _write(scratch: Path) -> None:
    """As studies are written: to the disk, then into place.

    Raises:
        OSError: it cannot be done.
    """
    first, second = scratch / "first", scratch / "second"
    with first.open("wb") as file:
        file.write(b"\1" * _BLOCK)
        file.flush()
        os.fsync(file.fileno())
    first.replace(second)
    second.unlink()


def _broken_locks(scratch: Path) -> str | None:
    """Which locks let two in at once."""
    for kind, holds in _LOCK_TESTS.items():
        try:
            if not holds(scratch):
                return f"{kind} let two in at once"
        except (OSError, sqlite3.Error) as error:
            return f"has no {kind} ({error})"
    return None


def _files_lock(scratch: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows locks whatever is open
        return True
    path = scratch / "lock"
    with path.open("w") as first, path.open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _databases_lock(scratch: Path) -> bool:
    path = scratch / "trials.db"
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(
                contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None))
            )
            for _ in range(2)
        )
        first.execute("CREATE TABLE trials (number INTEGER)")
        first.execute("BEGIN IMMEDIATE")
        try:
            second.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            first.execute("COMMIT")
            return True
    return False


_LOCK_TESTS: dict[str, Callable[[Path], bool]] = {
    "file locks": _files_lock,
    "SQLite locks": _databases_lock,
}


def _way_out(error: OSError, place: Path, elsewhere: str) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"make room in {place}, or {elsewhere}"
    if error.errno == errno.EROFS:
        return f"have it mounted for writing, or {elsewhere}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"chmod u+rwx {quoted(str(place))}, or have its owner do so, or {elsewhere}"
    return f"see what is wrong with {place}, or {elsewhere}"


def _file_system(place: Path) -> str:
    """The kind of file system that a folder is on; empty where that is not told."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return ""
    best, kind = Path("/"), ""
    here = place.resolve()
    for line in lines:
        fields, _, rest = line.partition(b" - ")
        name = fields.split()[4].decode("unicode_escape").encode("latin-1")
        point = Path(os.fsdecode(name))
        if here.is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, os.fsdecode(rest.split()[0])
    return kind


def _size(megabytes: float) -> str:
    return f"{megabytes / 1000:,.0f} GB" if megabytes >= 10_000 else f"{megabytes:,.0f} MB"
