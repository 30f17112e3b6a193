"""Fitting one network by a recipe, and its accuracy."""

import errno
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple

import torch
from torch import Tensor, nn

from levit_search.architecture import Architecture
from levit_search.batches import Batch, Batches, generator
from levit_search.errors import TrialError, first_line
from levit_search.latency.host_lock import between_probes
from levit_search.model import Model, build
from levit_search.pretrained import load_donor_weights, start_from
from levit_search.progress import Progress, no_progress
from levit_search.recipe import Recipe
from levit_search.significance import guess_percent, most_guessed
from levit_search.train.checkpoint import Checkpoint
from levit_search.train.objective import (
    Answers,
    Decide,
    Epoch,
    Objective,
    PlainLoss,
    Report,
    Training,
    Views,
    always,
    silent,
)
from levit_search.train.optimization import Optimization, device_of

_CHECKPOINT_S = 60.0  # between two checkpoints where there is no rung
_FEWEST_STEPS = 1000  # after fewer, one that guesses may yet learn (letters: 700 of 32 images)
_TIMED_STEPS = 20  # at most, to say what an image takes
_SPOKEN_S = 5.0  # between two reports within an epoch
_WATCHED_STEPS = 32  # between two looks at the loss; each makes a GPU wait
# What torch and Python say with a RuntimeError where there is no memory for it.
_NO_MEMORY = ("DefaultCPUAllocator", "std::bad_alloc", "can't start new thread")


def seed_torch(*numbers: int) -> None:
    """Seed all that modules draw from, from all of ``numbers``."""
    torch.manual_seed(generator(*numbers).initial_seed())


def train_network(
    network: Architecture,
    batches: Batches,
    recipe: Recipe,
    seed: int,
    teacher: Answers | None,
    report: Report = silent,
    checkpoint: Checkpoint | None = None,
    until: int | None = None,
) -> tuple[Model, Training]:
    """Build ``network`` with the weights that it starts from, and fit it; see :func:`fit`.

    A network with one head has nothing to learn from a teacher, which is then not asked.
    """
    model = fresh_network(network, recipe, seed)
    answers = teacher if network.distillation else None
    return model, fit(model, batches, recipe, seed, answers, report, checkpoint, until)


def fresh_network(network: Architecture, recipe: Recipe, seed: int) -> Model:
    """A network as training begins with it: with the weights of ``seed``, over them what fits of
    the recipe's ``weights``, and its donor's. Its ``started_from`` says what came over.

    Raises:
        InputError: the weights are not to be had.
    """
    seed_torch(seed, 3)
    model = build(network)
    model.started_from = start_from(model, recipe.weights)
    load_donor_weights(model, recipe.donor_weights)
    return model


def fit(
    model: nn.Module,
    batches: Batches,
    recipe: Recipe,
    seed: int,
    teacher: Answers | None = None,
    report: Report = silent,
    checkpoint: Checkpoint | None = None,
    until: int | None = None,
    progress: Progress = no_progress,
    decide: Decide = always,
    objective: Objective | None = None,
) -> Training:
    """Train ``model`` in place, to the end of the recipe or to an earlier rung.

    A run that stops at a rung and goes on from its checkpoint gives what one that never stopped
    gives, bit by bit. A batch that does not fit into memory is worked on in two halves from then
    on, with the gradients of both; the views stay those of the whole batch.

    Args:
        model: images [B, C, H, W] to logits [B, num_classes], or to a pair of them while training.
        recipe: how; ``threads`` is set for the whole process.
        seed: of the order, the augmentation and the drop paths, not of the model's weights.
        teacher: answers for the second head; not asked where the recipe has no distillation.
        report: called after each epoch that is trained now.
        checkpoint: where the run goes on from, and is kept at each rung, at the epoch where it
            stops and once a minute; None keeps nothing.
        until: the epoch to stop after; the learning rate is that of the whole recipe. None: the
            recipe's last.
        progress: told every few seconds, and after each epoch, which part of the whole recipe is
            done; its text is the :meth:`Epoch.summary` of the latest epoch.
        decide: asked at each rung, after ``report``, and before training goes on again about the
            rungs that earlier sessions came to; the run ends at a rung where it says no.
        objective: what is learnt from a batch; None: ``model``'s own loss.

    Raises:
        TrialError: the loss or the answers became no finite numbers, the accuracy at the first rung
            is surely that of guessing, or memory is too small for half a batch.
        InputError: the device does not exist or has no such precision, or the checkpoint is that of
            another run.
    """
    torch.set_num_threads(recipe.threads)
    run = _Run(model, batches, recipe, seed, teacher, checkpoint, objective)
    last = min(until or recipe.epochs, recipe.epochs)
    run.check_guessing()  # of a run that was given up before
    goes_on = True
    for place, point in enumerate(run.curve, start=1):  # earlier sessions came to these
        if goes_on and run.is_rung(point) and not decide(point):
            del run.curve[place:]  # what came after a no is forgotten
            goes_on = False
    with as_trial_errors(run):
        while goes_on and len(run.curve) < last:
            run.train_epoch(len(run.curve) + 1 == last, progress)
            report(run.curve[-1])
            progress(run.curve[-1].summary(), len(run.curve) / recipe.epochs)
            run.check_guessing()
            goes_on = not run.is_rung(run.curve[-1]) or decide(run.curve[-1])
    if run.optimization.evaluated is not model:  # the averaged weights
        model.load_state_dict(run.optimization.evaluated.state_dict())
    return run.training()


def image_ms(model: nn.Module, batches: Batches, recipe: Recipe, patience_s: float) -> float:
    """Milliseconds that training ``model`` takes an image, its views included.

    The median over steps, at least two and as many as there is patience for; the first one, in
    which everything is made, does not count. A recipe's teacher is left out.

    Raises:
        InputError, TrialError: as :func:`fit`.
    """
    torch.set_num_threads(recipe.threads)
    run = _Run(model, batches, recipe, 0, None, None, None)
    model.train()
    seconds: list[float] = []
    begun = start = time.perf_counter()
    with as_trial_errors(run):
        for epoch in itertools.count():
            for step, batch in enumerate(batches.train(0, epoch, recipe, run.device)):
                float(run.step(epoch, step, batch))  # a GPU is waited for
                seconds.append(time.perf_counter() - start)
                start = time.perf_counter()
                is_late = start - begun > patience_s
                if len(seconds) == _TIMED_STEPS or (is_late and len(seconds) > 2):
                    return 1000 * statistics.median(seconds[1:]) / batches.batch_size(recipe)
    raise AssertionError("batches never end")


class _Run:
    """One model on its way through a recipe."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        recipe: Recipe,
        seed: int,
        teacher: Answers | None,
        checkpoint: Checkpoint | None,
        objective: Objective | None,
    ) -> None:
        self._model, self._batches, self._recipe, self._seed = model, batches, recipe, seed
        self.device = device_of(recipe)
        self._format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        # torch's stubs lack the overload that its documentation has.
        model.to(self.device, memory_format=self._format)  # type: ignore[call-overload]
        self._objective = objective or PlainLoss(model, batches, recipe)
        self._teacher = teacher if recipe.distillation != "none" else None
        self._steps = batches.steps(recipe)
        self.optimization = Optimization(model, recipe, self._steps)
        self.parts = 1
        self._checkpoint = checkpoint
        self.curve: list[Epoch] = []
        state = checkpoint.load() if checkpoint is not None else None
        if state is not None:
            model.load_state_dict(state["model"])
            self.optimization.load_state_dict(state["optimization"])
            self.parts = state["parts"]
            self.curve = [self._objective.point(*point) for point in state["curve"]]
        earlier = self.curve[-1].seconds if self.curve else 0.0
        self._start = time.perf_counter() - earlier
        self._saved = time.perf_counter()

    def train_epoch(self, is_last: bool, progress: Progress) -> None:
        """Train one epoch, look at ``val``, and keep a checkpoint where one is due."""
        number = len(self.curve)
        seed_torch(self._seed, number, 2)
        self._model.train()
        losses: list[Tensor] = []
        spoken = time.perf_counter()
        views = self._batches.train(self._seed, number, self._recipe, self.device)
        with between_probes(views) as shared:
            for step, batch in enumerate(shared):
                losses.append(self.step(number, step, batch))
                if step % _WATCHED_STEPS == 0 or step + 1 == self._steps:
                    for loss in torch.stack(losses[-_WATCHED_STEPS:]).tolist():
                        if not math.isfinite(loss):
                            raise TrialError(
                                f"the loss became {loss} in epoch {number + 1}; a lower learning "
                                "rate may help"
                            )
                    if time.perf_counter() - spoken > _SPOKEN_S:
                        latest = self.curve[-1].summary() if self.curve else ""
                        done = (number + (step + 1) / self._steps) / self._recipe.epochs
                        progress(latest, done)
                        spoken = time.perf_counter()
        accuracy, *others = self._objective.top1_percent(self.optimization.evaluated)
        mean = float(torch.stack(losses).double().mean())
        elapsed = time.perf_counter() - self._start
        point = self._objective.point(number + 1, mean, accuracy, round(elapsed, 3), *others)
        self.curve.append(point)
        is_due = time.perf_counter() - self._saved > _CHECKPOINT_S
        if self._checkpoint is not None and (is_last or is_due or number + 1 in self._recipe.rungs):
            state = {"model": self._model.state_dict(), "parts": self.parts}
            state["optimization"] = self.optimization.state_dict()
            state["curve"] = [astuple(point) for point in self.curve]
            self._checkpoint.save(state)
            self._saved = time.perf_counter()

    def step(self, epoch: int, step: int, batch: Batch) -> Tensor:
        """One batch; its loss, a scalar without gradients."""
        images = batch.images.to(memory_format=self._format)
        of_teacher = None
        if self._teacher is not None:
            of_teacher = self._teacher(self._seed, epoch, step, batch.images)
        views = Views(images, batch.targets, of_teacher, epoch * self._steps + step)
        try:
            loss = self._gradients(views)
        except (RuntimeError, MemoryError) as error:
            # Halves of fewer than two images have no batch statistics.
            if not is_out_of_memory(error) or self.parts > 1 or len(images) < 4:
                raise
            loss = None
        if loss is None:  # outside of the handler, whose traceback holds what memory is full of
            self.parts = 2
            self.optimization.forget()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            loss = self._gradients(views)
        self.optimization.step(views.step)
        return loss

    def _gradients(self, whole: Views) -> Tensor:
        total = torch.zeros((), device=whole.images.device)
        for part in torch.arange(len(whole.images)).tensor_split(self.parts):
            rows = slice(int(part[0]), int(part[-1]) + 1)
            of_teacher = None if whole.teacher_targets is None else whole.teacher_targets[rows]
            views = Views(whole.images[rows], whole.targets[rows], of_teacher, whole.step)
            share = len(part) / len(whole.images)
            total = total + self._objective.learn(views, self.optimization, share)
        return total

    def check_guessing(self) -> None:
        """Give up a network that surely knows nothing at the first rung."""
        telling = [rung for rung in self._recipe.rungs if rung * self._steps >= _FEWEST_STEPS]
        first = min(telling, default=self._recipe.epochs)
        if first >= self._recipe.epochs or len(self.curve) != first:
            return
        point, images = self.curve[-1], self._batches.size("val")
        guess = guess_percent(self._batches.labels("val"))
        most = most_guessed(images, guess)
        if most is not None and round(point.val_top1_percent * images / 100) <= most:
            raise TrialError(
                f"after epoch {point.epoch} of {self._recipe.epochs} the accuracy on val is "
                f"{point.val_top1_percent:.2f} %, that of guessing ({guess:.2f} %)"
            )

    def is_rung(self, point: Epoch) -> bool:
        """Whether it is decided there if the run goes on."""
        return point.epoch in self._recipe.rungs and point.epoch < self._recipe.epochs

    def training(self) -> Training:
        """The figures so far."""
        last = self.curve[-1]
        trained = last.epoch * self._steps * self._batches.batch_size(self._recipe)
        return Training(
            last.val_top1_percent,
            trained / last.seconds,
            last.seconds,
            tuple(self.curve),
            self.optimization.precision,
            self.parts,
            getattr(self._model, "started_from", None),
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the host's memory was too small; torch has no type for the host's."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    )


@contextmanager
def as_trial_errors(run: _Run | None = None) -> Iterator[None]:
    """Fail the candidate, and not the search, for want of memory or of a compiler.

    Args:
        run: of a training within the block, which may have worked on half a batch at a time.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            reason = (str(error).splitlines() or ["the host's"])[0][:200]
            has_halves = run is not None and run.parts > 1
            note = ", also with half a batch at a time" if has_halves else ""
            raise TrialError(f"out of memory{note} ({reason})") from error
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = first_line(error)[:200]
            raise TrialError(f"train.compile: torch.compile failed ({reason})") from error
        raise
