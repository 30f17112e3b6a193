"""What int8 costs the networks of a study, and which of their choices go with that."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from levit_search import table
from levit_search.pareto import IN_INT8, figure_and_target, on_target
from levit_search.report.choices import FEWEST, Choices
from levit_search.study import Record, StudyConfig

_DOUBT = 0.05  # below which a choice is said to go with the drop

DROP = "int8_drop_points"


def int8_of(
    records: Sequence[Record], config: StudyConfig, attributes: Mapping[str, Any], choices: Choices
) -> dict[str, Any] | None:
    """What is known of a study's networks in int8.

    Returns:
        None where none is known in int8. Else ``{figures, costs, drop, bytes_share, image_points,
        operators, formats, choices, networks}``: ``figures`` are those in float and in int8 that
        networks have; ``costs`` has what both fronts are drawn against, ``{float, int8,
        float_front, int8_front}`` each, figures and trials, the cheapest first: the latencies of
        each target on which both are known, else FLOPs; ``drop`` is ``{median, worst, trial}``,
        ``bytes_share`` the median of files' bytes by those of their parameters in float,
        ``image_points`` what one image of val counts, ``operators`` by group in how many networks
        they are ``{quantized, kept, left}``, ``formats`` by target, the study's own being empty,
        ``choices`` what :meth:`levit_search.report.choices.Choices.associations` says of the drop;
        what is not known is None or empty. ``networks`` have both figures of accuracy.
    """
    whole = [record for record in records if record.is_evaluated]
    figures = table.in_int8(whole)
    if not figures:
        return None
    known = [record for record in whole if DROP in record.values]
    images = (attributes.get("data") or {}).get("val_images")
    worst = max(known, key=lambda record: record.values[DROP], default=None)
    quantized = [each for each in map(_quantized, known) if each]
    sizes = [
        r.values["model_bytes"] / (4 * r.values["params"])
        for r in whole
        if "model_bytes" in r.values
    ]
    return {
        "figures": figures,
        "networks": len(known),
        "costs": _costs(known, config),
        "drop": None
        if worst is None
        else {
            "median": float(np.median([record.values[DROP] for record in known])),
            "worst": worst.values[DROP],
            "trial": worst.trial,
        },
        "bytes_share": float(np.median(sizes)) if sizes else None,
        "image_points": 100 / images if images else None,
        "operators": {
            became: dict(Counter(group for each in quantized for group in each.get(became, {})))
            for became in ("quantized", "kept", "left")
        },
        "formats": _formats(whole, attributes),
        "choices": [asdict(each) for each in choices.associations(known, DROP)],
    }


def _quantized(record: Record) -> Mapping[str, Any]:
    """What became of its graph; empty where that is not noted."""
    found: Mapping[str, Any] = record.evaluation.get("int8", {}).get("top1_int8_percent", {})
    return found


def _costs(known: Sequence[Record], config: StudyConfig) -> list[dict[str, Any]]:
    if not known:
        return []
    pairs = []
    for target, section in [(None, config.latency), *config.targets.items()]:
        pair = [on_target(figure, target) for figure in ("latency_ms", "latency_int8_ms")]
        is_float = section.precision != "int8"
        if is_float and all(name in r.values for r in known for name in pair):
            pairs.append(pair)
    return [
        {
            "float": in_float,
            "int8": in_int8,
            "float_front": [r.trial for r in table.front(known, (in_float, "top1_percent"))],
            "int8_front": [r.trial for r in table.front(known, (in_int8, "top1_int8_percent"))],
        }
        for in_float, in_int8 in pairs or [["flops", "flops"]]
    ]


def _formats(whole: Sequence[Record], attributes: Mapping[str, Any]) -> dict[str, str]:
    """What networks were quantized to, by target: as it was chosen, else as it is noted with
    them."""
    found: dict[str, Counter[str]] = {}
    for record in whole:
        for name, each in record.evaluation.get("int8", {}).items():
            if format := each.get("format") or each.get("int8_format"):
                found.setdefault(figure_and_target(name)[1] or "", Counter())[format] += 1
    chosen: Mapping[str, str] = attributes.get("int8_formats") or {}
    return {**{target: ", ".join(sorted(each)) for target, each in found.items()}, **chosen}


def beside_float(record: Record) -> dict[str, Any] | None:
    """One network in float and in int8.

    Returns:
        ``{rows, quantized}``, or None where it is not known in int8. ``rows`` are ``{float, int8}``
        each, names of figures, of which the first may not be known; ``quantized`` is what became of
        its graph, or empty.
    """
    rows = [
        {"float": name.replace("_int8", "", 1), "int8": name}
        for name in record.values
        if figure_and_target(name)[0] in IN_INT8
    ]
    return {"rows": rows, "quantized": _quantized(record)} if rows else None


def network_text(record: Record) -> str:
    """A network's figures in int8 beside those in float; empty where none is known."""
    if (found := beside_float(record)) is None:
        return ""
    told = []
    for pair in found["rows"]:
        figures = {key: table.figure(name, record.values.get(name)) for key, name in pair.items()}
        beside = f" (float {figures['float']})" if figures["float"] else ""
        told.append(f"{table.heading(pair['int8'])} {figures['int8']}{beside}")
    if (size := record.values.get("model_bytes")) is not None:
        told.append(f"{table.heading('model_bytes')} {table.figure('model_bytes', size)}")
    return f"{', '.join(told)}. {graph_text(found['quantized'])}".strip()


def graph_text(found: Mapping[str, Any]) -> str:
    """What became of a graph's operators; empty where nothing is known."""
    names = {"quantized": "in int8", "kept": "kept in float", "left": "not quantized"}
    told = [
        f"{name}: {', '.join(f'{group} ({count})' for group, count in found[key].items())}"
        for key, name in names.items()
        if found.get(key)
    ]
    how = [found.get("format"), found.get("runtime")]
    if found.get("images"):
        how.append(f"calibration {found.get('calibration')} on {found['images']} images of train")
    return "; ".join([", ".join(filter(None, how)), *told]).strip("; ")


def int8_text(found: Mapping[str, Any]) -> list[str]:
    """Sentences on what :func:`int8_of` found."""
    told = []
    if drop := found["drop"]:
        points = found["image_points"]
        image = f". One image of val is {points:.2f}, and a few of them are noise" if points else ""
        told.append(
            f"{found['networks']} networks were trained, quantized and evaluated in int8. They "
            f"lose {drop['median']:.2f} points in the median and {drop['worst']:.2f} at most "
            f"(trial {drop['trial']}){image}."
        )
    if formats := [f"{t}: {each}" if t else each for t, each in found["formats"].items()]:
        told.append(f"Format: {'; '.join(formats)}.")
    if found["bytes_share"]:
        told.append(
            f"Files have {found['bytes_share']:.2f} of the bytes of their parameters in float, in "
            "the median."
        )
    words = {
        "quantized": "In int8 are",
        "kept": "Kept in float, as asked:",
        "left": "Not quantized, though asked for:",
    }
    for became, text in words.items():
        if groups := found["operators"][became]:
            told.append(f"{text} {', '.join(groups)}.")
    return told


def choices_text(found: Mapping[str, Any]) -> str:
    """A sentence or two on which choices go with the drop."""
    if not found["choices"]:
        return (
            f"That takes {FEWEST} networks or more that were evaluated in float and in int8 and do "
            f"not all lose the same; there are {found['networks']}."
        )
    close = [
        f"{each['choice']} ({each['correlation']:+.2f})"
        for each in found["choices"]
        if each["chance"] < _DOUBT
    ]
    told = f"With the drop go: {', '.join(close)}." if close else "None, beyond luck."
    return (
        f"{told} Rank correlations over networks that were evaluated to the end, with their "
        "intervals by bootstrap; by luck: the chance that one of all these choices goes with the "
        f"drop as closely where none does (permutations; below {_DOUBT:g} it is named above). A "
        "search draws choices together where it found good networks, so that one may stand for "
        "another."
    )
