"""What may vary: templates of architectures, their slots, sampling, limits and bounds."""

from levit_search.space.envelope import (
    Envelope,
    Extremes,
    envelope_of,
    extremes_of,
    stem_name,
)
from levit_search.space.slots import Slot
from levit_search.space.space import Limits, Space, quantiles

__all__ = [
    "Envelope",
    "Extremes",
    "Limits",
    "Slot",
    "Space",
    "envelope_of",
    "extremes_of",
    "quantiles",
    "stem_name",
]
