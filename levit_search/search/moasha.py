"""Multi-objective ASHA: asynchronous successive halving over accuracy and costs at once.

It decides which candidates are worth training on. A candidate that comes to a rung goes on at once
or ends there, judged among those that came before it (the stopping form of Li et al. 2020, *A
System for Massively Parallel Hyperparameter Tuning*): nobody waits for a bracket to fill. Accuracy
at the rung stands beside the costs, which are known by then, so that a slow network goes on only if
it is accurate for its latency.

The order is that of Schmucker et al. 2021, *Multi-objective Asynchronous Successive Halving*, arXiv
2106.12639: by non-dominated fronts, and within a front by an epsilon net, the most accurate first,
then each time the one that is farthest from all before it. A candidate goes on if it is among the
best ``1 / reduction`` of those that came so far. Who went on before does not count, so that a good
candidate that comes late goes on, too: in random order one in ``reduction`` goes on, and more where
later ones are better.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from levit_search.pareto import Objective, Points, accuracy_of, minimised, non_dominated_ranks

_LATEST = 1000  # candidates at a rung among whom the next one is judged
# What accuracy is expected to gain is rounded to so many points: the figures that samplers are told
# of stopped candidates then stay as they are while the estimate settles.
_GAIN_STEP = 0.5


class MultiObjectiveASHA:
    """Judges candidates at rungs, and tells what stopped ones would have come to.

    Args:
        epochs: of the rungs, ascending, all before the last epoch.
        reduction: about one in so many goes on from each.
        objectives: of the study, an accuracy among them.
    """

    accuracy: Objective
    """Which of the objectives grows from rung to rung. One in int8 is known after the last epoch
    alone; at rungs its place is taken by the float one, and what quantization costs is part of the
    last gain."""

    def __init__(
        self, epochs: Sequence[int], reduction: float, objectives: Sequence[Objective]
    ) -> None:
        accuracy = accuracy_of(objectives)
        assert accuracy is not None
        self.accuracy, self.epochs = accuracy, tuple(epochs)
        self._reduction, self._objectives = reduction, tuple(objectives)
        # By network id, in the order in which they came.
        self._points: dict[int, dict[str, Points]] = {epoch: {} for epoch in self.epochs}
        self._went_on: dict[int, dict[str, bool]] = {epoch: {} for epoch in self.epochs}
        # The same at each rung, and after the last epoch.
        self._accuracies: list[dict[str, float]] = [{} for _ in range(len(self.epochs) + 1)]
        self._gains: tuple[float, ...] | None = None

    def judge(self, epoch: int, network: str, values: Mapping[str, float]) -> bool:
        """Whether a network that comes to a rung goes on.

        Args:
            epoch: of the rung.
            network: its id; one that was there before, and failed later, is judged as it was.
            values: all objectives by name, the accuracy being the one at this rung.
        """
        if network in self._went_on[epoch]:
            return self._went_on[epoch][network]
        latest = [*self._points[epoch].values()][1 - _LATEST :]
        points = np.array([*latest, minimised([values], self._objectives)[0]])
        ranks = non_dominated_ranks(points)
        room = math.ceil(len(points) / self._reduction) - int((ranks < ranks[-1]).sum())
        accuracy = self._objectives.index(self.accuracy)
        goes_on = _is_among_first(room, points[ranks == ranks[-1]], accuracy)
        self.enter(epoch, network, values, goes_on)
        return goes_on

    def enter(self, epoch: int, network: str, values: Mapping[str, float], goes_on: bool) -> None:
        """Note what was judged, now or in an earlier session; a second coming counts nothing."""
        if network not in self._went_on[epoch]:
            self._points[epoch][network] = minimised([values], self._objectives)[0]
            self._went_on[epoch][network] = goes_on
            self._accuracies[self.epochs.index(epoch)][network] = values[self.accuracy]
            self._gains = None

    def complete(self, network: str, percent: float) -> None:
        """Note the accuracy after the last epoch; a later one counts."""
        self._accuracies[-1][network] = percent
        self._gains = None

    def gains(self) -> tuple[float, ...]:
        """What accuracy gains from each rung to the next, to the last epoch in the end: the median
        in points over those that went on, rounded; 0 where nobody did."""
        if self._gains is None:
            gained = (
                [later[each] - sooner[each] for each in later if each in sooner]
                for sooner, later in itertools.pairwise(self._accuracies)
            )
            self._gains = tuple(
                _GAIN_STEP * round(statistics.median(gains) / _GAIN_STEP) if gains else 0.0
                for gains in gained
            )
        return self._gains

    def expected(self, epoch: int, percent: float) -> float:
        """The accuracy in percent that a candidate stopped at a rung would have had in the end."""
        found = percent + sum(self.gains()[self.epochs.index(epoch) :])
        return max(0.0, min(100.0, found))


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
