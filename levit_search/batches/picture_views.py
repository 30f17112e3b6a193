"""What is done to one decoded picture before it is part of a batch, by timm and torchvision."""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from levit_search.batches.order import generator
from levit_search.batches.rand_augment import UNIFORM_FROM
from levit_search.recipe import RandAugment, Recipe, rand_augment

if TYPE_CHECKING:
    from PIL import Image

View = Callable[["Image.Image"], Tensor]
"""From a picture of any size to uint8 [C, S, S]."""

_WHOLE_BELOW = 128  # pixels; smaller views show a picture to its edge, larger ones its middle


def training_view(recipe: Recipe, size: int, hflip: bool, fill: list[int]) -> View:
    """The augmentation of a recipe that is done image by image; see :func:`chance`.

    Args:
        recipe: the augmentation.
        size: S.
        hflip: whether to mirror every other picture.
        fill: the value of each channel that RandAugment takes beyond a picture's edges.
    """
    from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    steps: list[Any] = [transforms.Resize(size, bicubic), transforms.CenterCrop(size)]
    if recipe.crop == "resized":
        scale = recipe.crop_scale
        steps = [RandomResizedCropAndInterpolation(size, scale, interpolation="bicubic")]
    elif recipe.crop == "shift":
        steps.append(transforms.RandomCrop(size, padding=size // 8))
    if hflip:
        steps.append(transforms.RandomHorizontalFlip())
    policy = rand_augment(recipe.rand_augment)
    if policy is not None:
        steps.append(_rand_augment(policy, fill))
    elif recipe.color_jitter:
        steps.append(transforms.ColorJitter(*[recipe.color_jitter] * 3))
    view: View = transforms.Compose([*steps, MaybePILToTensor()])
    return view


def shown_share(size: int) -> float:
    """Which part of a picture's shorter side an evaluation at ``size`` pixels shows."""
    return 1.0 if size < _WHOLE_BELOW else 0.875


def evaluation_view(size: int, channels: int) -> View:
    """The middle of a picture."""
    from timm.data import create_transform

    view: View = create_transform(
        (channels, size, size),
        interpolation="bicubic",
        crop_pct=shown_share(size),
        use_prefetcher=True,  # leaves the pixels as they are
    )
    return view


def _rand_augment(policy: RandAugment, fill: list[int]) -> Any:
    from PIL import Image
    from timm.data import auto_augment

    std = policy.magnitude_std
    operations = auto_augment.rand_augment_ops(
        policy.magnitude,
        hparams={
            "img_mean": tuple(fill) if len(fill) > 1 else fill[0],
            "interpolation": Image.Resampling.BICUBIC,
            "magnitude_std": math.inf if std > UNIFORM_FROM else std,
        },
        transforms=auto_augment.rand_augment_choices("", policy.is_increasing),
    )
    for operation in operations:
        if operation.name.startswith("Posterize"):
            operation.level_fn = partial(_at_least_one_bit, operation.level_fn)
    return auto_augment.RandAugment(operations, policy.layers)


def _at_least_one_bit(level_to_bits: Any, level: float, hparams: Any) -> tuple[int]:
    """No bit at all would leave a black picture, which Pillow 13 refuses to make."""
    return (max(1, level_to_bits(level, hparams)[0]),)


@contextmanager
def chance(*numbers: int) -> Iterator[None]:
    """Seed what timm and torchvision draw from, and put everything back afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = generator(*numbers).initial_seed()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
