"""Small networks of any shape that the descriptions allow, by seed."""

import random
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from levit_search import architecture as architectures
from levit_search.architecture import Architecture, Graft, Levit
from levit_search.image_size import image_shape
from levit_search.model import Layout, Model, build

# Convolutional stems come most often, as in searches; ResNets are slow to build.
STEMS = ["conv"] * 10 + ["patch"] * 4 + ["resnet18", "resnet26", "resnet34", "resnet50"]
RESNETS = ["resnet18"] * 4 + ["resnet26"] * 2 + ["resnet34", "resnet50"]


def random_network(seed: int) -> Architecture:
    """Both families in turn."""
    return random_graft(seed // 2) if seed % 2 else random_levit(seed // 2)


def random_levit(seed: int) -> Levit:
    """Seeds go round the stems."""
    chance = random.Random(seed)
    kind = STEMS[seed % len(STEMS)]
    scale = 1.0
    if kind == "conv":
        layer_count = chance.randint(1, 4)
        stem: dict[str, Any] = {"kind": kind, "layers": layer_count}
        stride = 2**layer_count
    elif kind == "patch":
        stride = chance.choice([3, 4, 7, 8])
        stem = {"kind": kind, "patch_size": stride}
    else:
        unit = 2 if kind in ("resnet18", "resnet34") else 3
        stem = {"kind": kind} | (
            {"stages": chance.randint(1, 4)}
            if chance.random() < 0.4
            else {"layers": chance.randint(2, 1 + 5 * unit)}
        )
        stride = 32  # as much as any cut may have
        scale = random.Random(f"scale {seed}").choice([1, 0.5, 0.25, 0.3])
        stem["width_scale"] = scale
    sizes = [size for size in range(32, 65) if size % stride == 0][:4]
    image_size = chance.choice(sizes)
    shape = random.Random(f"shape {seed}")  # of its own, so that all else is as it was of squares
    image_sides = (image_size, shape.choice(sizes) if shape.random() < 0.4 else image_size)
    if kind in RESNETS and max(image_sides) == 32:  # with larger ones tokens would be thousands
        stem["stem"] = random.Random(f"stem {seed}").choice(["imagenet", "small"])
    grid = max(image_sides) // stride
    stages: list[dict[str, Any]] = []
    shrinks: list[dict[str, Any]] = []
    for index in range(chance.choice([1, 1, 2, 2, 2, 3, 4])):
        if index:
            if grid < 2:
                break
            shrinks.append(_random_block(chance) | {"stride": chance.choice([2, 2, 3])})
            grid = -(-grid // shrinks[-1]["stride"])
        width, depth = chance.randint(8, 40), chance.choice([1, 1, 1, 2])
        if index == 0 and "layers" in stem and kind != "conv" and chance.random() < 0.3:
            # Needs no projection where the cut has it too.
            width = int(chance.choice([64, 128]) * scale)
        stages.append(_random_block(chance) | {"embed_dim": width, "depth": depth})
    network = architectures.parse(
        {
            "image_size": image_sides,
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
    assert isinstance(network, Levit)
    return network


def _random_block(chance: random.Random) -> dict[str, Any]:
    return {
        "num_heads": chance.randint(1, 5),
        "key_dim": chance.choice([4, 8, 12, 20]),
        "attn_ratio": chance.choice([0.25, 0.5, 1, 1.75, 2, 4]),
        "mlp_ratio": chance.choice([0.3, 1, 1.7, 2, 4]),
    }


def random_graft(seed: int) -> Graft:
    """Any donor, cut anywhere, under a small trunk or none."""
    chance = random.Random(seed)
    stages, stem = chance.choice([0, 0, 1, 1, 1, 2, 2, 3, 4]), chance.choice(["imagenet", "small"])
    depth = chance.choice([0, 1, 1, 2, 3]) or (0 if stages else 1)
    stride = (4 if stem == "imagenet" else 1) * 2 ** max(stages - 1, 0) if stages else 1
    side = chance.choice([side for side in range(1, 65) if 32 <= side * stride <= 64])
    heads = chance.randint(1, 4)
    grid = chance.choice([n for n in range(1, 9) if side % n == 0])
    shape = random.Random(f"shape {seed}")
    # Tokens are squares: the longer side has a token more, or two.
    longer = grid + (shape.choice([1, 2]) if shape.random() < 0.4 else 0)
    sides = shape.sample((grid, longer), 2)
    network = architectures.parse(
        {
            "family": "graft",
            "image_size": [tokens * side // grid * stride for tokens in sides],
            "in_channels": chance.choice([1, 3]),
            "num_classes": chance.randint(2, 12),
            "donor": {
                "name": chance.choice(RESNETS),
                "stages": stages,
                "stem": stem,
                "width_scale": chance.choice([1, 0.5, 0.25, 0.3]),
            },
            "trunk": {
                "depth": depth,
                "embed_dim": heads * chance.choice([3, 4, 8, 12]),
                "num_heads": heads,
                "mlp_ratio": chance.choice([0.5, 1, 1.7, 4]),
            },
            "grid": sides,
            "distillation": chance.choice([True, False]),
        }
    )
    assert isinstance(network, Graft)
    return network


def unfilled(network: Architecture, layout: Layout = "tokens") -> Model:
    """The network with zeros for random numbers, which take most of the time of building."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("normal_", "uniform_"):
            patch.setattr(torch.Tensor, name, lambda tensor, *args, **options: tensor.zero_())
        return build(network, layout)


AnyModule = TypeVar("AnyModule", bound=nn.Module)


@torch.no_grad()
def randomised(model: AnyModule) -> AnyModule:
    """``model`` as if it had been trained: no norm, statistic or position as it started.

    Weights keep the variance of what goes through, so that images still matter to the logits.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.normal_(std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                module.bias.normal_(std=0.2)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    positions = ("attention_bias", "attention_biases", "embedding", "embed", "token")
    for name, parameter in model.named_parameters():
        if name.endswith(positions):
            parameter.normal_(std=0.5)
    return model


def images_for(network: Architecture, count: int = 1, device: str = "cpu") -> Tensor:
    return torch.randn(count, *image_shape(network), device=device)
