"""A network as an ONNX graph for probes and export."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn
from torch.onnx.symbolic_helper import parse_args
from torch.onnx.utils import register_custom_op_symbolic, unregister_custom_op_symbolic

from levit_search.image_size import image_shape
from levit_search.model.build import Model
from levit_search.model.folding import fold_on_cpu

OPSET = 17

BATCH = "batch"
"""What graphs for any number of images name it; probes give it a number by this name."""


def export_onnx(
    model: Model, path: Path, batch_size: int | None, metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``model``, batch norms folded, as ONNX with input ``images`` and output ``logits``.

    Args:
        model: the network, in the layout that the graph shall have; it is not changed.
        batch_size: images in one run, fixed in the graph; or None for any number of them, which is
            a dimension named ``batch``. The operators are the same.
        metadata: texts by key, kept in the file.
    """
    network = model.architecture
    images = torch.zeros(batch_size or 1, *image_shape(network))
    # The exporter copies parameters about ten times, which for a large network is most of the time
    # it takes, and inputs never. So the weights are inputs of the graph until it is written.
    module = _OfWeights(fold_on_cpu(model))
    with _constant_shapes():
        write_graph(module, {"images": images, **module.weights}, "logits", path)
    graph = onnx.load(path)
    constants = _make_constant(module.weights, graph)
    if batch_size is None:
        _free_batch(graph, constants)
    onnx.helper.set_model_props(graph, dict(metadata or {}))
    _save(graph, constants, path)


def write_graph(module: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
    """Write any module in evaluation mode as ONNX.

    Args:
        module: takes the inputs by position and gives one tensor.
        inputs: examples by name; their shapes are fixed in the graph.
        output: the name of what comes out.
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


class _OfWeights(nn.Module):
    """A network, used up by this, as a function of images and of the weights it had."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.weights: dict[str, Tensor] = {}
        self._places: list[tuple[nn.Module, str]] = []
        for path, module in network.named_modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                self.weights[f"{path}.{name}".lstrip(".")] = tensor.detach()
                self._places.append((module, name))
                delattr(module, name)
        self.network = network

    def forward(self, images: Tensor, *weights: Tensor) -> Tensor:
        for (module, name), weight in zip(self._places, weights, strict=True):
            setattr(module, name, weight)
        return cast(Tensor, self.network(images))


def _make_constant(weights: dict[str, Tensor], model: onnx.ModelProto) -> dict[str, Tensor]:
    """Turn the inputs of a graph that are named in ``weights`` into constants, which are returned.

    What the graph does to constants alone, which is to turn and to reshape weights, is done here.
    """
    constants, kept = dict(weights), []
    for node in model.graph.node:
        operand = constants.get(node.input[0]) if node.input else None
        if node.op_type == "Constant":
            value = torch.tensor(onnx.numpy_helper.to_array(node.attribute[0].t))
        elif operand is not None and node.op_type == "Transpose":
            value = operand.permute(*node.attribute[0].ints)
        elif operand is not None and node.op_type == "Reshape":
            value = operand.reshape(constants[node.input[1]].tolist())
        else:
            kept.append(node)
            continue
        constants[node.output[0]] = value
    inputs = [each for each in model.graph.input if each.name not in weights]
    for field, rest in ((model.graph.node, kept), (model.graph.input, inputs)):
        del field[:]
        field.extend(rest)
    used = dict.fromkeys(name for node in kept for name in node.input if name in constants)
    return {name: constants[name] for name in used}


def _free_batch(model: onnx.ModelProto, constants: dict[str, Tensor]) -> None:
    """Let a graph traced with one image take any number of them.

    Images stay apart from the input to the output, the first dimension of whatever is computed. So
    where a shape is written down, a zero there copies that dimension (ONNX, Reshape); nothing else
    in our graphs knows of it.
    """
    graph = model.graph
    for node in graph.node:
        assert node.op_type not in ("Shape", "Expand", "ConstantOfShape"), node.op_type
        if node.op_type == "Reshape":
            shape = constants[node.input[1]]
            assert shape[0] == 1 and shape.min() > 0, shape
            constants[node.input[1]] = torch.cat([shape.new_zeros(1), shape[1:]])
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH


def _save(model: onnx.ModelProto, constants: dict[str, Tensor], path: Path) -> None:
    """Write a model whose graph gets further constants.

    Protocol buffers take several times as long for one large message as for its parts, and the
    parts of a message just follow each other (protobuf.dev, "Encoding"). So each constant becomes a
    graph's part of its own, and the graph is put behind the rest of the model, length first.
    """
    parts = [model.graph.SerializeToString()]
    for name, constant in constants.items():
        array = constant.contiguous().numpy()
        part = onnx.GraphProto()
        part.initializer.add(
            name=name,
            dims=array.shape,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
            raw_data=array.tobytes(),
        )
        parts.append(part.SerializeToString())
    graph_field = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
    length = sum(len(part) for part in parts)
    model.ClearField("graph")
    with path.open("wb") as file:
        file.write(model.SerializeToString())
        file.write(_varint(graph_field << 3 | 2) + _varint(length))
        file.writelines(parts)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have the eighth bit set."""
    groups = [number >> shift & 127 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


@contextmanager
def _constant_shapes() -> Iterator[None]:
    """Let the exporter write what only reshapes or pads as one operator with what was traced.

    By itself it computes each shape in the graph, which doubles the number of operators, and each
    takes time to write and in the inference session to remove.
    """
    reshapes = ("aten::flatten", "aten::unflatten", "aten::unsqueeze")
    operators: dict[str, Callable[..., Any]] = dict.fromkeys(reshapes, _reshape)
    operators["aten::pad"] = _pad
    for operator, symbolic in operators.items():
        register_custom_op_symbolic(operator, symbolic, OPSET)
    try:
        yield
    finally:
        for operator in operators:
            unregister_custom_op_symbolic(operator, OPSET)


def _reshape(graph: Any, x: Any, *_: Any) -> Any:
    shape = graph.original_node.output().type().sizes()
    return graph.op("Reshape", x, graph.op("Constant", value_t=torch.tensor(shape)))


@parse_args("v", "is", "none", "none")
def _pad(graph: Any, x: Any, widths: list[int], *_: Any) -> Any:
    """Zeros: torch counts (before, after) from the last dimension, ONNX all befores first."""
    kept = [0] * (x.type().dim() - len(widths) // 2)
    pads = torch.tensor([*kept, *widths[-2::-2], *kept, *widths[:0:-2]])
    return graph.op("Pad", x, graph.op("Constant", value_t=pads), mode_s="constant")
