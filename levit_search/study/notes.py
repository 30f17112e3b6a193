"""The shape of what stands with a trial and with a study in Optuna's storage.

The storage may come from anybody. What is read of it has these types; more may stand there, and
what earlier releases did not write may be missing.
"""

import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict

from levit_search.configuration import describe
from levit_search.errors import InputError
from levit_search.pareto import PROBED, figure_and_target

_OPEN = ConfigDict(extra="allow", strict=True)

_Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e300, le=1e300)]
_Positive = Annotated[_Finite, Field(gt=0)]
_Spread = Annotated[_Finite, Field(ge=0)]
_Number = Annotated[int, Field(ge=0, le=2**63)]


@with_config(_OPEN)
class _Device(TypedDict, total=False):
    cpu: str | None
    gpu: str | None
    emulated: bool


@with_config(_OPEN)
class _Predicted(TypedDict):
    latency_ms: _Positive


@with_config(_OPEN)
class _Accurate(TypedDict):
    top1_percent: _Finite


@with_config(_OPEN)
class _Latency(TypedDict, total=False):
    method: str
    latency_ms: _Positive
    low_ms: _Finite
    high_ms: _Finite
    ratio_to_reference: _Positive
    ratio_ci95: Annotated[list[_Positive], Field(min_length=2, max_length=2)]
    median_sd_percent: _Spread | None
    p95_sd_percent: _Spread | None
    rounds: _Number
    pairs: _Number
    converged: bool
    layout: str
    runtime: str
    device: _Device
    predicted: _Predicted


@with_config(_OPEN)
class _Point(TypedDict):
    epoch: _Number
    val_top1_percent: _Finite


@with_config(_OPEN)
class _Training(TypedDict, total=False):
    curve: list[_Point]


@with_config(_OPEN)
class _Evaluation(TypedDict, total=False):
    values: dict[str, _Finite]
    seconds: Annotated[_Finite, Field(ge=0)]
    latency: _Latency | None
    targets: dict[str, _Latency | None]
    training: _Training | None


@with_config(_OPEN)
class _Rung(TypedDict):
    epoch: _Number
    top1_percent: _Finite
    goes_on: bool


@with_config(_OPEN)
class _Trial(TypedDict, total=False):
    architecture: dict[str, Any] | None
    cost: dict[str, _Finite]
    evaluation: _Evaluation
    rungs: list[_Rung]
    reason: str | None
    reused_from: _Number | None
    taken_from: str | None
    taught: bool


@with_config(_OPEN)
class _Measured(TypedDict, total=False):
    failed: str
    latency: _Predicted | None
    training: _Training | None
    values: dict[str, _Finite]
    seconds: Annotated[_Finite, Field(ge=0)]
    finished: str


@with_config(_OPEN)
class _Failed(TypedDict):
    failed: str
    tries: _Number


@with_config(_OPEN)
class _Baseline(TypedDict):
    values: Annotated[dict[str, _Finite], Field(min_length=1)]
    seconds: Annotated[_Finite, Field(ge=0)]
    latency: NotRequired[_Latency | None]
    targets: NotRequired[dict[str, _Latency | None]]
    training: NotRequired[_Training | None]


@with_config(_OPEN)
class _InPairs(TypedDict):
    latency_ms: _Positive
    ratio_to_reference: _Positive
    ratio_ci95: Annotated[list[_Positive], Field(min_length=2, max_length=2)]
    rounds: _Number
    pairs: _Number
    converged: bool


@with_config(_OPEN)
class _Remeasured(TypedDict):
    protocol: _Number
    values: dict[str, _Positive]
    latency: NotRequired[_InPairs | None]
    targets: NotRequired[dict[str, _InPairs]]
    finished: str


@with_config(_OPEN)
class _Teacher(TypedDict, total=False):
    name: str
    id: str
    val_top1_percent: _Finite


@with_config(_OPEN)
class _TeacherChoice(TypedDict):
    kept: bool
    text: str


@with_config(_OPEN)
class _Supernet(TypedDict, total=False):
    params: _Number
    epochs: _Number
    seconds: _Finite
    val_top1_percent: _Finite


_Images = Annotated[int, Field(gt=0, le=2**53)]


@with_config(_OPEN)
class _Data(TypedDict, total=False):
    id: str
    train_images: _Images
    val_images: _Images
    test_images: _Images
    inherited_images: _Images
    num_classes: _Images
    guess_percent: Annotated[_Finite, Field(ge=0, le=100)]
    mirrored: bool


@with_config(_OPEN)
class _Attributes(TypedDict, total=False):
    settled_ms: dict[str, _Positive]
    device: _Device
    devices: dict[str, _Device]
    teacher: _Teacher
    teacher_choice: _TeacherChoice
    supernet: _Supernet
    data: _Data


def check_trial(notes: Mapping[str, Any], trial: int) -> None:
    """Make sure that a trial's user attributes are what is written there.

    Raises:
        InputError: one is something else; the message names it.
    """
    _check(_Trial, notes, f"trial {trial}")


def check_measured(found: object, latency: object, trial: int) -> None:
    """The same for what was found of a trial's network later, and its latency until then."""
    _check(_Measured, found, f"trial {trial}: measured")
    if not isinstance(found, Mapping) or "failed" in found:
        return
    if found.get("training") is not None:
        _check(_Accurate, found.get("values"), f"trial {trial}: measured.values")
    if found.get("training") is None or found.get("latency") is not None:
        _check(_Predicted, found.get("latency"), f"trial {trial}: measured.latency")
        _check(_Predicted, found.get("values"), f"trial {trial}: measured.values")
        _check(_Predicted, latency, f"trial {trial}: evaluation.latency")


def check_baseline(found: object, where: str) -> None:
    """The same for what was found of a network that the study is compared with."""
    _check(_Failed if isinstance(found, Mapping) and "failed" in found else _Baseline, found, where)


def check_remeasured(found: object, known: Mapping[str, float], where: str) -> None:
    """The same for what was measured again of a network whose values are ``known``."""
    where = f"{where}: remeasured"
    _check(_Remeasured, found, where)
    assert isinstance(found, Mapping)
    for name in found["values"]:
        figure, target = figure_and_target(name)
        latency = found.get("latency") if target is None else found.get("targets", {}).get(target)
        if figure not in PROBED or name not in known or latency is None:
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
