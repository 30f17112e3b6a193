"""SVG pictures in two themes: text, boxes, lines and small pictures with sharp pixels; as PNG, too.

A network is drawn 384 units wide and its smallest text 12 units high, so that it can be read on a phone.
Nothing in it needs an id, a script or a fetched file: any number of pictures may stand in one page.
"""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from levit_search.errors import LevitSearchError

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
AMBER, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#999999"

COLORS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, BLACK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Matplotlib's names, in the order of :data:`COLORS`."""

WIDTH = 384
SMALL, NORMAL, LARGE = 12, 13, 15

_FAMILY = "DejaVu Sans"

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
# A page that a picture stands in gives the colours by custom properties of these names.
_OF_THE_PAGE = {name: f"var(--{name}, {colour})" for name, colour in _LIGHT.items()}

_RULES = """\
.drawing-ink {{ fill: {ink} }}
.drawing-faint {{ fill: {ink}; fill-opacity: 0.75 }}
.drawing-paper {{ fill: {paper} }}
.drawing-panel {{ fill: {ink}; fill-opacity: 0.04 }}
.drawing-plain {{ fill: {paper}; stroke: {ink}; stroke-opacity: 0.45 }}
.drawing-strong {{ fill: {paper}; stroke: {ink}; stroke-width: 1.5 }}
.drawing-line {{ fill: none; stroke: {ink}; stroke-opacity: 0.6 }}
.drawing-rule {{ fill: none; stroke: {grid} }}
.drawing-flops {{ fill: {flops} }}
.drawing-params {{ fill: {params} }}"""
_FIXED = """\
.drawing { font-family: system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif }
.drawing image { image-rendering: pixelated }"""


class Svg:
    """A part of a picture, drawn from the top down; ``height`` is what has been used of it."""

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
            f'<text class="drawing-{look}" x="{_number(x)}" y="{_number(y)}" '
            f'font-size="{_number(size)}"{extra}>{escape(text, quote=False)}</text>'
        )

    def box(
        self, x: float, y: float, width: float, height: float, look: str, radius: float = 0
    ) -> None:
        """A rectangle that is painted by the rule ``drawing-LOOK``."""
        corner = f' rx="{_number(radius)}"' if radius else ""
        self._elements.append(
            f'<rect class="drawing-{look}" x="{_number(x)}" y="{_number(y)}" '
            f'width="{_number(width)}" height="{_number(height)}"{corner}/>'
        )

    def path(self, commands: str, look: str) -> None:
        """A path in SVG's own commands."""
        self._elements.append(f'<path class="drawing-{look}" d="{commands}"/>')

    def picture(self, x: float, y: float, width: float, height: float, png: bytes) -> None:
        """A PNG stretched to a size, its pixels sharp."""
        self._elements.append(
            f'<image x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" '
            f'height="{_number(height)}" preserveAspectRatio="none" '
            f'href="data:image/png;base64,{b64encode(png).decode()}"/>'
        )

    def elements(self) -> str:
        return "\n".join(self._elements)


def document(sheets: Sequence[Svg], title: str, description: str, embedded: bool = False) -> str:
    """Parts below each other as one SVG.

    Args:
        parts: from the top down.
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
        f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" role="img" {size} '
        f'viewBox="0 0 {WIDTH} {_number(height)}">',
        f"<title>{escape(title, quote=False)}</title>",
        f"<desc>{escape(description, quote=False)}</desc>",
        f"<style>\n{_FIXED}\n{rules}\n</style>",
    ]
    if not embedded:
        parts.append('<rect class="drawing-paper" width="100%" height="100%"/>')
    top = 0.0
    for sheet in sheets:
        shift = f' transform="translate(0 {_number(top)})"' if top else ""
        parts.append(f"<g{shift}>\n{sheet.elements()}\n</g>")
        top += sheet.height
    return "\n".join([*parts, "</svg>", ""])


def png(svg: str, scale: float = 2.0) -> bytes:
    """An SVG drawn by resvg, in the light theme; its texts in matplotlib's DejaVu Sans.

    Args:
        svg: a document with a size of its own.
        scale: pixels for each unit of the document.

    Raises:
        LevitSearchError: resvg is not installed, or cannot read the document.
    """
    try:
        import resvg_py
    except ImportError:
        raise LevitSearchError(
            "PNG needs resvg, which is not installed: pip install resvg-py"
        ) from None
    try:
        drawn = resvg_py.svg_to_bytes(
            svg_string=svg,
            zoom=scale,
            skip_system_fonts=True,  # the same picture on every machine
            font_files=[str(path) for path in _fonts()],
            font_family=_FAMILY,
            sans_serif_family=_FAMILY,
        )
    except ValueError as error:
        raise LevitSearchError(f"the SVG cannot be drawn as PNG ({error})") from None
    return bytes(drawn)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _fonts() -> list[Path]:
    """Found without importing matplotlib, which takes most of a second."""
    spec = find_spec("matplotlib")
    assert spec is not None and spec.origin is not None  # matplotlib is always installed with us
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return [folder / "DejaVuSans.ttf", folder / "DejaVuSans-Bold.ttf"]
