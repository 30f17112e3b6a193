"""Data sets by name, and their fixed splits.

Splits: a network is fitted on ``train``, a search sees ``val``, and ``test`` is read by nothing but
``train --final`` and the final checks. A data set's own held-out part is ``test``; ``val`` is then
cut from its training part, stratified and always the same.
"""

import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from levit_search.configuration import Count, Frozen
from levit_search.errors import InputError

DataName = Literal["digits", "fashion-mnist", "folder"]
SplitName = Literal["train", "val", "test"]

_SPLIT_SEED = 20210402  # any constant: the cut must be the same everywhere and for ever

_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


class DataConfig(Frozen):
    """Which images, at which size.

    ``val_share`` is the part of the training images that becomes ``val``; ``train_images`` bounds
    how many of the rest are fitted on (a stratified choice), for searches that need not see all.
    """

    name: DataName = "digits"
    root: str | None = None
    image_size: Annotated[int, Field(strict=True, ge=4, le=4096)] = 32
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    train_images: Count | None = None


class DataInfo(NamedTuple):
    """What a network must know of a data set."""

    in_channels: int
    class_names: tuple[str, ...]
    hflip: bool
    """Whether a mirrored image still is of its class (digits are not)."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Arrays:
    """One split in memory: images uint8 [N, C, H, W] and labels int64 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Files:
    """One split on disk: image files and labels int64 [N]."""

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]


Split = Arrays | Files


def describe(config: DataConfig) -> DataInfo:
    """Channels, classes and symmetry, without reading an image.

    Raises:
        InputError: the data is not there; the message says where it was looked for.
    """
    match config.name:
        case "digits":
            return DataInfo(1, tuple(str(digit) for digit in range(10)), hflip=False)
        case "fashion-mnist":
            _fashion_root(config)
            return DataInfo(1, _FASHION_CLASSES, hflip=True)
        case "folder":
            return DataInfo(3, _class_folders(_folder_root(config) / "train"), hflip=True)


def load(config: DataConfig) -> dict[SplitName, Split]:
    """The three splits.

    Raises:
        InputError: the data is missing, damaged or too small to be split by class.
    """
    match config.name:
        case "digits":
            return _digits(config)
        case "fashion-mnist":
            return _fashion(config)
        case "folder":
            return _folder(config)


def _digits(config: DataConfig) -> dict[SplitName, Split]:
    """scikit-learn's 1797 digits of 8x8 pixels; they bring no test part, so one is cut first."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    rest, test = _stratified(labels, np.arange(len(labels)), 0.2)
    train, val = _cut(labels, rest, config)
    parts: dict[SplitName, NDArray[np.int64]] = {"train": train, "val": val, "test": test}
    return {name: Arrays(images[part], labels[part]) for name, part in parts.items()}


def _fashion(config: DataConfig) -> dict[SplitName, Split]:
    root = _fashion_root(config)
    if root is None:
        root = _download_fashion()
    part, test = (_read_fashion(root, which) for which in ("train", "test"))
    train, val = _cut(part.labels, np.arange(len(part.labels)), config)
    return {
        "train": Arrays(part.images[train], part.labels[train]),
        "val": Arrays(part.images[val], part.labels[val]),
        "test": test,
    }


def _read_fashion(root: Path, which: str) -> Arrays:
    images_path, labels_path = (root / name for name in _FASHION_FILES[which])
    images, labels = _read_idx(images_path), _read_idx(labels_path)
    if images.ndim != 3 or labels.shape != (len(images),) or labels.max(initial=0) > 9:
        raise InputError(
            f"{labels_path}: damaged (labels {list(labels.shape)} up to {labels.max(initial=0)}, "
            f"images {list(images.shape)})"
        )
    return Arrays(images[:, None], labels.astype(np.int64))


def user_cache() -> Path:
    """Where downloads and teachers are kept: ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "levit-search"


def _fashion_root(config: DataConfig) -> Path | None:
    """The first folder with Fashion-MNIST's files, or None where it must be downloaded.

    Raises:
        InputError: a root was named, but the files are not in it.
    """
    if config.root is not None:
        root = Path(config.root).expanduser()
        for place in (root, root / "FashionMNIST" / "raw"):
            if _has_fashion(place):
                return place
        raise InputError(
            f"data.root: {root} does not hold Fashion-MNIST; expected the four files "
            f"{', '.join(_FASHION_FILES['train'])}, t10k-..."
        )
    named = os.environ.get("LEVIT_SEARCH_DATA")
    places = [Path(named) / "fashion-mnist", Path(named)] if named else []
    places += [_DEBIAN_FASHION, user_cache() / "FashionMNIST" / "raw"]
    return next((place for place in places if _has_fashion(place)), None)


def _has_fashion(place: Path) -> bool:
    return all((place / name).is_file() for pair in _FASHION_FILES.values() for name in pair)


def _download_fashion() -> Path:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(user_cache()), download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            "Fashion-MNIST is not on this machine and cannot be downloaded "
            f"({_first_line(error)}). Either `apt-get install dataset-fashion-mnist`, or put its "
            "four idx .gz files into a folder and name it by --set data.root=DIR or "
            "LEVIT_SEARCH_DATA"
        ) from None
    return user_cache() / "FashionMNIST" / "raw"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of bytes: two zeros, type 8, the number of axes, their sizes, the data."""
    try:
        content = gzip.decompress(path.read_bytes())
        if content[:3] != b"\0\0\x08":
            raise ValueError("not an idx file of bytes")
        axes = int.from_bytes(content[3:4], "big")
        shape = np.frombuffer(content, ">u4", count=axes, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: damaged ({_first_line(error)})") from None


def _folder_root(config: DataConfig) -> Path:
    if config.root is None:
        raise InputError(
            "data.root: is required for data.name folder: a folder with train/ and val/, each "
            "with one folder of images for each class"
        )
    root = Path(config.root).expanduser()
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise InputError(
                f"data.root: {root} has no folder {part}/; expected {root}/train/CLASS/*.png and "
                f"{root}/val/CLASS/*.png"
            )
    return root


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    if len(names) < 2:
        raise InputError(f"{folder}: needs a folder for each of at least two classes")
    return names


def _folder(config: DataConfig) -> dict[SplitName, Split]:
    root = _folder_root(config)
    classes = _class_folders(root / "train")
    paths, labels = _image_files(root / "train", classes)
    test_paths, test_labels = _image_files(root / "val", classes)
    train, val = _cut(labels, np.arange(len(labels)), config)
    return {
        "train": Files(tuple(paths[i] for i in train), labels[train]),
        "val": Files(tuple(paths[i] for i in val), labels[val]),
        "test": Files(tuple(test_paths), test_labels),
    }


def _image_files(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], NDArray[np.int64]]:
    """All images below ``folder`` in a stable order, with the index of their class folder."""
    from PIL import Image

    endings = set(Image.registered_extensions())
    paths: list[Path] = []
    labels: list[int] = []
    unknown = sorted({e.name for e in folder.iterdir() if e.is_dir()} - set(classes))
    if unknown:
        raise InputError(f"{folder}: class {unknown[0]!r} is not among those of train/")
    for label, name in enumerate(classes):
        found = sorted(
            path
            for path in (folder / name).rglob("*")
            if path.suffix.lower() in endings and path.is_file()
        )
        if not found:
            raise InputError(f"{folder / name}: no images in this class folder")
        paths += found
        labels += [label] * len(found)
    return paths, np.array(labels, dtype=np.int64)


def _cut(
    labels: NDArray[np.int64], indices: NDArray[np.int64], config: DataConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(train, val) indices out of a training part, ``train`` bounded by ``train_images``."""
    train, val = _stratified(labels, indices, config.val_share)
    surplus = len(train) - (config.train_images or len(train))
    if config.train_images is not None and 0 < surplus < len(np.unique(labels)):
        # Fewer to leave out than classes: each class gives up one image at most.
        firsts = np.unique(labels[train], return_index=True)[1][:surplus]
        train = np.delete(train, firsts)
    elif config.train_images is not None and surplus > 0:
        _, train = _stratified(labels, train, config.train_images)
    return train, val


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
