"""How well latency repeats, how well it is predicted, and how long a probe takes to prepare.

    python benchmarks/latency.py                       # all three parts, a quarter of an hour
    python benchmarks/latency.py --parts repeat --json

``repeat``: networks drawn from a space are measured in two passes at least ``--apart`` minutes
apart, with the machine quiet and with a busy neighbour on another core. The probe's figure stands
beside the mean of 20 runs and the minimum over a second, which are taken in the same pass.
``predict``: latency predicted from blocks, calibrated on networks of its own, against measured
latency of others; and from FLOPs alone. ``prepare``: building, folding, exporting a network and
building its inference session. One multiply-add is one FLOP.

Prints tables, and with ``--json`` one JSON document instead.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from levit_search.architecture import Architecture, published
from levit_search.cost import cost
from levit_search.errors import InputError, TrialError
from levit_search.latency import LatencyConfig, Measurement, Probe
from levit_search.latency.cache import Cache
from levit_search.latency.forecast import Forecast
from levit_search.model import build, export_onnx
from levit_search.space import Space
from levit_search.study import read_config

SPACE = Path(__file__).parents[1] / "spaces" / "levit-imagenet.yaml"
PARTS = ("repeat", "predict", "prepare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="repeat, predict, prepare")
    parser.add_argument("--space", type=Path, default=SPACE)
    parser.add_argument("--seed", type=int, default=7, help="of the networks that are drawn")
    parser.add_argument("--networks", type=int, default=16, help="in the passes of repeat")
    parser.add_argument("--tested", type=int, default=24, help="networks that are predicted")
    parser.add_argument("--calibration", type=int, default=8, help="networks of its own")
    parser.add_argument("--apart", type=float, default=3.0, help="minutes between passes")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing for each network")
    parser.add_argument("--small-pages", action="store_true", help="without huge pages")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # The whole time is used, so that every network of every pass has the same.
    config = LatencyConfig(
        seconds=options.seconds, interval_percent=0, huge_pages=not options.small_pages
    )
    space = read_config(options.space).space(str(options.space))
    wanted = options.parts.split(",")
    document: dict[str, Any] = {"settings": settings(options, config)}
    with tempfile.TemporaryDirectory() as folder:
        if "prepare" in wanted:
            document["prepare"] = prepare(Path(folder))
        if "repeat" in wanted:
            networks = drawn(space, options.networks, options.seed)
            document["repeat"] = repeat(networks, config, 60 * options.apart, Path(folder))
        if "predict" in wanted:
            tested = drawn(space, options.tested, options.seed + 1)
            document["predict"] = predict(
                space, tested, config, options.calibration, options.seed + 2, Path(folder)
            )
    print(json.dumps(document, indent=2) if options.json else shown(document))


def settings(options: argparse.Namespace, config: LatencyConfig) -> dict[str, Any]:
    """What the figures depend on."""
    with Probe(config) as probe:
        device = probe.connect()
    return {
        **{k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "space": options.space.name,
        "threads": config.threads,
        "batch_size": config.batch_size,
        "rounds": config.rounds,
        "device": {name: value for name, value in device.items() if name != "system"},
    }


def drawn(space: Space, count: int, seed: int) -> list[Architecture]:
    """Different networks within the space's limits."""
    chance = np.random.default_rng(seed)
    found: dict[str, Architecture] = {}
    while len(found) < count:
        with contextlib.suppress(InputError):
            network = space.draw(chance)
            if all(value <= 0 for value in space.limits.excess(cost(network)).values()):
                found[network.id] = network
    return list(found.values())


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


# --- repeat


def repeat(
    networks: Sequence[Architecture], config: LatencyConfig, apart_s: float, folder: Path
) -> dict[str, Any]:
    """Two passes quiet and two with a neighbour, those of one kind ``apart_s`` apart."""
    graphs = []
    for network in networks:
        graphs.append(folder / f"{network.id}.onnx")
        export_onnx(build(network), graphs[-1], config.batch_size)  # type: ignore[arg-type]
    passes: dict[str, list[dict[str, list[float]]]] = {"quiet": [], "neighbour": []}
    ended: dict[str, float] = {}
    for number in (1, 2):
        for condition, found in passes.items():
            left_s = ended.get(condition, -1e9) + apart_s - time.monotonic()
            if left_s > 0:
                say(f"waiting {left_s:.0f} s")
                time.sleep(left_s)
            say(f"repeat: pass {number}, {condition}")
            with neighbour() if condition == "neighbour" else contextlib.nullcontext():
                found.append(one_pass(networks, graphs, config))
            ended[condition] = time.monotonic()
    rows = {
        condition: {
            protocol: agreement(found[0][protocol], found[1][protocol])
            for protocol in ("probe", "mean of 20", "minimum")
        }
        for condition, found in passes.items()
    }
    seconds = {
        name: float(np.mean([p[name] for found in passes.values() for p in found]))
        for name in ("timing_s", "seconds", "interval_percent")
    }
    return {"agreement": rows, "a_network": seconds, "passes": passes}


def one_pass(
    networks: Sequence[Architecture], graphs: Sequence[Path], config: LatencyConfig
) -> dict[str, list[float]]:
    """Ratios by the probe, and milliseconds as a plain script takes them."""
    plain = [plain_timing(graph) for graph in graphs]
    with Probe(config, fresh=True) as probe:
        measured = probe.measure_all(networks)
    found: dict[str, list[float]] = {
        "probe": [],
        "mean of 20": [mean for mean, _ in plain],
        "minimum": [minimum for _, minimum in plain],
        "timing_s": [],
        "seconds": [],
        "interval_percent": [],
    }
    for each in measured:
        if isinstance(each, TrialError):
            raise each
        low, high = each.ratio_ci95
        found["probe"].append(each.ratio_to_reference)
        found["timing_s"].append(each.timing_seconds)
        found["seconds"].append(each.seconds)
        found["interval_percent"].append(100 * (high - low) / each.ratio_to_reference)
    return found


def plain_timing(graph: Path) -> tuple[float, float]:
    """Milliseconds of wall time: the mean of 20 runs after 5, and the minimum over a second."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    feed = {images.name: np.zeros(images.shape, dtype=np.float32)}
    for _ in range(5):
        session.run(None, feed)
    times: list[float] = []
    end = time.perf_counter() + 1
    while len(times) < 20 or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, feed)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.mean(times[:20])), min(times)


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """A process that multiplies matrices on the last core all the time."""
    process = multiprocessing.get_context("spawn").Process(target=_multiply, daemon=True)
    process.start()
    time.sleep(3)  # it has to start first
    try:
        yield
    finally:
        process.kill()
        process.join()


def _multiply() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    square = np.random.default_rng(0).random((1500, 1500))
    while True:
        square @ square


def agreement(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """How far two passes over the same networks are apart."""
    a, b = np.array(first), np.array(second)
    apart = 100 * np.abs(a - b) / ((a + b) / 2)
    return {
        "median_percent": float(np.median(apart)),
        "worst_percent": float(apart.max()),
        "kendall_tau": float(kendalltau(a, b).statistic),
    }


# --- predict


def predict(
    space: Space,
    tested: Sequence[Architecture],
    config: LatencyConfig,
    calibration: int,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Predictions of ``tested``, none of which calibrates the predictor, against measurements."""
    config = config.model_copy(update={"calibration": calibration})
    cache = Cache(folder / "cache")
    told = told_now_and_then()
    with Probe(config, cache=cache, report=told) as probe:
        probe.settle_reference(tested[0])
        forecast = Forecast(probe, space, seed, folder / "predictor.json", cache)
        start = time.perf_counter()
        known = forecast.prepare(told)
        prepare_s = time.perf_counter() - start
        start = time.perf_counter()
        found = [forecast.predict(network, told) for network in tested]
        predict_s = time.perf_counter() - start
        say("predict: measuring the tested networks whole")
        measured = probe.measure_all(tested)
        sums_ms = np.array([forecast.sum_ms(network) for network in tested])
    truth = np.array([each.latency_ms for each in measured if isinstance(each, Measurement)])
    assert len(truth) == len(tested)
    flops = np.array([[cost(network).flops / 1e9] for network in tested])
    params = np.array([cost(network).params / 1e6 for network in tested])
    with_offset = np.column_stack([flops, np.ones(len(flops))])
    predictions = {
        "calibrated on others": np.array([each.latency_ms for each in found]),
        "leave one out": left_out(np.column_stack([sums_ms, params]), truth),
        "sum of blocks": sums_ms,
        "FLOPs, leave one out": left_out(flops, truth),
        "FLOPs + 1, leave one out": left_out(with_offset, truth),
    }
    inside = [f.low_ms <= ms <= f.high_ms for f, ms in zip(found, truth, strict=True)]
    return {
        "methods": {name: error(values, truth) for name, values in predictions.items()},
        "share_inside_interval": float(np.mean(inside)),
        "calibration": known,
        "blocks": forecast.size,
        "prepare_s": prepare_s,
        "predict_s": predict_s,
        "measured_ms": truth.tolist(),
        "predicted_ms": [each.latency_ms for each in found],
        "flops": flops.ravel().tolist(),
    }


def left_out(terms: Any, truth: Any) -> Any:
    """Each network predicted by least squares on the relative errors of all others."""
    rows = terms / truth[:, None]
    predicted = []
    for index in range(len(truth)):
        others = np.delete(rows, index, axis=0)
        coefficients = np.linalg.lstsq(others, np.ones(len(others)), rcond=None)[0]
        predicted.append(terms[index] @ coefficients)
    return np.array(predicted)


def error(predicted: Any, truth: Any) -> dict[str, float]:
    away = 100 * np.abs(predicted / truth - 1)
    return {
        "mape_percent": float(away.mean()),
        "worst_percent": float(away.max()),
        "kendall_tau": float(kendalltau(predicted, truth).statistic),
    }


def told_now_and_then() -> Callable[[str, float], None]:
    """A report that speaks every 20 s at most."""
    last = [0.0]

    def report(text: str, fraction: float) -> None:
        if time.monotonic() - last[0] > 20:
            last[0] = time.monotonic()
            say(f"predict: {text} ({fraction:.0%})")

    return report


# --- prepare


def prepare(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds of each step for three LeViTs: medians of five, in a process that has its imports."""
    import onnxruntime

    def session(path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    import torch

    torch.set_num_threads(1)
    say("prepare")
    rows: dict[str, dict[str, float]] = {}
    for name in ("LeViT-128S", "LeViT-256", "LeViT-384"):
        path = folder / f"{name}.onnx"
        steps: list[list[float]] = []
        for _ in range(6):
            model, build_s = timed(lambda name=name: build(published(name)))
            _, export_s = timed(lambda model=model, path=path: export_onnx(model, path, 1))
            _, session_s = timed(lambda path=path: session(path))
            steps.append([build_s, export_s, session_s])
        # The first one is a warm-up.
        build_s, export_s, session_s = np.median(steps[1:], axis=0)
        rows[name] = {
            "build_s": float(build_s),
            "fold_and_export_s": float(export_s),
            "session_s": float(session_s),
            "total_s": float(np.median(np.sum(steps[1:], axis=1))),
        }
    return rows


def timed(step: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return step(), time.perf_counter() - start


# --- shown


def shown(document: dict[str, Any]) -> str:
    """The tables."""
    device = document["settings"]["device"]
    lines = [
        f"{device['cpu']}, {device['cores']} cores, onnxruntime "
        f"{device['runtimes']['onnxruntime']}, batch {document['settings']['batch_size']}, "
        f"{document['settings']['threads']} thread(s)"
    ]
    if "prepare" in document:
        lines += ["", "prepare, seconds      build  fold+export  session  total"]
        lines += [
            f"{name:20} {row['build_s']:6.2f} {row['fold_and_export_s']:12.2f} "
            f"{row['session_s']:8.2f} {row['total_s']:6.2f}"
            for name, row in document["prepare"].items()
        ]
    if "repeat" in document:
        means = document["repeat"]["a_network"]
        lines += ["", "two passes                 median %  worst %    tau"]
        for condition, rows in document["repeat"]["agreement"].items():
            lines += [
                f"{condition:12} {protocol:12} {row['median_percent']:9.2f} "
                f"{row['worst_percent']:8.2f} {row['kendall_tau']:6.3f}"
                for protocol, row in rows.items()
            ]
        lines.append(
            f"a network: {means['timing_s']:.2f} s of timing, {means['seconds']:.2f} s with its "
            f"sessions; its interval is {means['interval_percent']:.1f} % wide"
        )
    if "predict" in document:
        lines += ["", "prediction                   MAPE %  worst %    tau"]
        lines += [
            f"{name:26} {row['mape_percent']:8.2f} {row['worst_percent']:8.2f} "
            f"{row['kendall_tau']:6.3f}"
            for name, row in document["predict"]["methods"].items()
        ]
        found = document["predict"]
        lines.append(
            f"{found['share_inside_interval']:.0%} inside their 95 % interval; {found['blocks']} "
            f"blocks; {found['prepare_s']:.0f} s to calibrate, then "
            f"{found['predict_s'] / len(found['measured_ms']):.2f} s a network"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
