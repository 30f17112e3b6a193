"""Whether two proxies for vision transformers that need no training rank the table's networks.

    python benchmarks/zero_cost.py --json studies/table/zero_cost.json

Kendall's tau with the accuracy of the table (``search_table.py``), beside parameters, FLOPs and
what a training says after its first epochs. The proxies are those of the two papers whose subject
is vision transformers, each the mean of three initialisations in evaluation mode, where batch norm
is the identity, with the residual branches at a gain of one instead of zero (else they pass
nothing on):

- DSS (Zhou et al. 2022, Training-free Transformer Architecture Search): with all weights replaced
  by their absolute values and an image of ones, nuclear norms of weights times those of their
  gradients over attention, plus the sum of weight times gradient over MLPs.
- AZ-NAS (Lee and Ham 2024): the entropy of the principal components of what each block puts out,
  the least rise of it from block to block, how far the spectral norm of each block's Jacobian is
  from one, and FLOPs; logarithms of the four ranks are added.
"""

import argparse
import copy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fidelity import agreement
from replay import SAMPLED, sampled_table
from scipy.stats import rankdata
from search_table_shown import read_table
from torch import Tensor, nn

from levit_search.architecture import Architecture
from levit_search.cost import cost
from levit_search.files import write_json
from levit_search.image_size import image_shape
from levit_search.model import build
from levit_search.model.blocks import Block, LinearNorm, ShrinkBlock
from levit_search.study.folder import environment

DRAWS = 3
IMAGES = 64
_EPOCHS = 1, 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = read_table(SAMPLED)
    networks = sampled_table().networks
    stages = {
        name: values["num_stages"]
        for name, values in zip(found.networks, found.values, strict=True)
    }
    truth = dict(zip(found.networks, found.truth().tolist(), strict=True))
    measured = {name: _measured(network) for name, network in networks.items()}
    curves = dict(zip(found.networks, found.top1_percent[0], strict=True))
    scores: dict[str, Mapping[str, float]] = {
        "DSS": {name: each["dss"] for name, each in measured.items()},
        "AZ-NAS": az_nas(measured),
        **{
            f"  its {part}": {n: each[part] for n, each in measured.items()} for part in _PARTS[:-1]
        },
        "params": {name: float(cost(network).params) for name, network in networks.items()},
        "FLOPs": {name: each["flops"] for name, each in measured.items()},
        **{
            f"epoch {epoch}": {name: float(curve[epoch - 1]) for name, curve in curves.items()}
            for epoch in _EPOCHS
        },
    }
    parts = {"all": truth}
    for count in sorted(set(stages.values())):
        parts[f"{count} stages"] = {n: each for n, each in truth.items() if stages[n] == count}
    rows = {
        name: {part: agreement(values, chosen) for part, chosen in parts.items()}
        for name, values in scores.items()
    }
    print(f"| tau with the accuracy after nine epochs | {' | '.join(parts)} |")
    print("|---|" + "---|" * len(parts))
    for name, by_part in rows.items():
        cells = [
            f"{r['tau']:.2f} ({r['tau_low']:.2f} to {r['tau_high']:.2f})" for r in by_part.values()
        ]
        print(f"| {name.strip()} | {' | '.join(cells)} |")
    if options.json:
        write_json(options.json, {"rows": rows, "environment": environment(sys.argv)})
    return 0


_PARTS = ("expressivity", "progressivity", "trainability", "flops")


def _measured(network: Architecture) -> dict[str, float]:
    """Means over the draws of ``dss`` and of the parts of AZ-NAS."""
    drawn = []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        model = build(network).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.ones_(module.weight)
        shape = image_shape(network)
        drawn.append({"dss": dss(model, shape), **az_parts(model, shape)})
    means = {name: float(np.mean([each[name] for each in drawn])) for name in drawn[0]}
    return {**means, "flops": float(cost(network).flops)}


def dss(model: nn.Module, shape: tuple[int, ...]) -> float:
    """Synaptic diversity of attention and saliency of MLPs."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    model.double()(torch.ones(1, *shape, dtype=torch.double)).sum().backward()
    score = 0.0
    for name, module in model.named_modules():
        if isinstance(module, LinearNorm):
            weight, gradient = module.linear.weight.detach(), module.linear.weight.grad
            assert gradient is not None
            if ".mlp." in name:
                score += float((gradient * weight).sum())
            else:
                norms = [torch.linalg.matrix_norm(each, "nuc") for each in (gradient, weight)]
                score += float(norms[0] * norms[1])
    return float(np.log10(score))


def az_parts(model: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """Expressivity, progressivity and trainability of random images."""
    ends = list(_block_ends(model, torch.randn(IMAGES, *shape)))
    entropies = [_entropy(after.detach()) for _, after in ends]
    norms = []
    for before, after in ends:
        # By the Jacobian, what a random sign of each output asks of the inputs.
        signs = torch.randint(0, 2, after.shape) * 2.0 - 1.0
        (gradient,) = torch.autograd.grad(after, before, signs, retain_graph=True)
        asked, got = signs.flatten(0, 1), _like(gradient, after.shape[1]).flatten(0, 1)
        norms.append(float(torch.linalg.matrix_norm(asked.T @ got / len(asked), 2)))
    return {
        "expressivity": sum(entropies),
        "progressivity": float(np.diff(entropies).min()) if len(entropies) > 1 else 0.0,
        "trainability": float(np.mean([2 - norm - 1 / norm for norm in norms])),
    }


def _block_ends(model: nn.Module, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What goes into each block and what comes out of it, [B, T, C]."""
    ends: list[tuple[Tensor, Tensor]] = []
    blocks = [module for module in model.modules() if isinstance(module, Block | ShrinkBlock)]
    hooks = [
        block.register_forward_hook(lambda _, given, made: ends.append((given[0], made)))
        for block in blocks
    ]
    model(images.requires_grad_())
    for hook in hooks:
        hook.remove()
    return iter(ends)


def _like(gradient: Tensor, tokens: int) -> Tensor:
    """Of the inputs of a block that shrinks, sums over as many groups as it puts out tokens."""
    if gradient.shape[1] == tokens:
        return gradient
    side, less = (round(count**0.5) for count in (gradient.shape[1], tokens))
    as_map = gradient.transpose(1, 2).unflatten(2, (side, side))
    pooled = nn.functional.adaptive_avg_pool2d(as_map, less) * (side / less) ** 2
    return pooled.flatten(2).transpose(1, 2)


def _entropy(x_btc: Tensor) -> float:
    rows = x_btc.flatten(0, 1).double()
    rows = rows - rows.mean(dim=0)
    shares = torch.linalg.eigvalsh(rows.T @ rows).clamp(min=0)
    shares = shares / shares.sum()
    return float(-(shares * (shares + 1e-12).log()).sum())


def az_nas(measured: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The sum over the parts of the logarithm of the rank, the best having that of all of them."""
    names = list(measured)
    ranks: Any = [rankdata([measured[name][part] for name in names]) for part in _PARTS]
    return dict(zip(names, np.log(np.array(ranks) / len(names)).sum(axis=0).tolist(), strict=True))


if __name__ == "__main__":
    sys.exit(main())
