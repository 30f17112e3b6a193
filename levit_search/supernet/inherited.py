"""What a network of a supernet is worth with the weights that it inherits."""

import torch
from torch import Tensor, nn

from levit_search.architecture import Levit
from levit_search.batches import Batches
from levit_search.latency.host_lock import between_probes
from levit_search.model import LevitModel
from levit_search.recipe import Recipe, SupernetConfig
from levit_search.supernet.elastic import Elastic
from levit_search.train import top1_percent


class Inheritance:
    """Extracts networks out of shared weights and finds their accuracy.

    Args:
        batches: what the weights were trained on.
        recipe: of the shared weights, whose views batch-norm statistics are calibrated on.
        config: how many images for what.
        seed: of the views.
        device: where all this is done.
    """

    def __init__(
        self,
        batches: Batches,
        recipe: Recipe,
        config: SupernetConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self._batches, self._recipe, self._config = batches, recipe, config
        self._seed, self._device = seed, device
        self._kept: list[Tensor] = []

    def top1_percent(self, elastic: Elastic, network: Levit) -> float:
        """Accuracy on ``val_images`` of ``val``, in percent.

        Raises:
            TrialError: the network answers no finite numbers.
        """
        model = self.extracted(elastic, network)
        return top1_percent(model, self._batches, "val", most=self._config.val_images)

    def extracted(self, elastic: Elastic, network: Levit) -> LevitModel:
        """A network of its own with its part of the weights, its batch norm calibrated, in
        evaluation mode."""
        model = elastic.extract(network)
        calibrate(model, self._views())
        return model

    def _views(self) -> list[Tensor]:
        """The views that statistics come from; in memory, since each candidate needs them."""
        if not self._kept:
            left = self._config.calibration_images
            views = self._batches.train(self._seed, 0, self._recipe, self._device)
            with between_probes(views) as shared:
                for batch in shared:
                    self._kept.append(batch.images[:left].clone())
                    left -= len(self._kept[-1])
                    if left < 2:  # of a single image there are no statistics
                        break
        return self._kept


@torch.no_grad()
def calibrate(model: nn.Module, views: list[Tensor]) -> None:
    """Set batch-norm statistics to the mean of those of ``views``, float [B, C, H, W] each.

    The model is in evaluation mode then. One without batch norm stays as it is.
    """
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches, each weighing the same
        norm.train()
    for images in views:
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
