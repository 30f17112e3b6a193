"""What the driver costs for each trial, beside Optuna's bare ask and tell.

    python benchmarks/overhead.py --json benchmarks/overhead.json

Studies with 100, 1 000 and 10 000 finished trials of the default space, whose evaluation is a stub
that answers at once. The next trials are run in turn by Optuna alone (ask, a suggestion for each
slot, tell, with the same sampler, storage and history) and by levit-search (proposal, decoding,
cost, limits, the trial's notes, evaluation, tell, tables), each on a copy of the same study. Times
are milliseconds a trial; what the sampler itself takes is in both.
"""

import argparse
import itertools
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from levit_search.architecture import Architecture
from levit_search.cost import cost
from levit_search.engine.interface import Event, Settled
from levit_search.errors import InputError
from levit_search.files import write_json
from levit_search.search import Callback, search
from levit_search.space import Space
from levit_search.study import Record, Study, StudyConfig, read_config
from levit_search.study.folder import environment

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "spaces" / "levit.yaml"
STORED = (100, 1_000, 10_000)
STORAGES = ("sqlite", "journal")
SAMPLERS = ("random", "tpe")
_WRITTEN = 1_000


def figures(network: Architecture) -> dict[str, float]:
    """Objectives made from the network alone."""
    found = cost(network)
    luck = int(network.id[:4], 16) / 65536
    return {"top1_percent": min(99.0, 15 * np.log10(found.flops) + 5 * luck), **found._asdict()}


class StubEngine:
    """Answers at once."""

    def __init__(self, study: Study, sample: Architecture, settled: Settled) -> None:
        prepared = {"settled_ms": {}, "device": {}, "teacher": {}}
        self._events = [Event("done", None, content=prepared)]

    def has_room(self) -> bool:
        return not self._events

    def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
        values = {"top1_percent": figures(network)["top1_percent"]}
        training = {"curve": [{"epoch": e, "val_top1_percent": 50.0 + e} for e in range(1, 8)]}
        content = {"values": values, "latency": None, "training": training, "seconds": 1.0}
        self._events.append(Event("done", trial, content=content))

    def answer(self, trial: int, goes_on: bool) -> None:
        raise AssertionError("nothing here comes to a rung")

    def verify(self, trial: int, network: Architecture) -> None:
        raise AssertionError("nothing here is predicted")

    def remeasure(self, trial: int, networks: Sequence[Architecture]) -> None:
        raise AssertionError("nothing here is measured")

    def events(self, patience_s: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def close(self) -> None: ...


class Clock(Callback):
    """When trials ended, and whether they were evaluated."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.evaluated: list[bool] = []

    def seconds(self) -> list[float]:
        """What each evaluated trial took, from the end of the one before it; others are cheaper."""
        each = np.diff(self.at)
        return [s for s, is_evaluated in zip(each, self.evaluated[1:], strict=True) if is_evaluated]

    def on_trial_complete(self, record: Record, *_: object) -> None:
        self.at.append(time.perf_counter())
        self.evaluated.append(record.state == "complete" and record.reused_from is None)


def config_of(storage: str | None, sampler: str, trials: int | None) -> StudyConfig:
    changes = {
        "objectives": ["top1_percent", "flops"],
        "storage": storage,
        "start": [],
        "search.sampler": sampler,
        "search.trials": trials,
        "search.reduction": None,
    }
    return read_config(SPACE, changes)


def filled(folder: Path, config: StudyConfig, count: int) -> Study:
    """A study with so many complete trials of random networks, as the driver writes them.

    SQLite takes its time; what goes beyond the first thousand trials are copies of them there.
    """
    study = Study.create(folder, config, sys.argv)
    space = config.space()
    storage, study_id = study.open_storage()
    chance = np.random.default_rng(0)
    written, known = 0, set()
    base = min(count, _WRITTEN) if config.storage is None else count
    while written < base:
        values = {slot.name: slot.values[chance.integers(len(slot.values))] for slot in space.slots}
        trial = _trial(space, values, known)
        if trial is not None:
            storage.create_new_trial(study_id, trial)
            written += 1
    if base < count:
        _copy_trials(folder / "study.db", base, count // base)
    return study


def _copy_trials(file: Path, base: int, times: int) -> None:
    """Repeat the trials of a new database, the parts of each with it."""
    parts = ("trial_params", "trial_values", "trial_user_attributes", "trial_system_attributes")
    with closing(sqlite3.connect(file)) as database:
        for table in ("trials", *parts):
            rows = database.execute(f"PRAGMA table_info({table})").fetchall()
            # The primary key of a part counts by itself.
            names = [row[1] for row in rows if table == "trials" or not row[5]]
            for turn in range(1, times):
                shifted = [
                    f"{name} + {turn * base}" if name in ("trial_id", "number") else name
                    for name in names
                ]
                database.execute(
                    f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(shifted)} "
                    f"FROM {table} WHERE trial_id <= {base}"
                )
        database.commit()


def _trial(space: Space, values: dict[str, Any], known: set[str]) -> Any:
    try:
        network = space.decode(values)
    except InputError:
        return None
    excess = space.limits.excess(cost(network))
    if network.id in known or any(value > 0 for value in excess.values()):
        return None
    known.add(network.id)
    found = figures(network)
    training = {"curve": [{"epoch": e, "val_top1_percent": 50.0 + e} for e in range(1, 8)]}
    evaluation = {"values": {"top1_percent": found["top1_percent"]}, "training": training}
    return create_trial(
        state=TrialState.COMPLETE,
        values=[found["top1_percent"], found["flops"]],
        params=space.encoded(values),
        distributions=space.distributions(),
        user_attrs={
            "architecture": network.model_dump(mode="json"),
            "architecture_id": network.id,
            "cost": cost(network)._asdict(),
            "evaluation": {**evaluation, "latency": None, "seconds": 1.0},
        },
        constraints={"valid": 0.0, **excess},
    )


def bare(study: Study, sampler: str, trials: int) -> list[float]:
    """Seconds of each trial of Optuna's ask and tell."""
    space = study.config.space()
    kinds: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=0, multivariate=True, constant_liar=True),
        "random": lambda: optuna.samplers.RandomSampler(seed=0),
    }
    alone = study.storage()
    alone.sampler = kinds[sampler]()
    alone.get_trials(deepcopy=False)  # read once, as the driver has by then
    seconds = []
    for _ in range(trials):
        start = time.perf_counter()
        trial = alone.ask()
        for name, distribution in space.distributions().items():
            trial._suggest(name, distribution)
        alone.tell(trial, [90.0, 1e6])
        seconds.append(time.perf_counter() - start)
    return seconds


def ours(study: Study, stored: int, trials: int) -> list[float]:
    """Seconds of each trial of the driver, from the end of one to the end of the next."""
    clock = Clock()
    study.config = config_of(study.config.storage, study.config.search.sampler, stored + trials + 1)
    search(study, [clock], engine=StubEngine)
    return clock.seconds()[:trials]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=30, help="timed at each size")
    parser.add_argument("--rounds", type=int, default=3, help="of both in turn")
    parser.add_argument("--stored", type=int, nargs="+", default=STORED)
    parser.add_argument("--storages", nargs="+", choices=STORAGES, default=STORAGES)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for stored in options.stored:
            for storage, sampler in itertools.product(options.storages, options.samplers):
                storage = None if storage == "sqlite" else storage
                base = Path(scratch) / "study"
                filled(base, config_of(storage, sampler, None), stored)
                rows.append(_row(base, storage, sampler, stored, options))
                print(as_text(rows[-1:], header=len(rows) == 1), flush=True)
                shutil.rmtree(base)
    if options.json:
        write_json(options.json, {"environment": environment(sys.argv), "rows": rows})
    return 0


def _row(
    base: Path, storage: str | None, sampler: str, stored: int, options: argparse.Namespace
) -> dict[str, Any]:
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    for round_ in range(options.rounds):
        order = ("bare", "ours") if round_ % 2 == 0 else ("ours", "bare")
        for which in order:
            folder = base.with_name(f"{base.name}-{which}")
            shutil.copytree(base, folder)
            study = Study(folder, config_of(storage, sampler, None))
            if which == "bare":
                times[which] += bare(study, sampler, options.trials)
            else:
                times[which] += ours(study, stored, options.trials)
            shutil.rmtree(folder)
    medians = {which: 1000 * float(np.median(each)) for which, each in times.items()}
    means = {which: 1000 * float(np.mean(each)) for which, each in times.items()}
    return {
        "stored": stored,
        "storage": storage or "sqlite",
        "sampler": sampler,
        "bare_ms": medians["bare"],
        "ours_ms": medians["ours"],
        "overhead_ms": medians["ours"] - medians["bare"],
        "bare_mean_ms": means["bare"],
        "ours_mean_ms": means["ours"],
        "trials": len(times["ours"]),
    }


def as_text(rows: list[dict[str, Any]], header: bool) -> str:
    head = f"{'stored':>7} {'storage':>8} {'sampler':>8} {'bare ms':>9} {'ours ms':>9}"
    head += f" {'overhead':>9} {'mean: bare':>11} {'ours':>8}"
    lines = [head] if header else []
    for row in rows:
        lines.append(
            f"{row['stored']:>7} {row['storage']:>8} {row['sampler']:>8} {row['bare_ms']:>9.1f}"
            f" {row['ours_ms']:>9.1f} {row['overhead_ms']:>+9.1f} {row['bare_mean_ms']:>11.1f}"
            f" {row['ours_mean_ms']:>8.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
