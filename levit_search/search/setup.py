"""What comes before a search: everything is checked that can be without work of its own, a plan is
made where one is asked for, and what all trials need is settled.

A plan needs to know how fast a space's networks train here. That is timed in processes of its own,
since a search imports no torch; as many as it has jobs train at once, as they share memory and
cores, or a GPU.
"""

import math
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from levit_search import architecture as architectures
from levit_search import data
from levit_search.architecture import Architecture
from levit_search.baseline import Baseline
from levit_search.cost import Cost
from levit_search.engine.interface import NO_TRIAL
from levit_search.engine.local import start_aside, usable_cores
from levit_search.errors import BudgetError, InputError, LevitSearchError
from levit_search.image_size import canonical_size, size_text
from levit_search.latency.process_pipe import exit_name
from levit_search.latency.ray_node import knock
from levit_search.pareto import Objective, reference_values
from levit_search.pretrained import check_weights_fit, pinned
from levit_search.search.loop import Loop, unprepared
from levit_search.search.warm_start import check_source
from levit_search.space import Space, envelope_of
from levit_search.study import Study, StudyConfig
from levit_search.study.plan import DEFAULT_S, FEW_STEPS, Plan, PlanInputs, plan_of, views_for

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from levit_search.batches import Batches

_DRAWN = 100  # networks that stand for a space
_EACH_S = 1.5  # for each network that is timed
_NOISE_BATCHES = 4  # of images held in memory; which ones does not matter to the time
_GRAPH_BYTES = 200_000  # of an ONNX file beside its parameters
_LIMIT_S = 1800.0  # for anything that a process is waited for, such as a stream that is counted


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
    found, survey = data.surveyed(config.data, lambda text, _: say(text))
    folder = folder or Path("studies") / config.name
    before = Study.existing(folder)
    begun = before if before is not None and before.is_begun() else None
    asked = config.train.weights
    # A study's weights are those of one of its trials, which stays when the search goes on.
    weights = begun.config.train.weights if begun is not None else ""
    if weights not in (asked, f"{asked}/supernet") and weights.rpartition("#")[0] != asked:
        weights = pinned(asked)
    train = config.train.model_copy(update={"weights": weights})
    config = config.model_copy(update={"data": found, "train": train})
    space = checked_space(config, where)
    if before is None and found.name in ("digits", "fashion-mnist"):
        survey = data.survey_of(found)
    if survey is not None:
        say("\n".join(survey.lines()))
    if config.engine.kind == "ray" and config.engine.address is not None:
        address = config.engine.address
        try:
            knock(address)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"no Ray cluster at {address!r} ({reason})") from None
    if anew:
        Study.put_aside(folder)
        begun = None
    config = _planned(config, space, begun, take_from, say)
    if take_from is not None:
        check_source(take_from, Study(folder, config))
    study = Study.create(folder, config, command)
    if survey is not None:
        study.keep_survey(survey)
    if config.plan is not None:
        say(_plan_text(config, config.plan))
    return study


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
    for index, baseline in enumerate(config.compare):
        try:
            baseline.check(**space.sizes)
        except InputError as error:
            raise InputError(f"{where}: compare.{index}: {error}") from error
    return space


def start_values(config: StudyConfig, space: Space, where: str) -> dict[str, Mapping[str, Any]]:
    """Slot values of the networks to try first, by id: those given by hand, then the published.

    Each network stands there once, though some published names mean the same one. A description
    that leaves its image size to the data, whose size it does not go with, is left out after a
    warning.

    Raises:
        InputError: one given by hand is not in the space, or is made for other images.
    """
    chosen: dict[str, Mapping[str, Any]] = {}
    for index, entry in enumerate(config.start):
        try:
            network = _given_to_start(entry, space.sizes, f"{where}: start", index)
        except architectures.SizeError as error:
            told = str(error).removeprefix(f"{where}: ")  # the same, and once, when asked again
            warnings.warn(f"{told}; it is not tried first", stacklevel=1)
            continue
        values = space.encode(network)
        if values is None:
            name = entry if isinstance(entry, str) else "a network"
            raise InputError(f"{where}: start: {name} ({network.summary()}) is not in the space")
        chosen.setdefault(network.id, values)
    for network in architectures.published_for(**space.sizes).values():
        if network.id not in chosen and (values := space.encode(network)) is not None:
            chosen[network.id] = values
    return chosen


def _given_to_start(
    entry: str | Mapping[str, Any], sizes: Mapping[str, Any], where: str, index: int
) -> Architecture:
    """A network of ``start`` for images of ``sizes``."""
    if isinstance(entry, str):
        network = architectures.published(entry)
        known = architectures.published_for(**sizes)
        if entry not in known:
            raise InputError(
                f"{where}: {entry} ({network.summary()}) is not in the space: it is made for "
                f"{size_text(network.image_size)} px, the data has {size_text(sizes['image_size'])}"
            )
        return known[entry]
    for name, size in sizes.items():
        if canonical_size(entry.get(name, size)) != size:
            raise InputError(
                f"{where}.{index}.{name}: {size_text(entry[name])} differs from the data's "
                f"{size_text(size)}; left out, it is the data's"
            )
    return architectures.described(entry, sizes, f"{where}.{index}")


def _planned(
    config: StudyConfig,
    space: Space,
    begun: Study | None,
    take_from: Path | None,
    say: Callable[[str], None],
) -> StudyConfig:
    """The configuration with the plan of a study that goes on or is taken over, or a new one.

    Raises:
        InputError: the study was ``begun`` without a plan.
    """
    if begun is not None:
        plan, epochs = begun.config.plan, begun.config.train.epochs
        if plan is None and config.plan is not None and begun.config.is_trained:
            raise InputError(
                f"{begun.folder}: was begun with train.epochs {epochs}, not auto; choose another "
                f"folder by --study, or --set train.epochs={epochs}"
            )
    elif take_from is not None and config.plan is not None:
        plan = Study.open(take_from).config.plan
    else:
        plan = None
    asked = config.plan
    if asked is None or asked.is_made:  # epochs are given as a number
        return config.model_copy(update={"plan": plan or asked})
    search = config.search
    if search.trials is None and search.time_s is None:  # a search by plan has an end
        search = search.model_copy(update={"time_s": DEFAULT_S})
        config = config.model_copy(update={"search": search})
    if not config.is_trained:
        return config.model_copy(update={"plan": None})
    if plan is None:
        return _newly_planned(config, asked.given, space, say)
    kept = {key: value for key, value in plan.settings.items() if key not in asked.given}
    planned = config.with_plan(plan.model_copy(update={"settings": kept}))
    return planned.model_copy(update={"plan": plan})


def _newly_planned(
    config: StudyConfig, given: tuple[str, ...], space: Space, say: Callable[[str], None]
) -> StudyConfig:
    """The configuration with a plan for its data, the speed of this machine and its budget."""
    say("Planning: counting images and timing networks of the space ...")
    found = data.outline(config.data)
    images, search = found.images["train"], config.search
    views = {"train.epochs": 1000, **views_for(images, given)}  # far more than are timed
    speed = training_speed(config.with_plan(Plan(given=given, settings=views)), space)
    trainings, of_supernet = search.trials, 2 + config.supernet.members
    if config.inherits:  # of the supernet, then of the front and its rivals
        trainings = 2 * (of_supernet + config.supernet.rivals)
    elif config.accuracy == "finetuned":
        trainings = 2 * of_supernet
    facts = PlanInputs(
        images,
        found.images["val"],
        found.info.num_classes,
        speed.flops,
        speed.image_ms,
        search.time_s or DEFAULT_S,
        config.engine.jobs,
        trainings,
        search.reduction if config.is_trained and not config.inherits else None,
        {
            each.id: found_ms
            for each, found_ms in zip(config.compare, speed.baselines_ms, strict=True)
            if not math.isnan(found_ms)
        },
        config.train.weights != "fresh",
    )
    return config.with_plan(plan_of(given, facts, config.train.batch_size))


def _plan_text(config: StudyConfig, plan: Plan) -> str:
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


class TrainingSpeed(NamedTuple):
    """What training takes an image, while all jobs train."""

    flops: tuple[int, ...]
    """Of networks that stand for the space, ascending."""
    image_ms: tuple[float, ...]
    """With each of them."""
    baselines_ms: tuple[float, ...] = ()
    """With each network to compare with, in the configuration's order."""


def training_speed(config: StudyConfig, space: Space) -> TrainingSpeed:
    """Time training by the recipe of ``config``, teacher aside.

    Networks of the fewest FLOPs, the median and the most are timed; for others it is in proportion.
    Those to compare with are timed as well.

    Raises:
        InputError: the data cannot be read, or the device is not there.
        BudgetError: a process ended, or did nothing for minutes.
    """
    drawn = {network.id: (costs.flops, network) for network, costs in space.sample(_DRAWN)}
    ordered = sorted(drawn.values(), key=lambda each: (each[0], each[1].id))
    timed_ones = [ordered[place] for place in (0, len(ordered) // 2, -1)]
    networks = [network for _, network in timed_ones]
    jobs = min(config.engine.jobs, max(1, len(usable_cores()) // config.train.threads))
    baselines = [each.network(**space.sizes) for each in config.compare]
    arguments = (config, networks, baselines)
    children = [start_aside(_serve, arguments, "levit-search-speed") for _ in range(jobs)]
    try:
        for child in children:
            _received(*child)  # that it is ready
        for _, connection in children:
            connection.send("go")
        timed = np.array([_received(*child) for child in children]).mean(axis=0)
    finally:
        for process, connection in children:
            process.kill()
            process.join()
            connection.close()
    # Jobs beyond the cores wait for each other.
    timed *= config.engine.jobs / jobs
    ascending = np.maximum.accumulate(timed[: len(networks)])
    flops = [each for each, _ in ordered]
    image_ms = np.interp(flops, [each for each, _ in timed_ones], ascending).tolist()
    return TrainingSpeed(tuple(flops), tuple(image_ms), tuple(timed[len(networks) :].tolist()))


def _received(process: BaseProcess, connection: "Connection") -> Any:
    """What a process that times training says next."""
    if not connection.poll(_LIMIT_S):
        raise BudgetError(f"timing training took longer than {_LIMIT_S:.0f} s")
    try:
        answer = connection.recv()
    except EOFError:
        process.join(1)
        how = exit_name(process.exitcode)
        raise BudgetError(f"timing training: the process ended with {how}") from None
    if isinstance(answer, LevitSearchError):
        raise answer
    return answer


def _serve(
    connection: "Connection",
    config: StudyConfig,
    networks: list[Architecture],
    baselines: list[Baseline],
) -> None:
    """The main function of a process that trains each network for a moment."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from levit_search.batches import noise_batches, open_batches
    from levit_search.train import fresh_network, image_ms

    try:
        info, images, are_held = data.outline(config.data)
        if are_held:  # in memory, where noise does as well
            count = min(images["train"], _NOISE_BATCHES * config.train.batch_size)
            batches: Batches = noise_batches(info, config.data.size, count)
        else:
            batches = open_batches(config.data)
        connection.send("ready")
        connection.recv()
        recipe, each_ms = config.train, []
        for network in networks:
            each_ms.append(image_ms(fresh_network(network, recipe, 0), batches, recipe, _EACH_S))
        for baseline in baselines:
            try:
                each_ms.append(image_ms(baseline.build_as_timm_does(), batches, recipe, _EACH_S))
            except (LevitSearchError, RuntimeError):  # its own training tells why
                each_ms.append(math.nan)
        connection.send(each_ms)
    except LevitSearchError as error:
        connection.send(error)


def sample_of(space: Space) -> Architecture:
    """Any valid network: what is prepared depends on the images alone."""
    rng = np.random.default_rng(0)
    while True:
        try:
            return space.draw(rng)
        except InputError:
            continue  # the space was checked to have valid networks


def costliest_figures(config: StudyConfig, space: Space, loop: Loop) -> dict[str, float]:
    """What the configuration has ``referred``, measured of a costly network of the space.

    That is the one of :meth:`levit_search.space.Space.sample` with the most FLOPs; on a device on
    which it does not run, one with fewer than three quarters, a half or a quarter of the others',
    or that with the fewest.

    Raises:
        BudgetError: none of them does, or nothing can be evaluated any more.
        InputError: what evaluations need is wrong or missing.
        KeyboardInterrupt: asked to stop.
    """
    if not config.referred:
        return {}
    sample = {network.id: (network, costs.flops) for network, costs in space.sample()}
    descending = sorted(sample.values(), key=lambda each: each[1], reverse=True)
    places = [round(share * (len(descending) - 1)) for share in (0, 0.25, 0.5, 0.75, 1)]
    reason = ""
    for network, _ in (descending[place] for place in dict.fromkeys(places)):
        event = loop.measure(NO_TRIAL, [network], "measuring the costliest network of the space")
        if event is None:
            raise KeyboardInterrupt
        if event.trial is None:
            raise unprepared(event)
        if event.kind == "done":
            values = event.content["results"][0]["values"]
            return {name: values[name] for name in config.referred}
        reason = event.text
        warnings.warn(
            f"{network.summary()}, of the costliest, cannot be measured: {reason}", stacklevel=2
        )
    raise BudgetError(f"no network of the space can be measured, the last: {reason}")


def reference_of(
    config: StudyConfig,
    space: Space,
    data: Mapping[str, Any],
    measured: Mapping[Objective, float],
) -> dict[Objective, float]:
    """The reference of a study's hypervolumes and knee.

    The worst costs are those of :meth:`levit_search.space.Space.sample`, and what was ``measured``
    by :func:`costliest_figures`; no file is larger than one with all of these parameters in float,
    and as many attention biases as there are activations.
    ``guess_percent`` of the ``data`` is the accuracy of guessing; that of equally large classes
    where nothing says more.
    """
    costs = [found for _, found in space.sample()]
    worst = {name: float(max(getattr(each, name) for each in costs)) for name in Cost._fields}
    worst["model_bytes"] = 4 * (worst["params"] + worst["activations"]) + _GRAPH_BYTES
    return reference_values(
        config.objectives,
        config.hypervolume_reference,
        config.limits.model_dump(),
        data.get("guess_percent", 100 / space.sizes["num_classes"]),
        {**worst, **measured},
    )
