"""Which networks a report shows in detail, and what is known of each, with its spread."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from levit_search import table
from levit_search.audit.front_confidence import Accuracies
from levit_search.errors import InputError
from levit_search.pareto import ACCURACIES, PAIRED, figure_and_target, knee, minimised
from levit_search.picking import pick
from levit_search.report.int8_figures import beside_float
from levit_search.significance import Accuracy, wilson_percent
from levit_search.study import Record, Study, latency_of

_MOST_OF_FRONT = 40


def chosen(
    study: Study,
    records: Sequence[Record],
    front: Sequence[Record],
    known: Mapping[str, str],
    picked: Sequence[str],
) -> list[tuple[Record, list[str]]]:
    """The networks to show in detail, and why each.

    Args:
        study: whose they are.
        records: all of its finished trials.
        front: the non-dominated ones, not empty.
        known: by id, what published networks, references and those to begin with are called.
        picked: further ones, as ``--pick`` takes them.

    Returns:
        The knee first, then those picked, the rest of the front (of a very long one, evenly chosen
        ones) and the known ones.

    Raises:
        InputError: a pick is none.
    """
    found: dict[int, tuple[Record, list[str]]] = {}

    def take(record: Record, why: str) -> None:
        found.setdefault(record.trial, (record, []))[1].append(why)

    if study.config.reference is not None:
        points = minimised([record.values for record in front], study.config.objectives)
        take(front[knee(points, study.reference())], "knee of the front")
    middle = next(iter(found), None)
    by_number = {str(record.trial): record for record in records}
    for choice in picked:
        number = choice.removeprefix("trial=").strip() if choice.startswith("trial=") else None
        # Unlike for an export, it need not have been trained to its end.
        record = pick(study, choice) if number is None else by_number.get(number)
        if record is None:
            raise InputError(
                f"--pick {choice}: {study.folder} has no such finished trial (finished: 0 to "
                f"{records[-1].trial})"
            )
        if record.architecture is None:
            raise InputError(f"--pick {choice}: trial {number} proposed no valid network")
        take(record, f"--pick {choice}")
    for record in front[:: -(-len(front) // _MOST_OF_FRONT)]:
        if record.trial != middle:
            take(record, "front")
    for record in records:
        network = record.architecture
        is_new = record.reused_from is None and record.evaluation
        if network is not None and network.id in known and is_new:
            take(record, known[network.id])
    return list(found.values())


def details(
    record: Record,
    audited: Mapping[str, Accuracies],
    accuracy: Accuracy | None = None,
    of: str = "top1_percent",
) -> dict[str, object]:
    """What is known of one trial's network.

    Args:
        record: with a network.
        audited: the accuracies that an audit measured, by the network's id.
        accuracy: the record's own with its interval; None where that is not known.
        of: which accuracy that is.

    Returns:
        ``{figures, architecture, int8}``. ``figures`` are ``{figure, value, low, high, spread}``
        each: the value and the ends of an interval, or None, in plain units, and ``spread`` a text
        or None. ``architecture`` is the full description, ``int8`` what
        :func:`levit_search.report.int8_figures.beside_float` says.
    """
    assert record.architecture is not None
    network, rows = record.architecture, []
    order = {figure: place for place, figure in enumerate(table.KNOWN)}
    listed = [(figure_and_target(name)[0], name) for name in record.values]
    listed = [row for row in listed if row[0] in order]
    for figure, name in sorted(listed, key=lambda row: (order[row[0]], row[1])):
        spread = _Spread()
        if figure in ACCURACIES:
            percent, own = record.values[name], accuracy
            if accuracy is not None and figure != of:  # on the same images
                interval = wilson_percent(percent, accuracy.images)
                own = Accuracy(percent, accuracy.images, *interval, None)
            spread = _of_accuracy(figure, percent, own, audited.get(network.id))
        elif figure in PAIRED:
            spread = _of_latency(latency_of(record.evaluation, name) or {})
        rows.append({"figure": name, "value": record.values[name], **spread._asdict()})
    return {
        "figures": rows,
        "architecture": network.model_dump(mode="json"),
        "int8": beside_float(record),
    }


class _Spread(NamedTuple):
    low: float | None = None
    high: float | None = None
    spread: str | None = None


def _of_latency(found: Mapping[str, Any]) -> _Spread:
    """What a measurement's or a prediction's interval is."""
    if "ratio_ci95" in found:
        scale = found["latency_ms"] / found["ratio_to_reference"]
        low, high = (scale * ratio for ratio in found["ratio_ci95"])
        how = f"{found['pairs']} pairs in {found['rounds']} rounds"
        if not found["converged"]:
            how += ", wider than was asked"
    elif "low_ms" in found:
        low, high, how = found["low_ms"], found["high_ms"], "predicted, not measured"
    else:
        return _Spread()
    texts = [table.figure("latency_ms", ms) for ms in (low, high)]
    return _Spread(low, high, f"95 % interval {texts[0]} to {texts[1]} ms ({how})")


def _of_accuracy(
    figure: str, percent: float, own: Accuracy | None, found: Accuracies | None
) -> _Spread:
    """The interval of the images together with what other seeds gave."""
    ends, texts = [], []
    if own is not None:
        ends += [own.low_percent, own.high_percent]
        text = f"95 % interval {own.interval()} % (binomial, {own.images:,} images of val)"
        beside = {"same": "not told apart from the best", "lower": "lower than the best"}
        texts += [text, *filter(None, [beside.get(own.vs_best or "")])]
    vals, tests = (
        [getattr(each, f"{split}_{figure}") for each in (found.others() if found else [])]
        for split in ("val", "test")
    )
    if found is None or not vals or None in vals:
        texts.append("one training, its spread is not known (levit-search audit measures it)")
        low, high = (min(ends), max(ends)) if ends else (None, None)
        return _Spread(low, high, "; ".join(texts))
    texts.append(f"other seeds: val {_several(vals)}, test {_several(tests)}")
    if (stored := getattr(found.stored, f"test_{figure}", None)) is not None:
        texts.append(f"these weights on test {stored:.2f} %")
    ends += [percent, *vals]
    return _Spread(min(ends), max(ends), "; ".join(texts))


def _several(percents: Sequence[float]) -> str:
    if len(percents) == 1:
        return f"{percents[0]:.2f} %"
    return f"{mean(percents):.2f} ± {stdev(percents):.2f} % ({len(percents)} seeds)"
