"""What a search tells: the callback interface, the callback for a terminal, and the summary."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from levit_search import table
from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.pareto import hypervolume, minimised
from levit_search.progress import LiveDisplay, bar, clock
from levit_search.search.trials import SearchStatus
from levit_search.significance import UNJUDGED, Verdict
from levit_search.study import BaselineRecord, Record, Study

if TYPE_CHECKING:
    from rich.console import RenderableType

_FRONT_ROWS = 12


class Callback:
    """What happens in a search. Each method does nothing; a callback overrides those it needs.

    They are called in the driver's process, between its own steps, and should take little time. A
    :class:`levit_search.errors.LevitSearchError` that one raises ends the search.
    """

    def on_search_start(self, status: SearchStatus) -> None:
        """The trials of earlier sessions have been read; nothing new has begun."""

    def on_progress(self, text: str, fraction: float | None) -> None:
        """Something that is no single trial's, such as the setup of a worker, has come to a step;
        see :data:`levit_search.progress.Progress`."""

    def on_trial_start(self, trial: int, network: Architecture | BaselineConfig) -> None:
        """A trial is being evaluated, or a baseline, whose number is below 0."""

    def on_trial_progress(self, trial: int, text: str, fraction: float | None) -> None:
        """A running trial, or baseline, has come to a step."""

    def on_trial_result(self, trial: int, epoch: int, top1_percent: float) -> None:
        """A running trial has come to a rung, with this accuracy on the ``val`` split."""

    def on_trial_complete(self, record: Record, status: SearchStatus, left_s: float | None) -> None:
        """A trial has ended, or has figures of its own now in the place of estimates.

        Args:
            record: of the trial.
            status: of all that have ended. Trials taken over from another study are in it without
                a call of their own.
            left_s: the time that the rest will take; None where that is not known.
        """

    def on_baseline_complete(self, trial: int, record: BaselineRecord) -> None:
        """A baseline has its figures, or has failed."""

    def on_loop_end(self) -> None:
        """Called a few times a second, for clocks."""

    def on_search_end(self) -> None:
        """The search has ended, or was interrupted, or an error ends it."""


class CallbackList(Callback):
    """Several callbacks as one: what is called of it is called of each, in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = tuple(callbacks)
        for name in vars(Callback):
            if name.startswith("on_"):
                setattr(self, name, partial(self._call, name))

    def _call(self, name: str, *arguments: Any) -> None:
        for each in self._callbacks:
            getattr(each, name)(*arguments)


@dataclass(frozen=True)
class Summary:
    """How a search ended. ``seconds`` are this session's, ``trials`` counts all of the study's, see
    :data:`levit_search.search.trials.COUNTS`."""

    study: str
    trials: dict[str, int]
    seconds: float
    hypervolume: float
    front: list[Record]
    stopped_because: str
    is_interrupted: bool = False
    """Whether it was asked to stop before its budget was used up."""
    verdict: Verdict = UNJUDGED
    """What the accuracies are worth."""
    teacher_choice: Mapping[str, Any] | None = None
    """What ``teacher: auto`` came to, see :func:`levit_search.significance.teacher_choice`."""
    baselines: Sequence[BaselineRecord] = ()
    """What the search is compared with."""


def front_volume(front: list[Record], study: Study) -> float:
    """The hypervolume of a front from the reference that is kept with the study."""
    points = minimised([record.values for record in front], study.config.objectives)
    return hypervolume(points, study.reference())


class SearchProgress(LiveDisplay, Callback):
    """Shows a search live in a terminal; elsewhere it prints a line for each thing that happens."""

    def __init__(self, study: Study) -> None:
        super().__init__()
        self._study = study
        self._left_s: float | None = None
        self._left_told = self._begun
        self._doing = "starting the worker"
        self._fraction: float | None = None
        self._current: dict[int, tuple[Architecture | BaselineConfig, str, float | None]] = {}
        self._status = SearchStatus(study.config.objectives)
        self._last_line = ""

    def on_progress(self, text: str, fraction: float | None) -> None:
        self._doing, self._fraction = text, fraction
        self._line(text, only_if_new=True)

    def on_trial_start(self, trial: int, network: Architecture | BaselineConfig) -> None:
        self._doing = ""
        self._current[trial] = (network, "starting", None)

    def on_trial_progress(self, trial: int, text: str, fraction: float | None) -> None:
        self._doing = ""
        self._current[trial] = (self._current[trial][0], text, fraction)

    def on_trial_complete(self, record: Record, status: SearchStatus, left_s: float | None) -> None:
        self._current.pop(record.trial, None)
        self._status = status
        self._left_s, self._left_told = left_s, time.monotonic()
        left = f"  about {clock(left_s)} left" if left_s is not None else ""
        self._line(_outcome(record, self._study) + left)

    def on_baseline_complete(self, trial: int, record: BaselineRecord) -> None:
        self._current.pop(trial, None)
        found = f" failed: {record.reason}"
        if record.is_complete:
            found = f": {_figures(record.values, self._study)}"
        self._line(f"{record.summary}{found}")

    def on_loop_end(self) -> None:
        if self._live is not None:
            self._live.update(self._shown(), refresh=True)

    def _line(self, text: str, only_if_new: bool = False) -> None:
        if self._live is None and not (only_if_new and text == self._last_line):
            gone = clock(time.monotonic() - self._begun)
            self._console.print(f"[{gone}] {text}", soft_wrap=True)
        self._last_line = text

    def _shown(self) -> "RenderableType":
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [Text(self._headline(), style="bold")]
        if self._doing:
            parts.append(bar(self._doing, self._fraction))
        for trial, (network, text, fraction) in self._current.items():
            what = f"trial {trial}" if trial >= 0 else "comparing"
            parts.append(bar(f"{what}: {text}", fraction, network.summary()))
        objectives, best = self._study.config.objectives, self._status.front
        if best:
            more = f", {_FRONT_ROWS} of {len(best)}" if len(best) > _FRONT_ROWS else ""
            parts.append(table.terminal(best[:_FRONT_ROWS], objectives, f"\nfront so far{more}"))
        return Group(*parts)

    def _headline(self) -> str:
        budget, now = self._study.config.search.trials, time.monotonic()
        of = f" of {budget}" if budget is not None else ""
        counts = self._status.counts
        parts = [f"{self._study.config.name}: {counts['evaluated']}{of} networks"]
        words = {
            "stopped": "stopped early",
            "infeasible": "over a limit",
            "reused": "known already",
            "failed": "failed",
            "taken": "taken over",
        }
        parts += [f"{counts[name]} {word}" for name, word in words.items() if counts[name]]
        parts.append(f"{clock(now - self._begun)} gone")
        if self._left_s is not None:
            left_s = max(0.0, self._left_s - (now - self._left_told))
            parts.append(f"about {clock(left_s)} left")
        return ", ".join(parts)


def _outcome(record: Record, study: Study) -> str:
    """A line on a trial that has ended."""
    if record.state != "complete" and not record.is_stopped:
        return f"trial {record.trial} {record.state}: {record.reason}"
    if record.is_stopped:
        accuracy = table.named_figure("top1_percent", record.rungs[-1]["top1_percent"])
        found = f"trial {record.trial} {record.reason}: {accuracy}"
    else:
        found = f"trial {record.trial}: {_figures(record.values, study)}"
    assert record.architecture is not None
    again = f" (known from trial {record.reused_from})" if record.reused_from is not None else ""
    if record.resumes is not None:
        again = f" (paused in trial {record.resumes}, went on)"
    return f"{found}  {record.architecture.summary()}{again}"


def _figures(values: Mapping[str, float], study: Study) -> str:
    return ", ".join(table.named_figure(name, values[name]) for name in study.config.objectives)
