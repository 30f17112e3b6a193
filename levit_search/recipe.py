"""What a training run is told: the student's recipe and the teacher's. No torch here."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from levit_search.configuration import Count, Frozen

Share = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, lt=10)]


class Recipe(Frozen):
    """AdamW with linear warm-up and cosine decay, after Touvron et al. 2021 and the LeViT paper.

    ``threads`` is fixed here and not taken from the machine, since sums in another order give
    other accuracies. ``hflip: null`` leaves mirroring to the data set.

    ``donor_weights`` are what a graft's donor, or a LeViT's ResNet stem, starts from: null (fresh
    weights), ``pretrained`` (timm's, for unscaled donors) or a file of timm's ResNet; ``{name}`` in
    its path stands for the donor's name. Networks without a donor start from scratch all the same.
    """

    epochs: Count = 10
    batch_size: Annotated[int, Field(strict=True, ge=2)] = 128
    lr: LearningRate = 5e-4
    min_lr: Annotated[float, Field(ge=0)] = 1e-5
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.025
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    crop: bool = True
    hflip: bool | None = None
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    mixup_switch: Share = 0.5
    threads: Count = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    donor_weights: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _check_mixing(self) -> "Recipe":
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(
                f"batch_size: mixup and cutmix pair images up, {self.batch_size} is odd"
            )
        return self


class TeacherConfig(Frozen):
    """The network whose labels the distillation head learns.

    ``name`` is any timm network and ``options`` what ``timm.create_model`` takes beside it.
    ``weights`` is ``train`` (fitted once on the data set with ``recipe`` and kept), ``pretrained``
    (timm's), or the path of a checkpoint.
    """

    name: str = "regnety_002"
    options: dict[str, int | float | bool | str] = Field(default_factory=dict)
    weights: str = "train"
    recipe: Recipe = Recipe()

    @model_validator(mode="after")
    def _check_recipe(self) -> "TeacherConfig":
        if self.recipe.donor_weights is not None:
            raise ValueError("recipe.donor_weights: a teacher has no donor; see weights")
        return self
