"""The report's pictures as files: PNG for slides and messages, SVG for print and the web."""

import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from levit_search.architecture import parse
from levit_search.drawing import diagram, weight_maps
from levit_search.drawing.network_view import network_view
from levit_search.drawing.svg import png
from levit_search.errors import InputError, UnknownNameError
from levit_search.files import write_atomically
from levit_search.report.contents import contents
from levit_search.report.plots import plots
from levit_search.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]

_DPI = 200


def write_pictures(
    study: Study, format: str, out: Path | None = None, picked: Sequence[str] = ()
) -> list[Path]:
    """Write every picture of a report into a folder.

    Args:
        study: may be in the middle of its search.
        format: ``png`` or ``svg``.
        out: the folder, which is made; None is ``pictures`` in the study folder. Files of an
            earlier call are written over.
        picked: networks to draw besides the knee of the front, see
            :func:`levit_search.report.contents.contents`.

    Returns:
        The files: ``front-latency_ms.png`` and so forth for each cost, ``hypervolume.png`` where
        the study has a reference, ``learning-curves.png``, ``importance.png``, ``choices.png``,
        ``predicted-latency.png``, and for each network ``trial-7-blocks.png`` and, where its
        weights are kept and have them, ``trial-7-weights.png`` with attention biases and patch
        filters. What there is nothing to show of is left out.

    Raises:
        InputError: no trial is complete, a pick is none, or the folder cannot be written.
        UnknownNameError: there is no such format.
        LevitSearchError: PNG needs a package that is not installed.
    """
    if format not in get_args(Format):
        raise UnknownNameError("format", format, get_args(Format))
    folder = out or study.folder / "pictures"
    paths = []
    try:
        for name, content in _pictures(study, contents(study, picked), format):
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(folder / f"{name}.{format}")
            write_atomically(paths[-1], content)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return paths


def _pictures(
    study: Study, document: dict[str, Any], format: str
) -> Iterator[tuple[str, bytes | str]]:
    for name, figure in plots(document):
        yield name, _drawn(figure, format)
    for name, svg in _networks(study, document):
        yield name, png(svg) if format == "png" else svg


def _drawn(figure: "Figure", format: str) -> bytes:
    import matplotlib

    metadata = {"Date": None} if format == "svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "levit-search", "svg.fonttype": "none"}):
        file = io.BytesIO()
        figure.savefig(file, format=format, dpi=_DPI, metadata=metadata)
    return file.getvalue()


def _networks(study: Study, document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Diagrams and maps of the knee and of those that were picked."""
    for trial in document["chosen"]:
        details = document["details"][str(trial)]
        if trial != document["chosen"][0] and not _is_picked(details["picked_as"]):
            continue
        network = parse(details["architecture"])
        title = f"Trial {trial} of {document['study']}"
        yield f"trial-{trial}-blocks", diagram.svg(network, title)
        if not study.weights(network.id).is_file():
            continue
        try:
            drawn = network_view(network, title, study.sound_weights(trial, network))
        except InputError as error:
            warnings.warn(f"{error}; its maps are left out", stacklevel=2)
            continue
        if drawn.has_maps:
            yield f"trial-{trial}-weights", weight_maps.svg(drawn.biases, drawn.filters, title)


def _is_picked(reasons: Sequence[str]) -> bool:
    return any(reason.startswith("--pick ") for reason in reasons)
