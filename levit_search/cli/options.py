"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the space file (repeatable)."),
]
StudyFolder = Annotated[Path, typer.Argument(metavar="STUDY", help="A study folder.")]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Where its data lies now [default: where it was]."),
]
NewStudyFolder = Annotated[
    Path | None,
    typer.Option("--study", metavar="DIR", help="Study folder [default: studies/NAME]."),
]
