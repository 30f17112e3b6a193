"""What may vary: templates of architectures, their slots, sampling and limits."""

from levit_search.space.slots import Slot
from levit_search.space.space import Limits, Space, Survey, quantiles

__all__ = ["Limits", "Slot", "Space", "Survey", "quantiles"]
