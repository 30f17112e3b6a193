"""A folder of class folders of images."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from levit_search.data.config import DataConfig
from levit_search.data.sources import FileSource, Source, formats
from levit_search.data.splits import DataInfo, SplitName
from levit_search.data.survey import LOOKED_AT, headers, survey
from levit_search.errors import InputError
from levit_search.files import expanded
from levit_search.printable import readable_name


def describe_folder(config: DataConfig) -> DataInfo:
    """Classes by their folders; channels and size by a few images of ``train/``.

    Raises:
        InputError: a folder is missing or has fewer than two classes.
    """
    train = _root(config) / "train"
    classes = _class_folders(train)
    few = classes[:: -(-len(classes) // LOOKED_AT)]
    each = -(-LOOKED_AT // len(few))
    names = [f"{name}/{path}" for name in few for path in islice(_below(train / name), each)]
    source = FileSource(train, names, np.zeros(len(names), dtype=np.int64))
    seen = survey(headers(source, range(len(names))))
    if seen is None:
        raise InputError(f"{train}: no readable images in {', '.join(few)}")
    return DataInfo(seen[0], tuple(map(readable_name, classes)), hflip=True, image_size=seen[1])


def folder(config: DataConfig) -> dict[SplitName, Source]:
    """The images of ``train/`` and, as ``test``, those of ``val/``.

    Raises:
        InputError: a folder is missing, a class is empty or unknown.
    """
    root = _root(config)
    classes = _class_folders(root / "train")
    return {"train": _images(root, "train", classes), "test": _images(root, "val", classes)}


def _root(config: DataConfig) -> Path:
    if config.root is None:
        raise InputError(
            "data.root: is required for data.name folder: a folder with train/ and val/, each "
            "with one folder of images for each class"
        )
    root = expanded(config.root)
    for part in ("train", "val"):
        if not (root / part).is_dir():
            raise InputError(
                f"data.root: {root} has no folder {part}/; expected {root}/train/CLASS/*.png and "
                f"{root}/val/CLASS/*.png"
            )
    return root


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in folder.iterdir() if _is_class(entry)))
    if len(names) < 2:
        raise InputError(f"{folder}: needs a folder for each of at least two classes")
    return names


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _images(root: Path, part: str, classes: tuple[str, ...]) -> FileSource:
    """All images of a part in a stable order, with the index of their class folder."""
    folder = root / part
    unknown = sorted({e.name for e in folder.iterdir() if _is_class(e)} - set(classes))
    if unknown:
        raise InputError(f"{folder}: class {unknown[0]!r} is not among those of train/")
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = list(_below(folder / name))
        if not found:
            raise InputError(f"{folder / name}: no images in this class folder")
        names += [f"{part}/{name}/{path}" for path in sorted(found, key=lambda p: p.split("/"))]
        labels += [label] * len(found)
    return FileSource(root, names, np.array(labels, dtype=np.int64))


def _below(folder: Path) -> Iterator[str]:
    """Paths of the images below a folder, relative to it; hidden files and folders are left out."""
    endings = _endings()
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(place, folder).replace(os.sep, "/")
        before = "" if inside == "." else f"{inside}/"
        for name in sorted(files):
            if not name.startswith(".") and name[name.rfind(".") :].lower() in endings:
                yield before + name


def _endings() -> frozenset[str]:
    from PIL import Image

    known, read = Image.registered_extensions(), formats()
    return frozenset(ending for ending, name in known.items() if name in read)
