"""Hugging Face's data sets on disk, opened by timm as ``hfds/NAME``."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from levit_search.data.config import DataConfig
from levit_search.data.readers import (
    chosen_splits,
    class_labels,
    created,
    explained,
    named_classes,
    numbered_classes,
    require,
    spread,
)
from levit_search.data.sources import Source, file_size, opened
from levit_search.data.splits import DataInfo, SplitName
from levit_search.data.survey import LOOKED_AT, headers, survey
from levit_search.errors import InputError
from levit_search.files import expanded

if TYPE_CHECKING:
    from PIL import Image


class RowSource:
    """The rows of one split, decoded one by one.

    Args:
        title: the set and its split, for messages.
        reader: timm's reader.
        columns: those of the image and of the label.
        labels: int64 [N].
    """

    def __init__(
        self, title: str, reader: Any, columns: tuple[str, str], labels: NDArray[np.int64]
    ) -> None:
        self.labels = labels
        self._title, self._reader, self._image = title, reader, columns[0]

    def name(self, index: int) -> str:
        return f"{self._title}[{index}]"

    def where(self, index: int) -> str:
        path = self._reader.filename(index)
        return f"{self.name(index)} ({path})" if path else self.name(index)

    def open(self, index: int) -> "Image.Image":
        return opened(io.BytesIO(self.content(index)))

    def content(self, index: int) -> bytes:
        with self._reader[index][0] as file:
            content: bytes = file.read()
        return content

    def sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        import pyarrow.compute as compute

        tables = self._reader.dataset.select_columns([self._image]).with_format("arrow")
        lengths: list[int] = []
        for table in tables.iter(batch_size=1024):
            column = table.column(self._image)
            within = compute.binary_length(compute.struct_field(column, "bytes")).to_pylist()
            paths = compute.struct_field(column, "path").to_pylist()
            lengths += [
                file_size(Path(path or "")) if length is None else length
                for length, path in zip(within, paths, strict=True)
            ]
        return np.array(lengths, dtype=np.int64)[indices]


def describe_rows(config: DataConfig) -> DataInfo:
    """Classes by the label's column, channels and size by a few images.

    Raises:
        InputError: the set cannot be read.
    """
    splits, columns = splits_and_columns(config)
    reader = _reader(config, splits["train"], columns)
    values = _values(reader, columns[1])
    classes = named_classes(reader.class_to_idx)
    if not classes and values.dtype.kind in "iub":
        classes = numbered_classes(int(values.max(initial=0)), config.name)
    elif not classes:
        classes = tuple(sorted({str(value) for value in values.tolist()}))
    source = RowSource(config.name, reader, columns, np.zeros(len(values), dtype=np.int64))
    with explained(config):
        seen = survey(headers(source, spread(len(values), LOOKED_AT)))
    if seen is None:
        raise InputError(f"data: {config.name} {splits['train']}: no readable images")
    return DataInfo(seen[0], classes, hflip=True, image_size=seen[1])


def row_sources(config: DataConfig, info: DataInfo) -> dict[SplitName, Source]:
    """The set's own splits.

    Raises:
        InputError: the set cannot be read, or has labels that are no classes.
    """
    splits, columns = splits_and_columns(config)
    sources: dict[SplitName, Source] = {}
    for name, split in splits.items():
        reader, title = _reader(config, split, columns), f"{config.name} {split}"
        labels = class_labels(_values(reader, columns[1]), info.class_names, title)
        sources[name] = RowSource(title, reader, columns, labels)
    return sources


def splits_and_columns(config: DataConfig) -> tuple[dict[SplitName, str], tuple[str, str]]:
    """The splits to read, and the columns of the image and its label.

    The columns are ``image`` and ``label``, or else the only one of images and the first of class
    labels. A set on disk is prepared where its features are not known before.

    Raises:
        InputError: the set cannot be read, or has no such columns.
    """
    require("datasets", config)
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
    if features and "image" not in features and len(images) != 1:
        raise InputError(
            f"data: {config.name} has no column of images; its columns are {', '.join(features)}"
        )
    if features and "label" not in features and not labels:
        raise InputError(
            f"data: {config.name} has no column of labels; its columns are {', '.join(features)}"
        )
    image = "image" if not features or "image" in features else images[0]
    label = "label" if not features or "label" in features else labels[0]
    return chosen_splits([str(name) for name in found], config), (image, label)


def _reader(config: DataConfig, split: str, columns: tuple[str, str]) -> Any:
    return created(config, split, input_key=columns[0], target_key=columns[1]).reader


def _values(reader: Any, column: str) -> NDArray[Any]:
    rows = reader.dataset.select_columns([column]).with_format("numpy")
    return np.asarray(rows[:][column])
