"""What a check tells."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]
Group = Literal["installation", "machine", "runtimes", "targets", "data", "disk", "study"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    ``breaks`` says what goes wrong because of it, and ``mend`` what to do, as far as possible a
    command; both are empty where all is well.
    """

    group: Group
    name: str
    status: Status
    found: str
    breaks: str = ""
    mend: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """A look at one thing or at several that need the same work."""

    group: Group
    name: str
    look: Callable[[], list[Finding]]
    limit_s: float = 10.0
    """After so long it is given up."""


def ok(group: Group, name: str, found: str) -> Finding:
    """All is well."""
    return Finding(group, name, "ok", found)


def warn(group: Group, name: str, found: str, breaks: str, mend: str) -> Finding:
    """Something may go wrong, or goes worse than it could."""
    return Finding(group, name, "warn", found, breaks, mend)


def fail(group: Group, name: str, found: str, breaks: str, mend: str) -> Finding:
    """Something does not work."""
    return Finding(group, name, "fail", found, breaks, mend)
