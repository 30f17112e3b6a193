"""What other programs run of an export: ONNX for any number of images, OpenVINO's, torch's."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from levit_search.architecture import Architecture, parse
from levit_search.data import DataConfig
from levit_search.data.loading import resized
from levit_search.data.sets import Digits
from levit_search.errors import InputError
from levit_search.export.formats import write_onnx, write_openvino, write_torch_export
from levit_search.image_size import sides
from levit_search.latency import worker
from levit_search.model import Layout, Model, build, export_onnx, onnx_graph
from tests.conftest import needs
from tests.random_networks import randomised
from tests.test_model_layouts import GRAFT, LEVIT

NETWORKS: dict[str, dict[str, Any]] = {
    "levit": {**LEVIT, "in_channels": 1},
    "layer norm and embedding": {**LEVIT, "norm": "layer", "position": "embedding"},
    "wide stride": {
        **LEVIT,
        "distillation": False,
        "shrinks": [{"num_heads": 2, "key_dim": 8, "stride": 3}],
    },
    "patch stem": {**LEVIT, "stem": {"kind": "patch", "patch_size": 4}},
    "single token": {**LEVIT, "image_size": 4, "stages": LEVIT["stages"][:1]},
    "resnet stem": {**LEVIT, "image_size": 32, "stem": {"kind": "resnet18", "layers": 6}},
    "rectangle": {**LEVIT, "image_size": [28, 20]},
    "rectangular graft": {**GRAFT, "image_size": [48, 32], "grid": None},
    "graft": GRAFT,
    "deit": {**GRAFT, "donor": {"stages": 0}},
    "plain vit": {**GRAFT, "donor": {"stages": 0}, "distillation": False},
    "resnet": {**GRAFT, "trunk": {"depth": 0}},
}
IN_MAPS = ("rectangle", "layer norm and embedding", "wide stride", "deit", "plain vit")
COUNTS = (1, 2, 7, 64)
NAMES = ["<b>\"A\" & 'b'</b>", "line\nbreak\ttab", "größe 大 \u202e", "undecodable \udcff", ""]
PREPROCESSING: dict[str, Any] = {"mode": "RGB", "image_size": 28, "class_names": NAMES}


def model_of(name: str, layout: Layout = "tokens") -> Model:
    torch.manual_seed(0)
    return randomised(build(parse(NETWORKS[name]), layout)).eval()


def real_images(network: Architecture, count: int = 64) -> Tensor:
    """Digits [B, C, H, W], another one in each channel."""
    pixels = Digits(DataConfig()).sources()["train"].images[: count * network.in_channels]
    images = resized(pixels, network.image_size).reshape(count, -1, *sides(network.image_size))
    return torch.from_numpy(images).float().sub(125).div(95)


def session_of(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("name", "layout"),
    [*((name, "tokens") for name in NETWORKS), *((name, "maps") for name in IN_MAPS)],
)
@torch.no_grad()
def test_one_graph_gives_the_logits_of_any_number_of_images(
    name: str, layout: Layout, tmp_path: Path
) -> None:
    model = model_of(name, layout)
    images = real_images(model.architecture)
    expected = model(images).numpy()
    assert expected.std(axis=0).min() > 0.01, "images matter to the logits"

    path = tmp_path / "any.onnx"
    export_onnx(model, path, None)
    onnx.checker.check_model(path, full_check=True)
    session = session_of(path)
    assert session.get_inputs()[0].shape[0] == session.get_outputs()[0].shape[0] == "batch"
    for count in COUNTS:
        (logits,) = session.run(["logits"], {"images": images[:count].numpy()})
        np.testing.assert_allclose(logits, expected[:count], atol=1e-4, rtol=0)

    fixed = tmp_path / "fixed.onnx"
    export_onnx(model, fixed, 1)
    assert operators(path) == operators(fixed), "it costs no operator to leave the number open"
    assert operators(path)["BatchNormalization"] == 0


def test_probes_know_what_the_number_of_images_is_called() -> None:
    assert worker.BATCH == onnx_graph.BATCH


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@torch.no_grad()
def test_a_probe_gives_an_open_graph_the_batch_of_its_job(runtime: str, tmp_path: Path) -> None:
    needs(runtime)
    model, path = model_of("deit"), tmp_path / "any.onnx"
    export_onnx(model, path, None)
    job = {"runtime": runtime, "threads": 1, "seed": 3, "batch_size": 5}
    runner = worker.RUNTIMES[runtime](job, {"path": str(path)})
    assert runner.batch_size == 5
    images = worker.filled({"images": [5, 3, 32, 32]}, 3)["images"]
    expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(runner.run(), expected, atol=1e-4, rtol=0)


def test_a_probe_refuses_other_open_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "any.onnx"
    export_onnx(model_of("levit"), path, None)
    graph = onnx.load(path)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(graph, path)
    with pytest.raises(ValueError, match=r"input images is \['N', 1, 28, 28\]; only 'batch'"):
        worker.OnnxRunner({"threads": 1, "seed": 0, "batch_size": 2}, {"path": str(path)})


def test_metadata_keep_class_names_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("what an earlier export left")
    write_onnx(model_of("levit"), path, PREPROCESSING, {"architecture": "a: 1\n"})
    metadata = session_of(path).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == NAMES
    assert json.loads(metadata["preprocessing"]) == {"mode": "RGB", "image_size": 28}
    assert metadata["architecture"] == "a: 1\n"
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("name", "layout"),
    [("wide stride", "tokens"), ("graft", "maps")],
)
@torch.no_grad()
def test_openvinos_file_gives_the_same_logits_and_metadata(
    name: str, layout: Layout, tmp_path: Path
) -> None:
    openvino = needs("openvino")
    model, graph, written = model_of(name, layout), tmp_path / "m.onnx", tmp_path / "m.openvino.xml"
    write_onnx(model, graph, PREPROCESSING, {})
    write_openvino(graph, written)
    graph.unlink()

    core = openvino.Core()
    read = core.read_model(str(written))
    assert json.loads(read.get_rt_info(["model_info", "class_names"]).value) == NAMES
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = real_images(model.architecture)
    for count in COUNTS:
        logits = compiled(images[:count].numpy())[0]
        expected = model(images[:count]).numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_openvino_missing_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"pip install 'levit-search\[intel\]'"):
        write_openvino(tmp_path / "m.onnx", tmp_path / "m.xml")


@pytest.mark.parametrize(("name", "layout"), [("wide stride", "tokens"), ("plain vit", "maps")])
@torch.no_grad()
def test_torchs_program_gives_the_same_logits(name: str, layout: Layout, tmp_path: Path) -> None:
    model, path = model_of(name, layout).train(), tmp_path / "model.pt2"
    write_torch_export(model, path)
    assert model.training, "the model stays as it was"
    loaded = torch.export.load(path).module()
    images = real_images(model.architecture)
    for count in COUNTS:
        expected = model.eval()(images[:count])
        torch.testing.assert_close(loaded(images[:count]), expected, atol=1e-4, rtol=0)
