"""A study's trials in Optuna's storage: found, made, and refused where they are another study's."""

import json
import secrets
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_search.configuration import validated
from levit_search.errors import InputError
from levit_search.files import write_json
from levit_search.pareto import is_maximised
from levit_search.printable import quoted
from levit_search.study.backup import NAME, Backup, Kept, lost_trials
from levit_search.study.config import StudyConfig
from levit_search.study.settings import comparable, differences, up_to_date
from levit_search.study.storage import DamagedError, Place

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study as OptunaStudy
    from optuna.study import StudyDirection
    from optuna.trial import FrozenTrial

SETTINGS = "settings"
"""Attribute of the study in the storage: what it was made from."""


@dataclass(frozen=True)
class Contents:
    """A storage's trials of one study, and the study's attributes."""

    trials: "Sequence[FrozenTrial]"
    attributes: dict[str, Any]


class Trials:
    """The trials of a configuration in a study folder.

    A storage within the folder has them under the study's name. In one that other folders may use
    as well, some random digits are added to it, and ``storage.json`` in the folder keeps the whole
    name, so that the folder may be moved or renamed. (A copy of the folder is the same study.)
    """

    def __init__(self, folder: Path, config: StudyConfig) -> None:
        self._folder, self._config = folder, config
        self.place = Place(config.storage, folder)
        self.backup = Backup(folder)

    def open(self) -> "tuple[BaseStorage, int]":
        """The storage, and the study's id in it; both are made if they are not there.

        Raises:
            InputError: the storage cannot be used, or has the trials of something else, or they
                were here and are not any longer.
        """
        self.place.check_parent()
        with self.way_out():
            name = self.name
            if name is None or not self.place.may_hold_trials:
                self._check_not_lost()
            storage = self.place.open()
            with self.place.reading():
                study_id = None if name is None else self._find(storage, name)
                if study_id is None:
                    return storage, self.make(storage, self._named())
                self._settle(storage, study_id)
        return storage, study_id

    def contents(self) -> Contents | None:
        """What the storage has; None if there is nothing yet.

        Finished trials are those that were written, see :mod:`levit_search.study.backup`.

        Raises:
            InputError: see :meth:`open`, or trials were changed or are gone.
        """
        kept = self.backup.read()  # before the storage, to which a search may be adding
        with self.found() as found:
            if found is None:
                return None
            storage, study_id = found
            trials = storage.get_all_trials(study_id, deepcopy=False)
            attributes = dict(storage.get_study_user_attrs(study_id))
            self.check_whole(kept, trials)
        return Contents(trials, attributes)

    def check_whole(
        self, kept: Kept, trials: "Sequence[FrozenTrial]", others: Sequence[str] = ()
    ) -> None:
        """See that a storage has what the backup has.

        Args:
            kept: the backup, read before the trials were.
            trials: of the storage.
            others: what else it does not have, in words.

        Raises:
            DamagedError: it has not.
        """
        missing, changed = lost_trials(self.backup, kept, trials)
        told = [f"trial {number} is missing" for number in missing]
        told += [f"trial {number} is changed" for number in changed]
        if told := [*told, *others]:
            more = f" and {len(told) - 2} more" if len(told) > 2 else ""
            raise DamagedError(f"{self.place}: is damaged ({', '.join(told[:2])}{more})")

    @contextmanager
    def found(self) -> "Iterator[tuple[BaseStorage, int] | None]":
        """As :meth:`open`, to read from within the block; None if there is nothing yet.

        Raises:
            InputError: as there, and for what fails within the block.
        """
        with self.way_out():
            name = self.name
            if name is None or not self.place.may_hold_trials:
                self._check_not_lost()
                yield None
                return
            with self.place.opened() as storage, self.place.reading():
                study_id = self._find(storage, name)
                if study_id is not None and _has_trials(storage, study_id):
                    self._check_settings(storage, study_id)
                    self._check_objectives(_opened(storage, study_id))
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
        self.name_file.unlink(missing_ok=True)
        self.backup.path.unlink(missing_ok=True)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the study against drivers of other folders, where there may be some.

        Raises:
            InputError: there is one.
        """
        is_begun = (self._folder / "study.yaml").exists()
        if not self.place.is_shared or not is_begun:
            yield
            return
        with self.place.claimed(self._named()):
            yield

    @contextmanager
    def way_out(self) -> Iterator[None]:
        """What is said within the block of a damaged storage says how to go on, too."""
        try:
            yield
        except DamagedError as error:
            raise DamagedError(f"{error}{self._told_of_backup()}") from None

    def _told_of_backup(self) -> str:
        kept = self.backup.read()
        if not kept.has_trials:
            return ""
        count = len(kept.ended)
        trials = "1 finished trial is" if count == 1 else f"{count} finished trials are"
        broken = f", {len(kept.broken)} of its lines are not" if kept.broken else ""
        command = f"levit-search restore {quoted(str(self._folder))}"
        return f"; {trials} whole in its {NAME}{broken}: {command}"

    @property
    def name_file(self) -> Path:
        """Where the study's name in a storage of many is kept."""
        return self._folder / "storage.json"

    @property
    def name(self) -> str | None:
        """Of the study in the storage; None if it was never there.

        Raises:
            DamagedError: its file says nothing.
        """
        if not self.place.is_shared:
            return self._config.name
        if not self.name_file.is_file():
            return None
        try:
            return str(json.loads(self.name_file.read_text())["study"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DamagedError(f"{self.name_file}: does not tell the study's name") from None

    def new_name(self) -> str:
        """A name that no other study has."""
        return f"{self._config.name}-{secrets.token_hex(4)}"

    def rename(self, name: str) -> None:
        """Go by another name in the storage from now on."""
        write_json(self.name_file, {"study": name})

    def _named(self) -> str:
        """The name, a new one if there was none."""
        name = self.name
        if name is None:
            name = self.new_name()
            self.rename(name)
        return name

    def _find(self, storage: "BaseStorage", name: str) -> int | None:
        try:
            return storage.get_study_id_from_name(name)
        except KeyError:
            pass
        others = [] if self.place.is_shared else storage.get_all_studies()
        if others:
            raise DamagedError(f"{self.place}: is of study {others[0].study_name!r}, not {name!r}")
        self._check_not_lost()
        return None

    def _check_not_lost(self) -> None:
        """A study that has trained something has trials."""
        checkpoints = self._folder / "checkpoints"
        has_trained = checkpoints.is_dir() and any(checkpoints.iterdir())
        if not has_trained and not self.backup.read().has_trials:
            return
        if self.name is None:
            raise DamagedError(f"{self._folder}: its {self.name_file.name} is missing")
        if self.place.file is not None and not self.place.may_hold_trials:
            raise DamagedError(f"{self._folder}: its {self.place.file.name} is missing or empty")
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
            for objective in self._config.objectives
        ]

    def _settle(self, storage: "BaseStorage", study_id: int) -> None:
        """What a new study is told; a kill may have come between."""
        from optuna.exceptions import ExperimentalWarning

        attributes = storage.get_study_user_attrs(study_id)
        settings = comparable(self._config)
        if _has_trials(storage, study_id):
            self._check_settings(storage, study_id)
        if SETTINGS not in attributes or not _has_trials(storage, study_id):
            storage.set_study_user_attr(study_id, SETTINGS, settings)
        study = _opened(storage, study_id)
        if study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                study.set_metric_names(list(self._config.objectives))
        self._check_objectives(study)

    def _check_objectives(self, study: "OptunaStudy") -> None:
        names = list(self._config.objectives)  # none at all: a kill came before they were written
        if study.metric_names not in (None, names) or study.directions != self._directions:
            raise DamagedError(f"{self.place}: is damaged (the objectives are changed)")

    def _check_settings(self, storage: "BaseStorage", study_id: int) -> None:
        """Trials of other settings do not belong beside ours.

        Raises:
            InputError: they are.
        """
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
                f"of {self._folder}"
            )

    def _differences(self, settings: object, where: str) -> str:
        """Between what was written down and the configuration; see :func:`differences`."""
        try:
            given = up_to_date(settings) if isinstance(settings, Mapping) else settings
            before = validated(StudyConfig, given, where)
        except InputError as error:
            return str(error)
        return differences(comparable(before), comparable(self._config))


def _opened(storage: "BaseStorage", study_id: int) -> "OptunaStudy":
    import optuna

    name = storage.get_study_name_from_id(study_id)
    return optuna.load_study(study_name=name, storage=storage)


def _has_trials(storage: "BaseStorage", study_id: int) -> bool:
    try:
        storage.get_trial_id_from_study_id_trial_number(study_id, 0)
    except KeyError:
        return False
    return True
