"""The driver: limits, repeats, what is tried first, determinism, and going on where it was."""

import csv
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from levit_search import architecture, table
from levit_search.architecture import Architecture
from levit_search.audit import search_cost
from levit_search.cost import cost
from levit_search.engine.interface import Event, Settled
from levit_search.errors import BudgetError, InputError
from levit_search.export import pick
from levit_search.search import begin, driver, search
from levit_search.search.setup import start_values
from levit_search.search.trials import TrialStore
from levit_search.study import Record, Study, read_config
from levit_search.study.restore import restore
from tests.conftest import ROOT
from tests.engines import (
    WORST,
    CurveEngine,
    FailingEngine,
    HereEngine,
    PredictingEngine,
    StubEngine,
    finals,
    run,
)
from tests.networks import tiny_description


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> type[StubEngine]:
    monkeypatch.setattr(driver, "make_engine", StubEngine)
    return StubEngine


def test_limits_turn_proposals_down_without_using_up_the_budget(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    stages = [
        {"depth": 1, "embed_dim": 16, "num_heads": 1, "key_dim": 8},
        {"depth": 2, "embed_dim": 32, "num_heads": 2, "key_dim": 8},
    ]
    large = tiny_description(stages=stages)
    path = space_file(limits={"flops": 130_000}, start=[large])
    summary, study = run(path, tmp_path / "s", **{"search.trials": 6})
    records = study.records()
    over = [r for r in records if r.state == "pruned"]
    assert over, "the one to start with is"
    assert len(stub.evaluated) == 6
    assert summary.trials["evaluated"] == 6
    assert all(record.values["flops"] > 130_000 for record in over)
    assert all("flops over the limit of 130,000" in (record.reason or "") for record in over)
    assert all(r.values["flops"] <= 130_000 for r in records if r.state == "complete")
    constraints = [t.constraints for t in study.storage().trials if t.state == TrialState.PRUNED]
    assert all(found["flops"] > 0 for found in constraints)


def test_a_repeat_reuses_the_figures_and_a_small_space_ends_the_search(
    stub: type[StubEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    summary, study = run(space_file(), tmp_path / "s", **{"search.trials": 100})
    assert len(stub.evaluated) == len(set(stub.evaluated)) == 14  # 2 of one stage, 12 of two
    assert summary.trials["reused"] > 0
    assert summary.stopped_because == "no new network within the limits was found in the space"
    by_trial = {record.trial: record for record in study.records()}
    for record in by_trial.values():
        if record.reused_from is not None:
            assert record.values == by_trial[record.reused_from].values


def test_a_network_over_the_latency_limit_is_known_as_such(
    stub: type[StubEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StubEngine, "latency_ms", 9.0)
    path = space_file(limits={"latency_ms": 5})
    with pytest.raises(BudgetError, match="latency_ms 9 over the limit of 5"):
        run(path, tmp_path / "s")
    assert len(stub.evaluated) == len(set(stub.evaluated)), "none was probed twice"


def test_given_and_published_networks_come_first(
    stub: type[StubEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = yaml.safe_load((ROOT / "spaces" / "levit-imagenet.yaml").read_text())
    given = architecture.published("LeViT-192").model_dump(mode="json")
    given["drop_path"] = 0.1
    raw["start"] = [given, "LeViT-384"]
    raw["search"]["trials"] = 8
    path = tmp_path / "imagenet.yaml"
    path.write_text(yaml.safe_dump(raw))
    run(path, tmp_path / "s")
    names = ["LeViT-384", "LeViT-128S", "LeViT-128", "LeViT-192", "LeViT-256"]
    expected = [architecture.parse(given).id, *(architecture.published(n).id for n in names)]
    assert stub.evaluated[:6] == expected
    assert len(set(stub.evaluated)) == 8


def test_a_given_network_outside_the_space_is_wrong_input(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"start: LeViT-256 .* is not in the space"):
        run(space_file(start=["LeViT-256"]), tmp_path / "s")


UNSIZED = {
    "stem": {"kind": "conv", "layers": 2},
    "stages": [{"depth": 1, "embed_dim": 16, "num_heads": 1, "key_dim": 8}],
}


def test_networks_to_start_with_take_from_the_data_what_they_leave_out(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    stage = {"depth": 1, "embed_dim": 8, "num_heads": 1, "key_dim": 8}
    small = {**UNSIZED, "stages": [stage]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(small))
    inline = {**UNSIZED, "stages": [{**stage, "embed_dim": 16}]}
    run(space_file(start=["mine.yaml", inline]), tmp_path / "s", **{"data.image_size": 32})
    sizes = {"image_size": 32, "in_channels": 1, "num_classes": 10}
    assert stub.evaluated[:2] == [architecture.parse({**n, **sizes}).id for n in (small, inline)]


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"num_classes": 12}, r"start\.0\.num_classes: 12 differs from the data's 10"),
        ({"in_channels": 3}, r"start\.0\.in_channels: 3 differs from the data's 1"),
        ({"image_size": 32}, r"start\.0\.image_size: 32 differs from the data's 16"),
        ({"stages": []}, r"start\.0: stages: "),
    ],
)
def test_a_network_to_start_with_that_insists_on_other_data_is_wrong_input(
    stated: dict[str, Any], told: str, space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(start=[{**UNSIZED, **stated}])
    with pytest.raises(InputError, match=told):
        begin(read_config(path), tmp_path / "s", [], where=str(path))
    assert not (tmp_path / "s").exists()


def test_a_network_to_start_with_that_goes_with_other_sizes_is_left_out_and_told(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(start=[UNSIZED, {**UNSIZED, "stem": {"kind": "conv", "layers": 3}}])
    config = read_config(path, {"data.image_size": 20})
    with pytest.warns(UserWarning, match=r"^start\.1: image_size: 20 px is no multiple of .* 8;"):
        found = start_values(config, config.space(), "space.yaml")
    assert len(found) == 1


def test_published_networks_are_tried_first_with_the_classes_of_the_data() -> None:
    path = ROOT / "spaces" / "levit-imagenet.yaml"
    changes: dict[str, Any] = {"architecture.num_classes": 8, "architecture.in_channels": 1}
    config = read_config(path, changes)
    found = start_values(config, config.space(), str(path))
    sizes = {"image_size": 224, "in_channels": 1, "num_classes": 8}
    assert list(found) == [
        architecture.fitted(architecture.published(name), **sizes).id
        for name in architecture.LEVITS
    ]
    smaller = read_config(path, {**changes, "data.image_size": 192})
    assert start_values(smaller, smaller.space(), str(path)) == {}, "none was published for 192 px"


@pytest.mark.parametrize("size", [16, 32, 48, 64, 96, 128, 224])
@pytest.mark.parametrize("name", ["levit", "levit-fashion", "grafting", "photos"])
def test_embedded_spaces_begin_at_any_size_and_number_of_classes(name: str, size: int) -> None:
    changes = {"data.name": "digits", "data.image_size": size, "limits.flops": None}
    config = read_config(ROOT / "spaces" / f"{name}.yaml", changes)
    config.check_data()
    for classes in (2, 1000):
        architecture_section = {**config.architecture, "num_classes": classes}
        sized = config.model_copy(update={"architecture": architecture_section})
        space = sized.space()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # grafts of four stages do not go with all sizes
            found = start_values(sized, space, name)
        # Three stages are too many for 16 px behind a stem of three layers.
        assert bool(found) == ((name, size) != ("photos", 16))
        reference = sized.latency.reference_for(**space.sizes)
        assert architecture.sizes_of(reference) == space.sizes


def test_a_search_whose_first_trials_all_fail_gives_up(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", FailingEngine)
    with pytest.raises(BudgetError, match="no luck today"):
        run(space_file(), tmp_path / "s")


def test_same_seed_same_trials_and_another_seed_others(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    space = {"search.trials": 8}
    one = finals(run(space_file(), tmp_path / "a", **space)[1])
    assert finals(run(space_file(), tmp_path / "b", **space)[1]) == one
    other = finals(run(space_file(), tmp_path / "c", **space, **{"search.seed": 1})[1])
    assert other != one


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, write: int, after: bool) -> None:
    """Let the process die at one of its writes, before or after it has reached the storage."""
    writes = 0

    def dying(name: str) -> Callable[..., object]:
        whole = getattr(RDBStorage, name)

        def one(self: RDBStorage, *arguments: object, **named: object) -> object:
            nonlocal writes
            writes += 1
            if writes == write and not after:
                raise Killed
            found = whole(self, *arguments, **named)
            if writes == write:
                raise Killed
            return found

        return one

    for name in ("set_trial_user_attr", "set_trial_system_attr", "set_trial_state_values"):
        monkeypatch.setattr(RDBStorage, name, dying(name))
    # What the cache in front of the database calls to create a trial.
    monkeypatch.setattr(RDBStorage, "_create_new_trial", dying("_create_new_trial"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "after"),
    [
        ("freeze-thaw", True),
        ("freeze-thaw", False),
        ("tpe", True),
        ("tpe", False),
        ("nsga2", True),
        ("random", False),
    ],
)
def test_killed_at_any_write_it_ends_as_if_undisturbed(
    sampler: str,
    after: bool,
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    path = space_file(
        storage=None,
        limits={"flops": 150_000},
        train={"epochs": 9, "rungs": [1, 3], "device": "cpu"},
        search={"trials": 10, "sampler": sampler, "startup_trials": 3},
    )
    undisturbed = finals(run(path, tmp_path / "whole")[1])
    folder, kills = tmp_path / "killed", 0
    for write in (3, 11, 2, 5, 7, 1, 17, 9):
        with monkeypatch.context() as patch:
            kill_at(patch, write, after)
            try:
                run(path, folder)
            except Killed:
                kills += 1
    _, study = run(path, folder)
    assert kills >= 5
    assert finals(study) == undisturbed
    assert all(trial.state.is_finished() for trial in study.storage().trials)


def test_rungs_stop_candidates_and_what_was_stopped_is_not_on_the_front(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    path = space_file(train={"epochs": 9, "rungs": [1, 3], "device": "cpu"})
    summary, study = run(path, tmp_path / "s", **{"search.trials": 12})
    records = [record for record in study.records() if record.reused_from is None]
    stopped = [record for record in records if record.is_stopped]
    assert summary.trials["stopped"] == len(stopped) > 0
    for record in stopped:
        assert record.state == "pruned"
        assert "top1_percent" not in record.values
        assert record.reason == f"stopped at epoch {record.rungs[-1]['epoch']} of 9"
        assert len(record.evaluation["training"]["curve"]) == record.rungs[-1]["epoch"]
    assert not {record.trial for record in stopped} & {record.trial for record in summary.front}
    complete = [record for record in records if record.state == "complete"]
    assert all(len(record.rungs) == 2 for record in complete)
    assert len(complete) + len(stopped) == 12


def test_what_is_paused_goes_on_in_a_trial_that_says_so_and_counts_once(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    path = space_file(
        train={"epochs": 9, "rungs": [1, 3], "device": "cpu"},
        search={"sampler": "freeze-thaw", "startup_trials": 4},
    )
    summary, study = run(path, tmp_path / "s", **{"search.trials": 12})
    records = {record.trial: record for record in study.records()}
    resumed = [record for record in records.values() if record.resumes is not None]
    assert resumed
    for record in resumed:
        assert record.resumes is not None
        before = records[record.resumes]
        assert before.is_stopped
        assert before.architecture == record.architecture
        assert len(record.rungs) > len(before.rungs) or record.state == "complete"
        assert [rung["goes_on"] for rung in record.rungs[: len(before.rungs)]] == [
            *(rung["goes_on"] for rung in before.rungs[:-1]),
            True,
        ]
    networks = {record.architecture.id for record in records.values() if record.architecture}
    assert summary.trials["evaluated"] == len(networks) == 12
    latest = {
        r.architecture.id: r for r in records.values() if r.architecture and not r.reused_from
    }
    assert summary.trials["stopped"] == sum(record.is_stopped for record in latest.values())
    saved = search_cost.savings(list(records.values()), 9)
    assert saved is not None
    assert saved.trained == 12
    assert saved.epochs + saved.epochs_saved >= 12 * 9, "an epoch without a checkpoint counts twice"


def test_another_study_is_learnt_from_and_remembered(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    path = space_file(
        train={"epochs": 9, "rungs": [1, 3], "device": "cpu"},
        search={"sampler": "freeze-thaw", "startup_trials": 4},
    )
    _, first = run(path, tmp_path / "first", **{"search.trials": 12, "search.reduction": None})
    changes = {"search.trials": 6, "search.learn_from": str(first.folder)}
    _, study = run(path, tmp_path / "second", **changes)
    assert len(study.attributes()["earlier"]) == 12
    first.folder.rename(tmp_path / "gone")
    _, study = run(path, tmp_path / "second", **{**changes, "search.trials": 8})
    assert len({record.architecture for record in study.records()}) == 8
    with pytest.raises(InputError, match=r"first.*no such|first.*not a study|first.*no study"):
        run(path, tmp_path / "third", **changes)
    _, few = run(path, tmp_path / "few", **{"search.trials": 3})
    with pytest.raises(InputError, match="networks of this space; it takes 8"):
        run(path, tmp_path / "fourth", **{"search.learn_from": str(few.folder)})
    with pytest.raises(InputError, match=r"search\.learn_from needs the sampler freeze-thaw"):
        run(path, tmp_path / "fifth", **{**changes, "search.sampler": "tpe"})


def test_a_search_ends_when_its_front_no_longer_moves(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    path = space_file(
        train={"epochs": 9, "rungs": [1, 3], "device": "cpu"},
        search={"sampler": "freeze-thaw", "startup_trials": 4},
    )
    given = {"search.trials": None, "search.time_s": 600, "search.until": "converged"}
    summary, study = run(path, tmp_path / "s", **given)
    ends = ("of the last 10 trainings none was expected", "no new network")
    assert summary.stopped_because.startswith(ends)
    found = search_cost.settled(study.records())
    assert found is not None
    assert (found["trial"] is not None) == summary.stopped_because.startswith(ends[0])


@pytest.mark.parametrize("trials", [1, 2])
def test_of_few_trials_one_is_trained_to_the_end(
    trials: int, space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    costly = [
        {"depth": 1, "embed_dim": 16, "num_heads": 1, "key_dim": 8},
        {"depth": 2, "embed_dim": 32, "num_heads": 2, "key_dim": 8},
    ]
    path = space_file(
        train={"epochs": 3, "rungs": [1], "device": "cpu"},
        search={"sampler": "freeze-thaw"},
        start=[{"stem": {"kind": "conv", "layers": 2}, "stages": costly}],
    )
    summary, _ = run(path, tmp_path / "s", **{"search.trials": trials})
    assert summary.front


def test_without_a_reduction_all_are_trained_to_the_end(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    path = space_file(train={"epochs": 9, "rungs": [1, 3], "device": "cpu"})
    changes = {"search.trials": 8, "search.reduction": None}
    summary, _ = run(path, tmp_path / "s", **changes)
    assert summary.trials["stopped"] == 0
    assert summary.trials["evaluated"] == 8


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "random", "grid"])
def test_a_run_in_two_sessions_proposes_what_one_session_does(
    sampler: str,
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    path = space_file(
        train={"epochs": 9, "rungs": [1, 3], "device": "cpu"},
        search={"sampler": sampler, "startup_trials": 3},
    )
    whole = finals(run(path, tmp_path / "a", **{"search.trials": 12})[1])
    for trials in (5, 12):
        _, study = run(path, tmp_path / "b", **{"search.trials": trials})
    assert finals(study) == whole


@pytest.mark.parametrize(
    "sampler", ["tpe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nsga2", "nsga3"))]
)
def test_many_generations_in_two_sessions_are_those_of_one(sampler: str, tmp_path: Path) -> None:
    """Also where what is expected of stopped parents has changed in between."""
    changes = {
        "objectives": ["top1_percent", "flops"],
        "storage": "journal",
        "start": [],
        "search.sampler": sampler,
        "train.rungs": [1, 3],
    }

    def trials(folder: Path, *budgets: int) -> list[tuple[int, str, dict[str, float]]]:
        for budget in budgets:
            config = read_config(ROOT / "spaces" / "levit.yaml", changes)
            # The budget of the first session settles how many make a generation.
            search_ = config.search.model_copy(update={"trials": budget})
            study = Study.create(folder, config.model_copy(update={"search": search_}), ["test"])
            search(study, engine=CurveEngine)
        return finals(study)

    one = trials(tmp_path / "one", 20, 60)
    assert trials(tmp_path / "two", 20, 33, 47, 60) == one
    assert len(one) >= 60


class Failing(CurveEngine):
    """Fails for every network but the first few."""

    works = 2

    def __init__(self, study: Study, sample: Architecture, settled: Settled) -> None:
        super().__init__(study, sample, settled)
        self.tried: list[str] = []
        type(self).last = self

    last: "Failing"

    def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
        self.tried.append(network.id)
        if len(self.tried) <= self.works:
            super().submit(trial, network)
            return
        self._running[trial] = network, []
        self._events.append(Event("failed", trial, "no space left on device"))


def test_a_device_that_goes_away_does_not_use_up_the_budget(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", Failing)
    with pytest.raises(BudgetError, match=r"10 trials in a row failed.* no space left on device"):
        run(space_file(), tmp_path / "s", **{"search.trials": 200})
    assert len(Failing.last.tried) == 12


@pytest.mark.parametrize(
    ("budget", "tried", "message"),
    [(200, 10, "10 trials in a row failed"), (4, 4, "all 4 networks failed")],
)
def test_a_session_that_begins_with_failures_ends_after_ten_or_its_budget(
    budget: int,
    tried: int,
    message: str,
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "make_engine", Failing)
    monkeypatch.setattr(Failing, "works", 0)
    with pytest.raises(BudgetError, match=f"{message}, the last with: no space left on device"):
        run(space_file(), tmp_path / "s", **{"search.trials": budget})
    assert len(Failing.last.tried) == tried


def test_nine_failures_at_the_start_do_not_end_a_session(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailsAtFirst(CurveEngine):
        failures = 0

        def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
            if type(self).failures == 9:
                super().submit(trial, network)
                return
            type(self).failures += 1
            self._running[trial] = network, []
            self._events.append(Event("failed", trial, "it is too large"))

    monkeypatch.setattr(driver, "make_engine", FailsAtFirst)
    summary, _ = run(space_file(), tmp_path / "s", **{"search.trials": 20})
    assert (summary.trials["failed"], summary.trials["evaluated"]) == (9, 20)


def test_a_network_that_failed_twice_is_not_tried_again(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneFails(CurveEngine):
        tried: ClassVar[list[str]] = []

        def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
            self.tried.append(network.id)
            if network.id != self.tried[0]:
                super().submit(trial, network)
                return
            self._running[trial] = network, []
            self._events.append(Event("failed", trial, "it is too large"))

    monkeypatch.setattr(driver, "make_engine", OneFails)
    summary, _ = run(space_file(), tmp_path / "s", **{"search.trials": 60})
    assert OneFails.tried.count(OneFails.tried[0]) <= 2
    assert len(set(OneFails.tried)) == 14
    assert summary.trials["failed"] == OneFails.tried.count(OneFails.tried[0])


def test_trials_left_over_are_finished_with_a_smaller_budget(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    with monkeypatch.context() as patch:
        kill_at(patch, 12, False)
        with pytest.raises(Killed):
            run(space_file(storage=None), tmp_path / "s", **{"search.trials": 10})
    _, study = run(space_file(storage=None), tmp_path / "s", **{"search.trials": 1})
    assert all(trial.state.is_finished() for trial in study.storage().trials)


def test_two_jobs_never_evaluate_one_network_twice(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    path = space_file(engine={"jobs": 4}, train={"epochs": 9, "rungs": [1, 3], "device": "cpu"})
    _, study = run(path, tmp_path / "s", **{"search.trials": 14})
    evaluated = [
        record.architecture.id
        for record in study.records()
        if record.reused_from is None and record.architecture is not None
    ]
    assert len(evaluated) == len(set(evaluated)) == 14


def test_a_second_driver_is_refused(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    _, study = run(space_file(), tmp_path / "s")
    with study.lock(), pytest.raises(InputError, match="another levit-search run"):
        search(study)


IMAGES = {
    "id": "first",
    "train_images": 256,
    "val_images": 288,
    "test_images": 360,
    "num_classes": 10,
    "guess_percent": 10.1,
    "mirrored": False,
}


def test_images_that_changed_between_sessions_are_refused_until_they_are_back(
    stub: type[StubEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StubEngine, "data", IMAGES)
    _, study = run(space_file(), tmp_path / "s", **{"search.trials": 2})
    for changed, told in (
        ({"id": "other", "num_classes": 11}, "num_classes 10 then, 11 now"),
        ({"id": "other"}, "as many as now, of other content"),
    ):
        monkeypatch.setattr(StubEngine, "data", IMAGES | changed)
        with pytest.raises(InputError, match=rf"other images \({told}\); put the old ones back"):
            run(space_file(), tmp_path / "s", **{"search.trials": 4})
        assert study.attributes()["data"] == IMAGES
        assert len(study.records()) == 2
    monkeypatch.setattr(StubEngine, "data", IMAGES)
    summary, _ = run(space_file(), tmp_path / "s", **{"search.trials": 4})
    assert summary.trials["evaluated"] == 4


def test_a_study_of_an_older_release_gets_intervals_as_it_goes_on(
    stub: type[StubEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summary, study = run(space_file(), tmp_path / "s", **{"search.trials": 2})
    assert (summary.verdict.kind, summary.verdict.by_trial) == ("unknown", {})
    monkeypatch.setattr(StubEngine, "data", IMAGES)
    summary, study = run(space_file(), tmp_path / "s", **{"search.trials": 4})
    complete = {record.trial for record in study.records() if record.state == "complete"}
    assert summary.verdict.by_trial.keys() == complete
    rows = list(csv.DictReader((study.folder / "trials.csv").open()))
    assert {row["val_images"] for row in rows if row["state"] == "complete"} == {"288"}


def test_trials_on_other_images_are_not_taken_over(
    stub: type[StubEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StubEngine, "data", IMAGES)
    _, source = run(space_file(), tmp_path / "a", **{"search.trials": 2})
    monkeypatch.setattr(StubEngine, "data", IMAGES | {"id": "other"})
    study = Study.create(tmp_path / "b", read_config(space_file(), {}), ["test"])
    with pytest.raises(InputError, match=r"a: its accuracies were measured on other images"):
        search(study, take_from=source.folder)
    assert study.records() == []


BY_PREDICTION = {"objectives": ["top1_percent", "latency_ms"], "latency": {"method": "predicted"}}


def front_of(study: Study) -> list[Record]:
    return table.front(study.records(), study.config.objectives)


def test_a_search_by_prediction_measures_all_of_its_front(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", PredictingEngine)
    summary, study = run(space_file(**BY_PREDICTION), tmp_path / "s", **{"search.trials": 12})
    asked = PredictingEngine.verified
    assert len(asked) == len(set(asked)) < 12, "measured once, and only what came to the front"
    front = front_of(study)
    assert [record.trial for record in front] == [record.trial for record in summary.front]
    for record in front:
        network = record.architecture
        assert network is not None
        assert network.id in asked
        assert record.values["latency_ms"] == PredictingEngine.true_ms(network)
        predicted = PredictingEngine.predicted_ms(network)
        assert record.values["latency_predicted_ms"] == predicted
        error = 100 * (predicted / record.values["latency_ms"] - 1)
        assert record.values["prediction_error_percent"] == pytest.approx(error)
        assert record.evaluation["latency"]["predicted"]["latency_ms"] == predicted
    text = table.markdown(front, study.config.objectives)
    assert "| latency ms | ± % | in search ms | predicted ms | error % |" in text
    # Going on finds nothing left to do.
    again, _ = run(space_file(**BY_PREDICTION), tmp_path / "s", **{"search.trials": 12})
    assert again.stopped_because == "the budget was used up before"


def test_measuring_the_front_goes_on_after_a_kill(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(PredictingEngine):
        def verify(self, trial: int, network: Architecture) -> None:
            if len(self.verified) == 1:
                raise KeyboardInterrupt
            super().verify(trial, network)

    monkeypatch.setattr(driver, "make_engine", Killed)
    with pytest.raises(KeyboardInterrupt):
        run(space_file(**BY_PREDICTION), tmp_path / "s", **{"search.trials": 12})
    before = list(Killed.verified)
    assert len(before) == 1
    monkeypatch.setattr(driver, "make_engine", PredictingEngine)
    _, study = run(space_file(**BY_PREDICTION), tmp_path / "s", **{"search.trials": 12})
    assert before[0] not in PredictingEngine.verified, "what was measured is not measured again"
    ids = {r.architecture.id for r in front_of(study) if r.architecture is not None}
    assert ids <= {*before, *PredictingEngine.verified}


def test_a_network_that_cannot_be_measured_is_not_on_the_front(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(PredictingEngine):
        def verify(self, trial: int, network: Architecture) -> None:
            if self.verified:
                super().verify(trial, network)
                return
            self.verified.append(network.id)
            self._busy = True
            self._events.append(Event("failed", trial, "the device is gone"))

    monkeypatch.setattr(driver, "make_engine", Failing)
    _, study = run(space_file(**BY_PREDICTION), tmp_path / "s", **{"search.trials": 12})
    lost = Failing.verified[0]
    (record,) = [
        r
        for r in study.records()
        if r.architecture is not None and r.architecture.id == lost and r.reused_from is None
    ]
    assert record.state == "failed"
    assert record.reason == "the device is gone"
    assert lost not in {r.architecture.id for r in front_of(study) if r.architecture is not None}


def test_a_device_that_is_gone_costs_no_trial(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(PredictingEngine):
        def verify(self, trial: int, network: Architecture) -> None:
            self.verified.append(network.id)
            self._busy = True
            self._events.append(Event("failed", trial, "no route to host"))

    monkeypatch.setattr(driver, "make_engine", Gone)
    with pytest.raises(BudgetError, match="no route to host; the same command tries again"):
        run(space_file(**BY_PREDICTION), tmp_path / "s", **{"search.trials": 12})
    assert len(Gone.verified) <= 3
    monkeypatch.setattr(driver, "make_engine", PredictingEngine)
    _, study = run(space_file(**BY_PREDICTION), tmp_path / "s", **{"search.trials": 12})
    assert all("prediction_error_percent" in record.values for record in front_of(study))
    assert all(record.state != "failed" for record in study.records())


def test_a_network_that_turns_out_to_be_too_slow_is_not_on_the_front(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", PredictingEngine)
    path = space_file(limits={"latency_ms": 1.3}, **BY_PREDICTION)
    _, study = run(path, tmp_path / "s", **{"search.trials": 12})
    assert all(record.values["latency_ms"] <= 1.3 for record in front_of(study))
    told = [r for r in study.records() if "prediction_error_percent" in r.values]
    told = [record for record in told if record.state == "pruned"]
    assert told, "this seed has networks that are predicted faster than they are"
    assert all("over the limit of 1.3" in (record.reason or "") for record in told)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (
            {**BY_PREDICTION, "objectives": ["latency_ms", "latency_p95_ms"]},
            "latency_p95_ms is measured only",
        ),
        (
            {**BY_PREDICTION, "latency": {"method": "predicted", "layout": "fastest"}},
            "predicted needs runtime onnxruntime or openvino, and layout tokens or maps",
        ),
    ],
)
def test_what_cannot_be_predicted_is_refused(
    sections: dict[str, object], told: str, space_file: Callable[..., Path]
) -> None:
    with pytest.raises(InputError, match=told):
        read_config(space_file(**sections))


def test_a_study_refuses_to_go_on_with_another_device(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(StubEngine):
        cpu = "one CPU"

        def __init__(self, study: Study, sample: Architecture, settled: Settled) -> None:
            super().__init__(study, sample, settled)
            self._events[0].content["device"] = {"cpu": self.cpu, "runtimes": {}}

    monkeypatch.setattr(driver, "make_engine", Elsewhere)
    run(space_file(), tmp_path / "s", **{"search.trials": 2})
    run(space_file(), tmp_path / "s", **{"search.trials": 3})
    monkeypatch.setattr(Elsewhere, "cpu", "another CPU")
    with pytest.raises(InputError, match="measured with cpu one CPU, here it is another CPU"):
        run(space_file(), tmp_path / "s", **{"search.trials": 4})


def test_a_worker_may_die_where_ctrl_c_stopped_its_trial_at_a_rung(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    waiting, stopped = list[int](), list[int]()

    class Dying(CurveEngine):
        """Its successor is at the trial again, and dies, too."""

        def events(self, patience_s: float) -> list[Event]:
            news = [Event("progress", n, "training") for n in waiting]
            news += [Event("failed", n, "the worker process ended") for n in waiting]
            events = super().events(patience_s)
            waiting.extend(e.trial for e in events if e.kind == "rung" and e.trial is not None)
            return [*news, *events]

        def answer(self, trial: int, goes_on: bool) -> None:
            waiting.remove(trial)
            stopped.append(trial)
            super().answer(trial, goes_on)

    path = space_file(train={"epochs": 9, "rungs": [1, 3], "device": "cpu"})
    config = read_config(path, {"engine.jobs": 3, "search.trials": 20})
    study = Study.create(tmp_path / "study", config, ["test"])
    summary = search(study, (), None, Dying, lambda: bool(waiting or stopped))
    assert waiting and summary.is_interrupted
    assert [record for record in study.records() if record.state == "failed"] == []


def test_a_preparation_that_a_disk_refuses_says_how_to_go_on(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    class Refused(StubEngine):
        def __init__(self, study: Study, sample: Architecture, settled: Settled) -> None:
            super().__init__(study, sample, settled)
            content = {"wrong_input": False, "refused_by_disk": "a.pt: No space left on device"}
            self._events = [Event("failed", None, "OSError: [Errno 28]", content=content)]

    study = Study.create(tmp_path / "study", read_config(space_file(), {}), ["test"])
    with pytest.raises(BudgetError, match=r"^a\.pt: No space left on device; what was finished"):
        search(study, engine=Refused)


def test_a_training_whose_result_could_not_be_noted_is_not_trained_again(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from levit_search.train import fitting

    monkeypatch.setattr(driver, "make_engine", HereEngine)
    path = space_file(train={"epochs": 2, "batch_size": 64, "threads": 1, "device": "cpu"})
    trained, note, train = [], TrialStore.note, fitting._Run.train_epoch

    def counted(self: fitting._Run, *arguments: Any) -> None:
        trained.append(1)
        train(self, *arguments)

    def refused(self: TrialStore, number: int, key: str, value: object) -> None:
        if key == "evaluation":
            raise BudgetError("the disk is full")
        note(self, number, key, value)

    monkeypatch.setattr(fitting._Run, "train_epoch", counted)
    with monkeypatch.context() as patch:
        patch.setattr(TrialStore, "note", refused)
        with pytest.raises(BudgetError):
            run(path, tmp_path / "s", **{"search.trials": 1})
    _, study = run(path, tmp_path / "s", **{"search.trials": 1})
    assert len(trained) == 2
    assert [record.state for record in study.records()] == ["complete"]
    assert not list(study.checkpoints.glob("*.training.pt"))


def reference_kept(folder: Path) -> dict[str, float]:
    kept: dict[str, float] = yaml.safe_load((folder / "study.yaml").read_text())["reference_point"]
    return kept


def test_the_reference_is_the_space_s_own_and_never_changes(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(objectives=["top1_percent", "latency_ms", "flops"])
    summary, study = run(path, tmp_path / "s", **{"search.trials": 3})
    kept = reference_kept(study.folder)
    most = max(found.flops for _, found in study.config.space().sample())
    expected = {"top1_percent": 10.0, "latency_ms": 1.1 * WORST, "flops": 1.1 * most}
    assert kept == pytest.approx(expected)
    assert summary.hypervolume > 0

    class Slower(StubEngine):
        data: ClassVar[dict[str, Any]] = {"guess_percent": 40.0}

    config = read_config(path, {"search.trials": 6})
    again = Study.create(study.folder, config, ["test"])
    later = search(again, engine=Slower)
    assert reference_kept(study.folder) == kept
    assert later.hypervolume >= summary.hypervolume


def test_a_reference_of_the_user_s_and_a_limit_go_before_what_was_found(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    given = {"hypervolume_reference": {"top1_percent": 20}, "limits": {"flops": 150_000}}
    path = space_file(objectives=["top1_percent", "flops"], **given)
    _, study = run(path, tmp_path / "s", **{"search.trials": 2})
    assert reference_kept(study.folder) == {"top1_percent": 20.0, "flops": 150_000.0}


def test_guessing_is_answering_the_largest_class_where_that_is_known(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    class Uneven(StubEngine):
        data: ClassVar[dict[str, Any]] = {"guess_percent": 40.0}

    study = Study.create(tmp_path / "s", read_config(space_file()), ["test"])
    search(study, engine=Uneven)
    assert reference_kept(study.folder)["top1_percent"] == 40.0


def of_an_earlier_release(folder: Path) -> None:
    """Write settings as they were, with one reference for all studies, in file and storage."""
    earlier = {"top1_percent": 0.0, "latency_ms": 1000.0}
    path = folder / "study.yaml"
    settings = yaml.safe_load(path.read_text())
    del settings["reference_point"]
    path.write_text(yaml.safe_dump({**settings, "hypervolume_reference": earlier}))
    storage, study_id = Study.open(folder).open_storage()
    kept = storage.get_study_user_attrs(study_id)["settings"]
    del kept["reference_point"]
    kept["hypervolume_reference"] = earlier
    storage.set_study_user_attr(study_id, "settings", kept)
    backup = folder / "backup.jsonl"
    backup.unlink()


def test_a_study_of_an_earlier_release_keeps_its_reference(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(objectives=["top1_percent", "latency_ms"])
    _, study = run(path, tmp_path / "s", **{"search.trials": 3})
    of_an_earlier_release(study.folder)
    stub.evaluated.clear()
    opened = Study.open(study.folder)
    kept = {"top1_percent": 0.0, "latency_ms": 1000.0}
    assert opened.config.hypervolume_reference == {} and opened.config.reference == kept
    assert [r.trial for r in opened.records()] == [r.trial for r in study.records()]
    assert pick(opened, "knee").trial in {record.trial for record in study.records()}
    for given in (path, study.folder / "study.yaml"):  # nothing is left to evaluate
        after, study = run(given, tmp_path / "s", **{"search.trials": 3})
        assert study.config.reference == kept
        assert after.hypervolume > 1, "decades of latency below a second"
    assert stub.evaluated == []


def test_a_study_that_never_ran_has_no_hypervolume_and_no_knee(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    study = Study.create(tmp_path / "s", read_config(space_file()), ["test"])
    with pytest.raises(InputError, match=r"no reference for hypervolume and knee yet; `levit"):
        study.reference()


def test_a_costliest_network_that_kills_its_worker_leaves_it_to_smaller_ones_too(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    class Dying(StubEngine):
        dead = 0

        def remeasure(self, trial: int, networks: Sequence[Architecture]) -> None:
            assert self.has_room(), "the next worker has to prepare first"
            super().remeasure(trial, networks)
            if trial < 0 and not self.dead:
                self._events[-1] = Event("failed", trial, "the worker process ended with SIGKILL")
                self.dead = 3

        def events(self, patience_s: float) -> list[Event]:
            events = super().events(patience_s)
            if self.dead > 1:
                self.dead -= 1
                self._busy = self.dead > 1
            return events

    config = read_config(space_file(objectives=["top1_percent", "latency_ms"]))
    study = Study.create(tmp_path / "s", config, ["test"])
    with pytest.warns(
        UserWarning, match="of the costliest, cannot be measured: the worker process"
    ):
        search(study, engine=Dying)
    assert reference_kept(study.folder)["latency_ms"] == pytest.approx(1.1 * WORST)


@pytest.mark.filterwarnings("ignore:.*of the costliest, cannot be measured. the device is too")
@pytest.mark.parametrize("failing", [2, 9])
def test_a_costliest_network_that_cannot_be_measured_leaves_it_to_smaller_ones(
    space_file: Callable[..., Path], tmp_path: Path, failing: int
) -> None:
    class Small(StubEngine):
        asked: ClassVar[list[int]] = []

        def remeasure(self, trial: int, networks: Sequence[Architecture]) -> None:
            super().remeasure(trial, networks)
            if trial < 0:
                self.asked.append(cost(networks[0]).flops)
                if len(self.asked) <= failing:
                    self._events[-1] = Event("failed", trial, "the device is too small")

    study = Study.create(
        tmp_path / "s", read_config(space_file(objectives=["top1_percent", "latency_ms"])), ["test"]
    )
    if failing == 2:
        search(study, engine=Small)
    else:
        with pytest.raises(BudgetError, match="no network of the space can be measured"):
            search(study, engine=Small)
    assert Small.asked == sorted(set(Small.asked), reverse=True)
    if failing == 2:
        assert len(Small.asked) == 3
        assert reference_kept(study.folder)["latency_ms"] == pytest.approx(1.1 * WORST)


def test_a_backup_has_the_reference_too(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    _, study = run(space_file(), tmp_path / "s", **{"search.trials": 2})
    kept = reference_kept(study.folder)
    (study.folder / "study.yaml").unlink()
    restore(study.folder, False, lambda text: None)
    assert reference_kept(study.folder) == kept
