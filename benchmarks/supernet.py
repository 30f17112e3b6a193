"""What a search by inherited accuracies finds for which compute, where every truth is known.

    python benchmarks/supernet.py --jobs 2 --json benchmarks/supernet.json

Every combination of six factors was trained once (``short_schedule.py``: 96 networks, 9 epochs).
Here one supernet of these networks is trained for each of two seeds and asked for all of them; what
it answers is kept in ``studies/supernet/table.csv``. Then levit-search's driver replays searches
with ``accuracy: supernet``: candidates have their inherited accuracy, and what is verified in the
end its recorded one. Beside them stand levit-search as it trains every candidate, by freeze-thaw,
by halving and to the end, and random networks that are trained to the end.

Compute is counted in multiply-adds: three times a network's FLOPs for an image that is trained on,
once for one that is looked at, and training of the supernet, calibration and candidates included. A
whole is what training all 96 networks takes. A front is worth the hypervolume that it dominates, as
a share of that of all 96 networks.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from job_pool import carried_out, say
from rank_study import FOLDER, append, objective_of
from rank_study_shown import rows_of
from replay import (
    OBJECTIVES,
    ReplayEngine,
    Table,
    reference_figures,
    short_schedule_table,
    table_config,
)
from search_quality import replay
from short_schedule import SPACE, Setup, opened, setup_of

from levit_search.architecture import Architecture, Levit
from levit_search.cost import cost
from levit_search.engine.interface import Event
from levit_search.errors import LevitSearchError, TrialError
from levit_search.files import write_json
from levit_search.pareto import hypervolume, minimised, non_dominated
from levit_search.recipe import SupernetConfig
from levit_search.search import search
from levit_search.study import Study, read_config
from levit_search.study.folder import environment

SUPERNET_SEEDS = (0, 1)
SHARES = (0.10, 0.15, 0.20, 0.25, 0.33, 0.50)
COLUMNS = ("seed", "network", "inherited_top1_percent", "epochs", "seconds")
_TRAIN_IMAGES, _VAL_IMAGES, _EPOCHS = 4000, 3000, 9  # of studies/short-schedule
_TEACHER_EPOCHS = 6
_BATCH = 128
CONFIG = SupernetConfig(val_images=None)

Trail = list[tuple[float, str]]
"""Compute spent when a network had an accuracy of its own, as a share of the whole, and its id."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="of the searches")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--kept", type=Path, default=Path("/tmp/supernet-benchmark"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    try:
        train(options)
    except LevitSearchError as error:
        print(f"supernet.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # finished epochs are kept
        return 130
    document = report(options)
    print(as_text(document))
    if options.json:
        write_json(options.json, document)
    return 0


# --- the supernets


class Job(NamedTuple):
    """One supernet."""

    setup: str  # a Setup as JSON
    seed: int
    kept: Path


def train(options: argparse.Namespace) -> None:
    config = read_config(SPACE, {"teacher.recipe.epochs": _TEACHER_EPOCHS})
    setup = setup_of(config, _TRAIN_IMAGES, _EPOCHS).model_dump_json()
    file = options.folder / "table.csv"
    done = {int(row["seed"]) for row in rows_of(file)}
    jobs = [
        Job(setup, seed, options.kept / f"{seed}.pt") for seed in SUPERNET_SEEDS if seed not in done
    ]
    for _, rows in carried_out(trained, jobs, options.jobs):
        if isinstance(rows, TrialError):
            raise rows
        append(file, COLUMNS, rows)


def trained(job: Job) -> list[dict[str, Any]]:
    """Train a supernet of the table's networks and ask it for all of them, in a worker."""
    from envelopes import envelope_around

    from levit_search.distill import obtain_teacher
    from levit_search.train import Checkpoint, fit

    setup = Setup.model_validate_json(job.setup)
    batches, _, _ = opened(job.setup)
    recipe = CONFIG.recipe(setup.train)
    teacher, _ = obtain_teacher(
        setup.teacher, setup.data, batches, recipe, None, setup.teacher_seed, say=say
    )
    networks = members()
    by_stem = {stem: [n for n in networks if stem_of(n) == stem] for stem in extremes()}

    def draw(chance: np.random.Generator, stem: str) -> Levit:
        return by_stem[stem][chance.integers(len(by_stem[stem]))]

    envelope = envelope_around(networks)
    elastic, inheritance, objective = objective_of(
        envelope, extremes(), draw, CONFIG, recipe, batches, job.seed
    )
    training = fit(
        elastic,
        batches,
        recipe,
        job.seed,
        teacher,
        lambda point: say(f"supernet of seed {job.seed}: {point}"),
        Checkpoint(job.kept, f"table-{job.seed}-{recipe.epochs}"),
        objective=objective,
    )
    seconds = f"{training.seconds:.1f}"
    return [
        {
            "seed": job.seed,
            "network": network.id,
            "inherited_top1_percent": f"{inheritance.top1_percent(elastic, network):.4f}",
            "epochs": recipe.epochs,
            "seconds": seconds,
        }
        for network in networks
    ]


def members() -> list[Levit]:
    return [network for network in table().networks.values() if isinstance(network, Levit)]


def stem_of(network: Levit) -> str:
    from levit_search.space import stem_name

    return stem_name(network)


def extremes() -> dict[str, Any]:
    """By stem, the largest network of the table and the smallest."""
    from levit_search.space import Extremes

    found = {}
    for stem in sorted({stem_of(network) for network in members()}):
        alike = sorted(
            (n for n in members() if stem_of(n) == stem), key=lambda each: cost(each).flops
        )
        found[stem] = Extremes(alike[-1], alike[0])
    return found


# --- compute


@cache
def table() -> Table:
    return short_schedule_table()


def training(network: Architecture, epochs: int) -> float:
    """Multiply-adds of so many epochs with a look at ``val`` after each."""
    images = _TRAIN_IMAGES // _BATCH * _BATCH
    return float(cost(network).flops * epochs * (3 * images + _VAL_IMAGES))


def candidate(network: Architecture) -> float:
    """Multiply-adds of an inherited accuracy."""
    return float(cost(network).flops * (CONFIG.calibration_images + _VAL_IMAGES))


@cache
def supernet() -> float:
    """Multiply-adds of training a supernet; random networks at their mean."""
    recipe = CONFIG.recipe(read_config(SPACE).train.model_copy(update={"epochs": _EPOCHS}))
    images = _TRAIN_IMAGES // _BATCH * _BATCH
    ends = extremes()
    a_step = []
    for stem, (largest, smallest) in ends.items():
        drawn = [cost(n).flops for n in members() if stem_of(n) == stem]
        mean = CONFIG.members * float(np.mean(drawn))
        a_step.append(cost(largest).flops + cost(smallest).flops + mean)
    of_all = [n for each in ends.values() for n in each]
    looked_at = max(map(candidate, of_all)) + min(map(candidate, of_all))
    return recipe.epochs * (3 * images * float(np.mean(a_step)) + looked_at)


@cache
def whole() -> float:
    return sum(training(network, _EPOCHS) for network in members())


# --- searches


class InheritingEngine(ReplayEngine):
    """Answers with inherited accuracies, and verifies with the table's; notes what that costs."""

    def __init__(self, table: Table, study: Study, inherited: dict[str, float]) -> None:
        super().__init__(table, study)
        self._inherited = inherited
        self.spent = supernet()
        self.trail: Trail = []

    def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
        self._running = trial, network
        self.spent += candidate(network)
        accuracy = self._inherited[network.id]
        values = {"top1_percent": accuracy, "top1_inherited_percent": accuracy}
        content = {"values": values, "latency": None, "training": None, "seconds": 1.0}
        self._events.append(Event("done", trial, content=content))

    def verify(self, trial: int, network: Architecture) -> None:
        self._running = trial, network
        self.spent += training(network, _EPOCHS)
        self.trail.append((self.spent / whole(), network.id))
        self._end(trial, self._table.epochs)


def inheriting(seed: int, supernet_seed: int) -> Trail:
    """levit-search with a supernet, until it has seen all networks."""
    config = table_config(table(), {"seed": seed, "trials": 96}).model_copy(
        update={"accuracy": "supernet"}
    )
    engines: list[InheritingEngine] = []

    def engine(study: Study, *_: object) -> InheritingEngine:
        engines.append(InheritingEngine(table(), study, inherited(supernet_seed)))
        return engines[-1]

    with tempfile.TemporaryDirectory() as folder:
        study = Study.create(Path(folder) / "study", config, sys.argv)
        study.config = config
        search(study, engine=engine)
    return engines[0].trail


def training_each(seed: int, **settings: Any) -> Trail:
    """levit-search as it trains every candidate."""
    by_id, spent, at = table().networks, 0.0, dict[str, int]()
    found = []
    acts, _ = replay(table(), OBJECTIVES, seed, settings, most=96 * _EPOCHS)
    for network, epoch in acts:
        spent += training(by_id[network], epoch - at.get(network, 0))
        at[network] = epoch
        if epoch == _EPOCHS:
            found.append((spent / whole(), network))
    return found


def random(seed: int) -> Trail:
    """Random networks, each of them once."""
    spent, found = 0.0, []
    for place in np.random.default_rng(seed).permutation(len(members())):
        spent += training(members()[place], _EPOCHS)
        found.append((spent / whole(), members()[place].id))
    return found


_FOLDER = FOLDER


@cache
def inherited(seed: int) -> dict[str, float]:
    """By network, what a supernet answered."""
    rows = rows_of(_FOLDER / "table.csv")
    return {
        row["network"]: float(row["inherited_top1_percent"])
        for row in rows
        if int(row["seed"]) == seed
    }


# --- the report


def report(options: argparse.Namespace) -> dict[str, Any]:
    global _FOLDER
    _FOLDER = options.folder
    begun = time.perf_counter()
    trails = {
        "supernet": [inheriting(s, n) for n in SUPERNET_SEEDS for s in range(options.seeds)],
        "levit-search, freeze-thaw": [training_each(seed) for seed in range(options.seeds)],
        "levit-search, halving": [
            training_each(seed, sampler="tpe") for seed in range(options.seeds)
        ],
        "levit-search, no rungs": [
            training_each(seed, reduction=None) for seed in range(options.seeds)
        ],
        "random": [random(seed) for seed in range(options.seeds)],
    }
    by_id = {network.id: network for network in members()}
    candidates = sum(candidate(network) for network in members())
    return {
        "environment": environment(sys.argv),
        "networks": len(by_id),
        "search_seeds": options.seeds,
        "supernet_seeds": len(SUPERNET_SEEDS),
        "cost_share": {
            "supernet": supernet() / whole(),
            "all candidates": candidates / whole(),
            "largest networks": supernet()
            / max(training(network, _EPOCHS) for network in members()),
            "candidate of a training": candidates / whole(),
        },
        "ranking": {str(seed): agreement_of(seed) for seed in SUPERNET_SEEDS},
        "strategies": {
            name: {
                "at": {f"{share:.0%}": [at(trail, share) for trail in found] for share in SHARES},
                "end": [end(trail) for trail in found],
                "trails": found,
            }
            for name, found in trails.items()
        },
        "seconds": round(time.perf_counter() - begun, 1),
    }


def agreement_of(seed: int) -> dict[str, float]:
    from fidelity import agreement

    truth = {network.id: table().curves[network.id][-1] for network in members()}
    return agreement(inherited(seed), truth)


def at(trail: Trail, share: float) -> dict[str, float]:
    """What a search has after so much compute."""
    return judged([network for spent, network in trail if spent <= share])


def end(trail: Trail) -> dict[str, float]:
    return {"spent": trail[-1][0], **judged([network for _, network in trail])}


def judged(found: Sequence[str]) -> dict[str, float]:
    if not found:
        return {"hypervolume": 0.0, "recall": 0.0}
    ids = list(table().curves)
    points = minimised([table().final(name) for name in ids], OBJECTIVES)
    true = {name for name, keep in zip(ids, non_dominated(points), strict=True) if keep}
    return {
        "hypervolume": _volume(found) / _volume(ids),
        "recall": len(true & set(found)) / len(true),
    }


def _volume(networks: Sequence[str]) -> float:
    reference = minimised([reference_figures(table(), OBJECTIVES)], OBJECTIVES).reshape(-1)
    return hypervolume(minimised([table().final(each) for each in networks], OBJECTIVES), reference)


def as_text(document: dict[str, Any]) -> str:
    shares = [f"{share:.0%}" for share in SHARES]
    costs = document["cost_share"]
    lines = [
        f"Training the supernet takes {costs['supernet']:.1%} of the whole "
        f"({costs['largest networks']:.1f} trainings of the largest network), asking it for all "
        f"{document['networks']} networks {costs['all candidates']:.1%}.",
        *(
            f"Supernet of seed {seed}: tau {row['tau']:.3f} ({row['tau_low']:.3f} to "
            f"{row['tau_high']:.3f}), rho {row['rho']:.3f} with the recorded accuracies"
            for seed, row in document["ranking"].items()
        ),
        "",
        f"Median (lowest) over {document['search_seeds']} seeds of the search, and with a supernet "
        f"over {document['supernet_seeds']} of that each; hypervolume in % of that of all, recall "
        "of the true front in %, after shares of the whole compute",
        "",
        f"{'':34}" + "".join(f"{share:>14}" for share in shares),
    ]
    for name, found in document["strategies"].items():
        for figure in ("hypervolume", "recall"):
            cells = []
            for share in shares:
                values = [100 * each[figure] for each in found["at"][share]]
                cells.append(f"{np.median(values):.1f} ({min(values):.1f})")
            head = f"{name}, {figure}"
            lines.append(f"{head:34}" + "".join(f"{cell:>14}" for cell in cells))
    ends = document["strategies"]["supernet"]["end"]
    spent = [each["spent"] for each in ends]
    worth = [each["hypervolume"] for each in ends]
    lines += [
        "",
        f"The searches with a supernet end after {100 * np.median(spent):.1f} % of the whole "
        f"({100 * max(spent):.1f} at most), with {100 * np.median(worth):.2f} % of the hypervolume "
        f"({100 * min(worth):.2f} at least).",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
