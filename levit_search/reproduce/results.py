"""The folder of a reproduction: what was measured, by run, and what is still to do."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from levit_search.errors import InputError
from levit_search.files import read_checksummed, write_atomically, write_checksummed

Figures = dict[str, Any]

COLUMNS = ("static", "speed", "accuracy")
VERSION = 1


@dataclass
class Run:
    """One group of columns, measured with one set of settings.

    ``rows`` holds the figures by row name; ``settings`` is everything that they depend on and
    ``environment`` where they were measured; ``extra`` is what belongs to no row.
    """

    columns: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    finished: str | None = None


class Results:
    """All runs of one table's folder; nothing measured is ever thrown away unasked.

    Args:
        folder: holds ``results.json``, or will; it is made by the first :meth:`save`.
        table: the table's name.

    Raises:
        InputError: the folder holds another table's results, or a file that cannot be read.
    """

    def __init__(self, folder: Path, table: str) -> None:
        self.folder, self.table = folder, table
        self.runs: list[Run] = []
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file, not a folder for results")
        if self._path.exists():
            try:
                raw = read_checksummed(self._path)
                found = (raw["version"], raw["table"])
                self.runs = [Run(**run) for run in raw["runs"]]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self._path}: cannot be read ({error})") from None
            if found != (VERSION, table):
                raise InputError(
                    f"{self._path}: holds {found[1]} (version {found[0]}), not {table} (version "
                    f"{VERSION}); choose another --out"
                )

    @property
    def _path(self) -> Path:
        return self.folder / "results.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, which is made, against another command that fills it.

        Raises:
            InputError: there is one, or the folder cannot be written.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / ".lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{self.folder}: another levit-search reproduce fills it") from None
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            yield
        finally:
            lock.release()

    def begin(
        self, columns: str, settings: dict[str, Any], environment: dict[str, Any], keep: bool
    ) -> Run:
        """The run to fill: one with the same settings that was interrupted, or a new one.

        Args:
            columns: which group.
            settings: what the figures depend on.
            environment: where they are measured now.
            keep: take a finished run with the same settings, too, as it is.
        """
        settings = json.loads(json.dumps(settings))
        known = [r for r in self.runs if r.columns == columns and r.settings == settings]
        if known and (keep or known[-1].finished is None):
            run = known[-1]
            self.runs.remove(run)
            if run.finished is None and run.environment != environment:
                run.extra.setdefault("earlier_environments", []).append(run.environment)
                run.environment = environment
        else:
            run = Run(columns, settings, environment)
        self.runs.append(run)
        return run

    def finish(self, run: Run) -> None:
        """All rows are there: ``run`` takes the place of an earlier one with the same settings."""
        run.finished = datetime.now(timezone.utc).isoformat(timespec="seconds")
        same = [r for r in self.runs if (r.columns, r.settings) == (run.columns, run.settings)]
        self.runs = [r for r in self.runs if r is run or r not in same]

    def latest(self, columns: str) -> Run | None:
        """The run of a group that was asked for last."""
        return next((run for run in reversed(self.runs) if run.columns == columns), None)

    def shown(self) -> list[Run]:
        """The latest run of each group that has one: what the table shows."""
        return [run for columns in COLUMNS if (run := self.latest(columns)) is not None]

    def save(self) -> None:
        """Write ``results.json``.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            runs = [asdict(run) for run in self.runs]
            write_checksummed(self._path, {"version": VERSION, "table": self.table, "runs": runs})
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, name: str, content: str | bytes) -> None:
        """Write another file of the folder, whole or not at all.

        Raises:
            InputError: the folder cannot be written.
        """
        try:
            write_atomically(self.folder / name, content)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.folder}: cannot be written ({error.strerror or error})")
