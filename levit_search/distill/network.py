"""A teacher's network and its weights, out of timm, a plug-in, a file or the hub."""

import hashlib
from pathlib import Path
from typing import Any

import timm
import timm.models
import torch
from torch import Tensor, nn

from levit_search.batches import Batches
from levit_search.data import DataInfo
from levit_search.distill import plugged
from levit_search.errors import InputError, UnknownNameError
from levit_search.inflation import check_not_inflated
from levit_search.plugins import Plugin
from levit_search.recipe import TeacherConfig

# What timm.create_model takes that says which weights, and from where, instead of which network.
_NOT_OPTIONS = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("num_classes", "in_chans", "features_only", "scriptable", "exportable", "no_jit"),
)


def create_teacher(config: TeacherConfig, batches: Batches) -> nn.Module:
    """The teacher's network for the data's channels and classes, with its first weights.

    Raises:
        InputError: there is no such network, it has no such options, or its pretrained weights are
            out of reach or know other classes.
    """
    plugin = find_plugin(config)
    if plugin is not None:
        info = batches.info
        model = plugged.create_plugged(
            plugin, config, info.num_classes, info.in_channels, batches.image_size
        )
    else:
        model = _create_timm(config, batches)
    if config.weights == "pretrained" and model.pretrained_cfg is not None:
        _show_as_trained(model, batches)
    return model


def _create_timm(config: TeacherConfig, batches: Batches) -> nn.Module:
    if config.weights == "pretrained":
        _check_pretrained(config, batches.info.num_classes)
    taken = [name for name in config.options if name in _NOT_OPTIONS]
    if taken:
        raise InputError(f"teacher.options.{taken[0]}: is not the network's to set; see weights")
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


def find_plugin(config: TeacherConfig) -> Plugin | None:
    """The plug-in that the teacher is, None where it is timm's.

    Raises:
        InputError: it is neither; the message gives the nearest name.
    """
    if timm.is_model(config.name):
        return None
    plugin = plugged.find(config.name)
    if plugin is None:
        known = [*timm.list_models(), *plugged.names()]
        raise UnknownNameError("teacher", config.name, known)
    return plugin


def identity(config: TeacherConfig) -> dict[str, Any]:
    """What a teacher's network depends on beside the data, as JSON.

    Raises:
        InputError: there is no such network.
    """
    plugin = find_plugin(config)
    brought = {} if plugin is None else {"plugin": plugin.identity()}
    return {"name": config.name, "options": config.options, **brought}


def pretrained_source(config: TeacherConfig) -> dict[str, str | None]:
    """Which pretrained weights a name stands for, of timm's or of a plug-in.

    Raises:
        InputError: timm has none, or none of that tag.
    """
    plugin = find_plugin(config)
    if plugin is not None:
        return {**plugin.identity()}
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
            f"data has {num_classes}; set weights to train or to a checkpoint made for the data, "
            "or do without it by --set teacher=null"
        )


def check_size(model: nn.Module, config: TeacherConfig, info: DataInfo, image_size: int) -> None:
    """Make sure that a network takes images of the data's size, before anything long begins.

    Raises:
        InputError: it does not, or gives no logits for the data's classes.
    """
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, info.in_channels, image_size, image_size))
    except Exception as error:  # each of timm's networks raises its own kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"teacher {config.name}: does not take images of {image_size} px ({reason}); choose "
            "another one or, where it has such an option, set teacher.options.img_size"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, info.num_classes):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"teacher {config.name}: has to give logits of shape [1, {info.num_classes}] for an "
            f"image of the data, not {shape}"
        )


def load_weights(model: nn.Module, path: Path, name: str) -> None:
    """Put the weights in a file, of torch or safetensors, into a teacher's network.

    Raises:
        InputError: the file holds something else, or weights for other classes or channels.
    """
    try:
        check_not_inflated(path)
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
