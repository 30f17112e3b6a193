"""Shares of a limited number of images: their intervals, and what guessing has of them.

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
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_FALSE_ALARM = 0.01  # share of searches that guess and are taken for better than guessing
_GIVEN_UP = 0.01  # share of networks that have learnt a little and are taken for guessing
_LITTLE = 1.5  # times the odds of guessing: 60 % of two classes, 14 % of ten
_DOUBT = 0.05  # what the intervals and the comparisons leave out


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

    def is_common(right: int) -> bool:
        return bool(bdtr(right, images, little) > _GIVEN_UP)

    most = min(bisect_left(range(images + 1), True, key=is_common), needed) - 1
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
