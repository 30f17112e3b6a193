"""The command that shows a study as a page or as pictures."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from levit_search.cli.options import DataFolder, StudyFolder
from levit_search.cli.printing import say, tell
from levit_search.errors import InputError, UnknownNameError

_FORMATS = ("html", "png", "svg")


def report(
    study: StudyFolder,
    format: Annotated[
        str, typer.Option(help="html (one page), or png or svg (its pictures).")
    ] = "html",
    pick: Annotated[
        list[str] | None,
        typer.Option(
            metavar="trial=N",
            help="A network to show in detail beside the front's (repeatable); as of export.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The page, or the pictures' folder [default: STUDY/report.html, STUDY/pictures].",
        ),
    ] = None,
    data: DataFolder = None,
    open_: Annotated[
        bool, typer.Option("--open", help="Show the page in the browser as well.")
    ] = False,
) -> None:
    """Show what a search found and how it went, as a page that opens offline.

    The front against each cost, the networks on it in detail, all trials, hypervolume, learning
    curves, which choices matter, predicted latencies, failures and how it was made.
    """
    from levit_search.report import write_report
    from levit_search.study import Study

    if format not in _FORMATS:
        raise UnknownNameError("format", format, _FORMATS)
    if open_ and format != "html":
        raise InputError(f"--open: shows the page, which --format {format} does not make")
    if out is not None and format == "html" and out.is_dir():
        raise InputError(f"--out {out}: is a folder; name the page, such as {out / 'report.html'}")
    opened = Study.open(study).with_data(data)
    say(f"Reading {study} ...")
    if format == "html":
        page = write_report(opened, pick or (), out)
        tell(str(page))
        if open_ and not webbrowser.open(page.absolute().as_uri()):
            say(f"levit-search: no browser was found to open {page} in")
        return
    from levit_search.report.static import write_pictures

    for path in write_pictures(opened, format, out, pick or ()):
        tell(str(path))
