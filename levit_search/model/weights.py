"""Weights of a whole network under three namings, and a donor's from timm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from levit_search.architecture import Graft, ResNetStem
from levit_search.errors import InputError, first_line
from levit_search.files import (
    WEIGHTS_KEY,
    DamagedFileError,
    check_no_zip_bomb,
    check_weights,
    read_bounded,
    weights_checksum,
    write_atomically,
)
from levit_search.model import naming as namings
from levit_search.model.build import Model
from levit_search.model.naming import Naming
from levit_search.model.resnet import ResNetHead


def load_weights(
    model: Model, weights: Mapping[str, Any] | Path, where: str | None = None
) -> Naming:
    """Load weights in any of the three namings into ``model``, in place.

    Args:
        model: a network whose architecture the weights were made for.
        weights: a state dict, or the path of a ``.safetensors`` or torch checkpoint file (read
            with ``weights_only``); a state dict may stand under the key ``model``. Weights of 1x1
            convolutions are taken for linear layers.
        where: what messages call them; None for the path.

    Returns:
        The naming that was recognised.

    Raises:
        InputError: the file cannot be read or is damaged, a tensor is missing or unexpected, or its
            shape is not the network's; the message names the tensor and both shapes.
    """
    where = where or (str(weights) if isinstance(weights, Path) else "weights")
    state = state_dict_of(weights, where)
    network = model.architecture
    naming: Naming = "ours"
    if isinstance(network, Graft):
        if not any(name.startswith(("donor.", "trunk.")) for name in state):
            naming = "timm"
    elif any(name.startswith("patch_embed.") for name in state):
        naming = "released"
    elif any(".attn." in name or name.startswith("stem.conv1.") for name in state):
        naming = "timm"
    if naming != "ours":
        try:
            theirs = _timm_names(model) if naming == "timm" else namings.names(network, naming)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        back = {name: own for own, name in theirs.items()}
        # Index tables, not weights: the released code stores them beside the biases they index.
        kept = {n: each for n, each in state.items() if not n.endswith("attention_bias_idxs")}
        renamed = {back.get(name, name): tensor for name, tensor in kept.items()}
        state = {n: namings.from_timm(network, n, each) for n, each in renamed.items()}
    expected = model.state_dict()
    model.load_state_dict(_matched(expected, state, where))
    return naming


def load_exactly(module: nn.Module, path: Path, but: tuple[str, ...] = ()) -> None:
    """Load a file of :func:`save_weights` into the kind of module that it was written from.

    Args:
        but: beginnings of names that stay as they are and that the file need not have.

    Raises:
        InputError: as :func:`load_weights`.
    """
    where = str(path)
    expected, state = (
        {name: tensor for name, tensor in each.items() if not name.startswith(but)}
        for each in (module.state_dict(), state_dict_of(path, where))
    )
    module.load_state_dict(_matched(expected, state, where), strict=not but)


def load_donor(model: Model, weights: Mapping[str, Any] | Path | None) -> list[str]:
    """Load a ResNet's weights into the donor of a graft, or into a LeViT's ResNet stem, in place.

    Args:
        weights: None for timm's pretrained ones; else a state dict of timm's ResNet, or the path
            of one. Later layers and the classifier are left out.

    Returns:
        The tensors that stay as they were: the first convolution under the small stem.

    Raises:
        InputError: the network has no donor, the weights are not to be had, or one of them is
            missing or has another shape; the message names the tensor and both shapes.
    """
    head, kind, is_small, is_scaled = _donor(model)
    if weights is None:
        if is_scaled:
            raise InputError(f"donor {kind}: pretrained weights have width_scale 1 only")
        import timm

        where, channels = f"timm's pretrained {kind}", head.conv1.in_channels
        try:
            weights = timm.create_model(kind, pretrained=True, in_chans=channels).state_dict()
        except Exception as error:  # the hub's client raises kinds of its own
            raise InputError(f"{where}: not to be had ({first_line(error)})") from error
    else:
        where = str(weights) if isinstance(weights, Path) else "donor weights"
    state = state_dict_of(weights, where)
    left_out = ["conv1.weight"] if is_small else []
    expected = {name: t for name, t in head.state_dict().items() if name not in left_out}
    given = {name: tensor for name, tensor in state.items() if name in expected}
    # Shapes first: a ResNet of another width may also have shortcuts that the given one lacks.
    _matched({name: expected[name] for name in given}, given, where)
    head.load_state_dict(_matched(expected, given, where), strict=False)
    return left_out


def _donor(model: Model) -> tuple[ResNetHead, str, bool, bool]:
    """The ResNet inside, its name, and whether its stem is small and its width scaled."""
    network = model.architecture
    if isinstance(network, Graft):
        head, donor = getattr(model, "donor", None), network.donor
        if isinstance(head, ResNetHead) and donor is not None:
            return head, donor.name, donor.stem == "small", donor.width_scale != 1
    elif isinstance(head := getattr(model.stem, "resnet", None), ResNetHead):
        stem = network.stem
        assert isinstance(stem, ResNetStem)
        return head, stem.kind, stem.stem == "small", stem.width_scale != 1
    raise InputError(f"{network.summary()}: has no ResNet to load a donor's weights into")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of ``model`` as safetensors under our names, whole or not at all.

    The file carries a checksum, which :func:`load_weights` compares.
    """
    from safetensors.torch import save

    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, save(weights, {WEIGHTS_KEY: weights_checksum(save(weights))}))


def to_timm(model: Model) -> dict[str, Tensor]:
    """The weights of ``model`` as timm's ``levit_*``, DeiT or ResNet keeps them.

    Raises:
        InputError: timm cannot express the architecture.
    """
    network, state, theirs = model.architecture, model.state_dict(), _timm_names(model)
    unnamed = min(set(state) - set(theirs), default=None)
    if unnamed is not None:
        raise InputError(f"timm has no place for {unnamed}")
    return {theirs[name]: namings.into_timm(network, name, t) for name, t in state.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            raw = read_bounded(path)
            check_weights(raw)
            return dict(sorted(load(raw).items()))  # it has them in any order
        check_no_zip_bomb(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedFileError as error:
        raise InputError(f"{path}: damaged ({error})") from None
    except Exception as error:  # torch, pickle, zip and safetensors each raise their own kinds
        raise InputError(f"{path}: not a readable checkpoint ({error})") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: holds no state dict but a {type(loaded).__name__}")
    return loaded


def state_dict_of(weights: Mapping[str, Any] | Path, where: str) -> Mapping[str, Tensor]:
    """The tensors by name of a state dict or of a file of one, which may stand under ``model``.

    Raises:
        InputError: the file cannot be read or is damaged, or holds something else.
    """
    state: Mapping[str, Any] = _read(weights) if isinstance(weights, Path) else weights
    state = state.get("model", state)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise InputError(f"{where}: holds no state dict (tensors by name)")
    return state


def _timm_names(model: Model) -> dict[str, str]:
    """From our tensor names to timm's, a donor's own included."""
    names = namings.names(model.architecture, "timm")
    donor = [name for name in model.state_dict() if name.startswith("donor.")]
    return names | {name: name.removeprefix("donor.") for name in donor}


def _matched(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """``given`` in the order and shapes expected; 1x1 convolutions are taken for linear layers."""
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    if missing or extra:
        parts = [f"{missing[0]} is missing"] if missing else []
        parts += [f"{extra[0]} is not of this network"] if extra else []
        counts = f"{len(missing)} missing, {len(extra)} unexpected"
        raise InputError(f"{where}: {', '.join(parts)} ({counts})")
    matched = {}
    for name, tensor in expected.items():
        found = given[name]
        if found.ndim == tensor.ndim + 2 and found.shape[-2:] == (1, 1):
            found = found[..., 0, 0]
        if found.shape != tensor.shape:
            raise InputError(
                f"{where}: {name} has shape {list(found.shape)}, the network's has "
                f"{list(tensor.shape)}"
            )
        matched[name] = found
    return matched
