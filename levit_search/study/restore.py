"""A storage that was damaged or is gone, made again from the backup beside it."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

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

    What was damaged is kept under another name. ``force`` makes the storage again though it is
    sound.

    Raises:
        InputError: there is nothing to restore from, nothing is damaged, or a search is at work.
    """
    study, kept, files = _with_settings(folder)
    try:
        is_named = study.name is not None
    except DamagedError:
        is_named = False
        put_aside(study.name_file)
    if not is_named:
        study.rename(kept.study["study"] if kept.study is not None else study.new_name())
        files.append(study.name_file.name)
    with study.lock():
        kept = study.backup.read()  # a search may have ended meanwhile
        if force or not _is_sound(study, kept):
            restored = _make(study, study.name, kept, *_left(study), on_written)
        elif files:
            restored = Restored(str(study.place), len(kept.finished), sorted(kept.running))
        else:
            raise InputError(
                f"{study.place}: is sound and has all that {study.backup.path} has; --force "
                "makes it anew all the same"
            )
    restored.files = files
    return restored


def restore_elsewhere(folder: Path, storage: str | None, on_written: OnWritten) -> Restored:
    """Make a study's storage in another place, such as where a server is gone.

    Raises:
        InputError: there is nothing to restore from, the place cannot be used or is the study's
            own, or a search is at work.
    """
    before, _, files = _with_settings(folder)
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
        restored = _make(study, None, study.backup.read(), *_left(before), on_written)
        study.write_settings()
    restored.files = [*files, "study.yaml"]
    return restored


def _with_settings(folder: Path) -> tuple[Study, BackupContents, list[str]]:
    """The study, its backup that has trials, and ``study.yaml`` if that had to be made again."""
    check_folder(folder)
    kept = Backup(folder).read()
    if not kept.has_trials:
        raise InputError(f"{folder}: has no {NAME} with trials to restore from")
    path = folder / "study.yaml"
    try:
        return Study.open(folder), kept, []
    except DamagedError:
        if kept.study is None:
            raise
    if path.exists():
        put_aside(path)
    write_atomically(path, write_yaml(kept.study["config"]))
    return Study.open(folder), kept, [path.name]


def _is_sound(study: Study, kept: BackupContents) -> bool:
    with suppress(DamagedError), study.found() as found:
        if found is not None:
            study.read_alone(kept, *found)
            return True
    return False


def _left(study: Study) -> "tuple[Sequence[FrozenTrial], Mapping[str, Any]]":
    """Trials and attributes that can be read in the storage, for what is not in the backup."""
    with suppress(InputError), study.found() as found:
        if found is not None:
            left = study.read(BackupContents(), *found)
            return left.trials, left.attributes
    return [], {}


def _make(
    study: Study,
    name: str | None,
    kept: BackupContents,
    trials: "Sequence[FrozenTrial]",
    attributes: Mapping[str, Any],
    on_written: OnWritten,
) -> Restored:
    """Make the storage of a study, and see that all of it is there; ``trials`` and ``attributes``
    are left of the damaged one, called ``name``, for what is not in the backup."""
    restored = Restored(str(study.place))
    attributes = {**attributes, **kept.attributes}
    ranges = kept.ranges()
    if ranges is None:
        ranges = study.config.space(str(study.folder / "study.yaml")).distributions()
    lines = list(_lines(kept, trials, restored.lost))
    with _new_storage(study, name, restored) as (storage, name):
        study_id = study.make(storage, name)
        for key, value in attributes.items():
            storage.set_study_user_attr(study_id, key, value)
        for count, line in enumerate(lines):
            on_written(count, len(lines))
            storage.create_new_trial(study_id, trial_of(line, ranges))
        on_written(len(lines), len(lines))
        made = study.read(kept, storage, study_id).trials
    restored.running = [trial.number for trial in made if not trial.state.is_finished()]
    restored.finished = len(made) - len(restored.running) - len(restored.lost)
    if kept.broken:
        study.backup.rewrite(study_line(name, study.config, ranges), attributes, made)
    return restored


def _lines(
    kept: BackupContents, trials: "Sequence[FrozenTrial]", lost: list[int]
) -> Iterator[Line]:
    """A line for each trial in the order of their numbers, which stay; those of which nothing is
    left are added to ``lost``."""
    rest = {trial.number: trial for trial in trials}
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


@contextmanager
def _new_storage(
    study: Study, damaged: str | None, restored: Restored
) -> Iterator[tuple["BaseStorage", str]]:
    """A storage to be filled within the block, and the study's name in it: a new study where other
    studies are kept, too, and otherwise a new file, which takes the old one's place after it."""
    from optuna.exceptions import DuplicatedStudyError

    place, path = study.place, study.place.file
    if path is None or (place.is_shared and _is_readable(place)):
        name = study.new_name()
        with place.opened() as storage:
            try:
                yield storage, name
            except (DuplicatedStudyError, DamagedError):
                raise InputError(f"{place}: {_ROWS}") from None
        study.rename(name)
        restored.kept_as = None if damaged is None else f"study {damaged!r}"
        return
    name = damaged or (study.new_name() if place.is_shared else study.config.name)
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
        study.rename(name)


def _is_readable(place: Place) -> bool:
    """Whether a file that other studies may be in is sound but for this one."""
    with suppress(DamagedError):
        if place.may_hold_trials:
            place.check_file()
            with place.opened() as storage, place.errors(reads=True):
                storage.get_all_studies()
            return True
    return False
