"""Commands on this machine: where latency can be measured from it, and what would fail on it."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search.cli.options import Json
from levit_search.cli.printing import print_json, print_table, tell

if TYPE_CHECKING:
    from levit_search.doctor import Check, Finding
    from levit_search.latency.reach import Reached


def targets(
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, max=3600, help="Wait so long for each.")
    ] = 20.0,
    as_json: Json = False,
) -> None:
    """Show which targets of `probe` can be reached now, their devices, and why others cannot."""
    from levit_search.latency.reach import reach
    from levit_search.latency.targets import known_names, read_targets
    from levit_search.progress import StepProgress

    named = read_targets()
    with StepProgress() as shown:

        def report(found: "Reached") -> None:
            shown.step(f"{found.name} {'reached' if found.reachable else 'not reached'}")

        shown.begin("targets", len(known_names(named)))
        shown.update("", 0.0)
        rows = reach(named, timeout, report)
    if as_json:
        print_json([row.as_json() for row in rows])
        return
    _print_targets(rows)


def _print_targets(rows: "list[Reached]") -> None:
    from rich.table import Table

    from levit_search.latency.targets import target_files

    table = Table(box=None, pad_edge=False)
    for head in ("target", "reachable", "device, or why not"):
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(row.name, "yes" if row.reachable else "no", "\n".join(_told(row)))
    print_table(table)
    tell()
    *others, last = [str(path) for path in target_files()]
    hint = (
        "`--target` and `latency: {target: ...}` also take ssh://[user@]host[:port] and "
        f"ray://RESOURCE. Names of your own are looked for in {', '.join(others)}, in {last} here "
        "and in one beside the space file; the last one that has a name counts."
    )
    tell(textwrap.fill(hint, 100, break_long_words=False, break_on_hyphens=False))


def _told(row: "Reached") -> list[str]:
    """What there is to say of a target, line by line."""
    lines = [row.address] if row.address is not None and row.address != row.name else []
    if row.device is not None:
        lines.append(_device(row.device) + (" (emulated)" if row.is_emulated else ""))
        versions = ", ".join(f"{name} {version}" for name, version in row.runtimes.items())
        lines.append(f"installed: {versions}")
    if row.reason is not None:
        lines.append(row.reason)
    if row.settings:
        settings = row.settings
        lines.append(
            f"settings: {settings['runtime']}, {settings['precision']}, batch "
            f"{settings['batch_size']}, {settings['threads']} thread(s)"
        )
    return lines


def _device(device: dict[str, Any]) -> str:
    cpu = f"{device['cpu']}, {device['machine']}, {device['cores']} core(s)"
    if "gpu" not in device:
        return cpu
    memory = f"{device['gpu_memory_bytes'] / 1e9:.0f} GB"
    return f"{device['gpu']}, {memory}, CUDA {device['cuda']}, driver {device['driver']}; {cpu}"


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
        _print_findings(findings)
    if failed:
        raise typer.Exit(1)


def _print_findings(findings: "list[Finding]") -> None:
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
