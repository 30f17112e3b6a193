"""Which choices a study's networks made, and which of them mattered."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from levit_search.architecture import Architecture, sizes_of
from levit_search.image_size import plain_size
from levit_search.pareto import Objective, minimised
from levit_search.space import Space
from levit_search.study import Record, StudyConfig

FEWEST = 20
"""Networks that shares can be told from at all."""

# A forest for 1 000 networks of 18 slots: 0.5 s on a slow core, where Optuna's default (64 trees of
# any depth) takes 16 s; on 100 networks both give the same shares within 0.02. PED-ANOVA takes
# 0.1 s but asks another question, what tells the best tenth from the rest.
_TREES, _DEPTH = 16, 6
_MOST = 2000  # networks that are looked at, evenly chosen


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
