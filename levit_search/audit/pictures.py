"""An audit as a picture: the hypervolume by what it cost, and the front with what is uncertain."""

import io
from typing import TYPE_CHECKING, Any

from levit_search.audit.noise import student_factor
from levit_search.drawing.svg import BLUE, GREEN, GREY, ORANGE
from levit_search.pareto import is_maximised
from levit_search.table import heading, in_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSTS = {
    "trials": "proposals",
    "epochs": "epochs trained",
    "worker_hours": "worker hours",
    "hours": "hours",
}
"""What a search spends, by its name in a trajectory."""


def draw(document: dict[str, Any]) -> bytes:
    """An SVG file of what ``audit.json`` holds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    last = document["search"]["trajectory"][-1]
    hours = "hours" if last["hours"] is not None else "worker_hours"
    with plt.rc_context({"svg.hashsalt": "levit-search", "svg.fonttype": "none"}):
        figure, panels = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
        for axes, cost in zip(panels.flat, ("trials", "epochs", hours), strict=False):
            _trajectory(axes, document["search"]["trajectory"], cost)
        _front(panels.flat[3], document)
        figure.suptitle(f"Audit of {document['study']}", x=0.01, ha="left", fontsize=11)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    return file.getvalue()


def _trajectory(axes: "Axes", steps: list[dict[str, Any]], cost: str) -> None:
    costs = [step[cost] for step in steps]
    volumes = [step["hypervolume"] for step in steps]
    axes.step(costs, volumes, where="post", color=BLUE)
    axes.set_xlabel(COSTS[cost])
    axes.set_ylabel("hypervolume")
    axes.grid(alpha=0.3)
    early = [
        volume for spent, volume in zip(costs, volumes, strict=True) if spent <= costs[-1] / 20
    ]
    low, high = max([0.0, *early]), volumes[-1]
    if 0 < low < high:  # the first networks are most of the volume; what follows is of interest
        axes.set_ylim(low, high + (high - low) / 20)


def _front(axes: "Axes", document: dict[str, Any]) -> None:
    objectives = document["objectives"]
    across = next((name for name in objectives if not is_maximised(name)), objectives[0])
    up = next(name for name in ("top1_percent", *objectives) if name in objectives)
    up = up if up != across else next(name for name in objectives if name != across)
    axes.set_xscale("log")
    axes.set_xlabel(heading(across))
    axes.set_ylabel(heading(up))
    axes.grid(alpha=0.3, which="both")
    for rows, color, label in (
        (document["near_misses"], GREY, "near miss"),
        (document["front"], BLUE, "front, search" if is_maximised(up) else "front"),
    ):
        if rows:
            points = [[in_unit(name, row["values"][name]) for name in (across, up)] for row in rows]
            axes.plot(
                *zip(*points, strict=True),
                linestyle="",
                marker="o",
                markerfacecolor="none",
                color=color,
                label=label,
            )
    if is_maximised(up):
        freedom = document["noise"]["degrees_of_freedom"]
        seeds = 1.96 * student_factor(freedom) if freedom else 0.0
        _bars(axes, document["front"], across, "val", seeds, ORANGE, "val, mean of seeds")
        _bars(axes, document["front"], across, "test", 1.96, GREEN, "test, search's weights")
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)


def _bars(
    axes: "Axes",
    rows: list[dict[str, Any]],
    across: str,
    split: str,
    errors: float,
    color: str,
    label: str,
) -> None:
    """Accuracies with their 95 % intervals, which are so many standard errors wide."""
    known = [row for row in rows if row.get(split) and row[split]["standard_error"] is not None]
    if known:
        axes.errorbar(
            [in_unit(across, row["values"][across]) for row in known],
            [row[split]["mean" if split == "val" else "search"] for row in known],
            yerr=[errors * row[split]["standard_error"] for row in known],
            linestyle="",
            marker="s" if split == "val" else "^",
            markersize=4,
            capsize=2,
            color=color,
            label=label,
        )
