"""Parameters, FLOPs and activations of an architecture in closed form, layer by layer, no torch.

One multiply-add is one FLOP. The softmax counts once for each element of an attention map; batch
norm, activation functions, pooling and additions do not count: the convention of the released
LeViT code. Activations are the elements that all linear, convolution and attention-product outputs
hold for one image, fvcore's convention.

Each function stands for one module of ``levit_search.model.levit``, in the same order.
"""

from collections.abc import Iterator
from typing import NamedTuple

from levit_search.architecture import (
    Architecture,
    ConvStem,
    Levit,
    PatchStem,
    ResNetStem,
    Shrink,
    Stage,
)


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


def _expanded(groups: list[_Group]) -> Iterator[LayerCost]:
    for name, repeats, rows in groups:
        for index in range(repeats):
            prefix = f"{name}.{index}." if ".blocks" in name else f"{name}." if name else ""
            for row in rows:
                yield row._replace(name=prefix + row.name)


def _groups(architecture: Levit) -> list[_Group]:
    grids = architecture.grids
    stages = architecture.stages
    groups = [_Group("stem", 1, _stem(architecture))]
    if architecture.position == "embedding":
        embedding = grids[0] ** 2 * stages[0].embed_dim
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
                _block(architecture, stage, grids[index]),
            )
        )
    groups.append(_Group("", 1, _heads(architecture)))
    return groups


def _stem(architecture: Levit) -> list[LayerCost]:
    stem = architecture.stem
    size, channels = architecture.image_size, architecture.in_channels
    batch_norm = architecture.norm == "batch"
    width = architecture.stages[0].embed_dim
    match stem:
        case ConvStem():
            rows = []
            for index, outputs in enumerate(stem.channels):
                size = -(-size // 2)
                name = f"convs.{index}"
                rows.append(_convolution(name, size, channels, outputs, 3, batch_norm))
                channels = outputs
            return rows
        case PatchStem():
            grid = size // stem.patch_size
            return [_convolution("convs.0", grid, channels, width, stem.patch_size, batch_norm)]
        case ResNetStem():
            rows, size, channels = _resnet(stem, size, channels)
            return [*rows, _convolution("projection", size, channels, width, 1, batch_norm)]


def _convolution(
    name: str, size: int, inputs: int, outputs: int, kernel: int, batch_norm: bool = True
) -> LayerCost:
    """A convolution to ``size`` x ``size`` with its batch norm, or else with a bias."""
    weights = inputs * outputs * kernel * kernel
    pixels = size * size
    params = weights + (2 if batch_norm else 1) * outputs
    return LayerCost(name, params, weights * pixels, outputs * pixels)


# Blocks in each stage; True where a block is a bottleneck (He et al. 2016, Table 1; timm's 26).
_RESNETS = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet26": (True, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
}


def _resnet(stem: ResNetStem, size: int, channels: int) -> tuple[list[LayerCost], int, int]:
    """The ResNet's layers under timm's names, with the size and channels it ends at."""
    bottleneck, depths = _RESNETS[stem.kind]
    size = -(-size // 2)
    rows = [_convolution("resnet.conv1", size, channels, 64, 7)]
    size = -(-size // 2)  # max-pool
    channels = 64
    for stage, depth in enumerate(depths[: stem.stages]):
        width = 64 * 2**stage
        for block in range(depth):
            name = f"resnet.layer{stage + 1}.{block}"
            stride = 2 if stage and not block else 1
            outputs = width * (4 if bottleneck else 1)
            reduced = -(-size // stride)
            if bottleneck:
                rows += [
                    _convolution(f"{name}.conv1", size, channels, width, 1),
                    _convolution(f"{name}.conv2", reduced, width, width, 3),
                    _convolution(f"{name}.conv3", reduced, width, outputs, 1),
                ]
            else:
                rows += [
                    _convolution(f"{name}.conv1", reduced, channels, width, 3),
                    _convolution(f"{name}.conv2", reduced, width, width, 3),
                ]
            if stride > 1 or channels != outputs:
                rows.append(_convolution(f"{name}.downsample", reduced, channels, outputs, 1))
            size, channels = reduced, outputs
    return rows, size, channels


def _block(architecture: Levit, stage: Stage, grid: int) -> list[LayerCost]:
    """One attention and one MLP block of a stage."""
    tokens, width, heads = grid * grid, stage.embed_dim, stage.num_heads
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
    architecture: Levit, shrink: Shrink, grid: int, stages: tuple[Stage, ...], index: int
) -> list[LayerCost]:
    """The shrinking attention block before stage ``index`` and its MLP block."""
    inputs, outputs = stages[index - 1].embed_dim, stages[index].embed_dim
    tokens, queries = grid * grid, (-(-grid // shrink.stride)) ** 2
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
    architecture: Levit, heads: int, queries: int, tokens: int, keys: int, values: int
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
