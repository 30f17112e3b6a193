"""Weights that are worth looking at, as arrays.

Shapes: H ``num_heads``, R rows and S columns of tokens, K ``key_dim``, V value channels a head, C
``embed_dim``, P pixels a side of a patch. No torch: weights are numpy arrays by our tensor names.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from levit_search.architecture import Architecture, Graft, Levit, PatchStem, Stage
from levit_search.errors import InputError
from levit_search.files import DamagedFileError, check_weights, read_bounded
from levit_search.image_size import Sides

Array = npt.NDArray[np.float32]
Weights = Mapping[str, Array]

PARTS = ("query", "key", "value")

_SHOWN, _SHOWN_OF_LARGE, _LARGE = 12, 4, 768  # filters a head; fewer of more weights than this
_BATCH_NORM_EPSILON = 1e-5  # torch's own


@dataclass(frozen=True)
class BiasMaps:
    """The attention biases of one block."""

    block: str
    """Its module, such as ``stages.0.blocks.1`` or ``shrinks.0``."""
    text: str
    """Its place for people, such as ``stage 1, block 2``."""
    values: Array
    """[H, R, S]: what each head adds to the score of a key so many rows and columns away, in units
    of scores before the softmax."""


@dataclass(frozen=True)
class PatchFilters:
    """What the first block's queries, keys and values see of a patch, by head.

    The patch projection and the first block's projection are both linear (batch norm is folded; of
    a layer norm its centring and scale are taken in, its division is left out), so their product is
    a filter over the patch for each channel.
    """

    over: Literal["pixels", "channels"]
    """The image's pixels, or the channels of a donor's map."""
    values: dict[str, Array]
    """For ``query``, ``key`` and ``value``: [H, filters, channels, P, P], those of the largest norm
    first; P is 1 over a donor's channels."""


def read_weights(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file that are drawn here, under our names.

    Raises:
        InputError: there is no such file, it is damaged, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        check_weights(read_bounded(path))
        with safe_open(path, framework="numpy") as file:
            names = [name for name in file.keys() if _is_drawn(name)]  # noqa: SIM118
            return {name: file.get_tensor(name).astype(np.float32) for name in names}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except DamagedFileError as error:
        raise InputError(f"{path}: damaged ({error})") from None
    except (SafetensorError, TypeError) as error:  # numpy has no bfloat16
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None


def attention_biases(
    network: Architecture, weights: Weights, where: str = "weights"
) -> list[BiasMaps]:
    """The biases of every block that has them, from the image to the heads.

    In a shrinking block R and S are those of the keys.

    Args:
        network: of either family; grafts and networks with a position embedding have none.
        weights: by our tensor names.
        where: what errors call the weights.

    Raises:
        InputError: a tensor is missing or has another shape than the network's.
    """
    return [
        BiasMaps(
            block,
            text,
            _tensor(
                weights, f"{block}.attention.core.attention_bias", (heads, math.prod(grid)), where
            ).reshape(heads, *grid),
        )
        for block, text, heads, grid in _biased_blocks(network)
    ]


def patch_filters(
    network: Architecture, weights: Weights, where: str = "weights"
) -> PatchFilters | None:
    """The filters of a network whose first block sees patches or a donor's projected map.

    Shown are, for each head, the 12 channels of queries, keys and values whose filters have the
    largest norm, or 4 where a filter has more than 768 weights.

    Args:
        network: None comes back for LeViTs with convolutions before the first block and for grafts
            without a trunk.
        weights: by our tensor names.
        where: what errors call the weights.

    Raises:
        InputError: a tensor is missing or has another shape than the network's.
    """
    composed = _composed(network, weights, where)
    if composed is None:
        return None
    stage, filters, shape = composed
    value_dim = int(stage.attn_ratio * stage.key_dim)
    by_head = filters.reshape(stage.num_heads, -1, filters.shape[1])
    ends = [stage.key_dim, 2 * stage.key_dim]
    assert by_head.shape[1] == ends[1] + value_dim
    split = zip(PARTS, np.split(by_head, ends, axis=1), strict=True)
    over: Literal["pixels", "channels"] = "pixels"
    if isinstance(network, Graft) and network.donor is not None:
        over = "channels"
    largest = {name: _largest(part) for name, part in split}
    return PatchFilters(over, {n: f.reshape(*f.shape[:2], *shape) for n, f in largest.items()})


def _is_drawn(name: str) -> bool:
    first = ("stem.convs.0.", "trunk.projection.")
    blocks = ("stages.0.blocks.0.attention.", "trunk.blocks.0.attention.")
    return name.endswith(".attention_bias") or name.startswith((*first, *blocks))


def _tensor(weights: Weights, name: str, shape: tuple[int, ...], where: str) -> Array:
    if name not in weights:
        raise InputError(
            f"{where}: {name} is missing; expected this network's tensors under levit-search's own "
            "names, as in a study's checkpoints/ and in an exported model.safetensors"
        )
    if weights[name].shape != shape:
        raise InputError(
            f"{where}: {name} has shape {list(weights[name].shape)}, the network's has "
            f"{list(shape)}"
        )
    return weights[name]


def _biased_blocks(network: Architecture) -> Iterator[tuple[str, str, int, Sides]]:
    """Each block's module, its place in words, its heads and its keys' grid."""
    if isinstance(network, Graft) or network.position == "embedding":
        return
    for index, (stage, grid) in enumerate(zip(network.stages, network.grids, strict=True)):
        if index:
            heads = network.shrinks[index - 1].num_heads
            yield f"shrinks.{index - 1}", f"shrink {index}", heads, network.grids[index - 1]
        for block in range(stage.depth):
            text = f"stage {index + 1}, block {block + 1}"
            yield f"stages.{index}.blocks.{block}", text, stage.num_heads, grid


def _composed(
    network: Architecture, weights: Weights, where: str
) -> tuple[Stage, Array, tuple[int, ...]] | None:
    """The first block as a stage, its filters over a patch [H (2 K + V), all weights of one], and
    the shape of one after heads and filters."""
    batch_norm = network.norm == "batch"
    if isinstance(network, Levit):
        if not isinstance(network.stem, PatchStem):
            return None
        stage, channels, side = network.stages[0], network.in_channels, network.stem.patch_size
        before, attention = "stem.convs.0", "stages.0.blocks.0.attention"
    else:
        trunk, donor = network.trunk_stage, network.donor
        if trunk is None:
            return None
        stage, channels, side = trunk, network.in_channels, network.patch
        if donor is not None:
            channels, side = donor.cut(channels).channels, 1
        before, attention = "trunk.projection", "trunk.blocks.0.attention"
    width = stage.embed_dim
    outputs = stage.num_heads * (2 * stage.key_dim + int(stage.attn_ratio * stage.key_dim))
    patch = _tensor(weights, f"{before}.conv.weight", (width, channels, side, side), where)
    patch = patch.reshape(width, -1)
    qkv = _tensor(weights, f"{attention}.qkv.linear.weight", (outputs, width), where)
    if batch_norm:
        patch = patch * _norm_scale(weights, f"{before}.norm", width, where)[:, None]
        qkv = qkv * _norm_scale(weights, f"{attention}.qkv.norm", outputs, where)[:, None]
    else:
        qkv = qkv * _tensor(weights, f"{attention}.norm.weight", (width,), where)
        qkv = qkv - qkv.mean(axis=1, keepdims=True)  # the norm takes the tokens' means off first
    return stage, qkv @ patch, (channels, side, side)


def _norm_scale(weights: Weights, name: str, channels: int, where: str) -> Array:
    """What a trained batch norm multiplies each channel by."""
    variance = _tensor(weights, f"{name}.running_var", (channels,), where)
    weight = _tensor(weights, f"{name}.weight", (channels,), where)
    scale: Array = weight / np.sqrt(variance + np.float32(_BATCH_NORM_EPSILON))
    return scale


def _largest(filters_hcw: Array) -> Array:
    """The few filters of each head with the largest norm: [H, filters, weights]."""
    count = _SHOWN if filters_hcw.shape[2] <= _LARGE else _SHOWN_OF_LARGE
    norms = np.linalg.norm(filters_hcw, axis=2)
    order = np.argsort(-norms, axis=1, kind="stable")[:, :count]
    largest: Array = np.take_along_axis(filters_hcw, order[:, :, None], axis=1)
    return largest
