"""Streams of images, read once into memory: ``hfids/``, ``wds/`` and ``tfds/`` of timm."""

import logging
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from levit_search.data.decoding import MOST_BYTES, decoded
from levit_search.data.sources import (
    ArraySource,
    DataConfig,
    Faults,
    Source,
    SplitName,
    UnreadableError,
    first_line,
    keep_from_ghostscript,
    squared,
    unreadable,
)
from levit_search.data.timm_sets import (
    chosen_splits,
    class_labels,
    created,
    explained,
    named_classes,
    numbered_classes,
    require,
    splits_and_columns,
)
from levit_search.errors import InputError

_MANY = 10**9
_LONGEST_LABEL = 20  # digits

_MODULES = {"hfids": ("datasets",), "wds": ("webdataset",), "tfds": ("tensorflow_datasets",)}


class Stream:
    """A data set that can only be read from its beginning to its end; it is held in memory.

    Attributes:
        faults: the images that could not be read.

    Raises:
        InputError: the set cannot be read, its classes are not known, it is too large for memory,
            or too much of it is unreadable.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._splits, self._options = _plan(config)
        self.faults = Faults(config.max_unreadable)

    def describe(self) -> tuple[str, ...]:
        """Classes as the reader knows them.

        Those of tar shards are ``class_names`` in their ``_info.json``, or as many as their labels
        say, which are read without the images.
        """
        return _classes(self._opened(self._splits["train"]).reader, self._config)

    def pictures(self) -> Iterator[tuple[SplitName, Any, Image.Image]]:
        """Each picture that can be opened, as it is stored, with its split and label."""
        for name, split in self._splits.items():
            with explained(self._config), _counted(self._title(split), Faults(_MANY)):
                for picture, label in self._opened(split):
                    yield name, label, picture

    def sources(self) -> dict[SplitName, Source]:
        """The set's own splits, each read to its end, as squares of ``image_size`` pixels."""
        config = self._config
        if config.in_memory is False:
            raise InputError(
                f"data.in_memory: false, but {config.name} is a stream, which is read into memory; "
                "use a set on disk, such as folder or hfds/"
            )
        channels = 1 if config.in_channels == 1 else 3
        room = _Room(config, channels * config.size**2)
        classes = self.describe()
        return {name: self._read(split, classes, room) for name, split in self._splits.items()}

    def _title(self, split: str) -> str:
        return f"{self._config.name} {split}"

    def _opened(self, split: str) -> Any:
        return _open(self._config, split, self._options)

    def _read(self, split: str, classes: tuple[str, ...], room: "_Room") -> ArraySource:
        config, faults, title = self._config, self.faults, self._title(split)
        stream = self._opened(split)
        told = getattr(stream.reader, "num_samples", None) or 0
        room.check(told)
        before = len(faults)
        images: list[NDArray[np.uint8]] = []
        labels: list[Any] = []
        with explained(config), _counted(title, faults):
            for number, (picture, label) in enumerate(stream):
                room.take(1)
                try:
                    with unreadable():
                        images.append(squared(decoded(picture, config.decoding), config.size))
                except UnreadableError as error:
                    faults.add(f"{title}[{number}]", str(error))
                    continue
                labels.append(label)
        for missing in range(told - len(images) - (len(faults) - before)):
            faults.add(f"{title}, missing {missing + 1}", "fewer images than the set says")
        if not images:
            raise InputError(f"data: {title} is empty")
        return ArraySource(title, np.stack(images), class_labels(labels, classes, title))


class _Room:
    """What memory is left for, in images."""

    def __init__(self, config: DataConfig, image_bytes: int) -> None:
        self._config, self._image_bytes, self._taken = config, image_bytes, 0

    def take(self, images: int) -> None:
        """Count images that are held from now on."""
        self.check(images)
        self._taken += images

    def check(self, images: int) -> None:
        """Raise the error that there is no room for so many more."""
        limit = self._config.memory_limit_mb
        needed = (self._taken + images) * self._image_bytes / 1e6
        if not self._config.in_memory and needed > limit:
            raise InputError(
                f"data.memory_limit_mb: {limit}, but {self._config.name} is a stream, which is "
                f"read into memory, and takes {needed:.0f} MB or more; raise the limit, lower "
                "data.image_size, or use a set on disk, such as folder or hfds/"
            )


def _plan(config: DataConfig) -> tuple[dict[SplitName, str], dict[str, Any]]:
    """The splits to read, and what else the reader must be told."""
    for module in _MODULES[config.reader]:
        require(module, config)
    if config.reader == "hfids":
        splits, (image, label) = splits_and_columns(config)
        # Only training asks how many there are, and sets in files of their own cannot tell.
        return splits, {"input_key": image, "target_key": label, "num_samples": 1}
    if config.reader == "wds":
        if config.root is None:
            raise InputError(f"data.root: is required for data.name {config.name}")
        found = _shard_splits(config)
    else:
        reader = created(config, config.train_split or "train", download=True).reader
        found = tuple(reader.builder.info.splits)
    return chosen_splits(found, config), {}


def _open(config: DataConfig, split: str, options: dict[str, Any]) -> Any:
    mode = ""  # as they are stored
    if config.reader == "tfds":
        with explained(config):
            channels = created(config, split).reader.builder.info.features["image"].shape[-1]
        mode = "L" if channels == 1 else "RGB"
    stream = created(config, split, input_img_mode=mode, **options)
    keep_from_ghostscript()  # timm opens the pictures itself
    if config.reader == "wds":
        for name in stream.reader.split_info.filenames:
            _check_shard(Path(stream.reader.root), name)
    return stream


def _check_shard(root: Path, name: str) -> None:
    """Make sure that a shard lies in the set's folder and is no larger than it looks.

    Raises:
        InputError: it is elsewhere, packed once more, or has something too large in it.
    """
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{root}: {name!r} is not in this folder; shards of a set have to be")
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if member.size > MOST_BYTES:
                    raise InputError(
                        f"{path}: {member.name!r} has {member.size} bytes, more than {MOST_BYTES}"
                    )
    except (OSError, ValueError, tarfile.TarError) as error:
        raise InputError(
            f"{path}: cannot be read ({first_line(error)}); expected a plain tar file, not a "
            "compressed one"
        ) from None


def _shard_splits(config: DataConfig) -> tuple[str, ...]:
    if config.train_split is not None and ".tar" in config.train_split:
        return ()
    reader = created(config, config.train_split or "train").reader
    return tuple(reader.info.get("splits", ()))


def _classes(reader: Any, config: DataConfig) -> tuple[str, ...]:
    if reader.class_to_idx:
        return named_classes(reader.class_to_idx)
    if config.reader == "wds":
        return tuple(reader.info.get("class_names", ())) or _labelled(reader)
    raise InputError(
        f"data: {config.name} does not tell its classes before it is read; use "
        f"hfds/{config.name.partition('/')[2]}"
    )


def _labelled(reader: Any) -> tuple[str, ...]:
    """``0`` to the largest label in the shards of a reader, whose images are passed over."""
    largest = 0
    for name in reader.split_info.filenames:
        path = Path(reader.root) / name
        try:
            with tarfile.open(path, "r:") as shard:
                for member in shard:
                    content = shard.extractfile(member) if member.name.endswith(".cls") else None
                    if content is not None:
                        largest = max(largest, int(content.read(_LONGEST_LABEL)))
        except (OSError, ValueError, tarfile.TarError) as error:
            raise InputError(
                f"{path}: its labels cannot be read ({first_line(error)}); class_names in "
                "_info.json would tell the classes"
            ) from None
    return numbered_classes(largest, str(reader.root))


@contextmanager
def _counted(title: str, faults: Faults) -> Iterator[None]:
    """Count what timm's reader of shards leaves out; it tells nobody but its log."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reason = record.getMessage().removeprefix("Handling webdataset error (")
            faults.add(f"{title}, {len(faults) + 1}", reason.removesuffix("). Ignoring."))

    logger, handler = logging.getLogger("timm.data.readers.reader_wds"), Handler(logging.WARNING)
    was = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = was
