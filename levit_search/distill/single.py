"""Training one network, with its teacher, outside of any search."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from levit_search.architecture import Architecture, fitted
from levit_search.batches import open_batches
from levit_search.distill import obtain_teacher
from levit_search.errors import InputError, kept_by_checkpoint
from levit_search.files import make_writable, write_atomically, write_checksummed
from levit_search.model import save_weights
from levit_search.pretrained import check_donor_weights, check_weights_fit, donor_of
from levit_search.significance import wilson_percent
from levit_search.study import StudyConfig
from levit_search.train import (
    Checkpoint,
    Epoch,
    fit,
    fresh_network,
    top1_percent,
    training_id,
)

_CHECKPOINT = "training.pt"


def train_single(
    network: Architecture,
    config: StudyConfig,
    final: bool,
    out: Path | None,
    until: int | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train ``network``, fitted to the data of ``config``, with its recipe, teacher and seed.

    Args:
        network: made for any images.
        config: its data, train and teacher sections and its seed count.
        final: measure the accuracy on the test split too.
        out: a folder for the architecture, the weights and, until the recipe's end, a checkpoint
            that the same call goes on from; None to keep nothing.
        until: the epoch to stop after, or None for the recipe's last.
        say: told of each epoch.

    Returns:
        ``{id, data, epochs, val_top1_percent, test_top1_percent?, images_per_second, seconds,
        curve, ...}``; ``epochs`` are those trained so far, and ``train_images``, ``val_images``
        and ``test_images`` what the splits hold. ``val_top1_percent_ci95`` and
        ``test_top1_percent_ci95`` are the binomial intervals.

    Raises:
        InputError: data, teacher or weights to start from are missing or unfit, ``out`` holds
            something else or cannot be written, or stopping was asked for without a folder to go on
            from.
        TrialError: the training failed, or what came of it could not be written.
    """
    _check_out(out, until)
    batches = open_batches(config.data)
    network = fitted(
        network,
        image_size=config.data.size,
        in_channels=batches.info.in_channels,
        num_classes=batches.info.num_classes,
    )
    donor = donor_of(network)
    check_donor_weights(config.train.donor_weights, [donor] if donor else [])
    check_weights_fit(config.train, [network])
    seed = config.search.seed
    teacher, teaching = None, config.teaching if network.distillation else None
    if teaching is not None:
        teaching.check_decided()
        told = _Lines(f"teacher {teaching.name}", teaching.recipe.epochs, say)
        features = _Lines(f"features of the teacher {teaching.name}", 0, say)
        given = (teaching, config.data, batches, config.train, None, seed, told.report)
        teacher, _ = obtain_teacher(*given, progress=features.progress)
    teacher_id = teacher.id if teacher is not None else None
    run = training_id(network, config.train, seed, batches.data_id, teacher_id)
    checkpoint = Checkpoint(out / _CHECKPOINT, run, is_required=True) if out is not None else None
    lines = _Lines(network.id, config.train.epochs, say)
    model = fresh_network(network, config.train, seed)
    if model.started_from is not None:
        say(f"{network.id}: starts with {model.started_from}")
    report, show = lines.report, lines.progress
    training = fit(model, batches, config.train, seed, teacher, report, checkpoint, until, show)
    result: dict[str, Any] = {
        "id": network.id,
        "data": config.data.name,
        "epochs": len(training.curve),
        **training.as_json(),
        **{f"{split}_images": batches.size(split) for split in ("train", "val", "test")},
    }
    if final:
        result["test_top1_percent"] = top1_percent(model, batches, "test")
    for split in ("val", "test") if final else ("val",):
        percent, images = result[f"{split}_top1_percent"], result[f"{split}_images"]
        result[f"{split}_top1_percent_ci95"] = list(wilson_percent(percent, images))
    if out is not None and checkpoint is not None:
        with kept_by_checkpoint(out):
            write_atomically(out / "architecture.yaml", model.architecture.to_yaml())
            save_weights(model, out / "model.safetensors")
            write_checksummed(out / "training.json", result)
        if len(training.curve) == config.train.epochs:
            checkpoint.remove()
    return result


def _check_out(out: Path | None, until: int | None) -> None:
    if out is None:
        if until is not None:
            raise InputError("--stop-after: needs --out DIR to go on from")
        return
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is no folder; choose another --out")
    # Who was killed while writing the first checkpoint leaves a part of it.
    others = {path.name for path in out.glob("*") if not path.name.startswith(f".{_CHECKPOINT}.")}
    if others and _CHECKPOINT not in others:
        raise InputError(
            f"{out}: is not empty, and no training is there to go on with; choose another --out"
        )
    try:
        make_writable(out)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); choose another --out"
        ) from None


class _Lines:
    """What is said of a training: a line for each epoch, and one where half a minute was silent."""

    def __init__(self, what: str, epochs: int, say: Callable[[str], None]) -> None:
        self._what, self._epochs, self._say = what, epochs, say
        self._spoken = time.monotonic()

    def report(self, epoch: Epoch) -> None:
        """After an epoch; see :func:`levit_search.train.fit`."""
        self._line(
            f"epoch {epoch.epoch}/{self._epochs}, loss {epoch.train_loss:.4f}, "
            f"val {epoch.val_top1_percent:.2f} %, {epoch.seconds:.0f} s"
        )

    def progress(self, _: str, fraction: float | None) -> None:
        """Now and then; see :data:`levit_search.progress.Progress`."""
        if fraction is not None and time.monotonic() - self._spoken > 30:
            self._line(f"{100 * fraction:.0f} %")

    def _line(self, text: str) -> None:
        self._say(f"{self._what}: {text}")
        self._spoken = time.monotonic()
