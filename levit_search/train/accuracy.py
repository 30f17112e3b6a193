"""How often a network is right."""

import torch
from torch import nn

from levit_search.batches import Batches
from levit_search.data import SplitName
from levit_search.errors import TrialError
from levit_search.latency.host_lock import between_probes


@torch.inference_mode()
def top1_percent(
    model: nn.Module,
    batches: Batches,
    split: SplitName,
    batch_size: int = 256,
    most: int | None = None,
) -> float:
    """The share of a split, in percent, whose class the model puts first.

    With ``most``, of so many of its images, evenly spread.

    Raises:
        TrialError: the model answers no finite numbers; none of them is the first.
    """
    model.eval()
    device = next(model.parameters()).device
    right = seen = 0
    with between_probes(batches.evaluation(split, batch_size, device, most)) as shared:
        for images, labels in shared:
            logits = model(images)
            seen += len(labels)
            right += int((logits.argmax(1) == labels).sum())
            if not torch.isfinite(logits).all():
                raise TrialError(
                    f"the network's answers on {split} are no finite numbers; a lower learning "
                    "rate may help where it has just been trained"
                )
    return 100 * right / seen
