"""The module of any architecture of the LeViT family.

Shapes: B images, C channels (``embed_dim``), R tokens a side, T = R * R tokens (Q of them queries
where a block shrinks), H ``num_heads``, K ``key_dim``, V value channels a head. A stem makes a map
[B, C, R, R]; from the first stage on, tokens are [B, T, C].
"""

from typing import cast

import torch
from torch import Tensor, nn

from levit_search.architecture import (
    Architecture,
    ConvStem,
    PatchStem,
    ResNetStem,
    Shrink,
    Stage,
)

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class LevitModel(nn.Module):
    """The network an architecture describes, freshly initialised.

    ``forward`` takes images [B, in_channels, image_size, image_size] and gives logits
    [B, num_classes]. A network with ``distillation`` gives the pair (class head, distillation
    head) while training and the mean of both otherwise (Graham et al., section 4.3).
    """

    def __init__(self, architecture: Architecture) -> None:
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
                torch.empty(1, grids[0] ** 2, stages[0].embed_dim)
            )
            nn.init.trunc_normal_(self.position_embedding, std=0.02)
        self.stages = nn.ModuleList(
            StageBlocks(architecture, stage, grid)
            for stage, grid in zip(stages, grids, strict=True)
        )
        self.shrinks = nn.ModuleList(
            ShrinkBlock(architecture, shrink, grids[i], stages[i].embed_dim, stages[i + 1])
            for i, shrink in enumerate(architecture.shrinks)
        )
        self.head = NormLinear(architecture)
        self.head_dist = NormLinear(architecture) if architecture.distillation else None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x_bchw = self.stem(images)
        x_btc = x_bchw.flatten(2).transpose(1, 2)
        if self.architecture.position == "embedding":
            x_btc = x_btc + self.position_embedding
        for index, stage in enumerate(self.stages):
            if index:
                x_btc = self.shrinks[index - 1](x_btc)
            x_btc = stage(x_btc)
        x_bc = x_btc.mean(dim=1)
        if self.head_dist is None:
            return cast(Tensor, self.head(x_bc))
        by_class, by_teacher = self.head(x_bc), self.head_dist(x_bc)
        if self.training:
            return by_class, by_teacher
        return cast(Tensor, (by_class + by_teacher) / 2)

    def no_weight_decay(self) -> set[str]:
        """Parameters, besides biases and norms, that the recipe leaves undecayed (timm's hook)."""
        return {
            name
            for name, _ in self.named_parameters()
            if name.endswith("attention_bias") or name == "position_embedding"
        }


class ConvNorm(nn.Module):
    """A convolution and its batch norm, or a convolution with bias under pre-activation norm."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, padding: int, batch_norm: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=not batch_norm)
        self.norm: nn.Module = nn.BatchNorm2d(outputs) if batch_norm else nn.Identity()

    def forward(self, x_bchw: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.conv(x_bchw)))


class LinearNorm(nn.Module):
    """A linear layer over tokens and its batch norm, or with bias under pre-activation norm.

    ``closes_residual`` starts the batch-norm weight at zero, so that every residual block begins
    as the identity (Goyal et al. 2017).
    """

    def __init__(
        self, inputs: int, outputs: int, batch_norm: bool, closes_residual: bool = False
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=not batch_norm)
        self.norm: nn.Module = nn.BatchNorm1d(outputs) if batch_norm else nn.Identity()
        if closes_residual and isinstance(self.norm, nn.BatchNorm1d):
            nn.init.zeros_(self.norm.weight)

    def forward(self, x_btc: Tensor) -> Tensor:
        x_btc = self.linear(x_btc)
        return cast(Tensor, self.norm(x_btc.flatten(0, 1)).view_as(x_btc))


class NormLinear(nn.Module):
    """A classifier: a norm over the averaged tokens [B, C], then a linear layer with bias."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.stages[-1].embed_dim
        batch_norm = architecture.norm == "batch"
        self.norm: nn.Module = nn.BatchNorm1d(width) if batch_norm else nn.LayerNorm(width)
        self.linear = nn.Linear(width, architecture.num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_bc: Tensor) -> Tensor:
        return cast(Tensor, self.linear(self.norm(x_bc)))


class ConvPatches(nn.Module):
    """The convolutional stem, or the single convolution of a patch stem."""

    def __init__(self, architecture: Architecture) -> None:
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
        self.activation = _ACTIVATIONS[architecture.activation]()

    def forward(self, x_bchw: Tensor) -> Tensor:
        for index, conv in enumerate(self.convs):
            x_bchw = conv(self.activation(x_bchw) if index else x_bchw)
        return x_bchw


class ResNetPatches(nn.Module):
    """The first stages of timm's ResNet and a 1x1 convolution to the trunk's width."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        import timm  # seconds to import, and no other stem needs it

        stem = architecture.stem
        assert isinstance(stem, ResNetStem)
        self.resnet = timm.create_model(stem.kind, in_chans=architecture.in_channels)
        for later in range(stem.stages + 1, 5):
            delattr(self.resnet, f"layer{later}")
        del self.resnet.global_pool, self.resnet.fc
        self.num_stages = stem.stages
        channels = self.resnet.feature_info[stem.stages]["num_chs"]
        width = architecture.stages[0].embed_dim
        self.projection = ConvNorm(channels, width, 1, 1, 0, architecture.norm == "batch")

    def forward(self, x_bchw: Tensor) -> Tensor:
        resnet = self.resnet
        x_bchw = resnet.maxpool(resnet.act1(resnet.bn1(resnet.conv1(x_bchw))))
        for stage in range(1, self.num_stages + 1):
            x_bchw = getattr(resnet, f"layer{stage}")(x_bchw)
        return cast(Tensor, self.projection(x_bchw))


class StageBlocks(nn.Module):
    """The residual attention and MLP pairs of one stage."""

    def __init__(self, architecture: Architecture, stage: Stage, grid: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(architecture, stage, grid) for _ in range(stage.depth))

    def forward(self, x_btc: Tensor) -> Tensor:
        for block in self.blocks:
            x_btc = block(x_btc)
        return x_btc


class Block(nn.Module):
    """One attention block and one MLP block, each with a residual connection."""

    def __init__(self, architecture: Architecture, stage: Stage, grid: int) -> None:
        super().__init__()
        self.attention = Attention(architecture, stage, grid)
        self.mlp = Mlp(architecture, stage.embed_dim, stage.mlp_ratio)
        self.drop_path = DropPath(architecture.drop_path)

    def forward(self, x_btc: Tensor) -> Tensor:
        x_btc = x_btc + self.drop_path(self.attention(x_btc))
        return cast(Tensor, x_btc + self.drop_path(self.mlp(x_btc)))


class ShrinkBlock(nn.Module):
    """Attention from a thinned grid of queries, without residual, then a residual MLP."""

    def __init__(
        self, architecture: Architecture, shrink: Shrink, grid: int, inputs: int, after: Stage
    ) -> None:
        super().__init__()
        self.attention = ShrinkAttention(architecture, shrink, grid, inputs, after.embed_dim)
        self.mlp = Mlp(architecture, after.embed_dim, shrink.mlp_ratio)
        self.drop_path = DropPath(architecture.drop_path)

    def forward(self, x_btc: Tensor) -> Tensor:
        x_bqc = self.attention(x_btc)
        return cast(Tensor, x_bqc + self.drop_path(self.mlp(x_bqc)))


class AttentionCore(nn.Module):
    """softmax(q k / sqrt(K) + bias) v with one learned bias a head and absolute offset.

    In a shrinking block the query at (x, y) sits at (stride x, stride y) of the keys' grid
    (Graham et al., equation 1 and section 4.2).
    """

    offsets_qt: Tensor
    attention_bias: nn.Parameter | None
    bias_hqt: Tensor | None

    def __init__(self, architecture: Architecture, block: Stage | Shrink, grid: int) -> None:
        super().__init__()
        self.num_heads, self.key_dim = block.num_heads, block.key_dim
        self.value_dim = int(block.attn_ratio * block.key_dim)
        self.scale = block.key_dim**-0.5
        self.has_bias = architecture.position == "bias"
        # Only folding sets this: the gathered bias, once training is over.
        self.register_buffer("bias_hqt", None, persistent=False)
        self.attention_bias = None
        if self.has_bias:
            self.attention_bias = nn.Parameter(torch.zeros(block.num_heads, grid * grid))
            stride = block.stride if isinstance(block, Shrink) else 1
            self.register_buffer("offsets_qt", offsets(grid, stride), persistent=False)

    def gathered_bias(self) -> Tensor:
        """The learned scalars laid out for every query and key: [H, Q, T]."""
        assert self.attention_bias is not None
        return self.attention_bias[:, self.offsets_qt]

    def forward(self, q_bqhk: Tensor, k_bthk: Tensor, v_bthv: Tensor) -> Tensor:
        q_bhqk = q_bqhk.permute(0, 2, 1, 3)
        k_bhkt = k_bthk.permute(0, 2, 3, 1)
        v_bhtv = v_bthv.permute(0, 2, 1, 3)
        scores_bhqt = q_bhqk @ k_bhkt * self.scale
        if self.has_bias:
            bias = self.bias_hqt if self.bias_hqt is not None else self.gathered_bias()
            scores_bhqt = scores_bhqt + bias
        x_bhqv = scores_bhqt.softmax(dim=-1) @ v_bhtv
        return cast(Tensor, x_bhqv.transpose(1, 2).flatten(2))


def offsets(grid: int, stride: int) -> Tensor:
    """For each query (every ``stride``-th pixel) and key, the index |dx| * grid + |dy|: [Q, T]."""
    pixels = torch.cartesian_prod(torch.arange(grid), torch.arange(grid))
    kept = torch.arange(0, grid, stride)
    queries = torch.cartesian_prod(kept, kept)
    distance = (queries[:, None] - pixels[None]).abs()
    return distance[..., 0] * grid + distance[..., 1]


class Attention(nn.Module):
    """Multi-head attention over one grid; keeps the shape [B, T, C]."""

    def __init__(self, architecture: Architecture, stage: Stage, grid: int) -> None:
        super().__init__()
        batch_norm = architecture.norm == "batch"
        width = stage.embed_dim
        self.core = AttentionCore(architecture, stage, grid)
        self.norm = nn.Identity() if batch_norm else nn.LayerNorm(width)
        values = stage.num_heads * self.core.value_dim
        keys = stage.num_heads * stage.key_dim
        self.qkv = LinearNorm(width, 2 * keys + values, batch_norm)
        self.activation = _ACTIVATIONS[architecture.attention_activation]()
        self.projection = LinearNorm(values, width, batch_norm, closes_residual=True)

    def forward(self, x_btc: Tensor) -> Tensor:
        core = self.core
        qkv = self.qkv(self.norm(x_btc)).unflatten(2, (core.num_heads, -1))
        q, k, v = qkv.split([core.key_dim, core.key_dim, core.value_dim], dim=3)
        return cast(Tensor, self.projection(self.activation(core(q, k, v))))


class ShrinkAttention(nn.Module):
    """Attention of every ``stride``-th token to all: [B, T, C] to [B, Q, C of the next stage]."""

    def __init__(
        self, architecture: Architecture, shrink: Shrink, grid: int, inputs: int, outputs: int
    ) -> None:
        super().__init__()
        batch_norm = architecture.norm == "batch"
        self.grid, self.stride = grid, shrink.stride
        self.core = AttentionCore(architecture, shrink, grid)
        self.norm = nn.Identity() if batch_norm else nn.LayerNorm(inputs)
        values = shrink.num_heads * self.core.value_dim
        keys = shrink.num_heads * shrink.key_dim
        self.key_value = LinearNorm(inputs, keys + values, batch_norm)
        self.query = LinearNorm(inputs, keys, batch_norm)
        self.activation = _ACTIVATIONS[architecture.attention_activation]()
        self.projection = LinearNorm(values, outputs, batch_norm)

    def forward(self, x_btc: Tensor) -> Tensor:
        core = self.core
        x_btc = self.norm(x_btc)
        key_value = self.key_value(x_btc).unflatten(2, (core.num_heads, -1))
        k, v = key_value.split([core.key_dim, core.value_dim], dim=3)
        x_brrc = x_btc.unflatten(1, (self.grid, self.grid))
        thinned_bqc = x_brrc[:, :: self.stride, :: self.stride].flatten(1, 2)
        q = self.query(thinned_bqc).unflatten(2, (core.num_heads, -1))
        return cast(Tensor, self.projection(self.activation(core(q, k, v))))


class Mlp(nn.Module):
    """Two linear layers over tokens with the activation between them."""

    def __init__(self, architecture: Architecture, width: int, ratio: float) -> None:
        super().__init__()
        batch_norm = architecture.norm == "batch"
        hidden = int(width * ratio)
        self.norm = nn.Identity() if batch_norm else nn.LayerNorm(width)
        self.expand = LinearNorm(width, hidden, batch_norm)
        self.activation = _ACTIVATIONS[architecture.activation]()
        self.contract = LinearNorm(hidden, width, batch_norm, closes_residual=True)

    def forward(self, x_btc: Tensor) -> Tensor:
        return cast(Tensor, self.contract(self.activation(self.expand(self.norm(x_btc)))))


class DropPath(nn.Module):
    """Drop a residual branch for whole images while training, scaling the others up.

    ``timm.layers.DropPath`` does the same; timm takes seconds to import, which every probe would
    pay for these lines.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_btc: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x_btc
        keep = 1.0 - self.rate
        return x_btc * x_btc.new_empty(x_btc.shape[0], 1, 1).bernoulli_(keep).div_(keep)
