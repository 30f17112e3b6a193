"""Foreign text for terminals, files, JSON and shells."""

import io
import json
import subprocess

import pytest

from levit_search.escaping import (
    careful_console,
    encodable,
    encodable_json,
    printable,
    quoted,
    readable_name,
)

STRANGE = [
    "caf\udce9",
    "caf\\xe9",
    "caf\u0085",
    "caf\udc85",
    "caf\\u0085",
    "a\nb",
    "a\\nb",
    "a\u202eb",
    "a\ud800",
    "größe 大 \U0001f600",
    "it's $HOME `x` \\",
    "-dash",
    "",
]


def test_different_names_stay_different_and_fit_everywhere() -> None:
    names = [readable_name(name) for name in STRANGE]
    assert len(set(names)) == len(STRANGE)
    for name in names:
        assert name.isprintable()
        assert printable(name) == encodable(name) == name
        name.encode()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("caf\udce9", "caf\\xe9"),
        ("a\nb", "a\\nb"),
        ("a\\b", "a\\\\b"),
        ("größe", "größe"),
        ("<b> \"'", "<b> \"'"),
    ],
)
def test_a_name_is_escaped_as_people_know_it(name: str, shown: str) -> None:
    assert readable_name(name) == shown


def test_what_a_file_takes_stays_as_it_is() -> None:
    assert encodable("größe\n\t\x1b\\ \U0001f600") == "größe\n\t\x1b\\ \U0001f600"
    assert encodable("a\udcff\ud800") == "a\\xff\\ud800"


def test_json_has_no_half_characters_at_any_depth() -> None:
    found = encodable_json({"a\udcff": [1, None, ("b\udcfe", {"c": "\ud800"})], "größe": True})
    assert found == {"a\\xff": [1, None, ["b\\xfe", {"c": "\\ud800"}]], "größe": True}
    json.dumps(found, ensure_ascii=False).encode()


@pytest.mark.parametrize("name", [name for name in STRANGE if "\ud800" not in name])
def test_a_shell_gives_a_quoted_argument_back(name: str) -> None:
    assert quoted(name).isprintable()
    script = f"printf %s {quoted(name)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout == name.encode(errors="surrogateescape")


def test_a_table_is_as_wide_as_what_an_ascii_terminal_shows() -> None:
    from rich.table import Table

    written = io.TextIOWrapper(io.BytesIO(), "ascii", errors="backslashreplace")
    table = Table(box=None, pad_edge=False)
    for _ in range(2):
        table.add_column()
    table.add_row("3×3", "end")
    table.add_row("a", "end")
    careful_console(file=written, width=80).print(table)
    written.seek(0)
    lines = [line for line in written.read().splitlines() if "end" in line]
    assert [line.index("end") for line in lines] == [8, 8]
    assert lines[0].startswith("3\\xd73")
