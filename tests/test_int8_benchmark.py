"""``benchmarks/int8.py``: what it compares, and that its figures are right."""

import argparse
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from levit_search.architecture import parse
from tests.conftest import ROOT
from tests.test_weights_benchmark import MADE


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield


@pytest.fixture(scope="module")
def int8(scripts: None) -> Any:
    return importlib.import_module("int8")


@pytest.fixture(scope="module")
def shown(scripts: None) -> Any:
    return importlib.import_module("int8_shown")


def test_networks_are_trained_as_recorded(int8: Any) -> None:
    kept = json.loads((ROOT / "studies" / "supernet" / "settings.json").read_text())["settings"]
    setup = int8.setup_of("supernet").model_dump(mode="json")
    for name in ("data", "train", "teacher_seed"):
        wanted = kept[name]
        own = setup[name]
        if isinstance(wanted, dict):
            own = {key: own[key] for key in wanted if key in own}
            wanted = {key: wanted[key] for key in own}
        assert own == wanted
    assert len(int8.recorded()) == 32


def test_activations_differ_in_nothing_else(int8: Any) -> None:
    slots = ("activation", "attention_activation")
    for width in int8.WIDTHS:
        several = [int8.with_activation(width, each) for each in int8.ACTIVATIONS]
        dumps = [network.model_dump(exclude=set(slots)) for network in several]
        assert dumps[1:] == dumps[:-1]
        assert [[getattr(each, slot) for slot in slots] for each in several] == [
            [activation, activation] for activation in int8.ACTIVATIONS
        ]


def test_each_measurement_has_a_key_of_its_own(int8: Any, tmp_path: Path) -> None:
    options = argparse.Namespace(kept=tmp_path)
    for cell in int8.train_cells(options):
        int8.weights_of(cell).touch()
    for part, cells in int8.CELLS.items():
        keys = [json.dumps(cell.key) for cell in cells(options)]
        assert keys and len(set(keys)) == len(keys), part
    assert set(int8.timed()) <= {*int8.PUBLISHED, *int8.networks()}
    assert len(set(int8.timed())) == len(int8.timed())


def row(found: dict[str, Any], **key: Any) -> dict[str, Any]:
    versions = {"onnxruntime": "1", "openvino": "2", "nncf": "3"}
    made = {"made": MADE, "cell_seconds": 60.0, "versions": versions}
    return {"key": key, "settings": {"runtime": "onnxruntime"}, **made, **found}


def quantized(right: int, lost: int, gained: int) -> dict[str, Any]:
    return {
        "float_top1_percent": right / 100,
        "val_top1_percent": (right - lost + gained) / 100,
        "val_images": 10000,
        "lost": lost,
        "gained": gained,
        "float_bytes": 400,
        "bytes": 100,
        "quantize_seconds": 1.0,
        "quantized": {"linear": 3},
        "kept": {"attention": 2},
        "left": {"linear": 1},
    }


def test_drops_and_ranks(shown: Any) -> None:
    rows = [
        row(quantized(8000, 30, 10), network="a"),
        row(quantized(8010, 90, 10), network="b"),
        row(quantized(8500, 20, 20), network="c"),
    ]
    found = shown._of_method("u8", rows)
    assert found["median"] == pytest.approx(0.2)
    assert (found["worst"], found["worst_network"]) == (pytest.approx(0.8), "b")
    assert found["noise"] == pytest.approx(0.0632, abs=1e-4)  # the square root of 40 images
    assert found["within"] and found["times_smaller"] == 4
    assert found["in_int8_percent"] == {"linear": 75}
    assert found["ranks"]["tau"] == pytest.approx(1 / 3)


def test_activations_are_paired_by_widths_and_seed(int8: Any, shown: Any) -> None:
    rows, trained = [], {}
    for activation, lost in (("hardswish", 20), ("relu", 50)):
        network = int8.with_activation(int8.WIDTHS[0], activation)
        assert parse(network.model_dump(mode="json")).id == network.id
        for seed in (0, 1):
            key = {"set": "activations", "network": network.id, "seed": seed}
            found = quantized(8000 + 100 * seed, lost + seed, 0)
            rows.append(row(found, **key, method="u8"))
            trained["activations", network.id, seed] = {
                "architecture": network.model_dump(mode="json")
            }
    hardswish, relu = shown.activations(rows, trained)["rows"]
    assert hardswish["drop"]["mean"] == pytest.approx(0.205) and "over_hardswish" not in hardswish
    assert relu["over_hardswish"]["drop"]["mean"] == pytest.approx(0.3)
    assert relu["over_hardswish"]["drop"]["half_interval"] == pytest.approx(0, abs=1e-9)


def timed(ratio: float) -> dict[str, Any]:
    graph = {"ratio": ratio, "low": 0.9 * ratio, "high": 1.1 * ratio, "bytes": 100}
    return {"graphs": {"u8": graph}, "float_ms": 2.0, "float_bytes": 400, "saturates": False}


def test_sessions_are_put_together(shown: Any) -> None:
    rows = [row(timed(each), network="a", runtime="openvino", session=0) for each in (0.5, 0.6)]
    found = shown.speeds(rows)
    (graph,) = found["rows"]
    assert graph["ratio"] == pytest.approx(0.3**0.5)
    assert (graph["low"], graph["high"]) == pytest.approx((0.45, 0.66))
    (repeat,) = found["repeats"]
    assert repeat["median"] == pytest.approx(100 / 5.5)


def test_the_choice_of_a_format_is_checked_by_the_timed_graphs(shown: Any) -> None:
    graphs = {"u8": (0.5, 0.6), "s8": (0.7, 0.8)}
    timed = [
        {"runtime": "onnxruntime", "network": "a", "method": name, "low": low, "high": high}
        for name, (low, high) in graphs.items()
    ]
    probed = {"set": "published", "runtime": "onnxruntime", "to_fp32": {"a": 0.5}}
    for chosen, faster in (("u8", []), ("s8", ["a"])):
        (found,) = shown.choices(timed, [{**probed, "formats": [chosen]}])
        assert found["faster_in_other"] == faster
