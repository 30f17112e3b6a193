"""The sandwich rule: each batch trains the largest network, the smallest and some between."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levit_search.architecture import Levit
from levit_search.cost import cost
from levit_search.model import LevitModel
from levit_search.recipe import Recipe
from levit_search.space import Extremes
from levit_search.supernet.elastic import Elastic, skeleton
from levit_search.train import Epoch, Optimization, Views
from levit_search.train.objective import loss_of

_DRAW = 201  # keeps these random numbers apart from those of the data


@dataclass(frozen=True)
class SupernetEpoch(Epoch):
    """One point of a supernet's learning curve; ``val_top1_percent`` is the largest's accuracy."""

    smallest_top1_percent: float

    def summary(self) -> str:
        """Both accuracies, for people."""
        return (
            f"val of its largest {self.val_top1_percent:.1f} %, of its smallest "
            f"{self.smallest_top1_percent:.1f} %"
        )


class Sandwich:
    """What shared weights learn from a batch (Yu and Huang 2019; Yu et al. 2020).

    The largest network learns as it would alone. The smallest and random ones learn as they would
    alone too, and with the same weight the largest's answers, each head those of the same head, by
    cross entropy with its probabilities. All networks of a batch have the same stem, and the stems
    take turns: they have weights of their own, and each must have its share.

    Args:
        extremes: the largest network and the smallest with each stem.
        draw: a random network with a stem.
        members: random networks a batch.
        whole_steps: batches in the beginning that only the largest network learns from.
        seed: of the draw.
        accuracy: of a network with the weights of a module, on ``val``, in percent.
    """

    point = SupernetEpoch

    def __init__(
        self,
        elastic: Elastic,
        extremes: Mapping[str, Extremes],
        draw: Callable[[np.random.Generator, str], Levit],
        members: int,
        whole_steps: int,
        recipe: Recipe,
        seed: int,
        accuracy: Callable[[Elastic, Levit], float],
    ) -> None:
        self._elastic, self._draw = elastic, draw
        self.extremes = extremes
        self._stems = list(extremes.items())
        largest, smallest = zip(*extremes.values(), strict=True)
        self.ends = Extremes(
            max(largest, key=lambda network: cost(network).flops),
            min(smallest, key=lambda network: cost(network).flops),
        )
        """The largest network of all stems, and the smallest."""
        self._members, self._whole_steps = members, whole_steps
        self._recipe, self._seed = recipe, seed
        self._accuracy = accuracy

        @lru_cache(maxsize=32)
        def made(network: Levit) -> LevitModel:
            return skeleton(network).to(next(elastic.parameters()).device).train()

        self._skeleton = made

    def learn(self, views: Views, optimization: Optimization, share: float) -> Tensor:
        stem, (largest, smallest) = self._stems[views.step % len(self._stems)]
        with optimization.autocast():
            answers = self._elastic(views.images, self._skeleton(largest))
            first = loss_of(answers, views.targets, views.teacher_targets, self._recipe) * share
        optimization.backward(first)
        if views.step < self._whole_steps:
            return first.detach()
        wanted = [answer.detach().float().softmax(1) for answer in _heads(answers)]
        rng = np.random.default_rng([self._seed, views.step, _DRAW])
        for network in (smallest, *(self._draw(rng, stem) for _ in range(self._members))):
            with optimization.autocast():
                answers = self._elastic(views.images, self._skeleton(network))
                own = loss_of(answers, views.targets, views.teacher_targets, self._recipe)
                pairs = zip(_heads(answers), wanted, strict=True)
                taught = torch.stack([F.cross_entropy(head, shares) for head, shares in pairs])
                loss = (own + taught.mean()) / 2
            optimization.backward(loss * share)
        return first.detach()

    def top1_percent(self, evaluated: nn.Module) -> tuple[float, ...]:
        assert isinstance(evaluated, Elastic)
        return tuple(self._accuracy(evaluated, network) for network in self.ends)


def _heads(answers: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return (answers,) if isinstance(answers, Tensor) else answers
