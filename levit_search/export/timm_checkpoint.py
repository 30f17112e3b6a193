"""A network as a checkpoint of timm, where one of timm's networks can express it.

timm's ``levit_*`` take other widths, depths and activations as arguments, but have one key
dimension for all blocks and fixed shrinking blocks; its DeiTs and ResNets are the two ends of the
graft family.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from levit_search.architecture import LEVITS, Architecture, ConvStem, Graft, Levit, published
from levit_search.architecture.resnet import stage_channels
from levit_search.errors import InputError
from levit_search.export.formats import Preprocessing
from levit_search.files import WEIGHTS_KEY, weights_checksum, write_atomically
from levit_search.image_size import canonical_size, image_shape, plain_size, sides
from levit_search.model import Model, to_timm

_ACTIVATIONS = {"none": "identity", "hardswish": "hard_swish"}  # the others have our names
_STEMS = {3: "s8", 4: "s16"}  # by their number of convolutions
_DEITS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # width and heads


@dataclass(frozen=True)
class TimmCheckpoint:
    """Weights under timm's names and what timm has to be told to build their network.

    ``timm.create_model(name, checkpoint_path="timm/model.safetensors", **arguments)`` loads them
    strictly, as does ``timm.create_model("local-dir:timm", pretrained=True)`` with timm 1.0.16 or
    newer.
    """

    name: str
    arguments: dict[str, object]
    """Plain data; what the name says already is left out."""
    tensors: dict[str, Tensor]
    config: Mapping[str, object]
    """``config.json``: the name, the arguments, and how images become inputs."""

    def write(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, the layout of timm's ``local-dir``.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.json", json.dumps(self.config, indent=2) + "\n")
        weights = {name: tensor.cpu().contiguous() for name, tensor in self.tensors.items()}
        metadata = {"format": "pt", WEIGHTS_KEY: weights_checksum(save(weights))}
        write_atomically(folder / "model.safetensors", save(weights, metadata))


def timm_checkpoint(model: Model, preprocessing: Preprocessing) -> TimmCheckpoint:
    """The weights of ``model`` for one of timm's networks.

    Args:
        model: of either family.
        preprocessing: as :func:`levit_search.export.formats.preprocessing` gives it. timm
            scales the shorter side and cuts out the middle, which for ``square-then-resize`` is
            the same but for how an odd remainder is rounded.

    Raises:
        InputError: timm has no such network; the message says what it lacks.
    """
    network = model.architecture
    lacks = _lacks(network) if isinstance(network, Levit) else _graft_lacks(network)
    if lacks:
        raise InputError(f"timm has no such network: {'; '.join(lacks)}")
    name, arguments = _levit(network) if isinstance(network, Levit) else _graft_end(network)
    config = {
        "architecture": name,
        "num_classes": network.num_classes,
        "pretrained_cfg": _pretrained_config(network, preprocessing),
        "model_args": arguments,
    }
    return TimmCheckpoint(name, arguments, to_timm(model), config)


# --- The LeViT family.


def _lacks(network: Levit) -> list[str]:
    """What keeps timm's ``levit_*`` from being this network."""
    stem, stages, shrinks = network.stem, network.stages, network.shrinks
    lacks = []
    if network.norm != "batch":
        lacks.append("its LeViTs have batch norm only")
    if network.position != "bias":
        lacks.append("its LeViTs have no position embedding")
    if not isinstance(stem, ConvStem):
        lacks.append(f"its LeViTs have no {stem.kind} stem")
    else:
        width, layers = stages[0].embed_dim, len(stem.channels)
        halved = tuple(width // 2**halvings for halvings in reversed(range(layers)))
        if layers not in _STEMS:
            lacks.append(f"its LeViTs have stems of 3 or 4 convolutions, not {layers}")
        elif stem.channels != halved:
            lacks.append(
                "its stems double their channels up to the width: " + ", ".join(map(str, halved))
            )
    key_dims = {stage.key_dim for stage in stages} | {shrink.key_dim for shrink in shrinks}
    if len(key_dims) > 1:
        several = ", ".join(map(str, sorted(key_dims)))
        lacks.append(f"its LeViTs have one key_dim for all blocks, not {several}")
    for index, (before, shrink) in enumerate(zip(stages, shrinks, strict=False)):
        heads = before.embed_dim // shrink.key_dim
        fixed = {"stride": 2, "attn_ratio": 4, "mlp_ratio": 2, "num_heads": heads}
        for field, value in fixed.items():
            if (found := getattr(shrink, field)) != value:
                lacks.append(f"its shrinking block {index} has {field} {value}, not {found:g}")
    return lacks


def _levit(network: Levit) -> tuple[str, dict[str, object]]:
    """The most alike of timm's LeViTs, and the arguments that make it this one."""

    def unlike(name: str) -> float:
        other = published(name)
        assert isinstance(other, Levit)
        pairs = list(zip(network.stages, other.stages, strict=False))
        widths = sum(abs(math.log(ours.embed_dim / theirs.embed_dim)) for ours, theirs in pairs)
        return widths + 0.01 * sum(abs(ours.depth - theirs.depth) for ours, theirs in pairs)

    name = min(LEVITS, key=unlike)
    variant = published(name)
    assert isinstance(variant, Levit)
    asked, known = _levit_arguments(network), _levit_arguments(variant)
    # The attention activation is the other one where it is not given.
    known |= {"drop_path_rate": 0.0, "attn_act_layer": asked["act_layer"]}
    return name.lower().replace("-", "_"), _other(asked, known)


def _levit_arguments(network: Levit) -> dict[str, object]:
    assert isinstance(network.stem, ConvStem)
    attention = network.attention_activation
    found = _sizes(network)
    for field in ("embed_dim", "depth", "num_heads", "attn_ratio", "mlp_ratio"):
        values = [getattr(stage, field) for stage in network.stages]
        is_one = field.endswith("_ratio") and len(set(values)) == 1  # timm takes a number, too
        found[field] = values[0] if is_one else values
    return found | {
        "key_dim": network.stages[0].key_dim,
        "stem_type": _STEMS[len(network.stem.channels)],
        "act_layer": _ACTIVATIONS.get(network.activation, network.activation),
        "attn_act_layer": _ACTIVATIONS.get(attention, attention),
        "drop_path_rate": network.drop_path,
        "distilled": network.distillation,
    }


# --- The ends of the graft family.


def _graft_lacks(network: Graft) -> list[str]:
    """What keeps timm's DeiTs and ResNets from being this network."""
    donor = network.donor
    if donor is None:
        return []
    if network.trunk is not None:
        return ["it has no grafts, only their ends: ResNets and DeiTs"]
    lacks = []
    if donor.stages < 4:
        lacks.append(f"its ResNets have four stages, not {donor.stages}")
    if donor.stem == "small":
        lacks.append("its ResNets have no small stem")
    if network.distillation:
        lacks.append("its ResNets have no second head for a teacher's answers")
    return lacks


def _graft_end(network: Graft) -> tuple[str, dict[str, object]]:
    """A DeiT's or a ResNet's name, and the arguments that make it this one."""
    known: dict[str, object] = {"in_chans": 3, "num_classes": 1000}
    asked = _sizes(network)
    if network.donor is not None:
        del asked["img_size"]  # a ResNet takes images of any size
        for arguments, scale in ((asked, network.donor.width_scale), (known, 1)):
            arguments["channels"] = [stage_channels(stage, scale) for stage in range(1, 5)]
        return network.donor.name, _other(asked, known)
    trunk = network.trunk
    assert trunk is not None
    size = min(_DEITS, key=lambda name: abs(math.log(trunk.embed_dim / _DEITS[name][0])))
    width, heads = _DEITS[size]
    known |= {
        "img_size": 224,
        "patch_size": 16,
        "embed_dim": width,
        "depth": 12,
        "num_heads": heads,
        "mlp_ratio": 4,
        "drop_path_rate": 0.0,
    }
    asked |= {
        "patch_size": network.patch,
        "embed_dim": trunk.embed_dim,
        "depth": trunk.depth,
        "num_heads": trunk.num_heads,
        "mlp_ratio": trunk.mlp_ratio,
        "drop_path_rate": network.drop_path,  # timm lets it grow with the depth up to this
    }
    distilled = "distilled_" if network.distillation else ""
    return f"deit_{size}_{distilled}patch16_224", _other(asked, known)


# --- What both families need.


def _sizes(network: Architecture) -> dict[str, object]:
    return {
        "img_size": plain_size(network.image_size),
        "in_chans": network.in_channels,
        "num_classes": network.num_classes,
    }


def _other(asked: Mapping[str, object], known: Mapping[str, object]) -> dict[str, object]:
    """The arguments that differ from those that a name stands for."""
    return {key: value for key, value in asked.items() if value != known[key]}


def _pretrained_config(network: Architecture, preprocessing: Preprocessing) -> dict[str, object]:
    """timm's description of a checkpoint: what images it takes and which layers an end is."""
    is_resnet = isinstance(network, Graft) and network.trunk is None
    if isinstance(network, Levit):
        first, heads = "stem.conv1.linear", ["head.linear", "head_dist.linear"]
    elif is_resnet:
        first, heads = "conv1", ["fc"]
    else:
        first, heads = "patch_embed.proj", ["head", "head_dist"]
    if not network.distillation:
        heads = heads[:1]
    shown = 1.0
    if preprocessing["fit"] == "resize-then-crop":
        size = sides(canonical_size(preprocessing["image_size"]))
        before = sides(canonical_size(preprocessing["resize"]))
        # timm rounds size / share down; the last of these gives a side whatever its rounding.
        shares = (1.0, 0.875, round(size[0] / before[0], 3), size[0] / (before[0] + 0.5))
        shown = next(s for s in shares if [math.floor(side / s) for side in size] == list(before))
    return {
        "input_size": list(image_shape(network)),
        "fixed_input_size": not is_resnet,
        "interpolation": preprocessing["interpolation"],
        "crop_pct": shown,
        "crop_mode": "center",
        "mean": list(preprocessing["mean"]),
        "std": list(preprocessing["std"]),
        "num_classes": network.num_classes,
        "label_names": list(preprocessing["class_names"]),
        "pool_size": None,
        "first_conv": first,
        "classifier": heads if len(heads) > 1 else heads[0],
    }
