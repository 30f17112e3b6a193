"""The worker that times networks with PyTorch: on the CPU, and on a GPU where there is one."""

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from levit_search import architecture
from levit_search.errors import TrialError
from levit_search.latency import torch_worker, worker
from levit_search.latency.channel import Channel
from levit_search.latency.targets import LocalTarget
from levit_search.latency.torch_worker import RUNTIMES, CpuRunner, fresh_network
from levit_search.model import build, fold
from tests.networks import tiny_description

_PATIENCE_S = 120

JOB = {
    "runtime": "torch",
    "threads": 1,
    "seed": 3,
    "device": "cpu",
    "precision": "fp32",
    "batch_size": 2,
}
CUDA = {**JOB, "device": "cuda"}
TINY = {"architecture": tiny_description(), "layout": "tokens"}
MAPS = {**TINY, "layout": "maps"}
RESNET = {"timm": {"name": "resnet18", "image_size": 32, "in_channels": 3, "num_classes": 10}}


@pytest.fixture(scope="module")
def torch_process() -> Iterator[Channel]:
    """One worker process for the tests of this file: each would take seconds to start."""
    channel = Channel(LocalTarget(), "torch")
    yield channel
    channel.close()


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(torch_process: Channel) -> Ask:
    def ask(do: str, *networks: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return torch_process.ask({**JOB, "do": do, "networks": networks, **changes}, _PATIENCE_S)

    return ask


def filled_images(channels: int, size: int, count: int = 2) -> Tensor:
    shape = [count, channels, size, size]
    return torch.from_numpy(worker.filled({"images": shape}, JOB["seed"])["images"])


def woken(model: nn.Module) -> nn.Module:
    """``model`` with the norms that begin at zero at one."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight") and not parameter.any():
            nn.init.ones_(parameter)
    return model


@torch.no_grad()
def expected_tiny() -> list[float]:
    torch.manual_seed(JOB["seed"])
    model = woken(build(architecture.parse(tiny_description())))
    return fold(model)(filled_images(1, 16))[0].tolist()


@pytest.mark.parametrize("network", [TINY, MAPS], ids=["tokens", "maps"])
def test_logits_are_those_of_the_folded_network(ask: Ask, network: dict[str, Any]) -> None:
    logits = ask("logits", network)["logits"]
    assert logits == pytest.approx(expected_tiny(), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_close(ask: Ask, precision: str) -> None:
    logits, expected = ask("logits", TINY, precision=precision)["logits"], expected_tiny()
    largest = max(map(abs, expected))
    assert logits == pytest.approx(expected, abs=0.05 * largest)
    assert logits != pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_networks_of_timm_keep_their_norms(ask: Ask) -> None:
    model, image_shape = fresh_network(RESNET, JOB["seed"])
    assert image_shape == [3, 32, 32]
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    expected = model(filled_images(3, 32))[0].tolist()
    assert ask("logits", RESNET)["logits"] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_rounds_time_all_networks(ask: Ask) -> None:
    answer = ask("round", TINY, MAPS, seconds=0.05, batch_size=4)
    assert answer["batch_sizes"] == [4, 4]
    assert all(timing["cpu"] > 0 for cycle in answer["cycles"] for timing in cycle)


def test_peak_is_that_of_a_process_with_torch(ask: Ask) -> None:
    assert ask("peak", TINY)["bytes"] > 100e6


@pytest.mark.parametrize(
    ("network", "changes", "message"),
    [
        (TINY, {"batch_size": 0}, "batch_size: 0, expected at least 1"),
        (TINY, {"batch_size": "largest"}, "largest is for GPUs"),
        (TINY, {"runtime": "tensorflow"}, "tensorflow"),
        ({"timm": {**RESNET["timm"], "name": "resnet18x"}}, {}, "'resnet18x'; did you mean"),
        ({"timm": {**RESNET["timm"], "image_size": 0}}, {}, "Error"),
        ({**TINY, "architecture": {"stages": []}}, {}, "architecture: image_size: is required"),
    ],
)
def test_a_failed_job_leaves_the_worker_alive(
    ask: Ask, network: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrialError, match=message):
        ask("logits", network, **changes)
    assert len(ask("logits", TINY)["logits"]) == 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_job_for_one_is_refused(ask: Ask) -> None:
    with pytest.raises(TrialError, match="finds no NVIDIA GPU"):
        ask("logits", TINY, device="cuda")


def test_the_device_names_torch_and_timm(torch_process: Channel) -> None:
    runtimes = torch_process.device["runtimes"]
    assert {"torch", "timm", "numpy"} <= set(runtimes)
    assert ("gpu" in torch_process.device) == torch.cuda.is_available()


@pytest.mark.slow
def test_each_network_is_compiled_once_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setattr(torch_worker, "cpp_compiler", lambda: "c++")
    runners: list[tuple[CpuRunner, Tensor]] = []
    # More than torch.compile may keep of one function.
    with torch._dynamo.config.patch(recompile_limit=2):
        for width in (8, 16, 24, 32):
            stage = {"depth": 1, "embed_dim": width, "num_heads": 1, "key_dim": 8}
            network = {**TINY, "architecture": tiny_description(stages=[stage])}
            runner = CpuRunner(JOB, network, compiled=True)
            runners.append((runner, CpuRunner(JOB, network, compiled=False).run()))
        for runner, expected in runners * 2:
            torch.testing.assert_close(runner.run(), expected)
    assert len(graphs) == 4


@pytest.mark.slow
@pytest.mark.skipif(torch_worker.cpp_compiler() is None, reason="needs a C++ compiler")
def test_inductor_compiles_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One layer without vector instructions: compiling a network takes a minute.
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    from torch._inductor import config

    layer = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Hardswish()).eval()
    quick = {"compile_threads": 1, "cpp_cache_precompile_headers": False, "cpp.vec_isa_ok": False}
    with config.patch(quick), torch.inference_mode():
        compiled = torch_worker.forward_of(layer, compiled=True)
        images = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(compiled(images), layer(images))


def test_compiling_without_a_compiler_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler here: \$CXX, g\+\+ or clang\+\+"):
        RUNTIMES["torch-compiled"](JOB, TINY)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 0.05), ("bf16", 0.1)]
)
def test_a_gpu_gives_the_same_logits(ask: Ask, precision: str, tolerance: float) -> None:
    expected = expected_tiny()
    for network in (TINY, MAPS):
        logits = ask("logits", network, device="cuda", precision=precision)["logits"]
        assert logits == pytest.approx(expected, abs=tolerance * max(map(abs, expected)))


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_is_timed_by_its_own_clock(ask: Ask) -> None:
    answer = ask("round", TINY, MAPS, RESNET, device="cuda", precision="fp16", seconds=0.2)
    assert answer["batch_sizes"] == [2, 2, 2]
    assert set(answer["notes"]) <= {"contiguous", "channels last"}
    for cycle in answer["cycles"]:
        for timing in cycle:
            assert 0 < timing["device"] <= 1.01 * timing["wall"]
            assert timing["single"] > 0


@pytest.mark.gpu
@needs_gpu
def test_the_largest_batch_is_settled_once_and_leaves_room(ask: Ask) -> None:
    job = {"device": "cuda", "precision": "fp16", "batch_size": "largest", "seconds": 0.1}
    large = {"architecture": architecture.load("LeViT-384").model_dump(mode="json")}
    large["layout"] = "tokens"
    sizes = [ask("round", large, large, MAPS, **job)["batch_sizes"] for _ in range(2)]
    assert sizes[0] == sizes[1]
    assert sizes[0][0] == sizes[0][1]
    assert all(1 <= size <= torch_worker.LARGEST_BATCH for size in sizes[0])
    assert all(size & (size - 1) == 0 for size in sizes[0])


@pytest.mark.gpu
@needs_gpu
def test_memory_of_a_gpu_is_that_of_one_network() -> None:
    first = RUNTIMES["torch"](CUDA, RESNET)
    second = RUNTIMES["torch"]({**CUDA, "batch_size": 64}, RESNET)
    weights = sum(p.numel() for p in fresh_network(RESNET, 0)[0].parameters()) * 4
    images = 64 * 3 * 32 * 32 * 4
    assert first.peak_memory_bytes() >= weights
    assert weights + images < second.peak_memory_bytes() < weights + 200 * images


@pytest.mark.gpu
@needs_gpu
def test_running_out_of_memory_is_one_line_and_does_no_harm(ask: Ask) -> None:
    large = {"timm": {**RESNET["timm"], "image_size": 1024}}
    with pytest.raises(TrialError, match=r"CUDA ran out of memory at batch 8192$"):
        ask("logits", large, device="cuda", batch_size=8192)
    assert len(ask("logits", TINY, device="cuda")["logits"]) == 10


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_runs_compiled_networks(ask: Ask) -> None:
    expected = expected_tiny()
    logits = ask("logits", TINY, device="cuda", runtime="torch-compiled")["logits"]
    assert logits == pytest.approx(expected, abs=1e-3 * max(map(abs, expected)))
