"""A network as a list of blocks with their map sizes and their share of parameters and FLOPs."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from levit_search import cost
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
from levit_search.architecture.resnet import Cut, ResNetName, block_layers
from levit_search.image_size import Sides, compact, sides

Kind = Literal["convolution", "residual", "pool", "tokens", "attention", "shrink", "mlp", "head"]
"""``residual`` is a ResNet's block; ``tokens`` are positions, added tokens and their norm."""


@dataclass(frozen=True)
class Block:
    """One box of the diagram.

    ``params`` and ``flops`` are sums over the block's layers, so that those of all blocks add up to
    the network's; one multiply-add is one FLOP. The shares are of the whole network, 0 to 1.
    """

    stage: str
    """What it belongs to: ``stem``, ``stage 1``, ``shrink 1``, ``heads`` ..."""
    name: str
    """Of its module; empty where there is none, as with pooling."""
    kind: Kind
    title: str
    detail: str
    width: int
    """Channels it ends with."""
    grid: int | Sides | None
    """A square's side, or rows and columns, of the pixels or tokens it ends with; None where they
    form no grid."""
    tokens: int
    """Pixels or tokens it ends with."""
    params: int = 0
    flops: int = 0
    params_share: float = 0.0
    flops_share: float = 0.0

    @property
    def text(self) -> str:
        """Such as ``attention, 4 heads, key 16, value 32``."""
        return f"{self.title}, {self.detail}" if self.detail else self.title

    @property
    def shape(self) -> str:
        """Channels and pixels or tokens it ends with: ``256×14×14``, ``384×198`` or ``512``."""
        if self.grid is not None:
            return "×".join(map(str, (self.width, *sides(self.grid))))
        return f"{self.width}×{self.tokens}" if self.tokens > 1 else str(self.width)


@dataclass(frozen=True)
class Row:
    """Equal blocks in a run, drawn once; figures are sums over all of them."""

    block: Block
    repeats: int

    @property
    def title(self) -> str:
        return self.block.title if self.repeats == 1 else f"{self.repeats} × {self.block.title}"

    @property
    def params(self) -> int:
        return self.repeats * self.block.params

    @property
    def flops(self) -> int:
        return self.repeats * self.block.flops

    @property
    def params_share(self) -> float:
        return self.repeats * self.block.params_share

    @property
    def flops_share(self) -> float:
        return self.repeats * self.block.flops_share


def blocks(network: Architecture) -> list[Block]:
    """All blocks from the first after the image to the heads."""
    layers = iter(cost.layers(network))
    total = cost.cost(network)
    found = []
    layer = next(layers, None)
    outline = _graft(network) if isinstance(network, Graft) else _levit(network)
    for block in outline:
        params = flops = 0
        while layer is not None and _belongs(layer.name, block):
            params, flops = params + layer.params, flops + layer.flops
            layer = next(layers, None)
        found.append(
            replace(
                block,
                params=params,
                flops=flops,
                params_share=params / total.params,
                flops_share=flops / total.flops,
            )
        )
    assert layer is None, f"{layer.name} belongs to no block"
    return found


def rows(blocks: Sequence[Block]) -> list[Row]:
    """The blocks, runs of equal ones or of equal pairs of attention and MLP taken together."""
    found: list[Row] = []
    units = [list(unit) for _, unit in groupby(blocks, _unit)]
    for _, run in groupby(units, lambda unit: [replace(block, name="") for block in unit]):
        equal = list(run)
        found += [Row(block, len(equal)) for block in equal[0]]
    return found


def _unit(block: Block) -> tuple[str, str]:
    """Equal for an attention block and the MLP that is paired with it."""
    is_paired = block.kind in ("attention", "shrink", "mlp")
    return block.stage, block.name.rpartition(".")[0] if is_paired else block.name


def _belongs(layer: str, block: Block) -> bool:
    return bool(block.name) and f"{layer}.".startswith(f"{block.name}.")


def amount(value: float) -> str:
    """Three significant digits with K, M or G: ``184 M``, ``38.4 K``, ``512``."""
    for unit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " K")):
        if value >= 0.9995 * unit:
            scaled = value / unit
            digits = 0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2
            return f"{scaled:.{digits}f}{suffix}"
    return f"{value:.0f}"


def share(value: float) -> str:
    """A share of 0 to 1 in whole per cent: ``16 %``, ``<1 %``."""
    percent = 100 * value
    return "<1 %" if 0 < percent < 0.5 else f"{percent:.0f} %"


def _levit(network: Levit) -> Iterator[Block]:
    yield from _stem(network)
    stages, grids = network.stages, network.grids
    if network.position == "embedding":
        title, width = "position embedding", stages[0].embed_dim
        yield _map("stem", "position_embedding", "tokens", title, "", width, grids[0])
    for index, (stage, grid) in enumerate(zip(stages, grids, strict=True)):
        if index:
            yield from _shrink(network.shrinks[index - 1], index, stage.embed_dim, grid)
        part, name = f"stage {index + 1}", f"stages.{index}.blocks"
        yield from _pairs(part, name, stage, compact(*grid), math.prod(grid))
    width = stages[-1].embed_dim
    yield Block(
        "heads", "", "pool", "average pooling", f"{math.prod(grids[-1])} to 1", width, None, 1
    )
    yield from _classifiers(network, width, f"{network.norm} norm, ")


def _stem(network: Levit) -> Iterator[Block]:
    stem, size, width = network.stem, sides(network.image_size), network.stages[0].embed_dim
    match stem:
        case ConvStem():
            for index, channels in enumerate(stem.channels):
                size = _divided(size, 2)
                name, detail = f"stem.convs.{index}", "3×3, stride 2"
                yield _map("stem", name, "convolution", "convolution", detail, channels, size)
        case PatchStem():
            side = stem.patch_size
            detail = f"{side}×{side} convolution, stride {side}"
            grid = network.grids[0]
            yield _map("stem", "stem.convs.0", "convolution", "patches", detail, width, grid)
        case ResNetStem():
            cut = stem.cut(network.in_channels)
            yield from _resnet("stem.resnet", stem.kind, cut, size)
            if stem.is_projected(width):
                grid = network.grids[0]
                yield _projection("projection", "stem.projection", width, grid)


def _projection(stage: str, name: str, width: int, grid: Sides) -> Block:
    return _map(stage, name, "convolution", "projection", "1×1 convolution", width, grid)


def _resnet(prefix: str, name: ResNetName, cut: Cut, size: Sides) -> Iterator[Block]:
    """The first convolution, the max-pooling and the blocks of a ResNet's head."""
    first, *others = cut.convolutions
    stride, channels = first.stride, first.outputs
    stem, detail = "ResNet stem", f"{first.kernel}×{first.kernel}, stride {stride}"
    first_name, grid = f"{prefix}.{first.name}", _divided(size, stride)
    yield _map(stem, first_name, "convolution", "convolution", detail, channels, grid)
    if others and others[0].stride > stride:
        stride = others[0].stride
        grid = _divided(size, stride)
        yield _map(stem, "", "pool", "max pooling", "3×3, stride 2", channels, grid)
    whole = block_layers(name)
    title = "bottleneck block" if whole == 3 else "basic block"
    for block, group in groupby(others, lambda row: row.name.rpartition(".")[0]):
        rows = list(group)
        has_shortcut = rows[-1].name.endswith("downsample")
        kept = rows[:-1] if has_shortcut else rows
        facts = [f"{len(kept)} of {whole} convolutions"] if len(kept) < whole else []
        facts += [f"stride {kept[-1].stride // stride}"] if kept[-1].stride > stride else []
        facts += ["1×1 shortcut"] if has_shortcut else []
        stride, channels = kept[-1].stride, kept[-1].outputs
        stage = f"ResNet stage {block.removeprefix('layer').partition('.')[0]}"
        detail, grid = ", ".join(facts), _divided(size, stride)
        yield _map(stage, f"{prefix}.{block}", "residual", title, detail, channels, grid)


def _graft(network: Graft) -> Iterator[Block]:
    width = network.in_channels
    if network.donor is not None:
        cut = network.donor.cut(width)
        yield from _resnet("donor", network.donor.name, cut, sides(network.image_size))
        width = cut.channels
    stage = network.trunk_stage
    if stage is not None:
        yield from _tokens(network, width, stage.embed_dim)
        yield from _pairs("trunk", "trunk.blocks", stage, None, network.tokens)
        width, tokens = stage.embed_dim, 1 + network.distillation
        yield Block("heads", "trunk.norm", "tokens", "layer norm", "", width, None, tokens)
    else:
        pixels = math.prod(network.map_sides)
        yield Block("heads", "", "pool", "average pooling", f"{pixels} to 1", width, None, 1)
    yield from _classifiers(network, width)


def _tokens(network: Graft, channels: int, width: int) -> Iterator[Block]:
    """From the donor's map or the image to the trunk's tokens."""
    grid, side, name = network.grid_sides, network.patch, "trunk.projection"
    if network.donor is None:
        detail = f"{side}×{side} convolution, stride {side}"
        yield _map("tokens", name, "convolution", "patches", detail, width, grid)
    else:
        if side > 1:
            detail = f"{side}×{side}, stride {side}"
            yield _map("tokens", "", "pool", "average pooling", detail, channels, grid)
        yield _projection("tokens", name, width, grid)
    kinds = ["class", *(["distillation"] if network.distillation else [])]
    for count, kind in enumerate(kinds, start=math.prod(grid) + 1):
        name, title = f"trunk.{kind}_token", f"{kind} token"
        yield Block("tokens", name, "tokens", title, "", width, None, count)
    name, title = "trunk.position_embedding", "position embedding"
    yield Block("tokens", name, "tokens", title, "", width, None, network.tokens)


def _pairs(
    part: str, name: str, stage: Stage, grid: int | Sides | None, tokens: int
) -> Iterator[Block]:
    """The attention and MLP blocks of a stage in turn."""
    width = stage.embed_dim
    attention = Block(part, "", "attention", "attention", _heads(stage), width, grid, tokens)
    mlp = Block(part, "", "mlp", "MLP", _hidden(width, stage), width, grid, tokens)
    for index in range(stage.depth):
        yield replace(attention, name=f"{name}.{index}.attention")
        yield replace(mlp, name=f"{name}.{index}.mlp")


def _shrink(shrink: Shrink, index: int, width: int, grid: Sides) -> Iterator[Block]:
    """The shrinking attention and its MLP; ``width`` and ``grid`` are those after it."""
    part, name, detail = f"shrink {index}", f"shrinks.{index - 1}", _heads(shrink)
    title = "shrinking attention"
    yield _map(part, f"{name}.attention", "shrink", title, detail, width, grid)
    yield _map(part, f"{name}.mlp", "mlp", "MLP", _hidden(width, shrink), width, grid)


def _classifiers(network: Architecture, width: int, before: str = "") -> Iterator[Block]:
    classes = network.num_classes
    detail = f"{before}{width} → {classes}"
    yield Block("heads", "head", "head", "class head", detail, classes, None, 1)
    if network.distillation:
        yield Block("heads", "head_dist", "head", "distillation head", detail, classes, None, 1)


def _map(
    stage: str, name: str, kind: Kind, title: str, detail: str, width: int, grid: Sides
) -> Block:
    """A block that ends with a map of as many rows and columns."""
    return Block(stage, name, kind, title, detail, width, compact(*grid), math.prod(grid))


def _divided(size: Sides, stride: int) -> Sides:
    """The sides of a map after a stride, rounded up."""
    return -(-size[0] // stride), -(-size[1] // stride)


def _heads(block: Stage | Shrink) -> str:
    value_dim = int(block.attn_ratio * block.key_dim)
    heads = "1 head" if block.num_heads == 1 else f"{block.num_heads} heads"
    return f"{heads}, key {block.key_dim}, value {value_dim}"


def _hidden(width: int, block: Stage | Shrink) -> str:
    return f"{width} → {int(width * block.mlp_ratio)} → {width}"
