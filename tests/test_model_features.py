"""Maps at several scales, as timm's networks give them with ``features_only``."""

from typing import Any

import pytest
import torch

from levit_search.architecture import parse, published
from levit_search.errors import InputError
from levit_search.model import Features, Layout, build, load_weights
from tests.random_networks import images_for, randomised, unfilled
from tests.test_model_layouts import GRAFT, LEVIT, NETWORKS

LAYOUTS = pytest.mark.parametrize("layout", ["tokens", "maps"])


@LAYOUTS
def test_features_of_a_levit_are_those_of_timm(layout: Layout) -> None:
    import timm

    whole = randomised(timm.create_model("levit_128s"))
    theirs = timm.create_model("levit_128s", features_only=True).double().eval()
    missing, _ = theirs.load_state_dict(
        {f"model.{name}": tensor for name, tensor in whole.state_dict().items()}, strict=False
    )
    assert not missing
    model = unfilled(published("LeViT-128S"), layout)
    load_weights(model, whole.state_dict())
    ours = Features(model).double().eval()
    images = images_for(model.architecture).double()
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert [list(x.shape) for x in found] == [[1, 128, 14, 14], [1, 256, 7, 7], [1, 384, 4, 4]]
    for ours_map, timm_map in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_map, timm_map, atol=1e-5, rtol=0)
    assert ours.feature_info.channels() == theirs.feature_info.channels() == [128, 256, 384]
    assert ours.feature_info.reduction() == theirs.feature_info.reduction() == [16, 32, 64]


def test_features_of_a_donor_are_those_of_timm() -> None:
    import timm

    whole = randomised(timm.create_model("resnet50"))
    theirs = timm.create_model("resnet50", features_only=True, out_indices=(1, 2, 3, 4))
    theirs.load_state_dict(whole.state_dict(), strict=False)
    model = unfilled(published("graft-4-0"))
    load_weights(model, whole.state_dict())
    ours = Features(model)
    images = torch.randn(1, 3, 64, 64)  # a ResNet takes any
    with torch.no_grad():
        expected, found = theirs.eval()(images), ours.eval()(images)
    for ours_map, timm_map in zip(found, expected, strict=True):
        assert timm_map.std() > 0.1
        torch.testing.assert_close(ours_map, timm_map, atol=1e-5, rtol=1e-5)
    assert ours.feature_info.channels() == theirs.feature_info.channels()
    assert ours.feature_info.reduction() == theirs.feature_info.reduction() == [4, 8, 16, 32]
    assert ours.feature_info.module_name() == [f"donor.layer{stage}" for stage in (1, 2, 3, 4)]


@pytest.mark.parametrize("data", NETWORKS.values(), ids=NETWORKS)
def test_maps_have_the_channels_and_sizes_that_are_told(data: dict[str, Any]) -> None:
    network = parse(data)
    features = {layout: Features(unfilled(network, layout)) for layout in ("tokens", "maps")}
    randomised(features["tokens"])
    features["maps"].load_state_dict(features["tokens"].state_dict())
    images = images_for(network, 2).double()
    with torch.no_grad():
        tokens, maps = (module.double().eval()(images) for module in features.values())
    info = features["tokens"].feature_info
    assert len(tokens) == len(maps) == len(info.channels())
    for ours, theirs, channels, stride in zip(
        tokens, maps, info.channels(), info.reduction(), strict=True
    ):
        side = -(-network.image_size // stride)
        assert ours.shape == (2, channels, side, side)
        torch.testing.assert_close(theirs, ours, atol=1e-10, rtol=0)
    modules = dict(features["tokens"].model.named_modules())
    assert all(name in modules for name in info.module_name())


@LAYOUTS
def test_the_map_of_a_trunk_is_its_own_tokens_without_the_added_ones(layout: Layout) -> None:
    model = build(parse(GRAFT), layout).eval()
    seen: dict[str, torch.Tensor] = {}
    last = model.trunk.blocks[-1]
    last.register_forward_hook(lambda module, args, output: seen.update(x=output))
    images = images_for(model.architecture, 2)
    trunk_map = Features(model)(images)[-1]
    x_btc = seen["x"].flatten(2).transpose(1, 2) if layout == "maps" else seen["x"]
    assert trunk_map.shape == (2, 24, 8, 8)
    for row, column in ((0, 0), (0, 7), (3, 5)):
        torch.testing.assert_close(trunk_map[:, :, row, column], x_btc[:, 2 + 8 * row + column])


@pytest.mark.parametrize(
    ("indices", "kept"), [((0,), [0]), ((1,), [1]), ((-1,), [1]), ((-2, 1), [0, 1])]
)
def test_out_indices_choose_maps(indices: tuple[int, ...], kept: list[int]) -> None:
    model = build(parse(LEVIT)).eval()
    images = images_for(model.architecture, 2)
    every, chosen = Features(model), Features(model, indices)
    with torch.no_grad():
        expected = [every(images)[index] for index in kept]
        found = chosen(images)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert chosen.feature_info.channels() == [(16, 24)[index] for index in kept]
    assert chosen.feature_info.reduction() == [(4, 8)[index] for index in kept]


@pytest.mark.parametrize("index", [2, -3])
def test_a_map_that_does_not_exist_is_named(index: int) -> None:
    told = rf"no map {index}, only 0 to 1 \(or -1 to -2\)"
    with pytest.raises(InputError, match=told):
        Features(build(parse(LEVIT)), (0, index))
