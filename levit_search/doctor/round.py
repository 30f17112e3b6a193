"""All checks at once, each within its time."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from levit_search.doctor.finding import Check, Finding, fail
from levit_search.study.storage import masked


def examine(checks: Sequence[Check], report: Callable[[Check], None]) -> list[Finding]:
    """Carry checks out, at once, since most of them wait for something.

    Args:
        checks: in the order of what is returned.
        report: told of each one that has ended.

    Returns:
        Their findings, without passwords of addresses.
    """
    found: dict[int, list[Finding]] = {}
    ended: queue.Queue[tuple[int, list[Finding]]] = queue.Queue()
    begun = time.monotonic()
    for place, check in enumerate(checks):
        # One that hangs in a system call cannot be stopped; the command's end does not wait for it.
        threading.Thread(target=_look, args=(place, check, ended), daemon=True).start()
    while len(found) < len(checks):
        limits = [each.limit_s for place, each in enumerate(checks) if place not in found]
        try:
            left_s = begun + min(limits) - time.monotonic()
            place, findings = ended.get(timeout=max(0.0, left_s))
            settled = {place: findings} if place not in found else {}
        except queue.Empty:
            late = time.monotonic() - begun
            settled = {
                place: [_late(check)]
                for place, check in enumerate(checks)
                if place not in found and check.limit_s <= late
            }
        for place, findings in settled.items():
            found[place] = findings
            report(checks[place])
    return [_without_secrets(each) for place in range(len(checks)) for each in found[place]]


def _look(place: int, check: Check, ended: "queue.Queue[tuple[int, list[Finding]]]") -> None:
    try:
        findings = check.look()
    except Exception as error:  # whatever it is, it is news of this machine
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        findings = [
            fail(
                check.group,
                check.name,
                f"could not be looked at ({reason})",
                "unknown; this should not happen",
                "report it with the output of this command",
            )
        ]
    ended.put((place, findings))


def _late(check: Check) -> Finding:
    return fail(
        check.group,
        check.name,
        f"no answer within {check.limit_s:g} s",
        "whatever needs it hangs as well, or is very slow",
        "see whether the machine or the disk is busy, then run this command again",
    )


def _without_secrets(finding: Finding) -> Finding:
    return replace(
        finding,
        found=masked(finding.found),
        breaks=masked(finding.breaks),
        mend=masked(finding.mend),
    )
