"""The module of any architecture of the graft family; shapes as in ``blocks``."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levit_search.architecture import Graft, Stage
from levit_search.model.blocks import Block, ConvNorm, LaidOut, init_without_batch_norm
from levit_search.model.resnet import ResNetHead, resnet_shape


class GraftModel(nn.Module):
    """The network an architecture describes, freshly initialised.

    ``forward`` takes images [B, in_channels, height, width] and gives logits
    [B, num_classes]. A network with ``distillation`` gives the pair (class head, distillation
    head) while training and the mean of both otherwise (Touvron et al. 2021, section 4).
    """

    started_from: str | None = None
    """What came over of trained weights before training, for people to read."""

    def __init__(self, architecture: Graft) -> None:
        super().__init__()
        self.architecture = architecture
        self.donor: ResNetHead | None = None
        channels = architecture.in_channels
        if architecture.donor is not None:
            donor = architecture.donor
            shape = resnet_shape(donor.name, donor.cut(channels), donor.stem)
            self.donor = ResNetHead(shape)
            channels = shape.channels
        self.trunk: GraftTrunk | None = None
        if architecture.trunk_stage is not None:
            self.trunk = GraftTrunk(architecture, architecture.trunk_stage, channels)
            channels = architecture.trunk_stage.embed_dim
        self.head = classifier(channels, architecture.num_classes)
        self.head_dist = (
            classifier(channels, architecture.num_classes) if architecture.distillation else None
        )

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x_bchw = images if self.donor is None else self.donor(images)
        if self.trunk is None:
            answers = [x_bchw.mean(dim=(2, 3))]
        else:
            # The class token answers for the labels, the distillation token for the teacher.
            x_bnc = self.trunk(x_bchw)
            answers = [x_bnc[:, 0], x_bnc[:, -1]]
        if self.head_dist is None:
            return cast(Tensor, self.head(answers[0]))
        by_class, by_teacher = self.head(answers[0]), self.head_dist(answers[-1])
        if self.training:
            return by_class, by_teacher
        return cast(Tensor, (by_class + by_teacher) / 2)

    @property
    def layout(self) -> str:
        """Of the trunk; a donor's activations are always maps."""
        return self.trunk.layout if self.trunk is not None else "maps"

    def maps(self, images: Tensor) -> list[Tensor]:
        """The output of every donor stage, then of the trunk, as maps [B, C, H, W]."""
        outputs = [] if self.donor is None else self.donor.maps(images)
        if self.trunk is not None:
            outputs.append(self.trunk.map(outputs[-1] if outputs else images))
        return outputs

    def feature_info(self) -> list[dict[str, int | str]]:
        """Channels, stride and module of each of :meth:`maps`, under timm's keys."""
        network = self.architecture
        info: list[dict[str, int | str]] = []
        if network.donor is not None:
            convolutions = network.donor.cut(network.in_channels).convolutions
            for stage in range(1, network.donor.stages + 1):
                layer = f"layer{stage}"
                row = [r for r in convolutions if r.name.startswith(layer)][-1]
                module = f"donor.{layer}"
                info.append({"num_chs": row.outputs, "reduction": row.stride, "module": module})
        if network.trunk is not None:
            stride = network.donor.cut(network.in_channels).stride if network.donor else 1
            width, reduction = network.trunk.embed_dim, stride * network.patch
            info.append({"num_chs": width, "reduction": reduction, "module": "trunk.blocks"})
        return info

    def no_weight_decay(self) -> set[str]:
        """Parameters, besides biases and norms, that the recipe leaves undecayed (timm's hook)."""
        names = ("class_token", "distillation_token", "position_embedding")
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in names}


class GraftTrunk(LaidOut, nn.Module):
    """From a map [B, C, H, W] to normed tokens [B, 1 or 2, C]: class, then distillation.

    Args:
        architecture: the whole network.
        stage: its trunk.
        channels: of the map; the image's own where no donor comes before.
    """

    joined_bnc: Tensor | None

    def __init__(self, architecture: Graft, stage: Stage, channels: int) -> None:
        super().__init__()
        grid, width = architecture.grid_sides, stage.embed_dim
        self.grid, self.num_extra = grid, architecture.tokens - math.prod(grid)
        if architecture.donor is None:
            self.pool: nn.Module = nn.Identity()
            patch = architecture.patch
            self.projection = ConvNorm(channels, width, patch, patch, 0, batch_norm=False)
        else:
            patch = architecture.patch
            self.pool = nn.AvgPool2d(patch) if patch > 1 else nn.Identity()
            self.projection = ConvNorm(channels, width, 1, 1, 0, batch_norm=False)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.distillation_token = (
            nn.Parameter(torch.zeros(1, 1, width)) if architecture.distillation else None
        )
        self.position_embedding = nn.Parameter(torch.empty(1, architecture.tokens, width))
        for parameter in (self.class_token, self.distillation_token, self.position_embedding):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        # Only folding sets this: what is added to the tokens, once training is over.
        self.register_buffer("joined_bnc", None, persistent=False)
        self.blocks = nn.ModuleList(Block(architecture, stage, grid) for _ in range(stage.depth))
        init_without_batch_norm(self.blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def joined(self) -> Tensor:
        """The extra tokens and every token's position embedding, to be added: [1, N, C].

        In this way no token has to be repeated for each image, whose number graphs do not know.
        """
        extra_bnc = F.pad(torch.cat(self._extra_tokens(), dim=1), (0, 0, 0, math.prod(self.grid)))
        return extra_bnc + self.position_embedding

    def forward(self, x_bchw: Tensor) -> Tensor:
        x = self._blocks(x_bchw)
        extra_bnc = (
            x[:, :, : self.num_extra, 0].transpose(1, 2)
            if self.layout == "maps"
            else x[:, : self.num_extra]
        )
        return cast(Tensor, self.norm(extra_bnc))

    def map(self, x_bchw: Tensor) -> Tensor:
        """The grid's own tokens after the last block, not normed: [B, C, R, S]."""
        x = self._blocks(x_bchw)
        x_bct = x.flatten(2) if self.layout == "maps" else x.transpose(1, 2)
        return cast(Tensor, x_bct[:, :, self.num_extra :].unflatten(2, self.grid))

    def _extra_tokens(self) -> list[Tensor]:
        tokens = (self.class_token, self.distillation_token)
        return [token for token in tokens if token is not None]

    def _blocks(self, x_bchw: Tensor) -> Tensor:
        x_btc = self.projection(self.pool(x_bchw)).flatten(2).transpose(1, 2)
        if self.joined_bnc is not None:
            x = F.pad(x_btc, (0, 0, self.num_extra, 0)) + self.joined_bnc
        else:
            extra = [token.expand(x_btc.shape[0], -1, -1) for token in self._extra_tokens()]
            x = torch.cat([*extra, x_btc], dim=1) + self.position_embedding
        if self.layout == "maps":
            x = x.transpose(1, 2).unsqueeze(3)  # no grid, as there are tokens beside the grid
        for block in self.blocks:
            x = block(x)
        return x


def classifier(channels: int, num_classes: int) -> nn.Linear:
    """A linear layer from features [B, C] to logits [B, classes]."""
    linear = nn.Linear(channels, num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
