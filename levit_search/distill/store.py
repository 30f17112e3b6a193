"""A teacher's answers on disk: written once for each batch of views, read by every candidate.

A store is a folder that is named by a hash of its header::

    header.json      what the answers depend on, and a checksum
    epoch-00000.bin  a chunk for each batch

Everybody reads without a lock. One process at a time, of whichever host,
writes an epoch; it looks again once it has the lock, as another may have been quicker. The stamp of
a chunk is written last: whoever dies before leaves no answer, and no damage either.

A chunk is a stamp uint64, classes uint16 [B, k] and their shares float16 [B, k], little-endian,
with zeros up to a multiple of eight bytes; B are the rows of a batch, k the classes kept for a
view, the likeliest first. A stamp of 0 stands for no answer. Any other is 2**32 plus the CRC-32 of
what follows and of where that belongs, so that neither a damaged answer nor one of another place is
taken.
"""

import contextlib
import errno
import json
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, BinaryIO, Literal, NamedTuple, TypedDict

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from levit_search.errors import InputError
from levit_search.files import json_digest, make_writable, write_json

MOST_CLASSES = 2**16

_FORMAT = 1
_STAMP_BYTES = 8
_POLL_S = 0.01  # between two looks at an epoch that another process writes
_BLOCK = 1 << 20


class Answer(NamedTuple):
    """What a teacher says of the views of one batch: its likeliest classes, the first one first."""

    classes: NDArray[np.uint16]
    """[B, k]"""
    shares: NDArray[np.float16]
    """[B, k], probabilities"""


@dataclass(frozen=True)
class Header:
    """Everything that the answers in a store depend on, and their sizes."""

    teacher: str
    data: str
    augmentation: Mapping[str, object]
    versions: dict[str, str]
    seed: int
    distillation: Literal["hard", "soft"]
    temperature: float
    k: int
    classes: int
    rows: int
    steps: int
    format: int = _FORMAT

    def as_json(self) -> dict[str, object]:
        """As it is read back from a file, with lists for tuples."""
        content: dict[str, object] = json.loads(json.dumps(asdict(self)))
        return content

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of a hash over all of it."""
        return json_digest(self.as_json(), 16)

    @property
    def chunk_bytes(self) -> int:
        """Of one batch, stamp included; a multiple of eight."""
        return _STAMP_BYTES + -(-4 * self.rows * self.k // 8) * 8

    @property
    def epoch_bytes(self) -> int:
        """Of one epoch's file."""
        return self.steps * self.chunk_bytes

    def packed(self, answer: Answer, epoch: int, step: int) -> tuple[bytes, bytes]:
        """(stamp, payload) of the chunk for the batch ``step`` of ``epoch``."""
        assert answer.classes.shape == answer.shares.shape == (self.rows, self.k)
        payload = answer.classes.astype("<u2").tobytes() + answer.shares.astype("<f2").tobytes()
        payload = payload.ljust(self.chunk_bytes - _STAMP_BYTES, b"\0")
        return self._stamp(payload, epoch, step).to_bytes(_STAMP_BYTES, "little"), payload

    def unpacked(self, chunk: bytes, epoch: int, step: int) -> tuple[Answer | None, bool]:
        """(the answer in the chunk of a batch, whether there is one that is damaged)."""
        if len(chunk) < self.chunk_bytes:
            return None, True
        stamp, payload = int.from_bytes(chunk[:_STAMP_BYTES], "little"), chunk[_STAMP_BYTES:]
        if stamp == 0:
            return None, False
        if stamp != self._stamp(payload, epoch, step):
            return None, True
        shape, count = (self.rows, self.k), self.rows * self.k
        classes = np.frombuffer(payload, "<u2", count).reshape(shape)
        shares = np.frombuffer(payload, "<f2", count, offset=2 * count).reshape(shape)
        return Answer(classes, shares), False

    def _stamp(self, payload: bytes, epoch: int, step: int) -> int:
        place = zlib.crc32(f"{self.digest} {epoch} {step}".encode())
        return 2**32 + zlib.crc32(payload, place)


class StoreState(TypedDict):
    """What of the first epochs is in a store."""

    folder: str
    distillation: str
    k: int
    rows: int
    steps: int
    epochs: int
    batches_kept: list[int]
    planned_bytes: int
    missing_bytes: int


class Store:
    """The answers of one teacher for the views of one seed.

    Args:
        base: the folder of all stores; made, like the store itself, by :meth:`prepare`.
        header: what the answers depend on.
    """

    def __init__(self, base: Path, header: Header) -> None:
        self.folder = base / f"{header.teacher}-{header.digest}"
        self.header = header
        self.is_writable = True
        self._opened: tuple[int, IO[bytes]] | None = None
        self._damaged: set[int] = set()

    def planned_bytes(self, epochs: int) -> int:
        """What the answers for ``epochs`` epochs take on disk."""
        return epochs * self.header.epoch_bytes

    def missing_bytes(self, epochs: int) -> int:
        """What of that the disk does not hold yet; sparse files are longer than what they hold."""
        missing = self.planned_bytes(epochs)
        for epoch in range(epochs):
            with contextlib.suppress(OSError):
                found = self._file(epoch).stat()
                held = 512 * found.st_blocks if os.name == "posix" else found.st_size
                missing -= min(held, found.st_size, self.header.epoch_bytes)
        return missing

    def prepare(self, epochs: int) -> None:
        """Make the folder, or look at the header of one that exists, and see to the room.

        A store with a damaged header, or with that of other answers, is emptied after a warning. A
        folder that cannot be written serves if it holds all ``epochs``.

        Raises:
            InputError: there is no room, or the folder cannot be written and lacks answers.
        """
        check_room(self.folder, self.missing_bytes(epochs))
        try:
            make_writable(self.folder)
            if self._complaint() is not None:
                with FileLock(self.folder / "header.lock"):
                    self._begin_anew()
        except OSError as error:
            self.is_writable = False
            complaint = self._complaint()
            lacking = sum(not self.filled(epoch).all() for epoch in range(epochs))
            if complaint is None and lacking:
                complaint = f"{lacking} of {epochs} epochs are not complete"
            if complaint is not None:
                raise InputError(
                    f"{self.folder}: cannot be written ({error.strerror or error}), and "
                    f"{complaint}; set XDG_CACHE_HOME to a folder that can, or teacher.cache to "
                    "false"
                ) from None

    def _begin_anew(self) -> None:
        """Throw away the answers of another header, and write ours."""
        complaint = self._complaint()
        if complaint is None:  # another process was quicker
            return
        kept = sorted(self.folder.glob("epoch-*.bin"))
        if kept:
            warnings.warn(
                f"{self.folder}: {complaint}; these answers of the teacher are thrown away and "
                "computed again",
                stacklevel=2,
            )
        for path in kept:
            path.unlink(missing_ok=True)
        content = self.header.as_json()
        write_json(self.folder / "header.json", {**content, "checksum": json_digest(content, 16)})

    def _complaint(self) -> str | None:
        """What is wrong with the header on disk; None if it is ours."""
        wanted = self.header.as_json()
        try:
            found = json.loads((self.folder / "header.json").read_bytes())
            checksum = found.pop("checksum")
        except FileNotFoundError:
            return "header.json is missing"
        except OSError as error:
            return f"header.json cannot be read ({error.strerror or error})"
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return "header.json is damaged"
        if checksum != json_digest(found, 16):
            return "header.json is damaged"
        others = [name for name in wanted if found.get(name) != wanted[name]]
        if others:
            return f"header.json is that of answers with another {', '.join(others)}"
        return None

    def find(self, epoch: int, step: int) -> Answer | None:
        """The answer for one batch; None where there is none, or a damaged one."""
        with contextlib.suppress(OSError):  # where it is there and unreadable, writing it will tell
            if self._opened is None or self._opened[0] != epoch:
                self._close()
                self._opened = epoch, self._file(epoch).open("rb", buffering=0)
            return self._read(self._opened[1], epoch, step)[0]
        return None

    def _read(self, file: IO[bytes], epoch: int, step: int) -> tuple[Answer | None, bool]:
        """As :meth:`Header.unpacked`."""
        file.seek(step * self.header.chunk_bytes)
        return self.header.unpacked(file.read(self.header.chunk_bytes), epoch, step)

    def _close(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def fill(self, epoch: int, step: int, ask: Callable[[], Answer]) -> Answer:
        """The answer for one batch, asked for and written if need be.

        While another process writes this epoch, it is waited for. When the disk refuses, there is a
        warning and nothing is written any more: ``is_writable`` becomes false.

        Args:
            epoch: from 0; there is no last one.
        """
        if not self.is_writable:
            return ask()
        lock = FileLock(self._file(epoch).with_suffix(".lock"))
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                time.sleep(_POLL_S)
                found = self.find(epoch, step)
                if found is not None:
                    return found
            except NotImplementedError:  # as filelock says it
                self._give_up("its disk has no file locks")
                return ask()
            except OSError as error:
                self._give_up(error.strerror or str(error))
                return ask()
        try:
            found = self._look_again(epoch, step)
            if found is not None:
                return found
            answer = ask()
            try:
                self._write(epoch, step, answer)
            except OSError as error:
                self._give_up(error.strerror or str(error))
            return answer
        finally:
            lock.release()

    def filled(self, epoch: int) -> NDArray[np.bool_]:
        """Which batches of an epoch have a sound answer, bool [steps]; reads all of them."""
        found = np.zeros(self.header.steps, dtype=np.bool_)
        # Where there is none, or no more can be read, the rest is missing.
        with contextlib.suppress(OSError), self._file(epoch).open("rb") as file:
            for step in range(self.header.steps):
                found[step] = self._read(file, epoch, step)[0] is not None
        return found

    def state(self, epochs: int) -> StoreState:
        """What of the first ``epochs`` epochs is there; reads all of it."""
        header, is_ours = self.header, self._complaint() is None
        return {
            "folder": str(self.folder),
            "distillation": header.distillation,
            "k": header.k,
            "rows": header.rows,
            "steps": header.steps,
            "epochs": epochs,
            "batches_kept": [int(self.filled(e).sum()) if is_ours else 0 for e in range(epochs)],
            "planned_bytes": self.planned_bytes(epochs),
            "missing_bytes": self.missing_bytes(epochs),
        }

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:05d}.bin"

    def _look_again(self, epoch: int, step: int) -> Answer | None:
        """Read afresh, for a file on another host may have been opened too early.

        Damage that is there still has its warning, one for each file.
        """
        self._close()
        try:
            with self._file(epoch).open("rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    return None  # whoever made it died before it had its size
                answer, is_damaged = self._read(file, epoch, step)
        except FileNotFoundError:
            return None
        except OSError:
            answer, is_damaged = None, True
        if is_damaged and epoch not in self._damaged:
            self._damaged.add(epoch)
            warnings.warn(
                f"{self._file(epoch)}: damaged; the teacher is asked again where it is",
                stacklevel=2,
            )
        return answer

    def _write(self, epoch: int, step: int, answer: Answer) -> None:
        """Write an answer to its epoch's file, which has its full size and room from the start."""
        stamp, payload = self.header.packed(answer, epoch, step)
        path, size = self._file(epoch), self.header.epoch_bytes
        is_new = not path.exists()
        if is_new or path.stat().st_size < size:
            try:
                path.touch()
                with path.open("r+b") as file:  # an emulated allocation cannot append
                    allocate(file, size)
            except OSError:
                if is_new:
                    path.unlink(missing_ok=True)
                raise
        with path.open("r+b") as file:
            file.seek(step * self.header.chunk_bytes)
            file.write(bytes(len(stamp)) + payload)
            file.flush()
            file.seek(step * self.header.chunk_bytes)
            file.write(stamp)

    def _give_up(self, reason: str) -> None:
        self.is_writable = False
        warnings.warn(
            f"{self.folder}: cannot be written ({reason}); from now on the teacher is asked about "
            "every batch that has no answer there",
            stacklevel=2,
        )


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


def allocate(file: BinaryIO, size: int) -> None:
    """Let a file grow to ``size`` bytes with zeros that have room on the disk.

    A file with holes would do for writing, but a disk that is full would be found out too late.

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
