"""A recipe as timm's parts: optimizer, schedule, clipping, averaged weights; and the precision."""

import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from levit_search.errors import InputError
from levit_search.recipe import Recipe

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(recipe: Recipe) -> torch.device:
    """The device that a recipe names.

    Raises:
        InputError: it asks for a GPU and there is none.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise InputError("train.device: cuda was asked for, but torch sees no GPU here")
    if recipe.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(recipe.device)


def precision_of(recipe: Recipe, device: torch.device) -> str:
    """``fp32``, ``bf16`` or ``fp16``.

    Raises:
        InputError: the device does not compute in what the recipe names.
    """
    if device.type == "cpu":
        if recipe.precision == "fp16":
            raise InputError("train.precision: fp16 needs a GPU; a CPU trains in fp32 or bf16")
        return "fp32" if recipe.precision == "auto" else recipe.precision
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if recipe.precision == "bf16" and not has_bf16:
        raise InputError("train.precision: this GPU has no bf16; choose fp16, fp32 or auto")
    if recipe.precision == "auto":
        return "bf16" if has_bf16 else "fp16"
    return recipe.precision


class Optimization:
    """All that moves a model's weights, with the state that a checkpoint needs.

    Args:
        model: on its device; what its ``no_weight_decay`` names, biases and norms do not decay.
        steps: batches an epoch.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, steps: int) -> None:
        from timm.optim import create_optimizer_v2
        from timm.scheduler import CosineLRScheduler
        from timm.utils import ModelEmaV3

        self._model, self._recipe = model, recipe
        device = next(model.parameters()).device
        self.precision = precision_of(recipe, device)
        self._device = device.type
        self._optimizer = create_optimizer_v2(
            model, opt="adamw", lr=recipe.peak_lr, weight_decay=recipe.weight_decay, fused=True
        )
        warmup = min(round(recipe.warmup_epochs * steps), recipe.epochs * steps - 1)
        if recipe.warmup_epochs >= recipe.epochs:
            warnings.warn(
                f"train.warmup_epochs: {recipe.warmup_epochs:g} of {recipe.epochs} epochs leave "
                "none at the full learning rate",
                stacklevel=2,
            )
        self._schedule = CosineLRScheduler(
            self._optimizer,
            t_initial=max(2, recipe.epochs * steps - warmup),  # timm complains of 1
            lr_min=recipe.min_lr,
            warmup_t=warmup,
            warmup_lr_init=recipe.warmup_lr,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        # fp16 has too narrow a range for small gradients.
        self._scaler = torch.amp.GradScaler(self._device, enabled=self.precision == "fp16")
        # Its warm-up keeps the first weights, which are noise, out of the average of a short run.
        self._average = (
            ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True)
            if recipe.ema_decay is not None
            else None
        )

    @property
    def evaluated(self) -> nn.Module:
        """The model with the weights that count: the averaged ones, where there are some."""
        return self._average.module if self._average is not None else self._model

    def autocast(self) -> AbstractContextManager[Any]:
        """Computation in the recipe's precision."""
        dtype = _DTYPES.get(self.precision)
        return torch.autocast(self._device, dtype=dtype, enabled=dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those there are."""
        self._scaler.scale(loss).backward()

    def step(self, number: int) -> None:
        """Move the weights by the gradients; ``number`` counts from the start of the run."""
        from timm.utils import dispatch_clip_grad

        self._schedule.step_update(number)
        if self._recipe.clip_grad is not None:
            self._scaler.unscale_(self._optimizer)
            dispatch_clip_grad(self._model.parameters(), self._recipe.clip_grad, mode="agc")
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.forget()
        if self._average is not None:
            self._average.update(self._model, step=number + 1)

    def forget(self) -> None:
        """Drop the gradients."""
        self._optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on beside the model's own weights."""
        average = self._average.module.state_dict() if self._average is not None else None
        return {
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": average,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
