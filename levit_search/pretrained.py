"""Trained weights that networks, or the ResNets that they begin with, start from; a recipe names
them."""

import hashlib
import json
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from levit_search.architecture import Architecture, Graft, Levit, ResNetStem
from levit_search.errors import InputError, UnknownNameError, first_line
from levit_search.files import expanded, file_digest, is_there
from levit_search.recipe import SHARED, Recipe, is_timm_name
from levit_search.space import stem_name
from levit_search.study import Record, Study

if TYPE_CHECKING:
    from levit_search.model import Model
    from levit_search.model.source import TrainedWeights

_ALLOWED = (
    "expected fresh, shared, a file of weights, the folder of an export, of train --out or of a "
    "supernet, a study or STUDY#TRIAL, or timm's name of a LeViT, DeiT or ResNet"
)


def start_from(model: "Model", weights: str) -> str | None:
    """Put what fits of a recipe's ``weights`` into a freshly initialised network, in place.

    Returns:
        What came over in one line; None where fresh weights are wanted. A network that nothing fits
        starts fresh, with the reason here and in a warning.

    Raises:
        InputError: the weights are not to be had.
    """
    if weights == "fresh":
        return None
    from levit_search.model import misfit, transfer

    source = find_source(weights, model.architecture)
    reason = misfit(source, model.architecture)
    if reason is None:
        return transfer(source, model).told()
    told = f"fresh weights ({reason})"
    warnings.warn(f"{model.architecture.summary()}: starts with {told}", stacklevel=2)
    return told


def check_weights_fit(recipe: Recipe, networks: Iterable[Architecture]) -> None:
    """Make sure that a recipe's ``weights`` are there and that a network can start from them.

    Raises:
        InputError: the weights are not to be had, or fit none of the networks; the message is about
            the first of them.
    """
    if recipe.weights == "fresh":
        return
    from levit_search.model import misfit

    reasons = []
    for network in networks:
        reason = misfit(find_source(recipe.weights, network), network)
        if reason is None:
            return
        reasons.append(reason)
    if reasons:
        raise InputError(f"train.weights: {reasons[0]}")


def find_source(weights: str, network: Architecture | None = None) -> "TrainedWeights":
    """The trained weights that a text stands for; those that were asked for last stay in memory.

    Args:
        weights: a file, a folder with ``model.safetensors``, a study or ``STUDY#TRIAL``, a name of
            timm's, ``shared/NAME``, or the folder of a supernet. Of a study the most accurate
            network is taken, or its supernet if none was trained alone.
        network: what starts from them; of shared weights those with its stem are taken, without
            one those of the most tokens.

    Raises:
        InputError: there is no such thing, it is damaged, or it holds no weights of a LeViT, DeiT
            or ResNet.
    """
    if is_timm_name(weights):
        return _of_timm(weights.removeprefix("timm/"))
    folder = _shared_folder(weights)
    if folder is not None:
        stem = stem_name(network) if isinstance(network, Levit) else ""
        return _read_shared(folder, stem, weights, _stamp(folder / _SHARED_FILE))
    path, described = _found(weights)
    return _read(path, described, _stamp(path))


def pinned(weights: str) -> str:
    """A study's folder with the trial, or its supernet's, whose weights are taken now; anything
    else as it is.

    Raises:
        InputError: the study has no trained weights.
    """
    if weights == "fresh" or is_timm_name(weights) or not _is_study(expanded(weights)):
        return weights
    folder = _shared_folder(weights)
    if folder is not None:
        return str(folder)
    return f"{weights}#{_best(expanded(weights)).trial}"


def weights_digest(weights: str) -> str:
    """A SHA-256 over the content of trained weights, or over what a name of timm's stands for.

    Raises:
        InputError: they are not to be had.
    """
    if is_timm_name(weights):
        return hashlib.sha256(json.dumps(_timm_source(weights)).encode()).hexdigest()
    folder = _shared_folder(weights)
    if folder is not None:
        path = folder / _SHARED_FILE
        return _digest(path, _stamp(path))
    path, network = _found(weights)
    return f"{_digest(path, _stamp(path))}{network.id if network is not None else ''}"


Stamp = tuple[int, int]


def _stamp(path: Path) -> Stamp:
    """Another one once a file has changed."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=8)
def _digest(path: Path, stamp: Stamp) -> str:
    del stamp
    return file_digest(path)


@lru_cache(maxsize=2)
def _read(path: Path, network: Architecture | None, stamp: Stamp) -> "TrainedWeights":
    from levit_search.model.source import source_of
    from levit_search.model.weights import state_dict_of

    del stamp
    return source_of(state_dict_of(path, str(path)), str(path), network)


def _found(weights: str) -> tuple[Path, Architecture | None]:
    """The file that a text stands for, and whose weights it holds where that is written down."""
    path = expanded(weights)
    if _is_study(path):
        return _of_trial(path, str(_best(path).trial))
    if is_there(path):
        from levit_search.model.source import weights_file

        return weights_file(path)
    folder, separator, number = weights.rpartition("#")
    if not separator or not _is_study(expanded(folder)):
        raise InputError(f"{weights}: there is no such thing; {_ALLOWED}")
    return _of_trial(expanded(folder), number)


_PACKAGED = Path(__file__).parent / "shared_weights"
_SHARED_FILE = "weights.safetensors"


def _shared_folder(weights: str) -> Path | None:
    """The folder of the shared weights that a text stands for; None where it is something else."""
    if weights.startswith(SHARED):
        name = weights.removeprefix(SHARED)
        known = sorted(path.parent.name for path in _PACKAGED.glob(f"*/{_SHARED_FILE}"))
        if name not in known:
            raise InputError(
                f"weights: shared: no shared weights of a space {name!r} come with this package "
                f"({', '.join(known) or 'none do'}); `levit-search supernet SPACE.yaml --data "
                "generated` trains some, and its study is named by weights then"
            )
        return _PACKAGED / name
    path = expanded(weights)
    if _is_supernet(path):
        return path
    if _is_study(path) and _is_supernet(path / "supernet") and _trained(path) is None:
        return path / "supernet"
    return None


def _is_supernet(path: Path) -> bool:
    return is_there(path / "card.json") and is_there(path / _SHARED_FILE)


@lru_cache(maxsize=4)
def _read_shared(folder: Path, stem: str, name: str, stamp: Stamp) -> "TrainedWeights":
    from levit_search.supernet.elastic import shared_source

    del stamp
    return shared_source(folder, stem, name)


def _is_study(path: Path) -> bool:
    return is_there(path / "study.yaml")


@lru_cache(maxsize=8)  # a storage takes a while to read, and a finished trial stays what it is
def _of_trial(folder: Path, number: str) -> tuple[Path, Architecture | None]:
    study = Study.open(folder)
    record = study.record(number)
    return study.weights_of(record), record.architecture


def _best(folder: Path) -> Record:
    """The most accurate trial of a study whose weights are there."""
    found = _trained(folder)
    if found is None:
        raise InputError(f"{folder}: no trial of this study has trained weights; {_ALLOWED}")
    return found


def _trained(folder: Path) -> Record | None:
    study = Study.open(folder)
    found = [
        record
        for record in study.records()
        if record.architecture is not None
        and "top1_percent" in record.values
        and study.weights(record.architecture.id).is_file()
    ]
    return max(found, key=lambda record: record.values["top1_percent"], default=None)


def _timm_source(weights: str) -> dict[str, str | None]:
    """Which weights a name of timm's stands for; InputError where timm has none."""
    import timm

    name = weights.removeprefix("timm/")
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a network of timm's with a tag that is none
        known = None
    if known is None or not known.has_weights:
        all_names = timm.list_pretrained(["levit_*", "deit*", "resnet*"])
        raise UnknownNameError("weights of timm's", name, all_names)
    return {part: getattr(known, part) for part in ("architecture", "tag", "hf_hub_id", "url")}


@lru_cache(maxsize=2)
def _of_timm(name: str) -> "TrainedWeights":
    import timm
    import torch

    from levit_search.model.source import source_of

    _timm_source(name)
    try:
        with torch.random.fork_rng(devices=[]):  # reading draws none of the caller's numbers
            model = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client raises kinds of its own
        raise InputError(
            f"timm's {name}: not to be had ({first_line(error)}); where there is no network, give "
            "the file of its weights"
        ) from error
    return source_of(model.state_dict(), name)


def donor_of(network: Architecture) -> str | None:
    """The ResNet that a network begins with: a graft's donor or a LeViT's ResNet stem."""
    if isinstance(network, Graft):
        return network.donor.name if network.donor is not None else None
    return network.stem.kind if isinstance(network.stem, ResNetStem) else None


def check_donor_weights(weights: str | None, donors: Iterable[str]) -> None:
    """Make sure that a recipe's ``donor_weights`` have a file for every ResNet of ``donors``.

    Raises:
        InputError: a file is missing.
    """
    for name in sorted(donors):
        path = _donor_file(weights, name)
        if path is not None and not path.is_file():
            raise InputError(
                f"train.donor_weights: {path}: no such file for the donor {name}; expected null, "
                "pretrained or a file ({name} stands for the donor's)"
            )


def load_donor_weights(model: "Model", weights: str | None) -> None:
    """Load what the recipe names into the donor of ``model``; one without a donor stays as it is.

    Raises:
        InputError: the weights are not to be had or do not fit.
    """
    name = donor_of(model.architecture)
    if weights is None or name is None:
        return
    from levit_search.model import load_donor

    load_donor(model, _donor_file(weights, name))


def _donor_file(weights: str | None, name: str) -> Path | None:
    """The file of a donor's weights; None where they are timm's own, or none are wanted."""
    if weights in (None, "pretrained"):
        return None
    return expanded(weights.replace("{name}", name))
