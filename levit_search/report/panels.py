"""What all pictures of a report have in common: axes with readable ticks, and figures in units."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from levit_search.pareto import figure_and_target
from levit_search.report.tabs import TITLES
from levit_search.table import in_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Document = Mapping[str, Any]
"""See :func:`levit_search.report.contents.contents`."""
Trial = Mapping[str, Any]
"""One of a document's ``trials``."""

SIZE = (7.0, 4.6)  # inches


def plot(title: str, width: float = SIZE[0], height: float = SIZE[1]) -> "tuple[Figure, Axes]":
    """A figure with one pair of axes; sizes are in inches."""
    figure, parts = panels(title, 1, width, height)
    return figure, parts[0]


def panels(
    title: str, count: int, width: float | None = None, height: float = 3.4
) -> "tuple[Figure, list[Axes]]":
    """A figure with pairs of axes beside each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width or 3.4 * count + 0.6, height), layout="constrained")
    parts = [figure.add_subplot(1, count, index + 1) for index in range(count)]
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    for axes in parts:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, parts


def legend(axes: "Axes", where: Literal["best", "lower right"] = "best") -> None:
    axes.legend(
        loc=where, framealpha=0.85, edgecolor="none", fontsize=8, markerscale=0.75, labelspacing=0.6
    )


def note(axes: "Axes", text: str, x: float, y: float) -> None:
    """What a point is called."""
    axes.annotate(
        text, (x, y), xytext=(5, -9), textcoords="offset points", fontsize=7, parse_math=False
    )


def log_ticks(axes: "Axes", side: Literal["x", "y"]) -> None:
    """A decimal log scale whose ticks can be read, however short it is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis = axes.xaxis if side == "x" else axes.yaxis
    (axes.set_xscale if side == "x" else axes.set_yscale)("log")
    low, high = axes.get_xlim() if side == "x" else axes.get_ylim()
    if high / low < 3:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    else:
        subs = (1, 1.5, 2, 3, 4, 5, 7) if high / low < 12 else (1, 2, 5)
        axis.set_major_locator(LogLocator(subs=subs if high / low < 300 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def evaluated(document: Document) -> list[Trial]:
    """Networks that were evaluated to the end, each once."""
    return [
        trial
        for trial in document["trials"]
        if trial["state"] == "complete" and trial["reused_from"] is None
    ]


def value_of(trial: Trial, name: str) -> float:
    """A figure of a trial in the unit in which people read it."""
    return in_unit(name, float(trial["values"][name]))


def name_of(figure: str) -> str:
    """What a figure is called, without its unit."""
    known, target = figure_and_target(figure)
    return TITLES[known][0] if target is None else f"{TITLES[known][0]} on {target}"


def label_of(figure: str) -> str:
    """What is written at an axis."""
    return f"{name_of(figure)}, {TITLES[figure_and_target(figure)[0]][1]}"
