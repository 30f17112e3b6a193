import math
from pathlib import Path

import pytest

from levit_search.configuration import (
    Amount,
    Count,
    Frozen,
    Ratio,
    read_yaml,
    validated,
    write_yaml,
)
from levit_search.errors import InputError


class Inner(Frozen):
    ratio: Ratio = 2
    count: Count = 1


class Outer(Frozen):
    budget: Amount = 1.0
    inner: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    ("written", "meant"),
    [("300M", 3e8), ("1.2G", 1.2e9), ("5k", 5e3), ("5K", 5e3), ("2t", 2e12), ("7", 7), (0.5, 0.5)],
)
def test_amounts_are_read_with_their_suffix(written: object, meant: float) -> None:
    assert validated(Outer, {"budget": written}, "file").budget == pytest.approx(meant)


@pytest.mark.parametrize(
    "value", ["M", "3Q", "1.2.3G", "-1M", "nanM", "infG", "", 0, -1, math.nan, True, None, [1]]
)
def test_what_is_no_positive_amount_is_refused_with_its_field(value: object) -> None:
    with pytest.raises(InputError, match=r"^file: budget: "):
        validated(Outer, {"budget": value}, "file")


def test_a_whole_float_is_the_integer() -> None:
    ratio = validated(Inner, {"ratio": 3.0}, "file").ratio
    assert ratio == 3
    assert isinstance(ratio, int)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ({"count": 0}, "file: inner.0.count: input should be greater than or equal to 1, not 0"),
        ({"count": "4"}, "file: inner.0.count: input should be a valid integer, not '4'"),
        ({"count": True}, "file: inner.0.count: input should be a valid integer, not True"),
        ({"ratio": True}, "file: inner.0.ratio: must be a number, not True"),
        (
            {"cuont": 4},
            "file: inner.0: unknown key 'cuont'; did you mean 'count'? Known: ratio, count",
        ),
        ({7: 4}, "file: inner.0: unknown key 7; Known: ratio, count"),
    ],
)
def test_an_error_gives_place_rule_and_value(inner: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        validated(Outer, {"inner": [inner]}, "file")
    assert str(caught.value) == message


@pytest.mark.parametrize("value", ["x", -1, [2], math.inf])
def test_an_error_in_a_ratio_names_only_what_the_user_wrote(value: object) -> None:
    with pytest.raises(InputError, match=r"^file: inner\.0\.ratio: .*") as caught:
        validated(Outer, {"inner": [{"ratio": value}]}, "file")
    assert repr(value) in str(caught.value)


def test_further_mistakes_are_counted() -> None:
    with pytest.raises(InputError, match=r"inner\.0\.count: .*, not 0 \(and 2 more\)$"):
        validated(Outer, {"inner": [{"count": 0}, {"count": 0}, {"count": 0}]}, "file")


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(InputError) as caught:
        validated(Outer, {"inner": "x" * 500}, "file")
    assert "xxx..." in str(caught.value)
    assert len(str(caught.value)) < 150


def test_models_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().count = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [1,", "not valid YAML"),
        (b"a: 1\na b\n", "not valid YAML"),
        (b"- 1\n- 2\n", "expected a mapping"),
        (b"", "expected a mapping"),
        (b"\xff\xfe\x80\x00binary", "cannot be read"),
        (b"a: " + b"[" * 1000, "nested too deeply"),
        (b"? [1]\n: 2\n", "not valid YAML"),
        # PyYAML leaves these to Python's constructors, which raise other errors than its own.
        (b"share: !!float large\n", "not valid YAML"),
        (b"size: !!int large\n", "not valid YAML"),
        (b"size: !!bool large\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: {reason}")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.yaml: no such file"):
        read_yaml(tmp_path / "nothing.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path)


def test_what_is_written_is_read_back_in_order(tmp_path: Path) -> None:
    data = {"z": [1, 2.5, 1e-7], "a": {"text": "no", "empty": None, "flag": False}, "ü": "é"}
    path = tmp_path / "data.yaml"
    path.write_text(write_yaml(data), encoding="utf-8")
    assert read_yaml(path) == data
    assert list(read_yaml(path)) == list(data)
