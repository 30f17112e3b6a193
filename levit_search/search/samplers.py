"""Samplers whose proposals depend on the study's seed, the trial's number and the history only."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from levit_search.study import SearchConfig


class SeededSampler(BaseSampler):
    """Draws every trial from a generator of its own, seeded by (study seed, trial number).

    A study that goes on after a kill then proposes what an undisturbed one would have, and a trial
    found half proposed gets the rest of its parameters as if nothing had happened: those sampled
    one by one are seeded by their name too.

    Args:
        config: the study's search settings.
        distributions: of all slots, which are the same in every trial.
    """

    def __init__(self, config: SearchConfig, distributions: Mapping[str, BaseDistribution]) -> None:
        self._config = config
        self._distributions = dict(distributions)

    def infer_relative_search_space(
        self,
        study: optuna.Study,  # noqa: ARG002 (Optuna's interface)
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        return self._distributions if self._config.sampler == "tpe" else {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        # Pruned infeasible trials teach TPE where not to go, but a handful of evaluated networks
        # has to come first.
        states = (optuna.trial.TrialState.COMPLETE,)
        if len(study.get_trials(deepcopy=False, states=states)) < self._config.startup_trials:
            return {}
        sampler = TPESampler(
            seed=self._seed(trial), multivariate=True, n_startup_trials=0, constant_liar=True
        )
        return sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        sampler = RandomSampler(seed=self._seed(trial, param_name))
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _seed(self, trial: FrozenTrial, name: str = "") -> int:
        entropy = (self._config.seed, trial.number, *name.encode())
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])
