"""Sets that timm's create_dataset reads, from small local files; one contract over every kind."""

import gzip
import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from levit_search.data import Arrays, DataConfig, StoredImages, describe, load
from levit_search.data.survey import open_set
from levit_search.data.timm_sets import chosen_splits
from levit_search.errors import InputError
from tests.conftest import needs

CLASSES = ("frog", "newt", "toad")
COUNTS = {"train": 30, "validation": 9, "test": 6}


def pixels(part: str, number: int, channels: int = 3, size: int = 12) -> Any:
    """uint8 [C, S, S], the same for the same arguments."""
    seed = [sorted(COUNTS).index(part), number]
    return np.random.default_rng(seed).integers(0, 256, (channels, size, size)).astype(np.uint8)


def png(image: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def write_class_folders(root: Path, parts: dict[str, str]) -> None:
    """Images of ``parts``, folder by part, in folders of their classes."""
    for folder, part in parts.items():
        for number in range(COUNTS[part]):
            path = root / folder / CLASSES[number % 3] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(pixels(part, number)))


def write_shard(path: Path, part: str, broken: tuple[int, ...] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for number in range(COUNTS[part]):
            image = b"no image" if number in broken else png(pixels(part, number))
            for ending, content in (("png", image), ("cls", str(number % 3).encode())):
                member = tarfile.TarInfo(f"{number:05d}.{ending}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def write_shards(root: Path, parts: tuple[str, ...] = ("train", "validation"), **info: Any) -> None:
    """A shard for each part, and what timm's reader is told of them."""
    splits = {}
    for part in parts:
        write_shard(root / f"some-{part}-0000.tar", part)
        splits[part] = {
            "name": part,
            "num_samples": COUNTS[part],
            "filenames": [f"some-{part}-0000.tar"],
            "shard_lengths": [COUNTS[part]],
        }
    (root / "_info.json").write_text(json.dumps({"splits": splits, **info}))


def digits_as_mnist(root: Path) -> None:
    """torchvision's four unpacked idx files: ten classes, 28 px."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, part, count in (("train", "train", 60), ("t10k", "test", 20)):
        images = np.stack([pixels(part, number, 1, 28)[0] for number in range(count)])
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            shape = b"".join(side.to_bytes(4, "big") for side in array.shape)
            content = bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()
            (folder / f"{name}-{kind}-ubyte").write_bytes(content)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's pickles, few images a file, with checksums that fit."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def put(name: str, content: object) -> str:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    def batch(part: str, first: int) -> dict[str, Any]:
        images = [pixels(part, number, 3, 32).ravel() for number in range(first, first + 20)]
        return {"data": np.stack(images), "labels": [n % 10 for n in range(20)]}

    names = [f"data_batch_{number}" for number in range(1, 6)]
    train = [[name, put(name, batch("train", 20 * n))] for n, name in enumerate(names)]
    test = [["test_batch", put("test_batch", batch("test", 0))]]
    meta = put("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})


Maker = Callable[[Path, pytest.MonkeyPatch], DataConfig]


def folder_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    write_class_folders(root, {"train": "train", "val": "validation"})
    return DataConfig(name="folder", root=str(root))


def image_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    write_class_folders(root, {"train": "train", "validation": "validation", "test": "test"})
    return DataConfig(name="torch/image_folder", root=str(root))


def image_folder_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    write_class_folders(root, {".": "train"})
    return DataConfig(name="torch/image_folder", root=str(root))


def mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    digits_as_mnist(root)
    return DataConfig(name="torch/mnist", root=str(root))


def cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    write_cifar(root, monkeypatch)
    return DataConfig(name="torch/cifar10", root=str(root))


def inaturalist(root: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    for version, part in (("2021_train", "train"), ("2021_valid", "validation")):
        for label, name in enumerate(CLASSES):
            folder = root / version / f"{label:05d}_Animalia_B_C_D_E_F_{name}"
            folder.mkdir(parents=True)
            for number in range(label, COUNTS[part], 3):
                (folder / f"{number}.png").write_bytes(png(pixels(part, number)))
    return DataConfig(name="torch/inaturalist", root=str(root))


def hugging_face(root: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    needs("datasets")
    write_class_folders(
        root / "set", {"train": "train", "validation": "validation", "test": "test"}
    )
    return DataConfig(name=f"hfds/{root / 'set'}", root=str(root / "cache"))


def parquet(root: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Columns of other names, the images within the table."""
    datasets = needs("datasets")
    features = datasets.Features(
        {"img": datasets.Image(), "coarse": datasets.ClassLabel(names=list(CLASSES))}
    )
    for part in ("train", "test"):
        rows = {
            "img": [{"bytes": png(pixels(part, n, 1)), "path": None} for n in range(COUNTS[part])],
            "coarse": [n % 3 for n in range(COUNTS[part])],
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        (root / "set").mkdir(exist_ok=True)
        table.to_parquet(str(root / "set" / f"{part}.parquet"))
    return DataConfig(name=f"hfds/{root / 'set'}", root=str(root / "cache"))


def stream(root: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A stream knows its classes where the set was prepared before."""
    config = hugging_face(root, monkeypatch)
    describe(config)
    return config.model_copy(update={"name": config.name.replace("hfds", "hfids", 1)})


def shards(root: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    needs("webdataset")
    write_shards(root)
    return DataConfig(name="wds/some", root=str(root))


MAKERS: tuple[Maker, ...] = (
    folder_set,
    image_folder,
    image_folder_alone,
    mnist,
    cifar,
    inaturalist,
    hugging_face,
    parquet,
    stream,
    shards,
)
STREAMS = (stream, shards)


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def maker(request: pytest.FixtureRequest) -> Maker:
    return request.param


@pytest.fixture
def config(maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    return maker(tmp_path, monkeypatch)


def test_a_set_in_memory_is_as_described(config):
    info = describe(config)
    assert info.num_classes in (3, 10) and all(isinstance(name, str) for name in info.class_names)
    for size in (None, 8):
        splits = load(config.model_copy(update={"image_size": size}))
        assert list(splits) == ["train", "val", "test"]
        for split in splits.values():
            side = size or info.image_size
            assert isinstance(split, Arrays)
            assert split.images.shape == (len(split.labels), info.in_channels, side, side)
            assert split.images.dtype == np.uint8 and split.labels.dtype == np.int64
            assert set(split.labels) == set(range(info.num_classes))


def test_a_set_is_always_the_same_and_its_splits_share_no_image(config):
    once, again = load(config), load(config)
    prints = {name: split.fingerprint() for name, split in once.items()}
    assert prints == {name: split.fingerprint() for name, split in again.items()}
    assert len(set(prints.values())) == 3
    images = [image.tobytes() for split in once.values() for image in split.images]
    assert len(set(images)) == len(images)


def test_every_class_is_in_proportion_in_a_val_that_was_cut(config):
    splits = load(config)
    counts = {name: np.bincount(split.labels) for name, split in splits.items()}
    assert all(count.max() - count.min() <= 1 for count in counts.values())
    fewer = load(config.model_copy(update={"train_images": 12}))
    assert len(fewer["train"].labels) == 12
    for name in ("val", "test"):
        assert fewer[name].fingerprint() == splits[name].fingerprint()


def test_a_set_on_disk_gives_the_same_images_one_by_one(maker, config):
    config = config.model_copy(update={"in_memory": False})
    if maker in STREAMS:
        with pytest.raises(InputError, match=r"data.in_memory: false, but .* is a stream"):
            load(config)
        return
    held = load(config.model_copy(update={"in_memory": None}))
    for name, split in load(config).items():
        assert isinstance(split, StoredImages) and (split.labels == held[name].labels).all()
        copy = pickle.loads(pickle.dumps(split))
        for index in (0, len(split) - 1):
            picture = np.asarray(copy.open(index))
            image = held[name].images[index]
            expected = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
            assert (picture == expected).all()
        assert len({split.name(index) for index in range(len(split))}) == len(split)
        assert copy.fingerprint() == split.fingerprint() != held[name].fingerprint()


@pytest.mark.parametrize("make", [image_folder, hugging_face], ids=lambda make: make.__name__)
def test_own_validation_and_test_splits_are_kept(make, tmp_path, monkeypatch):
    config = make(tmp_path, monkeypatch)
    assert {name: len(split.labels) for name, split in load(config).items()} == {
        "train": 30,
        "val": 9,
        "test": 6,
    }
    named = config.model_copy(update={"test_split": "validation"})
    assert {name: len(split.labels) for name, split in load(named).items()} == {
        "train": 24,
        "val": 6,
        "test": 9,
    }


@pytest.mark.parametrize(
    ("train", "test", "chosen"),
    [
        ("train[:90%]", None, {"val": "validation", "test": "test"}),
        ("train[:90%]", "train[90%:]", {"val": "validation", "test": "train[90%:]"}),
        ("validation[:50%]", None, {"test": "test"}),
        ("validation[:50%]", "validation[50%:]", {"test": "validation[50%:]"}),
        ("test[:50%]", None, {"test": "validation"}),
        (None, "validation[:50%]", {"test": "validation[:50%]"}),
    ],
)
def test_a_split_used_in_part_is_not_held_out_as_a_whole(train, test, chosen):
    config = DataConfig(name="hfds/some", train_split=train, test_split=test)
    found = ("train", "validation", "test")
    assert chosen_splits(found, config) == {"train": train or "train", **chosen}


def test_one_split_cannot_be_trained_and_tested_on():
    config = DataConfig(name="hfds/some", test_split="train")
    with pytest.raises(InputError, match=r"data.test_split: 'train' is the training split"):
        chosen_splits(("train", "test"), config)


@pytest.mark.parametrize("make", [mnist, folder_set, shards], ids=lambda make: make.__name__)
def test_a_single_held_out_split_is_test(make, tmp_path, monkeypatch):
    config = make(tmp_path, monkeypatch)
    sizes = {name: len(split.labels) for name, split in load(config).items()}
    assert sizes in ({"train": 48, "val": 12, "test": 20}, {"train": 24, "val": 6, "test": 9})


def test_test_is_cut_from_train_where_nothing_is_held_out(tmp_path, monkeypatch):
    splits = load(image_folder_alone(tmp_path, monkeypatch))
    sizes = {name: len(split.labels) for name, split in splits.items()}
    assert sizes == {"train": 19, "val": 5, "test": 6}


def test_cifar_is_read_from_torchvisions_files(tmp_path, monkeypatch):
    config = cifar(tmp_path, monkeypatch)
    assert describe(config).class_names[:2] == ("airplane", "automobile")
    test = load(config)["test"]
    assert test.labels.tolist() == [*range(10), *range(10)]
    assert (test.images[7] == pixels("test", 7, 3, 32)).all()
    monkeypatch.setenv("LEVIT_SEARCH_DATA", str(tmp_path))
    assert load(DataConfig(name="torch/cifar10"))["test"].fingerprint() == test.fingerprint()


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_without_a_network_it_is_told_where_files_belong(damage, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    config = cifar(tmp_path, monkeypatch)

    def unreachable(self: Any) -> None:
        raise OSError("no route to host\nat all")

    monkeypatch.setattr(CIFAR10, "download", unreachable)
    file = tmp_path / CIFAR10.base_folder / "data_batch_3"
    file.unlink() if damage == "missing" else file.write_bytes(b"x")
    with pytest.raises(InputError) as raised:
        load(config)
    assert str(raised.value) == (
        f"data: torch/cifar10 is not in {tmp_path} and cannot be downloaded (no route to host); "
        "put torchvision's files there, or name their folder by --set data.root=DIR"
    )


def test_a_small_set_is_downloaded_where_it_is_absent(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    root = tmp_path / "cache" / "levit-search"

    def download(self: Any) -> None:
        assert Path(self.root) == root
        digits_as_mnist(root)

    monkeypatch.setattr(MNIST, "download", download)
    assert len(load(DataConfig(name="torch/mnist"))["test"].labels) == 20


def test_an_empty_class_folder_is_named(tmp_path, monkeypatch):
    config = image_folder(tmp_path, monkeypatch)
    for file in (tmp_path / "train" / "newt").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="newt"):
        load(config)


def test_parts_of_a_set_have_the_same_classes(tmp_path, monkeypatch):
    config = image_folder(tmp_path, monkeypatch)
    (tmp_path / "test" / "newt").rename(tmp_path / "test" / "olm")
    with pytest.raises(InputError, match=r"the classes of .*/test \(3\) are not those of train"):
        load(config)


@pytest.mark.parametrize(
    ("make", "split"), [(hugging_face, "tset"), (shards, "tset"), (image_folder, "tset")]
)
def test_a_split_that_is_not_there_gets_the_nearest_name(make, split, tmp_path, monkeypatch):
    config = make(tmp_path, monkeypatch).model_copy(update={"test_split": split})
    with pytest.raises(InputError, match=r"data.test_split: .* has no split 'tset'; .*validation"):
        load(config)


def test_parts_of_a_split_can_be_named(tmp_path, monkeypatch):
    config = hugging_face(tmp_path, monkeypatch)
    parts = {"train_split": "train[:50%]", "test_split": "train[50%:]"}
    splits = load(config.model_copy(update=parts))
    assert {name: len(split.labels) for name, split in splits.items()} == {
        "train": 15,
        "val": 9,
        "test": 15,
    }


def test_labels_that_are_no_classes_are_refused(tmp_path):
    datasets = needs("datasets")
    for part, labels in (("train", [0, 1] * 8), ("test", [-1] * 4)):
        images = [{"bytes": png(pixels("train", n)), "path": None} for n in range(len(labels))]
        table = datasets.Dataset.from_dict(
            {"image": images, "label": labels},
            features=datasets.Features(
                {"image": datasets.Image(), "label": datasets.Value("int64")}
            ),
        )
        (tmp_path / "set").mkdir(exist_ok=True)
        table.to_parquet(str(tmp_path / "set" / f"{part}.parquet"))
    config = DataConfig(name=f"hfds/{tmp_path / 'set'}", root=str(tmp_path / "cache"))
    assert open_set(config).describe() == ("0", "1")
    with pytest.raises(InputError, match=r"test: label -1 is none of the 2 classes; .*test_split"):
        load(config)


def test_class_names_as_labels_are_numbered(tmp_path):
    datasets = needs("datasets")
    labels = [CLASSES[n % 3] for n in range(30)]
    images = [{"bytes": png(pixels("train", n)), "path": None} for n in range(30)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    (tmp_path / "set").mkdir()
    table.to_parquet(str(tmp_path / "set" / "train.parquet"))
    config = DataConfig(name=f"hfds/{tmp_path / 'set'}", root=str(tmp_path / "cache"))
    assert describe(config).class_names == CLASSES
    assert np.bincount(load(config)["train"].labels).tolist() == pytest.approx([6, 6, 6], abs=1)


def test_unreadable_rows_are_left_out_and_listed(tmp_path, monkeypatch):
    config = hugging_face(tmp_path, monkeypatch)
    describe(config)
    damaged = tmp_path / "set" / "train" / "newt" / "04.png"
    damaged.write_bytes(b"")
    with pytest.warns(match=rf"left out 1 image that cannot be read: .*{damaged}"):
        assert len(load(config)["train"].labels) == 29


def test_a_stream_that_does_not_know_its_classes_says_what_does(tmp_path, monkeypatch):
    config = hugging_face(tmp_path, monkeypatch)
    config = config.model_copy(update={"name": config.name.replace("hfds", "hfids", 1)})
    with pytest.raises(InputError, match=f"use hfds/{tmp_path}"):
        describe(config)


def test_shards_tell_their_classes_by_labels_or_by_name(tmp_path, monkeypatch):
    config = shards(tmp_path, monkeypatch)
    assert describe(config) == (3, ("0", "1", "2"), True, 12)
    write_shards(tmp_path, class_names=CLASSES)
    assert describe(config).class_names == CLASSES
    write_shards(tmp_path, class_names=CLASSES[:2])
    with pytest.raises(InputError, match="label 2 is none of the 2 classes"):
        load(config)


def test_shards_can_be_named_without_their_list(tmp_path, monkeypatch):
    config = shards(tmp_path, monkeypatch)
    whole = load(config)
    (tmp_path / "_info.json").unlink()
    names = {"train_split": "some-train-{0000..0000}.tar", "test_split": "some-validation-0000.tar"}
    splits = load(config.model_copy(update=names))
    assert [split.fingerprint() for split in splits.values()] == [
        split.fingerprint() for split in whole.values()
    ]
    with pytest.raises(InputError, match=r"wds/some cannot be read: .*split train not found"):
        load(config)


def test_unreadable_images_in_shards_are_counted(tmp_path, monkeypatch):
    config = shards(tmp_path, monkeypatch)
    write_shard(tmp_path / "some-train-0000.tar", "train", broken=(4, 20))
    told: list[str] = []
    splits = load(config, told.append)
    assert len(splits["train"].labels) + len(splits["val"].labels) == 28
    assert len(told) == 1 and "left out 2 images that cannot be read" in told[0]
    with pytest.raises(InputError, match="more than 1 images are unreadable: wds/some train, 1"):
        load(config.model_copy(update={"max_unreadable": 1}))


def test_a_shard_that_was_cut_off_is_noticed(tmp_path, monkeypatch):
    config = shards(tmp_path, monkeypatch)
    write_shards(tmp_path, class_names=CLASSES)
    shard = tmp_path / "some-train-0000.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(InputError, match="more than 10 images are unreadable"):
        load(config)


@pytest.mark.parametrize("make", STREAMS, ids=lambda make: make.__name__)
def test_a_stream_larger_than_memory_allows_is_refused(make, tmp_path, monkeypatch):
    config = make(tmp_path, monkeypatch).model_copy(
        update={"image_size": 200, "memory_limit_mb": 1}
    )
    with pytest.raises(InputError, match=r"data.memory_limit_mb: 1, but .* is a stream"):
        load(config)
    forced = config.model_copy(update={"in_memory": True})
    assert load(forced)["test"].images.shape[1:] == (3, 200, 200)


@pytest.mark.parametrize(
    ("name", "module", "command"),
    [
        ("hfds/x", "datasets", "pip install datasets"),
        ("hfids/x", "datasets", "pip install datasets"),
        ("wds/x", "webdataset", "pip install webdataset"),
        ("tfds/x", "tensorflow_datasets", "pip install tensorflow tensorflow-datasets"),
    ],
)
def test_a_missing_package_is_named_with_its_command(name, module, command, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == module else found(wanted)
    )
    with pytest.raises(InputError, match=f"data.name: {name} needs {module}, .*; {command}"):
        describe(DataConfig(name=name, root="."))


@pytest.mark.parametrize("name", ["torch/image_folder", "torch/imagenet", "wds/x"])
def test_sets_that_lie_somewhere_need_a_root(name):
    if name.startswith("wds"):
        needs("webdataset")
    with pytest.raises(InputError, match=f"data.root: is required for data.name {name}"):
        describe(DataConfig(name=name))


def test_what_a_reader_raises_is_explained_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"data: torch/imagenet cannot be read: \w+: .*") as raised:
        describe(DataConfig(name="torch/imagenet", root=str(tmp_path / "empty")))
    assert "\n" not in str(raised.value)


def test_fashion_mnist_is_split_alike_by_torchvision_and_by_us(tmp_path):
    digits_as_mnist(tmp_path)
    raw = (tmp_path / "MNIST" / "raw").rename(tmp_path / "MNIST" / "there")
    fashion = tmp_path / "FashionMNIST" / "raw"
    fashion.parent.mkdir()
    raw.rename(fashion)
    ours = tmp_path / "ours"
    ours.mkdir()
    for file in fashion.iterdir():
        (ours / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    by_torchvision = load(DataConfig(name="torch/fashion_mnist", root=str(tmp_path)))
    by_us = load(DataConfig(name="fashion-mnist", root=str(ours)))
    assert [split.fingerprint() for split in by_us.values()] == [
        split.fingerprint() for split in by_torchvision.values()
    ]
