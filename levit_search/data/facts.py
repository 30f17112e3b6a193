"""What pictures tell: each of them by itself, and whether mirrored ones still are of their class.

It is kept in the user's cache, and used again as long as a file has the same size and time.
"""

import gzip
import hashlib
import json
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, TypeVar

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
    EncodedSource,
    FileSource,
    Range,
    Source,
    SplitName,
    UnreadableError,
    center_cropped,
    decode,
    decoding_threads,
    unreadable,
    without_warnings,
)
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
_SPOKEN_S = 5.0  # between two words about how far it is

_Found = TypeVar("_Found")


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

    def told(self) -> str:
        """The same for people."""
        if not self.pictures:
            return "too few pictures to try it (data.hflip changes it)"
        told = (
            f"of {self.pictures:,} pictures a simple classifier knows {self.upright_percent:.0f} % "
            f"as they are and {self.mirrored_percent:.0f} % mirrored"
        )
        if self.verdict == "cannot be told":
            told += ", which is no more than guessing (data.hflip changes it)"
        if self.confused is not None:
            told += f" ({self.confused[0]} is then taken for {self.confused[1]})"
        return told


class PictureFacts(NamedTuple):
    """What one picture tells; of an unreadable one ``digest`` and ``error`` alone."""

    digest: str  # sixteen hexadecimal digits of a hash of its content
    error: str | None = None
    width: int = 0
    height: int = 0  # upright
    mode: str = ""  # Pillow's, and ``16-bit`` before RGB and RGBA of as many bits a channel
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
    is_invisible: bool = False  # whether it is transparent throughout
    extrema: tuple[int, ...] = ()  # lowest and highest value of each 8-bit channel
    phash: str = ""
    tint: str = ""  # mean colours in a grid of 4x4, in hexadecimal digits


class Looked(NamedTuple):
    """One picture of a set, and what it tells."""

    split: SplitName
    label: int
    name: str
    where: str
    facts: PictureFacts | None  # None of one that was not looked at, of a very large set
    place: int = 0  # in its source

    @property
    def error(self) -> str | None:
        """Why it cannot be read, if that is known."""
        return None if self.facts is None else self.facts.error


def reported(each: Iterable[_Found], progress: Progress, total: int | None) -> Iterator[_Found]:
    """What comes of looking at pictures, while ``progress`` is told every few seconds how far."""
    spoken = time.monotonic()
    for count, found in enumerate(each, start=1):
        yield found
        if time.monotonic() - spoken > _SPOKEN_S:
            of_all = "" if total is None else f" of {total:,}"
            part = None if total is None else count / total
            progress(f"looking at the pictures: {count:,}{of_all}", part)
            spoken = time.monotonic()


class FactTable:
    """What is known of each picture of a set, in the user's cache from one command to the next."""

    def __init__(self, config: DataConfig, sources: Mapping[SplitName, Source]) -> None:
        root = None if config.root is None else str(expanded(config.root).absolute())
        place = [config.name, root, config.train_split, config.test_split]
        name = f"{content_digest(json.dumps(place).encode())}.json.gz"
        path = user_cache() / "surveys" / name
        # Within the data it would be taken for a part of it.
        self._path = None if root is not None and path.is_relative_to(root) else path
        self._sources = sources
        # By split and name: what tells whether a picture is the same, then its facts.
        self._files: dict[str, list[Any]] = {}
        self._mirroring: dict[str, object] = {}
        # What is damaged is found out again.
        with suppress(OSError, EOFError, ValueError, LookupError, TypeError, zlib.error):
            kept = json.loads(gzip.decompress(self._path.read_bytes())) if self._path else {}
            if kept["version"] == _VERSION:
                self._files, self._mirroring = dict(kept["files"]), dict(kept["mirroring"])

    def filled(self, progress: Progress) -> list[Looked]:
        """All pictures, after a look at those that are new or changed since the last time."""
        known, self._files = self._files, {}
        places = [
            (source, split, index)
            for split, source in self._sources.items()
            for index in np.argsort(source.labels, kind="stable").tolist()  # by class
        ]
        new = []
        for source, split, index in places[:: max(1, -(-len(places) // LOOKED_AT))]:
            key = f"{split} {source.name(index)}"
            stamp: tuple[int | str, int, int] = "missing", 0, 0
            if isinstance(source, FileSource):
                stamp = source.stamp(index)
            else:
                with suppress(OSError):
                    stamp = content_digest(source.content(index)), 0, 0
            kept = known.get(key)
            if kept is not None and tuple(kept[:3]) == stamp:
                self._files[key] = kept
            else:
                new.append((source, index, key, stamp))
        try:
            with decoding_threads() as threads:
                found = threads.map(lambda each: _examined(*each[:2]), new)
                pairs = zip(new, found, strict=True)
                for (_, _, key, stamp), facts in reported(pairs, progress, len(new)):
                    self._files[key] = [*stamp, *facts]
        finally:
            if new or len(known) != len(self._files):
                self._save()
        looked = []
        for split, source in self._sources.items():
            for index, label in enumerate(source.labels.tolist()):
                name = source.name(index)
                row = self._files.get(f"{split} {name}", ())[3:]
                # JSON has made lists of tuples.
                values: Iterator[Any] = (tuple(i) if isinstance(i, list) else i for i in row)
                its = PictureFacts(*values) if row else None
                looked.append(Looked(split, label, name, source.where(index), its, index))
        return looked

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
        content = {"version": _VERSION, "files": self._files, "mirroring": self._mirroring}
        if self._path is not None:
            with suppress(OSError):  # a cache that cannot be written costs time alone
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._path, gzip.compress(json.dumps(content).encode(), 1))


def content_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _examined(source: Source, index: int) -> PictureFacts:
    """What one picture of a source tells."""
    digest = "missing"
    try:
        with unreadable():
            content = source.content(index)
            digest, is_encoded = content_digest(content), isinstance(source, EncodedSource)
            return facts_of(opened(content) if is_encoded else source.open(index), digest)
    except UnreadableError as error:
        return PictureFacts(digest, str(error))


def facts_of(picture: Image.Image, digest: str) -> PictureFacts:
    """What a picture tells that was opened and not decoded yet."""
    import imagehash

    (width, height), is_turned = picture.size, orientation(picture) > 1
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
        if lowest != 255:  # what each ground would hide, each pixel by its alpha
            rgba = np.asarray(small).astype(np.int64)
            alpha, colours = rgba[..., 3], rgba[..., :3]
            lost = [np.abs(colours - ground).max(axis=-1) < _HIDDEN for ground in GROUNDS]
            shown = max(1, int(alpha.sum()))
            white, black, grey = (float(alpha[each].sum() / shown) for each in lost)
            hidden = white, black, grey
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
    """The values that become black and white where nearly all lie between ``low`` and ``high``:
    0 and the largest number of as many bits, 1 for fractions, where they use a quarter of that."""
    low, high = low or 0.0, high or 0.0
    scales = [1.0] if is_float and high <= 1 else [2.0**bits - 1 for bits in range(8, 33)]
    top = next((scale for scale in scales if high <= scale), high)
    if low >= 0 and (low == high or high - low >= top / 4):
        return 0.0, top
    return (low, high) if low < high else (low, low + 1)


def _thumbnail(picture: Image.Image) -> Image.Image:
    """A picture of 64 pixels a side at most, each the mean of some; small ones as they are."""
    factor = -(-max(picture.size) // _THUMBNAIL)
    width, height = picture.size
    return picture.reduce((min(factor, width), min(factor, height))) if factor > 1 else picture


def _bounds(values: NDArray[Any], is_drawn: bool) -> tuple[float | None, float | None]:
    """What all but one in a thousand of the finite :func:`numbers` that are shown lie between.

    ``is_drawn`` tells whether what is transparent was drawn so, and is no lack of data.
    """
    has_alpha = values.shape[-1] in (2, 4)
    flat = (values[values[..., -1] > 0][..., :-1] if has_alpha else values).ravel()
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

    # Classes of fewer cannot be tried.
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
