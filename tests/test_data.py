"""Data sets: where they are looked for, how they are split, and what is said of broken ones."""

import gzip
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from levit_search.configuration import validated
from levit_search.data import Arrays, DataConfig, StoredImages, describe, load, sets
from levit_search.errors import InputError


def images_of(split: Arrays) -> list[tuple[int, bytes]]:
    return [(int(y), x.tobytes()) for x, y in zip(split.images, split.labels, strict=True)]


def test_digits_are_partitioned_in_proportion_and_always_alike():
    from sklearn.datasets import load_digits

    splits = load(DataConfig())
    assert {name: len(split.labels) for name, split in splits.items()} == {
        "train": 1149,
        "val": 288,
        "test": 360,
    }
    whole = load_digits()
    pixels = np.round(whole.images * 255 / 16).astype(np.uint8)
    everything = Counter(images_of(Arrays(pixels, whole.target)))
    together = Counter(item for split in splits.values() for item in images_of(split))
    assert together == everything
    for split in splits.values():
        assert split.images.dtype == np.uint8 and split.images.shape[1:] == (1, 8, 8)
        share = len(split.labels) / 1797
        expected = np.bincount(whole.target) * share
        assert np.abs(np.bincount(split.labels) - expected).max() < 1.5
    digest = hashlib.sha256()
    for name in ("train", "val", "test"):
        digest.update(splits[name].images.tobytes() + splits[name].labels.tobytes())
    assert digest.hexdigest()[:16] == "f12cac2d3e730b62"


def test_val_share_is_cut_from_training_and_leaves_test_alone():
    usual, halved = load(DataConfig()), load(DataConfig(val_share=0.5))
    assert len(halved["val"].labels) == pytest.approx(1437 / 2, abs=1)
    assert len(halved["train"].labels) + len(halved["val"].labels) == 1437
    assert images_of(halved["test"]) == images_of(usual["test"])


@pytest.mark.parametrize("count", [10, 250, 1145, 1149, 5000])
def test_train_images_bounds_training_by_class_and_nothing_else(count):
    usual, bounded = load(DataConfig()), load(DataConfig(train_images=count))
    assert len(bounded["train"].labels) == min(count, 1149)
    per_class = np.bincount(bounded["train"].labels, minlength=10)
    assert per_class.max() - per_class.min() <= max(1, min(count, 1149) // 100)
    assert not Counter(images_of(bounded["train"])) - Counter(images_of(usual["train"]))
    for name in ("val", "test"):
        assert images_of(bounded[name]) == images_of(usual[name])


def test_too_few_images_for_a_split_by_class_is_an_input_error():
    with pytest.raises(InputError, match="too few images"):
        load(DataConfig(train_images=5))


def idx(array: NDArray[np.uint8]) -> bytes:
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


def write_fashion(folder: Path, shade: int = 7) -> Path:
    """Fashion-MNIST's four files with 60 images of ``shade`` and 20 test images of 200."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        TRAIN_IMAGES: np.full((60, 28, 28), shade, np.uint8),
        TRAIN_LABELS: np.arange(60, dtype=np.uint8) % 10,
        TEST_IMAGES: np.full((20, 28, 28), 200, np.uint8),
        TEST_LABELS: np.arange(20, dtype=np.uint8) % 10,
    }
    for name, array in contents.items():
        (folder / name).write_bytes(gzip.compress(idx(array)))
    return folder


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where Fashion-MNIST is looked for when no root is named, first place first; all empty."""
    named, debian, cache = tmp_path / "named", tmp_path / "debian", tmp_path / "cache"
    monkeypatch.setenv("LEVIT_SEARCH_DATA", str(named))
    monkeypatch.setattr(sets, "_DEBIAN_FASHION", debian)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    downloaded = cache / "levit-search" / "FashionMNIST" / "raw"
    return [named / "fashion-mnist", named, debian, downloaded]


def unreachable(root: str, download: bool) -> None:
    raise RuntimeError("Error downloading train-images\nno route to host")


def shade_of(config: DataConfig) -> int:
    return int(load(config)["train"].images.max())


def test_fashion_is_read_from_the_first_place_that_has_it(places, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", unreachable)
    config = DataConfig(name="fashion-mnist")
    for shade, place in enumerate(places):
        write_fashion(place, shade)
    for shade, place in enumerate(places):
        assert shade_of(config) == shade
        for file in place.glob("*.gz"):
            file.unlink()
    with pytest.raises(InputError) as raised:
        load(config)
    message = str(raised.value)
    assert "no route to host" not in message, "one line is enough"
    assert "apt-get install dataset-fashion-mnist" in message
    assert "data.root" in message and "LEVIT_SEARCH_DATA" in message


def test_fashion_is_downloaded_to_the_cache_when_it_is_nowhere(places, monkeypatch):
    def reachable(root: str, download: bool) -> None:
        assert download
        write_fashion(Path(root) / "FashionMNIST" / "raw", shade=9)

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", reachable)
    assert shade_of(DataConfig(name="fashion-mnist")) == 9
    assert (places[-1] / TRAIN_IMAGES).is_file()


@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"], ids=["files", "torchvision"])
def test_a_named_root_goes_before_all_others(inside, places, tmp_path):
    write_fashion(places[0], shade=1)
    write_fashion(tmp_path / "root" / inside, shade=2)
    config = DataConfig(name="fashion-mnist", root=str(tmp_path / "root"))
    assert shade_of(config) == 2


def test_a_named_root_without_the_files_is_an_error_even_if_they_are_elsewhere(places, tmp_path):
    write_fashion(places[0])
    empty = tmp_path / "empty"
    for root in (empty, write_fashion(tmp_path / "partly")):
        (root / TEST_LABELS).unlink(missing_ok=True)
        config = DataConfig(name="fashion-mnist", root=str(root))
        for look in (describe, load):
            with pytest.raises(InputError, match=rf"data\.root: {root} "):
                look(config)


def test_fashion_keeps_its_test_part_and_cuts_val_by_class_from_the_rest(tmp_path):
    config = DataConfig(name="fashion-mnist", root=str(write_fashion(tmp_path)), val_share=0.5)
    splits = load(config)
    assert np.bincount(splits["val"].labels).tolist() == [3] * 10
    assert np.bincount(splits["train"].labels).tolist() == [3] * 10
    assert (splits["test"].images == 200).all()
    assert splits["test"].labels.tolist() == [*range(10), *range(10)]
    assert {split.images.shape[1:] for split in splits.values()} == {(1, 28, 28)}


GOOD_LABELS = gzip.compress(idx(np.arange(60, dtype=np.uint8) % 10))

DAMAGES = {
    "no gzip": b"what is this",
    "empty": b"",
    "cut off": GOOD_LABELS[:-12],
    "bytes changed": GOOD_LABELS[:20] + b"\xff\xff\xff\xff" + GOOD_LABELS[24:],
    "other element type": gzip.compress(b"\0\0\x0d\x01\0\0\0\x3c" + bytes(240)),
    "header cut off": gzip.compress(b"\0\0\x08"),
    "fewer elements than said": gzip.compress(b"\0\0\x08\x01\0\0\0\x3c" + bytes(59)),
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_fashion_file_is_named(content, tmp_path):
    root = write_fashion(tmp_path)
    (root / TRAIN_LABELS).write_bytes(content)
    with pytest.raises(InputError, match=TRAIN_LABELS):
        load(DataConfig(name="fashion-mnist", root=str(root)))


@pytest.mark.parametrize("count", [59, 61])
def test_as_many_fashion_labels_as_images_are_required(count, tmp_path):
    root = write_fashion(tmp_path)
    labels = np.arange(count, dtype=np.uint8) % 10
    (root / TRAIN_LABELS).write_bytes(gzip.compress(idx(labels)))
    with pytest.raises(InputError, match=r"train-(images|labels)-idx"):
        load(DataConfig(name="fashion-mnist", root=str(root)))


REAL_FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(
    not (REAL_FASHION / TRAIN_IMAGES).is_file(),
    reason=f"Debian's dataset-fashion-mnist is not installed in {REAL_FASHION}",
)
def test_the_real_fashion_mnist_has_its_published_sizes():
    splits = load(DataConfig(name="fashion-mnist", root=str(REAL_FASHION)))
    assert {name: np.bincount(split.labels).tolist() for name, split in splits.items()} == {
        "train": [4800] * 10,
        "val": [1200] * 10,
        "test": [1000] * 10,
    }
    pixels = gzip.decompress((REAL_FASHION / TEST_IMAGES).read_bytes())[16:]
    assert splits["test"].images.tobytes() == pixels
    labels = gzip.decompress((REAL_FASHION / TEST_LABELS).read_bytes())[8:]
    assert splits["test"].labels.astype(np.uint8).tobytes() == labels


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_an_unknown_name_gets_the_nearest_spelling():
    for name, near in {
        "digit": "digits",
        "cifar10": "torch/cifar10",
        "torch/cifr100": "torch/cifar100",
        "hfds/": "hfds/NAME",
    }.items():
        with pytest.raises(InputError, match=f"name: unknown data set .*did you mean '{near}'"):
            validated(DataConfig, {"name": name}, "data")


@pytest.mark.parametrize(
    "name", ["torch/mnist", "hfds/a/b", "hfids/b", "wds/x", "tfds/mnist:3.0.1"]
)
def test_names_of_timm_are_taken_as_they_are(name):
    assert DataConfig(name=name).name == name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten training images of each of two classes, and three in val/."""
    for part, count in (("train", 10), ("val", 3)):
        for name in ("newt", "frog"):
            for number in range(count):
                write_image(tmp_path / part / name / f"{number}.png")
    return tmp_path


def test_a_folder_gives_test_from_val_and_cuts_the_rest_from_train(folder):
    write_image(folder / "train" / "newt" / "deeper" / "x.JPG")
    (folder / "train" / "newt" / "notes.txt").write_text("no image")
    write_image(folder / "train" / ".hidden" / "0.png")
    write_image(folder / "train" / "newt" / "._0.png")
    write_image(folder / "train" / "newt" / ".thumbnails" / "0.png")
    config = DataConfig(name="folder", root=str(folder), val_share=0.3, in_memory=False)
    info = describe(config)
    assert info == (3, ("frog", "newt"), True, 4)

    splits = load(config)
    paths: dict[str, list[str]] = {}
    for name, split in splits.items():
        assert isinstance(split, StoredImages)
        parts = [split.name(index).split("/") for index in range(len(split))]
        assert [part[1] for part in parts] == [info.class_names[y] for y in split.labels]
        paths[name] = ["/".join(part) for part in parts]
    expected = [f"train/{name}/{number}.png" for name in ("frog", "newt") for number in range(10)]
    assert sorted(paths["train"] + paths["val"]) == sorted([*expected, "train/newt/deeper/x.JPG"])
    assert np.bincount(splits["val"].labels).tolist() == pytest.approx([3, 3.5], abs=0.5)
    assert sorted(paths["test"]) == [f"val/{n}/{i}.png" for n in ("frog", "newt") for i in range(3)]


def empty_class(root: Path) -> None:
    for image in (root / "train" / "frog").iterdir():
        image.unlink()


def one_of_a_class(root: Path) -> None:
    empty_class(root)
    write_image(root / "train" / "frog" / "0.png")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda root: shutil.rmtree(root), "has no folder train/"),
        (lambda root: shutil.rmtree(root / "train"), "has no folder train/"),
        (lambda root: shutil.rmtree(root / "val"), "has no folder val/"),
        (empty_class, "train/frog: no images"),
        (lambda root: shutil.rmtree(root / "val" / "frog"), "val/frog: no images"),
        (lambda root: write_image(root / "val" / "toad" / "0.png"), "val: class 'toad'"),
        (lambda root: shutil.rmtree(root / "train" / "frog"), "train: .*at least two classes"),
        (one_of_a_class, "class 'frog' has one training image"),
    ],
    ids=[
        "nothing",
        "no train",
        "no val",
        "empty class",
        "only train",
        "only val",
        "one class",
        "one image",
    ],
)
def test_a_folder_that_cannot_be_used_is_explained(
    damage: Callable[[Path], None], told: str, folder: Path
):
    damage(folder)
    config = DataConfig(name="folder", root=str(folder))
    with pytest.raises(InputError, match=told):
        describe_and_load(config)


def describe_and_load(config: DataConfig) -> None:
    describe(config)
    load(config)


@pytest.mark.parametrize("look", [describe, load])
def test_a_folder_data_set_needs_a_root(look):
    with pytest.raises(InputError, match=r"data\.root: is required"):
        look(DataConfig(name="folder"))
