"""Searches that look at networks in int8: objectives, formats, files, and what a study keeps."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from levit_search import architecture as architectures
from levit_search import baseline, export, table
from levit_search.architecture import Architecture
from levit_search.baseline import Baseline
from levit_search.errors import InputError
from levit_search.latency import Probe
from levit_search.latency.latency_model import LatencyModel
from levit_search.latency.targets import LatencyConfig
from levit_search.model.quantization import OnnxNetwork
from levit_search.search import search
from levit_search.search.evaluate import Evaluator
from levit_search.search.final_evaluation import near_rivals
from levit_search.search.moasha import MultiObjectiveASHA
from levit_search.search.warm_start import check_prepared
from levit_search.significance import judged
from levit_search.study import REMEASURED, Record, Study, read_config, with_measured
from levit_search.study.record import MEASURED
from tests.engines import HereEngine, remeasured
from tests.networks import tiny_description, tiny_space

SpaceFile = Callable[..., Path]

IN_INT8 = ("top1_int8_percent", "latency_int8_ms")
QUICK: dict[str, Any] = {"seconds": 0.1, "rounds": 2, "reference": tiny_description()}
ONE: dict[str, Any] = {"trials": 1, "sampler": "random", "reduction": None}


def silent(text: str, fraction: float | None) -> None:
    del text, fraction


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (
            {"objectives": [*IN_INT8], "latency": {"runtime": "torch"}},
            "objectives: in int8 by latency, whose runtime torch has no int8; onnxruntime and "
            "openvino have",
        ),
        (
            {
                "objectives": ["top1_percent", "latency_int8_ms@gpu"],
                "targets": {"gpu": "cuda"},
            },
            "objectives: in int8 by targets.gpu, whose runtime torch has no int8",
        ),
        (
            {"objectives": ["top1_int8_percent", "latency_int8_ms@nobody"]},
            "latency_int8_ms@nobody: no target of that name in `targets` (known: none)",
        ),
        (
            {"objectives": ["flops", "top1_int8_percent@gpu"], "targets": {"gpu": "cuda"}},
            "top1_int8_percent@gpu: top1_int8_percent is the same on every target",
        ),
        (
            {"objectives": [*IN_INT8], "latency": {"int8": {"format": "u4"}}},
            "latency.int8.format",
        ),
    ],
)
def test_what_has_no_int8_is_refused_in_one_line(
    sections: dict[str, object], told: str, space_file: SpaceFile
) -> None:
    with pytest.raises(InputError) as caught:
        read_config(space_file(**sections))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_targets_are_probed_in_the_precisions_that_objectives_name(space_file: SpaceFile) -> None:
    def config(*objectives: str, **latency: Any) -> Any:
        sections = {"latency": latency, "targets": {"pi": "ssh://pi", "four": {"threads": 4}}}
        return read_config(space_file(objectives=objectives, **sections))

    both = config("top1_percent", "latency_ms", "latency_int8_ms@pi", "latency_int8_ms")
    assert list(both.probed) == [(None, "fp32"), (None, "int8"), ("pi", "int8")]
    assert both.int8_targets == (None, "pi") and both.is_quantized
    alone = config(*IN_INT8)
    assert list(alone.probed) == [(None, "int8")] and alone.is_trained and alone.is_measured
    elsewhere = config("top1_int8_percent", "latency_int8_ms@pi")
    assert list(elsewhere.probed) == [("pi", "int8")]
    assert elsewhere.int8_targets == ("pi",), "its accuracies are those of what it measures"
    accurate = config("top1_percent", "top1_int8_percent")
    assert accurate.probed == {} and accurate.int8_targets == (None,)
    own = config("top1_percent", "latency_ms", "latency_int8_ms", precision="int8")
    assert list(own.probed) == [(None, "int8")]
    assert not config("model_bytes", "latency_ms").is_quantized
    assert config("model_bytes", "latency_ms", precision="int8").is_quantized


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study whose objectives are in int8, for two trials in two sessions."""
    folder = tmp_path_factory.mktemp("int8")
    sections = {"objectives": [*IN_INT8], "latency": QUICK, "search": ONE}
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(tiny_space(**sections)))
    formats = Probe._int8_formats

    def known(self: Probe) -> Any:
        assert self.int8_format is not None, "what was chosen once is not chosen again"
        return formats(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        search(Study.create(folder / "s", read_config(path), ["test"]), engine=HereEngine)
        patch.setattr(Probe, "_int8_formats", known)
        config = read_config(path, {"search.trials": 2})
        study = Study.create(folder / "s", config, ["test"])
        search(study, engine=HereEngine)
    return study


def test_a_search_keeps_both_accuracies_and_what_was_quantized(searched: Study) -> None:
    records = [record for record in searched.records() if record.state == "complete"]
    assert len(records) == 2
    formats = searched.attributes()["int8_formats"]
    assert formats.keys() == {""} and formats[""] in ("u8", "u8-reduced", "s8")
    for record in records:
        assert set(IN_INT8) | {"top1_percent", "model_bytes"} <= record.values.keys()
        assert "latency_ms" not in record.values, "nothing asked for that in float"
        quantized, measured = (record.evaluation["int8"][name] for name in IN_INT8)
        assert quantized["format"] == measured["int8_format"] == formats[""]
        assert (quantized["runtime"], quantized["images"]) == ("onnxruntime", 128)
        assert record.values["model_bytes"] == quantized["bytes"]
        assert measured["precision"] == "int8"
        assert (searched.folder / measured["samples_file"]).is_file()
        drop = record.values["top1_percent"] - record.values["top1_int8_percent"]
        assert abs(drop) < 10


def test_the_front_was_measured_again_in_int8(searched: Study) -> None:
    front = table.front(searched.records(), searched.config.objectives)
    for record in front:
        assert record.values["latency_int8_search_ms"] > 0
        assert record.values["latency_int8_ms_repeats_percent"] > 0
        assert "top1_int8_percent" in record.evaluation["int8"], "beside what was measured again"
    verdict = judged(searched.records(), searched.attributes(), searched.config)
    text = table.markdown(front, searched.config.objectives, verdict)
    assert text.startswith("| trial | int8 top-1 % | 95 % interval |")
    assert "| int8 ms | int8 ± % | int8 in search ms | top-1 % | int8 drop |" in text


def test_accuracies_that_are_judged_and_picked_by_are_those_in_int8(searched: Study) -> None:
    records = searched.records()
    verdict = judged(records, searched.attributes(), searched.config)
    assert verdict.figure == "top1_int8_percent"
    for record in records:
        assert verdict.by_trial[record.trial].percent == record.values["top1_int8_percent"]
    shown = table.as_json(records[0], verdict)
    low, high = shown["top1_int8_percent_ci95"]  # type: ignore[misc]
    assert low <= shown["top1_int8_percent"] <= high  # type: ignore[operator]
    front = table.front(records, searched.config.objectives)
    accurate, fastest = (export.pick(searched, choice) for choice in ("accurate", "fastest"))
    assert accurate.values["top1_int8_percent"] == max(
        record.values["top1_int8_percent"] for record in front
    )
    assert fastest.values["latency_int8_ms"] == min(r.values["latency_int8_ms"] for r in front)


def test_a_format_that_is_settled_counts_for_accuracies_too(
    space_file: SpaceFile, tmp_path: Path, tiny: Architecture
) -> None:
    """Of a device elsewhere, on which nothing is measured now."""
    gone = {"target": {"kind": "command", "python": ["/no/such/python"]}}
    config = read_config(
        space_file(objectives=["top1_percent", "top1_int8_percent", "model_bytes"]),
        {"latency": gone},
    )
    evaluator = Evaluator(config, tmp_path, {"int8_formats": {"": "s8"}})
    seen: list[dict[str, float]] = []
    try:
        prepared = evaluator.prepare(tiny, silent)
        found = evaluator.evaluate(
            tiny, silent, lambda _, values: bool(seen.append(values)) or True
        )
    finally:
        evaluator.close()
    assert prepared["int8_formats"] == {"": "s8"}
    assert found.int8["top1_int8_percent"]["format"] == "s8"
    assert found.latency is None and "latency_int8_ms" not in found.values
    assert abs(found.values["top1_percent"] - found.values["top1_int8_percent"]) < 10


def test_rungs_judge_by_the_float_accuracy_and_a_stopped_network_has_none_in_int8(
    space_file: SpaceFile, tmp_path: Path, tiny: Architecture
) -> None:
    sections = {"objectives": ["top1_int8_percent", "model_bytes"]}
    changes = {"latency.int8.format": "u8", "train.epochs": 2, "train.rungs": [1]}
    config = read_config(space_file(**sections), changes)
    evaluator, seen = Evaluator(config, tmp_path, {}), []

    def stop(epoch: int, values: dict[str, float]) -> bool:
        seen.append(values)
        return False

    try:
        evaluator.prepare(tiny, silent)
        found = evaluator.evaluate(tiny, silent, stop)
    finally:
        evaluator.close()
    (values,) = seen
    assert values["top1_int8_percent"] == values["top1_percent"]
    assert values["model_bytes"] == found.values["model_bytes"] > 0, "known without a training"
    assert found.values.keys() == {"model_bytes"} and found.int8 == {}


def test_what_quantization_costs_is_part_of_the_last_gain() -> None:
    asha = MultiObjectiveASHA([1], 2.0, ["top1_int8_percent", "top1_percent", "flops"])
    asha.judge(1, "a", {"top1_int8_percent": 50.0, "top1_percent": 50.0, "flops": 100.0})
    asha.complete("a", 57.0)
    assert asha.expected(1, 40.0) == 47.0
    asha.complete("a", 0.0)
    assert asha.expected(1, 40.0) == 0.0, "an accuracy is never below 0"


def test_more_images_than_there_are_end_the_preparation(
    space_file: SpaceFile, tmp_path: Path, tiny: Architecture
) -> None:
    sections = {"objectives": ["top1_int8_percent", "flops"]}
    config = read_config(space_file(**sections), {"latency.int8.images": 5000})
    evaluator = Evaluator(config, tmp_path, {})
    try:
        with pytest.raises(InputError, match=r"5,000 images were asked for .* has 256"):
            evaluator.prepare(tiny, silent)
    finally:
        evaluator.close()


def test_an_inherited_accuracy_in_int8_stands_until_the_network_is_trained(
    space_file: SpaceFile, tmp_path: Path
) -> None:
    sections = {
        "objectives": ["top1_int8_percent", "flops"],
        "accuracy": "supernet",
        "supernet": {"epochs": 2, "calibration_images": 64, "val_images": 100, "rivals": 0},
        "search": {"trials": 3, "sampler": "random"},
    }
    config = read_config(space_file(**sections), {"latency.int8.format": "u8"})
    study = Study.create(tmp_path / "s", config, ["test"])
    search(study, engine=HereEngine)
    front = table.front(study.records(), config.objectives)
    assert front
    for record in front:
        inherited = record.evaluation["values"]["top1_int8_percent"]
        assert record.estimates["top1_int8_percent"] == inherited
        assert record.values["top1_int8_inherited_percent"] == inherited
        drop = record.values["top1_percent"] - record.values["top1_int8_percent"]
        assert abs(drop) < 10
        assert (
            record.values["model_bytes"] == record.evaluation["int8"]["top1_int8_percent"]["bytes"]
        )


def test_a_network_of_timm_is_evaluated_in_int8_beside_them(
    space_file: SpaceFile, tmp_path: Path, tiny: Architecture
) -> None:
    sections = {"objectives": ["top1_int8_percent", "model_bytes"], "compare": ["timm/test_resnet"]}
    config = read_config(space_file(**sections), {"latency.int8.format": "u8"})
    evaluator = Evaluator(config, tmp_path, {})
    try:
        evaluator.prepare(tiny, silent)
        found = evaluator.compare(config.compare[0], silent)
    finally:
        evaluator.close()
    assert abs(found.values["top1_percent"] - found.values["top1_int8_percent"]) < 10
    assert found.values["model_bytes"] == found.int8["top1_int8_percent"]["bytes"]


def test_float_files_are_counted_where_nothing_is_in_int8(
    space_file: SpaceFile, tmp_path: Path, tiny: Architecture
) -> None:
    config = read_config(space_file(objectives=["params", "model_bytes"]))
    assert not config.is_quantized
    found = Evaluator(config, tmp_path, {}).evaluate(tiny, silent)
    assert found.values["model_bytes"] > 4 * sum(p.numel() for p in _parameters(tiny))


def _parameters(network: Architecture) -> Iterator[torch.nn.Parameter]:
    from levit_search.model import build, fold

    return fold(build(network)).parameters()


def test_networks_of_different_formats_do_not_come_onto_one_front(searched: Study) -> None:
    before, now = {"int8_formats": {"": "u8"}}, {"int8_formats": {"": "s8"}}
    check_prepared(searched, searched, before, before)
    with pytest.raises(InputError, match="its networks were quantized to u8, those here are to s8"):
        check_prepared(searched, searched, before, now)


def test_networks_of_timm_are_quantized_with_their_trained_weights(tmp_path: Path) -> None:
    network, path = Baseline("test_resnet", 32, 3, 10), tmp_path / "float.onnx"
    torch.manual_seed(0)
    model = network.build_as_timm_does().eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = model(images).numpy()
    baseline.export_onnx(network, path, 1, model)
    found = OnnxNetwork(path)(images).numpy()  # one image in a run
    assert np.abs(found - expected).max() < 1e-4


class Blocks:
    """In the place of a probe that measures blocks."""

    config = LatencyConfig(precision="int8")
    int8_format = "s8"
    timed: list[list[str]]

    def int8_graph(self, graph: Path, int8_format: str) -> Path:
        path = graph.with_name(f"{graph.stem}-{int8_format}.onnx")
        path.write_text(graph.read_text())
        return path

    def time_graphs(self, graphs: list[Path], *_: Any, **__: Any) -> list[SimpleNamespace]:
        self.timed.append([path.name for path in graphs])
        return [SimpleNamespace(ratio_to_reference=2.0) for _ in graphs]


def test_blocks_are_timed_in_int8_but_for_the_one_that_computes_nothing(tmp_path: Path) -> None:
    probe = Blocks()
    probe.timed = []
    model = LatencyModel(probe, None, 0, tmp_path / "predictor.json")  # type: ignore[arg-type]
    model._graph, model._scale_ms = tmp_path / "reference.onnx", 3.0
    paths = [tmp_path / "nothing.onnx", tmp_path / "block.onnx"]
    for path in paths:
        path.write_text("graph")
    assert model._time_graphs(paths) == [6.0, 6.0]
    assert probe.timed == [["nothing.onnx", "block-s8.onnx"]]
    assert sorted(tmp_path.iterdir()) == sorted(paths), "the callers' own stay, no others"


def made(trial: int, percent: float, ms: float, half_percent: float = 1.0) -> Record:
    """A network whose latency in int8 was measured, or predicted where there is no interval."""
    latency: dict[str, Any] = {"method": "predicted", "latency_ms": ms}
    values = {"top1_int8_percent": percent, "top1_percent": percent, "latency_int8_ms": ms}
    if half_percent:
        latency = remeasured(ms, half_percent)["latency"]
    else:
        values["latency_int8_predicted_ms"] = ms
    evaluation = {"latency": None, "int8": {"latency_int8_ms": latency, "top1_int8_percent": {}}}
    network = architectures.parse(tiny_description())
    return Record(trial, "complete", network, values, None, None, 0.0, evaluation)


def test_a_predicted_latency_in_int8_is_verified_and_measured_again() -> None:
    record = made(0, 70.0, 1.0, half_percent=0.0)
    assert record.architecture is not None
    values = {"latency_int8_ms": 1.25}
    found = {"values": values, "int8": {"latency_int8_ms": remeasured(1.25)["latency"]}}
    attributes: dict[str, Any] = {f"{MEASURED}{record.architecture.id}": found}
    verified = with_measured(record, attributes, None)
    assert verified.values["latency_int8_ms"] == 1.25
    assert verified.estimates["latency_int8_ms"] == 1.0
    assert verified.values["prediction_error_int8_percent"] == pytest.approx(-20.0)
    assert verified.evaluation["int8"].keys() == {"latency_int8_ms", "top1_int8_percent"}
    latency = {"latency_int8_ms": remeasured(1.6)["latency"]}
    again = {"values": {"latency_int8_ms": 1.6}, "int8": latency, "protocol": 3, "finished": "now"}
    attributes[f"{REMEASURED}{record.architecture.id}"] = again
    last = with_measured(record, attributes, None)
    assert (last.values["latency_int8_ms"], last.values["latency_int8_search_ms"]) == (1.6, 1.25)
    assert last.values["prediction_error_int8_percent"] == pytest.approx(-37.5)
    kept = last.evaluation["int8"]["latency_int8_ms"]
    assert (kept["latency_ms"], kept["predicted"]["latency_ms"]) == (1.6, 1.0)
    assert last.own_evaluation["int8"]["latency_int8_ms"]["latency_ms"] == 1.25


def test_rivals_in_int8_miss_the_front_by_the_noise_of_their_own_latencies() -> None:
    records = [made(0, 70.0, 1.0), made(1, 69.0, 1.02), made(2, 69.0, 1.2)]
    assert [each.trial for each in near_rivals(records, IN_INT8, 8)] == [1]
    wide = replace(made(2, 69.0, 1.2, half_percent=15.0), trial=3)
    assert 3 in {each.trial for each in near_rivals([*records, wide], IN_INT8, 8)}
    predicted = made(4, 69.0, 1.02, half_percent=0.0)
    assert 4 not in {each.trial for each in near_rivals([*records, predicted], IN_INT8, 8)}
