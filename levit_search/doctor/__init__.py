"""What ``levit-search doctor`` looks at: all that a search needs, tried out for real.

A check tells what it found, what would fail because of it and how to mend that. Each has a time
limit, and one that raises is a finding of its own. :mod:`levit_search.doctor.checks` lists them.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from levit_search.escaping import masked
from levit_search.latency.discovery import DeadlineError, run_with_deadlines

Status = Literal["ok", "warn", "fail"]
Group = Literal["installation", "machine", "runtimes", "targets", "data", "disk", "study"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    ``breaks`` says what goes wrong because of it, and ``mend`` what to do, as far as possible a
    command; both are empty where all is well. Without ``group`` and ``name`` it is about what its
    check is about.
    """

    group: Group | Literal[""]
    name: str
    status: Status
    found: str
    breaks: str = ""
    mend: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def ok(found: str, name: str = "") -> Finding:
    """All is well."""
    return Finding("", name, "ok", found)


def warn(found: str, breaks: str, mend: str, name: str = "") -> Finding:
    """Something may go wrong, or goes worse than it could."""
    return Finding("", name, "warn", found, breaks, mend)


def fail(found: str, breaks: str, mend: str, name: str = "") -> Finding:
    """Something does not work."""
    return Finding("", name, "fail", found, breaks, mend)


@dataclass(frozen=True)
class Check:
    """A look at one thing or at several that need the same work."""

    group: Group
    name: str
    look: Callable[[], Finding | list[Finding]]
    limit_s: float = 10.0
    """After so long it is given up."""


def examine(checks: Sequence[Check], report: Callable[[Check], None]) -> list[Finding]:
    """Carry checks out, at once, since most of them wait for something.

    Args:
        checks: in the order of what is returned.
        report: told of each one that has ended.

    Returns:
        Their findings, without passwords of addresses.
    """
    found: dict[int, list[Finding]] = {}
    for place, outcome in run_with_deadlines([(each.look, each.limit_s) for each in checks]):
        if isinstance(outcome, DeadlineError):
            outcome = fail(
                f"no answer within {checks[place].limit_s:g} s",
                "whatever needs it hangs as well, or is very slow",
                "see whether the machine or the disk is busy, then run this command again",
            )
        elif isinstance(outcome, Exception):  # whatever it is, it is news of this machine
            reason = " ".join(f"{type(outcome).__name__}: {outcome}".split())[:300]
            outcome = fail(
                f"could not be looked at ({reason})",
                "unknown; this should not happen",
                "report it with the output of this command",
            )
        found[place] = outcome if isinstance(outcome, list) else [outcome]
        report(checks[place])
    return [
        replace(
            each,
            group=each.group or check.group,
            name=each.name or check.name,
            found=masked(each.found),
            breaks=masked(each.breaks),
            mend=masked(each.mend),
        )
        for place, check in enumerate(checks)
        for each in found[place]
    ]
