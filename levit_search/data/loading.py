"""A data set described, and its three splits loaded."""

import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from levit_search.data import builtin, folders, hugging_face, plugged, streams, torchvision_sets
from levit_search.data.config import DataConfig
from levit_search.data.memory import held
from levit_search.data.pictures import Faults, Pictures, Split
from levit_search.data.sources import Mode, Source
from levit_search.data.splits import DataInfo, SplitName, bounded, cut, stratified
from levit_search.errors import InputError

_TEST_SHARE = 0.2  # of a set that brings no test part


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def describe(config: DataConfig) -> DataInfo:
    """Channels, classes, symmetry and size, from a look at a few images at most.

    Plugged-in sets describe themselves. Of digits, Fashion-MNIST and torchvision's small sets
    nothing is read. Others are opened, and 32 images looked at: one channel if none of them has
    colours; squares of one size keep it, and for pictures of other sizes it is the median of their
    shorter sides, at most 224, down to a multiple of 16.

    Raises:
        InputError: the data is not there; the message says where it was looked for.
    """
    match config.reader:
        case "digits":
            return DataInfo(1, builtin.DIGIT_CLASSES, hflip=False, image_size=8)
        case "fashion-mnist":
            builtin.fashion_root(config)
            return DataInfo(1, builtin.FASHION_CLASSES, hflip=True, image_size=28)
        case "folder":
            return folders.describe_folder(config)
        case "torch":
            return torchvision_sets.describe_torchvision(config)
        case "hfds":
            return hugging_face.describe_rows(config)
        case "hfids" | "wds" | "tfds":
            return streams.describe_stream(config)
        case _:
            return plugged.describe_plugged(config)


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
    info = describe(config)
    size = config.image_size or info.image_size
    mode: Mode = "L" if info.in_channels == 1 else "RGB"
    faults = Faults(config.max_unreadable)
    parts = _parts(_sources(config, info, size, faults), config, info)
    if not _are_held(parts, info, size, config):
        return info, {
            name: Pictures(source, indices, mode, config.max_unreadable)
            for name, (source, indices) in parts.items()
        }
    splits: dict[SplitName, Split] = {
        name: held(source, indices, mode, size, faults) for name, (source, indices) in parts.items()
    }
    if len(faults):
        left_out = "1 image" if len(faults) == 1 else f"{len(faults)} images"
        say(f"{config.name}: left out {left_out} that cannot be read: {faults}")
    return info, splits


class Outline(NamedTuple):
    """How much there is of a data set."""

    info: DataInfo
    images: dict[SplitName, int]
    """Of each split, unreadable ones included."""
    are_held: bool
    """Whether they are held in memory."""


def outline(config: DataConfig) -> Outline:
    """How many images :func:`load` gives, without decoding them.

    Raises:
        InputError: as :func:`load`.
    """
    info = describe(config)
    size = config.image_size or info.image_size
    sources = _sources(config, info, size, Faults(config.max_unreadable))
    parts = _parts(sources, config, info)
    images = {name: len(indices) for name, (_, indices) in parts.items()}
    return Outline(info, images, _are_held(parts, info, size, config))


def _are_held(
    parts: "Mapping[SplitName, Part]", info: DataInfo, size: int, config: DataConfig
) -> bool:
    images = sum(len(indices) for _, indices in parts.values())
    fits = images * info.in_channels * size**2 <= config.memory_limit_mb * 10**6
    return fits if config.in_memory is None else config.in_memory


def _sources(
    config: DataConfig, info: DataInfo, size: int, faults: Faults
) -> Mapping[SplitName, Source]:
    """What a set brings: ``train``, perhaps ``test`` too, or ``val`` and ``test``."""
    match config.reader:
        case "digits":
            return {"train": builtin.digits()}
        case "fashion-mnist":
            return builtin.fashion(config)
        case "folder":
            return folders.folder(config)
        case "torch":
            return torchvision_sets.torchvision_sources(config, info)
        case "hfds":
            return hugging_face.row_sources(config, info)
        case "hfids" | "wds" | "tfds":
            return streams.stream_sources(config, info, size, faults)
        case _:
            return plugged.plugged_sources(config, info)


Part = tuple[Source, NDArray[np.int64]]
"""A source, and which of its images."""


def _parts(
    sources: Mapping[SplitName, Source], config: DataConfig, info: DataInfo
) -> dict[SplitName, Part]:
    """What is trained on, validated and tested; what a set does not bring is cut from ``train``."""
    source = sources["train"]
    if "val" not in sources:
        _check_divisible(source.labels, info)
    rest: NDArray[np.int64] = np.arange(len(source.labels))
    if "test" in sources:
        test = _whole(sources["test"])
    else:
        rest, taken = stratified(source.labels, rest, _TEST_SHARE)
        test = source, taken
    if "val" in sources:
        train, val = bounded(source.labels, rest, config), _whole(sources["val"])
    else:
        train, taken = cut(source.labels, rest, config)
        val = source, taken
    return {"train": (source, train), "val": val, "test": test}


def _check_divisible(labels: NDArray[np.int64], info: DataInfo) -> None:
    lonely = np.flatnonzero(np.bincount(labels) == 1)
    if len(lonely):
        raise InputError(
            f"data: class {info.class_names[lonely[0]]!r} has one training image; val is cut from "
            "them by class, so that each class needs two or more"
        )


def _whole(source: Source) -> Part:
    return source, np.arange(len(source.labels))
