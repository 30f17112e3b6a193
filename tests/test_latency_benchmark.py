"""``benchmarks/latency.py``: that its statistics are what they say, and that it goes on."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import latency

        yield latency


def test_spread_between_passes_is_that_of_each_network_in_percent(bench: ModuleType) -> None:
    chance = np.random.default_rng(0)
    true_sd = np.array([0.01, 0.03, 0.05])
    figures = np.array([0.1, 1.0, 7.0]) * (1 + true_sd * chance.standard_normal((4000, 3)))
    found = bench.sd_percent(figures)
    assert found == pytest.approx(100 * true_sd, rel=0.05)
    assert bench.sd_percent(np.array([[1.0], [3.0]])) == pytest.approx([50 * np.sqrt(2)])
    assert bench.pooled(np.array([3.0, 4.0])) == pytest.approx(np.sqrt(12.5))


def test_pairs_of_passes_are_disjoint_where_nothing_is_common(bench: ModuleType) -> None:
    low = np.array([[1.0, 1.0], [1.5, 1.0], [2.5, 1.0]])
    high = np.array([[2.0, 2.0], [2.4, 2.0], [3.0, 2.0]])
    # Of the first network passes 1 and 2 overlap, 3 is apart from both.
    assert bench.disjoint_percent(low, high) == pytest.approx([200 / 3, 0.0])
    assert bench.disjoint_percent(low, low) == pytest.approx([100.0, 0.0]), "ends may touch"


def test_right_intervals_are_disjoint_as_seldom_as_theory_has_it(bench: ModuleType) -> None:
    # Two normal figures, each with a 95 % interval, are disjoint beyond 1.96 * 2 / sqrt(2) sigmas.
    figures = np.random.default_rng(1).normal(100.0, 1.0, (12, 400))
    share = bench.disjoint_percent(figures - 1.96, figures + 1.96).mean()
    assert share == pytest.approx(0.56, abs=0.2)
    narrow = bench.disjoint_percent(figures - 0.98, figures + 0.98).mean()
    assert narrow == pytest.approx(16.6, abs=1.5)


def test_a_slow_pass_is_seen(bench: ModuleType) -> None:
    figures = np.array([[1.0, 5.0], [1.0, 5.0], [1.3, 6.5]])
    assert bench.deviation_by_pass(figures) == pytest.approx([-100 / 11, -100 / 11, 200 / 11])


def test_agreement_tells_the_worst_pair_of_passes(bench: ModuleType) -> None:
    found = bench.agreement([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    assert found["median"] == 0.0
    assert found["worst"] == pytest.approx(40.0)
    assert found["tau"] == pytest.approx(1 / 3)


def test_exports_are_held_against_each_interval(bench: ModuleType) -> None:
    told = {"half_width_percent": 2.0, "stated_percent": 4.0}
    rows = [
        {**told, "front_ms": 0.5, "exported_ms": 0.5 * (1 + away)}
        for away in (0.01, -0.025, 0.035, -0.1)
    ]
    found = bench.kept_promises(rows)
    assert found["within_interval_percent"] == 25.0
    assert found["within_root_2_percent"] == 50.0
    assert found["within_stated_percent"] == 75.0
    assert found["worst_away_percent"] == pytest.approx(10.0)


def test_networks_are_spread_over_the_pool_and_none_is_taken_twice(bench: ModuleType) -> None:
    pool: list[Any] = [(f"network {ms}", ms) for ms in (0.5, 0.1, 0.11, 0.2, 0.105, 0.4, 2.0)]
    assert bench.spread(pool, 3, 0.05, 0.5) == ["network 0.1", "network 0.2", "network 0.5"]
    every = bench.spread(pool, len(pool), 0.05, 10.0)
    assert sorted(every) == sorted(name for name, _ in pool)


def test_an_interrupted_run_goes_on_unless_its_settings_are_others(
    bench: ModuleType, tmp_path: Path
) -> None:
    file, done = tmp_path / "latency.json.partial", []

    def steps(networks: int) -> Any:
        return bench.Steps(file, {"networks": networks}, {"small": (3, 1.0)})

    def work(number: int) -> Any:
        done.append(number)
        if len(done) == 3:
            raise KeyboardInterrupt
        return [number, 0.5]

    first = steps(12)
    assert first.once("small", 0, lambda: work(0)) == [0, 0.5]
    assert first.once("small", 1, lambda: work(1)) == [1, 0.5]
    with pytest.raises(KeyboardInterrupt):
        first.once("small", 2, lambda: work(2))
    second = steps(12)
    assert [second.once("small", n, lambda n=n: work(n)) for n in range(3)] == [
        [0, 0.5],
        [1, 0.5],
        [2, 0.5],
    ]
    assert done == [0, 1, 2, 2]
    assert len(json.loads(file.read_text())["taken"]["small"]) == 3
    other = steps(3)
    other.once("small", 0, lambda: work(0))
    assert done == [0, 1, 2, 2, 0]
    other.forget()
    assert not file.exists()
