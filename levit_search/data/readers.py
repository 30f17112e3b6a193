"""Sets that timm's ``create_dataset`` opens: their splits, and their failures explained."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levit_search.data.config import DataConfig
from levit_search.data.sources import first_line
from levit_search.data.splits import SplitName
from levit_search.errors import InputError, did_you_mean
from levit_search.files import expanded

_TRAIN = ("train", "training")
_VAL = ("validation", "val", "valid", "eval", "evaluation", "dev")
_TEST = ("test", "testing")

_MOST_CLASSES = 1_000_000

_PACKAGES = {
    "hfds": ("datasets",),
    "hfids": ("datasets",),
    "wds": ("webdataset",),
    "tfds": ("tensorflow", "tensorflow-datasets"),
}


def created(config: DataConfig, split: str, **options: Any) -> Any:
    """timm's data set for one split.

    Args:
        config: name and, where ``options`` name no other, root of the set.
        split: as the reader calls it.
        options: further arguments of ``timm.data.create_dataset``.

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
    """Turn whatever a reader raises into an error that names the set."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        packages = _PACKAGES.get(config.reader)
        if packages is None:
            raise
        raise InputError(
            f"data.name: {config.name} needs {error.name or 'a package'}, which is not installed; "
            f"pip install {' '.join(packages)}"
        ) from None
    except Exception as error:  # readers and the packages behind them share no root exception
        raise InputError(
            f"data: {config.name} cannot be read: {type(error).__name__}: {first_line(error)}"
        ) from error


def require(package: str, config: DataConfig) -> None:
    """Make sure that an optional package is there.

    Raises:
        InputError: it is not; the message says how to install it.
    """
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"data.name: {config.name} needs {package}, which is not installed; "
            f"pip install {' '.join(_PACKAGES[config.reader])}"
        )


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
    train = config.train_split or _first(_TRAIN, found)
    if train is None:
        raise InputError(
            f"data.train_split: {config.name} has no split called train; it has "
            f"{', '.join(found) or 'no named ones'}"
        )
    if config.test_split == train:
        raise InputError(f"data.test_split: {train!r} is the training split already")
    # Of a split that is used in part, such as train[:90%], the whole is not held out.
    taken = {(name or "").partition("[")[0] for name in (train, config.test_split)}
    own = [n for n in (_first(_VAL, found), _first(_TEST, found)) if n and n not in taken]
    if config.test_split is not None:
        own = [*(name for name in own if name in _VAL), config.test_split]
    names: tuple[SplitName, ...] = ("test",) if len(own) == 1 else ("val", "test")
    return {"train": train, **dict(zip(names, own, strict=False))}


def _first(names: tuple[str, ...], found: Collection[str]) -> str | None:
    return next((name for name in names if name in found), None)


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
    return tuple(str(name) for name in sorted(class_to_index, key=class_to_index.__getitem__))


def numbered_classes(largest: int, where: str) -> tuple[str, ...]:
    """``0`` to the largest label of a set that does not name its classes.

    Raises:
        InputError: there would be more than anybody has.
    """
    if largest >= _MOST_CLASSES:
        raise InputError(f"{where}: label {largest}; more than {_MOST_CLASSES:,} classes are none")
    return tuple(str(number) for number in range(largest + 1))


def spread(count: int, few: int) -> list[int]:
    """``few`` indices spread evenly over ``count``."""
    return np.linspace(0, count - 1, min(few, count)).round().astype(int).tolist() if count else []


def data_folder() -> Path | None:
    """``$LEVIT_SEARCH_DATA``, where it is set."""
    named = os.environ.get("LEVIT_SEARCH_DATA")
    return Path(named) if named else None
