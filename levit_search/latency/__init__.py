"""Latency of networks on devices, measured in pairs against a reference network."""

from levit_search.latency.probe import Probe
from levit_search.latency.protocol import LatencyConfig, Measurement

__all__ = ["LatencyConfig", "Measurement", "Probe"]
