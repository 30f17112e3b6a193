"""Gaussian process regression for a search: a Matern 5/2 kernel with a length scale a dimension,
and observations in groups with noise of their own.

scikit-learn's has one noise for all, or one that is given; here that of each group is fitted.
Formulas are those of Rasmussen and Williams 2006, *Gaussian Processes for Machine Learning*: the
likelihood and its gradient 5.8 and 5.9, leaving out 5.12, here of several observations at once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Floats = NDArray[np.float64]

# Of the logarithms of length scales, variance and noises: mean and deviation of a normal prior, and
# bounds. With few observations predictions so stay close to their mean.
_PRIORS = ((0.7, 1.0), (0.0, 1.0), (-2.0, 1.5))
_BOUNDS = ((-4.0, 4.0), (-4.0, 4.0), (-7.0, 2.0))
_STEPS = 40  # of a fit, at most
_LITTLE = 2.5  # how much less the logarithm of little noise is
_JITTER = 1e-6


class GaussianProcess:
    """A posterior over functions of points, given noisy observations of one.

    Args:
        inputs: [observations, dimensions], each dimension within about 0 and 1.
        values: [observations]; they are standardized here.
        groups: the group of each observation, counted from 0.
        count: of groups.
        hyperparameters: those of another one, which are taken as they are; None to fit them.
    """

    hyperparameters: Floats
    """Logarithms of a length scale a dimension, the variance, and a noise a group."""

    def __init__(
        self,
        inputs: Floats,
        values: Floats,
        groups: NDArray[np.int_],
        count: int,
        hyperparameters: Floats | None = None,
    ) -> None:
        self._inputs, self._groups = inputs, groups
        self._parts = np.repeat([0, 1, 2], [inputs.shape[1], 1, count])
        self._mean, self._scale = float(values.mean()), float(values.std()) or 1.0
        self._values = (values - self._mean) / self._scale
        self.hyperparameters = self._fitted() if hyperparameters is None else hyperparameters
        self._weights, self._variance, noise = self._unpacked(self.hyperparameters)
        covariance = self._variance * _matern(_distances(inputs, inputs, self._weights))
        self._factor = self._factored(covariance, noise)
        self._solved = cho_solve((self._factor, True), self._values)

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the function, noise aside, at [points, dimensions]."""
        distances = _distances(inputs, self._inputs, self._weights)
        shared = self._variance * _matern(distances)
        reduced = solve_triangular(self._factor, shared.T, lower=True)
        left = np.maximum(self._variance - (reduced**2).sum(axis=0), _JITTER)
        return self._mean + self._scale * (shared @ self._solved), self._scale * np.sqrt(left)

    def left_out(self, members: Sequence[Any]) -> Floats:
        """What each observation would be predicted to be without any of the same member.

        Args:
            members: whose each observation is.
        """
        inverse = cho_solve((self._factor, True), np.eye(len(self._values)))
        found, whose = np.empty_like(self._values), np.array(members)
        for member in set(members):
            (own,) = np.nonzero(whose == member)
            block = inverse[np.ix_(own, own)]
            found[own] = self._values[own] - np.linalg.solve(block, self._solved[own])
        return np.asarray(self._mean + self._scale * found)

    def _unpacked(self, logarithms: Floats) -> tuple[Floats, float, Floats]:
        """Inverse length scales, the variance, and the noise of each group."""
        lengths, (variance,), noise = (np.exp(logarithms[self._parts == each]) for each in range(3))
        return 1 / lengths, float(variance), noise

    def _factored(self, covariance: Floats, noise: Floats) -> Floats:
        diagonal = np.diag(noise[self._groups] + _JITTER)
        return np.asarray(cholesky(covariance + diagonal, lower=True))

    def _fitted(self) -> Floats:
        """The most probable hyperparameters, of two local searches: from much noise and little."""
        start, bounds = np.array(_PRIORS)[self._parts, 0], np.array(_BOUNDS)[self._parts]
        found = [
            minimize(
                self._improbability,
                start - (self._parts == 2) * less,
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": _STEPS},
            )
            for less in (0.0, _LITTLE)
        ]
        return np.asarray(min(found, key=lambda each: float(each.fun)).x)

    def _improbability(self, logarithms: Floats) -> tuple[float, Floats]:
        """The negative logarithm of the posterior of hyperparameters, and its gradient."""
        weights, variance, noise = self._unpacked(logarithms)
        distances = _distances(self._inputs, self._inputs, weights)
        covariance = variance * _matern(distances)
        factor = self._factored(covariance, noise)
        solved = cho_solve((factor, True), self._values)
        found = 0.5 * self._values @ solved + np.log(np.diag(factor)).sum()
        # Twice the derivative of the likelihood by each element of the covariance.
        slope = np.outer(solved, solved) - cho_solve((factor, True), np.eye(len(solved)))
        scaled = self._inputs * weights
        pull = slope * (variance * 5 / 3 * (1 + distances) * np.exp(-distances))
        # The sum of pull[i, j] * (scaled[i] - scaled[j]) ** 2 over all pairs, halved.
        by_length = pull.sum(axis=1) @ scaled**2 - (scaled * (pull @ scaled)).sum(axis=0)
        by_variance = 0.5 * (slope * covariance).sum()
        of_group = np.bincount(self._groups, np.diag(slope), len(noise))
        gradient = -np.concatenate([by_length, [by_variance], 0.5 * noise * of_group])
        means, deviations = np.array(_PRIORS)[self._parts].T
        away = (logarithms - means) / deviations
        return float(found + 0.5 * away @ away), gradient + away / deviations


def _distances(first: Floats, second: Floats, weights: Floats) -> Floats:
    """The root of five times the weighted distance of all pairs, [first, second]."""
    first, second = first * weights, second * weights
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
    return np.asarray(np.sqrt(5 * np.maximum(squares, 0.0)))


def _matern(distances: Floats) -> Floats:
    return np.asarray((1 + distances + distances**2 / 3) * np.exp(-distances))
