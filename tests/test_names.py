"""Names, paths and encodings as people have them: no command ends with a traceback for them."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from levit_search.cli import main
from levit_search.data import DataConfig, describe
from levit_search.errors import InputError
from levit_search.search import driver
from levit_search.study import EngineConfig, Study, read_config
from tests.conftest import Cli
from tests.engines import HereEngine, run
from tests.networks import tiny_description, tiny_space

# Of class folders, in the order of their bytes as Python gives them.
CLASSES = [
    b"-dash",
    b"<script>alert(1)",
    b"a`b|c",
    b"caf\\xe9",
    b"caf\xe9",
    b"line\nbreak",
    b"quo\"te's",
    "turned \u202e".encode(),
    b"x" * 200,
    "\U0001f600".encode(),
]
READABLE = (
    "-dash",
    "<script>alert(1)",
    "a`b|c",
    "caf\\\\xe9",
    "caf\\xe9",
    "line\\nbreak",
    "quo\"te's",
    "turned \\u202e",
    "x" * 200,
    "\U0001f600",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name is no UTF-8."""
    made = tmp_path_factory.mktemp("names") / os.fsdecode(b"caf\xe9")
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"this file system takes no such names ({error.strerror})")
    return made


@pytest.fixture(scope="module")
def data(place: Path) -> Path:
    """Five pictures of each class in ``train/``, two in ``val/``."""
    random = np.random.default_rng(0)
    root = place / "data #2?"
    for part, count in {"train": 5, "val": 2}.items():
        for name in CLASSES:
            folder = root / part / os.fsdecode(name)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (16, 16), dtype=np.uint8)
                with (folder / os.fsdecode(b"\xff%d.png" % number)).open("wb") as file:
                    Image.fromarray(pixels).save(file, "png")
    return root


@pytest.fixture(scope="module")
def study(place: Path, data: Path) -> Study:
    """Two networks, trained for real; nobody changes it."""
    space = tiny_space(
        data={"name": "folder", "root": str(data), "image_size": 16},
        storage=None,
        search={"trials": 2, "sampler": "random"},
    )
    (place / "space.yaml").write_text(yaml.safe_dump(space))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setenv("LEVIT_SEARCH_LOCKS", str(place))
        patch.setattr(driver, "make_engine", HereEngine)
        _, searched = run(place / "space.yaml", place / "study 50%?")
    return searched


Ascii = Callable[..., tuple[int, str]]


@pytest.fixture
def ascii_cli(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ascii]:
    """Run a command with streams that take ASCII alone; returns its exit code and its output."""

    def run_command(*arguments: object) -> tuple[int, str]:
        written = io.BytesIO()
        streams = [io.TextIOWrapper(each, "ascii") for each in (written, io.BytesIO())]
        monkeypatch.setattr(sys, "argv", ["levit-search", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as ended:
            main()
        for stream in streams:
            stream.flush()
        return ended.value.code, written.getvalue().decode()

    yield run_command
    monkeypatch.undo()


def test_classes_have_readable_names_that_differ(data: Path) -> None:
    found = describe(DataConfig(name="folder", root=str(data), image_size=16)).class_names
    assert found == READABLE


def test_a_study_keeps_the_place_of_its_data(study: Study, data: Path) -> None:
    reopened = Study.open(study.folder)
    assert reopened.config.data.root == str(data)
    assert reopened.config == study.config
    assert len(reopened.records()) == 2
    assert (study.folder / "study.db").is_file()
    (study.folder / "study.yaml").read_text("ascii")


@pytest.mark.parametrize(
    "arguments",
    [
        ("front", "STUDY"),
        ("front", "STUDY", "--format", "csv"),
        ("front", "STUDY", "--format", "markdown"),
        ("report", "STUDY"),
        ("report", "STUDY", "--format", "svg"),
        ("show", "STUDY#0"),
        ("count", "STUDY#0", "--by-layer"),
        ("count", "PLACE/network.yaml"),
        ("space", "PLACE/space.yaml", "--sample", "20"),
    ],
    ids=" ".join,
)
def test_every_command_takes_a_folder_that_is_no_utf_8(
    arguments: tuple[str, ...], study: Study, place: Path, ascii_cli: Ascii
) -> None:
    (place / "network.yaml").write_text(yaml.safe_dump(tiny_description()))
    named = [
        each.replace("STUDY", str(study.folder)).replace("PLACE", str(place)) for each in arguments
    ]
    code, told = ascii_cli(*named)
    assert code == 0
    assert told.isascii() and told
    for path in study.folder.rglob("*.*"):
        if path.suffix in (".html", ".csv", ".svg", ".md", ".json", ".yaml"):
            path.read_text("utf-8")


def test_a_storage_is_restored_there(study: Study, place: Path, ascii_cli: Ascii) -> None:
    copy = place / "copy"
    shutil.copytree(study.folder, copy)
    (copy / "study.db").unlink()
    code, told = ascii_cli("restore", copy)
    assert code == 0 and told.isascii()
    assert Study.open(copy).records() == study.records()


@pytest.mark.parametrize(
    "arguments", [("front", "STUDY", "--format", "json"), ("count", "STUDY#0", "--json")]
)
def test_json_is_what_every_parser_takes(
    arguments: tuple[str, ...], study: Study, ascii_cli: Ascii
) -> None:
    code, told = ascii_cli(*(each.replace("STUDY", str(study.folder)) for each in arguments))
    assert code == 0
    json.dumps(json.loads(told), ensure_ascii=False).encode()


def test_a_drawing_on_standard_output_is_utf_8_whatever_the_terminal_takes(
    study: Study, ascii_cli: Ascii
) -> None:
    code, told = ascii_cli("show", f"{study.folder}#0", "--format", "svg")
    assert code == 0
    assert told.startswith("<svg") and "\\u" not in told and not told.isascii()


@pytest.mark.slow
def test_an_export_answers_with_the_readable_names(study: Study, data: Path, cli: Cli) -> None:
    out = study.folder.parent / "out"
    done = cli("export", study.folder, "--pick", "accurate", "--no-probe", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert "caf\\xe9" in json.loads(done.stdout)["dir"]
    (out / "README.md").read_text("utf-8")
    picture = next((data / "val").rglob("*.png"))
    answered = subprocess.run(
        [sys.executable, out / "predict.py", "--top", "99", picture],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert answered.returncode == 0, answered.stderr
    told = [line.partition(" %  ")[2] for line in answered.stdout.splitlines()[1:]]
    assert len(told) == len(READABLE)
    assert {"caf\\xe9", "caf\\\\xe9", "x" * 200, "line\\nbreak"} <= set(told)


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("count", f"{LONG}.yaml"), "File name too long"),
        (("front", LONG), "File name too long"),
        (("run", f"{LONG}.yaml"), "File name too long"),
        (("run", "tiny.yaml", "--study", LONG), "File name too long"),
        (("run", "tiny.yaml", "--set", "data={name: folder, root: ~nobody-here/x}"), "~nobody-h"),
        (("run", "tiny.yaml", "--set", 'data={name: folder, root: "a\\0b"}'), "zero byte"),
        (("front", "file/below"), "file/below"),
        (("count", "loop/net.yaml"), "loop/net.yaml"),
        (("front", os.fsdecode(b"no such \xff")), "no such \\xff: no such study folder"),
        (("count", "--nonsense\udcff"), "--nonsense\\xff"),
    ],
    ids=range(10),
)
def test_a_path_that_cannot_be_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    told: str,
    cli: Cli,
    space_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    space_file()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    done = cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [
        *("file", "loop", "tiny.yaml")
    ]


def test_a_folder_that_ray_does_not_take_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from levit_search.engine.ray_cluster import connect

    monkeypatch.setattr(sys, "argv", ["levit-search", "run", "caf\udce9"])
    with pytest.raises(InputError, match="Ray takes no argument but in UTF-8, as caf"):
        connect(EngineConfig(kind="ray"))


def test_a_working_directory_that_is_gone_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "argv", ["levit-search", "front", "s"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "the working directory is gone" in capfd.readouterr().err


@pytest.mark.parametrize("home", [None, "", "/nonexistent/home", "no/path"])
def test_a_command_runs_without_a_home(
    home: str | None, cli_process: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    space: dict[str, Any] = tiny_space()
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(space))
    done = cli_process("space", "tiny.yaml", "--sample", "20")
    assert done.returncode == 0, done.stderr
    assert read_config(tmp_path / "tiny.yaml").name == "tiny"
