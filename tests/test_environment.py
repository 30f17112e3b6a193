"""What is noted of the machine that a search runs on."""

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from levit_search import __version__
from levit_search.latency import worker
from levit_search.study import folder as environments
from levit_search.study.folder import environment
from tests.conftest import ROOT


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime as it is where it was installed by ``pip install onnxruntime-gpu``."""
    real = metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return "1.99" if name == "onnxruntime-gpu" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    named = {"onnxruntime": ["onnxruntime-gpu"]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: named)


@pytest.mark.usefixtures("gpu_build")
def test_a_module_of_another_distribution_is_noted_under_its_name() -> None:
    packages = environment([])["packages"]
    assert packages["onnxruntime-gpu"] == "1.99"
    assert "onnxruntime" not in packages
    assert worker.device()["runtimes"]["onnxruntime"] == "1.99 (onnxruntime-gpu)"


def test_a_module_that_no_distribution_knows_tells_its_own_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import onnxruntime

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    assert worker.distribution("onnxruntime") == ("onnxruntime", onnxruntime.__version__)
    assert environment([])["packages"]["levit-search"] == __version__


def test_a_module_that_is_not_there_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "left_by_an_uninstalled_one").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert worker.distribution("left_by_an_uninstalled_one") is None
    assert worker.distribution("no_such_module") is None
    assert worker.version("no_such_module") is None


def repository(folder: Path) -> None:
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)


OURS = (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("package", "project", "is_noted"),
    [
        (".", OURS, True),
        (".", '[project]\nname = "theirs"\n', False),
        (".", None, False),
        ("venv/lib/python3/site-packages", OURS, False),
        ("vendored", OURS, False),
    ],
)
def test_the_revision_is_that_of_a_checkout_of_ours_alone(
    package: str,
    project: str | None,
    is_noted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository(tmp_path)
    place = tmp_path / package
    place.mkdir(parents=True, exist_ok=True)
    if project is not None:
        (place / "pyproject.toml").write_text(project)
    monkeypatch.setattr(environments, "_CHECKOUT", place)
    assert (environment([])["revision"] is not None) == is_noted


def test_the_revision_is_ours_within_a_hook_of_another_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(tmp_path)
    (tmp_path / "pyproject.toml").write_text(OURS)
    monkeypatch.setattr(environments, "_CHECKOUT", tmp_path)
    before = environment([])["revision"]
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere.git"))
    assert environment([])["revision"] == before is not None
