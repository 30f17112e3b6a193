"""Sizes of images: one number for a square, ``[height, width]`` for a rectangle.

Rows come first, as in tensors [B, C, H, W]. A square has one spelling, its number: ``[64, 64]`` is
read as 64, so that it has one id.
"""

from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag

from levit_search.configuration import SIZE_TAGS, Count
from levit_search.errors import InputError

Sides = tuple[int, int]
"""Rows and columns, of pixels (height, width) or of tokens."""


def sides(size: int | Sides) -> Sides:
    """A size as rows and columns, a square's number twice."""
    return (size, size) if isinstance(size, int) else size


def compact(rows: int, columns: int) -> int | Sides:
    """Rows and columns as they are written: one number where they are equal."""
    return rows if rows == columns else (rows, columns)


def size_text(size: Any) -> str:
    """A size within a message, rows first: ``64`` or ``64x96``."""
    size = canonical_size(size)
    return f"{size[0]}x{size[1]}" if isinstance(size, tuple) else str(size)


def canonical_size(size: Any) -> Any:
    """A size in its one spelling, such as 64 of ``[64, 64]``; what is none stays as it is."""
    is_pair = isinstance(size, list | tuple) and len(size) == 2
    return compact(*size) if is_pair else size


def plain_size(size: int | Sides) -> int | list[int]:
    """A size as JSON has it."""
    return size if isinstance(size, int) else list(size)


def read_size(text: str, where: str) -> int | Sides:
    """A size as it is given on a command line: ``64`` or, rows first, ``64x96``.

    Raises:
        InputError: it is something else.
    """
    parts = text.split("x")
    if len(parts) > 2 or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
        raise InputError(f"{where}: expected pixels, or HxW such as 64x96, not {text!r}")
    return compact(int(parts[0]), int(parts[-1]))


class HasImages(Protocol):
    """A network, of whichever family or of timm."""

    @property
    def image_size(self) -> int | Sides: ...
    @property
    def in_channels(self) -> int: ...


def image_shape(network: HasImages) -> tuple[int, int, int]:
    """Channels, height and width of the images that a network takes."""
    return (network.in_channels, *sides(network.image_size))


def _shaped(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, list | tuple) and len(value) != 2):
        raise ValueError(f"expected one number or [rows, columns], not {value!r}")
    return value


ImageSize = Annotated[
    Annotated[Count, Tag(SIZE_TAGS[0])] | Annotated[tuple[Count, Count], Tag(SIZE_TAGS[1])],
    Discriminator(lambda value: SIZE_TAGS[isinstance(value, list | tuple)]),
    BeforeValidator(_shaped),
    AfterValidator(canonical_size),
]
"""A field of a configuration that holds a size of images, or of grids of tokens."""
