"""Files that are whole or not there, and what is no file."""

import fcntl
import json
import os
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from levit_search.errors import InputError
from levit_search.files import expanded, remove_unfinished, user_cache, write_atomically, write_json


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


def test_text_that_is_no_utf_8_is_written_out(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.txt", "größe \udcff")
    assert (tmp_path / "a.txt").read_text("utf-8") == "größe \\xff"
    write_json(tmp_path / "a.json", {"a\udcff": ["b\udcff"]})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"a\\xff": ["b\\xff"]}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, and no word of where caches are."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def test_the_cache_is_in_a_home_that_can_be_written(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "new"))
    assert user_cache() == tmp_path / "new" / ".cache" / "levit-search"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "named"))
    assert user_cache() == tmp_path / "named" / "levit-search"
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("home", ["none", "unwritable"])
def test_without_a_home_the_cache_is_a_folder_of_the_users_own_and_told_once(
    home: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if home == "none":  # as for a user whom the system does not know
        monkeypatch.setattr("os.path.expanduser", str)
    else:
        monkeypatch.setattr("os.access", lambda path, mode: mode == os.F_OK and path == Path("/"))
    with pytest.warns(UserWarning, match="no home directory can be written.*XDG_CACHE_HOME"):
        cache = user_cache()
    assert cache == temporary / f"levit-search-{os.getuid()}" / "levit-search"
    assert cache.parent.stat().st_mode & 0o777 == 0o700
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert user_cache() == cache
    assert os.environ["XDG_CACHE_HOME"] == str(cache.parent)
    monkeypatch.delenv("XDG_CACHE_HOME")


@pytest.mark.parametrize("trap", ["link", "open to all", "file"])
def test_a_cache_that_others_may_write_is_refused(
    trap: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.path.expanduser", str)
    folder = temporary / f"levit-search-{os.getuid()}"
    if trap == "link":
        folder.symlink_to(tmp_path)
    elif trap == "file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(InputError, match=r"is not this user's alone.*set XDG_CACHE_HOME"):
        user_cache()


def test_a_home_that_is_not_there_leaves_a_path_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/a") == Path("/home/me/a")
    assert expanded("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")
    with pytest.raises(InputError, match="zero byte"):
        expanded("a\0b")
