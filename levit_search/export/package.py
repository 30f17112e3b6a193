"""A network of a study chosen, written as a folder, checked, and timed again."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from levit_search import data
from levit_search.batches import open_batches
from levit_search.drawing import diagram
from levit_search.errors import InputError, LevitSearchError, UnknownNameError, writing
from levit_search.export import formats, module, verification
from levit_search.export.card import Facts, model_card
from levit_search.export.formats import Preprocessing, preprocessing
from levit_search.export.int8 import Quantization, check_quantization, write_int8
from levit_search.export.retraining import (
    Retrained,
    Retraining,
    check_images,
    config_for,
    retrained,
)
from levit_search.export.timm_checkpoint import TimmCheckpoint, timm_checkpoint
from levit_search.files import named_in_utf_8, write_atomically
from levit_search.model import Model, build, load_weights, save_weights, set_layout
from levit_search.progress import Progress, no_progress
from levit_search.significance import (
    accuracy_text,
    guess_percent,
    is_better_than_guessing,
    judged,
    wilson_percent,
)
from levit_search.study import Record, Study, StudyConfig
from levit_search.train import device_of, top1_percent

ALSO = ("openvino", "torch-export", "int8")
"""Files that are written when they are asked for."""

_SHARED = "from levit_search.data.decoding import MOST_BYTES, Decoding, decoded, middle, opened\n"


def predict_source() -> str:
    """The text of ``predict.py``, with that of the module that decodes pictures in it."""
    own = Path(__file__).with_name("predict.py").read_text(encoding="utf-8")
    before, after = own.split(_SHARED)
    decoding = Path(data.decoding.__file__).read_text(encoding="utf-8")
    body = decoding.partition("from __future__ import annotations\n")[2].strip()
    lines = before.splitlines(keepends=True)[:-1]  # without what is said of that line
    return f"{''.join(lines)}{body}\n{after}"


@dataclass(frozen=True)
class ExportOptions:
    """What else an export is asked for."""

    retraining: Retraining | None = None
    """Train the network again, and export those weights."""
    also: Sequence[str] = ()
    """Some of :data:`ALSO`."""
    probe: bool = True
    """Time the exported graph again on the study's targets."""
    force: bool = False
    """Write into a folder that is not empty."""
    quantization: Quantization = field(default_factory=Quantization)
    """How, with ``int8`` in ``also``."""


@dataclass(frozen=True)
class Export:
    """What was written, how far each file's logits are from the trained network's, and how good
    and how fast it is."""

    dir: str
    files: list[str]
    parity_max_abs_diff: float
    """The largest of ``parity``."""
    latency_ms: float | None
    """As the study has it."""
    parity: dict[str, float] = field(default_factory=dict)
    """By file."""
    val_top1_percent: float | None = None
    test_top1_percent: float | None = None
    probed_again: list[dict[str, Any]] = field(default_factory=list)
    """By target; see :class:`levit_search.export.verification.Remeasurement`."""
    retrained: dict[str, Any] | None = None
    timm: str | None = None
    """The name of timm's network; None where timm has none."""
    val_images: int | None = None
    test_images: int | None = None
    val_top1_percent_ci95: list[float] | None = None
    test_top1_percent_ci95: list[float] | None = None
    notice: str | None = None
    """That the weights are no better than guessing, or no network of the search was."""
    int8: dict[str, Any] | None = None
    """See :class:`levit_search.export.int8.InInt8`."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def default_folder(study: Study, record: Record, options: ExportOptions) -> Path:
    """Where an export goes that is told no place: ``export/ID`` in the study's folder."""
    assert record.architecture is not None
    name, again = record.architecture.id, options.retraining
    return study.folder / "export" / (f"{name}-{again.epochs}-epochs" if again else name)


def export(
    study: Study,
    record: Record,
    out: Path,
    choice: str,
    options: ExportOptions | None = None,
    progress: Progress = no_progress,
) -> Export:
    """Write the network of ``record`` into ``out``, check what was written and time it again.

    Everything is written and checked in a hidden folder first, then put in place.

    Args:
        study: with the trained weights.
        record: of the network.
        out: a folder that is not there, or empty unless ``options.force`` is set.
        choice: how the record was picked, for the model card.
        options: what else is asked for.
        progress: told what is being done.

    Raises:
        InputError: ``out`` is not empty and ``options.force`` is not set, something that is asked
            for is wrong, or the trial's weights are gone. Nothing was written.
        LevitSearchError: a written file is not the trained network, or the network cannot be
            quantized, and nothing was written; or its latency is not that of the study, or int8
            loses more accuracy than is allowed, and all is there.
    """
    options = options or ExportOptions()
    network, config, found = record.architecture, study.config, None
    _check_out(out, options.force)
    for each in options.also:
        if each not in ALSO:
            raise UnknownNameError("file to export", each, ALSO)
    if "openvino" in options.also and find_spec("openvino") is None:
        raise InputError(
            "--also openvino: openvino is not installed; pip install 'levit-search[intel]'"
        )
    if network is None:
        raise InputError(f"{study.folder}: trial {record.trial} proposed no valid network")
    if "int8" in options.also:
        check_quantization(config, record, options.quantization)
    if options.retraining is not None:
        config = config_for(study, options.retraining)
        weights, found = retrained(study, network, config, options.retraining.seeds, progress)
    else:
        weights = study.weights_of(record)
    target = out.resolve()  # a link stays one
    # A folder that is there may be a mount, or the only place that may be written to.
    place = target if target.is_dir() else target.parent
    with writing(out):
        place.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=place, prefix=".levit-search-"))
    try:
        with writing(out):
            with named_in_utf_8(staging) as reached:
                facts = _write(
                    reached, study, record, choice, options, config, weights, found, progress
                )
            _check_out(out, options.force, staging.name)  # hours may have passed
            _put_in_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _check_figures(out, facts, options)
    (val, val_images), (test, test_images) = facts.accuracies["val"], facts.accuracies["test"]
    return Export(
        dir=str(out),
        files=["README.md", *facts.files],
        parity_max_abs_diff=max(facts.parity.values()),
        latency_ms=record.values.get("latency_ms"),
        parity=dict(facts.parity),
        val_top1_percent=val,
        test_top1_percent=test,
        probed_again=[each.as_json() for each in facts.again],
        retrained=asdict(found) if found is not None else None,
        timm=None if isinstance(facts.timm, str) else facts.timm.name,
        val_images=val_images,
        test_images=test_images,
        val_top1_percent_ci95=list(wilson_percent(val, val_images)),
        test_top1_percent_ci95=list(wilson_percent(test, test_images)),
        notice=facts.notice,
        int8=facts.int8.as_json() if facts.int8 is not None else None,
    )


def _check_figures(out: Path, facts: Facts, options: ExportOptions) -> None:
    """Say of an export that is written what is not as it should be.

    Raises:
        LevitSearchError: a graph is not as fast as the study says, or int8 loses too much.
    """
    found, apart = [], [each for each in facts.again if not each.agrees]
    if apart:
        told = "; ".join(f"{each.figure} {each.compared()}" for each in apart)
        found.append(
            f"{' and '.join(dict.fromkeys(each.timed for each in apart))} is not as fast as the "
            f"study says ({told}); README.md has both figures. On a busy machine export again."
        )
    if facts.int8 is not None and facts.int8.too_large and not options.quantization.allow_drop:
        helps = f"{' or '.join(facts.int8.remedies)} may help, " if facts.int8.remedies else ""
        found.append(f"{facts.int8.too_large}; {helps}--allow-drop takes it.")
    if found:
        raise LevitSearchError(
            f"{out}: the network is written and its logits agree, but {' And '.join(found)}"
        )


def _check_out(out: Path, force: bool, staging: str | None = None) -> None:
    """Refuse a folder with files, but for ``staging``, and what is not an export's in any case."""
    if not out.is_dir():
        if out.exists():
            raise InputError(f"{out}: is a file; choose another --out")
        return
    try:
        names = {path.name for path in out.iterdir()} - {staging}
    except OSError as error:
        raise InputError(f"{out}: cannot be read ({error.strerror or error})") from None
    if names and not force:
        raise InputError(f"{out}: is not empty; choose another --out, or --force to write over it")
    for path in map(out.joinpath, _NAMES):
        if path.is_dir() and not path.is_symlink():
            inside = {each.name for each in path.iterdir()}
            if path.name != "timm" or not inside <= {"config.json", "model.safetensors"}:
                raise InputError(f"{path}: is a folder that no export made; choose another --out")


def _write(
    folder: Path,
    study: Study,
    record: Record,
    choice: str,
    options: ExportOptions,
    config: StudyConfig,
    weights: Path,
    found: Retrained | None,
    progress: Progress,
) -> Facts:
    """Write everything into an empty folder, its card last, and check it.

    ``weights`` were trained with ``config``; ``found`` is what came of training again.
    """
    network = record.architecture
    assert network is not None
    progress("loading data", None)
    batches = open_batches(config.data)
    check_images(network, batches.info)
    model = build(network).eval()
    load_weights(model, weights)
    prepared = preprocessing(config.data, batches)
    timm = _write_files(folder, model, prepared, study, record, options.also, progress)
    readable = [name for name in verification.READABLE if (folder / name).exists()]
    sample = verification.sample_of(model, batches)
    parity = verification.compared(folder, readable, sample, progress)
    model.to(device_of(config.train))
    accuracies = {}
    for split in ("val", "test"):
        progress(f"measuring accuracy on {split}", None)
        accuracies[split] = top1_percent(model, batches, split), batches.size(split)
    _check_data(record, found, *accuracies["val"])
    verdict = judged(study.records(), study.attributes(), study.config)
    told = []
    (percent, images), guess = accuracies["test"], guess_percent(batches.labels("test"))
    if not is_better_than_guessing(percent, images, guess):
        told.append(
            f"These weights are no better than guessing, as far as {images:,} images of test "
            f"tell: {accuracy_text(percent, images)}, always answering the largest class gives "
            f"{guess:.2f} %."
        )
    if found is None and verdict.kind == "guessing":
        told.append(f"Of the search: {verdict.text}")
    if told:
        warnings.warn(" ".join(told), stacklevel=2)
    int8 = None
    if "int8" in options.also:
        recipe = config.train if found is not None else config.candidate_recipe
        percents = {split: percent for split, (percent, _) in accuracies.items()}
        given = folder, study, record, model, recipe, batches, sample, percents
        int8 = write_int8(*given, options.quantization, options.probe, progress)
    graph, format = folder / "model.onnx", int8.quantized.format if int8 is not None else None
    is_other = "float_operators" in (options.quantization.changes or {})
    timed = study, record, graph, progress, format, is_other
    again = verification.remeasured(*timed) if options.probe else []
    facts = Facts(
        study=study,
        record=record,
        choice=choice,
        preprocessing=prepared,
        accuracies=accuracies,
        verdict=verdict,
        notice=" ".join(told) or None,
        retrained=found,
        retraining=options.retraining,
        parity=parity,
        again=again,
        int8=int8,
        quantization=options.quantization,
        timm=timm,
        config=config,
        files=sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()),
    )
    write_atomically(folder / "README.md", model_card(facts))
    return facts


def _write_files(
    folder: Path,
    model: Model,
    prepared: Preprocessing,
    study: Study,
    record: Record,
    also: Sequence[str],
    progress: Progress,
) -> TimmCheckpoint | str:
    """Write all but the card; returns what timm was given, or why it has no such network."""
    network = model.architecture
    progress("writing the network", None)
    described = network.to_yaml()
    title = f"{study.config.name} {network.id}"
    for name, content in {
        "architecture.yaml": described,
        "architecture.svg": diagram.svg(network, title),
        "model.py": module.module_source(network, prepared["class_names"]),
        "preprocess.json": json.dumps(prepared, indent=2) + "\n",
        "predict.py": predict_source(),
    }.items():
        write_atomically(folder / name, content)
    save_weights(model, folder / "model.safetensors")
    timm: TimmCheckpoint | str
    try:
        timm = timm_checkpoint(model, prepared)
        timm.write(folder / "timm")
    except InputError as error:
        timm = str(error)
    progress("writing model.onnx", None)
    set_layout(model, verification.graph_layout(study, record))
    graph = folder / "model.onnx"
    formats.write_onnx(model, graph, prepared, {"architecture": described})
    set_layout(model, "tokens")
    if "openvino" in also:
        progress("writing model.openvino.xml", None)
        formats.write_openvino(graph, folder / "model.openvino.xml")
    if "torch-export" in also:
        progress("writing model.pt2", None)
        formats.write_torch_export(model, folder / "model.pt2")
    return timm


def _check_data(
    record: Record, found: Retrained | None, val_top1_percent: float, images: int
) -> None:
    """The same weights have the same accuracy, unless the images or their classes are others."""
    before = record.values.get("top1_percent")
    if found is not None:
        before = found.val_top1_percent[found.seeds.index(found.seed)]
    rounding = max(1.0, 300 / images)  # another device or precision; of three images at least
    if before is not None and abs(val_top1_percent - before) > rounding:
        raise LevitSearchError(
            f"the weights have {val_top1_percent:.2f} % on val, and had {before:.2f} % once "
            "trained: the images of the study, or their classes, are others now; nothing was "
            "written"
        )


def _put_in_place(staging: Path, out: Path) -> None:
    """Move what was written; in a folder with files, what an earlier export left is replaced."""
    if not out.exists():
        staging.chmod(0o755)  # temporary folders are their owner's alone
        staging.replace(out)
        return
    for name in _NAMES:
        old, new = out / name, staging / name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        if new.exists():
            new.replace(old)
        else:
            old.unlink(missing_ok=True)


_NAMES = (
    "README.md",
    "architecture.svg",
    "architecture.yaml",
    "model.int8.onnx",
    "model.onnx",
    "model.openvino.bin",
    "model.openvino.xml",
    "model.pt2",
    "model.py",
    "model.safetensors",
    "predict.py",
    "preprocess.json",
    "timm",
)
"""All that an export may write."""
