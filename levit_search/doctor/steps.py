"""Steps that may take a process down with them, carried out in one of its own.

    python -m levit_search.doctor.steps torch torchvision network

Before and after each step a line of JSON goes to standard output, so that whoever started it knows
which one ended the process, or hangs. Each step is a module to import or one of those below.
"""

import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Where these fail there is no use in trying.
_NEEDS = {
    "torchvision": ("torch",),
    "timm": ("torch", "torchvision"),
    "network": ("torch", "timm"),
    "augmentation": ("torch", "torchvision", "timm"),
    "gpu": ("torch",),
    "graph": ("network",),
    "onnxruntime": ("graph",),
    "openvino": ("graph",),
}


class _Work:
    """What one step leaves for the next."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model: Any = None
        self.images: Any = None
        self.logits: Any = None

    def network(self) -> str:
        """One step of training of a tiny network, and its logits."""
        import torch

        from levit_search import architecture
        from levit_search.model import build

        torch.manual_seed(0)
        self.model = build(architecture.parse(_TINY))
        self.images = torch.randn(2, 1, 16, 16)
        loss = self.model.train()(self.images).square().mean()
        loss.backward()
        if not torch.isfinite(loss):
            raise ValueError(f"its loss is {loss.item()}")
        with torch.no_grad():
            self.logits = self.model.eval()(self.images[:1]).numpy()
        return f"trains and evaluates a network ({torch.get_num_threads()} threads)"

    def augmentation(self) -> str:
        """RandAugment on some pictures, as sets on disk have it."""
        import numpy as np
        from PIL import Image

        from levit_search.batches.on_disk import seeded, training_view
        from levit_search.recipe import Recipe

        view = training_view(Recipe(rand_augment="rand-m9-mstd0.5-inc1"), 16, True, [128] * 3)
        pixels = np.random.default_rng(0).integers(0, 256, (32, 24, 24, 3), dtype=np.uint8)
        with seeded(0):
            for each in pixels:
                view(Image.fromarray(each))
        return "pictures are augmented"

    def gpu(self) -> str:
        """A product of matrices on the GPU, if there is one."""
        import torch

        if not torch.cuda.is_available():
            built = "without CUDA" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"
            return f"none (torch {torch.__version__}, {built})"
        ones = torch.ones(64, 64, device="cuda")
        if (ones @ ones).sum().item() != 64**3:
            raise ValueError("it does not multiply")
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        return f"{torch.cuda.get_device_name(0)}, {memory:.0f} GB, CUDA {torch.version.cuda}"

    def graph(self) -> str:
        """The network as ONNX."""
        from levit_search.model.onnx_graph import export_onnx

        export_onnx(self.model, self.folder / "tiny.onnx", 1)
        return "a network is written as ONNX"

    def onnxruntime(self) -> str:
        """The graph by ONNX Runtime, as a probe has it."""
        return self._runs("onnxruntime")

    def openvino(self) -> str:
        """The graph by OpenVINO, as a probe has it."""
        return self._runs("openvino")

    def _runs(self, name: str) -> str:
        import numpy as np

        from levit_search.latency.worker import RUNTIMES, version

        job = {"threads": 1, "batch_size": 1, "seed": 0}
        runner = RUNTIMES[name](job, {"path": str(self.folder / "tiny.onnx")})
        logits = np.asarray(runner.run())
        if logits.shape != self.logits.shape or not np.isfinite(logits).all():
            raise ValueError(f"its logits are {logits!r}")
        return f"{version(name)} runs a network"


_TINY = {
    "image_size": 16,
    "in_channels": 1,
    "num_classes": 10,
    "stem": {"kind": "conv", "layers": 2},
    "stages": [{"depth": 1, "embed_dim": 16, "num_heads": 2, "key_dim": 8}],
    "distillation": False,
}


def _imported(name: str) -> str:
    found = importlib.import_module(name)
    return str(getattr(found, "__version__", "imports"))


def main() -> None:
    """Carry out the steps in ``sys.argv``."""
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = _Work(Path(folder))
        for name in sys.argv[1:]:
            cause = next((each for each in _NEEDS.get(name, ()) if each in failed), None)
            if cause is not None:
                failed[name] = cause
                told.write(json.dumps({"step": name, "needs": cause}) + "\n")
                continue
            told.write(json.dumps({"step": name}) + "\n")
            begun = time.monotonic()
            step: Callable[[], str] | None = getattr(work, name, None)
            try:
                text, is_ok = (step() if step is not None else _imported(name)), True
            except BaseException as error:
                traceback.print_exc()
                text, is_ok = " ".join(f"{type(error).__name__}: {error}".split())[:300], False
                failed[name] = name
            seconds = round(time.monotonic() - begun, 2)
            line = {"step": name, "ok": is_ok, "text": text, "seconds": seconds}
            told.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
