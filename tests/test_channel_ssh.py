"""Workers over ssh: a real server on this machine, and everything that can be wrong with one."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from levit_search import architecture
from levit_search.architecture import Architecture
from levit_search.errors import InputError, TrialError
from levit_search.latency import LatencyConfig, Measurement, Probe, worker
from levit_search.latency.cache import Cache
from levit_search.latency.channel import Channel, ssh_command
from levit_search.latency.targets import SshTarget, read_latency
from tests import sshd
from tests.conftest import Cli
from tests.networks import tiny_description

_REASON = sshd.missing()
needs_sshd = pytest.mark.skipif(_REASON is not None, reason=_REASON or "")

QUICK: dict[str, Any] = {"seconds": 0.2, "rounds": 2, "reference": tiny_description()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    with sshd.running(tmp_path_factory.mktemp("sshd")) as started:
        yield started


@pytest.fixture(scope="module")
def device_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with numpy and onnxruntime and without this project."""
    return sshd.python(tmp_path_factory.mktemp("device") / "venv")


@pytest.fixture
def probe(tmp_path: Path) -> Iterator[Callable[[SshTarget], Probe]]:
    """Probes with a cache of their own, closed after the test."""
    with ExitStack() as opened:

        def open_on(target: SshTarget) -> Probe:
            config = LatencyConfig(target=target, **QUICK)
            return opened.enter_context(Probe(config, cache=Cache(tmp_path / "samples")))

        yield open_on


OpenProbe = Callable[[SshTarget], Probe]


def refusal(target: SshTarget, patience_s: float = 60) -> str:
    """Why no worker can be had there, told in time, in one line that names the target."""
    begun = time.monotonic()
    with pytest.raises(TrialError) as refused:
        Channel(target, "onnxruntime", patience_s=patience_s)
    return said(refused.value, target, begun)


def said(error: TrialError, target: SshTarget, begun: float, within_s: float = 60) -> str:
    assert time.monotonic() - begun < within_s
    head, _, reason = str(error).partition(f"{target.address}: ")
    assert head == "probe on " and reason and "\n" not in reason, str(error)
    return reason


# A worker in which one thing is changed: `answer` and `job` are there to be twisted.
_TWISTED = """\
#!{python}
import os, sys, time
pipe = sys.stdin.buffer
source = pipe.read(int(pipe.readline()))
os.environ["TMPDIR"] = {folder!r}
worker = {{"__name__": "worker", "SOURCE": source}}
exec(compile(source, "worker.py", "exec"), worker)
answer = worker["_Worker"].answer
def twisted(self, job):
    {twist}
    return answer(self, job)
worker["_Worker"].answer = twisted
worker["main"]()
"""


@pytest.fixture
def twisted(tmp_path: Path) -> Callable[[str], str]:
    """A Python that runs our worker with a statement before each answer."""
    return lambda twist: _script(
        tmp_path, _TWISTED.format(python=sys.executable, folder=str(tmp_path), twist=twist)
    )


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], str]:
    """A "Python" that is a shell script."""
    return lambda text: _script(tmp_path, f"#!/bin/sh\n{text}\n")


def _script(folder: Path, text: str) -> str:
    path = folder / f"python-{len(list(folder.iterdir()))}"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def other(network: Architecture, depth: int) -> Architecture:
    description = network.model_dump(mode="json")
    description["stages"][0]["depth"] = depth
    return architecture.parse(description)


@needs_sshd
def test_a_network_is_measured_over_ssh_without_the_package_there(
    server: sshd.Server, device_python: Path, probe: OpenProbe, tiny: Architecture, tmp_path: Path
) -> None:
    from levit_search.model import build, export_onnx

    has_package = [str(device_python), "-I", "-c", "import levit_search"]
    assert subprocess.run(has_package, cwd="/", stderr=subprocess.DEVNULL).returncode != 0

    opened = probe(server.target(python=str(device_python), name="desk"))
    found = opened.measure(tiny)
    assert found.target == "desk"
    assert found.device == opened.connect()
    assert found.device["machine"] == os.uname().machine
    assert found.device["runtimes"].keys() == {"onnxruntime", "numpy"}
    assert found.device["malloc_huge_pages"]
    assert found.latency_ms > 0 and found.pairs >= 4
    assert found.peak_memory_mb is not None and found.peak_memory_mb > 10
    assert not found.cached
    assert opened.measure(tiny).rounds > found.rounds, "what has not settled is measured on"

    graph = tmp_path / "model.onnx"
    export_onnx(build(tiny), graph, batch_size=None)
    exported = opened.measure_graph(graph, tiny)
    assert exported.target == "desk" and exported.batch_size == 1
    assert not exported.cached and exported.pairs >= 4


@needs_sshd
def test_a_file_is_sent_once_and_its_logits_are_those_computed_here(
    server: sshd.Server, device_python: Path, tiny: Architecture, tmp_path: Path
) -> None:
    from levit_search.model import build, export_onnx

    graph = tmp_path / "net.onnx"
    export_onnx(build(tiny), graph, batch_size=2)
    job: dict[str, Any] = {"do": "logits", "runtime": "onnxruntime", "threads": 1, "seed": 3}
    here = worker.OnnxRunner(job, {"path": str(graph)}).run()[0]
    assert np.ptp(here) > 0

    opened = Channel(server.target(python=str(device_python)), "onnxruntime")
    try:
        placed = opened.place(graph)
        assert placed == {"file": "net.onnx"}
        graph.unlink()
        for _ in range(2):
            there = opened.ask({**job, "networks": [opened.place(graph)]}, 5)["logits"]
            np.testing.assert_allclose(there, here, rtol=1e-6)
    finally:
        opened.close()


@needs_sshd
@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("stranger", "its host key is not known; connect once by hand"),
        ("changed", "its host key has changed"),
        ("keyless", "no login without a password"),
        ("no-such-host.invalid", "unknown host"),
        ("refused", "Connection refused"),
    ],
)
def test_a_login_that_fails_is_explained(server: sshd.Server, host: str, reason: str) -> None:
    told = refusal(server.target(host))
    assert reason in told
    assert "worker" not in told  # there has been none


@pytest.mark.slow
@needs_sshd
def test_a_port_that_the_target_names_counts(server: sshd.Server) -> None:
    with pytest.raises(TrialError, match=r"ssh://device:1: .*port 1: Connection refused"):
        Channel(server.target(port=1), "onnxruntime")


@pytest.mark.slow
@needs_sshd
def test_a_python_that_is_not_there_is_named(server: sshd.Server, tmp_path: Path) -> None:
    assert "no Python '/no/python3'" in refusal(server.target(python="/no/python3"))
    assert "no Python 'pythonless'" in refusal(server.target(python="pythonless"))
    unusable = tmp_path / "python3"
    unusable.write_text("")
    told = refusal(server.target(python=str(unusable)))
    assert f"'{unusable}' there cannot be started" in told


@pytest.mark.slow
@needs_sshd
def test_a_python_may_be_named_from_home(server: sshd.Server) -> None:
    assert "no Python '~/no such/python3' there" in refusal(
        server.target(python="~/no such/python3")
    )
    path = os.path.relpath(sys.executable, sshd.login().pw_dir)
    Channel(server.target(python=f"~/{path}"), "onnxruntime").close()


def test_a_machine_without_ssh_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TrialError, match="probe on ssh://device: ssh cannot be started here"):
        Channel(SshTarget(kind="ssh", host="device"), "onnxruntime")


@pytest.mark.slow
@needs_sshd
def test_a_python_without_packages_is_told_what_to_install(
    server: sshd.Server, tmp_path: Path
) -> None:
    python = sshd.python(tmp_path / "venv", with_packages=False)
    told = refusal(server.target(python=str(python)))
    assert "onnxruntime is not installed there (found: nothing)" in told
    assert "`pip install numpy onnxruntime`" in told


@pytest.mark.slow
@needs_sshd
def test_settings_for_terminals_do_not_matter(server: sshd.Server, device_python: Path) -> None:
    opened = Channel(server.target("attached", python=str(device_python)), "onnxruntime")
    opened.close()


@pytest.mark.slow
@needs_sshd
def test_a_shared_connection_serves_and_outlives_the_worker(
    server: sshd.Server, device_python: Path
) -> None:
    target = server.target("multiplexed", python=str(device_python))
    for _ in range(2):
        begun = time.monotonic()
        Channel(target, "onnxruntime").close()
        assert time.monotonic() - begun < 10
    assert "no Python" in refusal(server.target("multiplexed", python="/no/python3"))


@pytest.mark.slow
@needs_sshd
@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        ("os._exit(3)", "the worker ended with exit code 3 (no message)"),
        ("os.write(2, b'out of luck'); os._exit(3)", "exit code 3 (out of luck)"),
        ("os.kill(os.getpid(), 9)", "the connection was lost, or a signal ended the worker"),
        ("print('Welcome!', flush=True)", "not an answer: 'Welcome!'"),
        ("time.sleep(60)", "no answer for 1 s, stopped"),
    ],
)
def test_a_worker_that_fails_in_mid_job_is_told_and_closed(
    server: sshd.Server,
    twisted: Callable[[str], str],
    twist: str,
    reason: str,
) -> None:
    target = server.target(python=twisted(twist))
    opened = Channel(target, "onnxruntime")
    opened.patience_s = 1.0
    begun = time.monotonic()
    with pytest.raises(TrialError) as failed:
        opened.ask({"do": "logits", "networks": []}, 0)
    assert reason in said(failed.value, target, begun)
    assert not opened.is_usable


@pytest.mark.slow
@needs_sshd
def test_a_probe_starts_another_worker_after_one_was_killed(
    server: sshd.Server,
    probe: OpenProbe,
    tiny: Architecture,
    twisted: Callable[[str], str],
    tmp_path: Path,
) -> None:
    fault = tmp_path / "fault"
    fault.touch()
    killed = f"if os.path.exists({str(fault)!r}): os.kill(os.getpid(), 9)"
    target = server.target(python=twisted(killed))
    opened = probe(target)
    begun = time.monotonic()
    with pytest.raises(TrialError) as failed:
        opened.measure(tiny)
    assert "a signal ended the worker" in said(failed.value, target, begun)
    fault.unlink()
    assert opened.measure(tiny).pairs > 0


@pytest.mark.slow
@needs_sshd
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo 'Last login: today'", "not an answer: 'Last login: today' (nothing else may print"),
        ("head -c 300 /dev/urandom; exec cat", "not an answer: "),
        ("echo '{}'", "not an answer: '{}'"),
        ("exit 0", "the worker ended with exit code 0 (no message)"),
        ("echo 'Python 2.7 is too old' >&2; exit 1", "exit code 1 (Python 2.7 is too old)"),
        ("exec tr '\\0' x < /dev/zero", "not an answer: a line of over 64 MiB"),
        ("exec sleep 20", "no answer for 1 s, stopped"),
        ('echo \'{"event": "ready", "protocol": 1}\'', "its worker speaks protocol 1, not"),
    ],
)
def test_whatever_is_no_worker_is_refused(
    server: sshd.Server,
    shell: Callable[[str], str],
    text: str,
    reason: str,
) -> None:
    patience_s = 1 if "sleep" in text else 60
    assert reason in refusal(server.target(python=shell(text)), patience_s)


@pytest.mark.slow
@needs_sshd
def test_one_network_that_fails_leaves_the_others_measured(
    server: sshd.Server, probe: OpenProbe, tiny: Architecture, twisted: Callable[[str], str]
) -> None:
    networks = [other(tiny, depth) for depth in (1, 2, 3)]
    fault = f"assert {networks[1].id!r} not in str(job['networks']), 'no such operator'"
    target = server.target(python=twisted(fault))
    begun = time.monotonic()
    first, failed, last = probe(target).measure_all(networks)
    assert isinstance(first, Measurement) and isinstance(last, Measurement)
    assert isinstance(failed, TrialError)
    assert "AssertionError: no such operator" in said(failed, target, begun, within_s=200)


SMUGGLED = (
    "ssh://-oProxyCommand=touch /tmp/x",
    "ssh://-oProxyCommand=x",
    "ssh://-l@host",
    "ssh://me@-oProxyCommand=x",
    "ssh://-lme@host",
    "ssh://a b",
    "ssh://user;id@host",
    "ssh://$(id)",
    "ssh://`id`",
    "ssh://$(id)@host",
    "ssh://host\n-oProxyCommand=x",
    "ssh://user\nname@host",
    "ssh://",
    "ssh://host:port",
    "ssh://host:99999",
)


@pytest.mark.parametrize("target", SMUGGLED)
def test_no_name_of_a_host_or_user_is_an_option_or_a_command(target: str) -> None:
    with pytest.raises(InputError) as refused:
        read_latency({"target": target}, "probe")
    assert "probe" in str(refused.value)


@pytest.mark.parametrize("key", ["host", "user"])
@pytest.mark.parametrize("name", ["-oProxyCommand=x", "a b", "a;b", "$(id)", "a\nb", "a\n", ""])
def test_the_same_holds_for_targets_written_in_full(key: str, name: str) -> None:
    target = {"kind": "ssh", "host": "device", key: name}
    with pytest.raises(InputError, match="latency"):
        read_latency({"target": target}, "latency")


def test_the_host_follows_all_options_and_python_is_one_word_to_the_shell() -> None:
    target = SshTarget(kind="ssh", host="device", user="me", port=22, python="/my venv/python; id")
    options, command = ssh_command(target, ["-c", "a 'b'"], {"NAME": "$x"})[:-3], ["--", "device"]
    rest = ssh_command(target, ["-c", "a 'b'"], {"NAME": "$x"})[-3:]
    assert rest[:2] == command
    assert shlex.split(rest[2]) == ["exec", "env", "NAME=$x", "/my venv/python; id", "-c", "a 'b'"]
    assert options[-4:] == ["-p", "22", "-l", "me"]
    assert "-oBatchMode=yes" in options


def test_the_command_line_refuses_such_a_target_in_one_line(cli: Cli) -> None:
    done = cli("probe", "LeViT-128S", "--target", "ssh://-oProxyCommand=x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "-oProxyCommand=x" in done.stderr
