"""``train`` with a folder: stopping, going on, and what a folder has to be for that."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import equal

from levit_search.architecture import Architecture
from tests.conftest import Cli

OPTIONS = (
    "--data", "digits", "--teacher", "none", "--epochs", 3, "--set", "data.train_images=128",
    "--set", "train.device=cpu",
)  # fmt: skip


@pytest.fixture
def train(cli: Cli, tmp_path: Path, tiny: Architecture) -> Callable[..., Any]:
    """Run ``train`` on a tiny network for three epochs."""
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    return lambda *arguments: cli("train", "tiny.yaml", *OPTIONS, *arguments)


def test_a_run_that_stopped_goes_on_with_the_same_command(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    whole = train("--out", "whole", "--json")
    assert whole.returncode == 0, whole.stderr
    first = json.loads(train("--out", "parts", "--stop-after", 1, "--json").stdout)
    assert first["epochs"] == 1 and (tmp_path / "parts" / "model.safetensors").exists()
    # Stopping where it is already asks for nothing more.
    again = train("--out", "parts", "--stop-after", 1, "--json")
    assert json.loads(again.stdout)["curve"] == first["curve"] and "epoch" not in again.stderr
    gone_on = train("--out", "parts", "--json")
    assert "epoch 2/3" in gone_on.stderr and "epoch 1/3" not in gone_on.stderr
    curves = [
        [(point["train_loss"], point["val_top1_percent"]) for point in json.loads(done)["curve"]]
        for done in (whole.stdout, gone_on.stdout)
    ]
    assert curves[0] == curves[1]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(equal(weights[0][name], weights[1][name]) for name in weights[0])
    kept = {path.name for path in (tmp_path / "parts").iterdir()}
    assert kept == {"architecture.yaml", "model.safetensors", "training.json"}


def test_a_network_is_trained_for_rectangles(train: Callable[..., Any], tmp_path: Path) -> None:
    done = train("--image-size", "16x24", "--out", "wide", "--stop-after", 1)
    assert done.returncode == 0, done.stderr
    assert "image_size: [16, 24]" in (tmp_path / "wide" / "architecture.yaml").read_text()
    assert "epoch 2/3" in train("--image-size", "16x24", "--out", "wide").stderr
    other = train("--image-size", "24x16", "--out", "wide")
    assert other.returncode == 2


def test_another_run_does_not_go_on_from_a_folder(train: Callable[..., Any]) -> None:
    assert train("--out", "run", "--stop-after", 1).returncode == 0
    done = train("--out", "run", "--seed", 1)
    assert done.returncode == 2
    assert "training.pt: was left by training with another" in done.stderr


def test_what_is_left_of_a_first_checkpoint_is_no_hindrance(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".training.pt.abc").touch()
    assert train("--out", "run", "--stop-after", 1).returncode == 0


def test_a_disk_that_is_full_fails_the_command_and_keeps_the_checkpoint(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from levit_search.distill import single
    from levit_search.train import checkpoint

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for module in (single, checkpoint):
        with monkeypatch.context() as patched:
            patched.setattr(module, "write_atomically", refuse)
            done = train("--out", "run")
        assert done.returncode == 1
        (*_, last) = done.stderr.splitlines()
        assert last.startswith("levit-search: run")
        assert "cannot be written (No space left on device)" in last
        (tmp_path / "run" / "training.pt").unlink(missing_ok=module is checkpoint)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--stop-after", 1], "--stop-after: needs --out DIR"),
        (["--stop-after", 0, "--out", "run"], "--stop-after"),
        (["--stop-after", -1, "--out", "run"], "--stop-after"),
        (["--out", "tiny.yaml"], "tiny.yaml: is no folder"),
        (["--out", "tiny.yaml/run"], "run: cannot be written (Not a directory)"),
        (["--out", "full"], "full: is not empty, and no training is there to go on with"),
    ],
)
def test_a_folder_that_will_not_do_is_told_before_training(
    arguments: list[str], told: str, train: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    done = train(*arguments)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr and len(done.stderr.strip().splitlines()) <= 2
    assert done.stdout == "" and not (tmp_path / "run").exists()
