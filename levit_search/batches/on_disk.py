"""A data set on disk: decoded and cut image by image in other processes, finished on the device."""

import math
import multiprocessing
import multiprocessing.connection
import random
import signal
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from levit_search.batches.augmentation import UNIFORM_FROM, Purpose, crop_aspect, generator
from levit_search.batches.batch import Batches
from levit_search.data import DataInfo, SplitName, StoredImages
from levit_search.errors import TrialError
from levit_search.image_size import Sides, sides
from levit_search.latency.process_pipe import exit_name
from levit_search.recipe import Recipe, rand_augment

Transform = Callable[[Image.Image], Tensor]
"""From a picture of any size to uint8 [C, H, W]."""

# Of ImageNet, with values up to 1.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MOST_AT_ONCE = 64  # pictures that a process is asked for
_BATCHES_AHEAD = 2  # that are read while one is trained on
_PATIENCE_S = 300  # for the pictures that a process is asked for
# Pixels of the shorter side; smaller views show a picture to its edge, larger ones its middle.
_WHOLE_BELOW = 128


class ViewRequest(NamedTuple):
    """One view to be made of a picture of a split, with random numbers that depend on ``seed``."""

    split: SplitName
    picture: int
    seed: tuple[int, ...]


class DiskBatches(Batches):
    """Pictures that are read for each batch, normalised by ImageNet's colours.

    Those of ``evaluation`` are read by as many workers as the latest training had.
    """

    def __init__(
        self, info: DataInfo, splits: Mapping[SplitName, StoredImages], image_size: int | Sides
    ) -> None:
        self._splits: Mapping[SplitName, StoredImages] = splits
        mean, std = (
            [255 * value for value in values] if info.in_channels == 3 else [255 * sum(values) / 3]
            for values in (_MEAN, _STD)
        )
        super().__init__(info, image_size, mean, std)
        self._workers = 1
        # One for training and one for evaluation, with its recipe, or none, and its processes.
        self._idle: dict[bool, tuple[tuple[Recipe | None, int], PictureLoader]] = {}

    def _views(
        self, order: Tensor, seed: int, epoch: int, recipe: Recipe, device: torch.device, first: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        self._workers = recipe.workers
        requests = (
            [
                ViewRequest("train", index, (seed, epoch, place, Purpose.PICTURE))
                for place, index in enumerate(order[step].tolist(), step * order.shape[1])
            ]
            for step in range(first, len(order))
        )
        return self._read("train", requests, recipe, device)

    def _unchanged(
        self, split: SplitName, parts: Iterable[Tensor], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        requests = ([ViewRequest(split, index, ()) for index in part.tolist()] for part in parts)
        return self._read(split, requests, None, device)

    def _read(
        self,
        split: SplitName,
        requests: Iterable[list[ViewRequest]],
        recipe: Recipe | None,
        device: torch.device,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels uint8 [B, C, H, W] and labels [B] on the device; without a recipe as they are."""
        key = (recipe, self._workers)
        known, loader = self._idle.pop(recipe is None, (None, None))
        if loader is None or known != key or not loader.is_alive:
            loader = None  # whose processes end before others begin
            if recipe is None:
                view = evaluation_view(self.image_size, self.info.in_channels)
            else:
                fill, hflip = [round(value) for value in self.mean], recipe.mirrors(self.info.hflip)
                view = training_view(recipe, self.image_size, hflip, fill)
            loader = PictureLoader(self._splits, view, self._workers)
        try:
            for parts in loader.read(requests):
                for part in parts:
                    self._splits[split].report(part.faults, part.is_whole)
                pixels = torch.cat([_on(device, part.pixels) for part in parts])
                yield pixels, torch.cat([_on(device, part.labels) for part in parts])
        except GeneratorExit:
            pass  # nobody wants the rest, and the loader is as good as before
        except BaseException:
            loader.close()
            raise
        self._idle[recipe is None] = key, loader


def _on(device: torch.device, values: NDArray[Any]) -> Tensor:
    tensor = torch.from_numpy(values)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class MadeViews(NamedTuple):
    """Views [B, C, H, W] of some requests and their labels [B], as a process hands them over."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    faults: dict[str, str]
    """Why pictures could not be read, by their places; others were taken for them."""
    is_whole: bool  # whether there were others: not where all of a class are unreadable


class PictureLoader:
    """Processes that make views of one kind, kept between passes; for one pass at a time.

    What they make comes through pipes. Torch's ``DataLoader`` takes shared memory for it, of which
    a container has 64 MB, and never hears of a batch that did not fit.

    Raises:
        TrialError: the processes cannot be started; without ``workers`` this one reads.
    """

    def __init__(
        self, splits: Mapping[SplitName, StoredImages], transform: Transform, workers: int
    ) -> None:
        self._make = partial(_made, splits, transform)
        # A thread for each process fetches what that has made while this one trains.
        self._threads = ThreadPoolExecutor(max(1, workers), "picture-loader")
        self._readers: list[_Reader] = []
        self._idle: SimpleQueue[_Reader] = SimpleQueue()
        self.close = weakref.finalize(self, _end, self._readers, self._threads)
        """Ends the processes at once; otherwise they end with this loader."""
        for _ in range(workers):
            self._readers.append(_Reader(self._make))
            self._idle.put(self._readers[-1])

    def read(self, requests: Iterable[list[ViewRequest]]) -> Iterator[list[MadeViews]]:
        """The views of each list of requests, in parts, all of them in order.

        Raises:
            TrialError: a process ended, or made nothing for too long.
        """
        if not self._readers:
            yield from ([self._make(batch)] for batch in requests)
            return
        asked: deque[list[Future[MadeViews]]] = deque()
        try:
            for batch in requests:
                rows = min(_MOST_AT_ONCE, -(-len(batch) // len(self._readers)))
                parts = [batch[first : first + rows] for first in range(0, len(batch), rows)]
                asked.append([self._threads.submit(self._fetched, part) for part in parts])
                if len(asked) > _BATCHES_AHEAD:
                    yield [future.result() for future in asked.popleft()]
            while asked:
                yield [future.result() for future in asked.popleft()]
        finally:
            for futures in asked:
                for future in futures:
                    future.cancel()

    def _fetched(self, part: list[ViewRequest]) -> MadeViews:
        reader = self._idle.get()
        try:
            return reader.fetched(part)
        finally:
            self._idle.put(reader)

    @property
    def is_alive(self) -> bool:
        """Whether no process has ended."""
        return all(reader.process.is_alive() for reader in self._readers)


def _end(readers: "list[_Reader]", threads: ThreadPoolExecutor) -> None:
    for reader in readers:
        reader.process.kill()
    threads.shutdown(wait=False, cancel_futures=True)


class _Reader:
    """One process of a loader, and the connection to it."""

    def __init__(self, make: Callable[[list[ViewRequest]], MadeViews]) -> None:
        try:
            self._connection, far_end = ends = multiprocessing.Pipe()
            self.process = multiprocessing.Process(target=_serve, args=(*ends, make), daemon=True)
            self.process.start()
        except OSError as error:
            raise TrialError(
                f"train.workers: a process that reads pictures cannot be started ({error}); "
                "0 reads them in the process that trains"
            ) from error
        far_end.close()  # each end is held by one process now, and goes with it

    def fetched(self, requests: list[ViewRequest]) -> MadeViews:
        """Have the process make views; a TrialError if it cannot, has ended, or takes too long."""
        try:
            self._connection.send(requests)
            # In many short waits: one long one is over when this program was halted for as long.
            if not any(self._connection.poll(_PATIENCE_S / 100) for _ in range(100)):
                raise TrialError(
                    f"data: reading {len(requests)} pictures from disk takes longer than "
                    f"{_PATIENCE_S} s; the disk may have gone, or have too much else to do"
                )
            answer: MadeViews | str = self._connection.recv()
        except (EOFError, OSError):
            self.process.join(1)
            raise TrialError(
                f"data: a process that reads pictures ended with {exit_name(self.process.exitcode)}"
            ) from None
        if isinstance(answer, str):
            raise TrialError(f"data: pictures cannot be read ({answer})")
        return answer


def _serve(
    near_end: "multiprocessing.connection.Connection",
    connection: "multiprocessing.connection.Connection",
    make: Callable[[list[ViewRequest]], MadeViews],
) -> None:
    """The life of a process that makes views, until nobody is left who asks for some."""
    near_end.close()  # a copy, with which we would wait for ourselves
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    with suppress(EOFError, ConnectionError):
        while True:
            requests = connection.recv()
            try:
                answer: MadeViews | str = make(requests)
            except Exception as error:
                traceback.print_exc()
                answer = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            connection.send(answer)


def _made(
    splits: Mapping[SplitName, StoredImages], transform: Transform, requests: list[ViewRequest]
) -> MadeViews:
    views: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    faults: dict[str, str] = {}
    for split, index, seed in requests:
        picture, unreadable = splits[split].open_or_faults(index)
        faults |= unreadable
        if picture is not None:
            with seeded(*seed):
                views.append(transform(picture).contiguous().numpy())
            labels.append(int(splits[split].labels[index]))
    pixels = np.stack(views) if views else np.empty((0,), np.uint8)
    return MadeViews(pixels, np.array(labels), faults, len(views) == len(requests))


def training_view(recipe: Recipe, size: int | Sides, hflip: bool, fill: list[int]) -> Transform:
    """The augmentation of a recipe that is done image by image; see :func:`seeded`.

    ``hflip`` mirrors every other picture; ``fill`` is the value of each channel that RandAugment
    takes beyond a picture's edges.
    """
    from timm.data import auto_augment
    from timm.data.transforms import (
        MaybePILToTensor,
        RandomResizedCropAndInterpolation,
        ResizeKeepRatio,
    )
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    height, width = sides(size)
    steps: list[Any] = [
        transforms.Resize(size, bicubic)
        if isinstance(size, int)
        else ResizeKeepRatio(size, interpolation="bicubic"),
        transforms.CenterCrop((height, width)),
    ]
    if recipe.crop == "resized":
        ratio = crop_aspect((width, height))  # timm's is of width to height
        steps = [RandomResizedCropAndInterpolation(size, recipe.crop_scale, ratio, "bicubic")]
    elif recipe.crop == "shift":
        border = (width // 8, height // 8)
        steps.append(transforms.RandomCrop((height, width), border, padding_mode="edge"))
    if hflip:
        steps.append(transforms.RandomHorizontalFlip())
    policy = rand_augment(recipe.rand_augment)
    if policy is not None:
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
        steps.append(auto_augment.RandAugment(operations, policy.layers))
    elif recipe.color_jitter:
        steps.append(transforms.ColorJitter(*[recipe.color_jitter] * 3))
    return cast(Transform, transforms.Compose([*steps, MaybePILToTensor()]))


def shown_share(size: int | Sides) -> float:
    """Which part of a picture's sides an evaluation at ``size`` pixels shows of the part that has
    the size's proportions."""
    return 1.0 if min(sides(size)) < _WHOLE_BELOW else 0.875


def evaluation_view(size: int | Sides, channels: int) -> Transform:
    """The middle of a picture."""
    from timm.data import create_transform

    # A prefetcher leaves the pixels as they are.
    kept = {"interpolation": "bicubic", "use_prefetcher": True}
    image = (channels, *sides(size))
    return cast(Transform, create_transform(image, crop_pct=shown_share(size), **kept))


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
