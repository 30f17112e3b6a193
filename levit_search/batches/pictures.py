"""A data set on disk: decoded and cut image by image in other processes, finished on the device."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from levit_search import data
from levit_search.batches.finish import Finish, Normalization
from levit_search.batches.order import Purpose, ordered, spread
from levit_search.batches.picture_views import View, evaluation_view, training_view
from levit_search.batches.protocol import Batch, Batches
from levit_search.batches.readers import Readers, Request
from levit_search.data import DataInfo, Pictures, Split, SplitName
from levit_search.recipe import Recipe

# Of ImageNet, with values up to 1.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PictureBatches(Batches):
    """Pictures, normalised by ImageNet's colours.

    Those of ``evaluation`` are read by as many workers as the latest training had.
    """

    def __init__(self, info: DataInfo, splits: dict[SplitName, Split], image_size: int) -> None:
        self.info = info
        self.image_size = image_size
        self._pictures: dict[SplitName, Pictures] = {}
        for name, split in splits.items():
            assert isinstance(split, Pictures)
            self._pictures[name] = split
        self.data_id = f"{data.fingerprint(splits['train'])}-{image_size}"
        self.mean, self.std = (
            [255 * value for value in values]
            if info.in_channels == 3
            else [255 * sum(values) / 3] * info.in_channels
            for values in (_MEAN, _STD)
        )
        self._workers = 1
        self._idle: list[tuple[_Kind, Readers]] = []

    def size(self, split: SplitName) -> int:
        return len(self._pictures[split].labels)

    def labels(self, split: SplitName) -> NDArray[np.int64]:
        return self._pictures[split].labels

    def fingerprint(self, split: SplitName) -> str:
        return data.fingerprint(self._pictures[split])

    def train(
        self, seed: int, epoch: int, recipe: Recipe, device: torch.device, first_step: int = 0
    ) -> Iterator[Batch]:
        self._workers = recipe.workers
        order = ordered(self.size("train"), recipe, seed, epoch)
        image = torch.Size((self.info.in_channels, self.image_size, self.image_size))
        normalization = Normalization(self.mean, self.std, device)
        finish = Finish(normalization, image, self.info.num_classes, recipe)
        remaining = range(first_step, len(order))
        requests = (
            [
                Request("train", index, (seed, epoch, place, Purpose.PICTURE))
                for place, index in enumerate(order[step].tolist(), step * order.shape[1])
            ]
            for step in remaining
        )
        read = self._read(requests, recipe, device)
        views = ((step, *batch) for step, batch in zip(remaining, read, strict=True))
        yield from finish.batches(views, seed, epoch, order.numel())

    def evaluation(
        self, split: SplitName, batch_size: int, device: torch.device, most: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        normalized = Normalization(self.mean, self.std, device)
        indices = spread(self.size(split), most).split(batch_size)
        requests = ([Request(split, index, ()) for index in part.tolist()] for part in indices)
        for pixels, labels in self._read(requests, None, device):
            yield normalized(pixels), labels

    def _read(
        self, requests: Iterable[list[Request]], recipe: Recipe | None, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels uint8 [B, C, S, S] and labels [B] on the device; without a recipe as they are."""
        kind = _Kind(recipe, self._workers, device.type == "cuda")
        readers = self._borrowed(kind)
        try:
            for batch in readers.read(requests):
                pixels, labels = (values.to(device, non_blocking=True) for values in batch)
                yield pixels, labels
        finally:
            self._idle = [*(other for other in self._idle if other[0] != kind), (kind, readers)]

    def _borrowed(self, kind: "_Kind") -> Readers:
        """Readers that nobody else has at the moment.

        Idle ones are used again, or ended where they are of another recipe.
        """
        for place, (other, readers) in enumerate(self._idle):
            if other == kind:
                del self._idle[place]
                return readers
        is_evaluation = kind.recipe is None
        self._idle = [(k, r) for k, r in self._idle if (k.recipe is None) != is_evaluation]
        return Readers(self._pictures, self._view(kind.recipe), kind.workers, kind.is_pinned)

    def _view(self, recipe: Recipe | None) -> View:
        if recipe is None:
            return evaluation_view(self.image_size, self.info.in_channels)
        fill = [round(value) for value in self.mean]
        return training_view(recipe, self.image_size, recipe.mirrors(self.info.hflip), fill)


class _Kind(NamedTuple):
    """Which readers can do each other's work."""

    recipe: Recipe | None
    workers: int
    is_pinned: bool
