"""The order by activations, in which narrower networks took channels of trained weights before the
order by scales, which needs no images, was measured to be as good."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levit_search.architecture.levit import Shrink
from levit_search.image_size import sides
from levit_search.model import TrainedWeights, build
from levit_search.model.importance import blocks_of, ranked, stem_readers


@torch.no_grad()
def by_activation(source: TrainedWeights, images: Tensor) -> dict[str, Tensor]:
    """Ranks for ``transfer``: channels by the mean square that activations have on images, times
    the square of what they are read with.

    Args:
        source: the weights.
        images: float [B, C, H, W], normalised; they are brought to the source's size.
    """
    network = source.architecture
    with torch.random.fork_rng(devices=[]):
        model = build(network)
    model.load_state_dict(source.state)
    model.eval()
    found: dict[str, Tensor] = {}

    def watch(name: str, *labels: str, heads: int = 0, key: int = 0) -> None:
        """Channels of a module's output; with ``heads`` each label has ``key`` of every head's."""

        def measured(_: nn.Module, __: Any, output: Tensor) -> None:
            square = output.square().mean(dim=(0, 2, 3) if output.ndim == 4 else (0, 1))
            for index, label in enumerate(labels):
                part = square
                if heads:
                    part = square.unflatten(0, (heads, -1))[:, index * key : (index + 1) * key]
                found[label] = found.get(label, torch.zeros(())) + part

        model.get_submodule(name).register_forward_hook(measured)

    for name, (block, _, after) in blocks_of(network).items():
        attention, sizes = f"{name}.attention", {"heads": block.num_heads, "key": block.key_dim}
        watch(name, f"width.{after}")
        watch(f"{name}.mlp.activation", f"{name}.hidden")
        watch(f"{attention}.activation", f"{name}.v")
        if isinstance(block, Shrink):
            watch(f"{attention}.query", f"{name}.query", **sizes)
            watch(f"{attention}.key_value", f"{name}.key", **sizes)
        else:
            watch(f"{attention}.qkv", f"{name}.query", f"{name}.key", **sizes)
    for label, reader in stem_readers(network).items():
        watch(f"stem.convs.{int(reader.rpartition('.')[2]) - 1}", label)
    if images.shape[1] != network.in_channels:
        images = images.mean(dim=1, keepdim=True).expand(-1, network.in_channels, -1, -1)
    size = sides(network.image_size)
    model(F.interpolate(images.float().cpu(), size, mode="bilinear", antialias=True))
    return ranked(source, found)
