"""What a report of a study shows, as one JSON document: from its records alone, without torch.

The page and the pictures are drawn from this. Figures are in plain units (FLOPs and parameters are
counts, one multiply-add is one FLOP), trials are named by their numbers.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, get_args

import numpy as np

from levit_search import table
from levit_search.architecture import (
    Architecture,
    described,
    fitted,
    published,
    published_names,
    sizes_of,
)
from levit_search.audit import AuditStore, search_cost
from levit_search.data import describe
from levit_search.errors import InputError
from levit_search.image_size import plain_size
from levit_search.pareto import PAIRED, PROBED, figure_and_target, is_maximised, on_target
from levit_search.report.choices import Choices
from levit_search.report.details import chosen, details
from levit_search.report.int8_figures import int8_of
from levit_search.reproduce import published_table
from levit_search.significance import Accuracy, judged
from levit_search.study import Outcome, Record, Study, outcome
from levit_search.study.record import ERRORS, ESTIMATES

_CURVE_POINTS = 60  # of a learning curve that are shown at most
_DIGITS = 7  # significant ones, beyond what any figure is good for
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MOST_GROUPS = 40
_MOST_TRIALS = 50  # that a group names
# Not where trials are kept or how targets are reached: those may hold what is not for everybody.
_SETTINGS = {"train", "teacher", "search", "limits", "architecture"}

Document = Mapping[str, Any]
"""See :func:`contents`."""
Trial = Mapping[str, Any]
"""One of a document's ``trials``."""

TITLES: dict[str, tuple[str, str]] = {
    "top1_percent": ("Top-1 accuracy", "%"),
    "top1_int8_percent": ("Top-1 accuracy in int8", "%"),
    "int8_drop_points": ("Drop in int8", "points"),
    "latency_ms": ("Latency", "ms"),
    "latency_int8_ms": ("Latency in int8", "ms"),
    "latency_predicted_ms": ("Predicted latency", "ms"),
    "prediction_error_percent": ("Prediction error", "%"),
    "latency_ms_repeats_percent": ("Repeats within ±", "%"),
    "latency_search_ms": ("Latency in the search", "ms"),
    "latency_int8_predicted_ms": ("Predicted latency in int8", "ms"),
    "prediction_error_int8_percent": ("Prediction error in int8", "%"),
    "latency_int8_ms_repeats_percent": ("In int8 repeats within ±", "%"),
    "latency_int8_search_ms": ("Latency in int8 in the search", "ms"),
    "latency_median_ms": ("Median latency", "ms"),
    "latency_p95_ms": ("95th percentile of latency", "ms"),
    "peak_memory_mb": ("Peak memory", "MB"),
    "model_bytes": ("Size of the model's file", "MB"),
    "flops": ("FLOPs", "M"),
    "params": ("Parameters", "M"),
    "activations": ("Activations", "M"),
}
"""What each figure is called, and the unit in which people read it."""


def contents(study: Study, picked: Sequence[str] = ()) -> Document:
    """Everything that a report shows.

    Args:
        study: may be in the middle of its search.
        picked: further networks to show in detail, each as ``--pick`` takes it; ``trial=N`` may
            also be one that was not trained to its end.

    Returns:
        ``{study, folder, made, objectives, up, verdict, summary, latency_legend, tabs, trials,
        trajectory, importance, slots, prediction, failures, published, chosen, details,
        environment, data, settings, baselines, beside_baselines, int8}``.

        ``verdict`` is what :class:`levit_search.significance.Verdict` says of the accuracies, and
        its ``legend`` and ``figure``, the accuracy in question; ``latency_legend`` is that of
        latencies which were measured again.
        ``up`` is the figure that is drawn upwards: accuracy where there is one. ``tabs`` has one
        cost each that it is drawn against, ``{figure, title, objective, front, reference, device,
        runtime}``: ``front`` are the trials that no other beats in ``up`` and this figure, the
        cheapest first, ``reference`` is ``{name, ms, trial}`` or None.
        ``trials`` are in the order of their numbers, ``{trial, id, state, outcome, on_front, name,
        is_start, is_reference, values, accuracy, architecture, reason, reused_from, seconds, curve,
        choices}``: ``name`` is a published network's or None, ``accuracy`` is ``{low, high,
        vs_best}`` in percent or None, ``curve`` is [[epoch, top-1 %]] and ``choices`` has for each
        of ``slots`` the place of its value there, None where it means nothing. ``trajectory`` has
        the points at which the hypervolume changed, column by column: ``trials``, ``epochs``,
        ``hours`` (None where they are not known), ``worker_hours`` and ``hypervolume``, which is
        None, as in the ``summary``, where the study has no reference yet; then there is no knee
        either. ``importance`` is
        ``{objective: {slot: share}}``, ``prediction`` [[predicted ms, measured ms, trial]],
        ``failures`` a list of ``{outcome, reason, count, trials}``, ``published`` the paper's
        ``{name, values}`` where the study has ImageNet's 1000 classes. ``baselines`` are those to
        compare with, ``{name, values, accuracy, reason}``, without values where they failed or are
        not trained yet, and ``beside_baselines`` says how the front stands beside them. ``chosen``
        are the trials shown in detail, the knee first, and ``details`` says of each what
        :func:`levit_search.report.details.details` does. ``int8`` is what
        :func:`levit_search.report.int8_figures.int8_of` says.

    Raises:
        InputError: no trial is complete, a pick is none, or the study cannot be read.
    """
    config, records = study.config, study.records()
    objectives = config.objectives
    front = table.front(records, objectives)
    if not front:
        raise InputError(
            f"{study.folder}: {len(records)} finished trials, none complete: there is nothing to "
            "report yet; `levit-search run` goes on with the search"
        )
    attributes = study.attributes()
    verdict, baselines = judged(records, attributes, config), study.baselines()
    sample = front[0].architecture
    assert sample is not None
    names, starts = _published_ids(sample), _start_ids(config.start, sample)
    references = _references(study, sample)
    choices = Choices(config, sample)
    named = {
        **dict.fromkeys(starts, "a network to begin with"),
        **dict.fromkeys(references, "the reference of latencies"),
        **{network_id: f"published as {name}" for network_id, name in names.items()},
    }
    listed = chosen(study, records, front, named, picked)
    audited, on_front = AuditStore(study.folder).networks, {record.trial for record in front}
    epochs = config.candidate_recipe.epochs
    by_outcome = [(record, outcome(record, epochs)) for record in records]
    reference = study.reference() if config.reference is not None else None
    path = search_cost.trajectory(records, objectives, reference)
    steps = path.steps()
    # Drawn upwards is accuracy where there is one.
    up = next((name for name in objectives if is_maximised(name)), objectives[0])
    costs = _tabs(study, up, records, attributes, references)
    return {
        "study": config.name,
        "folder": str(study.folder),
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "objectives": list(objectives),
        "up": up,
        "verdict": {
            **verdict.as_json(),
            "legend": verdict.legend(),
            "figure": verdict.figure,
        },
        "summary": _summary(study, by_outcome, front, path),
        "latency_legend": table.latency_legend(front, [tab["figure"] for tab in costs]),
        "tabs": costs,
        "trials": [
            {
                **_trial(record, became, names, choices),
                "accuracy": _accuracy(verdict.by_trial.get(record.trial)),
                "on_front": record.trial in on_front,
                "is_start": _network_id(record) in starts,
                "is_reference": _network_id(record) in references,
            }
            for record, became in by_outcome
        ],
        "trajectory": {name: [step[name] for step in steps] for name in steps[0]},
        "importance": choices.importance(records, objectives),
        "slots": choices.slots,
        "prediction": _prediction(records),
        "failures": grouped(by_outcome),
        "published": _published_figures(sample),
        "chosen": [record.trial for record, _ in listed],
        "details": {
            str(record.trial): {
                "picked_as": why,
                **details(record, audited, verdict.by_trial.get(record.trial), verdict.figure),
            }
            for record, why in listed
        },
        "environment": {"sessions": _sessions(study)},
        "data": _data(study, sample),
        "settings": config.model_dump(mode="json", include=_SETTINGS),
        "baselines": [
            {
                "name": each.summary,
                "values": {name: _rounded(value) for name, value in each.values.items()},
                "accuracy": _accuracy(verdict.by_baseline.get(each.config.id)),
                "reason": each.reason,
            }
            for each in baselines
        ],
        "beside_baselines": table.beside_baselines(front, baselines, objectives),
        "int8": int8_of(records, config, attributes, choices),
    }


def is_whole(trial: Trial) -> bool:
    """It was evaluated to the end, and not known from another trial."""
    return trial["state"] == "complete" and trial["reused_from"] is None


def name_of(figure: str) -> str:
    """What a figure is called, without its unit."""
    known, target = figure_and_target(figure)
    return TITLES[known][0] if target is None else f"{TITLES[known][0]} on {target}"


def label_of(figure: str) -> str:
    """What is written at an axis."""
    return f"{name_of(figure)}, {TITLES[figure_and_target(figure)[0]][1]}"


def grouped(by_outcome: Sequence[tuple[Record, str]]) -> list[dict[str, object]]:
    """Those that failed and those that broke a limit, by reason.

    Args:
        by_outcome: all finished trials, each with what became of it.

    Returns:
        ``{outcome, reason, count, trials}``, failures first and the commonest first: reasons that
        differ in their numbers alone are one, with ``…`` in the place of those that differ, and
        ``trials`` are the first of them.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record, became in by_outcome:
        if became in ("failed", "infeasible"):
            pattern = _NUMBER.sub("0", record.reason or "no reason was noted")
            groups.setdefault((became, pattern), []).append(record)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != "failed", -len(item[1])))
    return [
        {
            "outcome": became,
            "reason": _common([record.reason or pattern for record in members]),
            "count": len(members),
            "trials": [record.trial for record in members[:_MOST_TRIALS]],
        }
        for (became, pattern), members in ordered[:_MOST_GROUPS]
    ]


def _common(reasons: Sequence[str]) -> str:
    """The text with the numbers that all of them have."""
    columns = zip(*(_NUMBER.findall(reason) for reason in reasons), strict=True)
    shared = iter([column[0] if len(set(column)) == 1 else "…" for column in columns])
    return _NUMBER.sub(lambda _: next(shared), reasons[0])


def _published_ids(sample: Architecture) -> dict[str, str]:
    """The names of published networks by id, made for the images of ``sample``."""
    names: dict[str, list[str]] = {}
    for name in published_names():
        try:
            network = fitted(published(name), **sizes_of(sample))
        except InputError:  # the images are too small for it
            continue
        names.setdefault(network.id, []).append(name)
    return {network_id: " = ".join(equal) for network_id, equal in names.items()}


def _start_ids(start: Sequence[str | dict[str, Any]], sample: Architecture) -> set[str]:
    found = set()
    for entry in start:
        with suppress(InputError):  # left out of the search, or no longer known
            sizes = sizes_of(sample)
            network = published(entry) if isinstance(entry, str) else described(entry, sizes)
            found.add(fitted(network, **sizes).id)
    return found


def _references(study: Study, sample: Architecture) -> dict[str, str]:
    """The names, by id, of the networks that candidates were timed beside."""
    config = study.config
    found: dict[str, str] = {}
    for section in [config.latency, *config.also_measured.values()] if config.is_measured else []:
        with suppress(InputError):  # it is no longer known
            network, given = section.reference_for(**sizes_of(sample)), section.reference
            found[network.id] = given if isinstance(given, str) else network.summary()
    return found


def _tabs(
    study: Study,
    up: str,
    records: Sequence[Record],
    attributes: Mapping[str, Any],
    references: Mapping[str, str],
) -> list[dict[str, Any]]:
    """The costs that accuracy is drawn against: latency on each target, then the others."""
    config = study.config
    complete = [record for record in records if record.is_evaluated]
    listed = [name for name in config.objectives if name != up]
    if config.is_measured:
        targets = (None, *config.also_measured)
        listed += [on_target(figure, target) for figure in PAIRED for target in targets]
    known = [
        name
        for name in dict.fromkeys([*listed, "flops", "params"])
        if name != up and not is_maximised(name) and all(name in r.values for r in complete)
    ]
    # Latencies first, in the order of the objectives; what is counted comes last.
    known.sort(
        key=lambda name: (figure_and_target(name)[0] not in PAIRED, name in ("flops", "params"))
    )
    found = []
    formats: Mapping[str, str] = attributes.get("int8_formats") or {}
    for name in known:
        figure, target = figure_and_target(name)
        reference: dict[str, object] | None = None
        device = runtime = ""
        if figure in PROBED:
            section = config.latency if target is None else config.targets[target]
            found_on = attributes.get("device")
            if target is not None:
                found_on = (attributes.get("devices") or {}).get(target)
            cpu = found_on.get("gpu") or found_on.get("cpu") if isinstance(found_on, dict) else None
            device = section.target.label + (f": {cpu}" if cpu else "")
            threads = "1 thread" if section.threads == 1 else f"{section.threads} threads"
            precision: str = "int8" if figure == "latency_int8_ms" else section.precision
            if precision == "int8" and (format := formats.get(target or "")):
                precision = f"int8 ({format})"
            how = f"{section.runtime}, {precision}, {threads}"
            runtime = f"{how}, batch {section.batch_size}"
        if figure in PAIRED:
            # The network that latencies are relative to, its own, and the trial that trained it.
            prefix, settled_ms = f"{target}:" if target else "", attributes.get("settled_ms", {})
            timed = [each for each in references if f"{prefix}{each}" in settled_ms]
            if timed:
                trial = next((r.trial for r in complete if _network_id(r) == timed[0]), None)
                ms = _rounded(settled_ms[f"{prefix}{timed[0]}"])
                reference = {"name": references[timed[0]], "ms": ms, "trial": trial}
        found.append(
            {
                "figure": name,
                "title": name_of(name),
                "objective": name in config.objectives,
                "front": [record.trial for record in table.front(complete, (name, up))],
                "reference": reference,
                "device": device or None,
                "runtime": runtime or None,
            }
        )
    return found


def _summary(
    study: Study,
    by_outcome: Sequence[tuple[Record, Outcome]],
    front: Sequence[Record],
    path: search_cost.Trajectory,
) -> dict[str, object]:
    records = [record for record, _ in by_outcome]
    counts = Counter(became for _, became in by_outcome)
    saved = search_cost.savings(records, study.config.candidate_recipe.epochs)
    return {
        "trials": len(records),
        "counts": {name: counts[name] for name in get_args(Outcome)},
        "front": len(front),
        "hypervolume": path.hypervolumes[-1] if path.hypervolumes is not None else None,
        "hours": path.hours[-1] if path.hours is not None else None,
        "worker_hours": path.worker_hours[-1],
        "rungs": {**asdict(saved), "rungs": list(saved.rungs)} if saved is not None else None,
        "prediction": search_cost.prediction_errors(records),
    }


def _trial(
    record: Record, outcome: str, names: Mapping[str, str], choices: Choices
) -> dict[str, object]:
    network = record.architecture
    # A learning curve keeps its ends, and not too many points between them.
    curve = (record.evaluation.get("training") or {}).get("curve", ())
    points = np.linspace(0, len(curve) - 1, min(len(curve), _CURVE_POINTS)).round().astype(int)
    shown = [curve[i] for i in np.unique(points)] if record.reused_from is None else []
    return {
        "trial": record.trial,
        "id": _network_id(record),
        "state": record.state,
        "outcome": outcome,
        "name": names.get(network.id) if network is not None else None,
        "values": {name: _rounded(value) for name, value in record.values.items()},
        "architecture": network.summary() if network is not None else None,
        "reason": record.reason,
        "reused_from": record.reused_from,
        "seconds": round(record.seconds, 1),
        "curve": [[point["epoch"], round(point["val_top1_percent"], 2)] for point in shown],
        "choices": choices.places(network),
    }


def _accuracy(found: Accuracy | None) -> dict[str, object] | None:
    if found is None:
        return None
    ends = {"low": _rounded(found.low_percent), "high": _rounded(found.high_percent)}
    return {**ends, "vs_best": found.vs_best}


def _prediction(records: Sequence[Record]) -> list[list[float]]:
    """Each network once in each precision."""
    found: dict[tuple[str, str], list[float]] = {}
    for record in records:
        known = _network_id(record)
        for figure, error in ERRORS.items():
            if known is not None and error in record.values:
                both = [record.values[name] for name in (ESTIMATES[figure], figure)]
                found.setdefault((known, figure), [*map(_rounded, both), record.trial])
    return list(found.values())


def _published_figures(sample: Architecture) -> Sequence[Mapping[str, object]]:
    """The paper's own, which only networks for the same task can be compared with."""
    if sample.num_classes != 1000:
        return []
    found = []
    for row in [*published_table("variants").rows, *published_table("grafting").rows]:
        paper = row.paper
        flops = paper.get("mflops")
        if "conv_mflops" in paper:
            flops = paper["conv_mflops"] + paper["transformer_mflops"]
        counted = {"flops": flops, "params": paper.get("params_m")}
        values = {key: value * 1e6 for key, value in counted.items() if value is not None}
        values = {"top1_percent": paper["top1_percent"], **values}
        found.append({"name": row.name, "values": values})
    return found


def _sessions(study: Study) -> list[dict[str, object]]:
    try:
        text = (study.folder / "environment.json").read_text(encoding="utf-8")
        sessions = json.loads(text)["sessions"]
        json.dumps(sessions, allow_nan=False)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []  # a study may have been copied without it
    is_sound = isinstance(sessions, list) and all(
        isinstance(session, dict) and isinstance(session.get("command", []), list)
        for session in sessions
    )
    return sessions if is_sound else []


def _data(study: Study, sample: Architecture) -> dict[str, object]:
    config, survey, class_names = study.config.data, study.survey(), None
    if survey is not None:
        class_names = list(survey.class_names)
    # Others may take long to open, or ask the network.
    elif config.reader in ("digits", "fashion-mnist", "folder", "torch"):
        with suppress(InputError):  # the data is not here; a report needs none
            class_names = list(describe(config).class_names)
    return {
        "name": config.name,
        "root": str(config.root) if config.root is not None else None,
        "image_size": plain_size(sample.image_size),
        "channels": sample.in_channels,
        "classes": sample.num_classes,
        "class_names": class_names,
        "survey": list(survey.lines()) if survey is not None else None,
    }


def _rounded(value: float) -> float:
    """A figure as a document has it, shorter than in the storage."""
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _network_id(record: Record) -> str | None:
    """Of the network that a trial proposed; None where it is none."""
    return record.architecture.id if record.architecture is not None else None
