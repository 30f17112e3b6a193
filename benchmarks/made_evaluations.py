"""What worker processes do their work with where only the driver of a search is looked at.

A network is evaluated in no time, and what is told of it is as long as what a real evaluation
tells: the whole account of a probe, and a learning curve with rungs in it.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from levit_search.architecture import Architecture
from levit_search.cost import cost
from levit_search.engine.interface import Settled
from levit_search.study import StudyConfig

_DEVICE = {
    "machine": "x86_64",
    "cpu": "Made-up CPU",
    "cores": 2,
    "system": "Linux-6.1.0-x86_64-with-glibc2.36",
    "python": "3.12.0",
    "runtimes": {"numpy": "2.0.0", "onnxruntime": "1.20.0", "torch": "2.6.0"},
    "emulated": False,
}


@dataclass(frozen=True)
class Made:
    """As :class:`levit_search.search.evaluate.Evaluation`, which needs torch."""

    values: dict[str, float]
    latency: dict[str, Any]
    training: dict[str, Any]
    seconds: float
    targets: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class MadeEvaluator:
    """Accuracy and latency follow from what a network costs, with luck that follows from its id."""

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        settled: Settled,
        cores: frozenset[int] | None = None,
    ) -> None:
        self._epochs, self._rungs = config.train.epochs, config.rung_epochs
        self._settled_ms = settled.get("settled_ms") or {"0123456789ab": 1.0}

    def prepare(self, sample: Architecture, progress: Callable[..., None]) -> dict[str, Any]:
        progress("getting ready", None)
        known = {"settled_ms": self._settled_ms, "device": _DEVICE}
        return {**known, "devices": {}, "teacher": {}}

    def evaluate(
        self, network: Architecture, progress: Callable[..., None], decide: Callable[..., bool]
    ) -> Made:
        luck, values = _luck(network), _latencies(network)
        end = min(99.0, 60 + 8 * math.log10(cost(network).flops / 1e5) + 4 * luck)
        curve: list[dict[str, float]] = []
        for epoch in range(1, self._epochs + 1):
            progress(f"training, epoch {epoch}", epoch / self._epochs)
            percent = end - 40 * math.exp(-4 * epoch / self._epochs)
            curve.append(
                {
                    "epoch": epoch,
                    "train_loss": 2.3 * math.exp(-epoch / self._epochs) + luck / 7,
                    "val_top1_percent": percent,
                    "seconds": 4.123 * epoch,
                }
            )
            if epoch in self._rungs and not decide(epoch, {**values, "top1_percent": percent}):
                break
        else:
            values["top1_percent"] = end
        training = {
            "val_top1_percent": curve[-1]["val_top1_percent"],
            "images_per_second": 1234.5,
            "seconds": curve[-1]["seconds"],
            "curve": curve,
            "precision": "fp32",
            "batch_parts": 1,
        }
        latency = _probed(network, values["latency_ms"])
        return Made(values, latency, training, curve[-1]["seconds"], {})

    def verify(
        self, network: Architecture, progress: Callable[..., None], decide: Any = None
    ) -> Made:
        raise AssertionError("nothing here is predicted")

    def remeasure(
        self, networks: Sequence[Architecture], progress: Callable[..., None]
    ) -> list[Made]:
        progress("measuring", None)
        found = [(network, _latencies(network)) for network in networks]
        return [
            Made(each, _probed(network, each["latency_ms"]), {}, 1.7, {}) for network, each in found
        ]

    def close(self) -> None: ...


def _luck(network: Architecture) -> float:
    """From -0.5 to 0.5."""
    return int(network.id[:6], 16) / 0xFFFFFF - 0.5


def _latencies(network: Architecture) -> dict[str, float]:
    ms = 0.05 + cost(network).flops / 5e6 * (1 + 0.3 * _luck(network))
    return {"latency_ms": ms, "latency_median_ms": ms, "latency_p95_ms": 1.2 * ms}


def _probed(network: Architecture, ms: float) -> dict[str, Any]:
    """As :class:`levit_search.latency.protocol.Measurement`."""
    return {
        "latency_ms": ms,
        "throughput_ips": 1000 / ms,
        "ratio_to_reference": ms,
        "ratio_ci95": [0.98 * ms, 1.02 * ms],
        "converged": True,
        "reference_ms": 1.0,
        "own_reference_ms": 1.0,
        "clock": "cpu",
        "cpu_ms": ms,
        "wall_ms": 1.01 * ms,
        "device_ms": None,
        "latency_median_ms": ms,
        "latency_p95_ms": 1.2 * ms,
        "median_sd_percent": 1.5,
        "p95_sd_percent": 4.0,
        "peak_memory_mb": 90.5,
        "pairs": 60,
        "rounds": 6,
        "timing_seconds": 0.9,
        "seconds": 1.7,
        "target": "cpu",
        "runtime": "onnxruntime",
        "batch_size": 1,
        "threads": 1,
        "precision": "fp32",
        "layout": "nchw",
        "emulated": False,
        "cached": False,
        "samples_file": f"latency/{network.id}-{os.getppid():08x}.json",
        "device": _DEVICE,
    }
