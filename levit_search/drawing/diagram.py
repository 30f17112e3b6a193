"""A network as a block diagram after the paper's Figure 4, with what each block costs.

First the blocks with their map sizes and their share of parameters and FLOPs, then the SVG: boxes
from the image down to the heads, beside them bars of FLOPs and parameters. At the end the diagram
with the maps of the network's trained weights below it.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

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
from levit_search.drawing import weight_maps
from levit_search.drawing.svg import LARGE, NORMAL, SMALL, WIDTH, Svg, document
from levit_search.drawing.weight_maps import BiasMaps, PatchFilters
from levit_search.image_size import Sides, compact, image_shape, sides

_MARGIN = 4
_BAR = 74  # the length of a full bar
_PARAMS = WIDTH - _MARGIN - _BAR
_FLOPS = _PARAMS - 10 - _BAR
_LEFT, _RIGHT = _MARGIN + 10, _FLOPS - 10  # the boxes; residual connections run left of them
_FLOW = _RIGHT - 16  # the arrows from box to box
_PADDING = 7
_STEP = 10  # between two boxes
_LINE = 15

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
    params: int
    flops: int
    params_share: float
    flops_share: float

    @property
    def title(self) -> str:
        return self.block.title if self.repeats == 1 else f"{self.repeats} × {self.block.title}"


def blocks(network: Architecture) -> list[Block]:
    """All blocks from the first after the image to the heads."""
    layers, total, found = list(cost.layers(network)), cost.cost(network), []
    for block in _graft(network) if isinstance(network, Graft) else _levit(network):
        own = [each for each in layers if f"{each.name}.".startswith(f"{block.name}.")]
        params, flops = sum(each.params for each in own), sum(each.flops for each in own)
        block = replace(block, params=params, flops=flops)
        shares = params / total.params, flops / total.flops
        found.append(replace(block, params_share=shares[0], flops_share=shares[1]))
    return found


def rows(blocks: Sequence[Block]) -> list[Row]:
    """The blocks, runs of equal ones or of equal pairs of attention and MLP taken together."""

    def unit(block: Block) -> tuple[str, str]:
        """Equal for an attention block and the MLP that is paired with it."""
        is_paired = block.kind in ("attention", "shrink", "mlp")
        return block.stage, block.name.rpartition(".")[0] if is_paired else block.name

    found: list[Row] = []
    units = [list(members) for _, members in groupby(blocks, unit)]
    for _, run in groupby(units, lambda members: [replace(block, name="") for block in members]):
        first, *others = run
        n = 1 + len(others)
        for b in first:
            sums = (n * b.params, n * b.flops, n * b.params_share, n * b.flops_share)
            found.append(Row(b, n, *sums))
    return found


def svg(network: Architecture, title: str = "", embedded: bool = False) -> str:
    """The diagram of one network.

    Args:
        network: of either family.
        title: the network's name, if it has one; its summary otherwise.
        embedded: see :func:`levit_search.drawing.svg.document`.
    """
    name = title or network.summary()
    described = description(network)
    return document([draw(network, name)], f"Block diagram of {name}", described, embedded)


def description(network: Architecture) -> str:
    """What the diagram shows, in words."""
    lines = [f"An image of {_image(network)}."]
    for row in rows(blocks(network)):
        count = "" if row.repeats == 1 else f"{row.repeats} × "
        line = f"{row.block.stage}: {count}{row.block.text}, to {row.block.shape}"
        if row.params or row.flops:
            line += f": {amount(row.flops)} FLOPs ({share(row.flops_share)})"
            line += f", {amount(row.params)} parameters ({share(row.params_share)})"
        lines.append(f"{line}.")
    return " ".join(lines)


def draw(network: Architecture, title: str) -> Svg:
    """The diagram as a part of a picture, which others may stand below."""
    drawn = rows(blocks(network))
    full = max(max(row.flops_share, row.params_share) for row in drawn)
    found = Svg()
    _head(found, network, title, full)
    top = found.height
    found.box(_LEFT, top, _RIGHT - _LEFT, 22, "plain")
    found.text(_LEFT + _PADDING, top + 15, "image", NORMAL, bold=True)
    found.text(_RIGHT - _PADDING, top + 15, _image(network), anchor="end")
    found.height = bottom = top + 22
    for stage, group in groupby(drawn, lambda row: row.block.stage):
        bottom = _stage(found, stage, list(group), bottom, full)
    lines = ["One multiply-add is one FLOP."]
    if any(row.repeats > 1 for row in drawn):
        lines.append("n ×: equal blocks; figures and bars are sums over them,")
        lines.append("a bar has a piece for each.")
    for line in (*lines, "Arcs on the left are residual connections."):
        found.height += 17
        found.text(_MARGIN, found.height, line, look="faint")
    found.height += 8
    return found


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
    stages, grids, stem = network.stages, network.grids, network.stem
    size, width = sides(network.image_size), stages[0].embed_dim
    match stem:
        case ConvStem():
            for index, channels in enumerate(stem.channels):
                size = _divided(size, 2)
                name, detail = f"stem.convs.{index}", "3×3, stride 2"
                yield _map("stem", name, "convolution", "convolution", detail, channels, size)
        case PatchStem():
            side = stem.patch_size
            detail = f"{side}×{side} convolution, stride {side}"
            yield _map("stem", "stem.convs.0", "convolution", "patches", detail, width, grids[0])
        case ResNetStem():
            yield from _resnet("stem.resnet", stem.kind, stem.cut(network.in_channels), size)
            if stem.is_projected(width):
                yield _projection("projection", "stem.projection", width, grids[0])
    if network.position == "embedding":
        title = "position embedding"
        yield _map("stem", "position_embedding", "tokens", title, "", width, grids[0])
    for index, (stage, grid) in enumerate(zip(stages, grids, strict=True)):
        if index:
            shrink, width = network.shrinks[index - 1], stage.embed_dim
            part, name, title = f"shrink {index}", f"shrinks.{index - 1}", "shrinking attention"
            yield _map(part, f"{name}.attention", "shrink", title, _heads(shrink), width, grid)
            yield _map(part, f"{name}.mlp", "mlp", "MLP", _hidden(width, shrink), width, grid)
        part, name = f"stage {index + 1}", f"stages.{index}.blocks"
        yield from _pairs(part, name, stage, compact(*grid), math.prod(grid))
    width, detail = stages[-1].embed_dim, f"{math.prod(grids[-1])} to 1"
    yield Block("heads", "", "pool", "average pooling", detail, width, None, 1)
    yield from _classifiers(network, width, f"{network.norm} norm, ")


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
        # From the donor's map or the image to the trunk's tokens.
        channels, width, grid, side = width, stage.embed_dim, network.grid_sides, network.patch
        if network.donor is None:
            name, detail = "trunk.projection", f"{side}×{side} convolution, stride {side}"
            yield _map("tokens", name, "convolution", "patches", detail, width, grid)
        else:
            if side > 1:
                detail = f"{side}×{side}, stride {side}"
                yield _map("tokens", "", "pool", "average pooling", detail, channels, grid)
            yield _projection("tokens", "trunk.projection", width, grid)
        kinds = ["class", *(["distillation"] if network.distillation else [])]
        for count, kind in enumerate(kinds, start=math.prod(grid) + 1):
            name, title = f"trunk.{kind}_token", f"{kind} token"
            yield Block("tokens", name, "tokens", title, "", width, None, count)
        name, title = "trunk.position_embedding", "position embedding"
        yield Block("tokens", name, "tokens", title, "", width, None, network.tokens)
        yield from _pairs("trunk", "trunk.blocks", stage, None, network.tokens)
        tokens = 1 + network.distillation
        yield Block("heads", "trunk.norm", "tokens", "layer norm", "", width, None, tokens)
    else:
        pixels = math.prod(network.map_sides)
        yield Block("heads", "", "pool", "average pooling", f"{pixels} to 1", width, None, 1)
    yield from _classifiers(network, width)


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


def _image(network: Architecture) -> str:
    return "×".join(map(str, image_shape(network)))


def _head(found: Svg, network: Architecture, title: str, full: float) -> None:
    total, family = cost.cost(network), "graft" if isinstance(network, Graft) else "LeViT"
    under = [f"{family}, {amount(total.flops)} FLOPs, {amount(total.params)} parameters"]
    if title != network.summary():
        under += textwrap.wrap(network.summary(), 52)
    y = 2
    for line in textwrap.wrap(title, 38):
        y += 19
        found.text(_MARGIN, y, line, LARGE, bold=True)
    for line in under:
        y += 17
        found.text(_MARGIN, y, line, look="faint")
    found.text(_MARGIN, y + 27, f"full bar: {share(full)} of the whole", look="faint")
    found.text(_FLOPS, y + 27, "FLOPs", NORMAL, bold=True)
    found.text(_PARAMS, y + 27, "params", NORMAL, bold=True)
    found.height = y + 37


def _stage(found: Svg, stage: str, drawn: list[Row], flow: float, full: float) -> float:
    """A panel with a stage's name and rows; ``flow`` is where the box before it ends.

    Returns:
        Where its last box ends.
    """
    lines = [1 + max(bool(row.block.detail), _line_of_shape(row)) for row in drawn]
    heights = [7 + _LINE * count for count in lines]
    top = found.height + _STEP
    tall = 24 + sum(heights) + _STEP * (len(drawn) - 1) + 6
    found.box(0, top, WIDTH, tall, "panel", radius=5)
    is_pairs = drawn[0].block.kind == "attention" and drawn[0].repeats > 1
    heading = f"{stage}: {drawn[0].repeats} pairs in turn" if is_pairs else stage
    found.text(_MARGIN + 2, top + 16, heading, look="faint")
    y = top + 24
    for row, height in zip(drawn, heights, strict=True):
        found.path(f"M{_FLOW} {flow}V{y - 1}m-3.5-4.5 3.5 4.5 3.5-4.5", "line")
        _box(found, row, y, height)
        if row.params or row.flops:
            _bar(found, "flops", _FLOPS, y, row.flops, row.flops_share, row.repeats, full)
            _bar(found, "params", _PARAMS, y, row.params, row.params_share, row.repeats, full)
        flow = y + height
        y = flow + _STEP
    found.height = top + tall
    return flow


def _line_of_shape(row: Row) -> int:
    """The first line that has room for the shape, in a font as wide as DejaVu Sans."""
    room = _RIGHT - _LEFT - 2 * _PADDING - 4 - 0.68 * SMALL * len(row.block.shape)
    title, detail = 0.58 * NORMAL * len(row.title), 0.56 * SMALL * len(row.block.detail)
    if title <= room:
        return 0
    return 1 if detail <= room else 2


def _box(found: Svg, row: Row, y: float, height: float) -> None:
    """A block with its texts: round where tokens meet, narrowing where they become fewer."""
    width, bottom = _RIGHT - _LEFT, y + height
    match row.block.kind:
        case "shrink":
            found.path(f"M{_LEFT} {y}h{width}L{_RIGHT - 6} {bottom}H{_LEFT + 6}Z", "strong")
        case "attention":
            found.box(_LEFT, y, width, height, "strong", radius=10)
        case "mlp":
            found.box(_LEFT, y, width, height, "plain", radius=10)
        case _:
            found.box(_LEFT, y, width, height, "plain")
    is_whole = row.block.kind == "residual" and " of " not in row.block.detail
    if is_whole or row.block.kind in ("attention", "mlp"):
        start, end, x = y + 9, bottom - 9, _LEFT - 13
        arc = f"M{_LEFT} {start}C{x} {start} {x} {end} {_LEFT - 1} {end}"
        found.path(f"{arc}m-4-3 4 3-4 3", "line")
    found.text(_LEFT + _PADDING, y + _LINE, row.title, NORMAL, bold=True)
    if row.block.detail:
        found.text(_LEFT + _PADDING, y + 2 * _LINE, row.block.detail, look="faint")
    right = _RIGHT - _PADDING - (5 if row.block.kind == "shrink" else 0)  # narrower at its end
    line = 1 + _line_of_shape(row)
    found.text(right, y + line * _LINE, row.block.shape, anchor="end")


def _bar(
    found: Svg, look: str, x: float, y: float, value: int, part: float, pieces: int, full: float
) -> None:
    """A figure, its share and a bar cut into as many pieces as there are equal blocks."""
    # A thin space stands between a figure and its unit, as there is little room.
    found.text(x, y + 14, amount(value).replace(" ", "\u2009"))
    if not value:
        return
    found.text(x + _BAR, y + 14, share(part).replace(" ", "\u2009"), look="faint", anchor="end")
    length = max(_BAR * (part / full), 1)
    found.box(x, y + 19, length, 9, look)
    piece = length / pieces
    for index in range(1, pieces if piece >= 3 else 1):
        found.box(x + index * piece - 0.5, y + 19, 1, 9, "paper")


@dataclass(frozen=True)
class NetworkView:
    """A network, its name, and what of its weights is worth drawing."""

    network: Architecture
    title: str
    biases: Sequence[BiasMaps] = ()
    filters: PatchFilters | None = None

    @property
    def has_maps(self) -> bool:
        return bool(self.biases) or self.filters is not None

    def svg(self) -> str:
        """One picture of its blocks, and of its weights below them."""
        parts = draw(self.network, self.title), *weight_maps.draw(self.biases, self.filters)
        maps = weight_maps.description(self.biases, self.filters)
        told = f"{description(self.network)} {maps}".strip()
        return document(parts, f"Block diagram of {self.title}", told)

    def as_json(self) -> dict[str, object]:
        """``{name, id, params, flops, activations, blocks, attention_biases}``, the blocks with
        figures and shares, the biases [H, R, R] of each block that has trained ones (null where
        one is no number)."""

        def plain(values: npt.NDArray[np.float32]) -> object:
            found = values.astype(float).round(6).astype(object)
            found[~np.isfinite(values)] = None
            return found.tolist()

        return {
            "name": self.title,
            "id": self.network.id,
            **cost.cost(self.network)._asdict(),
            "blocks": [asdict(block) for block in blocks(self.network)],
            "attention_biases": [
                {"block": maps.block, "values": plain(maps.values)} for maps in self.biases
            ],
        }


def network_view(network: Architecture, title: str, weights: Path | None) -> NetworkView:
    """A network with the weights in a safetensors file, or without.

    Raises:
        InputError: the file cannot be read, or its tensors are not this network's.
    """
    if weights is None:
        return NetworkView(network, title)
    tensors, where = weight_maps.read_weights(weights), str(weights)
    biases = weight_maps.attention_biases(network, tensors, where)
    return NetworkView(network, title, biases, weight_maps.patch_filters(network, tensors, where))
