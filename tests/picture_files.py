"""Picture files as people have them and Pillow does not write them."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
_UNDONE = {6: 8, 8: 6}


def lying(upright: Image.Image, orientation: int) -> Image.Image:
    """A picture as it is stored with an orientation."""
    turn = TURNS.get(_UNDONE.get(orientation, orientation))
    return upright if turn is None else upright.transpose(turn)


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def png(values: NDArray[Any], bits: int = 16, chunks: dict[bytes, bytes] | None = None) -> bytes:
    """A PNG of whole numbers [rows, columns, 1 to 4 channels].

    Args:
        values: grey, grey with alpha, RGB or RGBA.
        bits: 16 or 8 of each, of grey also 4, 2 or 1.
        chunks: others, before the pixels, such as ``eXIf`` and ``tRNS``.
    """
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = values.astype(">u2" if bits == 16 else "u1").reshape(height, -1)
    if bits < 8:
        unpacked = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        rows = np.packbits(unpacked.reshape(height, -1), axis=-1)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    parts += [*(chunks or {}).items(), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    written = b"\x89PNG\r\n\x1a\n"
    for name, content in parts:
        checksum = zlib.crc32(name + content)
        written += struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    return written


def tiff(
    values: NDArray[Any],
    order: str = "<",
    photometric: int = 1,
    extra: int | None = None,
    is_packed: bool = False,
    in_planes: bool = False,
    orientation: int | None = None,
    no_data: str | None = None,
    tells_kind: bool = True,
) -> bytes:
    """A TIFF of numbers [rows, columns, channels] of whatever type, in one strip or tile each.

    Args:
        values: the pixels.
        order: of bytes, ``<`` or ``>``.
        photometric: 0 for white is zero, 1 for black is zero, 2 for RGB.
        extra: what the channel after the colours is: 0 anything, 1 or 2 alpha.
        is_packed: by Deflate.
        in_planes: one channel after the other.
        orientation: as EXIF has it.
        no_data: the value that stands for none, as GDAL notes it.
        tells_kind: whether the numbers are said to be whole or not, with or without a sign.
    """
    height, width, channels = values.shape
    values = values.astype(values.dtype.newbyteorder(order))
    planes = [values[..., channel] for channel in range(channels)] if in_planes else [values]
    strips = [plane.tobytes() for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if is_packed else strips
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    at = 8
    offsets = [at := at + (len(strips[n - 1]) if n else 0) for n in range(len(strips))]
    end = offsets[-1] + len(strips[-1])
    end += end % 2
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("L", [width]),
        257: ("L", [height]),
        258: ("H", [8 * values.dtype.itemsize] * channels),
        259: ("H", [8 if is_packed else 1]),
        262: ("H", [photometric]),
        273: ("L", offsets),
        277: ("H", [channels]),
        278: ("L", [height]),
        279: ("L", [len(strip) for strip in strips]),
        284: ("H", [2 if in_planes else 1]),
        339: ("H", [kind] * channels),
    }
    if orientation is not None:
        tags[274] = ("H", [orientation])
    if no_data is not None:
        tags[42113] = ("B", [*no_data.encode(), 0])
    if not tells_kind:
        del tags[339]
    if extra is not None:
        tags[338] = ("H", [extra])
    entries, beyond = b"", b""
    place = end + 2 + 12 * len(tags) + 4
    for tag, (code, numbers) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        if len(packed) > 4:
            packed, where = b"", (packed, place + len(beyond))
            beyond += where[0]
            packed = struct.pack(f"{order}L", where[1])
        entries += struct.pack(f"{order}HHL", tag, {"B": 2, "H": 3, "L": 4}[code], len(numbers))
        entries += packed.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", end)
    content = (start + b"".join(strips)).ljust(end, b"\0")
    return content + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + beyond


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
