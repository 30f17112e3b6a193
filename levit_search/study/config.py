"""What a study is told: the space file as read, changed by ``--set`` and resolved."""

import copy
import glob
import math
import os
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from levit_search import architecture as architectures
from levit_search import data as datasets
from levit_search.baseline import BaselineConfig
from levit_search.configuration import (
    Count,
    Frozen,
    field_types,
    is_utf8,
    parse_value,
    read_yaml,
    shortened,
    validated,
)
from levit_search.data import DataConfig
from levit_search.data.sources import BUILT_IN
from levit_search.errors import InputError, UnknownNameError, did_you_mean
from levit_search.files import is_there
from levit_search.image_size import canonical_size, plain_size, size_text
from levit_search.latency.programs import check_programs
from levit_search.latency.protocol import LatencyConfig
from levit_search.latency.targets import read_targets, resolved
from levit_search.pareto import (
    OBJECTIVES,
    PROBED,
    Objective,
    figure_and_target,
    is_maximised,
)
from levit_search.recipe import (
    AUTO_TEACHER,
    SHARED,
    Recipe,
    SupernetConfig,
    TeacherConfig,
    is_timm_name,
)
from levit_search.space import Limits, Space
from levit_search.study.plan import Plan
from levit_search.study.storage import StorageUrl

SamplerName = Literal["auto", "tpe", "nsga2", "nsga3", "gp", "random", "grid"]


class SearchConfig(Frozen):
    """How a space is searched: ``trials`` networks are trained (null for no such bound), or as many
    as can be started within ``time_s`` of a session.

    ``sampler: auto`` is chosen by the budget, see :func:`levit_search.search.sampling.chosen`.
    Until ``startup_trials`` networks are known, those of ``start`` included, models are not asked
    and networks are drawn at random.

    At each epoch of ``train.rungs`` about one in ``reduction`` of the candidates that came so far
    goes on, by fronts of their accuracy there and the other objectives. Null trains
    all of them to the end.
    """

    trials: Count | None = 20
    time_s: Annotated[float, Field(gt=0)] | None = None
    sampler: SamplerName = "auto"
    startup_trials: Count = 10
    reduction: Annotated[float, Field(gt=1)] | None = 3.0
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0


class EngineConfig(Frozen):
    """What carries evaluations out: worker processes here, or Ray Tune on a cluster.

    ``jobs`` networks are evaluated at once, each in a worker of its own. The rest is Ray's:
    ``address`` of a running cluster (null starts one on this machine, or joins that of
    ``RAY_ADDRESS``), ``cpus``, ``gpus`` and custom ``resources`` that each worker claims (one that
    claims no GPU sees none), and how workers are placed on nodes.
    """

    kind: Literal["local", "ray"] = "local"
    jobs: Count = 1
    address: str | None = None
    cpus: Annotated[float, Field(ge=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    placement: Literal["PACK", "SPREAD", "STRICT_SPREAD"] = "PACK"

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, given: Any) -> Any:
        return {"kind": given} if isinstance(given, str) else given


class StudyConfig(Frozen):
    """A space file: what may vary, on which data, how it is trained, measured and searched.

    ``accuracy: trained`` trains every candidate. ``finetuned`` trains one set of weights for all
    networks of the space first, from which each candidate starts by its slice and is trained for
    ``supernet.finetune_epochs`` more. ``supernet`` takes a candidate's accuracy from its part of
    such weights, and trains the front and what comes close to it in the end. Unless
    ``latency.method`` says otherwise, latencies are predicted then where that can be.

    ``latency_ms`` and the other figures of a probe are those of ``latency``; ``latency_ms@NAME`` is
    that of a further target, one of ``targets``. Candidates are probed on the targets that an
    objective names; a limit is on ``latency``.
    """

    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    data: DataConfig = DataConfig()
    architecture: dict[str, Any]
    train: Recipe = Recipe()
    plan: Plan | None = None
    """What ``train.epochs: auto`` came to; see :mod:`levit_search.study.plan`."""
    teacher: TeacherConfig | None = TeacherConfig()
    accuracy: Literal["trained", "finetuned", "supernet"] = "trained"
    supernet: SupernetConfig = SupernetConfig()
    latency: LatencyConfig = LatencyConfig()
    targets: dict[str, LatencyConfig] = Field(default_factory=dict)
    """Further ``latency`` sections by names of the user's choice; a text is a section's target."""
    objectives: tuple[Objective, ...] = ("top1_percent", "latency_ms")
    limits: Limits = Limits()
    search: SearchConfig = SearchConfig()
    engine: EngineConfig = EngineConfig()
    storage: StorageUrl | None = None
    """Where trials are kept; null is the SQLite file ``study.db`` in the study folder."""
    start: tuple[str | dict[str, Any], ...] = ()
    """Networks to try first: published names, YAML files or descriptions.

    Their image size, channels and classes are the data's; a description that states them insists.
    """
    compare: tuple[BaselineConfig, ...] = ()
    """Networks of timm that are trained and measured as the candidates are, to compare with."""
    hypervolume_reference: dict[Objective, float] = Field(default_factory=dict)
    """Values of the user's choice in the reference of hypervolumes."""
    reference_point: dict[Objective, float] = Field(default_factory=dict)
    """The whole reference, as a search found it before its first trial; never in a space file."""

    @field_validator("targets", mode="before")
    @classmethod
    def _expand_targets(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        for name in given:
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,39}", str(name)):
                raise ValueError(
                    f"a target's name is a letter, then letters, digits, - or _, not {name!r}"
                )
        return {name: _section(section) for name, section in given.items()}

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: dict[str, LatencyConfig]) -> dict[str, LatencyConfig]:
        for name, section in targets.items():
            if section.method == "predicted":
                raise ValueError(f"{name}: only `latency` can be predicted, further ones cannot")
        return targets

    @field_validator("objectives")
    @classmethod
    def _check_objectives(cls, objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if len(set(objectives)) < 2 or len(set(objectives)) != len(objectives):
            raise ValueError("two or more different objectives are needed")
        return objectives

    @field_validator("compare")
    @classmethod
    def _check_compare(cls, given: tuple[BaselineConfig, ...]) -> tuple[BaselineConfig, ...]:
        ids = [each.id for each in given]
        for index, each in enumerate(given):
            if each.id in ids[:index]:
                raise ValueError(f"{each.summary()}: stands there twice")
        return given

    @model_validator(mode="after")
    def _check_names(self) -> "StudyConfig":
        _check_objectives("objectives", self.objectives, self.targets)
        _check_objectives("hypervolume_reference", self.hypervolume_reference, self.targets)
        for key in ("hypervolume_reference", "reference_point"):
            for name, value in getattr(self, key).items():
                if is_maximised(name) and not 0 <= value <= 100:
                    raise ValueError(f"{key}: {name}: expected percent, not {value:g}")
                if not is_maximised(name) and not 0 < value < math.inf:
                    raise ValueError(f"{key}: {name}: expected a number above 0, not {value:g}")
        return self

    @model_validator(mode="after")
    def _check_prediction(self) -> "StudyConfig":
        others = [name for name in self.objectives if name in PROBED and name != "latency_ms"]
        if self.latency.method == "predicted" and others:
            raise ValueError(
                f"objectives: {others[0]} is measured only; latency: predicted gives latency_ms"
            )
        return self

    @model_validator(mode="after")
    def _check_accuracy(self) -> "StudyConfig":
        if self.shares_weights and "top1_percent" not in self.objectives:
            raise ValueError(f"accuracy: {self.accuracy} needs top1_percent among the objectives")
        epochs = self.supernet.recipe(self.train).epochs
        is_planned = self.plan is not None and not self.plan.is_made
        if self.supernet.whole_epochs >= epochs and self.shares_weights and not is_planned:
            raise ValueError(
                f"supernet.whole_epochs: {self.supernet.whole_epochs} of {epochs} epochs leave "
                "none for networks other than the largest"
            )
        return self

    @model_validator(mode="after")
    def _check_own_classes(self) -> "StudyConfig":
        teacher = self.teacher
        if teacher is not None and teacher.adapt == "own" and self.data.reader != "generated":
            raise ValueError(
                "teacher.adapt: own is for shared weights over generated pictures (levit-search "
                "supernet --data generated); for the data's classes set it to head or all"
            )
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> "StudyConfig":
        is_taught = self.teaching is not None and self.teaching.adapt == "own"
        if self.data.name == "generated/crops" and not is_taught:
            raise ValueError(
                "data.name: generated/crops has no labels to learn; it goes with a teacher of "
                "classes of its own (levit-search supernet --data generated/crops --pictures DIR "
                "--teacher NAME)"
            )
        return self

    @model_validator(mode="after")
    def _check_auto(self) -> "StudyConfig":
        if (
            self.teacher is not None
            and self.teacher.auto
            and (self.shares_weights or not self.is_trained)
        ):
            raise ValueError(
                "teacher.auto: is decided by candidates that are trained, which needs accuracy: "
                "trained and top1_percent among the objectives"
            )
        return self

    @property
    def inherits(self) -> bool:
        """Whether candidates' accuracies are those of weights that they inherit."""
        return self.accuracy == "supernet"

    @property
    def shares_weights(self) -> bool:
        """Whether a supernet is trained before candidates are evaluated."""
        return self.accuracy != "trained"

    @property
    def candidate_recipe(self) -> Recipe:
        """How candidates are trained."""
        return self.supernet.finetuning(self.train) if self.accuracy == "finetuned" else self.train

    @property
    def is_measured(self) -> bool:
        """Whether candidates are probed as ``latency`` says."""
        return self.limits.latency_ms is not None or any(name in PROBED for name in self.objectives)

    @property
    def also_measured(self) -> dict[str, LatencyConfig]:
        """The further targets on which candidates are probed, by name."""
        named = {figure_and_target(name)[1] for name in self.objectives}
        return {name: section for name, section in self.targets.items() if name in named}

    @property
    def reference(self) -> dict[Objective, float] | None:
        """What hypervolumes and the knee are measured from, by objective; None if that is not known
        yet. See :func:`levit_search.pareto.reference_values`."""
        known = {**self.reference_point, **self.hypervolume_reference}
        if not known.keys() >= set(self.objectives):
            return None
        return {name: known[name] for name in self.objectives}

    @property
    def referred(self) -> tuple[Objective, ...]:
        """The objectives whose value in the reference is to be measured: neither the user nor a
        limit says it."""
        limits = self.limits.model_dump(exclude_none=True)
        return tuple(
            name
            for name in self.objectives
            if figure_and_target(name)[0] in PROBED
            and name not in limits
            and name not in self.hypervolume_reference
        )

    @property
    def is_trained(self) -> bool:
        """Whether candidates are trained."""
        return "top1_percent" in self.objectives

    def with_plan(self, plan: Plan) -> "StudyConfig":
        """The same with what a plan chose in its place.

        Raises:
            InputError: that does not go with something that is given.
        """
        raw = self.model_dump(mode="json")
        for key, value in plan.settings.items():
            _put(raw, key, value)
        return validated(StudyConfig, {**raw, "plan": plan.model_dump(mode="json")}, "plan")

    def check_planned(self) -> None:
        """Make sure that the number of epochs is known.

        Raises:
            InputError: it is ``auto``, which only a search can say.
        """
        if self.plan is not None and not self.plan.is_made:
            raise InputError(
                "train.epochs: auto is planned by a search; here a number is needed, such as "
                "--set train.epochs=20"
            )

    @property
    def rung_epochs(self) -> tuple[int, ...]:
        """The epochs at which a search decides whether a candidate goes on."""
        if not self.is_trained or self.search.reduction is None or self.inherits:
            return ()
        recipe = self.candidate_recipe
        return tuple(epoch for epoch in recipe.rungs if epoch < recipe.epochs)

    @property
    def teaching(self) -> TeacherConfig | None:
        """The teacher, where it has a part in training."""
        return self.teacher if self.train.distillation != "none" else None

    def space(self, where: str = "space") -> Space:
        """The compiled space, with the sizes that the template leaves out taken from the data.

        It can be looked at without the data: as one of images with 3 channels and of 1000 classes.
        Whoever searches makes sure by :meth:`check_data` that the data is there.

        Raises:
            InputError: the template is malformed.
        """
        sizes: dict[str, Any] = {
            "image_size": plain_size(self.data.size),
            "in_channels": 3,
            "num_classes": 1000,
        }
        if not {"in_channels", "num_classes"} <= self.architecture.keys():
            with suppress(InputError):
                sizes |= self._data_sizes()
        return Space({**sizes, **self.architecture}, self.limits, where)

    def check_data(self, where: str = "space") -> None:
        """Make sure that the data is there and that the template is made for it.

        Raises:
            InputError: it is missing, or has other sizes than the template states.
        """
        sizes = {"image_size": self.data.size, **self._data_sizes()}
        for name, value in sizes.items():
            stated = self.architecture.get(name, value)
            if canonical_size(stated) != value:
                raise InputError(
                    f"{where}: architecture.{name}: {size_text(stated)} differs from the data's "
                    f"{size_text(value)}"
                )

    def check_compare(self, space: Space, where: str = "space") -> None:
        """Make sure that timm has the networks to compare with, and that they take the images.

        Args:
            space: of this configuration; its sizes are those of all networks.
            where: the space file, for messages.

        Raises:
            InputError: one cannot be trained on the data, see :meth:`BaselineConfig.check`.
        """
        for index, each in enumerate(self.compare):
            try:
                each.check(**space.sizes)
            except InputError as error:
                raise InputError(f"{where}: compare.{index}: {error}") from error

    def _data_sizes(self) -> dict[str, int]:
        info = datasets.describe(self.data)
        return {"in_channels": info.in_channels, "num_classes": info.num_classes}


def space_file(text: str) -> Path:
    """A space file by its path, or an embedded one by its name.

    A name alone is always the embedded space, whatever is called so in the working directory;
    ``./NAME`` is a file.

    Raises:
        InputError: there is neither, or a folder.
    """
    package = Path(__file__).parents[1]
    packaged = package / "spaces"
    folder = packaged if packaged.is_dir() else package.parent / "spaces"
    embedded = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if text in embedded:
        if Path(text).is_file():
            warnings.warn(
                f"{text}: the embedded space is taken; the file of that name here is ./{text}",
                stacklevel=2,
            )
        return embedded[text]
    path = Path(text)
    if is_there(path) and path.is_dir():
        told = "is a folder, where a space file or the name of an embedded space is expected"
        if (path / "study.yaml").is_file():
            told = f"is a study's folder; its space file is {path / 'study.yaml'}"
        raise InputError(f"{text}: {told}")
    if path.suffix in (".yaml", ".yml") or is_there(path):
        return path
    raise UnknownNameError("space", text, embedded)


def read_config(path: Path, changes: Mapping[str, Any] | None = None) -> StudyConfig:
    """The space file at ``path``, resolved so that it no longer depends on other files.

    Args:
        path: a YAML file; see ``spaces/``.
        changes: values by dotted key, put over those in the file.

    Raises:
        InputError: the file cannot be read or says something wrong, or it would have something
            started or joined here that only the user may name.
    """
    raw = read_yaml(path)
    if path.name == "study.yaml":
        raw = up_to_date(raw)
    config = config_of(raw, path, changes)
    sections = {f"targets.{name}": section for name, section in config.targets.items()}
    check_programs({"latency": config.latency, **sections}, str(path), changes)
    _check_cluster(config.engine.address, str(path), changes or {})
    return config


def _check_cluster(address: str | None, where: str, changes: Mapping[str, Any]) -> None:
    """Whoever drives a Ray cluster can run anything on the machines that join it."""
    known = (None, "auto", os.environ.get("RAY_ADDRESS"))
    is_here = re.match(r"(127\.0\.0\.1|localhost|\[::1\]):", address or "")
    if address in known or is_here or {"engine", "engine.address"} & changes.keys():
        return
    raise InputError(
        f"{where}: engine.address: {address!r}: a file's cluster is not joined, since it may run "
        "anything here; if you know it, give it by --address or RAY_ADDRESS"
    )


# What earlier releases measured hypervolumes from in every study, and wrote into its file.
_EARLIER_REFERENCE: dict[str, float] = {
    "top1_percent": 0.0,
    "latency_ms": 1e3,
    "latency_median_ms": 1e3,
    "latency_p95_ms": 1e3,
    "peak_memory_mb": 1e5,
    "flops": 1e11,
    "params": 1e9,
    "activations": 1e9,
}


def up_to_date(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A study's settings as this release writes them.

    Those of earlier ones have the same reference of hypervolumes in every study, which nobody
    chose; such a study keeps it.
    """
    given = settings.get("hypervolume_reference")
    if "reference_point" in settings or not isinstance(given, Mapping):
        return dict(settings)
    chosen = {
        name: value
        for name, value in given.items()
        if value != _EARLIER_REFERENCE.get(figure_and_target(str(name))[0])
    }
    return {**settings, "hypervolume_reference": chosen, "reference_point": dict(given)}


def config_of(
    given: Mapping[str, Any], path: Path, changes: Mapping[str, Any] | None = None
) -> StudyConfig:
    """What a space file says, resolved as by :func:`read_config`.

    Args:
        given: what the file says; it stays as it is.
        path: for messages; files that are named are looked for beside it first.
        changes: values by dotted key, put over those in ``given``.

    Raises:
        InputError: something is wrong.
    """
    raw = copy.deepcopy(dict(given))
    raw.pop("reference_point", None)  # of a study's file; another study finds its own
    _expand_short_forms(raw)
    if raw.get("teacher") == "auto":  # in full, so that single keys of it can be changed
        raw["teacher"] = dict(AUTO_TEACHER)
    changes = {_LONG_FORMS.get(key, key): value for key, value in (changes or {}).items()}
    _move_weights(raw, path)
    for key, value in changes.items():
        _put(raw, key, value)
        _expand_short_forms(raw)
    if isinstance(raw.get("train"), Mapping) and raw["train"].get("weights") == "shared":
        raw["train"]["weights"] = f"{SHARED}{raw.get('name')}"
    epochs = raw["train"].get("epochs", 1) if isinstance(raw.get("train"), Mapping) else 1
    if epochs == "auto":
        _leave_to_plan(raw, changes.keys())
    elif isinstance(epochs, str):
        shown = shortened(epochs)
        raise InputError(
            f"{path}: train.epochs: expected a whole number from 1 on or auto, not {shown}"
        )
    if isinstance(raw.get("latency"), Mapping):
        raw["latency"] = resolved(raw["latency"], read_targets(path.parent), str(path))
    if isinstance(raw.get("targets"), Mapping):
        raw["targets"] = _resolved_targets(raw["targets"], path)
    config = located(validated(StudyConfig, raw, str(path)), path, changes)
    config = with_networks_read(config, path, changes)
    update: dict[str, Any] = {}
    if config.data.image_size is None:
        size = datasets.describe(config.data).image_size
        update["data"] = config.data.model_copy(update={"image_size": size})
    if config.inherits and "method" not in (raw.get("latency") or {}):
        update["latency"] = _predicted(config)
    return config.model_copy(update=update)


def located(
    config: StudyConfig, path: Path, changes: Mapping[str, Any] | None = None
) -> StudyConfig:
    """The same with absolute paths to data, weights and studies.

    One that is not in UTF-8 stays as it was written. What a file names is looked for beside it
    first, then in the working directory, and what is given by hand in the working directory alone.

    Args:
        config: as it was written.
        path: of the file.
        changes: values by dotted key that were given by hand.
    """

    def absolute(text: str, key: str) -> str:
        found = str(_absolute(text, key, path, changes or {}))
        return found if is_utf8(found) else text  # no file can hold it, but we are near it now

    data, train, teacher, supernet = config.data, config.train, config.teacher, config.supernet
    update: dict[str, Any] = {}
    if data.root is not None and "://" not in data.root:
        root = absolute(data.root, "data.root")
        # To a plug-in it may be something else than a path.
        if data.name in BUILT_IN or "/" in data.name or is_there(Path(root)):
            update["data"] = data.model_copy(update={"root": root})
    if train.donor_weights not in (None, "pretrained"):
        weights = absolute(train.donor_weights, "train.donor_weights")
        train = train.model_copy(update={"donor_weights": weights})
    is_place = train.weights != "fresh" and not train.weights.startswith(SHARED)
    if is_place and not is_timm_name(train.weights):
        train = train.model_copy(update={"weights": absolute(train.weights, "train.weights")})
    update["train"] = train
    if teacher is not None and teacher.weights not in ("train", "pretrained"):
        weights = absolute(teacher.weights, "teacher.weights")
        update["teacher"] = teacher.model_copy(update={"weights": weights})
    if supernet.weights != "train":
        weights = absolute(supernet.weights, "supernet.weights")
        update["supernet"] = supernet.model_copy(update={"weights": weights})
    if config.compare:
        update["compare"] = tuple(
            each
            if each.weights in ("fresh", "pretrained")
            else each.model_copy(
                update={"weights": absolute(each.weights, f"compare.{index}.weights")}
            )
            for index, each in enumerate(config.compare)
        )
    return config.model_copy(update=update)


def _absolute(text: str, key: str, path: Path, changes: Mapping[str, Any]) -> Path:
    """The path that stands at ``key`` of the file ``path``, or in ``changes``."""
    place = Path(os.path.expanduser(text))  # noqa: PTH111 (leaves a home that nobody has as it is)
    if not any(f"{key}.".startswith(f"{given}.") for given in changes):
        beside = path.parent / place
        # ``{name}`` in it stands for any name, to be filled in later.
        if glob.glob(glob.escape(str(beside)).replace("{name}", "*")):  # noqa: PTH207 (from anywhere)
            place = beside
    folder, separator, number = text.rpartition("#")
    if separator and not is_there(place) and number.isdigit():  # a trial of a study
        return Path(f"{_absolute(folder, key, path, changes)}#{number}")
    found = place.absolute()
    # A folder that the way leads out of again may be gone tomorrow.
    return Path(os.path.realpath(found)) if ".." in found.parts else found


def with_networks_read(
    config: StudyConfig, path: Path, changes: Mapping[str, Any] | None = None
) -> StudyConfig:
    """The same with descriptions of networks in place of the files that have them.

    Args:
        config: as it was written.
        path: of its file.
        changes: values by dotted key that were given by hand.

    Raises:
        InputError: such a file is missing, or not one of a network.
    """

    def read(entry: str | dict[str, Any], key: str) -> str | dict[str, Any]:
        if isinstance(entry, dict) or entry in architectures.published_names():
            return entry
        found = _absolute(entry, key, path, changes or {})
        if not is_there(found) and found.suffix not in (".yaml", ".yml"):
            raise UnknownNameError("architecture", entry, architectures.published_names())
        stated = read_yaml(found)
        if not {"image_size", "num_classes"} <= stated.keys():
            return stated  # what it is in full depends on the data
        whole = architectures.parse(stated, str(found)).model_dump(mode="json")
        left_out = {*architectures.SIZES} - stated.keys()
        return {name: each for name, each in whole.items() if name not in left_out}

    def section(given: LatencyConfig, key: str) -> LatencyConfig:
        return given.model_copy(update={"reference": read(given.reference, f"{key}.reference")})

    targets = {name: section(each, f"targets.{name}") for name, each in config.targets.items()}
    start = tuple(read(each, f"start.{index}") for index, each in enumerate(config.start))
    latency = section(config.latency, "latency")
    return config.model_copy(update={"start": start, "latency": latency, "targets": targets})


def _predicted(config: StudyConfig) -> LatencyConfig:
    """The ``latency`` section with predictions, where they can be had: measuring each of thousands
    of candidates would take longer than all the rest."""
    if [name for name in config.objectives if name in PROBED] != ["latency_ms"]:
        return config.latency
    given = {**config.latency.model_dump(mode="json"), "method": "predicted"}
    try:
        return LatencyConfig.model_validate(given)
    except ValidationError:
        return config.latency


def _leave_to_plan(raw: dict[str, Any], changed: Collection[str]) -> None:
    """Take ``train.epochs: auto`` out of what a file says, and note what else it states.

    What an earlier plan chose is not among that, but for what was ``changed`` since.
    """
    earlier = raw.get("plan")
    chosen = set(earlier.get("settings", {}) if isinstance(earlier, Mapping) else {}) - set(changed)
    sections = {name: raw.get(name) for name in ("train", "data")}
    for name, section in sections.items():
        if isinstance(section, Mapping):
            raw[name] = {k: v for k, v in section.items() if f"{name}.{k}" not in chosen}
    del raw["train"]["epochs"]
    given = {f"train.{key}" for key in Recipe.stated(raw["train"])}
    if isinstance(raw.get("data"), Mapping) and raw["data"].get("train_images") is not None:
        given.add("data.train_images")
    raw["plan"] = {"given": sorted(given)}


# Sections that may be one word, and the key that it is for.
_SHORT_FORMS = {"engine": "kind", "latency": "method"}


# Keys that stand at the top for one of a section.
_LONG_FORMS = {"weights": "train.weights"}


def _move_weights(raw: dict[str, Any], path: Path) -> None:
    """Put ``weights`` of a file where it belongs, into ``train``."""
    if "weights" not in raw:
        return
    weights, train = raw.pop("weights"), raw.setdefault("train", {})
    if not isinstance(train, dict):
        return  # which is refused where it stands
    if train.setdefault("weights", weights) != weights:
        raise InputError(
            f"{path}: weights: {shortened(weights)} and train.weights: "
            f"{shortened(train['weights'])} are the same setting; leave one out"
        )


def _expand_short_forms(raw: dict[str, Any]) -> None:
    for section, key in _SHORT_FORMS.items():
        if isinstance(raw.get(section), str):
            raw[section] = {key: raw[section]}
    if raw.get("teacher") == "auto":
        raw["teacher"] = {"auto": True}


def _section(written: Any) -> Any:
    """A further target's section in full; a text is its target alone."""
    return {"target": written} if isinstance(written, str) else written


def _resolved_targets(targets: Mapping[Any, Any], path: Path) -> dict[Any, Any]:
    """Further targets with the names of ``targets.yaml`` looked up."""
    named = read_targets(path.parent)
    found: dict[Any, Any] = {}
    for name, written in targets.items():
        section = _section(written)
        is_section = isinstance(section, Mapping)
        found[name] = resolved(section, named, f"{path}: targets.{name}") if is_section else section
    return found


def _check_objectives(
    key: str, objectives: Iterable[Objective], targets: Mapping[str, LatencyConfig]
) -> None:
    """Make sure that there are such figures, and the targets that they name.

    Raises:
        ValueError: of which ``key`` is the place.
    """
    for objective in objectives:
        figure, target = figure_and_target(objective)
        if figure not in OBJECTIVES:
            known = did_you_mean(figure, OBJECTIVES)
            raise ValueError(f"{key}: unknown objective {objective!r}; {known}")
        if target is not None and figure not in PROBED:
            raise ValueError(f"{key}: {objective}: {figure} is the same on every target")
        if target is not None and target not in targets:
            known = ", ".join(targets) or "none"
            raise ValueError(
                f"{key}: {objective}: no target of that name in `targets` (known: {known})"
            )


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
    """``key=value`` texts as values by dotted key of a :class:`StudyConfig`.

    Values are read as :func:`levit_search.configuration.parse_value` does.

    Raises:
        InputError: a text has no ``=`` or its value is no YAML, and no text either.
    """
    changes = {}
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {text}: expected key=value, such as train.epochs=5")
        key = _LONG_FORMS.get(key.strip(), key.strip())
        types = field_types(StudyConfig, key)
        changes[key] = parse_value(value, types, f"--set {text}")
    return changes
