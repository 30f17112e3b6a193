"""Networks of timm that a search is compared with."""

import csv
import json
import re
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
import yaml

import levit_search as ls
from levit_search import baseline, table
from levit_search.architecture import Architecture
from levit_search.baseline import Baseline, BaselineConfig
from levit_search.drawing.chart import Chart
from levit_search.engine.interface import Event
from levit_search.errors import BudgetError, InputError
from levit_search.export import ExportOptions
from levit_search.model import save_weights
from levit_search.report import contents, write_report
from levit_search.report.charts import figures
from levit_search.search import Summary, begin, driver, search
from levit_search.search.callbacks import CallbackList
from levit_search.search.evaluate import Evaluator, goes_on
from levit_search.search.final_evaluation import Comparisons
from levit_search.search.trials import TrialStore
from levit_search.significance import judged
from levit_search.study import BASELINE, REMEASURED, BaselineRecord, Record, Study, read_config
from levit_search.study.plan import PlanInputs, plan_of
from levit_search.train.fitting import _Run
from tests.conftest import Cli
from tests.engines import HereEngine, StubEngine, finals, remeasured
from tests.networks import tiny_space

RESNET, EFFICIENTNET = "timm/test_resnet", "timm/test_efficientnet"
MEASURED: dict[str, Any] = {
    "objectives": ["top1_percent", "latency_ms"],
    "search": {"trials": 4, "sampler": "random"},
    "compare": [RESNET, EFFICIENTNET],
}
DATA = {
    "id": "images",
    "train_images": 1200,
    "val_images": 400,
    "num_classes": 10,
    "guess_percent": 10.0,
}
FIGURES = {RESNET: (99.0, 0.5), EFFICIENTNET: (20.0, 9.0)}
"""Accuracy and latency; the first dominates every network of a stub engine, each the second."""


class BesideEngine(StubEngine):
    """Compares as well; remembers with what, and what was measured again together."""

    data: ClassVar[dict[str, Any]] = DATA
    compared: ClassVar[list[str]] = []
    rounds: ClassVar[list[list[str]]] = []
    failing: ClassVar[set[str]] = set()
    at_rung: ClassVar[bool] = False
    """Whether each stops at a rung on its way."""

    def submit(
        self, trial: int, network: Architecture | BaselineConfig, taught: bool = True
    ) -> None:
        if not isinstance(network, BaselineConfig):
            super().submit(trial, network)
            latency = remeasured(self.latency_ms)["latency"]
            self._events[-1].content["latency"] = latency
            return
        self._busy = True
        self.compared.append(network.id)
        if network.name in self.failing:
            self._events.append(Event("failed", trial, "no luck today"))
            return
        if self.at_rung:
            content = {"epoch": 1, "values": {"top1_percent": 5.0}}
            self._events.append(Event("rung", trial, content=content))
        else:
            self._events.append(Event("done", trial, content=self._found(network)))

    def answer(self, trial: int, goes_on: bool) -> None:
        raise AssertionError("whoever asks to stop does not let it go on")

    def _found(self, given: BaselineConfig) -> dict[str, Any]:
        percent, ms = FIGURES[given.name]
        values = {"params": 1000, "flops": 2000, "activations": 300}
        latency = remeasured(ms)["latency"]
        training = {"curve": [{"epoch": 1, "val_top1_percent": percent}]}
        return {
            "values": {**values, "top1_percent": percent, "latency_ms": ms},
            "latency": latency,
            "training": training,
            "targets": {},
            "seconds": 2.0,
        }

    def remeasure(self, trial: int, networks: Sequence[Any]) -> None:
        super().remeasure(trial, [])
        if trial == -1:
            return
        self.rounds.append([each.id for each in networks])
        results = [
            remeasured(
                1.1 * FIGURES[each.name][1] if isinstance(each, BaselineConfig) else self.latency_ms
            )
            for each in networks
        ]
        self._events[-1] = Event("done", trial, content={"results": results})


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[BesideEngine]:
    """It is what searches use."""
    for name, value in {"compared": [], "rounds": [], "failing": set(), "at_rung": False}.items():
        monkeypatch.setattr(BesideEngine, name, value)
    monkeypatch.setattr(driver, "make_engine", BesideEngine)
    return BesideEngine


def searched(path: Path, folder: Path, **changes: Any) -> tuple[Summary, Study]:
    study = Study.create(folder, read_config(path, changes), ["test"])
    return search(study), study


def of(study: Study) -> dict[str, BaselineRecord]:
    return {each.summary: each for each in study.baselines()}


# What a user writes


def test_a_name_alone_is_a_baseline_with_fresh_weights(space_file: Callable[..., Path]) -> None:
    given = [RESNET, {"name": EFFICIENTNET, "weights": "pretrained"}]
    first, second = read_config(space_file(compare=given)).compare
    assert (first.weights, first.id, first.summary()) == ("fresh", "timm-test_resnet", RESNET)
    assert second.id == "timm-test_efficientnet-pretrained"
    assert second.summary() == f"{EFFICIENTNET} (pretrained)"
    file = BaselineConfig(name=f"{RESNET}@16", weights="/elsewhere/resnet.pth")
    assert file.id.startswith("timm-test_resnet-") and file.summary() == f"{RESNET} (resnet.pth)"


def test_a_file_of_weights_is_looked_for_beside_the_space(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.pth").touch()
    path = space_file(compare=[{"name": RESNET, "weights": "mine.pth"}])
    (found,) = read_config(path).compare
    assert found.weights == str(tmp_path / "mine.pth")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            ["resnet10t"],
            r"compare\.0\.name: expected timm/NAME or timm/NAME@SIZE.* not 'resnet10t'",
        ),
        ([RESNET, RESNET], "compare: timm/test_resnet: stands there twice"),
        ([RESNET, f"{RESNET}@16"], "compare: timm/test_resnet: stands there twice"),
        ([{"name": RESNET, "weight": "fresh"}], "unknown key 'weight'; did you mean 'weights'"),
        ([f"{RESNET}@0"], "expected timm/NAME"),
    ],
)
def test_what_names_no_baseline_is_refused_when_it_is_read(
    given: list[Any], reason: str, space_file: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match=reason):
        read_config(space_file(compare=given))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            "timm/test_resnett",
            "compare.0: unknown timm network 'test_resnett'; did you mean 'test_",
        ),
        ("timm/test_resnet.tag", "unknown pretrained tag of timm/test_resnet 'tag'"),
        (f"{RESNET}@32", "the data's images have 16 px, .*; write timm/test_resnet$"),
        (f"{RESNET}@16x32", "the data's images have 16 px, .*; write timm/test_resnet$"),
        ("timm/test_convnext", r"takes no images of 16 px \("),
        ({"name": "timm/efficientnet_lite1", "weights": "pretrained"}, "no pretrained weights for"),
        ({"name": RESNET, "weights": "/no/such.pth"}, "/no/such.pth: is no readable checkpoint"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    given: Any, reason: str, space_file: Callable[..., Path], tmp_path: Path
) -> None:
    config = read_config(space_file(compare=[given]))
    with pytest.raises(InputError, match=reason):
        begin(config, tmp_path / "s", ["test"])
    assert not (tmp_path / "s").exists()


def test_a_rectangle_may_be_insisted_on(space_file: Callable[..., Path], tmp_path: Path) -> None:
    data = {"name": "digits", "image_size": [16, 32]}
    first, second = read_config(
        space_file(data=data, compare=[f"{RESNET}@16x32", "timm/test_vit@16x32"])
    ).compare
    assert first.id == "timm-test_resnet"
    network = first.network((16, 32), 1, 10)
    assert network == Baseline("test_resnet", (16, 32), 1, 10)
    first.check((16, 32), 1, 10)
    assert second.network((16, 32), 1, 10).build_to_train("fresh")(network.images()).shape == (
        1,
        10,
    )
    for size, told in (("16", "16x32 px"), ("32x16", "16x32 px")):
        config = read_config(space_file(data=data, compare=[f"{RESNET}@{size}"]))
        with pytest.raises(InputError, match=f"images have {told}, .*; write timm/test_resnet$"):
            begin(config, tmp_path / "s", ["test"])
    config = read_config(space_file(data=data, compare=["timm/test_convnext"]))
    with pytest.raises(InputError, match=r"takes no images of 16x32 px \("):
        begin(config, tmp_path / "s", ["test"])
    with pytest.raises(InputError, match="expected timm/NAME or timm/NAME@SIZE"):
        read_config(space_file(compare=[f"{RESNET}@16x"]))


def test_the_usual_names_are_timms() -> None:
    for name in ("resnet10t", "mobilenetv3_small_050", "efficientnet_lite0"):
        given = BaselineConfig(name=f"timm/{name}")
        assert given.network(64, 3, 10) == Baseline(name, 64, 3, 10)


# Weights to begin with


def test_a_checkpoint_is_taken_with_a_new_head_and_for_other_channels(tmp_path: Path) -> None:
    learnt = timm.create_model("test_resnet", num_classes=7)
    save_weights(learnt, tmp_path / "learnt.safetensors")
    model = Baseline("test_resnet", 16, 1, 10).build_to_train(str(tmp_path / "learnt.safetensors"))
    own, known = model.state_dict(), learnt.state_dict()
    assert torch.equal(own["conv1.0.weight"], known["conv1.0.weight"].sum(1, keepdim=True))
    assert torch.equal(own["layer1.0.conv1.weight"], known["layer1.0.conv1.weight"])
    assert own["fc.weight"].shape == (10, known["fc.weight"].shape[1])
    same = Baseline("test_resnet", 16, 3, 7).build_to_train(str(tmp_path / "learnt.safetensors"))
    assert all(torch.equal(t, known[name]) for name, t in same.state_dict().items())


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_weights(timm.create_model("test_efficientnet"), path)
    told = f"timm/test_resnet: {path}: lacks conv1.0.weight, which is [16, 3, 3, 3] in the network"
    with pytest.raises(InputError, match=re.escape(told)):
        Baseline("test_resnet", 16, 3, 10).build_to_train(str(path))


# In a search


def test_each_is_trained_once_and_measured_again_with_the_front(
    engine: type[BesideEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    summary, study = searched(space_file(**MEASURED), tmp_path / "s")
    assert engine.compared == ["timm-test_resnet", "timm-test_efficientnet"]
    assert {*engine.compared} < {*engine.rounds[0]}, "in one go with the front"
    front = {each.architecture.id for each in summary.front if each.architecture is not None}
    assert front <= {name for names in engine.rounds for name in names}
    found = of(study)
    assert found == {each.summary: each for each in summary.baselines}
    assert found[RESNET].values["latency_ms"] == pytest.approx(0.55)
    assert found[RESNET].values["latency_search_ms"] == 0.5
    assert found[RESNET].values["top1_percent"] == 99.0
    again, _ = searched(space_file(**MEASURED), tmp_path / "s")
    assert again.baselines == summary.baselines
    assert len(engine.compared) == 2, "nothing is left to do"


def test_the_trials_are_those_of_a_search_without_baselines(
    engine: type[BesideEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    _, beside = searched(space_file(**MEASURED), tmp_path / "beside")
    _, alone = searched(space_file(**{**MEASURED, "compare": []}), tmp_path / "alone")
    assert finals(beside) == finals(alone)
    assert alone.baselines() == []


def test_what_is_added_to_a_finished_study_is_trained_alone(
    engine: type[BesideEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    _, before = searched(space_file(**{**MEASURED, "compare": [RESNET]}), tmp_path / "s")
    trials, rounds = finals(before), len(engine.rounds)
    summary, study = searched(space_file(**MEASURED), tmp_path / "s")
    assert engine.compared == ["timm-test_resnet", "timm-test_efficientnet"]
    assert engine.rounds[rounds:] == [["timm-test_efficientnet"]]
    assert engine.evaluated == [] and finals(study) == trials
    assert [each.is_complete for each in summary.baselines] == [True, True]
    searched(space_file(**{**MEASURED, "compare": []}), tmp_path / "s")
    assert Study.open(tmp_path / "s").baselines() == []
    searched(space_file(**MEASURED), tmp_path / "s")
    assert len(engine.compared) == 2, "what was left out is still known"
    assert all(each.is_complete for each in Study.open(tmp_path / "s").baselines())


def test_one_that_fails_is_told_and_tried_once_more_by_the_next_session(
    engine: type[BesideEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    engine.failing.add(RESNET)
    with pytest.warns(UserWarning, match="with timm/test_resnet: no luck today; the same command"):
        summary, study = searched(space_file(**MEASURED), tmp_path / "s")
    assert summary.trials["complete"] > 0 and len(summary.front) > 0
    assert of(study)[RESNET].reason == "no luck today"
    assert of(study)[EFFICIENTNET].is_complete
    with pytest.warns(UserWarning, match="no luck today; it is left alone now"):
        searched(space_file(**MEASURED), tmp_path / "s")
    searched(space_file(**MEASURED), tmp_path / "s")
    assert engine.compared.count("timm-test_resnet") == 2
    sentence = table.beside_baselines(summary.front, summary.baselines, ["top1_percent"])
    assert sentence.endswith("timm/test_resnet failed: no luck today.")


def test_ctrl_c_leaves_the_others_to_the_next_session(
    engine: type[BesideEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    study = Study.create(tmp_path / "s", read_config(space_file(**MEASURED)), ["test"])
    engine.at_rung = True
    summary = search(study, is_asked_to_stop=lambda: bool(engine.compared))
    assert summary.is_interrupted and engine.compared == ["timm-test_resnet"]
    assert not any(each.is_complete for each in study.baselines())
    kept = study.checkpoints / "timm-test_resnet.training.pt"
    kept.parent.mkdir(exist_ok=True)
    kept.touch()
    (study.checkpoints / "gone.training.pt").touch()
    engine.at_rung = False
    opened = Comparisons.run

    def run(self: Comparisons, *given: Any) -> None:
        assert kept.exists(), "it goes on from its checkpoint"
        assert not (study.checkpoints / "gone.training.pt").exists()
        opened(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Comparisons, "run", run)
        search(study)
    assert all(each.is_complete for each in study.baselines())
    assert not kept.exists()


def test_a_full_disk_ends_the_search(
    engine: type[BesideEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    class Full(engine):  # type: ignore[misc, valid-type]
        def submit(self, trial: int, network: Any, taught: bool = True) -> None:
            super().submit(trial, network)
            if trial < 0:
                content = {"refused_by_disk": "No space left"}
                self._events[-1] = Event("failed", trial, "OSError", content=content)

    study = Study.create(tmp_path / "s", read_config(space_file(**MEASURED)), ["test"])
    with pytest.raises(BudgetError, match="No space left; what was finished is kept"):
        search(study, engine=Full)
    assert len(study.records()) == 4


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (BASELINE, {"values": {"top1_percent": "high"}}, "values.top1_percent"),
        (BASELINE, {"values": {"top1_percent": 5.0}, "seconds": 1.0}, "has no latency_ms"),
        (BASELINE, "nothing", "is not what a search writes"),
        (REMEASURED, {"protocol": 3}, "is not what a search writes"),
    ],
)
def test_notes_of_another_shape_are_refused(
    engine: type[BesideEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
    key: str,
    value: Any,
    reason: str,
) -> None:
    _, study = searched(space_file(**MEASURED), tmp_path / "s")
    storage, study_id = study.open_storage()
    storage.set_study_user_attr(study_id, f"{key}timm-test_resnet", value)
    with pytest.raises(InputError, match=reason):
        study.baselines()


# Time


def test_time_is_left_for_what_is_to_be_trained(
    engine: type[BesideEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    changes = {"search.time_s": 100.0, "engine.jobs": 2}
    config = read_config(space_file(**MEASURED), changes)
    study = Study.create(tmp_path / "s", config, ["test"])
    store = TrialStore(study, config.space().distributions())
    comparisons = Comparisons(study, store, CallbackList([]))
    assert comparisons.reserved_s([]) == 0, "nothing is known of their speed"
    network = config.space().sample()[0][0]
    values = {"top1_percent": 50.0, "latency_ms": 1.0}
    record = Record(0, "complete", network, values, None, None, 12.0, {"values": values})
    assert comparisons.reserved_s([record]) == 12.0, "two at once"
    assert comparisons.reserved_s([replace(record, seconds=70.0)]) == 50.0
    facts = PlanInputs(
        300, 60, 10, (1, 2), (1.0, 2.0), 600.0, 2, baselines_ms={"timm-test_resnet": 3.0}
    )
    plan = plan_of((), facts, 32)
    object.__setattr__(comparisons, "_config", config.model_copy(update={"plan": plan}))
    expected = min(50.0, max(plan.baselines_s["timm-test_resnet"], 12.0))
    assert comparisons.reserved_s([record]) == pytest.approx(expected)


def test_a_plan_shares_the_budget_with_what_it_compares_with() -> None:
    facts = PlanInputs(768, 192, 16, (4, 8), (2.0, 4.0), budget_s=900.0, jobs=2, reduction=3.0)
    alone = plan_of((), facts, 64)
    assert alone.baselines_s == {}
    beside = plan_of((), facts._replace(baselines_ms={"one": 3.0, "slow": 6.0}), 64)
    assert beside.baselines_s["slow"] == pytest.approx(2 * beside.baselines_s["one"], rel=0.01)
    assert beside.baselines_s["one"] == pytest.approx(beside.network_s, rel=0.01)
    assert beside.network_s < alone.network_s or beside.networks < alone.networks
    trainings_s = beside.networks * beside.network_s + sum(beside.baselines_s.values())
    assert trainings_s <= 2 * 900


@pytest.mark.slow
def test_what_is_compared_with_is_timed_for_a_plan(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    train = {"epochs": "auto", "device": "cpu"}
    path = space_file(train=train, compare=[RESNET], search={"trials": None, "time_s": 60.0})
    told: list[str] = []
    config = begin(read_config(path), tmp_path / "s", ["test"], say=told.append).config
    assert config.plan is not None and len(config.plan.image_ms) == 3
    assert config.plan.baselines_s["timm-test_resnet"] > 0
    assert "in the end, to compare with: timm/test_resnet (" in told[-1]


# What is said of it


@pytest.fixture
def whole(engine: type[BesideEngine], space_file: Callable[..., Path], tmp_path: Path) -> Study:
    _, study = searched(space_file(**MEASURED), tmp_path / "s")
    return study


def test_it_is_said_which_dominate_the_front_and_which_do_not() -> None:
    def member(trial: int, percent: float, ms: float) -> Record:
        values = {"top1_percent": percent, "latency_ms": ms}
        return Record(trial, "complete", None, values, None, None, 1.0, {})

    def beside(name: str, percent: float, ms: float) -> BaselineRecord:
        values = {"top1_percent": percent, "latency_ms": ms}
        return BaselineRecord(BaselineConfig(name=f"timm/{name}"), values, {})

    front = [member(4, 80, 1.0), member(1, 85, 2.0), member(7, 90, 4.0)]
    objectives = ("top1_percent", "latency_ms")

    def said(*baselines: BaselineRecord) -> str:
        return table.beside_baselines(front, baselines, objectives)

    assert said() == ""
    both = "By top1_percent and latency_ms: timm"
    assert said(beside("good", 85, 0.9)) == f"{both}/good dominates 2 of 3 networks (trial 1, 4)."
    none = "No baseline dominates a network of the front."
    assert said(beside("poor", 80, 3.0)) == (
        f"{both}/poor is dominated by 2 of 3 networks (trial 1, 4). {none}"
    )
    assert said(beside("equal", 85, 2.0), beside("new", 87, 3.0)) == (
        f"{both}/equal would be on the front, and dominates none there; "
        f"timm/new would be on the front, and dominates none there. {none}"
    )
    waits = BaselineRecord(BaselineConfig(name="timm/waits"), {}, {})
    assert said(waits) == "timm/waits is not trained yet."


@pytest.mark.parametrize(
    ("percent", "standing"), [(95.0, "higher"), (81.0, "same"), (40.0, "lower")]
)
def test_an_accuracy_stands_beside_the_best(percent: float, standing: str, whole: Study) -> None:
    attributes = whole.attributes()
    key = f"{BASELINE}timm-test_resnet"
    values = {**attributes[key]["values"], "top1_percent": percent}
    attributes[key] = {**attributes[key], "values": values}
    records = [
        replace(each, values={**each.values, "top1_percent": 80.0 - each.trial})
        for each in whole.records()
    ]
    verdict = judged(records, attributes, whole.config)
    found = verdict.by_baseline["timm-test_resnet"]
    assert (found.vs_best, found.images) == (standing, DATA["val_images"])
    assert ("Of a baseline, higher is" in verdict.legend()) == (standing == "higher")


def test_the_front_has_rows_of_their_own(whole: Study, cli: Cli) -> None:
    front = table.front(whole.records(), whole.config.objectives)
    rows = json.loads(cli("front", whole.folder, "--format", "json").stdout)
    members = [row for row in rows if row["trial"] is not None]
    assert [row["trial"] for row in members] == [record.trial for record in front]
    assert not any("baseline" in row for row in members)
    first, second = rows[len(members) :]
    assert (first["baseline"], first["weights"], first["architecture"]) == (RESNET, "fresh", None)
    assert first["top1_percent"] == 99.0 and first["latency_ms"] == pytest.approx(0.55)
    assert first["vs_best"] == "higher" and second["vs_best"] == "lower"
    shown = cli("front", whole.folder).stdout
    lines = [line for line in shown.splitlines() if line.lstrip().startswith("baseline")]
    assert [line.split()[-1] for line in lines] == [RESNET, EFFICIENTNET]
    said = " ".join(shown.split())
    count = "1 of 1 network" if len(front) == 1 else f"{len(front)} of {len(front)} networks"
    assert f"timm/test_resnet dominates {count}" in said
    found = cli("front", whole.folder, "--format", "markdown")
    assert "| baseline | 99.00 |" in found.stdout and "dominates" in found.stderr
    found = cli("front", whole.folder, "--format", "csv")
    assert len(list(csv.DictReader(found.stdout.splitlines()))) == len(front)
    assert ls.baselines(whole) == whole.baselines()


def test_a_run_tells_of_them_in_json(
    engine: type[BesideEngine], space_file: Callable[..., Path], cli: Cli
) -> None:
    found = cli("run", space_file(**MEASURED), "--study", "s", "--json")
    assert found.returncode == 0
    said = json.loads(found.stdout)
    assert [row["baseline"] for row in said["baselines"]] == [RESNET, EFFICIENTNET]
    assert all(row["trial"] is not None for row in said["front"])
    assert "timm/test_resnet: top1_percent 99.00, latency_ms 0.5" in found.stderr


def test_the_report_draws_them_on_the_front(whole: Study) -> None:
    document = contents(whole)
    first, second = document["baselines"]
    assert (first["name"], first["values"]["top1_percent"]) == (RESNET, 99.0)
    assert second["accuracy"]["vs_best"] == "lower"
    assert "timm/test_resnet dominates" in document["beside_baselines"]
    drawn = figures(document)
    for name in ("front-latency_ms", "front-flops"):
        (chart,) = drawn[name]
        assert isinstance(chart, Chart)
        (series,) = [series for series in chart.series if series.name == "compared with"]
        assert list(series.y) == [99.0, 20.0]
    page = write_report(whole).read_text()
    found = json.loads(page.split('id="study">')[1].split("</script>")[0])
    assert found["baselines"][0]["texts"]["top1_percent"] == "99.00"
    assert found["baselines"][0]["accuracy"]["interval"]


def test_a_failed_one_is_in_the_report_with_its_reason(
    engine: type[BesideEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    engine.failing.add(RESNET)
    with pytest.warns(UserWarning, match="no luck today"):
        _, study = searched(space_file(**MEASURED), tmp_path / "s")
    first = contents(study)["baselines"][0]
    assert (first["values"], first["accuracy"], first["reason"]) == ({}, None, "no luck today")
    write_report(study)


# Trained and measured for real


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("real")
    sections = {"compare": [RESNET], "search": {"trials": 2, "sampler": "random"}}
    sections |= {"objectives": ["top1_percent", "latency_ms"], "latency": {"seconds": 0.2}}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_space(**sections)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        study = Study.create(folder / "s", read_config(path), ["test"])
        search(study, engine=HereEngine)
    return study


@pytest.mark.slow
def test_a_search_trains_and_measures_a_network_of_timm(real: Study) -> None:
    (found,) = real.baselines()
    counted = sum(each.numel() for each in Baseline("test_resnet", 16, 1, 10).build().parameters())
    assert found.values["params"] == counted
    assert 0 <= found.values["top1_percent"] <= 100
    assert found.values["latency_ms"] > 0 and found.values["latency_search_ms"] > 0
    assert len(found.evaluation["training"]["curve"]) == real.config.train.epochs
    assert (real.folder / found.evaluation["latency"]["samples_file"]).is_file()
    weights = real.weights("timm-test_resnet")
    assert weights.is_file()
    Baseline("test_resnet", 16, 1, 10).build_to_train(str(weights))


def test_a_search_on_rectangles_compares_with_networks_of_timm(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(
        data={"name": "digits", "image_size": [16, 24], "train_images": 200},
        compare=[f"{RESNET}@16x24"],
        search={"trials": 1, "sampler": "random"},
        objectives=["top1_percent", "flops"],
    )
    study = Study.create(tmp_path / "s", read_config(path), ["test"])
    search(study, engine=HereEngine)
    (found,) = study.baselines()
    square = Baseline("test_resnet", 16, 1, 10)
    assert found.values["flops"] > baseline.count(square).total.flops
    assert found.values["params"] == baseline.count(square).total.params
    assert 0 <= found.values["top1_percent"] <= 100


def test_training_goes_on_from_its_checkpoint(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"epochs": 2, "batch_size": 64, "lr": 5.0e-3, "device": "cpu", "rungs": [1]}
    config = read_config(space_file(train=train, compare=[RESNET]))
    (given,) = config.compare
    sample = config.space().sample()[0][0]
    trained: list[int] = []
    train_epoch = _Run.train_epoch

    def counted(self: _Run, *told: Any) -> None:
        train_epoch(self, *told)
        trained.append(len(self.curve))

    monkeypatch.setattr(_Run, "train_epoch", counted)

    def found(folder: Path, decide: Callable[..., bool]) -> dict[str, Any]:
        evaluator = Evaluator(config, folder, {})
        with closing(evaluator):
            evaluator.prepare(sample, lambda text, fraction: None)
            return evaluator.compare(given, lambda text, fraction: None, decide).values

    def stop(epoch: int, values: dict[str, float]) -> bool:
        raise EOFError(epoch)

    (tmp_path / "killed").mkdir()
    with pytest.raises(EOFError):
        found(tmp_path / "killed", stop)
    again = found(tmp_path / "killed", goes_on)
    assert trained == [1, 2], "no epoch is trained twice"
    (tmp_path / "whole").mkdir()
    assert again == found(tmp_path / "whole", goes_on)


@pytest.mark.slow
def test_the_card_of_an_export_has_a_row_for_each(real: Study, tmp_path: Path) -> None:
    ls.write_export(real, "accurate", tmp_path / "out", ExportOptions(probe=False))
    card = (tmp_path / "out" / "README.md").read_text()
    part = card.split("## Compared with")[1].split("## Use")[0]
    record = ls.pick(real, "accurate")
    (found,) = real.baselines()
    ratio = found.values["latency_ms"] / record.values["latency_ms"]
    (row,) = [line for line in part.splitlines() if line.startswith("| timm/test")]
    assert f"{ratio:.3f} x" in row and f"{found.values['top1_percent']:.2f} %" in row
    assert "| this one |" in part and "1.000 x" in part
