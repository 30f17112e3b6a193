"""The report's pictures by matplotlib, each from the document of all that a report shows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_search.audit.pictures import COSTS
from levit_search.drawing.svg import AMBER, BLACK, BLUE, COLORS, GREEN, GREY, ORANGE, PURPLE, SKY
from levit_search.pareto import figure_and_target, is_maximised
from levit_search.report.panels import (
    Document,
    Trial,
    evaluated,
    label_of,
    legend,
    log_ticks,
    name_of,
    note,
    panels,
    plot,
    value_of,
)
from levit_search.report.parallel import MOST_SLOTS, parallel_coordinates
from levit_search.table import in_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HATCHES = ("", "///", "...", "xx")


def plots(document: Document) -> "Iterator[tuple[str, Figure]]":
    """Every picture that there is something to show in, with what its file is called."""
    for tab in document["tabs"]:
        figure, target = figure_and_target(tab["figure"])
        yield f"front-{figure}" + (f"-on-{target}" if target else ""), front(document, tab)
    if document["summary"]["hypervolume"] is not None:
        yield "hypervolume", hypervolume(document)
    if any(trial["curve"] for trial in document["trials"]):
        yield "learning-curves", learning_curves(document)
    if document["importance"]:
        yield "importance", importance(document)
    if document["slots"]:
        yield "choices", parallel_coordinates(document)
    if document["prediction"]:
        yield "predicted-latency", prediction(document)


def front(document: Document, tab: Mapping[str, Any]) -> "Figure":
    """What can be had for a cost: the networks that no other beats, and the others, faint."""
    title = f"{name_of(document['up'])} against {tab['title'][0].lower()}{tab['title'][1:]}"
    if tab["title"].startswith("FLOPs"):
        title = f"{name_of(document['up'])} against FLOPs"
    figure, axes = plot(f"{document['study']}: {title}")
    up, across = document["up"], tab["figure"]
    by_number = {trial["trial"]: trial for trial in document["trials"]}
    best = [by_number[number] for number in tab["front"]]
    others = [
        trial
        for trial in evaluated(document)
        if trial["trial"] not in tab["front"] and across in trial["values"]
    ]

    def points(trials: Sequence[Trial]) -> list[list[float]]:
        return [[value_of(trial, name) for trial in trials] for name in (across, up)]

    axes.plot(*points(others), "o", color=GREY, alpha=0.7, markersize=4, label="dominated")
    axes.plot(*points(best), color=BLUE, drawstyle="steps-post", linewidth=1, alpha=0.6)
    axes.plot(*points(best), "o", color=BLUE, markersize=6, label="front")
    known = [trial for trial in best if trial["accuracy"] is not None]
    if known and up == "top1_percent":
        across_known, up_known = points(known)
        low, high = ([trial["accuracy"][end] for trial in known] for end in ("low", "high"))
        reach = [np.subtract(up_known, low), np.subtract(high, up_known)]
        style: dict[str, Any] = {"fmt": "none", "color": BLUE, "alpha": 0.6, "linewidth": 1}
        axes.errorbar(across_known, up_known, yerr=reach, label="95 % interval", **style)
    starts = [trial for trial in [*best, *others] if trial["is_start"]]
    ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "linestyle": ""}
    if starts:
        axes.plot(*points(starts), marker="s", color=GREEN, label="tried first", **ring)
    first = document["chosen"][0]
    is_knee = "knee of the front" in document["details"][str(first)]["picked_as"]
    knee = [trial for trial in [*best, *others] if is_knee and trial["trial"] == first]
    if knee:
        axes.plot(*points(knee), marker="D", color=ORANGE, label="knee", **ring)
    for trial in [*best, *others]:
        if trial["name"]:
            note(axes, trial["name"], value_of(trial, across), value_of(trial, up))
    _reference(axes, tab, by_number, up)
    _published(axes, document["published"], across, up)
    _baselines(axes, document["baselines"], across, up)
    axes.set_xlabel(label_of(across))
    axes.set_ylabel(label_of(up))
    log_ticks(axes, "x")
    if not is_maximised(up):
        log_ticks(axes, "y")
    beside = [text for text in (tab["device"], tab["runtime"]) if text]
    if beside:
        told = "\n".join(beside)
        axes.set_title(told, loc="left", fontsize=8, color="#555555", parse_math=False)
    legend(axes)
    return figure


def _reference(
    axes: "Axes", tab: Mapping[str, Any], by_number: Mapping[int, Trial], up: str
) -> None:
    """The network that latencies are relative to: a point where it was trained, else a line."""
    reference = tab["reference"]
    if reference is None:
        return
    trial = by_number.get(reference["trial"])
    if trial is None or up not in trial["values"]:
        label = f"reference, {reference['ms']:.3g} ms"
        axes.axvline(reference["ms"], color=BLACK, linestyle=":", linewidth=1.2, label=label)
    else:
        at = [value_of(trial, tab["figure"]), value_of(trial, up)]
        axes.plot(*at, "*", color=AMBER, markersize=13, label="reference", markeredgecolor=BLACK)


def _published(axes: "Axes", rows: Sequence[Mapping[str, Any]], across: str, up: str) -> None:
    known = [row for row in rows if across in row["values"] and up in row["values"]]
    if known:
        points = [[in_unit(name, row["values"][name]) for row in known] for name in (across, up)]
        axes.plot(*points, "^", color=PURPLE, markersize=6, label="the paper's")
        for row, x, y in zip(known, *points, strict=True):
            note(axes, row["name"], x, y)


def _baselines(axes: "Axes", rows: Sequence[Mapping[str, Any]], across: str, up: str) -> None:
    known = [row for row in rows if across in row["values"] and up in row["values"]]
    if known:
        points = [[in_unit(name, row["values"][name]) for row in known] for name in (across, up)]
        style: dict[str, Any] = {"color": SKY, "markersize": 8, "markeredgecolor": BLACK}
        axes.plot(*points, "X", label="compared with", **style)
        for row, x, y in zip(known, *points, strict=True):
            note(axes, row["name"], x, y)


def hypervolume(document: Document) -> "Figure":
    """How the front grew by what was spent."""
    path = document["trajectory"]
    costs = ["trials", "epochs", "hours" if path["hours"][-1] is not None else "worker_hours"]
    costs = [cost for cost in costs if path[cost][-1]]
    figure, parts = panels(f"{document['study']}: hypervolume of the front", len(costs))
    volumes = path["hypervolume"]
    lows = []
    for axes, cost in zip(parts, costs, strict=True):
        axes.step(path[cost], volumes, where="post", color=BLUE, linewidth=1.5)
        axes.set_xlabel(COSTS[cost])
        axes.margins(x=0.02)
        early = [v for x, v in zip(path[cost], volumes, strict=True) if x <= path[cost][-1] / 20]
        lows.append(max([0.0, *early]))
        axes.sharey(parts[0])
        axes.tick_params(labelleft=axes is parts[0])
    low, high = min(filter(None, lows), default=0.0), volumes[-1]
    if 0 < low < high:  # the first networks are most of it; what follows is of interest
        parts[0].set_ylim(low - (high - low) / 20, high + (high - low) / 20)
    parts[0].set_ylabel("hypervolume")
    return figure


def learning_curves(document: Document) -> "Figure":
    """Accuracy by epoch of all that were trained, and where rungs ended a training."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = plot(f"{document['study']}: learning curves")
    trained = [trial for trial in document["trials"] if trial["curve"]]
    best = {trial["trial"] for trial in trained if trial["on_front"]}
    kinds = {
        "stopped at a rung": ([t for t in trained if t["outcome"] == "stopped"], AMBER),
        "dominated": (
            [t for t in trained if t["outcome"] != "stopped" and t["trial"] not in best],
            GREY,
        ),
        "front": ([t for t in trained if t["trial"] in best], BLUE),
    }
    for label, (trials, color) in kinds.items():
        is_front, is_stopped = label == "front", label.startswith("stopped")
        for trial in trials:
            axes.plot(
                *zip(*trial["curve"], strict=True),
                color=color,
                alpha=1.0 if is_front else 0.6,
                linewidth=1.6 if is_front else 0.8,
                zorder=3 if is_front else 2,
            )
        if trials:
            ends = zip(*(trial["curve"][-1] for trial in trials), strict=True)
            marker = "x" if is_stopped else "o"
            axes.plot(*ends, marker, color=color, markersize=4, label=label, zorder=3)
    for epoch in sorted({rung[0] for trial in trained for rung in trial["rungs"]}):
        axes.axvline(epoch, color=BLACK, linestyle=":", linewidth=0.8, zorder=1)
        axes.annotate(
            "rung",
            (epoch, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(3, -3),
            textcoords="offset points",
            va="top",
            fontsize=8,
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{label_of('top1_percent')} (val)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(axes)
    return figure


def importance(document: Document) -> "Figure":
    """Which choices decide each objective."""
    shares: Mapping[str, Mapping[str, float]] = document["importance"]
    slots = {slot for found in shares.values() for slot in found}
    largest = {slot: max(found.get(slot, 0.0) for found in shares.values()) for slot in slots}
    shown = sorted(slots, key=lambda slot: (-largest[slot], slot))[:MOST_SLOTS]
    figure, axes = plot(
        f"{document['study']}: which choices matter", height=1.4 + 0.32 * len(shown)
    )
    thick = 0.8 / len(shares)
    for index, (objective, found) in enumerate(shares.items()):
        axes.barh(
            [place + (index - (len(shares) - 1) / 2) * thick for place in range(len(shown))],
            [100 * found.get(slot, 0.0) for slot in shown],
            height=thick,
            color=COLORS[index % len(COLORS)],
            hatch=_HATCHES[index % len(_HATCHES)],
            edgecolor="white",
            label=name_of(objective),
        )
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set_xlabel("share of the variance explained, % (fANOVA)")
    axes.grid(visible=False, axis="y")
    legend(axes, "lower right")  # the longest bars are at the top
    return figure


def prediction(document: Document) -> "Figure":
    """Latencies that were predicted, and then measured."""
    figure, axes = plot(f"{document['study']}: predicted against measured latency", 5.2, 4.9)
    predicted, measured, _ = zip(*document["prediction"], strict=True)
    low = min(*predicted, *measured) / 1.1
    high = max(*predicted, *measured) * 1.1
    ends = (low, high)
    tenth = ([0.9 * end for end in ends], [1.1 * end for end in ends])
    axes.fill_between(ends, *tenth, color=SKY, alpha=0.25, linewidth=0, label="within 10 %")
    axes.plot(ends, ends, color=BLACK, linewidth=0.8, label="equal")
    axes.plot(measured, predicted, "o", color=BLUE, markersize=5, label="networks")
    axes.set_xlabel("measured latency, ms")
    axes.set_ylabel("predicted latency, ms")
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    log_ticks(axes, "x")
    log_ticks(axes, "y")
    axes.set_aspect("equal")
    legend(axes)
    return figure
