"""Objectives on one or more targets: what names them, and how they are measured and shown."""

import csv
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from levit_search import export, table
from levit_search.architecture import Architecture, parse
from levit_search.errors import InputError, TrialError
from levit_search.latency import LatencyConfig, Probe
from levit_search.search import search
from levit_search.search.evaluate import Evaluator
from levit_search.study import Record, Study, StudyConfig, parse_settings, read_config
from tests.conftest import Cli
from tests.engines import HereEngine
from tests.networks import tiny_description

SpaceFile = Callable[..., Path]
QUICK: dict[str, Any] = {"seconds": 0.1, "rounds": 1, "reference": tiny_description()}
PHONE = {"phone": {"target": "ssh://pi@raspberrypi.local", "threads": 4}}


def silent(text: str, fraction: float | None) -> None:
    del text, fraction


def test_a_further_target_is_a_section_as_complete_as_latency(space_file: SpaceFile) -> None:
    path = space_file(targets=PHONE, objectives=["top1_percent", "latency_ms@phone"])
    config = read_config(path)
    expected = LatencyConfig.model_validate(PHONE["phone"])
    assert config.targets == {"phone": expected}
    assert not config.is_measured
    assert config.also_measured == config.targets


def test_a_text_is_a_further_targets_address(space_file: SpaceFile) -> None:
    path = space_file(objectives=["latency_ms", "latency_p95_ms@phone"])
    changes = parse_settings(["targets.phone=ssh://pi@raspberrypi.local"])
    config = read_config(path, changes)
    assert config.is_measured
    assert config.targets["phone"].target.address == "ssh://pi@raspberrypi.local"
    assert StudyConfig.model_validate(config.model_dump(mode="json")) == config


def test_further_targets_take_names_of_targets_yaml(space_file: SpaceFile, tmp_path: Path) -> None:
    named = {"pi": {"target": "ssh://pi", "threads": 4}}
    (tmp_path / "targets.yaml").write_text(yaml.safe_dump(named))
    config = read_config(space_file(targets={"small": "pi", "big": {"target": "pi", "threads": 1}}))
    assert config.targets["small"].target.label == "pi"
    assert (config.targets["small"].threads, config.targets["big"].threads) == (4, 1)


def test_a_target_that_no_objective_names_is_not_probed(space_file: SpaceFile) -> None:
    targets = {**PHONE, "here": "cpu"}
    path = space_file(targets=targets, objectives=["flops", "peak_memory_mb@here"])
    assert list(read_config(path).also_measured) == ["here"]


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (
            {"objectives": ["flops", "latency_ms@nobody"], "targets": PHONE},
            "objectives: latency_ms@nobody: no target of that name in `targets` (known: phone)",
        ),
        (
            {"objectives": ["flops", "latency_ms@"]},
            "objectives: latency_ms@: no target of that name in `targets` (known: none)",
        ),
        (
            {"objectives": ["flops", "latency_ms@phone@phone"], "targets": PHONE},
            "no target of that name",
        ),
        (
            {"objectives": ["flops", "latnecy_ms@phone"], "targets": PHONE},
            "objectives: unknown objective 'latnecy_ms@phone'; did you mean 'latency_ms'?",
        ),
        (
            {"objectives": ["top1_percent", "flop"]},
            "objectives: unknown objective 'flop'; did you mean 'flops'?",
        ),
        (
            {"objectives": ["flops", "latency_predicted_ms"]},
            "objectives: unknown objective 'latency_predicted_ms'",
        ),
        (
            {"objectives": ["flops", "flops@phone"], "targets": PHONE},
            "objectives: flops@phone: flops is the same on every target",
        ),
        (
            {"objectives": ["flops", "top1_percent@phone"], "targets": PHONE},
            "objectives: top1_percent@phone: top1_percent is the same on every target",
        ),
        (
            {"objectives": ["latency_ms@phone", "latency_ms@phone"], "targets": PHONE},
            "two or more different objectives are needed",
        ),
        ({"objectives": ["flops", 5]}, "objectives.1: input should be a valid string, not 5"),
        (
            {"hypervolume_reference": {"latency_ms@phone": 50}},
            "hypervolume_reference: latency_ms@phone: no target of that name",
        ),
        ({"targets": {"my phone": "cpu"}}, "targets: a target's name is a letter, then"),
        ({"targets": {5: "cpu"}}, "targets: a target's name is a letter, then"),
        ({"targets": ["cpu"]}, "targets: input should be a valid dictionary"),
        ({"targets": {"phone": 5}}, "targets.phone: input should be a valid dictionary"),
        ({"targets": {"phone": "fone"}}, "targets.phone: unknown target 'fone'"),
        ({"targets": {"phone": {"thread": 2}}}, "targets.phone: unknown key 'thread'"),
        (
            {"targets": {"phone": {"method": "predicted"}}},
            "targets: phone: only `latency` can be predicted",
        ),
        ({"limits": {"latency_ms@phone": 5}}, "limits: unknown key 'latency_ms@phone'"),
    ],
)
def test_a_wrong_objective_or_target_is_refused(
    sections: dict[str, object], told: str, space_file: SpaceFile
) -> None:
    path = space_file(**sections)
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert told in str(caught.value)


def test_an_objective_on_a_target_that_is_not_there_ends_a_run_before_it_begins(
    cli: Cli, space_file: SpaceFile, tmp_path: Path
) -> None:
    changed = "objectives=[top1_percent,latency_ms@nobody]"
    done = cli("run", space_file(), "--study", "s", "--set", changed)
    assert (done.returncode, done.stdout) == (2, "")
    assert "latency_ms@nobody: no target of that name in `targets` (known: none)" in done.stderr
    assert not (tmp_path / "s").exists()


def test_other_targets_may_be_measured_where_latency_is_predicted(space_file: SpaceFile) -> None:
    sections = {"latency": "predicted", "targets": {"four": {"target": "cpu", "batch_size": 4}}}
    objectives = ["top1_percent", "latency_ms", "latency_p95_ms@four"]
    config = read_config(space_file(objectives=objectives, **sections))
    assert config.latency.method == "predicted"
    assert list(config.also_measured) == ["four"]


def test_what_neither_the_user_nor_a_limit_says_of_a_reference_is_to_be_measured(
    space_file: SpaceFile,
) -> None:
    names = ["latency_ms", "latency_ms@phone", "peak_memory_mb@phone"]
    sections: dict[str, Any] = {"targets": PHONE, "objectives": ["top1_percent", *names]}
    config = read_config(space_file(**sections))
    assert config.referred == tuple(names) and config.reference is None
    sections["limits"] = {"latency_ms": 5}
    config = read_config(space_file(**sections, hypervolume_reference={"latency_ms@phone": 50}))
    assert config.referred == ("peak_memory_mb@phone",)
    assert config.hypervolume_reference == {"latency_ms@phone": 50}
    with pytest.raises(InputError, match=r"latency_ms@phone: expected a number above 0"):
        read_config(space_file(**sections, hypervolume_reference={"latency_ms@phone": 0}))


def record(trial: int, network: Architecture, **values: float) -> Record:
    return Record(trial, "complete", network, values, None, None, 1.0, {})


def test_tables_head_what_a_further_target_measured_with_its_name(tiny: Architecture) -> None:
    found = [
        record(0, tiny, top1_percent=70.0, **{"latency_ms@phone": 12.5, "flops": 2e6}),
        record(1, tiny, top1_percent=60.0, **{"latency_ms@phone": 30.0, "flops": 1e6}),
        record(2, tiny, top1_percent=80.0, **{"latency_ms@phone": 40.0, "flops": 1e6}),
    ]
    objectives = ["top1_percent", "latency_ms@phone"]
    front = table.front(found, objectives)
    assert [each.trial for each in front] == [0, 2]
    text = table.markdown(front, objectives)
    assert text.startswith("| trial | top-1 % | latency ms @phone | MFLOPs | params M |")
    assert "| 70.00 | 12.5 | 2 |" in text
    assert table.as_json(front[0])["latency_ms@phone"] == 12.5
    assert table.as_json(front[0])["latency_ms"] is None
    rows = list(csv.DictReader(io.StringIO(table.as_csv(found))))
    assert [row["latency_ms@phone"] for row in rows] == ["12.5", "30.0", "40.0"]
    assert [row["latency_ms"] for row in rows] == ["", "", ""]


def test_a_network_can_be_picked_by_a_bound_on_a_further_target(
    space_file: SpaceFile, tmp_path: Path, tiny: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives = ["top1_percent", "latency_ms@phone"]
    path = space_file(targets=PHONE, objectives=objectives)
    study = Study.create(tmp_path / "s", read_config(path), [])
    values = [(60.0, 10.0), (70.0, 20.0), (80.0, 40.0)]
    records = [
        record(trial, tiny, **dict(zip(objectives, each, strict=True)))
        for trial, each in enumerate(values)
    ]
    monkeypatch.setattr(study, "records", lambda: records)
    assert export.pick(study, "latency_ms@phone<=25").trial == 1
    with pytest.raises(InputError, match="latency_ms@watch was not measured"):
        export.pick(study, "latency_ms@watch<=25")


def two_targets(**sections: Any) -> dict[str, Any]:
    """This machine twice: one image a run, and four."""
    return {
        "latency": QUICK,
        "targets": {"four": {**QUICK, "target": "cpu", "batch_size": 4}},
        "objectives": ["latency_ms", "latency_p95_ms@four", "peak_memory_mb@four"],
        **sections,
    }


def test_a_candidate_is_measured_on_every_target_that_an_objective_names(
    space_file: SpaceFile, tmp_path: Path, tiny: Architecture
) -> None:
    config = read_config(space_file(**two_targets()))
    folder = tmp_path / "s"
    folder.mkdir()
    evaluator = Evaluator(config, folder, {})
    try:
        prepared = evaluator.prepare(tiny, silent)
        found = evaluator.evaluate(tiny, silent)
    finally:
        evaluator.close()
    assert set(config.objectives) <= found.values.keys()
    assert found.latency is not None
    assert (found.latency["batch_size"], found.targets["four"]["batch_size"]) == (1, 4)
    assert found.values["latency_ms"] == found.latency["latency_ms"]
    assert found.values["latency_ms@four"] == found.targets["four"]["latency_ms"]
    for measured in (found.latency, found.targets["four"]):
        assert (folder / measured["samples_file"]).is_file()
    assert found.latency["samples_file"] != found.targets["four"]["samples_file"]
    assert json.loads(json.dumps(found.as_json()))["targets"]["four"]["threads"] == 1

    main, other = prepared["settled_ms"]
    assert other == f"four:{main}"
    assert prepared["devices"]["four"]["cpu"] == prepared["device"]["cpu"]

    # What was settled stays: nothing is timed again, and latencies stay multiples of it.
    settled_ms = {main: 2.0, other: 32.0}
    evaluator = Evaluator(config, folder, {"settled_ms": settled_ms})
    try:
        assert evaluator.prepare(tiny, silent)["settled_ms"] == settled_ms
        again = evaluator.evaluate(tiny, silent)
    finally:
        evaluator.close()
    assert again.latency is not None
    assert again.latency["reference_ms"] == 2.0
    assert again.targets["four"]["reference_ms"] == 32.0


def test_networks_are_measured_again_together_on_every_target(
    space_file: SpaceFile, tmp_path: Path, tiny: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(space_file(**two_targets()))
    wider = parse(tiny_description(stages=[{**tiny.model_dump()["stages"][0], "embed_dim": 32}]))
    broken = parse(tiny_description(stages=[{**tiny.model_dump()["stages"][0], "embed_dim": 24}]))
    told: list[str] = []
    graph = Probe._graph

    def refused(self: Probe, network: Architecture, layout: Any) -> Path:
        if network.id == broken.id:
            raise TrialError("no such operator")
        return graph(self, network, layout)

    monkeypatch.setattr(Probe, "_graph", refused)
    evaluator = Evaluator(config, tmp_path, {})
    try:
        evaluator.prepare(tiny, silent)
        first = evaluator.evaluate(tiny, silent)
        networks = [tiny, broken, wider]
        found = evaluator.remeasure(networks, lambda text, fraction: told.append(text))
        with pytest.raises(TrialError, match="no such operator"):
            evaluator.remeasure([broken], silent)
    finally:
        evaluator.close()
    both = ["measuring 3 networks together", "measuring 3 networks together on four"]
    assert [text for text, _ in itertools.groupby(told)] == both
    assert isinstance(found[1], TrialError) and str(found[1]) == "no such operator"
    again, other = (each.as_json() for each in found if not isinstance(each, TrialError))
    for each in (again, other):
        assert each["values"].keys() == first.values.keys()
        assert each["latency"]["cached"] is each["targets"]["four"]["cached"] is False
        assert each["latency"]["reference_ms"] == first.as_json()["latency"]["reference_ms"]
        assert each["values"]["latency_ms@four"] == each["targets"]["four"]["latency_ms"]
        assert each["latency"]["samples_file"].endswith("-remeasured.json")
        assert (tmp_path / each["latency"]["samples_file"]).is_file()
    assert first.latency is not None
    assert (tmp_path / first.latency["samples_file"]).is_file(), "the search's own stay beside it"
    assert again["values"]["latency_ms"] != first.values["latency_ms"]


def test_a_network_over_the_limit_is_measured_nowhere_else(
    space_file: SpaceFile, tmp_path: Path, tiny: Architecture
) -> None:
    config = read_config(space_file(**two_targets(limits={"latency_ms": 1e-6})))
    told: list[str] = []
    evaluator = Evaluator(config, tmp_path, {})
    try:
        evaluator.prepare(tiny, silent)
        found = evaluator.evaluate(tiny, lambda text, fraction: told.append(text))
    finally:
        evaluator.close()
    assert told == ["measuring latency"]
    assert found.targets == {}
    assert not any(name.endswith("@four") for name in found.values)


def test_latency_is_not_probed_where_only_another_target_is_named(
    space_file: SpaceFile, tmp_path: Path, tiny: Architecture
) -> None:
    gone = {"target": {"kind": "command", "python": ["/no/such/python"]}}
    sections = two_targets(objectives=["latency_ms@four", "flops"])
    config = read_config(space_file(**sections), {"latency": gone})
    evaluator = Evaluator(config, tmp_path, {})
    try:
        assert evaluator.prepare(tiny, silent)["device"] == {}
        found = evaluator.evaluate(tiny, silent)
    finally:
        evaluator.close()
    assert found.latency is None
    assert found.values["latency_ms@four"] > 0


def test_a_further_target_that_cannot_be_reached_stops_the_preparation(
    space_file: SpaceFile, tmp_path: Path, tiny: Architecture
) -> None:
    gone = {"target": {"kind": "command", "python": ["/no/such/python"]}}
    config = read_config(space_file(**two_targets()), {"targets.four": gone})
    evaluator = Evaluator(config, tmp_path, {})
    try:
        with pytest.raises(TrialError, match="/no/such/python cannot be started"):
            evaluator.prepare(tiny, silent)
    finally:
        evaluator.close()


@pytest.mark.slow
def test_a_search_finds_the_front_of_two_targets(space_file: SpaceFile, tmp_path: Path) -> None:
    objectives = ["latency_ms", "latency_ms@four", "params"]
    path = space_file(**two_targets(objectives=objectives))
    study = Study.create(tmp_path / "s", read_config(path, {"search.trials": 2}), [])
    summary = search(study, engine=HereEngine)
    assert summary.trials["complete"] == 2
    assert summary.hypervolume > 0
    for each in study.storage().trials:
        record = next(r for r in study.records() if r.trial == each.number)
        assert each.values == [record.estimates[name] for name in objectives]
    header = (study.folder / "front.csv").read_text().splitlines()[0].split(",")
    assert {"latency_ms", "latency_ms@four", "latency_p95_ms@four"} <= {*header}
    shown = table.markdown(summary.front, objectives)
    again = "± % | in search ms"
    head = f"| trial | latency ms | {again} | latency ms @four | {again.replace(' |', ' @four |')}"
    assert shown.startswith(f"{head} @four | params M |")
