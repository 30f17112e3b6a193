"""What pictures tell: each of them by itself, and whether mirrored ones still are of their class.

It is kept in the user's cache, and used again as long as a file has the same size and time.
"""

import gzip
import hashlib
import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from levit_search.configuration import Frozen
from levit_search.data.decoding import (
    TURNS,
    Decoding,
    is_transparent,
    no_data,
    numbers,
    opened,
    orientation,
    with_8_bits,
)
from levit_search.data.sources import (
    DataConfig,
    FileSource,
    Range,
    Source,
    SplitName,
    UnreadableError,
    center_cropped,
    decode,
    unreadable,
    without_warnings,
)
from levit_search.data.timm_sets import RowSource
from levit_search.files import expanded, user_cache, write_atomically
from levit_search.progress import Progress

LOOKED_AT = 100_000
"""Pictures of a set at most; of larger ones so many, evenly spread over each class."""
GROUNDS = (255, 0, 128)
"""On which transparent pictures may be laid: the first of those that hide least is taken."""
_THUMBNAIL = 64  # pixels a side at most, on which colours and hashes are found
_COLOURED = 16  # of 255, between channels of one pixel
_HIDDEN = 48  # of 255: a colour nearer to the ground than this is lost on it
_MIRRORED = 1500  # pictures on which mirroring is tried
_VERSION = 3  # of the cache
_SIZE = 24  # pixels a side, then
_FOLDS = 5
SPOKEN_S = 5.0
"""Between two words about how far it is."""

_Stamp = tuple[int | str, int, int]


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


class PictureFacts(NamedTuple):
    """What one picture tells; of an unreadable one ``digest`` and ``error`` alone."""

    digest: str
    """Sixteen hexadecimal digits of a hash of its content."""
    error: str | None = None
    width: int = 0
    height: int = 0
    """Upright."""
    mode: str = ""
    """Pillow's, and ``16-bit`` before RGB and RGBA of as many bits a channel."""
    is_turned: bool = False
    is_animated: bool = False
    is_coloured: bool = False
    low: float | None = None
    high: float | None = None
    """Of pictures of more than 8 bits, the range of nearly all values; None for others."""
    is_float: bool = False
    hidden: tuple[float, float, float] | None = None
    """Of pictures that are transparent somewhere, the share of what they show that would be lost
    on white, black and grey; zeros where they show nothing."""
    is_invisible: bool = False
    """Whether it is transparent throughout."""
    extrema: tuple[int, ...] = ()
    """Lowest and highest value of each 8-bit channel."""
    phash: str = ""
    tint: str = ""
    """Mean colours in a grid of 4x4, in hexadecimal digits."""


class Looked(NamedTuple):
    """One picture of a set, and what it tells."""

    split: SplitName
    label: int
    name: str
    where: str
    facts: PictureFacts | None
    """None of one that was not looked at, of a very large set."""
    place: int = 0
    """In its source."""


class FactTable:
    """What is known of each picture of a set, in the user's cache from one command to the next.

    Attributes:
        looked: all pictures, after :meth:`fill`.
    """

    def __init__(self, config: DataConfig, sources: Mapping[SplitName, Source]) -> None:
        root = None if config.root is None else str(expanded(config.root).absolute())
        place = [config.name, root, config.train_split, config.test_split]
        name = f"{content_digest(json.dumps(place).encode())}.json.gz"
        path = user_cache() / "surveys" / name
        # Within the data it would be taken for a part of it.
        self._path = None if root is not None and path.is_relative_to(root) else path
        self._sources = sources
        self._files: dict[str, list[Any]] = {}
        self._mirroring: dict[str, dict[str, Any]] = {}
        # What is damaged is found out again.
        with suppress(OSError, EOFError, ValueError, LookupError, TypeError, zlib.error):
            if self._path is None:
                raise LookupError
            kept = json.loads(gzip.decompress(self._path.read_bytes()))
            if kept["version"] == _VERSION:
                self._files, self._mirroring = dict(kept["files"]), dict(kept["mirroring"])
        self.looked: list[Looked] = []

    def fill(self, progress: Progress) -> None:
        """Look at the pictures that are new or changed since the last time."""
        total = sum(len(source.labels) for source in self._sources.values())
        every = -(-total // LOOKED_AT)
        known, self._files = self._files, {}
        places: list[tuple[SplitName, int]] = []
        for split, source in self._sources.items():
            by_class = np.argsort(source.labels, kind="stable")
            places += [(split, index) for index in by_class.tolist()]
        new = []
        for split, index in places[::every]:
            source = self._sources[split]
            key, stamp = f"{split} {source.name(index)}", _stamp(source, index)
            kept = known.get(key)
            if kept is not None and tuple(kept[:3]) == stamp:
                self._files[key] = kept
            else:
                new.append((split, index, key, stamp))
        try:
            self._look_at(new, progress)
        finally:
            if new or len(known) != len(self._files):
                self._save()
        for split, source in self._sources.items():
            for index, label in enumerate(source.labels.tolist()):
                name = source.name(index)
                row = self._files.get(f"{split} {name}")
                facts = None if row is None else _from_row(row[3:])
                self.looked.append(Looked(split, label, name, source.where(index), facts, index))

    def _look_at(
        self, places: Sequence[tuple[SplitName, int, str, _Stamp]], progress: Progress
    ) -> None:
        spoken = time.monotonic()
        # Pillow decodes and hashlib hashes without Python's lock.
        with without_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            found = threads.map(lambda each: _examined(self._sources[each[0]], each[1]), places)
            for count, (place, facts) in enumerate(zip(places, found, strict=True), start=1):
                self._files[place[2]] = [*place[3], *facts]
                if time.monotonic() - spoken > SPOKEN_S:
                    text = f"looking at the pictures: {count:,} of {len(places):,}"
                    progress(text, count / len(places))
                    spoken = time.monotonic()

    def mirroring(
        self, key: str, pictures: Sequence[Looked], how: Decoding, names: Sequence[str]
    ) -> Mirroring:
        """What mirroring does to pictures that ``key`` stands for; see :func:`compare_mirrored`."""
        with suppress(KeyError, ValidationError):
            return Mirroring.model_validate(self._mirroring[key])
        few = np.linspace(0, len(pictures) - 1, min(_MIRRORED, len(pictures))).astype(int)
        squares, labels = [], []
        for each in (pictures[place] for place in few.tolist()):
            # One that was not looked at may be unreadable.
            with without_warnings(), suppress(UnreadableError):
                picture = decode(self._sources[each.split], each.place, how)
                squares.append(center_cropped(picture, _SIZE))
                labels.append(each.label)
        found = compare_mirrored(np.stack(squares), np.array(labels), names)
        self._mirroring = {key: found.model_dump(mode="json")}
        self._save()
        return found

    def _save(self) -> None:
        if self._path is None:
            return
        content = {"version": _VERSION, "files": self._files, "mirroring": self._mirroring}
        packed = gzip.compress(json.dumps(content).encode(), 1)
        with suppress(OSError):  # a cache that cannot be written costs time alone
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, packed)


def _stamp(source: Source, index: int) -> _Stamp:
    """What tells whether a picture is the same as the last time: of one in no file, its content."""
    if isinstance(source, FileSource):
        return source.stamp(index)
    try:
        return content_digest(source.content(index)), 0, 0
    except OSError:
        return "missing", 0, 0


def _from_row(row: Sequence[Any]) -> PictureFacts:
    found = PictureFacts(*row)
    hidden = found.hidden
    return found._replace(
        hidden=None if hidden is None else (hidden[0], hidden[1], hidden[2]),
        extrema=tuple(found.extrema),
    )


def content_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _examined(source: Source, index: int) -> PictureFacts:
    """What one picture of a source tells."""
    try:
        content = source.content(index)
    except FileNotFoundError:
        return PictureFacts("missing", "no such file")
    except OSError as error:
        return PictureFacts("missing", str(error).splitlines()[0])
    digest = content_digest(content)
    try:
        with unreadable():
            is_stored = isinstance(source, FileSource | RowSource)
            return facts_of(opened(content) if is_stored else source.open(index), digest)
    except UnreadableError as error:
        return PictureFacts(digest, str(error))


def facts_of(picture: Image.Image, digest: str) -> PictureFacts:
    """What a picture tells that was opened and not decoded yet."""
    import imagehash

    width, height = picture.size
    is_turned = orientation(picture) > 1
    if picture.format == "JPEG":
        picture.draft(None, (4 * _THUMBNAIL, 4 * _THUMBNAIL))  # decoded all the same, in less time
    picture.load()
    turn = orientation(picture)
    if turn >= 5:
        width, height = height, width
    values, is_animated = numbers(picture), _is_animated(picture)
    mode, low, high, is_float, extrema = picture.mode, None, None, False, ()
    if values is not None:
        low, high = _bounds(values, is_drawn=no_data(picture) is None)
        is_float = values.dtype.kind == "f"
        picture = with_8_bits(values, Decoding("RGB", 128, *2 * [span(low, high, is_float)]))
        mode = mode if mode[0] in "IF" else f"16-bit {picture.mode}"
    elif mode == "RGB":
        extrema = tuple(np.ravel(picture.getextrema()).tolist())
    hidden, is_invisible = None, False
    small = picture
    if is_transparent(picture):
        whole = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        lowest, highest = whole.getchannel("A").getextrema()
        is_invisible = highest == 0
        small = _thumbnail(whole)
        hidden = None if lowest == 255 else _hidden(np.asarray(small))
        flat = Image.new("RGBA", small.size, (128, 128, 128, 255))
        flat.alpha_composite(small)
        small = flat
    small = _thumbnail(small.convert("RGB"))
    if turn in TURNS:
        small = small.transpose(TURNS[turn])
    pixels = np.asarray(small).astype(np.int16)
    tint = np.asarray(small.resize((4, 4), Image.Resampling.BOX))
    return PictureFacts(
        digest,
        None,
        width,
        height,
        mode,
        is_turned,
        is_animated,
        bool((pixels.max(axis=2) - pixels.min(axis=2)).max() > _COLOURED),
        low,
        high,
        is_float,
        hidden,
        is_invisible,
        extrema,
        str(imagehash.phash(small)),
        tint.tobytes().hex(),
    )


def _is_animated(picture: Image.Image) -> bool:
    """Whether there is more than the frame that was decoded, be it damaged."""
    try:
        return getattr(picture, "is_animated", False) is True
    except Exception:  # readers of damaged files raise what they like
        return True


def span(low: float | None, high: float | None, is_float: bool) -> Range:
    """The values that become black and white where nearly all lie between ``low`` and ``high``.

    From 0 to the largest number of as many bits where they use a quarter of that or more, and to 1
    for fractions.
    """
    low, high = low or 0.0, high or 0.0
    scales = [1.0] if is_float and high <= 1 else [2.0**bits - 1 for bits in range(8, 33)]
    top = next((scale for scale in scales if high <= scale), high)
    if low >= 0 and (low == high or high - low >= top / 4):
        return 0.0, top
    return (low, high) if low < high else (low, low + 1)


def _thumbnail(picture: Image.Image) -> Image.Image:
    """A picture of 64 pixels a side at most, each the mean of some; small ones as they are."""
    factor = max(1, -(-max(picture.size) // _THUMBNAIL))
    width, height = picture.size
    return picture.reduce((min(factor, width), min(factor, height))) if factor > 1 else picture


def _bounds(values: NDArray[Any], is_drawn: bool) -> tuple[float | None, float | None]:
    """What all but one value in a thousand lie between, of those that are finite and are shown.

    Args:
        values: as :func:`numbers` gives them.
        is_drawn: whether what is transparent was drawn so, and is no lack of data.
    """
    channels = values.shape[-1]
    has_alpha = channels in (2, 4)
    if has_alpha:
        values = values[values[..., -1] > 0][..., : channels - 1]
    flat = values.ravel()
    flat = flat[:: max(1, flat.size // 2**16)].astype(np.float64)
    flat = flat[np.isfinite(flat)]
    if not len(flat):
        return None, None
    # Of values that are there: between two of them, one that is out of range would tell.
    low = np.percentile(flat, 0.1, method="higher")
    high = np.percentile(flat, 99.9, method="lower")
    # A logo's colour is more than how it differs from the same logo's others.
    if has_alpha and is_drawn:
        low = min(low, 0)
    return float(min(low, high)), float(max(low, high))


def _hidden(pixels: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Of what pixels [rows, columns, RGBA] show, the shares lost on white, black and grey.

    A pixel counts by its alpha.
    """
    alpha, colours = pixels[..., 3].astype(np.int64), pixels[..., :3].astype(np.int16)
    white, black, grey = (
        float(alpha[np.abs(colours - ground).max(axis=-1) < _HIDDEN].sum() / max(1, alpha.sum()))
        for ground in GROUNDS
    )
    return white, black, grey


def compare_mirrored(
    images: NDArray[np.uint8], labels: NDArray[np.int64], names: Sequence[str]
) -> Mirroring:
    """Try whether mirrored pictures are taken for their own class as often as others.

    A classifier (ridge regression with a Gaussian kernel on colours and on histograms of oriented
    gradients, after Dalal and Triggs 2005) is fitted on four fifths of the pictures as they are,
    and asked about the last fifth as it is and mirrored. Mirroring changes classes where ten in a
    hundred pictures more are taken for another class once mirrored, or in one class half of them
    for a single other one, and more than chance would have it (one-sided sign tests at 1 %).

    Args:
        images: uint8 [N, C, 24, 24].
        labels: int64 [N].
        names: of the classes.
    """
    from scipy.stats import binomtest
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import StratifiedKFold

    # Classes of fewer cannot be tried; the others can.
    tried = (np.bincount(labels, minlength=len(names)) >= _FOLDS)[labels]
    images, labels = images[tried], labels[tried]
    classes, sizes = len(names), np.bincount(labels, minlength=len(names))
    if np.count_nonzero(sizes) < 2:
        return Mirroring(
            pictures=0, upright_percent=0, mirrored_percent=0, verdict="cannot be told"
        )
    upright, mirrored = _features(images), _features(images[..., ::-1])
    middle, spread = upright.mean(axis=0), upright.std(axis=0) + 1e-3
    views = (upright - middle) / spread, (mirrored - middle) / spread
    guesses = np.zeros((2, len(labels)), np.int64)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    for fitted, asked in folds.split(views[0], labels):
        model = KernelRidge(alpha=0.3, kernel="rbf", gamma=0.5 / views[0].shape[1])
        model.fit(views[0][fitted], np.eye(classes)[labels[fitted]])
        for row, view in enumerate(views):
            guesses[row, asked] = model.predict(view[asked]).argmax(axis=1)

    def more(after: NDArray[np.bool_], before: NDArray[np.bool_], level: float) -> bool:
        came, went = int((after & ~before).sum()), int((before & ~after).sum())
        return came > went and binomtest(came, came + went, alternative="greater").pvalue < level

    wrong = guesses != labels
    # Of each class, the share of mirrored pictures that is taken for each other one.
    taken = np.zeros((classes, classes))
    np.add.at(taken, (labels[wrong[1]], guesses[1][wrong[1]]), 1)
    taken /= np.maximum(sizes, 1)[:, None]
    own, other = (int(place) for place in np.unravel_index(taken.argmax(), taken.shape))
    of_class = labels == own
    swapped = taken[own, other] >= 0.5 and more(
        guesses[1][of_class] == other, guesses[0][of_class] == other, 0.01 / classes**2
    )
    worse = wrong[1].mean() - wrong[0].mean() >= 0.1 and more(wrong[1], wrong[0], 0.01)
    # What does no better than guessing cannot tell.
    known, guessing = int((~wrong[0]).sum()), float(sizes.max() / len(labels))
    knows = binomtest(known, len(labels), guessing, alternative="greater").pvalue < 0.01
    changes = swapped or worse
    return Mirroring(
        pictures=len(labels),
        upright_percent=round(100 * float(1 - wrong[0].mean()), 1),
        mirrored_percent=round(100 * float(1 - wrong[1].mean()), 1),
        verdict="changes classes" if changes else "keeps classes" if knows else "cannot be told",
        confused=(names[own], names[other]) if swapped else None,
    )


def _features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Colours in a grid of 6x6 and, in one of 4x4, histograms of gradients in eight directions, of
    each image [N, C, H, W]: float64 [N, 36 C + 128]."""
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
