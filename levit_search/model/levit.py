"""The module of any architecture of the LeViT family; shapes as in ``blocks``."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from levit_search.architecture import ConvStem, Levit, PatchStem, ResNetStem, Stage
from levit_search.image_size import Sides
from levit_search.model.blocks import (
    ACTIVATIONS,
    Block,
    ConvNorm,
    LaidOut,
    ShrinkBlock,
    init_without_batch_norm,
)
from levit_search.model.resnet import ResNetHead, resnet_shape


class LevitModel(LaidOut, nn.Module):
    """The network an architecture describes, freshly initialised.

    ``forward`` takes images [B, in_channels, height, width] and gives logits
    [B, num_classes]. A network with ``distillation`` gives the pair (class head, distillation
    head) while training and the mean of both otherwise (Graham et al., section 4.3).
    """

    started_from: str | None = None
    """What came over of trained weights before training, for people to read."""

    def __init__(self, architecture: Levit) -> None:
        super().__init__()
        self.architecture = architecture
        stages, grids = architecture.stages, architecture.grids
        self.stem: nn.Module = (
            ResNetPatches(architecture)
            if isinstance(architecture.stem, ResNetStem)
            else ConvPatches(architecture)
        )
        if architecture.position == "embedding":
            self.position_embedding = nn.Parameter(
                torch.empty(1, math.prod(grids[0]), stages[0].embed_dim)
            )
            nn.init.trunc_normal_(self.position_embedding, std=0.02)
        self.stages = nn.ModuleList(
            StageBlocks(architecture, stage, grid)
            for stage, grid in zip(stages, grids, strict=True)
        )
        self.shrinks = nn.ModuleList()
        for i, shrink in enumerate(architecture.shrinks):
            width = stages[i].embed_dim
            self.shrinks.append(ShrinkBlock(architecture, shrink, grids[i], width, stages[i + 1]))
        if architecture.norm == "layer":
            for part in (self.stem, self.stages, self.shrinks):
                init_without_batch_norm(part)
        self.head = NormLinear(architecture)
        self.head_dist = NormLinear(architecture) if architecture.distillation else None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self._stage_outputs(images)[-1]
        x_bc = x.mean(dim=(2, 3) if self.layout == "maps" else 1)
        if self.head_dist is None:
            return cast(Tensor, self.head(x_bc))
        by_class, by_teacher = self.head(x_bc), self.head_dist(x_bc)
        if self.training:
            return by_class, by_teacher
        return cast(Tensor, (by_class + by_teacher) / 2)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The output of every stage as a map [B, C, R, S]."""
        outputs = self._stage_outputs(images)
        if self.layout == "maps":
            return outputs
        grids = self.architecture.grids
        return [
            x_btc.transpose(1, 2).unflatten(2, grid)
            for x_btc, grid in zip(outputs, grids, strict=True)
        ]

    def feature_info(self) -> list[dict[str, int | str]]:
        """Channels, stride and module of each of :meth:`maps`, under timm's keys."""
        network, reduction = self.architecture, self.architecture.stem.stride
        info: list[dict[str, int | str]] = []
        for index, stage in enumerate(network.stages):
            if index:
                reduction *= network.shrinks[index - 1].stride
            module = f"stages.{index}"
            info.append({"num_chs": stage.embed_dim, "reduction": reduction, "module": module})
        return info

    def no_weight_decay(self) -> set[str]:
        """Parameters, besides biases and norms, that the recipe leaves undecayed (timm's hook)."""
        return {
            name
            for name, _ in self.named_parameters()
            if name.endswith("attention_bias") or name == "position_embedding"
        }

    def _stage_outputs(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        if self.layout == "tokens":
            x = x.flatten(2).transpose(1, 2)
        if self.architecture.position == "embedding":
            embedding = self.position_embedding
            if self.layout == "maps":
                embedding = embedding.transpose(1, 2).unflatten(2, self.architecture.grids[0])
            x = x + embedding
        outputs = []
        for index, stage in enumerate(self.stages):
            if index:
                x = self.shrinks[index - 1](x)
            x = stage(x)
            outputs.append(x)
        return outputs


class NormLinear(nn.Module):
    """A classifier: a norm over the averaged tokens [B, C], then a linear layer with bias."""

    def __init__(self, architecture: Levit) -> None:
        super().__init__()
        width = architecture.stages[-1].embed_dim
        batch_norm = architecture.norm == "batch"
        self.norm: nn.Module = nn.BatchNorm1d(width) if batch_norm else nn.LayerNorm(width, 1e-6)
        self.linear = nn.Linear(width, architecture.num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_bc: Tensor) -> Tensor:
        return cast(Tensor, self.linear(self.norm(x_bc)))


class ConvPatches(nn.Module):
    """The convolutional stem, or the single convolution of a patch stem."""

    def __init__(self, architecture: Levit) -> None:
        super().__init__()
        stem = architecture.stem
        assert isinstance(stem, ConvStem | PatchStem)
        batch_norm = architecture.norm == "batch"
        channels = architecture.in_channels
        self.convs = nn.ModuleList()
        if isinstance(stem, PatchStem):
            size, width = stem.patch_size, architecture.stages[0].embed_dim
            self.convs.append(ConvNorm(channels, width, size, size, 0, batch_norm))
        else:
            for outputs in stem.channels:
                self.convs.append(ConvNorm(channels, outputs, 3, 2, 1, batch_norm))
                channels = outputs
        self.activation = ACTIVATIONS[architecture.activation]()

    def forward(self, x_bchw: Tensor) -> Tensor:
        for index, conv in enumerate(self.convs):
            x_bchw = conv(self.activation(x_bchw) if index else x_bchw)
        return x_bchw


class ResNetPatches(nn.Module):
    """The head of a ResNet and, unless the widths agree, a 1x1 convolution to the trunk's."""

    def __init__(self, architecture: Levit) -> None:
        super().__init__()
        stem = architecture.stem
        assert isinstance(stem, ResNetStem)
        width = architecture.stages[0].embed_dim
        shape = resnet_shape(stem.kind, stem.cut(architecture.in_channels), stem.stem)
        is_projected = stem.is_projected(width)
        self.resnet = ResNetHead(shape, activate_last=is_projected)
        batch_norm = architecture.norm == "batch"
        self.projection: nn.Module = (
            ConvNorm(shape.channels, width, 1, 1, 0, batch_norm) if is_projected else nn.Identity()
        )

    def forward(self, x_bchw: Tensor) -> Tensor:
        return cast(Tensor, self.projection(self.resnet(x_bchw)))


class StageBlocks(nn.Module):
    """The residual attention and MLP pairs of one stage."""

    def __init__(self, architecture: Levit, stage: Stage, grid: Sides) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(architecture, stage, grid) for _ in range(stage.depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x
