"""A run of training that has stopped, on disk."""

import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.errors import InputError, TrialError, first_line
from levit_search.files import (
    DamagedFileError,
    check_no_zip_bomb,
    json_digest,
    read_bounded,
    write_atomically,
)
from levit_search.pretrained import weights_digest
from levit_search.recipe import Recipe

_FORMAT = 1


def training_id(
    network: Architecture | BaselineConfig,
    recipe: Recipe,
    seed: int,
    data_id: str,
    teacher_id: str | None,
) -> str:
    """An identity of everything that a run of training depends on, a donor's weights by their path.

    Two runs of one identity on one kind of device give the same figures, bit by bit.

    Raises:
        InputError: the recipe's weights are not to be had.
    """
    made_of = [network.id, recipe.decisive(), seed, data_id, teacher_id]
    if recipe.weights != "fresh":
        made_of.append(weights_digest(recipe.weights))
    return json_digest(made_of, 16)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps what it needs to go on, and the identity of that run.

    Args:
        is_required: whether a file of another run is an error; else it is replaced.
    """

    path: Path
    run: str
    is_required: bool = False

    def save(self, state: Mapping[str, object]) -> None:
        """Put ``state``, tensors and plain values, in the place of an earlier one, at once.

        Raises:
            TrialError: the disk is full or refuses; an earlier one stays as it is.
        """
        buffer = io.BytesIO()
        torch.save({"format": _FORMAT, "run": self.run, **state}, buffer)
        raw = buffer.getvalue()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, hashlib.sha256(raw).digest() + raw)
        except OSError as error:
            raise TrialError(
                f"{self.path}: cannot be written ({error.strerror or error}), and training could "
                "not go on from there"
            ) from error

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None where there is nothing to go on from.

        A damaged file is as good as none and leaves a warning.

        Raises:
            InputError: the file is another run's, and ``is_required``.
        """
        if not self.path.exists():
            return None
        try:
            raw = read_bounded(self.path)
        except DamagedFileError:
            raw = b""
        digest, content = raw[:32], raw[32:]
        if hashlib.sha256(content).digest() != digest:
            warnings.warn(f"{self.path}: damaged; training starts anew", stacklevel=2)
            return None
        # The checksum tells damage, not malice: nothing but tensors and plain values is read.
        try:
            check_no_zip_bomb(content)
            state: dict[str, Any] = torch.load(
                io.BytesIO(content), map_location="cpu", weights_only=True
            )
        except Exception as error:  # torch, pickle and zip each raise their own kinds
            told = f"{self.path}: refused ({first_line(error)}); training starts anew"
            warnings.warn(told, stacklevel=2)
            return None
        if state.get("format") == _FORMAT and state.get("run") == self.run:
            return state
        if self.is_required:
            raise InputError(
                f"{self.path}: was left by training with another network, recipe, data, teacher or "
                "seed; choose another folder, or remove it"
            )
        return None

    def remove(self) -> None:
        """Forget the run."""
        self.path.unlink(missing_ok=True)
