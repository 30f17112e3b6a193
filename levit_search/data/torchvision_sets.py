"""torchvision's data sets, opened by timm as ``torch/NAME``."""

from pathlib import Path
from typing import Any

import numpy as np

from levit_search.data.builtin import DIGIT_CLASSES, FASHION_CLASSES
from levit_search.data.config import DataConfig
from levit_search.data.readers import (
    chosen_splits,
    class_labels,
    created,
    data_folder,
    spread,
)
from levit_search.data.sources import ArraySource, FileSource, Source, first_line
from levit_search.data.splits import DataInfo, SplitName
from levit_search.data.survey import LOOKED_AT, headers, survey
from levit_search.errors import InputError
from levit_search.files import expanded, user_cache

# fmt: off
_CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
_CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle",
    "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar",
    "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile",
    "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster",
    "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster",
    "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy",
    "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal",
    "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar",
    "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
    "worm",
)
# fmt: on
_KMNIST_CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

# The small sets, which torchvision holds in memory and downloads where they are absent.
_FIXED = {
    "cifar10": DataInfo(3, _CIFAR10_CLASSES, hflip=True, image_size=32),
    "cifar100": DataInfo(3, _CIFAR100_CLASSES, hflip=True, image_size=32),
    "fashion_mnist": DataInfo(1, FASHION_CLASSES, hflip=True, image_size=28),
    "kmnist": DataInfo(1, _KMNIST_CLASSES, hflip=False, image_size=28),
    "mnist": DataInfo(1, DIGIT_CLASSES, hflip=False, image_size=28),
}
# timm reads each of these as one of train and validation, whatever torchvision calls them.
_SPLITS = ("train", "validation")


def describe_torchvision(config: DataConfig) -> DataInfo:
    """Of the small sets nothing is read; others are listed, and a few of their images looked at.

    Raises:
        InputError: the set cannot be read.
    """
    fixed = _FIXED.get(_name(config))
    if fixed is not None:
        return fixed
    train = _open(config, chosen_splits(_splits(config), config)["train"])
    classes = _classes(train)
    source = _files(train, classes, str(config.root))
    seen = survey(headers(source, spread(len(source.labels), LOOKED_AT)))
    if seen is None:
        raise InputError(f"data.root: {config.root}: no readable images")
    return DataInfo(seen[0], classes, hflip=True, image_size=seen[1])


def torchvision_sources(config: DataConfig, info: DataInfo) -> dict[SplitName, Source]:
    """The set's own splits.

    Raises:
        InputError: the set is missing and cannot be downloaded, or its parts have other classes.
    """
    sources: dict[SplitName, Source] = {}
    for name, split in chosen_splits(_splits(config), config).items():
        opened = _open(config, split)
        if _classes(opened) != info.class_names and _name(config) not in _FIXED:
            raise InputError(
                f"data.root: the classes of {opened.root} ({len(_classes(opened))}) are not those "
                f"of train ({info.num_classes})"
            )
        if isinstance(getattr(opened, "data", None), str | type(None)):
            sources[name] = _files(opened, info.class_names, f"{config.name} {split}")
        else:
            sources[name] = _array(opened, info, f"{config.name} {split}")
    return sources


def _name(config: DataConfig) -> str:
    return config.name.partition("/")[2]


def _splits(config: DataConfig) -> tuple[str, ...]:
    """The splits of a set; those of ``image_folder`` are its folders, if one is for training."""
    if _name(config) != "image_folder":
        return _SPLITS
    folders = {entry.name for entry in _root(config).iterdir() if entry.is_dir()}
    named = "training", "train", "val", "valid", "validation", "eval", "evaluation", "test"
    found = tuple(name for name in named if name in folders)
    return found if folders & {"train", "training"} else ("train",)


def _root(config: DataConfig) -> Path:
    if config.root is None:
        raise InputError(f"data.root: is required for data.name {config.name}")
    root = expanded(config.root)
    if not root.is_dir():
        raise InputError(f"data.root: {root} is no folder")
    return root


def _open(config: DataConfig, split: str) -> Any:
    if _name(config) not in _FIXED:
        return created(config, split, root=str(_root(config)))
    places = [data_folder(), user_cache()]
    if config.root is not None:
        places = [expanded(config.root)]
    roots = [str(place) for place in places if place is not None]
    for root in roots:
        try:
            return created(config, split, root=root)
        except InputError as error:
            if not isinstance(error.__cause__, RuntimeError):  # "not found or corrupted"
                raise
    try:
        return created(config, split, root=roots[-1], download=True)
    except InputError as error:
        raise InputError(
            f"data: {config.name} is not in {' or '.join(roots)} and cannot be downloaded "
            f"({first_line(error.__cause__ or error)}); put torchvision's files there, or name "
            "their folder by --set data.root=DIR"
        ) from None


def _array(opened: Any, info: DataInfo, title: str) -> ArraySource:
    pixels = np.asarray(opened.data)
    images = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    labels = class_labels(opened.targets, info.class_names, title)
    return ArraySource(title, np.ascontiguousarray(images), labels)


def _files(opened: Any, classes: tuple[str, ...], title: str) -> FileSource:
    root = Path(opened.root)
    if hasattr(opened, "index"):  # iNaturalist
        found = [(str(Path(opened.all_categories[n], file)), n) for n, file in opened.index]
    else:
        found = [(str(Path(path).relative_to(root)), label) for path, label in opened.imgs]
    found.sort(key=lambda item: (item[1], item[0]))
    labels = class_labels([label for _, label in found], classes, title)
    return FileSource(root, [name for name, _ in found], labels)


def _classes(opened: Any) -> tuple[str, ...]:
    """Class names; of several names for one class, the first."""
    names = opened.all_categories if hasattr(opened, "index") else opened.classes
    return tuple(name if isinstance(name, str) else name[0] for name in names)
