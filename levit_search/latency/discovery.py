"""Target discovery: what can be measured on now, every target being asked at once who it is."""

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TypeVar

from levit_search.configuration import validated
from levit_search.errors import InputError, TrialError
from levit_search.latency.channel import Channel
from levit_search.latency.targets import (
    LatencyConfig,
    LocalTarget,
    NamedTarget,
    known_names,
    resolved,
)
from levit_search.latency.worker import Device

# A channel that gives up in time still has to end its process, and says more than we could.
_CLOSING_S = 2.0

Value = TypeVar("Value")


@dataclass(frozen=True)
class DiscoveredTarget:
    """One target, and what it said of itself or why it said nothing."""

    name: str
    address: str | None = None
    """None where what ``targets.yaml`` or a plug-in says of it is wrong."""
    reachable: bool = False
    reason: str | None = None
    """Why it cannot be used."""
    settings: dict[str, object] = field(default_factory=dict)
    """Runtime, precision, batch size and threads, unless a study or an option says otherwise."""
    device: Device | None = None
    """The worker's account of the device."""

    @property
    def is_emulated(self) -> bool:
        """Whether its timings say nothing of the machine that it plays."""
        return bool(self.device and self.device.get("emulated"))

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "emulated": self.is_emulated if self.device else None}


def discover(
    named: Mapping[str, NamedTarget], timeout_s: float, report: Callable[[DiscoveredTarget], None]
) -> list[DiscoveredTarget]:
    """Ask all targets at once.

    Args:
        named: what ``targets.yaml`` and plug-ins name, beside our own names.
        timeout_s: how long to wait for any of them.
        report: told of each one that is settled.

    Returns:
        One for each of :func:`known_names`, in that order.
    """
    found: dict[str, DiscoveredTarget] = {}

    def settle(row: DiscoveredTarget) -> None:
        found[row.name] = row
        report(row)

    # Names that differ in settings alone are asked once: one answer does for all of them.
    asked: dict[object, tuple[LatencyConfig, list[DiscoveredTarget]]] = {}
    for name in known_names(named):
        try:
            config = validated(LatencyConfig, resolved({"target": name}, named, name), name)
        except InputError as error:
            settle(DiscoveredTarget(name, reason=str(error).removeprefix(f"{name}: ")))
            continue
        settings = config.model_dump(include={"runtime", "precision", "batch_size", "threads"})
        row = DiscoveredTarget(name, config.target.address, settings=settings)
        nameless = config.target.model_copy(update={"name": None}).model_dump_json()
        key = nameless, config.runtime, config.huge_pages
        asked.setdefault(key, (config, []))[1].append(row)

    groups = [*asked.values()]
    limit_s = timeout_s + _CLOSING_S
    checks = [(partial(_ask, config, timeout_s), limit_s) for config, _ in groups]
    for place, answer in run_with_deadlines(checks):
        config, rows = groups[place]
        reason = None
        if isinstance(answer, TrialError):
            reason = str(answer).removeprefix(f"probe on {config.target.label}: ")
        elif isinstance(answer, DeadlineError):
            reason = f"no answer for {timeout_s:g} s"
        elif isinstance(answer, Exception):
            reason = f"{type(answer).__name__}: {answer}".partition("\n")[0]
        device = None if isinstance(answer, Exception) else answer
        for row in rows:
            settle(replace(row, reachable=device is not None, device=device, reason=reason))
    return [found[name] for name in known_names(named)]


def _ask(config: LatencyConfig, timeout_s: float) -> Device:
    """The account of itself that a target's worker gives; a cluster's client raises anything."""
    begun = time.monotonic()
    if isinstance(config.target, LocalTarget) and config.target.device == "cuda":
        _check_gpu(timeout_s)
    left_s = timeout_s - (time.monotonic() - begun)
    channel = Channel(config.target, config.runtime, config.huge_pages, patience_s=left_s)
    channel.close()
    return channel.device


def _check_gpu(timeout_s: float) -> None:
    """See quickly whether torch finds a GPU on this machine: its worker takes longer to say so."""
    program = "import torch; print(torch.__version__, torch.cuda.is_available())"
    command, closed = [sys.executable, "-c", program], subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, stdin=closed, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise TrialError(f"torch did not import within {timeout_s:g} s") from None
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise TrialError(f"torch cannot be imported ({last or 'no message'})")
    version, available = done.stdout.split()[-2:]
    if available != "True":
        raise TrialError(f"torch {version} sees no NVIDIA GPU here")


class DeadlineError(Exception):
    """A function's time is up, and it has not returned."""


def run_with_deadlines(
    jobs: Sequence[tuple[Callable[[], Value], float]],
) -> Iterator[tuple[int, Value | Exception]]:
    """Run functions in threads, each with the seconds that it may take.

    Yields:
        The index of a job with what it returned or raised, as soon as it did; a
        :class:`DeadlineError` where its time is up.
    """
    ended: queue.Queue[tuple[int, Value | Exception]] = queue.Queue()

    def work(index: int, job: Callable[[], Value]) -> None:
        try:
            ended.put((index, job()))
        except Exception as error:  # for whoever asked to judge
            ended.put((index, error))

    begun = time.monotonic()
    due = {index: begun + limit_s for index, (_, limit_s) in enumerate(jobs)}
    for index, (job, _) in enumerate(jobs):
        # One that hangs in a system call cannot be stopped; the process's end does not wait for it.
        threading.Thread(target=work, args=(index, job), daemon=True).start()
    while due:
        first = min(due, key=due.__getitem__)
        outcome: Value | Exception
        try:
            index, outcome = ended.get(timeout=max(0.0, due[first] - time.monotonic()))
        except queue.Empty:
            index, outcome = first, DeadlineError()
        if due.pop(index, None) is not None:  # an answer may come after its time was up
            yield index, outcome
