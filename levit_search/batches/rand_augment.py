"""RandAugment (Cubuk et al. 2020) with timm's operations and levels, on many images at once.

Operations of one kind share one pass over the images that drew them, each with its own argument.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from levit_search.batches import lookup
from levit_search.batches.colors import blend, gray, smoothed
from levit_search.batches.warps import lines_shifted, rotated
from levit_search.recipe import RandAugment

_PROBABILITY = 0.5  # of each operation that was drawn; timm's default
UNIFORM_FROM = 100  # a spread beyond this stands for levels anywhere below the magnitude


class Op(IntEnum):
    """timm's operations; those that are applied in one pass stand together."""

    AUTO_CONTRAST = 0
    EQUALIZE = 1
    INVERT = 2
    POSTERIZE = 3
    SOLARIZE = 4
    SOLARIZE_ADD = 5
    CONTRAST = 6
    BRIGHTNESS = 7
    SHEAR_X = 8
    TRANSLATE_X = 9
    SHEAR_Y = 10
    TRANSLATE_Y = 11
    ROTATE = 12
    COLOR = 13
    SHARPNESS = 14


class Layer(NamedTuple):
    """What one layer does to each image."""

    ops: Tensor
    """An :class:`Op`, or -1 for nothing, int64 [B]."""
    arguments: Tensor
    """float64 [B]: degrees, bits, thresholds, factors, or lengths by the image's side."""


def draw_layers(policy: RandAugment, count: int, chance: torch.Generator) -> list[Layer]:
    """What a policy does to ``count`` images."""
    return [_draw_layer(policy, count, chance) for _ in range(policy.layers)]


def _draw_layer(policy: RandAugment, count: int, chance: torch.Generator) -> Layer:
    ops = torch.randint(len(Op), (count,), generator=chance)
    ops[torch.rand(count, generator=chance) >= _PROBABILITY] = -1
    if policy.magnitude_std > UNIFORM_FROM:
        level = torch.rand(count, generator=chance, dtype=torch.float64) * policy.magnitude
    else:
        spread = torch.randn(count, generator=chance, dtype=torch.float64)
        level = policy.magnitude + policy.magnitude_std * spread
    sign = torch.randint(2, (count,), generator=chance) * 2 - 1
    return Layer(ops, arguments(ops, level.clamp(0, 10) / 10, sign, policy.is_increasing))


def arguments(ops: Tensor, level: Tensor, sign: Tensor, is_increasing: bool) -> Tensor:
    """What each operation is given at a level float64 [B] from 0 to 1; ``sign`` is -1 or 1."""
    values = torch.zeros_like(level)
    bits = (4 * level).floor()
    threshold = (256 * level).floor()
    factor = 0.1 + 1.8 * level
    if is_increasing:
        bits, threshold = 4 - bits, 256 - threshold
        factor = (1 + 0.9 * level * sign).clamp_min(0.1)
    scales = {
        Op.ROTATE: 30 * level * sign,
        # No bit at all would leave a black image, which Pillow 13 refuses to make.
        Op.POSTERIZE: bits.clamp_min(1),
        Op.SOLARIZE: threshold,
        Op.SOLARIZE_ADD: (110 * level).floor(),
        **dict.fromkeys((Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS), factor),
        **dict.fromkeys((Op.SHEAR_X, Op.SHEAR_Y), 0.3 * level * sign),
        **dict.fromkeys((Op.TRANSLATE_X, Op.TRANSLATE_Y), 0.45 * level * sign),
    }
    for op, scaled in scales.items():
        values = torch.where(ops == op, scaled, values)
    return values


def augmented(images: Tensor, layers: list[Layer], fill: Tensor) -> Tensor:
    """Changed ``images`` uint8 [B, C, S, S]; beyond their edges is the colour ``fill`` [C]."""
    for layer in layers:
        order = layer.ops.argsort(stable=True)
        images = images.index_select(0, order.to(images.device))
        ops, arguments = layer.ops[order], layer.arguments[order]
        for first, last, change in _PASSES:
            low, high = torch.searchsorted(ops, torch.tensor([first, last + 1])).tolist()
            if low < high:
                part = images[low:high]
                part.copy_(change(part, Layer(ops[low:high], arguments[low:high]), fill))
        images = images.index_select(0, order.argsort().to(images.device))
    return images


def _look_up(images: Tensor, layer: Layer, _: Tensor) -> Tensor:
    count, channels = images.shape[:2]
    tables = torch.empty(count, channels, 256, dtype=torch.uint8, device=images.device)
    values = layer.arguments.float().to(images.device)
    ends = layer.ops.bincount(minlength=len(_TABLES)).cumsum(0).tolist()
    for low, high, make in zip([0, *ends], ends, _TABLES, strict=False):
        if low < high:
            tables[low:high] = make(images[low:high], values[low:high])
    return lookup.applied(tables, images)


def _along_x(images: Tensor, layer: Layer, fill: Tensor) -> Tensor:
    size = images.shape[-1]
    is_sheared = (layer.ops == Op.SHEAR_X) | (layer.ops == Op.SHEAR_Y)
    lines = torch.arange(size, dtype=torch.float64) + 0.5
    lengths = torch.where(is_sheared[:, None], lines, float(size))
    return lines_shifted(images, layer.arguments[:, None] * lengths, fill)


def _along_y(images: Tensor, layer: Layer, fill: Tensor) -> Tensor:
    return _along_x(images.mT, layer, fill).mT


def _rotate(images: Tensor, layer: Layer, fill: Tensor) -> Tensor:
    return rotated(images, layer.arguments.to(images.device), fill)


def _change_color(images: Tensor, layer: Layer, _: Tensor) -> Tensor:
    base = gray(images).round_()
    return blend(base, images, layer.arguments.float().to(images.device))


def _sharpen(images: Tensor, layer: Layer, _: Tensor) -> Tensor:
    return blend(smoothed(images), images, layer.arguments.float().to(images.device))


_TABLES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lookup.auto_contrast,
    lookup.equalize,
    lookup.invert,
    lookup.posterize,
    lookup.solarize,
    lookup.solarize_add,
    lookup.contrast,
    lookup.brightness,
)
_PASSES: tuple[tuple[Op, Op, Callable[[Tensor, Layer, Tensor], Tensor]], ...] = (
    (Op.AUTO_CONTRAST, Op.BRIGHTNESS, _look_up),
    (Op.SHEAR_X, Op.TRANSLATE_X, _along_x),
    (Op.SHEAR_Y, Op.TRANSLATE_Y, _along_y),
    (Op.ROTATE, Op.ROTATE, _rotate),
    (Op.COLOR, Op.COLOR, _change_color),
    (Op.SHARPNESS, Op.SHARPNESS, _sharpen),
)
