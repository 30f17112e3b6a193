"""Workers on nodes of a Ray cluster, which here are processes of this machine."""

import copy
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray import tune
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table, remove_placement_group

from levit_search.engine import make_engine
from levit_search.engine.interface import Event
from levit_search.engine.ray import CandidateSearcher, RayEngine
from levit_search.engine.ray_cluster import Placement
from levit_search.engine.tasks import Task
from levit_search.errors import InputError
from levit_search.latency.ray_node import join
from levit_search.study import Study, read_config
from tests.conftest import ROOT
from tests.engine_stubs import FAILS, HANGS, MARK, Watched, assert_ended, network
from tests.networks import tiny_space
from tests.ray_stubs import Plain, Rounds, traces

Make = Callable[..., Watched]


class Nodes:
    """A cluster whose head has no CPUs, and two nodes with one each."""

    def __init__(self) -> None:
        self._store = {"object_store_memory": 80 * 1024 * 1024, "include_log_monitor": False}
        head = {"num_cpus": 0, "include_dashboard": False, **self._store}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.ids: dict[str, Any] = {}
        for _ in range(2):
            self.add()

    def add(self, cpus: int = 1, **resources: float) -> str:
        node = self.cluster.add_node(num_cpus=cpus, resources=resources, **self._store)
        self.ids[node.node_id] = node
        return str(node.node_id)

    def kill(self, node_id: str) -> None:
        self.cluster.remove_node(self.ids.pop(node_id), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        started = Nodes()
        try:
            yield started
        finally:
            ray.shutdown()
            started.cluster.shutdown()


def study_in(folder: Path, **engine: Any) -> Study:
    """As by ``run``, to which an address is given by an option: a file's is not joined."""
    given = {"engine.address": engine.pop("address")} if "address" in engine else {}
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(tiny_space(engine={"kind": "ray", **engine})))
    return Study.create(folder / "study", read_config(path, given), ["test"])


@pytest.fixture
def made(nodes: Nodes, tmp_path: Path) -> Iterator[Make]:
    """Makes an engine on the cluster, of which the test's process is a driver from the first on."""
    engines = []
    if not ray.is_initialized():
        join(nodes.cluster.address)

    def make(evaluator: str = "Traced", **settings: Any) -> Watched:
        study = study_in(tmp_path, **settings)
        engines.append(RayEngine(study, network(), {}, f"tests.ray_stubs:{evaluator}"))
        return Watched(engines[-1])

    yield make
    for engine in engines:
        engine.close()


@pytest.mark.slow
def test_two_nodes_share_the_trials(made: Make, nodes: Nodes, tmp_path: Path) -> None:
    watched = made(jobs=2)
    for trial in range(2):
        watched.submit(trial, network())
    watched.until(lambda: all(watched.of(trial, "rung") for trial in range(2)))
    assert not watched.engine.has_room()
    done = [watched.answered(trial, [True]) for trial in range(2)]
    assert {event.content["training"]["node"] for event in done} == set(nodes.ids)
    assert {event.content["training"]["cwd"] for event in done} == {str(Path.cwd())}
    assert not watched.of(None, "failed")


@pytest.mark.slow
def test_a_dead_node_costs_one_retry_of_its_trial(
    made: Make, nodes: Nodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watched = made(jobs=2)
    folder, lost, kept = tmp_path / "study", network(HANGS), network(embed_dim=24)
    watched.submit(0, lost)
    watched.until(lambda: traces(folder, lost))
    watched.submit(1, kept)
    watched.until(lambda: watched.of(1, "rung"))
    where = traces(folder, lost)[0]["node"]
    nodes.kill(where)
    watched.until(lambda: any("again" in event.text for event in watched.of(None, "progress")))
    told = next(e.text for e in watched.of(None, "progress") if "again" in e.text)
    why = r"(its node has died|it cannot be reached)"
    assert re.fullmatch(rf"trial 0 is started again: the worker on [\d.]+ died: {why}", told)
    assert watched.answered(1, [True]).content["values"] == {"top1_percent": 2.0}
    assert watched.answered(0, [True]).content["values"] == {"top1_percent": 2.0}
    assert len(traces(folder, kept)) == 1
    first, second = (trace["node"] for trace in traces(folder, lost))
    assert first == where != second
    new = nodes.add()
    for trial, size in ((2, 32), (3, 40)):  # a node that joins is used
        watched.submit(trial, network(embed_dim=size))
    watched.until(lambda: all(watched.of(trial, "rung") for trial in (2, 3)))
    ends = [watched.answered(trial, [False]) for trial in (2, 3)]
    assert new in {end.content["training"]["node"] for end in ends}
    assert not watched.of(None, "failed")
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_second_death_fails_the_trial_and_an_idle_one_nothing(
    made: Make, nodes: Nodes, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    watched = made(jobs=1)
    watched.submit(0, network(HANGS))
    for attempt in range(2):
        reached = attempt + 1
        watched.until(lambda: len(traces(folder, network(HANGS))) == reached)  # noqa: B023
        os.kill(traces(folder, network(HANGS))[attempt]["pid"], signal.SIGKILL)
    failed = watched.until_told(0, "failed", "done")
    assert failed.kind == "failed"
    assert re.fullmatch(r"the worker on [\d.]+ died: its worker process has died", failed.text)
    watched.submit(1, network())
    pid = watched.answered(1, [True]).content["training"]["pid"]
    os.kill(pid, signal.SIGKILL)
    watched.submit(2, network())
    assert watched.answered(2, [True]).kind == "done"
    assert not any("again" in event.text for event in watched.of(2))


@pytest.mark.slow
def test_a_probe_runs_where_its_resource_is(made: Make, nodes: Nodes) -> None:
    node = nodes.add(cpus=0, probe_arm=1)
    try:
        watched = made("Probing", jobs=1)
        watched.until(watched.engine.has_room)
        watched.engine.verify(0, network())
        done = watched.until_told(0, "done", "failed")
        assert done.text == ""
        assert done.content["training"]["machine"] == os.uname().machine
        watched.until(watched.engine.has_room)
        watched.engine.verify(1, network(FAILS))
        failed = watched.until_told(1, "done", "failed")
        assert failed.text.endswith("custom resource 'probe_riscv' (offered: probe_arm)")
    finally:
        nodes.kill(node)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"resources": {"probe_riscv": 1}}, "claims CPU 1, probe_riscv 1, and no node"),
        ({"cpus": 2}, "claims CPU 2, and no node"),
        ({"gpus": 1}, "claims CPU 1, GPU 1, and no node"),
        ({"cpus": 0}, "must claim something"),
        ({"resources": {"CPU": 1}}, "CPU is claimed by engine.cpus"),
        ({"address": "127.0.0.1:1"}, "'127.0.0.1:1' is another Ray cluster than"),
        ({"address": "ray://127.0.0.1:1"}, "Ray's client"),
    ],
)
def test_what_no_node_can_serve_is_refused_at_once(
    made: Make, settings: dict[str, Any], told: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError, match=told) as refused:
        made(**settings)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - begun < 5
    assert ray.is_initialized()


@pytest.mark.slow
def test_a_node_without_the_study_folder_is_told(made: Make, tmp_path: Path) -> None:
    study = study_in(tmp_path)
    (study.folder / "study.yaml").unlink()
    engine = RayEngine(study, network(), {}, "tests.ray_stubs:Traced")
    try:
        failed = Watched(engine).until_told(None, "failed", "done")
    finally:
        engine.close()
    assert failed.content == {"wrong_input": True}
    assert f"does not see the study's folder {study.folder}" in failed.text


@pytest.mark.slow
def test_workers_are_placed_as_asked_for(nodes: Nodes) -> None:
    join(nodes.cluster.address)
    for _ in range(2):
        nodes.add(cpus=0, seats=3)
    for placement, used in (("PACK", [3]), ("SPREAD", [1, 2]), ("STRICT_SPREAD", [1, 1])):
        become_free("seats")
        place = Placement({"seats": 1}, placement)
        groups = [copy.deepcopy(place).to_placement_group() for _ in range(3)]  # as Tune does
        placed = [group for group in groups if group.wait(1)]
        where = [
            next(iter(placement_group_table(group)["bundles_to_node_id"].values()))
            for group in placed
        ]
        assert sorted(Counter(where).values()) == used
        for group in groups:
            remove_placement_group(group)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["address", "RAY_ADDRESS"])
def test_an_address_with_nobody_there_is_refused_in_time(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.shutdown()
    with socket.socket() as taken:  # bound and not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        if way == "RAY_ADDRESS":
            monkeypatch.setenv("RAY_ADDRESS", address)
        study = study_in(tmp_path, **({"address": address} if way == "address" else {}))
        before = sorted(study.folder.rglob("*"))
        begun = time.monotonic()
        with pytest.raises(InputError, match=f"no Ray cluster at '{address}'"):
            make_engine(study, network(), {})
        assert time.monotonic() - begun < 10
    assert sorted(study.folder.rglob("*")) == before
    assert not ray.is_initialized()


@pytest.mark.slow
def test_an_engine_leaves_the_cluster_that_it_joined(nodes: Nodes, tmp_path: Path) -> None:
    ray.shutdown()
    study = study_in(tmp_path, address=nodes.cluster.address)
    engine = RayEngine(study, network(), {}, "tests.ray_stubs:Traced")
    try:
        Watched(engine).until_told(None, "done")
    finally:
        begun = time.monotonic()
        engine.close()
    assert time.monotonic() - begun < 10
    assert not ray.is_initialized()
    join(nodes.cluster.address)
    become_free("CPU")


RUNG = Event("rung", 0, content={"epoch": 1, "values": {}})
PREPARED = Event("done", None, content={"settled_ms": {}})


@pytest.mark.slow
def test_the_work_of_the_dead_comes_first_and_once_more() -> None:
    searcher = CandidateSearcher({}, 1)
    assert searcher.suggest("a") == {"task": None, "settled": {}}
    searcher.told("a", [PREPARED], None)
    assert searcher.has_room()
    searcher.submit(0, network())
    assert not searcher.has_room()  # for it is as good as taken
    assert searcher.told("a", [], None), "its trial ends, since there is another"
    searcher.on_trial_complete("a")
    assert searcher.suggest("b")["task"]["trial"] == 0
    searcher.give(Task("evaluate", 1, []))
    searcher.bury("b", "a storm")
    assert searcher.suggest("c")["task"] is None, "a new worker prepares first"
    assert searcher.told("c", [PREPARED], None)
    searcher.on_trial_complete("c")
    assert searcher.suggest("d")["task"]["trial"] == 0
    searcher.told("d", [RUNG], None)
    searcher.bury("d", "a flood")
    assert [(event.kind, event.text) for event in searcher.events(0)] == [
        ("done", ""),
        ("progress", "trial 0 is started again: a storm"),
        ("rung", ""),
        ("failed", "a flood"),
    ]
    searcher.answer(0, True)  # too late
    searcher.suggest("e")
    assert searcher.told("e", [PREPARED], None)
    searcher.on_trial_complete("e")
    assert searcher.suggest("f")["task"]["trial"] == 1


@pytest.mark.slow
def test_workers_that_die_before_they_have_work_end_the_search_in_the_end() -> None:
    searcher = CandidateSearcher({}, 2)
    searcher.suggest("a")
    searcher.told("a", [PREPARED], None)
    for trial_id in "bc":
        searcher.suggest(trial_id)
        searcher.bury(trial_id, "no memory")
    searcher.suggest("d")
    searcher.told("d", [PREPARED], None)  # one that lives
    for trial_id in "efg":
        assert searcher.workers_wanted == 2
        searcher.bury(trial_id, "no memory")
    assert searcher.workers_wanted == 0
    failed = searcher.events(0)[-1]
    assert (failed.kind, failed.trial, failed.text) == ("failed", None, "no memory")


@pytest.mark.slow
def test_when_tune_gives_up_it_is_started_again(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, fails = tune.run, iter([True])

    def short_of_memory(*given: Any, **settings: Any) -> None:
        if next(fails, False):
            raise RuntimeError("Caught unexpected exception: out of memory")
        run(*given, **settings)

    monkeypatch.setattr(tune, "run", short_of_memory)
    watched = made(jobs=1)
    watched.submit(0, network())
    assert watched.answered(0, [True]).kind == "done"


@pytest.mark.slow
def test_workers_are_kept_while_there_is_nothing_to_do(made: Make) -> None:
    watched = made(jobs=2)
    workers = []
    for trials in ((0, 1), (2, 3)):
        for trial in trials:
            watched.submit(trial, network())
        watched.until(lambda t=trials: all(watched.of(trial, "rung") for trial in t))
        ends = [watched.answered(trial, [True]) for trial in trials]
        workers.append({end.content["training"]["pid"] for end in ends})
        time.sleep(2)
    assert len(workers[0]) == 2
    assert workers[0] == workers[1]


def run_by_tune_alone(nodes: Nodes, folder: Path, rounds: list[Any], **settings: Any) -> list[Any]:
    """Trials of Tune's, without an engine of ours."""
    join(nodes.cluster.address)
    search = Rounds(rounds)
    return tune.run(
        Plain,
        storage_path=str(folder),
        search_alg=search,
        num_samples=-1,
        max_concurrent_trials=2,
        reuse_actors=True,
        raise_on_failed_trial=False,
        verbose=0,
        **settings,
    ).trials


@pytest.mark.slow
def test_tune_alone_keeps_one_worker_while_there_is_nothing_to_do(
    nodes: Nodes, tmp_path: Path
) -> None:
    """Why a trial that is done is held open; where this fails Tune has learnt to keep them all."""
    rounds = []
    for number in range(2):
        one, other = str(tmp_path / f"{number}-one"), str(tmp_path / f"{number}-other")
        rounds.append([{"dies": None, "meets": pair} for pair in ((one, other), (other, one))])
    trials = run_by_tune_alone(nodes, tmp_path, rounds)
    assert [trial.status for trial in trials] == ["TERMINATED"] * 4
    assert len({trial.last_result["worker"] for trial in trials}) == 3


@pytest.mark.slow
def test_tune_alone_loses_a_trial_whose_worker_dies_while_it_is_handed_over(
    nodes: Nodes, tmp_path: Path
) -> None:
    """Why ``max_failures`` is not used; where this fails Tune has learnt to retry such a trial."""
    rounds = [[{"dies": None}], [{"dies": str(tmp_path / "dead")}]]
    first, second = run_by_tune_alone(nodes, tmp_path, rounds, max_failures=1)
    assert first.status == "TERMINATED"
    assert second.status == "ERROR"


@pytest.mark.slow
def test_a_ray_of_its_own_ends_with_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.shutdown()
    monkeypatch.setenv(MARK, str(tmp_path))
    engine = RayEngine(study_in(tmp_path), network(), {}, "tests.engine_stubs:Stub")
    try:
        watched = Watched(engine)
        watched.submit(0, network(HANGS))
        watched.until_told(0, "progress")
    finally:
        begun = time.monotonic()
        engine.close()
    assert time.monotonic() - begun < 10
    assert_ended(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("is_own", [True, False])
def test_a_driver_that_is_killed_leaves_nothing_behind(
    is_own: bool, nodes: Nodes, tmp_path: Path
) -> None:
    address = {} if is_own else {"RAY_ADDRESS": nodes.cluster.address}
    study = study_in(tmp_path)
    program = [sys.executable, "-m", "tests.engine_stubs", "ray", str(study.folder)]
    env = {**os.environ, MARK: str(tmp_path), **address}
    driver = subprocess.Popen(program, stdout=subprocess.PIPE, env=env, cwd=ROOT)
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b'"all hang"\n'
    finally:
        driver.kill()
        driver.wait()
    assert_ended(tmp_path, 30)  # Ray's agents look for their node from time to time
    if not is_own:
        join(nodes.cluster.address)
        become_free("CPU")


def become_free(resource: str) -> None:
    """Wait until nobody claims any of a resource; Ray tells of that after a while."""
    asking: Any = ray
    deadline = time.monotonic() + 15
    while asking.available_resources().get(resource) != asking.cluster_resources()[resource]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
