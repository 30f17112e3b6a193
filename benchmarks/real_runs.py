"""Two revisions search the same space for the same time: what their fronts are worth on test.

    git worktree add /tmp/before e013706
    python benchmarks/real_runs.py run --before /tmp/before --minutes 100
    python benchmarks/real_runs.py report

Runs take turns, one seed after another, each by its own revision, which then trains its front with
further seeds (``audit``). The teacher is trained beforehand, by a search of one network. Fronts are
compared by the means over these seeds on the test split and by latencies relative to the reference
network, so that a machine that changes meanwhile does not count; hypervolumes are measured from
guessing and from the slowest of all networks. What has ended is a row of ``real_runs.json`` and not
done again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from job_pool import say
from short_schedule import ROOT, SPACE

from levit_search.files import write_json
from levit_search.pareto import hypervolume
from levit_search.study import Study
from levit_search.study.folder import environment

ARMS = ("before", "after")
GUESS_PERCENT = 10.0  # of ten classes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", choices=("run", "report"))
    parser.add_argument("--before", type=Path, help="a checkout of the earlier revision")
    parser.add_argument("--space", type=Path, default=SPACE)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--time", default="20m")
    parser.add_argument("--jobs", default="2")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after that time")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    rows = json.loads(options.json.read_text())["runs"] if options.json.exists() else []
    if options.mode == "run":
        if options.before is None:
            parser.error("run needs --before")
        trees = dict(zip(ARMS, (options.before.absolute(), ROOT), strict=True))
        end = time.monotonic() + 60 * options.minutes
        for seed in range(options.seeds):
            for arm in ARMS if seed % 2 == 0 else ARMS[::-1]:
                is_done = any((row["arm"], row["seed"]) == (arm, seed) for row in rows)
                if not is_done and time.monotonic() < end:
                    rows.append(searched(trees[arm], options, arm, seed))
                    write_json(options.json, {"runs": rows})
    print(as_markdown(rows))
    return 0


def searched(tree: Path, options: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    """Search and train the front again by the code of a tree; returns the row."""
    found = subprocess.run(
        ["git", "-C", tree, "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    revision = found.stdout.strip()

    def command(*words: object) -> None:
        say(f"{arm} ({revision}), seed {seed}: {' '.join(map(str, words))}")
        done = subprocess.run(
            [sys.executable, "-m", "levit_search", *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd=tree,
        )
        if done.returncode:
            raise SystemExit(f"{arm}, seed {seed}: ended with {done.returncode}")

    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study"
        jobs = ["--jobs", options.jobs]
        command("run", options.space, "--study", Path(folder) / "teacher", "--trials", 1, *jobs)
        words = ["--study", study, "--time", options.time, "--seed", seed]
        command("run", options.space, *words, *jobs)
        command("audit", study, *jobs)
        run = {"arm": arm, "seed": seed, "revision": revision, "time": options.time}
        return {**run, **row_of(Study.open(study)), "environment": environment(sys.argv)}


def row_of(study: Study) -> dict[str, Any]:
    """What a search came to, and the front as it is on test."""
    audit = json.loads((study.folder / "audit.json").read_text())
    (settled_ms,) = study.attributes()["settled_ms"].values()
    records = study.records()
    return {
        "trials": len(records),
        "trained_to_the_end": sum(record.is_evaluated for record in records),
        "front": [
            {
                "id": row["id"],
                "test_percent": row["test"]["mean"],
                "latency_ratio": row["values"]["latency_ms"] / settled_ms,
            }
            for row in audit["front"]
        ],
    }


def hypervolumes(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of each run's front."""
    slowest = max(each["latency_ratio"] for row in rows for each in row["front"])
    reference = np.array([1 - GUESS_PERCENT / 100, np.log10(slowest)])
    fronts = [
        [(1 - each["test_percent"] / 100, np.log10(each["latency_ratio"])) for each in row["front"]]
        for row in rows
    ]
    return [hypervolume(np.array(front), reference) for front in fronts]


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The runs, and how much more the later revision's fronts are worth, seed by seed."""
    lines = [
        "| | seed | revision | trials | to the end | front | hypervolume on test | best on test |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    by_run: dict[tuple[str, int], float] = {}
    for row, worth in zip(rows, hypervolumes(rows) if rows else (), strict=True):
        by_run[row["arm"], row["seed"]] = worth
        best = max(each["test_percent"] for each in row["front"])
        lines.append(
            f"| {row['arm']} | {row['seed']} | {row['revision']} | {row['trials']} | "
            f"{row['trained_to_the_end']} | {len(row['front'])} | {worth:.4f} | {best:.2f} % |"
        )
    apart = {
        seed: 100 * (worth / by_run["before", seed] - 1)
        for (arm, seed), worth in by_run.items()
        if arm == "after" and ("before", seed) in by_run
    }
    if apart:
        told = ", ".join(f"{percent:+.1f}" for percent in apart.values())
        lines += ["", f"After over before, by seed: {told} %."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
