"""Freeze-thaw Bayesian optimization: what to train next, and for how long.

A candidate is trained to a rung and paused there; whatever is worth most for what it costs is next,
be it a new network or one that goes on. The idea is that of Swersky, Snoek and Adams 2014,
*Freeze-Thaw Bayesian Optimization*, arXiv 1406.3896. Here one Gaussian process over the choices of
a network and the logarithm of its epochs predicts how accurate each will be in the end. Costs are
known beforehand, or as good as known, so that the expected improvement of the front's hypervolume
has a closed form (:func:`expected_improvement`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from scipy.special import ndtr

from levit_search.pareto import (
    Objective,
    Points,
    hypervolume,
    is_maximised,
    minimised,
    non_dominated,
)
from levit_search.search.gaussian_process import Floats, GaussianProcess
from levit_search.search.moasha import MultiObjectiveASHA

_CLOSED_FORM = ("flops", "params", "activations")
_OVERHEAD = 0.5  # of the median network's cost of an epoch, which every network has
_FIRST_FIT, _REFIT = 4, 1.15  # observations; after so many times as many all is fitted again
_MOST_OBSERVED = 300
_PREDICTS = 0.05  # of the variance of accuracies, for networks left out: else the model is no good
_KEPT = 16  # paused networks that have a checkpoint
_CELLS = 2000  # that the space of costs is divided into at most
_OUTLIER = 3.0  # quartile distances below the lower quartile: worse is no different
_LEAST = 1e-12
SETTLED_PERCENT, SETTLED_ACTS = 0.1, 10
"""A front no longer moves when of so many acts in a row none was expected to add more to its
hypervolume than so many percent of it."""


class Candidate(NamedTuple):
    """A network that may be trained."""

    network: str
    """Its id."""
    params: Mapping[str, Any]
    """Of all distributions; those that mean nothing for it are the same for all networks."""
    figures: Mapping[str, float]
    """What is known of it by name; before it is evaluated what has a closed form."""


class Act(NamedTuple):
    """What may be done next: to train a candidate to its next rung, or to the end."""

    candidate: Candidate
    gain: float
    """What it is expected to add to the hypervolume in the end."""


class FreezeThaw(MultiObjectiveASHA):
    """Chooses between new networks and paused ones, and pauses those that come to a rung.

    Args:
        epochs: of the rungs, ascending, all before the last epoch.
        reduction: ``trials`` networks share the epochs that halving by this factor would give them.
        objectives: of the study, an accuracy among them.
        last_epoch: of a whole training.
        distributions: of all parameters, by name.
        trials: networks to begin; None where time is the bound.
        startup_trials: networks that are begun before any goes on, but for the cheapest.
        reference: what hypervolumes are measured from, minimised; asked when it is needed.
        limit_ms: of ``latency_ms``; a network that is over it counts nothing.
        earlier: parameters and accuracies in percent of networks in another study, as one more
            input; empty for none.
    """

    candidates: dict[str, Candidate]
    """By network, those that began, but for those that failed."""
    met: set[str]
    """All networks that ever began."""
    begun: int
    """How many of them began here."""
    outlook_percent: float | None
    """What any of the acts that there are was expected to add at most, when one was chosen last, in
    percent of the front's hypervolume; None before there is a front and a model."""
    predicts: bool
    """Whether the model told networks apart that it did not know, when it was fitted last."""

    def __init__(
        self,
        epochs: Sequence[int],
        reduction: float,
        objectives: Sequence[Objective],
        last_epoch: int,
        distributions: Mapping[str, BaseDistribution],
        trials: int | None,
        startup_trials: int,
        reference: Callable[[], Points],
        limit_ms: float | None = None,
        earlier: Sequence[tuple[Mapping[str, Any], float]] = (),
    ) -> None:
        super().__init__(epochs, reduction, objectives)
        self._stops = (*self.epochs, last_epoch)
        self._encoding = _Encoding(distributions, earlier)
        self._reference, self._trials, self._startup = reference, trials, startup_trials
        self._limit_ms = limit_ms
        steps = np.diff([0, *self._stops])
        self._share = float(sum(step / reduction**rung for rung, step in enumerate(steps)))
        self._prices = [name for name in objectives if not is_maximised(name)]
        self.candidates, self.met, self.begun, self.predicts = {}, set(), 0, True
        self.outlook_percent = None
        self._taken: set[str] = set()
        self._dropped: dict[str, Candidate] = {}
        self._at: dict[str, int] = {}  # the epoch that a network was trained to
        self._paused: dict[str, int] = {}  # the epoch of its checkpoint, 0 where it has none
        self._running: dict[str, None] = {}
        self._spent = 0
        self._observed: list[tuple[str, int]] = []  # network and place of the rung, as they came
        self._fits: dict[str, tuple[int, Floats]] = {}  # on how many observations, with what result
        self.fresh: Callable[[], Sequence[Candidate]] = tuple
        """What there is to begin."""
        self.cheapest: Callable[[], Candidate | None] = lambda: None
        """The network of the fewest FLOPs, which begins with the first ones."""

    # --- what happens

    def begin(self, candidate: Candidate, epoch: int = 0, is_taken: bool = False) -> None:
        """A candidate begins, or goes on from its checkpoint after ``epoch``.

        One that is taken from another study costs nothing.
        """
        name = candidate.network
        if is_taken:
            self._taken.add(name)
        elif name not in self.met:
            self.begun += 1
        self.met.add(name)
        self.candidates.setdefault(name, candidate)
        self._paused.pop(name, None)
        self._at[name] = epoch
        self._running[name] = None

    def enter(self, epoch: int, network: str, values: Mapping[str, float], goes_on: bool) -> None:
        super().enter(epoch, network, values, goes_on)
        self._come(network, epoch, values)

    def pause(self, network: str, has_checkpoint: bool = True) -> None:
        """A candidate ended at a rung."""
        self._running.pop(network, None)
        self._paused[network] = self._at[network] if has_checkpoint else 0

    def finish(self, network: str, values: Mapping[str, float]) -> None:
        """A candidate was trained to the end; ``values`` are all objectives by name."""
        self._running.pop(network, None)
        self.complete(network, values[self.accuracy])
        self._come(network, self._stops[-1], values)

    def drop(self, network: str, values: Mapping[str, float]) -> None:
        """A candidate failed, or is over a limit; ``values`` are what is known of it."""
        self._running.pop(network, None)
        if network in self.candidates:
            known = self.candidates[network]
            self._dropped[network] = known._replace(figures={**known.figures, **values})
        self._paused.pop(network, None)
        self._at.pop(network, None)
        self.candidates.pop(network, None)

    def _come(self, network: str, epoch: int, values: Mapping[str, float]) -> None:
        if network not in self._taken:
            self._spent += max(0, epoch - self._at[network])
        self._at[network] = max(epoch, self._at[network])
        known = self.candidates[network]
        self.candidates[network] = known._replace(figures={**known.figures, **values})
        seen = network, self._stops.index(epoch)
        if seen not in self._observed:
            self._observed.append(seen)

    # --- what to do

    def judge(self, epoch: int, network: str, values: Mapping[str, float]) -> bool:
        if network in self._went_on[epoch]:
            return self._went_on[epoch][network]
        self.enter(epoch, network, values, False)
        self.pause(network)
        cheapest = self.cheapest() if not self._accuracies[-1] else None
        if cheapest is not None and cheapest.network == network:
            goes_on = True  # it is on the front, and shows what trainings gain
        else:
            act = self.next_act()
            goes_on = act is not None and act.candidate.network == network
        if goes_on:
            self.begin(self.candidates[network], epoch)
        self._went_on[epoch][network] = goes_on
        return goes_on

    def paused(self) -> Mapping[str, int]:
        """Networks that may go on, with the epoch of their checkpoint; 0 for none."""
        return self._paused

    @property
    def is_starting(self) -> bool:
        """Whether too little is known for a model to choose."""
        return self.begun < self._startup or len(self._seen()) < _FIRST_FIT

    def can_go_on(self) -> bool:
        """Whether a paused network may be trained on."""
        return any(map(self._can_afford, self._paused))

    def next_act(self) -> Act | None:
        """What is worth most for what it costs; None where there is nothing to do, or no budget."""
        may_begin = self._trials is None or self.begun < self._trials
        paused = [self.candidates[name] for name in self._paused if self._can_afford(name)]
        if self.is_starting and may_begin and (fresh := self.fresh()):
            return Act(fresh[0], math.inf)
        if paused and (not self._accuracies[-1] or len(self._seen()) < _FIRST_FIT):
            return Act(paused[0], math.inf)  # what trainings gain is known by one of them at least
        if len(self._seen()) < _FIRST_FIT:
            return None
        self._fit()
        known = [*paused, *(self.fresh() if may_begin else ())]
        if not known:
            return None
        gains, chances = self._expectations(known)
        if volume := hypervolume(*self._front()):
            self.outlook_percent = float(100 * gains.max() / volume)
        starts = np.array([self._paused.get(each.network, 0) for each in known])
        stops = np.array([self._stop_after(each.network) for each in known])
        epochs = stops - starts + chances * (self._stops[-1] - stops)
        best = int(np.argmax((gains + _LEAST) / (epochs * self._epoch_costs(known))))
        return Act(known[best], float(gains[best]))

    def promising(self) -> list[Candidate]:
        """The front as it promises to be, by what networks came to and usually still gain."""
        latest = {name: value for (name, _), value in self._promises(self._seen()).items()}
        known = [self.candidates[name] for name in latest]
        rows = [{**each.figures, self.accuracy: latest[each.network]} for each in known]
        is_front = non_dominated(minimised(rows, [self.accuracy, *self._prices]))
        return [each for each, is_good in zip(known, is_front, strict=True) if is_good]

    def farthest(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The one that is least like all that began, if there is one."""
        if not candidates or not self.candidates:
            return list(candidates[:1])
        begun = self._encoding.choices([*self.candidates.values()])
        points = self._encoding.choices(candidates)
        away = np.linalg.norm(points[:, None] - begun, axis=2).min(axis=1)
        return [candidates[int(np.argmax(away))]]

    def superfluous(self) -> list[str]:
        """Paused networks that are least likely to go on, and have no checkpoint from now on."""
        kept = [name for name, epoch in self._paused.items() if epoch]
        if len(kept) <= _KEPT:
            return []
        gains, _ = self._expectations([self.candidates[name] for name in kept])
        lost = [kept[place] for place in np.argsort(-gains, kind="stable")[_KEPT:]]
        self._paused |= dict.fromkeys(lost, 0)
        return lost

    def _stop_after(self, network: str) -> int:
        """The epoch to which a network is trained next."""
        return next(stop for stop in self._stops if stop > self._at.get(network, 0))

    def _can_afford(self, network: str) -> bool:
        """Whether a paused network may go on, so that enough is left for those not yet begun; one
        is trained to the end in any case."""
        if self._trials is None or not self._accuracies[-1]:
            return True
        left = self._trials * self._share - self._spent
        left -= (self._trials - self.begun) * self._stops[0]
        return self._stop_after(network) - self._paused[network] <= left + _LEAST

    def _epoch_costs(self, candidates: Sequence[Candidate]) -> Floats:
        """What an epoch of each takes, relative to others; known without a clock."""
        flops = np.array([each.figures["flops"] for each in candidates])
        seen = [each.figures["flops"] for each in self.candidates.values()]
        return np.asarray(flops + _OVERHEAD * np.median(seen))

    # --- the model

    def _expectations(self, candidates: Sequence[Candidate]) -> tuple[Floats, Floats]:
        """What each would add to the hypervolume, and its chance to be on the front."""
        ends = np.zeros(len(candidates))
        mean, deviation = self._model().predict(self._encoding.points(candidates, ends))
        prices = [self._priced(name, candidates)[0] for name in self._prices]
        columns = np.column_stack(prices or [np.empty((len(candidates), 0))])
        front, reference = self._front()
        mean, deviation = 1 - mean / 100, deviation / 100
        gains, chances = expected_improvement(front, reference, mean, deviation, columns)
        if self._limit_ms is not None:
            price, deviation = self._priced("latency_ms", candidates)
            keeps = ndtr((math.log10(self._limit_ms) - price) / np.maximum(deviation, _LEAST))
            gains, chances = keeps * gains, keeps * chances
        return gains, chances

    def _front(self) -> tuple[Points, Points]:
        """What was trained to the end, and the reference: errors, then costs."""
        names = [self.accuracy, *self._prices]
        known = [self.candidates[each] for each in self._accuracies[-1] if each in self.candidates]
        places = [self._objectives.index(name) for name in names]
        return minimised([each.figures for each in known], names), self._reference()[places]

    def _fit(self) -> Floats:
        """Hyperparameters, fitted again where much has come, and whether the model predicts."""
        seen = self._seen()
        fitted_on = _threshold(len(seen))
        if fitted_on != self._fits.get(self.accuracy, (0, None))[0]:
            part = seen[:fitted_on]
            points, values, places = self._data(part)
            model = GaussianProcess(points, values, places, len(self._stops))
            left = values - model.left_out([network for network, _ in self._chosen(part)])
            self.predicts = bool((left**2).mean() < (1 - _PREDICTS) * values.var())
            self._fits[self.accuracy] = fitted_on, model.hyperparameters
        return self._fits[self.accuracy][1]

    def _model(self) -> GaussianProcess:
        """The accuracy in the end, by all that was seen."""
        hyperparameters, data = self._fit(), self._data(self._seen())
        model = GaussianProcess(*data, len(self._stops), hyperparameters)
        running = [self.candidates[name] for name in self._running if name in self.candidates]
        if not running:
            return model
        # What runs will come as it is expected: so much less is to be learnt nearby.
        places = np.array([self._stops.index(self._stop_after(c.network)) for c in running])
        points = self._encoding.points(running, self._time(places))
        foreseen = points, model.predict(points)[0], places
        inputs, values, groups = map(np.concatenate, zip(data, foreseen, strict=True))
        return GaussianProcess(inputs, values, groups, len(self._stops), hyperparameters)

    def _seen(self) -> list[tuple[str, int]]:
        """Networks and places of the rungs that they came to, as far as they are in the race."""
        return [each for each in self._observed if each[0] in self.candidates]

    def _data(self, seen: Sequence[tuple[str, int]]) -> tuple[Floats, Floats, NDArray[np.int_]]:
        """Points, the accuracy in the end that each observation promises, and places of rungs."""
        promised = self._promises(seen)
        seen = self._chosen(seen)
        places = np.array([place for _, place in seen])
        values = np.array([promised[each] for each in seen])
        low, high = np.quantile(values, [0.25, 0.75])
        values = np.maximum(values, low - _OUTLIER * (high - low))
        points = self._encoding.points([self.candidates[n] for n, _ in seen], self._time(places))
        return points, values, places

    def _chosen(self, seen: Sequence[tuple[str, int]]) -> Sequence[tuple[str, int]]:
        """Those that a model is made of: the latest, up to half of them trained to the end."""
        if len(seen) <= _MOST_OBSERVED:
            return seen
        last = len(self._stops) - 1
        whole = [each for each in seen if each[1] == last][-_MOST_OBSERVED // 2 :]
        others = [each for each in seen if each[1] != last][len(whole) - _MOST_OBSERVED :]
        chosen = {*whole, *others}
        return [each for each in seen if each in chosen]

    def _promises(self, seen: Sequence[tuple[str, int]]) -> dict[tuple[str, int], float]:
        """Accuracies in the end, if each gains what those seen gained on average."""
        known = [dict[str, float]() for _ in self._stops]
        for network, place in seen:
            known[place][network] = self._accuracies[place][network]
        still = [0.0]  # to be gained, from the end backwards
        for sooner, later in zip(known[-2::-1], known[:0:-1], strict=True):
            gained = [later[each] - sooner[each] for each in later if each in sooner]
            still.insert(0, still[0] + (float(np.mean(gained)) if gained else 0.0))
        return {(name, place): known[place][name] + still[place] for name, place in seen}

    def _time(self, places: NDArray[np.int_]) -> Floats:
        """Epochs of rungs on a log scale, from 1 for the first to 0 for the end."""
        logarithms = np.log(np.array(self._stops) / self._stops[-1])
        return np.asarray((logarithms / (logarithms[0] or 1.0))[places])

    def _priced(self, name: Objective, candidates: Sequence[Candidate]) -> tuple[Floats, Floats]:
        """A cost of each on a decimal log scale, predicted where it was not measured, and the
        standard deviation of that."""
        is_known = np.array([name in each.figures for each in candidates])
        found = np.array([math.log10(each.figures.get(name, 1.0)) for each in candidates])
        deviation = np.zeros(len(candidates))
        known = [*self.candidates.values(), *self._dropped.values()]
        seen = [each for each in known if name in each.figures]
        if is_known.all() or not seen:
            return found, deviation
        values = np.array([math.log10(each.figures[name]) for each in seen])
        fitted_on = _threshold(len(seen))
        points, groups = self._encoding.priced(seen), np.zeros(len(seen), int)
        if fitted_on != self._fits.get(name, (0, None))[0]:
            part = slice(max(0, fitted_on - _MOST_OBSERVED), fitted_on)
            model = GaussianProcess(points[part], values[part], groups[part], 1)
            self._fits[name] = fitted_on, model.hyperparameters
        latest = slice(-_MOST_OBSERVED, None)
        model = GaussianProcess(
            points[latest], values[latest], groups[latest], 1, self._fits[name][1]
        )
        others = [each for each, known in zip(candidates, is_known, strict=True) if not known]
        found[~is_known], deviation[~is_known] = model.predict(self._encoding.priced(others))
        return found, deviation


class _Encoding:
    """Networks as points: numbers within 0 and 1 by their order, a dimension for each name, and
    what another study makes expect of them."""

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        earlier: Sequence[tuple[Mapping[str, Any], float]],
    ) -> None:
        self._distributions = distributions
        self._earlier: GaussianProcess | None = None
        if earlier:
            earlier = earlier[-_MOST_OBSERVED:]
            points = np.array([self._point(params) for params, _ in earlier])
            percents = np.array([percent for _, percent in earlier])
            scaled = (percents - percents.min()) / (np.ptp(percents) or 1.0)
            self._earlier = GaussianProcess(points, scaled, np.zeros(len(points), int), 1)
        self._known: dict[str, Floats] = {}  # by network

    def points(self, candidates: Sequence[Candidate], times: Floats) -> Floats:
        """[candidates, dimensions], the time being the last one."""
        return np.column_stack([self.choices(candidates), times])

    def priced(self, candidates: Sequence[Candidate]) -> Floats:
        """[candidates, dimensions], with the logarithms of what costs have a closed form."""
        costs = [[math.log10(each.figures[name]) for name in _CLOSED_FORM] for each in candidates]
        return np.column_stack([self.choices(candidates), np.array(costs)])

    def choices(self, candidates: Sequence[Candidate]) -> Floats:
        """[candidates, dimensions] of what there is to choose alone."""
        new = [each for each in candidates if each.network not in self._known]
        points = np.array([self._point(each.params) for each in new])
        if new and self._earlier is not None:
            points = np.column_stack([points, self._earlier.predict(points)[0]])
        self._known |= {each.network: point for each, point in zip(new, points, strict=True)}
        return np.array([self._known[each.network] for each in candidates])

    def _point(self, params: Mapping[str, Any]) -> Floats:
        found: list[float] = []
        for name, distribution in self._distributions.items():
            value = params[name]
            if isinstance(distribution, CategoricalDistribution):
                found += [math.sqrt(0.5) * (value == each) for each in distribution.choices]
            else:
                assert isinstance(distribution, IntDistribution)
                low, high = distribution.low, distribution.high
                found.append((value - low) / max(1, high - low))
        return np.array(found)


def has_settled(outlooks: Sequence[float]) -> bool:
    """Whether a front no longer moves, by what was expected of the latest acts at most."""
    latest = list(outlooks)[-SETTLED_ACTS:]
    return len(latest) == SETTLED_ACTS and max(latest) <= SETTLED_PERCENT


def _threshold(count: int) -> int:
    """On how many of ``count`` observations hyperparameters are fitted, the first of them."""
    found: float = _FIRST_FIT
    while math.ceil(found * _REFIT) <= count:
        found *= _REFIT
    return min(count, math.ceil(found))


def expected_improvement(
    front: Points, reference: Points, error: Floats, deviation: Floats, prices: Floats
) -> tuple[Floats, Floats]:
    """How much candidates of uncertain error and known costs are expected to add to a hypervolume.

    The space of costs is divided into cells at the front's members: in each of them what counts is
    the smallest error for these costs so far, and the expected improvement of that is the one of a
    single objective (Jones, Schonlau and Welch 1998). With more than two costs cells are larger
    than that, and improvements too large.

    Args:
        front: [members, 1 + costs], the error first, minimised.
        reference: [1 + costs].
        error: of the candidates, the means of normal distributions.
        deviation: the standard deviations of these.
        prices: [candidates, costs].

    Returns:
        The improvement of each candidate, and its chance not to be dominated.
    """
    front = front[non_dominated(front) & (front < reference).all(axis=1)]
    count = prices.shape[1]
    best = np.ones((len(front), 1), bool)  # which members count in a cell, [members, cells]
    volumes = np.ones((len(error), 1))
    for column in range(count):
        marks = np.unique(front[:, 1 + column])
        most = max(1, int(_CELLS ** (1 / count)) - 1)
        if len(marks) > most:
            marks = marks[np.linspace(0, len(marks) - 1, most).round().astype(int)]
        edges = np.concatenate([[-np.inf], marks, [reference[1 + column]]])
        low = np.maximum(edges[:-1], prices[:, column, None])
        width = np.maximum(edges[1:] - low, 0.0)
        counts = front[:, 1 + column, None] <= edges[:-1]
        volumes = (volumes[:, :, None] * width[:, None, :]).reshape(len(error), -1)
        best = (best[:, :, None] & counts[:, None, :]).reshape(len(front), volumes.shape[1])
    errors = np.where(best, front[:, :1], reference[0]).min(axis=0, initial=reference[0])
    levels, place = np.unique(errors, return_inverse=True)
    by_level = np.zeros((len(error), len(levels)))
    np.add.at(by_level.T, place, volumes.T)
    away = (levels - error[:, None]) / deviation[:, None]
    density = np.exp(-(away**2) / 2) / math.sqrt(2 * math.pi)
    gains = (by_level * deviation[:, None] * (away * ndtr(away) + density)).sum(axis=1)
    beats = (front[None, :, 1:] <= prices[:, None, :]).all(axis=2)
    to_beat = np.where(beats, front[None, :, 0], reference[0]).min(axis=1, initial=reference[0])
    return np.maximum(gains, 0.0), ndtr((to_beat - error) / deviation)
