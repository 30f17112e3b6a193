"""What a search settles before its first trial, and checks when it goes on."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from levit_search import architecture as architectures
from levit_search.architecture import Architecture
from levit_search.cost import Cost
from levit_search.errors import InputError
from levit_search.image_size import canonical_size, size_text
from levit_search.latency.cache import fingerprint
from levit_search.pareto import Objective, reference_values
from levit_search.search.ledger import Ledger
from levit_search.space import Space
from levit_search.study import Study, StudyConfig

PREPARED = ("settled_ms", "device", "devices", "data", "teacher", "supernet")
"""What a study keeps of its preparation."""


def sample_of(space: Space) -> Architecture:
    """Any valid network: what is prepared depends on the images alone."""
    chance = np.random.default_rng(0)
    while True:
        try:
            return space.draw(chance)
        except InputError:
            continue  # the space was checked to have valid networks


def check_devices(study: Study, attributes: Mapping[str, Any], prepared: Mapping[str, Any]) -> None:
    """Make sure that latencies of two devices do not come onto one front.

    Args:
        study: with the sections of all targets.
        attributes: of the study; ``device`` and ``devices`` are what earlier latencies were
            measured on.
        prepared: the same of now; empty where nothing is measured.

    Raises:
        InputError: one is another device.
    """
    sections = {"": study.config.latency, **study.config.targets}
    before, now = _devices(attributes), _devices(prepared)
    for target in before.keys() & now.keys():
        runtime = sections[target].runtime
        old, new = (fingerprint(found[target], runtime) for found in (before, now))
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if changed:
            name, at = changed[0], f" at {target}" if target else ""
            raise InputError(
                f"{study.folder}: its latencies{at} were measured with {name} {old.get(name)}, "
                f"here it is {new.get(name)}; start another study by --study"
            )


def check_data(study: Study, attributes: Mapping[str, Any], prepared: Mapping[str, Any]) -> None:
    """Make sure that accuracies on different images do not come onto one front.

    Args:
        study: for the message.
        attributes: of the study; ``data`` is what earlier accuracies were measured on, which
            studies of older releases did not note.
        prepared: the same of now; empty where nothing is trained.

    Raises:
        InputError: these are other images.
    """
    before, now = attributes.get("data") or {}, prepared.get("data") or {}
    if not (before.get("id") and now.get("id")) or before["id"] == now["id"]:
        return
    counts = ("num_classes", "train_images", "val_images")
    changed = [
        f"{name} {before[name]} then, {now[name]} now"
        for name in counts
        if before.get(name) != now.get(name) and name in before and name in now
    ]
    raise InputError(
        f"{study.folder}: its accuracies were measured on other images "
        f"({', '.join(changed) or 'as many as now, of other content'}); put the old ones back, or "
        "begin another study by --study"
    )


def _devices(found: Mapping[str, Any]) -> dict[str, Any]:
    """By target, the main one by no name."""
    main = {"": found["device"]} if found.get("device") else {}
    return {**main, **found.get("devices", {})}


def remember(ledger: Ledger, prepared: Mapping[str, Any]) -> None:
    """Keep what was prepared with the study."""
    for key in PREPARED:
        if prepared.get(key):
            ledger.set_attribute(key, prepared[key])


def costliest(space: Space) -> list[Architecture]:
    """Networks whose probed figures may stand in the reference of hypervolumes.

    Returns:
        Of :meth:`levit_search.space.Space.sample` that with the most FLOPs, then, for a device on
        which that does not run, those with fewer than three quarters, a half and a quarter of the
        others', and that with the fewest.
    """
    sample = {network.id: (network, found.flops) for network, found in space.sample()}
    descending = sorted(sample.values(), key=lambda each: each[1], reverse=True)
    places = [round(share * (len(descending) - 1)) for share in (0, 0.25, 0.5, 0.75, 1)]
    return [descending[place][0] for place in dict.fromkeys(places)]


def reference_of(
    config: StudyConfig,
    space: Space,
    data: Mapping[str, Any],
    measured: Mapping[Objective, float],
) -> dict[Objective, float]:
    """The reference of a study's hypervolumes and knee.

    Args:
        config: of the study.
        space: made from it; the worst costs are those of :meth:`levit_search.space.Space.sample`.
        data: ``guess_percent`` is the accuracy of guessing; that of equally large classes where
            nothing says more.
        measured: of one of the :func:`costliest`, what the configuration has ``referred``.
    """
    costs = [found for _, found in space.sample()]
    worst = {name: float(max(getattr(each, name) for each in costs)) for name in Cost._fields}
    return reference_values(
        config.objectives,
        config.hypervolume_reference,
        config.limits.model_dump(),
        data.get("guess_percent", 100 / space.sizes["num_classes"]),
        {**worst, **measured},
    )


def start_values(config: StudyConfig, space: Space, where: str) -> dict[str, dict[str, Any]]:
    """Slot values of the networks to try first, by id: those given by hand, then the published.

    Each network stands there once, though some published names mean the same one. A description
    that leaves its image size to the data, whose size it does not go with, is left out after a
    warning.

    Args:
        config: of the study.
        space: made from it.
        where: its file, for messages.

    Raises:
        InputError: one given by hand is not in the space, or is made for other images.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for index, entry in enumerate(config.start):
        try:
            network = _given_to_start(entry, space.sizes, f"{where}: start", index)
        except architectures.SizeError as error:
            told = str(error).removeprefix(
                f"{where}: "
            )  # the same, and once, when it is asked again
            warnings.warn(f"{told}; it is not tried first", stacklevel=1)
            continue
        values = space.encode(network)
        if values is None:
            name = entry if isinstance(entry, str) else "a network"
            raise InputError(f"{where}: start: {name} ({network.summary()}) is not in the space")
        chosen.setdefault(network.id, values)
    for network in architectures.published_for(**space.sizes).values():
        if network.id not in chosen and (values := space.encode(network)) is not None:
            chosen[network.id] = values
    return chosen


def _given_to_start(
    entry: str | Mapping[str, Any], sizes: Mapping[str, Any], where: str, index: int
) -> Architecture:
    """A network of ``start`` for images of ``sizes``."""
    if isinstance(entry, str):
        network = architectures.published(entry)
        known = architectures.published_for(**sizes)
        if entry not in known:
            raise InputError(
                f"{where}: {entry} ({network.summary()}) is not in the space: it is made for "
                f"{size_text(network.image_size)} px, the data has {size_text(sizes['image_size'])}"
            )
        return known[entry]
    for name, size in sizes.items():
        if canonical_size(entry.get(name, size)) != size:
            raise InputError(
                f"{where}.{index}.{name}: {size_text(entry[name])} differs from the data's "
                f"{size_text(size)}; left out, it is the data's"
            )
    return architectures.described(entry, sizes, f"{where}.{index}")
