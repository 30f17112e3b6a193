"""Obtaining a study's supernet: read where it is, taken from another study, or trained now.

Its folder holds ``weights.safetensors`` and ``card.json``, which is written last and says that the
weights are whole; while it is trained, ``training.pt``.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from levit_search.architecture import Levit
from levit_search.batches import Batches
from levit_search.cost import cost
from levit_search.distill import TeacherAnswers
from levit_search.distill.network import taught_classes
from levit_search.errors import InputError, kept_by_checkpoint
from levit_search.files import expanded, file_digest, write_atomically, write_checksummed
from levit_search.model import LevitModel, load_exactly, ordered, save_weights, transfer
from levit_search.pretrained import find_source, load_donor_weights, weights_digest
from levit_search.progress import Progress, no_progress
from levit_search.recipe import Recipe
from levit_search.space import Envelope, Space, envelope_of, extremes_of, stem_name
from levit_search.study import StudyConfig, differences
from levit_search.supernet.elastic import Elastic, read_card
from levit_search.supernet.inherited import Inheritance
from levit_search.supernet.sandwich import Sandwich
from levit_search.train import Checkpoint, Report, device_of, fit, seed_torch, silent
from levit_search.version import __version__

_FORMAT = 1
_MOST_DRAWS = 10_000  # in a row that are over a limit


@dataclass(frozen=True)
class Supernet:
    """Trained weights for all networks of a space, and what is known of them."""

    elastic: Elastic
    inheritance: Inheritance
    card: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """What of the card a study keeps with its trials."""
        names = ("params", "epochs", "members", "seconds", "val_top1_percent")
        return {name: self.card[name] for name in names}

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
        config: of the study.
        batches: its data.
        teacher: obtains the teacher with answers for the supernet's epochs, if there is one; asked
            only where the supernet is trained.
        study: its folder.
        report: called after each epoch with a :class:`SupernetEpoch`.
        progress: told how far its training is, as by :func:`levit_search.train.fit`.

    Raises:
        InputError: the space has networks that share no weights, or the supernet that is there is
            of another space, other data or another recipe, or damaged.
        TrialError: the training failed, or what came of it could not be written.
    """
    space = config.space(str(study / "study.yaml"))
    envelope = envelope_of(space, str(study / "study.yaml"))
    recipe, seed = config.supernet.recipe(config.train), config.search.seed
    inheritance = Inheritance(batches, recipe, config.supernet, seed, device_of(recipe))
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
    kept = _kept(folder, made_of, is_own=config.supernet.weights == "train")
    if kept is not None:
        load_exactly(elastic, folder / "weights.safetensors")
        return Supernet(elastic, inheritance, kept)
    lesson = Sandwich(
        elastic,
        extremes_of(space, envelope),
        lambda chance, stem: draw_within(space, chance, stem),
        config.supernet.members,
        config.supernet.whole_epochs * batches.steps(recipe),
        recipe,
        seed,
        inheritance.top1_percent,
    )
    run = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    checkpoint = Checkpoint(folder / "training.pt", run)
    answers = teacher()
    training = fit(
        elastic,
        batches,
        recipe,
        seed,
        answers,
        report,
        checkpoint,
        progress=progress,
        lesson=lesson,
    )
    found = {
        "made_of": made_of,
        "version": __version__,
        "params": sum(parameter.numel() for parameter in elastic.parameters()),
        "bounds": {name: each.model_dump(mode="json") for name, each in envelope.networks.items()},
        "num_stages": envelope.num_stages,
        "taught_classes": taught,
        "largest": _described(lesson.ends.largest),
        "smallest": _described(lesson.ends.smallest),
        "epochs": recipe.epochs,
        "members": config.supernet.members,
        "teacher": answers.id if answers is not None else None,
        **training.as_json(),
    }
    card: dict[str, Any] = json.loads(json.dumps(found))
    _keep(folder, elastic, card)
    checkpoint.remove()
    return Supernet(elastic, inheritance, card)


def _begin(model: LevitModel, recipe: Recipe) -> None:
    """Put what a recipe's weights have into a network that shared weights are made of, the most
    important channels and heads first, and its donor's weights.

    Raises:
        InputError: they fit nothing, or are not to be had.
    """
    if recipe.weights != "fresh":
        transfer(ordered(find_source(recipe.weights, model.architecture)), model)
    load_donor_weights(model, recipe.donor_weights)


def identity(config: StudyConfig, envelope: Envelope, batches: Batches) -> dict[str, Any]:
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
    found: dict[str, Any] = json.loads(json.dumps(made_of))
    return found


def _kept(folder: Path, made_of: dict[str, Any], is_own: bool) -> dict[str, Any] | None:
    try:
        card = read_card(folder)
    except FileNotFoundError:
        return None
    _check_same(card["made_of"], made_of, folder, is_own)
    return card


def _check_same(before: dict[str, Any], now: dict[str, Any], folder: Path, is_own: bool) -> None:
    """Refuse the supernet of another space or of other data, and as one's own any other."""
    compared = before.keys() | now.keys() if is_own else {"format", "space", "data"}
    words = {"space": "another space", "data": "other data"}
    for key in ("format", "space", "data", *sorted(compared)):
        if key not in compared or before.get(key) == now.get(key):
            continue
        found = differences({key: before.get(key)}, {key: now.get(key)})
        raise InputError(
            f"{folder}: holds a supernet of {words.get(key, 'other settings')} ({found}); choose "
            "another study folder, or remove that one to train it anew"
        )


def _take(source: Path, folder: Path, made_of: dict[str, Any]) -> None:
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(
            folder / "weights.safetensors", (place / "weights.safetensors").read_bytes()
        )
        write_checksummed(folder / "card.json", {**card, "taken_from": str(source)})
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None


def _keep(folder: Path, elastic: Elastic, card: dict[str, Any]) -> None:
    with kept_by_checkpoint(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(elastic, folder / "weights.safetensors")
        write_checksummed(folder / "card.json", card)


def _described(network: Levit) -> dict[str, Any]:
    return {
        "id": network.id,
        "summary": network.summary(),
        **cost(network)._asdict(),
        "architecture": network.model_dump(mode="json"),
    }


def draw_within(space: Space, chance: np.random.Generator, stem: str | None = None) -> Levit:
    """A random network within the limits that can be told without measuring.

    Args:
        space: of LeViTs.
        chance: where random numbers come from.
        stem: the stem that it has, see :func:`stem_name`; None for any.

    Raises:
        InputError: none of very many is one.
    """
    for _ in range(_MOST_DRAWS):
        try:
            network = space.draw(chance)
        except InputError:
            continue
        assert isinstance(network, Levit)
        if stem not in (None, stem_name(network)):
            continue
        if all(excess <= 0 for excess in space.limits.excess(cost(network)).values()):
            return network
    of_stem = f" with the stem {stem}" if stem is not None else ""
    raise InputError(f"none of {_MOST_DRAWS} random networks{of_stem} is within the limits")
