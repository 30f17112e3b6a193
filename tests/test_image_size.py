"""Sizes of images: how they are read, kept and told."""

from typing import Any

import pytest

from levit_search.architecture import parse, published
from levit_search.baseline import Baseline
from levit_search.configuration import Frozen, field_types, parse_value, validated
from levit_search.errors import InputError
from levit_search.image_size import (
    ImageSize,
    canonical_size,
    compact,
    image_shape,
    plain_size,
    read_size,
    sides,
    size_text,
)


class Some(Frozen):
    image_size: ImageSize
    other: ImageSize | None = None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (64, 64),
        ([64, 64], 64),
        ((64, 64), 64),
        ([64, 96], (64, 96)),
        ([96, 64], (96, 64)),
        ((1, 10**9), (1, 10**9)),
    ],
)
def test_a_size_has_one_spelling(given: Any, kept: Any) -> None:
    some = validated(Some, {"image_size": given}, "file")
    assert some.image_size == kept
    dumped = some.model_dump(mode="json")
    assert dumped["image_size"] == plain_size(kept)
    assert validated(Some, dumped, "file") == some and hash(some) == hash(some)
    assert canonical_size(given) == kept


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("64", "image_size: expected one number or [rows, columns], not '64'"),
        ("64x96", "image_size: expected one number or [rows, columns], not '64x96'"),
        ([64], "image_size: expected one number or [rows, columns], not [64]"),
        ([3, 64, 96], "image_size: expected one number or [rows, columns], not [3, 64, 96]"),
        ([64, 0], "image_size.1: input should be greater than or equal to 1, not 0"),
        ([64, 96.0], "image_size.1: input should be a valid integer, not 96.0"),
        ([True, 96], "image_size.0: input should be a valid integer, not True"),
        (0, "image_size: input should be greater than or equal to 1, not 0"),
        (4.5, "image_size: input should be a valid integer, not 4.5"),
        (None, "image_size: input should be a valid integer, not None"),
    ],
)
def test_what_is_no_size_is_told_with_its_place(given: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        validated(Some, {"image_size": given}, "file")
    assert str(caught.value) == f"file: {told}"


def test_settings_may_be_numbers_and_lists() -> None:
    for key in ("image_size", "other"):
        types = field_types(Some, key)
        assert parse_value("[64, 96]", types, "--set") == [64, 96]
        assert parse_value("64", types, "--set") == 64


def test_sizes_are_told_rows_first() -> None:
    assert size_text(64) == size_text([64, 64]) == "64"
    assert size_text((64, 96)) == size_text([64, 96]) == "64x96"
    assert sides(64) == (64, 64) and sides((64, 96)) == (64, 96)
    assert compact(64, 64) == 64 and compact(64, 96) == (64, 96)


@pytest.mark.parametrize(
    ("text", "size"), [("64", 64), ("64x64", 64), ("64x96", (64, 96)), ("96x64", (96, 64))]
)
def test_a_size_on_a_command_line(text: str, size: Any) -> None:
    assert read_size(text, "--image-size") == size


@pytest.mark.parametrize(
    "text", ["", "x", "64x", "x96", "1x2x3", "64 x 96", "6.4", "-64", "a", "²"]
)
def test_what_is_no_size_on_a_command_line_is_told(text: str) -> None:
    with pytest.raises(InputError, match=r"^--image-size: expected pixels, or HxW such as 64x96"):
        read_size(text, "--image-size")


def test_networks_of_both_kinds_have_a_shape_of_images() -> None:
    assert image_shape(published("LeViT-128S")) == (3, 224, 224)
    wide = {**published("LeViT-128S").model_dump(mode="json"), "image_size": [64, 96]}
    assert image_shape(parse({**wide, "in_channels": 1})) == (1, 64, 96)
    assert image_shape(Baseline("resnet18", (64, 96), 3, 10)) == (3, 64, 96)
