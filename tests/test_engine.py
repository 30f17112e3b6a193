"""Worker processes, candidates at rungs, and going on after a kill as if nothing had happened."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from optuna.trial import TrialState

from levit_search.architecture import Architecture
from levit_search.engine.local import core_shares, usable_cores
from levit_search.latency.host_lock import on_cores
from levit_search.search import driver, search
from levit_search.search.callbacks import Callback
from levit_search.study import Study, read_config, training_file
from tests.conftest import ROOT, command
from tests.engine_stubs import DIES, Stub, Watched, engine_of, network
from tests.engines import HereEngine, finals, run
from tests.networks import tiny_description

if TYPE_CHECKING:
    from levit_search.search.evaluate import Evaluator


@pytest.fixture
def study(space_file: Callable[..., Path], tmp_path: Path) -> Callable[..., Study]:
    def create(**sections: Any) -> Study:
        return Study.create(tmp_path / "s", read_config(space_file(**sections)), ["test"])

    return create


def test_workers_are_deaf_to_ctrl_c_from_their_first_moment(study: Callable[..., Study]) -> None:
    answer = signal.getsignal(signal.SIGINT)
    with closing(engine_of("local", study(engine={"jobs": 2}), {}, Stub)):
        workers = multiprocessing.active_children()
        statuses = [Path(f"/proc/{worker.pid}/status").read_text() for worker in workers]
    assert len(statuses) == 2
    for status in statuses:
        lines = [line for line in status.splitlines() if line.startswith("SigIgn:")]
        assert int(lines[0].split()[1], 16) & 1 << signal.SIGINT - 1
    assert signal.getsignal(signal.SIGINT) == answer


@pytest.mark.slow
def test_the_message_about_a_dead_worker_names_its_signal_and_its_own_log(
    study: Callable[..., Study],
) -> None:
    made = study(engine={"jobs": 2})
    with closing(engine_of("local", made, {}, Stub)) as engine:
        watched = Watched(engine)
        watched.submit(0, network())
        watched.submit(1, network(DIES))
        text = watched.until_told(1, "failed").text
        told = [event.text for event in watched.of(None, "progress")]
    log = made.folder / "worker-2.log"
    assert text == f"the worker process ended with SIGKILL (out of memory?); see {log}"
    assert told.count(f"trial 1 is started again: {text}") == 1
    assert (made.folder / "worker-2.log").exists()


def test_each_job_has_as_many_consecutive_cores_if_they_are_enough() -> None:
    cores = [0, 1, 2, 3, 6, 7, 8]
    assert core_shares(3, 2, cores) == [{0, 1}, {2, 3}, {6, 7, 8}]
    assert core_shares(7, 1, cores) == [{core} for core in cores]
    assert core_shares(4, 2, cores) == [None] * 4
    assert core_shares(1, 1, cores) == [None]


@pytest.mark.skipif(len(usable_cores()) < 2, reason="needs two cores")
def test_workers_are_told_their_own_cores(study: Callable[..., Study]) -> None:
    with closing(engine_of("local", study(engine={"jobs": 2}), {}, Stub)) as engine:
        watched = Watched(engine)
        for trial in range(2):
            watched.submit(trial, network())
        found = [watched.answered(trial, [False]) for trial in range(2)]
    shares = [event.content["training"]["cores"] for event in found]
    assert sorted([*shares[0], *shares[1]]) == usable_cores()
    assert not [event for event in watched.of(None) if "slow each other" in event.text]


def test_jobs_for_which_there_are_too_few_cores_are_told_of(study: Callable[..., Study]) -> None:
    train = {"epochs": 1, "threads": len(usable_cores()) + 1, "device": "cpu"}
    with closing(engine_of("local", study(train=train), {}, Stub)) as engine:
        (event,) = engine.events(0)
    assert (event.kind, event.trial) == ("progress", None)
    assert event.text.endswith("cores, and slow each other down")


@pytest.mark.skipif(len(usable_cores()) < 2, reason="needs two cores")
def test_training_keeps_to_its_cores_and_what_was_started_before_does_not() -> None:
    own = usable_cores()[-1]
    before = set(usable_cores())
    event = threading.Event()
    thread = threading.Thread(target=event.wait)
    thread.start()
    probe = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with on_cores(frozenset({own})):
        reader = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        assert thread.native_id is not None
        kept = [os.sched_getaffinity(each) for each in (0, thread.native_id, reader.pid)]
        assert os.sched_getaffinity(probe.pid) == before
    assert kept == [{own}] * 3
    assert os.sched_getaffinity(0) == os.sched_getaffinity(thread.native_id) == before
    event.set()
    for process in (probe, reader):
        process.communicate()


RUNGS = {"epochs": 3, "rungs": [1, 2, 3], "batch_size": 64, "threads": 1, "device": "cpu"}


def evaluator_of(study: Study, tiny: Architecture) -> "Evaluator":
    from levit_search.search.evaluate import Evaluator

    evaluator = Evaluator(study.config, study.folder, {})
    evaluator.prepare(tiny, lambda text, fraction: None)
    return evaluator


def test_a_candidate_that_is_stopped_at_a_rung_has_a_curve_and_no_accuracy(
    study: Callable[..., Study], tiny: Architecture
) -> None:
    latency = {"seconds": 0.2, "rounds": 2, "reference": tiny_description()}
    made = study(train=RUNGS, latency=latency, objectives=["top1_percent", "latency_ms"])
    asked: list[tuple[int, dict[str, float]]] = []

    def decide(epoch: int, values: dict[str, float]) -> bool:
        asked.append((epoch, values))
        return epoch < 2

    with closing(evaluator_of(made, tiny)) as evaluator:
        found = evaluator.evaluate(tiny, lambda text, fraction: None, decide)
    assert found.training is not None
    curve = [(point["epoch"], point["val_top1_percent"]) for point in found.training["curve"]]
    assert [(epoch, values.pop("top1_percent")) for epoch, values in asked] == curve
    assert [epoch for epoch, _ in asked] == [1, 2]
    assert [values for _, values in asked] == [found.values] * 2
    assert "latency_ms" in found.values
    assert "top1_percent" not in found.values
    # Until the driver has noted it, a checkpoint and no weights.
    assert list(made.checkpoints.iterdir()) == [training_file(made.folder, tiny.id)]


def test_a_candidate_goes_on_from_the_rung_where_its_worker_died(
    study: Callable[..., Study], tiny: Architecture
) -> None:
    asked: list[tuple[int, float]] = []

    def decide(epoch: int, values: dict[str, float]) -> bool:
        asked.append((epoch, values["top1_percent"]))
        if asked[-1][0] == 2 and len(asked) == 2:
            raise KeyboardInterrupt
        return True

    made = study(train=RUNGS)
    with closing(evaluator_of(made, tiny)) as evaluator:
        with pytest.raises(KeyboardInterrupt):
            evaluator.evaluate(tiny, lambda text, fraction: None, decide)
        told: list[str] = []
        found = evaluator.evaluate(tiny, lambda text, fraction: told.append(text), decide)
        assert found.training is not None
        assert asked == 2 * [
            (point["epoch"], point["val_top1_percent"]) for point in found.training["curve"][:2]
        ]
        assert len(told) == 2  # its start, and the third epoch
        assert found.values["top1_percent"] == found.training["val_top1_percent"]
        kept = {made.weights(tiny.id), training_file(made.folder, tiny.id)}
        assert set(made.checkpoints.iterdir()) == kept


def test_without_a_reduction_nothing_is_decided_at_rungs(
    study: Callable[..., Study], tiny: Architecture
) -> None:
    def decide(epoch: int, values: dict[str, float]) -> bool:
        raise AssertionError

    made = study(train=RUNGS, search={"reduction": None})
    with closing(evaluator_of(made, tiny)) as evaluator:
        found = evaluator.evaluate(tiny, lambda text, fraction: None, decide)
    assert len(found.training["curve"]) == 3


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_trial_measured_all_the_same(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    """With the real engine: its process is killed in the middle of a trial, which only measures,
    since a worker that trains takes twice as long to start."""
    killed: list[int] = []

    class Killer(Callback):
        def on_trial_progress(self, trial: int, text: str, fraction: float | None) -> None:
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
    search(study, [Killer()])
    records = study.records()
    assert killed
    evaluated = [record.state for record in records if record.reused_from is None]
    assert evaluated == ["complete"] * 3


def _children() -> set[int]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True)
    return {int(pid) for pid in found.stdout.split()}


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_as_if_undisturbed(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command with the real engine, SIGKILLed while proposing and training."""
    path = space_file(
        storage=None,
        search={"trials": 7, "startup_trials": 2},
        train={"epochs": 8, "batch_size": 64, "threads": 1, "device": "cpu"},
    )
    monkeypatch.setattr(driver, "make_engine", HereEngine)
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
