"""A teacher's network and its weights, out of timm, a file or the hub."""

import hashlib
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from torch import Tensor, nn

from levit_search.batches import Batches
from levit_search.errors import InputError, UnknownNameError
from levit_search.recipe import TeacherConfig


def create_teacher(config: TeacherConfig, batches: Batches) -> nn.Module:
    """The teacher's network for the data's channels and classes, with its first weights.

    Raises:
        InputError: timm has no such network or options, or its pretrained weights are out of reach
            or know other classes.
    """
    check_name(config)
    if config.weights == "pretrained":
        _check_pretrained(config, batches.info.num_classes)
    try:
        model = timm.create_model(
            config.name,
            pretrained=config.weights == "pretrained",
            num_classes=batches.info.num_classes,
            in_chans=batches.info.in_channels,
            **config.options,
        )
    except Exception as error:  # timm's builders and the hub's client each raise their own kinds
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(f"teacher {config.name}: cannot be built ({reason})") from error
    assert isinstance(model, nn.Module)
    if config.weights == "pretrained":
        _show_as_trained(model, batches)
    return model


def _show_as_trained(model: nn.Module, batches: Batches) -> None:
    """Have views of the data normalised as those were that a pretrained network has learnt from."""
    known: Any = model.pretrained_cfg
    mean, std = (
        # The first layer of a network for colours that is shown grey is the sum over its channels.
        values if len(values) == len(batches.mean) else [sum(values) / len(values)]
        for values in (known["mean"], known["std"])
    )
    pairs = zip(batches.mean, batches.std, mean, std, strict=True)
    scale, shift = torch.tensor(
        [(here / 255 / s, (center / 255 - m) / s) for center, here, m, s in pairs]
    ).T[:, None, :, None, None]

    def normalized(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        images = inputs[0]
        return (images * scale.to(images.device) + shift.to(images.device),)

    model.register_forward_pre_hook(normalized)


def check_name(config: TeacherConfig) -> None:
    """Make sure that timm knows the teacher.

    Raises:
        InputError: it does not; the message gives the nearest name.
    """
    if not timm.is_model(config.name):
        raise UnknownNameError("teacher", config.name, timm.list_models())


def pretrained_source(config: TeacherConfig) -> dict[str, str | None]:
    """Which of timm's pretrained weights a name stands for.

    Raises:
        InputError: there are none, or none of that tag.
    """
    try:
        known = timm.get_pretrained_cfg(config.name)
    except RuntimeError:  # a network of timm's with a tag that is none
        raise UnknownNameError("teacher", config.name, timm.list_pretrained()) from None
    if known is None or not known.has_weights:
        raise InputError(
            f"teacher {config.name}: timm has no pretrained weights for it; set weights to train "
            "or to a checkpoint"
        )
    return {name: getattr(known, name) for name in ("architecture", "tag", "hf_hub_id", "url")}


def _check_pretrained(config: TeacherConfig, num_classes: int) -> None:
    """A pretrained network with a new head would teach noise."""
    known = timm.get_pretrained_cfg(config.name)
    if known is not None and known.num_classes != num_classes:
        raise InputError(
            f"teacher {config.name}: its pretrained weights know {known.num_classes} classes, the "
            f"data has {num_classes}; set weights to train or to a checkpoint made for the data"
        )


def check_size(model: nn.Module, config: TeacherConfig, in_channels: int, image_size: int) -> None:
    """Make sure that a network takes images of the data's size, before anything long begins.

    Raises:
        InputError: it does not.
    """
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, in_channels, image_size, image_size))
    except Exception as error:  # each of timm's networks raises its own kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"teacher {config.name}: does not take images of {image_size} px ({reason}); choose "
            "another one or, where it has such an option, set teacher.options.img_size"
        ) from error


def load_weights(model: nn.Module, path: Path, name: str) -> None:
    """Put the weights in a file, of torch or safetensors, into a teacher's network.

    Raises:
        InputError: the file holds something else, or weights for other classes or channels.
    """
    try:
        state = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
        _check_sizes(model, state, f"teacher {name}: {path}")
        model.load_state_dict(state)
    except InputError:
        raise
    except Exception as error:  # torch, pickle, zip and safetensors each raise their own kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"teacher {name}: {path} does not fit ({reason})") from error


def _check_sizes(model: nn.Module, state: dict[str, Any], where: str) -> None:
    """Name what most often differs; anything else is told by torch."""
    wanted = model.state_dict()
    described: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    for kind, axis, message in (
        ("classifier", 0, "knows {} classes, the data has {}"),
        ("first_conv", 1, "is for images of {} channels, the data has {}"),
    ):
        names = described.get(kind) or ()
        for name in (names,) if isinstance(names, str) else names:
            found, own = state.get(f"{name}.weight"), wanted.get(f"{name}.weight")
            if not isinstance(found, Tensor) or own is None or found.ndim != own.ndim:
                continue
            sizes = found.shape[axis], own.shape[axis]
            if sizes[0] != sizes[1]:
                raise InputError(f"{where} {message.format(*sizes)}")


def weights_digest(model: nn.Module) -> str:
    """A SHA-256 over the names and values of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
