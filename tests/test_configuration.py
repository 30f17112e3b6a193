import math
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from levit_search.configuration import (
    Amount,
    Count,
    Frozen,
    Ratio,
    field_types,
    parse_value,
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


class Written(Frozen):
    root: str | None = None
    label: Annotated[str, Field(min_length=1)] = "x"
    count: Count = 1
    network: str | dict[str, int] = "x"
    option: int | str = 1
    words: str | tuple[str, ...] = "x"
    inner: tuple[Inner, ...] = ()
    named: dict[str, Outer] = Field(default_factory=dict)


@pytest.mark.parametrize(
    "text",
    [
        *("/data/set #2", "#2", "2024", "007", "1e3", "0x10", "12:30", "yes", "on", "true", ".5"),
        *("a: b", "[draft", "[1, 2]", "{a: 1}", "{a", "@work", "%TMP%", "*star", "&and", "!new"),
        *("- x", "|", ">", "a\tb", "it's", "'quoted", "`tick`", "2024-01-01", "---", "a, b", "?"),
    ],
)
@pytest.mark.parametrize("key", ["root", "label"])
def test_a_text_is_taken_as_it_was_written(text: str, key: str) -> None:
    types = field_types(Written, key)
    assert parse_value(text, types, "--set") == text
    assert parse_value(f"  {text} ", types, "--set") == text


def test_null_and_a_text_in_quotes_mean_what_they_mean_in_yaml() -> None:
    types = field_types(Written, "root")
    assert [parse_value(text, types, "") for text in ("null", "~", "", " ")] == [None] * 4
    assert parse_value("'/data/set #2'", types, "") == "/data/set #2"
    assert parse_value('"null"', types, "") == "null"
    assert parse_value('"a\\tb"  # why', types, "") == "a\tb"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("network", "{a: 1}", {"a": 1}),
        ("network", "[1]", "[1]"),
        ("network", "my net #2.yaml", "my net #2.yaml"),
        ("network", "7", "7"),
        ("option", "7", 7),
        ("option", "7.5", "7.5"),
        ("option", "true", "true"),
        ("words", "[a, b]", ["a", "b"]),
        ("words", "a b #c", "a b #c"),
        ("count", "7 # why", 7),
        ("inner.0.count", "7", 7),
        ("named.x.budget", "7", 7),
        ("unknown", "[1]", [1]),
        ("count.deeper", "7", 7),
    ],
)
def test_what_a_field_takes_beside_texts_is_read_as_yaml(key: str, text: str, value: Any) -> None:
    found = parse_value(text, field_types(Written, key), "--set")
    assert (found, type(found)) == (value, type(value))


def test_what_is_no_yaml_is_refused_where_no_text_is_taken() -> None:
    with pytest.raises(InputError, match=r"^--set count=\[1: not valid YAML"):
        parse_value("[1", field_types(Written, "count"), "--set count=[1")


def test_an_interruption_within_a_serializer_stays_one() -> None:
    class Ended(KeyboardInterrupt): ...

    class Part(Frozen):
        @model_serializer(mode="wrap")
        def _serialize(self, _: SerializerFunctionWrapHandler) -> dict[str, object]:
            raise Ended

    class Whole(Frozen):
        part: Part = Part()

    with pytest.raises(Ended):
        Whole().model_dump(mode="json")
