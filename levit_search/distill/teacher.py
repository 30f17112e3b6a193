"""Obtaining a teacher: out of the study, out of the user's cache, or made now, with its card.

A card tells what a teacher is and how good. It lies beside the weights of one that was trained
here; the weights of others stay where they are. Written last, it says that the weights are whole.
"""

import hashlib
import io
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from levit_search.batches import Batches
from levit_search.data import DataConfig
from levit_search.distill.adapting import Adapted, fit_head
from levit_search.distill.store import check_room
from levit_search.distill.teacher_answers import TeacherAnswers, header_of, shown_epochs
from levit_search.distill.teacher_network import (
    check_size,
    create_teacher,
    identity,
    load_first_weights,
    load_weights,
    pretrained_source,
    shown_size,
    state_digest,
)
from levit_search.errors import InputError, TrialError, writing
from levit_search.files import (
    DamagedFileError,
    expanded,
    file_digest,
    json_digest,
    make_writable,
    read_checksummed,
    user_cache,
    write_atomically,
    write_checksummed,
)
from levit_search.image_size import plain_size
from levit_search.progress import Progress, no_progress
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.train import (
    Checkpoint,
    Report,
    device_of,
    fit,
    seed_torch,
    silent,
    top1_percent,
)
from levit_search.version import __version__

_FORMAT = 1

Say = Callable[[str], None]
TeacherCard = Mapping[str, Any]
"""What :func:`obtain_teacher` tells of a teacher, as JSON."""


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)


def obtain_teacher(
    config: TeacherConfig,
    data: DataConfig,
    batches: Batches,
    recipe: Recipe,
    folder: Path | None,
    seed: int,
    report: Report = silent,
    say: Say = _warn,
    progress: Progress = no_progress,
) -> tuple[TeacherAnswers, TeacherCard]:
    """The teacher's answers and its card; it is trained or adapted now if need be, by one process
    for all.

    A teacher that is made here is kept in ``folder`` and in the user's cache, by everything that
    made it.

    Args:
        data: what the batches were opened from, with its image size.
        recipe: of those that it teaches; its distillation is hard or soft.
        folder: of the study, which stays complete without the cache; None outside of a study.
        seed: of the teacher's weights and training, and of the views that it will be asked about.
        report: called after each epoch of its training.
        say: told where another process is waited for.
        progress: told now and then which part of the features is computed.

    Returns:
        The answers, and ``{id, name, options, weights, params, sha256, data, val_top1_percent,
        required_top1_percent, seconds, ...}``; one that was trained tells its ``recipe``, ``seed``
        and ``curve`` too. One that was adapted tells ``adapt``, the ``image_size`` that views are
        enlarged to, ``adapted_from`` (the SHA-256 of the weights it began with) and ``head``, what
        :func:`levit_search.distill.adapting.fit_head` returned with ``val_top1_percent``.

    Raises:
        InputError: the network or its weights are not to be had, do not fit the data or are not
            good enough, or there is no room for them or for the answers.
        TrialError: its training failed.
    """
    key = _key(config, batches, seed)
    card = _kept(folder, key, config) if folder is not None else None
    if card is None:
        needed = 0
        if config.cache:
            header = header_of("", config, batches, recipe, seed)
            needed = shown_epochs(batches, recipe) * header.epoch_bytes
        card = _cached(key, config)
        if card is None:
            with _alone(key, config.name, say):
                card = _cached(key, config)  # made by whom we have waited for
                if card is None:
                    card = _made(key, config, data, batches, seed, needed, report, progress)
    _check_accuracy(config, card)
    card = {**card, "weights": config.weights, "required_top1_percent": config.top1_percent}
    place = folder or _cache()
    if folder is not None:
        _keep(folder, key, card)
    path = place / f"{key}.pt" if config.is_made_here else _file(config)
    sha256 = card["sha256"]
    answers = TeacherAnswers(
        card["id"], lambda: _built(config, batches, path, sha256), config, batches, recipe
    )
    answers.store(seed)
    return answers, card


def kept_card(config: TeacherConfig, batches: Batches, seed: int) -> TeacherCard | None:
    """The card of a teacher that the user's cache holds; None where it is still to be made.

    Raises:
        InputError: there is no such network or checkpoint.
    """
    return _cached(_key(config, batches, seed), config)


def _cache() -> Path:
    return user_cache() / "teachers"


def _file(config: TeacherConfig) -> Path | None:
    """The file that a configuration names, if it does."""
    return None if config.weights in ("train", "pretrained") else expanded(config.weights)


def _key(config: TeacherConfig, batches: Batches, seed: int) -> str:
    """A name for the teacher's files, by all that made it and the data it was measured on."""
    made_of = {"format": _FORMAT, **identity(config), "data": batches.data_id}
    path = _file(config)
    if path is not None:
        made_of["sha256"] = _checkpoint_digest(path)
    elif config.weights == "pretrained":
        made_of["pretrained"] = pretrained_source(config)
    if config.is_made_here:
        made_of["version"] = __version__
        made_of["recipe"] = config.recipe.decisive()
        made_of["seed"] = seed
    if config.adapt == "head":
        made_of["epochs"] = config.epochs
    return f"{config.name}-{json_digest(made_of, 12)}"


def _checkpoint_digest(path: Path) -> str:
    if not path.is_file():
        raise InputError(
            f"teacher.weights: no such file {path}; expected train, pretrained or a checkpoint"
        )
    try:
        return file_digest(path)
    except OSError as error:
        raise InputError(f"teacher.weights: {path} cannot be read ({error.strerror})") from None


def _kept(place: Path, key: str, config: TeacherConfig) -> TeacherCard | None:
    """The card in a folder, which tells of sound weights; None if there is none."""
    path, weights = place / f"{key}.json", place / f"{key}.pt"
    try:
        card = read_checksummed(path)
        if not {"id", "sha256", "val_top1_percent"} <= card.keys():
            raise DamagedFileError("it is no teacher's card")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except DamagedFileError as error:
        raise InputError(
            f"{path}: damaged ({error}); remove it to have the teacher made again"
        ) from None
    if config.is_made_here and (
        not weights.is_file() or _checkpoint_digest(weights) != card["sha256"]
    ):
        raise InputError(
            f"{weights}: damaged or missing, not the weights that {path.name} tells of; restore "
            f"it, or remove {path.name} to have the teacher trained again"
        )
    return card


def _cached(key: str, config: TeacherConfig) -> TeacherCard | None:
    """The card in the user's cache; a damaged teacher is as good as none there, after a warning."""
    try:
        return _kept(_cache(), key, config)
    except InputError as error:
        _warn(f"{str(error).partition(';')[0]}; this teacher is not used")
        return None


@contextmanager
def _alone(key: str, name: str, say: Say) -> Iterator[None]:
    """Keep other processes from making the same teacher meanwhile."""
    cache = _cache()
    try:
        make_writable(cache)
    except OSError as error:
        raise InputError(
            f"{cache}: cannot be written ({error.strerror or error}), and a teacher is to be kept "
            "there; set XDG_CACHE_HOME to a folder that can"
        ) from None
    lock = FileLock(cache / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that prepares the teacher {name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _made(
    key: str,
    config: TeacherConfig,
    data: DataConfig,
    batches: Batches,
    seed: int,
    needed_bytes: int,
    report: Report,
    progress: Progress,
) -> TeacherCard:
    """Train or adapt a teacher, or measure the one that is given, and keep it in the user's cache.

    ``needed_bytes`` for its answers must be free before anything long begins.
    """
    start, cache, path = time.perf_counter(), _cache(), _file(config)
    if config.is_made_here:
        seed_torch(seed, 4)
    else:
        check_room(cache, needed_bytes)
    model = create_teacher(config, batches)
    if config.adapt == "none":
        check_size(model, config, batches)
    facts: dict[str, object] = {"params": sum(each.numel() for each in model.parameters())}
    if config.weights == "pretrained" and config.adapt != "own":
        facts["pretrained"] = pretrained_source(config)
    if config.is_made_here:
        weights_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
        check_room(cache, weights_bytes + needed_bytes)
        features, checkpoint = cache / f"{key}.features", cache / f"{key}.training.pt"
        if config.adapt != "own":
            facts |= {"recipe": config.recipe.model_dump(mode="json"), "seed": seed}
        if isinstance(model, Adapted):
            adapted_from = load_first_weights(model, config, batches, path)
            facts |= {"adapted_from": adapted_from, "val_top1_percent": None}
        if isinstance(model, Adapted) and config.adapt != "own":
            head = fit_head(model, config, batches, seed, features, progress)
            accuracy = _val_top1_percent(model, config, batches)
            facts["image_size"] = plain_size(shown_size(config, batches.image_size))
            facts["head"] = {**head, "val_top1_percent": accuracy}
            facts["val_top1_percent"] = accuracy
        if config.adapt in ("none", "all"):
            kept = Checkpoint(checkpoint, key)
            try:
                training = fit(model, batches, config.recipe, seed, report=report, checkpoint=kept)
            except TrialError as error:
                raise TrialError(f"teacher {config.name}: {error} (teacher.recipe)") from error
            facts |= training.as_json()
        buffer = io.BytesIO()
        torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, buffer)
        raw = buffer.getvalue()
        sha256 = hashlib.sha256(raw).hexdigest()
        _write(cache / f"{key}.pt", raw)
        checkpoint.unlink(missing_ok=True)
        shutil.rmtree(features, ignore_errors=True)
    else:
        if path is not None:
            load_weights(model, path, config.name)
        sha256 = state_digest(model) if path is None else file_digest(path)
        model.to(device_of(config.recipe))
        facts["val_top1_percent"] = _val_top1_percent(model, config, batches)
    network = identity(config)
    card = {
        "id": f"{config.name}-{json_digest([*network.values(), sha256], 12)}",
        **network,
        "weights": config.weights,
        "sha256": sha256,
        "data": {
            "name": data.name,
            "id": batches.data_id,
            "image_size": plain_size(batches.image_size),
            "in_channels": batches.info.in_channels,
            "num_classes": batches.info.num_classes,
        },
        "seconds": round(time.perf_counter() - start, 3),
        "version": __version__,
        **facts,
    }
    _write(cache / f"{key}.json", card)
    return card


def _val_top1_percent(model: nn.Module, config: TeacherConfig, batches: Batches) -> float:
    try:
        return top1_percent(model, batches, "val")
    except TrialError:
        raise InputError(
            f"teacher {config.name}: its answers are no finite numbers; choose another one"
        ) from None


def _check_accuracy(config: TeacherConfig, card: TeacherCard) -> None:
    reached, required = card["val_top1_percent"], config.top1_percent
    if required is None or reached >= required:
        return
    cure = "choose another one"
    if config.weights == "train":
        epochs = config.recipe.epochs
        cure = f"train it longer (teacher.recipe.epochs, now {epochs}), {cure}"
    elif config.adapt == "head":
        cure = f"adapt all of it (teacher.adapt), {cure}"
    raise InputError(
        f"teacher {config.name}: reached {reached:.2f} % on val, below the teacher.top1_percent of "
        f"{required:g}; {cure} or ask for less"
    )


def _keep(folder: Path, key: str, card: TeacherCard) -> None:
    """Put the card, and the weights of a teacher that was made here, into a study's folder."""
    path, weights = folder / f"{key}.json", folder / f"{key}.pt"
    if path.exists() and read_checksummed(path) == json.loads(json.dumps(card)):
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if (card["weights"] == "train" or "adapt" in card) and not path.exists():
        _write(weights, (_cache() / weights.name).read_bytes())
    _write(path, card)


def _write(path: Path, content: bytes | TeacherCard) -> None:
    with writing(path):
        if isinstance(content, bytes):
            write_atomically(path, content)
        else:
            write_checksummed(path, content)


def _built(config: TeacherConfig, batches: Batches, path: Path | None, sha256: str) -> nn.Module:
    """The teacher's network with the very weights that its card tells of."""
    model = create_teacher(config, batches)
    if path is not None:
        found = _checkpoint_digest(path)
        if found == sha256:
            load_weights(model, path, config.name)
    else:
        found = state_digest(model)
    if found != sha256:
        where = path or "the pretrained weights"
        raise InputError(
            f"teacher {config.name}: {where} have changed since the teacher's card was written"
        )
    return model
