"""Room on a disk: whether there is enough, and having it set aside."""

import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from levit_search.errors import InputError

_BLOCK = 1 << 20


def check_room(folder: Path, needed_bytes: int) -> None:
    """Make sure that ``needed_bytes`` more fit onto the disk that ``folder`` is, or will be, on.

    Raises:
        InputError: they do not.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed_bytes > free:
        raise InputError(
            f"teacher: what is kept of it needs {megabytes(needed_bytes)} in {folder}, and "
            f"{megabytes(free)} are free there; set XDG_CACHE_HOME to a folder with more room, or "
            "teacher.cache to false"
        )


def megabytes(count: int) -> str:
    """A number of bytes in millions, for people."""
    return f"{count / 1e6:,.0f} MB" if count >= 10e6 else f"{count / 1e6:.2f} MB"


def allocated_bytes(path: Path) -> int:
    """What a file occupies; a sparse one may be longer than that."""
    try:
        found = path.stat()
    except OSError:
        return 0
    return min(found.st_size, 512 * found.st_blocks) if os.name == "posix" else found.st_size


def allocate(file: BinaryIO, size: int) -> None:
    """Let a file grow to ``size`` bytes with zeros that have room on the disk.

    A file with holes would do for writing, but reading one through a map of a full disk may end the
    process.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
    left = size - file.seek(0, os.SEEK_END)
    while left > 0:
        left -= file.write(bytes(min(left, _BLOCK)))
    file.flush()
