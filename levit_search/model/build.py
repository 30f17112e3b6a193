"""From a description to its module."""

from levit_search.architecture import Architecture, Graft
from levit_search.model.blocks import Layout, set_layout
from levit_search.model.graft import GraftModel
from levit_search.model.levit import LevitModel

Model = LevitModel | GraftModel


def build(architecture: Architecture, layout: Layout = "tokens") -> Model:
    """The module of an architecture of either family, freshly initialised.

    Args:
        architecture: what to build.
        layout: of the activations between attention and MLP blocks; the weights are the same, and
            :func:`set_layout` changes it at any time.

    Returns:
        A module from images [B, in_channels, height, width] to logits [B, num_classes], or
        to a pair of them while training with ``distillation``.
    """
    model = (
        GraftModel(architecture) if isinstance(architecture, Graft) else LevitModel(architecture)
    )
    set_layout(model, layout)
    return model
