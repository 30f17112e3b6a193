"""Fitting one network by a recipe: in one go, or by rungs with a checkpoint between them."""

from levit_search.train.checkpoint import Checkpoint, training_id
from levit_search.train.fitting import (
    fit,
    fresh_network,
    out_of_memory_as_trial_error,
    seed_torch,
    step_seconds,
    train_network,
)
from levit_search.train.objective import (
    Answers,
    Decide,
    Epoch,
    Objective,
    Report,
    Training,
    Views,
    always,
    silent,
    top1_percent,
)
from levit_search.train.optimization import Optimization, device_of

__all__ = [
    "Answers",
    "Checkpoint",
    "Decide",
    "Epoch",
    "Objective",
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
