"""Networks in int8: float ONNX graphs quantized after training, with calibration on images.

The int8 graph has the QDQ form: what is multiplied in int8 stands between QuantizeLinear and
DequantizeLinear, and the runtime that reads it (ONNX Runtime, OpenVINO) takes its own kernels for
that.
"""

import io
import logging
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from levit_search.errors import InputError, TrialError, first_line
from levit_search.latency.host_lock import while_no_probe_runs
from levit_search.latency.targets import Int8Config, Int8Format, LatencyConfig, OperatorGroup
from levit_search.model.onnx_graph import OPSET

if TYPE_CHECKING:
    from levit_search.batches import Batches

Images = NDArray[np.float32]
"""[N, C, H, W], normalised."""

_IMAGES = 128
"""Images of a calibration, unless something else is asked for."""


@dataclass(frozen=True)
class Quantized:
    """What became of a graph's operators."""

    format: Int8Format
    calibration: str
    images: int
    """What was calibrated on."""
    bytes: int
    """Of the file."""
    quantized: Mapping[str, int]
    """Operators in int8 by group, see :class:`levit_search.latency.targets.Int8Config`."""
    kept: Mapping[str, int]
    """Operators that were left in float as asked."""
    left: Mapping[str, int]
    """Operators that were to be quantized and stayed in float; activation functions always do."""


def quantize(
    path: Path,
    out: Path,
    images: Images | Sequence[Mapping[str, Images]],
    config: Int8Config,
    format: Int8Format,
) -> Quantized:
    """Write the int8 graph of a float one.

    Args:
        path: the float graph, as :func:`levit_search.model.export_onnx` writes it.
        out: the file.
        images: to calibrate on, [N, C, H, W]; or the inputs of each run by name.
        config: how; its own ``format`` does not count.
        format: what the int8 graph shall be.

    Raises:
        TrialError: it cannot be quantized, or a scale is no finite number above zero.
        InputError: NNCF is asked for and not installed.
    """
    graph = onnx.load(path)
    _inline_copies(graph)
    _name_nodes(graph)
    groups = operator_groups(graph)
    kept = [name for name, group in groups.items() if group in config.float_operators]
    runs = _runs(graph, images) if isinstance(images, np.ndarray) else images
    if not all(np.isfinite(each).all() for run in runs for each in run.values()):
        raise TrialError(f"{path.name} cannot be quantized: what it is calibrated on is not finite")
    try:
        if format.startswith("nncf"):
            found = _by_nncf(graph, runs, kept, format)
        else:
            found = _by_onnxruntime(graph, runs, kept, config, format)
    except InputError:
        raise
    except Exception as error:  # libraries raise what they like of graphs and ranges
        raise TrialError(f"{path.name} cannot be quantized ({first_line(error)})") from error
    _check_scales(found, path.name)
    onnx.helper.set_model_props(found, {each.key: each.value for each in graph.metadata_props})
    onnx.save(found, out)
    in_int8 = _in_int8(found) - set(kept)
    return Quantized(
        format=format,
        calibration=config.calibration,
        images=len(images) if isinstance(images, np.ndarray) else len(runs),
        bytes=out.stat().st_size,
        quantized=dict(Counter(group for name, group in groups.items() if name in in_int8)),
        kept=dict(Counter(groups[name] for name in kept)),
        left=dict(
            Counter(
                group
                for name, group in groups.items()
                if name not in in_int8 and group not in config.float_operators
            )
        ),
    )


def operator_groups(graph: onnx.ModelProto) -> dict[str, OperatorGroup]:
    """The group of each operator of a float graph that computes something, by its name."""
    constants = {each.name for each in graph.graph.initializer}
    found: dict[str, OperatorGroup] = {}
    for node in graph.graph.node:
        if node.op_type == "Conv":
            is_stem = any(
                max(each.ints) > 1 for each in node.attribute if each.name == "kernel_shape"
            )
            found[node.name] = "stem" if is_stem else "linear"
        elif node.op_type == "MatMul":
            is_linear = any(name in constants for name in node.input)
            found[node.name] = "linear" if is_linear else "attention"
        elif node.op_type == "Gemm":
            found[node.name] = "classifier"
        elif node.op_type in _ELEMENTWISE:
            found[node.name] = "elementwise"
    return found


# Of which those that come first have kernels in int8.
_IN_INT8 = ("Add", "Mul", "Softmax")
# Operators that only move values, of which NNCF quantizes the first of several in a row.
_MOVING = ("Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze")
_ELEMENTWISE = (*_IN_INT8, "Div", "HardSwish", "Relu", "Erf", "Sigmoid", "ReduceMean")


def _inline_copies(graph: onnx.ModelProto) -> None:
    """Let operators read constants that the exporter has them read through an Identity, as it does
    with equal ones; they would be no constants to what quantizes."""
    names, kept = {each.name: each.name for each in graph.graph.initializer}, []
    for node in graph.graph.node:  # in the order of computation
        if node.op_type == "Identity" and node.input[0] in names:
            names[node.output[0]] = names[node.input[0]]
        else:
            node.input[:] = [names.get(name, name) for name in node.input]
            kept.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(kept)


def _name_nodes(graph: onnx.ModelProto) -> None:
    """Give each operator a name of its own."""
    for index, node in enumerate(graph.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"


def graph_inputs(path: Path) -> dict[str, list[int]]:
    """The shapes of a graph's inputs by name; any number of images is one."""
    return {
        each.name: [side.dim_value or 1 for side in each.type.tensor_type.shape.dim]
        for each in onnx.load(path).graph.input
    }


def _runs(graph: onnx.ModelProto, images: Images) -> list[dict[str, Images]]:
    """The images in batches that the graph takes; the first ones are shown twice, if need be."""
    entry = graph.graph.input[0]
    fixed = entry.type.tensor_type.shape.dim[0].dim_value
    count = math.ceil(len(images) / (fixed or 32))
    if fixed:
        images = np.resize(images, (count * fixed, *images.shape[1:]))
    return [{entry.name: each} for each in np.array_split(images, count)]


def _by_onnxruntime(
    graph: onnx.ModelProto,
    runs: Sequence[Mapping[str, Images]],
    kept: list[str],
    config: Int8Config,
    format: Int8Format,
) -> onnx.ModelProto:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(runs)

        def get_next(self) -> Mapping[str, Images] | None:
            return next(self._left, None)

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
    }
    with tempfile.TemporaryDirectory(prefix="levit-search-int8-") as folder, _quiet():
        given, written = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(graph, given)
        quantize_static(
            given,
            written,
            Reader(),
            op_types_to_quantize=["Conv", "MatMul", "Gemm", *_IN_INT8],
            per_channel=True,
            reduce_range=format.endswith("-reduced"),
            activation_type=QuantType.QInt8 if format == "s8" else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
            calibrate_method=methods[config.calibration],
        )
        return onnx.load(written)


def _by_nncf(
    graph: onnx.ModelProto,
    runs: Sequence[Mapping[str, Images]],
    kept: list[str],
    format: Int8Format,
) -> onnx.ModelProto:
    if find_spec("nncf") is None:
        raise InputError(
            f"int8.format: {format}: nncf is not installed; pip install 'levit-search[intel]'"
        )
    # Both would tell their makers of their use.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    with _quiet():
        import nncf

        nncf.set_log_level(logging.ERROR)
        is_reduced = format.endswith("-reduced")
        found: onnx.ModelProto = nncf.quantize(
            graph,
            nncf.Dataset(runs),
            subset_size=len(runs),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE if is_reduced else nncf.OverflowFix.DISABLE,
                # OpenVINO 2026.4 computes wrong logits of classifiers whose inputs are smoothed.
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
                # That of a stem's convolutions cost one network of 32 two points (studies/int8).
                disable_bias_correction=True,
            ),
        )
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what libraries advise by the root logger, and what they print of their progress."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _check_scales(graph: onnx.ModelProto, name: str) -> None:
    """Make sure that all scales are finite numbers above zero.

    Raises:
        TrialError: one is not.
    """
    used = {node.input[1] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    used |= {node.input[1] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    for each in graph.graph.initializer:
        if each.name in used:
            scales = onnx.numpy_helper.to_array(each)
            if not (np.isfinite(scales).all() and (scales > 0).all()):
                raise TrialError(
                    f"{name} cannot be quantized: scale {each.name} is no finite number above 0; "
                    "are the network's weights and answers finite?"
                )


def _in_int8(graph: onnx.ModelProto) -> set[str]:
    """The names of operators with kernels in int8 whose operands are all dequantized ones."""
    dequantized: set[str] = set()
    for node in graph.graph.node:  # in the order of computation
        moved = node.op_type in _MOVING and node.input[0] in dequantized
        if node.op_type == "DequantizeLinear" or moved:
            dequantized.update(node.output)
    return {
        node.name
        for node in graph.graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm", *_IN_INT8)
        and all(name in dequantized for name in node.input[:2])
    }


def saturating_graph(path: Path) -> None:
    """Write an int8 graph whose logits say whether a device adds products of u8 and s8 in 16 bits.

    Whatever its input ``images`` [1, 64] is, it multiplies ones by weights of one in u8 and s8, all
    at the ends of their ranges: the logits [1, 16] are 64, or about half of that where two products
    do not fit.
    """
    helper, width = onnx.helper, 64
    weights = np.full((width, 16), 127, np.int8)
    scalars = {
        "zero": np.float32(0),
        "one": np.float32(1),
        "u8_scale": np.float32(1 / 255),
        "u8_zero": np.uint8(0),
        "s8_scale": np.float32(1 / 127),
        "s8_zero": np.int8(0),
    }
    constants = [onnx.numpy_helper.from_array(weights, "weights")]
    constants += [onnx.numpy_helper.from_array(np.array(v), k) for k, v in scalars.items()]
    nodes = [
        helper.make_node("Mul", ["images", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "one"], ["ones"]),
        helper.make_node("QuantizeLinear", ["ones", "u8_scale", "u8_zero"], ["quantized"]),
        helper.make_node("DequantizeLinear", ["quantized", "u8_scale", "u8_zero"], ["left"]),
        helper.make_node("DequantizeLinear", ["weights", "s8_scale", "s8_zero"], ["right"]),
        helper.make_node("MatMul", ["left", "right"], ["logits"]),
    ]
    float_type = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "saturates",
        [helper.make_tensor_value_info("images", float_type, [1, width])],
        [helper.make_tensor_value_info("logits", float_type, [1, 16])],
        constants,
    )
    opset = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


SATURATION_LOGIT = 64.0
"""What :func:`saturating_graph` gives where nothing saturates."""


def calibration_images(batches: "Batches", asked: int | None) -> Images:
    """Images of the training split to calibrate on, evenly spread and without augmentation.

    Args:
        batches: the data.
        asked: how many; None for 128, or all where there are fewer.

    Raises:
        InputError: there are fewer than were asked for.
    """
    size = batches.size("train")
    if asked is not None and asked > size:
        raise InputError(
            f"int8.images: {asked:,} images were asked for to calibrate on, and the training split "
            f"has {size:,}"
        )
    parts = batches.evaluation("train", 64, torch.device("cpu"), asked or min(size, _IMAGES))
    return np.concatenate([images.numpy() for images, _ in parts])


def quantized_network(
    write: Callable[[Path], None],
    images: Images,
    section: LatencyConfig,
    format: Int8Format,
    threads: int,
) -> tuple["OnnxNetwork", Quantized]:
    """A network in int8 as it would run on a target, to be evaluated here.

    Args:
        write: writes it as a float ONNX graph.
        images: to calibrate on.
        section: of the target; a device elsewhere may not saturate where this one does, nor is its
            runtime here, so that it is played in float.
        format: what the int8 graph shall be.
        threads: of the runtime.

    Raises:
        TrialError: it cannot be quantized.
        InputError: NNCF is asked for and not installed.
    """
    with tempfile.TemporaryDirectory(prefix="levit-search-int8-") as folder:
        in_float, in_int8 = Path(folder) / "model.onnx", Path(folder) / "model.int8.onnx"
        with while_no_probe_runs():
            write(in_float)
            quantized = quantize(in_float, in_int8, images, section.int8, format)
        is_here = section.target.kind == "local"
        return OnnxNetwork(in_int8, section.runtime, threads, exact=not is_here), quantized


class OnnxNetwork(nn.Module):
    """An ONNX graph as a module, from images [B, C, H, W] to logits [B, classes], on the CPU.

    Args:
        path: the graph, for any number of images, or for one.
        runtime: ``onnxruntime`` or ``openvino``, which computes it.
        threads: of the runtime.
        exact: compute an int8 graph in float, operator by operator, as a CPU would that does not
            saturate; ONNX Runtime does.
    """

    def __init__(
        self, path: Path, runtime: str = "onnxruntime", threads: int = 1, exact: bool = False
    ) -> None:
        super().__init__()
        entry = onnx.load(path).graph.input[0]
        self._is_for_one = entry.type.tensor_type.shape.dim[0].dim_value == 1
        self.device = nn.Parameter(torch.zeros(0), requires_grad=False)  # by which it has one
        self._run = (
            _in_openvino(path, threads)
            if runtime == "openvino" and not exact
            else _in_onnxruntime(path, threads, exact)
        )

    def forward(self, images: Tensor) -> Tensor:
        parts = images.split(1) if self._is_for_one else [images]
        found = [self._run(np.ascontiguousarray(part.numpy())) for part in parts]
        return torch.from_numpy(np.concatenate(found))


Run = Callable[[Images], Images]


def _in_onnxruntime(path: Path, threads: int, exact: bool) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if exact:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=providers)
    name = session.get_inputs()[0].name
    return lambda images: np.asarray(session.run(None, {name: images})[0])


def _in_openvino(path: Path, threads: int) -> Run:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path.read_bytes()), "CPU", settings)
    return lambda images: np.asarray(compiled([images])[0])
