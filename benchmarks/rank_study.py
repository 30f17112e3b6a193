"""How a supernet ranks networks, held against trainings of their own.

    python benchmarks/rank_study.py alone --jobs 2       # train the networks by themselves
    python benchmarks/rank_study.py supernet --jobs 2    # train supernets, and ask them
    python benchmarks/rank_study.py cost                 # what either takes, in turn
    python benchmarks/rank_study.py report               # table.md, ranks.svg

``alone`` fits networks of ``spaces/levit-fashion`` within its limit, as different in FLOPs and
params as it has them, by the space's recipe with two seeds. ``supernet`` trains the space's
supernet by several schedules and asks each for the same networks' accuracies, one also with
batch-norm statistics calibrated on fewer and more images, and with none of their own. What has
ended is kept in ``alone.csv`` and ``inherited.csv`` and not done again; other settings than those
in ``settings.json`` are refused. ``cost`` times a supernet's steps and a candidate beside steps of
training alone, in turn, and writes ``cost.json``.
"""

import argparse
import csv
import io
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from job_pool import Progress, add_options, carried_out, drawn, refuse_others, say
from rank_study_shown import as_markdown, document_of, draw, rows_of
from short_schedule import ROOT, SPACE, Setup, fill_once, opened

from levit_search.architecture import Architecture, Levit
from levit_search.cost import cost
from levit_search.errors import LevitSearchError, TrialError
from levit_search.files import write_atomically, write_json
from levit_search.recipe import Recipe, SupernetConfig
from levit_search.space import Envelope, Extremes
from levit_search.study import StudyConfig, parse_settings, read_config
from levit_search.study.folder import environment

if TYPE_CHECKING:
    from levit_search.batches import Batches
    from levit_search.supernet import Elastic, Inheritance, Sandwich

FOLDER = ROOT / "studies" / "supernet"
SEEDS = (0, 1)
_TIMED = 8  # networks, and pairs of steps with each stem
_DRAWN = 480  # networks to choose from
SCHEDULES = ((3, 0), (3, 1), (2, 0), (5, 0), (5, 1))
"""Epochs and seed of each supernet."""
CALIBRATED = (3, 0)
"""The supernet that is asked with other calibrations too: that of the default."""
CALIBRATIONS = (0, 64, 256, 1024, 4096)
"""Images that batch norm is calibrated on; 0 takes the statistics of the largest network's part."""
INHERITED = ("network", "epochs", "seed", "calibration_images", "inherited_top1_percent")
ALONE = ("network", "params", "flops", "seed", "val_top1_percent", "seconds", "architecture")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", choices=("alone", "supernet", "cost", "report"))
    add_options(parser, SPACE, FOLDER)
    parser.set_defaults(train_images=20000)
    parser.add_argument("--networks", type=int, default=32, help="a multiple of 4")
    parser.add_argument(
        "--kept", type=Path, default=Path("/tmp/rank-study"), help="supernets in training"
    )
    options = parser.parse_args()
    try:
        config = read_config(options.space, parse_settings(options.set))
        match options.mode:
            case "alone":
                return train_alone(config, options)
            case "supernet":
                return ask_supernets(config, options)
            case "cost":
                write_json(options.folder / "cost.json", costs(config, options))
        document = document_of(options.folder)
        write_atomically(options.folder / "table.md", as_markdown(document))
        write_atomically(options.folder / "ranks.svg", draw(options.folder, document))
        print(json.dumps(document, indent=2) if options.json else as_markdown(document))
        return 0
    except LevitSearchError as error:
        print(f"rank_study.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # what has ended is kept
        return 130


def setup_of(config: StudyConfig, train_images: int) -> Setup:
    assert config.teacher is not None
    return Setup(
        data=config.data.model_copy(update={"train_images": train_images}),
        train=Recipe(**{**config.train.model_dump(), "rungs": (), "distillation": "hard"}),
        teacher=config.teacher,
        teacher_seed=config.search.seed,
    )


def chosen_networks(config: StudyConfig, count: int) -> list[Architecture]:
    """Random networks within the limits, as many from each quarter by FLOPs and there spread over
    params, in a shuffled order, so that the first ones are a fair sample."""
    rng = np.random.default_rng(0)
    networks = drawn(config.space(), _DRAWN, rng)
    by_flops = sorted(networks, key=lambda network: cost(network).flops)
    found: list[Architecture] = []
    for quarter in np.array_split(np.arange(len(by_flops)), 4):
        by_params = sorted((by_flops[i] for i in quarter), key=lambda each: cost(each).params)
        wanted = count // 4
        found += [by_params[(2 * i + 1) * len(by_params) // (2 * wanted)] for i in range(wanted)]
    return [found[index] for index in rng.permutation(len(found))]


class Job(NamedTuple):
    """One training."""

    setup: str  # a Setup as JSON
    network: Architecture
    seed: int


def fitted(job: Job) -> tuple[float, float]:
    """Train one network, in a worker: its accuracy on val in percent, and seconds."""
    from levit_search.train import train_network

    setup = Setup.model_validate_json(job.setup)
    batches, teacher, _ = opened(job.setup)
    fill_once(job.setup, job.seed)
    _, training = train_network(job.network, batches, setup.train, job.seed, teacher)
    return training.val_top1_percent, training.seconds


def train_alone(config: StudyConfig, options: argparse.Namespace) -> int:
    """Train what ``alone.csv`` lacks; returns 1 where a training failed.

    Raises:
        InputError: the folder has figures of other settings, or the data is missing.
    """
    setup = setup_of(config, options.train_images)
    settings = {"space": config.name, "flops_limit": config.limits.flops}
    keep_settings(options.folder, {**settings, **setup.model_dump(mode="json")})
    text, file = setup.model_dump_json(), options.folder / "alone.csv"
    jobs = [
        Job(text, network, seed)
        for network in chosen_networks(config, options.networks)
        for seed in SEEDS
    ]
    done = {(row["network"], int(row["seed"])) for row in rows_of(file)}
    missing = [job for job in jobs if (job.network.id, job.seed) not in done]
    progress = Progress(len(jobs) - len(missing), len(jobs))
    failed = 0
    for job, found in carried_out(fitted, missing, options.jobs, options.minutes):
        name = f"{job.network.id} seed {job.seed}"
        if isinstance(found, TrialError):
            failed = 1
            progress.step(f"{name}: {found}")
            continue
        append(file, ALONE, [row_of(job, *found)])
        progress.step(f"{name}: {found[0]:.2f} % in {found[1]:.0f} s")
    return failed


class SupernetJob(NamedTuple):
    """The training of one supernet, and the questions to it."""

    setup: str
    epochs: int
    seed: int
    networks: tuple[Architecture, ...]
    kept: Path
    """Its checkpoint, and then its weights."""


def supernet_config(epochs: int, images: int = 1024) -> SupernetConfig:
    return SupernetConfig(epochs=epochs, calibration_images=max(2, images))


def made(job: SupernetJob) -> tuple[Any, Any, Any]:
    """The shared weights, their objective and their teacher, before training."""
    from levit_search.distill import obtain_teacher
    from levit_search.space import envelope_of, extremes_of
    from levit_search.supernet import draw_within

    setup = Setup.model_validate_json(job.setup)
    batches, _, _ = opened(job.setup)
    config = supernet_config(job.epochs)
    recipe = config.recipe(setup.train)
    space = read_config(SPACE).space()
    teacher, _ = obtain_teacher(
        setup.teacher, setup.data, batches, recipe, None, setup.teacher_seed, say=say
    )
    envelope = envelope_of(space)

    def member(chance: np.random.Generator, stem: str) -> Levit:
        return draw_within(space, chance, stem)

    ends = extremes_of(space, envelope)
    elastic, _, objective = objective_of(envelope, ends, member, config, recipe, batches, job.seed)
    return elastic, objective, teacher


def objective_of(
    envelope: Envelope,
    ends: Mapping[str, Extremes],
    draw: Callable[[np.random.Generator, str], Levit],
    config: SupernetConfig,
    recipe: Recipe,
    batches: "Batches",
    seed: int,
) -> "tuple[Elastic, Inheritance, Sandwich]":
    """New shared weights, who asks them for accuracies, and what they are to learn."""
    from levit_search.supernet import Elastic, Inheritance, Sandwich
    from levit_search.train import seed_torch

    seed_torch(seed, 3)
    elastic = Elastic(envelope)
    inheritance = Inheritance(batches, recipe, config, seed)
    whole_steps = config.whole_epochs * batches.steps(recipe)
    objective = Sandwich(
        elastic,
        ends,
        draw,
        config.members,
        whole_steps,
        recipe,
        seed,
        inheritance.top1_percent,
    )
    return elastic, inheritance, objective


def asked(job: SupernetJob) -> list[dict[str, Any]]:
    """Train one supernet and ask it, in a worker; rows of ``inherited.csv``."""
    from levit_search.supernet import Inheritance
    from levit_search.train import Checkpoint, fit

    setup = Setup.model_validate_json(job.setup)
    batches, _, _ = opened(job.setup)
    elastic, objective, teacher = made(job)
    recipe = supernet_config(job.epochs).recipe(setup.train)
    name = f"supernet {job.epochs} epochs seed {job.seed}"
    training = fit(
        elastic,
        batches,
        recipe,
        job.seed,
        teacher,
        lambda point: say(f"{name}: {point}"),
        Checkpoint(job.kept, f"{job.epochs}-{job.seed}"),
        objective=objective,
    )
    say(f"{name}: {training.seconds:.0f} s")
    rows = []
    for images in CALIBRATIONS if (job.epochs, job.seed) == CALIBRATED else (1024,):
        config = supernet_config(job.epochs, images)
        inheritance = Inheritance(batches, recipe, config, job.seed)
        for network in job.networks:
            if images:
                accuracy = inheritance.top1_percent(elastic, network)
            else:
                accuracy = uncalibrated(elastic, inheritance, objective, network, batches, config)
            values = (network.id, job.epochs, job.seed, images, f"{accuracy:.4f}")
            rows.append(dict(zip(INHERITED, values, strict=True)))
    return rows


def uncalibrated(
    elastic: Any, inheritance: Any, objective: Any, network: Any, batches: Any, config: Any
) -> float:
    """The accuracy with the leading part of the statistics of the largest network with the same
    stem, as if they were weights; where that lacks a part, those of fresh networks."""
    import torch

    from levit_search.space import stem_name
    from levit_search.supernet.elastic import skeleton
    from levit_search.train import top1_percent

    largest = objective.extremes[stem_name(network)].largest
    source = dict(inheritance.extracted(elastic, largest).named_buffers())
    model = elastic.extract(network).eval()
    own, lender = dict(model.named_buffers()), skeleton(largest)
    shared = dict(elastic.named_parameters())
    kept = {name: parameter.detach().clone() for name, parameter in shared.items()}
    for statistic, fresh in (("running_mean", 0.0), ("running_var", 1.0)):
        parts = elastic.parts(lender)
        norms = [name for name in parts if f"{name.removesuffix('weight')}{statistic}" in source]
        # The gradient of a sum over a part is where that part lies.
        wanted = [source[f"{name.removesuffix('weight')}{statistic}"] - fresh for name in norms]
        total = sum((parts[n] * w).sum() for n, w in zip(norms, wanted, strict=True))
        placed = torch.autograd.grad(total, list(shared.values()), allow_unused=True)
        with torch.no_grad():
            for parameter, values in zip(shared.values(), placed, strict=True):
                parameter.fill_(fresh)
                if values is not None:
                    parameter.add_(values)
            for name, part in elastic.parts(model).items():
                buffer = f"{name.removesuffix('weight')}{statistic}"
                if name.endswith("weight") and buffer in own:
                    own[buffer].copy_(part)
            for name, parameter in shared.items():
                parameter.copy_(kept[name])
    return float(top1_percent(model, batches, "val", most=config.val_images))


def ask_supernets(config: StudyConfig, options: argparse.Namespace) -> int:
    """Train and ask the supernets that ``inherited.csv`` lacks; returns 1 where one failed."""
    setup = setup_of(config, options.train_images)
    settings = {"space": config.name, "flops_limit": config.limits.flops}
    keep_settings(options.folder, {**settings, **setup.model_dump(mode="json")})
    file = options.folder / "inherited.csv"
    networks = tuple(chosen_networks(config, options.networks))
    done = {(int(row["epochs"]), int(row["seed"])) for row in rows_of(file)}
    missing = [
        SupernetJob(
            setup.model_dump_json(), epochs, seed, networks, options.kept / f"{epochs}-{seed}.pt"
        )
        for epochs, seed in SCHEDULES
        if (epochs, seed) not in done
    ]
    failed = 0
    for job, rows in carried_out(asked, missing, options.jobs, options.minutes):
        if isinstance(rows, TrialError):
            failed = 1
            say(f"{job.epochs} epochs, seed {job.seed}: {rows}")
            continue
        append(file, INHERITED, rows)
    return failed


def costs(config: StudyConfig, options: argparse.Namespace) -> dict[str, Any]:
    """What a supernet's step and a candidate take, as shares of training alone, timed in turn."""
    import torch

    from levit_search.supernet import Inheritance, calibrate
    from levit_search.train import Optimization, Views, device_of, fresh_network, top1_percent
    from levit_search.train.objective import PlainLoss

    torch.set_num_threads(1)
    setup = setup_of(config, options.train_images)
    networks = chosen_networks(config, options.networks)
    longest = max(epochs for epochs, _ in SCHEDULES)
    job = SupernetJob(setup.model_dump_json(), longest, 0, tuple(networks), options.kept)
    elastic, sandwich, _ = made(job)
    batches, _, _ = opened(job.setup)
    asked_for = supernet_config(longest)
    recipe, device = asked_for.recipe(setup.train), device_of(setup.train)
    steps = batches.steps(recipe)
    batch = next(iter(batches.train(0, 0, recipe, device)))
    taught = batch.targets  # as good as a teacher's for the clock

    def stepping(model: Any, objective: Any) -> Callable[[int], float]:
        optimization = Optimization(model, recipe, steps)

        def step(number: int) -> float:
            start = time.process_time()
            objective.learn(Views(batch.images, batch.targets, taught, number), optimization, 1.0)
            optimization.step(number)
            return time.process_time() - start

        return step

    def alone(network: Architecture) -> Callable[[int], float]:
        model = fresh_network(network, setup.train, 0).train()
        return stepping(model, PlainLoss(model, batches, setup.train))

    shared, largest = stepping(elastic, sandwich), alone(sandwich.ends.largest)
    pairs = [(shared(n), largest(n)) for n in range(2 + 2 * _TIMED)][2:]
    of_step = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
    inheritance = Inheritance(batches, recipe, asked_for, 0)
    inheritance.top1_percent(elastic, networks[0])
    epochs = setup.train.epochs
    shares, calibrations, of_val = [], [], 0.0
    for network in [sandwich.ends.largest, *networks[:_TIMED]]:
        step = alone(network)
        step(0)
        model = fresh_network(network, setup.train, 0)
        seconds: dict[str, list[float]] = {"candidate": [], "step": [], "val": [], "views": []}
        for number in range(3):
            seconds["step"] += [step(3 * number + place) for place in range(3)]
            for name, work in (
                ("candidate", lambda n=network: inheritance.top1_percent(elastic, n)),
                ("views", lambda m=model: calibrate(m, inheritance._views())),
                ("val", lambda m=model: top1_percent(m, batches, "val")),
            ):
                start = time.process_time()
                work()
                seconds[name].append(time.process_time() - start)
        median = {name: float(np.median(values)) for name, values in seconds.items()}
        training = epochs * (steps * median["step"] + median["val"])
        if network is sandwich.ends.largest:
            of_val = median["val"] / median["step"] / steps
            continue
        shares.append(median["candidate"] / training)
        calibrations.append(median["views"] / median["candidate"])
    return {
        "environment": environment([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "step_of_largest": of_step,
        "largest_trainings": {
            str(n): n * of_step / (1 + of_val) / epochs for n in sorted({e for e, _ in SCHEDULES})
        },
        "candidate": {
            "networks": len(shares),
            "lowest": min(shares),
            "median": float(np.median(shares)),
            "highest": max(shares),
        },
        "calibration_share": float(np.median(calibrations)),
        "calibration_images": asked_for.calibration_images,
        "val_images": asked_for.val_images,
    }


def row_of(job: Job, accuracy: float, seconds: float) -> dict[str, Any]:
    price = cost(job.network)
    return {
        "network": job.network.id,
        "params": price.params,
        "flops": price.flops,
        "seed": job.seed,
        "val_top1_percent": f"{accuracy:.4f}",
        "seconds": f"{seconds:.2f}",
        "architecture": job.network.model_dump_json(),
    }


# --- files


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write ``settings.json``, or see that it says the same.

    Raises:
        InputError: the figures there were made with others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    here = environment([Path(sys.argv[0]).name, *sys.argv[1:]])
    sessions = []
    if file.exists():
        kept = json.loads(file.read_text())
        refuse_others(folder, kept["settings"], settings)
        sessions = kept["sessions"]
    write_json(file, {"settings": settings, "sessions": [*sessions, here]})


def append(file: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Add all rows at once."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows_of(file), *rows])
    write_atomically(file, text.getvalue())


if __name__ == "__main__":
    sys.exit(main())
