"""What the shared weights of a space have to hold: the largest of everything that varies."""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

from levit_search.architecture import (
    Architecture,
    ConvStem,
    Levit,
    PatchStem,
    ResNetStem,
    Shrink,
    Stage,
    parse,
)
from levit_search.configuration import validated
from levit_search.cost import cost
from levit_search.errors import InputError
from levit_search.space.slots import ABSENT, at, options
from levit_search.space.space import Space

_FIXED = (
    *("image_size", "in_channels", "num_classes", "norm", "position"),
    *("activation", "attention_activation", "distillation", "drop_path"),
)
"""What all networks that share weights have in common."""


@dataclass(frozen=True)
class Envelope:
    """The bounds of a space's networks, as networks that hold all of them.

    There is one for each stem of the space, since convolutions in another number or with another
    kernel and the blocks of ResNets share nothing; what follows the stem is the same in all but
    for the tokens.
    """

    networks: dict[str, Levit]
    """By stem (:func:`stem_name`). None needs to be a member of the space."""
    num_stages: tuple[int, ...]
    """The numbers of stages that members have, ascending."""

    @property
    def whole(self) -> Levit:
        """The one with the most tokens."""
        return max(self.networks.values(), key=lambda network: network.grids[0])

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits of a hash over all bounds."""
        content = [sorted(network.id for network in self.networks.values()), self.num_stages]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def holds(self, network: Architecture) -> bool:
        """Whether the shared weights have a part for every part of ``network``."""
        if not isinstance(network, Levit) or len(network.stages) not in self.num_stages:
            return False
        bound = self.networks.get(stem_name(network))
        if bound is None or any(getattr(network, key) != getattr(bound, key) for key in _FIXED):
            return False
        count = len(network.stages)
        own, most = _widths(network), _widths(bound, count)
        strides = [[shrink.stride for shrink in n.shrinks[: count - 1]] for n in (network, bound)]
        return strides[0] == strides[1] and all(a <= b for a, b in zip(own, most, strict=True))


def _widths(network: Levit, count: int | None = None) -> list[int]:
    """Every number of blocks, channels and heads of the first ``count`` stages."""
    stages = network.stages[:count]
    blocks: list[tuple[int, Stage | Shrink]] = [(s.embed_dim, s) for s in stages]
    blocks += [
        (after.embed_dim, shrink)
        for after, shrink in zip(stages[1:], network.shrinks, strict=False)
    ]
    stem = network.stem
    widths = list(stem.channels) if isinstance(stem, ConvStem) else []
    for stage in stages:
        widths += [stage.depth, stage.embed_dim]
    for width, block in blocks:
        values, hidden = int(block.attn_ratio * block.key_dim), int(width * block.mlp_ratio)
        widths += [block.num_heads, block.key_dim, values, hidden]
    return widths


def envelope_of(space: Space, where: str = "space") -> Envelope:
    """The bounds of a space of LeViTs.

    Raises:
        InputError: it holds grafts, or varies what weights cannot be shared over; the key is named.
    """
    if space.families != ("levit",):
        raise InputError(
            f"{where}: architecture.family: a supernet holds networks of the family levit, not "
            "grafts; search with accuracy: trained, or without grafts"
        )
    total = len(space.possible("stages")[0])
    fixed: dict[str, object] = {}
    for key in (*_FIXED, *(f"shrinks.{index}.stride" for index in range(total - 1))):
        values = list({json.dumps(value): value for value in space.possible(key)}.values())
        if len(values) > 1:
            raise InputError(
                f"{where}: architecture.{key}: varies ({', '.join(map(str, values))}), and weights "
                "cannot be shared over it; give it one value, and train a supernet for each in a "
                "study of its own"
            )
        if values and key in _FIXED:
            fixed[key] = values[0]
    stages = [_stage(space, index) for index in range(total)]
    shrinks = [_shrink(space, index, stages[index]) for index in range(total - 1)]
    networks: dict[str, Levit] = {}
    for stem in _stems(space, int(stages[0]["embed_dim"]), where):
        network = parse({**fixed, "stem": stem, "stages": stages, "shrinks": shrinks}, where)
        assert isinstance(network, Levit)
        networks[stem_name(network)] = network
    if fixed.get("position") == "embedding" and len({n.grids for n in networks.values()}) > 1:
        raise InputError(
            f"{where}: architecture.stem: varies the number of tokens, and a position embedding "
            "has one vector for each; fix the stem, or use position: bias"
        )
    counts = space.possible("num_stages") or [total]
    return Envelope(networks, tuple(sorted(set(counts))))


def stem_name(network: Levit) -> str:
    """A name for the stem that holds for all widths of it."""
    stem = network.stem
    if isinstance(stem, ConvStem):
        return f"conv{len(stem.channels)}"
    if isinstance(stem, PatchStem):
        return f"patch{stem.patch_size}"
    parts: list[str] = [stem.kind]
    parts.append(f"stages{stem.stages}" if stem.stages is not None else f"layers{stem.layers}")
    if stem.stem != "imagenet":
        parts.append(stem.stem)
    if stem.width_scale != 1:
        parts.append(f"x{stem.width_scale}".replace(".", "_"))  # no name of a module has a dot
    return "-".join(parts)


SlotValues = Mapping[str, Any]
"""A value for each slot by name."""


class Extremes(NamedTuple):
    """The two ends of what weights are shared over."""

    largest: Levit
    smallest: Levit


def extremes_of(space: Space, envelope: Envelope) -> dict[str, Extremes]:
    """By stem, the largest network within the limits and the smallest.

    They are found by changing one slot after another; a stem whose smallest network is over a limit
    is left out. Where the largest network is over a limit of
    params, FLOPs or activations, the smallest is raised instead, each slot in its turn, as far as
    the limits allow, which makes a network that is large in all.

    Raises:
        InputError: no network with one of the stems is valid, or none at all keeps the limits.
    """
    found: dict[str, Extremes] = {}
    for stem in sorted(envelope.networks):
        lowest = _moved(space, stem, _start(space, stem, 0), -1)
        if not space.limits.keeps(cost(space.decode(lowest))):
            continue  # no network with this stem keeps the limits
        highest = _moved(space, stem, _start(space, stem, -1), 1)
        if not space.limits.keeps(cost(space.decode(highest))):
            highest = _raised(space, stem, lowest)
        ends = (space.decode(highest), space.decode(lowest))
        found[stem] = Extremes(*(cast(Levit, network) for network in ends))
    if not found:
        raise InputError("architecture: even the smallest networks are over the limits")
    return found


def _start(space: Space, stem: str, place: int) -> SlotValues:
    """The first or the last values of all slots but for those of the stem, which make it."""
    values = {slot.name: slot.values[place] for slot in space.slots}
    of_stem = [slot for slot in space.slots if slot.name.split(".")[0] == "stem"]
    names = [slot.name for slot in of_stem]
    for choice in itertools.product(*(slot.values for slot in of_stem)):
        tried = {**values, **dict(zip(names, choice, strict=True))}
        if _worth(space, stem, tried) is not None:
            return tried
    raise InputError(
        f"architecture: neither the largest nor the smallest values of a network with the stem "
        f"{stem} go together"
    )


def _moved(space: Space, stem: str, values: SlotValues, sign: int) -> SlotValues:
    """Values changed one by one as long as that makes a network larger, or smaller."""
    best = _worth(space, stem, values)
    improves = True
    while improves:
        improves = False
        for slot in space.slots:
            for value in slot.values:
                tried = {**values, slot.name: value}
                worth = _worth(space, stem, tried)
                if worth is None or best is None or worth == best:
                    continue
                if (worth > best) == (sign > 0):
                    values, best, improves = tried, worth, True
    return values


def _raised(space: Space, stem: str, values: SlotValues) -> SlotValues:
    """Values raised in turn, by the smallest step each, as long as the limits are kept."""
    grows = True
    while grows:
        grows = False
        for slot in space.slots:
            now = _worth(space, stem, values)
            assert now is not None
            steps: list[tuple[tuple[int, int], int, SlotValues]] = []
            for value in slot.values:
                tried = {**values, slot.name: value}
                worth = _worth(space, stem, tried)
                if worth is None or worth <= now:
                    continue
                if space.limits.keeps(cost(space.decode(tried))):
                    steps.append((worth, len(steps), tried))
            if steps:
                values, grows = min(steps)[2], True
    return values


def _worth(space: Space, stem: str, values: SlotValues) -> tuple[int, int] | None:
    """How large a network is; None where the values do not go together or make another stem."""
    try:
        network = cast(Levit, space.decode(values))
    except InputError:
        return None
    found = cost(network)
    return (found.flops, found.params) if stem_name(network) == stem else None


def _stage(space: Space, index: int) -> dict[str, float]:
    path = f"stages.{index}"
    width = max(space.possible(f"{path}.embed_dim"))
    heads, keys = space.possible(f"{path}.num_heads"), space.possible(f"{path}.key_dim")
    return {
        "depth": max(space.possible(f"{path}.depth")),
        "embed_dim": width,
        "num_heads": max(heads) if heads else width // min(keys),
        "key_dim": max(keys) if keys else width // min(heads),
        "attn_ratio": math.ceil(max(space.possible(f"{path}.attn_ratio"), default=2)),
        "mlp_ratio": max(space.possible(f"{path}.mlp_ratio"), default=2),
    }


def _shrink(space: Space, index: int, before: Mapping[str, float]) -> dict[str, float]:
    path = f"shrinks.{index}"
    # Without a key dimension of its own a block has that of the stage before, see ``Levit``.
    keys = space.possible(f"{path}.key_dim") or space.possible(f"stages.{index}.key_dim")
    keys = keys or [before["key_dim"]]
    heads, strides = space.possible(f"{path}.num_heads"), space.possible(f"{path}.stride")
    return {
        "num_heads": max(heads) if heads else max(1, before["embed_dim"] // min(keys)),
        "key_dim": max(keys),
        "attn_ratio": math.ceil(max(space.possible(f"{path}.attn_ratio"), default=4)),
        "mlp_ratio": max(space.possible(f"{path}.mlp_ratio"), default=2),
        "stride": strides[0] if strides else 2,
    }


def _stems(space: Space, width: int, where: str) -> list[dict[str, object]]:
    """All stems of the space at their widest."""
    stems: list[dict[str, object]] = []
    place = f"{where}: architecture.stem"
    for given in space.possible("stem"):  # one with slots in it, or each that may be chosen
        for kind in options(at(given, "kind")) or ("conv",):
            if kind == "conv":
                lists = options(at(given, "channels"))
                for count in options(at(given, "layers")) or sorted({len(c) for c in lists}):
                    leading = _leading_channels(space, count, width)
                    stems.append({"kind": kind, "channels": [*leading, width]})
                continue
            names = ["patch_size"]
            if kind != "patch":
                cut = "layers" if given.get("stages") is None else "stages"
                names = [name for name in (cut, "stem", "width_scale") if name in given]
            for choice in itertools.product(*(options(at(given, name)) for name in names)):
                stem = {"kind": kind, **dict(zip(names, choice, strict=True))}
                stems.append(stem)
                if kind != "patch" and validated(ResNetStem, stem, place).cut(1).inside_block:
                    raise InputError(
                        f"{place}: a ResNet that is cut inside a block may end with the width of "
                        "the first stage or not, and weights cannot be shared over that; cut it "
                        "after a block"
                    )
    return stems


def _leading_channels(space: Space, layers: int, width: int) -> list[int]:
    """The widest that all but the last convolution of a stem may be."""
    # Without channels of its own a stem halves the width, see ``Levit``.
    halves = any(at(stem, "channels") is ABSENT for stem in space.possible("stem"))
    found = []
    for place in range(layers - 1):
        stated = space.possible(f"stem.channels.{place}")
        derived = [max(1, width // 2 ** (layers - 1 - place))] if halves or not stated else []
        found.append(max(stated + derived))
    return found
