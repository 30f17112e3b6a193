"""A network as people look at it: its block diagram and, below it, the maps of its weights."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from levit_search.architecture import Architecture
from levit_search.cost import cost
from levit_search.drawing import diagram, weight_maps
from levit_search.drawing.svg import document
from levit_search.drawing.weight_maps import BiasMaps, PatchFilters


@dataclass(frozen=True)
class NetworkView:
    """A network, its name, and what of its weights is worth drawing."""

    network: Architecture
    title: str
    biases: list[BiasMaps]
    filters: PatchFilters | None

    @property
    def has_maps(self) -> bool:
        return bool(self.biases) or self.filters is not None

    def svg(self, embedded: bool = False) -> str:
        """One picture; see :func:`levit_search.drawing.svg.document` for ``embedded``."""
        maps = weight_maps.draw(self.biases, self.filters)
        words = [
            diagram.description(self.network),
            weight_maps.description(self.biases, self.filters),
        ]
        return document(
            [diagram.draw(self.network, self.title), *maps],
            f"Block diagram of {self.title}",
            " ".join(words).strip(),
            embedded,
        )

    def as_json(self) -> dict[str, Any]:
        """``{name, id, params, flops, activations, blocks, attention_biases}``, the blocks with
        figures and shares, the biases [H, R, R] of each block that has trained ones (null where
        one is no number)."""
        return {
            "name": self.title,
            "id": self.network.id,
            **cost(self.network)._asdict(),
            "blocks": [asdict(block) for block in diagram.blocks(self.network)],
            "attention_biases": [
                {"block": maps.block, "values": _plain(maps.values)} for maps in self.biases
            ],
        }


def network_view(network: Architecture, title: str, weights: Path | None) -> NetworkView:
    """A network with the weights in a safetensors file, or without.

    Raises:
        InputError: the file cannot be read, or its tensors are not this network's.
    """
    if weights is None:
        return NetworkView(network, title, [], None)
    tensors = weight_maps.read_weights(weights)
    biases = weight_maps.attention_biases(network, tensors, str(weights))
    return NetworkView(
        network, title, biases, weight_maps.patch_filters(network, tensors, str(weights))
    )


def _plain(values: npt.NDArray[np.float32]) -> list[Any]:
    """As JSON can say it."""
    plain = values.astype(float).round(6).astype(object)
    plain[~np.isfinite(values)] = None
    found: list[Any] = plain.tolist()
    return found
