"""A storage that was damaged or is gone, made again from the backup beside it."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_search.configuration import validated, write_yaml
from levit_search.errors import InputError
from levit_search.files import write_atomically
from levit_search.study.backup import (
    NAME,
    Backup,
    Kept,
    is_as_begun,
    lines_of,
    lost_rest,
    put_aside,
    trial_body,
    trial_of,
)
from levit_search.study.config import StudyConfig
from levit_search.study.folder import Study, check_folder
from levit_search.study.storage import DamagedError
from levit_search.study.trials import SETTINGS, Contents, Trials
from levit_search.study.writing import checked, study_line, uncached

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage

_LOST = "neither the storage nor its backup has anything of it any longer"

_NOTHING = f"{{}}: has no {NAME} with trials to restore from"
_ROWS = "its tables have rows of what is gone; empty the database, or give another one by --storage"

Told = Callable[[int, int], None]
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


def restore(folder: Path, force: bool, told: Told) -> Restored:
    """Make again what is damaged of a study's storage, ``study.yaml`` and ``storage.json``.

    What was damaged is kept under another name.

    Args:
        folder: of the study.
        force: make the storage again though it is sound.
        told: called as it goes on.

    Raises:
        InputError: there is nothing to restore from, nothing is damaged, or a search is at work.
    """
    kept = _kept(folder)
    files: list[str] = []
    study = _settings(folder, kept, files)
    trials = Trials(folder, study.config)
    _name(trials, kept, files)
    with study.lock():
        kept = trials.backup.read()  # a search may have ended meanwhile
        restored = Restored(str(trials.place), files=files)
        trouble = _trouble(trials, kept)
        if trouble is None and not force:
            if not files:
                raise InputError(
                    f"{trials.place}: is sound and has all that {trials.backup.path} has; --force "
                    "makes it anew all the same"
                )
            restored.finished, restored.running = len(kept.ended), sorted(kept.running)
            return restored
        _Remaking(study, trials, kept, _left(trials), restored, told).run()
    return restored


def restore_elsewhere(folder: Path, storage: str | None, told: Told) -> Restored:
    """Make a study's storage in another place, such as where a server is gone.

    Args:
        folder: of the study.
        storage: as in a configuration.
        told: called as it goes on.

    Raises:
        InputError: there is nothing to restore from, the place cannot be used or is the study's
            own, or a search is at work.
    """
    kept = _kept(folder)
    files: list[str] = []
    before = _settings(folder, kept, files)
    changed = {**before.config.model_dump(mode="json"), "storage": storage}
    study = Study(folder, validated(StudyConfig, changed, "--storage"))
    if study.config.storage == before.config.storage:
        raise InputError(f"--storage {study.place}: is where its trials are; leave it out")
    trials = Trials(folder, study.config)
    trials.place.check()
    file = trials.place.file
    if file is not None and not trials.place.is_shared and file.exists():
        raise InputError(f"--storage {file}: is there already; move it away, or give another one")
    restored = Restored(str(trials.place), files=[*files, "study.yaml"])
    with Study(folder, before.config.model_copy(update={"storage": None})).lock():
        kept, left = Backup(folder).read(), _left(Trials(folder, before.config))
        remaking = _Remaking(study, trials, kept, left, restored, told)
        if trials.place.is_shared:
            remaking.make_new()
        else:
            remaking.run()
        write_atomically(folder / "study.yaml", write_yaml(study.config.model_dump(mode="json")))
    return restored


def _kept(folder: Path) -> Kept:
    """A backup with trials in it."""
    check_folder(folder)
    kept = Backup(folder).read()
    if not kept.has_trials:
        raise InputError(_NOTHING.format(folder))
    return kept


def _settings(folder: Path, kept: Kept, made: list[str]) -> Study:
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


def _name(trials: Trials, kept: Kept, made: list[str]) -> None:
    """Have a ``storage.json`` that tells the study's name in a storage of many."""
    try:
        is_there = trials.name is not None
    except DamagedError:
        is_there = False
        put_aside(trials.name_file)
    if not is_there:
        trials.rename(kept.study["study"] if kept.study is not None else trials.new_name())
        made.append(trials.name_file.name)


def _trouble(trials: Trials, kept: Kept) -> DamagedError | None:
    """What is damaged."""
    try:
        with trials.found() as found:
            if found is None:
                raise DamagedError(f"{trials.place}: has no trials")
            checked(trials, kept, uncached(found[0]), found[1])
    except DamagedError as error:
        return error
    return None


def _left(trials: Trials) -> Contents:
    """What can be read in the storage, for what is not in the backup."""
    try:
        with trials.found() as found:
            if found is not None:
                left = found[0].get_all_trials(found[1], deepcopy=False)
                attributes = found[0].get_study_user_attrs(found[1])
                attributes = {key: each for key, each in attributes.items() if key != SETTINGS}
                if [trial.number for trial in left] == list(range(len(left))):
                    return Contents(left, attributes)
    except InputError:  # nothing can
        pass
    return Contents([], {})


class _Remaking:
    """A storage on its way from a backup."""

    def __init__(
        self,
        study: Study,
        trials: Trials,
        kept: Kept,
        left: Contents,
        restored: Restored,
        told: Told,
    ) -> None:
        self._study, self._trials, self._kept, self._left = study, trials, kept, left
        self._restored, self._told = restored, told
        self._distributions = _distributions(study, kept)

    def run(self) -> None:
        place, name = self._trials.place, self._trials.name
        if place.file is None or (place.is_shared and self._is_readable()):
            self._restored.kept_as = f"study {name!r}" if name is not None else None
            self.make_new()
        else:
            with self._new_file(place.file) as storage:
                assert name is not None
                self._fill(storage, name)

    def make_new(self) -> None:
        """As a new study in a storage that may have others."""
        from optuna.exceptions import DuplicatedStudyError

        place, new = self._trials.place, self._trials.new_name()
        with place.opened() as storage:
            try:
                self._fill(storage, new)
            except (DuplicatedStudyError, DamagedError):
                raise InputError(f"{place}: {_ROWS}") from None
        self._trials.rename(new)

    @contextmanager
    def _new_file(self, path: Path) -> "Iterator[BaseStorage]":
        """A storage in a file that takes the place of ``path`` when it is whole."""
        new = path.with_name(f".{path.name}.restored")
        for left in path.parent.glob(f"{new.name}*"):
            left.unlink()
        with self._trials.place.beside(new) as storage:
            yield storage
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        if path.exists():
            self._restored.kept_as = str(put_aside(path, ("-journal", "-wal", "-shm")))
        new.replace(path)

    def _fill(self, storage: "BaseStorage", name: str) -> None:
        """Write the study and all of its trials, and see that they are there."""
        study_id = self._trials.make(storage, name)
        inner = uncached(storage)
        attributes = {**self._left.attributes, **self._kept.attributes}
        for key, value in attributes.items():
            inner.set_study_user_attr(study_id, key, value)
        bodies = list(self._bodies())
        for count, body in enumerate(bodies):
            self._told(count, len(bodies))
            inner.create_new_trial(study_id, trial_of(body, self._distributions))
        self._told(len(bodies), len(bodies))
        found = inner.get_all_trials(study_id, deepcopy=False)
        settled = dict(inner.get_study_user_attrs(study_id))
        self._trials.check_whole(self._kept, found, lost_rest(self._kept, found, settled))
        self._restored.finished = sum(trial.state.is_finished() for trial in found)
        self._restored.finished -= len(self._restored.lost)
        self._restored.running = [t.number for t in found if not t.state.is_finished()]
        if self._kept.broken:
            study = study_line(name, self._study.config, self._distributions)
            self._trials.backup.rewrite(lines_of(study, attributes, found))

    def _bodies(self) -> Iterator[Mapping[str, Any]]:
        """A line for each trial, in the order of their numbers."""
        kept = self._kept
        rest = {trial.number: trial for trial in self._left.trials}
        for number in range(max({*kept.ended, *kept.running, *rest}) + 1):
            if number in kept.ended:
                yield self._trials.backup.ended(kept, number)
            elif number in kept.running and not (
                number in rest and is_as_begun(kept, rest[number])
            ):
                yield kept.running[number]
            elif number in rest:
                yield trial_body(rest[number])
            else:
                self._restored.lost.append(number)
                yield _stand_in(number)

    def _is_readable(self) -> bool:
        """Whether a file that other studies may be in is sound but for this one."""
        place = self._trials.place
        try:
            if not place.may_hold_trials:
                return False
            place.check_file()
            with place.opened() as storage, place.reading():
                storage.get_all_studies()
        except DamagedError:
            return False
        return True


def _distributions(study: Study, kept: Kept) -> "dict[str, BaseDistribution]":
    from optuna.distributions import json_to_distribution

    if kept.study is None:
        return study.config.space(str(study.folder / "study.yaml")).distributions()
    return {key: json_to_distribution(text) for key, text in kept.study["distributions"].items()}


def _stand_in(number: int) -> dict[str, Any]:
    """A trial of which nothing is left: those after it keep their numbers."""
    nothing: dict[str, Any] = {"params": {}, "system_attrs": {}, "values": None}
    times = {"started": None, "ended": None}
    return {"trial": number, "state": "FAIL", "user_attrs": {"reason": _LOST}, **nothing, **times}
