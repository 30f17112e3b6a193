"""What all tests of faults share: how often, what was lost, and what was said."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="inject faults many more times")
    parser.addoption("--record", metavar="FILE", type=Path, help="append what was found as JSON")


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How often to inject something: in CI, and with ``--long``."""

    def choose(short: int, long: int) -> int:
        return long if request.config.getoption("--long") else short

    return choose


Account = Callable[..., None]


@pytest.fixture
def account(request: pytest.FixtureRequest) -> Account:
    """Record a fault and what it cost, and fail if it cost anything.

    Takes the key of its row in docs/reliability.md, how often it was injected, and what was lost
    (one text for each thing that was).
    """

    def enter(fault: str, times: int, lost: list[str]) -> None:
        assert f"`{fault}`" in DOCUMENT.read_text(), f"{fault}: has no row in {DOCUMENT.name}"
        path = request.config.getoption("--record")
        if path is not None:
            found = {"fault": fault, "times": times, "lost": lost}
            found["long"] = request.config.getoption("--long")
            with path.open("a") as file:  # several processes append whole lines
                file.write(json.dumps(found) + "\n")
        assert not lost

    return enter


Quoted = Callable[[str, str], str]


@pytest.fixture
def quoted() -> Quoted:
    """Make sure that an output has a message, and that docs/reliability.md quotes it.

    Takes the output and the message as the document has it, where ``…`` stands for what differs.
    Returns what was said.
    """

    def check(output: str, message: str) -> str:
        text = DOCUMENT.read_text()
        assert text.count(f"\n    {message}\n") == 1, (
            f"{DOCUMENT.name} has to quote once: {message}"
        )
        pattern = ".+?".join(map(re.escape, message.split("…")))
        flat = " ".join(output.split())
        found = re.search(pattern, flat)
        assert found is not None, f"{message!r} was not said in {output!r}"
        return found[0]

    return check


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    os.environ.pop("FAKETIME", None)


@pytest.fixture(autouse=True)
def _no_waiting_for_disks() -> None:
    """Here they are waited for."""
