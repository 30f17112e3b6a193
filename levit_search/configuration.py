"""From YAML to frozen pydantic models, with errors that name the field, the value and the cure.

A YAML file may come from anybody: it is read as plain data and nothing else, of bounded size, depth
and expansion. Only what JSON has too is read (mappings by text, lists, texts, numbers, true, false,
null); a date, or a key such as 7, is the text that was written. A key that stands twice is an
error, since one of the two would be lost without a word.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NoReturn, TypeVar, Union, get_args, get_origin

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
from pydantic_core import PydanticCustomError, PydanticSerializationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from levit_search.errors import InputError, cut, did_you_mean

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

LARGEST = 1 << 20
"""Bytes of a file, and characters of a text, that are read; studies have some thousands."""

_DEEPEST = 40  # levels; a space file has about six
_MOST_NODES = 100_000  # an alias counts as all that it stands for
_PLAIN_KEYS = ("null", "bool", "int", "float", "value")
_MOST_BITS = 64  # of a whole number
# But for the bytes of a path that is no UTF-8, as os.fsdecode gives them: U+DC80 to U+DCFF.
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")

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

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """The model as a mapping, with the options of pydantic's own; an interruption stays one."""
        try:
            return super().model_dump(**options)
        except PydanticSerializationError as error:  # pydantic takes it for a serializer's failure
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise error.__cause__ from None
            raise

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
        for before, part in zip((None, *first["loc"]), first["loc"], strict=False)
        if before not in ("stem", "architecture", "target")
        or part in ("channels", "stages", "patch_size", "kind")
        if part not in SIZE_TAGS
    ]
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
        return cut(repr(value), 60)
    except ValueError:  # integers of thousands of digits have no decimal form
        return f"a huge {type(value).__name__}"


def field_types(model: type[BaseModel], dotted: str) -> list[Any]:
    """What a field below ``model`` may hold: the members of its union, the models among them.

    Args:
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
        types: of the field, see :func:`field_types`.

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
            :func:`parse_yaml` reads it.
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


def parse_yaml(text: str, where: str) -> Any:
    """The value that a YAML text stands for; only plain data, never objects.

    Raises:
        InputError: the text is not valid YAML, is too large or nested too deeply, stands for too
            much by its aliases, or has a key twice.
    """
    if len(text) > LARGEST:
        raise InputError(f"{where}: larger than {LARGEST >> 20} MiB, which no file of ours is")
    try:
        return _Loader(text).get_single_data()
    except _RefusedError as refused:
        raise InputError(f"{where}: {refused}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # What PyYAML's constructors of numbers raise at such as `!!int large`.
        reason = f"{type(error).__name__}: {error}"
    raise InputError(f"{where}: not valid YAML: {cut(reason, 300)}")


class _RefusedError(Exception):
    """Valid YAML that is not taken; the message is the reason."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without its dates, sets and binaries, and with bounds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _RefusedError(f"nested too deeply (more than {_DEEPEST} levels)")
        try:
            node: Node | None = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        return node

    def construct_document(self, node: Node) -> Any:
        """As PyYAML, if without its aliases the document is of a size that anybody writes."""
        sizes: dict[int, int | None] = {}

        def size(node: Node) -> int:
            known = sizes.get(id(node), 0)
            if known is None:
                raise _RefusedError(f"an alias stands for what it is part of{_line(node)}")
            if known:
                return known
            sizes[id(node)] = None
            total = 1
            if isinstance(node, SequenceNode):
                total += sum(map(size, node.value))
            elif isinstance(node, MappingNode):
                total += sum(size(each) for pair in node.value for each in pair)
            if total > _MOST_NODES:
                raise _RefusedError(
                    f"stands for more than {_MOST_NODES:,} values, its aliases written out"
                )
            sizes[id(node)] = total
            return total

        size(node)
        return super().construct_document(node)

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """A mapping by text, each key once: ``7`` or ``on`` are what was written, as in JSON."""
        node: MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        # Now, since later there is also what a merge (`<<`) brings.
        for place, (key, value) in enumerate(node.value):
            if not isinstance(key, ScalarNode):
                continue  # PyYAML refuses it, with its place
            if key.value in seen:
                raise _RefusedError(f"the key {key.value!r} stands there twice{_line(key)}")
            seen.add(key.value)
            if key.tag.rpartition(":")[2] in _PLAIN_KEYS:
                # In a node of its own: an alias may stand for the same one as a value.
                marks = key.start_mark, key.end_mark, key.style
                text = ScalarNode("tag:yaml.org,2002:str", key.value, *marks)
                node.value[place] = text, value
        return node


def _text(loader: _Loader, node: ScalarNode) -> str:
    text: str = loader.construct_yaml_str(node)
    if _HALF.search(text):
        raise _RefusedError(f"half of a character, as no file can hold it{_line(node)}")
    return text


def _int(loader: _Loader, node: ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if value.bit_length() > _MOST_BITS:
        raise _RefusedError(
            f"a whole number of more than {_MOST_BITS} bits{_line(node)}: {node.value[:40]}..."
        )
    return value


def _no_plain_data(_loader: _Loader, node: Node) -> NoReturn:
    raise _RefusedError(f"!!{node.tag.rpartition(':')[2]} is not taken{_line(node)}")


_Loader.add_constructor("tag:yaml.org,2002:str", _text)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
for _tag in ("timestamp", "binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _no_plain_data)
# In place of the shared table, so that other loaders go on reading dates.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _line(node: Node) -> str:
    return f" (line {node.start_mark.line + 1})"
