"""Foreign text made fit for a terminal: names and reasons may come from anybody's study folder."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

_KEPT = "\n\t"


def printable(text: str) -> str:
    """``text`` with an escape sequence for each character that would steer a terminal.

    Those are control characters, which could move the cursor, rename the window or hide what
    follows, characters that turn the direction of writing, and halves of characters, which no
    stream takes. Line ends and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter
        if letter.isprintable() or letter in _KEPT or letter == "\u00a0"
        else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def careful_console(**options: Any) -> "Console":
    """A rich console, to which markup in texts is text, that prints :func:`printable` text alone.

    Args:
        options: of ``rich.console.Console``.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Careful(Console):
        def render_str(self, text: str, **how: Any) -> "Text":
            return super().render_str(printable(text), **how)  # measured as it is printed

        def render(
            self, renderable: "RenderableType", options: "ConsoleOptions | None" = None
        ) -> "Iterator[Segment]":
            for segment in super().render(renderable, options):
                if segment.control is None:
                    segment = Segment(printable(segment.text), segment.style)
                yield segment

    return Careful(highlight=False, markup=False, **options)
