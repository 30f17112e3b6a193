"""Networks of the graft family: a ResNet cut after a stage, then layers of a DeiT.

Graham et al., section 4.1 and Table 1. Both ends belong to it: no ResNet stage under a trunk is a
DeiT (Touvron et al. 2021), four stages without a trunk are the ResNet itself.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from levit_search.architecture import resnet
from levit_search.architecture.levit import DropPath, Network, Stage
from levit_search.architecture.resnet import Cut, ResNetName, ResNetStemKind
from levit_search.configuration import Count, Frozen, Ratio
from levit_search.image_size import ImageSize, Sides, compact, sides, size_text


class Donor(Frozen):
    """The ResNet that the first layers come from.

    ``stem: small`` is one 3x3 convolution of stride 1 without max-pooling, for images of 32 to
    64 px. ``width_scale`` multiplies the channels of the stages; the stem keeps its own.
    """

    name: ResNetName = "resnet50"
    stages: Annotated[int, Field(strict=True, ge=0, le=4)]
    stem: ResNetStemKind = "imagenet"
    width_scale: Ratio = 1

    def cut(self, in_channels: int) -> Cut:
        """The convolutions that are kept."""
        layers = resnet.layers_until(self.name, self.stages)
        return resnet.cut(self.name, layers, in_channels, self.stem, self.width_scale)


class Trunk(Frozen):
    """DeiT layers: pre-norm attention and MLP blocks at one width, heads splitting the width."""

    depth: Annotated[int, Field(strict=True, ge=0, le=10**9)]
    embed_dim: Count = 384
    num_heads: Count = 6
    mlp_ratio: Ratio = 4

    @model_validator(mode="after")
    def _check(self) -> "Trunk":
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} heads do not divide the width {self.embed_dim}"
            )
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise ValueError(
                f"mlp_ratio: {self.mlp_ratio} x width {self.embed_dim} leaves no channel"
            )
        return self


class Graft(Network):
    """A network of the graft family.

    The donor's map is averaged down to ``grid`` tokens a side, projected to the trunk's width and
    joined by a class token, a distillation token (with ``distillation``) and a position
    embedding. A donor of no stages leaves one convolution of patches; a trunk of no layers leaves
    the ResNet with its classifier, and with a second one for ``distillation``.

    A donor of no stages and a trunk of no layers are kept as ``None``, as is the grid without a
    trunk, so that what no longer matters does not make two networks of one. ``grid`` is a
    sixteenth of the image, or a quarter with the small stem, where it is not given. Tokens are
    squares: of a rectangular image the grid is ``[rows, columns]`` in its proportions, and one
    number stands for the shorter side.
    """

    family: Literal["graft"] = "graft"
    image_size: ImageSize
    in_channels: Count = 3
    num_classes: Count
    donor: Annotated[Donor | None, AfterValidator(lambda d: d if d and d.stages else None)]
    grid: ImageSize | None = None
    trunk: Annotated[Trunk | None, AfterValidator(lambda t: t if t and t.depth else None)]
    distillation: bool = True
    drop_path: DropPath = 0.0

    # The trunk's blocks are those of the LeViT family with a DeiT's choices.
    norm: ClassVar[Literal["batch", "layer"]] = "layer"
    position: ClassVar[Literal["bias", "embedding"]] = "embedding"
    activation: ClassVar[Literal["gelu"]] = "gelu"
    attention_activation: ClassVar[Literal["none"]] = "none"

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, data: Any) -> Any:
        return _with_grid(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _check(self) -> "Graft":
        if self.donor is None and self.trunk is None:
            raise ValueError("donor.stages 0 and trunk.depth 0 leave nothing of a network")
        if self.donor is not None:
            stride = self.donor.cut(self.in_channels).stride
            if any(side % stride for side in sides(self.image_size)):
                raise ValueError(
                    f"image_size: {size_text(self.image_size)} px does not come out at whole "
                    f"pixels: {self.donor.name} has a stride of {stride} after stage "
                    f"{self.donor.stages}"
                )
        (rows, columns), (down, across) = self.map_sides, self.grid_sides
        if self.grid is not None and (
            rows % down or columns % across or rows // down != columns // across
        ):
            what = "average pooling" if self.donor is not None else "patches of whole pixels"
            shown = map(size_text, self._possible_grids())
            raise ValueError(
                f"grid: {what} cannot bring a map of {rows}x{columns} to {down}x{across}; possible "
                f"are {', '.join(shown)}"
            )
        return self

    def _possible_grids(self) -> list[int | Sides]:
        """What squares of whole pixels make of the map, up to 64 tokens a side."""
        common = math.gcd(*self.map_sides)
        rows, columns = (side // common for side in self.map_sides)
        times = range(1, max(1, min(common, 64 // max(rows, columns))) + 1)
        return [compact(n * rows, n * columns) for n in times if common % n == 0]

    @property
    def map_sides(self) -> Sides:
        """Rows and columns of pixels of the map that the donor ends with, or of the image."""
        rows, columns = sides(self.image_size)
        stride = self.donor.cut(self.in_channels).stride if self.donor is not None else 1
        return rows // stride, columns // stride

    @property
    def grid_sides(self) -> Sides:
        """Rows and columns of the trunk's grid of tokens; (0, 0) without a trunk."""
        return sides(self.grid or 0)

    @property
    def patch(self) -> int:
        """Pixels a side of the map, or of the image, that become one token of the trunk."""
        assert self.grid is not None
        return self.map_sides[0] // self.grid_sides[0]

    @property
    def tokens(self) -> int:
        """In the trunk: the grid's, the class token and the distillation token."""
        return math.prod(self.grid_sides) + 1 + self.distillation

    @property
    def trunk_stage(self) -> Stage | None:
        """The trunk as a stage of the LeViT family."""
        if self.trunk is None:
            return None
        width, heads = self.trunk.embed_dim, self.trunk.num_heads
        return Stage(
            depth=self.trunk.depth,
            embed_dim=width,
            num_heads=heads,
            key_dim=width // heads,
            attn_ratio=1,
            mlp_ratio=self.trunk.mlp_ratio,
        )

    def summary(self) -> str:
        """The network in a few words: ``resnet50 to stage 2, 6 x 384 h6``."""
        parts = []
        if self.donor is not None:
            name = resnet.scaled_name(self.donor.name, self.donor.width_scale)
            parts.append(f"{name} to stage {self.donor.stages}")
        if self.trunk is not None:
            parts.append(f"{self.trunk.depth} x {self.trunk.embed_dim} h{self.trunk.num_heads}")
        return ", ".join(parts)


def _with_grid(data: Mapping[str, Any]) -> dict[str, Any]:
    """The grid filled in or, without a trunk, left out; wrong types are for validation to name."""
    filled = dict(data)
    trunk = filled.get("trunk")
    if trunk is None or _value(trunk, "depth") == 0:
        return {**filled, "grid": None}
    size, grid = filled.get("image_size"), filled.get("grid")
    pair = size if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and side > 0 for side in pair):
        return filled
    rows, columns = pair
    if grid is None:
        patch = 4 if _value(filled.get("donor"), "stem") == "small" else 16
        if rows % patch or columns % patch:
            raise ValueError(
                f"image_size: {size_text(compact(rows, columns))} px does not come out at whole "
                f"pixels: tokens are {patch} px wide; give a grid of your own"
            )
        filled["grid"] = compact(rows // patch, columns // patch)
    elif type(grid) is int and rows != columns and grid * max(pair) % min(pair) == 0:
        longer = grid * max(pair) // min(pair)
        filled["grid"] = (grid, longer) if rows < columns else (longer, grid)
    return filled


def _value(section: object, key: str) -> object:
    """Of a section as plain data or as a model."""
    return section.get(key) if isinstance(section, Mapping) else getattr(section, key, None)
