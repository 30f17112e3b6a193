"""The benchmark of long searches, on a short one."""

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_long_run_tells_memory_files_and_the_parts_of_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import longrun

    file = tmp_path / "longrun.json"
    arguments = ["--trials", "8", "--every", "3", "--resumes", "1", "--epochs", "12"]
    longrun.main([*arguments, "--storage", storage, "--json", str(file)])
    told = json.loads(file.read_text())
    assert [row["trials"] for row in told["rows"]] == [1, 3, 6]
    assert told["states"]["evaluated"] == 8
    assert told["states"]["stopped"] > 0
    assert all(len(row["workers_mb"]) == 2 for row in told["rows"])
    assert all(row["rss_mb"] > 20 for row in told["rows"])
    assert told["more_handles"] == 0
    [resume] = told["resumes"]
    parts = [resume[f"{name}_s"] for name in ("imported", "begun", "read", "submitted")]
    assert sum(parts) == pytest.approx(resume["whole_s"])
    assert min(parts) >= 0
