"""Small things that many tests need."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from levit_search import architecture
from levit_search.architecture import Architecture
from tests.networks import tiny_description, tiny_space

ROOT = Path(__file__).parents[1]

# Several test processes with threads for every core each would mostly wait for each other. Torch
# reads this when it is imported, here and in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

# The hundreds of processes that tests start would each compile the package anew, and each run of
# the tests all of these. What is kept lies in __pycache__ folders, which git ignores.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Those that start workers or train take longest; the processes of a run share the rest among them.
_FIRST = (
    "test_ray_engine.py",
    "test_weights_sources.py",
    "test_cli.py",
    "test_supernet.py",
    "test_teacher_adapted.py",
    "test_batches.py",
    "test_search.py",
    "test_train_rungs.py",
    "test_export.py",
    "test_storage.py",
    "test_report_browser.py",
    "test_engine.py",
    "test_channel_ssh.py",
    "test_channel_ray.py",
    "test_engine_contract.py",
    "test_latency.py",
    "test_api.py",
    "test_torch_worker.py",
    "test_plugins.py",
    "test_cli_audit.py",
    "test_warm_start.py",
    "test_predictor.py",
)


# What the extras of pyproject.toml bring, by the modules that tests need.
_EXTRA_OF = {
    "datasets": "data",
    "openvino": "intel",
    "optuna_dashboard": "dashboard",
    "psycopg": "postgres",
    "pymysql": "mysql",
    "tensorboard": "tensorboard",
    "webdataset": "data",
}


def lacking(module: str) -> str | None:
    """Why a module of an extra cannot be used, and what to install; None: it can."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        return f"needs {name} (pip install 'levit-search[{_EXTRA_OF[name]}]'): {error}"
    return None


def needs(module: str) -> Any:
    """A module of an extra; without it the test, or the file of tests, is skipped."""
    if reason := lacking(module):
        pytest.skip(reason, allow_module_level=True)
    return importlib.import_module(module)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--skipped", metavar="FILE", type=Path, help="write down what is skipped, for pytest @FILE"
    )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """As ``--skipped`` asks; what is skipped as a whole file stands there as that."""
    path: Path | None = config.getoption("--skipped")
    if path is not None:
        names = [report.nodeid for report in terminalreporter.stats.get("skipped", [])]
        path.write_text("".join(f"{name}\n" for name in dict.fromkeys(names)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that no process is left alone with one of them."""
    order = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    """A test starts with one thread of torch and with seed 0, whatever the one before it did."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache and configuration."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("LEVIT_SEARCH_DATA", raising=False)


@pytest.fixture(autouse=True, scope="session")
def _own_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests wait neither for each other's probes nor for what else measures or trains here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEVIT_SEARCH_LOCKS", str(tmp_path_factory.getbasetemp()))
        yield


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to outlast a power failure: what a process wrote that was killed is there.

    A search alone waits fifty times, for milliseconds each.
    """
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def tiny() -> Architecture:
    """The smallest network worth running: one stage, 16 px, one channel, ten classes."""
    return architecture.parse(tiny_description())


@pytest.fixture
def space_file(tmp_path: Path) -> Callable[..., Path]:
    """Write :func:`tiny_space` with other sections to a file."""

    def write(**sections: object) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(tiny_space(**sections)))
        return path

    return write


def command(*arguments: object) -> list[str]:
    """A levit-search command line for a process of its own."""
    return [sys.executable, "-m", "levit_search", *map(str, arguments)]


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a levit-search command in a folder of its own, in this process, where torch is loaded."""
    from levit_search.cli import main

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["levit-search", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(sys.argv, ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def cli_process(tmp_path: Path) -> Cli:
    """Run a levit-search command in a folder of its own, as a user does."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(*arguments),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=240,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    return run
