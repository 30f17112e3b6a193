"""What a person sees on stderr while something long runs."""

import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from levit_search import table
from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.printable import careful_console
from levit_search.study import BaselineRecord, Record, Study

if TYPE_CHECKING:
    from levit_search.search.trials import SearchStatus

_FRONT_ROWS = 12

_Shown = TypeVar("_Shown", bound="_OnStderr")


class _OnStderr:
    """A context in which a terminal has a live part at its end; elsewhere there is none."""

    def __init__(self) -> None:
        self._console = careful_console(stderr=True)
        self._live: Live | None = None
        self._begun = time.monotonic()

    def __enter__(self: _Shown) -> _Shown:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()


class SearchProgress(_OnStderr):
    """A search, live in a terminal; elsewhere one line for each thing that happens."""

    def __init__(self, study: Study) -> None:
        super().__init__()
        self._study = study
        self._left_s: float | None = None
        self._left_told = self._begun
        self._preparing = "starting the worker"
        self._fraction: float | None = None
        self._current: dict[int, tuple[Architecture | BaselineConfig, str, float | None]] = {}
        self._status: "SearchStatus | None" = None
        self._last_line = ""

    def preparing(self, text: str, fraction: float | None) -> None:
        self._preparing, self._fraction = text, fraction
        self._line(text, only_if_new=True)

    def started(self, trial: int, network: Architecture | BaselineConfig) -> None:
        self._preparing = ""
        self._current[trial] = (network, "starting", None)

    def progress(self, trial: int, text: str, fraction: float | None) -> None:
        self._preparing = ""
        network, _, _ = self._current[trial]
        self._current[trial] = (network, text, fraction)

    def at_rung(self, trial: int, epoch: int, top1_percent: float) -> None: ...

    def finished(self, record: Record, status: "SearchStatus", left_s: float | None) -> None:
        self._current.pop(record.trial, None)
        self._status = status
        self._left_s, self._left_told = left_s, time.monotonic()
        left = f"  about {_clock(left_s)} left" if left_s is not None else ""
        self._line(_outcome(record, self._study) + left)

    def compared(self, trial: int, record: BaselineRecord) -> None:
        self._current.pop(trial, None)
        if record.is_complete:
            self._line(f"{record.summary}: {_figures(record.values, self._study)}")
        else:
            self._line(f"{record.summary} failed: {record.reason}")

    def tick(self) -> None:
        if self._live is not None:
            self._live.update(self._shown(), refresh=True)

    def _line(self, text: str, only_if_new: bool = False) -> None:
        if self._live is None and not (only_if_new and text == self._last_line):
            stamp = _clock(time.monotonic() - self._begun)
            self._console.print(f"[{stamp}] {text}", soft_wrap=True)
        self._last_line = text

    def _shown(self) -> RenderableType:
        parts: list[RenderableType] = [Text(self._headline(), style="bold")]
        if self._preparing:
            parts.append(_step(self._preparing, self._fraction))
        for trial, (network, text, fraction) in self._current.items():
            what = f"trial {trial}" if trial >= 0 else "comparing"
            parts.append(_step(f"{what}: {text}", fraction, network.summary()))
        objectives = self._study.config.objectives
        best = self._status.front if self._status is not None else []
        if best:
            more = f", {_FRONT_ROWS} of {len(best)}" if len(best) > _FRONT_ROWS else ""
            parts.append(table.terminal(best[:_FRONT_ROWS], objectives, f"\nfront so far{more}"))
        return Group(*parts)

    def _headline(self) -> str:
        budget, now = self._study.config.search.trials, time.monotonic()
        of = f" of {budget}" if budget is not None else ""
        counts = self._status.counts if self._status is not None else Counter[str]()
        parts = [f"{self._study.config.name}: {counts['evaluated']}{of} networks"]
        words = {
            "stopped": "stopped early",
            "infeasible": "over a limit",
            "reused": "known already",
            "failed": "failed",
            "taken": "taken over",
        }
        parts += [f"{counts[name]} {word}" for name, word in words.items() if counts[name]]
        parts.append(f"{_clock(now - self._begun)} gone")
        if self._left_s is not None:
            left_s = max(0.0, self._left_s - (now - self._left_told))
            parts.append(f"about {_clock(left_s)} left")
        return ", ".join(parts)


class StepProgress(_OnStderr):
    """Work in groups of named steps: a bar in a terminal, elsewhere a line for each thing told."""

    def __init__(self) -> None:
        super().__init__()
        self._group, self._count, self._index = "", 0, 0
        self._name, self._last_line = "", ""

    def begin(self, group: str, count: int) -> None:
        """A group of ``count`` steps comes next."""
        self._group, self._count, self._index = group, count, 0

    def step(self, name: str) -> None:
        """The next step of the group."""
        self._index += 1
        self._name = name
        self.told("", 0.0)

    def told(self, text: str, fraction: float | None) -> None:
        """What goes on within the step, and which part of it is done."""
        clock = _clock(time.monotonic() - self._begun)
        line = f"{self._group} {self._index}/{self._count} {self._name} {text}".rstrip()
        if self._live is not None:
            done = (max(0, self._index - 1) + (fraction or 0.0)) / max(1, self._count)
            self._live.update(_step(line, done, clock), refresh=True)
        elif line != self._last_line:
            self._console.print(f"[{clock}] {line}", soft_wrap=True)
        self._last_line = line


def _step(text: str, fraction: float | None, detail: str = "") -> RenderableType:
    row = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=1.0, completed=fraction or 0.0, width=24, pulse=fraction is None)
    row.add_row(bar, Text(text), Text(detail, style="dim"))
    return row


def _outcome(record: Record, study: Study) -> str:
    if record.is_stopped:
        accuracy = table.named_figure("top1_percent", record.rungs[-1]["top1_percent"])
        return f"trial {record.trial} {record.reason}: {accuracy}{_shape(record)}"
    if record.state != "complete":
        return f"trial {record.trial} {record.state}: {record.reason}"
    return f"trial {record.trial}: {_figures(record.values, study)}{_shape(record)}"


def _figures(values: Mapping[str, float], study: Study) -> str:
    return ", ".join(table.named_figure(name, values[name]) for name in study.config.objectives)


def _shape(record: Record) -> str:
    assert record.architecture is not None
    again = f" (known from trial {record.reused_from})" if record.reused_from is not None else ""
    return f"  {record.architecture.summary()}{again}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
