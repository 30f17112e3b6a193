"""What a probe's raw samples say: ratios to the reference with their intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from levit_search.latency.targets import Int8Format, LatencyConfig, package_of

Timing = dict[str, float]
"""Milliseconds a run by clock (``cpu``, ``wall``, on GPUs ``device``) and ``single``, the wall time
of one run alone."""


@dataclass(frozen=True)
class Round:
    """Timings of networks run in turn by inference sessions built for this round.

    ``cycles`` [cycles][networks], the reference first. ``batch_sizes`` by network.
    """

    cycles: list[list[Timing]]
    batch_sizes: list[int]
    prepare_s: float
    timing_s: float

    def of(self, network: int) -> "Round":
        """The same with the reference and one network alone."""
        return replace(
            self,
            cycles=[[cycle[0], cycle[network]] for cycle in self.cycles],
            batch_sizes=[self.batch_sizes[0], self.batch_sizes[network]],
        )

    def ratios(self, clock: str) -> "np.ndarray[Any, Any]":
        """The first network's time an image in multiples of the reference's, by cycle."""
        times = np.array([[timing[clock] for timing in cycle[:2]] for cycle in self.cycles])
        an_image: np.ndarray[Any, Any] = times / np.array(self.batch_sizes[:2])
        found: np.ndarray[Any, Any] = an_image[:, 1] / an_image[:, 0]
        return found

    def log_ratio(self, clock: str) -> float:
        """The logarithm of the first network's time an image in multiples of the reference's.

        Every other cycle runs backwards; in the others the reference is first, of two networks.
        """
        ratios = self.ratios(clock)
        return balanced_log_ratio(ratios, np.arange(len(ratios)) % 2 == 0)


def balanced_log_ratio(
    ratios: "np.ndarray[Any, Any]", reference_first: "np.ndarray[Any, Any]"
) -> float:
    """The logarithm of a ratio of times in which whoever runs second loses nothing by it.

    Whatever runs second of a turn runs slower (its data have left the caches), so that the ratios
    have two modes, one of each order. The medians of both orders are averaged, in logarithms: what
    the order does to them cancels.

    Args:
        ratios: [turns] of the times of candidate and reference.
        reference_first: bool [turns], whether the reference ran before the candidate.
    """
    orders = [ratios[reference_first], ratios[~reference_first]]
    return float(np.mean([np.log(np.median(each)) for each in orders if len(each)]))


@dataclass(frozen=True)
class Estimate:
    """The ratio of a network's time to the reference's."""

    ratio: float
    """The geometric mean of the rounds' ratios, of which the farthest are left out."""
    ci95: tuple[float, float]

    @property
    def width_percent(self) -> float:
        return 100 * (self.ci95[1] - self.ci95[0]) / self.ratio


FEWEST_ROUNDS = 2
"""With fewer there is no interval."""

# From so many rounds on a tenth of them, one at least, is left out at either end.
_TRIMMED_ROUNDS = 8
_TRIMMED_SHARE = 0.1
# Measuring ends once the interval was narrow after so many rounds in a row, and after so many at
# least: at its first narrow moment an interval is narrow by luck, and covers the truth too rarely
# (benchmarks/estimator.py tries it).
_SETTLED_ROUNDS = 8
_NARROW_IN_A_ROW = 3


def mean_interval(values: "np.ndarray[Any, Any]") -> tuple[float, float]:
    """The trimmed mean of a few values and the half width of its 95 % interval.

    Student's interval of the mean where nothing is trimmed, else that of the trimmed mean by its
    winsorised deviation (Tukey and McLaughlin 1963).

    Args:
        values: [rounds], two at least.

    Raises:
        ValueError: they are fewer.
    """
    from scipy.special import stdtrit

    count = len(values)
    if count < FEWEST_ROUNDS:
        raise ValueError(f"{count} rounds tell nothing of their spread; it takes {FEWEST_ROUNDS}")
    ordered = np.sort(values)
    out = max(1, int(_TRIMMED_SHARE * count)) if count >= _TRIMMED_ROUNDS else 0
    inner = ordered[out : count - out]
    winsorised = np.clip(ordered, inner[0], inner[-1])
    error = np.std(winsorised, ddof=1) / ((1 - 2 * out / count) * np.sqrt(count))
    return float(np.mean(inner)), float(stdtrit(len(inner) - 1, 0.975) * error)


def estimate(rounds: list[Round], clock: str) -> Estimate:
    """What ``rounds`` say of their first network beside the reference, on the clock that counts.

    A round counts as one value, whatever the number of its turns: all of these share the luck that
    its inference sessions have with memory.

    Raises:
        ValueError: they are fewer than two.
    """
    mean, half = mean_interval(np.array([each.log_ratio(clock) for each in rounds]))
    low, high = np.exp([mean - half, mean + half])
    return Estimate(float(np.exp(mean)), (float(low), float(high)))


def is_settled(rounds: list[Round], clock: str, interval_percent: float) -> bool:
    """Whether ``rounds``, in the order in which they were taken, say enough to end measuring: the
    interval stays as narrow, from end to end, as ``interval_percent``."""
    if len(rounds) < _SETTLED_ROUNDS:
        return False
    counts = range(len(rounds) - _NARROW_IN_A_ROW + 1, len(rounds) + 1)
    return all(
        estimate(rounds[:count], clock).width_percent <= interval_percent for count in counts
    )


@dataclass(frozen=True)
class Measurement:
    """One network's latency on one target.

    ``ratio_to_reference`` is the mean over the rounds and what to compare networks by; its 95 %
    interval covers what other sessions would show (:func:`repeat_sd`);
    ``latency_ms`` is that ratio times ``reference_ms``, on the clock that counts: ``clock``.
    ``cpu_ms``, ``wall_ms`` and on GPUs ``device_ms`` are the plain medians of the candidate's own
    timings, ``latency_median_ms`` and ``latency_p95_ms`` those of its single runs in wall time. All
    times are for one run of ``batch_size`` images. ``median_sd_percent`` and ``p95_sd_percent`` are
    the standard errors of these two by their spread over rounds. ``peak_memory_mb`` (10^6 bytes) is
    that of a process which runs this network alone, runtime included; on GPUs that of the device.
    """

    latency_ms: float
    throughput_ips: float
    ratio_to_reference: float
    ratio_ci95: tuple[float, float]
    converged: bool
    """Whether the interval within this session became as narrow as was asked."""
    reference_ms: float
    own_reference_ms: float
    """What the reference took beside this network; far from ``reference_ms`` on a busy machine."""
    clock: str
    cpu_ms: float
    wall_ms: float
    device_ms: float | None
    latency_median_ms: float
    latency_p95_ms: float
    median_sd_percent: float
    p95_sd_percent: float
    peak_memory_mb: float | None
    pairs: int
    rounds: int
    timing_seconds: float
    seconds: float
    """With the building of inference sessions."""
    target: str
    runtime: str
    batch_size: int
    threads: int
    precision: str
    layout: str
    emulated: bool
    cached: bool
    """Whether this was measured earlier and looked up now."""
    samples_file: str | None
    """Where the raw samples are."""
    device: Mapping[str, Any]
    int8_format: Int8Format | None = None
    """What the network was quantized to, see :class:`levit_search.latency.targets.Int8Config`."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Samples:
    """All that was taken of one network: enough to make a measurement of it again."""

    rounds: list[Round]
    """Of the reference and the network."""
    layout: str
    note: str
    """What the runtime chose by itself."""
    peak_memory_bytes: int | None
    device: Mapping[str, Any]
    int8_format: Int8Format | None = None


def pooled_reference_ms(samples: Sequence[Samples], clock: str) -> float:
    """The reference's milliseconds a run over all that was measured against it."""
    cycles = (cycle for each in samples for r in each.rounds for cycle in r.cycles)
    return float(median(reference[clock] for reference, *_ in cycles))


def measurement(
    config: LatencyConfig,
    samples: Samples,
    reference_ms: float,
    file: str | None = None,
    cached: bool = False,
) -> Measurement:
    """What ``samples`` say.

    Args:
        config: how they were taken.
        samples: raw.
        reference_ms: the reference's own figure for a run of its batch, one for all networks that
            shall be compared.
        file: where the samples are kept.
        cached: whether they were taken earlier.
    """
    clock, rounds = config.clock, samples.rounds
    found = estimate(rounds, clock)
    ratio = found.ratio
    reference_batch, batch_size = rounds[0].batch_sizes
    own_reference_ms = pooled_reference_ms([samples], clock)
    latency_ms = ratio * reference_ms * batch_size / reference_batch
    away = math.log(own_reference_ms / reference_ms)
    within = math.log(found.ci95[1] / ratio)
    half = math.hypot(within, _Z95 * repeat_sd(latency_ms, away))
    own = [cycle[1] for each in rounds for cycle in each.cycles]
    all_singles = [timing["single"] for timing in own]
    peak = samples.peak_memory_bytes
    package, kind = package_of(config.runtime), config.runtime.partition("-")[2]
    version = samples.device["runtimes"].get(package, "?")
    return Measurement(
        latency_ms=latency_ms,
        throughput_ips=1000 * batch_size / latency_ms,
        ratio_to_reference=ratio,
        ratio_ci95=(ratio * math.exp(-half), ratio * math.exp(half)),
        converged=found.width_percent <= config.interval_percent,
        reference_ms=reference_ms,
        own_reference_ms=own_reference_ms,
        clock=clock,
        cpu_ms=float(median(timing["cpu"] for timing in own)),
        wall_ms=float(median(timing["wall"] for timing in own)),
        device_ms=float(median(timing["device"] for timing in own)) if clock == "device" else None,
        latency_median_ms=float(median(all_singles)),
        latency_p95_ms=float(np.percentile(all_singles, 95)),
        median_sd_percent=_error_percent(rounds, 50),
        p95_sd_percent=_error_percent(rounds, 95),
        peak_memory_mb=peak / 1e6 if peak is not None else None,
        pairs=len(own),
        rounds=len(rounds),
        timing_seconds=round(sum(each.timing_s for each in rounds), 3),
        seconds=round(sum(each.timing_s + each.prepare_s for each in rounds), 3),
        target=config.target.label,
        runtime=" ".join(filter(None, [package, version, kind, samples.note])),
        batch_size=batch_size,
        threads=config.threads,
        precision=config.precision,
        layout=samples.layout,
        emulated=bool(samples.device.get("emulated")),
        cached=cached,
        samples_file=file,
        device=samples.device,
        int8_format=samples.int8_format,
    )


def _error_percent(rounds: list[Round], percentile: float) -> float:
    """The standard error of a percentile of single runs, in percent, by its spread over rounds."""
    singles = ([cycle[1]["single"] for cycle in each.cycles] for each in rounds)
    logs = np.log([np.percentile(times, percentile) for times in singles])
    return 100 * float(np.std(logs, ddof=1) / np.sqrt(len(logs)))


# What sessions share that lie minutes apart, as a standard deviation of a ratio: where memory lies,
# and the state of the machine (benchmarks/latency.py). Rounds of one session do not show it.
_REPEATS = 0.01
# Where something slows the reference down, ratios of short networks move by this share of it.
_DISTURBED = 0.13
_SHORT_MS = 1.0
_Z95 = 1.96

PLAIN_TIME_SDS = {"latency_median_ms": 0.10, "latency_p95_ms": 0.20}
"""What these times, which no reference steadies, differ by at least from session to session, as a
share."""


def repeat_sd(latency_ms: float, away: float = 0.0) -> float:
    """What a network's latency differs by from one session to the next beyond what rounds show.

    Args:
        latency_ms: of the network.
        away: how far the reference was from its settled figure in this session, as a logarithm.

    Returns:
        A standard deviation, as a share of the latency.
    """
    return math.hypot(_REPEATS, _DISTURBED * away if latency_ms < _SHORT_MS else 0.0)


def repeats_percent(latency: Mapping[str, Any]) -> float:
    """Within how many percent another measurement of a network is expected in 95 % of cases.

    It is that of a difference of two measurements, each as uncertain as its 95 % interval says.

    Args:
        latency: with ``latency_ms``, and with ``ratio_ci95`` where it was measured in pairs.
    """
    low, high = latency.get("ratio_ci95") or (1.0, 1.0)
    half = (high - low) / (high + low)  # relative to the middle
    return 100 * math.sqrt(2) * max(half, _Z95 * repeat_sd(latency["latency_ms"]))
