"""Latency of networks on devices, measured in pairs against a reference network."""

from levit_search.latency.probe import Probe
from levit_search.latency.protocol import Measurement
from levit_search.latency.targets import LatencyConfig

__all__ = ["LatencyConfig", "Measurement", "Probe"]
