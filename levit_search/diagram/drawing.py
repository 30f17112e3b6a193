"""The block diagram as SVG: boxes from the image down to the heads, bars of FLOPs and params."""

import textwrap
from itertools import groupby

from levit_search.architecture import Architecture, Graft
from levit_search.cost import cost
from levit_search.diagram.outline import Row, amount, blocks, rows, share
from levit_search.image_size import image_shape
from levit_search.sheet import LARGE, NORMAL, SMALL, WIDTH, Sheet, document

_MARGIN = 4
_BAR = 74  # the length of a full bar
_PARAMS = WIDTH - _MARGIN - _BAR
_FLOPS = _PARAMS - 10 - _BAR
_LEFT, _RIGHT = _MARGIN + 10, _FLOPS - 10  # the boxes; residual connections run left of them
_FLOW = _RIGHT - 16  # the arrows from box to box
_PADDING = 7
_STEP = 10  # between two boxes
_LINE = 15


def svg(network: Architecture, title: str = "", embedded: bool = False) -> str:
    """The diagram of one network.

    Args:
        network: of either family.
        title: the network's name, if it has one; its summary otherwise.
        embedded: see :func:`levit_search.sheet.document`.
    """
    name = title or network.summary()
    described = description(network)
    return document([sheet(network, name)], f"Block diagram of {name}", described, embedded)


def description(network: Architecture) -> str:
    """What the diagram shows, in words."""
    lines = [f"An image of {_image(network)}."]
    for row in rows(blocks(network)):
        figures = (
            f": {amount(row.flops)} FLOPs ({share(row.flops_share)}), {amount(row.params)} "
            f"parameters ({share(row.params_share)})"
        )
        count = "" if row.repeats == 1 else f"{row.repeats} × "
        what = f"{row.block.stage}: {count}{row.block.text}, to {row.block.shape}"
        lines.append(f"{what}{figures if row.params or row.flops else ''}.")
    return " ".join(lines)


def sheet(network: Architecture, title: str) -> Sheet:
    """The diagram as a sheet, which others may stand below."""
    drawn = rows(blocks(network))
    full = max(max(row.flops_share, row.params_share) for row in drawn)
    found = Sheet()
    _head(found, network, title, full)
    top = found.height
    found.box(_LEFT, top, _RIGHT - _LEFT, 22, "plain")
    found.text(_LEFT + _PADDING, top + 15, "image", NORMAL, bold=True)
    found.text(_RIGHT - _PADDING, top + 15, _image(network), anchor="end")
    found.height = bottom = top + 22
    for stage, group in groupby(drawn, lambda row: row.block.stage):
        bottom = _stage(found, stage, list(group), bottom, full)
    _foot(found, drawn)
    return found


def _image(network: Architecture) -> str:
    return "×".join(map(str, image_shape(network)))


def _head(found: Sheet, network: Architecture, title: str, full: float) -> None:
    total = cost(network)
    family = "graft" if isinstance(network, Graft) else "LeViT"
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


def _stage(found: Sheet, stage: str, drawn: list[Row], flow: float, full: float) -> float:
    """A panel with a stage's name and rows; ``flow`` is where the box before it ends.

    Returns:
        Where its last box ends.
    """
    heights = [_height(row) for row in drawn]
    top = found.height + _STEP
    tall = 24 + sum(heights) + _STEP * (len(drawn) - 1) + 6
    found.box(0, top, WIDTH, tall, "panel", radius=5)
    found.text(_MARGIN + 2, top + 16, _heading(stage, drawn), look="faint")
    y = top + 24
    for row, height in zip(drawn, heights, strict=True):
        found.path(f"M{_FLOW} {flow}V{y - 1}m-3.5-4.5 3.5 4.5 3.5-4.5", "line")
        _outline(found, row, y, height)
        _label(found, row, y)
        if row.params or row.flops:
            _bar(found, "flops", _FLOPS, y, row.flops, row.flops_share, row.repeats, full)
            _bar(found, "params", _PARAMS, y, row.params, row.params_share, row.repeats, full)
        flow = y + height
        y = flow + _STEP
    found.height = top + tall
    return flow


def _heading(stage: str, drawn: list[Row]) -> str:
    repeats = drawn[0].repeats
    is_pairs = drawn[0].block.kind == "attention" and repeats > 1
    return f"{stage}: {repeats} pairs in turn" if is_pairs else stage


def _height(row: Row) -> float:
    return 7 + _LINE * max(1 + bool(row.block.detail), 1 + _line_of_shape(row))


def _line_of_shape(row: Row) -> int:
    """The first line that has room for the shape, in a font as wide as DejaVu Sans."""
    room = _RIGHT - _LEFT - 2 * _PADDING - 4 - 0.68 * SMALL * len(row.block.shape)
    title, detail = 0.58 * NORMAL * len(row.title), 0.56 * SMALL * len(row.block.detail)
    if title <= room:
        return 0
    return 1 if detail <= room else 2


def _outline(found: Sheet, row: Row, y: float, height: float) -> None:
    """Round where tokens meet, narrowing where they become fewer, square otherwise."""
    width = _RIGHT - _LEFT
    bottom = y + height
    match row.block.kind:
        case "shrink":
            found.path(f"M{_LEFT} {y}h{width}L{_RIGHT - 6} {bottom}H{_LEFT + 6}Z", "strong")
        case "attention":
            found.box(_LEFT, y, width, height, "strong", radius=10)
        case "mlp":
            found.box(_LEFT, y, width, height, "plain", radius=10)
        case _:
            found.box(_LEFT, y, width, height, "plain")
    is_residual = row.block.kind in ("attention", "mlp") or (
        row.block.kind == "residual" and " of " not in row.block.detail
    )
    if is_residual:
        start, end, x = y + 9, bottom - 9, _LEFT - 13
        arc = f"M{_LEFT} {start}C{x} {start} {x} {end} {_LEFT - 1} {end}"
        found.path(f"{arc}m-4-3 4 3-4 3", "line")


def _label(found: Sheet, row: Row, y: float) -> None:
    left, right = _LEFT + _PADDING, _RIGHT - _PADDING
    found.text(left, y + _LINE, row.title, NORMAL, bold=True)
    if row.block.detail:
        found.text(left, y + 2 * _LINE, row.block.detail, look="faint")
    line = 1 + _line_of_shape(row)
    right -= 5 if row.block.kind == "shrink" else 0  # which is narrower at its end
    found.text(right, y + line * _LINE, row.block.shape, anchor="end")


def _bar(
    found: Sheet,
    look: str,
    x: float,
    y: float,
    value: int,
    part: float,
    repeats: int,
    full: float,
) -> None:
    """A figure, its share and a bar cut into as many pieces as there are equal blocks."""
    found.text(x, y + 14, _thin(amount(value)))
    if not value:
        return
    found.text(x + _BAR, y + 14, _thin(share(part)), look="faint", anchor="end")
    length = max(_BAR * part / full, 1)
    found.box(x, y + 19, length, 9, look)
    piece = length / repeats
    if piece >= 3:
        for index in range(1, repeats):
            found.box(x + index * piece - 0.5, y + 19, 1, 9, "paper")


def _thin(figure: str) -> str:
    """A figure and its unit with a thin space between them, as there is little room."""
    return figure.replace(" ", "\u2009")


def _foot(found: Sheet, drawn: list[Row]) -> None:
    lines = ["One multiply-add is one FLOP."]
    if any(row.repeats > 1 for row in drawn):
        lines.append("n ×: equal blocks; figures and bars are sums over them,")
        lines.append("a bar has a piece for each.")
    lines.append("Arcs on the left are residual connections.")
    for line in lines:
        found.height += 17
        found.text(_MARGIN, found.height, line, look="faint")
    found.height += 8
