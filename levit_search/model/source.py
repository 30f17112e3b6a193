"""Trained weights that other networks start from, and whose they are.

Of a file without a description the architecture is inferred from the names and shapes of its
tensors: a LeViT's under any of the three namings, timm's DeiT or timm's ResNet.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from levit_search import architecture as architectures
from levit_search.architecture import Architecture, parse, resnet
from levit_search.architecture.resnet import ResNetName
from levit_search.errors import InputError
from levit_search.model import naming as namings
from levit_search.model.build import build
from levit_search.model.weights import load_weights, state_dict_of

DESCRIPTION, WEIGHTS = "architecture.yaml", "model.safetensors"
"""What an export, and a training with ``--out``, call a network and its weights."""

_EXPECTED = (
    "expected a LeViT's weights under our, timm's or the released names, those of timm's DeiT or "
    f"ResNet, or {WEIGHTS} beside its {DESCRIPTION}"
)

# timm's DeiTs of every width have heads of 64 channels, which no shape tells.
_DEIT_HEAD = 64

# timm's LeViTs that are no published ones have SiLU, which no shape tells: widths, depths and
# layers of the stem.
_WITH_SILU = {
    ((384, 512, 768), (4, 4, 4), 3),
    ((512, 640, 896), (4, 4, 4), 3),
    ((512, 768, 1024), (4, 4, 4), 4),
    ((256, 384, 512), (4, 8, 6), 4),
    ((512, 640, 768), (4, 8, 6), 4),
}


@dataclass(frozen=True, eq=False)
class TrainedWeights:
    """Trained weights to start from.

    ``state`` holds the tensors of ``architecture`` under our names, ``name`` is for messages.
    """

    architecture: Architecture
    state: Mapping[str, Tensor]
    name: str
    is_shared: bool = False
    """Whether networks were trained in it of which each has leading parts: nothing is to be ordered
    by importance then."""


def weights_file(path: Path) -> tuple[Path, Architecture | None]:
    """The file of weights at a path, and the network in the ``architecture.yaml`` beside it.

    Args:
        path: of a file; or of a folder with ``model.safetensors``, as an export and ``train --out``
            write them. Only beside a ``model.safetensors`` a description is looked for.

    Raises:
        InputError: there is no such file, or the description is malformed.
    """
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected weights, or a folder with {WEIGHTS}")
    described = path.parent / DESCRIPTION
    if path.name != WEIGHTS or not described.is_file():
        return path, None
    return path, architectures.load(str(described))


def source_of(
    state: Mapping[str, Any], where: str, network: Architecture | None = None
) -> TrainedWeights:
    """The weights in a state dict under any naming, in single precision.

    Args:
        state: tensors by name, which may stand under the key ``model``.
        network: whose weights they are; None to infer it, see :func:`inferred`.

    Raises:
        InputError: they are no state dict, their network cannot be told, or a tensor is missing,
            has another shape than that network's, or holds values that are no finite numbers.
    """
    tensors = state_dict_of(state, where)
    network = network or inferred(tensors, where)
    with torch.random.fork_rng(devices=[]):
        model = build(network)
    load_weights(model, tensors, where)
    found = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, tensor in found.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{where}: {name} has values that are no finite numbers")
    return TrainedWeights(network, found, where)


def inferred(state: Mapping[str, Tensor], where: str = "weights") -> Architecture:
    """The architecture whose weights these are, by their names and shapes.

    Activations are in no shape: hardswish is taken for a LeViT, SiLU for those of timm that have
    it. Heads of a DeiT have 64 channels, as in all of timm's. Images are taken for squares.

    Args:
        state: tensors by name, of a LeViT with a convolutional stem, batch norm and attention
            biases under any naming, of timm's DeiT or of timm's plain ResNet.

    Raises:
        InputError: they are of no such network; the message names the tensor that tells.
    """
    try:
        if "cls_token" in state:
            return _deit(state)
        if "bn1.weight" in state and "layer1.0.conv1.weight" in state:
            return _resnet(state)
        return _levit(state)
    except KeyError as error:
        raise InputError(f"{where}: {error.args[0]} is missing; {_EXPECTED}") from None
    except (ValueError, InputError) as error:
        raise InputError(f"{where}: {error}; {_EXPECTED}") from None


def _deit(state: Mapping[str, Tensor]) -> Architecture:
    width, in_channels, patch, _ = _shape(state, "patch_embed.proj.weight", 4)
    extra = 1 + ("dist_token" in state)
    grid = _side("pos_embed", _shape(state, "pos_embed", 3)[1] - extra)
    if width % _DEIT_HEAD:
        raise ValueError(
            f"patch_embed.proj.weight has {width} channels, which are no whole number of heads of "
            f"{_DEIT_HEAD} as all of timm's DeiTs have them"
        )
    described = {
        "family": "graft",
        "image_size": grid * patch,
        "in_channels": in_channels,
        "num_classes": _shape(state, "head.weight", 2)[0],
        "donor": None,
        "grid": grid,
        "trunk": {
            "depth": _count(state, r"blocks\.(\d+)\."),
            "embed_dim": width,
            "num_heads": width // _DEIT_HEAD,
            "mlp_ratio": _ratio(_shape(state, "blocks.0.mlp.fc1.weight", 2)[0], width),
        },
        "distillation": extra == 2,
    }
    return parse(described, "a DeiT")


def _resnet(state: Mapping[str, Tensor]) -> Architecture:
    convolutions = 3 if "layer1.0.conv3.weight" in state else 2
    depths = tuple(_count(state, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5))
    known: dict[tuple[int, tuple[int, ...]], str]
    known = {(resnet.block_layers(n), resnet.depths(n)): n for n in get_args(ResNetName)}
    name = known.get((convolutions, depths))
    if name is None:
        kind = "bottlenecks" if convolutions == 3 else "basic blocks"
        raise ValueError(
            f"layer1 to layer4 have {'-'.join(map(str, depths))} {kind}; known are "
            f"{', '.join(known.values())}"
        )
    scale = _shape(state, "layer1.0.conv1.weight", 4)[0] / 64
    described = {
        "family": "graft",
        "image_size": 224,
        "in_channels": _shape(state, "conv1.weight", 4)[1],
        "num_classes": _shape(state, "fc.weight", 2)[0],
        "donor": {"name": name, "stages": 4, "width_scale": scale},
        "trunk": None,
        "distillation": False,
    }
    return parse(described, f"a {name}")


def _levit(state: Mapping[str, Tensor]) -> Architecture:
    """See :func:`inferred`; what a layer is called depends on numbers of layers alone, so that the
    names are those of a narrow network with as many."""
    naming, layers, depths = _numbers(state)
    has_teacher = any(name.startswith("head_dist.") for name in state)
    narrow: dict[str, object] = {
        "image_size": 2 ** (layers + len(depths)),
        "num_classes": 1,
        "stem": {"kind": "conv", "layers": layers},
        "stages": [{"depth": n, "embed_dim": 1, "num_heads": 1, "key_dim": 1} for n in depths],
        "distillation": has_teacher,
    }
    theirs = {} if naming == "ours" else namings.names(parse(narrow, "a LeViT"), naming)

    def shape(name: str, axes: int = 2) -> tuple[int, ...]:
        return _shape(state, theirs.get(name, name), axes)

    def block(name: str, keys: str, times: int) -> tuple[int, int, dict[str, float]]:
        """Offsets of biases, width and heads of a block, whose layer ``keys`` gives values, keys
        and, where ``times`` is 2, as many queries."""
        heads, offsets = shape(f"{name}.attention.core.attention_bias")
        width, values = shape(f"{name}.attention.projection.linear.weight")
        joined = shape(f"{name}.attention.{keys}.linear.weight")[0] - values
        key_dim, rest = divmod(joined, heads * times)
        if rest or key_dim < 1 or values % heads:
            raise ValueError(
                f"{name}.attention: {heads} heads do not share {values} value and {joined} key "
                "channels"
            )
        found = {
            "num_heads": heads,
            "key_dim": key_dim,
            "attn_ratio": _ratio(values // heads, key_dim),
            "mlp_ratio": _ratio(shape(f"{name}.mlp.expand.linear.weight")[0], width),
        }
        return offsets, width, found

    channels = [shape(f"stem.convs.{index}.conv.weight", 4) for index in range(layers)]
    stages, grids = [], []
    for index, depth in enumerate(depths):
        name = f"stages.{index}.blocks.0"
        offsets, width, found = block(name, "qkv", 2)
        grids.append(_side(f"{name}.attention.core.attention_bias", offsets))
        stages.append({"depth": depth, "embed_dim": width, **found})
    shrinks = []
    for index, (before, after) in enumerate(itertools.pairwise(grids)):
        stride = next((n for n in range(2, before + 1) if -(-before // n) == after), None)
        if stride is None:
            raise ValueError(
                f"attention biases of stage {index} are for {before} tokens a side, of stage "
                f"{index + 1} for {after}, to which no stride leads"
            )
        shrinks.append({**block(f"shrinks.{index}", "key_value", 1)[2], "stride": stride})
    widths = tuple(stage["embed_dim"] for stage in stages)
    silu = (widths, depths, layers) in _WITH_SILU
    described = {
        "image_size": grids[0] * 2**layers,
        "in_channels": channels[0][1],
        "num_classes": shape("head.linear.weight")[0],
        "stem": {"kind": "conv", "channels": [each[0] for each in channels]},
        "stages": stages,
        "shrinks": shrinks,
        "distillation": has_teacher,
        **({"activation": "silu", "attention_activation": "silu"} if silu else {}),
    }
    return parse(described, "a LeViT")


def _numbers(state: Mapping[str, Tensor]) -> tuple[namings.Naming, int, tuple[int, ...]]:
    """The naming, the layers of the stem and the depths of stages of a LeViT's tensors."""
    if "patch_embed.0.c.weight" in state:
        layers = _count(state, r"patch_embed\.(\d+)\.c\.")
        depths = [0]
        for position in range(_count(state, r"blocks\.(\d+)\.")):
            if f"blocks.{position}.kv.c.weight" in state:
                depths.append(0)
            elif f"blocks.{position}.m.qkv.c.weight" in state:
                depths[-1] += 1
        return "released", layers, tuple(depths)
    naming: namings.Naming = "timm" if "stem.conv1.linear.weight" in state else "ours"
    stem = r"stem\.conv(\d+)\." if naming == "timm" else r"stem\.convs\.(\d+)\.conv\."
    layers = _count(state, stem)
    stages = _count(state, r"stages\.(\d+)\.")
    if not layers or not stages:
        some = next(iter(state), None)
        raise ValueError(f"the first tensor is called {some!r}" if some else "there is no tensor")
    depths = [_count(state, rf"stages\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)]
    return naming, layers, tuple(depths)


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers there are in names that begin so."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def _shape(state: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    """Of a tensor; 1x1 convolutions are taken for linear layers."""
    shape = tuple(state[name].shape)
    if len(shape) == axes + 2 and shape[2:] == (1, 1):
        shape = shape[:2]
    if len(shape) != axes or 0 in shape:
        raise ValueError(f"{name} has shape {list(shape)}, where {axes} axes are expected")
    return shape


def _side(name: str, tokens: int) -> int:
    side = math.isqrt(max(tokens, 0))
    if side < 1 or side * side != tokens:
        raise ValueError(
            f"{name} is for {tokens} tokens or offsets, which form no square, and no shape tells a "
            "rectangle"
        )
    return side


def _ratio(count: int, width: int) -> float:
    """The ratio that gives ``count`` when ``width`` is multiplied by it and rounded down."""
    ratio = count / width
    return ratio if int(width * ratio) == count else math.nextafter(ratio, math.inf)
