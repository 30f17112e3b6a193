"""One architecture to one evaluation, in the order cheap to dear: latency first, then training."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from torch import nn

from levit_search import baseline
from levit_search.architecture import Architecture, Levit, sizes_of
from levit_search.baseline import Baseline, BaselineConfig
from levit_search.batches import Batches, open_batches
from levit_search.data import SplitName
from levit_search.distill import TeacherAnswers, obtain_teacher
from levit_search.errors import InputError, TrialError, refused_by_disk
from levit_search.files import remove_unfinished, user_cache, write_atomically
from levit_search.latency import LatencyConfig, Measurement, Probe
from levit_search.latency.forecast import Forecast
from levit_search.latency.sharing import on_cores, while_no_probe_runs
from levit_search.model import save_weights
from levit_search.pareto import PROBED
from levit_search.proportion import guess_percent
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.study import StudyConfig, training_file
from levit_search.supernet import Supernet, SupernetEpoch, obtain_supernet
from levit_search.train import (
    Checkpoint,
    Epoch,
    Training,
    always,
    fit,
    fresh_network,
    out_of_memory_as_trial_error,
    seed_torch,
    training_id,
)

# (what is being done, fraction done or None where that is not known)
Progress = Callable[[str, float | None], None]

Decide = Callable[[int, dict[str, float]], bool]
"""Whether a candidate goes on after an epoch at which its values are these."""


def goes_on(epoch: int, values: dict[str, float]) -> bool:
    """Train every candidate to the end."""
    del epoch, values
    return True


@dataclass(frozen=True)
class Evaluation:
    """What was found out about one network.

    ``values`` holds the measured objectives by name. A network over the latency limit is not
    trained, and has no accuracy; one that was stopped at a rung has a learning curve up to there,
    and no accuracy either. One without a training has its accuracy from a supernet, also as
    ``top1_inherited_percent``.
    """

    values: dict[str, float]
    latency: dict[str, Any] | None
    training: dict[str, Any] | None
    seconds: float
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Latencies on further targets, by name."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Evaluator:
    """Evaluates one network after another with everything that they share kept at hand.

    Args:
        config: of the study.
        folder: of the study; trained weights and the teacher are kept below it.
        settled_ms: what an earlier session settled the reference network's latency at, by id, and
            on further targets by ``TARGET:ID``.
        cores: those that candidates are trained on; None for any. Probes may use all.
    """

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        settled_ms: dict[str, float],
        cores: frozenset[int] | None = None,
    ) -> None:
        self._config = config
        self._folder = folder
        self._cores = cores
        self._probe = Probe(config.latency, settled_on(None, settled_ms))
        self._others = {
            name: Probe(section, settled_on(name, settled_ms))
            for name, section in config.also_measured.items()
        }
        self._teacher: TeacherAnswers | None = None
        self._forecast: Forecast | None = None
        self._supernet: Supernet | None = None

    def close(self) -> None:
        """End the probes' workers."""
        for probe in (self._probe, *self._others.values()):
            probe.__exit__(None, None, None)

    def prepare(self, sample: Architecture, progress: Progress) -> dict[str, Any]:
        """Load the data, obtain the teacher and settle the reference's latency on each target.

        Args:
            sample: any network of the space; its image sizes are those of all.
            progress: told what is being done.

        Returns:
            ``settled_ms``, the reference's latency by id, on further targets by ``TARGET:ID``;
            ``device``, what it was measured on; ``devices``, further ones by target; ``data``, what
            accuracies are measured on (:func:`described_data`); ``teacher`` and ``supernet``, their
            cards. Absent steps give empty values.

        Raises:
            LevitSearchError: whatever keeps every candidate from being evaluated.
        """
        config = self._config
        self._sizes = sizes_of(sample)
        for kept in ("latency", "teachers"):  # what killed writers left in the user's cache
            remove_unfinished(user_cache() / kept)
        card: dict[str, Any] = {}
        shared: dict[str, Any] = {}
        data: dict[str, Any] = {}
        device: dict[str, Any] = {}
        if config.is_measured:
            progress("starting the probe", None)
            device = self._probe.connect()
            _refuse_emulated(device, config.latency, "latency")
        devices = {name: self._connected(name, progress) for name in self._others}
        if config.is_trained:
            progress("loading data", None)
            self._batches = open_batches(config.data)
            data = described_data(self._batches, config)
            if config.teaching is not None:
                card = self._prepare_teacher(config.teaching, progress)
            if config.shares_weights:
                self._supernet = self._obtained_supernet(progress)
                shared = self._supernet.summary()
        if config.is_measured and not self._probe.settled_ms:
            progress("timing the reference network", None)
            self._probe.settle_reference(sample)
        if config.is_measured and config.latency.method == "predicted":
            self._forecast = self._calibrated(progress)
        settled_ms = dict(self._probe.settled_ms)
        for name, probe in self._others.items():
            if not probe.settled_ms:
                progress(f"timing the reference network on {name}", None)
                probe.settle_reference(sample)
            settled_ms |= {f"{name}:{id}": ms for id, ms in probe.settled_ms.items()}
        return {
            "settled_ms": settled_ms,
            "device": device,
            "devices": devices,
            "data": data,
            "teacher": card,
            "supernet": shared,
        }

    def _connected(self, name: str, progress: Progress) -> dict[str, Any]:
        """The device of a further target."""
        progress(f"starting the probe on {name}", None)
        device = self._others[name].connect()
        _refuse_emulated(device, self._config.targets[name], f"targets.{name}")
        return device

    def _prepare_teacher(self, teacher: TeacherConfig, progress: Progress) -> dict[str, Any]:
        if teacher.adapt == "own":
            raise InputError(
                "teacher.adapt: own is for `levit-search supernet --data generated`; candidates "
                "are taught the data's classes"
            )
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
            lambda done: progress("computing the teacher's features", done),
        )
        return card

    def _obtained_supernet(self, progress: Progress) -> Supernet:
        config = self._config
        epochs = config.supernet.recipe(config.train).epochs
        progress("preparing the supernet", None)
        text = "training the supernet"

        def report(epoch: Epoch) -> None:
            nonlocal text
            assert isinstance(epoch, SupernetEpoch)
            text = f"training the supernet, {epoch.told()}"
            told(epoch.epoch / epochs)

        def told(fraction: float) -> None:
            progress(text, fraction)

        def teacher() -> TeacherAnswers | None:
            return self._teacher.lasting(epochs) if self._teacher is not None else None

        return obtain_supernet(config, self._batches, teacher, self._folder, report, told)

    @out_of_memory_as_trial_error()
    def evaluate(
        self,
        network: Architecture,
        progress: Progress,
        decide: Decide = goes_on,
        taught: bool = True,
    ) -> Evaluation:
        """Probe and train one network; its weights are written before this returns.

        Args:
            network: of the space. It goes on from the checkpoint that an earlier session left.
            progress: told what is being done.
            decide: asked at each rung before the last epoch where ``search.reduction`` is given,
                and again about those before the checkpoint. A network that is stopped leaves
                neither weights nor a checkpoint.
            taught: whether it learns from the teacher, where there is one.

        Raises:
            TrialError: the probe or the training failed.
        """
        start = time.perf_counter()
        config = self._config
        values: dict[str, float] = {}
        latency: dict[str, Any] | None = None
        training = None
        targets: dict[str, dict[str, Any]] = {}
        if self._forecast is not None:
            progress("predicting latency", None)
            latency = self._predicted(self._forecast, network, values, progress)
        elif config.is_measured:
            progress("measuring latency", None)
            latency = self._measured(self._probe, network, values)
        limit = config.limits.latency_ms
        too_slow = limit is not None and values["latency_ms"] > limit
        for name, probe in self._others.items() if not too_slow else ():
            progress(f"measuring latency on {name}", None)
            targets[name] = self._measured(probe, network, values, f"@{name}")
        if self._config.inherits and not too_slow:
            assert self._supernet is not None
            progress("asking the supernet", None)
            with on_cores(self._cores):
                inherited = self._supernet.top1_percent(_levit(network))
            values["top1_percent"] = values["top1_inherited_percent"] = inherited
        elif config.is_trained and not too_slow:
            result = self._train(network, values, progress, decide, taught)
            training = result.as_json()
            if len(result.curve) == config.candidate_recipe.epochs:
                values["top1_percent"] = result.val_top1_percent
        return Evaluation(
            values,
            latency,
            training,
            round(time.perf_counter() - start, 3),
            targets,
        )

    @out_of_memory_as_trial_error()
    def verify(
        self, network: Architecture, progress: Progress, decide: Decide = goes_on
    ) -> Evaluation:
        """Measure a network whose latency was predicted, train one whose accuracy was inherited.

        Args:
            network: that was evaluated. Its training goes on from the checkpoint that an earlier
                session left.
            progress: told what is being done.
            decide: asked at each of the recipe's rungs.

        Raises:
            TrialError: the probe or the training failed.
        """
        start = time.perf_counter()
        values: dict[str, float] = {}
        latency, training = None, None
        if self._forecast is not None:
            progress("measuring what was predicted", None)
            latency = self._measured(self._probe, network, values)
        limit = self._config.limits.latency_ms
        too_slow = limit is not None and values.get("latency_ms", 0.0) > limit
        if self._config.inherits and not too_slow:
            result = self._train(network, values, progress, decide, True)
            values["top1_percent"] = result.val_top1_percent
            training = result.as_json()
        return Evaluation(values, latency, training, round(time.perf_counter() - start, 3))

    @out_of_memory_as_trial_error()
    def compare(
        self, given: BaselineConfig, progress: Progress, decide: Decide = goes_on
    ) -> Evaluation:
        """Count, measure and train a network of timm as candidates are; its weights are written.

        It is trained by the recipe of candidates to its end, without a teacher, and measured also
        where candidates' latencies are predicted, be it over a limit or not.

        Args:
            given: which one, and what training begins with. It goes on from the checkpoint that an
                earlier session left.
            progress: told what is being done.
            decide: asked at each of the recipe's rungs.

        Returns:
            An evaluation whose values have ``params``, ``flops`` and ``activations``, too.

        Raises:
            TrialError: the probe or the training failed.
            InputError: its weights are not to be had.
        """
        start = time.perf_counter()
        config, network = self._config, given.network(**self._sizes)
        progress("counting", None)
        with while_no_probe_runs():
            values: dict[str, float] = dict(baseline.count(network).total._asdict())
        latency, training = None, None
        targets: dict[str, dict[str, Any]] = {}
        if config.is_measured:
            progress("measuring latency", None)
            latency = self._measured(self._probe, network, values)
        for name, probe in self._others.items():
            progress(f"measuring latency on {name}", None)
            targets[name] = self._measured(probe, network, values, f"@{name}")
        if config.is_trained:
            seed = config.search.seed

            def begun() -> nn.Module:
                seed_torch(seed, 3)
                return network.build_to_train(given.weights)

            run = training_id(given, config.train, seed, self._batches.data_id, None)
            run += (given.weights_sha256() or "")[:16]
            known = dict(values)
            result = self._fitted(given.id, run, begun, config.train, None, known, progress, decide)
            values["top1_percent"] = result.val_top1_percent
            training = result.as_json()
        seconds = round(time.perf_counter() - start, 3)
        return Evaluation(values, latency, training, seconds, targets)

    @out_of_memory_as_trial_error()
    def remeasure(
        self, networks: Sequence[Architecture | BaselineConfig], progress: Progress
    ) -> list[Evaluation | TrialError]:
        """Measure networks anew and together, on every target on which the search measured them.

        Their rounds alternate in one session of each target's worker, so that all of them have the
        same minutes; nothing comes from the cache.

        Args:
            networks: that were evaluated, and baselines.
            progress: told what is being done.

        Returns:
            In their order; of one that could not be measured why.

        Raises:
            TrialError: none could be measured.
        """
        start = time.perf_counter()
        built = [
            each.network(**self._sizes) if isinstance(each, BaselineConfig) else each
            for each in networks
        ]
        values: list[dict[str, float]] = [{} for _ in networks]
        latency: list[dict[str, Any] | None] = [None] * len(networks)
        targets: list[dict[str, dict[str, Any]]] = [{} for _ in networks]
        errors: dict[int, TrialError] = {}
        probes: list[tuple[str | None, Probe]] = list(self._others.items())
        if self._config.is_measured:
            probes.insert(0, (None, self._probe))
        for name, probe in probes:
            on = "" if name is None else f" on {name}"
            text = f"measuring {len(networks)} networks together{on}"
            progress(text, None)
            suffix = "" if name is None else f"@{name}"

            def report(_: str, fraction: float, text: str = text) -> None:
                progress(text, fraction)

            with probe.reporting(report):
                measured = probe.measure_all(built, fresh=True)
            for place, found in enumerate(measured):
                try:
                    if isinstance(found, TrialError):
                        raise found
                    kept = self._kept(found, values[place], suffix, "-remeasured")
                except TrialError as error:
                    errors[place] = error
                    continue
                if name is None:
                    latency[place] = kept
                else:
                    targets[place][name] = kept
        if len(errors) == len(networks):
            raise errors[0]
        seconds = round(time.perf_counter() - start, 3)
        return [
            errors.get(place)
            or Evaluation(values[place], latency[place], None, seconds, targets[place])
            for place in range(len(networks))
        ]

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

    def _measured(
        self,
        probe: Probe,
        network: Architecture | Baseline,
        values: dict[str, float],
        suffix: str = "",
    ) -> dict[str, Any]:
        """Probe a network; see :meth:`_kept`."""
        return self._kept(probe.measure(network), values, suffix)

    def _kept(
        self, found: Measurement, values: dict[str, float], suffix: str, mark: str = ""
    ) -> dict[str, Any]:
        """Note the objectives, whose names end in ``suffix``, and keep the raw samples with the
        study, in a file whose name ends in ``mark``."""
        for figure in PROBED:
            value, name = getattr(found, figure), f"{figure}{suffix}"
            if value is not None:
                values[name] = value
            elif name in self._config.objectives:
                raise TrialError(f"{found.target} does not tell {name}")
        assert found.samples_file is not None
        source = Path(found.samples_file)
        folder = self._folder / "latency"
        folder.mkdir(exist_ok=True)
        name = f"{source.stem}{mark}{source.suffix}"
        write_atomically(folder / name, source.read_bytes())
        return replace(found, samples_file=f"latency/{name}").as_json()

    def _train(
        self,
        network: Architecture,
        values: dict[str, float],
        progress: Progress,
        decide: Decide,
        taught: bool,
    ) -> Training:
        """Train a network of which ``values`` are known; see :meth:`_fitted`."""
        config = self._config
        recipe, seed = config.candidate_recipe, config.search.seed
        is_tuned = config.accuracy == "finetuned"
        if config.inherits:
            recipe = config.supernet.verifying(recipe)
            is_tuned = config.supernet.verification == "finetune"
        teacher = self._teacher if network.distillation and taught else None
        teacher_id = teacher.id if teacher is not None else None
        run = training_id(network, recipe, seed, self._batches.data_id, teacher_id)
        if is_tuned:
            run = f"{run}-finetuned"

        def begun() -> nn.Module:
            if is_tuned:
                assert self._supernet is not None
                return self._supernet.extracted(_levit(network))
            return fresh_network(network, recipe, seed)

        return self._fitted(network.id, run, begun, recipe, teacher, values, progress, decide)

    def _fitted(
        self,
        name: str,
        run: str,
        begun: Callable[[], nn.Module],
        recipe: Recipe,
        teacher: TeacherAnswers | None,
        values: dict[str, float],
        progress: Progress,
        decide: Decide,
    ) -> Training:
        """Train a network to the end or to where it is stopped, and write its weights.

        Its checkpoint stays; whoever has written the result down removes it.

        Args:
            name: that its files go by.
            run: the identity of its training.
            begun: gives the network as training begins with it.
            recipe: how.
            teacher: of its second head, where it has one.
            values: that are known of it.
            progress: told how far it is.
            decide: asked at each rung, where there is something to decide.
        """
        text = "training"

        def report(epoch: Epoch) -> None:
            nonlocal text
            text = f"training, val {epoch.val_top1_percent:.1f} %"
            told(epoch.epoch / recipe.epochs)

        def told(fraction: float) -> None:
            progress(text, fraction)

        def decided(epoch: Epoch) -> bool:
            return decide(epoch.epoch, {**values, "top1_percent": epoch.val_top1_percent})

        is_asked = self._config.search.reduction is not None or self._config.inherits
        told(0.0)
        folder = self._folder / "checkpoints"
        folder.mkdir(exist_ok=True)
        checkpoint = Checkpoint(training_file(self._folder, name), run)
        try:
            with on_cores(self._cores):
                model = begun()
                result = fit(
                    model,
                    self._batches,
                    recipe,
                    self._config.search.seed,
                    teacher,
                    report,
                    checkpoint,
                    told=told,
                    decide=decided if is_asked else always,
                )
        except TrialError as error:
            if refused_by_disk(error) is None:
                checkpoint.remove()
            raise
        weights = folder / f"{name}.safetensors"
        if len(result.curve) == recipe.epochs:
            save_weights(model, weights)
        else:
            weights.unlink(missing_ok=True)
        return result


def described_data(batches: Batches, config: StudyConfig) -> dict[str, Any]:
    """What accuracies are measured on.

    Returns:
        ``{id, train_images, val_images, test_images, num_classes, guess_percent, mirrored,
        inherited_images?}``. ``id`` changes with the images that a search sees, those of train and
        val. ``guess_percent`` is the accuracy on val of always answering its largest class,
        ``mirrored`` whether training mirrors images, ``inherited_images`` on how many of val
        accuracies inherited from a supernet are measured.
    """
    images = {split: batches.size(split) for split in get_args(SplitName)}
    found: dict[str, Any] = {
        "id": f"{batches.data_id}-{batches.fingerprint('val')}",
        **{f"{split}_images": count for split, count in images.items()},
        "num_classes": batches.info.num_classes,
        "guess_percent": guess_percent(batches.labels("val")),
        "mirrored": config.train.mirrors(batches.info.hflip),
    }
    if config.inherits:
        most = config.supernet.val_images
        found["inherited_images"] = min(images["val"], most or images["val"])
    return found


def _levit(network: Architecture) -> Levit:
    assert isinstance(network, Levit), "a supernet's space has no grafts"
    return network


def settled_on(target: str | None, settled_ms: dict[str, float]) -> dict[str, float]:
    """What was settled on one target, by id."""
    prefix = "" if target is None else f"{target}:"
    return {
        key.removeprefix(prefix): ms
        for key, ms in settled_ms.items()
        if key.startswith(prefix) and (":" in key) == (target is not None)
    }


def _refuse_emulated(device: dict[str, Any], config: LatencyConfig, section: str) -> None:
    """An emulator's timings say nothing of the device that it plays."""
    if device["emulated"] and not config.allow_emulated:
        raise InputError(
            f"{section}.target: {config.target.label} is emulated, and its timings are no "
            f"objective ({section}.allow_emulated: true takes them all the same)"
        )
