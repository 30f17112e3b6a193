"""TensorBoard's events of a search, read back by TensorBoard itself."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import levit_search as ls
from levit_search.architecture import Architecture
from levit_search.engine.interface import Event
from levit_search.errors import BudgetError, InputError
from levit_search.search import driver, search
from levit_search.search.callbacks import Callback
from levit_search.search.tensorboard import TensorBoardCallback, _Run, command
from levit_search.study import Record, Study, read_config
from tests.conftest import ROOT, Cli, needs
from tests.engines import CurveEngine, PredictingEngine, StubEngine

events = needs("tensorboard.backend.event_processing.event_accumulator")

RUNGS = {"epochs": 9, "rungs": [1, 3], "device": "cpu"}

Points = list[tuple[int, float]]


def scalars(run: Path) -> dict[str, Points]:
    """By tag, (step, value) in the order in which they were written."""
    read = events.EventAccumulator(str(run))
    read.Reload()
    return {
        tag: [(event.step, event.value) for event in read.Scalars(tag)]
        for tag in read.Tags()["scalars"]
    }


def studied(path: Path, folder: Path, **changes: object) -> Study:
    changes = {"storage": "journal", **changes}  # the quickest
    return Study.create(folder, read_config(path, changes), ["test"])


def searched(path: Path, folder: Path, **changes: object) -> Study:
    """With TensorBoard, and rungs."""
    study = studied(path, folder, **changes)
    search(study, [TensorBoardCallback(study)], engine=CurveEngine)
    return study


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def own(study: Study) -> list[Record]:
    return [r for r in study.records() if r.reused_from is None and r.evaluation]


@pytest.fixture
def rungs(space_file: Callable[..., Path]) -> Path:
    return space_file(train=RUNGS, limits={"flops": 200_000}, storage="journal")


def test_the_search_is_there_by_finished_trials(rungs: Path, tmp_path: Path) -> None:
    study = studied(rungs, tmp_path / "s", **{"search.trials": 12})
    summary = search(study, [TensorBoardCallback(study)], engine=CurveEngine)
    found = scalars(study.folder / "tensorboard" / "search")
    records = study.records()
    volumes = [volume for _, volume in found["front/hypervolume"]]
    assert [step for step, _ in found["front/hypervolume"]] == list(range(1, len(records) + 1))
    assert volumes == sorted(volumes)
    assert volumes[-1] == pytest.approx(summary.hypervolume, rel=1e-6)
    assert found["front/networks"][-1][1] == len(summary.front)
    accuracies = [record.values["top1_percent"] for record in summary.front]
    assert found["best/top1_percent"][-1][1] == pytest.approx(max(accuracies))
    counts = {tag: points[-1][1] for tag, points in found.items() if tag.startswith("trials/")}
    assert counts["trials/stopped"] == summary.trials["stopped"] > 0
    assert counts["trials/infeasible"] == summary.trials["infeasible"]
    assert sum(counts.values()) == len(records)
    assert found["network/flops"] == [(r.trial, r.values["flops"]) for r in own(study)]


def test_each_network_has_its_curve_and_its_figures(rungs: Path, tmp_path: Path) -> None:
    study = searched(rungs, tmp_path / "s", **{"search.trials": 12})
    folder = study.folder / "tensorboard"
    names = {f"trial-{record.trial:04d}" for record in own(study)}
    assert {path.name for path in folder.iterdir()} == names | {"search"}
    assert {record.is_stopped for record in own(study)} == {False, True}
    for record in own(study):
        found = scalars(folder / f"trial-{record.trial:04d}")
        curve = record.evaluation["training"]["curve"]
        told = {point["epoch"]: point["val_top1_percent"] for point in curve}
        assert dict(found["top1_percent"]) == pytest.approx(told)
        assert len(found["top1_percent"]) == len(curve), "what a rung told is not told again"
        assert found["final/flops"] == [(len(curve), record.values["flops"])]
        assert ("final/top1_percent" in found) == (record.state == "complete")


def test_a_rung_is_there_before_the_network_is_done(rungs: Path, tmp_path: Path) -> None:
    seen: list[dict[str, Points]] = []

    class Looking(CurveEngine):
        def answer(self, trial: int, goes_on: bool) -> None:
            super().answer(trial, goes_on)
            seen.append(scalars(tmp_path / "s" / "tensorboard" / f"trial-{trial:04d}"))

    study = studied(rungs, tmp_path / "s", **{"search.trials": 1})
    search(study, [TensorBoardCallback(study)], engine=Looking)
    curve = own(study)[0].evaluation["training"]["curve"]
    first, third = curve[0]["val_top1_percent"], curve[2]["val_top1_percent"]
    assert dict(seen[0]["top1_percent"]) == pytest.approx({1: first})
    assert dict(seen[1]["top1_percent"]) == pytest.approx({1: first, 3: third})


def test_losses_are_there_by_epoch(space_file: Callable[..., Path], tmp_path: Path) -> None:
    class Losses(StubEngine):
        def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
            super().submit(trial, network)
            accuracy = self._events[-1].content["values"]["top1_percent"]
            losses = zip((1, 2, 3), (2.0, 1.0, float("nan")), strict=True)
            self._events[-1].content["training"] = {
                "curve": [
                    {"epoch": epoch, "train_loss": loss, "val_top1_percent": accuracy, "seconds": 1}
                    for epoch, loss in losses
                ]
            }

    study = studied(space_file(), tmp_path / "s", **{"search.trials": 2})
    for _ in range(2):
        search(study, [TensorBoardCallback(study)], engine=Losses)
        found = scalars(study.folder / "tensorboard" / "trial-0000")["train_loss"]
        assert found[:2] == [(1, 2.0), (2, 1.0)]
        assert len(found) == 3 and found[2][1] != found[2][1]


def test_what_went_before_is_filled_in(rungs: Path, tmp_path: Path) -> None:
    whole = searched(rungs, tmp_path / "whole", **{"search.trials": 10})
    study = studied(rungs, tmp_path / "s", **{"search.trials": 6})
    search(study, engine=CurveEngine)
    searched(rungs, tmp_path / "s", **{"search.trials": 10})
    for name in ("search", "trial-0000", f"trial-{own(whole)[-1].trial:04d}"):
        live = scalars(whole.folder / "tensorboard" / name)
        filled = scalars(study.folder / "tensorboard" / name)
        assert {tag: sorted(points) for tag, points in filled.items()} == {
            tag: sorted(points) for tag, points in live.items()
        }


def test_a_study_that_is_done_is_filled_in_without_an_evaluation(
    rungs: Path, tmp_path: Path
) -> None:
    study = studied(rungs, tmp_path / "s", **{"search.trials": 4})
    search(study, engine=CurveEngine)
    searched(rungs, tmp_path / "s", **{"search.trials": 4})
    found = scalars(study.folder / "tensorboard" / "search")
    assert len(found["front/hypervolume"]) == len(study.records())


def test_a_search_that_goes_on_adds_and_repeats_nothing(rungs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s" / "tensorboard"
    for trials in (5, 5, 10):
        before = contents(folder) if folder.exists() else {}
        study = searched(rungs, tmp_path / "s", **{"search.trials": trials})
        after = contents(folder)
        assert all(after[name].startswith(data) for name, data in before.items())
        added = {name for name in after if after[name] != before.get(name)}
        assert bool(added) == (trials == 10 or not before)
        assert not {Path(name).parent for name in added & before.keys()} - {Path("search")}
    found = scalars(folder / "search")
    assert [step for step, _ in found["front/networks"]] == [*range(1, len(study.records()) + 1)]


def test_a_torn_record_is_taken_away_and_written_again(rungs: Path, tmp_path: Path) -> None:
    study = searched(rungs, tmp_path / "s", **{"search.trials": 4})
    (path,) = (study.folder / "tensorboard" / "search").iterdir()
    whole, data = scalars(path.parent), path.read_bytes()
    for left in (0, 10, 30, len(data) - 30, len(data) - 5, len(data) - 1):
        for each in path.parent.iterdir():
            each.unlink()
        path.write_bytes(data[:left])
        searched(rungs, tmp_path / "s", **{"search.trials": 4})
        assert scalars(path.parent) == whole, left


def test_a_latency_that_is_measured_takes_the_place_of_the_predicted(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(objectives=["top1_percent", "latency_ms"], latency="predicted")
    study = studied(path, tmp_path / "s", **{"search.trials": 8})
    for _ in range(2):
        summary = search(study, [TensorBoardCallback(study)], engine=PredictingEngine)
        best = summary.front[0]
        found = scalars(study.folder / "tensorboard" / f"trial-{best.trial:04d}")
        told = [value for _, value in found["final/latency_ms"]]
        predicted = best.values["latency_predicted_ms"]
        assert told == pytest.approx([predicted, best.values["latency_ms"]])
        assert "final/prediction_error_percent" in found
        volumes = scalars(study.folder / "tensorboard" / "search")["front/hypervolume"]
        assert volumes[-1] == pytest.approx((8, summary.hypervolume), rel=1e-6)


def test_choices_are_hyperparameters(rungs: Path, tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import metadata

    study = searched(rungs, tmp_path / "s", **{"search.trials": 12})
    folder = study.folder / "tensorboard"

    def told(run: str, tag: str) -> object:
        read = events.EventAccumulator(str(folder / run))
        read.Reload()
        content = read.SummaryMetadata(tag).plugin_data.content
        return (
            metadata.parse_experiment_plugin_data(content)
            if tag == metadata.EXPERIMENT_TAG
            else metadata.parse_session_start_info_plugin_data(content)
        )

    experiment = told("search", metadata.EXPERIMENT_TAG)
    infos = {info.name: info for info in experiment.hparam_infos}
    assert set(infos) == {
        "num_stages",
        "stages.0.embed_dim",
        "stages.1.depth",
        "stages.1.embed_dim",
    }
    assert list(infos["stages.1.embed_dim"].domain_discrete) == [16, 24, 32]
    shown = [(metric.name.tag, metric.display_name) for metric in experiment.metric_infos]
    assert shown[0] == ("final/top1_percent", "top1_percent")
    for record in own(study):
        values = told(f"trial-{record.trial:04d}", metadata.SESSION_START_INFO_TAG).hparams
        assert record.architecture is not None
        stages = record.architecture.model_dump(mode="json")["stages"]
        assert values["num_stages"].number_value == len(stages)
        assert values["stages.0.embed_dim"].number_value == stages[0]["embed_dim"]
        assert ("stages.1.depth" in values) == (len(stages) == 2), "what means nothing is not there"


def test_names_and_lists_are_texts_among_hyperparameters(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    from tensorboard.plugins.hparams import metadata

    path = space_file()
    changes = {"architecture.stem": {"kind": "conv", "channels": {"choices": [[4], [2, 8]]}}}
    study = studied(path, tmp_path / "s", **{"search.trials": 2}, **changes)
    search(study, [TensorBoardCallback(study)], engine=StubEngine)
    read = events.EventAccumulator(str(study.folder / "tensorboard" / "search"))
    read.Reload()
    content = read.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    infos = metadata.parse_experiment_plugin_data(content).hparam_infos
    lists = next(info for info in infos if info.name == "stem.channels")
    assert list(lists.domain_discrete) == ["[2, 8]", "[4]"]


def test_a_trial_of_another_study_is_there_too(rungs: Path, tmp_path: Path) -> None:
    source = studied(rungs, tmp_path / "a", **{"search.trials": 3})
    search(source, engine=CurveEngine)
    study = studied(rungs, tmp_path / "b", **{"search.trials": 2})
    search(study, [TensorBoardCallback(study)], source.folder, engine=CurveEngine)
    found = scalars(study.folder / "tensorboard" / "search")
    assert found["trials/taken_over"][-1][1] > 0
    assert len(found["front/networks"]) == len(study.records())


def test_values_beyond_single_precision_are_infinite(tmp_path: Path) -> None:
    for _ in range(2):
        run = _Run(tmp_path)
        run.add(1, 0.0, {"loss": 1e300, "gain": -1e300})
        run.close()
        assert scalars(tmp_path) == {"loss": [(1, float("inf"))], "gain": [(1, -float("inf"))]}


def test_another_search_at_work_is_an_error(rungs: Path, tmp_path: Path) -> None:
    study = studied(rungs, tmp_path / "s")
    with study.lock(), pytest.raises(InputError, match="another levit-search run is at work"):
        search(study, [TensorBoardCallback(study)], engine=CurveEngine)


def test_a_folder_that_cannot_be_written_is_an_error(rungs: Path, tmp_path: Path) -> None:
    study = studied(rungs, tmp_path / "s", **{"search.trials": 2})
    (study.folder / "tensorboard").write_text("a file")
    with pytest.raises(InputError, match=r"tensorboard: cannot be read or written \(File exists"):
        search(study, [TensorBoardCallback(study)], engine=CurveEngine)
    assert not study.records()
    (study.folder / "tensorboard").unlink()

    class Spoiling(Callback):
        def on_trial_start(self, trial: int, network: object) -> None:
            if trial == 0:
                (study.folder / "tensorboard").rmdir()
                (study.folder / "tensorboard").write_text("a file")

    with pytest.raises(BudgetError, match="cannot be read or written"):
        search(study, [TensorBoardCallback(study), Spoiling()], engine=CurveEngine)


def test_several_callbacks_are_told_everything(rungs: Path, tmp_path: Path) -> None:
    called: list[str] = []

    class Noting(Callback):
        def __getattribute__(self, name: str) -> object:
            called.append(name)
            return super().__getattribute__(name)

    class Telling(CurveEngine):
        def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
            super().submit(trial, network)
            news = Event("progress", trial, "epoch 1", 0.1), Event("progress", None, "a word", None)
            self._events[:0] = news

    study = studied(rungs, tmp_path / "s", **{"search.trials": 2})
    search(study, [TensorBoardCallback(study), Noting(), Noting()], engine=Telling)
    assert set(called) == {name for name in vars(Callback) if name.startswith("on_")} - {
        "on_baseline_complete"
    }
    assert called[::2] == called[1::2]
    assert (called[0], called[-1]) == ("on_search_start", "on_search_end")


def test_the_command_writes_events_and_tells_how_to_look_at_them(
    cli: Cli, rungs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    ran = cli("run", rungs, "--study", "a study", "--trials", 3, "--tensorboard", "--json")
    assert ran.returncode == 0
    study = Study.open(tmp_path / "a study")
    assert command(study) == f"tensorboard --logdir '{tmp_path}/a study/tensorboard'"
    assert f"TensorBoard: {command(study)}" in ran.stderr.splitlines()
    assert "front/hypervolume" in scalars(study.folder / "tensorboard" / "search")


def test_python_takes_the_same(
    rungs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)
    config = read_config(rungs, {"search.trials": 1})
    for tensorboard in (False, True):
        study = ls.run(config, tmp_path / "s", progress=False, tensorboard=tensorboard)
        assert (study.folder / "tensorboard").exists() == tensorboard


def test_without_the_package_nothing_is_begun(
    cli: Cli, rungs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    ran = cli("run", rungs, "--study", "s", "--trials", 1, "--tensorboard")
    assert ran.returncode == 2
    assert "pip install 'levit-search[tensorboard]'" in ran.stderr
    with pytest.raises(InputError, match="tensorboard is not installed"):
        ls.run(read_config(rungs), tmp_path / "s", progress=False, tensorboard=True)
    assert not (tmp_path / "s").exists()


def test_neither_torch_nor_timm_is_imported() -> None:
    text = (
        "import sys, levit_search.search.tensorboard\n"
        "if 'tensorboard' in sys.modules: sys.exit('before it is asked for')\n"
        "heavy = ('torch', 'timm', 'tensorboardX', 'matplotlib')\n"
        "sys.exit(', '.join(name for name in heavy if name in sys.modules) or None)"
    )
    subprocess.run([sys.executable, "-c", text], check=True, cwd=ROOT)


def test_a_run_in_a_folder_that_is_no_utf_8_is_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for step in (1, 2):
        run = _Run(folder)
        run.add(1, 0.0, {"loss": 1.0})
        run.add(step, 0.0, {"loss": 1.0})
        run.close()
    assert _Run(folder).last_step("loss") == 2
    assert len(list(folder.iterdir())) == 2


def test_what_an_earlier_release_wrote_is_gone_on_with(rungs: Path, tmp_path: Path) -> None:
    """Its one file in each run is named so that TensorBoard would read it last."""
    study = searched(rungs, tmp_path / "s", **{"search.trials": 4})
    search_run = study.folder / "tensorboard" / "search"
    (path,) = search_run.iterdir()
    path.rename(search_run / "events.out.tfevents.levit-search")
    before = scalars(search_run)
    study = searched(rungs, tmp_path / "s", **{"search.trials": 8})
    first, second = sorted(path.name for path in search_run.iterdir())
    assert first == "events.out.tfevents.0.levit-search" and second > first
    found = scalars(search_run)
    assert found["front/networks"][: len(before["front/networks"])] == before["front/networks"]
    assert [step for step, _ in found["front/networks"]] == [*range(1, len(study.records()) + 1)]
