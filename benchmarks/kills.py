"""Whether a search outlives its driver: SIGKILLs at random moments of one run, which then ends.

The real command searches a small space with real training, without a clock among the objectives,
and is killed again and again: at moments of its start, of a proposal, of training, at rungs, at the
end of a training and in the middle of a transaction. Each time it goes on with the same command, at
once. Prints a table of the kills and what was found in the end; ``--json`` takes all of it to a
file. Ends with exit code 1 if anything was lost, evaluated twice or left over.

    python benchmarks/kills.py --engine local --json benchmarks/kills.json
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from job_pool import say
from kill_moments import AT_FIRST, ENDED_S, LATER, Moment, Pace, Session
from stored_trials import Stored, StoredTrial, read_stored

from levit_search.study import Study

SPACE: dict[str, Any] = {
    "name": "kills",
    "data": {"name": "digits", "image_size": 16},
    "architecture": {
        "num_stages": {"choices": [1, 2]},
        "stem": {"kind": "conv", "layers": 2},
        "stages": [
            {
                "depth": {"range": [1, 2]},
                "embed_dim": {"choices": [8, 12, 16, 24, 32]},
                "num_heads": {"choices": [1, 2]},
                "key_dim": {"choices": [4, 8]},
            },
            {
                "depth": {"range": [1, 2]},
                "embed_dim": {"choices": [16, 24, 32, 48]},
                "num_heads": 2,
                "key_dim": 8,
            },
        ],
    },
    "train": {
        "epochs": 6,
        "rungs": [2, 4],
        "batch_size": 64,
        "lr": 5.0e-3,
        "threads": 1,
        "device": "cpu",
    },
    "teacher": None,
    "objectives": ["top1_percent", "flops"],
    "limits": {"params": 30000},
    "search": {"startup_trials": 8, "reduction": 2},
}


_MOST_REFUSED = 3


@dataclass
class Kill:
    """One SIGKILL: what it came upon, and what became of what was there."""

    moment: Moment
    after_s: float
    """Since the command was started."""
    finished: int
    """Trials, by the storage."""
    running: int
    rungs: int
    """That running trials have passed."""
    evaluated: int
    """Running trials whose evaluation was written; only their end was not."""
    in_transaction: bool
    epochs_again: float
    """That have to be trained once more, about."""
    lost: list[str]
    """What was told of or stored before, and is not there as it was."""
    ended_s: float | None = None
    """When the last process of this driver was gone; None: some were left after ``ENDED_S``."""
    left: list[str] = field(default_factory=list)


class Run:
    """One study, searched by one command, however often it is started.

    Args:
        folder: takes the space, the study and what is told.
        name: of the study's folder.
        engine: kind.
        jobs: of the engine.
        trials: networks to train.
        seed: of the search.
    """

    def __init__(
        self, folder: Path, name: str, engine: str, jobs: int, trials: int, seed: int
    ) -> None:
        space = folder / "space.yaml"
        space.write_text(yaml.safe_dump(SPACE, sort_keys=False))
        self.folder = folder / name
        self._log = folder / f"{name}.log"
        settings = ["--engine", engine, "--jobs", jobs, "--trials", trials, "--seed", seed]
        self._arguments = ["run", space, "--study", self.folder, *settings]
        self.trials = trials
        self.kills: list[Kill] = []
        self.refused: list[str] = []
        """Why sessions have ended by themselves before the search did."""
        self._funerals: list[threading.Thread] = []
        self.started = self.seconds = 0.0
        """Of the session that came to the end."""

    def begin(self) -> Session:
        return Session(self._arguments, self.folder, self._log)

    def finish(self) -> None:
        """Let it run to its end.

        Raises:
            SystemExit: it ended with an error.
        """
        session = self.begin()
        while session.wait() != 0:
            if not self._may_begin_again(session):
                sys.exit("it cannot go on")
            session = self.begin()
        self.started, self.seconds = session.started, time.time() - session.started
        for funeral in self._funerals:
            funeral.join()

    def kill_often(self, kills: int, pace: Pace, chance: np.random.Generator) -> None:
        """Start it and kill it, again and again."""
        stored = Stored({}, {})
        moments = list(_moments(kills, chance))
        while moments:
            moment, session = moments[0], self.begin()
            spent = sum(trial.is_evaluated for trial in stored.trials.values())
            share = (self.trials - spent) / len(moments)
            evaluations = int(chance.uniform(0, max(1.0, 2 * (share - 1))))
            if session.reach(moment, evaluations, pace, chance) and session.kill():
                stored = self._after(moment, session, stored, pace)
                moments.pop(0)
            elif not self._may_begin_again(session):
                return

    def _may_begin_again(self, session: Session) -> bool:
        """Whether a driver that has ended by itself should be started once more."""
        say(f"ended by itself: {session.last_line()}")
        if session.wait() == 0:
            return False
        self.refused.append(session.last_line())
        return len(self.refused) <= _MOST_REFUSED

    def _after(self, moment: Moment, session: Session, before: Stored, pace: Pace) -> Stored:
        killed = time.time()
        in_transaction = (self.folder / "study.db-journal").exists()
        stored = read_stored(self.folder)
        running = stored.running
        told = [stored.trials.get(number) for number in sorted(session.told())]
        lost = stored.lost_since(before)
        lost += ["a trial that was told of" for each in told if not each or not each.is_finished]
        kill = Kill(
            moment,
            round(killed - session.started, 3),
            len(stored.trials) - len(running),
            len(running),
            sum(len(trial.notes.get("rungs", ())) for trial in running),
            sum(trial.is_evaluated for trial in running),
            in_transaction,
            round(sum(self._again(each, session, killed, pace) for each in running), 1),
            lost,
        )
        self.kills.append(kill)
        self._funerals.append(threading.Thread(target=_bury, args=[session, kill, killed]))
        self._funerals[-1].start()
        say(
            f"kill {len(self.kills)} ({moment}) after {kill.after_s:.1f} s: {kill.finished} trials "
            f"finished, {kill.running} running{', LOST ' + ', '.join(lost) if lost else ''}"
        )
        return stored

    def _again(self, trial: StoredTrial, session: Session, killed: float, pace: Pace) -> float:
        """How many epochs a running trial had been trained for since its checkpoint."""
        if trial.is_evaluated:
            return 0.0
        network = trial.notes["architecture_id"]
        checkpoint = self.folder / "checkpoints" / f"{network}.training.pt"
        begun = [
            session.started + pace.prepared_s,
            datetime.fromisoformat(trial.started).timestamp(),
        ]
        if checkpoint.exists():
            begun.append(checkpoint.stat().st_mtime)
        elif checkpoint.with_name(f"{network}.safetensors").exists():
            return float(SPACE["train"]["epochs"])  # its evaluation was on its way to the driver
        epoch_s = pace.epoch_s.get(network, statistics.median(pace.epoch_s.values()))
        return max(0.0, killed - max(begun)) / epoch_s


def _moments(kills: int, chance: np.random.Generator) -> Sequence[Moment]:
    """Those of the beginning at first, then the others in turn and in any order."""
    first = AT_FIRST if kills > len(LATER) else ()
    count = kills - len(first)
    later = [LATER[number % len(LATER)] for number in range(count)]
    return [*first, *(later[place] for place in chance.permutation(count))]


def _bury(session: Session, kill: Kill, killed: float) -> None:
    """See how long a dead driver's processes live on."""
    while left := session.left():
        if time.time() - killed > ENDED_S:
            kill.left = sorted(left.values())
            return
        time.sleep(0.1)
    kill.ended_s = round(time.time() - killed, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--trials", type=int, default=40, help="networks to train")
    parser.add_argument("--seed", type=int, default=0, help="of the search and of the moments")
    parser.add_argument("--folder", type=Path, help="an empty one, to keep the studies in")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="levit-search-kills-"))
        )
        folder.mkdir(parents=True, exist_ok=True)
        found = measured(folder, options)
    print("\n".join(shown(found)))
    document = {
        "settings": {name: str(value) for name, value in vars(options).items()},
        "machine": {"cores": os.cpu_count(), "system": platform.platform()},
        **found,
    }
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    sys.exit(0 if all(found["checks"].values()) else 1)


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run undisturbed and with kills, and compare."""
    engine, jobs, trials, seed = options.engine, options.jobs, options.trials, options.seed
    reference = Run(folder, "undisturbed", "local", 1, trials, seed)
    reference.finish()
    say(f"undisturbed, local, one job: {reference.seconds:.0f} s")
    undisturbed = reference
    if (engine, jobs) != ("local", 1):
        undisturbed = Run(folder, f"undisturbed-{engine}-{jobs}", engine, jobs, trials, seed)
        undisturbed.finish()
        say(f"undisturbed, {engine}, {jobs} jobs: {undisturbed.seconds:.0f} s")
    killed = Run(folder, "killed", engine, jobs, trials, seed)
    killed.kill_often(options.kills, _pace(undisturbed), np.random.default_rng(seed))
    killed.finish()
    checks, figures = compared(killed, options.kills)
    if jobs == 1:
        weights = read_stored(reference.folder).weights
        checks["same trials as undisturbed, local"] = _final(killed) == _final(reference)
        checks["same weights as undisturbed, local"] = read_stored(killed.folder).weights == weights
        if engine == "ray":
            checks["same trials undisturbed, ray and local"] = _final(undisturbed) == _final(
                reference
            )
    return {"undisturbed_s": round(undisturbed.seconds, 1), **figures, "checks": checks}


def _pace(run: Run) -> Pace:
    trials = read_stored(run.folder).trials.values()
    found = {t.notes["architecture_id"]: t.notes["evaluation"] for t in trials if t.is_evaluated}
    trainings = {network: each["training"] for network, each in found.items()}
    first = min(datetime.fromisoformat(trial.started) for trial in trials).timestamp()
    return Pace(
        prepared_s=first - run.started,
        trial_s=statistics.median(each["seconds"] for each in found.values()),
        epoch_s={name: each["seconds"] / len(each["curve"]) for name, each in trainings.items()},
    )


def compared(run: Run, kills: int) -> tuple[dict[str, bool], dict[str, Any]]:
    """What must hold of a run that was killed as often as asked, and the figures beside it."""
    stored = read_stored(run.folder)
    evaluated = [trial.notes for trial in stored.trials.values() if trial.is_evaluated]
    # One that was paused may go on in another trial.
    times = Counter(n["architecture_id"] for n in evaluated if "resumes" not in n)
    left_over = _left_over(run.folder, stored)
    checks = {
        "killed as often as asked": len(run.kills) == kills,
        "every finished trial kept as it was": not any(kill.lost for kill in run.kills),
        "no network evaluated twice": set(times.values()) == {1},
        "as many networks as asked": len(times) == run.trials,
        "no trial left running": not stored.running,
        "gone on with at once": not run.refused,
        f"no process left after {ENDED_S:.0f} s": not any(kill.left for kill in run.kills),
        "no file left over": not left_over,
    }
    figures = {
        "trials": dict(Counter(trial.state.lower() for trial in stored.trials.values())),
        "networks": len(times),
        "epochs": sum(len(notes["evaluation"]["training"]["curve"]) for notes in evaluated),
        "epochs_again": round(sum(kill.epochs_again for kill in run.kills), 1),
        "left_over": left_over,
        "refused": run.refused,
        "kills": [asdict(kill) for kill in run.kills],
    }
    return checks, figures


def _final(run: Run) -> list[Any]:
    """All that two runs have in common, whatever the clock said."""
    return [
        (
            record.trial,
            record.architecture and record.architecture.id,
            record.state,
            record.reason,
            record.reused_from,
            record.values,
            record.rungs,
        )
        for record in Study.open(run.folder).records()
    ]


def _left_over(folder: Path, stored: Stored) -> list[str]:
    """Files that a search which was not killed would not leave."""
    wanted = {".lock", "study.yaml", "environment.json", "study.db", "trials.csv", "front.csv"}
    wanted |= {"backup.jsonl", "report.html", "survey.json"}
    wanted |= {f"checkpoints/{network}.safetensors" for network in stored.weights}
    latest = {trial.notes.get("architecture_id"): trial.state for trial in stored.trials.values()}
    paused = {network for network, state in latest.items() if state == "PRUNED"}
    wanted |= {f"checkpoints/{network}.training.pt" for network in paused}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return sorted(name for name in there - wanted if not fnmatch(name, "worker-*.log"))


def shown(found: Mapping[str, Any]) -> list[str]:
    lines = ["moment     after s  finished  running  rungs  evaluated  open  epochs again  gone s"]
    lines += [
        f"{kill['moment']:9}  {kill['after_s']:7.1f}  {kill['finished']:8}  {kill['running']:7}  "
        f"{kill['rungs']:5}  {kill['evaluated']:9}  {'x' if kill['in_transaction'] else '':4}  "
        f"{kill['epochs_again']:12.1f}  {kill['ended_s'] if kill['ended_s'] is not None else '':>6}"
        for kill in found["kills"]
    ]
    trials = ", ".join(f"{count} {state}" for state, count in found["trials"].items())
    lines.append(f"{found['networks']} networks, {found['epochs']} epochs; trials: {trials}")
    lines.append(f"epochs trained again: about {found['epochs_again']:.0f}")
    for kill in found["kills"]:
        lines += [f"lost: {what}" for what in kill["lost"]]
        lines += [f"left: {what}" for what in kill["left"]]
    lines += [f"not gone on with: {why}" for why in found["refused"]]
    lines += [f"left over: {name}" for name in found["left_over"]]
    lines += [f"{'yes' if holds else 'NO '}  {what}" for what, holds in found["checks"].items()]
    return lines


if __name__ == "__main__":
    main()
