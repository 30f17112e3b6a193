"""Which channels and heads of a trained network matter most."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levit_search.architecture import ConvStem, Graft, Levit, ResNetStem
from levit_search.architecture.levit import Shrink
from levit_search.errors import InputError
from levit_search.image_size import sides
from levit_search.model.axes import blocks_of, label_sizes, stem_readers, widths_of
from levit_search.model.build import build
from levit_search.model.source import TrainedWeights

Order = Literal["leading", "scale", "activation"]
"""What comes first where a network is narrower than its source.

``scale``: channels by the scale that batch norm gives them (without batch norm by the norm of their
weights), times the norm of the weights that read them. ``activation``: by the mean square that
activations have on images, times the same. ``leading``: those that stand first, as in weights that
were trained for all networks of a space; nothing is made up for then, and of attention biases the
leading offsets are taken.
"""


def importance(source: TrainedWeights, order: Order, images: Tensor | None) -> dict[str, Tensor]:
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
def _ranks_by_scale(source: TrainedWeights) -> dict[str, Tensor]:
    return _ranked(source, _by_scale(source))


def _ranked(source: TrainedWeights, written: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
        index = int(reader.rpartition(".")[2])
        found[label] = squares(f"stem.convs.{index - 1}")
    return found


def _measured(source: TrainedWeights, images: Tensor) -> dict[str, Tensor]:
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

    for name, (block, _, after) in blocks_of(network).items():
        attention, heads, key = f"{name}.attention", block.num_heads, block.key_dim
        hook(name, by_channel(f"width.{after}"))
        hook(f"{name}.mlp.activation", by_channel(f"{name}.hidden"))
        hook(f"{attention}.activation", by_channel(f"{name}.v"))
        if isinstance(block, Shrink):
            hook(f"{attention}.query", by_head(name, heads, key, ["query"]))
            hook(f"{attention}.key_value", by_head(name, heads, key, ["key"]))
        else:
            hook(f"{attention}.qkv", by_head(name, heads, key, ["query", "key"]))
    for label, reader in stem_readers(network).items():
        index = int(reader.rpartition(".")[2])
        hook(f"stem.convs.{index - 1}", by_channel(label))
    if images.shape[1] != network.in_channels:
        images = images.mean(dim=1, keepdim=True).expand(-1, network.in_channels, -1, -1)
    size = sides(network.image_size)
    model(F.interpolate(images.float().cpu(), size, mode="bilinear", antialias=True))
    return found
