import math

import pytest
import torch
from fvcore.nn import ActivationCountAnalysis, parameter_count
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from levit_search import architecture as architectures
from levit_search.architecture import Architecture, Graft, Levit
from levit_search.cost import Cost, LayerCost, cost, layers, parts
from levit_search.model import Model
from levit_search.model.blocks import AttentionCore
from tests.random_networks import RESNETS, STEMS, images_for, random_network, unfilled

# Parameters and FLOPs, both heads and one: computed from the released code (Table 3 rounds them).
PUBLISHED = {
    "LeViT-128S": (7_777_058, 305_108_946, 7_391_290, 304_724_946),
    "LeViT-128": (9_213_936, 406_114_880, 8_828_168, 405_730_880),
    "LeViT-192": (10_947_069, 657_601_916, 10_561_301, 657_217_916),
    "LeViT-256": (18_893_876, 1_128_024_056, 18_379_852, 1_127_512_056),
    "LeViT-384": (39_128_836, 2_352_935_380, 38_358_300, 2_352_167_380),
}


def with_one_head(network: Architecture) -> Architecture:
    return architectures.parse({**network.model_dump(mode="json"), "distillation": False})


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_cost_what_the_released_code_counts(name: str) -> None:
    network = architectures.published(name)
    both, one = cost(network), cost(with_one_head(network))
    assert (both.params, both.flops, one.params, one.flops) == PUBLISHED[name]


# Table 5 with one head. Norms and embeddings cost no FLOPs, so A3 and A5 cost what the base costs.
ABLATIONS = {
    "ablation-base": (7_391_290, 304_724_946),
    "ablation-A1": (1_214_614, 308_307_144),
    "ablation-A2": (7_392_170, 275_221_458),
    "ablation-A3": (7_384_522, 304_724_946),
    "ablation-A4": (7_391_290, 304_724_946),
    "ablation-A5": (7_411_064, 304_724_946),
    "ablation-A6": (6_195_819, 312_203_018),
    "ablation-A7": (7_391_290, 304_724_946),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_of_table_5_cost_what_was_computed(name: str) -> None:
    found = cost(architectures.published(name))
    assert (found.params, found.flops) == ABLATIONS[name]


# Table 1: published parameters (M) and FLOPs of the convolutional part (M), and our convolutions'
# MFLOPs without batch norm. The ends are DeiT-Small and ResNet-50 as timm counts them.
GRAFTS = {
    "graft-0-12": (22.0, 57, 57.8),
    "graft-1-9": (17.1, 820, 805.2),
    "graft-2-6": (13.1, 1876, 1852.1),
    "graft-3-3": (15.1, 3385, 3355.0),
    "graft-4-0": (25.5, 4119, 4089.2),
}
ENDS = {"graft-0-12": 22_050_664, "graft-4-0": 25_557_032}


@pytest.mark.parametrize("name", GRAFTS)
def test_grafts_of_table_1_cost_what_was_published(name: str) -> None:
    params, published_flops, convolutions = GRAFTS[name]
    network = architectures.published(name)
    found, conv = cost(network), parts(network).conv
    # The ends are published rounded down (22.05, 25.56), the grafts rounded to the nearest.
    assert abs(found.params / 1e6 - params) <= (0.06 if name in ENDS else 0.05)
    assert found.params == ENDS.get(name, found.params)
    assert round(conv.flops / 1e6, 1) == convolutions
    # The published column counts batch norm: two for each element that is normed (fvcore's count).
    normed = sum(row.activations for row in layers(network) if row.name.startswith("donor."))
    deviation = (conv.flops + 2 * normed) / 1e6 / published_flops - 1
    assert abs(deviation) < (0.006 if normed else 0.015)


@pytest.mark.parametrize(
    ("name", "published_mflops"),
    [("graft-0-12", 4519), ("graft-1-9", 3389), ("graft-2-6", 2260), ("graft-3-3", 1130)],
)
def test_the_transformer_part_of_a_plain_graft_costs_what_was_published(
    name: str, published_mflops: int
) -> None:
    transformer = parts(with_one_head(architectures.published(name))).transformer
    assert abs(transformer.flops / 1e6 / published_mflops - 1) < 0.006


def test_parts_add_up_and_a_network_without_a_trunk_is_convolutional() -> None:
    for name in architectures.published_names():
        network = architectures.published(name)
        conv, transformer = parts(network)
        sums = (a + b for a, b in zip(conv, transformer, strict=True))
        assert Cost(*sums) == cost(network)
        assert conv.flops > 0
        assert (transformer.flops == 0) == (name == "graft-4-0")


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        ("graft-0-12", "deit_small_patch16_224"),
        ("graft-4-0", "resnet50"),
        ("LeViT-128S", "levit_128s"),
    ],
)
def test_params_are_those_of_timm(name: str, timm_name: str) -> None:
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(timm_name)
    params = sum(parameter.numel() for parameter in theirs.parameters())
    assert cost(architectures.published(name)).params == params


def test_ten_convolutions_of_a_resnet18_under_levit_256_cost_1042_8_mflops() -> None:
    stem = {"kind": "resnet18", "layers": 10}
    levit = architectures.published("LeViT-256").model_dump(mode="json")
    rows = [r for r in layers(architectures.parse({**levit, "stem": stem})) if "stem" in r.name]
    on_the_path = [row for row in rows if not row.name.endswith("downsample")]
    assert len(on_the_path) == 10
    assert sum(row.flops for row in on_the_path) == 1_042_857_984
    # Nothing else but the shortcut of stage 2: the tenth ends at 14x14 with the trunk's width.
    assert [row.name for row in rows if row not in on_the_path] == [
        "stem.resnet.layer2.0.downsample"
    ]
    assert on_the_path[-1].activations == 256 * 14**2


def test_the_stem_of_levit_256_costs_184_mflops() -> None:
    rows = [row for row in layers(architectures.published("LeViT-256")) if "stem" in row.name]
    assert sum(row.flops for row in rows) == 184_246_272
    assert [row.activations for row in rows] == [
        32 * 112**2,
        64 * 56**2,
        128 * 28**2,
        256 * 14**2,
    ]


def traced_flops(model: Model, images: torch.Tensor) -> int:
    """Multiply-adds as torch counts them while the model runs, and an element of each softmax."""

    def softmax(shape: torch.Size, *rest: object, **options: object) -> int:
        return 2 * math.prod(shape)  # torch counts a multiply-add twice

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._softmax: softmax})
    with counter, torch.no_grad():
        model(images)
    multiply_adds, rest = divmod(counter.get_total_flops(), 2)
    assert rest == 0
    return multiply_adds


@pytest.mark.parametrize("name", ["LeViT-384", "graft-2-6", *ABLATIONS])
def test_published_networks_cost_what_running_them_takes(name: str) -> None:
    network = architectures.published(name)
    model, found = unfilled(network).eval(), cost(network)
    assert sum(parameter.numel() for parameter in model.parameters()) == found.params
    assert traced_flops(model, images_for(network)) == found.flops


@pytest.mark.parametrize(
    "first",
    [pytest.param(n, marks=[pytest.mark.slow] * (n >= 100)) for n in range(0, 1000, 100)],
)
def test_random_networks_cost_what_their_modules_take(first: int) -> None:
    for seed in range(first, first + 100):
        network = random_network(seed)
        model, found = unfilled(network).eval(), cost(network)
        assert sum(p.numel() for p in model.parameters()) == found.params, f"seed {seed}"
        images = images_for(network)
        assert traced_flops(model, images) == found.flops, f"seed {seed}"


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] * (n >= 30)) for n in range(60)],
)
def network(request: pytest.FixtureRequest) -> Architecture:
    return random_network(request.param)


def test_random_networks_cost_what_fvcore_counts(network: Architecture) -> None:
    model, found = unfilled(network).eval(), cost(network)
    assert parameter_count(model)[""] == found.params
    analysis = ActivationCountAnalysis(model, (images_for(network),))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    assert analysis.total() == found.activations


def test_layers_add_up_to_the_cost_and_name_what_holds_their_parameters(
    network: Architecture,
) -> None:
    rows = layers(network)
    sums = Cost(*(sum(getattr(row, name) for row in rows) for name in Cost._fields))
    assert sums == cost(network)
    assert len({row.name for row in rows}) == len(rows)
    model = unfilled(network).eval()
    assert {row.name: params_of(model, row) for row in rows} == {
        row.name: row.params for row in rows
    }


def params_of(model: Model, row: LayerCost) -> int:
    """The parameters of the module that a layer is named for."""
    parent, _, last = row.name.rpartition(".")
    if last.endswith(("_embedding", "_token")):
        return model.get_parameter(row.name).numel()
    if last == "values":  # a product of activations, part of the core as the scores are
        assert isinstance(model.get_submodule(f"{parent}.core"), AttentionCore)
        return 0
    modules = [model.get_submodule(f"{parent}.core" if last == "scores" else row.name)]
    if isinstance(modules[0], nn.Conv2d):  # a ResNet's: timm keeps the batch norm beside it
        modules.append(model.get_submodule(f"{parent}.{last.replace('conv', 'bn')}"))
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_random_networks_reach_every_kind_of_layer() -> None:
    networks = [random_network(seed) for seed in range(1000)]
    levits = [network for network in networks if isinstance(network, Levit)]
    grafts = [network for network in networks if isinstance(network, Graft)]
    assert len(levits) == len(grafts) == 500
    assert len({network.id for network in networks}) > 990

    assert {network.stem.kind for network in levits} == set(STEMS)
    cuts = [n.stem.cut(3) for n in levits if n.stem.kind.startswith("resnet")]
    assert {cut.inside_block for cut in cuts} == {True, False}
    unprojected = [
        network
        for network in levits
        if network.stem.kind.startswith("resnet")
        and not network.stem.is_projected(network.stages[0].embed_dim)
    ]
    assert unprojected
    stems = [n.stem for n in levits if n.stem.kind.startswith("resnet")]
    assert {(stem.stem, stem.width_scale < 1) for stem in stems} == {
        (stem, narrow) for stem in ("imagenet", "small") for narrow in (True, False)
    }
    assert any(network.stem.width_scale < 1 for network in unprojected)
    assert {len(network.stages) for network in levits} == {1, 2, 3, 4}
    assert {shrink.stride for network in levits for shrink in network.shrinks} == {2, 3}
    assert any(
        side % 2 for network in levits for grid in network.grids[:-1] for side in grid if side > 1
    )
    for family in (levits, grafts):
        rectangles = [n.image_size for n in family if not isinstance(n.image_size, int)]
        assert {height > width for height, width in rectangles} == {True, False}
    assert {(n.norm, n.position) for n in levits} == {
        (norm, position) for norm in ("batch", "layer") for position in ("bias", "embedding")
    }

    assert any(network.donor is None for network in grafts)
    assert any(network.trunk is None for network in grafts)
    donors = [network.donor for network in grafts if network.donor]
    assert {(d.name, d.stages) for d in donors} == {(n, s) for n in RESNETS for s in (1, 2, 3, 4)}
    assert {(d.stem, d.width_scale < 1) for d in donors} == {
        (stem, narrow) for stem in ("imagenet", "small") for narrow in (True, False)
    }
    assert {(n.distillation, n.trunk is None) for n in grafts} == {
        (both, bare) for both in (True, False) for bare in (True, False)
    }
