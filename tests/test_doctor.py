"""`doctor`, on a sound installation and on ones that are really broken."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState, create_trial

from levit_search.architecture import Architecture
from levit_search.doctor import Check, Finding, examine, installation, machine, ok
from levit_search.doctor.checks import all_checks, data_of, targets
from levit_search.doctor.checks import study_folder as looked_at
from levit_search.doctor.installation import carried_out
from levit_search.latency.worker import UNKNOWN
from levit_search.model import build, save_weights
from levit_search.study import Study, read_config
from tests.conftest import ROOT, Cli

LOCKED = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {each.name: each for each in findings}


def looked(*checks: Check) -> dict[str, Finding]:
    return by_name(examine(checks, lambda _: None))


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk of its own."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mount is not allowed here ({done.stderr.strip()})")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a module before the installed one of its name, for new processes."""

    def put(name: str, source: str) -> None:
        folder = tmp_path / "fakes"
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))

    return put


@pytest.fixture
def a_study(tmp_path: Path, space_file: Callable[..., Path], tiny: Architecture) -> Study:
    """A study with three trained networks, as a driver writes them."""
    study = Study.create(
        tmp_path / "study", read_config(space_file(storage=None), {}), ["levit-search"]
    )
    space = study.config.space()
    opened = study.open_to_write(space.distributions())
    study.checkpoints.mkdir()
    for number in range(3):
        name, values = list(space.distributions().items()), {}
        for key, distribution in name:
            values[key] = distribution.to_external_repr(distribution.low)
        network = space.decode(space.values(values))
        notes = {
            "architecture": network.model_dump(mode="json"),
            "architecture_id": network.id,
            "cost": {"params": 1, "flops": 2, "activations": 3},
            "evaluation": {"values": {"top1_percent": 50.0 + number}, "training": {}},
        }
        trial = create_trial(
            state=TrialState.COMPLETE,
            values=[50.0 + number, 2.0],
            params=values,
            distributions=space.distributions(),
            user_attrs=notes,
        )
        opened.storage.create_new_trial(opened.study_id, trial)
        save_weights(build(network), study.weights(network.id))
    return study


@pytest.mark.slow
def test_doctor_looks_at_everything_and_prints_one_json_document(
    tmp_path: Path, cli_process: Cli, a_study: Study
) -> None:
    done = cli_process("doctor", a_study.folder, "--json")
    found = json.loads(done.stdout)
    assert list(found["findings"][0]) == ["group", "name", "status", "found", "breaks", "mend"]
    broken = [each for each in found["findings"] if each["status"] == "fail"]
    assert (found["ok"], done.returncode, broken) == (True, 0, [])
    names = {each["name"] for each in found["findings"]}
    assert {
        *("python", "packages", "extras", "imports"),
        *("torch", "torchvision", "timm", "network", "graph", "onnxruntime", "int8"),
        *("cores", "memory", "shared memory", "open files", "clock", "probe locks", "network"),
        *("cpu", "digits", "fashion-mnist", "studies", "cache", "temporary"),
        *("settings", "at work", "trials", "weights", "environment", "data"),
    } <= names
    assert "looking" in done.stderr
    assert not list(tmp_path.rglob("*levit-search-doctor*"))


def test_the_table_says_what_would_fail_and_how_to_mend_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [
        Finding("machine", "cores", "ok", "2 of 2"),
        Finding("disk", "cache", "fail", "/x: Read-only", "every probe", f"export {'X' * 120}"),
        Finding("disk", "temporary", "warn", "\033[31mred", "it fills", "make room"),
    ]
    monkeypatch.setattr("levit_search.doctor.examine", lambda checks, report: findings)
    done = cli("doctor")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0] == "machine"
    assert lines[1].split() == ["ok", "cores", "2", "of", "2"]
    assert [line.strip() for line in lines[4:7]] == [
        "FAIL cache      /x: Read-only",
        "would fail: every probe",
        f"to mend:    export {'X' * 120}",
    ]
    assert lines[-1] == "1 would fail, 1 warning (3 looked at)"
    assert "\033" not in done.stdout


def test_a_check_that_raises_or_hangs_is_a_finding() -> None:
    def raises() -> Finding:
        raise ZeroDivisionError("by chance")

    def hangs() -> Finding:
        time.sleep(60)
        return ok("never")

    found = looked(
        Check("machine", "raises", raises),
        Check("machine", "hangs", hangs, limit_s=0.3),
        Check("machine", "works", lambda: ok("yes")),
    )
    assert found["raises"].status == found["hangs"].status == "fail"
    assert "ZeroDivisionError: by chance" in found["raises"].found
    assert found["hangs"].found == "no answer within 0.3 s"
    assert found["works"].status == "ok"


def test_no_password_is_told() -> None:
    told = "storage postgresql://me:secret@host/db?password=secret: refuses"
    found = looked(Check("study", "x", lambda: [Finding("study", "x", "fail", told, told, told)]))
    assert "secret" not in json.dumps(found["x"].as_json())


@pytest.mark.slow
def test_a_torchvision_of_another_torch_is_told_with_what_needs_it(
    fake: Callable[[str, str], None],
) -> None:
    fake("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    found = by_name(installation.runtimes())
    assert found["torch"].status == "ok"
    broken = found["torchvision"]
    assert broken.status == "fail"
    assert "operator torchvision::nms does not exist" in broken.found
    assert broken.mend.startswith("python -m pip install --force-reinstall torch torchvision")
    assert found["timm"].found == "not tried without torchvision"
    assert found["timm"].mend == "mend torchvision first"


def test_a_package_that_ends_the_process_is_told(fake: Callable[[str, str], None]) -> None:
    fake("onnx", "import os; os.abort()\n")
    steps = carried_out(["json", "onnx", "rich"], 30)
    assert steps["json"].is_ok
    assert "SIGABRT" in steps["onnx"].text
    assert steps["rich"].needs == "onnx"


@pytest.mark.slow
def test_a_package_that_never_imports_is_given_up(fake: Callable[[str, str], None]) -> None:
    fake("onnx", "import time; time.sleep(600)\n")
    steps = carried_out(["json", "onnx"], 3)
    assert steps["json"].is_ok
    assert steps["onnx"].text == "not done after 3 s"


def test_packages_are_compared_with_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        "rich>=13",
        "optuna<2",
        "no-such-package[extra]>=7",
        "old; python_version < '3'",
        "no-such-driver; extra == 'postgres'",
        "no-such-linter; extra == 'dev'",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: asked)
    packages, extras = installation.packages()
    assert packages.status == "fail"
    assert packages.found.startswith("optuna is ")
    assert packages.found.endswith(", not <2; no-such-package is missing")
    assert packages.mend == "python -m pip install 'optuna<2' 'no-such-package[extra]>=7'"
    assert "postgres (a PostgreSQL server as storage)" in extras.found
    assert "pip install 'levit-search[postgres]'" in extras.found


@pytest.mark.parametrize(
    ("version", "status"), [("1.22.1", "ok"), ("1.2", "fail"), (UNKNOWN, "ok")]
)
def test_another_distribution_of_the_same_module_is_as_good(
    version: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where ``pip install onnxruntime-gpu`` has taken the place of ``onnxruntime``."""
    asked = ["onnxruntime>=1.20", "rich>=13"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: asked)
    real = importlib.metadata.version

    def version_of(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return version if name == "onnxruntime-gpu" else real(name)

    monkeypatch.setattr("importlib.metadata.version", version_of)
    brought = {"onnxruntime": ["onnxruntime-gpu"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: brought)
    packages, _ = installation.packages()
    assert packages.status == status
    if status == "ok":
        assert packages.found == f"2 as asked for; onnxruntime-gpu {version} for onnxruntime"
    else:
        assert packages.found == "onnxruntime-gpu is 1.2, not >=1.20"
        assert packages.mend == "python -m pip install 'onnxruntime-gpu>=1.20'"
    assert installation.how_to_mend("onnxruntime").endswith("--force-reinstall onnxruntime-gpu")


def test_a_package_that_pip_does_not_know_is_told_and_no_mishap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", unknown)
    monkeypatch.setattr("importlib.metadata.requires", unknown)
    package = installation.package()
    assert package.status == "fail" and "not installed" in package.found
    assert installation.packages()[0].status == "ok"


def test_a_mount_whose_name_is_no_utf_8_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "self").mkdir()
    mounts = b"d / ext4 rw 0 0\nh:/d /caf\xe9\\040x nfs4 rw 0 0\n"
    (tmp_path / "self" / "mounts").write_bytes(mounts)
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path))
    assert machine._file_system(Path(os.fsdecode(b"/caf\xe9 x/studies"))) == "nfs4"
    assert machine._file_system(Path("/caf/studies")) == "ext4"


def test_a_read_only_cache_fails_with_a_way_out(
    tmpfs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmpfs("ro,size=1m")))
    [cache] = [each for each in all_checks(None) if each.name == "cache"]
    found = cache.look()
    assert isinstance(found, Finding)
    assert found.status == "fail"
    assert "Read-only file system" in found.found
    assert found.mend == "have it mounted for writing, or export XDG_CACHE_HOME=DIR"


def test_a_full_disk_fails_with_a_way_out(tmpfs: Callable[[str], Path]) -> None:
    place = tmpfs("size=1m")
    (place / "big").write_bytes(bytes(900_000))
    found = machine.folder(place / "mine", "run", "choose another", locks=True)
    assert found.status == "fail"
    assert "No space left on device" in found.found
    assert found.mend == f"make room in {place}, or choose another"
    roomy = machine.folder(tmpfs("size=50m"), "run", "choose another", locks=True)
    assert roomy.status == "fail"
    assert "free, tmpfs" in roomy.found


def test_locks_that_do_not_hold_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    found = machine.folder(tmp_path, "run", "choose another", locks=True)
    assert found.status == "fail"
    assert "file locks let two in at once" in found.found
    assert found.breaks == "two searches could write to one study at once"


def test_a_disk_of_another_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_file_system", lambda place: "nfs4")
    found = machine.folder(tmp_path, "run", "choose another", locks=True)
    assert found.status == "warn"
    assert "--set storage=journal" in found.mend


def test_a_target_that_cannot_be_reached_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"box": {"target": {"kind": "command", "python": ["/bin/false"]}}}
    Path("targets.yaml").write_text(yaml.safe_dump(named))
    found = by_name(targets())
    assert found["cpu"].status == "ok"
    assert found["box"].status == "warn"
    assert "targets.yaml" in found["box"].mend
    Path("targets.yaml").write_text("- no mapping\n")
    [broken] = targets()
    assert broken.status == "fail"
    assert "targets.yaml" in broken.found


def test_few_open_files_are_told() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100));"
        "from levit_search.doctor.machine import files_limit; print(files_limit())"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "at most 100" in told.stdout, told.stderr
    assert "status='warn'" in told.stdout


def test_locks_for_probes_that_cannot_be_had_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEVIT_SEARCH_LOCKS", str(tmp_path / "gone"))
    found = machine.probe_locks()
    assert found.status == "fail"
    assert "LEVIT_SEARCH_LOCKS" in found.mend


def test_a_number_of_threads_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    found = machine.settings()
    assert (found.status, found.mend) == ("warn", "unset OMP_NUM_THREADS")


def test_a_container_of_less_than_its_cores_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("900000000\n")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    cores, memory = machine.cores(), machine.memory()
    assert "may use 0.5 of them" in cores.found
    assert "may use 1.0 GB, 0.9 GB of it in use" in memory.found
    assert cores.status == memory.status == "warn"


def test_memory_that_holds_files_is_not_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text("8000000000\n")
    (tmp_path / "memory.current").write_text("7900000000\n")
    (tmp_path / "memory.stat").write_text("anon 900000000\ninactive_file 7000000000\n")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    assert machine.memory_limit() == (8_000_000_000, 900_000_000)


def test_the_working_directory_is_not_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json.py", "plotly.py"):
        (tmp_path / name).write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    assert carried_out(["onnx"], 60.0)["onnx"].is_ok


def test_a_sound_study_is_whole(a_study: Study) -> None:
    before = {path: path.stat().st_mtime_ns for path in a_study.folder.rglob("*")}
    found = by_name(looked_at(a_study.folder))
    assert {each.status for each in found.values()} == {"ok"}, found
    assert found["trials"].found.startswith("3 complete")
    assert found["at work"].found == "nobody"
    names = {path for path in before if path.is_file()}
    assert all(path.stat().st_mtime_ns == before[path] for path in names if path.name != ".lock")


def test_a_cut_database_fails_with_the_command_that_mends_it(a_study: Study) -> None:
    path = a_study.folder / "study.db"
    path.write_bytes(path.read_bytes()[:-20_000])
    found = by_name(looked_at(a_study.folder))["trials"]
    assert found.status == "fail"
    assert found.mend == f"levit-search restore {a_study.folder}"


def test_damaged_and_missing_weights_are_told(a_study: Study) -> None:
    [path] = a_study.checkpoints.iterdir()
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    found = by_name(looked_at(a_study.folder))["weights"]
    assert found.status == "fail"
    assert "damaged: trial 0 (its checksum is that of other weights)" in found.found
    path.unlink()
    found = by_name(looked_at(a_study.folder))["weights"]
    assert found.status == "warn"
    assert "missing: trial 0, 1, 2" in found.found


def test_a_search_at_work_is_told_and_left_alone(a_study: Study) -> None:
    lock = a_study.folder / ".lock"
    command = [sys.executable, "-c", LOCKED, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        found = by_name(looked_at(a_study.folder))
        holder.kill()
    assert found["at work"].found == "a search is at work on it"
    assert found["trials"].status == "ok"


def test_a_folder_that_is_no_study_fails(tmp_path: Path) -> None:
    [found] = looked_at(tmp_path)
    assert (found.name, found.status) == ("settings", "fail")
    assert "is no study folder" in found.found


def test_data_that_was_moved_is_told_with_the_ways_to_name_it(a_study: Study) -> None:
    gone = a_study.config.data.model_copy(update={"name": "folder", "root": "/nowhere"})
    found = data_of(Path("my studies/1"), gone)
    assert found.status == "fail" and "/nowhere has no folder train/" in found.found
    assert found.mend is not None
    assert "levit-search export 'my studies/1' --data DIR" in found.mend
    command = "run 'my studies/1/study.yaml' --study 'my studies/1' --set data.root=DIR"
    assert command in found.mend
