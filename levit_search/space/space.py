"""A compiled template: a name for every choice, decoding and encoding, sampling, limits.

    stages:
      - {depth: {range: [1, 4]}, embed_dim: {choices: [32, 48, 64]}, key_dim: 16}

Every choice is a slot with a name of its own (``stages.0.depth``). Slots never depend on each
other, since samplers model what all trials have in common: a slot of a stage that ``num_stages``
leaves out, of a trunk without layers, or of another family or kind of stem is there, and ignored
when decoding.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_search import architecture as architectures
from levit_search.architecture import Architecture
from levit_search.configuration import Amount, Frozen
from levit_search.cost import Cost, cost
from levit_search.errors import InputError
from levit_search.image_size import canonical_size
from levit_search.space.families import check_values, family_for
from levit_search.space.slots import (
    ABSENT,
    Slot,
    at,
    compiled,
    filled,
    leaves,
    options,
    possible,
)

if TYPE_CHECKING:
    import optuna


_DRAWS = 2000  # among which a sample's networks are looked for


class Limits(Frozen):
    """Upper bounds that a network must keep; amounts may be written as ``300M`` or ``1.2G``."""

    params: Amount | None = None
    flops: Amount | None = None
    activations: Amount | None = None
    latency_ms: Amount | None = None

    def excess(self, found: Cost) -> dict[str, float]:
        """How far each bounded cost lies above its limit, as a share of it (<= 0 keeps it)."""
        bounds = {name: getattr(self, name) for name in Cost._fields}
        costs = found._asdict()
        return {
            name: costs[name] / bound - 1 for name, bound in bounds.items() if bound is not None
        }

    def keeps(self, found: Cost) -> bool:
        """Whether a cost is within the limits."""
        return all(excess <= 0 for excess in self.excess(found).values())


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
        self._skeleton: Mapping[str, Any] = compiled(template, self._where)
        self._family = family_for(self._skeleton, self._where)
        check_values(self._skeleton, self._family, self._where)
        self._family.check(self._where)
        self.slots = tuple(leaf for _, leaf in leaves(self._skeleton) if isinstance(leaf, Slot))

    @property
    def families(self) -> tuple[str, ...]:
        """``levit``, ``graft`` or both."""
        return tuple(model.model_fields["family"].default for model in self._family.models)

    @property
    def sizes(self) -> dict[str, Any]:
        """The images that its networks are made for, by :data:`levit_search.architecture.SIZES`."""
        return {name: canonical_size(self.possible(name)[0]) for name in architectures.SIZES}

    def values(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna parameters as the value of every slot that has more than one."""
        return {s.name: s.decoded(parameters[s.name]) for s in self.slots if len(s.values) > 1}

    def decode(self, values: Mapping[str, Any]) -> Architecture:
        """The architecture of a choice for every slot.

        Raises:
            InputError: the values do not go together.
        """
        return architectures.parse(self._family.described(filled(self._skeleton, values)))

    def encode(self, network: Architecture) -> dict[str, Any] | None:
        """Slot values that decode to ``network``, or None where the space has no such network.

        Ignored slots get their first value.
        """
        if not isinstance(network, self._family.models):
            return None
        data, is_used = self._spelt(network)
        choices = []
        for slot in self.slots:
            wanted = at(data, slot.name)
            if not is_used(slot.name):
                choices.append(slot.values[:1])
            elif wanted is ABSENT or any(isinstance(v, list | dict | None) for v in slot.values):
                choices.append(slot.values)  # spelt in many ways: tried out below
            else:
                choices.append(tuple(value for value in slot.values if value == wanted))
        names = [slot.name for slot in self.slots]
        for choice in itertools.product(*choices):
            values = dict(zip(names, choice, strict=True))
            with contextlib.suppress(InputError):
                if self.decode(values) == network:
                    return values
        return None

    def _spelt(self, network: Architecture) -> tuple[Mapping[str, Any], Callable[[str], bool]]:
        """A network as the template may spell it, and which slots mean anything for it."""
        data = self._family.spelt(network)
        counts = {path: at(data, path) for path in self._family.controls}
        return data, lambda path: self._family.is_used(path, counts)

    def chosen(self, network: Architecture) -> dict[str, Any] | None:
        """Slot values as :meth:`encode` gives them, without the slots that are ignored."""
        values = self.encode(network)
        if values is None:
            return None
        _, is_used = self._spelt(network)
        return {name: value for name, value in values.items() if is_used(name)}

    def encoded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Slot values as the Optuna parameters that :meth:`values` reads them from."""
        return {s.name: s.encoded(values[s.name]) for s in self.slots if len(s.values) > 1}

    def distributions(self) -> dict[str, "optuna.distributions.BaseDistribution"]:
        """What the slots with more than one value draw from."""
        return {slot.name: slot.distribution() for slot in self.slots if len(slot.values) > 1}

    def possible(self, path: str) -> list[Any]:
        """Everything that the template may have at a path, such as ``stages.0.depth``.

        Where it may have nothing there, the network's default or what follows from other keys,
        there is no value for that.
        """
        return [value for value in possible(self._skeleton, path) if value is not ABSENT]

    def size(self) -> int:
        """How many choices there are, those that differ only in ignored slots counted once."""
        controls = {
            path: values
            for path in self._family.controls
            if (values := options(at(self._skeleton, path)))
        }
        others = [slot for slot in self.slots if slot.name not in controls]
        total = 0
        for choice in itertools.product(*controls.values()):
            counts = dict(zip(controls, choice, strict=True))
            ignored = [path for path in controls if not self._family.is_used(path, counts)]
            if any(counts[path] != controls[path][0] for path in ignored):
                continue
            total += prod(len(s.values) for s in others if self._family.is_used(s.name, counts))
        return total

    def donors(self) -> set[str]:
        """The ResNets that networks of the space may begin with."""
        return self._family.donors()

    def draw(self, rng: np.random.Generator) -> Architecture:
        """A network drawn uniformly over the slots, the limits aside.

        Raises:
            InputError: what was drawn is no valid network.
        """
        return self.decode({s.name: s.values[rng.integers(len(s.values))] for s in self.slots})

    def survey(self, samples: int, seed: int = 0) -> Survey:
        """Draw ``samples`` networks uniformly over the slots."""
        reasons: Counter[str] = Counter()
        costs = []
        for found in self._judged(samples, seed):
            if isinstance(found, str):
                reasons[found] += 1
            else:
                costs.append(found[1])
        return Survey(samples, len(costs), dict(reasons.most_common()), costs)

    def sample(self, count: int = 256) -> list[tuple[Architecture, Cost]]:
        """The feasible networks among the first 2 000 draws of seed 0, ``count`` at most.

        They are the same whenever they are asked for, and may hold one network several times.

        Raises:
            InputError: none is valid and within the limits; the message gives the reason met most.
        """
        networks: list[tuple[Architecture, Cost]] = []
        reasons: Counter[str] = Counter()
        for found in self._judged(_DRAWS, 0):
            if isinstance(found, str):
                reasons[found] += 1
                continue
            networks.append(found)
            if len(networks) == count:
                break
        if networks:
            return networks
        reason, met = reasons.most_common(1)[0]
        raise InputError(
            f"{self._where}: none of {_DRAWS} random networks is feasible; {met} of them: {reason}"
        )

    def _judged(self, draws: int, seed: int) -> Iterator[tuple[Architecture, Cost] | str]:
        """Random networks with what they cost, or why they are not feasible."""
        rng = np.random.default_rng(seed)
        for _ in range(draws):
            try:
                network = self.draw(rng)
                found = cost(network)
            except InputError as error:
                yield str(error).removeprefix("architecture: ")
                continue
            over = [name for name, excess in self.limits.excess(found).items() if excess > 0]
            if over:
                yield f"{over[0]} over the limit of {getattr(self.limits, over[0]):,.0f}"
            else:
                yield network, found


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Minimum, quartiles and maximum, for people to look at."""
    found = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return dict(zip(("min", "q25", "median", "q75", "max"), found, strict=True))
