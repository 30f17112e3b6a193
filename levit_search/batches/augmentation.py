"""Augments many images at once, on their device: crops, RandAugment, colours, erasing, mixing.

RandAugment (Cubuk et al. 2020) has timm's operations and levels: each is one pass over the images
that drew it, every one with its own argument, and changes pixels as Pillow does.
Shapes: N images of a set, B of a batch, C channels (grey or RGB), H rows and W columns of pixels.
"""

import math
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from levit_search.image_size import Sides
from levit_search.recipe import RandAugment, Recipe, rand_augment


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


def crop_aspect(size: Sides) -> tuple[float, float]:
    """Height to width of the parts that become views of a size: what they show is stretched along
    an axis by a third at most, in timm as in torchvision."""
    ratio = size[0] / size[1]
    return 3 / 4 * ratio, 4 / 3 * ratio


_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # timm's defaults
_NOISE = 2**20  # random numbers, of which each erased box shows some stretch
_NOISE_SEED = 2020
_ATTEMPTS = 10  # at a box that is not too long
_PIXELS_AT_ONCE = 2**22
_PROBABILITY = 0.5  # of each operation of RandAugment that was drawn; timm's default
UNIFORM_FROM = 100  # a spread beyond this stands for levels anywhere below the magnitude


class Augmentation:
    """Augments images uint8 [N, C, H, W] as a recipe says, on their device."""

    def __init__(self, images: Tensor, recipe: Recipe, hflip: bool, fill: Tensor) -> None:
        self._recipe, self._hflip, self._fill = recipe, hflip, fill
        self._size, self._device = (images.shape[-2], images.shape[-1]), images.device
        height, width = self._size
        self._border = (height // 8, width // 8) if recipe.crop == "shift" else (0, 0)
        self._windows = Windows(images, self._border)
        self._policy = rand_augment(recipe.rand_augment)

    def made(self, indices: Tensor, seed: tuple[int, int, int]) -> Tensor:
        """Views [B, C, H, W] of the images ``indices`` [B], from 0 to 255."""
        count, device = len(indices), self._device
        rng = generator(*seed, Purpose.CROP)
        if self._border[0] == self._border[1]:
            corners = torch.randint(2 * self._border[0] + 1, (count, 2), generator=rng)
        else:
            drawn = [torch.randint(2 * b + 1, (count,), generator=rng) for b in self._border]
            corners = torch.stack(drawn, 1)
        mirrored = torch.rand(count, generator=rng) < 0.5
        views = self._windows.cut(indices, corners, mirrored if self._hflip else None)
        if self._recipe.crop == "resized":
            size, area = self._size, self._recipe.crop_scale
            boxes = draw_boxes(count, area, crop_aspect(size), size, size, size, rng)
            views = resized_boxes(views, boxes.to(device))
        rng = generator(*seed, Purpose.COLOR)
        if self._policy is not None:
            return rand_augmented(views, draw_layers(self._policy, count, rng), self._fill)
        if self._recipe.color_jitter:
            changes = draw_jitter(count, self._recipe.color_jitter, rng)
            return jittered(views, *(values.to(device) for values in changes))
        return views


class Windows:
    """Images uint8 [N, C, H, W], to be cut out at any place up to ``border`` pixels (below and
    above, left and right) beyond.

    What is beyond an image is as the pixels at its edge.
    """

    def __init__(self, images: Tensor, border: Sides) -> None:
        self._view = images.shape[1:]
        channels, height, width = self._view
        rows, columns = (
            torch.arange(-beyond, side + beyond, device=images.device).clamp_(0, side - 1)
            for side, beyond in zip((height, width), border, strict=True)
        )
        self._height, self._width = len(rows), len(columns)
        # Entry i is the line of W pixels that begins at the i-th of all pixels: a view, not a copy.
        self._lines = images[:, :, rows[:, None], columns].flatten().unfold(0, width, 1)
        first = torch.arange(channels)[:, None] * self._height + torch.arange(height)
        self._firsts = (first * self._width).to(images.device)

    def cut(self, indices: Tensor, corners: Tensor, mirrored: Tensor | None) -> Tensor:
        """Views uint8 [B, C, H, W] of the images ``indices`` [B], on their device.

        Each begins at a row and column of the bordered image, ``corners`` int64 [B, 2]; those that
        are ``mirrored``, bool [B] or None for none, are turned left to right. All are on the CPU.
        """
        device = self._lines.device
        if mirrored is not None:  # those to be turned come last, so that they are one slice
            order = mirrored.argsort()
            back = order.argsort().to(device)
            indices, corners = indices[order], corners[order]
        first = (indices * self._view[0] * self._height + corners[:, 0]) * self._width
        starts = (first + corners[:, 1]).to(device)[:, None, None] + self._firsts
        lines = self._lines.index_select(0, starts.flatten())
        views = lines.view(len(indices), *self._view)
        if mirrored is None:
            return views
        turned = views[len(views) - int(mirrored.sum()) :]
        turned.copy_(turned.flip(-1))
        return views.index_select(0, back)


def resized_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """uint8 [B, C, H, W]: of each image its box [B, 4] (top, left, height, width) as the whole.

    It is bicubic as Pillow does it. A crop is never larger than what it becomes, so that nothing
    has to be smoothed away, and each pixel of the view is made of four of the box along each axis.
    An axis is a matrix product.
    """
    at_once = max(1, _PIXELS_AT_ONCE // images[0].numel())
    if len(images) > at_once:
        parts = zip(images.split(at_once), boxes.split(at_once), strict=True)
        return torch.cat([resized_boxes(*part) for part in parts])
    count, channels, height, width = images.shape
    rows, columns = _matrices(height, boxes[:, 0::2]), _matrices(width, boxes[:, 1::2])
    wide = torch.bmm(images.reshape(count, channels * height, width).float(), columns.mT)
    wide = wide.view(count, channels, height, width).transpose(1, 2).reshape(count, height, -1)
    whole = torch.bmm(rows, wide).round_().clamp_(0, 255).to(torch.uint8)
    return whole.view(count, height, channels, width).transpose(1, 2).contiguous()


def _matrices(side: int, spans: Tensor) -> Tensor:
    """float32 [B, S, S] from the pixels of an axis to those of the view, by starts and lengths."""
    starts, lengths = spans.unbind(1)
    all_firsts, all_weights = _taps(side, spans.device)
    firsts = all_firsts.index_select(0, lengths - 1) + starts[:, None]
    # Pixels beyond the image have no weight, wherever it is added.
    places = (firsts[..., None] + torch.arange(4, device=spans.device)).clamp_(0, side - 1)
    weights = all_weights.index_select(0, lengths - 1)
    matrices = weights.new_zeros(len(starts), side, side)
    return matrices.scatter_add_(2, places, weights)


@lru_cache(maxsize=4)
def _taps(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each length of a box up to S and each pixel of the view: the first of the four pixels
    that it is made of, int64 [S, S], and their weights, float32 [S, S, 4]."""
    lengths = torch.arange(1, size + 1, dtype=torch.float64)[:, None]
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * (lengths / size)
    firsts = (centres - 0.5).floor().long() - 1
    pixels = firsts[..., None] + torch.arange(4)
    weights = cubic((pixels + 0.5 - centres[..., None]).abs(), -0.5)
    weights *= (pixels >= 0) & (pixels < lengths[..., None])
    weights /= weights.sum(-1, keepdim=True)
    return firsts.to(device), weights.float().to(device)


def draw_jitter(count: int, strength: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """What :func:`jittered` does to each image: which change first, second and third, int64 [B, 3],
    and by which factors, float32 [B, 3]."""
    order = torch.rand(count, 3, generator=rng).argsort(1)
    factors = torch.empty(count, 3).uniform_(max(0.0, 1 - strength), 1 + strength, generator=rng)
    return order, factors


def jittered(images: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """float32 ``images`` with other brightness (0), contrast (1) and saturation (2).

    All three are blends: with black, with the image's mean grey, with each pixel's grey.
    """
    images = images.float()
    steps = order.T[..., None, None, None], factors.T[..., None, None, None]
    for which, factor in zip(*steps, strict=True):
        luma = gray(images)
        average = luma.mean(dim=(1, 2, 3), keepdim=True)
        base = luma * (which == 2) + average * (which == 1)
        images = blend(base, images, factor)
    return images


def draw_erased(count: int, size: Sides, probability: float, rng: torch.Generator) -> Tensor:
    """Boxes int64 [B, 5]: top, left, height, width, where the noise begins; no height for none."""
    largest = size[0] - 1, size[1] - 1
    boxes = draw_boxes(count, _ERASED_AREA, _ERASED_ASPECT, size, largest, (0, 0), rng)
    boxes[torch.rand(count, generator=rng) >= probability, 2:] = 0
    return torch.cat((boxes, torch.randint(_NOISE, (count, 1), generator=rng)), 1)


def draw_boxes(
    count: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    size: Sides,
    largest: Sides,
    otherwise: Sides,
    rng: torch.Generator,
) -> Tensor:
    """Boxes int64 [B, 4], anywhere within the image: top, left, height and width in pixels.

    A box that is drawn has at least one pixel.

    Args:
        count: B.
        area: bounds of the share of the image, of which any is as likely as another.
        aspect: the same of its height to width, up to rounding, of which any logarithm is.
        size: height and width of the image.
        largest: of a box; another is drawn in place of one that is higher or wider.
        otherwise: of a box that was drawn ten times in vain.
        rng: where the draws come from.
    """
    sides = torch.zeros(count, 2, dtype=torch.int64)
    missing = torch.arange(count)
    logarithms = [math.log(ratio) for ratio in aspect]
    for _ in range(_ATTEMPTS):
        pixels = torch.empty(len(missing)).uniform_(*area, generator=rng) * math.prod(size)
        ratio = torch.empty(len(missing)).uniform_(*logarithms, generator=rng).exp_()
        drawn = torch.stack(((pixels * ratio).sqrt(), (pixels / ratio).sqrt()), 1).round_().long()
        sides[missing] = drawn.clamp_min_(1)
        missing = missing[(drawn > torch.tensor(largest)).any(1)]
        if len(missing) == 0:
            break
    sides[missing] = torch.tensor(otherwise)
    share = torch.rand(count, 2, generator=rng, dtype=torch.float64)
    return torch.cat(((share * (torch.tensor(size) - sides + 1)).long(), sides), 1)


class Op(IntEnum):
    """timm's operations."""

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

    ops: Tensor  # an :class:`Op`, or -1 for nothing, int64 [B]
    arguments: Tensor
    """float64 [B]: degrees, bits, thresholds, factors, or lengths by the image's side."""


def draw_layers(policy: RandAugment, count: int, rng: torch.Generator) -> list[Layer]:
    """What a policy does to ``count`` images."""
    layers = []
    for _ in range(policy.layers):
        ops = torch.randint(len(Op), (count,), generator=rng)
        ops[torch.rand(count, generator=rng) >= _PROBABILITY] = -1
        if policy.magnitude_std > UNIFORM_FROM:
            level = torch.rand(count, generator=rng, dtype=torch.float64) * policy.magnitude
        else:
            spread = torch.randn(count, generator=rng, dtype=torch.float64)
            level = policy.magnitude + policy.magnitude_std * spread
        sign = torch.randint(2, (count,), generator=rng) * 2 - 1
        values = arguments(ops, level.clamp(0, 10) / 10, sign, policy.is_increasing)
        layers.append(Layer(ops, values))
    return layers


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


def rand_augmented(images: Tensor, layers: list[Layer], fill: Tensor) -> Tensor:
    """Changed ``images`` uint8 [B, C, H, W]; beyond their edges is the colour ``fill`` [C]."""
    for layer in layers:
        order = layer.ops.argsort(stable=True)
        images = images.index_select(0, order.to(images.device))
        arguments = layer.arguments[order]
        ends = (layer.ops + 1).bincount(minlength=len(Op) + 1).cumsum(0).tolist()
        for op, first, last in zip(Op, ends, ends[1:], strict=False):
            if first < last:
                part = images[first:last]
                part.copy_(_CHANGES[op](part, arguments[first:last], fill))
        images = images.index_select(0, order.argsort().to(images.device))
    return images


def _auto_contrast(images: Tensor, *_: Tensor) -> Tensor:
    """The darkest value of each channel to 0, the brightest to 255."""
    low, high = (edge.float() for edge in (images.amin((2, 3), True), images.amax((2, 3), True)))
    stretched = (images - low) * (255 / (high - low).clamp_min(1))
    return torch.where(high > low, stretched, images)


def _equalize(images: Tensor, *_: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional  # as long to import as torch

    changed: Tensor = functional.equalize(images)
    return changed


def _posterize(images: Tensor, bits: Tensor, _: Tensor) -> Tensor:
    """Only the ``bits`` highest bits of each value kept."""
    return images - images % 2 ** (8 - _of_each(bits, images))


def _solarize(images: Tensor, threshold: Tensor, _: Tensor) -> Tensor:
    """Values from ``threshold`` on inverted."""
    return torch.where(images < _of_each(threshold, images), images, 255 - images)


def _solarize_add(images: Tensor, added: Tensor, _: Tensor) -> Tensor:
    """Values of the darker half made brighter."""
    return torch.where(images < 128, (images + _of_each(added, images)).clamp_(max=255), images)


def _contrast(images: Tensor, factor: Tensor, _: Tensor) -> Tensor:
    base = gray(images).mean(dim=(1, 2, 3), keepdim=True).round_()
    return blend(base, images, _of_each(factor, images))


def _brightness(images: Tensor, factor: Tensor, _: Tensor) -> Tensor:
    return blend(torch.zeros((), device=images.device), images, _of_each(factor, images))


def _of_each(arguments: Tensor, images: Tensor) -> Tensor:
    """An argument of each image as float32 [B, 1, 1, 1] beside the images."""
    return arguments.float().to(images.device).view(-1, 1, 1, 1)


def _along_x(images: Tensor, arguments: Tensor, fill: Tensor, *, is_sheared: bool) -> Tensor:
    """Sheared, or moved along the lines, each of which is shifted as a whole.

    A new line is made of four stretches of the old one, each with one weight for all its pixels.
    """
    count, channels, rows, size = images.shape
    lines = torch.arange(rows, dtype=torch.float64) + 0.5
    lengths = lines if is_sheared else torch.full_like(lines, size)
    # Pixel x of line y comes from x + offsets [B, H]; beyond that there is nothing to see.
    offsets = (arguments[:, None] * lengths).clamp(-size, size)
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


def _along_y(images: Tensor, arguments: Tensor, fill: Tensor, *, is_sheared: bool) -> Tensor:
    return _along_x(images.mT, arguments, fill, is_sheared=is_sheared).mT


def _rotate(images: Tensor, degrees: Tensor, fill: Tensor) -> Tensor:
    """Turned around the middle, against the clock."""
    angle = torch.deg2rad(degrees.to(images.device).float())
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


def _change_color(images: Tensor, factor: Tensor, _: Tensor) -> Tensor:
    return blend(gray(images).round_(), images, _of_each(factor, images))


def _sharpen(images: Tensor, factor: Tensor, _: Tensor) -> Tensor:
    """Blended with each pixel averaged with its neighbours, itself five times; the border stays."""
    pixels = images.float()
    lines = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
    smooth = pixels.clone()
    smooth[:, :, 1:-1, 1:-1] = (total / 13).round_()
    return blend(smooth, images, _of_each(factor, images))


_CHANGES: dict[Op, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    Op.AUTO_CONTRAST: _auto_contrast,
    Op.EQUALIZE: _equalize,
    Op.INVERT: lambda images, *_: 255 - images,
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: _solarize,
    Op.SOLARIZE_ADD: _solarize_add,
    Op.CONTRAST: _contrast,
    Op.BRIGHTNESS: _brightness,
    Op.SHEAR_X: partial(_along_x, is_sheared=True),
    Op.TRANSLATE_X: partial(_along_x, is_sheared=False),
    Op.SHEAR_Y: partial(_along_y, is_sheared=True),
    Op.TRANSLATE_Y: partial(_along_y, is_sheared=False),
    Op.ROTATE: _rotate,
    Op.COLOR: _change_color,
    Op.SHARPNESS: _sharpen,
}
"""What each makes of images uint8 [B, C, H, W], given an argument for each of them and the fill."""


def gray(images: Tensor) -> Tensor:
    """Luma float32 [B, 1, H, W] (ITU-R 601-2)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().split(1, dim=1)
    luma: Tensor = red.mul(0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return luma


def blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """From ``base`` (factor 0) to ``images`` (factor 1) and beyond, float32, within 0 and 255.

    ``factor`` is float32 [B, 1, 1, 1].
    """
    return ((images.float() - base) * factor).add_(base).clamp_(0, 255)


def cubic(distance: Tensor, slope: float) -> Tensor:
    """Keys' convolution kernel (1981) with the derivative ``slope`` at distance 1."""
    near = ((slope + 2) * distance - (slope + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance - 4
    return torch.where(distance < 1, near, torch.where(distance < 2, slope * far, 0.0))


@lru_cache(maxsize=2)
def _noise(length: int, device: torch.device) -> Tensor:
    """Normal random numbers, always the same ones: every stretch of a length, [n, length]."""
    noise = torch.randn(_NOISE + length, generator=generator(_NOISE_SEED))
    return noise.to(device).unfold(0, length, 1)


def erased(images: Tensor, boxes: Tensor) -> Tensor:
    """Normalised ``images`` float32 [B, C, H, W] with ``boxes`` [B, 5] erased, in place.

    As timm's ``pixel`` mode of random erasing (Zhong et al. 2020); the boxes are on the CPU.
    """
    which, device = boxes[:, 2].nonzero()[:, 0], images.device
    places, boxes = which.to(device), boxes[which].to(device)
    top, left, height, width = boxes[:, :4, None].unbind(1)
    rows, columns = (torch.arange(side, device=device) for side in images.shape[2:])
    inside_rows = (rows >= top) & (rows < top + height)
    inside = inside_rows[:, :, None] & ((columns >= left) & (columns < left + width))[:, None, :]
    noise = _noise(images[0].numel(), device).index_select(0, boxes[:, 4])
    shown = images.index_select(0, places)
    changed = torch.where(inside[:, None], noise.view(-1, *images.shape[1:]), shown)
    return images.index_copy_(0, places, changed)


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
        # In the image's proportions around any pixel, as far as it is in the image.
        height, width = images.shape[-2:]
        bounds = []
        for side in (height, width):
            length, centre = int(side * math.sqrt(1 - share)), int(rng.integers(side))
            bounds += [max(0, centre - length // 2), min(side, centre + (length + 1) // 2)]
        top, bottom, left, right = bounds
        inside = images[:, :, top:bottom, left:right]
        inside.copy_(inside.flip(0))
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        images = images.lerp_(images.flip(0), 1 - share)
    return images, mixup_target(labels, num_classes, share, recipe.label_smoothing)
