"""timm's networks: by name, counted by fvcore under our convention, probed beside ours."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from levit_search import architecture, baseline
from levit_search.baseline import Baseline, BaselineCost, count_module
from levit_search.cli import main
from levit_search.cost import Cost, LayerCost, cost
from levit_search.errors import InputError, UnknownNameError


def test_a_name_alone_brings_its_own_size() -> None:
    loaded = baseline.load("timm/inception_v3")
    assert loaded == Baseline("inception_v3", 299, 3, 1000)
    assert loaded.id == "timm-inception_v3-299"


def test_a_size_after_the_name_is_taken() -> None:
    assert baseline.load("timm/resnet18.a1_in1k@64").id == "timm-resnet18.a1_in1k-64"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("timm/resnett18", "unknown timm network 'resnett18'; did you mean 'resnet18'?"),
        ("timm/", "unknown timm network ''; none of the"),
        ("timm/resnet50.a1_in2k", "resnet50 'a1_in2k'; did you mean 'a1_in1k'?"),
        (
            "timm/resnet18@",
            "expected a size of 1 to 4096 pixels after @, such as timm/resnet18@224",
        ),
        ("timm/resnet18@0", "expected a size of 1 to 4096 pixels"),
        ("timm/resnet18@64x64x3", "expected a size of 1 to 4096 pixels"),
        ("timm/levit_128s@100", "takes no images of 100 px"),
    ],
)
def test_a_name_or_size_that_cannot_be_is_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(InputError) as raised:
        baseline.load(text)
    assert told in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_of_very_many_names_only_the_nearest_are_shown() -> None:
    known = [f"net_{number}" for number in range(1000)]
    message = str(UnknownNameError("network", "nett_77", known))
    assert "did you mean 'net_77'?" in message
    assert message.endswith("and 994 others")


def test_networks_of_both_kinds_are_loaded() -> None:
    assert isinstance(baseline.load_network("timm/resnet18"), Baseline)
    assert baseline.load_network("LeViT-128S") == architecture.published("LeViT-128S")


def sums(found: BaselineCost) -> tuple[int, ...]:
    names = [layer.name for layer in found.layers]
    assert len(set(names)) == len(names)
    return tuple(sum(layer[column] for layer in found.layers) for column in (1, 2, 3))


def test_timms_levit_costs_what_ours_does() -> None:
    found = baseline.count(baseline.load("timm/levit_128s"))
    assert found.total == cost(architecture.published("LeViT-128S"))
    assert found.total[:2] == (7_777_058, 305_108_946)
    assert sums(found) == found.total


@pytest.mark.parametrize(
    ("name", "extra_tokens", "heads"),
    [("deit_small_patch16_224", 1, 1), ("deit_small_distilled_patch16_224", 2, 2)],
)
def test_deit_costs_its_closed_form(name: str, extra_tokens: int, heads: int) -> None:
    found = baseline.count(baseline.load(f"timm/{name}"))
    tokens, width = 196 + extra_tokens, 384
    linear = tokens * (3 + 1 + 4 + 4) * width**2
    products = tokens**2 * (2 * width + 6)  # Q K^T and A V, and the softmax of six heads
    patches, logits = 196 * 16**2 * 3 * width, heads * width * 1000
    assert found.total.flops == 12 * (linear + products) + patches + logits
    # 12 blocks of two norms and a last one, at fvcore's five operations an element.
    assert found.left_out == {"layer_norm": 25 * tokens * width * 5}
    assert found.unsupported["aten::gelu"] == 12
    assert sums(found) == found.total
    layers = {layer.name: layer for layer in found.layers}
    assert layers["blocks.3.attn.softmax"] == LayerCost(
        "blocks.3.attn.softmax", 0, 6 * tokens**2, 0
    )
    assert layers["pos_embed"].params == tokens * width


def test_a_resnet_is_counted_without_norms_and_pooling() -> None:
    found = baseline.count(baseline.load("timm/resnet50"))
    assert found.total[:2] == (25_557_032, 4_089_184_256)
    assert found.left_out.keys() == {"batch_norm"}
    assert found.unsupported.keys() == {
        "aten::add_",
        "aten::max_pool2d",
        "aten::adaptive_avg_pool2d",
    }
    assert sums(found) == found.total


class Odd(nn.Module):
    """Operators that fvcore counts wrongly or not at all, in modules it cannot tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.conv = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.norm = nn.GroupNorm(2, 8)
        self.norm.act = nn.ReLU()  # as timm's norms have one; still one layer
        self.twice = nn.Linear(4, 4, bias=False)
        self.again = self.twice
        self.mix = nn.Parameter(torch.ones(4, 4))

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(images)) * self.scale
        x = self.mix @ self.again(self.twice(x))
        x = torch.einsum("bchw,bcgw->bchg", x, x)
        x = nn.functional.scaled_dot_product_attention(x, x, x)
        return x.erf().cumsum(1)


def test_what_is_not_counted_is_named_and_the_rest_is_exact() -> None:
    found = count_module(Odd(), torch.zeros(1, 3, 4, 4))
    products = 8 * 4 * 4 * 4  # each of 8 maps, 4 x 4 by 4 x 4
    assert {layer.name: layer[1:] for layer in found.layers} == {
        "scale": (1, 0, 0),
        "mix": (16, 0, 0),
        "conv": (216, 216 * 16, 8 * 16),
        "norm": (16, 0, 0),
        "twice": (16, 2 * products, 2 * 128),
        "matmul": (0, products, 128),
        "einsum": (0, products, 128),
        "scaled_dot_product_attention": (0, 2 * products + 128, 2 * 128),
    }
    assert found.unsupported == {"aten::mul": 1, "aten::erf": 1, "aten::cumsum": 1}
    assert found.left_out == {"group_norm": 128 * 5}
    assert sums(found) == found.total


def test_the_graph_computes_the_networks_features(tmp_path: Path) -> None:
    model = Baseline("test_vit", 160, 3, 1000)
    path = tmp_path / "net.onnx"
    baseline.export_onnx(model, path, batch_size=2)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert {"MatMul", "Softmax"} <= operators
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        ("images", [2, 3, 160, 160])
    ]
    (logits,) = session.run(["logits"], {"images": np.zeros((2, 3, 160, 160), np.float32)})
    assert logits.shape == (2, 1000)


def test_the_graph_has_no_batch_norm_left(tmp_path: Path) -> None:
    baseline.export_onnx(Baseline("resnet18", 32, 3, 1000), tmp_path / "net.onnx", batch_size=1)
    operators = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert operators.count("Conv") == 20
    assert "BatchNormalization" not in operators


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command in this process, which has imported torch and timm already."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["levit-search", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_count_takes_both_kinds_and_says_what_it_left_out(cli: Cli) -> None:
    code, out, _ = cli("count", "timm/resnet18@64", "LeViT-128S", "--by-layer", "--json")
    assert code == 0
    theirs, ours = json.loads(out)
    keys: list[Any] = ["name", "id", "params", "flops", "activations"]
    assert list(ours) == [*keys, "layers"]
    assert list(theirs) == [*keys, "unsupported", "norm_flops_left_out", "layers"]
    assert theirs["id"] == "timm-resnet18-64"
    assert theirs["norm_flops_left_out"] == 405_504
    assert theirs["unsupported"]["aten::add_"] == 8
    for row in (theirs, ours):
        totals = {name: sum(layer[name] for layer in row["layers"]) for name in Cost._fields}
        assert totals == {name: row[name] for name in Cost._fields}


def test_count_by_layer_prints_a_tree_with_shares(cli: Cli) -> None:
    _, out, _ = cli("count", "timm/resnet18@64", "--by-layer")
    lines = out.splitlines()
    assert lines[0] == "timm/resnet18@64 (timm-resnet18-64). One multiply-add is one FLOP."
    assert lines[1].split() == ["layer", "params", "%", "flops", "%", "activations", "%"]
    assert lines[2].split()[:3] == ["total", "11,689,512", "100.0"]
    assert any(line.startswith("│  ├─ layer1.0 ") for line in lines)
    told = " ".join(out.split())
    assert "timm/resnet18@64: 405,504 FLOPs of norms left out" in told
    assert "add_ 8, max_pool2d 1, adaptive_avg_pool2d 1" in told
    assert max(map(len, lines)) <= 100


@pytest.mark.slow
def test_probe_times_a_baseline(cli: Cli) -> None:
    code, out, _ = cli("probe", "timm/resnet18@32", "--seconds", "0.1", "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert row["id"] == "timm-resnet18-32"
    assert row["latency_ms"] > 0


def test_other_commands_say_that_they_need_a_network_of_ours(cli: Cli) -> None:
    code, out, err = cli("train", "timm/resnet18")
    assert (code, out) == (2, "")
    assert "our own networks" in err
