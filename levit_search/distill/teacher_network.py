"""A teacher's network and its weights, out of timm, a plug-in, a file or the hub."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import timm
import torch
from torch import Tensor, nn

from levit_search import plugins
from levit_search.baseline import described_modules, load_checkpoint, read_checkpoint
from levit_search.batches import Batches
from levit_search.data import DataInfo
from levit_search.distill.adapting import Adapted
from levit_search.errors import InputError, UnknownNameError, first_line, in_one_line
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
        known = timm.get_pretrained_cfg(config.name) if is_pretrained else None
        if known is not None and known.num_classes != info.num_classes:  # it would teach noise
            raise InputError(
                f"teacher {config.name}: its pretrained weights know {known.num_classes} classes, "
                f"the data has {info.num_classes}; give it a new head by teacher.adapt (head or "
                "all), set weights to train or to a checkpoint made for the data, or do without it "
                "by --set teacher=null"
            )
        model = _timm_model(config, is_pretrained, info.num_classes, info.in_channels)
    if is_pretrained and model.pretrained_cfg is not None:
        scale, shift = _colors(model.pretrained_cfg, batches)

        def as_trained(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            images = inputs[0]
            return (images * scale.to(images.device) + shift.to(images.device),)

        model.register_forward_pre_hook(as_trained)
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
        reason = first_line(error)
        cure = "; if the hub is out of reach, set teacher.weights to a file of them" * is_pretrained
        raise InputError(f"teacher {config.name}: cannot be built ({reason}){cure}") from error
    assert isinstance(model, nn.Module)
    return model


def _plugged_model(plugin: Plugin, config: TeacherConfig, batches: Batches) -> nn.Module:
    """The network that a plug-in builds, with colours that it may be shown."""
    build, in_channels = plugin.load_callable(), batches.info.in_channels
    is_pretrained = config.weights == "pretrained"
    weights = {"pretrained": True} if is_pretrained else {}
    with plugin.explained("cannot be built"):
        model: object = build(
            name=config.name,
            num_classes=batches.info.num_classes,
            in_channels=in_channels,
            image_size=batches.image_size,
            **weights,
            **config.options,
        )
    if not isinstance(model, nn.Module):
        raise plugin.wrong("expected a torch.nn.Module", model)
    if not is_pretrained:
        return model
    if not hasattr(model, "pretrained_cfg"):
        raise InputError(
            f"{plugin}: its pretrained network has no pretrained_cfg; expected "
            "{'mean': ..., 'std': ...}, or None where it is shown what candidates are shown"
        )
    known: Any = model.pretrained_cfg
    if known is None:
        return model
    values = [known.get(part) for part in ("mean", "std")] if isinstance(known, Mapping) else [None]
    for colors in values:
        if not (
            isinstance(colors, Sequence)
            and len(colors) in {in_channels, 3}
            and all(isinstance(value, int | float) for value in colors)
        ):
            raise plugin.wrong(
                f"pretrained_cfg: expected None, or mean and std of {in_channels} channel(s)", known
            )
    if min(known["std"]) <= 0:
        raise plugin.wrong("pretrained_cfg: std has to be above 0", known["std"])
    return model


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
    return given if isinstance(given, int) else int(_adaptable(config).input_size[-1])


def _known_to_timm(config: TeacherConfig) -> Any:
    """What timm tells of a network's pretrained weights; None where it has none."""
    try:
        return timm.get_pretrained_cfg(config.name)
    except RuntimeError:  # a network of timm's with a tag that is none
        raise UnknownNameError("teacher", config.name, timm.list_pretrained()) from None


def _adaptable(config: TeacherConfig) -> Any:
    """What timm tells of a network that can be adapted, which has to be one of its own."""
    if find_plugin(config) is not None:
        raise InputError(
            f"teacher.adapt: {config.adapt} is for timm's networks; {config.name} is a plug-in's, "
            "which can be trained (weights: train) or bring weights for the data's classes"
        )
    known = _known_to_timm(config)
    if known is None or known.input_size is None:
        raise InputError(
            f"teacher {config.name}: timm does not say what size of images it was made for; choose "
            "another one"
        )
    return known


def _create_adapted(config: TeacherConfig, batches: Batches) -> Adapted:
    """A network of timm's for what it is shown, with a head of zeros for the data's classes."""
    size, own = shown_size(config, batches.image_size), _own_size(config)
    network = _timm_model(config, False, _kept_classes(config), batches.info.in_channels)
    _resize(network, config, size)
    cure = "leave teacher.image_size out"
    if not isinstance(size, int):
        cure = "choose another teacher.image_size, which is the shorter side"
    cure = f"its own size is {own}: {cure}, or choose another network"
    features = _answer_to_one(network, config, batches, size, cure)
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise InputError(
            f"teacher {config.name}: has no classifier that another one could take the place of: "
            f"without it, it gives {_shape_of(features)} for one image, not features [1, D]; "
            "choose another network"
        )
    colors = _colors(network.pretrained_cfg, batches)
    classes = None if config.adapt == "own" else batches.info.num_classes
    return Adapted(network, size, colors, features.shape[1], classes)


def _answer_to_one(
    model: nn.Module, config: TeacherConfig, batches: Batches, size: int | Sides, cure: str
) -> object:
    """What a network gives for one blank image, if it takes images of that size."""
    try:
        with torch.no_grad():
            return model.eval()(torch.zeros(1, batches.info.in_channels, *sides(size)))
    except Exception as error:  # each of timm's networks raises its own kind
        raise InputError(
            f"teacher {config.name}: does not take images of {size_text(size)} px "
            f"({in_one_line(error)}); {cure}"
        ) from error


def _shape_of(answer: object) -> object:
    return list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__


def taught_classes(config: TeacherConfig, info: DataInfo) -> int:
    """How many classes a teacher tells apart: the data's, or those that its network knows.

    Raises:
        InputError: there is no such network.
    """
    return info.num_classes if config.adapt != "own" else _kept_classes(config)


def _kept_classes(config: TeacherConfig) -> int:
    """Of the network under an adapted teacher; 0 where it ends in its features."""
    return int(_adaptable(config).num_classes) if config.adapt == "own" else 0


def _resize(network: nn.Module, config: TeacherConfig, size: int | Sides) -> None:
    """Make a network for images of its own size one for ``size``, its position embeddings or
    biases interpolated where it has such."""
    own, known = _own_size(config), cast(Any, network.pretrained_cfg)
    resize: Any = getattr(network, "set_input_size", None)
    if size == own or (resize is None and not known.get("fixed_input_size")):
        return
    told = f"takes images of {own} px; leave teacher.image_size, now {size}, out, or"
    if not isinstance(size, int):
        told = f"takes squares of {own} px, not {size_text(size)} px;"
    if resize is None:
        raise InputError(f"teacher {config.name}: {told} choose another network")
    try:
        resize(img_size=sides(size))
    except Exception as error:  # each of timm's networks raises its own kind
        raise InputError(
            f"teacher {config.name}: {told} choose another size ({in_one_line(error)})"
        ) from error


def load_first_weights(
    model: Adapted, config: TeacherConfig, batches: Batches, path: Path | None
) -> str:
    """Put the weights that a network is adapted from into it, but for a classifier that it lacks.

    Args:
        path: of the file with the weights; None: timm's pretrained ones.

    Returns:
        A SHA-256 of them.

    Raises:
        InputError: they are out of reach, or do not fit; the message names the tensor.
    """
    source = _timm_model(config, path is None, _kept_classes(config), batches.info.in_channels)
    if path is not None:
        load_checkpoint(source, path, f"teacher {config.name}")
    digest = state_digest(source) if path is None else file_digest(path)
    _resize(source, config, shown_size(config, batches.image_size))
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


def identity(config: TeacherConfig) -> dict[str, object]:
    """What a teacher's network depends on beside the data, as JSON.

    Raises:
        InputError: there is no such network.
    """
    plugin = find_plugin(config)
    found: dict[str, object] = {"name": config.name, "options": config.options}
    if plugin is not None:
        found["plugin"] = plugin.identity()
    if config.adapt != "none":  # the data says the proportions: the size for squares is enough here
        found |= {"adapt": config.adapt, "image_size": shown_size(config, 1)}
    return found


def pretrained_source(config: TeacherConfig) -> dict[str, str | None]:
    """Which pretrained weights a name stands for, of timm's or of a plug-in.

    Raises:
        InputError: timm has none, or none of that tag.
    """
    plugin = find_plugin(config)
    if plugin is not None:
        return {**plugin.identity()}
    known = _known_to_timm(config)
    if known is None or not known.has_weights:
        raise InputError(
            f"teacher {config.name}: timm has no pretrained weights for it; set weights to train "
            "or to a checkpoint"
        )
    return {name: getattr(known, name) for name in ("architecture", "tag", "hf_hub_id", "url")}


def check_size(model: nn.Module, config: TeacherConfig, batches: Batches) -> None:
    """Make sure that a network takes images of the data's size, before anything long begins.

    Raises:
        InputError: it does not, or gives no logits for the data's classes.
    """
    option = " or, where it has such an option, set teacher.options.img_size"
    option *= isinstance(batches.image_size, int)
    logits = _answer_to_one(
        model, config, batches, batches.image_size, f"choose another one{option}"
    )
    if not isinstance(logits, Tensor) or logits.shape != (1, batches.info.num_classes):
        raise InputError(
            f"teacher {config.name}: has to give logits of shape [1, {batches.info.num_classes}] "
            f"for an image of the data, not {_shape_of(logits)}"
        )


def load_weights(model: nn.Module, path: Path, name: str) -> None:
    """Put the weights in a file, of torch or safetensors, into a teacher's network.

    Raises:
        InputError: the file holds something else, or weights for other classes or channels.
    """
    where = f"teacher {name}"
    state, wanted = read_checkpoint(path, where), model.state_dict()
    for kind, axis, message in (  # what most often differs; anything else is told by torch
        ("classifier", 0, "knows {} classes, the data has {}"),
        ("first_conv", 1, "is for images of {} channels, the data has {}"),
    ):
        for layer in described_modules(model, kind):
            found, own = state.get(f"{layer}.weight"), wanted.get(f"{layer}.weight")
            if not isinstance(found, Tensor) or own is None or found.ndim != own.ndim:
                continue
            sizes = found.shape[axis], own.shape[axis]
            if sizes[0] != sizes[1]:
                raise InputError(f"{where}: {path} {message.format(*sizes)}")
    try:
        model.load_state_dict(state)
    except Exception as error:  # torch raises its own kinds
        raise InputError(f"{where}: {path} does not fit ({in_one_line(error)})") from error


def state_digest(model: nn.Module) -> str:
    """A SHA-256 over the names and values of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
