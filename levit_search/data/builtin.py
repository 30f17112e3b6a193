"""The two sets that need no reader: scikit-learn's digits and Fashion-MNIST from its idx files."""

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from levit_search.data.config import DataConfig
from levit_search.data.sources import ArraySource, Source, first_line
from levit_search.data.splits import SplitName
from levit_search.errors import InputError
from levit_search.files import expanded, user_cache

DIGIT_CLASSES = tuple(str(digit) for digit in range(10))
FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_MOST_BYTES = 1 << 27  # of one of them, unpacked; the largest has 47 million
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def digits() -> ArraySource:
    """scikit-learn's 1797 digits of 8x8 pixels; they bring no test part."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return ArraySource("digits", images, bunch.target.astype(np.int64))


def fashion(config: DataConfig) -> dict[SplitName, Source]:
    """Fashion-MNIST's training and test part.

    Raises:
        InputError: the files are missing and cannot be downloaded, or they are damaged.
    """
    root = fashion_root(config) or _download_fashion()
    return {"train": _read_fashion(root, "train"), "test": _read_fashion(root, "test")}


def fashion_root(config: DataConfig) -> Path | None:
    """The first folder with Fashion-MNIST's files, or None where it must be downloaded.

    Raises:
        InputError: a root was named, but the files are not in it.
    """
    if config.root is not None:
        root = expanded(config.root)
        for place in (root, root / "FashionMNIST" / "raw"):
            if _has_fashion(place):
                return place
        raise InputError(
            f"data.root: {root} does not hold Fashion-MNIST; expected the four files "
            f"{', '.join(_FASHION_FILES['train'])}, t10k-..."
        )
    named = os.environ.get("LEVIT_SEARCH_DATA")
    places = [Path(named) / "fashion-mnist", Path(named)] if named else []
    places += [_DEBIAN_FASHION, user_cache() / "FashionMNIST" / "raw"]
    return next((place for place in places if _has_fashion(place)), None)


def _has_fashion(place: Path) -> bool:
    return all((place / name).is_file() for pair in _FASHION_FILES.values() for name in pair)


def _download_fashion() -> Path:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(user_cache()), download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            "Fashion-MNIST is not on this machine and cannot be downloaded "
            f"({first_line(error)}). Either `apt-get install dataset-fashion-mnist`, or put its "
            "four idx .gz files into a folder and name it by --set data.root=DIR or "
            "LEVIT_SEARCH_DATA"
        ) from None
    return user_cache() / "FashionMNIST" / "raw"


def _read_fashion(root: Path, part: str) -> ArraySource:
    images_path, labels_path = (root / name for name in _FASHION_FILES[part])
    images, labels = _read_idx(images_path), _read_idx(labels_path)
    if images.ndim != 3 or labels.shape != (len(images),) or labels.max(initial=0) > 9:
        raise InputError(
            f"{labels_path}: damaged (labels {list(labels.shape)} up to {labels.max(initial=0)}, "
            f"images {list(images.shape)})"
        )
    return ArraySource(f"fashion-mnist {part}", images[:, None], labels.astype(np.int64))


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An idx file of bytes: two zeros, type 8, the number of axes, their sizes, the data."""
    try:
        with gzip.open(path) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes unpacked")
        if content[:3] != b"\0\0\x08":
            raise ValueError("not an idx file of bytes")
        axes = int.from_bytes(content[3:4], "big")
        shape = np.frombuffer(content, ">u4", count=axes, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: damaged ({first_line(error)})") from None
