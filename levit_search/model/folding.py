"""Batch norms folded into their neighbours, for inference."""

import copy

import torch
from torch import Tensor, nn

from levit_search.model.blocks import AttentionCore, ConvNorm, LinearNorm
from levit_search.model.build import Model
from levit_search.model.levit import NormLinear
from levit_search.model.resnet import ResNetHead


@torch.no_grad()
def fold(model: Model) -> Model:
    """A copy of ``model`` in evaluation mode with no batch norm left in the trunk and heads.

    Logits stay as they were up to rounding; attention biases are laid out once. The copy is for
    inference: its parameters no longer follow the architecture's count. The batch norms inside a
    ResNet are folded too.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        match module:
            case ConvNorm(norm=nn.BatchNorm2d() as norm):
                module.conv = _folded_conv(module.conv, norm)
                module.norm = nn.Identity()
            case LinearNorm(norm=nn.BatchNorm1d()):
                scale, shift = _affine(module.norm)
                module.linear = _linear(module.linear.weight * scale[:, None], shift)
                module.norm = nn.Identity()
            case NormLinear(norm=nn.BatchNorm1d()):
                scale, shift = _affine(module.norm)
                weight, bias = module.linear.weight, module.linear.bias
                module.linear = _linear(weight * scale[None], bias + weight @ shift)
                module.norm = nn.Identity()
            case AttentionCore() if module.attention_bias is not None:
                module.bias_hqt = module.gathered_bias()
                module.attention_bias = None
            case ResNetHead():
                _fold_resnet(module)
    return folded


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A trained batch norm as ``x * scale + shift``."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, device=weight.device, dtype=weight.dtype)
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    return linear


def _folded_conv(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    return torch.nn.utils.fuse_conv_bn_eval(conv, norm)


def _fold_resnet(resnet: ResNetHead) -> None:
    """timm's ResNets name their pairs ``convN``/``bnN`` and (``downsample.0``, ``.1``)."""
    for module in list(resnet.modules()):
        for number in (1, 2, 3):
            conv, norm = (
                getattr(module, f"conv{number}", None),
                getattr(module, f"bn{number}", None),
            )
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, f"conv{number}", _folded_conv(conv, norm))
                # bn1 and bn2 are plain norms here; their activations are modules of their own.
                setattr(module, f"bn{number}", nn.Identity())
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, nn.Sequential):
            conv, norm = shortcut[-2], shortcut[-1]
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            module.downsample = nn.Sequential(_folded_conv(conv, norm))
