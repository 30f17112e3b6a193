"""The backup beside a storage: what stands in it, what a kill leaves, and what it is good for."""

import json
import os
import resource
import signal
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from levit_search import architecture
from levit_search.errors import InputError
from levit_search.search import search
from levit_search.search.trials import TrialStore
from levit_search.study import Study, read_config
from levit_search.study.backup import Backup, trial_line, trial_of
from levit_search.study.restore import restore, restore_elsewhere
from tests.engines import CurveEngine
from tests.networks import tiny_description

VALUES = [50.0, 1e6]
NOTES = {
    "architecture": architecture.parse(tiny_description()).model_dump(mode="json"),
    "architecture_id": "0" * 12,
    "cost": {"flops": 1e6},
}


@pytest.fixture
def study(space_file: Callable[..., Path], tmp_path: Path) -> Study:
    config = read_config(space_file(), {"storage": "journal"})
    return Study.create(tmp_path / "s", config, ["levit-search", "run"])


def distributions(study: Study) -> Any:
    return study.config.space().distributions()


def opened(study: Study) -> TrialStore:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return TrialStore(study, distributions(study))


def begun(store: TrialStore, study: Study) -> int:
    number = store.next_number
    params = {name: each.low for name, each in distributions(study).items()}
    kept = {"sampler:generation": 1}
    store.add(TrialState.RUNNING, None, params, NOTES, {"valid": 0.0}, kept)
    return number


def ended(store: TrialStore, study: Study) -> int:
    number = begun(store, study)
    store.note(number, "evaluation", {"values": {"top1_percent": 50.0}})
    store.finish(number, TrialState.COMPLETE, VALUES)
    return number


def lines(study: Study) -> list[bytes]:
    return Backup(study.folder).path.read_bytes().splitlines(keepends=True)


def silent(count: int, of: int) -> None: ...


def test_a_finished_trial_is_there_whole(study: Study) -> None:
    store = opened(study)
    number = ended(store, study)
    backup = Backup(study.folder)
    kept = backup.read()
    stored = study.storage().trials[number]
    assert kept.finished[number] == trial_line(stored)
    assert stored.user_attrs["evaluation"] == {"values": {"top1_percent": 50.0}}
    assert stored.values == VALUES
    assert kept.broken == []
    assert kept.running == {}


def test_nothing_is_written_twice(study: Study) -> None:
    store = opened(study)
    ended(store, study)
    begun(store, study)
    store.set_attribute("device", {"name": "here"})
    before = lines(study)
    for _ in range(3):
        opened(study)
    assert lines(study) == before


def test_half_a_line_of_a_killed_writer_is_cut_off_and_written_again(study: Study) -> None:
    ended(opened(study), study)
    before = lines(study)
    path = Backup(study.folder).path
    for cut in (1, 7, len(before[-1]) - 1):
        os.truncate(path, sum(map(len, before)) - cut)
        assert len(study.records()) == 1, "who reads changes nothing"
        opened(study)
        assert lines(study) == before


def test_what_a_kill_kept_from_the_backup_is_added(study: Study) -> None:
    store = opened(study)
    for _ in range(3):
        ended(store, study)
    begun(store, study)
    before = lines(study)
    for count in (1, 2, 4):
        Backup(study.folder).path.write_bytes(b"".join(before[:-count]))
        opened(study)
        kept = Backup(study.folder).read()
        assert sorted(kept.finished) == [0, 1, 2]
        assert sorted(kept.running) == [3]


@pytest.mark.parametrize("torn", [0, 7])
@pytest.mark.parametrize("place", range(1, 9))
def test_what_a_cut_took_from_the_backup_is_added(place: int, torn: int, study: Study) -> None:
    store = opened(study)
    store.set_attribute("device", {"name": "here"})
    store.set_attribute("population", 8)
    ended(store, study)
    store.set_attribute("key", "value")
    number = begun(store, study)
    store.note(number, "rungs", [1])
    store.note(number, "rungs", [1, 2])
    before = lines(study)
    size = sum(map(len, before[:place])) + torn
    os.truncate(Backup(study.folder).path, size)
    opened(study)
    kept = Backup(study.folder).read()
    assert kept.attributes == {"device": {"name": "here"}, "population": 8, "key": "value"}
    assert (kept.finished.keys(), kept.running.keys()) == ({0}, {number})
    if place != 7 or torn:  # where nothing but a whole line is gone, it might be another tool's
        assert kept.running[number]["user_attrs"]["rungs"] == [1, 2]
    again = lines(study)
    opened(study)
    assert lines(study) == again


@pytest.mark.parametrize("what", ["attribute", "note"])
def test_what_a_kill_kept_from_the_storage_is_written_there(
    what: str, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(study)
    number = begun(store, study)
    store.set_attribute("key", 1)
    store.note(number, "rungs", [1])

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_written", killed)
    write = {
        "attribute": lambda: store.set_attribute("key", 2),
        "note": lambda: store.note(number, "rungs", [1, 2]),
    }
    with pytest.raises(KeyboardInterrupt):
        write[what]()
    again = opened(study)
    assert again.attributes["key"] == (2 if what == "attribute" else 1)
    rungs = [1, 2] if what == "note" else [1]
    assert again.trials()[number].user_attrs["rungs"] == rungs
    assert study.storage().trials[number].user_attrs["rungs"] == rungs


def test_a_backup_that_was_cut_off_takes_no_rung_back(study: Study) -> None:
    store = opened(study)
    number = begun(store, study)
    for rungs in ([1], [1, 2]):
        store.note(number, "rungs", rungs)
    before = lines(study)
    for count in (1, 2):
        Backup(study.folder).path.write_bytes(b"".join(before[:-count]))
        assert opened(study).trials()[number].user_attrs["rungs"] == [1, 2]


def test_a_study_of_before_gets_one_with_its_next_search(study: Study) -> None:
    store = opened(study)
    for _ in range(3):
        ended(store, study)
    whole = Backup(study.folder).read().finished.keys()
    Backup(study.folder).path.unlink()
    assert len(study.records()) == 3
    assert not Backup(study.folder).path.exists(), "who reads changes nothing"
    opened(study)
    kept = Backup(study.folder).read()
    assert kept.finished.keys() == whole
    assert kept.study is not None


def test_what_others_add_to_a_trial_is_theirs(study: Study) -> None:
    store = opened(study)
    number = begun(store, study)
    storage, study_id = study.open_storage()
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
    storage.set_trial_user_attr(trial_id, "liked", True)
    for seen in ("yesterday", "today"):
        storage.set_study_user_attr(study_id, "seen", seen)
        assert opened(study).trials()[number].user_attrs["liked"]


@pytest.mark.parametrize("what", ["finished", "running", "attribute"])
def test_what_the_storage_does_not_have_any_longer_is_missed(what: str, study: Study) -> None:
    store = opened(study)
    store.set_attribute("device", {"name": "here"})
    store.set_attribute("key", 1)
    ended(store, study)
    begun(store, study)
    path = study.folder / "study.journal"
    text = path.read_text()
    if what == "attribute":
        path.write_text(text.replace('"here"', '"hera"'))
        told = "attribute 'device' is changed"
    elif what == "running":
        path.write_text("".join(text.splitlines(keepends=True)[:-1]))
        told = "running trial 1 is missing"
    else:
        path.write_text(text.replace("50.0,", "51.0,"))
        told = "trial 0 is changed"
    before = path.read_bytes()
    with pytest.raises(InputError, match=told) as raised:
        opened(study)
    assert "1 finished trial is whole in its backup.jsonl: levit-search restore" in str(
        raised.value
    )
    assert path.read_bytes() == before


def test_trials_that_ended_out_of_order_keep_their_numbers(study: Study) -> None:
    store = opened(study)
    running = [begun(store, study) for _ in range(3)]
    store.finish(running[2], TrialState.FAIL)
    store.note(running[1], "rungs", [7])
    before = [trial_line(trial) for trial in study.storage().trials]
    (study.folder / "study.journal").unlink()
    restored = restore(study.folder, False, silent)
    assert (restored.finished, restored.running) == (1, [0, 1])
    assert [trial_line(trial) for trial in study.storage().trials] == before
    assert opened(study).next_number == 3


def test_a_sound_storage_is_restored_only_by_force(study: Study) -> None:
    ended(opened(study), study)
    with pytest.raises(InputError, match="is sound and has all that"):
        restore(study.folder, False, silent)
    restored = restore(study.folder, True, silent)
    assert restored.kept_as == f"{study.folder}/study.journal.damaged-1"
    assert len(study.records()) == 1


def test_what_the_backup_has_not_yet_is_taken_from_the_storage(study: Study) -> None:
    store = opened(study)
    for _ in range(3):
        ended(store, study)
    store.set_attribute("key", 1)
    before = [trial_line(trial) for trial in study.storage().trials]
    path = Backup(study.folder).path
    path.write_bytes(b"".join(lines(study)[:-3]))  # less than a search would leave
    restored = restore(study.folder, True, silent)
    assert (restored.finished, restored.running, restored.lost) == (3, [], [])
    assert [trial_line(trial) for trial in study.storage().trials] == before
    assert opened(study).attributes["key"] == 1


def test_nothing_is_restored_while_a_search_is_at_work(study: Study) -> None:
    ended(opened(study), study)
    with study.lock(), pytest.raises(InputError, match="another levit-search run"):
        restore(study.folder, True, silent)


def test_a_killed_restoration_can_be_begun_again(study: Study) -> None:
    ended(opened(study), study)
    before = [trial_line(trial) for trial in study.storage().trials]
    (study.folder / "study.journal").unlink()

    def killed(count: int, of: int) -> None:
        if count == of:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(study.folder, False, killed)
    restore(study.folder, False, silent)
    assert [trial_line(trial) for trial in study.storage().trials] == before
    assert not list(study.folder.glob("*.restored"))


@pytest.mark.parametrize("elsewhere", [None, "sqlite"])
def test_a_study_may_be_restored_elsewhere(
    elsewhere: str | None, study: Study, tmp_path: Path, space_file: Callable[..., Path]
) -> None:
    ended(opened(study), study)
    before = [trial_line(trial) for trial in study.storage().trials]
    storage = f"sqlite:///{tmp_path}/all.db" if elsewhere else None
    restore_elsewhere(study.folder, storage, silent)
    again = Study.open(study.folder)
    assert again.config.storage == storage
    assert [trial_line(trial) for trial in again.storage().trials] == before
    config = read_config(space_file(), {"storage": storage, "search.trials": 99})
    assert len(Study.create(study.folder, config, ["test"]).records()) == 1
    with pytest.raises(InputError, match="is where its trials are"):
        restore_elsewhere(study.folder, storage, silent)


def test_settings_corrected_before_the_first_trial_leave_no_backup_of_the_old(
    study: Study, space_file: Callable[..., Path]
) -> None:
    opened(study).set_attribute("teacher", {"name": "of the old data"})
    config = read_config(space_file(), {"storage": "journal", "name": "other"})
    again = Study.create(study.folder, config, ["test"])
    assert "teacher" not in opened(again).attributes
    kept = Backup(study.folder).read()
    assert kept.study is not None
    assert kept.study["config"]["name"] == "other"


def test_a_search_writes_what_it_needs_and_no_more(study: Study) -> None:
    search(study, engine=CurveEngine)
    kept = Backup(study.folder).read()
    assert sorted(kept.finished) == [record.trial for record in study.records()]
    assert kept.running == {}
    mentioned = [line.count(b'"ended"') for line in lines(study)]
    evaluated = sum(record.reused_from is None for record in study.records())
    assert sum(mentioned) <= len(kept.finished) + evaluated


@pytest.mark.parametrize(
    "text", [b'"a":1}', b'"a":', b'"trial":0,"state":"COMPLETE"}', b'"attribute":[],"value":1}']
)
def test_a_line_of_a_stranger_counts_as_damaged(text: bytes, study: Study) -> None:
    ended(opened(study), study)
    backup = Backup(study.folder)
    with backup.path.open("ab") as file:
        file.write(b'{"crc32":"%08x",%s\n' % (zlib.crc32(text), text))
    assert backup.read().broken == [len(lines(study))]


def test_a_line_that_does_not_fit_leaves_nothing(study: Study) -> None:
    """Some of it fits, and what is cut off makes room for the rest."""
    ended(opened(study), study)
    backup, before = Backup(study.folder), lines(study)
    limit, whole = resource.getrlimit(resource.RLIMIT_FSIZE), b"".join(before)
    before_signal = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            backup.append([{"attribute": "key", "value": "v" * 30_000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before_signal)
    assert backup.path.read_bytes() == whole
    backup.append([{"attribute": "key", "value": "v"}])
    assert not backup.read().broken


def test_a_killed_restoration_elsewhere_can_be_begun_again(study: Study) -> None:
    ended(opened(study), study)
    before = [trial_line(trial) for trial in study.storage().trials]

    def killed(count: int, of: int) -> None:
        if count == of:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_elsewhere(study.folder, None, killed)
    restore_elsewhere(study.folder, None, silent)
    again = Study.open(study.folder)
    assert again.config.storage is None
    assert [trial_line(trial) for trial in again.storage().trials] == before


def test_a_study_whose_name_is_nowhere_gets_another(study: Study, tmp_path: Path) -> None:
    ended(opened(study), study)
    before = [trial_line(trial) for trial in study.storage().trials]
    restore_elsewhere(study.folder, f"sqlite:///{tmp_path}/all.db", silent)
    path = Backup(study.folder).path
    path.write_bytes(path.read_bytes().replace(b'"study":', b'"stadt":'))
    (study.folder / "storage.json").unlink()
    (tmp_path / "all.db").write_bytes(b"nothing")
    restore(study.folder, False, silent)
    again = Study.open(study.folder)
    assert [trial_line(trial) for trial in again.storage().trials] == before


def test_trials_of_every_kind_are_the_same_again(tmp_path: Path) -> None:
    storage = RDBStorage(f"sqlite:///{tmp_path}/trials.db")
    optuna.create_study(storage=storage, study_name="another").ask()
    study = optuna.create_study(
        storage=storage, study_name="ours", directions=["minimize", "maximize"]
    )
    for number in range(4):
        trial = study.ask()
        trial.suggest_int("z", 0, 9)
        trial.suggest_float("a", 1e-3, 1.0, log=True)
        trial.suggest_categorical("kind", ["x", None, 3])
        trial.set_user_attr("nested", {"a": [1, 2.5, None], "é": "ü"})
        trial.set_constraint("size", number - 2.0)
        if number == 0:
            study.tell(trial, [float("inf"), -1.0])
        elif number == 1:
            study.tell(trial, state=TrialState.FAIL)
        elif number == 2:
            study.tell(trial, [1 / 3, 2.0])
    trials = study.get_trials()
    assert len(trials) == 4
    again = optuna.create_study(
        storage=storage, study_name="again", directions=["minimize", "maximize"]
    )
    for each in trials:
        line = json.loads(json.dumps(trial_line(each)))
        again.add_trial(trial_of(line, each.distributions))
    assert [trial_line(each) for each in again.get_trials()] == [
        trial_line(each) for each in trials
    ]
    assert [list(each.params) for each in again.get_trials()] == [
        list(each.params) for each in trials
    ]
