"""A teacher's answers on disk: shared by processes, and never damaged by what befalls them."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from levit_search.distill.store import Answer, Header, Store, check_room
from levit_search.errors import InputError

HEADER = Header(
    teacher="regnety_002-0123456789ab",
    data="digits-16",
    augmentation={"crop": "shift", "crop_scale": (0.08, 1.0), "image_size": 16},
    versions={"torch": "2.6.0"},
    seed=0,
    distillation="soft",
    temperature=3.0,
    k=3,
    classes=10,
    rows=5,
    steps=7,
)
SPAWN = multiprocessing.get_context("fork")

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def answer_of(epoch: int, step: int, header: Header = HEADER) -> Answer:
    """What a teacher says of a batch; another thing for each."""
    chance = np.random.default_rng([epoch, step])
    shape = (header.rows, header.k)
    classes = chance.integers(0, header.classes, shape).astype(np.uint16)
    return Answer(classes, chance.random(shape).astype(np.float16))


def is_same(one: Answer | None, other: Answer | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def never() -> Answer:
    raise AssertionError("the teacher was asked")


def opened(folder: Path, epochs: int = 2, header: Header = HEADER) -> Store:
    store = Store(folder, header)
    store.prepare(epochs)
    return store


def filled_store(folder: Path, epochs: int = 2, header: Header = HEADER) -> Store:
    store = opened(folder, epochs, header)
    for epoch in range(epochs):
        for step in range(header.steps):
            store.fill(epoch, step, lambda e=epoch, s=step: answer_of(e, s, header))
    return store


@pytest.fixture(autouse=True)
def _strict() -> Any:
    """A warning that no test expects is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize(("rows", "k"), [(5, 3), (1, 1), (128, 1), (2, 16)])
def test_answers_come_back_as_they_were_given_and_are_asked_for_once(
    rows: int, k: int, tmp_path: Path
) -> None:
    header = replace(HEADER, rows=rows, k=k, classes=1000)
    store = opened(tmp_path, header=header)
    assert store.find(0, 2) is None
    given = store.fill(0, 2, lambda: answer_of(0, 2, header))
    assert is_same(given, answer_of(0, 2, header))
    for reader in (store, opened(tmp_path, header=header)):
        assert is_same(reader.find(0, 2), given)
        assert is_same(reader.fill(0, 2, never), given)
        assert reader.find(0, 3) is None and reader.find(1, 2) is None
    # Epochs come in any order, and there is no last one.
    far = store.fill(70_000, 6, lambda: answer_of(7, 6, header))
    assert is_same(opened(tmp_path, header=header).find(70_000, 6), far)


def test_the_size_on_disk_is_the_planned_one(tmp_path: Path) -> None:
    store = Store(tmp_path, HEADER)
    assert HEADER.chunk_bytes == 8 + 64  # 5 rows of 3 classes, 4 bytes each, up to a multiple of 8
    assert store.planned_bytes(3) == 3 * 7 * 72 == store.missing_bytes(3)
    store.prepare(3)
    store.fill(1, 0, lambda: answer_of(1, 0))
    (file,) = store.folder.glob("epoch-*.bin")
    assert file.stat().st_size == 7 * 72
    assert store.missing_bytes(3) == 2 * 7 * 72


def test_a_store_tells_which_batches_it_has(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for step in (0, 4):
        store.fill(1, step, lambda s=step: answer_of(1, s))
    assert np.flatnonzero(store.filled(1)).tolist() == [0, 4]
    assert not store.filled(0).any()
    state = Store(tmp_path, HEADER).state(2)
    assert state["batches_kept"] == [0, 2] and state["folder"] == str(store.folder)
    json.dumps(state)


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": "regnety_002-ba9876543210"},
        {"data": "digits-32"},
        {"augmentation": {**HEADER.augmentation, "crop": "none"}},
        {"versions": {"torch": "2.7.0"}},
        {"seed": 1},
        {"distillation": "hard"},
        {"temperature": 1.0},
        {"k": 2},
        {"rows": 6},
        {"steps": 8},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_answers_are_in_another_store(change: dict[str, Any], tmp_path: Path) -> None:
    filled_store(tmp_path, 1)
    other = opened(tmp_path, header=replace(HEADER, **change))
    assert other.find(0, 0) is None
    assert len(list(tmp_path.iterdir())) == 2


def test_a_header_of_other_answers_empties_the_store_after_a_warning(tmp_path: Path) -> None:
    """As after renaming a folder, or copying one into another."""
    other = replace(HEADER, augmentation={"crop": "none"}, seed=5)
    theirs, ours = filled_store(tmp_path, 1, other), Store(tmp_path, HEADER)
    theirs.folder.rename(ours.folder)
    with pytest.warns(UserWarning, match="another augmentation, seed; .* thrown away"):
        ours.prepare(1)
    assert ours.find(0, 0) is None and not ours.filled(0).any()
    assert is_same(ours.fill(0, 0, lambda: answer_of(3, 3)), answer_of(3, 3))
    opened(tmp_path)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[1]", b"\xff\xfe", b'{"checksum": "0"}', "flipped"],
    ids=["missing", "empty", "torn", "a list", "no text", "no content", "flipped"],
)
def test_a_damaged_header_empties_the_store_after_a_warning(
    content: bytes | str | None, tmp_path: Path
) -> None:
    store = filled_store(tmp_path, 1)
    path = store.folder / "header.json"
    if content is None:
        path.unlink()
    else:
        raw = path.read_bytes().replace(b'"temperature": 3.0', b'"temperature": 7.0')
        path.write_bytes(content if isinstance(content, bytes) else raw)
    with pytest.warns(UserWarning, match=r"header.json is (missing|damaged); .* thrown away"):
        again = opened(tmp_path)
    assert again.find(0, 0) is None
    filled_store(tmp_path, 1)
    assert is_same(opened(tmp_path).find(0, 6), answer_of(0, 6))


def test_epochs_of_another_store_are_not_taken(tmp_path: Path) -> None:
    theirs = filled_store(tmp_path, 1, replace(HEADER, seed=1))
    ours = opened(tmp_path)
    shutil.copy(theirs.folder / "epoch-00000.bin", ours.folder)
    assert ours.find(0, 0) is None
    with pytest.warns(UserWarning, match=r"epoch-00000.bin: damaged"):
        ours.fill(0, 0, lambda: answer_of(0, 0))
    # Nor are they in the place of another epoch.
    shutil.copy(theirs.folder / "epoch-00000.bin", theirs.folder / "epoch-00001.bin")
    assert theirs.find(1, 0) is None


def test_every_flipped_bit_is_seen_and_mended(tmp_path: Path) -> None:
    store = filled_store(tmp_path, 1)
    path = store.folder / "epoch-00000.bin"
    whole = path.read_bytes()
    for position in range(2 * 72, 3 * 72):
        bit = 1 << (position % 8)
        raw = bytearray(whole)
        raw[position] ^= bit
        path.write_bytes(raw)
        reader = opened(tmp_path)
        assert reader.find(0, 2) is None, position
        assert reader.filled(0).tolist() == [True, True, False, True, True, True, True]
        with pytest.warns(UserWarning, match="damaged"):
            reader.fill(0, 2, lambda: answer_of(0, 2))
        assert path.read_bytes() == whole
        assert is_same(reader.find(0, 2), answer_of(0, 2))


def test_damage_is_told_once_for_each_file(tmp_path: Path) -> None:
    store = filled_store(tmp_path, 2)
    for path in store.folder.glob("epoch-*.bin"):
        path.write_bytes(bytes([255]) * path.stat().st_size)
    reader = opened(tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for epoch in range(2):
            for step in range(7):
                reader.fill(epoch, step, lambda e=epoch, s=step: answer_of(e, s))
    assert ["damaged" in str(warning.message) for warning in told] == [True, True]
    assert reader.filled(0).all() and reader.filled(1).all()


@pytest.mark.parametrize("length", [0, 1, 67, 72, 75, 3 * 72 + 9, 7 * 72 - 1])
def test_a_file_that_was_cut_short_keeps_what_is_left_of_it(length: int, tmp_path: Path) -> None:
    store = filled_store(tmp_path, 1)
    assert store.find(0, 6) is not None  # has it mapped
    os.truncate(store.folder / "epoch-00000.bin", length)
    kept = length // 72
    for reader in (store, opened(tmp_path)):
        assert reader.find(0, 6) is None, "reading beyond the end would end the process"
    asked = []

    def ask(step: int) -> Answer:
        asked.append(step)
        return answer_of(0, step)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in reversed(range(7)):
            assert is_same(store.fill(0, step, lambda s=step: ask(s)), answer_of(0, step))
    assert asked == list(range(6, kept - 1, -1))
    assert len(told) == (length > 0), "an empty file holds nothing that could be damaged"
    assert store.filled(0).all()


def in_processes(count: int, work: Callable[[int], None]) -> list[Any]:
    """``work`` in processes of their own, and how each of them ended."""
    processes = [SPAWN.Process(target=work, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_processes_share_a_store_and_ask_once_for_each_batch(tmp_path: Path) -> None:
    """Each in an order of its own, all epochs; every answer is marked by who asked for it."""
    header = replace(HEADER, rows=64, k=8, steps=20)
    asked = tmp_path / "asked"
    asked.mkdir()

    def work(number: int) -> None:
        store = opened(tmp_path / "stores", 3, header)
        batches = [(epoch, step) for epoch in range(3) for step in range(header.steps)]
        if number:
            random.Random(number).shuffle(batches)
        for epoch, step in batches:

            def ask(epoch: int = epoch, step: int = step) -> Answer:
                (asked / f"{epoch} {step}").touch(exist_ok=False)
                time.sleep(0.001)
                return answer_of(epoch, step, header)

            found = store.find(epoch, step)
            found = found if found is not None else store.fill(epoch, step, ask)
            assert is_same(found, answer_of(epoch, step, header))

    assert in_processes(4, work) == [0] * 4
    assert len(list(asked.iterdir())) == 3 * header.steps
    assert opened(tmp_path / "stores", 3, header).state(3)["batches_kept"] == [20] * 3


def test_an_answer_that_another_process_is_at_is_waited_for(tmp_path: Path) -> None:
    begun = SPAWN.Event()

    def slow() -> Answer:
        begun.set()
        time.sleep(0.3)
        return answer_of(0, 0)

    def work(_: int) -> None:
        opened(tmp_path).fill(0, 0, slow)

    store = opened(tmp_path)
    process = SPAWN.Process(target=work, args=(0,))
    process.start()
    assert begun.wait(30)
    assert store.find(0, 0) is None
    store.fill(1, 0, lambda: answer_of(1, 0))  # another epoch need not wait
    assert is_same(store.fill(0, 0, never), answer_of(0, 0))
    process.join(30)
    assert process.exitcode == 0


def test_a_reader_sees_what_is_written_while_it_has_the_file_open(tmp_path: Path) -> None:
    writer, reader = opened(tmp_path), opened(tmp_path)
    for step in range(7):
        writer.fill(0, step, lambda s=step: answer_of(0, s))
        assert is_same(reader.find(0, step), answer_of(0, step))


def test_a_process_killed_while_it_asks_keeps_nobody_waiting(tmp_path: Path) -> None:
    def work(_: int) -> None:
        opened(tmp_path).fill(0, 0, lambda: os.kill(os.getpid(), signal.SIGKILL))

    assert in_processes(1, work) == [-signal.SIGKILL]
    store = opened(tmp_path)
    assert is_same(store.fill(0, 0, lambda: answer_of(0, 0)), answer_of(0, 0))


@pytest.mark.slow
def test_processes_killed_while_they_write_leave_no_damage(tmp_path: Path) -> None:
    """Chunks of a megabyte, so that many a kill comes in the middle of one."""
    header = replace(HEADER, rows=4096, k=64, classes=1000, steps=400)
    answer = answer_of(0, 0, header)

    def work(_: int) -> None:
        store = opened(tmp_path, 1, header)
        for step in range(header.steps):
            if store.find(0, step) is None:
                store.fill(0, step, lambda: answer)

    had = 0
    for seed in range(6):
        process = SPAWN.Process(target=work, args=(0,))
        process.start()
        time.sleep(0.05 + random.Random(seed).random() * 0.1)
        process.kill()
        process.join(30)
        store = opened(tmp_path, 1, header)
        done = int(store.filled(0).sum())
        assert done >= had
        had = done
    assert 0 < had < header.steps
    # Each of these looks for damage, and would warn of it.
    for step in range(had + 1):
        store.fill(0, step, lambda: answer)
        assert is_same(store.find(0, step), answer)


def test_an_answer_without_its_stamp_is_none(tmp_path: Path) -> None:
    """What a kill between the two leaves, in a new chunk and in one that is mended."""
    store = filled_store(tmp_path, 1)
    with (store.folder / "epoch-00000.bin").open("r+b") as file:
        file.seek(3 * 72)
        file.write(bytes(8))
    assert store.find(0, 3) is None
    store.fill(0, 3, lambda: answer_of(0, 3))
    assert store.filled(0).all()


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = replace(HEADER, rows=1000, k=16)
    needed = 7 * (8 + 64_000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * needed - 1))
    folder = tmp_path / "cache" / "stores"
    with pytest.raises(
        InputError, match=r"needs 1\.34 MB in .*, and 1\.34 MB are free there; set "
    ):
        opened(folder, 3, header)
    assert not folder.exists()
    store = opened(folder, 2, header)
    store.fill(0, 0, lambda: answer_of(0, 0, header))
    store.prepare(3)  # what is on the disk already needs no more room


def test_room_is_looked_for_where_the_folder_will_be(tmp_path: Path) -> None:
    check_room(tmp_path / "a" / "b" / "c", 1)
    with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
        check_room(Path("not") / "there", 10**18)


@pytest.mark.parametrize("reserved", [True, False], ids=["reserved", "written"])
def test_a_disk_that_is_full_leaves_a_sound_store_and_a_warning(
    reserved: bool, tmp_path: Path
) -> None:
    """The limit on the size of files that a process may write stands for the disk's."""
    header = replace(HEADER, rows=128, k=16)

    def work(_: int) -> None:
        if not reserved and hasattr(os, "posix_fallocate"):
            del os.posix_fallocate
        store = opened(tmp_path, 2, header)
        resource.setrlimit(resource.RLIMIT_FSIZE, (header.epoch_bytes - 1, -1))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for step in range(3):
                given = store.fill(0, step, lambda s=step: answer_of(0, s, header))
                assert is_same(given, answer_of(0, step, header))
        assert len(told) == 1
        assert "cannot be written (File too large)" in str(told[0].message)
        assert not store.is_writable

    assert in_processes(1, work) == [0]
    store = opened(tmp_path, 2, header)
    assert not list(store.folder.glob("epoch-*.bin"))
    store.fill(0, 0, lambda: answer_of(0, 0, header))
    assert store.filled(0).sum() == 1


def test_a_full_store_that_cannot_be_written_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file can be made in it; permissions would be no hindrance for root."""
    filled_store(tmp_path, 1)

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    store = opened(tmp_path, 1)
    assert not store.is_writable
    assert is_same(store.find(0, 3), answer_of(0, 3))
    # An epoch beyond the recipe is asked about, and not written.
    assert is_same(store.fill(1, 0, lambda: answer_of(1, 0)), answer_of(1, 0))
    assert store.find(1, 0) is None
    with pytest.raises(InputError, match=r"Permission denied.*1 of 2 epochs are not complete"):
        opened(tmp_path, 2)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"Not a directory.*header.json cannot be read"):
        opened(tmp_path / "file" / "stores")
