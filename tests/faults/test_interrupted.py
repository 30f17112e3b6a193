"""Ctrl-C, once and twice, and the end of the terminal."""

import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from levit_search.cli.terminal import Ended, Interruption, end_at_signals
from tests.faults.conftest import Account, Quoted
from tests.faults.sessions import Search, Session

Times = Callable[[int, int], int]

_GOES_ON = "Interrupted. What was finished is in …; the same command goes on."


def test_the_first_ctrl_c_finishes_the_step_and_the_next_command_goes_on(
    tmp_path: Path, times: Times, account: Account, quoted: Quoted
) -> None:
    search, chance, lost = Search(tmp_path / "interrupted"), random.Random(1), list[str]()
    count = times(5, 30)
    for _ in range(count):
        session = search.begin("--jobs", 2)
        assert session.until_ended(chance.randint(1, 4)), session.said()
        time.sleep(chance.uniform(0, 0.3))
        session.interrupt()
        assert session.wait() == 130, session.said()
        quoted(session.said(), _GOES_ON)
        for trial in _running(search):
            passed = trial.user_attrs.get("rungs", [])
            if not passed:  # it has a checkpoint where it stopped, and the decision
                lost.append(f"trial {trial.number} was not finished and passed no rung")
    assert "on to the next rung or the end" in session.said()
    quoted(session.said(), "interrupted: … on to the next rung or the end; Ctrl-C again stops now")
    search.finish("--trials", search.evaluated() + 3)
    account("ctrl-c", count, lost + search.twice() + search.left_over())


def test_ctrl_c_stays_ignored_in_what_a_script_left_behind() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGINT)
        assert not interruption.is_asked
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_that_comes_while_an_object_is_finalized_counts_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        end_at_signals()
        with Interruption():
            signal.raise_signal(signal.SIGINT)
            Finalized()
            with pytest.raises(Ended):
                time.sleep(10)
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)
    assert capfd.readouterr().err == ""


def test_ctrl_c_while_all_is_prepared_ends_at_once(tmp_path: Path, quoted: Quoted) -> None:
    search = Search(tmp_path)
    session = search.begin(LEVIT_SEARCH_PREPARES_S="60")
    assert session.until(lambda: "getting ready" in session.said())
    session.interrupt()
    assert session.wait() == 130
    quoted(session.said(), _GOES_ON)


def test_the_second_ctrl_c_stops_now(
    tmp_path: Path, times: Times, account: Account, quoted: Quoted
) -> None:
    search, count = Search(tmp_path), times(3, 20)
    for number in range(count):
        session = search.begin()
        assert session.until_ended(1 + number % 3), session.said()
        session.interrupt()
        _pass_s(session, 0.02)
        session.interrupt()
        assert session.wait() == 130, session.said()
        quoted(session.said(), _GOES_ON)
        assert "Traceback" not in session.said()
    search.finish("--trials", search.evaluated() + 3)
    account("ctrl-c-twice", count, search.twice() + search.left_over())


def test_a_closed_terminal_loses_nothing(tmp_path: Path, account: Account, quoted: Quoted) -> None:
    search = Search(tmp_path)
    session = search.begin()
    assert session.until_ended(2)
    session.send(signal.SIGHUP)
    assert session.wait() == 130, session.said()
    quoted(session.said(), _GOES_ON)
    search.finish("--trials", search.evaluated() + 3)
    account("hangup", 1, search.twice() + search.left_over())


def _running(search: Search) -> list:  # type: ignore[type-arg]
    from levit_search.study import Study

    trials = Study.open(search.folder).storage().trials
    return [trial for trial in trials if not trial.state.is_finished()]


def _pass_s(session: Session, seconds: float) -> None:
    end = time.monotonic() + seconds
    session.until(lambda: time.monotonic() > end)
