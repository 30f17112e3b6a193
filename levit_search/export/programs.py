"""The optional files of an export: for OpenVINO, and for torch without a line of Python."""

import sys
from pathlib import Path

import torch

from levit_search.errors import InputError
from levit_search.image_size import image_shape
from levit_search.model import Model, fold


def write_openvino(onnx_path: Path, out_xml: Path) -> None:
    """Write an ONNX graph as OpenVINO's, in single precision, with its weights beside it.

    Input, output, the number of images and the metadata stay those of the ONNX graph; the latter
    are runtime information under ``model_info``.

    Args:
        onnx_path: as :func:`levit_search.export.onnx_file.write_onnx` writes it.
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
    network = model.architecture
    # Of one image the exporter would conclude that there is never another number of them.
    images = torch.zeros(2, *image_shape(network))
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(
            fold(model).cpu(), (images,), dynamic_shapes={"images": {0: batch}}
        )
    torch.export.save(program, out_pt2)
