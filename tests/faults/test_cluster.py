"""Nodes of a Ray cluster, and its head, that die in the middle of a search."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.faults.conftest import Account, Quoted
from tests.faults.sessions import Search

Times = Callable[[int, int], int]

_STORE = {"object_store_memory": 80 * 1024 * 1024, "include_log_monitor": False}


@pytest.fixture
def make_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Makes clusters whose head has no CPUs, with two nodes that have one each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    made: list[Any] = []

    def make() -> Any:
        head = {"num_cpus": 0, "include_dashboard": False, **_STORE}
        made.append(Cluster(initialize_head=True, head_node_args=head))
        for _ in range(2):
            made[-1].add_node(num_cpus=1, **_STORE)
        return made[-1]

    yield make
    for cluster in made:
        cluster.shutdown()


def test_nodes_that_die_cost_nothing_that_was_finished(
    make_cluster: Callable[[], Any],
    tmp_path: Path,
    times: Times,
    account: Account,
    quoted: Quoted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEVIT_SEARCH_PACE_S", "0.3")  # so that a node that dies is at work
    cluster, chance, count, kills = make_cluster(), random.Random(0), times(3, 15), 0
    search = Search(tmp_path / "study")
    session = search.begin("--address", cluster.address, "--jobs", 2, "--trials", 400)
    while kills < count or (kills < 4 * count and "is started again" not in session.said()):
        kills += 1  # one that was at work among them
        assert session.until_ended(len(session.ended()) + 2), session.said()
        time.sleep(chance.uniform(0, 0.6))
        # A trial whose worker dies twice has failed, as documented: it is let end before.
        has_ended = session.until(lambda: set(session.restarted()) <= set(session.ended()))
        assert has_ended, session.said()
        cluster.remove_node(chance.choice(list(cluster.worker_nodes)), allow_graceful=False)
        cluster.add_node(num_cpus=1, **_STORE)
    assert session.until_ended(len(session.ended()) + 2), session.said()
    session.interrupt()
    assert session.wait() == 130, session.said()
    quoted(session.said(), "trial … is started again: the worker on … died: …")
    search.finish("--engine", "local", "--trials", search.evaluated() + 2)
    failed = [record for record in search.records() if record.state == "failed"]
    lost = [f"trial {record.trial} failed: {record.reason}" for record in failed]
    account("ray-node", kills, lost + search.twice() + search.left_over())


def test_a_head_that_dies_ends_the_search_which_goes_on_with_another(
    make_cluster: Callable[[], Any],
    tmp_path: Path,
    times: Times,
    account: Account,
    quoted: Quoted,
) -> None:
    search, count, lost = Search(tmp_path / "study"), times(1, 5), list[str]()
    for _ in range(count):
        cluster = make_cluster()
        session = search.begin("--address", cluster.address, "--jobs", 2)
        assert session.until_ended(4), session.said()
        cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        assert session.wait() == 1, session.said()
        goes_on = "what was finished is kept, and the same command goes on once there is one"
        quoted(session.said(), f"the Ray cluster at … is gone (…); {goes_on}")
        assert "Traceback" not in session.said()
        failed = [record for record in search.records() if record.state == "failed"]
        lost += [f"trial {record.trial} failed: {record.reason}" for record in failed]
    search.finish("--engine", "local", "--trials", search.evaluated() + 2)
    account("ray-head", count, lost + search.twice() + search.left_over())
