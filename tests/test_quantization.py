"""Graphs in int8: what is quantized, how near it stays, and what cannot be."""

from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch

from levit_search.architecture import parse
from levit_search.batches import open_batches
from levit_search.data import DataConfig
from levit_search.errors import InputError, TrialError
from levit_search.latency.block_graphs import blocks, write_block
from levit_search.latency.targets import Int8Config, Int8Format, LatencyConfig
from levit_search.latency.worker import filled
from levit_search.model import build, export_onnx, set_layout
from levit_search.model.quantization import (
    SATURATION_LOGIT,
    OnnxNetwork,
    calibration_images,
    graph_inputs,
    quantize,
    saturating_graph,
)
from tests.networks import tiny_description

IMAGES = np.random.default_rng(0).standard_normal((8, 1, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("graph") / "float.onnx"
    export_onnx(build(parse(tiny_description())).eval(), path, None, {"class_names": "[]"})
    return path


def logits(path: Path, **options: bool) -> np.ndarray:
    return OnnxNetwork(path, **options)(torch.from_numpy(IMAGES)).numpy()


@pytest.mark.parametrize("int8_format", get_args(Int8Format))
def test_logits_in_int8_stay_near_those_in_float(
    graph: Path, tmp_path: Path, int8_format: Int8Format
) -> None:
    if int8_format.startswith("nncf"):
        pytest.importorskip("nncf")
    out = tmp_path / "int8.onnx"
    found = quantize(graph, out, IMAGES, Int8Config(), int8_format)
    expected, spread = logits(graph), logits(graph).std()
    assert 0 < np.abs(logits(out) - expected).max() < 0.2 * spread
    assert np.abs(logits(out, exact=True) - logits(out)).max() < 0.05 * spread
    assert found.quantized.keys() == {"stem", "linear", "classifier"} and not found.left
    assert found.kept.keys() == {"attention", "elementwise"}
    assert (found.bytes, found.images) == (out.stat().st_size, 8)
    assert {each.key for each in onnx.load(out).metadata_props} == {"class_names"}
    dtypes = {each.data_type for each in onnx.load(out).graph.initializer if len(each.dims) > 1}
    assert onnx.TensorProto.INT8 in dtypes


def test_groups_that_are_not_left_in_float_are_quantized_or_told(
    graph: Path, tmp_path: Path
) -> None:
    everything = Int8Config(float_operators=())
    found = quantize(graph, tmp_path / "int8.onnx", IMAGES, everything, "u8")
    assert not found.kept and found.quantized["attention"]
    assert found.left.keys() == {"elementwise"}  # the activation functions
    only = Int8Config(float_operators=("stem", "classifier", "attention", "elementwise"))
    assert quantize(graph, tmp_path / "int8.onnx", IMAGES, only, "u8").quantized.keys() == {
        "linear"
    }


def test_layouts_have_the_same_groups(graph: Path, tmp_path: Path) -> None:
    model = build(parse(tiny_description())).eval()
    set_layout(model, "maps")
    export_onnx(model, tmp_path / "maps.onnx", 3)  # of three images at once; 8 are no multiple
    found = quantize(tmp_path / "maps.onnx", tmp_path / "int8.onnx", IMAGES, Int8Config(), "u8")
    tokens = quantize(graph, tmp_path / "int8.onnx", IMAGES, Int8Config(), "u8")
    kinds = ("stem", "linear", "classifier")
    assert sum(found.quantized[kind] for kind in kinds if kind in found.quantized) == sum(
        tokens.quantized[kind] for kind in kinds
    )


def test_a_constant_channel_is_quantized_as_others_are(graph: Path, tmp_path: Path) -> None:
    model = build(parse(tiny_description())).eval()
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "stem" in name:
            with torch.no_grad():
                weight[0] = 0
    export_onnx(model, tmp_path / "float.onnx", None)
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", IMAGES, Int8Config(), "u8")
    expected = logits(tmp_path / "float.onnx")
    assert np.abs(logits(tmp_path / "int8.onnx") - expected).max() < 0.2 * expected.std()


def test_weights_that_several_operators_share_are_quantized_for_each(tmp_path: Path) -> None:
    """As those of a block that is timed several times in a row, which are copied by Identity."""
    network = parse(tiny_description())
    block = next(each for each in blocks(network) if each.kind == "attention")
    path, out = tmp_path / "block.onnx", tmp_path / "int8.onnx"
    copies = write_block(block, "tokens", 1, path)
    assert copies > 1 and any(node.op_type == "Identity" for node in onnx.load(path).graph.node)
    runs = [filled(graph_inputs(path), 0)]
    found = quantize(path, out, runs, Int8Config(), "u8")
    assert found.quantized == {"linear": 4 * copies} and not found.left


def test_what_is_not_finite_is_refused(graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    with pytest.raises(TrialError, match="what it is calibrated on is not finite"):
        quantize(graph, out, np.full_like(IMAGES, np.nan), Int8Config(), "u8")
    model = build(parse(tiny_description())).eval()
    with torch.no_grad():
        next(iter(model.parameters())).fill_(np.nan)
    export_onnx(model, tmp_path / "float.onnx", None)
    with pytest.raises(TrialError, match=r"float\.onnx cannot be quantized"):
        quantize(tmp_path / "float.onnx", out, IMAGES, Int8Config(), "u8")
    assert not out.exists()


def test_more_images_than_there_are_is_an_error() -> None:
    batches = open_batches(DataConfig(name="digits"))
    with pytest.raises(InputError, match="100,000 images were asked for"):
        calibration_images(batches, 100_000)
    assert len(calibration_images(batches, 5)) == 5
    assert len(calibration_images(batches, None)) == 128


def test_the_graph_that_saturates_is_exact_in_float(tmp_path: Path) -> None:
    saturating_graph(tmp_path / "graph.onnx")
    ones = torch.randn(1, 64)
    assert OnnxNetwork(tmp_path / "graph.onnx", exact=True)(ones).numpy() == pytest.approx(
        SATURATION_LOGIT
    )


def test_int8_needs_a_runtime_that_has_it() -> None:
    with pytest.raises(ValueError, match="int8 needs runtime onnxruntime or openvino, not torch"):
        LatencyConfig(precision="int8", runtime="torch")
    with pytest.raises(InputError, match="runtime torch has no int8"):
        LatencyConfig(runtime="torch").in_int8()
    with pytest.raises(ValueError, match="leave nothing that multiplies in int8"):
        Int8Config(float_operators=("stem", "linear", "classifier", "attention"))
    with pytest.raises(ValueError, match="percentile is ONNX Runtime's, not NNCF's"):
        Int8Config(format="nncf", calibration="percentile")
