"""Modules of the graft family: their ends are timm's networks, their tokens have heads each."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from levit_search.architecture import Graft, parse, published
from levit_search.errors import InputError
from levit_search.model import GraftModel, Layout, build, load_weights, set_layout, to_timm
from tests.random_networks import images_for, randomised, unfilled

GRAFT: dict[str, Any] = {
    "family": "graft",
    "image_size": 32,
    "num_classes": 5,
    "donor": {"name": "resnet18", "stages": 1, "stem": "small", "width_scale": 0.25},
    "trunk": {"depth": 2, "embed_dim": 24, "num_heads": 3},
}
DEIT = {**GRAFT, "donor": {"stages": 0}, "grid": 4}
RESNET = {**GRAFT, "trunk": {"depth": 0}, "distillation": False}

ENDS = {
    "deit_small_patch16_224": ("graft-0-12", False),
    "deit_small_distilled_patch16_224": ("graft-0-12", True),
    "resnet50": ("graft-4-0", False),
}


def graft(**changes: object) -> Graft:
    network = parse({**GRAFT, **changes})
    assert isinstance(network, Graft)
    return network


@pytest.mark.parametrize("timm_name", ENDS)
def test_the_ends_of_the_grafts_are_timm_networks(timm_name: str) -> None:
    import timm

    name, distillation = ENDS[timm_name]
    network = parse({**published(name).model_dump(mode="json"), "distillation": distillation})
    reference = randomised(timm.create_model(timm_name)).eval()
    model = unfilled(network).eval()
    weights = reference.state_dict()
    assert load_weights(model, weights) == "timm"

    back = to_timm(model)
    reference.load_state_dict(back, strict=True)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in weights.items())

    images = images_for(network).double()
    reference.double(), model.double()
    layouts: tuple[Layout, ...] = ("tokens",) if network.trunk is None else ("tokens", "maps")
    with torch.no_grad():
        expected = reference(images)
        assert expected.std() > 0.1
        for layout in layouts:
            set_layout(model, layout)
            torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_queries_keys_and_values_of_timm_come_to_their_heads(heads: int) -> None:
    from timm.models.vision_transformer import VisionTransformer

    size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_classes": 5}
    reference = randomised(VisionTransformer(**size, num_heads=heads)).double().eval()
    trunk = {"depth": 2, "embed_dim": 24, "num_heads": heads}
    network = parse({**DEIT, "trunk": trunk, "distillation": False})
    model = build(network).double().eval()
    load_weights(model, reference.state_dict())
    images = images_for(network, 2).double()
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images), atol=1e-10, rtol=0)


@pytest.mark.parametrize("layout", ["tokens", "maps"])
def test_each_token_answers_to_its_own_head(layout: Layout) -> None:
    model = randomised(build(graft(), layout))
    assert isinstance(model, GraftModel) and model.trunk is not None
    seen: dict[str, Tensor] = {}
    model.trunk.register_forward_hook(lambda module, args, output: seen.update(tokens=output))
    images = images_for(model.architecture, 3)

    by_class, by_teacher = model.train()(images)
    tokens = seen["tokens"]
    assert tokens.shape == (3, 2, 24)
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 0.1
    assert torch.equal(by_class, model.head(tokens[:, 0]))
    assert torch.equal(by_teacher, model.head_dist(tokens[:, 1]))

    logits = model.eval()(images)
    mean = (model.head(seen["tokens"][:, 0]) + model.head_dist(seen["tokens"][:, 1])) / 2
    torch.testing.assert_close(logits, mean)

    # The first token is the class token: without the blocks nothing else is left in it.
    model.trunk.blocks = nn.ModuleList()
    model(images)
    positions = model.trunk.position_embedding[0]
    for index, token in enumerate([model.trunk.class_token, model.trunk.distillation_token]):
        expected = model.trunk.norm(token[0, 0] + positions[index])
        torch.testing.assert_close(seen["tokens"][:, index], expected.expand(3, -1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("data", [GRAFT, DEIT, RESNET], ids=["graft", "deit", "resnet"])
def test_without_distillation_there_is_one_head(data: dict[str, Any], training: bool) -> None:
    model = build(parse({**data, "distillation": False})).train(training)
    logits = model(images_for(model.architecture, 2))
    assert isinstance(logits, Tensor)
    assert logits.shape == (2, 5)
    assert not any("dist" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("data", [GRAFT, DEIT, RESNET], ids=["graft", "deit", "resnet"])
def test_with_distillation_training_gives_a_pair(data: dict[str, Any]) -> None:
    model = build(parse({**data, "distillation": True})).train()
    by_class, by_teacher = model(images_for(model.architecture, 2))
    assert by_class.shape == by_teacher.shape == (2, 5)
    assert not torch.equal(by_class, by_teacher)
    assert model.eval()(images_for(model.architecture, 2)).shape == (2, 5)


def test_a_donor_that_ends_with_more_pixels_is_averaged_down() -> None:
    model = build(graft(grid=4))
    assert isinstance(model, GraftModel) and model.trunk is not None
    maps = torch.randn(2, 16, 32, 32)
    expected = maps.unflatten(3, (4, 8)).unflatten(2, (4, 8)).mean(dim=(3, 5))
    torch.testing.assert_close(model.trunk.pool(maps), expected)


def test_no_weight_decay_names_tokens_and_positions() -> None:
    names = {"trunk.class_token", "trunk.distillation_token", "trunk.position_embedding"}
    assert build(graft()).no_weight_decay() == names
    plain = build(graft(distillation=False)).no_weight_decay()
    assert plain == names - {"trunk.distillation_token"}
    assert build(graft(trunk=None)).no_weight_decay() == set()


NOT_IN_TIMM = {
    "a graft": ({}, "no grafts"),
    "a cut ResNet": (RESNET, "no ResNet cut after stage 1"),
    "a small stem": ({**RESNET, "donor": {**GRAFT["donor"], "stages": 4}}, "the small stem"),
    "two heads of a ResNet": (
        {**RESNET, "donor": {"name": "resnet18", "stages": 4}, "distillation": True},
        "no place for head_dist.bias",
    ),
}


@pytest.mark.parametrize(("changes", "message"), NOT_IN_TIMM.values(), ids=NOT_IN_TIMM)
def test_what_timm_cannot_express_has_no_timm_weights(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        to_timm(build(graft(**changes)))


FOREIGN: dict[str, tuple[dict[str, Any], dict[str, Tensor], str]] = {
    "queries of another width": (
        DEIT,
        {"blocks.0.attn.qkv.weight": torch.zeros(69, 23)},
        r"trunk.blocks.0.attention.qkv.linear.weight has shape \[69, 23\], .* \[72, 24\]",
    ),
    "queries without a width": (
        DEIT,
        {"blocks.0.attn.qkv.weight": torch.tensor(1.0)},
        r"trunk.blocks.0.attention.qkv.linear.weight has shape \[\], .* \[72, 24\]",
    ),
    "one layer too many": (
        DEIT,
        {"blocks.2.attn.qkv.weight": torch.zeros(72, 24)},
        "blocks.2.attn.qkv.weight is not of this network",
    ),
}


@pytest.mark.parametrize(("data", "changes", "message"), FOREIGN.values(), ids=FOREIGN)
def test_weights_that_do_not_fit_are_named(
    data: dict[str, Any], changes: dict[str, Tensor], message: str
) -> None:
    model = build(parse(data))
    with pytest.raises(InputError, match=message):
        load_weights(model, {**to_timm(model), **changes})


def test_a_transformer_does_not_fit_into_a_resnet() -> None:
    whole = {**RESNET, "donor": {"name": "resnet18", "stages": 4, "width_scale": 0.25}}
    with pytest.raises(InputError, match=r"is missing, .* is not of this network"):
        load_weights(build(parse(whole)), to_timm(build(parse(DEIT))))


def test_own_weights_of_a_graft_are_recognised() -> None:
    source, model = (randomised(build(graft())) for _ in range(2))
    assert load_weights(model, source.state_dict()) == "ours"
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in source.state_dict().items())
