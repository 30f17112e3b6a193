"""What a search spent and what it got for it, from its records alone."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from levit_search.pareto import Objective, hypervolume, minimised
from levit_search.search.freeze_thaw import SETTLED_ACTS, SETTLED_PERCENT, has_settled
from levit_search.study import Outcome, Record, outcome
from levit_search.study.record import ERRORS

COSTS = {
    "trials": "proposals",
    "epochs": "epochs trained",
    "hours": "hours",
    "worker_hours": "worker hours",
}
"""What a search spends, by its name in a trajectory."""

_MARKS = (0.1, 0.25, 0.5, 0.75, 1.0)  # shares of the trials at which a search is looked at
_MOST_REASONS = 5


def epochs_of(record: Record) -> int:
    """Epochs that were trained for a trial in this study."""
    return 0 if _is_free(record) else max(0, len(record.curve) - record.resumed_at)


def _is_free(record: Record) -> bool:
    return record.reused_from is not None or record.taken_from is not None


@dataclass(frozen=True)
class Trajectory:
    """The hypervolume after each trial, in the order in which they ended, and what it had cost.

    All of length [trials]. A failed trial's cost is not known and counts nothing, nor does what
    all trials share (data, teacher, reference).
    """

    trials: tuple[int, ...]
    """Their numbers."""
    hypervolumes: tuple[float, ...] | None
    """None where the study has no reference yet."""
    epochs: tuple[int, ...]
    """Trained so far."""
    worker_hours: tuple[float, ...]
    """The sum over workers."""
    hours: tuple[float, ...] | None
    """Those in which any worker was at work; None where the times of day are not known."""

    def point(self, index: int) -> Mapping[str, Any]:
        """One of them, as JSON."""
        return {
            "trials": index + 1,
            "hypervolume": self.hypervolumes[index] if self.hypervolumes is not None else None,
            "epochs": self.epochs[index],
            "worker_hours": round(self.worker_hours[index], 6),
            "hours": round(self.hours[index], 6) if self.hours is not None else None,
        }

    def steps(self) -> list[Mapping[str, Any]]:
        """The points at which the hypervolume changed, and the last."""
        volumes = (0.0, *(self.hypervolumes or [0.0] * len(self.trials)))
        last = len(self.trials) - 1
        return [
            self.point(index)
            for index in range(len(self.trials))
            if volumes[index + 1] != volumes[index] or index == last
        ]

    def milestones(self) -> list[Mapping[str, Any]]:
        """The points at a tenth, each quarter and the end of the trials."""
        count = len(self.trials)
        indices = sorted({max(1, round(mark * count)) - 1 for mark in _MARKS}) if count else []
        return [self.point(index) for index in indices]


def trajectory(
    records: Sequence[Record],
    objectives: Sequence[Objective],
    reference: NDArray[np.float64] | None,
    before_s: float = 0.0,
) -> Trajectory:
    """How a search went.

    Args:
        records: of all finished trials.
        objectives: of the study.
        reference: [objectives], minimised, that volumes are measured from, if there is one.
        before_s: what a worker had spent before the first trial.
    """
    # Trials of unknown end, those of an earlier release, come first.
    ended = sorted(records, key=lambda record: (_end_s(record) or 0.0, record.trial))
    spent_s = np.array([0.0 if _is_free(record) else record.seconds for record in ended])
    volumes, front = [], np.empty((0, len(objectives)))
    volume = 0.0
    for record in ended:
        if record.is_evaluated and reference is not None:
            point = minimised([record.values], objectives)
            if not (front <= point).all(axis=1).any():
                kept = front[~(point <= front).all(axis=1)]
                front = np.concatenate([kept, point])
                volume = hypervolume(front, reference)
        volumes.append(volume)
    return Trajectory(
        tuple(record.trial for record in ended),
        tuple(volumes) if reference is not None else None,
        tuple(np.cumsum([epochs_of(record) for record in ended], dtype=int).tolist()),
        tuple(((before_s + np.cumsum(spent_s)) / 3600).tolist()),
        _busy_hours(ended, spent_s),
    )


def _end_s(record: Record) -> float | None:
    return datetime.fromisoformat(record.finished).timestamp() if record.finished else None


def _busy_hours(
    records: Sequence[Record], spent_s: NDArray[np.float64]
) -> tuple[float, ...] | None:
    """Hours until each trial's end in which one or more were at work, without nights between."""
    ends = [_end_s(record) for record in records]
    if not ends or any(end is None for end in ends):
        return None
    known = np.array(ends, dtype=np.float64)
    order = np.argsort(known - spent_s)
    starts, stops = (known - spent_s)[order], np.maximum.accumulate(known[order])
    idle = np.concatenate([[0.0], np.cumsum(np.maximum(starts[1:] - stops[:-1], 0.0))])
    begun = np.searchsorted(starts, known, side="right") - 1
    return tuple(((known - starts[0] - idle[begun]) / 3600).tolist())


@dataclass(frozen=True)
class Savings:
    """What ending trainings at rungs saved."""

    rungs: tuple[dict[str, int], ...]
    """Of each ``epoch``, how many ``came`` there and ``went_on``."""
    trained: int
    """Networks."""
    stopped: int
    """Of them, those that a rung ended."""
    epochs: int
    """Trained."""
    epochs_saved: int
    saved_percent: float
    """Of what training all of these networks to the end would have cost."""
    hours_saved: float
    """A worker's, by what an epoch of each stopped network took."""


def savings(records: Sequence[Record], epochs: int) -> Savings | None:
    """What the rungs saved, of a recipe of so many ``epochs``; None where no candidate came to
    one."""
    trials = [record for record in records if epochs_of(record)]
    # By network: of one that was paused and went on, the last trial counts.
    trained = {record.architecture.id: record for record in trials if record.architecture}.values()
    stopped = [record for record in trained if outcome(record, epochs) == "stopped"]
    asked = [point for record in trained for point in record.rungs]
    if not asked:
        return None
    came = Counter(point["epoch"] for point in asked)
    went_on = Counter(point["epoch"] for point in asked if point["goes_on"])
    spent = sum(map(epochs_of, trials))
    saved = [epochs - len(record.curve) for record in stopped]
    each_s = [record.curve[-1]["seconds"] / len(record.curve) for record in stopped]
    return Savings(
        tuple({"epoch": e, "came": came[e], "went_on": went_on[e]} for e in sorted(came)),
        len(trained),
        len(stopped),
        spent,
        sum(saved),
        100 * sum(saved) / (spent + sum(saved)),
        sum(left * seconds for left, seconds in zip(saved, each_s, strict=True)) / 3600,
    )


def settled(records: Sequence[Record]) -> Mapping[str, Any] | None:
    """From which trial on the front no longer moved, by what the search expected of any training.

    Returns:
        ``{trial, percent, acts, last_percent}``: the trial, None if the front had not settled; by
        which bound and for how many trainings in a row; what was expected at last. None where the
        search had no model that expects anything.
    """
    told = [(each.trial, each.outlook_percent) for each in sorted(records, key=_number)]
    known = [(trial, percent) for trial, percent in told if percent is not None]
    if not known:
        return None
    outlooks = [percent for _, percent in known]
    first = None
    if has_settled(outlooks):
        place = len(outlooks)
        while place and outlooks[place - 1] <= SETTLED_PERCENT:
            place -= 1
        first = known[place][0]
    return {
        "trial": first,
        "percent": SETTLED_PERCENT,
        "acts": SETTLED_ACTS,
        "last_percent": outlooks[-1],
    }


def _number(record: Record) -> int:
    return record.trial


def shares(records: Sequence[Record], epochs: int) -> Mapping[str, Any]:
    """What became of the proposals, in all and in the two halves of the search, with reasons.

    Returns:
        ``{counts, percent, early_percent, late_percent, infeasible, failures}``: the first four by
        outcome, the last two how often each reason was given, the commonest first.
    """
    found = [outcome(record, epochs) for record in records]
    half = len(found) // 2
    names = get_args(Outcome)

    def percent(part: Sequence[Outcome]) -> dict[str, float]:
        return {name: 100 * part.count(name) / max(1, len(part)) for name in names}

    def reasons(of: Outcome, told: Callable[[Record], str]) -> list[Mapping[str, Any]]:
        given = Counter(told(r) for r, name in zip(records, found, strict=True) if name == of)
        common = given.most_common(_MOST_REASONS)
        return [{"reason": reason, "count": count} for reason, count in common]

    return {
        "counts": {name: found.count(name) for name in names},
        "percent": percent(found),
        "early_percent": percent(found[:half]),
        "late_percent": percent(found[half:]),
        "infeasible": reasons("infeasible", _limit_of),
        "failures": reasons("failed", lambda record: record.reason or "?"),
    }


def _limit_of(record: Record) -> str:
    """Why a proposal was turned down, without its own figures."""
    if record.architecture is None:
        return "no valid network"
    reason = record.reason or "?"
    over = re.match(r"(\w+)\b.* over the limit", reason)
    return f"{over[1]} over the limit" if over else reason


def prediction_errors(records: Sequence[Record]) -> Mapping[str, Any] | None:
    """How far predicted latencies were from the measured ones; None where none was both.

    Returns:
        ``{networks, mean_percent, mean_abs_percent, worst_abs_percent}``; a positive error is a
        prediction that was too slow.
    """
    known = {
        (record.architecture.id, name): record.values[name]
        for record in records
        for name in ERRORS.values()
        if record.architecture is not None and name in record.values
    }
    if not known:
        return None
    errors = np.array(list(known.values()))
    return {
        "networks": len({network for network, _ in known}),
        "mean_percent": float(errors.mean()),
        "mean_abs_percent": float(np.abs(errors).mean()),
        "worst_abs_percent": float(np.abs(errors).max()),
    }


def inheritance(
    records: Sequence[Record], supernet: Mapping[str, float]
) -> Mapping[str, Any] | None:
    """How inherited accuracies stand beside those of the networks alone; None where none was both.

    Returns:
        ``{networks, mean_points, sd_points, tau, supernet_seconds}``: inherited less own accuracy
        over networks, Kendall's tau (b) of both rankings (None for fewer than three networks), and
        what training the supernet took.
    """
    known = {
        record.architecture.id: (
            record.values["top1_inherited_percent"],
            record.values["top1_percent"],
        )
        for record in records
        if record.architecture is not None
        and record.is_evaluated
        and "top1_inherited_percent" in record.values
    }
    if not known:
        return None
    from scipy.stats import kendalltau

    inherited, own = np.array(list(known.values())).T
    tau = float(kendalltau(inherited, own)[0]) if len(known) > 2 else float("nan")
    return {
        "networks": len(known),
        "mean_points": float((inherited - own).mean()),
        "sd_points": float((inherited - own).std(ddof=1)) if len(known) > 1 else None,
        "tau": tau if np.isfinite(tau) else None,
        "supernet_seconds": supernet.get("seconds"),
    }
