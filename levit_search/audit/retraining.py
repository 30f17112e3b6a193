"""Members of a front measured on the test split, and trained with other seeds.

An engine of the search carries the work out, with :class:`levit_search.audit.examiner.Examiner` in
its workers.
"""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from levit_search.architecture import Architecture
from levit_search.engine.interface import Event, pass_on_warnings
from levit_search.engine.local import LocalEngine
from levit_search.errors import InputError, TrialError
from levit_search.progress import Progress
from levit_search.study import EngineConfig, Study

_EXAMINER = "levit_search.audit.examiner:Examiner"
_LOOKS_S = 0.5


@dataclass(frozen=True)
class Job:
    """A network to measure: with the weights that the search left, or trained with ``seed``."""

    trial: int
    network: Architecture
    seed: int | None
    taught: bool = True
    """Whether it learns from the study's teacher, as in the search."""


Found = dict[str, Any] | TrialError
"""``{val_top1_percent, test_top1_percent, val_images, test_images, seconds}``, or why not."""


def carried_out(
    study: Study, jobs: Sequence[Job], processes: int, progress: Progress
) -> Generator[tuple[Job, Found], None, None]:
    """Each job with what came of it, in the order in which they end.

    Jobs of one seed are done before those of the next, since they share a teacher's answers.

    Args:
        study: whose recipe, teacher and weights are used.
        jobs: those of stored weights come first, with the first seed's.
        processes: workers, each with the recipe's threads.
        progress: told a few times a second what goes on, and the sum of the fractions done of all
            that runs.

    Raises:
        InputError: data, teacher or donor weights are missing or unfit.
        TrialError: no worker could be started.
    """
    stored = [job for job in jobs if job.seed is None]
    seeds = sorted({job.seed for job in jobs if job.seed is not None})
    for seed in seeds or [study.config.search.seed] * bool(stored):
        group = [*stored, *(job for job in jobs if job.seed == seed)]
        stored = []
        yield from _with_seed(study, seed, group, min(processes, len(group)), progress)


def _with_seed(
    study: Study, seed: int, jobs: Sequence[Job], processes: int, progress: Progress
) -> Generator[tuple[Job, Found], None, None]:
    config = study.config
    changed = config.model_copy(
        update={
            "search": config.search.model_copy(update={"seed": seed}),
            "engine": EngineConfig(jobs=processes),
        }
    )
    engine = LocalEngine(Study(study.folder, changed), jobs[0].network, {}, _EXAMINER)
    waiting = list(reversed(jobs))
    running: dict[int, tuple[Job, float]] = {}
    doing = "starting"
    with contextlib.closing(engine):
        while waiting or running:
            while waiting and engine.has_room():
                job = waiting.pop()
                # An engine knows jobs by number; one trial may have two here.
                number = len(waiting)
                running[number] = job, 0.0
                if job.seed is None:
                    engine.verify(number, job.network)
                else:
                    engine.submit(number, job.network, job.taught)
            for event in pass_on_warnings(engine.events(_LOOKS_S)):
                if event.trial is None:
                    _check(event)
                    doing = event.text
                elif event.kind == "progress":
                    job, _ = running[event.trial]
                    running[event.trial] = job, event.fraction or 0.0
                elif event.kind == "done":
                    yield running.pop(event.trial)[0], event.content
                elif event.kind == "failed":
                    yield running.pop(event.trial)[0], TrialError(event.text)
            done = sum(fraction for _, fraction in running.values())
            progress("" if running else doing, done)


def _check(event: Event) -> None:
    if event.kind == "failed":
        raise InputError(event.text) if event.content.get("wrong_input") else TrialError(event.text)
