"""Files that are whole or not there, and what is no file."""

import fcntl
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

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


def test_a_file_that_is_taken_for_left_over_as_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, removed = tempfile.mkstemp, list[Path]()

    def met(**where: Any) -> tuple[int, str]:
        handle, name = make(**where)
        if not removed:  # somebody cleans up before it is locked
            removed.append(Path(name))
            theirs = os.open(name, os.O_RDONLY)
            fcntl.flock(theirs, fcntl.LOCK_EX)

            def remove() -> None:
                removed[0].unlink()
                os.close(theirs)

            threading.Timer(0.1, remove).start()
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", met)
    write_atomically(tmp_path / "a", "whole")
    assert removed and (tmp_path / "a").read_text() == "whole"
