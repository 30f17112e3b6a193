"""Latency of networks on devices, measured in pairs against a reference network."""

from levit_search.latency.local import LocalProbe
from levit_search.latency.protocol import LatencyConfig, Measurement

__all__ = ["LatencyConfig", "LocalProbe", "Measurement"]
