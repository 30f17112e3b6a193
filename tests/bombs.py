"""Files that would do harm if they were read the easy way; a few kilobytes each."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

SIDE = 50_000
"""Pixels a side that pictures here say to have: 2.5 billion, or 7.5 GB in colours."""


class Creates:
    """Unpickled, it makes a file: what any program of a stranger's would be able to."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self._path}'",)


def pickled(path: Path) -> bytes:
    """A pickle that makes ``path``."""
    return pickle.dumps(Creates(path))


def torch_checkpoint(path: Path) -> bytes:
    """A checkpoint as torch writes them, whose pickle makes ``path``."""
    import torch

    buffer = io.BytesIO()
    torch.save({"model": Creates(path)}, buffer)
    return buffer.getvalue()


def inflated_checkpoint(megabytes: int = 64) -> bytes:
    """A checkpoint of zeros, packed a thousandfold."""
    import torch

    buffer, packed = io.BytesIO(), io.BytesIO()
    torch.save({"weight": torch.zeros(megabytes, 1 << 18)}, buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(packed, "w") as archive:
        for entry in whole.infolist():
            archive.writestr(entry.filename, whole.read(entry), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def png(width: int = SIDE, height: int = SIDE) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif() -> bytes:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, SIDE, SIDE, 0) + b"\x08\x02\x00\x01\x00\x3b"
    return b"GIF89a" + struct.pack("<HHBBB", SIDE, SIDE, 0x80, 0, 0) + bytes(6) + frame


def tiff() -> bytes:
    tags = [
        (256, 4, 1, SIDE),  # width, height, bits, compression, black is zero
        (257, 4, 1, SIDE),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),  # where the only strip is, its rows and bytes
        (278, 4, 1, SIDE),
        (279, 4, 1, SIDE * SIDE),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def webp() -> bytes:
    """The largest that the format has: 16384 pixels a side."""
    bits = (16383 | 16383 << 14).to_bytes(4, "little")
    content = b"\x2f" + bits + bytes(64)
    chunk = b"WEBPVP8L" + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", len(chunk)) + chunk


def bmp() -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, 0, 1, 1, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def eps(path: Path) -> bytes:
    """A picture that is a program, which makes ``path`` where its reader may write files."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n"
        b"(" + str(path).encode() + b") (w) file closefile\nshowpage\n%%EOF\n"
    )


def gz(megabytes: int) -> bytes:
    """Zeros, packed a thousandfold, after the head of an idx file."""
    buffer = io.BytesIO()
    with gzip.open(buffer, "wb", compresslevel=6) as file:
        file.write(b"\0\0\x08\x03")
        for _ in range(megabytes):
            file.write(bytes(1 << 20))
    return buffer.getvalue()


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sparse_tar(name: str, size: int) -> bytes:
    """A member of ``size`` zeros that takes no room, by the old GNU format."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.GNUTYPE_SPARSE
    info.size = 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"%011o\0" % size, b"%011o\0" % 0
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def asking_checkpoint(is_archive: bool) -> bytes:
    """A checkpoint of torch's, a few bytes long, that has 10 GB of zeros made for it."""
    wanted = (10**10).to_bytes(5, "little")
    asking = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05" + wanted + b"\x85R."
    if not is_archive:
        return asking
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", asking)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()
