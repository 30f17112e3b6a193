"""How well measured latencies repeat from one session to the next.

An interval within one session tells nothing of the next one, whose sessions lie otherwise in memory
and whose minutes are others. What passes over the same networks differ by is a floor to it.
"""

import math
from collections.abc import Mapping
from typing import Any

# The standard deviation of a ratio between passes, as a share (docs/device.md): of networks of 1 ms
# or more, measured at 224 px, and of smaller ones.
_REPEATS_LARGE = 0.012
_REPEATS_SMALL = 0.02
_LARGE_MS = 1.0

_Z95 = 1.96


def repeat_sd(latency_ms: float) -> float:
    """The least standard deviation between passes of a network's latency, as a share of it."""
    return _REPEATS_LARGE if latency_ms >= _LARGE_MS else _REPEATS_SMALL


def repeats_percent(latency: Mapping[str, Any]) -> float:
    """Within how many percent another measurement of a network is expected in 95 % of cases.

    It is that of a difference of two measurements, each as uncertain as its 95 % interval says and
    at least as passes repeat.

    Args:
        latency: with ``latency_ms``, and with ``ratio_ci95`` where it was measured in pairs.
    """
    low, high = latency.get("ratio_ci95") or (1.0, 1.0)
    half = (high - low) / (high + low)  # relative to the middle
    return 100 * math.sqrt(2) * max(half, _Z95 * repeat_sd(latency["latency_ms"]))
