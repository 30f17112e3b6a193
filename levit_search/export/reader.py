"""Reads one file of an export as its users would, in a process of its own, and answers images.

    python reader.py KIND FOLDER IMAGES.npy LOGITS.npy

``IMAGES`` holds float32 [B, C, H, W], normalised; ``LOGITS`` is written, float32 [B, classes]. It
is started outside of this package, which none but ``weights`` may import.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = Callable[[Path, Any], Any]
"""From a folder and images to logits, both as arrays."""


def weights(folder: Path, images: Any) -> Any:
    """``architecture.yaml`` and ``model.safetensors``, by this package."""
    from levit_search import architecture
    from levit_search.model import build, load_weights

    network = build(architecture.load(str(folder / "architecture.yaml")))
    load_weights(network, folder / "model.safetensors")
    return _by_torch(network, images)


def module(folder: Path, images: Any) -> Any:
    """``model.py``, as a script beside it would import it."""
    sys.path.insert(0, str(folder))
    from model import load  # type: ignore[import-not-found]

    return _by_torch(load(folder / "model.safetensors"), images)


def timm(folder: Path, images: Any) -> Any:
    """The folder ``timm``, as a checkpoint of timm's own format."""
    import timm

    return _by_torch(timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True), images)


def onnx(folder: Path, images: Any) -> Any:
    """``model.onnx`` in ONNX Runtime, with two sizes of batches."""
    import numpy
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    parts = [images[:1], images[1:]] if len(images) > 1 else [images]
    return numpy.concatenate([session.run(["logits"], {"images": part})[0] for part in parts])


def openvino(folder: Path, images: Any) -> Any:
    """``model.openvino.xml`` in OpenVINO, in single precision."""
    import openvino

    compiled = openvino.Core().compile_model(
        str(folder / "model.openvino.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return compiled(images)[0]


def program(folder: Path, images: Any) -> Any:
    """``model.pt2``, a program of torch.export."""
    import torch

    loaded = torch.export.load(str(folder / "model.pt2")).module()
    with torch.inference_mode():
        return loaded(torch.from_numpy(images)).numpy()


READERS: dict[str, Answer] = {
    "weights": weights,
    "module": module,
    "timm": timm,
    "onnx": onnx,
    "openvino": openvino,
    "program": program,
}


def _by_torch(network: Any, images: Any) -> Any:
    import torch

    with torch.inference_mode():
        return network.eval()(torch.from_numpy(images)).numpy()


def main() -> None:
    import numpy

    kind, folder, images, logits = sys.argv[1:]
    if kind != "weights":
        sys.modules["levit_search"] = None  # type: ignore[assignment]  # importing it fails now
    numpy.save(logits, READERS[kind](Path(folder), numpy.load(images)))


if __name__ == "__main__":
    main()
