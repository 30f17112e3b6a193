"""A worker's life, whatever started it: it prepares once, then evaluates what it is sent."""

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import pkgutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from levit_search import architecture as architectures
from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.configuration import validated
from levit_search.errors import InputError, LevitSearchError, TrialError, refused_by_disk
from levit_search.latency.sharing import while_no_probe_runs
from levit_search.printable import escape_what_streams_lack
from levit_search.progress import Progress
from levit_search.search.engine import Event
from levit_search.study import StudyConfig

EVALUATOR = "levit_search.search.evaluate:Evaluator"
"""Where workers find what they do their work with."""

Decide = Callable[[int, dict[str, float]], bool]


class Evaluates(Protocol):
    """What a worker does its work with, such as :class:`levit_search.search.evaluate.Evaluator`.

    It is made of the study's configuration, the study's folder, the reference's latency by id as
    far as that is known, and the cores that it should keep to (None: any).
    """

    def prepare(self, sample: Architecture, progress: Progress) -> dict[str, Any]:
        """Get what all evaluations need; returns ``settled_ms``, ``device``, ``data`` and so on."""

    def evaluate(
        self, network: Architecture, progress: Progress, decide: Decide, taught: bool = True
    ) -> Any:
        """Evaluate a network; what it returns has a method ``as_json``. One that is not ``taught``
        is trained without the teacher."""

    def verify(self, network: Architecture, progress: Progress, decide: Decide) -> Any:
        """Measure or train a network of which that was predicted or inherited; what it returns
        has ``as_json``."""

    def compare(self, given: BaselineConfig, progress: Progress, decide: Decide) -> Any:
        """Count, measure and train a network of timm; what it returns has ``as_json``."""

    def remeasure(
        self, networks: Sequence[Architecture | BaselineConfig], progress: Progress
    ) -> Sequence[Any]:
        """Measure networks anew and together; returns for each what has ``as_json``, or the
        TrialError that kept it from being measured."""

    def close(self) -> None:
        """Let go of everything."""


class Steps:
    """Takes one step of work after another and tells of each.

    Whatever a step raises is an event, except for the end of the connection to the driver
    (``EOFError``, ``BrokenPipeError``, ``ConnectionResetError``).

    Args:
        evaluator: does the work.
        tell: called with each event.
        answered: waits for the driver's answer about the rung that was told last.
    """

    def __init__(
        self, evaluator: Evaluates, tell: Callable[[Event], None], answered: Callable[[], bool]
    ) -> None:
        self._evaluator, self._tell, self._answered = evaluator, tell, answered

    def prepare(self, sample: dict[str, Any]) -> bool:
        """Prepare for the images of a network, ``sample``; returns whether that worked."""
        network = architectures.parse(sample)
        return self._attempt(None, lambda progress: self._evaluator.prepare(network, progress))

    def take(self, do: str, trial: int, described: Sequence[dict[str, Any]]) -> None:
        """``evaluate`` one network, with its teacher or ``evaluate_untaught``, ``verify`` one, or
        ``remeasure`` several.

        To ``evaluate`` a baseline is to compare with it.
        """

        def step(progress: Progress) -> dict[str, Any]:
            networks = [_parsed(each) for each in described]
            if do == "remeasure":
                results = self._evaluator.remeasure(networks, progress)
                return {
                    "results": [
                        {"failed": str(each)} if isinstance(each, TrialError) else each.as_json()
                        for each in results
                    ]
                }
            (network,) = networks
            if isinstance(network, BaselineConfig):
                found = self._evaluator.compare(network, progress, decide)
            elif do == "evaluate_untaught":
                found = self._evaluator.evaluate(network, progress, decide, taught=False)
            else:
                work = self._evaluator.verify if do == "verify" else self._evaluator.evaluate
                found = work(network, progress, decide)
            content: dict[str, Any] = found.as_json()
            return content

        def decide(epoch: int, values: dict[str, float]) -> bool:
            content = {"epoch": epoch, "values": dict(values)}
            self._tell(Event("rung", trial, content=content))
            return self._answered()

        self._attempt(trial, step)

    def _attempt(self, trial: int | None, step: Callable[[Progress], dict[str, Any]]) -> bool:
        def progress(text: str, fraction: float | None) -> None:
            self._tell(Event("progress", trial, text, fraction))

        try:
            with _warnings_told(self._tell):
                content = step(progress)
        except (BrokenPipeError, ConnectionResetError, EOFError):
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # the log's disk may be full
                traceback.print_exc()
            expected = isinstance(error, LevitSearchError)
            text = str(error) if expected else f"{type(error).__name__}: {error}"
            content = {
                "wrong_input": isinstance(error, InputError),
                "refused_by_disk": refused_by_disk(error),
            }
            self._tell(Event("failed", trial, " ".join(text.split())[:500], content=content))
            return False
        self._tell(Event("done", trial, content=json.loads(json.dumps(content))))
        return True


def _parsed(described: dict[str, Any]) -> Architecture | BaselineConfig:
    """What the driver sent the dump of; architectures alone have a family."""
    if "family" in described:
        return architectures.parse(described)
    return BaselineConfig.model_validate(described)


@contextlib.contextmanager
def _warnings_told(tell: Callable[[Event], None]) -> Iterator[None]:
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


def serve(
    connection: "multiprocessing.connection.Connection",
    config: dict[str, Any],
    folder: str,
    log: str,
    evaluator: str,
    cores: frozenset[int] | None,
) -> None:
    """A worker process of this machine, until the driver is gone.

    Everything is imported at once, since that takes seconds, and then waits to be told to prepare.

    Args:
        connection: to the driver, which sends ``sample`` and ``settled_ms``, then one step after
            another and the answers about rungs; events come back.
        config: of the study.
        folder: of the study.
        log: the file that takes what is printed.
        evaluator: ``module:attribute``.
        cores: those to keep to; None for any.
    """
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # Ctrl-C is the driver's to answer
    # SIGTERM must reach the probe's worker as well; ending by exception runs the clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _end_with_parent()
    # Pictures are read by processes of our own, which a daemon may not have; we end them ourselves.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    lines = open(log, "a", buffering=1)  # noqa: SIM115 (lives as long as we)
    os.dup2(lines.fileno(), 1)
    os.dup2(lines.fileno(), 2)
    escape_what_streams_lack()
    with while_no_probe_runs():
        make: Callable[..., Evaluates] = pkgutil.resolve_name(evaluator)
    settings = validated(StudyConfig, config, folder)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, EOFError):
        sample, settled_ms = connection.recv()
        with contextlib.closing(make(settings, Path(folder), settled_ms, cores)) as made:
            steps = Steps(made, connection.send, connection.recv)
            prepared = steps.prepare(sample)
            while prepared:
                steps.take(*connection.recv())


def _end_with_parent() -> None:
    """End at once when the driver is gone, however it went: nobody would read the result."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
