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


def space_file(text: str) -> Path:
    """A space file by its path, or an embedded one by its name."""
    from levit_search.errors import UnknownNameError

    path = Path(text)
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    package = Path(__file__).parents[1]
    packaged = package / "spaces"
    folder = packaged if packaged.is_dir() else package.parent / "spaces"
    embedded = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if text not in embedded:
        raise UnknownNameError("space", text, embedded)
    return embedded[text]
