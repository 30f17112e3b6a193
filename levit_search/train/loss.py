"""The loss of networks with one head, and of those whose second head learns from a teacher."""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from levit_search.recipe import Recipe


class Answers(Protocol):
    """Whatever answers for a teacher."""

    def __call__(self, seed: int, epoch: int, step: int, images: Tensor) -> Tensor:
        """The teacher's answers for the views of one batch.

        Args:
            seed: of the run, with ``epoch`` and ``step`` what the views depend on.
            epoch: from 0.
            step: of the batch within the epoch, from 0.
            images: float [B, C, H, W].

        Returns:
            Where ``images`` are: classes int64 [B] for hard distillation, for soft distillation
            probabilities float [B, num_classes] at the recipe's temperature.
        """


def loss_of(
    outputs: Tensor | tuple[Tensor, Tensor], targets: Tensor, taught: Tensor | None, recipe: Recipe
) -> Tensor:
    """Cross entropy with the labels, averaged with the second head's loss where there is one.

    The second head learns from the teacher: its first class, by cross entropy (Touvron et al. 2021,
    equation 3), or its softened probabilities, by the Kullback-Leibler divergence times the square
    of the temperature (Hinton et al. 2015; equation 2). Without a teacher it learns from labels.

    Args:
        outputs: logits [B, num_classes], or the pair (class head, distillation head).
        targets: labels int64 [B], below 0 where an image has none; or mixed ones [B, num_classes]
            that are smoothed already.
        taught: a teacher's answers, see :class:`Answers`.
        recipe: for label smoothing and temperature.
    """
    smoothing = recipe.label_smoothing if targets.ndim == 1 else 0.0
    if isinstance(outputs, Tensor):
        return _by_labels(outputs, targets, smoothing)
    by_class, by_teacher = outputs
    loss = _by_labels(by_class, targets, smoothing)
    if taught is None:
        return (loss + _by_labels(by_teacher, targets, smoothing)) / 2
    if taught.ndim == 1:
        return (loss + F.cross_entropy(by_teacher, taught)) / 2
    student = F.log_softmax(by_teacher.float() / recipe.temperature, dim=1)
    divergence = F.kl_div(student, taught, reduction="batchmean")
    return (loss + divergence * recipe.temperature**2) / 2


def _by_labels(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross entropy over the images that have labels; 0 where none has."""
    if targets.ndim == 1 and bool((targets < 0).any()):
        logits, targets = logits[targets >= 0], targets[targets >= 0]
        if not len(targets):
            return logits.sum()
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)
