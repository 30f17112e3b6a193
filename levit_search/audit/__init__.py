"""The audit of a search: what it cost and brought, and what its front is worth beyond its luck.

The search's own val accuracies are those it chose by, with one seed; here the front's members are
trained with others, and the test split is looked at for the first time.
"""

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from levit_search import table
from levit_search.architecture import Architecture
from levit_search.audit import search_cost, sections
from levit_search.audit.front_confidence import (
    Accuracies,
    Reevaluation,
    front_figures,
)
from levit_search.engine.interface import pass_on_warnings, settled_in
from levit_search.engine.local import LocalEngine
from levit_search.errors import InputError, TrialError
from levit_search.progress import Progress, StepProgress
from levit_search.results import ResultStore
from levit_search.study import EngineConfig, Record, Study

_REEVALUATOR = "levit_search.audit.reevaluation:Reevaluator"
_LOOKS_S = 0.5
_VERSION = 1  # of audit.json
_NETWORKS = TypeAdapter(dict[str, Accuracies])


class AuditStore(ResultStore):
    """``audit.json`` of a study folder: what was measured of each network, so that no training is
    done twice. Its lock is none of a search, which may go on meanwhile.

    Raises:
        InputError: there is an ``audit.json`` that cannot be read.
    """

    file_name, lock_name = "audit.json", ".audit.lock"
    held = "another levit-search audit is at work on this study"
    advice = "; remove it to audit anew"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.networks: dict[str, Accuracies] = {}
        """By id."""
        with self.reading() as raw:
            if raw is None:
                return
            version = raw["version"]
            if version == _VERSION:
                self.networks = _NETWORKS.validate_python(raw["networks"])
        if version != _VERSION:
            raise InputError(
                f"{self.path}: version {version!r} is not {_VERSION}, the one this release reads; "
                "remove it to audit anew"
            )

    def save(self, figures: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write ``figures`` and, by id, what was measured of each network; returns both.

        Raises:
            InputError: it cannot be written.
        """
        found = {**figures, "networks": _NETWORKS.dump_python(self.networks, mode="json")}
        self.write(self.file_name, {"version": _VERSION, **found})
        return found


def audit(study: Study, seeds: int, jobs: int, progress: StepProgress) -> Mapping[str, Any]:
    """Look at a study from all sides, and write ``audit.json``, ``audit.md`` and ``audit.svg``.

    What was measured of a network is kept in ``audit.json``; an audit that was interrupted, or is
    asked for again, goes on from there. The study itself is only read.

    Args:
        study: may be in the middle of its search.
        seeds: of how many other seeds each member of the front shall have been trained with: those
            after the study's own. 0 trains nothing.
        jobs: networks measured at once, each by a process with the recipe's threads.
        progress: shows what goes on.

    Returns:
        What ``audit.json`` holds: ``study``, ``finished``, ``objectives``, ``trials``, ``search``
        (``{milestones, trajectory, shares, rungs, settled, prediction, inheritance}``), all of
        :func:`levit_search.audit.front_confidence.front_figures`, ``failed`` trainings, and
        ``networks``, their accuracies by id.

    Raises:
        InputError: no trial is complete, the study has no reference yet, another audit of it is at
            work, the data is missing, or the folder cannot be written.
    """
    store = AuditStore(study.folder)
    records = study.records()
    front = table.front(records, study.config.objectives)
    if not front:
        raise InputError(
            f"{study.folder}: {len(records)} finished trials, none complete: there is no front to "
            "audit yet; `levit-search run` goes on with the search"
        )
    config, reference = study.config, study.reference()  # without one, nothing is trained
    objectives, epochs = config.objectives, config.candidate_recipe.epochs
    with store.lock():
        failed: list[Mapping[str, Any]] = []
        if config.is_trained:
            failed = _reevaluate(study, front, store, seeds, jobs, progress)
        supernet = study.attributes().get("supernet", {})
        path = search_cost.trajectory(records, objectives, reference, supernet.get("seconds", 0.0))
        saved = search_cost.savings(records, epochs)
        document = {
            "study": config.name,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "objectives": list(objectives),
            "trials": len(records),
            "search": {
                "milestones": path.milestones(),
                "trajectory": path.steps(),
                "shares": search_cost.shares(records, epochs),
                "rungs": asdict(saved) if saved is not None else None,
                "settled": search_cost.settled(records),
                "prediction": search_cost.prediction_errors(records),
                "inheritance": search_cost.inheritance(records, supernet),
            },
            **front_figures(
                records, objectives, store.networks if config.is_trained else {}, reference
            ),
            "failed": failed,
        }
        whole = store.save(document)
        store.write("audit.svg", sections.draw(document))
        store.write("audit.md", sections.markdown(document, "audit.svg"))
    return whole


@dataclass(frozen=True)
class Job:
    """A network to measure: with the weights that the search left, or trained with ``seed``."""

    trial: int
    network: Architecture
    seed: int | None
    taught: bool = True
    """Whether it learns from the study's teacher, as in the search."""

    def __str__(self) -> str:
        which = "the search's weights" if self.seed is None else f"seed {self.seed}"
        return f"trial {self.trial}, {which}"


def _reevaluate(
    study: Study,
    front: Sequence[Record],
    store: AuditStore,
    seeds: int,
    jobs: int,
    progress: StepProgress,
) -> list[Mapping[str, Any]]:
    """Fill in the accuracies that are not kept yet; returns those that could not be had."""
    first = study.config.search.seed
    todo: list[Job] = []
    for seed in (None, *range(first + 1, first + seeds + 1)):
        for record in front:
            network = record.architecture
            assert network is not None
            known = store.networks.setdefault(network.id, Accuracies())
            if known.stored is None if seed is None else seed not in known.seeds:
                todo.append(Job(record.trial, network, seed, record.taught))
    failed: list[Mapping[str, Any]] = []
    ended = 0
    progress.begin("audit", len(todo))

    def running(text: str, fraction: float | None) -> None:
        # The step that is shown is the one that ended last; what runs comes on top of it.
        progress.update("" if ended else text, (fraction or 0.0) + (ended > 0))

    with contextlib.closing(reevaluated(study, todo, jobs, running)) as outcomes:
        for job, found in outcomes:
            ended += 1
            if isinstance(found, TrialError):
                failed.append({"trial": job.trial, "seed": job.seed, "reason": str(found)})
                progress.step(f"{job}: {found}")
                continue
            known = store.networks[job.network.id]
            if job.seed is None:
                known.stored = found
            else:
                known.seeds[job.seed] = found
            store.save({"study": study.config.name, "finished": None})
            told = f"val {found.val_top1_percent:.2f} %, test {found.test_top1_percent:.2f} %"
            if found.test_top1_int8_percent is not None:
                told += f", in int8 {found.val_top1_int8_percent:.2f} and "
                told += f"{found.test_top1_int8_percent:.2f} %"
            progress.step(f"{job}: {told}")
    with contextlib.suppress(OSError):  # not empty where another seed's training is still there
        (study.folder / "audit").rmdir()
    return failed


def reevaluated(
    study: Study, jobs: Sequence[Job], processes: int, progress: Progress
) -> Generator[tuple[Job, Reevaluation | TrialError], None, None]:
    """Each job with what came of it, in the order in which they end.

    Jobs of one seed are done before those of the next, since they share a teacher's answers; those
    of stored weights come first, with the first seed's. ``progress`` is told a few times a second
    what goes on, and the sum of the fractions done of all that runs.

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
) -> Generator[tuple[Job, Reevaluation | TrialError], None, None]:
    """An engine of the search carries the jobs out, with reevaluators in its workers."""
    search = study.config.search.model_copy(update={"seed": seed})
    changed = {"search": search, "engine": EngineConfig(jobs=processes)}
    config = study.config.model_copy(update=changed)
    settled = settled_in(study.attributes())
    engine = LocalEngine(Study(study.folder, config), jobs[0].network, settled, _REEVALUATOR)
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
                if event.trial is None and event.kind == "failed":
                    is_wrong = event.content.get("wrong_input")
                    raise InputError(event.text) if is_wrong else TrialError(event.text)
                if event.trial is None:
                    doing = event.text
                elif event.kind == "progress":
                    job, _ = running[event.trial]
                    running[event.trial] = job, event.fraction or 0.0
                elif event.kind == "done":
                    yield running.pop(event.trial)[0], Reevaluation(**event.content)
                elif event.kind == "failed":
                    yield running.pop(event.trial)[0], TrialError(event.text)
            done = sum(fraction for _, fraction in running.values())
            progress("" if running else doing, done)
