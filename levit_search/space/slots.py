"""Templates: plain data whose leaves may be choices or ranges, each compiled to a slot."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from levit_search.configuration import whole_as_int
from levit_search.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Slot:
    """One thing that varies, with all its values in order."""

    name: str
    values: tuple[Any, ...]
    ordinal: bool
    """Numbers have an order that a sampler can use; names and lists have none."""

    def decoded(self, parameter: Any) -> Any:
        """The value that an Optuna parameter stands for."""
        return self.values[parameter] if self.ordinal else json.loads(parameter)

    def encoded(self, value: Any) -> Any:
        """The Optuna parameter that stands for ``value``."""
        return self.values.index(value) if self.ordinal else json.dumps(value)

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        """What samplers draw the parameter from."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        if self.ordinal:
            return IntDistribution(0, len(self.values) - 1)
        return CategoricalDistribution(self._spellings())

    def _spellings(self) -> list[str]:
        return [json.dumps(value) for value in self.values]


ABSENT: Final = object()


def compiled(node: Any, where: str, path: str = "") -> Any:
    """A template with a :class:`Slot` for each choice and range.

    Raises:
        InputError: a malformed choice or range; ``where`` and its path are named.
    """
    if isinstance(node, Mapping):
        if {"choices", "range"} & node.keys():
            return _slot(node, f"{where}.{path}", path)
        return {str(key): compiled(value, where, joined(path, key)) for key, value in node.items()}
    if isinstance(node, list):
        return [compiled(value, where, joined(path, i)) for i, value in enumerate(node)]
    return node


def filled(node: Any, values: Mapping[str, Any]) -> Any:
    """A compiled template with a value for each slot, the first where ``values`` has none."""
    if isinstance(node, Slot):
        return values.get(node.name, node.values[0])
    if isinstance(node, dict):
        return {key: filled(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [filled(value, values) for value in node]
    return node


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and content of all slots and values."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, joined(path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, joined(path, index))
    else:
        yield path, node


def at(data: Any, path: str) -> Any:
    """What stands at a path, or ``ABSENT``."""
    for part in path.split("."):
        try:
            data = data[int(part)] if isinstance(data, list) else data[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return ABSENT
    return data


def options(node: Any) -> tuple[Any, ...]:
    """The values that a place may take; none where there is no such place."""
    if node is ABSENT:
        return ()
    return node.values if isinstance(node, Slot) else (node,)


def possible(node: Any, path: str) -> Iterator[Any]:
    """Everything that may stand at a path of a compiled template; ``ABSENT`` where nothing does."""
    yield from _possible(node, path.split("."))


def _possible(node: Any, parts: Sequence[str]) -> Iterator[Any]:
    if isinstance(node, Slot):
        for value in node.values:
            yield from _possible(value, parts)
    elif not parts:
        yield node
    else:
        yield from _possible(at(node, parts[0]) if node is not ABSENT else ABSENT, parts[1:])


def joined(path: str, key: object) -> str:
    """The path of a key below ``path``."""
    return f"{path}.{key}" if path else str(key)


_MOST_VALUES = 10_000


def _slot(node: Mapping[str, Any], where: str, path: str) -> Slot:
    known = ("choices",) if "choices" in node else ("range", "step")
    unknown = [key for key in node if key not in known]
    if unknown:
        hint = did_you_mean(str(unknown[0]), known)
        raise InputError(f"{where}: unknown key {unknown[0]!r}; {hint}")
    values = node["choices"] if "choices" in node else _range(node, where)
    if not isinstance(values, list) or not values:
        raise InputError(f"{where}.choices: expected a list of values, not {values!r}")
    values = [whole_as_int(value) for value in values]
    try:
        spellings = {json.dumps(value) for value in values}
    except (TypeError, ValueError, RecursionError):
        raise InputError(
            f"{where}.choices: expected plain numbers, names or lists, not {values!r}"
        ) from None
    if len(spellings) < len(values):
        raise InputError(f"{where}.choices: a value stands there twice: {values!r}")
    ordinal = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    return Slot(path, tuple(sorted(values) if ordinal else values), ordinal)


def _range(node: Mapping[str, Any], where: str) -> list[int]:
    bounds, step = node["range"], node.get("step", 1)
    numbers = [*bounds, step] if isinstance(bounds, list) and len(bounds) == 2 else [None]
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers) or step < 1:
        raise InputError(
            f"{where}.range: expected two whole numbers [low, high] and a step of at least 1, "
            f"not {bounds!r} and step {step!r}"
        )
    low, high = bounds
    if (high - low) // step >= _MOST_VALUES:
        raise InputError(f"{where}.range: more than {_MOST_VALUES} values; give a larger step")
    values = list(range(low, high + 1, step))
    if not values:
        raise InputError(f"{where}.range: empty, {low} lies above {high}")
    return values
