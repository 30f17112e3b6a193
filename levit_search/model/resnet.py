"""The head of one of timm's ResNets, as both families graft it."""

from collections import OrderedDict
from typing import cast

from torch import Tensor, nn

from levit_search.architecture import resnet as resnets
from levit_search.architecture.resnet import Cut, ResNetName, ResNetStemKind


class ResNetHead(nn.Module):
    """A ResNet up to a cut, its modules under timm's names.

    Args:
        name: of the ResNet.
        cut: which of its convolutions are kept.
        in_channels: of the images.
        stem: ``imagenet``, or ``small``: one 3x3 convolution of stride 1 and no max-pooling.
        width_scale: of the stages' channels.
        activate_last: whether the ReLU after a last convolution inside a block is kept.
    """

    def __init__(
        self,
        name: ResNetName,
        cut: Cut,
        in_channels: int,
        stem: ResNetStemKind = "imagenet",
        width_scale: float = 1,
        activate_last: bool = True,
    ) -> None:
        super().__init__()
        import timm  # seconds to import, and only networks with a ResNet need it

        channels = tuple(resnets.stage_channels(stage, width_scale) for stage in range(1, 5))
        kept = {row.name for row in cut.convolutions}
        # Blocks that begin before the cut; the others would only take time to initialise. timm
        # divides by the number of blocks less one, hence two of stage 1 in any case.
        begun = tuple(
            max(
                sum(f"layer{stage}.{index}.conv1" in kept for index in range(depth)),
                2 if stage == 1 else 0,
            )
            for stage, depth in enumerate(resnets.depths(name), start=1)
        )
        whole = timm.create_model(name, in_chans=in_channels, channels=channels, layers=begun)
        self.conv1, self.bn1, self.act1 = whole.conv1, whole.bn1, whole.act1
        self.maxpool = whole.maxpool
        if stem == "small":
            self.conv1 = nn.Conv2d(in_channels, whole.conv1.out_channels, 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()
        self.layers: list[str] = []
        for stage in range(1, 5):
            layer = f"layer{stage}"
            blocks: list[nn.Module] = []
            for index, block in enumerate(getattr(whole, layer)):
                if f"{layer}.{index}.conv{resnets.block_layers(name)}" in kept:
                    blocks.append(block)
                elif f"{layer}.{index}.conv1" in kept:
                    convolutions = 1 + (f"{layer}.{index}.conv2" in kept)
                    blocks.append(_partial(block, convolutions, activate_last))
            if blocks:
                self.layers.append(layer)
                setattr(self, layer, nn.Sequential(*blocks))

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


def _partial(block: nn.Module, convolutions: int, activate_last: bool) -> nn.Sequential:
    """The first convolutions of a block on their own, without its shortcut."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, convolutions + 1):
        for part in ("conv", "bn", "act"):
            modules[f"{part}{number}"] = cast(nn.Module, getattr(block, f"{part}{number}"))
    if not activate_last:
        del modules[f"act{convolutions}"]
    return nn.Sequential(modules)
