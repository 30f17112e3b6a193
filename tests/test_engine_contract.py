"""What every engine does, whatever its workers are; they evaluate with stubs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from levit_search.baseline import BaselineConfig
from levit_search.engine.interface import Settled
from levit_search.study import Study, read_config
from tests.conftest import ROOT
from tests.engine_stubs import (
    BREAKS,
    DIES,
    EPOCHS,
    FAILS,
    HANGS,
    MARK,
    DiesUnprepared,
    OnlyOnce,
    Stub,
    Watched,
    WrongInput,
    assert_ended,
    engine_of,
    marked,
    network,
)
from tests.networks import tiny_space

KINDS = [
    pytest.param(("local", 1), id="local-1"),
    pytest.param(("local", 2), id="local-2"),
    pytest.param(("ray", 2), id="ray-2", marks=pytest.mark.slow),
]
_OWN_RAY = "how Ray's processes end is tested with the nodes of a cluster"


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """An engine's name and its jobs. Ray has nodes for two engines at once."""
    if request.param[0] == "local":
        yield request.param
        return
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 4, "include_dashboard": False, "object_store_memory": 80 * 1024 * 1024}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", cluster.address)
        try:
            yield request.param
        finally:
            ray.shutdown()  # type: ignore[no-untyped-call]
            cluster.shutdown()


def study_in(folder: Path, kind: tuple[str, int]) -> Study:
    engine = {"kind": kind[0], "jobs": kind[1]}
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(tiny_space(engine=engine)))
    return Study.create(folder / "study", read_config(path), ["test"])


@pytest.fixture(scope="module")
def shared(kind: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """An engine that stays from one test to the next, all its workers free."""
    study = study_in(tmp_path_factory.mktemp("shared"), kind)
    engine = engine_of(kind[0], study, {}, Stub)
    yield Watched(engine)
    engine.close()


@pytest.fixture
def made(kind: tuple[str, int], tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """Makes engines of a test's own."""
    engines = []

    def make(evaluator: type[Stub], settled_ms: dict[str, float] | None = None) -> Watched:
        study = study_in(tmp_path, kind)
        settled: Settled = {"settled_ms": settled_ms or {}}
        engines.append(engine_of(kind[0], study, settled, evaluator))
        return Watched(engines[-1])

    yield make
    for engine in engines:
        engine.close()


_tens = count(0, 10)


@pytest.fixture
def trial() -> int:
    """The first of ten numbers for trials."""
    return next(_tens)


def test_preparation_is_told_and_then_there_is_room(shared: Watched) -> None:
    assert not shared.engine.has_room()
    done = shared.until_told(None, "done")
    assert done.content == {"settled_ms": {"reference": 2.5}, "device": {}, "teacher": {}}
    assert [event.text for event in shared.of(None, "progress")][-1] == "getting ready"
    assert shared.engine.has_room()


def test_a_trial_tells_of_its_steps_and_rungs_and_its_end(shared: Watched, trial: int) -> None:
    shared.submit(trial, network())
    done = shared.answered(trial, [True, True])
    kinds = [event.kind for event in shared.of(trial)]
    assert kinds == ["progress", "rung", "rung", "done"]
    progress, *rungs, _ = shared.of(trial)
    assert (progress.text, progress.fraction) == ("working", 0.5)
    assert [rung.content for rung in rungs] == [
        {"epoch": epoch, "values": {"reference": 2.5, "top1_percent": 10.0 * epoch}}
        for epoch in (1, 2)
    ]
    assert done.content["values"] == {"reference": 2.5, "top1_percent": 30.0}
    assert done.content["training"]["epochs"] == EPOCHS
    assert {"latency", "seconds"} < done.content.keys()


@pytest.mark.parametrize(("answers", "epochs"), [([False], 1), ([True, False], 2)])
def test_a_trial_ends_at_the_rung_where_it_is_stopped(
    shared: Watched, trial: int, answers: list[bool], epochs: int
) -> None:
    shared.submit(trial, network())
    done = shared.answered(trial, answers)
    assert done.kind == "done"
    assert done.content["training"]["epochs"] == epochs
    assert "top1_percent" not in done.content["values"]


def test_what_was_predicted_is_measured(shared: Watched, trial: int) -> None:
    shared.until(shared.engine.has_room)
    shared.engine.verify(trial, network())
    assert shared.until_told(trial, "done").content["values"] == {"latency_ms": 7.0}
    assert not shared.of(trial, "rung")


def test_networks_are_measured_again_together_by_one_worker(shared: Watched, trial: int) -> None:
    shared.until(shared.engine.has_room)
    networks = [network(embed_dim=16 + 2 * number) for number in range(3)]
    shared.engine.remeasure(trial, networks)
    results = shared.until_told(trial, "done").content["results"]
    assert [each["id"] for each in results] == [each.id for each in networks]
    assert len({each["pid"] for each in results}) == 1
    assert [event.text for event in shared.of(trial, "progress")] == ["measuring together"]
    shared.until(shared.engine.has_room)
    shared.engine.remeasure(trial + 1, [network(), network(FAILS)])
    assert shared.until_told(trial + 1, "done", "failed").text == "no luck today"


def test_a_baseline_is_compared_with_and_measured_beside_networks(
    shared: Watched, trial: int
) -> None:
    given = BaselineConfig(name="timm/test_resnet", weights="pretrained")
    shared.until(shared.engine.has_room)
    shared.engine.submit(trial, given)
    done = shared.answered(trial, [True])
    assert done.content["values"] == {"top1_percent": 5.0}
    assert done.content["training"]["weights"] == "pretrained"
    assert shared.of(trial)[0].text == "comparing with timm/test_resnet"
    shared.until(shared.engine.has_room)
    shared.engine.remeasure(trial + 1, [network(), given])
    results = shared.until_told(trial + 1, "done").content["results"]
    assert [each["id"] for each in results] == [network().id, given.id]


@pytest.mark.parametrize(
    ("fate", "reason"), [(FAILS, "no luck today"), (BREAKS, "ZeroDivisionError: by chance")]
)
def test_an_exception_is_a_failed_trial_with_its_reason(
    shared: Watched, trial: int, fate: float, reason: str
) -> None:
    shared.submit(trial, network(fate))
    assert shared.until_told(trial, "done", "failed").text == reason
    shared.submit(trial + 1, network())
    assert shared.answered(trial + 1, [False]).kind == "done"


def test_as_many_trials_run_at_once_as_there_are_jobs(
    shared: Watched, trial: int, kind: tuple[str, int]
) -> None:
    jobs = kind[1]
    trials = [trial + number for number in range(jobs)]
    for number in trials:
        shared.submit(number, network(embed_dim=16 + 2 * number))
    shared.until(lambda: all(shared.of(number, "rung") for number in trials))
    assert not shared.engine.has_room()
    shared.engine.answer(trials[-1], False)  # not in the order of their start
    last = shared.until_told(trials[-1], "done")
    assert shared.engine.has_room()
    ends = [shared.answered(number, [True, True]) for number in trials[:-1]]
    assert last.content["training"]["epochs"] == 1
    assert all(end.content["training"]["epochs"] == EPOCHS for end in ends)
    assert len({end.content["training"]["pid"] for end in [*ends, last]}) == jobs
    assert len(shared.of(None, "done")) == 1  # only the first worker's preparation is told


def test_a_worker_that_dies_fails_its_trial_and_work_goes_on(
    shared: Watched, trial: int, kind: tuple[str, int]
) -> None:
    trials = [trial + number for number in range(kind[1])]
    shared.submit(trials[0], network(DIES))
    for number in trials[1:]:  # at work meanwhile
        shared.submit(number, network())
    died = shared.until_told(trials[0], "done", "failed")
    assert died.kind == "failed"
    assert died.text
    for number in trials[1:]:
        assert shared.answered(number, [True, True]).kind == "done"
    again = [number + 5 for number in trials]
    for number in again:  # a new worker has taken the place of the dead one
        shared.submit(number, network())
    assert all(shared.answered(number, [False]).kind == "done" for number in again)
    assert not shared.of(None, "failed")


def test_an_answer_for_a_trial_that_has_ended_is_of_no_concern(shared: Watched, trial: int) -> None:
    shared.submit(trial, network())
    shared.answered(trial, [False])
    shared.engine.answer(trial, True)
    shared.submit(trial + 1, network())
    assert shared.answered(trial + 1, [True, False]).content["training"]["epochs"] == 2


def test_events_are_not_waited_for_beyond_ones_patience(shared: Watched) -> None:
    shared.until(shared.engine.has_room)
    for patience_s in (0.0, 0.3):
        start = time.monotonic()
        assert shared.engine.events(patience_s) == []
        elapsed = time.monotonic() - start
        assert patience_s - 0.05 < elapsed < patience_s + 1


def test_wrong_input_found_by_the_preparation_is_told_as_such(
    made: Callable[..., Watched],
) -> None:
    watched = made(WrongInput)
    failed = watched.until_told(None, "failed", "done")
    assert (failed.kind, failed.text) == ("failed", "there is no such data")
    assert failed.content["wrong_input"]
    assert not watched.engine.has_room()


def test_a_death_while_preparing_is_a_failure_of_the_preparation(
    made: Callable[..., Watched],
) -> None:
    watched = made(DiesUnprepared)
    failed = watched.until_told(None, "failed", "done")
    assert failed.kind == "failed"
    assert not failed.content.get("wrong_input")
    assert not watched.engine.has_room()


def test_a_worker_that_cannot_prepare_where_the_first_could_is_told_of(
    made: Callable[..., Watched], kind: tuple[str, int]
) -> None:
    if kind[1] == 1:
        pytest.skip("there is one worker")
    watched = made(OnlyOnce)
    failed = watched.until_told(None, "failed")
    assert len(watched.of(None, "done")) == 1
    assert (failed.text, failed.content["wrong_input"]) == ("the disk is full", False)


def test_closing_ends_all_processes_within_seconds(
    made: Callable[..., Watched], kind: tuple[str, int], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    if kind[0] == "ray":
        pytest.skip(_OWN_RAY)
    monkeypatch.setenv(MARK, str(tmp_path))
    watched = made(Stub, {"reference": 4.0})  # settled before, and kept
    assert watched.until_told(None, "done").content["settled_ms"] == {"reference": 4.0}
    for trial in range(kind[1]):
        watched.submit(trial, network(HANGS))
    for trial in range(kind[1]):
        watched.until_told(trial, "progress")
    # Each worker, and both of the processes that it has started by then.
    watched.until(lambda: len(marked(tmp_path)) == 3 * kind[1])
    start = time.monotonic()
    watched.engine.close()
    assert time.monotonic() - start < 10
    assert_ended(tmp_path)


def test_a_driver_that_is_killed_leaves_no_process_behind(
    kind: tuple[str, int], tmp_path: Path
) -> None:
    if kind[0] == "ray":
        pytest.skip(_OWN_RAY)
    study = study_in(tmp_path, kind)
    env = {**os.environ, MARK: str(tmp_path)}
    program = [sys.executable, "-m", "tests.engine_stubs", kind[0], str(study.folder)]
    driver = subprocess.Popen(program, stdout=subprocess.PIPE, env=env, cwd=ROOT)
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b'"all hang"\n'
        deadline = time.monotonic() + 10
        while len(marked(tmp_path)) != 1 + 3 * kind[1]:
            assert time.monotonic() < deadline, marked(tmp_path)
            time.sleep(0.05)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert_ended(tmp_path)
