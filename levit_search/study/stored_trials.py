"""A study's trials in Optuna's storage: found or made, compared with their backup, and read.

What is another study's is refused, and so is what is not as it was written.
"""

import gc
import json
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_search.configuration import validated
from levit_search.errors import InputError
from levit_search.escaping import quoted
from levit_search.files import write_json
from levit_search.pareto import is_maximised
from levit_search.study.backup import NAME, Backup, BackupContents, Line, has_more, study_line
from levit_search.study.config import StudyConfig
from levit_search.study.record import check_attributes
from levit_search.study.settings import comparable, differences, up_to_date
from levit_search.study.storage import DamagedError, Place

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.study import Study as OptunaStudy
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

SETTINGS = "settings"
"""Attribute of the study in the storage: what it was made from."""


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Switch cyclic garbage collection off within the block.

    Thousands of trials are read there and stay; looking through them again and again, as they come,
    takes as long as reading them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class Contents:
    """What a storage has of one study, and where that is."""

    trials: "Sequence[FrozenTrial]"
    attributes: dict[str, Any]
    """Those of the study, but for :data:`SETTINGS`."""
    storage: "BaseStorage"
    study_id: int


class StoredTrials:
    """The trials of a study folder, in the storage that its configuration names.

    A storage within the folder has them under the study's name. In one that other folders may use
    as well, some random digits are added to it, and ``storage.json`` in the folder keeps the whole
    name, so that the folder may be moved or renamed. (A copy of the folder is the same study.)
    """

    def __init__(self, folder: Path, config: StudyConfig) -> None:
        self.folder, self.config = folder, config

    @property
    def place(self) -> Place:
        """Where the trials are kept."""
        return Place(self.config.storage, self.folder)

    @property
    def backup(self) -> Backup:
        """The second record of them, in the folder."""
        return Backup(self.folder)

    def open_storage(self) -> "tuple[BaseStorage, int]":
        """Optuna's storage and the study's id in it, for the one that writes.

        Both are made if they are not there.

        Raises:
            InputError: the storage cannot be reached or read, or has no longer the trials of this
                study, or those of other settings. Nothing was changed.
        """
        self.place.check_parent()
        with self.pointing_to_restore():
            name = self.name
            if name is None or not self.place.may_hold_trials:
                self._check_not_lost()
            storage = self.place.open()
            with self.place.errors(reads=True):
                study_id = None if name is None else self._find(storage, name)
                if study_id is None:
                    return storage, self.make(storage, self.named())
                self._settle(storage, study_id)
        return storage, study_id

    def storage(self) -> "OptunaStudy":
        """Optuna's study, made if it is not there.

        Raises:
            InputError: see :meth:`open_storage`.
        """
        opened = self.open_storage()
        with self.place.errors():
            return _opened(*opened)

    @without_garbage_collection()
    def open_to_write(self, distributions: "Mapping[str, BaseDistribution]") -> Contents:
        """The same for a driver, looked over; its backup is made if it is not there.

        What a kill kept from being written to one of them is written now.

        Raises:
            InputError: as :meth:`open_storage`, or what is there is not what was written.
        """
        kept = self.backup.read()
        storage, study_id = self.open_storage()
        with self.pointing_to_restore():
            found = self.read_alone(kept, storage, study_id)
        with self.naming_place():
            check_attributes(found.attributes)
        study = study_line(self.named(), self.config, distributions)
        if kept.study is not None and not kept.broken:
            lines = kept.missing(found.trials, found.attributes)
            if kept.study != study:
                lines.insert(0, study)
            if lines or kept.is_torn:
                self.backup.append(lines, at=kept.size)
            return found
        self.backup.rewrite(study, found.attributes, found.trials)
        if kept.broken:
            count = len(kept.broken)
            told = "1 line is" if count == 1 else f"{count} lines are"
            warnings.warn(
                f"{self.backup.path}: {told} damaged; the storage is whole, and the file was "
                "written anew from it",
                stacklevel=2,
            )
        return found

    def read_alone(self, kept: BackupContents, storage: "BaseStorage", study_id: int) -> Contents:
        """Read and check all that a storage has of a study at which no search is at work.

        What was about to be written to it when a search was killed is written first.

        Raises:
            InputError: something was changed or is gone, or the file is damaged elsewhere.
        """
        self.place.check_file()
        if kept.pending is not None:
            with self.place.errors(reads=True):
                _write_pending(kept.pending, storage, study_id)
        return self.read(kept, storage, study_id)

    def read(
        self, kept: BackupContents, storage: "BaseStorage", study_id: int, is_alone: bool = True
    ) -> Contents:
        """Read all that a storage has of a study, and compare it with the backup, read before.

        Everything can be compared where it ``is_alone``: no search is at work.

        Raises:
            DamagedError: something was changed or is gone.
        """
        with self.place.errors(reads=True):
            trials = storage.get_all_trials(study_id, deepcopy=False)
            attributes = dict(storage.get_study_user_attrs(study_id))
        attributes.pop(SETTINGS, None)
        told = kept.lost(trials, attributes if is_alone else None)
        if is_alone and [trial.number for trial in trials] != list(range(len(trials))):
            told.insert(0, "its trials are not numbered in a row")
        if told:
            more = f" and {len(told) - 2} more" if len(told) > 2 else ""
            raise DamagedError(f"{self.place}: is damaged ({', '.join(told[:2])}{more})")
        return Contents(trials, attributes, storage, study_id)

    @contextmanager
    def found(self) -> "Iterator[tuple[BaseStorage, int] | None]":
        """As :meth:`open_storage`, to read from within the block; None if there is nothing yet.

        Raises:
            InputError: as there, and for what fails within the block.
        """
        with self.pointing_to_restore():
            name = self.name
            if name is None or not self.place.may_hold_trials:
                self._check_not_lost()
                yield None
                return
            with self.place.opened() as storage, self.place.errors(reads=True):
                study_id = self._find(storage, name)
                if study_id is not None and _has_trials(storage, study_id):
                    self._check_settings(storage, study_id)
                    self._check_objectives(_opened(storage, study_id))
                yield None if study_id is None else (storage, study_id)

    def has_trials(self) -> bool:
        """Whether there is a trial in the storage, finished or not.

        Raises:
            InputError: see :meth:`open_storage`.
        """
        with self.found() as found:
            return found is not None and _has_trials(*found)

    @contextmanager
    def pointing_to_restore(self) -> Iterator[None]:
        """Add to what is said within the block of a damaged storage how it is restored."""
        try:
            yield
        except DamagedError as error:
            kept = self.backup.read()
            if not kept.has_trials:
                raise
            count = len(kept.finished)
            trials = "1 finished trial is" if count == 1 else f"{count} finished trials are"
            broken = f", {len(kept.broken)} of its lines are not" if kept.broken else ""
            command = f"levit-search restore {quoted(str(self.folder))}"
            told = f"{error}; {trials} whole in its {NAME}{broken}: {command}"
            raise DamagedError(told) from None

    @contextmanager
    def naming_place(self) -> Iterator[None]:
        """Begin what is said within the block with where the trials are kept."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.place}: {error}") from None

    @property
    def name_file(self) -> Path:
        """Where the study's name in a storage of many is kept."""
        return self.folder / "storage.json"

    @property
    def name(self) -> str | None:
        """Of the study in the storage; None if it was never there.

        Raises:
            DamagedError: its file says nothing.
        """
        if not self.place.is_shared:
            return self.config.name
        if not self.name_file.is_file():
            return None
        try:
            return str(json.loads(self.name_file.read_text())["study"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DamagedError(f"{self.name_file}: does not tell the study's name") from None

    def new_name(self) -> str:
        """A name that no other study has."""
        return f"{self.config.name}-{secrets.token_hex(4)}"

    def rename(self, name: str) -> None:
        """Go by another name in the storage from now on."""
        write_json(self.name_file, {"study": name})

    def named(self) -> str:
        """The name, a new one if there was none."""
        name = self.name
        if name is None:
            name = self.new_name()
            self.rename(name)
        return name

    def _find(self, storage: "BaseStorage", name: str) -> int | None:
        with suppress(KeyError):
            return storage.get_study_id_from_name(name)
        others = [] if self.place.is_shared else storage.get_all_studies()
        if others:
            raise DamagedError(f"{self.place}: is of study {others[0].study_name!r}, not {name!r}")
        self._check_not_lost()
        return None

    def _check_not_lost(self) -> None:
        """A study that has trained something has trials."""
        checkpoints = self.folder / "checkpoints"
        has_trained = checkpoints.is_dir() and any(checkpoints.iterdir())
        if not has_trained and not self.backup.read().has_trials:
            return
        if self.name is None:
            raise DamagedError(f"{self.folder}: its {self.name_file.name} is missing")
        if self.place.file is not None and not self.place.may_hold_trials:
            raise DamagedError(f"{self.folder}: its {self.place.file.name} is missing or empty")
        raise DamagedError(f"{self.place}: has no study {self.name!r} any longer")

    def make(self, storage: "BaseStorage", name: str) -> int:
        """A new study in a storage; returns its id."""
        study_id = storage.create_new_study(self._directions, name)
        self._settle(storage, study_id)
        return study_id

    @property
    def _directions(self) -> "list[StudyDirection]":
        from optuna.study import StudyDirection

        return [
            StudyDirection.MAXIMIZE if is_maximised(objective) else StudyDirection.MINIMIZE
            for objective in self.config.objectives
        ]

    def _settle(self, storage: "BaseStorage", study_id: int) -> None:
        """Tell a new study what it was made from; a kill may have come between."""
        from optuna.exceptions import ExperimentalWarning

        is_new = not _has_trials(storage, study_id)
        if not is_new:
            self._check_settings(storage, study_id)
        if is_new or SETTINGS not in storage.get_study_user_attrs(study_id):
            storage.set_study_user_attr(study_id, SETTINGS, comparable(self.config))
        study = _opened(storage, study_id)
        if study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(list(self.config.objectives))
        self._check_objectives(study)

    def _check_objectives(self, study: "OptunaStudy") -> None:
        names = list(self.config.objectives)  # none at all: a kill came before they were written
        if study.metric_names not in (None, names) or study.directions != self._directions:
            raise DamagedError(f"{self.place}: is damaged (the objectives are changed)")

    def _check_settings(self, storage: "BaseStorage", study_id: int) -> None:
        """Trials of other settings do not belong beside ours."""
        stored = storage.get_study_user_attrs(study_id).get(SETTINGS)
        if stored is None:
            if self.backup.read().study is not None:
                raise DamagedError(f"{self.place}: is damaged (attribute {SETTINGS!r} is missing)")
            return  # made by an earlier release
        different = self._differences(stored, f"{self.place}: {SETTINGS}")
        written = self.backup.read().study if different else None
        if written is not None and not self._differences(written["config"], NAME):
            raise DamagedError(f"{self.place}: is damaged (attribute {SETTINGS!r} is changed)")
        if different:
            raise InputError(
                f"{self.place}: its trials were made with other settings ({different}) than those "
                f"of {self.folder}"
            )

    def _differences(self, settings: object, where: str) -> str:
        """Between what was written down and the configuration; see :func:`differences`."""
        try:
            given = up_to_date(settings) if isinstance(settings, Mapping) else settings
            before = validated(StudyConfig, given, where)
        except InputError as error:
            return str(error)
        return differences(comparable(before), comparable(self.config))


def _write_pending(pending: Line, storage: "BaseStorage", study_id: int) -> None:
    """Write an attribute, or a note with a running trial, which may be there already."""
    from optuna.exceptions import UpdateFinishedTrialError

    if "attribute" in pending:
        storage.set_study_user_attr(study_id, pending["attribute"], pending["value"])
        return
    with suppress(KeyError, UpdateFinishedTrialError):  # where it is damaged, comparing tells
        trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, pending["trial"])
        known = storage.get_trial(trial_id).user_attrs.get(pending["note"])
        if not has_more(known, pending["value"]):
            storage.set_trial_user_attr(trial_id, pending["note"], pending["value"])


def _opened(storage: "BaseStorage", study_id: int) -> "OptunaStudy":
    import optuna

    name = storage.get_study_name_from_id(study_id)
    return optuna.load_study(study_name=name, storage=storage)


def _has_trials(storage: "BaseStorage", study_id: int) -> bool:
    with suppress(KeyError):
        storage.get_trial_id_from_study_id_trial_number(study_id, 0)
        return True
    return False
