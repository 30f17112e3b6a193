"""The calls of a notebook: a space, an evaluation, a study, and the example of docs/python.md."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import levit_search as ls
from levit_search import architecture
from levit_search.architecture import Architecture
from levit_search.errors import InputError
from levit_search.search import driver
from levit_search.study import Study, StudyConfig
from tests.conftest import ROOT
from tests.engines import CurveEngine, HereEngine, finals
from tests.networks import tiny_space

SLOW_TO_IMPORT = {"torch", "timm", "ray", "optuna", "pandas", "numpy", "pydantic"}
RUNGS = {"train": {"epochs": 9, "rungs": [1, 3], "device": "cpu"}}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "make_engine", HereEngine)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A study of two networks that were trained for real."""
    config = ls.read_space(tiny_space(), {"search.trials": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "make_engine", HereEngine)
        yield ls.run(config, tmp_path_factory.mktemp("trained") / "s", progress=False)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A study whose networks were not trained, some of which were stopped early."""
    config = ls.read_space(tiny_space(**RUNGS), {"search.trials": 12})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "make_engine", CurveEngine)
        yield ls.run(config, tmp_path_factory.mktemp("searched") / "s", progress=False)


@pytest.fixture
def by_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "make_engine", CurveEngine)


def test_importing_the_package_imports_nothing_slow() -> None:
    script = (
        "import sys, levit_search as ls; assert callable(ls.run); "
        f"print({SLOW_TO_IMPORT!r} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


def test_no_call_is_hidden_by_a_module_of_its_name() -> None:
    modules = {path.stem for path in (ROOT / "levit_search").iterdir()}
    assert not modules & set(ls.__all__)
    assert all(callable(getattr(ls, name)) for name in ls.__all__)


def test_a_space_is_read_from_a_file_a_name_or_a_dict(space_file: Callable[..., Path]) -> None:
    path = space_file()
    assert ls.read_space(path) == ls.read_space(str(path)) == ls.read_space(tiny_space())
    assert ls.read_space("levit").name == "levit"


def test_changes_leave_the_given_dict_as_it_is() -> None:
    given = tiny_space()
    config = ls.read_space(given, {"search.trials": 7, "architecture.stages.0.depth": 2})
    assert config.search.trials == 7
    assert config.architecture["stages"][0]["depth"] == 2
    assert given == tiny_space()


@pytest.mark.parametrize(
    ("space", "changes", "told"),
    [
        ("levitt", {}, "did you mean 'levit'?"),
        ("nowhere.yaml", {}, "nowhere.yaml: no such file"),
        (tiny_space(), {"train.epochz": 3}, "space: train: unknown key 'epochz'; did you mean"),
        ({"name": "empty"}, {}, "space: architecture: is required"),
    ],
)
def test_a_wrong_space_is_explained(space: Any, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        ls.read_space(space, changes)


def test_files_named_in_a_dict_are_looked_for_in_the_working_folder(
    tmp_path: Path, tiny: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(tiny.to_yaml())
    (start,) = ls.read_space(tiny_space(start=["mine.yaml"])).start
    assert architecture.parse(start) == tiny


def test_an_evaluation_finds_what_a_search_finds(trained: Study, tmp_path: Path) -> None:
    record = ls.pick(trained, "accurate")
    assert record.architecture is not None
    with ls.evaluation(trained.config, tmp_path / "kept", progress=False) as evaluate:
        found = evaluate(record.architecture)
    assert found.values["top1_percent"] == record.values["top1_percent"]
    assert found.training is not None and len(found.training["curve"]) == 1
    weights = Path("checkpoints") / f"{record.architecture.id}.safetensors"
    assert (tmp_path / "kept" / weights).read_bytes() == (trained.folder / weights).read_bytes()


def test_an_evaluation_refuses_networks_for_other_images() -> None:
    config = ls.read_space(tiny_space())
    network = architecture.published("LeViT-128S")
    told = r"made for images \[3, 224, 224\] of 1000 classes, the data has .*\[1, 16, 16\] of 10 "
    with ls.evaluation(config, progress=False) as evaluate, pytest.raises(InputError, match=told):
        evaluate(network)


def test_an_evaluation_leaves_studies_alone(searched: Study) -> None:
    with pytest.raises(InputError, match="is a study"):
        ls.evaluation(searched.config, searched.folder).__enter__()


def test_an_evaluation_says_what_it_does_unless_it_is_not_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = ls.read_space(tiny_space(objectives=["flops", "params"]))
    for progress in (True, False):
        with ls.evaluation(config, progress=progress) as evaluate:
            evaluate(config.space().decode(_first(config)))
        told = capsys.readouterr()
        assert told.out == ""
        assert ("evaluation 1/1" in told.err) == progress


def _first(config: StudyConfig) -> dict[str, Any]:
    return {slot.name: slot.values[0] for slot in config.space().slots}


def test_a_study_without_a_folder_is_named_as_its_space(
    by_curves: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = ls.run(ls.read_space(tiny_space(**RUNGS)), progress=False)
    assert study.folder == Path("studies/tiny")
    assert len(ls.front(ls.open_study("studies/tiny"))) == len(ls.front(study)) > 0


def test_an_interrupted_run_goes_on_with_the_same_call(
    searched: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = searched.config

    class Interrupted(CurveEngine):
        def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
            if trial >= 5:
                raise KeyboardInterrupt
            super().submit(trial, network)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "make_engine", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            ls.run(config, tmp_path / "s", progress=False)
        assert 4 < len(ls.open_study(tmp_path / "s").records()) < len(searched.records())
        patch.setattr(driver, "make_engine", CurveEngine)
        assert finals(ls.run(config, tmp_path / "s", progress=False)) == finals(searched)


@pytest.mark.slow
def test_a_larger_budget_extends_a_study_and_another_takes_it_over(
    by_curves: None, tmp_path: Path
) -> None:
    config = ls.read_space(tiny_space(**RUNGS), {"search.trials": 4})
    ls.run(config, tmp_path / "s", progress=False)
    more = ls.read_space(tiny_space(**RUNGS), {"search.trials": 8})
    study = ls.run(more, tmp_path / "s", progress=False)
    assert len(_evaluated(study)) == 8
    other = ls.run(config, tmp_path / "other", take_from=tmp_path / "s", progress=False)
    assert any(record.taken_from for record in other.records())


def _evaluated(study: Any) -> list[Any]:
    return [record for record in study.records() if record.reused_from is None]


def test_a_run_of_other_settings_is_refused(searched: Study) -> None:
    other = ls.read_space(tiny_space(**RUNGS), {"train.epochs": 5})
    with pytest.raises(InputError, match=r"made with other settings \(train\.epochs"):
        ls.run(other, searched.folder, progress=False)


def test_a_run_without_feasible_networks_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    config = ls.read_space(tiny_space(), {"limits.flops": 10})
    with pytest.raises(InputError, match="flops over the limit of 10"):
        ls.run(config, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_trials_are_a_frame_of_all_records(searched: Study) -> None:
    frame, records = ls.trials(searched), searched.records()
    assert list(frame.index) == [record.trial for record in records]
    for record in records:
        row = frame.loc[record.trial]
        assert row.isna()["reason"] == (record.reason is None)
        assert record.architecture is not None
        assert (row["state"], row["id"]) == (record.state, record.architecture.id)
        assert row["flops"] == record.values["flops"]
        found = record.values.get("top1_percent")
        assert row.isna()["top1_percent"] if found is None else row["top1_percent"] == found
        again = record.reused_from
        assert row.isna()["reused_from"] if again is None else row["reused_from"] == again


def test_a_study_without_trials_has_a_frame_without_rows(tmp_path: Path) -> None:
    from levit_search.search import begin

    study = begin(ls.read_space(tiny_space()), tmp_path / "s", ["test"])
    assert ls.trials(study).empty
    assert ls.front(study) == []


def test_a_loaded_model_is_as_accurate_as_its_record_says(trained: Study) -> None:
    from levit_search.batches import open_batches
    from levit_search.train import top1_percent

    for record in ls.front(trained):
        model = ls.load_model(trained, record)
        assert not model.training
        found = top1_percent(model, open_batches(trained.config.data), "val")
        assert found == record.values["top1_percent"]


def test_a_network_that_was_not_trained_to_its_end_is_not_loaded(searched: Study) -> None:
    stopped = next(record for record in searched.records() if record.is_stopped)
    told = f"the trained weights of trial {stopped.trial} are not there"
    with pytest.raises(InputError, match=told):
        ls.load_model(searched, stopped)


SCRIPT = """
from functools import partial
import levit_search as ls
from levit_search.search import driver
from levit_search.engine.local import LocalEngine
from tests.networks import tiny_space

print("once")
driver.make_engine = partial(LocalEngine, evaluator="tests.engine_stubs:Stub")
train = {"epochs": 3, "rungs": [1, 2]}
study = ls.run(ls.read_space(tiny_space(train=train), {"search.trials": 2}), "s", progress=False)
print(len(ls.front(study)), "on the front")
"""


@pytest.mark.slow
def test_a_script_needs_no_guard_against_its_own_workers(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        env={"PATH": "", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "once"
    assert done.stdout.count("once") == 1
    assert "once" not in (tmp_path / "s" / "worker-1.log").read_text()


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(
    in_this_process: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the space of the example read, and a smaller one searched in its place."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL
    )
    examples = [block for block in blocks if "ls.run(" in block]
    if not examples:
        pytest.skip("docs/python.md has no example of ls.run")
    (example,) = examples
    small = tiny_space(
        objectives=["top1_percent", "latency_ms"], latency={"seconds": 0.1, "rounds": 2}
    )
    monkeypatch.setattr(ls, "read_space", partial(_read_another, ls.read_space, small))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    study = names["study"]
    assert study.folder.is_dir()
    assert names["found"].values.keys() >= {"latency_ms", "top1_percent"}
    assert len(names["trials"]) == len(study.records())
    assert ls.front(study)[0].architecture.summary() in capsys.readouterr().out


def _read_another(
    read: Callable[..., StudyConfig], space: dict[str, object], *given: Any
) -> StudyConfig:
    read(*given)
    return read(space, {"search.trials": 3})
