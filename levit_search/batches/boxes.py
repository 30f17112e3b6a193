"""Random boxes within square images."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_ATTEMPTS = 10


class Proportions(NamedTuple):
    """Within which bounds boxes are drawn, as timm does it for crops and for erasing."""

    area: tuple[float, float]
    """The share of the image; any is as likely as another."""
    aspect: tuple[float, float]
    """Height to width; any logarithm is as likely as another."""


def draw_boxes(
    count: int,
    proportions: Proportions,
    size: int,
    largest: int,
    otherwise: int,
    chance: torch.Generator,
) -> Tensor:
    """Boxes int64 [B, 4], anywhere within the image: top, left, height and width in pixels.

    A box that is drawn has at least one pixel.

    Args:
        count: B.
        proportions: of the boxes, up to rounding.
        size: of the image.
        largest: the longest side that a box may have; another is drawn in place of a longer one.
        otherwise: the sides of a box that was drawn ten times in vain.
        chance: where the draws come from.
    """
    sides = torch.zeros(count, 2, dtype=torch.int64)
    missing = torch.arange(count)
    logarithms = [math.log(ratio) for ratio in proportions.aspect]
    for _ in range(_ATTEMPTS):
        area = torch.empty(len(missing)).uniform_(*proportions.area, generator=chance) * size**2
        ratio = torch.empty(len(missing)).uniform_(*logarithms, generator=chance).exp_()
        drawn = torch.stack(((area * ratio).sqrt(), (area / ratio).sqrt()), 1).round_().long()
        sides[missing] = drawn.clamp_min_(1)
        missing = missing[(drawn > largest).any(1)]
        if len(missing) == 0:
            break
    sides[missing] = otherwise
    share = torch.rand(count, 2, generator=chance, dtype=torch.float64)
    return torch.cat(((share * (size - sides + 1)).long(), sides), 1)
