"""The network of an export in int8: written, read again, compared with float, finetuned."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml

import levit_search as ls
from levit_search import export as exports
from levit_search.architecture import parse
from levit_search.errors import InputError, LevitSearchError, TrialError
from levit_search.export import ExportOptions, Quantization, int8, package, verification
from levit_search.export.int8 import Finetuning, TimedInInt8
from levit_search.latency.targets import Int8Config
from levit_search.model import build, export_onnx, fold
from levit_search.model.quantization import OnnxNetwork, Quantized, quantize
from levit_search.search import driver
from levit_search.study import Record, Study
from tests.conftest import Cli
from tests.engines import HereEngine, run
from tests.networks import tiny_description, tiny_space
from tests.random_networks import randomised
from tests.test_export_onnx import NETWORKS, real_images, session_of

IN_INT8 = ExportOptions(also=("int8",), probe=False)
GRAPH = "model.int8.onnx"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two networks that were trained for real; nobody changes it."""
    folder = tmp_path_factory.mktemp("searched")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_space()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(driver, "make_engine", HereEngine)
        _, searched = run(path, folder / "s", **{"search.trials": 2})
    return searched


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float files are written and not read again, which has tests of its own."""

    def compared(_folder: Path, names: list[str], *_: object) -> dict[str, float]:
        return dict.fromkeys(names, 0.0)

    monkeypatch.setattr(verification, "compared", compared)


@pytest.fixture
def unpredicted(unread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the int8 graph read in a process of its own."""
    monkeypatch.setattr(verification, "compared_in_int8", lambda *_: 0.5)


@pytest.fixture
def accurate(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Accuracies in int8 on val and test of one graph after the other, to be filled in."""
    told: list[float] = []
    monkeypatch.setattr(int8, "top1_percent", lambda *_: told.pop(0))
    return told


@pytest.mark.usefixtures("unread")
def test_the_int8_graph_is_read_and_compared_and_stands_in_card_and_output(
    study: Study, cli: Cli, tmp_path: Path
) -> None:
    given = ["--pick", "accurate", "--no-probe", "--also", "int8", "--out", tmp_path / "out"]
    told = ["--json", "--set", "latency.int8.calibration=percentile"]
    done = cli("export", study.folder, *given, *told)
    assert done.returncode == 0, done.stderr
    assert "reading model.int8.onnx in a clean process" in done.stderr
    written = json.loads(done.stdout)
    out = tmp_path / "out"
    found = written["int8"]
    assert {each.rstrip("/") for each in written["files"]} == {path.name for path in out.iterdir()}
    assert GRAPH in written["files"] and GRAPH in package._NAMES
    quantized = found["quantized"]
    assert (quantized["format"], quantized["calibration"]) == ("u8-reduced", "percentile")
    assert (quantized["images"], found["images"]["val"]) == (128, written["val_images"])
    assert found["chosen"].endswith("nothing was measured to choose it by (--no-probe)")
    assert quantized["bytes"] == (out / GRAPH).stat().st_size
    for split in ("val", "test"):
        low, high = found["top1_percent_ci95"][split]
        percent = found["top1_percent"][split]
        assert low < percent < high
        drop = written[f"{split}_top1_percent"] - percent
        assert found["drop_points"][split] == pytest.approx(drop)
    assert (found["timed"], found["finetuning"], found["too_large"]) == ([], None, None)
    kept, now = (
        {each.key: each.value for each in onnx.load(out / name).metadata_props}
        for name in ("model.onnx", GRAPH)
    )
    assert kept == now and "class_names" in now
    session = session_of(out / GRAPH)
    images = real_images(exports.pick(study, "accurate").architecture, 7).numpy()  # type: ignore[arg-type]
    logits = session.run(["logits"], {"images": images})[0]
    one = session.run(["logits"], {"images": images[:1]})[0]
    np.testing.assert_allclose(one, logits[:1], atol=found["logits_max_abs_diff"])
    text = (out / "README.md").read_text()
    assert "## In int8" in text
    assert f"| {found['logits_max_abs_diff']:.1e} |" in text
    assert f"{found['top1_percent']['test']:.2f} %" in text
    assert "In float on purpose: elementwise (" in text or "attention (" in text
    assert "--also int8 --set latency.int8.calibration=percentile` on" in text


@pytest.mark.usefixtures("unread")
def test_a_graph_that_answers_otherwise_in_a_process_of_its_own_is_an_error(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = package.predict_source()
    changed = honest.replace("pixels.astype(np.float32) - mean", "pixels.astype(np.float32)")
    assert changed != honest
    monkeypatch.setattr(package, "predict_source", lambda: changed)
    with pytest.raises(LevitSearchError, match=r"model\.int8\.onnx: its logits differ from those"):
        ls.write_export(study, "accurate", tmp_path / "out" / "o", IN_INT8)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("unpredicted")
def test_a_large_drop_is_an_error_though_all_is_written_unless_it_is_allowed(
    study: Study, cli: Cli, tmp_path: Path, accurate: list[float]
) -> None:
    export = ("export", study.folder, "--pick", "accurate", "--no-probe", "--also", "int8")
    accurate += [1.0, 2.0]
    done = cli(*export, "--out", tmp_path / "out")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "points on val" in line]
    assert "model.int8.onnx loses" in line and "1.00 % in int8; 1.042 are allowed" in line
    assert "percentile or --finetune-epochs 1 may help, --allow-drop takes it" in line
    assert {GRAPH, "model.onnx", "README.md"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert "> **model.int8.onnx loses" in (tmp_path / "out" / "README.md").read_text()
    accurate += [1.0, 2.0]
    done = cli(*export, "--out", tmp_path / "allowed", "--allow-drop")
    assert done.returncode == 0, done.stderr
    assert "in int8 (u8-reduced, right on every CPU" in done.stdout
    assert "model.int8.onnx loses" in done.stdout
    accurate += [1.0, 2.0]
    assert cli(*export, "--out", tmp_path / "wide", "--max-drop", 99).returncode == 0


def test_three_images_are_no_drop_however_few_there_are() -> None:
    quantized = Quantized("u8", "minmax", 8, 1, {}, {}, {})
    known: dict[str, Any] = {
        "quantized": quantized,
        "chosen": "asked for",
        "runtime": "onnxruntime",
        "float_top1_percent": {"val": 90.0, "test": 90.0},
        "float_bytes": 2,
        "logits_max_abs_diff": 0.1,
        "finetuning": None,
        "timed": [],
        "max_drop": 1.0,
    }

    def found(points: float, images: int) -> int8.InInt8:
        percents = {"val": 90.0 - points, "test": 90.0}
        return int8.InInt8(top1_percent=percents, images={"val": images, "test": images}, **known)

    def lost(points: float, images: int) -> str | None:
        return found(points, images).too_large

    assert lost(3.0, 100) is None
    assert lost(4.0, 100) is not None
    assert lost(1.0, 1000) is None and lost(-5.0, 1000) is None
    assert lost(1.1, 1000) is not None
    nncf = replace(found(2.0, 1000), quantized=replace(quantized, format="nncf"))
    assert nncf.remedies == ["--set latency.int8.format=u8", "--finetune-epochs 1"]


@pytest.mark.parametrize("is_better", [True, False])
@pytest.mark.usefixtures("unpredicted")
def test_finetuned_weights_are_taken_only_if_they_are_no_worse_in_int8(
    is_better: bool, study: Study, tmp_path: Path, accurate: list[float]
) -> None:
    accurate += [50.0, 40.0, 51.0 if is_better else 49.0, 41.0]
    asked = Quantization(finetune_epochs=1, allow_drop=True)
    options = replace(IN_INT8, quantization=asked)
    written = ls.write_export(study, "accurate", tmp_path / "tuned", options)
    accurate += [50.0, 40.0]
    plain = replace(options, quantization=replace(asked, finetune_epochs=0))
    ls.write_export(study, "accurate", tmp_path / "plain", plain)
    contents = [(tmp_path / name / GRAPH).read_bytes() for name in ("tuned", "plain")]
    assert (contents[0] != contents[1]) is is_better
    floats = [(tmp_path / name / "model.onnx").read_bytes() for name in ("tuned", "plain")]
    assert floats[0] == floats[1]
    assert written.int8 is not None
    tuned = written.int8["finetuning"]
    assert (tuned["epochs"], tuned["is_taken"]) == (1, is_better)
    assert tuned["plain_top1_percent"] == {"val": 50.0, "test": 40.0}
    assert written.int8["top1_percent"]["val"] == max(50.0, tuned["top1_percent"]["val"])
    text = (tmp_path / "tuned" / "README.md").read_text()
    assert "Finetuned for 1 epoch(s) with the roundings of int8" in text
    assert ("model.int8.onnx` are these" in text) is is_better
    assert "--finetune-epochs 1 --allow-drop` on" in text


@pytest.mark.parametrize("name", ["levit", "plain vit", "resnet stem", "graft"])
def test_finetuning_rounds_as_the_int8_graph_does_and_leaves_a_plain_network(
    name: str, tmp_path: Path
) -> None:
    """In graphs with batch norms sums are rounded too, for the branch that goes around a block."""
    torch.manual_seed(0)
    model = randomised(build(parse(NETWORKS[name]))).eval()
    images, how = real_images(model.architecture, 16), Int8Config()
    export_onnx(model, tmp_path / "float.onnx", None)
    found = quantize(tmp_path / "float.onnx", tmp_path / GRAPH, images.numpy(), how, "u8")
    folded = fold(model)
    before = copy.deepcopy(folded.state_dict())
    with torch.no_grad(), int8._rounded(folded, images, how, "u8") as layers:
        rounded = folded(images)
    assert len(layers) == sum(found.quantized.values())
    in_int8 = OnnxNetwork(tmp_path / GRAPH)(images)
    cost = (model(images) - in_int8).abs().mean()
    assert (rounded - in_int8).abs().mean() < (0.1 if name == "plain vit" else 1.5) * cost
    assert before.keys() == folded.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in folded.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--finetune-epochs", 1], "--finetune-epochs: is for --also int8"),
        (["--allow-drop"], "--allow-drop: is for --also int8"),
        (["--set", "latency.int8.format=s8"], "--set latency.int8.format: is for --also int8"),
        (["--also", "int8", "--set", "latency.int8=s8"], "name one of its keys"),
        (["--also", "int8", "--set", "latency.int8.format=s9"], "latency.int8: format"),
        (["--also", "int8", "--set", "latency.int8.formt=s8"], "unknown key 'formt'"),
        (["--also", "int8", "--set", "latency.int8.format=nncf"], "nncf is not installed"),
        (["--also", "int8", "--set", "latency.int8.images=9999"], "9,999 images were asked for"),
        (["--also", "int8", "--set", "train.lr=1"], "--set: is for --retrain"),
    ],
)
@pytest.mark.usefixtures("unread")
def test_what_cannot_be_had_in_int8_is_told_and_nothing_is_written(
    options: list[Any], told: str, study: Study, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "find_spec", lambda name: None if name == "nncf" else object())
    done = cli("export", study.folder, "--no-probe", *options)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert not list((study.folder / "export").glob("*"))


@pytest.mark.usefixtures("unread")
def test_a_network_that_cannot_be_quantized_leaves_nothing_behind(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise TrialError("model.onnx cannot be quantized: scale x is no finite number above 0")

    monkeypatch.setattr(int8, "quantize", broken)
    with pytest.raises(LevitSearchError, match="no finite number above 0"):
        ls.write_export(study, "accurate", tmp_path / "out" / "o", IN_INT8)
    assert not list((tmp_path / "out").iterdir())


class ProbeStub:
    """Says that int8 is slower, and which format is the fastest."""

    ratio_ci95 = (1.1, 1.3)

    def __init__(self, config: Any, *_: object, **__: object) -> None:
        assert config.precision == "int8"

    def __enter__(self) -> "ProbeStub":
        return self

    def __exit__(self, *_: object) -> None: ...

    def settle_int8(self, _: object) -> str:
        return "s8"

    def time_graphs(self, candidates: list[Path], reference: Path) -> "list[ProbeStub]":
        assert [each.name for each in (*candidates, reference)] == [GRAPH, "model.onnx"]
        return [self]

    def as_json(self) -> dict[str, Any]:
        ratio = {"ratio_to_reference": 1.2, "ratio_ci95": [*self.ratio_ci95]}
        return {"latency_ms": 1.2, "reference_ms": 1.0, **ratio}


Measured = Callable[..., tuple[Study, Record]]


@pytest.fixture
def measured(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Makes a study of latency, whose ``latency`` section is given, and a network that it has."""
    record = exports.pick(study, "accurate")
    weights = study.weights_of(record)
    monkeypatch.setattr(Study, "weights_of", lambda *_: weights)

    def make(objective: str = "latency_ms", **latency: Any) -> tuple[Study, Record]:
        section = study.config.latency.model_validate({"reference": tiny_description(), **latency})
        update = {"latency": section, "objectives": ("top1_percent", objective)}
        made = Study.create(tmp_path / "s", study.config.model_copy(update=update), ["test"])
        known = {"method": "predicted", "latency_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1}
        return made, replace(record, evaluation={**record.evaluation, "latency": known})

    return make


@pytest.mark.usefixtures("unpredicted")
def test_that_int8_is_slower_on_a_target_is_said_in_card_and_output(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from levit_search.cli.studies import _print_export

    monkeypatch.setattr(int8, "Probe", ProbeStub)
    timed, record = measured()
    options = replace(IN_INT8, probe=True, quantization=Quantization(allow_drop=True))
    written = exports.export(timed, record, tmp_path / "out", "accurate", options)
    assert written.int8 is not None
    assert written.int8["quantized"]["format"] == "s8"
    assert written.int8["chosen"] == "the faster one on cpu, measured now"
    (found,) = written.int8["timed"]
    told = "1.200 x the time of model.onnx (1.100 to 1.300 x): int8 is slower here"
    assert (found["is_slower"], found["compared"]) == (True, told)
    assert f"| 1 ms | 1.2 ms | **{told}** |" in (tmp_path / "out" / "README.md").read_text()
    _print_export(written, "A network")
    assert f"  on cpu: {told}\n" in capsys.readouterr().out
    known = {"ratio_to_reference": 0.8, "ratio_ci95": [0.7, 0.9]}
    assert "here" not in TimedInInt8("cpu", known).compared()
    known = {"ratio_to_reference": 1.0, "ratio_ci95": [0.9, 1.1]}
    assert TimedInInt8("cpu", known).compared().endswith("int8 is not faster here")


@pytest.mark.usefixtures("unpredicted")
def test_the_format_is_the_one_that_the_study_settled_unless_another_is_asked_for(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled, record = measured()
    kept = {**settled.attributes(), "int8_formats": {"": "u8-reduced"}}
    monkeypatch.setattr(Study, "attributes", lambda _: kept)
    for changes, format in (({}, "u8-reduced"), ({"format": "s8"}, "s8")):
        asked = replace(IN_INT8, quantization=Quantization(changes, allow_drop=True))
        written = exports.export(settled, record, tmp_path / format, "accurate", asked)
        assert written.int8 is not None
        assert written.int8["quantized"]["format"] == format


@pytest.mark.usefixtures("unpredicted")
def test_a_study_on_a_runtime_without_int8_gets_it_and_is_told_that_it_is_not_timed(
    measured: Measured, tmp_path: Path
) -> None:
    with_torch, record = measured(runtime="torch")
    options = replace(IN_INT8, probe=True, quantization=Quantization(allow_drop=True))
    written = exports.export(with_torch, record, tmp_path / "out", "accurate", options)
    assert written.int8 is not None
    assert written.int8["quantized"]["format"] == "u8-reduced"
    assert "runtime torch has no int8" in written.int8["chosen"]
    (found,) = written.int8["timed"]
    assert found["compared"].startswith("not measured: runtime torch has no int8")


def test_a_figure_in_int8_is_compared_with_the_int8_graph_alone(measured: Measured) -> None:
    timed, record = measured("latency_int8_ms")
    before = {"precision": "int8", "ratio_to_reference": 1.0, "ratio_ci95": [0.9, 1.1]}
    record = replace(record, evaluation={"int8": {"latency_int8_ms": before}})
    (known,) = verification.latencies(timed.config, record)
    assert (known.figure, known.config.precision) == ("latency_int8_ms", "int8")
    (found,) = verification.remeasured(timed, record, Path("model.onnx"), lambda *_: None)
    assert (found.now, found.agrees) == (None, True)
    assert found.reason == "--also int8 writes model.int8.onnx, which it is of"


def test_finetuning_that_gains_nothing_is_taken_all_the_same() -> None:
    same = {"val": 50.0, "test": 50.0}
    assert Finetuning(1, 1e-4, same, same).is_taken


def test_wrong_keys_are_told_from_python_too(study: Study, tmp_path: Path) -> None:
    asked = replace(IN_INT8, quantization=Quantization({"images": 0}))
    with pytest.raises(InputError, match=r"latency\.int8: images"):
        ls.write_export(study, "accurate", tmp_path / "out", asked)
