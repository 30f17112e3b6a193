"""What our tensors are called in timm's and in the released code, and how they lie there.

The names are made by one walk over the architecture, each layer with its three names, so that a
layer that one of the codes cannot express is found out while walking.
"""

from collections.abc import Iterator
from typing import Literal, cast

from torch import Tensor

from levit_search.architecture import Architecture, ConvStem, Graft, Levit
from levit_search.errors import InputError

Naming = Literal["ours", "timm", "released"]

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def names(architecture: Architecture, naming: Naming) -> dict[str, str]:
    """From our tensor names to those of ``naming``; donors' tensors are left to timm's own names.

    Raises:
        InputError: the naming belongs to code that has no such network.
    """
    if isinstance(architecture, Graft):
        return _graft_names(architecture, naming)
    if not isinstance(architecture.stem, ConvStem) or architecture.norm != "batch":
        raise InputError(f"only convolutional stems and batch norm have names in the {naming} code")
    if architecture.position != "bias":
        raise InputError(f"the {naming} code has no position embedding")
    column = {"timm": 1, "released": 2}[naming]
    return {
        layer[0] + ending[0]: layer[column] + ending[column]
        for layer, endings in _layers(architecture)
        for ending in endings
    }


def from_timm(architecture: Architecture, name: str, tensor: Tensor) -> Tensor:
    """A tensor as ours ``name`` lies.

    timm's ViTs keep queries, keys and values of all heads together; ours lie head by head. A tensor
    that cannot be split so is returned as it came, for its shape to be refused.
    """
    heads = _heads_of_qkv(architecture, name)
    if not heads or tensor.ndim == 0 or len(tensor) % (3 * heads):
        return tensor
    return cast(Tensor, tensor.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2))


def into_timm(architecture: Architecture, name: str, tensor: Tensor) -> Tensor:
    """The inverse of :func:`from_timm`."""
    heads = _heads_of_qkv(architecture, name)
    if not heads:
        return tensor
    return cast(Tensor, tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2))


def _heads_of_qkv(architecture: Architecture, name: str) -> int | None:
    """Heads of the DeiT layer that a tensor of queries, keys and values belongs to."""
    if not isinstance(architecture, Graft) or architecture.trunk is None or ".qkv." not in name:
        return None
    return architecture.trunk.num_heads


def _graft_names(architecture: Graft, naming: Naming) -> dict[str, str]:
    if naming != "timm":
        raise InputError(f"the {naming} code has no grafts")
    if architecture.donor is not None and architecture.trunk is not None:
        raise InputError("timm has no grafts, only their ends: ResNets and DeiTs")
    if architecture.donor is not None:
        if architecture.donor.stages < 4:
            raise InputError(f"timm has no ResNet cut after stage {architecture.donor.stages}")
        if architecture.donor.stem == "small":
            raise InputError("timm has no ResNet with the small stem")
    if architecture.trunk is None:
        return {f"head.{part}": f"fc.{part}" for part in ("weight", "bias")}
    tokens = {
        "trunk.class_token": "cls_token",
        "trunk.distillation_token": "dist_token",
        "trunk.position_embedding": "pos_embed",
    }
    layers = {"trunk.projection.conv": "patch_embed.proj", "trunk.norm": "norm"}
    for index in range(architecture.trunk.depth):
        ours, timm = f"trunk.blocks.{index}", f"blocks.{index}"
        layers |= {
            f"{ours}.attention.norm": f"{timm}.norm1",
            f"{ours}.attention.qkv.linear": f"{timm}.attn.qkv",
            f"{ours}.attention.projection.linear": f"{timm}.attn.proj",
            f"{ours}.mlp.norm": f"{timm}.norm2",
            f"{ours}.mlp.expand.linear": f"{timm}.mlp.fc1",
            f"{ours}.mlp.contract.linear": f"{timm}.mlp.fc2",
        }
    layers |= {"head": "head", "head_dist": "head_dist"}
    parts = ("weight", "bias")
    return tokens | {f"{ours}.{p}": f"{timm}.{p}" for ours, timm in layers.items() for p in parts}


# One tensor's ending under each naming: ours, timm's, released.
_Ending = tuple[str, str, str]

_CONV: list[_Ending] = [
    (".conv.weight", ".linear.weight", ".c.weight"),
    *[(f".norm.{n}", f".bn.{n}", f".bn.{n}") for n in _NORM],
]
_LINEAR: list[_Ending] = [(".linear.weight", ".linear.weight", ".c.weight"), *_CONV[1:]]
_HEAD: list[_Ending] = [
    *[(f".linear.{n}", f".linear.{n}", f".l.{n}") for n in ("weight", "bias")],
    *_CONV[1:],
]
_BIAS: list[_Ending] = [(".core.attention_bias", ".attention_biases", ".attention_biases")]


def _layers(architecture: Levit) -> Iterator[tuple[tuple[str, str, str], list[_Ending]]]:
    """Each layer's (our name, timm's, the released one) with the endings of its tensors.

    The released model keeps all blocks in one list, attention, MLP and shrinking blocks counted
    alike, and wraps a residual branch as ``m``.
    """
    assert isinstance(architecture.stem, ConvStem)
    for i in range(len(architecture.stem.channels)):
        yield (f"stem.convs.{i}", f"stem.conv{i + 1}", f"patch_embed.{2 * i}"), _CONV
    position = 0
    for s, stage in enumerate(architecture.stages):
        if s:
            ours, timm = f"shrinks.{s - 1}", f"stages.{s}.downsample"
            down, released = f"{timm}.attn_downsample", f"blocks.{position}"
            yield (f"{ours}.attention", down, released), _BIAS
            yield (f"{ours}.attention.key_value", f"{down}.kv", f"{released}.kv"), _LINEAR
            yield (f"{ours}.attention.query", f"{down}.q.ln", f"{released}.q.1"), _LINEAR
            projection = f"{ours}.attention.projection"
            yield (projection, f"{down}.proj.ln", f"{released}.proj.1"), _LINEAR
            yield from _mlp(f"{ours}.mlp", f"{timm}.mlp", f"blocks.{position + 1}.m")
            position += 2
        for b in range(stage.depth):
            ours, timm = f"stages.{s}.blocks.{b}", f"stages.{s}.blocks.{b}"
            attn, released = f"{timm}.attn", f"blocks.{position}.m"
            yield (f"{ours}.attention", attn, released), _BIAS
            yield (f"{ours}.attention.qkv", f"{attn}.qkv", f"{released}.qkv"), _LINEAR
            projection = f"{ours}.attention.projection"
            yield (projection, f"{attn}.proj.ln", f"{released}.proj.1"), _LINEAR
            yield from _mlp(f"{ours}.mlp", f"{timm}.mlp", f"blocks.{position + 1}.m")
            position += 2
    yield ("head", "head", "head"), _HEAD
    if architecture.distillation:
        yield ("head_dist", "head_dist", "head_dist"), _HEAD


def _mlp(
    ours: str, timm: str, released: str
) -> Iterator[tuple[tuple[str, str, str], list[_Ending]]]:
    yield (f"{ours}.expand", f"{timm}.ln1", f"{released}.0"), _LINEAR
    yield (f"{ours}.contract", f"{timm}.ln2", f"{released}.2"), _LINEAR
