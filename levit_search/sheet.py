"""Tall, narrow SVG pictures in two themes: text, boxes, lines and small pictures with sharp pixels.

A sheet is 384 units wide and its smallest text 12 units high, so that it can be read on a phone.
Nothing in it needs an id, a script or a fetched file: any number of sheets may stand in one page.
"""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import Literal

from levit_search.palette import AMBER, BLUE, ORANGE, SKY

WIDTH = 384
SMALL, NORMAL, LARGE = 12, 13, 15

Look = Literal["ink", "faint"]
Anchor = Literal["start", "middle", "end"]

_LIGHT = {
    "ink": "#1c1c1c",
    "paper": "#ffffff",
    "grid": "#c9c9c9",
    "flops": BLUE,
    "params": ORANGE,
}
_DARK = {
    "ink": "#e8e8e8",
    "paper": "#16181d",
    "grid": "#4a4d55",
    "flops": SKY,
    "params": AMBER,
}
# A page that a sheet stands in gives the colours by custom properties of these names.
_OF_THE_PAGE = {name: f"var(--{name}, {colour})" for name, colour in _LIGHT.items()}

_RULES = """\
.sheet-ink {{ fill: {ink} }}
.sheet-faint {{ fill: {ink}; fill-opacity: 0.75 }}
.sheet-paper {{ fill: {paper} }}
.sheet-panel {{ fill: {ink}; fill-opacity: 0.04 }}
.sheet-plain {{ fill: {paper}; stroke: {ink}; stroke-opacity: 0.45 }}
.sheet-strong {{ fill: {paper}; stroke: {ink}; stroke-width: 1.5 }}
.sheet-line {{ fill: none; stroke: {ink}; stroke-opacity: 0.6 }}
.sheet-rule {{ fill: none; stroke: {grid} }}
.sheet-flops {{ fill: {flops} }}
.sheet-params {{ fill: {params} }}"""
_FIXED = """\
.sheet { font-family: system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif }
.sheet image { image-rendering: pixelated }"""


class Sheet:
    """What is drawn from the top down; ``height`` is what has been used of it."""

    def __init__(self) -> None:
        self.height = 0.0
        self._elements: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = SMALL,
        look: Look = "ink",
        anchor: Anchor = "start",
        bold: bool = False,
    ) -> None:
        """One line of text whose baseline is at ``y``; markup in it is written out."""
        extra = "" if anchor == "start" else f' text-anchor="{anchor}"'
        extra += ' font-weight="600"' if bold else ""
        self._elements.append(
            f'<text class="sheet-{look}" x="{_number(x)}" y="{_number(y)}" '
            f'font-size="{_number(size)}"{extra}>{escape(text, quote=False)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, look: str, radius: float = 0
    ) -> None:
        """A rectangle that is painted by the rule ``sheet-LOOK``."""
        corner = f' rx="{_number(radius)}"' if radius else ""
        self._elements.append(
            f'<rect class="sheet-{look}" x="{_number(x)}" y="{_number(y)}" '
            f'width="{_number(width)}" height="{_number(height)}"{corner}/>'
        )

    def path(self, commands: str, look: str) -> None:
        """A path in SVG's own commands."""
        self._elements.append(f'<path class="sheet-{look}" d="{commands}"/>')

    def picture(self, x: float, y: float, width: float, height: float, png: bytes) -> None:
        """A PNG stretched to a size, its pixels sharp."""
        self._elements.append(
            f'<image x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" '
            f'height="{_number(height)}" preserveAspectRatio="none" '
            f'href="data:image/png;base64,{b64encode(png).decode()}"/>'
        )

    def elements(self) -> str:
        return "\n".join(self._elements)


def document(sheets: Sequence[Sheet], title: str, description: str, embedded: bool = False) -> str:
    """Sheets below each other as one SVG.

    Args:
        sheets: from the top down.
        title: the picture's name, for those who cannot see it.
        description: what there is to see, in words.
        embedded: for a page of HTML: no background, as wide as there is room, and colours from the
            page's custom properties ``--ink``, ``--paper``, ``--grid``, ``--flops`` and
            ``--params``. A document of its own follows the reader's light or dark theme.
    """
    height = sum(sheet.height for sheet in sheets)
    if embedded:
        size, rules = 'width="100%" style="max-width: 36rem"', _RULES.format(**_OF_THE_PAGE)
    else:
        dark = _RULES.format(**_DARK)
        rules = f"{_RULES.format(**_LIGHT)}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
        size = f'width="{WIDTH}" height="{_number(height)}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sheet" role="img" {size} '
        f'viewBox="0 0 {WIDTH} {_number(height)}">',
        f"<title>{escape(title, quote=False)}</title>",
        f"<desc>{escape(description, quote=False)}</desc>",
        f"<style>\n{_FIXED}\n{rules}\n</style>",
    ]
    if not embedded:
        parts.append('<rect class="sheet-paper" width="100%" height="100%"/>')
    top = 0.0
    for sheet in sheets:
        shift = f' transform="translate(0 {_number(top)})"' if top else ""
        parts.append(f"<g{shift}>\n{sheet.elements()}\n</g>")
        top += sheet.height
    return "\n".join([*parts, "</svg>", ""])


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
