"""Batches of the data set ``generated``: other pictures in every epoch."""

from collections.abc import Iterator

import numpy as np
import torch

from levit_search.batches.batch import Batch
from levit_search.batches.in_memory import MemoryBatches
from levit_search.data import Arrays, DataConfig, Decoding, Split, SplitName, held
from levit_search.data.generated import EPOCH_IMAGES, UNLABELLED, Generated, GeneratedSource
from levit_search.data.sources import Faults
from levit_search.errors import InputError
from levit_search.recipe import Recipe


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
