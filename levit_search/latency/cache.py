"""Samples kept by what they depend on, so that no network is measured twice on one device."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from levit_search.data import user_cache
from levit_search.errors import TrialError
from levit_search.files import write_atomically
from levit_search.latency.protocol import (
    LatencyConfig,
    Round,
    Runtime,
    Samples,
    estimate,
    package_of,
)
from levit_search.latency.worker import PROTOCOL

# What makes two devices one to a network; the rest of their accounts may differ.
_IDENTITY = (
    "protocol",
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


def fingerprint(device: dict[str, Any], runtime: Runtime) -> dict[str, Any]:
    """What latencies on a device depend on: hardware, settings and the runtime's version."""
    package = package_of(runtime)
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
        as narrow, or they had as much time."""
        path = self.path(key)
        try:
            kept = json.loads(path.read_text())
            samples, seconds = samples_from(kept["samples"]), kept["seconds"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # torn or foreign: measured again, and written over
        width = estimate(samples.rounds, config.clock).width_percent
        good = width <= config.interval_percent or seconds >= config.seconds
        return samples if good else None

    def keep(self, key: dict[str, Any], samples: Samples, seconds: float) -> None:
        """Keep ``samples``, for which there were ``seconds``, in place of earlier ones.

        Raises:
            TrialError: the folder cannot be written.
        """
        content = {"key": key, "seconds": seconds, "samples": asdict(samples)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path(key), json.dumps(content) + "\n")
        except OSError as error:
            raise TrialError(f"{self.folder}: cannot be written ({error.strerror})") from None


def samples_from(kept: dict[str, Any]) -> Samples:
    """Samples as :func:`dataclasses.asdict` gave them."""
    return Samples(**{**kept, "rounds": [Round(**each) for each in kept["rounds"]]})
