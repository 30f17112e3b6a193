"""``train.epochs: auto``: what is planned, that it is kept, and that a study goes on with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from levit_search.errors import InputError
from levit_search.recipe import Recipe
from levit_search.search import Summary, begin, driver, search, setup
from levit_search.search.setup import TrainingSpeed
from levit_search.study import Study, StudyConfig, read_config
from levit_search.study.plan import PlanInputs, plan_of
from tests.conftest import Cli
from tests.engines import StubEngine

CHOSEN = ("warmup_epochs", "rungs", "batch_size", "lr", "rand_augment")
KEYS = ("data.train_images", *(f"train.{key}" for key in CHOSEN))


def space_of(mean_ms: float) -> dict[str, Any]:
    """A few networks of different cost."""
    return {
        "flops": (4, 8, 10, 12, 14, 16, 24, 38),
        "image_ms": tuple(mean_ms * share for share in (0.6, 0.7, 0.7, 0.7, 0.8, 0.9, 1.2, 2.4)),
    }


@st.composite
def facts(draw: st.DrawFn) -> PlanInputs:
    images = draw(st.integers(4, 10**6))
    mean_ms = draw(st.floats(1e-3, 1e4))
    return PlanInputs(
        images,
        val_images=draw(st.integers(1, 10**6)),
        num_classes=draw(st.integers(2, max(2, min(1000, images // 2)))),
        **space_of(mean_ms),
        budget_s=draw(st.floats(1, 1e6)),
        jobs=draw(st.integers(1, 256)),
        trainings=draw(st.none() | st.integers(1, 10_000)),
        reduction=draw(st.none() | st.floats(1.5, 10)),
    )


@settings(deadline=None, max_examples=300)
@given(facts(), st.sets(st.sampled_from(KEYS)))
def test_any_set_speed_and_budget_give_a_plan_that_can_be_trained(
    known: PlanInputs, given_keys: set[str]
) -> None:
    plan = plan_of(sorted(given_keys), known, batch_size=64)
    assert not plan.settings.keys() & given_keys, "what is given is left alone"
    keys = {key.removeprefix("train."): v for key, v in plan.settings.items() if "train." in key}
    recipe = Recipe(**{key: value for key, value in keys.items() if "." not in key})
    assert all(0 < rung < recipe.epochs for rung in recipe.rungs)
    images = plan.settings.get("data.train_images", known.images)
    assert known.num_classes <= images <= known.images
    assert plan.networks >= 1 and plan.steps >= 1


SLOW = PlanInputs(768, 192, 16, **space_of(3.0), budget_s=900.0, jobs=2, reduction=3.0)


def test_small_sets_get_many_passes_with_augmentation_and_large_ones_are_fitted_in_part() -> None:
    small = plan_of((), SLOW, 128).settings
    assert small["train.epochs"] >= 100
    assert small["train.rand_augment"] is not None
    assert "data.train_images" not in small
    large = plan_of((), SLOW._replace(images=100_000, val_images=1000), 128).settings
    assert large["train.epochs"] >= 3
    assert 1000 <= large["data.train_images"] < 100_000
    assert "train.rand_augment" not in large, "a few passes see nothing twice too often"


def test_the_planned_networks_take_about_the_budget() -> None:
    for budget_s in (300.0, 1200.0, 7200.0, 86_400.0):
        plan = plan_of((), SLOW._replace(budget_s=budget_s), 128)
        rung = sum(plan.settings["train.rungs"]) / plan.settings["train.epochs"]
        spent_s = plan.networks * plan.network_s * (rung + (1 - rung) / 3 if rung else 1.0)
        assert 0.5 * 2 * budget_s < spent_s <= 2 * budget_s


def test_rungs_are_left_to_searches_that_train_many_networks() -> None:
    short, long = (plan_of((), SLOW._replace(budget_s=t), 128) for t in (900.0, 20_000.0))
    assert short.settings["train.rungs"] == []
    assert 0 < long.settings["train.rungs"][0] < long.settings["train.epochs"]
    assert long.networks > 12 > short.networks
    never = plan_of((), SLOW._replace(budget_s=20_000.0, reduction=None), 128)
    assert never.settings["train.rungs"] == []


def test_networks_too_costly_for_a_short_session_are_left_out_by_their_flops() -> None:
    short, long = (plan_of((), SLOW._replace(budget_s=t), 128) for t in (900.0, 20_000.0))
    assert 12 <= short.settings["limits.flops"] < 38
    assert "limits.flops" not in long.settings


def test_a_rung_never_comes_before_a_network_may_know_something() -> None:
    for images in (20, 100, 768, 5000, 60_000):
        for budget_s in (30.0, 300.0, 3000.0):
            known = SLOW._replace(images=images, val_images=images // 4, budget_s=budget_s)
            plan = plan_of((), known, 128)
            for rung in plan.settings["train.rungs"]:
                assert rung * plan.steps / plan.settings["train.epochs"] >= 400


def test_speeds_that_differ_little_mostly_give_one_plan() -> None:
    plans = [
        plan_of((), SLOW._replace(**space_of(ms)), 128).settings
        for ms in (2.9, 2.95, 3.0, 3.05, 3.1)
    ]
    assert len({plan["train.epochs"] for plan in plans}) <= 2


def test_networks_that_are_asked_for_share_the_budget() -> None:
    few, many = (plan_of((), SLOW._replace(trainings=n), 128) for n in (4, 40))
    assert (few.networks, many.networks) == (4, 40)
    assert many.steps < few.steps


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> type[StubEngine]:
    monkeypatch.setattr(driver, "make_engine", StubEngine)
    return StubEngine


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[StudyConfig]:
    """What training is timed for; nothing is."""
    asked: list[StudyConfig] = []

    def training_speed(config: StudyConfig, _: Any) -> TrainingSpeed:
        asked.append(config)
        return TrainingSpeed(
            (10**9, 2 * 10**9, 4 * 10**9), (0.1, 0.2, 0.3 + len(asked))
        )  # never the same again

    monkeypatch.setattr(setup, "training_speed", training_speed)
    return asked


def begun(path: Path, folder: Path, **changes: Any) -> Study:
    return begin(read_config(path, changes), folder, ["test"])


def searched(path: Path, folder: Path, **changes: Any) -> tuple[Summary, Study]:
    study = begun(path, folder, **changes)
    return search(study), study


AUTO = {"train.epochs": "auto"}


def test_a_plan_is_kept_resolved_in_the_study(
    timed: list[StudyConfig], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    study = begun(space_file(), tmp_path / "s", **AUTO, **{"search.time_s": 60.0})
    written = yaml.safe_load((tmp_path / "s" / "study.yaml").read_text())
    assert written["train"]["epochs"] == study.config.train.epochs > 1
    assert written["plan"]["settings"]["train.epochs"] == study.config.train.epochs
    assert written["plan"]["images"] == 256
    assert Study.open(tmp_path / "s").config == study.config


def test_what_the_file_states_is_not_planned(
    timed: list[StudyConfig], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file()
    stated = yaml.safe_load(path.read_text())["train"]
    config = begun(path, tmp_path / "s", **AUTO, **{"train.rand_augment": None}).config
    assert config.train.batch_size == stated["batch_size"] == timed[0].train.batch_size
    assert config.train.lr == stated["lr"]
    assert config.train.rand_augment is None
    assert config.data.train_images == 256


def test_a_search_by_plan_ends_after_20_minutes_unless_told_otherwise(
    timed: list[StudyConfig], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    config = begun(space_file(), tmp_path / "s", **AUTO, **{"search.trials": None}).config
    assert config.search.time_s == 1200
    bounded = begun(space_file(), tmp_path / "t", **AUTO, **{"search.trials": 7}).config
    assert bounded.search.time_s is None
    assert bounded.plan is not None and bounded.plan.networks == 7


def test_train_epochs_of_nonsense_is_refused_in_one_line(space_file: Callable[..., Path]) -> None:
    for value in ("automatic", "Auto", "10", "", 0, -3, 2.5, None, [1], {"a": 1}):
        with pytest.raises(InputError, match=r"train\.epochs: ") as error:
            read_config(space_file(), {"train.epochs": value})
        assert "\n" not in str(error.value)
        assert ("or auto, not" in str(error.value)) == isinstance(value, str)


LONGER = {"search.trials": 5, "search.time_s": 3600.0}


def test_the_same_command_goes_on_with_the_plan_also_with_more_time(
    timed: list[StudyConfig],
    stub: type[StubEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path, folder = space_file(), tmp_path / "s"
    summary, first = searched(path, folder, **AUTO, **{"search.trials": 3})
    assert summary.trials["evaluated"] == 3
    summary, second = searched(
        path, folder, **AUTO, **{"search.trials": 5, "search.time_s": 3600.0}
    )
    assert summary.trials["evaluated"] == 5
    assert second.config.plan == first.config.plan
    assert second.config.train == first.config.train
    assert len(timed) == 1, "nothing is timed again"


def test_a_study_that_found_nothing_yet_is_planned_anew(
    timed: list[StudyConfig], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path, folder = space_file(), tmp_path / "s"
    first = begun(path, folder, **AUTO, **{"search.time_s": 60.0}).config.plan
    second = begun(path, folder, **AUTO, **{"search.time_s": 600.0}).config.plan
    assert first is not None and second is not None
    assert second.budget_s == 600.0
    assert second.steps > first.steps


def test_epochs_given_by_hand_must_be_those_of_the_plan_of_a_study_that_goes_on(
    timed: list[StudyConfig],
    stub: type[StubEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path, folder = space_file(), tmp_path / "s"
    _, study = searched(path, folder, **AUTO, **{"search.trials": 2})
    planned = study.config.plan
    assert planned is not None
    kept = {k: v for k, v in planned.settings.items() if k not in planned.given}
    same = begun(path, folder, **{**kept, "search.trials": 2})
    assert same.config.plan == planned
    with pytest.raises(InputError, match=r"other settings \(train\.epochs"):
        begun(path, folder, **{**kept, "train.epochs": 1, "search.trials": 2})
    with pytest.raises(InputError, match=r"other settings \(train\.lr"):
        begun(path, folder, **AUTO, **{"train.lr": 1e-4, "search.trials": 2})


def test_a_study_that_takes_trials_over_takes_their_plan(
    timed: list[StudyConfig],
    stub: type[StubEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path = space_file()
    _, source = searched(path, tmp_path / "s", **AUTO, **{"search.trials": 3})
    config = read_config(path, {**AUTO, "search.trials": 6})
    study = begin(config, tmp_path / "t", ["test"], source.folder)
    assert study.config.plan == source.config.plan
    assert study.config.train == source.config.train


def test_study_yaml_as_a_space_file_can_be_planned_anew(
    timed: list[StudyConfig], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    first = begun(space_file(), tmp_path / "s", **AUTO, **{"search.time_s": 60.0}).config
    again = read_config(tmp_path / "s" / "study.yaml", AUTO)
    assert first.plan is not None and again.plan is not None
    assert not again.plan.is_made
    # All keys stand in study.yaml; those that the plan chose are free again.
    assert not first.plan.settings.keys() & set(again.plan.given)


def test_where_nothing_is_trained_nothing_is_planned(
    timed: list[StudyConfig], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(objectives=["flops", "params"])
    config = begun(path, tmp_path / "s", **AUTO).config
    assert config.plan is None
    assert not timed


def test_commands_that_do_not_search_ask_for_a_number(cli: Cli, tmp_path: Path) -> None:
    found = cli("train", "LeViT-128S", "--set", "train.epochs=auto")
    assert found.returncode == 2
    assert "train.epochs: auto is planned by a search" in found.stderr


@pytest.mark.slow
def test_training_is_timed_in_processes_of_its_own(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(data={"name": "digits", "image_size": 16})
    config = begun(path, tmp_path / "s", **AUTO, **{"search.time_s": 60.0}).config
    assert config.plan is not None
    assert len(config.plan.image_ms) == 3
    assert all(0 < ms < 1000 for ms in config.plan.image_ms)


def test_data_that_cannot_be_counted_ends_planning_in_one_line(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(data={"name": "folder", "root": str(tmp_path / "none"), "image_size": 16})
    with pytest.raises(InputError, match="has no folder train/"):
        begun(path, tmp_path / "s", **AUTO)
    assert not (tmp_path / "s").exists()


def test_a_planned_network_is_not_begun_when_it_would_not_be_half_trained_in_time(
    timed: list[StudyConfig],
    stub: type[StubEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = space_file()
    study = begun(path, tmp_path / "s", **AUTO, **{"search.time_s": 600.0, "search.trials": 5})
    plan = study.config.plan
    assert plan is not None
    elapsed_s = 600.0 - 0.49 * plan.network_s
    monkeypatch.setattr(driver._Driver, "seconds", property(lambda _: elapsed_s))
    summary = search(study)
    assert summary.trials["evaluated"] == 0
    monkeypatch.setattr(
        driver._Driver, "seconds", property(lambda _: elapsed_s - 0.02 * plan.network_s)
    )
    assert search(study).trials["evaluated"] == 5


def test_a_supernet_is_planned_for_the_front_that_is_trained_in_the_end(
    timed: list[StudyConfig], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(accuracy="supernet")
    config = begun(path, tmp_path / "s", **AUTO, **{"search.time_s": 600.0}).config
    assert config.plan is not None
    assert config.plan.networks > 12  # the rivals
    assert config.train.rungs == ()


def test_a_recipe_that_is_named_keeps_its_views(
    timed: list[StudyConfig], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(train={"recipe": "levit", "epochs": "auto"})
    config = begun(path, tmp_path / "s", **{"search.time_s": 5.0}).config
    named = Recipe(recipe="levit")
    assert config.train.views() == named.views()
    assert config.train.epochs != named.epochs
    assert config.train.peak_lr == named.peak_lr


def test_the_plan_is_told_before_the_search(
    timed: list[StudyConfig], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    said: list[str] = []
    config = read_config(space_file(), {**AUTO, "search.time_s": 60.0})
    study = begin(config, tmp_path / "s", ["test"], say=said.append)
    lines = said[-1].splitlines()
    assert 3 <= len(lines) <= 6
    assert f"{study.config.train.epochs} epochs" in said[-1]
    assert "256 of 256 images" in said[-1]


def test_a_study_that_was_begun_with_a_number_of_epochs_is_not_planned(
    timed: list[StudyConfig],
    stub: type[StubEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path, folder = space_file(), tmp_path / "s"
    searched(path, folder, **{"search.trials": 2})
    with pytest.raises(InputError, match=r"was begun with train\.epochs 1, not auto"):
        begun(path, folder, **AUTO)
    assert not timed
