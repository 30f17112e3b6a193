"""A teacher's answers on disk: written once for each batch of views, read by every candidate.

A store is a folder that is named by a hash of its header::

    header.json      what the answers depend on, and a checksum
    epoch-00000.bin  a chunk for each batch

Everybody reads through a memory map and without a lock. One process at a time, of whichever host,
writes an epoch; it looks again once it has the lock, as another may have been quicker. The stamp of
a chunk is written last: whoever dies before leaves no answer, and no damage either.

A chunk is a stamp uint64, classes uint16 [B, k] and their shares float16 [B, k], little-endian,
with zeros up to a multiple of eight bytes; B are the rows of a batch, k the classes kept for a
view, the likeliest first. A stamp of 0 stands for no answer. Any other is 2**32 plus the CRC-32 of
what follows and of where that belongs, so that neither a damaged answer nor one of another place is
taken.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from levit_search.errors import InputError
from levit_search.files import write_json

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
    augmentation: dict[str, Any]
    versions: dict[str, str]
    seed: int
    distillation: Literal["hard", "soft"]
    temperature: float
    k: int
    classes: int
    rows: int
    steps: int
    format: int = _FORMAT

    def as_json(self) -> dict[str, Any]:
        """As it is read back from a file, with lists for tuples."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of a hash over all of it."""
        return digest_of(self.as_json())

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


def digest_of(content: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits of a hash over JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


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
        self._opened: tuple[int, BinaryIO, NDArray[np.uint8]] | None = None
        self._damaged: set[int] = set()

    def planned_bytes(self, epochs: int) -> int:
        """What the answers for ``epochs`` epochs take on disk."""
        return epochs * self.header.epoch_bytes

    def missing_bytes(self, epochs: int) -> int:
        """What of that the disk does not hold yet."""
        return sum(
            max(0, self.header.epoch_bytes - allocated_bytes(self._file(epoch)))
            for epoch in range(epochs)
        )

    def prepare(self, epochs: int) -> None:
        """Make the folder, or look at the header of one that exists, and see to the room.

        A store with a damaged header, or with that of other answers, is emptied after a warning. A
        folder that cannot be written serves if it holds all ``epochs``.

        Raises:
            InputError: there is no room, or the folder cannot be written and lacks answers.
        """
        check_room(self.folder, self.missing_bytes(epochs))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            self._settle_header()
        except OSError as error:
            self._serve_read_only(epochs, error)

    def _settle_header(self) -> None:
        if self._complaint() is None:
            return
        with FileLock(self.folder / "header.lock"):
            complaint = self._complaint()
            if complaint is None:
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
            write_json(self._header_file, {**content, "checksum": digest_of(content)})

    def _serve_read_only(self, epochs: int, error: OSError) -> None:
        self.is_writable = False
        reason = error.strerror or str(error)
        complaint = self._complaint()
        if complaint is None:
            lacking = sum(not self.filled(epoch).all() for epoch in range(epochs))
            complaint = f"{lacking} of {epochs} epochs are not complete" if lacking else None
        if complaint is not None:
            raise InputError(
                f"{self.folder}: cannot be written ({reason}), and {complaint}; set XDG_CACHE_HOME "
                "to a folder that can, or teacher.cache to false"
            )

    @property
    def _header_file(self) -> Path:
        return self.folder / "header.json"

    def _complaint(self) -> str | None:
        """What is wrong with the header on disk; None if it is ours."""
        wanted = self.header.as_json()
        try:
            found = json.loads(self._header_file.read_bytes())
            checksum = found.pop("checksum")
        except FileNotFoundError:
            return "header.json is missing"
        except OSError as error:
            return f"header.json cannot be read ({error.strerror or error})"
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            return "header.json is damaged"
        if checksum != digest_of(found):
            return "header.json is damaged"
        others = [name for name in wanted if found.get(name) != wanted[name]]
        if others:
            return f"header.json is that of answers with another {', '.join(others)}"
        return None

    def find(self, epoch: int, step: int) -> Answer | None:
        """The answer for one batch; None where there is none, or a damaged one."""
        if self._opened is None or self._opened[0] != epoch:
            self._close()
            self._open(epoch)
        if self._opened is None:
            return None
        _, file, chunks = self._opened
        if os.fstat(file.fileno()).st_size < self.header.epoch_bytes:
            # Cut short since it was mapped; reading beyond its end would kill the process.
            self._close()
            return None
        answer, _ = self.header.unpacked(chunks[step].tobytes(), epoch, step)
        return answer

    def fill(self, epoch: int, step: int, ask: Callable[[], Answer]) -> Answer:
        """The answer for one batch, asked for and written if need be.

        While another process writes this epoch, it is waited for. When the disk refuses, there is a
        warning and nothing is written any more: ``is_writable`` becomes false.

        Args:
            epoch: from 0; there is no last one.
            step: the batch within the epoch.
            ask: the teacher.
        """
        if not self.is_writable:
            return ask()
        lock = FileLock(self._file(epoch).with_suffix(".lock"))
        try:
            while not _acquired(lock):
                time.sleep(_POLL_S)
                found = self.find(epoch, step)
                if found is not None:
                    return found
        except OSError as error:
            self._give_up(error)
            return ask()
        try:
            found = self._look_again(epoch, step)
            if found is not None:
                return found
            answer = ask()
            try:
                self._write(epoch, step, answer)
            except OSError as error:
                self._give_up(error)
            return answer
        finally:
            lock.release()

    def filled(self, epoch: int) -> NDArray[np.bool_]:
        """Which batches of an epoch have a sound answer, bool [steps]; reads all of them."""
        found = np.zeros(self.header.steps, dtype=np.bool_)
        try:
            with self._file(epoch).open("rb") as file:
                for step in range(self.header.steps):
                    answer, _ = self.header.unpacked(
                        file.read(self.header.chunk_bytes), epoch, step
                    )
                    found[step] = answer is not None
        except OSError:
            return found  # there is none, or no more can be read
        return found

    def state(self, epochs: int) -> dict[str, Any]:
        """What of the first ``epochs`` epochs is there, as JSON; reads all of it.

        Returns:
            ``{folder, distillation, k, rows, steps, epochs, batches_kept: [...], planned_bytes,
            missing_bytes}``.
        """
        header = self.header
        is_ours = self._complaint() is None
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

    def _open(self, epoch: int) -> None:
        try:
            file = self._file(epoch).open("rb")
        except OSError:
            return  # none yet; where it is there and unreadable, writing it will tell
        if os.fstat(file.fileno()).st_size < self.header.epoch_bytes:
            file.close()
            return
        shape = (self.header.steps, self.header.chunk_bytes)
        self._opened = epoch, file, np.memmap(file, dtype=np.uint8, mode="r", shape=shape)

    def _close(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None

    def _look_again(self, epoch: int, step: int) -> Answer | None:
        """Read afresh, for a map of a file on another host may be behind.

        Damage that is there still has its warning, one for each file.
        """
        self._close()
        try:
            with self._file(epoch).open("rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    return None  # whoever made it died before it had its size
                file.seek(step * self.header.chunk_bytes)
                answer, is_damaged = self.header.unpacked(
                    file.read(self.header.chunk_bytes), epoch, step
                )
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
        stamp, payload = self.header.packed(answer, epoch, step)
        self._reserve(epoch)
        with self._file(epoch).open("r+b") as file:
            file.seek(step * self.header.chunk_bytes)
            file.write(bytes(len(stamp)) + payload)
            file.flush()
            file.seek(step * self.header.chunk_bytes)
            file.write(stamp)

    def _reserve(self, epoch: int) -> None:
        """Give an epoch's file its full size, and its room on the disk."""
        path, size = self._file(epoch), self.header.epoch_bytes
        had = path.stat().st_size if path.exists() else None
        if had is not None and had >= size:
            return
        try:
            path.touch()
            with path.open("r+b") as file:  # an emulated allocation cannot append
                allocate(file, size)
        except OSError:
            if had is None:
                path.unlink(missing_ok=True)
            raise

    def _give_up(self, error: OSError) -> None:
        self.is_writable = False
        warnings.warn(
            f"{self.folder}: cannot be written ({error.strerror or error}); from now on the "
            "teacher is asked about every batch that has no answer there",
            stacklevel=2,
        )


def _acquired(lock: Any) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except NotImplementedError:
        raise OSError(errno.ENOLCK, "its disk has no file locks") from None
    return True


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
