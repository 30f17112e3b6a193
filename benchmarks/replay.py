"""Recorded learning curves in the place of training: a space whose every network has its answer.

There are two tables: :func:`short_schedule_table`, every combination of six factors
(``short_schedule.py``), and :func:`sampled_table`, random networks of a whole space
(``search_table.py``), where a proposal stands for the network of the table that is most like it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from fidelity import read_curves
from numpy.typing import NDArray
from search_table_shown import read_table
from short_schedule import FACTORS, FOLDER, ROOT, SPACE, read_rows, subspace

from levit_search.architecture import Architecture
from levit_search.configuration import validated
from levit_search.engine.interface import Event
from levit_search.pareto import ACCURACIES, Objective
from levit_search.space import Limits, Space
from levit_search.study import Study, StudyConfig, read_config

RUNGS = [1, 3]
OBJECTIVES: tuple[Objective, ...] = ("top1_percent", "flops")

# Where each factor of the first table stands in a space.
_SLOTS = {
    "stem_layers": "stem.layers",
    "embed_dim1": "stages.0.embed_dim",
    "depth1": "stages.0.depth",
    "key_dim": "stages.0.key_dim",
    "embed_dim2": "stages.1.embed_dim",
    "depth2": "stages.1.depth",
}

SAMPLED = ROOT / "studies" / "table"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Networks, and what became of each in training."""

    name: str
    template: Mapping[str, Any]
    """The ``architecture`` section of their space."""
    networks: dict[str, Architecture]
    """By id."""
    values: dict[str, dict[str, Any]]
    """Of each network, the value of every slot."""
    curves: dict[str, list[float]]
    """Accuracies in percent after each epoch."""
    seconds: dict[str, list[float]]
    """Since the start of training, after each epoch."""
    figures: dict[str, dict[str, float]]
    """Whatever is known of a network beside its accuracy: ``flops``, and maybe
    ``latency_ms``, ``latency_int8_ms`` and ``top1_int8_percent``."""
    truth: dict[str, float]
    """The accuracy that a network is judged by, which a search may not see."""

    @property
    def epochs(self) -> int:
        return len(next(iter(self.curves.values())))

    @property
    def slots(self) -> list[str]:
        return list(next(iter(self.values.values())))

    def final(self, network: str) -> dict[str, float]:
        """What is known of a network that was trained to the end."""
        return {**self.figures[network], "top1_percent": self.curves[network][-1]}

    def judged(self, network: str) -> dict[str, float]:
        """The same with the accuracy that it is judged by."""
        return {**self.figures[network], "top1_percent": self.truth[network]}


@cache
def short_schedule_table() -> Table:
    """Every combination of six factors, trained with one seed: 96 networks."""
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
    recorded = read_curves(FOLDER / "curves.csv")
    members = subspace(_config())
    curves = {each.id: recorded.by_run[each.id, 0, recorded.longest] for each in members}
    return Table(
        "short-schedule",
        template,
        {each.id: each.network for each in members},
        {
            each.id: {slot: each.factors[factor] for factor, slot in _SLOTS.items()}
            for each in members
        },
        curves,
        _seconds(recorded.longest),
        {each.id: {"flops": float(each.flops)} for each in members},
        {name: curve[-1] for name, curve in curves.items()},
    )


@cache
def sampled_table() -> Table:
    """Random networks of ``levit-fashion``; the truth is the mean over a network's seeds."""
    found = read_table(SAMPLED)
    given = json.loads((SAMPLED / "settings.json").read_text())["settings"]["architecture"]
    template = {"image_size": 32, "in_channels": 1, "num_classes": 10, **given}
    space = Space(template, Limits())
    figures = {name: list(map(float, each)) for name, each in found.costs.items()}
    figures["top1_int8_percent"] = list(map(float, found.top1_int8_percent[0]))
    return Table(
        "sampled",
        template,
        {name: space.decode(each) for name, each in zip(found.networks, found.values, strict=True)},
        dict(zip(found.networks, found.values, strict=True)),
        dict(zip(found.networks, found.top1_percent[0].tolist(), strict=True)),
        dict(zip(found.networks, found.cpu_s[0].tolist(), strict=True)),
        {
            name: {figure: each[place] for figure, each in figures.items()}
            for place, name in enumerate(found.networks)
        },
        dict(zip(found.networks, found.truth().tolist(), strict=True)),
    )


def several_seeds() -> Table:
    """That part of the sampled table which has all seeds: a search sees the first, and networks
    are judged by the second."""
    found, whole = read_table(SAMPLED), sampled_table()
    chosen = [name for name, has in zip(found.networks, found.several(), strict=True) if has]
    second = dict(zip(found.networks, found.top1_percent[1][:, -1].tolist(), strict=True))
    parts = {
        field: {name: getattr(whole, field)[name] for name in chosen}
        for field in ("networks", "values", "curves", "seconds", "figures")
    }
    return replace(whole, name="two seeds", truth={name: second[name] for name in chosen}, **parts)


def _config() -> StudyConfig:
    # The data is never read; digits come with scikit-learn.
    return read_config(SPACE, {"data": {"name": "digits", "image_size": 32}})


def _seconds(schedule: int) -> dict[str, list[float]]:
    """Of the networks of the first table."""
    found: dict[str, list[float]] = {}
    for row in read_rows(FOLDER / "curves.csv"):
        if int(row["seed"]) == 0 and int(row["schedule_epochs"]) == schedule:
            found.setdefault(row["network"], []).append(float(row["seconds"]))
    return found


class TableSpace(Space):
    """The space of a table: its networks and no others."""

    def __init__(self, table: Table) -> None:
        super().__init__(table.template, Limits(), "the table")
        self._table = table
        self._by_values = {tuple(each.values()): name for name, each in table.values.items()}
        self._ids = list(table.values)
        self._points = np.array([self._point(each) for each in table.values.values()])
        self._nearest: dict[tuple[Any, ...], str] = {}

    def decode(self, values: Mapping[str, Any]) -> Architecture:
        """The network of these values, or else the one that is most like it."""
        key = tuple(values[slot] for slot in self._table.values[self._ids[0]])
        name = self._by_values.get(key) or self._nearest.get(key)
        if name is None:
            exact = super().encode(super().decode(values)) or {}
            away = np.abs(self._points - self._point(exact)).sum(axis=1)
            name = self._nearest[key] = self._ids[int(np.argmin(away))]
        return self._table.networks[name]

    def encode(self, network: Architecture) -> dict[str, Any] | None:
        return self._table.values.get(network.id)

    def _point(self, values: Mapping[str, Any]) -> Floats:
        found = [s.values.index(values[s.name]) / max(1, len(s.values) - 1) for s in self.slots]
        return np.array(found)


class TableConfig(StudyConfig):
    """A study of a table's space."""

    def space(self, where: str = "space") -> Space:
        del where
        return _space(self.name)


TABLES = {"short-schedule": short_schedule_table, "sampled": sampled_table}


@cache
def _space(name: str) -> TableSpace:
    return TableSpace(TABLES[name]())


def table_config(
    table: Table, search: dict[str, Any], objectives: Sequence[Objective] = OBJECTIVES
) -> TableConfig:
    """A study over a table.

    Args:
        table: where its networks come from.
        search: the section of that name.
        objectives: figures of the table.
    """
    given = {
        "name": table.name,
        "data": {"name": "digits", "image_size": 32},
        "architecture": table.template,
        "train": {"epochs": table.epochs, "rungs": RUNGS, "distillation": "none"},
        "objectives": objectives,
        "storage": "journal",
        "search": search,
        "hypervolume_reference": reference_figures(table, objectives),
    }
    return validated(TableConfig, given, "the table")


def reference_figures(table: Table, objectives: Sequence[Objective]) -> dict[Objective, float]:
    """What hypervolumes are measured from: the worst of all networks in each objective.

    From guessing the cheapest network alone would have nearly all of it.
    """
    rows = [table.judged(name) for name in table.networks]
    worst = {True: min, False: max}
    return {name: worst[name in ACCURACIES](row[name] for row in rows) for name in objectives}


class ReplayEngine:
    """Answers with a table's curves at once; an epoch counts as a second.

    A training that goes on begins with the rungs that it came to before, as a worker's does.
    """

    def __init__(self, table: Table, study: Study) -> None:
        self._table, self._config = table, study.config
        prepared = {"settled_ms": {}, "device": {}, "teacher": {}}
        self._events = [Event("done", None, content=prepared)]
        self._running: tuple[int, Architecture] | None = None
        self._is_prepared = False
        self._left: list[int] = []
        self.acts: list[tuple[str, int]] = []
        """Networks, and the epoch up to which each was trained then, as they were paid for."""
        self._paid: dict[str, int] = {}
        self.epochs = 0
        self.seconds = 0.0

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
        left = [{"failed": "a table has each latency once"} for _ in networks]
        self._events.append(Event("done", trial, content={"results": left}))

    def events(self, patience_s: float) -> list[Event]:
        del patience_s
        self._is_prepared = True
        events, self._events = self._events, []
        if any(event.kind == "done" for event in events):
            self._running = None
        return events

    def close(self) -> None:
        pass

    def _pay(self, network: str, epoch: int) -> None:
        before = self._paid.get(network, 0)
        if epoch > before:
            seconds = self._table.seconds[network]
            self.epochs += epoch - before
            self.seconds += seconds[epoch - 1] - (seconds[before - 1] if before else 0.0)
            self._paid[network] = epoch
            self.acts.append((network, epoch))

    def _advance(self) -> None:
        assert self._running is not None
        trial, network = self._running
        if not self._left:
            self._end(trial, self._table.epochs)
            return
        epoch = self._left[0]
        self._pay(network.id, epoch)
        accuracy = self._table.curves[network.id][epoch - 1]
        values = {**self._table.figures[network.id], **dict.fromkeys(ACCURACIES, accuracy)}
        self._events.append(Event("rung", trial, content={"epoch": epoch, "values": values}))

    def _end(self, trial: int, epochs: int) -> None:
        assert self._running is not None
        _, network = self._running
        self._pay(network.id, epochs)
        curve = self._table.curves[network.id][:epochs]
        final = self._table.final(network.id)
        if epochs < self._table.epochs:
            final = {name: each for name, each in final.items() if name not in ACCURACIES}
        content = {
            "values": {name: each for name, each in final.items() if name != "flops"},
            "latency": None,
            "training": {
                "curve": [{"epoch": e, "val_top1_percent": a} for e, a in enumerate(curve, 1)]
            },
            "seconds": float(epochs),
        }
        self._events.append(Event("done", trial, content=content))
