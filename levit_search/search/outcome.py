"""What a search tells while it runs, and how it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.pareto import hypervolume, minimised
from levit_search.search.trials import SearchStatus
from levit_search.significance import UNJUDGED, Verdict
from levit_search.study import BaselineRecord, Record, Study


@dataclass(frozen=True)
class Summary:
    """How a search ended. ``seconds`` are this session's, ``trials`` counts all of the study's, see
    :data:`levit_search.search.trials.COUNTS`."""

    study: str
    trials: dict[str, int]
    seconds: float
    hypervolume: float
    front: list[Record]
    stopped_because: str
    is_interrupted: bool = False
    """Whether it was asked to stop before its budget was used up."""
    verdict: Verdict = UNJUDGED
    """What the accuracies are worth."""
    teacher_choice: Mapping[str, Any] | None = None
    """What ``teacher: auto`` came to, see :func:`levit_search.significance.teacher_choice`."""
    baselines: Sequence[BaselineRecord] = ()
    """What the search is compared with."""


class Display(Protocol):
    """Whoever shows a search while it runs."""

    def preparing(self, text: str, fraction: float | None) -> None:
        """Something all trials need is being prepared."""

    def started(self, trial: int, network: Architecture | BaselineConfig) -> None:
        """A trial is being evaluated, or a baseline, whose number is below 0."""

    def progress(self, trial: int, text: str, fraction: float | None) -> None:
        """A running trial has come to a step."""

    def at_rung(self, trial: int, epoch: int, top1_percent: float) -> None:
        """A running trial has come to a rung, with this accuracy on the ``val`` split."""

    def finished(self, record: Record, status: SearchStatus, left_s: float | None) -> None:
        """A trial has ended; ``left_s`` is the time that the rest will take, if that is known."""

    def compared(self, trial: int, record: BaselineRecord) -> None:
        """A baseline has its figures, or has failed."""

    def tick(self) -> None:
        """Called a few times a second, for clocks."""


def front_volume(front: list[Record], study: Study) -> float:
    """The hypervolume of a front from the reference that is kept with the study."""
    points = minimised([record.values for record in front], study.config.objectives)
    return hypervolume(points, study.reference())
