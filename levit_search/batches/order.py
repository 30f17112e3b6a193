"""Which images an epoch shows in which order, and where its random numbers come from."""

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from levit_search.recipe import Recipe


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


def spread(size: int, most: int | None) -> Tensor:
    """The indices of ``most`` of so many images, evenly spread; all of them for None."""
    if most is None or most >= size:
        return torch.arange(size)
    return torch.arange(most) * size // most
