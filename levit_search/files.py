"""Files that are either whole or not there."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` under a temporary name beside ``path`` and put it in place at once.

    What is there and no regular file, such as ``/dev/stdout``, is written to as it is.
    """
    raw = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file() and not path.is_dir():
        path.write_bytes(raw)
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as readable JSON, atomically."""
    write_atomically(path, json.dumps(data, indent=2) + "\n")
