"""Results of a command in a folder: one JSON file that is gone on with, tables and pictures."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from levit_search.errors import InputError, writing
from levit_search.files import held_lock, read_checksummed, write_atomically, write_checksummed


class ResultStore:
    """Results that a command keeps in a folder, so that it goes on where it was interrupted.

    Args:
        folder: it is made by the first :meth:`lock` or :meth:`write`.
    """

    file_name: ClassVar[str]
    """Of the JSON file, which carries a checksum."""
    lock_name: ClassVar[str]
    held: ClassVar[str]
    """What is said where another command holds the lock."""
    advice: ClassVar[str] = ""
    """What to do with a file that cannot be read, for the end of the message."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        """Of the JSON file."""
        return self.folder / self.file_name

    @contextmanager
    def reading(self) -> Iterator[Mapping[str, Any] | None]:
        """The content of the JSON file, to be taken apart in the block; None where there is none.

        Raises:
            InputError: it is damaged, or the block finds it to be of another shape.
        """
        try:
            yield read_checksummed(self.path) if self.path.exists() else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self.path}: cannot be read ({reason}){self.advice}") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against another command that fills it.

        Raises:
            InputError: there is one, or the folder cannot be written.
        """
        with ExitStack() as stack:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                told = f"{self.folder}: {self.held}"
                stack.enter_context(held_lock(self.folder / self.lock_name, told))
            yield

    def write(self, name: str, content: str | bytes | Mapping[str, Any]) -> None:
        """Write a file of the folder, whole or not at all; a mapping as JSON with a checksum.

        Raises:
            InputError: the folder cannot be written.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str | bytes):
                write_atomically(self.folder / name, content)
            else:
                write_checksummed(self.folder / name, content)


@dataclass(frozen=True)
class Section:
    """A table with what there is to say below it; either may be empty."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    notes: list[str]


def markdown_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[str]
) -> list[str]:
    """The lines of a Markdown table; columns are aligned right but for those headed ``words``."""
    rules = ["---" if head in words else "---:" for head in heads]
    return [f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows)]
