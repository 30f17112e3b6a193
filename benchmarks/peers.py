"""Searchers other than ours over a recorded table, as :func:`search_quality.exported` writes it.

    python benchmarks/search_quality.py export --table short-schedule > table.json
    python benchmarks/peers.py table.json --out studies/search/peers.jsonl --jobs 2

It needs numpy and the package of each searcher alone, not this project. Their packages do not go
together, so that each group has an environment of its own, in which those are run that it has:

    pip install optuna==5.0.0 scipy torch botorch==0.18.1
    pip install syne-tune[extra]==0.16.0
    pip install neural-pipeline-search==0.17.0
    pip install smac==2.4.1

A table that is a sample of its space has no answer to most proposals: one
stands for the network that is most like it, slot by slot, of those that were not yet trained.
Repeats cost nothing, and are told what is known. Each run is a line: networks, by their place in
the table, and the epoch that each was trained to, in their order. What is there is not run again.
"""

import argparse
import datetime
import importlib
import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Acts = Iterator[tuple[int, int]]
"""Networks, and the epoch that each is trained to."""
_BATCH = 24  # of synchronous halving
_ASKED = 4  # times as many proposals as there are networks, repeats included
_IDLE = 100  # proposals in a row that bring nothing new, after which a searcher has ended
_RETRIES = 1000  # of SMAC, to find what it has not yet proposed


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
        self.metrics = [f"objective_{number}" for number in range(self.objectives)]
        self.seconds = np.array(given["seconds"])
        spans = np.maximum(self.values.max(axis=0), 1)
        self.points = self.values / spans
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
        away = np.abs(self.points - values / self._spans).sum(axis=1)
        away[sorted(trained)] = np.inf
        return int(np.argmin(away))


Searcher = Callable[[Table, int], Acts]


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


# --- published ones


def proposals(table: Table) -> Callable[[Sequence[int]], int]:
    """What stands for each choice of slots that is proposed: always the same network."""
    known: dict[tuple[int, ...], int] = {}

    def network_of(values: Sequence[int]) -> int:
        key = tuple(map(int, values))
        if key not in known:
            known[key] = table.like(np.array(key), set(known.values()))
        return known[key]

    return network_of


def optuna_with(name: str, **settings: Any) -> Searcher:
    """Optuna, asked and told, all trained to the end."""

    def search(table: Table, seed: int) -> Acts:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = getattr(optuna.samplers, name)(seed=seed, **settings)
        study = optuna.create_study(directions=["minimize"] * table.objectives, sampler=sampler)
        space = {
            slot: optuna.distributions.IntDistribution(0, len(choices) - 1)
            for slot, choices in zip(table.slots, table.choices, strict=True)
        }
        network_of = proposals(table)
        for _ in range(_ASKED * len(table)):
            trial = study.ask(space)
            network = network_of([trial.params[slot] for slot in table.slots])
            yield network, table.epochs
            study.tell(trial, table.figures(network, table.epochs))

    return search


def moasha(is_mended: bool) -> Searcher:
    """Syne Tune's MOASHA.

    Its ``nondominated_sort`` takes ranks within a front for the order of its members, and its
    priority the order of all candidates for their ranks. Where it ``is_mended``, both are turned
    round.
    """

    def search(table: Table, seed: int) -> Acts:
        from syne_tune.backend.trial_status import Trial
        from syne_tune.config_space import randint
        from syne_tune.optimizer.schedulers.multiobjective import moasha, non_dominated_priority

        class Mended(moasha.NonDominatedPriority):  # type: ignore[misc]
            def __call__(self, objectives: NDArray[np.float64]) -> NDArray[np.int_]:
                fronts = non_dominated_priority.nondominated_sort(objectives, flatten=False)
                order: list[int] = []
                for front in map(np.sort, fronts):
                    ranks = non_dominated_priority.compute_epsilon_net(objectives[front])
                    order += front[np.argsort(ranks)].tolist()
                return np.argsort(order)

        np.random.seed(seed)  # which its spaces draw from
        scheduler = moasha.MOASHA(
            {
                slot: randint(0, len(choices) - 1)
                for slot, choices in zip(table.slots, table.choices, strict=True)
            },
            metrics=table.metrics,
            time_attr="epoch",
            multiobjective_priority=Mended() if is_mended else None,
            max_t=table.epochs,
            grace_period=table.rungs[0],
            reduction_factor=table.reduction,
            random_seed=seed,
        )
        network_of = proposals(table)
        for number in range(_ASKED * len(table)):
            config = scheduler.suggest().config
            trial = Trial(number, config, datetime.datetime.now())
            scheduler.on_trial_add(trial)
            network = network_of([config[slot] for slot in table.slots])
            for epoch in range(1, table.epochs + 1):
                yield network, epoch
                figures = dict(zip(table.metrics, table.figures(network, epoch), strict=True))
                if scheduler.on_trial_result(trial, {**figures, "epoch": epoch}) == "STOP":
                    scheduler.on_trial_remove(trial)
                    break

    return search


def neps_with(name: str, **settings: Any) -> Searcher:
    """One of NePS, asked and told."""

    def search(table: Table, seed: int) -> Acts:
        import neps
        import torch
        from neps.space import HPOInteger, SearchSpace

        torch.set_num_threads(1)
        for each in (random.seed, np.random.seed, torch.manual_seed):
            each(seed)
        space = SearchSpace(
            {
                **{
                    slot: HPOInteger(0, len(choices) - 1)
                    for slot, choices in zip(table.slots, table.choices, strict=True)
                },
                "epoch": HPOInteger(table.rungs[0], table.epochs, is_fidelity=True),
            }
        )
        optimizer = getattr(neps.algorithms, name)(space, eta=table.reduction, **settings)
        asked = neps.AskAndTell(optimizer)
        network_of = proposals(table)
        for _ in range(_ASKED * len(table)):
            trial = asked.ask()
            network = network_of([trial.config[slot] for slot in table.slots])
            epoch = trial.config["epoch"]
            yield network, epoch
            asked.tell(trial, {"objective_to_minimize": table.figures(network, epoch)})

    return search


def parego(has_rungs: bool) -> Searcher:
    """SMAC's ParEGO, by Hyperband where it ``has_rungs``, else trained to the end."""

    def search(table: Table, seed: int) -> Acts:
        from ConfigSpace import ConfigurationSpace, Integer
        from smac import HyperparameterOptimizationFacade, MultiFidelityFacade, Scenario
        from smac.main.exceptions import ConfigurationSpaceExhaustedException
        from smac.multi_objective.parego import ParEGO
        from smac.runhistory.dataclasses import TrialValue

        space = ConfigurationSpace(seed=seed)
        space.add(
            [
                Integer(slot, (0, len(choices) - 1))
                for slot, choices in zip(table.slots, table.choices, strict=True)
            ]
        )
        facade = MultiFidelityFacade if has_rungs else HyperparameterOptimizationFacade
        budgets = {"min_budget": table.rungs[0], "max_budget": table.epochs} if has_rungs else {}
        settings: dict[str, Any] = {}
        if has_rungs:  # of several incumbents, other selections find no budget in common, and fail
            settings = {"eta": table.reduction, "incumbent_selection": "highest_budget"}
        with tempfile.TemporaryDirectory() as folder:
            scenario = Scenario(
                space,
                objectives=table.metrics,
                deterministic=True,
                n_trials=_ASKED * len(table),
                seed=seed,
                output_directory=Path(folder),
                **budgets,
            )
            smac = facade(
                scenario,
                lambda config, seed=0, budget=None: 0.0,
                initial_design=facade.get_initial_design(scenario, n_configs=len(table.slots)),
                intensifier=facade.get_intensifier(scenario, **settings),
                multi_objective_algorithm=ParEGO(scenario),
                config_selector=facade.get_config_selector(scenario, retries=_RETRIES),
                logging_level=False,
                overwrite=True,
            )
            network_of = proposals(table)
            for _ in range(_ASKED * len(table)):
                try:
                    asked = smac.ask()
                except (StopIteration, ConfigurationSpaceExhaustedException):
                    return
                network = network_of([asked.config[slot] for slot in table.slots])
                epoch = round(asked.budget) if has_rungs else table.epochs
                yield network, epoch
                smac.tell(asked, TrialValue(table.figures(network, epoch)))

    return search


def qlognehvi(table: Table, seed: int) -> Acts:
    """BoTorch's, over all networks that are left, after as many random ones as it is told to."""
    import torch
    from botorch import fit_gpytorch_mll
    from botorch.acquisition.multi_objective import logei
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.models.transforms import Standardize
    from botorch.optim import optimize_acqf_discrete
    from gpytorch.mlls import SumMarginalLogLikelihood

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    pool = torch.tensor(table.points)
    worst = -torch.tensor(
        np.max([table.figures(each, table.epochs) for each in range(len(table))], axis=0)
    )
    order = np.random.default_rng(seed).permutation(len(table))
    chosen = [int(each) for each in order[: 2 * (len(table.slots) + 1)]]
    yield from ((network, table.epochs) for network in chosen)
    while len(chosen) < len(table):
        known = pool[chosen]
        figures = [table.figures(each, table.epochs) for each in chosen]
        seen = -torch.tensor(figures, dtype=pool.dtype)
        model = ModelListGP(
            *(
                SingleTaskGP(known, column[:, None], outcome_transform=Standardize(1))
                for column in seen.T
            )
        )
        fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
        gain = logei.qLogNoisyExpectedHypervolumeImprovement(
            model, worst, known, prune_baseline=True
        )
        left = [each for each in range(len(table)) if each not in chosen]
        found, _ = optimize_acqf_discrete(gain, 1, pool[left], max_batch_size=256)
        place = int((pool[left] - found[0]).abs().sum(dim=1).argmin())
        chosen.append(left[place])
        yield left[place], table.epochs


class Published(NamedTuple):
    """A searcher by its own package."""

    package: str  # with the version
    module: str
    search: Searcher


_OPTUNA = ("optuna==5.0.0", "optuna")
_SYNE_TUNE = ("syne-tune==0.16.0", "syne_tune.optimizer.schedulers.multiobjective")
_NEPS = ("neural-pipeline-search==0.17.0", "neps")
_SMAC = ("smac==2.4.1", "smac")
PUBLISHED = {
    "Optuna TPE": Published(*_OPTUNA, optuna_with("TPESampler")),
    "Optuna TPE, multivariate": Published(*_OPTUNA, optuna_with("TPESampler", multivariate=True)),
    "Optuna NSGA-II": Published(*_OPTUNA, optuna_with("NSGAIISampler")),
    "Optuna GP": Published(*_OPTUNA, optuna_with("GPSampler")),
    "Syne Tune MOASHA": Published(*_SYNE_TUNE, moasha(False)),
    "Syne Tune MOASHA, ranks mended": Published(*_SYNE_TUNE, moasha(True)),
    "NePS MO-ASHA": Published(*_NEPS, neps_with("moasha")),
    "NePS MO-Hyperband": Published(*_NEPS, neps_with("mo_hyperband")),
    "NePS PriMO": Published(*_NEPS, neps_with("primo", prior_centers={})),
    "SMAC ParEGO, Hyperband": Published(*_SMAC, parego(True)),
    "SMAC ParEGO": Published(*_SMAC, parego(False)),
    "BoTorch qLogNEHVI, pool": Published("botorch==0.18.1", "botorch", qlognehvi),
}
SEARCHERS = {
    "random": at_random,
    "cheapest, then random": cheapest_first,
    f"synchronous halving, batches of {_BATCH}": halving,
    **{name: each.search for name, each in PUBLISHED.items()},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--searchers", metavar="NAMES", help="between '; '; else all that can run")
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
    asked = options.searchers.split("; ") if options.searchers else [*SEARCHERS]
    if unknown := [name for name in asked if name not in SEARCHERS]:
        parser.error(f"no such searchers: {'; '.join(unknown)} (there are {'; '.join(SEARCHERS)})")
    missing = {name: text for name in asked if (text := lacked(name))}
    if options.searchers and missing:
        parser.error("; ".join(missing.values()))
    for name, text in missing.items():
        print(f"{name}: left out ({text})", file=sys.stderr)
    jobs = [
        (given, name, seed)
        for name in asked
        if name not in missing
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


def lacked(searcher: str) -> str | None:
    """What this environment lacks of a searcher."""
    if searcher not in PUBLISHED:
        return None
    package, _, wanted = PUBLISHED[searcher].package.partition("==")
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        return f"{package} is not installed here"
    return None if found == wanted else f"{package} is {found} here, not {wanted}"


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
    idle = 0
    published = PUBLISHED.get(name)
    if published:
        importlib.import_module(published.module)  # which is no time of a proposal
    begun = time.process_time()
    for network, epoch in SEARCHERS[name](table, seed):
        before = at.get(network, 0)
        if epoch <= before:
            idle += 1
            if idle == _IDLE:
                break
            continue
        idle = 0
        acts.append((network, epoch))
        at[network] = epoch
        epochs_left -= epoch - before
        past = table.seconds[network, before - 1] if before else 0.0
        seconds_left -= table.seconds[network, epoch - 1] - past
        if epochs_left <= 0 and seconds_left <= 0:
            break
    return {
        "table": table.name,
        "objectives": table.label,
        "searcher": name,
        "seed": seed,
        "networks": len(table),
        "acts": acts,
        "proposal_ms": round(1000 * (time.process_time() - begun) / len(acts), 2),
        "versions": dict([published.package.split("==")]) if published else {},
    }


if __name__ == "__main__":
    sys.exit(main())
