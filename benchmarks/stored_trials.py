"""What a study's folder holds, read without touching it, and what is gone of what it held."""

import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StoredTrial:
    """One trial of Optuna's SQLite storage."""

    number: int
    state: str
    started: str
    notes: dict[str, Any]
    """Its user attributes."""
    rows: tuple[Any, ...]
    """All that is stored of it, as it is stored."""

    @property
    def is_finished(self) -> bool:
        return self.state not in ("RUNNING", "WAITING")

    @property
    def is_evaluated(self) -> bool:
        """Whether its network was trained for it."""
        return "evaluation" in self.notes and "reused_from" not in self.notes


@dataclass(frozen=True)
class Stored:
    """A study at one moment."""

    trials: Mapping[int, StoredTrial]
    weights: Mapping[str, str]
    """Digests of the weights of networks that are complete, by id."""

    @property
    def running(self) -> list[StoredTrial]:
        return [trial for trial in self.trials.values() if not trial.is_finished]

    def lost_since(self, before: "Stored") -> list[str]:
        """What was finished before, and is not there as it was."""
        lost = []
        for number, trial in before.trials.items():
            if trial.is_finished and self.trials.get(number) != trial:
                lost.append(f"trial {number} is {'changed' if number in self.trials else 'gone'}")
        for network, digest in before.weights.items():
            if self.weights.get(network) != digest:
                lost.append(f"the weights of {network}")
        return lost


def read_stored(folder: Path) -> Stored:
    """The trials of the study in ``folder``.

    A copy is read, since whoever opens a database rolls back what a kill left unfinished, which is
    the next driver's to do.
    """
    trials: dict[int, StoredTrial] = {}
    with tempfile.TemporaryDirectory() as copy:
        for path in folder.glob("study.db*"):
            shutil.copyfile(path, Path(copy) / path.name)
        with closing(sqlite3.connect(Path(copy) / "study.db")) as database:
            names = [
                name
                for (name,) in database.execute(
                    "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c "
                    "WHERE m.type = 'table' AND c.name = 'trial_id' ORDER BY m.name"
                )
            ]
            rows: dict[int, list[Any]] = {}
            for name in names:
                for row in database.execute(f"SELECT trial_id, * FROM {name} ORDER BY 2"):
                    rows.setdefault(row[0], []).append((name, *row[1:]))
    for each in rows.values():
        (_, _, number, _, state, started, _), *_ = [row for row in each if row[0] == "trials"]
        notes = {row[3]: json.loads(row[4]) for row in each if row[0] == "trial_user_attributes"}
        trials[number] = StoredTrial(number, state, started, notes, tuple(each))
    weights = {}
    for trial in trials.values():
        if trial.state == "COMPLETE" and trial.is_evaluated:
            network = trial.notes["architecture_id"]
            path = folder / "checkpoints" / f"{network}.safetensors"
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"
            weights[network] = digest
    return Stored(trials, weights)
