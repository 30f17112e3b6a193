"""The last steps of every view, on the device: normalised, erased in part, mixed."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from levit_search.batches.erasing import Eraser, draw_erased
from levit_search.batches.mixing import mix
from levit_search.batches.order import Purpose, generator
from levit_search.batches.protocol import Batch
from levit_search.recipe import Recipe


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
        """float32 of ``pixels`` [B, C, S, S] from 0 to 255."""
        return pixels.to(torch.float32, copy=True).sub_(self._mean).mul_(self._factor)


class Finish:
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
        self._size, self._num_classes, self._recipe = image[-1], num_classes, recipe
        self._eraser = Eraser(image, normalization.device) if recipe.random_erasing else None

    def batches(
        self, views: Iterable[tuple[int, Tensor, Tensor]], seed: int, epoch: int, images: int
    ) -> Iterator[Batch]:
        """The batches of an epoch of so many ``images``.

        ``views`` are (the number of the batch, pixels [B, C, S, S] from 0 to 255, labels [B]) on
        the device.
        """
        recipe = self._recipe
        if self._eraser is not None:
            chance = generator(seed, epoch, Purpose.ERASE)
            boxes = draw_erased(images, self._size, recipe.random_erasing, chance)
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
