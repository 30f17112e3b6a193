"""Templates of a stand-alone module: stems, heads, the whole network and how it is loaded."""

NORM_LINEAR = '''
class NormLinear(nn.Module):
    """A classifier: a norm over the averaged tokens [B, C], then a linear layer to logits."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(embed_dim)  #? batch
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)  #? layer
        self.linear = nn.Linear(embed_dim, NUM_CLASSES)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_bc: Tensor) -> Tensor:
        return self.linear(self.norm(x_bc))
'''

STEM = '''
class Stem(nn.Module):
    """$title"""

    def __init__(self) -> None:
        super().__init__()
$modules

    def forward(self, images: Tensor) -> Tensor:
$steps
'''

CLASSIFIER = '''
def classifier(channels: int) -> nn.Linear:
    """A linear layer from features [B, C] to logits."""
    layer = nn.Linear(channels, NUM_CLASSES)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
'''

TRUNK = '''
class Trunk(nn.Module):
    """Layers of a DeiT (Touvron et al. 2021) with the tokens that answer.

    Takes $read; gives the normed $answering.
    """

    def __init__(self) -> None:
        super().__init__()
        projection = nn.Conv2d($channels, $width, kernel_size=$kernel)
        self.projection = nn.Sequential(OrderedDict(conv=projection))
        self.class_token = nn.Parameter(torch.empty(1, 1, $width))
        self.distillation_token = nn.Parameter(torch.empty(1, 1, $width))  #? distillation
        self.position_embedding = nn.Parameter(torch.empty(1, $tokens, $width))
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.distillation_token, std=0.02)  #? distillation
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        self.blocks = nn.Sequential(*(Block(TRUNK) for _ in range(TRUNK.depth)))
        self.blocks.apply(init_weights)
        self.norm = nn.LayerNorm($width, eps=1e-6)

    def forward(self, x_bchw: Tensor) -> Tensor:
$steps
        extra = self.class_token.expand(len(x_btc), -1, -1)  #? not distillation
        extra = torch.cat([self.class_token, self.distillation_token], dim=1)  #? distillation
        extra = extra.expand(len(x_btc), -1, -1)  #? distillation
        x_btc = torch.cat([extra, x_btc], dim=1)  # [B, $tokens, $width]
        x_btc = self.blocks(x_btc + self.position_embedding)
        return self.norm(x_btc[:, :1])  #? not distillation
        return self.norm(x_btc[:, :2])  #? distillation
'''

NETWORK = '''
class Network(nn.Module):
    """The whole network, freshly initialised."""  #? not distillation
    """The whole network, freshly initialised.  #? distillation
#? distillation
    While training it gives the logits of the class head and the distillation head,  #? distillation
    which learns from a teacher; otherwise their mean.  #? distillation
    """  #? distillation

    def __init__(self) -> None:
        super().__init__()
$modules

    def forward(self, images: Tensor) -> $returned:
$steps
'''

LOADING = '''
def load(path: str | Path = WEIGHTS) -> Network:
    """The trained network, in eval mode.

    Args:
        path: of a safetensors file; left out, ``model.safetensors`` beside this file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no safetensors file, or not a whole one.
        RuntimeError: a tensor is missing, unexpected or of another shape.
    """
    network = Network()
    network.load_state_dict(read_safetensors(Path(path)))
    return network.eval()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name: the file is a header's length, the header as JSON, then their bytes."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or len(content) < start:
        raise ValueError(f"{path}: not a safetensors file, or not a whole one")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        if end > len(content):
            raise ValueError(f"{path}: ends before {name} does")
        values = torch.frombuffer(bytearray(content[begin:end]), dtype=DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def main() -> None:
    """Print the network's size and try it on random images, trained where its weights are."""
    state, network = ("trained", load()) if WEIGHTS.is_file() else ("fresh", Network().eval())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    images = torch.randn(2, IN_CHANNELS, IMAGE_SIZE, IMAGE_SIZE)  #? not rectangle
    images = torch.randn(2, IN_CHANNELS, *IMAGE_SIZE)  #? rectangle
    with torch.inference_mode():
        logits = network(images)
    print(f"{state}, {parameters:,} parameters: {list(images.shape)} to {list(logits.shape)}")
    if parameters != PARAMETERS or not logits.isfinite().all():
        raise SystemExit(f"expected {PARAMETERS:,} parameters and finite logits")


if __name__ == "__main__":
    main()
'''
