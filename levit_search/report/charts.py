"""The figures of a report, each built once from what it shows: for the page and for files."""

import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, Literal, get_args

from levit_search.architecture import Architecture, parse
from levit_search.audit.search_cost import COSTS
from levit_search.audit.sections import growth
from levit_search.drawing import diagram, weight_maps
from levit_search.drawing.chart import (
    NARROW,
    WIDE,
    Axis,
    Bars,
    Chart,
    Drawable,
    Line,
    Mark,
    Rule,
    Series,
    picture,
)
from levit_search.drawing.diagram import network_view
from levit_search.drawing.svg import LARGE, Svg, element, number, png
from levit_search.errors import InputError, UnknownNameError, writing
from levit_search.files import write_atomically
from levit_search.pareto import figure_and_target, is_maximised
from levit_search.report.contents import Document, Trial, contents, is_whole, label_of, name_of
from levit_search.study import Study
from levit_search.table import figure, heading, in_unit

Format = Literal["png", "svg"]

_ABSENT = "\u2013"  # the place of a choice that means nothing in a network


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
        ``predicted-latency.png``, ``int8-fronts.png``, ``int8-drop.png``, and for each network
        ``trial-7-blocks.png`` and, where its weights are kept and have them,
        ``trial-7-weights.png`` with attention biases and patch filters. What there is nothing to
        show of is left out.

    Raises:
        InputError: no trial is complete, a pick is none, or the folder cannot be written.
        UnknownNameError: there is no such format.
        LevitSearchError: PNG needs a package that is not installed.
    """
    if format not in get_args(Format):
        raise UnknownNameError("format", format, get_args(Format))
    folder = out or study.folder / "pictures"
    document, paths = contents(study, picked), []
    pictures = [(name, picture(parts)) for name, parts in figures(document).items()]
    with writing(folder):
        for name, svg in [*pictures, *_networks(study, document)]:
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(folder / f"{name}.{format}")
            write_atomically(paths[-1], png(svg) if format == "png" else svg)
    return paths


def _networks(study: Study, document: Document) -> Iterator[tuple[str, str]]:
    """Diagrams and maps of the knee and of those that were picked."""
    for trial in document["chosen"]:
        details = document["details"][str(trial)]
        is_picked = any(reason.startswith("--pick ") for reason in details["picked_as"])
        if trial != document["chosen"][0] and not is_picked:
            continue
        network, title = parse(details["architecture"]), f"Trial {trial} of {document['study']}"
        blocks, maps, note = drawings(study, trial, network, title)
        yield f"trial-{trial}-blocks", blocks
        if maps:
            yield f"trial-{trial}-weights", maps
        elif note and study.weights(network.id).is_file():
            warnings.warn(f"{note}; its maps are left out", stacklevel=2)


def drawings(
    study: Study, trial: int, network: Architecture, title: str, embedded: bool = False
) -> tuple[str, str, str]:
    """The block diagram of a trial's network as SVG, the maps of its weights, and why there are
    none; the last two may be empty."""
    blocks = diagram.svg(network, title, embedded)
    if not study.weights(network.id).is_file():
        return blocks, "", "Its trained weights are not kept here, so there are no maps of them."
    try:
        drawn = network_view(network, title, study.sound_weights(trial, network))
    except InputError as error:
        return blocks, "", str(error)
    maps = weight_maps.svg(drawn.biases, drawn.filters, title, embedded) if drawn.has_maps else ""
    return blocks, maps, ""


def figures(document: Document) -> dict[str, Sequence[Drawable]]:
    """Every figure that there is something to show in, by its file's name.

    That of the hypervolume has a part for each cost, the others have one.
    """
    found: dict[str, Sequence[Drawable]] = {}
    for tab in document["tabs"]:
        cost, target = figure_and_target(tab["figure"])
        found[f"front-{cost}" + (f"-on-{target}" if target else "")] = [front(document, tab)]
    if document["summary"]["hypervolume"] is not None:
        found["hypervolume"] = hypervolume(document)
    if any(trial["curve"] for trial in document["trials"]):
        found["learning-curves"] = [learning_curves(document)]
    if document["importance"]:
        found["importance"] = [importance(document)]
    if document["slots"] and lined(document):
        found["choices"] = [ChoiceLines(document)]
    if document["prediction"]:
        found["predicted-latency"] = [prediction(document)]
    if document["int8"] and document["int8"]["costs"]:
        found["int8-fronts"] = [int8_fronts(document, each) for each in document["int8"]["costs"]]
        found["int8-drop"] = [int8_drop(document)]
    return found


def front(document: Document, tab: Mapping[str, Any]) -> Chart:
    """What can be had for a cost: the networks that no other beats, and the others, faint."""
    up, across, reference = document["up"], tab["figure"], tab["reference"]
    known = [trial for trial in document["trials"] if across in trial["values"]]
    whole = [trial for trial in known if is_whole(trial)]
    best = [trial for number in tab["front"] for trial in whole if trial["trial"] == number]
    on_front = [trial for trial in whole if trial["on_front"]]
    # Where it is the accuracy in int8, that of a network which was stopped is not known.
    stopped = [t for t in known if t["outcome"] == "stopped" and t["curve"]]
    stopped = stopped if up == "top1_percent" else []
    named = [trial for trial in whole if trial["name"]]
    first = document["chosen"][0]
    is_knee = "knee of the front" in document["details"][str(first)]["picked_as"]
    mine = [t for t in whole if reference is not None and t["trial"] == reference["trial"]]

    def interval(trial: Trial, name: str) -> tuple[float, float] | None:
        """Of a network that is shown in detail, in the unit in which people read the figure."""
        rows = document["details"].get(str(trial["trial"]), {"figures": []})["figures"]
        found = (r for r in rows if r["figure"] == name and r["low"] is not None)
        return next(((in_unit(name, r["low"]), in_unit(name, r["high"])) for r in found), None)

    x_ends, y_ends = ([interval(trial, name) for trial in on_front] for name in (across, up))
    spread = on_front if any(ends is not None for ends in [*x_ends, *y_ends]) else []

    def points(
        name: str, rows: Sequence[Trial], mark: Mark | None, color: str, **more: Any
    ) -> Series:
        """Trials, or other networks with a name, whose figures are both known."""
        needed = {across} if "y" in more else {across, up}
        rows = [row for row in rows if needed <= row["values"].keys()]
        xs = [in_unit(across, row["values"][across]) for row in rows]
        ys = more.pop("y", None) or [in_unit(up, row["values"][up]) for row in rows]
        if "trial" in next(iter(rows), {}):
            more = {"trials": [row["trial"] for row in rows], **more}
        elif rows:
            more["labels"] = [row["name"] for row in rows]
            more["tips"] = [
                f"{row['name']}\n{name}\n"
                + "\n".join(f"{heading(n)} {figure(n, row['values'][n])}" for n in (up, across))
                for row in rows
            ]
        return Series(name, xs, ys, color, mark, **more)

    others = [trial for trial in whole if not trial["on_front"]]
    started = [trial for trial in whole if trial["is_start"]]
    knee = [trial for trial in whole if is_knee and trial["trial"] == first]
    faint, names = 0.35 if len(whole) > 300 else 0.6, [trial["name"] for trial in named]
    early, last = "stopped early, at the accuracy then", [t["curve"][-1][1] for t in stopped]
    ends: dict[str, object] = {"x_ends": x_ends, "y_ends": y_ends}
    ring: dict[str, object] = {"radius": 7, "is_open": True}
    line: Line = "steps" if is_maximised(up) else "straight"
    series = [
        points("dominated", others, "circle", "dominated", radius=3, opacity=faint),
        points("", best, None, "front", line=line, trials=()),
        points("95 % interval", spread, None, "front", opacity=0.6, trials=(), **ends),
        points("front", on_front, "circle", "front", radius=5),
        points(early, stopped, "cross", "stopped", radius=3, is_hidden=True, y=last),
        points("tried first", started, "square", "start", **ring),
        points("knee", knee, "diamond", "reference", **ring),
        points("published, measured here", named, "star", "known", labels=names, **ring),
        points("reference", mine, "star", "reference", radius=6),
        points("the paper's", document["published"], "triangle", "published", radius=5),
        points("compared with", document["baselines"], "cross", "compared", radius=5),
    ]
    rules = []
    if reference is not None:
        in_float = " in float" if across.startswith("latency_int8") else ""
        is_told = bool(mine) and not in_float
        text = "reference" if is_told else f"reference{in_float}, {reference['ms']:.3g} ms"
        rules.append(Rule(reference["ms"], text, "reference"))
    title = tab["title"]
    title = title if title.startswith("FLOPs") else f"{title[0].lower()}{title[1:]}"
    return Chart(
        f"{document['study']}: {name_of(up)} against {title}",
        Axis(label_of(across), is_log=True),
        Axis(label_of(up), is_log=not is_maximised(up)),
        series,
        rules,
        [text for text in (tab["device"], tab["runtime"]) if text],
        height=380,
    )


def int8_fronts(document: Document, costs: Mapping[str, Any]) -> Chart:
    """What can be had for a cost in float and in int8: both fronts."""
    whole = {t["trial"]: t["values"] for t in document["trials"] if is_whole(t)}
    looks: tuple[tuple[str, str, str, Mark], ...] = (
        ("float", "top1_percent", "reference", "square"),
        ("int8", "top1_int8_percent", "front", "circle"),
    )
    series = []
    for precision, up, color, mark in looks:
        across, best = costs[precision], costs[f"{precision}_front"]
        others = [n for n in whole if n not in best and {up, across} <= whole[n].keys()]
        xs, ys = ([in_unit(name, whole[n][name]) for n in best] for name in (across, up))
        look: dict[str, Any] = {"color": color, "mark": mark, "is_open": precision == "float"}
        series += [
            Series(
                f"{precision}, dominated",
                [in_unit(across, whole[n][across]) for n in others],
                [in_unit(up, whole[n][up]) for n in others],
                radius=3,
                opacity=0.4,
                trials=others,
                **look,
            ),
            Series("", xs, ys, color, None, line="steps"),
            Series(f"{precision}, front", xs, ys, radius=5, trials=best, **look),
        ]
    return Chart(
        f"{document['study']}: fronts in float and in int8",
        Axis(label_of(costs["float"]), is_log=True),
        Axis(label_of("top1_percent")),
        series,
        height=380,
    )


def int8_drop(document: Document) -> Chart:
    """What int8 costs each network of its accuracy."""
    across, drop = document["int8"]["costs"][0]["float"], "int8_drop_points"
    best = document["int8"]["costs"][0]["int8_front"]
    known = [t for t in document["trials"] if is_whole(t) and drop in t["values"]]
    groups = {"others": [t for t in known if t["trial"] not in best]}
    groups["front in int8"] = [t for t in known if t["trial"] in best]
    series = [
        Series(
            name,
            [in_unit(across, trial["values"][across]) for trial in trials],
            [trial["values"][drop] for trial in trials],
            color,
            trials=[trial["trial"] for trial in trials],
        )
        for (name, trials), color in zip(groups.items(), ("dominated", "front"), strict=True)
    ]
    ends = [end(x for each in series for x in each.x) for end in (min, max)]
    series.insert(0, Series("no drop", ends, [0.0, 0.0], "soft", None, line="dashed"))
    return Chart(
        f"{document['study']}: accuracy in float less that in int8",
        Axis(label_of(across), is_log=True),
        Axis(label_of(drop)),
        series,
        height=300,
    )


def spent(document: Document) -> list[str]:
    """The costs that the hypervolume is drawn against: those that are known and not nothing."""
    path = document["trajectory"]
    known = [name for name in COSTS if path[name][-1] and None not in path[name]]
    return known if document["summary"]["hypervolume"] is not None else []


def hypervolume(document: Document) -> list[Chart]:
    """How the front grew by what was spent, a chart for each cost."""
    path = document["trajectory"]
    return [
        growth(document["study"], COSTS[name], path[name], path["hypervolume"])
        for name in spent(document)
    ]


def learning_curves(document: Document) -> Chart:
    """Accuracy by epoch of all that were trained, and where rungs ended a training."""
    trained = [trial for trial in document["trials"] if trial["curve"]]
    kinds: dict[str, list[Trial]] = {"stopped": [], "dominated": [], "front": []}
    for trial in trained:
        kind = "front" if trial["on_front"] else "dominated"
        kinds["stopped" if trial["outcome"] == "stopped" else kind].append(trial)
    faint = max(0.3, min(0.8, 30 / len(trained)))  # many lie on each other
    series = []
    for color, trials in kinds.items():
        opacity, width = (1.0, 1.8) if color == "front" else (faint, 1.0)
        for trial in trials:
            epochs, accuracies = map(list, zip(*trial["curve"], strict=True))
            line = Series("", epochs, accuracies, color, None, line="straight", opacity=opacity)
            series.append(replace(line, width=width, trials=[trial["trial"]]))
        mark: Mark = "cross" if color == "stopped" else "circle"
        name = "stopped at a rung" if color == "stopped" else color
        epochs, accuracies = ([trial["curve"][-1][place] for trial in trials] for place in (0, 1))
        numbers = [trial["trial"] for trial in trials]
        ends = Series(name, epochs, accuracies, color, mark, 3, opacity=opacity, trials=numbers)
        series.append(ends)
    saved = document["summary"]["rungs"]
    rules = [
        Rule(rung["epoch"], f"rung: {rung['went_on']} of {rung['came']} went on")
        for rung in (saved["rungs"] if saved is not None else [])
    ]
    return Chart(
        f"{document['study']}: learning curves",
        Axis("epoch", is_whole=True),
        Axis(f"{label_of('top1_percent')} (val)"),
        series,
        rules,
    )


def importance(document: Document) -> Bars:
    """Which choices decide each objective: those that explain a hundredth of one or more."""
    shares: Mapping[str, Mapping[str, float]] = document["importance"]
    slots = {slot for found in shares.values() for slot in found}
    largest = {slot: max(found.get(slot, 0.0) for found in shares.values()) for slot in slots}
    shown = sorted((s for s in slots if largest[s] >= 0.01), key=lambda s: (-largest[s], s))
    rest = len(slots) - len(shown)
    return Bars(
        f"{document['study']}: which choices matter",
        shown,
        {name_of(of): [100 * shares[of].get(slot, 0.0) for slot in shown] for of in shares},
        "Share of the variance explained (fANOVA)."
        + (f" {rest} others explain less than 1 % each." if rest else ""),
    )


def prediction(document: Document) -> Chart:
    """Latencies that were predicted, and then measured."""
    predicted, measured, trials = map(list, zip(*document["prediction"], strict=True))
    low, high = min(*predicted, *measured) / 1.1, max(*predicted, *measured) * 1.1
    xs, ys = [low, high, high, low], [0.9 * low, 0.9 * high, 1.1 * high, 1.1 * low]
    near = Series("within 10 %", xs, ys, "front", None, line="area", opacity=0.15)
    return Chart(
        f"{document['study']}: predicted against measured latency",
        Axis("measured latency, ms", is_log=True),
        Axis("predicted latency, ms", is_log=True),
        [
            near,
            Series("equal", [low, high], [low, high], "soft", None, line="dashed"),
            Series("networks", measured, predicted, "front", "circle", 4, trials=trials),
        ],
        height=360,
    )


def lined(document: Document) -> list[Trial]:
    """The networks that are drawn as lines through their choices."""
    return [trial for trial in document["trials"] if is_whole(trial) and trial["choices"]]


def shades(trials: Sequence[Trial], name: str) -> dict[int, int]:
    """How a figure colours their lines, by trial: from 0 for the least to 9."""
    return {trial: round(9 * share) for trial, share in _shares(trials, name).items()}


def _shares(trials: Sequence[Trial], name: str) -> dict[int, float]:
    """Where their values of a figure lie between the least and the most, costs on a log scale."""
    values = {trial["trial"]: float(trial["values"][name]) for trial in trials}
    if not is_maximised(name) and name != "int8_drop_points":
        values = {trial: math.log10(value) for trial, value in values.items()}
    low, high = min(values.values()), max(values.values())
    return {t: (value - low) / (high - low) if high > low else 0.5 for t, value in values.items()}


class ChoiceLines:
    """What networks were made of, and what came of it: a line a network, an axis a choice.

    Lines go from top to bottom; a choice that means nothing in a network has a place of its own,
    the first. Costs are on a log scale.
    """

    def __init__(self, document: Document) -> None:
        self.title = f"{document['study']}: choices and what came of them"
        up = document["up"]
        self.axes: list[tuple[str, list[str]]] = []
        """What each is called, and the texts on it from left to right."""
        ordered = sorted(lined(document), key=lambda trial: float(trial["values"][up]))
        self.lines: dict[int, list[float]] = {trial["trial"]: [] for trial in ordered}
        """By trial, the places on the axes, from 0 to 1."""
        self._color_by = label_of(up)
        self._shades = shades(ordered, up)
        for index, (slot, values) in enumerate(document["slots"].items()):
            is_absent = any(trial["choices"][index] is None for trial in ordered)
            texts = [_ABSENT] * is_absent + [
                v if isinstance(v, str) else json.dumps(v) for v in values
            ]
            self.axes.append((slot, texts))
            room = min(0.16, 0.62 / len(texts))
            for rank, trial in enumerate(ordered):
                choice = trial["choices"][index]
                place = 0 if choice is None else choice + is_absent
                # Lines that would lie on each other are spread, the best to the right.
                spread = (rank / max(1, len(ordered) - 1) - 0.5) * room
                self.lines[trial["trial"]].append((place + 0.5) / len(texts) + spread)
        self._slots = len(self.axes)
        for name in document["objectives"]:
            known = [trial["values"][name] for trial in ordered]
            self.axes.append((label_of(name), [figure(name, end(known)) for end in (min, max)]))
            for trial_number, share in _shares(ordered, name).items():
                self.lines[trial_number].append(0.01 + 0.98 * share)

    @property
    def description(self) -> str:
        return f"{len(self.lines)} networks as lines through {', '.join(n for n, _ in self.axes)}."

    def draw(self, width: float = WIDE, embedded: bool = False) -> Svg:
        found, is_wide = Svg(width), width > NARROW
        if not embedded:
            found.text(8, 22, self.title, LARGE, bold=True)
            found.text(8, 42, f"dark: little {self._color_by}; bright: much", look="faint")
            found.height = 50
        longest = max(len(name) for name, _ in self.axes)
        left, right = 24.0 + 7 * longest if is_wide else 6.0, width - 8
        row, down = (42, 24) if is_wide else (62, 42)
        tops = [found.height + row * index for index in range(len(self.axes))]
        for top in tops:
            found.path(f"M{number(left)} {number(top + down)}H{number(right)}", "rule")
        opacity = number(max(0.18, min(0.8, 60 / max(1, len(self.lines)))))
        found.add(f'<g fill="none" stroke-width="1.2" stroke-opacity="{opacity}">')
        for trial, places in self.lines.items():
            points = [
                (number(left + (right - left) * place), top + down)
                for place, top in zip(places, tops, strict=True)
            ]
            path = "M{},{}".format(*points[0])
            for (start, above), (end, below) in itertools.pairwise(points):
                middle = (above + below) / 2
                path += f"C{start},{middle:g} {end},{middle:g} {end},{below:g}"
            look = f"in-shade-{self._shades[trial]}"
            found.add(element("path", look, stroke="currentColor", d=path, data_trial=trial))
        found.add("</g>")
        for index, ((name, texts), top) in enumerate(zip(self.axes, tops, strict=True)):
            if is_wide:
                found.text(left - 12, top + down + 4, name, anchor="end")
            else:
                found.box(left - 2, top + 5, 7 * len(name) + 6, 17, "paper")
                found.text(left, top + 18, name)
            if index < self._slots:
                # Values at their places, which a page makes buttons of.
                for place, given in enumerate(texts):
                    x = left + (right - left) * (place + 0.5) / len(texts)
                    text = given if len(given) <= 12 else f"{given[:11]}…"
                    told = escape(f"{name} {'not there' if given == _ABSENT else given}")
                    value = place - (texts[0] == _ABSENT)
                    slot = f'data-slot="{index}" data-value="{value}" data-label="{told}"'
                    wide = 7 * len(text) + 9
                    found.add(f"<g {slot}>")
                    found.box(x - wide / 2, top + down - 10, wide, 20, "plain", radius=4)
                    found.text(x, top + down + 4, text, anchor="middle")
                    found.add("</g>")
            else:
                found.text(left, top + down - 6, texts[0])
                found.text(right, top + down - 6, texts[1], anchor="end")
        found.height = tops[-1] + row
        return found
