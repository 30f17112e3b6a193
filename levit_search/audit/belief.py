"""What is to be believed of accuracies that were measured with a few seeds each.

The best of many networks with one seed each are the lucky ones among the good. What the others of
the study are like tells how lucky: the spread of true accuracies about what costs explain is
estimated from all of them (Efron 2010, Large-Scale Inference, chapter 1; the estimate is Kiefer and
Wolfowitz's by expectation maximisation, ended early to stay smooth), and each network's own seeds
are then held against it.
"""

import numpy as np
from numpy.typing import NDArray

from levit_search.pareto import Points

Floats = NDArray[np.float64]

# Chosen by simulated searches; see tests/test_audit.py.
_FEWEST = 30  # networks; of fewer nothing is estimated
_STEPS = 10
_GRID = 60


def accuracy_draws(
    first: Floats,
    means: Floats,
    counts: NDArray[np.int_],
    costs: Points,
    sd: float,
    wanted: NDArray[np.bool_],
    draws: int,
    chance: np.random.Generator,
) -> Floats:
    """What the accuracies over all seeds may be.

    Args:
        first: of all networks of a study with the search's seed, [networks].
        means: over their seeds, [networks].
        counts: of these seeds, [networks].
        costs: minimised, [networks, costs]; accuracies are taken as linear in them but for a rest.
        sd: of one seed, in the unit of the accuracies.
        wanted: which networks to draw for, a mask [networks].
        draws: how many.
        chance: where randomness comes from.

    Returns:
        [draws, wanted networks], independent.
    """
    error = sd / np.sqrt(counts[wanted])
    if len(first) < _FEWEST or sd == 0:
        # Nothing is known but the seeds themselves.
        return means[wanted] + error * chance.standard_normal((draws, int(wanted.sum())))
    columns = np.column_stack([np.ones(len(first)), costs])
    trend: Floats = columns @ np.linalg.lstsq(columns, first, rcond=None)[0]
    grid, weights = _spread(first - trend, sd)
    shares = _likelihood((means - trend)[wanted], grid, error) * weights
    cumulated = (shares / shares.sum(axis=1, keepdims=True)).cumsum(axis=1)
    width = grid[1] - grid[0]
    drawn = np.empty((draws, len(cumulated)))
    for column, each in enumerate(cumulated):
        places = np.searchsorted(each, chance.random(draws)).clip(0, _GRID - 1)
        drawn[:, column] = grid[places] + width * (chance.random(draws) - 0.5)
    return drawn + trend[wanted]


def _spread(rests: Floats, sd: float) -> tuple[Floats, Floats]:
    """The distribution that noise of ``sd`` made ``rests`` of: values and their weights."""
    grid = np.linspace(rests.min(), rests.max(), _GRID)
    likelihood = _likelihood(rests, grid, np.full(len(rests), sd))
    weights = np.full(_GRID, 1 / _GRID)
    for _ in range(_STEPS):
        shares = likelihood * weights
        weights = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
    return grid, weights


def _likelihood(rests: Floats, grid: Floats, errors: Floats) -> Floats:
    """Of each rest if it were each value of the grid, up to a factor of its own."""
    away = ((rests[:, None] - grid) / errors[:, None]) ** 2
    nearest = away.min(axis=1, keepdims=True)  # a mean may lie outside of what one seed reached
    return np.asarray(np.exp(-0.5 * (away - nearest)))
