"""What workers do their work with in tests of engines: it needs neither torch nor data.

Run as a program it is a driver that waits for its end; see :func:`main`.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from levit_search import architecture as architectures
from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.engine.interface import Engine, Event, Settled
from levit_search.errors import InputError, TrialError
from levit_search.study import Study, StudyConfig
from tests.networks import tiny_description

MARK = "LEVIT_SEARCH_TEST_MARK"  # in the environment of processes that are to be found again

RUNGS = (1, 2)
EPOCHS = 3

# What becomes of a network, by its drop_path.
FAILS, BREAKS, HANGS, DIES = 0.1, 0.2, 0.3, 0.4


def network(drop_path: float = 0.0, embed_dim: int = 16) -> Architecture:
    stage = {"depth": 1, "embed_dim": embed_dim, "num_heads": 2, "key_dim": 8}
    return architectures.parse(tiny_description(stages=[stage], drop_path=drop_path))


def engine_of(kind: str, study: Study, settled: Settled, evaluator: type["Stub"]) -> Engine:
    """An engine whose workers use a class of this module."""
    where = f"tests.engine_stubs:{evaluator.__name__}"
    if kind == "ray":
        from levit_search.engine.ray import RayEngine

        return RayEngine(study, network(), settled, where)
    from levit_search.engine.local import LocalEngine

    return LocalEngine(study, network(), settled, where)


@dataclass(frozen=True)
class Found:
    values: dict[str, float]
    training: dict[str, Any]
    latency: None = None
    seconds: float = 0.1

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Again:
    id: str
    worker: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, **self.worker}


class Stub:
    """Prepares in no time; its accuracies are ten times the epoch, its latency what was settled."""

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        settled: Settled,
        cores: frozenset[int] | None = None,
    ) -> None:
        self._settled_ms, self._cores = settled.get("settled_ms", {}), cores
        self._worker = {"pid": os.getpid(), "cores": sorted(cores) if cores else None}

    def prepare(self, sample: Architecture, progress: Callable[..., None]) -> dict[str, Any]:
        progress("getting ready", None)
        self._settled_ms = self._settled_ms or {"reference": 2.5}
        return {"settled_ms": self._settled_ms, "device": {}, "teacher": {}}

    def evaluate(
        self, network: Architecture, progress: Callable[..., None], decide: Callable[..., bool]
    ) -> Found:
        progress("working", 0.5)
        match network.drop_path:
            case 0.1:
                raise TrialError("no luck\ntoday")
            case 0.2:
                raise ZeroDivisionError("by chance")
            case 0.3:
                self._hang()
            case 0.4:
                os.kill(os.getpid(), signal.SIGKILL)
        values = dict(self._settled_ms)
        for epoch in RUNGS:
            if not decide(epoch, {**values, "top1_percent": 10.0 * epoch}):
                return Found(values, {**self._worker, "epochs": epoch})
        values["top1_percent"] = 10.0 * EPOCHS
        return Found(values, {**self._worker, "epochs": EPOCHS})

    def verify(
        self, network: Architecture, progress: Callable[..., None], decide: Any = None
    ) -> Found:
        progress("measuring", None)
        return Found({"latency_ms": 7.0}, self._worker)

    def compare(
        self, given: BaselineConfig, progress: Callable[..., None], decide: Callable[..., bool]
    ) -> Found:
        progress(f"comparing with {given.name}", None)
        assert decide(1, {"top1_percent": 1.0})
        return Found({"top1_percent": 5.0}, {**self._worker, "weights": given.weights})

    def remeasure(
        self,
        networks: Sequence[Architecture | BaselineConfig],
        progress: Callable[..., None],
    ) -> list[Again]:
        progress("measuring together", None)
        if any(getattr(network, "drop_path", 0.0) == FAILS for network in networks):
            raise TrialError("no luck\ntoday")
        return [Again(network.id, self._worker) for network in networks]

    def close(self) -> None: ...

    def _hang(self) -> None:
        """Work for ever, beside a process as a probe's and one as those that read pictures."""
        waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        subprocess.Popen(waits, stdin=subprocess.PIPE, start_new_session=True)
        reader = multiprocessing.get_context("fork").Process(target=_ends_with_parent, daemon=True)
        reader.start()
        time.sleep(600)


def _ends_with_parent() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.1)


class WrongInput(Stub):
    def prepare(self, sample: Architecture, progress: Callable[..., None]) -> dict[str, Any]:
        raise InputError("there is no such data")


class DiesUnprepared(Stub):
    def prepare(self, sample: Architecture, progress: Callable[..., None]) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class OnlyOnce(Stub):
    """Cannot prepare where another worker has."""

    def prepare(self, sample: Architecture, progress: Callable[..., None]) -> dict[str, Any]:
        if self._settled_ms:
            raise InputError("the disk is full")
        return super().prepare(sample, progress)


class Watched:
    """An engine, and everything that it told."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.events: list[Event] = []

    def until(self, condition: Callable[[], Any], patience_s: float = 60.0) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, self.events[-5:]
            self.events += self.engine.events(0.2)

    def of(self, trial: int | None, *kinds: str) -> list[Event]:
        return [e for e in self.events if e.trial == trial and (not kinds or e.kind in kinds)]

    def until_told(self, trial: int | None, *kinds: str) -> Event:
        """The latest event of these kinds, as soon as there is one."""
        self.until(lambda: self.of(trial, *kinds))
        return self.of(trial, *kinds)[-1]

    def submit(self, trial: int, network: Architecture) -> None:
        self.until(self.engine.has_room)
        self.engine.submit(trial, network)

    def answered(self, trial: int, answers: list[bool]) -> Event:
        """How a trial ends whose rungs are answered so."""
        for number, goes_on in enumerate(answers, start=1):
            self.until(lambda n=number: len(self.of(trial, "rung")) == n)
            self.engine.answer(trial, goes_on)
        return self.until_told(trial, "done", "failed")


def assert_ended(mark: Path, within_s: float = 10.0) -> None:
    """See that all processes with a mark end soon."""
    deadline = time.monotonic() + within_s
    while left := marked(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def marked(mark: Path) -> dict[int, str]:
    """The processes whose environment has a mark, by number, without those that only track them."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes()
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # no process, ended just now, or another user's
            continue
        is_tracker = "resource_tracker" in line or not line
        if f"{MARK}={mark}\0".encode() in environment and not is_tracker:
            found[int(entry.name)] = line
    return found


def main() -> None:
    """A driver of ``kind`` on the study in ``folder`` whose every worker hangs in a trial."""
    kind, folder = sys.argv[1:]
    study = Study.open(Path(folder))
    watched = Watched(engine_of(kind, study, {}, Stub))
    jobs = study.config.engine.jobs
    for trial in range(jobs):
        watched.submit(trial, network(HANGS))
    for trial in range(jobs):
        watched.until_told(trial, "progress")
    print(json.dumps("all hang"), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
