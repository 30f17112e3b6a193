"""Random networks of both families, in both layouts: trained, folded and written as ONNX."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from levit_search.architecture import Graft
from levit_search.model import Layout, Model, build, export_onnx, fold
from tests.random_networks import images_for, random_network, randomised

SEEDS = range(24)


def layout_of(seed: int) -> Layout:
    return "maps" if seed // 2 % 2 else "tokens"


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[pytest.mark.slow] * (n >= 12)) for n in SEEDS],
)
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(request.param)
    return randomised(build(random_network(request.param), layout_of(request.param)))


def test_the_sample_reaches_both_families_in_both_layouts() -> None:
    networks = {seed: random_network(seed) for seed in SEEDS}
    found = {(isinstance(network, Graft), layout_of(seed)) for seed, network in networks.items()}
    assert len(found) == 4
    grafts = [network for network in networks.values() if isinstance(network, Graft)]
    assert sum(bool(network.donor and network.trunk) for network in grafts) >= 4


def test_training_reaches_every_parameter(model: Model) -> None:
    outputs = model.train()(images_for(model.architecture, 3))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == 1 + model.architecture.distillation
    labels = torch.arange(3) % model.architecture.num_classes
    sum(nn.functional.cross_entropy(logits, labels) for logits in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    model.zero_grad()


@torch.no_grad()
def test_folding_and_the_graph_keep_the_logits(model: Model, tmp_path: Path) -> None:
    images = images_for(model.architecture, 2)
    expected = model.eval()(images)
    assert expected.shape == (2, model.architecture.num_classes)
    # Rounding grows with the logits, which many residual blocks of random weights make large.
    tolerance = 1e-4 * max(1, expected.abs().max().item())

    folded = fold(model)
    assert not any(
        isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in folded.modules()
    )
    torch.testing.assert_close(folded(images), expected, atol=tolerance, rtol=0)

    path = tmp_path / "model.onnx"
    export_onnx(model, path, batch_size=2)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    np.testing.assert_allclose(logits, expected.numpy(), atol=tolerance, rtol=0)
