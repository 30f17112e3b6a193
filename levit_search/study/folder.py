"""The study folder: what was asked for, where it ran, and what was found.

Optuna's storage, in the folder or on a server, is the one truth. It has one writer, the driver of
the search, which holds the folder's lock; everything else (tables, front, export) reads.
"""

import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from levit_search.architecture import Architecture
from levit_search.configuration import write_yaml
from levit_search.data import DataSurvey
from levit_search.errors import InputError, did_you_mean, writing
from levit_search.escaping import masked, quoted
from levit_search.files import (
    DamagedFileError,
    check_weights,
    held_lock,
    is_there,
    is_unfinished,
    read_bounded,
    read_checksummed,
    write_atomically,
    write_checksummed,
    write_json,
)
from levit_search.latency.worker import device_name, distribution
from levit_search.pareto import Objective, Points, minimised
from levit_search.study.backup import NAME as BACKUP
from levit_search.study.backup import Backup, put_aside, unused
from levit_search.study.config import StudyConfig
from levit_search.study.record import (
    BaselineRecord,
    Record,
    baselines_of,
    check_attributes,
    records_of,
)
from levit_search.study.settings import comparable, differences, read_settings
from levit_search.study.storage import DamagedError
from levit_search.study.stored_trials import StoredTrials, without_garbage_collection
from levit_search.version import __version__

_LOCK = ".lock"
_SURVEY = "survey.json"


class Study(StoredTrials):
    """A study folder, opened for reading; :meth:`create` and :meth:`lock` are for its driver."""

    @classmethod
    def open(cls, folder: Path) -> "Study":
        """An existing study.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        check_folder(folder)
        try:
            return cls(folder, read_settings(folder / "study.yaml"))
        except DamagedError as error:
            if Backup(folder).read().study is None:
                raise
            command = f"levit-search restore {quoted(str(folder))}"
            raise DamagedError(f"{error}; its {BACKUP} has the settings: {command}") from None

    @classmethod
    def create(cls, folder: Path, config: StudyConfig, command: list[str]) -> "Study":
        """A new study, or the one in ``folder`` if it was made from the same configuration.

        Budgets (``search.trials``, ``search.time_s``), ``engine`` and ``data.root`` may differ, and
        so may ``storage`` if the study is to be found there; the new ones count.

        Raises:
            InputError: ``folder`` holds something else, or the storage cannot be used, and nothing
                was changed.
        """
        assert config.plan is None or config.plan.is_made, "what is kept is planned before"
        study, before = cls(folder, config), cls.existing(folder)
        study.place.check()
        starts_over = before is not None and study._starts_over(before)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with study.lock():
                if before is not None and starts_over:
                    with before.found() as found:
                        if found is not None:
                            found[0].delete_study(found[1])
                    before.name_file.unlink(missing_ok=True)
                    before.backup.path.unlink(missing_ok=True)
                elif before is not None:
                    known = {"reference_point": before.config.reference_point}
                    study.config = config.model_copy(update=known)
                study.write_settings()
                study._note_environment(command)
        return study

    def with_data(self, root: Path | None) -> "Study":
        """The same study, to read from, with its data in the folder ``root``; None: where it was.

        Raises:
            InputError: there is no such folder, or the data lies in none.
        """
        data = self.config.data
        if root is None:
            return self
        if data.name == "digits":
            raise InputError(f"--data {root}: the study's data is digits, which lies in no folder")
        if not is_there(root) or not root.is_dir():
            raise InputError(f"--data {root}: no such folder")
        moved = data.model_copy(update={"root": str(root.resolve())})
        return Study(self.folder, self.config.model_copy(update={"data": moved}))

    @contextmanager
    def reading_data(self) -> Iterator[None]:
        """What keeps the data from being read within the block says how to name another place.

        Raises:
            InputError: as within the block.
        """
        try:
            yield
        except InputError as error:
            root = self.config.data.root
            if root is None or is_there(Path(root)):
                raise
            told = f"{error}; if the data lies elsewhere now, name the place by --data DIR"
            raise InputError(told) from None

    @classmethod
    def put_aside(cls, folder: Path) -> None:
        """Rename the study in ``folder``, if there is one, to ``FOLDER.old-1`` or the next number.

        Raises:
            InputError: it cannot be read or renamed, or a search is at work on it.
        """
        if not (folder / "study.yaml").exists():
            return
        with cls.open(folder).lock():
            aside = unused(folder, "old")
            try:
                folder.rename(aside)
            except OSError as error:
                told = error.strerror or error
                raise InputError(f"{folder}: cannot be renamed to {aside} ({told})") from None

    def keep_reference(self, values: Mapping[Objective, float]) -> None:
        """Write what hypervolumes and the knee are measured from into ``study.yaml``, once and for
        all; see :func:`levit_search.pareto.reference_values`."""
        assert self.config.reference is None, "a reference that is kept never changes"
        self.config = self.config.model_copy(update={"reference_point": dict(values)})
        self.write_settings()

    def reference(self) -> Points:
        """What hypervolumes and the knee are measured from, as a minimised point [objectives].

        Raises:
            InputError: no search has found it yet; one of an earlier release did not look for it.
        """
        values, objectives = self.config.reference, self.config.objectives
        if values is None:
            here = quoted(str(self.folder))
            raise InputError(
                f"{self.folder}: has no reference for hypervolume and knee yet; `levit-search run "
                f"{quoted(str(self.folder / 'study.yaml'))} --study {here}` finds it"
            )
        return minimised([values], objectives).reshape(-1)

    def write_settings(self) -> None:
        """Write the configuration into ``study.yaml``."""
        text = write_yaml(self.config.model_dump(mode="json"))
        write_atomically(self.folder / "study.yaml", text)

    def keep_survey(self, survey: DataSurvey) -> None:
        """Write what was found in the data into the folder."""
        write_checksummed(self.folder / _SURVEY, survey.model_dump(mode="json"))

    def survey(self) -> DataSurvey | None:
        """What was found in the data; None of a study that has no such file."""
        path = self.folder / _SURVEY
        try:
            return DataSurvey.model_validate(read_checksummed(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            warnings.warn(f"{path}: is left out ({reason})", stacklevel=2)
            return None

    @classmethod
    def existing(cls, folder: Path) -> "Study | None":
        """The study in a folder; None where a new one can be made.

        Raises:
            InputError: ``folder`` holds something else, or a study that cannot be read.
        """
        is_folder = folder.is_dir()
        if folder.exists() and not is_folder:
            raise InputError(f"{folder}: is a file, not a study folder")
        is_study = (folder / "study.yaml").exists()
        if is_study or (is_folder and Backup(folder).read().study is not None):
            return cls.open(folder)  # it tells what is missing
        # A study that was killed as it was made left its lock and, at most, a part of a file.
        left = (path for path in folder.glob("*") if path.name != _LOCK)
        if is_folder and not all(is_unfinished(path) for path in left):
            raise InputError(f"{folder}: is not empty and no study; choose another --study")
        return None

    def is_begun(self) -> bool:
        """Whether anything was found by its settings: a trial, or weights that networks share.

        Raises:
            InputError: see :meth:`open_storage`.
        """
        return self.has_trials() or (self.folder / "supernet").is_dir()

    @property
    def checkpoints(self) -> Path:
        """Trained weights, one file for each network, named by its id."""
        return self.folder / "checkpoints"

    def weights(self, network_id: str) -> Path:
        """The file with the trained weights of a network, which is not there for each."""
        return self.checkpoints / f"{network_id}.safetensors"

    def weights_of(self, record: Record) -> Path:
        """The file with the trained weights of a record's network.

        Raises:
            InputError: there is none, or it is damaged; the message tells how to train it again.
        """
        if record.architecture is None:
            raise InputError(f"{self.folder}: trial {record.trial} proposed no valid network")
        return self.sound_weights(record.trial, record.architecture)

    def sound_weights(self, trial: int, network: Architecture) -> Path:
        """The file with the trained weights of a trial's network; see :meth:`weights_of`."""
        path, epochs = self.weights(network.id), self.config.train.epochs
        again = (
            f"`levit-search export {quoted(str(self.folder))} --pick trial={trial} --retrain "
            f"--epochs {epochs}` trains this network again"
        )
        try:
            check_weights(read_bounded(path))
        except FileNotFoundError:
            raise InputError(
                f"{path}: the trained weights of trial {trial} are not there; {again}"
            ) from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        except DamagedFileError as error:
            raise InputError(f"{path}: damaged ({error}); {again}") from None
        return path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against a second driver.

        Raises:
            InputError: another driver is at work on this study.
        """
        told = f"{self.folder}: another levit-search run is at work on this study"
        with ExitStack() as stack:
            stack.enter_context(held_lock(self.folder / _LOCK, told))
            if self.place.is_shared and (self.folder / "study.yaml").exists():
                stack.enter_context(self.place.claimed(self.named()))
            yield

    @without_garbage_collection()
    def records(self) -> list[Record]:
        """All finished trials in the order of their numbers.

        Raises:
            InputError: the storage is missing or damaged, or cannot be reached, or what stands
                there is not what a search writes.
        """
        kept = self.backup.read()  # before the storage, to which a search may be adding
        with self.found() as found:
            if found is None:
                return []
            stored = self.read(kept, *found, is_alone=False)
        with self.naming_place():
            return records_of(stored.trials, stored.attributes, self.config)

    def record(self, number: str) -> Record:
        """The finished trial with a number given as text.

        Raises:
            InputError: there is none, or as :meth:`records`.
        """
        records = {str(record.trial): record for record in self.records()}
        if number not in records:
            known = f"0 to {max(map(int, records))}" if records else "none yet"
            raise InputError(f"{self.folder}: no finished trial {number!r} (finished: {known})")
        return records[number]

    def baselines(self) -> list[BaselineRecord]:
        """The networks that the search is compared with, with what is known of each.

        Raises:
            InputError: as :meth:`records`.
        """
        attributes = self.attributes() if self.config.compare else {}
        with self.naming_place():
            return baselines_of(self.config, attributes)

    def attributes(self) -> Mapping[str, Any]:
        """What was noted with the study in its storage, such as the teacher and the device.

        Raises:
            InputError: the storage is missing or damaged, or cannot be reached.
        """
        with self.found() as found:
            known = {} if found is None else dict(found[0].get_study_user_attrs(found[1]))
        with self.naming_place():
            check_attributes(known)
        return known

    def _starts_over(self, before: "Study") -> bool:
        """Whether other settings take the place of those ``before``, which may have had a mistake;
        an InputError where something was found by them."""
        has_trials = before.has_trials() or before.backup.read().has_trials
        old, new = before.config.data.fingerprint, self.config.data.fingerprint
        same_set = before.config.data.name == self.config.data.name
        if has_trials and same_set and None not in (old, new) and old != new:
            known = before.survey()
            was = f", {known.told_counts()} then" if known is not None else ""
            raise InputError(
                f"{self.folder}: the pictures in {self.config.data.root} are not those that it "
                f"was made for (fingerprint {new}, {old} before{was}); put those back, choose "
                "another folder by --study, or begin it again by --anew, which keeps what there "
                "is beside it"
            )
        moved = self.config.storage != before.config.storage
        different = differences(comparable(before.config), comparable(self.config))
        if moved and not different:
            with suppress(DamagedError):  # it is not there
                if self.has_trials():
                    return False  # such as a server by its new address
        if not has_trials:
            return moved or bool(different)
        if different:
            raise InputError(
                f"{self.folder}: was made with other settings ({different}); choose another folder "
                "by --study, or the settings in its study.yaml"
            )
        if moved:
            raise InputError(
                f"{self.folder}: its trials are in {before.place}, not in {self.place}; choose "
                "another folder by --study, or the storage in its study.yaml"
            )
        return False

    def _note_environment(self, command: list[str]) -> None:
        path = self.folder / "environment.json"
        sessions = []
        if path.exists():
            try:
                sessions = list(json.loads(path.read_bytes())["sessions"])
            except (ValueError, LookupError, TypeError):
                aside = put_aside(path)
                warnings.warn(
                    f"{path}: is damaged; it is kept as {aside.name}, and begun again",
                    stacklevel=2,
                )
        shown = [masked(argument) for argument in command]
        write_json(path, {"sessions": [*sessions, environment(shown)]})


def environment(command: list[str]) -> Mapping[str, Any]:
    """Where and how a run was started, for ``environment.json``."""
    modules = ("torch", "torchvision", "timm", "optuna", "onnxruntime", "numpy")
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "host": platform.node(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": device_name(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "packages": {
            "levit-search": __version__,
            **dict(found for module in modules if (found := distribution(module)) is not None),
        },
        "revision": _revision(),
    }


def _revision() -> str | None:
    """The commit this package runs from, or None where it was installed without its history."""
    if not (_CHECKOUT / ".git").exists():
        return None
    try:  # a repository of something else may surround the environment that this is installed in
        project = (_CHECKOUT / "pyproject.toml").read_text("utf-8", "replace").splitlines()
        if 'name = "levit-search"' not in project:
            return None
        found = subprocess.run(
            ["git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            # Git's hooks name their own repository in the environment.
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


_CHECKOUT = Path(__file__).parents[2]


def training_file(folder: Path, network_id: str) -> Path:
    """The checkpoint of a network's training in a study's ``folder``.

    It is there until the storage has the evaluation: whatever comes between, no epoch is trained
    twice.
    """
    return folder / "checkpoints" / f"{network_id}.training.pt"


def check_folder(folder: Path) -> None:
    """Make sure that there is a folder for a study to be in.

    Raises:
        InputError: there is none; the message has the nearest study beside it.
    """
    if folder.is_dir():
        return
    names: list[str] = []
    with suppress(OSError):
        names = [path.name for path in folder.parent.iterdir() if (path / "study.yaml").exists()]
    near = f"; {did_you_mean(folder.name, names)}" if names else ""
    raise InputError(f"{folder}: no such study folder{near}")
