"""Successive halving over several objectives: which candidates are worth training on.

A candidate that comes to a rung goes on at once or ends there, judged among those that came before
it (the stopping form of Li et al. 2020, *A System for Massively Parallel Hyperparameter Tuning*):
nobody waits for a bracket to fill. Accuracy at the rung stands beside the costs, which are known by
then, so that a slow network goes on only if it is accurate for its latency.

The order is that of multi-objective ASHA (Schmucker et al. 2021, *Multi-objective Asynchronous
Successive Halving*, arXiv 2106.12639): by non-dominated fronts, and within a front by an epsilon
net, the most accurate first, then each time the one that is farthest from all before it. A
candidate goes on if it is among the best ``1 / reduction`` of those that came so far. Who went on
before does not count, so that a good candidate that comes late goes on, too: in random order one in
``reduction`` goes on, and more where later ones are better.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from levit_search.pareto import Objective, Points, minimised, non_dominated_ranks

_ACCURACY = "top1_percent"
_LATEST = 1000  # candidates at a rung among whom the next one is judged
# What accuracy is expected to gain is rounded to so many points: the figures that samplers are told
# of stopped candidates then stay as they are while the estimate settles.
_GAIN_STEP = 0.5


@dataclass
class _Rung:
    """Who came to one rung, in their order."""

    accuracy: dict[str, float] = field(default_factory=dict)
    points: list[Points] = field(default_factory=list)
    went_on: list[bool] = field(default_factory=list)


class Rungs:
    """Who came to which rung, with which figures.

    Args:
        epochs: of the rungs, ascending, all before the last epoch.
        reduction: about one in so many goes on from each.
        objectives: of the study.
    """

    def __init__(
        self, epochs: Sequence[int], reduction: float, objectives: Sequence[Objective]
    ) -> None:
        self.epochs = tuple(epochs)
        self._reduction, self._objectives = reduction, tuple(objectives)
        self._accuracy = self._objectives.index(_ACCURACY)
        self._rungs = {epoch: _Rung() for epoch in self.epochs}
        self._final: dict[str, float] = {}
        self._levels = [*(rung.accuracy for rung in self._rungs.values()), self._final]
        self._gained: list[list[float]] = [[] for _ in self.epochs]  # ascending, from each rung on

    def judge(self, epoch: int, network: str, values: Mapping[str, float]) -> bool:
        """Whether a network that comes to a rung goes on.

        Args:
            epoch: of the rung.
            network: its id; one that was there before, and failed later, is judged as it was.
            values: all objectives by name, the accuracy being the one at this rung.
        """
        rung = self._rungs[epoch]
        if network in rung.accuracy:
            return rung.went_on[list(rung.accuracy).index(network)]
        points = [*rung.points[1 - _LATEST :], minimised([values], self._objectives)[0]]
        ranks = non_dominated_ranks(np.array(points))
        beside = np.array(points)[ranks == ranks[-1]]
        room = math.ceil(len(points) / self._reduction) - int((ranks < ranks[-1]).sum())
        goes_on = _is_among_first(room, beside, self._accuracy)
        self.enter(epoch, network, values, goes_on)
        return goes_on

    def enter(self, epoch: int, network: str, values: Mapping[str, float], goes_on: bool) -> None:
        """Note what was judged, now or in an earlier session; a second coming counts nothing."""
        rung = self._rungs[epoch]
        if network not in rung.accuracy:
            self._reach(self.epochs.index(epoch), network, values[_ACCURACY])
            rung.points.append(minimised([values], self._objectives)[0])
            rung.went_on.append(goes_on)

    def complete(self, network: str, top1_percent: float) -> None:
        """Note the accuracy after the last epoch."""
        self._reach(len(self.epochs), network, top1_percent)

    def gains(self) -> tuple[float, ...]:
        """What accuracy gains from each rung to the next, to the last epoch in the end: the median
        in points over those that went on, rounded; 0 where nobody did."""
        return tuple(map(_rounded_median, self._gained))

    def _reach(self, level: int, network: str, top1_percent: float) -> None:
        """Note an accuracy; rungs are levels, and the end, where a later one counts, is the last.

        What is gained between two levels is kept in order, since medians are asked for with each
        trial.
        """
        earlier = self._levels[level].get(network)
        if level > 0 and (before := self._levels[level - 1].get(network)) is not None:
            gained = self._gained[level - 1]
            if earlier is not None:
                del gained[bisect.bisect_left(gained, earlier - before)]
            bisect.insort(gained, top1_percent - before)
        if level < len(self.epochs) and (after := self._levels[level + 1].get(network)) is not None:
            bisect.insort(self._gained[level], after - top1_percent)
        self._levels[level][network] = top1_percent

    def expected(self, epoch: int, top1_percent: float) -> float:
        """The accuracy in percent that a candidate stopped at a rung would have had in the end."""
        return min(100.0, top1_percent + sum(self.gains()[self.epochs.index(epoch) :]))


def _is_among_first(count: int, front: Points, first: int) -> bool:
    """Whether the last point of a front is among the first ``count`` by the order of its epsilon
    net, in which each is the farthest from those before it.

    Args:
        count: of those that there is room for.
        front: [points, objectives], smaller is better; distances are in shares of its extent.
        first: the objective whose best point comes first.
    """
    if count >= len(front):
        return True
    low, high = front.min(axis=0), front.max(axis=0)
    scaled = (front - low) / np.where(high > low, high - low, 1.0)
    chosen = int(np.lexsort([*front.T, front[:, first]])[0])
    away = np.full(len(front), np.inf)
    for _ in range(count):
        if chosen == len(front) - 1:
            return True
        away = np.minimum(away, np.linalg.norm(scaled - scaled[chosen], axis=1))
        chosen = int(np.argmax(away))
    return False


def _rounded_median(gains: list[float]) -> float:
    """Of numbers in ascending order."""
    if not gains:
        return 0.0
    middle = (gains[(len(gains) - 1) // 2] + gains[len(gains) // 2]) / 2
    return _GAIN_STEP * round(middle / _GAIN_STEP)
