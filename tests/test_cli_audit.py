"""The audit command on a small study that was searched for real."""

import json
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from levit_search import table
from levit_search.audit import Job
from levit_search.audit.front_confidence import Reevaluation
from levit_search.audit.reevaluation import Reevaluator
from levit_search.batches import open_batches
from levit_search.distill import obtain_teacher
from levit_search.errors import TrialError
from levit_search.search import driver
from levit_search.study import Study
from levit_search.train import top1_percent, train_network
from tests.conftest import Cli
from tests.engines import HereEngine, StubEngine, run
from tests.networks import SMALL_REGNETY, tiny_space


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three networks that learned from a teacher; nobody changes it."""
    folder = tmp_path_factory.mktemp("searched")
    path = folder / "tiny.yaml"
    recipe = {"epochs": 1, "batch_size": 64, "threads": 1, "device": "cpu"}
    teacher = {"name": "regnety_002", "options": SMALL_REGNETY, "recipe": recipe}
    path.write_text(yaml.safe_dump(tiny_space(teacher=teacher)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(driver, "make_engine", HereEngine)
        run(path, folder / "s", **{"search.trials": 3})
    return folder / "s"


@pytest.fixture
def study(searched: Path, tmp_path: Path) -> Path:
    """A copy of it, in the folder where commands run."""
    shutil.copytree(searched, tmp_path / "s")
    return tmp_path / "s"


def front_of(study: Path) -> list[Any]:
    opened = Study.open(study)
    return table.front(opened.records(), opened.config.objectives)


@pytest.mark.slow
def test_an_audit_trains_the_front_again_and_reads_the_test_split(cli: Cli, study: Path) -> None:
    ended = cli("audit", "s", "--seeds", 1, "--jobs", 2, "--json")
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    front = front_of(study)
    assert [row["trial"] for row in document["front"]] == [record.trial for record in front]
    config = Study.open(study).config
    batches = open_batches(config.data)
    teacher, _ = obtain_teacher(config.teaching, config.data, batches, config.train, None, 0)
    for record, row in zip(front, document["front"], strict=True):
        kept = document["networks"][row["id"]]
        assert kept["stored"]["val_top1_percent"] == record.values["top1_percent"]
        assert kept["stored"]["test_images"] == batches.size("test")
        assert row["val"]["seeds"] == {"1": kept["seeds"]["1"]["val_top1_percent"]}
        assert record.architecture.distillation
        model, training = train_network(record.architecture, batches, config.train, 1, teacher)
        assert training.val_top1_percent == row["val"]["seeds"]["1"]
        assert top1_percent(model, batches, "test") == row["test"]["seeds"]["1"]
    assert document["moves"]["retrained"] == len(front)
    assert f"audit {2 * len(front)}/{2 * len(front)}" in ended.stderr
    assert {path.name for path in study.glob("audit*")} == {"audit.json", "audit.md", "audit.svg"}

    again = cli("audit", "s", "--seeds", 1)
    assert again.returncode == 0
    assert "seed 1" not in again.stderr, "nothing is trained twice"
    assert "The front" in again.stdout and "In s: audit.md, audit.json, audit.svg" in again.stdout


def test_missing_and_damaged_weights_fail_their_network_alone(study: Path) -> None:
    first, *others = front_of(study)
    worker = Reevaluator(Study.open(study).config, study, {}, None)
    worker.prepare(first.architecture, lambda text, fraction: None)
    weights = study / "checkpoints" / f"{first.architecture.id}.safetensors"
    for other in others:
        found = worker.verify(other.architecture, lambda text, fraction: None)
        assert found.val_top1_percent == other.values["top1_percent"]
    weights.write_bytes(b"no weights")
    with pytest.raises(TrialError, match=f"{weights.name}: "):
        worker.verify(first.architecture, lambda text, fraction: None)
    weights.unlink()
    with pytest.raises(TrialError, match=f"{weights.name}: the trained weights are not there"):
        worker.verify(first.architecture, lambda text, fraction: None)


def test_networks_of_a_study_of_int8_are_quantized_too(study: Path) -> None:
    (first, *_), config = front_of(study), Study.open(study).config
    objectives = ("top1_int8_percent", "flops")
    config = config.model_copy(update={"objectives": objectives})
    worker = Reevaluator(config, study, {"int8_formats": {"": "u8-reduced"}}, None)
    worker.prepare(first.architecture, lambda text, fraction: None)
    found = worker.verify(first.architecture, lambda text, fraction: None)
    assert found.val_top1_percent == first.values["top1_percent"]
    assert found.val_top1_int8_percent == pytest.approx(found.val_top1_percent, abs=5)
    assert found.test_top1_int8_percent == pytest.approx(found.test_top1_percent, abs=5)
    worker = Reevaluator(config, study, {}, None)
    worker.prepare(first.architecture, lambda text, fraction: None)
    with pytest.raises(TrialError, match="not noted with the study"):
        worker.verify(first.architecture, lambda text, fraction: None)


def test_an_interrupted_audit_goes_on_where_it_was(
    cli: Cli, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[tuple[int, int | None]]] = []
    figures = Reevaluation(50.0, 49.0, val_images=100, test_images=100, seconds=1.0)

    def interrupted(
        study: Study, jobs: Sequence[Job], processes: int, told: Any
    ) -> Generator[tuple[Job, Reevaluation | TrialError], None, None]:
        asked.append([(job.trial, job.seed) for job in jobs])
        yield jobs[0], figures
        yield jobs[1], TrialError("no luck today")
        if len(asked) == 1:
            raise KeyboardInterrupt
        for job in jobs[2:]:
            yield job, figures

    monkeypatch.setattr("levit_search.audit.reevaluated", interrupted)
    ended = cli("audit", "s")
    assert ended.returncode == 130 and "the same command goes on" in ended.stderr
    ended = cli("audit", "s")
    assert ended.returncode == 1
    trials = [record.trial for record in front_of(study)]
    everything = [(trial, seed) for seed in (None, 1, 2) for trial in trials]
    assert asked == [everything, everything[1:]]
    number, seed = everything[2]
    where = f"trial {number}" + ("" if seed is None else f", seed {seed}")
    assert f"levit-search: {where}: no luck today" in ended.stderr


def test_nothing_is_trained_where_that_is_asked_for(
    cli: Cli, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def refused(
        study: Study, jobs: Sequence[Job], processes: int, told: Any
    ) -> Generator[tuple[Job, TrialError], None, None]:
        asked.extend(job.seed for job in jobs)
        yield from ((job, TrialError("no luck today")) for job in jobs)

    monkeypatch.setattr("levit_search.audit.reevaluated", refused)
    ended = cli("audit", "s", "--no-retrain", "--json")
    assert ended.returncode == 1
    assert asked == [None] * len(front_of(study))
    document = json.loads(ended.stdout)
    assert document["noise"]["seed_sd_points"] is None
    assert all(row["test"] is None for row in document["front"])


def test_a_search_without_accuracies_is_audited_without_training(
    cli: Cli, tmp_path: Path, space_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", StubEngine)
    run(space_file(objectives=["params", "flops"]), tmp_path / "s")
    ended = cli("audit", "s")
    assert ended.returncode == 0, ended.stderr
    assert "test" not in ended.stdout and "complete" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such study folder"),
        (["s", "--seeds", "0"], "--seeds"),
        (["s", "--jobs", "0"], "--jobs"),
    ],
)
def test_wrong_input_changes_nothing(
    cli: Cli, study: Path, arguments: list[str], message: str
) -> None:
    before = sorted(study.rglob("*"))
    ended = cli("audit", *arguments)
    assert ended.returncode == 2 and message in ended.stderr
    assert sorted(study.rglob("*")) == before
