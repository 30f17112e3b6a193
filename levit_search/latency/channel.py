"""A worker on a target: started there, asked by JSON lines, and stopped.

Whatever starts it (this machine, ssh, a Ray node, any command) gives a pipe; time limits, files,
and what is said of a worker that dies or prints rubbish are the same for all. A worker may run on
any device, in any version, behind any command: what it prints is no fact until it has the shape of
an answer and is physically possible.
"""

import contextlib
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from levit_search.errors import TrialError
from levit_search.escaping import encodable
from levit_search.files import expanded
from levit_search.latency import worker
from levit_search.latency.process_pipe import LONGEST_LINE, LONGEST_TOLD, ProcessPipe, last_line
from levit_search.latency.ray_node import RayPipe
from levit_search.latency.targets import (
    TORCH_RUNTIMES,
    CommandTarget,
    LocalTarget,
    RayTarget,
    Runtime,
    SshTarget,
    Target,
    package_of,
)
from levit_search.latency.worker import Device, JobNetwork, WorkerAnswer, WorkerJob

# Starting, warming up and building sessions take seconds; a worker silent for longer is stuck.
PATIENCE_S = 120.0
CONNECT_S = 10
# Another probe, or training, that holds a host longer than this has not let go of it.
_LONGEST_WAIT_S = 3600.0
# Slower lines than this are taken for stuck.
_SLOWEST_BYTES_PER_S = 100_000


class Channel:
    """A worker that is ready for jobs.

    Args:
        target: where it is started.
        runtime: decides which worker: torch's needs this package installed on the target.
        huge_pages: let the worker's C library ask for huge pages.
        waiting: called while another probe holds the target's host.
        patience_s: how long it may say nothing, beyond the time that a job takes.

    Raises:
        TrialError: it cannot be started or is no answer; the message names target and cause.
    """

    def __init__(
        self,
        target: Target,
        runtime: Runtime,
        huge_pages: bool = True,
        waiting: Callable[[], None] = lambda: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.target = target
        self.patience_s = patience_s
        self._waiting = waiting
        self._asked = 0
        self._unsent_bytes = 0
        self._sent: set[str] = set()
        # Of glibc 2.35 and later; whatever does not know it does not mind.
        env = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if huge_pages else {}
        try:
            self._pipe = _opened(target, runtime, env)
        except OSError as error:
            raise self._refused(
                f"{error.filename} cannot be started here ({error.strerror})"
            ) from None
        try:
            ready = self._next(patience_s)
            spoken = ready.get("protocol")
            if spoken != worker.PROTOCOL:
                raise self._refused(
                    f"its worker speaks protocol {str(spoken)[:20]}, not {worker.PROTOCOL}"
                )
            try:
                self.device = _device(ready)
            except LieError as error:
                raise self._refused(f"not an answer ({error})") from None
            machine = self.device["machine"]
            if target.machine not in (None, machine):
                raise self._refused(
                    f"it is {machine}, not {target.machine}; name such a device in targets.yaml"
                )
            if target.device == "cuda" and "gpu" not in self.device:
                raise self._refused("torch finds no NVIDIA GPU there")
            package, found = package_of(runtime), self.device["runtimes"]
            if package not in found:
                raise self._refused(
                    f"{package} is not installed there (found: {', '.join(found) or 'nothing'}); "
                    f"`pip install numpy {package}` for its Python {self.device['python']}"
                )
        except BaseException:
            self.close()
            raise

    @property
    def is_usable(self) -> bool:
        """Whether the worker still runs; one may end, or its connection, while nothing is asked."""
        return self._pipe.is_running()

    def ask(self, job: WorkerJob, patience_s: float, clock: str = "wall") -> WorkerAnswer:
        """The answer to a job.

        Args:
            job: its files have been sent before.
            patience_s: how long the job itself may take.
            clock: the one that counts, which has to be in all timings.

        Raises:
            TrialError: the worker reported an error, died, stayed silent, or printed rubbish or
                what cannot be. After the last four it is closed.
        """
        self._asked += 1
        self._write_job({**job, "job": self._asked})
        patience_s += self.patience_s + self._unsent_bytes / _SLOWEST_BYTES_PER_S
        self._unsent_bytes = 0
        end = time.monotonic() + _LONGEST_WAIT_S + patience_s
        while True:
            answer = self._next(patience_s)
            if answer["event"] == "error":
                text = " ".join(str(answer.get("message")).split())[:LONGEST_TOLD]
                raise self._refused(text or "no further reason")
            if answer["event"] != "waiting":
                break
            if time.monotonic() > end:
                raise self._ended(f"its host was not free for {_LONGEST_WAIT_S / 60:.0f} minutes")
            self._waiting()
        try:
            # Workers of earlier releases do not say which job they have done.
            if answer.get("job", self._asked) != self._asked:
                raise LieError("it is that to another job")
            _check_answer(answer, job, clock)
        except LieError as error:
            raise self._ended(f"not an answer ({error})") from None
        return answer

    def place(self, path: Path) -> JobNetwork:
        """How a job names a file of this machine on the target; it is sent there once."""
        named = str(path)
        if isinstance(self.target, LocalTarget) and named == encodable(named):
            return {"path": named}
        if path.name not in self._sent:
            content = path.read_bytes()
            self._write_job({"do": "file", "name": path.name, "bytes": len(content)})
            self._write(content)
            self._sent.add(path.name)
        return {"file": path.name}

    def forget(self, path: Path) -> None:
        """Have the target remove a file that no further job names."""
        if path.name in self._sent and self.is_usable:
            self._sent.discard(path.name)
            self._write_job({"do": "forget", "name": path.name})

    def close(self) -> None:
        """End the worker."""
        self._pipe.close()

    def _write_job(self, job: WorkerJob) -> None:
        self._write(json.dumps(job).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        self._unsent_bytes += len(data)
        self._pipe.write(data)

    def _next(self, patience_s: float) -> WorkerAnswer:
        line = self._pipe.read_line(patience_s)
        if line is None:
            raise self._ended(f"no answer for {patience_s:.0f} s, stopped")
        if not line:
            raise self._ended(self._pipe.last_words())
        if len(line) >= LONGEST_LINE:
            raise self._ended(f"not an answer: a line of over {LONGEST_LINE >> 20} MiB")
        with contextlib.suppress(ValueError, RecursionError):
            answer = json.loads(line)
            if isinstance(answer, dict) and isinstance(answer.get("event"), str):
                return cast(WorkerAnswer, answer)
        text = line[:400].decode(errors="replace").strip()
        raise self._ended(f"not an answer: {text[:80]!r} (nothing else may print there)")

    def _refused(self, reason: str) -> TrialError:
        return TrialError(f"probe on {self.target.label}: {reason}")

    def _ended(self, reason: str) -> TrialError:
        self.close()
        return self._refused(reason)


def _opened(target: Target, runtime: Runtime, env: dict[str, str]) -> ProcessPipe | RayPipe:
    with_torch = runtime in TORCH_RUNTIMES
    arguments = ["-c", worker.BOOTSTRAP]
    if with_torch:
        arguments = ["-m", "levit_search.latency.torch_worker"]
    match target:
        case LocalTarget():
            pipe: ProcessPipe | RayPipe = ProcessPipe([sys.executable, *arguments], env)
        case SshTarget():
            command = ssh_command(target, arguments, env)
            pipe = ProcessPipe(command, explain=partial(_ssh_reason, target))
        case CommandTarget():
            pipe = ProcessPipe([*target.python, *arguments], {**env, **target.env})
        case RayTarget():
            pipe = RayPipe(target, arguments, env)
    if not with_torch:
        source = Path(worker.__file__).read_bytes()
        pipe.write(b"%d\n" % len(source) + source)
    return pipe


def ssh_command(
    target: SshTarget, arguments: list[str], env: dict[str, str] | None = None
) -> list[str]:
    """The command that starts the target's Python over OpenSSH, with the user's own settings.

    It never asks for anything, and gives up where nothing answers. Host and user are checked by
    :class:`SshTarget`, and the host follows ``--``: no name can be an option.
    """
    options = ["BatchMode=yes", f"ConnectTimeout={CONNECT_S}", "ServerAliveInterval=15"]
    # What the user's settings ask for beside a login is for terminals.
    options += ["RemoteCommand=none", "ClearAllForwardings=yes"]
    command = ["ssh", "-T", *(f"-o{option}" for option in options)]
    if target.config_file is not None:
        command += ["-F", str(expanded(target.config_file))]
    if target.port is not None:
        command += ["-p", str(target.port)]
    if target.user is not None:
        command += ["-l", target.user]
    variables = [f"{name}={value}" for name, value in (env or {}).items()]
    # It starts at home; a quoted ~ would stay one.
    interpreter = target.python.removeprefix("~/")
    python = shlex.join(["env", *variables, interpreter, *arguments])
    return [*command, "--", target.host, f"exec {python}"]


# What OpenSSH prints, and what to tell the user.
_SSH_REASONS = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": (
        "its host key has changed; if that is expected, remove the old one by `ssh-keygen -R HOST`"
    ),
    "Host key verification failed": (
        "its host key is not known; connect once by hand (`ssh HOST`) and confirm it"
    ),
    "Could not resolve hostname": "unknown host (its name cannot be resolved)",
    "Permission denied (": "no login without a password; set up a key (`ssh-copy-id HOST`)",
}
_SSH_FAILED = 255
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # what shells and env end with


def _ssh_reason(target: SshTarget, code: int, errors: list[str]) -> str | None:
    last = last_line(errors)
    if code == _NOT_FOUND:
        return f"no Python {target.python!r} there ({last}); its target's `python` names another"
    if code == _NOT_EXECUTABLE:
        return f"{target.python!r} there cannot be started ({last})"
    if code != _SSH_FAILED:
        return None
    text = "\n".join(errors)
    known = next((told for said, told in _SSH_REASONS.items() if said in text), None)
    return known or last or "the connection was lost, or a signal ended the worker"


_MOST_IMAGES = 2**20
_LONGEST_MS = 3_600_000.0  # no job lasts longer
_MOST_BYTES = 2**50
_LONGEST_TEXT, _LONGEST_ACCOUNT = 1000, 20_000
# A worker measures for at least the seconds that it is told; clocks may differ a little.
_SHORTEST_SHARE = 0.5


class LieError(ValueError):
    """An answer that cannot be one; the message says in a few words what is wrong with it."""


def _device(ready: WorkerAnswer) -> Device:
    """The account of itself in a worker's first message; a few facts may be missing."""
    device = ready.get("device")
    if ready["event"] != "ready" or not isinstance(device, dict):
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
    return cast(Device, {"machine": "unknown", "python": "unknown", "emulated": False, **device})


def _check_answer(answer: WorkerAnswer, job: WorkerJob, clock: str) -> None:
    """Raise a :class:`LieError` where an answer cannot be one to this job."""
    told = cast(Mapping[str, object], answer)
    expected = job["do"].removeprefix("own_")
    if told["event"] != expected:
        raise LieError(f"{_shown(told['event'])} instead of a {expected}")
    if expected == "round":
        _check_round(told, len(job["networks"]), job["seconds"], clock)
    if expected == "peak":
        peak = told.get("bytes")
        if type(peak) is not int or not 0 <= peak <= _MOST_BYTES:
            raise LieError(f"a peak of {_shown(peak)} bytes")


def _check_round(told: Mapping[str, Any], networks: int, seconds: float, clock: str) -> None:
    if not _are(_is_size, told.get("batch_sizes"), networks):
        raise LieError(f"not the batch sizes of {networks} networks")
    if not _are(_is_text, told.get("notes"), networks):
        raise LieError(f"not the notes on {networks} networks")
    for name in ("prepare_s", "timing_s"):
        if not _is_number(told.get(name), 0.0, _LONGEST_MS / 1000):
            raise LieError(f"{name} is {_shown(told.get(name))}")
    if told["timing_s"] < _SHORTEST_SHARE * seconds:
        asked = f"{seconds:.3g} s were asked for"
        raise LieError(f"measured for {told['timing_s']:.3g} s, and {asked}")
    cycles = told.get("cycles")
    if not isinstance(cycles, list) or not cycles:
        raise LieError("no timings")
    for cycle in cycles:
        if not isinstance(cycle, list) or len(cycle) != networks:
            raise LieError(f"a turn is not that of {networks} networks")
        for timing in cycle:
            if not isinstance(timing, dict) or not {"cpu", "wall", "single", clock} <= {*timing}:
                raise LieError("a timing lacks a clock")
            for name, ms in timing.items():
                # Only the clock that counts divides; others may be too coarse for a short run.
                least = math.ulp(0.0) if name in (clock, "wall", "single") else 0.0
                if not _is_number(ms, least, _LONGEST_MS):
                    raise LieError(f"a run took {_shown(ms)} ms")


def _are(is_right: Callable[[object], bool], values: object, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(is_right, values))


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value <= _MOST_IMAGES


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most  # which NaN is not


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
