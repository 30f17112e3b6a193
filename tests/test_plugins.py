"""Data sets, teachers and targets that an installed distribution brings, used as a user does."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from levit_search import plugins
from levit_search.batches import Batches, open_batches
from levit_search.configuration import validated
from levit_search.data import Arrays, DataConfig, StoredImages, describe, load
from levit_search.distill import TeacherAnswers, create_teacher, obtain_teacher
from levit_search.errors import InputError
from levit_search.latency.targets import PRESETS, LocalTarget, read_latency, read_targets
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.study import Study, read_config
from tests.conftest import ROOT, Cli, command
from tests.networks import SMALL_REGNETY

Install = Callable[..., Path]

RECIPE = Recipe(epochs=1, batch_size=20, lr=5e-3, threads=1, device="cpu")
DIGITS = DataConfig(image_size=16, train_images=60)

DATA = """
import os
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from levit_search.data import ArraySource, DataInfo, FileSource
from levit_search.errors import InputError


class Numerals:
    def __init__(self, config):
        pass

    def describe(self):
        return DataInfo(1, tuple("0123456789"), hflip=False, image_size=8)

    def sources(self):
        bunch = load_digits()
        images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        return {"train": ArraySource("numerals", images, bunch.target.astype(np.int64))}


class Parted(Numerals):
    def sources(self):
        (whole,) = super().sources().values()
        parts = {"train": slice(0, 800), "val": slice(800, 1000), "test": slice(1000, 1300)}
        return {
            name: ArraySource(name, whole.images[part], whole.labels[part])
            for name, part in parts.items()
        }


class Files:
    def __init__(self, config):
        if config.root is None:
            raise InputError("data.root: is required for data.name files")
        self.folder = Path(config.root)

    def describe(self):
        return DataInfo(3, ("dark", "light"), hflip=True, image_size=16)

    def sources(self):
        names = sorted(os.listdir(self.folder))
        labels = np.array([name.startswith("light") for name in names]).astype(np.int64)
        return {"train": FileSource(self.folder, names, labels)}
"""

TEACHERS = """
from torch import nn


def small(name, num_classes, in_channels, image_size, width=4):
    assert name == "small"
    features = in_channels * image_size**2
    return nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.Linear(width, num_classes))


def known(name, num_classes, in_channels, image_size, colors=True, pretrained=False):
    model = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
    if pretrained:
        nn.init.constant_(model[1].weight, 0.125)
        nn.init.constant_(model[1].bias, 0.5)
        model.pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)} if colors else None
    return model
"""

TARGETS = """
import sys

HERE = {"kind": "command", "python": [sys.executable]}
BENCH = {"target": HERE, "threads": 2, "rounds": 6}
DESK = "ssh://me@desk"


def asked():
    return {"preset": "paper-intel", "target": HERE}
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ``targets.yaml`` of the folder where tests are started counts."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution of one module on the path, of this process and of those it starts."""
    sites: list[str] = []

    def put(
        group: str, source: str, version: str = "1.0", name: str = "brings", **entries: str
    ) -> Path:
        site = tmp_path / name
        module = name.replace("-", "_")
        info = site / f"{module}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (site / f"{module}.py").write_text(dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"{key} = {module}:{value}" for key, value in entries.items()]
        with (info / "entry_points.txt").open("a") as file:
            file.write("\n".join([f"[levit_search.{group}]", *lines, ""]))
        monkeypatch.syspath_prepend(site)
        sites.insert(0, str(site))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sites, str(ROOT)]))
        monkeypatch.delitem(sys.modules, module, raising=False)
        return info

    yield put
    for name in ("brings", "other", "third"):
        sys.modules.pop(name, None)


def told(step: Callable[[], object]) -> str:
    with pytest.raises(InputError) as raised:
        step()
    message = str(raised.value)
    assert "\n" not in message and len(message) < 600
    return message


# What is installed


def test_plug_ins_are_listed_by_name_and_not_imported(install: Install) -> None:
    install("data", "raise RuntimeError", b_set="B", a_set="A")
    assert [*plugins.installed("levit_search.data")] == ["a_set", "b_set"]
    assert plugins.installed("levit_search.teachers") == {}
    assert DataConfig(name="a_set").name == "a_set"
    assert "brings" not in sys.modules


def test_names_that_could_be_taken_for_something_else_are_no_plug_ins(install: Install) -> None:
    entries = {"torch/mine": "A", "ssh://mine": "A", "has space": "A", "-o": "A", "a.b-c_1": "A"}
    install("data", "", **entries)
    assert [*plugins.installed("levit_search.data")] == ["a.b-c_1"]


def test_a_distribution_that_is_installed_twice_counts_once(install: Install) -> None:
    older = install("data", DATA, "1.0", numerals="Numerals")
    newer = older.parents[1] / "newer" / older.name
    newer.parent.mkdir()
    older.rename(newer)
    (newer / "METADATA").write_text("Name: Brings\nVersion: 2.0\n")
    install("data", DATA, "1.0", numerals="Numerals")
    sys.path.insert(0, str(newer.parent))
    try:
        (plugin,) = plugins.installed("levit_search.data").values()
    finally:
        sys.path.remove(str(newer.parent))
    assert (plugin.brought_by, plugin.rivals) == ("Brings 2.0", ())


def test_entry_points_that_cannot_be_read_are_told_and_no_matter_to_others(
    install: Install,
) -> None:
    info = install("data", DATA, numerals="Numerals")
    install("data", DATA, name="other", parted="Parted")
    (info / "entry_points.txt").write_text("[levit_search.data]\nno entry\n")
    with pytest.warns(UserWarning, match=r"the entry points of brings 1.0 cannot be read"):
        assert [*plugins.installed("levit_search.data")] == ["parted"]


# Data sets


def test_a_plugged_in_set_is_cut_as_a_built_in_one(install: Install) -> None:
    install("data", DATA, numerals="Numerals")
    config = DataConfig(name="numerals", image_size=16, train_images=60)
    assert describe(config) == describe(DIGITS)
    ours, theirs = load(DIGITS), load(config)
    for name, split in ours.items():
        other = theirs[name]
        assert isinstance(split, Arrays) and isinstance(other, Arrays)
        assert np.array_equal(split.images, other.images)
        assert np.array_equal(split.labels, other.labels)
        assert split.fingerprint() == other.fingerprint()
    assert open_batches(config).data_id == open_batches(DIGITS).data_id


def test_parts_that_a_plugged_in_set_brings_are_kept(install: Install) -> None:
    install("data", DATA, parted="Parted")
    splits = load(DataConfig(name="parted", train_images=500))
    assert {name: len(split.labels) for name, split in splits.items()} == {
        "train": 500,
        "val": 200,
        "test": 300,
    }


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty pictures of two classes, two of them no pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        name, shade = ("light", 200) if number % 2 else ("dark", 50)
        image = Image.new("RGB", (20, 24), (shade, number, 0))
        image.save(folder / f"{name}{number:02}.png")
    for name in ("dark00.png", "light01.png"):
        (folder / name).write_text("no picture")
    return folder


def test_pictures_of_a_plugged_in_set_are_read_from_the_disk(
    install: Install, pictures: Path
) -> None:
    install("data", DATA, files="Files")
    config = DataConfig(name="files", root=str(pictures), in_memory=False, val_share=0.25)
    splits = load(config)
    assert [len(split.labels) for split in splits.values()] == [24, 8, 8]
    train = splits["train"]
    assert isinstance(train, StoredImages) and np.bincount(train.labels).tolist() == [12, 12]
    before = train.fingerprint()
    assert load(config)["train"].fingerprint() == before
    Image.new("RGB", (20, 24)).save(pictures / train.name(0))
    assert load(config)["train"].fingerprint() != before
    recipe = Recipe(batch_size=8, workers=1, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "ignore")
        batches = open_batches(config)
        assert batches.image_size == 16
        steps = list(batches.train(0, 0, recipe, torch.device("cpu")))
    assert [batch.images.shape for batch in steps] == [(8, 3, 16, 16)] * 3


def test_unreadable_pictures_of_a_plugged_in_set_are_left_out_of_memory_and_counted(
    install: Install, pictures: Path
) -> None:
    install("data", DATA, files="Files")
    said: list[str] = []
    config = DataConfig(name="files", root=str(pictures), in_memory=True, val_share=0.25)
    splits = load(config, said.append)
    assert sum(len(split.labels) for split in splits.values()) == 38
    (message,) = said
    assert message.startswith("files: left out 2 images that cannot be read: ")
    assert str(pictures / "dark00.png") in message
    few = config.model_copy(update={"max_unreadable": 1})
    assert "more than 1 images are unreadable" in told(lambda: load(few))


def test_unknown_data_sets_are_told_what_is_plugged_in(install: Install) -> None:
    install("data", DATA, numerals="Numerals")
    message = told(lambda: validated(DataConfig, {"name": "numeral"}, "space.yaml: data"))
    assert "unknown data set 'numeral'; did you mean 'numerals'? Known: digits" in message


def test_a_built_in_data_set_keeps_its_name(install: Install) -> None:
    install("data", "raise RuntimeError", digits="Digits", **{"torch": "Torch"})
    assert describe(DIGITS).in_channels == 1
    assert len(load(DIGITS)["train"].labels) == 60


def test_a_name_that_two_distributions_bring_is_refused_once_it_is_used(install: Install) -> None:
    install("data", DATA, numerals="Numerals", parted="Parted")
    install("data", DATA, "2.1", name="other", numerals="Numerals")
    assert len(load(DataConfig(name="parted"))) == 3
    message = told(lambda: describe(DataConfig(name="numerals")))
    assert "brings 1.0" in message and "other 2.1" in message and "uninstall" in message


def test_what_a_plug_in_tells_the_user_is_told_as_it_is(install: Install) -> None:
    install("data", DATA, files="Files")
    message = told(lambda: describe(DataConfig(name="files")))
    assert message == "data.root: is required for data.name files"


SET = """
import numpy as np
from levit_search.data import ArraySource, DataInfo


class Set:
    def __init__(self, config):
        pass

    def describe(self):
        return DataInfo(1, ("a", "b"), hflip=False, image_size=8)

    def sources(self):
        return {"train": source()}


def source(count=20, kind=np.uint8, labels=None, shape=(1, 8, 8)):
    labels = np.arange(count) % 2 if labels is None else labels
    return ArraySource("set", np.zeros((count, *shape), kind), labels)
"""


def described(text: str) -> str:
    return f"Set.describe = lambda self: {text}"


def given(text: str) -> str:
    return f"Set.sources = lambda self: {text}"


def test_a_data_set_may_bring_rectangles(install: Install) -> None:
    rectangles = described("DataInfo(1, ('a', 'b'), False, (8, 12))")
    arrays = given("{'train': source(40, shape=(1, 8, 12))}")
    install("data", f"{SET}\n{rectangles}\n{arrays}", "0.3", mine="Set")
    splits = load(DataConfig(name="mine"))
    assert splits["train"].images.shape[1:] == (1, 8, 12)
    smaller = load(DataConfig(name="mine", image_size=4))["train"]
    assert smaller.images.shape[1:] == (1, 4, 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("import no_such_module", "cannot be loaded (ModuleNotFoundError: No module named"),
        ("raise ValueError('two\\nlines')", "cannot be loaded (ValueError: two lines)"),
        ("raise SystemExit(3)", "cannot be loaded (ImportError: its module exits (3))"),
        ("del Set", "cannot be loaded (AttributeError: "),
        ("Set = 3", "expected something to call, not 3"),
        ("Set = lambda: None", "cannot be opened (TypeError: "),
        ("Set = lambda config: 1 / 0", "cannot be opened (ZeroDivisionError: "),
        ("Set = lambda config: 5", "expected a data set with describe() and sources(), not 5"),
        (described("1 / 0"), "describe() fails (ZeroDivisionError: "),
        (described("None"), "describe() has to return a DataInfo, not None"),
        (described("DataInfo(2, ('a', 'b'), True, 8)"), "in_channels: expected 1 or 3, not 2"),
        (described("DataInfo(1, 'ab', True, 8)"), "class_names: expected two texts or more"),
        (described("DataInfo(1, None, True, 8)"), "class_names: expected two texts or more"),
        (described("DataInfo(1, ('a', 'a'), True, 8)"), "that differ, not ('a', 'a')"),
        (described("DataInfo(1, ('a', 'b'), None, 8)"), "hflip: expected True or False, not None"),
        (described("DataInfo(1, ('a', 'b'), True, 8.5)"), "image_size: expected 4 to 4096"),
        (described("DataInfo(1, ('a', 'b'), True, (8, 2))"), "(height, width) of them, not (8, 2)"),
        (described("DataInfo(1, ('a', 'b'), True, (8,))"), "image_size: expected 4 to 4096"),
        (
            described("DataInfo(1, ('a', 'b'), True, (8, 12))")
            + "\n"
            + given("{'train': source(shape=(1, 12, 8))}"),
            "images have to be uint8 [20, 1, 8, 12], not uint8 [20, 1, 12, 8]",
        ),
        (given("1 / 0"), "sources() fails (ZeroDivisionError: "),
        (given("[source()]"), "sources() has to return a mapping of splits, not "),
        (given("{}"), "sources() has to have train, not []"),
        (given("{'train': source(), 'valid': source()}"), "unknown split 'valid'; did you mean"),
        (given("{'train': np.zeros(3)}"), "train: expected labels, name, where, open, content"),
        (given("{'train': source(labels=[0] * 20)}"), "labels have to be int64 [N], not a list"),
        (given("{'train': source(labels=np.zeros(20))}"), "int64 [N], not float64 [20]"),
        (given("{'train': source(0)}"), "train: has no images"),
        (given("{'train': source(labels=np.arange(20))}"), "label 19, but the classes are 0 to 1"),
        (given("{'train': source(labels=np.arange(20) % 2 - 1)}"), "train: label -1"),
        (given("{'train': source(kind=float)}"), "uint8 [20, 1, S, S], not float64 [20, 1, 8, 8]"),
        (given("{'train': source(shape=(3, 8, 8))}"), "not uint8 [20, 3, 8, 8]"),
        (given("{'train': source(shape=(1, 8, 9))}"), "not uint8 [20, 1, 8, 9]"),
        (given("{'train': source(labels=np.arange(21) % 2)}"), "uint8 [21, 1, S, S], not"),
    ],
)
def test_a_data_set_that_is_none_is_told_by_group_name_and_distribution(
    change: str, reason: str, install: Install
) -> None:
    install("data", SET + change, "0.3", mine="Set")
    message = told(lambda: load(DataConfig(name="mine")))
    assert message.startswith("plug-in brings 0.3 (levit_search.data): mine: ")
    assert reason in message


# Teachers


@pytest.fixture(scope="module")
def batches() -> Batches:
    return open_batches(DIGITS)


def obtained(
    batches: Batches, folder: Path | None = None, **settings: Any
) -> tuple[TeacherAnswers, dict[str, Any]]:
    config = TeacherConfig(recipe=RECIPE, **settings)
    answers, card = obtain_teacher(config, DIGITS, batches, RECIPE, folder, 0)
    return answers, json.loads(json.dumps(card))


def test_a_plugged_in_teacher_is_trained_kept_and_asked(
    install: Install, batches: Batches, tmp_path: Path
) -> None:
    install("teachers", TEACHERS, small="small")
    answers, card = obtained(batches, tmp_path / "study", name="small", options={"width": 3})
    assert card["plugin"] == {"distribution": "brings", "version": "1.0"}
    assert card["params"] == 256 * 3 + 3 + 3 * 10 + 10 and len(card["curve"]) == 1
    assert answers.id == card["id"]
    for step, batch in enumerate(batches.train(0, 0, RECIPE, torch.device("cpu"))):
        classes = answers(0, 0, step, batch.images)
        assert classes.shape == (20,) and classes.min() >= 0 and classes.max() < 10
    again = obtained(batches, tmp_path / "study", name="small", options={"width": 3})[1]
    assert again == card


def test_another_version_of_a_plug_in_is_another_teacher(
    install: Install, batches: Batches, tmp_path: Path
) -> None:
    info = install("teachers", TEACHERS, small="small")
    older = obtained(batches, tmp_path / "study", name="small")[1]
    (info / "METADATA").write_text("Name: brings\nVersion: 1.1\n")
    newer = obtained(batches, tmp_path / "study", name="small")[1]
    assert older["sha256"] == newer["sha256"]
    assert older["id"] != newer["id"]
    assert len(list((tmp_path / "study").glob("small-*.pt"))) == 2


def test_timms_teachers_are_what_they_were_whatever_is_plugged_in(
    install: Install, batches: Batches, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"name": "regnety_002", "options": SMALL_REGNETY}
    before = obtained(batches, **settings)[1]
    install("teachers", "raise RuntimeError", regnety_002="small")
    assert obtained(batches, **settings)[1] == before
    assert "plugin" not in before


def test_a_file_gives_a_plugged_in_teacher_its_weights(
    install: Install, batches: Batches, tmp_path: Path
) -> None:
    install("teachers", TEACHERS, small="small")
    source = create_teacher(TeacherConfig(name="small"), batches)
    path = tmp_path / "weights.pt"
    torch.save(source.state_dict(), path)
    answers, card = obtained(batches, name="small", weights=str(path))
    images = next(iter(batches.train(0, 0, RECIPE, torch.device("cpu")))).images
    assert torch.equal(answers(0, 0, 0, images), source(images).argmax(1))
    assert "curve" not in card
    torch.save({"other": torch.zeros(1)}, path)
    message = told(lambda: obtained(batches, name="small", weights=str(path)))
    assert message.startswith(f"teacher small: {path} does not fit")


def test_a_pretrained_plug_in_is_shown_the_colours_that_it_declares(
    install: Install, batches: Batches
) -> None:
    install("teachers", TEACHERS, known="known")
    images = next(iter(batches.evaluation("val", 8, torch.device("cpu"))))[0]
    pixels = images * batches.std[0] + batches.mean[0]
    config = TeacherConfig(name="known", weights="pretrained")
    shown = (pixels / 255 - 0.5) / 0.3
    logits = create_teacher(config, batches)(images)
    assert torch.allclose(logits[:, 0], 0.125 * shown.sum((1, 2, 3)) + 0.5, atol=1e-3)
    config = config.model_copy(update={"options": {"colors": False}})
    logits = create_teacher(config, batches)(images)
    assert torch.allclose(logits[:, 0], 0.125 * images.sum((1, 2, 3)) + 0.5, atol=1e-3)
    _, card = obtained(batches, name="known", weights="pretrained")
    assert card["pretrained"] == card["plugin"] == {"distribution": "brings", "version": "1.0"}


def test_unknown_teachers_are_told_what_is_plugged_in(install: Install, batches: Batches) -> None:
    install("teachers", TEACHERS, my_small_net="small")
    message = told(lambda: obtained(batches, name="my_small_nt"))
    assert "unknown teacher 'my_small_nt'; did you mean 'my_small_net'" in message


BUILT = """
from torch import nn


def net(name, num_classes, in_channels, image_size, pretrained=False):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))


def declared(known, net=net):
    def build(**settings):
        model = net(**settings)
        model.pretrained_cfg = known
        return model

    return build
"""


@pytest.mark.parametrize(
    ("change", "weights", "reason"),
    [
        ("1 / 0", "train", "cannot be loaded (ZeroDivisionError: "),
        ("net = 3", "train", "expected something to call, not 3"),
        ("net = lambda: None", "train", "cannot be built (TypeError: "),
        ("net = lambda **_: None", "train", "expected a torch.nn.Module, not None"),
        ("def net(name, num_classes, in_channels, image_size): pass", "pretrained", "'pretrained'"),
        ("", "pretrained", "its pretrained network has no pretrained_cfg"),
        ("net = declared(3)", "pretrained", "expected None, or mean and std of 1 channel(s), not"),
        ("net = declared({'mean': 0.5, 'std': 0.5})", "pretrained", "mean and std of 1 channel"),
        ("net = declared({'mean': (0, 0), 'std': (1, 1)})", "pretrained", "of 1 channel(s)"),
        ("net = declared({'mean': (0,), 'std': (0,)})", "pretrained", "std has to be above 0"),
    ],
)
def test_a_teacher_that_is_none_is_told_by_group_name_and_distribution(
    change: str, weights: str, reason: str, install: Install, batches: Batches
) -> None:
    install("teachers", BUILT + change, mine="net")
    message = told(lambda: obtained(batches, name="mine", weights=weights))
    assert message.startswith("plug-in brings 1.0 (levit_search.teachers): mine: ")
    assert reason in message


def test_a_teacher_without_logits_for_the_classes_is_refused_before_it_is_trained(
    install: Install, batches: Batches
) -> None:
    source = "from torch import nn\n\n\ndef net(**_):\n    return nn.Flatten()\n"
    install("teachers", source, mine="net")
    message = told(lambda: obtained(batches, name="mine"))
    assert message == (
        "teacher mine: has to give logits of shape [1, 10] for an image of the data, not [1, 256]"
    )


# Targets


def test_a_plugged_in_target_is_a_partial_latency_section(install: Install) -> None:
    install("targets", TARGETS, bench="BENCH", desk="DESK", asked="asked")
    bench = read_latency({"target": "bench", "rounds": 4}, "here")
    assert (bench.target.name, bench.target.kind) == ("bench", "command")
    assert (bench.threads, bench.rounds) == (2, 4)
    assert read_latency({"target": "desk"}, "here").target.address == "ssh://me@desk"
    asked = read_latency({"target": "asked"}, "here")
    assert (asked.target.kind, asked.batch_size) == ("command", 16)


def test_a_users_own_targets_and_ours_count_more_than_plugged_in_ones(
    install: Install, tmp_path: Path
) -> None:
    install("targets", TARGETS, bench="BENCH", desk="DESK", **{"paper-arm": "DESK", "cpu": "DESK"})
    (tmp_path / "targets.yaml").write_text(yaml.safe_dump({"bench": "ssh://mine"}))
    assert read_targets().keys() == {"bench", "desk"}
    assert read_latency({"target": "bench"}, "here").target.address == "ssh://mine"
    assert read_latency({"target": "cpu"}, "here").target == LocalTarget()
    assert read_latency({"target": "paper-arm"}, "here").target.machine == "aarch64"


def test_unknown_targets_are_told_what_is_plugged_in(install: Install) -> None:
    install("targets", TARGETS, bench="BENCH")
    message = told(lambda: read_latency({"target": "bnch"}, "here"))
    assert message.startswith("here: unknown target 'bnch'; did you mean 'bench'?")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "cannot be loaded (ModuleNotFoundError: No module named"),
        ("", "cannot be loaded (AttributeError: "),
        ("BAD = 3", "expected a target or a mapping with one, not 3"),
        ("def BAD():\n    return 1 / 0", "fails (ZeroDivisionError: "),
        ("def BAD(where):\n    return {}", "fails (TypeError: "),
        ("def BAD():\n    return [1]", "expected a target or a mapping with one, not [1]"),
        ("BAD = {'thread': 2}", "unknown key 'thread'; did you mean 'threads'?"),
        ("BAD = 'elsewhere'", "unknown target 'elsewhere'"),
    ],
)
def test_a_target_that_is_none_is_told_by_group_name_and_distribution(
    source: str, reason: str, install: Install
) -> None:
    install("targets", source, bad="BAD")
    message = told(lambda: read_latency({"target": "bad"}, "here"))
    assert message.startswith("plug-in brings 1.0 (levit_search.targets): bad: ")
    assert reason in message
    assert read_latency({"target": "cpu"}, "here").target == LocalTarget()


def test_targets_lists_plugged_in_ones_and_why_a_bad_one_is_none(
    install: Install, cli: Cli
) -> None:
    install("targets", TARGETS, bench="BENCH", absent="ABSENT")
    install("targets", "1 / 0", name="other", broken="BROKEN", bench="BENCH2")
    install("targets", TARGETS, name="third", alone="BENCH")
    ended = cli("targets", "--json", "--timeout", 20)
    assert ended.returncode == 0, ended.stderr
    found = {row["name"]: row for row in json.loads(ended.stdout)}
    assert list(found) == ["cpu", "cuda", *PRESETS, "absent", "alone", "bench", "broken"]
    assert found["alone"]["reachable"] and found["alone"]["settings"]["threads"] == 2
    assert "(levit_search.targets): absent: cannot be loaded" in found["absent"]["reason"]
    assert "cannot be loaded (ZeroDivisionError" in found["broken"]["reason"]
    assert {"brings", "other"} <= set(found["bench"]["reason"].split()), "both have the name"


def test_a_study_holds_a_plugged_in_target_in_full(
    install: Install, space_file: Callable[..., Path], tmp_path: Path
) -> None:
    info = install("targets", TARGETS, bench="BENCH")
    path = space_file(latency={"target": "bench"}, objectives=["top1_percent", "latency_ms"])
    config = read_config(path)
    Study.create(tmp_path / "study", config, [])
    (info / "entry_points.txt").unlink()
    assert Study.open(tmp_path / "study").config.latency.threads == 2
    assert "unknown target 'bench'" in told(lambda: read_config(path))


# As a user meets them


def test_a_configuration_is_checked_without_importing_a_plug_in_or_torch(install: Install) -> None:
    install("data", SET, mine="Set")
    program = (
        "import sys\n"
        "from levit_search.data import DataConfig, describe\n"
        "config = DataConfig(name='mine')\n"
        "assert not {'brings', 'torch'} & sys.modules.keys()\n"
        "describe(config)\n"
        "assert 'brings' in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_search_runs_on_plugged_in_data_with_a_plugged_in_teacher(
    install: Install, space_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Its worker is a process of its own."""
    install("data", DATA, numerals="Numerals")
    install("teachers", TEACHERS, name="other", small="small")
    path = space_file(
        data={"name": "numerals", "image_size": 16, "train_images": 256},
        teacher={"name": "small", "recipe": RECIPE.model_dump(mode="json")},
        # Until it is better than guessing.
        train={"epochs": 8, "batch_size": 32, "lr": 5.0e-3, "threads": 1, "device": "cpu"},
    )
    done = subprocess.run(
        command("run", path, "--study", "study", "--trials", 1, "--json"),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (member,) = json.loads(done.stdout)["front"]
    assert 0 < member["top1_percent"] <= 100
    (card,) = (tmp_path / "study" / "teacher").glob("small-*.json")
    assert json.loads(card.read_text())["plugin"]["distribution"] == "other"


def test_a_plug_in_that_cannot_be_imported_ends_a_command_with_2(
    install: Install, cli: Cli, space_file: Callable[..., Path]
) -> None:
    install("data", "import no_such_module", mine="Mine")
    ended = cli("run", space_file(data={"name": "mine"}), "--study", "study")
    assert (ended.returncode, ended.stdout) == (2, "")
    message = "levit-search: plug-in brings 1.0 (levit_search.data): mine: cannot be loaded"
    assert message in ended.stderr
    assert not Path("study").exists()
