"""What ``train.epochs: auto`` comes to: steps, rungs and images for a set, a speed and a budget.

A plan is made once, before the first trial, and ``study.yaml`` keeps it with all that it chose: the
figures of a study depend on its plan, and no longer on how fast the machine was on that day.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from levit_search.configuration import Frozen

DEFAULT_S = 1200.0
"""The budget of a search that is given neither a time nor a number of trials."""
FEW_STEPS = 600
"""Those by which LeViTs from fresh weights began to tell letters apart."""

# What LeViTs from fresh weights need, as measured on small sets of pictures (docs/training.md).
_WANTED_VIEWS = 150_000  # in training on 768 images; grows with the fourth root of their number
_LEAST_VIEWS = 60_000  # with fewer, three networks are better than six
_STARTED = 0.15  # of both, for networks that start from trained weights; twice that is no better
_FAST_LR = 2e-3  # for fewer passes; in long training it keeps networks guessing for longer
_AUGMENTED_PASSES = 70  # from which on the same images are learnt by heart, unless changed
_MOST_EPOCHS = 1000
_WARMUP = 0.05  # of the steps
_RUNG = 0.4  # of the steps: networks know nothing for the first fifth or quarter
_RUNG_STEPS = 400  # before that a rung would end them while they guess

# How a budget is shared out.
# Networks, at least and times the jobs: how many are trained in most cases; where each would get
# too little; from where on rungs pay; from where on further time goes into longer training.
_NETWORKS = ((6, 3), (3, 2), (12, 6), (40, 20))
_LONGEST = 3.0  # times the wanted training, where there is time for it
_WHOLE = 0.8  # of a session, which one network takes at most
_COSTLY = 0.4  # of a session, which the costliest network may take: others would not be reached
_FEWEST_PASSES = 4  # over the images; where there is no time for more, fewer images are fitted on
_FEWEST_IMAGES = 1000  # to fit on, of sets that have them
_EVALUATION = 0.35  # an image of val costs so much of one for training: no way back
_START_S = 20.0  # of a session: starting workers, loading data, timing the reference network
_PROBE_S = 3.0  # of each network, while all jobs wait


class Plan(Frozen):
    """What was chosen for ``train.epochs: auto``, and from what; before that ``given`` alone."""

    given: tuple[str, ...] = ()
    """Dotted keys that the space file states, which are left as they are."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What was chosen, by dotted key."""
    images: Annotated[int, Field(ge=0)] = 0
    """Of ``train``, before any bound on them was chosen."""
    image_ms: tuple[float, ...] = ()
    """What an image takes in training, with networks of the fewest FLOPs, the median, the most."""
    budget_s: Annotated[float, Field(ge=0)] = 0.0
    jobs: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=0)] = 0
    """Of a network that is trained to the end."""
    network_s: Annotated[float, Field(ge=0)] = 0.0
    """What that takes, on average over the space."""
    networks: Annotated[int, Field(ge=0)] = 0
    """That the budget is expected to suffice for, those that a rung ends included."""
    baselines_s: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """What training takes of those to compare with, by their ids; part of the budget."""

    @property
    def is_made(self) -> bool:
        return bool(self.settings)


class PlanInputs(NamedTuple):
    """What a plan is made from."""

    images: int
    """To fit on."""
    val_images: int
    num_classes: int
    flops: tuple[int, ...]
    """Of networks that stand for the space, ascending."""
    image_ms: tuple[float, ...]
    """What an image takes in training with each of them."""
    budget_s: float
    jobs: int
    trainings: int | None = None
    """How many networks there are to be; None for as many as the budget suffices for."""
    reduction: float | None = None
    """About one in so many goes on from a rung; None where there are no rungs."""
    baselines_ms: Mapping[str, float] = {}
    """What an image takes in training with each network to compare with, by its id."""
    is_started: bool = False
    """Whether networks start from trained weights."""


def plan_of(given: Collection[str], facts: PlanInputs, batch_size: int) -> Plan:
    """The plan for a set of images, a speed and a budget.

    Networks that would take too much of a session are left out by a limit on FLOPs, as far as half
    of the space stays. The keys that are ``given`` are not chosen; ``batch_size`` is the recipe's,
    where that is given.
    """
    count = len(facts.flops)
    batch_size = min(
        views_for(facts.images, given).get("train.batch_size", batch_size), facts.images
    )
    for kept in range(count, count // 2, -1):
        schedule = _schedule(facts, facts.image_ms[:kept], given, batch_size)
        costliest_s = schedule.network_s * facts.image_ms[kept - 1] / schedule.mean_ms
        if costliest_s <= max(_COSTLY * facts.budget_s, 1.5 * schedule.network_s):
            break
    chosen = {
        **views_for(facts.images, given),
        "train.epochs": schedule.epochs,
        "train.warmup_epochs": round(_WARMUP * schedule.epochs, 2),
        "train.rungs": [] if schedule.rung is None else [schedule.rung],
    }
    if schedule.epochs < _AUGMENTED_PASSES:  # few passes: to be learnt fast, and not by heart
        chosen.pop("train.rand_augment", None)
        if "train.lr" in chosen:
            chosen["train.lr"] = max(chosen["train.lr"], _FAST_LR)
    if schedule.images < facts.images:
        chosen["data.train_images"] = schedule.images
    if kept < count:
        chosen["limits.flops"] = float(facts.flops[kept - 1])
    begun_s = schedule.network_s * _share(facts, schedule.rung is not None) + _PROBE_S
    baselines_s = {
        name: schedule.network_s * ms / schedule.mean_ms for name, ms in facts.baselines_ms.items()
    }
    left_s = _working_s(facts) - sum(each_s + _PROBE_S for each_s in baselines_s.values())
    ends = (0, count // 2, count - 1)
    return Plan(
        given=tuple(given),
        settings={key: value for key, value in chosen.items() if key not in given},
        images=facts.images,
        image_ms=tuple(float(f"{facts.image_ms[place]:.3g}") for place in ends),
        budget_s=facts.budget_s,
        jobs=facts.jobs,
        steps=schedule.epochs * max(1, schedule.images // min(batch_size, schedule.images)),
        network_s=float(f"{schedule.network_s:.3g}"),
        networks=facts.trainings or max(facts.jobs, int(left_s / begun_s)),
        baselines_s={name: float(f"{each_s:.3g}") for name, each_s in baselines_s.items()},
    )


def views_for(images: int, given: Collection[str]) -> Mapping[str, Any]:
    """Batches, learning rate and augmentation for so many images, by dotted key.

    What is ``given`` is left out.
    """
    batch_size = 32 if images < 10_000 else 64 if images < 50_000 else 128
    chosen = {
        "train.batch_size": batch_size,
        "train.lr": 1e-3 if batch_size <= 32 else 3e-3,
        "train.rand_augment": "rand-m4-mstd0.5-inc1",
    }
    return {key: value for key, value in chosen.items() if key not in given}


class _Schedule(NamedTuple):
    """How a network is trained."""

    images: int
    epochs: int
    rung: int | None
    mean_ms: float
    """What an image takes on average over the networks."""
    network_s: float
    """What a network takes on average that is trained to the end."""


def _schedule(
    facts: PlanInputs, image_ms: Sequence[float], given: Collection[str], batch_size: int
) -> _Schedule:
    """How networks are trained whose images take ``image_ms``."""
    mean_ms = sum(image_ms) / len(image_ms)

    def training_s(images: int, epochs: int) -> float:
        return epochs * (images + _EVALUATION * facts.val_images) * mean_ms / 1000

    pass_s = training_s(facts.images, 1)
    network_s, has_rung = _affordable(facts, pass_s, mean_ms)
    images, passes = facts.images, network_s / pass_s
    if passes < _FEWEST_PASSES and "data.train_images" not in given:
        fewest = min(images, max(_FEWEST_IMAGES, 5 * facts.num_classes))
        few = 1000 * network_s / (_FEWEST_PASSES * mean_ms) - _EVALUATION * facts.val_images
        images = min(images, max(fewest, _rounded(few)))
        passes = network_s / training_s(images, 1)
    epochs = min(_MOST_EPOCHS, max(1, _rounded(passes)))
    rung = max(1, round(_RUNG * epochs))
    if rung == epochs or rung * (images // min(batch_size, images)) < _RUNG_STEPS:
        has_rung = False
    is_cut = has_rung and facts.reduction is not None
    return _Schedule(images, epochs, rung if is_cut else None, mean_ms, training_s(images, epochs))


def _affordable(facts: PlanInputs, pass_s: float, mean_ms: float) -> tuple[float, bool]:
    """What a network that is trained to the end may take, and whether rungs end others before."""
    baselines = len(facts.baselines_ms)
    # Beside the networks of the search, which may end at a rung, so many of their cost do not.
    whole = sum(facts.baselines_ms.values()) / mean_ms
    needed = _STARTED if facts.is_started else 1.0
    wanted = needed * _WANTED_VIEWS * math.sqrt(math.sqrt(facts.images / 768))
    least = needed * _LEAST_VIEWS
    wanted_s, least_s = (views / facts.images * pass_s for views in (wanted, least))

    def each_s(networks: int, has_rung: bool = False) -> float:
        """Where there are so many of them."""
        training_s = max(0.0, _working_s(facts) - (networks + baselines) * _PROBE_S)
        trainings = networks * _share(facts, has_rung) + whole
        return min(training_s / trainings, _WHOLE * facts.budget_s)

    few, fewest, some, many = (max(least, each * facts.jobs) for least, each in _NETWORKS)
    if facts.trainings is not None:
        has_rung = facts.trainings >= some
        return min(each_s(facts.trainings, has_rung), _LONGEST * wanted_s), has_rung
    if wanted_s <= each_s(some, True):
        return max(wanted_s, min(each_s(many, True), _LONGEST * wanted_s)), True
    if each_s(few) >= min(least_s, wanted_s):
        return min(each_s(few), wanted_s), False
    return min(each_s(fewest), wanted_s), False


def _share(facts: PlanInputs, has_rung: bool) -> float:
    """The part of a whole training that a network takes on average."""
    if not has_rung or facts.reduction is None:
        return 1.0
    return _RUNG + (1 - _RUNG) / facts.reduction


def _working_s(facts: PlanInputs) -> float:
    """The time of all jobs together, less what a session takes to begin."""
    jobs = min(facts.jobs, facts.trainings or facts.jobs)
    return jobs * max(facts.budget_s / 2, facts.budget_s - _START_S)


def _rounded(number: float) -> int:
    """Down to one of 1, 2, ... 10, 12, 14, 16, 18, 20, 25, ... 50, 60, ... 100, 120 ...: measured
    again, a speed gives the same plan in most cases."""
    if number < 10:
        return max(0, int(number))
    scale = 10.0 ** math.floor(math.log10(number))
    first = number / scale
    step = 0.2 if first < 2 else 0.5 if first < 5 else 1.0
    return round(math.floor(first / step + 1e-9) * step * scale)
