"""Which record of a study is meant by ``--pick``."""

import math
import re
from contextlib import suppress

from levit_search import table
from levit_search.configuration import parse_amount
from levit_search.errors import InputError
from levit_search.pareto import (
    ACCURACIES,
    OBJECTIVES,
    PAIRED,
    figure_and_target,
    is_maximised,
    knee,
    minimised,
)
from levit_search.study import Record, Study


def pick(study: Study, choice: str) -> Record:
    """One record of a study.

    Args:
        study: with at least one complete trial.
        choice: ``knee``, ``accurate`` and ``fastest`` (by the first objective that is an accuracy,
            or a latency on the study's own target), ``trial=N``, or a bound such as
            ``latency_ms<=5`` or ``flops<=300M`` (several with commas between them), which picks the
            network within it that is best in the first objective without a bound.

    Raises:
        InputError: the choice is none of these, or nothing satisfies it, or the knee is asked for
            of a study without a reference (:meth:`levit_search.study.Study.reference`).
    """
    if choice.startswith("trial="):
        record = study.record(choice.removeprefix("trial=").strip())
        if record.state != "complete":
            raise InputError(f"{study.folder}: trial {record.trial} is {record.state}")
        return record
    objectives = study.config.objectives
    front = table.front(study.records(), objectives)
    if not front:
        raise InputError(f"{study.folder}: no finished trial to pick from yet")
    match choice:
        case "knee":
            points = minimised([record.values for record in front], objectives)
            return front[knee(points, study.reference())]
        case "accurate" | "fastest":
            figures = ACCURACIES if choice == "accurate" else PAIRED
            name = next((each for each in objectives if each in figures), "")
            if not name:
                raise InputError(
                    f"--pick {choice}: {' or '.join(figures)} is no objective of {study.folder}"
                )
            best = max if is_maximised(name) else min
            return best(front, key=lambda record: record.values[name])
    return _within_bounds(study, choice)


def _within_bounds(study: Study, choice: str) -> Record:
    """The best in the first objective without a bound of all networks that keep every bound.

    A figure that is no objective may be kept by networks that are not on the front alone.
    """
    complete = [record for record in study.records() if record.is_evaluated]
    bounds = [_bound(part, choice) for part in choice.split(",")]
    for name, _, _ in bounds:
        if not any(name in record.values for record in complete):
            raise InputError(f"--pick {choice}: {name} was not measured in {study.folder}")

    def excess(record: Record) -> float:
        """How far it is beyond the bounds, in shares of them; endless where one is not known."""
        total = 0.0
        for name, sign, number in bounds:
            value = record.values.get(name, math.nan)
            if not (value <= number if sign == "<=" else value >= number):
                beyond = abs(value - number) / max(abs(number), 1e-12)
                total += math.inf if math.isnan(beyond) else beyond
        return total

    kept = [record for record in complete if not excess(record)]
    if not kept:
        nearest = min(complete, key=excess)
        has = ", ".join(f"{name} {nearest.values.get(name, math.nan):g}" for name, _, _ in bounds)
        raise InputError(
            f"--pick {choice}: no network keeps it; the nearest is trial {nearest.trial} with {has}"
        )
    bounded = {name for name, _, _ in bounds}
    # Equal ones by the further objectives; with 90 % as a bound the fastest is meant.
    signs = {name: -1 if is_maximised(name) else 1 for name in study.config.objectives}
    order = sorted(signs, key=lambda name: name in bounded)
    return min(kept, key=lambda record: [signs[name] * record.values[name] for name in order])


def _bound(part: str, choice: str) -> tuple[str, str, float]:
    """The figure, sign and number of a bound such as ``flops<=300M``, which is part of a choice."""
    found = re.fullmatch(r"\s*([\w@-]+)\s*(<=|>=)\s*(\S+?)\s*", part)
    if found and figure_and_target(found[1])[0] in OBJECTIVES:
        with suppress(TypeError, ValueError):  # what is no amount comes back as it was
            number = float(parse_amount(found[3]))  # type: ignore[arg-type]
            if not math.isnan(number):
                return found[1], found[2], number
    raise InputError(
        f"--pick {choice}: expected knee, accurate, fastest, trial=N or bounds such as "
        f"'latency_ms<=5' or 'flops<=300M,params<=5M' on {', '.join(OBJECTIVES)}"
    )
