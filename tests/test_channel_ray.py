"""Workers on nodes of a Ray cluster, which here are processes of this machine."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from levit_search.architecture import Architecture
from levit_search.errors import TrialError
from levit_search.latency import LatencyConfig, Probe, channel, process_pipe, ray_node, worker
from levit_search.latency.cache import Cache
from levit_search.latency.channel import Channel
from levit_search.latency.ray_node import NodePipe, RayPipe
from levit_search.latency.targets import RayTarget
from tests.networks import tiny_description

QUICK: dict[str, Any] = {"seconds": 0.2, "rounds": 2, "reference": tiny_description()}

# Every Python on a node says who it is, and knows nothing of this project.
_NODE_START = """\
import os, sys
sys.modules["levit_search"] = None
os.environ["TMPDIR"] = {folder!r}
with open({folder!r} + "/trace", "a") as file:
    file.write(f"{{os.getpid()}} {{sys.orig_argv[1:]}}\\n")
"""


class Nodes:
    """A cluster whose head offers nothing, and whose other nodes lack the package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "sitecustomize.py").write_text(_NODE_START.format(folder=str(folder)))
        self._store = {"object_store_memory": 80 * 1024 * 1024, "include_log_monitor": False}
        head = {"num_cpus": 1, "include_dashboard": False, **self._store}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args=head)

    def add(self, resource: str) -> object:
        env = {"PYTHONPATH": str(self.folder)}
        return self.cluster.add_node(
            num_cpus=0, resources={resource: 1}, env_vars=env, **self._store
        )

    def target(self, resource: str = "probe_arm") -> RayTarget:
        return RayTarget(kind="ray", resource=resource, cluster=self.cluster.address)

    def last_worker(self) -> int:
        """The process id of the worker that started last on a node beside the head."""
        lines = (self.folder / "trace").read_text().splitlines()
        started = [line for line in lines if worker.BOOTSTRAP in line]
        return int(started[-1].partition(" ")[0])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        started = Nodes(tmp_path_factory.mktemp("nodes"))
        try:
            started.add("probe_arm")
            yield started
        finally:
            ray.shutdown()
            started.cluster.shutdown()


def refusal(target: RayTarget, within_s: float = 15, patience_s: float = 120) -> str:
    """Why no worker can be had there, told in time, in one line that names the target."""
    begun = time.monotonic()
    with pytest.raises(TrialError) as refused:
        Channel(target, "onnxruntime", patience_s=patience_s)
    return said(refused.value, target, begun, within_s)


def said(error: TrialError, target: RayTarget, begun: float, within_s: float = 15) -> str:
    assert time.monotonic() - begun < within_s
    head, _, reason = str(error).partition(f"{target.address}: ")
    assert head == "probe on " and reason and "\n" not in reason, str(error)
    return reason


def becomes(offered: float, resource: str = "probe_arm") -> bool:
    """Whether so much of the resource is free soon; Ray tells of a change after a while."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if ray.available_resources().get(resource, 0.0) == offered:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_a_network_is_measured_on_the_node_that_offers_the_resource(
    nodes: Nodes, tiny: Architecture, tmp_path: Path
) -> None:
    config = LatencyConfig(target=nodes.target(), **QUICK)
    with Probe(config, cache=Cache(tmp_path)) as probe:
        probe.connect()
        running = nodes.last_worker()
        found = probe.measure(tiny)
        assert found.target == "ray://probe_arm"
        assert found.device["machine"] == os.uname().machine
        assert found.device["malloc_huge_pages"]
        assert found.latency_ms > 0 and found.pairs >= 4
        assert found.peak_memory_mb is not None and found.peak_memory_mb > 10
        assert becomes(0.0)
        assert [*nodes.folder.glob("levit-search-worker-*")]
    assert becomes(1.0)
    assert has_ended(running)
    assert not [*nodes.folder.glob("levit-search-worker-*")]


@pytest.mark.slow
def test_a_worker_killed_on_its_node_is_replaced(
    nodes: Nodes, tiny: Architecture, tmp_path: Path
) -> None:
    config = LatencyConfig(target=nodes.target(), **QUICK)
    with Probe(config, cache=Cache(tmp_path)) as probe:
        probe.connect()
        os.kill(nodes.last_worker(), signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(TrialError) as failed:
            probe.measure(tiny)
        told = said(failed.value, nodes.target(), begun)
        assert told == "the worker ended with signal 9 (no message)"
        assert probe.measure(tiny).pairs > 0


@pytest.mark.slow
@pytest.mark.parametrize("resource", ["probe_riscv", "CPU"])
def test_a_resource_that_no_node_offers_is_told_at_once(nodes: Nodes, resource: str) -> None:
    told = refusal(nodes.target(resource))
    assert f"no node of the cluster at {nodes.cluster.address} " in told
    assert f"offers the custom resource '{resource}' (offered: probe_arm)" in told


@pytest.mark.slow
def test_any_node_can_be_named_by_its_address(nodes: Nodes) -> None:
    Channel(nodes.target(f"node:{nodes.cluster.head_node.node_ip_address}"), "onnxruntime").close()


@pytest.mark.slow
def test_a_busy_node_is_not_waited_for_without_end(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding = Channel(nodes.target(), "onnxruntime")
    try:
        monkeypatch.setattr(ray_node, "_SCHEDULE_S", 1.0)
        assert "every node with 'probe_arm' was busy for 1 s" in refusal(nodes.target())
    finally:
        holding.close()
    monkeypatch.undo()
    Channel(nodes.target(), "onnxruntime").close()


@pytest.mark.slow
def test_a_trial_with_a_placement_group_measures_outside_of_it(nodes: Nodes) -> None:
    Channel(nodes.target(), "onnxruntime").close()  # connects this process

    def trial() -> str:
        opened = Channel(RayTarget(kind="ray", resource="probe_arm"), "onnxruntime")
        opened.close()
        return str(opened.device["machine"])

    group = ray.util.placement_group([{"CPU": 1}])
    inside = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    try:
        remote: Any = ray.remote(num_cpus=1, scheduling_strategy=inside)(trial)
        assert ray.get(remote.remote(), timeout=60) == os.uname().machine
    finally:
        ray.util.remove_placement_group(group)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["target", "RAY_ADDRESS"])
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_cluster_that_does_not_answer_is_told_in_time(
    way: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.shutdown()
    with socket.socket() as taken:  # bound and not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        address = f"{host}:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        cluster = address if way == "target" else "auto"
        target = RayTarget(kind="ray", resource="probe_arm", cluster=cluster)
        assert f"no Ray cluster at '{address}' (" in refusal(target)


@pytest.mark.slow
def test_a_malformed_address_of_a_cluster_is_told() -> None:
    ray.shutdown()
    told = refusal(RayTarget(kind="ray", resource="probe_arm", cluster="nowhere"))
    assert "no Ray cluster at 'nowhere'" in told


@pytest.mark.slow
def test_a_node_that_dies_in_mid_job_is_told(
    nodes: Nodes, capfd: pytest.CaptureFixture[str]
) -> None:
    target = nodes.target("probe_lost")
    lost = nodes.add("probe_lost")
    opened = Channel(target, "onnxruntime")
    running = nodes.last_worker()
    begun = time.monotonic()
    death = threading.Timer(1.0, nodes.cluster.remove_node, [lost], {"allow_graceful": False})
    death.start()
    with pytest.raises(TrialError) as failed:
        opened.ask({"do": "round", "networks": [], "seconds": 60}, 60)
    death.join()
    assert "its node or the process there is gone" in said(failed.value, target, begun, 30)
    assert not opened.is_usable
    assert has_ended(running)
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_an_endless_line_from_a_node_is_refused(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = tmp_path / "endless.py"
    endless.write_text("import sys\nwhile True: sys.stdout.write(1000 * 'endless ')")
    monkeypatch.setattr(channel.worker, "__file__", str(endless))
    for side in (process_pipe, channel):  # the node's, which is sent there, and ours
        monkeypatch.setattr(side, "LONGEST_LINE", 1 << 20)
    assert refusal(nodes.target(), 150, 60) == "not an answer: a line of over 1 MiB"
    assert has_ended(nodes.last_worker())


@pytest.mark.slow
def test_a_worker_that_says_nothing_on_its_node_is_stopped(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = tmp_path / "silent.py"
    silent.write_text("import time\ntime.sleep(60)")
    monkeypatch.setattr(channel.worker, "__file__", str(silent))
    assert refusal(nodes.target(), 150, patience_s=1.0) == "no answer for 1 s, stopped"
    assert has_ended(nodes.last_worker())


@pytest.mark.slow
def test_a_line_from_a_node_is_waited_for_no_longer_than_asked(nodes: Nodes) -> None:
    pipe = RayPipe(nodes.target(), ["-c", "input()"], {})
    try:
        begun = time.monotonic()
        assert pipe.read_line(1.0) is None
        assert time.monotonic() - begun < 10
    finally:
        pipe.close()
    assert becomes(1.0)


@pytest.mark.slow
def test_a_node_tells_how_its_process_ended() -> None:
    program = "import sys; print(input()); sys.exit('out of luck')"
    pipe = NodePipe(["-c", program], {})
    assert pipe.read_line(0.01) is None
    pipe.write(b"hello\n")
    assert [pipe.read_line(10), pipe.read_line(10)] == [b"hello\n", b""]
    assert pipe.last_words() == "the worker ended with exit code 1 (out of luck)"
    pipe.write(b"nobody reads this\n")
    pipe.close()


@pytest.mark.slow
def test_a_node_ends_a_process_that_does_not_read() -> None:
    pipe = NodePipe(["-c", "import time; print('up', flush=True); time.sleep(60)"], {})
    assert pipe.read_line(10) == b"up\n"
    begun = time.monotonic()
    pipe.write(bytes(1 << 20))
    pipe.close()
    assert time.monotonic() - begun < 10
    assert pipe.last_words() == "the worker ended with signal 9 (no message)"


@pytest.mark.slow
def test_a_node_undoes_the_hiding_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ['NAME'])"
    for value, seen in (("", b"None x\n"), ("1", b"1 x\n")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        pipe = NodePipe(["-c", program], {"NAME": "x"})
        assert pipe.read_line(10) == seen
        pipe.close()


def has_ended(process_id: int) -> bool:
    """Whether a process that is not our child ends soon."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
