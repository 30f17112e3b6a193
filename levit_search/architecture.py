"""The description of one network: frozen, validated, with a stable id.

The paper's letters are mapped to the field's words here and nowhere else: C is ``embed_dim``, N is
``num_heads``, D is ``key_dim``; depth counts pairs of one attention and one MLP block.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import AfterValidator, Field, model_validator

from levit_search.configuration import Count, Frozen, Ratio, read_yaml, validated, write_yaml
from levit_search.errors import InputError, UnknownNameError

Activation = Literal["hardswish", "gelu", "relu", "silu"]
AttentionActivation = Literal["none", "hardswish", "gelu", "relu", "silu"]


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
    """A ResNet's own stem and its first stages, then a 1x1 convolution to the trunk's width."""

    kind: Literal["resnet18", "resnet26", "resnet34", "resnet50"]
    stages: Annotated[int, Field(strict=True, ge=1, le=4)]

    @property
    def stride(self) -> int:
        return int(2 ** (self.stages + 1))


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


class Levit(Frozen):
    """A network of the LeViT family.

    What is left out follows the paper: a stage's ``num_heads`` and ``key_dim`` give each other
    (heads must then divide the width), a shrinking block takes the key dimension before it and as
    many heads as fit into the width it reads, and a convolutional stem given as ``layers`` doubles
    its channels up to the first stage's width.
    """

    family: Literal["levit"] = "levit"
    image_size: Count
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
    drop_path: Annotated[float, Field(ge=0, lt=1), AfterValidator(abs)] = 0.0  # -0.0 is 0.0

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
        stride = self.stem.stride
        if self.image_size < stride:
            raise ValueError(
                f"image_size: {self.image_size} px is too small for the stem, whose stride is "
                f"{stride}"
            )
        if self.image_size % stride:
            raise ValueError(
                f"image_size: {self.image_size} px is no multiple of the stem's stride {stride}"
            )
        for index, grid in enumerate(self.grids[:-1]):
            if grid < 2:
                raise ValueError(
                    f"image_size: {self.image_size} px is too small: after a stem of stride "
                    f"{stride}, stage {index} has a single token and shrinks.{index} nothing to "
                    f"shrink"
                )

    @cached_property
    def grids(self) -> tuple[int, ...]:
        """Tokens a side in each stage."""
        grids = [self.image_size // self.stem.stride]
        for shrink in self.shrinks:
            grids.append(-(-grids[-1] // shrink.stride))
        return tuple(grids)

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits of a hash over the whole canonical dump."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_yaml(self) -> str:
        """The canonical YAML, which :func:`parse` reads back to an equal network."""
        return write_yaml(self.model_dump(mode="json"))

    def summary(self) -> str:
        """The network in a few words: ``64-96-128  d2-3-4  h4-6-8  k16-16-16``."""

        def row(name: str) -> str:
            return "-".join(str(getattr(stage, name)) for stage in self.stages)

        return f"{row('embed_dim')}  d{row('depth')}  h{row('num_heads')}  k{row('key_dim')}"


# The graft family will join as a union discriminated by ``family``.
Architecture = Levit


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


def parse(data: object, where: str = "architecture") -> Architecture:
    """An architecture from plain data (as read from YAML or JSON).

    Raises:
        InputError: naming the field, what is wrong with it and the value received.
    """
    return validated(Levit, data, where)


def load(text: str) -> Architecture:
    """A published network by its name, or the architecture in a YAML file by its path.

    Raises:
        InputError: no such name or file, or the file does not describe a network.
    """
    if text in published_names():
        return published(text)
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or _is_file(path):
        return parse(read_yaml(path), text)
    raise UnknownNameError("architecture", text, published_names())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no possible name of a file
        return False


def fitted(
    architecture: Architecture, *, image_size: int, in_channels: int, num_classes: int
) -> Architecture:
    """The same trunk for other images: the stem gets the stride that suits the size.

    A convolutional stem keeps its last layers, as many as leave at least eight tokens a side (the
    most that do), and at least one; at the size it was made for it stays as it is.

    Raises:
        InputError: the images are too small for the stages.
    """
    data = architecture.model_dump(mode="json")
    stem = architecture.stem
    if isinstance(stem, ConvStem) and image_size != architecture.image_size:
        layers = max(
            (n for n in range(1, len(stem.channels) + 1) if image_size >= 8 * 2**n), default=1
        )
        data["stem"]["channels"] = list(stem.channels[-layers:])
    sizes = {"image_size": image_size, "in_channels": in_channels, "num_classes": num_classes}
    return parse({**data, **sizes}, f"architecture fitted to {image_size} px")


# embed_dim, num_heads, key_dim, depth, drop_path: Table 2 of the paper. LeViT-384's second
# shrinking block has 512 / 32 = 16 heads as in the released code (the table prints 18).
_PUBLISHED: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, ...], float]] = {
    "LeViT-128S": ((128, 256, 384), (4, 6, 8), 16, (2, 3, 4), 0.0),
    "LeViT-128": ((128, 256, 384), (4, 8, 12), 16, (4, 4, 4), 0.0),
    "LeViT-192": ((192, 288, 384), (3, 5, 6), 32, (4, 4, 4), 0.0),
    "LeViT-256": ((256, 384, 512), (4, 6, 8), 32, (4, 4, 4), 0.0),
    "LeViT-384": ((384, 512, 768), (6, 9, 12), 32, (4, 4, 4), 0.1),
}


def published_names() -> tuple[str, ...]:
    """The names :func:`published` knows, smallest network first."""
    return tuple(_PUBLISHED)


@cache
def published(name: str) -> Architecture:
    """A published network at 224 px and 1000 classes, with both heads (Graham et al., Table 2).

    Raises:
        InputError: the name is none of :func:`published_names`.
    """
    if name not in _PUBLISHED:
        raise UnknownNameError("architecture", name, _PUBLISHED)
    widths, heads, key_dim, depths, drop_path = _PUBLISHED[name]
    stages = [
        {"depth": depth, "embed_dim": width, "num_heads": head_count, "key_dim": key_dim}
        for depth, width, head_count in zip(depths, widths, heads, strict=True)
    ]
    stem = {"kind": "conv", "layers": 4}
    sizes = {"image_size": 224, "in_channels": 3, "num_classes": 1000}
    return parse({**sizes, "stem": stem, "stages": stages, "drop_path": drop_path}, name)


__all__ = [
    "Activation",
    "Architecture",
    "AttentionActivation",
    "ConvStem",
    "InputError",
    "Levit",
    "PatchStem",
    "ResNetStem",
    "Shrink",
    "Stage",
    "fitted",
    "load",
    "parse",
    "published",
    "published_names",
]
