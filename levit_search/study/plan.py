"""What ``train.epochs: auto`` comes to: steps, rungs and images for a set, a speed and a budget.

A plan is made once, before the first trial, and ``study.yaml`` keeps it with all that it chose: the
figures of a study depend on its plan, and no longer on how fast the machine was on that day.
"""

import math
from collections.abc import Collection
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from levit_search.configuration import Frozen

DEFAULT_S = 1200.0
"""The budget of a search that is given neither a time nor a number of trials."""
FEW_STEPS = 600
"""Those by which LeViTs from fresh weights began to tell letters apart."""

# What LeViTs from fresh weights need, as measured on small sets of pictures (docs/training.md).
_WANTED_VIEWS = 150_000  # in training on 768 images; grows with the fourth root of their number
_FAST_LR = 2e-3  # where there are fewer; in long training it keeps networks at chance for longer
_MOST_EPOCHS = 1000
_WARMUP = 0.05  # of the steps
_AUGMENTED_PASSES = 70  # from which on the same images are learnt by heart, unless changed
_RUNG = 0.4  # of the steps: networks know nothing for the first fifth or quarter
_RUNG_STEPS = 400  # before that a rung would end them at chance

# How a budget is shared out.
# Networks, at least and times the jobs: that are begun in most cases, that are where the time is
# very short, and from which on further time goes into longer training.
_NETWORKS = ((6, 3), (3, 2), (40, 20))
_LEAST_VIEWS = 45_000  # with fewer, a few networks are better than some more
_LONGEST = 3.0  # times the wanted training, where there is time for it
_WHOLE = 0.8  # of a session, which one network takes at most
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
    """What one image takes in training, with the smallest, a middle and the largest network."""
    budget_s: Annotated[float, Field(ge=0)] = 0.0
    jobs: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=0)] = 0
    """Of a network that is trained to the end."""
    network_s: Annotated[float, Field(ge=0)] = 0.0
    """What that takes, on average over the space."""
    networks: Annotated[int, Field(ge=0)] = 0
    """That the budget is expected to suffice for, those that a rung ends included."""

    @property
    def is_made(self) -> bool:
        return bool(self.settings)


class Facts(NamedTuple):
    """What a plan is made from."""

    images: int
    """To fit on."""
    val_images: int
    num_classes: int
    image_ms: tuple[float, ...]
    """As in :class:`Plan`."""
    mean_ms: float
    """The same on average over the networks of the space."""
    budget_s: float
    jobs: int
    trainings: int | None = None
    """How many networks there are to be; None for as many as the budget suffices for."""
    reduction: float | None = None
    """About one in so many goes on from a rung; None where there are no rungs."""


def plan_of(given: Collection[str], facts: Facts, batch_size: int) -> Plan:
    """The plan for a set of images, a speed and a budget.

    Args:
        given: dotted keys that are not to be chosen.
        facts: all that is known.
        batch_size: of the recipe, where that is given.
    """
    chosen = views_for(facts.images, given)
    batch_size = min(chosen.get("train.batch_size", batch_size), facts.images)
    rung_share = _RUNG + (1 - _RUNG) / facts.reduction if facts.reduction else 1.0
    while True:
        images, epochs = _images_and_epochs(
            facts, _affordable_s(facts, rung_share), "data.train_images" in given
        )
        steps_an_epoch = max(1, images // min(batch_size, images))
        rung = max(1, round(_RUNG * epochs))
        has_rung = rung < epochs and rung * steps_an_epoch >= _RUNG_STEPS
        if has_rung or rung_share == 1.0:
            break
        rung_share = 1.0  # all are trained to the end
    has_rung = has_rung and facts.reduction is not None
    chosen |= {
        "train.epochs": epochs,
        "train.warmup_epochs": round(_WARMUP * epochs, 2),
        "train.rungs": [rung] if has_rung else [],
    }
    if epochs < _AUGMENTED_PASSES:  # few passes: to be learnt fast, and not by heart
        chosen.pop("train.rand_augment", None)
        if "train.lr" in chosen:
            chosen["train.lr"] = max(chosen["train.lr"], _FAST_LR)
    if images < facts.images:
        chosen["data.train_images"] = images
    network_s = _training_s(facts, images, epochs)
    begun_s = network_s * rung_share + _PROBE_S
    return Plan(
        given=tuple(given),
        settings={key: value for key, value in chosen.items() if key not in given},
        images=facts.images,
        image_ms=tuple(float(f"{ms:.3g}") for ms in facts.image_ms),
        budget_s=facts.budget_s,
        jobs=facts.jobs,
        steps=epochs * steps_an_epoch,
        network_s=float(f"{network_s:.3g}"),
        networks=facts.trainings or max(facts.jobs, int(_working_s(facts) / begun_s)),
    )


def views_for(images: int, given: Collection[str]) -> dict[str, Any]:
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


def _working_s(facts: Facts) -> float:
    """The time of all jobs together, less what a session takes to begin."""
    jobs = min(facts.jobs, facts.trainings or facts.jobs)
    return jobs * max(facts.budget_s / 2, facts.budget_s - _START_S)


def _affordable_s(facts: Facts, rung_share: float) -> float:
    """What a network that is trained to the end may take."""
    wanted = _WANTED_VIEWS * math.sqrt(math.sqrt(facts.images / 768))
    pass_s = _training_s(facts, facts.images, 1)
    wanted_s = wanted / facts.images * pass_s

    def each_s(networks: int) -> float:
        """Where there are so many of them."""
        begun_s = max(0.0, _working_s(facts) / networks - _PROBE_S)
        return min(begun_s / rung_share, _WHOLE * facts.budget_s)

    if facts.trainings is not None:
        return min(each_s(facts.trainings), _LONGEST * wanted_s)
    few, fewest, many = (max(least, times * facts.jobs) for least, times in _NETWORKS)
    if each_s(few) < min(wanted, _LEAST_VIEWS) / facts.images * pass_s:
        return each_s(fewest)
    return min(each_s(few), max(wanted_s, min(each_s(many), _LONGEST * wanted_s)))


def _training_s(facts: Facts, images: int, epochs: int) -> float:
    return epochs * (images + _EVALUATION * facts.val_images) * facts.mean_ms / 1000


def _images_and_epochs(facts: Facts, network_s: float, are_given: bool) -> tuple[int, int]:
    """How many images to fit on, and how often, within a time."""
    images = facts.images
    passes = network_s / _training_s(facts, images, 1)
    if passes < _FEWEST_PASSES and not are_given:
        fewest = min(images, max(_FEWEST_IMAGES, 5 * facts.num_classes))
        few = 1000 * network_s / (_FEWEST_PASSES * facts.mean_ms)
        images = min(images, max(fewest, _rounded(few - _EVALUATION * facts.val_images)))
        passes = network_s / _training_s(facts, images, 1)
    return images, min(_MOST_EPOCHS, max(1, _rounded(passes)))


def _rounded(number: float) -> int:
    """Down to one of 1, 2, ... 10, 12, 14, 16, 18, 20, 25, ... 50, 60, ... 100, 120 ...: measured
    again, a speed gives the same plan in most cases."""
    if number < 10:
        return max(0, int(number))
    scale = 10.0 ** math.floor(math.log10(number))
    first = number / scale
    step = 0.2 if first < 2 else 0.5 if first < 5 else 1.0
    return round(math.floor(first / step + 1e-9) * step * scale)
