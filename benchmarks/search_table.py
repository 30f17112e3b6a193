"""A table of trained networks in which searches can be replayed: its recording.

    python benchmarks/search_table.py train --jobs 2    # what is missing, on both cores
    python benchmarks/search_table.py probe             # their latencies, with nothing else running
    python benchmarks/search_table.py report            # README.md, the table's card

``train`` fits networks of the space ``spaces/levit-fashion`` behind a stem of patches, within its
limit, drawn once by a stated seed, by the space's recipe over nine epochs, and quantizes each as a
search does. They come in the order in which they were drawn, a quarter of them with two seeds more,
so that any part of the table is a fair sample. What has ended is kept in ``trainings.csv`` (a row a
training, with the accuracy and the processor time after each epoch) and not done again; other
settings than those in ``settings.json`` are refused. ``probe`` measures all networks with the
estimator of searches, in float and in int8, into ``latency.csv``.
"""

import argparse
import csv
import functools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from job_pool import Progress, add_options, carried_out, drawn, say
from rank_study import append, keep_settings
from rank_study_shown import rows_of
from search_table_shown import as_markdown, document_of
from short_schedule import ROOT, SPACE, Setup, fill_once, opened, setup_of

from levit_search.architecture import Architecture
from levit_search.cost import cost
from levit_search.errors import LevitSearchError, TrialError
from levit_search.files import write_atomically, write_json
from levit_search.latency import Probe
from levit_search.latency.targets import Int8Format
from levit_search.space import Space
from levit_search.study import StudyConfig, parse_settings, read_config

FOLDER = ROOT / "studies" / "table"
CHANGES = ("architecture.stem={kind: patch, patch_size: 4}", "teacher.recipe.epochs=6")
"""Of the space. Behind its own stems of convolutions, their depth and width decide alone how
accurate a network is after so few images."""
SEED = 0  # of the draw
NETWORKS, EPOCHS = 1000, 9
BLOCK, REPEATED = 8, 2  # in each block of so many networks, so many are trained with all seeds
SEEDS = (0, 1, 2)
INT8_FORMAT: Int8Format = "u8"
TRAININGS = (
    "network",
    "seed",
    *(f"top1_percent_{epoch}" for epoch in range(1, EPOCHS + 1)),
    *(f"cpu_s_{epoch}" for epoch in range(1, EPOCHS + 1)),
    "top1_int8_percent",
)
LATENCIES = ("network", "precision", "latency_ms", "low_ms", "high_ms")
_PROBED = 12  # networks that are measured together


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", choices=("train", "probe", "report"))
    add_options(parser, SPACE, FOLDER)
    parser.set_defaults(train_images=4000, set=[*CHANGES])
    parser.add_argument("--networks", type=int, default=NETWORKS, help="the first so many")
    options = parser.parse_args()
    try:
        config = read_config(options.space, parse_settings(options.set))
        match options.mode:
            case "train":
                return train(config, options)
            case "probe":
                probe(config, options)
        document = document_of(options.folder)
        write_json(options.folder / "results.json", document)
        write_atomically(options.folder / "README.md", as_markdown(document))
        print(json.dumps(document, indent=2) if options.json else as_markdown(document))
        return 0
    except LevitSearchError as error:
        print(f"search_table.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # what has ended is kept
        return 130


def networks_of(space: Space, folder: Path) -> list[Architecture]:
    """All networks of the table, which ``networks.csv`` has by their slots; written if it is not
    there."""
    networks = drawn(space, NETWORKS, np.random.default_rng(SEED))
    columns = ("network", *space.distributions(), "params", "flops")
    if not (folder / "networks.csv").exists():
        rows = [
            {
                "network": network.id,
                **(space.encode(network) or {}),
                **{name: getattr(cost(network), name) for name in ("params", "flops")},
            }
            for network in networks
        ]
        append(folder / "networks.csv", columns, rows)
    return networks


# --- training


class Job(NamedTuple):
    """One training."""

    setup: str  # a Setup as JSON
    network: Architecture
    seed: int


class Trained(NamedTuple):
    """What came of one; a value an epoch where it is a list."""

    top1_percent: list[float]
    cpu_s: list[float]
    top1_int8_percent: float


def jobs_of(setup: Setup, networks: Sequence[Architecture]) -> Iterator[Job]:
    """Block by block: all networks with the first seed, then some with the others."""
    text = setup.model_dump_json()
    for start in range(0, len(networks), BLOCK):
        block = networks[start : start + BLOCK]
        yield from (Job(text, network, SEEDS[0]) for network in block)
        yield from (Job(text, each, seed) for each in block[:REPEATED] for seed in SEEDS[1:])


def train(config: StudyConfig, options: argparse.Namespace) -> int:
    """Train what the folder lacks; returns 1 where a training failed.

    Raises:
        InputError: the folder has figures of other settings, or the data is missing.
    """
    setup = setup_of(config, options.train_images, EPOCHS)
    drawn_by = {
        "space": config.name,
        "architecture": config.architecture,
        "flops_limit": config.limits.flops,
        "drawn_with_seed": SEED,
    }
    settings = {**drawn_by, "int8_format": INT8_FORMAT, **setup.model_dump(mode="json")}
    keep_settings(options.folder, settings)
    jobs = list(jobs_of(setup, networks_of(config.space(), options.folder)[: options.networks]))
    file = options.folder / "trainings.csv"
    done = {(row["network"], int(row["seed"])) for row in rows_of(file)}
    missing = [job for job in jobs if (job.network.id, job.seed) not in done]
    progress = Progress(len(jobs) - len(missing), len(jobs))
    failed = 0
    for job, found in carried_out(trained, missing, options.jobs, options.minutes):
        name = f"{job.network.id} seed {job.seed}"
        if isinstance(found, TrialError):
            failed = 1
            progress.step(f"{name}: {found}")
            continue
        append(file, TRAININGS, [row_of(job, found)])
        last = found.top1_percent[-1]
        text = f"{last:.2f} %, in int8 {found.top1_int8_percent:.2f} %, {found.cpu_s[-1]:.0f} s"
        progress.step(f"{name}: {text}")
    return failed


def trained(job: Job) -> Trained:
    """Train one network and quantize it, in a worker."""
    from levit_search.model import export_onnx
    from levit_search.model.quantization import calibration_images, quantized_network
    from levit_search.train import top1_percent, train_network

    setup = Setup.model_validate_json(job.setup)
    batches, teacher, _ = opened(job.setup)
    fill_once(job.setup, job.seed)
    begun, cpu_s = time.process_time(), list[float]()
    model, training = train_network(
        job.network,
        batches,
        setup.train,
        job.seed,
        teacher,
        report=lambda _: cpu_s.append(time.process_time() - begun),
    )
    write = functools.partial(export_onnx, model, batch_size=None)
    latency, images = read_config(SPACE).latency, calibration_images(batches, None)
    in_int8, _ = quantized_network(write, images, latency, INT8_FORMAT, threads=1)
    accuracies = [epoch.val_top1_percent for epoch in training.curve]
    return Trained(accuracies, cpu_s, top1_percent(in_int8, batches, "val"))


def row_of(job: Job, found: Trained) -> dict[str, Any]:
    numbers = dict(enumerate(zip(found.top1_percent, found.cpu_s, strict=True), start=1))
    return {
        "network": job.network.id,
        "seed": job.seed,
        **{f"top1_percent_{epoch}": f"{percent:.4f}" for epoch, (percent, _) in numbers.items()},
        **{f"cpu_s_{epoch}": f"{seconds:.2f}" for epoch, (_, seconds) in numbers.items()},
        "top1_int8_percent": f"{found.top1_int8_percent:.4f}",
    }


# --- latency


def probe(config: StudyConfig, options: argparse.Namespace) -> None:
    """Measure what ``latency.csv`` lacks of the networks that were trained.

    Raises:
        TrialError: a network could not be measured.
    """
    file = options.folder / "latency.csv"
    with (options.folder / "trainings.csv").open(newline="") as text:
        trained_ids = {row["network"] for row in csv.DictReader(text)}
    networks = networks_of(config.space(), options.folder)[: options.networks]
    end = time.monotonic() + 60 * (options.minutes or 1e9)
    for precision in ("fp32", "int8"):
        done = {row["network"] for row in rows_of(file) if row["precision"] == precision}
        missing = [each for each in networks if each.id in trained_ids - done]
        say(f"{len(missing)} networks to measure in {precision}")
        section = config.latency.model_copy(update={"precision": precision})
        with Probe(section) as session:
            session.settle_reference(networks[0])
            if precision == "int8":
                session.settle_int8(networks[0])
            for start in range(0, len(missing), _PROBED):
                if time.monotonic() > end:
                    return
                part = missing[start : start + _PROBED]
                rows = []
                for network, found in zip(part, session.measure_all(part), strict=True):
                    if isinstance(found, TrialError):
                        raise found
                    low, high = (ratio * found.reference_ms for ratio in found.ratio_ci95)
                    figures = (found.latency_ms, low, high)
                    milliseconds = [f"{each:.5f}" for each in figures]
                    row = (network.id, precision, *milliseconds)
                    rows.append(dict(zip(LATENCIES, row, strict=True)))
                append(file, LATENCIES, rows)
                say(f"{precision}: {start + len(part)}/{len(missing)}")


if __name__ == "__main__":
    sys.exit(main())
