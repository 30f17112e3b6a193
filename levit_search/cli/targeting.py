"""The command on targets: where latency can be measured now."""

import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search.cli.options import Json
from levit_search.cli.printing import print_json, print_table, tell

if TYPE_CHECKING:
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
