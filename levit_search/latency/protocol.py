"""What a probe is asked, and what its raw samples say."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from levit_search import architecture
from levit_search.architecture import Architecture
from levit_search.configuration import Count, Frozen, validated
from levit_search.errors import InputError
from levit_search.latency.targets import LocalTarget, Target, read_targets, resolved

Runtime = Literal["onnxruntime", "openvino", "torch", "torch-compiled"]
Precision = Literal["fp32", "fp16", "bf16"]

TORCH_RUNTIMES = ("torch", "torch-compiled")


def _check_batch_size(value: object) -> object:
    if value != "largest" and (type(value) is not int or not 1 <= value <= 2**20):
        raise ValueError(f"must be a number of images from 1, or largest, not {value!r}")
    return value


BatchSize = Annotated[int | Literal["largest"], BeforeValidator(_check_batch_size)]


def package_of(runtime: Runtime) -> str:
    """What has to be installed for a runtime."""
    return "torch" if runtime in TORCH_RUNTIMES else runtime


class LatencyConfig(Frozen):
    """How latency is measured, or predicted.

    Up to ``seconds`` of timing are spent on a network, in about ``rounds`` rounds with fresh
    inference sessions, and a quarter more if some have to be taken again; measuring ends earlier,
    after four rounds, once the 95 % interval is narrower than ``interval_percent`` of the ratio
    (from end to end). ``reference`` is the network that
    candidates are compared with, fitted to the images: a published name, a YAML file or a
    description. One about as fast as the candidates serves best.

    ``layout`` is that of the candidates' graphs: linear layers over tokens, or 1x1 convolutions
    over maps, with the same weights; ``fastest`` measures both. The reference is always measured in
    tokens. ``batch_size: largest`` is the largest power of two that fits a GPU.

    With ``method: predicted`` a search ranks candidates by the sum of their blocks' latencies,
    calibrated on ``calibration`` whole networks, and measures the front at its end.

    ``huge_pages`` lets the C library of a Linux target ask for memory in huge pages (where the
    system grants them on request): a network's time then depends less on where its memory happens
    to lie.

    A worker that says nothing for ``patience_s`` beyond the time that it measures is taken for
    stuck; slow devices may need longer to start and to build sessions.

    Timings of an emulator are refused as an objective unless ``allow_emulated``.
    """

    target: Target = LocalTarget()
    method: Literal["measured", "predicted"] = "measured"
    runtime: Runtime = "onnxruntime"
    precision: Precision = "fp32"
    threads: Count = 1
    batch_size: BatchSize = 1
    seconds: Annotated[float, Field(gt=0, le=600)] = 2.0
    rounds: Annotated[int, Field(strict=True, ge=1, le=100)] = 8
    interval_percent: Annotated[float, Field(ge=0)] = 2.0
    layout: Literal["tokens", "maps", "fastest"] = "tokens"
    reference: str | dict[str, Any] = "LeViT-128S"
    calibration: Annotated[int, Field(strict=True, ge=4, le=200)] = 8
    huge_pages: bool = True
    patience_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    allow_emulated: bool = False

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        if data in ("predicted", "measured"):  # the short form, `latency: predicted`
            data = {"method": data}
        if isinstance(data, Mapping):
            try:
                data = resolved(data, {}, "target")
            except InputError as error:  # of which validation knows the place
                raise ValueError(str(error).removeprefix("target: ")) from None
            target = data.get("target")
            on_gpu = isinstance(target, Mapping) and target.get("device") == "cuda"
            if on_gpu and "runtime" not in data:
                data = {**data, "runtime": "torch"}
        return data

    @model_validator(mode="after")
    def _check(self) -> "LatencyConfig":
        on_gpu = self.target.device == "cuda"
        with_torch = self.runtime in TORCH_RUNTIMES
        if on_gpu and not with_torch:
            raise ValueError(
                f"runtime: {self.runtime} runs on CPUs here; on a GPU use {_or(TORCH_RUNTIMES)}"
            )
        if self.precision != "fp32" and not with_torch:
            raise ValueError(
                f"precision: {self.precision} needs runtime {_or(TORCH_RUNTIMES)}, not "
                f"{self.runtime}"
            )
        if self.method == "predicted" and (with_torch or self.layout == "fastest"):
            raise ValueError(
                "method: predicted needs runtime onnxruntime or openvino, and layout tokens or maps"
            )
        if self.batch_size == "largest" and not on_gpu:
            raise ValueError("batch_size: largest is for GPUs; name a number")
        return self

    def reference_for(self, *, image_size: int, in_channels: int, num_classes: int) -> Architecture:
        """The reference for images of ``image_size`` pixels a side.

        Where its stem does not go with that size it is made for the nearest one that most stems do.

        Raises:
            InputError: there is no such network, or the images are too small for it.
        """
        sizes = {"in_channels": in_channels, "num_classes": num_classes}
        if isinstance(self.reference, str):
            network = architecture.load(self.reference)
        else:
            where = "latency.reference"
            try:
                network = architecture.described(
                    self.reference, {**sizes, "image_size": image_size}, where
                )
            except architecture.SizeError:
                at = {**sizes, "image_size": architecture.DIVISIBLE_SIZE}
                network = architecture.described(self.reference, at, where)
        try:
            return architecture.fitted(network, image_size=image_size, **sizes)
        except InputError:
            if image_size < 32:
                raise
            return architecture.fitted(network, image_size=32 * round(image_size / 32), **sizes)

    @property
    def clock(self) -> str:
        """Which clock counts: the GPU's own, the thread's CPU time where one runs, or wall time."""
        if self.target.device == "cuda":
            return "device"
        return "cpu" if self.threads == 1 else "wall"


def read_latency(
    section: Mapping[str, Any], where: str, beside: Path | None = None
) -> LatencyConfig:
    """A ``latency`` section whose target may be a name from ``targets.yaml``.

    Args:
        section: as written; what it leaves out comes from the target, then from the defaults.
        where: for messages.
        beside: a folder whose ``targets.yaml`` counts too.

    Raises:
        InputError: the section says something wrong, or the target is unknown.
    """
    return validated(LatencyConfig, resolved(section, read_targets(beside), where), where)


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(names)


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
        an_image = times / np.array(self.batch_sizes[:2])
        ratios: np.ndarray[Any, Any] = an_image[:, 1] / an_image[:, 0]
        return ratios


@dataclass(frozen=True)
class Estimate:
    """The ratio of a network's time to the reference's."""

    ratio: float
    """The median over the pairs of all rounds that count."""
    ci95: tuple[float, float]
    outliers: tuple[int, ...]
    """Rounds that do not count."""

    @property
    def width_percent(self) -> float:
        return 100 * (self.ci95[1] - self.ci95[0]) / self.ratio


# A round is an outlier if its median is so many robust standard deviations, and at least so many
# percent, away from the median of all rounds' medians; fewer rounds than this tell nothing.
_OUTLIER_DEVIATIONS = 4.0
_OUTLIER_PERCENT = 3.0
_OUTLIER_ROUNDS = 4


def estimate(rounds: list[Round], clock: str) -> Estimate:
    """What ``rounds`` say of their first network beside the reference.

    The interval is a bootstrap over rounds and over the pairs within them, since pairs of one round
    share the luck of its sessions.
    """
    by_round = [each.ratios(clock) for each in rounds]
    outliers = _outliers(np.array([np.median(ratios) for ratios in by_round]))
    kept = [ratios for index, ratios in enumerate(by_round) if index not in outliers]
    return Estimate(
        float(np.median(np.concatenate(kept))), bootstrap_interval(kept), tuple(outliers)
    )


def _outliers(medians: "np.ndarray[Any, Any]") -> list[int]:
    if len(medians) < _OUTLIER_ROUNDS:
        return []
    centre = np.median(medians)
    away = np.abs(medians - centre)
    spread = 1.4826 * np.median(away)  # of a normal distribution, its standard deviation
    limit = max(_OUTLIER_DEVIATIONS * spread, _OUTLIER_PERCENT / 100 * centre)
    return [int(index) for index in np.flatnonzero(away > limit)]


def bootstrap_interval(
    rounds: "list[np.ndarray[Any, Any]]", resamples: int = 500, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval (low, high) of the median of ratios drawn in rounds.

    Rounds are resampled, then the pairs of each. Few rounds spread too little in that way: by the
    factor sqrt((R - 1) / R) for R of them (Davison and Hinkley 1997, section 3.8), which is made
    good here.

    Args:
        rounds: ratios [pairs] of each round.
        resamples: how many times to draw.
        seed: of the draws.
    """
    chance = np.random.default_rng(seed)
    count = len(rounds)
    medians = np.empty(resamples)
    for index in range(resamples):
        drawn = [rounds[chosen] for chosen in chance.integers(count, size=count)]
        medians[index] = np.median(
            np.concatenate(
                [ratios[chance.integers(len(ratios), size=len(ratios))] for ratios in drawn]
            )
        )
    if count > 1:
        centre = np.median(np.concatenate(rounds))
        medians = centre + (medians - centre) * np.sqrt(count / (count - 1))
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Measurement:
    """One network's latency on one target.

    ``ratio_to_reference`` is the median over the pairs and what to compare networks by;
    ``latency_ms`` is that ratio times ``reference_ms``, on the clock that counts: ``clock``.
    ``cpu_ms``, ``wall_ms`` and on GPUs ``device_ms`` are the plain medians of the candidate's own
    timings, ``latency_median_ms`` and ``latency_p95_ms`` those of its single runs in wall time. All
    times are for one run of ``batch_size`` images. ``peak_memory_mb`` (10^6 bytes) is that of a
    process which runs this network alone, runtime included; on GPUs that of the device.
    """

    latency_ms: float
    throughput_ips: float
    ratio_to_reference: float
    ratio_ci95: tuple[float, float]
    converged: bool
    """Whether the interval became as narrow as was asked before the time was up."""
    reference_ms: float
    clock: str
    cpu_ms: float
    wall_ms: float
    device_ms: float | None
    latency_median_ms: float
    latency_p95_ms: float
    peak_memory_mb: float | None
    pairs: int
    rounds: int
    outlier_rounds: int
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
    device: dict[str, Any]

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
    device: dict[str, Any]


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
    clock = config.clock
    found = estimate(samples.rounds, clock)
    kept = [each for index, each in enumerate(samples.rounds) if index not in found.outliers]
    reference_batch, batch_size = kept[0].batch_sizes
    own = [cycle[1] for each in kept for cycle in each.cycles]
    latency_ms = found.ratio * reference_ms * batch_size / reference_batch
    singles = [timing["single"] for timing in own]
    peak = samples.peak_memory_bytes
    return Measurement(
        latency_ms=latency_ms,
        throughput_ips=1000 * batch_size / latency_ms,
        ratio_to_reference=found.ratio,
        ratio_ci95=found.ci95,
        converged=found.width_percent <= config.interval_percent,
        reference_ms=reference_ms,
        clock=clock,
        cpu_ms=_median([timing["cpu"] for timing in own]),
        wall_ms=_median([timing["wall"] for timing in own]),
        device_ms=_median([timing["device"] for timing in own]) if clock == "device" else None,
        latency_median_ms=_median(singles),
        latency_p95_ms=float(np.percentile(singles, 95)),
        peak_memory_mb=peak / 1e6 if peak is not None else None,
        pairs=len(own),
        rounds=len(samples.rounds),
        outlier_rounds=len(found.outliers),
        timing_seconds=round(sum(each.timing_s for each in samples.rounds), 3),
        seconds=round(sum(each.timing_s + each.prepare_s for each in samples.rounds), 3),
        target=config.target.label,
        runtime=runtime_label(config.runtime, samples),
        batch_size=batch_size,
        threads=config.threads,
        precision=config.precision,
        layout=samples.layout,
        emulated=bool(samples.device.get("emulated")),
        cached=cached,
        samples_file=file,
        device=samples.device,
    )


def runtime_label(runtime: Runtime, samples: Samples) -> str:
    """The runtime with its version and what it chose."""
    package = package_of(runtime)
    kind = runtime.partition("-")[2]
    parts = [package, samples.device["runtimes"].get(package, "?"), kind, samples.note]
    return " ".join(part for part in parts if part)


def _median(values: list[float]) -> float:
    return float(np.median(values))
