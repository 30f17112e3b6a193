"""Why proposals came to nothing, alike reasons together."""

import re
from collections.abc import Sequence
from typing import Any

from levit_search.study import Record

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_MOST_GROUPS = 40
_MOST_TRIALS = 50  # that a group names


def grouped(by_outcome: Sequence[tuple[Record, str]]) -> list[dict[str, Any]]:
    """Those that failed and those that broke a limit, by reason.

    Args:
        by_outcome: all finished trials, each with what became of it.

    Returns:
        ``{outcome, reason, count, trials}``, failures first and the commonest first: reasons that
        differ in their numbers alone are one, with ``…`` in the place of those that differ, and
        ``trials`` are the first of them.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record, outcome in by_outcome:
        if outcome in ("failed", "infeasible"):
            pattern = _NUMBER.sub("0", record.reason or "no reason was noted")
            groups.setdefault((outcome, pattern), []).append(record)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] != "failed", -len(item[1])))
    return [
        {
            "outcome": outcome,
            "reason": _common([record.reason or pattern for record in members]),
            "count": len(members),
            "trials": [record.trial for record in members[:_MOST_TRIALS]],
        }
        for (outcome, pattern), members in ordered[:_MOST_GROUPS]
    ]


def _common(reasons: Sequence[str]) -> str:
    """The text with the numbers that all of them have."""
    columns = zip(*(_NUMBER.findall(reason) for reason in reasons), strict=True)
    shared = iter([column[0] if len(set(column)) == 1 else "…" for column in columns])
    return _NUMBER.sub(lambda _: next(shared), reasons[0])
