"""How much front each epoch of training buys: recorded trainings replayed by several searchers.

    python benchmarks/search_quality.py                      # what is missing of ours, then report
    python benchmarks/search_quality.py run --jobs 2
    python benchmarks/search_quality.py export --table sampled --objectives flops > table.json
    python benchmarks/search_quality.py report

``run`` replays levit-search's own driver, storage and rungs over the tables of ``replay.py``, so
that every proposal has its answer and a search takes seconds; the older ways of the same driver
stand beside it. Published searchers run by their own packages, in an environment of their own, by
``peers.py`` over what ``export`` writes; so do the simple baselines. Each run is a line of
``*.jsonl`` in the folder: the networks, and the epoch that each was trained to, in their order. No
epoch of a network is paid twice. What is there is not run again.

``report`` says what fronts are worth along the way: their hypervolume as the search itself states
it (docs/search.md#hypervolume), from the worst of the table in each objective, as a share of that
of all networks, by epochs and by seconds.
The whole budget is what half of the networks take that are trained to the end.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from job_pool import Progress
from replay import (
    RUNGS,
    SAMPLED,
    ReplayEngine,
    Table,
    reference_figures,
    sampled_table,
    several_seeds,
    short_schedule_table,
    table_config,
)
from search_quality_shown import as_markdown, document_of, draw
from short_schedule import ROOT

from levit_search.errors import LevitSearchError
from levit_search.files import write_atomically, write_json
from levit_search.pareto import Objective, minimised
from levit_search.search import search
from levit_search.study import Study
from levit_search.study.folder import environment

FOLDER = ROOT / "studies" / "search"
TABLES = {
    "short-schedule": short_schedule_table,
    "sampled": sampled_table,
    "two seeds": several_seeds,
}
OBJECTIVES: dict[str, tuple[Objective, ...]] = {
    "flops": ("top1_percent", "flops"),
    "latency": ("top1_percent", "latency_ms"),
    "int8": ("top1_percent", "top1_int8_percent", "latency_int8_ms"),
}
OURS: dict[str, dict[str, Any]] = {
    "levit-search": {},
    "levit-search, TPE and halving": {"sampler": "tpe"},
    "levit-search, no rungs": {"reduction": None},
}
SEEDS = 30
_FIRST = "short-schedule"
_NO_END = 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", nargs="?", choices=("run", "export", "report"))
    parser.add_argument("--table", choices=TABLES, help="to export, or the only one to run")
    parser.add_argument("--objectives", choices=OBJECTIVES, default="flops", help="to export")
    parser.add_argument("--only", action="append", default=[], metavar="SEARCHER")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        if options.mode == "export":
            chosen = TABLES[options.table or "sampled"]()
            print(json.dumps(exported(chosen, options.objectives)))
            return 0
        if options.mode in (None, "run"):
            run(options)
        if options.mode in (None, "report"):
            document = document_of(options.folder, settings())
            write_json(options.folder / "results.json", document)
            write_atomically(options.folder / "table.md", as_markdown(document))
            for name, content in draw(document).items():
                write_atomically(options.folder / name, content)
            print(json.dumps(document, indent=2) if options.json else as_markdown(document))
        return 0
    except LevitSearchError as error:
        print(f"search_quality.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # what has ended is kept
        return 130


@cache
def tables() -> dict[str, Table]:
    """Those that were recorded."""
    is_sampled = (SAMPLED / "trainings.csv").exists()
    return {name: make() for name, make in TABLES.items() if name == _FIRST or is_sampled}


def settings() -> dict[tuple[str, str], dict[str, Any]]:
    """By table and objectives, what there is to search, as :func:`exported` has it."""
    found = {}
    for name, table in tables().items():
        for label, objectives in OBJECTIVES.items():
            known = {"top1_percent", *next(iter(table.figures.values()))}
            if known >= {*objectives} and (name != "two seeds" or label == "flops"):
                found[name, label] = exported(table, label)
    return found


def exported(table: Table, label: str) -> dict[str, Any]:
    """A table for those who know nothing of this package; see ``peers.py``."""
    objectives = OBJECTIVES[label]
    names = list(table.networks)
    rows = [table.judged(name) for name in names]
    reference = reference_figures(table, objectives)
    slots = {slot: sorted({each[slot] for each in table.values.values()}) for slot in table.slots}
    return {
        "name": f"{table.name}, {label}",
        "epochs": table.epochs,
        "rungs": RUNGS,
        "reduction": 3,
        "slots": slots,
        "networks": names,
        "values": [
            [choices.index(table.values[name][slot]) for slot, choices in slots.items()]
            for name in names
        ],
        "objectives": objectives,
        "accuracy": [table.curves[name] for name in names],
        "costs": {name: [table.figures[each][name] for each in names] for name in objectives[1:]},
        "seconds": [table.seconds[name] for name in names],
        "reference": minimised([reference], objectives)[0].tolist(),
        "points": minimised(rows, objectives).tolist(),
    }


def run(options: argparse.Namespace) -> None:
    """Replay what the folder lacks of our own."""
    file = options.folder / "ours.jsonl"
    done = {_key(row) for row in read_lines(file)}
    jobs = [
        (table, label, searcher, seed)
        for seed in range(options.seeds)
        for table, label in settings()
        for searcher in OURS
        if options.table in (None, table) and (not options.only or searcher in options.only)
    ]
    sizes = {name: len(table.networks) for name, table in tables().items()}
    missing = [job for job in jobs if (*job, sizes[job[0]]) not in done]
    progress = Progress(len(jobs) - len(missing), len(jobs))
    here = environment([Path(sys.argv[0]).name, *sys.argv[1:]])
    made = {name: here[name] for name in ("started", "cpu", "revision", "packages")}
    options.folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.jobs) as pool:
        for job, found in zip(missing, pool.map(replayed, missing), strict=True):
            table, label, searcher, seed = job
            row = {"table": table, "objectives": label, "searcher": searcher, "seed": seed}
            with file.open("a") as text:
                text.write(json.dumps({**row, **found, "made": made}) + "\n")
            progress.step(f"{', '.join(map(str, job))}: {len(found['acts'])} acts")


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("table", "objectives", "searcher", "seed", "networks")
    return tuple(row[name] for name in names)


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """What a file of lines has; nothing where it does not exist."""
    if file.exists():
        yield from map(json.loads, file.read_text().splitlines())


def replayed(job: tuple[str, str, str, int]) -> dict[str, Any]:
    """levit-search's driver until the budget is spent, both by epochs and by seconds, or nothing is
    left to train."""
    name, label, searcher, seed = job
    acts, spent_s = replay(tables()[name], OBJECTIVES[label], seed, OURS[searcher])
    place = {each: index for index, each in enumerate(tables()[name].networks)}
    return {
        "networks": len(place),
        "acts": [[place[network], epoch] for network, epoch in acts],
        "proposal_ms": round(1000 * spent_s / len(acts), 2),
    }


def replay(
    table: Table,
    objectives: Sequence[Objective],
    seed: int,
    changes: Mapping[str, Any],
    most: float | None = None,
) -> tuple[list[tuple[str, int]], float]:
    """Networks and the epochs that they are trained to, in their order, and processor seconds.

    Args:
        table: what answers.
        objectives: of the search.
        seed: of the search.
        changes: of its section.
        most: epochs; None for the whole budget, by epochs and by seconds.
    """
    # Time is no bound of a replay, nor is a number of networks: it is stopped from outside.
    given = {"seed": seed, "trials": None, "time_s": _NO_END, **changes}
    config = table_config(table, given, objectives)
    whole = len(table.networks) // 2 * table.epochs if most is None else most
    whole_s = sum(each[-1] for each in table.seconds.values()) / 2 if most is None else 0.0
    engines: list[ReplayEngine] = []

    def engine(study: Study, *_: object) -> ReplayEngine:
        engines.append(ReplayEngine(table, study))
        return engines[0]

    def is_enough() -> bool:
        return bool(engines) and engines[0].epochs >= whole and engines[0].seconds >= whole_s

    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        study = Study.create(Path(folder) / "study", config, sys.argv)
        study.config = config
        search(study, engine=engine, is_asked_to_stop=is_enough)
    return engines[0].acts, time.process_time() - begun


if __name__ == "__main__":
    sys.exit(main())
