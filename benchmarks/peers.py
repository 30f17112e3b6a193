"""Searchers other than ours over a recorded table, as :func:`search_quality.exported` writes it.

    python benchmarks/search_quality.py export --table short-schedule > table.json
    python benchmarks/peers.py table.json --out studies/search/peers.jsonl --jobs 2

It needs numpy and the package of each searcher alone, not this project, so that it may run in an
environment of its own. A table that is a sample of its space has no answer to most proposals: one
stands for the network that is most like it, slot by slot, of those that were not yet trained.
Repeats cost nothing, and are told what is known. Each run is a line: networks, by their place in
the table, and the epoch that each was trained to, in their order. What is there is not run again.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Acts = Iterator[tuple[int, int]]
"""Networks, and the epoch that each is trained to."""
_BATCH = 24  # of synchronous halving
_ASKED = 4  # times as many proposals as there are networks, repeats included


class Table:
    """A recorded table.

    Args:
        given: as it was exported.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self.name, self.label = given["name"].split(", ", 1)
        self.epochs, self.rungs, self.reduction = (
            given[name] for name in ("epochs", "rungs", "reduction")
        )
        self.choices = list(given["slots"].values())
        self.slots = list(given["slots"])
        self.values = np.array(given["values"])
        self.accuracy = np.array(given["accuracy"])
        names = given["objectives"][1:]
        others = {name: np.array(given["costs"][name]) for name in names}
        self.accuracies = [others[name] for name in names if name.endswith("_percent")]
        self.costs = [others[name] for name in names if not name.endswith("_percent")]
        self.objectives = len(given["objectives"])
        self.seconds = np.array(given["seconds"])
        spans = np.maximum(self.values.max(axis=0), 1)
        self._points = self.values / spans
        self._spans = spans

    def __len__(self) -> int:
        return len(self.values)

    def figures(self, network: int, epoch: int) -> list[float]:
        """What is known then, all to be minimised: errors, and costs on a log scale."""
        percents = [self.accuracy[network, epoch - 1], *(each[network] for each in self.accuracies)]
        costs = [float(np.log10(each[network])) for each in self.costs]
        return [*(1 - float(each) / 100 for each in percents), *costs]

    def like(self, values: NDArray[np.int_], trained: set[int]) -> int:
        """The network of these choices; else of those not yet trained the one most like it."""
        (same,) = np.nonzero((self.values == values).all(axis=1))
        if len(same):
            return int(same[0])
        away = np.abs(self._points - values / self._spans).sum(axis=1)
        away[sorted(trained)] = np.inf
        return int(np.argmin(away))


# --- the simple ones


def at_random(table: Table, seed: int) -> Acts:
    for network in np.random.default_rng(seed).permutation(len(table)):
        yield int(network), table.epochs


def cheapest_first(table: Table, seed: int) -> Acts:
    """The cheapest network, then random ones, all trained to the end."""
    cheapest = int(np.argmin(table.costs[0]))
    yield cheapest, table.epochs
    yield from ((each, epoch) for each, epoch in at_random(table, seed) if each != cheapest)


def halving(table: Table, seed: int) -> Acts:
    """Synchronous successive halving of random batches, by non-dominated fronts and, within one, by
    crowding distance."""
    order = np.random.default_rng(seed).permutation(len(table))
    for start in range(0, len(order), _BATCH):
        left = [int(each) for each in order[start : start + _BATCH]]
        for rung in (*table.rungs, table.epochs):
            for network in left:
                yield network, rung
            ranked = _ranked(np.array([table.figures(each, rung) for each in left]))
            left = [left[place] for place in ranked[: max(1, round(len(left) / table.reduction))]]


def _ranked(points: NDArray[np.float64]) -> list[int]:
    """Front by front, the least crowded of a front first."""
    left, found = list(range(len(points))), list[int]()
    while left:
        part = points[left]
        beaten = [
            ((part <= point).all(axis=1) & (part < point).any(axis=1)).any() for point in part
        ]
        front = [each for each, is_beaten in zip(left, beaten, strict=True) if not is_beaten]
        room = np.zeros(len(front))
        for column in points[front].T:
            order = np.argsort(column)
            room[order[[0, -1]]] = np.inf
            span = np.ptp(column) or 1.0
            room[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
        found += [front[place] for place in np.argsort(-room, kind="stable")]
        left = [each for each in left if each not in front]
    return found


# --- Optuna's, with full trainings


def optuna_with(make: Callable[[Any, int], Any]) -> Callable[[Table, int], Acts]:
    """Ask and tell, repeats being told what is known."""

    def search(table: Table, seed: int) -> Acts:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        directions = ["minimize"] * table.objectives
        study = optuna.create_study(directions=directions, sampler=make(optuna.samplers, seed))
        space = {
            name: optuna.distributions.IntDistribution(0, len(choices) - 1)
            for name, choices in zip(table.slots, table.choices, strict=True)
        }
        trained: set[int] = set()
        for _ in range(_ASKED * len(table)):
            trial = study.ask(space)
            values = np.array([trial.params[name] for name in table.slots])
            network = table.like(values, trained)
            if network not in trained:
                trained.add(network)
                yield network, table.epochs
            study.tell(trial, table.figures(network, table.epochs))

    return search


SEARCHERS: dict[str, Callable[[Table, int], Acts]] = {
    "random": at_random,
    "cheapest, then random": cheapest_first,
    f"synchronous halving, batches of {_BATCH}": halving,
    "Optuna TPE": optuna_with(lambda samplers, seed: samplers.TPESampler(seed=seed)),
    "Optuna TPE, multivariate": optuna_with(
        lambda samplers, seed: samplers.TPESampler(seed=seed, multivariate=True)
    ),
    "Optuna NSGA-II": optuna_with(lambda samplers, seed: samplers.NSGAIISampler(seed=seed)),
    "Optuna GP": optuna_with(lambda samplers, seed: samplers.GPSampler(seed=seed)),
}
PACKAGES = {name: "optuna" for name in SEARCHERS if name.startswith("Optuna")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--searchers", default=",".join(SEARCHERS), help="names, with commas")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin none after that time")
    options = parser.parse_args()
    given = json.loads(options.table.read_text())
    table = Table(given)
    done = set()
    if options.out.exists():
        rows = map(json.loads, options.out.read_text().splitlines())
        names = ("table", "objectives", "networks", "searcher", "seed")
        done = {tuple(row[name] for name in names) for row in rows}
    known = [name for name in SEARCHERS if name in options.searchers]
    jobs = [
        (given, name, seed)
        for name in known
        for seed in range(options.seeds)
        if (table.name, table.label, len(table), name, seed) not in done
    ]
    end = time.monotonic() + 60 * options.minutes
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.jobs) as pool:
        for row in pool.map(searched, jobs, [end] * len(jobs)):
            if row is not None:
                with options.out.open("a") as text:
                    text.write(json.dumps(row) + "\n")
                print(row["searcher"], row["seed"], len(row["acts"]), file=sys.stderr, flush=True)
    return 0


def searched(job: tuple[dict[str, Any], str, int], end: float) -> dict[str, Any] | None:
    """One run, until the whole budget is spent by epochs and by seconds, or nothing is proposed."""
    given, name, seed = job
    if time.monotonic() > end:
        return None
    table = Table(given)
    epochs_left = len(table) // 2 * table.epochs
    seconds_left = table.seconds[:, -1].sum() / 2
    acts: list[tuple[int, int]] = []
    at: dict[int, int] = {}
    begun = time.process_time()
    for network, epoch in SEARCHERS[name](table, seed):
        before = at.get(network, 0)
        if epoch <= before:
            continue
        acts.append((network, epoch))
        at[network] = epoch
        epochs_left -= epoch - before
        past = table.seconds[network, before - 1] if before else 0.0
        seconds_left -= table.seconds[network, epoch - 1] - past
        if epochs_left <= 0 and seconds_left <= 0:
            break
    package = PACKAGES.get(name)
    return {
        "table": table.name,
        "objectives": table.label,
        "searcher": name,
        "seed": seed,
        "networks": len(table),
        "acts": acts,
        "proposal_ms": round(1000 * (time.process_time() - begun) / len(acts), 2),
        "versions": {package: metadata.version(package)} if package else {},
    }


if __name__ == "__main__":
    sys.exit(main())
