"""Files that are whole or not there, and what is no file."""

import os
from pathlib import Path

import pytest

from levit_search.files import remove_unfinished, write_atomically


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


def test_only_unfinished_files_of_ours_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    left = tmp_path / "checkpoints" / ".a.pt.0a_z9xyz.partial"
    kept = [tmp_path / name for name in ("a.pt", ".hidden.settings", "b.partial", ".b.partial")]
    for path in (left, *kept):
        path.touch()
    assert remove_unfinished(tmp_path) == [left]
    assert not left.exists() and all(path.exists() for path in kept)
    assert remove_unfinished(tmp_path / "absent") == []
