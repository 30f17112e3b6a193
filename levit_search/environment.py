"""Where a run takes place: machine, versions and revision."""

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from levit_search.latency.worker import device_name, distribution
from levit_search.version import __version__


def environment(command: list[str]) -> dict[str, Any]:
    """Where and how a run was started, for ``environment.json``."""
    modules = ("torch", "torchvision", "timm", "optuna", "onnxruntime", "numpy")
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "host": platform.node(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": device_name(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "packages": {
            "levit-search": __version__,
            **dict(found for module in modules if (found := distribution(module)) is not None),
        },
        "revision": _revision(),
    }


def _revision() -> str | None:
    """The commit this package runs from, or None where it was installed without its history.

    A repository of something else may surround the environment that this is installed in.
    """
    if not (_CHECKOUT / ".git").exists() or not _is_ours(_CHECKOUT / "pyproject.toml"):
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            # Git's hooks name their own repository in the environment.
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


_CHECKOUT = Path(__file__).parents[1]


def _is_ours(project: Path) -> bool:
    try:
        return 'name = "levit-search"' in project.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
