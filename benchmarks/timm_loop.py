"""Training as timm's ``train.py`` has it: the other side of ``benchmarks/training.py``."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_loader
from timm.data.transforms import MaybePILToTensor, MaybeToTensor
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, accuracy, dispatch_clip_grad
from torch import nn
from torchvision import transforms

from levit_search.data import Arrays
from levit_search.recipe import Recipe
from levit_search.train.optimization import device_of, precision_of

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# What a transform of timm's ends with.
_FINAL = (MaybePILToTensor, MaybeToTensor, transforms.Normalize)


class PictureSet(torch.utils.data.Dataset[Any]):
    """Images in memory as torchvision's MNIST and CIFAR sets hold them: a picture for each look.

    They have their final size already, which spares timm the resizing.
    """

    transform: Any = None  # set by create_loader

    def __init__(self, split: Arrays) -> None:
        channels_last = np.moveaxis(split.images, 1, -1)
        self._images = channels_last[..., 0] if channels_last.shape[-1] == 1 else channels_last
        self._labels = split.labels.tolist()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self._images[index])), self._labels[index]


@dataclass(frozen=True)
class Feeding:
    """How timm's loader is run."""

    workers: int
    use_prefetcher: bool = True
    threads: int = 1

    def __str__(self) -> str:
        prefetcher = "prefetcher" if self.use_prefetcher else "no prefetcher"
        return f"{self.workers} workers, {prefetcher}, {self.threads} thread(s)"


@dataclass(frozen=True)
class Colours:
    """Mean and standard deviation of each channel, of values within 0 and 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def colours(images: NDArray[np.uint8]) -> Colours:
    """Those of images uint8 [N, C, S, S]."""
    channels = [images[:, channel].astype(np.float32) / 255 for channel in range(images.shape[1])]
    return Colours(
        tuple(float(each.mean()) for each in channels),
        tuple(float(each.std()) for each in channels),
    )


def open_loader(
    split: Arrays, known: Colours, recipe: Recipe, feeding: Feeding, is_training: bool, hflip: bool
) -> Any:
    """timm's loader of a split, with the augmentation of ``recipe: short`` for training."""
    _, channels, _, size = split.images.shape
    dataset = PictureSet(split)
    device = device_of(recipe)
    loader = create_loader(
        dataset,
        input_size=(channels, size, size),
        batch_size=recipe.batch_size if is_training else 2 * recipe.batch_size,
        is_training=is_training,
        hflip=0.5 if hflip else 0.0,
        color_jitter=None,
        crop_pct=1.0,
        mean=known.mean,
        std=known.std,
        num_workers=feeding.workers,
        pin_memory=device.type == "cuda",
        device=device,
        use_prefetcher=feeding.use_prefetcher,
    )
    # create_loader knows no such shift; its place is that of the crop by which it begins.
    steps = list(dataset.transform.transforms)
    if is_training:
        steps[0] = transforms.RandomCrop(size, padding=size // 8, padding_mode="edge")
    else:
        steps = [step for step in steps if isinstance(step, _FINAL)]
    dataset.transform = transforms.Compose(steps)
    return loader


@dataclass(frozen=True)
class TimmTraining:
    """What a run of timm's loop took, with its loaders and ``val`` after each epoch."""

    seconds: float
    epoch_seconds: tuple[float, ...]
    val_top1_percent: float


def train(
    model: nn.Module,
    train_split: Arrays,
    val_split: Arrays,
    hflip: bool,
    recipe: Recipe,
    feeding: Feeding,
    seed: int,
    epochs: int | None = None,
) -> TimmTraining:
    """Fit a network with one head, by the optimizer, schedule and loss of ``recipe``.

    ``epochs`` ends it before the recipe does.
    """
    torch.set_num_threads(feeding.threads)
    torch.manual_seed(seed)
    known = colours(train_split.images)
    start = time.perf_counter()
    device = device_of(recipe)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model.to(device, memory_format=layout)
    loader = open_loader(train_split, known, recipe, feeding, True, hflip)
    val_loader = open_loader(val_split, known, recipe, feeding, False, hflip)
    dtype = _DTYPES.get(precision_of(recipe, device))
    amp = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=recipe.peak_lr, weight_decay=recipe.weight_decay
    )
    updates = recipe.epochs * len(loader)
    warmup = min(round(recipe.warmup_epochs * len(loader)), updates - 1)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=updates - warmup,
        lr_min=recipe.min_lr,
        warmup_t=warmup,
        warmup_lr_init=recipe.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    loss_of = LabelSmoothingCrossEntropy(recipe.label_smoothing)
    ends, top1 = [start], 0.0
    for epoch in range(epochs or recipe.epochs):
        model.train()
        mean_loss = AverageMeter()
        for step, (images, targets) in enumerate(loader):
            if not feeding.use_prefetcher:
                images, targets = images.to(device), targets.to(device)
            if recipe.channels_last:
                images = images.contiguous(memory_format=layout)
            schedule.step_update(epoch * len(loader) + step)
            with amp:
                loss = loss_of(model(images), targets)
            loss.backward()
            if recipe.clip_grad is not None:
                dispatch_clip_grad(model.parameters(), recipe.clip_grad, mode="agc")
            optimizer.step()
            optimizer.zero_grad()
            mean_loss.update(loss.item(), images.size(0))
        top1 = validate(model, val_loader, feeding, device, amp)
        ends.append(time.perf_counter())
    return TimmTraining(ends[-1] - start, tuple(np.diff(ends).tolist()), top1)


@torch.inference_mode()
def validate(
    model: nn.Module, loader: Any, feeding: Feeding, device: torch.device, amp: Any
) -> float:
    """Top-1 accuracy in percent, with the loss beside it as timm has it."""
    model.eval()
    top1, mean_loss = AverageMeter(), AverageMeter()
    for images, targets in loader:
        if not feeding.use_prefetcher:
            images, targets = images.to(device), targets.to(device)
        with amp:
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, targets)
        (right,) = accuracy(logits, targets)
        mean_loss.update(loss.item(), images.size(0))
        top1.update(right.item(), images.size(0))
    return float(top1.avg)
