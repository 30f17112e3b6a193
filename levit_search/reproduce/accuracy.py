"""Accuracy columns: each row trained here, on the data and for the epochs that are asked for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from levit_search.architecture import Architecture, fitted, parse, scaled
from levit_search.baseline import Baseline, check_runs, load_network
from levit_search.batches import Batches, open_batches
from levit_search.data import DataInfo, describe
from levit_search.distill import shared_teacher
from levit_search.errors import TrialError
from levit_search.image_size import size_text
from levit_search.pretrained import check_donor_weights, check_weights_fit, donor_of
from levit_search.progress import Progress, StepProgress
from levit_search.reproduce.paper import Row, Table
from levit_search.reproduce.results import Figures, Run
from levit_search.study import StudyConfig
from levit_search.train import Answers, Epoch, fit, seed_torch, top1_percent, train_network


def has_teacher(table: Table) -> bool:
    """Whether the paper's accuracies of a table are those of distilled networks.

    Those of Table 1 are not: its ends are the published DeiT-Small and ResNet-50 without a teacher.
    """
    return table.name != "grafting"


def accuracy_settings(table: Table, config: StudyConfig, width_scale: float) -> dict[str, Any]:
    """What the accuracies depend on."""
    teacher = (
        config.teaching.model_dump(mode="json") if config.teaching and has_teacher(table) else None
    )
    return {
        "data": config.data.model_dump(mode="json"),
        "width_scale": width_scale,
        "train": config.train.model_dump(mode="json"),
        "teacher": teacher,
        "seed": config.search.seed,
    }


def fill_accuracy(
    run: Run,
    table: Table,
    config: StudyConfig,
    width_scale: float,
    progress: StepProgress,
    save: Callable[[], None],
) -> None:
    """Train the rows that ``run`` lacks.

    A row whose training diverges says so under ``failed``, and the others follow.
    Figures are the accuracy on the test split and, by epoch, on the validation split. Baselines
    of timm have no width to scale, and are trained at ``width_scale`` 1 only.

    Args:
        run: filled row by row.
        table: whose rows are built.
        config: its data, train and teacher sections and its seed count.
        width_scale: of all rows.
        progress: shows each row as a step, and what goes on within it.
        save: called after each row.

    Raises:
        InputError: the data or the teacher is missing, or a network cannot be fitted to the data.
        TrialError: the teacher's training diverged.
    """
    # All rows are looked at before the first is trained: a mistake should not show after hours.
    info = describe(config.data)
    networks = {row.name: row_network(row, table, config, info, width_scale) for row in table.built}
    donors = [donor_of(n) for n in networks.values() if n and not isinstance(n, Baseline)]
    check_donor_weights(config.train.donor_weights, [donor for donor in donors if donor])
    built = [n for n in networks.values() if n and not isinstance(n, Baseline)]
    check_weights_fit(config.train, built)
    batches = open_batches(config.data)
    teacher = _teacher(config, batches, progress.update) if has_teacher(table) else None
    for name, network in networks.items():
        progress.step(name)
        if name in run.rows or network is None:
            continue
        try:
            run.rows[name] = _train(network, config, batches, teacher, progress.update)
        except TrialError as error:
            run.rows[name] = {"failed": str(error)}
        save()


def row_network(
    row: Row, table: Table, config: StudyConfig, info: DataInfo, width_scale: float
) -> Architecture | Baseline | None:
    """The network that stands for a row on the data; None where it cannot be scaled.

    Raises:
        InputError: it cannot be fitted to the images.
    """
    assert row.network is not None
    network = load_network(row.network)
    size, channels, classes = config.data.size, info.in_channels, info.num_classes
    if isinstance(network, Baseline):
        if width_scale != 1:
            return None
        network = replace(network, image_size=size, in_channels=channels, num_classes=classes)
        check_runs(network, f"{row.name}: takes no images of {size_text(size)} px")
        return network
    if table.name == "ablation":
        # Table 5 counts one head but trains with the distillation head, except for A4.
        data = network.model_dump(mode="json")
        network = parse({**data, "distillation": row.name != "ablation-A4"}, row.name)
    sized = fitted(network, image_size=size, in_channels=channels, num_classes=classes)
    return scaled(sized, width_scale)


def _teacher(config: StudyConfig, batches: Batches, progress: Progress) -> Answers | None:
    chosen = config.teaching
    if chosen is None:
        return None
    epochs = chosen.recipe.epochs

    def report(epoch: Epoch) -> None:
        progress(f"teacher, {epoch.summary()}", epoch.epoch / epochs)

    progress("teacher", 0.0)
    return shared_teacher(chosen, config.data, batches, config.train, config.search.seed, report)


def _train(
    network: Architecture | Baseline,
    config: StudyConfig,
    batches: Batches,
    teacher: Answers | None,
    progress: Progress,
) -> Figures:
    recipe, seed = config.train, config.search.seed

    def report(epoch: Epoch) -> None:
        progress(epoch.summary(), epoch.epoch / recipe.epochs)

    progress("training", 0.0)
    model: nn.Module
    described: object
    if isinstance(network, Baseline):
        seed_torch(seed, 3)
        model, described = network.build(), network.id
        training = fit(model, batches, recipe, seed, report=report)
    else:
        model, training = train_network(network, batches, recipe, seed, teacher, report)
        described = network.model_dump(mode="json")
    figures = training.as_json()
    return {
        "test_top1_percent": top1_percent(model, batches, "test"),
        "training_seconds": figures.pop("seconds"),
        **figures,
        "network": described,
    }
