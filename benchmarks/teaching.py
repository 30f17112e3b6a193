"""What a cached teacher costs, and whether it teaches the same: two parts of ``training.py``."""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from paired import interleaved, ratio, say, timed
from torch import nn

from levit_search.architecture import Architecture, parse
from levit_search.batches import Batches, open_batches
from levit_search.cost import cost
from levit_search.data import DataConfig
from levit_search.distill import TeacherAnswers, create_teacher
from levit_search.model import build
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.train import device_of, fit, seed_torch, train_network
from levit_search.train.objective import loss_of

SIZE = 32
TEACHER = "regnety_160"
# An epoch of a run that is longer, so that nobody judges a network after it.
LONGER = 9


def levit(in_channels: int, size: int, stem: int, *stages: tuple[int, int], heads: int) -> Any:
    """A LeViT of ``stages`` (depth, width) with keys of 16 and ``heads`` (1 or 2) at its end."""
    return parse(
        {
            "image_size": size,
            "in_channels": in_channels,
            "num_classes": 10,
            "stem": {"kind": "conv", "layers": stem},
            "stages": [
                {"depth": depth, "embed_dim": width, "num_heads": width // 16, "key_dim": 16}
                for depth, width in stages
            ],
            "shrinks": [{} for _ in stages[1:]],
            "distillation": heads == 2,
        }
    )


def computed(options: argparse.Namespace) -> dict[str, Any]:
    """The part of a recipe that says how numbers are computed."""
    return {name: getattr(options, name) for name in ("device", "precision", "channels_last")}


# --- epoch


def epoch(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds for an image by way of teaching, ratios to none, and what the store costs."""
    # Hardly any val, since an epoch's evaluation is the same for all.
    whole_set = DataConfig(name="fashion-mnist", image_size=SIZE, val_share=0.002)
    sizes = {"whole": options.epoch_images, "few": options.online_images}
    sets = {
        name: open_batches(whole_set.model_copy(update={"train_images": images}))
        for name, images in sizes.items()
    }
    network = levit(1, SIZE, 2, (2, 64), (2, 96), (1, 128), heads=2)
    base = Recipe(epochs=LONGER, threads=options.threads, **computed(options))
    device = device_of(base)
    torch.set_num_threads(options.threads)
    seed_torch(0)
    teacher = create_teacher(TeacherConfig(name=TEACHER), sets["whole"]).eval().to(device)

    def one(batches: Batches, recipe: Recipe, taught: TeacherAnswers | None) -> float:
        seed_torch(0)
        model = build(network)
        return timed(lambda: fit(model, batches, recipe, 0, taught, until=1), device)

    variants: dict[str, Callable[[], float]] = {}
    stores: dict[str, dict[str, Any]] = {}
    none = base.model_copy(update={"distillation": "none"})
    variants["none"] = lambda: one(sets["whole"], none, None)
    with own_cache():
        for kind in ("hard", "soft"):
            say(f"epoch: filling the store, {kind}")
            recipe = base.model_copy(update={"distillation": kind})
            cached = answers(lambda: teacher, True, sets["whole"], recipe)
            fill_epoch(cached, sets["whole"], recipe, 0)
            stores[kind] = {"bytes": cached.store(0).planned_bytes(1)}
            full = answers(not_asked, True, sets["whole"], recipe)
            variants[f"cached, {kind}"] = lambda r=recipe, t=full: one(sets["whole"], r, t)
        online = answers(lambda: teacher, False, sets["few"], base)
        variants["online, hard"] = lambda: one(sets["few"], base, online)
        empty = answers(lambda: teacher, True, sets["few"], base)
        seeds = iter(range(1, sys.maxsize))  # a seed that is new has nothing in its store
        variants["filling, hard"] = lambda: timed(
            lambda: fill_epoch(empty, sets["few"], base, next(seeds)), device
        )
        say("epoch: in turn")
        spent = interleaved(variants, options.rounds)
    few = ("online, hard", "filling, hard")
    images = {
        name: sets["few" if name in few else "whole"].steps(base) * base.batch_size
        for name in variants
    }
    image_ms = {name: 1000 * np.array(spent[name]) / images[name] for name in variants}
    rows = {
        name: {
            "image_ms": float(np.median(image_ms[name])),
            "images": images[name],
            "to_none": ratio(image_ms[name], image_ms["none"]),
        }
        for name in variants
    }
    for kind, store in stores.items():
        store["image_bytes"] = store["bytes"] / images["none"]
        # Filling, replaying and asking all grow with the number of epochs in the same way.
        gained_ms = image_ms["online, hard"] - image_ms[f"cached, {kind}"]
        store["pays_from_candidates"] = ratio(image_ms["filling, hard"], gained_ms)
    return {
        "network": described(network),
        "teacher": {"name": TEACHER, "params": sum(p.numel() for p in teacher.parameters())},
        "ways": rows,
        "stores": stores,
        "cached_at_most_1.15": {
            kind: rows[f"cached, {kind}"]["to_none"]["ratio"] <= 1.15 for kind in stores
        },
    }


def fill_epoch(cached: TeacherAnswers, batches: Batches, recipe: Recipe, seed: int) -> None:
    """Ask for the answers of one epoch."""
    for step, batch in enumerate(batches.train(seed, 0, recipe, device_of(recipe))):
        cached(seed, 0, step, batch.images)


def not_asked() -> nn.Module:
    raise AssertionError("the store is full, and the teacher was asked")


def described(network: Architecture) -> dict[str, Any]:
    found = cost(network)
    return {"id": network.id, "params": found.params, "flops": found.flops}


@contextmanager
def own_cache() -> Iterator[None]:
    """A user's cache that is empty and goes away."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": folder}),
    ):
        yield


def answers(
    network: Callable[[], nn.Module], is_cached: bool, batches: Batches, recipe: Recipe
) -> TeacherAnswers:
    """Those of a teacher of which only its network matters; all probabilities are kept."""
    config = TeacherConfig(cache=is_cached, top_k=batches.info.num_classes)
    return TeacherAnswers("benchmark", network, config, batches, recipe)


# --- parity


def parity(options: argparse.Namespace) -> dict[str, Any]:
    """How far training by replayed answers is from training by the teacher itself."""
    config = DataConfig(name="digits", image_size=16, train_images=options.parity_images)
    batches = open_batches(config)
    network = levit(1, 16, 2, (1, 32), (1, 48), heads=2)
    plain = Recipe(
        epochs=LONGER, batch_size=32, lr=5e-3, threads=options.threads, device=options.device
    )
    teacher = small_teacher(batches, plain)
    mixed = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25, "repeated_augmentation": 3}
    rows = []
    for kind in ("hard", "soft"):
        for views, changes in (("short", {}), ("mixed", mixed)):
            recipe = plain.model_copy(update={"distillation": kind, **changes})
            with own_cache():
                found = compared(network, batches, recipe, teacher)
            rows.append({"distillation": kind, "views": views, **found})
    return {
        "network": described(network),
        "rows": rows,
        "hard_is_bit_equal": all(
            row["equal_losses"] and row["equal_weights"] and row["answers_apart"] == 0
            for row in rows
            if row["distillation"] == "hard"
        ),
        "soft_within_0.001": all(
            max(row["answers_apart"], row["losses_apart"], row["epoch_losses_apart"]) <= 1e-3
            for row in rows
            if row["distillation"] == "soft"
        ),
    }


def small_teacher(batches: Batches, recipe: Recipe) -> nn.Module:
    """A network that has learnt enough for its answers to differ."""
    options: dict[str, int | float | bool | str] = {
        "depth": 4,
        "w0": 32,
        "wa": 24,
        "wm": 1.5,
        "group_size": 32,
        "stem_width": 32,
        "output_stride": 8,
    }
    seed_torch(1)
    teacher = create_teacher(TeacherConfig(name="regnety_002", options=options), batches)
    fit(teacher, batches, recipe.model_copy(update={"distillation": "none"}), 1, until=2)
    return teacher.eval()


def compared(
    network: Architecture, batches: Batches, recipe: Recipe, teacher: nn.Module, epochs: int = 2
) -> dict[str, Any]:
    """Two epochs by the teacher, while a store is filled, and replayed; then batch by batch."""
    ways = {
        "online": answers(lambda: teacher, False, batches, recipe),
        "filling": answers(lambda: teacher, True, batches, recipe),
        "replayed": answers(not_asked, True, batches, recipe),
    }
    losses, models = {}, {}
    for name, taught in ways.items():
        models[name], training = train_network(network, batches, recipe, 0, taught, until=epochs)
        losses[name] = [point.train_loss for point in training.curve]
    states = {name: model.state_dict() for name, model in models.items()}
    equal_weights = all(
        torch.equal(states["online"][key], states[name][key])
        for name in ("filling", "replayed")
        for key in states["online"]
    )
    answers_apart, losses_apart, classes = 0.0, 0.0, set()
    device = device_of(recipe)
    model = models["online"].train()
    for number in range(epochs):
        for step, batch in enumerate(batches.train(0, number, recipe, device)):
            online, replayed = (
                ways[name](0, number, step, batch.images) for name in ("online", "replayed")
            )
            answers_apart = max(answers_apart, float((online - replayed).abs().max()))
            with torch.no_grad():
                outputs = model(batch.images)
                first, second = (
                    float(loss_of(outputs, batch.targets, taught, recipe))
                    for taught in (online, replayed)
                )
            losses_apart = max(losses_apart, abs(first - second))
            classes |= set((online if online.ndim == 1 else online.argmax(1)).tolist())
    apart = np.abs(np.subtract(losses["online"], losses["replayed"]))
    return {
        "epoch_losses": losses,
        "classes_answered": len(classes),
        "equal_losses": losses["online"] == losses["filling"] == losses["replayed"],
        "equal_weights": equal_weights,
        "answers_apart": answers_apart,
        "losses_apart": losses_apart,
        "epoch_losses_apart": float(apart.max()),
    }
