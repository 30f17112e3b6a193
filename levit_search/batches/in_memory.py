"""A data set in memory, augmented on the device.

Shapes: N images of a set, B of a batch, C channels, H rows and W columns of pixels.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from levit_search import data
from levit_search.batches.batch import Batch, Batches, Purpose, evenly_spread, generator, ordered
from levit_search.batches.device_transforms import (
    DeviceTransforms,
    Normalization,
    Proportions,
    crop_aspect,
    draw_boxes,
)
from levit_search.batches.rand_augment import augmented, blend, cubic, draw_layers, gray
from levit_search.data import (
    Arrays,
    DataConfig,
    DataInfo,
    Decoding,
    Pictures,
    Split,
    SplitName,
    held,
)
from levit_search.data.generated import EPOCH_IMAGES, UNLABELLED, Generated, GeneratedSource
from levit_search.data.sources import Faults
from levit_search.errors import InputError
from levit_search.image_size import Sides, compact, size_text
from levit_search.recipe import Recipe, rand_augment

# What is worked on at once: a small operation takes nearly as long as one on more images.
_IMAGES_AT_ONCE = 1024
_PIXELS_AT_ONCE = 2**22
_VARIED = 1.0  # deviation of a channel that tells something; that of noise in one bit is 0.5
_MOST_DEVIATIONS = 40


class MemoryBatches(Batches):
    """Arrays, normalised by the mean colours of the training images and their spread.

    ``scaled_as_floats`` as in :class:`levit_search.data.Arrays`.
    """

    def __init__(self, info: DataInfo, splits: dict[SplitName, Split]) -> None:
        self.info = info
        self._images: dict[SplitName, Tensor] = {}
        self._labels: dict[SplitName, Tensor] = {}
        self._stored: dict[SplitName, Pictures | None] = {}
        for name, split in splits.items():
            assert isinstance(split, Arrays)
            self._images[name] = torch.from_numpy(np.require(split.images, requirements="W"))
            self._labels[name] = torch.from_numpy(np.require(split.labels, requirements="W"))
            self._stored[name] = split.pictures
        self.image_size = compact(*self._images["train"].shape[-2:])
        self.data_id = f"{data.fingerprint(splits['train'])}-{size_text(self.image_size)}"
        train = splits["train"]
        assert isinstance(train, Arrays)
        self.scaled_as_floats = train.scaled_as_floats
        self.mean, self.std = mean_and_std(self._images["train"].numpy())
        self._latest: tuple[object, _Augmentation, DeviceTransforms] | None = None

    def size(self, split: SplitName) -> int:
        return len(self._labels[split])

    def labels(self, split: SplitName) -> NDArray[np.int64]:
        return self._labels[split].numpy()

    def fingerprint(self, split: SplitName) -> str:
        return data.fingerprint(Arrays(self._images[split].numpy(), self.labels(split)))

    def train(
        self, seed: int, epoch: int, recipe: Recipe, device: torch.device, first_step: int = 0
    ) -> Iterator[Batch]:
        views, transforms = self._made_for(recipe, device)
        order = ordered(self.size("train"), recipe, seed, epoch)
        pixels = order.shape[1] * self._images["train"][0].numel()
        at_once = max(1, min(_IMAGES_AT_ONCE // order.shape[1], _PIXELS_AT_ONCE // pixels))

        def from_first() -> Iterator[tuple[int, Tensor, Tensor]]:
            for number, group in enumerate(order.split(at_once)):
                first = number * at_once
                if first + len(group) <= first_step:
                    continue
                made = views.made(group.flatten(), (seed, epoch, number))
                labels = self._labels["train"][group].to(device)
                parts = zip(made.unflatten(0, group.shape), labels, strict=True)
                for step, (part, targets) in enumerate(parts, first):
                    if step >= first_step:
                        yield step, part, targets

        yield from transforms.batches(from_first(), seed, epoch, order.numel())

    def evaluation(
        self, split: SplitName, batch_size: int, device: torch.device, most: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        normalized = Normalization(self.mean, self.std, device)
        images, labels = self._images[split], self._labels[split]
        for part in evenly_spread(self.size(split), most).split(batch_size):
            yield normalized(images[part].to(device)), labels[part].to(device)

    def stored(self, split: SplitName, index: int) -> bytes | Image.Image:
        pictures = self._stored[split]
        if pictures is not None:
            return pictures.stored(index)
        pixels = self._images[split][index].numpy()
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))

    def _made_for(
        self, recipe: Recipe, device: torch.device
    ) -> tuple["_Augmentation", DeviceTransforms]:
        """What makes the recipe's batches on a device; the latest is kept for the next epoch."""
        key = (recipe, device)
        if self._latest is None or self._latest[0] != key:
            images = self._images["train"].to(device)
            hflip = recipe.mirrors(self.info.hflip)
            fill = torch.tensor(self.mean, device=device).round()
            normalization = Normalization(self.mean, self.std, device)
            transforms = DeviceTransforms(
                normalization, images.shape[1:], self.info.num_classes, recipe
            )
            self._latest = (key, _Augmentation(images, recipe, hflip, fill), transforms)
        return self._latest[1:]


class GeneratedBatches(MemoryBatches):
    """Draws the pictures of an epoch when it begins, and holds them in memory.

    All are normalised by the colours of epoch 0 of seed 0. With ``train_images`` so many different
    ones are shown, in whole epochs, and then the same views in the same order again; as many of
    them as ``memory_limit_mb`` allows are drawn once.
    """

    def __init__(self, config: DataConfig) -> None:
        self._pictures = Generated(config)
        images = config.train_images
        self._passes = None if images is None else max(1, images // EPOCH_IMAGES)
        self._size, self._epoch = config.size, (0, 0)
        self._kept: dict[tuple[int, int], Arrays] = {}
        self._most_bytes = config.memory_limit_mb * 10**6
        sources = self._pictures.sources()
        splits: dict[SplitName, Split] = {name: self._drawn(each) for name, each in sources.items()}
        super().__init__(self._pictures.describe(), splits)

    def _drawn(self, source: GeneratedSource) -> Arrays:
        everything = np.arange(len(source.labels))
        return held(source, everything, Decoding("RGB"), self._size, Faults(0))

    def shown(self, epoch: int) -> int:
        return epoch if self._passes is None else epoch % self._passes

    def train(
        self, seed: int, epoch: int, recipe: Recipe, device: torch.device, first_step: int = 0
    ) -> Iterator[Batch]:
        epoch = self.shown(epoch)
        if self._epoch != (seed, epoch):
            drawn = self._kept.get((seed, epoch))
            if drawn is None:
                drawn = self._drawn(self._pictures.epoch(seed, epoch))
                comes_again = self._passes is not None
                if comes_again and (len(self._kept) + 1) * drawn.images.nbytes <= self._most_bytes:
                    self._kept[seed, epoch] = drawn
            self._images["train"] = torch.from_numpy(drawn.images)
            self._labels["train"] = torch.from_numpy(drawn.labels)
            self._stored["train"] = drawn.pictures
            self._epoch, self._latest = (seed, epoch), None
        if (recipe.mixup or recipe.cutmix) and bool((self._labels["train"] == UNLABELLED).any()):
            raise InputError(
                "train.mixup, train.cutmix: pictures without labels (data.root of generated) "
                "cannot be mixed; set both to 0"
            )
        yield from super().train(seed, epoch, recipe, device, first_step)


class _Augmentation:
    """Augments images uint8 [N, C, H, W] as a recipe says, on their device."""

    def __init__(self, images: Tensor, recipe: Recipe, hflip: bool, fill: Tensor) -> None:
        self._recipe, self._hflip, self._fill = recipe, hflip, fill
        self._size, self._device = (images.shape[-2], images.shape[-1]), images.device
        height, width = self._size
        self._border = (height // 8, width // 8) if recipe.crop == "shift" else (0, 0)
        self._windows = Windows(images, self._border)
        self._resizer = Resizer(self._size, self._device) if recipe.crop == "resized" else None
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
        if self._resizer is not None:
            size = self._size
            proportions = Proportions(self._recipe.crop_scale, crop_aspect(size))
            boxes = draw_boxes(count, proportions, size, size, size, rng)
            views = self._resizer(views, boxes.to(device))
        rng = generator(*seed, Purpose.COLOR)
        if self._policy is not None:
            return augmented(views, draw_layers(self._policy, count, rng), self._fill)
        if self._recipe.color_jitter:
            changes = draw_jitter(count, self._recipe.color_jitter, rng)
            return jittered(views, *(values.to(device) for values in changes))
        return views


def mean_and_std(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean of each channel of images [N, C, H, W], and what to divide the rest by.

    That is the standard deviation. A channel that is the same everywhere, but for noise in its last
    bit, is divided by the mean of the others' deviations, or by 64 where there are no others: it
    tells nothing, and by its own a small change would be a huge input. None of these images becomes
    one of more than 40 either.
    """
    values = np.arange(256)
    at_once = max(1, _PIXELS_AT_ONCE // images[0, 0].size)  # NumPy counts in 64 bits a pixel
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256)
        for first in range(0, len(images), at_once):
            part = images[first : first + at_once, channel]
            counts += np.bincount(part.ravel(), minlength=256)
        means.append(float(values @ counts / counts.sum()))
        distances = values - means[-1]
        furthest = float(np.abs(distances[counts > 0]).max())
        deviation = float(distances**2 @ counts / counts.sum()) ** 0.5
        deviations.append(max(deviation, furthest / _MOST_DEVIATIONS))
    varied = [deviation for deviation in deviations if deviation >= _VARIED]
    usual = sum(varied) / len(varied) if varied else 64.0
    return means, [deviation if deviation >= _VARIED else usual for deviation in deviations]


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
        """Views uint8 [B, C, H, W] on the images' device.

        Args (all on the CPU):
            indices: the images, int64 [B].
            corners: row and column of the bordered image at which each view begins, int64 [B, 2].
            mirrored: which views to turn left to right, bool [B]; None for none of them.
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


class Resizer:
    """Boxes of images resized to the whole, bicubic as Pillow does it.

    A crop is never larger than what it becomes, so that nothing has to be smoothed away, and each
    pixel of the view is made of four of the box along each axis. An axis is a matrix product.
    """

    def __init__(self, size: Sides, device: torch.device) -> None:
        of_side = {side: [part.to(device) for part in _taps(side)] for side in size}
        self._of_axis = [of_side[side] for side in size]
        self._taps = torch.arange(4, device=device)

    def __call__(self, images: Tensor, boxes: Tensor) -> Tensor:
        """uint8 [B, C, H, W]: of each image its box [B, 4] (top, left, height, width)."""
        at_once = max(1, _PIXELS_AT_ONCE // images[0].numel())
        parts = zip(images.split(at_once), boxes.split(at_once), strict=True)
        return torch.cat([self._resized(*part) for part in parts])

    def _resized(self, images: Tensor, boxes: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        rows, columns = (self._matrices(axis, boxes) for axis in (0, 1))
        wide = torch.bmm(images.reshape(count, channels * height, width).float(), columns.mT)
        wide = wide.view(count, channels, height, width).transpose(1, 2).reshape(count, height, -1)
        whole = torch.bmm(rows, wide).round_().clamp_(0, 255).to(torch.uint8)
        return whole.view(count, height, channels, width).transpose(1, 2).contiguous()

    def _matrices(self, axis: int, boxes: Tensor) -> Tensor:
        """float32 [B, S, S] from the S pixels of an axis to those of the view."""
        starts, lengths = boxes[:, axis], boxes[:, axis + 2]
        all_firsts, all_weights = self._of_axis[axis]
        side = len(all_firsts)
        firsts = all_firsts.index_select(0, lengths - 1) + starts[:, None]
        # Pixels beyond the image have no weight, wherever it is added.
        places = (firsts[..., None] + self._taps).clamp_(0, side - 1)
        weights = all_weights.index_select(0, lengths - 1)
        matrices = weights.new_zeros(len(starts), side, side)
        return matrices.scatter_add_(2, places, weights)


def _taps(size: int) -> tuple[Tensor, Tensor]:
    """For each length of a box up to S and each pixel of the view: the first of the four pixels
    that it is made of, int64 [S, S], and their weights, float32 [S, S, 4]."""
    lengths = torch.arange(1, size + 1, dtype=torch.float64)[:, None]
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * (lengths / size)
    firsts = (centres - 0.5).floor().long() - 1
    pixels = firsts[..., None] + torch.arange(4)
    weights = cubic((pixels + 0.5 - centres[..., None]).abs(), -0.5)
    weights *= (pixels >= 0) & (pixels < lengths[..., None])
    return firsts, (weights / weights.sum(-1, keepdim=True)).float()


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
    for which, factor in zip(order.T[..., None, None, None], factors.T, strict=True):
        luma = gray(images)
        average = luma.mean(dim=(1, 2, 3), keepdim=True)
        base = luma * (which == 2) + average * (which == 1)
        images = blend(base, images, factor)
    return images
