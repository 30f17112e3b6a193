"""The data sets that need no reader of timm: digits, Fashion-MNIST, class folders, plug-ins'."""

import gzip
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from levit_search import plugins
from levit_search.data.decoding import formats
from levit_search.data.sources import (
    LARGEST,
    SMALLEST,
    ArraySource,
    DataConfig,
    DataInfo,
    DataSet,
    FileSource,
    OpenedSet,
    Source,
    SplitName,
)
from levit_search.errors import InputError, did_you_mean, first_line
from levit_search.escaping import readable_name
from levit_search.files import expanded, user_cache
from levit_search.image_size import Sides, compact, sides
from levit_search.plugins import Plugin

DIGIT_CLASSES = tuple(str(digit) for digit in range(10))
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
    "Ankle boot",
)
_FASHION_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_MOST_BYTES = 1 << 27  # of one of them, unpacked; the largest has 47 million
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


class Digits(OpenedSet):
    """scikit-learn's 1797 digits of 8x8 pixels; they bring no test part."""

    def describe(self) -> DataInfo:
        return DataInfo(1, DIGIT_CLASSES, hflip=False, image_size=8)

    def sources(self) -> dict[SplitName, Source]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        return {"train": ArraySource("digits", images, bunch.target.astype(np.int64))}


class FashionMnist(OpenedSet):
    """Fashion-MNIST's training and test part, from its four files.

    Raises:
        InputError: the files are missing and cannot be downloaded, or they are damaged.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self._root = fashion_root(config)

    def describe(self) -> DataInfo:
        return DataInfo(1, FASHION_CLASSES, hflip=True, image_size=28)

    def sources(self) -> dict[SplitName, Source]:
        root = self._root or _download_fashion()
        return {"train": _read_fashion(root, "train"), "test": _read_fashion(root, "test")}


def fashion_root(config: DataConfig) -> Path | None:
    """The first folder with Fashion-MNIST's files, or None where it must be downloaded.

    Raises:
        InputError: a root was named, but the files are not in it.
    """
    if config.root is not None:
        root = expanded(config.root)
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
            f"({first_line(error)}). Either `apt-get install dataset-fashion-mnist`, or put its "
            "four idx .gz files into a folder and name it by --set data.root=DIR or "
            "LEVIT_SEARCH_DATA"
        ) from None
    return user_cache() / "FashionMNIST" / "raw"


def _read_fashion(root: Path, part: str) -> ArraySource:
    images_path, labels_path = (root / name for name in _FASHION_FILES[part])
    images, labels = _read_idx(images_path), _read_idx(labels_path)
    if images.ndim != 3 or labels.shape != (len(images),) or labels.max(initial=0) > 9:
        raise InputError(
            f"{labels_path}: damaged (labels {list(labels.shape)} up to {labels.max(initial=0)}, "
            f"images {list(images.shape)})"
        )
    return ArraySource(f"fashion-mnist {part}", images[:, None], labels.astype(np.int64))


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of bytes: two zeros, type 8, the number of axes, their sizes, the data."""
    try:
        with gzip.open(path) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes unpacked")
        if content[:3] != b"\0\0\x08":
            raise ValueError("not an idx file of bytes")
        axes = int.from_bytes(content[3:4], "big")
        shape = np.frombuffer(content, ">u4", count=axes, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: damaged ({first_line(error)})") from None


class Folder(OpenedSet):
    """A folder with ``train/`` and ``val/``, each with a folder of image files for each class.

    ``val/`` is the test part. Hidden files and folders are left out, links are followed. Among what
    is ``left_out`` are links to nowhere or to a folder around their class, and what lies beside the
    class folders.

    Raises:
        InputError: a folder is missing, there are fewer than two classes, or one is empty or
            unknown.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        if config.root is None:
            raise InputError(
                "data.root: is required for data.name folder: a folder with train/ and val/, each "
                "with one folder of images for each class"
            )
        self._root = expanded(config.root)
        for part in ("train", "val"):
            if not (self._root / part).is_dir():
                raise InputError(
                    f"data.root: {self._root} has no folder {part}/; expected "
                    f"{self._root}/train/CLASS/*.png and {self._root}/val/CLASS/*.png"
                )
        self._classes = self._folders("train")
        if len(self._classes) < 2:
            train = self._root / "train"
            raise InputError(f"{train}: needs a folder for each of at least two classes")

    def describe(self) -> tuple[str, ...]:
        return tuple(readable_name(name) for name in self._classes)

    def sources(self) -> dict[SplitName, Source]:
        self.left_out.clear()
        return {"train": self._images("train"), "test": self._images("val")}

    def _folders(self, part: str) -> list[str]:
        entries = (self._root / part).iterdir()
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))

    def _images(self, part: str) -> FileSource:
        """All images of a part in a stable order, with the index of their class folder."""
        folder = self._root / part
        unknown = sorted(set(self._folders(part)) - set(self._classes))
        if unknown:
            raise InputError(f"{folder}: class {unknown[0]!r} is not among those of train/")
        for entry in folder.iterdir():
            if not entry.name.startswith(".") and not entry.is_dir():
                self.left_out["in no class" if entry.exists() else "broken link"] += 1
        names: list[str] = []
        counts: list[int] = []
        for name in self._classes:
            before = self.left_out.copy()
            below = pictures_below(folder / name, folder, self.left_out)
            found = sorted(below, key=lambda path: path.split("/"))
            if not found:
                others = told_left_out(self.left_out - before)
                told = f"; left out, no pictures: {others}" if others else ""
                raise InputError(f"{folder / name}: no images in this class folder{told}")
            names += [f"{part}/{name}/{path}" for path in found]
            counts.append(len(found))
        labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        return FileSource(self._root, names, labels)


def pictures_below(folder: Path, around: Path, left_out: Counter[str]) -> Iterator[str]:
    """Paths of the images below a folder, relative to it; of each folder in order.

    Links are followed, hidden files and folders left out; links to ``around``, a folder that it
    lies in, lead in circles. ``left_out`` counts what is passed over, by its ending.
    """
    endings = _endings()
    own, part = os.path.realpath(folder), os.path.realpath(around)
    seen: set[str] = set()  # folders by their real paths: links may lead to one twice
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        is_around = os.path.commonpath((own if seen else part, real)) == real
        if is_around:
            left_out["link to a folder around it"] += 1
        if is_around or real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(place, folder).replace(os.sep, "/")
        before = "" if inside == "." else f"{inside}/"
        for name in sorted(name for name in files if not name.startswith(".")):
            _, dot, letters = name.rpartition(".")
            ending = dot + letters.lower() if dot else ""
            if ending in endings:
                yield before + name
            else:
                left_out[ending if Path(place, name).exists() else "broken link"] += 1


def told_left_out(counts: Mapping[str, int]) -> str:
    """How many files were passed over, of which kinds."""
    return ", ".join(f"{count:,} {kind or 'without ending'}" for kind, count in counts.items())


def _endings() -> frozenset[str]:
    known = Image.registered_extensions()
    read = {*formats(), "MPO"}  # JPEGs with more pictures behind the first
    return frozenset(ending for ending, name in known.items() if name in read)


class PlugIn(OpenedSet):
    """A data set of an entry point, which is made and checked here.

    Raises:
        InputError: it cannot be loaded, fails, or what it describes or brings is no data set.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        found = plugins.installed("levit_search.data").get(config.name)
        if found is None:  # it was there when the configuration was read
            raise InputError(f"data.name: the plug-in that brought {config.name!r} is gone")
        self._plugin = found
        make = found.load_callable()
        with found.explained("cannot be opened"):
            self._data_set: DataSet = make(config)
        asked = ("describe", "sources")
        if not all(callable(getattr(self._data_set, name, None)) for name in asked):
            raise found.wrong("expected a data set with describe() and sources()", self._data_set)

    def describe(self) -> DataInfo | tuple[str, ...]:
        plugin = self._plugin
        with plugin.explained("describe() fails"):
            info: object = self._data_set.describe()
        if not isinstance(info, tuple):
            raise plugin.wrong("describe() has to return a DataInfo", info)
        names = info.class_names if isinstance(info, DataInfo) else info
        are_texts = isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)
        if not are_texts or len(names) < 2 or len(set(names)) < len(names):
            raise plugin.wrong("class_names: expected two texts or more that differ", names)
        if not isinstance(info, DataInfo):
            return info
        if type(info.in_channels) is not int or info.in_channels not in (1, 3):
            raise plugin.wrong("in_channels: expected 1 or 3", info.in_channels)
        if type(info.hflip) is not bool:
            raise plugin.wrong("hflip: expected True or False", info.hflip)
        size = info.image_size
        pair = size if isinstance(size, tuple) else (size, size)
        if len(pair) != 2 or not all(type(s) is int and SMALLEST <= s <= LARGEST for s in pair):
            wanted = f"{SMALLEST} to {LARGEST} pixels, or (height, width) of them"
            raise plugin.wrong(f"image_size: expected {wanted}", size)
        return info._replace(class_names=tuple(names), image_size=compact(*pair))

    def sources(self) -> dict[SplitName, Source]:
        plugin, described = self._plugin, self.describe()
        with plugin.explained("sources() fails"):
            sources: object = self._data_set.sources()
        if not isinstance(sources, Mapping):
            raise plugin.wrong("sources() has to return a mapping of splits", sources)
        known = get_args(SplitName)
        for name in sources:
            if name not in known:
                told = did_you_mean(str(name), known)
                raise InputError(f"{plugin}: unknown split {name!r}; {told}")
        if "train" not in sources:
            raise plugin.wrong("sources() has to have train", list(sources))
        for name, source in sources.items():
            _check_source(plugin, name, source, described)
        return dict(sources)


def _check_source(
    plugin: Plugin, name: str, source: Source, described: DataInfo | tuple[str, ...]
) -> None:
    classes = described.num_classes if isinstance(described, DataInfo) else len(described)
    labels = getattr(source, "labels", None)
    asked = ("name", "where", "open", "content", "sizes")
    if not all(callable(getattr(source, each, None)) for each in asked) or labels is None:
        raise plugin.wrong(f"{name}: expected labels, {', '.join(asked)} of a Source", source)
    told = f"{plugin}: {name}:"
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.ndim != 1:
        raise InputError(f"{told} labels have to be int64 [N], not {_kind(labels)}")
    if not len(labels):
        raise InputError(f"{told} has no images")
    if labels.min() < 0 or labels.max() >= classes:
        outside = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(f"{told} label {outside}, but the classes are 0 to {classes - 1}")
    if isinstance(source, ArraySource):
        channels: tuple[int, ...] = (1, 3)
        size: int | Sides = 0
        if isinstance(described, DataInfo):
            channels, size = (described.in_channels,), described.image_size
        shape = getattr(source.images, "shape", ())
        pixels = (shape[-1:] * 2, sides(size))
        known = [(len(labels), each, *allowed) for each in channels for allowed in pixels]
        if getattr(source.images, "dtype", None) != np.uint8 or shape not in known:
            one = "S, S" if isinstance(size, int) else f"{size[0]}, {size[1]}"
            wanted = f"uint8 [{len(labels)}, {' or '.join(map(str, channels))}, {one}]"
            raise InputError(f"{told} images have to be {wanted}, not {_kind(source.images)}")


def _kind(values: object) -> str:
    if isinstance(values, np.ndarray):
        return f"{values.dtype} {list(values.shape)}"
    return f"a {type(values).__name__}"
