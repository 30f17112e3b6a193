"""``--from``: finished trials of another study, where they mean the same and still fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from levit_search.errors import InputError
from levit_search.search import check_source, search
from levit_search.study import Study, read_config
from tests.engines import CurveEngine
from tests.networks import tiny_space

WEIGHTS = b"\x02" + bytes(7) + b"{}"  # safetensors without any
TRAIN = {"epochs": 9, "rungs": [1, 3], "device": "cpu"}


def wider(**sections: Any) -> dict[str, Any]:
    """The space of the tests with one width more in its second stage."""
    space: dict[str, Any] = tiny_space(train=TRAIN, **sections)
    space["architecture"]["stages"][1]["embed_dim"]["choices"] = [16, 24, 32, 48]
    return space


@pytest.fixture
def source(space_file: Callable[..., Path], tmp_path: Path) -> Study:
    config = read_config(space_file(train=TRAIN), {"search.trials": 8})
    study = Study.create(tmp_path / "source", config, ["test"])
    study.checkpoints.mkdir()
    search(study, engine=CurveEngine)
    for record in study.records():
        assert record.architecture is not None
        (study.checkpoints / f"{record.architecture.id}.safetensors").write_bytes(WEIGHTS)
    return study


def taken(tmp_path: Path, source: Study, space: dict[str, Any], **changes: Any) -> Study:
    path = tmp_path / "wider.yaml"
    path.write_text(yaml.safe_dump(space))
    study = Study.create(tmp_path / "wider", read_config(path, changes), ["test"])
    search(study, take_from=source.folder, engine=CurveEngine)
    return study


def evaluated(study: Study) -> dict[str, Any]:
    return {
        record.architecture.id: record
        for record in study.records()
        if record.architecture is not None and record.reused_from is None
    }


def test_a_widened_space_takes_over_what_was_found(source: Study, tmp_path: Path) -> None:
    study = taken(tmp_path, source, wider(), **{"search.trials": 4})
    old, new = evaluated(source), evaluated(study)
    assert set(old) <= set(new)
    assert len(new) == len(old) + 4, "what was taken uses up no budget"
    for name, record in old.items():
        assert new[name].taken_from == f"{source.folder}#{record.trial}"
        assert (new[name].state, new[name].values) == (record.state, record.values)
        assert (study.checkpoints / f"{name}.safetensors").read_bytes() == WEIGHTS
    assert any(record.is_stopped for record in old.values()), "this seed has some"


def test_taking_over_twice_changes_nothing(source: Study, tmp_path: Path) -> None:
    first = taken(tmp_path, source, wider(), **{"search.trials": 2}).records()
    assert taken(tmp_path, source, wider(), **{"search.trials": 2}).records() == first


def test_what_the_limits_or_the_space_exclude_stays_behind(source: Study, tmp_path: Path) -> None:
    space = wider(limits={"flops": 100_000})
    study = taken(tmp_path, source, space, **{"search.trials": 1})
    assert all(
        record.values["flops"] <= 100_000
        for record in evaluated(study).values()
        if record.taken_from is not None
    )
    assert len(study.records()) > 1


def test_rungs_come_over_with_the_objectives_of_here(source: Study, tmp_path: Path) -> None:
    space = wider()
    space["objectives"] = ["top1_percent", "params"]
    study = taken(tmp_path, source, space, **{"search.trials": 3})
    old, new = evaluated(source), evaluated(study)
    for name, record in old.items():
        assert [rung["goes_on"] for rung in new[name].rungs] == [
            rung["goes_on"] for rung in record.rungs
        ]
        for rung in new[name].rungs:
            expected = {
                "top1_percent": rung["top1_percent"],
                "params": record.values["params"],
            }
            assert rung["values"] == expected
    # Going on reads them again.
    assert len(taken(tmp_path, source, space, **{"search.trials": 4}).records()) > len(new)


def test_latencies_of_another_device_stay_where_they_are(
    source: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Study, "attributes", lambda self: {"device": {"cpu": "another CPU", "runtimes": {}}}
    )

    class Here(CurveEngine):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._events[0].content["device"] = {"cpu": "this CPU", "runtimes": {}}

    path = tmp_path / "wider.yaml"
    path.write_text(yaml.safe_dump(wider()))
    study = Study.create(tmp_path / "wider", read_config(path), ["test"])
    with pytest.raises(InputError, match="measured with cpu another CPU, here it is this CPU"):
        search(study, take_from=source.folder, engine=Here)
    assert study.records() == []


def test_without_rungs_stopped_candidates_are_trained_again(source: Study, tmp_path: Path) -> None:
    space = wider()
    space["search"] = {"reduction": None, "sampler": "tpe", "startup_trials": 3}
    study = taken(tmp_path, source, space, **{"search.trials": 1})
    assert not any(record.is_stopped for record in study.records())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train.epochs": 5}, r"evaluated otherwise \(train.epochs 9 -> 5\)"),
        ({"data.train_images": 64}, r"evaluated otherwise \(data.train_images 256 -> 64\)"),
        ({"search.seed": 3}, r"evaluated otherwise \(search.seed 0 -> 3\)"),
        ({"limits.latency_ms": 5}, "have no latency_ms, which counts here"),
        ({"objectives": ["top1_percent", "latency_ms"]}, "have no latency_ms, which counts here"),
    ],
)
def test_what_would_mean_something_else_is_refused(
    changes: dict[str, Any], told: str, source: Study, space_file: Callable[..., Path]
) -> None:
    config = read_config(space_file(train=TRAIN), changes)
    with pytest.raises(InputError, match=told):
        check_source(source.folder, Study(source.folder.parent / "new", config))


def test_the_study_itself_and_no_study_are_refused(source: Study, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is the study itself"):
        check_source(source.folder, source)
    with pytest.raises(InputError, match="no such study folder"):
        check_source(tmp_path / "nowhere", source)
