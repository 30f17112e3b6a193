"""Batch norms folded into their neighbours, for inference."""

import copy

import torch
from torch import Tensor, nn

from levit_search.model.blocks import AttentionCore, ConvNorm, LinearNorm
from levit_search.model.build import Model
from levit_search.model.graft import GraftTrunk
from levit_search.model.levit import NormLinear
from levit_search.model.resnet import ResNetHead


def fold(model: Model) -> Model:
    """A copy of ``model`` in evaluation mode with no batch norm left in the trunk and heads.

    Logits stay as they were up to rounding; attention biases are laid out once, and class tokens
    joined with the position embedding. The copy is for inference: its parameters no longer follow
    the architecture's count. The batch norms inside a ResNet are folded too.
    """
    return _fold_in_place(copy.deepcopy(model))


def fold_on_cpu(model: Model) -> Model:
    """The same on the CPU for a reader that is soon done: what needs no folding is not copied.

    Such tensors remain those of ``model``, so the result must not be trained or kept.
    """
    shared: dict[int, Tensor] = {id(buffer): buffer.cpu() for buffer in model.buffers()}
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach().cpu())
    return _fold_in_place(copy.deepcopy(model, shared))


@torch.no_grad()
def _fold_in_place(model: Model) -> Model:
    """Tensors are replaced, never written to."""
    for module in list(model.eval().modules()):
        match module:
            case ConvNorm(norm=nn.BatchNorm2d() as norm):
                _scale_outputs(module.conv, norm)
                module.norm = nn.Identity()
            case LinearNorm(norm=nn.BatchNorm1d() as norm):
                _scale_outputs(module.linear, norm)
                module.norm = nn.Identity()
            case NormLinear(norm=nn.BatchNorm1d()):
                scale, shift = _affine(module.norm)
                weight, bias = module.linear.weight, module.linear.bias
                module.linear.weight = nn.Parameter(weight * scale)
                module.linear.bias = nn.Parameter(bias + weight @ shift)
                module.norm = nn.Identity()
            case AttentionCore() if module.attention_bias is not None:
                module.bias_hqt = module.gathered_bias()
                module.attention_bias = None
            case GraftTrunk():
                module.joined_bnc = module.joined()
            case ResNetHead():
                _fold_resnet(module)
    return model


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A trained batch norm as ``x * scale + shift``."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def _scale_outputs(layer: nn.Linear | nn.Conv2d, norm: nn.Module) -> None:
    """Give ``layer`` the weights and bias with which it does what ``norm`` did to its outputs."""
    assert layer.bias is None  # under a batch norm it would do nothing
    scale, shift = _affine(norm)
    layer.weight = nn.Parameter(layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias = nn.Parameter(shift)


def _fold_resnet(resnet: ResNetHead) -> None:
    """timm's ResNets name their pairs ``convN``/``bnN`` and (``downsample.0``, ``.1``)."""
    for module in list(resnet.modules()):
        for number in (1, 2, 3):
            conv, norm = (
                getattr(module, f"conv{number}", None),
                getattr(module, f"bn{number}", None),
            )
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                _scale_outputs(conv, norm)
                # bn1 and bn2 are plain norms here; their activations are modules of their own.
                setattr(module, f"bn{number}", nn.Identity())
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, nn.Sequential):
            conv, norm = shortcut[-2], shortcut[-1]
            assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            _scale_outputs(conv, norm)
            shortcut[-1] = nn.Identity()
