"""The command that makes a damaged study whole again."""

from typing import TYPE_CHECKING, Annotated

import typer

from levit_search.cli.options import Json, StudyFolder
from levit_search.cli.printing import print_json, say, tell
from levit_search.printable import quoted

if TYPE_CHECKING:
    from levit_search.study.restoring import Restored

_TELL_EVERY = 100


def restore(
    study: StudyFolder,
    force: Annotated[
        bool, typer.Option("--force", help="Make the storage anew though it is sound.")
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="STORAGE",
            help="Make it elsewhere, as where a server is gone; null is study.db.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a study's damaged or lost storage again from the backup in its folder."""
    from dataclasses import asdict

    from levit_search.study.restoring import restore, restore_elsewhere

    if storage is None:
        restored = restore(study, force, _told)
    else:
        restored = restore_elsewhere(study, None if storage == "null" else storage, _told)
    if as_json:
        print_json({"study": str(study), **asdict(restored)})
    else:
        _print_restored(restored, storage)


def _told(count: int, of: int) -> None:
    if count and count % _TELL_EVERY == 0:
        say(f"{count} of {of} trials are written")


def _print_restored(restored: "Restored", elsewhere: str | None) -> None:
    for name in restored.files:
        tell(f"{name} was made again.")
    tell(f"{restored.place} has all that the backup has: {restored.finished} finished trials.")
    if restored.kept_as is not None:
        tell(f"What was damaged is kept as {restored.kept_as}.")
    if restored.running:
        tell(f"Begun, and evaluated again by the next search: trial {_listed(restored.running)}.")
    if restored.lost:
        tell(f"Lost in both, and marked as failed: trial {_listed(restored.lost)}.")
    if elsewhere is not None:
        tell(f"The same levit-search run with --set storage={quoted(elsewhere)} goes on.")
    else:
        tell("The same levit-search run goes on.")


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
