"""What a cached teacher costs, whether it teaches the same, and how fast training is beside timm's.

    python benchmarks/training.py                                   # all parts, 20 quiet minutes
    python benchmarks/training.py --parts epoch,data --json benchmarks/training.json
    python benchmarks/training.py --device cuda --parts epoch,data,whole --json training-cuda.json

``epoch``: an epoch without a teacher (the second head learns from the labels), with a teacher's
answers out of a full store, and with the teacher asked each time: ``regnety_160`` with random
weights against a LeViT of 0.7M parameters, 32 px. The last one and the filling of a store run on a
few batches, and all are told for an image. ``parity``: what is trained by replayed answers against
what is trained by the teacher itself, on digits. ``data``: views a second, ours against timm's
``create_loader`` over the same images. ``whole``: training of a LeViT of 0.25M parameters, ours
against timm's loop and loader.

All variants of a comparison run in turn within each round, and a ratio is the mean over rounds, in
logarithms, of what ran in one round, with its 95 % interval. Prints tables. ``--json FILE`` keeps
everything, and the parts that a file already has but that do not run now.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm_loop
import torch
from paired import difference, interleaved, quickest, ratio, say, timed
from teaching import SIZE, computed, described, epoch, levit, parity
from timm_loop import Feeding
from torch import nn
from training_shown import shown

from levit_search.batches import open_batches
from levit_search.data import Arrays, DataConfig, load
from levit_search.model import build
from levit_search.recipe import Recipe
from levit_search.study.folder import environment
from levit_search.train import device_of, seed_torch, top1_percent, train_network
from levit_search.train.optimization import precision_of

PARTS = ("epoch", "parity", "data", "whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help=", ".join(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of epoch and parity")
    parser.add_argument("--precision", default="auto", help="of epoch and whole, on both sides")
    parser.add_argument("--channels-last", action="store_true", help="likewise")
    parser.add_argument("--rounds", type=int, default=9, help="of epoch and data")
    parser.add_argument("--epoch-images", type=int, default=2560)
    parser.add_argument("--online-images", type=int, default=256, help="that the teacher is asked")
    parser.add_argument("--parity-images", type=int, default=1000)
    parser.add_argument("--data-images", type=int, default=12800)
    parser.add_argument("--workers", default="0,1,2,3", help="of timm's loader; the best counts")
    parser.add_argument("--whole-images", type=int, default=12800)
    parser.add_argument("--whole-epochs", type=int, default=5)
    parser.add_argument("--trial-images", type=int, default=6400, help="to find what runs best")
    parser.add_argument("--whole-threads", default="1,2", help="of training; the best one counts")
    parser.add_argument("--seeds", type=int, default=3, help="of whole")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    document: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        document = json.loads(options.json.read_text())
    run: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "epoch": epoch,
        "parity": parity,
        "data": data,
        "whole": whole,
    }
    for name in options.parts.split(","):
        say(name)
        start, known = time.perf_counter(), settings(options)
        found = run[name](options)
        seconds = round(time.perf_counter() - start, 1)
        document[name] = {"settings": known, "seconds": seconds, **found}
        if options.json is not None:
            options.json.write_text(json.dumps(document, indent=2) + "\n")
        print(shown(name, document[name]), flush=True)


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    given = {k: v for k, v in vars(options).items() if k not in ("json", "parts")}
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else None
    return {**given, "gpu": gpu, **environment(sys.argv)}


# --- data


def data(options: argparse.Namespace) -> dict[str, Any]:
    """Views a second, of ours and of timm's loader by workers."""
    config = DataConfig(name="fashion-mnist", image_size=SIZE, train_images=options.data_images)
    batches, split = open_batches(config), arrays(config, "train")
    recipe = Recipe(device=options.device)
    device = device_of(recipe)
    images = batches.steps(recipe) * recipe.batch_size
    passes = 5  # ours is too quick for one

    def ours(threads: int) -> float:
        torch.set_num_threads(threads)

        def through() -> None:
            for number in range(passes):
                for _ in batches.train(0, number, recipe, device):
                    pass

        return timed(through, device) / passes

    def theirs(loader: Any) -> float:
        torch.set_num_threads(1)

        def through() -> None:
            for _ in loader:
                pass

        return timed(through, device)

    variants: dict[str, Callable[[], float]] = {
        f"ours, {threads} thread(s)": lambda threads=threads: ours(threads) for threads in (1, 2)
    }
    known = timm_loop.colours(split.images)
    for workers in numbers(options.workers):
        for use_prefetcher in (True, False):
            feeding = Feeding(workers, use_prefetcher)
            loader = timm_loop.open_loader(split, known, recipe, feeding, True, batches.info.hflip)
            variants[f"timm, {feeding}"] = lambda loader=loader: theirs(loader)
    seconds = interleaved(variants, options.rounds)
    best = quickest({name: s for name, s in seconds.items() if name.startswith("timm")})
    rows = {
        name: {
            "images_per_second": images / float(np.median(s)),
            "to_best_of_timm": ratio(seconds[best], s),
        }
        for name, s in seconds.items()
    }
    on_one_thread = rows["ours, 1 thread(s)"]["to_best_of_timm"]
    return {
        "images": images,
        "batch_size": recipe.batch_size,
        "paths": rows,
        "best_of_timm": best,
        "ratio": on_one_thread,
        "at_least_5": on_one_thread["ratio"] >= 5,
    }


def arrays(config: DataConfig, name: str) -> Arrays:
    split = load(config)[name]  # type: ignore[index]
    assert isinstance(split, Arrays)
    return split


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


# --- whole


class Fed:
    """One data set, as either side takes it."""

    def __init__(self, config: DataConfig) -> None:
        self.batches = open_batches(config)
        self.train, self.val = arrays(config, "train"), arrays(config, "val")


class Trained(NamedTuple):
    """A whole run, from the network's first weights on."""

    seconds: float
    model: nn.Module


def whole(options: argparse.Namespace) -> dict[str, Any]:
    """Whole runs of training, ours and timm's, each as it runs best here."""
    all_images = DataConfig(name="fashion-mnist", image_size=SIZE, val_share=0.05)
    few, whole_set = (
        Fed(all_images.model_copy(update={"train_images": images}))
        for images in (options.trial_images, options.whole_images)
    )
    network = levit(1, SIZE, 3, (2, 48), (2, 80), heads=1)
    base = Recipe(epochs=options.whole_epochs, distillation="none", **computed(options))
    device = device_of(base)

    def ours(fed: Fed, threads: int, seed: int, until: int | None = None) -> Trained:
        recipe = base.model_copy(update={"threads": threads})
        start = time.perf_counter()
        model, _ = train_network(network, fed.batches, recipe, seed, None, until=until)
        return Trained(time.perf_counter() - start, model)

    def theirs(fed: Fed, feeding: Feeding, seed: int, until: int | None = None) -> Trained:
        start = time.perf_counter()
        seed_torch(seed, 3)
        model = build(network)
        hflip = fed.batches.info.hflip
        timm_loop.train(model, fed.train, fed.val, hflip, base, feeding, seed, until)
        return Trained(time.perf_counter() - start, model)

    threads = numbers(options.whole_threads)
    feedings = [
        Feeding(workers, threads=each) for workers in numbers(options.workers) for each in threads
    ]
    trial = {
        **{f"ours, {n} thread(s)": lambda n=n: ours(few, n, 0, until=1).seconds for n in threads},
        **{f"timm, {f}": lambda f=f: theirs(few, f, 0, until=1).seconds for f in feedings},
    }
    say("whole: which threads and workers")
    tried = interleaved(trial, 2)
    own_best, timm_best = (
        quickest({name: s for name, s in tried.items() if name.startswith(side)})
        for side in ("ours", "timm")
    )
    own_threads = next(n for n in threads if own_best == f"ours, {n} thread(s)")
    feeding = next(f for f in feedings if timm_best == f"timm, {f}")
    seconds: dict[str, list[float]] = {"ours": [], "timm": []}
    top1: dict[str, list[float]] = {"ours": [], "timm": []}
    for seed in range(options.seeds):
        say(f"whole: seed {seed}")
        sides: list[tuple[str, Callable[[], Trained]]] = [
            ("ours", lambda seed=seed: ours(whole_set, own_threads, seed)),
            ("timm", lambda seed=seed: theirs(whole_set, feeding, seed)),
        ]
        for side, train in sides if seed % 2 else reversed(sides):
            trained = train()
            seconds[side].append(trained.seconds)
            top1[side].append(top1_percent(trained.model, whole_set.batches, "test"))
    images = whole_set.batches.steps(base) * base.batch_size * base.epochs
    found = ratio(seconds["timm"], seconds["ours"])
    return {
        "network": described(network),
        "images": images,
        "precision": precision_of(base, device),
        "trial_seconds": {name: float(np.median(s)) for name, s in tried.items()},
        "settings_that_won": {"ours": own_best, "timm": timm_best},
        "images_per_second": {side: images / float(np.median(s)) for side, s in seconds.items()},
        "ratio": found,
        "at_least_1.5": found["ratio"] >= 1.5,
        "test_top1_percent": top1,
        "accuracy": difference(top1["ours"], top1["timm"]),
    }


if __name__ == "__main__":
    main()
