"""Data sets that timm's ``create_dataset`` opens: torchvision's, Hugging Face's, and streams.

Streams (``hfids/``, ``wds/``, ``tfds/``) are read once into memory.
"""

import importlib.util
import logging
import math
import os
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import EpsImagePlugin, Image

from levit_search.data.decoding import MOST_BYTES, decoded
from levit_search.data.sets import DIGIT_CLASSES, FASHION_CLASSES
from levit_search.data.sources import (
    ArraySource,
    DataConfig,
    DataInfo,
    EncodedSource,
    Faults,
    FileSource,
    OpenedSet,
    Source,
    SplitName,
    UnreadableError,
    center_cropped,
    unreadable,
)
from levit_search.errors import InputError, did_you_mean, first_line
from levit_search.escaping import readable_name
from levit_search.files import expanded, user_cache
from levit_search.image_size import sides

_TRAIN = ("train", "training")
_VAL = ("validation", "val", "valid", "eval", "evaluation", "dev")
_TEST = ("test", "testing")

_MOST_CLASSES = 1_000_000

# Of each reader the module that it needs, and what has to be installed for it.
_NEEDED = {
    "hfds": ("datasets", "datasets"),
    "hfids": ("datasets", "datasets"),
    "wds": ("webdataset", "webdataset"),
    "tfds": ("tensorflow_datasets", "tensorflow tensorflow-datasets"),
}


def created(config: DataConfig, split: str, **options: Any) -> Any:
    """timm's data set for one split, as the reader calls it, with options of ``create_dataset``.

    Raises:
        InputError: an optional package is missing, or the set cannot be read.
    """
    # An absolute path is never an address: webdataset would run what follows `pipe:`.
    root = None if config.root is None else str(expanded(config.root).absolute())
    with explained(config):
        from timm.data import create_dataset

        return create_dataset(config.name, **{"root": root, "split": split, **options})


@contextmanager
def explained(config: DataConfig) -> Iterator[None]:
    """Turn whatever a reader raises, or that its package is missing, into an error on the set."""
    try:
        module, _ = _NEEDED.get(config.reader, ("timm", ""))
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(name=module)
        yield
    except InputError:
        raise
    except ImportError as error:
        if config.reader not in _NEEDED:
            raise
        raise InputError(
            f"data.name: {config.name} needs {error.name or 'a package'}, which is not installed; "
            f"pip install {_NEEDED[config.reader][1]}"
        ) from None
    except Exception as error:  # readers and the packages behind them share no root exception
        raise InputError(
            f"data: {config.name} cannot be read: {type(error).__name__}: {first_line(error)}"
        ) from error


def keep_from_ghostscript() -> None:
    """Have Pillow refuse EPS where others open pictures with it, in this process from now on."""
    EpsImagePlugin.gs_binary = False


def chosen_splits(found: Collection[str], config: DataConfig) -> dict[SplitName, str]:
    """The reader's names for ``train`` and, where the set has them, ``val`` and ``test``.

    ``val`` is among them only beside ``test``: a single held-out split is ``test``.

    Args:
        found: what the set has; empty where the reader cannot tell.

    Raises:
        InputError: a split named is not there or named for both, or none is called train.
    """
    for field in ("train_split", "test_split"):
        named = getattr(config, field)
        if named is not None and found and named.partition("[")[0] not in found:
            if ".tar" in named:  # a list of shards
                continue
            raise InputError(
                f"data.{field}: {config.name} has no split {named!r}; {did_you_mean(named, found)}"
            )

    def first(names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in found), None)

    train = config.train_split or first(_TRAIN)
    if train is None:
        raise InputError(
            f"data.train_split: {config.name} has no split called train; it has "
            f"{', '.join(found) or 'no named ones'}"
        )
    if config.test_split == train:
        raise InputError(f"data.test_split: {train!r} is the training split already")
    # Of a split that is used in part, such as train[:90%], the whole is not held out.
    taken = {(name or "").partition("[")[0] for name in (train, config.test_split)}
    own = [name for name in (first(_VAL), first(_TEST)) if name and name not in taken]
    if config.test_split is not None:
        own = [*(name for name in own if name in _VAL), config.test_split]
    names: tuple[SplitName, ...] = ("test",) if len(own) == 1 else ("val", "test")
    return {"train": train, **dict(zip(names, own, strict=False))}


def class_labels(values: Any, classes: tuple[str, ...], where: str) -> NDArray[np.int64]:
    """Labels as int64 [N], out of whole numbers or class names.

    Raises:
        InputError: one is neither a class's number nor its name.
    """
    array = np.asarray(values)
    if array.dtype.kind in "iub":
        labels = array.astype(np.int64)
        outside = labels[(labels < 0) | (labels >= len(classes))]
        if not len(outside):
            return labels
        raise InputError(
            f"{where}: label {outside[0]} is none of the {len(classes)} classes; if this split has "
            "no labels, name another in data.test_split"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    try:
        return np.array([numbers[str(value)] for value in array.tolist()], dtype=np.int64)
    except KeyError as error:
        raise InputError(f"{where}: label {error} is none of the {len(classes)} classes") from None


def named_classes(class_to_index: dict[str, int]) -> tuple[str, ...]:
    """Class names by their index."""
    names = sorted(class_to_index, key=class_to_index.__getitem__)
    return tuple(readable_name(str(name)) for name in names)


def numbered_classes(largest: int, where: str) -> tuple[str, ...]:
    """``0`` to the largest label of a set that does not name its classes."""
    if largest >= _MOST_CLASSES:
        raise InputError(f"{where}: label {largest}; more than {_MOST_CLASSES:,} classes are none")
    return tuple(str(number) for number in range(largest + 1))


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


class TorchSet(OpenedSet):
    """A data set of torchvision, ``torch/NAME``.

    Of the small sets, which torchvision holds in memory, nothing is read to describe them.

    Raises:
        InputError: the set is missing and cannot be downloaded, or its parts have other classes.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self._name = config.name.partition("/")[2]
        self._fixed = _FIXED.get(self._name)

    def describe(self) -> DataInfo | tuple[str, ...]:
        return self._fixed or _classes(self._opened(self._splits()["train"]))

    def sources(self) -> dict[SplitName, Source]:
        config = self._config
        sources: dict[SplitName, Source] = {}
        classes = self._fixed.class_names if self._fixed is not None else None
        for name, split in self._splits().items():
            opened_set = self._opened(split)
            found = _classes(opened_set)
            classes = classes or found
            if found != classes and self._fixed is None:
                raise InputError(
                    f"data.root: the classes of {opened_set.root} ({len(found)}) are not those of "
                    f"train ({len(classes)})"
                )
            title = f"{config.name} {split}"
            if isinstance(getattr(opened_set, "data", None), str | type(None)):
                sources[name] = _files(opened_set, classes, title)
            else:
                pixels = np.asarray(opened_set.data)
                images = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
                labels = class_labels(opened_set.targets, classes, title)
                sources[name] = ArraySource(title, np.ascontiguousarray(images), labels)
        return sources

    def _splits(self) -> dict[SplitName, str]:
        """The splits of a set; those of ``image_folder`` are its folders, if one is to train on."""
        if self._name != "image_folder":  # timm takes these names for those of torchvision
            return chosen_splits(("train", "validation"), self._config)
        folders = {entry.name for entry in self._root().iterdir() if entry.is_dir()}
        named = "training", "train", "val", "valid", "validation", "eval", "evaluation", "test"
        found = [name for name in named if name in folders]
        return chosen_splits(found if folders & set(_TRAIN) else ["train"], self._config)

    def _root(self) -> Path:
        if self._config.root is None:
            raise InputError(f"data.root: is required for data.name {self._config.name}")
        root = expanded(self._config.root)
        if not root.is_dir():
            raise InputError(f"data.root: {root} is no folder")
        return root

    def _opened(self, split: str) -> Any:
        config = self._config
        if self._fixed is None:
            return created(config, split, root=str(self._root()))
        named = os.environ.get("LEVIT_SEARCH_DATA")
        roots = [str(expanded(config.root))] if config.root is not None else [str(user_cache())]
        if config.root is None and named:
            roots.insert(0, str(Path(named)))
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
    firsts = (name if isinstance(name, str) else name[0] for name in names)
    return tuple(readable_name(name) for name in firsts)


class RowSource(EncodedSource):
    """The rows of one split that timm's ``reader`` gives, with its column of images."""

    def __init__(self, title: str, reader: Any, column: str, labels: NDArray[np.int64]) -> None:
        self._title, self._reader, self._column, self.labels = title, reader, column, labels

    def name(self, index: int) -> str:
        return f"{self._title}[{index}]"

    def where(self, index: int) -> str:
        path = self._reader.filename(index)
        return f"{self.name(index)} ({path})" if path else self.name(index)

    def content(self, index: int) -> bytes:
        with self._reader[index][0] as file:
            content: bytes = file.read()
        return content

    def sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        import pyarrow.compute as compute

        tables = self._reader.dataset.select_columns([self._column]).with_format("arrow")
        lengths: list[int] = []
        for table in tables.iter(batch_size=1024):
            column = table.column(self._column)
            within = compute.binary_length(compute.struct_field(column, "bytes")).to_pylist()
            paths = compute.struct_field(column, "path").to_pylist()
            for length, path in zip(within, paths, strict=True):
                is_there = length is None and path and Path(path).is_file()
                lengths.append(Path(path).stat().st_size if is_there else length or 0)
        return np.array(lengths, dtype=np.int64)[indices]


class Rows(OpenedSet):
    """A data set of Hugging Face's on disk, ``hfds/NAME``.

    Raises:
        InputError: the set cannot be read, or has labels that are no classes.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self._splits, self._columns = splits_and_columns(config)

    def describe(self) -> tuple[str, ...]:
        reader, values = self._opened(self._splits["train"])
        classes = named_classes(reader.class_to_idx)
        if classes:
            return classes
        if values.dtype.kind in "iub":
            return numbered_classes(int(values.max(initial=0)), self._config.name)
        return tuple(sorted({str(value) for value in values.tolist()}))

    def sources(self) -> dict[SplitName, Source]:
        classes = self.describe()
        sources: dict[SplitName, Source] = {}
        for name, split in self._splits.items():
            title, (reader, values) = f"{self._config.name} {split}", self._opened(split)
            labels = class_labels(values, classes, title)
            sources[name] = RowSource(title, reader, self._columns[0], labels)
        return sources

    def _opened(self, split: str) -> tuple[Any, NDArray[Any]]:
        """timm's reader of a split, and the values of its column of labels."""
        image, label = self._columns
        reader = created(self._config, split, input_key=image, target_key=label).reader
        rows = reader.dataset.select_columns([label]).with_format("numpy")
        return reader, np.asarray(rows[:][label])


def splits_and_columns(config: DataConfig) -> tuple[dict[SplitName, str], tuple[str, str]]:
    """The splits to read, and the columns of the image and its label.

    The columns are ``image`` and ``label``, or else the only one of images and the first of class
    labels. A set on disk is prepared where its features are not known before.

    Raises:
        InputError: the set cannot be read, or has no such columns.
    """
    with explained(config):
        import datasets

        root = None if config.root is None else str(expanded(config.root))
        builder = datasets.load_dataset_builder(config.name.partition("/")[2], cache_dir=root)
        if builder.info.features is None and config.reader == "hfds":
            builder.download_and_prepare()
        found = builder.info.splits or getattr(builder.config, "data_files", None) or ()
        features = builder.info.features or {}
        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    columns = []
    for usual, fitting in (("image", images if len(images) == 1 else []), ("label", labels)):
        if features and usual not in features and not fitting:
            raise InputError(
                f"data: {config.name} has no column of {usual}s; its columns are "
                f"{', '.join(features)}"
            )
        columns.append(usual if not features or usual in features else fitting[0])
    return chosen_splits([str(name) for name in found], config), (columns[0], columns[1])


_LONGEST_LABEL = 20  # digits


class Stream(OpenedSet):
    """A data set that can only be read from its beginning to its end; it is held in memory.

    Raises:
        InputError: the set cannot be read, its classes are not known, it is too large for memory,
            or too much of it is unreadable.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self._options: dict[str, str | int] = {}  # what else the reader must be told
        self._held_images = 0
        if config.reader == "hfids":
            self._splits, (image, label) = splits_and_columns(config)
            # Only training asks how many there are, and sets in files of their own cannot tell.
            self._options = {"input_key": image, "target_key": label, "num_samples": 1}
            return
        found: tuple[str, ...] = ()
        if config.reader == "tfds":
            reader = created(config, config.train_split or "train", download=True).reader
            found = tuple(reader.builder.info.splits)
        elif config.root is None:
            with explained(config):  # a package that is missing is told first
                raise InputError(f"data.root: is required for data.name {config.name}")
        elif config.train_split is None or ".tar" not in config.train_split:
            reader = created(config, config.train_split or "train").reader
            found = tuple(reader.info.get("splits", ()))
        self._splits = chosen_splits(found, config)

    def describe(self) -> tuple[str, ...]:
        """Classes as the reader knows them.

        Those of tar shards are ``class_names`` in their ``_info.json``, or as many as their labels
        say, which are read without the images.
        """
        name, reader = self._config.name, self._opened(self._splits["train"]).reader
        if reader.class_to_idx:
            return named_classes(reader.class_to_idx)
        if self._config.reader == "wds":
            return tuple(reader.info.get("class_names", ())) or _labelled(reader)
        raise InputError(
            f"data: {name} does not tell its classes before it is read; use "
            f"hfds/{name.partition('/')[2]}"
        )

    def stored_pictures(self) -> Iterator[tuple[SplitName, Any, Image.Image]]:
        for name, split in self._splits.items():
            title = f"{self._config.name} {split}"
            with explained(self._config), _counted(title, Faults(10**9)):
                for picture, label in self._opened(split):
                    yield name, label, picture

    def sources(self) -> dict[SplitName, Source]:
        """The set's own splits, each read to its end, in ``image_size``."""
        config = self._config
        if config.in_memory is False:
            raise InputError(
                f"data.in_memory: false, but {config.name} is a stream, which is read into memory; "
                "use a set on disk, such as folder or hfds/"
            )
        classes = self.describe()
        self._held_images = 0
        return {name: self._read(split, classes) for name, split in self._splits.items()}

    def _opened(self, split: str) -> Any:
        config, mode = self._config, ""  # as they are stored
        if config.reader == "tfds":
            with explained(config):
                channels = created(config, split).reader.builder.info.features["image"].shape[-1]
            mode = "L" if channels == 1 else "RGB"
        stream = created(config, split, input_img_mode=mode, **self._options)
        keep_from_ghostscript()  # timm opens the pictures itself
        if config.reader == "wds":
            for name in stream.reader.split_info.filenames:
                _check_shard(Path(stream.reader.root), name)
        return stream

    def _read(self, split: str, classes: tuple[str, ...]) -> ArraySource:
        config, faults, title = self._config, self.faults, f"{self._config.name} {split}"
        stream, before = self._opened(split), len(faults)
        told = getattr(stream.reader, "num_samples", None) or 0
        self._check_memory(told)
        images: list[NDArray[np.uint8]] = []
        labels: list[Any] = []
        with explained(config), _counted(title, faults):
            for number, (picture, label) in enumerate(stream):
                self._check_memory(1)
                self._held_images += 1
                try:
                    with unreadable():
                        shown = decoded(picture, config.decoding)
                        images.append(center_cropped(shown, config.size))
                except UnreadableError as error:
                    faults.add(f"{title}[{number}]", str(error))
                    continue
                labels.append(label)
        for missing in range(told - len(images) - (len(faults) - before)):
            faults.add(f"{title}, missing {missing + 1}", "fewer images than the set says")
        if not images:
            raise InputError(f"data: {title} is empty")
        return ArraySource(title, np.stack(images), class_labels(labels, classes, title))

    def _check_memory(self, images: int) -> None:
        """Raise the error that there is no memory for so many more."""
        config = self._config
        image_bytes = (1 if config.in_channels == 1 else 3) * math.prod(sides(config.size))
        needed = (self._held_images + images) * image_bytes / 1e6
        if not config.in_memory and needed > config.memory_limit_mb:
            raise InputError(
                f"data.memory_limit_mb: {config.memory_limit_mb}, but {config.name} is a stream, "
                f"which is read into memory, and takes {needed:.0f} MB or more; raise the limit, "
                "lower data.image_size, or use a set on disk, such as folder or hfds/"
            )


@contextmanager
def _shard(path: Path, failure: str, hint: str) -> Iterator[tarfile.TarFile]:
    """A plain tar file, and what is wrong with it as an error of the user's."""
    try:
        with tarfile.open(path, "r:") as shard:
            yield shard
    except (OSError, ValueError, tarfile.TarError) as error:
        raise InputError(f"{path}: {failure} ({first_line(error)}){hint}") from None


def _check_shard(root: Path, name: str) -> None:
    """Make sure that a shard lies in the set's folder and is no larger than it looks."""
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{root}: {name!r} is not in this folder; shards of a set have to be")
    hint = "; expected a plain tar file, not a compressed one"
    with _shard(path, "cannot be read", hint) as shard:
        for member in shard:
            if member.size > MOST_BYTES:
                raise InputError(
                    f"{path}: {member.name!r} has {member.size} bytes, more than {MOST_BYTES}"
                )


def _labelled(reader: Any) -> tuple[str, ...]:
    """``0`` to the largest label in the shards of a reader, whose images are passed over."""
    largest, hint = 0, "; class_names in _info.json would tell the classes"
    for name in reader.split_info.filenames:
        with _shard(Path(reader.root) / name, "its labels cannot be read", hint) as shard:
            for member in shard:
                content = shard.extractfile(member) if member.name.endswith(".cls") else None
                if content is not None:
                    largest = max(largest, int(content.read(_LONGEST_LABEL)))
    return numbered_classes(largest, str(reader.root))


@contextmanager
def _counted(title: str, faults: Faults) -> Iterator[None]:
    """Count what timm's reader of shards leaves out; it tells nobody but its log."""

    def counted(record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        reason = record.getMessage().removeprefix("Handling webdataset error (")
        faults.add(f"{title}, {len(faults) + 1}", reason.removesuffix("). Ignoring."))
        return False

    logger = logging.getLogger("timm.data.readers.reader_wds")
    logger.addFilter(counted)
    try:
        yield
    finally:
        logger.removeFilter(counted)
