"""Optuna's storages as a study opens them, in SQLite, on a database server and in a journal file.

They are Optuna's own classes, and its dashboard may be at work on the same file or tables. What is
added here keeps a killed writer, or an answer that was lost on its way, from doing harm.
"""

import hashlib
import os
import sqlite3
import time
import weakref
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy import event, inspect, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.engine import ExceptionContext

# Another process may hold SQLite's lock for as long as it reads all trials.
_SQLITE_BUSY_S = 60
_CONNECT_S = 5
# A server that went away without a word is noticed after about this long.
_SILENCE_S = 60
# A journal's lock is held for one write, a few milliseconds; one that is this old was left by a
# process that was killed.
_STALE_S = 5
_LOOK_AGAIN_S = 0.05
# What SQLite says where the file is sound and the rest of the machine is not.
_NOT_DAMAGE = ("locked", "readonly", "disk i/o", "disk is full", "unable to open", "out of memory")


class DamagedJournalError(Exception):
    """A line of a journal that is not the last is no record."""


class ServerAwayError(Exception):
    """A server does not answer, and may come back; its cause is the driver's own error.

    Whether it did what it was asked to do is not known.
    """


ERRORS = (
    *(sqlite3.Error, SQLAlchemyError, StorageInternalError, OSError),
    *(ServerAwayError, DamagedJournalError),
)
"""What a storage raises that cannot be used."""


def sqlite_storage(url: str) -> RDBStorage:
    """The storage in an SQLite file, made if it is not there."""
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": _SQLITE_BUSY_S}})


def server_storage(url: "URL", address: str) -> RDBStorage:
    """The storage on a PostgreSQL or MySQL server, with tables that are made if they are not there.

    Whatever it does raises :class:`ServerAwayError` at once where the server does not answer.
    Optuna itself would create a trial up to five times, also where the database has it and only the
    answer to the commit was lost. ``address`` is the same as ``url``, as Optuna takes it.
    """
    patience: dict[str, int | str] = {"read_timeout": _SILENCE_S, "write_timeout": _SILENCE_S}
    if url.get_backend_name() == "postgresql":
        patience = {
            "keepalives_idle": _SILENCE_S // 2,
            "keepalives_interval": _SILENCE_S // 6,
            "keepalives_count": 3,
            "tcp_user_timeout": 1000 * _SILENCE_S,
            "client_encoding": "utf8",  # a server without one gives bytes otherwise
        }
    patience["connect_timeout"] = _CONNECT_S
    arguments = {
        "pool_pre_ping": True,  # hours may pass between two trials
        "connect_args": {key: n for key, n in patience.items() if key not in url.query},
    }
    storage = RDBStorage(address, engine_kwargs=arguments)
    event.listen(storage.engine, "handle_error", _away)
    # The engine's listeners keep it until garbage is collected, and with it a connection.
    weakref.finalize(storage, storage.engine.dispose).atexit = False
    if storage.engine.name == "mysql":
        _widen_texts(storage.engine)
    return storage


def _away(context: "ExceptionContext") -> ServerAwayError | None:
    """What SQLAlchemy raises in the place of an error."""
    error = context.sqlalchemy_exception
    is_lost = isinstance(error, DBAPIError) and context.is_disconnect
    if context.is_pre_ping or not (is_lost or isinstance(error, OperationalError | InterfaceError)):
        return None
    return ServerAwayError()


def _widen_texts(engine: "Engine") -> None:
    """Room for attributes of more than 64 KiB, such as a learning curve of 600 epochs."""
    # MySQL's TEXT ends there; other databases' does not.
    for table in ("trial_user_attributes", "study_user_attributes"):
        columns = {each["name"]: each["type"] for each in inspect(engine).get_columns(table)}
        if type(columns["value_json"]).__name__ == "TEXT":
            with engine.begin() as connection:
                connection.execute(text(f"ALTER TABLE {table} MODIFY value_json LONGTEXT"))


@contextmanager
def claimed(engine: "Engine", name: str) -> Iterator[bool]:
    """Take a study on a server for as long as the block lasts; false if another has it.

    PostgreSQL's and MySQL's own locks go with the connection, and so with the process that held
    them.
    """
    connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    connection.detach()
    try:
        yield _lock(connection, name)
    finally:
        with suppress(SQLAlchemyError, ServerAwayError):  # the server may have gone before
            connection.close()


def _lock(connection: "Connection", name: str) -> bool:
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


def driver_error(error: BaseException) -> BaseException:
    """The driver's own error behind one of SQLAlchemy's or Optuna's."""
    if isinstance(error, StorageInternalError | ServerAwayError) and error.__cause__ is not None:
        error = error.__cause__
    return getattr(error, "orig", None) or error


def is_damage(error: BaseException) -> bool:
    """Whether an error is about what stands in a file, and not about the disk or the machine."""
    said = str(driver_error(error)).lower()
    return not isinstance(error, OSError) and not any(words in said for words in _NOT_DAMAGE)


def sqlite_damage(path: Path) -> str | None:
    """What SQLite finds wrong with a file, or None.

    Raises:
        sqlite3.Error: it finds so much wrong that it cannot even look, or may not write.
    """
    with closing(sqlite3.connect(path, timeout=_SQLITE_BUSY_S, isolation_level=None)) as database:
        for (found,) in database.execute("PRAGMA integrity_check(1)"):
            if found != "ok":
                return str(found).splitlines()[-1]
        database.execute("BEGIN IMMEDIATE")
        database.execute("ROLLBACK")
    return None


def journal_storage(path: Path) -> JournalStorage:
    """The storage in a journal file, made if it is not there.

    Raises:
        DamagedJournalError: the file is no journal.
        OSError: it cannot be read, or not be made.
    """
    path = path.absolute()
    return JournalStorage(_JournalFile(str(path), _JournalLock(path)))


class _JournalFile(JournalFileBackend):
    """Optuna's, with the number of a line that is no record."""

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        number = log_number_from
        try:
            for log in super().read_logs(log_number_from):
                if not isinstance(log, dict) or "op_code" not in log:
                    raise ValueError
                number += 1
                yield log
        except ValueError:
            raise DamagedJournalError(f"line {number + 1} is no record of Optuna's") from None


class _JournalLock(JournalFileOpenLock):
    """Optuna's; whoever gets it finds whole lines. What a killed writer left of one is taken away,
    where Optuna would append to it and never be able to read the file again."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), grace_period=_STALE_S)
        self._path, self._link = path, path.with_name(f"{path.name}.lock")

    def acquire(self) -> bool:
        self._wait_for_moved_lock()
        is_held = super().acquire()
        with self._path.open("r+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        return is_held

    def _wait_for_moved_lock(self) -> None:
        """Remove a symbolic link, Optuna's other kind of lock, that leads nowhere since the folder
        was moved; Optuna would wait for it for ever."""
        with suppress(FileNotFoundError):
            while self._link.is_symlink() and not self._link.exists():
                if time.time() - self._link.lstat().st_mtime > _STALE_S:
                    self._link.unlink()
                time.sleep(_LOOK_AGAIN_S)
