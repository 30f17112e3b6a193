"""What comes before a search: everything is checked that can be without work of its own."""

import math
from collections.abc import Callable
from pathlib import Path

from levit_search import data
from levit_search.errors import InputError
from levit_search.latency.ray_connection import knock
from levit_search.pretrained import check_weights_fit, pinned
from levit_search.search.preparation import start_values
from levit_search.search.takeover import check_source
from levit_search.search.training_speed import training_speed
from levit_search.space import Space, envelope_of
from levit_search.study import Study, StudyConfig
from levit_search.study.plan import DEFAULT_S, FEW_STEPS, Plan, PlanInputs, plan_of, views_for


def begin(
    config: StudyConfig,
    folder: Path | None,
    command: list[str],
    take_from: Path | None = None,
    where: str = "space",
    anew: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Study:
    """The study to search: a new one, or the one in ``folder`` that is to go on.

    Args:
        config: what to search.
        folder: of the study; None is ``studies/NAME``.
        command: that asked for it, to be noted.
        take_from: the folder of another study, whose finished trials are to be taken over.
        where: the space file, for messages.
        anew: begin the study again; what is there is kept beside it.
        say: told what is in the data, the plan where there is one, and what takes long.

    Raises:
        InputError: the data, the space, the other study or the folder is not fit for it. Nothing
            was written.
        BudgetError: a plan was to be made, and training cannot be timed.
    """
    survey = None
    if not data.is_known(config.data):
        survey = data.survey_of(config.data, lambda text, _: say(text))
    found = data.looked_at(config.data) if survey is None else data.settled(config.data, survey)
    train = config.train.model_copy(update={"weights": _pinned(config, folder)})
    config = config.model_copy(update={"data": found, "train": train})
    space = checked_space(config, where)
    folder = folder or Path("studies") / config.name
    if Study.existing(folder) is None and found.name in ("digits", "fashion-mnist"):
        survey = data.survey_of(found)
    if survey is not None:
        say("\n".join(survey.lines()))
    if config.engine.kind == "ray" and config.engine.address is not None:
        check_address(config.engine.address)
    if anew:
        Study.put_aside(folder)
    config = _planned(config, space, folder, take_from, say)
    if take_from is not None:
        check_source(take_from, Study(folder, config))
    study = Study.create(folder, config, command)
    if survey is not None:
        study.keep_survey(survey)
    if config.plan is not None:
        say(_told(config, config.plan))
    return study


def _pinned(config: StudyConfig, folder: Path | None) -> str:
    """The weights to start from, with the trial where they are a study's: the one that the search
    began with, where it goes on."""
    before = Study.existing(folder or Path("studies") / config.name)
    earlier = before.config.train.weights if before is not None and before.is_begun() else ""
    if earlier in (f"{config.train.weights}/supernet", f"{config.train.weights}{_trial(earlier)}"):
        return earlier
    return pinned(config.train.weights)


def _trial(weights: str) -> str:
    """``#`` and a number, where weights end with those."""
    _, separator, number = weights.rpartition("#")
    return separator + number if separator else ""


def _planned(
    config: StudyConfig,
    space: Space,
    folder: Path,
    take_from: Path | None,
    say: Callable[[str], None],
) -> StudyConfig:
    """The configuration with the plan of a study that goes on or is taken over, or a new one.

    Raises:
        InputError: the study was begun without a plan.
    """
    before = Study.existing(folder)
    if before is not None and before.is_begun():
        plan, epochs = before.config.plan, before.config.train.epochs
        if plan is None and config.plan is not None and before.config.is_trained:
            raise InputError(
                f"{folder}: was begun with train.epochs {epochs}, not auto; choose another folder "
                f"by --study, or --set train.epochs={epochs}"
            )
    elif take_from is not None and config.plan is not None:
        plan = Study.open(take_from).config.plan
    else:
        plan = None
    asked = config.plan
    if asked is None or asked.is_made:  # epochs are given as a number
        return config.model_copy(update={"plan": plan or asked})
    config = _with_budget(config)
    if not config.is_trained:
        return config.model_copy(update={"plan": None})
    if plan is None:
        return _newly_planned(config, asked.given, space, say)
    kept = {key: value for key, value in plan.settings.items() if key not in asked.given}
    planned = config.with_plan(plan.model_copy(update={"settings": kept}))
    return planned.model_copy(update={"plan": plan})


def _with_budget(config: StudyConfig) -> StudyConfig:
    """A search by plan has an end."""
    search = config.search
    if search.trials is not None or search.time_s is not None:
        return config
    return config.model_copy(update={"search": search.model_copy(update={"time_s": DEFAULT_S})})


def _newly_planned(
    config: StudyConfig, given: tuple[str, ...], space: Space, say: Callable[[str], None]
) -> StudyConfig:
    """The configuration with a plan for its data, the speed of this machine and its budget."""
    say("Planning: counting images and timing networks of the space ...")
    found = data.outline(config.data)
    images, search = found.images["train"], config.search
    views = {"train.epochs": 1000, **views_for(images, given)}  # far more than are timed
    speed = training_speed(config.with_plan(Plan(given=given, settings=views)), space)
    facts = PlanInputs(
        images,
        found.images["val"],
        found.info.num_classes,
        speed.flops,
        speed.image_ms,
        search.time_s or DEFAULT_S,
        config.engine.jobs,
        _trainings(config),
        search.reduction if config.is_trained and not config.inherits else None,
        {
            each.id: found_ms
            for each, found_ms in zip(config.compare, speed.baselines_ms, strict=True)
            if not math.isnan(found_ms)
        },
        config.train.weights != "fresh",
    )
    return config.with_plan(plan_of(given, facts, config.train.batch_size))


def _trainings(config: StudyConfig) -> int | None:
    """How many networks are trained, as far as that is known."""
    steps = 2 + config.supernet.members  # of the supernet, for each of an own training
    if config.inherits:  # then the front and its rivals
        return 2 * (steps + config.supernet.rivals)
    if config.accuracy == "finetuned":
        return 2 * steps
    return config.search.trials


def _told(config: StudyConfig, plan: Plan) -> str:
    """A plan in a few lines."""
    train, few = config.train, config.data.train_images
    fitted = min(few or plan.images, plan.images)
    low, middle, high = plan.image_ms
    rungs = config.rung_epochs
    going_on = f"; about one in {config.search.reduction:g} goes on at epoch " if rungs else ""
    views = {
        "crop": train.crop if train.crop != "none" else "",
        "mirrored": train.mirrors(data.describe(config.data).hflip),
        "color_jitter": train.color_jitter,
        "rand_augment": train.rand_augment,
        "mixup": train.mixup,
        "cutmix": train.cutmix,
        "random_erasing": train.random_erasing,
    }
    shown = [name if value is True else f"{name} {value}" for name, value in views.items() if value]
    networks = f"about {plan.networks} networks in all"
    if flops := plan.settings.get("limits.flops"):
        networks += f" of up to {flops / 1e6:.3g} MFLOPs, others take too long"
    if config.inherits:
        networks = "weights that all networks share, then the front's own"
    elif config.shares_weights:
        networks = "weights that all networks share; half of the time for candidates' finetuning"
    known = {each.id: each.summary() for each in config.compare}
    others = [
        f"{known[name]} ({_minutes(each_s)})"
        for name, each_s in plan.baselines_s.items()
        if name in known
    ]
    short = ["  These are few steps for fresh weights: more time (--time) helps, or fewer --trials"]
    return "\n".join(
        [
            f"Plan for {_minutes(plan.budget_s)} and {plan.jobs} job(s), kept in study.yaml:",
            f"  {fitted:,} of {plan.images:,} images to fit on; training takes {middle:.3g} ms an "
            f"image ({low:.3g} and {high:.3g} for the smallest and the largest network)",
            f"  {train.epochs} epochs of {train.batch_size} images a step, {plan.steps:,} steps, "
            f"about {_minutes(plan.network_s)} a network{going_on}{', '.join(map(str, rungs))}",
            f"  {networks}; views: {', '.join(shown) or 'as they are'}",
            *([f"  in the end, to compare with: {', '.join(others)}"] if others else []),
            *(short if plan.steps < FEW_STEPS and train.weights == "fresh" else []),
        ]
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.3g} min"


def check_address(address: str) -> None:
    """Make sure that something listens where a Ray cluster should be.

    Raises:
        InputError: nothing does.
    """
    try:
        knock(address)
    except OSError as error:
        raise InputError(f"no Ray cluster at {address!r} ({error.strerror or error})") from None


def checked_space(config: StudyConfig, where: str = "space") -> Space:
    """The space of a configuration, whose data is there.

    Raises:
        InputError: the data is missing or has other sizes, the template is malformed, no network of
            the space keeps its limits, its networks cannot share weights as they are to, those to
            try first are none of them, none can start from the weights that it is to, or those to
            compare with cannot be trained on the data.
    """
    config.check_data(where)
    space = config.space(where)
    space.sample(1)
    if config.shares_weights:
        for network in envelope_of(space, where).networks.values():
            check_weights_fit(config.train, [network])
    starts = start_values(config, space, where)
    if config.is_trained and config.train.weights != "fresh":
        first = [space.decode(values) for values in starts.values()]
        check_weights_fit(config.train, [*first, *(each for each, _ in space.sample())])
    config.check_compare(space, where)
    return space
