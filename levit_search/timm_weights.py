"""Checkpoints of timm's networks, loaded into ones that may be for other channels and classes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_search.errors import InputError
from levit_search.inflation import check_not_inflated

if TYPE_CHECKING:
    from torch import nn


def load_checkpoint(
    network: "nn.Module", path: Path, where: str, *, new_classifier: bool = False
) -> None:
    """Load a file of one of timm's networks into the same network, in place.

    A first convolution for three channels is adapted to other channels, as timm does. The file may
    lack the counts of batches in batch norms, as those of old releases of torch do.

    Args:
        network: of timm's; where it has no classifier, the file's is left out.
        path: the file, of torch or safetensors.
        where: what messages begin with: whose weights these are.
        new_classifier: whether a classifier that the file lacks, or has for other classes, keeps
            the values that it has in ``network``.

    Raises:
        InputError: the file cannot be read, a tensor is missing or unexpected, or its shape is not
            the network's; the message names the tensor and the shapes.
    """
    import timm.models
    from torch import Tensor

    state, own = read_checkpoint(path, where), network.state_dict()

    def misfit(told: str) -> InputError:
        expected = "expected the weights of this network, built with the same options"
        return InputError(f"{where}: {path}: {told}; {expected}")

    for name, found in state.items():
        if not isinstance(found, Tensor):
            raise misfit(f"has {type(found).__name__} as {name}, no tensor")
    for name in (f"{conv}.weight" for conv in described_modules(network, "first_conv")):
        found = state.get(name)
        if name not in own or found is None or found.ndim != 4:
            continue
        if found.shape[1] == 3 != own[name].shape[1]:
            state[name] = timm.models.adapt_input_conv(own[name].shape[1], found)
    classifiers = described_modules(network, "classifier")
    may_stay = {f"{name}.{part}" for name in classifiers for part in ("weight", "bias")}
    for name, tensor in own.items():
        found = state.get(name)
        if found is not None and found.shape == tensor.shape:
            continue
        is_count = found is None and name.endswith("num_batches_tracked")
        if is_count or (new_classifier and name in may_stay):
            state[name] = tensor
            continue
        told = "lacks" if found is None else f"has {list(found.shape)} as"
        raise misfit(f"{told} {name}, which is {list(tensor.shape)} in the network")
    # Without its classifier a network lacks what belongs to that as well, such as a norm before it.
    left_out = {name.split(".")[0] for name in classifiers if f"{name}.weight" not in own}
    for name, found in state.items():
        if name not in own and name.split(".")[0] not in left_out:
            raise misfit(f"has {name} {list(found.shape)}, and the network has no such tensor")
    try:
        network.load_state_dict({name: state[name] for name in own})
    except RuntimeError as error:  # tensors of kinds that cannot be copied, such as sparse ones
        raise misfit(f"does not fit ({' '.join(str(error).split())[:200]})") from error


def read_checkpoint(path: Path, where: str) -> dict[str, Any]:
    """What a file of torch or safetensors holds by name; nothing in it is run.

    Raises:
        InputError: it cannot be read, is damaged, or holds something else.
    """
    import timm.models

    try:
        check_not_inflated(path)
        return dict(timm.models.load_state_dict(str(path), device="cpu", weights_only=True))
    except Exception as error:  # torch, pickle, zip and safetensors each raise their own kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{where}: {path}: is no readable checkpoint ({reason})") from error


def described_modules(network: "nn.Module", kind: str) -> tuple[str, ...]:
    """The names of the modules that timm calls a network's ``classifier`` or ``first_conv``."""
    described: Any = getattr(network, "pretrained_cfg", None) or {}
    names = described.get(kind) or ()
    return (names,) if isinstance(names, str) else tuple(names)
