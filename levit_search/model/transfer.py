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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from levit_search.architecture import Architecture, ConvStem, Graft, Levit, ResNetStem
from levit_search.errors import InputError
from levit_search.image_size import Sides
from levit_search.model.build import Model
from levit_search.model.importance import (
    JOINED,
    Axes,
    Order,
    axes_of,
    blocks_of,
    grids_of,
    importance,
    label_sizes,
    shows,
    size_of,
    widths_of,
)
from levit_search.model.source import TrainedWeights


@dataclass
class Transfer:
    """What came over from a source, by tensors of the network that starts."""

    source: str
    taken: int = 0
    """Elements that came over."""
    total: int = 0
    cut: set[str] = field(default_factory=set)
    """Labels of axes of which a part was taken."""
    changed: list[str] = field(default_factory=list)
    """What else the network does in another way than its source."""
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
            layers = ["attention biases" if _is_bias(n) else _layer_of(n) for n in self.resized]
            parts.append(f"{_listed(layers)} fitted to other images")
        if self.fresh:
            parts.append(f"{_listed(map(_layer_of, self.fresh))} fresh")
        parts += self.changed
        return "; ".join(parts)


@torch.no_grad()
def transfer(
    source: TrainedWeights,
    model: Model,
    order: Order = "scale",
    ranks: Mapping[str, Tensor] | None = None,
) -> Transfer:
    """Put what fits of trained weights into a network, in place.

    Args:
        model: freshly initialised; what nothing comes over for stays as it is.
        order: what a narrower network takes; of shared weights it is the leading part in any case.
        ranks: how important each channel is, in place of those by scale; see :func:`importance`.

    Returns:
        What came over and what did not.

    Raises:
        InputError: nothing fits, see :func:`misfit`.
    """
    order = "leading" if source.is_shared else order
    pair = _Pair(source.architecture, model.architecture)
    reason = pair.misfit(source.name)
    if reason is not None:
        raise InputError(reason)
    result = Transfer(source.name, cut=pair.cut(), changed=pair.changed())
    if ranks is None or order == "leading":
        ranks = importance(source) if result.cut and order != "leading" else {}
    selected = _selected(pair.before_sizes, pair.after_sizes, ranks) if pair.blocks_fit else {}
    placed: dict[str, Tensor] = {}
    for name, own in model.state_dict().items():
        result.total += own.numel()
        found = source.state.get(pair.source_name(name)) if pair.goes_together(name) else None
        if found is not None:
            whole = _cut(found, axes_of(pair.after).get(name, ()), selected)
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
def ordered(source: TrainedWeights) -> TrainedWeights:
    """The same network with its most important channels and heads in the first places, where those
    of shared weights are already.

    Its logits are those of ``source`` but for rounding, and the leading parts of its tensors are
    those that :func:`transfer` gives to narrower networks.
    """
    if source.is_shared:
        return source
    sizes, axes = label_sizes(source.architecture), axes_of(source.architecture)
    selected = _selected(sizes, sizes, importance(source), is_whole=True)
    state = {name: _cut(each, axes.get(name, ()), selected) for name, each in source.state.items()}
    return TrainedWeights(source.architecture, state, source.name)


def misfit(source: TrainedWeights, network: Architecture) -> str | None:
    """Why a network can start from no part of trained weights; None where it can.

    The reason names a tensor, both shapes and what is possible.
    """
    return _Pair(source.architecture, network).misfit(source.name)


class _Pair:
    """A source's network and one that starts from it."""

    def __init__(self, before: Architecture, after: Architecture) -> None:
        self.before, self.after = before, after
        self.before_sizes, self.after_sizes = label_sizes(before), label_sizes(after)
        resnets = _resnet_of(before), _resnet_of(after)
        self._share_resnet = resnets[0] is not None and resnets[0][:2] == (resnets[1] or ())[:2]
        self._share_resnet_stem = resnets[0] == resnets[1]

    def misfit(self, where: str) -> str | None:
        """See :func:`misfit`."""
        return None if self._share_resnet else self._blocks_misfit(where)

    def _blocks_misfit(self, where: str = "") -> str | None:
        before, after = self.before, self.after
        if type(before) is not type(after) or not blocks_of(before) or not blocks_of(after):
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
            name, axes = next(each for each in axes_of(after).items() if shows(*each, label))
            both = self.before_sizes, self.after_sizes
            shapes = [[size_of(a, sizes) for a in axes[:2]] for sizes in both]
            return (
                f"{where}: {name} has shape {shapes[0]}, the network's has {shapes[1]}, where "
                f"{_words(label)} may be no more than the source's "
                f"{self.before_sizes[label]}, not {size}; {_possible(before)}"
            )
        return None

    @cached_property
    def blocks_fit(self) -> bool:
        """Whether anything comes over but a ResNet."""
        return self._blocks_misfit() is None

    def cut(self) -> set[str]:
        """Labels of which the network has less than its source."""
        before = self.before_sizes if self.blocks_fit else {}
        return {label for label, size in self.after_sizes.items() if size < before.get(label, 0)}

    def changed(self) -> list[str]:
        """Activations that differ, which no weights make up for."""
        pairs = {
            key: (getattr(self.before, key), getattr(self.after, key))
            for key in ("activation", "attention_activation")
            if self.blocks_fit
        }
        return [f"{key} {new} in place of {old}" for key, (old, new) in pairs.items() if old != new]

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
            return self.blocks_fit and len(widths_of(before)) == len(widths_of(after))
        if not self.blocks_fit:
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
        both = self.before, self.after
        if _is_bias(name):
            block = name.partition(".attention.")[0]
            grids = [grids_of(each)[blocks_of(each)[block][1]] for each in both]
            return by_offset(found, grids[0], grids[1], by_share=order != "leading")
        if name.endswith("position_embedding"):
            return _positions(found, own, grids_of(both[0])[0], grids_of(both[1])[0])
        if own.ndim == 4 and own.shape != found.shape:
            return _for_images(found, own)
        if order != "leading" and _is_query(name):
            return self._scaled_queries(name, found)
        return found

    def _scaled_queries(self, name: str, found: Tensor) -> Tensor:
        """Queries of fewer channels, at a scale that keeps the sum over those that are left:
        attention divides by sqrt(K), which is less then."""
        block, _, rest = name.partition(".attention.")
        most, own = (sizes[f"{block}.key"] for sizes in (self.before_sizes, self.after_sizes))
        is_last = rest.split(".")[1] == ("norm" if self.after.norm == "batch" else "linear")
        if own == most or not is_last or name.endswith(("running_mean", "running_var")):
            return found
        by_head = found.unflatten(0, (self.after_sizes[f"{block}.heads"], -1)).clone()
        by_head[:, :own] *= math.sqrt(own / most)
        return cast(Tensor, by_head.flatten(0, 1))


def _is_bias(name: str) -> bool:
    return name.endswith("attention_bias")


def _is_query(name: str) -> bool:
    layer = name.partition(".attention.")[2].partition(".")[0]
    return layer in ("qkv", "query") and not name.endswith("num_batches_tracked")


def by_offset(bias_hn: Tensor, before: Sides, after: Sides, by_share: bool = True) -> Tensor:
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


def _positions(found: Tensor, own: Tensor, before: Sides, after: Sides) -> Tensor:
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
        for joined, parts in JOINED.items():
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


def _resnet_of(network: Architecture) -> tuple[str, int, int] | None:
    """The ResNet that a network begins with: its name, the width of its first block and the kernel
    of its first convolution."""
    if isinstance(network, Graft):
        if network.donor is None:
            return None
        name, cut = network.donor.name, network.donor.cut(network.in_channels)
    elif isinstance(network.stem, ResNetStem):
        name, cut = network.stem.kind, network.stem.cut(network.in_channels)
    else:
        return None
    return name, cut.convolutions[1].outputs, cut.convolutions[0].kernel


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
    if not blocks_of(network):
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


def _layer_of(name: str) -> str:
    """The layer or block that a tensor is of."""
    numbered = r"(?:trunk\.blocks|stages\.\d+\.blocks|shrinks|stem\.convs)\.\d+"
    found: list[str] = re.findall(rf"^(?:{numbered}|(?:stem|donor|trunk)\.\w+|\w+)", name)
    return found[0]


def _listed(given: Iterable[str]) -> str:
    """Words in their order, each once, and not too many of them."""
    words, most = [*dict.fromkeys(given)], 6
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more
