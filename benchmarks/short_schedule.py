"""How well a few epochs foretell the ranking of many: the curves of 96 networks, and what they say.

    python benchmarks/short_schedule.py --jobs 2       # train what is missing, then report
    python benchmarks/short_schedule.py train --minutes 60
    python benchmarks/short_schedule.py report --json

``train`` fits every combination of six factors, all of them networks of ``spaces/levit-fashion``,
by the space's recipe and with hard distillation from its teacher: all to the longest schedule with
one seed, 16 of them with two seeds more, and then all by complete schedules of their own of one and
three epochs. The networks come in a shuffled order, so that a part of them is a fair sample. What
has ended is kept in ``curves.csv`` (one row an epoch) and not trained again; other settings than
those in ``settings.json`` are refused. Seconds are those since the start of a run with the
teacher's answers at hand.

``report`` writes ``table.md`` and ``tau.svg`` beside the curves and prints the table; with
``--json`` one JSON document instead. ``latency`` measures each network on the CPU into
``latency.csv``. One multiply-add is one FLOP.
"""

import argparse
import csv
import functools
import io
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fidelity import plural, read_curves, report
from fidelity_shown import as_markdown, draw
from job_pool import Progress, add_options, carried_out, refuse_others, say

from levit_search.architecture import Architecture, parse
from levit_search.configuration import Frozen
from levit_search.cost import cost
from levit_search.data import DataConfig
from levit_search.errors import InputError, LevitSearchError, TrialError
from levit_search.files import write_atomically, write_json
from levit_search.latency import Probe
from levit_search.progress import no_progress
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.study import StudyConfig, parse_settings, read_config
from levit_search.study.folder import environment

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "spaces" / "levit-fashion.yaml"
FOLDER = ROOT / "studies" / "short-schedule"

FACTORS: dict[str, tuple[int, ...]] = {
    "stem_layers": (2, 3),
    "embed_dim1": (32, 48),
    "embed_dim2": (64, 96, 128),
    "depth1": (1, 2),
    "depth2": (1, 3),
    "key_dim": (8, 16),
}
# The narrower choices of the space, which leave most networks within its limit.
MLP_RATIO, SHRINK_ATTN_RATIO = 1, 2
MOST_HEADS = 6  # of the second stage, by the space
VAL_SHARE = 0.05  # 3000 of Fashion-MNIST's 60 000, the same ones for any number that is trained on
SHORT = (1, 3)
COLUMNS = (
    "network",
    *FACTORS,
    "params",
    "flops",
    "seed",
    "schedule_epochs",
    "epoch",
    "train_loss",
    "val_top1_percent",
    "seconds",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", nargs="?", choices=("train", "report", "latency"))
    add_options(parser, SPACE, FOLDER)
    parser.add_argument("--epochs", type=int, default=9, help="of the longest schedule")
    parser.add_argument("--networks", type=int, default=96, help="train that many of the 96")
    options = parser.parse_args()
    try:
        return run(options)
    except LevitSearchError as error:
        print(f"short_schedule.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # what has ended is kept
        return 130


def run(options: argparse.Namespace) -> int:
    config = read_config(options.space, parse_settings(options.set))
    failed = 0
    if options.mode == "latency":
        measure(config, subspace(config), options.folder)
        return 0
    if options.mode in (None, "train"):
        setup = setup_of(config, options.train_images, options.epochs)
        failed = train(setup, config, options)
    if options.mode in (None, "report"):
        curves = read_curves(options.folder / "curves.csv")
        made_by = json.loads((options.folder / "settings.json").read_text())
        document = {"settings": made_by, **report(curves)}
        write_atomically(options.folder / "table.md", as_markdown(document))
        write_atomically(options.folder / "tau.svg", draw(curves, document))
        print(json.dumps(document, indent=2) if options.json else as_markdown(document))
    return 1 if failed else 0


# --- the networks


@dataclass(frozen=True)
class Member:
    """One network of the subspace."""

    factors: dict[str, int]
    network: Architecture
    params: int
    flops: int

    @property
    def id(self) -> str:
        return self.network.id


def subspace(config: StudyConfig) -> list[Member]:
    """Every combination of the factors.

    A head for every 16 channels, whatever the key dimension, which so has a price; six at most.

    Raises:
        InputError: the space has no such network.
    """
    space = config.space()
    found = []
    for values in itertools.product(*FACTORS.values()):
        factors = dict(zip(FACTORS, values, strict=True))
        widths = factors["embed_dim1"], factors["embed_dim2"]
        depths = factors["depth1"], factors["depth2"]
        network = parse(
            {
                "image_size": 32,
                "in_channels": 1,
                "num_classes": 10,
                "stem": {"kind": "conv", "layers": factors["stem_layers"]},
                "stages": [
                    {
                        "depth": depth,
                        "embed_dim": width,
                        "num_heads": min(width // 16, MOST_HEADS),
                        "key_dim": factors["key_dim"],
                        "mlp_ratio": MLP_RATIO,
                    }
                    for width, depth in zip(widths, depths, strict=True)
                ],
                "shrinks": [{"attn_ratio": SHRINK_ATTN_RATIO}],
            }
        )
        if space.encode(network) is None:
            raise InputError(f"{config.name}: has no network of {factors}")
        price = cost(network)
        found.append(Member(factors, network, price.params, price.flops))
    return found


def shuffled(members: Sequence[Member]) -> list[Member]:
    """Always the same order, that of training."""
    order = np.random.default_rng(0).permutation(len(members))
    return [members[index] for index in order]


def spread(members: Sequence[Member], count: int = 16) -> list[Member]:
    """``count`` of them: as many from each quarter by FLOPs, and there evenly by params."""
    by_flops = sorted(members, key=lambda member: member.flops)
    found: list[Member] = []
    for quarter in np.array_split(np.arange(len(by_flops)), 4):
        by_params = sorted((by_flops[i] for i in quarter), key=lambda member: member.params)
        wanted = min(count // 4, len(by_params))
        # The middle of each of ``wanted`` equal parts.
        found += [by_params[(2 * i + 1) * len(by_params) // (2 * wanted)] for i in range(wanted)]
    return found


# --- training


class Setup(Frozen):
    """What a worker needs to know."""

    data: DataConfig
    train: Recipe
    teacher: TeacherConfig
    teacher_seed: int


def setup_of(config: StudyConfig, train_images: int, epochs: int) -> Setup:
    assert config.teacher is not None
    data = {"val_share": VAL_SHARE, "train_images": train_images}
    # What rungs would give is read off the curves.
    changes = {"epochs": epochs, "rungs": (), "distillation": "hard"}
    return Setup(
        data=config.data.model_copy(update=data),
        train=Recipe(**{**config.train.model_dump(), **changes}),
        teacher=config.teacher,
        teacher_seed=config.search.seed,
    )


class Job(NamedTuple):
    """One training."""

    setup: str  # a Setup as JSON
    network: Architecture
    seed: int
    epochs: int

    @property
    def key(self) -> tuple[str, int, int]:
        return self.network.id, self.seed, self.epochs


def jobs_of(setup: Setup, members: Sequence[Member]) -> Iterator[Job]:
    """All jobs in their order: the most telling first."""
    text, longest = setup.model_dump_json(), setup.train.epochs
    few = spread(members)
    chosen = {member.id for member in few}
    yield from (Job(text, member.network, 0, longest) for member in members)
    yield from (Job(text, member.network, seed, longest) for seed in (1, 2) for member in few)
    others = [member for member in members if member.id not in chosen]
    for group in (few, others):
        for member in group:
            for epochs in SHORT:
                if epochs < longest:
                    yield Job(text, member.network, 0, epochs)


def train(setup: Setup, config: StudyConfig, options: argparse.Namespace) -> int:
    """Train what the folder's curves lack; returns how many failed.

    Raises:
        InputError: the folder has curves of other settings, or the data is missing.
    """
    members = shuffled(subspace(config))[: options.networks]
    limit = config.limits.flops
    if limit is not None:
        over = sum(member.flops > limit for member in members)
        say(f"{len(members)} networks of {config.name}, {over} of them over its limit of FLOPs")
    options.folder.mkdir(parents=True, exist_ok=True)
    keep_settings(options.folder, settings_of(config, setup))
    say("the teacher is obtained and asked")
    ((_, card),) = carried_out(prepared, [setup.model_dump_json()], 1)
    if isinstance(card, TrialError):
        raise card
    keep_teacher(options.folder, card)
    file = options.folder / "curves.csv"
    done = finished(read_rows(file))
    jobs = list(jobs_of(setup, members))
    missing = [job for job in jobs if job.key not in done]
    progress = Progress(len(jobs) - len(missing), len(jobs))
    by_id = {member.id: member for member in members}
    failed = 0
    for job, curve in carried_out(fitted, missing, options.jobs, options.minutes):
        text = f"{job.network.id} seed {job.seed}, {plural(job.epochs)}"
        if isinstance(curve, TrialError):
            failed += 1
            progress.step(f"{text}: {curve}")
            continue
        append(file, rows_of(by_id[job.network.id], job, curve))
        progress.step(f"{text}: {curve[-1][2]:.2f} % in {curve[-1][3]:.0f} s")
    return failed


def prepared(setup: str) -> dict[str, Any]:
    """Obtain the teacher and its answers for seed 0, in a worker; its card."""
    fill_once(setup, 0)
    card: dict[str, Any] = opened(setup)[2]
    return card


Point = tuple[int, float, float, float]
"""Epoch, mean loss, accuracy on val in percent, seconds since the start."""


def fitted(job: Job) -> list[Point]:
    """Train one network, in a worker."""
    from levit_search.train import train_network

    setup = Setup.model_validate_json(job.setup)
    batches, teacher, _ = opened(job.setup)
    fill_once(job.setup, job.seed)
    recipe = setup.train.model_copy(update={"epochs": job.epochs})
    _, training = train_network(job.network, batches, recipe, job.seed, teacher)
    return [(e.epoch, e.train_loss, e.val_top1_percent, e.seconds) for e in training.curve]


@functools.cache
def opened(setup: str) -> tuple[Any, Any, dict[str, Any]]:
    """The data, the teacher's answers and its card, once a worker."""
    from levit_search.batches import open_batches
    from levit_search.distill import obtain_teacher

    told = Setup.model_validate_json(setup)
    batches = open_batches(told.data)
    seed = told.teacher_seed
    teacher, card = obtain_teacher(
        told.teacher, told.data, batches, told.train, None, seed, say=say
    )
    return batches, teacher, card


@functools.cache
def fill_once(setup: str, seed: int) -> None:
    """Have the teacher answer for all views of a seed, so that no training's seconds hold it."""
    from levit_search.distill import fill

    recipe = Setup.model_validate_json(setup).train
    batches, teacher, _ = opened(setup)
    fill(teacher, batches, recipe, seed, recipe.epochs, no_progress)


# --- files


def settings_of(config: StudyConfig, setup: Setup) -> dict[str, Any]:
    """What the curves depend on, as JSON gives it back."""
    made_of = {
        "space": config.name,
        "factors": FACTORS,
        "fixed": {"mlp_ratio": MLP_RATIO, "shrinks.attn_ratio": SHRINK_ATTN_RATIO},
        "flops_limit": config.limits.flops,
        "short_schedules": SHORT,
        **setup.model_dump(mode="json"),
    }
    found: dict[str, Any] = json.loads(json.dumps(made_of))
    return found


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write ``settings.json``, or see that it says the same.

    Raises:
        InputError: the curves there were made with others.
    """
    file = folder / "settings.json"
    here = environment([Path(sys.argv[0]).name, *sys.argv[1:]])
    if not file.exists():
        if (folder / "curves.csv").exists():
            raise InputError(f"{folder}: has curves.csv without settings.json; choose another")
        write_json(file, {"settings": settings, "sessions": [here]})
        return
    kept = json.loads(file.read_text())
    refuse_others(folder, kept["settings"], settings)
    write_json(file, {**kept, "sessions": [*kept["sessions"], here]})


def keep_teacher(folder: Path, card: dict[str, Any]) -> None:
    """Write the teacher's card into ``settings.json``, or see that it is the same teacher.

    Raises:
        InputError: the curves there were made with another.
    """
    file = folder / "settings.json"
    kept = json.loads(file.read_text())
    if kept.get("teacher", card)["id"] != card["id"]:
        raise InputError(
            f"{folder}: its curves were made with the teacher {kept['teacher']['id']}, here it is "
            f"{card['id']}; choose another folder"
        )
    if "teacher" not in kept:
        write_json(file, {**kept, "teacher": card})


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of ``curves.csv``; none where it does not exist."""
    if not file.exists():
        return []
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def finished(rows: Sequence[dict[str, str]]) -> set[tuple[str, int, int]]:
    """(network, seed, epochs of the schedule) of what has been trained."""
    return {(row["network"], int(row["seed"]), int(row["schedule_epochs"])) for row in rows}


def rows_of(member: Member, job: Job, curve: Sequence[Point]) -> list[dict[str, Any]]:
    """One row an epoch."""
    start = {
        "network": member.id,
        **member.factors,
        "params": member.params,
        "flops": member.flops,
        "seed": job.seed,
        "schedule_epochs": job.epochs,
    }
    return [
        {
            **start,
            "epoch": epoch,
            "train_loss": f"{loss:.5f}",
            "val_top1_percent": f"{accuracy:.4f}",
            "seconds": f"{seconds:.2f}",
        }
        for epoch, loss, accuracy, seconds in curve
    ]


def append(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add all rows at once."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*read_rows(file), *rows])
    write_atomically(file, text.getvalue())


# --- latency


def measure(config: StudyConfig, members: Sequence[Member], folder: Path) -> None:
    """Milliseconds an image of every network; samples are cached, so that a second call goes on.

    Raises:
        TrialError: a network could not be measured.
    """
    say(f"measuring {len(members)} networks on {config.latency.target.label}")
    with Probe(config.latency) as probe:
        probe.settle_reference(members[0].network)
        lines = ["network,latency_ms,low_ms,high_ms"]
        for start in range(0, len(members), 12):
            part = members[start : start + 12]
            measured = probe.measure_all([member.network for member in part])
            for member, found in zip(part, measured, strict=True):
                if isinstance(found, TrialError):
                    raise found
                low, high = (ratio * found.reference_ms for ratio in found.ratio_ci95)
                lines.append(f"{member.id},{found.latency_ms:.5f},{low:.5f},{high:.5f}")
            say(f"{start + len(part)}/{len(members)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "latency.csv", "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
