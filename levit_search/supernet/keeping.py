"""Obtaining a study's supernet: read where it is, taken from another study, or trained now; and
what its networks are worth with the weights that they inherit.

Its folder holds ``weights.safetensors`` and ``card.json``, which is written last and says that the
weights are whole; while it is trained, ``training.pt``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from levit_search.architecture import Levit
from levit_search.batches import Batches
from levit_search.cost import cost
from levit_search.distill import TeacherAnswers
from levit_search.distill.teacher_network import taught_classes
from levit_search.errors import InputError, kept_by_checkpoint, writing
from levit_search.files import (
    expanded,
    file_digest,
    json_digest,
    write_atomically,
    write_checksummed,
)
from levit_search.latency.host_lock import between_probes
from levit_search.model import LevitModel, load_exactly, ordered, save_weights, transfer
from levit_search.pretrained import find_source, load_donor_weights, weights_digest
from levit_search.progress import Progress, no_progress
from levit_search.recipe import Recipe, SupernetConfig
from levit_search.space import Envelope, Space, envelope_of, extremes_of, stem_name
from levit_search.study import StudyConfig, differences
from levit_search.supernet.elastic import Elastic, SupernetCard, read_card
from levit_search.supernet.sandwich import Sandwich
from levit_search.train import Checkpoint, Report, device_of, fit, seed_torch, silent, top1_percent
from levit_search.version import __version__

_FORMAT = 1
_MOST_DRAWS = 10_000  # in a row that are over a limit


class Inheritance:
    """Extracts networks out of shared weights and finds their accuracy.

    Args:
        recipe: of the shared weights, whose views batch-norm statistics are calibrated on.
        config: how many images for what.
    """

    def __init__(self, batches: Batches, recipe: Recipe, config: SupernetConfig, seed: int) -> None:
        self._batches, self._recipe, self._config = batches, recipe, config
        self._seed, self._device = seed, device_of(recipe)
        self._kept: list[Tensor] = []

    def top1_percent(self, elastic: Elastic, network: Levit) -> float:
        """Accuracy on ``val_images`` of ``val``, in percent.

        Raises:
            TrialError: the network answers no finite numbers.
        """
        model = self.extracted(elastic, network)
        return top1_percent(model, self._batches, "val", most=self._config.val_images)

    def extracted(self, elastic: Elastic, network: Levit) -> LevitModel:
        """A network of its own with its part of the weights, its batch norm calibrated, in
        evaluation mode."""
        model = elastic.extract(network)
        calibrate(model, self._views())
        return model

    def _views(self) -> list[Tensor]:
        """The views that statistics come from; in memory, since each candidate needs them."""
        if not self._kept:
            left = self._config.calibration_images
            views = self._batches.train(self._seed, 0, self._recipe, self._device)
            with between_probes(views) as shared:
                for batch in shared:
                    self._kept.append(batch.images[:left].clone())
                    left -= len(self._kept[-1])
                    if left < 2:  # of a single image there are no statistics
                        break
        return self._kept


@torch.no_grad()
def calibrate(model: nn.Module, views: list[Tensor]) -> None:
    """Set batch-norm statistics to the mean of those of ``views``, float [B, C, H, W] each.

    The model is in evaluation mode then. One without batch norm stays as it is.
    """
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches, each weighing the same
        norm.train()
    for images in views:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


@dataclass(frozen=True)
class Supernet:
    """Trained weights for all networks of a space, and what is known of them."""

    elastic: Elastic
    inheritance: Inheritance
    card: SupernetCard

    def summary(self) -> dict[str, float]:
        """What of the card a study keeps with its trials."""
        card = cast(Mapping[str, float], self.card)
        names = ("params", "epochs", "members", "seconds", "val_top1_percent")
        return {name: card[name] for name in names}

    def top1_percent(self, network: Levit) -> float:
        """The inherited accuracy of a network on ``val``, in percent.

        Raises:
            InputError: it is none of the space's.
            TrialError: it answers no finite numbers.
        """
        return self.inheritance.top1_percent(self.elastic, network)

    def extracted(self, network: Levit) -> LevitModel:
        """A network of its own with its part of the weights, calibrated, in evaluation mode.

        Raises:
            InputError: it is none of the space's.
        """
        model = self.inheritance.extracted(self.elastic, network)
        model.started_from = "its part of the supernet"
        return model


def supernet_folder(study: Path) -> Path:
    """Where a study keeps its supernet."""
    return study / "supernet"


def obtain_supernet(
    config: StudyConfig,
    batches: Batches,
    teacher: Callable[[], TeacherAnswers | None],
    study: Path,
    report: Report = silent,
    progress: Progress = no_progress,
) -> Supernet:
    """The supernet of a study, trained now unless it, or the one that it names, is there.

    Args:
        teacher: obtains the teacher with answers for the supernet's epochs, if there is one; asked
            only where the supernet is trained.
        report: called after each epoch with a :class:`levit_search.supernet.SupernetEpoch`.
        progress: told how far its training is, as by :func:`levit_search.train.fit`.

    Raises:
        InputError: the space has networks that share no weights, or the supernet that is there is
            of another space, other data or another recipe, or damaged.
        TrialError: the training failed, or what came of it could not be written.
    """
    space = config.space(str(study / "study.yaml"))
    envelope = envelope_of(space, str(study / "study.yaml"))
    recipe, seed = config.supernet.recipe(config.train), config.search.seed
    inheritance = Inheritance(batches, recipe, config.supernet, seed)
    seed_torch(seed, 3)
    teaching, taught = config.teaching, None
    if teaching is not None and teaching.adapt == "own":
        taught = taught_classes(teaching, batches.info)
        if not envelope.whole.distillation:
            raise InputError(
                "architecture.distillation: false leaves no second head to learn the teacher's "
                "classes; set it to true, or do without --teacher"
            )
    elastic = Elastic(envelope, lambda model: _begin(model, recipe), taught)
    elastic.to(device_of(recipe))
    made_of = identity(config, envelope, batches)
    folder = supernet_folder(study)
    if config.supernet.weights != "train" and not (folder / "card.json").exists():
        _take(expanded(config.supernet.weights), folder, made_of)
    try:
        kept = read_card(folder)
    except FileNotFoundError:
        pass  # it is trained below
    else:
        _check_same(kept["made_of"], made_of, folder, config.supernet.weights == "train")
        load_exactly(elastic, folder / "weights.safetensors")
        return Supernet(elastic, inheritance, kept)
    objective = Sandwich(
        elastic,
        extremes_of(space, envelope),
        lambda rng, stem: draw_within(space, rng, stem),
        config.supernet.members,
        config.supernet.whole_epochs * batches.steps(recipe),
        recipe,
        seed,
        inheritance.top1_percent,
    )
    checkpoint = Checkpoint(folder / "training.pt", json_digest(made_of, 16))
    answers = teacher()
    given = (elastic, batches, recipe, seed, answers, report, checkpoint)
    training = fit(*given, progress=progress, objective=objective)
    found = {
        "made_of": made_of,
        "version": __version__,
        "params": sum(parameter.numel() for parameter in elastic.parameters()),
        "bounds": {name: each.model_dump(mode="json") for name, each in envelope.networks.items()},
        "num_stages": envelope.num_stages,
        "taught_classes": taught,
        **{
            name: {
                "id": network.id,
                "summary": network.summary(),
                **cost(network)._asdict(),
                "architecture": network.model_dump(mode="json"),
            }
            for name, network in objective.ends._asdict().items()
        },
        "epochs": recipe.epochs,
        "members": config.supernet.members,
        "teacher": answers.id if answers is not None else None,
        **training.as_json(),
    }
    card: SupernetCard = json.loads(json.dumps(found))
    with kept_by_checkpoint(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(elastic, folder / "weights.safetensors")
        write_checksummed(folder / "card.json", card)
    checkpoint.remove()
    return Supernet(elastic, inheritance, card)


def _begin(model: LevitModel, recipe: Recipe) -> None:
    """Start with the most important channels and heads of a recipe's weights in front."""
    if recipe.weights != "fresh":
        transfer(ordered(find_source(recipe.weights, model.architecture)), model)
    load_donor_weights(model, recipe.donor_weights)


def identity(config: StudyConfig, envelope: Envelope, batches: Batches) -> dict[str, object]:
    """All that a supernet's weights depend on, as JSON."""
    teaching = config.teaching
    limits = config.limits.model_dump(mode="json", exclude={"latency_ms"})
    made_of = {
        "format": _FORMAT,
        "space": envelope.id,
        "data": batches.data_id,
        "architecture": config.architecture,
        "limits": limits,
        "train": config.supernet.recipe(config.train).decisive(),
        "members": config.supernet.members,
        "seed": config.search.seed,
        "teacher": teaching.model_dump(mode="json") if teaching is not None else None,
    }
    if config.supernet.whole_epochs:
        made_of["whole_epochs"] = config.supernet.whole_epochs
    if config.train.weights != "fresh":
        made_of["weights"] = weights_digest(config.train.weights)
    if teaching is not None and teaching.adapt == "own" and teaching.weights != "pretrained":
        made_of["teacher_weights"] = file_digest(expanded(teaching.weights))
    found: dict[str, object] = json.loads(json.dumps(made_of))
    return found


def _check_same(
    before: Mapping[str, object], now: Mapping[str, object], folder: Path, is_own: bool
) -> None:
    """Refuse the supernet of another space or of other data, and as one's own any other."""
    words = {"format": "other settings", "space": "another space", "data": "other data"}
    for key in (*words, *(sorted(before.keys() | now.keys()) if is_own else ())):
        if before.get(key) == now.get(key):
            continue
        found = differences({key: before.get(key)}, {key: now.get(key)})
        raise InputError(
            f"{folder}: holds a supernet of {words.get(key, 'other settings')} ({found}); choose "
            "another study folder, or remove that one to train it anew"
        )


def _take(source: Path, folder: Path, made_of: Mapping[str, object]) -> None:
    """Copy the supernet of another study."""
    place = source if (source / "card.json").exists() else supernet_folder(source)
    try:
        card = read_card(place)
    except FileNotFoundError:
        raise InputError(
            f"supernet.weights: {source}: holds no supernet; expected train, or the folder of a "
            "study with one"
        ) from None
    _check_same(card["made_of"], made_of, place, is_own=False)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        raw = (place / "weights.safetensors").read_bytes()
        write_atomically(folder / "weights.safetensors", raw)
        write_checksummed(folder / "card.json", {**card, "taken_from": str(source)})


def draw_within(space: Space, rng: np.random.Generator, stem: str | None = None) -> Levit:
    """A random network within the limits that can be told without measuring.

    Args:
        stem: the stem that it has, see :func:`stem_name`; None for any.

    Raises:
        InputError: none of very many is one.
    """
    for _ in range(_MOST_DRAWS):
        try:
            network = space.draw(rng)
        except InputError:
            continue
        assert isinstance(network, Levit)
        if stem not in (None, stem_name(network)):
            continue
        if space.limits.keeps(cost(network)):
            return network
    of_stem = f" with the stem {stem}" if stem is not None else ""
    raise InputError(f"none of {_MOST_DRAWS} random networks{of_stem} is within the limits")
