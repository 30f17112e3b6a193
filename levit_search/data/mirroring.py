"""Finds out whether mirrored pictures still are of their class."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from levit_search.configuration import Frozen

SIZE = 24
"""Pixels a side of the images that are compared."""
_FOLDS = 5


class Mirroring(Frozen):
    """Whether mirrored pictures are taken for their own class, as a simple classifier sees it."""

    pictures: int
    """On which that was tried, each seen by a classifier that was fitted without it."""
    upright_percent: float
    """Of the pictures as they are, the share taken for their class."""
    mirrored_percent: float
    """The same of the pictures mirrored."""
    verdict: Literal["keeps classes", "changes classes", "cannot be told"]
    confused: tuple[str, str] | None = None
    """The class whose mirrored pictures suffer most, and what they are taken for."""


def compare_mirrored(
    images: NDArray[np.uint8], labels: NDArray[np.int64], names: Sequence[str]
) -> Mirroring:
    """Try whether mirrored pictures are taken for their own class as often as others.

    A classifier (ridge regression with a Gaussian kernel on colours and on histograms of oriented
    gradients, after Dalal and Triggs 2005) is fitted on four fifths of the pictures as they are,
    and asked about the last fifth as it is and mirrored. Mirroring changes classes where the
    mirrored ones do worse beyond chance (a sign test, one-sided, at 1 %) and by much: ten points
    over all, or thirty in one class.

    Args:
        images: uint8 [N, C, 24, 24] (:data:`SIZE`).
        labels: int64 [N].
        names: of the classes.
    """
    from scipy.stats import binomtest
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import StratifiedKFold

    fewest = int(np.bincount(labels, minlength=len(names)).min())
    if fewest < _FOLDS:
        return Mirroring(
            pictures=0, upright_percent=0, mirrored_percent=0, verdict="cannot be told"
        )
    as_they_are, mirrored = _features(images), _features(images[..., ::-1])
    middle, spread = as_they_are.mean(axis=0), as_they_are.std(axis=0) + 1e-3
    as_they_are, mirrored = (as_they_are - middle) / spread, (mirrored - middle) / spread
    targets = np.eye(len(names))[labels]
    guesses = np.zeros((2, len(labels)), np.int64)
    gamma = 0.5 / as_they_are.shape[1]
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    for fitted, asked in folds.split(as_they_are, labels):
        model = KernelRidge(alpha=0.3, kernel="rbf", gamma=gamma)
        model.fit(as_they_are[fitted], targets[fitted])
        for row, features in enumerate((as_they_are, mirrored)):
            guesses[row, asked] = model.predict(features[asked]).argmax(axis=1)
    right = guesses == labels
    shares = 100 * right.mean(axis=1)

    def suffers(which: NDArray[np.bool_], points: float, chance: float) -> bool:
        lost = int((right[0] & ~right[1])[which].sum())
        gained = int((~right[0] & right[1])[which].sum())
        drop = 100 * (lost - gained) / max(1, int(which.sum()))
        return (
            drop >= points and binomtest(lost, lost + gained, alternative="greater").pvalue < chance
        )

    drops = np.array(
        [
            (right[0] & (labels == c)).sum() - (right[1] & (labels == c)).sum()
            for c in range(len(names))
        ]
    )
    sizes = np.bincount(labels, minlength=len(names))
    worst = int(np.argmax(drops / sizes))
    changes = suffers(np.ones(len(labels), bool), 10, 0.01) or any(
        suffers(labels == label, 30, 0.01 / len(names)) for label in range(len(names))
    )
    # What guesses at random cannot tell.
    knows = (
        binomtest(int(right[0].sum()), len(labels), sizes.max() / len(labels), "greater").pvalue
        < 0.01
    )
    taken = np.bincount(guesses[1][(labels == worst) & ~right[1]], minlength=len(names))
    return Mirroring(
        pictures=len(labels),
        upright_percent=round(float(shares[0]), 1),
        mirrored_percent=round(float(shares[1]), 1),
        verdict="changes classes" if changes else "keeps classes" if knows else "cannot be told",
        confused=(names[worst], names[int(taken.argmax())]) if changes else None,
    )


def _features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Colours in a grid of 6x6 and, in one of 4x4, histograms of gradients in eight directions, of
    each image [N, C, S, S]: float64 [N, 36 C + 128]."""
    count, channels, size, _ = images.shape
    pixels = images.astype(np.float64) / 255
    step = size // 6
    tints = pixels.reshape(count, channels, 6, step, 6, step).mean(axis=(3, 5))
    rows, columns = np.gradient(pixels, axis=(2, 3))
    strongest = np.hypot(rows, columns).argmax(axis=1)[:, None]
    rows, columns = (np.take_along_axis(each, strongest, 1)[:, 0] for each in (rows, columns))
    strength = np.hypot(rows, columns)
    direction = np.floor((np.arctan2(rows, columns) / (2 * np.pi) + 1 / 16) * 8).astype(int) % 8
    cell = size // 4
    histograms = np.stack(
        [
            (strength * (direction == each)).reshape(count, 4, cell, 4, cell).sum(axis=(2, 4))
            for each in range(8)
        ],
        axis=1,
    ).reshape(count, -1)
    histograms /= np.linalg.norm(histograms, axis=1, keepdims=True) + 1e-3
    return np.hstack(
        (tints.reshape(count, -1) - tints.mean(axis=(1, 2, 3))[:, None], 4 * histograms)
    )
