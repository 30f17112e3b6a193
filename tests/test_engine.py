"""The worker process: its death, and going on after a kill as if nothing had happened."""

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from optuna.trial import TrialState

from levit_search.architecture import Architecture
from levit_search.search import driver, search
from levit_search.search.engine import LocalEngine
from levit_search.study import Study, read_config
from tests.conftest import ROOT, command
from tests.engines import HereEngine, Silent, finals, run
from tests.networks import tiny_description


def test_a_worker_is_deaf_to_ctrl_c_from_its_first_moment(
    tiny: Architecture, space_file: Callable[..., Path], tmp_path: Path
) -> None:
    study = Study.create(tmp_path / "s", read_config(space_file()), ["test"])
    answer = signal.getsignal(signal.SIGINT)
    with closing(LocalEngine(study, tiny, {})) as engine:
        status = Path(f"/proc/{engine._process.pid}/status").read_text()
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn:")).split()[1]
    assert int(ignored, 16) & 1 << signal.SIGINT - 1
    assert signal.getsignal(signal.SIGINT) == answer


def test_a_worker_that_dies_takes_only_its_trial_with_it(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    """With the real engine: its process is killed in the middle of a trial, which only measures,
    since a worker that trains takes twice as long to start."""
    killed: list[int] = []

    class Killer(Silent):
        def progress(self, trial: int, text: str, fraction: float | None) -> None:
            if trial == 1 and not killed:
                workers = subprocess.run(
                    ["pgrep", "-f", "multiprocessing.spawn"], capture_output=True, text=True
                ).stdout.split()
                children = {int(pid) for pid in workers} & _children()
                assert len(children) == 1
                killed.append(children.pop())
                subprocess.run(["kill", "-9", str(killed[0])], check=True)

    latency = {"seconds": 0.2, "rounds": 2, "reference": tiny_description()}
    path = space_file(objectives=["latency_ms", "flops"], latency=latency)
    config = read_config(path, {"search.trials": 3})
    study = Study.create(tmp_path / "s", config, ["test"])
    search(study, Killer())
    records = study.records()
    assert killed
    assert [record.state for record in records if record.reused_from is None] == [
        "complete",
        "failed",
        "complete",
    ]
    assert "SIGKILL" in next(r.reason or "" for r in records if r.state == "failed")


def _children() -> set[int]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True)
    return {int(pid) for pid in found.stdout.split()}


def test_killed_at_random_moments_it_ends_as_if_undisturbed(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command with the real engine, SIGKILLed while proposing and training."""
    path = space_file(
        search={"trials": 7, "startup_trials": 2},
        train={"epochs": 8, "batch_size": 64, "threads": 1, "device": "cpu"},
    )
    monkeypatch.setattr(driver, "LocalEngine", HereEngine)
    undisturbed = finals(run(path, tmp_path / "undisturbed")[1])
    folder = tmp_path / "killed"
    kills = 0
    for done_before_kill in (0, 2):
        process = subprocess.Popen(command("run", path, "--study", folder), cwd=ROOT)
        while process.poll() is None and _finished(folder) <= done_before_kill:
            time.sleep(0.05)
        time.sleep(0.15 * done_before_kill)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    subprocess.run(command("run", path, "--study", folder), check=True, cwd=ROOT)
    assert kills == 2
    assert finals(Study.open(folder)) == undisturbed
    states = [trial.state for trial in Study.open(folder).storage().trials]
    assert TrialState.RUNNING not in states
    assert TrialState.WAITING not in states


def _finished(folder: Path) -> int:
    """Finished trials, read while the driver writes."""
    query = "SELECT count(*) FROM trials WHERE state NOT IN ('RUNNING', 'WAITING')"
    try:
        with closing(sqlite3.connect(f"file:{folder / 'study.db'}?mode=ro", uri=True)) as database:
            return int(database.execute(query).fetchone()[0])
    except sqlite3.OperationalError:  # the tables are just being made, or written
        return 0
