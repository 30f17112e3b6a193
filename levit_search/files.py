"""Files that are either whole or not there."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from levit_search.errors import InputError
from levit_search.printable import encodable, encodable_json

_OURS = "levit-search"
# What write_atomically calls a file until it is whole.
_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}\.partial")

# What file systems answer that cannot flush a folder, or flush it by themselves.
_NOT_FLUSHED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.ENOSYS}


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` under a temporary name beside ``path`` and put it in place at once.

    A text is written in UTF-8, and what that has no place for is escaped. It is on the disk when
    this returns. What is there and no regular file, such as ``/dev/stdout``,
    is written to as it is.
    """
    raw = encodable(content).encode() if isinstance(content, str) else content
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


def expanded(path: str | Path) -> Path:
    """A path with a leading ``~`` or ``~NAME`` filled in; as it is where there is no such home.

    Raises:
        InputError: it holds a zero byte, as no path does.
    """
    if "\0" in str(path):
        raise InputError(f"{path}: no path has a zero byte")
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib raises RuntimeError)


@contextlib.contextmanager
def named_in_utf_8(folder: Path) -> Iterator[Path]:
    """A folder under a name in UTF-8, as many libraries take no other: itself, or a link to it."""
    if str(folder) == encodable(str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix=f"{_OURS}-") as place:
        link = Path(place) / "link"
        link.symlink_to(folder.absolute())
        yield link


def user_cache() -> Path:
    """Where downloads, teachers and measurements are kept: ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Where no home directory can be written, as in many containers, it is a folder of the user's own
    in that of temporary files, which a warning names once. Libraries and the processes that are
    started from here on keep their own there as well.

    Raises:
        InputError: somebody else may write to that one.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    kept = Path(named) / _OURS if named else expanded("~/.cache") / _OURS
    if named or (kept.is_absolute() and _can_be_made(kept)):
        return kept
    user = os.getuid() if os.name == "posix" else 0
    folder = Path(tempfile.gettempdir()) / f"{_OURS}-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (found.st_uid, found.st_mode & 0o022) != (user, 0):
        raise InputError(
            f"{folder}: is not this user's alone, and no home directory can be written; "
            "set XDG_CACHE_HOME to a folder for what is kept"
        )
    warnings.warn(
        f"no home directory can be written, so that downloads, teachers and measurements are kept "
        f"in {folder}; XDG_CACHE_HOME names another folder",
        stacklevel=2,
    )
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder / _OURS


def _can_be_made(folder: Path) -> bool:
    """Whether a folder is there, or may be."""
    there = next(each for each in (folder, *folder.parents) if os.access(each, os.F_OK))
    return there == folder or os.access(there, os.W_OK | os.X_OK)


def is_there(path: Path) -> bool:
    """Whether there is anything at ``path``; what is too long for a path, or no text for one, names
    nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as readable JSON, atomically."""
    write_atomically(path, json.dumps(encodable_json(data), indent=2) + "\n")


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


def file_digest(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
