"""How much front each epoch of training buys: recorded curves replayed by several strategies.

    python benchmarks/search_quality.py --json benchmarks/search_quality.json

Every combination of six factors was trained once (``short_schedule.py``: 96 networks, 9 epochs), so
that every proposal has its answer and a search takes seconds. The strategies are Optuna's own
random, TPE and NSGA-II samplers with their defaults, which train each proposal to the end, repeats
as well, since they do not notice them; and levit-search as ``run`` does it, with its driver,
storage and rungs. All have the same seeds. Objectives are the accuracy after nine epochs and FLOPs;
a front is worth its hypervolume as the search itself states it (docs/search.md#hypervolume), as a
share of that of all 96 networks. The whole budget trains half of the networks in full.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from replay import OBJECTIVES, ReplayEngine, Table, reference, table_config

from levit_search.files import write_json
from levit_search.pareto import Points, hypervolume, minimised
from levit_search.search import Callback, search
from levit_search.study import Record, Study
from levit_search.study.folder import environment

SHARES = (0.10, 0.20, 0.33, 0.50, 1.00)
_MOST_PROPOSALS = 300

Trail = list[tuple[int, str]]
"""Epochs spent when a network was trained to the end, and its id."""


@cache
def table() -> Table:
    return Table()


def optuna_alone(
    sampler: Callable[[int], optuna.samplers.BaseSampler], is_repeat_free: bool
) -> Any:
    """Optuna's ask and tell with every proposal trained to the end."""

    def trail(seed: int, budget: int) -> Trail:
        known, spent = table(), 0
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler(seed))
        space = table_config(known.epochs, {}).space()
        found: Trail = []
        for _ in range(_MOST_PROPOSALS):
            if spent + known.epochs > budget:
                break
            trial = study.ask(space.distributions())
            network = space.decode(space.values(trial.params)).id
            study.tell(trial, [known.final(network)[name] for name in OBJECTIVES])
            if is_repeat_free and network in dict(map(reversed, found)):
                continue
            spent += known.epochs
            found.append((spent, network))
        return found

    return trail


class _Listener(Callback):
    """Notes what a search has ended, in its order."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def on_trial_complete(self, record: Record, *_: object) -> None:
        self.records.append(record)


def ours(**settings: Any) -> Any:
    """levit-search's driver until it has seen all networks."""

    def trail(seed: int, budget: int) -> Trail:
        del budget  # what comes after it is cut off
        known, listener = table(), _Listener()
        config = table_config(known.epochs, {"seed": seed, "trials": 96, **settings})
        with tempfile.TemporaryDirectory() as folder:
            study = Study.create(Path(folder) / "study", config, sys.argv)
            study.config = config
            search(study, [listener], engine=lambda study, *_: ReplayEngine(known, study))
        found: Trail = []
        spent = 0
        for record in listener.records:
            if record.reused_from is None and record.architecture is not None:
                spent += len(record.evaluation["training"]["curve"])
                if record.state == "complete":
                    found.append((spent, record.architecture.id))
        return found

    return trail


STRATEGIES: dict[str, Any] = {
    "random": optuna_alone(lambda seed: optuna.samplers.RandomSampler(seed=seed), False),
    "Optuna TPE": optuna_alone(lambda seed: optuna.samplers.TPESampler(seed=seed), False),
    "Optuna NSGA-II": optuna_alone(lambda seed: optuna.samplers.NSGAIISampler(seed=seed), False),
    "levit-search": ours(),
}
# Which part of the difference comes from where.
PARTS: dict[str, Any] = {
    "random, repeats free": optuna_alone(
        lambda seed: optuna.samplers.RandomSampler(seed=seed), True
    ),
    "Optuna TPE, repeats free": optuna_alone(
        lambda seed: optuna.samplers.TPESampler(seed=seed), True
    ),
    "levit-search, no rungs": ours(reduction=None),
    "levit-search, random": ours(sampler="random"),
}


@dataclass(frozen=True)
class Worth:
    """Hypervolume of sets of networks, as a share of the hypervolume of all."""

    table: Table
    reference: Points = field(default_factory=reference)

    def __call__(self, networks: Sequence[str]) -> float:
        everything = minimised([self.table.final(name) for name in self.table.curves], OBJECTIVES)
        points = minimised([self.table.final(name) for name in networks], OBJECTIVES)
        return hypervolume(points, self.reference) / hypervolume(everything, self.reference)


def steps(name: str, seed: int, budget: int) -> list[tuple[int, float]]:
    """The share of the hypervolume after each network, with the epochs spent by then."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trail = {**STRATEGIES, **PARTS}[name](seed, budget)
    worth = Worth(table())
    networks = [network for _, network in trail]
    return [(spent, worth(networks[: index + 1])) for index, (spent, _) in enumerate(trail)]


def at(found: Sequence[tuple[int, float]], epochs: float) -> float:
    return max((share for spent, share in found if spent <= epochs), default=0.0)


def reached(found: Sequence[tuple[int, float]], share: float) -> float | None:
    return next((float(spent) for spent, each in found if each >= share), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--parts", action="store_true", help="with what each part contributes")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    begun = time.perf_counter()
    names = [*STRATEGIES, *(PARTS if options.parts else ())]
    whole = len(table().curves) // 2 * table().epochs
    jobs = [(name, seed) for seed in range(options.seeds) for name in names]
    with ProcessPoolExecutor(options.jobs) as pool:
        runs = [pool.submit(steps, name, seed, whole) for name, seed in jobs]
        found = dict(zip(jobs, [run.result() for run in runs], strict=True))
    budgets = {f"{share:.0%}": round(share * whole) for share in SHARES}
    values = {
        name: {
            label: [at(found[name, seed], epochs) for seed in range(options.seeds)]
            for label, epochs in budgets.items()
        }
        for name in names
    }
    document = {
        "environment": environment(sys.argv),
        "networks": len(table().curves),
        "epochs_of_a_network": table().epochs,
        "budgets_epochs": budgets,
        "seeds": options.seeds,
        "share_of_hypervolume": values,
        **_against_random(found, values, options.seeds, whole),
        "seconds": round(time.perf_counter() - begun, 1),
    }
    print(as_text(document))
    if options.json:
        write_json(options.json, document)
    return 0


def _against_random(
    found: dict[tuple[str, int], list[tuple[int, float]]],
    values: dict[str, dict[str, list[float]]],
    seeds: int,
    whole: int,
) -> dict[str, Any]:
    """After how many epochs each strategy has what random search ends with, at the median."""
    target = float(np.median(values["random"]["100%"]))
    needed = {
        name: [reached(found[name, seed], target) for seed in range(seeds)] for name in values
    }
    medians = {
        name: float(np.median([whole if each is None else each for each in each_seed]))
        for name, each_seed in needed.items()
    }
    return {
        "random_final": target,
        "epochs_to_random_final": needed,
        "median_epochs_to_random_final": medians,
        "share_of_budget": {name: median / whole for name, median in medians.items()},
    }


def as_text(document: dict[str, Any]) -> str:
    values = document["share_of_hypervolume"]
    labels = list(document["budgets_epochs"])
    lines = [
        "Hypervolume in % of that of all networks: median (quartiles) over "
        f"{document['seeds']} seeds; lost: seeds in which levit-search was below",
        "",
        f"{'':26}" + "".join(f"{label:>22}" for label in labels) + f"{'epochs to random':>20}",
        f"{'epochs':26}" + "".join(f"{e:>22}" for e in document["budgets_epochs"].values()),
    ]
    for name, row in values.items():
        cells = []
        for label in labels:
            low, middle, high = np.quantile(row[label], (0.25, 0.5, 0.75)) * 100
            behind = sum(
                own < other - 1e-9
                for own, other in zip(values["levit-search"][label], row[label], strict=True)
            )
            lost = "" if name == "levit-search" else f" -{behind}"
            cells.append(f"{middle:.1f} ({low:.1f}-{high:.1f}){lost}")
        needed = document["median_epochs_to_random_final"][name]
        share = document["share_of_budget"][name]
        lines.append(
            f"{name:26}" + "".join(f"{c:>22}" for c in cells) + f"{needed:>12.0f} {share:>6.0%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
