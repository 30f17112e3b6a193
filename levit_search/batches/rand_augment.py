"""RandAugment (Cubuk et al. 2020) with timm's operations and levels, on many images at once.

Operations of one kind share one pass over the images that drew them, each with its own argument.
They change pixels as Pillow does. Shapes: B images, C channels (grey or RGB), H rows and W columns
of pixels.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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


def draw_layers(policy: RandAugment, count: int, rng: torch.Generator) -> list[Layer]:
    """What a policy does to ``count`` images."""
    return [_draw_layer(policy, count, rng) for _ in range(policy.layers)]


def _draw_layer(policy: RandAugment, count: int, rng: torch.Generator) -> Layer:
    ops = torch.randint(len(Op), (count,), generator=rng)
    ops[torch.rand(count, generator=rng) >= _PROBABILITY] = -1
    if policy.magnitude_std > UNIFORM_FROM:
        level = torch.rand(count, generator=rng, dtype=torch.float64) * policy.magnitude
    else:
        spread = torch.randn(count, generator=rng, dtype=torch.float64)
        level = policy.magnitude + policy.magnitude_std * spread
    sign = torch.randint(2, (count,), generator=rng) * 2 - 1
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
    """Changed ``images`` uint8 [B, C, H, W]; beyond their edges is the colour ``fill`` [C]."""
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
    return _applied(tables, images)


def _along_x(images: Tensor, layer: Layer, fill: Tensor) -> Tensor:
    rows, columns = images.shape[-2:]
    is_sheared = (layer.ops == Op.SHEAR_X) | (layer.ops == Op.SHEAR_Y)
    lines = torch.arange(rows, dtype=torch.float64) + 0.5
    lengths = torch.where(is_sheared[:, None], lines, float(columns))
    return _lines_shifted(images, layer.arguments[:, None] * lengths, fill)


def _along_y(images: Tensor, layer: Layer, fill: Tensor) -> Tensor:
    return _along_x(images.mT, layer, fill).mT


def _rotate(images: Tensor, layer: Layer, fill: Tensor) -> Tensor:
    return _rotated(images, layer.arguments.to(images.device), fill)


def _change_color(images: Tensor, layer: Layer, _: Tensor) -> Tensor:
    base = gray(images).round_()
    return blend(base, images, layer.arguments.float().to(images.device))


def _sharpen(images: Tensor, layer: Layer, _: Tensor) -> Tensor:
    return blend(_smoothed(images), images, layer.arguments.float().to(images.device))


def _applied(tables: Tensor, images: Tensor) -> Tensor:
    """Images uint8 [B, C, H, W] seen through their tables [B, C, 256]."""
    return tables.gather(2, images.flatten(2).long()).view(images.shape)


def _auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """The darkest value of each channel to 0, the brightest to 255."""
    pixels = images.flatten(2)
    low, high = (edge.float()[..., None] for edge in (pixels.amin(2), pixels.amax(2)))
    values = _values(images)
    stretched = (values - low) * (255 / (high - low).clamp_min(1))
    return _as_table(torch.where(high > low, stretched, values))


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Each channel with its values spread so that as many pixels have each of them."""
    pixels = images.flatten(2).long()
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    brightest = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    spread = (below + step // 2) // step.clamp_min(1)
    return torch.where(step > 0, spread, _values(images).long()).clamp_(0, 255).to(torch.uint8)


def _invert(images: Tensor, _: Tensor) -> Tensor:
    return _as_table(255 - _values(images).expand(*images.shape[:2], 256))


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Only the ``bits`` highest bits of each value kept."""
    step = 2 ** (8 - bits.view(-1, 1, 1))
    values = _values(images)
    return _as_table((values - values % step).expand(*images.shape[:2], 256))


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Values from ``threshold`` on inverted."""
    values = _values(images)
    changed = torch.where(values < threshold.view(-1, 1, 1), values, 255 - values)
    return _as_table(changed.expand(*images.shape[:2], 256))


def _solarize_add(images: Tensor, added: Tensor) -> Tensor:
    """Values of the darker half made brighter."""
    values = _values(images)
    changed = torch.where(values < 128, values + added.view(-1, 1, 1), values).clamp(max=255)
    return _as_table(changed.expand(*images.shape[:2], 256))


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blended(gray(images).mean(dim=(1, 2, 3), keepdim=True).round_(), images, factor)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _blended(torch.zeros(1, 1, 1, 1, device=images.device), images, factor)


def _blended(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    tables = blend(base, _values(images)[None], factor)
    return _as_table(tables[:, 0].expand(*images.shape[:2], 256))


def _values(images: Tensor) -> Tensor:
    """Each value a pixel may have, float32 [1, 1, 256]."""
    return torch.arange(256, dtype=torch.float32, device=images.device).view(1, 1, 256)


def _as_table(values: Tensor) -> Tensor:
    return values.to(torch.uint8)


_TABLES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _auto_contrast,
    _equalize,
    _invert,
    _posterize,
    _solarize,
    _solarize_add,
    _contrast,
    _brightness,
)
_PASSES: tuple[tuple[Op, Op, Callable[[Tensor, Layer, Tensor], Tensor]], ...] = (
    (Op.AUTO_CONTRAST, Op.BRIGHTNESS, _look_up),
    (Op.SHEAR_X, Op.TRANSLATE_X, _along_x),
    (Op.SHEAR_Y, Op.TRANSLATE_Y, _along_y),
    (Op.ROTATE, Op.ROTATE, _rotate),
    (Op.COLOR, Op.COLOR, _change_color),
    (Op.SHARPNESS, Op.SHARPNESS, _sharpen),
)


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


def _smoothed(images: Tensor) -> Tensor:
    """Each pixel averaged with its neighbours, itself five times, float32; the border as it is."""
    images = images.float()
    lines = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    inner = images[:, :, 1:-1, 1:-1]
    total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:] + 4 * inner
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = (total / 13).round_()
    return smooth


def _lines_shifted(images: Tensor, offsets: Tensor, fill: Tensor) -> Tensor:
    """uint8 [B, C, H, W]: pixel x of line y comes from x + ``offsets`` [B, H] of that line.

    A shear or a move along the lines shifts each of them as a whole: the new line is made of four
    stretches of the old one, each with one weight for all of its pixels.
    """
    count, channels, rows, size = images.shape
    offsets = offsets.clamp(-size, size)  # beyond that there is nothing to see
    first = offsets.floor()
    weights = cubic(((offsets - first)[..., None] - torch.arange(-1, 3)).abs(), -1.0)
    border = size + 2
    width = size + 2 * border
    padded = F.pad(images.float(), (border, border, 0, 0), mode="replicate")
    places = torch.arange(count * channels * rows).view(count, channels, rows) * width
    places += (first.long() + (border - 1))[:, None]
    device = images.device
    weights, places = weights[:, None].float().to(device), places.flatten().to(device)
    stretches = padded.flatten().unfold(0, size + 3, 1).index_select(0, places)
    stretches = stretches.view(count, channels, rows, size + 3)
    shifted = stretches[..., :size] * weights[..., :1]
    for tap in (1, 2, 3):
        shifted.addcmul_(stretches[..., tap : tap + size], weights[..., tap : tap + 1])
    inside = torch.arange(size) + 0.5 + offsets[..., None]
    return _filled(shifted, ((inside >= 0) & (inside < size)).to(device), fill)


def _rotated(images: Tensor, degrees: Tensor, fill: Tensor) -> Tensor:
    """uint8 [B, C, H, W] turned around the middle, against the clock by ``degrees`` [B]."""
    angle = torch.deg2rad(degrees.float())
    cosine, sine = angle.cos(), angle.sin()
    zero = torch.zeros_like(angle)
    height, width = images.shape[-2:]
    # Both axes reach from -1 to 1, whatever they are in pixels.
    across, down = sine * (height / width), sine * (width / height)
    rows = torch.stack((cosine, -across, zero, down, cosine, zero), 1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    turned = F.grid_sample(
        images.float(), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    return _filled(turned, ((grid >= -1) & (grid < 1)).all(-1), fill)


def _filled(values: Tensor, inside: Tensor, fill: Tensor) -> Tensor:
    """uint8 of ``values`` where they are ``inside`` [B, H, W]."""
    fill = fill.view(1, -1, 1, 1)
    values = values.round_().clamp_(0, 255)
    return values.sub_(fill).mul_(inside[:, None]).add_(fill).to(torch.uint8)


def cubic(distance: Tensor, slope: float) -> Tensor:
    """Keys' convolution kernel (1981) with the derivative ``slope`` at distance 1."""
    near = ((slope + 2) * distance - (slope + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance - 4
    return torch.where(distance < 1, near, torch.where(distance < 2, slope * far, 0.0))
