"""What a data set is split into, and how a part is cut from its training images."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from levit_search.data.config import DataConfig
from levit_search.errors import InputError

SplitName = Literal["train", "val", "test"]

_SPLIT_SEED = 20210402  # any constant: the cut must be the same everywhere and for ever


class DataInfo(NamedTuple):
    """What a network must know of a data set."""

    in_channels: int
    """1 where images are grey, 3 otherwise."""
    class_names: tuple[str, ...]
    hflip: bool
    """Whether a mirrored image still is of its class (digits are not)."""
    image_size: int
    """The data's own size: the side of its squares, or a square near to what it holds."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def cut(
    labels: NDArray[np.int64], indices: NDArray[np.int64], config: DataConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(train, val) indices out of a training part, ``train`` bounded by ``train_images``."""
    train, val = stratified(labels, indices, config.val_share)
    return bounded(labels, train, config), val


def bounded(
    labels: NDArray[np.int64], train: NDArray[np.int64], config: DataConfig
) -> NDArray[np.int64]:
    """``train_images`` of the indices ``train``, each class in proportion."""
    if config.train_images is None or config.train_images >= len(train):
        return train
    surplus = len(train) - config.train_images
    if surplus < len(np.unique(labels)):
        # Fewer to leave out than classes: each class gives up one image at most.
        firsts = np.unique(labels[train], return_index=True)[1][:surplus]
        return np.delete(train, firsts)
    return stratified(labels, train, config.train_images)[1]


def stratified(
    labels: NDArray[np.int64], indices: NDArray[np.int64], part: float | int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rest, part) of ``indices``, each class in proportion; ``part`` is a share or a count."""
    from sklearn.model_selection import train_test_split

    try:
        rest, taken = train_test_split(
            indices, test_size=part, stratify=labels[indices], random_state=_SPLIT_SEED
        )
    except ValueError as error:
        raise InputError(f"data: too few images to split by class ({error})") from None
    return np.sort(rest), np.sort(taken)
