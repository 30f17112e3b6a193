"""Trained networks made to fit the data: a new head on their features, then all their weights.

Shapes: N views of the training images, B of a batch, C channels, H x W pixels, D features.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from levit_search.batches import Batches, generator
from levit_search.batches.batch import ordered
from levit_search.distill.store import check_room
from levit_search.errors import InputError, writing
from levit_search.files import write_atomically
from levit_search.image_size import Sides, sides
from levit_search.latency.host_lock import between_probes
from levit_search.progress import Progress, no_progress
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.train import device_of

_ENOUGH_VIEWS = 20_000
_PASSES = (1, 4)
_ROWS = 32  # of a batch; what is left over of a pass by whole ones is left out
_CHUNK_STEPS = 32  # batches that are lost at most where computing features is interrupted
_HELD_OUT = 0.2
_DECAYS = tuple(10 ** (power / 2) for power in range(2, -13, -1))  # from 10 to 1e-6
_MOST_STEPS = 200
_LOGITS_AT_ONCE = 2**24


class Adapted(nn.Module):
    """A network without its classifier, shown what it knows, under a linear head for other classes.

    Args:
        network: images [B, C, H', W'] of ``size``, normalised as it was trained, to features.
        size: what views are enlarged to, in pixels: a side, or (height, width).
        colors: what pixels are multiplied by and what is added, [C, 1, 1] each, to have a view that
            is normalised as candidates are shown it as ``network`` is.
        num_features: D.
        num_classes: of the data; None leaves the network its own classifier.
    """

    def __init__(
        self,
        network: nn.Module,
        size: int | Sides,
        colors: tuple[Tensor, Tensor],
        num_features: int,
        num_classes: int | None,
    ) -> None:
        super().__init__()
        self.network, self._size = network, sides(size)
        self.head: nn.Linear | None = None
        if num_classes is not None:
            self.head = nn.Linear(num_features, num_classes)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self._scale: Tensor
        self._shift: Tensor
        for name, values in zip(("_scale", "_shift"), colors, strict=True):
            self.register_buffer(name, values, persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Features [B, D] of views [B, C, H, W]."""
        images = images * self._scale + self._shift
        if images.shape[2:] != self._size:
            images = F.interpolate(images, self._size, mode="bicubic", antialias=True)
        found: Tensor = self.network(images)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of views [B, C, H, W]."""
        found = self.features(images)
        return found if self.head is None else cast(Tensor, self.head(found))


def fit_head(
    model: Adapted,
    config: TeacherConfig,
    batches: Batches,
    seed: int,
    folder: Path,
    progress: Progress = no_progress,
) -> dict[str, object]:
    """Fit the head of ``model`` by L2-regularised multinomial logistic regression on its features.

    Features are computed once for each view. The penalty is the one by which a head that was fitted
    on four fifths of the training images has the lowest cross entropy on the others; the head is
    then fitted on all.

    Args:
        model: on the CPU; its head is changed, its network is not.
        batches: the data, of which ``train`` alone is looked at.
        seed: of the views, and of the images that are held out.
        folder: where features are kept, so that an interrupted call goes on; the caller removes it.
        progress: told now and then which part of the features is done.

    Returns:
        ``{passes, views, features, held_out_images, held_out_top1_percent, weight_decay}``.

    Raises:
        InputError: there is no room for the features, or they are no finite numbers.
    """
    passes = int(np.clip(-(-_ENOUGH_VIEWS // batches.size("train")), *_PASSES))
    if config.adapt == "head" and config.epochs is not None:
        passes = config.epochs
    recipe = config.recipe.model_copy(
        update={"batch_size": _ROWS, "mixup": 0.0, "cutmix": 0.0, "repeated_augmentation": 1}
    )
    torch.set_num_threads(recipe.threads)
    device = device_of(recipe)
    features, labels, images = _features(
        model.to(device).eval(), batches, recipe, seed, passes, folder, progress
    )
    if not torch.isfinite(features).all():
        raise InputError(
            f"teacher {config.name}: its features are no finite numbers; choose another one"
        )
    features = features.float()
    center = features.mean(0)
    features = features - center
    deviation = features.square().mean(0).sqrt()
    # One that is nearly the same everywhere stays small.
    scale = deviation.clamp_min(1e-3 * float(deviation.mean()) + 1e-12)
    features = (features / scale).to(device)
    labels = labels.to(device)
    is_held_out = _held_out(batches, seed)[images].to(device)
    plain = torch.arange(len(labels), device=device) < len(labels) // passes
    fitting, judging = ~is_held_out, is_held_out & plain
    best: tuple[float, float, float] | None = None
    weights = torch.zeros(batches.info.num_classes, features.shape[1] + 1, device=device)
    fitted, fitted_labels = features[fitting], labels[fitting]
    shown, shown_labels = features[judging], labels[judging]
    for decay in _DECAYS if len(shown) else ():
        weights = _fitted(fitted, fitted_labels, weights, decay)
        logits = shown @ weights[:, :-1].T + weights[:, -1]
        loss = float(F.cross_entropy(logits, shown_labels))
        right = float((logits.argmax(1) == shown_labels).float().mean())
        if best is None or loss < best[0]:
            best = loss, decay, 100 * right
        elif loss > 1.2 * best[0]:  # the path goes from strong penalties to weak ones
            break
    decay = best[1] if best is not None else _DECAYS[len(_DECAYS) // 2]
    weights = _fitted(features, labels, torch.zeros_like(weights), decay)
    with torch.no_grad():
        head = cast(nn.Linear, model.head)
        head.weight.copy_(weights[:, :-1] / scale.to(device))
        head.bias.copy_(weights[:, -1] - head.weight @ center.to(device))
    return {
        "passes": passes,
        "views": len(labels),
        "features": features.shape[1],
        "held_out_images": len(shown),
        "held_out_top1_percent": best[2] if best is not None else None,
        "weight_decay": decay,
    }


def _features(
    model: Adapted,
    batches: Batches,
    recipe: Recipe,
    seed: int,
    passes: int,
    folder: Path,
    progress: Progress,
) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the training images by so many passes, kept in ``folder`` chunk by chunk: features
    float16 [N, D] on the CPU, labels int64 [N] and images, indices of ``train``, int64 [N].

    The first pass is plain, the others are augmented as ``recipe`` says.
    """
    plain = {"crop": "none", "hflip": False, "color_jitter": 0.0, "rand_augment": None}
    steps = batches.steps(recipe)
    width = cast(nn.Linear, model.head).in_features
    check_room(folder, 2 * passes * steps * batches.batch_size(recipe) * width)
    parts: list[Tensor] = []
    images: list[Tensor] = []
    for number in range(passes):
        shown = recipe
        if not number:
            shown = recipe.model_copy(update={**plain, "random_erasing": 0.0})
        images.append(ordered(batches.size("train"), shown, seed, number).flatten())
        first = 0
        while (kept := _read_chunk(folder / f"{number:04d}-{first:07d}.npz")) is not None:
            parts.append(kept)
            first += _CHUNK_STEPS
        if first < steps:
            for chunk in _computed(model, batches, shown, seed, number, first):
                _write_chunk(folder / f"{number:04d}-{first:07d}.npz", chunk)
                parts.append(chunk)
                first += _CHUNK_STEPS
                progress("", (number + min(first, steps) / steps) / passes)
    order = torch.cat(images)
    return torch.cat(parts), torch.from_numpy(batches.labels("train"))[order], order


def _computed(
    model: Adapted, batches: Batches, recipe: Recipe, seed: int, number: int, first: int
) -> Iterator[Tensor]:
    """Features float16 [n, D] of a pass from a step on, in chunks of as many steps each."""
    device = next(model.parameters()).device
    views = batches.train(seed, number, recipe, device, first)
    rows: list[Tensor] = []
    with between_probes(views) as shared:
        for batch in shared:
            with torch.no_grad():  # left before a chunk is given away
                rows.append(model.features(batch.images).half().cpu())
            if len(rows) == _CHUNK_STEPS:
                yield torch.cat(rows)
                rows = []
    if rows:
        yield torch.cat(rows)


def _write_chunk(path: Path, features: Tensor) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, features=features.numpy())
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())


def _read_chunk(path: Path) -> Tensor | None:
    """The features in a chunk; None where there is none, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return torch.from_numpy(found["features"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _held_out(batches: Batches, seed: int) -> Tensor:
    """Which training images judge a fit, bool: a fifth of each class, but no single one."""
    labels = torch.from_numpy(batches.labels("train"))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    shuffled = torch.randperm(len(labels), generator=generator(seed, 5))
    for label in labels.unique():
        members = shuffled[labels[shuffled] == label]
        count = round(_HELD_OUT * len(members)) or min(1, len(members) - 1)
        chosen[members[:count]] = True
    return chosen


def _fitted(features: Tensor, labels: Tensor, start: Tensor, decay: float) -> Tensor:
    """Multinomial logistic regression with an L2 penalty on all but the bias, by L-BFGS.

    Args:
        features: float [N, D].
        labels: int64 [N].
        start: weights [classes, D + 1] to begin with, the bias last.
        decay: half of it times the squares of the weights is added to the mean cross entropy.

    Returns:
        The best weights [classes, D + 1].
    """
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=_MOST_STEPS, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )
    at_once = max(1, _LOGITS_AT_ONCE // len(start))

    def loss() -> float:
        optimizer.zero_grad()
        penalty = decay / 2 * weights[:, :-1].square().sum()
        penalty.backward()
        total = penalty.detach()
        for shown, wanted in zip(features.split(at_once), labels.split(at_once), strict=True):
            logits = shown @ weights[:, :-1].T + weights[:, -1]
            part = F.cross_entropy(logits, wanted, reduction="sum") / len(labels)
            part.backward()
            total = total + part.detach()
        return float(total)

    optimizer.step(loss)
    return weights.detach()
