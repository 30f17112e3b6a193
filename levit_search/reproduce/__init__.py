"""The paper's tables, published figures beside ours: the tables as data, and the results kept."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from levit_search.configuration import read_yaml
from levit_search.errors import InputError, UnknownNameError
from levit_search.results import ResultStore

TABLES = ("grafting", "variants", "ablation", "blocks")
COLUMNS = ("static", "speed", "accuracy")
"""Groups of columns, in the order in which they are measured and shown."""

_VERSION = 1  # of results.json


@dataclass(frozen=True)
class PaperRow:
    """One row of a table: what the paper says, and what we build for it."""

    name: str
    network: str | None
    """As the command line takes it; None where there is nothing to build."""
    paper: dict[str, float]
    what: str
    """The row in words where its name does not say it."""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper."""

    name: str
    title: str
    regime: str
    """How the paper's figures came about."""
    rows: tuple[PaperRow, ...]
    extra: Mapping[str, Any]
    """What belongs to the table and is no row of it."""

    @property
    def built(self) -> tuple[PaperRow, ...]:
        """The rows with a network."""
        return tuple(row for row in self.rows if row.network is not None)


@cache
def published_table(name: str) -> PaperTable:
    """One of :data:`TABLES`.

    Raises:
        InputError: there is no such table.
    """
    if name not in TABLES:
        raise UnknownNameError("table", name, TABLES)
    raw = read_yaml(Path(__file__).with_name("published.yaml"))[name]
    rows = []
    for row in raw["rows"]:
        paper = {k: v for k, v in row.items() if k not in ("name", "network", "what")}
        network = row.get("network", row["name"])
        rows.append(PaperRow(row["name"], network, paper, row.get("what", "")))
    extra = {key: value for key, value in raw.items() if key not in ("title", "regime", "rows")}
    return PaperTable(name, raw["title"], raw["regime"], tuple(rows), extra)


def check_columns(table: PaperTable, columns: Sequence[str]) -> tuple[str, ...]:
    """The groups of columns in the order they are measured.

    Raises:
        InputError: a table has no such group.
    """
    known = ("speed",) if table.name == "blocks" else COLUMNS
    for name in columns:
        if name not in known:
            raise UnknownNameError(f"group of columns of {table.name}", name, known)
    if not columns:
        raise InputError(f"--columns: none named; known: {', '.join(known)}")
    return tuple(name for name in COLUMNS if name in columns)


def paper_ratios(row: PaperRow, first: PaperRow) -> dict[str, float]:
    """The paper's speeds of a row relative to the first row's, by device."""
    names = ("gpu_ips", "intel_ips", "arm_ips")
    return {
        name.removesuffix("_ips"): row.paper[name] / first.paper[name]
        for name in names
        if name in row.paper and name in first.paper
    }


@dataclass
class Run:
    """One group of columns, measured with one set of settings.

    ``rows`` holds the figures by row name; ``settings`` is everything that they depend on and
    ``environment`` where they were measured; ``extra`` is what belongs to no row.
    """

    columns: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    extra: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    finished: str | None = None


class ReproductionStore(ResultStore):
    """All runs of one table's folder; nothing measured is ever thrown away unasked.

    Raises:
        InputError: the folder holds another table's results, or a file that cannot be read.
    """

    file_name, lock_name = "results.json", ".lock"
    held = "another levit-search reproduce fills it"

    def __init__(self, folder: Path, table: str) -> None:
        super().__init__(folder)
        self.table = table
        self.runs: list[Run] = []
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file, not a folder for results")
        with self.reading() as raw:
            if raw is None:
                return
            version, found = raw["version"], raw["table"]
            self.runs = [_by_training(Run(**run)) for run in raw["runs"]]
        if (version, found) != (_VERSION, table):
            raise InputError(
                f"{self.path}: holds {found} (version {version}), not {table} (version "
                f"{_VERSION}); choose another --out"
            )

    def begin(
        self, columns: str, settings: Mapping[str, Any], environment: Mapping[str, Any], keep: bool
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

    def failures(self) -> dict[str, str]:
        """The rows that failed of what is shown, by ``columns: row``, with the reason."""
        return {
            f"{run.columns}: {name}": row["failed"]
            for run in self.shown()
            for name, row in run.rows.items()
            if "failed" in row
        }

    def save(self) -> None:
        """Write ``results.json``.

        Raises:
            InputError: the folder cannot be written.
        """
        runs = [asdict(run) for run in self.runs]
        self.write(self.file_name, {"version": _VERSION, "table": self.table, "runs": runs})


def _by_training(run: Run) -> Run:
    """A run of accuracies as releases before 0.2 kept it, with one training a row, as it is now."""
    if run.columns == "accuracy" and "lrs" not in run.settings and "train" in run.settings:
        seed, lr = run.settings["seed"], run.settings["train"]["lr"]
        run.settings = {**run.settings, "lrs": [lr]}
        run.rows = {
            name: {"trainings": [{"seed": seed, "lr": lr, **row}]} for name, row in run.rows.items()
        }
    return run
