"""What two configurations of one study may not differ in, and how to tell where they do."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from levit_search.study.config import StudyConfig


def comparable(config: StudyConfig) -> dict[str, Any]:
    """All settings but the budgets, what carries evaluations out, and where trials are kept."""
    budgets = {"trials", "time_s"}
    return config.model_dump(
        mode="json", exclude={"engine": True, "storage": True, "search": budgets}
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first keys whose values differ, as ``train.epochs 12 -> 3``."""
    flat_before, flat_now = dict(_flat(before, "")), dict(_flat(now, ""))
    keys = [k for k in {**flat_before, **flat_now} if flat_before.get(k) != flat_now.get(k)]
    shown = [f"{key} {flat_before.get(key)} -> {flat_now.get(key)}" for key in keys[:3]]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(shown) + more


def _flat(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.loads(json.dumps(node))
