"""A study's trials in Optuna's storage: found, made, and refused where they are another study's."""

import json
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from levit_search.configuration import validated
from levit_search.errors import InputError
from levit_search.files import write_json
from levit_search.pareto import is_maximised
from levit_search.study.config import StudyConfig
from levit_search.study.settings import comparable, differences
from levit_search.study.storage import Place

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

SETTINGS = "settings"
"""Attribute of the study in the storage: what it was made from."""


class Trials:
    """The trials of a configuration in a study folder.

    A storage within the folder has them under the study's name. In one that other folders may use
    as well, some random digits are added to it, and ``storage.json`` in the folder keeps the whole
    name, so that the folder may be moved or renamed. (A copy of the folder is the same study.)
    """

    def __init__(self, folder: Path, config: StudyConfig) -> None:
        self._folder, self._config = folder, config
        self.place = Place(config.storage, folder)

    def open(self) -> "tuple[BaseStorage, int]":
        """The storage, and the study's id in it; both are made if they are not there.

        Raises:
            InputError: the storage cannot be used, or has the trials of something else, or they
                were here and are not any longer.
        """
        self.place.check_parent()
        name = self._name
        if name is None or not self.place.may_hold_trials:
            self._check_not_lost()
        storage = self.place.open()
        with self.place.errors():
            study_id = None if name is None else self._find(storage, name)
            if study_id is None:
                study_id = self._make(storage, name or self._new_name())
            self._settle(storage, study_id)
        return storage, study_id

    @contextmanager
    def found(self) -> "Iterator[tuple[BaseStorage, int] | None]":
        """As :meth:`open`, to read from within the block; None if there is nothing yet.

        Raises:
            InputError: as there, and for what fails within the block.
        """
        name = self._name
        if name is None or not self.place.may_hold_trials:
            self._check_not_lost()
            yield None
            return
        with self.place.opened() as storage:
            study_id = self._find(storage, name)
            if study_id is not None and _has_trials(storage, study_id):
                self._check_settings(storage, study_id)
            yield None if study_id is None else (storage, study_id)

    def exist(self) -> bool:
        """Whether there is a trial, finished or not.

        Raises:
            InputError: see :meth:`open`.
        """
        with self.found() as found:
            return found is not None and _has_trials(*found)

    def forget(self) -> None:
        """Take the study out of the storage."""
        with self.found() as found:
            if found is not None:
                storage, study_id = found
                storage.delete_study(study_id)
        self._name_file.unlink(missing_ok=True)

    @property
    def _name_file(self) -> Path:
        return self._folder / "storage.json"

    @property
    def _name(self) -> str | None:
        """In the storage; None if it was never there."""
        if not self.place.is_shared:
            return self._config.name
        if not self._name_file.is_file():
            return None
        try:
            return str(json.loads(self._name_file.read_text())["study"])
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{self._name_file}: does not tell the study's name") from None

    def _new_name(self) -> str:
        name = f"{self._config.name}-{secrets.token_hex(4)}"
        write_json(self._name_file, {"study": name})
        return name

    def _find(self, storage: "BaseStorage", name: str) -> int | None:
        try:
            return storage.get_study_id_from_name(name)
        except KeyError:
            pass
        others = [] if self.place.is_shared else storage.get_all_studies()
        if others:
            raise InputError(f"{self.place}: is of study {others[0].study_name!r}, not {name!r}")
        self._check_not_lost()
        return None

    def _check_not_lost(self) -> None:
        """A study that has trained something has trials."""
        checkpoints = self._folder / "checkpoints"
        if not checkpoints.is_dir() or not any(checkpoints.iterdir()):
            return
        if self._name is None:
            raise InputError(f"{self._folder}: its {self._name_file.name} is missing")
        if self.place.file is not None and not self.place.may_hold_trials:
            raise InputError(f"{self._folder}: its {self.place.file.name} is missing or empty")
        raise InputError(f"{self.place}: has no study {self._name!r} any longer")

    def _make(self, storage: "BaseStorage", name: str) -> int:
        from optuna.study import StudyDirection

        directions = [
            StudyDirection.MAXIMIZE if is_maximised(objective) else StudyDirection.MINIMIZE
            for objective in self._config.objectives
        ]
        return storage.create_new_study(directions, name)

    def _settle(self, storage: "BaseStorage", study_id: int) -> None:
        """What a new study is told; a kill may have come between."""
        import optuna

        attributes = storage.get_study_user_attrs(study_id)
        settings = comparable(self._config)
        if _has_trials(storage, study_id):
            self._check_settings(storage, study_id)
        if SETTINGS not in attributes or not _has_trials(storage, study_id):
            storage.set_study_user_attr(study_id, SETTINGS, settings)
        name = storage.get_study_name_from_id(study_id)
        study = optuna.load_study(study_name=name, storage=storage)
        if study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(self._config.objectives))

    def _check_settings(self, storage: "BaseStorage", study_id: int) -> None:
        """Trials of other settings do not belong beside ours.

        Raises:
            InputError: they are.
        """
        stored = storage.get_study_user_attrs(study_id).get(SETTINGS)
        if stored is None:  # made by an earlier release
            return
        before = validated(StudyConfig, stored, f"{self.place}: {SETTINGS}")
        if different := differences(comparable(before), comparable(self._config)):
            raise InputError(
                f"{self.place}: its trials were made with other settings ({different}) than those "
                f"of {self._folder}"
            )


def _has_trials(storage: "BaseStorage", study_id: int) -> bool:
    try:
        storage.get_trial_id_from_study_id_trial_number(study_id, 0)
    except KeyError:
        return False
    return True
