"""Recorded learning curves in the place of training: a space whose every network has its answer.

The curves are those of ``studies/short-schedule``, made by ``short_schedule.py``: every combination
of six factors, trained for nine epochs with one seed.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from fidelity import read_curves
from short_schedule import FACTORS, FOLDER, SPACE, subspace

from levit_search.architecture import Architecture
from levit_search.configuration import validated
from levit_search.engine.interface import Event
from levit_search.pareto import Points, minimised
from levit_search.search.setup import reference_of
from levit_search.space import Limits, Space
from levit_search.study import Study, StudyConfig, read_config

RUNGS = [1, 3]
OBJECTIVES = ("top1_percent", "flops")

# Where each factor of the table stands in a space.
_SLOTS = {
    "stem_layers": "stem.layers",
    "embed_dim1": "stages.0.embed_dim",
    "depth1": "stages.0.depth",
    "key_dim": "stages.0.key_dim",
    "embed_dim2": "stages.1.embed_dim",
    "depth2": "stages.1.depth",
}


def _template() -> dict[str, Any]:
    """The slots of the table; what else a network has comes from the table."""
    template: dict[str, Any] = {
        "image_size": 32,
        "in_channels": 1,
        "num_classes": 10,
        "stem": {"kind": "conv"},
        "stages": [{"num_heads": 2, "key_dim": 8} for _ in range(2)],
    }
    for factor, slot in _SLOTS.items():
        *parents, last = slot.split(".")
        node: Any = template
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        node[last] = {"choices": list(FACTORS[factor])}
    return template


class Table:
    """Networks by their factors in the order of ``_SLOTS``, and accuracies in percent by epoch."""

    def __init__(self) -> None:
        curves = read_curves(FOLDER / "curves.csv")
        self.epochs = curves.longest
        # The data is never read; digits come with scikit-learn.
        config = read_config(SPACE, {"data": {"name": "digits", "image_size": 32}})
        self.networks: dict[tuple[int, ...], Architecture] = {}
        self.curves: dict[str, list[float]] = {}
        self.flops: dict[str, float] = {}
        for member in subspace(config):
            self.networks[tuple(member.factors[name] for name in _SLOTS)] = member.network
            self.curves[member.id] = curves.by_run[member.id, 0, self.epochs]
            self.flops[member.id] = float(member.flops)

    def final(self, network: str) -> dict[str, float]:
        """The objectives of a network that was trained to the end."""
        return {"top1_percent": self.curves[network][-1], "flops": self.flops[network]}


class TableSpace(Space):
    """The space of the table: its networks and no others."""

    def __init__(self, table: Table) -> None:
        super().__init__(_template(), Limits(), "the table")
        self._networks = table.networks

    def decode(self, values: Mapping[str, Any]) -> Architecture:
        return self._networks[tuple(values[slot] for slot in _SLOTS.values())]

    def encode(self, network: Architecture) -> dict[str, Any] | None:
        for key, each in self._networks.items():
            if each == network:
                return dict(zip(_SLOTS.values(), key, strict=True))
        return None


class TableConfig(StudyConfig):
    """A study of the table's space."""

    def space(self, where: str = "space") -> Space:
        del where
        return TableSpace(Table())


def table_config(epochs: int, search: dict[str, Any]) -> TableConfig:
    """A study over the table with clock-free objectives.

    Args:
        epochs: of a whole training.
        search: the section of that name.
    """
    given = {
        "name": "table",
        "data": {"name": "digits", "image_size": 32},
        "architecture": _template(),
        "train": {"epochs": epochs, "rungs": RUNGS, "distillation": "none"},
        "objectives": OBJECTIVES,
        "storage": "journal",
        "search": search,
    }
    return validated(TableConfig, given, "the table")


@cache
def reference() -> Points:
    """What the hypervolumes of all studies over the table are measured from, minimised."""
    config = table_config(1, {})
    return minimised([reference_of(config, config.space(), {}, {})], OBJECTIVES).reshape(-1)


class ReplayEngine:
    """Answers with the table's curves at once; an epoch counts as a second."""

    def __init__(self, table: Table, study: Study) -> None:
        self._table, self._config = table, study.config
        prepared = {"settled_ms": {}, "device": {}, "teacher": {}}
        self._events = [Event("done", None, content=prepared)]
        self._running: tuple[int, Architecture] | None = None
        self._is_prepared = False
        self._left: list[int] = []

    def has_room(self) -> bool:
        return self._is_prepared and self._running is None

    def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
        self._running = trial, network
        self._left = list(self._config.rung_epochs)
        self._advance()

    def answer(self, trial: int, goes_on: bool) -> None:
        rung = self._left.pop(0)
        if goes_on:
            self._advance()
        else:
            self._end(trial, rung)

    def verify(self, trial: int, network: Architecture) -> None:
        raise AssertionError("nothing here is predicted")

    def remeasure(self, trial: int, networks: Sequence[Architecture]) -> None:
        raise AssertionError("nothing here is measured")

    def events(self, patience_s: float) -> list[Event]:
        del patience_s
        self._is_prepared = True
        events, self._events = self._events, []
        if any(event.kind == "done" for event in events):
            self._running = None
        return events

    def close(self) -> None:
        pass

    def _advance(self) -> None:
        assert self._running is not None
        trial, network = self._running
        if not self._left:
            self._end(trial, self._table.epochs)
            return
        epoch = self._left[0]
        values = {"top1_percent": self._table.curves[network.id][epoch - 1]}
        self._events.append(Event("rung", trial, content={"epoch": epoch, "values": values}))

    def _end(self, trial: int, epochs: int) -> None:
        assert self._running is not None
        _, network = self._running
        curve = self._table.curves[network.id][:epochs]
        whole = epochs == self._table.epochs
        content = {
            "values": {"top1_percent": curve[-1]} if whole else {},
            "latency": None,
            "training": {
                "curve": [{"epoch": e, "val_top1_percent": a} for e, a in enumerate(curve, 1)]
            },
            "seconds": float(epochs),
        }
        self._events.append(Event("done", trial, content=content))
