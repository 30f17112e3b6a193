"""A worker on a target: started there, asked by JSON lines, and stopped.

Whatever starts it (this machine, ssh, a Ray node, any command) gives a :class:`Pipe`; time limits,
files, and what is said of a worker that dies or prints rubbish are the same for all.
"""

import json
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from levit_search.errors import TrialError
from levit_search.files import expanded
from levit_search.latency import worker
from levit_search.latency.answers import LieError, check_ready
from levit_search.latency.process_pipe import (
    LONGEST_LINE,
    LONGEST_TOLD,
    ProcessPipe,
    last_line,
)
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
from levit_search.printable import encodable

# Starting, warming up and building sessions take seconds; a worker silent for longer is stuck.
PATIENCE_S = 120.0
CONNECT_S = 10
# Another probe, or training, that holds a host longer than this has not let go of it.
_LONGEST_WAIT_S = 3600.0
# Slower lines than this are taken for stuck.
_SLOWEST_BYTES_PER_S = 100_000


class Pipe(Protocol):
    """A process's standard streams, wherever it runs."""

    def write(self, data: bytes) -> None:
        """Send; returns at once."""

    def read_line(self, patience_s: float) -> bytes | None:
        """The next line, empty at the end of the output, or None after ``patience_s``."""

    def is_running(self) -> bool:
        """Whether it is not known to have ended."""

    def last_words(self) -> str:
        """How it ended, in one line; only after the end of its output."""

    def close(self) -> None:
        """End the process and wait for it."""


class Channel:
    """A worker that is ready for jobs.

    Args:
        target: where it is started.
        runtime: decides which worker: torch's needs this package installed on the target.
        huge_pages: let the worker's C library ask for huge pages.
        waiting: called while another probe holds the target's host.
        start_s: how long it may take to start; None is ``patience_s``.
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
        start_s: float | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.target = target
        self.patience_s = patience_s
        self._waiting = waiting
        self._asked = 0
        self._unsent_bytes = 0
        self._sent: set[str] = set()
        self._is_open = True
        try:
            self._pipe = _opened(target, runtime, {**_HUGE_PAGES} if huge_pages else {})
        except OSError as error:
            raise self._refused(
                f"{error.filename} cannot be started here ({error.strerror})"
            ) from None
        try:
            ready = self._next(patience_s if start_s is None else start_s)
            if ready.get("protocol") != worker.PROTOCOL:
                raise self._refused(
                    f"its worker speaks protocol {str(ready.get('protocol'))[:20]}, not "
                    f"{worker.PROTOCOL}"
                )
            try:
                self.device: dict[str, Any] = check_ready(ready)
            except LieError as error:
                raise self._refused(f"not an answer ({error})") from None
            self._check_device(runtime)
        except BaseException:
            self.close()
            raise

    @property
    def is_usable(self) -> bool:
        """Whether the worker still runs; one may end, or its connection, while nothing is asked."""
        return self._is_open and self._pipe.is_running()

    def ask(
        self,
        job: dict[str, Any],
        patience_s: float,
        check: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """The answer to a job.

        Args:
            job: see :mod:`levit_search.latency.worker`; its files have been sent before.
            patience_s: how long the job itself may take.
            check: raises a :class:`LieError` where an answer cannot be one.

        Raises:
            TrialError: the worker reported an error, died, stayed silent, or printed rubbish or
                what cannot be. After the last four it is closed.
        """
        self._asked += 1
        self._write(json.dumps({**job, "job": self._asked}).encode() + b"\n")
        patience_s += self.patience_s + self._unsent_bytes / _SLOWEST_BYTES_PER_S
        self._unsent_bytes = 0
        end = time.monotonic() + _LONGEST_WAIT_S + patience_s
        while True:
            answer = self._next(patience_s)
            if answer["event"] == "error":
                raise self._refused(_line(answer.get("message")))
            if answer["event"] != "waiting":
                break
            if time.monotonic() > end:
                self.close()
                raise self._refused(f"its host was not free for {_LONGEST_WAIT_S / 60:.0f} minutes")
            self._waiting()
        try:
            # Workers of earlier releases do not say which job they have done.
            if answer.get("job", self._asked) != self._asked:
                raise LieError("it is that to another job")
            if check is not None:
                check(answer)
        except LieError as error:
            self.close()
            raise self._refused(f"not an answer ({error})") from None
        return answer

    def place(self, path: Path) -> dict[str, str]:
        """How a job names a file of this machine on the target; it is sent there once."""
        named = str(path)
        if isinstance(self.target, LocalTarget) and named == encodable(named):
            return {"path": named}
        if path.name not in self._sent:
            content = path.read_bytes()
            announced = {"do": "file", "name": path.name, "bytes": len(content)}
            self._write(json.dumps(announced).encode() + b"\n")
            self._write(content)
            self._sent.add(path.name)
        return {"file": path.name}

    def forget(self, path: Path) -> None:
        """Have the target remove a file that no further job names."""
        if path.name in self._sent:
            self._sent.discard(path.name)
            self._write(json.dumps({"do": "forget", "name": path.name}).encode() + b"\n")

    def close(self) -> None:
        """End the worker."""
        self._is_open = False
        self._pipe.close()

    def _write(self, data: bytes) -> None:
        self._unsent_bytes += len(data)
        self._pipe.write(data)

    def _next(self, patience_s: float) -> dict[str, Any]:
        line = self._pipe.read_line(patience_s)
        if line is None:
            self.close()
            raise self._refused(f"no answer for {patience_s:.0f} s, stopped")
        if not line:
            reason = self._pipe.last_words()
            self.close()
            raise self._refused(reason)
        if len(line) >= LONGEST_LINE:
            self.close()
            raise self._refused(f"not an answer: a line of over {LONGEST_LINE >> 20} MiB")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or not isinstance(message.get("event"), str):
            self.close()
            text = line[:400].decode(errors="replace").strip()
            raise self._refused(f"not an answer: {text[:80]!r} (nothing else may print there)")
        return message

    def _check_device(self, runtime: Runtime) -> None:
        needed = self.target.machine
        if needed is not None and self.device["machine"] != needed:
            raise self._refused(
                f"it is {self.device['machine']}, not {needed}; name such a device in targets.yaml"
            )
        if self.target.device == "cuda" and "gpu" not in self.device:
            raise self._refused("torch finds no NVIDIA GPU there")
        package = package_of(runtime)
        if package not in self.device["runtimes"]:
            raise self._refused(
                f"{package} is not installed there (found: "
                f"{', '.join(self.device['runtimes']) or 'nothing'}); "
                f"`pip install numpy {package}` for its Python {self.device['python']}"
            )

    def _refused(self, reason: str) -> TrialError:
        return TrialError(f"probe on {self.target.label}: {reason}")


# Of glibc 2.35 and later; whatever does not know it does not mind.
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def _opened(target: Target, runtime: Runtime, env: dict[str, str]) -> Pipe:
    module = ["-m", "levit_search.latency.torch_worker"]
    with_torch = runtime in TORCH_RUNTIMES
    arguments = module if with_torch else ["-c", worker.BOOTSTRAP]
    match target:
        case LocalTarget():
            pipe: Pipe = ProcessPipe([sys.executable, *arguments], env)
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
    command = ["ssh", "-T", *(part for option in options for part in ("-o", option))]
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


def _line(text: Any) -> str:
    """What a worker says, in one line for people."""
    return " ".join(str(text).split())[:LONGEST_TOLD] or "no further reason"
