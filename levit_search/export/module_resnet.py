"""The head of a ResNet as text of a stand-alone module, under the names of ``model.resnet``."""

from collections.abc import Sequence
from itertools import groupby

from levit_search.architecture import resnet as resnets
from levit_search.architecture.resnet import Convolution, Cut, ResNetName
from levit_search.export.module_text import in_turn, indented, laid_out, part
from levit_search.image_size import Sides

BASIC_BLOCK = '''
class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:  #? shortcut
    def __init__(self, channels: int) -> None:  #? not shortcut
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)  #? shortcut
        self.bn1 = nn.BatchNorm2d(outputs)  #? shortcut
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)  #? shortcut
        self.bn2 = nn.BatchNorm2d(outputs)  #? shortcut
        self.downsample = nn.Identity()  #? shortcut
        if stride > 1 or inputs != outputs:  #? shortcut
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)  #? shortcut
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))  #? shortcut
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)  #? not shortcut
        self.bn1 = nn.BatchNorm2d(channels)  #? not shortcut
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)  #? not shortcut
        self.bn2 = nn.BatchNorm2d(channels)  #? not shortcut
        nn.init.zeros_(self.bn2.weight)  # the block begins as its shortcut

    def forward(self, x_bchw: Tensor) -> Tensor:
        y_bchw = F.relu(self.bn1(self.conv1(x_bchw)))
        y_bchw = self.bn2(self.conv2(y_bchw))
        return F.relu(y_bchw + x_bchw)  #? not shortcut
        return F.relu(y_bchw + self.downsample(x_bchw))  #? shortcut
'''

# A bottleneck's first block has a shortcut in any stage, as it has four times the channels.
BOTTLENECK = '''
class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; ends with 4 x width channels."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        nn.init.zeros_(self.bn3.weight)  # the block begins as its shortcut

    def forward(self, x_bchw: Tensor) -> Tensor:
        y_bchw = F.relu(self.bn1(self.conv1(x_bchw)))
        y_bchw = F.relu(self.bn2(self.conv2(y_bchw)))
        y_bchw = self.bn3(self.conv3(y_bchw))
        return F.relu(y_bchw + self.downsample(x_bchw))
'''

RESNET = '''
class ResNet(nn.Module):
    """$title (He et al. 2016).

    Images $read to a map $given.
    """

    def __init__(self) -> None:
        super().__init__()
$modules
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
$steps
'''


def resnet_parts(
    name: ResNetName,
    cut: Cut,
    image_size: Sides,
    width_scale: float = 1,
    activate_last: bool = True,
) -> list[str]:
    """The classes of a ResNet's head, the class ``ResNet`` last.

    Args:
        name: of the ResNet.
        cut: which of its convolutions are kept.
        image_size: rows and columns of pixels.
        width_scale: of the stages' channels, which the cut has already.
        activate_last: whether the ReLU after a last convolution inside a block is kept.
    """
    stem, *others = cut.convolutions
    blocks = _blocks(others)
    whole = [rows for rows in blocks if _is_whole(name, rows)]
    flags = {"shortcut" for rows in whole if rows[-1].name.endswith("downsample")}
    parts = []
    if whole:
        text = BOTTLENECK if resnets.block_layers(name) == 3 else BASIC_BLOCK
        parts.append(part(text, flags))

    padding = stem.kernel // 2
    size = f"kernel_size={stem.kernel}, stride={stem.stride}, padding={padding}, bias=False"
    modules = [
        f"self.conv1 = nn.Conv2d({stem.inputs}, {stem.outputs}, {size})",
        f"self.bn1 = nn.BatchNorm2d({stem.outputs})",
    ]
    shape = _shape(stem.outputs, image_size, stem.stride)
    steps = [f"F.relu(self.bn1(self.conv1(images)))  # {shape}"]
    stride = stem.stride
    if stride > 1:  # the small stem has no max-pooling
        stride *= 2
        shape = _shape(stem.outputs, image_size, stride)
        steps.append(f"F.max_pool2d(x_bchw, kernel_size=3, stride=2, padding=1)  # {shape}")
    for layer, of_layer in groupby(blocks, key=lambda rows: rows[0].name.split(".")[0]):
        made = []
        for rows in of_layer:
            if _is_whole(name, rows):
                made.append(_whole(name, rows, stride, "shortcut" in flags))
            else:
                modules += _begun(rows, stride, activate_last)
                made.append("begun")
            last = _convolutions(rows)[-1]
            stride = last.stride
        modules += laid_out(f"self.{layer} = nn.Sequential(", _repeated(made), ")", indent=8)
        steps.append(f"self.{layer}(x_bchw)  # {_shape(last.outputs, image_size, stride)}")
    values = {
        "title": _title(name, cut, width_scale),
        "read": _shape(stem.inputs, image_size, 1),
        "given": _shape(cut.channels, image_size, cut.stride),
        "modules": indented(modules, 8),
        "steps": indented(in_turn(steps), 8),
    }
    return [*parts, part(RESNET, flags, **values)]


def _blocks(rows: Sequence[Convolution]) -> list[list[Convolution]]:
    """The rows of each block."""
    return [list(block) for _, block in groupby(rows, key=lambda row: row.name.split(".")[:2])]


def _convolutions(rows: Sequence[Convolution]) -> list[Convolution]:
    """A block's own, its shortcut left out."""
    return [row for row in rows if not row.name.endswith("downsample")]


def _is_whole(name: ResNetName, rows: Sequence[Convolution]) -> bool:
    return len(_convolutions(rows)) == resnets.block_layers(name)


def _whole(name: ResNetName, rows: Sequence[Convolution], before: int, shortcuts: bool) -> str:
    """A whole block as a call; ``before`` is the stride of the map it reads."""
    first, last = rows[0], _convolutions(rows)[-1]
    stride = f", stride={last.stride // before}" if last.stride > before else ""
    if resnets.block_layers(name) == 3:
        return f"Bottleneck({first.inputs}, {first.outputs}{stride})"
    widths = f"{first.inputs}, {first.outputs}{stride}" if shortcuts else f"{first.inputs}"
    return f"BasicBlock({widths})"


def _begun(rows: Sequence[Convolution], before: int, activate_last: bool) -> list[str]:
    """The first convolutions of a block, without its shortcut."""
    items = []
    for number, row in enumerate(rows, start=1):
        stride = f", stride={row.stride // before}" if row.stride > before else ""
        padding = f", padding={row.kernel // 2}" if row.kernel > 1 else ""
        size = f"{row.inputs}, {row.outputs}, kernel_size={row.kernel}{stride}{padding}"
        items.append(f"conv{number}=nn.Conv2d({size}, bias=False),")
        items.append(f"bn{number}=nn.BatchNorm2d({row.outputs}),")
        if number < len(rows) or activate_last:
            items.append(f"act{number}=nn.ReLU(),")
        before = row.stride
    return [
        "# The cut goes through this block, whose shortcut is left out.",
        "begun = nn.Sequential(",
        "    OrderedDict(",
        *[f"        {item}" for item in items],
        "    )",
        ")",
    ]


def _repeated(made: Sequence[str]) -> list[str]:
    """Three equal blocks in a row and more become a generator."""
    items: list[str] = []
    for call, equal in groupby(made):
        count = len(list(equal))
        items += [f"*({call} for _ in range({count}))"] if count > 2 else [call] * count
    return items


def _shape(channels: int, image_size: Sides, stride: int) -> str:
    rows, columns = (side // stride for side in image_size)
    return f"[B, {channels}, {rows}, {columns}]"


def _title(name: ResNetName, cut: Cut, width_scale: float) -> str:
    layers = len(_convolutions(cut.convolutions))
    title = f"The first {layers} convolutions of a ResNet-{name.removeprefix('resnet')}"
    return title if width_scale == 1 else f"{title}, its stages at {width_scale:g} of their width"
