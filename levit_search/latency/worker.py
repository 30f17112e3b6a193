"""Time a candidate against a reference network; runs on the device that is measured.

This file needs Python, numpy and onnxruntime and nothing of this package. It reads jobs from
standard input, one JSON object a line, and writes JSON lines: first ``ready`` with the device, then
for each job ``pairs`` for every round and ``done``, or ``error``. The end of its input ends it at
once, so a worker never outlives whoever started it.

Both networks are run in turn (A B A B ...), since a neighbour that slows one down slows the other;
a pair is one timing of each. In every round both inference sessions are built anew, since much of
what a single session reads is its own luck with memory.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import sys
import threading
import time
from typing import Any

import numpy as np

PROTOCOL = 1
# A timing shorter than this repeats the run, so that the clock and the loop do not weigh in.
SHORTEST_TIMING_S = 0.002
WARM_UP_S = 0.04


def main() -> None:
    """Answer jobs until the input ends."""
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    _write({"event": "ready", "protocol": PROTOCOL, "device": _device()})
    while True:
        try:
            _answer(jobs.get())
        except Exception as error:  # whatever went wrong on the device belongs to the one who asked
            _write({"event": "error", "message": f"{type(error).__name__}: {error}"})


def _read_jobs(jobs: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        if line.strip():
            jobs.put(json.loads(line))
    os._exit(0)


def _answer(job: dict[str, Any]) -> None:
    """Run one job.

    Keys: ``candidate`` and ``reference`` (paths of ONNX files), ``threads``, ``seconds`` (timing in
    all), ``rounds``, ``interval_percent`` (stop after two rounds once the interval is narrower) and
    ``seed`` of the images.
    """
    rounds, start = job["rounds"], time.perf_counter()
    ratios: list[float] = []
    logits = None
    for index in range(rounds):
        sessions = [_session(job[name], job["threads"]) for name in ("reference", "candidate")]
        feeds = [_feed(session, job["seed"]) for session in sessions]
        repeats = [_warm_up(session, feed) for session, feed in zip(sessions, feeds)]
        if logits is None:
            logits = sessions[1].run(None, feeds[1])[0][0].tolist()
        pairs = _time_pairs(sessions, feeds, repeats, job["seconds"] / rounds)
        _write({"event": "pairs", "round": index, "pairs": pairs})
        clock = clock_index(job["threads"])
        ratios += [candidate[clock] / reference[clock] for reference, candidate in pairs]
        low, high = bootstrap_interval(np.array(ratios))
        if index and 100 * (high - low) / np.median(ratios) <= job["interval_percent"]:
            break
    seconds = time.perf_counter() - start
    _write({"event": "done", "seconds": seconds, "logits": logits})


def clock_index(threads: int) -> int:
    """Which clock of a timing counts: the thread's CPU time where one thread runs, wall else."""
    return 0 if threads == 1 else 1


def bootstrap_interval(
    ratios: np.ndarray[Any, Any], resamples: int = 500, seed: int = 0
) -> tuple[float, float]:
    """The 95 % bootstrap interval (low, high) of the median of ``ratios`` [pairs]."""
    chance = np.random.default_rng(seed)
    chosen = chance.integers(len(ratios), size=(resamples, len(ratios)))
    low, high = np.percentile(np.median(ratios[chosen], axis=1), [2.5, 97.5])
    return float(low), float(high)


def _session(path: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _feed(session: Any, seed: int) -> dict[str, Any]:
    chance = np.random.default_rng(seed)
    return {
        image.name: chance.standard_normal(image.shape, dtype=np.float32)
        for image in session.get_inputs()
    }


def _warm_up(session: Any, feed: dict[str, Any]) -> int:
    """Run for a while; returns how many runs make one timing long enough to trust."""
    runs, start = 0, time.perf_counter()
    while runs < 3 or time.perf_counter() - start < WARM_UP_S:
        session.run(None, feed)
        runs += 1
    each = (time.perf_counter() - start) / runs
    return max(1, int(np.ceil(SHORTEST_TIMING_S / each)))


def _time_pairs(
    sessions: list[Any], feeds: list[Any], repeats: list[int], seconds: float
) -> list[list[list[float]]]:
    """Pairs of timings in turn, at least five: [[ref cpu_ms, wall_ms], [cand cpu_ms, wall_ms]]."""
    pairs: list[list[list[float]]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < 5 or time.perf_counter() < end:
        pairs.append([_timing(*both) for both in zip(sessions, feeds, repeats)])
    return pairs


def _timing(session: Any, feed: dict[str, Any], repeats: int) -> list[float]:
    cpu, wall = time.thread_time_ns(), time.perf_counter_ns()
    for _ in range(repeats):
        session.run(None, feed)
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    return [cpu / repeats / 1e6, wall / repeats / 1e6]


def _device() -> dict[str, Any]:
    import onnxruntime

    return {
        "machine": platform.machine(),
        "cpu": device_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def device_name() -> str:
    """The CPU's model, by which latencies of two machines are told apart."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.lower().startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the platform's own name has to do
    return platform.processor() or platform.machine()


def _write(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
