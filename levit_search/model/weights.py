"""Weights under three namings: ours, timm's ``levit_*`` and the released checkpoints'.

The namings are made by one walk over the architecture, each layer with its three names, so that a
layer that one of them cannot express is found out while walking.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from levit_search.architecture import Architecture, ConvStem
from levit_search.errors import InputError
from levit_search.files import write_atomically
from levit_search.model.levit import LevitModel

Naming = Literal["ours", "timm", "released"]

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def load_weights(model: LevitModel, weights: Mapping[str, Any] | Path) -> Naming:
    """Load weights in any of the three namings into ``model``, in place.

    Args:
        model: a network whose architecture the weights were made for.
        weights: a state dict, or the path of a ``.safetensors`` or torch checkpoint file (read
            with ``weights_only``); a state dict may stand under the key ``model``. Weights of 1x1
            convolutions are taken for linear layers.

    Returns:
        The naming that was recognised.

    Raises:
        InputError: the file cannot be read, a tensor is missing or unexpected, or its shape is
            not the network's; the message names the tensor and both shapes.
    """
    where = str(weights) if isinstance(weights, Path) else "weights"
    state = _read(weights) if isinstance(weights, Path) else weights
    state = state.get("model", state)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise InputError(f"{where}: holds no state dict (tensors by name)")
    naming = _recognise(state)
    ours = state if naming == "ours" else _renamed(state, model, naming, where)
    expected = model.state_dict()
    _check_names(expected, ours, where)
    matched = {}
    for name, tensor in expected.items():
        given = ours[name]
        if given.ndim == tensor.ndim + 2 and given.shape[-2:] == (1, 1):
            given = given[..., 0, 0]
        if given.shape != tensor.shape:
            raise InputError(
                f"{where}: {name} has shape {list(given.shape)}, the network's has "
                f"{list(tensor.shape)}"
            )
        matched[name] = given
    model.load_state_dict(matched)
    return naming


def save_weights(model: LevitModel, path: Path) -> None:
    """Write the weights of ``model`` as safetensors under our names, whole or not at all."""
    from safetensors.torch import save

    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, save(weights))


def to_timm(model: LevitModel) -> dict[str, Tensor]:
    """The weights of ``model`` named as timm's ``levit_*`` models name them.

    Raises:
        InputError: timm's LeViT cannot express the architecture.
    """
    state = model.state_dict()
    names = _names(model.architecture, "timm")
    unnamed = sorted(set(state) - set(names))
    if unnamed:
        raise InputError(f"timm's LeViT has no place for {unnamed[0]}")
    return {names[name]: tensor for name, tensor in state.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zip and safetensors each raise their own kinds
        raise InputError(f"{path}: not a readable checkpoint ({error})") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: holds no state dict but a {type(loaded).__name__}")
    return loaded


def _recognise(state: Mapping[str, Any]) -> Naming:
    if any(name.startswith("patch_embed.") for name in state):
        return "released"
    if any(".attn." in name or name.startswith("stem.conv1.") for name in state):
        return "timm"
    return "ours"


def _renamed(
    state: Mapping[str, Any], model: LevitModel, naming: Naming, where: str
) -> dict[str, Tensor]:
    try:
        names = _names(model.architecture, naming)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    back = {theirs: ours for ours, theirs in names.items()}
    # Index tables, not weights: the released code stores them beside the biases they index.
    weights = {name: t for name, t in state.items() if not name.endswith("attention_bias_idxs")}
    return {back.get(name, name): tensor for name, tensor in weights.items()}


def _check_names(expected: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    if missing or extra:
        parts = [f"{missing[0]} is missing"] if missing else []
        parts += [f"{extra[0]} is not of this network"] if extra else []
        counts = f"{len(missing)} missing, {len(extra)} unexpected"
        raise InputError(f"{where}: {', '.join(parts)} ({counts})")


def _names(architecture: Architecture, naming: Naming) -> dict[str, str]:
    """From our tensor names to those of ``naming``.

    Raises:
        InputError: the naming belongs to code that has no such network.
    """
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


def _layers(architecture: Architecture) -> Iterator[tuple[tuple[str, str, str], list[_Ending]]]:
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
            yield (
                (f"{ours}.attention.projection", f"{down}.proj.ln", f"{released}.proj.1"),
                _LINEAR,
            )
            yield from _mlp(f"{ours}.mlp", f"{timm}.mlp", f"blocks.{position + 1}.m")
            position += 2
        for b in range(stage.depth):
            ours, timm = f"stages.{s}.blocks.{b}", f"stages.{s}.blocks.{b}"
            attn, released = f"{timm}.attn", f"blocks.{position}.m"
            yield (f"{ours}.attention", attn, released), _BIAS
            yield (f"{ours}.attention.qkv", f"{attn}.qkv", f"{released}.qkv"), _LINEAR
            yield (
                (f"{ours}.attention.projection", f"{attn}.proj.ln", f"{released}.proj.1"),
                _LINEAR,
            )
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
