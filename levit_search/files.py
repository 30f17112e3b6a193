"""Files that are either whole or not there."""

import contextlib
import errno
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

# What write_atomically calls a file until it is whole.
_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}\.partial")

# What file systems answer that cannot flush a folder, or flush it by themselves.
_NOT_FLUSHED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.ENOSYS}


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` under a temporary name beside ``path`` and put it in place at once.

    It is on the disk when this returns. What is there and no regular file, such as ``/dev/stdout``,
    is written to as it is.
    """
    raw = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(raw)
        return
    handle, temporary = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            if os.name == "posix":  # while it is locked
                temporary.replace(path)
        if os.name != "posix":  # where an open file cannot be moved
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        _flush_folder(path.parent)


def is_there(path: Path) -> bool:
    """Whether there is anything at ``path``; what is too long for a path, or no text for one, names
    nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as readable JSON, atomically."""
    write_atomically(path, json.dumps(data, indent=2) + "\n")


def remove_unfinished(folder: Path) -> list[Path]:
    """Remove the temporary files below ``folder`` whose writers were killed; returns their paths.

    A writer holds a lock on its own, which ends with it. Where there are no such locks nothing is
    removed.
    """
    removed = []
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names if _UNFINISHED.fullmatch(name)):
            # Somebody else's, or finished just now: then it is not ours to remove.
            with contextlib.suppress(OSError), path.open("rb") as file:
                if _is_locked_by_us(file.fileno()):
                    path.unlink()
                    removed.append(path)
    return removed


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file beside ``path``, locked: its descriptor and its path."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        _lock(handle)
        if Path(name).exists():
            return handle, Path(name)
        os.close(handle)  # taken for left over before it was locked


def _lock(handle: int) -> None:
    """Lock a file as soon as nobody else has it any longer, where there are locks."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)


def _is_locked_by_us(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has none
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another's, or a file system without locks
        return False
    return True


def _flush_folder(folder: Path) -> None:
    """Have the new name on the disk as well."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NOT_FLUSHED:
            raise
