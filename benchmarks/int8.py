"""What int8 costs trained LeViTs in accuracy, and what it gains in time and size.

    python benchmarks/int8.py train --jobs 2       # the networks, into --kept
    python benchmarks/int8.py quantize --jobs 2    # each by every method, and its accuracy
    python benchmarks/int8.py speed                # int8 graphs against their float graphs
    python benchmarks/int8.py repeat               # probes, in sessions of their own
    python benchmarks/int8.py report               # table.md, results.json

``train`` fits the 32 networks of ``studies/supernet`` as recorded there, and networks of four
sizes with three activations and three seeds on fewer images and without a teacher. ``quantize``
tells of each image of val whether the float graph and the int8 graph put it into its class.
``speed`` times every int8 graph in turn with the float graph of the same network: some of the 32,
and the published LeViTs at 224 px with random weights. ``repeat`` measures the same networks with
probes of both precisions. Each measurement is a line of ``PART.jsonl`` in the folder, written when
it is done and not done again; one that was made with other settings is refused.
"""

import argparse
import csv
import functools
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rank_study
import short_schedule
from int8_shown import as_markdown, document_of
from short_schedule import ROOT, SPACE
from weights import ALONE, Cell, measure_cells, network_of

from levit_search.architecture import Architecture, parse
from levit_search.cost import cost
from levit_search.errors import LevitSearchError, TrialError
from levit_search.files import user_cache, write_atomically, write_json
from levit_search.latency.targets import Int8Config, Int8Format
from levit_search.study import read_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from levit_search.batches import Batches

FOLDER = ROOT / "studies" / "int8"

# Three stages of one block each, with a head for every 16 channels.
WIDTHS = ((32, 48, 64), (32, 64, 96), (48, 64, 128), (48, 96, 144))
ACTIVATIONS = ("hardswish", "relu", "gelu")
SEEDS = (0, 1, 2)
_IMAGES = {"supernet": 20000, "activations": 10000}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=(*CELLS, "report"))
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes of one thread each")
    parser.add_argument("--minutes", type=float, help="start nothing after that time")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--kept", type=Path, default=user_cache() / "int8-benchmark")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        if options.part != "report":
            return measure_cells(CELLS[options.part](options), measured, options)
        document = document_of(options.folder, tuple(METHODS))
        write_json(options.folder / "results.json", document)
        write_atomically(options.folder / "table.md", as_markdown(document))
        print(json.dumps(document, indent=2) if options.json else as_markdown(document))
        return 0
    except LevitSearchError as error:
        print(f"int8.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # what has ended is kept
        return 130


# --- what there is to measure


def train_cells(options: argparse.Namespace) -> Iterator[Cell]:
    places = {"kept": str(options.kept)}
    for row in recorded():
        key = {"set": "supernet", "network": row["network"], "seed": 0}
        yield Cell("train", key, {"setup": setup_of("supernet").model_dump(mode="json")}, places)
    setup = setup_of("activations").model_dump(mode="json", exclude={"teacher", "teacher_seed"})
    for width, activation, seed in itertools.product(WIDTHS, ACTIVATIONS, SEEDS):
        network = with_activation(width, activation)
        key = {"set": "activations", "network": network.id, "seed": seed}
        yield Cell("train", key, {"setup": setup}, places)


def quantize_cells(options: argparse.Namespace) -> Iterator[Cell]:
    """What has been trained, network by network."""
    for cell in train_cells(options):
        if not weights_of(cell).exists():
            continue
        for name, (runtime, format, changes) in METHODS.items():
            if cell.key["set"] == "supernet" or name in _OF_ACTIVATIONS:
                settings = {
                    "runtime": runtime,
                    "format": format,
                    "int8": Int8Config(**changes).model_dump(mode="json", exclude={"format"}),
                }
                yield Cell("quantize", {**cell.key, "method": name}, settings, cell.places)


_NO_ATTENTION: dict[str, Any] = {"float_operators": ("elementwise",)}
_NO_ELEMENTWISE: dict[str, Any] = {"float_operators": ("attention",)}
METHODS: dict[str, tuple[str, Int8Format, dict[str, Any]]] = {
    "u8": ("onnxruntime", "u8", {}),
    "s8": ("onnxruntime", "s8", {}),
    "u8-reduced": ("onnxruntime", "u8-reduced", {}),
    "u8 percentile": ("onnxruntime", "u8", {"calibration": "percentile"}),
    "u8 512 images": ("onnxruntime", "u8", {"images": 512}),
    "u8 attention": ("onnxruntime", "u8", _NO_ATTENTION),
    "u8 elementwise": ("onnxruntime", "u8", _NO_ELEMENTWISE),
    "u8 everything": ("onnxruntime", "u8", {"float_operators": ()}),
    "nncf": ("openvino", "nncf", {}),
    "nncf-reduced": ("openvino", "nncf-reduced", {}),
    "nncf everything": ("openvino", "nncf", {"float_operators": ()}),
    "u8 in openvino": ("openvino", "u8", {}),
}
"""Runtime, format and further settings. ``attention``, ``elementwise`` and ``everything`` name what
is in int8 beside the rest."""
_OF_ACTIVATIONS = ("u8", "s8", "nncf", "u8 everything")


def speed_cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Twice, in probe sessions of their own, of which the second comes after all of the first."""
    for session, network, runtime in itertools.product(_SESSIONS, timed(), _RUNTIMES):
        key = {"network": network, "runtime": runtime, "session": session}
        formats = {
            name: {"format": format, **changes}
            for name, (of, format, changes) in METHODS.items()
            if of == runtime
            and not {"calibration", "images"} & changes.keys()
            and not (network in PUBLISHED and changes in (_NO_ATTENTION, _NO_ELEMENTWISE))
        }
        how = _TIMED if network in PUBLISHED else _TIMED_SMALL
        settings = {**how, "formats": formats}
        yield Cell("speed", key, settings, {"kept": str(options.kept)})


def repeat_cells(options: argparse.Namespace) -> Iterator[Cell]:
    for session, runtime, precision in itertools.product(_SESSIONS, _RUNTIMES, ("fp32", "int8")):
        for of in ("published", "supernet"):
            networks = [each for each in timed() if (each in PUBLISHED) == (of == "published")]
            key = {"set": of, "runtime": runtime, "precision": precision, "session": session}
            settings = {**_PROBED[of], "networks": networks, "interval_percent": 0}
            yield Cell("repeat", key, settings, {"kept": str(options.kept)})


def timed() -> list[str]:
    """The published networks, and a few of the recorded ones from few FLOPs to many."""
    by_flops = sorted(recorded(), key=lambda row: int(row["flops"]))
    middles = (np.arange(_TIMED_OF_RECORDED) + 0.5) * len(by_flops) / _TIMED_OF_RECORDED
    return [*PUBLISHED, *(by_flops[int(each)]["network"] for each in middles)]


PUBLISHED = ("LeViT-128S", "LeViT-128", "LeViT-192", "LeViT-256", "LeViT-384")
_RUNTIMES = ("onnxruntime", "openvino")
_SESSIONS = (0, 1)
_TIMED_OF_RECORDED = 6
# Seconds are for all graphs of a network together.
_TIMED = {"seconds": 10.0, "rounds": 6}
_TIMED_SMALL = {"seconds": 5.0, "rounds": 8}
_PROBED = {"published": {"seconds": 2.0, "rounds": 8}, "supernet": {"seconds": 1.0, "rounds": 8}}

CELLS: dict[str, Callable[[argparse.Namespace], Iterator[Cell]]] = {
    "train": train_cells,
    "quantize": quantize_cells,
    "speed": speed_cells,
    "repeat": repeat_cells,
}


def recorded() -> list[dict[str, str]]:
    """The recorded trainings with seed 0, in a shuffled order."""
    with ALONE.open(newline="") as text:
        return [row for row in csv.DictReader(text) if row["seed"] == "0"]


def with_activation(width: tuple[int, ...], activation: str) -> Architecture:
    shape = {"layers": 3, "stages": [(1, dim, dim // 16, 16) for dim in width]}
    plain = network_of(shape, 32, 1, 10).model_dump(mode="json")
    return parse({**plain, "activation": activation, "attention_activation": activation})


@functools.cache
def setup_of(name: str) -> short_schedule.Setup:
    """How the networks of a set are trained."""
    setup = rank_study.setup_of(read_config(SPACE), _IMAGES[name])
    if name == "supernet":
        return setup
    return setup.model_copy(
        update={"train": setup.train.model_copy(update={"distillation": "none"})}
    )


# --- in a worker


def measured(cell: Cell) -> dict[str, Any]:
    """Carry one measurement out."""
    begun = time.perf_counter()
    found = _MEASURES[cell.part](cell)
    return {**found, "cell_seconds": round(time.perf_counter() - begun, 2)}


@functools.cache
def networks() -> dict[str, Architecture]:
    """All that are trained, by their ids."""
    found = [parse(json.loads(row["architecture"])) for row in recorded()]
    found += [with_activation(*each) for each in itertools.product(WIDTHS, ACTIVATIONS)]
    return {network.id: network for network in found}


@functools.cache
def opened(name: str) -> "Batches":
    """The data of a set, once a worker."""
    from levit_search.batches import open_batches

    return open_batches(setup_of(name).data)


def weights_of(cell: Cell) -> Path:
    """Where the weights of a trained network lie."""
    key = cell.key
    return Path(cell.places["kept"]) / f"{key['set']}-{key['network']}-{key['seed']}.safetensors"


def train(cell: Cell) -> dict[str, Any]:
    """Train one network and keep its weights."""
    from levit_search.model import save_weights
    from levit_search.train import train_network

    name, seed = cell.key["set"], cell.key["seed"]
    network, setup, batches = networks()[cell.key["network"]], setup_of(name), opened(name)
    teacher, told = None, {}
    if name == "supernet":
        text = setup.model_dump_json()
        _, teacher, card = short_schedule.opened(text)
        short_schedule.fill_once(text, seed)
        (row,) = (each for each in recorded() if each["network"] == network.id)
        told = {
            "recorded_top1_percent": float(row["val_top1_percent"]),
            "recorded_seconds": float(row["seconds"]),
            "teacher": card["id"],
        }
    model, training = train_network(network, batches, setup.train, seed, teacher)
    weights_of(cell).parent.mkdir(parents=True, exist_ok=True)
    save_weights(model, weights_of(cell))
    price = cost(network)
    return {
        "val_top1_percent": float(training.val_top1_percent),
        **told,
        "seconds": float(training.seconds),
        "params": price.params,
        "flops": price.flops,
        "architecture": network.model_dump(mode="json"),
    }


def quantize(cell: Cell) -> dict[str, Any]:
    """Quantize one network by one method: the accuracies of both graphs on val in one runtime, the
    images that either alone gets right, and the files' sizes."""
    from levit_search.model.quantization import calibration_images, quantize

    name, settings = cell.key["set"], cell.settings
    batches, config = opened(name), Int8Config(**settings["int8"])
    float_graph = float_graph_of(cell)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "int8.onnx"
        begun = time.perf_counter()
        images = calibration_images(batches, config.images)
        told = quantize(float_graph, graph, images, config, settings["format"])
        seconds = time.perf_counter() - begun
        in_int8 = is_right(graph, settings["runtime"], batches)
    in_float = float_is_right(float_graph, settings["runtime"], name)
    return {
        "val_top1_percent": 100 * float(in_int8.mean()),
        "float_top1_percent": 100 * float(in_float.mean()),
        "val_images": len(in_int8),
        "lost": int((in_float & ~in_int8).sum()),
        "gained": int((in_int8 & ~in_float).sum()),
        "quantize_seconds": round(seconds, 3),
        "bytes": told.bytes,
        "float_bytes": float_graph.stat().st_size,
        "calibrated_on": told.images,
        "quantized": dict(told.quantized),
        "kept": dict(told.kept),
        "left": dict(told.left),
        "versions": versions(),
    }


def float_graph_of(cell: Cell) -> Path:
    """The ONNX file of a trained network for any number of images, beside its weights."""
    from levit_search.model import build, export_onnx, load_weights

    file = weights_of(cell).with_suffix(".onnx")
    if not file.exists():
        model = build(networks()[cell.key["network"]])
        load_weights(model, weights_of(cell))
        partial = file.with_suffix(f".{os.getpid()}")
        export_onnx(model, partial, None)
        partial.replace(file)
    return file


@functools.lru_cache(maxsize=4)
def float_is_right(graph: Path, runtime: str, name: str) -> "NDArray[np.bool_]":
    return is_right(graph, runtime, opened(name))


def is_right(graph: Path, runtime: str, batches: "Batches") -> "NDArray[np.bool_]":
    """Which images of val a graph puts into their class."""
    import torch

    from levit_search.model.quantization import OnnxNetwork

    network = OnnxNetwork(graph, runtime)
    parts = batches.evaluation("val", 256, torch.device("cpu"))
    return np.concatenate(
        [(network(images).argmax(1) == labels).numpy() for images, labels in parts]
    )


def speed(cell: Cell) -> dict[str, Any]:
    """Time the int8 graphs of a network, and a copy of its float graph, against its float graph."""
    from levit_search.latency import LatencyConfig, Probe
    from levit_search.model.quantization import quantize

    settings = cell.settings
    config = LatencyConfig(
        runtime=cell.key["runtime"],
        seconds=settings["seconds"],
        rounds=settings["rounds"],
        interval_percent=0,
    )
    with tempfile.TemporaryDirectory() as folder, Probe(config) as probe:
        float_graph, images = graph_to_time(cell, Path(folder))
        graphs = {"float": Path(folder) / "copy.onnx"}
        shutil.copyfile(float_graph, graphs["float"])
        for method, changes in settings["formats"].items():
            graphs[method] = Path(folder) / f"int8-{len(graphs)}.onnx"
            asked = Int8Config(**changes)
            quantize(float_graph, graphs[method], images, asked, changes["format"])
        found = probe.time_graphs(list(graphs.values()), float_graph)
        return {
            "float_ms": found[0].reference_ms,
            "saturates": probe.saturates(),
            "clock": found[0].clock,
            "rounds": found[0].rounds,
            "float_bytes": float_graph.stat().st_size,
            "graphs": {
                method: {
                    "ratio": each.ratio_to_reference,
                    "low": each.ratio_ci95[0],
                    "high": each.ratio_ci95[1],
                    "bytes": graphs[method].stat().st_size,
                }
                for method, each in zip(graphs, found, strict=True)
            },
            "versions": versions(),
        }


def graph_to_time(cell: Cell, folder: Path) -> "tuple[Path, NDArray[np.float32]]":
    """A network's float graph for one image, and images to calibrate on: of a published one with
    random weights and on random numbers."""
    import torch

    from levit_search.architecture import published
    from levit_search.model import build, export_onnx, load_weights
    from levit_search.model.quantization import calibration_images

    name, path = cell.key["network"], folder / "float.onnx"
    if name in PUBLISHED:
        torch.manual_seed(0)
        export_onnx(build(published(name)), path, 1)
        rng = np.random.default_rng(0)
        return path, rng.standard_normal((4, 3, 224, 224), dtype=np.float32)
    model = build(networks()[name])
    trained = Cell("train", {"set": "supernet", "network": name, "seed": 0}, {}, cell.places)
    load_weights(model, weights_of(trained))
    export_onnx(model, path, 1)
    return path, calibration_images(opened("supernet"), 32)


def repeat(cell: Cell) -> dict[str, Any]:
    """Measure networks together with a probe session that knows nothing of earlier ones."""
    from levit_search.architecture import published
    from levit_search.latency import LatencyConfig, Probe
    from levit_search.latency.cache import Cache

    key, settings = cell.key, cell.settings
    names = settings["networks"]
    several = [published(name) if name in PUBLISHED else networks()[name] for name in names]
    reference = read_config(SPACE).latency.reference if key["set"] == "supernet" else "LeViT-128S"
    config = LatencyConfig(
        runtime=key["runtime"],
        precision=key["precision"],
        reference=reference,
        **{name: settings[name] for name in ("seconds", "rounds", "interval_percent")},
    )
    told: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        Probe(config, fresh=True, cache=Cache(Path(folder))) as probe,
    ):
        if key["precision"] == "int8":
            told = {"format": probe.settle_int8(several[0]), "saturates": probe.saturates()}
        found = probe.measure_all(several)
    for each in found:
        if isinstance(each, TrialError):
            raise each
    return {
        **told,
        "ratios": {
            name: [each.ratio_to_reference, *each.ratio_ci95]
            for name, each in zip(names, found, strict=True)
        },
        "ms": {name: each.latency_ms for name, each in zip(names, found, strict=True)},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Those of what quantizes and of what runs int8 graphs."""
    return {name: metadata.version(name) for name in ("onnxruntime", "openvino", "nncf")}


_MEASURES: dict[str, Callable[[Cell], dict[str, Any]]] = {
    "train": train,
    "quantize": quantize,
    "speed": speed,
    "repeat": repeat,
}


if __name__ == "__main__":
    sys.exit(main())
