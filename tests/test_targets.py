import json
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from levit_search.configuration import validated
from levit_search.errors import InputError
from levit_search.latency import LatencyConfig, discovery, worker
from levit_search.latency.channel import Channel, ssh_command
from levit_search.latency.discovery import DeadlineError, DiscoveredTarget, run_with_deadlines
from levit_search.latency.targets import (
    PRESETS,
    CommandTarget,
    LocalTarget,
    NamedTarget,
    RayTarget,
    SshTarget,
    read_latency,
    read_targets,
    resolved,
    target_files,
)
from levit_search.study import Study, read_config
from tests.conftest import Cli

HERE = {"kind": "command", "python": [sys.executable]}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the user's targets count, nor those of the folder where tests are started."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New processes import a torch that sees no GPU, and import it in no time."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "torch.py").write_text(
        "import types\n"
        "__version__ = '9.9'\n"
        "cuda = types.SimpleNamespace(is_available=lambda: False)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


def write_targets(folder: Path, **entries: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "targets.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


def named(**entries: object) -> dict[str, NamedTarget]:
    return {name: NamedTarget(entry, Path("targets.yaml")) for name, entry in entries.items()}


def config(section: dict[str, Any], **entries: object) -> LatencyConfig:
    return validated(LatencyConfig, resolved(section, named(**entries), "here"), "here")


def wrong(section: dict[str, Any], **entries: object) -> str:
    with pytest.raises(InputError) as raised:
        config(section, **entries)
    return str(raised.value)


# Written in a section


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu", LocalTarget()),
        ("cuda", LocalTarget(device="cuda")),
        ("ssh://pi", SshTarget(kind="ssh", host="pi")),
        ("ssh://me@pi.local:2222", SshTarget(kind="ssh", host="pi.local", user="me", port=2222)),
        ("ssh://me@corp@desk", SshTarget(kind="ssh", host="desk", user="me@corp")),
        ("ssh://me@[::1]:2222", SshTarget(kind="ssh", host="::1", user="me", port=2222)),
        ("ssh://[fe80::1%eth0]", SshTarget(kind="ssh", host="fe80::1%eth0")),
        ("ray://probe_arm", RayTarget(kind="ray", resource="probe_arm")),
    ],
)
def test_inline_forms(text: str, expected: SshTarget) -> None:
    target = config({"target": text}).target
    assert target == expected
    assert target.address == text


def test_no_target_is_this_cpu() -> None:
    assert config({}).target == LocalTarget()
    assert LatencyConfig().target == LocalTarget()


def test_mappings_say_more_than_inline_forms() -> None:
    target = config({"target": {"kind": "ssh", "host": "pi", "python": "/opt/bin/python3"}}).target
    assert target == SshTarget(kind="ssh", host="pi", python="/opt/bin/python3")
    target = config({"target": {**HERE, "env": {"A": "b"}}}).target
    assert target == CommandTarget(kind="command", python=(sys.executable,), env={"A": "b"})
    assert target.address == f"command {Path(sys.executable).name}"


@pytest.mark.parametrize(
    "text",
    [
        "ssh://",
        "ssh://me@",
        "ssh://@pi",
        "ssh://pi:",
        "ssh://pi:port",
        "ssh://pi:0",
        "ssh://pi:65536",
        "ssh://pi:٢٢",
        "ssh://::1",
        "ssh://[]",
        "ssh://[::1]x",
        "ssh://pi/home",
        "ray://",
        "ray://a b",
    ],
)
def test_malformed_inline_forms_are_refused(text: str) -> None:
    assert "here: " in wrong({"target": text})


@pytest.mark.parametrize(
    "host", ["-oProxyCommand=x", "a b", "a;b", "$(a)", "`a`", "a\n", "a'b", ""]
)
def test_no_host_or_user_smuggles_options_or_commands(host: str) -> None:
    for target in (
        f"ssh://{host}",
        f"ssh://{host}@pi",
        {"kind": "ssh", "host": host},
        {"kind": "ssh", "host": "pi", "user": host},
        {"kind": "ray", "resource": host},
    ):
        wrong({"target": target})


def test_ssh_reads_a_host_after_all_options_and_quotes_the_python() -> None:
    target = SshTarget(kind="ssh", host="::1", user="me", python="/a b/python; x")
    command = ssh_command(target, ["-c", "1"])
    assert command[command.index("--") + 1 :] == ["::1", "exec env '/a b/python; x' -c 1"]
    assert command[command.index("-l") + 1] == "me"


def test_unknown_targets_get_the_nearest_spelling() -> None:
    message = wrong({"target": "graviton"}, gravitn="ssh://x")
    assert message.startswith("here: unknown target 'graviton'; did you mean 'gravitn'?")
    assert "did you mean 'paper-arm'?" in wrong({"target": "paper-rm"})
    assert "did you mean 'cuda'?" in wrong({"target": "CUDA"})
    assert "ssh://[user@]host[:port]" in wrong({"target": "http://pi"})


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "target: expected a name"),
        (True, "target: expected a name"),
        ([1], "target: expected a name"),
        (1.5, "target: expected a name"),
        ({"host": "pi"}, "target.kind: is required; known: local, ssh, ray, command"),
        ({"kind": "sssh", "host": "pi"}, "did you mean 'ssh'?"),
        ({"kind": "ssh"}, "host: is required"),
        ({"kind": "ssh", "host": "pi", "prt": 2}, "did you mean 'port'?"),
        ({"kind": "ssh", "host": "pi", "port": "2"}, "not '2'"),
        ({"kind": "command", "python": []}, "python: "),
        ({"kind": "command", "python": "python3"}, "not 'python3'"),
    ],
)
def test_malformed_targets_are_refused(target: object, message: str) -> None:
    assert message in wrong({"target": target})


# Presets


def test_presets_are_the_papers_settings() -> None:
    gpu = config({"target": "paper-gpu"})
    assert (gpu.target.device, gpu.runtime) == ("cuda", "torch")
    assert (gpu.batch_size, gpu.precision) == ("largest", "fp16")
    intel = config({"target": "paper-intel"})
    assert (intel.target.machine, intel.batch_size, intel.threads) == (None, 16, 1)
    arm = config({"target": "paper-arm"})
    assert (arm.target.machine, arm.batch_size, arm.threads) == ("aarch64", 16, 1)
    assert [c.target.name for c in (gpu, intel, arm)] == list(PRESETS)


def test_an_entry_takes_a_preset_to_its_own_target() -> None:
    arm = config(
        {"target": "mine"}, mine={"preset": "paper-arm", "target": "ssh://pi", "threads": 2}
    )
    assert arm.target == SshTarget(kind="ssh", host="pi", machine="aarch64", name="mine")
    assert (arm.batch_size, arm.threads) == (16, 2)
    gpu = config({"target": "mine"}, mine={"preset": "paper-gpu", "target": "ssh://box"})
    assert gpu.target == SshTarget(kind="ssh", host="box", device="cuda", name="mine")
    assert (gpu.runtime, gpu.batch_size) == ("torch", "largest")


def test_an_entrys_own_machine_counts_more_than_its_presets() -> None:
    target = {"kind": "ssh", "host": "mac", "machine": "arm64"}
    mine = config({"target": "mine"}, mine={"preset": "paper-arm", "target": target})
    assert mine.target.machine == "arm64"


def test_a_preset_may_be_an_entrys_target() -> None:
    mine = config({"target": "mine"}, mine={"target": "paper-intel", "threads": 2})
    assert (mine.target.name, mine.batch_size, mine.threads) == ("mine", 16, 2)


def test_presets_stay_as_they_are() -> None:
    before = json.dumps(PRESETS)
    config({"target": "mine"}, mine={"preset": "paper-gpu", "target": "ssh://box"})
    config({"target": "paper-gpu", "batch_size": 4})
    assert json.dumps(PRESETS) == before


# targets.yaml


def test_a_section_counts_more_than_its_target_and_that_more_than_its_preset() -> None:
    entry = {"preset": "paper-intel", "threads": 2, "seconds": 3.0}
    found = config({"target": "mine", "seconds": 4.0}, mine=entry)
    assert (found.batch_size, found.threads, found.seconds) == (16, 2, 4.0)
    assert found.rounds == LatencyConfig().rounds


def test_short_entries_are_a_target_alone() -> None:
    found = config({"target": "desk"}, desk="ssh://me@desk")
    assert found == LatencyConfig(target=SshTarget(kind="ssh", host="desk", user="me", name="desk"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, "expected a target or a mapping with one, not None"),
        ([1], "expected a target or a mapping with one, not [1]"),
        ("ssh://", "expected ssh://[user@]host[:port]"),
        ("nowhere", "unknown target 'nowhere'"),
        ("other", "its target is another name, 'other'"),
        ("mine", "its target is another name, 'mine'"),
        ({"target": "other"}, "its target is another name, 'other'"),
        ({"target": None}, "target: expected a name"),
        ({"target": [1]}, "target: expected a name"),
        ({"target": {"host": "pi"}}, "target.kind: is required"),
        ({"preset": "paper-rm"}, "unknown preset 'paper-rm'; did you mean 'paper-arm'?"),
        ({"preset": ["paper-arm"]}, "unknown preset ['paper-arm']"),
        ({"thread": 4}, "unknown key 'thread'; did you mean 'threads'?"),
        ({1: 4}, "unknown key 1"),
        ({"threads": 0}, "threads: "),
        ({"precision": "fp16"}, "precision: fp16 needs runtime torch"),
        ({"preset": "paper-gpu", "target": "cpu"}, "precision: "),
    ],
)
def test_malformed_entries_are_refused_by_file_and_name(entry: object, message: str) -> None:
    told = wrong({"target": "mine", "threads": 2}, mine=entry, other="ssh://pi")
    assert told.startswith("targets.yaml: mine: ")
    assert message in told


@pytest.mark.parametrize("name", ["cpu", "cuda", "paper-arm", "ssh://pi"])
def test_names_with_a_meaning_of_their_own_are_refused(name: str) -> None:
    told = wrong({"target": name}, **{name: {"threads": 4}})
    assert told == f"targets.yaml: {name}: this name means something by itself; choose another"


def test_a_malformed_entry_is_no_matter_to_others() -> None:
    assert config({"target": "mine"}, mine={"threads": 4}, other=[], cuda=None).threads == 4


def test_numbers_can_be_names(tmp_path: Path) -> None:
    (tmp_path / "targets.yaml").write_text("1: {target: ssh://pi, threads: 4}\n")
    for name in (1, "1"):
        found = read_latency({"target": name}, "here")
        assert (found.target.name, found.threads) == ("1", 4)


def test_targets_are_looked_for_in_three_folders_and_the_last_counts(tmp_path: Path) -> None:
    write_targets(tmp_path / "config/levit-search", a="ssh://a1", b="ssh://b1", c="ssh://c1")
    assert {name: entry.entry for name, entry in read_targets().items()} == {
        "a": "ssh://a1",
        "b": "ssh://b1",
        "c": "ssh://c1",
    }
    write_targets(tmp_path, b="ssh://b2", c="ssh://c2")
    beside = write_targets(tmp_path / "spaces", c="ssh://c3", d="ssh://d3").parent
    found = read_targets(beside)
    assert {name: entry.entry for name, entry in found.items()} == {
        "a": "ssh://a1",
        "b": "ssh://b2",
        "c": "ssh://c3",
        "d": "ssh://d3",
    }
    assert [found[name].file for name in "abc"] == target_files(beside)
    assert read_latency({"target": "d"}, "here", beside).target.address == "ssh://d3"


def test_without_xdg_config_home_it_is_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_targets(tmp_path / "home/.config/levit-search", a="ssh://a")
    assert read_targets().keys() == {"a"}


def test_no_file_is_no_targets() -> None:
    assert read_targets() == {}


@pytest.mark.parametrize("text", ["a: [", "- a", "", "a: !!python/object:os.system {}"])
def test_files_without_a_mapping_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "targets.yaml").write_text(text)
    with pytest.raises(InputError, match=r"^targets\.yaml: "):
        read_targets()


# Resolved once


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"target": "cuda", "precision": "bf16"},
        {"target": "paper-gpu"},
        {"target": "paper-arm", "threads": 4},
        {"target": "ssh://me@[::1]:22", "seconds": 1},
        {"target": "ray://probe_arm"},
        {"target": "mine"},
        {"target": {"kind": "ssh", "host": "pi", "config_file": "~/x", "device": "cuda"}},
        {"target": {**HERE, "env": {"A": "b"}}, "method": "predicted"},
    ],
)
def test_a_resolved_section_stays_as_it_is(section: dict[str, Any]) -> None:
    entry = {"preset": "paper-arm", "target": {**HERE, "name": "ignored"}, "allow_emulated": True}
    first = config(section, mine=entry)
    dumped = json.loads(json.dumps(first.model_dump(mode="json")))
    assert LatencyConfig.model_validate(dumped) == first
    once = resolved(section, named(mine=entry), "here")
    assert resolved(once, {}, "here") == once


def test_the_method_alone_is_a_section() -> None:
    found = LatencyConfig.model_validate("predicted")
    assert found == LatencyConfig(method="predicted")
    assert LatencyConfig.model_validate("measured") == LatencyConfig()


def test_a_study_no_longer_needs_the_file(tmp_path: Path, space_file: Callable[..., Path]) -> None:
    objectives = ["top1_percent", "latency_ms"]
    path = space_file(latency={"target": "box", "rounds": 4}, objectives=objectives)
    file = write_targets(path.parent, box={"target": HERE, "threads": 2, "rounds": 6})
    found = read_config(path)
    assert (found.latency.threads, found.latency.rounds) == (2, 4)
    Study.create(tmp_path / "study", found, [])
    file.unlink()
    assert Study.open(tmp_path / "study").config == found
    with pytest.raises(InputError, match=r"tiny\.yaml: unknown target 'box'"):
        read_config(path)


def test_changes_name_targets_too(tmp_path: Path, space_file: Callable[..., Path]) -> None:
    write_targets(tmp_path, box={"target": HERE, "threads": 2})
    assert read_config(space_file(), {"latency.target": "box"}).latency.threads == 2
    predicted = read_config(space_file(latency="predicted")).latency
    assert predicted == LatencyConfig(method="predicted")


# Checks within their time


def test_checks_run_at_once_and_each_within_its_time() -> None:
    together = threading.Barrier(3)

    def meet(what: object) -> object:
        together.wait(10)
        if isinstance(what, Exception):
            raise what
        return what

    def hang() -> object:
        together.wait(10)
        return threading.Event().wait(20)

    jobs = [(lambda: meet(1), 10.0), (lambda: meet(OSError("no such device")), 10.0), (hang, 1.0)]
    begun = time.monotonic()
    told = dict(run_with_deadlines(jobs))
    assert time.monotonic() - begun < 10
    assert told.keys() == {0, 1, 2} and told[0] == 1
    assert isinstance(told[1], OSError) and str(told[1]) == "no such device"
    assert isinstance(told[2], DeadlineError)


# What can be reached now


def rows(timeout_s: float = 20.0, **entries: object) -> dict[str, DiscoveredTarget]:
    told: list[DiscoveredTarget] = []
    found = discovery.discover(named(**entries), timeout_s, told.append)
    assert [row.name for row in found] == list(dict.fromkeys(["cpu", "cuda", *PRESETS, *entries]))
    assert sorted(row.name for row in told) == sorted(row.name for row in found)
    return {row.name: row for row in found}


@pytest.mark.usefixtures("no_gpu")
def test_targets_here_tell_their_device_or_why_not() -> None:
    found = rows(here={"target": HERE, "threads": 2})
    for name in ("cpu", "paper-intel", "here"):
        row = found[name]
        assert row.reachable and row.reason is None and not row.is_emulated
        assert row.device is not None and row.device["cores"] >= 1
        assert row.device["runtimes"].keys() >= {"onnxruntime", "torch", "numpy"}
    assert found["here"].settings == {
        "runtime": "onnxruntime",
        "precision": "fp32",
        "batch_size": 1,
        "threads": 2,
    }
    for name in ("cuda", "paper-gpu"):
        assert found[name].reason == "torch 9.9 sees no NVIDIA GPU here"
        assert not found[name].reachable and found[name].device is None
    assert found["paper-gpu"].settings["batch_size"] == "largest"


@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu")
def test_reasons_are_one_line_without_the_targets_name() -> None:
    found = rows(
        timeout_s=3.0,
        malformed=[1],
        machine={"target": {**HERE, "machine": "m68k"}},
        gone={"target": {"kind": "command", "python": ["/no/such/python"]}},
        chatty={"target": {"kind": "command", "python": ["echo", "hello"]}},
        silent={
            "target": {
                "kind": "command",
                "python": [sys.executable, "-c", "import time; time.sleep(60)"],
            }
        },
        bare={"target": {"kind": "command", "python": [sys.executable, "-I", "-S"]}},
    )
    assert found["malformed"] == DiscoveredTarget(
        "malformed",
        reason="targets.yaml: malformed: expected a target or a mapping with one, not [1]",
    )
    reasons = {name: row.reason for name, row in found.items() if row.reason}
    assert reasons["machine"].endswith(", not m68k; name such a device in targets.yaml")
    assert reasons["gone"].startswith("/no/such/python cannot be started")
    assert reasons["chatty"].startswith("not an answer: 'hello")
    assert reasons["silent"] == "no answer for 3 s, stopped"
    assert reasons["bare"].startswith("onnxruntime is not installed there")
    assert not any("probe" in reason or "\n" in reason for reason in reasons.values())


@pytest.mark.usefixtures("no_gpu")
def test_names_that_differ_in_settings_alone_are_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    class Counted(Channel):
        def __init__(self, target: Any, *arguments: Any, **more: Any) -> None:
            asked.append(target)
            super().__init__(target, *arguments, **more)

    monkeypatch.setattr(discovery, "Channel", Counted)
    found = rows(one={"target": HERE}, two={"target": HERE, "threads": 2, "batch_size": 4})
    assert found["one"].device == found["two"].device
    assert len(asked) == 3  # cpu and paper-intel, paper-arm, one and two


@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu")
def test_what_does_not_keep_to_the_limit_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(Channel):
        def __init__(self, target: Any, *arguments: Any, **more: Any) -> None:
            if target.kind == "ray":
                time.sleep(20)
            super().__init__(target, *arguments, **more)

    monkeypatch.setattr(discovery, "Channel", Stuck)
    monkeypatch.setattr(discovery, "_CLOSING_S", 0.0)
    begun = time.monotonic()
    found = rows(timeout_s=4.0, stuck="ray://a", stuck_too="ray://b")
    assert time.monotonic() - begun < 10
    assert found["cpu"].reachable
    assert found["stuck"].reason == found["stuck_too"].reason == "no answer for 4 s"


def test_whatever_a_client_raises_is_its_targets_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *arguments: Any, **more: Any) -> None:
            raise ImportError("no module ray\nat all")

    monkeypatch.setattr(discovery, "Channel", Broken)
    monkeypatch.setattr(discovery, "_check_gpu", lambda timeout_s: None)
    assert {row.reason for row in rows().values()} == {"ImportError: no module ray"}


@pytest.mark.usefixtures("no_gpu")
def test_a_worker_without_the_gpu_that_it_should_have_is_none() -> None:
    device = {"runtimes": {"onnxruntime": "1", "torch": "9.9"}}
    ready = {"event": "ready", "protocol": worker.PROTOCOL, "device": device}
    says = [sys.executable, "-c", f"print({json.dumps(ready)!r}, flush=True); input()"]
    target = {"kind": "command", "python": says}
    found = rows(box={"target": {**target, "device": "cuda"}}, plain={"target": target})
    assert found["box"].reason == "torch finds no NVIDIA GPU there"
    assert found["plain"].reachable


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise ImportError('no libc10')", "torch cannot be imported (ImportError: no libc10)"),
        ("import time; time.sleep(60)", "torch did not import within 2 s"),
    ],
)
def test_a_torch_that_does_not_import_is_the_gpus_reason(
    program: str, reason: str, no_gpu: None, tmp_path: Path
) -> None:
    (tmp_path / "fake/torch.py").write_text(program)
    assert rows(timeout_s=2.0)["cuda"].reason == reason


# The command


@pytest.mark.usefixtures("no_gpu")
def test_the_command_lists_all_as_json(tmp_path: Path, cli: Cli) -> None:
    write_targets(
        tmp_path,
        here={"target": HERE, "threads": 2},
        dead="ssh://nobody@no-such-host.invalid",
        malformed={"thread": 2},
    )
    ended = cli("targets", "--json", "--timeout", 15)
    assert ended.returncode == 0, ended.stderr
    found = {row["name"]: row for row in json.loads(ended.stdout)}
    assert list(found) == ["cpu", "cuda", *PRESETS, "dead", "here", "malformed"]
    keys = ["name", "address", "reachable", "reason", "settings", "device", "emulated"]
    assert all(list(row) == keys for row in found.values())
    assert found["here"]["reachable"] and not found["here"]["emulated"]
    assert found["here"]["address"] == f"command {Path(sys.executable).name}"
    assert found["here"]["device"]["runtimes"]["onnxruntime"]
    assert found["here"]["settings"]["threads"] == 2
    assert found["dead"]["address"] == "ssh://nobody@no-such-host.invalid"
    assert found["dead"]["device"] is None and found["dead"]["emulated"] is None
    if shutil.which("ssh"):
        assert found["dead"]["reason"] == "unknown host (its name cannot be resolved)"
    else:
        assert found["dead"]["reason"].startswith("ssh cannot be started")
    assert found["malformed"]["address"] is None
    assert found["malformed"]["reason"].startswith("targets.yaml: malformed: unknown key 'thread'")
    assert "targets 8/8" in ended.stderr


def test_the_command_prints_a_table_and_where_more_come_from(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"runtime": "onnxruntime", "precision": "fp32", "batch_size": 16, "threads": 1}
    arm = {
        "machine": "aarch64",
        "cpu": "Cortex-A72",
        "cores": 4,
        "runtimes": {"onnxruntime": "1.22.1", "numpy": "2.0"},
        "emulated": True,
    }
    gpu = {"gpu": "NVIDIA X", "gpu_memory_bytes": 80e9, "cuda": "13.2", "driver": "600"}
    found = [
        DiscoveredTarget("pi", "ssh://pi", reachable=True, settings=settings, device=arm),
        DiscoveredTarget("cuda", "cuda", True, None, settings, {**arm, **gpu, "emulated": False}),
        DiscoveredTarget("dead", "ssh://dead", reason="unknown host", settings=settings),
        DiscoveredTarget("typo", reason="unknown key"),
    ]
    monkeypatch.setattr(discovery, "discover", lambda named, timeout_s, report: found)
    ended = cli("targets")
    assert ended.returncode == 0
    lines = [line.rstrip() for line in ended.stdout.splitlines()]
    assert lines[:13] == [
        "target  reachable  device, or why not",
        "pi      yes        ssh://pi",
        "                   Cortex-A72, aarch64, 4 core(s) (emulated)",
        "                   installed: onnxruntime 1.22.1, numpy 2.0",
        "                   settings: onnxruntime, fp32, batch 16, 1 thread(s)",
        "cuda    yes        NVIDIA X, 80 GB, CUDA 13.2, driver 600; Cortex-A72, aarch64, 4 core(s)",
        "                   installed: onnxruntime 1.22.1, numpy 2.0",
        "                   settings: onnxruntime, fp32, batch 16, 1 thread(s)",
        "dead    no         ssh://dead",
        "                   unknown host",
        "                   settings: onnxruntime, fp32, batch 16, 1 thread(s)",
        "typo    no         unknown key",
        "",
    ]
    hint = " ".join(lines[13:])
    assert "ssh://[user@]host[:port]" in hint and "ray://RESOURCE" in hint
    assert str(tmp_path / "config/levit-search/targets.yaml") in hint


def test_the_command_ends_with_2_for_files_that_are_no_yaml(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "targets.yaml").write_text("a: [")
    ended = cli("targets", "--json")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "targets.yaml: not valid YAML" in ended.stderr


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "x"])
def test_the_command_refuses_limits_that_are_none(cli: Cli, timeout: str) -> None:
    ended = cli("targets", "--timeout", timeout)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "--timeout" in ended.stderr


def test_the_command_is_listed(cli: Cli) -> None:
    commands = [line.split()[0] for line in cli("--help").stdout.splitlines() if line.strip()]
    assert "targets" in commands
