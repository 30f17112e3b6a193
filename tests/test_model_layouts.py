"""Tokens and maps: one network with one set of weights, laid out in two ways."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from levit_search.architecture import Architecture, parse, published
from levit_search.model import Layout, Model, build, export_onnx, load_weights, set_layout
from levit_search.model.blocks import LinearNorm
from tests.random_networks import images_for, randomised, unfilled

LAYOUTS: tuple[Layout, Layout] = ("tokens", "maps")

LEVIT: dict[str, Any] = {
    "image_size": 28,
    "num_classes": 5,
    "stem": {"kind": "conv", "layers": 2},
    "stages": [
        {"depth": 2, "embed_dim": 16, "num_heads": 3, "key_dim": 4},
        {"depth": 1, "embed_dim": 24, "num_heads": 2, "key_dim": 8},
    ],
}
GRAFT: dict[str, Any] = {
    "family": "graft",
    "image_size": 32,
    "num_classes": 5,
    "donor": {"name": "resnet18", "stages": 2, "stem": "small", "width_scale": 0.25},
    "trunk": {"depth": 2, "embed_dim": 24, "num_heads": 3},
}

# The LeViTs have grids of 7 and 4, or what is said.
NETWORKS: dict[str, dict[str, Any]] = {
    "levit": LEVIT,
    "even grid": {**LEVIT, "image_size": 32},
    "stride 3": {**LEVIT, "shrinks": [{"num_heads": 2, "key_dim": 8, "stride": 3}]},
    "stride 3, even grid": {
        **LEVIT,
        "image_size": 32,
        "shrinks": [{"num_heads": 2, "key_dim": 8, "stride": 3}],
    },
    "single token": {**LEVIT, "image_size": 4, "stages": LEVIT["stages"][:1]},
    "layer norm": {**LEVIT, "norm": "layer"},
    "position embedding": {**LEVIT, "position": "embedding"},
    "layer norm and embedding": {**LEVIT, "norm": "layer", "position": "embedding"},
    "no attention activation": {**LEVIT, "attention_activation": "none"},
    "one head": {**LEVIT, "distillation": False},
    "patch stem": {**LEVIT, "stem": {"kind": "patch", "patch_size": 4}},
    "resnet stem": {**LEVIT, "image_size": 32, "stem": {"kind": "resnet18", "layers": 6}},
    "graft": GRAFT,
    "plain graft": {**GRAFT, "distillation": False},
    "deit": {**GRAFT, "donor": {"stages": 0}},
    "resnet": {**GRAFT, "trunk": {"depth": 0}},
}
every_network = pytest.mark.parametrize("data", NETWORKS.values(), ids=NETWORKS)


def in_both_layouts(network: Architecture) -> tuple[Model, Model]:
    """The network twice, built in each layout, with the same random weights, in doubles."""
    tokens, maps = (unfilled(network, layout).double() for layout in LAYOUTS)
    maps.load_state_dict(randomised(tokens).state_dict(), strict=True)
    return tokens, maps


def loss_of(outputs: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Anything that every output counts in, and each differently."""
    stacked = torch.stack(outputs) if isinstance(outputs, tuple) else outputs
    return (stacked * torch.linspace(0.5, 1.5, stacked.numel()).view_as(stacked)).square().mean()


@pytest.mark.parametrize(
    "name",
    [
        "LeViT-128S",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("LeViT-128", "LeViT-192", "LeViT-256", "LeViT-384")
        ),
    ],
)
def test_published_networks_give_the_logits_of_timm_in_both_layouts(name: str) -> None:
    import timm

    reference = randomised(timm.create_model(name.lower().replace("-", "_"))).double().eval()
    network = published(name)
    model = unfilled(network)
    assert load_weights(model, reference.state_dict()) == "timm"
    model.double().eval()
    images = images_for(network, 2).double()
    with torch.no_grad():
        expected = reference(images)
        assert (expected[0] - expected[1]).std() > 0.01, "the images must matter to mean much"
        for layout in LAYOUTS:
            set_layout(model, layout)
            torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=0)


@every_network
def test_weights_do_not_know_the_layout(data: dict[str, Any]) -> None:
    network = parse(data)
    torch.manual_seed(1)
    tokens = build(network, "tokens").state_dict()
    torch.manual_seed(1)
    maps = build(network, "maps").state_dict()
    assert list(tokens) == list(maps)
    assert all(torch.equal(maps[name], tensor) for name, tensor in tokens.items())


@every_network
def test_logits_do_not_depend_on_the_layout(data: dict[str, Any]) -> None:
    network = parse(data)
    tokens, maps = (model.eval() for model in in_both_layouts(network))
    images = images_for(network, 2).double()
    with torch.no_grad():
        expected = tokens(images)
        assert (expected[0] - expected[1]).std() > 1e-3, "the images must matter to mean much"
        torch.testing.assert_close(maps(images), expected, atol=1e-10, rtol=0)
        set_layout(tokens, "maps")
        assert torch.equal(tokens(images), maps(images))
        set_layout(tokens, "tokens")
        assert torch.equal(tokens(images), expected)


@every_network
def test_training_does_not_depend_on_the_layout(data: dict[str, Any]) -> None:
    network = parse(data)
    tokens, maps = in_both_layouts(network)
    images = images_for(network, 4).double()
    for model in (tokens, maps):
        loss_of(model.train()(images)).backward()
    gradients = dict(maps.named_parameters())
    for name, parameter in tokens.named_parameters():
        assert parameter.grad is not None and gradients[name].grad is not None, name
        torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=1e-9, rtol=1e-6)
    # Running statistics are those of the same numbers, whatever their order.
    statistics = maps.state_dict()
    for name, tensor in tokens.state_dict().items():
        torch.testing.assert_close(statistics[name], tensor, atol=1e-10, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_drop_path_drops_whole_images_in_both_layouts(layout: Layout) -> None:
    network = parse({**LEVIT, "drop_path": 0.9})
    block = randomised(build(network, layout)).stages[0].blocks[0].train()
    shape = (64, 16, 7, 7) if layout == "maps" else (64, 49, 16)
    x = torch.randn(shape)
    untouched = (block(x) == x).flatten(1).all(1)
    assert 64 * 0.5 < untouched.sum() < 64  # both branches are dropped for 81 %


@pytest.mark.parametrize("layout", LAYOUTS)
def test_channels_last_images_give_the_same_logits(layout: Layout) -> None:
    for norm in ("batch", "layer"):
        network = parse({**LEVIT, "norm": norm})
        model = randomised(build(network, layout)).double().eval()
        images = images_for(network, 2).double()
        with torch.no_grad():
            found = model(images.to(memory_format=torch.channels_last))
            torch.testing.assert_close(found, model(images), atol=1e-10, rtol=0)


@pytest.mark.parametrize("position", ["bias", "embedding"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [2, 3], ids=["rows", "columns"])
def test_only_with_a_bias_does_a_block_commute_with_flipping(
    axis: int, layout: Layout, position: str
) -> None:
    """What comes before the first block belongs to it: the embedding, where there is one."""
    network = parse({**LEVIT, "position": position})
    model = randomised(build(network, layout)).double().eval()
    block, grid = model.stages[0].blocks[0], network.grids[0]

    def on_map(x_bcrr: Tensor) -> Tensor:
        if position == "embedding":
            x_bcrr = x_bcrr + model.position_embedding.transpose(1, 2).unflatten(2, grid)
        if layout == "maps":
            return block(x_bcrr)
        return block(x_bcrr.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, grid)

    tokens = torch.randn(2, 16, *grid, dtype=torch.double)
    with torch.no_grad():
        difference = (on_map(tokens.flip(axis)) - on_map(tokens).flip(axis)).abs().max()
    assert difference < 1e-9 if position == "bias" else difference > 1e-2


@pytest.mark.parametrize("name", ["levit", "layer norm", "graft"])
def test_graphs_hold_convolutions_of_maps_and_products_of_tokens(name: str, tmp_path: Path) -> None:
    import onnx

    network = parse(NETWORKS[name])
    kinds: dict[Layout, Counter[str]] = {}
    for layout in LAYOUTS:
        model = build(network, layout)
        export_onnx(model, tmp_path / f"{layout}.onnx", batch_size=1)
        graph = onnx.load(tmp_path / f"{layout}.onnx").graph
        kinds[layout] = Counter(node.op_type for node in graph.node)
    linears = sum(isinstance(module, LinearNorm) for module in model.modules())
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    attentions = sum(type(module).__name__ == "AttentionCore" for module in model.modules())
    assert kinds["tokens"]["Conv"] == convolutions
    assert kinds["tokens"]["MatMul"] == linears + 2 * attentions
    assert kinds["maps"]["Conv"] == convolutions + linears
    assert kinds["maps"]["MatMul"] == 2 * attentions
    for found in kinds.values():
        assert found["Gemm"] == 2  # the heads
        assert found["BatchNormalization"] == 0
