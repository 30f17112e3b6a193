"""What is done to batches on the device: normalised, erased in part, mixed.

Shapes: B images of a batch, C channels, H rows and W columns of pixels.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from levit_search.batches.batch import Batch, Purpose, generator
from levit_search.image_size import Sides
from levit_search.recipe import Recipe


class Proportions(NamedTuple):
    """Within which bounds boxes are drawn, as timm does it for crops and for erasing."""

    area: tuple[float, float]
    """The share of the image; any is as likely as another."""
    aspect: tuple[float, float]
    """Height to width; any logarithm is as likely as another."""


def crop_aspect(size: Sides) -> tuple[float, float]:
    """Height to width of the parts that become views of a size: what they show is stretched along
    an axis by a third at most, in timm as in torchvision."""
    ratio = size[0] / size[1]
    return 3 / 4 * ratio, 4 / 3 * ratio


_ERASED = Proportions(area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3))  # timm's defaults
_NOISE = 2**20  # random numbers, of which each box shows some stretch
_NOISE_SEED = 2020
_ATTEMPTS = 10  # at a box that is not too long


class Normalization:
    """Pixels to what a network is given.

    Args:
        mean: of each channel, from 0 to 255.
        std: the same.
        device: where the pixels are.
    """

    def __init__(self, mean: list[float], std: list[float], device: torch.device) -> None:
        self.device = device
        self._mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self._factor = 1 / torch.tensor(std, device=device).view(1, -1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """float32 of ``pixels`` [B, C, H, W] from 0 to 255."""
        return pixels.to(torch.float32, copy=True).sub_(self._mean).mul_(self._factor)


class DeviceTransforms:
    """Makes batches of views, from one epoch to the next.

    Args:
        normalization: the data set's.
        image: channels and sides of a view.
        num_classes: of mixed targets.
        recipe: what is done to views.
    """

    def __init__(
        self, normalization: Normalization, image: torch.Size, num_classes: int, recipe: Recipe
    ) -> None:
        self._normalized = normalization
        self._size = (image[1], image[2])
        self._num_classes, self._recipe = num_classes, recipe
        self._eraser = Eraser(image, normalization.device) if recipe.random_erasing else None

    def batches(
        self, views: Iterable[tuple[int, Tensor, Tensor]], seed: int, epoch: int, images: int
    ) -> Iterator[Batch]:
        """The batches of an epoch of so many ``images``.

        ``views`` are (the number of the batch, pixels [B, C, H, W] from 0 to 255, labels [B]) on
        the device.
        """
        recipe = self._recipe
        if self._eraser is not None:
            rng = generator(seed, epoch, Purpose.ERASE)
            boxes = draw_erased(images, self._size, recipe.random_erasing, rng)
        for step, pixels, labels in views:
            shown = self._normalized(pixels)
            if self._eraser is not None:
                first = step * len(pixels)
                shown = self._eraser(shown, boxes[first : first + len(pixels)])
            if recipe.mixup or recipe.cutmix:
                key = (seed, epoch, step, Purpose.MIX)
                yield Batch(*mix(shown, labels, self._num_classes, recipe, key))
            else:
                yield Batch(shown, labels)


class Eraser:
    """Erases a box in some images, as timm's ``pixel`` mode of random erasing (Zhong et al. 2020).

    Args:
        image: channels and sides of an image.
        device: theirs.
    """

    def __init__(self, image: torch.Size, device: torch.device) -> None:
        self._image = image
        noise = torch.randn(_NOISE + image.numel(), generator=generator(_NOISE_SEED))
        self._patches = noise.to(device).unfold(0, image.numel(), 1)
        self._rows, self._columns = (torch.arange(side, device=device) for side in image[1:])

    def __call__(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Normalised ``images`` float32 [B, C, H, W] with ``boxes`` erased, in place."""
        which = boxes[:, 2].nonzero()[:, 0]
        places, boxes = which.to(images.device), boxes[which].to(images.device)
        top, left, height, width = boxes[:, :4, None].unbind(1)
        rows = (self._rows >= top) & (self._rows < top + height)
        columns = (self._columns >= left) & (self._columns < left + width)
        inside = (rows[:, :, None] & columns[:, None, :])[:, None]
        noise = self._patches.index_select(0, boxes[:, 4]).view(-1, *self._image)
        erased = torch.where(inside, noise, images.index_select(0, places))
        return images.index_copy_(0, places, erased)


def draw_erased(count: int, size: Sides, probability: float, rng: torch.Generator) -> Tensor:
    """Boxes int64 [B, 5]: top, left, height, width, where the noise begins; no height for none."""
    boxes = draw_boxes(count, _ERASED, size, (size[0] - 1, size[1] - 1), (0, 0), rng)
    boxes[torch.rand(count, generator=rng) >= probability, 2:] = 0
    return torch.cat((boxes, torch.randint(_NOISE, (count, 1), generator=rng)), 1)


def draw_boxes(
    count: int,
    proportions: Proportions,
    size: Sides,
    largest: Sides,
    otherwise: Sides,
    rng: torch.Generator,
) -> Tensor:
    """Boxes int64 [B, 4], anywhere within the image: top, left, height and width in pixels.

    A box that is drawn has at least one pixel.

    Args:
        count: B.
        proportions: of the boxes, up to rounding.
        size: height and width of the image.
        largest: of a box; another is drawn in place of one that is higher or wider.
        otherwise: of a box that was drawn ten times in vain.
        rng: where the draws come from.
    """
    sides = torch.zeros(count, 2, dtype=torch.int64)
    missing, area_of_image = torch.arange(count), math.prod(size)
    logarithms = [math.log(ratio) for ratio in proportions.aspect]
    for _ in range(_ATTEMPTS):
        area = torch.empty(len(missing)).uniform_(*proportions.area, generator=rng) * area_of_image
        ratio = torch.empty(len(missing)).uniform_(*logarithms, generator=rng).exp_()
        drawn = torch.stack(((area * ratio).sqrt(), (area / ratio).sqrt()), 1).round_().long()
        sides[missing] = drawn.clamp_min_(1)
        missing = missing[(drawn > torch.tensor(largest)).any(1)]
        if len(missing) == 0:
            break
    sides[missing] = torch.tensor(otherwise)
    share = torch.rand(count, 2, generator=rng, dtype=torch.float64)
    return torch.cat(((share * (torch.tensor(size) - sides + 1)).long(), sides), 1)


def mix(
    images: Tensor, labels: Tensor, num_classes: int, recipe: Recipe, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Mixed ``images`` [B, C, H, W], in place, and their targets float32 [B, num_classes].

    Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) as timm does them, a batch at once: each
    image is mixed with the one at the same place from the batch's end.

    Args:
        images: float, of an even number.
        labels: int64 [B].
        num_classes: of the targets.
        recipe: the strengths, how often which of the two, and the smoothing of labels.
        seed: all that the draws depend on.
    """
    from timm.data.mixup import mixup_target

    rng = np.random.default_rng(seed)
    cuts = recipe.cutmix > 0 and (recipe.mixup == 0 or rng.random() < recipe.mixup_switch)
    alpha = recipe.cutmix if cuts else recipe.mixup
    share = float(rng.beta(alpha, alpha))
    if cuts:
        height, width = images.shape[-2:]
        top, bottom, left, right = _cut_box((height, width), 1 - share, rng)
        inside = images[:, :, top:bottom, left:right]
        inside.copy_(inside.flip(0))
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        images = images.lerp_(images.flip(0), 1 - share)
    return images, mixup_target(labels, num_classes, share, recipe.label_smoothing)


def _cut_box(size: Sides, area: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box in the image's proportions around any pixel, as far as
    it is in the image."""

    def bounds(side: int) -> tuple[int, int]:
        length, centre = int(side * math.sqrt(area)), int(rng.integers(side))
        return max(0, centre - length // 2), min(side, centre + (length + 1) // 2)

    return *bounds(size[0]), *bounds(size[1])
