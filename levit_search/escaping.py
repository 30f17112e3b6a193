r"""Foreign text escaped for whatever takes it: terminals, files, JSON and shells.

Names and reasons may come from anybody's study folder, and names on a disk need not be text at all:
Python gives each byte that is none as half of a character, U+DC80 to U+DCFF, which no file of text
and no other program takes. It is written as ``\xNN`` here.
"""

import io
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

_KEPT = "\n\t\u00a0"
_HALVES = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` with an escape sequence for each character that would steer a terminal.

    Those are control characters, which could move the cursor, rename the window or hide what
    follows, characters that turn the direction of writing, and halves of characters, which no
    stream takes. Line ends and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in _KEPT else _escaped(each) for each in text)


def readable_name(text: str) -> str:
    """A foreign name, such as a class folder's, as one printable line that every file takes.

    Bytes that are no text and characters that cannot be seen are escaped, and so are backslashes,
    so that different names stay different. What this gives is for people: it is not to be given
    to this function again, nor taken for the name on the disk.
    """
    return "".join(
        letter if letter.isprintable() and letter != "\\" else _escaped(letter) for letter in text
    )


def encodable(text: str) -> str:
    """``text`` as a file in UTF-8 takes it: halves of characters are escaped, all else stays."""
    return _HALVES.sub(lambda half: _escaped(half[0]), text)


def encodable_json(document: Any) -> Any:
    """A document for JSON with :func:`encodable` texts alone, which parsers other than Python's
    insist on."""
    match document:
        case str():
            return encodable(document)
        case Mapping():
            return {encodable_json(key): encodable_json(each) for key, each in document.items()}
        case list() | tuple():
            return [encodable_json(each) for each in document]
    return document


def quoted(argument: str) -> str:
    r"""A command's argument as a shell takes it, on one printable line.

    Bytes that are no text, and what cannot be seen, are spelt as in ``$'caf\xe9'``, which bash
    and zsh know.
    """
    if argument.isprintable():
        return shlex.quote(argument)
    spelt = ""
    for letter in argument:
        if letter.isprintable():
            spelt += f"\\{letter}" if letter in "\\'" else letter
        else:
            how = "surrogateescape" if _is_byte(letter) else "surrogatepass"
            spelt += "".join(f"\\x{byte:02x}" for byte in letter.encode(errors=how))
    return f"$'{spelt}'"


def masked(text: str) -> str:
    """A text without the passwords of the addresses in it; ``${NAME}`` may be seen."""
    text = re.sub(r"(://[^:@/\s]*):(?!\$\{\w+\}@)\S*@", r"\1:***@", text)
    return re.sub(r"([?&]\w*passw(?:or)?d=)(?!\$\{\w+\}(?:&|$))[^&\s]*", r"\1***", text)


def _is_byte(letter: str) -> bool:
    """Whether it stands for a byte that is no text, as os.fsdecode gives it."""
    return "\udc80" <= letter <= "\udcff"


def _escaped(letter: str) -> str:
    if _is_byte(letter):
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if "\x80" <= letter <= "\xff":  # not to be taken for a byte
        return f"\\u{ord(letter):04x}"
    return letter.encode("unicode_escape").decode("ascii")


def escape_what_streams_lack() -> None:
    """Have standard output and error escape what their encoding, such as ASCII, has no place for,
    from now on; by default that ends the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def careful_console(**options: Any) -> "Console":
    """A rich console, to which markup in texts is text, that prints :func:`printable` text alone.

    Args:
        options: of ``rich.console.Console``.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Careful(Console):
        def render_str(self, text: str, **how: Any) -> "Text":
            # Measured as it is printed.
            shown = printable(text).encode(self.encoding, "backslashreplace")
            return super().render_str(shown.decode(self.encoding), **how)

        def render(
            self, renderable: "RenderableType", options: "ConsoleOptions | None" = None
        ) -> "Iterator[Segment]":
            for segment in super().render(renderable, options):
                if segment.control is None:
                    segment = Segment(printable(segment.text), segment.style)
                yield segment

    return Careful(highlight=False, markup=False, **options)
