"""Networks for the runtimes of PyTorch: built, folded, compiled, and their images."""

import os
import shutil
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from levit_search import architecture
from levit_search.baseline import Baseline
from levit_search.errors import UnknownNameError
from levit_search.image_size import canonical_size, image_shape
from levit_search.latency import worker
from levit_search.model import build, fold

Forward = Callable[[Tensor], Tensor]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def fresh_network(network: dict[str, Any], seed: int) -> tuple[nn.Module, list[int]]:
    """A network for inference with weights drawn from ``seed``, and its images' shape [C, H, W].

    Norm weights that begin at zero, as those that close residual blocks do, are ones instead: a GPU
    that multiplies by zero draws less power and so clocks higher than with trained weights.
    """
    torch.manual_seed(seed)
    if "timm" in network:
        fields = network["timm"]
        baseline = Baseline(**{**fields, "image_size": canonical_size(fields["image_size"])})
        _check_known(baseline.name)
        model = baseline.build_as_timm_does().eval()
        _wake_norms(model)
        return model, [*image_shape(baseline)]
    described = architecture.parse(network["architecture"])
    built = build(described, network["layout"])
    _wake_norms(built)
    return fold(built), [*image_shape(described)]


def _check_known(timm_name: str) -> None:
    """Whoever asks knows the names of their own timm; ours may be older."""
    import timm

    if not timm.is_model(timm_name):
        raise UnknownNameError(f"network of timm {timm.__version__}", timm_name, timm.list_models())


@torch.no_grad()
def _wake_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)


def images(shape: list[int], seed: int, most: int | None = None) -> Tensor:
    """Images [B, C, H, W] as every worker fills them, the first ``most`` of them."""
    drawn = shape[0] if most is None else min(shape[0], most)
    return torch.from_numpy(worker.filled({"images": [drawn, *shape[1:]]}, seed)["images"])


def forward_of(model: nn.Module, compiled: bool) -> Forward:
    """What runs the network.

    torch.compile keeps what it made by code object: networks of one class would look for theirs in
    one list in every run, and after eight of them it would stop compiling. So each has a code
    object of its own, and is one graph, or fails.
    """
    if not compiled:
        return model

    def forward(images: Tensor) -> Tensor:
        output: Tensor = model(images)
        return output

    own = types.FunctionType(
        forward.__code__.replace(), forward.__globals__, "forward", None, forward.__closure__
    )
    compiled_forward: Forward = torch.compile(own, fullgraph=True, dynamic=False)
    return compiled_forward


def cpp_compiler() -> str | None:
    names = [os.environ.get("CXX"), "g++", "clang++"]
    return next(filter(None, (shutil.which(name) for name in names if name)), None)
