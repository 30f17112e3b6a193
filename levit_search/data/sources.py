"""Where images come from, one at a time: arrays and files, and how a picture is decoded."""

import io
import stat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Mode = Literal["L", "RGB"]

# What is decoded, whatever a file is called. EPS is none of them: Pillow starts Ghostscript, which
# would run the program that such a picture is.
_FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM"),
    *("PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM"),
)
MOST_BYTES = 1 << 28
"""Of one image as it is stored."""
LONGEST = 100
"""Times its shorter side is the longer one of a picture at most: the shorter one is scaled to a
network's input, and the longer one with it."""

_GREY_MODES = ("1", "L", "LA")  # and those of 16 bits and more


class UnreadableError(Exception):
    """An image that cannot be decoded; the message is the reason alone."""


class Source(Protocol):
    """Labelled images by index, in an order that is always the same; it can be pickled."""

    labels: NDArray[np.int64]

    def name(self, index: int) -> str:
        """What a person finds the image by; it does not depend on where the set lies."""

    def where(self, index: int) -> str:
        """The same for messages: with its place."""

    def open(self, index: int) -> "Image.Image":
        """The picture, not necessarily decoded yet; raises one of :func:`refusals`."""

    def content(self, index: int) -> bytes:
        """The image as it is stored, compressed or not; raises OSError where it is missing."""

    def sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bytes that the images take, compressed as they are; 0 for one that is missing."""


class ArraySource:
    """Images held as uint8 [N, C, H, W] with C of 1 or 3."""

    def __init__(self, title: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.title, self.images, self.labels = title, images, labels

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    where = name

    def open(self, index: int) -> "Image.Image":
        from PIL import Image

        pixels = self.images[index]
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))

    def content(self, index: int) -> bytes:
        content: bytes = self.images[index].tobytes()
        return content

    def sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.full(len(indices), self.images[0].size, dtype=np.int64)


class FileSource:
    """Image files below ``root``, named by their paths relative to it."""

    def __init__(self, root: Path, names: list[str], labels: NDArray[np.int64]) -> None:
        self._root, self._names, self.labels = root, names, labels

    def name(self, index: int) -> str:
        return self._names[index]

    def where(self, index: int) -> str:
        return str(self._root / self._names[index])

    def open(self, index: int) -> "Image.Image":
        # Read at once: Pillow leaves files open that it does not decode to the end.
        return opened(io.BytesIO(self.content(index)))

    def content(self, index: int) -> bytes:
        path = self._root / self._names[index]
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        if found.st_size > MOST_BYTES:
            raise OSError(f"{found.st_size} bytes, more than {MOST_BYTES}")
        return path.read_bytes()

    def sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([file_size(self._root / self._names[i]) for i in indices], dtype=np.int64)


def file_size(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def opened(file: IO[bytes]) -> "Image.Image":
    """A picture out of an image file; raises one of :func:`refusals`.

    More pixels than Pillow warns of are an error, and so is one side of :data:`LONGEST` others.
    """
    from PIL import Image

    picture = Image.open(file, formats=formats())
    pixels = picture.width * picture.height
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{pixels} pixels, more than {Image.MAX_IMAGE_PIXELS}")
    if max(picture.size) > LONGEST * min(picture.size):
        raise ValueError(f"{picture.width} x {picture.height} pixels, too long and thin")
    return picture


def formats() -> list[str]:
    """Those that are decoded, by Pillow's names, as far as this build of Pillow knows them."""
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def keep_from_ghostscript() -> None:
    """Have Pillow refuse EPS where others open pictures with it, in this process from now on."""
    from PIL import EpsImagePlugin

    EpsImagePlugin.gs_binary = False


def decode(source: Source, index: int, mode: Mode) -> "Image.Image":
    """An image of a source, decoded, in ``mode``.

    Raises:
        UnreadableError: it is no image, damaged, missing, or of more pixels than Pillow allows.
    """
    try:
        picture = source.open(index)
        picture.load()
        return converted(picture, mode)
    except FileNotFoundError:
        raise UnreadableError("no such file") from None
    except refusals() as error:
        reason = first_line(error)
        raise UnreadableError("not an image" if "cannot identify" in reason else reason) from None


def refusals() -> tuple[type[Exception], ...]:
    """What Pillow raises at something that is no picture, or too large a one."""
    from PIL import Image

    # RuntimeError is what AVIF and DDS files that are damaged give.
    return OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def converted(picture: "Image.Image", mode: Mode) -> "Image.Image":
    """``picture`` in ``mode``; of 16 bits of grey the upper eight are kept."""
    from PIL import Image

    if picture.mode.startswith("I"):  # Pillow's own conversion would make everything bright white
        grey = np.clip(np.asarray(picture).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        picture = Image.fromarray(grey)
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture if picture.mode == mode else picture.convert(mode)


def is_grey(picture: "Image.Image") -> bool:
    """Whether a picture has no colours."""
    return picture.mode in _GREY_MODES or picture.mode.startswith("I")
