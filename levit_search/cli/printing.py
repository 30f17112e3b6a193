"""How commands print: tables and JSON on standard output, progress on standard error."""

import json
import sys
from typing import TYPE_CHECKING, Any

from levit_search.printable import careful_console, encodable_json, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def figures_table(title: str, heads: list[str]) -> "Table":
    """An empty table whose first column is text and whose others are figures."""
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", overflow="fold")
    return table


def print_table(table: "RenderableType") -> None:
    # Piped tables keep their columns; a terminal shows what it has room for.
    careful_console(width=None if sys.stdout.isatty() else 160).print(table)


def print_json(document: Any) -> None:
    print(json.dumps(encodable_json(document), indent=2))


def tell(text: str = "", end: str = "\n") -> None:
    """Print a text, foreign ones in it included, on standard output."""
    print(printable(text), end=end)


def say(text: str) -> None:
    """The same on standard error."""
    print(printable(text), file=sys.stderr)
