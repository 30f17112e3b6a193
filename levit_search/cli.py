"""The command line: parse, call, print.

Only the standard library and typer are imported here; each command imports what it needs, so that
``--help`` answers at once and counting never waits for torch.
"""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search import __version__
from levit_search.errors import InputError, LevitSearchError

if TYPE_CHECKING:
    from rich.table import Table

    from levit_search.search import Summary
    from levit_search.space import Survey

app = typer.Typer(
    help="Find the best LeViT-like vision transformer for a data set and a device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Archs = Annotated[
    list[str],
    typer.Argument(
        metavar="ARCH...", help="A published name, a YAML file, or STUDY#TRIAL.", show_default=False
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the space file (repeatable)."),
]
StudyFolder = Annotated[Path, typer.Argument(metavar="STUDY", help="A study folder.")]


def main() -> None:
    """Run the command in ``sys.argv``; exit 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except LevitSearchError as error:
        if "--debug" in sys.argv:
            raise
        _say(f"levit-search: {error}")
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        _say(f"levit-search: {error.format_message()}")
        sys.exit(2)
    except typer.Abort:
        sys.exit(130)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="Show a traceback on errors.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    del debug  # read by main, which catches the errors
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="What may vary, and how.")],
    study: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Study folder [default: studies/NAME].")
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Networks to train in all.")] = None,
    time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Stop after 90s, 30m or 2h30m.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampler and of training.")] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Search a space; on a study folder that exists, go on with it."""
    from levit_search.progress import SearchProgress
    from levit_search.search import search
    from levit_search.study import Study, parse_settings, read_config

    changes = parse_settings(settings or [])
    given = {"trials": trials, "time_s": _seconds(time), "seed": seed}
    changes |= {f"search.{key}": value for key, value in given.items() if value is not None}
    path = _space_file(space)
    config = read_config(path, changes)
    config.check_data(str(path))
    config.space(str(path)).check_feasible()
    folder = study or Path("studies") / config.name
    opened = Study.create(folder, config, sys.argv)
    try:
        with SearchProgress(opened) as progress:
            summary = search(opened, progress)
    except KeyboardInterrupt:
        _say(f"\nInterrupted. What was finished is in {folder}; the same command goes on.")
        raise typer.Exit(130) from None
    if as_json:
        _print_json(_summary_json(summary))
    else:
        _print_summary(summary, opened.config.objectives)


def _summary_json(summary: "Summary") -> dict[str, Any]:
    from levit_search.table import as_json

    return {
        "study": summary.study,
        "trials": summary.trials,
        "seconds": round(summary.seconds, 3),
        "hypervolume": summary.hypervolume,
        "front": [as_json(record) for record in summary.front],
    }


def _print_summary(summary: "Summary", objectives: Any) -> None:
    from levit_search import table

    title = f"Pareto front of {summary.study}: {len(summary.front)} networks"
    _print_table(table.terminal(summary.front, objectives, title))
    counts = ", ".join(f"{count} {state}" for state, count in summary.trials.items() if count)
    study = shlex.quote(summary.study)
    print(f"\n{counts} in {summary.seconds:.0f} s; stopped because {summary.stopped_because}.")
    print(f"Hypervolume {summary.hypervolume:.4f}. Files: {summary.study}/trials.csv, front.csv,")
    print("study.yaml, environment.json, checkpoints/. Next:")
    print(f"  levit-search front {study}")
    print(f"  levit-search export {study} --pick knee")


@app.command()
def front(
    study: StudyFolder,
    format: Annotated[str, typer.Option(help="table, csv, json or markdown.")] = "table",
) -> None:
    """Print the Pareto front of a study."""
    from levit_search import table
    from levit_search.errors import UnknownNameError
    from levit_search.study import Study

    formats = ("table", "csv", "json", "markdown")
    if format not in formats:
        raise UnknownNameError("format", format, formats)
    opened = Study.open(study)
    objectives = opened.config.objectives
    best = table.front(opened.records(), objectives)
    match format:
        case "csv":
            print(table.as_csv(best), end="")
        case "json":
            _print_json([table.as_json(record) for record in best])
        case "markdown":
            print(table.markdown(best, objectives), end="")
        case _:
            title = f"Pareto front of {study}: {len(best)} networks"
            _print_table(table.terminal(best, objectives, title))


@app.command()
def export(
    study: StudyFolder,
    pick: Annotated[
        str, typer.Option(help="knee, accurate, fastest, trial=N, or 'latency_ms<=5'.")
    ] = "knee",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to [default: STUDY/export/ID].")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over what is in DIR.")] = False,
    as_json: Json = False,
) -> None:
    """Write a chosen network with its trained weights and a model card."""
    from levit_search import export as exports
    from levit_search.study import Study

    opened = Study.open(study)
    record = exports.pick(opened, pick)
    assert record.architecture is not None
    folder = out or study / "export" / record.architecture.id
    written = exports.export(opened, record, folder, pick, force)
    if as_json:
        _print_json(written.as_json())
        return
    print(f"Trial {record.trial} ({record.architecture.summary()}) written to {folder}:")
    for name in written.files:
        print(f"  {name}")
    print(f"Logits agree with the trained network within {written.parity_max_abs_diff:.1e}.")


@app.command()
def count(
    archs: Archs,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Show every layer.")] = False,
    as_json: Json = False,
) -> None:
    """Count parameters, FLOPs and activations; one multiply-add is one FLOP."""
    from levit_search import cost
    from levit_search.study import load_architecture

    networks = [(name, load_architecture(name)) for name in archs]
    if as_json:
        rows: list[dict[str, Any]] = []
        for name, network in networks:
            row = {"name": name, "id": network.id, **cost.cost(network)._asdict()}
            if by_layer:
                row["layers"] = [layer._asdict() for layer in cost.layers(network)]
            rows.append(row)
        _print_json(rows)
        return
    for name, network in networks if by_layer else []:
        table = _figures_table(f"{name} ({network.id})", ["layer", *cost.Cost._fields])
        for layer in cost.layers(network):
            table.add_row(layer.name, *(f"{value:,}" for value in layer[1:]))
        _print_table(table)
        print()
    table = _figures_table("", ["network", "id", *cost.Cost._fields])
    for name, network in networks:
        table.add_row(name, network.id, *(f"{value:,}" for value in cost.cost(network)))
    _print_table(table)


@app.command()
def probe(
    archs: Archs,
    target: Annotated[str, typer.Option(help="Where to measure: cpu.")] = "cpu",
    batch_size: Annotated[int, typer.Option(help="Images in one run.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    seconds: Annotated[float, typer.Option(help="Timing spent on each network.")] = 1.5,
    as_json: Json = False,
) -> None:
    """Measure latency in pairs against a reference network."""
    from dataclasses import asdict

    from levit_search.configuration import validated
    from levit_search.latency import LatencyConfig, LocalProbe
    from levit_search.study import load_architecture

    options = {
        "target": target,
        "batch_size": batch_size,
        "threads": threads,
        "seconds": seconds,
    }
    config = validated(LatencyConfig, options, "probe")
    networks = [(name, load_architecture(name)) for name in archs]
    rows = []
    with LocalProbe(config) as local:
        for name, network in networks:
            _say(f"measuring {name} on {target} ...")
            rows.append({"name": name, "id": network.id, **asdict(local.measure(network))})
    if as_json:
        _print_json(rows)
        return
    heads = ["network", "latency ms", "images/s", f"ratio to {config.reference}", "95 % interval"]
    table = _figures_table("", [*heads, "pairs", "seconds"])
    for row in rows:
        low, high = row["ratio_ci95"]
        table.add_row(
            row["name"],
            f"{row['latency_ms']:.4g}",
            f"{row['throughput_ips']:.4g}",
            f"{row['ratio_to_reference']:.4f}",
            f"{low:.4f} to {high:.4f}",
            str(row["pairs"]),
            f"{row['seconds']:.1f}",
        )
    _print_table(table)
    last = rows[-1]
    print(
        f"{last['runtime']}, {last['precision']}, batch {batch_size}, {threads} thread(s), "
        f"{last['device']['cpu']}"
    )


# The embedded space whose recipe and teacher a data set's `train` starts from.
_SPACE_OF = {"digits": "levit", "fashion-mnist": "levit-fashion", "folder": "levit-imagenet"}


@app.command()
def train(
    arch: Annotated[
        str, typer.Argument(metavar="ARCH", help="A published name, a YAML file or STUDY#TRIAL.")
    ],
    data: Annotated[str, typer.Option(help="digits, fashion-mnist or folder.")] = "digits",
    image_size: Annotated[int | None, typer.Option(help="Pixels a side.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs to train.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A timm network, or none [default: the space file's].")
    ] = None,
    final: Annotated[bool, typer.Option("--final", help="Report the test split too.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep architecture and weights here.")
    ] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Train one network, its stem fitted to the images, with the data set's default recipe."""
    from levit_search.errors import UnknownNameError
    from levit_search.single import train_single
    from levit_search.study import load_architecture, parse_settings, read_config

    if data not in _SPACE_OF:
        raise UnknownNameError("data set", data, _SPACE_OF)
    network = load_architecture(arch)
    changes: dict[str, Any] = {"search.seed": seed, "start": []}
    given = {"train.epochs": epochs, "data.image_size": image_size}
    changes |= {key: value for key, value in given.items() if value is not None}
    if teacher is not None:
        changes["teacher"] = None if teacher == "none" else {"name": teacher}
    changes |= parse_settings(settings or [])
    config = read_config(_space_file(_SPACE_OF[data]), changes)
    result = train_single(network, config, final, out, _say)
    if as_json:
        _print_json(result)
        return
    test = f", test {result['test_top1_percent']:.2f} %" if final else ""
    print(
        f"{arch} ({result['id']}) on {data}, {result['epochs']} epochs: top-1 val "
        f"{result['val_top1_percent']:.2f} %{test}; {result['images_per_second']:.0f} images/s, "
        f"{result['seconds']:.0f} s"
    )


@app.command()
def space(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="A space file.")],
    sample: Annotated[int, typer.Option(min=1, help="Networks to draw.")] = 2000,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Show what a space holds: its slots, its size and what random networks in it cost."""
    from levit_search import architecture
    from levit_search.study import parse_settings, read_config

    path = _space_file(space)
    config = read_config(path, parse_settings(settings or []))
    compiled = config.space(str(path))
    survey = compiled.survey(sample)
    names = architecture.published_names()
    inside = [n for n in names if compiled.encode(architecture.published(n)) is not None]
    slots = {slot.name: list(slot.values) for slot in compiled.slots}
    if as_json:
        _print_json(
            {
                "name": config.name,
                "slots": slots,
                "size": compiled.size(),
                "samples": sample,
                "feasible_share": survey.feasible / sample,
                "infeasible": survey.reasons,
                "costs": _cost_quantiles(survey),
                "published": inside,
            }
        )
        return
    table = _figures_table(f"{config.name}: {compiled.size():.3g} networks", ["slot", "values"])
    for name, values in slots.items():
        table.add_row(name, ", ".join(map(str, values)))
    _print_table(table)
    share = 100 * survey.feasible / sample
    print(f"\n{share:.1f} % of {sample} random networks are valid and within the limits.")
    for reason, times in list(survey.reasons.items())[:5]:
        print(f"  {100 * times / sample:.1f} %: {reason}")
    if config.limits.latency_ms is not None:
        print(f"  (latency_ms <= {config.limits.latency_ms:g} is checked by probing, not here)")
    if survey.feasible:
        table = _figures_table("\nThe feasible ones", ["", "min", "q25", "median", "q75", "max"])
        for name, quantiles in _cost_quantiles(survey).items():
            table.add_row(name, *(f"{value:,.0f}" for value in quantiles.values()))
        _print_table(table)
    print(f"\nPublished networks inside: {', '.join(inside) or 'none'}")


def _cost_quantiles(survey: "Survey") -> dict[str, dict[str, float]]:
    from levit_search.cost import Cost
    from levit_search.space import quantiles

    if not survey.feasible:
        return {}
    columns = zip(*survey.costs, strict=True)
    return {name: quantiles(column) for name, column in zip(Cost._fields, columns, strict=True)}


def _space_file(text: str) -> Path:
    """A space file by its path, or an embedded one by its name."""
    from levit_search.errors import UnknownNameError

    path = Path(text)
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    packaged = Path(__file__).parent / "spaces"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[1] / "spaces"
    embedded = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if text not in embedded:
        raise UnknownNameError("space", text, embedded)
    return embedded[text]


def _seconds(text: str | None) -> float | None:
    """``90s``, ``30m``, ``2h30m`` or plain seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    parts = [int(part or 0) for part in found.groups()] if found and text.strip() else [0]
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if seconds <= 0:
        raise InputError(f"--time {text}: expected a time such as 90s, 30m or 2h30m")
    return float(seconds)


def _figures_table(title: str, heads: list[str]) -> "Table":
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", overflow="fold")
    return table


def _print_table(table: "Table") -> None:
    from rich.console import Console

    # Piped tables keep their columns; a terminal shows what it has room for.
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
