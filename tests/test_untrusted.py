"""What comes from a stranger does not run, does not leave its place and does not fill the memory.

Each test has the file that would do it, and looks at what became of it.
"""

import ast
import gzip
import hashlib
import io
import json
import os
import shlex
import sqlite3
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import levit_search as ls
from levit_search.architecture import Architecture, parse, published
from levit_search.configuration import LARGEST, parse_yaml, read_yaml
from levit_search.data import DataConfig, describe
from levit_search.data import load as load_data
from levit_search.data.decoding import Decoding
from levit_search.data.sources import FileSource, UnreadableError, decode
from levit_search.data.timm_sets import keep_from_ghostscript
from levit_search.drawing import diagram
from levit_search.errors import InputError, LevitSearchError
from levit_search.escaping import careful_console, printable
from levit_search.export import predict
from levit_search.files import DamagedFileError, read_checksummed
from levit_search.latency.targets import check_programs, read_latency
from levit_search.model import build, load_weights
from levit_search.progress import no_progress
from levit_search.study import Study, read_config
from levit_search.study.record import record_from_notes
from levit_search.train import Checkpoint
from tests import bombs
from tests.conftest import ROOT, Cli, needs
from tests.networks import tiny_description, tiny_space

SpaceFile = Callable[..., Path]

# ---------------------------------------------------------------------------------------- the code


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Every call in the package: file, what is called, and the call."""
    return list(_calls())


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    for path in sorted((ROOT / "levit_search").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path.name, ast.unparse(node.func), node


def keywords(call: ast.Call) -> dict[str, str]:
    return {each.arg or "**": ast.unparse(each.value) for each in call.keywords}


def test_nothing_in_the_package_turns_data_into_code() -> None:
    found = calls()
    assert any(name == "torch.load" for _, name, _ in found), "the walk sees calls"
    assert not [file for file, name, _ in found if name in ("pickle.load", "pickle.loads")]
    for file, name, call in found:
        given = keywords(call)
        assert "shell" not in given, file
        assert name not in ("eval", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"), file
        assert name not in ("__import__", "marshal.load", "joblib.load", "shelve.open"), file
        if name == "marshal.loads":
            assert file == "trials.py", "which has packed it in the same process"
        assert given.get("allow_pickle", "False") == "False", file
        if name == "torch.load":
            assert given["weights_only"] == "True", file
        if name == "exec":
            assert file == "worker.py", file


def test_no_subprocess_is_given_a_string_for_a_shell() -> None:
    for file, name, call in calls():
        if name in ("subprocess.run", "subprocess.Popen", "subprocess.check_output"):
            assert not isinstance(call.args[0], ast.JoinedStr | ast.Constant | ast.BinOp), file


# -------------------------------------------------------------------------------------------- YAML

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGED_LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' stands there twice (line 3)"),
        ("a: {b: 1, b: 2}", "the key 'b' stands there twice (line 1)"),
        (LAUGHS, "stands for more than 100,000 values, its aliases written out"),
        (MERGED_LAUGHS, "stands for more than 100,000 values, its aliases written out"),
        ("a: &a [*a]", "an alias stands for what it is part of (line 1)"),
        ("[" * 100_000, "nested too deeply (more than 40 levels)"),
        ("- " * 100_000, "nested too deeply (more than 40 levels)"),
        ("#" * (LARGEST + 1), "larger than 1 MiB, which no file of ours is"),
        ("a: 0x" + "f" * 10_000, "a whole number of more than 64 bits (line 1)"),
        ("a: !!binary aGVsbG8=", "!!binary is not taken (line 1)"),
        ("a: !!set {b, c}", "!!set is not taken (line 1)"),
        ('a: "\\ud800"', "half of a character, as no file can hold it (line 1)"),
        ("a: !!python/tuple [1]", "not valid YAML: could not determine a constructor"),
        ("a: 1\n--- \nb: 2\n", "not valid YAML: expected a single document"),
        ("a: \x1b[31m", "not valid YAML: unacceptable character"),
    ],
    ids=lambda value: value[:20],
)
def test_yaml_that_is_no_plain_data_of_a_sensible_size_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "file")
    assert str(caught.value).startswith(f"file: {reason}")
    assert len(str(caught.value)) < 400


def test_aliases_and_merges_of_a_sensible_size_are_read() -> None:
    text = "x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: {<<: [*x, {c: 4}]}\nw: *x\n"
    x = {"a": 1, "b": 2}
    assert parse_yaml(text, "file") == {
        "x": x,
        "y": {"a": 1, "b": 3},
        "z": {"a": 1, "b": 2, "c": 4},
        "w": x,
    }


def test_a_date_is_the_text_that_was_written_for_us_and_a_date_for_others() -> None:
    assert parse_yaml("name: 2024-02-30", "file") == {"name": "2024-02-30"}
    assert not isinstance(yaml.safe_load("2024-02-03"), str)


def test_an_object_in_a_space_file_is_not_made(tmp_path: Path, cli: Cli) -> None:
    made = tmp_path / "made"
    path = tmp_path / "space.yaml"
    path.write_text(f"name: !!python/object/apply:os.system ['touch {made}']\n")
    done = cli("run", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "not valid YAML" in done.stderr
    assert not made.exists()


def test_a_file_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room; read whole it would
    with pytest.raises(InputError, match="larger than 1 MiB"):
        read_yaml(path)


# ------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("content", [bombs.pickled, bombs.torch_checkpoint])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors", "weights"])
def test_a_checkpoint_that_is_a_program_is_not_run(
    content: Callable[[Path], bytes], name: str, tiny: Architecture, tmp_path: Path
) -> None:
    made, path = tmp_path / "made", tmp_path / name
    path.write_bytes(content(made))
    with pytest.raises(InputError, match=name):
        load_weights(build(tiny), path)
    assert not made.exists()


@pytest.mark.parametrize("content", [bombs.pickled, bombs.torch_checkpoint])
def test_a_teacher_that_is_a_program_is_not_run(
    content: Callable[[Path], bytes], tmp_path: Path
) -> None:
    from levit_search.distill.teacher_network import load_weights

    made, path = tmp_path / "made", tmp_path / "teacher.pth"
    path.write_bytes(content(made))
    model = build(parse(tiny_description()))
    with pytest.raises(InputError, match=r"teacher mine: .*teacher\.pth: is no readable"):
        load_weights(model, path, "mine")
    assert not made.exists()


@pytest.mark.parametrize("content", [bombs.pickled, bombs.torch_checkpoint])
def test_the_checkpoint_of_a_strangers_study_is_not_run(
    content: Callable[[Path], bytes], tmp_path: Path
) -> None:
    made, path = tmp_path / "made", tmp_path / "training.ckpt"
    raw = content(made)
    path.write_bytes(hashlib.sha256(raw).digest() + raw)  # with a sound checksum
    with pytest.warns(UserWarning, match=r"training\.ckpt: refused \(.*\); training starts anew"):
        assert Checkpoint(path, "run").load() is None
    assert not made.exists()


def test_a_pickle_would_have_made_its_file(tmp_path: Path) -> None:
    import pickle

    pickle.loads(bombs.pickled(tmp_path / "made"))
    assert (tmp_path / "made").exists(), "or the tests above would show nothing"


def test_a_checkpoint_that_is_packed_a_thousandfold_is_refused(
    tiny: Architecture, tmp_path: Path
) -> None:
    raw = bombs.inflated_checkpoint()
    assert len(raw) < 1 << 20
    path = tmp_path / "weights.pt"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"has \d{8} bytes packed into \d{5}"):
        load_weights(build(tiny), path)
    kept = tmp_path / "training.ckpt"
    kept.write_bytes(hashlib.sha256(raw).digest() + raw)
    with pytest.warns(UserWarning, match="packed into"):
        assert Checkpoint(kept, "run").load() is None


@pytest.mark.parametrize("is_archive", [True, False])
def test_a_checkpoint_does_not_ask_for_more_memory_than_it_fills(
    is_archive: bool, tiny: Architecture, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(bombs.asking_checkpoint(is_archive))
    with pytest.raises(InputError, match="asks for a bytearray"):
        load_weights(build(tiny), path)


@pytest.mark.parametrize("is_archive", [True, False])
def test_what_torch_saves_is_read_in_both_its_formats(
    is_archive: bool, tiny: Architecture, tmp_path: Path
) -> None:
    import torch

    model, path = build(tiny), tmp_path / "weights.pt"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=is_archive)
    assert load_weights(model, path) == "ours"


def test_options_of_a_teacher_do_not_say_where_weights_come_from(tmp_path: Path) -> None:
    from levit_search.distill.teacher_network import create_teacher
    from levit_search.recipe import TeacherConfig

    for name in ("checkpoint_path", "cache_dir", "pretrained_cfg", "num_classes"):
        config = TeacherConfig(name="resnet18", options={name: str(tmp_path / "x")})
        with pytest.raises(InputError, match=rf"teacher\.options\.{name}: is not the network's"):
            create_teacher(config, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["hf-hub:stranger/model", "local-dir:/tmp", "../../x"])
def test_a_teacher_and_a_baseline_are_names_that_timm_knows(name: str, cli: Cli) -> None:
    from levit_search.distill.teacher_network import find_plugin
    from levit_search.recipe import TeacherConfig

    with pytest.raises(InputError, match="unknown teacher"):
        find_plugin(TeacherConfig(name=name))
    assert cli("count", f"timm/{name}").returncode == 2


# ---------------------------------------------------------------------------------------- programs


def touching(made: Path) -> dict[str, Any]:
    return {"kind": "command", "python": ["touch", str(made)]}


PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "latency": lambda target: {"latency": {"target": target}},
    "targets": lambda target: {
        "targets": {"box": {"target": target}},
        "objectives": ["latency_ms@box", "flops"],
    },
}


@pytest.mark.parametrize("place", PLACES)
def test_a_space_file_starts_no_program_that_the_user_did_not_name(
    place: str, space_file: SpaceFile, tmp_path: Path, cli: Cli
) -> None:
    made = tmp_path / "made"
    path = space_file(**PLACES[place](touching(made)))
    done = cli("run", path, "--trials", 1)
    assert (done.returncode, done.stdout) == (2, "")
    assert 'would start ["touch",' in done.stderr and done.stderr.count("\n") == 2
    assert not made.exists() and not (tmp_path / "studies").exists()
    # The message has the line that allows it, by the user's own hand.
    line = done.stderr.partition("the line")[2].strip()
    own = tmp_path / "config" / "levit-search" / "targets.yaml"
    assert str(own) in done.stderr
    own.parent.mkdir(parents=True)
    own.write_text(line + "\n")
    config = read_config(path)
    assert started_by(config) == [("touch", str(made))]


def started_by(config: Any) -> list[tuple[str, ...]]:
    sections = [config.latency, *config.targets.values()]
    return [each.target.python for each in sections if each.target.kind == "command"]


def test_the_command_line_is_the_users_own_word(space_file: SpaceFile, tmp_path: Path) -> None:
    target = touching(tmp_path / "made")
    for changes in ({"latency": {"target": target}}, {"latency.target": target}):
        assert started_by(read_config(space_file(), changes)) == [tuple(target["python"])]
    # What is given there says nothing of what the file adds to it.
    path = space_file(latency={"target": {**target, "env": {"LD_PRELOAD": "/tmp/evil.so"}}})
    with pytest.raises(InputError, match=r"latency\.target would start"):
        read_config(path, {"latency.target.python": target["python"]})


def test_targets_that_came_with_a_space_file_are_not_the_users_own(
    space_file: SpaceFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = space_file(latency={"target": "box"})
    (tmp_path / "targets.yaml").write_text(yaml.safe_dump({"box": {"target": touching(tmp_path)}}))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(InputError, match=r"latency\.target would start"):
        read_config(path)
    with pytest.raises(InputError, match=r"latency\.target would start"):
        read_config(path, {"latency.target": "box"})  # a name is not what it stands for
    monkeypatch.chdir(tmp_path)
    assert started_by(read_config(path)) == [("touch", str(tmp_path))]


def test_an_ssh_configuration_of_a_stranger_is_not_used(
    space_file: SpaceFile, tmp_path: Path
) -> None:
    evil = tmp_path / "ssh_config"
    evil.write_text(f"Host *\n  ProxyCommand touch {tmp_path / 'made'}\n")
    target = {"kind": "ssh", "host": "pi", "config_file": str(evil)}
    with pytest.raises(InputError, match=r'latency\.target would start \["ssh", "-F"'):
        read_config(space_file(latency={"target": target}))
    assert read_config(space_file(latency={"target": "ssh://pi"})).latency.target.kind == "ssh"


def test_a_host_starts_no_program_but_its_python(space_file: SpaceFile, tmp_path: Path) -> None:
    target = {"kind": "ssh", "host": "pi", "python": "Downloads/study/run"}
    path = space_file(latency={"target": target})
    with pytest.raises(InputError, match='start "Downloads/study/run" on host pi') as refused:
        read_config(path)
    assert read_config(path, {"latency": {"target": target}}).latency.target.kind == "ssh"
    own = tmp_path / "config" / "levit-search" / "targets.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(str(refused.value).partition("the line")[2].strip() + "\n")
    assert read_config(path).latency.target.kind == "ssh"
    for name in ("python3", "python3.12", "pypy3"):
        changed = space_file(latency={"target": {**target, "python": name}})
        assert read_config(changed).latency.target.kind == "ssh"


@pytest.mark.parametrize(
    "python", ["-S sh -c true", "LD_PRELOAD=/tmp/evil.so", "--version", "a\nb"]
)
def test_an_option_or_a_variable_of_env_is_no_python(python: str, space_file: SpaceFile) -> None:
    target = {"kind": "ssh", "host": "pi", "python": python}
    with pytest.raises(InputError, match="is no path of a Python"):
        read_config(space_file(latency={"target": target}))


def test_the_cluster_of_a_target_is_joined_that_the_user_named(
    space_file: SpaceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    target = {"kind": "ray", "resource": "probe", "cluster": "stranger.example:6379"}
    path = space_file(latency={"target": target})
    with pytest.raises(InputError, match=r'join the Ray cluster "stranger\.example:6379"'):
        read_config(path)
    assert read_config(path, {"latency.target": target}).latency.target.kind == "ray"
    monkeypatch.setenv("RAY_ADDRESS", "stranger.example:6379")
    assert read_config(path).latency.target.kind == "ray"
    monkeypatch.delenv("RAY_ADDRESS")
    for cluster in ("auto", "127.0.0.1:6379", "ray://localhost:10001"):
        here = space_file(latency={"target": {**target, "cluster": cluster}})
        assert read_config(here).latency.target.kind == "ray"


def test_a_cluster_is_joined_that_the_user_named(
    space_file: SpaceFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    address = "stranger.example:6379"
    path = space_file(engine={"kind": "ray", "address": address})
    with pytest.raises(InputError, match=r"engine\.address: .* is not joined"):
        read_config(path)
    assert read_config(path, {"engine.address": address}).engine.address == address
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert read_config(path).engine.address == address


def test_an_export_of_a_strangers_study_starts_nothing(tmp_path: Path, tiny: Architecture) -> None:
    from levit_search.export.verification import remeasured

    made = tmp_path / "made"
    raw = {**tiny_space(), "objectives": ["latency_ms", "flops"], "version": 1}
    raw["latency"] = {"target": touching(made)}
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml.safe_dump(raw))
    study = Study.open(folder)
    record = record_from_notes(
        0,
        "complete",
        {
            "architecture": tiny.model_dump(mode="json"),
            "evaluation": {"latency": {"ratio_ci95": [1, 1], "layout": "tokens"}},
        },
        None,
    )
    (again,) = remeasured(study, record, tmp_path / "model.onnx", no_progress)
    assert again.now is None and 'would start ["touch"' in str(again.reason)
    assert not made.exists()


def test_our_own_targets_need_nobodys_word(tmp_path: Path) -> None:
    sections = {name: read_latency({"target": name}, "x") for name in ("cpu", "paper-arm")}
    check_programs(sections, "x")


# ---------------------------------------------------------------------------------------- pictures

PICTURES = {
    "PNG": bombs.png,
    "GIF": bombs.gif,
    "TIFF": bombs.tiff,
    "WebP": bombs.webp,
    "BMP": bombs.bmp,
    "thin PNG": lambda: bombs.png(1, 1_000_000),
}


@pytest.fixture
def image(tmp_path: Path) -> Callable[[bytes], FileSource]:
    def write(content: bytes) -> FileSource:
        (tmp_path / "image.png").write_bytes(content)
        return FileSource(tmp_path, ["image.png"], np.zeros(1, dtype=np.int64))

    return write


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_of_too_many_pixels_is_not_decoded(
    kind: str, image: Callable[[bytes], FileSource], tmp_path: Path
) -> None:
    content = PICTURES[kind]()
    assert len(content) < 4096
    reason = "too long and thin" if kind == "thin PNG" else "pixels"
    with pytest.raises(UnreadableError, match=reason):
        decode(image(content), 0, Decoding("RGB"))
    with pytest.raises(predict.UserError, match=reason):
        predict.read_picture(str(tmp_path / "image.png"), Decoding("RGB"))


def test_a_picture_that_is_a_program_starts_no_ghostscript(
    image: Callable[[bytes], FileSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tools = tmp_path / "made", tmp_path / "bin"
    tools.mkdir()
    ghostscript = tools / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {shlex.quote(str(made))}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    with pytest.raises(UnreadableError, match="not an image"):
        decode(image(bombs.eps(made)), 0, "RGB")
    with pytest.raises(predict.UserError, match="not an image"):
        predict.read_picture(str(tmp_path / "image.png"), Decoding("RGB"))
    assert not made.exists()
    # Where timm opens pictures itself, Pillow would have asked for it.
    keep_from_ghostscript()
    with pytest.raises(OSError, match="Ghostscript"):
        Image.open(tmp_path / "image.png").load()
    assert not made.exists()


def test_no_ending_of_a_program_is_an_images(tmp_path: Path) -> None:
    from levit_search.data.sets import _endings

    assert {".png", ".jpg", ".webp", ".tif"} <= _endings()
    assert not {".eps", ".ps", ".wmf", ".pdf"} & _endings()


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    for name, reason in (
        ("pipe.png", "not a regular file"),
        ("zero.png", "not a regular file"),
        ("huge.png", r"\d+ bytes, more than \d+"),
    ):
        source = FileSource(tmp_path, [name], np.zeros(1, dtype=np.int64))
        with pytest.raises(UnreadableError, match=reason):
            decode(source, 0, Decoding("RGB"))
    for name in ("zero.png", "huge.png"):
        with pytest.raises(predict.UserError, match="more than 268435456 bytes"):
            predict.read_picture(str(tmp_path / name), Decoding("RGB"))


def test_a_folder_with_bombs_is_read_around_them(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (16, 16), (40 * index, 0, 0)).save(folder / f"{index}.png")
        (tmp_path / part / "a" / "bomb.png").write_bytes(bombs.png())
    config = DataConfig(name="folder", root=str(tmp_path), image_size=16, in_memory=True)
    splits = load_data(config)
    assert sum(len(split.labels) for split in splits.values()) == 16


# --------------------------------------------------------------------------------------- data sets


def test_an_idx_file_packed_a_thousandfold_is_refused(tmp_path: Path) -> None:
    from levit_search.data.sets import _FASHION_FILES

    content = bombs.gz(129)
    assert len(content) < 1 << 18
    for pair in _FASHION_FILES.values():
        for name in pair:
            (tmp_path / name).write_bytes(content)
    config = DataConfig(name="fashion-mnist", root=str(tmp_path), image_size=28)
    with pytest.raises(InputError, match=r"damaged \(more than 134217728 bytes unpacked\)"):
        load_data(config)


def shards(root: Path, content: bytes, filename: str = "train-0.tar") -> DataConfig:
    needs("webdataset")
    root.mkdir(exist_ok=True)
    (root / Path(filename).name).write_bytes(content)
    split = {"name": "train", "num_samples": 1, "filenames": [filename], "shard_lengths": [1]}
    (root / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    return DataConfig(name="wds/some", root=str(root), image_size=16)


def test_an_address_in_place_of_a_folder_of_shards_is_not_run(tmp_path: Path) -> None:
    needs("webdataset")
    made = tmp_path / "made"
    config = DataConfig(name="wds/some", root=f"pipe:touch {made} #", image_size=16)
    with pytest.raises(InputError):
        describe(config)
    assert not made.exists()


@pytest.mark.parametrize("name", ["../outside.tar", "/etc/x.tar", "../study/../outside.tar"])
def test_shards_outside_of_their_folder_are_not_read(name: str, tmp_path: Path) -> None:
    config = shards(tmp_path / "set", bombs.tar({"0.cls": b"1"}), name)
    (tmp_path / "outside.tar").write_bytes(bombs.tar({"0.cls": b"1"}))
    with pytest.raises(InputError, match="is not in this folder"):
        describe(config)


def test_a_pipe_among_the_names_of_shards_is_a_name(tmp_path: Path) -> None:
    made = tmp_path / "made"
    config = shards(tmp_path / "set", b"", f"pipe:touch {made} #.tar")
    with pytest.raises(InputError):
        describe(config)
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bombs.sparse_tar("0.png", 1 << 35), "'0.png' has 34359738368 bytes"),
        (gzip.compress(bombs.tar({"0.cls": b"1"})), "not a compressed one"),
        (bombs.tar({"0.cls": b"9" * 12}), "more than 1,000,000 classes are none"),
        (bombs.tar({"0.cls": b"9" * 6000}), "classes are none|labels cannot be read"),
    ],
    ids=["sparse", "packed", "label", "long label"],
)
def test_shards_do_not_fill_the_memory(content: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        describe(shards(tmp_path / "set", content))


def test_the_sparse_shard_says_what_it_is_meant_to() -> None:
    with tarfile.open(fileobj=io.BytesIO(bombs.sparse_tar("0.png", 1 << 35)), mode="r:") as shard:
        assert [(member.name, member.size) for member in shard] == [("0.png", 1 << 35)]


# ---------------------------------------------------------------------------- terminals and markup

STEERING = "\x1b]0;title\x07\x1b[2J\x1b[1;31mred\r\x08\x9b0m\u202egnp.exe\x00\x7f"
MARKUP = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{title}}"


def is_harmless(text: str) -> bool:
    return all(letter.isprintable() or letter in "\n\t" for letter in text)


def test_what_steers_a_terminal_is_written_out() -> None:
    shown = printable(STEERING)
    assert is_harmless(shown) and "\\x1b]0;title\\x07" in shown and "\\u202e" in shown
    assert printable(shown) == shown
    assert printable("größe\tµ\n×") == "größe\tµ\n×"
    printable("\udcff").encode()  # a name of a file that is no UTF-8


def test_tables_and_progress_steer_no_terminal() -> None:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(STEERING, title=STEERING)
    table.add_row(STEERING + "[bold]")
    file = io.StringIO()
    console = careful_console(file=file, width=300)
    console.print(Group(table, Text(STEERING)), STEERING, soft_wrap=True)
    assert is_harmless(file.getvalue()) and "[bold]" in file.getvalue()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study whose every failure has a reason that steers terminals and is markup."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import made_study
    folder = tmp_path_factory.mktemp("made") / "study"
    study: Study = made_study.make(folder, ls.read_space("levit", {}), 60)
    with sqlite3.connect(folder / "study.db") as database:
        changed = database.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'reason'",
            [json.dumps(STEERING + MARKUP)],
        )
        assert changed.rowcount > 0
    return study


@pytest.mark.slow
def test_a_strangers_study_steers_no_terminal(hostile: Study, cli: Cli) -> None:
    trial = next(each for each in hostile.records() if each.state == "failed")
    assert trial.reason == STEERING + MARKUP
    for command in (
        ["front", hostile.folder],
        ["front", hostile.folder, "--format", "csv"],
        ["front", hostile.folder, "--format", "markdown"],
        ["report", hostile.folder],
        ["export", hostile.folder, "--pick", f"trial={trial.trial}"],
        ["show", f"{hostile.folder}#{trial.trial}"],
        ["front", f"{hostile.folder}{STEERING}".replace("\x00", "")],
        ["count", f"x{STEERING}".replace("\x00", "")],
    ):
        done = cli(*command)
        assert is_harmless(done.stdout) and is_harmless(done.stderr), command
        assert "Traceback" not in done.stderr


def test_a_strangers_study_puts_no_markup_into_a_report(
    hostile: Study, tmp_path: Path, cli: Cli
) -> None:
    out = tmp_path / "report.html"
    assert cli("report", hostile.folder, "--out", out).returncode == 0
    text = out.read_text("utf-8")
    assert "alert(1)" in text, "it is shown"
    for part in ("<script>alert", "</script><script>", "<img src=x", "onerror=alert(1)>"):
        assert part not in text


def test_a_title_is_no_markup_in_a_drawing() -> None:
    from xml.etree import ElementTree

    drawn = diagram.svg(published("LeViT-128S"), MARKUP)
    root = ElementTree.fromstring(drawn)
    assert not [node for node in root.iter() if node.tag.endswith(("script", "img"))]
    assert "<img" not in drawn


# ------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/x", "a/b", ".hidden", "a\\b", "a\n", "", "x" * 81, "a\x00b", "-x"]
)
def test_a_studys_name_is_no_path(name: str, space_file: SpaceFile) -> None:
    with pytest.raises(InputError, match=r"name: "):
        read_config(space_file(name=name))


def test_names_of_further_targets_and_slots_are_no_paths(space_file: SpaceFile) -> None:
    with pytest.raises(InputError, match="a target's name is a letter"):
        read_config(space_file(targets={"../x": "cpu"}))


def test_a_trial_of_a_strangers_study_names_no_file(hostile: Study, tmp_path: Path) -> None:
    """Networks are called by the hash of what they are, whatever a study says they are called."""
    notes = {
        "architecture": {**tiny_description(), "id": "../../x"},
        "architecture_id": "../../x",
    }
    with pytest.raises(InputError, match="unknown key 'id'"):
        record_from_notes(0, "complete", notes, None)
    notes["architecture"] = tiny_description()
    network = record_from_notes(0, "complete", notes, None).architecture
    assert network is not None and network.id.isalnum()
    assert hostile.weights(network.id).parent == hostile.checkpoints


def test_a_data_sets_name_stays_out_of_the_paths_of_caches(tmp_path: Path) -> None:
    for name in ("../../x", "folder/../../x", "torch/../../x"):
        with pytest.raises(ValueError, match="unknown data set"):
            DataConfig(name=name)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path, space_file: SpaceFile) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    study = Study.create(tmp_path / "study", read_config(space_file()), ["test"])
    (study.folder / ".lock").unlink(missing_ok=True)
    (study.folder / ".lock").symlink_to(precious)
    try:
        with study.lock():
            pass
    except (LevitSearchError, OSError):
        pass  # refused is as good
    assert precious.read_text() == "precious"


def test_a_file_that_is_a_link_is_replaced_and_not_written_through(
    hostile: Study, tmp_path: Path, cli: Cli
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    page = tmp_path / "report.html"
    page.symlink_to(precious)
    assert cli("report", hostile.folder, "--out", page).returncode == 0
    assert precious.read_text() == "precious" and not page.is_symlink()


def test_the_interpreter_is_ours() -> None:
    assert Path(sys.executable).is_absolute(), "workers are started by it, not by a name on PATH"


@pytest.mark.parametrize("link", ["/dev/zero", "pipe", "hole"])
def test_files_without_an_end_are_refused(link: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    if link == "hole":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif link == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(link)
    with pytest.raises(InputError, match=r"regular file|more than"):
        load_weights(build(parse(tiny_description())), path)
    with pytest.raises(DamagedFileError, match=r"regular file|more than"):
        read_checksummed(path)
    with pytest.warns(UserWarning, match="starts anew"):
        assert Checkpoint(path, "run").load() is None
