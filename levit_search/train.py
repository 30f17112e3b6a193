"""Fitting one network by a recipe, and its accuracy."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levit_search.architecture import Architecture
from levit_search.batches import Batches, generator
from levit_search.data import SplitName
from levit_search.donors import load_donor_weights
from levit_search.errors import InputError, TrialError
from levit_search.latency.sharing import between_probes
from levit_search.model import Model, build
from levit_search.recipe import Recipe


@dataclass(frozen=True)
class Epoch:
    """One point of a learning curve; the loss is the mean over the epoch's batches."""

    epoch: int
    train_loss: float
    val_top1_percent: float
    seconds: float


@dataclass(frozen=True)
class Training:
    """What a finished training run is worth and cost."""

    val_top1_percent: float
    images_per_second: float
    """Training images, evaluation and teacher included."""
    seconds: float
    curve: tuple[Epoch, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class TeacherLabels(Protocol):
    """Whatever answers for a teacher: labels int64 [B] for the images of one batch."""

    def __call__(self, seed: int, epoch: int, batch: int, images: Tensor) -> Tensor: ...


Report = Callable[[Epoch], None]


def silent(_: Epoch) -> None:
    """Report to nobody."""


def device_of(recipe: Recipe) -> torch.device:
    """The device that a recipe names.

    Raises:
        InputError: it asks for a GPU and there is none.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device: cuda was asked for, but torch sees no GPU here")
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(recipe.device)


def seed_torch(*numbers: int) -> None:
    """Seed all that modules and timm's mixup draw from, from all of ``numbers``."""
    seed = generator(*numbers).initial_seed()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)


def train_network(
    network: Architecture,
    batches: Batches,
    recipe: Recipe,
    seed: int,
    teacher: TeacherLabels | None,
    report: Report = silent,
) -> tuple[Model, Training]:
    """Build ``network`` with the weights of ``seed`` and its donor's, and fit it; see :func:`fit`.

    A network with one head has nothing to learn from a teacher, which is then not asked.
    """
    seed_torch(seed, 3)
    model = build(network)
    load_donor_weights(model, recipe.donor_weights)
    labels = teacher if network.distillation else None
    return model, fit(model, batches, recipe, seed, labels, report)


def fit(
    model: nn.Module,
    batches: Batches,
    recipe: Recipe,
    seed: int,
    teacher: TeacherLabels | None = None,
    report: Report = silent,
) -> Training:
    """Train ``model`` in place.

    Two heads learn, one from the labels and one from the teacher's (hard distillation, Touvron et
    al. 2021, equation 3); without a teacher both learn from the labels.

    Args:
        model: images [B, C, S, S] to logits [B, num_classes], or to a pair of them while training.
        batches: the data.
        recipe: how; ``threads`` is set for the whole process.
        seed: of the order, the augmentation and the drop paths, not of the model's weights.
        teacher: labels for the second head.
        report: called after each epoch.

    Raises:
        TrialError: the loss became infinite or not a number.
        InputError: the device does not exist.
    """
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    torch.set_num_threads(recipe.threads)
    device = device_of(recipe)
    model.to(device)
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    count = batches.size("train")
    steps = max(1, count // recipe.batch_size)
    warmup = min(round(recipe.warmup_epochs * steps), recipe.epochs * steps - 1)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=recipe.epochs * steps - warmup,
        lr_min=recipe.min_lr,
        warmup_t=warmup,
        warmup_lr_init=recipe.warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    mixup = _mixup(recipe, batches.info.num_classes)
    curve: list[Epoch] = []
    start = time.perf_counter()
    for epoch in range(recipe.epochs):
        seed_torch(seed, epoch, 2)
        model.train()
        losses = []
        with between_probes(batches.train(seed, epoch, recipe)) as shared:
            for step, (images, labels) in enumerate(shared):
                scheduler.step_update(epoch * steps + step)
                images, labels = images.to(device), labels.to(device)
                targets = labels
                if mixup is not None and len(images) % 2 == 0:
                    images, targets = mixup(images, labels)
                taught = teacher(seed, epoch, step, images) if teacher is not None else None
                loss = _loss(model(images), targets, taught, recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                if not np.isfinite(losses[-1]):
                    raise TrialError(f"the loss became {losses[-1]} in epoch {epoch + 1}")
        accuracy = top1_percent(model, batches, "val")
        elapsed = time.perf_counter() - start
        curve.append(Epoch(epoch + 1, float(np.mean(losses)), accuracy, round(elapsed, 3)))
        report(curve[-1])
    seconds = time.perf_counter() - start
    trained = recipe.epochs * steps * min(recipe.batch_size, count)
    return Training(curve[-1].val_top1_percent, trained / seconds, seconds, tuple(curve))


def _mixup(recipe: Recipe, num_classes: int) -> Any:
    if recipe.mixup == 0 and recipe.cutmix == 0:
        return None
    from timm.data import Mixup

    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        switch_prob=recipe.mixup_switch,
        label_smoothing=recipe.label_smoothing,
        num_classes=num_classes,
    )


def _loss(
    outputs: Tensor | tuple[Tensor, Tensor],
    targets: Tensor,
    taught: Tensor | None,
    smoothing: float,
) -> Tensor:
    """Cross entropy with the labels, averaged with the second head's where there is one.

    ``targets`` are labels [B], or mixed ones [B, num_classes] that are smoothed already.
    """
    smoothing = smoothing if targets.ndim == 1 else 0.0
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing)
    by_class, by_teacher = outputs
    loss = F.cross_entropy(by_class, targets, label_smoothing=smoothing)
    if taught is None:
        return (loss + F.cross_entropy(by_teacher, targets, label_smoothing=smoothing)) / 2
    return (loss + F.cross_entropy(by_teacher, taught)) / 2


@torch.inference_mode()
def top1_percent(
    model: nn.Module, batches: Batches, split: SplitName, batch_size: int = 256
) -> float:
    """The share of a split, in percent, whose class the model puts first."""
    model.eval()
    device = next(model.parameters()).device
    right = 0
    with between_probes(batches.evaluation(split, batch_size)) as shared:
        for images, labels in shared:
            right += int((model(images.to(device)).argmax(1) == labels.to(device)).sum())
    return 100 * right / batches.size(split)
