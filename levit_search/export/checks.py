"""Whether what was written is the network that was trained: files read in clean processes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from levit_search.errors import LevitSearchError
from levit_search.export import reader
from levit_search.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

    from levit_search.batches import Batches
    from levit_search.model import Model

IMAGES = 64  # that files are compared on
_LIMIT_S = 600.0  # one file's answer to them


@dataclass(frozen=True)
class Readable:
    """A file, or several that are read together."""

    name: str
    """As people know it."""
    kind: str
    """One of :data:`reader.READERS`, or ``predict``."""
    tolerance: float
    """How far its logits may be from the trained network's."""


READABLE: dict[str, Readable] = {
    each.name: each
    for each in (
        Readable("model.safetensors", "weights", 1e-5),
        Readable("model.py", "module", 1e-5),
        Readable("timm", "timm", 1e-5),
        Readable("model.onnx", "onnx", 1e-4),
        Readable("predict.py", "predict", 1e-4),
        Readable("model.openvino.xml", "openvino", 1e-4),
        Readable("model.pt2", "program", 1e-4),
    )
}


@dataclass(frozen=True)
class Sample:
    """Real images, and what the trained network says of them."""

    images: NDArray[np.float32]
    """[B, C, H, W], normalised."""
    logits: NDArray[np.float32]
    """[B, classes]."""
    stored: "Sequence[bytes | Image.Image]"
    """The same images as they are stored, or as pictures where they are kept in no file."""


def sample_of(model: "Model", batches: "Batches") -> Sample:
    """The first images of the validation split and the answers of a network on the CPU."""
    import torch

    images, _ = next(iter(batches.evaluation("val", IMAGES, torch.device("cpu"))))
    with torch.inference_mode():
        logits = model.eval()(images)
    stored = [batches.stored("val", index) for index in range(len(images))]
    return Sample(images.numpy(), logits.numpy(), stored)


def compared(
    folder: Path, names: Sequence[str], sample: Sample, progress: Progress
) -> dict[str, float]:
    """How far the logits of each file are from the trained network's, at most, by its name.

    Args:
        folder: of the export.
        names: keys of :data:`READABLE`.
        sample: images to compare on.
        progress: told what is being read.

    Raises:
        LevitSearchError: one cannot be read, or is further from it than it may be.
    """
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="levit-search-check-") as place:
        scratch = Path(place)
        # Beside the other modules of this folder it would find them in place of its users' own.
        (scratch / "reader.py").write_bytes(Path(reader.__file__).read_bytes())
        np.save(scratch / "images.npy", sample.images)
        for name in names:
            progress(f"reading {name} in a clean process", None)
            readable = READABLE[name]
            answer = _predicted if readable.kind == "predict" else _read
            logits = answer(folder.absolute(), readable, sample, scratch)
            if logits.shape != sample.logits.shape:
                raise LevitSearchError(
                    f"{name}: gives logits {list(logits.shape)}, the trained network "
                    f"{list(sample.logits.shape)}"
                )
            found[name] = float(np.abs(logits - sample.logits).max())
            if not found[name] <= readable.tolerance:
                raise LevitSearchError(
                    f"{name}: its logits differ from the trained network's by {found[name]:.2g}, "
                    f"more than {readable.tolerance:g}; nothing was written"
                )
    return found


def _read(folder: Path, readable: Readable, sample: Sample, scratch: Path) -> NDArray[np.float32]:
    del sample
    answer = scratch / f"{readable.kind}.npy"
    arguments = [readable.kind, str(folder), "images.npy", str(answer)]
    _run(["reader.py", *arguments], scratch, readable)
    logits: NDArray[np.float32] = np.load(answer)
    return logits


def _predicted(
    folder: Path, readable: Readable, sample: Sample, scratch: Path
) -> NDArray[np.float32]:
    """What ``predict.py`` says of the images as they are stored."""
    names = [f"{index}.png" for index in range(len(sample.stored))]
    for name, stored in zip(names, sample.stored, strict=True):
        if isinstance(stored, bytes):  # of any format: a name's ending says nothing of it
            (scratch / name).write_bytes(stored)
        else:
            stored.save(scratch / name)
    answers = json.loads(_run([str(folder / "predict.py"), "--json", *names], scratch, readable))
    return np.array([answer["logits"] for answer in answers], np.float32)


def _run(arguments: list[str], scratch: Path, readable: Readable) -> str:
    """What a Python program says; it starts in ``scratch`` and leaves no bytecode behind."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    told = {"PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in paths)}
    try:
        done = subprocess.run(
            [sys.executable, "-B", *arguments],
            cwd=scratch,
            env={**os.environ, **(told if paths else {})},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LevitSearchError(
            f"{readable.name}: did not answer {IMAGES} images within {_LIMIT_S:g} s; nothing was "
            "written"
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LevitSearchError(
            f"{readable.name}: cannot be read by a process of its own ({reason}); nothing was "
            "written"
        )
    return done.stdout
