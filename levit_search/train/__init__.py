"""Fitting one network by a recipe: in one go, or by rungs with a checkpoint between them."""

from levit_search.train.checkpoint import Checkpoint, training_id
from levit_search.train.fitting import (
    as_trial_errors,
    fit,
    fresh_network,
    image_ms,
    seed_torch,
    train_network,
)
from levit_search.train.objective import (
    Epoch,
    Report,
    Training,
    Views,
    always,
    silent,
    top1_percent,
)
from levit_search.train.optimization import Optimization, device_of

__all__ = [
    "Checkpoint",
    "Epoch",
    "Optimization",
    "Report",
    "Training",
    "Views",
    "always",
    "as_trial_errors",
    "device_of",
    "fit",
    "fresh_network",
    "image_ms",
    "seed_torch",
    "silent",
    "top1_percent",
    "train_network",
    "training_id",
]
