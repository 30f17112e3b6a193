"""A long search: whether its driver grows, and how soon a study of that size goes on.

    python benchmarks/longrun.py --json benchmarks/longrun.json

The driver, its worker processes and the storage are the real ones, and so is the way from a space
file to the search; only the evaluations are made up (see made_evaluations.py). One process
searches, and every hundred trials tells its resident memory after a garbage collection, its open
files, the memory of its workers and the milliseconds a trial. Then a new process goes on with the
study: from the moment at which it is started to the first network that is submitted, with the parts
of that time.

A trial is one that was evaluated; proposals over a limit and repeats come on top and are counted
beside them.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from levit_search.engine.interface import Engine, Settled
from levit_search.engine.local import LocalEngine
from levit_search.files import write_json
from levit_search.search import Callback, begin, search
from levit_search.study import Record, Study, read_config
from levit_search.study.folder import environment

IMPORTED = (time.time(), time.process_time())
ROOT = Path(__file__).parents[1]
SPACE = ROOT / "spaces" / "levit.yaml"
EVALUATOR = "made_evaluations:MadeEvaluator"
FIRST = 100  # trials after which growth counts: by then every part has been used
MOST_GROWTH_MB = 50
MOST_RESUME_S = 6
_MB = 1 << 20


class Watch(Callback):
    """Told what the driver does; tells a line of JSON each ``every`` trials."""

    def __init__(self, every: int) -> None:
        self._every, self._next, self._spent = every, 0, 0
        self._paused_s = 0.0
        self._at = time.monotonic()
        self.first_submitted: tuple[float, float] | None = None

    def on_trial_start(self, *_: object) -> None:
        if self.first_submitted is None:
            self.first_submitted = _now()
            self._at = time.monotonic()

    def on_trial_complete(self, record: Record, status: Any, left_s: float | None) -> None:
        spent = status.counts["evaluated"]
        if spent < self._next:
            return
        took_s = time.monotonic() - self._at
        gc.collect()
        told = {
            "trials": spent,
            "proposals": len(status.records),
            "rss_mb": _rss_mb("self"),
            "handles": len(list(Path("/proc/self/fd").iterdir())),
            "workers_mb": [_rss_mb(pid) for pid in _workers()],
            "ms_a_trial": 1000 * took_s / max(1, spent - self._spent),
            "load": os.getloadavg()[0],
        }
        print(json.dumps(told), flush=True)
        self._spent = spent
        self._next = (spent // self._every + 1) * self._every
        self._at = time.monotonic()


def _now() -> tuple[float, float]:
    """The time, and what this process has used of it."""
    return time.time(), time.process_time()


def _rss_mb(process: str) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MB


def _workers() -> list[str]:
    """The ids of the worker processes; the one that tracks shared memory is none."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return [pid for pid, line in lines.items() if b"resource_tracker" not in line]


def drive(options: argparse.Namespace) -> int:
    """Search, as a process of its own; a line of JSON for each sample and one at the end."""
    changes: dict[str, Any] = {
        "storage": None if options.storage == "sqlite" else options.storage,
        "search.sampler": options.sampler,
        "search.trials": options.trials,
        "engine.jobs": options.jobs,
        "train.epochs": options.epochs,
        "train.rungs": [max(1, options.epochs // 10), max(2, options.epochs // 3)],
    }
    config = read_config(SPACE, changes)
    study = begin(config, options.drive, sys.argv, None, str(SPACE))
    begun = _now()
    made: list[tuple[float, float]] = []

    def engine_of(study: Study, sample: Any, settled: Settled) -> Engine:
        made.append(_now())
        return LocalEngine(study, sample, settled, EVALUATOR)

    watch = Watch(options.every)
    summary = search(study, [watch], engine=engine_of)
    moments = {"imported": IMPORTED, "begun": begun, "read": made[0]}
    told = {"moments": moments | {"submitted": watch.first_submitted}, "states": summary.trials}
    print(json.dumps(told), flush=True)
    return 0


def driven(options: argparse.Namespace, folder: Path, trials: int) -> tuple[float, list[Any]]:
    """When a driver was started, and the lines that it told, which are shown as they come."""
    command = [sys.executable, __file__, "--drive", str(folder), "--trials", str(trials)]
    for name in ("storage", "sampler", "jobs", "epochs", "every"):
        command += [f"--{name}", str(getattr(options, name))]
    lines = []
    started = time.time()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(json.loads(line))
            if "trials" in lines[-1]:
                print(as_text(lines[-1], header=len(lines) == 1), flush=True)
    if process.returncode:
        raise SystemExit(f"the driver ended with {process.returncode}")
    return started, lines


def as_text(row: dict[str, Any], header: bool) -> str:
    head = f"{'trials':>6} {'proposals':>9} {'driver MB':>9} {'handles':>7} {'ms a trial':>10}"
    head += f" {'load':>5}  workers MB"
    workers = ", ".join(f"{mb:.0f}" for mb in row["workers_mb"])
    line = (
        f"{row['trials']:>6} {row['proposals']:>9} {row['rss_mb']:>9.1f} {row['handles']:>7} "
        f"{row['ms_a_trial']:>10.1f} {row['load']:>5.1f}  {workers}"
    )
    return f"{head}\n{line}" if header else line


def resume_of(started: float, moments: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Seconds of the parts of a start, of all of them, and how much of that the driver was at work;
    the rest is its workers' start, and other processes on the same cores."""
    order = ("imported", "begun", "read", "submitted")
    parts = {}
    before = started
    for name in order:
        parts[f"{name}_s"] = moments[name][0] - before
        before = moments[name][0]
    whole_s, cpu_s = moments["submitted"]
    return parts | {"whole_s": whole_s - started, "cpu_s": cpu_s}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--storage", choices=("sqlite", "journal"), default="sqlite")
    parser.add_argument("--sampler", default="auto", help="as search.sampler")
    parser.add_argument("--epochs", type=int, default=100, help="of each learning curve")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--every", type=int, default=100, help="trials between two samples")
    parser.add_argument("--resumes", type=int, default=3)
    parser.add_argument("--study", type=Path, help="folder to keep; not there yet")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.drive is not None:
        return drive(options)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.study or Path(scratch) / "study"
        _, lines = driven(options, folder, options.trials)
        rows = lines[:-1]
        resumes = []
        for turn in range(1, options.resumes + 1):
            started, told = driven(options, folder, options.trials + turn)
            resumes.append(resume_of(started, told[-1]["moments"]))
    first = next(row for row in rows if row["trials"] >= min(FIRST, options.trials // 2))
    growth_mb = rows[-1]["rss_mb"] - first["rss_mb"]
    more_handles = rows[-1]["handles"] - first["handles"]
    resume_s = min(each["whole_s"] for each in resumes)
    print(f"\n{lines[-1]['states']}")
    print(
        f"driver: {growth_mb:+.1f} MB from trial {first['trials']} to {rows[-1]['trials']} "
        f"(from the first {rows[-1]['rss_mb'] - rows[0]['rss_mb']:+.1f} MB; at most "
        f"{MOST_GROWTH_MB}); open files {more_handles:+}"
    )
    for each in resumes:
        print("goes on: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in each.items()))
    if options.json:
        settings = {
            name: getattr(options, name)
            for name in ("trials", "storage", "sampler", "epochs", "jobs")
        }
        result = {
            "environment": environment(sys.argv),
            "settings": settings,
            "states": lines[-1]["states"],
            "rows": rows,
            "growth_mb": growth_mb,
            "more_handles": more_handles,
            "resumes": resumes,
        }
        write_json(options.json, result)
    fits = growth_mb < MOST_GROWTH_MB and more_handles <= 0 and resume_s <= MOST_RESUME_S
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
