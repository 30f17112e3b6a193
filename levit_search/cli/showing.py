"""What a network looks like: its block diagram, and the maps of its trained weights."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from levit_search.cli.printing import print_table, say
from levit_search.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from levit_search.architecture import Architecture

_FORMATS = ("terminal", "svg", "png", "json")
_FORMAT_OF = {".svg": "svg", ".png": "png", ".json": "json", ".txt": "terminal", "": "terminal"}


def show(
    arch: Annotated[
        str, typer.Argument(metavar="ARCH", help="A published name, a YAML file or STUDY#TRIAL.")
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="terminal, svg, png or json [default: by the name of --out, else terminal].",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write to this file [default: stdout].")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the maps of these weights, too (safetensors); STUDY#TRIAL has its own.",
        ),
    ] = None,
) -> None:
    """Draw a network's blocks with bars of their FLOPs and parameters.

    Where there are trained weights, SVG and PNG show the attention biases and the first layer's
    filters below the blocks. JSON has the figures of every block, and the biases.
    """
    from levit_search import diagram
    from levit_search.study import load_architecture

    form = _format(form, out)
    if form == "terminal" and weights is not None:
        raise InputError("--weights: the terminal shows no maps; give --format svg, png or json")
    if form == "png" and out is None and sys.stdout.isatty():
        raise InputError("--format png: is nothing for a terminal; give --out FILE")
    network = load_architecture(arch)
    title = _title(arch)
    if form == "terminal":
        listing = diagram.terminal(network, title)
        if out is None:
            print_table(listing)
        else:
            _write(listing.text(), out)
        return
    from levit_search.portrait import portrait

    drawn = portrait(network, title, weights or _trained(arch, network))
    if weights is not None and not drawn.has_maps:
        say(f"levit-search: {arch} has neither attention biases nor filters over patches to draw")
    if form == "json":
        _write(json.dumps(drawn.as_json(), indent=2) + "\n", out)
    elif form == "svg":
        _write(drawn.svg(), out)
    else:
        from levit_search import raster

        _write(raster.png(drawn.svg()), out)


def _format(form: str | None, out: Path | None) -> str:
    if form is not None:
        if form not in _FORMATS:
            raise UnknownNameError("--format", form, _FORMATS)
        return form
    suffix = out.suffix.lower() if out is not None else ""
    if suffix not in _FORMAT_OF:
        raise InputError(
            f"--out {out}: no format is known by {suffix}; give --format {', '.join(_FORMATS)}"
        )
    return _FORMAT_OF[suffix]


def _title(arch: str) -> str:
    """``LeViT-256``, ``mine`` of ``mine.yaml``, ``trial 12 of STUDY``."""
    folder, separator, trial = arch.rpartition("#")
    if separator:
        return f"trial {trial} of {Path(folder).resolve().name}"
    path = Path(arch)
    return path.stem if path.suffix in (".yaml", ".yml") else path.name


def _trained(arch: str, network: "Architecture") -> Path | None:
    """The weights that a study has of its trial's network."""
    from levit_search.export import sound_weights
    from levit_search.study import Study

    folder, separator, trial = arch.rpartition("#")
    if not separator:
        return None
    study = Study.open(Path(folder))
    path = study.weights(network.id)
    if not path.is_file():
        say(f"levit-search: {path}: no trained weights are there, so there are no maps of them")
        return None
    try:
        return sound_weights(study, int(trial), network)
    except InputError as error:
        say(f"levit-search: {error}. There are no maps of its weights.")
        return None


def _write(content: str | bytes, out: Path | None) -> None:
    from levit_search.files import write_atomically
    from levit_search.printable import encodable

    if out is not None:
        try:
            write_atomically(out, content)
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    else:  # a document says itself that it is in UTF-8
        raw = encodable(content).encode() if isinstance(content, str) else content
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()
