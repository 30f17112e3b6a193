"""The paper's tables as data, each row with the network that we build for it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from levit_search.configuration import read_yaml
from levit_search.errors import UnknownNameError

TABLES = ("grafting", "variants", "ablation", "blocks")


@dataclass(frozen=True)
class Row:
    """One row of a table: what the paper says, and what we build for it."""

    name: str
    network: str | None
    """As the command line takes it; None where there is nothing to build."""
    paper: dict[str, float]
    what: str
    """The row in words where its name does not say it."""


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    name: str
    title: str
    regime: str
    """How the paper's figures came about."""
    rows: tuple[Row, ...]
    extra: dict[str, Any]
    """What belongs to the table and is no row of it."""

    @property
    def built(self) -> tuple[Row, ...]:
        """The rows with a network."""
        return tuple(row for row in self.rows if row.network is not None)


@cache
def published_table(name: str) -> Table:
    """One of :data:`TABLES`.

    Raises:
        InputError: there is no such table.
    """
    if name not in TABLES:
        raise UnknownNameError("table", name, TABLES)
    raw = read_yaml(Path(__file__).with_name("published.yaml"))[name]
    rows = tuple(_row(row) for row in raw["rows"])
    extra = {key: value for key, value in raw.items() if key not in ("title", "regime", "rows")}
    return Table(name, raw["title"], raw["regime"], rows, extra)


def _row(raw: dict[str, Any]) -> Row:
    paper = {k: v for k, v in raw.items() if k not in ("name", "network", "what")}
    return Row(raw["name"], raw.get("network", raw["name"]), paper, raw.get("what", ""))
