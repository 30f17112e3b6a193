"""What the axes of a network's tensors stand for, so that tensors of two networks can be compared.

An axis has a label: ``width.0`` are the channels of the first stage, ``stem.1`` those of the layer
of a convolutional stem that comes 1 before its last, ``stages.0.blocks.1.heads`` an attention
block's heads, with ``.key`` and ``.value`` the channels of each of them, and ``.hidden`` those
between the two layers of an MLP. Labels such as ``.qkv`` are of axes along which heads are joined.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from levit_search.architecture import Architecture, ConvStem, Graft, Levit
from levit_search.architecture.levit import Shrink, Stage
from levit_search.image_size import Sides

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
