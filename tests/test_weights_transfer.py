"""Networks that start from trained weights of another one."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from levit_search.architecture import Architecture, Levit, fitted, parse
from levit_search.errors import InputError
from levit_search.model import Model, TrainedWeights, build, misfit, ordered, save_weights, transfer
from levit_search.model.importance import importance, label_sizes
from levit_search.model.transfer import by_offset
from levit_search.pretrained import check_weights_fit
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.search import begin, search
from levit_search.study import Study, parse_settings, read_config
from levit_search.train import fresh_network, training_id
from tests.conftest import ROOT, Cli
from tests.engines import HereEngine
from tests.random_networks import images_for, random_network, randomised
from tests.test_weights import SMALL

HEAD = {"key_dim": 4, "attn_ratio": 1.5}
WIDE = {
    "image_size": 32,
    "num_classes": 5,
    "stem": {"kind": "conv", "channels": [10, 20, 16]},
    "stages": [
        {"depth": 2, "embed_dim": 16, "num_heads": 4, "key_dim": 8, "mlp_ratio": 2},
        {"depth": 2, "embed_dim": 24, "num_heads": 3, "key_dim": 8, "mlp_ratio": 1.5},
    ],
    "shrinks": [{"num_heads": 5, "key_dim": 6, "attn_ratio": 3}],
}
NARROW = {
    **WIDE,
    "stem": {"kind": "conv", "channels": [7, 11, 12]},
    "stages": [
        {"depth": 2, "embed_dim": 12, "num_heads": 3, **HEAD, "mlp_ratio": 1.5},
        {"depth": 2, "embed_dim": 18, "num_heads": 2, **HEAD, "mlp_ratio": 1},
    ],
    "shrinks": [{"num_heads": 4, **HEAD, "mlp_ratio": 1}],
}
DEIT = {
    "family": "graft",
    "image_size": 24,
    "num_classes": 5,
    "donor": None,
    "grid": 3,
    "trunk": {"depth": 2, "embed_dim": 24, "num_heads": 3, "mlp_ratio": 2},
}
NARROW_DEIT = {**DEIT, "trunk": {"depth": 2, "embed_dim": 16, "num_heads": 2, "mlp_ratio": 1.5}}


def by_activation(source: TrainedWeights, images: Tensor) -> dict[str, Tensor]:
    """The other order that ``benchmarks/weights.py`` compares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        found: dict[str, Tensor] = importlib.import_module("activations").by_activation(
            source, images
        )
    return found


def trained(description: dict[str, Any] | Architecture, seed: int = 0) -> TrainedWeights:
    torch.manual_seed(seed)
    network = parse(description)
    state = randomised(build(network)).state_dict()
    return TrainedWeights(
        network, {name: each.clone() for name, each in state.items()}, "the source"
    )


def model_of(source: TrainedWeights) -> Model:
    model = build(source.architecture)
    model.load_state_dict(dict(source.state))
    return model


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    found = model.eval()(images)
    assert isinstance(found, Tensor) and found.std() > 1e-3, "the images must matter to mean much"
    return found


@torch.no_grad()
def with_dead_channels(
    source: TrainedWeights, network: Architecture, seed: int = 3
) -> TrainedWeights:
    """The same with all but as many channels and heads as ``network`` has read and written as zero,
    in places drawn at random; so that nothing is lost with them."""
    chance = torch.Generator().manual_seed(seed)
    state = {name: each.clone() for name, each in source.state.items()}
    before, after = label_sizes(source.architecture), label_sizes(network)

    def dead(label: str) -> Tensor:
        order = torch.randperm(before[label], generator=chance)
        return order[after[label] :]

    def silence(layer: str, rows: Tensor) -> None:
        for part in ("norm.weight", "norm.bias"):
            state[f"{layer}.{part}"][rows] = 0

    last = len(source.architecture.stem.channels) - 1
    for index in range(1, last + 1):
        silence(f"stem.convs.{last - index}", dead(f"stem.{index}"))
    widths = [dead(f"width.{s}") for s in range(len(source.architecture.stages))]
    silence(f"stem.convs.{last}", widths[0])
    silence("head", widths[-1])
    silence("head_dist", widths[-1])
    for label in before:
        block, _, part = label.rpartition(".")
        if part != "heads":
            continue
        attention, heads = f"{block}.attention", before[label]
        stage = int(block.split(".")[1]) + block.startswith("shrinks")
        silence(f"{attention}.projection", widths[stage])
        silence(f"{block}.mlp.contract", widths[stage])
        silence(f"{block}.mlp.expand", dead(f"{block}.hidden"))
        rows = (before[f"{block}.key"], before[f"{block}.key"], before[f"{block}.value"])
        gone = dead(label)
        for head in range(heads):
            keys, values = dead(f"{block}.key"), dead(f"{block}.value")
            if head in gone:
                values = torch.arange(rows[2])
            if block.startswith("shrinks"):
                silence(f"{attention}.query", head * rows[0] + keys)
                start = head * (rows[1] + rows[2])
                silence(f"{attention}.key_value", start + keys)
                silence(f"{attention}.key_value", start + rows[1] + values)
            else:
                start = head * sum(rows)
                silence(f"{attention}.qkv", start + keys)
                silence(f"{attention}.qkv", start + rows[0] + rows[1] + values)
    return TrainedWeights(source.architecture, state, source.name)


@pytest.mark.parametrize("seed", range(16))
def test_the_same_network_keeps_its_logits_bit_by_bit(seed: int) -> None:
    source = trained(random_network(seed))
    model = build(source.architecture)
    result = transfer(source, model)
    images = images_for(source.architecture, 2)
    assert torch.equal(logits(model, images), logits(model_of(source), images))
    assert result.taken == result.total and not (result.cut or result.fresh or result.resized)
    assert result.told() == "100 % of the weights from the source"


@pytest.mark.parametrize("order", ["scale", "activation"])
def test_what_is_left_out_is_what_matters_least(order: str) -> None:
    """With channels and heads that do nothing in the source, the part without them is the whole."""
    network = parse(NARROW)
    source = with_dead_channels(trained(WIDE), network)
    images = torch.randn(4, 3, 32, 32)
    model = build(network)
    ranks = by_activation(source, images) if order == "activation" else None
    result = transfer(source, model, "scale", ranks)
    assert not result.fresh
    torch.testing.assert_close(
        logits(model.double(), images.double()),
        logits(model_of(source).double(), images.double()),
        atol=1e-6,
        rtol=0,
    )


def test_the_leading_channels_are_taken_where_that_is_asked_for() -> None:
    source = trained(WIDE)
    model = build(parse(NARROW))
    transfer(source, model, "leading")
    name = "stages.0.blocks.1.mlp.expand.linear.weight"
    assert torch.equal(model.get_parameter(name), source.state[name][:18, :12])
    qkv = source.state["stages.0.blocks.0.attention.qkv.linear.weight"]
    heads = qkv.unflatten(0, (4, 32))[:3, :, :12]
    parts = [heads[:, start : start + size] for start, size in ((0, 4), (8, 4), (16, 6))]
    own = model.get_parameter("stages.0.blocks.0.attention.qkv.linear.weight")
    assert torch.equal(own, torch.cat(parts, dim=1).flatten(0, 1))


def test_a_smaller_network_has_a_part_of_what_a_larger_one_has() -> None:
    source = trained(WIDE)
    between = {**WIDE, "stages": [{**WIDE["stages"][0], "embed_dim": 14}, WIDE["stages"][1]]}
    between["stem"] = {"kind": "conv", "channels": [10, 20, 14]}
    models = [build(parse(each)) for each in (between, NARROW)]
    for model in models:
        transfer(source, model)
    name = "stem.convs.2.norm.running_mean"
    larger, smaller = (set(model.get_buffer(name).tolist()) for model in models)
    assert smaller < larger < set(source.state[name].tolist())


@pytest.mark.parametrize("description", [WIDE, DEIT, {**WIDE, "norm": "layer"}])
def test_an_ordered_network_is_the_same_with_what_matters_first(
    description: dict[str, Any],
) -> None:
    source = trained(description)
    found = ordered(source)
    images = images_for(source.architecture, 2).double()
    torch.testing.assert_close(
        logits(model_of(found).double(), images), logits(model_of(source).double(), images)
    )
    for label, rank in importance(found).items():
        if rank.ndim == 1:
            assert torch.all(rank.diff() <= rank.max() * 1e-5), label
    assert any(not torch.equal(found.state[name], source.state[name]) for name in source.state)
    # A narrower network takes the first of each, and finds them there.
    small = NARROW if description is WIDE else NARROW_DEIT if description is DEIT else None
    if small is not None:
        models = [build(parse(small)) for _ in range(2)]
        transfer(found, models[0])
        transfer(source, models[1])
        torch.testing.assert_close(*(logits(model.double(), images) for model in models))


def test_a_deit_gives_its_part_to_a_narrower_one() -> None:
    source, model = trained(DEIT), build(parse(NARROW_DEIT))
    result = transfer(source, model)
    assert not result.fresh and result.cut
    kept = set(model.get_parameter("trunk.norm.weight").tolist())
    assert kept < set(source.state["trunk.norm.weight"].tolist())


def test_a_deeper_network_begins_as_its_source() -> None:
    """Blocks that the source lacks begin as the identity."""
    source = trained(WIDE)
    stages = [{**stage, "depth": stage["depth"] + 2} for stage in WIDE["stages"]]
    model = build(parse({**WIDE, "stages": stages}))
    result = transfer(source, model)
    assert {name.split(".blocks.")[1][0] for name in result.fresh} == {"2", "3"}
    assert "; stages.0.blocks.2, stages.0.blocks.3, stages.1.blocks.2, " in result.told()
    images = torch.randn(2, 3, 32, 32).double()
    torch.testing.assert_close(
        logits(model.double(), images), logits(model_of(source).double(), images)
    )


def test_a_shorter_network_has_the_leading_blocks_and_stages() -> None:
    source = trained(WIDE)
    stages = [{**WIDE["stages"][0], "depth": 1}]
    model = build(parse({**WIDE, "stages": stages, "shrinks": []}))
    result = transfer(source, model)
    assert {name.partition(".")[0] for name in result.fresh} == {"head", "head_dist"}
    name = "stages.0.blocks.0.mlp.contract.linear.weight"
    assert torch.equal(model.get_parameter(name), source.state[name])


def test_grey_images_see_the_sum_of_the_colours() -> None:
    source = trained(WIDE)
    model = build(parse({**WIDE, "in_channels": 1}))
    result = transfer(source, model)
    assert result.resized == ["stem.convs.0.conv.weight"]
    assert "stem.convs.0 fitted to other images" in result.told()
    grey = torch.randn(2, 1, 32, 32).double()
    torch.testing.assert_close(
        logits(model.double(), grey), logits(model_of(source).double(), grey.expand(-1, 3, -1, -1))
    )


def test_images_of_more_channels_see_the_colours_repeated() -> None:
    source = trained({**WIDE, "in_channels": 1})
    model = build(parse({**WIDE, "in_channels": 3}))
    transfer(source, model)
    grey = torch.randn(2, 1, 32, 32).double()
    torch.testing.assert_close(
        logits(model.double(), grey.expand(-1, 3, -1, -1)), logits(model_of(source).double(), grey)
    )


def test_other_classes_begin_with_fresh_heads() -> None:
    source = trained(WIDE)
    model = build(parse({**WIDE, "num_classes": 7}))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    result = transfer(source, model)
    heads = [name for name in before if name.startswith("head")]
    assert result.fresh == heads
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in heads)
    assert result.told().endswith("; head, head_dist fresh")


def test_a_second_head_begins_as_the_first() -> None:
    source = trained({**WIDE, "distillation": False})
    model = build(parse(WIDE))
    assert not transfer(source, model).fresh
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(logits(model, images), logits(model_of(source), images))


def test_another_activation_is_told() -> None:
    told = transfer(trained({**WIDE, "activation": "silu"}), build(parse(WIDE))).told()
    assert told == "100 % of the weights from the source; activation hardswish in place of silu"


def slowly_by_offset(bias: Tensor, before: tuple[int, int], after: tuple[int, int]) -> Tensor:
    """Each offset by itself, from the four around it."""
    found = torch.zeros(len(bias), *after, dtype=bias.dtype)
    grid = bias.unflatten(1, before)
    for row in range(after[0]):
        for column in range(after[1]):
            y = min(row * before[0] / after[0], before[0] - 1)
            x = min(column * before[1] / after[1], before[1] - 1)
            for i in range(before[0]):
                for j in range(before[1]):
                    share = max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j))
                    found[:, row, column] += share * grid[:, i, j]
    return found.flatten(1)


@pytest.mark.parametrize(
    ("before", "after"),
    [((14, 14), (10, 10)), ((4, 4), (7, 7)), ((6, 3), (3, 6)), ((1, 1), (2, 3)), ((5, 4), (1, 1))],
)
def test_attention_biases_lie_between_those_of_the_nearest_offsets(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    bias = torch.randn(3, before[0] * before[1], dtype=torch.double)
    found = by_offset(bias, before, after)
    torch.testing.assert_close(found, slowly_by_offset(bias, before, after))
    assert torch.equal(found[:, 0], bias[:, 0]), "a token's bias to itself stays"


def test_attention_biases_of_the_same_grid_stay() -> None:
    bias = torch.randn(2, 12)
    assert by_offset(bias, (3, 4), (3, 4)) is bias
    leading = by_offset(bias, (3, 4), (2, 3), by_share=False)
    assert torch.equal(leading, bias.unflatten(1, (3, 4))[:, :2, :3].flatten(1))


def test_another_size_keeps_all_but_the_biases() -> None:
    source = trained(WIDE)
    model = build(parse({**WIDE, "image_size": 48}))
    result = transfer(source, model)
    assert all(name.endswith("attention_bias") for name in result.resized) and not result.fresh
    blocks = [name for name in source.state if name.endswith("attention_bias")]
    assert result.resized == blocks
    assert "attention biases fitted to other images" in result.told()


@pytest.mark.parametrize(
    ("before", "after"),
    [(32, (16, 48)), ((48, 32), 32), ((32, 48), (48, 32)), ((32, 48), (32, 64))],
)
def test_rectangles_start_from_squares_and_squares_from_rectangles(before: Any, after: Any) -> None:
    source = trained({**WIDE, "image_size": before})
    model = build(parse({**WIDE, "image_size": after}))
    result = transfer(source, model)
    names = [name for name in source.state if name.endswith("attention_bias")]
    assert result.resized == names and not result.fresh and result.taken == result.total
    for name, stage in zip(names, (0, 0, 1, 1, 0), strict=True):
        grids = [_grid(each, stage) for each in (before, after)]
        expected = slowly_by_offset(source.state[name], *grids)
        torch.testing.assert_close(model.state_dict()[name], expected)
    logits(model, images_for(model.architecture, 2))


def _grid(size: Any, stage: int) -> tuple[int, int]:
    """Of :data:`WIDE`, whose stem has a stride of 8."""
    rows, columns = (size, size) if isinstance(size, int) else size
    return -(-rows // (8 * 2**stage)), -(-columns // (8 * 2**stage))


@pytest.mark.parametrize("description", [DEIT, {**WIDE, "position": "embedding"}])
def test_position_embeddings_of_rectangles_keep_their_directions(
    description: dict[str, Any],
) -> None:
    """A gradient from top to bottom is one from top to bottom on any grid."""
    source = trained(description)
    side, extra = description["image_size"] // 8, 2 if description is DEIT else 0
    name = next(name for name in source.state if name.endswith("position_embedding"))
    rows = torch.linspace(-1, 1, side)[:, None].expand(side, side).flatten()
    source.state[name][:, extra:] = rows[None, :, None]
    size = (description["image_size"], 2 * description["image_size"])
    model = build(parse({**description, "image_size": size}))
    assert transfer(source, model).resized == [name]
    found = model.state_dict()[name]
    assert torch.equal(found[:, :extra], source.state[name][:, :extra])
    tokens = found[0, extra:, 0].unflatten(0, (side, 2 * side))
    torch.testing.assert_close(tokens, torch.linspace(-1, 1, side)[:, None].expand(side, 2 * side))


@pytest.mark.parametrize("order", ["scale", "activation", "leading"])
def test_a_narrower_network_for_rectangles_starts_from_squares(order: str) -> None:
    source = trained(WIDE)
    model = build(parse({**NARROW, "image_size": (24, 40)}))
    ranks = None
    if order == "activation":
        ranks = by_activation(source, images_for(model.architecture, 4))
    result = transfer(source, model, "leading" if order == "leading" else "scale", ranks)
    assert result.taken == result.total and not result.fresh


@pytest.mark.parametrize("description", [DEIT, {**WIDE, "position": "embedding"}])
def test_position_embeddings_are_interpolated_but_for_extra_tokens(
    description: dict[str, Any],
) -> None:
    source = trained(description)
    size = 2 * description["image_size"]
    grid = {"grid": 6} if description is DEIT else {}
    model = build(parse({**description, "image_size": size, **grid}))
    result = transfer(source, model)
    name = next(name for name in source.state if name.endswith("position_embedding"))
    assert result.resized == [name]
    before, found = source.state[name], model.state_dict()[name]
    extra = 2 if description is DEIT else 0
    assert torch.equal(found[:, :extra], before[:, :extra])
    means = [each[:, extra:].mean(dim=1) for each in (before, found)]
    torch.testing.assert_close(means[0], means[1], atol=0.2, rtol=0)
    # A plane stays a plane in the middle of it, whatever the grid.
    side = round((found.shape[1] - extra) ** 0.5)
    assert found.shape[1] == extra + side * side


def test_a_distillation_token_that_the_source_lacks_stays_fresh() -> None:
    source = trained({**DEIT, "distillation": False})
    model = build(parse(DEIT))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    result = transfer(source, model)
    name = "trunk.position_embedding"
    found = model.state_dict()[name]
    assert torch.equal(found[:, 0], source.state[name][:, 0])
    assert torch.equal(found[:, 1], before[name][:, 1])
    assert torch.equal(found[:, 2:], source.state[name][:, 1:])
    assert {"trunk.distillation_token", "head_dist.weight"} <= set(result.fresh)


def test_patches_of_another_size_are_resampled() -> None:
    patches = {**WIDE, "stem": {"kind": "patch", "patch_size": 8}}
    for description, other in (
        (patches, {**patches, "image_size": 16, "stem": {"kind": "patch", "patch_size": 4}}),
        (DEIT, {**DEIT, "image_size": 12}),
    ):
        result = transfer(trained(description), build(parse(other)))
        assert len(result.resized) == 1 and result.resized[0].endswith("conv.weight")
        assert not result.fresh


def test_a_shorter_stem_keeps_its_last_layers() -> None:
    source = trained(WIDE)
    model = build(fitted(source.architecture, image_size=16, in_channels=1, num_classes=5))
    assert isinstance(model.architecture, Levit) and len(model.architecture.stem.channels) == 1
    result = transfer(source, model)
    assert {name.rsplit(".", 2)[0] for name in result.fresh} == {"stem.convs.0"}
    longer = {**WIDE, "image_size": 64, "stem": {"kind": "conv", "channels": [4, 10, 20, 16]}}
    model = build(parse(longer))
    result = transfer(source, model)
    assert {name.split(".")[2] for name in result.fresh} == {"0", "1"}
    name = "conv.weight"
    assert torch.equal(
        model.get_parameter(f"stem.convs.3.{name}"), source.state[f"stem.convs.2.{name}"]
    )


def test_a_wider_layer_of_the_stem_stays_fresh() -> None:
    source = trained(WIDE)
    model = build(parse({**WIDE, "stem": {"kind": "conv", "channels": [10, 21, 16]}}))
    result = transfer(source, model)
    assert {name.split(".")[2] for name in result.fresh} == {"1", "2"}


GRAFT = {
    **DEIT,
    "image_size": 64,
    "donor": {"name": "resnet18", "stages": 2},
    "grid": 4,
}
RESNET = {**GRAFT, "donor": {"name": "resnet18", "stages": 4}, "trunk": None, "grid": None}
RESNET_LEVIT = {**WIDE, "image_size": 64, "stem": {"kind": "resnet18", "layers": 7}}


@pytest.mark.parametrize("description", [GRAFT, RESNET_LEVIT])
def test_a_resnet_is_the_beginning_of_grafts_and_levits(description: dict[str, Any]) -> None:
    source = trained({**RESNET, "in_channels": 1})
    model = build(parse(description))
    result = transfer(source, model)
    prefix = "donor." if description is GRAFT else "stem.resnet."
    own = [name for name in model.state_dict() if name.startswith(prefix)]
    assert set(result.fresh) == set(model.state_dict()) - set(own)
    assert result.resized == [f"{prefix}conv1.weight"]
    name = "layer1.1.conv2.weight"
    assert torch.equal(model.state_dict()[f"{prefix}{name}"], source.state[f"donor.{name}"])


def test_a_deit_is_the_end_of_a_graft_and_a_graft_of_a_smaller_one() -> None:
    model = build(parse(GRAFT))
    result = transfer(trained(DEIT), model)
    assert all(name.startswith(("donor.", "trunk.projection")) for name in result.fresh)
    wider = {**GRAFT, "trunk": {**DEIT["trunk"], "embed_dim": 48, "num_heads": 6}}
    result = transfer(trained(GRAFT), build(parse(wider)))
    assert all(not name.startswith("donor.") for name in result.fresh) and result.fresh
    assert not result.cut


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"stages": [{**WIDE["stages"][0], "num_heads": 5}, WIDE["stages"][1]]},
            r"stages\.0\.blocks\.0\.attention\.qkv\.linear\.weight has shape \[128, 16\], the "
            r"network's has \[160, 16\], where num_heads of stages\.0\.blocks\.0 may be no more "
            r"than the source's 4, not 5; possible is a LeViT with batch norm of up to 16-24  d2-2",
        ),
        (
            {
                "stages": [{**WIDE["stages"][0], "embed_dim": 17}, WIDE["stages"][1]],
                "stem": {"kind": "conv", "channels": [10, 20, 17]},
            },
            r"embed_dim of stage 0 may be no more than the source's 16, not 17",
        ),
        (
            {"shrinks": [{"num_heads": 5, "key_dim": 7, "attn_ratio": 3}]},
            r"key_dim of shrinks\.0 may be no more than the source's 6, not 7",
        ),
        (
            {"shrinks": [{"num_heads": 5, "key_dim": 6, "attn_ratio": 3.5}]},
            r"value channels a head of shrinks\.0 may be no more than the source's 18, not 21",
        ),
        ({"norm": "layer"}, "the source: has batch norm, the network has layer norm"),
    ],
)
def test_a_network_that_is_no_part_is_refused_with_shapes(
    changes: dict[str, Any], told: str
) -> None:
    source, network = trained(WIDE), parse({**WIDE, **changes})
    model = build(network)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(InputError, match=told):
        transfer(source, model)
    assert misfit(source, network) is not None
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (WIDE, DEIT, "holds a LeViT, of which a DeiT has no part"),
        (DEIT, WIDE, "a trunk of up to 24 channels, 3 heads of 8"),
        (RESNET, WIDE, "possible is a network that begins with a resnet18"),
        (RESNET, {**GRAFT, "donor": {"name": "resnet34", "stages": 1}, "grid": 4}, "a ResNet, of"),
    ],
)
def test_another_family_is_refused(
    before: dict[str, Any], after: dict[str, Any], told: str
) -> None:
    source = trained(before)
    with pytest.raises(InputError, match=told):
        transfer(source, build(parse(after)))


# What a recipe says.


def test_fresh_weights_leave_recipes_as_they_were() -> None:
    assert "weights" not in Recipe().model_dump() and "weights" not in Recipe().decisive()
    assert Recipe(weights="levit_128s").decisive()["weights"] == "levit_128s"
    with pytest.raises(InputError, match=r"teacher\.weights"):
        read_teacher({"recipe": {"weights": "levit_128s"}})


def read_teacher(given: dict[str, Any]) -> TeacherConfig:
    from levit_search.configuration import validated

    return validated(TeacherConfig, given, "teacher")


def test_weights_at_the_top_of_a_space_are_those_of_train(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "some.pth").touch()
    path = space_file(weights="some.pth")
    assert read_config(path).train.weights == str(tmp_path / "some.pth")
    assert read_config(space_file(weights="levit_256.fb_dist_in1k")).train.weights == (
        "levit_256.fb_dist_in1k"
    )
    assert read_config(path, parse_settings(["weights=fresh"])).train.weights == "fresh"
    assert read_config(path, {"weights": "timm/levit_192"}).train.weights == "timm/levit_192"
    trial = read_config(path, parse_settings(["weights=studies/x #1#7"])).train.weights
    assert trial == str(Path("studies/x #1").absolute()) + "#7"
    path = space_file(weights="some.pth", train={"epochs": 1, "weights": "other.pth"})
    with pytest.raises(InputError, match=r"weights: 'some.pth' and train\.weights: 'other.pth'"):
        read_config(path)


def test_a_training_is_told_by_the_content_of_its_weights(tmp_path: Path) -> None:
    network = parse(WIDE)

    def identity(weights: str) -> str:
        return training_id(network, Recipe(weights=weights), 0, "data", None)

    path = tmp_path / "some.safetensors"
    found = [identity("fresh")]
    for seed in range(2):
        torch.manual_seed(seed)
        save_weights(build(network), path)
        found.append(identity(str(path)))
    assert len(set(found)) == 3


def test_a_network_that_nothing_fits_starts_fresh_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "narrow.safetensors"
    save_weights(model_of(trained(NARROW)), path)
    recipe = Recipe(weights=str(path))
    with pytest.warns(UserWarning, match="16-24.*starts with fresh weights .*narrow"):
        model = fresh_network(parse(WIDE), recipe, 0)
    assert (model.started_from or "").startswith("fresh weights (")
    plain = fresh_network(parse(WIDE), Recipe(), 0)
    assert plain.started_from is None
    name = "head.linear.weight"
    assert torch.equal(model.get_parameter(name), plain.get_parameter(name))
    model = fresh_network(parse(NARROW), recipe, 0)
    assert (model.started_from or "").startswith("100 % of the weights from")
    check_weights_fit(recipe, [parse(WIDE), parse(NARROW)])
    with pytest.raises(InputError, match=r"train\.weights: .*may be no more than"):
        check_weights_fit(recipe, [parse(WIDE)])


TRAIN = ("--data", "digits", "--teacher", "none", "--epochs", 1, "--set", "data.train_images=128")


def test_train_goes_on_from_weights_on_other_images(
    cli: Cli, tmp_path: Path, tiny: Architecture
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    first = cli("train", "tiny.yaml", *TRAIN, "--out", "first", "--json")
    assert first.returncode == 0 and "started_from" not in json.loads(first.stdout)
    more = cli(
        *("train", "tiny.yaml", *TRAIN, "--weights", "first", "--image-size", 32, "--json"),
        *("--set", "train.lr=1e-9"),
    )
    assert more.returncode == 0, more.stderr
    told = json.loads(more.stdout)["started_from"]
    assert told.startswith("100 % of the weights from") and "attention biases" in told
    assert f"starts with {told}" in more.stderr


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ("nowhere.safetensors", "nowhere.safetensors: there is no such thing"),
        ("wide.safetensors", "may be no more than the source's"),
        ("levit_9000", "unknown weights of timm's"),
    ],
)
def test_train_refuses_weights_that_do_not_fit(
    cli: Cli, tmp_path: Path, tiny: Architecture, weights: str, told: str
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    narrow = {**SMALL, "stages": [{"depth": 1, "embed_dim": 8, "num_heads": 1, "key_dim": 4}]}
    save_weights(build(parse(narrow)), tmp_path / "wide.safetensors")
    done = cli("train", "tiny.yaml", *TRAIN, "--weights", weights)
    assert done.returncode == 2 and told in done.stderr, done.stderr
    assert "epoch" not in done.stderr


@pytest.mark.slow
def test_a_search_starts_its_networks_from_another_studys_best(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(search={"trials": 4, "sampler": "random"})
    narrow = {"architecture.num_stages": 1, "architecture.stages.0.embed_dim": 8}
    first = Study.create(tmp_path / "first", read_config(path, narrow), ["test"])
    search(first, engine=HereEngine)
    best = max(
        (record for record in first.records() if "top1_percent" in record.values),
        key=lambda record: record.values["top1_percent"],
    )
    config = read_config(path, {"weights": str(tmp_path / "first"), "search.seed": 1})
    second = begin(config, tmp_path / "second", ["test"])
    pinned = f"{tmp_path / 'first'}#{best.trial}"
    assert second.config.train.weights == pinned
    with pytest.warns(UserWarning, match="starts with fresh weights"):
        search(second)
    assert best.architecture is not None
    source = TrainedWeights(best.architecture, {}, "")
    found = set()
    for record in second.records():
        training = record.evaluation.get("training")
        if training is None or record.architecture is None:
            continue
        start = training["started_from"]
        found.add(start.startswith("fresh"))
        assert start.startswith("fresh") == (misfit(source, record.architecture) is not None)
    assert found == {True, False}
    # The search goes on with what it began with.
    again = begin(config, tmp_path / "second", ["test"])
    assert again.config.train.weights == pinned


def test_a_search_none_of_whose_networks_fits_does_not_begin(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    save_weights(build(parse({**SMALL, "norm": "layer"})), tmp_path / "model.safetensors")
    (tmp_path / "architecture.yaml").write_text(parse({**SMALL, "norm": "layer"}).to_yaml())
    config = read_config(space_file(), {"weights": str(tmp_path)})
    with pytest.raises(InputError, match="has layer norm, the network has batch norm"):
        begin(config, tmp_path / "study", ["test"])
    assert not (tmp_path / "study").exists()


def test_shared_weights_begin_with_what_matters_first(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    from levit_search.space import envelope_of
    from levit_search.supernet.keeping import _begin

    space = read_config(space_file()).space()
    whole = envelope_of(space).whole
    source = trained({**whole.model_dump(mode="json"), "num_classes": 3})
    save_weights(model_of(source), tmp_path / "some.safetensors")
    model = build(whole)
    _begin(model, Recipe(weights=str(tmp_path / "some.safetensors")))
    wanted = ordered(source).state
    name = "stages.0.blocks.0.mlp.expand.linear.weight"
    assert torch.equal(model.state_dict()[name], wanted[name])
    assert not torch.equal(model.state_dict()[name], source.state[name])
