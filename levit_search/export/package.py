"""A chosen network written as a folder, checked, and timed again."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from levit_search import data
from levit_search.architecture import Architecture
from levit_search.errors import InputError, LevitSearchError, UnknownNameError
from levit_search.export.retraining import (
    Retrained,
    Retraining,
    check_images,
    config_for,
    retrained,
)
from levit_search.files import named_in_utf_8, write_atomically
from levit_search.progress import Progress, no_progress
from levit_search.proportion import (
    accuracy_text,
    guess_percent,
    is_better_than_guessing,
    wilson_percent,
)
from levit_search.significance import Verdict, judged
from levit_search.study import Record, Study, StudyConfig

if TYPE_CHECKING:
    from levit_search.batches import Batches
    from levit_search.export.probing import Again
    from levit_search.model import Model

Also = Literal["openvino", "torch-export"]
"""Files that are written when they are asked for."""

ALSO: tuple[Also, ...] = get_args(Also)

_PREDICT = Path(__file__).with_name("predict.py")
_SHARED = "from levit_search.data.decoding import MOST_BYTES, Decoding, decoded, middle, opened\n"


def predict_source() -> str:
    """The text of ``predict.py``, with that of the module that decodes pictures in it."""
    before, after = _PREDICT.read_text(encoding="utf-8").split(_SHARED)
    decoding = Path(data.decoding.__file__).read_text(encoding="utf-8")
    body = decoding.partition("from __future__ import annotations\n")[2].strip()
    lines = before.splitlines(keepends=True)[:-1]  # without what is said of that line
    return f"{''.join(lines)}{body}\n{after}"


@dataclass(frozen=True)
class Wishes:
    """What else an export is asked for."""

    retraining: Retraining | None = None
    """Train the network again, and export those weights."""
    also: Sequence[str] = ()
    """Some of :data:`ALSO`."""
    probe: bool = True
    """Time the exported graph again on the study's targets."""
    force: bool = False
    """Write into a folder that is not empty."""


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
    """By target; see :class:`levit_search.export.probing.Again`."""
    retrained: dict[str, Any] | None = None
    timm: str | None = None
    """The name of timm's network; None where timm has none."""
    val_images: int | None = None
    test_images: int | None = None
    val_top1_percent_ci95: list[float] | None = None
    test_top1_percent_ci95: list[float] | None = None
    notice: str | None = None
    """That the weights are no better than guessing, or no network of the search was."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def default_folder(study: Study, record: Record, wishes: Wishes) -> Path:
    """Where an export goes that is told no place: ``export/ID`` in the study's folder."""
    assert record.architecture is not None
    name, again = record.architecture.id, wishes.retraining
    return study.folder / "export" / (f"{name}-{again.epochs}-epochs" if again else name)


def export(
    study: Study,
    record: Record,
    out: Path,
    choice: str,
    wishes: Wishes | None = None,
    progress: Progress = no_progress,
) -> Export:
    """Write the network of ``record`` into ``out``, check what was written and time it again.

    Everything is written and checked in a hidden folder first, then put in place.

    Args:
        study: with the trained weights.
        record: of the network.
        out: a folder that is not there, or empty unless ``wishes.force`` is set.
        choice: how the record was picked, for the model card.
        wishes: what else is asked for.
        progress: told what is being done.

    Raises:
        InputError: ``out`` is not empty and ``wishes.force`` is not set, something that is asked
            for is wrong, or the trial's weights are gone. Nothing was written.
        LevitSearchError: a written file is not the trained network, and nothing was written; or
            its latency is not that of the study, and all is there.
    """
    wishes = wishes or Wishes()
    network = record.architecture
    _check_out(out, wishes.force)
    _check_wishes(wishes)
    if network is None:
        raise InputError(f"{study.folder}: trial {record.trial} proposed no valid network")
    config, found = study.config, None
    if wishes.retraining is not None:
        config = config_for(study, wishes.retraining)
        weights, found = retrained(study, network, config, wishes.retraining.seeds, progress)
    else:
        weights = study.weights_of(record)
    target = out.resolve()  # a link stays one
    # A folder that is there may be a mount, or the only place that may be written to.
    place = target if target.is_dir() else target.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=place, prefix=".levit-search-"))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    try:
        work = _Work(study, record, network, config, found, weights, choice, wishes, progress)
        with named_in_utf_8(staging) as reached:
            written, again = work.written(reached, out)
        _check_out(out, wishes.force, staging.name)  # hours may have passed
        _put_in_place(staging, target)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _check_latencies(out, again)
    return written


def _check_out(out: Path, force: bool, staging: str | None = None) -> None:
    """Refuse a folder with files, but for ``staging``, and what is not an export's in any case."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")
    if not out.is_dir():
        return
    try:
        names = {path.name for path in out.iterdir()} - {staging}
    except OSError as error:
        raise InputError(f"{out}: cannot be read ({error.strerror or error})") from None
    if names and not force:
        raise InputError(f"{out}: is not empty; choose another --out, or --force to write over it")
    for name in _NAMES:
        path = out / name
        if path.is_dir() and not path.is_symlink() and not _is_timm_checkpoint(path):
            raise InputError(f"{path}: is a folder that no export made; choose another --out")


def _is_timm_checkpoint(folder: Path) -> bool:
    """Whether there is nothing in a folder but what an export writes into ``timm``."""
    inside = {path.name for path in folder.iterdir()}
    return folder.name == "timm" and inside <= {"config.json", "model.safetensors"}


def _check_wishes(wishes: Wishes) -> None:
    for each in wishes.also:
        if each not in ALSO:
            raise UnknownNameError("file to export", each, ALSO)
    if "openvino" in wishes.also:
        from importlib.util import find_spec

        if find_spec("openvino") is None:
            raise InputError(
                "--also openvino: openvino is not installed; pip install 'levit-search[intel]'"
            )


def _check_latencies(out: Path, again: "Sequence[Again]") -> None:
    apart = [each for each in again if not each.agrees]
    if apart:
        told = "; ".join(f"{each.figure} {each.compared()}" for each in apart)
        raise LevitSearchError(
            f"{out}: the network is written and its logits agree, but model.onnx is not as fast as "
            f"the study says ({told}); README.md has both figures. On a busy machine export again."
        )


@dataclass(frozen=True)
class _Work:
    """One export."""

    study: Study
    record: Record
    network: Architecture
    config: StudyConfig
    """That the weights were trained with."""
    retrained: Retrained | None
    weights: Path
    choice: str
    wishes: Wishes
    progress: Progress

    def written(self, folder: Path, out: Path) -> "tuple[Export, Sequence[Again]]":
        """Write everything into ``folder``, which will be ``out``."""
        from levit_search.batches import open_batches
        from levit_search.export import checks
        from levit_search.export.card import Facts, model_card
        from levit_search.export.preprocess import preprocessing
        from levit_search.export.probing import probed_again
        from levit_search.model import build, load_weights

        self.progress("loading data", None)
        batches = open_batches(self.config.data)
        check_images(self.network, batches.info)
        model = build(self.network)
        load_weights(model, self.weights)
        prepared = preprocessing(self.config.data, batches)
        timm = self._write_files(folder, model.eval(), prepared)
        readable = [name for name in checks.READABLE if (folder / name).exists()]
        parity = checks.compared(folder, readable, checks.sample_of(model, batches), self.progress)
        accuracies = self._accuracies(model, batches)
        self._check_data(*accuracies["val"])
        verdict = judged(self.study.records(), self.study.attributes(), self.study.config)
        notice = self._notice(verdict, *accuracies["test"], guess_percent(batches.labels("test")))
        if notice is not None:
            warnings.warn(notice, stacklevel=2)
        again: Sequence[Again] = ()
        if self.wishes.probe:
            graph = folder / "model.onnx"
            again = probed_again(self.study, self.record, graph, self.progress)
        names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
        facts = Facts(
            self.study,
            self.record,
            self.choice,
            prepared,
            accuracies,
            verdict.by_trial.get(self.record.trial),
            notice,
            self.retrained,
            self.wishes.retraining,
            parity,
            again,
            timm,
            self.config,
            names,
            {
                each.config.id: (each, verdict.by_baseline.get(each.config.id))
                for each in self.study.baselines()
            },
        )
        write_atomically(folder / "README.md", model_card(facts))
        return Export(
            str(out),
            ["README.md", *names],
            max(parity.values()),
            self.record.values.get("latency_ms"),
            parity,
            accuracies["val"][0],
            accuracies["test"][0],
            [each.as_json() for each in again],
            self.retrained.as_json() if self.retrained is not None else None,
            None if isinstance(timm, str) else timm["name"],
            accuracies["val"][1],
            accuracies["test"][1],
            list(wilson_percent(*accuracies["val"])),
            list(wilson_percent(*accuracies["test"])),
            notice,
        ), again

    def _write_files(
        self, folder: Path, model: "Model", prepared: dict[str, Any]
    ) -> dict[str, Any] | str:
        """Write all but the card; returns timm's name and arguments, or why timm has none."""
        from levit_search.drawing import diagram
        from levit_search.export.module import module_source
        from levit_search.export.onnx_file import write_onnx
        from levit_search.export.probing import graph_layout
        from levit_search.model import save_weights, set_layout

        self.progress("writing the network", None)
        described = self.network.to_yaml()
        write_atomically(folder / "architecture.yaml", described)
        title = f"{self.study.config.name} {self.network.id}"
        write_atomically(folder / "architecture.svg", diagram.svg(self.network, title))
        save_weights(model, folder / "model.safetensors")
        source = module_source(self.network, prepared["class_names"])
        write_atomically(folder / "model.py", source)
        timm = self._write_timm(folder / "timm", model, prepared)
        write_atomically(folder / "preprocess.json", json.dumps(prepared, indent=2) + "\n")
        write_atomically(folder / "predict.py", predict_source())
        self.progress("writing model.onnx", None)
        set_layout(model, graph_layout(self.study, self.record))
        graph = folder / "model.onnx"
        write_onnx(model, graph, prepared, {"architecture": described})
        set_layout(model, "tokens")
        self._write_also(folder, model, graph)
        return timm

    def _write_timm(
        self, folder: Path, model: "Model", prepared: dict[str, Any]
    ) -> dict[str, Any] | str:
        from levit_search.export.timm_checkpoint import timm_checkpoint

        try:
            checkpoint = timm_checkpoint(model, prepared)
        except InputError as error:
            return str(error)
        checkpoint.write(folder)
        return {"name": checkpoint.name, "arguments": checkpoint.arguments}

    def _write_also(self, folder: Path, model: "Model", graph: Path) -> None:
        from levit_search.export.programs import write_openvino, write_torch_export

        if "openvino" in self.wishes.also:
            self.progress("writing model.openvino.xml", None)
            write_openvino(graph, folder / "model.openvino.xml")
        if "torch-export" in self.wishes.also:
            self.progress("writing model.pt2", None)
            write_torch_export(model, folder / "model.pt2")

    def _accuracies(self, model: "Model", batches: "Batches") -> dict[str, tuple[float, int]]:
        from levit_search.train import device_of, top1_percent

        device = device_of(self.config.train)
        model.to(device)
        found = {}
        for split in ("val", "test"):
            self.progress(f"measuring accuracy on {split}", None)
            found[split] = top1_percent(model, batches, split), batches.size(split)
        return found

    def _notice(
        self, verdict: Verdict, test_percent: float, images: int, guess: float
    ) -> str | None:
        """What is to be known of the weights before anything else; no choice was made by test."""
        told = []
        if not is_better_than_guessing(test_percent, images, guess):
            told.append(
                f"These weights are no better than guessing, as far as {images:,} images of test "
                f"tell: {accuracy_text(test_percent, images)}, always answering the largest class "
                f"gives {guess:.2f} %."
            )
        if self.retrained is None and verdict.kind == "guessing":
            told.append(f"Of the search: {verdict.text}")
        return " ".join(told) or None

    def _check_data(self, val_top1_percent: float, images: int) -> None:
        """The same weights have the same accuracy, unless the images or their classes are others.

        Raises:
            LevitSearchError: they have not.
        """
        before = self.record.values.get("top1_percent")
        if (found := self.retrained) is not None:
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
