"""What accuracies say of a search, by simulation."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import levit_search as ls
from levit_search import architecture
from levit_search.batches import open_batches
from levit_search.search.evaluate import described_data
from levit_search.significance import (
    Verdict,
    judged,
    needed_right,
    told_apart,
    wilson_percent,
)
from levit_search.study import Record, StudyConfig
from tests.networks import tiny_description, tiny_space

IMAGES = 400
DATA: dict[str, Any] = {
    "id": "images",
    "train_images": 1200,
    "val_images": IMAGES,
    "test_images": 400,
    "num_classes": 10,
    "guess_percent": 10.0,
    "mirrored": True,
}


@pytest.fixture(scope="module")
def config() -> StudyConfig:
    return ls.read_space(tiny_space())


def record(trial: int, percent: float | None, **changes: Any) -> Record:
    """A network of its own, evaluated to its end."""
    stage = {"depth": 1 + trial, "embed_dim": 16, "num_heads": 2, "key_dim": 8}
    values = {"flops": 1e6 + trial} | ({} if percent is None else {"top1_percent": percent})
    made = Record(
        trial=trial,
        state="complete",
        architecture=architecture.parse(tiny_description(stages=[stage])),
        values=values,
        reason=None,
        reused_from=None,
        seconds=1.0,
        evaluation={"values": values},
    )
    return replace(made, **changes)


def judge(config: StudyConfig, *percents: float, **changes: Any) -> Verdict:
    records = [record(trial, percent) for trial, percent in enumerate(percents)]
    return judged(records, {"data": {**DATA, **changes}}, config)


def test_a_search_that_guesses_is_told_first_of_all_with_what_to_try(config: StudyConfig) -> None:
    found = judge(config, 9.0, 12.5, 10.0)
    assert found.kind == "guessing"
    needed = needed_right(IMAGES, 10.0, 3)
    assert found.needed_percent == 100 * (needed or 0) / IMAGES
    low, high = wilson_percent(12.5, IMAGES)
    assert f"the best of 3 networks has 12.50 % ({low:.2f} to {high:.2f} %)" in found.text
    assert "10.00 %" in found.text
    advice = "\n".join(found.advice)
    steps = 1200 // config.train.batch_size
    assert f"{steps} steps" in advice
    for key in (
        f"train.epochs={math.ceil(2000 / steps)}",
        "train.donor_weights",
        "train.hflip=false",
        "data.image_size",
    ):
        assert key in advice
    assert "hflip" not in "\n".join(judge(config, 9.0, mirrored=False).advice)


def test_a_val_of_a_few_images_says_that_it_tells_nothing(config: StudyConfig) -> None:
    found = judge(config, 100.0, val_images=2, guess_percent=50.0)
    assert (found.kind, found.needed_percent) == ("guessing", None)
    assert "not even 100 %" in found.text
    assert "data.val_share" in found.advice[0]


def test_the_largest_class_alone_is_no_accuracy(config: StudyConfig) -> None:
    assert judge(config, 80.0, 60.0, guess_percent=80.0).kind == "guessing"
    assert judge(config, 80.0, 60.0, guess_percent=50.0).kind == "better_than_guessing"


def test_networks_that_were_stopped_or_failed_count_among_those_chosen_from(
    config: StudyConfig,
) -> None:
    rungs = ({"epoch": 1, "top1_percent": 9.0, "goes_on": False},)
    others = [record(number, None, state="pruned", rungs=rungs) for number in range(1, 20)]
    others += [record(number, None, state="failed") for number in range(20, 40)]
    others += [record(40, None, state="pruned", reason="flops over the limit")]
    others += [record(41, 15.5, reused_from=0, architecture=others[0].architecture)]
    percent = 100 * (needed_right(IMAGES, 10.0, 1) or 0) / IMAGES
    attributes = {"data": DATA}
    assert judged([record(0, percent)], attributes, config).kind == "better_than_guessing"
    found = judged([record(0, percent), *others], attributes, config)
    assert (found.kind, found.networks, found.compared) == ("guessing", 40, 1)


def test_equal_accuracies_make_a_front_of_cost_alone(config: StudyConfig) -> None:
    found = judge(config, 90.0, 91.0, 89.0)
    assert found.kind == "cost_alone"
    assert "400 images of val do not tell" in found.text
    assert "(89.00 to 91.00 %)" in found.text and "cost alone" in found.text
    assert [found.by_trial[trial].vs_best for trial in range(3)] == ["same", "best", "same"]
    assert judge(config, 90.0).kind == "better_than_guessing", "one network has no front of many"


def test_what_is_told_apart_is_marked_so(config: StudyConfig) -> None:
    found = judge(config, 70.0, 90.0, 90.0, 88.0)
    assert (found.kind, found.text) == ("better_than_guessing", "")
    standings = [found.by_trial[trial].vs_best for trial in range(4)]
    assert standings == ["lower", "best", "same", "same"]
    assert "4 networks" in found.legend()


def test_cost_alone_means_that_no_pair_of_networks_is_told_apart(config: StudyConfig) -> None:
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(300):
        images = int(rng.choice([20, 100, 1_000]))
        count = int(rng.integers(2, 6))
        right = rng.binomial(images, np.clip(0.9 + rng.normal(0, 0.04, count), 0, 1))
        percents = sorted((100 * right / images).tolist())
        pairs = itertools.combinations(percents, 2)
        apart = any(told_apart(high, low, images, count) for low, high in pairs)
        kind = judge(config, *percents, val_images=images).kind
        assert (kind == "cost_alone") == (not apart)
        kinds.add(kind)
    assert kinds == {"cost_alone", "better_than_guessing"}


def test_inherited_accuracies_are_known_as_well_as_their_images_allow(config: StudyConfig) -> None:
    inherited = {"top1_percent": 60.0, "top1_inherited_percent": 60.0, "flops": 1e6}
    records = [record(trial, None, values=inherited) for trial in range(3)]
    attributes = {"data": {**DATA, "inherited_images": 100}}
    found = judged(records, attributes, config)
    assert (found.compared, found.kind) == (3, "cost_alone")
    accuracy = found.by_trial[1]
    assert (accuracy.low_percent, accuracy.high_percent) == wilson_percent(60.0, 100)
    trained = record(3, 80.0, evaluation={"verified": True})
    found = judged([*records, trained], attributes, config)
    assert found.best is not None
    assert (found.compared, found.best.images, found.networks) == (1, IMAGES, 4)
    assert found.by_trial[1].vs_best is None, "an inherited accuracy is no rival of a trained one"


@pytest.mark.parametrize("attributes", [{}, {"data": {}}, {"data": {"id": "old"}}])
def test_studies_that_did_not_note_their_images_have_no_intervals(
    attributes: dict[str, Any], config: StudyConfig
) -> None:
    found = judged([record(0, 50.0)], attributes, config)
    assert (found.kind, found.by_trial, found.legend()) == ("unknown", {}, "")
    assert "release" in found.text


def pictures(root: Path) -> None:
    """Two classes, red and green squares, three to one, each of another shade."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 20)):
        for place in range(count):
            name = "red" if place % 4 else "green"
            pixels = rng.integers(0, 50, (12, 12, 3), dtype=np.uint8)
            pixels[..., 0 if name == "red" else 1] += 200
            path = root / split / name / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [True, False])
def test_what_accuracies_are_measured_on_changes_with_each_image_that_a_search_sees(
    in_memory: bool, tmp_path: Path
) -> None:
    pictures(tmp_path)
    data = {"name": "folder", "root": str(tmp_path), "image_size": 12, "in_memory": in_memory}
    config = ls.read_space(tiny_space(data=data))
    batches = open_batches(config.data)
    before = described_data(batches, config)
    counts = {"train_images": 32, "val_images": 8, "test_images": 20, "num_classes": 2}
    assert {name: before[name] for name in counts} == counts
    assert before["guess_percent"] == 75.0
    assert before["mirrored"] is batches.info.hflip
    assert np.bincount(batches.labels("val")).tolist() == [2, 6]
    assert described_data(open_batches(config.data), config) == before
    ids = {before["id"]}
    for path in sorted((tmp_path / "train").rglob("*.png")):  # of train and of val
        kept = path.read_bytes()
        Image.new("RGB", (12, 12), (0, 0, 250)).save(path)
        ids.add(described_data(open_batches(config.data), config)["id"])
        path.write_bytes(kept)
    assert len(ids) == 41
    assert described_data(open_batches(config.data), config) == before


def test_a_supernet_tells_on_how_many_images_it_asks(tmp_path: Path) -> None:
    for asked, expected in ((100, 100), (10_000, 288), (None, 288)):
        inheriting = ls.read_space(
            tiny_space(accuracy="supernet", supernet={"val_images": asked}, train={"epochs": 1})
        )
        found = described_data(open_batches(inheriting.data), inheriting)
        assert (found["inherited_images"], found["val_images"]) == (expected, 288)


def test_a_search_without_accuracies_has_nothing_to_judge(config: StudyConfig) -> None:
    untrained = ls.read_space(tiny_space(objectives=["params", "flops"]))
    assert judged([record(0, None)], {}, untrained) == Verdict("unknown")
    assert judged([], {"data": DATA}, config) == Verdict("unknown")
