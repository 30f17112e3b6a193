"""An audit as tables and sentences, for the terminal and as Markdown, and as a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from levit_search import table
from levit_search.audit.front_confidence import student_factor
from levit_search.audit.search_cost import COSTS
from levit_search.drawing.svg import BLUE, GREEN, GREY, ORANGE
from levit_search.pareto import figure_and_target, is_maximised
from levit_search.results import Document, Section, markdown_table, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sections(document: Document) -> list[Section]:
    """What ``audit.json`` holds, part by part."""
    parts = [_search(document["search"]), _proposals(document["search"]["shares"])]
    if document["search"]["rungs"]:
        parts.append(_rungs(document["search"]["rungs"]))
    parts.append(_front(document))
    if document["near_misses"]:
        parts.append(_near_misses(document))
    return parts


def markdown(document: Document, picture: str) -> str:
    """The whole audit; ``picture`` is the name of the file beside it."""
    lines = [f"# Audit of {document['study']}", "", f"{document['finished']}.", ""]
    for section in sections(document):
        lines += [f"## {section.title}", ""]
        if section.rows:
            lines += [*markdown_table(section.heads, section.rows, section.heads[:1]), ""]
        if section.notes:
            lines += [*(f"- {note}" for note in section.notes), ""]
    lines.append(f"![hypervolume by what it cost, and the front]({picture})")
    return "\n".join(lines) + "\n"


def _search(search: Document) -> Section:
    points = search["milestones"]
    specs = {"trials": "d", "epochs": "d", "worker_hours": ".3g", "hours": ".3g"}
    if points[-1]["hours"] is None:
        del specs["hours"]
    heads = [name.replace("_", " ").replace("trials", "proposals") for name in specs]
    last = points[-1]["hypervolume"]
    rows = [
        [
            f"{point['hypervolume']:.4f}",
            f"{100 * point['hypervolume'] / last:.1f} %" if last else "",
            *(format(point[name], spec) for name, spec in specs.items()),
        ]
        for point in points
    ]
    notes = []
    if found := search["prediction"]:
        notes.append(
            f"Predicted latencies of {found['networks']} networks that were measured later: "
            f"{found['mean_abs_percent']:.1f} % off in the mean, {found['worst_abs_percent']:.1f} "
            f"% at worst; {found['mean_percent']:+.1f} % on balance."
        )
    if found := search.get("inheritance"):
        count, seconds = found["networks"], found["supernet_seconds"]
        networks = "1 network that was" if count == 1 else f"{count} networks that were"
        points = _signed(found["mean_points"], found["sd_points"], " points")
        tau = f", Kendall's tau {found['tau']:.2f}" if found["tau"] is not None else ""
        cost = f"; the supernet took {seconds:.0f} s of a worker, counted above" if seconds else ""
        notes.append(
            f"Inherited accuracies of {networks} trained later: {points} beside their own{tau}"
            f"{cost}."
        )
    return Section(
        "Hypervolume by what it cost", ["hypervolume", "of the last", *heads], rows, notes
    )


def _proposals(shares: Document) -> Section:
    parts = [shares[key] for key in ("percent", "early_percent", "late_percent")]
    rows = [
        [name, str(count), *(f"{part[name]:.1f}" for part in parts)]
        for name, count in shares["counts"].items()
        if count
    ]
    notes = []
    for key, what in (("infeasible", "Infeasible"), ("failures", "Failed")):
        if shares[key]:
            reasons = "; ".join(f"{found['count']} x {found['reason']}" for found in shares[key])
            notes.append(f"{what}: {reasons}.")
    heads = ["outcome", "proposals", "%", "first half %", "second half %"]
    return Section("What became of the proposals", heads, rows, notes)


def _rungs(found: Document) -> Section:
    rows = [
        [
            *(str(rung[name]) for name in ("epoch", "came", "went_on")),
            f"{100 * rung['went_on'] / rung['came']:.0f}",
        ]
        for rung in found["rungs"]
    ]
    note = (
        f"{found['stopped']} of {found['trained']} networks were stopped: {found['epochs']} epochs "
        f"trained, {found['epochs_saved']} saved, {found['saved_percent']:.0f} % of what training "
        f"all of them to the end would cost; about {found['hours_saved']:.2g} hours of a worker."
    )
    return Section("What the rungs saved", ["epoch", "came", "went on", "%"], rows, [note])


def _front(document: Document) -> Section:
    is_trained = "top1_percent" in document["objectives"]
    with_means = is_trained and any(row["val"]["seeds"] for row in document["front"])
    mean = ["mean of seeds"] if with_means else []
    accuracies = ["val %", *mean, "test %", *mean] if is_trained else []
    costs = [name for name in document["objectives"] if name != "top1_percent"]
    rows = [
        [
            f"trial {row['trial']}",
            *(_plain(row["values"][name]) for name in costs),
            *(_accuracies(row, with_means) if is_trained else []),
            f"{row['chance']:.2f}",
        ]
        for row in document["front"]
    ]
    heads = ["network", *costs, *accuracies, "chance"]
    return Section("The front", heads, rows, _front_notes(document, is_trained))


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}"


def _accuracies(row: Document, with_means: bool) -> list[str]:
    val, test = row["val"], row["test"]
    cells = [table.figure("top1_percent", val["search"])]
    error = val["standard_error"]
    mean = f"{val['mean']:.2f} +- {error:.2f}" if error is not None else ""
    on_test = ["", ""]
    if test is not None:
        error = test["standard_error"]
        on_test = [f"{test['search']:.2f} +- {error:.2f}", f"{test['mean']:.2f}"]
    return [*cells, mean, *on_test] if with_means else [*cells, on_test[0]]


def _front_notes(document: Document, is_trained: bool) -> list[str]:
    noise, moves, test = document["noise"], document["moves"], document["test"]
    doubts, notes = [], []
    if is_trained and noise["seed_sd_points"] is not None:
        doubts.append(
            f"seeds scatter by {noise['seed_sd_points']:.2f} points "
            f"({noise['degrees_of_freedom']} degrees of freedom)"
        )
    elif is_trained:
        doubts.append("seeds did not matter (other ones were not tried)")
    if any(figure_and_target(name)[0].startswith("latency") for name in document["objectives"]):
        doubts.append("latencies are off as they are measured")
    if doubts:
        notes.append(
            "chance: that no other network is as good in every respect and better in one, if "
            f"{' and '.join(doubts)}; +- is one standard error."
        )
    if moves:
        volume = moves["hypervolume"]
        notes += [
            f"With {moves['retrained']} networks trained again, val was "
            f"{_signed(moves['optimism_points'], moves['optimism_standard_error'])} points higher "
            "with the search's own seed than with others.",
            f"By the means of all seeds, {_list(moves['leaves'], 'leave')} the front, and "
            f"{_list(moves['enters'], 'come')} on to it (with one seed).",
            f"Hypervolume: {volume['search']:.4f} in the search, {volume['mean']:.4f} by the "
            f"means, {volume['other_seeds']:.4f} with the other seeds alone.",
        ]
    if test:
        gap = _signed(test["val_minus_test_points"], test["val_minus_test_standard_error"])
        again = test["val_minus_test_points_other_seeds"]
        others = f" ({again:+.2f} with other seeds)" if again is not None else ""
        notes.append(
            f"val is {gap} points above test{others}, on {test['val_images']} and "
            f"{test['test_images']} images; on test {_list(test['dominated'], 'are')} dominated; "
            f"hypervolume {test['hypervolume']:.4f}."
        )
    return notes


def _signed(points: float, error: float | None, unit: str = "") -> str:
    return f"{points:+.2f}{unit}" + (f" (+- {error:.2f})" if error is not None else "")


def _list(trials: Sequence[int], verb: str) -> str:
    """``trials 1 and 2 leave``, ``trial 1 leaves``, ``none leaves``."""
    one = {"leave": "leaves", "come": "comes", "are": "is"}[verb]
    if not trials:
        return f"none {one}"
    if len(trials) == 1:
        return f"trial {trials[0]} {one}"
    return f"trials {', '.join(map(str, trials[:-1]))} and {trials[-1]} {verb}"


def _near_misses(document: Document) -> Section:
    costs = [name for name in document["objectives"] if name != "top1_percent"]
    accuracy = ["top1_percent"] if "top1_percent" in document["objectives"] else []
    rows = [
        [
            f"trial {row['trial']}",
            *(_plain(row["values"][name]) for name in costs),
            *(f"{row['values'][name]:.2f}" for name in accuracy),
            f"{row['chance']:.2f}",
        ]
        for row in document["near_misses"]
    ]
    more = document["near_misses_in_all"] - len(rows)
    notes = [f"and {more} more with a chance of 0.01 and above."] if more else []
    heads = ["network", *costs, *["val %" for _ in accuracy], "chance"]
    return Section("Near misses that may belong on it", heads, rows, notes)


def draw(document: Document) -> bytes:
    """The hypervolume by what it cost, and the front with what is uncertain, as an SVG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    steps = document["search"]["trajectory"]
    hours = "hours" if steps[-1]["hours"] is not None else "worker_hours"
    for axes, cost in zip(panels[:3], ("trials", "epochs", hours), strict=True):
        _draw_trajectory(axes, steps, cost)
    _draw_front(panels[3], document)
    figure.suptitle(f"Audit of {document['study']}", x=0.01, ha="left", fontsize=11)
    return svg(figure)


def _draw_trajectory(axes: "Axes", steps: Sequence[Document], cost: str) -> None:
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


def _draw_front(axes: "Axes", document: Document) -> None:
    objectives = document["objectives"]
    across = next((name for name in objectives if not is_maximised(name)), objectives[0])
    up = next(name for name in ("top1_percent", *objectives) if name in objectives)
    up = up if up != across else next(name for name in objectives if name != across)
    axes.set_xscale("log")
    axes.set_xlabel(table.heading(across))
    axes.set_ylabel(table.heading(up))
    axes.grid(alpha=0.3, which="both")

    def places(rows: Sequence[Document], name: str) -> list[float]:
        return [table.in_unit(name, row["values"][name]) for row in rows]

    for rows, color, label in (
        (document["near_misses"], GREY, "near miss"),
        (document["front"], BLUE, "front, search" if is_maximised(up) else "front"),
    ):
        if rows:
            axes.plot(
                places(rows, across),
                places(rows, up),
                linestyle="",
                marker="o",
                markerfacecolor="none",
                color=color,
                label=label,
            )
    if is_maximised(up):
        # Accuracies with their 95 % intervals, which are so many standard errors wide.
        freedom = document["noise"]["degrees_of_freedom"]
        errors = 1.96 * student_factor(freedom) if freedom else 0.0
        for split, figure, marker, wide, color, label in (
            ("val", "mean", "s", errors, ORANGE, "val, mean of seeds"),
            ("test", "search", "^", 1.96, GREEN, "test, search's weights"),
        ):
            known = [row for row in document["front"] if row.get(split)]
            known = [row for row in known if row[split]["standard_error"] is not None]
            if known:
                axes.errorbar(
                    places(known, across),
                    [row[split][figure] for row in known],
                    yerr=[wide * row[split]["standard_error"] for row in known],
                    linestyle="",
                    marker=marker,
                    markersize=4,
                    capsize=2,
                    color=color,
                    label=label,
                )
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)
