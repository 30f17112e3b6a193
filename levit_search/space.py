"""What may vary: a template of an architecture whose leaves may be choices or ranges.

    stages:
      - {depth: {range: [1, 4]}, embed_dim: {choices: [32, 48, 64]}, key_dim: 16}

Every choice is a slot with a name of its own (``stages.0.depth``). Slots never depend on each
other, since samplers model what all trials have in common: a slot of a stage that ``num_stages``
leaves out is there, and ignored when decoding.
"""

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from levit_search import architecture as architectures
from levit_search.architecture import Architecture, ConvStem, Levit, PatchStem, ResNetStem
from levit_search.configuration import Amount, Count, Frozen, describe, whole_as_int
from levit_search.cost import Cost, cost
from levit_search.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import optuna


class Limits(Frozen):
    """Upper bounds that a network must keep; amounts may be written as ``300M`` or ``1.2G``."""

    params: Amount | None = None
    flops: Amount | None = None
    activations: Amount | None = None
    latency_ms: Amount | None = None

    def excess(self, found: Cost) -> dict[str, float]:
        """How far each bounded cost lies above its limit, as a share of it (<= 0 keeps it)."""
        bounds = {name: getattr(self, name) for name in Cost._fields}
        return {
            name: getattr(found, name) / bound - 1
            for name, bound in bounds.items()
            if bound is not None
        }


@dataclass(frozen=True)
class Slot:
    """One thing that varies, with all its values in order."""

    name: str
    values: tuple[Any, ...]
    ordinal: bool
    """Numbers have an order that a sampler can use; names and lists have none."""

    def suggest(self, trial: "optuna.trial.Trial") -> Any:
        """Ask a trial for this slot's value: numbers as an index into ``values``."""
        if self.ordinal:
            return self.values[trial.suggest_int(self.name, 0, len(self.values) - 1)]
        return json.loads(trial.suggest_categorical(self.name, self._spellings()))

    def encoded(self, value: Any) -> Any:
        """The Optuna parameter that stands for ``value``."""
        return self.values.index(value) if self.ordinal else json.dumps(value)

    def distribution(self) -> "optuna.distributions.BaseDistribution":
        """What :meth:`suggest` draws from."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        if self.ordinal:
            return IntDistribution(0, len(self.values) - 1)
        return CategoricalDistribution(self._spellings())

    def _spellings(self) -> list[str]:
        return [json.dumps(value) for value in self.values]


@dataclass(frozen=True)
class Survey:
    """What a random sample of a space looks like."""

    samples: int
    feasible: int
    reasons: dict[str, int]
    """Why the others were not, each by its first reason."""
    costs: list[Cost]
    """Of the feasible ones."""


class Space:
    """A compiled template: its slots, decoding, encoding and sampling.

    Args:
        template: the ``architecture`` section of a space file, data sizes filled in.
        limits: what a network must keep; latency is left to those who measure.
        where: the file, for messages.

    Raises:
        InputError: a malformed slot, an unknown key or a value that its field does not take.
    """

    def __init__(self, template: Mapping[str, Any], limits: Limits, where: str = "space") -> None:
        self.limits = limits
        self._where = f"{where}: architecture"
        if not isinstance(template.get("stages"), list) or not template["stages"]:
            raise InputError(f"{self._where}.stages: a list of stages is required")
        shrinks = template.get("shrinks")
        if isinstance(shrinks, list) and len(shrinks) > len(template["stages"]) - 1:
            raise InputError(
                f"{self._where}.shrinks: {len(shrinks)} shrinking blocks, but only "
                f"{len(template['stages']) - 1} lie between the stages"
            )
        self._skeleton = self._compiled(dict(template), "")
        self.slots = tuple(_slots(self._skeleton))
        self._check_values()

    def suggest(self, trial: "optuna.trial.Trial") -> dict[str, Any]:
        """The value of every slot, as the trial's sampler chooses."""
        return {slot.name: slot.suggest(trial) for slot in self.slots if len(slot.values) > 1}

    def decode(self, values: Mapping[str, Any]) -> Architecture:
        """The architecture of a choice for every slot.

        Raises:
            InputError: the values do not go together.
        """
        data = _filled(self._skeleton, values)
        count = data.pop("num_stages", len(data["stages"]))
        data["stages"] = data["stages"][:count]
        if isinstance(data.get("shrinks"), list):
            data["shrinks"] = data["shrinks"][: count - 1]
        return architectures.parse(data)

    def encode(self, network: Architecture) -> dict[str, Any] | None:
        """Slot values that decode to ``network``, or None where the space has no such network.

        Slots of absent stages get their first value.
        """
        data = network.model_dump(mode="json")
        data["num_stages"] = len(network.stages)
        if isinstance(network.stem, ConvStem):
            data["stem"]["layers"] = len(network.stem.channels)
        options = []
        for slot in self.slots:
            wanted = _at(data, slot.name)
            if any(isinstance(value, list | dict) for value in slot.values):
                options.append(slot.values)  # spelt in many ways: tried out below
            elif wanted is _ABSENT:
                options.append(slot.values[:1])
            else:
                options.append(tuple(value for value in slot.values if value == wanted))
        names = [slot.name for slot in self.slots]
        for choice in itertools.product(*options):
            values = dict(zip(names, choice, strict=True))
            with contextlib.suppress(InputError):
                if self.decode(values) == network:
                    return values
        return None

    def encoded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Slot values as the Optuna parameters that :meth:`suggest` would read them from."""
        return {s.name: s.encoded(values[s.name]) for s in self.slots if len(s.values) > 1}

    def distributions(self) -> dict[str, "optuna.distributions.BaseDistribution"]:
        """What the slots with more than one value draw from."""
        return {slot.name: slot.distribution() for slot in self.slots if len(slot.values) > 1}

    def size(self) -> int:
        """How many choices there are, those that differ only in ignored slots counted once."""
        by_name = {slot.name: len(slot.values) for slot in self.slots}
        stages = len(self._skeleton["stages"])
        counts = self._skeleton.get("num_stages", stages)
        options = counts.values if isinstance(counts, Slot) else (counts,)
        return sum(
            prod(n for name, n in by_name.items() if _is_used(name, count)) for count in options
        )

    def survey(self, samples: int, seed: int = 0) -> Survey:
        """Draw ``samples`` networks uniformly over the slots."""
        chance = np.random.default_rng(seed)
        reasons: Counter[str] = Counter()
        costs = []
        for _ in range(samples):
            values = {s.name: s.values[chance.integers(len(s.values))] for s in self.slots}
            try:
                found = cost(self.decode(values))
            except InputError as error:
                reasons[str(error).removeprefix("architecture: ")] += 1
                continue
            over = [name for name, excess in self.limits.excess(found).items() if excess > 0]
            if over:
                reasons[f"{over[0]} over the limit of {getattr(self.limits, over[0]):,.0f}"] += 1
            else:
                costs.append(found)
        return Survey(samples, len(costs), dict(reasons.most_common()), costs)

    def check_feasible(self, samples: int = 2000) -> None:
        """Make sure that the space is worth searching.

        Raises:
            InputError: none of ``samples`` random networks is valid and within the limits; the
                message gives the reason met most.
        """
        survey = self.survey(samples)
        if survey.feasible == 0:
            reason, count = next(iter(survey.reasons.items()))
            raise InputError(
                f"{self._where}: none of {samples} random networks is feasible; "
                f"{count} of them: {reason}"
            )

    def _compiled(self, node: Any, path: str) -> Any:
        if isinstance(node, Mapping):
            if {"choices", "range"} & node.keys():
                return self._slot(node, path)
            return {
                str(key): self._compiled(value, _join(path, key)) for key, value in node.items()
            }
        if isinstance(node, list):
            return [self._compiled(value, _join(path, index)) for index, value in enumerate(node)]
        return node

    def _slot(self, node: Mapping[str, Any], path: str) -> Slot:
        where = f"{self._where}.{path}"
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

    def _check_values(self) -> None:
        """Every key must be a field's, and every value one that the field takes by itself."""
        for path, leaf in _leaves(self._skeleton, ""):
            field = self._field(path)
            if field is None:
                continue
            field_type: Any = Annotated[field.annotation, field]
            adapter: TypeAdapter[Any] = TypeAdapter(field_type)
            for value in leaf.values if isinstance(leaf, Slot) else (leaf,):
                try:
                    adapter.validate_python(value)
                except ValidationError as error:
                    raise InputError(f"{self._where}.{path}: {describe(error)}") from None
        stages = len(self._skeleton["stages"])
        count = self._skeleton.get("num_stages", stages)
        if not isinstance(count, Slot | int):
            raise InputError(
                f"{self._where}.num_stages: expected a number or {{choices: [...]}}, not {count!r}"
            )
        for value in count.values if isinstance(count, Slot) else (count,):
            if value > stages:
                raise InputError(
                    f"{self._where}.num_stages: {value} stages, but only {stages} are described"
                )

    def _field(self, path: str) -> FieldInfo | None:
        """The model field that a leaf fills; None where whole models have to judge."""
        head, *rest = path.split(".")
        if head == "num_stages":
            return FieldInfo(annotation=_COUNT)
        if head in ("stages", "shrinks") and len(rest) == 2:
            model: type[Frozen] = architectures.Stage if head == "stages" else architectures.Shrink
            return self._known(model.model_fields, rest[1], f"{head}.{rest[0]}")
        if head == "stem":
            fields = {"layers": FieldInfo(annotation=_COUNT)}
            for stem in (ConvStem, PatchStem, ResNetStem):
                fields |= stem.model_fields
            self._known(fields, rest[0] if rest else "kind", "stem")
            return None
        field = self._known({**Levit.model_fields}, head, "")
        return None if rest else field

    def _known(self, fields: Mapping[str, FieldInfo], key: str, path: str) -> FieldInfo:
        if key not in fields:
            where = f"{self._where}.{path}" if path else self._where
            known = [*fields] if path else ["num_stages", *fields]
            raise InputError(f"{where}: unknown key {key!r}; {did_you_mean(key, known)}")
        return fields[key]


_ABSENT = object()
_MOST_VALUES = 10_000
_COUNT: Any = Count


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


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _slots(node: Any) -> Iterator[Slot]:
    for _, leaf in _leaves(node, ""):
        if isinstance(leaf, Slot):
            yield leaf


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, _join(path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, _join(path, index))
    else:
        yield path, node


def _filled(node: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(node, Slot):
        return values.get(node.name, node.values[0])
    if isinstance(node, dict):
        return {key: _filled(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, values) for value in node]
    return node


def _at(data: Any, path: str) -> Any:
    for part in path.split("."):
        try:
            data = data[int(part)] if isinstance(data, list) else data[part]
        except (KeyError, IndexError, TypeError):
            return _ABSENT
    return data


def _is_used(name: str, num_stages: int) -> bool:
    """Whether a slot means anything in a network of ``num_stages``."""
    if name == "num_stages":
        return False  # counted by the sum over its values
    head, *rest = name.split(".")
    if head in ("stages", "shrinks") and rest:
        return int(rest[0]) < num_stages - (head == "shrinks")
    return True


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Minimum, quartiles and maximum, for people to look at."""
    names = ("min", "q25", "median", "q75", "max")
    return dict(
        zip(names, (float(v) for v in np.quantile(values, (0, 0.25, 0.5, 0.75, 1))), strict=True)
    )
