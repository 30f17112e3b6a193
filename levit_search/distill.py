"""Teachers: obtained once, asked once for each batch of views."""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from levit_search import __version__
from levit_search.batches import Batches
from levit_search.data import DataConfig, user_cache
from levit_search.errors import InputError, UnknownNameError
from levit_search.files import write_atomically, write_json
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.train import Report, device_of, fit, seed_torch, silent


class Teacher:
    """Hard labels of a teacher network, remembered for each (seed, epoch, batch).

    All candidates of a search see the same views in the same order, so that the first one pays
    for the teacher and the others look its answers up.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self._device = device_of(recipe)
        self._model = model.eval().to(self._device)
        self._labels: dict[tuple[int, int, int], Tensor] = {}

    @torch.inference_mode()
    def __call__(self, seed: int, epoch: int, batch: int, images: Tensor) -> Tensor:
        """The class the teacher puts first, int64 [B], for images [B, C, S, S]."""
        key = (seed, epoch, batch)
        if key not in self._labels:
            self._labels[key] = self._model(images.to(self._device)).argmax(1).cpu()
        # A tensor made in inference mode cannot take part in training; its clone can.
        with torch.inference_mode(False):
            return self._labels[key].clone().to(images.device)


def create_teacher(config: TeacherConfig, batches: Batches) -> nn.Module:
    """The teacher's network for the data's channels and classes, with its first weights.

    Raises:
        InputError: timm has no such network or options, or its pretrained weights are out of reach.
    """
    import timm

    if not timm.is_model(config.name):
        raise UnknownNameError("teacher", config.name, timm.list_models())
    if config.weights == "pretrained":
        _check_pretrained(config, batches.info.num_classes)
    try:
        model = timm.create_model(
            config.name,
            pretrained=config.weights == "pretrained",
            num_classes=batches.info.num_classes,
            in_chans=batches.info.in_channels,
            **config.options,
        )
    except Exception as error:  # timm's builders and the hub's client each raise their own kinds
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(f"teacher {config.name}: cannot be built ({reason})") from error
    assert isinstance(model, nn.Module)
    return model


def _check_pretrained(config: TeacherConfig, num_classes: int) -> None:
    """A pretrained network with a new head would teach noise."""
    import timm

    known = timm.get_pretrained_cfg(config.name)
    if known is not None and known.num_classes != num_classes:
        raise InputError(
            f"teacher {config.name}: its pretrained weights know {known.num_classes} classes, the "
            f"data has {num_classes}; set weights to train or to a checkpoint made for the data"
        )


def obtain_teacher(
    config: TeacherConfig,
    data: DataConfig,
    batches: Batches,
    folder: Path,
    seed: int,
    report: Report = silent,
) -> tuple[Teacher, dict[str, Any]]:
    """The teacher, trained now if need be, and its card.

    A trained teacher is kept in ``folder`` and in the user's cache, by everything that made it.

    Args:
        config: which network and which weights.
        data: the data set's configuration, part of a trained teacher's identity.
        batches: the data.
        folder: of the study, which stays complete without the cache.
        seed: of the teacher's weights and of its training.
        report: called after each epoch of its training.

    Raises:
        InputError: the network or its weights are not to be had, or do not fit the data.
        TrialError: its training diverged.
    """
    if config.weights != "train":
        model = create_teacher(config, batches)
        if config.weights != "pretrained":
            _load_checkpoint(model, Path(config.weights).expanduser(), config.name)
        return Teacher(model, config.recipe), {"name": config.name, "weights": config.weights}
    key = _identity(config, data, seed)
    kept, cached = folder / f"{key}.pt", user_cache() / "teachers" / f"{key}.pt"
    if not kept.exists():
        if not cached.exists():
            _train(config, batches, cached, seed, report)
        folder.mkdir(parents=True, exist_ok=True)
        for path in (cached.with_suffix(".json"), cached):
            write_atomically(folder / path.name, path.read_bytes())
    model = create_teacher(config, batches)
    _load_checkpoint(model, kept, config.name)
    return Teacher(model, config.recipe), json.loads(kept.with_suffix(".json").read_text())


def shared_teacher(
    config: TeacherConfig, data: DataConfig, batches: Batches, seed: int, report: Report = silent
) -> Teacher:
    """The teacher outside of a study: :func:`obtain_teacher`, kept in the user's cache alone."""
    with tempfile.TemporaryDirectory() as folder:
        teacher, _ = obtain_teacher(config, data, batches, Path(folder), seed, report)
    return teacher


def _identity(config: TeacherConfig, data: DataConfig, seed: int) -> str:
    made_of = {
        "version": __version__,
        "teacher": config.model_dump(mode="json"),
        "data": data.model_dump(mode="json"),
        "seed": seed,
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    return f"{config.name}-{digest[:12]}"


def _train(config: TeacherConfig, batches: Batches, path: Path, seed: int, report: Report) -> None:
    seed_torch(seed, 4)
    model = create_teacher(config, batches)
    training = fit(model, batches, config.recipe, seed, report=report)
    card = {
        "name": config.name,
        "options": config.options,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        **asdict(training),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"), card)
    partial = path.with_suffix(".partial")
    torch.save(model.state_dict(), partial)
    shutil.move(partial, path)


def _load_checkpoint(model: nn.Module, path: Path, name: str) -> None:
    if not path.is_file():
        raise InputError(
            f"teacher.weights: no such file {path}; expected train, pretrained or a checkpoint"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state.get("model", state))
    except Exception as error:  # torch, pickle and zip each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"teacher {name}: {path} does not fit ({reason})") from error
