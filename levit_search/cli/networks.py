"""Commands on networks: their cost, their speed, how they look, and how well they learn."""

import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from levit_search.cli.options import Json, Settings
from levit_search.cli.printing import figures_table, print_json, print_table, say, tell
from levit_search.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from levit_search.architecture import Architecture
    from levit_search.baseline import Baseline
    from levit_search.cost import Cost, LayerCost
    from levit_search.latency import LatencyConfig
    from levit_search.progress import Progress
    from levit_search.study import StudyConfig

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
    """Count parameters, FLOPs and activations; one multiply-add is one FLOP."""
    from levit_search.cost import Cost

    networks = [(name, _network(name)) for name in archs]
    counted = [(name, network.id, *_counted(network, by_layer)) for name, network in networks]
    if as_json:
        rows: list[dict[str, Any]] = []
        for name, identity, total, layers, uncounted in counted:
            row = {"name": name, "id": identity, **total._asdict(), **uncounted}
            if by_layer:
                row["layers"] = [layer._asdict() for layer in layers]
            rows.append(row)
        print_json(rows)
        return
    for name, identity, _, layers, _ in counted if by_layer else []:
        _print_tree(f"{name} ({identity})", layers)
        tell()
    table = figures_table(f"{_CONVENTION}.", ["network", "id", *Cost._fields])
    for name, identity, total, _, _ in counted:
        table.add_row(name, identity, *(f"{value:,}" for value in total))
    print_table(table)
    for name, _, _, _, uncounted in counted:
        if uncounted:
            tell(textwrap.fill(f"{name}: {_told(uncounted)}", 100, subsequent_indent="  "))


_CONVENTION = "One multiply-add is one FLOP"


def _counted(
    network: "Architecture | Baseline", by_layer: bool
) -> tuple["Cost", list["LayerCost"], dict[str, Any]]:
    """A network's totals, its layers if they are wanted, and what timm's totals do not hold."""
    from levit_search import cost
    from levit_search.architecture import Architecture

    if isinstance(network, Architecture):
        return cost.cost(network), cost.layers(network) if by_layer else [], {}
    from levit_search import baseline

    found = baseline.count(network)
    uncounted = {
        "unsupported": found.unsupported,
        "norm_flops_left_out": sum(found.left_out.values()),
    }
    return found.total, found.layers, uncounted


def _print_tree(title: str, layers: list["LayerCost"]) -> None:
    from levit_search.cost import Cost
    from levit_search.layer_tree import ASCII_GUIDES, LINE_GUIDES, lines, tree

    root = tree("total", layers)
    heads = [head for name in Cost._fields for head in (name, "%")]
    tell(f"{title}. {_CONVENTION}.")  # a table would wrap its title at its own width
    table = figures_table("", ["layer", *heads])
    guides = LINE_GUIDES if sys.stdout.encoding.lower().startswith("utf") else ASCII_GUIDES
    for name, figures in lines(root, guides):
        cells = [name]
        for value, whole in zip(figures, root.cost, strict=True):
            cells += [f"{value:,}", f"{100 * value / whole:.1f}" if whole else "-"]
        table.add_row(*cells)
    print_table(table)


def _told(uncounted: dict[str, Any]) -> str:
    times = [
        f"{operator.removeprefix('aten::')} {times}"
        for operator, times in uncounted["unsupported"].items()
    ]
    norms = f"{uncounted['norm_flops_left_out']:,} FLOPs of norms left out"
    return f"{norms}; operators without FLOPs, and how often: {', '.join(times) or 'none'}"


def probe(
    archs: Archs,
    target: Annotated[
        str, typer.Option(help="Where to measure: cpu, cuda, ssh://HOST ...; see `targets`.")
    ] = "cpu",
    runtime: Annotated[
        str | None, typer.Option(help="onnxruntime, openvino, torch or torch-compiled.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, or with torch fp16, bf16.")] = None,
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
    from levit_search.errors import TrialError
    from levit_search.latency import Probe
    from levit_search.latency.targets import read_latency
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
            row["layout"],
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
    """Draw a network's blocks with bars of their FLOPs and parameters.

    Where there are trained weights, SVG and PNG show the attention biases and the first layer's
    filters below the blocks. JSON has the figures of every block, and the biases.
    """
    from levit_search import diagram

    form = _format(form, out)
    if form == "terminal" and weights is not None:
        raise InputError("--weights: the terminal shows no maps; give --format svg, png or json")
    if form == "png" and out is None and sys.stdout.isatty():
        raise InputError("--format png: is nothing for a terminal; give --out FILE")
    network = _architecture(arch)
    title = _title(arch)
    if form == "terminal":
        listing = diagram.terminal(network, title)
        if out is None:
            print_table(listing)
        else:
            _write(listing.text(), out)
        return
    from levit_search.portrait import portrait

    drawn = portrait(network, title, weights or _trained(arch, network))
    if weights is not None and not drawn.has_maps:
        say(f"levit-search: {arch} has neither attention biases nor filters over patches to draw")
    if form == "json":
        _write(json.dumps(drawn.as_json(), indent=2) + "\n", out)
    elif form == "svg":
        _write(drawn.svg(), out)
    else:
        from levit_search import raster

        _write(raster.png(drawn.svg()), out)


def _format(form: str | None, out: Path | None) -> str:
    if form is not None:
        if form not in _FORMATS:
            raise UnknownNameError("--format", form, _FORMATS)
        return form
    suffix = out.suffix.lower() if out is not None else ""
    if suffix not in _FORMAT_OF:
        raise InputError(
            f"--out {out}: no format is known by {suffix}; give --format {', '.join(_FORMATS)}"
        )
    return _FORMAT_OF[suffix]


def _title(arch: str) -> str:
    """``LeViT-256``, ``mine`` of ``mine.yaml``, ``trial 12 of STUDY``."""
    folder, separator, trial = arch.rpartition("#")
    if separator:
        return f"trial {trial} of {Path(folder).resolve().name}"
    path = Path(arch)
    return path.stem if path.suffix in (".yaml", ".yml") else path.name


def _trained(arch: str, network: "Architecture") -> Path | None:
    """The weights that a study has of its trial's network."""
    from levit_search.study import Study

    folder, separator, trial = arch.rpartition("#")
    if not separator:
        return None
    study = Study.open(Path(folder))
    path = study.weights(network.id)
    if not path.is_file():
        say(f"levit-search: {path}: no trained weights are there, so there are no maps of them")
        return None
    try:
        return study.sound_weights(int(trial), network)
    except InputError as error:
        say(f"levit-search: {error}. There are no maps of its weights.")
        return None


def _write(content: str | bytes, out: Path | None) -> None:
    from levit_search.files import write_atomically
    from levit_search.printable import encodable

    if out is not None:
        try:
            write_atomically(out, content)
        except OSError as error:
            raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    else:  # a document says itself that it is in UTF-8
        raw = encodable(content).encode() if isinstance(content, str) else content
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()


# The embedded space whose recipe and teacher a data set's training starts from; those of
# levit-fashion serve for others, whatever their size.
_SPACE_OF = {"digits": "levit", "fashion-mnist": "levit-fashion"}


def given_size(text: str | None) -> int | list[int] | None:
    """``--image-size`` as a configuration has it."""
    from levit_search.image_size import plain_size, read_size

    return None if text is None else plain_size(read_size(text, "--image-size"))


def training_config(data: str, given: dict[str, Any], settings: list[str] | None) -> "StudyConfig":
    """The default recipe and teacher of a data set, changed by options and by ``--set``.

    Options that were not given are None; a teacher that is None was given as ``none``.
    """
    from levit_search.study import parse_settings, read_config, space_file

    changes: dict[str, Any] = {"start": []}
    if data not in _SPACE_OF:
        changes["data"] = {"name": data}
    changes |= {k: v for k, v in given.items() if v is not None or k == "teacher"}
    changes |= parse_settings(settings or [])
    config = read_config(space_file(_SPACE_OF.get(data, "levit-fashion")), changes)
    config.check_planned()
    return config


def train(
    arch: Annotated[
        str, typer.Argument(metavar="ARCH", help="A published name, a YAML file or STUDY#TRIAL.")
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="digits, fashion-mnist, folder (with --set data.root=DIR), or a name of timm's "
            "readers such as torch/cifar10.",
        ),
    ] = "digits",
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Pixels a side, or HxW such as 64x96 [default: the space file's or the data's].",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="short or levit, in place of the space file's train section."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs to train.")] = None,
    stop_after: Annotated[
        int | None,
        typer.Option(
            metavar="EPOCH", min=1, help="Stop here; the same command without it goes on."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Start from these: a file, the folder of an export or of --out, STUDY or "
            "STUDY#TRIAL, or timm's name of a LeViT, DeiT or ResNet [default: fresh].",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A timm network with the recipe short, or none [default: the space file's; none "
            "for other data]."
        ),
    ] = None,
    final: Annotated[bool, typer.Option("--final", help="Report the test split too.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep architecture, weights and checkpoint here."),
    ] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Train one network, its stem fitted to the images, with the data set's default recipe."""
    from levit_search.proportion import accuracy_text
    from levit_search.single import train_single

    network = _architecture(arch)
    given: dict[str, Any] = {
        "train": {"recipe": recipe} if recipe is not None else None,
        "train.epochs": epochs,
        "train.weights": weights,
        "data.image_size": given_size(image_size),
        "search.seed": seed,
    }
    if teacher is not None:
        given["teacher"] = None if teacher == "none" else {"name": teacher}
    elif data not in _SPACE_OF:  # one that is trained here is seldom better than its student
        given["teacher"] = None
    config = training_config(data, given, settings)
    try:
        result = train_single(network, config, final, out, stop_after, say)
    except KeyboardInterrupt:
        goes_on = (
            f"the same command goes on from the last checkpoint in {out}, if there is one"
            if out is not None
            else "nothing is kept; with --out DIR the same command would go on from a checkpoint"
        )
        say(f"\nInterrupted; {goes_on}.")
        raise typer.Exit(130) from None
    if as_json:
        print_json(result)
        return
    accuracies = [
        f"{split} {accuracy_text(result[f'{split}_top1_percent'], result[f'{split}_images'])}"
        for split in ("val", "test")[: 1 + final]
    ]
    tell(
        f"{arch} ({result['id']}) on {data}, {result['epochs']} epochs: top-1 "
        f"{', '.join(accuracies)}; {result['images_per_second']:.0f} images/s, "
        f"{result['seconds']:.0f} s"
    )


def _network(text: str) -> "Architecture | Baseline":
    """What ARCH names: ``timm/NAME`` or ``timm/NAME@SIZE``, or as :func:`_architecture` a network
    of ours.

    Raises:
        InputError: there is no such thing.
    """
    if not text.startswith("timm/"):
        return _architecture(text)
    from levit_search import baseline

    return baseline.load(text)


def _architecture(text: str) -> "Architecture":
    """The network of ours that ARCH names: a published one, a YAML file or ``STUDY#TRIAL``.

    Raises:
        InputError: there is no such thing, or it is one of timm's.
    """
    if text.startswith("timm/"):
        raise InputError(
            f"{text}: this command takes our own networks only; timm's can be counted and probed"
        )
    folder, separator, number = text.rpartition("#")
    if not separator:
        from levit_search import architecture

        return architecture.load(text)
    from levit_search.study import Study

    network = Study.open(Path(folder)).record(number).architecture
    if network is None:
        raise InputError(f"{text}: this trial proposed no valid network")
    return network
