"""The command that puts the paper's tables beside ours."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search.cli.networks import given_size, training_config
from levit_search.cli.options import Json, Settings
from levit_search.cli.printing import figures_table, print_json, print_table, say, tell
from levit_search.errors import InputError

if TYPE_CHECKING:
    from levit_search.reproduce import Results
    from levit_search.reproduce.paper import Table


def reproduce(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="grafting, variants, ablation or blocks.")
    ],
    columns: Annotated[
        str | None,
        typer.Option(
            help="static, speed, accuracy, comma-separated [default: static; blocks: speed]."
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="What accuracy is trained on: digits, fashion-mnist or folder.")
    ] = "digits",
    epochs: Annotated[int | None, typer.Option(help="Epochs to train.")] = None,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Pixels a side, or HxW such as 64x96, for accuracy."),
    ] = None,
    width_scale: Annotated[
        float, typer.Option(min=0.01, max=100, help="Multiplies widths and heads, for accuracy.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    target: Annotated[
        str | None,
        typer.Option(help="Where to time; see `targets` [default: paper-intel; blocks: cpu]."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in a timed run [default: the target's].")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of a timed run [default: the target's].")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Timing spent on each row.")] = 8.0,
    layout: Annotated[
        str, typer.Option(help="Timed as tokens (linear layers) or maps (1x1 convolutions).")
    ] = "tokens",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to [default: studies/TABLE].")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train again what is trained with these settings.")
    ] = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Put a table of the LeViT paper beside our own counts, timings and trainings.

    Results go to table.md, table.csv and results.json in the folder, row by row: a run that was
    interrupted goes on with the same command. Grafts are trained with a learning rate of 1e-3 and
    batches of 64, where --set does not say otherwise.
    """
    from levit_search.latency.targets import read_latency
    from levit_search.progress import StepProgress
    from levit_search.reproduce import (
        Request,
        Results,
        check_columns,
        failures,
        published_table,
    )
    from levit_search.reproduce import reproduce as measure
    from levit_search.study import parse_settings

    paper = published_table(table)
    default = "speed" if table == "blocks" else "static"
    wanted = [name.strip() for name in (columns or default).split(",") if name.strip()]
    changes = parse_settings(settings or [])
    for key in changes:
        if key.partition(".")[0] not in ("data", "train", "teacher", "latency"):
            raise InputError(f"--set {key}: only data, train, teacher and latency matter here")
    where = target or ("cpu" if table == "blocks" else "paper-intel")  # batch 16, one thread
    options = {"batch_size": batch_size, "threads": threads, "target": where}
    timing: dict[str, Any] = {
        "seconds": seconds,
        "layout": layout,
        **{name: value for name, value in options.items() if value is not None},
    }
    timing |= {
        key.partition(".")[2]: value for key, value in changes.items() if key.startswith("latency.")
    }
    given: dict[str, Any] = {
        "train.epochs": epochs,
        "data.image_size": given_size(image_size),
        "data.val_share": 0.05,  # for the curves alone; the figures are those of the test split
        "search.seed": seed,
    }
    if table == "grafting":  # at the LeViTs' rates the layers of a DeiT learn little in few epochs
        given |= {"train.lr": 1e-3, "train.batch_size": 64}
    request = Request(
        table=paper,
        columns=check_columns(paper, wanted),
        latency=read_latency(timing, "reproduce"),
        training=training_config(data, given, settings),
        width_scale=width_scale,
        environment=_environment(),
        again=fresh,
    )
    results = Results(out or Path("studies") / table, table)
    try:
        with results.lock(), StepProgress() as progress:
            measure(request, results, progress)
    except KeyboardInterrupt:
        say(f"\nInterrupted. What was measured is in {results.folder}; the same command goes on.")
        raise typer.Exit(130) from None
    failed = failures(results)
    if as_json:
        print_json(_document(paper, results))
    else:
        _print(paper, results)
    for row, reason in failed.items():
        say(f"levit-search: {row} failed: {reason}")
    if failed:
        raise typer.Exit(1)


def _print(paper: "Table", results: "Results") -> None:
    from levit_search.reproduce import COLUMNS, render

    tell(f"{paper.title}\n")  # a table would wrap its title at its own width
    for group in COLUMNS:  # all of them side by side would be too wide for a terminal
        if results.latest(group):
            heads, body = render.cells(paper, results, (group,))
            shown = figures_table("", heads)
            for row in body:
                shown.add_row(*row)
            print_table(shown)
            tell()
    for line in render.notes(paper, results):
        tell(line)
    picture = ", curves.svg" if results.latest("accuracy") else ""
    tell(f"\nIn {results.folder}: table.md, table.csv, results.json, study.yaml{picture}")


def _environment() -> dict[str, Any]:
    """What a reader of the table needs to know of this machine; its name is not part of that."""
    from levit_search.environment import environment

    found = environment(["levit-search", *sys.argv[1:]])
    return {name: value for name, value in found.items() if name not in ("host", "system")}


def _document(paper: "Table", results: "Results") -> dict[str, Any]:
    from levit_search.reproduce import render

    return {
        "table": paper.name,
        "rows": render.as_rows(paper, results),
        "runs": {
            run.columns: {
                "settings": run.settings,
                "environment": run.environment,
                "finished": run.finished,
                **run.extra,
            }
            for run in results.shown()
        },
        "notes": render.notes(paper, results),
    }
