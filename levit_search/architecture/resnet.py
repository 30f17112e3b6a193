"""The convolutions of timm's plain ResNets, up to any of them, as data.

He et al., *Deep Residual Learning for Image Recognition*, 2016, Table 1; ResNet-26 is timm's.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

ResNetName = Literal["resnet18", "resnet26", "resnet34", "resnet50"]
ResNetStemKind = Literal["imagenet", "small"]

# Blocks in each stage, and whether a block is a bottleneck.
_RESNETS: dict[str, tuple[bool, tuple[int, int, int, int]]] = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet26": (True, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
}

_STEM_CHANNELS = 64  # timm's stems have these whatever the width of the stages


class Convolution(NamedTuple):
    """One convolution under timm's name; ``stride`` is that of its map to the image."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int


class Cut(NamedTuple):
    """A ResNet up to one of its convolutions.

    Shortcuts stand after the other convolutions of their block. Where the cut goes through a block
    (``inside_block``), that block's shortcut is left out.
    """

    convolutions: tuple[Convolution, ...]
    channels: int
    stride: int
    inside_block: bool


def depths(name: str) -> tuple[int, int, int, int]:
    """Blocks in each of a ResNet's stages."""
    return _RESNETS[name][1]


def block_layers(name: str) -> int:
    """Convolutions of a block, its shortcut not counted: 3 in a bottleneck, else 2."""
    return 3 if _RESNETS[name][0] else 2


def layers_until(name: str, stages: int) -> int:
    """Convolutions up to the end of a stage, the stem's counted and shortcuts not."""
    return 1 + block_layers(name) * sum(depths(name)[:stages])


def stage_channels(stage: int, width_scale: float = 1) -> int:
    """The width of a stage's 3x3 convolutions, stages from 1; a bottleneck ends with 4x that."""
    return max(1, int(64 * 2 ** (stage - 1) * width_scale))


def scaled_name(name: str, width_scale: float) -> str:
    """A ResNet with its width in words: ``resnet18 x0.5``, or its name alone at its own width."""
    return name if width_scale == 1 else f"{name} x{width_scale:g}"


@lru_cache(maxsize=1024)
def cut(
    name: str,
    layers: int,
    in_channels: int,
    stem: ResNetStemKind = "imagenet",
    width_scale: float = 1,
) -> Cut:
    """ResNet ``name`` up to its convolution number ``layers``, the stem's being number 1.

    Args:
        name: of the ResNet.
        layers: see :func:`layers_until`.
        in_channels: of the images.
        stem: ``imagenet`` (7x7 of stride 2, then max-pooling) or ``small`` (3x3 of stride 1).
        width_scale: of the stages' channels; the stem keeps its own.
    """
    kept: list[Convolution] = []
    left = layers
    last = None
    for block, shortcut in _blocks(name, in_channels, stem, width_scale):
        taken = block[:left]
        left -= len(taken)
        last = taken[-1]
        is_whole = len(taken) == len(block)
        kept += [*taken, *([shortcut] if shortcut and is_whole else [])]
        if left == 0:
            break
    assert last is not None
    return Cut(tuple(kept), last.outputs, last.stride, not is_whole)


def _blocks(
    name: str, channels: int, stem: ResNetStemKind, width_scale: float
) -> Iterator[tuple[list[Convolution], Convolution | None]]:
    """Each block's convolutions and its shortcut, where that is one; the stem comes first."""
    kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
    yield [Convolution("conv1", channels, _STEM_CHANNELS, kernel, stride)], None
    channels = _STEM_CHANNELS
    if stem == "imagenet":
        stride *= 2  # max-pooling
    bottleneck, stages = _RESNETS[name]
    for stage, depth in enumerate(stages, start=1):
        width = stage_channels(stage, width_scale)
        outputs = width * (4 if bottleneck else 1)
        for index in range(depth):
            block = f"layer{stage}.{index}"
            before, stride = stride, stride * (2 if stage > 1 and index == 0 else 1)
            if bottleneck:
                convolutions = [
                    Convolution(f"{block}.conv1", channels, width, 1, before),
                    Convolution(f"{block}.conv2", width, width, 3, stride),
                    Convolution(f"{block}.conv3", width, outputs, 1, stride),
                ]
            else:
                convolutions = [
                    Convolution(f"{block}.conv1", channels, width, 3, stride),
                    Convolution(f"{block}.conv2", width, width, 3, stride),
                ]
            shortcut = None
            if stride > before or channels != outputs:
                shortcut = Convolution(f"{block}.downsample", channels, outputs, 1, stride)
            yield convolutions, shortcut
            channels = outputs
