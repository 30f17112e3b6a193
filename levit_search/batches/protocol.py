"""What training asks of a data set."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from levit_search.batches.order import rows, steps
from levit_search.data import DataInfo, SplitName
from levit_search.recipe import Recipe


class Batch(NamedTuple):
    """The views that one training step sees."""

    images: Tensor
    """float32 [B, C, S, S], normalised, on the device."""
    targets: Tensor
    """Labels int64 [B]; where a recipe mixes images, float32 [B, num_classes], smoothed already."""


class Batches(Protocol):
    """A data set ready for training."""

    info: DataInfo
    image_size: int
    """The side of the views in pixels."""
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
