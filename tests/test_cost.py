import random
from typing import Any

import pytest
import torch
from fvcore.nn import ActivationCountAnalysis, parameter_count
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from levit_search import architecture as architectures
from levit_search.architecture import Architecture
from levit_search.cost import Cost, LayerCost, cost, layers
from levit_search.model.levit import AttentionCore, LevitModel

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


NARROW = {"attn_ratio": 1, "mlp_ratio": 4, "key_dim": 30}
ABLATIONS: dict[str, tuple[dict[str, Any], int, int]] = {
    "base": ({}, 7_391_290, 304_724_946),
    "A1": (
        {"stages": [{"depth": 11, "embed_dim": 114, "num_heads": 3, "key_dim": 19}]},
        1_214_614,
        308_307_144,
    ),
    "A2": ({"stem": {"kind": "patch", "patch_size": 16}}, 7_392_170, 275_221_458),
    "A6": (
        {
            "stages": [
                {"depth": 2, "embed_dim": 120, "num_heads": 4, **NARROW},
                {"depth": 3, "embed_dim": 180, "num_heads": 6, **NARROW},
                {"depth": 4, "embed_dim": 240, "num_heads": 8, **NARROW},
            ],
            "shrinks": [{"num_heads": 16, **NARROW}, {"num_heads": 24, **NARROW}],
        },
        6_195_819,
        312_203_018,
    ),
}


@pytest.mark.parametrize(("changes", "params", "flops"), ABLATIONS.values(), ids=ABLATIONS)
def test_ablations_of_table_5_cost_what_was_computed(
    changes: dict[str, Any], params: int, flops: int
) -> None:
    base = {
        "image_size": 224,
        "num_classes": 1000,
        "stem": {"kind": "conv", "layers": 4},
        "stages": [
            {"depth": 2, "embed_dim": 128, "num_heads": 4, "key_dim": 16},
            {"depth": 3, "embed_dim": 256, "num_heads": 6, "key_dim": 16},
            {"depth": 4, "embed_dim": 384, "num_heads": 8, "key_dim": 16},
        ],
        "distillation": False,
    }
    found = cost(architectures.parse({**base, **changes}))
    assert (found.params, found.flops) == (params, flops)


def test_the_stem_of_levit_256_costs_184_mflops() -> None:
    rows = [row for row in layers(architectures.published("LeViT-256")) if "stem" in row.name]
    assert sum(row.flops for row in rows) == 184_246_272
    assert [row.activations for row in rows] == [
        32 * 112**2,
        64 * 56**2,
        128 * 28**2,
        256 * 14**2,
    ]


def traced_flops(model: LevitModel, images: torch.Tensor) -> int:
    """Multiply-adds as torch counts them while the model runs, and the softmax of each map."""
    softmax = 0

    def count_softmax(core: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal softmax
        queries, keys = arguments[0], arguments[1]
        softmax += queries.shape[2] * queries.shape[1] * keys.shape[1]

    for module in model.modules():
        if isinstance(module, AttentionCore):
            module.register_forward_pre_hook(count_softmax)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(images)
    multiply_adds, rest = divmod(counter.get_total_flops(), 2)
    assert rest == 0
    return multiply_adds + softmax


def built(network: Architecture) -> LevitModel:
    """The network without memory: made in no time, and its shapes can be counted."""
    with torch.device("meta"):
        return LevitModel(network).eval()


def images_for(network: Architecture, device: str) -> torch.Tensor:
    size = network.image_size
    return torch.zeros(1, network.in_channels, size, size, device=device)


@pytest.mark.parametrize("name", ["LeViT-128S", "LeViT-384"])
def test_published_networks_cost_what_running_them_takes(name: str) -> None:
    network = architectures.published(name)
    model, found = built(network), cost(network)
    assert sum(parameter.numel() for parameter in model.parameters()) == found.params
    assert traced_flops(model, images_for(network, "meta")) == found.flops


# Each with the strides it may have; convolutional stems come most often, as in searches.
STEMS = ["conv"] * 4 + ["patch"] * 2 + ["resnet18", "resnet26", "resnet34", "resnet50"]


def random_network(seed: int) -> Architecture:
    """A small network of any shape that the description allows; seeds go round the stems."""
    chance = random.Random(seed)
    kind = STEMS[seed % len(STEMS)]
    if kind == "conv":
        layer_count = chance.randint(1, 4)
        stem: dict[str, Any] = {"kind": kind, "layers": layer_count}
        stride = 2**layer_count
    elif kind == "patch":
        stride = chance.choice([3, 4, 7, 8])
        stem = {"kind": kind, "patch_size": stride}
    else:
        stem = {"kind": kind, "stages": chance.randint(1, 4)}
        stride = 2 ** (stem["stages"] + 1)
    image_size = chance.choice([size for size in range(32, 65) if size % stride == 0][:4])
    grid, stages, shrinks = image_size // stride, [], []
    for index in range(chance.choice([1, 1, 2, 2, 2, 3, 4])):
        if index:
            if grid < 2:
                break
            shrinks.append(random_block(chance) | {"stride": chance.choice([2, 2, 3])})
            grid = -(-grid // shrinks[-1]["stride"])
        width, depth = chance.randint(8, 40), chance.choice([1, 1, 1, 2])
        stages.append(random_block(chance) | {"embed_dim": width, "depth": depth})
    return architectures.parse(
        {
            "image_size": image_size,
            "in_channels": chance.choice([1, 3]),
            "num_classes": chance.randint(2, 12),
            "stem": stem,
            "stages": stages,
            "shrinks": shrinks,
            "norm": chance.choice(["batch", "layer"]),
            "position": chance.choice(["bias", "embedding"]),
            "activation": chance.choice(["hardswish", "gelu", "relu", "silu"]),
            "attention_activation": chance.choice(["hardswish", "none"]),
            "distillation": chance.choice([True, False]),
        }
    )


def random_block(chance: random.Random) -> dict[str, Any]:
    return {
        "num_heads": chance.randint(1, 5),
        "key_dim": chance.choice([4, 8, 12, 20]),
        "attn_ratio": chance.choice([0.25, 0.5, 1, 1.75, 2, 4]),
        "mlp_ratio": chance.choice([0.3, 1, 1.7, 2, 4]),
    }


@pytest.fixture(scope="module", params=range(30))
def network(request: pytest.FixtureRequest) -> Architecture:
    return random_network(request.param)


def test_random_networks_cost_what_counting_their_modules_gives(network: Architecture) -> None:
    model, found = built(network), cost(network)
    assert sum(parameter.numel() for parameter in model.parameters()) == found.params
    assert parameter_count(model)[""] == found.params
    model.to_empty(device="cpu")  # fvcore cannot trace without memory; what it holds is no matter
    for buffer in model.buffers():
        buffer.zero_()  # but indices have to lie within their tables
    images = images_for(network, "cpu")
    assert traced_flops(model, images) == found.flops
    analysis = ActivationCountAnalysis(model, (images,))
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
    model = built(network)
    assert {row.name: params_of(model, row) for row in rows} == {
        row.name: row.params for row in rows
    }


def params_of(model: LevitModel, row: LayerCost) -> int:
    """The parameters of the module that a layer is named for."""
    if row.name == "position_embedding":
        return model.position_embedding.numel()
    parent, _, last = row.name.rpartition(".")
    if last == "values":  # a product of activations, part of the core as the scores are
        assert isinstance(model.get_submodule(f"{parent}.core"), AttentionCore)
        return 0
    modules = [model.get_submodule(f"{parent}.core" if last == "scores" else row.name)]
    if ".resnet." in row.name and last.startswith("conv"):  # timm keeps the batch norm beside it
        modules.append(model.get_submodule(f"{parent}.{last.replace('conv', 'bn')}"))
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_random_networks_reach_every_kind_of_layer() -> None:
    networks = [random_network(seed) for seed in range(30)]
    assert {network.stem.kind for network in networks} == set(STEMS)
    assert {len(network.stages) for network in networks} == {1, 2, 3, 4}
    assert any(grid % 2 for network in networks for grid in network.grids[:-1] if grid > 1)
    assert {(n.norm, n.position) for n in networks} == {
        (norm, position) for norm in ("batch", "layer") for position in ("bias", "embedding")
    }
