"""Weights that a donor starts from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from levit_search import architecture
from levit_search.architecture import Architecture
from levit_search.configuration import validated
from levit_search.errors import InputError
from levit_search.model import build, save_weights
from levit_search.pretrained import check_donor_weights, donor_of, load_donor_weights
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.search.evaluate import Evaluator
from levit_search.single import train_single
from levit_search.study import StudyConfig, read_config

DONOR = {"name": "resnet18", "stages": 1, "stem": "small", "width_scale": 0.25}
# Steps too small to be seen, so that what was loaded is what is saved.
STANDING = {"lr": 1e-30, "min_lr": 0, "warmup_lr": 0, "weight_decay": 0, "batch_size": 64}


def graft(**changes: Any) -> Architecture:
    return architecture.parse(
        {
            "family": "graft",
            "image_size": 8,
            "in_channels": 1,
            "num_classes": 10,
            "donor": DONOR,
            "grid": 2,
            "trunk": {"depth": 1, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 2},
            "distillation": False,
            **changes,
        }
    )


def levit(stem: dict[str, Any]) -> Architecture:
    return architecture.parse(
        {
            "image_size": 32,
            "in_channels": 1,
            "num_classes": 10,
            "stem": stem,
            "stages": [{"depth": 1, "embed_dim": 16, "num_heads": 2, "key_dim": 8}],
        }
    )


@pytest.fixture
def donor_file(tmp_path: Path) -> Path:
    """A whole ResNet-18 of a quarter of the width under timm's names."""
    import timm

    torch.manual_seed(7)
    path = tmp_path / "resnet18.safetensors"
    save_weights(timm.create_model("resnet18", in_chans=1, channels=(16, 32, 64, 128)), path)
    return path


def config(path: Path, weights: str) -> StudyConfig:
    """A tiny study on a few digits of 8 px whose training changes no weight."""
    changes = {f"train.{key}": value for key, value in STANDING.items()}
    changes |= {"data.image_size": 8, "data.train_images": 64, "data.val_share": 0.05}
    return read_config(path, {**changes, "train.donor_weights": weights})


def same(model_state: dict[str, torch.Tensor], donor_file: Path) -> bool:
    """Whether the first stage's first convolution is the file's."""
    return torch.equal(
        model_state["donor.layer1.0.conv1.weight"], load_file(donor_file)["layer1.0.conv1.weight"]
    )


def test_donors_are_named() -> None:
    assert donor_of(graft()) == "resnet18"
    assert donor_of(graft(donor=None)) is None
    assert donor_of(levit({"kind": "resnet26", "stages": 1})) == "resnet26"
    assert donor_of(levit({"kind": "conv", "layers": 2})) is None


@pytest.mark.parametrize(
    "spelling", ["{folder}/resnet18.safetensors", "{folder}/{{name}}.safetensors"]
)
def test_the_donors_file_is_loaded(donor_file: Path, spelling: str) -> None:
    model = build(graft())
    load_donor_weights(model, spelling.format(folder=donor_file.parent))
    assert same(model.state_dict(), donor_file)


def test_a_resnet_stem_is_a_donor_too(tmp_path: Path) -> None:
    network = levit({"kind": "resnet18", "stages": 1})
    import timm

    path = tmp_path / "resnet18.safetensors"
    save_weights(timm.create_model("resnet18", in_chans=1), path)
    model = build(network)
    load_donor_weights(model, str(path))
    found = model.state_dict()["stem.resnet.layer1.0.conv1.weight"]
    assert torch.equal(found, load_file(path)["layer1.0.conv1.weight"])


def test_networks_without_a_donor_start_from_scratch(tmp_path: Path) -> None:
    for network in (graft(donor=None), levit({"kind": "conv", "layers": 2})):
        model = build(network)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        load_donor_weights(model, str(tmp_path / "nowhere.safetensors"))
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_no_donor_weights_leave_a_donor_as_it_is() -> None:
    model = build(graft())
    before = model.state_dict()["donor.layer1.0.conv1.weight"].clone()
    load_donor_weights(model, None)
    assert torch.equal(model.state_dict()["donor.layer1.0.conv1.weight"], before)


def test_a_file_that_does_not_fit_is_named_with_the_tensor(donor_file: Path) -> None:
    wide = graft(donor={**DONOR, "width_scale": 0.5})
    with pytest.raises(
        InputError, match=r"resnet18\.safetensors: layer1\S+ has shape \[16\b.*\[32\b"
    ):
        load_donor_weights(build(wide), str(donor_file))


def test_scaled_donors_have_no_pretrained_weights() -> None:
    with pytest.raises(InputError, match="width_scale 1 only"):
        load_donor_weights(build(graft()), "pretrained")


def test_a_missing_file_is_named_for_its_donor(donor_file: Path) -> None:
    pattern = str(donor_file.parent / "{name}.safetensors")
    check_donor_weights(pattern, ["resnet18"])
    check_donor_weights(pattern, [])
    check_donor_weights("pretrained", ["resnet34"])
    check_donor_weights(None, ["resnet34"])
    with pytest.raises(InputError, match=r"train\.donor_weights: .*resnet34\.safetensors: no such"):
        check_donor_weights(pattern, ["resnet18", "resnet34"])


def test_a_teacher_takes_no_donor_weights() -> None:
    assert Recipe().donor_weights is None
    with pytest.raises(InputError, match=r"teacher: recipe\.donor_weights"):
        validated(TeacherConfig, {"recipe": {"donor_weights": "pretrained"}}, "teacher")
    with pytest.raises(ValidationError, match="donor_weights"):
        Recipe(donor_weights="")


def test_a_candidate_is_trained_from_them(
    space_file: Callable[..., Path], donor_file: Path, tmp_path: Path
) -> None:
    settings = config(space_file(), str(donor_file.parent / "{name}.safetensors"))
    evaluator = Evaluator(settings, tmp_path, {})
    evaluator.prepare(graft(), lambda text, fraction: None)
    evaluator.evaluate(graft(), lambda text, fraction: None)
    weights = load_file(tmp_path / "checkpoints" / f"{graft().id}.safetensors")
    assert same(weights, donor_file)
    wide = graft(donor={**DONOR, "width_scale": 0.5})
    with pytest.raises(InputError, match="has shape"):
        evaluator.evaluate(wide, lambda text, fraction: None)
    evaluator.close()


def test_a_network_on_its_own_is_trained_from_them(
    space_file: Callable[..., Path], donor_file: Path, tmp_path: Path
) -> None:
    settings = config(space_file(), str(donor_file))
    train_single(graft(), settings, False, tmp_path / "out", None, lambda text: None)
    assert same(load_file(tmp_path / "out" / "model.safetensors"), donor_file)


def test_a_network_on_its_own_needs_its_file(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    settings = config(space_file(), str(tmp_path / "{name}.safetensors"))
    with pytest.raises(InputError, match=r"resnet18\.safetensors: no such file"):
        train_single(graft(), settings, False, None, None, lambda text: None)
