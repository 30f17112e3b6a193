"""Which networks' weights a file holds, where nothing but its tensors tells."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from levit_search import pretrained
from levit_search.architecture import Graft, Levit, parse, published
from levit_search.errors import InputError, UnknownNameError
from levit_search.image_size import Sides, sides
from levit_search.model import Model, build, save_weights, transfer
from levit_search.model.importance import blocks_of, grids_of
from levit_search.model.source import TrainedWeights, inferred, source_of
from levit_search.pretrained import find_source, weights_digest
from tests.random_networks import random_network, randomised
from tests.test_weights import Bomb, ReleasedLevit, assert_same_logits, small, timm_model

SIZES = ("128s", "128", "192", "256", "384", "384_s8", "512_s8", "512", "256d", "512d")
LEVITS = [f"levit_{conv}{size}" for conv in ("", "conv_") for size in SIZES]


def on_meta(name: str, **options: Any) -> nn.Module:
    """A network of timm's without memory for its weights."""
    import timm

    with torch.device("meta"):
        model = timm.create_model(name, **options)
    assert isinstance(model, nn.Module)
    return model


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Of all tensors, linear layers and 1x1 convolutions being one."""
    found = []
    for tensor in model.state_dict().values():
        shape = tuple(tensor.shape)
        found.append(shape[:2] if shape[2:] == (1, 1) else shape)
    return sorted(found)


def test_timm_has_no_levits_that_are_not_tried_here() -> None:
    import timm

    assert sorted(LEVITS) == sorted(timm.list_models("levit_*"))


@pytest.mark.parametrize("name", LEVITS)
def test_each_of_timms_levits_is_told_by_its_tensors(name: str) -> None:
    from timm.models.levit import model_cfgs

    theirs = on_meta(name)
    network = inferred(theirs.state_dict(), name)
    assert isinstance(network, Levit) and network.image_size == 224
    described = model_cfgs[name.replace("_conv", "")]
    for stage, width, heads, depth in zip(
        network.stages,
        described["embed_dim"],
        described["num_heads"],
        described["depth"],
        strict=True,
    ):
        assert (stage.embed_dim, stage.num_heads, stage.depth) == (width, heads, depth)
        assert stage.key_dim == described["key_dim"]
    # timm's word for hardswish is hard_swish, and nothing is said of what all have.
    assert (network.activation == "silu") == (described.get("act_layer") == "silu")
    assert network.activation == network.attention_activation
    with torch.device("meta"):
        assert shapes(build(network)) == shapes(theirs)


@pytest.mark.parametrize(
    ("timm_name", "name"),
    [("levit_128s", "LeViT-128S"), ("levit_256", "LeViT-256"), ("levit_conv_384", "LeViT-384")],
)
def test_the_papers_networks_are_found_again(timm_name: str, name: str) -> None:
    found = inferred(on_meta(timm_name).state_dict())
    # How often a branch is dropped in training is in no tensor.
    assert found == published(name).model_copy(update={"drop_path": 0.0})


def test_a_levit_of_another_size_is_told_by_its_attention_biases() -> None:
    assert inferred(on_meta("levit_128s", img_size=160).state_dict()).image_size == 160
    narrow = inferred(on_meta("levit_192", in_chans=1, num_classes=7).state_dict())
    assert (narrow.in_channels, narrow.num_classes) == (1, 7)


@pytest.mark.parametrize(
    ("name", "depth", "width", "distillation"),
    [
        ("deit_tiny_patch16_224", 12, 192, False),
        ("deit_small_distilled_patch16_224", 12, 384, True),
        ("deit_base_patch16_384", 12, 768, False),
    ],
)
def test_deits_are_told_by_their_tensors(
    name: str, depth: int, width: int, distillation: bool
) -> None:
    network = inferred(on_meta(name).state_dict())
    assert isinstance(network, Graft) and network.trunk is not None
    assert network.image_size == int(name[-3:]) and network.distillation == distillation
    trunk = network.trunk
    assert (trunk.depth, trunk.embed_dim, trunk.num_heads) == (depth, width, width // 64)


@pytest.mark.parametrize("name", ["resnet18", "resnet26", "resnet34", "resnet50"])
def test_resnets_are_told_by_their_tensors(name: str) -> None:
    network = inferred(on_meta(name, num_classes=11).state_dict())
    assert isinstance(network, Graft) and network.donor is not None
    assert (network.donor.name, network.donor.stages, network.num_classes) == (name, 4, 11)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet101", "layer1 to layer4 have 3-4-23-3 bottlenecks; known are resnet18"),
        ("resnet50d", "conv1.weight is missing"),
        ("deit3_small_patch16_224", "pos_embed is for 195 tokens or offsets, which form no square"),
        ("vit_tiny_r_s16_p8_224", "patch_embed.backbone.conv.weight is not of this network"),
        ("mobilenetv3_small_050", "the first tensor is called 'conv_stem.weight'"),
        ("swin_tiny_patch4_window7_224", "the first tensor is called"),
    ],
)
def test_another_family_is_refused_and_told_by_a_tensor(name: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as raised:
        source_of(on_meta(name).state_dict(), "weights.pth")
    assert "weights.pth" in str(raised.value)


@pytest.mark.parametrize("use_conv", [False, True])
def test_timms_weights_in_a_file_give_timms_logits(use_conv: bool, tmp_path: Path) -> None:
    from timm.models.levit import LevitDistilled

    theirs = randomised(
        LevitDistilled(
            48,
            num_classes=5,
            embed_dim=(32, 48),
            key_dim=8,
            depth=(2, 1),
            num_heads=(3, 2),
            stem_type="s8",
            use_conv=use_conv,
        )
    )
    save_file(theirs.state_dict(), tmp_path / "levit.safetensors")
    source = find_source(str(tmp_path / "levit.safetensors"))
    model = build(source.architecture)
    model.load_state_dict(dict(source.state))
    assert_same_logits(model, theirs, size=48)


def resized_by_axis(bias_hn: torch.Tensor, before: Sides, after: Sides) -> torch.Tensor:
    """Attention biases [H, R S] for another grid, by numpy's interpolation of one axis at a time:
    an offset is the same share of the image, beyond the last one that one counts."""
    grid = bias_hn.double().unflatten(1, before).numpy()
    for axis, (old, new) in enumerate(zip(before, after, strict=True), start=1):
        places = np.arange(new) * old / new
        grid = np.apply_along_axis(
            lambda line, at, known: np.interp(at, known, line), axis, grid, places, np.arange(old)
        )
    return torch.from_numpy(grid).flatten(1)


def of_size(network: Levit, size: int | tuple[int, int]) -> Levit:
    found = parse({**network.model_dump(mode="json"), "image_size": size})
    assert isinstance(found, Levit)
    return found


def started(source: TrainedWeights, size: int | tuple[int, int]) -> Model:
    assert isinstance(source.architecture, Levit)
    model = build(of_size(source.architecture, size))
    transfer(source, model)
    return model


SMALLEST = ("levit_128s", "levit_conv_128s")


@pytest.mark.parametrize(
    "name",
    [each if each in SMALLEST else pytest.param(each, marks=pytest.mark.slow) for each in LEVITS],
)
def test_networks_of_any_size_start_from_each_of_timms_levits(name: str, tmp_path: Path) -> None:
    theirs = randomised(timm_model(name))
    save_file(theirs.state_dict(), tmp_path / "levit.safetensors")
    source = find_source(str(tmp_path / "levit.safetensors"))
    assert isinstance(source.architecture, Levit)
    assert_same_logits(started(source, 224), theirs, size=224)
    for size in (160, (160, 224)):
        model = started(source, size)
        network = of_size(source.architecture, size)
        both = source.architecture, network
        places = [(grids_of(each), blocks_of(each)) for each in both]
        state, expected = model.state_dict(), dict(source.state)
        for key, kept in source.state.items():
            own = state[key]
            if not key.endswith("attention_bias"):
                assert torch.equal(own, kept), key
                continue
            assert torch.equal(own[:, 0], kept[:, 0]), "offset 0 stays as it is"
            block = key.partition(".attention.")[0]
            grids = [of_stage[blocks[block][1]] for of_stage, blocks in places]
            assert own.shape[1] == grids[1][0] * grids[1][1] < kept.shape[1]
            expected[key] = resized_by_axis(kept, *grids)
            torch.testing.assert_close(own.double(), expected[key], atol=1e-5, rtol=1e-5)
        reference = build(network)
        reference.load_state_dict(expected)
        images = torch.randn(1, 3, *sides(size))
        with torch.no_grad():
            ours, wanted = model.eval()(images), reference.eval()(images)
        # Biases are rounded in other places, which deep networks of random weights make much of.
        assert (ours - wanted).abs().max() < 0.01 * wanted.std()


def test_released_weights_are_told_by_their_tensors(tmp_path: Path) -> None:
    network = small()
    theirs = randomised(ReleasedLevit(network))
    torch.save({"model": theirs.state_dict(), "epoch": 3}, tmp_path / "released.pth")
    source = find_source(str(tmp_path / "released.pth"))
    assert source.architecture == network
    model = build(network)
    model.load_state_dict(dict(source.state))
    assert_same_logits(model, theirs, size=48)


def test_our_own_weights_are_told_by_their_tensors(tmp_path: Path) -> None:
    network = parse({**small().model_dump(mode="json"), "distillation": False})
    save_weights(randomised(build(network)), tmp_path / "ours.safetensors")
    assert find_source(str(tmp_path / "ours.safetensors")).architecture == network


@pytest.mark.parametrize("seed", range(8))
def test_a_description_beside_weights_is_believed(seed: int, tmp_path: Path) -> None:
    """Position embeddings, layer norm, ResNet stems and grafts are in no name that is looked at."""
    network = random_network(seed)
    save_weights(build(network), tmp_path / "model.safetensors")
    (tmp_path / "architecture.yaml").write_text(network.to_yaml())
    for named in (tmp_path, tmp_path / "model.safetensors"):
        assert find_source(str(named)).architecture == network


def test_a_description_of_another_network_is_refused(tmp_path: Path) -> None:
    save_weights(build(small()), tmp_path / "model.safetensors")
    other = parse({**small().model_dump(mode="json"), "num_classes": 6})
    (tmp_path / "architecture.yaml").write_text(other.to_yaml())
    with pytest.raises(InputError, match=r"head\.linear\.weight has shape \[5, 32\].*\[6, 32\]"):
        find_source(str(tmp_path))


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pth: there is no such thing; expected fresh"):
        find_source(str(tmp_path / "nowhere.pth"))
    with pytest.raises(InputError, match=r"a folder with model\.safetensors"):
        find_source(str(tmp_path))
    with pytest.raises(InputError, match="there is no such thing"):
        find_source(f"{tmp_path}#3")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    save_weights(build(small()), path)
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"ours\.safetensors: damaged"):
        find_source(str(path))


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    torch.save({"model": Bomb(mark)}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"evil\.pth: not a readable checkpoint"):
        find_source(str(tmp_path / "evil.pth"))
    assert not mark.exists()


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = build(small())
    with torch.no_grad():
        model.get_parameter("head.linear.bias")[2] = torch.nan
    save_file(model.state_dict(), tmp_path / "ours.safetensors")
    with pytest.raises(InputError, match=r"head\.linear\.bias has values that are no finite"):
        find_source(str(tmp_path / "ours.safetensors"))


def test_a_tensor_too_few_or_of_another_shape_is_named() -> None:
    state = build(small()).state_dict()
    del state["shrinks.0.attention.query.linear.weight"]
    with pytest.raises(
        InputError, match=r"shrinks\.0\.attention\.query\.linear\.weight is missing"
    ):
        source_of(state, "weights")
    state = build(small()).state_dict()
    name = "stages.0.blocks.1.mlp.expand.linear.weight"
    state[name] = state[name][:-1]
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.expand\.linear\.weight has shape \[31"):
        source_of(state, "weights")
    state["stages.1.blocks.0.attention.core.attention_bias"] = torch.zeros(2, 10)
    with pytest.raises(InputError, match="10 tokens or offsets, which form no square"):
        source_of(state, "weights")


def test_weights_for_rectangles_need_their_description(tmp_path: Path) -> None:
    network = parse({**small().model_dump(), "image_size": (16, 24)})
    state = build(network).state_dict()
    with pytest.raises(InputError, match=r"form no square, and no shape tells a rectangle.*beside"):
        source_of(state, "weights")
    assert source_of(state, "weights", network).architecture == network
    deit = on_meta("deit_tiny_patch16_224", img_size=(32, 48)).state_dict()
    with pytest.raises(InputError, match="pos_embed is for 6 tokens or offsets, which form no"):
        inferred(deit)


def test_a_name_of_timms_that_is_none_gets_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"levit_256\.fb_dist_in1k"):
        find_source("levit_256.fb_dist_in2k")
    with pytest.raises(UnknownNameError, match="levit_512"):  # timm never trained this one
        find_source("timm/levit_512")


def test_a_name_of_timms_is_loaded_through_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which here stands for the hub: it has the one network and is out of reach after that."""
    import timm

    theirs = timm.create_model("resnet18", num_classes=3)
    answers = iter([theirs])

    def create_model(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if not pretrained:
            return original(name, **options)
        assert name.startswith("resnet")
        for answer in answers:
            return answer
        raise OSError("no route to the hub\nand more")

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create_model)
    source = find_source("timm/resnet18.a1_in1k")
    assert source.name == "resnet18.a1_in1k"
    assert torch.equal(source.state["donor.conv1.weight"], theirs.state_dict()["conv1.weight"])
    with pytest.raises(InputError, match=r"not to be had \(no route to the hub\)"):
        find_source("resnet34.a1_in1k")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    pretrained._of_timm.cache_clear()


def test_the_digest_follows_the_content_and_not_the_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_weights(build(small()), one)
    two.write_bytes(one.read_bytes())
    assert weights_digest(str(one)) == weights_digest(str(two))
    save_weights(build(small()), two)
    assert weights_digest(str(one)) != weights_digest(str(two))
    assert weights_digest("levit_128s.fb_dist_in1k") != weights_digest("levit_192.fb_dist_in1k")
