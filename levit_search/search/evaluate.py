"""One architecture to one evaluation, in the order cheap to dear.

What all evaluations share is made ready once, by :meth:`Evaluator.prepare`: workers that probe, the
data, the teacher, a supernet, the latency of the reference network, a latency predictor. Then each
network goes through three steps, of which a study has those that its objectives and limits name:

1. its latency: predicted, or measured. A network over the limit of ``latency_ms`` ends here;
2. its latency in int8, and on further targets;
3. its accuracy: that which it inherits from the supernet, or that of a training, which a rung may
   end. A network that is trained to the end is quantized, and evaluated in int8, too.

Parameters, FLOPs and activations are counted before, by the driver, in no time.

At the end of a search some are looked at again: :meth:`Evaluator.verify` takes the steps that an
estimate stood for, :meth:`Evaluator.remeasure` the first two, of several networks together.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import cast, get_args

import numpy as np
from torch import nn

from levit_search import baseline
from levit_search.architecture import Architecture, Levit, sizes_of
from levit_search.baseline import Baseline, BaselineConfig
from levit_search.batches import Batches, open_batches
from levit_search.data import SplitName
from levit_search.distill import TeacherAnswers, obtain_teacher
from levit_search.engine.interface import Settled
from levit_search.engine.tasks import Decide
from levit_search.errors import InputError, TrialError, refused_by_disk
from levit_search.files import remove_unfinished, user_cache, write_atomically
from levit_search.image_size import image_shape
from levit_search.latency import Measurement, Probe
from levit_search.latency.host_lock import on_cores, while_no_probe_runs
from levit_search.latency.latency_model import LatencyModel
from levit_search.latency.targets import Precision
from levit_search.model import Model, build, export_onnx, save_weights, set_layout
from levit_search.model.quantization import (
    Images,
    OnnxNetwork,
    Quantized,
    calibration_images,
    quantized_network,
)
from levit_search.pareto import PAIRED, PROBED, Figure, on_target
from levit_search.progress import Progress, within
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.significance import guess_percent
from levit_search.study import StudyConfig, training_file
from levit_search.study.record import ESTIMATES, layout_of
from levit_search.supernet import Supernet, obtain_supernet
from levit_search.train import (
    Checkpoint,
    Epoch,
    always,
    as_trial_errors,
    fit,
    fresh_network,
    seed_torch,
    top1_percent,
    training_id,
)

ProbeKey = tuple[str | None, Precision]
"""A target's name, None being the study's own section, and the precision of networks there."""

WriteGraph = Callable[[Path], None]
"""Writes a network as a float ONNX graph."""


def goes_on(*_: object) -> bool:
    """Train every candidate to the end."""
    return True


@dataclass
class Evaluation:
    """What is found out about one network, filled in step by step.

    ``values`` holds the measured objectives by name. A network over the latency limit is not
    trained, and has no accuracy; one that was stopped at a rung has a learning curve up to there,
    and no accuracy either, in int8 neither. One without a training has its accuracy from a
    supernet, also as ``top1_inherited_percent``.
    """

    values: dict[str, float] = field(default_factory=dict)
    latency: Mapping[str, object] | None = None
    training: Mapping[str, object] | None = None
    seconds: float = 0.0
    targets: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """Latencies on further targets, by name."""
    int8: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """By figure in int8: of an accuracy a :class:`levit_search.model.quantization.Quantized` and
    the ``runtime``, of a latency its measurement."""

    def as_json(self) -> Mapping[str, object]:
        return asdict(self)


class Prepared(Settled):
    """What is kept with a study of that which all evaluations share; empty where it has none."""

    device: Mapping[str, object]
    """What that was measured on."""
    devices: dict[str, Mapping[str, object]]
    """Further ones by target."""
    data: Mapping[str, object]
    """What accuracies are measured on, see :func:`described_data`."""
    teacher: Mapping[str, object]
    """Its card."""
    supernet: Mapping[str, object]
    """Its card."""


@contextmanager
def _evaluation() -> Iterator[Evaluation]:
    """An evaluation to fill in. It takes as many seconds as the block; want of memory there is a
    TrialError."""
    start = time.perf_counter()
    found = Evaluation()
    with as_trial_errors():
        yield found
    found.seconds = round(time.perf_counter() - start, 3)


class Evaluator:
    """Evaluates one network after another with everything that they share kept at hand.

    Args:
        config: of the study.
        folder: of the study; trained weights and the teacher are kept below it.
        settled: what an earlier session, or another worker, has settled; it stays.
        cores: those that candidates are trained on; None for any. Probes may use all.
    """

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        settled: Settled,
        cores: frozenset[int] | None = None,
    ) -> None:
        self._config, self._folder, self._cores = config, folder, cores
        self._int8_formats = dict(settled.get("int8_formats", {}))
        self._stack = ExitStack()
        self._probes: dict[ProbeKey, Probe] = {}
        self._first_probes: dict[str | None, Probe] = {}  # those whose worker they have
        for (target, precision), section in config.probed.items():
            probe = Probe(
                section,
                settled_on(target, settled.get("settled_ms", {})),
                int8_format=self._int8_formats.get(target or ""),
                beside=self._first_probes.get(target),
            )
            self._probes[target, precision] = self._stack.enter_context(probe)
            self._first_probes.setdefault(target, probe)
        self._teacher: TeacherAnswers | None = None
        self._latency_models: dict[ProbeKey, LatencyModel] = {}
        self._supernet: Supernet | None = None

    def close(self) -> None:
        """End the probes' workers."""
        self._stack.close()

    def prepare(self, sample: Architecture, progress: Progress) -> Prepared:
        """Load the data, obtain the teacher, and settle the reference's latency and the format of
        int8 on each target.

        ``sample`` is any network of the space; its image sizes are those of all.

        Raises:
            LevitSearchError: whatever keeps every candidate from being evaluated.
        """
        config = self._config
        prepared = Prepared(
            settled_ms={},
            int8_formats={},
            device={},
            devices={},
            data={},
            teacher={},
            supernet={},
        )
        self._sizes = sizes_of(sample)
        for kept in ("latency", "teachers"):  # what killed writers left in the user's cache
            remove_unfinished(user_cache() / kept)
        for target, probe in self._first_probes.items():
            progress(f"starting the probe{_on(target)}", None)
            device = probe.connect()
            if target is None:
                prepared["device"] = device
            else:
                prepared["devices"][target] = device
            # An emulator's timings say nothing of the device that it plays.
            if device["emulated"] and not probe.config.allow_emulated:
                section = "latency" if target is None else f"targets.{target}"
                raise InputError(
                    f"{section}.target: {probe.config.target.label} is emulated, and its timings "
                    f"are no objective ({section}.allow_emulated: true takes them all the same)"
                )
        if config.is_trained:
            progress("loading data", None)
            self._batches = open_batches(config.data)
            prepared["data"] = described_data(self._batches, config)
            if config.is_quantized:
                asked = config.int8_section(config.int8_targets[0]).int8.images
                self._calibration = calibration_images(self._batches, asked)
            if config.teaching is not None:
                prepared["teacher"] = self._prepare_teacher(config.teaching, progress)
            if config.shares_weights:
                progress("preparing the supernet", None)
                epochs, answers = config.supernet.recipe(config.train).epochs, self._teacher
                self._supernet = obtain_supernet(
                    config,
                    self._batches,
                    lambda: answers.lasting(epochs) if answers is not None else None,
                    self._folder,
                    progress=within("training the supernet", progress),
                )
                prepared["supernet"] = self._supernet.summary()
        for target, probe in self._first_probes.items():
            if not probe.reference_ms:
                progress(f"timing the reference network{_on(target)}", None)
                probe.settle_reference(sample)
            prefix = "" if target is None else f"{target}:"
            prepared["settled_ms"] |= {f"{prefix}{id}": ms for id, ms in probe.reference_ms.items()}
        self._settle_int8(sample, progress)
        prepared["int8_formats"] = self._int8_formats
        for key, probe in self._probes.items():
            if probe.config.method == "predicted":
                progress(f"calibrating the latency predictor{_on(*key)}", None)
                name = "predictor-int8.json" if key[1] == "int8" else "predictor.json"
                model = LatencyModel(probe, config.space(), config.search.seed, self._folder / name)
                model.prepare(progress)
                self._latency_models[key] = model
        return prepared

    def _settle_int8(self, sample: Architecture, progress: Progress) -> None:
        """Choose what networks are quantized to, wherever that counts."""
        config = self._config
        targets = [target for target, precision in self._probes if precision == "int8"]
        if config.is_quantized and config.int8_targets[0] not in targets:
            targets.append(config.int8_targets[0])
        for target in targets:
            name = target or ""
            if name not in self._int8_formats:
                progress(f"choosing the format of int8{_on(target)}", None)
            with ExitStack() as stack:
                probe = self._probes.get((target, "int8"))
                if probe is None:  # of which the accuracies are wanted alone
                    section, format = config.int8_section(target), self._int8_formats.get(name)
                    probe = stack.enter_context(Probe(section, int8_format=format))
                self._int8_formats[name] = probe.settle_int8(sample)

    def _prepare_teacher(self, teacher: TeacherConfig, progress: Progress) -> Mapping[str, object]:
        """Obtain the teacher; returns its card."""
        if teacher.adapt == "own":
            raise InputError(
                "teacher.adapt: own is for `levit-search supernet --data generated`; candidates "
                "are taught the data's classes"
            )
        training, epochs = within("training the teacher", progress), teacher.recipe.epochs
        progress("preparing the teacher", None)
        self._teacher, card = obtain_teacher(
            teacher,
            self._config.data,
            self._batches,
            self._config.train,
            self._folder / "teacher",
            self._config.search.seed,
            lambda epoch: training(epoch.summary(), epoch.epoch / epochs),
            lambda text: progress(text, None),
            within("computing the teacher's features", progress),
        )
        return card

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
        config = self._config
        with _evaluation() as found:
            values = found.values
            for key in self._probes:
                if key in self._latency_models:  # which stands for the measured one until verify()
                    self._predict(key, network, found, progress)
                else:
                    self._measure(key, network, found, progress)
                if self._is_too_slow(found):
                    return found
            if "model_bytes" in config.objectives:
                self._count_bytes(partial(self._export, build(network), found), network, found)
            if config.inherits:  # which stands for its own until verify()
                assert self._supernet is not None
                progress("asking the supernet", None)
                with on_cores(self._cores):
                    inherited = self._supernet.top1_percent(_levit(network))
                values["top1_percent"] = values["top1_inherited_percent"] = inherited
                if config.is_quantized:
                    model = self._supernet.extracted(_levit(network))
                    write, most = partial(self._export, model, found), config.supernet.val_images
                    self._evaluate_int8(write, found, progress, most)
                    values[ESTIMATES["top1_int8_percent"]] = values["top1_int8_percent"]
            elif config.is_trained:
                self._train(network, found, progress, decide, taught)
        return found

    def verify(
        self, network: Architecture, progress: Progress, decide: Decide = goes_on
    ) -> Evaluation:
        """Measure a network whose latency was predicted, train one whose accuracy was inherited.

        Its training goes on from the checkpoint that an earlier session left.

        Raises:
            TrialError: the probe or the training failed.
        """
        with _evaluation() as found:
            for key in self._latency_models:
                self._measure(key, network, found, progress, "measuring what was predicted")
            if self._config.inherits and not self._is_too_slow(found):
                self._train(network, found, progress, decide, taught=True)
        return found

    def compare(
        self, given: BaselineConfig, progress: Progress, decide: Decide = goes_on
    ) -> Evaluation:
        """Count, measure and train a network of timm as candidates are; its weights are written.

        It is trained by the recipe of candidates to its end, without a teacher, and measured also
        where candidates' latencies are predicted, be it over a limit or not. It goes on from the
        checkpoint that an earlier session left.

        Returns:
            An evaluation whose values have ``params``, ``flops`` and ``activations``, too.

        Raises:
            TrialError: the probe or the training failed.
            InputError: its weights are not to be had.
        """
        config, seed = self._config, self._config.search.seed
        with _evaluation() as found:
            network = given.network(**self._sizes)
            progress("counting", None)
            with while_no_probe_runs():
                found.values.update(baseline.count(network).total._asdict())
            for key in self._probes:
                self._measure(key, network, found, progress)
            if "model_bytes" in config.objectives:
                write = partial(baseline.export_onnx, network, batch_size=1)
                self._count_bytes(write, network, found)
            if config.is_trained:

                def begun() -> nn.Module:
                    seed_torch(seed, 3)
                    return network.build_to_train(given.weights)

                run = training_id(given, config.train, seed, self._batches.data_id, None)
                run += (given.weights_sha256() or "")[:16]
                model = self._fit(given.id, run, begun, config.train, None, found, progress, decide)
                if model is not None and config.is_quantized:
                    write = partial(baseline.export_onnx, network, batch_size=1, trained=model)
                    self._evaluate_int8(write, found, progress)
        return found

    def remeasure(
        self, networks: Sequence[Architecture | BaselineConfig], progress: Progress
    ) -> list[Evaluation | TrialError]:
        """Measure networks anew and together, on every target on which the search measured them.

        Their rounds alternate in one session of each target's worker, so that all of them have the
        same minutes; nothing comes from the cache.

        Returns:
            In their order; of one that could not be measured why.

        Raises:
            TrialError: none could be measured.
        """
        built = [
            each.network(**self._sizes) if isinstance(each, BaselineConfig) else each
            for each in networks
        ]
        found = [Evaluation() for _ in networks]
        errors: dict[int, TrialError] = {}
        with _evaluation() as together:
            for key, probe in self._probes.items():
                text = f"measuring {len(networks)} networks together{_on(*key)}"
                progress(text, None)

                def report(_: str, fraction: float | None, text: str = text) -> None:
                    progress(text, fraction)

                with probe.reporting(report):
                    measured = probe.measure_all(built, fresh=True)
                for place, each in enumerate(measured):
                    try:
                        if isinstance(each, TrialError):
                            raise each
                        self._keep(each, key, found[place], "-remeasured")
                    except TrialError as error:
                        errors[place] = error
            if len(errors) == len(networks):
                raise errors[0]
        for evaluation in found:
            evaluation.seconds = together.seconds
        return [errors.get(place) or evaluation for place, evaluation in enumerate(found)]

    def _measure(
        self,
        key: ProbeKey,
        network: Architecture | Baseline,
        found: Evaluation,
        progress: Progress,
        text: str = "measuring latency",
    ) -> None:
        """Probe a network on one target, in one precision; see :meth:`_keep`."""
        progress(f"{text}{_on(*key)}", None)
        self._keep(self._probes[key].measure(network), key, found)

    def _predict(
        self, key: ProbeKey, network: Architecture, found: Evaluation, progress: Progress
    ) -> None:
        """Note the latency of a network as its blocks tell it."""
        progress(f"predicting latency{_on(*key)}", None)
        predicted = self._latency_models[key].predict(network, progress)
        latency = {"method": "predicted", **asdict(predicted)}
        for figure in self._figures(key):
            if figure in PAIRED:
                found.values[figure] = found.values[ESTIMATES[figure]] = predicted.latency_ms
                self._put(latency, figure, key, found)

    def _figures(self, key: ProbeKey) -> list[Figure]:
        """What the study has of a probe."""
        target, precision = key
        section = self._config.latency if target is None else self._config.targets[target]
        found: list[Figure] = []
        if precision == section.precision:
            found += [figure for figure in PROBED if figure != "latency_int8_ms"]
        if precision == "int8" and on_target("latency_int8_ms", target) in self._config.objectives:
            found.append("latency_int8_ms")
        return found

    def _put(
        self, latency: Mapping[str, object], figure: Figure, key: ProbeKey, found: Evaluation
    ) -> None:
        target, _ = key
        if figure == "latency_int8_ms":
            found.int8[on_target(figure, target)] = latency
        elif target is None:
            found.latency = latency
        else:
            found.targets[target] = latency

    def _keep(
        self, measured: Measurement, key: ProbeKey, found: Evaluation, mark: str = ""
    ) -> None:
        """Note what was measured, and keep the raw samples with the study, in a file whose name
        ends in ``mark``.

        Raises:
            TrialError: the target does not tell an objective.
        """
        target, _ = key
        for figure in self._figures(key):
            name = on_target(figure, target)
            value = measured.latency_ms if figure in PAIRED else getattr(measured, figure)
            if value is not None:
                found.values[name] = value
            elif name in self._config.objectives:
                raise TrialError(f"{measured.target} does not tell {name}")
        assert measured.samples_file is not None
        source = Path(measured.samples_file)
        folder = self._folder / "latency"
        folder.mkdir(exist_ok=True)
        file = f"{source.stem}{mark}{source.suffix}"
        write_atomically(folder / file, source.read_bytes())
        kept = replace(measured, samples_file=f"latency/{file}").as_json()
        for figure in self._figures(key):
            if figure in PAIRED:
                self._put(kept, figure, key, found)

    def _is_too_slow(self, found: Evaluation) -> bool:
        limit_ms = self._config.limits.latency_ms
        return limit_ms is not None and found.values.get("latency_ms", 0.0) > limit_ms

    def _train(
        self,
        network: Architecture,
        found: Evaluation,
        progress: Progress,
        decide: Decide,
        taught: bool,
    ) -> None:
        """Train a network of the space from fresh weights, or from its part of the supernet."""
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

        model = self._fit(network.id, run, begun, recipe, teacher, found, progress, decide)
        if model is not None and config.is_quantized:
            self._evaluate_int8(partial(self._export, cast(Model, model), found), found, progress)

    def _fit(
        self,
        name: str,
        run: str,
        begun: Callable[[], nn.Module],
        recipe: Recipe,
        teacher: TeacherAnswers | None,
        found: Evaluation,
        progress: Progress,
        decide: Decide,
    ) -> nn.Module | None:
        """Train a network to the end or to where it is stopped, and write its weights.

        Its checkpoint stays; whoever has written the result down removes it. Files go by ``name``,
        ``run`` is the identity of the training, and ``begun`` gives the network as that begins.

        Returns:
            The trained network; None where it was stopped.
        """

        def decided(epoch: Epoch) -> bool:
            known = {**found.values, "top1_percent": epoch.val_top1_percent}
            if self._config.is_quantized:  # whose accuracy in int8 is known in the end alone
                known["top1_int8_percent"] = epoch.val_top1_percent
            return decide(epoch.epoch, known)

        is_asked = self._config.search.reduction is not None or self._config.inherits
        progress("training", 0.0)
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
                    checkpoint=checkpoint,
                    progress=within("training", progress),
                    decide=decided if is_asked else always,
                )
        except TrialError as error:
            if refused_by_disk(error) is None:
                checkpoint.remove()
            raise
        found.training = result.as_json()
        weights = folder / f"{name}.safetensors"
        if len(result.curve) < recipe.epochs:
            weights.unlink(missing_ok=True)
            return None
        save_weights(model, weights)
        found.values["top1_percent"] = result.val_top1_percent
        return model

    def _export(self, model: Model, found: Evaluation, path: Path) -> None:
        """Write a network in the layout that is measured, or that was the faster one there."""
        known = {"latency": found.latency, "int8": found.int8}
        set_layout(model, layout_of(self._config, known))
        export_onnx(model, path, None)

    def _count_bytes(
        self, write: WriteGraph, network: Architecture | Baseline, found: Evaluation
    ) -> None:
        """Note the size of a network's ONNX file, which does not depend on the weights."""
        if self._config.is_quantized:
            noise = np.random.default_rng(0).standard_normal((2, *image_shape(network)))
            _, quantized = self._in_int8(write, noise.astype(np.float32))
            found.values["model_bytes"] = quantized.bytes
            return
        with tempfile.TemporaryDirectory(prefix="levit-search-bytes-") as folder:
            graph = Path(folder) / "model.onnx"
            with while_no_probe_runs():
                write(graph)
            found.values["model_bytes"] = graph.stat().st_size

    def _evaluate_int8(
        self, write: WriteGraph, found: Evaluation, progress: Progress, most: int | None = None
    ) -> None:
        """Quantize a network, and note its accuracy on ``val`` in int8 and the size of its file.

        Args:
            write: writes it in float.
            most: so many images of ``val`` are looked at; None for all.
        """
        progress("evaluating in int8", None)
        with on_cores(self._cores):
            network, quantized = self._in_int8(write, self._calibration)
            percent = top1_percent(network, self._batches, "val", most)
        found.values |= {"top1_int8_percent": percent, "model_bytes": quantized.bytes}
        section = self._config.int8_section(self._config.int8_targets[0])
        runtime = section.runtime if section.target.kind == "local" else "onnxruntime"
        found.int8["top1_int8_percent"] = {**asdict(quantized), "runtime": runtime}

    def _in_int8(self, write: WriteGraph, images: Images) -> tuple[OnnxNetwork, Quantized]:
        """What ``write`` writes in float, quantized."""
        target, threads = self._config.int8_targets[0], self._config.train.threads
        section, format = self._config.int8_section(target), self._int8_formats[target or ""]
        return quantized_network(write, images, section, format, threads)


def described_data(batches: Batches, config: StudyConfig) -> Mapping[str, object]:
    """What accuracies are measured on.

    Returns:
        ``{id, train_images, val_images, test_images, num_classes, guess_percent, mirrored,
        inherited_images?}``. ``id`` changes with the images that a search sees, those of train and
        val. ``guess_percent`` is the accuracy on val of always answering its largest class,
        ``mirrored`` whether training mirrors images, ``inherited_images`` on how many of val
        accuracies inherited from a supernet are measured.
    """
    images = {split: batches.size(split) for split in get_args(SplitName)}
    found = {
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


def _on(target: str | None, precision: Precision | None = None) -> str:
    """Where something is done, for people, and in int8 where it is."""
    in_int8 = " in int8" if precision == "int8" else ""
    return in_int8 if target is None else f" on {target}{in_int8}"


def settled_on(target: str | None, settled_ms: dict[str, float]) -> dict[str, float]:
    """What was settled on one target, by id."""
    prefix = "" if target is None else f"{target}:"
    return {
        key.removeprefix(prefix): ms
        for key, ms in settled_ms.items()
        if key.startswith(prefix) and (":" in key) == (target is not None)
    }
