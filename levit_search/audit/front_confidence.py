"""What the final front is worth: how sure its members are, by their seeds, timings and test split.

Points are those of :func:`levit_search.pareto.minimised`, in which all noise adds up: an accuracy's
as a share, a latency's relative error as that of its decimal logarithm.

The best of many networks with one seed each are the lucky ones among the good. What the others of
the study are like tells how lucky: :func:`accuracy_draws`, an empirical Bayes estimate.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levit_search import table
from levit_search.latency.protocol import PLAIN_TIME_SDS, repeat_sd
from levit_search.pareto import (
    ACCURACIES,
    Figure,
    Objective,
    Points,
    accuracy_of,
    figure_and_target,
    hypervolume,
    is_maximised,
    is_time,
    minimised,
    non_dominated,
)
from levit_search.study import Record, latency_of
from levit_search.study.record import ERRORS

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

DRAWS = 4000

_NEAR_MISSES = 10
_FEWEST_CHANCE = 0.01  # of a near miss that is worth a line
_BEYOND_DOUBT = 3.0  # standard deviations
_Z95 = 1.96
# What predictions are off by where none of the study's was measured: 2.5 % in the mean
# (docs/device.md).
_PREDICTED_WITHIN = 0.025 * math.sqrt(math.pi / 2)
# Single runs' own times are what the machine does in these seconds, which no reference cancels:
# which figure of a measurement tells their spread over its rounds, in percent, and the least it is.
_PLAIN_TIMES: dict[Figure, tuple[str, float]] = {
    "latency_median_ms": ("median_sd_percent", PLAIN_TIME_SDS["latency_median_ms"]),
    "latency_p95_ms": ("p95_sd_percent", PLAIN_TIME_SDS["latency_p95_ms"]),
}
_SEEDS = 12  # quantiles of the standard deviation of seeds
_BETWEEN = 40  # values of that between networks
_WIDEST = 2.0  # of them, in spreads of all accuracies


@dataclass(frozen=True)
class Reevaluation:
    """A network's top-1 on val and test, and of how many images; ``seconds`` is its training's.

    Those in int8 are of networks whose study looks at them.
    """

    val_top1_percent: float
    test_top1_percent: float
    val_images: int
    test_images: int
    seconds: float
    val_top1_int8_percent: float | None = None
    test_top1_int8_percent: float | None = None

    def as_json(self) -> Mapping[str, Any]:
        return asdict(self)


@dataclass
class Accuracies:
    """One network's accuracies that an audit measured."""

    stored: Reevaluation | None = None
    """Of the weights that the search left."""
    seeds: dict[int, Reevaluation] = field(default_factory=dict)
    """Of trainings with other seeds."""

    def others(self) -> list[Reevaluation]:
        """Of trainings with other seeds, in the order of these."""
        return [self.seeds[seed] for seed in sorted(self.seeds)]


@dataclass(frozen=True)
class FrontCandidate:
    """A network that was evaluated in full, and what is known of it."""

    record: Record
    accuracies: Accuracies
    is_member: bool

    def percents(self, figure: str = "top1_percent") -> list[float]:
        """An accuracy on val with all seeds, the search's first; empty where it is not known."""
        first = self.record.values.get(figure)
        others = [getattr(found, f"val_{figure}") for found in self.accuracies.others()]
        return [] if first is None else [first, *(each for each in others if each is not None)]

    def values(self, seeds: slice = slice(None)) -> dict[str, float]:
        """Its objectives, with accuracies on val that are means over seeds, of which the search's
        is the first."""
        values = dict(self.record.values)
        for figure in ACCURACIES:
            if percents := self.percents(figure)[seeds]:
                values[figure] = float(np.mean(percents))
        return values

    @property
    def drops(self) -> list[float]:
        """What int8 costs of the accuracy on val, in points, with all seeds; empty where it is not
        known."""
        pairs = zip(*map(self.percents, ACCURACIES), strict=False)
        return [in_float - in_int8 for in_float, in_int8 in pairs]


def front_figures(
    records: Sequence[Record],
    objectives: Sequence[Objective],
    networks: Mapping[str, Accuracies],
    reference: Floats,
) -> Mapping[str, Any]:
    """What is left of the front.

    Args:
        records: of all finished trials.
        objectives: of the study.
        networks: what an audit measured, by network id.
        reference: [objectives], minimised, that volumes are measured against.

    Returns:
        ``noise`` of seeds, in the first accuracy among the objectives; ``front``, members with
        their values, accuracies and chances, the cheapest first, and those in ``int8`` where they
        are known, with what they are lower by, ``drop``; ``near_misses``, others with a chance, the
        best of ``near_misses_in_all``; ``moves``, what the front becomes by means over seeds;
        ``test``, the front on the test split. Of the last two either is None where nothing was
        trained or measured for it.
    """
    members = table.front(records, objectives)
    trials = {record.trial for record in members}
    others = [record for record in records if record.is_evaluated and record.trial not in trials]
    found = []
    for record in (*members, *others):
        assert record.architecture is not None
        accuracies = networks.get(record.architecture.id, Accuracies())
        found.append(FrontCandidate(record, accuracies, record.trial in trials))
    accuracy = accuracy_of(objectives) or ACCURACIES[0]
    sds: dict[str, tuple[float | None, int]] = {
        figure: pooled_sd([each.percents(figure) for each in found if each.is_member])
        for figure in ACCURACIES
    }
    sd, freedom = sds[accuracy]
    drop_sd, _ = pooled_sd([each.drops for each in found if each.is_member])
    names = ERRORS.values()
    errors = [each.values[name] for each in records for name in names if name in each.values]
    confidence = _confidence(found, objectives, sd, freedom, errors)
    front: list[dict[str, Any]] = []
    near: list[Mapping[str, Any]] = []
    for each, chance in zip(found, confidence, strict=True):
        network = each.record.architecture
        assert network is not None
        row: Mapping[str, Any] = {
            "trial": each.record.trial,
            "id": network.id,
            "architecture": network.summary(),
            "values": {name: each.record.values[name] for name in objectives},
            "chance": float(chance),
        }
        if each.is_member:
            figures = [_accuracy_figures(each, name, sds[name][0]) for name in ACCURACIES]
            front.append({**row, **figures[0]})
            if figures[1]:
                front[-1]["int8"] = {**figures[1], "drop": _drop_figures(each, drop_sd)}
        elif chance >= _FEWEST_CHANCE:
            near.append(row)
    near.sort(key=lambda row: -row["chance"])
    return {
        "noise": {"seed_sd_points": sd, "degrees_of_freedom": freedom, "draws": DRAWS},
        "front": front,
        "near_misses": near[:_NEAR_MISSES],
        "near_misses_in_all": len(near),
        "moves": _by_means(found, objectives, reference),
        "test": _on_test(found, objectives, reference),
    }


def _confidence(
    found: Sequence[FrontCandidate],
    objectives: Sequence[Objective],
    sd: float | None,
    freedom: int,
    errors_percent: Sequence[float],
) -> Floats:
    """Each candidate's chance to be on the front, [candidates]."""
    accuracy = accuracy_of(objectives) or ACCURACIES[0]
    percents = [each.percents(accuracy) for each in found]
    counts = np.array([max(1, len(each)) for each in percents])
    points = minimised([each.values() for each in found], objectives)
    # How wide accuracies scatter matters here for who is left out alone.
    sd_doubt = sd * student_factor(freedom, _BEYOND_DOUBT) if sd is not None else 0.0
    records = [each.record for each in found]
    sds = spreads(records, sd_doubt / np.sqrt(counts), objectives, errors_percent)
    doubtful = could_belong(points, sds, np.array([each.is_member for each in found]))
    rng = np.random.default_rng(0)
    drawn = None
    if sd is not None:
        means = np.array([np.mean(each) for each in percents])
        costs = points[:, [not is_maximised(name) for name in objectives]]
        drawn = accuracy_draws(means, counts, costs, sd, freedom, doubtful, DRAWS, rng)
    confidence = np.zeros(len(found))
    confidence[doubtful] = front_confidence(points[doubtful], sds[doubtful], objectives, rng, drawn)
    return confidence


def _accuracy_figures(each: FrontCandidate, figure: str, sd: float | None) -> Mapping[str, Any]:
    """A member's accuracies of one kind; empty for a network of which it is not known."""
    percents, stored = each.percents(figure), each.accuracies.stored
    if not percents:
        return {}
    val = {
        "search": percents[0],
        "seeds": _by_seed(each.accuracies, f"val_{figure}"),
        "mean": _mean(percents),
        "standard_error": sd / np.sqrt(len(percents)) if sd is not None else None,
    }
    percent = getattr(stored, f"test_{figure}", None)
    if stored is None or percent is None:
        return {"val": val, "test": None}
    share, seeds = percent / 100, _by_seed(each.accuracies, f"test_{figure}")
    test = {
        "search": percent,
        "standard_error": 100 * math.sqrt(share * (1 - share) / stored.test_images),  # binomial
        "seeds": seeds,
        "mean": _mean([percent, *seeds.values()]),
    }
    return {"val": val, "test": test}


def _by_seed(accuracies: Accuracies, name: str) -> dict[str, float]:
    """One of the figures of trainings with other seeds."""
    found = {str(seed): getattr(each, name) for seed, each in accuracies.seeds.items()}
    return {seed: percent for seed, percent in found.items() if percent is not None}


def _drop_figures(each: FrontCandidate, sd: float | None) -> Mapping[str, Any]:
    """What int8 costs a member, in points: on val and on test with all seeds that were measured
    there, the search's first, and their means."""
    known = [found for found in (each.accuracies.stored, *each.accuracies.others()) if found]
    tests = [
        found.test_top1_percent - found.test_top1_int8_percent
        for found in known
        if found.test_top1_int8_percent is not None
    ]
    error = sd / math.sqrt(len(each.drops)) if sd is not None else None
    return {
        "val": each.drops,
        "val_mean": _mean(each.drops),
        "val_standard_error": error,
        "test": tests,
        "test_mean": _mean(tests),
    }


def _by_means(
    found: Sequence[FrontCandidate], objectives: Sequence[Objective], reference: Floats
) -> Mapping[str, Any] | None:
    """The front when its members' accuracies are means over their seeds; None without any.

    Others keep the one accuracy that they have, which favours them: a good one of theirs would
    have put them on the front.
    """
    accuracy = accuracy_of(objectives) or ACCURACIES[0]
    retrained = [each for each in found if each.is_member and len(each.percents(accuracy)) > 1]
    if not retrained:
        return None
    percents = [each.percents(accuracy) for each in retrained]
    optimism = np.array([first - float(np.mean(others)) for first, *others in percents])
    is_member = np.array([each.is_member for each in found])
    stays = non_dominated(minimised([each.values() for each in found], objectives))

    def volume(seeds: slice) -> float:
        """Of the retrained members alone, so that the figures compare."""
        rows = [each.values(seeds) for each in retrained]
        return hypervolume(minimised(rows, objectives), reference)

    return {
        "retrained": len(retrained),
        "leaves": _trials(found, is_member & ~stays),
        "enters": _trials(found, ~is_member & stays),
        "optimism_points": float(optimism.mean()),
        "optimism_standard_error": _standard_error(optimism),
        "hypervolume": {
            "search": volume(slice(1)),
            "mean": volume(slice(None)),
            "other_seeds": volume(slice(1, None)),
        },
    }


def _on_test(
    found: Sequence[FrontCandidate], objectives: Sequence[Objective], reference: Floats
) -> Mapping[str, Any] | None:
    """The front on the test split; None where no member was measured there."""
    members = [each for each in found if each.is_member and each.accuracies.stored is not None]
    stored = [each.accuracies.stored for each in members if each.accuracies.stored is not None]
    if not stored:
        return None
    accuracy = accuracy_of(objectives) or ACCURACIES[0]
    tests = [
        {figure: getattr(each, f"test_{figure}") for figure in objectives if is_maximised(figure)}
        for each in stored
    ]
    gaps = np.array([each.percents(accuracy)[0] for each in members])
    gaps -= np.array([each[accuracy] for each in tests])
    rows = [{**each.record.values, **test} for each, test in zip(members, tests, strict=True)]
    points = minimised(rows, objectives)
    seeds = [found for each in members for found in each.accuracies.others()]
    return {
        "measured": len(members),
        "val_images": stored[0].val_images,
        "test_images": stored[0].test_images,
        "val_minus_test_points": float(gaps.mean()),
        "val_minus_test_standard_error": _standard_error(gaps),
        "val_minus_test_points_other_seeds": _mean(
            [getattr(each, f"val_{accuracy}") - getattr(each, f"test_{accuracy}") for each in seeds]
        ),
        "dominated": _trials(members, ~non_dominated(points)),
        "hypervolume": hypervolume(points, reference),
    }


def _trials(found: Sequence[FrontCandidate], mask: Mask) -> list[int]:
    return [each.record.trial for each, is_one in zip(found, mask, strict=True) if is_one]


def _mean(figures: Sequence[float]) -> float | None:
    return float(np.mean(figures)) if len(figures) else None


def _standard_error(figures: Floats) -> float | None:
    if len(figures) < 2:
        return None
    return float(figures.std(ddof=1) / np.sqrt(len(figures)))


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """The standard deviation within groups that have one in common.

    Args:
        groups: one network's figures with different seeds each; of single ones nothing is learned.

    Returns:
        It, or None where it is unknown, and its degrees of freedom.
    """
    freedom = sum(len(group) - 1 for group in groups if group)
    if not freedom:
        return None, 0
    squares = sum(len(group) * float(np.var(group)) for group in groups if group)
    return math.sqrt(squares / freedom), freedom


def student_factor(freedom: int, deviations: float = _Z95) -> float:
    """How many times as many estimated standard deviations leave out what known ones do (Student).

    Args:
        freedom: degrees of freedom of the estimate.
        deviations: how many known ones; by default those that leave out 5 %.
    """
    from scipy.stats import norm, t

    return float(t.isf(norm.sf(deviations), freedom) / deviations)


def latency_sd(
    record: Record, objective: Objective = "latency_ms", errors_percent: Sequence[float] = ()
) -> float:
    """The relative standard deviation of a network's measured or predicted time.

    It is no less than measurements minutes apart differ by: an interval of an earlier release may
    be narrower, but tells nothing of the next. That of few replicates is as wide as Student's
    quantiles ask for.

    Args:
        record: with its ``evaluation``.
        objective: a time, of the study's own target or a further one.
        errors_percent: those of the study's predictions that were measured later.
    """
    figure, _ = figure_and_target(objective)
    latency = latency_of(record.evaluation, objective) or {}
    if figure in _PLAIN_TIMES:
        name, least = _PLAIN_TIMES[figure]
        percent = latency.get(name)  # measurements of earlier releases have none
        if percent is None or latency.get("rounds", 0) < 2:
            return least
        return max(least, float(percent) / 100 * student_factor(latency["rounds"] - 1))
    least = repeat_sd(record.values[objective])
    if latency.get("method") == "predicted":
        if len(errors_percent) > 1:
            ratios = np.log1p(np.array(errors_percent) / 100)
            wide = student_factor(len(ratios))
            return max(least, wide * float(np.sqrt(np.mean(ratios**2))))
        return max(least, _PREDICTED_WITHIN)
    if "ratio_ci95" not in latency:
        return least
    low, high = latency["ratio_ci95"]
    return max(least, math.log(high / low) / (2 * _Z95))


def spreads(
    records: Sequence[Record],
    accuracy_sds_percent: Sequence[float] | Floats,
    objectives: Sequence[Objective],
    errors_percent: Sequence[float] = (),
) -> Points:
    """Standard deviations as minimised numbers, [records, objectives].

    Costs in closed form have none, and a peak of memory is taken as exact.
    """
    columns = np.zeros((len(records), len(objectives)))
    for column, name in enumerate(objectives):
        if is_maximised(name):
            columns[:, column] = np.array(accuracy_sds_percent) / 100
        elif is_time(name):
            relative = [latency_sd(record, name, errors_percent) for record in records]
            columns[:, column] = np.array(relative) / math.log(10)
    return columns


def could_belong(points: Points, sds: Points, members: Mask) -> Mask:
    """A mask of the members and of others that no member dominates beyond doubt, [points]."""
    best, worst = points - _BEYOND_DOUBT * sds, points + _BEYOND_DOUBT * sds
    doubtful = members.copy()
    for index in np.flatnonzero(~members):
        no_worse = (worst[members] <= best[index]).all(axis=1)
        better = (worst[members] < best[index]).any(axis=1)
        doubtful[index] = not (no_worse & better).any()
    return doubtful


def front_confidence(
    points: Points,
    sds: Points,
    objectives: Sequence[Objective],
    rng: np.random.Generator,
    accuracies_percent: Floats | None = None,
    draws: int = DRAWS,
) -> Floats:
    """Each point's chance to be non-dominated among all, if each is known as well as it is.

    A true value is normal around the known one, except for accuracies that are given. A network's
    median and 95th percentile on one target are off together, as are its accuracies in float and
    in int8, and all else independently.

    Args:
        points: [points, objectives], means over what was measured.
        sds: of these means.
        objectives: by column.
        rng: where randomness comes from.
        accuracies_percent: what true accuracies may be, [draws, points], of the first objective
            that is one.
        draws: how many.

    Returns:
        Chances from 0 to 1, [points].
    """
    runs: dict[str | None, list[int]] = {}
    for column, name in enumerate(objectives):
        figure, target = figure_and_target(name)
        if figure in _PLAIN_TIMES:
            runs.setdefault(target, []).append(column)
    accuracy = [column for column, name in enumerate(objectives) if is_maximised(name)]
    wins = np.zeros(len(points))
    for index in range(draws):
        noise = rng.standard_normal(points.shape)
        for columns in runs.values():
            noise[:, columns] = noise[:, columns[:1]]
        drawn = points + sds * noise
        if accuracies_percent is not None:
            off = 1 - accuracies_percent[index] / 100 - points[:, accuracy[0]]
            drawn[:, accuracy] = points[:, accuracy] + off[:, None]
        wins += non_dominated(drawn)
    return wins / draws


def accuracy_draws(
    means: Floats,
    counts: NDArray[np.int_],
    costs: Points,
    sd: float,
    freedom: int,
    wanted: Mask,
    draws: int,
    rng: np.random.Generator,
) -> Floats:
    """What the accuracies over all seeds may be, by empirical Bayes.

    One hierarchical normal model serves any number of networks (Gelman et al. 2013, Bayesian Data
    Analysis, chapters 5 and 15): true accuracies lie about a smooth trend in the costs with a
    standard deviation between networks, measured ones about the true ones with that of seeds.
    Neither deviation is taken as known: that of seeds is as uncertain as its replicates leave it,
    and that between networks is integrated over a uniform prior, so that of a few networks little
    is concluded and of many what they show. All seeds of all networks are taken together; how
    networks were chosen for further seeds then does not matter.

    Args:
        means: over the seeds of all networks of a study, [networks].
        counts: of these seeds, [networks].
        costs: minimised, [networks, costs]; accuracies are taken as quadratic in them but for a
            rest.
        sd: of one seed, in the unit of the accuracies.
        freedom: its degrees of freedom.
        wanted: which networks to draw for, a mask [networks].
        draws: how many.
        rng: where randomness comes from.

    Returns:
        [draws, wanted networks], independent.
    """
    from scipy.stats import chi2

    away = means - means.mean()
    scale = max(float(away.std()), sd)
    if scale == 0:
        return np.tile(means[wanted], (draws, 1))
    # The terms of the trend, [networks, terms]: the mean, costs and their squares, of spread 1.
    spread = costs.std(axis=0)
    scaled = (costs - costs.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    columns = np.column_stack([np.ones(len(costs)), scaled, scaled**2 - (spread > 0)])
    # By cell of a grid of both deviations, [cells], and by network, [cells, networks].
    shares = (np.arange(_SEEDS) + 0.5) / _SEEDS
    seeds = np.repeat(sd * np.sqrt(freedom / chi2.ppf(shares, freedom)), _BETWEEN)
    between = np.tile(_WIDEST * scale * (np.arange(_BETWEEN) + 0.5) / _BETWEEN, _SEEDS)
    errors = seeds[:, None] ** 2 / counts
    weights = 1 / (between[:, None] ** 2 + errors)
    # Each term of the trend is normal around 0 with the spread of all accuracies, the mean is free.
    free = np.diag([0.0] + [scale**-2] * (columns.shape[1] - 1))
    precision = np.einsum("gn,na,nb->gab", weights, columns, columns) + free
    covariance = np.linalg.inv(precision)
    trend = np.einsum("gab,gn,nb,n->ga", covariance, weights, columns, away, optimize=True)
    fit = np.einsum("ga,gab,gb->g", trend, precision, trend)
    likelihood = 0.5 * (
        np.log(weights).sum(axis=1) - np.linalg.slogdet(precision)[1] - weights @ away**2 + fit
    )
    posterior = np.exp(likelihood - likelihood.max())
    cells = rng.choice(len(posterior), draws, p=posterior / posterior.sum())
    roots = np.linalg.cholesky(covariance)[cells]
    terms = trend[cells] + np.einsum("dab,db->da", roots, rng.standard_normal(roots.shape[:2]))
    expected = terms @ columns[wanted].T
    pull = errors[cells][:, wanted] * weights[cells][:, wanted]  # to the trend
    left = np.sqrt(pull) * between[cells][:, None]
    noise = left * rng.standard_normal(expected.shape)
    drawn: Floats = means.mean() + pull * expected + (1 - pull) * away[wanted] + noise
    return drawn
