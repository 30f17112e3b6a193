"""The bounds of a handful of networks, which share weights without being a space."""

import math
from collections.abc import Sequence
from typing import cast

from levit_search.architecture import ConvStem, Levit, Shrink, Stage, parse
from levit_search.space import Envelope, stem_name


def envelope_around(networks: Sequence[Levit]) -> Envelope:
    """The bounds of some networks, alike in all that weights cannot be shared over."""

    def most(parts: Sequence[Stage | Shrink]) -> dict[str, float]:
        found = [part.model_dump() for part in parts]
        bounds = {name: max(part[name] for part in found) for name in found[0]}
        return {**bounds, "attn_ratio": math.ceil(bounds["attn_ratio"])}

    deepest = max(networks, key=lambda network: len(network.stages))
    stages = [
        most([network.stages[i] for network in networks if i < len(network.stages)])
        for i in range(len(deepest.stages))
    ]
    shrinks = [
        most([network.shrinks[i] for network in networks if i < len(network.shrinks)])
        for i in range(len(deepest.shrinks))
    ]
    by_stem: dict[str, Levit] = {}
    for network in networks:
        stem = network.stem.model_dump()
        if isinstance(network.stem, ConvStem):
            alike = [n.stem for n in networks if stem_name(n) == stem_name(network)]
            lists = [other.channels for other in alike if isinstance(other, ConvStem)]
            leading = [max(place) for place in zip(*lists, strict=True)][:-1]
            stem["channels"] = [*leading, stages[0]["embed_dim"]]
        bound = parse({**deepest.model_dump(), "stem": stem, "stages": stages, "shrinks": shrinks})
        by_stem[stem_name(network)] = cast(Levit, bound)
    counts = sorted({len(network.stages) for network in networks})
    envelope = Envelope(by_stem, tuple(counts))
    assert all(envelope.holds(network) for network in networks)
    return envelope
