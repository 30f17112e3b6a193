"""The study folder: what was asked for, where it ran, and what was found.

Optuna's storage in the folder is the one truth. It has one writer, the driver of the search, which
holds the folder's lock; everything else (tables, front, export) reads.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from levit_search import architecture as architectures
from levit_search.architecture import Architecture
from levit_search.configuration import read_yaml, validated, write_yaml
from levit_search.environment import environment
from levit_search.errors import InputError, did_you_mean
from levit_search.files import write_atomically, write_json
from levit_search.pareto import is_maximised
from levit_search.study.config import StudyConfig

if TYPE_CHECKING:
    import optuna

VERSION = 1  # of the study folder


State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class Record:
    """One finished trial, free of Optuna: what tables, fronts and exports are made of."""

    trial: int
    state: State
    architecture: Architecture | None
    """None where the proposal was no valid network."""
    values: dict[str, float]
    """By name: all of the objectives that are known, and the closed-form costs."""
    reason: str | None
    reused_from: int | None
    seconds: float
    evaluation: dict[str, Any]


class Study:
    """A study folder, opened for reading; :meth:`create` and :meth:`lock` are for its driver."""

    def __init__(self, folder: Path, config: StudyConfig) -> None:
        self.folder = folder
        self.config = config

    @classmethod
    def open(cls, folder: Path) -> "Study":
        """An existing study.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        path = folder / "study.yaml"
        if not folder.is_dir():
            raise InputError(f"{folder}: no such study folder{_near_folder(folder)}")
        if not path.is_file():
            raise InputError(f"{folder}: is no study folder (it has no study.yaml)")
        raw = read_yaml(path)
        if raw.get("version") != VERSION:
            raise InputError(
                f"{path}: version {raw.get('version')!r} is not {VERSION}, the one this release "
                "reads"
            )
        return cls(folder, validated(StudyConfig, raw, str(path)))

    @classmethod
    def create(cls, folder: Path, config: StudyConfig, command: list[str]) -> "Study":
        """A new study, or the one in ``folder`` if it was made from the same configuration.

        Budgets (``search.trials``, ``search.time_s``) may differ; the new ones count.

        Raises:
            InputError: ``folder`` holds something else, and nothing was changed.
        """
        if (folder / "study.yaml").exists():
            study = cls.open(folder)
            different = _differences(study._comparable(), cls(folder, config)._comparable())
            if different and not study._has_trials():
                # Nothing was found yet, such as after a mistake in the very settings.
                (folder / "study.db").unlink(missing_ok=True)
            elif different:
                raise InputError(
                    f"{folder}: was made with other settings ({different}); choose another folder "
                    "by --study, or the settings in its study.yaml"
                )
            study.config = config
        else:
            if folder.exists() and not folder.is_dir():
                raise InputError(f"{folder}: is a file, not a study folder")
            if folder.is_dir() and any(folder.iterdir()):
                raise InputError(f"{folder}: is not empty and no study; choose another --study")
            study = cls(folder, config)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with study.lock():
                text = write_yaml(config.model_dump(mode="json"))
                write_atomically(folder / "study.yaml", text)
                study._note_environment(command)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from None
        return study

    @property
    def checkpoints(self) -> Path:
        """Trained weights, one file for each network, named by its id."""
        return self.folder / "checkpoints"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against a second driver.

        Raises:
            InputError: another driver is at work on this study.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.folder}: another levit-search run is at work on this study"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def storage(self, sampler: "optuna.samplers.BaseSampler | None" = None) -> "optuna.Study":
        """Optuna's study in the folder's SQLite file, created if it is not there.

        Raises:
            InputError: the file is damaged.
        """
        import optuna
        from optuna.study import StudyDirection
        from sqlalchemy.exc import DatabaseError

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions = [
            StudyDirection.MAXIMIZE if is_maximised(name) else StudyDirection.MINIMIZE
            for name in self.config.objectives
        ]
        try:
            study = optuna.create_study(
                storage=f"sqlite:///{(self.folder / 'study.db').absolute()}",
                study_name=self.config.name,
                directions=directions,
                sampler=sampler,
                load_if_exists=True,
            )
            if study.metric_names is None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    study.set_metric_names(list(self.config.objectives))
        except (DatabaseError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.folder / 'study.db'}: cannot be read ({reason})") from None
        return study

    def records(self) -> list[Record]:
        """All finished trials in the order of their numbers.

        Raises:
            InputError: the storage is missing or damaged.
        """
        if not self._has_trials():
            return []
        storage = self.storage()
        trials = storage.get_trials(deepcopy=False)
        limit = self.config.limits.latency_ms
        records = [record_of(trial) for trial in trials if trial.state.is_finished()]
        return [with_measured(record, storage.user_attrs, limit) for record in records]

    def _has_trials(self) -> bool:
        if (self.folder / "study.db").is_file():
            return len(self.storage().get_trials(deepcopy=False)) > 0
        if self.checkpoints.exists():
            raise InputError(f"{self.folder}: its study.db is missing")
        return False

    def _comparable(self) -> dict[str, Any]:
        dump = self.config.model_dump(mode="json")
        search = {k: v for k, v in dump["search"].items() if k not in ("trials", "time_s")}
        return {**dump, "search": search}

    def _note_environment(self, command: list[str]) -> None:
        path = self.folder / "environment.json"
        sessions = json.loads(path.read_text())["sessions"] if path.exists() else []
        write_json(path, {"sessions": [*sessions, environment(command)]})


def record_of(trial: "optuna.trial.FrozenTrial") -> Record:
    """A finished trial of Optuna's as a record."""
    attributes = trial.user_attrs
    described = attributes.get("architecture")
    values = dict(attributes.get("cost", {}))
    evaluation = attributes.get("evaluation", {})
    values |= evaluation.get("values", {})
    states: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned"}
    return Record(
        trial=trial.number,
        state=states.get(trial.state.name, "failed"),
        architecture=architectures.parse(described) if described else None,
        values=values,
        reason=attributes.get("reason"),
        reused_from=attributes.get("reused_from"),
        seconds=evaluation.get("seconds", 0.0),
        evaluation=evaluation,
    )


MEASURED = "measured:"  # and a network's id: an attribute of the study


def with_measured(record: Record, attributes: Mapping[str, Any], limit_ms: float | None) -> Record:
    """A record whose latency was predicted, with what was measured later in its place.

    Optuna's finished trials cannot be changed, so measurements stand with the study.

    Args:
        record: as the trial has it.
        attributes: the study's.
        limit_ms: of the latency; a network that turns out to be over it is no longer complete, and
            one that could not be measured has failed.
    """
    network = record.architecture
    found = attributes.get(f"{MEASURED}{network.id}") if network is not None else None
    if found is None or record.state != "complete":
        return record
    if "failed" in found:
        return replace(record, state="failed", reason=found["failed"])
    latency = record.evaluation["latency"]
    predicted = latency.get("predicted", latency)  # a repeat may have the measured one already
    evaluation = {**record.evaluation, "latency": {**found["latency"], "predicted": predicted}}
    values = {**record.values, **found["values"]}
    error = 100 * (predicted["latency_ms"] / values["latency_ms"] - 1)
    values["prediction_error_percent"] = error
    if limit_ms is not None and values["latency_ms"] > limit_ms:
        reason = f"latency_ms {values['latency_ms']:.3g} over the limit of {limit_ms:g}"
        return replace(record, state="pruned", reason=reason, values=values, evaluation=evaluation)
    return replace(record, values=values, evaluation=evaluation)


def load_architecture(text: str) -> Architecture:
    """Wherever a command takes ARCH: a published name, a YAML file or ``STUDY#TRIAL``.

    Raises:
        InputError: there is no such thing.
    """
    if text.startswith("timm/"):
        raise InputError(
            f"{text}: this command takes our own networks only; timm's can be counted and probed"
        )
    folder, separator, number = text.rpartition("#")
    if not separator:
        return architectures.load(text)
    return find_record(Study.open(Path(folder)), number).architecture or _no_network(text)


def _no_network(text: str) -> Architecture:
    raise InputError(f"{text}: this trial proposed no valid network")


def find_record(study: Study, number: str) -> Record:
    """The finished trial with a number given as text.

    Raises:
        InputError: there is none.
    """
    records = {str(record.trial): record for record in study.records()}
    if number not in records:
        known = f"0 to {max(map(int, records))}" if records else "none yet"
        raise InputError(f"{study.folder}: no finished trial {number!r} (finished: {known})")
    return records[number]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first keys whose values differ, as ``train.epochs 12 -> 3``."""
    flat_before, flat_now = dict(_flat(before, "")), dict(_flat(now, ""))
    keys = [k for k in {**flat_before, **flat_now} if flat_before.get(k) != flat_now.get(k)]
    shown = [f"{key} {flat_before.get(key)} -> {flat_now.get(key)}" for key in keys[:3]]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(shown) + more


def _flat(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.loads(json.dumps(node))


def _near_folder(folder: Path) -> str:
    try:
        names = [entry.name for entry in folder.parent.iterdir() if (entry / "study.yaml").exists()]
    except OSError:
        return ""
    return f"; {did_you_mean(folder.name, names)}" if names else ""
