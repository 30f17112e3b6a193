"""The documents: their links lead somewhere, and what they draw of the package is there."""

import re
import runpy
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli

_PACKAGE = ROOT / "levit_search"
_DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@pytest.mark.parametrize("path", _DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, section = link.partition("#")
        target = (path.parent / name) if name else path
        assert target.exists(), link
        if section:
            heads = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert section in anchors, link


def test_the_picture_of_the_code_is_the_one_that_its_command_draws() -> None:
    script = ROOT / "docs" / "pictures" / "architecture.py"
    made = runpy.run_path(str(script))
    assert script.with_suffix(".svg").read_text("utf-8") == made["drawn"]()
    for name in made["BOXES"].keys() - made["FILES"]:
        assert (_PACKAGE / name).is_dir() or (_PACKAGE / f"{name}.py").is_file(), name


def test_the_tree_of_the_code_is_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"^  ([\w./]+) ", text, re.MULTILINE)
    assert len(named) > 15
    for name in named:
        assert (_PACKAGE / name).exists(), name
    folders = {path.parent.name for path in _PACKAGE.glob("*/__init__.py")}
    assert folders <= {name.rstrip("/") for name in named}


def test_help_lists_every_command_whole_in_80_columns(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    listed = cli("--help").stdout.partition("Commands:\n")[2]
    order = (
        "run front report export audit count show probe targets train teacher supernet reproduce"
    )
    assert re.findall(r"^  (\w+)", listed, re.MULTILINE) == [
        *order.split(),
        *("space", "data", "doctor", "restore"),
    ]
    assert "..." not in listed + cli("teacher", "--help").stdout.partition("Commands:\n")[2]
    assert all(len(line) <= 80 for line in listed.splitlines())
