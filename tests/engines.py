"""Engines for tests, and searches with nobody watching."""

from pathlib import Path
from typing import Any

from levit_search.architecture import Architecture
from levit_search.search import Summary, search
from levit_search.search.engine import Event
from levit_search.study import Record, Study, read_config


def run(path: Path, folder: Path, **changes: Any) -> tuple[Summary, Study]:
    study = Study.create(folder, read_config(path, changes), ["test"])
    return search(study, Silent()), study


def finals(study: Study) -> list[tuple[int, str, dict[str, float]]]:
    return [
        (record.trial, record.architecture.id if record.architecture else "", record.values)
        for record in study.records()
    ]


class Silent:
    """A display that shows nothing."""

    def preparing(self, text: str, fraction: float | None) -> None: ...

    def started(self, trial: int, network: Architecture) -> None: ...

    def progress(self, trial: int, text: str, fraction: float | None) -> None: ...

    def finished(self, record: Record, records: list[Record], left_s: float | None) -> None: ...

    def tick(self) -> None: ...


class StubEngine:
    """Answers at once with figures made from the network alone; remembers what it was asked."""

    evaluated: list[str]
    latency_ms = 1.0

    def __init__(self, study: Study, sample: Architecture, settled_ms: dict[str, float]) -> None:
        self.evaluated = type(self).evaluated = []
        prepared = {"settled_ms": {}, "device": {}, "teacher": {}}
        self._events = [Event("done", None, content=prepared)]
        self._busy = True

    def has_room(self) -> bool:
        return not self._busy

    def submit(self, trial: int, network: Architecture) -> None:
        self.evaluated.append(network.id)
        values = {
            "top1_percent": 50 + int(network.id[:4], 16) / 65536 * 40,
            "latency_ms": self.latency_ms,
        }
        content = {"values": values, "latency": None, "training": None, "seconds": 0.5}
        self._busy = True
        self._events.append(Event("done", trial, content=content))

    def verify(self, trial: int, network: Architecture) -> None:
        raise AssertionError("nothing here is predicted")

    def events(self, patience_s: float) -> list[Event]:
        events, self._events = self._events, []
        self._busy = self._busy and not events
        return events

    def close(self) -> None: ...


class HereEngine(StubEngine):
    """Evaluates for real, in this process."""

    def __init__(self, study: Study, sample: Architecture, settled_ms: dict[str, float]) -> None:
        from levit_search.evaluate import Evaluator

        self._evaluator = Evaluator(study.config, study.folder, settled_ms)
        prepared = self._evaluator.prepare(sample, lambda text, fraction: None)
        self._events = [Event("done", None, content=prepared)]
        self._busy = True

    def submit(self, trial: int, network: Architecture) -> None:
        evaluation = self._evaluator.evaluate(network, lambda text, fraction: None)
        self._busy = True
        self._events.append(Event("done", trial, content=evaluation.as_json()))

    def close(self) -> None:
        self._evaluator.close()


class FailingEngine(StubEngine):
    def submit(self, trial: int, network: Architecture) -> None:
        self._busy = True
        self._events.append(Event("failed", trial, "no luck today"))


class PredictingEngine(StubEngine):
    """Predicts latencies, each too low or too high by a third, and measures when it is asked."""

    verified: list[str]

    def __init__(self, study: Study, sample: Architecture, settled_ms: dict[str, float]) -> None:
        super().__init__(study, sample, settled_ms)
        self.verified = type(self).verified = []

    @staticmethod
    def true_ms(network: Architecture) -> float:
        return 1 + int(network.id[4:8], 16) / 65536

    @classmethod
    def predicted_ms(cls, network: Architecture) -> float:
        return cls.true_ms(network) * (2 / 3 if int(network.id[8], 16) % 2 else 4 / 3)

    def submit(self, trial: int, network: Architecture) -> None:
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
