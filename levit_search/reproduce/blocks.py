"""Table 6: the components of one layer of DeiT-Tiny and of LeViT-256's first stage, timed.

Each component of one network is timed in turn with its counterpart of the other. Shapes: B images,
T tokens, C channels, H heads, K key and V value channels a head.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from levit_search.architecture import Architecture, Levit, parse, published
from levit_search.latency import LatencyConfig, Probe
from levit_search.model import build, fold, write_graph
from levit_search.model.blocks import Attention, AttentionCore, Block
from levit_search.reproduce.paper import Table
from levit_search.reproduce.results import Run

Component = tuple[nn.Module, dict[str, Tensor]]


def fill_blocks(
    run: Run,
    table: Table,
    config: LatencyConfig,
    step: Callable[[str], None],
    save: Callable[[], None],
) -> None:
    """Time the components that ``run`` lacks, in microseconds a run.

    ``levit_to_deit`` is the mean of the rounds with its interval. The layer norm has no
    counterpart in LeViT; it is timed against the whole layer of DeiT-Tiny, which ``total`` is.

    Args:
        run: filled row by row.
        table: Table 6.
        config: how to measure; its reference is not used.
        step: told the row that comes next.
        save: called after each row.
    """
    assert isinstance(config.batch_size, int)
    deit, levit = (
        components(_deit_layer(), 197, config.batch_size),
        components(_levit_layer(), 196, config.batch_size),
    )
    with tempfile.TemporaryDirectory() as folder, Probe(config) as probe:

        def graph(name: str, component: Component) -> Path:
            path = Path(folder) / f"{name}.onnx"
            if not path.exists():
                write_graph(*component, "out", path)
            return path

        for index, row in enumerate(table.rows):
            step(row.name)
            if row.name in run.rows:
                continue
            reference = graph(f"deit-{index}", deit[row.name])
            if row.name in levit:
                (found,) = probe.time_graphs([graph(f"levit-{index}", levit[row.name])], reference)
                low, high = found.ratio_ci95
                run.rows[row.name] = {
                    "deit_us": 1000 * found.reference_ms,
                    "levit_us": 1000 * found.ratio_to_reference * found.reference_ms,
                    "levit_to_deit": found.ratio_to_reference,
                    "levit_to_deit_ci95": [low, high],
                    "pairs": found.pairs,
                }
            else:
                whole = graph("deit-whole", deit["total"])
                (found,) = probe.time_graphs([reference], whole)
                run.rows[row.name] = {"deit_us": 1000 * found.latency_ms, "pairs": found.pairs}
            save()


def components(block: Block, tokens: int, batch_size: int) -> dict[str, Component]:
    """The parts of a layer under the table's names, each a module with inputs of its shapes.

    Q, K and V come from one linear layer in both networks, which is split for the table. The
    attention's activation goes with the projection. Residual additions are in ``total`` only.
    """
    attention, core = block.attention, block.attention.core
    heads, key_dim, value_dim = core.num_heads, core.key_dim, core.value_dim
    width = attention.projection.linear.out_features
    x_btc = torch.randn(batch_size, tokens, width)
    q_bhtk, k_bhtk = torch.randn(2, batch_size, heads, tokens, key_dim)
    v_bhtv = torch.randn(batch_size, heads, tokens, value_dim)
    scores = torch.randn(batch_size, heads, tokens, tokens)
    joined_btc = torch.randn(batch_size, tokens, heads * value_dim)
    keys, values = _split_qkv(attention)
    parts: dict[str, Component] = {
        "Q, K": (keys, {"x": x_btc}),
        "V": (values, {"x": x_btc}),
        "Q K^T": (_Scores(core.scale), {"q": q_bhtk, "k": k_bhtk}),
        "bias and softmax": (_Softmax(core), {"scores": scores}),
        "A V": (_Values(), {"shares": scores.softmax(dim=-1), "v": v_bhtv}),
        "projection": (
            nn.Sequential(attention.activation, attention.projection),
            {"x": joined_btc},
        ),
        "MLP": (
            nn.Sequential(block.mlp.expand, block.mlp.activation, block.mlp.contract),
            {"x": x_btc},
        ),
        "total": (block, {"x": x_btc}),
    }
    if not isinstance(attention.norm, nn.Identity):
        parts["layer norm"] = (nn.Sequential(attention.norm, block.mlp.norm), {"x": x_btc})
    return parts


def _split_qkv(attention: Attention) -> tuple[nn.Linear, nn.Linear]:
    """The linear layer of queries and keys, and that of values; ours lie head by head."""
    core, linear = attention.core, attention.qkv.linear
    weight = linear.weight.unflatten(0, (core.num_heads, -1))
    bias = linear.bias.unflatten(0, (core.num_heads, -1))
    split = 2 * core.key_dim
    return (
        _linear(weight[:, :split], bias[:, :split]),
        _linear(weight[:, split:], bias[:, split:]),
    )


@torch.no_grad()
def _linear(weight_hoc: Tensor, bias_ho: Tensor) -> nn.Linear:
    weight = weight_hoc.flatten(0, 1)
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.copy_(weight)
    linear.bias.copy_(bias_ho.flatten())
    return linear


class _Scores(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, q_bhqk: Tensor, k_bhtk: Tensor) -> Tensor:
        return q_bhqk @ k_bhtk.transpose(2, 3) * self.scale


class _Softmax(nn.Module):
    """With the attention bias before it, where there is one."""

    def __init__(self, core: AttentionCore) -> None:
        super().__init__()
        self.bias_hqt = core.bias_hqt

    def forward(self, scores_bhqt: Tensor) -> Tensor:
        if self.bias_hqt is not None:
            scores_bhqt = scores_bhqt + self.bias_hqt
        return scores_bhqt.softmax(dim=-1)


class _Values(nn.Module):
    def forward(self, shares_bhqt: Tensor, v_bhtv: Tensor) -> Tensor:
        return (shares_bhqt @ v_bhtv).transpose(1, 2).flatten(2)


def _deit_layer() -> Block:
    """A layer of DeiT-Tiny: C=192, H=3, K=V=64."""
    network = parse(
        {
            "family": "graft",
            "image_size": 224,
            "num_classes": 1,
            "donor": {"stages": 0},
            "trunk": {"depth": 1, "embed_dim": 192, "num_heads": 3},
            "distillation": False,
        }
    )
    return _only_block(network)


def _levit_layer() -> Block:
    """A layer of LeViT-256's first stage, batch norm folded: C=256, H=4, K=32, V=64."""
    network = published("LeViT-256")
    assert isinstance(network, Levit)
    stage = network.stages[0]
    one = {**network.model_dump(mode="json"), "shrinks": []}
    one["stages"] = [{**stage.model_dump(mode="json"), "depth": 1}]
    return _only_block(parse(one))


def _only_block(network: Architecture) -> Block:
    blocks = [module for module in fold(build(network)).modules() if isinstance(module, Block)]
    assert len(blocks) == 1
    return blocks[0]
