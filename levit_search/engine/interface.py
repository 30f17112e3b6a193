"""The interface of an engine, and its events."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypedDict

from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.latency.targets import Int8Format

NO_TRIAL = -1
"""In the place of a trial's number: what is measured for the study itself."""
FIRST_BASELINE = -2
"""In the place of a trial's number: the first of what a study compares with; then -3 and so on."""


class Settled(TypedDict, total=False):
    """What is measured once for all networks of a study, by its first worker."""

    settled_ms: dict[str, float]
    """The reference's latency by id, on further targets by ``TARGET:ID``."""
    int8_formats: dict[str, Int8Format]
    """What networks are quantized to, by target; the study's own has no name, ``""``."""


def settled_in(found: Mapping[str, Any]) -> Settled:
    """What of a preparation, or of a study's attributes, the next worker is given."""
    return {
        "settled_ms": found.get("settled_ms", {}),
        "int8_formats": found.get("int8_formats", {}),
    }


@dataclass(frozen=True)
class Event:
    """News of a running trial (or of the preparation, whose trial is None).

    A ``warning`` is a worker's, whatever it was at, and has no trial either.
    """

    kind: Literal["progress", "rung", "done", "failed", "warning"]
    trial: int | None
    text: str = ""
    """What is being done, or why it failed."""
    fraction: float | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    """Of a rung ``epoch`` and the ``values`` known there. When done, an evaluation (also of what
    was only measured), ``results`` with an evaluation or ``{failed}`` for each of
    several networks, or what :meth:`levit_search.search.evaluate.Evaluator.prepare` returned. Of a
    failure ``wrong_input``, whether the user can mend it, and ``refused_by_disk``, what a disk
    refused, if that is why."""


def pass_on_warnings(events: list[Event]) -> list[Event]:
    """The events but for warnings, which are given here as they were given in a worker."""
    for event in events:
        if event.kind == "warning":
            warnings.warn(event.text, stacklevel=2)
    return [event for event in events if event.kind != "warning"]


class Engine(Protocol):
    """Evaluates networks somewhere; a trial that fails is an event, never an exception."""

    def submit(
        self, trial: int, network: Architecture | BaselineConfig, taught: bool = True
    ) -> None:
        """Start an evaluation, or go on with it from its checkpoint. Only while :meth:`has_room`.

        At each rung there is an event, and the trial waits for :meth:`answer`. A network that is
        not ``taught`` is trained without the study's teacher.
        """

    def answer(self, trial: int, goes_on: bool) -> None:
        """Let a trial that waits at a rung go on, or end there; it is done then all the same."""

    def verify(self, trial: int, network: Architecture) -> None:
        """Start measuring a network whose latency was predicted. Only while :meth:`has_room`."""

    def remeasure(self, trial: int, networks: Sequence[Architecture | BaselineConfig]) -> None:
        """Start measuring networks anew and together, by one worker. Only while :meth:`has_room`.

        ``trial`` is what its events go by, such as that of the first network.
        """

    def has_room(self) -> bool:
        """Whether another trial can start now."""

    def events(self, patience_s: float) -> list[Event]:
        """What happened; waits for at most ``patience_s``."""

    def close(self) -> None:
        """Stop everything that runs."""
