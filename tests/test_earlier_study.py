"""A study of an earlier release is read, gone on with, reported, audited and exported.

``earlier_study.zip`` holds ``space.yaml`` and ``study/`` as commit c15cc98, the last one before
trials were stored through Optuna's public interface alone, left them on 2026-11-30:
``levit-search run space.yaml --study study``, killed with SIGKILL in the middle of trial 6. Gone on
with at that commit, it came to the trials that the search here comes to, figure by figure on the
same kind of processor.
"""

import csv
import json
import zipfile
from pathlib import Path

import pytest

from levit_search.study import Study
from tests.conftest import Cli

_ARCHIVE = Path(__file__).with_name("earlier_study.zip")
_FINISHED = 6
_TRIALS = 12
_UNCHANGED = ("trial", "state", "id", "top1_percent", "flops", "params", "seconds", "reason")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    with zipfile.ZipFile(_ARCHIVE) as archive:
        archive.extractall(tmp_path)
    return tmp_path / "study"


def _table(study: Path) -> list[dict[str, str]]:
    with (study / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_its_trials_are_read_and_nothing_is_written(study: Path) -> None:
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    records = Study.open(study).records()
    assert [record.trial for record in records] == list(range(_FINISHED))
    for record, row in zip(records, _table(study), strict=False):  # which is written now and then
        assert record.architecture is not None
        assert record.architecture.id == row["id"]
        assert record.state == row["state"]
        if record.state == "complete":
            assert record.values["top1_percent"] == pytest.approx(float(row["top1_percent"]))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_it_is_gone_on_with_reported_audited_and_exported(study: Path, cli: Cli) -> None:
    before = _table(study)
    run = cli("run", study.parent / "space.yaml", "--study", study)
    assert run.returncode == 0, run.stderr
    assert "trial 6" in run.stdout + run.stderr
    after = _table(study)
    assert len(after) == _TRIALS
    for old, new in zip(before, after, strict=False):
        assert {key: new[key] for key in _UNCHANGED} == {key: old[key] for key in _UNCHANGED}
    assert Study.open(study).records()[_FINISHED].curve[0]["epoch"] == 1, "of before the kill"
    assert not list((study / "checkpoints").glob("*.training.pt"))
    report = cli("report", study)
    assert report.returncode == 0, report.stderr
    assert (study / "report.html").stat().st_size > 0
    audit = cli("audit", study, "--seeds", "1", "--json")
    assert audit.returncode in (0, 1), audit.stderr
    assert json.loads((study / "audit.json").read_text())
    export = cli("export", study, "--pick", "accurate", "--json")
    assert export.returncode in (0, 1), export.stderr
    assert (Path(json.loads(export.stdout)["dir"]) / "model.onnx").is_file()
