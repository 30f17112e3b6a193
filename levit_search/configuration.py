"""From YAML to frozen pydantic models, with errors that name the field, the value and the cure."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

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

SIZE_TAGS = ("one number", "[rows, columns]")
"""How errors know the two spellings of :data:`levit_search.image_size.ImageSize`."""

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
    path = [part for part in path if part not in SIZE_TAGS]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "is required"
    elif first["type"] in ("literal_error", "union_tag_invalid"):
        context = first["ctx"]
        expected = context.get("expected") or context["expected_tags"]
        known = re.findall(r"'([^']*)'", expected) or re.split(r", | or ", expected)  # or numbers
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


def field_types(model: type[BaseModel], dotted: str) -> list[Any]:
    """What a field below ``model`` may hold: the members of its union, the models among them.

    Args:
        model: where the key begins.
        dotted: the key, such as ``train.epochs`` or ``stages.0.depth``.

    Returns:
        Types as they were annotated; none where there is no such field.
    """
    found: list[Any] = [model]
    for part in dotted.split("."):
        found = [kind for outer in found for kind in _types_below(outer, part)]
    return found


def _types_below(outer: Any, part: str) -> Iterator[Any]:
    if _is_model(outer):
        if part in outer.model_fields:
            yield from _members(outer.model_fields[part].annotation)
    elif get_origin(outer) is dict:
        yield from _members(get_args(outer)[1])
    elif get_origin(outer) in (list, tuple) and part.isdigit():
        yield from _members(get_args(outer)[0])  # our tuples hold one type


def _members(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def parse_value(text: str, types: list[Any], where: str) -> Any:
    """The value that was written for a field: YAML, but a text stands as it is where one may.

    A path or a name need not be spelt for YAML then: ``/data/set #2`` and ``2024`` are what they
    look like. ``null`` and a text in quotes mean what they mean in YAML, and so do lists, mappings
    and numbers of a field that takes those as well.

    Args:
        text: as written.
        types: of the field, see :func:`field_types`.
        where: for messages.

    Raises:
        InputError: it is no YAML, and the field takes no text; or it is not in UTF-8.
    """
    if not is_utf8(text):
        raise InputError(f"{where}: is not in UTF-8, as all that a study keeps has to be")
    if str not in types:
        return parse_yaml(text, where)
    word = text.strip()
    if word in _NULLS:
        return None
    try:
        value = parse_yaml(word, where)
    except InputError:
        return word
    is_quoted = isinstance(value, str) and word[0] in "'\""
    return value if is_quoted or _is_one_of(value, types) else word


_NULLS = ("", "~", "null", "Null", "NULL")


def is_utf8(text: str) -> bool:
    """Whether a text can be written; a path with other bytes in it cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _is_one_of(value: object, types: list[Any]) -> bool:
    """Whether a value that is no text is what a field takes besides texts."""
    if isinstance(value, Mapping):
        return any(get_origin(kind) is dict or _is_model(kind) for kind in types)
    if isinstance(value, list):
        return any(get_origin(kind) in (list, tuple) for kind in types)
    return type(value) in (bool, int, float) and type(value) in types


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a value at a dotted key of plain data, such as ``stages.0.depth``, in place.

    Raises:
        InputError: there is no mapping or list entry on the way.
    """
    *parents, last = dotted.split(".")
    node: Any = raw
    for part in parents:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        else:
            raise InputError(f"--set {dotted}: there is nothing to set at {part!r}")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise InputError(f"--set {dotted}: there is nothing to set at {last!r}")


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
    except IsADirectoryError:
        raise InputError(f"{path}: cannot be read (it is a folder, not a YAML file)") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a mapping of keys to values")
    return data


def write_yaml(data: Mapping[str, Any]) -> str:
    """``data`` as YAML text in the order given, short lists on one line."""
    return yaml.safe_dump(dict(data), sort_keys=False, default_flow_style=None, width=100)
