"""How pictures become 8 bits, upright and without transparency, whatever they are stored as."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from levit_search.data.decoding import Decoding, decoded, opened, orientation
from levit_search.data.facts import PictureFacts, facts_of
from tests.picture_files import TURNS, exif, lying, png, saved, tiff

RGB, L = Decoding("RGB"), Decoding("L")
RNG = np.random.default_rng(7)
TWELVE_BITS = RGB._replace(integers=(0, 4095))


def read(content: bytes, how: Decoding = RGB) -> NDArray[np.uint8]:
    """[rows, columns, channels]"""
    pixels = np.asarray(decoded(opened(content), how))
    assert pixels.dtype == np.uint8
    return pixels if pixels.ndim == 3 else pixels[..., None]


def facts(content: bytes) -> PictureFacts:
    return facts_of(opened(content), "")


def slope(width: int = 4, height: int = 6) -> Image.Image:
    """Brighter from left to right, and from top to bottom still more."""
    values = np.add.outer(np.arange(height) * 30, np.arange(width) * 15)
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def in_12_bits(channels: int) -> NDArray[np.uint16]:
    return RNG.integers(0, 4096, (6, 4, channels)).astype(np.uint16)


def layers(values: NDArray[np.uint16], stored: int) -> NDArray[np.uint16]:
    """Values as they lie in a file with an orientation."""
    channels = [Image.fromarray(each.astype(np.int32)) for each in np.moveaxis(values, 2, 0)]
    return np.stack([np.asarray(lying(each, stored)) for each in channels], axis=-1).astype("u2")


STORED = [("JPEG", {"quality": 100}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]


@pytest.mark.parametrize("stored", range(1, 9))
@pytest.mark.parametrize(("format", "options"), STORED, ids=lambda value: str(value))
def test_pictures_are_turned_upright_and_their_sizes_too(format, options, stored):
    content = saved(lying(slope(), stored), format, exif=exif(stored), **options)
    assert (read(content) == np.asarray(slope())).all()
    found = facts(content)
    assert (found.width, found.height, found.is_turned) == (4, 6, stored > 1)


@pytest.mark.parametrize("stored", range(1, 9))
def test_pictures_of_more_than_8_bits_are_turned_upright(stored):
    values = in_12_bits(4)
    values[..., 3] = 65535
    lies = layers(values, stored)
    turned = {b"eXIf": exif(stored).tobytes()[6:]}
    for channels in (1, 2, 3, 4):
        chosen = [0, 3] if channels == 2 else list(range(channels))
        expected = values[..., chosen[: 3 if channels > 2 else 1]] >> 4
        files = [png(lies[..., chosen], chunks=turned)]
        if channels != 2:
            kind = {"photometric": 1 if channels == 1 else 2, "orientation": stored}
            kind["extra"] = 2 if channels == 4 else None
            files += [tiff(lies[..., chosen], is_packed=each, **kind) for each in (False, True)]
        for content in files:
            assert (read(content, TWELVE_BITS) == expected).all()
            found = facts(content)
            assert (found.width, found.height, found.is_turned) == (4, 6, stored > 1)
    floats = tiff((lies[..., :1] / 4095).astype("f4"), orientation=stored)
    assert (read(floats) == np.rint(values[..., :1] / 4095 * 255)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "YCbCr"])
@pytest.mark.parametrize("stored", [2, 5, 6, 8])
def test_every_mode_is_turned(mode, stored):
    upright = slope().convert(mode)
    format = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    content = saved(lying(upright, stored), format, exif=exif(stored))
    assert (read(content) == read(saved(upright, format))).all()


def test_an_orientation_in_xmp_is_followed():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:D tiff:Orientation="6"/></x:xmpmeta>'
    content = saved(lying(slope(), 6), "WEBP", lossless=True, xmp=xmp)
    assert (read(content) == np.asarray(slope())).all() and facts(content).is_turned


@pytest.mark.parametrize("number", [0, 9, 65535])
def test_an_orientation_that_is_none_leaves_a_picture_as_it_is(number):
    content = saved(slope(), "PNG", exif=exif(number))
    assert (read(content) == np.asarray(slope())).all() and not facts(content).is_turned


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("damage", [b"", b"II*\0\xff\xff\xff\x7f", b"\0" * 40, RNG.bytes(60)])
def test_damaged_exif_data_leave_a_picture_as_it_is(damage):
    jpeg = saved(slope(), "JPEG", quality=100)
    segment = b"Exif\0\0" + damage
    header = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    content = jpeg[:2] + header + jpeg[2:]
    assert (read(content) == read(jpeg)).all() and not facts(content).is_turned


@pytest.mark.filterwarnings("ignore:Tag data larger")
def test_an_orientation_beside_damaged_entries_is_followed():
    # Its first entry points beyond the end, the second is the orientation.
    entries = struct.pack("<HHLL", 0x010F, 2, 99, 9999) + struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0)
    segment = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + entries + bytes(4)
    jpeg = saved(lying(slope(), 6), "JPEG", quality=100)
    header = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    content = jpeg[:2] + header + jpeg[2:]
    assert facts(content).is_turned
    assert (read(content) == np.asarray(slope())).all()


# One pixel that is to be seen, and one that is not.
HALF = np.array([[[9, 8, 7, 255], [1, 2, 3, 0]]], np.uint8)


def keyed(picture: Image.Image, **options: Any) -> bytes:
    return saved(picture, "PNG", **options)


def in_palette(transparency: Any) -> bytes:
    picture = Image.fromarray(np.array([[1, 0]], np.uint8)).convert("P")
    picture.putpalette([1, 2, 3, 9, 8, 7])
    return saved(picture, "PNG", transparency=transparency)


COLOURED = {
    "RGBA": saved(Image.fromarray(HALF), "PNG"),
    "WebP": saved(Image.fromarray(HALF), "WEBP", lossless=True, exact=True),
    "TIFF": saved(Image.fromarray(HALF), "TIFF"),
    "TGA": saved(Image.fromarray(HALF), "TGA"),
    "palette with an index": in_palette(0),
    "palette with bytes": in_palette(b"\x00\xff"),
    "key of RGB": keyed(Image.fromarray(HALF[..., :3]), transparency=(1, 2, 3)),
    "16 bits": png(HALF.astype(np.uint16) * 257),
    "key of 16 bits": png(
        HALF[..., :3].astype(np.uint16) * 257,
        chunks={b"tRNS": struct.pack(">HHH", 257, 2 * 257, 3 * 257)},
    ),
}
GREY = {
    "LA": saved(Image.fromarray(HALF[..., [0, 3]]), "PNG"),
    "key of L": keyed(Image.fromarray(HALF[..., 0]), transparency=1),
    "16 bits": png(HALF[..., [0, 3]].astype(np.uint16) * 257),
    "key of 16 bits": png(
        HALF[..., :1].astype(np.uint16) * 257, chunks={b"tRNS": struct.pack(">H", 257)}
    ),
}


def is_seen_on_white(content: bytes) -> bool:
    hidden = facts(content).hidden
    return hidden is not None and hidden[0] == 0


@pytest.mark.parametrize("ground", [0, 100, 255])
@pytest.mark.parametrize("content", COLOURED.values(), ids=COLOURED)
def test_what_is_transparent_shows_the_ground(content, ground):
    expected = [[[9, 8, 7], [ground] * 3]]
    assert read(content, RGB._replace(ground=ground)).tolist() == expected
    assert is_seen_on_white(content)


@pytest.mark.parametrize("ground", [0, 100, 255])
@pytest.mark.parametrize("content", GREY.values(), ids=GREY)
def test_grey_that_is_transparent_shows_the_ground(content, ground):
    assert read(content, L._replace(ground=ground)).tolist() == [[[9], [ground]]]
    assert is_seen_on_white(content)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_transparent_grey_of_few_bits_shows_the_ground(bits):
    """Pillow leaves the key in the bits of the file, and gives the pixels eight."""
    values = np.arange(64).reshape(8, 8) % 2**bits
    key, white = 2**bits - 1, 255
    content = png(values[..., None], bits, {b"tRNS": struct.pack(">H", key)})
    pixels = read(content, RGB._replace(ground=77))[..., 0]
    assert (pixels == np.where(values == key, 77, values * (white // key))).all()


def test_one_bit_with_a_key_shows_the_ground():
    content = saved(Image.new("1", (2, 1), 1), "PNG", transparency=1)
    assert read(content, L._replace(ground=40)).tolist() == [[[40], [40]]]


def test_what_is_half_transparent_is_mixed_with_the_ground():
    pixels = np.array([[[200, 100, 0, 128]]], np.uint8)
    for ground in (0, 255):
        found = read(saved(Image.fromarray(pixels), "PNG"), RGB._replace(ground=ground))[0, 0]
        mixed = pixels[0, 0, :3] * (128 / 255) + ground * (127 / 255)
        assert np.abs(found - mixed).max() <= 1


def test_premultiplied_colours_of_16_bits_are_those_of_others():
    alpha = np.array([65535, 32768, 0], np.uint16)
    colour = np.array([[40000, 20000, 60000]] * 3)
    stored = np.concatenate((colour * (alpha / 65535)[:, None], alpha[:, None]), axis=1)[None]
    plain = np.concatenate((colour, alpha[:, None]), axis=1)[None]
    found = read(tiff(stored.astype(np.uint16), photometric=2, extra=1))
    expected = read(tiff(plain.astype(np.uint16), photometric=2, extra=2))
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(("channels", "extra"), [(1, None), (3, None), (4, 0), (4, 2)])
def test_12_bits_in_16_keep_their_levels_in_every_tiff(order, is_packed, channels, extra):
    values = in_12_bits(channels)
    values[..., 3:] = 65535
    photometric = 1 if channels == 1 else 2
    content = tiff(values, order, photometric, extra, is_packed)
    assert (read(content, TWELVE_BITS) == values[..., :3] >> 4).all()
    assert facts(content).high == pytest.approx(values[..., :3].max(), rel=0.2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_12_bits_in_16_keep_their_levels_in_every_png(channels):
    values = in_12_bits(channels)
    if channels in (2, 4):
        values[..., -1] = 65535
    colours = values[..., : 3 if channels > 2 else 1]
    content = png(values)
    assert (read(content, TWELVE_BITS) == colours >> 4).all()
    assert (
        facts(content).mode
        == {1: "I;16", 2: "16-bit LA", 3: "16-bit RGB", 4: "16-bit RGBA"}[channels]
    )


def test_planes_of_16_bits_are_refused_rather_than_read_wrong():
    for is_packed in (False, True):
        content = tiff(in_12_bits(3), photometric=2, is_packed=is_packed, in_planes=True)
        with pytest.raises(ValueError, match="one colour after the other"):
            opened(content)
    values = RNG.integers(0, 256, (6, 4, 3)).astype(np.uint8)
    assert (read(tiff(values, photometric=2, in_planes=True)) == values).all(), "8 bits are read"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("kind", ["u2", "i2", "i4", "f4"])
def test_numbers_are_scaled_from_their_range_whatever_their_type(kind, is_packed, order):
    values = np.linspace(1000, 2000, 24).reshape(6, 4, 1).astype(kind)
    how = RGB._replace(integers=(1000, 2000), floats=(1000, 2000))
    found = read(tiff(values, order, is_packed=is_packed), how)[..., 0].ravel()
    assert found[0] == 0 and found[-1] == 255 and (np.diff(found.astype(int)) > 0).all()


def test_whole_numbers_beyond_half_of_32_bits_are_positive():
    values = np.array([[[0], [2**31], [2**32 - 1]]], np.uint32)
    assert read(tiff(values), RGB._replace(integers=(0, 2**32 - 1)))[0, :, 0].tolist() == [
        0,
        128,
        255,
    ]


def test_whole_numbers_of_no_told_kind_have_no_sign():
    values = np.array([[[0], [2**31], [2**32 - 1]]], np.uint32)
    how = RGB._replace(integers=(0, 2**32 - 1))
    assert read(tiff(values, tells_kind=False), how)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "i4", "f4"])
def test_where_white_is_zero_larger_numbers_are_darker(kind, order):
    values = np.linspace(0, 120, 24).reshape(6, 4, 1).astype(kind)
    content = tiff(values, order, photometric=0)
    try:
        found = facts(content)
    except Image.UnidentifiedImageError:
        pytest.skip("this Pillow reads no such file")
    bounds = (found.low or 0, found.high or 0) if kind != "u1" else (0, 255)
    pixels = read(content, RGB._replace(integers=bounds, floats=bounds))[..., 0].ravel()
    assert (np.diff(pixels.astype(int)) <= 0).all() and pixels[0] == 255
    assert pixels[-1] < (5 if kind != "u1" else 140)


@pytest.mark.parametrize(("kind", "none"), [("f4", "-9999"), ("i4", "-9999"), ("u2", "65535")])
def test_what_stands_for_no_data_is_transparent_and_does_not_tell_the_range(kind, none):
    values = np.linspace(2, 38, 64).reshape(8, 8, 1)
    values[3:5] = float(none)
    content = tiff(values.astype(kind), no_data=f"{none} ")
    assert facts(content).low == pytest.approx(2, abs=1)  # not 0: it is no drawing
    assert facts(content).high == pytest.approx(38, abs=1)
    assert facts(content).hidden is not None
    how = RGB._replace(ground=100, integers=(0, 40), floats=(0, 40))
    found = read(content, how)[..., 0]
    assert (found[3:5] == 100).all()
    assert found[0, 0] < 20 and found[-1, -1] > 230
    for nonsense in ("none", ""):
        assert facts(tiff(values.astype(kind), no_data=nonsense)).hidden is None


def test_negative_numbers_have_a_range_too():
    values = np.array([[[-30000], [0], [30000]]], np.int16)
    how = RGB._replace(integers=(-30000, 30000))
    assert read(tiff(values), how)[0, :, 0].tolist() == [0, 127, 255]
    floats = np.array([[[-1], [0], [1]]], np.float32)
    assert read(tiff(floats), RGB._replace(floats=(-1, 1)))[0, :, 0].tolist() == [0, 128, 255]


def test_eight_bits_in_16_and_32_are_read_as_they_are():
    values = np.arange(256).reshape(16, 16, 1)
    how = RGB._replace(integers=(0, 255), floats=(0, 255))
    for kind in ("u2", "i2", "i4", "f4"):
        assert (read(tiff(values.astype(kind)), how) == values).all()
    assert (
        read(saved(Image.fromarray(values[..., 0].astype(np.uint8)), "PNG"), how) == values
    ).all()


def test_what_is_no_number_is_black_or_white():
    values = np.array([[[np.nan], [-np.inf], [np.inf], [0.5]]], np.float32)
    assert read(tiff(values))[0, :, 0].tolist() == [0, 0, 255, 128]
    assert facts(tiff(values)).low == facts(tiff(values)).high == 0.5
    nothing = facts(tiff(np.full((2, 2, 1), np.nan, np.float32)))
    assert nothing.low is None and nothing.high is None and nothing.error is None


def test_a_hot_pixel_does_not_tell_the_range():
    values = RNG.integers(0, 4096, (32, 32, 1)).astype(np.uint16)
    values[5, 7], values[8, 9] = 65535, 0
    assert 4000 < facts(png(values)).high <= 4095
    floats = (values / 4096).astype(np.float32)
    assert 0.9 < facts(tiff(floats)).high <= 1


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces_are_converted(mode):
    picture = slope().convert(mode)
    expected = np.asarray(picture.convert("RGB"))
    assert (read(saved(picture, "TIFF")) == expected).all()
    assert np.abs(read(saved(picture, "JPEG", quality=100)).astype(int) - expected).max() <= 6
    assert facts(saved(picture, "JPEG")).error is None


def test_lab_is_converted():
    lab = ImageCms.profileToProfile(
        slope(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    found = read(saved(lab, "TIFF"))
    assert np.abs(found.astype(int) - np.asarray(slope())).max() <= 3
    assert facts(saved(lab, "TIFF")).error is None


def test_palettes_are_looked_up():
    picture = slope().quantize(16)
    for content in (saved(picture, "PNG"), saved(picture, "GIF"), saved(picture, "BMP")):
        assert (read(content) == np.asarray(picture.convert("RGB"))).all()


def frames() -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_animations_and_pages_the_first_is_taken(format):
    first, *others = frames()
    options = {"lossless": True} if format == "WEBP" else {}
    content = saved(first, format, save_all=True, append_images=others, **options)
    assert (read(content) == [255, 0, 0]).all() and facts(content).is_animated
    assert not facts(saved(first, format, **options)).is_animated


def test_an_animation_that_is_cut_off_has_a_first_frame():
    content = saved(frames()[0], "GIF", save_all=True, append_images=frames()[1:])
    first = read(content)
    ends = [n for n in range(1, len(content)) if _is_read(content[:n])]
    assert len(ends) > 10
    for end in ends:
        assert facts(content[:end]).error is None
    assert (read(content[: ends[-1]]) == first).all()


def _is_read(content: bytes) -> bool:
    try:
        return bool(read(content).size)
    except Exception:
        return False


def test_pages_of_more_than_8_bits_are_counted_as_such():
    pages = [Image.fromarray(np.full((4, 4), value, np.uint16)) for value in (1, 2)]
    assert facts(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])).is_animated


def test_interlaced_16_bits_are_read():
    # Adam7 of one pixel is that pixel.
    content = bytearray(png(np.array([[[100, 200, 300]]])))
    content[28] = 1
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    how = RGB._replace(integers=(0, 1023))
    assert read(bytes(content), how).tolist() == [[[25, 50, 75]]]


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_picture_that_is_cut_off_is_refused_when_surveyed_and_when_decoded(format):
    noise = Image.fromarray(RNG.integers(0, 256, (90, 90, 3)).astype(np.uint8))
    content = saved(noise, format)
    for part in (content[: len(content) // 2], content[: len(content) * 9 // 10]):
        assert not ImageFile.LOAD_TRUNCATED_IMAGES
        for look in (read, facts):
            with pytest.raises((OSError, SyntaxError, ValueError)):
                look(part)


def test_a_large_jpeg_is_surveyed_in_its_own_size_and_colours():
    picture = slope().resize((1000, 1500)).transpose(TURNS[6])
    found = facts(saved(picture, "JPEG", exif=exif(6)))
    assert (found.width, found.height) == (1000, 1500) and found.mode == "RGB"


def test_orientation_is_asked_of_pictures_that_have_none():
    assert orientation(Image.new("L", (2, 2))) == 1
    assert orientation(Image.open(io.BytesIO(saved(slope(), "GIF")))) == 1
