"""How much a teacher, and the way of learning from it, are worth to one student.

    python benchmarks/teachers.py --jobs 2
    python benchmarks/teachers.py --json               # the table's figures, once all has run

A LeViT of about 0.25M parameters out of ``spaces/levit-fashion`` learns from nobody, from the
space's own teacher (small), and from one of three times its parameters that is trained four times
as long (large); from either by soft and by hard distillation, with the same data, epochs and seeds.
Without a teacher its second head learns from the labels. Gains are over no teacher, seed by seed.

The teacher's answers are computed before each training, whose seconds are those with all of them at
hand. What has ended is kept in ``results.json`` and not trained again; other settings are refused.
Writes ``table.md`` beside it and prints it; one multiply-add is one FLOP.
"""

import argparse
import functools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from job_pool import Progress, add_options, carried_out, refuse_others, say
from scipy.stats import t

from levit_search.architecture import Architecture, parse
from levit_search.configuration import Frozen
from levit_search.cost import cost
from levit_search.data import DataConfig
from levit_search.errors import InputError, LevitSearchError, TrialError
from levit_search.files import write_atomically, write_json
from levit_search.progress import no_progress
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.study import StudyConfig, parse_settings, read_config
from levit_search.study.folder import environment

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "spaces" / "levit-fashion.yaml"
FOLDER = ROOT / "studies" / "teachers"

STUDENT = {
    "image_size": 32,
    "in_channels": 1,
    "num_classes": 10,
    "stem": {"kind": "conv", "layers": 3},
    "stages": [
        {"depth": 1, "embed_dim": 48, "num_heads": 3, "key_dim": 16},
        {"depth": 2, "embed_dim": 96, "num_heads": 4, "key_dim": 16},
    ],
    "shrinks": [{"attn_ratio": 2}],
}
LARGE = {"depth": 6, "w0": 64}
LARGE_EPOCHS = 4  # times those of the space's teacher
KINDS = ("soft", "hard")
VAL_SHARE = 0.05  # 3000 of Fashion-MNIST's 60 000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_options(parser, SPACE, FOLDER)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    try:
        return run(options)
    except LevitSearchError as error:
        print(f"teachers.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # what has ended is kept
        return 130


def run(options: argparse.Namespace) -> int:
    setup = setup_of(
        read_config(options.space, parse_settings(options.set)),
        options.train_images,
        options.epochs,
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    document = begun(options.folder, setup)
    text = setup.model_dump_json()
    jobs = [
        Job(text, teacher, kind, seed)
        for seed in range(options.seeds)
        for teacher, kind in variants(setup.teachers)
    ]
    done = {(r["teacher"], r["distillation"], r["seed"]) for r in document["runs"]}
    missing = [job for job in jobs if job[1:] not in done]
    progress = Progress(len(jobs) - len(missing), len(jobs))
    failed = 0
    for job, found in carried_out(taught, missing, options.jobs, options.minutes):
        name = f"{job.teacher or 'no teacher'}, {job.distillation}, seed {job.seed}"
        if isinstance(found, TrialError):
            failed += 1
            progress.step(f"{name}: {found}")
            continue
        card = found.pop("card", None)
        if card is not None:
            document["teachers"][job.teacher] = card
        document["runs"].append(found)
        write_json(options.folder / "results.json", document)
        progress.step(f"{name}: {found['val_top1_percent']:.2f} % in {found['seconds']:.0f} s")
    shown = as_markdown(document)
    write_atomically(options.folder / "table.md", shown)
    print(json.dumps({**document, "rows": rows_of(document)}, indent=2) if options.json else shown)
    return 1 if failed else 0


class Setup(Frozen):
    """What a worker needs to know."""

    data: DataConfig
    train: Recipe
    teachers: dict[str, TeacherConfig]
    teacher_seed: int
    student: dict[str, Any]


def setup_of(config: StudyConfig, train_images: int, epochs: int) -> Setup:
    """The space's settings, with a second teacher.

    Raises:
        InputError: the student is no network of the space.
    """
    student, small = student_network(), config.teacher
    assert small is not None
    if config.space().encode(student) is None:
        raise InputError(f"{config.name}: has no network as the student")
    recipe = small.recipe.model_dump()
    longer = Recipe(**{**recipe, "epochs": LARGE_EPOCHS * small.recipe.epochs})
    changes = {"options": {**small.options, **LARGE}, "recipe": longer}
    return Setup(
        data=config.data.model_copy(
            update={"val_share": VAL_SHARE, "train_images": train_images},
        ),
        train=Recipe(**{**config.train.model_dump(), "epochs": epochs, "rungs": ()}),
        teachers={"small": small, "large": small.model_copy(update=changes)},
        teacher_seed=config.search.seed,
        student=student.model_dump(mode="json"),
    )


def student_network() -> Architecture:
    return parse(STUDENT)


def variants(teachers: Iterable[str]) -> list[tuple[str | None, str]]:
    """(teacher, distillation) of the table's rows."""
    return [(None, "none"), *((name, kind) for name in teachers for kind in KINDS)]


def begun(folder: Path, setup: Setup) -> dict[str, Any]:
    """The results so far; none yet where there is no file.

    Raises:
        InputError: they were made with other settings.
    """
    file = folder / "results.json"
    settings = setup.model_dump(mode="json")
    here = environment([Path(sys.argv[0]).name, *sys.argv[1:]])
    if not file.exists():
        price = cost(student_network())
        student = {"params": price.params, "flops": price.flops}
        start = {"settings": settings, "sessions": [here], "student": student}
        return {**start, "teachers": {}, "runs": []}
    document: dict[str, Any] = json.loads(file.read_text())
    refuse_others(folder, document["settings"], settings)
    return {**document, "sessions": [*document["sessions"], here]}


# --- in a worker


class Job(NamedTuple):
    """One training of the student."""

    setup: str  # a Setup as JSON
    teacher: str | None
    distillation: str
    seed: int


def taught(job: Job) -> dict[str, Any]:
    """Train the student; the teacher is obtained and asked before."""
    from levit_search.distill import fill, obtain_teacher
    from levit_search.train import top1_percent, train_network

    setup = Setup.model_validate_json(job.setup)
    batches = opened(job.setup)
    recipe = setup.train.model_copy(update={"distillation": job.distillation})
    answers, told = None, {}
    if job.teacher is not None:
        config = setup.teachers[job.teacher]
        answers, card = obtain_teacher(
            config, setup.data, batches, recipe, None, setup.teacher_seed, say=say
        )
        filled = fill(answers, batches, recipe, job.seed, recipe.epochs, no_progress)
        told = {"card": card, "fill_seconds": filled.seconds, "filled_views": filled.new_views}
    model, training = train_network(parse(setup.student), batches, recipe, job.seed, answers)
    return {
        "teacher": job.teacher,
        "distillation": job.distillation,
        "seed": job.seed,
        "test_top1_percent": top1_percent(model, batches, "test"),
        **training.as_json(),
        **told,
    }


@functools.cache
def opened(setup: str) -> Any:
    """The data, once a worker."""
    from levit_search.batches import open_batches

    return open_batches(Setup.model_validate_json(setup).data)


# --- shown


def rows_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each (teacher, distillation): means over seeds, with standard deviations."""
    by_variant: dict[tuple[str | None, str], dict[int, dict[str, Any]]] = {}
    for each in document["runs"]:
        variant = each["teacher"], each["distillation"]
        by_variant.setdefault(variant, {})[each["seed"]] = each
    plain = by_variant.get((None, "none"), {})
    return [
        _row(*variant, document["teachers"].get(variant[0], {}), by_variant[variant], plain)
        for variant in variants(document["settings"]["teachers"])
        if variant in by_variant
    ]


def _row(
    teacher: str | None,
    distillation: str,
    card: Mapping[str, Any],
    runs: Mapping[int, Mapping[str, Any]],
    plain: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "teacher": teacher,
        "distillation": distillation,
        "seeds": sorted(runs),
        "teacher_params": card.get("params"),
        "teacher_val_top1_percent": card.get("val_top1_percent"),
        "seconds": spread([each["seconds"] for each in runs.values()]),
    }
    for split in ("val", "test"):
        name = f"{split}_top1_percent"
        row[name] = spread([each[name] for each in runs.values()])
        gains = [each[name] - plain[seed][name] for seed, each in runs.items() if seed in plain]
        row[f"{split}_gain_points"] = spread(gains if teacher is not None else [])
    views = sum(each.get("filled_views", 0) for each in runs.values())
    filling = sum(each.get("fill_seconds", 0.0) for each in runs.values())
    row["fill_images_per_second"] = views / filling if views else None
    return row


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and the half of the mean's 95 % interval (Student's t)."""
    if len(values) < 2:
        return {"mean": float(values[0])} if values else {}
    sd = float(np.std(values, ddof=1))
    half = float(t.ppf(0.975, len(values) - 1)) * sd / len(values) ** 0.5
    return {"mean": float(np.mean(values)), "sd": sd, "half_interval": half}


def as_markdown(document: Mapping[str, Any]) -> str:
    """The table, with what was trained on what."""
    settings, here, student = document["settings"], document["sessions"][-1], document["student"]
    data, rows = settings["data"], rows_of(document)
    lines = [
        "# What a teacher is worth",
        "",
        f"A LeViT of {student['params'] / 1e6:.2f} M params and {student['flops'] / 1e6:.2f} "
        f"MFLOPs (one multiply-add is one FLOP), {settings['train']['epochs']} epochs over "
        f"{data['train_images']} images of {data['name']} at {data['image_size']} px. Means over "
        f"seeds and standard deviations; gains are paired by seed. Seconds are those of training "
        f"with the teacher's answers at hand. {here['cpu']}, torch {here['packages']['torch']}, "
        f"revision {here['revision']}.",
        "",
        "| teacher | params, M | its top-1 on val, % | distillation | seeds | top-1 on val, % "
        "| gain | top-1 on test, % | gain | seconds |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        params, accuracy = row["teacher_params"], row["teacher_val_top1_percent"]
        lines.append(
            f"| {row['teacher'] or 'none'} | {params / 1e6:.2f} | {accuracy:.2f} "
            if params
            else "| none | | "
        )
        lines[-1] += (
            f"| {row['distillation']} | {len(row['seeds'])} | {_shown(row['val_top1_percent'])} "
            f"| {_shown(row['val_gain_points'], '+')} | {_shown(row['test_top1_percent'])} "
            f"| {_shown(row['test_gain_points'], '+')} | {_shown(row['seconds'], digits=0)} |"
        )
    lines += ["", *(_in_words(row) for row in rows if "sd" in row["test_gain_points"])]
    return "\n".join(lines) + "\n"


def _shown(found: Mapping[str, float], sign: str = "", digits: int = 2) -> str:
    if not found:
        return ""
    mean = f"{found['mean']:{sign}.{digits}f}"
    return f"{mean} ± {found['sd']:.{digits}f}" if "sd" in found else mean


def _in_words(row: Mapping[str, Any]) -> str:
    """What the gain on the test split says; one within its interval says nothing."""
    gain, count = row["test_gain_points"], len(row["seeds"])
    mean, half = gain["mean"], gain["half_interval"]
    by = f"{mean:+.2f} points on test, {mean - half:+.2f} to {mean + half:+.2f} (95 %)"
    name = f"{row['distillation'].capitalize()} distillation from the {row['teacher']} teacher"
    if abs(mean) > half:
        return f"- {name} {'helps' if mean > 0 else 'harms'}: {by}."
    return f"- {name} has no effect that {count} seeds can tell: {by}."


if __name__ == "__main__":
    sys.exit(main())
