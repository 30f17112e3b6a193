"""A donor's weights from timm's ResNets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from levit_search.architecture import parse
from levit_search.errors import InputError
from levit_search.model import Model, build, load_donor
from tests.random_networks import randomised

SOURCE = "resnet18"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return dict(randomised(timm.create_model(SOURCE)).state_dict())


def graft(trunk: dict[str, Any] | None = None, **donor: object) -> Model:
    return build(
        parse(
            {
                "family": "graft",
                "image_size": 32,
                "num_classes": 5,
                "donor": {"name": SOURCE, "stages": 2, **donor},
                "trunk": trunk or {"depth": 1, "embed_dim": 16, "num_heads": 2},
                "grid": 4,
            }
        )
    )


def assert_loaded(head: torch.nn.Module, weights: dict[str, Tensor], *left_out: str) -> None:
    state = head.state_dict()
    assert len(state) > 20
    for name, tensor in state.items():
        assert (name in left_out) != (
            tensor.shape == weights[name].shape and torch.equal(tensor, weights[name])
        ), name


def as_torch(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "donor.pth")
    return folder / "donor.pth"


def as_nested(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"model": state, "epoch": 3}, folder / "donor.pt")
    return folder / "donor.pt"


def as_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "donor.safetensors")
    return folder / "donor.safetensors"


@pytest.mark.parametrize("save", [None, as_torch, as_nested, as_safetensors])
def test_a_donor_takes_its_weights_and_leaves_the_rest(
    save: Callable[[dict[str, Tensor], Path], Path] | None,
    weights: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    model = graft()
    trunk = {n: t.clone() for n, t in model.state_dict().items() if not n.startswith("donor.")}
    assert load_donor(model, weights if save is None else save(weights, tmp_path)) == []
    assert_loaded(model.donor, weights)
    after = model.state_dict()
    assert trunk and all(torch.equal(after[name], tensor) for name, tensor in trunk.items())


def test_the_first_convolution_of_a_small_stem_stays_and_is_named(
    weights: dict[str, Tensor],
) -> None:
    model = graft(stem="small")
    before = model.donor.conv1.weight.clone()
    assert load_donor(model, weights) == ["conv1.weight"]
    assert torch.equal(model.donor.conv1.weight, before)
    assert_loaded(model.donor, weights, "conv1.weight")


@pytest.mark.parametrize("cut", [{"stages": 1}, {"layers": 8}, {"layers": 10}])
def test_a_resnet_stem_takes_weights_up_to_its_cut(
    cut: dict[str, int], weights: dict[str, Tensor]
) -> None:
    stage = {"depth": 1, "embed_dim": 16, "num_heads": 2, "key_dim": 8}
    stem = {"kind": SOURCE, **cut}
    model = build(parse({"image_size": 32, "num_classes": 5, "stem": stem, "stages": [stage]}))
    assert load_donor(model, weights) == []
    assert_loaded(model.stem.resnet, weights)


def under_stem(**stem: object) -> Model:
    stage = {"depth": 1, "embed_dim": 16, "num_heads": 2, "key_dim": 8}
    stem = {"kind": SOURCE, "stages": 2, **stem}
    return build(parse({"image_size": 32, "num_classes": 5, "stem": stem, "stages": [stage]}))


def test_a_resnet_stem_on_the_small_stem_keeps_its_first_convolution(
    weights: dict[str, Tensor],
) -> None:
    model = under_stem(stem="small")
    assert load_donor(model, weights) == ["conv1.weight"]
    assert_loaded(model.stem.resnet, weights, "conv1.weight")


def test_a_narrow_resnet_stem_takes_weights_of_its_width_alone(weights: dict[str, Tensor]) -> None:
    model = under_stem(width_scale=0.25)
    with pytest.raises(InputError, match="donor resnet18: pretrained weights have width_scale 1"):
        load_donor(model, None)
    with pytest.raises(InputError, match=r"^donor weights: layer1.0.conv1.weight has shape"):
        load_donor(model, weights)
    narrow = timm.create_model(SOURCE, channels=(16, 32, 64, 128)).state_dict()
    assert load_donor(model, narrow) == []
    assert_loaded(model.stem.resnet, narrow)


@torch.no_grad()
@pytest.mark.parametrize("width", [128, 24], ids=["as it is", "projected"])
@pytest.mark.parametrize(
    ("kind", "layers", "block"),
    [("resnet18", 8, "layer2.1"), ("resnet26", 11, "layer2.1"), ("resnet26", 12, "layer2.1")],
)
def test_a_cut_stem_gives_what_timm_has_there(
    kind: str, layers: int, block: str, width: int
) -> None:
    """Inside a block; the activation there is left to what follows, unless that is a projection."""
    whole = randomised(timm.create_model(kind)).eval()
    stage = {"depth": 1, "embed_dim": width, "num_heads": 2, "key_dim": 8}
    stem = {"kind": kind, "layers": layers}
    model = build(parse({"image_size": 32, "num_classes": 5, "stem": stem, "stages": [stage]}))
    load_donor(model, whole.state_dict())
    images = torch.randn(2, 3, 32, 32)

    x = whole.maxpool(whole.act1(whole.bn1(whole.conv1(images))))
    x = whole.layer2[0](whole.layer1(x))
    last = 2 if layers == 12 else 1
    for number in range(1, last + 1):
        cut = whole.get_submodule(block)
        x = cut.get_submodule(f"bn{number}")(cut.get_submodule(f"conv{number}")(x))
        if number < last or width != 128:
            x = x.relu()
    assert (x.min() < 0) == (width == 128)
    torch.testing.assert_close(model.stem.resnet.eval()(images), x)
    is_projected = any(name.startswith("projection") for name, _ in model.stem.named_parameters())
    assert is_projected == (width != 128)


def test_weights_of_another_width_are_named_with_both_shapes(weights: dict[str, Tensor]) -> None:
    model = graft(width_scale=0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    told = r"^donor weights: layer1.0.conv1.weight has shape \[64, 64, 3, 3\], .* \[32, 64, 3, 3\]$"
    with pytest.raises(InputError, match=told):
        load_donor(model, weights)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_of_another_resnet_are_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = as_safetensors(weights, tmp_path)
    told = rf"^{path}: layer1.0.conv1.weight has shape \[64, 64, 3, 3\], .* \[64, 64, 1, 1\]$"
    with pytest.raises(InputError, match=told):
        load_donor(graft(name="resnet50", stages=1), path)


def test_weights_that_end_before_the_donor_are_named(weights: dict[str, Tensor]) -> None:
    fewer = {name: tensor for name, tensor in weights.items() if not name.startswith("layer2")}
    told = r"^donor weights: layer2.0.conv1.weight is missing \(30 missing, 0 unexpected\)$"
    with pytest.raises(InputError, match=told):
        load_donor(graft(), fewer)


@pytest.mark.parametrize("file_name", ["nothing.pth", "nothing.safetensors"])
def test_a_file_that_is_not_there_is_named(file_name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=file_name):
        load_donor(graft(), tmp_path / file_name)


def test_a_network_without_a_resnet_has_no_donor(weights: dict[str, Tensor]) -> None:
    stage = {"depth": 1, "embed_dim": 16, "num_heads": 2, "key_dim": 8}
    levit = {"image_size": 32, "num_classes": 5, "stem": {"layers": 2}, "stages": [stage]}
    for model in (build(parse(levit)), graft(stages=0)):
        with pytest.raises(InputError, match="has no ResNet"):
            load_donor(model, weights)


def creating(monkeypatch: pytest.MonkeyPatch, pretrained: Callable[..., Any]) -> None:
    """Let timm make pretrained networks by ``pretrained``, all others as ever; no network."""
    create = timm.create_model

    def create_model(name: str, pretrained_: bool = False, **options: Any) -> Any:
        if options.pop("pretrained", pretrained_):
            return pretrained(name, **options)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_pretrained_weights_come_from_timm_for_the_channels_of_the_images(
    monkeypatch: pytest.MonkeyPatch, stem: str, weights: dict[str, Tensor]
) -> None:
    asked = []

    def create(name: str, **options: Any) -> torch.nn.Module:
        asked.append((name, options))
        whole = timm.create_model(name)
        whole.load_state_dict(weights)
        return whole

    creating(monkeypatch, create)
    model = graft(stem=stem)
    left_out = ["conv1.weight"] if stem == "small" else []
    assert load_donor(model, None) == left_out
    assert asked == [(SOURCE, {"in_chans": 3})]
    assert_loaded(model.donor, weights, *left_out)


@pytest.mark.parametrize("error", [OSError("no route to host\nmore"), RuntimeError("")])
def test_pretrained_weights_that_are_not_to_be_had_are_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(name: str, **options: Any) -> None:
        raise error

    model = graft()
    creating(monkeypatch, fail)
    with pytest.raises(InputError) as raised:
        load_donor(model, None)
    reason = "no route to host" if str(error) else "RuntimeError"
    assert str(raised.value) == f"timm's pretrained resnet18: not to be had ({reason})"


def test_there_are_no_pretrained_weights_of_another_width() -> None:
    with pytest.raises(InputError, match="donor resnet18: pretrained weights have width_scale 1"):
        load_donor(graft(width_scale=0.5), None)
