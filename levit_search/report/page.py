"""A report as one page of HTML that needs nothing but itself.

Its Content-Security-Policy names the page's own scripts by their hashes and allows no other, and no
address at all: what a study says cannot become a script, and nothing is ever fetched.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from levit_search import table
from levit_search.architecture import Architecture, parse
from levit_search.configuration import write_yaml
from levit_search.drawing import diagram, weight_maps
from levit_search.drawing.network_view import network_view
from levit_search.errors import InputError, LevitSearchError
from levit_search.files import write_atomically
from levit_search.pareto import figure_and_target, is_maximised, on_target
from levit_search.printable import quoted
from levit_search.proportion import interval_text
from levit_search.report.choices import FEWEST
from levit_search.report.contents import contents
from levit_search.report.tabs import TITLES
from levit_search.study import Study
from levit_search.version import __version__

_BROWSER = Path(__file__).with_name("browser")
# In the order in which they are joined to one script.
_SCRIPTS = (
    "drawing",
    "sketch",
    "front",
    "network",
    "trials",
    "progress",
    "choices",
    "setup",
    "start",
)
_DRAWN_BYTES = 1_600_000  # of diagrams and maps in a page


def write_report(study: Study, picked: Sequence[str] = (), out: Path | None = None) -> Path:
    """Write the page, ``report.html`` in the study folder.

    Args:
        study: may be in the middle of its search.
        picked: further networks to show in detail, see :func:`levit_search.report.contents`.
        out: another file.

    Raises:
        InputError: no trial is complete, a pick is none, or the file cannot be written.
    """
    path = out or study.folder / "report.html"
    text = page(study, contents(study, picked))
    try:
        write_atomically(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def report_of_run(study: Study, say: Callable[[str], None]) -> Path | None:
    """The page at the end of a search, whose results must not be lost for it.

    Args:
        study: that was searched.
        say: told in a line why there is no page.

    Returns:
        None where nothing was evaluated to the end yet, or the page could not be made.
    """
    try:
        if not any(record.state == "complete" for record in study.records()):
            return None
        return write_report(study)
    except LevitSearchError as error:
        say(f"no report: {error}")
    except Exception as error:  # whatever it is, the search's own results count more
        say(f"no report: {type(error).__name__}: {error}; `levit-search report` tells more")
    return None


def page(study: Study, document: Mapping[str, Any]) -> str:
    """The page of what :func:`levit_search.report.contents.contents` gives."""
    scripts = "\n".join((_BROWSER / f"{name}.js").read_text("utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{scripts}}})();\n'
    plotly = _plotly()
    allowed = " ".join(_hash(each) for each in (script, plotly))
    parts = {
        "policy": f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        "version": html.escape(__version__),
        "title": html.escape(document["study"]),
        "style": (_BROWSER / "page.css").read_text("utf-8"),
        "study": _embedded({**document, **_for_people(study, document)}),
        "plotly": plotly,
        "script": script,
    }
    assert "</script" not in plotly + script
    template = (_BROWSER / "page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _plotly() -> str:
    """Plotly's own bundle, read without importing what it would take to make figures in Python."""
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _embedded(document: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in, nor begin another."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _for_people(study: Study, document: Mapping[str, Any]) -> dict[str, Any]:
    """What the page needs beside the document: texts as the other tables have them, drawings."""
    objectives, up = document["objectives"], document["up"]
    tabs = [tab["figure"] for tab in document["tabs"]]
    trials = document["trials"]
    predicted = ["latency_predicted_ms", "prediction_error_percent"]
    again = [
        on_target(each, target)
        for figure, target in map(figure_and_target, tabs)
        for each in table.BESIDE_LATENCY
        if figure == "latency_ms"
    ]
    columns = list(dict.fromkeys([up, *objectives, *tabs, *predicted, *again]))
    columns = [name for name in columns if any(name in trial["values"] for trial in trials)]
    known = {name for trial in trials for name in trial["values"]}
    known = {name for name in known if figure_and_target(name)[0] in table.KNOWN}
    up_name, up_unit = TITLES[figure_and_target(up)[0]]
    scale = "" if is_maximised(up) else ", log scale"
    return {
        "heads": {name: table.heading(name) for name in known},
        "names": {name: _name(name) for name in columns},
        "columns": columns,
        "up_name": _name(up),
        "up_unit": up_unit,
        "up_title": f"{up_name} ({up_unit}{scale})",
        "up_scale": table.scale(up),
        "up_is_more": is_maximised(up),
        "ends": {name: _ends(name, trials) for name in columns},
        "trials": [
            {
                **trial,
                "texts": _texts(trial["values"], columns),
                "accuracy": _accuracy(trial["accuracy"]),
            }
            for trial in trials
        ],
        "baselines": [
            {
                **each,
                "texts": _texts(each["values"], columns),
                "accuracy": _accuracy(each["accuracy"]),
            }
            for each in document["baselines"]
        ],
        "tabs": [{**tab, "reference": _reference(tab["reference"])} for tab in document["tabs"]],
        "details": _with_drawings(study, document["details"], document["chosen"]),
        "environment": {"sessions": [_session(s) for s in document["environment"]["sessions"]]},
        "importance_fewest": FEWEST,
        "reference_point": ", ".join(
            f"{table.heading(name)} {table.figure(name, value)}"
            for name, value in (study.config.reference or {}).items()
        ),
        "search_text": _search_text(study),
        "training_text": _training_text(study, study.attributes().get("teacher_choice")),
        "settings": None,  # as a text instead
        "settings_text": write_yaml(document["settings"]),
    }


def _name(figure: str) -> str:
    known, target = figure_and_target(figure)
    name = TITLES[known][0]
    return name if target is None else f"{name} on {target}"


def _texts(values: Mapping[str, float], names: Sequence[str]) -> dict[str, str]:
    return {name: table.figure(name, values[name]) for name in names if name in values}


def _accuracy(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {**found, "interval": interval_text(found["low"], found["high"])}


def _ends(name: str, trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """The least and the most that networks in the parallel coordinates have."""
    values = [
        trial["values"][name]
        for trial in trials
        if trial["state"] == "complete" and trial["reused_from"] is None and trial["choices"]
        if name in trial["values"]
    ]
    return [table.figure(name, value) for value in (min(values), max(values))] if values else []


def _reference(reference: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if reference is None:
        return None
    return {**reference, "text": table.figure("latency_ms", reference["ms"])}


def _with_drawings(
    study: Study, details: Mapping[str, Mapping[str, Any]], order: Sequence[int]
) -> dict[str, Any]:
    """The details with diagrams and maps, as many as the page has room for, the first first."""
    left, found = _DRAWN_BYTES, {}
    for trial in order:
        known = details[str(trial)]
        network = parse(known["architecture"])
        rows = [
            {**row, "text": table.figure(row["figure"], row["value"])} for row in known["figures"]
        ]
        drawings = _drawings(study, int(trial), network) if left > 0 else {"note": _NO_ROOM}
        left -= sum(map(len, drawings.values()))
        found[str(trial)] = {
            "picked_as": known["picked_as"],
            "figures": rows,
            "yaml": write_yaml(known["architecture"]),
            **drawings,
        }
    return found


_NO_ROOM = "Its diagram is left out to keep this page small; `levit-search show` draws it."


def _drawings(study: Study, trial: int, network: Architecture) -> dict[str, str]:
    """The block diagram, and the maps where there are weights to read them from."""
    found = {"diagram": diagram.svg(network, embedded=True)}
    if not study.weights(network.id).is_file():
        found["note"] = "Its trained weights are not kept here, so there are no maps of them."
        return found
    try:
        weights = study.sound_weights(trial, network)
        drawn = network_view(network, network.summary(), weights)
    except InputError as error:
        found["note"] = str(error)
        return found
    if drawn.has_maps:
        found["maps"] = weight_maps.svg(drawn.biases, drawn.filters, drawn.title, embedded=True)
    return found


def _session(session: Mapping[str, Any]) -> dict[str, Any]:
    command = map(str, session.get("command", []))
    return {**session, "command_text": " ".join(map(quoted, command))}


def _search_text(study: Study) -> str:
    search, engine = study.config.search, study.config.engine
    bounds = [f"{search.trials} networks" if search.trials is not None else ""]
    bounds.append(f"{search.time_s:g} s a session" if search.time_s is not None else "")
    parts = [" or ".join(filter(None, bounds)), f"sampler {search.sampler}", f"seed {search.seed}"]
    parts.append(f"{engine.jobs} at once ({engine.kind})")
    limits = study.config.limits.model_dump(exclude_none=True)
    parts += [
        f"{table.heading(name)} <= {table.figure(name, value)}" for name, value in limits.items()
    ]
    return ", ".join(filter(None, parts))


def _training_text(study: Study, choice: Mapping[str, Any] | None) -> str | None:
    config = study.config
    if not config.is_trained:
        return None
    recipe, teacher = config.candidate_recipe, config.teaching
    parts = [f"recipe {recipe.recipe}", f"{recipe.epochs} epochs", f"batch {recipe.batch_size}"]
    if config.accuracy == "finetuned":
        parts.append("each from its slice of the supernet")
    elif recipe.weights != "fresh":
        parts.append(f"from the weights {recipe.weights}")
    if config.rung_epochs:
        epochs = ", ".join(map(str, config.rung_epochs))
        parts.append(f"rung{'s' if len(config.rung_epochs) > 1 else ''} after epoch {epochs}")
    if teacher is not None:
        parts.append(f"{recipe.distillation} distillation from {teacher.name}")
        if teacher.auto:
            undecided = "whether that helps was left to the search, which has not decided yet"
            parts.append(choice["text"] if choice is not None else undecided)
    return ", ".join(parts)
