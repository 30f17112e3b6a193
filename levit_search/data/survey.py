"""Looks at all pictures of a data set before anything is trained, and says what is in them.

What a reader must know of a whole set is decided here: channels, the ground of transparent
pictures, the range of those of more than 8 bits, the size, and whether mirroring keeps classes
apart. What was found out about each file is kept in the user's cache and used again as long as the
file has the same size and time.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from statistics import median_low
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from levit_search.configuration import Frozen
from levit_search.data.facts import (
    GROUNDS,
    LOOKED_AT,
    FactTable,
    Looked,
    Mirroring,
    PictureFacts,
    content_digest,
    facts_of,
    reported,
    span,
)
from levit_search.data.generated import Generated
from levit_search.data.sets import Digits, FashionMnist, Folder, PlugIn, told_left_out
from levit_search.data.sources import (
    LARGEST,
    LISTED,
    SMALLEST,
    ArraySource,
    DataConfig,
    DataInfo,
    OpenedSet,
    Range,
    Source,
    SplitName,
    UnreadableError,
    too_many_unreadable,
    unreadable,
)
from levit_search.data.timm_sets import Rows, Stream, TorchSet, class_labels
from levit_search.errors import InputError
from levit_search.escaping import readable_name
from levit_search.image_size import ImageSize, size_text
from levit_search.progress import Progress, no_progress

_MOST, _STEP = 224, 16  # pixels of the size that suits a set
# Of pictures that were stored again in other ways: measured on JPEG and WebP of 80, and on scales
# of 0.7 and 2. Flat drawings have hashes alike, and differ in more than one of their tints.
_NEAR_BITS = 2  # that their perceptual hashes differ in at most
_NEAR_TINT = 5  # of 255, between their tints at most
_COMPARED = 100  # pictures at most of one part of the hash, those of like brightness


class Duplicates(Frozen):
    """How many pictures stand more than once, by their content, and how many nearly so."""

    within_train: int = 0
    within_test: int = 0
    between: int = 0
    """Pictures of ``test`` that are in ``train`` too."""
    in_two_classes: int = 0
    """Contents that stand under more than one class."""
    near_within_train: int = 0
    near_between: int = 0


class DataSurvey(Frozen):
    """What is in a data set, and how it is read because of that.

    ``test`` is the set's own held-out part, such as ``val/`` of a folder.
    """

    name: str
    root: str | None
    class_names: tuple[str, ...]
    counts: dict[SplitName, tuple[int, ...]]
    """Pictures by split and class, without those that are unreadable."""
    looked_at: int
    """Pictures that were decoded; 0 for sets that are known, of which only labels are counted."""
    in_channels: Literal[1, 3]
    image_size: ImageSize
    hflip: bool
    sizes: tuple[tuple[int, int], ...] = ()
    """Smallest, median and largest width, and the same of heights, as three pairs."""
    modes: dict[str, int] = Field(default_factory=dict)
    coloured: int = 0
    turned: int = 0
    animated: int = 0
    transparent: int = 0
    invisible: int = 0
    """Of the transparent ones, those that show nothing at all."""
    ground: int | None = None
    integer_range: Range | None = None
    float_range: Range | None = None
    constant_channels: tuple[int, ...] = ()
    """Those, from 0, that are the same in all pictures."""
    unreadable: dict[str, str] = Field(default_factory=dict)
    """The first of them by place, with the reason."""
    unreadable_count: int = 0
    left_out: dict[str, int] = Field(default_factory=dict)
    """Files that are no pictures, by their ending, and links to nowhere."""
    duplicates: Duplicates = Duplicates()
    mirroring: Mirroring | None = None
    fingerprint: str = ""
    """Of the names, classes and contents of the pictures."""

    @property
    def info(self) -> DataInfo:
        return DataInfo(self.in_channels, self.class_names, self.hflip, self.image_size)

    def told_counts(self) -> str:
        """How many pictures and classes there are."""
        pictures = sum(map(sum, self.counts.values()))
        return f"{pictures:,} pictures of {len(self.class_names)} classes"

    def lines(self) -> Iterator[str]:
        """The survey for people, a fact a line."""
        where = self.name if self.root is None else f"{self.name} {self.root}"
        yield f"{where}: {len(self.class_names)} classes, fingerprint {self.fingerprint}"
        for split, counts in self.counts.items():
            smallest, largest = int(np.argmin(counts)), int(np.argmax(counts))
            spread = f"{counts[smallest]:,} of each class"
            if counts[smallest] < counts[largest]:
                least, most = self.class_names[smallest], self.class_names[largest]
                spread = f"{counts[smallest]:,} of {least} to {counts[largest]:,} of {most}"
            yield f"{split}: {sum(counts):,} pictures; {spread}"
        channels = "grey, 1 channel" if self.in_channels == 1 else "colour, 3 channels"
        mirrored = "on" if self.hflip else "off"
        if not self.looked_at:
            yield f"{channels}, {size_text(self.image_size)} px; mirroring {mirrored}"
            return
        pictures = sum(map(sum, self.counts.values())) + self.unreadable_count
        share = "all" if self.looked_at == pictures else f"{self.looked_at:,} of {pictures:,}"
        broken = "none"
        for place, reason in islice(self.unreadable.items(), 1):
            broken = f"{self.unreadable_count:,} (the first: {place}: {reason}), left out"
        yield f"looked at: {share}; unreadable: {broken}"
        (w0, h0), (w1, h1), (w2, h2) = self.sizes
        same = f"all {w0}x{h0}"
        if (w0, h0) != (w2, h2):
            same = f"{w0}x{h0} to {w2}x{h2}, median {w1}x{h1}"
        shown = f"{size_text(self.image_size)} px"
        if not isinstance(self.image_size, int):
            same, shown = f"{same} (width x height)", f"{shown} (height x width)"
        yield f"size: {same}; shown at {shown} unless data.image_size says otherwise"
        modes = ", ".join(f"{count:,} {mode}" for mode, count in self.modes.items())
        yield f"modes: {modes}; {self.coloured:,} show colours: {channels}"
        if self.in_channels == 3 and not self.coloured:
            yield "none shows colours: data.in_channels=1 would do, in less time"
        if self.transparent:
            grounds = {255: "white", 128: "grey", 0: "black"}
            ground = grounds.get(self.ground or 0, str(self.ground))
            nothing = f"; {self.invisible:,} of them show nothing" if self.invisible else ""
            yield f"transparent: {self.transparent:,}, laid on {ground} (data.ground){nothing}"
        for kind, values in (("integer", self.integer_range), ("float", self.float_range)):
            if values is not None:
                low, high = values
                yield f"{kind} values: {low:g} becomes black, {high:g} white (data.{kind}_range)"
        if self.turned:
            yield f"turned upright by their EXIF data: {self.turned:,}"
        if self.animated:
            yield f"animated, of which the first frame is taken: {self.animated:,}"
        if self.constant_channels:
            which = ", ".join(("red", "green", "blue")[each] for each in self.constant_channels)
            yield f"the same in all pictures, and so of no use: {which}"
        untried = "it is not tried on streams (data.hflip changes it)"
        yield f"mirroring: {mirrored}; {self.mirroring.told() if self.mirroring else untried}"
        two = self.duplicates
        classes = f"; {two.in_two_classes:,} stand in two classes" if two.in_two_classes else ""
        yield (
            f"duplicates: {two.within_train:,} within train, {two.within_test:,} within test, "
            f"{two.between:,} of test in train; nearly: {two.near_within_train:,} within train, "
            f"{two.near_between:,} of test in train{classes}"
        )
        if self.left_out:
            yield f"left out, no pictures: {told_left_out(self.left_out)}"


def open_set(config: DataConfig) -> OpenedSet:
    """The data set of a configuration; InputError says where one that is missing was looked for."""
    kinds: dict[str, type[OpenedSet]] = {
        **{"digits": Digits, "fashion-mnist": FashionMnist, "folder": Folder},
        **{"generated": Generated, "torch": TorchSet, "hfds": Rows},
        **dict.fromkeys(("hfids", "wds", "tfds"), Stream),
    }
    return kinds.get(config.reader, PlugIn)(config)


def describe(config: DataConfig) -> DataInfo:
    """Channels, classes, symmetry and size of a data set.

    Sets that are known (digits, Fashion-MNIST, torchvision's small ones, plug-ins) describe
    themselves. The pictures of others are looked at, see :func:`survey_of`, unless the
    configuration says already what there is to find.

    Raises:
        InputError: the data is not there; the message says where it was looked for.
    """
    described = open_set(config).describe()
    if not isinstance(described, DataInfo):
        if config.is_looked_at:
            assert config.in_channels is not None and config.hflip is not None
            return DataInfo(config.in_channels, described, config.hflip, config.size)
        return survey_of(config).info
    if config.in_channels not in (None, described.in_channels):
        raise InputError(
            f"data.in_channels: {config.in_channels}, but {config.name} has {described.in_channels}"
        )
    return described if config.hflip is None else described._replace(hflip=config.hflip)


def looked_at(config: DataConfig) -> DataConfig:
    """A configuration with all that is to be found by looking at the pictures.

    Args:
        config: what it says already stays.

    Raises:
        InputError: the data is missing, or nothing can be learnt from it, see :func:`check`.
    """
    return config if config.is_looked_at else surveyed(config)[0]


def surveyed(
    config: DataConfig, progress: Progress = no_progress
) -> tuple[DataConfig, DataSurvey | None]:
    """The same with what was found; None of sets that describe themselves, which need no look."""
    described = open_set(config).describe()
    if isinstance(described, DataInfo):
        size = config.image_size or described.image_size
        return config.model_copy(update={"image_size": size}), None
    found = survey_of(config, progress)
    check(found, config)
    names = ("image_size", "in_channels", "hflip", "ground", "integer_range", "float_range")
    update = {name: getattr(found, name) for name in names if getattr(config, name) is None}
    return config.model_copy(update={**update, "fingerprint": found.fingerprint}), found


def check(found: DataSurvey, config: DataConfig) -> None:
    """Make sure that a set may be learnt from, and is the one that ``config`` was made for.

    Raises:
        InputError: too many pictures are unreadable, or they are others than those of
            ``config.fingerprint``.
    """
    if found.unreadable_count > config.max_unreadable:
        raise too_many_unreadable(config.max_unreadable, found.unreadable, found.unreadable_count)
    _check_fingerprint(config, found.fingerprint)


def _check_fingerprint(config: DataConfig, found: str) -> None:
    if config.fingerprint not in (None, found):
        raise InputError(
            f"data.root: the pictures in {config.root} are not those that the study was made for "
            f"(fingerprint {found}, not {config.fingerprint}); put those back, or name the folder "
            "where they lie"
        )


def survey_of(config: DataConfig, progress: Progress = no_progress) -> DataSurvey:
    """Look at all pictures of a data set, of more than :data:`LOOKED_AT` at as many.

    Args:
        config: the set. What it says of its pictures (channels, ground, ranges, size, mirroring)
            takes the place of what is found.
        progress: told every few seconds how far it is.

    Raises:
        InputError: the data is missing, or a class has no readable picture.
    """
    data_set = open_set(config)
    described = data_set.describe()
    if isinstance(described, DataInfo):
        return _known(config, data_set, describe(config))
    stored = data_set.stored_pictures()
    if stored is not None:
        return _survey(config, described, _of_stream(stored, described, progress), {}, None)
    table = FactTable(config, data_set.sources())
    return _survey(config, described, table.filled(progress), dict(data_set.left_out), table)


def unreadable_of(
    config: DataConfig, data_set: OpenedSet, sources: Mapping[SplitName, Source]
) -> dict[str, str]:
    """The pictures of a set of files that cannot be read, by name, with the reason.

    Raises:
        InputError: they are not the pictures of ``config.fingerprint``.
    """
    if data_set.stored_pictures() is not None or isinstance(data_set.describe(), DataInfo):
        return {}
    looked = FactTable(config, sources).filled(no_progress)
    broken = {each.name: each.error for each in looked if each.error is not None}
    if config.fingerprint is not None:
        readable = (each for each in looked if each.name not in broken)
        _check_fingerprint(config, _fingerprint(readable))
    return broken


def _known(config: DataConfig, data_set: OpenedSet, info: DataInfo) -> DataSurvey:
    """Of a set that describes itself the labels are counted, and equal arrays."""
    looked = []
    for split, source in data_set.sources().items():
        for index, label in enumerate(source.labels.tolist()):
            is_array = isinstance(source, ArraySource)
            facts = PictureFacts(content_digest(source.content(index))) if is_array else None
            looked.append(Looked(split, label, source.name(index), source.where(index), facts))
    return DataSurvey(
        name=config.name,
        root=config.root,
        class_names=info.class_names,
        counts=_counts(looked, info.num_classes),
        looked_at=0,
        in_channels=info.in_channels,
        image_size=config.image_size or info.image_size,
        hflip=info.hflip,
        duplicates=_duplicates(looked),
        fingerprint=_fingerprint(looked),
    )


def _survey(
    config: DataConfig,
    class_names: tuple[str, ...],
    looked: Sequence[Looked],
    left_out: dict[str, int],
    table: FactTable | None,
) -> DataSurvey:
    readable = [each for each in looked if each.error is None]
    broken = [each for each in looked if each.error is not None]
    counts = _counts(readable, len(class_names))
    for split, label in dict.fromkeys((each.split, each.label) for each in broken):
        if split not in counts:
            raise InputError(f"data: {split}: no readable images in {', '.join(class_names)}")
        if not counts[split][label]:
            its = [each for each in broken if (each.split, each.label) == (split, label)]
            raise InputError(
                f"data: class {class_names[label]!r}: none of its {len(its)} pictures for {split} "
                f"can be read (the first: {its[0].where}: {its[0].error}); mend or remove this "
                "class"
            )
    train = [each for each in readable if each.split == "train"]
    seen = [each.facts for each in readable if each.facts is not None]
    coloured = sum(facts.is_coloured for facts in seen)
    hidden = [facts.hidden for facts in seen if facts.hidden is not None]
    is_grey = all(
        facts.mode.removeprefix("16-bit ").split(";")[0] in ("1", "L", "LA", "La", "I", "F")
        for facts in seen
    )
    ground = config.ground
    if ground is None and hidden:  # the one on which least is lost of what they show
        ground = GROUNDS[int(np.argmin(np.mean(hidden, axis=0).round(2)))]
    found = config.model_copy(
        update={
            "in_channels": config.in_channels or (1 if is_grey else 3),
            "ground": ground,
            "integer_range": config.integer_range or _range(seen, is_float=False),
            "float_range": config.float_range or _range(seen, is_float=True),
        }
    )
    mirroring, fingerprint = None, _fingerprint(readable)
    if table is not None:
        key = f"{fingerprint} {found.decoding}"
        mirroring = table.mirroring(key, train, found.decoding, class_names)
    hflip = mirroring is None or mirroring.verdict != "changes classes"
    widths, heights = [facts.width for facts in seen], [facts.height for facts in seen]
    constant: tuple[int, ...] = ()
    if coloured and all(facts.extrema for facts in seen):  # of modes whose channels are looked at
        ends = np.array([facts.extrema for facts in seen])
        is_same = ends[:, 0::2].min(axis=0) == ends[:, 1::2].max(axis=0)
        constant = tuple(np.flatnonzero(is_same).tolist())
    return DataSurvey(
        name=config.name,
        root=config.root,
        class_names=class_names,
        counts=counts,
        looked_at=len(seen) + len(broken),
        in_channels=found.in_channels,
        image_size=config.image_size or _own_size([each.facts for each in train if each.facts]),
        hflip=hflip if config.hflip is None else config.hflip,
        sizes=tuple((pick(widths), pick(heights)) for pick in (min, median_low, max)),
        modes=dict(Counter(facts.mode for facts in seen).most_common()),
        coloured=coloured,
        turned=sum(facts.is_turned for facts in seen),
        animated=sum(facts.is_animated for facts in seen),
        transparent=len(hidden),
        invisible=sum(facts.is_invisible for facts in seen),
        ground=ground,
        integer_range=found.integer_range,
        float_range=found.float_range,
        constant_channels=constant,
        unreadable={readable_name(each.where): each.error or "" for each in broken[:LISTED]},
        unreadable_count=len(broken),
        left_out=left_out,
        duplicates=_duplicates(readable),
        mirroring=mirroring,
        fingerprint=fingerprint,
    )


def _counts(looked: Iterable[Looked], classes: int) -> dict[SplitName, tuple[int, ...]]:
    found = Counter((each.split, each.label) for each in looked)
    splits = [split for split in get_args(SplitName) if any(split == key[0] for key in found)]
    return {split: tuple(found[split, label] for label in range(classes)) for split in splits}


def _own_size(seen: Sequence[PictureFacts]) -> int:
    """Squares of one size keep it; of pictures of other sizes it is the median of their shorter
    sides, at most 224, down to a multiple of 16."""
    sizes = {(facts.width, facts.height) for facts in seen}
    width, height = next(iter(sizes))
    if len(sizes) == 1 and width == height:
        return min(max(width, SMALLEST), LARGEST)
    side = min(median_low(min(facts.width, facts.height) for facts in seen), _MOST)
    return side - side % _STEP if side >= _STEP else max(side, SMALLEST)


def _range(seen: Sequence[PictureFacts], is_float: bool) -> Range | None:
    """The values of pictures of more than 8 bits that become black and white."""
    found = [f for f in seen if f.low is not None and f.high is not None and f.is_float == is_float]
    if not found:
        return None
    # Of many pictures a few may be out of range.
    few = 1.0 if len(found) >= 100 else 0.0
    low = float(np.percentile([f.low for f in found], few, method="higher"))
    high = float(np.percentile([f.high for f in found], 100 - few, method="lower"))
    return span(low, high, is_float)


def _fingerprint(readable: Iterable[Looked]) -> str:
    digest = hashlib.sha256()
    for each in readable:
        content = each.facts.digest if each.facts is not None else ""
        line = f"{each.split} {each.label} {each.name} {content}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _duplicates(readable: Sequence[Looked]) -> Duplicates:
    by_content: dict[str, list[Looked]] = {}
    for each in readable:
        if each.facts is not None:
            by_content.setdefault(each.facts.digest, []).append(each)
    found: Counter[str] = Counter()
    for alike in by_content.values():
        splits = Counter("train" if each.split == "train" else "test" for each in alike)
        found["within_train"] += max(0, splits["train"] - 1)
        found["within_test"] += max(0, splits["test"] - 1)
        found["between"] += splits["test"] if splits["train"] else 0
        found["in_two_classes"] += len({each.label for each in alike}) > 1
    # Pictures of train that nearly are an earlier one, and others that nearly are one of train:
    # each content once in train and once beside it.
    seen = {
        (each.split == "train", each.facts.digest): each.facts
        for each in readable
        if each.facts is not None and each.facts.phash
    }
    is_train = np.array([key[0] for key in seen], bool)
    contents = np.unique([key[1] for key in seen], return_inverse=True)[1]
    hashes = np.array([int(facts.phash, 16) for facts in seen.values()], np.uint64)
    stored = np.frombuffer(bytes.fromhex("".join(facts.tint for facts in seen.values())), np.uint8)
    tints = stored.reshape(len(seen), -1).astype(np.int16) if seen else np.zeros((0, 1), np.int16)
    near_train, near_others = set[int](), set[int]()
    for some, others in _alike(hashes, tints):
        is_other = contents[some] != contents[others]
        both = is_other & is_train[some] & is_train[others]
        near_train.update(np.maximum(some, others)[both].tolist())
        for one, two in ((some, others), (others, some)):
            near_others.update(one[is_other & ~is_train[one] & is_train[two]].tolist())
    return Duplicates(**found, near_within_train=len(near_train), near_between=len(near_others))


def _alike(
    hashes: NDArray[np.uint64], tints: NDArray[np.int16]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of pictures that look alike, some of them more than once.

    Args:
        hashes: uint64 [N].
        tints: [N, 48].
    """
    brightness = tints.sum(axis=1)
    for part in range(_NEAR_BITS + 1):  # two hashes are equal in one of them
        keys = hashes >> np.uint64(22 * part) & np.uint64(2**22 - 1)
        order = np.lexsort((brightness, keys))
        keys = keys[order]
        for step in range(1, min(_COMPARED, len(keys))):
            places = np.flatnonzero(keys[step:] == keys[:-step])
            if not len(places):
                break
            some, others = order[places], order[places + step]
            bits = hashes[some] ^ hashes[others]
            for _ in range(_NEAR_BITS):
                bits &= bits - np.minimum(bits, np.uint64(1))  # without the lowest one that is set
            some, others = some[bits == 0], others[bits == 0]
            near = np.abs(tints[some] - tints[others]).max(axis=1, initial=0) <= _NEAR_TINT
            yield some[near], others[near]


def _of_stream(
    stored: Iterator[tuple[SplitName, Any, Image.Image]],
    class_names: tuple[str, ...],
    progress: Progress,
) -> list[Looked]:
    seen, labels = [], []
    for split, label, picture in reported(islice(stored, LOOKED_AT), progress, None):
        try:
            with unreadable():
                picture.load()
                found = facts_of(picture, content_digest(picture.tobytes()))
        except UnreadableError as error:
            found = PictureFacts("unreadable", str(error))
        seen.append((split, found))
        labels.append(label)
    if not labels:
        raise InputError("data: the stream has no readable images")
    numbered = class_labels(labels, class_names, "data").tolist()
    return [
        Looked(split, label, str(place), f"picture {place}", found)
        for place, ((split, found), label) in enumerate(zip(seen, numbered, strict=True))
    ]
