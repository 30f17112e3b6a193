"""The final front held against its seeds, its timings and the test split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levit_search import table
from levit_search.audit.belief import accuracy_draws
from levit_search.audit.kept import Accuracies
from levit_search.audit.noise import (
    BEYOND_DOUBT,
    DRAWS,
    binomial_error_percent,
    chances,
    could_belong,
    pooled_sd,
    spreads,
    student_factor,
)
from levit_search.pareto import (
    Objective,
    hypervolume,
    is_maximised,
    minimised,
    non_dominated,
)
from levit_search.study import Record

_NEAR_MISSES = 10
_FEWEST_CHANCE = 0.01  # of a near miss that is worth a line


@dataclass(frozen=True)
class Candidate:
    """A network that was evaluated in full, and what is known of it."""

    record: Record
    accuracies: Accuracies
    is_member: bool

    @property
    def search_percent(self) -> float | None:
        """Its top-1 on val in the search."""
        return self.record.values.get("top1_percent")

    @property
    def val_percents(self) -> list[float]:
        """On val with all seeds, the search's first."""
        first = self.search_percent
        return [] if first is None else [first, *self.accuracies.val_percents()]

    def values(self, top1_percent: float | None) -> dict[str, float]:
        """Its objectives, with another accuracy."""
        changed = {} if top1_percent is None else {"top1_percent": top1_percent}
        return {**self.record.values, **changed}


def candidates(
    records: Sequence[Record],
    objectives: Sequence[Objective],
    networks: Mapping[str, Accuracies],
) -> list[Candidate]:
    """The members of the front, the cheapest first, then all others that could be on it."""
    members = table.front(records, objectives)
    trials = {record.trial for record in members}
    others = [record for record in records if record.is_evaluated and record.trial not in trials]
    nothing = Accuracies()
    return [
        Candidate(record, networks.get(_id(record), nothing), record.trial in trials)
        for record in [*members, *others]
    ]


def _id(record: Record) -> str:
    assert record.architecture is not None
    return record.architecture.id


def front_figures(
    found: Sequence[Candidate],
    objectives: Sequence[Objective],
    reference: NDArray[np.float64],
    errors_percent: Sequence[float] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """What is left of the front.

    Args:
        found: as :func:`candidates` gives them.
        objectives: of the study.
        reference: [objectives], minimised, that volumes are measured against.
        errors_percent: of the study's predictions of latency.
        seed: of the draws.

    Returns:
        ``noise`` of seeds; ``front``, members with their values, accuracies and chances;
        ``near_misses``, others with a chance, the best of ``near_misses_in_all``; ``moves``, what
        the front becomes by means over seeds; ``test``, the front on the test split. Of the last
        two either is None where nothing was trained or measured for it.
    """
    members = [each for each in found if each.is_member]
    sd, freedom = pooled_sd([each.val_percents for each in members])
    chance = _chances(found, objectives, sd, freedom, errors_percent, seed)
    rows = [
        {**_row(each, objectives), "chance": float(p)}
        for each, p in zip(found, chance, strict=True)
    ]
    near = [
        row
        for row, each in zip(rows, found, strict=True)
        if not each.is_member and row["chance"] >= _FEWEST_CHANCE
    ]
    near.sort(key=lambda row: -row["chance"])
    front = [
        row | _accuracy(each, sd) for row, each in zip(rows, found, strict=True) if each.is_member
    ]
    return {
        "noise": {"seed_sd_points": sd, "degrees_of_freedom": freedom, "draws": DRAWS},
        "front": front,
        "near_misses": near[:_NEAR_MISSES],
        "near_misses_in_all": len(near),
        "moves": _moves(found, objectives, reference),
        "test": _test(members, objectives, reference),
    }


def _chances(
    found: Sequence[Candidate],
    objectives: Sequence[Objective],
    sd: float | None,
    freedom: int,
    errors_percent: Sequence[float],
    seed: int,
) -> NDArray[np.float64]:
    """Each candidate's chance to be on the front, [candidates]."""
    counts = np.array([max(1, len(each.val_percents)) for each in found])
    points = minimised([each.values(_mean(each.val_percents)) for each in found], objectives)
    records = [each.record for each in found]
    # How wide accuracies scatter matters here for who is left out alone.
    sd_doubt = sd * student_factor(freedom, BEYOND_DOUBT) if sd is not None else 0.0
    spread = spreads(records, sd_doubt / np.sqrt(counts), objectives, errors_percent)
    doubtful = could_belong(points, spread, np.array([each.is_member for each in found]))
    random = np.random.default_rng(seed)
    drawn = None
    if sd is not None:
        percents = [each.val_percents for each in found]
        drawn = accuracy_draws(
            np.array([np.mean(each) for each in percents]),
            counts,
            points[:, [not is_maximised(name) for name in objectives]],
            sd,
            freedom,
            doubtful,
            DRAWS,
            random,
        )
    chance = np.zeros(len(found))
    chance[doubtful] = chances(points[doubtful], spread[doubtful], objectives, random, drawn)
    return chance


def _row(each: Candidate, objectives: Sequence[Objective]) -> dict[str, Any]:
    network = each.record.architecture
    assert network is not None
    return {
        "trial": each.record.trial,
        "id": network.id,
        "architecture": network.summary(),
        "values": {name: each.record.values[name] for name in objectives},
    }


def _accuracy(each: Candidate, sd: float | None) -> dict[str, Any]:
    """A member's accuracies; empty for a network that was not trained."""
    if each.search_percent is None:
        return {}
    kept = each.accuracies
    percents = each.val_percents
    row: dict[str, Any] = {
        "val": {
            "search": each.search_percent,
            "seeds": {str(seed): kept.seeds[seed]["val_top1_percent"] for seed in kept.seeds},
            "mean": _mean(percents),
            "standard_error": sd / np.sqrt(len(percents)) if sd is not None else None,
        },
        "test": None,
    }
    if kept.stored is not None:
        percent, images = kept.stored["test_top1_percent"], kept.stored["test_images"]
        row["test"] = {
            "search": percent,
            "standard_error": binomial_error_percent(percent, images),
            "seeds": {str(seed): kept.seeds[seed]["test_top1_percent"] for seed in kept.seeds},
            "mean": _mean([percent, *kept.test_percents()]),
        }
    return row


def _moves(
    found: Sequence[Candidate], objectives: Sequence[Objective], reference: NDArray[np.float64]
) -> dict[str, Any] | None:
    """The front when its members' accuracies are means over their seeds; None without any.

    Others keep the one accuracy that they have, which favours them: a good one of theirs would
    have put them on the front.
    """
    members = [each for each in found if each.is_member]
    retrained = [each for each in members if each.accuracies.seeds]
    if not retrained:
        return None
    before = minimised([each.record.values for each in found], objectives)
    after = minimised([each.values(_mean(each.val_percents)) for each in found], objectives)
    fresh = minimised(
        [each.values(_mean(each.accuracies.val_percents())) for each in retrained], objectives
    )
    stay = non_dominated(after)
    inside = np.array([each.is_member for each in found])
    optimism = np.array(
        [each.val_percents[0] - np.mean(each.accuracies.val_percents()) for each in retrained]
    )
    same = np.array([bool(each.accuracies.seeds) for each in members])
    return {
        "retrained": len(retrained),
        "leaves": _trials(found, inside & ~stay),
        "enters": _trials(found, ~inside & stay),
        "optimism_points": float(optimism.mean()),
        "optimism_standard_error": _standard_error(optimism),
        "hypervolume": {
            # Of the retrained members alone, so that the figures compare.
            "search": hypervolume(before[inside][same], reference),
            "mean": hypervolume(after[inside][same], reference),
            "other_seeds": hypervolume(fresh, reference),
        },
    }


def _test(
    members: Sequence[Candidate], objectives: Sequence[Objective], reference: NDArray[np.float64]
) -> dict[str, Any] | None:
    """The front on the test split; None where no member was measured there."""
    there = [
        (each, each.accuracies.stored) for each in members if each.accuracies.stored is not None
    ]
    if not there:
        return None
    tests = [stored["test_top1_percent"] for _, stored in there]
    gaps = np.array(
        [each.val_percents[0] - percent for (each, _), percent in zip(there, tests, strict=True)]
    )
    points = minimised(
        [each.values(percent) for (each, _), percent in zip(there, tests, strict=True)], objectives
    )
    again = [
        val - test
        for each, _ in there
        for val, test in zip(
            each.accuracies.val_percents(), each.accuracies.test_percents(), strict=True
        )
    ]
    stored = there[0][1]
    return {
        "measured": len(there),
        "val_images": stored["val_images"],
        "test_images": stored["test_images"],
        "val_minus_test_points": float(gaps.mean()),
        "val_minus_test_standard_error": _standard_error(gaps),
        "val_minus_test_points_other_seeds": _mean(again),
        "dominated": _trials([each for each, _ in there], ~non_dominated(points)),
        "hypervolume": hypervolume(points, reference),
    }


def _trials(found: Sequence[Candidate], mask: NDArray[np.bool_]) -> list[int]:
    return [each.record.trial for each, is_one in zip(found, mask, strict=True) if is_one]


def _mean(figures: Sequence[float]) -> float | None:
    return float(np.mean(figures)) if len(figures) else None


def _standard_error(figures: NDArray[np.float64]) -> float | None:
    if len(figures) < 2:
        return None
    return float(figures.std(ddof=1) / np.sqrt(len(figures)))
