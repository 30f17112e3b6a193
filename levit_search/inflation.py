"""Checkpoints that would take far more memory than they take on disk."""

import io
import mmap
import zipfile
from pathlib import Path

# What torch takes from a pickle, and fills with zeros, as many as it says; no weights have one.
_FILLED = b"bytearray"


def check_not_inflated(checkpoint: Path | bytes) -> None:
    """Make sure that a checkpoint of torch is as large as what it holds.

    It is a zip archive, which torch writes without compressing it but reads with: a few kilobytes
    could stand for all memory there is.

    Args:
        checkpoint: its file or its content; of one that is no zip archive, only what its pickle
            asks for is judged.

    Raises:
        ValueError: something in it is compressed, or it says to hold more than it is long, or asks
            for bytes that it does not have.
        OSError: the file cannot be read.
    """
    file = io.BytesIO(checkpoint) if isinstance(checkpoint, bytes) else checkpoint.open("rb")
    with file:
        length = file.seek(0, io.SEEK_END)
        if isinstance(checkpoint, bytes):
            is_filled = _FILLED in checkpoint
        elif length:
            with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ) as content:
                is_filled = content.find(_FILLED) >= 0
        else:
            is_filled = False
        if is_filled:
            raise ValueError("asks for a bytearray, which no weights have")
        if not zipfile.is_zipfile(file):
            return
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"a damaged archive: {error}") from None
    held = sum(entry.file_size for entry in entries)
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or held > length:
        raise ValueError(f"has {held} bytes packed into {length}; torch packs nothing")
