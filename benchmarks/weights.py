r"""What trained weights to start from are worth, and what is done to them on the way.

    python benchmarks/weights.py starts --set letters=DIR --set clipart=DIR \
        --source generated=STUDY --source both=STUDY     # beside fresh, fashion and timm
    python benchmarks/weights.py sizes                    # from 32 px to 48 px
    python benchmarks/weights.py slices                   # a part of a trained network
    python benchmarks/weights.py fidelity                 # slices of a supernet, trained on
    python benchmarks/weights.py teacher --set clipart=DIR --teacher lite0.safetensors
    python benchmarks/weights.py timm                     # all of timm's LeViTs from files
    python benchmarks/weights.py report                   # table.md, results.json

Each measurement is a line of ``PART.jsonl`` in the folder, written when it is done and not done
again; one that was made with other settings is refused. ``fashion`` and ``timm`` are LeViTs that
are trained here on Fashion-MNIST at 32 px, one for each seed, the latter in a file under timm's
names; ``sizes`` and ``slices`` begin with them, too. They, supernets and their checkpoints lie in
``--kept``, and an interrupted one goes on.
"""

import argparse
import functools
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from job_pool import Progress, carried_out, refuse_others, say
from short_schedule import ROOT, SPACE
from weights_shown import as_markdown, document_of, rows_of

from levit_search.architecture import Architecture, parse
from levit_search.data import DataConfig
from levit_search.errors import InputError, LevitSearchError, TrialError
from levit_search.files import user_cache, write_atomically, write_json
from levit_search.progress import no_progress
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.study import StudyConfig, read_config
from levit_search.study.folder import environment

if TYPE_CHECKING:
    from torch import Tensor

    from levit_search.batches import Batches
    from levit_search.model import Model, TrainedWeights

FOLDER = ROOT / "studies" / "weights"
ALONE = ROOT / "studies" / "supernet" / "alone.csv"

# The trained network, what starts from it on pictures (a network of spaces/photos), and a slice.
_SOURCE = {"layers": 2, "stages": [(1, 48, 3, 16), (2, 80, 5, 16), (2, 112, 7, 16)]}
_TARGET = {"layers": 3, "stages": [(1, 32, 2, 16), (2, 64, 4, 16), (2, 96, 6, 16)]}
_SLICE = {
    "layers": 2,
    "stages": [(1, 32, 2, 8), (1, 64, 4, 8), (1, 96, 6, 8)],
    "shrinks": [(2, 8), (4, 8)],
    "mlp_ratio": 1,
}

FASHION = DataConfig(name="fashion-mnist", image_size=32, val_share=0.05)
_LONG = Recipe(
    epochs=8, batch_size=128, lr=3e-3, warmup_epochs=0.5, crop="none", distillation="none"
)
_LONG_IMAGES = 10000
_SHORT = Recipe(batch_size=64, lr=1e-3, warmup_epochs=0.0, crop="none", distillation="none")
_SHORT_IMAGES = {"sizes": 2000, "slices": 4000}
EPOCHS = (0, 1, 3)
SIZE_ARMS = ("interpolated", "by_tokens", "fresh_biases")
SLICE_ARMS = ("fresh", "leading", "scale", "activation")
SLICE_LRS = (1e-3, 3e-3)
_CALIBRATED = 8  # batches for batch norm, or for the order by activations

_PICTURES = Recipe(
    batch_size=32,
    lr=2e-3,
    rand_augment="rand-m4-mstd0.5",
    hflip=False,
    distillation="none",
)
_VIEWS = 76_800  # of the longest training on pictures: 100 epochs of the letters
SHARES = (1.0, 0.25)
_WARMUP = 0.05  # of the epochs
_PIXELS = 64

FIDELITY_IMAGES = (20000, 8000)
FIDELITY_ARMS = ("finetuned", "alone")

KINDS = ("none", "soft", "hard")
TIMES = (1, 3, 10)
_TEACHER_EPOCHS = 5  # of the shortest training
_TEACHER_PIXELS = 112

TIMM_SIZES: tuple[int | tuple[int, int], ...] = (224, 160, (160, 224))


class Cell(NamedTuple):
    """One measurement."""

    part: str
    key: dict[str, Any]
    """What tells it from the others of its part."""
    settings: dict[str, Any]
    """What its figures depend on beside that, as JSON."""
    places: dict[str, str]
    """Paths that figures do not depend on, by what lies there."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=(*CELLS, "report"))
    named = {"action": "append", "default": [], "metavar": "NAME=PATH"}
    parser.add_argument("--set", help="a folder of pictures, of its data set", **named)
    parser.add_argument("--source", help="weights to start from, as train.weights has it", **named)
    parser.add_argument("--teacher", type=Path, help="weights of timm's tf_efficientnet_lite0")
    parser.add_argument("--only", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="worker processes of one thread each")
    parser.add_argument("--minutes", type=float, help="start nothing after that time")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--kept", type=Path, default=user_cache() / "weights-benchmark")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        failed = 0 if options.part == "report" else measure(options)
        document = document_of(options.folder)
        write_json(options.folder / "results.json", document)
        write_atomically(options.folder / "table.md", as_markdown(document))
        print(json.dumps(document, indent=2) if options.json else as_markdown(document))
        return failed
    except LevitSearchError as error:
        print(f"weights.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # what has ended is kept
        return 130


def measure(options: argparse.Namespace) -> int:
    """Measure what the folder lacks of a part; see :func:`measure_cells`."""
    return measure_cells(CELLS[options.part](options), measured, options)


def measure_cells(
    cells: Iterable[Cell], work: Callable[[Cell], dict[str, Any]], options: argparse.Namespace
) -> int:
    """Measure what the folder lacks of a part; returns 1 where something failed.

    Args:
        cells: all of the part.
        work: carries one out, in a worker.
        options: ``part``, ``folder``, ``only``, ``jobs`` and ``minutes``.

    Raises:
        InputError: a line there was made with other settings, or something is not there.
    """
    file = options.folder / f"{options.part}.jsonl"
    here = environment([Path(sys.argv[0]).name, *sys.argv[1:]])
    if (here["revision"] or "-dirty").endswith("-dirty"):
        say(f"revision {here['revision']}: not one that can be gone back to, and told as such")
    only = {name: _json(value) for name, value in _named(options.only, "--only").items()}
    cells = [
        cell
        for cell in json.loads(json.dumps(list(cells)))
        if all(cell[1].get(name) == value for name, value in only.items())
    ]
    cells = [Cell(*cell) for cell in cells]
    done = {_id(row["key"]): row["settings"] for row in rows_of(file)}
    for cell in cells:
        refuse_others(file, done.get(_id(cell.key), cell.settings), cell.settings)
    missing = [cell for cell in cells if _id(cell.key) not in done]
    progress = Progress(len(cells) - len(missing), len(cells))
    failed = 0
    for cell, found in carried_out(work, missing, options.jobs, options.minutes):
        name = ", ".join(f"{key} {value}" for key, value in cell.key.items())
        if isinstance(found, TrialError):
            failed = 1
            progress.step(f"{name}: {found}")
            continue
        told = {key: here[key] for key in ("started", "host", "cpu", "cores", "revision")}
        told["packages"] = {key: here["packages"][key] for key in ("torch", "timm", "onnxruntime")}
        append(file, {"key": cell.key, **found, "settings": cell.settings, "made": told})
        progress.step(f"{name}: {_in_short(found)}")
    return failed


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Add a line, whole or not at all, behind one that a kill has left unfinished."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as out:
        size = out.seek(0, 2)
        out.seek(max(0, size - 1))
        gap = b"" if out.read() in (b"", b"\n") else b"\n"
        out.write(gap + json.dumps(row).encode() + b"\n")


def _named(given: Sequence[str], option: str) -> dict[str, str]:
    found = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise InputError(f"{option} {text}: expected NAME=VALUE")
        found[name] = value
    return found


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _id(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _in_short(found: Mapping[str, Any]) -> str:
    figures = {key: value for key, value in found.items() if isinstance(value, float)}
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items())


# --- what there is to measure


def starts_cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Every source on every set of pictures, at the whole number of views and at a quarter."""
    targets, given = _named(options.set, "--set"), _named(options.source, "--source")
    if not targets:
        raise InputError("starts: needs pictures, such as --set letters=DIR")
    sources = [*_OWN, *(name for name in given if name not in _OWN)]
    settings = {"recipe": _dump(_PICTURES), "views": _VIEWS, "network": _TARGET, "size": _PIXELS}
    for seed, (name, root) in itertools.product(range(options.seeds), targets.items()):
        for source, share in itertools.product(sources, SHARES):
            key = {"target": name, "source": source, "share": share, "seed": seed}
            places = {"root": root, "weights": given.get(source, ""), "kept": str(options.kept)}
            yield Cell("starts", key, settings, places)


_OWN = ("fresh", "fashion", "timm")
"""Sources that need not be named; the latter two are trained here unless they are."""


def sizes_cells(options: argparse.Namespace) -> Iterator[Cell]:
    settings = {"source": _long(), "recipe": _dump(_SHORT), "images": _SHORT_IMAGES["sizes"]}
    for seed, arm, epochs in itertools.product(range(options.seeds), SIZE_ARMS, EPOCHS):
        key = {"arm": arm, "epochs": epochs, "seed": seed}
        yield Cell("sizes", key, {**settings, "size": 48}, {"kept": str(options.kept)})


def slices_cells(options: argparse.Namespace) -> Iterator[Cell]:
    settings = {"source": _long(), "recipe": _dump(_SHORT), "images": _SHORT_IMAGES["slices"]}
    settings["network"] = _SLICE
    for seed, arm, epochs in itertools.product(range(options.seeds), SLICE_ARMS, EPOCHS):
        for lr in SLICE_LRS if epochs else SLICE_LRS[:1]:
            key = {"arm": arm, "epochs": epochs, "lr": lr, "seed": seed}
            yield Cell("slices", key, settings, {"kept": str(options.kept)})


def fidelity_cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Network by network, which are in a shuffled order: the first ones are a fair sample."""
    for images, network in itertools.product(FIDELITY_IMAGES, _networks()):
        config = fidelity_config(images)
        settings = {
            "supernet": config.supernet.model_dump(mode="json"),
            "train": _dump(config.train),
            "data": config.data.model_dump(mode="json"),
        }
        for arm in FIDELITY_ARMS:
            key = {"network": network, "images": images, "arm": arm}
            yield Cell("fidelity", key, settings, {"kept": str(options.kept)})


def teacher_cells(options: argparse.Namespace) -> Iterator[Cell]:
    targets = _named(options.set, "--set")
    if not targets or options.teacher is None:
        raise InputError("teacher: needs pictures and weights: --set clipart=DIR --teacher FILE")
    if not options.teacher.is_file():
        raise InputError(f"--teacher {options.teacher}: no such file")
    settings = {"recipe": _dump(_PICTURES), "network": _TARGET, "size": _PIXELS}
    settings |= {"epochs": _TEACHER_EPOCHS, "teacher_size": _TEACHER_PIXELS}
    for kind, times in itertools.product(KINDS, TIMES):  # each kind asks the teacher anew
        for seed, (name, root) in itertools.product(range(options.seeds), targets.items()):
            key = {"target": name, "times": times, "distillation": kind, "seed": seed}
            yield Cell("teacher", key, settings, {"root": root, "weights": str(options.teacher)})


def timm_cells(_: argparse.Namespace) -> Iterator[Cell]:
    import timm

    for name in timm.list_models("levit_*"):
        yield Cell("timm", {"network": name}, {"sizes": TIMM_SIZES, "precision": "double"}, {})


CELLS: dict[str, Callable[[argparse.Namespace], Iterator[Cell]]] = {
    "starts": starts_cells,
    "sizes": sizes_cells,
    "slices": slices_cells,
    "fidelity": fidelity_cells,
    "teacher": teacher_cells,
    "timm": timm_cells,
}


def _dump(recipe: Recipe) -> dict[str, Any]:
    return recipe.decisive()


def _long() -> dict[str, Any]:
    """What the networks that are trained here depend on."""
    return {"recipe": _dump(_LONG), "network": _SOURCE, "images": _LONG_IMAGES}


def _networks() -> list[str]:
    """The ids of the networks whose long trainings are recorded, in the order of these."""
    import csv

    with ALONE.open(newline="") as text:
        return list(dict.fromkeys(row["network"] for row in csv.DictReader(text)))


def fidelity_config(images: int) -> StudyConfig:
    """The study of ``studies/supernet``, whose candidates are finetuned; a supernet over fewer
    images has as many steps."""
    most = max(FIDELITY_IMAGES)
    changes = {
        "accuracy": "finetuned",
        "data.train_images": images,
        "train.rungs": [],
        "train.distillation": "hard",
        "search.reduction": None,
    }
    config = read_config(SPACE, changes)
    epochs = round(config.train.epochs * most / images)
    supernet = config.supernet.model_copy(update={"epochs": epochs})
    return config.model_copy(update={"supernet": supernet})


def network_of(shape: Mapping[str, Any], size: int, channels: int, classes: int) -> Architecture:
    """One of the networks above, for images of a size."""
    shrinks = [{"num_heads": heads, "key_dim": key} for heads, key in shape.get("shrinks", ())]
    return parse(
        {
            "image_size": size,
            "in_channels": channels,
            "num_classes": classes,
            "stem": {"kind": "conv", "layers": shape["layers"]},
            "stages": [
                {
                    "depth": depth,
                    "embed_dim": width,
                    "num_heads": heads,
                    "key_dim": key,
                    "mlp_ratio": shape.get("mlp_ratio", 2),
                }
                for depth, width, heads, key in shape["stages"]
            ],
            **({"shrinks": shrinks} if shrinks else {}),
        }
    )


# --- in a worker


def measured(cell: Cell) -> dict[str, Any]:
    """Carry one measurement out."""
    begun = time.perf_counter()
    found = _MEASURES[cell.part](cell)
    return {**found, "cell_seconds": round(time.perf_counter() - begun, 2)}


@functools.cache
def opened(name: str, root: str | None, size: int, images: int | None) -> "Batches":
    """A data set, once a worker."""
    from levit_search.batches import open_batches

    base = FASHION if name == FASHION.name else DataConfig(name=name)
    changes = {"root": root, "image_size": size, "train_images": images}
    return open_batches(DataConfig(**{**base.model_dump(), **changes}))


def trained_source(kept: Path, seed: int) -> Path:
    """The folder of a LeViT that was trained long on Fashion-MNIST, now unless it is there."""
    from filelock import FileLock

    from levit_search.distill.single import train_single

    out = kept / f"fashion-{seed}"
    kept.mkdir(parents=True, exist_ok=True)
    with FileLock(kept / f"fashion-{seed}.lock"):
        if not (out / "training.json").exists():
            changes = {"data": FASHION.model_copy(update={"train_images": _LONG_IMAGES})}
            config = read_config(SPACE, {"search.seed": seed, "teacher": None})
            config = config.model_copy(update={**changes, "train": _LONG})
            network = network_of(_SOURCE, 32, 1, 10)
            train_single(network, config, True, out, None, say)
    return out


def trained_timm_file(kept: Path, seed: int) -> Path:
    """The same of another seed, in a file under timm's names and with nothing beside it."""
    from safetensors.torch import save

    from levit_search.model import build, load_weights, to_timm

    file = kept / f"timm-{seed}.safetensors"
    if not file.exists():
        model = build(network_of(_SOURCE, 32, 1, 10))
        load_weights(model, trained_source(kept, seed) / "model.safetensors")
        tensors = {name: each.contiguous() for name, each in to_timm(model).items()}
        write_atomically(file, save(tensors))
    return file


def starts(cell: Cell) -> dict[str, Any]:
    """Train a network of the space ``photos`` from one source."""
    from levit_search.pretrained import check_weights_fit, weights_digest
    from levit_search.train import train_network

    key, kept = cell.key, Path(cell.places["kept"])
    batches = opened("folder", cell.places["root"], _PIXELS, None)
    weights = cell.places["weights"] or "fresh"
    if weights == "fresh" and key["source"] == "fashion":
        weights = str(trained_source(kept, key["seed"]))
    elif weights == "fresh" and key["source"] == "timm":
        weights = str(trained_timm_file(kept, key["seed"] + 1))
    recipe = _for_views(batches, _VIEWS * key["share"], {"weights": weights})
    network = _of_pictures(batches)
    check_weights_fit(recipe, [network])
    model, training = train_network(network, batches, recipe, key["seed"], None)
    return {
        **_accuracies(model, batches, training),
        "started_from": training.started_from,
        "weights": weights,
        "weights_digest": None if weights == "fresh" else weights_digest(weights),
        "train_images": batches.size("train"),
        "steps": recipe.epochs * batches.steps(recipe),
        "curve": [point.val_top1_percent for point in training.curve],
    }


def _for_views(batches: "Batches", views: float, changes: Mapping[str, Any]) -> Recipe:
    epochs = max(1, round(views / batches.size("train")))
    schedule = {"epochs": epochs, "warmup_epochs": round(_WARMUP * epochs, 2)}
    return _PICTURES.model_copy(update={**schedule, **changes})


def _of_pictures(batches: "Batches") -> Architecture:
    return network_of(_TARGET, _PIXELS, batches.info.in_channels, batches.info.num_classes)


def _accuracies(model: Any, batches: "Batches", training: Any) -> dict[str, Any]:
    from levit_search.train import top1_percent

    return {
        "val_top1_percent": float(training.val_top1_percent),
        "test_top1_percent": float(top1_percent(model, batches, "test")),
        "test_images": batches.size("test"),
        "seconds": float(training.seconds),
    }


def _fitted(cell: Cell, model: "Model", batches: "Batches") -> dict[str, Any]:
    """What a network is worth after no, one or three epochs; after none also with batch-norm
    statistics calibrated."""
    from levit_search.supernet import calibrate
    from levit_search.train import fit, top1_percent

    epochs, seed = cell.key["epochs"], cell.key["seed"]
    if not epochs:
        as_it_is = float(top1_percent(model, batches, "test"))
        calibrate(model, _views(batches, seed))
        calibrated = float(top1_percent(model, batches, "test"))
        return {"test_top1_percent": as_it_is, "calibrated_top1_percent": calibrated}
    changes = {"epochs": epochs, "lr": cell.key.get("lr", _SHORT.lr)}
    recipe = _SHORT.model_copy(update=changes)
    return _accuracies(model, batches, fit(model, batches, recipe, seed))


def _views(batches: "Batches", seed: int) -> "list[Tensor]":
    """A few batches of training, on the CPU."""
    import torch

    views = batches.train(seed, 0, _SHORT, torch.device("cpu"))
    return [batch.images.clone() for batch in itertools.islice(views, _CALIBRATED)]


def sizes(cell: Cell) -> dict[str, Any]:
    """Go on with the trained network at 48 px."""
    import torch

    from levit_search.model import transfer

    batches = opened(FASHION.name, None, 48, _SHORT_IMAGES["sizes"])
    network, arm = network_of(_SOURCE, 48, 1, 10), cell.key["arm"]
    model, source = _begun(cell, network)
    fresh = {name: each.clone() for name, each in model.state_dict().items()}
    # In the order "leading" an offset is a number of tokens, in the others a share of the image.
    transfer(source, model, "leading" if arm == "by_tokens" else "scale")
    if arm == "fresh_biases":
        biases = {name: each for name, each in fresh.items() if name.endswith("attention_bias")}
        with torch.no_grad():
            model.load_state_dict(biases, strict=False)
    return _fitted(cell, model, batches)


def slices(cell: Cell) -> dict[str, Any]:
    """Train a part of the trained network, or a fresh one that is as large."""
    import torch
    from activations import by_activation

    from levit_search.model import transfer

    batches = opened(FASHION.name, None, 32, _SHORT_IMAGES["slices"])
    arm = cell.key["arm"]
    model, source = _begun(cell, network_of(_SLICE, 32, 1, 10))
    if arm != "fresh":
        if arm == "activation":
            ranks = by_activation(source, torch.cat(_views(batches, cell.key["seed"])))
            transfer(source, model, "scale", ranks)
        else:
            transfer(source, model, arm)
    return _fitted(cell, model, batches)


def _begun(cell: Cell, network: Architecture) -> "tuple[Model, TrainedWeights]":
    """A fresh network, and the trained one of the same seed."""
    from levit_search.pretrained import find_source
    from levit_search.train import fresh_network

    source = trained_source(Path(cell.places["kept"]), cell.key["seed"])
    return fresh_network(network, _SHORT, cell.key["seed"]), find_source(str(source), network)


@functools.cache
def _supernet(images: int, kept: str) -> tuple[Any, Any, Any, StudyConfig]:
    """A supernet, its data and its teacher's answers, once a worker."""
    from levit_search.batches import open_batches
    from levit_search.distill import fill, obtain_teacher
    from levit_search.supernet import obtain_supernet

    config = fidelity_config(images)
    assert config.teacher is not None and config.supernet.epochs is not None
    batches = open_batches(config.data)
    answers, _ = obtain_teacher(
        config.teacher, config.data, batches, config.train, None, config.search.seed, say=say
    )
    longer = answers.lasting(config.supernet.epochs)
    folder = Path(kept) / f"supernet-{images}"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"supernet over {images} images"
    found = obtain_supernet(
        config, batches, lambda: longer, folder, lambda point: say(f"{name}: {point}")
    )
    # Else the first candidate would pay for the answers of all.
    fill(answers, batches, config.train, config.search.seed, config.train.epochs, no_progress)
    return found, batches, answers, config


def fidelity(cell: Cell) -> dict[str, Any]:
    """Train a network's slice on for as long as ``accuracy: finetuned`` does, or a fresh network
    for as long by a schedule of its own."""
    import csv

    from levit_search.train import fit, train_network

    found, batches, answers, config = _supernet(cell.key["images"], cell.places["kept"])
    with ALONE.open(newline="") as text:
        rows = [row for row in csv.DictReader(text) if row["network"] == cell.key["network"]]
    network = parse(json.loads(rows[0]["architecture"]))
    seed, tuning = config.search.seed, config.supernet.finetuning(config.train)
    told: dict[str, Any] = {"supernet_seconds": float(found.card["seconds"])}
    begun = time.perf_counter()
    if cell.key["arm"] == "finetuned":
        model = found.extracted(network)
        training = fit(model, batches, tuning, seed, answers)
        seconds = time.perf_counter() - begun
        told["inherited_top1_percent"] = float(found.top1_percent(network))
    else:
        recipe = config.train.model_copy(update={"epochs": tuning.epochs})
        _, training = train_network(network, batches, recipe, seed, answers)
        seconds = time.perf_counter() - begun
    return {
        "val_top1_percent": float(training.val_top1_percent),
        "seconds": seconds,
        "epochs": tuning.epochs,
        "long_epochs": config.train.epochs,
        "long_top1_percent": [float(row["val_top1_percent"]) for row in rows],
        **told,
    }


def teacher(cell: Cell) -> dict[str, Any]:
    """Train a network without the adapted teacher, or with its answers."""
    from levit_search.distill import fill, obtain_teacher
    from levit_search.train import top1_percent, train_network

    key, kind = cell.key, cell.key["distillation"]
    batches = opened("folder", cell.places["root"], _PIXELS, None)
    epochs = _TEACHER_EPOCHS * key["times"]
    recipe = _PICTURES.model_copy(
        update={
            "epochs": epochs,
            "warmup_epochs": round(_WARMUP * epochs, 2),
            "distillation": kind,
        }
    )
    answers, told = None, {}
    if kind != "none":
        config = TeacherConfig(
            name="tf_efficientnet_lite0",
            weights=cell.places["weights"],
            adapt="head",
            image_size=_TEACHER_PIXELS,
            recipe=Recipe(rand_augment=_PICTURES.rand_augment, hflip=False, batch_size=32),
        )
        data = DataConfig(name="folder", root=cell.places["root"], image_size=_PIXELS)
        # One head for all seeds of the networks.
        answers, card = obtain_teacher(config, data, batches, recipe, None, 0, say=say)
        filled = fill(answers, batches, recipe, key["seed"], epochs, no_progress)
        told = {
            "teacher_id": card["id"],
            "teacher_val_top1_percent": float(card["val_top1_percent"]),
            "teacher_test_top1_percent": float(
                top1_percent(answers._build().eval(), batches, "test")
            ),
            "teacher_seconds": float(card["seconds"]),
            "fill_seconds": float(filled.seconds),
            "fill_views": filled.new_views,
        }
    model, training = train_network(_of_pictures(batches), batches, recipe, key["seed"], answers)
    steps = recipe.epochs * batches.steps(recipe)
    return {**_accuracies(model, batches, training), "steps": steps, **told}


def timm_file(cell: Cell) -> dict[str, Any]:
    """Write a network of timm's with random weights into a file, and start networks from it."""
    import timm
    import torch
    from safetensors.torch import save_file

    from levit_search.image_size import sides
    from levit_search.model import build, to_timm, transfer
    from levit_search.pretrained import find_source

    torch.manual_seed(0)
    theirs = timm.create_model(cell.key["network"]).eval()
    # Fresh ones answer next to nothing, whatever they are shown.
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if name.endswith("attention_biases"):
                tensor.normal_(std=0.5)
            elif tensor.ndim > 1:
                tensor.normal_(std=tensor[0].numel() ** -0.5)
            elif name.endswith(("running_var", "bn.weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.2)
    found: dict[str, Any] = {"params": sum(each.numel() for each in theirs.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "levit.safetensors"
        save_file(theirs.state_dict(), file)
        source = find_source(str(file))
        for size in cell.settings["sizes"]:
            shown = sides(size)
            description = {**source.architecture.model_dump(mode="json"), "image_size": size}
            model = build(parse(description)).eval()
            told = transfer(source, model)
            sized = timm.create_model(cell.key["network"], img_size=shown).eval()
            # Linear layers are 1x1 convolutions in levit_conv_*.
            shapes = {key: tensor.shape for key, tensor in sized.state_dict().items()}
            sized.load_state_dict({k: t.reshape(shapes[k]) for k, t in to_timm(model).items()})
            # In single precision random networks make much of the order of a sum.
            images = torch.randn(2, 3, *shown, dtype=torch.double)
            with torch.no_grad():
                ours, expected = model.double()(images), sized.double()(images)
            name = "x".join(map(str, dict.fromkeys(shown)))
            found[f"max_difference_{name}"] = float((ours - expected).abs().max())
            found[f"logit_sd_{name}"] = float((expected[0] - expected[1]).std())
            found[f"resized_{name}"] = len(told.resized)
            found[f"fresh_{name}"] = len(told.fresh)
            if size == 224:
                with torch.no_grad():
                    found["max_difference_file"] = float(
                        (ours - theirs.double()(images)).abs().max()
                    )
    return found


_MEASURES: dict[str, Callable[[Cell], dict[str, Any]]] = {
    "starts": starts,
    "sizes": sizes,
    "slices": slices,
    "fidelity": fidelity,
    "teacher": teacher,
    "timm": timm_file,
}


if __name__ == "__main__":
    sys.exit(main())
