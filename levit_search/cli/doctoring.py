"""The command that looks at the whole installation."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from levit_search.cli.options import Json
from levit_search.cli.printing import print_json

if TYPE_CHECKING:
    from levit_search.doctor import Check, Finding

_WIDTH = 110
_WORDS = {"ok": ("ok", "green"), "warn": ("WARN", "yellow"), "fail": ("FAIL", "bold red")}
_GROUPS = ("installation", "runtimes", "machine", "targets", "data", "disk", "study")


def doctor(
    study: Annotated[
        Path | None, typer.Argument(metavar="STUDY", help="A study folder to look at as well.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look for what would fail here, and say how to mend it; exit 1 if something would."""
    from levit_search.doctor import all_checks, examine
    from levit_search.progress import StepProgress

    checks = all_checks(study)
    with StepProgress() as shown:
        shown.begin("looking", len(checks))
        shown.update("", 0.0)

        def report(check: "Check") -> None:
            shown.step(f"{check.group}: {check.name}")

        findings = examine(checks, report)
    findings.sort(key=lambda each: _GROUPS.index(each.group))
    failed = sum(each.status == "fail" for each in findings)
    if as_json:
        print_json({"ok": not failed, "findings": [each.as_json() for each in findings]})
    else:
        _print(findings)
    if failed:
        raise typer.Exit(1)


def _print(findings: "list[Finding]") -> None:
    from rich.text import Text

    from levit_search.printable import careful_console

    console = careful_console()

    def line(*parts: str | tuple[str, str]) -> None:
        console.print(Text.assemble(*parts), soft_wrap=True)  # commands stay whole, to be copied

    width = max(len(each.name) for each in findings)
    group = ""
    for each in findings:
        if each.group != group:
            line(f"\n{each.group}" if group else each.group)
            group = each.group
        indent = " " * (width + 9)
        word, colour = _WORDS[each.status]
        line("  ", (f"{word:<4}", colour), f" {each.name:<{width}}  ", _folded(each.found, indent))
        if each.breaks:
            label = "would fail: " if each.status == "fail" else "this means: "
            line(indent, label, _folded(each.breaks, indent + " " * len(label)))
        if each.mend:
            line(indent, "to mend:    ", each.mend)
    counts = {status: sum(each.status == status for each in findings) for status in _WORDS}
    failed = "nothing would fail" if not counts["fail"] else f"{counts['fail']} would fail"
    warned = "1 warning" if counts["warn"] == 1 else f"{counts['warn']} warnings"
    line(f"\n{failed}, {warned} ({len(findings)} looked at)")


def _folded(text: str, indent: str) -> str:
    lines = textwrap.wrap(
        text, max(40, _WIDTH - len(indent)), break_long_words=False, break_on_hyphens=False
    )
    return f"\n{indent}".join(lines)
