"""Optuna's storage in a database, so written that a lost answer repeats nothing.

Optuna creates a trial anew when a commit fails, also where the database had it and only the answer
was lost, and it counts on whatever trials others have written meanwhile.
"""

import hashlib
import json
import sqlite3
from collections.abc import Container, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import func, inspect, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from levit_search.study.rows import read_trials

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session

# What SQLite says where the file is sound and the rest of the machine is not.
_NOT_DAMAGE = ("locked", "readonly", "disk i/o", "disk is full", "unable to open", "out of memory")


class NumberTakenError(Exception):
    """Somebody else has written a trial of that number."""


class _AlreadyThereError(Exception):
    """A commit had reached the database though its answer had not reached us."""

    def __init__(self, trial_id: int) -> None:
        super().__init__()
        self.trial_id = trial_id


class Database(RDBStorage):
    """Optuna's storage with trials that are created under a given number."""

    _study_id: int
    _wanted: FrozenTrial | None = None
    _tried: int | None = None

    def create_at(self, study_id: int, trial: FrozenTrial) -> int:
        """Write a trial whose ``number`` is the next one, once, however often this is called for
        it; returns its id.

        Raises:
            NumberTakenError: others have written to the study. Nothing was written.
        """
        self._study_id, self._wanted = study_id, trial
        try:
            trial_id = self.create_new_trial(study_id, trial)
        except _AlreadyThereError as found:
            trial_id = found.trial_id
        finally:
            self._wanted = None
        self._tried = None
        return trial_id

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: "Session"
    ) -> "models.TrialModel":
        """Called by Optuna in the transaction, with the study's row locked, and for each try."""
        if self._wanted is not None:
            self._check_number(self._wanted, session)
        return super()._get_prepared_new_trial(study_id, template_trial, session)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Called by Optuna for what :meth:`get_all_trials` gives, and by its cache."""
        if states is None and trial_id_greater_than == -1:
            with _create_scoped_session(self.scoped_session) as session:
                return read_trials(session, study_id)
        return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)

    def _check_number(self, wanted: FrozenTrial, session: "Session") -> None:
        of_study = models.TrialModel.study_id == self._study_id
        count = session.query(func.count(models.TrialModel.trial_id)).filter(of_study).scalar()
        if count == wanted.number:
            self._tried = wanted.number
            return
        if count == wanted.number + 1 and self._tried == wanted.number:
            of_number = models.TrialModel.number == wanted.number
            model = session.query(models.TrialModel).filter(of_study, of_number).one()
            found = self._build_frozen_trial_from_trial_model(model)
            notes = json.loads(json.dumps(wanted.user_attrs))
            if (found.params, found.user_attrs) == (wanted.params, notes):
                raise _AlreadyThereError(found._trial_id)
        raise NumberTakenError


def does_not_answer(error: BaseException) -> bool:
    """Whether an error is that of a server that is away, and may come back."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    is_cut = isinstance(error, DBAPIError) and error.connection_invalidated
    return is_cut or isinstance(error, OperationalError | InterfaceError)


def is_damage(error: BaseException) -> bool:
    """Whether an error of SQLite's is about what stands in the file."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError):
        return False
    said = str(getattr(error, "orig", None) or error).lower()
    return not any(words in said for words in _NOT_DAMAGE)


def check_file(path: Path) -> str | None:
    """What SQLite finds wrong with a file, or None.

    Raises:
        sqlite3.Error: it finds so much wrong that it cannot even look, or may not write.
    """
    with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as database:
        for (found,) in database.execute("PRAGMA integrity_check(1)"):
            if found != "ok":
                return str(found).splitlines()[-1]
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")
    return None


@contextmanager
def held(engine: "Engine") -> Iterator["Connection"]:
    """A connection of its own, whose end is no matter, should the server have gone before."""
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    connection.detach()
    try:
        yield connection
    finally:
        with suppress(SQLAlchemyError):
            connection.close()


def claim(connection: "Connection", name: str) -> bool:
    """Take a study on a server for as long as a connection lives; false if another has it.

    PostgreSQL's and MySQL's own locks go with the process that held them.
    """
    if connection.dialect.name == "postgresql":
        # The server notices within about a minute that our machine is gone.
        for setting, value in (("idle", 30), ("interval", 10), ("count", 3)):
            connection.execute(text(f"SET tcp_keepalives_{setting} = {value}"))
        digest = hashlib.sha256(f"levit-search {name}".encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        found = connection.execute(text("SELECT pg_try_advisory_lock(:number)"), {"number": number})
    else:
        # The server would end a connection, and its lock, that has been idle for eight hours.
        connection.execute(text("SET SESSION wait_timeout = 31536000"))
        name = f"levit-search {hashlib.sha256(name.encode()).hexdigest()[:32]}"
        found = connection.execute(text("SELECT GET_LOCK(:name, 0)"), {"name": name})
    return bool(found.scalar())


def widen_texts(engine: "Engine") -> None:
    """Room for attributes of more than 64 KiB, such as a learning curve of 600 epochs.

    MySQL's TEXT ends there; other databases' does not.
    """
    for table in ("trial_user_attributes", "study_user_attributes"):
        columns = {each["name"]: each["type"] for each in inspect(engine).get_columns(table)}
        if type(columns["value_json"]).__name__ == "TEXT":
            with engine.begin() as connection:
                connection.execute(text(f"ALTER TABLE {table} MODIFY value_json LONGTEXT"))
