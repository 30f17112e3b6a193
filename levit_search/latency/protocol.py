"""What a probe is asked and what its raw pairs say."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from levit_search.configuration import Count, Frozen
from levit_search.latency.worker import bootstrap_interval, clock_index

Pair = list[list[float]]  # [[reference cpu_ms, wall_ms], [candidate cpu_ms, wall_ms]]


class LatencyConfig(Frozen):
    """How latency is measured.

    ``seconds`` of timing are spent on a network in ``rounds`` with fresh inference sessions;
    measuring ends earlier once the 95 % interval is narrower than ``interval_percent`` of the
    ratio. ``reference`` is the network that candidates are compared with, fitted to the images: a
    published name, a YAML file or a description. One about as fast as the candidates serves best.
    ``layout`` is that of the candidates' graphs: linear layers over tokens, or 1x1 convolutions
    over maps, with the same weights; the reference is always measured in tokens.
    """

    target: Literal["cpu"] = "cpu"
    threads: Count = 1
    batch_size: Count = 1
    seconds: Annotated[float, Field(gt=0, le=600)] = 1.5
    rounds: Annotated[int, Field(strict=True, ge=1, le=100)] = 4
    interval_percent: Annotated[float, Field(ge=0)] = 2.0
    layout: Literal["tokens", "maps"] = "tokens"
    reference: str | dict[str, Any] = "LeViT-128S"


@dataclass(frozen=True)
class Measurement:
    """One network's latency on one target.

    ``ratio_to_reference`` is the median over the pairs and what to compare networks by;
    ``latency_ms`` is that ratio times ``reference_ms``. ``cpu_ms`` and ``wall_ms`` are the plain
    medians of the candidate's own timings; all times are for one run of ``batch_size`` images.
    """

    latency_ms: float
    throughput_ips: float
    ratio_to_reference: float
    ratio_ci95: tuple[float, float]
    reference_ms: float
    cpu_ms: float
    wall_ms: float
    pairs: int
    seconds: float
    target: str
    runtime: str
    batch_size: int
    threads: int
    precision: str
    layout: str
    device: dict[str, Any]


def measurement(
    config: LatencyConfig,
    pairs: list[Pair],
    seconds: float,
    device: dict[str, Any],
    reference_ms: float | None = None,
) -> Measurement:
    """What ``pairs`` say.

    Args:
        config: how they were taken.
        pairs: raw timings in milliseconds a run.
        seconds: how long measuring took.
        device: the worker's account of itself.
        reference_ms: the reference's own figure, where an earlier probe has settled it, so that
            all networks of a study share one; by default the median of these very pairs.
    """
    timings = np.array(pairs)  # [pairs, reference or candidate, cpu or wall]
    clock = clock_index(config.threads)
    ratios = timings[:, 1, clock] / timings[:, 0, clock]
    ratio = float(np.median(ratios))
    if reference_ms is None:
        reference_ms = float(np.median(timings[:, 0, clock]))
    latency_ms = ratio * reference_ms
    return Measurement(
        latency_ms=latency_ms,
        throughput_ips=1000 * config.batch_size / latency_ms,
        ratio_to_reference=ratio,
        ratio_ci95=bootstrap_interval(ratios),
        reference_ms=reference_ms,
        cpu_ms=float(np.median(timings[:, 1, 0])),
        wall_ms=float(np.median(timings[:, 1, 1])),
        pairs=len(pairs),
        seconds=seconds,
        target=config.target,
        runtime=f"onnxruntime {device['onnxruntime']}",
        batch_size=config.batch_size,
        threads=config.threads,
        precision="fp32",
        layout=config.layout,
        device=device,
    )
