"""Which record of a study is meant by ``--pick``."""

import math
import operator
import re

from levit_search import table
from levit_search.configuration import parse_amount
from levit_search.errors import InputError
from levit_search.pareto import OBJECTIVES, figure_and_target, is_maximised, knee, minimised
from levit_search.study import Record, Study


def pick(study: Study, choice: str) -> Record:
    """One record of a study.

    Args:
        study: with at least one complete trial.
        choice: ``knee``, ``accurate``, ``fastest``, ``trial=N``, or a bound such as
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
        case "accurate":
            _needs(study, "top1_percent", choice)
            return max(front, key=lambda record: record.values["top1_percent"])
        case "fastest":
            _needs(study, "latency_ms", choice)
            return min(front, key=lambda record: record.values["latency_ms"])
    return _within_bounds(study, choice)


def _needs(study: Study, name: str, choice: str) -> None:
    if name not in study.config.objectives:
        raise InputError(f"--pick {choice}: {name} is no objective of {study.folder}")


_BOUND = re.compile(r"\s*([\w@-]+)\s*(<=|>=)\s*(\S+?)\s*")


def _within_bounds(study: Study, choice: str) -> Record:
    """The best in the first objective without a bound of all networks that keep every bound.

    A figure that is no objective may be kept by networks that are not on the front alone.
    """
    complete = [record for record in study.records() if record.is_evaluated]
    bounds = [_bound(part, choice) for part in choice.split(",")]
    for name, _, _ in bounds:
        if not any(name in record.values for record in complete):
            raise InputError(f"--pick {choice}: {name} was not measured in {study.folder}")
    kept = [r for r in complete if all(_keeps(r, bound) for bound in bounds)]
    if not kept:
        nearest = min(complete, key=lambda r: sum(_excess(r, bound) for bound in bounds))
        has = ", ".join(f"{n} {nearest.values.get(n, math.nan):g}" for n, _, _ in bounds)
        raise InputError(
            f"--pick {choice}: no network keeps it; the nearest is trial {nearest.trial} with {has}"
        )
    bounded = {name for name, _, _ in bounds}
    # Equal ones by the further objectives; with 90 % as a bound the fastest is meant.
    order = sorted(study.config.objectives, key=lambda name: name in bounded)
    return min(kept, key=lambda r: [_cost(r.values[name], name) for name in order])


Bound = tuple[str, str, float]


def _bound(part: str, choice: str) -> Bound:
    found = _BOUND.fullmatch(part)
    number = _number(parse_amount(found[3])) if found else None
    if found is None or number is None or figure_and_target(found[1])[0] not in OBJECTIVES:
        raise InputError(
            f"--pick {choice}: expected knee, accurate, fastest, trial=N or bounds such as "
            f"'latency_ms<=5' or 'flops<=300M,params<=5M' on {', '.join(OBJECTIVES)}"
        )
    return found[1], found[2], number


def _keeps(record: Record, bound: Bound) -> bool:
    name, sign, number = bound
    value = record.values.get(name)
    keeps = operator.le if sign == "<=" else operator.ge
    return value is not None and keeps(value, number)


def _excess(record: Record, bound: Bound) -> float:
    """How far a record is beyond a bound, in shares of it; endless where it is not measured."""
    name, _, number = bound
    value = record.values.get(name)
    if value is None:
        return math.inf
    return 0.0 if _keeps(record, bound) else abs(value - number) / max(abs(number), 1e-12)


def _cost(value: float, objective: str) -> float:
    return -value if is_maximised(objective) else value


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number
