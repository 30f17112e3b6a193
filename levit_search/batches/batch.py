"""What training asks of a data set, which images an epoch shows, and data sets held in memory.

Shapes: N images of a set, B of a batch, C channels, H rows and W columns of pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from levit_search.batches.augmentation import (
    Augmentation,
    Purpose,
    draw_erased,
    erased,
    generator,
    mix,
)
from levit_search.data import Arrays, DataConfig, DataInfo, Split, SplitName
from levit_search.data.decoding import Decoding
from levit_search.data.generated import EPOCH_IMAGES, UNLABELLED, Generated, GeneratedSource
from levit_search.data.loading import held
from levit_search.data.sources import Faults
from levit_search.errors import InputError
from levit_search.image_size import Sides, compact, sides, size_text
from levit_search.recipe import Recipe

# What is worked on at once: a small operation takes nearly as long as one on more images.
_IMAGES_AT_ONCE = 1024
_PIXELS_AT_ONCE = 2**22
_VARIED = 1.0  # deviation of a channel that tells something; that of noise in one bit is 0.5
_MOST_DEVIATIONS = 40


class Batch(NamedTuple):
    """The views that one training step sees."""

    images: Tensor
    """float32 [B, C, H, W], normalised, on the device."""
    targets: Tensor
    """Labels int64 [B]; where a recipe mixes images, float32 [B, num_classes], smoothed already."""


class Batches(ABC):
    """A data set ready for training.

    Attributes:
        info: channels and classes.
        image_size: of the views in pixels: a side, or (height, width).
        data_id: a hash of the training images as they are stored and of the size they are shown in.
        mean: of each channel, from 0 to 255: what images are normalised by, with ``std``.
        std: see ``mean``.
    """

    _splits: Mapping[SplitName, Split]

    def __init__(
        self, info: DataInfo, image_size: int | Sides, mean: list[float], std: list[float]
    ) -> None:
        self.info, self.image_size, self.mean, self.std = info, image_size, mean, std
        self.data_id = f"{self.fingerprint('train')}-{size_text(image_size)}"

    def size(self, split: SplitName) -> int:
        """Images in a split."""
        return len(self.labels(split))

    def labels(self, split: SplitName) -> NDArray[np.int64]:
        """The classes of a split's images, int64 [N]."""
        return self._splits[split].labels

    def fingerprint(self, split: SplitName) -> str:
        """A hash of a split's images, as :meth:`levit_search.data.Arrays.fingerprint` has it."""
        return self._splits[split].fingerprint()

    def stored(self, split: SplitName, index: int) -> bytes | Image.Image:
        """The file of an image, or the decoded picture where it is not kept as a file.

        Raises:
            OSError: it is missing.
        """
        return self._splits[split].stored(index)

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
        order = ordered(self.size("train"), recipe, seed, epoch)
        normalized = Normalization(self, device)
        size, probability = sides(self.image_size), recipe.random_erasing
        if probability:
            rng = generator(seed, epoch, Purpose.ERASE)
            boxes = draw_erased(order.numel(), size, probability, rng).view(*order.shape, -1)
        views = self._views(order, seed, epoch, recipe, device, first_step)
        for step, (pixels, labels) in enumerate(views, first_step):
            shown = normalized(pixels)
            if probability:
                shown = erased(shown, boxes[step])
            if recipe.mixup or recipe.cutmix:
                key = (seed, epoch, step, Purpose.MIX)
                yield Batch(*mix(shown, labels, self.info.num_classes, recipe, key))
            else:
                yield Batch(shown, labels)

    def evaluation(
        self, split: SplitName, batch_size: int, device: torch.device, most: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A split in order, without augmentation: images as in a batch, and labels int64 [B].

        With ``most``, so many of its images, evenly spread.

        Raises:
            InputError: too many images cannot be read.
        """
        normalized, size = Normalization(self, device), self.size(split)
        # Evenly spread; all of them where there are no more.
        count = size if most is None else min(most, size)
        indices = torch.arange(count) * size // max(1, count)
        for pixels, labels in self._unchanged(split, indices.split(batch_size), device):
            yield normalized(pixels), labels

    @abstractmethod
    def _views(
        self, order: Tensor, seed: int, epoch: int, recipe: Recipe, device: torch.device, first: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Views [B, C, H, W], 0 to 255, and labels [B], of ``order`` [steps, B] from ``first``."""

    @abstractmethod
    def _unchanged(
        self, split: SplitName, parts: Iterable[Tensor], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same without augmentation, of the indices [B] of each part."""


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


class Normalization:
    """Turns pixels of a data set into what a network is given, on a device."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self._mean = torch.tensor(batches.mean, device=device).view(1, -1, 1, 1)
        self._factor = 1 / torch.tensor(batches.std, device=device).view(1, -1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """float32 of ``pixels`` [B, C, H, W] from 0 to 255."""
        return pixels.to(torch.float32, copy=True).sub_(self._mean).mul_(self._factor)


class MemoryBatches(Batches):
    """Arrays, normalised by the mean colours of the training images and their spread.

    ``scaled_as_floats`` as in :class:`levit_search.data.Arrays`.
    """

    def __init__(self, info: DataInfo, splits: Mapping[SplitName, Arrays]) -> None:
        self._splits: dict[SplitName, Arrays] = dict(splits)
        images = splits["train"].images
        super().__init__(info, compact(*images.shape[-2:]), *mean_and_std(images))
        self.scaled_as_floats = splits["train"].scaled_as_floats
        self._latest: tuple[object, Augmentation] | None = None

    def _views(
        self, order: Tensor, seed: int, epoch: int, recipe: Recipe, device: torch.device, first: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        key, train = (recipe, device), self._splits["train"]
        if self._latest is None or self._latest[0] != key:  # kept from one epoch to the next
            images = torch.from_numpy(train.images).to(device)
            hflip = recipe.mirrors(self.info.hflip)
            fill = torch.tensor(self.mean, device=device).round()
            self._latest = (key, Augmentation(images, recipe, hflip, fill))
        augmentation, all_labels = self._latest[1], torch.from_numpy(train.labels)
        pixels = order.shape[1] * train.images[0].size
        at_once = max(1, min(_IMAGES_AT_ONCE // order.shape[1], _PIXELS_AT_ONCE // pixels))
        for number, group in enumerate(order.split(at_once)):
            seen = max(0, first - number * at_once)  # of this group
            if seen < len(group):
                made = augmentation.made(group.flatten(), (seed, epoch, number))
                labels = all_labels[group].to(device)
                yield from zip(made.unflatten(0, group.shape)[seen:], labels[seen:], strict=True)

    def _unchanged(
        self, split: SplitName, parts: Iterable[Tensor], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        arrays = self._splits[split]
        images, labels = torch.from_numpy(arrays.images), torch.from_numpy(arrays.labels)
        return ((images[part].to(device), labels[part].to(device)) for part in parts)


class GeneratedBatches(MemoryBatches):
    """Draws the pictures of an epoch when it begins, and holds them in memory.

    All are normalised by the colours of epoch 0 of seed 0. With ``train_images`` so many different
    ones are shown, in whole epochs, and then the same views in the same order again; as many of
    them as ``memory_limit_mb`` allows are drawn once.
    """

    def __init__(self, config: DataConfig) -> None:
        self._generated = Generated(config)
        images = config.train_images
        self._passes = None if images is None else max(1, images // EPOCH_IMAGES)
        self._size, self._epoch = config.size, (0, 0)
        self._drawn_before: dict[tuple[int, int], Arrays] = {}
        self._most_bytes = config.memory_limit_mb * 10**6
        splits = {name: self._drawn(each) for name, each in self._generated.sources().items()}
        super().__init__(self._generated.describe(), splits)

    def _drawn(self, source: GeneratedSource) -> Arrays:
        everything = np.arange(len(source.labels))
        return held(source, everything, Decoding("RGB"), self._size, Faults(0))

    def shown(self, epoch: int) -> int:
        return epoch if self._passes is None else epoch % self._passes

    def train(
        self, seed: int, epoch: int, recipe: Recipe, device: torch.device, first_step: int = 0
    ) -> Iterator[Batch]:
        epoch = self.shown(epoch)
        if self._epoch != (seed, epoch):
            kept = self._drawn_before
            drawn = kept.get((seed, epoch)) or self._drawn(self._generated.epoch(seed, epoch))
            comes_again = self._passes is not None
            if comes_again and (len(kept) + 1) * drawn.images.nbytes <= self._most_bytes:
                kept[seed, epoch] = drawn
            self._splits["train"] = drawn
            self._epoch, self._latest = (seed, epoch), None
        if (recipe.mixup or recipe.cutmix) and UNLABELLED in self.labels("train"):
            raise InputError(
                "train.mixup, train.cutmix: pictures without labels (data.root of generated) "
                "cannot be mixed; set both to 0"
            )
        yield from super().train(seed, epoch, recipe, device, first_step)


def mean_and_std(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean of each channel of images [N, C, H, W], and what to divide the rest by.

    That is the standard deviation. A channel that is the same everywhere, but for noise in its last
    bit, is divided by the mean of the others' deviations, or by 64 where there are no others: it
    tells nothing, and by its own a small change would be a huge input. None of these images becomes
    one of more than 40 either.
    """
    values = np.arange(256)
    at_once = max(1, _PIXELS_AT_ONCE // images[0, 0].size)  # NumPy counts in 64 bits a pixel
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256)
        for first in range(0, len(images), at_once):
            part = images[first : first + at_once, channel]
            counts += np.bincount(part.ravel(), minlength=256)
        means.append(float(values @ counts / counts.sum()))
        distances = values - means[-1]
        furthest = float(np.abs(distances[counts > 0]).max())
        deviation = float(distances**2 @ counts / counts.sum()) ** 0.5
        deviations.append(max(deviation, furthest / _MOST_DEVIATIONS))
    varied = [deviation for deviation in deviations if deviation >= _VARIED]
    usual = sum(varied) / len(varied) if varied else 64.0
    return means, [deviation if deviation >= _VARIED else usual for deviation in deviations]
