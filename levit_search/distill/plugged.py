"""Teachers that other distributions plug in; see :mod:`levit_search.plugins`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from levit_search import plugins
from levit_search.errors import InputError
from levit_search.image_size import Sides
from levit_search.plugins import Plugin
from levit_search.recipe import TeacherConfig


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


def names() -> list[str]:
    """The names that are plugged in."""
    return list(plugins.installed("levit_search.teachers"))


def find(name: str) -> Plugin | None:
    """The plug-in of a name that is none of timm's, None where there is no such plug-in."""
    return plugins.installed("levit_search.teachers").get(name)


def create_plugged(
    plugin: Plugin,
    config: TeacherConfig,
    num_classes: int,
    in_channels: int,
    image_size: int | Sides,
) -> nn.Module:
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
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            **weights,
            **config.options,
        )
    if not isinstance(model, nn.Module):
        raise plugin.wrong("expected a torch.nn.Module", model)
    if is_pretrained:
        _check_colors(plugin, model, in_channels)
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
