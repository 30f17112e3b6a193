"""Trained weights for the ResNets that networks begin with, as a recipe names them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from levit_search.architecture import Architecture, Graft, ResNetStem
from levit_search.errors import InputError
from levit_search.files import expanded

if TYPE_CHECKING:
    from levit_search.model import Model


def donor_of(network: Architecture) -> str | None:
    """The ResNet that a network begins with: a graft's donor or a LeViT's ResNet stem."""
    if isinstance(network, Graft):
        return network.donor.name if network.donor is not None else None
    return network.stem.kind if isinstance(network.stem, ResNetStem) else None


def check_donor_weights(weights: str | None, donors: Iterable[str]) -> None:
    """Make sure that every donor's file is there, before anything is trained.

    Args:
        weights: the recipe's ``donor_weights``.
        donors: the names of ResNets that networks may begin with.

    Raises:
        InputError: a file is missing.
    """
    for name in sorted(donors):
        path = _path(weights, name)
        if path is not None and not path.is_file():
            raise InputError(
                f"train.donor_weights: {path}: no such file for the donor {name}; expected null, "
                "pretrained or a file ({name} stands for the donor's)"
            )


def load_donor_weights(model: "Model", weights: str | None) -> None:
    """Load what the recipe names into the donor of ``model``; one without a donor stays as it is.

    Raises:
        InputError: the weights are not to be had or do not fit; the tensor and both shapes are
            named.
    """
    name = donor_of(model.architecture)
    if weights is None or name is None:
        return
    from levit_search.model import load_donor

    load_donor(model, _path(weights, name))


def _path(weights: str | None, name: str) -> Path | None:
    """The file of a donor's weights; None where they are timm's own, or none are wanted."""
    if weights in (None, "pretrained"):
        return None
    return expanded(weights.replace("{name}", name))
