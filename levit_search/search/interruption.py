"""What Ctrl-C means to a search: the first asks it to come to an end, the second ends it."""

import signal
from types import FrameType
from typing import Any


class Interruption:
    """A context in which the first Ctrl-C sets ``is_asked``; the next is a KeyboardInterrupt.

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

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
