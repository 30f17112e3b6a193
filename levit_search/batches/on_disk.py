"""A data set on disk: decoded and cut image by image in other processes, finished on the device."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from levit_search import data
from levit_search.batches.batch import Batch, Batches, Purpose, evenly_spread, generator, ordered
from levit_search.batches.device_transforms import DeviceTransforms, Normalization
from levit_search.batches.rand_augment import UNIFORM_FROM
from levit_search.data import DataInfo, Pictures, Split, SplitName
from levit_search.errors import InputError
from levit_search.recipe import RandAugment, Recipe, rand_augment

Transform = Callable[[Image.Image], Tensor]
"""From a picture of any size to uint8 [C, S, S]."""

# Of ImageNet, with values up to 1.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WHOLE_BELOW = 128  # pixels; smaller views show a picture to its edge, larger ones its middle


class ViewRequest(NamedTuple):
    """One view to be made."""

    split: SplitName
    picture: int
    seed: tuple[int, ...]
    """What its random numbers depend on."""


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
        self._idle: list[tuple[_LoaderKey, PictureLoader]] = []

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
        transforms = DeviceTransforms(normalization, image, self.info.num_classes, recipe)
        remaining = range(first_step, len(order))
        requests = (
            [
                ViewRequest("train", index, (seed, epoch, place, Purpose.PICTURE))
                for place, index in enumerate(order[step].tolist(), step * order.shape[1])
            ]
            for step in remaining
        )
        read = self._read(requests, recipe, device)
        views = ((step, *batch) for step, batch in zip(remaining, read, strict=True))
        yield from transforms.batches(views, seed, epoch, order.numel())

    def evaluation(
        self, split: SplitName, batch_size: int, device: torch.device, most: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        normalized = Normalization(self.mean, self.std, device)
        indices = evenly_spread(self.size(split), most).split(batch_size)
        requests = ([ViewRequest(split, index, ()) for index in part.tolist()] for part in indices)
        for pixels, labels in self._read(requests, None, device):
            yield normalized(pixels), labels

    def stored(self, split: SplitName, index: int) -> bytes | Image.Image:
        return self._pictures[split].stored(index)

    def _read(
        self, requests: Iterable[list[ViewRequest]], recipe: Recipe | None, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels uint8 [B, C, S, S] and labels [B] on the device; without a recipe as they are."""
        key = _LoaderKey(recipe, self._workers, device.type == "cuda")
        loader = self._borrowed(key)
        try:
            for batch in loader.read(requests):
                pixels, labels = (values.to(device, non_blocking=True) for values in batch)
                yield pixels, labels
        finally:
            self._idle = [*(other for other in self._idle if other[0] != key), (key, loader)]

    def _borrowed(self, key: "_LoaderKey") -> "PictureLoader":
        """A loader that nobody else has at the moment.

        Idle ones are used again, or ended where they are of another recipe.
        """
        for place, (other, loader) in enumerate(self._idle):
            if other == key:
                del self._idle[place]
                return loader
        is_evaluation = key.recipe is None
        self._idle = [(k, r) for k, r in self._idle if (k.recipe is None) != is_evaluation]
        return PictureLoader(self._pictures, self._view(key.recipe), key.workers, key.is_pinned)

    def _view(self, recipe: Recipe | None) -> Transform:
        if recipe is None:
            return evaluation_view(self.image_size, self.info.in_channels)
        fill = [round(value) for value in self.mean]
        return training_view(recipe, self.image_size, recipe.mirrors(self.info.hflip), fill)


class _LoaderKey(NamedTuple):
    """Which loaders can do each other's work."""

    recipe: Recipe | None
    workers: int
    is_pinned: bool


class PictureLoader:
    """Workers that make views of one recipe; for one pass at a time.

    Args:
        pictures: the splits.
        view: from a decoded picture to uint8 [C, S, S].
        workers: processes; 0 for this one.
        is_pinned: whether batches are to be copied to a GPU.
    """

    def __init__(
        self,
        pictures: Mapping[SplitName, Pictures],
        view: Transform,
        workers: int,
        is_pinned: bool,
    ) -> None:
        self._requests = _LatestRequests()
        self._loader = DataLoader(
            _PictureDataset(pictures, view),
            batch_sampler=self._requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_collated,
            pin_memory=is_pinned,
            generator=torch.Generator(),  # keeps the loader off the process's random state
        )

    def read(self, requests: Iterable[list[ViewRequest]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels uint8 [B, C, S, S] and labels int64 [B] of each list of requests, in order.

        Raises:
            InputError: too many pictures cannot be read.
        """
        self._requests.latest = requests
        for batch in self._loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch


class _LatestRequests:
    """What a loader asks its workers for; it is iterated over once for each pass."""

    latest: Iterable[list[ViewRequest]] = ()

    def __iter__(self) -> Iterator[list[ViewRequest]]:
        return iter(self.latest)


_ViewOrError = tuple[Tensor, int] | InputError
"""An error is handed on as a value: raised, it would reach the caller with a worker's traceback."""


class _PictureDataset(Dataset[_ViewOrError]):
    def __init__(self, pictures: Mapping[SplitName, Pictures], view: Transform) -> None:
        self._pictures, self._view = pictures, view

    def __getitem__(self, request: ViewRequest) -> _ViewOrError:
        pictures = self._pictures[request.split]
        try:
            picture = pictures.open(request.picture)
        except InputError as error:
            return error
        with seeded(*request.seed):
            return self._view(picture), int(pictures.labels[request.picture])


def _collated(views: list[_ViewOrError]) -> tuple[Tensor, Tensor] | InputError:
    from timm.data.loader import fast_collate

    error = next((view for view in views if isinstance(view, InputError)), None)
    if error is not None:
        return error
    batch: tuple[Tensor, Tensor] = fast_collate(views)
    return batch


def training_view(recipe: Recipe, size: int, hflip: bool, fill: list[int]) -> Transform:
    """The augmentation of a recipe that is done image by image; see :func:`seeded`.

    Args:
        recipe: the augmentation.
        size: S.
        hflip: whether to mirror every other picture.
        fill: the value of each channel that RandAugment takes beyond a picture's edges.
    """
    from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    steps: list[Any] = [transforms.Resize(size, bicubic), transforms.CenterCrop(size)]
    if recipe.crop == "resized":
        scale = recipe.crop_scale
        steps = [RandomResizedCropAndInterpolation(size, scale, interpolation="bicubic")]
    elif recipe.crop == "shift":
        steps.append(transforms.RandomCrop(size, padding=size // 8))
    if hflip:
        steps.append(transforms.RandomHorizontalFlip())
    policy = rand_augment(recipe.rand_augment)
    if policy is not None:
        steps.append(_rand_augment(policy, fill))
    elif recipe.color_jitter:
        steps.append(transforms.ColorJitter(*[recipe.color_jitter] * 3))
    view: Transform = transforms.Compose([*steps, MaybePILToTensor()])
    return view


def shown_share(size: int) -> float:
    """Which part of a picture's shorter side an evaluation at ``size`` pixels shows."""
    return 1.0 if size < _WHOLE_BELOW else 0.875


def evaluation_view(size: int, channels: int) -> Transform:
    """The middle of a picture."""
    from timm.data import create_transform

    view: Transform = create_transform(
        (channels, size, size),
        interpolation="bicubic",
        crop_pct=shown_share(size),
        use_prefetcher=True,  # leaves the pixels as they are
    )
    return view


def _rand_augment(policy: RandAugment, fill: list[int]) -> Any:
    from timm.data import auto_augment

    std = policy.magnitude_std
    operations = auto_augment.rand_augment_ops(
        policy.magnitude,
        hparams={
            "img_mean": tuple(fill) if len(fill) > 1 else fill[0],
            "interpolation": Image.Resampling.BICUBIC,
            "magnitude_std": math.inf if std > UNIFORM_FROM else std,
        },
        transforms=auto_augment.rand_augment_choices("", policy.is_increasing),
    )
    for operation in operations:
        if operation.name.startswith("Posterize"):
            operation.level_fn = partial(_at_least_one_bit, operation.level_fn)
    return auto_augment.RandAugment(operations, policy.layers)


def _at_least_one_bit(level_to_bits: Any, level: float, hparams: Any) -> tuple[int]:
    """No bit at all would leave a black picture, which Pillow 13 refuses to make."""
    return (max(1, level_to_bits(level, hparams)[0]),)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed what timm and torchvision draw from, and put everything back afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = generator(*numbers).initial_seed()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
