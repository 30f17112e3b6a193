"""Colours of many images at once, each with a strength of its own, as Pillow changes them.

Images are [B, C, S, S] with values from 0 to 255, in grey or in RGB.
"""

import torch
from torch import Tensor


def gray(images: Tensor) -> Tensor:
    """Luma float32 [B, 1, S, S] (ITU-R 601-2)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().split(1, dim=1)
    luma: Tensor = red.mul(0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return luma


def blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """From ``base`` (factor 0) to ``images`` (factor 1) and beyond, float32, within 0 and 255.

    ``factor`` is float32 [B].
    """
    images = images.float()
    return ((images - base) * factor.view(-1, 1, 1, 1)).add_(base).clamp_(0, 255)


def smoothed(images: Tensor) -> Tensor:
    """Each pixel averaged with its neighbours, itself five times, float32; the border as it is."""
    images = images.float()
    lines = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    inner = images[:, :, 1:-1, 1:-1]
    total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:] + 4 * inner
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (total / 13).round_()
    return smooth


def draw_jitter(count: int, strength: float, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """What :func:`jittered` does to each image: which change first, second and third, int64 [B, 3],
    and by which factors, float32 [B, 3]."""
    order = torch.rand(count, 3, generator=chance).argsort(1)
    factors = torch.empty(count, 3).uniform_(max(0.0, 1 - strength), 1 + strength, generator=chance)
    return order, factors


def jittered(images: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """float32 ``images`` with other brightness (0), contrast (1) and saturation (2).

    All three are blends: with black, with the image's mean grey, with each pixel's grey.
    """
    images = images.float()
    for which, factor in zip(order.T[..., None, None, None], factors.T, strict=True):
        luma = gray(images)
        average = luma.mean(dim=(1, 2, 3), keepdim=True)
        base = luma * (which == 2) + average * (which == 1)
        images = blend(base, images, factor)
    return images
