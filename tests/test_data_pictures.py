"""Pictures on disk and in memory: sizes, modes, unreadable ones and what identifies a split."""

import io
import pickle
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from levit_search.data import Arrays, DataConfig, StoredImages, describe, load
from levit_search.data.loading import resized
from levit_search.data.sources import center_cropped
from levit_search.errors import InputError

RNG = np.random.default_rng(3)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write_set(
    root: Path, size: tuple[int, int] = (12, 12), mode: str = "RGB", count: int = 10
) -> Path:
    """A folder set of noise: ``count`` images of each of two classes, and two of each in val/."""
    for part, images in (("train", count), ("val", 2)):
        for name in ("frog", "newt"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(images):
                noise(*size, mode).save(folder / f"{number}.png")
    return root


def labelled(split: Arrays) -> list[tuple[int, bytes]]:
    return [(int(y), x.tobytes()) for x, y in zip(split.images, split.labels, strict=True)]


def config_of(root: Path, **changes: object) -> DataConfig:
    return DataConfig.model_validate({"name": "folder", "root": str(root), **changes})


def pictures(root: Path, **changes: object) -> dict[str, StoredImages]:
    splits = load(config_of(root, in_memory=False, **changes))
    assert all(isinstance(split, StoredImages) for split in splits.values())
    return splits


@pytest.mark.parametrize(
    ("size", "side"),
    [((12, 12), 12), ((64, 64), 64), ((50, 37), 32), ((9, 12), 9), ((600, 400), 224)],
)
def test_the_own_size_of_pictures(size, side, tmp_path):
    config = config_of(write_set(tmp_path, size, count=3))
    assert describe(config).image_size == side


def test_pictures_of_many_sizes_have_the_median_of_their_shorter_sides(tmp_path):
    root = write_set(tmp_path, count=1)
    for number, size in enumerate([(100, 70), (90, 200), (100, 101), (300, 300)]):
        noise(*size).save(root / "train" / "newt" / f"x{number}.png")
    assert describe(config_of(root)).image_size == 64


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("P", 3), ("RGBA", 3)]
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_channels_follow_the_modes_of_the_pictures(mode, channels, in_memory, tmp_path):
    config = config_of(write_set(tmp_path, mode=mode), in_memory=in_memory)
    assert describe(config).in_channels == channels
    train = load(config)["train"]
    if isinstance(train, Arrays):
        assert train.images.shape == (16, channels, 12, 12)
    else:
        assert train.open(0).mode == ("L" if channels == 1 else "RGB")


def test_a_coloured_picture_among_grey_ones_makes_three_channels(tmp_path):
    root = write_set(tmp_path, mode="L")
    noise(12, 12).save(root / "train" / "newt" / "3.png")
    assert describe(config_of(root)).in_channels == 3


def test_sixteen_bits_of_grey_keep_their_upper_eight(tmp_path):
    root = write_set(tmp_path, mode="L")
    values = np.linspace(0, 65535, 144).reshape(12, 12).astype(np.uint16)
    for number in range(10):
        Image.fromarray(values).save(root / "train" / "frog" / f"{number}.png")
    splits = load(config_of(root))
    assert (splits["train"].images[0, 0] == values >> 8).all()


def test_memory_and_disk_hold_the_same_images_in_the_same_order(tmp_path):
    root = write_set(tmp_path, (30, 20))
    held = load(config_of(root, image_size=16, val_share=0.3))
    for name, split in pictures(root, image_size=16, val_share=0.3).items():
        assert isinstance(held[name], Arrays) and (split.labels == held[name].labels).all()
        for index, image in enumerate(held[name].images):
            picture = split.open(index)
            assert picture.size == (30, 20)
            assert (center_cropped(picture, 16) == image).all()


def test_a_picture_is_scaled_by_its_shorter_side_and_cut_in_the_middle():
    picture = noise(48, 32)
    scaled = picture.resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))
    expected = np.asarray(scaled).transpose(2, 0, 1).astype(int)
    assert np.abs(center_cropped(picture, 16).astype(int) - expected).max() <= 1
    assert (center_cropped(noise(16, 16, "L"), 16).shape) == (1, 16, 16)


@pytest.mark.parametrize("size", [(12, 16), (20, 4), (7, 31)], ids=str)
def test_of_a_rectangle_the_largest_middle_part_in_its_proportions_is_shown(size, tmp_path):
    """Against a picture that is scaled whole and cut then, where it comes out at whole pixels."""
    height, width = size
    for left, top in ((0, 3), (3, 0)):
        scaled_size = (width + 2 * left, height + 2 * top)
        whole = noise(*(2 * side for side in scaled_size))
        scaled = whole.resize(scaled_size, Image.Resampling.BICUBIC)
        expected = np.asarray(scaled.crop((left, top, left + width, top + height)))
        assert (center_cropped(whole, size) == expected.transpose(2, 0, 1)).all()
    root = write_set(tmp_path, (30, 20))
    held = load(config_of(root, image_size=list(size)))["train"]
    assert held.images.shape[1:] == (3, height, width)
    assert (held.images[0] == center_cropped(noise_of(held), size)).all()


def noise_of(split: Arrays) -> Image.Image:
    """The first picture of a split as it is stored."""
    assert split.originals is not None
    return split.originals.open(0)


def test_arrays_of_other_proportions_are_cut_first():
    images = RNG.integers(0, 256, (5, 3, 8, 8)).astype(np.uint8)
    rows = resized(images, (4, 8))
    assert (rows == images[:, :, 2:6]).all(), "nothing is scaled"
    squeezed = resized(images, (8, 4))
    assert (squeezed == images[:, :, :, 2:6]).all()
    assert resized(images, (6, 12)).shape == (5, 3, 6, 12)


def test_arrays_are_scaled_as_pillow_does():
    # Of shades between, since Pillow clips between rows and columns.
    images = RNG.integers(80, 176, (5, 1, 8, 8)).astype(np.uint8)
    for size in (4, 12, 32):
        ours = resized(images, size).astype(int)
        for image, mine in zip(images, ours, strict=True):
            theirs = Image.fromarray(image[0]).resize((size, size), Image.Resampling.BICUBIC)
            assert np.abs(np.asarray(theirs).astype(int) - mine[0]).max() <= 2
    assert resized(images, 8) is images


def test_a_set_goes_into_memory_if_it_fits(tmp_path):
    root = write_set(tmp_path)  # 24 images of 3 channels
    fitting = config_of(root, image_size=117, memory_limit_mb=1)  # 985608 bytes
    assert isinstance(load(fitting)["train"], Arrays)
    larger = config_of(root, image_size=118, memory_limit_mb=1)
    assert isinstance(load(larger)["train"], StoredImages)
    forced = load(config_of(root, image_size=118, memory_limit_mb=1, in_memory=True))
    assert forced["train"].images.shape == (16, 3, 118, 118)
    fewer = config_of(root, image_size=118, memory_limit_mb=1, train_images=10)
    assert isinstance(load(fewer)["train"], Arrays)


def test_digits_can_be_read_one_by_one():
    one_by_one, held = load(DataConfig(in_memory=False)), load(DataConfig())
    for name, split in one_by_one.items():
        assert (split.labels == held[name].labels).all()
        assert (np.asarray(split.open(5)) == held[name].images[5, 0]).all()
    assert one_by_one["train"].name(0).startswith("digits[")


def bomb() -> bytes:
    """A PNG that says it has 20000 x 20000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + checksum

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(60001))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def cut_off() -> bytes:
    file = io.BytesIO()
    noise(12, 12).save(file, "PNG")
    return file.getvalue()[:200]


def unknown_dds() -> bytes:
    """Pillow says of a format that it does not know that it is not implemented."""
    file = io.BytesIO()
    noise(12, 12).save(file, "DDS")
    content = bytearray(file.getvalue())
    content[80:84] = (138).to_bytes(4, "little")
    return bytes(content)


DAMAGES = {
    "text": b"no image",
    "empty": b"",
    "cut off": cut_off(),
    "bomb": bomb(),
    "DDS": unknown_dds(),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_unreadable_images_are_left_out_of_memory_and_told(content, tmp_path):
    root = write_set(tmp_path)
    whole = load(config_of(root))
    damaged = root / "train" / "newt" / "3.png"
    damaged.write_bytes(content)
    told: list[str] = []
    splits = load(config_of(root), told.append)
    assert len(told) == 1 and str(damaged) in told[0]
    assert told[0].startswith("folder: left out 1 image that cannot be read")
    assert sum(len(split.labels) for split in splits.values()) == 23
    for name, split in splits.items():
        kept = labelled(split)
        assert kept == [item for item in labelled(whole[name]) if item in set(kept)]
    with pytest.raises(InputError) as raised:
        load(config_of(root, max_unreadable=0))
    assert str(raised.value).startswith("data.max_unreadable: more than 0")
    assert str(damaged) in str(raised.value) and "\n" not in str(raised.value)


def test_unreadable_images_are_a_warning_where_nobody_listens(tmp_path):
    root = write_set(tmp_path)
    (root / "val" / "newt" / "1.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out 1 image that .*: .*val/newt/1\.png"):
        assert len(load(config_of(root))["test"].labels) == 3


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_the_next_of_its_class_stands_in_for_an_unreadable_picture(content, tmp_path):
    root = write_set(tmp_path)
    split = pictures(root)["train"]
    index = next(i for i in range(len(split)) if split.labels[i] == 1)
    alike = [i for i in range(len(split)) if split.labels[i] == 1]
    images = {i: split.open(i).tobytes() for i in alike}
    for damaged in (alike[0], alike[1], alike[-1]):
        (root / split.name(damaged)).write_bytes(content)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for which in (index, alike[-1], index):
            assert split.open(which).tobytes() == images[alike[2]]
    assert len(warned) == 3, "each of them once"
    for warning in warned:
        assert re.search(r"train/newt/.*: unreadable .*; another is taken", str(warning.message))
    assert split.open(alike[2]).tobytes() == images[alike[2]]


def test_more_unreadable_pictures_than_allowed_are_listed(tmp_path):
    root = write_set(tmp_path)
    split = pictures(root, max_unreadable=1)["train"]
    broken = [i for i in range(len(split)) if split.labels[i] == 0][:2]
    for index in broken:
        (root / split.name(index)).write_bytes(b"")
    with pytest.warns(match="unreadable"), pytest.raises(InputError) as raised:
        split.open(broken[0])
    assert str(raised.value).startswith("data.max_unreadable: more than 1 images")
    assert all(str(root / split.name(index)) in str(raised.value) for index in broken)


def test_a_class_without_any_readable_picture_is_an_error(tmp_path):
    root = write_set(tmp_path)
    split = pictures(root)["test"]
    (root / split.name(0)).unlink()
    (root / split.name(1)).write_bytes(b"")
    told = r"all images of a class are unreadable: .*no such file.*not an image"
    with pytest.warns(match="unreadable"), pytest.raises(InputError, match=told):
        split.open(0)


def test_unreadable_pictures_do_not_hinder_the_description(tmp_path):
    root = write_set(tmp_path, mode="L")
    (root / "train" / "frog" / "0.png").write_bytes(b"")
    assert describe(config_of(root)) == (1, ("frog", "newt"), True, 12)
    for file in (root / "train").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="train: no readable images in frog, newt"):
        describe(config_of(root))


def test_pictures_can_be_pickled(tmp_path):
    split = pictures(write_set(tmp_path))["val"]
    copy = pickle.loads(pickle.dumps(split))
    assert copy.open(1).tobytes() == split.open(1).tobytes()
    assert (copy.labels == split.labels).all() and copy.name(1) == split.name(1)
    assert copy.fingerprint() == split.fingerprint()


def test_pictures_of_the_same_names_and_sizes_have_another_fingerprint(tmp_path):
    ids = set()
    for place in ("one", "other"):
        root = write_set(tmp_path / place)
        for file in list(root.rglob("*.png")):
            Image.open(file).save(file.with_suffix(".bmp"))
            file.unlink()
        ids.add(pictures(root)["train"].fingerprint())
    assert len(ids) == 2


def test_names_that_are_no_utf8_have_a_fingerprint(tmp_path):
    root = write_set(tmp_path)
    file = root / "train" / "frog" / "0.png"
    try:
        file.rename(file.with_name("caf\udce9.png"))
    except OSError:
        pytest.skip("this file system takes no such names")
    assert len(pictures(root)["train"].fingerprint()) == 16


def test_the_fingerprint_of_pictures_is_of_names_sizes_and_labels(tmp_path):
    root = write_set(tmp_path / "here")
    before = pictures(root)["train"].fingerprint()
    moved = root.rename(tmp_path / "there")
    split = pictures(moved)["train"]
    assert split.fingerprint() == before, "wherever it lies"
    file = moved / split.name(4)
    content = file.read_bytes()
    file.write_bytes(content + b"x")
    assert split.fingerprint() != before
    file.write_bytes(content)
    assert split.fingerprint() == before
    file.rename(file.with_name("other.png"))
    assert pictures(moved)["train"].fingerprint() != before
    assert pictures(moved, train_images=10)["train"].fingerprint() != before


def test_the_fingerprint_of_arrays_is_of_their_content():
    images, labels = np.zeros((6, 1, 4, 4), np.uint8), np.arange(6)
    before = Arrays(images, labels).fingerprint()
    assert before == Arrays(images.copy(), labels.copy()).fingerprint() and len(before) == 16
    others = [
        Arrays(np.eye(4, dtype=np.uint8) + images, labels),
        Arrays(images, labels[::-1]),
        Arrays(images.reshape(6, 4, 2, 2), labels),
    ]
    assert len({before, *(other.fingerprint() for other in others)}) == 4


def test_importing_and_describing_loads_no_torch(tmp_path):
    import subprocess
    import sys

    write_set(tmp_path, count=1)
    code = (
        "import sys\nfrom levit_search.data import DataConfig, describe\n"
        "describe(DataConfig()), describe(DataConfig(name='torch/cifar100'))\n"
        f"describe(DataConfig(name='folder', root={str(tmp_path)!r}))\n"
        "assert not {'torch', 'timm', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_nothing_is_said_of_a_readable_set(tmp_path):
    root = write_set(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(config_of(root))
        pictures(root)["train"].open(0)
