"""Speed columns: each row timed in pairs against the first one."""

import itertools
from collections.abc import Callable
from typing import Any

from levit_search.baseline import load_network
from levit_search.errors import TrialError
from levit_search.latency import LatencyConfig, Probe
from levit_search.latency.cache import fingerprint
from levit_search.reproduce.paper import Row, Table
from levit_search.reproduce.results import Figures, Run

_SETTINGS = {"runtime", "precision", "threads", "batch_size", "seconds", "rounds", "layout"}


def speed_settings(config: LatencyConfig) -> dict[str, Any]:
    """What measured speeds depend on, the device and the runtime's version included.

    Raises:
        TrialError: the target cannot be reached.
    """
    with Probe(config) as probe:
        device = probe.connect()
    return {
        "target": config.target.label,
        **config.model_dump(mode="json", include=_SETTINGS | {"interval_percent"}),
        **fingerprint(device, config.runtime),
    }


def fill_speed(
    run: Run,
    table: Table,
    config: LatencyConfig,
    step: Callable[[str], None],
    save: Callable[[], None],
) -> None:
    """Time the rows that ``run`` lacks.

    A row that cannot be timed says why under ``failed``, and the others follow.
    ``speed_ratio`` is images a second relative to the table's first row, the mean of the
    rounds, with its 95 % interval. ``latency_ms`` of a run of ``batch_size`` images and
    ``throughput_ips`` are that ratio times the first row's own figure, so that a machine whose
    speed changes meanwhile does not change the order; the other times are raw.

    Args:
        run: filled row by row.
        table: whose rows are built.
        config: how to measure; its reference is not used.
        step: told the row that comes next.
        save: called after each row.
    """
    first = table.built[0]
    assert first.network is not None
    reference = load_network(first.network)
    with Probe(config, fresh=True) as probe:
        for row in table.built:
            assert row.network is not None
            step(row.name)
            if row.name in run.rows:
                continue
            try:
                found = probe.measure(load_network(row.network), reference)
            except TrialError as error:
                run.rows[row.name] = {"failed": str(error)}
                save()
                continue
            low, high = found.ratio_ci95
            settled_ms = run.rows.get(first.name, {}).get("reference_ms", found.reference_ms)
            scale = settled_ms / found.reference_ms
            run.rows[row.name] = {
                "latency_ms": found.latency_ms * scale,
                "throughput_ips": found.throughput_ips / scale,
                "batch_size": found.batch_size,
                "speed_ratio": 1 / found.ratio_to_reference,
                "speed_ratio_ci95": [1 / high, 1 / low],
                "cpu_ms": found.cpu_ms,
                "wall_ms": found.wall_ms,
                "reference_ms": found.reference_ms,
                "pairs": found.pairs,
                "timing_seconds": round(found.seconds, 2),
            }
            save()
    run.extra["comparisons"] = comparisons(run, table)


def paper_ratios(row: Row, first: Row) -> dict[str, float]:
    """The paper's speeds of a row relative to the first row's, by device."""
    names = ("gpu_ips", "intel_ips", "arm_ips")
    return {
        name.removesuffix("_ips"): row.paper[name] / first.paper[name]
        for name in names
        if name in row.paper and name in first.paper
    }


def comparisons(run: Run, table: Table) -> list[Figures]:
    """Each LeViT beside what the paper holds it against, and beside the next larger LeViT.

    ``times_faster`` is here and in the paper, on its GPU where this ran on one, else on Intel.
    """
    levits = [row.name for row in table.rows if row.name.startswith("LeViT-")]
    known = {name for name, row in run.rows.items() if "speed_ratio" in row}
    pairs = [*itertools.pairwise(levits), *table.extra.get("faster_than", {}).items()]
    column = "gpu_ips" if "gpu" in run.settings else "intel_ips"
    paper_ips = {row.name: row.paper[column] for row in table.rows if column in row.paper}
    return [
        {
            "faster": faster,
            "slower": slower,
            "times_faster": run.rows[faster]["speed_ratio"] / run.rows[slower]["speed_ratio"],
            "paper_times_faster": paper_ips[faster] / paper_ips[slower],
        }
        for faster, slower in pairs
        if {faster, slower} <= known
    ]
