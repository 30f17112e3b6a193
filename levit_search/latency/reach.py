"""What can be measured on now: every target asked who it is, all at once."""

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from levit_search.configuration import validated
from levit_search.errors import InputError, TrialError
from levit_search.latency.channel import Channel
from levit_search.latency.targets import LatencyConfig, LocalTarget, Named, known_names, resolved

# A channel that gives up in time still has to end its process, and says more than we could.
_CLOSING_S = 2.0


@dataclass(frozen=True)
class Reached:
    """One target, and what it said of itself or why it said nothing."""

    name: str
    address: str | None = None
    """None where what ``targets.yaml`` or a plug-in says of it is wrong."""
    reachable: bool = False
    reason: str | None = None
    """Why it cannot be used."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Runtime, precision, batch size and threads, unless a study or an option says otherwise."""
    device: dict[str, Any] | None = None
    """The worker's account of the device, see :func:`levit_search.latency.worker.device`."""

    @property
    def runtimes(self) -> dict[str, str]:
        """Versions of what is installed there, by package."""
        return self.device["runtimes"] if self.device else {}

    @property
    def is_emulated(self) -> bool:
        """Whether its timings say nothing of the machine that it plays."""
        return bool(self.device and self.device.get("emulated"))

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "emulated": self.is_emulated if self.device else None}


def reach(
    named: Mapping[str, Named], timeout_s: float, report: Callable[[Reached], None]
) -> list[Reached]:
    """Ask all targets at once.

    Args:
        named: what ``targets.yaml`` and plug-ins name, beside our own names.
        timeout_s: how long to wait for any of them.
        report: told of each one that is settled.

    Returns:
        One for each of :func:`known_names`, in that order.
    """
    found: dict[str, Reached] = {}

    def settle(row: Reached) -> None:
        found[row.name] = row
        report(row)

    asked: dict[str, _Asked] = {}
    for name in known_names(named):
        try:
            config = validated(LatencyConfig, resolved({"target": name}, named, name), name)
        except InputError as error:
            settle(Reached(name, reason=str(error).removeprefix(f"{name}: ")))
            continue
        row = Reached(
            name,
            config.target.address,
            settings=config.model_dump(include={"runtime", "precision", "batch_size", "threads"}),
        )
        asked.setdefault(_sort(config), _Asked(config)).rows.append(row)
    answers: queue.Queue[tuple[str, dict[str, Any] | str]] = queue.Queue()
    for sort, each in asked.items():
        arguments = (sort, each.config, timeout_s, answers)
        threading.Thread(target=_ask, args=arguments, daemon=True).start()
    end = time.monotonic() + timeout_s + _CLOSING_S
    while asked:
        try:
            sort, answer = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            sort, answer = next(iter(asked)), f"no answer for {timeout_s:g} s"
        settled = asked.pop(sort, None)
        for row in settled.rows if settled else []:  # an answer may come after its time was up
            if isinstance(answer, str):
                settle(replace(row, reason=answer))
            else:
                settle(replace(row, reachable=True, device=answer))
    return [found[name] for name in known_names(named)]


@dataclass(frozen=True)
class _Asked:
    """Names that differ in settings alone: one answer does for all of them."""

    config: LatencyConfig
    rows: list[Reached] = field(default_factory=list)


def _sort(config: LatencyConfig) -> str:
    """What the answer depends on."""
    target = config.target.model_copy(update={"name": None})
    return config.model_copy(update={"target": target}).model_dump_json(
        include={"target", "runtime", "huge_pages"}
    )


def _ask(
    sort: str,
    config: LatencyConfig,
    timeout_s: float,
    answers: "queue.Queue[tuple[str, dict[str, Any] | str]]",
) -> None:
    """Put the device's account of itself, or the reason why there is none."""
    target = config.target
    begun = time.monotonic()
    answer: dict[str, Any] | str
    try:
        if isinstance(target, LocalTarget) and target.device == "cuda":
            _check_gpu(timeout_s)
        left_s = timeout_s - (time.monotonic() - begun)
        channel = Channel(target, config.runtime, config.huge_pages, start_s=left_s)
        channel.close()
        answer = channel.device
        if target.device == "cuda" and "gpu" not in answer:
            answer = f"torch {answer['runtimes']['torch']} sees no NVIDIA GPU there"
    except TrialError as error:
        answer = str(error).removeprefix(f"probe on {target.label}: ")
    except Exception as error:  # whatever else a cluster's client raises is this target's alone
        answer = f"{type(error).__name__}: {error}".partition("\n")[0]
    answers.put((sort, answer))


def _check_gpu(timeout_s: float) -> None:
    """See quickly whether torch finds a GPU on this machine: its worker takes longer to say so.

    Raises:
        TrialError: there is none, or torch does not import.
    """
    program = "import torch; print(torch.__version__, torch.cuda.is_available())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise TrialError(f"torch did not import within {timeout_s:g} s") from None
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise TrialError(f"torch cannot be imported ({last or 'no message'})")
    version, available = done.stdout.split()[-2:]
    if available != "True":
        raise TrialError(f"torch {version} sees no NVIDIA GPU here")
