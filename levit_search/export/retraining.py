"""Trains a chosen network again, from what a study starts from, longer than its search could."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast, get_args

from levit_search.architecture import Architecture
from levit_search.data import DataInfo, describe
from levit_search.distill.single import train_single
from levit_search.errors import InputError
from levit_search.files import DamagedFileError, check_weights, read_bounded, read_checksummed
from levit_search.progress import Progress
from levit_search.recipe import RecipeName
from levit_search.study import Study, StudyConfig, config_of


@dataclass(frozen=True)
class Retraining:
    """What is asked for.

    Args:
        epochs: of each training.
        seeds: how many trainings; the first has the study's seed.
        recipe: ``short`` or ``levit`` in place of the study's ``train`` section.
        changes: values of ``data``, ``train`` and ``teacher`` by dotted key.
    """

    epochs: int
    seeds: int = 1
    recipe: str | None = None
    changes: Mapping[str, Any] | None = None

    def options(self) -> list[str]:
        """As the command line would be told it."""
        found = ["--retrain", "--epochs", str(self.epochs), "--seeds", str(self.seeds)]
        if self.recipe is not None:
            found += ["--recipe", self.recipe]
        for key, value in (self.changes or {}).items():
            found += ["--set", f"{key}={json.dumps(value)}"]  # JSON is YAML
        return found


@dataclass(frozen=True)
class Retrained:
    """What came of it; accuracies in percent, by seed in the order of ``seeds``."""

    epochs: int
    seeds: tuple[int, ...]
    val_top1_percent: tuple[float, ...]
    test_top1_percent: tuple[float, ...]
    seed: int
    """Of the weights that are taken: the best on val."""
    train_images: int
    curve: tuple[Mapping[str, float], ...]
    """Of that seed."""


def config_for(study: Study, asked: Retraining) -> StudyConfig:
    """The study's configuration with the longer recipe and all training images.

    Raises:
        InputError: something that is asked for is wrong.
    """
    given = study.config.model_dump(mode="json")
    if study.config.teacher is not None and study.config.teacher.auto:
        choice = study.attributes().get("teacher_choice")
        is_kept = choice is not None and choice["kept"]
        given["teacher"] = {**given["teacher"], "auto": False} if is_kept else None
    changes: dict[str, Any] = {"data.train_images": None, "train.rungs": []}
    if asked.recipe is not None:
        if asked.recipe not in get_args(RecipeName):
            allowed = " or ".join(get_args(RecipeName))
            raise InputError(f"--recipe {asked.recipe}: expected {allowed}")
        # What says where it runs, and what it starts from, stays.
        kept = ["threads", "workers", "precision", "channels_last", "compile"]
        kept += ["donor_weights", "weights"]
        train = {key: value for key, value in given["train"].items() if key in kept}
        given["train"] = {"recipe": asked.recipe, **train}
    changes |= dict(asked.changes or {})
    strange = [key for key in changes if key.split(".")[0] not in ("data", "train", "teacher")]
    if strange:
        raise InputError(
            f"--set {strange[0]}: a network is trained again with other keys of data, train and "
            "teacher only"
        )
    changes["train.epochs"] = asked.epochs
    config = config_of(given, study.folder / "study.yaml", changes)
    if config.data.size != study.config.data.size or config.data.name != study.config.data.name:
        raise InputError(
            "--set: the network is made for the study's images; data.name and data.image_size stay"
        )
    return config


def retrained(
    study: Study,
    network: Architecture,
    config: StudyConfig,
    count: int,
    progress: Progress,
) -> tuple[Path, Retrained]:
    """Train ``network`` with each seed, from what the study starts from, and measure it on test.

    Each training is kept in ``retrained/`` of the study folder; one that was interrupted goes on
    from its checkpoint and one that is finished is not done again.

    Args:
        study: in whose folder trainings are kept.
        network: of the study.
        config: see :func:`config_for`.
        count: of seeds; the first is the configuration's.
        progress: told of each epoch.

    Returns:
        The weights of the seed that is best on val, and what came of all.

    Raises:
        InputError: data, teacher or donor weights are missing or unfit.
        TrialError: a training failed.
    """
    # Training by itself would fit the network to whatever images there are.
    check_images(network, describe(config.data))
    # Of all that a training depends on but its seed, wherever the data lies.
    decisive = config.model_dump(mode="json", include={"data", "train", "teacher"})
    decisive["data"]["root"] = None
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
    base = study.folder / "retrained" / f"{network.id}-{digest}"
    first, results = config.search.seed, dict[int, _Result]()
    for seed in range(first, first + count):
        if count > 1:
            progress(f"{network.id}: seed {seed}, {seed - first + 1} of {count}", None)
        folder = base / f"seed-{seed}"
        result = _finished(folder)
        if result is None:
            search = config.search.model_copy(update={"seed": seed})
            seeded = config.model_copy(update={"search": search})
            made = train_single(
                network, seeded, True, folder, None, lambda text: progress(text, None)
            )
            result = json.loads(json.dumps(made))  # as it is read the next time
        results[seed] = result
    best = max(results, key=lambda seed: results[seed]["val_top1_percent"])
    return base / f"seed-{best}" / "model.safetensors", Retrained(
        config.train.epochs,
        tuple(results),
        tuple(result["val_top1_percent"] for result in results.values()),
        tuple(result["test_top1_percent"] for result in results.values()),
        best,
        results[best]["train_images"],
        tuple(results[best]["curve"]),
    )


def check_images(network: Architecture, info: DataInfo) -> None:
    """Make sure that the data still has the channels and classes that a network is made for.

    Raises:
        InputError: it has not.
    """
    now, before = (info.num_classes, info.in_channels), (network.num_classes, network.in_channels)
    if now != before:
        raise InputError(
            f"data: has {now[0]} classes in {now[1]} channels now; the network is made for "
            f"{before[0]} in {before[1]}"
        )


class _Result(TypedDict):
    """What is read of a finished training."""

    val_top1_percent: float
    test_top1_percent: float
    train_images: int
    curve: list[Mapping[str, float]]


def _finished(folder: Path) -> _Result | None:
    """What a training came to; None where it has not ended. A damaged one is removed."""
    files = folder / "training.json", folder / "model.safetensors"
    path = files[0]
    if not path.exists():
        return None
    try:
        result = read_checksummed(path)
        if not result.keys() >= _Result.__annotations__.keys():
            raise DamagedFileError("it is no training's result")
        path = files[1]
        check_weights(read_bounded(path))
    except (FileNotFoundError, DamagedFileError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
        warnings.warn(f"{path}: {reason}; the network is trained again", stacklevel=2)
        for each in (*files, folder / "architecture.yaml"):
            each.unlink(missing_ok=True)
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    return cast(_Result, result)
