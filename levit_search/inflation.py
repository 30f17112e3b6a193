"""Checkpoints that would take far more memory than they take on disk."""

import io
import zipfile
from pathlib import Path


def check_not_inflated(checkpoint: Path | bytes) -> None:
    """Make sure that a checkpoint of torch is as large as what it holds.

    It is a zip archive, which torch writes without compressing it but reads with: a few kilobytes
    could stand for all memory there is.

    Args:
        checkpoint: its file or its content; what is no zip archive is none to judge.

    Raises:
        ValueError: something in it is compressed, or it says to hold more than it is long.
        OSError: the file cannot be read.
    """
    file = io.BytesIO(checkpoint) if isinstance(checkpoint, bytes) else checkpoint.open("rb")
    with file:
        if not zipfile.is_zipfile(file):
            return
        length = file.seek(0, io.SEEK_END)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"a damaged archive: {error}") from None
    held = sum(entry.file_size for entry in entries)
    packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or held > length:
        raise ValueError(f"has {held} bytes packed into {length}; torch packs nothing")
