"""What stands with trials and studies may be a stranger's: of another shape it is refused."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import levit_search as ls
from levit_search.errors import InputError
from levit_search.study import Study
from levit_search.study.record import check_attributes, check_measured
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import made_study
    folder = tmp_path_factory.mktemp("made") / "study"
    made_study.make(folder, ls.read_space("levit", {}), 12)
    return folder


@pytest.fixture
def mine(made: Path, tmp_path: Path) -> Study:
    return Study.open(Path(shutil.copytree(made, tmp_path / "study")))


ODD_NOTES: dict[str, tuple[str, Any, str]] = {
    "evaluation": ("evaluation", [1], r"evaluation: input should be a valid dictionary, not \[1\]"),
    "no values": ("evaluation", {}, "is complete, and has no (top1|latency)"),
    "values": ("evaluation", {"values": {"flops": "<b>"}}, r"evaluation\.values\.flops: "),
    "infinite": ("evaluation", {"values": {"flops": 1e999}}, r"evaluation\.values\.flops: "),
    "latency": ("evaluation", {"latency": "none"}, r"evaluation\.latency: "),
    "interval": ("evaluation", {"latency": {"ratio_ci95": [0, 1]}}, r"ratio_ci95\.0: "),
    "spread": ("evaluation", {"latency": {"p95_sd_percent": -1}}, r"latency\.p95_sd_percent: "),
    "targets": ("evaluation", {"targets": {"pi": 3}}, r"evaluation\.targets\.pi: "),
    "curve": ("evaluation", {"training": {"curve": [{"epoch": 1}]}}, r"val_top1_percent: is req"),
    "architecture": ("architecture", 7, "architecture: input should be a valid dictionary, not 7"),
    "block": ("architecture", {"stages": 7}, "architecture: image_size: is required"),
    "no architecture": ("architecture", None, "is complete, and has no architecture"),
    "cost": ("cost", [1], r"cost: input should be a valid dictionary, not \[1\]"),
    "rungs": ("rungs", {"epoch": 1}, "rungs: input should be a valid list"),
    "rung": ("rungs", [{"epoch": "1"}], r"rungs\.0\.epoch: "),
    "reason": ("reason", 7, "reason: input should be a valid string, not 7"),
}


@pytest.mark.parametrize("case", ODD_NOTES)
def test_notes_of_another_shape_are_refused_in_one_line(case: str, mine: Study) -> None:
    key, value, told = ODD_NOTES[case]
    with closing(sqlite3.connect(mine.folder / "study.db")) as database, database:
        changed = database.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE key = ? AND trial_id = 1",
            (json.dumps(value), key),
        )
        if not changed.rowcount:
            database.execute(
                "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (1, ?, ?)",
                (key, json.dumps(value)),
            )
    with pytest.raises(InputError, match=f"^.*study\\.db: trial 0: .*{told}"):
        mine.records()


@pytest.mark.parametrize(
    "sessions", [-1, "x", [[[]]], [{"command": 3}], [{"cores": float("nan")}], {"a": 1}]
)
def test_sessions_of_another_shape_are_left_out_of_a_report(sessions: Any, mine: Study) -> None:
    from levit_search.report.contents import contents

    text = json.dumps({"sessions": sessions})
    (mine.folder / "environment.json").write_text(text)
    assert contents(mine)["environment"]["sessions"] == []


@pytest.mark.parametrize(
    "attributes",
    [
        {"settled_ms": 3},
        {"device": [1]},
        {"teacher": {"name": {}}},
        {"data": "images"},
        {"data": {"val_images": 0}},
        {"data": {"val_images": 2.5}},
        {"data": {"guess_percent": 101.0}},
        {"data": {"inherited_images": -1}},
    ],
)
def test_attributes_of_another_shape_are_refused_in_one_line(attributes: Any) -> None:
    with pytest.raises(InputError, match=r"attributes of the study: .*is not what a search writes"):
        check_attributes(attributes)


def test_attributes_of_another_shape_end_a_search_before_it_begins(mine: Study) -> None:
    storage, study_id = mine.open_storage()
    storage.set_study_user_attr(study_id, "data", {"val_images": "many"})
    told = r"study\.db: attributes of the study: data\.val_images: "
    with pytest.raises(InputError, match=told):
        mine.open_to_write(mine.config.space().distributions())
    with pytest.raises(InputError, match=told):
        mine.attributes()


def test_what_was_measured_later_has_both_latencies() -> None:
    ms = {"latency_ms": 1.0}
    check_measured({"latency": ms, "values": ms}, {"latency": ms}, 3)
    check_measured({"failed": "no answer"}, {}, 3)
    in_int8 = {"int8": {"latency_int8_ms": ms}}
    check_measured({**in_int8, "values": {"latency_int8_ms": 1.0}}, in_int8, 3)
    for found, before in (
        ([], ms),
        ({}, ms),
        ({"latency": ms, "values": {"latency_ms": 0.0}}, ms),
        ({"latency": ms, "values": ms}, None),
        ({"failed": 3}, ms),
        ({**in_int8, "values": ms}, ms),
        ({**in_int8, "values": {"latency_int8_ms": 1.0}}, ms),
    ):
        with pytest.raises(InputError, match=r"^trial 3: (measured|evaluation)"):
            check_measured(found, {"latency": before}, 3)
