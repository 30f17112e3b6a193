"""``teacher fill`` and ``teacher show`` as a user meets them."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from levit_search.architecture import Architecture
from tests.conftest import ROOT, Cli, command
from tests.networks import SMALL_REGNETY

TEACHER = {
    "name": "regnety_002",
    "options": SMALL_REGNETY,
    "recipe": {"epochs": 1, "batch_size": 64, "threads": 1, "device": "cpu"},
}
TRAIN = {"epochs": 2, "batch_size": 64, "lr": 5.0e-3, "threads": 1, "device": "cpu"}


@pytest.fixture
def taught(space_file: Callable[..., Path]) -> Path:
    """A space on 256 digits, 4 batches an epoch."""
    return space_file(teacher=TEACHER, train=TRAIN)


def test_fill_keeps_all_answers_and_asks_for_nothing_twice(
    cli: Cli, taught: Path, tmp_path: Path
) -> None:
    done = cli("teacher", "fill", taught, "--json")
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)
    folder = Path(first["folder"])
    assert folder.parent == tmp_path / "cache" / "levit-search" / "teacher-outputs"
    assert (first["epochs"], first["views"], first["new_views"]) == (2, 512, 512)
    assert first["bytes"] == sum(file.stat().st_size for file in folder.glob("epoch-*.bin"))
    assert first["images_per_second"] > 0 and first["teacher"]["val_top1_percent"] > 0
    assert f"2 epochs: 0.00 MB in {folder}, 0.00 MB new" in done.stderr
    assert "teacher 1/1 regnety_002 trained, val" in done.stderr
    assert "epoch 2/2" in done.stderr

    again = json.loads(cli("teacher", "fill", taught, "--json").stdout)
    assert (again["views"], again["new_views"], again["images_per_second"]) == (512, 0, 0)
    more = json.loads(cli("teacher", "fill", taught, "--epochs", 3, "--json").stdout)
    assert (more["views"], more["new_views"], more["folder"]) == (768, 256, first["folder"])
    # Another length or rate of learning is no reason to ask again.
    longer = ("--set", "train.epochs=3", "--set", "train.lr=1e-3")
    assert json.loads(cli("teacher", "fill", taught, *longer, "--json").stdout)["new_views"] == 0


def test_what_is_told_without_json(cli: Cli, taught: Path) -> None:
    before = cli("teacher", "show", taught)
    assert before.returncode == 0, before.stderr
    assert "regnety_002 (weights: train) is not there yet" in before.stdout
    assert json.loads(cli("teacher", "show", taught, "--json").stdout) == {
        "teacher": None,
        "answers": None,
    }
    filled = cli("teacher", "fill", taught, "--epochs", 1)
    assert filled.returncode == 0, filled.stderr
    *card, sizes, new = filled.stdout.splitlines()
    assert "% on val of digits at 16 px" in " ".join(card)
    assert sizes.startswith("1 epochs, 256 views, 0.00 MB in ")
    assert new.startswith("256 views were new: ") and new.endswith(" images/s")
    shown = cli("teacher", "show", taught)
    assert shown.stdout.splitlines()[: len(card)] == card
    assert "1 of 2 epochs are complete, 0 begun" in shown.stdout
    state = json.loads(cli("teacher", "show", taught, "--json").stdout)
    assert state["answers"]["batches_kept"] == [4, 0]
    assert state["answers"]["folder"] in filled.stdout
    assert state["teacher"]["sha256"]
    online = cli("teacher", "show", taught, "--set", "teacher.cache=false")
    assert "Its answers are not kept." in online.stdout


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_training_only_looks_filled_answers_up_and_learns_the_same(
    kind: str, cli: Cli, tmp_path: Path, tiny: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a teacher that is asked each time: to the bit, or to the rounding of its answers."""
    from levit_search import distill

    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    options = [
        "data.image_size=16",
        "data.train_images=256",
        f"teacher={json.dumps(TEACHER)}",
        f"train={json.dumps({**TRAIN, 'distillation': kind})}",
    ]
    settings = [part for option in options for part in ("--set", option)]
    online = cli("train", "tiny.yaml", *settings, "--set", "teacher.cache=false", "--json")
    assert online.returncode == 0, online.stderr
    filled = cli("teacher", "fill", "levit", *settings, "--json")
    assert filled.returncode == 0, filled.stderr
    assert json.loads(filled.stdout)["new_views"] == 512

    def refuse(*_: object) -> None:
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(distill.TeacherAnswers, "_ask", refuse)
    replayed = cli("train", "tiny.yaml", *settings, "--json")
    assert replayed.returncode == 0, replayed.stderr
    losses = [
        [epoch["train_loss"] for epoch in json.loads(done.stdout)["curve"]]
        for done in (online, replayed)
    ]
    if kind == "hard":
        assert losses[0] == losses[1]
    else:
        assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.slow
def test_a_fill_that_was_killed_goes_on(cli: Cli, taught: Path, tmp_path: Path) -> None:
    stores = tmp_path / "cache" / "levit-search" / "teacher-outputs"
    process = subprocess.Popen(
        command("teacher", "fill", taught, "--epochs", 3000),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        while len(list(stores.glob("*/epoch-*.bin"))) < 3:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
    finally:
        process.kill()
    process.communicate(timeout=60)
    epochs = len(list(stores.glob("*/epoch-*.bin"))) + 1
    done = cli("teacher", "fill", taught, "--epochs", epochs, "--json")
    assert done.returncode == 0 and "damaged" not in done.stderr
    filled = json.loads(done.stdout)
    assert 256 <= filled["new_views"] <= 2 * 256, "the epoch that was begun, and the one after it"
    assert filled["views"] == epochs * 256


def test_ctrl_c_says_how_to_go_on_and_loses_nothing(
    cli: Cli, taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from levit_search import distill

    ask = distill.TeacherAnswers._ask

    def interrupted(self: distill.TeacherAnswers, images: Tensor) -> Tensor:
        if self.asked == 5:
            raise KeyboardInterrupt
        return ask(self, images)

    with monkeypatch.context() as patched:
        patched.setattr(distill.TeacherAnswers, "_ask", interrupted)
        done = cli("teacher", "fill", taught)
    assert done.returncode == 130
    assert "the same command goes on" in done.stderr and "Traceback" not in done.stderr
    again = json.loads(cli("teacher", "fill", taught, "--json").stdout)
    assert again["new_views"] == 512 - 5 * 64


def test_a_disk_that_becomes_full_fails_the_command(
    cli: Cli, taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from levit_search.distill import store

    assert cli("teacher", "fill", taught, "--epochs", 1).returncode == 0

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "allocate", refuse)
    done = cli("teacher", "fill", taught)
    assert done.returncode == 1
    assert "cannot be written (No space left on device)" in done.stderr
    assert "could not be written any more in epoch 2; what was written stays" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["teacher=null"], "has no teacher"),
        (["train.distillation=none"], "train.distillation is none"),
        (["teacher.cache=false"], "teacher.cache: is false"),
        (["teacher.name=regnety_003"], "unknown teacher 'regnety_003'; did you mean"),
        (["teacher.weights=nowhere.pt"], "nowhere.pt; expected train, pretrained or a checkpoint"),
        (["teacher.top1_percent=100"], "% on val, below the teacher.top1_percent of 100"),
        (["teacher.weights=pretrained"], "pretrained weights know 1000 classes, the data has 10"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_and_exit_2(
    settings: list[str], told: str, cli: Cli, taught: Path
) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    done = cli("teacher", "fill", taught, *options)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("levit-search: ") and told in last
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_too_little_room_is_told_first(
    cli: Cli, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    done = cli("teacher", "fill", taught)
    assert done.returncode == 2
    assert "are free there; set XDG_CACHE_HOME" in done.stderr
    assert not list((tmp_path / "cache").rglob("*.pt")), "nothing was trained"
