"""Which choices a study's networks made, and which of them mattered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levit_search.architecture import Architecture, sizes_of
from levit_search.image_size import plain_size
from levit_search.pareto import Objective, minimised
from levit_search.space import Space
from levit_search.study import Record, StudyConfig

FEWEST = 20
"""Networks that shares and correlations can be told from at all."""

# A forest for 1 000 networks of 18 slots: 0.5 s on a slow core, where Optuna's default (64 trees of
# any depth) takes 16 s; on 100 networks both give the same shares within 0.02. PED-ANOVA takes
# 0.1 s but asks another question, what tells the best tenth from the rest.
_TREES, _DEPTH = 16, 6
_MOST = 2000  # networks that are looked at, evenly chosen
_MOST_DRAWN = 500  # the same where they are drawn again and again
_DRAWS = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Association:
    """How a figure goes with a choice, over a study's networks."""

    choice: str
    """A slot whose values have an order, with the least and the largest one that occur, or a slot
    and one of its values."""
    networks: int
    """In which the choice means something."""
    median_least: float
    """Of the figure, over networks with the least value, or without this one."""
    median_most: float
    """Over those with the largest value, or with this one."""
    correlation: float
    """Spearman's rank correlation of choice and figure."""
    low: float
    """Of its 95 % interval, by bootstrap over the networks."""
    high: float
    chance: float
    """That one of all choices goes with the figure as closely by luck, by permutation."""


class Choices:
    """The slots of a study's space, and the place of a network's value in each.

    Args:
        config: of the study.
        sample: any network of it, whose sizes are those of all.
    """

    def __init__(self, config: StudyConfig, sample: Architecture) -> None:
        # The data need not be here.
        sizes = {**sizes_of(sample), "image_size": plain_size(sample.image_size)}
        self._space = Space({**sizes, **config.architecture}, config.limits)
        self._slots = [slot for slot in self._space.slots if len(slot.values) > 1]
        self.slots: dict[str, list[Any]] = {slot.name: list(slot.values) for slot in self._slots}
        """By name, their values in order; those that vary."""

    def places(self, network: Architecture | None) -> list[int | None] | None:
        """For each slot the place of the network's value, None where the slot means nothing in it.

        Returns:
            None for no network, or one from outside the space.
        """
        values = self._space.chosen(network) if network is not None else None
        if values is None:
            return None
        return [
            slot.values.index(values[slot.name]) if slot.name in values else None
            for slot in self._slots
        ]

    def importance(
        self, records: Sequence[Record], objectives: Sequence[Objective]
    ) -> dict[str, dict[str, float]]:
        """Of what single slots explain of an objective's variance, the share of each.

        fANOVA (Hutter, Hoos and Leyton-Brown 2014) by Optuna, on networks that were evaluated to
        the end. A slot that means nothing in a network is filled at random there, so that it does
        not stand for the one that decides this.

        Returns:
            By objective and slot, the most important first; empty where there are too few networks
            or all are the same.
        """
        import optuna
        from optuna.distributions import BaseDistribution, IntDistribution
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances
        from optuna.trial import FrozenTrial, create_trial

        rng = np.random.default_rng(0)
        rows, kept = [], []
        for record in records:
            places = self.places(record.architecture) if record.is_evaluated else None
            if places is not None:
                filled = zip(places, self._slots, strict=True)
                rows.append([rng.integers(len(s.values)) if p is None else p for p, s in filled])
                kept.append(record.values)
        if len(rows) < FEWEST or not self._slots:
            return {}
        count = min(len(rows), _MOST)
        evenly = np.linspace(0, len(rows) - 1, count).round().astype(int)
        places_ns = np.array(rows)[evenly]  # [networks, slots]
        points = minimised([kept[i] for i in evenly], objectives)
        varied = [i for i in range(len(self._slots)) if np.ptp(places_ns[:, i]) > 0]
        spread: dict[str, BaseDistribution] = {
            self._slots[i].name: IntDistribution(0, len(self._slots[i].values) - 1) for i in varied
        }
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # a new study is announced otherwise
        try:
            study = optuna.create_study(directions=["minimize"] * len(objectives))
            for row, point in zip(places_ns, points, strict=True):
                params = dict(zip(spread, row[varied].tolist(), strict=True))
                study.add_trial(
                    create_trial(params=params, distributions=spread, values=point.tolist())
                )
            found = {}
            for column, objective in enumerate(objectives):
                if not spread or np.ptp(points[:, column]) == 0:
                    continue

                def target(trial: FrozenTrial, column: int = column) -> float:
                    return float(trial.values[column])

                shares = get_param_importances(
                    study,
                    evaluator=FanovaImportanceEvaluator(n_trees=_TREES, max_depth=_DEPTH, seed=0),
                    target=target,
                )
                found[objective] = {n: round(float(share), 4) for n, share in shares.items()}
            return found
        finally:
            optuna.logging.set_verbosity(level)

    def associations(self, records: Sequence[Record], figure: str) -> list[Association]:
        """Which choices go with a figure, the closest first.

        A search draws choices together where it found good networks, so that one may stand for
        another here; none of it says what causes what.

        Returns:
            One for each slot with an order and for each value of the others (of two values one);
            empty where fewer than :data:`FEWEST` networks have the figure, or all have the same.
        """
        from scipy.stats import rankdata

        kept = [r for r in records if r.is_evaluated and figure in r.values]
        evenly = np.linspace(0, len(kept) - 1, min(len(kept), _MOST_DRAWN)).round().astype(int)
        places = [(self.places(kept[index].architecture), kept[index]) for index in evenly]
        known = [(found, record.values[figure]) for found, record in places if found is not None]
        values = np.array([value for _, value in known])
        if len(known) < FEWEST or np.ptp(values) == 0:
            return []
        places_ns = np.array([found for found, _ in known], dtype=np.float64)  # NaN: means nothing
        rng, ranks = np.random.default_rng(0), rankdata(values)
        permuted = rng.permuted(np.tile(ranks, (_DRAWS, 1)), axis=1)
        found, most = list[Association](), np.zeros(_DRAWS)
        for choice, chosen in self._columns(places_ns):
            there = ~np.isnan(chosen)
            chosen, own = chosen[there], values[there]
            if len(chosen) < FEWEST or np.ptp(chosen) == 0:
                continue
            x, y = rankdata(chosen), rankdata(own)
            again = rng.integers(len(x), size=(_DRAWS, len(x)))
            low, high = np.percentile(_correlations(x[again], y[again]), [2.5, 97.5])
            most = np.maximum(most, abs(_correlations(x, permuted[:, there])))
            extremes = (chosen.min(), chosen.max())
            least, largest = (float(np.median(own[chosen == end])) for end in extremes)
            correlation = float(_correlations(x, y))
            ends = float(low), float(high)
            found.append(Association(choice, len(x), least, largest, correlation, *ends, 1.0))
        found.sort(key=lambda each: -abs(each.correlation))
        luck = [int((most >= abs(each.correlation)).sum()) for each in found]
        return [
            replace(each, chance=(1 + count) / (1 + _DRAWS))
            for each, count in zip(found, luck, strict=True)
        ]

    def _columns(self, places_ns: Floats) -> Iterator[tuple[str, Floats]]:
        """What is compared with a figure, by name, of places [networks, slots]: [networks] each."""
        for slot, places in zip(self._slots, places_ns.T, strict=True):
            used = np.unique(places[~np.isnan(places)]).astype(int)
            if slot.ordinal and len(used):
                yield f"{slot.name} {slot.values[used[0]]} to {slot.values[used[-1]]}", places
                continue
            for place in used if len(used) > 2 else used[1:]:
                has = np.where(np.isnan(places), np.nan, places == place)
                yield f"{slot.name} {slot.values[place]}", has


def _correlations(x: Floats, y: Floats) -> Floats:
    """Pearson's, over the last dimension; 0 where one of both does not vary."""
    x, y = (each - each.mean(axis=-1, keepdims=True) for each in (x, y))
    spread = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    together: Floats = (x * y).sum(axis=-1)
    return together / np.where(spread > 0, spread, 1.0)
