"""Commands on networks: their cost, their speed, how they look, and how well they learn."""

import json
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search.cli.terminal import (
    Json,
    figures_table,
    print_figures,
    print_json,
    print_table,
    say,
    tell,
)
from levit_search.errors import InputError, UnknownNameError, writing

if TYPE_CHECKING:
    from levit_search.architecture import Architecture
    from levit_search.baseline import Baseline
    from levit_search.cost import LayerCost
    from levit_search.latency import LatencyConfig
    from levit_search.latency.discovery import DiscoveredTarget
    from levit_search.latency.worker import Device
    from levit_search.progress import Progress

Archs = Annotated[
    list[str],
    typer.Argument(
        metavar="ARCH...",
        help="A published name, a YAML file, STUDY#TRIAL or timm/NAME[@SIZE].",
        show_default=False,
    ),
]


def count(
    archs: Archs,
    by_layer: Annotated[
        bool, typer.Option("--by-layer", help="Show every stage, block and layer with its share.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Count parameters, FLOPs and activations of networks.

    One multiply-add is one FLOP.
    """
    from levit_search import cost
    from levit_search.architecture import Architecture

    counted = []
    for name, network in [(name, _network(name)) for name in archs]:
        uncounted: Mapping[str, Any] = {}
        if isinstance(network, Architecture):
            total, layers = cost.cost(network), cost.layers(network) if by_layer else []
        else:
            from levit_search import baseline

            found = baseline.count(network)
            total, layers = found.total, found.layers
            norms = sum(found.left_out.values())
            uncounted = {"unsupported": found.unsupported, "norm_flops_left_out": norms}
        counted.append((name, network.id, total, layers, uncounted))
    if as_json:
        documents: list[dict[str, object]] = []
        for name, identity, total, layers, uncounted in counted:
            documents.append({"name": name, "id": identity, **total._asdict(), **uncounted})
            if by_layer:
                documents[-1]["layers"] = [layer._asdict() for layer in layers]
        print_json(documents)
        return
    for name, identity, _, layers, _ in counted if by_layer else []:
        _print_tree(f"{name} ({identity})", layers)
        tell()
    heads = ["network", "id", *cost.Cost._fields]
    rows = [(name, each, *(f"{n:,}" for n in total)) for name, each, total, _, _ in counted]
    print_figures(f"{_CONVENTION}.", heads, rows)
    for name, _, _, _, uncounted in counted:
        if uncounted:
            operators = uncounted["unsupported"].items()
            times = [f"{operator.removeprefix('aten::')} {count}" for operator, count in operators]
            told = (
                f"{name}: {uncounted['norm_flops_left_out']:,} FLOPs of norms left out; operators "
                f"without FLOPs, and how often: {', '.join(times) or 'none'}"
            )
            tell(textwrap.fill(told, 100, subsequent_indent="  "))


_CONVENTION = "One multiply-add is one FLOP"


def _print_tree(title: str, layers: list["LayerCost"]) -> None:
    from levit_search.cost import Cost
    from levit_search.drawing.listing import ASCII_GUIDES, LINE_GUIDES, lines, tree

    root = tree("total", layers)
    heads = [head for name in Cost._fields for head in (name, "%")]
    tell(f"{title}. {_CONVENTION}.")  # a table would wrap its title at its own width
    rows = []
    guides = LINE_GUIDES if sys.stdout.encoding.lower().startswith("utf") else ASCII_GUIDES
    for name, figures in lines(root, guides):
        cells = [name]
        for value, whole in zip(figures, root.cost, strict=True):
            cells += [f"{value:,}", f"{100 * value / whole:.1f}" if whole else "-"]
        rows.append(cells)
    print_figures("", ["layer", *heads], rows)


def probe(
    archs: Archs,
    target: Annotated[
        str, typer.Option(help="Where to measure: cpu, cuda, ssh://HOST ...; see `targets`.")
    ] = "cpu",
    runtime: Annotated[
        str | None, typer.Option(help="onnxruntime, openvino, torch or torch-compiled.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, int8, or with torch fp16, bf16.")
    ] = None,
    int8_format: Annotated[
        str | None,
        typer.Option(help="auto (the fastest), u8, u8-reduced, s8, nncf or nncf-reduced."),
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(metavar="N", help="Images in one run; on GPUs also largest.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the runtime.")] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="tokens (linear layers), maps (1x1 convolutions) or fastest of both."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Timing spent on each network at most.")
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", help="Stop once the 95 % interval is narrower."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="ARCH", help="What to compare with.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again what was measured before.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure latency in pairs against a reference network.

    What is not given comes from the target, then from the defaults: onnxruntime, fp32, batch 1, one
    thread, tokens, 2 seconds, 2 %, LeViT-128S.
    """
    from levit_search.configuration import validated
    from levit_search.errors import TrialError
    from levit_search.latency import Probe
    from levit_search.latency.targets import Int8Config, read_latency
    from levit_search.progress import StepProgress

    options = {
        "target": target,
        "runtime": runtime,
        "precision": precision,
        "batch_size": int(batch_size) if batch_size and batch_size.isdigit() else batch_size,
        "threads": threads,
        "layout": layout,
        "seconds": seconds,
        "interval_percent": interval,
        "reference": reference,
    }
    config = read_latency({k: v for k, v in options.items() if v is not None}, "probe")
    if int8_format is not None:
        if config.precision != "int8":
            raise InputError("--int8-format: is for --precision int8")
        given = {**config.int8.model_dump(mode="json"), "format": int8_format}
        int8 = validated(Int8Config, given, "--int8-format")
        config = config.model_copy(update={"int8": int8})
    networks = [(name, _network(name)) for name in archs]
    names = {network.id: name for name, network in networks}
    with StepProgress() as shown:
        shown.begin(target, 1)
        shown.step("")
        with Probe(config, fresh=fresh, report=_named(shown.update, names)) as opened:
            found = opened.measure_all([network for _, network in networks])
    rows, failed = [], []
    for (name, network), result in zip(networks, found, strict=True):
        if isinstance(result, TrialError):
            failed.append(f"{name}: {result}")
        else:
            rows.append({"name": name, "id": network.id, **result.as_json()})
    if as_json:
        print_json(rows)
    elif rows:
        _print_measurements(rows, config)
    if failed:
        raise TrialError("\n".join(failed))


def _named(progress: "Progress", names: dict[str, str]) -> "Progress":
    """Progress with networks under the names that the user gave them."""

    def named(text: str, fraction: float | None) -> None:
        *words, last = text.split(" ")
        progress(" ".join([*words, names.get(last, last)]), fraction)

    return named


def _print_measurements(rows: list[dict[str, Any]], config: "LatencyConfig") -> None:
    described = config.reference
    reference = described if isinstance(described, str) else "reference"
    heads = ["network", "latency ms", "images/s", f"ratio to {reference}", "95 % interval"]
    table = figures_table("", [*heads, "p95 ms", "memory MB", "pairs", "seconds", "layout"])
    for row in rows:
        low, high = row["ratio_ci95"]
        memory = row["peak_memory_mb"]
        table.add_row(
            row["name"],
            f"{row['latency_ms']:.4g}",
            f"{row['throughput_ips']:.4g}",
            f"{row['ratio_to_reference']:.4f}",
            f"{low:.4f} to {high:.4f}{'' if row['converged'] else ' *'}",
            f"{row['latency_p95_ms']:.4g}",
            f"{memory:.4g}" if memory else "",
            str(row["pairs"]),
            "cached" if row["cached"] else f"{row['seconds']:.1f}",
            " ".join(filter(None, [row["layout"], row["int8_format"]])),
        )
    print_table(table)
    last = rows[-1]
    tell(
        f"{last['target']}: {last['device'].get('gpu') or last['device']['cpu']}, "
        f"{last['runtime']}, {last['precision']}, batch {last['batch_size']}, "
        f"{last['threads']} thread(s), {last['clock']} time"
    )
    if not all(row["converged"] for row in rows):
        tell(
            f"* the interval within this session is still wider than {config.interval_percent:g} % "
            "of the ratio; --seconds gives more"
        )
    if any(row["emulated"] for row in rows):
        tell("An emulator ran these: the times say nothing of the device that it plays.")


def targets(
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, max=3600, help="Wait so long for each.")
    ] = 20.0,
    as_json: Json = False,
) -> None:
    """Show where latency can be measured now, and why not elsewhere."""
    from levit_search.latency.discovery import discover
    from levit_search.latency.targets import known_names, read_targets
    from levit_search.progress import StepProgress

    named = read_targets()
    with StepProgress() as shown:

        def report(found: "DiscoveredTarget") -> None:
            shown.step(f"{found.name} {'reached' if found.reachable else 'not reached'}")

        shown.begin("targets", len(known_names(named)))
        shown.update("", 0.0)
        rows = discover(named, timeout, report)
    if as_json:
        print_json([row.as_json() for row in rows])
        return
    _print_targets(rows)


def _print_targets(rows: "list[DiscoveredTarget]") -> None:
    from rich.table import Table

    from levit_search.latency.targets import target_files

    table = Table(box=None, pad_edge=False)
    for head in ("target", "reachable", "device, or why not"):
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(row.name, "yes" if row.reachable else "no", "\n".join(_reached_lines(row)))
    print_table(table)
    tell()
    *others, last = [str(path) for path in target_files()]
    hint = (
        "`--target` and `latency: {target: ...}` also take ssh://[user@]host[:port] and "
        f"ray://RESOURCE. Names of your own are looked for in {', '.join(others)}, in {last} here "
        "and in one beside the space file; the last one that has a name counts."
    )
    tell(textwrap.fill(hint, 100, break_long_words=False, break_on_hyphens=False))


def _reached_lines(row: "DiscoveredTarget") -> list[str]:
    """What there is to say of a target, line by line."""
    lines = [row.address] if row.address is not None and row.address != row.name else []
    if row.device is not None:
        lines.append(_device(row.device) + (" (emulated)" if row.is_emulated else ""))
        versions = ", ".join(
            f"{name} {version}" for name, version in row.device["runtimes"].items()
        )
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


def _device(device: "Device") -> str:
    cpu = f"{device['cpu']}, {device['machine']}, {device['cores']} core(s)"
    if "gpu" not in device:
        return cpu
    memory = f"{device['gpu_memory_bytes'] / 1e9:.0f} GB"
    return f"{device['gpu']}, {memory}, CUDA {device['cuda']}, driver {device['driver']}; {cpu}"


_FORMATS = ("terminal", "svg", "png", "json")
_FORMAT_OF = {".svg": "svg", ".png": "png", ".json": "json", ".txt": "terminal", "": "terminal"}


def show(
    arch: Annotated[
        str, typer.Argument(metavar="ARCH", help="A published name, a YAML file or STUDY#TRIAL.")
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="terminal, svg, png or json [default: by the name of --out, else terminal].",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write to this file [default: stdout].")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the maps of these weights, too (safetensors); STUDY#TRIAL has its own.",
        ),
    ] = None,
) -> None:
    """Draw a network's blocks with their FLOPs and parameters.

    Where there are trained weights, SVG and PNG show the attention biases and the first layer's
    filters below the blocks. JSON has the figures of every block, and the biases.
    """
    from levit_search.drawing.listing import Listing

    if form is None:
        suffix = out.suffix.lower() if out is not None else ""
        if suffix not in _FORMAT_OF:
            raise InputError(
                f"--out {out}: no format is known by {suffix}; give --format {', '.join(_FORMATS)}"
            )
        form = _FORMAT_OF[suffix]
    elif form not in _FORMATS:
        raise UnknownNameError("--format", form, _FORMATS)
    if form == "terminal" and weights is not None:
        raise InputError("--weights: the terminal shows no maps; give --format svg, png or json")
    if form == "png" and out is None and sys.stdout.isatty():
        raise InputError("--format png: is nothing for a terminal; give --out FILE")
    network = architecture_of(arch)
    folder, is_trial, trial = arch.rpartition("#")
    title = Path(arch).stem if Path(arch).suffix in (".yaml", ".yml") else Path(arch).name
    if is_trial:
        title = f"trial {trial} of {Path(folder).resolve().name}"
    if form == "terminal":
        listing = Listing(network, title, _in_int8(Path(folder), trial) if is_trial else "")
        if out is None:
            print_table(listing)
        else:
            _write(listing.text(), out)
        return
    from levit_search.drawing.diagram import network_view

    is_given = weights is not None
    if weights is None and is_trial:
        weights = _trained(Path(folder), int(trial), network)
    drawn = network_view(network, title, weights)
    if is_given and not drawn.has_maps:
        say(f"levit-search: {arch} has neither attention biases nor filters over patches to draw")
    if form == "json":
        _write(json.dumps(drawn.as_json(), indent=2) + "\n", out)
        return
    from levit_search.drawing.svg import png

    _write(drawn.svg() if form == "svg" else png(drawn.svg()), out)


def _in_int8(folder: Path, trial: str) -> str:
    """What is known in int8 of a trial's network."""
    from levit_search.report.int8_figures import network_text
    from levit_search.study import Study

    return network_text(Study.open(folder).record(trial))


def _trained(folder: Path, trial: int, network: "Architecture") -> Path | None:
    """The weights that a study has of its trial's network."""
    from levit_search.study import Study

    study = Study.open(folder)
    path = study.weights(network.id)
    if not path.is_file():
        say(f"levit-search: {path}: no trained weights are there, so there are no maps of them")
        return None
    try:
        return study.sound_weights(trial, network)
    except InputError as error:
        say(f"levit-search: {error}. There are no maps of its weights.")
        return None


def _write(content: str | bytes, out: Path | None) -> None:
    from levit_search.escaping import encodable
    from levit_search.files import write_atomically

    if out is not None:
        with writing(out):
            write_atomically(out, content)
    else:  # a document says itself that it is in UTF-8
        raw = encodable(content).encode() if isinstance(content, str) else content
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()


def _network(text: str) -> "Architecture | Baseline":
    """What ARCH names: ``timm/NAME[@SIZE]``, or a network of ours, see :func:`architecture_of`."""
    if not text.startswith("timm/"):
        return architecture_of(text)
    from levit_search import baseline

    return baseline.load(text)


def architecture_of(text: str) -> "Architecture":
    """The network of ours that ARCH names: a published one, a YAML file or ``STUDY#TRIAL``.

    Raises:
        InputError: there is no such thing, or it is one of timm's.
    """
    from levit_search import architecture

    if text.startswith("timm/"):
        raise InputError(
            f"{text}: this command takes our own networks only; timm's can be counted and probed"
        )
    folder, is_trial, number = text.rpartition("#")
    if not is_trial:
        return architecture.load(text)
    from levit_search.study import Study

    network = Study.open(Path(folder)).record(number).architecture
    if network is None:
        raise InputError(f"{text}: this trial proposed no valid network")
    return network
