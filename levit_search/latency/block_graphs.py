"""Networks taken apart into blocks that can be timed on their own: as modules and ONNX graphs.

A LeViT is its stem, the attention and MLP pairs of its stages, its shrinking blocks and its heads;
a graft its donor, the embedding that makes tokens of a map, the pairs of its trunk and its heads.
Networks of one space share most of their blocks.

Shapes: B images, C channels, R rows and S columns of tokens, T tokens. Between blocks an
activation is [B, T, C], or [B, C, R, S] in the layout of maps ([B, C, T, 1] in a graft's trunk); a
donor always gives a map.
"""

import math
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from levit_search.architecture import Architecture, ConvStem, Graft, Levit, Stage, parse
from levit_search.architecture.resnet import ResNetName
from levit_search.configuration import Frozen, canonical_id
from levit_search.image_size import Sides, image_shape
from levit_search.model import (
    GraftModel,
    Layout,
    LevitModel,
    Model,
    build,
    fold,
    set_layout,
    write_graph,
)
from levit_search.model.graft import GraftTrunk

Kind = Literal["stem", "donor", "embedding", "attention", "shrink", "heads"]

# A pair that runs alone is no pair within a network: it begins and ends anew and finds its caches
# as it left them. On spaces/levit-imagenet.yaml, predictions from single pairs were 3 % off, from
# pairs in twos as much, in fours 2 %; copies of the weights made no difference.
_COPIES = 4


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
    stages, grids, stem = network.stages, network.grids, network.stem
    names = ["image_size", "in_channels", "norm", "position"]
    if isinstance(stem, ConvStem) and len(stem.channels) > 1:
        names.append("activation")  # it stands between convolutions
    first = {**_fields(network, *names), "stem": stem.model_dump()}
    yield Block(kind="stem", network=_plain_levit(grids[0], [_bare(network, 0)], **first))
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


def _plain_levit(grid: Sides, stages: list[dict[str, object]], **changes: object) -> Architecture:
    """A network whose first stage has rows and columns of tokens as in ``grid``."""
    plainest = {
        "image_size": grid,
        "in_channels": 1,
        "num_classes": 1,
        "stem": {"kind": "patch", "patch_size": 1},
        "distillation": False,
    }
    return parse({**plainest, "stages": stages, **changes})


def _bare(network: Levit, stage: int) -> dict[str, object]:
    return {**_BARE_STAGE, "embed_dim": network.stages[stage].embed_dim}


def _graft(network: Graft) -> Iterator[Block]:
    donor, trunk = network.donor, network.trunk
    images = _fields(network, "image_size", "in_channels")
    ends = _fields(network, "num_classes", "distillation")
    # What comes after the donor sees its map alone.
    behind = images
    if donor is not None:
        yield Block(kind="donor", network=_plain_graft(**images, donor=donor.model_dump()))
        # The first donor that ends with as many channels; the stride depends on the stages alone.
        others = (donor.model_copy(update={"name": name}) for name in get_args(ResNetName))
        similar = next(each for each in others if each.cut(1).channels == donor.cut(1).channels)
        behind = {"image_size": network.image_size, "donor": similar.model_dump()}
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


def _plain_graft(**changes: object) -> Architecture:
    plainest = {"in_channels": 1, "num_classes": 1, "distillation": False}
    return parse({"family": "graft", "donor": None, "trunk": None, **plainest, **changes})


def _fields(network: Architecture, *names: str) -> dict[str, object]:
    return {name: getattr(network, name) for name in names}


def write_block(block: Block, layout: Layout, batch_size: int, path: Path) -> int:
    """Write a block with fresh weights, batch norms folded, as an ONNX file.

    Args:
        block: what to write.
        layout: of the activations between blocks.
        batch_size: images in one run, fixed in the graph.
        path: the file to write.

    Returns:
        How often the graph runs the block, one after the other with the same weights.
    """
    module = block_module(unfolded(block, layout), block)
    copies = _COPIES if block.kind == "attention" else 1
    inputs = {"x": torch.zeros(input_shape(block, layout, batch_size))}
    write_graph(nn.Sequential(*[module] * copies), inputs, "y", path)
    return copies


def write_nothing(path: Path) -> None:
    """Write a graph whose run takes as long as the runtime needs to begin and end one."""

    class AddOne(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    write_graph(AddOne(), {"x": torch.zeros(1, 1)}, "y", path)


def input_shape(block: Block, layout: Layout, batch_size: int) -> tuple[int, ...]:
    """Of what the block reads."""
    network = block.network
    is_first = block.kind in ("stem", "donor")
    if isinstance(network, Graft) and network.donor is None:
        is_first = block.kind == "embedding"
    if is_first:
        return batch_size, *image_shape(network)
    if isinstance(network, Levit):
        width, grid = network.stages[0].embed_dim, network.grids[0]
        is_map = layout == "maps"
        return (batch_size, width, *grid) if is_map else (batch_size, math.prod(grid), width)
    if network.donor is not None:
        return batch_size, network.donor.cut(1).channels, *network.map_sides
    assert network.trunk is not None
    width, tokens = network.trunk.embed_dim, network.tokens
    return (batch_size, width, tokens, 1) if layout == "maps" else (batch_size, tokens, width)


def unfolded(block: Block, layout: Layout) -> Model:
    """The block's network with fresh weights, with what :func:`block_module` takes from it.

    The block's parameters have the names that they have in a whole network, indices being zero.
    """
    network = block.network
    if isinstance(network, Levit):
        if block.kind not in ("stem", "heads"):
            return build(network, layout)
        model: Model = _LevitStem(network) if block.kind == "stem" else _LevitHeads(network)
    else:
        model, stage = GraftModel(network), network.trunk_stage
        if stage is not None and block.kind == "embedding":
            model.trunk = _TrunkStart(network, stage, input_shape(block, layout, 1)[1])
        if block.kind == "heads":
            model.donor = None
            model.trunk = _TrunkEnd(network, stage, 1) if stage is not None else None
    set_layout(model, layout)
    return model


def block_module(model: Model, block: Block) -> nn.Module:
    """The block within an :func:`unfolded` network, batch norms folded, for inference."""
    folded = fold(model)
    name = {
        "attention": "stages.0.blocks.0" if isinstance(folded, LevitModel) else "trunk.blocks.0",
        "shrink": "shrinks.0",
        "donor": "donor",
        "embedding": "trunk",
    }.get(block.kind, "")
    return folded.get_submodule(name)


class _LevitStem(LevitModel):
    """From images to what the first stage reads."""

    def __init__(self, architecture: Levit) -> None:
        super().__init__(architecture)
        self.stages = nn.ModuleList([nn.Identity()])

    def forward(self, images: Tensor) -> Tensor:
        return self._stage_outputs(images)[-1]


class _LevitHeads(LevitModel):
    """From the last stage's output to logits."""

    def _stage_outputs(self, x: Tensor) -> list[Tensor]:
        return [x]


class _TrunkStart(GraftTrunk):
    """From a map, or images, to what the trunk's first pair reads."""

    def __init__(self, architecture: Graft, stage: Stage, channels: int) -> None:
        super().__init__(architecture, stage, channels)
        self.blocks = nn.ModuleList()

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self._blocks(x_bchw)


class _TrunkEnd(GraftTrunk):
    """From the last pair's output to normed class and distillation tokens."""

    def _blocks(self, x: Tensor) -> Tensor:
        return x
