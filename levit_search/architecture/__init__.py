"""The description of one network: frozen, validated, with a stable id, in two families."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from levit_search.architecture.graft import Donor, Graft, Trunk
from levit_search.architecture.levit import (
    Activation,
    AttentionActivation,
    ConvStem,
    Levit,
    PatchStem,
    ResNetStem,
    Shrink,
    Stage,
)
from levit_search.architecture.published import (
    ABLATIONS,
    GRAFTS,
    LEVITS,
    published,
    published_names,
)
from levit_search.configuration import read_yaml, validated
from levit_search.errors import InputError, UnknownNameError, did_you_mean
from levit_search.image_size import Sides, compact, sides, size_text

Architecture = Levit | Graft

FAMILIES: dict[str, type[Levit] | type[Graft]] = {"levit": Levit, "graft": Graft}


def family_of(data: Mapping[str, object], where: str = "architecture") -> type[Levit] | type[Graft]:
    """The family that a description names, ``levit`` where it names none.

    Raises:
        InputError: there is no such family.
    """
    family = data.get("family", "levit")
    if not isinstance(family, str) or family not in FAMILIES:
        hint = did_you_mean(str(family), FAMILIES)
        raise InputError(f"{where}: family: unknown value {family!r}; {hint}")
    return FAMILIES[family]


def parse(data: object, where: str = "architecture") -> Architecture:
    """An architecture from plain data (as read from YAML or JSON).

    Raises:
        InputError: naming the field, what is wrong with it and the value received.
    """
    if isinstance(data, Levit | Graft):
        return data
    family = family_of(data, where) if isinstance(data, Mapping) else Levit
    return validated(family, data, where)


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


SIZES = ("image_size", "in_channels", "num_classes")
"""What networks take from the data."""


def sizes_of(network: Architecture) -> dict[str, Any]:
    """The images that a network is made for, by :data:`SIZES`."""
    return {name: getattr(network, name) for name in SIZES}


class SizeError(InputError):
    """Images of a size that a network cannot be made for."""


DIVISIBLE_SIZE = 512
"""Pixels a side that stems and stages can divide, if they go together at all."""


def described(
    description: Mapping[str, object], sizes: Mapping[str, Any], where: str = "architecture"
) -> Architecture:
    """The network of a description that may leave out some of :data:`SIZES`.

    Args:
        description: as :func:`parse` takes it; what it states counts.
        sizes: for the rest.
        where: for messages.

    Raises:
        SizeError: it leaves out ``image_size``, and goes with others than the one in ``sizes``.
        InputError: see :func:`parse`.
    """
    try:
        return parse({**sizes, **description}, where)
    except InputError as error:
        if "image_size" in description:
            raise
        try:
            parse({**sizes, **description, "image_size": DIVISIBLE_SIZE}, where)
        except InputError:
            raise error from None
        raise SizeError(str(error)) from None


def published_for(
    *, image_size: int | Sides, in_channels: int, num_classes: int
) -> dict[str, Architecture]:
    """The published networks whose images are of this size, by name, with other ends.

    Args:
        image_size: in pixels, a side or (height, width); networks of another one are left out.
        in_channels: of the images.
        num_classes: of the data.
    """
    ends = {"in_channels": in_channels, "num_classes": num_classes}
    return {
        name: fitted(published(name), image_size=image_size, **ends)
        for name in published_names()
        if published(name).image_size == image_size
    }


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no possible name of a file
        return False


def fitted(
    architecture: Architecture, *, image_size: int | Sides, in_channels: int, num_classes: int
) -> Architecture:
    """The same trunk for other images; at the size it was made for, all but the ends stays.

    A convolutional stem keeps its last layers, as many as leave at least eight tokens a side (the
    most that do), and at least one; a patch stem gets the power of two that such a stem would have
    as its stride. A graft gets the small stem and a quarter of the image as its grid up to 64 px, a
    sixteenth beyond. Of a rectangular image the shorter side decides.

    Args:
        architecture: made for any images.
        image_size: in pixels, a side or (height, width).
        in_channels: of the images.
        num_classes: of the data.

    Raises:
        InputError: the images are too small for the stages.
    """
    data = architecture.model_dump(mode="json")
    rows, columns = sides(image_size)
    shorter = min(rows, columns)
    if image_size != architecture.image_size:
        if isinstance(architecture, Graft):
            is_small = shorter <= 64
            patch = 4 if is_small else 16
            data["grid"] = compact(rows // patch, columns // patch)
            if data["donor"]:
                data["donor"]["stem"] = "small" if is_small else "imagenet"
        elif isinstance(architecture.stem, ConvStem):
            layers = _stem_layers(shorter, len(architecture.stem.channels))
            data["stem"]["channels"] = list(architecture.stem.channels[-layers:])
        elif isinstance(architecture.stem, PatchStem):
            most = architecture.stem.patch_size.bit_length() - 1
            data["stem"]["patch_size"] = 2 ** _stem_layers(shorter, most)
    sizes = {"image_size": image_size, "in_channels": in_channels, "num_classes": num_classes}
    return parse({**data, **sizes}, f"architecture fitted to {size_text(image_size)} px")


def _stem_layers(side: int, most: int) -> int:
    """Convolutions of stride 2 that leave at least eight tokens a side."""
    return max((n for n in range(1, most + 1) if side >= 8 * 2**n), default=1)


def scaled(architecture: Architecture, width_scale: float) -> Architecture:
    """The same network with its widths multiplied and rounded down, and its heads with them.

    Key dimensions stay as they are in a LeViT, whose heads are rounded to the nearest count; in a
    graft's trunk the heads still split the width. Of a donor and of a LeViT's ResNet stem the
    stages are scaled, the first convolution is not.

    Raises:
        InputError: the scale is not above 0 and at most 1000, as all ratios are.
    """
    if not 0 < width_scale <= 1000:
        raise InputError(f"width scale {width_scale}: must be above 0 and at most 1000")
    if width_scale == 1:
        return architecture
    data = architecture.model_dump(mode="json")

    def times(count: int) -> int:
        return max(1, int(count * width_scale))

    if isinstance(architecture, Graft):
        if data["donor"]:
            data["donor"]["width_scale"] *= width_scale
        if architecture.trunk:
            width = times(architecture.trunk.embed_dim)
            wanted = architecture.trunk.num_heads * width_scale
            divisors = [n for n in range(1, width + 1) if width % n == 0]
            heads = min(divisors, key=lambda n: (abs(n - wanted), -n))
            data["trunk"] |= {"embed_dim": width, "num_heads": heads}
    else:
        if isinstance(architecture.stem, ConvStem):
            data["stem"]["channels"] = [times(n) for n in architecture.stem.channels]
        elif isinstance(architecture.stem, ResNetStem):
            data["stem"]["width_scale"] = architecture.stem.width_scale * width_scale
        for block in [*data["stages"], *data["shrinks"]]:
            block["num_heads"] = max(1, round(block["num_heads"] * width_scale))
        for stage in data["stages"]:
            stage["embed_dim"] = times(stage["embed_dim"])
    return parse(data, f"architecture scaled by {width_scale:g}")


__all__ = [
    "ABLATIONS",
    "DIVISIBLE_SIZE",
    "FAMILIES",
    "GRAFTS",
    "LEVITS",
    "SIZES",
    "Activation",
    "Architecture",
    "AttentionActivation",
    "ConvStem",
    "Donor",
    "Graft",
    "Levit",
    "PatchStem",
    "ResNetStem",
    "Shrink",
    "SizeError",
    "Stage",
    "Trunk",
    "described",
    "family_of",
    "fitted",
    "load",
    "parse",
    "published",
    "published_for",
    "published_names",
    "scaled",
    "sizes_of",
]
