"""Probes that hang, crash, lie or take their time."""

import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from levit_search import architecture
from levit_search.architecture import Architecture
from levit_search.errors import TrialError
from levit_search.latency import LatencyConfig, Probe, channel
from levit_search.latency.cache import Cache
from levit_search.latency.process_pipe import ProcessPipe
from levit_search.latency.protocol import Measurement
from levit_search.study import Study
from tests.conftest import Cli
from tests.faults.conftest import Account, Quoted
from tests.networks import tiny_description

WORKER = Path(__file__).with_name("misbehaving.py")
QUICK: dict[str, Any] = {
    "seconds": 0.02,
    "rounds": 1,
    "reference": tiny_description(),
    "patience_s": 60,
}

# A mood of the worker, and what is said of it.
CRASHES = {
    "die": "the worker ended with SIGSEGV (no message)",
    "half a line, then die": "the worker ended with SIGKILL (out of memory?) (no message)",
    "exit": "the worker ended with exit code 3 (no luck)",
}
LIES = {
    "long line": "not an answer (…)",
    "drown": "not an answer: a line of over 64 MiB",
    "chatter": "not an answer: 'hello' (nothing else may print there)",
    "not UTF-8": "not an answer: '…' (nothing else may print there)",
    "deep": "not an answer: '…' (nothing else may print there)",
    "list": "not an answer: '…' (nothing else may print there)",
    "no event": "not an answer: '…' (nothing else may print there)",
    "event of another kind": "not an answer: '…' (nothing else may print there)",
    "nothing but an event": "not an answer (…)",
    "error without a message": "None",
    "error of many lines": "a b a b …",
    "answer of another job": "not an answer (it is that to another job)",
    "one network fewer": "not an answer (a turn is not that of 2 networks)",
    "no rounds": "not an answer (…)",
    **{
        f"{clock}={value}": f"not an answer (a run took {shown} ms)"
        for clock, value, shown in (
            ("cpu", "NaN", "nan"),
            ("cpu", "-1", "-1"),
            ("cpu", "0", "0"),
            ("cpu", "Infinity", "inf"),
            ("wall", "1e30", "1e+30"),
            ("single", '"3"', "'3'"),
            ("cpu", "true", "True"),
            ("wall", "null", "None"),
            ("cpu", "[1]", "[1]"),
        )
    },
    "batch_sizes=[1]": "not an answer (not the batch sizes of 2 networks)",
    "batch_sizes=[1, 0]": "not an answer (not the batch sizes of 2 networks)",
    "notes=[1, 2]": "not an answer (not the notes on 2 networks)",
    "timing_s=0": "not an answer (measured for 0 s, and 0.02 s were asked for)",
    "timing_s=NaN": "not an answer (timing_s is nan)",
    "prepare_s=-3": "not an answer (prepare_s is -3)",
    'event="peak"': "not an answer ('peak' instead of a round)",
    'event="logits"': "not an answer ('logits' instead of a round)",
}
PEAKS = {
    "bytes=-5": "not an answer (a peak of -5 bytes)",
    "bytes=NaN": "not an answer (a peak of nan bytes)",
    "bytes=1e30": "not an answer (a peak of 1e+30 bytes)",
    'bytes="1"': "not an answer (a peak of '1' bytes)",
}
FIRST = {
    "device=[]": "not an answer (it tells nothing of its device)",
    'device={"runtimes": [1]}': "not an answer (it tells nothing of its runtimes)",
    'device={"runtimes": {"onnxruntime": 1}}': "not an answer (it tells nothing of its runtimes)",
    'device={"runtimes": {}, "machine": 3}': "not an answer (its machine is no text)",
    "protocol=1": "its worker speaks protocol 1, not 3",
    "protocol=[]": "its worker speaks protocol [], not 3",
    "no event": "not an answer: '{}' (nothing else may print there)",
    "die": "the worker ended with SIGSEGV (no message)",
}
MOST_S = 30.0  # of one fault, on a busy machine
MOST_GROWTH = 250 << 20  # of this process; a line that is read to its limit takes twice its length


def wide(number: int) -> Architecture:
    """Another network for each number."""
    return architecture.parse(tiny_description(drop_path=round(number / 1000, 3)))


class Misbehaving:
    """A probe whose worker follows a plan."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.plan = folder / "plan.txt"
        self.plan.write_text("sound")
        python = [sys.executable, str(WORKER), str(self.plan)]
        target = {"kind": "command", "python": python}
        self.config = LatencyConfig.model_validate({**QUICK, "target": target, **changes})
        self.probe = Probe(self.config, cache=Cache(folder / "samples"))
        self._number = 0

    def measured(self, *moods: str) -> Measurement | TrialError:
        """What becomes of the next network while the worker has these moods in turn."""
        self._number += 1
        self.plan.write_text("\n".join([*moods, "sound"]))
        (found,) = self.probe.measure_all([wide(self._number)])
        return found

    def complaint(self, moods: list[str], told: str) -> list[str]:
        """What is wrong with how such a worker is dealt with."""
        begun, before = time.monotonic(), _peak()
        found = self.measured(*moods)
        wrong = []
        if not isinstance(found, TrialError):
            return [f"{moods[-1]}: believed: {found.latency_ms} ms"]
        text = str(found)
        if "\n" in text or len(text) > 600 or not _says(text, told):
            wrong.append(f"{moods[-1]}: said {text!r}")
        if time.monotonic() - begun > MOST_S:
            wrong.append(f"{moods[-1]}: took {time.monotonic() - begun:.0f} s")
        if _peak() - before > MOST_GROWTH:
            wrong.append(f"{moods[-1]}: took {(_peak() - before) >> 20} MiB")
        return wrong


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _says(text: str, told: str) -> bool:
    pattern = ".+".join(map(re.escape, told.split("…")))
    return re.fullmatch(f"probe on command \\S+: {pattern}", text) is not None


@pytest.fixture
def misbehaving(tmp_path: Path) -> Any:
    made = []

    def make(**changes: Any) -> Misbehaving:
        made.append(Misbehaving(tmp_path, **changes))
        return made[-1]

    yield make
    for each in made:
        each.probe.__exit__(None, None, None)


def test_a_probe_that_lies_is_not_believed_and_replaced(
    misbehaving: Callable[..., Misbehaving],
    quoted: Quoted,
    account: Account,
) -> None:
    worker, lost = misbehaving(), []
    assert isinstance(worker.measured("sound", "sound"), Measurement)
    jobs = [(["sound", lie], told) for lie, told in LIES.items()]
    jobs += [([lie], told) for lie, told in PEAKS.items()]
    for moods, told in jobs:
        lost += worker.complaint(moods, told)
    if not isinstance(worker.measured("sound", "sound"), Measurement):
        lost.append("the next network is not measured")
    kept = {path.name.partition("-")[0] for path in (worker.plan.parent / "samples").iterdir()}
    if len(kept) != 2:
        lost.append("a lie is in the cache")
    twice = worker.measured("sound", "sound", "answer twice")  # its last job
    after = worker.measured("sound")
    assert isinstance(twice, Measurement) and isinstance(after, TrialError)
    said = [worker.measured("sound", mood) for mood in ("cpu=NaN", "list")]
    quoted(str(said[0]), "probe on …: not an answer (…)")
    quoted(str(said[1]), "probe on …: not an answer: … (nothing else may print there)")
    account("probe-lies", len(jobs) + 1, lost)


def test_a_probe_that_lies_at_first_is_refused(
    misbehaving: Callable[..., Misbehaving], account: Account
) -> None:
    worker, lost = misbehaving(), []
    worker.plan.with_suffix(".ready").touch()  # its first message follows the plan, too
    for lie, told in FIRST.items():
        lost += worker.complaint([lie], told)
    assert isinstance(worker.measured("sound", "sound", "sound"), Measurement)
    account("probe-lies", len(FIRST), lost)


def test_a_probe_that_hangs_is_stopped_in_time(
    misbehaving: Callable[..., Misbehaving], quoted: Quoted, account: Account
) -> None:
    lost: list[str] = []
    worker = misbehaving(patience_s=2.0)
    told = "no answer for 2 s, stopped"
    hangs = [["hang"], ["sound", "hang"], ["sound", "half a line, then hang"]]
    for moods in hangs:
        lost += worker.complaint(moods, told)
    quoted(str(worker.measured("hang")), "probe on …: no answer for … s, stopped")
    worker.plan.with_suffix(".ready").touch()
    lost += worker.complaint(["hang"], told)
    assert isinstance(worker.measured("sound", "sound", "sound"), Measurement)
    account("probe-hangs", len(hangs) + 2, lost)


def test_a_slow_probe_is_waited_for(
    misbehaving: Callable[..., Misbehaving], account: Account
) -> None:
    worker = misbehaving()
    lost = [
        f"slow answer {number}: {found}"
        for number in range(5)
        if isinstance(found := worker.measured("slow", "slow"), TrialError)
    ]
    account("probe-slow", 5, lost)


def test_a_host_that_is_never_free_is_given_up(
    misbehaving: Callable[..., Misbehaving],
    monkeypatch: pytest.MonkeyPatch,
    quoted: Quoted,
    account: Account,
) -> None:
    worker = misbehaving(patience_s=1.0)
    assert isinstance(worker.measured("sound", "sound"), Measurement)
    monkeypatch.setattr(channel, "_LONGEST_WAIT_S", 1.0)
    worker.plan.write_text("\n".join(['event="waiting"'] * 3))
    (found,) = worker.probe.measure_all([wide(100)])
    quoted(str(found), "probe on …: no answer for … s, stopped")
    account("probe-hangs", 1, [])


def test_a_probe_that_crashes_fails_its_network_alone(
    misbehaving: Callable[..., Misbehaving],
    quoted: Quoted,
    times: Callable[[int, int], int],
    account: Account,
) -> None:
    worker, lost = misbehaving(), []
    worker.measured("sound", "sound")  # imports take memory
    for mood, told in CRASHES.items():
        for moods in ([mood], ["sound", mood]):
            lost += worker.complaint(moods, told)
        quoted(str(worker.measured(mood)), "probe on …: the worker ended with … (…)")
    count, chance = times(12, 200), np.random.default_rng(0)
    measured = failed = 0
    for number in range(count):
        kind = signal.SIGKILL if number % 2 else signal.SIGTERM
        worker.probe.connect()
        pipe = worker.probe._channel._pipe  # type: ignore[union-attr]
        assert isinstance(pipe, ProcessPipe)
        timer = threading.Timer(chance.uniform(0, 0.4), os.kill, (pipe._process.pid, kind))
        timer.start()
        found = worker.measured("slow")  # of its 0.3 s at work many a kill hits some
        timer.cancel()
        timer.join()
        measured += isinstance(found, Measurement)
        failed += isinstance(found, TrialError)
        if isinstance(found, TrialError) and kind.name not in str(found):
            lost.append(f"{kind.name}: said {found}")
    assert failed > 0, "some were hit"
    if not isinstance(worker.measured("sound", "sound"), Measurement):
        lost.append("the next network is not measured")
    account("probe-crashes", 3 * len(CRASHES) + count, lost)


def test_a_search_goes_on_with_the_next_candidate(
    cli_process: Cli,
    space_file: Callable[..., Path],
    tmp_path: Path,
    account: Account,
) -> None:
    plan = tmp_path / "plan.txt"
    faults = ["die", "cpu=NaN", "hang", "drown", "exit"]
    # The reference, the costliest network and a first one: memory and two rounds of each.
    moods = ["sound"] * 9
    for fault in faults:
        moods += ["sound", fault]
    plan.write_text("\n".join([*moods, "sound"]))
    target = {"kind": "command", "python": [sys.executable, str(WORKER), str(plan)]}
    named = tmp_path / "config" / "levit-search" / "targets.yaml"
    named.parent.mkdir(parents=True)
    named.write_text(yaml.safe_dump({"mine": {"target": target}}))
    space_file(
        objectives=["latency_ms", "flops"],
        latency={**QUICK, "target": "mine", "patience_s": 5},
        search={"trials": 8, "sampler": "random"},
    )
    done = cli_process("run", "tiny.yaml", "--study", "s")
    assert done.returncode == 0, done.stderr
    records = [each for each in Study.open(tmp_path / "s").records() if each.reused_from is None]
    reasons = [each.reason or "" for each in records if each.state == "failed"]
    expected = ("SIGSEGV", "took nan ms", "no answer for 5 s", "over 64 MiB", "exit code 3")
    lost = [f"{text!r} is no reason" for text in expected if not any(text in r for r in reasons)]
    if len(reasons) != len(faults):
        lost.append(f"{len(reasons)} trials failed by {len(faults)} faults: {reasons}")
    account("probe-search", len(faults), lost)
