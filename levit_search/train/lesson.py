"""What is learnt from a batch: by one network alone, or by others that share its weights."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from levit_search.batches import Batches
from levit_search.recipe import Recipe
from levit_search.train.accuracy import top1_percent
from levit_search.train.loss import loss_of
from levit_search.train.optimization import Optimization
from levit_search.train.outcome import Epoch


class Views(NamedTuple):
    """What one batch, or a half of it, teaches."""

    images: Tensor
    """float [B, C, H, W]."""
    targets: Tensor
    """Labels int64 [B], or mixed ones float [B, num_classes]."""
    taught: Tensor | None
    """A teacher's answers, as :class:`levit_search.train.Answers` gives them."""
    step: int
    """Batches since the start of the run."""


class Lesson(Protocol):
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


class Alone:
    """A network that learns for itself."""

    point = Epoch

    def __init__(self, model: nn.Module, batches: Batches, recipe: Recipe) -> None:
        self._batches, self._recipe = batches, recipe
        self._forward: Any = torch.compile(model) if recipe.compile else model

    def learn(self, views: Views, optimization: Optimization, share: float) -> Tensor:
        with optimization.autocast():
            outputs = self._forward(views.images)
            loss = loss_of(outputs, views.targets, views.taught, self._recipe)
        loss = loss * share if share < 1 else loss
        optimization.backward(loss)
        return loss.detach()

    def top1_percent(self, evaluated: nn.Module) -> tuple[float, ...]:
        return (top1_percent(evaluated, self._batches, "val"),)
