"""What a storage may suffer: damage, loss, a server that stops, a second driver."""

import contextlib
import json
import os
import random
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from levit_search.errors import BudgetError, InputError
from levit_search.search import driver, search
from levit_search.search import trials as stores
from levit_search.search.callbacks import Callback
from levit_search.search.trials import TrialStore
from levit_search.study import Study, read_config
from levit_search.study.backup import Backup, trial_line
from levit_search.study.restore import restore
from tests import mariadb, postgres
from tests.conftest import Cli
from tests.engines import CurveEngine, finals, run
from tests.faults.conftest import Account, Quoted
from tests.relay import relayed
from tests.servers import Server

TRIALS = 8
NOTES = [
    "architecture",
    "architecture_id",
    "cost",
    "evaluation",
    "reason",
    "reused_from",
    "rungs",
    "taken_from",
]
Times = Callable[[int, int], int]
Make = Callable[..., Study]
Contents = tuple[list[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def make(space_file: Callable[..., Path], tmp_path: Path) -> Make:
    """A study in the folder ``s``, or the one that is there."""

    def made(storage: str | None = None, folder: str = "s", **changes: Any) -> Study:
        path = space_file(train={"epochs": 9, "rungs": [1, 3], "device": "cpu"})
        asked = {"storage": storage, "search.trials": TRIALS, **changes}
        return Study.create(tmp_path / folder, read_config(path, asked), ["levit-search", "run"])

    return made


def distributions(study: Study) -> Any:
    return study.config.space().distributions()


def searched(study: Study) -> Study:
    """A study with finished trials, and one that a killed search left at its first rung."""
    search(study, engine=CurveEngine)
    with study.lock():
        written = TrialStore(study, distributions(study))
        known = written.trials()[0]
        number = written.next_number
        notes = {**known.user_attrs, "rungs": []}
        written.add(TrialState.RUNNING, None, known.params, notes, {"valid": 0.0}, {})
        written.note(number, "rungs", [{"epoch": 1, "goes_on": True, "values": {"flops": 1.0}}])
    return study


def contents(study: Study) -> Contents:
    """All that we wrote, as it is read back by the next driver."""
    with study.lock():
        found = study.open_to_write(distributions(study))
    return described(found.trials, found.attributes)


def described(trials: Sequence[FrozenTrial], attributes: dict[str, Any]) -> Contents:
    """What we wrote, without what others may have added."""
    bodies = []
    for trial in trials:
        body = {**trial_line(trial), "ranges": trial.distributions}
        notes = {key: each for key, each in trial.user_attrs.items() if key in NOTES}
        bodies.append({**body, "user_attrs": notes})
    return bodies, attributes


def are_kept(whole: Contents, found: Contents) -> bool:
    """Whether a storage has all that we wrote, whatever else it has."""
    return found[0] == whole[0] and found[1] == {**found[1], **whole[1]}


def flip(path: Path, chance: random.Random) -> str:
    """Turn one bit of a file over."""
    place, bit = chance.randrange(path.stat().st_size), chance.randrange(8)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
    return f"bit {bit} of byte {place}"


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_flipped_bit_is_noticed_or_does_no_harm(
    kind: str, make: Make, tmp_path: Path, times: Times, account: Account, quoted: Quoted
) -> None:
    study = searched(make("journal" if kind == "journal" else None))
    name = "study.journal" if kind == "journal" else "study.db"
    whole, sound = contents(study), tmp_path / "sound"
    ranges = distributions(study)
    study.folder.rename(sound)
    chance, lost, noticed = random.Random(8), [], 0
    count = times(40, 1000)
    for _ in range(count):
        shutil.copytree(sound, study.folder)
        where = flip(study.folder / name, chance)
        try:
            with study.lock():
                written = TrialStore(study, ranges)
                if not are_kept(whole, described(written.trials(), dict(written.attributes))):
                    lost.append(f"{where} went unnoticed")
                written.set_attribute("key", "value")
        except (InputError, BudgetError) as error:
            noticed += 1
            told = str(error)
            if isinstance(error, InputError) and "levit-search restore" not in told:
                lost.append(f"{where}: {told}")
            if noticed % times(4, 1) == 0:
                restore(study.folder, isinstance(error, BudgetError), lambda count, of: None)
                if not are_kept(whole, contents(study)):
                    lost.append(f"{where}: was not restored")
        shutil.rmtree(study.folder)
    assert noticed > 0
    account(f"{kind}-bit", count, lost)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_truncated_emptied_or_missing_file_is_restored(
    kind: str, make: Make, tmp_path: Path, times: Times, account: Account, quoted: Quoted, cli: Cli
) -> None:
    study = searched(make("journal" if kind == "journal" else None))
    name = "study.journal" if kind == "journal" else "study.db"
    whole, sound = contents(study), tmp_path / "sound"
    study.folder.rename(sound)
    size = (sound / name).stat().st_size
    chance, lost = random.Random(8), []
    cuts = [None, 0, *(chance.randrange(1, size) for _ in range(times(4, 200)))]
    for cut in cuts:
        shutil.copytree(sound, study.folder)
        path = study.folder / name
        if cut is None:
            path.unlink()
        else:
            os.truncate(path, cut)
        try:
            if not are_kept(whole, contents(study)):
                lost.append(f"cut at {cut} went unnoticed")
        except InputError as error:
            if "levit-search restore" not in str(error):
                lost.append(f"cut at {cut}: {error}")
            restored = restore(study.folder, False, lambda count, of: None)
            if not are_kept(whole, contents(study)):
                lost.append(f"cut at {cut}: was not restored")
            if cut and (restored.kept_as is None or not Path(restored.kept_as).is_file()):
                lost.append(f"cut at {cut}: the damaged file is gone")
        shutil.rmtree(study.folder)
    account(f"{kind}-cut", len(cuts), lost)


def test_a_backup_that_is_damaged_is_written_anew(
    make: Make, tmp_path: Path, times: Times, account: Account, quoted: Quoted
) -> None:
    study = searched(make("journal"))  # which is read and made in no time
    whole, sound = contents(study), tmp_path / "sound"
    study.folder.rename(sound)
    chance, lost = random.Random(8), []
    count = times(40, 1000)
    for number in range(count):
        shutil.copytree(sound, study.folder)
        path = study.folder / "backup.jsonl"
        if number % 4:
            where = flip(path, chance)
        else:
            os.truncate(path, place := chance.randrange(path.stat().st_size))
            where = f"cut at {place}"
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            if not are_kept(whole, contents(study)):
                lost.append(f"{where}: the storage was changed")
        if number % 4:
            quoted(
                str(warned[0].message),
                "…: … damaged; the storage is whole, and the file was written anew from it",
            )
        (study.folder / "study.journal").unlink()
        restore(study.folder, False, lambda count, of: None)
        if not are_kept(whole, contents(study)):
            lost.append(f"{where}: the backup is not whole again")
        shutil.rmtree(study.folder)
    account("backup-bit", count, lost)


def test_both_damaged_leaves_what_is_whole_in_one_of_them(
    make: Make, tmp_path: Path, times: Times, account: Account, cli: Cli, quoted: Quoted
) -> None:
    study = searched(make())
    (trials, attributes), sound = contents(study), tmp_path / "sound"
    study.folder.rename(sound)
    chance, lost = random.Random(8), []
    count = times(2, 40)
    for _ in range(count):
        shutil.copytree(sound, study.folder)
        path = study.folder / "backup.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        ended = [i for i, line in enumerate(lines) if b'"state":"COMPLETE"' in line]
        gone = chance.choice(ended)
        number = json.loads(lines[gone])["trial"]
        mark = f'"trial":{number}'.encode()
        torn = [each.replace(b'"state"', b'"stata"') if mark in each else each for each in lines]
        path.write_bytes(b"".join(torn))
        os.truncate(study.folder / "study.db", 20_000)
        told = cli("front", study.folder)
        quoted(
            told.stderr,
            "…: cannot be read or written (…); … whole in its backup.jsonl, … of its lines are "
            "not: levit-search restore …",
        )
        done = cli("restore", study.folder)
        quoted(done.stdout, "Lost in both, and marked as failed: trial ….")
        quoted(done.stdout, "Begun, and evaluated again by the next search: trial ….")
        quoted(done.stdout, "What was damaged is kept as ….")
        found, settled = contents(study)
        if settled != attributes:
            lost.append("attributes")
        for before, now in zip(trials, found, strict=True):
            if before["trial"] == number:
                assert now["state"] == "FAIL"
            elif before != now:
                lost.append(f"trial {before['trial']}")
        shutil.rmtree(study.folder)
    account("both-damaged", count, lost)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_restored_study_goes_on_as_if_undisturbed(
    kind: str,
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    account: Account,
    times: Times,
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    path = space_file(
        limits={"flops": 150_000},
        train={"epochs": 9, "rungs": [1, 3], "device": "cpu"},
        search={"trials": 8, "sampler": "nsga2" if kind == "journal" else "tpe"},
        storage="journal" if kind == "journal" else None,
    )
    changes = {"search.startup_trials": 3}
    undisturbed = finals(run(path, tmp_path / "whole", **changes)[1])
    folder, killed = tmp_path / "killed", 0
    chance = random.Random(8)
    for _ in range(times(5, 30)):
        with monkeypatch.context() as patch:
            kill_at_write(patch, chance.randrange(1, 12))
            try:
                run(path, folder, **changes)
            except Killed:
                killed += 1
        if not Backup(folder).read().has_trials:
            continue
        file = folder / ("study.journal" if kind == "journal" else "study.db")
        os.truncate(file, chance.randrange(file.stat().st_size))
        with contextlib.suppress(InputError):  # what was cut off may not matter
            restore(folder, False, lambda count, of: None)
    _, study = run(path, folder, **changes)
    lost = [] if finals(study) == undisturbed else ["the proposals of an undisturbed search"]
    account("restored-search", killed, lost)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def kill_at_write(monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    """Let the process die before, after or between its writes to storage and backup."""
    writes = 0

    def dying(whole: Callable[..., Any]) -> Callable[..., Any]:
        def one(*arguments: Any, **named: Any) -> Any:
            nonlocal writes
            writes += 1
            if writes == write and write % 2:
                raise Killed
            found = whole(*arguments, **named)
            if writes == write:
                raise Killed
            return found

        return one

    monkeypatch.setattr(TrialStore, "_log", dying(TrialStore._log))
    monkeypatch.setattr(TrialStore, "_written", dying(TrialStore._written))


@pytest.fixture(params=["postgresql", "mysql"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    made = {"postgresql": postgres, "mysql": mariadb}[request.param]
    if reason := made.missing():
        pytest.skip(reason)
    with made.server() as started:
        yield started


class Stopping(Callback):
    """Stops a server as soon as a trial has ended, for a while."""

    def __init__(self, server: Server, after: int, seconds: float) -> None:
        self._server, self._after, self._seconds = server, after, seconds
        self.thread: threading.Thread | None = None

    def on_trial_complete(self, record: Any, status: Any, left_s: float | None) -> None:
        if record.trial == self._after:
            self._server.stop()
            self.thread = threading.Thread(target=self._start_again)
            self.thread.start()

    def _start_again(self) -> None:
        time.sleep(self._seconds)
        self._server.start()


def test_a_server_that_stops_is_waited_for(
    server: Server,
    make: Make,
    times: Times,
    account: Account,
    quoted: Quoted,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stores, "_LOOK_AGAIN_S", 0.3)
    undisturbed = make(None, "whole")
    search(undisturbed, engine=CurveEngine)
    chance, lost = random.Random(8), []
    count = times(1, 10)
    for number in range(count):
        study = make(server.database.url, f"s{number}")
        stopping = Stopping(server, chance.randrange(1, 5), times(4, 30))
        with pytest.warns() as warned:
            search(study, [stopping], engine=CurveEngine)
        assert stopping.thread is not None
        stopping.thread.join()
        told = "\n".join(str(each.message) for each in warned)
        quoted(told, "…: does not answer (…); waiting for up to 10 min")
        quoted(told, "…: answers again after … s")
        if finals(study) != finals(undisturbed):
            lost.append(f"{len(study.records())} trials, not those of an undisturbed search")
        contents(study)
    account("server-stops", count, lost)


def test_a_server_that_stops_for_good_is_given_up(
    make: Make, account: Account, quoted: Quoted, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := postgres.missing():
        pytest.skip(reason)
    monkeypatch.setattr(stores, "_LOOK_AGAIN_S", 0.1)
    monkeypatch.setattr(stores, "_PATIENCE_S", 1.0)
    undisturbed = make(None, "whole")
    search(undisturbed, engine=CurveEngine)
    with postgres.server() as server:
        study = make(server.database.url)
        with pytest.raises(BudgetError) as raised, pytest.warns():
            search(study, [Stopping(server, 3, 4.0)], engine=CurveEngine)
        quoted(
            str(raised.value),
            "…: has not answered for … min (…); what was finished is kept, and the same command "
            "goes on",
        )
        while server.process is None:
            time.sleep(0.1)
        search(study, engine=CurveEngine)
        lost = [] if finals(study) == finals(undisturbed) else ["trials"]
    account("server-stops", 1, lost)


def test_a_lost_answer_repeats_nothing(
    make: Make, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := postgres.missing():
        pytest.skip(reason)
    monkeypatch.setattr(stores, "_LOOK_AGAIN_S", 0.01)
    undisturbed = make(None, "whole")
    search(undisturbed, engine=CurveEngine)

    class Cutting(Callback):
        def on_trial_complete(self, record: Any, status: Any, left_s: float | None) -> None:
            relay.every = 3

    with postgres.running() as database, relayed(database.port, b"COMMIT") as relay:
        study = make(replace(database, port=relay.port).url)
        with pytest.warns():
            search(study, [Cutting()], engine=CurveEngine)
        relay.every = 0
        lost = [] if finals(study) == finals(undisturbed) else [str(len(study.records()))]
        trials, _ = contents(study)
        if [each["trial"] for each in trials] != list(range(len(finals(undisturbed)))):
            lost.append("a trial was written twice")
    assert relay.lost > 10
    account("server-answer", relay.lost, lost)


def test_lost_tables_are_restored(
    make: Make, account: Account, quoted: Quoted, cli: Cli, times: Times
) -> None:
    if reason := postgres.missing():
        pytest.skip(reason)
    lost = []
    with postgres.running() as database:
        study = searched(make(database.url))
        whole = contents(study)
        losses = [
            "DROP TABLE trial_values CASCADE",
            "DROP SCHEMA public CASCADE; CREATE SCHEMA public",
            "DROP TABLE study_user_attributes CASCADE",
            "DROP TABLE trial_params CASCADE",
        ][: times(2, 4)]
        for loss in losses:
            database.administer("levit", loss)
            with pytest.raises(InputError) as raised:
                contents(study)
            if "levit-search restore" not in str(raised.value):
                lost.append(f"{loss}: {raised.value}")
            restore(study.folder, False, lambda count, of: None)
            if not are_kept(whole, contents(study)):
                lost.append(loss)
        database.administer("levit", "DROP TABLE studies CASCADE")
        shown = cli("restore", study.folder)
        quoted(
            shown.stderr,
            "…: its tables have rows of what is gone; empty the database, or give another one by "
            "--storage",
        )
    assert cli("front", study.folder).returncode == 2, "the server is gone for good"
    shown = cli("restore", study.folder, "--storage", "journal")
    quoted(shown.stdout, "The same levit-search run with --set storage=… goes on.")
    if contents(Study.open(study.folder)) != whole:
        lost.append("what is made elsewhere")
    account("server-lost", len(losses) + 1, lost)


STORAGES = ["folder", "journal", "file", "postgresql"]


@contextmanager
def storage_of(kind: str, tmp_path: Path) -> Iterator[str | None]:
    if kind == "postgresql":
        if reason := postgres.missing():
            pytest.skip(reason)
        with postgres.running() as database:
            yield database.url
    else:
        yield {"folder": None, "journal": "journal", "file": f"sqlite:///{tmp_path}/all.db"}[kind]


@pytest.mark.parametrize("kind", STORAGES)
def test_a_second_driver_is_refused(
    kind: str, make: Make, tmp_path: Path, account: Account, quoted: Quoted
) -> None:
    lost, count = [], 1
    with storage_of(kind, tmp_path) as storage:
        study = searched(make(storage))
        whole = contents(study)
        copy = Study(tmp_path / "copy", study.config)
        shutil.copytree(study.folder, copy.folder)
        with study.lock():
            with pytest.raises(InputError) as raised:
                search(Study.open(study.folder), engine=CurveEngine)
            quoted(str(raised.value), "…: another levit-search run is at work on this study")
            if kind in ("file", "postgresql"):
                count += 1
                with pytest.raises(InputError) as raised:
                    search(copy, engine=CurveEngine)
                quoted(
                    str(raised.value),
                    "…: another levit-search run is at work on this study in …",
                )
        if not are_kept(whole, contents(study)):
            lost.append("trials")
        study.folder.rename(tmp_path / "moved")
        if contents(Study.open(tmp_path / "moved")) != whole:
            lost.append("what a moved folder had")
    account("two-drivers", count, lost)


def test_a_claim_outlives_what_a_server_calls_idle(make: Make, account: Account) -> None:
    if reason := mariadb.missing():
        pytest.skip(reason)
    with mariadb.running() as database:
        place = make(f"{database.url}?init_command=SET SESSION wait_timeout=1").place
        with place.claimed("study"):
            time.sleep(2)
            with (
                pytest.raises(InputError, match="another levit-search run"),
                place.claimed("study"),
            ):
                pass
    account("two-drivers", 1, [])


@pytest.mark.parametrize("kind", ["file", "postgresql"])
def test_a_second_driver_that_no_lock_stopped_writes_nothing(
    kind: str, make: Make, tmp_path: Path, account: Account, quoted: Quoted
) -> None:
    with storage_of(kind, tmp_path) as storage:
        study = make(storage)
        search(study, engine=CurveEngine)
        shutil.copytree(study.folder, tmp_path / "copy")
        other = Study.open(tmp_path / "copy")
        one, two = (TrialStore(each, distributions(each)) for each in (study, other))
        known = one.trials()[0]
        proposal = (TrialState.RUNNING, None, known.params, known.user_attrs, {"valid": 0.0}, {})
        one.add(*proposal)
        before = contents(study)
        with pytest.raises(BudgetError) as raised:
            two.add(*proposal)
        quoted(
            str(raised.value),
            "…: another search writes to the same storage, perhaps from a copy of the folder",
        )
        lost = [] if contents(study) == before else ["a trial was written twice"]
    account("two-drivers", 1, lost)


NAME = "…: its storage.json is missing; … whole in its backup.jsonl: levit-search restore …"
SAYS = "…: does not tell the study's name; … whole in its backup.jsonl: levit-search restore …"
VERSION = (
    "…: has no version, as in every study folder; its backup.jsonl has the settings: "
    "levit-search restore …"
)


FILES = [
    ("study.yaml", None, "it has no study.yaml"),
    ("study.yaml", "", "expected a mapping"),
    ("study.yaml", "name: tiny\n", VERSION),
    ("study.yaml", "version: 0\n", "version 0 is not 1"),
    ("study.yaml", "version: yes\n", "version True is not 1"),
    ("study.yaml", "version: 1\nname: [", "not valid YAML"),
    ("study.yaml", "version: 1\nname: 7\n", "name: "),
    ("storage.json", None, NAME),
    ("storage.json", "", SAYS),
    ("storage.json", "{}", SAYS),
    ("storage.json", "\0", SAYS),
]


def test_damaged_files_of_a_folder_are_named_and_made_again(
    make: Make, tmp_path: Path, account: Account, quoted: Quoted, cli: Cli
) -> None:
    storage, lost = f"storage=sqlite:///{tmp_path}/all.db", []
    study = searched(make(storage.removeprefix("storage=")))
    whole = contents(study)
    space, folder = tmp_path / "tiny.yaml", study.folder
    for name, content, told in FILES:
        path = folder / name
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
        for command in (["front", folder], ["run", space, "--study", folder, "--set", storage]):
            shown = cli(*command)
            assert shown.returncode == 2
            if "…" in told:
                quoted(shown.stderr, told)
            else:
                assert told in shown.stderr
                assert f"levit-search restore {folder}" in shown.stderr
        assert cli("restore", folder).returncode == 0
        if contents(Study.open(folder)) != whole:
            lost.append(f"{name} {content!r}")
    account("folder-files", len(FILES), lost)


def test_a_folder_of_a_newer_release_is_left_alone(
    make: Make, account: Account, quoted: Quoted, cli: Cli
) -> None:
    study = searched(make())
    path = study.folder / "study.yaml"
    path.write_text(path.read_text().replace("version: 1", "version: 2"))
    before = path.read_bytes()
    for command in ("front", "restore"):
        quoted(
            cli(command, study.folder).stderr,
            "…: is of version …, which a newer release of levit-search wrote; this one reads "
            "version 1: update levit-search",
        )
    account("folder-files", 1, [] if path.read_bytes() == before else ["study.yaml"])


def test_a_damaged_environment_stops_nothing(make: Make, account: Account, quoted: Quoted) -> None:
    path, lost = make().folder / "environment.json", []
    contents = ["", "{", "[]", '{"sessions": 7}', "\0"]
    for number, content in enumerate(contents, start=1):
        path.write_text(content)
        with pytest.warns() as warned:
            make()
        told = "\n".join(str(each.message) for each in warned)
        quoted(told, "…: is damaged; it is kept as …, and begun again")
        if path.with_name(f"environment.json.damaged-{number}").read_text() != content:
            lost.append(content)
        assert len(json.loads(path.read_text())["sessions"]) == 1
    account("folder-files", len(contents), lost)
