"""The study folder: what it accepts, what it refuses, and that it loses nothing."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from levit_search.architecture import Architecture, sizes_of
from levit_search.errors import InputError, UnknownNameError
from levit_search.export.retraining import Retraining, config_for
from levit_search.latency.worker import device_name
from levit_search.search import begin
from levit_search.study import (
    Study,
    StudyConfig,
    config_of,
    parse_settings,
    read_config,
)
from levit_search.study.restore import restore
from levit_search.study.settings import space_file as found_space
from tests.conftest import ROOT, Cli
from tests.networks import tiny_description, tiny_space


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


def test_a_study_that_was_killed_as_it_was_made_is_made_again(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    folder, config = tmp_path / "s", read_config(space_file())
    Study.create(folder, config, [])
    for path in folder.iterdir():
        path.unlink()
    (folder / ".lock").touch()
    (folder / ".study.yaml.abcd1234.partial").write_text("version: 1\nna")
    assert Study.create(folder, config, ["again"]).records() == []
    (folder / "study.yaml").unlink()
    (folder / ".study.yaml.abcd1234").touch()
    with pytest.raises(InputError, match="not empty and no study"):
        Study.create(folder, config, [])


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
    space_file: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    study = Study.create(tmp_path / "s", read_config(space_file()), [])
    told = "no finished trial '3' (finished: none yet)"
    with pytest.raises(InputError, match=re.escape(told)):
        study.record("3")
    for command in ("count", "show"):
        done = cli(command, f"{study.folder}#3")
        assert done.returncode == 2
        assert told in done.stderr


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data.root=/data/set #2", "/data/set #2"),
        ("data.root=2024", "2024"),
        ("data.train_split=1", "1"),
        ("name=7", "7"),
        ("train.donor_weights=donors/{name} #1.pth", "donors/{name} #1.pth"),
        ("teacher.weights=[best].pt", "[best].pt"),
        ("supernet.weights=2024", "2024"),
        ("storage=sqlite:////data/#1.db", "sqlite:////data/#1.db"),
        ("engine.address=10:6379", "10:6379"),
        ("latency.reference=true", "true"),
        ("latency.target.host=1234", "1234"),
        ("targets.pi.target.user=007", "007"),
        ("start.0=1e3", "1e3"),
        ("data.root=null", None),
        ("storage=null", None),
        ("data.train_images=2024", 2024),
        ("start=[a, b]", ["a", "b"]),
        ("architecture.num_stages={choices: [1, 2]}", {"choices": [1, 2]}),
    ],
)
def test_a_key_that_takes_a_text_takes_it_as_it_is_written(setting: str, value: object) -> None:
    assert parse_settings([setting]) == {setting.partition("=")[0]: value}


def test_retraining_spells_its_settings_so_that_they_are_read_back() -> None:
    changes = {"data.root": "/data/set #2", "data.train_split": "null", "train.lr": 0.1}
    words = Retraining(3, changes=changes).options()
    assert parse_settings(words[words.index("--set") + 1 :: 2]) == changes


def test_an_embedded_space_is_known_by_its_name_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = ROOT / "spaces" / "photos.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert found_space("photos") == embedded
    (tmp_path / "photos").rmdir()
    (tmp_path / "photos").write_text("name: mine\n")
    with pytest.warns(UserWarning, match=r"the file of that name here is \./photos"):
        assert found_space("photos") == embedded
    assert found_space("./photos").samefile(tmp_path / "photos")


def test_what_is_no_space_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pictures", "a.yaml"):
        (tmp_path / name).mkdir()
        with pytest.raises(InputError, match=f"^{name}: is a folder, where a space file"):
            found_space(name)
    (tmp_path / "pictures" / "study.yaml").touch()
    with pytest.raises(InputError, match=r"its space file is pictures/study\.yaml$"):
        found_space("pictures")
    with pytest.raises(UnknownNameError):
        found_space("x" * 5000)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are named from; a folder ``spaces`` is in it, and the working directory."""
    (tmp_path / "spaces").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths_of(config: StudyConfig) -> list[str | None]:
    assert config.teacher is not None
    weights = [config.train.donor_weights, config.teacher.weights, config.supernet.weights]
    return [config.data.root, *weights]


NAMES = {
    "data.root": "pictures",
    "train.donor_weights": "{name}.pth",
    "teacher.weights": "teacher.pt",
    "supernet.weights": "shared",
}
SIZED = {"data.name": "folder", "data.image_size": 16}


def make(where: Path) -> None:
    for name in NAMES.values():
        (where / name.replace("{name}", "resnet18")).mkdir()


def test_paths_given_by_hand_are_meant_from_the_working_directory(folder: Path) -> None:
    space = tiny_space(teacher={"name": "resnet18"})
    make(folder / "spaces")
    config = config_of(space, folder / "spaces" / "tiny.yaml", {**SIZED, **NAMES})
    assert paths_of(config) == [str(folder / name) for name in NAMES.values()]
    sections = {"data": {**space["data"], "name": "folder", "root": "./pictures"}}  # type: ignore[dict-item]
    config = config_of(space, folder / "spaces" / "tiny.yaml", sections)
    assert config.data.root == str(folder / "pictures")


def test_paths_in_a_file_are_looked_for_beside_it_first(folder: Path) -> None:
    space = tiny_space(teacher={"name": "resnet18", "weights": "teacher.pt"})
    space["data"] = {"name": "folder", "image_size": 16, "root": "pictures"}
    space["train"]["donor_weights"] = "{name}.pth"  # type: ignore[index]
    space["supernet"] = {"weights": "shared"}
    path = Path("spaces/tiny.yaml")
    assert paths_of(config_of(space, path)) == [str(folder / name) for name in NAMES.values()]
    make(folder / "spaces")
    make(folder)
    beside = [str(folder / "spaces" / name) for name in NAMES.values()]
    assert paths_of(config_of(space, path)) == beside


@pytest.mark.parametrize(
    ("root", "kept"),
    [
        ("/data/a b", "/data/a b"),
        ("~nobody-of-that-name/x", "{}/~nobody-of-that-name/x"),
        ("spaces/../pictures", "{}/pictures"),
        ("https://host/shards", "https://host/shards"),
        ("x" * 5000, "{}/" + "x" * 5000),
    ],
)
def test_a_place_of_data_stays_what_it_is(root: str, kept: str, folder: Path) -> None:
    config = config_of(tiny_space(), Path("tiny.yaml"), {**SIZED, "data.root": root})
    assert config.data.root == kept.format(folder)


def test_a_path_that_no_file_can_hold_is_refused_or_stays_relative(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="is not in UTF-8"):
        parse_settings(["data.root=/data/caf\udce9"])
    place = os.path.join(os.fsencode(folder), b"caf\xe9")  # noqa: PTH118 (of bytes)
    try:
        os.makedirs(place)  # noqa: PTH103 (of bytes)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    monkeypatch.chdir(os.fsdecode(place))
    config = config_of(tiny_space(), Path("tiny.yaml"), {**SIZED, "data.root": "pictures"})
    assert config.data.root == "pictures"


def test_words_that_stand_in_place_of_a_path_stay(folder: Path) -> None:
    make(folder)
    changes = {"teacher.weights": "pretrained", "train.donor_weights": "pretrained"}
    (folder / "pretrained").mkdir()
    (folder / "train").mkdir()
    config = config_of(tiny_space(), Path("tiny.yaml"), changes)
    assert paths_of(config) == [None, "pretrained", "pretrained", "train"]


def test_a_reference_in_a_file_is_read_into_the_study(folder: Path, tiny: Architecture) -> None:
    (folder / "spaces" / "mine.yaml").write_text(tiny.to_yaml())
    (folder / "other.yaml").write_text("stem: {kind: conv, layers: 2}\nstages: []\n")
    space = tiny_space(
        latency={"reference": "mine.yaml"}, targets={"pi": {"reference": "mine.yaml"}}
    )
    config = config_of(space, folder / "spaces" / "tiny.yaml", {"latency.reference": "other.yaml"})
    assert config.latency.reference == {"stem": {"kind": "conv", "layers": 2}, "stages": []}
    assert config.targets["pi"].reference_for(**sizes_of(tiny)) == tiny
    with pytest.raises(InputError, match="did you mean 'LeViT-128S'"):
        config_of(space, folder / "spaces" / "s.yaml", {"latency.reference": "LeVit-128S"})


@pytest.fixture
def moved(folder: Path) -> Study:
    """A study with a trial, whose data was in ``before``."""
    config = config_of(tiny_space(storage=None), Path("s"), {**SIZED, "data.root": "before"})
    config = config.model_copy(
        update={"architecture": {**config.architecture, "in_channels": 3, "num_classes": 2}}
    )
    study = Study.create(folder / "s", config, [])
    study.storage().ask()
    return study


def test_data_may_be_named_anew_when_a_study_goes_on(moved: Study) -> None:
    settings = {"data": moved.config.data.model_copy(update={"root": "/after"})}
    again = Study.create(moved.folder, moved.config.model_copy(update=settings), [])
    assert Study.open(moved.folder).config.data.root == "/after"
    assert len(again.storage().trials) == 1
    other = {"data": moved.config.data.model_copy(update={"val_share": 0.5})}
    with pytest.raises(InputError, match=r"\(data\.val_share 0\.2 -> 0\.5\)"):
        Study.create(moved.folder, moved.config.model_copy(update=other), [])


def test_data_may_be_named_anew_in_the_studys_file(moved: Study, folder: Path) -> None:
    path = moved.folder / "study.yaml"
    path.write_text(path.read_text().replace(str(folder / "before"), "after"))
    (moved.folder / "after").mkdir()
    opened = Study.open(moved.folder)
    assert opened.config.data.root == str(moved.folder / "after")
    assert opened.records() == []
    again = read_config(path)
    assert len(Study.create(moved.folder, again, []).storage().trials) == 1


def test_a_restored_study_has_its_data_where_it_was_last(moved: Study) -> None:
    moved.open_to_write(moved.config.space().distributions())
    settings = {"data": moved.config.data.model_copy(update={"root": "/after"})}
    again = Study.create(moved.folder, moved.config.model_copy(update=settings), [])
    again.open_to_write(moved.config.space().distributions())
    for name in ("study.yaml", "study.db"):
        (moved.folder / name).unlink()
    restore(moved.folder, False, lambda count, of: None)
    assert Study.open(moved.folder).config.data.root == "/after"


def test_a_study_is_read_with_its_data_in_another_place(moved: Study, folder: Path) -> None:
    before = contents(moved.folder)
    (folder / "after").mkdir()
    again = moved.with_data(Path("after"))
    assert again.config.data.root == str(folder / "after")
    assert again.records() == []
    assert config_for(again, Retraining(1)).data.root == str(folder / "after")
    assert contents(moved.folder) == before, "it is read only"
    assert moved.with_data(None).config == moved.config
    with pytest.raises(InputError, match=r"^--data nowhere: no such folder$"):
        moved.with_data(Path("nowhere"))


def test_data_that_lies_in_no_folder_is_not_named_anew(
    tmp_path: Path,
) -> None:
    study = Study.create(tmp_path / "s", config_of(tiny_space(), Path("s")), [])
    with pytest.raises(InputError, match="digits, which lies in no folder"):
        study.with_data(tmp_path)


def test_a_study_of_an_earlier_release_goes_on(folder: Path, tiny: Architecture) -> None:
    """It has paths as they were given, and sizes with every description."""
    (folder / "mine.yaml").write_text(tiny.to_yaml())
    space = tiny_space(
        storage=None,
        start=[{k: v for k, v in tiny_description().items() if k not in sizes_of(tiny)}],
        latency={"reference": "mine.yaml"},
        teacher={"name": "resnet18", "weights": "teacher.pt"},
    )
    config = config_of(space, Path("tiny.yaml"))
    assert config.teacher is not None
    update = {
        "start": (tiny_description(),),
        "latency": config.latency.model_copy(update={"reference": "mine.yaml"}),
        "teacher": config.teacher.model_copy(update={"weights": "teacher.pt"}),
    }
    study = Study.create(folder / "s", config.model_copy(update=update), [])
    study.storage().ask()
    assert len(Study.create(folder / "s", config, []).storage().trials) == 1


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
