"""A teacher's answers on disk: written once for each batch of views, read by every candidate.

A store is a folder that is named by a hash of its header::

    header.json      what the answers depend on, and a checksum
    epoch-00000.bin  a chunk for each batch, see :mod:`levit_search.distill.chunks`

Everybody reads through a memory map and without a lock. One process at a time, of whichever host,
writes an epoch; it looks again once it has the lock, as another may have been quicker. The stamp of
a chunk is written last: whoever dies before leaves no answer, and no damage either.
"""

import errno
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from levit_search.distill.chunks import Answer, Header, digest_of
from levit_search.distill.disk import allocate, allocated_bytes, check_room
from levit_search.errors import InputError
from levit_search.files import write_json

_POLL_S = 0.01  # between two looks at an epoch that another process writes


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
        with _file_lock(self.folder / "header.lock"):
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
        lock = _file_lock(self._file(epoch).with_suffix(".lock"))
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


def _file_lock(path: Path) -> Any:
    from filelock import FileLock

    return FileLock(path)


def _acquired(lock: Any) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except NotImplementedError:
        raise OSError(errno.ENOLCK, "its disk has no file locks") from None
    return True
