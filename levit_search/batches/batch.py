"""What training asks of a data set, which images an epoch shows, and what seeds random numbers."""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from levit_search.data import DataInfo, SplitName
from levit_search.image_size import Sides
from levit_search.recipe import Recipe


class Batch(NamedTuple):
    """The views that one training step sees."""

    images: Tensor
    """float32 [B, C, H, W], normalised, on the device."""
    targets: Tensor
    """Labels int64 [B]; where a recipe mixes images, float32 [B, num_classes], smoothed already."""


class Batches(Protocol):
    """A data set ready for training."""

    info: DataInfo
    image_size: int | Sides
    """Of the views in pixels: a side, or (height, width)."""
    data_id: str
    """A hash of the training images as they are stored and of the size they are shown in."""

    mean: list[float]
    """Of each channel, from 0 to 255: what images are normalised by, with ``std``."""
    std: list[float]

    def size(self, split: SplitName) -> int:
        """Images in a split."""

    def labels(self, split: SplitName) -> NDArray[np.int64]:
        """The classes of a split's images, int64 [N]."""

    def fingerprint(self, split: SplitName) -> str:
        """A hash of a split's images, as :func:`levit_search.data.fingerprint` has it."""

    def batch_size(self, recipe: Recipe) -> int:
        """Rows of each batch: fewer than the recipe says only where there are fewer images."""
        return rows(self.size("train"), recipe)

    def steps(self, recipe: Recipe) -> int:
        """Batches of an epoch; what is left over by whole ones is left out."""
        return steps(self.size("train"), recipe)

    def shown(self, epoch: int) -> int:
        """The epoch whose views are shown in ``epoch``: an earlier one where they come again."""
        return epoch

    def train(
        self, seed: int, epoch: int, recipe: Recipe, device: torch.device, first_step: int = 0
    ) -> Iterator[Batch]:
        """The shuffled, augmented training batches of one epoch, from ``first_step`` on.

        Raises:
            InputError: too many images cannot be read.
        """

    def evaluation(
        self, split: SplitName, batch_size: int, device: torch.device, most: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A split in order, without augmentation: images as in a batch, and labels int64 [B].

        With ``most``, so many of its images, evenly spread.

        Raises:
            InputError: too many images cannot be read.
        """

    def stored(self, split: SplitName, index: int) -> bytes | Image.Image:
        """The file of an image, or the decoded picture where it is not kept as a file.

        Raises:
            OSError: it is missing.
        """


class Purpose(IntEnum):
    """Keeps random numbers for one purpose apart from those for another.

    Each is the last of the numbers that seed a generator.
    """

    ORDER = 101
    CROP = 102
    COLOR = 103
    ERASE = 104
    MIX = 105
    PICTURE = 106


def generator(*numbers: int) -> torch.Generator:
    """A generator seeded from all of ``numbers``; seed 0 is a seed like others."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def rows(count: int, recipe: Recipe) -> int:
    """The images of each batch where there are ``count``; an even number if they are paired up."""
    rows = min(recipe.batch_size, count)
    return rows - rows % 2 if recipe.mixup or recipe.cutmix else rows


def steps(count: int, recipe: Recipe) -> int:
    """Whole batches in ``count`` images."""
    return count // rows(count, recipe)


def ordered(count: int, recipe: Recipe, seed: int, epoch: int) -> Tensor:
    """Images of an epoch, int64 [steps, rows], as indices below ``count``.

    With repeated augmentation (Hoffer et al. 2020) as many, but fewer different ones, each repeated
    in a row, as timm's ``RepeatAugSampler`` has them in one process.
    """
    order = torch.randperm(count, generator=generator(seed, epoch, Purpose.ORDER))
    order = order.repeat_interleave(recipe.repeated_augmentation)
    return order[: steps(count, recipe) * rows(count, recipe)].view(-1, rows(count, recipe))


def evenly_spread(size: int, most: int | None) -> Tensor:
    """The indices of ``most`` of so many images, evenly spread; all of them for None."""
    if most is None or most >= size:
        return torch.arange(size)
    return torch.arange(most) * size // most
