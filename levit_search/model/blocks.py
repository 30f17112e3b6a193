"""What the networks of both families are made of.

Shapes: B images, C channels (``embed_dim``), R rows and S columns of tokens (``grid``), T = R * S
tokens (Q of them queries where a block shrinks), H ``num_heads``, K ``key_dim``, V value channels a
head.

The same weights run in two layouts. In ``tokens`` an activation is [B, T, C] and weights are linear
layers; in ``maps`` it is [B, C, R, S] and the same weights are 1x1 convolutions (tokens that form
no grid are a map [B, C, T, 1]). Which is faster depends on the device and the runtime.
"""

import math
from typing import Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levit_search.architecture import Shrink, Stage
from levit_search.image_size import Sides

Layout = Literal["tokens", "maps"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class Style(Protocol):
    """What a block needs to know of the network it stands in."""

    @property
    def norm(self) -> Literal["batch", "layer"]: ...
    @property
    def position(self) -> Literal["bias", "embedding"]: ...
    @property
    def activation(self) -> str: ...
    @property
    def attention_activation(self) -> str: ...
    @property
    def drop_path(self) -> float: ...


class LaidOut:
    """A module whose activations lie in one of the two layouts; weights do not depend on it."""

    layout: Layout = "tokens"


def set_layout(model: nn.Module, layout: Layout) -> None:
    """Let all modules inside ``model`` read and write ``layout`` from now on."""
    for module in model.modules():
        if isinstance(module, LaidOut):
            module.layout = layout


def init_without_batch_norm(modules: nn.Module) -> None:
    """Start linear layers as ViTs do (std 0.02) and convolutions by He et al. 2015, biases at zero.

    Batch norm makes up for any other start; layer norm before a block does not.
    """
    for module in modules.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


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


class LinearNorm(LaidOut, nn.Module):
    """A linear layer over channels and its batch norm, or with bias under pre-activation norm.

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

    def forward(self, x: Tensor) -> Tensor:
        linear = self.linear
        is_map = self.layout == "maps"
        x = F.conv2d(x, linear.weight[..., None, None], linear.bias) if is_map else linear(x)
        if isinstance(self.norm, nn.Identity):
            return x
        # Batch norm wants channels second: [B, C, T] of a map, [B * T, C] of tokens.
        flat = x.flatten(2) if is_map else x.flatten(0, 1)
        return cast(Tensor, self.norm(flat).view_as(x))


class ChannelNorm(LaidOut, nn.LayerNorm):
    """Layer norm over the channels of each token."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "tokens":
            return super().forward(x)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """One attention block and one MLP block, each with a residual connection."""

    def __init__(self, style: Style, stage: Stage, grid: Sides) -> None:
        super().__init__()
        self.attention = Attention(style, stage, grid)
        self.mlp = Mlp(style, stage.embed_dim, stage.mlp_ratio)
        self.drop_path = DropPath(style.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(x))
        return cast(Tensor, x + self.drop_path(self.mlp(x)))


class ShrinkBlock(nn.Module):
    """Attention from a thinned grid of queries, without residual, then a residual MLP."""

    def __init__(
        self, style: Style, shrink: Shrink, grid: Sides, inputs: int, after: Stage
    ) -> None:
        super().__init__()
        self.attention = ShrinkAttention(style, shrink, grid, inputs, after.embed_dim)
        self.mlp = Mlp(style, after.embed_dim, shrink.mlp_ratio)
        self.drop_path = DropPath(style.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return cast(Tensor, x + self.drop_path(self.mlp(x)))


class AttentionCore(LaidOut, nn.Module):
    """softmax(q k / sqrt(K) + bias) v with one learned bias a head and absolute offset.

    In a shrinking block the query at (row, column) sits at (stride row, stride column) of the
    keys' grid (Graham et al., equation 1 and section 4.2). Networks with a position embedding have
    no bias, and their tokens need not form a grid.
    """

    offsets_qt: Tensor
    attention_bias: nn.Parameter | None
    bias_hqt: Tensor | None

    def __init__(self, style: Style, block: Stage | Shrink, grid: Sides) -> None:
        super().__init__()
        self.num_heads, self.key_dim = block.num_heads, block.key_dim
        self.value_dim = int(block.attn_ratio * block.key_dim)
        self.scale = block.key_dim**-0.5
        self.grid = grid
        self.has_bias = style.position == "bias"
        # Only folding sets this: the gathered bias, once training is over.
        self.register_buffer("bias_hqt", None, persistent=False)
        self.attention_bias = None
        if self.has_bias:
            self.attention_bias = nn.Parameter(torch.zeros(block.num_heads, math.prod(grid)))
            stride = block.stride if isinstance(block, Shrink) else 1
            self.register_buffer("offsets_qt", offsets(grid, stride), persistent=False)

    def gathered_bias(self) -> Tensor:
        """The learned scalars laid out for every query and key: [H, Q, T]."""
        assert self.attention_bias is not None
        return self.attention_bias[:, self.offsets_qt]

    def heads(self, x: Tensor, *widths: int) -> tuple[Tensor, ...]:
        """Split a projection by head, and each head's channels into parts of ``widths``.

        Each part is [B, H, T, width], or [B, H, width, T] where ``x`` is a map.
        """
        if self.layout == "maps":
            x_bhct = x.flatten(2).unflatten(1, (self.num_heads, -1))
            return tuple(x_bhct.split(widths, dim=2))
        parts = x.unflatten(2, (self.num_heads, -1)).split(widths, dim=3)
        return tuple(part.transpose(1, 2) for part in parts)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The values that each query takes up, heads joined: [B, Q, H V], or [B, H V, Q]."""
        if self.layout == "maps":
            shares_bhqt = self._shares(q.transpose(2, 3), k)
            return (v @ shares_bhqt.transpose(2, 3)).flatten(1, 2)
        shares_bhqt = self._shares(q, k.transpose(2, 3))
        return (shares_bhqt @ v).transpose(1, 2).flatten(2)

    def _shares(self, q_bhqk: Tensor, k_bhkt: Tensor) -> Tensor:
        scores_bhqt = q_bhqk @ k_bhkt * self.scale
        if self.has_bias:
            bias = self.bias_hqt if self.bias_hqt is not None else self.gathered_bias()
            scores_bhqt = scores_bhqt + bias
        return cast(Tensor, scores_bhqt.softmax(dim=-1))


def offsets(grid: Sides, stride: int) -> Tensor:
    """The bias's index for each query and key: |rows apart| * columns + |columns apart|, [Q, T].

    Args:
        grid: rows and columns of the keys.
        stride: queries are in every ``stride``-th row and column.
    """
    rows, columns = grid
    tokens = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    queries = torch.cartesian_prod(torch.arange(0, rows, stride), torch.arange(0, columns, stride))
    distance = (queries[:, None] - tokens[None]).abs()
    return distance[..., 0] * columns + distance[..., 1]


class Attention(LaidOut, nn.Module):
    """Multi-head attention among all tokens; keeps the shape."""

    def __init__(self, style: Style, stage: Stage, grid: Sides) -> None:
        super().__init__()
        batch_norm, width = style.norm == "batch", stage.embed_dim
        self.core = AttentionCore(style, stage, grid)
        self.norm = nn.Identity() if batch_norm else ChannelNorm(width)
        values = stage.num_heads * self.core.value_dim
        keys = stage.num_heads * stage.key_dim
        self.qkv = LinearNorm(width, 2 * keys + values, batch_norm)
        self.activation = ACTIVATIONS[style.attention_activation]()
        self.projection = LinearNorm(values, width, batch_norm, closes_residual=True)

    def forward(self, x: Tensor) -> Tensor:
        core, qkv = self.core, self.qkv(self.norm(x))
        values = core(*core.heads(qkv, core.key_dim, core.key_dim, core.value_dim))
        if self.layout == "maps":
            values = values.unflatten(2, x.shape[2:])
        return cast(Tensor, self.projection(self.activation(values)))


class ShrinkAttention(LaidOut, nn.Module):
    """Attention of every ``stride``-th token to all; ends with the next stage's channels."""

    def __init__(
        self, style: Style, shrink: Shrink, grid: Sides, inputs: int, outputs: int
    ) -> None:
        super().__init__()
        batch_norm = style.norm == "batch"
        self.grid, self.stride = grid, shrink.stride
        self.core = AttentionCore(style, shrink, grid)
        self.norm = nn.Identity() if batch_norm else ChannelNorm(inputs)
        values = shrink.num_heads * self.core.value_dim
        keys = shrink.num_heads * shrink.key_dim
        self.key_value = LinearNorm(inputs, keys + values, batch_norm)
        self.query = LinearNorm(inputs, keys, batch_norm)
        self.activation = ACTIVATIONS[style.attention_activation]()
        self.projection = LinearNorm(values, outputs, batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        core = self.core
        x = self.norm(x)
        k, v = core.heads(self.key_value(x), core.key_dim, core.value_dim)
        thinned = self._thinned(x)
        (q,) = core.heads(self.query(thinned), core.key_dim)
        values = core(q, k, v)
        if self.layout == "maps":
            values = values.unflatten(2, thinned.shape[2:])
        return cast(Tensor, self.projection(self.activation(values)))

    def _thinned(self, x: Tensor) -> Tensor:
        if self.layout == "maps":
            return x[:, :, :: self.stride, :: self.stride]
        x_brsc = x.unflatten(1, self.grid)
        return cast(Tensor, x_brsc[:, :: self.stride, :: self.stride].flatten(1, 2))


class Mlp(nn.Module):
    """Two linear layers over channels with the activation between them."""

    def __init__(self, style: Style, width: int, ratio: float) -> None:
        super().__init__()
        batch_norm, hidden = style.norm == "batch", int(width * ratio)
        self.norm = nn.Identity() if batch_norm else ChannelNorm(width)
        self.expand = LinearNorm(width, hidden, batch_norm)
        self.activation = ACTIVATIONS[style.activation]()
        self.contract = LinearNorm(hidden, width, batch_norm, closes_residual=True)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.contract(self.activation(self.expand(self.norm(x)))))


class DropPath(nn.Module):
    """Drop a residual branch for whole images while training, scaling the others up.

    ``timm.layers.DropPath`` does the same; timm takes seconds to import, which every probe would
    pay for these lines.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        return x * x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)
