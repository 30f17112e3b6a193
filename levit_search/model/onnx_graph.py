"""A network as an ONNX graph for probes and export."""

import warnings
from pathlib import Path

import torch

from levit_search.model.folding import fold
from levit_search.model.levit import LevitModel

OPSET = 17


def export_onnx(model: LevitModel, path: Path, batch_size: int) -> None:
    """Write ``model``, batch norms folded, as ONNX with input ``images`` and output ``logits``.

    Args:
        model: the network; it is not changed.
        path: the file to write.
        batch_size: images in one run, fixed in the graph.
    """
    architecture = model.architecture
    size = architecture.image_size
    images = torch.zeros(batch_size, architecture.in_channels, size, size)
    with warnings.catch_warnings():
        # The tracing exporter takes half a second where the newer one takes many; torch says so
        # of it in deprecation warnings, and that shapes are traced as the constants they are.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            fold(model).cpu(),
            (images,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
        )
