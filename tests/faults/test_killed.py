"""The driver and its workers, killed at random moments."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Account, Quoted
from tests.faults.sessions import Search

Times = Callable[[int, int], int]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_driver_ended_at_random_moments_ends_as_if_undisturbed(
    number: signal.Signals, tmp_path: Path, times: Times, account: Account, quoted: Quoted
) -> None:
    search, chance = Search(tmp_path / "killed"), random.Random(number)
    count, kills, told, lost = times(10, 60), 0, set[int](), list[str]()
    while kills < count:
        session = search.begin()
        if kills % 3 == 0:
            time.sleep(chance.uniform(0, 3))
        elif session.until_ended(chance.randint(1, 4)):
            time.sleep(chance.uniform(0, 0.4))
        session.send(number)
        code = session.wait()
        assert code in (130, -number), session.said()  # the signal may come before we listen to it
        if code == 130 and session.ended():
            quoted(
                session.said(), "Interrupted. What was finished is in …; the same command goes on."
            )
        told.update(session.ended())
        kills += 1
    total = search.evaluated() + 5
    search.finish("--trials", total)
    there = {record.trial for record in search.records()}
    lost += [f"trial {n} was told of and is gone" for n in sorted(told - there)]
    undisturbed = Search(tmp_path / "undisturbed")
    undisturbed.finish("--trials", total)
    if search.outcome() != undisturbed.outcome():
        lost.append("it did not end as if undisturbed")
    account(f"driver-{number.name}", kills, lost + search.twice() + search.left_over())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_worker_ended_at_random_moments_is_replaced_and_its_trial_goes_on(
    number: signal.Signals, tmp_path: Path, times: Times, account: Account, quoted: Quoted
) -> None:
    search, chance = Search(tmp_path / "killed"), random.Random(number)
    count, kills = times(6, 40), 0
    session = search.begin("--trials", 400)
    while kills < count:
        # A trial whose worker dies twice fails, so that another one has to end in between.
        assert session.until_ended(len(session.ended()) + 2), session.said()
        time.sleep(chance.uniform(0, 0.3))
        if workers := session.workers():
            os.kill(workers[0], number)
            kills += 1
    assert session.until_ended(len(session.ended()) + 2), session.said()
    session.interrupt()
    assert session.wait() == 130, session.said()
    quoted(session.said(), "trial … is started again: the worker process ended with …; see …")
    total = search.evaluated() + 3
    search.finish("--trials", total)
    undisturbed = Search(tmp_path / "undisturbed")
    undisturbed.finish("--trials", total)
    same = search.outcome() == undisturbed.outcome()
    lost = [] if same else ["it did not end as if undisturbed"]
    account(f"worker-{number.name}", kills, lost + search.twice() + search.left_over())
