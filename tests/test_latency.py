"""The paired protocol on this machine, and what happens when its worker misbehaves."""

import importlib
import itertools
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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from levit_search import architecture
from levit_search.architecture import Architecture
from levit_search.errors import InputError, TrialError
from levit_search.latency import LatencyConfig, Probe, channel, worker
from levit_search.latency.cache import Cache, cache_key, samples_from
from levit_search.latency.host_lock import between_probes
from levit_search.latency.protocol import (
    Round,
    Samples,
    Timing,
    estimate,
    is_settled,
    mean_interval,
    measurement,
    repeat_sd,
)
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
    tiny: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, config = (
        Cache(tmp_path),
        LatencyConfig(**{**QUICK, "seconds": 2.0, "rounds": 40}, interval_percent=900),
    )
    with Probe(config, cache=cache) as probe:
        first = probe.measure(tiny)
    with Probe(config, cache=cache) as probe:
        monkeypatch.setattr(probe, "_ask", None)  # any job would fail
        again = probe.measure(tiny)
    assert again.cached
    assert again.ratio_to_reference == first.ratio_to_reference
    with Probe(config, cache=cache, fresh=True) as probe:
        fresh = probe.measure(tiny)
    assert not fresh.cached
    assert fresh.samples_file == first.samples_file


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


def test_samples_are_found_unless_the_file_is_damaged(tmp_path: Path) -> None:
    cache, key = Cache(tmp_path), {"network": "a"}
    assert cache.find(key, "cpu") is None
    samples = made_samples([[2.0, 2.1, 1.9, 2.0]] * 4)
    cache.keep(key, samples)
    assert cache.find(key, "cpu") == samples
    for text in ('{"rounds": [', "[]", '{"seconds": 9, "samples": {"rounds": [{}]}}'):
        cache.path(key).write_text(text)
        with pytest.warns(UserWarning, match="measured again"):
            assert cache.find(key, "cpu") is None


def made_round(ratios: list[float], reference: float = 2.0, timing_s: float = 0.25) -> Round:
    """Pairs of a reference of 2 ms CPU time, whose wall times say something else."""

    def timing(cpu: float, wall: float) -> Timing:
        return {"cpu": cpu, "wall": wall, "single": wall}

    cycles = [[timing(reference, 3.0), timing(r * reference, 30.0)] for r in ratios]
    return Round(cycles, [1, 1], 0.0, timing_s)


def made_samples(rounds: list[list[float]]) -> Samples:
    device = {"runtimes": {"onnxruntime": "1"}}
    return Samples([made_round(ratios) for ratios in rounds], "tokens", "", 50_000_000, device)


def test_the_ratio_is_that_of_both_orders_alike_on_the_clock_that_counts() -> None:
    # Whoever runs second takes 1.21 times as long; one turn was disturbed.
    turns = [2.0 * 1.21, 2.0 / 1.21] * 3 + [20.0]
    samples = made_samples([turns] * 2)
    one_thread = measurement(LatencyConfig(), samples, 2.0)
    assert one_thread.ratio_to_reference == pytest.approx(2.0)
    assert one_thread.latency_ms == pytest.approx(4.0)
    assert one_thread.peak_memory_mb == 50.0
    rounds = [replace(each, batch_sizes=[4, 4]) for each in samples.rounds]
    by_fours = replace(samples, rounds=rounds)
    two_threads = measurement(LatencyConfig(threads=2, batch_size=4), by_fours, 3.0)
    assert two_threads.ratio_to_reference == pytest.approx(10.0)
    assert two_threads.throughput_ips == pytest.approx(1000 * 4 / 30.0)


def test_ratios_are_by_image_where_batches_differ() -> None:
    # Half the images in twice the time.
    rounds = [replace(made_round([2.0] * 4), batch_sizes=[8, 4])] * 2
    found = measurement(LatencyConfig(), replace(made_samples([[1.0]]), rounds=rounds), 2.0)
    assert found.ratio_to_reference == pytest.approx(4.0)
    assert found.latency_ms == pytest.approx(4.0)
    assert found.throughput_ips == pytest.approx(1000.0)


def test_an_interval_covers_what_other_sessions_would_show() -> None:
    def half_percent(ratio: float, settled_ms: float) -> float:
        found = measurement(LatencyConfig(), made_samples([[ratio] * 4] * 8), settled_ms)
        assert found.converged, "within this session all rounds agree"
        low, high = found.ratio_ci95
        assert low * high == pytest.approx(found.ratio_to_reference**2)
        return 50 * float(np.log(high / low))

    assert half_percent(2.0, 2.0) == pytest.approx(196 * repeat_sd(4.0))
    assert half_percent(0.1, 2.0) == pytest.approx(196 * repeat_sd(0.2))
    # The reference took twice its settled time.
    assert half_percent(0.1, 1.0) == pytest.approx(196 * repeat_sd(0.1, np.log(2)))
    assert half_percent(2.0, 1.0) == half_percent(2.0, 2.0), "which long networks mind little"
    assert half_percent(0.1, 1.0) > 5 * half_percent(0.1, 2.0)


def test_a_round_with_bad_luck_weighs_little_and_one_round_tells_nothing() -> None:
    chance = np.random.default_rng(0)
    usual = [list(chance.normal(2.0, 0.02, size=10)) for _ in range(11)]
    found = estimate([made_round(ratios) for ratios in [*usual, [2.8] * 10]], "cpu")
    assert found.ratio == pytest.approx(2.0, rel=0.01)
    assert found.width_percent < 3
    with pytest.raises(ValueError, match="takes 2"):
        estimate([made_round([2.0, 2.0])], "cpu")


@pytest.mark.parametrize("rounds", [2, 5, 7])
def test_few_rounds_have_students_interval(rounds: int) -> None:
    values = np.random.default_rng(rounds).normal(size=rounds)
    mean, half = mean_interval(values)
    error = stats.sem(values)
    assert mean == pytest.approx(values.mean())
    assert (mean - half, mean + half) == pytest.approx(
        stats.t.interval(0.95, rounds - 1, loc=values.mean(), scale=error)
    )


@pytest.mark.parametrize(("rounds", "out"), [(8, 1), (12, 1), (20, 2)])
def test_more_rounds_have_that_of_the_trimmed_mean(rounds: int, out: int) -> None:
    values = np.random.default_rng(rounds).standard_t(2, size=rounds)
    mean, half = mean_interval(values)
    assert mean == pytest.approx(stats.trim_mean(values, out / rounds))
    error = stats.mstats.trimmed_stde(values, limits=(out / rounds, out / rounds))
    assert half == pytest.approx(stats.t.ppf(0.975, rounds - 2 * out - 1) * error)


@pytest.mark.parametrize(
    "case",
    [
        {"order": 0.35, "turns": 7},
        {"sessions": 0.03, "rounds": 4},
        {"sessions": 0.01, "rounds": 8},
        {"sessions": 0.01},
        {"tails": 0.05},
        {"steps": 0.05, "correlation": 0.9},
    ],
)
def test_the_interval_holds_the_true_ratio_also_where_measuring_stops(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    simulation = importlib.import_module("estimator")
    chance = np.random.default_rng(2)
    found = np.array([simulation.stopped(simulation.drawn(chance, **case)) for _ in range(150)])
    ratio, low, high = found.T
    assert ratio.mean() == pytest.approx(simulation.TRUTH, rel=0.005)
    held = np.mean((low <= simulation.TRUTH) & (high >= simulation.TRUTH))
    assert held >= 0.88, "a standard error is 0.018, and 0.95 is what it should be"


def test_settled_is_what_stays_narrow() -> None:
    chance = np.random.default_rng(0)
    calm = [made_round([float(chance.normal(2, 0.004))] * 2) for _ in range(12)]
    assert not is_settled(calm[:7], "cpu", 2.0), "narrow, but after too few rounds"
    assert is_settled(calm[:8], "cpu", 2.0)
    disturbed = [*calm[:4], *[made_round([r, r]) for r in (1.9, 2.1, 1.9, 2.1)]]
    assert not is_settled(disturbed, "cpu", 2.0)


class Scripted:
    """Stands for a worker: every network takes its ratio times 1 ms, with noise."""

    def __init__(self, noise: float, timing_s: float) -> None:
        self._noise, self._timing_s = noise, timing_s
        self._chance = np.random.default_rng(0)
        self.asked: list[str] = []
        self.slower = ""
        self.logit = 64.0
        self.failing: set[int] = set()

    def __call__(
        self, do: str, entries: list[Any], seconds: float = 0.0, warm: bool = True
    ) -> dict[str, Any]:
        self.asked.append(do)
        if do == "peak":
            return {"bytes": 1}
        if do == "logits":
            return {"logits": [self.logit]}
        if len(self.asked) in self.failing:
            raise TrialError("no luck")
        factors = [1.0] + [2.0 + index for index in range(len(entries) - 1)]
        if self.slower and str(entries[-1]).endswith(self.slower):
            factors[-1] *= 1.5
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
            probe, "int8_graph", lambda graph, int8_format: Path(f"{graph}-{int8_format}")
        )
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
    assert found.converged and found.rounds == 8 < calm.config.rounds
    assert answers.asked.count("round") == 8
    noisy, answers = scripted(0.1)
    found = noisy.measure(tiny)
    assert not found.converged
    assert found.timing_seconds == pytest.approx(2.0, abs=0.2)


def test_what_did_not_converge_is_measured_on_and_what_did_is_not(
    scripted: Callable[..., tuple[Probe, Scripted]], tiny: Architecture
) -> None:
    noisy, _ = scripted(0.1)
    first = noisy.measure(tiny)
    assert not first.converged and first.rounds == 12
    noisy, answers = scripted(0.1)
    second = noisy.measure(tiny)
    new = answers.asked.count("round")
    assert new > 0 and second.rounds == 12 + new and not second.cached
    width = [high - low for low, high in (first.ratio_ci95, second.ratio_ci95)]
    assert width[1] < width[0]
    calm, answers = scripted(0.001)
    settled = calm.measure(wider(tiny))
    calm, answers = scripted(0.001)
    again = calm.measure(wider(tiny))
    assert again.cached and answers.asked == []
    assert again.rounds == settled.rounds


def test_samples_of_another_batch_size_are_not_gone_on_with(
    scripted: Callable[..., tuple[Probe, Scripted]], tiny: Architecture
) -> None:
    noisy, _ = scripted(0.1)
    first = noisy.measure(tiny)
    noisy, answers = scripted(0.1)
    answer = answers.__call__
    halved = lambda *asked: {**answer(*asked), "batch_sizes": [1, 2]}  # noqa: E731
    noisy._ask = lambda do, *rest: (  # type: ignore[method-assign]
        halved(do, *rest) if do == "round" else answer(do, *rest)
    )
    second = noisy.measure(tiny)
    assert second.batch_size == 2 and second.rounds <= first.rounds


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
    probe, answers = scripted(0.01, layout="fastest")
    probe._graph = lambda network, layout: Path(layout)  # type: ignore[method-assign]
    answers.slower = "tokens"
    found = probe.measure(tiny)
    assert found.layout == "maps"
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
        probe.reference_ms[reference.id] = 2 * large.reference_ms
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
        os.kill(pipe._process.pid, signal.SIGKILL)
        pipe._process.wait()
        assert probe.measure(tiny).pairs >= 4, "it died between two networks, the fault of neither"


@pytest.mark.parametrize(
    ("size", "made_for"),
    [((32, 48), (32, 48)), ((36, 100), (36, 100)), ((37, 99), (32, 96)), ((33, 40), 32)],
)
def test_the_reference_is_made_for_rectangles(size: Any, made_for: Any) -> None:
    found = LatencyConfig().reference_for(image_size=size, in_channels=3, num_classes=5)
    assert found.image_size == made_for


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


class Clockwork(worker.Runner):
    """Takes ``ms`` a run, five times as long in the first ``cold`` runs after another network."""

    last: "Clockwork | None" = None

    def __init__(self, ms: float, cold: int) -> None:
        self._ms, self._cold, self._since = ms, cold, 0

    def run(self) -> None:
        self.timed(1)

    def timed(self, repeats: int) -> dict[str, float]:
        if Clockwork.last is not self:
            Clockwork.last, self._since = self, 0
        slow = sum(self._since + index < self._cold for index in range(repeats))
        self._since += repeats
        return {"wall": self._ms * (1 + 4 * slow / repeats)}


@pytest.mark.parametrize(("cold", "untimed"), [(0, 0), (1, 1), (5, 5), (40, 0)])
def test_as_many_runs_are_untimed_as_are_slow(cold: int, untimed: int) -> None:
    both = [Clockwork(0.1, cold), Clockwork(5.0, 3)]
    assert worker._untimed(both, [20, 1]) == [untimed, 0], "a long one is timed by single runs"


def test_of_several_networks_each_follows_itself_as_often() -> None:
    order: list[int] = []

    class Noting(worker.Runner):
        def __init__(self, number: int) -> None:
            self.number = number

        def timed(self, repeats: int) -> dict[str, float]:
            order.append(self.number)
            return {"wall": float(self.number)}

    runners: list[worker.Runner] = [Noting(number) for number in range(3)]
    ticks = iter(range(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker.time, "perf_counter", lambda: next(ticks))
        cycles = worker._time_in_turn(runners, [1] * 3, [0] * 3, 14)
    assert len(cycles) % 6 == 0
    assert all([timing["wall"] for timing in cycle] == [0, 1, 2] for cycle in cycles)
    twice = [a for a, b in itertools.pairwise(order) if a == b]
    assert twice.count(0) == twice.count(1) == twice.count(2) > 0


def test_networks_run_first_as_often_as_last() -> None:
    for seconds in (0.0, 0.0003, 0.001):
        both: list[worker.Runner] = [Clockwork(1.0, 0), Clockwork(2.0, 0)]
        end = time.perf_counter() + seconds
        cycles = worker._time_in_turn(both, [1, 1], [0, 0], end)
        assert len(cycles) >= 2 and len(cycles) % 2 == 0
        assert all([each["wall"] for each in cycle] == [1.0, 2.0] for cycle in cycles)


class Options:
    """As ONNX Runtime's session options."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


def test_sessions_share_their_threads_or_let_them_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_pool_threads", None)
    made: list[tuple[int, int]] = []
    newer = SimpleNamespace(set_global_thread_pool_sizes=lambda *sizes: made.append(sizes))
    one, first, second, other = Options(), Options(), Options(), Options()
    worker.share_threads(newer, one, 1)
    assert vars(one) == {"entries": {}, "intra_op_num_threads": 1} and not made
    for options in (first, second):
        worker.share_threads(newer, options, 2)
        assert options.use_per_session_threads is False  # type: ignore[attr-defined]
    assert made == [(2, 1)], "a process has one pool"
    worker.share_threads(newer, other, 3)
    assert other.entries == {"session.force_spinning_stop": "1"}
    monkeypatch.setattr(worker, "_pool_threads", None)
    older = Options()
    worker.share_threads(SimpleNamespace(), older, 2)
    assert older.entries == {"session.force_spinning_stop": "1"}


def test_two_threads_are_measured(tiny: Architecture, tmp_path: Path) -> None:
    config = LatencyConfig.model_validate({**QUICK, "threads": 2})
    with Probe(config, cache=Cache(tmp_path)) as probe:
        found = probe.measure(tiny)
    assert found.threads == 2 and found.clock == "wall" and found.latency_ms > 0


def test_of_the_formats_of_int8_the_faster_counts_and_the_reference_stays_in_float(
    scripted: Callable[..., tuple[Probe, Scripted]], tiny: Architecture, tmp_path: Path
) -> None:
    def sized(depth: int) -> Architecture:
        stage = {"depth": depth, "embed_dim": 16, "num_heads": 2, "key_dim": 8}
        return architecture.parse(tiny_description(stages=[stage]))

    for slower, expected in (("-s8", "u8"), ("-u8", "s8")):
        probe, answers = scripted(0.001, precision="int8")
        answers.slower, probe.cache = slower, Cache(tmp_path / expected)
        found = probe.measure(sized(2))
        assert found.int8_format == expected and found.precision == "int8"
        assert found.ratio_to_reference == pytest.approx(2.0, rel=0.01)
        assert probe.measure(sized(2)).cached
        assert probe.settle_reference(tiny).int8_format is None
        assert probe.settle_int8(tiny) == expected
        count = len(answers.asked)
        assert probe.settle_int8(tiny) == expected
        assert probe.measure(sized(3)).int8_format == expected
        assert answers.asked[count:].count("peak") == 1  # one format of one network


def test_weights_have_seven_bits_where_the_device_saturates(
    scripted: Callable[..., tuple[Probe, Scripted]], tiny: Architecture
) -> None:
    probe, answers = scripted(0.001, precision="int8")
    answers.logit, answers.slower = 32.4, "-s8"
    assert probe.settle_int8(tiny) == "u8-reduced"
    probe, answers = scripted(0.001, precision="int8", int8={"format": "s8"})
    assert probe.settle_int8(tiny) == "s8" and answers.asked == ["logits"]
    probe, answers = scripted(0.001, precision="int8", int8={"format": "u8"})
    answers.logit = 32.4
    with pytest.warns(UserWarning, match="u8-reduced does not"):
        assert probe.settle_int8(tiny) == "u8"


def test_a_runtime_that_cannot_run_int8_graphs_is_named(
    scripted: Callable[..., tuple[Probe, Scripted]], tiny: Architecture
) -> None:
    for asked in ("auto", "u8"):
        probe, _ = scripted(0.001, precision="int8", int8={"format": asked})

        def refuse(*_: Any, **__: Any) -> dict[str, Any]:
            raise TrialError("probe on cpu: no kernel")

        probe._ask = refuse  # type: ignore[method-assign]
        with pytest.raises(TrialError, match=r"no kernel; its onnxruntime 1 may not run int8"):
            probe.measure(tiny)


def test_int8_is_measured_on_this_machine(tiny: Architecture, tmp_path: Path) -> None:
    quick = {**QUICK, "int8": {"format": "u8"}}
    with Probe(LatencyConfig(**quick, precision="int8"), cache=Cache(tmp_path)) as probe:
        found = probe.measure(tiny)
        assert (found.precision, found.int8_format) == ("int8", "u8")
        assert found.ratio_to_reference != 1.0 and found.rounds >= 2
