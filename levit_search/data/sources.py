"""What a data set is: its configuration, the protocol of all of them, pictures one at a time."""

import os
import stat
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BeforeValidator, Field, ValidatorFunctionWrapHandler, field_validator

from levit_search import plugins
from levit_search.configuration import Count, Frozen
from levit_search.data.decoding import MOST_BYTES, Decoding, decoded, middle, opened
from levit_search.errors import InputError, did_you_mean, first_line
from levit_search.image_size import ImageSize, Sides, sides, size_text

_GENERATED = (
    "generated",
    *(f"generated/{k}" for k in ("contours", "crops", "fractals", "textures")),
)
BUILT_IN = ("digits", "fashion-mnist", "folder", *_GENERATED)
_TORCH_SETS = (
    *("cifar10", "cifar100", "fashion_mnist", "image_folder", "imagenet", "inaturalist"),
    *("kmnist", "mnist", "places365"),
)
_NAMES = (*BUILT_IN, *(f"torch/{name}" for name in _TORCH_SETS))
_READERS = ("hfds", "hfids", "wds", "tfds")  # of which any name is known

SplitText = Annotated[str, Field(min_length=1)]

_GROUNDS = {"white": 255, "grey": 128, "black": 0}


def _ground(given: Any) -> Any:
    if isinstance(given, str) and given not in _GROUNDS:
        raise ValueError(f"{given!r} is none; expected {', '.join(_GROUNDS)} or 0 to 255")
    return _GROUNDS[given] if isinstance(given, str) else given


Ground = Annotated[int, Field(strict=True, ge=0, le=255), BeforeValidator(_ground)]
Range = tuple[float, float]
SMALLEST, LARGEST = 4, 4096  # pixels a side that networks are made for


class DataConfig(Frozen):
    """Which images, at which size.

    ``name`` is ``digits``, ``fashion-mnist``, ``folder`` (``root`` has ``train/`` and ``val/``,
    each with a folder of images for each class) or what timm's ``create_dataset`` reads:
    torchvision's as ``torch/cifar10``, Hugging Face's as ``hfds/NAME`` (on disk) or ``hfids/NAME``
    (a stream), ``wds/NAME`` (tar shards in ``root``) and ``tfds/NAME``. ``train_split`` and
    ``test_split`` name such a set's splits where they are not called train, validation or test.
    ``generated``, or one of its kinds such as ``generated/contours``, are pictures made by formulas
    to pretrain on; see :mod:`levit_search.data.generated`. Other names are those of
    :mod:`levit_search.plugins`.

    ``image_size`` is what every image is brought to, by scaling its middle: the side of a square,
    or ``[height, width]``; null is the data's own, as :func:`levit_search.data.describe` gives it.

    ``val_share`` is the part of the training images that becomes ``val`` where a set brings no
    validation and test split of its own; ``train_images`` bounds how many of the rest are fitted on
    (a stratified choice), for searches that need not see all.

    Images are held in memory if all of them take no more than ``memory_limit_mb`` (of 10**6
    bytes) at ``image_size``, or as ``in_memory`` says; training takes up to three times that. In
    memory they are normalised by their own colours and evaluated whole, on disk by ImageNet's
    and, from 128 px on (the shorter side), by their middle (0.875 of a side), so that figures of
    the two are not the same. At most ``max_unreadable`` of them may be unreadable.

    The rest is found by looking at the pictures, see :mod:`levit_search.data.survey`, where it is
    not given: ``in_channels`` (1 is grey), the ``ground`` on which transparent pictures are laid
    (``white``, ``grey``, ``black`` or 0 to 255), the values that become black and white in pictures
    of 16-bit and other whole numbers (``integer_range``) and of floating-point ones
    (``float_range``), and ``hflip``, whether mirrored pictures are of their class. ``fingerprint``
    is of the pictures that a study was made for; others are refused.
    """

    name: str = "digits"
    root: str | None = None
    image_size: ImageSize | None = None
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    train_images: Count | None = None
    in_memory: bool | None = None
    memory_limit_mb: Count = 1024
    max_unreadable: Annotated[int, Field(strict=True, ge=0, le=10**9)] = 10
    train_split: SplitText | None = None
    test_split: SplitText | None = None
    in_channels: Literal[1, 3] | None = None
    ground: Ground | None = None
    integer_range: Range | None = None
    float_range: Range | None = None
    hflip: bool | None = None
    fingerprint: str | None = None

    @field_validator("image_size")
    @classmethod
    def _check_size(cls, size: int | Sides | None) -> int | Sides | None:
        if size is not None and not all(SMALLEST <= side <= LARGEST for side in sides(size)):
            raise ValueError(
                f"{size_text(size)} px is out of reach; expected sides of {SMALLEST} to {LARGEST}"
            )
        return size

    @field_validator("integer_range", "float_range", mode="wrap")
    @classmethod
    def _check_range(cls, given: Any, read: ValidatorFunctionWrapHandler) -> Range | None:
        if given is None:
            return None
        is_pair = isinstance(given, list | tuple) and len(given) == 2
        values: Range | None = read(given) if is_pair else None
        if values is None or not (values[0] < values[1] and values[1] - values[0] < 1e300):
            found = given if values is None else list(values)
            raise ValueError(f"{found!r} is none; expected [value of black, value of white]")
        return values

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        reader, _, rest = name.partition("/")
        if name in _NAMES or (reader in _READERS and rest):
            return name
        plugged = plugins.installed("levit_search.data")
        if name in plugged:
            return name
        known = [*_NAMES, *(f"{reader}/NAME" for reader in _READERS), *plugged]
        raise ValueError(f"unknown data set {name!r}; {did_you_mean(name, known)}")

    @property
    def reader(self) -> str:
        """The name's part before the slash, or all of it."""
        return self.name.partition("/")[0]

    @property
    def is_looked_at(self) -> bool:
        """Whether it says all that a look at the pictures would find."""
        return None not in (self.image_size, self.in_channels, self.hflip, self.fingerprint)

    @property
    def decoding(self) -> Decoding:
        """How its pictures are decoded, of a configuration whose pictures were looked at."""
        usual = Decoding("L" if self.in_channels == 1 else "RGB")
        ground = usual.ground if self.ground is None else self.ground
        integers = self.integer_range or usual.integers
        return Decoding(usual.mode, ground, integers, self.float_range or usual.floats)

    @property
    def size(self) -> int | Sides:
        """Of the images in pixels: the side of squares, or (height, width); where it is stated."""
        assert self.image_size is not None, "image_size is to be resolved first"
        return self.image_size


SplitName = Literal["train", "val", "test"]

LISTED = 20  # unreadable images that a message names


class DataInfo(NamedTuple):
    """What a network must know of a data set."""

    in_channels: int
    """1 where images are grey, 3 otherwise."""
    class_names: tuple[str, ...]
    hflip: bool
    """Whether a mirrored image still is of its class (digits are not)."""
    image_size: int | Sides
    """The data's own size: the side of its squares, or of squares near to what it holds; (height,
    width) where a data set says so itself."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class UnreadableError(Exception):
    """An image that cannot be decoded; the message is the reason alone."""


class Source(Protocol):
    """Labelled images by index, in an order that is always the same; it can be pickled."""

    labels: NDArray[np.int64]

    def name(self, index: int) -> str:
        """What a person finds the image by; it does not depend on where the set lies."""

    def where(self, index: int) -> str:
        """The same for messages: with its place."""

    def open(self, index: int) -> Image.Image:
        """The picture, not necessarily decoded yet; raises what its reader does."""

    def content(self, index: int) -> bytes:
        """The image as it is stored, compressed or not; raises OSError where it is missing."""

    def sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes that the images take, compressed as they are; 0 for one that is missing."""


@dataclass(eq=False)
class ArraySource:
    """Images held as uint8 [N, C, H, W] with C of 1 or 3."""

    title: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    where = name

    def open(self, index: int) -> Image.Image:
        pixels = self.images[index]
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))

    def content(self, index: int) -> bytes:
        content: bytes = self.images[index].tobytes()
        return content

    def sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.full(len(indices), self.images[0].size, dtype=np.int64)


class EncodedSource:
    """Images that are kept as files of any format, whether or not each is a file of its own."""

    labels: NDArray[np.int64]

    @abstractmethod
    def content(self, index: int) -> bytes: ...

    def open(self, index: int) -> Image.Image:
        return opened(self.content(index))


class FileSource(EncodedSource):
    """Image files below ``root``, named by their paths relative to it."""

    def __init__(self, root: Path, names: list[str], labels: NDArray[np.int64]) -> None:
        # Text, since making paths of many takes longer than asking for their sizes.
        self._root, self._names, self.labels = str(root).rstrip("/"), names, labels

    def name(self, index: int) -> str:
        return self._names[index]

    def where(self, index: int) -> str:
        return f"{self._root}/{self._names[index]}"

    def content(self, index: int) -> bytes:
        path = Path(self.where(index))
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        if found.st_size > MOST_BYTES:
            raise OSError(f"{found.st_size} bytes, more than {MOST_BYTES}")
        return path.read_bytes()

    def stamp(self, index: int) -> tuple[int, int, int]:
        """A file's size in bytes and when its content and its entry were changed; 0 if missing.

        In nanoseconds. A program may set the first of the times back, but not the second.
        """
        try:
            found = os.stat(self.where(index))  # noqa: PTH116
        except OSError:
            return 0, 0, 0
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([self.stamp(int(index))[0] for index in indices], dtype=np.int64)


class DataSet(Protocol):
    """What an entry point of ``levit_search.data`` gives when it is called with a ``DataConfig``.

    Ours are made alike. It is called whenever the data is looked at, in the driver of a search and
    in each worker, so that reading belongs into :meth:`sources`. ``root``, ``train_split`` and
    ``test_split`` of the configuration are the data set's to interpret; sizes, cuts and memory are
    seen to elsewhere. A user's mistake is told by raising ``levit_search.errors.InputError``.

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

    def describe(self) -> DataInfo | tuple[str, ...]:
        """Channels (1 or 3), at least two classes, whether mirrored images keep theirs, the size.

        The names of the classes alone where the rest is to be found by looking at the pictures,
        see :func:`levit_search.data.survey_of`. Needs no more than a look at the data, and no
        torch: a search's driver asks too.
        """

    def sources(self) -> Mapping[SplitName, Source]:
        """Labelled images: ``train``, and ``val`` and ``test`` where the set has such parts.

        Where it has none, they are cut from ``train`` by class, always alike. Labels are int64 [N],
        indices into the classes. Arrays have the described channels, and are squares or of the
        described size.
        """


class OpenedSet(DataSet):
    """One of our data sets, or a plug-in's behind :class:`levit_search.data.sets.PlugIn`.

    Attributes:
        left_out: how many files were passed over by :meth:`sources` as no pictures, by their
            ending in small letters, or by what they are.
        faults: pictures that :meth:`sources` could not read, where it reads them.
    """

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self.left_out: Counter[str] = Counter()
        self.faults = Faults(config.max_unreadable)

    def stored_pictures(self) -> Iterator[tuple[SplitName, Any, Image.Image]] | None:
        """Each picture as it is stored, with its split and label; None unless it is a stream."""
        return None


def decode(source: Source, index: int, how: Decoding) -> Image.Image:
    """An image of a source as ``how`` says.

    Raises:
        UnreadableError: it is no image, damaged, missing, or of more pixels than Pillow allows.
    """
    with unreadable():
        return decoded(source.open(index), how)


@contextmanager
def unreadable() -> Iterator[None]:
    """Raise what Pillow says of something that is no picture as UnreadableError, in one line."""
    try:
        yield
    except FileNotFoundError:
        raise UnreadableError("no such file") from None
    except MemoryError:
        raise
    except Exception as error:  # what readers of pictures raise at damaged ones has no end
        reason = first_line(error)
        raise UnreadableError("not an image" if "cannot identify" in reason else reason) from None


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep Pillow's warnings of single files from the user; around threads, not within them.

    What matters of them is an error too: a picture that is read all the same needs no word.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


@contextmanager
def decoding_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads to decode pictures with: Pillow decodes and scales without Python's lock."""
    with without_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        yield threads


class Faults:
    """The unreadable images met so far, each counted once, and how many there may be."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, where: str, reason: str) -> bool:
        """Count an image; False if it was counted before. More than the limit are an InputError."""
        if where in self._reasons:
            return False
        self._reasons[where] = reason
        if len(self._reasons) > self.limit:
            raise too_many_unreadable(self.limit, self._reasons, len(self._reasons))
        return True

    def __str__(self) -> str:
        return _listed(self._reasons, len(self._reasons))


def too_many_unreadable(limit: int, reasons: Mapping[str, str], count: int) -> InputError:
    """The error that of ``count`` unreadable images, of which some are given, ``limit`` may be."""
    return InputError(
        f"data.max_unreadable: more than {limit} images are unreadable: {_listed(reasons, count)}"
    )


def _listed(reasons: Mapping[str, str], count: int) -> str:
    listed = [f"{where} ({reason})" for where, reason in islice(reasons.items(), LISTED)]
    more = count - len(listed)
    return ", ".join(listed) + (f" and {more} more" if more > 0 else "")


def center_cropped(
    picture: Image.Image, size: int | Sides, as_floats: bool = False
) -> NDArray[np.uint8]:
    """The middle of a picture scaled to uint8 [C, H, W], bicubic and antialiased.

    That is the largest part in the proportions of ``size`` (a side, or height and width), which
    reaches two opposite edges; what is cut away is never scaled. ``as_floats`` has numbers rounded
    once, at the end, and not after each axis.
    """
    height, width = sides(size)
    if picture.size != (width, height):
        box = middle(picture.size, (width, height))
        channels = [each.convert("F") for each in picture.split()] if as_floats else [picture]
        scaled = [c.resize((width, height), Image.Resampling.BICUBIC, box=box) for c in channels]
        if as_floats:
            return np.stack([np.asarray(c) for c in scaled]).round().clip(0, 255).astype(np.uint8)
        picture = scaled[0]
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
