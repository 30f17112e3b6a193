"""Decodes picture files to 8-bit grey or RGB: for training, evaluation and ``predict.py`` alike.

It needs numpy and Pillow alone, and Python 3.9: an export puts its text into ``predict.py``, so
that a network is shown the same pixels wherever it runs.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

# What is decoded, whatever a file is called. EPS is none of them: Pillow starts Ghostscript, which
# would run the program that such a picture is.
FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM"),
    *("PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
)
MOST_BYTES = 1 << 28  # of one picture as it is stored
# Times its shorter side is the longer one of a picture at most: the shorter one is scaled to a
# network's input, and the longer one with it.
LONGEST = 100


class Decoding(NamedTuple):
    """How pictures become 8 bits a channel, the same for all pictures of a data set."""

    mode: str
    """``RGB``, or ``L`` for one channel."""
    ground: int = 255
    """The grey, 0 to 255, on which transparent pictures are laid."""
    integers: tuple[float, float] = (0, 65535)
    """The values of pictures of 16 and 32-bit whole numbers that become black and white."""
    floats: tuple[float, float] = (0, 1)
    """The same of pictures of floating-point numbers."""


def opened(content: bytes) -> Image.Image:
    """The picture in the bytes of a file, not decoded yet; of an animation the first frame.

    Raises:
        Exception: what Pillow raises at something that is no picture; ValueError or
            DecompressionBombError if it is too large, or too long and thin.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    picture = Image.open(io.BytesIO(content), formats=formats())
    pixels = picture.width * picture.height
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{pixels} pixels, more than {Image.MAX_IMAGE_PIXELS}")
    if max(picture.size) > LONGEST * min(picture.size):
        raise ValueError(f"{picture.width} x {picture.height} pixels, too long and thin")
    swapped = _with_bytes_swapped(picture)
    if swapped is not None:
        lower = Image.open(io.BytesIO(content), formats=formats())
        lower.tile = swapped
        picture.info[_LOWER] = lower
    return picture


_LOWER = "lower eight bits"  # among the notes on a picture of 16 bits a colour


def _with_bytes_swapped(picture: Image.Image) -> list[Any] | None:
    """How the lower bytes of an opened picture of 16 bits a colour are decoded; None for others.

    Pillow decodes the upper byte of each pair; told the other order, it takes the lower one for it.
    """
    tiles = [tuple(tile) for tile in getattr(picture, "tile", ())]
    if not tiles or picture.mode not in ("RGB", "RGBA"):
        return None
    changed = []
    for codec, extents, offset, arguments in tiles:
        name, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
        if name not in ("RGB;16B", "RGB;16L", "RGBA;16B", "RGBA;16L"):
            return None
        other = name[:-1] + ("L" if name.endswith("B") else "B")
        together = (other, *rest) if isinstance(arguments, tuple) else other
        changed.append(type(picture.tile[0])(codec, extents, offset, together))  # type: ignore[attr-defined]
    return changed


def formats() -> list[str]:
    """Those that are decoded, by Pillow's names, as far as this build of Pillow knows them."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def decoded(picture: Image.Image, how: Decoding) -> Image.Image:
    """An opened picture as 8-bit ``L`` or ``RGB``, upright and without transparency.

    An orientation in its EXIF data is followed, transparent pictures are laid on ``how.ground``,
    and numbers of more than 8 bits are scaled from the ranges that ``how`` gives to 0 to 255.

    Raises:
        Exception: what Pillow raises at a damaged picture, or at a colour space without conversion.
    """
    picture.load()
    values = numbers(picture)
    if values is not None:
        picture = _with_8_bits(picture, values, how)
    picture = upright(picture)
    if is_transparent(picture):
        whole = picture.convert("LA") if picture.mode == "La" else picture
        flat = Image.new("RGBA", whole.size, (how.ground, how.ground, how.ground, 255))
        flat.alpha_composite(whole.convert("RGBA"))
        picture = flat.convert("RGB")
    return picture if picture.mode == how.mode else picture.convert(how.mode)


def numbers(picture: Image.Image) -> np.ndarray | None:
    """The values [rows, columns, channels] of a decoded picture of more than 8 bits, else None.

    One channel of whole or floating-point numbers, or uint16 of RGB or RGBA.
    """
    if picture.mode[0] in "IF":
        return np.asarray(picture)[..., np.newaxis]
    lower = picture.info.get(_LOWER)
    if lower is None:
        return None
    upper = np.asarray(picture).astype(np.uint16)
    both: np.ndarray = upper << 8 | np.asarray(lower)
    return both


def _with_8_bits(picture: Image.Image, values: np.ndarray, how: Decoding) -> Image.Image:
    """Values from low to high as bytes from 0 to 255; alpha of 16 bits keeps its upper ones."""
    low, high = how.floats if values.dtype.kind == "f" else how.integers
    colours = values[..., :3].astype(np.float64)
    if values.dtype.kind == "f":
        colours = np.nan_to_num(colours, nan=low, posinf=high, neginf=low)
        colours = np.rint((colours - low) * (255 / (high - low)))
    else:  # as many whole numbers for each byte
        colours = np.floor((colours - low) * (256 / (high - low + 1)))
    pixels = colours.clip(0, 255).astype(np.uint8)
    if values.shape[-1] == 4:
        pixels = np.dstack((pixels, (values[..., 3] >> 8).astype(np.uint8)))
    eight = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    notes = {key: value for key, value in picture.info.items() if key != "transparency"}
    eight.info.update(notes)  # the orientation may stand there
    return eight


def upright(picture: Image.Image) -> Image.Image:
    """A picture turned as its EXIF data says; as it is where these are damaged."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # readers of damaged EXIF data raise what they like
        return picture


def is_transparent(picture: Image.Image) -> bool:
    """Whether a picture has an alpha channel, or a colour that stands for transparency."""
    has_alpha = picture.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    return has_alpha or (picture.mode in ("1", "L", "P", "RGB") and "transparency" in picture.info)
