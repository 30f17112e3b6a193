"""Templates of a stand-alone module: what attention networks of either family are made of."""

# --- Under batch norm: a layer and its norm are one module.

CONV_NORM = '''
class ConvNorm(nn.Module):
    """A convolution and its batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.norm(self.conv(x_bchw))
'''

LINEAR_NORM = '''
class LinearNorm(nn.Module):
    """A linear layer over channels and its batch norm.

    ``closes_residual`` starts the norm's weight at zero, so that every residual block begins as
    the identity (Goyal et al. 2017).
    """

    def __init__(self, inputs: int, outputs: int, closes_residual: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs)
        if closes_residual:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x_btc: Tensor) -> Tensor:
        x_btc = self.linear(x_btc)
        return self.norm(x_btc.flatten(0, 1)).view_as(x_btc)
'''

# --- Under layer norm, which stands before a whole block: layers with bias, and their start.

NAMED_CONV = '''
def convolution(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    """A convolution with bias, under the name it has in the weights' file."""
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(inputs, outputs, kernel, stride, padding)))
'''

NAMED_LINEAR = '''
def linear(inputs: int, outputs: int) -> nn.Sequential:
    """A linear layer with bias, under the name it has in the weights' file."""
    return nn.Sequential(OrderedDict(linear=nn.Linear(inputs, outputs)))
'''

INIT_WEIGHTS = '''
def init_weights(module: nn.Module) -> None:
    """Start linear layers as ViTs do, convolutions by He et al. 2015, biases at zero."""  #? convs
    """Start linear layers as ViTs do: a deviation of 0.02, biases at zero."""  #? not convs
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):  #? convs
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  #? convs
        nn.init.zeros_(module.bias)  #? biased_convs
        if module.bias is not None:  #? resnet_convs
            nn.init.zeros_(module.bias)  #? resnet_convs
'''

# --- Attention, with a learned bias or, beside a position embedding, without.

GRID = "Grid = tuple[int, int]  # rows and columns of tokens"

STAGE_SHAPE = '''
class StageShape(NamedTuple):
    """Pairs of an attention block and an MLP block at one width and resolution."""

    depth: int  # pairs
    grid: Grid  #? bias
    embed_dim: int  # channels of a token
    num_heads: int
    key_dim: int  # channels of a head's queries and keys
    value_dim: int  # channels of a head's values
    mlp_dim: int  # hidden channels of the MLP
'''

SHRINK_SHAPE = '''
class ShrinkShape(NamedTuple):
    """Attention of every ``stride``-th token of either axis to all tokens, then an MLP."""

    stride: int
    grid: Grid  # before it
    in_dim: int  # channels of a token before it
    embed_dim: int  # and after it
    num_heads: int
    key_dim: int
    value_dim: int
    mlp_dim: int
'''

SPLIT_HEADS = '''
def split_heads(x_btc: Tensor, num_heads: int, *widths: int) -> tuple[Tensor, ...]:
    """Split channels by head, and each head's into parts of ``widths``: [B, H, T, width]."""
    x_bhtc = x_btc.unflatten(2, (num_heads, -1)).transpose(1, 2)
    return x_bhtc.split(widths, dim=3)
'''

BIASED_CORE = '''
class AttentionCore(nn.Module):
    """softmax(q k / sqrt(K) + bias) v with one learned bias a head and absolute offset.

    Graham et al., equation 1.  #? not shrinks
    The query at (row, column) sits at (stride row, stride column) of the keys'  #? shrinks
    grid (Graham et al., equation 1 and section 4.2).  #? shrinks
    """

    offsets_qt: Tensor

    def __init__(self, num_heads: int, key_dim: int, grid: Grid) -> None:  #? not shrinks
    def __init__(self, num_heads: int, key_dim: int, grid: Grid, stride: int) -> None:  #? shrinks
        super().__init__()
        self.scale = key_dim**-0.5
        self.attention_bias = nn.Parameter(torch.zeros(num_heads, grid[0] * grid[1]))
        self.register_buffer("offsets_qt", offsets(grid), persistent=False)  #? not shrinks
        self.register_buffer("offsets_qt", offsets(grid, stride), persistent=False)  #? shrinks

    def forward(self, q_bhqk: Tensor, k_bhtk: Tensor, v_bhtv: Tensor) -> Tensor:
        """The values that each query takes up, heads joined: [B, Q, H V]."""
        bias_hqt = self.attention_bias[:, self.offsets_qt]
        scores_bhqt = q_bhqk @ k_bhtk.transpose(2, 3) * self.scale + bias_hqt
        values_bhqv = scores_bhqt.softmax(dim=-1) @ v_bhtv
        return values_bhqv.transpose(1, 2).flatten(2)


def offsets(grid: Grid) -> Tensor:  #? not shrinks
    """For each query and key, |rows apart| * columns + |columns apart|."""  #? not shrinks
def offsets(grid: Grid, stride: int) -> Tensor:  #? shrinks
    """For each query, one every ``stride`` rows and columns, and key,  #? shrinks
    |rows apart| * columns + |columns apart|."""  #? shrinks
    rows, columns = grid
    tokens = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    kept = torch.arange(0, rows, stride), torch.arange(0, columns, stride)  #? shrinks
    distance = (torch.cartesian_prod(*kept)[:, None] - tokens[None]).abs()  #? shrinks
    distance = (tokens[:, None] - tokens[None]).abs()  #? not shrinks
    return distance[..., 0] * columns + distance[..., 1]
'''

PLAIN_CORE = '''
def attend(q_bhqk: Tensor, k_bhtk: Tensor, v_bhtv: Tensor) -> Tensor:
    """softmax(q k / sqrt(K)) v, the values that each query takes up, heads joined: [B, Q, H V]."""
    scores_bhqt = q_bhqk @ k_bhtk.transpose(2, 3) * q_bhqk.shape[3] ** -0.5
    values_bhqv = scores_bhqt.softmax(dim=-1) @ v_bhtv
    return values_bhqv.transpose(1, 2).flatten(2)
'''

ATTENTION = '''
class Attention(nn.Module):
    """Multi-head attention among all tokens: [B, T, C] to [B, T, C]."""

    def __init__(self, shape: StageShape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.widths = (shape.key_dim, shape.key_dim, shape.value_dim)
        values = shape.num_heads * shape.value_dim
        self.norm = nn.LayerNorm(shape.embed_dim, eps=1e-6)  #? layer
        self.qkv = LinearNorm(shape.embed_dim, shape.num_heads * sum(self.widths))  #? batch
        self.qkv = linear(shape.embed_dim, shape.num_heads * sum(self.widths))  #? layer
        self.core = AttentionCore(shape.num_heads, shape.key_dim, shape.grid$stride)  #? bias
        self.projection = LinearNorm(values, shape.embed_dim, closes_residual=True)  #? batch
        self.projection = linear(values, shape.embed_dim)  #? layer

    def forward(self, x_btc: Tensor) -> Tensor:
        q, k, v = split_heads(self.qkv(x_btc), self.num_heads, *self.widths)  #? batch
        qkv_btc = self.qkv(self.norm(x_btc))  #? layer
        q, k, v = split_heads(qkv_btc, self.num_heads, *self.widths)  #? layer
        return self.projection($taken)
'''

SHRINK_ATTENTION = '''
class ShrinkAttention(nn.Module):
    """Attention of every ``stride``-th token of either axis to all: [B, T, C] to [B, Q, C']."""

    def __init__(self, shape: ShrinkShape) -> None:
        super().__init__()
        self.grid, self.stride, self.num_heads = shape.grid, shape.stride, shape.num_heads
        self.key_dim, self.value_dim = shape.key_dim, shape.value_dim
        keys, values = shape.num_heads * shape.key_dim, shape.num_heads * shape.value_dim
        self.norm = nn.LayerNorm(shape.in_dim, eps=1e-6)  #? layer
        self.key_value = LinearNorm(shape.in_dim, keys + values)  #? batch
        self.query = LinearNorm(shape.in_dim, keys)  #? batch
        self.key_value = linear(shape.in_dim, keys + values)  #? layer
        self.query = linear(shape.in_dim, keys)  #? layer
        self.core = AttentionCore(shape.num_heads, shape.key_dim, shape.grid, shape.stride)  #? bias
        self.projection = LinearNorm(values, shape.embed_dim)  #? batch
        self.projection = linear(values, shape.embed_dim)  #? layer

    def forward(self, x_btc: Tensor) -> Tensor:
        x_btc = self.norm(x_btc)  #? layer
        k, v = split_heads(self.key_value(x_btc), self.num_heads, self.key_dim, self.value_dim)
        x_brsc = x_btc.unflatten(1, self.grid)
        x_bqc = x_brsc[:, :: self.stride, :: self.stride].flatten(1, 2)
        (q,) = split_heads(self.query(x_bqc), self.num_heads, self.key_dim)
        return self.projection($taken)
'''

MLP = '''
class Mlp(nn.Module):
    """Two linear layers over channels with the activation between them."""

    def __init__(self, embed_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)  #? layer
        self.expand = linear(embed_dim, mlp_dim)  #? layer
        self.contract = linear(mlp_dim, embed_dim)  #? layer
        self.expand = LinearNorm(embed_dim, mlp_dim)  #? batch
        self.contract = LinearNorm(mlp_dim, embed_dim, closes_residual=True)  #? batch

    def forward(self, x_btc: Tensor) -> Tensor:
        return self.contract(F.$activation(self.expand(x_btc)))  #? batch
        return self.contract(F.$activation(self.expand(self.norm(x_btc))))  #? layer
'''

DROP_PATH = '''
class DropPath(nn.Module):
    """Drop a residual branch for whole images while training, scaling the others up."""

    def forward(self, x_btc: Tensor) -> Tensor:
        if not self.training:
            return x_btc
        keep = 1.0 - DROP_PATH
        return x_btc * x_btc.new_empty(len(x_btc), 1, 1).bernoulli_(keep).div_(keep)
'''

BLOCK = '''
class Block(nn.Module):
    """One attention block and one MLP block, each with a residual connection."""

    def __init__(self, shape: StageShape) -> None:
        super().__init__()
        self.attention = Attention(shape)
        self.mlp = Mlp(shape.embed_dim, shape.mlp_dim)
        self.drop_path = DropPath()  #? drop_path

    def forward(self, x_btc: Tensor) -> Tensor:
        x_btc = x_btc + self.attention(x_btc)  #? not drop_path
        return x_btc + self.mlp(x_btc)  #? not drop_path
        x_btc = x_btc + self.drop_path(self.attention(x_btc))  #? drop_path
        return x_btc + self.drop_path(self.mlp(x_btc))  #? drop_path
'''

STAGE = '''
class Stage(nn.Module):
    """Blocks at one width and resolution: [B, T, C] to [B, T, C]."""

    def __init__(self, shape: StageShape) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.depth)))

    def forward(self, x_btc: Tensor) -> Tensor:
        return self.blocks(x_btc)
'''

SHRINK_BLOCK = '''
class ShrinkBlock(nn.Module):
    """A shrinking attention block, which has no residual connection, then a residual MLP."""

    def __init__(self, shape: ShrinkShape) -> None:
        super().__init__()
        self.attention = ShrinkAttention(shape)
        self.mlp = Mlp(shape.embed_dim, shape.mlp_dim)
        self.drop_path = DropPath()  #? drop_path

    def forward(self, x_btc: Tensor) -> Tensor:
        x_bqc = self.attention(x_btc)
        return x_bqc + self.mlp(x_bqc)  #? not drop_path
        return x_bqc + self.drop_path(self.mlp(x_bqc))  #? drop_path
'''
