"""Parameters, FLOPs and activations of an architecture in closed form, layer by layer, no torch.

One multiply-add is one FLOP. The softmax counts once for each element of an attention map; batch
norm, activation functions, pooling and additions do not count: the convention of the released
LeViT code. Activations are the elements that all linear, convolution and attention-product outputs
hold for one image, fvcore's convention.

Each function stands for one module of ``levit_search.model``, in the same order.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from levit_search.architecture import (
    Architecture,
    ConvStem,
    Graft,
    Levit,
    PatchStem,
    ResNetStem,
    Shrink,
    Stage,
)
from levit_search.architecture.resnet import Cut
from levit_search.image_size import Sides, image_shape


class LayerCost(NamedTuple):
    """One layer: its module's name, parameters, FLOPs and activation elements for one image."""

    name: str
    params: int
    flops: int
    activations: int


class Cost(NamedTuple):
    """A whole network: parameters, FLOPs and activation elements for one image."""

    params: int
    flops: int
    activations: int


class _Group(NamedTuple):
    """``repeats`` equal blocks; only one is counted, which keeps searches quick."""

    name: str
    repeats: int
    layers: list[LayerCost]


def cost(architecture: Architecture) -> Cost:
    """The network's totals, both heads included where it has two."""
    params = flops = activations = 0
    for _, repeats, layers in _groups(architecture):
        for layer in layers:
            params += repeats * layer[1]
            flops += repeats * layer[2]
            activations += repeats * layer[3]
    return Cost(params, flops, activations)


def layers(architecture: Architecture) -> list[LayerCost]:
    """Every layer with the name of its module, from the image to the heads."""
    return list(_expanded(_groups(architecture)))


class Parts(NamedTuple):
    """A network in the two parts of the paper's Table 1."""

    conv: Cost
    transformer: Cost


def parts(architecture: Architecture) -> Parts:
    """The convolutional part and the rest.

    A stem, a donor and the projection or patches that follow it are convolutional; a network
    without a trunk is so with its classifier.
    """
    if isinstance(architecture, Graft) and architecture.trunk is None:
        return Parts(cost(architecture), Cost(0, 0, 0))
    convolutional = ("stem.", "donor.", "trunk.projection")
    rows = layers(architecture)
    conv = _total(row for row in rows if row.name.startswith(convolutional))
    return Parts(conv, _total(row for row in rows if not row.name.startswith(convolutional)))


def _total(rows: Iterable[LayerCost]) -> Cost:
    params = flops = activations = 0
    for row in rows:
        params += row.params
        flops += row.flops
        activations += row.activations
    return Cost(params, flops, activations)


def _expanded(groups: list[_Group]) -> Iterator[LayerCost]:
    for name, repeats, rows in groups:
        for index in range(repeats):
            prefix = f"{name}.{index}." if name.endswith("blocks") else f"{name}." if name else ""
            for row in rows:
                yield row._replace(name=prefix + row.name)


def _groups(architecture: Architecture) -> list[_Group]:
    return (
        _graft_groups(architecture)
        if isinstance(architecture, Graft)
        else _levit_groups(architecture)
    )


def _levit_groups(architecture: Levit) -> list[_Group]:
    grids = architecture.grids
    stages = architecture.stages
    groups = [_Group("stem", 1, _stem(architecture))]
    if architecture.position == "embedding":
        embedding = math.prod(grids[0]) * stages[0].embed_dim
        groups.append(_Group("", 1, [LayerCost("position_embedding", embedding, 0, 0)]))
    for index, stage in enumerate(stages):
        if index:
            block = _shrink(
                architecture, architecture.shrinks[index - 1], grids[index - 1], stages, index
            )
            groups.append(_Group(f"shrinks.{index - 1}", 1, block))
        groups.append(
            _Group(
                f"stages.{index}.blocks",
                stage.depth,
                _block(architecture, stage, math.prod(grids[index])),
            )
        )
    groups.append(_Group("", 1, _heads(architecture)))
    return groups


def _stem(architecture: Levit) -> list[LayerCost]:
    stem = architecture.stem
    channels, *size = image_shape(architecture)
    batch_norm = architecture.norm == "batch"
    width = architecture.stages[0].embed_dim
    match stem:
        case ConvStem():
            rows = []
            for index, outputs in enumerate(stem.channels):
                size = [-(-side // 2) for side in size]
                name = f"convs.{index}"
                rows.append(_convolution(name, size, channels, outputs, 3, batch_norm))
                channels = outputs
            return rows
        case PatchStem():
            grid = architecture.grids[0]
            return [_convolution("convs.0", grid, channels, width, stem.patch_size, batch_norm)]
        case ResNetStem():
            cut = stem.cut(channels)
            rows = _resnet("resnet.", cut, size)
            if stem.is_projected(width):
                end = architecture.grids[0]
                row = _convolution("projection", end, cut.channels, width, 1, batch_norm)
                rows.append(row)
            return rows


def _convolution(
    name: str, size: Sequence[int], inputs: int, outputs: int, kernel: int, batch_norm: bool = True
) -> LayerCost:
    """A convolution to ``size`` (rows, columns) with its batch norm, or else with a bias."""
    weights = inputs * outputs * kernel * kernel
    pixels = math.prod(size)
    params = weights + (2 if batch_norm else 1) * outputs
    return LayerCost(name, params, weights * pixels, outputs * pixels)


def _resnet(prefix: str, cut: Cut, size: Sequence[int]) -> list[LayerCost]:
    """The convolutions of a ResNet's head with their batch norms, under timm's names."""
    rows = []
    for row in cut.convolutions:
        ends = [side // row.stride for side in size]
        rows.append(_convolution(prefix + row.name, ends, row.inputs, row.outputs, row.kernel))
    return rows


def _block(architecture: Architecture, stage: Stage, tokens: int) -> list[LayerCost]:
    """One attention and one MLP block of a stage."""
    width, heads = stage.embed_dim, stage.num_heads
    keys, values = heads * stage.key_dim, heads * int(stage.attn_ratio * stage.key_dim)
    batch_norm = architecture.norm == "batch"
    rows = [] if batch_norm else [LayerCost("attention.norm", 2 * width, 0, 0)]
    return [
        *rows,
        _linear("attention.qkv", tokens, width, 2 * keys + values, batch_norm),
        *_products(architecture, heads, tokens, tokens, keys, values),
        _linear("attention.projection", tokens, values, width, batch_norm),
        *_mlp(width, stage.mlp_ratio, tokens, batch_norm),
    ]


def _shrink(
    architecture: Levit, shrink: Shrink, grid: Sides, stages: tuple[Stage, ...], index: int
) -> list[LayerCost]:
    """The shrinking attention block before stage ``index`` and its MLP block."""
    inputs, outputs = stages[index - 1].embed_dim, stages[index].embed_dim
    tokens, queries = math.prod(grid), math.prod(-(-side // shrink.stride) for side in grid)
    heads = shrink.num_heads
    keys, values = heads * shrink.key_dim, heads * int(shrink.attn_ratio * shrink.key_dim)
    batch_norm = architecture.norm == "batch"
    rows = [] if batch_norm else [LayerCost("attention.norm", 2 * inputs, 0, 0)]
    return [
        *rows,
        _linear("attention.key_value", tokens, inputs, keys + values, batch_norm),
        _linear("attention.query", queries, inputs, keys, batch_norm),
        *_products(architecture, heads, queries, tokens, keys, values),
        _linear("attention.projection", queries, values, outputs, batch_norm),
        *_mlp(outputs, shrink.mlp_ratio, queries, batch_norm),
    ]


def _linear(name: str, tokens: int, inputs: int, outputs: int, batch_norm: bool) -> LayerCost:
    """A linear layer over ``tokens`` with its batch norm, or else with a bias."""
    weights = inputs * outputs
    params = weights + (2 if batch_norm else 1) * outputs
    return LayerCost(name, params, weights * tokens, outputs * tokens)


def _products(
    architecture: Architecture, heads: int, queries: int, tokens: int, keys: int, values: int
) -> tuple[LayerCost, LayerCost]:
    """Q K^T with softmax and attention bias (one scalar a head and absolute offset), then A V."""
    attention_map = queries * tokens
    bias = heads * tokens if architecture.position == "bias" else 0
    scores = LayerCost(
        "attention.scores", bias, attention_map * (keys + heads), attention_map * heads
    )
    return scores, LayerCost("attention.values", 0, attention_map * values, queries * values)


def _mlp(width: int, ratio: float, tokens: int, batch_norm: bool) -> list[LayerCost]:
    hidden = int(width * ratio)
    rows = [] if batch_norm else [LayerCost("mlp.norm", 2 * width, 0, 0)]
    return [
        *rows,
        _linear("mlp.expand", tokens, width, hidden, batch_norm),
        _linear("mlp.contract", tokens, hidden, width, batch_norm),
    ]


def _heads(architecture: Levit) -> list[LayerCost]:
    """A norm and a linear layer with bias for each head; the tokens are averaged before."""
    width, classes = architecture.stages[-1].embed_dim, architecture.num_classes
    names = ("head", "head_dist") if architecture.distillation else ("head",)
    params = 2 * width + width * classes + classes
    return [LayerCost(name, params, width * classes, classes) for name in names]


def _graft_groups(architecture: Graft) -> list[_Group]:
    groups = []
    channels, *size = image_shape(architecture)
    if architecture.donor is not None:
        cut = architecture.donor.cut(channels)
        groups.append(_Group("donor", 1, _resnet("", cut, size)))
        channels = cut.channels
    stage = architecture.trunk_stage
    if stage is not None:
        groups += _trunk(architecture, stage, channels)
        channels = stage.embed_dim
    classes = architecture.num_classes
    names = ("head", "head_dist") if architecture.distillation else ("head",)
    params = channels * classes + classes
    groups.append(
        _Group("", 1, [LayerCost(name, params, channels * classes, classes) for name in names])
    )
    return groups


def _trunk(architecture: Graft, stage: Stage, channels: int) -> list[_Group]:
    """Projection or patches, the added tokens, the position embedding and a DeiT's layers."""
    grid, width, tokens = architecture.grid_sides, stage.embed_dim, architecture.tokens
    patch = 1 if architecture.donor is not None else architecture.patch
    rows = [_convolution("projection", grid, channels, width, patch, batch_norm=False)]
    extra = ["class_token", *(["distillation_token"] if architecture.distillation else [])]
    rows += [LayerCost(name, width, 0, 0) for name in extra]
    rows.append(LayerCost("position_embedding", tokens * width, 0, 0))
    return [
        _Group("trunk", 1, rows),
        _Group("trunk.blocks", stage.depth, _block(architecture, stage, tokens)),
        _Group("trunk", 1, [LayerCost("norm", 2 * width, 0, 0)]),
    ]
