"""What was found before: by an earlier session, or in another study whose trials are taken over,
such as one of a narrower space."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from levit_search.errors import InputError
from levit_search.files import DamagedFileError, check_weights, read_bounded, write_atomically
from levit_search.latency.cache import fingerprint
from levit_search.pareto import ACCURACIES
from levit_search.search.trials import TrialStore
from levit_search.space import Space
from levit_search.study import MEASURED, REMEASURED, Study, StudyConfig, differences

_FEWEST_EARLIER = 8  # networks of another study whose accuracies are an input of a model


def check_source(folder: Path, study: Study) -> Study:
    """The study to take from, if what its trials found means the same here.

    Raises:
        InputError: there is none, it is the same one, or its networks were trained or measured
            otherwise.
    """
    source = Study.open(folder)
    if folder.resolve() == study.folder.resolve():
        raise InputError(f"--from {folder}: is the study itself")
    if source.config.shares_weights or study.config.shares_weights:
        where = folder if source.config.shares_weights else study.folder
        raise InputError(
            f"--from {folder}: {where} has accuracies inherited from its supernet, which mean "
            "nothing beside others; supernet.weights takes another study's supernet"
        )
    known = {"params", "flops", "activations", *source.config.objectives}
    if source.config.is_trained:
        known.add("top1_percent")
        if source.config.is_quantized:
            known.add("top1_int8_percent")
    if (None, source.config.latency.precision) in source.config.probed:
        known.add("latency_ms")
    wanted = [*study.config.objectives]
    if study.config.limits.latency_ms is not None:
        wanted.append("latency_ms")
    if missing := [name for name in wanted if name not in known]:
        raise InputError(
            f"--from {folder}: its networks have no {missing[0]}, which counts here "
            f"(they have {', '.join(sorted(known))})"
        )
    before, now = _meaning(source.config), _meaning(study.config)
    shared = before.keys() & now.keys()
    if found := differences(*({key: each[key] for key in shared} for each in (before, now))):
        raise InputError(
            f"--from {folder}: its networks were evaluated otherwise ({found}); their figures do "
            "not belong beside those of this study"
        )
    return source


def earlier_accuracies(config: StudyConfig, space: Space) -> list[tuple[dict[str, Any], float]]:
    """What the study that ``search.learn_from`` names found of networks of ``space``: parameters of
    all distributions, and accuracies in percent, inherited ones as well.

    Raises:
        InputError: it is no study, or has too few such networks.
    """
    assert config.search.learn_from is not None
    folder = Path(config.search.learn_from)
    found: dict[str, tuple[dict[str, Any], float]] = {}
    for record in Study.open(folder).records():
        network, percent = record.architecture, record.values.get("top1_percent")
        if network is None or percent is None or network.id in found:
            continue
        sized = network.model_copy(update=space.sizes)
        if (values := space.encode(sized)) is not None:
            found[network.id] = space.encoded(values), percent
    if len(found) < _FEWEST_EARLIER:
        raise InputError(
            f"search.learn_from: {folder} has the accuracies of {len(found)} networks of this "
            f"space; it takes {_FEWEST_EARLIER} to learn from"
        )
    return list(found.values())


def check_prepared(
    study: Study, source: Study, attributes: Mapping[str, Any], prepared: Mapping[str, Any]
) -> None:
    """Make sure that latencies of two devices, or accuracies on different images, do not come onto
    one front.

    Args:
        study: with the sections of all targets.
        source: what was found before is its: the study itself, or the one to take from.
        attributes: of that; ``device`` and ``devices`` are what its latencies were measured on,
            ``data`` what its accuracies were, which studies of older releases did not note, and
            ``int8_formats`` what its networks were quantized to.
        prepared: the same of now; empty where nothing is measured or trained.

    Raises:
        InputError: one is another device, or these are other images.
    """
    sections = {"": study.config.latency, **study.config.targets}
    devices, devices_now = _devices(attributes), _devices(prepared)
    for target in devices.keys() & devices_now.keys():
        runtime = sections[target].runtime
        old, new = (fingerprint(each[target], runtime) for each in (devices, devices_now))
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if changed:
            name, at = changed[0], f" at {target}" if target else ""
            raise InputError(
                f"{study.folder}: its latencies{at} were measured with {name} {old.get(name)}, "
                f"here it is {new.get(name)}; start another study by --study"
            )
    formats, formats_now = (each.get("int8_formats") or {} for each in (attributes, prepared))
    pairs = {(target, target) for target in formats.keys() & formats_now.keys()}
    if source.config.is_quantized and study.config.is_quantized:  # accuracies are those of these
        pairs.add((source.config.int8_targets[0] or "", study.config.int8_targets[0] or ""))
    for target, target_now in sorted(pairs):
        then, now = formats.get(target), formats_now.get(target_now)
        if then and now and then != now:
            raise InputError(
                f"{source.folder}: its networks were quantized to {then}, those here are to {now}; "
                "set int8.format to begin another study with one"
            )
    before, now = attributes.get("data") or {}, prepared.get("data") or {}
    if before.get("id") and now.get("id") and before["id"] != now["id"]:
        counts = ("num_classes", "train_images", "val_images")
        changed = [
            f"{name} {before[name]} then, {now[name]} now"
            for name in counts
            if name in before and name in now and before[name] != now[name]
        ]
        raise InputError(
            f"{source.folder}: its accuracies were measured on other images "
            f"({', '.join(changed) or 'as many as now, of other content'}); put the old ones back, "
            "or begin another study by --study"
        )


def taken_over(source: Study, study: Study, space: Space, store: TrialStore) -> None:
    """Enter the finished trials of another study that are networks of ``space``.

    They use up no budget. What the space, the limits or the rungs do not allow stays behind, and so
    does what is here already. Weights are copied.

    Args:
        source: the other study, see :func:`check_source` and :func:`check_prepared`.
        study: where to; ``space`` and ``store`` are its own.
    """
    attributes = source.attributes()
    present: set[str | None] = {trial.user_attrs.get("architecture_id") for trial in store.trials()}
    bounds = {name: bound for name, bound in space.limits.model_dump().items() if bound is not None}
    for record in source.records():
        network, epochs = record.architecture, {rung["epoch"] for rung in record.rungs}
        is_stopped_here = record.is_stopped and epochs <= {*study.config.rung_epochs}
        if record.reused_from is not None or network is None or network.id in present:
            continue
        if record.state != "complete" and not is_stopped_here:
            continue
        values = space.encode(network)
        if values is None or any(record.values[name] > bound for name, bound in bounds.items()):
            continue
        for key in (f"{kind}{network.id}" for kind in (MEASURED, REMEASURED)):
            if key in attributes and key not in store.attributes:
                store.set_attribute(key, attributes[key])
        _copy_weights(source.weights(network.id), study)
        notes: dict[str, object] = {
            "architecture": network.model_dump(mode="json"),
            "architecture_id": network.id,
            "cost": {name: record.values[name] for name in ("params", "flops", "activations")},
            "evaluation": record.own_evaluation,
            "taken_from": f"{source.folder}#{record.trial}",
        }
        if not record.taught:
            notes["taught"] = False
        objectives, rungs = study.config.objectives, []
        for rung in record.rungs:  # with the objectives of this study
            known = {**record.estimates, **dict.fromkeys(ACCURACIES, rung["top1_percent"])}
            if rung["epoch"] in study.config.rung_epochs:
                rungs.append({**rung, "values": {name: known[name] for name in objectives}})
        if rungs:
            notes["rungs"] = rungs
        state, points = TrialState.COMPLETE, None
        if record.state == "complete":
            points = [record.estimates[name] for name in objectives]
        else:
            state, notes["reason"] = TrialState.PRUNED, record.reason
        store.add(state, points, space.encoded(values), notes, {"valid": 0.0}, {})
        present.add(network.id)


def _copy_weights(weights: Path, study: Study) -> None:
    try:
        raw = read_bounded(weights)
        check_weights(raw)
    except FileNotFoundError:
        return  # such as of a network that a rung stopped
    except DamagedFileError as error:
        warnings.warn(f"{weights}: damaged ({error}); they are not taken over", stacklevel=2)
        return
    study.checkpoints.mkdir(exist_ok=True)
    write_atomically(study.checkpoints / weights.name, raw)


def _meaning(config: StudyConfig) -> dict[str, object]:
    """What each part of a trial's figures depends on, beside the network."""
    meaning: dict[str, object] = {"data": config.data.model_dump(mode="json", exclude={"root"})}
    if config.is_trained:
        teaching = config.teaching
        meaning["train"] = config.train.decisive()
        meaning["teacher"] = teaching.model_dump(mode="json") if teaching is not None else None
        meaning["search"] = {"seed": config.search.seed}
    if "model_bytes" in config.objectives:
        meaning["model_bytes"] = {"precision": "int8" if config.is_quantized else "float"}
    if config.is_quantized:
        section = config.int8_section(config.int8_targets[0])
        meaning["int8"] = {"runtime": section.runtime, **section.int8.model_dump(mode="json")}
    if config.is_measured or (config.is_quantized and None in config.int8_targets):
        meaning["latency"] = config.latency.model_dump(mode="json")
    for name, section in config.also_measured.items():
        meaning[f"targets.{name}"] = section.model_dump(mode="json")
    return meaning


def _devices(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """By target, the main one by no name."""
    main = {"": found["device"]} if found.get("device") else {}
    return {**main, **found.get("devices", {})}
