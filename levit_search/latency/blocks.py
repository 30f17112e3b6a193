"""Networks taken apart into blocks that can be timed on their own.

A LeViT is its stem, the attention and MLP pairs of its stages, its shrinking blocks and its heads;
a graft its donor, the embedding that makes tokens of a map, the pairs of its trunk and its heads.
Networks of one space share most of their blocks.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal, get_args

from levit_search.architecture import Architecture, ConvStem, Donor, Graft, Levit, parse
from levit_search.architecture.resnet import ResNetName
from levit_search.configuration import Frozen, canonical_id
from levit_search.image_size import Sides

Kind = Literal["stem", "donor", "embedding", "attention", "shrink", "heads"]


class Block(Frozen):
    """A part of a network, described by the plainest network that has the very same part.

    Whatever the part does not depend on is one, none or the default there, so that equal parts of
    any two networks are equal blocks with equal ids.
    """

    kind: Kind
    network: Architecture

    @cached_property
    def id(self) -> str:
        """See :func:`levit_search.configuration.canonical_id`."""
        return canonical_id(self)


def distinct_blocks(architecture: Architecture) -> Counter[Block]:
    """What a network is made of, in the order of first use, and how often it uses each."""
    return Counter(blocks(architecture))


def blocks(architecture: Architecture) -> Iterator[Block]:
    """The blocks of a network from the image to the logits; each reads what the last one gave."""
    return _graft(architecture) if isinstance(architecture, Graft) else _levit(architecture)


# A stage, or a trunk, that stands there only because its network must have one.
_BARE_STAGE = {"depth": 1, "num_heads": 1, "key_dim": 1, "attn_ratio": 1, "mlp_ratio": 1}
_BARE_TRUNK = {"depth": 1, "num_heads": 1, "mlp_ratio": 1}


def _levit(network: Levit) -> Iterator[Block]:
    stages, grids = network.stages, network.grids
    yield Block(kind="stem", network=_plain_levit(grids[0], [_bare(network, 0)], **_stem(network)))
    inner = _fields(network, "norm", "position", "activation", "attention_activation")
    for index, stage in enumerate(stages):
        if index:
            ends = [_bare(network, index - 1), _bare(network, index)]
            shrink = network.shrinks[index - 1].model_dump()
            plain = _plain_levit(grids[index - 1], ends, shrinks=[shrink], **inner)
            yield Block(kind="shrink", network=plain)
        only = {**stage.model_dump(), "depth": 1}
        pair = Block(kind="attention", network=_plain_levit(grids[index], [only], **inner))
        for _ in range(stage.depth):
            yield pair
    end = _fields(network, "num_classes", "distillation", "norm")
    yield Block(kind="heads", network=_plain_levit(grids[-1], [_bare(network, -1)], **end))


def _plain_levit(grid: Sides, stages: list[dict[str, Any]], **changes: Any) -> Architecture:
    """A network whose first stage has rows and columns of tokens as in ``grid``."""
    plainest = {
        "image_size": grid,
        "in_channels": 1,
        "num_classes": 1,
        "stem": {"kind": "patch", "patch_size": 1},
        "distillation": False,
    }
    return parse({**plainest, "stages": stages, **changes})


def _bare(network: Levit, stage: int) -> dict[str, Any]:
    return {**_BARE_STAGE, "embed_dim": network.stages[stage].embed_dim}


def _stem(network: Levit) -> dict[str, Any]:
    names = ["image_size", "in_channels", "norm", "position"]
    stem = network.stem
    if isinstance(stem, ConvStem) and len(stem.channels) > 1:
        names.append("activation")  # it stands between convolutions
    return {**_fields(network, *names), "stem": stem.model_dump()}


def _graft(network: Graft) -> Iterator[Block]:
    donor, trunk = network.donor, network.trunk
    images = _fields(network, "image_size", "in_channels")
    ends = _fields(network, "num_classes", "distillation")
    # What comes after the donor sees its map alone.
    behind = images
    if donor is not None:
        yield Block(kind="donor", network=_plain_graft(**images, donor=donor.model_dump()))
        similar = _with_same_map(donor).model_dump()
        behind = {"image_size": network.image_size, "donor": similar}
    if trunk is None:
        yield Block(kind="heads", network=_plain_graft(**behind, **ends))
        return
    bare = {**_BARE_TRUNK, "embed_dim": trunk.embed_dim}
    tokens = _fields(network, "grid", "distillation")
    yield Block(kind="embedding", network=_plain_graft(**behind, **tokens, trunk=bare))
    inside = {"image_size": network.grid, "grid": network.grid}
    only = {**trunk.model_dump(), "depth": 1}
    plain = _plain_graft(**inside, trunk=only, distillation=network.distillation)
    pair = Block(kind="attention", network=plain)
    for _ in range(trunk.depth):
        yield pair
    yield Block(kind="heads", network=_plain_graft(**inside, **ends, trunk=bare))


def _plain_graft(**changes: Any) -> Architecture:
    plainest = {"in_channels": 1, "num_classes": 1, "distillation": False}
    return parse({"family": "graft", "donor": None, "trunk": None, **plainest, **changes})


def _with_same_map(donor: Donor) -> Donor:
    """The first donor that ends with as many channels; the stride depends on the stages alone."""
    channels = donor.cut(1).channels
    others = (donor.model_copy(update={"name": name}) for name in get_args(ResNetName))
    return next(other for other in others if other.cut(1).channels == channels)


def _fields(network: Architecture, *names: str) -> dict[str, Any]:
    return {name: getattr(network, name) for name in names}
