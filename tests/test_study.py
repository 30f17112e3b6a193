"""The study folder: what it accepts, what it refuses, and that it loses nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from levit_search.errors import InputError
from levit_search.latency.worker import device_name
from levit_search.search import begin
from levit_search.study import Study, load_architecture, parse_settings, read_config


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_study_reads_back_what_it_was_made_from(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    config = read_config(space_file(), {"train.epochs": 2, "limits.flops": "1.5M"})
    study = Study.create(tmp_path / "s", config, ["levit-search", "run"])
    assert Study.open(study.folder).config == config
    assert config.train.epochs == 2
    assert config.limits.flops == 1.5e6
    sessions = json.loads((study.folder / "environment.json").read_text())["sessions"]
    assert sessions[0]["command"] == ["levit-search", "run"]
    assert sessions[0]["packages"]["torch"]
    assert sessions[0]["cpu"] == device_name()


def test_going_on_with_another_budget_is_the_same_study(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    Study.create(tmp_path / "s", read_config(space_file()), []).storage().ask()
    longer = read_config(space_file(), {"search.trials": 99})
    assert Study.create(tmp_path / "s", longer, []).config.search.trials == 99
    assert len(json.loads((tmp_path / "s" / "environment.json").read_text())["sessions"]) == 2


def test_other_settings_are_refused_and_nothing_is_changed(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    Study.create(tmp_path / "s", read_config(space_file()), []).storage().ask()
    before = contents(tmp_path / "s")
    other = read_config(space_file(), {"train.lr": 0.1})
    with pytest.raises(InputError, match=r"train\.lr 0\.005 -> 0\.1"):
        Study.create(tmp_path / "s", other, [])
    assert contents(tmp_path / "s") == before


def test_a_study_without_trials_takes_corrected_settings(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    Study.create(tmp_path / "s", read_config(space_file()), []).storage()
    corrected = read_config(space_file(), {"train.lr": 0.1})
    assert Study.create(tmp_path / "s", corrected, []).config.train.lr == 0.1
    assert Study.open(tmp_path / "s").config.train.lr == 0.1


def test_a_folder_with_something_else_in_it_is_left_alone(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty and no study"):
        Study.create(tmp_path / "s", read_config(space_file()), [])
    assert contents(tmp_path / "s") == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "study.yaml").write_text("version: 1\nname: [oops"), "not valid YAML"),
        (lambda f: (f / "study.yaml").write_text("version: 7\n"), "newer release"),
        (lambda f: (f / "study.yaml").unlink(), "no study.yaml"),
        (lambda f: (f / "study.db").write_bytes(b"not a database" * 1000), "cannot be read"),
    ],
)
def test_an_unreadable_study_is_named(
    damage: Callable[[Path], object],
    told: str,
    space_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "s"
    Study.create(folder, read_config(space_file(storage=None)), []).storage().ask()
    damage(folder)
    before = contents(folder)
    with pytest.raises(InputError, match=told):
        Study.open(folder).records()
    assert contents(folder) == before


def test_a_missing_study_names_its_neighbour(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    Study.create(tmp_path / "first", read_config(space_file()), [])
    with pytest.raises(InputError, match="did you mean 'first'"):
        Study.open(tmp_path / "frist")


def test_files_to_start_with_are_read_into_the_study(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "image_size: 16\nin_channels: 1\nnum_classes: 10\nstem: {kind: conv, layers: 2}\n"
        "stages: [{depth: 1, embed_dim: 16, num_heads: 1, key_dim: 8}]\n"
    )
    config = read_config(space_file(start=["mine.yaml", "LeViT-256"]))
    (tmp_path / "mine.yaml").unlink()
    assert config.start[0]["stages"][0]["embed_dim"] == 16  # type: ignore[index]
    assert config.start[1] == "LeViT-256"


@pytest.mark.parametrize("text", ["train.epochs", "=3", "train.epochs=[1", ""])
def test_a_malformed_setting_is_wrong_input(text: str) -> None:
    with pytest.raises(InputError, match="--set"):
        parse_settings([text])


def test_settings_reach_into_lists_and_refuse_what_is_not_there(
    space_file: Callable[..., Path],
) -> None:
    config = read_config(space_file(), {"architecture.stages.0.depth": 3})
    assert config.architecture["stages"][0]["depth"] == 3
    with pytest.raises(InputError, match="nothing to set"):
        read_config(space_file(), {"architecture.stages.7.depth": 3})


def test_an_architecture_of_a_trial_that_is_not_there_is_wrong_input(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    Study.create(tmp_path / "s", read_config(space_file()), [])
    with pytest.raises(InputError, match=r"no finished trial '3' \(finished: none yet\)"):
        load_architecture(f"{tmp_path / 's'}#3")


# Studies of pictures, which may change or move between two sessions.

RNG = np.random.default_rng(4)


def add_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    for part, count in (("train", 6), ("val", 2)):
        for name in ("frog", "newt"):
            for number in range(count):
                add_picture(root / part / name / f"{number}.png")
    return root


@pytest.fixture
def space(space_file: Callable[..., Path], pictures: Path) -> Path:
    return space_file(data={"name": "folder", "root": str(pictures), "image_size": 16})


def begun(space: Path, folder: Path, **options: bool) -> Study:
    """A study with a trial."""
    study = begin(read_config(space), folder, [], **options)
    study.storage().ask()
    return study


def add_a_class(root: Path) -> None:
    for part in ("train", "val"):
        for number in range(2):
            add_picture(root / part / "toad" / f"{number}.png")


CHANGES = {
    "one more": lambda root: add_picture(root / "train" / "frog" / "more.png"),
    "one replaced": lambda root: add_picture(root / "val" / "newt" / "1.png"),
    "one less": lambda root: (root / "train" / "frog" / "3.png").unlink(),
    "one renamed": lambda root: (root / "train/frog/3.png").rename(root / "train/frog/x.png"),
    "one in another class": lambda root: (root / "train/frog/3.png").rename(
        root / "train/newt/x.png"
    ),
    "a class more": add_a_class,
    "a broken one": lambda root: (root / "train" / "frog" / "3.png").write_bytes(b"?"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_study_whose_pictures_have_changed_is_refused(change, space, pictures, tmp_path):
    study = begun(space, tmp_path / "s")
    before = contents(study.folder)
    change(pictures)
    with pytest.raises(InputError, match=r"not those that it was made for .*--anew") as raised:
        begin(read_config(space), study.folder, [])
    message = str(raised.value)
    assert (
        "\n" not in message and str(pictures) in message and "16 pictures of 2 classes" in message
    )
    assert contents(study.folder) == before, "nothing was changed"


def test_changed_pictures_end_the_command_with_2(space, pictures, tmp_path, cli):
    begun(space, tmp_path / "s")
    add_a_class(pictures)
    done = cli("run", space, "--study", tmp_path / "s")
    assert done.returncode == 2 and "not those that it was made for" in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


@pytest.mark.parametrize("command", ["front", "report"])
def test_a_study_whose_pictures_have_changed_can_still_be_looked_at(
    command, space, pictures, tmp_path, cli
):
    begun(space, tmp_path / "s")
    add_a_class(pictures)
    done = cli(command, tmp_path / "s")
    assert "Traceback" not in done.stderr and "not those that" not in done.stderr


def test_a_study_that_is_begun_anew_is_kept_beside_the_new_one(space, pictures, tmp_path):
    study = begun(space, tmp_path / "s")
    kept = contents(study.folder)
    for number in (1, 2):
        add_picture(pictures / "train" / "frog" / f"more {number}.png")
        again = begun(space, tmp_path / "s", anew=True)
        assert len(again.storage().trials) == 1
        found = again.survey()
        assert found is not None and sum(found.counts["train"]) == 12 + number
        assert (tmp_path / f"s.old-{number}" / "study.yaml").exists()
    old = contents(tmp_path / "s.old-1")
    assert {name: old.get(name) for name in kept} == kept
    assert len(Study.open(tmp_path / "s.old-1").storage().trials) == 1


def test_anew_without_a_study_is_a_new_one(space, tmp_path):
    begun(space, tmp_path / "s", anew=True)
    assert not (tmp_path / "s.old-1").exists()


def test_a_folder_that_is_no_study_is_not_put_aside(space, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty and no study"):
        begin(read_config(space), tmp_path / "s", [], anew=True)
    assert contents(tmp_path / "s") == {"thesis.tex": b"years of work"}


def test_pictures_that_were_moved_go_on_from_their_new_place(space, pictures, tmp_path):
    study = begun(space, tmp_path / "s")
    moved = pictures.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="pictures"):
        begin(read_config(space), study.folder, [])
    config = read_config(space, {"data.root": str(moved)})
    again = begin(config, study.folder, [])
    assert again.config.data.root == str(moved)
    assert again.config.data.fingerprint == study.config.data.fingerprint
    assert len(again.storage().trials) == 1


def test_what_was_found_in_the_pictures_is_kept_in_the_study(space, tmp_path):
    study = begin(read_config(space), tmp_path / "s", [])
    found = Study.open(study.folder).survey()
    assert found is not None and found.counts == {"train": (6, 6), "test": (2, 2)}
    kept = Study.open(study.folder).config.data
    assert (kept.in_channels, kept.hflip, kept.fingerprint) == (3, True, found.fingerprint)
