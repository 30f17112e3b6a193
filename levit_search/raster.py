"""SVG as PNG."""

from importlib.util import find_spec
from pathlib import Path

from levit_search.errors import LevitSearchError

_FAMILY = "DejaVu Sans"


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


def _fonts() -> list[Path]:
    """Found without importing matplotlib, which takes most of a second."""
    spec = find_spec("matplotlib")
    assert spec is not None and spec.origin is not None  # matplotlib is always installed with us
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return [folder / "DejaVuSans.ttf", folder / "DejaVuSans-Bold.ttf"]
