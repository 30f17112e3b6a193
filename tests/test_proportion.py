"""Shares of images: against scipy, against slow obvious versions, by simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from levit_search.significance import (
    guess_percent,
    is_better_than_guessing,
    most_guessed,
    needed_right,
    told_apart,
    wilson_percent,
)

IMAGES = 400


@pytest.mark.parametrize("images", [1, 2, 7, 50, 360, 10_000])
def test_intervals_are_those_of_scipy(images: int) -> None:
    for right in {0, 1, images // 3, images - 1, images}:
        found = wilson_percent(100 * right / images, images)
        low, high = binomtest(right, images).proportion_ci(0.95, method="wilson")
        assert found == pytest.approx((100 * low, 100 * high), abs=1e-9)
        assert 0 <= found[0] < found[1] <= 100


def test_figures_beyond_all_shares_have_an_interval_still() -> None:
    """A study may be a stranger's."""
    assert wilson_percent(1e300, 10) == wilson_percent(100, 10)
    assert wilson_percent(-5, 10) == wilson_percent(0, 10)


@pytest.mark.parametrize("networks", [1, 30, 5_000])
@pytest.mark.parametrize("share", [0.02, 0.25, 0.9, 1.0])
def test_the_needed_answers_are_the_first_that_are_rare_enough(share: float, networks: int) -> None:
    for images in (1, 3, 40, 500):
        rare = [r for r in range(images + 1) if networks * binom.sf(r - 1, images, share) <= 0.01]
        assert needed_right(images, 100 * share, networks) == (min(rare) if rare else None)


def test_a_network_is_better_than_guessing_from_the_needed_answers_on() -> None:
    needed = needed_right(IMAGES, 10.0, 12)
    assert needed is not None
    assert is_better_than_guessing(100 * needed / IMAGES, IMAGES, 10.0, 12)
    assert not is_better_than_guessing(100 * (needed - 1) / IMAGES, IMAGES, 10.0, 12)
    assert not is_better_than_guessing(100.0, 3, 50.0), "three images tell nothing"


def test_guessing_is_the_largest_class_not_one_over_their_number() -> None:
    assert guess_percent(np.array([0, 1, 1, 1, 2])) == 60.0


@pytest.mark.parametrize("shares", [(0.1,) * 10, (0.7, 0.2, 0.1)])
def test_of_searches_that_guess_less_than_one_in_a_hundred_is_taken_for_better(
    shares: tuple[float, ...],
) -> None:
    """Each of 30 networks answers the classes as often as they occur, or only the largest."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(shares)), [round(IMAGES * share) for share in shares])
    needed = needed_right(IMAGES, guess_percent(labels), 30)
    searches, alarms = 1_500, 0
    for _ in range(searches):
        answers = rng.choice(len(shares), size=(30, IMAGES), p=shares)
        answers[:5] = np.argmax(shares)
        alarms += int((answers == labels).sum(axis=1).max() >= (needed or math.inf))
    assert alarms <= 0.01 * searches
    independent = rng.binomial(IMAGES, max(shares), size=(20_000, 30)).max(axis=1)
    assert (independent >= needed).mean() <= 0.01


def test_a_little_above_guessing_is_seen_with_enough_images() -> None:
    rng = np.random.default_rng(0)
    right = rng.binomial(2_000, 0.15, size=200)
    found = [is_better_than_guessing(100 * r / 2_000, 2_000, 10.0, 30) for r in right]
    assert np.mean(found) > 0.95


@pytest.mark.parametrize(("networks", "percent"), [(2, 50), (10, 90), (40, 90), (40, 99)])
def test_equal_networks_are_seldom_told_apart_however_many_were_compared(
    networks: int, percent: float
) -> None:
    rng = np.random.default_rng(0)
    right = rng.binomial(IMAGES, percent / 100, size=(1_000, networks)) * 100 / IMAGES
    apart = [
        told_apart(best, worst, IMAGES, networks)
        for best, worst in zip(right.max(axis=1), right.min(axis=1), strict=True)
    ]
    assert np.mean(apart) <= 0.05


def test_networks_whose_intervals_overlap_are_the_same_and_clear_differences_are_not() -> None:
    for better, worse in itertools.product(range(0, 101, 4), repeat=2):
        low, high = wilson_percent(better, IMAGES)[0], wilson_percent(worse, IMAGES)[1]
        if better >= worse and low <= high:
            assert not told_apart(better, worse, IMAGES, networks=2)
    assert told_apart(90, 80, IMAGES, networks=2)
    assert told_apart(90, 70, IMAGES, networks=100)


def little(guess: float) -> float:
    """The share of right answers with 1.5 times the odds of guessing."""
    odds = 1.5 * guess / (1 - guess)
    return odds / (1 + odds)


@pytest.mark.parametrize("images", [20, 40, 100, 400, 1_000, 10_000])
@pytest.mark.parametrize("guess", [0.001, 0.0625, 0.1, 0.5, 0.9])
def test_who_has_learnt_a_little_is_seldom_taken_for_guessing(images: int, guess: float) -> None:
    """Of 40 pictures of two classes, two standard deviations above guessing took a true 60 % for
    guessing in 79 % of cases."""
    rng = np.random.default_rng(0)
    most = most_guessed(images, 100 * round(guess * images) / images)
    for share in (little(guess), min(0.99, 1.2 * little(guess))):
        right = rng.binomial(images, share, size=20_000)
        assert (right <= (-1 if most is None else most)).mean() <= 0.012
    assert images > 100 or most is None, "so few tell nothing"


def test_the_old_check_failed_honest_networks() -> None:
    old = 40 * (0.5 + 2 * math.sqrt(0.25 / 40))
    assert binom.cdf(old, 40, 0.6) == pytest.approx(0.79, abs=0.01)
    assert most_guessed(40, 50.0) is None


@pytest.mark.parametrize("guess", [0.01, 0.1, 0.5, 0.9])
def test_guessing_is_seen_with_enough_images(guess: float) -> None:
    most = most_guessed(20_000, 100 * guess)
    assert most is not None
    assert binom.cdf(most, 20_000, guess) > 0.95
    assert not is_better_than_guessing(100 * most / 20_000, 20_000, 100 * guess)


@pytest.mark.parametrize("images", [1, 2, 40, 5_000])
def test_a_val_of_one_class_tells_nothing_of_guessing(images: int) -> None:
    assert most_guessed(images, 100.0) is None
