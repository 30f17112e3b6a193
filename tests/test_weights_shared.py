"""Weights that come of generated pictures: how they are trained, and what starts from them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from levit_search import pretrained
from levit_search.architecture import Levit, parse
from levit_search.data import generated as generation
from levit_search.errors import InputError
from levit_search.files import write_checksummed
from levit_search.model import build, load_exactly
from levit_search.pretrained import find_source, pinned, start_from, weights_digest
from levit_search.search import driver
from levit_search.space import Limits, envelope_of, extremes_of
from levit_search.study import read_config
from levit_search.supernet import Elastic, read_card
from levit_search.supernet.elastic import skeleton
from levit_search.train import seed_torch
from tests.conftest import Cli
from tests.engines import HereEngine
from tests.networks import tiny_space

FEW = ("--set", "train.batch_size=16", "--set", "supernet.val_images=16")


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "EPOCH_IMAGES", 64)
    monkeypatch.setattr("levit_search.batches.batch.EPOCH_IMAGES", 64)
    monkeypatch.setattr(generation, "_HELD_OUT", 16)


def space_file(folder: Path, **sections: Any) -> Path:
    described = tiny_space(**sections)
    architecture: Any = described["architecture"]
    architecture["stem"] = {"kind": "conv", "layers": {"choices": [1, 2]}}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(described))
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs the study of :func:`trained` leaves it to the others."""
    return tmp_path_factory.mktemp("kept") / "shared"


@pytest.fixture
def trained(tmp_path: Path, cli: Cli, kept: Path) -> Path:
    """A study with shared weights of generated pictures."""
    space = space_file(tmp_path)
    if kept.exists():
        return Path(shutil.copytree(kept, tmp_path / "shared"))
    done = cli(
        *("supernet", space, "--data", "generated", "--epochs", 2, "--study", "shared", "--json"),
        *("--set", "supernet.whole_epochs=1", *FEW),
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["curve"]) == 2
    shutil.copytree(tmp_path / "shared", kept)
    return tmp_path / "shared"


def network(**changes: Any) -> Levit:
    stages = [
        {"depth": 1, "embed_dim": 8, "num_heads": 1, "key_dim": 8},
        {"depth": 2, "embed_dim": 24, "num_heads": 2, "key_dim": 8},
    ]
    sizes = {"image_size": 16, "in_channels": 3, "num_classes": 5}
    stem = {"kind": "conv", "layers": 2}
    found = parse({**sizes, "stem": stem, "stages": stages, **changes})
    assert isinstance(found, Levit)
    return found


def test_a_network_starts_from_its_slice(trained: Path) -> None:
    card = read_card(trained / "supernet")
    config = read_config(trained / "study.yaml")
    elastic = Elastic(envelope_of(config.space()))
    load_exactly(elastic, trained / "supernet" / "weights.safetensors")
    for layers in (1, 2):
        model = build(network(stem={"kind": "conv", "layers": layers}))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        told = start_from(model, str(trained))
        assert told is not None
        assert "head" in told
        assert "fresh" in told
        member = network(stem={"kind": "conv", "layers": layers}, num_classes=400)
        parts = elastic.parts(skeleton(member))
        for name, tensor in model.named_parameters():
            wanted = before[name] if name.startswith("head") else parts[name]
            assert torch.equal(tensor, wanted), name
    assert set(card["bounds"]) == {"conv1", "conv2"}


def test_grey_images_of_another_size_start_from_them_too(trained: Path) -> None:
    model = build(network(image_size=24, in_channels=1))
    assert start_from(model, str(trained / "supernet")) is not None
    source = find_source(str(trained), network())
    first = source.state["stem.convs.0.conv.weight"]
    own = model.state_dict()["stem.convs.0.conv.weight"]
    assert torch.allclose(own[:, 0], first.sum(1)[: len(own)], atol=1e-6)
    assert model(torch.zeros(2, 1, 24, 24))[0].shape == (2, 5)


def test_a_wider_network_starts_fresh_with_the_reason(trained: Path) -> None:
    wide = network(stages=[{"depth": 1, "embed_dim": 64, "num_heads": 1, "key_dim": 8}])
    seed_torch(0)
    model = build(wide)
    with pytest.warns(UserWarning, match="no more than the source's"):
        told = start_from(model, str(trained))
    assert told is not None
    assert told.startswith("fresh weights")


def test_the_largest_learns_alone_at_first(trained: Path, tmp_path: Path, cli: Cli) -> None:
    """Its first epoch is the same whatever comes later; that of a sandwich is another."""
    curve = read_card(trained / "supernet")["curve"]
    losses = []
    for whole in (1, 0):
        done = cli(
            *("supernet", tmp_path / "tiny.yaml", "--data", "generated", "--epochs", 2, "--json"),
            *("--study", f"whole{whole}", "--set", f"supernet.whole_epochs={whole}", *FEW),
        )
        losses.append([point["train_loss"] for point in json.loads(done.stdout)["curve"]])
    assert losses[0][0] == curve[0]["train_loss"]
    assert losses[1][0] != curve[0]["train_loss"]


def test_a_teacher_with_classes_of_its_own_is_learnt_from(tmp_path: Path, cli: Cli) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.new("RGB", (30, 20), (80 * number, 10, 200)).save(pictures / f"{number}.png")
    network = timm.create_model("test_resnet", num_classes=1000)
    save_file(network.state_dict(), tmp_path / "teacher.safetensors")
    done = cli(
        *("supernet", space_file(tmp_path), "--data", "generated", "--epochs", 1, "--json"),
        *("--pictures", pictures, "--teacher", "test_resnet", "--study", "taught"),
        *("--set", "teacher.weights=teacher.safetensors", "--set", "teacher.image_size=32"),
        *("--set", "supernet.whole_epochs=0", *FEW),
    )
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)
    assert card["taught_classes"] == 1000
    assert card["teacher"].startswith("test_resnet")
    assert start_from(build(network_of_one_head()), str(tmp_path / "taught")) is not None


def network_of_one_head() -> Levit:
    return network(distillation=False)


def test_a_search_starts_from_them_and_notes_it(
    trained: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", HereEngine)
    space = space_file(tmp_path, weights="shared")
    done = cli("run", space, "--study", "search", "--set", "weights=shared", "--trials", 2)
    assert done.returncode == 2
    assert "no shared weights of a space 'tiny'" in done.stderr
    done = cli("run", space, "--study", "search", "--set", f"weights={trained}", "--trials", 2)
    assert done.returncode == 0, done.stderr
    from levit_search.study import Study

    records = Study.open(tmp_path / "search").records()
    told = [record.evaluation["training"]["started_from"] for record in records]
    assert all("% of the weights from" in each for each in told)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "digits"), "--data digits: expected generated"),
        (("--teacher", "test_resnet"), "go with --data generated"),
        (("--pictures", "."), "go with --data generated"),
        (("--data", "generated", "--pictures", "."), "give a --teacher to learn from"),
        (("--data", "generated/contour"), "generated/contours"),
        (("--data", "generated/crops"), "has no labels to learn; it goes with a teacher"),
    ],
)
def test_what_goes_with_generated_pictures_alone(
    tmp_path: Path, cli: Cli, arguments: tuple[str, ...], message: str
) -> None:
    done = cli("supernet", space_file(tmp_path), *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_classes_of_its_own_are_refused_elsewhere(tmp_path: Path, cli: Cli) -> None:
    teacher = {"name": "test_resnet", "weights": "pretrained", "adapt": "own"}
    done = cli("run", space_file(tmp_path, teacher=teacher), "--trials", 1)
    assert done.returncode == 2
    assert "teacher.adapt: own is for shared weights" in done.stderr


def test_damaged_and_earlier_ones_are_named(trained: Path) -> None:
    weights = trained / "supernet" / "weights.safetensors"
    before = weights_digest(str(trained))
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 1
    weights.write_bytes(bytes(raw))
    assert weights_digest(str(trained)) != before
    with pytest.raises(InputError, match="damaged"):
        find_source(str(trained), network())
    card = read_card(trained / "supernet")
    del card["bounds"]
    write_checksummed(trained / "supernet" / "card.json", card)
    weights.touch()
    with pytest.raises(InputError, match="earlier release"):
        find_source(str(trained), network())


def test_a_search_keeps_the_supernet_that_it_began_with(trained: Path) -> None:
    assert pinned(str(trained)) == str(trained / "supernet")
    assert find_source(pinned(str(trained)), network()).is_shared


def test_reading_them_draws_no_random_numbers(trained: Path) -> None:
    seed_torch(3)
    before = torch.get_rng_state()
    find_source(str(trained), network())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_largest_cannot_be_all_that_learns(tmp_path: Path, cli: Cli) -> None:
    done = cli(
        *("supernet", space_file(tmp_path), "--data", "generated", "--epochs", 2),
        *("--set", "supernet.whole_epochs=2"),
    )
    assert done.returncode == 2
    assert "supernet.whole_epochs: 2 of 2 epochs leave none" in done.stderr


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 64, 96])
def test_all_of_photos_starts_from_the_weights_in_the_package(channels: int, size: int) -> None:
    photos = read_config(Path(__file__).parents[1] / "spaces" / "photos.yaml")
    assert photos.train.weights == "shared/photos"
    sizes = {"image_size": size, "in_channels": channels, "num_classes": 7}
    space = photos.model_copy(
        update={"architecture": {**photos.architecture, **sizes}, "limits": Limits()}
    ).space()
    for ends in extremes_of(space, envelope_of(space)).values():
        for network in ends:
            told = start_from(build(network), photos.train.weights)
            assert told is not None
            assert float(told.split(" %")[0]) > 70, told


def test_the_weights_in_the_package_are_small_and_have_their_card() -> None:
    folder = Path(pretrained.__file__).parent / "shared_weights" / "photos"
    assert (folder / "weights.safetensors").stat().st_size <= 10 * 10**6
    card = read_card(folder)
    assert "Apache-2.0" in card["licence"]
    commands = [session["command"] for session in card["made"]]
    assert all(command[1] == "supernet" for command in commands)
    assert not any(part.startswith("/") for command in commands for part in command)
    assert card["curve"][-1]["epoch"] == card["epochs"]
