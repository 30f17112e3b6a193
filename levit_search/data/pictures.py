"""The splits as they are handed out: arrays in memory, or pictures on disk."""

import hashlib
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from levit_search.data.sources import Mode, Source, UnreadableError, decode
from levit_search.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

_LISTED = 20  # unreadable images that a message names
_HASHED = 64  # pictures whose content is part of what identifies a split


@dataclass(frozen=True)
class Arrays:
    """One split in memory: images uint8 [N, C, S, S] and labels int64 [N].

    ``scaled_as_floats`` says how others have to be scaled to look like these: with numbers rounded
    once at the end, or in whole numbers, as Pillow scales pictures.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    scaled_as_floats: bool = False


class Faults:
    """The unreadable images met so far, each counted once, and how many there may be."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, where: str, reason: str) -> bool:
        """Count an image; False if it was counted before.

        Raises:
            InputError: there are more than the limit; the message lists them.
        """
        if where in self._reasons:
            return False
        self._reasons[where] = reason
        if len(self._reasons) > self.limit:
            raise InputError(
                f"data.max_unreadable: more than {self.limit} images are unreadable: {self}"
            )
        return True

    def __str__(self) -> str:
        listed = [f"{where} ({reason})" for where, reason in self._reasons.items()]
        more = len(listed) - _LISTED
        return ", ".join(listed[:_LISTED]) + (f" and {more} more" if more > 0 else "")


class Pictures:
    """One split on disk, decoded image by image; it can be pickled for a loader's workers.

    Args:
        source: where the images are.
        indices: int64 [N], which of them.
        mode: ``RGB``, or ``L`` for one channel.
        max_unreadable: how many unreadable images a process puts up with.

    Attributes:
        labels: int64 [N].
    """

    def __init__(
        self, source: Source, indices: NDArray[np.int64], mode: Mode, max_unreadable: int
    ) -> None:
        self.labels = source.labels[indices]
        self._source, self._indices, self._mode = source, indices, mode
        self._faults = Faults(max_unreadable)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """What a person finds an image by."""
        return self._source.name(int(self._indices[index]))

    def open(self, index: int) -> "Image.Image":
        """The decoded picture in its own size.

        In place of an unreadable one comes the next of the same class, always the same one.

        Raises:
            InputError: more than ``max_unreadable`` were met, or all of the class are unreadable.
        """
        try:
            return self._decoded(index)
        except UnreadableError:
            pass
        alike = np.flatnonzero(self.labels == self.labels[index])
        for other in np.roll(alike, -1 - int(np.searchsorted(alike, index)))[:-1]:
            try:
                return self._decoded(int(other))
            except UnreadableError:
                continue
        raise InputError(f"data: all images of a class are unreadable: {self._faults}")

    def _decoded(self, index: int) -> "Image.Image":
        place = int(self._indices[index])
        try:
            return decode(self._source, place, self._mode)
        except UnreadableError as error:
            if self._faults.add(self._source.where(place), str(error)):
                message = f"{self._source.where(place)}: unreadable ({error}); another is taken"
                warnings.warn(message, stacklevel=3)
            raise

    def fingerprint(self) -> str:
        """A hash of names, sizes in bytes, labels and the content of a few."""
        digest = hashlib.sha256(self._mode.encode())
        digest.update(np.ascontiguousarray(self._source.sizes(self._indices)).tobytes())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        for index in self._indices:
            digest.update(os.fsencode(self._source.name(int(index))) + b"\0")
        # Without them, two sets of uncompressed files that are named alike would be one.
        few = np.linspace(0, len(self) - 1, min(_HASHED, len(self))).round().astype(int)
        for index in self._indices[few]:
            try:
                digest.update(hashlib.sha256(self._source.content(int(index))).digest())
            except OSError:
                digest.update(b"missing")
        return digest.hexdigest()[:16]


Split = Arrays | Pictures


def fingerprint(split: Split) -> str:
    """Sixteen hexadecimal digits of a hash over a split's content.

    Arrays are hashed whole; pictures by their names, sizes in bytes and labels, and 64 of them by
    their content: reading all would take as long as an epoch.
    """
    if isinstance(split, Pictures):
        return split.fingerprint()
    digest = hashlib.sha256(repr(split.images.shape).encode())
    digest.update(np.ascontiguousarray(split.images).data)
    digest.update(np.ascontiguousarray(split.labels).data)
    return digest.hexdigest()[:16]
