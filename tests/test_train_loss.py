"""The loss of one head and of two, written out."""

import pytest
import torch
import torch.nn.functional as F

from levit_search.recipe import Recipe
from levit_search.train.objective import loss_of

LABELS = torch.tensor([0, 3, 1])
TAUGHT = torch.tensor([0, 2, 1])
PLAIN = Recipe(label_smoothing=0.0, temperature=2.0)


def logits(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def nll(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy without the library's."""
    return -scores.softmax(1)[torch.arange(3), labels].log().mean()


def test_one_head_learns_the_labels():
    assert torch.isclose(loss_of(logits(1), LABELS, None, PLAIN), nll(logits(1), LABELS))


def test_two_heads_without_a_teacher_both_learn_the_labels():
    expected = (nll(logits(1), LABELS) + nll(logits(2), LABELS)) / 2
    assert torch.isclose(loss_of((logits(1), logits(2)), LABELS, None, PLAIN), expected)


def test_hard_distillation_halves_labels_and_the_teachers_classes():
    """Touvron et al. 2021, equation 3."""
    expected = (nll(logits(1), LABELS) + nll(logits(2), TAUGHT)) / 2
    assert torch.isclose(loss_of((logits(1), logits(2)), LABELS, TAUGHT, PLAIN), expected)


def test_the_teachers_classes_are_not_smoothed():
    smoothed = Recipe(label_smoothing=0.1)
    by_class = F.cross_entropy(logits(1), LABELS, label_smoothing=0.1)
    expected = (by_class + nll(logits(2), TAUGHT)) / 2
    assert torch.isclose(loss_of((logits(1), logits(2)), LABELS, TAUGHT, smoothed), expected)


def test_soft_distillation_is_the_divergence_at_the_temperature_times_its_square():
    """Hinton et al. 2015; Touvron et al. 2021, equation 2."""
    teacher = (logits(3) / 2).softmax(1)
    student = (logits(2) / 2).softmax(1)
    divergence = (teacher * (teacher / student).log()).sum(1).mean() * 4
    expected = (nll(logits(1), LABELS) + divergence) / 2
    assert torch.isclose(loss_of((logits(1), logits(2)), LABELS, teacher, PLAIN), expected)


def test_a_student_that_agrees_with_a_soft_teacher_has_nothing_left_to_learn_from_it():
    teacher = (logits(2) / 2).softmax(1)
    loss = loss_of((logits(1), logits(2)), LABELS, teacher, PLAIN)
    assert torch.isclose(loss, nll(logits(1), LABELS) / 2)


@pytest.mark.parametrize("taught", [None, TAUGHT])
def test_mixed_targets_are_smoothed_already(taught):
    mixed = torch.eye(4)[LABELS] * 0.7 + 0.075
    losses = [
        loss_of((logits(1), logits(2)), mixed, taught, Recipe(label_smoothing=smoothing))
        for smoothing in (0.0, 0.3)
    ]
    assert torch.equal(*losses)
