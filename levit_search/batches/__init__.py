"""Batches of normalised images for training and evaluation, the same ones for every candidate.

What a batch of an epoch holds depends on the data, on the recipe's views (``Recipe.views``), the
seed, the epoch and the number of the batch, and on nothing else: a teacher's answer for a batch of
one candidate holds for all, and a run that starts in the middle sees what a whole one does.
"""

import numpy as np

from levit_search.batches.augmentation import generator
from levit_search.batches.batch import Batch, Batches, GeneratedBatches, MemoryBatches
from levit_search.batches.on_disk import DiskBatches
from levit_search.data import Arrays, DataConfig, DataInfo, StoredImages
from levit_search.data.loading import load_described
from levit_search.image_size import Sides, sides

__all__ = ["Batch", "Batches", "generator", "noise_batches", "open_batches"]


def open_batches(config: DataConfig) -> Batches:
    """Load a data set: in memory where it comes as arrays, from its files otherwise.

    Raises:
        InputError: the data is missing or damaged.
    """
    if config.reader == "generated":
        return GeneratedBatches(config)
    info, splits = load_described(config)
    arrays = {name: split for name, split in splits.items() if isinstance(split, Arrays)}
    if arrays:
        return MemoryBatches(info, arrays)
    stored = {name: split for name, split in splits.items() if isinstance(split, StoredImages)}
    return DiskBatches(info, stored, config.image_size or info.image_size)


def noise_batches(info: DataInfo, image_size: int | Sides, count: int) -> Batches:
    """``count`` images of noise that are held in memory, to time training without reading any."""
    rng = np.random.default_rng(0)
    shape = (count, info.in_channels, *sides(image_size))
    noise = Arrays(
        rng.integers(256, size=shape, dtype=np.uint8), np.arange(count) % info.num_classes
    )
    return MemoryBatches(info, {"train": noise, "val": noise, "test": noise})
