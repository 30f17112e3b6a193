"""Where trials are kept: one contract over every kind of storage, and what each may suffer."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from levit_search import architecture
from levit_search.errors import BudgetError, InputError
from levit_search.escaping import masked
from levit_search.study import Study, StudyConfig, backends, read_config, storage
from levit_search.study.storage import Place
from tests import mariadb, postgres
from tests.conftest import ROOT, Cli, needs
from tests.networks import tiny_description
from tests.servers import Database, free_port

SERVERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("postgresql", "mysql")]
KINDS = ["sqlite", "file", "journal", *SERVERS]
SHARED = ["file", *SERVERS]
DISTRIBUTIONS = {"a": IntDistribution(0, 9), "b": CategoricalDistribution([0, 1])}


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Database]:
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.running() as database:
        yield database


@pytest.fixture(scope="module")
def mysql() -> Iterator[Database]:
    if reason := mariadb.missing():
        pytest.skip(reason)
    with mariadb.running() as database:
        yield database


Address = Callable[[str], str | None]


@pytest.fixture
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    """What a space file says for a kind of storage."""

    def of(kind: str) -> str | None:
        if kind in ("postgresql", "mysql"):
            database: Database = request.getfixturevalue(kind)
            return database.url
        return {"sqlite": None, "journal": "journal", "file": f"sqlite:///{tmp_path}/all.db"}[kind]

    return of


Make = Callable[..., Study]


@pytest.fixture
def make(space_file: Callable[..., Path], tmp_path: Path) -> Make:
    """A study in the folder ``s``, or the one that is there."""

    def made(url: str | None, folder: str = "s", **changes: object) -> Study:
        config = read_config(space_file(), {"storage": url, **changes})
        return Study.create(tmp_path / folder, config, ["levit-search", "run"])

    return made


NETWORK = architecture.parse(tiny_description()).model_dump(mode="json")


def running(number: int) -> FrozenTrial:
    """A proposal, as it is written whole."""
    return create_trial(
        state=TrialState.RUNNING,
        params={"a": number % 10, "b": number % 2},
        distributions=DISTRIBUTIONS,
        user_attrs={
            "architecture": NETWORK,
            "architecture_id": f"{number:012x}",
            "cost": {"flops": 1e6},
        },
        constraints={"valid": 0.0, "flops": -0.5},
    )


def evaluated(kept: BaseStorage, study_id: int, number: int) -> int:
    """Write a trial from its proposal to its end; returns its id."""
    trial = kept.create_new_trial(study_id, running(number))
    kept.set_trial_user_attr(trial, "evaluation", {"values": {"top1_percent": 50.0 + number}})
    kept.set_trial_state_values(trial, TrialState.COMPLETE, [50.0 + number, 1e6])
    return trial


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_read_back(kind: str, address: Address, make: Make) -> None:
    study = make(address(kind))
    kept, study_id = study.open_storage()
    kept.set_study_user_attr(study_id, "device", {"name": "here"})
    for number in range(3):
        evaluated(kept, study_id, number)
    kept.create_new_trial(study_id, running(3))
    again = Study.open(study.folder)
    assert again.config == study.config
    assert [record.trial for record in again.records()] == [0, 1, 2]
    assert [record.values["top1_percent"] for record in again.records()] == [50.0, 51.0, 52.0]
    assert again.attributes()["device"] == {"name": "here"}
    found = again.storage()
    assert found.metric_names == ["top1_percent", "flops"]
    assert [direction.name for direction in found.directions] == ["MAXIMIZE", "MINIMIZE"]
    trials = found.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3 + ["RUNNING"]
    for trial in trials:
        expected = running(trial.number)
        assert trial.params == expected.params
        assert trial.distributions == DISTRIBUTIONS
        assert trial.constraints == expected.constraints
        assert expected.user_attrs.items() <= trial.user_attrs.items()


@pytest.mark.parametrize("kind", KINDS)
def test_optuna_itself_reads_it(kind: str, address: Address, make: Make) -> None:
    url = address(kind)
    study = make(url)
    kept, study_id = study.open_storage()
    evaluated(kept, study_id, 0)
    name = kept.get_study_name_from_id(study_id)
    opened: str | BaseStorage
    if kind == "journal":
        opened = JournalStorage(JournalFileBackend(str(study.folder / "study.journal")))
    elif url is None:
        opened = f"sqlite:///{study.folder / 'study.db'}"
    else:
        drivers = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}
        opened = url.replace(kind, drivers[kind], 1) if kind in drivers else url
    assert optuna.load_study(study_name=name, storage=opened).trials[0].values == [50.0, 1e6]


@pytest.mark.parametrize("kind", KINDS)
def test_an_attribute_may_be_long(kind: str, address: Address, make: Make) -> None:
    study = make(address(kind))
    kept, study_id = study.open_storage()
    trial = kept.create_new_trial(study_id, running(0))
    curve = [[epoch, 0.123456789, 71.23] for epoch in range(5000)]
    values = {"top1_percent": 1.0}
    kept.set_trial_user_attr(trial, "evaluation", {"values": values, "curve": curve})
    kept.set_trial_state_values(trial, TrialState.COMPLETE, [1.0, 2.0])
    assert Study.open(study.folder).records()[0].evaluation["curve"] == curve


_WRITER = """
import sys
from pathlib import Path
from levit_search.study import Study
from tests.test_storage import evaluated
kept, study_id = Study.open(Path(sys.argv[1])).open_storage()
for number in range(10_000):
    evaluated(kept, study_id, number)
    print(number, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_killed_writer_told_of_is_there_and_the_next_goes_on(
    kind: str, address: Address, make: Make
) -> None:
    study = make(address(kind))
    command = [sys.executable, "-c", _WRITER, str(study.folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(8)]
    process.send_signal(signal.SIGKILL)
    told += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    kept, study_id = Study.open(study.folder).open_storage()
    trials = kept.get_all_trials(study_id)
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert len(trials) >= len(told)
    for trial in trials[: len(told)]:
        assert trial.state == TrialState.COMPLETE
        assert trial.values == [50.0 + trial.number, 1e6]
    for trial in trials:  # a proposal is whole or not there
        assert trial.params == running(trial.number).params
        assert trial.constraints == running(trial.number).constraints
    evaluated(kept, study_id, len(trials))
    assert len(Study.open(study.folder).storage().trials) == len(trials) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_other_settings_are_refused_where_there_are_trials(
    kind: str, address: Address, make: Make
) -> None:
    url = address(kind)
    study = make(url)
    kept, study_id = study.open_storage()
    evaluated(kept, study_id, 0)
    before = contents(study.folder)
    with pytest.raises(InputError, match=r"other settings \(train\.lr 0\.005 -> 0\.1\)"):
        make(url, **{"train.lr": 0.1})
    assert contents(study.folder) == before
    longer = make(url, **{"search.trials": 99})
    assert len(longer.records()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_settings_may_be_corrected_until_there_is_a_trial(
    kind: str, address: Address, make: Make
) -> None:
    url = address(kind)
    kept, study_id = make(url).open_storage()
    kept.set_study_user_attr(study_id, "teacher", {"name": "of the old data"})
    objectives = ["top1_percent", "flops", "params"]
    corrected = make(url, objectives=objectives, name="other")
    assert corrected.storage().metric_names == objectives
    assert "teacher" not in corrected.attributes()
    assert len(corrected.storage().directions) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_trials_of_another_space_are_refused(kind: str, address: Address, make: Make) -> None:
    study = make(address(kind))
    kept, study_id = study.open_storage()
    evaluated(kept, study_id, 0)
    path = study.folder / "study.yaml"
    path.write_text(path.read_text().replace("num_heads: 2", "num_heads: 4"))
    before = contents(study.folder)
    told = r"trials were made with other settings \(architecture\.stages .*\) than those of"
    for use in (Study.open_storage, Study.records, Study.storage, Study.attributes):
        with pytest.raises(InputError, match=told):
            use(Study.open(study.folder))
    assert contents(study.folder) == before
    assert len(kept.get_all_trials(study_id)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_trials_that_are_gone_are_missed(kind: str, address: Address, make: Make) -> None:
    study = make(address(kind))
    kept, study_id = study.open_storage()
    evaluated(kept, study_id, 0)
    study.checkpoints.mkdir()
    (study.checkpoints / "weights").touch()
    if kind not in ("sqlite", "journal"):
        kept.delete_study(study_id)
    else:
        place = Place(study.config.storage, study.folder)
        assert place.file is not None
        place.file.unlink()
    before = contents(study.folder)
    for use in (Study.records, Study.open_storage):
        with pytest.raises(InputError, match=r"is missing|any longer"):
            use(Study.open(study.folder))
    assert contents(study.folder) == before


@pytest.mark.parametrize("kind", SHARED)
def test_studies_of_one_name_share_a_storage_and_nothing_else(
    kind: str, address: Address, make: Make, tmp_path: Path
) -> None:
    one, other = make(address(kind), "one"), make(address(kind), "other")
    evaluated(*one.open_storage(), 0)
    assert other.records() == []
    other.open_storage()
    assert other.records() == []
    (tmp_path / "one").rename(tmp_path / "moved")
    assert len(Study.open(tmp_path / "moved").records()) == 1
    names = [study.storage().study_name for study in (Study.open(tmp_path / "moved"), other)]
    assert len(set(names)) == 2
    assert all(re.fullmatch("tiny-[0-9a-f]{8}", name) for name in names)


@pytest.mark.parametrize(
    "name",
    [
        *("a?b", "a?uri=true", "a#b", "a%b", "a%3Fb", "a b&c;d", "a:b@c", "a{b}[c]", "größe \\x"),
        os.fsdecode(b"caf\xe9?"),
    ],
)
def test_tables_are_in_the_file_whatever_its_folder_is_called(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    place = Place(None, folder)
    with place.opened() as kept:
        kept.create_new_study([StudyDirection.MINIMIZE], "ours")
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (folder / "study.db") in made
    assert all(path.name.startswith("study.db") and path.parent == folder for path in made)
    # The live page opens it by an address, of which SQLAlchemy 2.0 takes what is before a `?`.
    [_, address] = shlex.split(place.dashboard_command())
    assert "?" not in address.removesuffix("?uri=true")
    studies = RDBStorage(address).get_all_studies()
    assert [study.study_name for study in studies] == ["ours"]


def test_a_study_cannot_leave_its_trials_behind(make: Make, tmp_path: Path) -> None:
    study = make(None)
    make("journal")  # nothing was found yet
    make(None)
    evaluated(*study.open_storage(), 0)
    before = contents(study.folder)
    with pytest.raises(InputError, match=r"its trials are in .*study\.db, not in .*\.journal"):
        make("journal")
    assert contents(study.folder) == before


def test_a_storage_may_go_by_another_address(
    make: Make, postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(postgresql.url)
    evaluated(*study.open_storage(), 0)
    monkeypatch.setenv("LEVIT_SEARCH_DATABASE_PASSWORD", postgresql.password)
    moved = make(postgresql.spelt("${LEVIT_SEARCH_DATABASE_PASSWORD}"))
    assert len(moved.records()) == 1
    written = contents(study.folder)
    assert b"${LEVIT_SEARCH_DATABASE_PASSWORD}" in written["study.yaml"]
    assert not any(b"se/cr" in each or b"se%2Fcr" in each for each in written.values())


def test_a_password_is_read_from_the_environment_or_missed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEVIT_SEARCH_NO_SUCH_NAME", raising=False)
    with pytest.raises(InputError, match="the environment has no LEVIT_SEARCH_NO_SUCH_NAME"):
        make("postgresql://levit:${LEVIT_SEARCH_NO_SUCH_NAME}@127.0.0.1/levit")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_that_refuses_is_told_and_nothing_is_changed(
    kind: str, request: pytest.FixtureRequest, make: Make, tmp_path: Path
) -> None:
    database: Database = request.getfixturevalue(kind)
    wrong = {
        database.spelt("sesame"): "authentication failed|Access denied for user 'levit'",
        replace(database, name="nowhere").url: "database [\"']nowhere[\"']",
        f"{kind}://levit:sesame@127.0.0.1:{free_port()}/levit": "[Cc]onnection refused",
    }
    for url, told in wrong.items():
        with pytest.raises(InputError, match=told) as raised:
            make(url)
        message = str(raised.value)
        assert message.startswith(f"storage {kind}://levit:***@127.0.0.1:")
        assert "\n" not in message
        assert not any(secret in message for secret in ("sesame", "se/cr", "se%2Fcr"))
        assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_that_does_not_answer_is_given_up(
    kind: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs({"postgresql": "psycopg", "mysql": "pymysql"}[kind])
    monkeypatch.setattr(backends, "_CONNECT_S", 2)
    monkeypatch.setattr(backends, "_SILENCE_S", 6)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(InputError, match=r"cannot be used \(.*(time|lost|Lost)"):
            make(f"{kind}://levit:sesame@127.0.0.1:{port}/levit")
    assert not (tmp_path / "s").exists()


def test_a_server_that_stops_ends_a_search_and_not_a_study(make: Make) -> None:
    if reason := postgres.missing():
        pytest.skip(reason)
    with postgres.running() as database:
        study = make(database.url)
        kept, study_id = study.open_storage()
        evaluated(kept, study_id, 0)
    before = contents(study.folder)
    with pytest.raises(BudgetError, match="cannot be used"), study.place.errors(BudgetError):
        kept.set_study_user_attr(study_id, "key", "value")
    for use in (Study.records, Study.open_storage):
        with pytest.raises(InputError, match=r"cannot be used \(.*[Cc]onnection refused"):
            use(Study.open(study.folder))
    with pytest.raises(InputError, match="cannot be used"):
        make(database.url, **{"search.trials": 99})
    assert contents(study.folder) == before


def test_run_with_a_storage_that_cannot_be_reached_is_wrong_input(
    cli: Cli, space_file: Callable[..., Path], tmp_path: Path
) -> None:
    needs("psycopg")
    setting = f"storage=postgresql://levit:sesame@127.0.0.1:{free_port()}/levit"
    done = cli("run", space_file(), "--study", tmp_path / "s", "--set", setting)
    assert done.returncode == 2
    assert "cannot be used" in done.stderr
    assert "sesame" not in done.stderr + done.stdout
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgres://u:sesame@h/n", r"unknown storage 'postgres://u:\*\*\*@h/n'; did you mean 'po"),
        ("postgresql+psycopg2://h/n", r"did you mean 'postgresql\+psycopg://\.\.\.'"),
        ("myqsl://h/n", r"did you mean 'mysql://\.\.\.'"),
        ("jornal", r"unknown storage 'jornal'; did you mean 'journal'"),
        ("redis://h", r"unknown storage 'redis://h'; .*Known: journal, sqlite:///PATH, "),
        ("sqlite", r"unknown storage 'sqlite'; did you mean 'sqlite:///PATH'"),
        ("sqlite://", "names no file; expected sqlite:///PATH"),
        ("sqlite:///:memory:", "names no file"),
        ("postgresql://", "unknown storage"),
        ("", "unknown storage ''"),
        (7, "storage: .*string"),
    ],
)
def test_an_unknown_storage_is_wrong_input(url: object, told: str, make: Make) -> None:
    with pytest.raises(InputError, match=told) as raised:
        make(url)  # type: ignore[arg-type]
    assert "sesame" not in str(raised.value)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_an_address_is_looked_at_before_it_is_called(scheme: str, make: Make) -> None:
    with pytest.raises(InputError, match=r"\*\*\*@h:port/n: is no address of a database"):
        make(f"{scheme}://u:sesame@h:port/n")


@pytest.mark.parametrize(
    ("url", "extra"), [("postgresql://h/n", "postgres"), ("mysql+pymysql://h/n", "mysql")]
)
def test_a_driver_that_is_not_installed_is_named(
    url: str, extra: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"pip install 'levit-search\[{extra}\]'"):
        make(url)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:sesame@h:5432/n", "postgresql://u:***@h:5432/n"),
        ("postgresql://u:ses@me:@h/n", "postgresql://u:***@h/n"),
        ("postgresql://:sesame@h/n", "postgresql://:***@h/n"),
        ("mysql://u:${NAME}@h/n", "mysql://u:${NAME}@h/n"),
        ("mysql://u:${NAME}me@h/n", "mysql://u:***@h/n"),
        ("postgresql://h/n?user=u&password=sesame&x=1", "postgresql://h/n?user=u&password=***&x=1"),
        ("storage=postgresql://u:sesame@h/n", "storage=postgresql://u:***@h/n"),
        ("postgresql://u@h:5432/n", "postgresql://u@h:5432/n"),
        ("search.trials=3", "search.trials=3"),
    ],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_the_command_is_noted_without_the_password(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    command = ["levit-search", "run", "--set", "storage=mysql://u:sesame@h/n"]
    study = Study.create(tmp_path / "s", read_config(space_file()), command)
    noted = json.loads((study.folder / "environment.json").read_text())["sessions"][0]["command"]
    assert noted[-1] == "storage=mysql://u:***@h/n"


def test_a_path_is_taken_from_where_the_command_is_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept in {a} 50% place?").mkdir()
    monkeypatch.chdir(tmp_path / "kept in {a} 50% place?")
    study = make("sqlite:///all.db")
    monkeypatch.chdir(tmp_path)
    evaluated(*Study.open(study.folder).open_storage(), 0)
    assert len(Study.open(study.folder).records()) == 1
    assert (tmp_path / "kept in {a} 50% place?" / "all.db").is_file()
    with pytest.raises(InputError, match="nowhere is no folder"):
        make("sqlite:///nowhere/all.db", "other")
    assert not (tmp_path / "other").exists()


def test_a_config_without_a_storage_names_none() -> None:
    assert StudyConfig(name="n", architecture={}).storage is None


def _cut(share: float) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        raw = path.read_bytes()
        path.write_bytes(raw[: int(share * len(raw))])

    return cut


def _date(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v9.9.a'")
        database.commit()


def _mangle(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], '{"op', *lines[3:]]) + "\n")


@pytest.mark.parametrize(
    ("url", "damage", "told"),
    [
        (None, _cut(0.5), r"study\.db: cannot be read or written \(.*malformed"),
        (None, _cut(0.02), r"study\.db: cannot be read or written"),
        (None, _cut(0), r"its study\.db is missing or empty"),
        (None, lambda p: p.write_bytes(b"no database" * 999), r"\(file is not a database\)"),
        (None, lambda p: (p.unlink(), p.mkdir()), r"study\.db"),
        (None, _date, r"no longer compatible .*pip install -U optuna"),
        ("journal", _mangle, r"study\.journal: .*\(line 4 is no record of Optuna's\)"),
        ("journal", lambda p: p.write_bytes(b"\x00\xff\n" * 9), r"line 1 is no record"),
        ("journal", lambda p: p.write_text("[]\n7\n"), r"line 1 is no record"),
        ("journal", _cut(0), r"its study\.journal is missing or empty"),
    ],
)
def test_a_damaged_file_is_named_and_left_as_it_is(
    url: str | None, damage: Callable[[Path], object], told: str, make: Make
) -> None:
    study = make(url)
    kept, study_id = study.open_storage()
    for number in range(5):
        evaluated(kept, study_id, number)
    study.checkpoints.mkdir()
    (study.checkpoints / "weights").touch()
    del kept
    place = Place(url, study.folder)
    assert place.file is not None
    damage(place.file)
    before = contents(study.folder)
    with pytest.raises(InputError, match=told):
        Study.open(study.folder).records()
    assert contents(study.folder) == before


def test_a_writer_that_is_refused_by_a_damaged_file_changes_nothing(make: Make) -> None:
    study = make(None)
    evaluated(*study.open_storage(), 0)
    (study.folder / "study.db").write_bytes(b"no database" * 999)
    before = contents(study.folder)
    with pytest.raises(InputError, match="not a database"):
        study.open_storage()
    with pytest.raises(InputError, match="not a database"):
        make(None, **{"search.trials": 99})
    assert contents(study.folder) == before


def test_a_file_of_another_study_is_refused(make: Make, tmp_path: Path) -> None:
    for name in ("one", "other"):
        evaluated(*make(None, name, name=name).open_storage(), 0)
    shutil.copy(tmp_path / "one" / "study.db", tmp_path / "other" / "study.db")
    with pytest.raises(InputError, match=r"study\.db: is of study 'one', not 'other'"):
        Study.open(tmp_path / "other").open_storage()


@pytest.mark.filterwarnings("ignore:The value of `grace_period` might be too small")
@pytest.mark.parametrize("holder", ["study.journal", "moved/away/study.journal"])
def test_a_lock_that_a_killed_writer_left_is_taken_away(
    holder: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make("journal")
    kept, study_id = study.open_storage()
    (study.folder / "study.journal.lock").symlink_to(study.folder / holder)
    monkeypatch.setattr(backends, "_STALE_S", 0.3)
    evaluated(kept, study_id, 0)
    assert len(study.records()) == 1
    assert not (study.folder / "study.journal.lock").is_symlink()


def test_half_a_line_of_a_killed_writer_is_taken_away(make: Make) -> None:
    study = make("journal")
    kept, study_id = study.open_storage()
    evaluated(kept, study_id, 0)
    path = study.folder / "study.journal"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "worker_id"')
    assert len(study.records()) == 1
    assert path.read_bytes() != whole, "whoever reads changes nothing"
    kept, study_id = study.open_storage()
    evaluated(kept, study_id, 1)
    assert len(study.records()) == 2
    assert path.read_bytes().startswith(whole)
