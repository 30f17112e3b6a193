"""From a description to its module, and to that of its maps at several scales."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from levit_search.architecture import Architecture, Graft
from levit_search.errors import InputError
from levit_search.model.blocks import Layout, set_layout
from levit_search.model.graft import GraftModel
from levit_search.model.levit import LevitModel

Model = LevitModel | GraftModel


def build(architecture: Architecture, layout: Layout = "tokens") -> Model:
    """The module of an architecture of either family, freshly initialised.

    Args:
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


class Features(nn.Module):
    """A network without its heads: images [B, C, H, W] to one map [B, C, H, W] for each stage.

    As timm's networks with ``features_only``, which detection and segmentation frameworks take:
    ``feature_info`` is timm's, with ``channels()``, ``reduction()`` and ``module_name()``.

    Args:
        model: the network; its modules are shared, not copied, and its heads are not used.
        out_indices: which maps to give, counted from the first stage; negative ones from the last.

    Raises:
        InputError: there is no such map.
    """

    def __init__(self, model: Model, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        from timm.models import FeatureInfo  # seconds to import

        info: list[dict[str, Any]] = model.feature_info()
        count = len(info)
        indices = range(count) if out_indices is None else out_indices
        for index in indices:
            if not -count <= index < count:
                raise InputError(
                    f"out_indices: there is no map {index}, only 0 to {count - 1} (or -1 to "
                    f"-{count})"
                )
        self.model = model
        self.out_indices = tuple(index % count for index in indices)
        self.feature_info = FeatureInfo(info, self.out_indices)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.model.maps(images)
        return [maps[index] for index in self.out_indices]
