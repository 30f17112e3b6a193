"""What may vary: templates of architectures, their slots, sampling, limits and bounds."""

from levit_search.space.envelope import (
    Envelope,
    Extremes,
    envelope_around,
    envelope_of,
    extremes_of,
    stem_name,
)
from levit_search.space.slots import Slot
from levit_search.space.space import Limits, Space, Survey, quantiles

__all__ = [
    "Envelope",
    "Extremes",
    "Limits",
    "Slot",
    "Space",
    "Survey",
    "envelope_around",
    "envelope_of",
    "extremes_of",
    "quantiles",
    "stem_name",
]
