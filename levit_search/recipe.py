"""What a training run is told: the student's recipe and the teacher's. No torch here."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_serializer, model_validator
from pydantic import SerializerFunctionWrapHandler as Serializer

from levit_search.configuration import Count, Frozen
from levit_search.errors import InputError

RecipeName = Literal["short", "levit"]
Share = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, lt=10)]

# The defaults released with LeViT (Graham et al. 2021), after Touvron et al. 2021.
_LEVIT: Mapping[str, object] = {
    "epochs": 1000,
    "batch_size": 1024,
    "lr": 5e-4,
    "lr_batch_size": 512,
    "warmup_epochs": 5.0,
    "clip_grad": 0.01,
    "crop": "resized",
    "color_jitter": 0.4,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "repeated_augmentation": 3,
    "ema_decay": 0.99996,
}

# Those that go with any number of epochs.
_LEVIT_VIEWS = _LEVIT.keys() - {"epochs", "warmup_epochs"}

SHARED = "shared/"
"""What the names of shared weights that come with the package begin with."""

# What may differ between two runs of one training that give the same figures.
_FREE = {"rungs", "workers", "device"}

# What the views of an epoch depend on, beside the data, the seed and the number of the epoch.
_VIEWS = (
    *("batch_size", "crop", "crop_scale", "hflip", "color_jitter", "rand_augment"),
    *("random_erasing", "mixup", "cutmix", "mixup_switch", "repeated_augmentation"),
)


_TIMM_NAME = re.compile(r"(timm/)?(levit_|deit3?_|resnet\d)\w*(\.\w+)?")
_FILE = re.compile(r".*\.(safetensors|pth|pt|bin|ckpt|tar|yaml|yml)")


def is_timm_name(weights: str) -> bool:
    """Whether a text is a LeViT, DeiT or ResNet of timm's; ``./NAME`` is a file in any case."""
    return bool(_TIMM_NAME.fullmatch(weights)) and not _FILE.fullmatch(weights)


class Recipe(Frozen):
    """AdamW with linear warm-up and cosine decay, after Touvron et al. 2021 and the LeViT paper.

    ``recipe`` names the values of whatever is not given: ``short`` is for a few epochs, ``levit``
    is what was released with the paper. ``lr`` is for batches of ``lr_batch_size`` images and
    scales with ``batch_size``; it is taken as it is where that is null.

    ``crop`` is ``shift`` (an eighth of the image at most; what comes in is as the pixels at its
    edge), ``resized`` (a part of ``crop_scale`` of the area, bicubic) or ``none``; ``hflip: null``
    leaves mirroring to the data set. ``color_jitter`` gives way to ``rand_augment``, as in timm.
    ``random_erasing`` is a probability; ``repeated_augmentation`` shows each image of an epoch so
    many times, and so many times fewer images. ``clip_grad`` is adaptive gradient clipping (Brock
    et al. 2021), null for none. With ``ema_decay`` the averaged weights are the ones evaluated and
    kept.

    ``distillation`` takes the teacher's first class (``hard``) or its probabilities at
    ``temperature`` (``soft``) as targets of the second head.

    A checkpoint is kept at the epochs in ``rungs``, as far as they are before the last, and a
    network whose accuracy is surely that of guessing at the first of them, after a thousand steps
    at least, is given up.

    ``precision: auto`` is fp32 on a CPU; on a GPU it is bf16 or fp16, whichever that has.
    ``threads`` is fixed here and not taken from the machine, since sums in another order give
    other accuracies. ``workers`` read images of sets that are not in memory.

    ``weights`` are what networks start from, as far as they are a part of it: ``fresh``, a file of
    a LeViT's, DeiT's or ResNet's weights, the folder of an export, of ``train --out`` or of a
    supernet, a study (its most accurate network) or ``STUDY#TRIAL``, timm's name of a pretrained
    one, or ``shared``, those that come with the package for the space; see
    :mod:`levit_search.model.transfer`.

    ``donor_weights`` are what a graft's donor, or a LeViT's ResNet stem, starts from: null (fresh
    weights), ``pretrained`` (timm's, for unscaled donors) or a file of timm's ResNet; ``{name}`` in
    its path stands for the donor's name. Networks without a donor start from scratch all the same.
    """

    recipe: RecipeName = "short"
    epochs: Count = 10
    batch_size: Annotated[int, Field(strict=True, ge=2)] = 128
    lr: LearningRate = 3e-3
    lr_batch_size: Count | None = None
    min_lr: Annotated[float, Field(ge=0)] = 1e-5
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.5
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.025
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    crop: Literal["none", "shift", "resized"] = "shift"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    hflip: bool | None = None
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    rand_augment: str | None = None
    random_erasing: Share = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    mixup_switch: Share = 0.5
    repeated_augmentation: Annotated[int, Field(strict=True, ge=1, le=16)] = 1
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    distillation: Literal["none", "soft", "hard"] = "hard"
    temperature: Annotated[float, Field(gt=0, le=100)] = 3.0
    rungs: tuple[Count, ...] = ()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = False
    compile: bool = False
    threads: Count = 1
    workers: Annotated[int, Field(strict=True, ge=0, le=256)] = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    donor_weights: Annotated[str, Field(min_length=1)] | None = None
    weights: Annotated[str, Field(min_length=1)] = "fresh"

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("recipe") == "levit":
            return {**_LEVIT, **given}
        return given

    @field_validator("crop_scale")
    @classmethod
    def _check_scale(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("expected [smallest, largest] share of the area, within 0 and 1")
        return scale

    @field_validator("rand_augment")
    @classmethod
    def _check_policy(cls, policy: str | None) -> str | None:
        rand_augment(policy)
        return policy

    @model_validator(mode="after")
    def _check_mixing(self) -> "Recipe":
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(
                f"batch_size: mixup and cutmix pair images up, {self.batch_size} is odd"
            )
        return self

    @field_validator("rungs")
    @classmethod
    def _check_rungs(cls, rungs: tuple[int, ...]) -> tuple[int, ...]:
        if list(rungs) != sorted(set(rungs)):
            raise ValueError(f"{list(rungs)} must ascend")
        return rungs

    @model_serializer(mode="wrap")
    def _without_fresh(self, serialized: Serializer) -> dict[str, object]:
        """Leave out fresh weights, which were all there was: earlier recipes keep their ids."""
        found: dict[str, object] = serialized(self)
        if found.get("weights") == "fresh":
            del found["weights"]
        return found

    @staticmethod
    def stated(section: Mapping[str, object]) -> set[str]:
        """The keys that a ``train`` section gives values, by themselves or by a recipe's name."""
        return set(section) | (_LEVIT_VIEWS if section.get("recipe") == "levit" else set())

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up, for batches of ``batch_size``."""
        return self.lr * self.batch_size / (self.lr_batch_size or self.batch_size)

    def mirrors(self, data_hflip: bool) -> bool:
        """Whether views are mirrored, of data whose classes mirrored images keep or do not."""
        return data_hflip if self.hflip is None else self.hflip

    def decisive(self) -> dict[str, object]:
        """What the figures of a training depend on, as JSON, on one kind of device."""
        return self.model_dump(mode="json", exclude=_FREE)

    def views(self) -> dict[str, object]:
        """What the views of an epoch depend on, beside the data, the seed and the epoch."""
        return {name: value for name, value in self.model_dump().items() if name in _VIEWS}


class SupernetConfig(Frozen):
    """How one set of weights for all networks of a space is trained, and what it is asked for.

    Each step trains the largest network of the space, the smallest and ``members`` random ones
    within the limits on one batch (the sandwich rule, Yu et al. 2019), by the study's recipe over
    ``epochs`` epochs (null: as many as a candidate's). The largest learns from labels
    and teacher, the others from its answers (in-place distillation). In the first ``whole_epochs``
    the largest network of each stem learns alone (as in Cai et al. 2020), which is several times
    faster.

    A candidate's inherited accuracy is that of ``val_images`` of ``val`` (null: all), after its
    batch-norm statistics were calibrated on ``calibration_images`` for training.

    In the end the front and its ``rivals``, the networks that come closest to it, get figures of
    their own: ``verification: train`` trains each from the start by the study's recipe,
    ``finetune`` trains its part of the shared weights for ``finetune_epochs`` epochs.

    ``weights`` is ``train``, or the folder of another study whose supernet is taken.
    """

    epochs: Count | None = None
    members: Count = 2
    whole_epochs: Annotated[int, Field(strict=True, ge=0)] = 0
    calibration_images: Annotated[int, Field(strict=True, ge=2)] = 1024
    val_images: Count | None = 4000
    verification: Literal["train", "finetune"] = "train"
    finetune_epochs: Count = 1
    rivals: Annotated[int, Field(strict=True, ge=0)] = 12
    weights: Annotated[str, Field(min_length=1)] = "train"

    def recipe(self, candidates: Recipe) -> Recipe:
        """The recipe of the shared weights, given that of candidates."""
        epochs = self.epochs or candidates.epochs
        return candidates.model_copy(update={"epochs": epochs, "rungs": (), "compile": False})

    def verifying(self, candidates: Recipe) -> Recipe:
        """The recipe by which networks get an accuracy of their own, given that of candidates."""
        return candidates if self.verification == "train" else self.finetuning(candidates)

    def finetuning(self, candidates: Recipe) -> Recipe:
        """The recipe by which a network's part of the shared weights is trained on: at a third of
        the learning rate, from the start.
        """
        rungs = tuple(rung for rung in candidates.rungs if rung < self.finetune_epochs)
        changes = {"epochs": self.finetune_epochs, "rungs": rungs, "warmup_epochs": 0.0}
        return candidates.model_copy(update={**changes, "lr": candidates.lr / 3})


class RandAugment(Frozen):
    """RandAugment (Cubuk et al. 2020) as timm spells it, such as ``rand-m9-mstd0.5-inc1``."""

    magnitude: Annotated[float, Field(ge=0, le=10)] = 10.0
    magnitude_std: Annotated[float, Field(ge=0)] = 0.0
    layers: Annotated[int, Field(ge=1, le=10)] = 2
    is_increasing: bool = False
    """Whether a higher magnitude always is a stronger change."""


def rand_augment(policy: str | None) -> RandAugment | None:
    """A policy read from timm's spelling; None for none.

    Raises:
        ValueError: it is spelled otherwise.
    """
    if policy is None:
        return None
    start, *parts = policy.split("-")
    fields: dict[str, float | int | bool] = {}
    try:
        if start != "rand":
            raise ValueError
        for part in parts:
            kind = next(kind for kind in _AUGMENTED if part.startswith(kind))
            name, type_of = _AUGMENTED[kind]
            fields[name] = type_of(float(part.removeprefix(kind)))
    except (ValueError, OverflowError, StopIteration):
        raise ValueError(
            f"{policy!r} is none; expected null or timm's spelling of RandAugment, such as "
            "rand-m9-mstd0.5-inc1 (m: magnitude 0-10, mstd: its spread, n: layers, inc: 0 or 1)"
        ) from None
    return RandAugment.model_validate(fields)


# What timm calls the fields; of two beginnings the longer one comes first.
_AUGMENTED: Mapping[str, tuple[str, Callable[[float], float]]] = {
    "mstd": ("magnitude_std", float),
    "inc": ("is_increasing", bool),
    "m": ("magnitude", float),
    "n": ("layers", int),
}


AUTO_TEACHER: Mapping[str, object] = {
    "auto": True,
    "name": "tf_efficientnet_lite0",
    "weights": "pretrained",
    "adapt": "head",
}
"""What ``teacher: auto`` is, unless the file says otherwise."""

# What trained weights are finetuned by, unless the file says otherwise.
_FINETUNE: Mapping[str, object] = {"epochs": 10, "batch_size": 32, "lr": 3e-4, "warmup_epochs": 1.0}


class TeacherConfig(Frozen):
    """The network whose answers the distillation head learns.

    ``name`` is any timm network, or one of :mod:`levit_search.plugins`, and ``options`` what
    ``timm.create_model`` or the plug-in takes beside it. ``weights`` is ``train`` (fitted once on
    the data set with ``recipe`` and kept), ``pretrained`` (timm's or the plug-in's, shown the views
    with the colours that they were trained with), or the path of a checkpoint, shown what
    candidates are shown. A teacher trained here must reach
    ``top1_percent`` on ``val``, where that is given.

    ``adapt`` makes trained weights, ``pretrained`` ones or a file of timm's network, fit the data's
    classes and channels. ``head`` puts a new classifier behind the network's features and fits it
    by ``epochs`` passes over the training images, the first plain, the others augmented as
    ``recipe`` says (null: as many as make 20 000 views, 1 to 4). ``all`` then finetunes the whole
    network by ``recipe``, whose epochs ``epochs`` stands for. Views are enlarged to ``image_size``
    pixels (null: what the network was trained at; of rectangles the shorter side) and have the
    colours that it was trained with. ``own`` shows it such views and leaves it its own
    classes, for a supernet over generated pictures, whose second head learns them.

    ``auto`` leaves to a search whether its candidates are taught: those it begins with are not, and
    the teacher is kept for the others if it is better than all of these by more than the noise.
    ``teacher: auto`` alone is timm's EfficientNet-Lite0, pretrained, with a new head.

    Its answers are kept and replayed for every candidate (``cache``); of its probabilities the
    ``top_k`` largest, and the first alone for hard distillation.
    """

    name: str = "regnety_002"
    options: dict[str, int | float | bool | str] = Field(default_factory=dict)
    weights: str = "train"
    adapt: Literal["none", "head", "all", "own"] = "none"
    epochs: Count | None = None
    image_size: Annotated[int, Field(strict=True, ge=8, le=4096)] | None = None
    auto: bool = False
    top1_percent: Annotated[float, Field(gt=0, le=100)] | None = None
    recipe: Recipe = Recipe()
    cache: bool = True
    top_k: Annotated[int, Field(strict=True, ge=1, le=65535)] = 16

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: object) -> object:
        given = AUTO_TEACHER if given == "auto" else given
        if not isinstance(given, Mapping):
            return given
        found = dict(given)
        if found.get("auto") is True:
            found = {**AUTO_TEACHER, **found}
            if found["weights"] == "train" and "adapt" not in given:
                del found["adapt"]
        recipe = found.get("recipe", {})
        if found.get("adapt") == "all" and isinstance(recipe, Mapping):
            named = {"epochs": found["epochs"]} if found.get("epochs") is not None else {}
            stated = Recipe.stated(recipe)
            usual = {key: value for key, value in _FINETUNE.items() if key not in stated}
            found["recipe"] = {**usual, **named, **recipe}
        return found

    @model_validator(mode="after")
    def _check_adapt(self) -> "TeacherConfig":
        if self.adapt == "none":
            for key in ("epochs", "image_size"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key}: is that of an adapted teacher (adapt: head or all); without, it "
                        "is taught recipe.epochs and shown what candidates are shown"
                    )
        elif self.weights == "train":
            raise ValueError(
                f"adapt: {self.adapt} begins with trained weights; set weights to pretrained or to "
                "a file, not to train"
            )
        if self.adapt == "own" and self.auto:
            raise ValueError("auto: is for teachers of the data's classes, not for adapt: own")
        if self.adapt == "own" and (self.epochs or self.top1_percent):
            raise ValueError(
                "epochs, top1_percent: a teacher with classes of its own (adapt: own) is not "
                "fitted, and has no accuracy on the data"
            )
        if self.adapt == "all" and self.epochs not in (None, self.recipe.epochs):
            raise ValueError(
                f"epochs: {self.epochs} differs from the {self.recipe.epochs} of recipe.epochs, "
                "which it stands for; leave one of them out"
            )
        if self.recipe.donor_weights is not None:
            raise ValueError("recipe.donor_weights: a teacher has no donor; see weights")
        if self.recipe.weights != "fresh":
            raise ValueError("recipe.weights: a teacher's are told by teacher.weights")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: Serializer) -> dict[str, object]:
        """What is not asked for is left out of what earlier releases wrote in the same way, and
        made ids of."""
        found: dict[str, object] = dump(self)
        for key in ("adapt", "epochs", "image_size", "auto"):
            is_other = key == "adapt" and self.auto  # which has another default
            if not is_other and found.get(key) == type(self).model_fields[key].default:
                found.pop(key, None)
        return found

    def check_decided(self) -> None:
        """Make sure that it is known whether networks are taught.

        Raises:
            InputError: that is left to a search.
        """
        if self.auto:
            raise InputError(
                "teacher.auto: only a search can tell whether the teacher is better than its first "
                "candidates; here say --set teacher.auto=false, or --set teacher=null"
            )

    @property
    def is_made_here(self) -> bool:
        """Whether its weights come from a training or a fit of ours, and are kept with its card."""
        return self.weights == "train" or self.adapt != "none"
