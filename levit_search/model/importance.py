"""Which channels and heads of a trained network matter most, and on which axes they stand.

An axis has a label, so that tensors of two networks can be compared: ``width.0`` are the channels
of the first stage, ``stem.1`` those of the layer of a convolutional stem that comes 1 before its
last, ``stages.0.blocks.1.heads`` an attention block's heads, with ``.key`` and ``.value`` the
channels of each of them, and ``.hidden`` those between the two layers of an MLP. Labels such as
``.qkv`` are of axes along which heads are joined.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from levit_search.architecture import Architecture, ConvStem, Graft, Levit, ResNetStem
from levit_search.architecture.levit import Shrink, Stage
from levit_search.image_size import Sides
from levit_search.model.source import TrainedWeights

Order = Literal["leading", "scale"]
"""What comes first where a network is narrower than its source.

``scale``: channels by the scale that batch norm gives them (without batch norm by the norm of their
weights), times the norm of the weights that read them. ``leading``: those that stand first, as in
weights that were trained for all networks of a space; nothing is made up for then, and of attention
biases the leading offsets are taken.
"""


@lru_cache(maxsize=2)  # a search asks for them with each candidate
def importance(source: TrainedWeights) -> dict[str, Tensor]:
    """How important the channels and heads behind each label are: the mean square that is written
    there times the square of what it is read with.

    Keys, values and hidden channels are ranked by their block, keys and values [H, K] by head.
    """
    return ranked(source, _by_scale(source))


def ranked(source: TrainedWeights, written: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See :func:`importance`; ``written`` are mean squares by label."""
    network, state = source.architecture, source.state
    sizes = label_sizes(network)
    found: dict[str, Tensor] = {}
    read = {label: torch.zeros(size) for label, size in sizes.items() if label.startswith("width.")}
    for name, (block, before, after) in blocks_of(network).items():
        heads = block.num_heads
        values = written[f"{name}.v"] * _gains(state, f"{name}.attention.projection")
        found[f"{name}.value"] = values.unflatten(0, (heads, -1))
        found[f"{name}.heads"] = found[f"{name}.value"].sum(dim=1)
        found[f"{name}.key"] = written[f"{name}.query"] * written[f"{name}.key"]
        found[f"{name}.hidden"] = written[f"{name}.hidden"] * _gains(state, f"{name}.mlp.contract")
        layers = ("key_value", "query") if isinstance(block, Shrink) else ("qkv",)
        for layer in layers:
            gains = _gains(state, f"{name}.attention.{layer}", f"{name}.attention.norm")
            read[f"width.{before}"] += gains
        read[f"width.{after}"] += _gains(state, f"{name}.mlp.expand", f"{name}.mlp.norm")
    last = f"width.{len(widths_of(network)) - 1}"
    if isinstance(network, Levit):
        read[last] += _gains(state, "head", "head.norm")
    elif last in read:
        read[last] += state["head.weight"].square().sum(dim=0) * state["trunk.norm.weight"] ** 2
    found |= {label: written[label] * gains for label, gains in read.items()}
    for label, layer in stem_readers(network).items():
        found[label] = written[label] * _gains(state, layer)
    return found


def _gains(state: Mapping[str, Tensor], layer: str, norm: str | None = None) -> Tensor:
    """The squared norm of what each channel is read with, batch norm after the layer included.

    Args:
        norm: one before the layer, where there is one.
    """
    weight = next(
        state[name] for p in ("linear", "conv") if (name := f"{layer}.{p}.weight") in state
    )
    by_row = weight.flatten(2).square().sum(dim=2) if weight.ndim > 2 else weight.square()
    variance = state.get(f"{layer}.norm.running_var")
    if norm == f"{layer}.norm":  # a classifier's own norm comes before it
        variance = None
    if variance is not None:
        scale = state[f"{layer}.norm.weight"].square() / (variance + _EPSILON)
        by_row = by_row * scale[:, None]
    gains = by_row.sum(dim=0)
    if norm is not None and f"{norm}.weight" in state:
        gains = gains * state[f"{norm}.weight"].square()
        before = state.get(f"{norm}.running_var")
        gains = gains if before is None else gains / (before + _EPSILON)
    return gains


_EPSILON = 1e-5  # of torch's batch norm


def _by_scale(source: TrainedWeights) -> dict[str, Tensor]:
    """The mean squares that batch norm's scale and shift give, or the weights' norms without it."""
    network, state = source.architecture, source.state

    def squares(layer: str) -> Tensor:
        scale, shift = state.get(f"{layer}.norm.weight"), state.get(f"{layer}.norm.bias")
        if scale is None:
            for part in ("linear", "conv"):
                if (weight := state.get(f"{layer}.{part}.weight")) is not None:
                    scale, shift = weight.flatten(1).norm(dim=1), state[f"{layer}.{part}.bias"]
        if scale is None or shift is None:  # the stem ends with a ResNet's own layers
            return torch.zeros(())
        return scale.square() + shift.square()

    sizes = label_sizes(network)
    found = {label: torch.zeros(n) for label, n in sizes.items() if label.startswith("width.")}
    stem = "stem.convs.0"
    if isinstance(network, Graft):
        stem = "trunk.projection"
    elif isinstance(network.stem, ConvStem):
        stem = f"stem.convs.{len(network.stem.channels) - 1}"
    elif isinstance(network.stem, ResNetStem):
        stem = "stem.projection"
    if found:
        found["width.0"] += squares(stem)
    for name, (block, _, after) in blocks_of(network).items():
        attention, heads, key = f"{name}.attention", block.num_heads, block.key_dim
        found[f"width.{after}"] += squares(f"{attention}.projection")
        found[f"width.{after}"] += squares(f"{name}.mlp.contract")
        found[f"{name}.hidden"] = squares(f"{name}.mlp.expand")
        if isinstance(block, Shrink):
            found[f"{name}.query"] = squares(f"{attention}.query").unflatten(0, (heads, -1))
            rest = squares(f"{attention}.key_value").unflatten(0, (heads, -1))
        else:
            joined = squares(f"{attention}.qkv").unflatten(0, (heads, -1))
            found[f"{name}.query"], rest = joined[:, :key], joined[:, key:]
        found[f"{name}.key"], values = rest[:, :key], rest[:, key:]
        found[f"{name}.v"] = values.flatten()
    for label, reader in stem_readers(network).items():
        found[label] = squares(f"stem.convs.{int(reader.rpartition('.')[2]) - 1}")
    return found


Axes = tuple[str | None, ...]
"""The label of each axis of a tensor; None for one that is not cut."""


@lru_cache(maxsize=64)
def blocks_of(network: Architecture) -> dict[str, tuple[Stage | Shrink, int, int]]:
    """Each pair of an attention and an MLP block by name, with the stages that it reads and writes;
    a trunk is one stage."""
    if isinstance(network, Graft):
        stage = network.trunk_stage
        if stage is None:
            return {}
        return {f"trunk.blocks.{index}": (stage, 0, 0) for index in range(stage.depth)}
    found: dict[str, tuple[Stage | Shrink, int, int]] = {}
    for s, stage in enumerate(network.stages):
        if s:
            found[f"shrinks.{s - 1}"] = (network.shrinks[s - 1], s - 1, s)
        found |= {f"stages.{s}.blocks.{index}": (stage, s, s) for index in range(stage.depth)}
    return found


def widths_of(network: Architecture) -> list[int]:
    if isinstance(network, Graft):
        return [network.trunk.embed_dim] if network.trunk is not None else []
    return [stage.embed_dim for stage in network.stages]


def grids_of(network: Architecture) -> Sequence[Sides]:
    """Rows and columns of tokens in each stage."""
    if isinstance(network, Graft):
        return [network.grid_sides] if network.trunk is not None else []
    return network.grids


@lru_cache(maxsize=64)
def label_sizes(network: Architecture) -> dict[str, int]:
    """The number of channels or heads behind each label; stems count from their last layer."""
    widths = widths_of(network)
    found = {f"width.{index}": width for index, width in enumerate(widths)}
    if isinstance(network, Levit) and isinstance(network.stem, ConvStem):
        channels = network.stem.channels[::-1]
        found |= {f"stem.{index}": size for index, size in enumerate(channels) if index}
    for name, (block, _, after) in blocks_of(network).items():
        found[f"{name}.heads"] = block.num_heads
        found[f"{name}.key"] = block.key_dim
        found[f"{name}.value"] = int(block.attn_ratio * block.key_dim)
        found[f"{name}.hidden"] = int(widths[after] * block.mlp_ratio)
    return found


# Labels of axes along which heads are joined, by the parts that a head has there.
JOINED = {
    "qkv": ("key", "key", "value"),
    "kv": ("key", "value"),
    "q": ("key",),
    "v": ("value",),
}


@lru_cache(maxsize=64)
def axes_of(network: Architecture) -> dict[str, Axes]:
    """The labels of all tensors that have any, by name."""
    found: dict[str, Axes] = {}

    def layer(name: str, rows: str | None, columns: str | None) -> None:
        """A linear layer or convolution and its batch norm, or its bias."""
        for part in ("linear", "conv"):
            found[f"{name}.{part}.weight"] = (rows, columns, None, None)
            found[f"{name}.{part}.bias"] = (rows,)
        norm(name, rows)

    def norm(name: str, channels: str | None) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.norm.{part}"] = (channels,)

    for name, (block, before, after) in blocks_of(network).items():
        attention, mlp = f"{name}.attention", f"{name}.mlp"
        read, written = f"width.{before}", f"width.{after}"
        found[f"{attention}.core.attention_bias"] = (f"{name}.heads", None)
        norm(attention, read)
        norm(mlp, written)
        if isinstance(block, Shrink):
            layer(f"{attention}.key_value", f"{name}.kv", read)
            layer(f"{attention}.query", f"{name}.q", read)
        else:
            layer(f"{attention}.qkv", f"{name}.qkv", read)
        layer(f"{attention}.projection", written, f"{name}.v")
        layer(f"{mlp}.expand", f"{name}.hidden", written)
        layer(f"{mlp}.contract", written, f"{name}.hidden")
    if isinstance(network, Graft):
        if network.trunk is not None:
            layer("trunk.projection", "width.0", None)
            norm("trunk", "width.0")
            for token in ("class_token", "distillation_token", "position_embedding"):
                found[f"trunk.{token}"] = (None, None, "width.0")
            for head in ("head", "head_dist"):
                found[f"{head}.weight"] = (None, "width.0")
        return found
    found["position_embedding"] = (None, None, "width.0")
    if isinstance(network.stem, ConvStem):
        layers = len(network.stem.channels)
        labels = [None, *(f"stem.{index}" for index in range(layers - 1, 0, -1)), "width.0"]
        for index in range(layers):
            layer(f"stem.convs.{index}", labels[index + 1], labels[index])
    else:
        layer("stem.convs.0", "width.0", None)
        layer("stem.projection", "width.0", None)
    for head in ("head", "head_dist"):
        last = f"width.{len(network.stages) - 1}"
        norm(head, last)
        found[f"{head}.linear.weight"] = (None, last)
    return found


def stem_readers(network: Architecture) -> dict[str, str]:
    """By label of a stem's channels, the convolution that reads them."""
    if not isinstance(network, Levit) or not isinstance(network.stem, ConvStem):
        return {}
    layers = len(network.stem.channels)
    return {f"stem.{index}": f"stem.convs.{layers - index}" for index in range(1, layers)}


def size_of(label: str | None, sizes: Mapping[str, int]) -> int:
    """Of a tensor's axis."""
    assert label is not None
    if label in sizes:
        return sizes[label]
    block, _, joined = label.rpartition(".")
    return sizes[f"{block}.heads"] * sum(sizes[f"{block}.{part}"] for part in JOINED[joined])


def shows(name: str, axes: Axes, label: str) -> bool:
    """Whether a tensor is a weight whose shape depends on what is behind a label."""
    if not name.endswith("linear.weight") or None in axes[:2]:
        return False
    block, _, part = label.rpartition(".")
    joined = [
        f"{block}.{each}" for each, parts in JOINED.items() if part in parts or part == "heads"
    ]
    return label in axes or any(each in axes for each in joined)
