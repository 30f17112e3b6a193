"""Channels and size of a set, from a look at a few of its images."""

from collections.abc import Iterable, Iterator
from statistics import median_low
from typing import TYPE_CHECKING

from levit_search.data.sources import Source, is_grey, refusals

if TYPE_CHECKING:
    from PIL import Image

LOOKED_AT = 32
_LARGEST, _STEP = 224, 16


def survey(pictures: "Iterable[Image.Image]") -> tuple[int, int] | None:
    """(channels, side in pixels) that suit the pictures looked at, None where there are none.

    One channel if none of them has colours. Squares of one size keep it; for pictures of other
    sizes it is the median of their shorter sides, at most 224, down to a multiple of 16.
    """
    sizes: list[tuple[int, int]] = []
    grey = True
    for picture in pictures:
        sizes.append(picture.size)
        grey = grey and is_grey(picture)
    if not sizes:
        return None
    channels = 1 if grey else 3
    width, height = sizes[0]
    if width == height and set(sizes) == {sizes[0]}:
        return channels, width
    side = min(median_low(min(size) for size in sizes), _LARGEST)
    return channels, side - side % _STEP if side >= _STEP else side


def headers(source: Source, indices: Iterable[int]) -> "Iterator[Image.Image]":
    """Pictures that tell their modes and sizes, not decoded; unreadable ones are left out."""
    for index in indices:
        try:
            yield source.open(index)
        except refusals():
            continue
