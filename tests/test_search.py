"""The driver: limits, repeats, what is tried first, determinism, and going on after a kill."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from levit_search import architecture
from levit_search.architecture import Architecture
from levit_search.errors import BudgetError, InputError
from levit_search.search import Summary, driver, search
from levit_search.search.engine import Event
from levit_search.study import Record, Study, read_config
from tests.conftest import ROOT, command


class Silent:
    """A display that shows nothing."""

    def preparing(self, text: str, fraction: float | None) -> None: ...

    def started(self, trial: int, network: Architecture) -> None: ...

    def progress(self, trial: int, text: str, fraction: float | None) -> None: ...

    def finished(self, record: Record, records: list[Record], left_s: float | None) -> None: ...

    def tick(self) -> None: ...


class StubEngine:
    """Answers at once with figures made from the network alone; remembers what it was asked."""

    evaluated: list[str]
    latency_ms = 1.0

    def __init__(self, study: Study, sample: Architecture, settled_ms: dict[str, float]) -> None:
        self.evaluated = type(self).evaluated = []
        prepared = {"settled_ms": {}, "device": {}, "teacher": {}}
        self._events = [Event("done", None, content=prepared)]
        self._busy = True

    def has_room(self) -> bool:
        return not self._busy

    def submit(self, trial: int, network: Architecture) -> None:
        self.evaluated.append(network.id)
        values = {
            "top1_percent": 50 + int(network.id[:4], 16) / 65536 * 40,
            "latency_ms": self.latency_ms,
        }
        content = {"values": values, "latency": None, "training": None, "seconds": 0.5}
        self._busy = True
        self._events.append(Event("done", trial, content=content))

    def events(self, patience_s: float) -> list[Event]:
        events, self._events = self._events, []
        self._busy = self._busy and not events
        return events

    def close(self) -> None: ...


class FailingEngine(StubEngine):
    def submit(self, trial: int, network: Architecture) -> None:
        self._busy = True
        self._events.append(Event("failed", trial, "no luck today"))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> type[StubEngine]:
    monkeypatch.setattr(driver, "LocalEngine", StubEngine)
    return StubEngine


def run(path: Path, folder: Path, **changes: Any) -> tuple[Summary, Study]:
    study = Study.create(folder, read_config(path, changes), ["test"])
    return search(study, Silent()), study


def finals(study: Study) -> list[tuple[int, str, dict[str, float]]]:
    return [
        (record.trial, record.architecture.id if record.architecture else "", record.values)
        for record in study.records()
    ]


def test_limits_turn_proposals_down_without_using_up_the_budget(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(limits={"flops": 130_000})
    summary, study = run(path, tmp_path / "s", **{"search.trials": 6})
    records = study.records()
    over = [r for r in records if r.state == "pruned"]
    assert over, "this seed proposes some networks over the limit"
    assert len(stub.evaluated) == 6
    assert summary.trials["complete"] - summary.trials["reused"] == 6
    assert all(record.values["flops"] > 130_000 for record in over)
    assert all("flops over the limit of 130,000" in (record.reason or "") for record in over)
    assert all(r.values["flops"] <= 130_000 for r in records if r.state == "complete")
    constraints = [t.constraints for t in study.storage().trials if t.state == TrialState.PRUNED]
    assert all(found["flops"] > 0 for found in constraints)


def test_a_repeat_reuses_the_figures_and_a_small_space_ends_the_search(
    stub: type[StubEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "_IDLE_PROPOSALS", 40)
    summary, study = run(space_file(), tmp_path / "s", **{"search.trials": 100})
    assert len(stub.evaluated) == len(set(stub.evaluated)) == 14  # 2 of one stage, 12 of two
    assert summary.trials["reused"] >= driver._IDLE_PROPOSALS
    assert "nothing new" in summary.stopped_because
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


def test_a_search_whose_first_trials_all_fail_gives_up(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "LocalEngine", FailingEngine)
    with pytest.raises(BudgetError, match="no luck today"):
        run(space_file(), tmp_path / "s")


def test_same_seed_same_trials_and_another_seed_others(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    space = {"search.trials": 12}
    one = finals(run(space_file(), tmp_path / "a", **space)[1])
    assert finals(run(space_file(), tmp_path / "b", **space)[1]) == one
    other = finals(run(space_file(), tmp_path / "c", **space, **{"search.seed": 1})[1])
    assert other != one


def test_a_trial_half_proposed_by_a_killed_driver_is_adopted(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Killed at any parameter, the trial gets the rest as if nothing had happened."""
    undisturbed = finals(run(space_file(), tmp_path / "a", **{"search.trials": 8})[1])
    for stop_after in (0, 1, 3):
        folder = tmp_path / f"killed-{stop_after}"
        run(space_file(), folder, **{"search.trials": 5})
        study = Study.create(folder, read_config(space_file(), {"search.trials": 8}), ["test"])
        space = study.config.space()
        sampler = driver.SeededSampler(study.config.search, space.distributions())
        begun = study.storage(sampler).ask()
        for slot in [slot for slot in space.slots if len(slot.values) > 1][:stop_after]:
            slot.suggest(begun)
        search(study, Silent())
        assert finals(study) == undisturbed
        assert all(trial.state.is_finished() for trial in study.storage().trials)


def test_a_queued_trial_of_a_killed_driver_is_taken_up(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    given = architecture.parse(
        {
            "image_size": 16,
            "in_channels": 1,
            "num_classes": 10,
            "stem": {"kind": "conv", "layers": 2},
            "stages": [{"depth": 1, "embed_dim": 16, "num_heads": 1, "key_dim": 8}],
        }
    )
    path = space_file(start=[given.model_dump(mode="json")])
    undisturbed = finals(run(path, tmp_path / "a")[1])
    assert undisturbed[0][1] == given.id
    study = Study.create(tmp_path / "b", read_config(path), ["test"])
    space = study.config.space()
    values = space.encode(given)
    assert values is not None
    study.storage().enqueue_trial(space.encoded(values))  # and killed before it was asked for
    search(study, Silent())
    assert finals(study) == undisturbed


def test_an_evaluation_that_was_stored_but_not_told_is_not_repeated(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    undisturbed = finals(run(space_file(), tmp_path / "a", **{"search.trials": 6})[1])
    folder = tmp_path / "b"
    run(space_file(), folder, **{"search.trials": 5})
    study = Study.create(folder, read_config(space_file(), {"search.trials": 6}), ["test"])
    space = study.config.space()
    storage = study.storage(driver.SeededSampler(study.config.search, space.distributions()))
    trial = storage.ask()
    network = space.decode(space.suggest(trial))
    values = next(v for n, i, v in undisturbed if n == trial.number)
    trial.set_user_attr("architecture", network.model_dump(mode="json"))
    trial.set_user_attr("cost", {k: values[k] for k in ("params", "flops", "activations")})
    found = {k: values[k] for k in ("top1_percent", "latency_ms")}
    trial.set_user_attr("evaluation", {"values": found, "seconds": 0.5})
    search(study, Silent())
    assert stub.evaluated == []
    assert finals(study) == undisturbed


def test_a_second_driver_is_refused(
    stub: type[StubEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    _, study = run(space_file(), tmp_path / "s")
    with study.lock(), pytest.raises(InputError, match="another levit-search run"):
        search(study, Silent())


def test_a_worker_that_dies_takes_only_its_trial_with_it(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    """With the real engine: its process is killed in the middle of a trial."""
    killed: list[int] = []

    class Killer(Silent):
        def progress(self, trial: int, text: str, fraction: float | None) -> None:
            if trial == 1 and not killed:
                workers = subprocess.run(
                    ["pgrep", "-f", "multiprocessing.spawn"], capture_output=True, text=True
                ).stdout.split()
                children = {int(pid) for pid in workers} & _children()
                assert len(children) == 1
                killed.append(children.pop())
                subprocess.run(["kill", "-9", str(killed[0])], check=True)

    config = read_config(space_file(), {"search.trials": 3, "train.epochs": 3})
    study = Study.create(tmp_path / "s", config, ["test"])
    search(study, Killer())
    records = study.records()
    assert killed
    assert [record.state for record in records if record.reused_from is None] == [
        "complete",
        "failed",
        "complete",
    ]
    assert "SIGKILL" in next(r.reason or "" for r in records if r.state == "failed")


def _children() -> set[int]:
    import os

    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True)
    return {int(pid) for pid in found.stdout.split()}


def test_killed_at_random_moments_it_ends_as_if_undisturbed(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    """The real command with the real engine, SIGKILLed while starting, proposing and training."""
    path = space_file(
        search={"trials": 7, "startup_trials": 2},
        train={"epochs": 8, "batch_size": 64, "threads": 1, "device": "cpu"},
    )
    undisturbed = tmp_path / "undisturbed"
    subprocess.run(command("run", path, "--study", undisturbed), check=True, cwd=ROOT)
    folder = tmp_path / "killed"
    kills = 0
    for done_before_kill in (0, 2):
        process = subprocess.Popen(command("run", path, "--study", folder), cwd=ROOT)
        while process.poll() is None and _finished(folder) <= done_before_kill:
            time.sleep(0.05)
        time.sleep(0.15 * done_before_kill)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    subprocess.run(command("run", path, "--study", folder), check=True, cwd=ROOT)
    assert kills == 2
    assert finals(Study.open(folder)) == finals(Study.open(undisturbed))
    states = [trial.state for trial in Study.open(folder).storage().trials]
    assert TrialState.RUNNING not in states
    assert TrialState.WAITING not in states


def _finished(folder: Path) -> int:
    """Finished trials, read while the driver writes."""
    if not (folder / "study.db").exists():
        return 0
    try:
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}")
    except Exception:  # the tables are just being made
        return 0
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
