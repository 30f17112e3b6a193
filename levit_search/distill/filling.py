"""Asking a teacher about all views of a recipe ahead of time."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from levit_search.batches import Batches
from levit_search.distill.answers import TeacherAnswers
from levit_search.distill.store import Store
from levit_search.errors import InputError, TrialError
from levit_search.latency.host_lock import between_probes
from levit_search.progress import Progress
from levit_search.recipe import Recipe
from levit_search.train import device_of


@dataclass(frozen=True)
class Filled:
    """What a store holds after filling it, and what that cost."""

    folder: Path
    epochs: int
    views: int
    """Views of images with an answer, in all epochs."""
    new_views: int
    """Those that the teacher was asked about just now."""
    bytes: int
    """On disk, of these epochs."""
    seconds: float
    images_per_second: float
    """New views; 0 where nothing was missing."""

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def fill(
    answers: TeacherAnswers,
    batches: Batches,
    recipe: Recipe,
    seed: int,
    epochs: int,
    progress: Progress,
) -> Filled:
    """Ask the teacher about every view of the first ``epochs`` epochs that has no answer yet.

    The views, and the threads that the answers are computed with, are those of training. Whatever
    was answered stays when this is interrupted, and is not asked about again.

    Args:
        answers: the teacher's.
        batches: what candidates are trained on.
        recipe: the candidates'.
        seed: of their views.
        epochs: how many, of the recipe or beyond it.
        progress: told which part of an epoch is done, 0 at its start.

    Raises:
        InputError: the answers are not kept, or there is no room for them.
        TrialError: the disk refused while filling.
    """
    store = answers.store(seed)
    if store is None:
        raise InputError("teacher.cache: is false, so that there is nothing to fill")
    store.prepare(epochs)
    torch.set_num_threads(recipe.threads)
    start = time.perf_counter()
    asked = answers.asked
    for epoch in range(epochs):
        progress("", 0.0)
        _fill_epoch(answers, store, batches, recipe, seed, epoch, progress)
    seconds = time.perf_counter() - start
    new_views = (answers.asked - asked) * store.header.rows
    return Filled(
        store.folder,
        epochs,
        epochs * store.header.steps * store.header.rows,
        new_views,
        store.planned_bytes(epochs),
        round(seconds, 3),
        round(new_views / seconds, 1),
    )


def _fill_epoch(
    answers: TeacherAnswers,
    store: Store,
    batches: Batches,
    recipe: Recipe,
    seed: int,
    epoch: int,
    progress: Progress,
) -> None:
    missing = np.flatnonzero(~store.filled(epoch)).tolist()
    if not missing:
        return
    if not store.is_writable:
        raise InputError(
            f"{store.folder}: cannot be written, and epoch {epoch + 1} is not complete"
        )
    first, last = missing[0], missing[-1]
    left = set(missing)
    views = batches.train(seed, epoch, recipe, device_of(recipe), first)
    with between_probes(views) as shared:
        for step, batch in zip(range(first, last + 1), shared, strict=False):
            if step in left:
                answers(seed, epoch, step, batch.images)
                progress("", (step + 1) / store.header.steps)
            if not store.is_writable:
                raise TrialError(
                    f"{store.folder}: could not be written any more in epoch {epoch + 1}; what was "
                    "written stays, and the same command goes on"
                )
