"""A storage that was damaged or is gone, made again from the backup beside it."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from levit_search.configuration import validated, write_yaml
from levit_search.errors import InputError
from levit_search.files import write_atomically
from levit_search.study.backup import (
    NAME,
    Backup,
    BackupContents,
    Line,
    put_aside,
    study_line,
    trial_line,
    trial_of,
)
from levit_search.study.config import StudyConfig
from levit_search.study.folder import Study, check_folder
from levit_search.study.storage import DamagedError, Place
from levit_search.study.stored_trials import SETTINGS, Contents, StoredTrials

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage

_LOST = "neither the storage nor its backup has anything of it any longer"
_ROWS = "its tables have rows of what is gone; empty the database, or give another one by --storage"

OnWritten = Callable[[int, int], None]
"""How many trials of how many were written."""


@dataclass
class Restored:
    """What came back."""

    place: str
    finished: int = 0
    running: list[int] = field(default_factory=list)
    """Trials that were begun; the next search evaluates them."""
    lost: list[int] = field(default_factory=list)
    """Trials of which nothing is left; failed ones stand in their place."""
    kept_as: str | None = None
    """Where that is which was damaged."""
    files: list[str] = field(default_factory=list)
    """Other files of the folder that were made again."""


def restore(folder: Path, force: bool, on_written: OnWritten) -> Restored:
    """Make again what is damaged of a study's storage, ``study.yaml`` and ``storage.json``.

    What was damaged is kept under another name.

    Args:
        folder: of the study.
        force: make the storage again though it is sound.
        on_written: called as it goes on.

    Raises:
        InputError: there is nothing to restore from, nothing is damaged, or a search is at work.
    """
    kept = _backup_of(folder)
    files: list[str] = []
    study = _with_settings(folder, kept, files)
    trials = StoredTrials(folder, study.config)
    _name(trials, kept, files)
    with study.lock():
        kept = trials.backup.read()  # a search may have ended meanwhile
        if force or not _is_sound(trials, kept):
            restored = _make(study, trials.name, kept, _left(trials), on_written)
        elif files:
            restored = Restored(str(trials.place), len(kept.finished), sorted(kept.running))
        else:
            raise InputError(
                f"{trials.place}: is sound and has all that {trials.backup.path} has; --force "
                "makes it anew all the same"
            )
    restored.files = files
    return restored


def restore_elsewhere(folder: Path, storage: str | None, on_written: OnWritten) -> Restored:
    """Make a study's storage in another place, such as where a server is gone.

    Args:
        folder: of the study.
        storage: as in a configuration.
        on_written: called as it goes on.

    Raises:
        InputError: there is nothing to restore from, the place cannot be used or is the study's
            own, or a search is at work.
    """
    kept = _backup_of(folder)
    files: list[str] = []
    before = _with_settings(folder, kept, files)
    changed = {**before.config.model_dump(mode="json"), "storage": storage}
    study = Study(folder, validated(StudyConfig, changed, "--storage"))
    place = study.place
    if study.config.storage == before.config.storage:
        raise InputError(f"--storage {place}: is where its trials are; leave it out")
    place.check()
    if place.file is not None and not place.is_shared and place.file.exists():
        raise InputError(
            f"--storage {place.file}: is there already; move it away, or give another one"
        )
    with Study(folder, before.config.model_copy(update={"storage": None})).lock():
        left = _left(StoredTrials(folder, before.config))
        restored = _make(study, None, Backup(folder).read(), left, on_written)
        write_atomically(folder / "study.yaml", write_yaml(study.config.model_dump(mode="json")))
    restored.files = [*files, "study.yaml"]
    return restored


def _backup_of(folder: Path) -> BackupContents:
    """A backup with trials in it."""
    check_folder(folder)
    kept = Backup(folder).read()
    if not kept.has_trials:
        raise InputError(f"{folder}: has no {NAME} with trials to restore from")
    return kept


def _with_settings(folder: Path, kept: BackupContents, made: list[str]) -> Study:
    """The study, with a ``study.yaml`` that can be read."""
    path = folder / "study.yaml"
    try:
        return Study.open(folder)
    except DamagedError:
        if kept.study is None:
            raise
    if path.exists():
        put_aside(path)
    write_atomically(path, write_yaml(kept.study["config"]))
    made.append(path.name)
    return Study.open(folder)


def _name(trials: StoredTrials, kept: BackupContents, made: list[str]) -> None:
    """Have a ``storage.json`` that tells the study's name in a storage of many."""
    try:
        is_there = trials.name is not None
    except DamagedError:
        is_there = False
        put_aside(trials.name_file)
    if not is_there:
        trials.rename(kept.study["study"] if kept.study is not None else trials.new_name())
        made.append(trials.name_file.name)


def _is_sound(trials: StoredTrials, kept: BackupContents) -> bool:
    try:
        with trials.found() as found:
            if found is None:
                return False
            trials.read_alone(kept, *found)
    except DamagedError:
        return False
    return True


def _left(trials: StoredTrials) -> Contents:
    """What can be read in the storage, for what is not in the backup."""
    try:
        with trials.found() as found:
            if found is not None:
                left = trials.read(BackupContents(), *found)
                ours = {key: each for key, each in left.attributes.items() if key != SETTINGS}
                return Contents(left.trials, ours)
    except InputError:  # nothing can
        pass
    return Contents([], {})


def _make(
    study: Study, name: str | None, kept: BackupContents, left: Contents, on_written: OnWritten
) -> Restored:
    """Make the storage of a study, and see that all of it is there.

    Args:
        study: whose configuration names the place.
        name: of the damaged study in this place; None if there is none.
        kept: its backup.
        left: what is left in the damaged storage, for what is not in the backup.
        on_written: called as it goes on.
    """
    trials = StoredTrials(study.folder, study.config)
    restored = Restored(str(trials.place))
    attributes = {**left.attributes, **kept.attributes}
    ranges = _ranges(study, kept)
    lines = list(_lines(kept, left, restored.lost))
    with _new_storage(trials, name, restored) as (storage, name):
        study_id = trials.make(storage, name)
        for key, value in attributes.items():
            storage.set_study_user_attr(study_id, key, value)
        for count, line in enumerate(lines):
            on_written(count, len(lines))
            storage.create_new_trial(study_id, trial_of(line, ranges))
        on_written(len(lines), len(lines))
        made = trials.read(kept, storage, study_id).trials
    restored.running = [trial.number for trial in made if not trial.state.is_finished()]
    restored.finished = len(made) - len(restored.running) - len(restored.lost)
    if kept.broken:
        trials.backup.rewrite(study_line(name, study.config, ranges), attributes, made)
    return restored


@contextmanager
def _new_storage(
    trials: StoredTrials, damaged: str | None, restored: Restored
) -> Iterator[tuple["BaseStorage", str]]:
    """A storage to be filled within the block, and the study's name in it.

    It is a new study beside the damaged one where other studies are kept, too, and otherwise a new
    file, which takes the old one's place once the block is done.
    """
    from optuna.exceptions import DuplicatedStudyError

    place, path = trials.place, trials.place.file
    if path is None or (place.is_shared and _is_readable(place)):
        name = trials.new_name()
        with place.opened() as storage:
            try:
                yield storage, name
            except (DuplicatedStudyError, DamagedError):
                raise InputError(f"{place}: {_ROWS}") from None
        trials.rename(name)
        restored.kept_as = None if damaged is None else f"study {damaged!r}"
        return
    name = damaged or (trials.new_name() if place.is_shared else trials.named())
    new = path.with_name(f".{path.name}.restored")
    for stray in path.parent.glob(f"{new.name}*"):
        stray.unlink()
    with place.opened(new) as storage:
        yield storage, name
    with new.open("rb+") as file:
        os.fsync(file.fileno())
    if path.exists():
        restored.kept_as = str(put_aside(path, ("-journal", "-wal", "-shm")))
    new.replace(path)
    if place.is_shared:
        trials.rename(name)


def _is_readable(place: Place) -> bool:
    """Whether a file that other studies may be in is sound but for this one."""
    try:
        if not place.may_hold_trials:
            return False
        place.check_file()
        with place.opened() as storage, place.errors(reads=True):
            storage.get_all_studies()
    except DamagedError:
        return False
    return True


def _lines(kept: BackupContents, left: Contents, lost: list[int]) -> Iterator[Line]:
    """A line for each trial in the order of their numbers, which stay; those of which nothing is
    left are added to ``lost``."""
    rest = {trial.number: trial for trial in left.trials}
    nothing: Line = {
        "params": {},
        "system_attrs": {},
        "values": None,
        "started": None,
        "ended": None,
    }
    for number in range(max({*kept.finished, *kept.running, *rest}) + 1):
        if number in kept.finished:
            yield kept.finished[number]
        elif number in kept.running and not (number in rest and kept.is_as_begun(rest[number])):
            yield kept.running[number]
        elif number in rest:
            yield trial_line(rest[number])
        else:
            lost.append(number)
            yield {"trial": number, "state": "FAIL", "user_attrs": {"reason": _LOST}, **nothing}


def _ranges(study: Study, kept: BackupContents) -> "Mapping[str, BaseDistribution]":
    """Of all parameters."""
    from optuna.distributions import json_to_distribution

    if kept.study is None:
        return study.config.space(str(study.folder / "study.yaml")).distributions()
    return {key: json_to_distribution(text) for key, text in kept.study["distributions"].items()}
