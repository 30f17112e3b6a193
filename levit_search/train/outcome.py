"""What a training run tells while it goes on and when it has ended."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One point of a learning curve.

    The loss is the mean over the epoch's batches, ``seconds`` those since the start of the run,
    earlier sessions included.
    """

    epoch: int
    train_loss: float
    val_top1_percent: float
    seconds: float

    def summary(self) -> str:
        """Its accuracy, for people."""
        return f"val {self.val_top1_percent:.1f} %"


@dataclass(frozen=True)
class Training:
    """What a training run is worth and cost so far."""

    val_top1_percent: float
    images_per_second: float
    """Training images, evaluation and teacher included."""
    seconds: float
    curve: tuple[Epoch, ...]
    precision: str = "fp32"
    batch_parts: int = 1
    """2 where a batch did not fit into memory and was worked on in two halves."""
    started_from: str | None = None
    """What came over of the recipe's weights, or why nothing did; None for fresh ones."""

    def as_json(self) -> dict[str, Any]:
        found = asdict(self)
        if self.started_from is None:
            del found["started_from"]
        return found


Report = Callable[[Epoch], None]

Decide = Callable[[Epoch], bool]
"""Asked at each rung before the last epoch whether to go on."""


def silent(_: Epoch) -> None:
    """Report to nobody."""


def always(_: Epoch) -> bool:
    """Stop at no rung."""
    return True
