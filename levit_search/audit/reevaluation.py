"""What a worker of an audit does: it measures and trains networks, and reads the test split."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from levit_search.architecture import Architecture, Levit
from levit_search.audit.front_confidence import Reevaluation
from levit_search.batches import open_batches
from levit_search.distill import TeacherAnswers, obtain_teacher
from levit_search.engine.interface import Settled
from levit_search.errors import InputError, TrialError
from levit_search.latency.host_lock import on_cores
from levit_search.model import Model, build, export_onnx, load_weights, set_layout
from levit_search.model.quantization import OnnxNetwork, calibration_images, quantized_network
from levit_search.progress import Progress
from levit_search.study import Study, StudyConfig
from levit_search.study.record import layout_of
from levit_search.supernet import Supernet, obtain_supernet, supernet_folder
from levit_search.train import (
    Checkpoint,
    device_of,
    fit,
    fresh_network,
    top1_percent,
    training_id,
)

_AGAIN = "`levit-search export STUDY --pick trial=N --retrain` trains a network again"


class Reevaluator:
    """Measures one network after another; see :class:`levit_search.engine.tasks.Evaluates`.

    Args:
        config: of the study, but for ``search.seed``: that of the trainings.
        folder: of the study; its own seed, which the teacher has, is in the ``study.yaml`` there.
        settled: what the search has settled, of which the formats of int8 are asked for.
        cores: those to train on; None for any.
    """

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        settled: Settled,
        cores: frozenset[int] | None,
    ) -> None:
        self._config, self._folder, self._cores = config, folder, cores
        self._int8_formats = settled.get("int8_formats", {})
        self._teacher: TeacherAnswers | None = None
        self._supernet: Supernet | None = None

    def close(self) -> None:
        """There is nothing to let go of."""

    def prepare(self, sample: Architecture, progress: Progress) -> Mapping[str, Any]:
        """Load the data, and find the teacher where a training needs it."""
        del sample
        config, study = self._config, Study.open(self._folder)
        searched = study.config
        torch.set_num_threads(config.train.threads)
        progress("loading data", None)
        self._batches = open_batches(config.data)
        if config.is_quantized:
            section = config.int8_section(config.int8_targets[0])
            self._calibration = calibration_images(self._batches, section.int8.images)
            self._layouts = {
                record.architecture.id: layout_of(searched, record.evaluation)
                for record in study.records()
                if record.architecture is not None
            }
        seed, folder = searched.search.seed, self._folder / "teacher"
        if config.teaching is not None and seed != config.search.seed:
            progress("preparing the teacher", None)
            self._teacher, _ = obtain_teacher(
                config.teaching, config.data, self._batches, config.train, folder, seed
            )
        if config.accuracy == "finetuned":
            progress("reading the supernet", None)
            if not (supernet_folder(self._folder) / "card.json").is_file():
                raise InputError(
                    f"{self._folder}: its supernet is gone, from which its networks start; `run` "
                    "trains it again"
                )
            self._supernet = obtain_supernet(searched, self._batches, lambda: None, self._folder)
        formats = self._int8_formats  # the next workers are given them, too
        return {"settled_ms": {}, "int8_formats": formats, "device": {}, "teacher": {}}

    def verify(self, network: Architecture, progress: Progress, decide: Any = None) -> Reevaluation:
        """Measure a network with the weights that the search left."""
        del decide
        progress("measuring", None)
        path = self._folder / "checkpoints" / f"{network.id}.safetensors"
        if not path.is_file():
            raise TrialError(f"{path}: the trained weights are not there; {_AGAIN}")
        model = build(network)
        try:
            load_weights(model, path)
        except InputError as error:
            raise TrialError(f"{error}; {_AGAIN}") from None
        with on_cores(self._cores):
            return self._measured(model.to(device_of(self._config.train)), 0.0)

    def evaluate(
        self,
        network: Architecture,
        progress: Progress,
        decide: Callable[[int, dict[str, float]], bool],
        taught: bool = True,
    ) -> Reevaluation:
        """Train a network from the start, or from where an audit was interrupted, and measure it;
        no rung ends the training."""
        del decide
        recipe, seed = self._config.candidate_recipe, self._config.search.seed
        teacher = self._teacher if network.distillation and taught else None
        teacher_id = teacher.id if teacher is not None else None
        run = training_id(network, recipe, seed, self._batches.data_id, teacher_id)
        if self._supernet is not None:
            run = f"{run}-finetuned"
        path = self._folder / "audit" / f"{network.id}.{seed}.training.pt"
        checkpoint = Checkpoint(path, run)
        with on_cores(self._cores):
            if self._supernet is not None:
                assert isinstance(network, Levit)
                model: Model = self._supernet.extracted(network)
            else:
                model = fresh_network(network, recipe, seed)
            training = fit(
                model,
                self._batches,
                recipe,
                seed,
                teacher,
                checkpoint=checkpoint,
                progress=lambda _, done: progress("training", done),
            )
            found = self._measured(model, training.seconds)
        checkpoint.remove()
        return found

    def _measured(self, model: Model, seconds: float) -> Reevaluation:
        found = Reevaluation(
            top1_percent(model, self._batches, "val"),
            top1_percent(model, self._batches, "test"),
            self._batches.size("val"),
            self._batches.size("test"),
            round(seconds, 3),
        )
        if not self._config.is_quantized:
            return found
        network = self._in_int8(model)
        return replace(
            found,
            val_top1_int8_percent=top1_percent(network, self._batches, "val"),
            test_top1_int8_percent=top1_percent(network, self._batches, "test"),
        )

    def _in_int8(self, model: Model) -> OnnxNetwork:
        """A trained network quantized as the search's are, whose layout it takes.

        Raises:
            TrialError: it cannot be quantized.
        """
        target = self._config.int8_targets[0]
        section, format = self._config.int8_section(target), self._int8_formats.get(target or "")
        if format is None:
            raise TrialError("what networks are quantized to is not noted with the study")
        set_layout(model, self._layouts[model.architecture.id])
        write = partial(export_onnx, model, batch_size=None)
        threads = self._config.train.threads
        return quantized_network(write, self._calibration, section, format, threads)[0]
