"""The worker on an emulated aarch64, over a pipe, as on a device: nothing but the one file."""

import fcntl
import json
import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from levit_search import architecture
from levit_search.architecture import Architecture
from levit_search.latency import worker
from tests import aarch64
from tests.networks import tiny_description

_REASON = aarch64.missing()
pytestmark = [
    pytest.mark.emulator,
    pytest.mark.skipif(_REASON is not None, reason=_REASON or ""),
]

# An answer takes seconds where the runtime is loaded first; a loaded machine needs many more.
_PATIENCE_S = 120

JOB = {"runtime": "onnxruntime", "threads": 1, "seed": 0}


class PipedWorker:
    """The worker sent through a pipe to the Python that a command starts."""

    def __init__(self, python: list[str], locks: Path) -> None:
        self.python, self.locks = python, locks
        self.process = subprocess.Popen(
            [*python, "-c", worker.BOOTSTRAP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "LEVIT_SEARCH_LOCKS": str(locks)},
        )
        self._answers: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        source = Path(worker.__file__).read_bytes()
        self._write(b"%d\n" % len(source) + source)
        self.ready = self.answer()

    def ask(self, do: str, **job: Any) -> dict[str, Any]:
        self.send(do, **job)
        return self.answer()

    def send(self, do: str, **job: Any) -> None:
        self._write(json.dumps({"do": do, **job}).encode() + b"\n")

    def send_file(self, path: Path) -> None:
        content = path.read_bytes()
        self.send("file", name=path.name, bytes=len(content))
        self._write(content)

    def answer(self, patience_s: float = _PATIENCE_S) -> dict[str, Any]:
        line = self._answers.get(timeout=patience_s)
        assert line, f"the worker ended with {self.process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        assert answer["event"] != "error", answer["message"]
        return answer

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=_PATIENCE_S)

    def _write(self, content: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(content)
        self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line)
        self._answers.put(b"")


def _graph(network: Architecture, path: Path) -> Path:
    """An ONNX file of ``network`` for one image, with logits that every layer has a part in.

    The norms of a fresh network leave out most of its residual branches: theirs get noise.
    """
    import torch

    from levit_search.model import build, export_onnx

    torch.manual_seed(0)
    model = build(network)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.5 * torch.randn_like(parameter))
    export_onnx(model, path, 1)
    return path


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two networks, the first the smaller."""
    folder = tmp_path_factory.mktemp("graphs")
    wider = {"stages": [{"depth": 2, "embed_dim": 32, "num_heads": 2, "key_dim": 16}]}
    reference, candidate = (
        architecture.parse(description)
        for description in (tiny_description(), tiny_description(**wider))
    )
    return [
        _graph(reference, folder / "reference.onnx"),
        _graph(candidate, folder / "candidate.onnx"),
    ]


def _started(
    python: list[str], graphs: list[Path], factory: pytest.TempPathFactory
) -> Iterator[PipedWorker]:
    started = PipedWorker(python, factory.mktemp("locks"))
    try:
        for graph in graphs:
            started.send_file(graph)
        yield started
        assert started.end() == 0
    finally:
        started.process.kill()
        started.process.wait()


@pytest.fixture(scope="module")
def arm(graphs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipedWorker]:
    """One worker under the emulator for all tests, since it takes seconds to start."""
    yield from _started(aarch64.command(), graphs, tmp_path_factory)


@pytest.fixture(scope="module")
def x86(graphs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipedWorker]:
    """The same worker on this machine's own Python."""
    yield from _started([sys.executable], graphs, tmp_path_factory)


def _networks(graphs: list[Path]) -> list[dict[str, str]]:
    return [{"file": graph.name} for graph in graphs]


@pytest.mark.slow
def test_an_emulated_worker_tells_its_device(arm: PipedWorker, x86: PipedWorker) -> None:
    device = arm.ready["device"]
    assert arm.ready["event"] == "ready"
    assert arm.ready["protocol"] == worker.PROTOCOL
    assert device.keys() == x86.ready["device"].keys()
    assert device["machine"] == "aarch64"
    assert device["emulated"] is True
    assert x86.ready["device"]["emulated"] is False
    assert device["runtimes"].keys() == {"onnxruntime", "numpy"}
    assert device["runtimes"]["onnxruntime"] == aarch64.ONNXRUNTIME
    assert device["cores"] == x86.ready["device"]["cores"]
    assert device["cpu"] and "aarch64" in device["system"]


def _assert_same_logits(arm: PipedWorker, x86: PipedWorker, graph: Path) -> None:
    job = {**JOB, "networks": [{"file": graph.name}]}
    ours, theirs = (np.array(each.ask("logits", **job)["logits"]) for each in (arm, x86))
    assert np.ptp(theirs) > 0.5  # beside which 1e-5 is little
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_networks_are_sent_over_the_pipe_and_keep_their_logits(
    arm: PipedWorker, x86: PipedWorker, graphs: list[Path]
) -> None:
    for graph in graphs:
        _assert_same_logits(arm, x86, graph)


@pytest.mark.slow
def test_a_published_network_keeps_its_logits(
    arm: PipedWorker, x86: PipedWorker, tmp_path: Path
) -> None:
    # The same layers as at 224 px, which would take seconds more.
    network = architecture.fitted(
        architecture.load("LeViT-128S"), image_size=128, in_channels=3, num_classes=1000
    )
    graph = _graph(network, tmp_path / "levit-128s.onnx")
    for each in (arm, x86):
        each.send_file(graph)
    _assert_same_logits(arm, x86, graph)


@pytest.mark.slow
def test_a_round_under_the_emulator_is_complete(
    arm: PipedWorker, x86: PipedWorker, graphs: list[Path]
) -> None:
    job = {**JOB, "networks": _networks(graphs), "seconds": 0.2}
    found, native = (each.ask("round", **job) for each in (arm, x86))
    assert found.keys() == native.keys()
    assert found["event"] == "round"
    assert found["batch_sizes"] == native["batch_sizes"] == [1, 1]
    assert found["notes"] == native["notes"]
    assert len(found["cycles"]) >= 2
    for cycle in found["cycles"]:
        assert len(cycle) == 2
        for timing in cycle:
            assert timing.keys() == native["cycles"][0][0].keys()
            assert all(math.isfinite(value) and value > 0 for value in timing.values())
    assert found["prepare_s"] > 0 and found["timing_s"] >= 0.2


@pytest.mark.slow
def test_peak_memory_is_taken_by_an_emulated_child(arm: PipedWorker, graphs: list[Path]) -> None:
    job = {**JOB, "networks": _networks(graphs)[1:], "python": arm.python}
    found = arm.ask("peak", **job)
    assert found["event"] == "peak"
    assert 20e6 < found["bytes"] < 2e9  # Python, numpy and the runtime


@pytest.mark.slow
def test_an_emulated_round_has_the_host_to_itself(arm: PipedWorker, graphs: list[Path]) -> None:
    def is_held(path: Path) -> bool:
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    gate, cores = (arm.locks / f"levit-search.{name}" for name in ("gate", "cores"))
    cores.touch()
    with open(cores) as training:
        fcntl.flock(training, fcntl.LOCK_SH)
        arm.send("round", **JOB, networks=_networks(graphs), seconds=0.1)
        with pytest.raises(queue.Empty):
            arm.answer(patience_s=1)
        assert is_held(gate)  # nobody else gets past it while the worker waits for the cores
    assert arm.answer()["event"] == "round"
    assert [is_held(path) for path in (gate, cores)] == [False, False]
