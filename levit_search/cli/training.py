"""Commands that train: one network, weights that a space's networks share, a teacher, and the
paper's tables beside ours."""

import math
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search.cli.networks import architecture_of
from levit_search.cli.terminal import (
    Json,
    NewStudyFolder,
    Settings,
    accuracies,
    interruptible,
    print_figures,
    print_json,
    say,
    tell,
)
from levit_search.errors import InputError
from levit_search.escaping import quoted

if TYPE_CHECKING:
    from levit_search.distill.store import StoreState
    from levit_search.progress import StepProgress
    from levit_search.recipe import TeacherConfig
    from levit_search.reproduce import PaperTable, ReproductionStore
    from levit_search.study import Study, StudyConfig
    from levit_search.supernet import SupernetCard
    from levit_search.train import Epoch, Report

# The embedded space whose recipe and teacher a data set's training starts from; those of
# levit-fashion serve for others, whatever their size.
_SPACE_OF = {"digits": "levit", "fashion-mnist": "levit-fashion"}


def given_size(text: str | None) -> int | list[int] | None:
    """``--image-size`` as a configuration has it."""
    from levit_search.image_size import plain_size, read_size

    return None if text is None else plain_size(read_size(text, "--image-size"))


def training_config(
    data: str, given: Mapping[str, object], settings: list[str] | None
) -> "StudyConfig":
    """The default recipe and teacher of a data set, changed by options and by ``--set``.

    Options that were not given are None; a teacher that is None was given as ``none``.
    """
    from levit_search.study import parse_settings, read_config, space_file

    changes: dict[str, object] = {"start": []}
    if data not in _SPACE_OF:
        changes["data"] = {"name": data}
    changes |= {k: v for k, v in given.items() if v is not None or k == "teacher"}
    changes |= parse_settings(settings or [])
    config = read_config(space_file(_SPACE_OF.get(data, "levit-fashion")), changes)
    config.check_planned()
    return config


def train(
    arch: Annotated[
        str, typer.Argument(metavar="ARCH", help="A published name, a YAML file or STUDY#TRIAL.")
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="digits, fashion-mnist, folder (with --set data.root=DIR), or a name of timm's "
            "readers such as torch/cifar10.",
        ),
    ] = "digits",
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Pixels a side, or HxW such as 64x96 [default: the space file's or the data's].",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="short or levit, in place of the space file's train section."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs to train.")] = None,
    stop_after: Annotated[
        int | None,
        typer.Option(
            metavar="EPOCH", min=1, help="Stop here; the same command without it goes on."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Start from these: a file, the folder of an export or of --out, STUDY or "
            "STUDY#TRIAL, or timm's name of a LeViT, DeiT or ResNet [default: fresh].",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A timm network with the recipe short, or none [default: the space file's; none "
            "for other data]."
        ),
    ] = None,
    final: Annotated[bool, typer.Option("--final", help="Report the test split too.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep architecture, weights and checkpoint here."),
    ] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Train one network with the default recipe of its data.

    Its stem is fitted to the images.
    """
    from levit_search.distill.single import train_single

    network = architecture_of(arch)
    given: dict[str, object] = {
        "train": {"recipe": recipe} if recipe is not None else None,
        "train.epochs": epochs,
        "train.weights": weights,
        "data.image_size": given_size(image_size),
        "search.seed": seed,
    }
    if teacher is not None:
        given["teacher"] = None if teacher == "none" else {"name": teacher}
    elif data not in _SPACE_OF:  # one that is trained here is seldom better than its student
        given["teacher"] = None
    config = training_config(data, given, settings)
    goes_on = f"the same command goes on from the last checkpoint in {out}, if there is one"
    if out is None:
        goes_on = "nothing is kept; with --out DIR the same command would go on from a checkpoint"
    with interruptible(f"; {goes_on}."):
        result = train_single(network, config, final, out, stop_after, say)
    if as_json:
        print_json(result)
        return
    reached = accuracies(result, ("val", "test")[: 1 + final])
    tell(
        f"{arch} ({result['id']}) on {data}, {result['epochs']} epochs: top-1 {reached}; "
        f"{result['images_per_second']:.0f} images/s, {result['seconds']:.0f} s"
    )


def supernet(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="Of the family levit.")],
    study: NewStudyFolder = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="generated: shared weights to start from, of pictures made by formulas "
            "[default: the space's own data].",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --data generated: pictures without labels, too."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --data generated: a timm network whose answers are learnt; "
            "--set teacher.weights=FILE says where its weights are.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10**6,
            help="How many [default: a candidate's; 60 of generated pictures].",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the weights, the views and draws.")] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Train one set of weights for all networks of a space.

    One that is begun is gone on with. It is kept in the study folder, where `run` with
    `--set accuracy=supernet` takes the accuracy of its candidates from it. With `--data generated`
    it is for other data: `run --set weights=STUDY` lets each candidate start from its part of it.
    """
    from levit_search.progress import StepProgress
    from levit_search.search import begin
    from levit_search.study import parse_settings, read_config, space_file
    from levit_search.supernet import supernet_folder

    path = space_file(space)
    changes: dict[str, object] = {"accuracy": "supernet"}
    if data is not None:
        changes |= _pretraining(path, data, pictures, teacher, epochs or _EPOCHS)
        study = study or Path("studies") / f"{path.stem}-shared"
    elif pictures is not None or teacher is not None:
        raise InputError("--pictures, --teacher: go with --data generated")
    changes |= parse_settings(settings or [])
    given = {"supernet.epochs": epochs, "search.seed": seed}
    changes |= {key: value for key, value in given.items() if value is not None}
    opened = begin(read_config(path, changes), study, sys.argv, None, str(path), say=say)
    goes_on = f". Finished epochs are in {opened.folder}; the same command goes on."
    with interruptible(goes_on), opened.lock(), StepProgress() as shown:
        card = _trained(opened, shown)
    if as_json:
        print_json({"dir": str(supernet_folder(opened.folder)), **card})
    else:
        _print_supernet(card, opened, space, is_shared=data is not None)


# Many steps at a high rate: for its first steps a network tells no class from another.
_PRETRAINING: Mapping[str, object] = {
    "train.batch_size": 64,
    "train.lr": 2e-3,
    "train.warmup_epochs": 1.0,
    "train.weight_decay": 0.05,
    "train.crop": "shift",
    "train.rand_augment": None,
    "train.mixup": 0.0,
    "train.cutmix": 0.0,
    "train.lr_batch_size": None,
    "train.rungs": [],
    "train.weights": "fresh",
    "train.distillation": "soft",
    # So high that the loss is nearly the squared distance of logits (Hinton et al. 2015, section
    # 2): all classes tell of a picture that is of none of them.
    "train.temperature": 20.0,
    "supernet.members": 1,
    "supernet.calibration_images": 512,
    "supernet.val_images": 512,
    "objectives": ["top1_percent", "flops"],
    "start": [],
    "compare": [],
}
_EPOCHS, _WHOLE = 60, 0.75  # how many, and in which part of them the largest network learns alone
_PASSES = 20  # of different views that a teacher is asked about; then its answers come again


def _pretraining(
    space: Path, data: str, pictures: Path | None, teacher: str | None, epochs: int
) -> dict[str, object]:
    """Settings by dotted key for shared weights that other data starts from."""
    from levit_search.configuration import read_yaml
    from levit_search.data.generated import EPOCH_IMAGES

    if data.partition("/")[0] != "generated":
        raise InputError(
            f"--data {data}: expected generated, or a kind of it such as generated/contours; a "
            "space's own data is that of its file"
        )
    if pictures is not None and teacher is None:
        raise InputError("--pictures: have no labels to learn; give a --teacher to learn from, too")
    given = read_yaml(space).get("data")
    size = given.get("image_size") if isinstance(given, Mapping) else None
    section: dict[str, object] = {"name": data, "image_size": size}
    if pictures is not None:
        section["root"] = str(pictures.absolute())
    taught: dict[str, object] | None = None
    if teacher is not None:
        section["train_images"] = _PASSES * EPOCH_IMAGES
        taught = {"name": teacher, "weights": "pretrained", "adapt": "own", "top_k": 1000}
    whole = {
        "train.epochs": epochs,
        "supernet.epochs": epochs,
        "supernet.whole_epochs": int(_WHOLE * epochs),
    }
    return {**_PRETRAINING, **whole, "data": section, "teacher": taught}


def _trained(study: "Study", shown: "StepProgress") -> "SupernetCard":
    from levit_search.batches import open_batches
    from levit_search.distill import TeacherAnswers, obtain_teacher
    from levit_search.supernet import obtain_supernet

    config, text = study.config, ""
    batches = open_batches(config.data)
    epochs = config.supernet.recipe(config.train).epochs

    def teacher() -> TeacherAnswers | None:
        teaching, seed = config.teaching, config.search.seed
        if teaching is None:
            return None
        shown.begin("teacher", 1)
        shown.step(teaching.name)
        report = _reported(shown, teaching.recipe.epochs)
        folder = study.folder / "teacher"
        answers, _ = obtain_teacher(
            teaching, config.data, batches, config.train, folder, seed, report, say
        )
        shown.begin("supernet", 1)
        shown.step(config.name)
        return answers.lasting(epochs)

    def report(epoch: "Epoch") -> None:
        nonlocal text
        text = f"epoch {epoch.epoch} of {epochs}, {epoch.summary()}"

    def progress(_: str, done: float | None) -> None:
        shown.update(text, done)

    shown.begin("supernet", 1)
    shown.step(config.name)
    return obtain_supernet(config, batches, teacher, study.folder, report, progress).card


def _print_supernet(card: "SupernetCard", study: "Study", space: str, is_shared: bool) -> None:
    title = f"Supernet of {study.config.name}: {card['params']:,} weights"
    rows, last = [], card["curve"][-1]
    for name, network, key in (
        ("largest", card["largest"], "val_top1_percent"),
        ("smallest", card["smallest"], "smallest_top1_percent"),
    ):
        flops, params = f"{network['flops'] / 1e6:.4g}", f"{network['params'] / 1e6:.3g}"
        rows.append((name, f"{last[key]:.2f}", flops, params, network["summary"]))
    heads = ["", "inherited % of val", "MFLOPs", "params M", "architecture"]
    print_figures(title, heads, rows)
    tell(
        f"\n{card['epochs']} epochs, {1 + 1 + card['members']} networks a batch, "
        f"{card['seconds']:.0f} s. Files: {study.folder}/supernet. Next:"
    )
    folder = quoted(str(study.folder))
    command = f"levit-search run {quoted(space)} --set weights={folder}"
    if not is_shared:
        command = f"levit-search run {quoted(space)} --study {folder} --set accuracy=supernet"
        command += " --trials 1000"
    tell(textwrap.indent(command, "  "))


teacher = typer.Typer(help="Ask the teacher of a space ahead of time.", no_args_is_help=True)

SpaceFile = Annotated[str, typer.Argument(metavar="SPACE.yaml", help="With a teacher and data.")]


@teacher.command()
def fill(
    space: SpaceFile,
    epochs: Annotated[
        int | None, typer.Option(min=1, max=10**6, help="How many [default: the recipe's].")
    ] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Keep the teacher's answers for all views of a recipe.

    Training then only looks them up. Only what is missing is asked for: an interrupted command
    goes on when it is given again, and several may run at once.
    """
    from levit_search.batches import open_batches
    from levit_search.distill import fill as fill_store
    from levit_search.distill import obtain_teacher
    from levit_search.distill.store import megabytes
    from levit_search.progress import StepProgress, within

    config, chosen = _configured(space, settings)
    if not chosen.cache:
        raise InputError("teacher.cache: is false, so that no answers are kept; set it to true")
    recipe, seed = config.train, config.search.seed
    count = epochs or recipe.epochs
    goes_on = ". What was answered is kept; the same command goes on."
    with interruptible(goes_on), StepProgress() as shown:
        batches = open_batches(config.data)
        shown.begin("teacher", 1)
        shown.step(chosen.name)
        answers, card = obtain_teacher(
            *(chosen, config.data, batches, recipe, None, seed),
            *(_reported(shown, chosen.recipe.epochs), say, within("features", shown.update)),
        )
        store = answers.store(seed)
        assert store is not None
        planned, missing = store.planned_bytes(count), store.missing_bytes(count)
        say(f"{count} epochs: {megabytes(planned)} in {store.folder}, {megabytes(missing)} new")
        shown.begin("epoch", count)

        def progress(text: str, fraction: float | None) -> None:
            if fraction == 0.0:
                shown.step(text)
            else:
                shown.update(text, fraction)

        filled = fill_store(answers, batches, recipe, seed, count, progress)
    if as_json:
        print_json({"teacher": card, **filled._asdict()})
        return
    tell(_told(card))
    tell(
        f"{filled.epochs} epochs, {filled.views:,} views, {megabytes(filled.bytes)} in "
        f"{filled.folder}"
    )
    speed = f", {filled.images_per_second:.0f} images/s" if filled.new_views else ""
    tell(f"{filled.new_views:,} views were new: {filled.seconds:.1f} s{speed}")


def _configured(space: str, settings: list[str] | None) -> "tuple[StudyConfig, TeacherConfig]":
    from levit_search.study import parse_settings, read_config, space_file

    path = space_file(space)
    config = read_config(path, parse_settings(settings or []))
    config.check_planned()
    if config.teacher is None:
        raise InputError(f"{path}: has no teacher; --set teacher.name=NAME gives it one")
    if config.train.distillation == "none":
        raise InputError(
            f"{path}: train.distillation is none; --set train.distillation=hard, or soft, has a "
            "use for a teacher"
        )
    return config, config.teacher


def _reported(shown: "StepProgress", epochs: int) -> "Report":
    def report(epoch: "Epoch") -> None:
        shown.update(f"trained, {epoch.summary()}", epoch.epoch / epochs)

    return report


@teacher.command()
def show(space: SpaceFile, settings: Settings = None, as_json: Json = False) -> None:
    """Show the teacher's card, and which of its answers are kept.

    Nothing is trained or asked.
    """
    from levit_search.batches import open_batches
    from levit_search.distill import Store, header_of, kept_card, store_folder

    config, chosen = _configured(space, settings)
    recipe, seed = config.train, config.search.seed
    batches = open_batches(config.data)
    card = kept_card(chosen, batches, seed)
    state = None
    if card is not None and chosen.cache:
        header = header_of(card["id"], chosen, batches, recipe, seed)
        state = Store(store_folder(), header).state(recipe.epochs)
    if as_json:
        print_json({"teacher": card, "answers": state})
        return
    if card is None:
        tell(
            f"{chosen.name} (weights: {chosen.weights}) is not there yet; `teacher fill` or a "
            "search makes it."
        )
        return
    tell(_told(card))
    tell(_told_answers(state) if state is not None else "Its answers are not kept.")


def _told_answers(state: "StoreState") -> str:
    from levit_search.distill.store import megabytes

    whole = sum(kept == state["steps"] for kept in state["batches_kept"])
    begun = sum(0 < kept < state["steps"] for kept in state["batches_kept"])
    lines = (
        f"Its {state['distillation']} answers: {whole} of {state['epochs']} epochs are complete, "
        f"{begun} begun; all take {megabytes(state['planned_bytes'])}, "
        f"{megabytes(state['missing_bytes'])} of them not yet on the disk."
    )
    return f"{textwrap.fill(lines, 100)}\n{state['folder']}"


def _told(card: Mapping[str, Any]) -> str:
    """A card in a line or two."""
    from levit_search.image_size import size_text

    how = {"train": "trained here", "pretrained": "pretrained"}.get(
        card["weights"], f"from {Path(card['weights']).name}"
    )
    enlarged = ""
    if "adapt" in card:
        head = {"head": "a new head", "own": "its own classes"}
        how += f" with {head.get(card['adapt'], 'a new head, all of it finetuned')}"
        enlarged = f", shown to it at {size_text(card['image_size'])} px"
    reached = card["val_top1_percent"]
    accuracy = "no accuracy" if reached is None else f"{reached:.2f} %"
    lines = (
        f"Teacher {card['name']} ({card['id']}), {how}, {card['params']:,} parameters: "
        f"{accuracy} on val of {card['data']['name']} at "
        f"{size_text(card['data']['image_size'])} px{enlarged}."
    )
    return textwrap.fill(lines, 100, break_long_words=False, break_on_hyphens=False)


def reproduce(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="grafting, variants, ablation or blocks.")
    ],
    columns: Annotated[
        str | None,
        typer.Option(
            help="static, speed, accuracy, comma-separated [default: static; blocks: speed]."
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="What accuracy is trained on: digits, fashion-mnist or folder.")
    ] = "digits",
    epochs: Annotated[int | None, typer.Option(help="Epochs to train.")] = None,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Pixels a side, or HxW such as 64x96, for accuracy."),
    ] = None,
    width_scale: Annotated[
        float, typer.Option(min=0.01, max=100, help="Multiplies widths and heads, for accuracy.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, help="Trainings of each row, from --seed on, for accuracy.")
    ] = 1,
    lrs: Annotated[
        str | None,
        typer.Option(
            "--lrs",
            metavar="LR,...",
            help="Learning rates that the first seed tries for each row; the best on val is taken "
            "[default: train.lr alone].",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at once, for accuracy.")] = 1,
    target: Annotated[
        str | None,
        typer.Option(help="Where to time; see `targets` [default: paper-intel; blocks: cpu]."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images in a timed run [default: the target's].")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of a timed run [default: the target's].")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Timing spent on each row.")] = 8.0,
    layout: Annotated[
        str, typer.Option(help="Timed as tokens (linear layers) or maps (1x1 convolutions).")
    ] = "tokens",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to [default: studies/TABLE].")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train again what is trained with these settings.")
    ] = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Put a table of the LeViT paper beside figures of our own.

    They are counts, timings and trainings, and go to table.md, table.csv and results.json in the
    folder, one by one: a run that was interrupted goes on with the same command, and one with more
    --seeds with what it lacks. Grafts are trained with a learning rate of 1e-3 and batches of 64,
    where --set does not say otherwise.
    """
    from levit_search.latency.targets import read_latency
    from levit_search.progress import StepProgress
    from levit_search.reproduce import ReproductionStore, check_columns, published_table
    from levit_search.study import parse_settings

    paper = published_table(table)
    default = "speed" if table == "blocks" else "static"
    wanted = [name.strip() for name in (columns or default).split(",") if name.strip()]
    changes = parse_settings(settings or [])
    for key in changes:
        if key.partition(".")[0] not in ("data", "train", "teacher", "latency"):
            raise InputError(f"--set {key}: only data, train, teacher and latency matter here")
    where = target or ("cpu" if table == "blocks" else "paper-intel")  # batch 16, one thread
    options = {"batch_size": batch_size, "threads": threads, "target": where}
    timing: dict[str, object] = {"seconds": seconds, "layout": layout}
    timing |= {name: value for name, value in options.items() if value is not None}
    timing |= {
        key.partition(".")[2]: value for key, value in changes.items() if key.startswith("latency.")
    }
    given: dict[str, object] = {
        "train.epochs": epochs,
        "data.image_size": given_size(image_size),
        "data.val_share": 0.05,  # for the curves alone; the figures are those of the test split
        "search.seed": seed,
    }
    if table == "grafting":  # at the LeViTs' rates the layers of a DeiT learn little in few epochs
        given |= {"train.lr": 1e-3, "train.batch_size": 64}
    groups = check_columns(paper, wanted)
    latency, training = read_latency(timing, "reproduce"), training_config(data, given, settings)
    store = ReproductionStore(out or Path("studies") / table, table)
    # It loads torch: whatever is wrong with the command is said before.
    from levit_search.reproduce.measuring import Request
    from levit_search.reproduce.measuring import reproduce as measure
    from levit_search.study.folder import environment

    # A reader of the table needs no name of this machine.
    machine = environment(["levit-search", *sys.argv[1:]])
    machine = {name: each for name, each in machine.items() if name not in ("host", "system")}
    rates = () if lrs is None else _rates(lrs)
    request = Request(
        paper, groups, latency, training, width_scale, machine, fresh, seeds, rates, jobs
    )
    goes_on = f". What was measured is in {store.folder}; the same command goes on."
    with interruptible(goes_on), store.lock(), StepProgress() as progress:
        measure(request, store, progress)
    failed = store.failures()
    if as_json:
        from levit_search.reproduce import rendering

        keys = ("settings", "environment", "finished")
        runs = {
            run.columns: {**{key: getattr(run, key) for key in keys}, **run.extra}
            for run in store.shown()
        }
        rows, notes = rendering.as_rows(paper, store), rendering.notes(paper, store)
        print_json({"table": paper.name, "rows": rows, "runs": runs, "notes": notes})
    else:
        _print(paper, store)
    for row, reason in failed.items():
        say(f"levit-search: {row} failed: {reason}")
    if failed:
        raise typer.Exit(1)


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = {float(each): None for each in text.split(",")}
    except ValueError:
        rates = {}
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise InputError(f"--lrs {text}: expected learning rates such as 1e-3,3e-3")
    return (*rates,)


def _print(paper: "PaperTable", store: "ReproductionStore") -> None:
    from levit_search.reproduce import COLUMNS, rendering

    tell(f"{paper.title}\n")  # a table would wrap its title at its own width
    for group in COLUMNS:  # all of them side by side would be too wide for a terminal
        if store.latest(group):
            heads, body = rendering.cells(paper, store, (group,))
            print_figures("", heads, body)
            tell()
    for line in rendering.notes(paper, store):
        tell(line)
    picture = ", curves.svg" if (store.folder / "curves.svg").exists() else ""
    tell(f"\nIn {store.folder}: table.md, table.csv, results.json, study.yaml{picture}")
