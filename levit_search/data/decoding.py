"""Decodes picture files to 8-bit grey or RGB: for training, evaluation and ``predict.py`` alike.

It needs numpy and Pillow alone, and Python 3.9: an export puts its text into ``predict.py``, so
that a network is shown the same pixels wherever it runs.
"""

from __future__ import annotations

import io
import sys
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

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
    tags, key = getattr(picture, "tag_v2", {}), picture.info.get("transparency")
    bits = tags.get(_BITS_PER_SAMPLE, ())
    if tags.get(_PLANAR_CONFIGURATION) == 2 and len(bits) > 1 and max(bits) > 8:
        raise ValueError("16 bits a colour, one colour after the other, which Pillow cannot read")
    if picture.format == "PNG" and isinstance(key, int):  # of 2 or 4 bits, which become 8
        for tile in getattr(picture, "tile", ()):
            picture.info["transparency"] = key * {"L;2": 85, "L;4": 17}.get(str(tile[3]), 1)
    for names in (_NATIVE, _PAIRS):
        if tiles := _tiles(picture, names):
            picture.tile = tiles
            picture.info[_IS_PAIRS] = names is _PAIRS
    if tiles := _tiles(picture, _LOWER_BYTES):
        lower = Image.open(io.BytesIO(content), formats=formats())
        lower.tile, picture.info[_LOWER] = tiles, lower
        if tiles := _tiles(picture, _PREMULTIPLIED):
            picture.tile, picture.info[_IS_PREMULTIPLIED] = tiles, True
    return picture


# Among the notes on a picture of 16 bits a colour.
_LOWER, _IS_PREMULTIPLIED, _IS_PAIRS = "lower eight bits", "is premultiplied", "is in pairs"
# Pillow decodes the upper byte of each pair; told the other order, it takes the lower one for it.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_LOWER_BYTES = {
    f"{colours};16{order}": f"{colours.upper()};16{other}"
    for colours in ("RGB", "RGBA", "RGBX", "RGBa")
    for order, other in _OTHER_ORDER.items()
}
_PREMULTIPLIED = {f"RGBa;16{order}": f"RGBA;16{order}" for order in _OTHER_ORDER}
_PAIRS = {"LA;16B": "RGBA"}  # both pairs of grey and alpha as the four bytes of a pixel
# What libtiff unpacks is in the machine's order, which Pillow does not know of all numbers.
_NATIVE = {"libtiff I;16BS": "I;16NS", "libtiff I;32BS": "I;32NS", "libtiff F;32BF": "F;32NF"}


def _tiles(picture: Image.Image, names: dict[str, str]) -> list[Any]:
    """How an opened picture is decoded by other raw modes; empty if ``names`` lacks its own."""
    changed = []
    tiles: list[Any] = list(getattr(picture, "tile", ()))
    for codec, extents, offset, arguments in tiles:
        name, *rest = arguments if isinstance(arguments, tuple) else (arguments,)
        other = names.get(name) or names.get(f"{codec} {name}")
        if other is None:
            return []
        told = (other, *rest) if isinstance(arguments, tuple) else other
        changed.append(type(tiles[0])(codec, extents, offset, told))
    return changed


# Of TIFF; the last is GDAL's own, the number that stands for no data.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR_CONFIGURATION, _SAMPLE_FORMAT = 258, 262, 284, 339
_NO_DATA = 42113


def middle(size: tuple[int, int], shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest box in the middle of a picture that has the proportions of another.

    Args:
        size: width and height of the picture.
        shape: width and height, in any unit, that give the proportions.

    Returns:
        Left, top, right and bottom in pixels.
    """
    width, height = size
    across, down = shape
    if width * down <= height * across:
        inner = (float(width), width * down / across)
    else:
        inner = (height * across / down, float(height))
    left, top = (width - inner[0]) / 2, (height - inner[1]) / 2
    return left, top, left + inner[0], top + inner[1]


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
    turn = TURNS.get(orientation(picture))
    values = numbers(picture)
    if values is not None:
        picture = with_8_bits(values, how)
    if turn is not None:
        picture = picture.transpose(turn)
    if is_transparent(picture):
        whole = picture.convert("LA") if picture.mode == "La" else picture
        flat = Image.new("RGBA", whole.size, (how.ground, how.ground, how.ground, 255))
        flat.alpha_composite(whole.convert("RGBA"))
        picture = flat.convert("RGB")
    return picture if picture.mode == how.mode else picture.convert(how.mode)


def numbers(picture: Image.Image) -> np.ndarray | None:
    """The values [rows, columns, channels] of a decoded picture of more than 8 bits, else None.

    One channel of whole or floating-point numbers, or three of uint16 for RGB; one more is alpha.
    Larger ones are lighter. What stands for transparency, or for no data, is transparent.
    """
    values, key = _of_16_bits(picture), picture.info.get("transparency")
    if values is None and picture.mode[0] in "IF":
        values = np.asarray(picture)[..., np.newaxis]
        tags = getattr(picture, "tag_v2", {})
        bits, kind = tags.get(_BITS_PER_SAMPLE, ()), tags.get(_SAMPLE_FORMAT, (1,))
        if (bits, kind) == ((32,), (1,)):
            values = values.view(np.uint32)
        key = no_data(picture) if key is None else key
        if tags.get(_PHOTOMETRIC) == 0:  # white is zero; larger ones become lighter
            top = 2 ** bits[0] - 1 if values.dtype.kind == "u" and bits else 0
            wide = -values if values.dtype.kind == "f" else top - values.astype(np.int64)
            values, key = wide.astype(values.dtype), None if key is None else top - key
    if values is None or key is None or values.shape[-1] not in (1, 3):
        return values
    is_shown = (values != np.array(key)).any(axis=-1, keepdims=True)
    return np.concatenate((values, np.where(is_shown, 65535, 0).astype(np.uint16)), axis=-1)


def no_data(picture: Image.Image) -> float | None:
    """The value that stands for no data in a TIFF, as GDAL notes it; None: there is no number."""
    try:
        return float(str(getattr(picture, "tag_v2", {})[_NO_DATA]).strip("\0 "))
    except (KeyError, ValueError):
        return None


def _of_16_bits(picture: Image.Image) -> np.ndarray | None:
    """Grey with alpha, RGB or RGBA as uint16 [rows, columns, channels]; None of others."""
    if picture.info.get(_IS_PAIRS):
        pairs = np.asarray(picture).astype(np.uint16)
        values: np.ndarray = pairs[..., 0::2] << 8 | pairs[..., 1::2]
        return values
    lower = picture.info.get(_LOWER)
    if lower is None:
        return None
    values = np.asarray(picture).astype(np.uint16) << 8 | np.asarray(lower)
    if picture.info.get(_IS_PREMULTIPLIED):
        alpha = np.maximum(values[..., 3:], 1).astype(np.float64)
        values[..., :3] = (values[..., :3] * (65535 / alpha)).clip(0, 65535)
    return values


def with_8_bits(values: np.ndarray, how: Decoding) -> Image.Image:
    """What :func:`numbers` gives in 8 bits: from low to high as 0 to 255, alpha by its upper ones.

    The ranges are those of ``how``; the picture is grey, grey with alpha, RGB or RGBA.
    """
    if values.dtype == np.uint16:  # as a table, in little memory
        table = _scaled(np.arange(2**16, dtype=np.uint16), how)
        pixels = table[values]
    else:
        pixels = _scaled(values, how)
    if values.shape[-1] in (2, 4):
        pixels[..., -1] = values[..., -1].astype(np.uint16) >> 8
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _scaled(values: np.ndarray, how: Decoding) -> np.ndarray:
    low, high = how.floats if values.dtype.kind == "f" else how.integers
    wide = values.astype(np.float64)
    if values.dtype.kind == "f":
        wide = np.nan_to_num(wide, nan=low, posinf=high, neginf=low)
        wide = np.rint((wide - low) * (255 / (high - low)))
    else:  # as many whole numbers for each byte
        wide = np.floor((wide - low) * (256 / (high - low + 1)))
    return wide.clip(0, 255).astype(np.uint8)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by the orientation of its EXIF data."""


def orientation(picture: Image.Image) -> int:
    """As a picture's EXIF data has it, 1 (upright) to 8; 1 where these are damaged or missing.

    It is 1 of a TIFF that is decoded, which Pillow has turned then.
    """
    try:
        found = picture.getexif().get(0x0112, 1)
    except Exception:  # readers of damaged EXIF data raise what they like
        return 1
    return found if found in TURNS else 1


def is_transparent(picture: Image.Image) -> bool:
    """Whether a picture has an alpha channel, or a colour that stands for transparency."""
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return True
    has_alpha = picture.mode == "P" and (picture.palette or picture).mode.endswith("A")
    return has_alpha or (picture.mode in ("1", "L", "P", "RGB") and "transparency" in picture.info)
