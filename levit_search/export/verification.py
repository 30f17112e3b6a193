"""Whether an export is the network that was trained: its files' logits, and its graph's latency.

Files are read as their users would, each in a process of its own, by one of the functions below
whose name stands in :data:`READABLE`.
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from levit_search.batches import Batches
from levit_search.errors import InputError, LevitSearchError, TrialError
from levit_search.latency import LatencyConfig, Probe
from levit_search.latency.targets import TORCH_RUNTIMES, Int8Format, check_programs
from levit_search.model import Layout, Model
from levit_search.model.quantization import OnnxNetwork
from levit_search.pareto import PAIRED, on_target
from levit_search.progress import Progress
from levit_search.search.evaluate import settled_on
from levit_search.study import Record, Study, StudyConfig
from levit_search.study.record import REPEATS, SEARCHED, latency_of, layout_of

INT8_GRAPH = "model.int8.onnx"
"""What an export calls its network in int8."""

IMAGES = 64  # that files are compared on
_LIMIT_S = 600.0  # one file's answer to them

AGREES_PERCENT = 6.0
"""Two latencies of one network agree within this, or where their intervals meet."""


# --- Readers, from the folder of an export and images [B, C, H, W], float32 and normalised, to
# logits [B, classes], both as arrays. Their text is run where none but the first may import this
# package, and is all that is there but sys, Path and Any.


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


def _by_torch(network: Any, images: Any) -> Any:
    import torch

    with torch.inference_mode():
        return network.eval()(torch.from_numpy(images)).numpy()


def _read() -> None:
    """``python reader.py READER FOLDER IMAGES.npy LOGITS.npy`` reads one file."""
    import numpy

    reader, folder, images, logits = sys.argv[1:]
    if reader != "weights":
        sys.modules["levit_search"] = None  # type: ignore[assignment]  # importing it fails now
    numpy.save(logits, globals()[reader](Path(folder), numpy.load(images)))


# --- Logits.


class Readable(NamedTuple):
    """A file, or several that are read together."""

    reader: Callable[[Path, Any], Any] | None
    """None is ``predict.py``, which reads pictures by itself."""
    tolerance: float
    """How far its logits may be from the trained network's."""


READABLE = {
    "model.safetensors": Readable(weights, 1e-5),
    "model.py": Readable(module, 1e-5),
    "timm": Readable(timm, 1e-5),
    "model.onnx": Readable(onnx, 1e-4),
    "predict.py": Readable(None, 1e-4),
    "model.openvino.xml": Readable(openvino, 1e-4),
    "model.pt2": Readable(program, 1e-4),
}
"""By the name that people know."""


@dataclass(frozen=True)
class Sample:
    """Real images, and what the trained network says of them."""

    images: NDArray[np.float32]
    """[B, C, H, W], normalised."""
    logits: NDArray[np.float32]
    """[B, classes]."""
    stored: Sequence[bytes | Image.Image]
    """The same images as they are stored, or as pictures where they are kept in no file."""


def sample_of(model: Model, batches: Batches) -> Sample:
    """The first images of the validation split and the answers of a network on the CPU."""
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
        read: list[Callable[..., object]] = [_by_torch, _read]
        read += [each.reader for each in READABLE.values() if each.reader is not None]
        parts = ["import sys\nfrom pathlib import Path\nfrom typing import Any\n"]
        parts += [inspect.getsource(each) for each in read]
        (scratch / "reader.py").write_text("\n\n".join([*parts, "_read()\n"]), encoding="utf-8")
        np.save(scratch / "images.npy", sample.images)
        for name in names:
            progress(f"reading {name} in a clean process", None)
            readable = READABLE[name]
            if readable.reader is None:
                logits = _predicted(folder, [], sample, scratch, name)
            else:
                reader = readable.reader.__name__
                arguments = [reader, str(folder.absolute()), "images.npy", f"{reader}.npy"]
                _run(["reader.py", *arguments], scratch, name)
                logits = np.load(scratch / f"{reader}.npy")
            whose, tolerance = "the trained network", readable.tolerance
            found[name] = _difference(name, logits, sample.logits, whose, tolerance)
    return found


def compared_in_int8(folder: Path, sample: Sample, progress: Progress) -> float:
    """How far the logits of :data:`INT8_GRAPH` are from the trained network's, at most.

    ``predict.py`` reads it in a process of its own, picture by picture, and what it answers has to
    be half as near to what the graph answers here. It need not be the same: where a sum of floats
    is rounded otherwise, an activation may come to the next step of int8.

    Args:
        folder: of the export.
        sample: images to compare on.
        progress: told what is being read.

    Raises:
        LevitSearchError: it cannot be read there, or is further off.
    """
    name = INT8_GRAPH
    progress(f"reading {name} in a clean process", None)
    here = OnnxNetwork(folder / name)(torch.from_numpy(sample.images)).numpy()
    found = float(np.abs(here - sample.logits).max())
    with tempfile.TemporaryDirectory(prefix="levit-search-check-") as scratch:
        options = ["--model", str(folder.absolute() / name)]
        logits = _predicted(folder, options, sample, Path(scratch), name)
    _difference(name, logits, here, "the same graph in this process", found / 2)
    return found


def _predicted(
    folder: Path, options: Sequence[str], sample: Sample, scratch: Path, name: str
) -> NDArray[np.float32]:
    """The logits [B, classes] that ``predict.py`` gives for a sample's pictures."""
    pictures = [f"{index}.png" for index in range(len(sample.stored))]
    for picture, stored in zip(pictures, sample.stored, strict=True):
        if isinstance(stored, bytes):  # of any format: an ending says nothing of it
            (scratch / picture).write_bytes(stored)
        else:
            stored.save(scratch / picture)
    program = str(folder.absolute() / "predict.py")
    answers = json.loads(_run([program, "--json", *options, *pictures], scratch, name))
    return np.array([answer["logits"] for answer in answers], np.float32)


def _difference(
    name: str,
    logits: NDArray[np.float32],
    expected: NDArray[np.float32],
    whose: str,
    tolerance: float,
) -> float:
    """How far a file's logits are from the expected ones, at most.

    Raises:
        LevitSearchError: that is more than ``tolerance``.
    """
    if logits.shape != expected.shape:
        raise LevitSearchError(
            f"{name}: gives logits {list(logits.shape)}, {whose} {list(expected.shape)}"
        )
    found = float(np.abs(logits - expected).max())
    if not found <= tolerance:
        raise LevitSearchError(
            f"{name}: its logits differ from those of {whose} by {found:.2g}, more than "
            f"{tolerance:g}; nothing was written"
        )
    return found


def _run(arguments: list[str], scratch: Path, name: str) -> str:
    """What a Python program says; it starts in ``scratch`` and leaves no bytecode behind."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    absolute = os.pathsep.join(str(Path(path).absolute()) for path in paths)
    try:
        done = subprocess.run(
            [sys.executable, "-B", *arguments],
            cwd=scratch,
            env=os.environ | ({"PYTHONPATH": absolute} if paths else {}),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LevitSearchError(
            f"{name}: did not answer {IMAGES} images within {_LIMIT_S:g} s; nothing was written"
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LevitSearchError(
            f"{name}: cannot be read by a process of its own ({reason}); nothing was written"
        )
    return done.stdout


# --- Latency.


@dataclass(frozen=True)
class Remeasurement:
    """The latency of an exported graph beside the one that its network has in the study."""

    figure: str
    """``latency_ms``, or ``latency_ms@TARGET``."""
    before: Mapping[str, Any]
    """What the study knows; see :class:`levit_search.latency.Measurement`."""
    now: Mapping[str, Any] | None
    """What was measured; None where it could not be."""
    reason: str | None = None
    """Why it could not be measured, or cannot be compared."""
    timed: str = "model.onnx"
    """What was timed; with the runtimes of torch it is the network itself."""
    repeats_percent: float | None = None
    """Within what another measurement was expected; None where the front was measured once."""

    @property
    def difference_percent(self) -> float | None:
        """Between the two ratios to the reference; None where they cannot be compared."""
        if self.now is None or self.reason is not None:
            return None
        before, now = self.before["ratio_to_reference"], self.now["ratio_to_reference"]
        return float(100 * (now / before - 1))

    @property
    def agrees(self) -> bool:
        """Whether both intervals meet, or the figures are close. True where nothing can be said."""
        difference = self.difference_percent
        if difference is None or self.is_expected:
            return True
        assert self.now is not None
        (low, high), (low_now, high_now) = self.before["ratio_ci95"], self.now["ratio_ci95"]
        return abs(difference) <= AGREES_PERCENT or (low <= high_now and low_now <= high)

    @property
    def is_expected(self) -> bool | None:
        """Whether it lies within ``repeats_percent``; None where that cannot be said."""
        if self.difference_percent is None or self.repeats_percent is None:
            return None
        return abs(self.difference_percent) <= self.repeats_percent

    def compared(self) -> str:
        """What it is beside the study's figure, in words."""
        if self.difference_percent is None:
            return f"not compared: {self.reason}"
        if self.repeats_percent is None:
            return f"{self.difference_percent:+.1f} % of the search's"
        where = "within" if self.is_expected else "outside"
        return (
            f"{self.difference_percent:+.1f} % of the front's, {where} its "
            f"±{self.repeats_percent:.1f} %"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "difference_percent": self.difference_percent,
            "agrees": self.agrees,
            "is_expected": self.is_expected,
            "compared": self.compared(),
        }


def remeasured(
    study: Study,
    record: Record,
    graph: Path,
    progress: Progress,
    int8_format: Int8Format | None = None,
    is_other_int8: bool = False,
) -> list[Remeasurement]:
    """Time an exported graph on every target on which its network was measured.

    One whose ratio to the reference does not agree is measured once more, for twice as long. A
    figure in int8 is compared with that of :data:`INT8_GRAPH` beside it.

    Args:
        study: with its settled reference latencies.
        record: of the network.
        graph: its ONNX file, of dynamic batch.
        progress: told what is being measured.
        int8_format: of the network in int8; None where it was not written.
        is_other_int8: whether other operators are in int8 than in the study.

    Returns:
        One for each figure; none where the study measured nothing.
    """
    known = latencies(study.config, record)
    given = graph, progress, int8_format, is_other_int8
    return [_timed_again(study, record, each, *given) for each in known]


class KnownLatency(NamedTuple):
    """What a study knows of a network's latency on one target."""

    target: str | None
    """None is that of ``latency``."""
    config: LatencyConfig
    found: Mapping[str, Any]
    """See :class:`levit_search.latency.Measurement`."""
    repeats_percent: float | None
    """Within what another measurement is expected; None where it was measured once."""
    search_ms: float | None
    """What the search had measured; None where it was measured once."""
    figure: str
    """``latency_ms``, or ``latency_int8_ms``, either with ``@TARGET``."""


def latencies(config: StudyConfig, record: Record) -> list[KnownLatency]:
    """What a study knows of a network's latency, by figure.

    A trial that was taken over has those of its own study, too, whose sections are not known here.
    """
    evaluation, values, found = record.evaluation, record.values, []
    for (target, precision), section in config.probed.items():
        own = config.latency if target is None else config.targets[target]
        for figure in PAIRED:
            name = on_target(figure, target)
            known = latency_of(evaluation, name)
            if known and precision == ("int8" if figure == "latency_int8_ms" else own.precision):
                repeats_percent = values.get(on_target(REPEATS[figure], target))
                search_ms = values.get(on_target(SEARCHED[figure], target))
                told = target, section, known, repeats_percent, search_ms, name
                found.append(KnownLatency(*told))
    return found


def _timed_again(
    study: Study,
    record: Record,
    known: KnownLatency,
    graph: Path,
    progress: Progress,
    int8_format: Int8Format | None,
    is_other_int8: bool,
) -> Remeasurement:
    """Time a graph where its network was measured."""
    assert record.architecture is not None
    name, config, before = known.figure, known.config, known.found
    if before.get("method") == "predicted":
        return Remeasurement(name, before, None, "it was predicted, not measured")
    is_in_int8 = before.get("precision") == "int8"
    if is_in_int8 and int8_format is None:
        return Remeasurement(name, before, None, f"--also int8 writes {INT8_GRAPH}, which it is of")
    if is_in_int8:
        graph = graph.with_name(INT8_GRAPH)
    else:
        int8_format = None
    try:
        check_programs({"latency": config}, "study.yaml")
    except InputError as error:
        return Remeasurement(name, before, None, str(error))
    timed, layout = graph.name, graph_layout(study, record)
    if config.runtime in TORCH_RUNTIMES:
        timed, layout = "the network in torch", before.get("layout", layout)
    settled_ms = settled_on(known.target, study.attributes().get("settled_ms", {}))
    found = None
    for seconds in (config.seconds, 2 * config.seconds):
        progress(f"timing {timed} on {config.target.label}", None)
        longer = config.model_copy(update={"seconds": seconds})
        try:
            with Probe(longer, settled_ms, fresh=True) as probe:
                if config.runtime in TORCH_RUNTIMES:
                    measured = probe.measure(record.architecture)
                else:
                    measured = probe.measure_graph(graph, record.architecture, int8_format)
        except TrialError as error:
            return found or Remeasurement(name, before, None, str(error), timed)
        now = measured.as_json()
        reason = _incomparable(before, now, layout)
        if is_in_int8 and is_other_int8:
            reason = reason or "other operators are left in float here"
        found = Remeasurement(name, before, now, reason, timed, known.repeats_percent)
        if found.agrees:
            return found
    assert found is not None
    return found


def graph_layout(study: Study, record: Record) -> Layout:
    """The layout of a network's ``model.onnx``: the one that it was measured or predicted in."""
    return layout_of(study.config, record.evaluation)


def _incomparable(before: Mapping[str, Any], now: Mapping[str, Any], layout: str) -> str | None:
    """Why two measurements are not of one thing, the second of a network in ``layout``."""
    if not {"ratio_to_reference", "ratio_ci95"} <= before.keys():
        return "the study has no ratio to a reference"
    devices = [found.get("device") or {} for found in (before, now)]
    devices = [device.get("gpu") or device.get("cpu") for device in devices]
    if devices[0] != devices[1]:
        return f"the study's is of another device, {devices[0]}"
    if before.get("runtime") != now["runtime"]:
        return f"the study's is of another runtime, {before.get('runtime')}"
    if before.get("int8_format") != now.get("int8_format"):
        return f"the study's is of the format {before.get('int8_format')}"
    if before.get("layout") != layout:
        return f"the study's is of the layout {before.get('layout')}, this one of {layout}"
    return None
