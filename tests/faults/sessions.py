"""Searches with pretended training, each command of which is a process that a test may harm."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

from levit_search.study import Record, Study
from tests.conftest import ROOT
from tests.faults.stub_search import EPOCHS, RUNGS
from tests.networks import tiny_space

_PATIENCE_S = 120.0
_ENDED = re.compile(r"^\[[\d:]+\] trial (\d+)(?::| stopped| infeasible|.*failed)", re.MULTILINE)
_RESTARTED = re.compile(r"trial (\d+) is started again")


class Search:
    """A study, and the command that searches it again and again.

    Args:
        folder: takes the space, the study and what is told.
        sections: of the space file, in the place of the usual ones.
    """

    def __init__(self, folder: Path, **sections: object) -> None:
        folder.mkdir(exist_ok=True, parents=True)
        self.folder, self._space, self._log = (
            folder / "study",
            folder / "space.yaml",
            folder / "log",
        )
        train = {"epochs": EPOCHS, "rungs": list(RUNGS), "device": "cpu", "threads": 1}
        search = {"trials": 200, "sampler": "tpe", "startup_trials": 6}
        stage = {"depth": {"range": [1, 3]}, "num_heads": {"choices": [1, 2]}, "key_dim": 8}
        sizes = [{"choices": list(range(8, 8 * n, 8))} for n in (6, 9)]
        stages = [{**stage, "embed_dim": size} for size in sizes]
        space = tiny_space(train=train, search=search, **{"storage": None, **sections})
        space["architecture"] = {**space["architecture"], "stages": stages}  # type: ignore[dict-item]
        self._space.write_text(yaml.safe_dump(space))

    def begin(self, *arguments: object, **environment: str) -> "Session":
        told = ["run", self._space, "--study", self.folder, *arguments]
        return Session([*map(str, told)], self._log, environment)

    def finish(self, *arguments: object) -> "Session":
        """Run it to its end, which has to be a good one."""
        session = self.begin(*arguments)
        assert session.wait() == 0, session.said()
        return session

    def records(self) -> list[Record]:
        return Study.open(self.folder).records()

    def evaluated(self) -> int:
        return sum(
            record.reused_from is None and bool(record.evaluation) for record in self.records()
        )

    def twice(self) -> list[str]:
        """Networks that were evaluated more than once."""
        found = Counter(
            record.architecture.id
            for record in self.records()
            if record.evaluation and record.reused_from is None and record.architecture
        )
        return [f"{network} was evaluated twice" for network, times in found.items() if times > 1]

    def left_over(self) -> list[str]:
        """What a search that was left alone would not leave: temporary files and checkpoints."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        strays = [p for p in files if p.name.startswith(".") and p.name != ".lock"]
        strays += [p for p in files if p.name.endswith(".training.pt")]
        running = [
            t.number for t in Study.open(self.folder).storage().trials if not t.state.is_finished()
        ]
        return [f"{path.name} is left" for path in strays] + [f"trial {n} is open" for n in running]

    def outcome(self) -> list[object]:
        """All of it that does not depend on a clock."""
        return [
            (r.trial, r.architecture and r.architecture.id, r.state, r.reason, r.values, r.rungs)
            for r in self.records()
        ]


class Session:
    """One process of a command."""

    def __init__(self, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with log.open("w") as lines:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.stub_search", *arguments],
                stdout=lines,
                stderr=lines,
                cwd=ROOT,
                env={**os.environ, **environment},
                start_new_session=True,  # a Ctrl-C is for it alone
            )

    def said(self) -> str:
        return self._log.read_text()

    def ended(self) -> list[int]:
        """The trials of which was told that they have ended."""
        return [int(number) for number in _ENDED.findall(self.said())]

    def restarted(self) -> list[int]:
        """The trials of which was told that they are started again."""
        return [int(number) for number in _RESTARTED.findall(self.said())]

    def until(self, condition: Callable[[], object]) -> bool:
        """Wait for something; returns False where the process ended before."""
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.005)
        return True

    def until_ended(self, trials: int) -> bool:
        """Wait until so many trials have ended in this session."""
        return self.until(lambda: len(self.ended()) >= trials)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def interrupt(self) -> None:
        """Ctrl-C reaches every process of a terminal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> int:
        return self.process.wait(_PATIENCE_S)

    def workers(self) -> list[int]:
        """The process numbers of its workers."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    not entry.name.isdigit()
                    or b"spawn_main" not in (entry / "cmdline").read_bytes()
                ):
                    continue
                parent = (entry / "stat").read_text().rpartition(") ")[2].split()[1]
            except OSError:  # it has ended
                continue
            if int(parent) == self.process.pid:
                found.append(int(entry.name))
        return found
