"""The latency estimator tried on made samples whose truth is known: bias and coverage.

    python benchmarks/estimator.py [--runs N] [--json FILE]

Draws rounds of turns with effects that machines have, estimates the ratio by
:mod:`levit_search.latency.protocol` and prints for each case its bias, its spread and how often the
95 % interval holds the truth (the standard error of that is 0.5 points with 2 000 runs). Of the two
baselines, the median of all turns is what protocol 2 had, and the balanced one trims nothing:
Student's interval of the rounds' means.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from levit_search.latency.protocol import (
    Round,
    balanced_log_ratio,
    estimate,
    is_settled,
    mean_interval,
)
from levit_search.study.folder import environment

TRUTH = 0.8
CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    **{f"sessions {s} %": {"sessions": s / 100} for s in (0.3, 1, 2, 3)},
    **{f"{n} rounds": {"rounds": n, "sessions": 0.01} for n in (4, 5, 6, 7, 8, 9, 10, 11)},
    "4 rounds, sessions 3 %": {"rounds": 4, "sessions": 0.03},
    "order 5 %": {"order": 0.05},
    "order 35 %": {"order": 0.35},
    "order 35 %, odd turns": {"order": 0.35, "turns": 7},
    "order 35 %, sessions 3 %": {"order": 0.35, "sessions": 0.03},
    "drift": {"drift": 0.2},
    "autocorrelation": {"correlation": 0.9, "noise": 0.03},
    "heavy tails": {"tails": 0.05},
    "heavy tails of sessions": {"session_tails": True},
    "frequency steps": {"steps": 0.05},
}
"""What the draws of each case have that others lack."""


def drawn(
    rng: np.random.Generator,
    rounds: int = 12,
    turns: int = 8,
    order: float = 0.0,
    sessions: float = 0.005,
    noise: float = 0.01,
    drift: float = 0.0,
    correlation: float = 0.0,
    tails: float = 0.0,
    session_tails: bool = False,
    steps: float = 0.0,
) -> list[Round]:
    """Rounds of a reference of 5 ms and a candidate of ``TRUTH`` times that.

    Args:
        rng: what is drawn from.
        rounds: of inference sessions.
        turns: of both networks in a round, every other one in reverse order.
        order: by which share whoever runs second is slower.
        sessions: standard deviation of the sessions' luck, as a share.
        noise: that of a single timing.
        drift: by which share timings slow down in a second.
        correlation: of the noise of one timing with that of the next.
        tails: probability that a timing is slower by 1 + a Pareto variable of exponent 2.
        session_tails: the sessions' luck is Student's with 3 degrees of freedom.
        steps: probability that the clock frequency takes another level before a timing, of 3 %.
    """
    made, level, error, clock_s = [], 0.0, 0.0, 0.0
    for _ in range(rounds):
        luck = rng.standard_t(3) / np.sqrt(3) if session_tails else rng.normal()
        cycles = []
        for turn in range(turns):
            ms = np.empty(2)
            for place, network in enumerate((1, 0) if turn % 2 else (0, 1)):
                error = correlation * error + np.sqrt(1 - correlation**2) * rng.normal(0, noise)
                if rng.random() < steps:
                    level = rng.normal(0, 0.03)
                clock_s += 0.01
                slower = np.exp(error + level + drift * clock_s) * (1 + order * place)
                if rng.random() < tails:
                    slower *= 1 + rng.pareto(2)
                ms[network] = 5 * slower * (TRUTH * np.exp(sessions * luck) if network else 1)
            cycles.append([{"cpu": float(each)} for each in ms])
        made.append(Round(cycles, [1, 1], 0.0, 0.0))
    return made


Figures = tuple[float, float, float]
"""A ratio and its 95 % interval."""


def of_rounds(rounds: list[Round]) -> Figures:
    """All rounds by the protocol."""
    found = estimate(rounds, "cpu")
    return (found.ratio, *found.ci95)


def stopped(rounds: list[Round], interval_percent: float = 2.0) -> Figures:
    """By the protocol with its rule of stopping."""
    for count in range(2, len(rounds)):
        if is_settled(rounds[:count], "cpu", interval_percent):
            return of_rounds(rounds[:count])
    return of_rounds(rounds)


def untrimmed(rounds: list[Round]) -> Figures:
    """Both orders averaged, no round left out, Student's interval."""
    logs = np.array([each.log_ratio("cpu") for each in rounds])
    half = student.ppf(0.975, len(logs) - 1) * np.std(logs, ddof=1) / np.sqrt(len(logs))
    return _figures(float(np.mean(logs)), float(half))


def pooled_median(rounds: list[Round], interval_percent: float = 2.0, fewest: int = 4) -> Figures:
    """Protocol 2: the median of all turns, a bootstrap over rounds and turns, stopped once narrow.

    It began each round with the reference and had any number of turns, as the draws have here.
    """
    by_round = [each.ratios("cpu") for each in rounds]
    for count in range(min(fewest, len(rounds)), len(rounds) + 1):
        found = _bootstrapped(by_round[:count])
        if 100 * (found[2] - found[1]) <= interval_percent * found[0]:
            break
    return found


def _bootstrapped(rounds: list[NDArray[np.float64]], resamples: int = 200) -> Figures:
    rng, count = np.random.default_rng(0), len(rounds)
    medians = np.empty(resamples)
    for index in range(resamples):
        chosen = [rounds[number] for number in rng.integers(count, size=count)]
        within = [each[rng.integers(len(each), size=len(each))] for each in chosen]
        medians[index] = np.median(np.concatenate(within))
    centre = np.median(np.concatenate(rounds))
    medians = centre + (medians - centre) * np.sqrt(count / (count - 1))
    return (float(centre), *map(float, np.percentile(medians, [2.5, 97.5])))


def of_turns(rounds: Sequence[Sequence[tuple[float, float, bool]]]) -> Figures:
    """The protocol's estimate of rounds of turns (reference, candidate, whether it ran first)."""
    logs = []
    for turns in rounds:
        reference, candidate, first = (np.array(each) for each in zip(*turns, strict=True))
        logs.append(balanced_log_ratio(candidate / reference, first.astype(bool)))
    return _figures(*mean_interval(np.array(logs)))


def _figures(mean: float, half: float) -> Figures:
    ratio, low, high = np.exp([mean, mean - half, mean + half])
    return float(ratio), float(low), float(high)


ESTIMATORS: dict[str, Callable[[list[Round]], Figures]] = {
    "protocol, all rounds": of_rounds,
    "protocol, stopped": stopped,
    "untrimmed": untrimmed,
    "pooled median, stopped": pooled_median,
}
# The bootstrap takes a thousand times as long.
_SHARE_OF_RUNS = {"pooled median, stopped": 10}


def tried(case: str, runs: int) -> list[dict[str, Any]]:
    """Bias, spread, coverage and width of each estimator, in percent."""
    rng = np.random.default_rng(1)
    samples = [drawn(rng, **CASES[case]) for _ in range(runs)]
    rows = []
    for name, estimator in ESTIMATORS.items():
        found = np.array([estimator(each) for each in samples[:: _SHARE_OF_RUNS.get(name, 1)]])
        holds = (found[:, 1] <= TRUTH) & (found[:, 2] >= TRUTH)
        rows.append(
            {
                "case": case,
                "estimator": name,
                "runs": len(found),
                "bias_percent": 100 * (float(found[:, 0].mean()) / TRUTH - 1),
                "sd_percent": 100 * float(found[:, 0].std()) / TRUTH,
                "coverage_percent": 100 * float(holds.mean()),
                "width_percent": 100 * float((found[:, 2] - found[:, 1]).mean()) / TRUTH,
            }
        )
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of one line a case, for each estimator."""
    lines = []
    for name in ESTIMATORS:
        lines.append(f"{name:26}  bias %    sd %  coverage %  width %")
        lines += [
            f"  {row['case']:24}  {row['bias_percent']:+6.2f}  {row['sd_percent']:6.2f}  "
            f"{row['coverage_percent']:10.1f}  {row['width_percent']:7.2f}"
            for row in rows
            if row["estimator"] == name
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    here = environment(["python", "benchmarks/estimator.py", "--runs", str(options.runs)])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        cases = pool.map(partial(tried, runs=options.runs), CASES, chunksize=1)
    rows = [row for case in cases for row in case]
    print(shown(rows))
    if options.json is not None:
        options.json.write_text(json.dumps({"environment": here, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
