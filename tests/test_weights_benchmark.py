"""``benchmarks/weights.py``: what it compares, that its figures are right, that it goes on."""

import argparse
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from levit_search.data import DataConfig
from levit_search.errors import InputError
from levit_search.model import build, misfit
from levit_search.model.source import TrainedWeights
from levit_search.model.transfer import by_offset
from levit_search.study import read_config
from tests.conftest import ROOT

MADE = {
    "started": "2026-01-01",
    "host": "a",
    "cpu": "One",
    "cores": 2,
    "revision": "123456789abc",
    "packages": {"torch": "2", "timm": "1"},
}


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield


@pytest.fixture(scope="module")
def weights(scripts: None) -> Any:
    return importlib.import_module("weights")


@pytest.fixture(scope="module")
def shown(scripts: None) -> Any:
    return importlib.import_module("weights_shown")


def options(folder: Path, part: str, **given: Any) -> argparse.Namespace:
    default = {"set": [], "source": [], "teacher": None, "only": [], "seeds": 3, "jobs": 1}
    paths = {"minutes": None, "folder": folder, "kept": folder / "kept"}
    return argparse.Namespace(part=part, **{**default, **paths, **given})


def row(found: dict[str, Any], **key: Any) -> dict[str, Any]:
    return {"key": key, **found, "settings": {}, "made": MADE, "cell_seconds": 60.0}


# --- what is compared


def test_networks_are_parts_of_what_they_start_from(weights: Any) -> None:
    source = weights.network_of(weights._SOURCE, 32, 1, 10)
    trained = TrainedWeights(source, build(source).state_dict(), "trained")
    target = weights.network_of(weights._TARGET, 64, 3, 16)
    assert misfit(trained, target) is None
    assert misfit(trained, weights.network_of(weights._SLICE, 32, 1, 10)) is None
    photos = read_config(ROOT / "spaces" / "photos.yaml")
    space = {**photos.architecture, "image_size": 64, "in_channels": 3, "num_classes": 16}
    assert photos.model_copy(update={"architecture": space}).space().encode(target) is not None


def test_finetuned_networks_are_trained_as_the_recorded_ones(weights: Any) -> None:
    kept = json.loads((ROOT / "studies" / "supernet" / "settings.json").read_text())["settings"]
    config = weights.fidelity_config(20000)
    own = json.loads(json.dumps(config.train.decisive()))
    assert own == {key: value for key, value in kept["train"].items() if key in own}
    data = config.data.model_dump(mode="json")
    assert {key: data[key] for key in kept["data"] if key in data} == {
        key: value for key, value in kept["data"].items() if key in data
    }
    fewer = weights.fidelity_config(8000)
    assert fewer.supernet.recipe(fewer.train).epochs * 8000 == pytest.approx(60000, rel=0.1)
    assert len(weights._networks()) == 32


def test_each_measurement_has_a_key_of_its_own(weights: Any, tmp_path: Path) -> None:
    (tmp_path / "lite0.safetensors").touch()
    given = {
        "set": ["letters=a", "clipart=b"],
        "source": ["both=c"],
        "teacher": tmp_path / "lite0.safetensors",
    }
    counts = {}
    for part, cells in weights.CELLS.items():
        keys = [weights._id(cell.key) for cell in cells(options(tmp_path, part, **given))]
        assert len(set(keys)) == len(keys)
        counts[part] = len(keys)
    # starts: sets, sources, two lengths, seeds; slices: of no epochs there is one learning rate.
    assert (counts["starts"], counts["sizes"]) == (2 * 4 * 2 * 3, 3 * 3 * 3)
    assert (counts["slices"], counts["fidelity"]) == (4 * 5 * 3, 32 * 2 * 2)
    assert (counts["teacher"], counts["timm"]) == (2 * 3 * 3 * 3, 20)


@pytest.mark.parametrize(
    ("part", "given", "told"),
    [
        ("starts", {}, "needs pictures, such as --set letters=DIR"),
        ("starts", {"set": ["letters"]}, "--set letters: expected NAME=VALUE"),
        ("teacher", {"set": ["letters=a"]}, "needs pictures and weights"),
        ("teacher", {"set": ["a=b"], "teacher": Path("nowhere")}, "nowhere: no such file"),
    ],
)
def test_what_is_missing_is_said(
    weights: Any, tmp_path: Path, part: str, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        weights.measure(options(tmp_path, part, **given))


# --- measurements


@pytest.fixture
def small(weights: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Digits in the place of Fashion-MNIST, and next to no training."""
    monkeypatch.setattr(weights, "FASHION", DataConfig(name="digits", image_size=32))
    monkeypatch.setattr(weights, "_LONG", weights._LONG.model_copy(update={"epochs": 1}))
    monkeypatch.setattr(weights, "_LONG_IMAGES", 256)
    monkeypatch.setattr(weights, "_SHORT_IMAGES", {"sizes": 128, "slices": 128})
    weights.opened.cache_clear()
    yield weights
    weights.opened.cache_clear()


def test_arms_differ_in_what_they_are_named_after(
    small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models: dict[str, Any] = {}
    monkeypatch.setattr(small, "_fitted", lambda cell, model, _: models.update(last=model) or {})
    found: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for part in ("sizes", "slices"):
        for cell in small.CELLS[part](options(tmp_path, part, seeds=1)):
            small.measured(cell)
            found[part, cell.key["arm"]] = models["last"].state_dict()
    network = small.network_of(small._SOURCE, 32, 1, 10)
    before = small.trained_source(tmp_path / "kept", 0)
    kept = small_state(before, network)
    name = "stages.0.blocks.0.attention.core.attention_bias"
    sized = {arm: state for (part, arm), state in found.items() if part == "sizes"}
    assert torch.equal(sized["interpolated"][name], by_offset(kept[name], (8, 8), (12, 12)))
    assert torch.equal(sized["by_tokens"][name], by_offset(kept[name], (8, 8), (12, 12), False))
    assert not sized["fresh_biases"][name].any()
    for state in sized.values():
        assert all(
            torch.equal(state[key], kept[key]) for key in kept if "attention_bias" not in key
        )
    weight = "stages.1.blocks.0.attention.projection.linear.weight"
    parts = [state[weight] for (part, _), state in found.items() if part == "slices"]
    assert len(parts) == 4 and len({each.flatten()[:9].norm().item() for each in parts}) == 4
    assert torch.equal(found["slices", "leading"][weight][:, :16], kept[weight][:64, :16])


def small_state(folder: Path, network: Any) -> dict[str, torch.Tensor]:
    from levit_search.pretrained import find_source

    return dict(find_source(str(folder), network).state)


def test_a_measurement_is_kept_and_gone_on_with(
    small: Any, shown: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(small, "carried_out", lambda work, jobs, *_: ((j, work(j)) for j in jobs))
    given = options(tmp_path, "slices", only=["arm=scale", "lr=0.001"], seeds=1)
    assert small.measure(given) == 0
    rows = shown.rows_of(tmp_path / "slices.jsonl")
    assert [each["key"]["epochs"] for each in rows] == [0, 1, 3]
    assert {"test_top1_percent", "calibrated_top1_percent"} <= rows[0].keys()
    assert rows[2]["seconds"] > 0 and rows[0]["made"]["revision"]
    monkeypatch.setattr(small, "measured", lambda cell: pytest.fail(f"{cell.key} again"))
    assert small.measure(given) == 0
    monkeypatch.setattr(small, "_SHORT", small._SHORT.model_copy(update={"lr": 2e-3}))
    with pytest.raises(InputError, match=r"recipe\.lr was 0\.001, here 0\.002"):
        small.measure(given)


def test_a_line_that_a_kill_left_unfinished_is_none(
    weights: Any, shown: Any, tmp_path: Path
) -> None:
    file = tmp_path / "of" / "starts.jsonl"
    assert shown.rows_of(file) == []
    weights.append(file, {"key": 1})
    with file.open("a") as out:
        out.write('{"key": 2, "val')
    weights.append(file, {"key": 3})
    assert [each["key"] for each in shown.rows_of(file)] == [1, 3]


# --- figures


def test_gains_are_paired_by_seed(shown: Any) -> None:
    def seeds(*values: float) -> list[dict[str, Any]]:
        return [row({"test_top1_percent": each}, seed=seed) for seed, each in enumerate(values)]

    # The seeds differ by far more than the gain, which is 2 each time.
    found = shown.paired(seeds(52.0, 62.0, 72.1), seeds(50.0, 60.0, 70.0))
    assert found["mean"] == pytest.approx(2.03, abs=0.01) and found["says"] == "better"
    assert found["half_interval"] == pytest.approx(4.303 * 0.0577 / 3**0.5, rel=0.01)
    assert shown.paired(seeds(48.0, 58.0, 68.1), seeds(50.0, 60.0, 70.0))["says"] == "worse"
    assert shown.paired(seeds(40.0, 60.0), seeds(50.0, 60.0, 70.0))["says"] == "not told apart"
    assert shown.paired(seeds(40.0), seeds(50.0, 60.0))["says"] == "one seed"
    assert shown.paired(seeds(40.0), [])["says"] == ""


def test_a_start_that_hurts_is_named(shown: Any, tmp_path: Path) -> None:
    lines = [
        row(
            {
                "test_top1_percent": base + 0.1 * seed - (5.0 if source == "fashion" else 0.0),
                "val_top1_percent": 50.0,
                "seconds": 60.0,
                "test_images": 320,
                "steps": int(2400 * share),
                "started_from": None,
            },
            target="letters",
            source=source,
            share=share,
            seed=seed,
        )
        for share, base in ((1.0, 90.0), (0.25, 60.0))
        for source in ("fresh", "fashion")
        for seed in range(3)
    ]
    (tmp_path / "starts.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    document = shown.document_of(tmp_path)
    by_source = {(r["source"], r["share"]): r for r in document["starts"]["rows"]}
    assert by_source["fashion", 0.25]["gain"]["mean"] == pytest.approx(-5)
    assert by_source["fashion", 0.25]["gain_to_whole_fresh"]["mean"] == pytest.approx(-35)
    assert "gain_to_whole_fresh" not in by_source["fashion", 1.0]
    text = shown.as_markdown(document)
    assert "Worse than fresh weights: fashion on letters, 2,400 steps; fashion on letters" in text
    assert "One, 2 cores; torch 2; revision 123456789abc; 12 min in all." in text


def test_a_revision_that_cannot_be_gone_back_to_is_marked(shown: Any) -> None:
    dirty = {**MADE, "revision": "123456789abc-dirty"}
    assert not shown.made_of([row({})])["is_dirty"]
    assert shown.made_of([row({}), {**row({}), "made": dirty}])["is_dirty"]
    assert shown.made_of([{**row({}), "made": {**MADE, "revision": None}}])["is_dirty"]


def test_fidelity_is_told_by_rank_and_by_share_of_a_long_training(shown: Any) -> None:
    rows = []
    for place in range(8):
        long = {"long_top1_percent": [80.0 + place, 80.2 + place], "epochs": 1, "long_epochs": 3}
        for images, arm, accuracy, seconds in (
            (20000, "finetuned", 70.0 + place, 12.0),
            (20000, "alone", 60.0 - place, 10.0),
            (8000, "finetuned", 65.0 + place, 6.0),
        ):
            found = {"val_top1_percent": accuracy, "seconds": seconds, **long}
            if arm == "finetuned":
                found |= {"inherited_top1_percent": 50.0 + place % 3, "supernet_seconds": 90.0}
            rows.append(row(found, network=f"n{place}", images=images, arm=arm))
    found = shown.fidelity(rows)
    by_name = {(r["images"], r["predictor"]): r for r in found["rows"]}
    assert by_name[20000, "finetuned"]["tau"] == 1.0
    assert by_name[20000, "alone"]["tau"] == -1.0
    assert by_name[8000, "finetuned"]["share_of_training"]["mean"] == pytest.approx(6 / 30)
    assert by_name[8000, "finetuned"]["views_share"] == pytest.approx(8 / 60)
    assert {(r["images"], r["to"]) for r in found["differences"]} == {
        (20000, "inherited"),
        (20000, "alone"),
        (8000, "inherited"),
    }
    assert found["between_two_seeds"]["tau"] == 1.0


def test_differences_from_timm_are_shares_of_what_images_make(shown: Any) -> None:
    found = {"params": 5, "max_difference_224": 0.2, "max_difference_file": 0.4}
    found |= {"logit_sd_224": 2.0, "logit_sd_160": 5.0, "max_difference_160": 0.0}
    told = shown.timm([row(found, network="levit_128")])
    assert told["worst"] == pytest.approx({"224": 0.1, "file": 0.2, "160": 0.0})
