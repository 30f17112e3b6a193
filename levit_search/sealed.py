"""Files that tell whether they are as they were written, by a checksum that they carry.

JSON has it under ``checksum``, safetensors in the file's metadata under ``sha256``. What was
written before files had one is taken as it is.
"""

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from levit_search.files import write_json
from levit_search.printable import encodable_json

_JSON_KEY = "checksum"
_MOST_BYTES = 1 << 33
WEIGHTS_KEY = "sha256"


class DamagedFileError(ValueError):
    """A file is not as it was written; the message says in a few words what is wrong with it."""


def read_bounded(path: Path) -> bytes:
    """The content of a file that may come from anybody.

    Raises:
        OSError: there is no such file, or it cannot be read.
        DamagedFileError: it is a pipe or a device, which may have no end, or larger than any of
            ours.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise DamagedFileError("it is no regular file")
    if found.st_size > _MOST_BYTES:
        raise DamagedFileError(f"it has {found.st_size} bytes, more than {_MOST_BYTES}")
    return path.read_bytes()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content``, which is for JSON and has no ``checksum``, with one."""
    assert _JSON_KEY not in content
    written = encodable_json(content)
    return {**written, _JSON_KEY: _digest(json.loads(json.dumps(written)))}


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as readable JSON with a checksum, atomically."""
    write_json(path, sealed(content))


def read_sealed(path: Path) -> dict[str, Any]:
    """The content of a file of :func:`sealed` JSON.

    Raises:
        OSError: there is no such file, or it cannot be read.
        DamagedFileError: it is damaged.
    """
    raw = read_bounded(path)
    if not raw.strip():
        raise DamagedFileError("it is empty")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise DamagedFileError("it is cut short, or no JSON") from None
    if not isinstance(content, dict):
        raise DamagedFileError("it holds something else")
    if _JSON_KEY in content:
        is_sound = content.pop(_JSON_KEY) == _digest(content)
    else:  # older than checksums, unless its last entry is one whose name is damaged
        *rest, last = content.items() or [("", None)]
        is_sound = last[1] != _digest(dict(rest))
    if not is_sound:
        raise DamagedFileError("its checksum is that of other content")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def weights_checksum(raw: bytes) -> str:
    """A SHA-256 over a safetensors file: its tensors' names, types, shapes and bytes.

    Raises:
        DamagedFileError: it is no such file.
    """
    header, start = _header(raw)
    header.pop("__metadata__", None)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(memoryview(raw)[start:])
    return digest.hexdigest()


def check_weights(raw: bytes) -> None:
    """Make sure that a safetensors file has the tensors that its checksum tells of.

    Raises:
        DamagedFileError: it has not.
    """
    metadata = _header(raw)[0].get("__metadata__")
    known = metadata.get(WEIGHTS_KEY) if isinstance(metadata, dict) else None
    if known is not None and known != weights_checksum(raw):
        raise DamagedFileError("its checksum is that of other weights")


def _header(raw: bytes) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where the tensors' bytes begin."""
    if not raw:
        raise DamagedFileError("it is empty")
    start = 8 + int.from_bytes(raw[:8], "little")
    if start > len(raw):
        raise DamagedFileError("it is cut short, or no safetensors file")
    try:
        header = json.loads(raw[8:start])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise DamagedFileError("it is no safetensors file")
    return header, start
