"""Where a study's trials are kept: Optuna's storage in the study folder, or on a database server.

Only Optuna's own schemas are used, so that its dashboard and its other tools read them all. The
address of a storage is spelt for Optuna, for a shell, and without its password for people to see.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

from pydantic import AfterValidator

from levit_search.errors import InputError, LevitSearchError, did_you_mean
from levit_search.escaping import masked, quoted
from levit_search.files import expanded, held_lock

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage
    from sqlalchemy import URL

_DRIVERS = {
    "postgresql": "psycopg",
    "postgresql+psycopg": "psycopg",
    "mysql": "pymysql",
    "mysql+pymysql": "pymysql",
}
_EXTRAS = {"psycopg": "postgres", "pymysql": "mysql"}
_KNOWN = ("journal", "sqlite:///PATH", *(f"{scheme}://..." for scheme in _DRIVERS))

_OURS = "LEVIT_SEARCH_"
_JOURNAL = "study.journal"
_DASHBOARD = "optuna-dashboard"

# SQLAlchemy 2.0 ends a path at its first `?`, and 2.1 takes none that is no UTF-8.
_AS_URI = re.compile("[?\ud800-\udfff]")
# What reading nonsense comes to in Optuna and below it.
_NONSENSE = (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError, AssertionError)


class DamagedError(InputError):
    """What stands in a storage is not what was written."""


def _checked(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if text == "journal" or (scheme in _DRIVERS and rest):
        return text
    if scheme != "sqlite" or not separator:
        near = did_you_mean(f"{scheme}://...", _KNOWN) if separator else did_you_mean(text, _KNOWN)
        raise ValueError(f"unknown storage {masked(text)!r}; {near}")
    if not rest.startswith("/") or rest in ("/", "/:memory:"):
        raise ValueError(f"{text!r} names no file; expected sqlite:///PATH")
    path = rest[1:]
    return text if path.startswith("$") else f"sqlite:///{expanded(path).absolute()}"


StorageUrl = Annotated[str, AfterValidator(_checked)]
"""``journal``, ``sqlite:///PATH``, ``postgresql://USER:PASSWORD@HOST/NAME`` or ``mysql://...``.

``journal`` is Optuna's journal file in the study folder, for file systems of which SQLite's locks
are not to be trusted. A path is taken from where the command is run. ``${LEVIT_SEARCH_...}``
stands for an environment variable, which is read when the storage is opened and is written down
nowhere; a password is best given so.
"""


@dataclass(frozen=True)
class Place:
    """Where a study keeps its trials: ``storage`` of its configuration, seen from its folder.

    As text it is what messages call it.
    """

    storage: str | None
    folder: Path

    def __str__(self) -> str:
        if self.storage is None or not self.is_shared:
            return str(self.file)
        return f"storage {masked(self.storage)}"

    @property
    def is_shared(self) -> bool:
        """Whether studies of other folders may be kept there, too."""
        return self.storage not in (None, "journal")

    @property
    def file(self) -> Path | None:
        """The file in which it is kept; none: it is on a server.

        Raises:
            InputError: its name has an environment variable that is not set.
        """
        if self.storage is None:
            return self.folder / "study.db"
        if self.storage == "journal":
            return self.folder / _JOURNAL
        if self.storage.startswith("sqlite:"):
            return Path(_filled(self.storage, str).removeprefix("sqlite:///")).absolute()
        return None

    def check(self) -> None:
        """Make sure that it can be used; no file is made.

        Raises:
            InputError: a server cannot be reached or refuses us, or a file has no folder to be in.
        """
        self.check_parent()
        if self.is_shared and self.may_hold_trials:
            with self.opened():
                return

    def check_parent(self) -> None:
        """Make sure that a file outside the study folder has a folder to be in.

        Raises:
            InputError: it has none.
        """
        if self.file is not None and self.is_shared and not self.file.parent.is_dir():
            raise InputError(f"{self}: {self.file.parent} is no folder")

    @property
    def may_hold_trials(self) -> bool:
        """False where there is no file, or an empty one; a server can only be asked."""
        return self.file is None or (self.file.is_file() and self.file.stat().st_size > 0)

    def dashboard_command(self) -> str:
        """The command that shows the trials as a live page, also while a search is at work.

        It is quoted for a shell. A password stands there as ``***``, to be put in as it is spelt
        in an address; ``${NAME}`` is left to the shell.

        Raises:
            InputError: the storage's file is named by an environment variable that is not set.
        """
        if self.storage == "journal":
            path = str(self.folder.absolute() / _JOURNAL)  # it need not be there yet
            return f"{_DASHBOARD} --storage-class JournalFileStorage {quoted(path)}"
        if self.file is not None:
            return f"{_DASHBOARD} {quoted(_sqlite_url(self.file))}"
        assert self.storage is not None
        scheme, _, rest = masked(self.storage).partition("://")
        scheme = f"{scheme.partition('+')[0]}+{_DRIVERS[scheme]}"
        return f"{_DASHBOARD} {_quoted_but_variables(f'{scheme}://{rest}')}"

    @contextmanager
    def opened(self, file: Path | None = None) -> Iterator["BaseStorage"]:
        """The storage as long as the block lasts; see :meth:`open`."""
        from optuna.storages import RDBStorage

        storage = self.open(file)
        try:
            with self.errors():
                yield storage
        finally:
            if isinstance(storage, RDBStorage):
                storage.engine.dispose()

    def open(self, file: Path | None = None) -> "BaseStorage":
        """Optuna's storage, made if it is not there: the one where the trials are, or another
        ``file`` of the same kind.

        Raises:
            InputError: it cannot be reached or read, refuses us, was written by a release of
                Optuna that this one does not understand, or its driver is not installed.
        """
        import optuna

        from levit_search.study import backends

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file = file or self.file
        with self.errors(reads=True):
            if file is None:
                return self._on_server()
            if self.storage == "journal":
                return backends.journal_storage(file)
            return backends.sqlite_storage(_sqlite_url(file))

    @contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """Hold a study against drivers of other folders, such as copies of this one.

        Raises:
            InputError: another driver has it, or the storage cannot be used.
        """
        told = f"{self.folder}: another levit-search run is at work on this study in {self}"
        if self.file is not None:
            self.check_parent()
            with held_lock(self.file.with_name(f".{self.file.name}.{name}.lock"), told):
                yield
            return
        from levit_search.study import backends

        with ExitStack() as stack:
            with self.errors():
                engine = self._on_server().engine
                stack.callback(engine.dispose)
                is_ours = stack.enter_context(backends.claimed(engine, name))
            if not is_ours:
                raise InputError(told)
            yield

    @contextmanager
    def errors(
        self, kind: type[LevitSearchError] = InputError, reads: bool = False
    ) -> Iterator[None]:
        """What goes wrong with the storage within the block becomes one line, of a ``kind`` of
        error; in a block that only ``reads``, nonsense is damage, too."""
        from levit_search.study.backends import ERRORS, is_damage

        try:
            yield
            return
        except ERRORS as error:
            reason = self.reason(error)
            if kind is InputError and self.file is not None and is_damage(error):
                kind = DamagedError
        except _NONSENSE as error:
            if not reads:
                raise
            reason = self.reason(error) if str(error) else "its tables are not whole"
            is_other_release = "optuna storage upgrade" in reason  # of Optuna's check of its schema
            kind = InputError if is_other_release else DamagedError
        trouble = "cannot be used" if self.file is None else "cannot be read or written"
        raise kind(f"{self}: {trouble} ({reason})") from None

    def check_file(self) -> None:
        """Have SQLite look through its file, and see that it may be written to.

        Raises:
            InputError: the file is damaged, or cannot be used.
        """
        from levit_search.study.backends import sqlite_damage

        if self.storage == "journal" or self.file is None:
            return
        with self.errors():
            found = sqlite_damage(self.file)
        if found is not None:
            raise DamagedError(f"{self}: is damaged ({found})")

    def reason(self, error: BaseException) -> str:
        """The driver's own words for an error, on one line and without the password."""
        from levit_search.study.backends import driver_error

        error = driver_error(error)
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        # PyMySQL's errors are a number and a text.
        told = [text for text in error.args if isinstance(text, str)]
        lines = [line.strip() for line in (told[-1] if told else str(error)).splitlines()]
        text = next((line for line in lines if line), type(error).__name__)
        text = text.removeprefix("connection failed: ")
        secret = self._url().password if self.file is None else None
        return text.replace(str(secret), "***") if secret else text

    def _on_server(self) -> "RDBStorage":
        from levit_search.study.backends import server_storage

        url = self._url()
        driver = url.get_driver_name()
        told = f"{self}: needs {driver} (pip install 'levit-search[{_EXTRAS[driver]}]')"
        if find_spec(driver) is None:
            raise InputError(told)
        try:
            return server_storage(url, _spelt(url))
        except ImportError as error:  # installed, and without the library that it wraps
            raise InputError(f"{told}: {error.__cause__ or error}") from None

    def _url(self) -> "URL":
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        assert self.storage is not None
        try:
            url = make_url(_filled(self.storage, lambda value: quote(value, safe="")))
        except (ArgumentError, ValueError):  # such as a port that is no number
            raise InputError(
                f"{self}: is no address of a database (expected SCHEME://USER:PASSWORD@HOST:PORT/"
                "NAME)"
            ) from None
        return url.set(drivername=f"{url.get_backend_name()}+{_DRIVERS[url.drivername]}")


def _sqlite_url(path: Path) -> str:
    from sqlalchemy import URL

    path = path.absolute()
    if _AS_URI.search(str(path)) is None:
        return _spelt(URL.create("sqlite", database=str(path)))
    return _spelt(URL.create("sqlite", database=path.as_uri(), query={"uri": "true"}))


def _filled(text: str, spell: Callable[[str], str]) -> str:
    """The text with environment variables put in, each spelt for where it stands."""

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if not name.startswith(_OURS):  # a study from anybody could send it to a server of theirs
            raise InputError(
                f"storage {masked(text)}: {name} does not begin with {_OURS}, and no other "
                f"variable is put into an address; call it {_OURS}{name}"
            )
        if name not in os.environ:
            raise InputError(f"storage {masked(text)}: the environment has no {name}")
        return spell(os.environ[name])

    return re.sub(r"\$\{(\w+)\}", value, text)


def _spelt(url: "URL") -> str:
    return _braced(url.render_as_string(hide_password=False))


def _braced(text: str) -> str:
    """As Optuna takes it, to which braces are places to fill in."""
    return text.replace("{", "{{").replace("}", "}}")


def _quoted_but_variables(text: str) -> str:
    """An argument for a shell, which fills in ``${NAME}`` itself; what an address could not hold as
    it stands is masked."""
    parts = re.split(r"(\$\{\w+\})", text)
    for place, part in enumerate(parts):
        if place % 2 == 0:
            parts[place] = re.sub(r'([\\"$`])', r"\\\1", _braced(part))
        elif (value := os.environ.get(part[2:-1], "")) != quote(value, safe=""):
            parts[place] = "***"
    return f'"{"".join(parts)}"' if len(parts) > 1 else quoted(_braced(text))
