"""A finished trial, and a network to compare with, as tables, fronts and exports see them: made of
what stands in the storage.

The storage may come from anybody, so that the shape of all that is read of it is checked.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict

from levit_search import architecture as architectures
from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.configuration import describe
from levit_search.errors import InputError
from levit_search.latency.protocol import repeats_percent
from levit_search.latency.targets import Int8Format
from levit_search.pareto import ACCURACIES, PAIRED, PROBED, Objective, figure_and_target, on_target
from levit_search.study.config import StudyConfig

if TYPE_CHECKING:
    import optuna

ESTIMATES = {
    "top1_percent": "top1_inherited_percent",
    "top1_int8_percent": "top1_int8_inherited_percent",
    "latency_ms": "latency_predicted_ms",
    "latency_int8_ms": "latency_int8_predicted_ms",
}
"""Figures that may be estimated, and what the estimate is called."""
ERRORS = {
    "latency_ms": "prediction_error_percent",
    "latency_int8_ms": "prediction_error_int8_percent",
}
"""What the error of a predicted latency is called."""
SEARCHED = {"latency_ms": "latency_search_ms", "latency_int8_ms": "latency_int8_search_ms"}
"""What a latency is called as the search measured it, where it was measured again."""
REPEATS = {figure: f"{figure}_repeats_percent" for figure in PAIRED}
"""What it is called within how many percent a latency repeats that was measured again."""

State = Literal["complete", "pruned", "failed"]

Outcome = Literal["complete", "stopped", "infeasible", "repeat", "taken over", "failed"]
"""What became of a proposal. ``infeasible``: no valid network, or over a limit. ``taken over``:
from another study."""


@dataclass(frozen=True)
class Record:
    """One finished trial, free of Optuna: what tables, fronts and exports are made of."""

    trial: int
    state: State
    architecture: Architecture | None
    """None where the proposal was no valid network."""
    values: dict[str, float]
    """By name: all of the objectives that are known, and the closed-form costs."""
    reason: str | None
    reused_from: int | None
    seconds: float
    evaluation: Mapping[str, Any]
    rungs: tuple[Mapping[str, Any], ...] = ()
    """Of each rung that it came to the ``epoch``, ``top1_percent`` there, and ``goes_on``."""
    resumes: int | None = None
    """The trial that trained the network before it was paused at a rung; this one went on."""
    resumed_at: int = 0
    """The epoch of the checkpoint from which it went on; 0 where there was none any more."""
    outlook_percent: float | None = None
    """What any training was expected to add to the front's hypervolume at most, in percent of it,
    when this one was chosen; None where nothing was expected by a model."""
    taken_from: str | None = None
    """The study and trial that evaluated it, where that is another one."""
    finished: str | None = None
    """When it ended, in local time by ISO 8601."""
    taught: bool = True
    """False where the search has a teacher, and trained this network without it."""

    @property
    def is_evaluated(self) -> bool:
        """Whether it has figures of its own and is no repeat: each network has so once."""
        return self.is_candidate and not self.is_inherited

    @property
    def is_candidate(self) -> bool:
        """Whether it was evaluated to the end and is no repeat, be its accuracy inherited."""
        return self.state == "complete" and self.reused_from is None

    @property
    def is_inherited(self) -> bool:
        """Whether its accuracy is that of weights shared with other networks, and no more."""
        return "top1_inherited_percent" in self.values and "verified" not in self.evaluation

    @property
    def estimates(self) -> dict[str, float]:
        """Its values as the search knew them: an inherited accuracy and a predicted latency stand
        in the place of what was found when it was verified, and what was measured first in the
        place of what was measured again."""
        values = dict(self.values)
        values.update(self.evaluation.get("searched", {}).get("values", {}))
        for name, estimate in ESTIMATES.items():
            if estimate in values:
                values[name] = values[estimate]
        return values

    @property
    def own_evaluation(self) -> Mapping[str, Any]:
        """Its evaluation without the notes of what was found later, and with the latencies from
        before these were measured again: what another trial of the network may have."""
        later = ("verified", "searched")
        evaluation = {key: each for key, each in self.evaluation.items() if key not in later}
        before = self.evaluation.get("searched", {})
        return evaluation | {key: before[key] for key in before if key != "values"}

    @property
    def is_stopped(self) -> bool:
        """Whether a rung ended its training."""
        return self.state == "pruned" and bool(self.rungs) and not self.rungs[-1]["goes_on"]

    @property
    def curve(self) -> Sequence[Mapping[str, Any]]:
        """Its learning curve, a :class:`levit_search.train.Epoch` as JSON for each epoch; empty
        where it was not trained."""
        training = self.evaluation.get("training") or {}
        curve: Sequence[Mapping[str, Any]] = training.get("curve", ())
        return curve


def latency_of(evaluation: Mapping[str, Any], name: Objective) -> Mapping[str, Any] | None:
    """What was measured, or predicted, of a figure of a probe; None where that is not known."""
    figure, target = figure_and_target(name)
    found: Mapping[str, Any] | None = evaluation.get("latency")
    if figure == "latency_int8_ms":
        found = evaluation.get("int8", {}).get(name)
    elif target is not None:
        found = evaluation.get("targets", {}).get(target)
    return found


def layout_of(config: StudyConfig, evaluation: Mapping[str, Any]) -> Literal["tokens", "maps"]:
    """The layout of a network's ONNX graphs: that which it was measured in, else the section's.

    Args:
        config: of the study.
        evaluation: of the network, with what is known of its ``latency`` and ``int8``.
    """
    section, measured = config.latency, evaluation.get("latency")
    if config.is_quantized and not measured:
        section = config.int8_section(config.int8_targets[0])
    known = [measured, *evaluation.get("int8", {}).values()]
    layout = next((each["layout"] for each in known if each and "layout" in each), section.layout)
    return "maps" if layout == "maps" else "tokens"


def outcome(record: Record, epochs: int) -> Outcome:
    """What became of a proposal, where the whole recipe has so many ``epochs``."""
    if record.state == "failed":
        return "failed"
    if record.reused_from is not None:
        return "repeat"
    is_partial = record.is_stopped or 0 < len(record.curve) < epochs
    if record.state == "pruned" and not is_partial:
        return "infeasible"
    if record.taken_from is not None:
        return "taken over"
    return "stopped" if is_partial else "complete"


def compared(records: Sequence[Record]) -> list[Record]:
    """The networks that compete for the front: those evaluated to their end, each once.

    One whose accuracy is inherited competes only as long as none has an accuracy of its own.
    """
    evaluated = [record for record in records if record.is_evaluated]
    return evaluated or [record for record in records if record.is_candidate]


def record_of(trial: "optuna.trial.FrozenTrial") -> Record:
    """A finished trial of Optuna's as a record."""
    ended = trial.datetime_complete
    finished = ended.isoformat(timespec="seconds") if ended is not None else None
    states: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned"}
    state = states.get(trial.state.name, "failed")
    return record_from_notes(trial.number, state, trial.user_attrs, finished)


def record_from_notes(
    trial: int, state: State, notes: Mapping[str, Any], finished: str | None
) -> Record:
    """A record made of a trial's user attributes."""
    described, where = notes.get("architecture"), f"trial {trial}: architecture"
    evaluation = notes.get("evaluation", {})
    return Record(
        trial=trial,
        state=state,
        architecture=architectures.parse(described, where) if described else None,
        values={**notes.get("cost", {}), **evaluation.get("values", {})},
        # A trial that was killed as it failed, and then succeeded, has the reason still.
        reason=notes.get("reason") if state != "complete" else None,
        reused_from=notes.get("reused_from"),
        seconds=evaluation.get("seconds", 0.0),
        evaluation=evaluation,
        rungs=tuple(notes.get("rungs", ())),
        resumes=notes.get("resumes"),
        resumed_at=notes.get("resumed_at", 0),
        outlook_percent=notes.get("outlook_percent"),
        taken_from=notes.get("taken_from"),
        finished=finished,
        taught=notes.get("taught", True),
    )


def records_of(
    trials: Iterable["optuna.trial.FrozenTrial"],
    attributes: Mapping[str, Any],
    config: StudyConfig,
) -> list[Record]:
    """The finished ones of a study's trials, with what was found of their networks later.

    Raises:
        InputError: what stands there is not what a search writes.
    """
    found = []
    for trial in trials:
        if not trial.state.is_finished():
            continue
        _check(_Trial, trial.user_attrs, f"trial {trial.number}")
        record = record_of(trial)
        missing = [name for name in config.objectives if name not in record.values]
        if record.architecture is None:
            missing = ["architecture"]
        if record.state == "complete" and missing:
            raise InputError(f"trial {record.trial}: is complete, and has no {missing[0]}")
        found.append(with_measured(record, attributes, config.limits.latency_ms))
    return found


# With a network's id each is an attribute of the study.
MEASURED = "measured:"
REMEASURED = "remeasured:"


def with_measured(record: Record, attributes: Mapping[str, Any], limit_ms: float | None) -> Record:
    """A record with what was found of its network later, in the place of what it says itself.

    That is what a predicted latency and an inherited accuracy turned out to be, and latencies
    measured again at the search's end. These keep the search's own beside them, as
    ``latency_search_ms``, and have ``latency_ms_repeats_percent``, which
    :func:`levit_search.latency.protocol.repeats_percent` explains; those of int8 likewise.
    Where accuracies in float and in int8 are known, ``int8_drop_points`` is what int8 costs.

    Optuna's finished trials cannot be changed, so what was found stands with the study.

    Args:
        record: as the trial has it; one that has it already stays as it is.
        attributes: the study's.
        limit_ms: of the latency; a network that turns out to be over it is no longer complete, and
            one that was to be verified and could not be has failed.
    """
    network = record.architecture
    found = attributes.get(f"{MEASURED}{network.id}") if network is not None else None
    if found is not None and record.state == "complete" and "verified" not in record.evaluation:
        record = _within(limit_ms, _verified(record, found))
    found = attributes.get(f"{REMEASURED}{network.id}") if network is not None else None
    if found is not None and record.state == "complete":
        where = f"trial {record.trial}"
        values, evaluation = measured_again(found, record.values, record.evaluation, where)
        record = _within(limit_ms, replace(record, values=values, evaluation=evaluation))
    return replace(record, values=_with_drop(record.values))


def _with_drop(values: Mapping[str, float]) -> dict[str, float]:
    """Values with what int8 costs of the accuracy, where that is known."""
    if not values.keys() >= set(ACCURACIES):
        return dict(values)
    drop = values["top1_percent"] - values["top1_int8_percent"]
    return {**values, "int8_drop_points": drop}


def _verified(record: Record, found: Mapping[str, Any]) -> Record:
    check_measured(found, record.evaluation, record.trial)
    if "failed" in found:
        return replace(record, state="failed", reason=found["failed"])
    evaluation = {**record.evaluation, "verified": True}
    values = {**record.values, **found["values"]}
    if "int8" in found:
        evaluation["int8"] = {**evaluation.get("int8", {}), **found["int8"]}
    for figure in PAIRED:
        latency = latency_of(found, figure)
        if latency is None:
            continue
        # A repeat may have the measured one already.
        before = latency_of(record.evaluation, figure) or {}
        predicted = before.get("predicted", before)
        _put(evaluation, figure, {**latency, "predicted": predicted})
        values[ERRORS[figure]] = 100 * (predicted["latency_ms"] / values[figure] - 1)
    if found.get("training") is not None:
        evaluation["training"] = found["training"]
    return replace(
        record,
        seconds=record.seconds + found.get("seconds", 0.0),
        finished=found.get("finished", record.finished),
        values=values,
        evaluation=evaluation,
    )


def measured_again(
    found: Mapping[str, Any],
    known_values: Mapping[str, float],
    known: Mapping[str, Any],
    where: str,
) -> tuple[dict[str, float], Mapping[str, Any]]:
    """Values and evaluation of a network with what was measured again in the place of latencies.

    Args:
        found: as it stands with the study.
        known_values: until then.
        known: the evaluation until then; its latencies stay there under ``searched``.
        where: whose they are, for messages.

    Raises:
        InputError: ``found`` is not what a search writes of this network.
    """
    check_remeasured(found, known_values, where)
    before = known.get("searched") or {
        "values": {name: known_values[name] for name in found["values"]},
        "latency": known.get("latency"),
        "targets": known.get("targets", {}),
        **{key: known[key] for key in ("int8",) if key in known},
    }
    evaluation = {**known, "searched": before}
    for key in ("targets", "int8"):
        if key in before:
            evaluation[key] = {**before[key], **found.get(key, {})}
    if found.get("latency") is not None:
        evaluation["latency"] = found["latency"]
    values = {**known_values, **found["values"]}
    for name in found["values"]:
        figure, target = figure_and_target(name)
        latency = latency_of(found, name)
        if figure not in PAIRED or latency is None:
            continue
        values[on_target(SEARCHED[figure], target)] = before["values"][name]
        values[on_target(REPEATS[figure], target)] = repeats_percent(latency)
        predicted = (latency_of(before, name) or {}).get("predicted")
        if target is None and predicted:
            _put(evaluation, figure, {**latency, "predicted": predicted})
        if target is None and ERRORS[figure] in values:
            values[ERRORS[figure]] = 100 * (values[ESTIMATES[figure]] / values[figure] - 1)
    return values, evaluation


def _put(evaluation: dict[str, Any], figure: str, latency: Mapping[str, Any]) -> None:
    """Put a latency of the study's own section where :func:`latency_of` finds it."""
    if figure == "latency_ms":
        evaluation["latency"] = latency
    else:
        evaluation["int8"] = {**evaluation.get("int8", {}), figure: latency}


def _within(limit_ms: float | None, record: Record) -> Record:
    """A record; pruned where it is complete and its latency is over the limit."""
    latency_ms = record.values.get("latency_ms", 0.0)
    if record.state != "complete" or limit_ms is None or latency_ms <= limit_ms:
        return record
    reason = f"latency_ms {latency_ms:.3g} over the limit of {limit_ms:g}"
    return replace(record, state="pruned", reason=reason)


BASELINE = "baseline:"
"""With the id of a :class:`levit_search.baseline.BaselineConfig` an attribute of the study: what is
known of a network of timm that it is compared with. These are no trials, since a space's choices
cannot express them; latencies measured again stand under the same key as candidates' do."""


@dataclass(frozen=True)
class BaselineRecord:
    """A network of timm as a study has it: trained and measured, failed, or neither yet."""

    config: BaselineConfig
    values: Mapping[str, float]
    """As a trial's: all of the objectives, and ``params``, ``flops`` and ``activations`` as fvcore
    counts them; empty unless it is complete."""
    evaluation: Mapping[str, Any]
    """As a trial's."""
    reason: str | None = None
    """Why it failed."""

    @property
    def is_complete(self) -> bool:
        """Whether it has its figures."""
        return bool(self.values)

    @property
    def summary(self) -> str:
        """What it is called: ``timm/resnet10t``, ``timm/resnet10t (pretrained)``."""
        return self.config.summary()


def baselines_of(config: StudyConfig, attributes: Mapping[str, Any]) -> list[BaselineRecord]:
    """The networks that a study's ``compare`` names, in its order, with what is known of each.

    Raises:
        InputError: what stands there is not what a search writes.
    """
    records = []
    for given in config.compare:
        where = f"{BASELINE}{given.id}"
        found = attributes.get(where)
        if found is None:
            records.append(BaselineRecord(given, {}, {}))
            continue
        is_failed = isinstance(found, Mapping) and "failed" in found
        _check(_Failed if is_failed else _Baseline, found, where)
        if is_failed:
            records.append(BaselineRecord(given, {}, {}, found["failed"]))
            continue
        values = found["values"]
        needed = (*config.objectives, "flops", "params")
        if missing := [name for name in needed if name not in values]:
            raise InputError(f"{where}: is complete, and has no {missing[0]}")
        known = ("latency", "targets", "int8", "training")
        evaluation: Mapping[str, Any] = {key: found[key] for key in known if found.get(key)}
        again = attributes.get(f"{REMEASURED}{given.id}")
        if again is not None:
            values, evaluation = measured_again(again, values, evaluation, where)
        records.append(BaselineRecord(given, _with_drop(values), evaluation))
    return records


# The shape of what stands with trials and with studies.

_Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e300, le=1e300)]
_Positive = Annotated[_Finite, Field(gt=0)]
_NotNegative = Annotated[_Finite, Field(ge=0)]
_Number = Annotated[int, Field(ge=0, le=2**63)]
_Images = Annotated[int, Field(gt=0, le=2**53)]
_Interval = Annotated[list[_Positive], Field(min_length=2, max_length=2)]


@with_config(ConfigDict(extra="allow", strict=True))
class _Open(TypedDict):
    """More may stand there; what earlier releases did not write may be missing."""


class _Device(_Open, total=False):
    cpu: str | None
    gpu: str | None
    emulated: bool


class _Predicted(_Open):
    latency_ms: _Positive


class _Accurate(_Open):
    top1_percent: _Finite


class _Latency(_Open, total=False):
    method: str
    latency_ms: _Positive
    low_ms: _Finite
    high_ms: _Finite
    ratio_to_reference: _Positive
    ratio_ci95: _Interval
    median_sd_percent: _NotNegative | None
    p95_sd_percent: _NotNegative | None
    rounds: _Number
    pairs: _Number
    converged: bool
    layout: str
    runtime: str
    device: _Device
    predicted: _Predicted


class _InInt8(_Latency, total=False):
    """A latency in int8, or what became of the graph that an accuracy in int8 is of."""

    int8_format: str | None
    format: str
    calibration: str
    images: _Images
    bytes: _Images
    quantized: dict[str, _Number]
    kept: dict[str, _Number]
    left: dict[str, _Number]


class _Point(_Open):
    epoch: _Number
    val_top1_percent: _Finite


class _Training(_Open, total=False):
    curve: list[_Point]


class _Evaluation(_Open, total=False):
    values: dict[str, _Finite]
    seconds: _NotNegative
    latency: _Latency | None
    targets: dict[str, _Latency | None]
    int8: dict[str, _InInt8]
    training: _Training | None


class _Rung(_Open):
    epoch: _Number
    top1_percent: _Finite
    goes_on: bool


class _Trial(_Open, total=False):
    architecture: dict[str, object] | None
    cost: dict[str, _Finite]
    evaluation: _Evaluation
    rungs: list[_Rung]
    reason: str | None
    reused_from: _Number | None
    resumes: _Number | None
    resumed_at: _Number
    outlook_percent: _Finite
    taken_from: str | None
    taught: bool


class _Measured(_Open, total=False):
    failed: str
    latency: _Predicted | None
    int8: dict[str, _InInt8]
    training: _Training | None
    values: dict[str, _Finite]
    seconds: _NotNegative
    finished: str


class _Failed(_Open):
    failed: str
    tries: _Number


class _Baseline(_Open):
    values: Annotated[dict[str, _Finite], Field(min_length=1)]
    seconds: _NotNegative
    latency: NotRequired[_Latency | None]
    targets: NotRequired[dict[str, _Latency | None]]
    int8: NotRequired[dict[str, _InInt8]]
    training: NotRequired[_Training | None]


class _InPairs(_Open):
    latency_ms: _Positive
    ratio_to_reference: _Positive
    ratio_ci95: _Interval
    rounds: _Number
    pairs: _Number
    converged: bool


class _Remeasured(_Open):
    protocol: _Number
    values: dict[str, _Positive]
    latency: NotRequired[_InPairs | None]
    targets: NotRequired[dict[str, _InPairs]]
    int8: NotRequired[dict[str, _InPairs]]
    finished: str


class _Teacher(_Open, total=False):
    name: str
    id: str
    val_top1_percent: _Finite


class _TeacherChoice(_Open):
    kept: bool
    text: str


class _Supernet(_Open, total=False):
    params: _Number
    epochs: _Number
    seconds: _Finite
    val_top1_percent: _Finite


class _Data(_Open, total=False):
    id: str
    train_images: _Images
    val_images: _Images
    test_images: _Images
    inherited_images: _Images
    num_classes: _Images
    guess_percent: Annotated[_Finite, Field(ge=0, le=100)]
    mirrored: bool


class _Attributes(_Open, total=False):
    settled_ms: dict[str, _Positive]
    int8_formats: dict[str, Int8Format]
    device: _Device
    devices: dict[str, _Device]
    teacher: _Teacher
    teacher_choice: _TeacherChoice
    supernet: _Supernet
    data: _Data


def check_measured(found: object, before: Mapping[str, Any], trial: int) -> None:
    """Make sure that what was found of a trial's network later is what is written there, and the
    latencies of its evaluation until then.

    Raises:
        InputError: it is something else; the message names it.
    """
    _check(_Measured, found, f"trial {trial}: measured")
    if not isinstance(found, Mapping) or "failed" in found:
        return
    if found.get("training") is not None:
        _check(_Accurate, found.get("values"), f"trial {trial}: measured.values")
    later, values = f"trial {trial}: measured", found.get("values")
    measured = [figure for figure in PAIRED if latency_of(found, figure) is not None]
    for figure in measured or ([] if found.get("training") is not None else ["latency_ms"]):
        where = "latency" if figure == "latency_ms" else f"int8.{figure}"
        _check(_Predicted, latency_of(found, figure), f"{later}.{where}")
        _check(dict[str, _Positive], {figure: (values or {}).get(figure)}, f"{later}.values")
        _check(_Predicted, latency_of(before, figure), f"trial {trial}: evaluation.{where}")


def check_remeasured(found: object, known: Mapping[str, float], where: str) -> None:
    """The same for what was measured again of a network whose values are ``known``."""
    where = f"{where}: remeasured"
    _check(_Remeasured, found, where)
    assert isinstance(found, Mapping)
    for name in found["values"]:
        figure, _ = figure_and_target(name)
        if figure not in PROBED or name not in known or latency_of(found, name) is None:
            raise InputError(
                f"{where}: values.{name[:80]!r}: no latency of this network has it; this is not "
                "what a search writes there"
            )


def check_attributes(attributes: Mapping[str, Any]) -> None:
    """The same for a study's attributes."""
    where = "attributes of the study"
    _check(_Attributes, attributes, where)
    try:
        shown = [attributes.get(name) for name in ("device", "devices", "teacher")]
        json.dumps(shown, allow_nan=False)
    except ValueError:
        raise InputError(f"{where}: device or teacher: a number is not finite") from None


def _check(shape: Any, found: object, where: str) -> None:
    try:
        _adapter(shape).validate_python(found)
    except ValidationError as error:
        raise InputError(
            f"{where}: {describe(error)}; this is not what a search writes there"
        ) from None


@cache
def _adapter(shape: Any) -> "TypeAdapter[Any]":
    return TypeAdapter(shape)
