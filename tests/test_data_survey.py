"""What a look at all pictures of a set finds, and what is read differently because of it."""

import gzip
import json
import os
import struct
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from levit_search.configuration import validated
from levit_search.data import (
    Arrays,
    DataConfig,
    DataSurvey,
    check,
    decoding,
    load,
    looked_at,
    survey_of,
)
from levit_search.data import facts as facts_module
from levit_search.data.sources import FileSource
from levit_search.errors import InputError
from tests.picture_files import exif, lying, png, saved, tiff, write

RNG = np.random.default_rng(11)
NAMES = ("frog", "newt")

File = bytes | Image.Image
Maker = Callable[[str, int], File]
"""The picture of a class with a number."""


def content_of(file: File) -> bytes:
    return file if isinstance(file, bytes) else saved(file, "PNG")


def folder(
    root: Path, make: Maker, train: int = 6, val: int = 2, names: Iterable[str] = NAMES
) -> Path:
    """A set of class folders."""
    for part, count in (("train", train), ("val", val)):
        for name in names:
            for number in range(count):
                path = root / part / name / f"{number:03}.png"
                write(path, content_of(make(name, number)))
    return root


def config_of(root: Path, **changes: object) -> DataConfig:
    return DataConfig.model_validate({"name": "folder", "root": str(root), **changes})


def look(root: Path, **changes: object) -> DataSurvey:
    """Without trying what mirroring does, which takes longer than all else."""
    return survey_of(config_of(root, **{"hflip": True, **changes}))


def mirroring_tried(root: Path) -> DataSurvey:
    return survey_of(config_of(root))


def told(found: DataSurvey) -> str:
    return "\n".join(found.lines())


def noise(mode: str = "RGB", size: tuple[int, int] = (12, 12)) -> Image.Image:
    pixels = RNG.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def noises(name: str, number: int) -> Image.Image:
    del name, number
    return noise()


def images(root: Path, **changes: object) -> NDArray[np.uint8]:
    """All of train and val as they are shown, [N, C, S, S]."""
    splits = load(config_of(root, in_memory=True, **changes))
    arrays = [splits[name] for name in ("train", "val")]
    assert all(isinstance(split, Arrays) for split in arrays)
    return np.concatenate([split.images for split in arrays if isinstance(split, Arrays)])


# Channels


@pytest.mark.parametrize("where", ["train/frog/000", "train/newt/005", "val/newt/001"])
def test_one_picture_in_colour_makes_three_channels_wherever_it_is(where, tmp_path):
    root = folder(tmp_path, lambda name, number: noise("L"))
    assert look(root).in_channels == 1
    noise().save(root / f"{where}.png")
    found = look(root)
    assert (found.in_channels, found.coloured, found.modes) == (3, 1, {"L": 15, "RGB": 1})


def test_one_picture_in_colour_among_200_makes_three_channels(tmp_path):
    root = folder(tmp_path, lambda name, number: noise("L", (4, 4)), train=90, val=10)
    noise(size=(4, 4)).save(root / "train" / "newt" / "050.png")
    assert look(root).in_channels == 3
    assert images(root).shape == (180, 3, 4, 4)


def test_grey_stored_as_rgb_is_said(tmp_path):
    found = look(folder(tmp_path, lambda name, number: noise("L").convert("RGB")))
    assert found.in_channels == 3 and not found.coloured
    assert "data.in_channels=1 would do" in told(found)


@pytest.mark.parametrize(
    ("kind", "channels"),
    [
        *((each, 1) for each in ("1", "L", "LA", "I;16", "F", "16-bit LA")),
        *((each, 3) for each in ("RGB", "RGBA", "P", "CMYK", "16-bit RGB")),
    ],
)
def test_channels_are_those_of_the_files(kind, channels, tmp_path):
    def make(name: str, number: int) -> File:
        if kind.startswith("16-bit"):
            return png(RNG.integers(0, 2**16, (6, 6, {"LA": 2, "RGB": 3}[kind[7:]])))
        if kind in ("I;16", "F"):
            values = RNG.integers(0, 256, (6, 6)).astype("u2" if kind == "I;16" else "f4")
            return saved(Image.fromarray(values), "TIFF")
        return saved(noise(kind), "TIFF")

    found = look(folder(tmp_path, make))
    assert (found.in_channels, list(found.modes)) == (channels, [kind])


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("value", [0, 255])
def test_a_channel_that_is_the_same_everywhere_is_said(channel, value, tmp_path):
    def make(name: str, number: int) -> File:
        pixels = np.array(noise())
        pixels[..., channel] = value
        return Image.fromarray(pixels)

    found = look(folder(tmp_path, make))
    assert found.constant_channels == (channel,)
    assert ["red", "green", "blue"][channel] in told(found)


def test_a_channel_is_not_called_the_same_where_other_modes_show_it(tmp_path):
    def make(name: str, number: int) -> File:
        if number % 2:
            return noise().convert("P")
        pixels = np.array(noise())
        pixels[..., 1:] = 0
        return Image.fromarray(pixels)

    assert look(folder(tmp_path, make)).constant_channels == ()


# What is transparent


def logo(colour: tuple[int, int, int], alpha: int = 255) -> Image.Image:
    picture = Image.new("RGBA", (12, 12), (*colour, 0))
    x, y = RNG.integers(0, 6, 2).tolist()
    ImageDraw.Draw(picture).rectangle((x, y, x + 5, y + 5), fill=(*colour, alpha))
    return picture


def at_16_bits(picture: Image.Image) -> bytes:
    return png(np.asarray(picture).astype(np.uint16) * 257)


WHITE, BLACK, GREY, RED = (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 30, 30)


@pytest.mark.parametrize(
    ("colours", "ground"),
    [
        ([BLACK], 255),
        ([WHITE], 0),
        ([BLACK, WHITE], 128),
        ([GREY], 255),
        ([WHITE, GREY], 0),
        ([BLACK, GREY], 255),
        ([RED], 255),
        ([(240, 240, 240)], 0),
    ],
)
@pytest.mark.parametrize("stored", ["RGBA", "LA", "16 bits", "palette"])
@pytest.mark.parametrize("alpha", [255, 90])
def test_the_ground_is_one_on_which_what_is_shown_is_seen(colours, ground, stored, alpha, tmp_path):
    def make(name: str, number: int) -> File:
        picture = logo(colours[number % len(colours)], alpha)
        if stored == "16 bits":
            return at_16_bits(picture)
        if stored == "palette":
            return picture.quantize(4)
        return picture.convert(stored)

    root = folder(tmp_path, make, train=4, val=2)
    found = look(root)
    assert (found.ground, found.transparent) == (ground, 12)
    assert f"laid on {({255: 'white', 0: 'black', 128: 'grey'})[ground]}" in told(found)
    for image in images(root):
        assert np.ptp(image, axis=(1, 2)).max() >= 30, "the logo is to be seen"


def test_opaque_pictures_have_no_say_in_the_ground(tmp_path):
    root = folder(tmp_path, lambda name, number: logo(WHITE) if number % 3 else noise("RGBA"))
    found = look(root)
    assert (found.ground, found.transparent) == (0, 10)


def test_pictures_that_are_opaque_throughout_are_not_called_transparent(tmp_path):
    found = look(folder(tmp_path, lambda name, number: noise("RGBA")))
    assert (found.transparent, found.ground) == (0, None) and "transparent" not in told(found)


def test_pictures_that_show_nothing_are_told_and_do_not_choose_the_ground(tmp_path):
    root = folder(
        tmp_path, lambda n, number: logo(WHITE) if number else Image.new("RGBA", (12, 12))
    )
    found = look(root)
    assert (found.ground, found.transparent, found.invisible) == (0, 16, 4)
    assert "4 of them show nothing" in told(found)


def test_thin_lines_count_as_they_are_seen(tmp_path):
    def make(name: str, number: int) -> File:
        picture = Image.new("RGBA", (600, 600), (255, 255, 255, 0))
        ImageDraw.Draw(picture).line((20, 30 * number, 580, 300), fill=(0, 0, 0, 255), width=3)
        return picture

    assert look(folder(tmp_path, make, train=2, val=1)).ground == 255


# Numbers of more than 8 bits


def ramps(low: float, high: float, kind: str, size: int = 12) -> Maker:
    """Values that rise in one class and fall in the other."""

    def make(name: str, number: int) -> File:
        values = np.linspace(low, high, size * size).reshape(size, size, 1)
        values = values if name == "frog" else values[::-1]
        return tiff(values.round().astype(kind) if kind != "f4" else values.astype(kind))

    return make


@pytest.mark.parametrize(
    ("low", "high", "kind", "expected"),
    [
        (0, 255, "u2", (0, 255)),
        (0, 1000, "u2", (0, 1023)),
        (0, 4095, "u2", (0, 4095)),
        (0, 16383, "u2", (0, 16383)),
        (0, 65535, "u2", (0, 65535)),
        (30000, 32000, "u2", (30000, 32000)),
        (-1000, 3000, "i2", (-1000, 3000)),
        (-50, 50, "i4", (-50, 50)),
        (0, 10**6, "i4", (0, 2**20 - 1)),
        (0, 2**32 - 1, "u4", (0, 2**32 - 1)),
        (0, 1, "f4", (0, 1)),
        (0, 0.001, "f4", (0, 0.001)),
        (-1, 1, "f4", (-1, 1)),
        (0, 255, "f4", (0, 255)),
        (0, 65535, "f4", (0, 65535)),
        (36.5, 41, "f4", (36.5, 41)),
        (-1e30, 1e30, "f4", (-1e30, 1e30)),
    ],
)
def test_numbers_are_scaled_from_the_range_of_all(low, high, kind, expected, tmp_path):
    root = folder(tmp_path, ramps(low, high, kind))
    found = look(root)
    values = found.float_range if kind == "f4" else found.integer_range
    assert values == pytest.approx(expected, abs=(high - low) / 50)
    assert "becomes black" in told(found)
    for image in images(root):
        assert image.min() < 8 and image.max() > 240
        assert len(np.unique(image)) >= min(100, high - low if kind[0] != "f" else 100)


def test_numbers_of_one_value_each_keep_their_differences(tmp_path):
    def make(name: str, number: int) -> File:
        return tiff(np.full((6, 6, 1), 0.2 if name == "frog" else 0.7, np.float32))

    shown = images(folder(tmp_path, make))
    assert len(np.unique(shown)) == 2 and np.ptp(shown) > 100


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_numbers_that_are_all_the_same_are_read(value, tmp_path):
    found = look(folder(tmp_path, lambda n, i: tiff(np.full((6, 6, 1), value, np.uint16))))
    assert found.unreadable_count == 0 and found.integer_range is not None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_does_not_tell_the_range(bad, tmp_path):
    def make(name: str, number: int) -> File:
        values = np.linspace(400, 500, 144).reshape(12, 12, 1).astype(np.float32)
        values[0, :6] = bad
        return tiff(values if number else np.full_like(values, bad))

    found = look(folder(tmp_path, make))
    assert found.float_range is not None
    assert found.float_range[0] > 395 and found.float_range[1] <= 511


@pytest.mark.parametrize("size", [20, 64])
def test_hot_pixels_do_not_tell_the_range(size, tmp_path):
    def make(name: str, number: int) -> File:
        values = RNG.integers(0, 1024, (size, size, 1)).astype(np.uint16)
        values[tuple(RNG.integers(0, size, 2))] = 65535
        return tiff(values)

    assert look(folder(tmp_path, make)).integer_range == (0, 1023)


def test_a_few_pictures_of_many_do_not_tell_the_range(tmp_path):
    def make(name: str, number: int) -> File:
        top = 65535 if (name, number) == ("frog", 3) else 1023
        return tiff(np.linspace(0, top, 36).reshape(6, 6, 1).astype(np.uint16))

    assert look(folder(tmp_path, make, train=60, val=2)).integer_range == (0, 1023)


def test_8_and_16_bits_in_one_set_are_shown_alike(tmp_path):
    levels = np.linspace(0, 255, 144).reshape(12, 12, 1).round()

    def make(name: str, number: int) -> File:
        if number % 2:
            return png(levels, bits=8)
        return png((levels * 257).astype(np.uint16))

    shown = images(folder(tmp_path, make))
    assert (shown == levels[..., 0]).all()


@pytest.mark.parametrize("channels", [3, 4])
def test_12_bits_in_files_of_16_keep_their_levels_in_colour(channels, tmp_path):
    def make(name: str, number: int) -> File:
        values = np.linspace(0, 4095, 36 * channels).reshape(6, 6, channels).round()
        values[..., 3:] = 65535
        return tiff(values.astype(np.uint16), photometric=2, is_packed=number % 2 == 0)

    root = folder(tmp_path, make)
    found = look(root)
    assert found.integer_range == (0, 4095) and found.in_channels == 3
    assert images(root).min() < 8 and images(root).max() > 240


# Folders and links


def test_linked_folders_files_and_classes_are_read(tmp_path):
    root = folder(tmp_path / "set", noises)
    (root / "train" / "frog").rename(tmp_path / "elsewhere")
    (root / "train" / "frog").symlink_to("../../elsewhere")
    folder(tmp_path / "other", noises, names=["more"])
    (root / "train" / "newt" / "more").symlink_to(tmp_path / "other" / "train" / "more")
    (root / "train" / "newt" / "one.png").symlink_to(
        tmp_path / "other" / "val" / "more" / "000.png"
    )
    found = look(root)
    assert found.counts["train"] == (6, 13) and not found.left_out


def test_links_in_a_circle_end_and_bring_no_other_classes(tmp_path):
    root = folder(tmp_path, noises)
    (root / "train" / "frog" / "self").symlink_to(".")
    (root / "train" / "frog" / "up").symlink_to("..")
    (root / "train" / "newt" / "root").symlink_to(root)
    found = look(root)
    assert found.counts["train"] == (6, 6)
    assert found.left_out == {"link to a folder around it": 3}
    (root / "train" / "toad").symlink_to(".")
    with pytest.raises(InputError, match=r"train/toad: no images .* 1 link to a folder around it"):
        look(root)


def test_links_to_nowhere_are_told(tmp_path):
    root = folder(tmp_path, noises)
    (root / "train" / "frog" / "gone").symlink_to(tmp_path / "nowhere")
    (root / "train" / "toad").symlink_to(tmp_path / "nowhere")
    (root / "train" / "frog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = look(root)
    assert found.left_out == {"broken link": 2}
    assert found.unreadable_count == 1 and "no such file" in told(found)


def test_files_that_are_no_pictures_are_counted_by_their_ending(tmp_path):
    root = folder(tmp_path, noises)
    for name in ("a.heic", "b.HEIC", "notes.txt", "README"):
        (root / "train" / "frog" / name).write_bytes(b"?")
    (root / "train" / "beside.png").write_bytes(saved(noise(), "PNG"))
    (root / "train" / "frog" / ".hidden.png").write_bytes(b"?")
    found = look(root)
    assert found.left_out == {".heic": 2, ".txt": 1, "": 1, "in no class": 1}
    for part in ("2 .heic", "1 .txt", "1 without ending", "1 in no class"):
        assert part in told(found).splitlines()[-1]


def test_a_class_of_nothing_but_unknown_endings_names_them(tmp_path):
    root = folder(tmp_path, noises)
    for path in (root / "train" / "frog").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(InputError, match=r"train/frog: no images .*6 \.heic") as raised:
        look(root)
    assert "\n" not in str(raised.value)


def test_endings_do_not_tell_the_format(tmp_path):
    root = folder(tmp_path, noises)
    write(root / "train" / "frog" / "a.JPG", saved(noise(), "PNG"))
    write(root / "train" / "frog" / "b.jpeg", saved(noise(), "WEBP"))
    write(root / "train" / "newt" / "c.PNG", saved(noise(), "JPEG"))
    found = look(root)
    assert found.counts["train"] == (8, 7) and not found.unreadable_count


# What cannot be read


JPEG = saved(noise(size=(80, 80)), "JPEG")
PNG = saved(noise(size=(80, 80)), "PNG")
BROKEN = {
    "no bytes": b"",
    "text": b"no picture",
    "half a JPEG": JPEG[: len(JPEG) // 2],
    "most of a JPEG": JPEG[:-200],
    "half a PNG": PNG[: len(PNG) // 2],
    "zeros": bytes(5000),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_pictures_are_counted_told_and_left_out(content, in_memory, tmp_path):
    root = folder(tmp_path, noises)
    for path in ("train/frog/000.png", "val/newt/001.png"):
        (root / path).write_bytes(content)
    found = look(root)
    assert found.counts == {"train": (5, 6), "test": (2, 1)} and found.unreadable_count == 2
    assert str(root / "train/frog/000.png") in found.unreadable
    heard: list[str] = []
    splits = load(config_of(root, in_memory=in_memory), heard.append)
    assert sum(len(split.labels) for split in splits.values()) == 14
    assert len(heard) == 1 and "left out 2 images" in heard[0]
    with pytest.raises(InputError, match=r"data\.max_unreadable: more than 1 images"):
        load(config_of(root, in_memory=in_memory, max_unreadable=1))


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_class_of_which_nothing_is_left_to_train_on_is_refused_by_name(in_memory, tmp_path):
    root = folder(tmp_path, noises)
    config = config_of(root, in_memory=in_memory)
    trained, whole = load(config)["train"], sorted((root / "train" / "newt").iterdir())
    assert np.bincount(trained.labels).tolist() == [4, 5]
    kept = {path: path.read_bytes() for path in whole}
    outcomes = []
    for only in whole:
        for path in whole:
            path.write_bytes(kept[path] if path == only else b"no picture")
        try:
            splits = load(config, lambda text: None)
        except InputError as error:
            outcomes.append(str(error))
        else:
            assert np.bincount(splits["train"].labels).tolist() == [4, 1]
    assert len(outcomes) == 1, "the one that is in val alone"
    assert outcomes[0].startswith("data: class 'newt': none of its pictures that are trained on")


@pytest.mark.parametrize("error", [OverflowError("too large"), IndexError("?"), EOFError()])
def test_whatever_a_reader_of_pictures_raises_is_told_of_one_picture(error, tmp_path, monkeypatch):
    def opened(content: bytes) -> Image.Image:
        if content == b"damaged":
            raise error
        return decoding.opened(content)

    root = folder(tmp_path, noises)
    (root / "train/frog/000.png").write_bytes(b"damaged")
    for module in ("facts", "sources"):
        monkeypatch.setattr(f"levit_search.data.{module}.opened", opened)
    found = look(root)
    assert list(found.unreadable) == [str(root / "train/frog/000.png")]
    monkeypatch.setattr("levit_search.data.facts.opened", lambda _: exec("raise MemoryError"))
    (root / "train/frog/001.png").write_bytes(b"another")
    with pytest.raises(MemoryError):
        look(root)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_of_which_nothing_can_be_read_is_refused_by_name(part, tmp_path):
    root = folder(tmp_path, noises)
    for path in (root / part / "newt").iterdir():
        path.write_bytes(b"no picture")
    for ask in (look, lambda root: load(config_of(root))):
        with pytest.raises(InputError, match="class 'newt': none of its") as raised:
            ask(root)
        assert "\n" not in str(raised.value) and str(root / part) in str(raised.value)


def test_what_is_no_file_is_unreadable(tmp_path):
    root = folder(tmp_path, noises)
    os.mkfifo(root / "train" / "frog" / "pipe.png")
    (root / "train" / "frog" / "folder.png").mkdir()
    assert "not a regular file" in told(look(root))


def test_turned_and_animated_pictures_are_counted(tmp_path):
    def make(name: str, number: int) -> File:
        if number == 0:
            return saved(lying(noise(size=(12, 20)), 6), "JPEG", exif=exif(6))
        if number == 1:
            return saved(noise(), "GIF", save_all=True, append_images=[noise(), noise()])
        return noise()

    found = look(folder(tmp_path, make))
    assert (found.turned, found.animated) == (4, 4)
    assert "turned upright by their EXIF data: 4" in told(found)
    assert found.sizes == ((12, 12), (12, 12), (12, 20))


@pytest.mark.parametrize(("side", "size"), [(1, 4), (3, 4), (4100, 4096)])
def test_the_size_is_one_that_networks_can_have(side, size, tmp_path):
    root = folder(tmp_path, lambda n, i: Image.new("1", (side, side), i % 2), train=1, val=1)
    found = looked_at(config_of(root))
    assert found.image_size == size
    assert DataConfig.model_validate(found.model_dump()) == found


# Duplicates


def photo(seed: int, size: int = 96) -> Image.Image:
    """Large and small patches of colour, as photographs have them."""
    rng = np.random.default_rng(seed)
    layers = np.zeros((size, size, 3))
    for cells, weight in ((3, 1.0), (6, 0.6), (12, 0.4), (size, 0.1)):
        pixels = rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        layer = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
        layers += weight * np.asarray(layer)
    return Image.fromarray((layers / 2.1).clip(0, 255).astype(np.uint8))


def photos(name: str, number: int) -> Image.Image:
    return photo(1000 * NAMES.index(name) + number)


def test_equal_pictures_are_counted_within_and_between_and_in_two_classes(tmp_path):
    root = folder(tmp_path, photos, val=0)
    folder(tmp_path, lambda name, number: photo(5000 + 10 * number + NAMES.index(name)), train=0)
    assert sum(look(root).duplicates.model_dump().values()) == 0
    same = (root / "train/frog/000.png").read_bytes()
    for path in ("train/frog/x.png", "train/newt/y.png", "val/frog/z.png", "val/frog/zz.png"):
        write(root / path, same)
    found = look(root).duplicates
    assert (found.within_train, found.within_test, found.between) == (2, 1, 2)
    assert found.in_two_classes == 1
    assert (found.near_within_train, found.near_between) == (0, 0)
    assert "1 stand in two classes" in told(look(root))


ALTERED = {
    "as JPEG": lambda picture: saved(picture, "JPEG", quality=80),
    "as WebP": lambda picture: saved(picture, "WEBP", quality=80),
    "smaller": lambda picture: saved(picture.resize((70, 70)), "PNG"),
    "larger": lambda picture: saved(picture.resize((200, 200)), "JPEG"),
    "turned": lambda picture: saved(lying(picture, 6), "PNG", exif=exif(6)),
}


@pytest.mark.parametrize("alter", ALTERED.values(), ids=ALTERED)
def test_pictures_stored_again_in_another_way_are_called_near(alter, tmp_path):
    root = folder(tmp_path, photos, train=12, val=1)
    for number in range(10):
        write(root / "val" / "frog" / f"x{number}.png", alter(photo(number)))
    found = look(root).duplicates
    assert (found.within_train, found.near_within_train) == (0, 0)
    assert found.near_between >= 9


def drawing(kind: str) -> Image.Image:
    picture = Image.new("RGB", (48, 48), "white")
    x, y = RNG.integers(4, 24, 2).tolist()
    size, colour = int(RNG.integers(10, 20)), tuple(RNG.integers(0, 200, 3).tolist())
    getattr(ImageDraw.Draw(picture), kind)((x, y, x + size, y + size), fill=colour)
    return picture


def test_flat_drawings_are_not_called_near_by_the_dozen(tmp_path):
    kinds = {"frog": "ellipse", "newt": "rectangle"}
    root = folder(tmp_path, lambda name, number: drawing(kinds[name]), train=150, val=50)
    found = look(root).duplicates
    assert found.near_within_train <= 15 and found.near_between <= 5


# Mirroring


def arrow(to_the_right: bool, ground: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("RGB", (48, 48), ground)
    y, width = int(RNG.integers(14, 34)), int(RNG.integers(2, 5))
    draw = ImageDraw.Draw(picture)
    tip, back = (40, 30) if to_the_right else (8, 18)
    draw.line((8, y, 40, y), fill="black", width=width)
    draw.polygon([(tip, y), (back, y - 8), (back, y + 8)], fill="black")
    return picture


def tinted() -> tuple[int, int, int]:
    red, green, blue = RNG.integers(120, 256, 3).tolist()
    return red, green, blue


def test_mirroring_is_off_where_it_turns_one_class_into_the_other(tmp_path):
    root = folder(tmp_path, lambda name, number: arrow(name == "frog", tinted()), train=40, val=4)
    found = mirroring_tried(root)
    assert not found.hflip and found.mirroring is not None
    assert found.mirroring.confused in (("frog", "newt"), ("newt", "frog"))
    assert "mirroring: off" in told(found) and "taken for" in told(found)
    assert not looked_at(config_of(root)).hflip


def test_mirroring_is_off_where_two_of_three_classes_mirror_each_other(tmp_path):
    def make(name: str, number: int) -> File:
        return drawing("ellipse") if name == "disc" else arrow(name == "left", tinted())

    found = mirroring_tried(
        folder(tmp_path, make, train=40, val=4, names=("disc", "left", "right"))
    )
    assert not found.hflip and found.mirroring is not None
    assert set(found.mirroring.confused or ()) == {"left", "right"}


def test_a_class_of_few_pictures_does_not_keep_mirroring_from_being_tried(tmp_path):
    root = folder(tmp_path, lambda name, number: arrow(name == "frog", tinted()), train=40, val=4)
    for number in range(3):
        for part in ("train", "val"):
            write(root / part / "rare" / f"{number}.png", saved(noise(), "PNG"))
    assert not mirroring_tried(root).hflip


def letter(is_b: bool) -> Image.Image:
    """A stroke with a ring at its foot, to the right or to the left."""
    picture = Image.new("L", (32, 32), 255)
    draw = ImageDraw.Draw(picture)
    x, y, width = *RNG.integers(12, 20, 2).tolist(), int(RNG.integers(2, 4))
    draw.line((x, y - 10, x, y + 8), fill=0, width=width)
    ring = (x, y - 2, x + 10, y + 8) if is_b else (x - 10, y - 2, x, y + 8)
    draw.ellipse(ring, outline=0, width=width)
    return picture


def test_mirroring_is_off_for_letters_that_mirror_each_other(tmp_path):
    root = folder(tmp_path, lambda name, number: letter(name == "frog"), train=60, val=4)
    assert not mirroring_tried(root).hflip


def test_mirroring_is_off_for_digits(tmp_path):
    digits = load_digits()
    by_class = {str(n): digits.images[digits.target == n] * 15.9 for n in range(10)}

    def make(name: str, number: int) -> File:
        return Image.fromarray(by_class[name][number].astype(np.uint8))

    assert not mirroring_tried(folder(tmp_path, make, train=40, val=2, names=by_class)).hflip


def test_mirroring_is_on_for_pictures_that_know_no_side(tmp_path):
    def make(name: str, number: int) -> File:
        colour = (200, 60, 60) if name == "frog" else (60, 160, 80)
        pixels = np.asarray(photo(int(RNG.integers(10**6)), 32)) // 2 + np.array(colour) // 2
        return Image.fromarray(pixels.astype(np.uint8))

    found = mirroring_tried(folder(tmp_path, make, train=60, val=4))
    assert found.hflip and found.mirroring is not None
    assert found.mirroring.verdict == "keeps classes" and "mirroring: on" in told(found)


def test_mirroring_is_on_and_said_to_be_unknown_where_classes_cannot_be_told(tmp_path):
    found = mirroring_tried(folder(tmp_path, noises, train=40))
    assert found.hflip and found.mirroring is not None
    assert found.mirroring.verdict == "cannot be told"


def test_mirroring_is_on_and_said_to_be_untried_with_few_pictures(tmp_path):
    found = mirroring_tried(folder(tmp_path, noises, train=4))
    assert found.hflip and "too few pictures" in told(found)


# What is given by hand


def test_what_is_given_takes_the_place_of_what_is_found(tmp_path):
    root = folder(tmp_path, lambda name, number: logo(RED))
    given = {"ground": "black", "in_channels": 1, "hflip": False, "image_size": 8}
    found = look(root, **given)
    assert (found.ground, found.in_channels, found.hflip, found.image_size) == (0, 1, False, 8)
    kept = looked_at(config_of(root, **given))
    assert (kept.ground, kept.in_channels, kept.hflip, kept.image_size) == (0, 1, False, 8)
    assert images(root, **given).shape[1:] == (1, 8, 8) and images(root, **given).min() == 0
    sixteen = folder(tmp_path / "16", ramps(0, 60000, "u2"))
    assert look(sixteen, integer_range=[0, 70000]).integer_range == (0, 70000)
    assert images(sixteen, integer_range=[0, 255]).mean() > 250


@pytest.mark.parametrize(
    ("key", "value"),
    [("ground", "blue"), ("ground", 256), ("ground", -1), ("ground", 1.5), ("ground", "12")]
    + [("integer_range", each) for each in ([5], 7, "abc", [3, 3], [9, 1], [0, float("inf")])]
    + [("float_range", each) for each in ([1, 0], [float("nan"), 1], ["a", "b"], [0, 1, 2])]
    + [("in_channels", each) for each in (2, "grey", 0)]
    + [("hflip", each) for each in ("maybe", 3)],
)
def test_a_wrong_value_is_told_in_a_line(key, value):
    with pytest.raises(InputError) as raised:
        validated(DataConfig, {"name": "folder", "root": "x", key: value}, "data")
    message = str(raised.value)
    assert key in message and len(message.splitlines()) == 1 and len(message) < 300


# What identifies a set


def test_the_fingerprint_is_of_contents_names_and_classes(tmp_path):
    def fingerprint(root: Path) -> str:
        return look(root).fingerprint

    root = folder(tmp_path / "set", photos)
    before = fingerprint(root)
    moved = root.rename(tmp_path / "elsewhere")
    assert fingerprint(moved) == before
    first = moved / "train/frog/000.png"
    seen = {before}

    def is_another() -> bool:
        found = fingerprint(moved)
        is_new = found not in seen
        seen.add(found)
        return is_new

    first.rename(first.with_name("renamed.png"))
    assert is_another()
    first.with_name("renamed.png").rename(first)
    assert fingerprint(moved) == before
    content = first.read_bytes()
    first.unlink()
    assert is_another()
    first.write_bytes(content)
    first.with_name("more.png").write_bytes(content)
    assert is_another()
    first.with_name("more.png").unlink()
    for part in ("train", "val"):
        (moved / part / "newt").rename(moved / part / "toad")
    assert is_another()


def test_one_pixel_changed_with_the_same_size_and_time_is_noticed(tmp_path):
    root = folder(tmp_path / "set", lambda name, number: saved(noise(), "BMP"))
    before = look(root)
    path = root / "train/frog/003.png"
    times, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert look(root).fingerprint != before.fingerprint


def test_changed_pictures_are_refused_with_both_fingerprints(tmp_path):
    root = folder(tmp_path, noises)
    config = looked_at(config_of(root))
    check(survey_of(config), config)
    load(config)
    noise().save(root / "train/frog/000.png")
    for ask in (lambda: check(survey_of(config), config), lambda: load(config)):
        with pytest.raises(InputError, match=f"not those that .*{config.fingerprint}"):
            ask()


# What is kept from one time to the next


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are read."""
    names: list[str] = []
    content = FileSource.content

    def counted(self: FileSource, index: int) -> bytes:
        names.append(self.name(index))
        return content(self, index)

    monkeypatch.setattr(FileSource, "content", counted)
    return names


def test_a_second_survey_reads_no_picture_and_finds_the_same(tmp_path, opens):
    root = folder(tmp_path / "set", photos, train=20)
    (root / "val/newt/000.png").write_bytes(b"?")
    first = look(root)
    assert len(set(opens)) == 44
    opens.clear()
    assert look(root) == first and not opens
    noise().save(root / "train/frog/007.png")
    (root / "train/newt/new.png").write_bytes(saved(noise(), "PNG"))
    (root / "train/newt/000.png").unlink()
    assert look(root) != first
    assert set(opens[:2]) == {"train/frog/007.png", "train/newt/new.png"}


def cache_files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*.json.gz") if path.is_file()]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b"no json", mtime=0),
        gzip.compress(b"[]", mtime=0),
        gzip.compress(b'{"version": 0}', mtime=0),
        gzip.compress(b"\xff\xfe", mtime=0),
        "truncated",
        "flipped",
    ],
)
def test_a_damaged_cache_is_found_out_again(content, tmp_path):
    root = folder(tmp_path / "set", noises)
    first = look(root)
    (kept,) = cache_files(tmp_path)
    whole = kept.read_bytes()
    if content == "truncated":
        content = whole[: len(whole) // 2]
    elif content == "flipped":
        content = whole[:40] + bytes([whole[40] ^ 255]) + whole[41:]
    kept.write_bytes(content)
    assert look(root) == first and len(kept.read_bytes()) > 100


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path, monkeypatch, opens):
    root = folder(tmp_path / "set", noises)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first = look(root)
    opens.clear()
    assert look(root) == first and opens
    assert len(load(config_of(root))["test"].labels) == 4


def test_a_cache_within_the_data_is_not_written(tmp_path, monkeypatch):
    root = folder(tmp_path / "set", noises)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "train" / "frog"))
    first = look(root)
    assert look(root) == first and first.counts["train"] == (6, 6) and not first.left_out


def test_names_that_are_no_text_are_kept_and_told(tmp_path):
    root = folder(tmp_path / "set", noises)
    try:
        (root / "train/frog/000.png").rename(root / "train/frog/caf\udce9.png")
    except OSError:
        pytest.skip("this file system takes no such names")
    (root / "train/frog/caf\udce9.png").write_bytes(b"?")
    first = look(root)
    assert look(root) == first and first.unreadable_count == 1
    json.dumps(first.model_dump(mode="json")).encode()
    assert [name.endswith(r"caf\xe9.png") for name in first.unreadable] == [True]
    (root / "train/frog/001.png").rename(root / "train/frog/two\nlines.mpo")
    (root / "train/frog/two\nlines.mpo").write_bytes(b"?")
    assert all("lines.mpo" in line for line in look(root).lines() if "two" in line)
    assert look(root).unreadable_count == 2


def test_of_very_many_pictures_each_class_is_looked_at(tmp_path, monkeypatch, opens):
    monkeypatch.setattr(facts_module, "LOOKED_AT", 20)
    root = folder(tmp_path / "set", noises, train=40, val=10, names=("a", "b", "c", "d", "e"))
    found = look(root)
    assert found.looked_at <= 20 and found.counts == {"train": (40,) * 5, "test": (10,) * 5}
    parts = {tuple(name.split("/")[:2]) for name in opens}
    assert {part for part in parts if part[0] == "train"} == {("train", name) for name in "abcde"}
    assert f"{found.looked_at} of 250" in told(found)
    assert look(root) == found
    noise().save(root / "train/a/001.png")  # not one of them


def test_a_set_that_is_known_says_its_channels(tmp_path):
    with pytest.raises(InputError, match="in_channels: 3, but digits has 1"):
        survey_of(DataConfig(name="digits", in_channels=3))
    found = survey_of(DataConfig(name="digits"))
    assert (found.in_channels, found.hflip, found.looked_at) == (1, False, 0)
    assert sum(found.counts["train"]) == 1797 and found.fingerprint


def test_damaged_exif_data_are_no_trouble_and_no_word(tmp_path):
    def make(name: str, number: int) -> File:
        segment = b"Exif\0\0" + (b"II*\0\xff\xff\xff\x7f" if number else RNG.bytes(80))
        jpeg = saved(noise(), "JPEG")
        return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]

    root = folder(tmp_path, make)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = look(root)
        assert images(root).shape == (12, 3, 12, 12)
    assert not found.unreadable_count and not found.turned
