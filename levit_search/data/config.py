"""What a user writes about the data."""

from typing import Annotated

from pydantic import Field, field_validator

from levit_search import plugins
from levit_search.configuration import Count, Frozen
from levit_search.errors import did_you_mean

BUILT_IN = ("digits", "fashion-mnist", "folder")
TORCH_SETS = (
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "image_folder",
    "imagenet",
    "inaturalist",
    "kmnist",
    "mnist",
    "places365",
)
_READERS = ("hfds", "hfids", "wds", "tfds")
_KNOWN = (
    *BUILT_IN,
    *(f"torch/{name}" for name in TORCH_SETS),
    *(f"{reader}/NAME" for reader in _READERS),
)

SplitText = Annotated[str, Field(min_length=1)]


class DataConfig(Frozen):
    """Which images, at which size.

    ``name`` is ``digits``, ``fashion-mnist``, ``folder`` (``root`` has ``train/`` and ``val/``,
    each with a folder of images for each class) or what timm's ``create_dataset`` reads:
    torchvision's as ``torch/cifar10``, Hugging Face's as ``hfds/NAME`` (on disk) or ``hfids/NAME``
    (a stream), ``wds/NAME`` (tar shards in ``root``) and ``tfds/NAME``. ``train_split`` and
    ``test_split`` name such a set's splits where they are not called train, validation or test.
    Other names are those of :mod:`levit_search.plugins`.

    ``image_size`` is the side of the square that every image is brought to; null is the data's own,
    as :func:`levit_search.data.describe` gives it.

    ``val_share`` is the part of the training images that becomes ``val`` where a set brings no
    validation and test split of its own; ``train_images`` bounds how many of the rest are fitted on
    (a stratified choice), for searches that need not see all.

    Images are held in memory if all of them take no more than ``memory_limit_mb`` (of 10**6
    bytes) at ``image_size``, or as ``in_memory`` says; training takes up to three times that. In
    memory they are normalised by their own colours and evaluated whole, on disk by ImageNet's
    and, from 128 px on, by their middle (0.875 of a side), so that figures of the two are not the
    same. At most ``max_unreadable`` of them may be unreadable.
    """

    name: str = "digits"
    root: str | None = None
    image_size: Annotated[int, Field(strict=True, ge=4, le=4096)] | None = None
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    train_images: Count | None = None
    in_memory: bool | None = None
    memory_limit_mb: Count = 1024
    max_unreadable: Annotated[int, Field(strict=True, ge=0, le=10**9)] = 10
    train_split: SplitText | None = None
    test_split: SplitText | None = None

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        reader, _, rest = name.partition("/")
        if name in _KNOWN[: -len(_READERS)] or (reader in _READERS and rest):
            return name
        plugged = plugins.installed("levit_search.data")
        if name in plugged:
            return name
        raise ValueError(f"unknown data set {name!r}; {did_you_mean(name, [*_KNOWN, *plugged])}")

    @property
    def reader(self) -> str:
        """The name's part before the slash, or all of it."""
        return self.name.partition("/")[0]

    @property
    def size(self) -> int:
        """The side of the square images in pixels, of a configuration that states it."""
        assert self.image_size is not None, "image_size is to be resolved first"
        return self.image_size
