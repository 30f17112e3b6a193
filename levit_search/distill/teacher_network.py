"""A teacher's network and its weights, out of timm, a plug-in, a file or the hub."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
from torch import Tensor, nn

from levit_search import plugins
from levit_search.baseline import described_modules, load_checkpoint, read_checkpoint
from levit_search.batches import Batches
from levit_search.data import DataInfo
from levit_search.distill.adapting import Adapted
from levit_search.errors import InputError, UnknownNameError
from levit_search.files import file_digest
from levit_search.image_size import Sides, compact, sides, size_text
from levit_search.plugins import Plugin
from levit_search.recipe import TeacherConfig

# What timm.create_model takes that says which weights, and from where, instead of which network.
_NOT_OPTIONS = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
    *("num_classes", "in_chans", "features_only", "scriptable", "exportable", "no_jit"),
)


class BuildTeacher(Protocol):
    """What an entry point of ``levit_search.teachers`` is: a builder of networks.

        def build_net(name, num_classes, in_channels, image_size, width=64):
            return nn.Sequential(
                nn.Conv2d(in_channels, width, 3, stride=2), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
            )

    Everything is given by keyword; ``image_size`` is the side of squares, or (height, width), and
    ``options`` are those of the study's teacher section. The network takes images float32
    [B, in_channels, height, width], normalised as candidates are shown them, and gives logits
    [B, num_classes]. Its fresh weights may depend on torch's seed and on nothing else; they are
    trained here (``weights: train``) or replaced by those of a file, which has to fit its
    ``state_dict``.

    A builder that can give weights of its own (``weights: pretrained``) takes ``pretrained`` too,
    which is True then and is not given otherwise. The network says how it wants images normalised
    by an attribute ``pretrained_cfg`` as timm's do, ``{"mean": (...), "std": (...)}`` of values up
    to 1, one a channel (or three, whose means are taken for grey images), or by
    ``pretrained_cfg = None`` that it takes them as candidates do.

    A user's mistake is told by raising ``levit_search.errors.InputError``.
    """

    def __call__(
        self,
        *,
        name: str,
        num_classes: int,
        in_channels: int,
        image_size: int | Sides,
        **options: int | float | bool | str,
    ) -> nn.Module:
        """The network in float32 on the CPU; ``name`` is that of the entry point."""


def create_teacher(config: TeacherConfig, batches: Batches) -> nn.Module:
    """The teacher's network for the data's channels and classes, with its first weights.

    One that is to be adapted has a head of zeros, and the weights it begins with are not loaded;
    :func:`load_first_weights` does that.

    Raises:
        InputError: there is no such network, it has no such options, its pretrained weights are
            out of reach or know other classes, or it has no classifier that another one could take
            the place of.
    """
    plugin = find_plugin(config)
    taken = [name for name in config.options if name in _NOT_OPTIONS]
    if plugin is None and taken:
        raise InputError(f"teacher.options.{taken[0]}: is not the network's to set; see weights")
    if config.adapt != "none":
        return _create_adapted(config, batches)
    info, is_pretrained = batches.info, config.weights == "pretrained"
    if plugin is not None:
        model = _plugged_model(plugin, config, batches)
    else:
        if is_pretrained:
            _check_pretrained(config, info.num_classes)
        model = _timm_model(config, is_pretrained, info.num_classes, info.in_channels)
    if is_pretrained and model.pretrained_cfg is not None:
        _show_as_trained(model, batches)
    return model


def _timm_model(
    config: TeacherConfig, is_pretrained: bool, num_classes: int, in_channels: int
) -> nn.Module:
    """A network of timm's; with 0 classes it ends in its features."""
    try:
        model = timm.create_model(
            config.name,
            pretrained=is_pretrained,
            num_classes=num_classes,
            in_chans=in_channels,
            **config.options,
        )
    except Exception as error:  # timm's builders and the hub's client each raise their own kinds
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        cure = "; if the hub is out of reach, set teacher.weights to a file of them" * is_pretrained
        raise InputError(f"teacher {config.name}: cannot be built ({reason}){cure}") from error
    assert isinstance(model, nn.Module)
    return model


def _plugged_model(plugin: Plugin, config: TeacherConfig, batches: Batches) -> nn.Module:
    """The network that a plug-in builds.

    Raises:
        InputError: it cannot be loaded, fails, or gives something else.
    """
    build = plugin.load_callable()
    is_pretrained = config.weights == "pretrained"
    weights = {"pretrained": True} if is_pretrained else {}
    with plugin.explained("cannot be built"):
        model: object = build(
            name=config.name,
            num_classes=batches.info.num_classes,
            in_channels=batches.info.in_channels,
            image_size=batches.image_size,
            **weights,
            **config.options,
        )
    if not isinstance(model, nn.Module):
        raise plugin.wrong("expected a torch.nn.Module", model)
    if is_pretrained:
        _check_colors(plugin, model, batches.info.in_channels)
    return model


def _check_colors(plugin: Plugin, model: nn.Module, in_channels: int) -> None:
    if not hasattr(model, "pretrained_cfg"):
        raise InputError(
            f"{plugin}: its pretrained network has no pretrained_cfg; expected "
            "{'mean': ..., 'std': ...}, or None where it is shown what candidates are shown"
        )
    known: Any = model.pretrained_cfg
    if known is None:
        return
    values = [known.get(part) for part in ("mean", "std")] if isinstance(known, Mapping) else []
    if not values or not all(_is_colors(each, in_channels) for each in values):
        raise plugin.wrong(
            f"pretrained_cfg: expected None, or mean and std of {in_channels} channel(s)", known
        )
    if min(known["std"]) <= 0:
        raise plugin.wrong("pretrained_cfg: std has to be above 0", known["std"])


def _is_colors(values: object, in_channels: int) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) in {in_channels, 3}
        and all(isinstance(value, int | float) for value in values)
    )


def _show_as_trained(model: nn.Module, batches: Batches) -> None:
    """Have views of the data normalised as those were that a pretrained network has learnt from."""
    scale, shift = _colors(model.pretrained_cfg, batches)

    def normalized(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        images = inputs[0]
        return (images * scale.to(images.device) + shift.to(images.device),)

    model.register_forward_pre_hook(normalized)


def _colors(known: Any, batches: Batches) -> tuple[Tensor, Tensor]:
    """What views, normalised as candidates are shown them, are multiplied by and what is added, to
    have them as a pretrained network knows them: [C, 1, 1] each.

    ``known`` has the ``mean`` and ``std`` of what it has learnt from, with values up to 1.
    """
    mean, std = (
        # The first layer of a network for colours that is shown grey is the sum over its channels.
        values
        if len(values) == len(batches.mean)
        else [sum(values) / len(values)] * len(batches.mean)
        for values in (known["mean"], known["std"])
    )
    pairs = zip(batches.mean, batches.std, mean, std, strict=True)
    scale, shift = torch.tensor(
        [(here / 255 / s, (center / 255 - m) / s) for center, here, m, s in pairs]
    ).T[:, :, None, None]
    return scale, shift


def shown_size(config: TeacherConfig, image_size: int | Sides) -> int | Sides:
    """The size in pixels of what a teacher is shown where candidates are shown ``image_size``.

    One that is adapted is shown the same proportions, with its own size as the shorter side.

    Raises:
        InputError: there is no such network.
    """
    if config.adapt == "none":
        return image_size
    times = (config.image_size or _own_size(config)) / min(sides(image_size))
    rows, columns = (round(times * side) for side in sides(image_size))
    return compact(rows, columns)


def _own_size(config: TeacherConfig) -> int:
    """The side in pixels of what a network of timm's was trained on."""
    given = config.options.get("img_size")
    if isinstance(given, int):
        return given
    known = timm.get_pretrained_cfg(_checked_timm(config))
    return int(known.input_size[-1])


def _checked_timm(config: TeacherConfig) -> str:
    """The name of a network that can be adapted.

    Raises:
        InputError: it is none of timm's.
    """
    if find_plugin(config) is not None:
        raise InputError(
            f"teacher.adapt: {config.adapt} is for timm's networks; {config.name} is a plug-in's, "
            "which can be trained (weights: train) or bring weights for the data's classes"
        )
    try:
        known = timm.get_pretrained_cfg(config.name)
    except RuntimeError:  # a tag that is none
        raise UnknownNameError("teacher", config.name, timm.list_pretrained()) from None
    if known is None or known.input_size is None:
        raise InputError(
            f"teacher {config.name}: timm does not say what size of images it was made for; choose "
            "another one"
        )
    return config.name


def _create_adapted(config: TeacherConfig, batches: Batches) -> Adapted:
    """A network of timm's for what it is shown, with a head of zeros for the data's classes."""
    size, own = shown_size(config, batches.image_size), _own_size(config)
    network = _timm_model(config, False, _kept_classes(config), batches.info.in_channels)
    where = f"teacher {config.name}"
    if size != own:
        _resize(network, size, own, where)
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, batches.info.in_channels, *sides(size)))
    except Exception as error:  # each of timm's networks raises its own kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        cure = "leave teacher.image_size out"
        if not isinstance(size, int):
            cure = "choose another teacher.image_size, which is the shorter side"
        raise InputError(
            f"{where}: does not take images of {size_text(size)} px ({reason}); its own size is "
            f"{own}: {cure}, or choose another network"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(
            f"{where}: has no classifier that another one could take the place of: without it, it "
            f"gives {shape} for one image, not features [1, D]; choose another network"
        )
    colors = _colors(network.pretrained_cfg, batches)
    classes = None if config.adapt == "own" else batches.info.num_classes
    return Adapted(network, size, colors, features.shape[1], classes)


def taught_classes(config: TeacherConfig, info: DataInfo) -> int:
    """How many classes a teacher tells apart: the data's, or those that its network knows.

    Raises:
        InputError: there is no such network.
    """
    return info.num_classes if config.adapt != "own" else _kept_classes(config)


def _kept_classes(config: TeacherConfig) -> int:
    """Of the network under an adapted teacher; 0 where it ends in its features."""
    if config.adapt != "own":
        return 0
    return int(timm.get_pretrained_cfg(_checked_timm(config)).num_classes)


def _resize(network: nn.Module, size: int | Sides, own: int, where: str) -> None:
    """Make a network for images of ``own`` pixels one for ``size``, its position embeddings or
    biases interpolated where it has such."""
    known: Any = network.pretrained_cfg
    is_fixed = bool(known.get("fixed_input_size")) or hasattr(network, "set_input_size")
    if not is_fixed:
        return
    told = f"{where}: takes images of {own} px; leave teacher.image_size, now {size}, out, or"
    if not isinstance(size, int):
        told = f"{where}: takes squares of {own} px, not {size_text(size)} px;"
    if not hasattr(network, "set_input_size"):
        raise InputError(f"{told} choose another network")
    resize: Any = network.set_input_size
    try:
        resize(img_size=sides(size))
    except Exception as error:  # each of timm's networks raises its own kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{told} choose another size ({reason})") from error


def load_first_weights(
    model: Adapted, config: TeacherConfig, batches: Batches, path: Path | None
) -> str:
    """Put the weights that a network is adapted from into it, but for a classifier that it lacks.

    Args:
        model: as :func:`create_teacher` gives it.
        config: of the teacher.
        batches: what candidates are trained on.
        path: of the file with the weights; None: timm's pretrained ones.

    Returns:
        A SHA-256 of them.

    Raises:
        InputError: they are out of reach, or do not fit; the message names the tensor.
    """
    size, own = shown_size(config, batches.image_size), _own_size(config)
    source = _timm_model(config, path is None, _kept_classes(config), batches.info.in_channels)
    where = f"teacher {config.name}"
    if path is not None:
        load_checkpoint(source, path, where)
    digest = state_digest(source) if path is None else file_digest(path)
    if size != own:
        _resize(source, size, own, where)
    model.network.load_state_dict(source.state_dict())
    return digest


def find_plugin(config: TeacherConfig) -> Plugin | None:
    """The plug-in that the teacher is, None where it is timm's.

    Raises:
        InputError: it is neither; the message gives the nearest name.
    """
    if timm.is_model(config.name):
        return None
    plugged = plugins.installed("levit_search.teachers")
    if config.name not in plugged:
        raise UnknownNameError("teacher", config.name, [*timm.list_models(), *plugged])
    return plugged[config.name]


def identity(config: TeacherConfig) -> dict[str, Any]:
    """What a teacher's network depends on beside the data, as JSON.

    Raises:
        InputError: there is no such network.
    """
    plugin = find_plugin(config)
    # The data says the proportions: the size for squares is enough here.
    brought = {} if plugin is None else {"plugin": plugin.identity()}
    adapted = (
        {}
        if config.adapt == "none"
        else {"adapt": config.adapt, "image_size": shown_size(config, 1)}
    )
    return {"name": config.name, "options": config.options, **brought, **adapted}


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
            f"data has {num_classes}; give it a new head by teacher.adapt (head or all), set "
            "weights to train or to a checkpoint made for the data, or do without it by --set "
            "teacher=null"
        )


def check_size(
    model: nn.Module, config: TeacherConfig, info: DataInfo, image_size: int | Sides
) -> None:
    """Make sure that a network takes images of the data's size, before anything long begins.

    Raises:
        InputError: it does not, or gives no logits for the data's classes.
    """
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(1, info.in_channels, *sides(image_size)))
    except Exception as error:  # each of timm's networks raises its own kind
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        option = " or, where it has such an option, set teacher.options.img_size"
        raise InputError(
            f"teacher {config.name}: does not take images of {size_text(image_size)} px "
            f"({reason}); choose another one{option if isinstance(image_size, int) else ''}"
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
    where = f"teacher {name}"
    state = read_checkpoint(path, where)
    try:
        _check_sizes(model, state, f"{where}: {path}")
        model.load_state_dict(state)
    except InputError:
        raise
    except Exception as error:  # torch raises its own kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: {path} does not fit ({reason})") from error


def _check_sizes(model: nn.Module, state: dict[str, Any], where: str) -> None:
    """Name what most often differs; anything else is told by torch."""
    wanted = model.state_dict()
    for kind, axis, message in (
        ("classifier", 0, "knows {} classes, the data has {}"),
        ("first_conv", 1, "is for images of {} channels, the data has {}"),
    ):
        for name in described_modules(model, kind):
            found, own = state.get(f"{name}.weight"), wanted.get(f"{name}.weight")
            if not isinstance(found, Tensor) or own is None or found.ndim != own.ndim:
                continue
            sizes = found.shape[axis], own.shape[axis]
            if sizes[0] != sizes[1]:
                raise InputError(f"{where} {message.format(*sizes)}")


def state_digest(model: nn.Module) -> str:
    """A SHA-256 over the names and values of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
