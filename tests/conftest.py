"""Small things that many tests need."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from levit_search import architecture
from levit_search.architecture import Architecture

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LEVIT_SEARCH_DATA", raising=False)


@pytest.fixture
def tiny() -> Architecture:
    """The smallest network worth running: one stage, 16 px, one channel, ten classes."""
    return architecture.parse(tiny_description())


def tiny_description() -> dict[str, object]:
    return {
        "image_size": 16,
        "in_channels": 1,
        "num_classes": 10,
        "stem": {"kind": "conv", "layers": 2},
        "stages": [{"depth": 1, "embed_dim": 16, "num_heads": 2, "key_dim": 8}],
    }


def tiny_space(**sections: object) -> dict[str, object]:
    """A space of 16 networks that train in a second, without a teacher or a clock."""
    return {
        "name": "tiny",
        "data": {"name": "digits", "image_size": 16, "train_images": 256},
        "architecture": {
            "num_stages": {"choices": [1, 2]},
            "stem": {"kind": "conv", "layers": 2},
            "stages": [
                {"depth": 1, "embed_dim": {"choices": [8, 16]}, "num_heads": 1, "key_dim": 8},
                {
                    "depth": {"range": [1, 2]},
                    "embed_dim": {"choices": [16, 24, 32]},
                    "num_heads": 2,
                    "key_dim": 8,
                },
            ],
        },
        "train": {"epochs": 1, "batch_size": 64, "lr": 5.0e-3, "threads": 1, "device": "cpu"},
        "teacher": None,
        "objectives": ["top1_percent", "flops"],
        "search": {"trials": 5, "startup_trials": 3},
        **sections,
    }


@pytest.fixture
def space_file(tmp_path: Path) -> Callable[..., Path]:
    """Write :func:`tiny_space` with other sections to a file."""

    def write(**sections: object) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(tiny_space(**sections)))
        return path

    return write


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "levit_search", *map(str, arguments)]


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a levit-search command in a folder of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=240,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    return run
