"""The paired protocol on this machine, and what happens when its worker misbehaves."""

import json
import multiprocessing
import multiprocessing.synchronize
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from levit_search import architecture
from levit_search.architecture import Architecture
from levit_search.errors import InputError, TrialError
from levit_search.latency import LatencyConfig, Probe, channel, worker
from levit_search.latency.cache import Cache, cache_key, samples_from
from levit_search.latency.protocol import (
    Round,
    Samples,
    Timing,
    bootstrap_interval,
    estimate,
    measurement,
)
from levit_search.latency.sharing import between_probes
from levit_search.model import LevitModel, export_onnx, fold
from tests.conftest import needs
from tests.networks import tiny_description

QUICK: dict[str, Any] = {"seconds": 0.2, "rounds": 2, "reference": tiny_description()}


def wider(network: Architecture) -> Architecture:
    description = network.model_dump(mode="json")
    description["stem"]["channels"] = [64, 128]
    description["stages"] = [{"depth": 3, "embed_dim": 128, "num_heads": 8, "key_dim": 16}]
    return architecture.parse(description)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small and a larger network measured once, for the tests that only look."""
    folder = tmp_path_factory.mktemp("cache")
    tiny = architecture.parse(tiny_description())
    with Probe(LatencyConfig(**QUICK), cache=Cache(folder)) as probe:
        same, larger = probe.measure_all([tiny, wider(tiny)])
    return {"same": same, "larger": larger, "folder": folder}


def test_a_larger_network_is_slower_and_the_reference_is_one(measured: dict[str, Any]) -> None:
    same, larger = measured["same"], measured["larger"]
    assert same.ratio_to_reference == pytest.approx(1, abs=0.5)
    assert larger.ratio_to_reference > 2 * same.ratio_to_reference
    assert larger.ratio_ci95[0] <= larger.ratio_to_reference <= larger.ratio_ci95[1]
    assert larger.latency_ms == pytest.approx(larger.ratio_to_reference * larger.reference_ms)
    assert larger.throughput_ips == pytest.approx(1000 / larger.latency_ms)
    assert larger.reference_ms == same.reference_ms, "networks measured together share one scale"


def test_single_runs_and_memory_are_recorded_beside_the_ratio(measured: dict[str, Any]) -> None:
    larger = measured["larger"]
    assert 0 < larger.latency_median_ms <= larger.latency_p95_ms
    assert larger.cpu_ms > 0 and larger.wall_ms > 0 and larger.device_ms is None
    # Python, numpy and the runtime take some tens of megabytes; this network a few more.
    assert 30 < larger.peak_memory_mb < 500


def test_the_device_is_told_with_all_that_latency_depends_on(measured: dict[str, Any]) -> None:
    device = measured["same"].device
    assert device["cpu"] == worker.device_name()
    assert device["cores"] >= 1
    assert set(device["runtimes"]) >= {"onnxruntime", "numpy"}
    assert {"governor", "machine", "transparent_huge_pages", "emulated"} <= device.keys()
    assert device["emulated"] is False


def test_raw_samples_are_kept_and_give_the_measurement_again(measured: dict[str, Any]) -> None:
    larger = measured["larger"]
    kept = json.loads(Path(larger.samples_file).read_text())
    assert Path(larger.samples_file).parent == measured["folder"]
    samples = samples_from(kept["samples"])
    again = measurement(
        LatencyConfig(**QUICK), samples, larger.reference_ms, larger.samples_file, cached=False
    )
    assert again == larger


def test_nothing_is_measured_twice_unless_it_is_asked_for(
    measured: dict[str, Any], tiny: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(measured["folder"])
    with Probe(LatencyConfig(**QUICK), cache=cache) as probe:
        monkeypatch.setattr(probe, "_ask", None)  # any job would fail
        again = probe.measure(wider(tiny))
    assert again.cached
    assert again.ratio_to_reference == measured["larger"].ratio_to_reference
    with Probe(LatencyConfig(**QUICK), cache=cache, fresh=True) as probe:
        fresh = probe.measure(tiny)
    assert not fresh.cached
    assert fresh.samples_file == measured["same"].samples_file


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 2},
        {"threads": 2},
        {"runtime": "torch"},
        {"runtime": "torch", "precision": "bf16"},
    ],
)
def test_other_settings_are_another_entry_of_the_cache(change: dict[str, Any]) -> None:
    device = {"machine": "x", "runtimes": {"onnxruntime": "1", "torch": "2"}}
    usual = cache_key(LatencyConfig(), device, "a-tokens", "r-tokens")
    assert usual == cache_key(LatencyConfig(seconds=9), device, "a-tokens", "r-tokens")
    assert usual != cache_key(LatencyConfig(**change), device, "a-tokens", "r-tokens")
    assert usual != cache_key(LatencyConfig(), {**device, "cpu": "y"}, "a-tokens", "r-tokens")
    newer = {**device, "runtimes": {"onnxruntime": "2"}}
    assert usual != cache_key(LatencyConfig(), newer, "a-tokens", "r-tokens")


def test_samples_serve_only_who_asks_for_no_more(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path), {"network": "a"}
    cache.keep(key, made_samples([[2.0, 2.1, 1.9, 2.0]] * 4), seconds=1)  # 10 % wide
    assert cache.find(key, LatencyConfig(interval_percent=50, seconds=100)) is not None
    assert cache.find(key, LatencyConfig(interval_percent=0.1, seconds=1)) is not None
    assert cache.find(key, LatencyConfig(interval_percent=0.1, seconds=9)) is None
    for text in ('{"rounds": [', "[]", '{"seconds": 9, "samples": {"rounds": [{}]}}'):
        cache.path(key).write_text(text)
        assert cache.find(key, LatencyConfig()) is None, "a torn or foreign file is measured again"


def made_round(ratios: list[float], reference: float = 2.0, timing_s: float = 0.25) -> Round:
    """Pairs of a reference of 2 ms CPU time, whose wall times say something else."""

    def timing(cpu: float, wall: float) -> Timing:
        return {"cpu": cpu, "wall": wall, "single": wall}

    cycles = [[timing(reference, 3.0), timing(r * reference, 30.0)] for r in ratios]
    return Round(cycles, [1, 1], 0.0, timing_s)


def made_samples(rounds: list[list[float]]) -> Samples:
    device = {"runtimes": {"onnxruntime": "1"}}
    return Samples([made_round(ratios) for ratios in rounds], "tokens", "", 50_000_000, device)


def test_the_ratio_is_the_median_over_pairs_on_the_clock_that_counts() -> None:
    samples = made_samples([[2.0, 3.0, 20.0]])  # the last one an outlier
    one_thread = measurement(LatencyConfig(), samples, 2.0)
    assert one_thread.ratio_to_reference == 3.0
    assert one_thread.latency_ms == 6.0
    assert one_thread.peak_memory_mb == 50.0
    rounds = [replace(each, batch_sizes=[4, 4]) for each in samples.rounds]
    by_fours = replace(samples, rounds=rounds)
    two_threads = measurement(LatencyConfig(threads=2, batch_size=4), by_fours, 3.0)
    assert two_threads.ratio_to_reference == 10.0
    assert two_threads.throughput_ips == pytest.approx(1000 * 4 / 30.0)


def test_ratios_are_by_image_where_batches_differ() -> None:
    # Half the images in twice the time.
    rounds = [replace(made_round([2.0] * 4), batch_sizes=[8, 4])]
    found = measurement(LatencyConfig(), replace(made_samples([[1.0]]), rounds=rounds), 2.0)
    assert found.ratio_to_reference == 4.0
    assert found.latency_ms == 4.0
    assert found.throughput_ips == pytest.approx(1000.0)


def test_an_outlier_round_does_not_count() -> None:
    chance = np.random.default_rng(0)
    usual = [list(chance.normal(2.0, 0.02, size=10)) for _ in range(6)]
    found = estimate([made_round(ratios) for ratios in [*usual, [2.4] * 10]], "cpu")
    assert found.outliers == (6,)
    assert found.ratio == pytest.approx(2.0, rel=0.01)
    assert estimate([made_round(ratios) for ratios in usual], "cpu").outliers == ()


@pytest.mark.slow
def test_the_interval_covers_the_true_ratio_when_rounds_have_luck_of_their_own() -> None:
    """Pairs of a round share its sessions' luck, which pairs alone would not show."""
    chance = np.random.default_rng(1)
    covered = covered_by_pairs = 0
    for _ in range(200):
        luck = chance.lognormal(0.0, 0.02, size=8)
        rounds = [each * chance.lognormal(0.0, 0.04, size=10) for each in luck]
        low, high = bootstrap_interval(rounds, resamples=200)
        covered += low <= 1.0 <= high
        low, high = bootstrap_interval([np.concatenate(rounds)], resamples=200)
        covered_by_pairs += low <= 1.0 <= high
    assert covered >= 180
    assert covered_by_pairs < covered
    assert bootstrap_interval([np.full(20, 2.5)] * 3) == (2.5, 2.5)


class Scripted:
    """Stands for a worker: every network takes its ratio times 1 ms, with noise."""

    def __init__(self, noise: float, timing_s: float) -> None:
        self._noise, self._timing_s = noise, timing_s
        self._chance = np.random.default_rng(0)
        self.asked: list[str] = []
        self.failing: set[int] = set()

    def __call__(
        self, do: str, entries: list[Any], seconds: float = 0.0, untimed_runs: int = 0
    ) -> dict[str, Any]:
        self.asked.append(do)
        if do == "peak":
            return {"bytes": 1}
        if len(self.asked) in self.failing:
            raise TrialError("no luck")
        factors = [1.0] + [2.0 + index for index in range(len(entries) - 1)]
        cycles = []
        for _ in range(10):
            times = [f * self._chance.lognormal(0, self._noise) for f in factors]
            cycles.append([{"cpu": t, "wall": t, "single": t} for t in times])
        sizes = [1] * len(entries)
        notes = [""] * len(entries)
        return {
            "cycles": cycles,
            "batch_sizes": sizes,
            "notes": notes,
            "prepare_s": 0.0,
            "timing_s": self._timing_s,
        }


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Probe, Scripted]]:
    def make(noise: float, **changes: Any) -> tuple[Probe, Scripted]:
        probe = Probe(LatencyConfig(reference=tiny_description(), **changes))
        answers = Scripted(noise, probe.config.seconds / probe.config.rounds)
        monkeypatch.setattr(probe, "_ask", answers)
        monkeypatch.setattr(probe, "_graph", lambda network, layout: Path(network.id))
        monkeypatch.setattr(
            probe, "connect", lambda: {"cpu": "x", "runtimes": {"onnxruntime": "1"}}
        )
        return probe, answers

    return make


def test_measuring_stops_once_the_interval_is_narrow_and_says_when_time_was_up(
    scripted: Callable[..., tuple[Probe, Scripted]], tiny: Architecture
) -> None:
    calm, answers = scripted(0.001)
    found = calm.measure(wider(tiny))
    assert found.converged and found.rounds == 4 < calm.config.rounds
    assert answers.asked.count("round") == 4
    noisy, answers = scripted(0.1)
    found = noisy.measure(tiny)
    assert not found.converged
    assert 2.0 <= found.timing_seconds <= 3.0, "outliers are measured again for half the time"


def test_rounds_of_networks_alternate(
    scripted: Callable[..., tuple[Probe, Scripted]], tiny: Architecture
) -> None:
    probe, answers = scripted(0.3)
    order: list[str] = []
    answer = answers.__call__
    probe._ask = lambda do, entries, *rest: (  # type: ignore[method-assign]
        order.append(str(entries[-1])) or answer(do, entries, *rest)
    )
    found = probe.measure_all([tiny, wider(tiny)])
    assert [str(entry) for entry in order[4:8]] == [tiny.id, wider(tiny).id] * 2
    assert all(not isinstance(each, TrialError) for each in found)


def test_a_network_that_fails_leaves_the_others_alone(
    scripted: Callable[..., tuple[Probe, Scripted]], tiny: Architecture
) -> None:
    probe, answers = scripted(0.01)
    answers.failing = {2}
    failed, fine = probe.measure_all([tiny, wider(tiny)])
    assert isinstance(failed, TrialError) and "no luck" in str(failed)
    assert not isinstance(fine, TrialError)
    assert not list(Cache().folder.glob(f"{tiny.id}*")), "what failed is not kept"


def test_the_faster_layout_is_taken_and_named(
    scripted: Callable[..., tuple[Probe, Scripted]], tiny: Architecture
) -> None:
    probe, _ = scripted(0.01, layout="fastest")  # whatever comes second takes longer here
    found = probe.measure(tiny)
    assert found.layout == "tokens"
    assert found.ratio_to_reference == pytest.approx(2.0, rel=0.05)
    assert {path.name.split("-")[1] for path in Cache().folder.iterdir()} == {"tokens", "maps"}


def test_a_settled_reference_scales_every_later_latency(
    scripted: Callable[..., tuple[Probe, Scripted]], tiny: Architecture
) -> None:
    probe, _ = scripted(0.01)
    settled = probe.settle_reference(tiny)
    later = probe.measure(wider(tiny))
    assert later.reference_ms == settled.reference_ms


@pytest.mark.parametrize("target", ["cpu", {"kind": "command", "python": [sys.executable]}])
def test_an_exported_graph_is_timed_with_the_batch_of_the_configuration(
    target: Any, tiny: Architecture, tmp_path: Path
) -> None:
    graphs = [tmp_path / name / "model.onnx" for name in ("small", "large")]
    for graph, network in zip(graphs, (tiny, wider(tiny)), strict=True):
        graph.parent.mkdir()
        export_onnx(LevitModel(network), graph, batch_size=None)
    config = LatencyConfig.model_validate({**QUICK, "batch_size": 3, "target": target})
    with Probe(config, cache=Cache(tmp_path / "samples")) as probe:
        small, large = (probe.measure_graph(graph, tiny) for graph in graphs)
        reference, _ = probe.reference_graph(tiny)
        probe.settled_ms[reference.id] = 2 * large.reference_ms
        settled = probe.measure_graph(graphs[1], tiny)
    assert small.batch_size == large.batch_size == 3
    assert large.layout == "exported" and not large.cached and large.samples_file is None
    assert large.ratio_to_reference > 2 * small.ratio_to_reference, "each file is its own"
    assert large.peak_memory_mb is not None and large.peak_memory_mb > 10
    assert settled.reference_ms == 2 * large.reference_ms
    assert graphs[0].is_file() and not [*(tmp_path / "samples").glob("*")]


def test_the_runtimes_of_torch_time_no_graphs(tiny: Architecture, tmp_path: Path) -> None:
    with Probe(LatencyConfig(runtime="torch")) as probe, pytest.raises(TrialError) as raised:
        probe.measure_graph(tmp_path / "model.onnx", tiny)
    assert "runtime torch runs no ONNX graphs, so that model.onnx" in str(raised.value)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_worker_answers_alone_with_the_logits_of_torch(
    runtime: str, tiny: Architecture, tmp_path: Path
) -> None:
    """As on a device: the one file through a pipe, numpy and the runtime, nothing of ours."""
    needs(runtime)
    torch.manual_seed(0)
    model = LevitModel(tiny)
    graph = tmp_path / "net.onnx"
    export_onnx(model, graph, batch_size=2)
    jobs = [
        {"do": "file", "name": "../net.onnx", "bytes": graph.stat().st_size},
        {"do": "logits", "networks": [{"file": "net.onnx"}]},
        {"do": "round", "networks": [{"file": "net.onnx"}] * 2, "seconds": 0.05},
        {"do": "peak", "networks": [{"file": "net.onnx"}]},
        {"do": "logits", "networks": [{"file": "absent.onnx"}]},
    ]
    usual = {"runtime": runtime, "threads": 1, "seed": 3}
    source = Path(worker.__file__).read_bytes()
    sent = b"%d\n" % len(source) + source
    for job in jobs:
        sent += json.dumps({**usual, **job}).encode() + b"\n"
        sent += graph.read_bytes() if job["do"] == "file" else b""
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", worker.BOOTSTRAP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(sent)
    process.stdin.flush()
    messages = [json.loads(process.stdout.readline()) for _ in range(5)]
    process.stdin.close()
    assert process.wait(timeout=20) == 0, "the end of its input ends the worker"
    events = [message["event"] for message in messages]
    assert events == ["ready", "logits", "round", "peak", "error"]
    images = np.random.default_rng(3).standard_normal((2, 1, 16, 16), dtype=np.float32)
    expected = fold(model)(torch.from_numpy(images))[0]
    np.testing.assert_allclose(messages[1]["logits"], expected.detach(), atol=1e-5)
    assert messages[2]["batch_sizes"] == [2, 2]
    assert all(set(t) == {"cpu", "wall", "single"} for c in messages[2]["cycles"] for t in c)
    cpu = [t["cpu"] for cycle in messages[2]["cycles"] for t in cycle]
    wall = [t["wall"] for cycle in messages[2]["cycles"] for t in cycle]
    assert 0.2 < np.median(cpu) / np.median(wall) < 1.5, "the thread that computes is the one timed"
    assert messages[3]["bytes"] > 2e7
    assert not (tmp_path.parent / "net.onnx").exists(), "a file's name leads nowhere else"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("print('rubbish', flush=True); input()", "not an answer: 'rubbish"),
        ("import sys; sys.exit('no onnxruntime here')", "exit code 1 (no onnxruntime here)"),
        ("import os; os.kill(os.getpid(), 9)", "ended with SIGKILL"),
        ("import time; time.sleep(60)", "no answer for 1 s"),
        ('print(\'{"event": "ready", "protocol": 1}\', flush=True)', "speaks protocol 1, not"),
        (
            "import json\n"
            "print(json.dumps({'event': 'ready', 'protocol': PROTOCOL, 'device': "
            "{'runtimes': {}, 'python': '3.9'}}), flush=True)\ninput()\n",
            "onnxruntime is not installed there (found: nothing)",
        ),
        (
            "import json\n"
            "print(json.dumps({'event': 'ready', 'protocol': PROTOCOL, 'device': "
            "{'runtimes': {'onnxruntime': '1'}}}), flush=True)\ninput()\n"
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
    path.write_text(f"PROTOCOL = {worker.PROTOCOL}\n{script}")
    monkeypatch.setattr(channel.worker, "__file__", str(path))
    patience_s = 1 if "sleep" in script else 60
    with (
        Probe(LatencyConfig(**QUICK, patience_s=patience_s)) as probe,
        pytest.raises(TrialError) as raised,
    ):
        probe.measure(tiny)
    assert told in str(raised.value)
    assert "probe on cpu" in str(raised.value)


def test_a_probe_works_again_after_its_worker_died(tiny: Architecture) -> None:
    with Probe(LatencyConfig(**QUICK), fresh=True) as probe:
        probe.measure(tiny)
        assert probe._channel is not None
        pipe = probe._channel._pipe
        assert isinstance(pipe, channel.ProcessPipe)
        os.kill(pipe.process_id, signal.SIGKILL)
        pipe._process.wait()
        assert probe.measure(tiny).pairs >= 4, "it died between two networks, the fault of neither"


def test_a_reference_that_does_not_fit_is_wrong_input(tiny: Architecture) -> None:
    too_deep = {**tiny_description(), "image_size": 4}
    too_deep["stem"] = {"kind": "conv", "layers": 1}
    small = architecture.parse(too_deep)
    with Probe(LatencyConfig(reference="LeViT-256")) as probe, pytest.raises(InputError):
        probe.measure(small)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"target": "cuda", "runtime": "onnxruntime"}, "on a GPU use torch or torch-compiled"),
        ({"precision": "fp16"}, "fp16 needs runtime torch or torch-compiled, not onnxruntime"),
        ({"batch_size": "largest"}, "largest is for GPUs"),
        ({"runtime": "onxruntime"}, "did you mean 'onnxruntime'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(section: dict[str, Any], told: str) -> None:
    from levit_search.configuration import validated

    with pytest.raises(InputError) as raised:
        validated(LatencyConfig, section, "latency")
    assert told in str(raised.value)


def _hold_host(held: "multiprocessing.synchronize.Event", seconds: float) -> None:
    with worker.host_to_itself():
        held.set()
        time.sleep(seconds)


@pytest.mark.slow
def test_training_pauses_while_a_probe_has_the_host() -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold_host, args=(held, 1.0))
    stamps = []
    with between_probes(range(4)) as batches:
        for batch in batches:
            if batch == 1:
                process.start()
                time.sleep(0.2)
                assert not held.is_set(), "the probe waits for the batch that is being trained"
            if batch == 2:
                assert held.is_set()
            stamps.append(time.monotonic())
            if batch == 1:
                # Another batch starts only after the probe that waits has had the host.
                while process.exitcode is None and not _gate_is_held():
                    time.sleep(0.01)
    process.join(20)
    assert process.exitcode == 0
    assert stamps[2] - stamps[1] >= 0.9


def _gate_is_held() -> bool:
    import fcntl

    handle = worker.open_lock(worker.lock_paths()[0])
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def test_a_batch_that_fails_gives_the_host_back() -> None:
    def train() -> None:
        with between_probes(range(3)) as batches:
            for _ in batches:
                raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        train()
    with worker.host_to_itself():  # would wait for ever
        pass
