"""Changes that send each value of a pixel to another, as tables: [B, C, 256], uint8.

They follow Pillow's ``ImageOps`` and ``ImageEnhance``, with an argument for each image [B].
"""

import torch
from torch import Tensor

from levit_search.batches.colors import blend, gray


def applied(tables: Tensor, images: Tensor) -> Tensor:
    """Images uint8 [B, C, S, S] seen through their tables [B, C, 256]."""
    return tables.gather(2, images.flatten(2).long()).view(images.shape)


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """The darkest value of each channel to 0, the brightest to 255."""
    pixels = images.flatten(2)
    low, high = (edge.float()[..., None] for edge in (pixels.amin(2), pixels.amax(2)))
    values = _values(images)
    stretched = (values - low) * (255 / (high - low).clamp_min(1))
    return _as_table(torch.where(high > low, stretched, values))


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Each channel with its values spread so that as many pixels have each of them."""
    pixels = images.flatten(2).long()
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    brightest = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    spread = (below + step // 2) // step.clamp_min(1)
    return torch.where(step > 0, spread, _values(images).long()).clamp_(0, 255).to(torch.uint8)


def invert(images: Tensor, _: Tensor) -> Tensor:
    return _as_table(255 - _values(images).expand(*images.shape[:2], 256))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Only the ``bits`` highest bits of each value kept."""
    step = 2 ** (8 - bits.view(-1, 1, 1))
    values = _values(images)
    return _as_table((values - values % step).expand(*images.shape[:2], 256))


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Values from ``threshold`` on inverted."""
    values = _values(images)
    changed = torch.where(values < threshold.view(-1, 1, 1), values, 255 - values)
    return _as_table(changed.expand(*images.shape[:2], 256))


def solarize_add(images: Tensor, added: Tensor) -> Tensor:
    """Values of the darker half made brighter."""
    values = _values(images)
    changed = torch.where(values < 128, values + added.view(-1, 1, 1), values).clamp(max=255)
    return _as_table(changed.expand(*images.shape[:2], 256))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blended(gray(images).mean(dim=(1, 2, 3), keepdim=True).round_(), images, factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _blended(torch.zeros(1, 1, 1, 1, device=images.device), images, factor)


def _blended(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    tables = blend(base, _values(images)[None], factor)
    return _as_table(tables[:, 0].expand(*images.shape[:2], 256))


def _values(images: Tensor) -> Tensor:
    """Each value a pixel may have, float32 [1, 1, 256]."""
    return torch.arange(256, dtype=torch.float32, device=images.device).view(1, 1, 256)


def _as_table(values: Tensor) -> Tensor:
    return values.to(torch.uint8)
