"""The paired protocol on this machine, and what happens when its worker misbehaves."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from levit_search import architecture
from levit_search.architecture import Architecture
from levit_search.errors import InputError, TrialError
from levit_search.latency import LatencyConfig, LocalProbe, local, worker
from levit_search.latency.protocol import measurement
from levit_search.model import LevitModel, export_onnx, fold
from tests.networks import tiny_description

QUICK: dict[str, Any] = {"seconds": 0.2, "rounds": 2, "reference": tiny_description()}


def wider(network: Architecture) -> Architecture:
    description = network.model_dump(mode="json")
    description["stem"]["channels"] = [64, 128]
    description["stages"] = [{"depth": 3, "embed_dim": 128, "num_heads": 8, "key_dim": 16}]
    return architecture.parse(description)


def test_a_larger_network_is_slower_and_the_reference_is_one(tiny: Architecture) -> None:
    with LocalProbe(LatencyConfig(**QUICK)) as probe:
        same, larger = probe.measure(tiny), probe.measure(wider(tiny))
    assert same.ratio_to_reference == pytest.approx(1, abs=0.5)
    assert larger.ratio_to_reference > 2 * same.ratio_to_reference
    assert larger.ratio_ci95[0] <= larger.ratio_to_reference <= larger.ratio_ci95[1]
    assert larger.latency_ms == pytest.approx(larger.ratio_to_reference * larger.reference_ms)
    assert larger.throughput_ips == pytest.approx(1000 / larger.latency_ms)


def test_a_settled_reference_scales_every_later_latency(tiny: Architecture) -> None:
    with LocalProbe(LatencyConfig(**QUICK)) as probe:
        settled = probe.settle_reference(tiny)
        later = probe.measure(wider(tiny))
    assert later.reference_ms == settled.reference_ms


def test_the_ratio_is_the_median_over_pairs_on_the_clock_that_counts() -> None:
    # Reference 2 ms of CPU, candidate 4, 6 and 40 (an outlier); wall times say something else.
    pairs = [[[2.0, 3.0], [cpu, 30.0]] for cpu in (4.0, 6.0, 40.0)]
    device = {"onnxruntime": "1"}
    one_thread = measurement(LatencyConfig(), pairs, 1.0, device)
    assert one_thread.ratio_to_reference == 3.0
    assert one_thread.latency_ms == 6.0
    two_threads = measurement(LatencyConfig(threads=2, batch_size=4), pairs, 1.0, device)
    assert two_threads.ratio_to_reference == 10.0
    assert two_threads.throughput_ips == pytest.approx(1000 * 4 / 30.0)


def test_the_bootstrap_interval_covers_the_true_median() -> None:
    chance = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = worker.bootstrap_interval(chance.lognormal(0.0, 0.1, size=60))
        covered += low <= 1.0 <= high
    assert covered >= 85
    assert math.isclose(*worker.bootstrap_interval(np.full(20, 2.5)))


def test_the_worker_answers_alone_with_the_logits_of_torch(
    tiny: Architecture, tmp_path: Path
) -> None:
    """As on a device: a copy of the one file, numpy and onnxruntime, and nothing of the package."""
    torch.manual_seed(0)
    model = LevitModel(tiny)
    export_onnx(model, tmp_path / "net.onnx", batch_size=2)
    alone = tmp_path / "worker.py"
    alone.write_text(Path(worker.__file__).read_text())
    job = {
        "candidate": str(tmp_path / "net.onnx"),
        "reference": str(tmp_path / "net.onnx"),
        "threads": 1,
        "seconds": 0.05,
        "rounds": 1,
        "interval_percent": 2.0,
        "seed": 3,
    }
    process = subprocess.Popen(
        [sys.executable, str(alone)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    messages = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.stdin.close()
    assert process.wait(timeout=20) == 0, "the end of its input ends the worker"
    assert [message["event"] for message in messages] == ["ready", "pairs", "done"]
    images = np.random.default_rng(3).standard_normal((2, 1, 16, 16), dtype=np.float32)
    expected = fold(model)(torch.from_numpy(images))[0]
    np.testing.assert_allclose(messages[2]["logits"], expected.detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("print('rubbish'); input()", "not an answer: 'rubbish"),
        ("import sys; sys.exit('no onnxruntime here')", "ended with 1 (no onnxruntime here)"),
        ("import time; time.sleep(60)", "no answer for 1 s"),
        (
            "import json\n"
            "print(json.dumps({'event': 'ready', 'device': {}}), flush=True)\ninput()\n"
            "print(json.dumps({'event': 'error', 'message': 'MemoryError: no room'}), flush=True)\n"
            "input()",
            "MemoryError: no room",
        ),
    ],
)
def test_a_misbehaving_worker_fails_the_trial_with_its_reason(
    script: str,
    told: str,
    tiny: Architecture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "bad_worker.py"
    path.write_text(script)
    monkeypatch.setattr(local.worker, "__file__", str(path))
    monkeypatch.setattr(local, "_GRACE_S", 1 if "sleep" in script else 60)
    with LocalProbe(LatencyConfig(**QUICK)) as probe, pytest.raises(TrialError) as raised:
        probe.measure(tiny)
    assert told in str(raised.value)
    assert "probe on cpu" in str(raised.value)


def test_a_probe_works_again_after_its_worker_died(
    tiny: Architecture, space_file: Callable[..., Path]
) -> None:
    with LocalProbe(LatencyConfig(**QUICK)) as probe:
        probe.measure(tiny)
        assert probe._process is not None
        probe._process.kill()
        probe._process.wait()
        assert probe.measure(tiny).pairs >= 5


def test_a_reference_that_does_not_fit_is_wrong_input(tiny: Architecture) -> None:
    too_deep = {**tiny_description(), "image_size": 4}
    too_deep["stem"] = {"kind": "conv", "layers": 1}
    small = architecture.parse(too_deep)
    with LocalProbe(LatencyConfig(reference="LeViT-256")) as probe, pytest.raises(InputError):
        probe.measure(small)
