"""An audit as tables and sentences, for the terminal and as Markdown, and as a picture."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from levit_search import table
from levit_search.audit.front_confidence import student_factor
from levit_search.audit.search_cost import COSTS
from levit_search.drawing.chart import Axis, Chart, Mark, Series, picture
from levit_search.pareto import accuracy_of, figure_and_target, is_maximised
from levit_search.results import Section, markdown_table

_Z95 = 1.96


def sections(document: Mapping[str, Any]) -> list[Section]:
    """What ``audit.json`` holds, part by part."""
    parts = [_search(document["search"]), _proposals(document["search"]["shares"])]
    if document["search"]["rungs"]:
        parts.append(_rungs(document["search"]["rungs"]))
    parts.append(_front(document))
    if any("int8" in row for row in document["front"]):
        parts.append(_int8(document))
    if document["near_misses"]:
        parts.append(_near_misses(document))
    return parts


def markdown(document: Mapping[str, Any], picture: str) -> str:
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


def _search(search: Mapping[str, Any]) -> Section:
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
    if found := search.get("settled"):
        if found["trial"] is None:
            notes.append(
                f"The front was still moving: further training was expected to add up to "
                f"{found['last_percent']:.2g} % to the hypervolume."
            )
        else:
            notes.append(
                f"From trial {found['trial']} on the front no longer moved: no training was "
                f"expected to add more than {found['percent']:g} % to the hypervolume "
                "(`search.until: converged` ends there)."
            )
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


def _proposals(shares: Mapping[str, Any]) -> Section:
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


def _rungs(found: Mapping[str, Any]) -> Section:
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


def _front(document: Mapping[str, Any]) -> Section:
    is_trained = any(map(is_maximised, document["objectives"]))
    with_means = is_trained and any(row["val"]["seeds"] for row in document["front"])
    mean = ["mean of seeds"] if with_means else []
    heads = ["val %", *mean, "test %", *mean] if is_trained else []
    front = document["front"]
    accuracies = [_accuracies(row, with_means) if is_trained else [] for row in front]
    heads, rows = _networks(document, front, heads, accuracies)
    return Section("The front", heads, rows, _front_notes(document, is_trained))


def _int8(document: Mapping[str, Any]) -> Section:
    """What int8 costs the members of the front."""
    front = [row for row in document["front"] if "int8" in row]
    with_means = any(row["int8"]["val"]["seeds"] for row in front)
    mean = ["mean of seeds"] if with_means else []
    heads = ["network", "val int8 %", *mean, "test int8 %", *mean, "drop on val", "on test"]
    rows, drops = [], []
    for row in front:
        drop = row["int8"]["drop"]
        drops.append(drop["val_mean"])
        on_val = f"{drop['val_mean']:.2f}"
        if (error := drop["val_standard_error"]) is not None:
            on_val += f" +- {error:.2f}"
        on_test = f"{drop['test_mean']:.2f}" if drop["test"] else ""
        accuracies = _accuracies(row["int8"], with_means)
        rows.append([f"trial {row['trial']}", *accuracies, on_val, on_test])
    worst = rows[drops.index(max(drops))][0]
    over = ", the mean over all seeds; +- is one standard error" if with_means else ""
    notes = [
        f"drop: the accuracy in float less that in int8, in points{over}.",
        f"On val it is {median(drops):.2f} in the median and {max(drops):.2f} at worst ({worst}).",
    ]
    return Section("The front in int8", heads, rows, notes)


def _near_misses(document: Mapping[str, Any]) -> Section:
    near, more = document["near_misses"], document["near_misses_in_all"]
    names = [name for name in document["objectives"] if is_maximised(name)]
    heads = ["val %" if name == "top1_percent" else "val int8 %" for name in names]
    accuracies = [[table.figure(name, row["values"][name]) for name in names] for row in near]
    heads, rows = _networks(document, near, heads, accuracies)
    more -= len(rows)
    notes = [f"and {more} more with a chance of 0.01 and above."] if more else []
    return Section("Near misses that may belong on it", heads, rows, notes)


def _networks(
    document: Mapping[str, Any],
    networks: Sequence[Mapping[str, Any]],
    heads: Sequence[str],
    accuracies: Sequence[Sequence[str]],
) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of a table of networks with their costs, accuracies and chances."""
    costs = [name for name in document["objectives"] if not is_maximised(name)]
    rows = []
    for row, percents in zip(networks, accuracies, strict=True):
        values = [row["values"][name] for name in costs]
        plain = [f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}" for value in values]
        rows.append([f"trial {row['trial']}", *plain, *percents, f"{row['chance']:.2f}"])
    return ["network", *costs, *heads, "chance"], rows


def _accuracies(row: Mapping[str, Any], with_means: bool) -> list[str]:
    val, test = row["val"], row["test"]
    error = val["standard_error"]
    mean = f"{val['mean']:.2f} +- {error:.2f}" if error is not None else ""
    on_test = ["", ""]
    if test is not None:
        on_test = [f"{test['search']:.2f} +- {test['standard_error']:.2f}", f"{test['mean']:.2f}"]
    cells = [table.figure("top1_percent", val["search"]), mean, *on_test]
    return cells if with_means else [cells[0], cells[2]]


def _front_notes(document: Mapping[str, Any], is_trained: bool) -> list[str]:
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


def draw(document: Mapping[str, Any]) -> str:
    """The hypervolume by what it cost, and the front with what is uncertain, as an SVG file."""
    steps = document["search"]["trajectory"]
    hours = "hours" if steps[-1]["hours"] is not None else "worker_hours"
    volumes = [step["hypervolume"] for step in steps]
    grown = [
        growth(document["study"], COSTS[cost], [step[cost] for step in steps], volumes)
        for cost in ("trials", "epochs", hours)
    ]
    in_int8 = [_drop_chart(document)] if any("int8" in row for row in document["front"]) else []
    return picture([*grown, _front_chart(document), *in_int8])


def growth(study: str, label: str, costs: Sequence[float], volumes: Sequence[float]) -> Chart:
    """How the front's hypervolume grew by what was spent."""
    # The first networks are most of it; what follows is of interest.
    pairs = list(zip(costs, volumes, strict=True))
    least = max([0.0, *(volume for cost, volume in pairs if cost <= costs[-1] / 20 < costs[-1])])
    xs, ys = zip(*(pair for pair in pairs if pair[1] >= least), strict=True)
    tips = [f"hypervolume {y:.4f}\n{label} {x:.4g}" for x, y in zip(xs, ys, strict=True)]
    line = Series("", xs, ys, "front", None, line="steps", width=2)
    points = Series("", xs, ys, "front", "circle", 2.5, tips=tips)
    title = f"{study}: hypervolume of the front"
    return Chart(title, Axis(label, low=0.0), Axis("hypervolume"), [line, points])


def _front_chart(document: Mapping[str, Any]) -> Chart:
    """The front and its near misses; accuracies with their 95 % intervals."""
    objectives = document["objectives"]
    across = next((name for name in objectives if not is_maximised(name)), objectives[0])
    up = accuracy_of([name for name in objectives if name != across])
    up = up or next(name for name in objectives if name != across)

    def places(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
        return [table.in_unit(name, row["values"][name]) for row in rows]

    def told(row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A member's accuracies of the kind that is drawn."""
        accuracies: Mapping[str, Any] = row["int8"] if up == "top1_int8_percent" else row
        return accuracies

    found = "front, search" if is_maximised(up) else "front"
    series = [
        Series(label, places(rows, across), places(rows, up), color, is_open=True)
        for label, rows, color in (
            ("near miss", document["near_misses"], "dominated"),
            (found, document["front"], "front"),
        )
    ]
    if is_maximised(up):
        freedom = document["noise"]["degrees_of_freedom"]
        errors = _Z95 * student_factor(freedom) if freedom else 0.0
        looks: tuple[tuple[str, str, Mark, float, str, str], ...] = (
            ("val", "mean", "square", errors, "reference", "val, mean of seeds"),
            ("test", "search", "triangle", _Z95, "known", "test, search's weights"),
        )
        for split, which, mark, wide, color, label in looks:
            known = [row for row in document["front"] if told(row).get(split)]
            known = [row for row in known if told(row)[split]["standard_error"] is not None]
            ys = [told(row)[split][which] for row in known]
            errs = [wide * told(row)[split]["standard_error"] for row in known]
            ends = [(y - error, y + error) for y, error in zip(ys, errs, strict=True)]
            series.append(Series(label, places(known, across), ys, color, mark, y_ends=ends))
    return Chart(
        f"{document['study']}: the front, as far as it is known",
        Axis(table.heading(across), is_log=not is_maximised(across)),
        Axis(table.heading(up), is_log=not is_maximised(up)),
        series,
    )


def _drop_chart(document: Mapping[str, Any]) -> Chart:
    """What int8 costs each member of the front, with all its seeds."""
    objectives = document["objectives"]
    across = next((name for name in objectives if not is_maximised(name)), objectives[0])
    front = [row for row in document["front"] if "int8" in row]
    xs = [table.in_unit(across, row["values"][across]) for row in front]
    drops = [row["int8"]["drop"] for row in front]
    ends = [(min(drop["val"]), max(drop["val"])) for drop in drops]
    tested = [(x, drop["test_mean"]) for x, drop in zip(xs, drops, strict=True) if drop["test"]]
    means = [drop["val_mean"] for drop in drops]
    series = [
        Series("no drop", [min(xs), max(xs)], [0.0, 0.0], "soft", None, line="dashed"),
        Series("val, from seed to seed", xs, means, "front", y_ends=ends),
        Series("test", [x for x, _ in tested], [y for _, y in tested], "known", "triangle"),
    ]
    return Chart(
        f"{document['study']}: accuracy in float less that in int8",
        Axis(table.heading(across), is_log=not is_maximised(across)),
        Axis("drop, points"),
        series,
    )
