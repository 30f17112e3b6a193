"""SVG pictures in two themes: text, boxes, lines and small pictures with sharp pixels; as PNG, too.

A network is drawn 384 units wide and its smallest text 12 units high, so that it can be read on a
phone. Nothing in a picture needs an id, a script or a fetched file: any number may stand in a page.
"""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from levit_search.errors import LevitSearchError

# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), which colour-blind people can tell
# apart.
BLUE, ORANGE, AMBER, SKY = "#0072B2", "#D55E00", "#E69F00", "#56B4E9"

WIDTH = 384
SMALL, NORMAL, LARGE = 12, 13, 15

Look = Literal["ink", "faint"]
Anchor = Literal["start", "middle", "end"]
Attributes = dict[str, str | float | None]

# cividis (Nunez, Anderton and Renslow 2018) in ten steps, without the end that the paper would
# swallow; people with and without colour vision read it alike.
_SHADES_LIGHT = "00224e0f326b30436d4b556d6266707877748e8a77a69c74bfb06ad9c65a"
_SHADES_DARK = "626570717273817f76928c77a29a74b5a86ec7b666dac65aecd74afee838"
# By what they stand for, in the light theme and in the dark one.
_THEMES = {
    "ink": ("#1b1d22", "#e9eaee"),
    "paper": ("#ffffff", "#15171c"),
    "panel": ("#f5f6f8", "#1e2128"),
    "soft": ("#565b66", "#adb2bd"),
    "grid": ("#dfe2e7", "#343943"),
    "line": ("#868d9a", "#7d8594"),
    "flops": (BLUE, SKY),
    "params": (ORANGE, AMBER),
    "front": (BLUE, SKY),
    "dominated": ("#737a86", "#8b93a1"),
    "start": ("#8a5a00", "#f0b23c"),
    "reference": ("#b84800", "#ff8a3d"),
    "known": ("#00795a", "#2fc79a"),
    "published": ("#a5487c", "#dd93b8"),
    "compared": ("#5b3fa0", "#b79cff"),
    "stopped": ("#8a6d00", "#d6c34a"),
    **{
        f"shade-{step}": (f"#{_SHADES_LIGHT[6 * step :][:6]}", f"#{_SHADES_DARK[6 * step :][:6]}")
        for step in range(10)
    },
}
LIGHT, DARK = ({name: pair[theme] for name, pair in _THEMES.items()} for theme in (0, 1))
"""Colours by what they stand for; a page has them as custom properties, ``--ink`` and so forth."""

# What an element of class drawing-LOOK looks like; in-COLOUR is for those in currentColor.
_LOOKS = {
    "ink": "fill: {ink}",
    "faint": "fill: {ink}; fill-opacity: 0.75",
    "paper": "fill: {paper}",
    "panel": "fill: {ink}; fill-opacity: 0.04",
    "plain": "fill: {paper}; stroke: {ink}; stroke-opacity: 0.45",
    "strong": "fill: {paper}; stroke: {ink}; stroke-width: 1.5",
    "line": "fill: none; stroke: {ink}; stroke-opacity: 0.6",
    "rule": "fill: none; stroke: {grid}",
    "flops": "fill: {flops}",
    "params": "fill: {params}",
    **{f"in-{name}": f"color: {{{name}}}" for name in LIGHT},
}
_FIXED = """\
.drawing { font-family: system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif }
.drawing image { image-rendering: pixelated }"""
_FAMILY = "DejaVu Sans"


class Svg:
    """A part of a picture, drawn from the top down; ``height`` is what has been used of it."""

    def __init__(self, width: float = WIDTH) -> None:
        self.width, self.height = width, 0.0
        self.elements: list[str] = []

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
        more: Attributes = {"text_anchor": None if anchor == "start" else anchor}
        more["font_weight"] = "600" if bold else None
        told = escape(text, quote=False)
        self.add(element("text", look, told, x=x, y=y, font_size=size, **more))

    def box(
        self, x: float, y: float, width: float, height: float, look: str, radius: float = 0
    ) -> None:
        """A rectangle that looks like ``drawing-LOOK``."""
        rx = radius or None
        self.add(element("rect", look, x=x, y=y, width=width, height=height, rx=rx))

    def path(self, commands: str, look: str) -> None:
        """A path in SVG's own commands."""
        self.add(element("path", look, d=commands))

    def picture(self, x: float, y: float, width: float, height: float, png: bytes) -> None:
        """A PNG stretched to a size, its pixels sharp."""
        source = f"data:image/png;base64,{b64encode(png).decode()}"
        size: Attributes = {"width": width, "height": height}
        self.add(element("image", x=x, y=y, **size, preserveAspectRatio="none", href=source))

    def add(self, markup: str) -> None:
        """Markup as it is."""
        self.elements.append(markup)


def document(parts: Sequence[Svg], title: str, description: str, embedded: bool = False) -> str:
    """Parts below each other as one SVG.

    Args:
        parts: from the top down, equally wide.
        title: the picture's name, for those who cannot see it.
        description: what there is to see, in words.
        embedded: for a page of HTML: no background, as wide as there is room, and colours from the
            page's custom properties, see :data:`LIGHT`. A document of its own follows the reader's
            light or dark theme.
    """
    body = [] if embedded else ['<rect class="drawing-paper" width="100%" height="100%"/>']
    top = 0.0
    for part in parts:
        shift = f' transform="translate(0 {number(top)})"' if top else ""
        body += [f"<g{shift}>", *part.elements, "</g>"]
        top += part.height
    width, height = number(parts[0].width), number(top)
    drawn = "".join(body)
    used = {look: rule for look, rule in _LOOKS.items() if f'class="drawing-{look}"' in drawn}
    light, dark, of_page = (
        "\n".join(f".drawing-{look} {{ {rule.format_map(theme)} }}" for look, rule in used.items())
        for theme in (LIGHT, DARK, {name: f"var(--{name}, {LIGHT[name]})" for name in LIGHT})
    )
    rules = f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"
    size = 'width="100%"' if embedded else f'width="{width}" height="{height}"'
    start = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing drawing-{width}" role="img" '
        f'{size} viewBox="0 0 {width} {height}">',
        f"<title>{escape(title, quote=False)}</title>",
        f"<desc>{escape(description, quote=False)}</desc>",
        f"<style>\n{_FIXED}\n{of_page if embedded else rules}\n</style>",
    ]
    return "\n".join([*start, *body, "</svg>", ""])


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
    # Found without importing matplotlib, which takes most of a second.
    spec = find_spec("matplotlib")
    assert spec is not None and spec.origin is not None  # matplotlib is always installed with us
    fonts = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    try:
        drawn = resvg_py.svg_to_bytes(
            svg_string=svg,
            zoom=scale,
            skip_system_fonts=True,  # the same picture on every machine
            font_files=[str(fonts / name) for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf")],
            font_family=_FAMILY,
            sans_serif_family=_FAMILY,
        )
    except ValueError as error:
        raise LevitSearchError(f"the SVG cannot be drawn as PNG ({error})") from None
    return bytes(drawn)


def element(tag: str, look: str = "", inside: str = "", /, **attributes: str | float | None) -> str:
    """Markup of an element that looks like ``drawing-LOOK``.

    Args:
        tag: its name.
        look: none without a class.
        inside: markup, too.
        attributes: with ``_`` for ``-``; numbers are shortened, None leaves one out.
    """
    given = {"class": f"drawing-{look}" if look else None, **attributes}
    texts = {n: v if isinstance(v, str) else number(v) for n, v in given.items() if v is not None}
    told = "".join(f' {n.replace("_", "-")}="{escape(text)}"' for n, text in texts.items())
    return f"<{tag}{told}>{inside}</{tag}>" if inside else f"<{tag}{told}/>"


def number(value: float) -> str:
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
