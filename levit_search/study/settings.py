"""The settings that a study folder keeps, and what those of one study may not differ in."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from levit_search.architecture import SIZES
from levit_search.configuration import read_yaml, validated
from levit_search.errors import InputError
from levit_search.image_size import canonical_size
from levit_search.study.config import StudyConfig, located, up_to_date, with_networks_read
from levit_search.study.storage import DamagedError

VERSION = 1
"""Of a study folder. Whoever raises it brings older folders up to date in :func:`read_settings`.

Folders without a backup, as earlier releases left them, are of this version, too: the next search
makes one, see :mod:`levit_search.study.writing`.
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


def comparable(config: StudyConfig) -> dict[str, Any]:
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
    settings["start"] = [_without(entry, SIZES) for entry in settings["start"]]
    for section in (settings["latency"], *settings["targets"].values()):
        reference = _without(section["reference"], ("in_channels", "num_classes"))
        # One that is made for another size is fitted to the data's, and may be another network.
        if (
            isinstance(reference, dict)
            and canonical_size(reference.get("image_size")) == config.data.image_size
        ):
            del reference["image_size"]
        section["reference"] = reference
    return settings


def _without(network: str | dict[str, Any], keys: Collection[str]) -> str | dict[str, Any]:
    """A description of a network without some of its keys; a name as it is."""
    if isinstance(network, str):
        return network
    return {key: value for key, value in network.items() if key not in keys}


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
