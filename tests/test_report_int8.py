"""What a report says of networks in int8."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

import levit_search as ls
from levit_search import table
from levit_search.drawing.chart import Chart
from levit_search.report import contents, write_report
from levit_search.report.charts import figures
from levit_search.report.choices import FEWEST, Choices
from levit_search.report.int8_figures import DROP, choices_text, int8_of, int8_text, network_text
from levit_search.study import Record, Study
from tests.conftest import ROOT, Cli

CHANGES: dict[str, Any] = {
    "storage": "journal",
    "targets": {"pi": "ssh://someone@secret.example"},
    "objectives": ["top1_int8_percent", "latency_int8_ms", "latency_ms", "latency_int8_ms@pi"],
    "architecture.activation": {"choices": ["hardswish", "relu", "gelu"]},
}


@pytest.fixture(scope="module")
def make() -> Any:
    """``make`` of benchmarks/made_study.py, whose networks with hardswish lose most in int8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import made_study

        yield made_study.make


@pytest.fixture(scope="module")
def study(make: Callable[..., Study], tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("made") / "study"
    return make(folder, ls.read_space("levit", CHANGES), 80)


@pytest.fixture(scope="module")
def document(study: Study) -> dict[str, Any]:
    return contents(study)


def evaluated(study: Study) -> list[Record]:
    return [record for record in study.records() if record.is_evaluated]


def choices_of(study: Study) -> Choices:
    sample = evaluated(study)[0].architecture
    assert sample is not None
    return Choices(study.config, sample)


def test_a_drop_is_what_int8_costs(study: Study, document: dict[str, Any]) -> None:
    drops = []
    for record in evaluated(study):
        values = record.values
        assert values[DROP] == values["top1_percent"] - values["top1_int8_percent"]
        drops.append(values[DROP])
    found = document["int8"]["drop"]
    assert found["median"] == pytest.approx(np.median(drops)) and found["worst"] == max(drops)
    assert document["int8"]["image_points"] == pytest.approx(100 / 288)


def test_both_fronts_are_those_of_the_networks(study: Study, document: dict[str, Any]) -> None:
    costs, on_pi = document["int8"]["costs"]
    assert (costs["float"], costs["int8"]) == ("latency_ms", "latency_int8_ms")
    assert (on_pi["float"], on_pi["int8"]) == ("latency_ms@pi", "latency_int8_ms@pi")
    for precision, up in (("float", "top1_percent"), ("int8", "top1_int8_percent")):
        best = table.front(evaluated(study), (costs[precision], up))
        assert costs[f"{precision}_front"] == [record.trial for record in best]
    drawn = figures(document)
    chart, _ = drawn["int8-fronts"]
    assert isinstance(chart, Chart)
    named = {series.name: series for series in chart.series if series.name}
    assert named["int8, front"].trials == costs["int8_front"]
    assert len(named["int8, front"].x) + len(named["int8, dominated"].x) == len(evaluated(study))
    (drop,) = drawn["int8-drop"]
    assert isinstance(drop, Chart)
    points = [y for series in drop.series if series.mark for y in series.y]
    assert sorted(points) == pytest.approx(sorted(r.values[DROP] for r in evaluated(study)))


def test_without_both_latencies_fronts_are_against_flops(study: Study) -> None:
    records = [
        replace(record, values={n: v for n, v in record.values.items() if "latency_ms" not in n})
        for record in evaluated(study)
    ]
    found = int8_of(records, study.config, {}, choices_of(study))
    assert found is not None
    assert [(each["float"], each["int8"]) for each in found["costs"]] == [("flops", "flops")]
    assert found["image_points"] is None and "One image" not in int8_text(found)[0]


def test_networks_that_were_only_timed_in_int8_have_no_drop(study: Study) -> None:
    names = ("latency_int8_ms", "flops", "params")
    records = [
        replace(r, values={n: r.values[n] for n in names}, evaluation={}) for r in evaluated(study)
    ]
    found = int8_of(records, study.config, {}, choices_of(study))
    assert found is not None
    assert (found["figures"], found["costs"]) == (["latency_int8_ms"], [])
    assert found["drop"] is None and found["choices"] == [] and not int8_text(found)
    ms = table.figure("latency_int8_ms", records[0].values["latency_int8_ms"])
    assert network_text(records[0]) == f"int8 ms {ms}."


def test_the_choice_that_costs_most_in_int8_is_named(document: dict[str, Any]) -> None:
    found = document["int8"]["choices"]
    first = found[0]
    assert first["choice"] == "activation hardswish" and first["chance"] < 0.001
    assert 0.5 < first["low"] < first["correlation"] < first["high"] <= 1
    assert first["median_most"] > first["median_least"] + 0.3
    named, _, rest = choices_text(document["int8"]).partition(". ")
    assert "activation hardswish (+" in named and "embed_dim" not in named
    assert "bootstrap" in rest
    by_luck = [each for each in found if not each["choice"].startswith("activation ")]
    assert all(each["chance"] > 0.05 for each in by_luck)


def test_correlations_are_spearmans(study: Study) -> None:
    choices = choices_of(study)
    index = list(choices.slots).index("stages.0.embed_dim")
    rows = []
    for record in evaluated(study):
        places = choices.places(record.architecture)
        assert places is not None
        rows.append((places[index], record.values[DROP]))
    found = choices.associations(evaluated(study), DROP)
    mine = next(each for each in found if each.choice.startswith("stages.0.embed_dim "))
    assert mine.correlation == pytest.approx(spearmanr(rows).statistic)
    assert mine.networks == len(rows)


def test_too_few_networks_tell_of_no_choice(study: Study) -> None:
    few = evaluated(study)[: FEWEST - 1]
    found = int8_of(few, study.config, {}, choices_of(study))
    assert found is not None and found["choices"] == []
    assert f"{FEWEST} networks or more" in choices_text(found) and "are 19" in choices_text(found)
    same = [replace(r, values={**r.values, DROP: 0.25}) for r in evaluated(study)]
    assert choices_of(study).associations(same, DROP) == []


def test_where_no_choice_goes_with_the_drop_that_is_said(study: Study) -> None:
    rng = np.random.default_rng(1)
    records = [
        replace(record, values={**record.values, DROP: float(rng.normal())})
        for record in evaluated(study)
    ]
    found = int8_of(records, study.config, {}, choices_of(study))
    assert found is not None and choices_text(found).startswith("None, beyond luck.")


def test_tables_have_int8_beside_float(study: Study) -> None:
    front = table.front(study.records(), study.config.objectives)
    heads = table.markdown(front, study.config.objectives).splitlines()[0]
    for head in ("top-1 %", "int8 top-1 %", "int8 drop", "latency ms", "int8 ms", "file MB"):
        assert f"| {head} |" in heads
    (row, *_) = csv.DictReader(io.StringIO(table.as_csv(front)))
    assert float(row[DROP]) == front[0].values[DROP]
    assert row["latency_int8_ms@pi"] and row["model_bytes"]
    assert table.as_json(front[0])["top1_int8_percent"] == front[0].values["top1_int8_percent"]


def test_show_tells_a_trial_s_figures_in_int8(study: Study, cli: Cli) -> None:
    record = evaluated(study)[0]
    shown = cli("show", f"{study.folder}#{record.trial}")
    assert shown.returncode == 0, shown.stderr
    told = " ".join(shown.stdout.split())
    told = told[told.index("int8 top-1 %") :]
    percents = [f"{record.values[f'top1{each}_percent']:.2f}" for each in ("_int8", "")]
    assert told.startswith(f"int8 top-1 % {percents[0]} (float {percents[1]}), int8 ms ")
    assert "u8-reduced, onnxruntime" in told and "kept in float: attention (8)" in told
    assert "int8" not in cli("show", "LeViT-128S").stdout


def test_the_page_has_a_section_on_int8(study: Study, document: dict[str, Any]) -> None:
    text = write_report(study).read_text("utf-8")
    section = text[text.index('<section id="int8"') : text.index('<section id="failures"')]
    assert "lose" in section and "u8-reduced" in section and section.count("<svg") == 6
    assert "Kept in float, as asked: attention." in section
    best = [
        each[f"{name}_front"] for each in document["int8"]["costs"] for name in ("float", "int8")
    ]
    linked = {int(trial) for trial in re.findall(r'href="#trial-(\d+)"', section)}
    assert linked == {trial for each in best for trial in each}
    shown = json.loads(re.findall(r'id="study">(.*?)</script>', text, re.S)[0])
    first = shown["details"][str(document["chosen"][0])]["int8"]
    assert [row[0] for row in first["rows"]] == ["top-1 %", "latency ms", "latency ms @pi"]
    assert first["rows"][0][3].endswith(" points") and first["rows"][1][3].endswith(" x")
    assert "attention (8)" in first["text"] and "128 images of train" in first["text"]
    tab = next(each for each in shown["tabs"] if each["figure"] == "latency_int8_ms")
    assert "int8 (u8-reduced)" in tab["note"]


def test_what_a_study_says_of_int8_stays_data(study: Study, document: dict[str, Any]) -> None:
    from levit_search.report.page import page

    markup = "<img src=x onerror=alert(1)>"
    changed = {
        "formats": {"": markup},
        "operators": {"quantized": {markup: 1}, "kept": {}, "left": {}},
    }
    first = {**document["int8"]["choices"][0], "choice": markup}
    hostile = {**document, "int8": {**document["int8"], **changed, "choices": [first]}}
    assert "<img" not in page(study, hostile)


def test_a_study_without_int8_has_none_of_it(make: Callable[..., Study], tmp_path: Path) -> None:
    study = make(tmp_path / "study", ls.read_space("levit", {"storage": "journal"}), 6)
    assert contents(study)["int8"] is None
    text = write_report(study).read_text("utf-8")
    assert 'id="int8"' not in text and "In int8" not in text
    front = table.front(study.records(), study.config.objectives)
    assert "int8" not in table.as_csv(front) + table.markdown(front, study.config.objectives)
