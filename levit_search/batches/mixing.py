"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) as timm does them: a batch at once.

Each image is mixed with the one at the same place from the batch's end.
"""

from math import sqrt

import numpy as np
from torch import Tensor

from levit_search.recipe import Recipe


def mix(
    images: Tensor, labels: Tensor, num_classes: int, recipe: Recipe, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Mixed ``images`` [B, C, S, S], in place, and their targets float32 [B, num_classes].

    Args:
        images: float, of an even number.
        labels: int64 [B].
        num_classes: of the targets.
        recipe: the strengths, how often which of the two, and the smoothing of labels.
        seed: all that the draws depend on.
    """
    from timm.data.mixup import mixup_target

    draw = np.random.default_rng(seed)
    cuts = recipe.cutmix > 0 and (recipe.mixup == 0 or draw.random() < recipe.mixup_switch)
    alpha = recipe.cutmix if cuts else recipe.mixup
    share = float(draw.beta(alpha, alpha))
    if cuts:
        top, bottom, left, right = _box(images.shape[-1], 1 - share, draw)
        inside = images[:, :, top:bottom, left:right]
        inside.copy_(inside.flip(0))
        share = 1 - (bottom - top) * (right - left) / images.shape[-1] ** 2
    else:
        images = images.lerp_(images.flip(0), 1 - share)
    return images, mixup_target(labels, num_classes, share, recipe.label_smoothing)


def _box(size: int, area: float, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a square around any pixel, as far as it is in the image."""
    side = int(size * sqrt(area))
    row, column = (int(number) for number in draw.integers(size, size=2))

    def bounds(centre: int) -> tuple[int, int]:
        return max(0, centre - side // 2), min(size, centre + (side + 1) // 2)

    return *bounds(row), *bounds(column)
