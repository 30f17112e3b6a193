"""The configuration of a study: a space and all that is said about searching it, in sections.

Each section is described beside the code that uses it, and those of search and engine here. How
files are read into it says :mod:`levit_search.study.settings`.
"""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from levit_search import data as datasets
from levit_search.baseline import BaselineConfig
from levit_search.configuration import Count, Frozen, put, validated
from levit_search.data import DataConfig
from levit_search.errors import InputError, did_you_mean
from levit_search.image_size import canonical_size, plain_size, size_text
from levit_search.latency.targets import LatencyConfig, Precision
from levit_search.pareto import (
    ACCURACIES,
    IN_INT8,
    OBJECTIVES,
    PAIRED,
    PROBED,
    Objective,
    accuracy_of,
    figure_and_target,
    is_maximised,
)
from levit_search.recipe import Recipe, SupernetConfig, TeacherConfig
from levit_search.space import Limits, Space
from levit_search.study.plan import Plan
from levit_search.study.storage import StorageUrl

SamplerName = Literal["auto", "freeze-thaw", "tpe", "nsga2", "nsga3", "gp", "random", "grid"]


class SearchConfig(Frozen):
    """How a space is searched: ``trials`` networks are trained (null for no such bound), or as many
    as can be started within ``time_s`` of a session.

    ``sampler: auto`` is chosen by what is trained, and by the budget; see
    :func:`levit_search.search.sampling.chosen`. With ``freeze-thaw``, ``trials`` networks share the
    epochs that halving by ``reduction`` would give them, and ``until: converged`` ends a search
    earlier, when nothing is expected to move its front any more.
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
    until: Literal["budget", "converged"] = "budget"
    learn_from: str | None = None
    """The folder of a study whose accuracies tell something of this one's, be it of other data, a
    shorter schedule or a supernet: they are one more input of the model of freeze-thaw."""
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

    ``latency_int8_ms`` is that of the network quantized as the section's ``int8`` says, and
    ``top1_int8_percent`` the accuracy of the trained network in int8. Candidates are quantized
    after their training, so that rungs judge them by their float accuracy in its place.
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
        return {
            name: {"target": section} if isinstance(section, str) else section
            for name, section in given.items()
        }

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
        for key in ("objectives", "hypervolume_reference"):
            for objective in getattr(self, key):
                figure, target = figure_and_target(objective)
                if figure not in OBJECTIVES:
                    known = did_you_mean(figure, OBJECTIVES)
                    raise ValueError(f"{key}: unknown objective {objective!r}; {known}")
                if target is not None and figure not in PROBED:
                    raise ValueError(f"{key}: {objective}: {figure} is the same on every target")
                if target is not None and target not in self.targets:
                    known = ", ".join(self.targets) or "none"
                    raise ValueError(
                        f"{key}: {objective}: no target of that name in `targets` (known: {known})"
                    )
        for key in ("hypervolume_reference", "reference_point"):
            for name, value in getattr(self, key).items():
                if is_maximised(name) and not 0 <= value <= 100:
                    raise ValueError(f"{key}: {name}: expected percent, not {value:g}")
                if not is_maximised(name) and not 0 < value < math.inf:
                    raise ValueError(f"{key}: {name}: expected a number above 0, not {value:g}")
        return self

    @model_validator(mode="after")
    def _check_accuracy(self) -> "StudyConfig":
        others = [name for name in self.objectives if name in PROBED and name not in PAIRED]
        if self.latency.method == "predicted" and others:
            raise ValueError(
                f"objectives: {others[0]} is measured only; latency: predicted gives "
                f"{' and '.join(PAIRED)}"
            )
        if self.search.sampler == "freeze-thaw" and not self.trains_candidates:
            raise ValueError(
                "search.sampler: freeze-thaw divides epochs among candidates, which are not "
                "trained here; auto takes tpe"
            )
        asked = {
            "until: converged": self.search.until == "converged",
            "learn_from": self.search.learn_from is not None,
        }
        for name, is_asked in asked.items():
            if is_asked and not self.may_freeze:
                raise ValueError(
                    f"search.{name} needs the sampler freeze-thaw, and so candidates that are "
                    f"trained; here sampler is {self.search.sampler} and accuracy {self.accuracy}"
                )
        if self.shares_weights and not self.is_trained:
            raise ValueError(
                f"accuracy: {self.accuracy} needs {' or '.join(ACCURACIES)} among the objectives"
            )
        epochs = self.supernet.recipe(self.train).epochs
        is_planned = self.plan is not None and not self.plan.is_made
        if self.supernet.whole_epochs >= epochs and self.shares_weights and not is_planned:
            raise ValueError(
                f"supernet.whole_epochs: {self.supernet.whole_epochs} of {epochs} epochs leave "
                "none for networks other than the largest"
            )
        return self

    @model_validator(mode="after")
    def _check_int8(self) -> "StudyConfig":
        if not self.is_quantized:
            return self
        for target in self.int8_targets:
            where = "latency" if target is None else f"targets.{target}"
            try:
                self.int8_section(target)
            except InputError as error:
                raise ValueError(f"objectives: in int8 by {where}, whose {error}") from None
        return self

    @model_validator(mode="after")
    def _check_teacher(self) -> "StudyConfig":
        teacher = self.teacher
        if teacher is not None and teacher.adapt == "own" and self.data.reader != "generated":
            raise ValueError(
                "teacher.adapt: own is for shared weights over generated pictures (levit-search "
                "supernet --data generated); for the data's classes set it to head or all"
            )
        is_taught = self.teaching is not None and self.teaching.adapt == "own"
        if self.data.name == "generated/crops" and not is_taught:
            raise ValueError(
                "data.name: generated/crops has no labels to learn; it goes with a teacher of "
                "classes of its own (levit-search supernet --data generated/crops --pictures DIR "
                "--teacher NAME)"
            )
        is_trained_alone = self.is_trained and not self.shares_weights
        if teacher is not None and teacher.auto and not is_trained_alone:
            raise ValueError(
                "teacher.auto: is decided by candidates that are trained, which needs accuracy: "
                "trained and top1_percent or top1_int8_percent among the objectives"
            )
        return self

    @property
    def inherits(self) -> bool:
        """Whether candidates' accuracies are those of weights that they inherit."""
        return self.accuracy == "supernet"

    @property
    def may_freeze(self) -> bool:
        """Whether the sampler is freeze-thaw, given or by choice."""
        return self.trains_candidates and self.search.sampler in ("auto", "freeze-thaw")

    @property
    def trains_candidates(self) -> bool:
        """Whether each candidate is trained, from fresh weights or from a supernet's."""
        return self.is_trained and not self.inherits

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
        """Whether candidates are probed as ``latency`` says, in its precision or in int8."""
        return self.limits.latency_ms is not None or any(name in PROBED for name in self.objectives)

    @property
    def also_measured(self) -> dict[str, LatencyConfig]:
        """The further targets on which candidates are probed, by name."""
        named = {figure_and_target(name)[1] for name in self.objectives}
        return {name: section for name, section in self.targets.items() if name in named}

    @property
    def probed(self) -> dict[tuple[str | None, Precision], LatencyConfig]:
        """The sections by which candidates are probed, by the target's name and the precision.

        The study's own has the name None and is first; each comes before the same in int8.
        """
        figures = [figure_and_target(name) for name in self.objectives]
        if self.limits.latency_ms is not None:
            figures.append(("latency_ms", None))
        found: dict[tuple[str | None, Precision], LatencyConfig] = {}
        sections: list[tuple[str | None, LatencyConfig]] = [(None, self.latency)]
        for target, section in (*sections, *self.targets.items()):
            wanted = {figure for figure, on in figures if on == target and figure in PROBED}
            if wanted - {"latency_int8_ms"}:
                found[target, section.precision] = section
            if "latency_int8_ms" in wanted:
                found[target, "int8"] = self.int8_section(target)
        return found

    @property
    def is_quantized(self) -> bool:
        """Whether candidates are looked at in int8."""
        figures = {figure_and_target(name)[0] for name in self.objectives}
        is_counted = "model_bytes" in figures and self.latency.precision == "int8"
        return is_counted or not figures.isdisjoint(IN_INT8)

    @property
    def int8_targets(self) -> tuple[str | None, ...]:
        """The targets whose sections say how networks are quantized, the study's own being None.

        Accuracies in int8 are those of the first: of ``latency``, unless only latencies of further
        targets are wanted in int8.
        """
        named = [figure_and_target(name) for name in self.objectives]
        targets = {target for figure, target in named if figure == "latency_int8_ms"}
        return tuple(each for each in (None, *self.targets) if each in targets) or (None,)

    def int8_section(self, target: str | None) -> LatencyConfig:
        """The section of a target, with networks in int8.

        Raises:
            InputError: its runtime has no int8.
        """
        return (self.latency if target is None else self.targets[target]).in_int8()

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
        return accuracy_of(self.objectives) is not None

    def with_plan(self, plan: Plan) -> "StudyConfig":
        """The same with what a plan chose in its place.

        Raises:
            InputError: that does not go with something that is given.
        """
        raw = self.model_dump(mode="json")
        for key, value in plan.settings.items():
            put(raw, key, value)
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
        sizes = {"in_channels": 3, "num_classes": 1000}
        if not {"in_channels", "num_classes"} <= self.architecture.keys():
            with suppress(InputError):
                sizes |= self._data_sizes()
        size = plain_size(self.data.size)
        return Space({"image_size": size, **sizes, **self.architecture}, self.limits, where)

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

    def _data_sizes(self) -> dict[str, int]:
        info = datasets.describe(self.data)
        return {"in_channels": info.in_channels, "num_classes": info.num_classes}
