"""The data set ``generated``: pictures made by formulas, endless, to pretrain networks on.

Three kinds of classes, none of which anybody had to label. *Contours* are closed lines around each
other, as in the Radial Contour DataBase (Kataoka et al. 2022, arXiv 2206.09132); *fractals* are
attractors of iterated affine maps (FractalDB, Kataoka et al. 2020); *textures* are noise of one
spectrum. A class is a set of parameters drawn from its number; a picture of it varies them a
little and has colours, a place and a turn of its own. Pictures of a folder may be mixed in, as
random crops without labels, for a teacher to answer about (after Asano and Saeed 2021, arXiv
2112.00725).
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from levit_search.data.decoding import Decoding
from levit_search.data.sets import pictures_below
from levit_search.data.sources import (
    DataConfig,
    DataInfo,
    FileSource,
    OpenedSet,
    SplitName,
    UnreadableError,
    decode,
    decoding_threads,
)
from levit_search.errors import InputError
from levit_search.files import expanded
from levit_search.image_size import sides

Rng = np.random.Generator

UNLABELLED = -100
"""The label of pictures of a folder: what torch's cross entropy leaves out."""
CROPS = "crops"
"""The kind of ``train`` that is of pictures of a folder alone."""
EPOCH_IMAGES = 8192
"""Pictures of an epoch; those of the next one are others."""
IMAGE_SIZE = 64  # pixels a side, unless a configuration says otherwise
_HELD_OUT = 1024  # pictures of val, and of test
_CROPS = 0.75  # of the pictures of train are crops, where there is a folder of them
_GREY = 0.1  # of all pictures are without colours

_CLASSES = 20220613  # keeps the parameters of classes apart from all other random numbers
_OVERSAMPLED = 2  # contours are drawn so much larger, then scaled down


def _ink(rng: Rng) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two random colours, of the ground and of lines, that can be told apart; uint8 RGB."""
    while True:
        ground, line = rng.integers(0, 256, (2, 3)).tolist()
        if sum(abs(a - b) for a, b in zip(ground, line, strict=True)) >= 150:
            return tuple(ground), tuple(line)


def _turned(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    turned: NDArray[np.float64] = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def contour(label: int, size: int, rng: Rng) -> Image.Image:
    """A picture of the class ``label`` of contours, RGB of ``size`` x ``size`` pixels."""
    own = np.random.default_rng([_CLASSES, 0, label])
    corners = int(own.choice([3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 40]))
    lines = int(own.integers(1, 9))
    stretch = own.uniform(0.55, 1.0)
    closeness = own.uniform(0.75, 0.93)  # of each line to the one around it
    twist = own.normal(0, 0.12)
    amplitude = own.uniform(0.15, 0.75)
    waves = own.normal(0, 1, (4, 2)) / np.arange(1, 5)[:, None]
    radii = 1 + amplitude * own.uniform(-1, 1, corners)
    is_smooth, is_filled, is_open = own.random(3) < (0.4, 0.25, 0.2)

    jitter = rng.normal(0, 0.02, corners)
    angles = np.arange(corners) * 2 * math.pi / corners
    bend = sum(a * np.cos(k * angles) + b * np.sin(k * angles) for k, (a, b) in enumerate(waves, 1))
    radius = (radii + jitter) * (1 + 0.3 * bend)
    outline = np.stack([np.cos(angles) * radius, np.sin(angles) * radius * stretch], 1)
    for _ in range(2 if is_smooth else 0):  # its corners are cut twice (Chaikin 1974)
        after = np.roll(outline, -1, 0)
        cut = np.stack([0.75 * outline + 0.25 * after, 0.25 * outline + 0.75 * after], 1)
        outline = cut.reshape(-1, 2)
    outline /= np.abs(outline).max()
    side = size * _OVERSAMPLED
    reach = rng.uniform(0.33, 0.47) * side
    center = side / 2 + rng.uniform(-1, 1, 2) * (side / 2 - reach) * 0.95
    turn = rng.normal(0, 0.13)
    width = max(1, round(side * rng.uniform(0.012, 0.05)))
    ground, line = _ink(rng)
    picture = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(picture)
    for number in range(lines):
        points = _turned(outline, turn + number * twist) * reach * closeness**number + center
        corners_xy = [tuple(point) for point in points.tolist()]
        if is_filled and number == 0:
            draw.polygon(corners_xy, fill=line)
            line = ground
            continue
        path = (
            corners_xy[: -max(1, len(corners_xy) // 5)] if is_open else [*corners_xy, corners_xy[0]]
        )
        draw.line(path, fill=line, width=width, joint="curve")
    return picture.resize((size, size), Image.Resampling.BOX)


def fractal(label: int, size: int, rng: Rng) -> Image.Image:
    """A picture of the class ``label`` of fractals, RGB of ``size`` x ``size`` pixels."""
    maps, shares = _contractions(label)
    scale = rng.uniform(0.9, 1.1, (1, 1, 3))  # of the class's parameters
    walkers = 256
    steps = 10 + max(8, size * size // walkers)
    which = rng.choice(len(shares), (steps, walkers), p=shares)
    points = np.zeros((walkers, 2))
    visited = np.empty((steps, walkers, 2))
    chosen = (maps * scale)[which]
    for step in range(steps):
        points = np.einsum("wij,wj->wi", chosen[step, :, :, :2], points) + chosen[step, :, :, 2]
        visited[step] = points
    cloud = visited[10:].reshape(-1, 2)
    cloud = cloud[np.isfinite(cloud).all(1)]
    low, high = np.quantile(cloud, (0.01, 0.99), axis=0)
    cloud = _turned(
        (cloud - (low + high) / 2) / max(1e-9, float((high - low).max())), rng.normal(0, 0.2)
    )
    reach = rng.uniform(0.55, 0.95) * size
    center = size / 2 + rng.uniform(-1, 1, 2) * (size - reach) / 2
    cells = np.floor(cloud * reach + center).astype(int)
    cells = cells[((cells >= 0) & (cells < size)).all(1)]
    hits = np.bincount(cells[:, 1] * size + cells[:, 0], minlength=size * size).reshape(size, size)
    shade = np.minimum(1.0, hits / 2)[..., None]
    ground, line = _ink(rng)
    pixels = np.array(ground) * (1 - shade) + np.array(line) * shade
    return Image.fromarray(pixels.astype(np.uint8))


def _contractions(label: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Affine maps [n, 2, 3] of a class and how often each is taken, by its determinant."""
    own = np.random.default_rng([_CLASSES, 1, label])
    while True:
        count = int(own.integers(2, 6))
        maps = own.uniform(-1, 1, (count, 2, 3))
        norms = np.linalg.norm(maps[:, :, :2], 2, axis=(1, 2))
        maps[:, :, :2] *= (own.uniform(0.3, 0.88, count) / norms)[:, None, None]
        areas = np.abs(np.linalg.det(maps[:, :, :2])) + 0.02
        if areas.sum() > 0.35:  # smaller ones are dust
            return maps, areas / areas.sum()


def texture(label: int, size: int, rng: Rng) -> Image.Image:
    """A picture of the class ``label`` of textures, RGB of ``size`` x ``size`` pixels."""
    own = np.random.default_rng([_CLASSES, 2, label])
    peaks = int(own.integers(1, 4))
    slope, threshold = own.uniform(0.0, 2.0), own.random() < 0.5
    directions, rates = own.uniform(0, math.pi, peaks), own.uniform(2.0, 14.0, peaks)
    spreads = own.uniform(0.2, 0.5, (peaks, 2))
    turn, zoom = rng.normal(0, 0.15), rng.uniform(0.85, 1.2)
    rows, columns = np.meshgrid(
        np.fft.fftfreq(size) * size, np.fft.fftfreq(size) * size, indexing="ij"
    )
    rate = np.hypot(rows, columns) * zoom
    angle = np.arctan2(rows, columns) + turn
    spectrum = np.zeros((size, size))
    for direction, center, (width, bend) in zip(directions, rates, spreads, strict=True):
        off = np.abs((angle - direction + math.pi / 2) % math.pi - math.pi / 2)
        spectrum += np.exp(-(((rate - center) / (center * width)) ** 2) - (off / bend) ** 2)
    spectrum /= np.maximum(1, rate) ** slope
    noise = np.fft.fft2(rng.normal(0, 1, (size, size))) * spectrum
    field = np.fft.ifft2(noise).real
    field /= max(1e-9, float(field.std()))
    shade = field > 0 if threshold else 1 / (1 + np.exp(-1.5 * field))
    ground, line = _ink(rng)
    pixels = np.array(ground) * (1 - shade[..., None]) + np.array(line) * shade[..., None]
    return Image.fromarray(pixels.astype(np.uint8))


KINDS: dict[str, Callable[[int, int, Rng], Image.Image]] = {
    "contours": contour,
    "fractals": fractal,
    "textures": texture,
}
_NUM_CLASSES = {"contours": 200, "fractals": 100, "textures": 100}


class Generated(OpenedSet):
    """Generated pictures of one kind (``generated/contours``) or, as ``generated``, of all.

    With ``root`` three of four pictures of ``train`` are random crops of those below that folder,
    and have no label; of ``generated/crops`` all are, for a teacher alone to tell about. A tenth of
    all are grey. Which pictures an epoch shows depends on the seed of the training and the epoch;
    ``val`` and ``test`` are always the same.

    Raises:
        InputError: there is no such kind, no picture below ``root``, or no ``root`` for crops.
    """

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        kind = config.name.partition("/")[2]
        kinds = (kind,) if kind in KINDS else tuple(KINDS)
        self._crops_share = 1.0 if kind == CROPS else _CROPS
        if kind == CROPS and config.root is None:
            raise InputError(
                "data.root: generated/crops are of pictures below a folder; name it, for a "
                "supernet by --pictures DIR"
            )
        self._classes = tuple((k, number) for k in kinds for number in range(_NUM_CLASSES[k]))
        # Of rectangles the longer side: their middle is cut out of squares, as of all pictures.
        self._size = max(sides(config.image_size or IMAGE_SIZE))

    def describe(self) -> DataInfo:
        names = tuple(f"{kind} {number}" for kind, number in self._classes)
        return DataInfo(3, names, hflip=False, image_size=IMAGE_SIZE)

    def sources(self) -> dict[SplitName, "GeneratedSource"]:
        return {
            "train": self.epoch(0, 0),
            "val": self._source((1,), _HELD_OUT, None),
            "test": self._source((2,), _HELD_OUT, None),
        }

    def epoch(self, seed: int, epoch: int) -> "GeneratedSource":
        """The pictures that a training with ``seed`` shows in an epoch."""
        return self._source((0, seed, epoch), EPOCH_IMAGES, self._crops)

    def _source(
        self, numbers: tuple[int, ...], count: int, crops: "Crops | None"
    ) -> "GeneratedSource":
        labels = np.random.default_rng(numbers).integers(0, len(self._classes), count)
        if crops is not None:
            labels[: round(self._crops_share * count)] = UNLABELLED
        return GeneratedSource(self._classes, self._size, numbers, labels, crops)

    @cached_property
    def _crops(self) -> "Crops | None":
        return Crops(self._config, self._size) if self._config.root is not None else None


@dataclass(eq=False)
class GeneratedSource:
    """Pictures drawn when they are asked for; see :class:`levit_search.data.Source`."""

    classes: tuple[tuple[str, int], ...]  # kind and number of each class
    size: int  # pixels a side
    numbers: tuple[int, ...]  # what all pictures depend on beside their own index
    labels: NDArray[np.int64]  # of the pictures, [N]
    crops: "Crops | None"  # what those without a label are

    def name(self, index: int) -> str:
        return f"generated {'-'.join(map(str, self.numbers))} [{index}]"

    where = name

    def open(self, index: int) -> Image.Image:
        rng, label = np.random.default_rng([*self.numbers, index]), int(self.labels[index])
        if label == UNLABELLED:
            assert self.crops is not None
            picture = self.crops.draw(rng)
        else:
            kind, number = self.classes[label]
            picture = KINDS[kind](number, self.size, rng)
        return picture.convert("L").convert("RGB") if rng.random() < _GREY else picture

    def content(self, index: int) -> bytes:
        return self.open(index).tobytes()

    def sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.full(len(indices), 3 * self.size**2, dtype=np.int64)


class Crops:
    """Random crops of ``size`` pixels a side of the pictures below a folder, which are held in
    memory at twice that at most.

    Raises:
        InputError: there are no pictures, too many are unreadable, or they take more memory.
    """

    def __init__(self, config: DataConfig, size: int) -> None:
        assert config.root is not None
        root = expanded(config.root)
        left_out: Counter[str] = Counter()
        names = list(pictures_below(root, root.parent, left_out)) if root.is_dir() else []
        if not names:
            raise InputError(
                f"data.root: {root}: no folder with pictures; expected one of any depth"
            )
        source = FileSource(root, names, np.zeros(len(names), dtype=np.int64))
        self._size = size

        def read(index: int) -> Image.Image | str:
            ground = int(np.random.default_rng(index).choice([0, 128, 255, 255]))
            try:
                picture = decode(source, index, Decoding("RGB", ground))
            except UnreadableError as error:
                return f"{names[index]} ({error})"
            picture.thumbnail((2 * size, 2 * size), Image.Resampling.BICUBIC)
            return picture

        with decoding_threads() as threads:
            found = list(threads.map(read, range(len(names))))
        self._pictures = [each for each in found if not isinstance(each, str)]
        unreadable = [each for each in found if isinstance(each, str)]
        held_mb = 3 * sum(each.width * each.height for each in self._pictures) / 10**6
        if held_mb > config.memory_limit_mb:
            raise InputError(
                f"data.memory_limit_mb: the {len(names)} pictures below {root} take {held_mb:.0f} "
                f"MB at up to {2 * size} px, more than {config.memory_limit_mb}; raise it, or give "
                "fewer"
            )
        if len(unreadable) > config.max_unreadable or not self._pictures:
            raise InputError(
                f"data.max_unreadable: more than {config.max_unreadable} of the {len(names)} "
                f"pictures below {root} are unreadable: {', '.join(unreadable[:20])}"
            )

    def draw(self, rng: Rng) -> Image.Image:
        """A crop of a quarter of a picture or more, or of it all, mirrored or not."""
        size, picture = self._size, self._pictures[int(rng.integers(len(self._pictures)))]
        if rng.random() < 0.5:  # whole, on a square of the colour of its corner
            side = max(picture.size)
            square = Image.new("RGB", (side, side), picture.getpixel((0, 0)))
            square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            picture = square
        area = rng.uniform(0.25, 1.0) * picture.width * picture.height
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width = min(picture.width, max(1, round(math.sqrt(area * aspect))))
        height = min(picture.height, max(1, round(math.sqrt(area / aspect))))
        left = int(rng.integers(picture.width - width + 1))
        top = int(rng.integers(picture.height - height + 1))
        box = (left, top, left + width, top + height)
        crop = picture.resize((size, size), Image.Resampling.BICUBIC, box)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return crop
