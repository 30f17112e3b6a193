"""Maps at several scales for dense prediction."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from levit_search.errors import InputError
from levit_search.model.build import Model


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
