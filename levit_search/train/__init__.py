"""Fitting one network by a recipe: in one go, or by rungs with a checkpoint between them."""

from levit_search.train.accuracy import top1_percent
from levit_search.train.checkpoint import Checkpoint, training_id
from levit_search.train.fitting import (
    fit,
    fresh_network,
    seed_torch,
    step_seconds,
    train_network,
)
from levit_search.train.lesson import Lesson, Views
from levit_search.train.loss import Answers
from levit_search.train.memory import out_of_memory_as_trial_error
from levit_search.train.optimization import Optimization, device_of
from levit_search.train.outcome import Decide, Epoch, Report, Training, always, silent

__all__ = [
    "Answers",
    "Checkpoint",
    "Decide",
    "Epoch",
    "Lesson",
    "Optimization",
    "Report",
    "Training",
    "Views",
    "always",
    "device_of",
    "fit",
    "fresh_network",
    "out_of_memory_as_trial_error",
    "seed_torch",
    "silent",
    "step_seconds",
    "top1_percent",
    "train_network",
    "training_id",
]
