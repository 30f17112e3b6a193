"""An audit as tables and sentences, for the terminal and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from levit_search import table
from levit_search.pareto import figure_and_target


@dataclass(frozen=True)
class Section:
    """A table with what there is to say below it; either may be empty."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    notes: list[str]


def sections(document: dict[str, Any]) -> list[Section]:
    """What ``audit.json`` holds, part by part."""
    parts = [_search(document["search"]), _proposals(document["search"]["shares"])]
    if document["search"]["rungs"]:
        parts.append(_rungs(document["search"]["rungs"]))
    parts.append(_front(document))
    if document["near_misses"]:
        parts.append(_near(document))
    return parts


def markdown(document: dict[str, Any], picture: str) -> str:
    """The whole audit; ``picture`` is the name of the file beside it."""
    lines = [f"# Audit of {document['study']}", "", f"{document['finished']}.", ""]
    for section in sections(document):
        lines += [f"## {section.title}", ""]
        if section.rows:
            rules = ["---" if index == 0 else "---:" for index in range(len(section.heads))]
            lines += [f"| {' | '.join(row)} |" for row in (section.heads, rules, *section.rows)]
            lines.append("")
        lines += [*(f"- {note}" for note in section.notes), ""] if section.notes else []
    lines.append(f"![hypervolume by what it cost, and the front]({picture})")
    return "\n".join(lines) + "\n"


def _search(search: dict[str, Any]) -> Section:
    points = search["milestones"]
    costs = [("trials", "proposals", "d"), ("epochs", "epochs", "d")]
    costs += [("worker_hours", "worker hours", ".3g")]
    costs += [("hours", "hours", ".3g")] if points[-1]["hours"] is not None else []
    heads = ["hypervolume", "of the last", *(head for _, head, _ in costs)]
    last = points[-1]["hypervolume"]
    rows = [
        [
            f"{point['hypervolume']:.4f}",
            f"{100 * point['hypervolume'] / last:.1f} %" if last else "",
            *(format(point[name], spec) for name, _, spec in costs),
        ]
        for point in points
    ]
    notes = []
    if search["prediction"]:
        found = search["prediction"]
        notes.append(
            f"Predicted latencies of {found['networks']} networks that were measured later: "
            f"{found['mean_abs_percent']:.1f} % off in the mean, {found['worst_abs_percent']:.1f} "
            f"% at worst; {found['mean_percent']:+.1f} % on balance."
        )
    if found := search.get("inheritance"):
        notes.append(_inherited(found))
    return Section("Hypervolume by what it cost", heads, rows, notes)


def _inherited(found: dict[str, Any]) -> str:
    spread = f" (+- {found['sd_points']:.2f})" if found["sd_points"] is not None else ""
    tau = f", Kendall's tau {found['tau']:.2f}" if found["tau"] is not None else ""
    seconds = found["supernet_seconds"]
    cost = f"; the supernet took {seconds:.0f} s of a worker, counted above" if seconds else ""
    count = found["networks"]
    networks = "1 network that was" if count == 1 else f"{count} networks that were"
    return (
        f"Inherited accuracies of {networks} trained later: {found['mean_points']:+.2f} "
        f"points{spread} beside their own{tau}{cost}."
    )


def _proposals(shares: dict[str, Any]) -> Section:
    rows = [
        [
            name,
            str(count),
            *(f"{shares[key][name]:.1f}" for key in ("percent", "early_percent", "late_percent")),
        ]
        for name, count in shares["counts"].items()
        if count
    ]
    notes = []
    for key, what in (("infeasible", "Infeasible"), ("failures", "Failed")):
        if shares[key]:
            told = "; ".join(f"{found['count']} x {found['reason']}" for found in shares[key])
            notes.append(f"{what}: {told}.")
    heads = ["outcome", "proposals", "%", "first half %", "second half %"]
    return Section("What became of the proposals", heads, rows, notes)


def _rungs(found: dict[str, Any]) -> Section:
    rows = [
        [
            str(rung["epoch"]),
            str(rung["came"]),
            str(rung["went_on"]),
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


def _front(document: dict[str, Any]) -> Section:
    objectives = document["objectives"]
    trained = "top1_percent" in objectives
    seeds = max((len(row["val"]["seeds"]) for row in document["front"] if trained), default=0)
    heads = ["network", *(name for name in objectives if name != "top1_percent")]
    if trained:
        heads += ["val %", "mean of seeds", "test %", "mean of seeds"]
        if not seeds:
            heads = [head for head in heads if head != "mean of seeds"]
    heads.append("chance")
    rows = []
    for row in document["front"]:
        cells = [f"trial {row['trial']}", *_costs(row, objectives)]
        if trained:
            cells += _accuracies(row, bool(seeds))
        rows.append([*cells, f"{row['chance']:.2f}"])
    return Section("The front", heads, rows, _front_notes(document, trained))


def _costs(row: dict[str, Any], objectives: Sequence[str]) -> list[str]:
    return [_plain(row["values"][name]) for name in objectives if name != "top1_percent"]


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 10_000 else f"{value:.4g}"


def _accuracies(row: dict[str, Any], with_means: bool) -> list[str]:
    val, test = row["val"], row["test"]
    error = val["standard_error"]
    cells = [table.figure("top1_percent", val["search"])]
    if with_means:
        cells.append(f"{val['mean']:.2f} +- {error:.2f}" if error is not None else "")
    if test is None:
        return [*cells, "", ""] if with_means else [*cells, ""]
    cells.append(f"{test['search']:.2f} +- {test['standard_error']:.2f}")
    return [*cells, f"{test['mean']:.2f}"] if with_means else cells


def _front_notes(document: dict[str, Any], trained: bool) -> list[str]:
    noise, moves, test = document["noise"], document["moves"], document["test"]
    sd = noise["seed_sd_points"]
    known = (
        f"seeds scatter by {sd:.2f} points ({noise['degrees_of_freedom']} degrees of freedom)"
        if sd is not None
        else "seeds did not matter (other ones were not tried)"
    )
    times = any(figure_and_target(name)[0].startswith("latency") for name in document["objectives"])
    doubts = [*([known] if trained else []), *(["latencies are off as they are measured"] * times)]
    notes = []
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


def _signed(points: float, error: float | None) -> str:
    return f"{points:+.2f}" + (f" (+- {error:.2f})" if error is not None else "")


def _list(trials: Sequence[int], verb: str) -> str:
    """``trials 1 and 2 leave``, ``trial 1 leaves``, ``none leaves``."""
    one = {"leave": "leaves", "come": "comes", "are": "is"}[verb]
    if not trials:
        return f"none {one}"
    if len(trials) == 1:
        return f"trial {trials[0]} {one}"
    return f"trials {', '.join(map(str, trials[:-1]))} and {trials[-1]} {verb}"


def _near(document: dict[str, Any]) -> Section:
    objectives = document["objectives"]
    heads = ["network", *(name for name in objectives if name != "top1_percent")]
    trained = "top1_percent" in objectives
    heads += ["val %"] if trained else []
    rows = [
        [
            f"trial {row['trial']}",
            *_costs(row, objectives),
            *([f"{row['values']['top1_percent']:.2f}"] if trained else []),
            f"{row['chance']:.2f}",
        ]
        for row in document["near_misses"]
    ]
    more = document["near_misses_in_all"] - len(rows)
    notes = [f"and {more} more with a chance of 0.01 and above."] if more else []
    return Section("Near misses that may belong on it", [*heads, "chance"], rows, notes)
