"""Blocks as modules and ONNX graphs.

Shapes: B images, C channels, R rows and S columns of tokens, T tokens. Between blocks an
activation is [B, T, C], or [B, C, R, S] in the layout of maps ([B, C, T, 1] in a graft's trunk); a
donor always gives a map.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from levit_search.architecture import Graft, Levit, Stage
from levit_search.image_size import image_shape
from levit_search.latency.blocks import Block
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

# A pair that runs alone is no pair within a network: it begins and ends anew and finds its caches
# as it left them. On spaces/levit-imagenet.yaml, predictions from single pairs were 3 % off, from
# pairs in twos as much, in fours 2 %; copies of the weights made no difference.
_COPIES = 4


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
    write_graph(_AddOne(), {"x": torch.zeros(1, 1)}, "y", path)


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


class _AddOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1
