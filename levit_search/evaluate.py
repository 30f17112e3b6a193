"""One architecture to one evaluation, in the order cheap to dear: latency first, then training."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from levit_search.architecture import Architecture
from levit_search.batches import open_batches
from levit_search.distill import TeacherAnswers, obtain_teacher
from levit_search.errors import InputError, TrialError
from levit_search.files import write_atomically
from levit_search.latency import Probe
from levit_search.latency.forecast import Forecast
from levit_search.model import save_weights
from levit_search.pareto import PROBED
from levit_search.recipe import TeacherConfig
from levit_search.study import StudyConfig
from levit_search.train import Checkpoint, Epoch, train_network, training_id

# (what is being done, fraction done or None where that is not known)
Progress = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Evaluation:
    """What was found out about one network.

    ``values`` holds the measured objectives by name. A network over the latency limit is not
    trained, and has no accuracy.
    """

    values: dict[str, float]
    latency: dict[str, Any] | None
    training: dict[str, Any] | None
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Evaluator:
    """Evaluates one network after another with everything that they share kept at hand.

    Args:
        config: of the study.
        folder: of the study; trained weights and the teacher are kept below it.
        settled_ms: what an earlier session settled the reference network's latency at, by id.
    """

    def __init__(self, config: StudyConfig, folder: Path, settled_ms: dict[str, float]) -> None:
        self._config = config
        self._folder = folder
        self._probe = Probe(config.latency, settled_ms)
        self._teacher: TeacherAnswers | None = None
        self._forecast: Forecast | None = None

    def close(self) -> None:
        """End the probe's worker."""
        self._probe.__exit__(None, None, None)

    def prepare(self, sample: Architecture, progress: Progress) -> dict[str, Any]:
        """Load the data, obtain the teacher and settle the reference's latency.

        Args:
            sample: any network of the space; its image sizes are those of all.
            progress: told what is being done.

        Returns:
            ``settled_ms``, the reference's latency by id; ``device``, what it was measured on;
            ``teacher``, its card. Absent steps give empty values.

        Raises:
            LevitSearchError: whatever keeps every candidate from being evaluated.
        """
        config = self._config
        card: dict[str, Any] = {}
        device: dict[str, Any] = {}
        if config.is_measured:
            progress("starting the probe", None)
            device = self._probe.connect()
            _refuse_emulated(device, config)
        if config.is_trained:
            progress("loading data", None)
            self._batches = open_batches(config.data)
            if config.teaching is not None:
                card = self._prepare_teacher(config.teaching, progress)
        if config.is_measured and not self._probe.settled_ms:
            progress("timing the reference network", None)
            self._probe.settle_reference(sample)
        if config.is_measured and config.latency.method == "predicted":
            self._forecast = self._calibrated(progress)
        return {"settled_ms": self._probe.settled_ms, "device": device, "teacher": card}

    def _prepare_teacher(self, teacher: TeacherConfig, progress: Progress) -> dict[str, Any]:
        progress("preparing the teacher", None)

        def report(epoch: Epoch) -> None:
            text = f"training the teacher, val {epoch.val_top1_percent:.1f} %"
            progress(text, epoch.epoch / teacher.recipe.epochs)

        self._teacher, card = obtain_teacher(
            teacher,
            self._config.data,
            self._batches,
            self._config.train,
            self._folder / "teacher",
            self._config.search.seed,
            report,
            lambda text: progress(text, None),
        )
        return card

    def evaluate(self, network: Architecture, progress: Progress) -> Evaluation:
        """Probe and train one network; its weights are written before this returns.

        Raises:
            TrialError: the probe or the training failed.
        """
        start = time.perf_counter()
        config = self._config
        values: dict[str, float] = {}
        latency: dict[str, Any] | None = None
        training = None
        if self._forecast is not None:
            progress("predicting latency", None)
            latency = self._predicted(self._forecast, network, values, progress)
        elif config.is_measured:
            progress("measuring latency", None)
            latency = self._measured(network, values)
        limit = config.limits.latency_ms
        too_slow = limit is not None and values["latency_ms"] > limit
        if config.is_trained and not too_slow:
            training, values["top1_percent"] = self._train(network, progress)
        return Evaluation(
            values,
            latency,
            training,
            round(time.perf_counter() - start, 3),
        )

    def measure(self, network: Architecture, progress: Progress) -> Evaluation:
        """Measure a network whose latency was predicted.

        Raises:
            TrialError: the probe failed.
        """
        start = time.perf_counter()
        values: dict[str, float] = {}
        progress("measuring what was predicted", None)
        latency = self._measured(network, values)
        return Evaluation(values, latency, None, round(time.perf_counter() - start, 3))

    def _calibrated(self, progress: Progress) -> Forecast:
        config = self._config
        progress("calibrating the latency predictor", None)
        file = self._folder / "predictor.json"
        forecast = Forecast(self._probe, config.space(), config.search.seed, file)
        forecast.prepare(progress)
        return forecast

    def _predicted(
        self,
        forecast: Forecast,
        network: Architecture,
        values: dict[str, float],
        progress: Progress,
    ) -> dict[str, Any]:
        found = forecast.predict(network, progress)
        values["latency_ms"] = values["latency_predicted_ms"] = found.latency_ms
        return {"method": "predicted", **asdict(found)}

    def _measured(self, network: Architecture, values: dict[str, float]) -> dict[str, Any]:
        """Probe a network, note the objectives, and keep the raw samples with the study."""
        found = self._probe.measure(network)
        for name in PROBED:
            value = getattr(found, name)
            if value is not None:
                values[name] = value
            elif name in self._config.objectives:
                raise TrialError(f"{found.target} does not tell {name}")
        assert found.samples_file is not None
        source = Path(found.samples_file)
        folder = self._folder / "latency"
        folder.mkdir(exist_ok=True)
        write_atomically(folder / source.name, source.read_bytes())
        return replace(found, samples_file=f"latency/{source.name}").as_json()

    def _train(self, network: Architecture, progress: Progress) -> tuple[dict[str, Any], float]:
        recipe, seed = self._config.train, self._config.search.seed

        text = "training"

        def report(epoch: Epoch) -> None:
            nonlocal text
            text = f"training, val {epoch.val_top1_percent:.1f} %"
            told(epoch.epoch / recipe.epochs)

        def told(fraction: float) -> None:
            progress(text, fraction)

        told(0.0)
        folder = self._folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        teacher = self._teacher if network.distillation else None
        teacher_id = teacher.id if teacher is not None else None
        run = training_id(network, recipe, seed, self._batches.data_id, teacher_id)
        checkpoint = Checkpoint(folder / f"{network.id}.training.pt", run)
        try:
            model, result = train_network(
                network, self._batches, recipe, seed, teacher, report, checkpoint, told=told
            )
        except TrialError:
            checkpoint.remove()
            raise
        save_weights(model, folder / f"{network.id}.safetensors")
        checkpoint.remove()
        return result.as_json(), result.val_top1_percent


def _refuse_emulated(device: dict[str, Any], config: StudyConfig) -> None:
    """An emulator's timings say nothing of the device that it plays."""
    if device["emulated"] and not config.latency.allow_emulated:
        raise InputError(
            f"latency.target: {config.latency.target.label} is emulated, and its timings are no "
            "objective (latency.allow_emulated: true takes them all the same)"
        )
