"""Attention biases and patch filters as SVG, the maps as small PNGs with sharp pixels."""

import math
import textwrap
from collections.abc import Sequence
from functools import cache
from io import BytesIO

import numpy as np
import numpy.typing as npt

from levit_search.sheet import LARGE, NORMAL, WIDTH, Sheet, document
from levit_search.weight_maps.tensors import PARTS, Array, BiasMaps, PatchFilters

Bytes = npt.NDArray[np.uint8]

_MARGIN = 4
_ROOM = WIDTH - 2 * _MARGIN
_LINE = 56  # characters of small text

# From blue by white to orange, which differ for every kind of colour-blindness and in print.
_ANCHORS = ("#08306b", "#0072b2", "#8fc1e3", "#f7f7f7", "#f4b183", "#d55e00", "#6a2500")
_LEVELS = 63  # odd, so that zero is white; more would only make files larger
_CLEAR = _LEVELS  # the index of what is no weight, and its grey among colours


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
        embedded: see :func:`levit_search.sheet.document`.
    """
    drawn = sheets(biases, filters)
    assert drawn
    name = f"Weights of {title}" if title else "Weights"
    return document(drawn, name, description(biases, filters), embedded)


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


def sheets(biases: Sequence[BiasMaps], filters: PatchFilters | None) -> list[Sheet]:
    """The pictures as sheets, to stand below others."""
    found = [_bias_sheet(biases)] if biases else []
    return found if filters is None else [*found, _filter_sheet(filters)]


def _heads(count: int) -> str:
    return "1 head" if count == 1 else f"{count} heads"


def _note(found: Sheet, title: str, text: str) -> None:
    found.height += 24
    found.text(_MARGIN, found.height, title, LARGE, bold=True)
    for line in textwrap.wrap(text, _LINE):
        found.height += 17
        found.text(_MARGIN, found.height, line, look="faint")


def _bias_sheet(biases: Sequence[BiasMaps]) -> Sheet:
    found = Sheet()
    _note(
        found,
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
        _legend(found, limit)
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


def _legend(found: Sheet, limit: float) -> None:
    """The scale right of a block's name, with its ends and zero."""
    width, top = 150, found.height + 4
    left = WIDTH - _MARGIN - width
    found.picture(left, top, width, 8, _png(np.arange(_LEVELS, dtype=np.uint8)[None]))
    found.text(left, top + 21, f"\u2212{limit:.2g}", look="faint")
    found.text(left + width / 2, top + 21, "0", look="faint", anchor="middle")
    found.text(left + width, top + 21, f"+{limit:.2g}", look="faint", anchor="end")


def _filter_sheet(filters: PatchFilters) -> Sheet:
    found = Sheet()
    shown = max(part.shape[1] for part in filters.values.values())
    what = {
        "pixels": "of a patch of the image; grey is zero, each filter has a scale of its own",
        "channels": "of the channels that the ResNet ends with, each a small square, row by row; "
        "blue is negative, white zero, orange positive, each group has a scale of its own",
    }
    _note(
        found,
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
        below = 0.0
        for column, part in enumerate(PARTS):
            picture = _tiled(_tiles(filters, part, head))
            width, height = side, side * picture.shape[0] / picture.shape[1]
            x = _MARGIN + column * (side + gap)
            found.picture(x, found.height, width, height, _png(picture))
            below = max(below, height)
        found.height += below
    found.height += 12
    return found


def _tiles(filters: PatchFilters, part: str, head: int) -> Bytes:
    """The filters of a head as colours [filters, P, P, 3], or as levels of a square's channels."""
    shown = filters.values[part][head]
    if filters.over == "channels":
        count, channels = shown.shape[:2]
        side = math.ceil(math.sqrt(channels))
        tiles = np.full((count, side * side), _CLEAR, dtype=np.uint8)
        tiles[:, :channels] = _levels(shown.reshape(count, channels), _limit(shown))
        return tiles.reshape(count, side, side)
    if shown.shape[1] != 3:  # grey, or the mean of channels that are no colours
        shown = shown.mean(axis=1, keepdims=True).repeat(3, axis=1)
    largest = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
    scaled = shown / np.where(largest > 0, largest, 1)
    # Five bits a channel, which the eye hardly tells from eight and which halve the files.
    colours: Bytes = np.round(15.5 + 15.5 * scaled).astype(np.uint8) * 8 + 4
    return colours.transpose(0, 2, 3, 1)


def _tiled(tiles: Bytes) -> Bytes:
    """Tiles [N, P, P, ...] in rows of four, a pixel apart; what is no tile is clear."""
    side, rows = tiles.shape[1], -(-len(tiles) // 4)
    shape = (rows * (side + 1) - 1, 4 * side + 3, *tiles.shape[3:])
    picture = np.full(shape, _CLEAR, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        y, x = (index // 4) * (side + 1), (index % 4) * (side + 1)
        picture[y : y + side, x : x + side] = tile
    return picture


def _limit(values: Array) -> float:
    """The largest magnitude, which the ends of a scale stand for."""
    largest = float(np.abs(np.nan_to_num(values, posinf=0, neginf=0)).max())
    return largest or 1.0


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
    from PIL import Image

    file = BytesIO()
    if picture.ndim == 3:
        clear = (_CLEAR, _CLEAR, _CLEAR)
        Image.fromarray(picture).save(file, "PNG", transparency=clear)
        return file.getvalue()
    used, indices = np.unique(picture, return_inverse=True)
    image = Image.fromarray(indices.reshape(picture.shape).astype(np.uint8))
    image = image.convert("L")
    image.putpalette(_palette()[used].tobytes())
    options = {"transparency": len(used) - 1} if used[-1] == _CLEAR else {}
    image.save(file, "PNG", **options)
    return file.getvalue()
