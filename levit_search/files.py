"""Atomic writes, checksums, a guard against zip bombs, and where caches are kept.

A file is either whole or not there, and tells whether it is as it was written: JSON has its
checksum under ``checksum``, safetensors in the file's metadata under ``sha256``. What was written
before files had one is taken as it is.
"""

import contextlib
import errno
import hashlib
import io
import json
import mmap
import os
import re
import stat
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from levit_search.errors import InputError
from levit_search.escaping import encodable, encodable_json

_OURS = "levit-search"
# What write_atomically calls a file until it is whole.
_UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}\.partial")
# What file systems answer that cannot flush a folder, or flush it by themselves.
_NOT_FLUSHED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.ENOSYS}

_JSON_KEY = "checksum"
WEIGHTS_KEY = "sha256"
_MOST_BYTES = 1 << 33

_FILLED = b"bytearray"  # of a pickle: torch fills as many zeros as it says; no weights have one


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` under a temporary name beside ``path`` and put it in place at once.

    A text is written in UTF-8, and what that has no place for is escaped. It is on the disk when
    this returns. What is no regular file, such as ``/dev/stdout``, is written to as it is.
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
    if os.name == "posix":  # have the new name on the disk as well
        try:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            if error.errno not in _NOT_FLUSHED:
                raise


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file beside ``path``, locked where there are locks: its descriptor and its path."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)  # as soon as nobody else has it any longer
        if Path(name).exists():
            return handle, Path(name)
        os.close(handle)  # taken for left over before it was locked


def make_writable(folder: Path) -> None:
    """Make a folder, unless it is there, and write to it.

    Raises:
        OSError: it cannot be made, or not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as readable JSON, atomically."""
    write_atomically(path, json.dumps(encodable_json(data), indent=2) + "\n")


def is_unfinished(path: Path) -> bool:
    """Whether a file is by its name what :func:`write_atomically` writes before it is in place."""
    return _UNFINISHED.fullmatch(path.name) is not None


def remove_unfinished(folder: Path) -> list[Path]:
    """Remove the temporary files below ``folder`` whose writers were killed; returns their paths.

    A writer holds a lock on its own, which ends with it. Where there are no such locks nothing is
    removed.
    """
    try:
        import fcntl
    except ImportError:  # Windows has none
        return []
    removed = []
    for place, _, names in os.walk(folder):
        for path in filter(is_unfinished, (Path(place, name) for name in names)):
            # Somebody else's, locked, finished just now, or on a file system without locks: then it
            # is not ours to remove.
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed.append(path)
    return removed


@contextlib.contextmanager
def held_lock(path: Path, told: str) -> Iterator[None]:
    """Hold a lock file within the block.

    Raises:
        InputError: another process has it, in the words of ``told``.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(told) from None
    try:
        yield
    finally:
        lock.release()


class DamagedFileError(ValueError):
    """A file is not as it was written; the message says in a few words what is wrong with it."""


def read_bounded(path: Path) -> bytes:
    """The content of a file that may come from anybody.

    Raises:
        OSError: there is no such file, or it cannot be read.
        DamagedFileError: it is a pipe or a device, which may have no end, or larger than any of
            ours.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DamagedFileError("it is no regular file")
    if found.st_size > _MOST_BYTES:
        raise DamagedFileError(f"it has {found.st_size} bytes, more than {_MOST_BYTES}")
    return path.read_bytes()


def checksummed(content: Mapping[str, object]) -> dict[str, object]:
    """``content``, which is for JSON and has no ``checksum``, with one."""
    assert _JSON_KEY not in content
    written = encodable_json(content)
    return {**written, _JSON_KEY: json_digest(json.loads(json.dumps(written)))}


def write_checksummed(path: Path, content: Mapping[str, object]) -> None:
    """Write ``content`` as readable JSON with a checksum, atomically."""
    write_json(path, checksummed(content))


def read_checksummed(path: Path) -> dict[str, Any]:
    """The content of a file of :func:`checksummed` JSON.

    Raises:
        OSError: there is no such file, or it cannot be read.
        DamagedFileError: it is damaged.
    """
    raw = read_bounded(path)
    if not raw.strip():
        raise DamagedFileError("it is empty")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise DamagedFileError("it is cut short, or no JSON") from None
    if not isinstance(content, dict):
        raise DamagedFileError("it holds something else")
    if _JSON_KEY in content:
        is_sound = content.pop(_JSON_KEY) == json_digest(content)
    else:  # older than checksums, unless its last entry is one whose name is damaged
        *rest, last = content.items() or [("", None)]
        is_sound = last[1] != json_digest(dict(rest))
    if not is_sound:
        raise DamagedFileError("its checksum is that of other content")
    return content


def json_digest(content: object, digits: int = 64) -> str:
    """So many hexadecimal digits of a SHA-256 over JSON, in whatever order its keys are."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:digits]


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


def weights_checksum(raw: bytes) -> str:
    """A SHA-256 over a safetensors file: its tensors' names, types, shapes and bytes.

    Raises:
        DamagedFileError: it is no such file.
    """
    header, start = _header(raw)
    header.pop("__metadata__", None)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(memoryview(raw)[start:])
    return digest.hexdigest()


def check_weights(raw: bytes) -> None:
    """Raise DamagedFileError where a safetensors file is not as its own checksum tells."""
    metadata = _header(raw)[0].get("__metadata__")
    known = metadata.get(WEIGHTS_KEY) if isinstance(metadata, dict) else None
    if known is not None and known != weights_checksum(raw):
        raise DamagedFileError("its checksum is that of other weights")


def _header(raw: bytes) -> tuple[dict[str, object], int]:
    """The header of a safetensors file, and where the tensors' bytes begin."""
    if not raw:
        raise DamagedFileError("it is empty")
    start = 8 + int.from_bytes(raw[:8], "little")
    if start > len(raw):
        raise DamagedFileError("it is cut short, or no safetensors file")
    try:
        header = json.loads(raw[8:start])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise DamagedFileError("it is no safetensors file")
    return header, start


def check_no_zip_bomb(checkpoint: Path | bytes) -> None:
    """Make sure that a checkpoint of torch is as large as what it holds.

    It is a zip archive, which torch writes without compressing it but reads with: a few kilobytes
    could stand for all memory there is.

    Args:
        checkpoint: its file or its content; of one that is no zip archive, only what its pickle
            asks for is judged.

    Raises:
        ValueError: something in it is compressed, or it says to hold more than it is long, or asks
            for bytes that it does not have.
        OSError: the file cannot be read.
    """
    file = io.BytesIO(checkpoint) if isinstance(checkpoint, bytes) else checkpoint.open("rb")
    with file:
        length = file.seek(0, io.SEEK_END)
        is_filled = isinstance(checkpoint, bytes) and _FILLED in checkpoint
        if isinstance(checkpoint, Path) and length:
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as content:
                is_filled = content.find(_FILLED) >= 0
        if is_filled:
            raise ValueError("asks for a bytearray, which no weights have")
        if not zipfile.is_zipfile(file):
            return
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"a damaged archive: {error}") from None
    held = sum(entry.file_size for entry in entries)
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or held > length:
        raise ValueError(f"has {held} bytes packed into {length}; torch packs nothing")


def expanded(path: str | Path) -> Path:
    """A path with a leading ``~`` or ``~NAME`` filled in; as it is where there is no such home.

    Raises:
        InputError: it holds a zero byte, as no path does.
    """
    if "\0" in str(path):
        raise InputError(f"{path}: no path has a zero byte")
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib raises RuntimeError)


def is_there(path: Path) -> bool:
    """Whether there is anything at ``path``; what is too long for a path, or no text for one, names
    nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


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
    kept = Path(named or expanded("~/.cache")) / _OURS
    there = next((each for each in (kept, *kept.parents) if os.access(each, os.F_OK)), kept)
    can_be_made = there == kept or os.access(there, os.W_OK | os.X_OK)
    if named or (kept.is_absolute() and can_be_made):
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
