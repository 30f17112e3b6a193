"""Samples kept by what they depend on, so that no network is measured twice on one device."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from levit_search.data import user_cache
from levit_search.files import write_atomically
from levit_search.latency.protocol import (
    TORCH_RUNTIMES,
    LatencyConfig,
    Round,
    Samples,
    estimate,
)
from levit_search.latency.worker import PROTOCOL

# What makes two devices one to a network; the rest of their accounts may differ.
_IDENTITY = (
    "machine",
    "cpu",
    "cores",
    "governor",
    "transparent_huge_pages",
    "malloc_huge_pages",
    "emulated",
    "gpu",
    "driver",
    "cuda",
)


def fingerprint(device: dict[str, Any], runtime: str) -> dict[str, Any]:
    """What latencies on a device depend on: hardware, settings and the runtime's version."""
    package = "torch" if runtime in TORCH_RUNTIMES else runtime
    known = {name: device[name] for name in _IDENTITY if name in device}
    return {**known, package: device.get("runtimes", {}).get(package)}


def cache_key(
    config: LatencyConfig, device: dict[str, Any], network: str, reference: str
) -> dict[str, Any]:
    """Everything that a network's samples depend on.

    Args:
        config: how it is measured.
        device: the worker's account of itself.
        network: its id and layout.
        reference: that of the network it is compared with.
    """
    return {
        "protocol": PROTOCOL,
        "network": network,
        "reference": reference,
        "fingerprint": fingerprint(device, config.runtime),
        "runtime": config.runtime,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "threads": config.threads,
    }


class Cache:
    """A folder of JSON files, each with its key in full and all raw samples.

    Args:
        folder: by default the user's cache.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or user_cache() / "latency"

    def path(self, key: dict[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{key['network']}-{digest[:16]}.json"

    def find(self, key: dict[str, Any], config: LatencyConfig) -> Samples | None:
        """The samples kept under ``key``, if they are as good as ``config`` asks: their interval is
        as narrow, or they took as long."""
        path = self.path(key)
        try:
            kept = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            path.unlink(missing_ok=True)  # torn or foreign: measured again
            return None
        samples = samples_from(kept)
        width = estimate(samples.rounds, config.clock).width_percent
        timed_s = sum(each.timing_s for each in samples.rounds)
        good = width <= config.interval_percent or timed_s >= 0.99 * config.seconds
        return samples if good else None

    def keep(self, key: dict[str, Any], samples: Samples) -> None:
        """Keep ``samples`` under ``key`` in place of earlier ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path(key), json.dumps({"key": key, **asdict(samples)}) + "\n")


def samples_from(kept: dict[str, Any]) -> Samples:
    """Samples as :func:`dataclasses.asdict` gave them."""
    fields = {name: value for name, value in kept.items() if name != "key"}
    return Samples(**{**fields, "rounds": [Round(**each) for each in kept["rounds"]]})
