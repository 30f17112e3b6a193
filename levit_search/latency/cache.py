"""Samples kept by what they depend on; measuring goes on with them until they settle."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from levit_search.errors import TrialError
from levit_search.files import (
    DamagedFileError,
    checksummed,
    read_checksummed,
    user_cache,
    write_atomically,
)
from levit_search.latency.protocol import Round, Samples, estimate
from levit_search.latency.targets import LatencyConfig, Runtime, package_of
from levit_search.latency.worker import PROTOCOL

# What makes two devices one to a network; the rest of their accounts may differ.
_IDENTITY = (
    *("protocol", "machine", "cpu", "cores", "governor", "transparent_huge_pages"),
    *("malloc_huge_pages", "emulated", "gpu", "driver", "cuda"),
)


def fingerprint(device: Mapping[str, Any], runtime: Runtime) -> dict[str, object]:
    """What latencies on a device depend on: hardware, settings and the runtime's version."""
    package = package_of(runtime)
    known: dict[str, object] = {name: device[name] for name in _IDENTITY if name in device}
    return {**known, package: device.get("runtimes", {}).get(package)}


def cache_key(
    config: LatencyConfig, device: Mapping[str, Any], network: str, reference: str
) -> dict[str, object]:
    """Everything that a network's samples depend on.

    Args:
        config: how it is measured.
        device: the worker's account of itself.
        network: its id and layout.
        reference: that of the network it is compared with.
    """
    in_float = {"float_operators": [*config.int8.float_operators]}
    return {
        "protocol": PROTOCOL,
        "network": network,
        "reference": reference,
        "fingerprint": fingerprint(device, config.runtime),
        **config.model_dump(include={"runtime", "precision", "batch_size", "threads"}),
        **(in_float if config.precision == "int8" else {}),
    }


class Cache:
    """A folder of JSON files, by default in the user's cache, each with its key in full, all raw
    samples and a checksum."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or user_cache() / "latency"

    def path(self, key: Mapping[str, object]) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{key['network']}-{digest[:16]}.json"

    def find(self, key: Mapping[str, object], clock: str) -> Samples | None:
        """The samples kept under ``key``, which :func:`cache_key` made.

        A damaged file, or one without the ``clock`` that counts, is as good as none and leaves a
        warning; it will be written over.
        """
        path = self.path(key)
        try:
            kept = read_checksummed(path)
            if kept["key"] != json.loads(json.dumps(key)):
                raise DamagedFileError("it is that of another network or device")
            samples = samples_from(kept["samples"])
            estimate(samples.rounds, clock)
            return samples
        except FileNotFoundError:
            return None
        except OSError as error:
            what = f"cannot be read ({error.strerror or error})"
        except DamagedFileError as error:
            what = f"damaged ({error})"
        except (ValueError, LookupError, TypeError, AttributeError, ZeroDivisionError):
            what = "damaged (it holds no samples)"
        warnings.warn(f"{path}: {what}; the network is measured again", stacklevel=2)
        return None

    def keep(self, key: Mapping[str, object], samples: Samples) -> None:
        """Keep ``samples`` in place of earlier ones.

        Raises:
            TrialError: the folder cannot be written.
        """
        content = {"key": key, "samples": asdict(samples)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path(key), json.dumps(checksummed(content)) + "\n")
        except OSError as error:
            raise TrialError(f"{self.folder}: cannot be written ({error.strerror})") from None


def samples_from(kept: Mapping[str, Any]) -> Samples:
    """Samples as :func:`dataclasses.asdict` gave them."""
    return Samples(**{**kept, "rounds": [Round(**each) for each in kept["rounds"]]})
