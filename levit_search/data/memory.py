"""From sources to arrays at one size."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from levit_search.data.pictures import Arrays, Faults
from levit_search.data.sources import ArraySource, Mode, Source, UnreadableError, decode

if TYPE_CHECKING:
    from PIL import Image

_VALUES_AT_ONCE = 2**22  # of arrays that are scaled, in floating point


def held(
    source: Source, indices: NDArray[np.int64], mode: Mode, size: int, faults: Faults
) -> Arrays:
    """The images of a source at ``size`` x ``size``, without the unreadable ones.

    Raises:
        InputError: more images are unreadable than ``faults`` allows.
    """
    labels = source.labels[indices]
    if isinstance(source, ArraySource):
        is_scaled = source.images.shape[-2:] != (size, size)
        return Arrays(resized(source.images[indices], size), labels, scaled_as_floats=is_scaled)
    images = np.empty((len(indices), 1 if mode == "L" else 3, size, size), np.uint8)

    def read(position: int) -> str | None:
        try:
            images[position] = squared(decode(source, int(indices[position]), mode), size)
        except UnreadableError as error:
            return str(error)
        return None

    readable = np.ones(len(indices), bool)
    # Pillow decodes and scales without Python's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for position, reason in enumerate(threads.map(read, range(len(indices)))):
            if reason is not None:
                readable[position] = False
                faults.add(source.where(int(indices[position])), reason)
    return Arrays(images, labels) if readable.all() else Arrays(images[readable], labels[readable])


def squared(picture: "Image.Image", size: int) -> NDArray[np.uint8]:
    """The middle square of a picture scaled to uint8 [C, size, size], bicubic and antialiased.

    The shorter side becomes ``size``; what is cut away is never scaled.
    """
    from PIL import Image

    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if (width, height) != (size, size):
        box = (left, top, left + side, top + side)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def resized(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """uint8 images [N, C, H, W] at ``size`` x ``size``, still uint8."""
    if images.shape[-2:] == (size, size):
        return images
    import torch
    import torch.nn.functional as F

    result = np.empty((*images.shape[:2], size, size), np.uint8)
    at_once = max(1, _VALUES_AT_ONCE // max(result[0].size, images[0].size))
    for first in range(0, len(images), at_once):
        part = torch.from_numpy(images[first : first + at_once]).float()
        scaled = F.interpolate(part, (size, size), mode="bicubic", antialias=True)
        result[first : first + at_once] = scaled.round().clamp(0, 255).to(torch.uint8).numpy()
    return result
