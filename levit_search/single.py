"""Training one network outside of any search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from levit_search.architecture import Architecture, fitted
from levit_search.batches import open_batches
from levit_search.distill import shared_teacher
from levit_search.donors import check_donor_weights, donor_of
from levit_search.errors import InputError
from levit_search.files import write_atomically
from levit_search.model import Model, save_weights
from levit_search.study import StudyConfig
from levit_search.train import Epoch, top1_percent, train_network


def train_single(
    network: Architecture,
    config: StudyConfig,
    final: bool,
    out: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train ``network``, fitted to the data of ``config``, with its recipe, teacher and seed.

    Args:
        network: made for any images.
        config: its data, train and teacher sections and its seed count.
        final: measure the accuracy on the test split too.
        out: a folder for the architecture and the weights, or None to keep nothing.
        say: told of each epoch.

    Returns:
        ``{id, data, epochs, val_top1_percent, test_top1_percent?, images_per_second, seconds,
        curve}``.

    Raises:
        InputError: data, teacher or donor weights are missing or unfit, or ``out`` is not empty.
        TrialError: the training diverged.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty; choose another --out")
    batches = open_batches(config.data)
    network = fitted(
        network,
        image_size=config.data.image_size,
        in_channels=batches.info.in_channels,
        num_classes=batches.info.num_classes,
    )
    donor = donor_of(network)
    check_donor_weights(config.train.donor_weights, [donor] if donor else [])
    seed = config.search.seed

    def told(what: str, epochs: int) -> Callable[[Epoch], None]:
        return lambda epoch: say(
            f"{what}: epoch {epoch.epoch}/{epochs}, loss {epoch.train_loss:.4f}, "
            f"val {epoch.val_top1_percent:.2f} %, {epoch.seconds:.0f} s"
        )

    teacher = None
    if config.teacher is not None and network.distillation:
        report = told(f"teacher {config.teacher.name}", config.teacher.recipe.epochs)
        teacher = shared_teacher(config.teacher, config.data, batches, seed, report)
    report = told(network.id, config.train.epochs)
    model, training = train_network(network, batches, config.train, seed, teacher, report)
    result = {
        "id": network.id,
        "data": config.data.name,
        "epochs": config.train.epochs,
        **training.as_json(),
    }
    if final:
        result["test_top1_percent"] = top1_percent(model, batches, "test")
    if out is not None:
        _keep(model, out)
    return result


def _keep(model: Model, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "architecture.yaml", model.architecture.to_yaml())
    save_weights(model, out / "model.safetensors")
