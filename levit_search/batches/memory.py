"""A data set in memory, augmented on the device."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from levit_search import data
from levit_search.batches.boxes import Proportions, draw_boxes
from levit_search.batches.colors import draw_jitter, jittered
from levit_search.batches.crops import Resizer, Windows
from levit_search.batches.finish import Finish, Normalization
from levit_search.batches.order import Purpose, generator, ordered, spread
from levit_search.batches.protocol import Batch, Batches
from levit_search.batches.rand_augment import augmented, draw_layers
from levit_search.data import Arrays, DataInfo, Split, SplitName
from levit_search.recipe import Recipe, rand_augment

# What is augmented at once: a small operation takes nearly as long as one on more images.
_IMAGES_AT_ONCE = 1024
_PIXELS_AT_ONCE = 2**22
_ASPECT = (3 / 4, 4 / 3)  # of resized crops, in timm as in torchvision


class MemoryBatches(Batches):
    """Arrays, normalised by the mean colours of the training images and their spread.

    ``scaled_as_floats`` as in :class:`levit_search.data.Arrays`.
    """

    def __init__(self, info: DataInfo, splits: dict[SplitName, Split]) -> None:
        self.info = info
        self._images: dict[SplitName, Tensor] = {}
        self._labels: dict[SplitName, Tensor] = {}
        for name, split in splits.items():
            assert isinstance(split, Arrays)
            self._images[name] = torch.from_numpy(np.require(split.images, requirements="W"))
            self._labels[name] = torch.from_numpy(np.require(split.labels, requirements="W"))
        self.image_size = self._images["train"].shape[-1]
        self.data_id = f"{data.fingerprint(splits['train'])}-{self.image_size}"
        train = splits["train"]
        assert isinstance(train, Arrays)
        self.scaled_as_floats = train.scaled_as_floats
        self.mean, self.std = mean_and_std(self._images["train"].numpy())
        self._latest: tuple[object, _Views, Finish] | None = None

    def size(self, split: SplitName) -> int:
        return len(self._labels[split])

    def labels(self, split: SplitName) -> NDArray[np.int64]:
        return self._labels[split].numpy()

    def fingerprint(self, split: SplitName) -> str:
        return data.fingerprint(Arrays(self._images[split].numpy(), self.labels(split)))

    def train(
        self, seed: int, epoch: int, recipe: Recipe, device: torch.device, first_step: int = 0
    ) -> Iterator[Batch]:
        views, finish = self._made_for(recipe, device)
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

        yield from finish.batches(from_first(), seed, epoch, order.numel())

    def evaluation(
        self, split: SplitName, batch_size: int, device: torch.device, most: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        normalized = Normalization(self.mean, self.std, device)
        images, labels = self._images[split], self._labels[split]
        for part in spread(self.size(split), most).split(batch_size):
            yield normalized(images[part].to(device)), labels[part].to(device)

    def _made_for(self, recipe: Recipe, device: torch.device) -> tuple["_Views", Finish]:
        """What makes the recipe's batches on a device; the latest is kept for the next epoch."""
        key = (recipe, device)
        if self._latest is None or self._latest[0] != key:
            images = self._images["train"].to(device)
            hflip = recipe.mirrors(self.info.hflip)
            fill = torch.tensor(self.mean, device=device).round()
            normalization = Normalization(self.mean, self.std, device)
            finish = Finish(normalization, images.shape[1:], self.info.num_classes, recipe)
            self._latest = (key, _Views(images, recipe, hflip, fill), finish)
        return self._latest[1:]


class _Views:
    """Augments images uint8 [N, C, S, S] as a recipe says, on their device."""

    def __init__(self, images: Tensor, recipe: Recipe, hflip: bool, fill: Tensor) -> None:
        self._recipe, self._hflip, self._fill = recipe, hflip, fill
        self._size, self._device = images.shape[-1], images.device
        self._border = self._size // 8 if recipe.crop == "shift" else 0
        self._windows = Windows(images, self._border)
        self._resizer = Resizer(self._size, self._device) if recipe.crop == "resized" else None
        self._policy = rand_augment(recipe.rand_augment)

    def made(self, indices: Tensor, seed: tuple[int, int, int]) -> Tensor:
        """Views [B, C, S, S] of the images ``indices`` [B], from 0 to 255."""
        count, device = len(indices), self._device
        chance = generator(*seed, Purpose.CROP)
        corners = torch.randint(2 * self._border + 1, (count, 2), generator=chance)
        mirrored = torch.rand(count, generator=chance) < 0.5
        views = self._windows.cut(indices, corners, mirrored if self._hflip else None)
        if self._resizer is not None:
            proportions = Proportions(self._recipe.crop_scale, _ASPECT)
            size = self._size
            boxes = draw_boxes(count, proportions, size, size, size, chance)
            views = self._resizer(views, boxes.to(device))
        chance = generator(*seed, Purpose.COLOR)
        if self._policy is not None:
            return augmented(views, draw_layers(self._policy, count, chance), self._fill)
        if self._recipe.color_jitter:
            changes = draw_jitter(count, self._recipe.color_jitter, chance)
            return jittered(views, *(values.to(device) for values in changes))
        return views


def mean_and_std(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of images [N, C, S, S]."""
    values = np.arange(256)
    at_once = max(1, _PIXELS_AT_ONCE // images[0, 0].size)  # NumPy counts in 64 bits a pixel
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256)
        for first in range(0, len(images), at_once):
            part = images[first : first + at_once, channel]
            counts += np.bincount(part.ravel(), minlength=256)
        means.append(float(values @ counts / counts.sum()))
        variance = float((values - means[-1]) ** 2 @ counts / counts.sum())
        deviations.append(max(variance**0.5, 1e-6))
    return means, deviations
