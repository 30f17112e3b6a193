"""Optuna's dashboard on our storages, by the command that a search prints."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from levit_search.search import driver, search
from levit_search.search.callbacks import Callback
from levit_search.search.trials import SearchStatus
from levit_search.study import Record, Study, read_config
from levit_search.study.storage import Place
from tests import mariadb, postgres
from tests.conftest import Cli, needs
from tests.engines import CurveEngine
from tests.servers import Database, free_port, stop, wait_for

needs("optuna_dashboard")

KINDS = [
    "sqlite",
    "journal",
    pytest.param("postgresql", marks=pytest.mark.slow),
    pytest.param("mysql", marks=pytest.mark.slow),
]
SERVERS = {
    "postgresql": postgres,
    "mysql": mariadb,
}

Address = Callable[[str], str | None]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    """What a space file says for a kind of storage; a server's password is in the environment."""
    running = []

    def of(kind: str) -> str | None:
        if kind not in SERVERS:
            return {"sqlite": None, "journal": "journal"}[kind]
        server = SERVERS[kind]
        if reason := server.missing():
            pytest.skip(reason)
        running.append(server.running())
        database: Database = running[-1].__enter__()
        monkeypatch.setenv("LEVIT_SEARCH_PASSWORD", database.password)
        return database.spelt("${LEVIT_SEARCH_PASSWORD}")

    yield of
    for each in running:
        each.__exit__(None, None, None)


@pytest.fixture
def study(space_file: Callable[..., Path], tmp_path: Path) -> Callable[..., Study]:
    """A study with stopped, repeated and infeasible trials, or the one that is there."""
    path = space_file(
        train={"epochs": 9, "rungs": [1, 3], "device": "cpu"}, limits={"flops": 110_000}
    )

    def made(storage: str | None, trials: int) -> Study:
        config = read_config(path, {"storage": storage, "search.trials": trials})
        return Study.create(tmp_path / "a study", config, ["test"])

    return made


Ask = Callable[[str], Any]


@contextmanager
def dashboard(command: str, log: Path) -> Iterator[Ask]:
    """The dashboard as a user starts it; what it answers to a GET."""
    port = free_port()
    if password := os.environ.get("LEVIT_SEARCH_PASSWORD"):
        command = command.replace("***", quote(password, safe=""))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command} --port {port}"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={**os.environ, "PATH": path},
        )
    try:
        wait_for(process, log, "Listening on")
        wait_until_open(port)  # a little after it says so

        def ask(page: str) -> Any:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=60) as answer:
                text = answer.read().decode()
            return json.loads(text) if page.startswith("/api") else text

        yield ask
    finally:
        stop(process, signal.SIGKILL)
    assert "Traceback" not in log.read_text()


def wait_until_open(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def stored(study: Study) -> list[Any]:
    """All that Optuna's storage has of a study, its own attributes included."""
    storage, study_id = study.open_storage()
    trials = storage.get_all_trials(study_id)
    told = [(t.state, t.values, t.params, t.user_attrs, t.system_attrs) for t in trials]
    return [*told, storage.get_study_user_attrs(study_id), storage.get_study_system_attrs(study_id)]


class Looking(Callback):
    """Looks at the page of a study until it has the trial that a running search told first."""

    def __init__(self, ask: Ask, page: str) -> None:
        self._ask, self._page, self.seen = ask, page, 0

    def on_trial_complete(self, record: Record, status: SearchStatus, left_s: float | None) -> None:
        deadline = time.monotonic() + (0 if self.seen else 20)
        while self.seen < len(status.records) and time.monotonic() < deadline:
            time.sleep(0.4)  # it reads the storage every two seconds
            self.seen = len(self._ask(self._page)["trials"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_shows_all_trials_before_and_during_and_after_a_search(
    kind: str, address: Address, study: Callable[..., Study], tmp_path: Path
) -> None:
    storage = address(kind)
    found = study(storage, 6)
    if kind != "journal":  # whose file need not be there
        found.open_storage()
    with dashboard(found.place.dashboard_command(), tmp_path / "log") as ask:
        assert len(ask("/api/studies")["study_summaries"]) == (kind != "journal")
        search(found, engine=CurveEngine)
        (listed,) = ask("/api/studies")["study_summaries"]
        assert listed["study_name"].startswith("tiny")
        assert listed["directions"] == ["maximize", "minimize"]
        page, before, records = f"/api/studies/{listed['study_id']}", stored(found), found.records()
        check_shown(ask(page), records)
        reasons = [record.reason or "" for record in records]
        assert any("stopped at epoch" in reason for reason in reasons)
        assert any("flops over the limit" in reason for reason in reasons)
        if kind != "journal":  # one storage tells as much of them as another
            assert "param_importances" in ask(f"{page}/param_importances")
            assert "data" in ask(f"{page}/plot/pareto_front")
        assert "<html" in ask(f"/dashboard/studies/{listed['study_id']}")
        assert stored(found) == before, "looking writes nothing"
        more, looking = study(storage, 7), Looking(ask, page)
        search(more, [looking], engine=CurveEngine)
        assert len(more.records()) >= looking.seen > len(records)


def check_shown(shown: dict[str, Any], records: list[Record]) -> None:
    """Make sure that a study's page has what its records say."""
    assert shown["objective_names"] == ["top1_percent", "flops"]
    assert {"num_stages", "stages.1.depth"} <= {
        each["name"] for each in shown["trials"][0]["params"]
    }
    states = {"complete": "Complete", "pruned": "Pruned", "failed": "Fail"}
    for trial, record in zip(shown["trials"], records, strict=True):
        assert trial["state"] == states[record.state]
        if record.state == "complete":
            values = [record.values[name] for name in shown["objective_names"]]
            assert trial["values"] == pytest.approx(values)
        notes = {each["key"]: each["value"] for each in trial["user_attrs"]}
        assert record.architecture is not None
        assert record.architecture.id in notes["architecture_id"]
        assert (record.reason or "") in notes.get("reason", "")


@pytest.mark.parametrize(
    ("storage", "expected"),
    [
        (None, "'sqlite:////here/a b/study.db'"),
        ("journal", "--storage-class JournalFileStorage '/here/a b/study.journal'"),
        ("sqlite:////there/all.db", "sqlite:////there/all.db"),
        ("sqlite:///${LEVIT_SEARCH_ROOT}/all.db", "sqlite:////rooted/all.db"),
        ("sqlite:////there/{0}$x.db", "sqlite:////there/%7B0%7D%24x.db"),
        ("postgresql://me:secret@host/db", "'postgresql+psycopg://me:***@host/db'"),
        ("postgresql+psycopg://host/db", "postgresql+psycopg://host/db"),
        (
            "mysql://me:${LEVIT_SEARCH_PLAIN}@host:1/db",
            '"mysql+pymysql://me:${LEVIT_SEARCH_PLAIN}@host:1/db"',
        ),
        ("mysql://me:${LEVIT_SEARCH_SPECIAL}@host/db", '"mysql+pymysql://me:***@host/db"'),
        (
            "mysql://me:${LEVIT_SEARCH_PLAIN}@host/`$x{}",
            '"mysql+pymysql://me:${LEVIT_SEARCH_PLAIN}@host/\\`\\$x{{}}"',
        ),
        ("mysql://host/db?password=secret&a=b", "'mysql+pymysql://host/db?password=***&a=b'"),
    ],
)
def test_the_command_is_quoted_and_tells_no_password(
    storage: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEVIT_SEARCH_PLAIN", "secret")
    monkeypatch.setenv("LEVIT_SEARCH_SPECIAL", "se/cr:et@")
    monkeypatch.setenv("LEVIT_SEARCH_ROOT", "/rooted")
    command = Place(storage, Path("/here/a b")).dashboard_command()
    assert command == f"optuna-dashboard {expected}"


@pytest.mark.parametrize("storage", [None, "journal"])
def test_the_command_holds_in_every_folder(
    storage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"{tmp_path}/s/study." in Place(storage, Path("s")).dashboard_command()


def test_a_search_prints_it_at_its_start(
    cli: Cli, space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    ran = cli("run", space_file(storage=None), "--study", "s", "--trials", 1, "--json")
    assert ran.returncode == 0
    lines = ran.stderr.splitlines()
    assert f"Live page: optuna-dashboard sqlite:///{tmp_path}/s/study.db" in lines
    json.loads(ran.stdout)
