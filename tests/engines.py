"""Engines for tests."""

import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from levit_search.architecture import Architecture
from levit_search.engine.interface import Event, Settled
from levit_search.engine.tasks import Task, TaskEngine, carry_out
from levit_search.search import Summary, search
from levit_search.study import Study, read_config


def run(path: Path, folder: Path, **changes: Any) -> tuple[Summary, Study]:
    study = Study.create(folder, read_config(path, changes), ["test"])
    return search(study), study


def finals(study: Study) -> list[tuple[int, str, dict[str, float]]]:
    return [
        (record.trial, record.architecture.id if record.architecture else "", record.values)
        for record in study.records()
    ]


WORST = 100.0
"""What the costliest network has of every figure of a probe, whatever its unit."""


class StubEngine:
    """Answers at once with figures made from the network alone; remembers what it was asked."""

    evaluated: list[str]
    latency_ms = 1.0
    data: ClassVar[dict[str, Any]] = {}
    """What it says of the images; nothing, as releases did before that was noted."""

    def __init__(self, study: Study, sample: Architecture, settled: Settled) -> None:
        self.evaluated = type(self).evaluated = []
        prepared = {"settled_ms": {}, "device": {}, "data": self.data, "teacher": {}}
        self._worst = dict.fromkeys(study.config.referred, WORST)
        self._events = [Event("done", None, content=prepared)]
        self._busy = True

    @staticmethod
    def accuracy(network: Architecture) -> float:
        return 50 + int(network.id[:4], 16) / 65536 * 40

    def has_room(self) -> bool:
        return not self._busy

    def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
        self.evaluated.append(network.id)
        values = {"top1_percent": self.accuracy(network), "latency_ms": self.latency_ms}
        content = {"values": values, "latency": None, "training": None, "seconds": 0.5}
        self._busy = True
        self._events.append(Event("done", trial, content=content))

    def answer(self, trial: int, goes_on: bool) -> None:
        raise AssertionError("nothing here comes to a rung")

    def verify(self, trial: int, network: Architecture) -> None:
        raise AssertionError("nothing here is predicted")

    def remeasured_ms(self, network: Architecture) -> float:
        return self.latency_ms

    def remeasure(self, trial: int, networks: Sequence[Architecture]) -> None:
        self._busy = True
        if trial < 0:  # for the reference of hypervolumes
            content = {"results": [{"values": self._worst}]}
            self._events.append(Event("done", trial, content=content))
            return
        results = [remeasured(self.remeasured_ms(network)) for network in networks]
        self._events.append(Event("done", trial, content={"results": results}))

    def events(self, patience_s: float) -> list[Event]:
        events, self._events = self._events, []
        self._busy = self._busy and not events
        return events

    def close(self) -> None: ...


class HereEngine(TaskEngine):
    """Carries tasks out as a worker does, in a thread here, since importing torch takes long.

    What keeps everything from being evaluated is raised at once.
    """

    def __init__(self, study: Study, sample: Architecture, settled: Settled) -> None:
        from levit_search.search.evaluate import Evaluator

        self._evaluator = Evaluator(study.config, study.folder, settled)
        prepared = self._evaluator.prepare(sample, lambda text, fraction: None)
        self._told: queue.Queue[Event] = queue.Queue()
        self._told.put(Event("done", None, content=prepared))
        self._answers: queue.Queue[bool] = queue.Queue()
        self._busy = True

    def has_room(self) -> bool:
        return not self._busy

    def answer(self, trial: int, goes_on: bool) -> None:
        self._answers.put(goes_on)

    def give(self, task: Task) -> None:
        assert not self._busy
        self._busy = True
        told = (task, self._evaluator, self._told.put, self._answers.get)
        threading.Thread(target=carry_out, args=told, daemon=True).start()

    def events(self, patience_s: float) -> list[Event]:
        try:
            event = self._told.get(timeout=patience_s) if patience_s else self._told.get_nowait()
        except queue.Empty:
            return []
        self._busy = self._busy and event.kind in ("progress", "rung")
        return [event]

    def close(self) -> None:
        self._evaluator.close()


class CurveEngine:
    """Learning curves made from the network alone, with as many at once as there are jobs."""

    def __init__(self, study: Study, sample: Architecture, settled: Settled) -> None:
        self._epochs, self._rungs = study.config.train.epochs, study.config.rung_epochs
        self._jobs = study.config.engine.jobs
        prepared = {"settled_ms": {}, "device": {}, "teacher": {}}
        self._worst = dict.fromkeys(study.config.referred, WORST)
        self._events = [Event("done", None, content=prepared)]
        self._is_prepared = False
        self._running: dict[int, tuple[Architecture, list[int]]] = {}

    @staticmethod
    def accuracy(network: Architecture, epoch: int) -> float:
        final, haste = int(network.id[:4], 16) / 65536, int(network.id[4:8], 16) / 65536
        return 50 + 40 * final * (1 - (0.3 + 0.3 * haste) ** epoch)

    def has_room(self) -> bool:
        return self._is_prepared and len(self._running) < self._jobs

    def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
        assert self.has_room()
        self._running[trial] = network, list(self._rungs)
        self._advance(trial)

    def answer(self, trial: int, goes_on: bool) -> None:
        rung = self._running[trial][1].pop(0)
        if goes_on:
            self._advance(trial)
        else:
            self._end(trial, rung)

    def verify(self, trial: int, network: Architecture) -> None:
        raise AssertionError("nothing here is predicted")

    def remeasure(self, trial: int, networks: Sequence[Architecture]) -> None:
        assert trial < 0, "but for the reference of hypervolumes nothing here is measured"
        self._events.append(Event("done", trial, content={"results": [{"values": self._worst}]}))

    def events(self, patience_s: float) -> list[Event]:
        self._is_prepared = True
        events, self._events = self._events[:1], self._events[1:]
        for event in events:
            if event.kind in ("done", "failed") and event.trial is not None:
                del self._running[event.trial]
        return events

    def close(self) -> None: ...

    def _advance(self, trial: int) -> None:
        network, rungs = self._running[trial]
        if not rungs:
            self._end(trial, self._epochs)
            return
        values = {"top1_percent": self.accuracy(network, rungs[0])}
        content = {"epoch": rungs[0], "values": values}
        self._events.append(Event("rung", trial, content=content))

    def _end(self, trial: int, epochs: int) -> None:
        network, _ = self._running[trial]
        curve = [
            {
                "epoch": epoch,
                "val_top1_percent": self.accuracy(network, epoch),
                "seconds": float(epoch),
            }
            for epoch in range(1, epochs + 1)
        ]
        values = {"top1_percent": curve[-1]["val_top1_percent"]} if epochs == self._epochs else {}
        content = {
            "values": values,
            "latency": None,
            "training": {"curve": curve},
            "seconds": float(epochs),
        }
        self._events.append(Event("done", trial, content=content))


def remeasured(ms: float, half_percent: float = 1.0) -> dict[str, Any]:
    """What an engine tells of a network that was measured again, beside a reference of 1 ms."""
    interval = [ms * (1 - half_percent / 100), ms * (1 + half_percent / 100)]
    latency = {"latency_ms": ms, "ratio_to_reference": ms, "ratio_ci95": interval}
    latency |= {"pairs": 60, "rounds": 8, "converged": True}
    return {"values": {"latency_ms": ms}, "latency": latency, "targets": {}}


class FailingEngine(StubEngine):
    def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
        self._busy = True
        self._events.append(Event("failed", trial, "no luck today"))


class PredictingEngine(StubEngine):
    """Predicts latencies, each too low or too high by a third, and measures when it is asked."""

    verified: list[str]

    def __init__(self, study: Study, sample: Architecture, settled: Settled) -> None:
        super().__init__(study, sample, settled)
        self.verified = type(self).verified = []

    @staticmethod
    def true_ms(network: Architecture) -> float:
        return 1 + int(network.id[4:8], 16) / 65536

    @classmethod
    def predicted_ms(cls, network: Architecture) -> float:
        return cls.true_ms(network) * (2 / 3 if int(network.id[8], 16) % 2 else 4 / 3)

    def remeasured_ms(self, network: Architecture) -> float:
        return self.true_ms(network)

    def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
        super().submit(trial, network)
        content = self._events[-1].content
        predicted = self.predicted_ms(network)
        content["values"] |= {"latency_ms": predicted, "latency_predicted_ms": predicted}
        content["latency"] = {"method": "predicted", "latency_ms": predicted}

    def verify(self, trial: int, network: Architecture) -> None:
        self.verified.append(network.id)
        self._busy = True
        latency = {"latency_ms": self.true_ms(network), "ratio_ci95": [1.0, 1.0]}
        content = {
            "values": {"latency_ms": self.true_ms(network)},
            "latency": latency,
            "training": None,
            "seconds": 0.5,
        }
        self._events.append(Event("done", trial, content=content))
