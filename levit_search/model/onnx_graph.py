"""A network as an ONNX graph for probes and export."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from levit_search.model.build import Model
from levit_search.model.folding import fold

OPSET = 17


def export_onnx(model: Model, path: Path, batch_size: int) -> None:
    """Write ``model``, batch norms folded, as ONNX with input ``images`` and output ``logits``.

    Args:
        model: the network, in the layout that the graph shall have; it is not changed.
        path: the file to write.
        batch_size: images in one run, fixed in the graph.
    """
    network = model.architecture
    size = network.image_size
    images = torch.zeros(batch_size, network.in_channels, size, size)
    write_graph(fold(model).cpu(), {"images": images}, "logits", path)


def write_graph(module: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
    """Write any module in evaluation mode as ONNX.

    Args:
        module: takes the inputs by position and gives one tensor.
        inputs: examples by name; their shapes are fixed in the graph.
        output: the name of what comes out.
        path: the file to write.
    """
    with warnings.catch_warnings(), torch.no_grad():
        # The tracing exporter takes half a second where the newer one takes many; torch says so
        # of it in deprecation warnings, and that shapes are traced as the constants they are.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=[output],
        )
