"""Files that are whole or not there, and what is no file."""

import os
from pathlib import Path

import pytest

from levit_search.files import write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    write_atomically(path, "after")
    assert path.read_text() == "after"
    with pytest.raises(TypeError):
        write_atomically(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_to_and_stays_a_pipe() -> None:
    read, write = os.pipe()
    write_atomically(Path(f"/dev/fd/{write}"), "told")
    os.close(write)
    assert os.read(read, 9) == b"told"
    os.close(read)
