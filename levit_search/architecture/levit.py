"""Networks of the LeViT family: a stem, stages of attention and MLP blocks, shrinking blocks.

The paper's letters are mapped to the field's words here and nowhere else: C is ``embed_dim``, N is
``num_heads``, D is ``key_dim``; depth counts pairs of one attention and one MLP block.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, TypeGuard, get_args

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from levit_search.architecture import resnet
from levit_search.architecture.resnet import Cut, ResNetName, ResNetStemKind
from levit_search.configuration import Count, Frozen, Ratio, canonical_id, write_yaml
from levit_search.image_size import ImageSize, Sides, compact, sides, size_text

Activation = Literal["hardswish", "gelu", "relu", "silu"]
AttentionActivation = Literal["none", "hardswish", "gelu", "relu", "silu"]
DropPath = Annotated[float, Field(ge=0, lt=1), AfterValidator(abs)]  # -0.0 is 0.0


class Network(Frozen):
    """A network as plain data: equal descriptions have equal dumps, and equal dumps equal ids."""

    @cached_property
    def id(self) -> str:
        """See :func:`levit_search.configuration.canonical_id`."""
        return canonical_id(self)

    def to_yaml(self) -> str:
        """The canonical YAML, which :func:`parse` reads back to an equal network."""
        return write_yaml(self.model_dump(mode="json"))


class ConvStem(Frozen):
    """3x3 convolutions of stride 2 with the activation between them, one for each entry."""

    kind: Literal["conv"] = "conv"
    channels: Annotated[tuple[Count, ...], Field(min_length=1, max_length=6)]

    @property
    def stride(self) -> int:
        return int(2 ** len(self.channels))


class PatchStem(Frozen):
    """One convolution whose kernel and stride are the patch (ablation A2, ViT)."""

    kind: Literal["patch"]
    patch_size: Count

    @property
    def stride(self) -> int:
        return self.patch_size


class ResNetStem(Frozen):
    """The head of a ResNet: its first ``stages``, or its first ``layers`` convolutions.

    A 1x1 convolution to the trunk's width follows, unless the ResNet is cut inside a block and has
    that width already (the paper's first ten layers of a ResNet-18 under LeViT-256).

    ``stem: small`` is one 3x3 convolution of stride 1 without max-pooling, for images of 32 to
    64 px. ``width_scale`` multiplies the channels of the stages; the ResNet's own stem keeps its
    64. Both are left out of a dump where they are the defaults, so that networks keep their ids.
    """

    kind: ResNetName
    stages: Annotated[int, Field(strict=True, ge=1, le=4)] | None = None
    layers: Annotated[int, Field(strict=True, ge=2)] | None = None
    stem: ResNetStemKind = "imagenet"
    width_scale: Ratio = 1

    @model_validator(mode="before")
    @classmethod
    def _count_in_stages(cls, data: Any) -> Any:
        """Layers that end a stage are spelt as stages, so that one network has one description."""
        if not isinstance(data, Mapping) or data.get("stages") is not None:
            return data
        kind, layers = data.get("kind"), data.get("layers")
        if isinstance(kind, str) and kind in get_args(ResNetName) and _is_count(layers):
            for stages in range(1, 5):
                if layers == resnet.layers_until(kind, stages):
                    return {**data, "stages": stages, "layers": None}
        return data

    @model_validator(mode="after")
    def _check(self) -> "ResNetStem":
        if (self.stages is None) == (self.layers is None):
            raise ValueError("give either stages or layers (convolutions) of the ResNet")
        most = resnet.layers_until(self.kind, 4)
        if self.layers is not None and self.layers > most:
            raise ValueError(f"layers: {self.kind} has {most} convolutions, not {self.layers}")
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dump: dict[str, Any] = handler(self)
        return {
            key: value
            for key, value in dump.items()
            if key not in ("stem", "width_scale") or value != type(self).model_fields[key].default
        }

    def cut(self, in_channels: int) -> Cut:
        """The convolutions that are kept."""
        layers = self.layers or resnet.layers_until(self.kind, self.stages or 0)
        return resnet.cut(self.kind, layers, in_channels, self.stem, self.width_scale)

    def is_projected(self, width: int) -> bool:
        """Whether a 1x1 convolution to ``width`` channels follows."""
        cut = self.cut(1)
        return not (cut.inside_block and cut.channels == width)

    @property
    def stride(self) -> int:
        return self.cut(1).stride

    def summary(self) -> str:
        """The stem in a few words: ``resnet18 x0.5 to stage 1``, or ``to layer 8``."""
        end = f"layer {self.layers}" if self.stages is None else f"stage {self.stages}"
        return f"{resnet.scaled_name(self.kind, self.width_scale)} to {end}"


Stem = Annotated[ConvStem | PatchStem | ResNetStem, Field(discriminator="kind")]


class Stage(Frozen):
    """``depth`` pairs of an attention block and an MLP block at one width and resolution."""

    depth: Count
    embed_dim: Count
    num_heads: Count
    key_dim: Count
    attn_ratio: Ratio = 2
    mlp_ratio: Ratio = 2


class Shrink(Frozen):
    """An attention block that takes every ``stride``-th query, then an MLP block."""

    num_heads: Count
    key_dim: Count
    attn_ratio: Ratio = 4
    mlp_ratio: Ratio = 2
    stride: Annotated[int, Field(strict=True, ge=2)] = 2


class Levit(Network):
    """A network of the LeViT family.

    What is left out follows the paper: a stage's ``num_heads`` and ``key_dim`` give each other
    (heads must then divide the width), a shrinking block takes the key dimension before it and as
    many heads as fit into the width it reads, and a convolutional stem given as ``layers`` doubles
    its channels up to the first stage's width.
    """

    family: Literal["levit"] = "levit"
    image_size: ImageSize
    in_channels: Count = 3
    num_classes: Count
    stem: Stem
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=4)]
    shrinks: tuple[Shrink, ...] = ()
    norm: Literal["batch", "layer"] = "batch"
    position: Literal["bias", "embedding"] = "bias"
    activation: Activation = "hardswish"
    attention_activation: AttentionActivation = "hardswish"
    distillation: bool = True
    drop_path: DropPath = 0.0

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, data: Any) -> Any:
        return _with_derived_values(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _check(self) -> "Levit":
        if len(self.shrinks) != len(self.stages) - 1:
            raise ValueError(
                f"shrinks: {len(self.stages)} stages need {len(self.stages) - 1} shrinking "
                f"blocks between them, not {len(self.shrinks)}"
            )
        if isinstance(self.stem, ConvStem) and self.stem.channels[-1] != self.stages[0].embed_dim:
            raise ValueError(
                f"stem.channels: the last must be stages.0.embed_dim "
                f"({self.stages[0].embed_dim}), not {self.stem.channels[-1]}"
            )
        for path, block in self._attention_blocks():
            if (block.attn_ratio * block.key_dim) % 1:
                raise ValueError(
                    f"{path}.attn_ratio: {block.attn_ratio} x key_dim {block.key_dim} is no "
                    f"whole number of value channels"
                )
        for path, width, ratio in self._mlps():
            if int(width * ratio) < 1:
                raise ValueError(f"{path}.mlp_ratio: {ratio} x width {width} leaves no channel")
        self._check_resolution()
        return self

    def _attention_blocks(self) -> list[tuple[str, Stage | Shrink]]:
        stages: list[tuple[str, Stage | Shrink]] = [
            (f"stages.{index}", stage) for index, stage in enumerate(self.stages)
        ]
        return stages + [(f"shrinks.{index}", shrink) for index, shrink in enumerate(self.shrinks)]

    def _mlps(self) -> list[tuple[str, int, float]]:
        """(path, width, ratio) of every MLP; a shrinking block's has the width it leads to."""
        stages = [(f"stages.{i}", s.embed_dim, s.mlp_ratio) for i, s in enumerate(self.stages)]
        after = zip(self.shrinks, self.stages[1:], strict=True)
        return stages + [
            (f"shrinks.{i}", stage.embed_dim, shrink.mlp_ratio)
            for i, (shrink, stage) in enumerate(after)
        ]

    def _check_resolution(self) -> None:
        stride, size = self.stem.stride, f"{size_text(self.image_size)} px"
        rows, columns = sides(self.image_size)
        if min(rows, columns) < stride:
            raise ValueError(
                f"image_size: {size} is too small for the stem, whose stride is {stride}"
            )
        if rows % stride or columns % stride:
            below, above = (
                size_text(compact(*(stride * (side // stride) for side in larger)))
                for larger in ((rows, columns), (rows + stride - 1, columns + stride - 1))
            )
            raise ValueError(
                f"image_size: {size} is no multiple of the stem's stride {stride}; near it are "
                f"{below} and {above}"
            )
        for index, grid in enumerate(self.grids[:-1]):
            if grid == (1, 1):
                raise ValueError(
                    f"image_size: {size} is too small: after a stem of stride {stride}, stage "
                    f"{index} has a single token and shrinks.{index} nothing to shrink"
                )

    @cached_property
    def grids(self) -> tuple[Sides, ...]:
        """Rows and columns of tokens in each stage."""
        rows, columns = (side // self.stem.stride for side in sides(self.image_size))
        grids = [(rows, columns)]
        for shrink in self.shrinks:
            rows, columns = -(-rows // shrink.stride), -(-columns // shrink.stride)
            grids.append((rows, columns))
        return tuple(grids)

    def summary(self) -> str:
        """The network in a few words: ``64-96-128  d2-3-4  h4-6-8  k16-16-16``.

        A ResNet stem stands before them: ``resnet18 x0.5 to stage 1, 64-96 ...``.
        """

        def row(name: str) -> str:
            return "-".join(str(getattr(stage, name)) for stage in self.stages)

        rows = f"{row('embed_dim')}  d{row('depth')}  h{row('num_heads')}  k{row('key_dim')}"
        return f"{self.stem.summary()}, {rows}" if isinstance(self.stem, ResNetStem) else rows


def _with_derived_values(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what the paper's rules give; wrong types are left for validation to name."""
    filled = dict(data)
    stages = filled.get("stages")
    if (
        not isinstance(stages, (list, tuple))
        or not stages
        or not all(isinstance(stage, Mapping) for stage in stages)
    ):
        return {**filled, "stem": _with_channels(filled.get("stem"), None)}
    widths = [stage.get("embed_dim") for stage in stages]
    stages = [_with_heads(f"stages.{i}", stage, widths[i]) for i, stage in enumerate(stages)]
    filled["stages"] = stages
    filled["stem"] = _with_channels(filled.get("stem"), widths[0])
    shrinks = filled.get("shrinks")
    if shrinks is None:
        shrinks = [{} for _ in stages[1:]]
    if isinstance(shrinks, (list, tuple)):
        # Surplus blocks are filled in too, so that their number is what validation complains of.
        before = [min(i, len(stages) - 1) for i in range(len(shrinks))]
        filled["shrinks"] = [
            _with_heads(f"shrinks.{i}", {"key_dim": stages[b].get("key_dim"), **shrink}, widths[b])
            if isinstance(shrink, Mapping)
            else shrink
            for i, (b, shrink) in enumerate(zip(before, shrinks, strict=True))
        ]
    return filled


def _with_heads(path: str, block: Mapping[str, Any], width: object) -> dict[str, Any]:
    """``num_heads`` and ``key_dim`` from each other, where one is missing."""
    filled = {key: value for key, value in block.items() if value is not None}
    for missing, given in (("key_dim", "num_heads"), ("num_heads", "key_dim")):
        divisor = filled.get(given)
        if missing in filled or not _is_count(divisor) or not _is_count(width):
            continue
        if width % divisor:
            raise ValueError(
                f"{path}.{given}: {divisor} does not divide the width {width}; choose one that "
                f"does, or give {missing} too"
            )
        filled[missing] = width // divisor
        break
    return filled


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _with_channels(stem: Any, width: Any) -> Any:
    """``layers`` and the leading ``channels`` turned into all channels of a conv stem.

    Left-out channels are the width halved for each layer that follows, rounded down, as in the
    paper's C/8, C/4, C/2, C.
    """
    if not isinstance(stem, Mapping) or stem.get("kind", "conv") != "conv":
        return stem
    if "layers" not in stem:
        return {"kind": "conv", **stem}
    layers, leading = stem["layers"], stem.get("channels")
    if not _is_count(layers) or layers > 6:
        raise ValueError(f"stem.layers: must be a whole number from 1 to 6, not {layers!r}")
    if not _is_count(width):
        width = 1  # the width is refused where it stands; this only keeps the stem out of it
    if leading is None:
        leading = [max(1, width // 2**halvings) for halvings in range(layers - 1, 0, -1)]
    if not isinstance(leading, (list, tuple)) or len(leading) not in (layers - 1, layers):
        raise ValueError(
            f"stem.channels: {layers} layers take {layers - 1} channels (the last is the width "
            f"of the first stage) or {layers}, not {leading!r}"
        )
    channels = [*leading, width] if len(leading) == layers - 1 else list(leading)
    return {"kind": "conv", "channels": channels, **_without(stem, "kind", "layers", "channels")}


def _without(mapping: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in names}
