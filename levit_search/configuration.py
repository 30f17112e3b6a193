"""From YAML to frozen pydantic models, with errors that name the field, the value and the cure."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from levit_search.errors import InputError, did_you_mean
from levit_search.plain_yaml import LARGEST, parse_yaml

# YAML has integers of its own, so "4", 4.5 and true are mistakes rather than other spellings.
Count = Annotated[int, Field(strict=True, ge=1, le=10**9)]


def _number(value: object) -> object:
    if isinstance(value, bool | str):
        raise PydanticCustomError("not_a_number", "must be a number")
    return value


def whole_as_int(value: Any) -> Any:
    """2.0 and 2 are one value, and must give one id."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Ratio = Annotated[
    float, Field(gt=0, le=1000), BeforeValidator(_number), AfterValidator(whole_as_int)
]

_SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def parse_amount(value: object) -> object:
    """Read ``300M``, ``1.2G`` or ``1e9`` (to YAML a text) as a number.

    Everything else is returned as it came.
    """
    if not isinstance(value, str):
        return value
    scale = _SUFFIXES.get(value[-1:].lower(), 1.0)
    try:
        return float(value if scale == 1.0 else value[:-1]) * scale
    except ValueError:
        return value


Amount = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False),
    BeforeValidator(_number),
    BeforeValidator(parse_amount),
]


class Frozen(BaseModel):
    """Base of everything a user writes: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key {key}; {hint}",
                        {"key": repr(key), "hint": did_you_mean(str(key), cls.model_fields)},
                    )
        return data


def canonical_id(model: BaseModel) -> str:
    """Twelve hexadecimal digits of a hash over the whole canonical dump."""
    canonical = json.dumps(model.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], data: object, where: str) -> Model:
    """``data`` as a ``model``.

    Raises:
        InputError: with the place (``where`` and the path of the field), what is wrong and the
            value received, for the first mistake; further ones are only counted.
    """
    if isinstance(data, BaseModel):
        data = data.model_dump(mode="json")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{where}: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """The first mistake of a pydantic error in one line."""
    first, *others = error.errors(include_url=False)
    # A discriminated union puts its tag into the location; the user never wrote it there.
    path = [
        str(part)
        for index, part in enumerate(first["loc"])
        if not (index and first["loc"][index - 1] in ("stem", "architecture", "target"))
        or part in ("channels", "stages", "patch_size", "kind")
    ]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "is required"
    elif first["type"] in ("literal_error", "union_tag_invalid"):
        context = first["ctx"]
        known = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
        value = context.get("tag", first["input"])
        message = f"unknown value {shortened(value)}; {did_you_mean(str(value), known)}"
    elif first["type"] not in ("unknown_key", "value_error", "custom"):
        message = f"{message[:1].lower()}{message[1:]}, not {shortened(first['input'])}"
    more = f" (and {len(others)} more)" if others else ""
    return f"{'.'.join(path)}: {message}{more}" if path else f"{message}{more}"


def shortened(value: object) -> str:
    """A value as a message shows it."""
    try:
        return _cut(repr(value), 60)
    except ValueError:  # integers of thousands of digits have no decimal form
        return f"a huge {type(value).__name__}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: there is no such file, it cannot be read, or it holds no YAML mapping, as
            :func:`levit_search.plain_yaml.parse_yaml` reads it.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
        text = raw.decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a mapping of keys to values")
    return data


def write_yaml(data: Mapping[str, Any]) -> str:
    """``data`` as YAML text in the order given, short lists on one line."""
    return yaml.safe_dump(dict(data), sort_keys=False, default_flow_style=None, width=100)
