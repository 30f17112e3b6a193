"""What workers of the Ray engine do their work with in its tests; see ``engine_stubs``."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from levit_search.architecture import Architecture
from levit_search.latency.channel import Channel
from levit_search.latency.targets import RayTarget
from tests.engine_stubs import FAILS, HANGS, Found, Stub


class Traced(Stub):
    """Leaves a file for each attempt at a network; one that hangs does so but once."""

    def __init__(self, config: Any, folder: Path, settled: Any, cores: Any = None) -> None:
        super().__init__(config, folder, settled, cores)
        self._folder = folder

    def evaluate(
        self, network: Architecture, progress: Callable[..., None], decide: Callable[..., bool]
    ) -> Found:
        attempts = len(traces(self._folder, network))
        node = ray.get_runtime_context().get_node_id()
        trace = {"node": node, "pid": os.getpid(), "cwd": str(Path.cwd())}
        path = self._folder / f"{network.id}-{attempts}.trace"
        path.with_suffix(".part").write_text(json.dumps(trace))
        path.with_suffix(".part").rename(path)
        if network.drop_path == HANGS and attempts == 0:
            time.sleep(600)
        if not decide(1, {"top1_percent": 1.0}):
            return Found({}, trace)
        return Found({"top1_percent": 2.0}, trace)


def traces(folder: Path, network: Architecture) -> list[dict[str, Any]]:
    """Where a network was evaluated, attempt by attempt."""
    paths = sorted(folder.glob(f"{network.id}-*.trace"))
    return [json.loads(path.read_text()) for path in paths]


class Probing(Stub):
    """Measures on whichever node offers ``probe_arm``, or ``probe_riscv`` if the network FAILS."""

    def verify(
        self, network: Architecture, progress: Callable[..., None], decide: Any = None
    ) -> Found:
        resource = "probe_riscv" if network.drop_path == FAILS else "probe_arm"
        channel = Channel(RayTarget(kind="ray", resource=resource), "onnxruntime")
        channel.close()
        return Found({}, {"machine": channel.device["machine"]})


class Plain(tune.Trainable):
    """Is done at once, or once another runs, too; with a file in its configuration it dies as it is
    handed over, but once."""

    def setup(self, config: dict[str, Any]) -> None:
        self._begins, self._awaits = config.get("meets", (None, None))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        dies = new_config["dies"]
        if dies is not None and not Path(dies).exists():
            Path(dies).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def step(self) -> dict[str, Any]:
        if self._begins is not None:
            Path(self._begins).touch()
            while not Path(self._awaits).exists():
                time.sleep(0.05)
        return {"worker": os.getpid(), "done": True}


class Rounds(Searcher):
    """Suggests so many configurations at once, and the next ones when all of them have ended."""

    def __init__(self, rounds: list[list[dict[str, Any]]]) -> None:
        super().__init__()
        self._rounds, self._open = rounds, 0

    def suggest(self, trial_id: str) -> Any:
        if self._rounds and not self._rounds[0] and not self._open:
            self._rounds.pop(0)
        if not self._rounds:
            return Searcher.FINISHED
        if not self._rounds[0]:
            return None
        self._open += 1
        return self._rounds[0].pop(0)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self._open -= 1

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...
