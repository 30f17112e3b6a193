"""Weights from timm, from the released checkpoints and from our own files."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from levit_search.architecture import Levit, parse, published
from levit_search.errors import InputError
from levit_search.model import LevitModel, load_weights, to_timm
from tests.random_networks import randomised

SMALL = {
    "image_size": 48,
    "num_classes": 5,
    "stem": {"kind": "conv", "layers": 3},
    "stages": [
        {"depth": 2, "embed_dim": 16, "num_heads": 3, "key_dim": 8},
        {"depth": 1, "embed_dim": 24, "num_heads": 2, "key_dim": 8},
        {"depth": 3, "embed_dim": 32, "num_heads": 5, "key_dim": 8},
    ],
}


def small(**changes: object) -> Levit:
    return parse({**SMALL, **changes})


@torch.no_grad()
def assert_same_logits(model: nn.Module, reference: nn.Module, size: int) -> None:
    """In double precision, in which another order of the same sums makes no difference."""
    batch = torch.randn(2, 3, size, size, dtype=torch.double)
    expected = reference.double().eval()(batch)
    assert (expected[0] - expected[1]).std() > 0.01, "the images must matter to mean much"
    torch.testing.assert_close(model.double().eval()(batch), expected, atol=1e-5, rtol=0)


def timm_model(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)


@pytest.mark.parametrize(
    ("timm_name", "name"),
    [
        ("levit_128s", "LeViT-128S"),
        ("levit_conv_128s", "LeViT-128S"),
    ],
)
def test_timm_weights_give_timm_logits(timm_name, name):
    reference = randomised(timm_model(timm_name))
    model = LevitModel(published(name))
    assert load_weights(model, reference.state_dict()) == "timm"
    assert_same_logits(model, reference, size=224)


@pytest.mark.parametrize("name", ["LeViT-128S", "LeViT-192"])
def test_weights_named_for_timm_load_strictly_into_timm(name):
    model = randomised(LevitModel(published(name)))
    theirs = timm_model(name.lower().replace("-", "_"))
    theirs.load_state_dict(to_timm(model), strict=True)
    assert_same_logits(model, theirs, size=224)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "layer"},
        {"position": "embedding"},
        {"stem": {"kind": "patch", "patch_size": 8}},
    ],
    ids=["layer_norm", "position_embedding", "patch"],
)
def test_a_network_that_timm_cannot_express_has_no_timm_weights(changes):
    model = LevitModel(small(**changes))
    with pytest.raises(InputError, match="timm"):
        to_timm(model)
    with pytest.raises(InputError, match="timm"):
        load_weights(model, {"stem.conv1.linear.weight": torch.zeros(1)})


# What follows is the structure of the released model, by its public description: every layer with
# a batch norm is the pair (c, bn), classifiers are the pair (bn, l), a residual branch is `m`, and
# attention, MLP and shrinking blocks stand in one list.


class Normed(nn.Module):
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.c = layer
        is_map = isinstance(layer, nn.Conv2d)
        self.bn = nn.BatchNorm2d(width) if is_map else nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        # BatchNorm1d takes channels second: [B, C, T].
        return self.bn(x) if x.ndim == 4 else self.bn(x.transpose(1, 2)).transpose(1, 2)


def dense(inputs: int, outputs: int) -> Normed:
    return Normed(nn.Linear(inputs, outputs, bias=False), outputs)


class Residual(nn.Module):
    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        return x + self.m(x)


class Thin(nn.Module):
    """Every second row and column of a square map of tokens."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.kept = [x * grid + y for x in range(0, grid, 2) for y in range(0, grid, 2)]

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.kept]


class ReleasedAttention(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, heads: int, key_dim: int, grid: int, shrinks: bool
    ) -> None:
        super().__init__()
        self.heads, self.key_dim, self.shrinks = heads, key_dim, shrinks
        values = (4 if shrinks else 2) * key_dim
        if shrinks:
            self.kv = dense(inputs, heads * (key_dim + values))
            self.q = nn.Sequential(Thin(grid), dense(inputs, heads * key_dim))
        else:
            self.qkv = dense(inputs, heads * (2 * key_dim + values))
        self.proj = nn.Sequential(nn.Hardswish(), dense(heads * values, outputs))
        numbers: dict[tuple[int, int], int] = {}
        queries = product(range(0, grid, 2 if shrinks else 1), repeat=2)
        table = [
            [
                numbers.setdefault((abs(x - x2), abs(y - y2)), len(numbers))
                for x2, y2 in product(range(grid), repeat=2)
            ]
            for x, y in queries
        ]
        self.attention_biases = nn.Parameter(torch.zeros(heads, len(numbers)))
        self.register_buffer("attention_bias_idxs", torch.tensor(table))

    def forward(self, x: Tensor) -> Tensor:
        def by_head(y: Tensor) -> Tensor:
            return y.reshape(*y.shape[:2], self.heads, -1)

        if self.shrinks:
            query, rest = by_head(self.q(x)), by_head(self.kv(x))
        else:
            query, rest = by_head(self.qkv(x)).tensor_split([self.key_dim], dim=-1)
        key, value = rest.tensor_split([self.key_dim], dim=-1)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / self.key_dim**0.5
        shares = (scores + self.attention_biases[:, self.attention_bias_idxs]).softmax(-1)
        return self.proj(torch.einsum("bhqk,bkhd->bqhd", shares, value).flatten(2))


class Classifier(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(width)
        self.l = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.bn(x))


class ReleasedLevit(nn.Module):
    def __init__(self, architecture: Levit) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for outputs in architecture.stem.channels:
            layers += [nn.Hardswish()] if layers else []
            conv = nn.Conv2d(channels, outputs, 3, 2, 1, bias=False)
            layers.append(Normed(conv, outputs))
            channels = outputs
        self.patch_embed = nn.Sequential(*layers)

        def mlp(width: int) -> Residual:
            hidden = 2 * width
            return Residual(
                nn.Sequential(dense(width, hidden), nn.Hardswish(), dense(hidden, width))
            )

        grid = architecture.image_size // 2 ** len(architecture.stem.channels)
        blocks: list[nn.Module] = []
        width = architecture.stages[0].embed_dim
        for number, stage in enumerate(architecture.stages):
            if number:
                heads, before = width // stage.key_dim, width
                width = stage.embed_dim
                blocks += [
                    ReleasedAttention(before, width, heads, stage.key_dim, grid, shrinks=True),
                    mlp(width),
                ]
                grid = (grid + 1) // 2
            for _ in range(stage.depth):
                attention = ReleasedAttention(
                    width, width, stage.num_heads, stage.key_dim, grid, shrinks=False
                )
                blocks += [Residual(attention), mlp(width)]
        self.blocks = nn.ModuleList(blocks)
        self.head = Classifier(width, architecture.num_classes)
        self.head_dist = Classifier(width, architecture.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        x = x.mean(1)
        return (self.head(x) + self.head_dist(x)) / 2


def test_released_checkpoints_give_the_released_logits(tmp_path):
    architecture = small()
    reference = randomised(ReleasedLevit(architecture))
    path = tmp_path / "released.pth"
    torch.save({"model": reference.state_dict(), "epoch": 999}, path)
    model = LevitModel(architecture)
    assert load_weights(model, path) == "released"
    assert_same_logits(model, reference, size=48)


def save_torch(state: dict[str, Tensor], path: Path) -> None:
    torch.save(state, path)


def save_nested(state: dict[str, Tensor], path: Path) -> None:
    torch.save({"model": state}, path)


@pytest.mark.parametrize("changes", [{}, {"norm": "layer", "position": "embedding"}])
@pytest.mark.parametrize(
    ("file_name", "save"),
    [("w.pt", save_torch), ("w.pth", save_nested), ("w.safetensors", save_file)],
)
def test_own_weights_come_back_from_files(
    file_name: str, save: Callable[[Any, Path], None], changes: dict[str, str], tmp_path
):
    source, model = (randomised(LevitModel(small(**changes))) for _ in range(2))
    save(source.state_dict(), tmp_path / file_name)
    assert load_weights(model, tmp_path / file_name) == "ours"
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in source.state_dict().items())


def without_head_bias(state: dict[str, Tensor]) -> None:
    del state["head.linear.bias"]


def with_another_tensor(state: dict[str, Tensor]) -> None:
    state["head.extra"] = torch.zeros(1)


def with_seven_classes(state: dict[str, Tensor]) -> None:
    state["head.linear.weight"] = torch.zeros(7, 32)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (without_head_bias, ["head.linear.bias is missing", "1 missing, 0 unexpected"]),
        (with_another_tensor, ["head.extra is not of", "0 missing, 1 unexpected"]),
        (with_seven_classes, ["head.linear.weight", "[7, 32]", "[5, 32]"]),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(damage, told):
    model = LevitModel(small())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = dict(LevitModel(small()).state_dict())
    damage(state)
    with pytest.raises(InputError) as raised:
        load_weights(model, state)
    assert all(part in str(raised.value) for part in told)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    path, mark = tmp_path / "evil.pth", tmp_path / "was-run"
    torch.save({"model": Bomb(mark)}, path)
    with pytest.raises(InputError, match=r"evil\.pth"):
        load_weights(LevitModel(small()), path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the bomb is none, and the test shows nothing"


@pytest.mark.parametrize("content", [[1, 2], {"model": 3}, {3: torch.zeros(1)}, {"head": 3.0}])
def test_a_torch_file_without_a_state_dict_is_named(content, tmp_path):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match=r"other\.pt"):
        load_weights(LevitModel(small()), path)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"no checkpoint at all"])
def test_a_file_that_is_no_checkpoint_is_named(name, content, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        load_weights(LevitModel(small()), tmp_path / name)
