"""Timing of several ways to do one thing, in turn, and what their ratios are worth."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import ttest_ind

from levit_search.latency.protocol import mean_interval


def interleaved(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each variant in each round, in turn and every other time in reverse order.

    A first round warms up and does not count.
    """
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        names = list(variants) if number % 2 else list(reversed(variants))
        for name in names:
            seconds = variants[name]()
            if number:
                found[name].append(seconds)
    return found


def ratio(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """The mean of ``first / second`` over rounds, in logarithms, with its 95 % interval.

    From eight rounds on the farthest ones are left out.
    """
    mean, half = mean_interval(np.log(np.array(first) / np.array(second)))
    found, low, high = (float(each) for each in np.exp([mean, mean - half, mean + half]))
    return {"ratio": found, "ci95": [low, high], "rounds": len(first)}


def timed(step: Callable[[], Any], device: torch.device) -> float:
    """Seconds of ``step``, until the device has done it all."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def difference(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Of two means, with the 95 % interval by Welch's t-test; ``within_noise`` if it holds 0."""
    found: dict[str, Any] = {
        "means": [float(np.mean(each)) for each in (first, second)],
        "sds": [float(np.std(each, ddof=1)) if len(each) > 1 else None for each in (first, second)],
        "points": float(np.mean(first) - np.mean(second)),
        "ci95": None,
        "within_noise": None,
    }
    if min(len(first), len(second)) > 1:
        low, high = ttest_ind(first, second, equal_var=False).confidence_interval()
        found |= {"ci95": [float(low), float(high)], "within_noise": bool(low <= 0 <= high)}
    return found


def quickest(seconds: Mapping[str, Sequence[float]]) -> str:
    return min(seconds, key=lambda name: float(np.median(seconds[name])))


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
