"""Progress of something long: the function that takes it, and what a person sees on stderr."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from typing_extensions import Self

from levit_search.escaping import careful_console

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

Progress = Callable[[str, float | None], None]
"""Takes what is being done, empty where the caller knows, and which part of it is done, None where
that is not known."""


def no_progress(text: str, fraction: float | None) -> None:
    """A :data:`Progress` that nobody looks at."""


def within(what: str, progress: Progress) -> Progress:
    """The progress of a part of the work, whose texts come after the name of that part."""
    return lambda text, fraction: progress(", ".join(filter(None, (what, text))), fraction)


class LiveDisplay:
    """A context in which a terminal has a live part at its end; elsewhere there is none."""

    def __init__(self) -> None:
        self._console = careful_console(stderr=True)
        self._live: "Live | None" = None
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        from rich.live import Live

        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


class StepProgress(LiveDisplay):
    """Work in groups of named steps: a bar in a terminal, elsewhere a line for each news."""

    def __init__(self) -> None:
        super().__init__()
        self._group, self._count, self._index = "", 0, 0
        self._name, self._last_line = "", ""

    def begin(self, group: str, count: int) -> None:
        """A group of ``count`` steps comes next."""
        self._group, self._count, self._index = group, count, 0

    def tell(self, text: str) -> None:
        """Say something that stays."""
        (self._live.console if self._live else self._console).print(text, soft_wrap=True)

    def step(self, name: str) -> None:
        """The next step of the group."""
        self._index += 1
        self._name = name
        self.update("", 0.0)

    def update(self, text: str, fraction: float | None) -> None:
        """Progress within the step, see :data:`Progress`; more than 1 where several steps run."""
        gone = clock(time.monotonic() - self._begun)
        line = f"{self._group} {self._index}/{self._count} {self._name} {text}".rstrip()
        if self._live is not None:
            done = (max(0, self._index - 1) + (fraction or 0.0)) / max(1, self._count)
            self._live.update(bar(line, done, gone), refresh=True)
        elif line != self._last_line:
            self._console.print(f"[{gone}] {line}", soft_wrap=True)
        self._last_line = line


def bar(text: str, fraction: float | None, detail: str = "") -> "RenderableType":
    """A bar with a text; it pulses where it is not known which part is done."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 2))
    drawn = ProgressBar(total=1.0, completed=fraction or 0.0, width=24, pulse=fraction is None)
    row.add_row(drawn, Text(text), Text(detail, style="dim"))
    return row


def clock(seconds: float) -> str:
    """As ``1:02:03``, or ``2:03`` below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
