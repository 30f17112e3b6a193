"""What runs in a worker, whatever started it: it prepares once, then carries out one task after
another. The driver hears of everything by events."""

import contextlib
import functools
import json
import pkgutil
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TextIO

from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.engine.interface import NO_TRIAL, Event
from levit_search.errors import InputError, LevitSearchError, TrialError, refused_by_disk
from levit_search.latency.host_lock import while_no_probe_runs
from levit_search.progress import Progress
from levit_search.study import StudyConfig

EVALUATOR = "levit_search.search.evaluate:Evaluator"
"""Where workers find what they do their work with."""

_MOST_DEATHS = 2  # of workers at one task

Decide = Callable[[int, dict[str, float]], bool]
"""Whether a candidate goes on after an epoch at which its values are these."""

Tell = Callable[[Event], None]


class Result(Protocol):
    """What an evaluator gives of a network."""

    def as_json(self) -> Mapping[str, object]: ...


class Evaluates(Protocol):
    """What a worker does its work with, such as :class:`levit_search.search.evaluate.Evaluator`.

    It is made of the study's configuration, the study's folder, what was settled before (a
    :class:`levit_search.engine.interface.Settled`), and the cores that it should keep to (None:
    any).
    """

    def prepare(self, sample: Architecture, progress: Progress) -> Mapping[str, object]:
        """Get what all evaluations need; returns ``settled_ms``, ``device``, ``data`` and so on."""

    def evaluate(
        self, network: Architecture, progress: Progress, decide: Decide, taught: bool = True
    ) -> Result:
        """Evaluate a network; one that is not ``taught`` is trained without the teacher."""

    def verify(self, network: Architecture, progress: Progress, decide: Decide) -> Result:
        """Measure or train a network of which that was predicted or inherited."""

    def compare(self, given: BaselineConfig, progress: Progress, decide: Decide) -> Result:
        """Count, measure and train a network of timm."""

    def remeasure(
        self, networks: Sequence[Architecture | BaselineConfig], progress: Progress
    ) -> Sequence[Result | TrialError]:
        """Measure networks anew and together; returns what kept one from being measured, too."""

    def close(self) -> None:
        """Let go of everything."""


@dataclass
class Task:
    """One piece of work for a worker.

    ``evaluate`` one network, with its teacher or ``evaluate_untaught``, ``verify`` one, or
    ``remeasure`` several. To ``evaluate`` a baseline is to compare with it.
    """

    do: Literal["evaluate", "evaluate_untaught", "verify", "remeasure"]
    trial: int
    networks: list[Architecture | BaselineConfig]
    deaths: int = 0
    """Of workers that were at it."""

    def note_death(self, reason: str, was_begun: bool = True) -> Event:
        """Count a worker that died; returns what is told of that, of kind ``failed`` where the task
        is not to be tried again. ``was_begun`` says whether the worker had begun with it."""
        self.deaths += was_begun
        if self.deaths == _MOST_DEATHS:
            return Event("failed", self.trial, reason)
        what = f"trial {self.trial}"
        if self.trial < 0:
            what = "measuring the costliest network" if self.trial == NO_TRIAL else "comparing"
        return Event("progress", None, f"{what} is started again: {reason}")


class TaskEngine:
    """The part of an engine that turns what the driver wants into tasks for workers."""

    def submit(
        self, trial: int, network: Architecture | BaselineConfig, taught: bool = True
    ) -> None:
        self.give(Task("evaluate" if taught else "evaluate_untaught", trial, [network]))

    def verify(self, trial: int, network: Architecture) -> None:
        self.give(Task("verify", trial, [network]))

    def remeasure(self, trial: int, networks: Sequence[Architecture | BaselineConfig]) -> None:
        self.give(Task("remeasure", trial, [*networks]))

    def give(self, task: Task) -> None:
        """Have a worker carry out a task. Only while the engine has room."""
        raise NotImplementedError


def evaluator_maker(name: str, config: StudyConfig, folder: Path) -> Callable[..., Evaluates]:
    """What makes evaluators of what was settled before and the cores to keep to.

    Importing it by its ``name``, ``module:attribute``, takes seconds; no probe runs meanwhile.
    """
    with while_no_probe_runs():
        return functools.partial(pkgutil.resolve_name(name), config, folder)


def work(
    make: Callable[[], Evaluates],
    sample: Architecture,
    tell: Tell,
    next_task: Callable[[], Task | None],
    answered: Callable[[], bool],
) -> None:
    """Make an evaluator, let it prepare, then carry out one task after another until there is none.

    An event tells how the preparation went; where it failed there are no tasks. ``answered`` is as
    of :func:`carry_out`, whose errors it raises.
    """
    made: list[Evaluates] = []
    with contextlib.ExitStack() as stack:

        def step(progress: Progress) -> Mapping[str, object]:
            made.append(stack.enter_context(contextlib.closing(make())))
            return made[0].prepare(sample, progress)

        if _attempt(None, step, tell):
            while (task := next_task()) is not None:
                carry_out(task, made[0], tell, answered)


def carry_out(task: Task, evaluator: Evaluates, tell: Tell, answered: Callable[[], bool]) -> None:
    """Do what a task says; whatever that raises is an event.

    ``answered`` waits for the driver's answer about the rung that was told last.

    Raises:
        EOFError, BrokenPipeError, ConnectionResetError: the connection to the driver has ended.
    """

    def step(progress: Progress) -> Mapping[str, object]:
        if task.do == "remeasure":
            results = evaluator.remeasure(task.networks, progress)
            return {
                "results": [
                    {"failed": str(each)} if isinstance(each, TrialError) else each.as_json()
                    for each in results
                ]
            }
        (network,) = task.networks
        if isinstance(network, BaselineConfig):
            found = evaluator.compare(network, progress, decide)
        elif task.do == "evaluate_untaught":
            found = evaluator.evaluate(network, progress, decide, taught=False)
        elif task.do == "verify":
            found = evaluator.verify(network, progress, decide)
        else:
            found = evaluator.evaluate(network, progress, decide)
        return found.as_json()

    def decide(epoch: int, values: dict[str, float]) -> bool:
        content = {"epoch": epoch, "values": dict(values)}
        tell(Event("rung", task.trial, content=content))
        return answered()

    _attempt(task.trial, step, tell)


def _attempt(
    trial: int | None, step: Callable[[Progress], Mapping[str, object]], tell: Tell
) -> bool:
    """Take a step and tell how it ended; returns whether that was well."""

    def progress(text: str, fraction: float | None) -> None:
        tell(Event("progress", trial, text, fraction))

    try:
        with _warnings_told(tell):
            found = step(progress)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        raise
    except Exception as error:
        with contextlib.suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
        expected = isinstance(error, LevitSearchError)
        text = str(error) if expected else f"{type(error).__name__}: {error}"
        content: dict[str, object] = {"wrong_input": isinstance(error, InputError)}
        if refusal := refused_by_disk(error):
            content["refused_by_disk"] = refusal
        tell(Event("failed", trial, " ".join(text.split())[:500], content=content))
        return False
    tell(Event("done", trial, content=json.loads(json.dumps(found))))
    return True


@contextlib.contextmanager
def _warnings_told(tell: Tell) -> Iterator[None]:
    """Tell the warnings of this package, which are meant for the user; the log has all."""
    logged = warnings.showwarning

    def told(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        logged(message, category, filename, lineno, file, line)
        if Path(filename).is_relative_to(Path(__file__).parents[1]):
            tell(Event("warning", None, " ".join(str(message).split())))

    # Not by catch_warnings, after which each one would be given again in every trial.
    warnings.showwarning = told
    try:
        yield
    finally:
        warnings.showwarning = logged
