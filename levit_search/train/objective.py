"""What a network is trained for and what it reaches: losses, accuracies, learning curves."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levit_search.batches import Batches
from levit_search.data import SplitName
from levit_search.errors import TrialError
from levit_search.latency.host_lock import between_probes
from levit_search.recipe import Recipe
from levit_search.train.optimization import Optimization

_EVALUATED = 256  # images at once


@dataclass(frozen=True)
class Epoch:
    """One point of a learning curve.

    The loss is the mean over the epoch's batches, ``seconds`` those since the start of the run,
    earlier sessions included.
    """

    epoch: int
    train_loss: float
    val_top1_percent: float
    seconds: float

    def summary(self) -> str:
        """Its accuracy, for people."""
        return f"val {self.val_top1_percent:.1f} %"


@dataclass(frozen=True)
class Training:
    """What a training run is worth and cost so far."""

    val_top1_percent: float
    images_per_second: float
    """Training images, evaluation and teacher included."""
    seconds: float
    curve: tuple[Epoch, ...]
    precision: str = "fp32"
    batch_parts: int = 1
    """2 where a batch did not fit into memory and was worked on in two halves."""
    started_from: str | None = None
    """What came over of the recipe's weights, or why nothing did; None for fresh ones."""

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        if self.started_from is None:
            del found["started_from"]
        return found


Report = Callable[[Epoch], None]

Decide = Callable[[Epoch], bool]
"""Asked at each rung before the last epoch whether to go on."""


def silent(_: Epoch) -> None:
    """Report to nobody."""


def always(_: Epoch) -> bool:
    """Stop at no rung."""
    return True


Answers = Callable[[int, int, int, Tensor], Tensor]
"""Answers for a teacher: of a run's seed, an epoch and a step within it, both from 0, and the views
float [B, C, H, W] of that batch, where these are: classes int64 [B] for hard distillation, for soft
distillation probabilities float [B, num_classes] at the recipe's temperature."""


class Views(NamedTuple):
    """One batch, or a half of it, and what is to be learnt from it."""

    images: Tensor
    """float [B, C, H, W]."""
    targets: Tensor
    """Labels int64 [B], or mixed ones float [B, num_classes]."""
    teacher_targets: Tensor | None
    """A teacher's answers, as :class:`Answers` gives them."""
    step: int
    """Batches since the start of the run."""


class Objective(Protocol):
    """What :func:`levit_search.train.fit` does with a batch, and looks at after an epoch."""

    @property
    def point(self) -> type[Epoch]:
        """Of the learning curve; takes what :meth:`top1_percent` gives beyond the first."""

    def learn(self, views: Views, optimization: Optimization, share: float) -> Tensor:
        """Add gradients times ``share``, the part of the batch that ``views`` are.

        Returns:
            The loss times ``share``, a scalar without gradients.
        """

    def top1_percent(self, evaluated: nn.Module) -> tuple[float, ...]:
        """Accuracies on ``val`` in percent, that of the run first.

        Args:
            evaluated: the module in training with the weights that count.

        Raises:
            TrialError: the answers are no finite numbers.
        """


class PlainLoss:
    """The objective of a single network: the loss of its own answers."""

    point = Epoch

    def __init__(self, model: nn.Module, batches: Batches, recipe: Recipe) -> None:
        self._batches, self._recipe = batches, recipe
        self._forward: Any = torch.compile(model) if recipe.compile else model

    def learn(self, views: Views, optimization: Optimization, share: float) -> Tensor:
        with optimization.autocast():
            outputs = self._forward(views.images)
            loss = loss_of(outputs, views.targets, views.teacher_targets, self._recipe)
        loss = loss * share if share < 1 else loss
        optimization.backward(loss)
        return loss.detach()

    def top1_percent(self, evaluated: nn.Module) -> tuple[float, ...]:
        return (top1_percent(evaluated, self._batches, "val"),)


def loss_of(
    outputs: Tensor | tuple[Tensor, Tensor],
    targets: Tensor,
    teacher_targets: Tensor | None,
    recipe: Recipe,
) -> Tensor:
    """Cross entropy with the labels, averaged with the second head's loss where there is one.

    The second head learns from the teacher: its first class, by cross entropy (Touvron et al. 2021,
    equation 3), or its softened probabilities, by the Kullback-Leibler divergence times the square
    of the temperature (Hinton et al. 2015; equation 2). Without a teacher it learns from labels.

    Args:
        outputs: logits [B, num_classes], or the pair (class head, distillation head).
        targets: labels int64 [B], below 0 where an image has none; or mixed ones [B, num_classes]
            that are smoothed already.
        teacher_targets: a teacher's answers, see :class:`Answers`.
        recipe: for label smoothing and temperature.
    """
    smoothing = recipe.label_smoothing if targets.ndim == 1 else 0.0
    if isinstance(outputs, Tensor):
        return _by_labels(outputs, targets, smoothing)
    by_class, by_teacher = outputs
    loss = _by_labels(by_class, targets, smoothing)
    if teacher_targets is None:
        return (loss + _by_labels(by_teacher, targets, smoothing)) / 2
    if teacher_targets.ndim == 1:
        return (loss + F.cross_entropy(by_teacher, teacher_targets)) / 2
    student = F.log_softmax(by_teacher.float() / recipe.temperature, dim=1)
    divergence = F.kl_div(student, teacher_targets, reduction="batchmean")
    return (loss + divergence * recipe.temperature**2) / 2


def _by_labels(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross entropy over the images that have labels; 0 where none has."""
    if targets.ndim == 1 and bool((targets < 0).any()):
        logits, targets = logits[targets >= 0], targets[targets >= 0]
        if not len(targets):
            return logits.sum()
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


@torch.inference_mode()
def top1_percent(
    model: nn.Module, batches: Batches, split: SplitName, most: int | None = None
) -> float:
    """The share of a split, in percent, whose class the model puts first.

    With ``most``, of so many of its images, evenly spread.

    Raises:
        TrialError: the model answers no finite numbers; none of them is the first.
    """
    model.eval()
    device = next(model.parameters()).device
    right = seen = 0
    with between_probes(batches.evaluation(split, _EVALUATED, device, most)) as shared:
        for images, labels in shared:
            logits = model(images)
            seen += len(labels)
            right += int((logits.argmax(1) == labels).sum())
            if not torch.isfinite(logits).all():
                raise TrialError(
                    f"the network's answers on {split} are no finite numbers; a lower learning "
                    "rate may help where it has just been trained"
                )
    return 100 * right / seen
