"""The paper's tables, published figures beside ours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from levit_search.configuration import write_yaml
from levit_search.errors import InputError, UnknownNameError
from levit_search.latency.targets import TORCH_RUNTIMES, LatencyConfig
from levit_search.progress import StepProgress
from levit_search.reproduce import render
from levit_search.reproduce.paper import TABLES, Table, published_table
from levit_search.reproduce.results import COLUMNS, Results, Run

if TYPE_CHECKING:
    from levit_search.study import StudyConfig


@dataclass(frozen=True)
class Request:
    """What to reproduce, and how.

    ``training`` is used by the accuracy columns: its data, train and teacher sections and its seed.
    ``again`` repeats what is finished with the same settings; unfinished work is always gone on
    with, and timings are always repeated.
    """

    table: Table
    columns: tuple[str, ...]
    latency: LatencyConfig
    training: "StudyConfig"
    width_scale: float
    environment: dict[str, Any]
    again: bool


def check_columns(table: Table, columns: Sequence[str]) -> tuple[str, ...]:
    """The groups of columns in the order they are measured.

    Raises:
        InputError: a table has no such group.
    """
    known = ("speed",) if table.name == "blocks" else COLUMNS
    for name in columns:
        if name not in known:
            raise UnknownNameError(f"group of columns of {table.name}", name, known)
    if not columns:
        raise InputError(f"--columns: none named; known: {', '.join(known)}")
    return tuple(name for name in COLUMNS if name in columns)


def reproduce(request: Request, results: Results, progress: StepProgress) -> None:
    """Measure what is asked for, into ``results`` and its folder.

    All files are written after each row. An interrupted run goes on with the same settings. A row
    that fails says why under ``failed``, and the others follow.

    Args:
        request: what to measure.
        results: goes on from what it holds.
        progress: shows each group of columns, and its rows as steps.

    Raises:
        InputError: missing data, settings that the table does not have, a folder that cannot be
            written or is being filled by another command.
        TrialError: the teacher could not be trained.
    """
    table = request.table
    if table.name == "blocks" and request.latency.layout != "tokens":
        raise InputError("--layout: blocks are timed over tokens, as Table 6 is")
    if table.name == "blocks" and request.latency.runtime in TORCH_RUNTIMES:
        raise InputError("--target: blocks are timed on CPUs, by onnxruntime or openvino")

    for columns in request.columns:
        save = partial(_save, table, results, columns)
        settings = _settings(request, columns)
        keep = columns == "accuracy" and not request.again
        run = results.begin(columns, settings, request.environment, keep)
        if run.finished is None or columns == "static":
            progress.begin(columns, len(table.built))
            _fill(request, columns, run, progress, save)
            results.finish(run)
        save()


def failures(results: Results) -> dict[str, str]:
    """The rows of the latest runs that failed, by ``columns: row``, with the reason."""
    return {
        f"{run.columns}: {name}": row["failed"]
        for run in results.shown()
        for name, row in run.rows.items()
        if "failed" in row
    }


def _settings(request: Request, columns: str) -> dict[str, Any]:
    match columns:
        case "static":
            return {}
        case "speed":
            from levit_search.reproduce.speed import speed_settings

            return speed_settings(request.latency)
        case _:
            from levit_search.reproduce.accuracy import accuracy_settings

            return accuracy_settings(request.table, request.training, request.width_scale)


def _fill(
    request: Request,
    columns: str,
    run: Run,
    progress: StepProgress,
    save: Callable[[], None],
) -> None:
    table = request.table
    match columns:
        case "static":
            from levit_search.reproduce.static import static_row, stem_rows

            for row in table.built:
                progress.step(row.name)
                run.rows[row.name] = static_row(row)
            if "stems" in table.extra:
                run.extra["stems"] = stem_rows(table)
        case "speed" if table.name == "blocks":
            from levit_search.reproduce.blocks import fill_blocks

            fill_blocks(run, table, request.latency, progress.step, save)
        case "speed":
            from levit_search.reproduce.speed import fill_speed

            fill_speed(run, table, request.latency, progress.step, save)
        case _:
            from levit_search.reproduce.accuracy import fill_accuracy

            training, scale = request.training, request.width_scale
            fill_accuracy(run, table, training, scale, progress, save)


def _save(table: Table, results: Results, columns: str) -> None:
    """Write all files of the folder; the curves only where ``columns`` are what changes them."""
    results.save()
    accuracy = results.latest("accuracy")
    if columns == "accuracy" and accuracy is not None:
        from levit_search.reproduce.curves import draw_curves

        results.write("curves.svg", draw_curves(accuracy, table))
    results.write("table.csv", render.as_csv(table, results))
    results.write("table.md", render.as_markdown(table, results))
    settings = {
        run.columns: {"finished": run.finished, "settings": run.settings, **run.environment}
        for run in results.shown()
    }
    results.write("study.yaml", write_yaml({"reproduces": table.name, **settings}))


__all__ = [
    "COLUMNS",
    "TABLES",
    "Request",
    "Results",
    "check_columns",
    "failures",
    "published_table",
    "render",
    "reproduce",
]
