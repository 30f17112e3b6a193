"""What commands share of a terminal: options, how results and progress are printed, and Ctrl-C.

Tables and JSON go to standard output, progress to standard error.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from levit_search.escaping import careful_console, encodable_json, printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the space file (repeatable)."),
]
StudyFolder = Annotated[Path, typer.Argument(metavar="STUDY", help="A study folder.")]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Where its data lies now [default: where it was]."),
]
NewStudyFolder = Annotated[
    Path | None,
    typer.Option("--study", metavar="DIR", help="Study folder [default: studies/NAME]."),
]


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


def print_figures(title: str, heads: list[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table of :func:`figures_table`."""
    table = figures_table(title, heads)
    for row in rows:
        table.add_row(*row)
    print_table(table)


def accuracies(figures: Mapping[str, Any], splits: Sequence[str]) -> str:
    """The top-1 accuracies on splits with their intervals, as ``val 91.0 % (...), test ...``."""
    from levit_search.significance import accuracy_text

    return ", ".join(
        f"{split} {accuracy_text(figures[f'{split}_top1_percent'], figures[f'{split}_images'])}"
        for split in splits
    )


def print_json(document: Any) -> None:
    print(json.dumps(encodable_json(document), indent=2))


def tell(text: str = "", end: str = "\n") -> None:
    """Print a text, foreign ones in it included, on standard output."""
    print(printable(text), end=end)


def say(text: str) -> None:
    """The same on standard error."""
    print(printable(text), file=sys.stderr)


@contextmanager
def interruptible(goes_on: str) -> Iterator[None]:
    """Let Ctrl-C within the block end the command by 130; ``goes_on`` follows "Interrupted"."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"\nInterrupted{goes_on}")
        raise typer.Exit(130) from None


class Ended(KeyboardInterrupt):
    """Raised at a signal that asks for an end.

    One that is a plain KeyboardInterrupt, and is raised while text is executed (as named tuples do
    it when they are made), has Python end itself by SIGINT at its exit, though it was caught.
    """


def end_at_signals() -> None:
    """Have SIGTERM and SIGHUP end the command at once, as a second Ctrl-C would, by :class:`Ended`.

    Those that are ignored stay so.
    """
    sys.unraisablehook = _end_again
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


class Interruption:
    """A context in which the first Ctrl-C sets ``is_asked``, by which a search comes to an end; the
    next stops it at once, by :class:`Ended`.

    It is for the main thread, whose signals it takes over. Where Ctrl-C is ignored, as in what a
    script leaves behind by ``&``, it stays so.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._before: Any = None

    def __enter__(self) -> "Interruption":
        self._before = signal.getsignal(signal.SIGINT)
        if self._before != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:
            _end(number, frame)
        self.is_asked = True


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Ended


_any_unraisable = sys.unraisablehook


def _end_again(ignored: "sys.UnraisableHookArgs") -> None:
    """Ask for the end again where Python ignored that, as it does within callbacks of its own."""
    if isinstance(ignored.exc_value, Ended):
        # From another thread: raised here, it would be ignored like the first one.
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        _any_unraisable(ignored)
