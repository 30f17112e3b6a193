"""Batches of normalised images for training and evaluation, the same ones for every candidate.

Order and augmentation depend on (seed, epoch, image) and on nothing else, so that a teacher's
answer for a batch of one candidate holds for all.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from levit_search import data
from levit_search.data import Arrays, DataConfig, DataInfo, Files, Split, SplitName
from levit_search.errors import InputError
from levit_search.recipe import Recipe

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Batches(Protocol):
    """A data set ready for training; images come as float [B, C, S, S], labels as int64 [B]."""

    info: DataInfo

    def size(self, split: SplitName) -> int:
        """Images in a split."""

    def train(self, seed: int, epoch: int, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
        """The shuffled, augmented training batches of one epoch; a last short batch is left out
        unless it is the only one."""

    def evaluation(self, split: SplitName, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A split in order, without augmentation."""


def open_batches(config: DataConfig) -> Batches:
    """Load a data set: in memory where it comes as arrays, from its files otherwise.

    Raises:
        InputError: the data is missing or damaged.
    """
    info, splits = data.describe(config), data.load(config)
    if all(isinstance(split, Arrays) for split in splits.values()):
        return MemoryBatches(info, splits, config.image_size)
    return FileBatches(info, splits, config.image_size)


def generator(*numbers: int) -> torch.Generator:
    """A generator seeded from all of ``numbers``; seed 0 is a seed like others."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


def _shuffled(count: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    order = torch.randperm(count, generator=generator(seed, epoch, 0))
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) < batch_size:
        batches.pop()
    return batches


class MemoryBatches:
    """A small data set held as normalised tensors, augmented a batch at a time."""

    def __init__(self, info: DataInfo, splits: dict[SplitName, Split], image_size: int) -> None:
        self.info = info
        self._images: dict[SplitName, Tensor] = {}
        self._labels: dict[SplitName, Tensor] = {}
        for name, split in splits.items():
            assert isinstance(split, Arrays)
            self._images[name] = _resized(torch.from_numpy(split.images.copy()), image_size)
            self._labels[name] = torch.from_numpy(split.labels)
        train = self._images["train"].float()
        self._mean = train.mean(dim=(0, 2, 3), keepdim=True)
        self._std = train.std(dim=(0, 2, 3), keepdim=True).clamp_min(1e-6)

    def size(self, split: SplitName) -> int:
        return len(self._labels[split])

    def train(self, seed: int, epoch: int, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self._images["train"], self._labels["train"]
        hflip = self.info.hflip if recipe.hflip is None else recipe.hflip
        chance = generator(seed, epoch, 1)
        for indices in _shuffled(len(labels), recipe.batch_size, seed, epoch):
            batch = images[indices]
            if recipe.crop:
                batch = _shifted(batch, images.shape[-1] // 8, chance)
            if hflip:
                batch = _mirrored(batch, chance)
            yield self._normalised(batch), labels[indices]

    def evaluation(self, split: SplitName, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self._images[split], self._labels[split]
        for part, targets in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            yield self._normalised(part), targets

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.float() - self._mean) / self._std


def _resized(images: Tensor, size: int) -> Tensor:
    """uint8 images [N, C, H, W] at ``size`` x ``size``, still uint8."""
    if images.shape[-2:] == (size, size):
        return images
    parts = [
        F.interpolate(part.float(), (size, size), mode="bicubic", antialias=True)
        for part in images.split(1024)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def _shifted(images: Tensor, padding: int, chance: torch.Generator) -> Tensor:
    """Each image [B, C, S, S] cut at random out of itself with a black border of ``padding``."""
    count, _, size, _ = images.shape
    padded = F.pad(images, (padding,) * 4)
    corners = torch.randint(2 * padding + 1, (2, count, 1), generator=chance)
    rows, columns = corners + torch.arange(size)
    every = torch.arange(count)[:, None, None]
    return padded[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _mirrored(images: Tensor, chance: torch.Generator) -> Tensor:
    flip = torch.rand(len(images), 1, 1, 1, generator=chance) < 0.5
    return torch.where(flip, images.flip(-1), images)


class FileBatches:
    """A folder data set: decoded and augmented image by image, by timm's transforms."""

    def __init__(self, info: DataInfo, splits: dict[SplitName, Split], image_size: int) -> None:
        self.info = info
        self._image_size = image_size
        self._files: dict[SplitName, Files] = {}
        for name, split in splits.items():
            assert isinstance(split, Files)
            self._files[name] = split

    def size(self, split: SplitName) -> int:
        return len(self._files[split].labels)

    def train(self, seed: int, epoch: int, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
        files = self._files["train"]
        order = _shuffled(len(files.labels), recipe.batch_size, seed, epoch)
        yield from self._loaded(files, order, self._training_transform(recipe), (seed, epoch))

    def evaluation(self, split: SplitName, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        from timm.data import create_transform

        transform = create_transform(
            (3, self._image_size, self._image_size), mean=IMAGENET_MEAN, std=IMAGENET_STD
        )
        order = list(torch.arange(self.size(split)).split(batch_size))
        yield from self._loaded(self._files[split], order, transform, (0, 0))

    def _training_transform(self, recipe: Recipe) -> Any:
        from timm.data import create_transform

        hflip = self.info.hflip if recipe.hflip is None else recipe.hflip
        return create_transform(
            (3, self._image_size, self._image_size),
            is_training=True,
            scale=(0.08, 1.0) if recipe.crop else (1.0, 1.0),
            hflip=0.5 if hflip else 0.0,
            color_jitter=None,
            interpolation="bicubic",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )

    def _loaded(
        self, files: Files, order: list[Tensor], transform: Any, seeds: tuple[int, int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        loader = torch.utils.data.DataLoader(
            _ImageFiles(files, transform, seeds),
            batch_sampler=[batch.tolist() for batch in order],
            num_workers=torch.get_num_threads() if len(order) > 8 else 0,
            generator=generator(*seeds),
        )
        try:
            yield from loader
        except InputError as error:
            # One raised in a loader's worker comes with that worker's traceback before it.
            last = str(error).strip().splitlines()[-1]
            name = f"{InputError.__module__}.{InputError.__name__}: "
            raise InputError(last.removeprefix(name)) from None


class _ImageFiles(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __init__(self, files: Files, transform: Any, seeds: tuple[int, int]) -> None:
        self._files, self._transform, self._seeds = files, transform, seeds

    def __len__(self) -> int:
        return len(self._files.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        path = self._files.paths[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: not a readable image ({error})") from None
        with _chance(*self._seeds, index):
            return self._transform(image), int(self._files.labels[index])


@contextmanager
def _chance(*numbers: int) -> Iterator[None]:
    """Seed what timm's transforms draw from, and put everything back afterwards."""
    before = random.getstate(), torch.get_rng_state()
    seed = int(generator(*numbers).initial_seed())
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        torch.set_rng_state(before[1])
