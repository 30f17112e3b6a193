"""How many proposals each sampler wastes on what breaks a limit, in a space where most does.

    python benchmarks/infeasible.py --json benchmarks/infeasible.json

The default space with a limit of FLOPs that one network in five keeps. Each sampler makes a search
with a stub evaluation, for whose accuracy FLOPs are of use, so that the best networks lie at the
limit. Counted are the trials that were turned down, in the first and in the second half of all
trials but repeats. What random draws and the grid pass over without a trial is not counted, since
it costs nothing but the draw.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from overhead import SPACE, Clock, StubEngine

from levit_search.cost import cost
from levit_search.errors import InputError
from levit_search.files import write_json
from levit_search.search import search
from levit_search.space import Space
from levit_search.study import Record, Study, read_config
from levit_search.study.folder import environment

FEASIBLE = 0.2
SAMPLERS = ("tpe", "nsga2", "nsga3", "gp", "random", "grid")


class Listener(Clock):
    """The records, in the order in which they ended."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Record] = []

    def on_trial_complete(self, record: Record, *rest: object) -> None:
        super().on_trial_complete(record, *rest)
        self.records.append(record)


def limit_of(space: Space) -> int:
    """FLOPs that one network in five keeps."""
    chance, found = np.random.default_rng(0), []
    while len(found) < 2000:
        try:
            found.append(cost(space.draw(chance)).flops)
        except InputError:
            continue
    return int(np.quantile(found, FEASIBLE))


def measured(sampler: str, limit: int, trials: int, seed: int) -> dict[str, Any]:
    """Shares of infeasible trials of one search of so many evaluations."""
    changes = {
        "objectives": ["top1_percent", "flops"],
        "storage": "journal",
        "start": [],
        "limits.flops": limit,
        "search.sampler": sampler,
        "search.trials": trials,
        "search.seed": seed,
        "search.reduction": None,
    }
    config = read_config(SPACE, changes)
    listener = Listener()
    with tempfile.TemporaryDirectory() as folder:
        study = Study.create(Path(folder) / "study", config, sys.argv)
        search(study, [listener], engine=StubEngine)
    new = [record for record in listener.records if record.reused_from is None]
    over = [record.state == "pruned" for record in new]
    early, late = over[: len(over) // 2], over[len(over) // 2 :]
    return {
        "trials": len(over),
        "repeats": len(listener.records) - len(new),
        "early": float(np.mean(early)),
        "late": float(np.mean(late)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=150, help="evaluations of each sampler")
    parser.add_argument("--gp-trials", type=int, default=40, help="those of the Gaussian process")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    limit = limit_of(read_config(SPACE).space())
    print(f"limit {limit:,} FLOPs; infeasible trials in the first and the second half")
    rows = []
    for sampler in options.samplers:
        trials = options.gp_trials if sampler == "gp" else options.trials
        for seed in range(options.seeds):
            row = {"sampler": sampler, "seed": seed, **measured(sampler, limit, trials, seed)}
            rows.append(row)
            print(
                f"{sampler:8} seed {seed}: {row['trials']:4} trials, {row['repeats']:4} repeats, "
                f"{row['early']:6.1%} early, {row['late']:6.1%} late",
                flush=True,
            )
    if options.json:
        document = {"environment": environment(sys.argv), "limit_flops": limit, "rows": rows}
        write_json(options.json, document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
