"""What a teacher says of a batch: looked up where it is known, asked for where it is not, or for
all views of a recipe ahead of time."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
import torch
from torch import Tensor, nn

from levit_search.batches import Batches
from levit_search.distill.store import MOST_CLASSES, Answer, Header, Store
from levit_search.distill.teacher_network import taught_classes
from levit_search.errors import InputError, TrialError
from levit_search.files import user_cache
from levit_search.image_size import plain_size
from levit_search.latency.host_lock import between_probes
from levit_search.progress import Progress
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.train import device_of
from levit_search.version import __version__


class TeacherAnswers:
    """A teacher's classes or probabilities for batches of views; see ``train.Answers``.

    All candidates of a search see the same views in the same order, so that the first one pays for
    the teacher and the others, in whichever process, find its answers in a store. The network is
    built when it is first asked.

    Args:
        network: builds it, with its weights.
        batches: what candidates are trained on.
        recipe: the candidates'; its distillation is hard or soft.
    """

    def __init__(
        self,
        teacher: str,
        network: Callable[[], nn.Module],
        config: TeacherConfig,
        batches: Batches,
        recipe: Recipe,
    ) -> None:
        assert recipe.distillation != "none"
        self._teacher, self._build, self._config = teacher, network, config
        self._batches, self._recipe = batches, recipe
        self._classes = taught_classes(config, batches.info)
        self._k = _kept_classes(config, self._classes, recipe)
        self._model: nn.Module | None = None
        self._stores: dict[int, Store | None] = {}
        self.asked = 0
        """Batches that the network was asked about by this process."""

    def lasting(self, epochs: int) -> "TeacherAnswers":
        """The same teacher with room for the answers of other ``epochs`` than the recipe's."""
        recipe = self._recipe.model_copy(update={"epochs": epochs})
        return TeacherAnswers(self._teacher, self._build, self._config, self._batches, recipe)

    @property
    def id(self) -> str:
        """An identity of all that the answers depend on beside the views and the temperature."""
        if self._recipe.distillation == "hard":
            return self._teacher
        return f"{self._teacher}-{f'top{self._k}' if self._config.cache else 'all'}"

    def store(self, seed: int) -> Store | None:
        """Where the answers for the views of ``seed`` are kept, with room for all of the recipe.

        Raises:
            InputError: there is no room, or the folder cannot be written.
        """
        if seed not in self._stores:
            store = None
            if self._config.cache:
                header = header_of(self._teacher, self._config, self._batches, self._recipe, seed)
                store = Store(store_folder(), header)
                store.prepare(shown_epochs(self._batches, self._recipe))
            self._stores[seed] = store
        return self._stores[seed]

    def __call__(self, seed: int, epoch: int, step: int, images: Tensor) -> Tensor:
        """The answers for the views ``images``, float [B, C, H, W], of one batch.

        Returns:
            Where ``images`` are: classes int64 [B], or probabilities float [B, num_classes]. Of the
            latter a store keeps the largest; what they lack of 1 is spread over the other classes.

        Raises:
            InputError: the teacher's weights are gone or damaged, or give no finite numbers.
        """
        store, epoch = self.store(seed), self._batches.shown(epoch)
        if store is None:
            logits = self._ask(images)
            if self._recipe.distillation == "hard":
                return logits.argmax(1)
            return (logits / self._recipe.temperature).softmax(1)
        answer = store.find(epoch, step)
        if answer is None:
            answer = store.fill(epoch, step, lambda: self._answer(images))
        return self._decoded(answer, images.device)

    def _answer(self, images: Tensor) -> Answer:
        logits = self._ask(images)
        if self._recipe.distillation == "hard":  # the first of equals, as without a store
            classes = logits.argmax(1, keepdim=True)
            shares = logits.softmax(1).gather(1, classes)
        else:
            shares, classes = (logits / self._recipe.temperature).softmax(1).topk(self._k)
        return Answer(
            classes.cpu().numpy().astype(np.uint16), shares.cpu().numpy().astype(np.float16)
        )

    def _decoded(self, answer: Answer, device: torch.device) -> Tensor:
        classes = torch.from_numpy(answer.classes.astype(np.int64)).to(device)
        if self._recipe.distillation == "hard":
            return classes[:, 0]
        shares = torch.from_numpy(answer.shares.astype(np.float32)).to(device)
        others = self._classes - self._k
        rest = (1 - shares.sum(1, keepdim=True)).clamp_min(0) / max(1, others)
        probabilities = rest.repeat(1, self._k + others).scatter_(1, classes, shares)
        return probabilities / probabilities.sum(1, keepdim=True)  # half precision rounds

    def _ask(self, images: Tensor) -> Tensor:
        """Logits float32 [B, num_classes], of the network in evaluation mode."""
        if self._model is None:
            with torch.random.fork_rng(devices=[]):  # a candidate's own numbers stay the same
                self._model = self._build().eval().to(images.device)
        with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
            logits = self._logits(images.float().contiguous())
        if not torch.isfinite(logits).all():
            raise InputError(f"teacher {self._config.name}: its answers are no finite numbers")
        self.asked += 1
        return logits.clone()  # one made in inference mode cannot take part in training

    def _logits(self, images: Tensor) -> Tensor:
        """Of all images at once, or of half of them at a time if memory is too small."""
        assert self._model is not None
        try:
            logits: Tensor = self._model(images)
            return logits.float()
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        return torch.cat([self._logits(half) for half in images.tensor_split(2)])


def _kept_classes(config: TeacherConfig, num_classes: int, recipe: Recipe) -> int:
    return 1 if recipe.distillation == "hard" else min(config.top_k, num_classes)


def shown_epochs(batches: Batches, recipe: Recipe) -> int:
    """How many epochs of a recipe have views of their own."""
    return len({batches.shown(epoch) for epoch in range(recipe.epochs)})


def store_folder() -> Path:
    """The folder of all stores, in the user's cache."""
    return user_cache() / "teacher-outputs"


def header_of(
    teacher: str,
    config: TeacherConfig,
    batches: Batches,
    recipe: Recipe,
    seed: int,
) -> Header:
    """The header of the store that a recipe's answers are kept in.

    Raises:
        InputError: there are more classes than a store can tell apart.
    """
    assert recipe.distillation != "none"
    classes = taught_classes(config, batches.info)
    if classes > MOST_CLASSES:
        whose = "the teacher knows" if config.adapt == "own" else "the data has"
        raise InputError(
            f"teacher.cache: keeps the answers for up to {MOST_CLASSES} classes, {whose} "
            f"{classes}; set it to false"
        )
    hflip = recipe.mirrors(batches.info.hflip)
    return Header(
        teacher=teacher,
        data=batches.data_id,
        # The border of shifted views was black once; answers that were kept then are of others.
        augmentation={
            **recipe.views(),
            "border": "edge",
            "hflip": hflip,
            "image_size": plain_size(batches.image_size),
        },
        versions={
            "levit-search": __version__,
            "timm": timm.__version__,
            "torch": torch.__version__.partition("+")[0],
        },
        seed=seed,
        distillation=recipe.distillation,
        temperature=recipe.temperature if recipe.distillation == "soft" else 1.0,
        k=_kept_classes(config, classes, recipe),
        classes=classes,
        rows=batches.batch_size(recipe),
        steps=batches.steps(recipe),
    )


class Filled(NamedTuple):
    """What a store holds after filling it, and what that cost."""

    folder: str
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
        missing = np.flatnonzero(~store.filled(epoch))
        if not len(missing):
            continue
        if not store.is_writable:
            raise InputError(
                f"{store.folder}: cannot be written, and epoch {epoch + 1} is not complete"
            )
        views = batches.train(seed, epoch, recipe, device_of(recipe), missing[0])
        with between_probes(views) as shared:
            for step, batch in zip(range(missing[0], missing[-1] + 1), shared, strict=False):
                if step in missing:
                    answers(seed, epoch, step, batch.images)
                    progress("", (step + 1) / store.header.steps)
                if not store.is_writable:
                    raise TrialError(
                        f"{store.folder}: could not be written any more in epoch {epoch + 1}; what "
                        "was written stays, and the same command goes on"
                    )
    seconds = time.perf_counter() - start
    new_views = (answers.asked - asked) * store.header.rows
    return Filled(
        str(store.folder),
        epochs,
        epochs * store.header.steps * store.header.rows,
        new_views,
        store.planned_bytes(epochs),
        round(seconds, 3),
        round(new_views / seconds, 1),
    )
