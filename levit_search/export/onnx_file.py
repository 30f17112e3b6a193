"""The ONNX file of an export: any number of images at once, and all that is needed to use it.

Its metadata are texts under these keys:

``preprocessing``
    JSON: how an image becomes the input; see :mod:`levit_search.export.preprocess`.
``class_names``
    JSON: a list in the order of the logits. Both are plain ASCII, so that any name survives.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from levit_search.model import Model, export_onnx


def write_onnx(
    model: Model, path: Path, preprocessing: Mapping[str, Any], more: Mapping[str, str]
) -> None:
    """Write a network from ``images`` [batch, C, H, W] to ``logits`` [batch, classes].

    Args:
        model: trained; in the layout that the graph shall have.
        path: the file, put in place at once.
        preprocessing: as :func:`levit_search.export.preprocess.preprocessing` gives it.
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
