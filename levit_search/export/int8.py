"""A network in int8: its graph beside the float one, finetuned where that is asked for, and what
int8 costs in accuracy and brings in time."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from levit_search.batches import Batches
from levit_search.configuration import validated
from levit_search.data import SplitName
from levit_search.errors import InputError, TrialError
from levit_search.export import verification
from levit_search.export.verification import INT8_GRAPH
from levit_search.latency import LatencyConfig, Probe
from levit_search.latency.targets import Int8Config, Int8Format, OperatorGroup, check_programs
from levit_search.model import Model, export_onnx, fold, set_layout
from levit_search.model.blocks import LinearNorm
from levit_search.model.quantization import (
    Images,
    OnnxNetwork,
    Quantized,
    calibration_images,
    quantize,
)
from levit_search.progress import Progress, within
from levit_search.recipe import Recipe
from levit_search.significance import wilson_percent
from levit_search.study import Record, Study, StudyConfig
from levit_search.train import fit, top1_percent

_SPLITS: tuple[SplitName, ...] = ("val", "test")


@dataclass(frozen=True)
class Quantization:
    """How a network in int8 is asked for.

    Args:
        changes: keys of :class:`levit_search.latency.targets.Int8Config` in place of the study's.
        finetune_epochs: to train with weights and activations rounded as int8 rounds them.
        max_drop: points of accuracy on val that int8 may lose, three images at least.
        allow_drop: take one that loses more.
    """

    changes: Mapping[str, Any] | None = None
    finetune_epochs: int = 0
    max_drop: float = 1.0
    allow_drop: bool = False

    def options(self) -> list[str]:
        """As the command line would be told it."""
        found = ["--also", "int8"]
        for key, value in (self.changes or {}).items():
            written = value if isinstance(value, str) else json.dumps(value)  # which is YAML
            found += ["--set", f"latency.int8.{key}={written}"]
        if self.finetune_epochs:
            found += ["--finetune-epochs", str(self.finetune_epochs)]
        if self.max_drop != Quantization.max_drop:
            found += ["--max-drop", f"{self.max_drop:g}"]
        if self.allow_drop:
            found.append("--allow-drop")
        return found


@dataclass(frozen=True)
class Finetuning:
    """What training in int8 came to."""

    epochs: int
    lr: float
    top1_percent: Mapping[str, float]
    """By split, in int8."""
    plain_top1_percent: Mapping[str, float]
    """The same without it."""

    @property
    def is_taken(self) -> bool:
        """Whether those weights are no worse on val."""
        return self.top1_percent["val"] >= self.plain_top1_percent["val"]


@dataclass(frozen=True)
class TimedInInt8:
    """The time of the int8 graph beside the float graph's, measured in pairs on one target."""

    target: str
    found: Mapping[str, Any] | None
    """See :class:`levit_search.latency.Measurement`; its reference is the float graph. None where
    nothing was measured."""
    reason: str | None = None
    """Why not."""

    @property
    def is_slower(self) -> bool:
        """Whether int8 is slower by more than the 95 % interval."""
        return self.found is not None and self.found["ratio_ci95"][0] > 1

    def compared(self) -> str:
        """What int8 brings, in words."""
        if self.found is None:
            return f"not measured: {self.reason}"
        low, high = self.found["ratio_ci95"]
        ratio = self.found["ratio_to_reference"]
        told = f"{ratio:.3f} x the time of model.onnx ({low:.3f} to {high:.3f} x)"
        if self.is_slower:
            return f"{told}: int8 is slower here"
        return told if high < 1 else f"{told}: int8 is not faster here"


@dataclass(frozen=True)
class InInt8:
    """What is known of an exported network in int8."""

    quantized: Quantized
    chosen: str
    """How its format was."""
    runtime: str
    """That its accuracies were measured with."""
    top1_percent: Mapping[str, float]
    """By split."""
    float_top1_percent: Mapping[str, float]
    images: Mapping[str, int]
    """Of which both are, by split."""
    float_bytes: int
    """Of the float graph's file."""
    logits_max_abs_diff: float
    """How far its logits are from the float network's, at most."""
    finetuning: Finetuning | None
    timed: Sequence[TimedInInt8]
    max_drop: float
    """What was allowed, see :class:`Quantization`."""

    def drop(self, split: str) -> float:
        """The points of accuracy that int8 loses."""
        return self.float_top1_percent[split] - self.top1_percent[split]

    @property
    def allowed_drop(self) -> float:
        """The points that it may lose on val; of few images three are no sign of anything."""
        return max(self.max_drop, 300 / self.images["val"])

    @property
    def too_large(self) -> str | None:
        """That int8 loses more than is allowed, in words; None where it does not."""
        if self.drop("val") <= self.allowed_drop + 1e-9:
            return None
        return (
            f"{INT8_GRAPH} loses {self.drop('val'):.2f} points on val "
            f"({self.float_top1_percent['val']:.2f} % in float, {self.top1_percent['val']:.2f} % "
            f"in int8; {self.allowed_drop:.4g} are allowed)"
        )

    @property
    def remedies(self) -> list[str]:
        """Options by which it may lose less, of those that were not given."""
        found = []
        if self.quantized.format.startswith("nncf"):
            found.append("--set latency.int8.format=u8")
        elif self.quantized.calibration != "percentile":
            found.append("--set latency.int8.calibration=percentile")
        return found if self.finetuning is not None else [*found, "--finetune-epochs 1"]

    def as_json(self) -> dict[str, Any]:
        tuned = self.finetuning
        return {
            **asdict(self),
            "top1_percent_ci95": {
                split: list(wilson_percent(percent, self.images[split]))
                for split, percent in self.top1_percent.items()
            },
            "drop_points": {split: self.drop(split) for split in self.top1_percent},
            "allowed_drop_points": self.allowed_drop,
            "too_large": self.too_large,
            "finetuning": tuned and {**asdict(tuned), "is_taken": tuned.is_taken},
            "timed": [
                {**asdict(each), "is_slower": each.is_slower, "compared": each.compared()}
                for each in self.timed
            ],
        }


def check_quantization(config: StudyConfig, record: Record, asked: Quantization) -> None:
    """Make sure that the network of a study can be had in int8 as asked.

    Raises:
        InputError: a key or value is wrong, or NNCF is asked for and not installed.
    """
    _, section = _place(config, record)
    how = _how(section, asked)
    if how.format.startswith("nncf") and find_spec("nncf") is None:
        raise InputError(
            f"latency.int8.format: {how.format}: nncf is not installed; pip install "
            "'levit-search[intel]'"
        )


def write_int8(
    folder: Path,
    study: Study,
    record: Record,
    network: Model,
    recipe: Recipe,
    batches: Batches,
    sample: verification.Sample,
    float_top1_percent: Mapping[str, float],
    asked: Quantization,
    probe: bool,
    progress: Progress,
) -> InInt8:
    """Write ``model.int8.onnx`` from ``model.onnx`` of an export, check it, and compare both.

    Args:
        folder: of the export.
        study: for how it quantizes, and the targets that it measured.
        record: of the network.
        network: with its trained weights.
        recipe: that it was trained by.
        batches: of the study's data.
        sample: on which files are compared.
        float_top1_percent: of the network in float, on val and test.
        asked: how.
        probe: whether anything may be timed.
        progress: told what is being done.

    Raises:
        InputError: the training split has fewer images than are asked for to calibrate on, or NNCF
            is asked for and not installed.
        TrialError: the network cannot be quantized or finetuned.
        LevitSearchError: the file cannot be read in a clean process.
    """
    target, section = _place(study.config, record)
    how = _how(section, asked)
    images = calibration_images(batches, how.images)
    chosen, reason = _chosen(study, record, target, section, how, asked, probe, progress)
    # As a search does it: a device elsewhere may not saturate where this one does.
    is_elsewhere = section.target.kind != "local" and section.runtime in _RUNTIMES
    is_here = section.runtime in _RUNTIMES and find_spec(section.runtime) is not None
    runtime = section.runtime if is_here and not is_elsewhere else "onnxruntime"
    graph, path = folder / "model.onnx", folder / INT8_GRAPH

    def written(source: Path, out: Path, what: str) -> tuple[Quantized, dict[str, float]]:
        progress(f"quantizing {what}", None)
        quantized = quantize(source, out, images, how, chosen)
        answering = OnnxNetwork(out, runtime, recipe.threads, exact=is_elsewhere)
        found: dict[str, float] = {}
        for split in _SPLITS:
            progress(f"measuring accuracy of {what} in int8 on {split}", None)
            found[split] = top1_percent(answering, batches, split)
        return quantized, found

    quantized, reached = written(graph, path, graph.name)
    tuned = None
    if asked.finetune_epochs:
        short = _finetuning(recipe, asked.finetune_epochs)
        seed = study.config.search.seed
        told = within("finetuning in int8", progress)
        better = _finetuned(network, batches, short, seed, images, how, chosen, told)
        with tempfile.TemporaryDirectory(prefix="levit-search-int8-") as place:
            source, out = Path(place) / graph.name, Path(place) / INT8_GRAPH
            set_layout(better, verification.graph_layout(study, record))
            metadata = {each.key: each.value for each in onnx.load(graph).metadata_props}
            export_onnx(better, source, None, metadata)
            requantized, then = written(source, out, "the finetuned network")
            tuned = Finetuning(asked.finetune_epochs, short.peak_lr, then, reached)
            if tuned.is_taken:
                quantized, reached, network = requantized, then, better
                shutil.copyfile(out, path)
    return InInt8(
        quantized=quantized,
        chosen=reason,
        runtime=f"{runtime}, operator by operator in float" if is_elsewhere else runtime,
        top1_percent=reached,
        float_top1_percent=dict(float_top1_percent),
        images={split: batches.size(split) for split in _SPLITS},
        float_bytes=graph.stat().st_size,
        logits_max_abs_diff=verification.compared_in_int8(folder, sample, progress),
        finetuning=tuned,
        timed=_timed(study, record, folder, progress) if probe else [],
        max_drop=asked.max_drop,
    )


# --- How it is quantized.

_RUNTIMES = ("onnxruntime", "openvino")


def _place(config: StudyConfig, record: Record) -> tuple[str | None, LatencyConfig]:
    """The target that the study has int8 of, or else the first that the network was measured on and
    that has int8, and its section; where there is none, the study's ``latency``."""
    if config.is_quantized:
        target = config.int8_targets[0]
        return target, config.int8_section(target)
    for each in verification.latencies(config, record):
        if each.config.runtime in _RUNTIMES:
            return each.target, each.config
    return None, config.latency


def _how(section: LatencyConfig, asked: Quantization) -> Int8Config:
    given = section.int8.model_dump(mode="json")
    return validated(Int8Config, {**given, **(asked.changes or {})}, "latency.int8")


def _chosen(
    study: Study,
    record: Record,
    target: str | None,
    section: LatencyConfig,
    how: Int8Config,
    asked: Quantization,
    probe: bool,
    progress: Progress,
) -> tuple[Int8Format, str]:
    """The format, and how it was chosen."""
    if how.format != "auto":
        is_asked = "format" in (asked.changes or {})
        return how.format, "asked for" if is_asked else "as the study says"
    settled = study.attributes().get("int8_formats", {}).get(target or "")
    is_others = str(settled).startswith("nncf") and how.calibration != "minmax"
    if settled in get_args(Int8Format) and not is_others:
        return settled, "the faster one when the study began"
    reason = "--no-probe" if not probe else _unmeasurable(study, record, target, section)
    if reason is None:
        assert record.architecture is not None
        told = within("choosing the format of int8", progress)
        timed = section.in_int8().model_copy(update={"int8": how})
        try:
            with Probe(timed, report=told) as started:
                found = started.settle_int8(record.architecture)
            return found, f"the faster one on {section.target.label}, measured now"
        except TrialError as error:
            reason = str(error)
    return "u8-reduced", f"right on every CPU; nothing was measured to choose it by ({reason})"


def _unmeasurable(
    study: Study, record: Record, target: str | None, section: LatencyConfig
) -> str | None:
    """Why int8 cannot be measured on a target of the study; None where it can."""
    if target not in {each.target for each in verification.latencies(study.config, record)}:
        return "the study has no latency of this network"
    if section.runtime not in _RUNTIMES:
        return f"runtime {section.runtime} has no int8; onnxruntime and openvino have, on CPUs"
    try:
        check_programs({"latency": section}, "study.yaml")
    except InputError as error:
        return str(error)
    return None


# --- What it takes.


def _timed(study: Study, record: Record, folder: Path, progress: Progress) -> list[TimedInInt8]:
    """Time the int8 graph in pairs with the float one, wherever the study has its latency."""
    found = []
    known = verification.latencies(study.config, record)
    for target, section in {each.target: each.config for each in known}.items():
        label = section.target.label
        reason = _unmeasurable(study, record, target, section)
        if reason is None:
            told = within(f"timing {INT8_GRAPH} beside model.onnx on {label}", progress)
            try:
                with Probe(section.in_int8(), report=told) as probe:
                    (measured,) = probe.time_graphs([folder / INT8_GRAPH], folder / "model.onnx")
                found.append(TimedInInt8(label, measured.as_json()))
                continue
            except TrialError as error:
                reason = str(error)
        found.append(TimedInInt8(label, None, reason))
    return found


# --- Finetuning.

_SLOWER = 10  # than the first training was
_OBSERVED = 32  # images at once
_TINY = 1e-12  # a scale, where all is zero


def _finetuning(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe of a network that is trained already: at a small learning rate, from the start.

    In bf16 there would be no more steps than in int8, and averages would hardly leave the first
    weights.
    """
    changes: dict[str, object] = {"epochs": epochs, "rungs": (), "warmup_epochs": 0.0}
    changes |= {"precision": "fp32", "compile": False, "ema_decay": None}
    changes |= {"lr": recipe.lr / _SLOWER, "min_lr": recipe.min_lr / _SLOWER}
    return recipe.model_copy(update=changes)


def _finetuned(
    network: Model,
    batches: Batches,
    recipe: Recipe,
    seed: int,
    images: Images,
    how: Int8Config,
    format: Int8Format,
    progress: Progress,
) -> Model:
    """A copy of a network, batch norms folded, that was trained with the roundings of int8.

    The inputs, weights and outputs of convolutions and linear layers are rounded, as far as these
    are quantized; gradients pass as if they were not (Bengio et al. 2013, Jacob et al. 2018).
    Activations have the ranges that they have on ``images`` before. Both heads learn from labels.

    Raises:
        TrialError: the training failed.
    """
    tuned = fold(network)
    set_layout(tuned, "tokens")
    with _rounded(tuned, torch.from_numpy(images), how, format):
        fit(tuned, batches, recipe, seed, progress=progress)
    return tuned.eval()


@contextmanager
def _rounded(
    network: Model, images: Tensor, how: Int8Config, format: Int8Format
) -> Iterator[list[nn.Module]]:
    """Round what layers take, multiply by and give, within the block; yields these layers.

    Args:
        network: in evaluation mode, batch norms folded.
        images: [N, C, H, W], by which it is known how large activations are.
        how: which layers.
        format: of int8.
    """
    layers: list[nn.Module] = []
    activations, hooks = [], []
    for parent in network.modules():
        for layer in parent.children():
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            group = _group(layer, parent)
            if group in how.float_operators:
                continue
            layers.append(layer)
            taken, given = _Activations(), _Activations(layer if group == "linear" else None)
            activations += [taken, given]
            hooks.append(layer.register_forward_pre_hook(lambda _, x, rounded=taken: rounded(*x)))
            hooks.append(layer.register_forward_hook(lambda *x, rounded=given: rounded(x[-1])))
    with torch.no_grad():
        for part in images.split(_OBSERVED):
            network(part.to(next(network.parameters()).device))
    for each in activations:
        each.is_observing = False
    for layer in layers:
        most = 64 if format.endswith("-reduced") else 127
        parametrize.register_parametrization(layer, "weight", _Weights(most))
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def _group(layer: nn.Conv2d | nn.Linear, parent: nn.Module) -> OperatorGroup:
    """As :func:`levit_search.model.quantization.operator_groups` has it."""
    if isinstance(layer, nn.Conv2d):
        return "stem" if max(layer.kernel_size) > 1 else "linear"
    return "linear" if isinstance(parent, LinearNorm) else "classifier"


class _Activations:
    """Rounds activations to 256 steps between the ends of what it observed before.

    Args:
        layer: whose product with its weights is rounded before its bias is added: a linear layer
            over tokens, of which an ONNX graph makes two operators.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear | None = None) -> None:
        self.is_observing = True
        self._layer = layer if isinstance(layer, nn.Linear) else None
        self._low = self._high = torch.zeros(())

    def __call__(self, x: Tensor) -> Tensor:
        if self._layer is not None:
            return self._rounded(x - self._layer.bias) + self._layer.bias
        return self._rounded(x)

    def _rounded(self, x: Tensor) -> Tensor:
        if self.is_observing:
            low, high = x.aminmax()
            self._low = torch.minimum(self._low.to(low.device), low)
            self._high = torch.maximum(self._high.to(high.device), high)
            return x
        scale = ((self._high - self._low) / 255).clamp(min=_TINY)
        zero = (-self._low / scale).round().int()
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


class _Weights(nn.Module):
    """Rounds weights [out, ...] to whole numbers, up to ``most`` of either sign, times the output
    channel's scale."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, weight: Tensor) -> Tensor:
        largest = weight.detach().flatten(1).abs().amax(1)
        scale = (largest / self.most).clamp(min=_TINY)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight, scale, zeros, 0, -self.most, self.most
        )
