"""What a worker says, looked at before it is believed.

A worker may run on any device, in any version, behind any command; what it prints is no fact until
it has the shape of an answer and is physically possible.
"""

import json
import math
from collections.abc import Callable
from typing import Any

_MOST_IMAGES = 2**20
_LONGEST_MS = 3_600_000.0  # no job lasts longer
_MOST_BYTES = 2**50
_LONGEST_TEXT, _LONGEST_ACCOUNT = 1000, 20_000
# A worker measures for at least the seconds that it is told; clocks may differ a little.
_SHORTEST_SHARE = 0.5


class LieError(ValueError):
    """An answer that cannot be one; the message says in a few words what is wrong with it."""


def check_ready(message: dict[str, Any]) -> dict[str, Any]:
    """The account of itself in a worker's first message; a few facts may be missing.

    Raises:
        LieError: it is none.
    """
    device = message.get("device")
    if message["event"] != "ready" or not isinstance(device, dict):
        raise LieError("it tells nothing of its device")
    if len(json.dumps(device)) > _LONGEST_ACCOUNT:  # it stands in every trial
        raise LieError("its account of its device is too long")
    runtimes = device.get("runtimes")
    if not isinstance(runtimes, dict) or not all(map(_is_text, [*runtimes, *runtimes.values()])):
        raise LieError("it tells nothing of its runtimes")
    for name in ("machine", "cpu", "python", "system", "governor", "gpu"):
        if not (device.get(name) is None or _is_text(device[name])):
            raise LieError(f"its {name} is no text")
    if not isinstance(device.get("emulated", False), bool):
        raise LieError("it does not tell whether it is emulated")
    return {"machine": "unknown", "python": "unknown", "emulated": False, **device}


def check_round(answer: dict[str, Any], networks: int, seconds: float, clock: str) -> None:
    """Make sure that an answer is a round of so many networks that took as long as was asked.

    Args:
        answer: the worker's.
        networks: how many were run in turn.
        seconds: that were to be measured.
        clock: the one that counts.

    Raises:
        LieError: it is not.
    """
    _check_event(answer, "round")
    sizes, notes, cycles = (answer.get(name) for name in ("batch_sizes", "notes", "cycles"))
    if not _are(_is_size, sizes, networks):
        raise LieError(f"not the batch sizes of {networks} networks")
    if not _are(_is_text, notes, networks):
        raise LieError(f"not the notes on {networks} networks")
    for name in ("prepare_s", "timing_s"):
        if not _is_number(answer.get(name), 0.0, _LONGEST_MS / 1000):
            raise LieError(f"{name} is {_shown(answer.get(name))}")
    if answer["timing_s"] < _SHORTEST_SHARE * seconds:
        raise LieError(
            f"measured for {answer['timing_s']:.3g} s, and {seconds:.3g} s were asked for"
        )
    if not isinstance(cycles, list) or not cycles:
        raise LieError("no timings")
    for cycle in cycles:
        if not isinstance(cycle, list) or len(cycle) != networks:
            raise LieError(f"a turn is not that of {networks} networks")
        for timing in cycle:
            _check_timing(timing, clock)


def check_peak(answer: dict[str, Any]) -> None:
    """Make sure that an answer is the memory of a process.

    Raises:
        LieError: it is not.
    """
    _check_event(answer, "peak")
    found = answer.get("bytes")
    if type(found) is not int or not 0 <= found <= _MOST_BYTES:
        raise LieError(f"a peak of {_shown(found)} bytes")


def _check_event(answer: dict[str, Any], wanted: str) -> None:
    if answer["event"] != wanted:
        raise LieError(f"{_shown(answer['event'])} instead of a {wanted}")


def _check_timing(timing: Any, clock: str) -> None:
    if not isinstance(timing, dict) or not {"cpu", "wall", "single", clock} <= timing.keys():
        raise LieError("a timing lacks a clock")
    for name, ms in timing.items():
        # Only the clock that counts divides; others may be too coarse for a short run.
        least = math.ulp(0.0) if name in (clock, "wall", "single") else 0.0
        if not _is_number(ms, least, _LONGEST_MS):
            raise LieError(f"a run took {_shown(ms)} ms")


def _are(is_right: Callable[[Any], bool], values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(is_right, values))


def _is_size(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MOST_IMAGES


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most  # which NaN is not


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
