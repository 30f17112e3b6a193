"""Data sets that other distributions plug in; see :mod:`levit_search.plugins`."""

from collections.abc import Mapping
from typing import Any, Protocol, get_args

import numpy as np

from levit_search import plugins
from levit_search.data.config import DataConfig
from levit_search.data.sources import ArraySource, Source
from levit_search.data.splits import DataInfo, SplitName
from levit_search.errors import InputError, did_you_mean
from levit_search.plugins import Plugin

_ASKED = ("name", "where", "open", "content", "sizes")  # of a source


class DataSet(Protocol):
    """What an entry point of ``levit_search.data`` gives when it is called with a ``DataConfig``.

    It is called whenever the data is looked at, in the driver of a search and in each worker, so
    that reading belongs into :meth:`sources`. ``root``, ``train_split`` and ``test_split`` of the
    configuration are the data set's to interpret; sizes, cuts and memory are seen to elsewhere.
    A user's mistake is told by raising ``levit_search.errors.InputError``.

        class Spirals:
            def __init__(self, config: DataConfig) -> None:
                self._folder = Path(config.root or "~/spirals").expanduser()

            def describe(self) -> DataInfo:
                return DataInfo(1, ("left", "right"), hflip=False, image_size=32)

            def sources(self) -> dict[str, Source]:
                images = np.load(self._folder / "images.npy")  # uint8 [N, 1, 32, 32]
                labels = np.load(self._folder / "labels.npy").astype(np.int64)
                return {"train": ArraySource("spirals", images, labels)}

    Images on disk are a ``FileSource(folder, names, labels)``, or a :class:`Source` of its own.
    """

    def describe(self) -> DataInfo:
        """Channels (1 or 3), at least two classes, whether mirrored images keep theirs, the size.

        Needs no more than a look at the data, and no torch: a search's driver asks too.
        """

    def sources(self) -> Mapping[SplitName, Source]:
        """Labelled images: ``train``, and ``val`` and ``test`` where the set has such parts.

        Where it has none, they are cut from ``train`` by class, always alike. Labels are int64 [N],
        indices into the classes. Arrays have the described channels and are square.
        """


def describe_plugged(config: DataConfig) -> DataInfo:
    """What a plugged-in data set says of itself.

    Raises:
        InputError: it cannot be loaded, fails, or describes no data set.
    """
    plugin = _plugin(config)
    data_set = _made(plugin, config)
    with plugin.explained("describe() fails"):
        info: object = data_set.describe()
    if not isinstance(info, DataInfo):
        raise plugin.wrong("describe() has to return a DataInfo", info)
    return _checked(plugin, info)


def plugged_sources(config: DataConfig, info: DataInfo) -> dict[SplitName, Source]:
    """The images that a plugged-in data set brings.

    Raises:
        InputError: as :func:`describe_plugged`, or they are not as described.
    """
    plugin = _plugin(config)
    data_set = _made(plugin, config)
    with plugin.explained("sources() fails"):
        sources: object = data_set.sources()
    if not isinstance(sources, Mapping):
        raise plugin.wrong("sources() has to return a mapping of splits", sources)
    known = get_args(SplitName)
    for name in sources:
        if name not in known:
            raise InputError(f"{plugin}: unknown split {name!r}; {did_you_mean(str(name), known)}")
    if "train" not in sources:
        raise plugin.wrong("sources() has to have train", list(sources))
    for name, source in sources.items():
        _check_source(plugin, name, source, info)
    return dict(sources)


def _plugin(config: DataConfig) -> Plugin:
    found = plugins.installed("levit_search.data").get(config.name)
    if found is None:  # it was there when the configuration was read
        raise InputError(f"data.name: the plug-in that brought {config.name!r} is gone")
    return found


def _made(plugin: Plugin, config: DataConfig) -> DataSet:
    make = plugin.load_callable()
    with plugin.explained("cannot be opened"):
        data_set: DataSet = make(config)
    if not all(callable(getattr(data_set, name, None)) for name in ("describe", "sources")):
        raise plugin.wrong("expected a data set with describe() and sources()", data_set)
    return data_set


def _checked(plugin: Plugin, info: DataInfo) -> DataInfo:
    names: Any = info.class_names
    are_texts = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not are_texts or len(names) < 2 or len(set(names)) < len(names):
        raise plugin.wrong("class_names: expected two texts or more that differ", names)
    if type(info.in_channels) is not int or info.in_channels not in (1, 3):
        raise plugin.wrong("in_channels: expected 1 or 3", info.in_channels)
    if type(info.hflip) is not bool:
        raise plugin.wrong("hflip: expected True or False", info.hflip)
    if type(info.image_size) is not int or not 4 <= info.image_size <= 4096:
        raise plugin.wrong("image_size: expected 4 to 4096 pixels", info.image_size)
    return info._replace(class_names=tuple(names))


def _check_source(plugin: Plugin, name: str, source: Source, info: DataInfo) -> None:
    labels = getattr(source, "labels", None)
    if not all(callable(getattr(source, each, None)) for each in _ASKED) or labels is None:
        raise plugin.wrong(f"{name}: expected labels, {', '.join(_ASKED)} of a Source", source)
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64 or labels.ndim != 1:
        found = _kind(labels)
        raise InputError(f"{plugin}: {name}: labels have to be int64 [N], not {found}")
    if not len(labels):
        raise InputError(f"{plugin}: {name}: has no images")
    if labels.min() < 0 or labels.max() >= info.num_classes:
        outside = labels.min() if labels.min() < 0 else labels.max()
        raise InputError(
            f"{plugin}: {name}: label {outside}, but the classes are 0 to {info.num_classes - 1}"
        )
    if isinstance(source, ArraySource):
        shape = getattr(source.images, "shape", ())
        square = (len(labels), info.in_channels, *shape[-1:], *shape[-1:])
        if getattr(source.images, "dtype", None) != np.uint8 or shape != square:
            wanted = f"uint8 [{len(labels)}, {info.in_channels}, S, S]"
            found = _kind(source.images)
            raise InputError(f"{plugin}: {name}: images have to be {wanted}, not {found}")


def _kind(values: object) -> str:
    if isinstance(values, np.ndarray):
        return f"{values.dtype} {list(values.shape)}"
    return f"a {type(values).__name__}"
