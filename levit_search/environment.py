"""Where a run takes place: machine, versions and revision."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from levit_search.latency.worker import device_name


def environment(command: list[str]) -> dict[str, Any]:
    """Where and how a run was started, for ``environment.json``."""
    packages = ("levit-search", "torch", "torchvision", "timm", "optuna", "onnxruntime", "numpy")
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "host": platform.node(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": device_name(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in packages},
        "revision": _revision(),
    }


def _revision() -> str | None:
    """The commit this package runs from, or None where it was installed without its history."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
