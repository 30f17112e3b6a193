"""``benchmarks/training.py``: that both sides see the same, and that ratios are what they say."""

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from levit_search.batches import open_batches
from levit_search.data import Arrays, DataConfig, load
from levit_search.model import build
from levit_search.recipe import Recipe
from levit_search.train import seed_torch

DIGITS = DataConfig(name="digits", image_size=16, train_images=160)
RECIPE = Recipe(batch_size=32, epochs=2, device="cpu", distillation="none")


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield


@pytest.fixture(scope="module")
def teaching(scripts: None) -> Any:
    return importlib.import_module("teaching")


@pytest.fixture(scope="module")
def paired(scripts: None) -> Any:
    return importlib.import_module("paired")


@pytest.fixture(scope="module")
def timm_loop(scripts: None) -> Any:
    return importlib.import_module("timm_loop")


@pytest.fixture(scope="module")
def digits() -> dict[str, Arrays]:
    splits = load(DIGITS)
    assert all(isinstance(split, Arrays) for split in splits.values())
    return splits  # type: ignore[return-value]


@pytest.mark.slow
def test_replayed_answers_train_the_same(teaching):
    options = argparse.Namespace(parity_images=320, threads=1, device="cpu")
    found = teaching.parity(options)
    assert found["hard_is_bit_equal"]
    assert found["soft_within_0.001"]
    assert {(row["distillation"], row["views"]) for row in found["rows"]} == {
        (kind, views) for kind in ("hard", "soft") for views in ("short", "mixed")
    }
    assert all(row["classes_answered"] > 1 for row in found["rows"])


def test_variants_run_in_turn_and_a_first_round_does_not_count(paired):
    ran: list[str] = []

    def variant(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    found = paired.interleaved({"a": lambda: variant("a"), "b": lambda: variant("b")}, 2)
    assert ran == ["b", "a", "a", "b", "b", "a"]
    assert found == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_a_ratio_is_the_geometric_mean_over_rounds_within_its_interval(paired):
    found = paired.ratio([2.0, 4.0, 9.0], [1.0, 1.0, 9.0])
    assert found["ratio"] == pytest.approx(2.0)
    assert found["ci95"][0] <= 2.0 <= found["ci95"][1]
    same = paired.ratio([1.0, 5.0], [2.0, 10.0])
    assert same["ratio"] == pytest.approx(0.5)
    assert same["ci95"] == pytest.approx([0.5, 0.5])


def test_a_difference_of_means_is_told_from_noise(paired):
    assert paired.difference([90.0, 91.0, 92.0], [90.5, 91.5, 91.0])["within_noise"]
    assert not paired.difference([90.0, 90.1, 90.2], [80.0, 80.1, 80.2])["within_noise"]
    assert paired.difference([90.0], [80.0])["within_noise"] is None


@pytest.mark.parametrize("use_prefetcher", [True, False])
def test_timm_evaluates_on_the_same_images(timm_loop, digits, use_prefetcher):
    loader = timm_loop.open_loader(
        digits["val"],
        timm_loop.colours(digits["train"].images),
        RECIPE,
        timm_loop.Feeding(0, use_prefetcher),
        is_training=False,
        hflip=False,
    )
    own = open_batches(DIGITS).evaluation("val", 2 * RECIPE.batch_size, torch.device("cpu"))
    for (images, labels), (own_images, own_labels) in zip(loader, own, strict=True):
        assert torch.equal(labels, own_labels)
        torch.testing.assert_close(images, own_images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("use_prefetcher", [True, False])
def test_timm_trains_on_views_of_the_same_kind(timm_loop, digits, use_prefetcher):
    """Each of timm's views is one that the shift of ours makes of an image of its class."""
    loader = timm_loop.open_loader(
        digits["train"],
        timm_loop.colours(digits["train"].images),
        RECIPE,
        timm_loop.Feeding(0, use_prefetcher),
        is_training=True,
        hflip=False,
    )
    batches = open_batches(DIGITS)
    assert len(loader) == batches.steps(RECIPE)
    images, labels = next(iter(loader))
    known = timm_loop.colours(digits["train"].images)
    pixels = (images * known.std[0] + known.mean[0]).mul(255).round().to(torch.uint8).numpy()
    for view, label in zip(pixels[:4], labels[:4].tolist(), strict=True):
        of_class = digits["train"].images[digits["train"].labels == label]
        padded = np.pad(of_class, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
        places = np.lib.stride_tricks.sliding_window_view(padded, (16, 16), axis=(2, 3))
        assert (places == view[:, None, None]).all(axis=(1, 4, 5)).any()


def test_timms_loop_trains(teaching, timm_loop, digits):
    network = teaching.levit(1, 16, 2, (1, 32), (1, 48), heads=1)
    seed_torch(0)
    model = build(network)
    found = timm_loop.train(
        model, digits["train"], digits["val"], False, RECIPE, timm_loop.Feeding(0), seed=0
    )
    assert len(found.epoch_seconds) == RECIPE.epochs
    assert sum(found.epoch_seconds) == pytest.approx(found.seconds)
    assert found.val_top1_percent > 15
