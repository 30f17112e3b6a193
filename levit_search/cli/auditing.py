"""The command that looks back on a search."""

import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search.cli.options import DataFolder, Json, StudyFolder
from levit_search.cli.printing import figures_table, print_json, print_table, say, tell

if TYPE_CHECKING:
    from levit_search.study import Study


def audit(
    study: StudyFolder,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Further seeds to train the front with.")
    ] = 2,
    jobs: Annotated[int, typer.Option(min=1, help="Networks trained at once.")] = 1,
    retrain: Annotated[
        bool, typer.Option("--retrain/--no-retrain", help="Train the front with further seeds.")
    ] = True,
    data: DataFolder = None,
    as_json: Json = False,
) -> None:
    """Tell what a search cost and brought, and what its front is worth beyond its luck.

    Each network on the front is trained again with further seeds and measured on the test split,
    which no search reads. Results go to audit.json, audit.md and audit.svg in the study folder,
    network by network: an audit that was interrupted goes on with the same command.
    """
    from levit_search.audit import audit as look
    from levit_search.progress import StepProgress
    from levit_search.study import Study

    opened = Study.open(study).with_data(data)
    try:
        with opened.reading_data(), StepProgress() as progress:
            document = look(opened, seeds if retrain else 0, jobs, progress)
    except KeyboardInterrupt:
        say(f"\nInterrupted. What was measured is in {study}; the same command goes on.")
        raise typer.Exit(130) from None
    if as_json:
        print_json(document)
    else:
        _print(document, opened)
    for found in document["failed"]:
        seed = "" if found["seed"] is None else f", seed {found['seed']}"
        say(f"levit-search: trial {found['trial']}{seed}: {found['reason']}")
    if document["failed"]:
        raise typer.Exit(1)


def _print(document: dict[str, Any], study: "Study") -> None:
    from levit_search.audit.render import sections

    tell(f"Audit of {study.folder}: {document['trials']} proposals\n")
    for section in sections(document):
        if section.rows:
            shown = figures_table(section.title, section.heads)
            for row in section.rows:
                shown.add_row(*row)
            print_table(shown)
        for note in section.notes:
            tell(textwrap.fill(note, 100))
        tell()
    tell(f"In {study.folder}: audit.md, audit.json, audit.svg")
