"""Starting a network from the trained weights of another one, of which it is a part.

A network that is smaller than its source takes leading blocks, and of widths, heads and channels
within heads the most important ones, so that one source serves all networks of a space and a
smaller one's weights are a part of a larger one's. What depends on the grid is interpolated, the
first convolution is fitted to the channels of the images, and classifiers of other classes start
fresh. Where nothing changes the logits are the source's, bit by bit.

Shapes are named as in ``blocks``. An axis of a tensor has a label (``width.0``, or
``stages.0.blocks.1.heads``), and all axes of one label are cut alike.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levit_search.architecture import Architecture, ConvStem, Graft, Levit, ResNetStem
from levit_search.architecture.levit import Shrink, Stage
from levit_search.errors import InputError
from levit_search.model.build import Model, build
from levit_search.model.source import Source

Order = Literal["leading", "scale", "activation"]
"""What comes first where a network is narrower than its source.

``scale``: channels by the scale that batch norm gives them (without batch norm by the norm of their
weights), times the norm of the weights that read them. ``activation``: by the mean square that
activations have on images, times the same. ``leading``: those that stand first, as in weights that
were trained for all networks of a space; nothing is made up for then, and of attention biases the
leading offsets are taken.
"""

Axes = tuple[str | None, ...]
"""The label of each axis of a tensor; None for one that is not cut."""


@dataclass
class Transfer:
    """What came over from a source, by tensors of the network that starts."""

    source: str
    taken: int = 0
    """Elements that came over."""
    total: int = 0
    cut: set[str] = field(default_factory=set)
    """Labels of axes of which a part was taken."""
    resized: list[str] = field(default_factory=list)
    """Tensors that were interpolated, summed or repeated."""
    fresh: list[str] = field(default_factory=list)
    """Tensors that stay as they were."""

    def told(self) -> str:
        """All this in one line."""
        parts = [f"{100 * self.taken / max(1, self.total):.3g} % of the weights from {self.source}"]
        if self.cut:
            kinds = sorted({_kind(label) for label in self.cut})
            parts.append(f"a part of its {_listed(kinds)}")
        if self.resized:
            parts.append(f"{_listed(_layers(self.resized))} fitted to other images")
        if self.fresh:
            parts.append(f"{_listed(_layers(self.fresh))} fresh")
        return "; ".join(parts)


@torch.no_grad()
def transfer(
    source: Source, model: Model, order: Order = "scale", images: Tensor | None = None
) -> Transfer:
    """Put what fits of trained weights into a network, in place.

    Args:
        source: the weights.
        model: freshly initialised; what nothing comes over for stays as it is.
        order: what a narrower network takes.
        images: float [B, C, S, S], normalised, of any size; for the order ``activation`` alone.

    Returns:
        What came over and what did not.

    Raises:
        InputError: nothing fits (see :func:`misfit`), or ``activation`` has no images.
    """
    pair = _Pair(source.architecture, model.architecture)
    reason = pair.misfit(source.name)
    if reason is not None:
        raise InputError(reason)
    cut = pair.cut()
    ranks = _ranks(source, order, images) if cut else {}
    selected = _selected(pair.before_sizes, pair.after_sizes, ranks)
    result = Transfer(source.name, cut=cut)
    placed: dict[str, Tensor] = {}
    for name, own in model.state_dict().items():
        result.total += own.numel()
        found = source.state.get(pair.source_name(name)) if pair.goes_together(name) else None
        if found is not None:
            whole = _cut(found, _axes(pair.after).get(name, ()), selected)
            found = pair.fitted(name, whole, own, order)
            if found.shape == own.shape:
                result.taken += own.numel()
                placed[name] = found.to(own.dtype)
                if found is not whole and not _is_query(name):
                    result.resized.append(name)
                continue
        result.fresh.append(name)
    model.load_state_dict(placed, strict=False)
    return result


@torch.no_grad()
def ordered(source: Source, order: Order = "scale", images: Tensor | None = None) -> Source:
    """The same network with its most important channels and heads in the first places.

    Its logits are those of ``source`` but for rounding, and the leading parts of its tensors are
    those that :func:`transfer` gives to narrower networks.

    Args:
        source: the weights.
        order: what is important.
        images: as for :func:`transfer`.
    """
    sizes, axes = _sizes(source.architecture), _axes(source.architecture)
    selected = _selected(sizes, sizes, _ranks(source, order, images), is_whole=True)
    state = {name: _cut(each, axes.get(name, ()), selected) for name, each in source.state.items()}
    return Source(source.architecture, state, source.name)


def misfit(source: Source, network: Architecture) -> str | None:
    """Why a network can start from no part of trained weights; None where it can.

    The reason names a tensor, both shapes and what is possible.
    """
    return _Pair(source.architecture, network).misfit(source.name)


class _Pair:
    """A source's network and one that starts from it."""

    def __init__(self, before: Architecture, after: Architecture) -> None:
        self.before, self.after = before, after
        self.before_sizes, self.after_sizes = _sizes(before), _sizes(after)
        resnets = _resnet_of(before), _resnet_of(after)
        self._share_resnet = resnets[0] is not None and resnets[0][:2] == (resnets[1] or ())[:2]
        self._share_resnet_stem = resnets[0] == resnets[1]

    def misfit(self, where: str) -> str | None:
        """See :func:`misfit`."""
        return None if self._share_resnet else self._blocks_misfit(where)

    def _blocks_misfit(self, where: str = "") -> str | None:
        before, after = self.before, self.after
        if type(before) is not type(after) or not _blocks(before) or not _blocks(after):
            return (
                f"{where}: holds {_family(before)}, of which {_family(after)} has no part; "
                f"{_possible(before)}"
            )
        if before.norm != after.norm:
            return (
                f"{where}: has {before.norm} norm, the network has {after.norm} norm; "
                f"{_possible(before)}"
            )
        for label, size in self.after_sizes.items():
            if label.startswith("stem.") or size <= self.before_sizes.get(label, size):
                continue
            name, axes = next(each for each in _axes(after).items() if _shows(*each, label))
            shapes = [[_size(a, sizes) for a in axes[:2]] for sizes in self._both_sizes]
            return (
                f"{where}: {name} has shape {shapes[0]}, the network's has {shapes[1]}, where "
                f"{_words(label)} may be no more than the source's "
                f"{self.before_sizes[label]}, not {size}; {_possible(before)}"
            )
        return None

    @property
    def _both_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        return self.before_sizes, self.after_sizes

    def cut(self) -> set[str]:
        """Labels of which the network has less than its source."""
        if self._blocks_misfit() is not None:
            return set()
        before = self.before_sizes
        return {label for label, size in self.after_sizes.items() if size < before.get(label, 0)}

    def source_name(self, name: str) -> str:
        """What a tensor of the network is called in the source."""
        first, _, rest = name.partition(".")
        if (own := _resnet_prefix(self.after)) and name.startswith(own):
            return name.replace(own, _resnet_prefix(self.before), 1)
        if name.startswith("stem.convs."):
            _, _, index, tail = name.split(".", 3)
            return f"stem.convs.{int(index) + self._stem_shift}.{tail}"
        before = self.before
        if first == "head_dist" and isinstance(before, Levit) and not before.distillation:
            return f"head.{rest}"
        return name

    @property
    def _stem_shift(self) -> int:
        """By how many layers the source's stem is longer."""
        stems = [getattr(each, "stem", None) for each in (self.before, self.after)]
        lengths = [len(each.channels) for each in stems if isinstance(each, ConvStem)]
        return lengths[0] - lengths[1] if len(lengths) == 2 else 0

    def goes_together(self, name: str) -> bool:
        """Whether a tensor of the network may come from the source, if that has it."""
        before, after = self.before, self.after
        if (prefix := _resnet_prefix(after)) and name.startswith(prefix):
            is_stem = name == f"{prefix}conv1.weight"
            return self._share_resnet and (self._share_resnet_stem or not is_stem)
        if name.startswith("head"):
            if before.num_classes != after.num_classes or type(before) is not type(after):
                return False
            if isinstance(before, Graft) and isinstance(after, Graft) and after.trunk is None:
                return before.trunk is None and before.donor == after.donor
            return self._blocks_misfit() is None and len(_widths(before)) == len(_widths(after))
        if self._blocks_misfit() is not None:
            return False
        if isinstance(before, Levit) and isinstance(after, Levit) and name.startswith("stem."):
            return self._stem_goes_together(before, after, name)
        if isinstance(before, Graft) and isinstance(after, Graft):
            return not name.startswith("trunk.projection") or before.donor == after.donor
        return True

    def _stem_goes_together(self, before: Levit, after: Levit, name: str) -> bool:
        if not isinstance(after.stem, ConvStem) or not isinstance(before.stem, ConvStem):
            return before.stem.kind == after.stem.kind and (
                not isinstance(after.stem, ResNetStem) or before.stem == after.stem
            )
        index = int(name.split(".")[2])
        source = index + self._stem_shift
        if source < 0 or (source == 0) != (index == 0):
            return False
        from_end = len(after.stem.channels) - 1 - index
        labels = (f"stem.{from_end}", f"stem.{from_end + 1}")
        return all(
            self.after_sizes[label] <= self.before_sizes[label]
            for label in labels
            if label in self.after_sizes and label in self.before_sizes
        )

    def fitted(self, name: str, found: Tensor, own: Tensor, order: Order) -> Tensor:
        """A tensor that was cut, on the network's grid and for its images; the same where nothing
        changes."""
        last = name.rpartition(".")[2]
        if last == "attention_bias":
            block = name.partition(".attention.")[0]
            grids = [_grids(each)[_blocks(each)[block][1]] for each in (self.before, self.after)]
            return by_offset(found, grids[0], grids[1], by_share=order != "leading")
        if last == "position_embedding":
            grids = [_grids(each)[0] for each in (self.before, self.after)]
            return _positions(found, own, grids[0], grids[1])
        if own.ndim == 4 and own.shape != found.shape:
            return _for_images(found, own)
        if order != "leading" and _is_query(name):
            return self._scaled_queries(name, found)
        return found

    def _scaled_queries(self, name: str, found: Tensor) -> Tensor:
        """Queries of fewer channels, at a scale that keeps the sum over those that are left:
        attention divides by sqrt(K), which is less then."""
        block, _, rest = name.partition(".attention.")
        own, most = (sizes[f"{block}.key"] for sizes in self._both_sizes)
        is_last = rest.split(".")[1] == ("norm" if self.after.norm == "batch" else "linear")
        if own == most or not is_last or name.endswith(("running_mean", "running_var")):
            return found
        by_head = found.unflatten(0, (self.after_sizes[f"{block}.heads"], -1)).clone()
        by_head[:, :own] *= math.sqrt(own / most)
        return cast(Tensor, by_head.flatten(0, 1))


def _is_query(name: str) -> bool:
    layer = name.partition(".attention.")[2].partition(".")[0]
    return layer in ("qkv", "query") and not name.endswith("num_batches_tracked")


def by_offset(
    bias_hn: Tensor, before: tuple[int, int], after: tuple[int, int], by_share: bool = True
) -> Tensor:
    """Attention biases by absolute offset [H, R S] for another grid, bilinear between offsets.

    Offset 0 stays where it is, and grids that agree keep the very values.

    Args:
        bias_hn: one value a head and offset, rows first.
        before: rows R and columns S of tokens that they were learnt for.
        after: of the network that takes them.
        by_share: whether an offset is the same share of the image before and after; otherwise it is
            the same number of tokens. Offsets beyond the largest known one have its value.
    """
    if before == after:
        return bias_hn
    grid = bias_hn.unflatten(1, before)
    for axis, (old, new) in enumerate(zip(before, after, strict=True), start=1):
        places = torch.arange(new, device=grid.device, dtype=grid.dtype)
        places = (places * (old / new) if by_share else places).clamp(max=old - 1)
        lower = places.long()
        upper = (lower + 1).clamp(max=old - 1)
        share = (places - lower).view([-1 if each == axis else 1 for each in range(3)])
        grid = torch.lerp(grid.index_select(axis, lower), grid.index_select(axis, upper), share)
    return cast(Tensor, grid.flatten(1))


def _positions(
    found: Tensor, own: Tensor, before: tuple[int, int], after: tuple[int, int]
) -> Tensor:
    """Position embeddings [1, N, C] on another grid, bicubic; those of extra tokens stay.

    A distillation token that the source lacks keeps the network's own.
    """
    extra = found.shape[1] - math.prod(before), own.shape[1] - math.prod(after)
    if before == after and extra[0] == extra[1]:
        return found
    tokens = found[:, extra[0] :]
    if before != after:
        from timm.layers import resample_abs_pos_embed

        tokens = resample_abs_pos_embed(tokens, list(after), list(before), num_prefix_tokens=0)
    kept = min(extra)
    return torch.cat([found[:, :kept], own[:, kept : extra[1]], tokens], dim=1)


def _for_images(found: Tensor, own: Tensor) -> Tensor:
    """A first convolution [C, I, K, K] for images of other channels, or for patches of another
    size; other kernels are left as they are.

    Channels are summed for grey images, else repeated and scaled, as timm does; kernels of patches
    are resampled (Beyer et al. 2023, *FlexiViT*).
    """
    before, channels = found.shape[1], own.shape[1]
    if channels == 1:
        found = found.sum(dim=1, keepdim=True)
    elif before != channels:
        repeated = found.repeat(1, -(-channels // before), 1, 1)
        found = repeated[:, :channels] * (before / channels)
    if found.shape[2:] != own.shape[2:]:
        from timm.layers import resample_patch_embed

        found = resample_patch_embed(found, list(own.shape[2:]))
    return found


# What there is in a network, by label.


@lru_cache(maxsize=64)
def _blocks(network: Architecture) -> dict[str, tuple[Stage | Shrink, int, int]]:
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


def _widths(network: Architecture) -> list[int]:
    if isinstance(network, Graft):
        return [network.trunk.embed_dim] if network.trunk is not None else []
    return [stage.embed_dim for stage in network.stages]


def _grids(network: Architecture) -> list[tuple[int, int]]:
    """Rows and columns of tokens in each stage."""
    if isinstance(network, Graft):
        return [(network.grid, network.grid)] if network.grid is not None else []
    return [(grid, grid) for grid in network.grids]


@lru_cache(maxsize=64)
def _sizes(network: Architecture) -> dict[str, int]:
    """The number of channels or heads behind each label; stems count from their last layer."""
    widths = _widths(network)
    found = {f"width.{index}": width for index, width in enumerate(widths)}
    if isinstance(network, Levit) and isinstance(network.stem, ConvStem):
        channels = network.stem.channels[::-1]
        found |= {f"stem.{index}": size for index, size in enumerate(channels) if index}
    for name, (block, _, after) in _blocks(network).items():
        found[f"{name}.heads"] = block.num_heads
        found[f"{name}.key"] = block.key_dim
        found[f"{name}.value"] = int(block.attn_ratio * block.key_dim)
        found[f"{name}.hidden"] = int(widths[after] * block.mlp_ratio)
    return found


# Labels of axes along which heads are joined, by the parts that a head has there.
_JOINED = {
    "qkv": ("key", "key", "value"),
    "kv": ("key", "value"),
    "q": ("key",),
    "v": ("value",),
}


@lru_cache(maxsize=64)
def _axes(network: Architecture) -> dict[str, Axes]:
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

    for name, (block, before, after) in _blocks(network).items():
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


def _size(label: str | None, sizes: Mapping[str, int]) -> int:
    """Of a tensor's axis."""
    assert label is not None
    if label in sizes:
        return sizes[label]
    block, _, joined = label.rpartition(".")
    return sizes[f"{block}.heads"] * sum(sizes[f"{block}.{part}"] for part in _JOINED[joined])


def _shows(name: str, axes: Axes, label: str) -> bool:
    """Whether a tensor is a weight whose shape depends on what is behind a label."""
    if not name.endswith("linear.weight") or None in axes[:2]:
        return False
    block, _, part = label.rpartition(".")
    joined = [
        f"{block}.{each}" for each, parts in _JOINED.items() if part in parts or part == "heads"
    ]
    return label in axes or any(each in axes for each in joined)


def _selected(
    before: Mapping[str, int],
    after: Mapping[str, int],
    ranks: Mapping[str, Tensor],
    is_whole: bool = False,
) -> dict[str, Tensor]:
    """By label, the places in the source that a network takes, most important first if
    ``is_whole`` and as they stand otherwise."""
    found: dict[str, Tensor] = {}
    for label, size in after.items():
        if size > before.get(label, 0):
            continue
        most = before[label]
        block, _, part = label.rpartition(".")
        if part not in ("key", "value"):
            found[label] = _chosen(ranks.get(label), (most,), size, is_whole)
            continue
        # In each head of those that are taken; heads come before in the sizes.
        heads = found[f"{block}.heads"]
        rank = ranks[label][heads] if label in ranks else None
        found[label] = _chosen(rank, (len(heads), most), size, is_whole)
    for block in {label.rpartition(".")[0] for label in found if label.endswith(".heads")}:
        heads = found[f"{block}.heads"]
        for joined, parts in _JOINED.items():
            starts = [
                sum(before[f"{block}.{each}"] for each in parts[:i]) for i in range(len(parts) + 1)
            ]
            pieces = [found[f"{block}.{part}"] + starts[i] for i, part in enumerate(parts)]
            places = heads[:, None] * starts[-1] + torch.cat(pieces, dim=1)
            found[f"{block}.{joined}"] = places.flatten()
    return found


def _chosen(rank: Tensor | None, shape: tuple[int, ...], size: int, is_whole: bool) -> Tensor:
    """The ``size`` places of the highest rank along the last axis; of no rank the first."""
    if rank is None or (size == shape[-1] and not is_whole):
        return torch.arange(size).expand(*shape[:-1], size)
    places = rank.argsort(dim=-1, descending=True, stable=True)[..., :size]
    return places if is_whole else places.sort(dim=-1).values


def _cut(tensor: Tensor, axes: Axes, selected: Mapping[str, Tensor]) -> Tensor:
    """The selected places along each axis that has a label; the very tensor where all are taken."""
    for axis, label in enumerate(axes[: tensor.ndim]):
        if label is None or label not in selected:
            continue
        places = selected[label]
        if len(places) == tensor.shape[axis] and torch.equal(places, torch.arange(len(places))):
            continue
        tensor = tensor.index_select(axis, places)
    return tensor


# What is important in a source.


def _ranks(source: Source, order: Order, images: Tensor | None) -> dict[str, Tensor]:
    """How important the channels and heads behind each label are: the mean square that is written
    there times the square of what it is read with.

    Keys, values and hidden channels are ranked by their block, keys and values [H, K] by head.
    """
    if order == "leading":
        return {}
    if order == "scale":
        return _ranks_by_scale(source)
    if images is None:
        raise InputError("weights: ordering by activations needs images")
    return _ranked(source, _measured(source, images))


@lru_cache(maxsize=2)  # a search asks for them with each candidate
def _ranks_by_scale(source: Source) -> dict[str, Tensor]:
    return _ranked(source, _by_scale(source))


def _ranked(source: Source, written: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See :func:`_ranks`; ``written`` are mean squares by label."""
    network, state = source.architecture, source.state
    sizes = _sizes(network)
    found: dict[str, Tensor] = {}
    read = {label: torch.zeros(size) for label, size in sizes.items() if label.startswith("width.")}
    for name, (block, before, after) in _blocks(network).items():
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
    last = f"width.{len(_widths(network)) - 1}"
    if isinstance(network, Levit):
        read[last] += _gains(state, "head", "head.norm")
    elif last in read:
        read[last] += state["head.weight"].square().sum(dim=0) * state["trunk.norm.weight"] ** 2
    found |= {label: written[label] * gains for label, gains in read.items()}
    for label, layer in _stem_readers(network).items():
        found[label] = written[label] * _gains(state, layer)
    return found


def _stem_readers(network: Architecture) -> dict[str, str]:
    """By label of a stem's channels, the convolution that reads them."""
    if not isinstance(network, Levit) or not isinstance(network.stem, ConvStem):
        return {}
    layers = len(network.stem.channels)
    return {f"stem.{index}": f"stem.convs.{layers - index}" for index in range(1, layers)}


def _gains(state: Mapping[str, Tensor], layer: str, norm: str | None = None) -> Tensor:
    """The squared norm of what each channel is read with, batch norm after the layer included.

    Args:
        state: with the layer.
        layer: its name.
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


def _by_scale(source: Source) -> dict[str, Tensor]:
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

    sizes = _sizes(network)
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
    for name, (block, _, after) in _blocks(network).items():
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
    for label, reader in _stem_readers(network).items():
        index = int(reader.rpartition(".")[2])
        found[label] = squares(f"stem.convs.{index - 1}")
    return found


def _measured(source: Source, images: Tensor) -> dict[str, Tensor]:
    """The mean squares of activations on images, which are brought to the source's size."""
    network = source.architecture
    with torch.random.fork_rng(devices=[]):
        model = build(network)
    model.load_state_dict(source.state)
    model.eval()
    found: dict[str, Tensor] = {}

    def hook(name: str, take: Callable[[Tensor], dict[str, Tensor]]) -> None:
        def measured(_: nn.Module, __: Any, output: Tensor) -> None:
            for label, square in take(output).items():
                found[label] = found.get(label, torch.zeros(())) + square

        model.get_submodule(name).register_forward_hook(measured)

    def by_channel(label: str) -> Callable[[Tensor], dict[str, Tensor]]:
        def take(x: Tensor) -> dict[str, Tensor]:
            axes = (0, 2, 3) if x.ndim == 4 else (0, 1)
            return {label: x.square().mean(dim=axes)}

        return take

    def by_head(name: str, heads: int, key: int, parts: Iterable[str]) -> Callable[..., Any]:
        def take(x_btc: Tensor) -> dict[str, Tensor]:
            squares = x_btc.square().mean(dim=(0, 1)).unflatten(0, (heads, -1))
            return {
                f"{name}.{part}": squares[:, i * key : (i + 1) * key]
                for i, part in enumerate(parts)
            }

        return take

    for name, (block, _, after) in _blocks(network).items():
        attention, heads, key = f"{name}.attention", block.num_heads, block.key_dim
        hook(name, by_channel(f"width.{after}"))
        hook(f"{name}.mlp.activation", by_channel(f"{name}.hidden"))
        hook(f"{attention}.activation", by_channel(f"{name}.v"))
        if isinstance(block, Shrink):
            hook(f"{attention}.query", by_head(name, heads, key, ["query"]))
            hook(f"{attention}.key_value", by_head(name, heads, key, ["key"]))
        else:
            hook(f"{attention}.qkv", by_head(name, heads, key, ["query", "key"]))
    for label, reader in _stem_readers(network).items():
        index = int(reader.rpartition(".")[2])
        hook(f"stem.convs.{index - 1}", by_channel(label))
    if images.shape[1] != network.in_channels:
        images = images.mean(dim=1, keepdim=True).expand(-1, network.in_channels, -1, -1)
    size = (network.image_size, network.image_size)
    model(F.interpolate(images.float().cpu(), size, mode="bilinear", antialias=True))
    return found


# Words.


def _resnet_of(network: Architecture) -> tuple[str, float, str] | None:
    """The ResNet that a network begins with: its name, width and stem."""
    if isinstance(network, Graft):
        donor = network.donor
        return (donor.name, donor.width_scale, donor.stem) if donor is not None else None
    stem = network.stem
    return (stem.kind, 1, "imagenet") if isinstance(stem, ResNetStem) else None


def _resnet_prefix(network: Architecture) -> str:
    """Of its tensors; empty where there is none."""
    if _resnet_of(network) is None:
        return ""
    return "donor." if isinstance(network, Graft) else "stem.resnet."


def _family(network: Architecture) -> str:
    if isinstance(network, Levit):
        return "a LeViT"
    if network.trunk is None:
        return "a ResNet"
    return "a DeiT" if network.donor is None else "a graft"


def _possible(network: Architecture) -> str:
    """Which networks can start from one."""
    resnet = _resnet_of(network)
    begins = f"a network that begins with a {resnet[0]}" if resnet is not None else ""
    if not _blocks(network):
        return f"possible is {begins}"
    if isinstance(network, Graft):
        assert network.trunk is not None
        most = f"a trunk of up to {network.trunk.embed_dim} channels, {network.trunk.num_heads} "
        most += f"heads of {network.trunk.embed_dim // network.trunk.num_heads}"
    else:
        most = f"a LeViT with {network.norm} norm of up to {network.summary()} (any depth)"
    return f"possible is {most}{' or ' if begins else ''}{begins}"


def _words(label: str) -> str:
    """What is behind a label, by the field of an architecture."""
    place, _, part = label.rpartition(".")
    if place == "width":
        return f"embed_dim of stage {part}"
    words = {"heads": "num_heads", "key": "key_dim", "value": "value channels a head"}
    return f"{words.get(part, 'hidden channels')} of {place}"


def _kind(label: str) -> str:
    place, _, part = label.rpartition(".")
    if place in ("width", "stem"):
        return "channels"
    return {"heads": "heads", "hidden": "hidden channels"}.get(part, "channels of heads")


_LAYER = re.compile(
    r"(trunk\.blocks\.\d+|stages\.\d+\.blocks\.\d+|shrinks\.\d+|stem\.convs\.\d+|stem\.\w+"
    r"|donor\.\w+|trunk\.\w+|\w+)"
)


def _layers(names: Iterable[str]) -> list[str]:
    """The layers or blocks that tensors are of, each once."""
    found: dict[str, None] = {}
    for name in names:
        match = _LAYER.match(name)
        assert match is not None
        found["attention biases" if name.endswith("attention_bias") else match[0]] = None
    return list(found)


def _listed(words: list[str]) -> str:
    most = 6
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
