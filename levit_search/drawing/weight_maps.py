"""Weights worth looking at: attention biases (the paper's Figure 6), patch filters (Figure 2).

First as arrays, then as SVG with small PNGs whose pixels stay sharp. Nothing here imports torch or
matplotlib: a page may hold the pictures of many networks.

Shapes: H ``num_heads``, R rows and S columns of tokens, K ``key_dim``, V value channels a head, C
``embed_dim``, P pixels a side of a patch. Weights are numpy arrays by our tensor names.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors import SafetensorError, safe_open

from levit_search.architecture import Architecture, Graft, Levit, PatchStem, Stage
from levit_search.drawing.svg import LARGE, NORMAL, WIDTH, Svg, document
from levit_search.errors import InputError
from levit_search.files import DamagedFileError, check_weights, read_bounded
from levit_search.image_size import Sides

Array = npt.NDArray[np.float32]
Weights = Mapping[str, Array]

PARTS = ("query", "key", "value")

# What filters come from: the projection of patches and the first block, of either family.
_PROJECTIONS = ("stem.convs.0.", "trunk.projection.")
_FIRST_BLOCKS = ("stages.0.blocks.0.attention.", "trunk.blocks.0.attention.")
_SHOWN, _SHOWN_OF_LARGE, _LARGE = 12, 4, 768  # filters a head; fewer of more weights than this
_BATCH_NORM_EPSILON = 1e-5  # torch's own

Bytes = npt.NDArray[np.uint8]

_MARGIN = 4
_ROOM = WIDTH - 2 * _MARGIN
_LINE = 56  # characters of small text

# From blue by white to orange, which differ for every kind of colour-blindness and in print.
_ANCHORS = ("#08306b", "#0072b2", "#8fc1e3", "#f7f7f7", "#f4b183", "#d55e00", "#6a2500")
_LEVELS = 63  # odd, so that zero is white; more would only make files larger
_CLEAR = _LEVELS  # the index of what is no weight, and its grey among colours


@dataclass(frozen=True)
class BiasMaps:
    """The attention biases of one block."""

    block: str
    """Its module, such as ``stages.0.blocks.1`` or ``shrinks.0``."""
    text: str
    """Its place for people, such as ``stage 1, block 2``."""
    values: Array
    """[H, R, S]: what each head adds to the score of a key so many rows and columns away, in units
    of scores before the softmax."""


@dataclass(frozen=True)
class PatchFilters:
    """What the first block's queries, keys and values see of a patch, by head.

    The patch projection and the first block's projection are both linear (batch norm is folded; of
    a layer norm its centring and scale are taken in, its division is left out), so their product is
    a filter over the patch for each channel.
    """

    over: Literal["pixels", "channels"]
    """The image's pixels, or the channels of a donor's map."""
    values: dict[str, Array]
    """For ``query``, ``key`` and ``value``: [H, filters, channels, P, P], those of the largest norm
    first; P is 1 over a donor's channels."""


def read_weights(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file that are drawn here, under our names.

    Raises:
        InputError: there is no such file, it is damaged, or no safetensors file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        check_weights(read_bounded(path))
        with safe_open(path, framework="numpy") as file:
            # An opened file has keys and is no mapping.
            return {
                name: file.get_tensor(name).astype(np.float32)
                for name in file.keys()  # noqa: SIM118
                if name.endswith(".attention_bias") or name.startswith(_PROJECTIONS + _FIRST_BLOCKS)
            }
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except DamagedFileError as error:
        raise InputError(f"{path}: damaged ({error})") from None
    except (SafetensorError, TypeError) as error:  # numpy has no bfloat16
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None


def attention_biases(
    network: Architecture, weights: Weights, where: str = "weights"
) -> list[BiasMaps]:
    """The biases of every block that has them, from the image to the heads.

    In a shrinking block R and S are those of the keys.

    Args:
        network: of either family; grafts and networks with a position embedding have none.
        weights: by our tensor names.
        where: what errors call the weights.

    Raises:
        InputError: a tensor is missing or has another shape than the network's.
    """
    if isinstance(network, Graft) or network.position == "embedding":
        return []
    found: list[BiasMaps] = []

    def take(block: str, text: str, heads: int, grid: Sides) -> None:
        name, shape = f"{block}.attention.core.attention_bias", (heads, math.prod(grid))
        values = _tensor(weights, name, shape, where).reshape(heads, *grid)
        found.append(BiasMaps(block, text, values))

    for index, (stage, grid) in enumerate(zip(network.stages, network.grids, strict=True)):
        if index:
            heads = network.shrinks[index - 1].num_heads
            take(f"shrinks.{index - 1}", f"shrink {index}", heads, network.grids[index - 1])
        for block in range(stage.depth):
            text = f"stage {index + 1}, block {block + 1}"
            take(f"stages.{index}.blocks.{block}", text, stage.num_heads, grid)
    return found


def patch_filters(
    network: Architecture, weights: Weights, where: str = "weights"
) -> PatchFilters | None:
    """The filters of a network whose first block sees patches or a donor's projected map.

    Shown are, for each head, the 12 channels of queries, keys and values whose filters have the
    largest norm, or 4 where a filter has more than 768 weights.

    Args:
        network: None comes back for LeViTs with convolutions before the first block and for grafts
            without a trunk.
        weights: by our tensor names.
        where: what errors call the weights.

    Raises:
        InputError: a tensor is missing or has another shape than the network's.
    """
    composed = _composed(network, weights, where)
    if composed is None:
        return None
    stage, filters, shape = composed
    value_dim = int(stage.attn_ratio * stage.key_dim)
    by_head = filters.reshape(stage.num_heads, -1, filters.shape[1])
    ends = [stage.key_dim, 2 * stage.key_dim]
    assert by_head.shape[1] == ends[1] + value_dim
    count = _SHOWN if filters.shape[1] <= _LARGE else _SHOWN_OF_LARGE
    largest = {}
    for name, part_hcw in zip(PARTS, np.split(by_head, ends, axis=1), strict=True):
        norms = np.linalg.norm(part_hcw, axis=2)
        order = np.argsort(-norms, axis=1, kind="stable")[:, :count]
        shown: Array = np.take_along_axis(part_hcw, order[:, :, None], axis=1)
        largest[name] = shown.reshape(*shown.shape[:2], *shape)
    is_over_donor = isinstance(network, Graft) and network.donor is not None
    return PatchFilters("channels" if is_over_donor else "pixels", largest)


def svg(
    biases: Sequence[BiasMaps],
    filters: PatchFilters | None,
    title: str = "",
    embedded: bool = False,
) -> str:
    """The maps and filters of one network; at least one of them must be there.

    Args:
        biases: see :func:`attention_biases`.
        filters: see :func:`patch_filters`.
        title: the network's name.
        embedded: see :func:`levit_search.drawing.svg.document`.
    """
    name = f"Weights of {title}" if title else "Weights"
    return document(draw(biases, filters), name, description(biases, filters), embedded)


def description(biases: Sequence[BiasMaps], filters: PatchFilters | None) -> str:
    """What the pictures show, in words."""
    lines = [
        f"Attention biases of {maps.text}: {_heads(len(maps.values))}, from "
        f"{maps.values.min():.2g} to {maps.values.max():.2g}."
        for maps in biases
    ]
    if filters is not None:
        heads, shown = filters.values["query"].shape[:2]
        lines.append(f"Patch filters of {_heads(heads)}, {shown} each, over {filters.over}.")
    return " ".join(lines)


def draw(biases: Sequence[BiasMaps], filters: PatchFilters | None) -> list[Svg]:
    """The pictures as parts of one, to stand below others."""
    found = [_draw_biases(biases)] if biases else []
    return found if filters is None else [*found, _draw_filters(filters)]


def _tensor(weights: Weights, name: str, shape: tuple[int, ...], where: str) -> Array:
    if name not in weights:
        raise InputError(
            f"{where}: {name} is missing; expected this network's tensors under levit-search's own "
            "names, as in a study's checkpoints/ and in an exported model.safetensors"
        )
    found = weights[name]
    if found.shape != shape:
        raise InputError(
            f"{where}: {name} has shape {list(found.shape)}, the network's has {list(shape)}"
        )
    return found


def _composed(
    network: Architecture, weights: Weights, where: str
) -> tuple[Stage, Array, tuple[int, ...]] | None:
    """The first block as a stage, its filters over a patch [H (2 K + V), all weights of one], and
    the shape of one after heads and filters."""
    channels = network.in_channels
    if isinstance(network, Levit):
        if not isinstance(network.stem, PatchStem):
            return None
        stage, side = network.stages[0], network.stem.patch_size
        before, attention = "stem.convs.0", "stages.0.blocks.0.attention"
    else:
        if network.trunk_stage is None:
            return None
        stage, side = network.trunk_stage, network.patch
        if network.donor is not None:
            channels, side = network.donor.cut(channels).channels, 1
        before, attention = "trunk.projection", "trunk.blocks.0.attention"
    width = stage.embed_dim
    outputs = stage.num_heads * (2 * stage.key_dim + int(stage.attn_ratio * stage.key_dim))
    patch = _tensor(weights, f"{before}.conv.weight", (width, channels, side, side), where)
    patch = patch.reshape(width, -1)
    qkv = _tensor(weights, f"{attention}.qkv.linear.weight", (outputs, width), where)
    if network.norm == "batch":
        patch = patch * _norm_scale(weights, f"{before}.norm", width, where)[:, None]
        qkv = qkv * _norm_scale(weights, f"{attention}.qkv.norm", outputs, where)[:, None]
    else:
        qkv = qkv * _tensor(weights, f"{attention}.norm.weight", (width,), where)
        qkv = qkv - qkv.mean(axis=1, keepdims=True)  # the norm takes the tokens' means off first
    return stage, qkv @ patch, (channels, side, side)


def _norm_scale(weights: Weights, name: str, channels: int, where: str) -> Array:
    """What a trained batch norm multiplies each channel by."""
    variance = _tensor(weights, f"{name}.running_var", (channels,), where)
    weight = _tensor(weights, f"{name}.weight", (channels,), where)
    scale: Array = weight / np.sqrt(variance + np.float32(_BATCH_NORM_EPSILON))
    return scale


def _heads(count: int) -> str:
    return "1 head" if count == 1 else f"{count} heads"


def _noted(title: str, text: str) -> Svg:
    """A part that begins with a title and a text."""
    found = Svg()
    found.height = 24
    found.text(_MARGIN, found.height, title, LARGE, bold=True)
    for line in textwrap.wrap(text, _LINE):
        found.height += 17
        found.text(_MARGIN, found.height, line, look="faint")
    return found


def _draw_biases(biases: Sequence[BiasMaps]) -> Svg:
    found = _noted(
        "Attention biases",
        "A map for each head: what is added to the score of a key so many columns (to the right) "
        "and rows (downwards) away; top left is the query's own place. Each block has a scale of "
        "its own.",
    )
    across = min(8, max(4, *(len(maps.values) for maps in biases)))
    gap = 6
    side = (_ROOM - (across - 1) * gap) / across
    for maps in biases:
        limit = _limit(maps.values)
        found.height += 10
        found.text(_MARGIN, found.height + 15, maps.text, NORMAL, bold=True)
        # The scale right of the block's name, with its ends and zero.
        width, top = 150, found.height + 4
        left = WIDTH - _MARGIN - width
        found.picture(left, top, width, 8, _png(np.arange(_LEVELS, dtype=np.uint8)[None]))
        found.text(left, top + 21, f"\u2212{limit:.2g}", look="faint")
        found.text(left + width / 2, top + 21, "0", look="faint", anchor="middle")
        found.text(left + width, top + 21, f"+{limit:.2g}", look="faint", anchor="end")
        found.height += 30
        levels = _levels(maps.values, limit)
        height = side * levels.shape[1] / levels.shape[2]
        for head, map_rs in enumerate(levels):
            column = head % across
            x = _MARGIN + column * (side + gap)
            found.picture(x, found.height, side, height, _png(map_rs))
            label = f"head {head + 1}" if side > 44 else str(head + 1)
            below = found.height + height + 13
            found.text(x + side / 2, below, label, look="faint", anchor="middle")
            if column == across - 1 or head == len(levels) - 1:
                found.height += height + 18
    found.height += 6
    return found


def _draw_filters(filters: PatchFilters) -> Svg:
    shown = max(part.shape[1] for part in filters.values.values())
    what = {
        "pixels": "of a patch of the image; grey is zero, each filter has a scale of its own",
        "channels": "of the channels that the ResNet ends with, each a small square, row by row; "
        "blue is negative, white zero, orange positive, each group has a scale of its own",
    }
    found = _noted(
        "First layer's filters",
        f"What queries, keys and values of the first block take up {what[filters.over]}. Shown are "
        f"the {shown} of the largest norm for each head.",
    )
    gap = 14
    side = (_ROOM - 2 * gap) / 3
    found.height += 24
    for column, part in enumerate(PARTS):
        found.text(_MARGIN + column * (side + gap), found.height, part, NORMAL, bold=True)
    for head in range(len(filters.values["query"])):
        found.height += 20
        found.text(_MARGIN, found.height, f"head {head + 1}", look="faint")
        found.height += 6
        heights = []
        for column, part in enumerate(PARTS):
            picture = _tiled(filters, part, head)
            heights.append(side * picture.shape[0] / picture.shape[1])
            x = _MARGIN + column * (side + gap)
            found.picture(x, found.height, side, heights[-1], _png(picture))
        found.height += max(heights)
    found.height += 12
    return found


def _tiled(filters: PatchFilters, part: str, head: int) -> Bytes:
    """The filters of a head in rows of four, a pixel apart; what is no filter is clear.

    Each is a tile of colours [P, P, 3], or of levels: a square with all channels of a donor's map.
    """
    shown = filters.values[part][head]
    if filters.over == "channels":
        count, channels = shown.shape[:2]
        side = math.ceil(math.sqrt(channels))
        tiles = np.full((count, side * side), _CLEAR, dtype=np.uint8)
        tiles[:, :channels] = _levels(shown.reshape(count, channels), _limit(shown))
        tiles = tiles.reshape(count, side, side)
    else:
        if shown.shape[1] != 3:  # grey, or the mean of channels that are no colours
            shown = shown.mean(axis=1, keepdims=True).repeat(3, axis=1)
        largest = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
        scaled = shown / np.where(largest > 0, largest, 1)
        # Five bits a channel, which the eye hardly tells from eight and which halve the files.
        colours: Bytes = np.round(15.5 + 15.5 * scaled).astype(np.uint8) * 8 + 4
        tiles = colours.transpose(0, 2, 3, 1)
    side, rows = tiles.shape[1], -(-len(tiles) // 4)
    shape = (rows * (side + 1) - 1, 4 * side + 3, *tiles.shape[3:])
    picture = np.full(shape, _CLEAR, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        y, x = (index // 4) * (side + 1), (index % 4) * (side + 1)
        picture[y : y + side, x : x + side] = tile
    return picture


def _limit(values: Array) -> float:
    """The largest magnitude, which the ends of a scale stand for."""
    return float(np.abs(np.nan_to_num(values, posinf=0, neginf=0)).max()) or 1.0


def _levels(values: Array, limit: float) -> Bytes:
    """Values from -limit to limit as indices of the colours; what is no number is clear."""
    middle = (_LEVELS - 1) // 2
    with np.errstate(invalid="ignore"):
        levels = np.round(middle + middle * np.clip(values / limit, -1, 1))
    return np.where(np.isfinite(values), levels, _CLEAR).astype(np.uint8)


@cache
def _palette() -> Bytes:
    """The colours of all levels and, last, of what is clear."""
    anchors = np.array([[int(a[i : i + 2], 16) for i in (1, 3, 5)] for a in _ANCHORS])
    places = np.linspace(0, 1, len(anchors))
    at = np.linspace(0, 1, _LEVELS)
    colours = np.stack([np.interp(at, places, anchors[:, c]) for c in range(3)], axis=1)
    return np.vstack([colours, np.full(3, _CLEAR)]).round().astype(np.uint8)


def _png(picture: Bytes) -> bytes:
    """Levels [height, width], or colours [height, width, 3] in which (_CLEAR,) * 3 is clear."""
    file = BytesIO()
    if picture.ndim == 3:
        Image.fromarray(picture).save(file, "PNG", transparency=(_CLEAR, _CLEAR, _CLEAR))
        return file.getvalue()
    used, indices = np.unique(picture, return_inverse=True)
    image = Image.fromarray(indices.reshape(picture.shape).astype(np.uint8)).convert("L")
    image.putpalette(_palette()[used].tobytes())
    options = {"transparency": len(used) - 1} if used[-1] == _CLEAR else {}
    image.save(file, "PNG", **options)
    return file.getvalue()
