"""The audit of a search: what it cost and brought, and what its front is worth beyond its luck.

The search's own val accuracies are those it chose by, with one seed; here the front's members are
trained with others, and the test split is looked at for the first time.
"""

import contextlib
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from levit_search import table
from levit_search.audit import figures
from levit_search.audit.kept import Accuracies, Kept
from levit_search.audit.membership import candidates, front_figures
from levit_search.errors import InputError, TrialError
from levit_search.progress import StepProgress
from levit_search.study import Record, Study

__all__ = ["audit"]


def audit(study: Study, seeds: int, jobs: int, progress: StepProgress) -> dict[str, Any]:
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
        (``{milestones, trajectory, shares, rungs, prediction, inheritance}``), all of
        :func:`levit_search.audit.membership.front_figures`, ``failed`` trainings, and ``networks``,
        their accuracies by id.

    Raises:
        InputError: no trial is complete, the study has no reference yet, another audit of it is at
            work, the data is missing, or the folder cannot be written.
    """
    kept = Kept(study.folder)
    records = study.records()
    front = table.front(records, study.config.objectives)
    if not front:
        raise InputError(
            f"{study.folder}: {len(records)} finished trials, none complete: there is no front to "
            "audit yet; `levit-search run` goes on with the search"
        )
    study.reference()  # where there is none, that is said before anything is trained
    with kept.lock():
        failed = _measure(study, front, kept, seeds, jobs, progress)
        document = _document(study, records, kept, failed)
        _write(document, kept)
    return {**document, "networks": {name: a.as_json() for name, a in kept.networks.items()}}


def _measure(
    study: Study, front: Sequence[Record], kept: Kept, seeds: int, jobs: int, progress: StepProgress
) -> list[dict[str, Any]]:
    """Fill in the accuracies that are not kept yet; returns those that could not be had."""
    if not study.config.is_trained:
        return []
    from levit_search.audit import retraining
    from levit_search.audit.retraining import Job

    first = study.config.search.seed
    todo: list[Job] = []
    for seed in (None, *range(first + 1, first + seeds + 1)):
        for record in front:
            network = record.architecture
            assert network is not None
            known = kept.networks.setdefault(network.id, Accuracies())
            if known.stored is None if seed is None else seed not in known.seeds:
                todo.append(Job(record.trial, network, seed, record.taught))
    failed = []
    ended = 0
    progress.begin("audit", len(todo))

    def running(text: str, fraction: float | None) -> None:
        # The step that is shown is the one that ended last; what runs comes on top of it.
        progress.update("" if ended else text, (fraction or 0.0) + (ended > 0))

    with contextlib.closing(retraining.carried_out(study, todo, jobs, running)) as outcomes:
        for job, found in outcomes:
            what = f"trial {job.trial}"
            what += ", the search's weights" if job.seed is None else f", seed {job.seed}"
            ended += 1
            if isinstance(found, TrialError):
                failed.append({"trial": job.trial, "seed": job.seed, "reason": str(found)})
                progress.step(f"{what}: {found}")
                continue
            known = kept.networks[job.network.id]
            if job.seed is None:
                known.stored = found
            else:
                known.seeds[job.seed] = found
            kept.save({"study": study.config.name, "finished": None})
            progress.step(
                f"{what}: val {found['val_top1_percent']:.2f} %, "
                f"test {found['test_top1_percent']:.2f} %"
            )
    with contextlib.suppress(OSError):  # not empty where another seed's training is still there
        (study.folder / "audit").rmdir()
    return failed


def _document(
    study: Study, records: Sequence[Record], kept: Kept, failed: list[dict[str, Any]]
) -> dict[str, Any]:
    config = study.config
    objectives, epochs = config.objectives, config.candidate_recipe.epochs
    reference = study.reference()
    supernet = study.attributes().get("supernet", {})
    before_s = supernet.get("seconds", 0.0)
    path = figures.trajectory(records, objectives, reference, before_s)
    saved = figures.savings(records, epochs)
    predicted = [
        record.values["prediction_error_percent"]
        for record in records
        if "prediction_error_percent" in record.values
    ]
    known = kept.networks if config.is_trained else {}
    found = candidates(records, objectives, known)
    return {
        "study": config.name,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "objectives": list(objectives),
        "trials": len(records),
        "search": {
            "milestones": path.milestones(),
            "trajectory": path.steps(),
            "shares": figures.shares(records, epochs),
            "rungs": saved.as_json() if saved is not None else None,
            "prediction": figures.prediction_errors(records),
            "inheritance": figures.inheritance(records, supernet),
        },
        **front_figures(found, objectives, reference, predicted),
        "failed": failed,
    }


def _write(document: dict[str, Any], kept: Kept) -> None:
    from levit_search.audit import pictures, render

    kept.save(document)
    kept.write("audit.svg", pictures.draw(document))
    kept.write("audit.md", render.markdown(document, "audit.svg"))
