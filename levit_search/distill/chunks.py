"""How the answers for one batch lie on disk, and what they depend on.

A chunk is a stamp uint64, classes uint16 [B, k] and their shares float16 [B, k], little-endian,
with zeros up to a multiple of eight bytes; B are the rows of a batch, k the classes kept for a
view, the likeliest first. A stamp of 0 stands for no answer. Any other is 2**32 plus the CRC-32 of
what follows and of where that belongs, so that neither a damaged answer nor one of another place is
taken.
"""

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

_FORMAT = 1
_STAMP_BYTES = 8
MOST_CLASSES = 2**16


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
