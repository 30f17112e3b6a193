"""A data set's three splits loaded: arrays in memory, or pictures on disk."""

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from levit_search.data.decoding import Decoding
from levit_search.data.sources import (
    ArraySource,
    DataConfig,
    DataInfo,
    EncodedSource,
    Faults,
    Source,
    SplitName,
    UnreadableError,
    center_cropped,
    decode,
    decoding_threads,
)
from levit_search.data.survey import describe, looked_at, open_set, unreadable_of
from levit_search.errors import InputError
from levit_search.image_size import Sides, sides

_TEST_SHARE = 0.2  # of a set that brings no test part
_SPLIT_SEED = 20210402  # any constant: the cut must be the same everywhere and for ever
_HASHED = 64  # pictures whose content is part of what identifies a split
_VALUES_AT_ONCE = 2**22  # of arrays that are scaled, in floating point


@dataclass(frozen=True)
class Arrays:
    """One split in memory: images uint8 [N, C, H, W] and labels int64 [N].

    ``scaled_as_floats`` says how others have to be scaled to look like these: with numbers rounded
    once at the end, or in whole numbers, as Pillow scales pictures.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    scaled_as_floats: bool = False
    originals: "StoredImages | None" = None  # the same images as they are stored; None of arrays

    def stored(self, index: int) -> bytes | Image.Image:
        """As :meth:`StoredImages.stored` gives it."""
        if self.originals is not None:
            return self.originals.stored(index)
        return ArraySource("", self.images, self.labels).open(index)

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of a hash over all of it."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()[:16]


class StoredImages:
    """One split on disk, decoded image by image; it can be pickled for a loader's workers.

    Args:
        source: where the images are.
        indices: int64 [N], which of them.
        decoding: how they are decoded.
        faults: those met so far, in all splits.
    """

    def __init__(
        self, source: Source, indices: NDArray[np.int64], decoding: Decoding, faults: Faults
    ) -> None:
        self.labels = source.labels[indices]
        self._source, self._indices, self._faults = source, indices, faults
        self.decoding = decoding

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """What a person finds an image by."""
        return self._source.name(int(self._indices[index]))

    def stored(self, index: int) -> bytes | Image.Image:
        """The file of an image, or the decoded picture where it is not kept as a file.

        Raises:
            OSError: it is missing.
            UnreadableError: it cannot be decoded.
        """
        place = int(self._indices[index])
        if isinstance(self._source, EncodedSource):
            return self._source.content(place)
        return decode(self._source, place, self.decoding)

    def open(self, index: int) -> Image.Image:
        """The decoded picture in its own size.

        In place of an unreadable one comes the next of the same class, always the same one.

        Raises:
            InputError: more than ``max_unreadable`` were met, or all of the class are unreadable.
        """
        picture, unreadable = self.open_or_faults(index)
        self.report(unreadable, picture is not None)
        assert picture is not None
        return picture

    def open_or_faults(self, index: int) -> tuple[Image.Image | None, dict[str, str]]:
        """The picture as :meth:`open` gives it, and why others could not be read, by their places.

        It is None where all of the class, or more than ``max_unreadable`` of it, are unreadable.
        This is for processes that read for another one, which counts by :meth:`report`.
        """
        unreadable: dict[str, str] = {}

        def with_others_of_its_class() -> Iterator[int]:
            yield index  # which nearly always is enough
            alike = np.flatnonzero(self.labels == self.labels[index])
            yield from np.roll(alike, -1 - int(np.searchsorted(alike, index)))[:-1].tolist()

        for other in with_others_of_its_class():
            place = int(self._indices[other])
            try:
                return decode(self._source, place, self.decoding), unreadable
            except UnreadableError as error:
                unreadable[self._source.where(place)] = str(error)
            if len(unreadable) > self._faults.limit:
                break
        return None, unreadable

    def report(self, unreadable: Mapping[str, str], was_replaced: bool) -> None:
        """Count unreadable pictures, each once, and warn of them.

        Args:
            unreadable: why, by their places.
            was_replaced: whether others of their class could be read.

        Raises:
            InputError: there are more than ``max_unreadable``, or no others.
        """
        for where, reason in unreadable.items():
            if self._faults.add(where, reason):
                warnings.warn(f"{where}: unreadable ({reason}); another is taken", stacklevel=2)
        if not was_replaced:
            raise InputError(f"data: all images of a class are unreadable: {self._faults}")

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of a hash over what is known without reading all of it.

        That is names, sizes in bytes, labels, the content of 64 pictures, and how they are decoded.
        """
        digest = hashlib.sha256(repr(tuple(self.decoding)).encode())
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


Split = Arrays | StoredImages

_warn = partial(warnings.warn, stacklevel=2)  # points to the caller


def load(config: DataConfig, say: Callable[[str], None] = _warn) -> dict[SplitName, Split]:
    """The splits of :func:`load_described` alone."""
    return load_described(config, say)[1]


def load_described(
    config: DataConfig, say: Callable[[str], None] = _warn
) -> tuple[DataInfo, dict[SplitName, Split]]:
    """What :func:`describe` says, and the three splits, at ``image_size`` where they are in memory.

    Args:
        config: an ``image_size`` left out is the data's own.
        say: told of unreadable images that were left out; by default it is a warning.

    Raises:
        InputError: the data is missing, damaged, too large for memory where it has to be there, or
            too small to be split by class.
    """
    config = looked_at(config)
    info = describe(config)
    data_set = open_set(config)
    sources = data_set.sources()
    faults, parts = data_set.faults, _parts(sources, config, info)
    if known := unreadable_of(config, data_set, sources):
        parts = _readable(parts, known, faults, info)
    how = config.model_copy(update={"in_channels": info.in_channels}).decoding
    are_held = _are_held(parts, info, config)
    splits: dict[SplitName, Split] = {}
    for name, part in parts.items():
        stored = StoredImages(*part, how, faults)
        splits[name] = held(*part, how, config.size, faults) if are_held else stored
    if len(faults):
        left_out = "1 image" if len(faults) == 1 else f"{len(faults)} images"
        say(f"{config.name}: left out {left_out} that cannot be read: {faults}")
    return info, splits


class Outline(NamedTuple):
    """How much there is of a data set."""

    info: DataInfo
    images: dict[SplitName, int]  # of each split, unreadable ones included
    are_held: bool  # whether they are held in memory


def outline(config: DataConfig) -> Outline:
    """How many images :func:`load` gives, without decoding them.

    Raises:
        InputError: as :func:`load`.
    """
    config = looked_at(config)
    info = describe(config)
    parts = _parts(open_set(config).sources(), config, info)
    images = {name: len(indices) for name, (_, indices) in parts.items()}
    return Outline(info, images, _are_held(parts, info, config))


Part = tuple[Source, NDArray[np.int64]]
"""A source, and which of its images."""


def _are_held(parts: Mapping[SplitName, Part], info: DataInfo, config: DataConfig) -> bool:
    if config.in_memory is not None:
        return config.in_memory
    pixels = sum(len(indices) for _, indices in parts.values()) * math.prod(sides(config.size))
    return pixels * info.in_channels <= config.memory_limit_mb * 10**6


def _parts(
    sources: Mapping[SplitName, Source], config: DataConfig, info: DataInfo
) -> dict[SplitName, Part]:
    """What is trained on, validated and tested; what a set does not bring is cut from ``train``."""
    source = sources["train"]
    labels = source.labels
    if "val" not in sources:
        lonely = np.flatnonzero(np.bincount(labels) == 1)
        if len(lonely):
            raise InputError(
                f"data: class {info.class_names[lonely[0]]!r} has one training image; val is cut "
                "from them by class, so that each class needs two or more"
            )
    whole: dict[SplitName, Part] = {
        name: (each, np.arange(len(each.labels))) for name, each in sources.items()
    }
    train = whole["train"][1]
    if "test" not in whole:
        train, taken = _stratified(labels, train, _TEST_SHARE)
        whole["test"] = source, taken
    if "val" not in whole:
        train, taken = _stratified(labels, train, config.val_share)
        whole["val"] = source, taken
    if config.train_images is not None and config.train_images < len(train):
        surplus = len(train) - config.train_images
        if surplus < len(np.unique(labels)):
            # Fewer to leave out than classes: each class gives up one image at most.
            firsts = np.unique(labels[train], return_index=True)[1][:surplus]
            train = np.delete(train, firsts)
        else:
            train = _stratified(labels, train, config.train_images)[1]
    return {"train": (source, train), "val": whole["val"], "test": whole["test"]}


def _stratified(
    labels: NDArray[np.int64], indices: NDArray[np.int64], part: float | int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rest, part) of ``indices``, each class in proportion; ``part`` is a share or a count."""
    from sklearn.model_selection import train_test_split

    try:
        rest, taken = train_test_split(
            indices, test_size=part, stratify=labels[indices], random_state=_SPLIT_SEED
        )
    except ValueError as error:
        raise InputError(f"data: too few images to split by class ({error})") from None
    return np.sort(rest), np.sort(taken)


def _readable(
    parts: Mapping[SplitName, Part], known: Mapping[str, str], faults: Faults, info: DataInfo
) -> dict[SplitName, Part]:
    """The parts without pictures that are ``known`` to be unreadable; others stay in place."""
    left: dict[SplitName, Part] = {}
    for name, (source, indices) in parts.items():
        bad = [index for index in indices.tolist() if source.name(index) in known]
        for index in bad:
            faults.add(source.where(index), known[source.name(index)])
        left[name] = source, indices[~np.isin(indices, bad)]
    before, after = (source.labels[which] for source, which in (parts["train"], left["train"]))
    lost = np.setdiff1d(before, after)
    if len(lost):
        raise InputError(
            f"data: class {info.class_names[lost[0]]!r}: none of its pictures that are trained on "
            "can be read, and the others are for val; mend or remove those that cannot be read"
        )
    return left


def held(
    source: Source,
    indices: NDArray[np.int64],
    decoding: Decoding,
    size: int | Sides,
    faults: Faults,
) -> Arrays:
    """The images of a source at ``size`` (a side, or height and width), without unreadable ones.

    Raises:
        InputError: more images are unreadable than ``faults`` allows.
    """
    if isinstance(source, ArraySource):
        is_scaled = source.images.shape[-2:] != sides(size)
        return Arrays(resized(source.images[indices], size), source.labels[indices], is_scaled)
    channels = 1 if decoding.mode == "L" else 3
    images = np.empty((len(indices), channels, *sides(size)), np.uint8)

    def read(position: int) -> str | None:
        try:
            picture = decode(source, int(indices[position]), decoding)
        except UnreadableError as error:
            return str(error)
        images[position] = center_cropped(picture, size)
        return None

    readable = np.ones(len(indices), bool)
    with decoding_threads() as threads:
        for position, reason in enumerate(threads.map(read, range(len(indices)))):
            if reason is not None:
                readable[position] = False
                faults.add(source.where(int(indices[position])), reason)
    originals = StoredImages(source, indices[readable], decoding, faults)
    kept = images if readable.all() else images[readable]
    return Arrays(kept, originals.labels, originals=originals)


def resized(images: NDArray[np.uint8], size: int | Sides) -> NDArray[np.uint8]:
    """The middle of uint8 images [N, C, H, W] at ``size`` (a side, or height and width), uint8."""
    (rows, columns), (height, width) = images.shape[-2:], sides(size)
    if (rows, columns) == (height, width):
        return images
    if rows * width != columns * height:
        source = ArraySource("", images, np.empty(0, np.int64))
        return np.stack(
            [center_cropped(source.open(i), size, as_floats=True) for i in range(len(images))]
        )
    import torch
    import torch.nn.functional as F

    result = np.empty((*images.shape[:2], height, width), np.uint8)
    at_once = max(1, _VALUES_AT_ONCE // max(result[0].size, images[0].size))
    for first in range(0, len(images), at_once):
        part = torch.from_numpy(images[first : first + at_once]).float()
        scaled = F.interpolate(part, (height, width), mode="bicubic", antialias=True)
        result[first : first + at_once] = scaled.round().clamp(0, 255).to(torch.uint8).numpy()
    return result
