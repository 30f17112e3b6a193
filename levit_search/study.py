"""The study folder: what was asked for, where it ran, and what was found.

Optuna's storage in the folder is the one truth. It has one writer, the driver of the search, which
holds the folder's lock; everything else (tables, front, export) reads.
"""

import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from levit_search import architecture as architectures
from levit_search import data as datasets
from levit_search.architecture import Architecture
from levit_search.configuration import Count, Frozen, parse_yaml, read_yaml, validated, write_yaml
from levit_search.data import DataConfig
from levit_search.errors import InputError, did_you_mean
from levit_search.files import write_atomically, write_json
from levit_search.latency.protocol import LatencyConfig
from levit_search.pareto import FIXED_REFERENCE, Objective, is_maximised
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.space import Limits, Space

if TYPE_CHECKING:
    import optuna

VERSION = 1  # of the study folder


class SearchConfig(Frozen):
    """How a space is searched: ``trials`` networks are trained, or as many as ``time_s`` allows."""

    trials: Count = 20
    time_s: Annotated[float, Field(gt=0)] | None = None
    sampler: Literal["tpe", "random"] = "tpe"
    startup_trials: Count = 10
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0


class StudyConfig(Frozen):
    """A space file: what may vary, on which data, how it is trained, measured and searched."""

    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    data: DataConfig = DataConfig()
    architecture: dict[str, Any]
    train: Recipe = Recipe()
    teacher: TeacherConfig | None = TeacherConfig()
    latency: LatencyConfig = LatencyConfig()
    objectives: tuple[Objective, ...] = ("top1_percent", "latency_ms")
    limits: Limits = Limits()
    search: SearchConfig = SearchConfig()
    start: tuple[str | dict[str, Any], ...] = ()
    """Networks to try first: published names, YAML files or descriptions."""
    hypervolume_reference: dict[Objective, float] = Field(default_factory=dict)

    @field_validator("objectives")
    @classmethod
    def _check_objectives(cls, objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if len(set(objectives)) < 2 or len(set(objectives)) != len(objectives):
            raise ValueError("two or more different objectives are needed")
        return objectives

    @property
    def is_measured(self) -> bool:
        """Whether candidates are probed."""
        return "latency_ms" in self.objectives or self.limits.latency_ms is not None

    @property
    def is_trained(self) -> bool:
        """Whether candidates are trained."""
        return "top1_percent" in self.objectives

    def space(self, where: str = "space") -> Space:
        """The compiled space, with the sizes that the template leaves out taken from the data.

        A template that states its channels and classes can be looked at without the data.

        Raises:
            InputError: the template is malformed, or the data needed and missing.
        """
        sizes: dict[str, int] = {"image_size": self.data.image_size}
        if not {"in_channels", "num_classes"} <= self.architecture.keys():
            sizes |= self._data_sizes()
        return Space({**sizes, **self.architecture}, self.limits, where)

    def check_data(self, where: str = "space") -> None:
        """Make sure that the data is there and that the template is made for it.

        Raises:
            InputError: it is missing, or has other sizes than the template states.
        """
        sizes = {"image_size": self.data.image_size, **self._data_sizes()}
        for name, value in sizes.items():
            if self.architecture.get(name, value) != value:
                raise InputError(
                    f"{where}: architecture.{name}: {self.architecture[name]} differs from the "
                    f"data's {value}"
                )

    def _data_sizes(self) -> dict[str, int]:
        info = datasets.describe(self.data)
        return {"in_channels": info.in_channels, "num_classes": info.num_classes}


def read_config(path: Path, changes: Mapping[str, Any] | None = None) -> StudyConfig:
    """The space file at ``path``, resolved so that it no longer depends on other files.

    Args:
        path: a YAML file; see ``spaces/``.
        changes: values by dotted key, put over those in the file.

    Raises:
        InputError: the file cannot be read or says something wrong.
    """
    raw = read_yaml(path)
    for key, value in (changes or {}).items():
        _put(raw, key, value)
    config = validated(StudyConfig, raw, str(path))
    start = tuple(
        entry
        if isinstance(entry, dict) or entry in architectures.published_names()
        else architectures.load(_beside(entry, path)).model_dump(mode="json")
        for entry in config.start
    )
    reference = {
        objective: config.hypervolume_reference.get(objective, FIXED_REFERENCE[objective])
        for objective in config.objectives
    }
    return config.model_copy(update={"start": start, "hypervolume_reference": reference})


def _beside(entry: str, path: Path) -> str:
    """A file named in a space file is looked for beside it first."""
    return str(path.parent / entry) if (path.parent / entry).is_file() else entry


def _put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    node: Any = raw
    for part in parents:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        else:
            raise InputError(f"--set {dotted}: there is nothing to set at {part!r}")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise InputError(f"--set {dotted}: there is nothing to set at {last!r}")


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """``key=value`` texts as values by dotted key, each value read as YAML.

    Raises:
        InputError: a text has no ``=`` or its value is no YAML.
    """
    changes = {}
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {text}: expected key=value, such as train.epochs=5")
        changes[key.strip()] = parse_yaml(value, f"--set {text}")
    return changes


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
        trials = self.storage().get_trials(deepcopy=False)
        return [record_of(trial) for trial in trials if trial.state.is_finished()]

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


def load_architecture(text: str) -> Architecture:
    """Wherever a command takes ARCH: a published name, a YAML file or ``STUDY#TRIAL``.

    Raises:
        InputError: there is no such thing.
    """
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


def environment(command: list[str]) -> dict[str, Any]:
    """Where and how a run was started, for ``environment.json``."""
    packages = ("levit-search", "torch", "torchvision", "timm", "optuna", "onnxruntime", "numpy")
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "host": platform.node(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in packages},
        "revision": _revision(),
    }


def _revision() -> str | None:
    """The commit this package runs from, or None where it was installed without its history."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


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
