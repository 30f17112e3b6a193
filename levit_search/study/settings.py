"""Settings of a study, read and resolved: a space file with ``--set``, or the ``study.yaml`` of a
study folder, as a :class:`levit_search.study.config.StudyConfig`."""

import copy
import glob
import json
import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from levit_search import architecture as architectures
from levit_search import data as datasets
from levit_search.configuration import (
    Frozen,
    field_types,
    is_utf8,
    parse_value,
    put,
    read_yaml,
    shortened,
    validated,
)
from levit_search.data.sources import BUILT_IN
from levit_search.errors import InputError, UnknownNameError
from levit_search.files import is_there
from levit_search.image_size import canonical_size
from levit_search.latency.targets import LatencyConfig, check_programs, read_targets, resolved
from levit_search.pareto import PAIRED, PROBED, figure_and_target
from levit_search.recipe import SHARED, Recipe, is_timm_name
from levit_search.study.config import StudyConfig
from levit_search.study.storage import DamagedError


def space_file(text: str) -> Path:
    """A space file by its path, or an embedded one by its name.

    A name alone is always the embedded space, whatever is called so in the working directory;
    ``./NAME`` is a file.

    Raises:
        InputError: there is neither, or a folder.
    """
    package = Path(__file__).parents[1]
    packaged = package / "spaces"
    folder = packaged if packaged.is_dir() else package.parent / "spaces"
    embedded = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if text in embedded:
        if Path(text).is_file():
            warnings.warn(
                f"{text}: the embedded space is taken; the file of that name here is ./{text}",
                stacklevel=2,
            )
        return embedded[text]
    path = Path(text)
    if is_there(path) and path.is_dir():
        told = "is a folder, where a space file or the name of an embedded space is expected"
        if (path / "study.yaml").is_file():
            told = f"is a study's folder; its space file is {path / 'study.yaml'}"
        raise InputError(f"{text}: {told}")
    if path.suffix in (".yaml", ".yml") or is_there(path):
        return path
    raise UnknownNameError("space", text, embedded)


def read_config(path: Path, changes: Mapping[str, Any] | None = None) -> StudyConfig:
    """The space file at ``path``, resolved so that it no longer depends on other files.

    Args:
        path: a YAML file; see ``spaces/``.
        changes: values by dotted key, put over those in the file.

    Raises:
        InputError: the file cannot be read or says something wrong, or it would have something
            started or joined here that only the user may name.
    """
    raw, changes = read_yaml(path), changes or {}
    config = config_of(up_to_date(raw) if path.name == "study.yaml" else raw, path, changes)
    sections = {f"targets.{name}": section for name, section in config.targets.items()}
    check_programs({"latency": config.latency, **sections}, str(path), changes)
    # Whoever drives a Ray cluster can run anything on the machines that join it.
    address = config.engine.address
    is_known = address in (None, "auto", os.environ.get("RAY_ADDRESS"))
    is_here = re.match(r"(127\.0\.0\.1|localhost|\[::1\]):", address or "")
    if not (is_known or is_here or {"engine", "engine.address"} & changes.keys()):
        raise InputError(
            f"{path}: engine.address: {address!r}: a file's cluster is not joined, since it may "
            "run anything here; if you know it, give it by --address or RAY_ADDRESS"
        )
    return config


def config_of(
    given: Mapping[str, Any], path: Path, changes: Mapping[str, Any] | None = None
) -> StudyConfig:
    """What a space file says, ``given``, resolved as by :func:`read_config`.

    Files that it names are looked for beside ``path`` first.

    Raises:
        InputError: something is wrong.
    """
    raw = copy.deepcopy(dict(given))
    raw.pop("reference_point", None)  # of a study's file; another study finds its own
    _expand_short_forms(raw)
    changes = {_LONG_FORMS.get(key, key): value for key, value in (changes or {}).items()}
    _move_weights(raw, path)
    for key, value in changes.items():
        put(raw, key, value)
        _expand_short_forms(raw)
    if isinstance(train := raw.get("train"), dict):
        if train.get("weights") == "shared":
            train["weights"] = f"{SHARED}{raw.get('name')}"
        epochs = train.get("epochs")
        if epochs == "auto":
            _leave_to_plan(raw, changes.keys())
        elif isinstance(epochs, str):
            raise InputError(
                f"{path}: train.epochs: expected a whole number from 1 on or auto, not "
                f"{shortened(epochs)}"
            )
    _find_targets(raw, path)
    config = located(validated(StudyConfig, raw, str(path)), path, changes)
    config = with_networks_read(config, path, changes)
    update: dict[str, Frozen] = {}
    if config.data.image_size is None:
        size = datasets.describe(config.data).image_size
        update["data"] = config.data.model_copy(update={"image_size": size})
    if config.inherits and "method" not in (raw.get("latency") or {}):
        update["latency"] = _predicted(config)
    return config.model_copy(update=update)


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """``key=value`` texts as values by dotted key of a :class:`StudyConfig`.

    Values are read as :func:`levit_search.configuration.parse_value` does.

    Raises:
        InputError: a text has no ``=`` or its value is no YAML, and no text either.
    """
    changes = {}
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {text}: expected key=value, such as train.epochs=5")
        key = _LONG_FORMS.get(key.strip(), key.strip())
        types = field_types(StudyConfig, key)
        changes[key] = parse_value(value, types, f"--set {text}")
    return changes


# Sections that may be one word, and the key that it is for.
_SHORT_FORMS = {"engine": "kind", "latency": "method"}
# Keys that stand at the top for one of a section.
_LONG_FORMS = {"weights": "train.weights"}


def _expand_short_forms(raw: MutableMapping[str, Any]) -> None:
    for section, key in _SHORT_FORMS.items():
        if isinstance(raw.get(section), str):
            raw[section] = {key: raw[section]}
    if raw.get("teacher") == "auto":
        raw["teacher"] = {"auto": True}


def _move_weights(raw: MutableMapping[str, Any], path: Path) -> None:
    """Put ``weights`` of a file where it belongs, into ``train``."""
    if "weights" not in raw:
        return
    weights, train = raw.pop("weights"), raw.setdefault("train", {})
    if not isinstance(train, dict):
        return  # which is refused where it stands
    if train.setdefault("weights", weights) != weights:
        raise InputError(
            f"{path}: weights: {shortened(weights)} and train.weights: "
            f"{shortened(train['weights'])} are the same setting; leave one out"
        )


def _leave_to_plan(raw: MutableMapping[str, Any], changed: Collection[str]) -> None:
    """Take ``train.epochs: auto`` out of what a file says, and note what else it states: not what
    an earlier plan chose, but for what was ``changed`` since."""
    earlier = raw.get("plan")
    chosen = set(earlier.get("settings", {}) if isinstance(earlier, Mapping) else {}) - set(changed)
    sections = {name: raw.get(name) for name in ("train", "data")}
    for name, section in sections.items():
        if isinstance(section, Mapping):
            raw[name] = {k: v for k, v in section.items() if f"{name}.{k}" not in chosen}
    del raw["train"]["epochs"]
    given = {f"train.{key}" for key in Recipe.stated(raw["train"])}
    if isinstance(raw.get("data"), Mapping) and raw["data"].get("train_images") is not None:
        given.add("data.train_images")
    raw["plan"] = {"given": sorted(given)}


def _find_targets(raw: MutableMapping[str, Any], path: Path) -> None:
    """Look the names of ``targets.yaml`` up, in ``latency`` and in the sections of ``targets``; a
    text in the place of such a section is its target alone."""
    latency, targets = raw.get("latency"), raw.get("targets")
    if not isinstance(latency, Mapping) and not isinstance(targets, Mapping):
        return
    named = read_targets(path.parent)
    if isinstance(latency, Mapping):
        raw["latency"] = resolved(latency, named, str(path))
    if isinstance(targets, Mapping):
        raw["targets"] = dict(targets)
        for name, written in targets.items():
            section = {"target": written} if isinstance(written, str) else written
            if isinstance(section, Mapping):
                raw["targets"][name] = resolved(section, named, f"{path}: targets.{name}")


def _predicted(config: StudyConfig) -> LatencyConfig:
    """The ``latency`` section with predictions, where they can be had: measuring each of thousands
    of candidates would take longer than all the rest."""
    measured = {name for name in config.objectives if name in PROBED}
    if not measured or measured - {*PAIRED}:
        return config.latency
    given = {**config.latency.model_dump(mode="json"), "method": "predicted"}
    try:
        return LatencyConfig.model_validate(given)
    except ValidationError:
        return config.latency


def located(
    config: StudyConfig, path: Path, changes: Mapping[str, Any] | None = None
) -> StudyConfig:
    """The same with absolute paths to data, weights and studies.

    One that is not in UTF-8 stays as it was written. What a file names is looked for beside it
    first, then in the working directory, and what is given by hand in the working directory alone.
    ``changes`` are the values by dotted key that were given by hand.
    """

    def absolute(text: str, key: str) -> str:
        found = str(_absolute(text, key, path, changes or {}))
        return found if is_utf8(found) else text  # no file can hold it, but we are near it now

    sections: dict[str, Frozen] = {}
    data = config.data
    if data.root is not None and "://" not in data.root:
        root = absolute(data.root, "data.root")
        # To a plug-in it may be something else than a path.
        if data.name in BUILT_IN or "/" in data.name or is_there(Path(root)):
            sections["data"] = data.model_copy(update={"root": root})
    for key, words in _PATHS.items():
        section, _, name = key.partition(".")
        given = sections.get(section) or getattr(config, section)
        text: Any = getattr(given, name, None)
        is_name = key == "train.weights" and (text.startswith(SHARED) or is_timm_name(text))
        if text not in words and not is_name:
            sections[section] = given.model_copy(update={name: absolute(text, key)})
    compare = tuple(
        each
        if each.weights in ("fresh", "pretrained")
        else each.model_copy(update={"weights": absolute(each.weights, f"compare.{index}.weights")})
        for index, each in enumerate(config.compare)
    )
    return config.model_copy(update={**sections, "compare": compare})


# Keys of paths to weights, and what may stand there instead.
_PATHS = {
    "train.donor_weights": (None, "pretrained"),
    "train.weights": ("fresh",),
    "teacher.weights": (None, "train", "pretrained"),
    "supernet.weights": ("train",),
    "search.learn_from": (None,),
}


def with_networks_read(
    config: StudyConfig, path: Path, changes: Mapping[str, Any] | None = None
) -> StudyConfig:
    """The same with descriptions of networks in place of the files that have them, which are
    looked for as by :func:`located`.

    Raises:
        InputError: such a file is missing, or not one of a network.
    """

    def read(entry: str | dict[str, Any], key: str) -> str | dict[str, Any]:
        if isinstance(entry, dict) or entry in architectures.published_names():
            return entry
        found = _absolute(entry, key, path, changes or {})
        if not is_there(found) and found.suffix not in (".yaml", ".yml"):
            unknown = UnknownNameError("architecture", entry, architectures.published_names())
            place = "--set" if _is_given(key, changes or {}) else f"{path}:"
            raise InputError(f"{place} {key}: {unknown}")
        stated = read_yaml(found)
        if not {"image_size", "num_classes"} <= stated.keys():
            return stated  # what it is in full depends on the data
        whole = architectures.parse(stated, str(found)).model_dump(mode="json")
        left_out = {*architectures.SIZES} - stated.keys()
        return {name: each for name, each in whole.items() if name not in left_out}

    def section(given: LatencyConfig, key: str) -> LatencyConfig:
        return given.model_copy(update={"reference": read(given.reference, f"{key}.reference")})

    targets = {name: section(each, f"targets.{name}") for name, each in config.targets.items()}
    start = tuple(read(each, f"start.{index}") for index, each in enumerate(config.start))
    latency = section(config.latency, "latency")
    return config.model_copy(update={"start": start, "latency": latency, "targets": targets})


def _is_given(key: str, changes: Mapping[str, Any]) -> bool:
    return any(f"{key}.".startswith(f"{given}.") for given in changes)


def _absolute(text: str, key: str, path: Path, changes: Mapping[str, Any]) -> Path:
    """The path that stands at ``key`` of the file ``path``, or in ``changes``."""
    place = Path(os.path.expanduser(text))  # noqa: PTH111 (leaves a home that nobody has as it is)
    if not _is_given(key, changes):
        beside = path.parent / place
        # ``{name}`` in it stands for any name, to be filled in later.
        if glob.glob(glob.escape(str(beside)).replace("{name}", "*")):  # noqa: PTH207 (from anywhere)
            place = beside
    folder, separator, number = text.rpartition("#")
    if separator and not is_there(place) and number.isdigit():  # a trial of a study
        return Path(f"{_absolute(folder, key, path, changes)}#{number}")
    found = place.absolute()
    # A folder that the way leads out of again may be gone tomorrow.
    return Path(os.path.realpath(found)) if ".." in found.parts else found


VERSION = 1
"""Of a study folder. Whoever raises it brings older folders up to date in :func:`read_settings`.

Folders without a backup, as earlier releases left them, are of this version, too: the next search
makes one, see :mod:`levit_search.study.stored_trials`.
"""


def read_settings(path: Path) -> StudyConfig:
    """The configuration in a study folder, with absolute paths, as it is also edited by hand.

    Raises:
        DamagedError: the file is missing, or not as a search writes it.
        InputError: a newer release wrote it.
    """
    if not path.is_file():
        raise DamagedError(f"{path.parent}: is no study folder (it has no {path.name})")
    try:
        raw = read_yaml(path)
    except InputError as error:
        raise DamagedError(str(error)) from None
    version = raw.get("version")
    if type(version) is int and version > VERSION:
        raise InputError(
            f"{path}: is of version {version}, which a newer release of levit-search wrote; this "
            f"one reads version {VERSION}: update levit-search"
        )
    if type(version) is not int or version != VERSION:
        told = f"version {version!r} is not {VERSION}" if "version" in raw else "has no version"
        raise DamagedError(f"{path}: {told}, as in every study folder")
    try:
        return located(validated(StudyConfig, up_to_date(raw), str(path)), path)
    except InputError as error:
        raise DamagedError(str(error)) from None


# What earlier releases measured hypervolumes from in every study, and wrote into its file.
_EARLIER_REFERENCE: dict[str, float] = {
    "top1_percent": 0.0,
    "latency_ms": 1e3,
    "latency_median_ms": 1e3,
    "latency_p95_ms": 1e3,
    "peak_memory_mb": 1e5,
    "flops": 1e11,
    "params": 1e9,
    "activations": 1e9,
}


def up_to_date(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """A study's settings as this release writes them.

    Those of earlier ones have the same reference of hypervolumes in every study, which nobody
    chose; such a study keeps it.
    """
    given = settings.get("hypervolume_reference")
    if "reference_point" in settings or not isinstance(given, Mapping):
        return settings
    chosen = {
        name: value
        for name, value in given.items()
        if value != _EARLIER_REFERENCE.get(figure_and_target(str(name))[0])
    }
    return {**settings, "hypervolume_reference": chosen, "reference_point": dict(given)}


def comparable(config: StudyConfig) -> Mapping[str, Any]:
    """All settings that the trials of one study have to share.

    Left out are the budgets, what carries evaluations out, where data and trials are kept, what a
    search is compared with, what it found as the reference of hypervolumes, and the sizes that
    networks to try first and references have from the data in any case.
    """
    # Earlier releases kept paths as they were given, seen from the working directory.
    config = located(config, Path())
    with suppress(InputError):
        config = with_networks_read(config, Path())
    # Empty, and not left out: by that settings of this release are told from earlier ones.
    settings = config.model_copy(update={"reference_point": {}}).model_dump(
        mode="json",
        exclude={
            "data": {"root"},
            "engine": True,
            "storage": True,
            "compare": True,
            "search": {"trials", "time_s"},
            "supernet": {"rivals"},
        },
    )
    for network in settings["start"]:
        for key in architectures.SIZES if isinstance(network, dict) else ():
            network.pop(key, None)
    for section in (settings["latency"], *settings["targets"].values()):
        reference = section["reference"]
        if not isinstance(reference, dict):
            continue
        # One that is made for another size is fitted to the data's, and may be another network.
        if canonical_size(reference.get("image_size")) == config.data.image_size:
            del reference["image_size"]
        for key in ("in_channels", "num_classes"):
            reference.pop(key, None)
    return settings


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first keys whose values differ, as ``train.epochs 12 -> 3``."""
    flat_before, flat_now = dict(_flat(before, "")), dict(_flat(now, ""))
    keys = [k for k in {**flat_before, **flat_now} if flat_before.get(k) != flat_now.get(k)]
    shown = [f"{key} {flat_before.get(key)} -> {flat_now.get(key)}" for key in keys[:3]]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(shown) + more


def _flat(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.loads(json.dumps(node))
