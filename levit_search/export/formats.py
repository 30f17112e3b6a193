"""What other programs read of an export: preprocessing as JSON, ONNX, OpenVINO, torch programs."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from typing_extensions import NotRequired, TypedDict

from levit_search.batches import Batches
from levit_search.batches.batch import MemoryBatches
from levit_search.batches.on_disk import shown_share
from levit_search.data import DataConfig
from levit_search.errors import InputError
from levit_search.image_size import canonical_size, image_shape, plain_size, sides
from levit_search.model import Model, export_onnx, fold


class Fit(TypedDict):
    """How a picture comes to the size of the input."""

    fit: str
    """``square-then-resize``: the middle square is scaled to ``image_size``.
    ``crop-then-resize``: of a rectangular ``image_size``, the largest middle part in its
    proportions is scaled to it.
    ``resize-then-crop``: the shorter side is scaled to ``resize``, the longer one in proportion and
    rounded down, and the middle of ``image_size`` is cut out. Where ``resize`` has rows and
    columns, the picture is scaled in proportion to cover both, its sides rounded to the nearest
    whole number."""
    resize: NotRequired[int | list[int]]


class Preprocessing(Fit):
    """What evaluation does to an image; ``predict.py`` is the reference for what the keys mean."""

    data: str
    """The data set that the network was trained on, by its name in the study."""
    mode: str
    """``RGB``, or ``L`` for one channel, which a picture is converted to, after it was turned
    upright as its EXIF data says."""
    ground: int
    """The grey, from 0 to 255, on which transparent pictures are laid."""
    integer_range: list[float]
    """The values that become 0 and 255 in pictures of whole numbers of more than 8 bits."""
    float_range: list[float]
    """The same in pictures of floating-point numbers."""
    image_size: int | list[int]
    """Of the input: the side of a square, or rows and columns."""
    interpolation: str
    """``bicubic``, antialiased, as Pillow does it."""
    scaled_as: str
    """``whole numbers``, or ``floats``: in floating point, rounded once at the end."""
    mean: list[float]
    std: list[float]
    """By channel, of values from 0 to 1: what pixels / 255 are normalised by."""
    layout: str
    """Of the input: ``NCHW``, images, channels, rows, columns."""
    dtype: str
    class_names: list[str]
    """In the order of the logits."""


def preprocessing(config: DataConfig, batches: Batches) -> Preprocessing:
    """What evaluation does to an image of a data set, for JSON.

    Args:
        config: the data set's.
        batches: its images, as networks are shown them.
    """
    size, info = batches.image_size, batches.info
    decoding = config.model_copy(update={"in_channels": info.in_channels}).decoding
    scaled_as = "whole numbers"
    if isinstance(batches, MemoryBatches):
        fit = Fit(fit="square-then-resize" if isinstance(size, int) else "crop-then-resize")
        scaled_as = "floats" if batches.scaled_as_floats else scaled_as
    else:
        # timm rounds the sides before the crop down.
        resize = canonical_size([math.floor(side / shown_share(size)) for side in sides(size)])
        fit = Fit(fit="resize-then-crop", resize=plain_size(resize))
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


def write_onnx(
    model: Model, path: Path, preprocessing: Preprocessing, more: Mapping[str, str]
) -> None:
    """Write a network from ``images`` [batch, C, H, W] to ``logits`` [batch, classes] as ONNX.

    Its metadata hold ``preprocessing``, JSON without the class names, and ``class_names``, a JSON
    list in the order of the logits. Both are plain ASCII, so that any name survives.

    Args:
        model: trained; in the layout that the graph shall have.
        path: the file, put in place at once.
        preprocessing: as :func:`preprocessing` gives it.
        more: further metadata.
    """
    described = {key: value for key, value in preprocessing.items() if key != "class_names"}
    metadata = {
        **more,
        "preprocessing": json.dumps(described),
        "class_names": json.dumps(preprocessing["class_names"]),
    }
    partial = path.with_name(f".{path.name}.partial")
    try:
        export_onnx(model, partial, None, metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_openvino(onnx_path: Path, out_xml: Path) -> None:
    """Write an ONNX graph as OpenVINO's, in single precision, with its weights beside it.

    Input, output, the number of images and the metadata stay those of the ONNX graph; the latter
    are runtime information under ``model_info``.

    Args:
        onnx_path: as :func:`write_onnx` writes it.
        out_xml: the file; another ends in ``.bin``.

    Raises:
        InputError: OpenVINO is not installed.
    """
    import onnx

    # It would tell its makers of its use.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        raise InputError(
            "openvino is not installed, which writes its files; pip install 'levit-search[intel]'"
        ) from None
    graph = openvino.Core().read_model(str(onnx_path))
    for entry in onnx.load(onnx_path).metadata_props:
        graph.set_rt_info(entry.value, ["model_info", entry.key])
    openvino.save_model(graph, str(out_xml), compress_to_fp16=False)


def write_torch_export(model: Model, out_pt2: Path) -> None:
    """Write a network, batch norms folded, as a program of ``torch.export``.

    ``torch.export.load(out_pt2).module()`` takes images [B, C, H, W], for any B, and gives logits
    [B, classes]. It needs a torch no older than this one.

    Args:
        model: trained; it is not changed.
        out_pt2: the file.
    """
    # Of one image the exporter would conclude that there is never another number of them.
    images = torch.zeros(2, *image_shape(model.architecture))
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(
            fold(model).cpu(), (images,), dynamic_shapes={"images": {0: batch}}
        )
    torch.export.save(program, out_pt2)
