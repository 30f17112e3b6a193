"""A report as one page of HTML that needs nothing but itself.

Its Content-Security-Policy names the page's own scripts by their hashes and allows no other, and no
address at all: what a study says cannot become a script, and nothing is ever fetched.
"""

import base64
import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from levit_search import table
from levit_search.architecture import parse
from levit_search.configuration import write_yaml
from levit_search.drawing.chart import Drawable, embedded
from levit_search.drawing.svg import DARK, LIGHT
from levit_search.errors import LevitSearchError, writing
from levit_search.escaping import quoted
from levit_search.files import write_atomically
from levit_search.pareto import PAIRED, figure_and_target, is_maximised, on_target
from levit_search.report.charts import drawings, figures, lined, shades, spent
from levit_search.report.choices import FEWEST
from levit_search.report.contents import TITLES, Document, contents, is_whole, name_of
from levit_search.report.int8_figures import choices_text, graph_text, int8_text
from levit_search.significance import interval_text
from levit_search.study import Study
from levit_search.study.record import ERRORS, ESTIMATES
from levit_search.version import __version__

_BROWSER = Path(__file__).with_name("browser")
_DRAWN_BYTES = 1_600_000  # of diagrams and maps in a page
_NO_ROOM = "Its diagram is left out to keep this page small; `levit-search show` draws it."


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
    with writing(path):
        write_atomically(path, text)
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


def page(study: Study, document: Document) -> str:
    """The page of what :func:`levit_search.report.contents.contents` gives."""
    script = (_BROWSER / "page.js").read_text("utf-8")
    assert "</script" not in script
    # JSON that cannot end the element it stands in, nor begin another.
    shown = _for_people(study, document)
    text = json.dumps(shown, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # The colours of both themes as custom properties.
    themes = {
        theme: " ".join(f"--{name}: {colour};" for name, colour in colours.items())
        for theme, colours in (("light", LIGHT), ("dark", DARK))
    }
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "policy": f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'",
        "version": html.escape(__version__),
        "title": html.escape(document["study"]),
        "style": _filled((_BROWSER / "page.css").read_text("utf-8"), themes),
        "study": text,
        "script": script,
        **_figures(study, document),
    }
    return _filled((_BROWSER / "page.html").read_text("utf-8"), parts)


def _filled(template: str, parts: Mapping[str, str]) -> str:
    return re.sub(r"\{\{([\w-]+)\}\}", lambda found: parts[found[1]], template)


def _figures(study: Study, document: Document) -> dict[str, str]:
    """The figures, the numbers that are told beside them, and what else is hidden or shown."""
    drawn = figures(document)
    drawn["front"] = [part for name in drawn if name.startswith("front-") for part in drawn[name]]
    summary = document["summary"]
    saved, errors = summary["rungs"] or Counter(), summary["prediction"] or Counter()
    is_shown = {
        "hypervolume": summary["hypervolume"] is not None,
        "rungs": summary["rungs"] is not None,
        "importance": bool(document["importance"]),
        "too_few": bool(document["slots"] and not document["importance"]),
        "nothing_varies": not document["slots"],
    }
    facts = {
        "whole": len(list(filter(is_whole, document["trials"]))),
        "fewest": FEWEST,
        "reference": ", ".join(
            f"{table.heading(name)} {table.figure(name, value)}"
            for name, value in (study.config.reference or {}).items()
        ),
        "stopped": f"{saved['stopped']} of {saved['trained']}",
        "saved": f"{saved['saved_percent']:.0f} %",
        "hours": f"{saved['hours_saved']:.2g}",
        "predicted": errors["networks"],
        "error": f"{errors['mean_abs_percent']:.1f} %",
        "worst": f"{errors['worst_abs_percent']:.1f} %",
        "bias": f"{abs(errors['mean_percent']):.1f} % "
        f"{'too slow' if errors['mean_percent'] > 0 else 'too fast'}",
    }
    found = {f"told_{name}": html.escape(str(fact)) for name, fact in facts.items()}
    for name, is_there in is_shown.items():
        found[f"if_{name}"] = "" if is_there else "hidden"
        found[f"unless_{name}"] = "hidden" if is_there else ""
    found["int8"] = _int8(document, drawn) if document["int8"] else ""
    placed = ("front", "hypervolume", "learning-curves", "importance", "choices")
    for place in (*placed, "predicted-latency"):
        charts = map(embedded, drawn.get(place, ()))
        found[place] = "".join(f'<div class="chart">{chart}</div>' for chart in charts)
    return found


def _int8(document: Document, drawn: Mapping[str, Sequence[Drawable]]) -> str:
    """The section on networks in int8."""
    int8 = document["int8"]
    trials = {trial["trial"]: trial for trial in document["trials"]}
    listed = [each["int8_front"] + each["float_front"] for each in int8["costs"]]
    front = [trials[number] for number in dict.fromkeys(n for each in listed for n in each)]
    heads = ["trial", *map(table.heading, int8["figures"]), "architecture"]
    networks = [
        [
            f'<a href="#trial-{trial["trial"]}">{trial["trial"]}</a>',
            *(table.figure(name, trial["values"].get(name)) for name in int8["figures"]),
            html.escape(trial["architecture"]),
        ]
        for trial in front
    ]
    choices = [
        [
            html.escape(each["choice"]),
            str(each["networks"]),
            *(f"{each[name]:.2f}" for name in ("median_least", "median_most")),
            f"{each['correlation']:+.2f} ({each['low']:+.2f} to {each['high']:+.2f})",
            f"{each['chance']:.3f}" if each["chance"] >= 0.001 else "&lt; 0.001",
        ]
        for each in int8["choices"]
    ]
    found = {
        "networks": _html_table(heads, networks),
        "choices": _html_table(_CHOICES, choices) if choices else "",
        "told": " ".join(html.escape(text) for text in int8_text(int8)),
        "told_choices": html.escape(choices_text(int8)),
        "if_networks": "" if networks else "hidden",
        "if_choices": "" if choices else "hidden",
    }
    for place in ("int8-fronts", "int8-drop"):
        charts = map(embedded, drawn.get(place, ()))
        found[place] = "".join(f'<div class="chart">{chart}</div>' for chart in charts)
    return _filled((_BROWSER / "int8.html").read_text("utf-8"), found)


_CHOICES = (
    *("choice", "networks", "drop at its least, or without it", "at its most, or with it"),
    *("rank correlation (95 %)", "by luck"),
)


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The inside of a table; cells are HTML, and but for the first and last of a row figures."""
    told = "".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in rows
    )
    return f"<thead><tr>{told}</tr></thead><tbody>{body}</tbody>"


def _beside_float(known: Mapping[str, Any]) -> dict[str, object]:
    """A network in float and in int8, as texts."""
    values = {row["figure"]: row["value"] for row in known["figures"]}
    rows = []
    for pair in known["int8"]["rows"]:
        before, after = (values.get(pair[name]) for name in ("float", "int8"))
        change = ""
        if before is not None and is_maximised(pair["float"]):
            change = f"{after - before:+.2f} points"
        elif before is not None:
            change = f"{after / before:.2f} x"
        texts = [table.figure(pair[name], values.get(pair[name])) for name in ("float", "int8")]
        rows.append([table.heading(pair["float"]), *texts, change])
    return {"rows": rows, "text": graph_text(known["int8"]["quantized"])}


def _for_people(study: Study, document: Document) -> dict[str, object]:
    """What the page's script needs: the document without what is drawn, figures as texts."""
    up, trials, lines = document["up"], document["trials"], lined(document)
    shown = [up, *document["objectives"], *(tab["figure"] for tab in document["tabs"])]
    again = [
        on_target(each, target)
        for figure, target in map(figure_and_target, shown)
        for each in table.BESIDE_LATENCY.get(figure, ())
    ]
    in_int8 = document["int8"]["figures"] if document["int8"] else []
    predicted = [name for figure in PAIRED for name in (ESTIMATES[figure], ERRORS[figure])]
    known = {name for trial in trials for name in trial["values"]}
    columns = [*shown, *in_int8, *predicted, *again]
    columns = [name for name in dict.fromkeys(columns) if name in known]
    is_drawn = {"trajectory", "importance", "prediction", "published"}
    return {
        **{name: part for name, part in document.items() if name not in is_drawn},
        "heads": {
            name: table.heading(name) for name in known if figure_and_target(name)[0] in table.KNOWN
        },
        "names": {name: name_of(name) for name in columns},
        "columns": columns,
        "up_name": name_of(up),
        "up_unit": TITLES[figure_and_target(up)[0]][1],
        "spent": [name.replace("_", " ").capitalize() for name in spent(document)],
        "lines": {
            name: {
                "shades": shades(lines, name),
                "ends": [
                    table.figure(name, end(trial["values"][name] for trial in lines))
                    for end in (min, max)
                ],
            }
            for name in dict.fromkeys([*shown, *in_int8])
            if lines and all(name in trial["values"] for trial in lines)
        },
        "trials": [_with_texts(trial, columns) for trial in trials],
        "baselines": [_with_texts(each, columns) for each in document["baselines"]],
        "tabs": [{**tab, "note": _note(document, tab)} for tab in document["tabs"]],
        "details": _with_drawings(study, document),
        "environment": {
            "sessions": [
                {
                    **session,
                    "command_text": " ".join(quoted(str(w)) for w in session.get("command", [])),
                }
                for session in document["environment"]["sessions"]
            ]
        },
        "search_text": _search_text(study),
        "training_text": _training_text(study),
        "settings": None,  # as a text instead
        "settings_text": write_yaml(document["settings"]),
    }


def _note(document: Document, tab: Mapping[str, Any]) -> str:
    """What is said of a front: where it was measured, and how its points are to be read."""
    texts = [f"Measured on {tab['device']}; {tab['runtime']}."] if tab["device"] else []
    if reference := tab["reference"]:
        trial = f", trial {reference['trial']}"
        known = " (its accuracy is not known here)" if reference["trial"] is None else trial
        ms = table.figure("latency_ms", reference["ms"])
        in_float = " in float" if tab["figure"].startswith("latency_int8") else ""
        texts.append(f"Reference: {reference['name']}{in_float}, {ms} ms{known}.")
    if not tab["objective"]:
        texts.append(
            "Not an objective of this search: the front marked is that of its objectives, the line "
            "what is best at each cost here."
        )
    if document["up"] == document["verdict"]["figure"]:
        texts.append(document["verdict"]["legend"])
    if figure_and_target(tab["figure"])[0] in PAIRED:
        texts.append(document["latency_legend"])
    return " ".join(filter(None, texts))


def _with_texts(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, object]:
    """A trial or a baseline with its figures as texts."""
    values, accuracy = row["values"], row["accuracy"]
    if accuracy is not None:
        accuracy = {**accuracy, "interval": interval_text(accuracy["low"], accuracy["high"])}
    texts = {name: table.figure(name, values[name]) for name in names if name in values}
    return {**row, "texts": texts, "accuracy": accuracy}


def _with_drawings(study: Study, document: Document) -> Mapping[str, object]:
    """The details with diagrams and maps, as many as the page has room for, the first first."""
    left, found = _DRAWN_BYTES, {}
    for trial in document["chosen"]:
        known = document["details"][str(trial)]
        network = parse(known["architecture"])
        diagram, maps, note = "", "", _NO_ROOM
        if left > 0:
            diagram, maps, note = drawings(study, trial, network, network.summary(), True)
        left -= len(diagram) + len(maps)
        found[str(trial)] = {
            "picked_as": known["picked_as"],
            "figures": [
                {**row, "text": table.figure(row["figure"], row["value"])}
                for row in known["figures"]
            ],
            "yaml": write_yaml(known["architecture"]),
            "int8": known["int8"] and _beside_float(known),
            "diagram": diagram,
            "maps": maps,
            "note": note,
        }
    return found


def _search_text(study: Study) -> str:
    search, engine = study.config.search, study.config.engine
    bounds = [f"{search.trials} networks"] if search.trials is not None else []
    bounds += [f"{search.time_s:g} s a session"] if search.time_s is not None else []
    parts = [" or ".join(bounds), f"sampler {search.sampler}", f"seed {search.seed}"]
    parts.append(f"{engine.jobs} at once ({engine.kind})")
    limits = study.config.limits.model_dump(exclude_none=True)
    parts += [
        f"{table.heading(name)} <= {table.figure(name, value)}" for name, value in limits.items()
    ]
    return ", ".join(filter(None, parts))


def _training_text(study: Study) -> str | None:
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
            choice = study.attributes().get("teacher_choice")
            parts.append(choice["text"] if choice is not None else undecided)
    return ", ".join(parts)
