"""The head of one of timm's ResNets, as both families graft it (He et al. 2016).

Modules stand under timm's names and in its order, so that timm's weights fit and give timm's maps.
"""

from collections import OrderedDict
from typing import NamedTuple, cast

from torch import Tensor, nn

from levit_search.architecture import resnet as resnets
from levit_search.architecture.resnet import Cut, ResNetName, ResNetStemKind


class ResNetStage(NamedTuple):
    """Blocks of one stage, of which the first has the ``stride``."""

    depth: int
    width: int  # channels of 3x3 convolutions
    stride: int
    begun: int  # convolutions of one more block, through which the cut goes


class ResNetShape(NamedTuple):
    """A ResNet up to a cut."""

    in_channels: int
    is_small: bool  # the stem is one 3x3 convolution of stride 1, without max-pooling
    is_bottleneck: bool
    stages: tuple[ResNetStage, ...]
    channels: int  # of the map that it ends with


def resnet_shape(name: ResNetName, cut: Cut, stem: ResNetStemKind) -> ResNetShape:
    """What is to be built of a ResNet.

    Args:
        name: of the ResNet.
        cut: which of its convolutions are kept.
        stem: ``imagenet``, or ``small``: one 3x3 convolution of stride 1 and no max-pooling.
    """
    kept = {row.name: row for row in cut.convolutions}
    layers, stages = resnets.block_layers(name), []
    for number, depth in enumerate(resnets.depths(name), start=1):
        counts = [
            sum(f"layer{number}.{index}.conv{layer}" in kept for layer in (1, 2, 3))
            for index in range(depth)
        ]
        if not counts[0]:
            break
        width = kept[f"layer{number}.0.conv1"].outputs
        begun = next((count for count in counts if 0 < count < layers), 0)
        stages.append(ResNetStage(counts.count(layers), width, 1 if number == 1 else 2, begun))
    inputs = kept["conv1"].inputs
    return ResNetShape(inputs, stem == "small", layers == 3, tuple(stages), cut.channels)


class ResNetHead(nn.Module):
    """A ResNet up to a cut, from images to a map [B, C, H, W].

    Args:
        shape: what to build.
        activate_last: whether the ReLU after a last convolution inside a block is kept.
    """

    def __init__(self, shape: ResNetShape, activate_last: bool = True) -> None:
        super().__init__()
        kernel = 3 if shape.is_small else 7
        stride = 1 if shape.is_small else 2
        channels = 64
        self.conv1 = nn.Conv2d(
            shape.in_channels, channels, kernel, stride, padding=kernel // 2, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = (
            nn.Identity() if shape.is_small else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        )
        block = Bottleneck if shape.is_bottleneck else BasicBlock
        self.layers: list[str] = []
        for number, stage in enumerate(shape.stages, start=1):
            blocks: list[nn.Module] = []
            for index in range(stage.depth):
                made = block(channels, stage.width, 1 if index else stage.stride)
                blocks.append(made)
                channels = made.channels
            if stage.begun:
                made = block(channels, stage.width, 1 if stage.depth else stage.stride)
                blocks.append(first_convolutions(made, stage.begun, activate_last))
            self.layers.append(f"layer{number}")
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.maps(x_bchw)[-1]

    def maps(self, x_bchw: Tensor) -> list[Tensor]:
        """The output of each stage [B, C, H, W]; the last one may be cut."""
        x_bchw = self.maxpool(self.act1(self.bn1(self.conv1(x_bchw))))
        outputs = []
        for layer in self.layers:
            x_bchw = getattr(self, layer)(x_bchw)
            outputs.append(x_bchw)
        return outputs


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.channels = width
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, self.channels, stride)
        nn.init.zeros_(self.bn2.weight)  # the block begins as its shortcut

    def forward(self, x_bchw: Tensor) -> Tensor:
        y_bchw = self.act1(self.bn1(self.conv1(x_bchw)))
        y_bchw = self.bn2(self.conv2(y_bchw))
        y_bchw += self.downsample(x_bchw)
        return cast(Tensor, self.act2(y_bchw))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; ends with 4 x ``width`` channels."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.channels = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, self.channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.channels)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, self.channels, stride)
        nn.init.zeros_(self.bn3.weight)  # the block begins as its shortcut

    def forward(self, x_bchw: Tensor) -> Tensor:
        y_bchw = self.act1(self.bn1(self.conv1(x_bchw)))
        y_bchw = self.act2(self.bn2(self.conv2(y_bchw)))
        y_bchw = self.bn3(self.conv3(y_bchw))
        y_bchw += self.downsample(x_bchw)
        return cast(Tensor, self.act3(y_bchw))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A 1x1 convolution and its norm where a block changes the shape, else nothing."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def first_convolutions(block: nn.Module, count: int, activate_last: bool) -> nn.Sequential:
    """The first convolutions of a block on their own, without its shortcut."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, count + 1):
        for part in ("conv", "bn", "act"):
            modules[f"{part}{number}"] = block.get_submodule(f"{part}{number}")
    if not activate_last:
        del modules[f"act{count}"]
    return nn.Sequential(modules)
