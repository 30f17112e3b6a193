"""One architecture to one evaluation, in the order cheap to dear.

What all evaluations share is made ready once, by :meth:`Evaluator.prepare`: workers that probe, the
data, the teacher, a supernet, the latency of the reference network, a latency predictor. Then each
network goes through three steps, of which a study has those that its objectives and limits name:

1. its latency: predicted, or measured. A network over the limit of ``latency_ms`` ends here;
2. its latency on further targets;
3. its accuracy: that which it inherits from the supernet, or that of a training, which a rung may
   end.

Parameters, FLOPs and activations are counted before, by the driver, in no time.

At the end of a search some are looked at again: :meth:`Evaluator.verify` takes the steps that an
estimate stood for, :meth:`Evaluator.remeasure` the first two, of several networks together.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypedDict, get_args

from torch import nn

from levit_search import baseline
from levit_search.architecture import Architecture, Levit, sizes_of
from levit_search.baseline import Baseline, BaselineConfig
from levit_search.batches import Batches, open_batches
from levit_search.data import SplitName
from levit_search.distill import TeacherAnswers, obtain_teacher
from levit_search.engine.tasks import Decide
from levit_search.errors import InputError, TrialError, refused_by_disk
from levit_search.files import remove_unfinished, user_cache, write_atomically
from levit_search.latency import LatencyConfig, Measurement, Probe
from levit_search.latency.host_lock import on_cores, while_no_probe_runs
from levit_search.latency.latency_model import LatencyModel
from levit_search.model import save_weights
from levit_search.pareto import PROBED, on_target
from levit_search.progress import Progress, within
from levit_search.recipe import Recipe, TeacherConfig
from levit_search.significance import guess_percent
from levit_search.study import StudyConfig, training_file
from levit_search.supernet import Supernet, obtain_supernet
from levit_search.train import (
    Checkpoint,
    Epoch,
    always,
    as_trial_errors,
    fit,
    fresh_network,
    seed_torch,
    training_id,
)


def goes_on(*_: object) -> bool:
    """Train every candidate to the end."""
    return True


@dataclass
class Evaluation:
    """What is found out about one network, filled in step by step.

    ``values`` holds the measured objectives by name. A network over the latency limit is not
    trained, and has no accuracy; one that was stopped at a rung has a learning curve up to there,
    and no accuracy either. One without a training has its accuracy from a supernet, also as
    ``top1_inherited_percent``.
    """

    values: dict[str, float] = field(default_factory=dict)
    latency: Mapping[str, object] | None = None
    training: Mapping[str, object] | None = None
    seconds: float = 0.0
    targets: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """Latencies on further targets, by name."""

    def as_json(self) -> Mapping[str, object]:
        return asdict(self)


class Prepared(TypedDict):
    """What is kept with a study of that which all evaluations share; empty where it has none."""

    settled_ms: dict[str, float]
    """The reference's latency by id, on further targets by ``TARGET:ID``."""
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
        self._config, self._folder, self._cores = config, folder, cores
        sections: list[tuple[str | None, LatencyConfig]] = [*config.also_measured.items()]
        if config.is_measured:
            sections.insert(0, (None, config.latency))
        self._stack = ExitStack()
        # By target, that of the study's own section, named None, first.
        self._probes = {
            target: self._stack.enter_context(Probe(section, settled_on(target, settled_ms)))
            for target, section in sections
        }
        self._teacher: TeacherAnswers | None = None
        self._latency_model: LatencyModel | None = None
        self._supernet: Supernet | None = None

    def close(self) -> None:
        """End the probes' workers."""
        self._stack.close()

    def prepare(self, sample: Architecture, progress: Progress) -> Prepared:
        """Load the data, obtain the teacher and settle the reference's latency on each target.

        ``sample`` is any network of the space; its image sizes are those of all.

        Raises:
            LevitSearchError: whatever keeps every candidate from being evaluated.
        """
        config = self._config
        prepared = Prepared(settled_ms={}, device={}, devices={}, data={}, teacher={}, supernet={})
        self._sizes = sizes_of(sample)
        for kept in ("latency", "teachers"):  # what killed writers left in the user's cache
            remove_unfinished(user_cache() / kept)
        for target, probe in self._probes.items():
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
        for target, probe in self._probes.items():
            if not probe.reference_ms:
                progress(f"timing the reference network{_on(target)}", None)
                probe.settle_reference(sample)
        if config.is_measured and config.latency.method == "predicted":
            progress("calibrating the latency predictor", None)
            file, seed = self._folder / "predictor.json", config.search.seed
            self._latency_model = LatencyModel(self._probes[None], config.space(), seed, file)
            self._latency_model.prepare(progress)
        for target, probe in self._probes.items():
            prefix = "" if target is None else f"{target}:"
            prepared["settled_ms"] |= {f"{prefix}{id}": ms for id, ms in probe.reference_ms.items()}
        return prepared

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
            if self._latency_model is not None:  # which stands for the measured one until verify()
                progress("predicting latency", None)
                predicted = self._latency_model.predict(network, progress)
                values["latency_ms"] = values["latency_predicted_ms"] = predicted.latency_ms
                found.latency = {"method": "predicted", **asdict(predicted)}
            elif config.is_measured:
                self._measure(None, network, found, progress)
            if self._is_too_slow(found):
                return found
            for target in config.also_measured:
                self._measure(target, network, found, progress)
            if config.inherits:  # which stands for its own until verify()
                assert self._supernet is not None
                progress("asking the supernet", None)
                with on_cores(self._cores):
                    inherited = self._supernet.top1_percent(_levit(network))
                values["top1_percent"] = values["top1_inherited_percent"] = inherited
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
            if self._latency_model is not None:
                self._measure(None, network, found, progress, "measuring what was predicted")
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
            for target in self._probes:
                self._measure(target, network, found, progress)
            if config.is_trained:

                def begun() -> nn.Module:
                    seed_torch(seed, 3)
                    return network.build_to_train(given.weights)

                run = training_id(given, config.train, seed, self._batches.data_id, None)
                run += (given.weights_sha256() or "")[:16]
                self._fit(given.id, run, begun, config.train, None, found, progress, decide)
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
            for target, probe in self._probes.items():
                text = f"measuring {len(networks)} networks together{_on(target)}"
                progress(text, None)

                def report(_: str, fraction: float | None, text: str = text) -> None:
                    progress(text, fraction)

                with probe.reporting(report):
                    measured = probe.measure_all(built, fresh=True)
                for place, each in enumerate(measured):
                    try:
                        if isinstance(each, TrialError):
                            raise each
                        self._keep(each, target, found[place], "-remeasured")
                    except TrialError as error:
                        errors[place] = error
            if len(errors) == len(networks):
                raise errors[0]
        for evaluation in found:
            evaluation.seconds = together.seconds
        return [errors.get(place) or evaluation for place, evaluation in enumerate(found)]

    def _measure(
        self,
        target: str | None,
        network: Architecture | Baseline,
        found: Evaluation,
        progress: Progress,
        text: str = "measuring latency",
    ) -> None:
        """Probe a network on one target; see :meth:`_keep`."""
        progress(f"{text}{_on(target)}", None)
        self._keep(self._probes[target].measure(network), target, found)

    def _keep(
        self, measured: Measurement, target: str | None, found: Evaluation, mark: str = ""
    ) -> None:
        """Note what was measured, and keep the raw samples with the study, in a file whose name
        ends in ``mark``.

        Raises:
            TrialError: the target does not tell an objective.
        """
        for figure in PROBED:
            value, name = getattr(measured, figure), on_target(figure, target)
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
        if target is None:
            found.latency = kept
        else:
            found.targets[target] = kept

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

        self._fit(network.id, run, begun, recipe, teacher, found, progress, decide)

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
    ) -> None:
        """Train a network to the end or to where it is stopped, and write its weights.

        Its checkpoint stays; whoever has written the result down removes it. Files go by ``name``,
        ``run`` is the identity of the training, and ``begun`` gives the network as that begins.
        """

        def decided(epoch: Epoch) -> bool:
            return decide(epoch.epoch, {**found.values, "top1_percent": epoch.val_top1_percent})

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
        if len(result.curve) == recipe.epochs:
            save_weights(model, weights)
            found.values["top1_percent"] = result.val_top1_percent
        else:
            weights.unlink(missing_ok=True)


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


def _on(target: str | None) -> str:
    """Where something is done, for people."""
    return "" if target is None else f" on {target}"


def settled_on(target: str | None, settled_ms: dict[str, float]) -> dict[str, float]:
    """What was settled on one target, by id."""
    prefix = "" if target is None else f"{target}:"
    return {
        key.removeprefix(prefix): ms
        for key, ms in settled_ms.items()
        if key.startswith(prefix) and (":" in key) == (target is not None)
    }
