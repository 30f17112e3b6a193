"""Statistics of accuracies: binomial intervals, what is better than guessing, and what is the same.

The accuracy of a network on n images is a share of n: its interval is that of a binomial
(Wilson 1927). Whether the best of N networks is better than guessing is asked one-sided at 99 %,
with N times the exact binomial tail (Bonferroni), since the best was chosen among N. Whether two
networks differ is asked at 95 % by Newcombe's interval of a difference (1998, method 10), its level
divided among all pairs of the networks compared; networks whose own intervals overlap count as the
same in any case. All networks answer the same images. Their right answers are therefore positively
correlated, a difference varies less than between independent samples, and what is taken here to be
independent errs on the side of "the same".
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from levit_search.image_size import size_text
from levit_search.pareto import Objective, accuracy_of
from levit_search.study import BaselineRecord, Record, StudyConfig, baselines_of, compared

Kind = Literal["unknown", "guessing", "cost_alone", "better_than_guessing"]
Standing = Literal["best", "same", "lower", "higher"]

_FALSE_ALARM = 0.01  # share of searches that guess and are taken for better than guessing
_GIVEN_UP = 0.01  # share of networks that have learnt a little and are taken for guessing
_LITTLE = 1.5  # times the odds of guessing: 60 % of two classes, 14 % of ten
_DOUBT = 0.05  # what the intervals and the comparisons leave out
_UNTAUGHT = 3  # networks that are trained without the teacher before it is judged
_FEWEST_STEPS = 2_000  # after fewer, a network that guesses may yet learn


class Accuracy(NamedTuple):
    """The accuracy of one network on ``images`` images of val, and its 95 % interval."""

    percent: float
    images: int
    low_percent: float
    high_percent: float
    vs_best: Standing | None
    """Beside the most accurate network: that one, not told apart from it, lower or, of a baseline,
    higher. None where it is not compared: of a repeat, of an inherited accuracy beside others, or
    on other images."""

    def interval(self) -> str:
        return interval_text(self.low_percent, self.high_percent)


@dataclass(frozen=True)
class Verdict:
    """What the accuracies of a search are worth.

    ``kind`` is ``guessing`` where no network is better than guessing, ``cost_alone`` where several
    are and no two differ, ``better_than_guessing`` otherwise, and ``unknown`` where there is no
    accuracy, or it is not known on how many images it was measured.
    """

    kind: Kind
    text: str = ""
    """The same in a sentence or two; empty where there is nothing to say."""
    advice: tuple[str, ...] = ()
    """What to try where no network is better than guessing."""
    networks: int = 0
    """How many were trained, those that were stopped or failed included."""
    compared: int = 0
    """How many of them were evaluated to their end."""
    guess_percent: float | None = None
    """The accuracy of always answering the largest class of val."""
    needed_percent: float | None = None
    """The least accuracy that is better than guessing; None where not even 100 % would be."""
    best: Accuracy | None = None
    by_trial: Mapping[int, Accuracy] = field(default_factory=dict)
    by_baseline: Mapping[str, Accuracy] = field(default_factory=dict)
    """Of the networks to compare with, by :attr:`levit_search.baseline.BaselineConfig.id`."""
    figure: Objective = "top1_percent"
    """Which accuracy it is about: the first among the objectives."""

    def legend(self) -> str:
        """What the columns of a table mean that this fills; empty where it fills none."""
        if self.best is None:
            return ""
        text = f"95 % interval: binomial, on {self.best.images:,} images of val."
        if self.compared > 1:
            text += (
                " vs best: same is not told apart from the most accurate network, lower is (95 %, "
                f"allowing for {self.compared:,} networks compared)."
            )
        if any(each.vs_best == "higher" for each in self.by_baseline.values()):
            text += " Of a baseline, higher is more accurate than the best network."
        return text

    def as_json(self) -> Mapping[str, Any]:
        best = self.best
        return {
            "kind": self.kind,
            "text": self.text,
            "advice": list(self.advice),
            "networks": self.networks,
            "val_images": best.images if best else None,
            "best_percent": best.percent if best else None,
            "best_percent_ci95": [best.low_percent, best.high_percent] if best else None,
            "guess_percent": self.guess_percent,
            "needed_percent": self.needed_percent,
        }


UNJUDGED = Verdict("unknown")


def judged(
    records: Sequence[Record], attributes: Mapping[str, Any], config: StudyConfig
) -> Verdict:
    """What the accuracies of a study's finished trials are worth.

    ``data`` of the study's attributes has the numbers of images, which those of older releases
    lack.
    """
    figure = accuracy_of(config.objectives)
    rivals = [record for record in compared(records) if figure in record.values]
    if figure is None or not rivals:
        return UNJUDGED
    data = attributes.get("data") or {}
    guess = data.get("guess_percent")
    if guess is None or not data.get("val_images"):
        return Verdict("unknown", _UNKNOWN)
    percents = {record.trial: record.values[figure] for record in rivals}
    first = max(percents, key=lambda trial: (percents[trial], -trial))
    images = _images(next(each for each in rivals if each.trial == first), data)
    by_trial = {}
    for record in records:
        if (percent := record.values.get(figure)) is None:
            continue
        standing: Standing | None = None
        if record.trial == first:
            standing = "best"
        elif record.trial in percents:
            apart = told_apart(percents[first], percent, images, len(percents))
            standing = "lower" if apart else "same"
        own = _images(record, data)
        by_trial[record.trial] = Accuracy(percent, own, *wilson_percent(percent, own), standing)
    best = by_trial[first]
    # Networks that might have been the best one, stopped and failed ones included.
    tried = {
        record.architecture.id
        for record in records
        if record.architecture is not None and record.reused_from is None
        if figure in record.values or record.is_stopped or record.state == "failed"
    }
    baselines = baselines_of(config, attributes)
    by_baseline = _of_baselines(baselines, figure, best, int(data["val_images"]), len(percents))
    needed = needed_right(images, guess, len(tried))
    needed_percent = None if needed is None else 100 * needed / images
    found = (len(tried), len(percents), guess, needed_percent, best, by_trial, by_baseline, figure)
    if not is_better_than_guessing(best.percent, images, guess, len(tried)):
        text = _guessing(best, len(tried), guess, needed_percent)
        return Verdict("guessing", text, _advice(config, data, needed is None), *found)
    if len(percents) > 1 and not any(by_trial[trial].vs_best == "lower" for trial in percents):
        low, high = min(percents.values()), max(percents.values())
        text = (
            f"{images:,} images of val do not tell the accuracies of the {len(percents):,} "
            f"networks apart ({interval_text(low, high)} %): as far as is known this front is one "
            "of cost alone. More images in val (data.val_share) or longer training may tell them "
            "apart."
        )
        return Verdict("cost_alone", text, (), *found)
    return Verdict("better_than_guessing", "", (), *found)


def teacher_choice(
    records: Sequence[Record], attributes: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """Whether candidates are taught from now on, where ``teacher: auto`` leaves that to a search.

    The first three networks are trained without the teacher. It is kept if its accuracy on val is
    higher than that of the best of them by more than the noise of so many images, at 95 % and
    allowing for how many it is compared with.

    Args:
        records: the study's finished trials.
        attributes: of the study, which is prepared: with its teacher and its data.

    Returns:
        ``{kept, teacher_percent, best_percent, best_trial, networks, val_images, text}``; None as
        long as fewer than three have ended, by themselves or at a rung, or none by itself.
    """
    untaught = [record for record in records if not record.taught and record.reused_from is None]
    ended = [record for record in untaught if record.is_candidate or record.is_stopped]
    whole = [record for record in ended if record.is_candidate]
    if len(ended) < _UNTAUGHT or not whole:
        return None
    best = max(whole, key=lambda record: (record.values["top1_percent"], -record.trial))
    teacher, images = attributes["teacher"], attributes["data"]["val_images"]
    reached, percent = teacher["val_top1_percent"], best.values["top1_percent"]
    kept = told_apart(reached, percent, images, len(ended) + 1)
    what = "is kept: it is better by more" if kept else "is left out: it is not better by more"
    text = (
        f"the teacher {teacher['name']} {what} than the noise of {images:,} images of val, with "
        f"{reached:.2f} % to the {percent:.2f} % of trial {best.trial}, the best of "
        f"{len(ended)} networks trained without it"
    )
    return {
        "kept": kept,
        "teacher_percent": reached,
        "best_percent": percent,
        "best_trial": best.trial,
        "networks": len(ended),
        "val_images": images,
        "text": text,
    }


_UNKNOWN = (
    "How many images its accuracies were measured on was not noted by the release that began this "
    "study, so that they have no intervals; levit-search run notes it as it goes on."
)


def _of_baselines(
    baselines: Sequence[BaselineRecord],
    figure: Objective,
    best: Accuracy,
    images: int,
    networks: int,
) -> dict[str, Accuracy]:
    """The accuracies of baselines on ``images`` images, beside that of the ``best`` of ``networks``
    networks."""
    found = {}
    for each in baselines:
        percent = each.values.get(figure)
        if percent is None:
            continue
        standing: Standing | None = None
        if images == best.images:
            lower, higher = sorted((percent, best.percent))
            apart = told_apart(higher, lower, images, networks + len(baselines))
            standing = "same" if not apart else "lower" if percent < best.percent else "higher"
        interval = wilson_percent(percent, images)
        found[each.config.id] = Accuracy(percent, images, *interval, standing)
    return found


def _images(record: Record, data: Mapping[str, Any]) -> int:
    """How many images of val an accuracy was measured on."""
    inherited = data.get("inherited_images") if record.is_inherited else None
    return int(inherited or data["val_images"])


def _guessing(best: Accuracy, networks: int, guess: float, needed_percent: float | None) -> str:
    count = "1 network" if networks == 1 else f"{networks:,} networks"
    told = (
        f"{needed_percent:.2f} % would show more than guessing (99 %, one-sided)"
        if needed_percent is not None
        else "not even 100 % would show more than guessing"
    )
    return (
        f"No network is better than guessing, as far as {best.images:,} images of val tell: the "
        f"best of {count} has {accuracy_text(best.percent, best.images)}, always answering the "
        f"largest class gives {guess:.2f} %; {told}."
    )


def _advice(config: StudyConfig, data: Mapping[str, Any], is_small: bool) -> tuple[str, ...]:
    """What to try where nothing was learnt, each naming its key."""
    recipe, train_images, classes = config.train, data.get("train_images"), data.get("num_classes")
    found = []
    if is_small:
        found.append(f"more images in val: data.val_share is {config.data.val_share:g}")
    if train_images:
        steps = max(1, train_images // recipe.batch_size)  # of an epoch
        epochs = max(10 * recipe.epochs, math.ceil(_FEWEST_STEPS / steps))
        longer = "more --time in another --study, which plans longer training"
        if config.plan is None:
            longer = f"--set train.epochs={epochs} with more --time, or a smaller train.batch_size"
        found.append(f"longer training: each network had {recipe.epochs * steps:,} steps; {longer}")
        bound = " (data.train_images keeps others out)" if config.data.train_images else ""
        each = f", {train_images / classes:,.0f} a class" if classes else ""
        found.append(f"more pictures: {train_images:,} are trained on{each}{bound}")
    else:
        found.append(f"longer training: --set train.epochs={10 * recipe.epochs} with more --time")
    if recipe.donor_weights is None and recipe.weights == "fresh":
        found.append(
            "weights to start from: train.weights, or train.donor_weights for ResNet stems and "
            "grafts (docs/training.md)"
        )
    if data.get("mirrored"):
        found.append("no mirroring, where left and right differ: --set train.hflip=false")
    if config.data.image_size is not None:
        found.append(
            f"another size of the images: data.image_size is {size_text(config.data.image_size)}"
        )
    return tuple(found)


def wilson_percent(percent: float, images: int, z: float | None = None) -> tuple[float, float]:
    """The interval of a share by Wilson (1927), which has a width at 0 and at 100 %, too.

    Args:
        percent: of so many ``images``.
        z: how many standard deviations it reaches; None is those of 95 %.
    """
    share, z2 = min(1.0, max(0.0, percent / 100)), (z or _z(_DOUBT)) ** 2 / images
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    middle, scale = share + z2 / 2, 100 / (1 + z2)
    return max(0.0, scale * (middle - half)), min(100.0, scale * (middle + half))


def interval_text(low_percent: float, high_percent: float) -> str:
    """An interval for people."""
    return f"{low_percent:.2f} to {high_percent:.2f}"


def accuracy_text(percent: float, images: int) -> str:
    """An accuracy on so many images for people, with its 95 % interval."""
    return f"{percent:.2f} % ({interval_text(*wilson_percent(percent, images))} %)"


def guess_percent(labels: NDArray[np.int64]) -> float:
    """The accuracy of the best constant answer: the share of the largest class.

    Args:
        labels: int64 [N].
    """
    return float(100 * np.bincount(labels).max() / len(labels))


def needed_right(images: int, guess_percent: float, networks: int = 1) -> int | None:
    """How many right answers are better than guessing.

    A network that knows nothing has at most as many as a binomial of the share of the largest
    class, whatever it answers. By this limit less than 1 % of searches whose networks all know
    nothing have one that reaches it.

    Args:
        images: that are answered.
        guess_percent: the share of the largest class among them.
        networks: among which the best was chosen by its answers.

    Returns:
        None where not even all answers right would be enough.
    """
    from scipy.special import bdtrc

    def is_rare(right: int) -> bool:
        return bool(networks * bdtrc(right - 1, images, guess_percent / 100) <= _FALSE_ALARM)

    needed = bisect_left(range(images + 1), True, key=is_rare)
    return needed if needed <= images else None


def most_guessed(images: int, guess_percent: float) -> int | None:
    """How many right answers at most surely are those of a network that guesses.

    So many are not better than guessing (:func:`needed_right`), and a network that has learnt a
    little, with 1.5 times the odds of guessing (60 % instead of 50 %, 14 % instead of 10 %), has
    more in 99 % of cases.

    Args:
        images: that are answered.
        guess_percent: the share of the largest class among them.

    Returns:
        None where the images are too few to tell: a network that always answers the largest class
        would not be among those that surely guess.
    """
    from scipy.special import bdtr

    needed = needed_right(images, guess_percent)
    if needed is None:
        return None
    guess = guess_percent / 100
    little = _LITTLE * guess / (1 + (_LITTLE - 1) * guess)

    right = range(images + 1)
    common = bisect_left(right, True, key=lambda n: bool(bdtr(n, images, little) > _GIVEN_UP))
    most = min(common, needed) - 1
    return most if most >= round(guess * images) else None


def is_better_than_guessing(
    percent: float, images: int, guess_percent: float, networks: int = 1
) -> bool:
    """Whether an accuracy, the best of ``networks``, is; see :func:`needed_right`."""
    needed = needed_right(images, guess_percent, networks)
    return needed is not None and round(percent * images / 100) >= needed


def told_apart(better_percent: float, worse_percent: float, images: int, networks: int) -> bool:
    """Whether two accuracies on the same images differ by more than noise, at 95 %.

    Args:
        better_percent: of one network.
        worse_percent: of the other, no more than the first.
        images: that both have answered.
        networks: among which the two were chosen by their accuracies.
    """
    if wilson_percent(better_percent, images)[0] <= wilson_percent(worse_percent, images)[1]:
        return False
    z = _z(_DOUBT / (networks * (networks - 1) / 2))
    low, high = (wilson_percent(each, images, z) for each in (better_percent, worse_percent))
    reach = math.hypot(better_percent - low[0], high[1] - worse_percent)
    return better_percent - worse_percent > reach


@cache
def _z(doubt: float) -> float:
    """How many standard deviations leave out so much on both sides together."""
    return NormalDist().inv_cdf(1 - doubt / 2)
