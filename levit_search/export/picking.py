"""Which record of a study is meant, and where its trained weights are."""

import operator
import re
from pathlib import Path

from levit_search import table
from levit_search.errors import InputError
from levit_search.pareto import OBJECTIVES, figure_and_target, is_maximised, knee, minimised
from levit_search.study import Record, Study, find_record


def pick(study: Study, choice: str) -> Record:
    """One record of a study.

    Args:
        study: with at least one complete trial.
        choice: ``knee``, ``accurate``, ``fastest``, ``trial=N``, or a bound such as
            ``latency_ms<=5`` or ``flops<=300M``, which picks the most accurate network within it.

    Raises:
        InputError: the choice is none of these, or nothing satisfies it.
    """
    if choice.startswith("trial="):
        record = find_record(study, choice.removeprefix("trial=").strip())
        if record.state != "complete":
            raise InputError(f"{study.folder}: trial {record.trial} is {record.state}")
        return record
    objectives = study.config.objectives
    front = table.front(study.records(), objectives)
    if not front:
        raise InputError(f"{study.folder}: no finished trial to pick from yet")
    match choice:
        case "knee":
            return front[knee(minimised([record.values for record in front], objectives))]
        case "accurate":
            _needs(study, "top1_percent", choice)
            return max(front, key=lambda record: record.values["top1_percent"])
        case "fastest":
            _needs(study, "latency_ms", choice)
            return min(front, key=lambda record: record.values["latency_ms"])
    return _within_bound(study, front, choice)


def _needs(study: Study, name: str, choice: str) -> None:
    if name not in study.config.objectives:
        raise InputError(f"--pick {choice}: {name} is no objective of {study.folder}")


def _within_bound(study: Study, front: list[Record], choice: str) -> Record:
    from levit_search.configuration import parse_amount

    found = re.fullmatch(r"\s*([\w@-]+)\s*(<=|>=)\s*(\S+)\s*", choice)
    bound = _number(parse_amount(found[3])) if found else None
    if found is None or bound is None or figure_and_target(found[1])[0] not in OBJECTIVES:
        raise InputError(
            f"--pick {choice}: expected knee, accurate, fastest, trial=N or a bound such as "
            f"'latency_ms<=5' on one of {', '.join(OBJECTIVES)}"
        )
    name = found[1]
    if name not in front[0].values:
        raise InputError(f"--pick {choice}: {name} was not measured in {study.folder}")
    keeps = operator.le if found[2] == "<=" else operator.ge
    within = [record for record in front if keeps(record.values[name], bound)]
    if not within:
        nearest = min(front, key=lambda record: abs(record.values[name] - bound))
        raise InputError(
            f"--pick {choice}: nothing on the front keeps it; the nearest is trial "
            f"{nearest.trial} with {name} {nearest.values[name]:g}"
        )
    best = study.config.objectives[0]
    sign = -1 if is_maximised(best) else 1
    return min(within, key=lambda record: sign * record.values[best])


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def weights_of(study: Study, record: Record) -> Path:
    """The file with the trained weights of a record's network.

    Raises:
        InputError: there is none.
    """
    if record.architecture is None:
        raise InputError(f"{study.folder}: trial {record.trial} proposed no valid network")
    path = study.checkpoints / f"{record.architecture.id}.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: the trained weights of trial {record.trial} are not there")
    return path
