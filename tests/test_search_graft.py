"""Searching grafts: trained for real in this process, so that no worker has to start."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from levit_search import architecture, export, table
from levit_search.architecture import Graft, Levit
from levit_search.errors import InputError
from levit_search.model import save_weights
from levit_search.report import write_report
from levit_search.report.choices import Choices
from levit_search.search import driver, search
from levit_search.study import Study, read_config
from tests.conftest import ROOT
from tests.engines import HereEngine, StubEngine

GRAFTS: dict[str, Any] = {
    "family": "graft",
    "donor": {
        "name": "resnet18",
        "stages": {"range": [0, 1]},
        "stem": "small",
        "width_scale": {"choices": [0.25, 0.5]},
    },
    "grid": 2,
    "trunk": {
        "depth": {"range": [0, 1]},
        "embed_dim": {"choices": [8, 12]},
        "num_heads": {"choices": [2, 3]},
        "mlp_ratio": 2,
    },
    "distillation": False,
}


@pytest.fixture
def study(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Study]:
    """A study of tiny grafts on a few digits of 8 px."""
    monkeypatch.setattr(driver, "make_engine", HereEngine)
    data = {"name": "digits", "image_size": 8, "train_images": 64, "val_share": 0.05}
    path = space_file(architecture=GRAFTS, data=data)

    def create(**changes: Any) -> Study:
        return Study.create(tmp_path / "study", read_config(path, changes), ["test"])

    return create


@pytest.mark.slow
def test_grafts_are_searched_shown_and_exported(
    study: Callable[..., Study], tmp_path: Path
) -> None:
    opened = study(**{"search.trials": 4})
    summary = search(opened)
    assert summary.trials["complete"] - summary.trials["reused"] == 4
    assert all(isinstance(record.architecture, Graft) for record in summary.front)
    objectives = opened.config.objectives
    assert summary.front[0].architecture is not None
    assert summary.front[0].architecture.summary() in table.markdown(summary.front, objectives)
    picked = export.pick(opened, "accurate")
    written = export.export(opened, picked, tmp_path / "best", "accurate")
    assert written.parity_max_abs_diff <= 1e-4
    assert architecture.load(str(tmp_path / "best" / "architecture.yaml")) == picked.architecture
    assert "A graft" in (tmp_path / "best" / "README.md").read_text()


BESIDE_LEVITS: dict[str, Any] = {
    "family": {"choices": ["levit", "graft"]},
    "stem": {
        "kind": {"choices": ["conv", "resnet18"]},
        "layers": 2,
        "stages": 1,
        "stem": "small",
        "width_scale": 0.25,
    },
    "stages": [{"depth": 1, "embed_dim": {"choices": [8, 12]}, "num_heads": 1, "key_dim": 4}],
    **{key: value for key, value in GRAFTS.items() if key != "family"},
}


def test_levits_and_grafts_are_searched_and_reported_side_by_side(
    study: Callable[..., Study],
) -> None:
    changes = {"architecture": BESIDE_LEVITS, "search.trials": 12, "search.sampler": "random"}
    opened = study(**changes)
    summary = search(opened)
    assert summary.trials["complete"] - summary.trials["reused"] == 12
    networks = {r.architecture.id: r.architecture for r in opened.records() if r.architecture}
    stems = {n.stem.kind for n in networks.values() if isinstance(n, Levit)}
    assert stems == {"conv", "resnet18"}
    grafts = [n for n in networks.values() if isinstance(n, Graft)]
    assert grafts and any(n.trunk is None for n in grafts)
    choices = Choices(opened.config, grafts[0])
    assert {"family", "stem.kind", "donor.stages", "trunk.depth"} <= choices.slots.keys()
    for network in networks.values():
        places = choices.places(network)
        assert places is not None
        told = dict(zip(choices.slots, places, strict=True))
        assert (told["stem.kind"] is None) == isinstance(network, Graft)
        assert (told["donor.stages"] is None) == isinstance(network, Levit)
    page = write_report(opened).read_text("utf-8")
    assert all(record.architecture.summary() in page for record in summary.front)


def test_a_donors_file_that_does_not_fit_fails_its_candidates_alone(
    study: Callable[..., Study], tmp_path: Path
) -> None:
    import timm

    narrow = timm.create_model("resnet18", in_chans=1, channels=(16, 32, 64, 128))
    torch.manual_seed(0)
    save_weights(narrow, tmp_path / "resnet18.safetensors")
    pattern = str(tmp_path / "{name}.safetensors")
    opened = study(**{"train.donor_weights": pattern, "search.trials": 8})
    search(opened)
    by_scale: dict[float | None, set[str]] = {}
    for record in opened.records():
        if isinstance(record.architecture, Graft):
            donor = record.architecture.donor
            by_scale.setdefault(donor and donor.width_scale, set()).add(record.state)
        if record.state == "failed":
            assert "layer1.0.bn1.bias has shape [16]" in (record.reason or "")
    assert by_scale == {None: {"complete"}, 0.25: {"complete"}, 0.5: {"failed"}}


def test_a_missing_donors_file_ends_the_search_before_it_starts(
    study: Callable[..., Study], tmp_path: Path
) -> None:
    opened = study(**{"train.donor_weights": str(tmp_path / "{name}.safetensors")})
    with pytest.raises(InputError, match=r"resnet18\.safetensors: no such file"):
        search(opened)
    assert opened.records() == []


def test_a_network_with_two_names_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", StubEngine)
    changes = {
        "architecture.distillation": {"choices": [True, False]},
        "start": ["ablation-A4", "LeViT-128S", "ablation-base"],
        "search.trials": 6,
    }
    config = read_config(ROOT / "spaces" / "levit-imagenet.yaml", changes)
    study = Study.create(tmp_path / "study", config, ["test"])
    search(study)
    names = ["ablation-base", "LeViT-128S", "LeViT-128", "LeViT-192", "LeViT-256", "LeViT-384"]
    assert StubEngine.evaluated == [architecture.published(name).id for name in names]
