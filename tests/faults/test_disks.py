"""Disks that are full, or only to be read."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli, command
from tests.faults.conftest import Account, Quoted
from tests.faults.sessions import Search

Times = Callable[[int, int], int]

_MENDED = "…; what was finished is kept; once that is mended the same command goes on"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with room for 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def full(disk: Path, but_bytes: int = 0) -> Iterator[None]:
    """Leave only so many bytes of a disk, up to whole pages."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        wanted = max(0, free - but_bytes)
        try:
            while wanted > 0:
                wanted -= file.write(bytes(min(wanted, 1 << 16)))
        except OSError:
            pass
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def test_a_search_whose_disk_fills_up_ends_with_a_word_and_goes_on(
    disk: Path, tmp_path: Path, times: Times, account: Account, quoted: Quoted
) -> None:
    search, chance, lost = Search(disk / "full"), random.Random(0), list[str]()
    count = times(8, 40)
    for number in range(count):
        session = search.begin()
        assert session.until_ended(chance.randint(1, 3)), session.said()
        time.sleep(chance.uniform(0, 0.3))
        room = 0 if number % 2 else chance.randint(0, 40_000)
        with full(disk, room):
            code = session.wait()
        assert code == 1, session.said()
        assert "Traceback" not in session.said()
        assert len(session.said().splitlines()[-1]) < 300
        assert "No space left" in session.said() or "disk is full" in session.said()
        assert "the same command goes on" in session.said()
        lost += [
            f"trial {r.trial} failed: {r.reason}" for r in search.records() if r.state == "failed"
        ]
    total = search.evaluated() + 3
    search.finish("--trials", total)
    undisturbed = Search(tmp_path / "undisturbed")
    undisturbed.finish("--trials", total)
    if search.outcome() != undisturbed.outcome():
        lost.append("it did not end as if undisturbed")
    account("disk-full", count, lost + search.twice() + search.left_over())


def test_training_whose_disk_fills_up_keeps_its_trial(
    disk: Path, space_file: Callable[..., Path], account: Account, quoted: Quoted, tmp_path: Path
) -> None:
    """Real training: the weights have no room."""
    train = {"epochs": 2, "batch_size": 64, "threads": 1, "device": "cpu"}
    space, folder = space_file(train=train, storage=f"sqlite:///{tmp_path}/s.db"), disk / "study"
    told = tmp_path / "told"
    arguments = command("run", space, "--study", folder, "--trials", 3)
    with told.open("w") as lines:
        process = subprocess.Popen(arguments, stdout=lines, stderr=lines, cwd=ROOT)
        while not (folder / "worker-1.log").exists():
            time.sleep(0.01)
            assert process.poll() is None, told.read_text()
        with full(disk):
            assert process.wait(120) == 1, told.read_text()
    quoted(told.read_text(), _MENDED)
    again = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert again.returncode == 0, again.stderr
    lost = ["a trial failed"] if " failed" in again.stdout else []
    account("disk-full-training", 1, lost)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Searched with real training, for commands that read one."""
    import yaml

    from tests.networks import tiny_space

    folder = tmp_path_factory.mktemp("searched")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_space(storage=None)))
    arguments = command("run", folder / "tiny.yaml", "--study", folder / "study", "--trials", 2)
    subprocess.run(arguments, check=True, capture_output=True, cwd=ROOT)
    return folder / "study"


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "STUDY"],
        ["report", "STUDY", "--format", "svg"],
        ["audit", "STUDY"],
        ["export", "STUDY", "--pick", "knee", "--out", "DISK/out"],
        ["export", "STUDY", "--pick", "knee"],
        ["show", "STUDY#0", "--format", "svg", "--out", "DISK/net.svg"],
        ["train", "STUDY#0", "--data", "digits", "--epochs", "1", "--out", "DISK/trained"],
        ["run", "STUDY/study.yaml", "--study", "DISK/new"],
        ["run", "STUDY/study.yaml", "--study", "STUDY", "--trials", "3"],
    ],
    ids=lambda arguments: "-".join(word.strip("-") for word in arguments[:1] + arguments[2:3]),
)
@pytest.mark.parametrize("fault", [full, read_only])
def test_a_command_that_cannot_write_says_so_in_a_line_and_changes_nothing(
    arguments: list[str],
    fault: Callable[[Path], "contextmanager[None]"],
    disk: Path,
    study: Path,
    cli: Cli,
    account: Account,
) -> None:
    mine = _copy(study, disk)
    before = _digests(mine)
    places = {"STUDY": str(mine), "DISK": str(disk)}
    filled = [_filled(word, places) for word in arguments]
    with fault(disk):
        done = cli(*filled)
        assert done.returncode in (1, 2), done.stderr
        assert "Traceback" not in done.stderr
        last = [line for line in done.stderr.splitlines() if line.strip()][-1]
        assert "No space left" in last or "Read-only" in last or "disk is full" in last, done.stderr
    after = _digests(mine)
    lost = [f"{name} has changed" for name in before if after.get(name) != before[name]]
    lost += [
        f"{name} is left" for name in after if name not in before and not name.endswith(".lock")
    ]
    account("disk-commands", 1, lost)


@pytest.mark.parametrize(
    "arguments", [["front"], ["front", "--format", "json"], ["export", "--pick", "knee", "--out"]]
)
def test_a_study_on_a_disk_that_is_only_to_be_read_can_be_read(
    arguments: list[str], disk: Path, study: Path, tmp_path: Path, cli: Cli, account: Account
) -> None:
    mine = _copy(study, disk)
    if arguments[-1] == "--out":
        arguments = [*arguments, str(tmp_path / "out")]
    with read_only(disk):
        done = cli(arguments[0], mine, *arguments[1:])
    assert done.returncode == 0, done.stderr
    account("disk-read-only", 1, [])


def test_output_that_nobody_takes_is_no_traceback(tmp_path: Path, account: Account) -> None:
    lost = []
    for where in ("> /dev/full", "| head -c 1 > /dev/null"):
        line = f"{' '.join(command('count', 'LeViT-256', '--by-layer'))} {where}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
        if "Traceback" in done.stderr or "Exception ignored" in done.stderr:
            lost.append(f"a traceback for {where}")
    account("disk-output", 2, lost)


def _copy(study: Path, disk: Path) -> Path:
    """Without the page, which is larger than the disk."""
    ignored = shutil.ignore_patterns("report.html", ".lock")
    return shutil.copytree(study, disk / "study", ignore=ignored)


def _filled(word: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        word = word.replace(name, path)
    return word


def _digests(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
