"""The report's pictures as PNG and SVG."""

import copy
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file

from levit_search.drawing.chart import Axis, Chart, Drawable, Series, picture
from levit_search.errors import BudgetError, InputError, UnknownNameError
from levit_search.report.charts import (
    ChoiceLines,
    figures,
    front,
    hypervolume,
    importance,
    learning_curves,
    write_pictures,
)
from levit_search.report.contents import Document, contents
from levit_search.search import search
from levit_search.study import Study, read_config
from tests.engines import CurveEngine, FailingEngine, StubEngine
from tests.networks import tiny_description, tiny_space

SVG = "{http://www.w3.org/2000/svg}"
FIRST = tiny_description(stages=[{"depth": 1, "embed_dim": 8, "num_heads": 1, "key_dim": 8}])


def studied(path: Path, folder: Path, engine: type = StubEngine, **changes: Any) -> Study:
    config = read_config(path, {"storage": "journal", **changes})  # the quickest
    study = Study.create(folder, config, ["test"])
    search(study, engine=engine)
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """With stopped trials and a front."""
    folder = tmp_path_factory.mktemp("static")
    train = {"epochs": 9, "rungs": [1, 3], "device": "cpu"}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_space(train=train, start=[FIRST])))
    return studied(folder / "tiny.yaml", folder / "s", CurveEngine, **{"search.trials": 12})


@pytest.fixture(scope="module")
def told(study: Study) -> Document:
    return contents(study)


@pytest.fixture
def document(told: Document) -> Document:
    """What there is to draw, for the test to change."""
    return copy.deepcopy(told)


@pytest.fixture(scope="module")
def svgs(study: Study) -> list[Path]:
    """Every picture, drawn without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return write_pictures(study, "svg")


def series_of(chart: Drawable) -> dict[str, Series]:
    """Those that stand in the legend, by their names."""
    assert isinstance(chart, Chart)
    return {series.name: series for series in chart.series if series.name}


def texts(svg: Path) -> set[str]:
    return {each.text or "" for each in ElementTree.parse(svg).iter(f"{SVG}text")}


def test_every_picture_is_a_whole_svg(study: Study, told: Document, svgs: list[Path]) -> None:
    knee = told["chosen"][0]
    names = {"front-flops", "front-params", "hypervolume", "learning-curves", "choices"}
    assert {path.name for path in svgs} == {
        f"{name}.svg" for name in [*names, f"trial-{knee}-blocks"]
    }
    assert all(path.parent == study.folder / "pictures" and texts(path) for path in svgs)


def test_pngs_are_whole_pictures_of_the_same_names(
    study: Study, svgs: list[Path], tmp_path: Path
) -> None:
    written = write_pictures(study, "png", tmp_path)
    assert [path.name for path in written] == [path.with_suffix(".png").name for path in svgs]
    for path in written:
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 100
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10


def test_the_same_study_gives_the_same_files_and_a_picked_network_more(
    study: Study, told: Document, svgs: list[Path], tmp_path: Path
) -> None:
    other, network = next(
        (record.trial, record.architecture)
        for record in study.records()
        if record.architecture is not None
        and len(record.architecture.stages) == 1
        and record.trial != told["chosen"][0]
    )
    study.checkpoints.mkdir(exist_ok=True)
    bias = np.zeros((1, 16), dtype=np.float32)  # of a head, on a grid of 4x4
    save_file(
        {"stages.0.blocks.0.attention.core.attention_bias": bias},
        study.checkpoints / f"{network.id}.safetensors",
    )
    written = write_pictures(study, "svg", tmp_path, [f"trial={other}"])
    assert [p.name for p in written[: len(svgs)]] == [p.name for p in svgs]
    assert [p.read_bytes() for p in written[: len(svgs)]] == [p.read_bytes() for p in svgs]
    more = written[len(svgs) :]
    assert [path.stem for path in more] == [f"trial-{other}-blocks", f"trial-{other}-weights"]
    assert "Attention biases" in texts(more[1])


def test_axes_are_named_for_people_with_their_units(document: Document) -> None:
    chart = front(document, document["tabs"][0])
    assert (chart.x.label, chart.y.label) == ("FLOPs, M", "Top-1 accuracy, %")
    low, high = chart.x.ends(series_of(chart)["front"].x)
    assert 0.001 < low < high < 10, "millions"
    heads = [chart.x.label for chart in hypervolume(document)]
    assert heads[:2] == ["proposals", "epochs trained"]


def test_the_front_is_told_from_what_it_dominates(document: Document) -> None:
    series = series_of(front(document, document["tabs"][0]))
    assert {"front", "dominated", "knee", "tried first"} <= series.keys()
    best = [t for t in document["trials"] if t["on_front"]]
    found = sorted(zip(series["front"].x, series["front"].y, strict=True))
    expected = sorted((t["values"]["flops"] / 1e6, t["values"]["top1_percent"]) for t in best)
    assert found == expected
    complete = [t for t in document["trials"] if t["state"] == "complete" and not t["reused_from"]]
    assert len(series["dominated"].x) == len(complete) - len(best)
    assert len({each.mark for each in series.values()}) >= 3, "not by colour alone"


def test_stopped_and_front_curves_are_there(document: Document) -> None:
    chart = learning_curves(document)
    assert chart.y.label == "Top-1 accuracy, % (val)"
    stopped = [t for t in document["trials"] if t["outcome"] == "stopped"]
    assert len(series_of(chart)["stopped at a rung"].x) == len(stopped) > 0
    assert {rule.text.split(":")[0] for rule in chart.rules} == {"rung"}


def test_a_choice_that_means_nothing_has_a_place_of_its_own(document: Document) -> None:
    lines = ChoiceLines(document)
    heads = [head for head, _ in lines.axes]
    assert heads == [*document["slots"], "Top-1 accuracy, %", "FLOPs, M"]
    trials = {trial["trial"]: trial["choices"] for trial in document["trials"]}
    absent = 0
    for trial, places in lines.lines.items():
        assert len(places) == len(heads) and all(0 <= place <= 1 for place in places)
        for choice, place, (_, texts) in zip(trials[trial], places, lines.axes, strict=False):
            if choice is None:
                absent += 1
                assert texts[0] == "\u2013" and place < 1 / len(texts)
    assert absent > 0


def test_importance_has_a_bar_for_each_objective_and_slot(document: Document) -> None:
    slots = list(document["slots"])
    document["importance"] = {
        "top1_percent": {slots[0]: 0.7, slots[1]: 0.2},
        "flops": {slots[1]: 0.9},
    }
    assert "importance" in figures(document)
    bars = importance(document)
    assert list(bars.labels) == [slots[1], slots[0]]
    assert [v for values in bars.groups.values() for v in values] == pytest.approx([20, 70, 90, 0])
    drawn = ElementTree.fromstring(picture([bars]))
    widths = [float(b.attrib["width"]) for b in drawn.iter(f"{SVG}rect") if "fill" in b.attrib]
    assert widths[:4] == pytest.approx(
        [2 / 9 * widths[1], widths[1], 7 / 9 * widths[1], 1], abs=0.1
    )


def test_predicted_latencies_are_drawn_against_measured_ones(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(objectives=["top1_percent", "latency_ms"])
    document = contents(studied(path, tmp_path / "s", **{"search.trials": 3}))
    assert "predicted-latency" not in figures(document)
    document["prediction"] = [[1.0, 1.2, 0], [2.0, 1.9, 1]]
    drawn = figures(document)
    networks = series_of(drawn["predicted-latency"][0])["networks"]
    assert (networks.x, networks.y) == ([1.2, 1.9], [1.0, 2.0])
    assert "Latency, ms" in drawn["front-latency_ms"][0].description


def test_published_networks_and_references_are_marked(document: Document) -> None:
    document["published"] = [
        {"name": "LeViT-128S", "values": {"top1_percent": 76.6, "flops": 305e6}},
        {"name": "without", "values": {"top1_percent": 76.6}},
    ]
    document["trials"][0]["name"] = "tiny = small"
    tab = document["tabs"][0]
    reference = {"name": "a", "ms": 0.5, "trial": None}
    chart = front(document, {**tab, "reference": reference, "device": "cpu"})
    assert {"LeViT-128S", "tiny = small"} == {text for s in chart.series for text in s.labels}
    assert "the paper's" in series_of(chart)
    assert [rule.text for rule in chart.rules] == ["reference, 0.5 ms"]
    own = front(document, {**tab, "reference": {**reference, "trial": 0}, "device": "cpu"})
    assert "reference" in series_of(own)


def test_markup_in_a_device_is_text(document: Document, tmp_path: Path) -> None:
    path = tmp_path / "front.svg"
    path.write_text(picture([front(document, {**document["tabs"][0], "device": "a <b> & $c_$"})]))
    assert "a <b> & $c_$" in texts(path)


def test_what_there_is_nothing_to_show_of_is_left_out(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(objectives=["params", "flops"])
    drawn = figures(contents(studied(path, tmp_path / "s", **{"search.trials": 1})))
    assert set(drawn) == {"front-flops", "hypervolume", "choices"}
    assert drawn["front-flops"][0].description.startswith("Parameters, M against FLOPs, M")


def test_wrong_input_is_told(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="format"):
        write_pictures(study, "pdf")
    with pytest.raises(InputError):
        write_pictures(study, "svg", picked=["trial=99"])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: cannot be written"):
        write_pictures(study, "svg", tmp_path / "file")


def test_a_study_without_a_complete_trial_is_told(
    space_file: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match="the only network failed"):
        studied(space_file(), tmp_path / "s", FailingEngine, **{"search.trials": 1})
    study = Study.open(tmp_path / "s")
    with pytest.raises(InputError, match="none complete"):
        write_pictures(study, "svg")
    assert not (study.folder / "pictures").exists()


@pytest.mark.parametrize("ends", [(1.0, 1.4), (0.15, 0.7), (1.0, 40.0), (0.001, 1000.0)])
def test_a_log_axis_has_ticks_to_read(ends: tuple[float, float]) -> None:
    axis = Axis("", is_log=True)
    low, high = axis.ends(ends)
    shown = axis.ticks(low, high, 10)
    assert 3 <= len(shown) <= 10
    assert all(low <= value <= high for value in shown)
