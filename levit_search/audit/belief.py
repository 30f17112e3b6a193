"""What is to be believed of accuracies that were measured with a few seeds each.

The best of many networks with one seed each are the lucky ones among the good. What the others of
the study are like tells how lucky, by one hierarchical normal model for any number of networks
(Gelman et al. 2013, Bayesian Data Analysis, chapters 5 and 15): true accuracies lie about a smooth
trend in the costs with a standard deviation between networks, measured ones about the true ones
with that of seeds. Neither deviation is taken as known: that of seeds is as uncertain as its
replicates leave it, and that between networks is integrated over a uniform prior, so that of a few
networks little is concluded and of many what they show. All seeds of all networks are taken
together; how networks were chosen for further seeds then does not matter.
"""

import numpy as np
from numpy.typing import NDArray

from levit_search.pareto import Points

Floats = NDArray[np.float64]

_SEEDS = 12  # quantiles of the standard deviation of seeds
_BETWEEN = 40  # values of that between networks
_WIDEST = 2.0  # of them, in spreads of all accuracies


def accuracy_draws(
    means: Floats,
    counts: NDArray[np.int_],
    costs: Points,
    sd: float,
    freedom: int,
    wanted: NDArray[np.bool_],
    draws: int,
    rng: np.random.Generator,
) -> Floats:
    """What the accuracies over all seeds may be.

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
    columns = _columns(costs)
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
    belief = np.exp(likelihood - likelihood.max())
    cells = rng.choice(len(belief), draws, p=belief / belief.sum())
    roots = np.linalg.cholesky(covariance)[cells]
    terms = trend[cells] + np.einsum("dab,db->da", roots, rng.standard_normal(roots.shape[:2]))
    expected = terms @ columns[wanted].T
    pull = errors[cells][:, wanted] * weights[cells][:, wanted]  # to the trend
    left = np.sqrt(pull) * between[cells][:, None]
    noise = left * rng.standard_normal(expected.shape)
    drawn: Floats = means.mean() + pull * expected + (1 - pull) * away[wanted] + noise
    return drawn


def _columns(costs: Points) -> Floats:
    """The terms of a trend, [networks, terms]: the mean, costs and their squares, of spread 1."""
    spread = costs.std(axis=0)
    scaled = (costs - costs.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    squares = scaled**2 - (spread > 0)
    return np.column_stack([np.ones(len(costs)), scaled, squares])
