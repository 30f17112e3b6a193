"""How an image becomes a network's input, as a document that other programs can follow.

The keys are those that ``predict.py`` follows, which is the reference for what they mean:

``data``
    The data set that the network was trained on, by its name in the study.
``mode``
    ``RGB``, or ``L`` for one channel, which a picture is converted to, after it was turned upright
    as its EXIF data says.
``ground``
    The grey, from 0 to 255, on which transparent pictures are laid.
``integer_range``, ``float_range``
    The values that become 0 and 255 in pictures of whole numbers of more than 8 bits, and of
    floating-point numbers.
``fit``
    ``square-then-resize``: the middle square is scaled to ``image_size``.
    ``crop-then-resize``: of a rectangular ``image_size``, the largest middle part in its
    proportions is scaled to it.
    ``resize-then-crop``: the shorter side is scaled to ``resize``, the longer one in proportion and
    rounded down, and the middle of ``image_size`` is cut out. Where ``resize`` is a list of rows
    and columns, the picture is scaled in proportion to cover both, its sides rounded to the nearest
    whole number.
``image_size``
    Of the input: the side of a square, or a list of rows and columns.
``interpolation``
    ``bicubic``, antialiased, as Pillow does it; in whole numbers, or where ``scaled_as`` says
    ``floats`` in floating point, rounded once at the end.
``mean``, ``std``
    By channel, of values from 0 to 1: what pixels / 255 are normalised by.
``layout``, ``dtype``
    Of the input: ``NCHW`` (images, channels, rows, columns), ``float32``.
``class_names``
    In the order of the logits.
"""

import math
from typing import Any

from levit_search.batches import Batches
from levit_search.batches.batch import MemoryBatches
from levit_search.batches.on_disk import shown_share
from levit_search.data import DataConfig
from levit_search.image_size import canonical_size, plain_size, sides


def preprocessing(config: DataConfig, batches: Batches) -> dict[str, Any]:
    """What evaluation does to an image of a data set, for JSON; its keys are explained above.

    Args:
        config: the data set's.
        batches: its images, as networks are shown them.
    """
    size, info = batches.image_size, batches.info
    decoding = config.model_copy(update={"in_channels": info.in_channels}).decoding
    if isinstance(batches, MemoryBatches):
        is_square = isinstance(size, int)
        fit: dict[str, Any] = {"fit": f"{'square' if is_square else 'crop'}-then-resize"}
        scaled_as = "floats" if batches.scaled_as_floats else "whole numbers"
    else:
        # timm rounds the sides before the crop down.
        resize = canonical_size([math.floor(side / shown_share(size)) for side in sides(size)])
        fit = {"fit": "resize-then-crop", "resize": plain_size(resize)}
        scaled_as = "whole numbers"
    return {
        "data": config.name,
        "mode": decoding.mode,
        "ground": decoding.ground,
        "integer_range": list(decoding.integers),
        "float_range": list(decoding.floats),
        "image_size": plain_size(size),
        **fit,
        "interpolation": "bicubic",
        "scaled_as": scaled_as,
        "mean": [value / 255 for value in batches.mean],
        "std": [value / 255 for value in batches.std],
        "layout": "NCHW",
        "dtype": "float32",
        "class_names": list(info.class_names),
    }
