"""The paper's tables beside ours: figures, folders, resuming, pictures."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from levit_search import architecture, cost
from levit_search.architecture import ABLATIONS, GRAFTS, LEVITS, Graft, Levit
from levit_search.errors import InputError, TrialError
from levit_search.latency import LatencyConfig
from levit_search.model import build, fold
from levit_search.model.blocks import Block
from levit_search.progress import StepProgress
from levit_search.reproduce import (
    TABLES,
    PaperRow,
    ReproductionStore,
    Run,
    check_columns,
    measuring,
    paper_ratios,
    published_table,
    rendering,
)
from levit_search.reproduce import training as trainings
from levit_search.reproduce.accuracies import (
    by_seed,
    chosen_lr,
    claims,
    difference,
    interval,
    summary,
)
from levit_search.reproduce.measuring import (
    Request,
    agreement,
    comparisons,
    components,
    deit_layer,
    levit_layer,
    reproduce,
    static_row,
    stem_rows,
)
from levit_search.reproduce.training import lacking, row_network
from levit_search.study import StudyConfig, read_config
from levit_search.train import Epoch, Training

ROOT = Path(__file__).parents[1]
PAPER = ROOT.parent / "shared" / "reference" / "paper.md"


def ours(table: str) -> list[PaperRow]:
    rows = published_table(table).built
    return [row for row in rows if row.network in architecture.published_names()]


def test_tables_hold_every_named_network_and_nothing_misspelt() -> None:
    names = {table: {row.network for row in ours(table)} for table in TABLES[:3]}
    assert names == {"grafting": set(GRAFTS), "variants": set(LEVITS), "ablation": set(ABLATIONS)}
    from levit_search.baseline import load

    for row in published_table("variants").built:
        if row.network not in LEVITS:
            assert row.network is not None
            assert load(row.network).num_classes == 1000


@pytest.mark.skipif(not PAPER.exists(), reason="the page of reference figures is not here")
def test_published_figures_are_those_of_the_reference_page() -> None:
    """Each row of ours against the same row there, number by number."""
    page = PAPER.read_text(encoding="utf-8")
    cells = [[c.strip() for c in line.strip("| \n").split("|")] for line in page.splitlines()]
    by_name = {row[0]: row[1:] for row in cells if len(row) in (3, 4)}
    speeds = ("top1_percent", "gpu_ips", "intel_ips", "arm_ips", "real_percent", "v2_percent")
    for row in published_table("variants").built:
        name = re.sub(r" distilled$", " (distilled)", row.name)
        lines = [r[1:] for r in cells if r[0] == name and len(r) == 7]
        assert [[float(c) for c in line] for line in lines] == [[row.paper[s] for s in speeds]]
    grafts = [r for r in cells if len(r) == 7 and r[0] in "01234" and r[0]]
    columns = ("params_m", "conv_mflops", "transformer_mflops", "gpu_ips", "top1_percent")
    for row, line in zip(published_table("grafting").rows, grafts, strict=True):
        assert [row.paper[c] for c in columns] == [float(c) for c in line[2:]]
    for row in published_table("ablation").rows:
        params, mflops, top1 = by_name[row.name.removeprefix("ablation-")][1].split(" / ")
        figures = [float(params.rstrip("M")), float(mflops.rstrip("M")), float(top1)]
        assert figures == [row.paper[c] for c in ("params_m", "mflops", "top1_percent")]
    for row in published_table("blocks").rows:
        if row.paper:
            found = by_name[row.name]
            assert float(found[0]) == row.paper["deit_us"]
            assert found[1] == "none" or float(found[1]) == row.paper["levit_us"]


def test_parameters_round_to_the_published_ones_but_where_those_were_cut_off() -> None:
    agrees = {r.name: static_row(r)["params_agree"] for t in TABLES[:3] for r in ours(t)}
    cut_off = {"graft-0-12", "graft-4-0"}  # 22.05 was printed as 22.0 and 25.557 as 25.5
    assert agrees == {name: "truncated" if name in cut_off else "rounded" for name in agrees}


def test_agreement_tells_rounding_from_cutting_off() -> None:
    assert agreement(7.777, 7.8) == "rounded"
    assert agreement(25.557, 25.5) == "truncated"
    assert agreement(25.4, 25.5) == "no"
    assert agreement(22.05, 22) == "rounded"


@pytest.mark.parametrize("table", TABLES[:3])
def test_flops_are_within_one_and_a_half_percent_of_the_published(table: str) -> None:
    compared = 0
    for row in ours(table):
        figures = static_row(row)
        for name, deviation in figures.items():
            if name == "conv_flops_deviation_percent" and table == "grafting":
                continue  # without batch norm; the figure with it is compared
            if name.endswith("_deviation_percent"):
                compared += 1
                assert abs(deviation) < 1.5, (row.name, name, deviation)
    assert compared >= len(ours(table))


def test_the_paper_compares_stems_and_so_do_we() -> None:
    levit, resnet18, resnet50 = stem_rows(published_table("variants"))
    assert levit["here"]["flops"] == 184_246_272
    assert resnet18["here"]["main_path_flops"] / 1e6 == pytest.approx(1042.8, abs=0.1)
    # What it takes beyond: the shortcut of layer2.0, 64 to 128 channels at 28x28.
    assert resnet18["here"]["flops"] - resnet18["here"]["main_path_flops"] == 64 * 128 * 28**2
    assert resnet50["here"]["flops"] > 3 * resnet18["here"]["flops"]


def test_paper_ratios_are_relative_to_the_first_row() -> None:
    rows = published_table("variants").rows
    assert paper_ratios(rows[0], rows[0]) == {"gpu": 1, "intel": 1, "arm": 1}
    assert paper_ratios(rows[1], rows[0])["intel"] == pytest.approx(30.1 / 131.1)
    grafts = published_table("grafting").rows
    assert paper_ratios(grafts[4], grafts[0]) == {"gpu": pytest.approx(1254 / 966)}


def test_comparisons_hold_each_levit_against_the_next_and_its_rival() -> None:
    table = published_table("variants")
    rows = {row.name: {"speed_ratio": 1.0} for row in table.built}
    rows["EfficientNet-B0"]["speed_ratio"] = 0.25
    found = {(c["faster"], c["slower"]): c for c in comparisons(Run("speed", {}, {}, rows), table)}
    assert len(found) == 8
    against_b0 = found["LeViT-128S", "EfficientNet-B0"]
    assert against_b0["times_faster"] == 4
    assert against_b0["paper_times_faster"] == pytest.approx(131.1 / 30.1)
    assert ("LeViT-256", "LeViT-384") in found


@pytest.mark.parametrize("table", TABLES)
def test_tables_know_their_groups_of_columns(table: str) -> None:
    assert check_columns(published_table(table), ["speed"]) == ("speed",)
    with pytest.raises(InputError, match=r"'sped'; did you mean 'speed'\?"):
        check_columns(published_table(table), ["sped"])
    with pytest.raises(InputError, match="none named"):
        check_columns(published_table(table), [])


def test_blocks_have_no_counts_and_an_unknown_table_is_named() -> None:
    with pytest.raises(InputError, match="'static'"):
        check_columns(published_table("blocks"), ["static"])
    with pytest.raises(InputError, match=r"'grafts'; did you mean 'grafting'\?"):
        published_table("grafts")


@pytest.mark.parametrize("kind", ["deit", "levit"])
def test_the_components_of_a_layer_make_up_the_layer(kind: str) -> None:
    """Put together by hand they give what the whole layer gives."""
    torch.manual_seed(0)
    block = deit_layer() if kind == "deit" else levit_layer()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tokens = 197 if kind == "deit" else 196
    parts = components(block, tokens, batch_size=2)
    assert {row.name for row in published_table("blocks").rows} - parts.keys() <= {"layer norm"}
    heads = block.attention.core.num_heads

    def by_head(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    with torch.no_grad():
        module, inputs = parts["total"]
        x = inputs["x"]
        normed = block.attention.norm(x)
        q, k = by_head(parts["Q, K"][0](normed)).chunk(2, dim=3)
        v = by_head(parts["V"][0](normed))
        shares = parts["bias and softmax"][0](parts["Q K^T"][0](q, k))
        y = x + parts["projection"][0](parts["A V"][0](shares, v))
        y = y + parts["MLP"][0](block.mlp.norm(y))
        torch.testing.assert_close(y, module(x), atol=1e-4, rtol=1e-4)
    for name, (part, inputs) in parts.items():
        assert part(*inputs.values()).shape[0] == 2, name


def training(tmp_path: Path, **changes: Any) -> StudyConfig:
    small = {
        "data.train_images": 128,
        "data.val_share": 0.1,
        "train.epochs": 2,
        "train.batch_size": 64,
        "start": [],
    }
    return read_config(ROOT / "spaces" / "levit.yaml", {**small, "teacher": None, **changes})


def request(tmp_path: Path, table: str, columns: tuple[str, ...], **changes: Any) -> Request:
    values: dict[str, Any] = {
        "table": published_table(table),
        "columns": columns,
        "latency": LatencyConfig(seconds=0.01, rounds=1),
        "training": training(tmp_path),
        "width_scale": 0.125,
        "environment": {"cpu": "a test"},
        "again": False,
    }
    return Request(**{**values, **changes})


class Watcher(StepProgress):
    """Notes what a reproduction tells, and may interrupt it."""

    def __init__(self, stop_at: str = "") -> None:
        super().__init__()
        self.steps: list[str] = []
        self.texts: list[str] = []
        self.stop_at = stop_at

    def begin(self, columns: str, count: int) -> None:
        self.steps.append(f"{columns} {count}")

    def step(self, name: str) -> None:
        if self.stop_at and name.startswith(self.stop_at):
            raise KeyboardInterrupt
        self.steps.append(name)

    def update(self, text: str, fraction: float | None) -> None:
        self.texts.append(text)


def run(wanted: Request, folder: Path, stop_at: str = "") -> tuple[ReproductionStore, Watcher]:
    results, watcher = ReproductionStore(folder, wanted.table.name), Watcher(stop_at)
    reproduce(wanted, results, watcher)
    return results, watcher


def test_static_columns_are_written_as_table_csv_and_json(tmp_path: Path) -> None:
    results, watcher = run(request(tmp_path, "grafting", ("static",)), tmp_path / "out")
    assert watcher.steps == ["static 5", *GRAFTS]
    rows = rendering.as_rows(published_table("grafting"), results)
    assert rows[2]["name"] == "graft-2-6"
    assert rows[2]["paper"]["params_m"] == 13.1
    network = architecture.published("graft-2-6")
    assert rows[2]["here"]["params"] == cost.cost(network).params
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| graft-2-6 | 13.14 | 13.1 | rounded |" in text
    assert "distillation token" in text
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text())))
    assert [int(line["flops"]) for line in lines] == [row["here"]["flops"] for row in rows]
    assert lines[4]["paper_conv_mflops"] == "4119"
    assert not (tmp_path / "out" / "curves.svg").exists()


@pytest.mark.slow
def test_an_interrupted_training_goes_on_and_a_finished_one_is_kept(tmp_path: Path) -> None:
    """Each row is trained once, whatever happens in between; --fresh trains again."""
    wanted = request(tmp_path, "grafting", ("accuracy",))
    with pytest.raises(KeyboardInterrupt):
        run(wanted, tmp_path / "out", stop_at="graft-2-6, seed 0")
    kept = json.loads((tmp_path / "out" / "results.json").read_text())["runs"][0]
    assert list(kept["rows"]) == ["graft-0-12", "graft-1-9"]
    assert kept["finished"] is None

    results, watcher = run(wanted, tmp_path / "out")
    assert watcher.texts.count("training") == 3
    rows = results.runs[0].rows
    assert {name: rows[name] for name in kept["rows"]} == kept["rows"]
    for row in rows.values():
        (figures,) = row["trainings"]
        assert 0 <= figures["test_top1_percent"] <= 100
        assert [point["epoch"] for point in figures["curve"]] == [1, 2]
        assert figures["network"]["image_size"] == 16

    _, watcher = run(wanted, tmp_path / "out")
    assert watcher.steps == []
    more, watcher = run(replace(wanted, seeds=2, jobs=2), tmp_path / "out")
    assert watcher.steps[0] == "accuracy 5"
    for name, row in more.runs[0].rows.items():
        assert [each["seed"] for each in row["trainings"]] == [0, 1]
        assert row["trainings"][0] == json.loads(json.dumps(rows[name]["trainings"][0]))

    text = (tmp_path / "out" / "table.md").read_text()
    assert "digits (128 training images) at 16 px, widths x 0.125, 2 epochs, AdamW, lr" in text
    assert "no teacher" in text
    picture = ElementTree.parse(tmp_path / "out" / "curves.svg")
    words = " ".join(
        "".join(node.itertext()) for node in picture.iter() if node.tag.endswith("text")
    )
    assert all(name in words for name in GRAFTS)


def test_other_settings_make_another_run_and_lose_nothing(tmp_path: Path) -> None:
    """The table shows what was asked for last; what was measured before stays in results.json."""
    run_of = {
        "columns": "accuracy",
        "settings": {"epochs": 300},
        "environment": {},
        "rows": {},
        "extra": {},
        "finished": "2026-01-01",
    }
    (tmp_path / "results.json").write_text(
        json.dumps({"version": 1, "table": "grafting", "runs": [run_of]})
    )
    results = ReproductionStore(tmp_path, "grafting")
    results.begin("accuracy", {"epochs": 3}, {}, keep=True)
    results.save()
    again = ReproductionStore(tmp_path, "grafting")
    assert [r.settings["epochs"] for r in again.runs] == [300, 3]
    assert again.latest("accuracy") == again.runs[1]
    assert again.begin("accuracy", {"epochs": 300}, {}, keep=True).finished == "2026-01-01"
    assert again.latest("accuracy") == again.runs[1]
    assert again.runs[1].settings == {"epochs": 300}


@pytest.mark.parametrize(
    ("protocol", "estimate"),
    [
        ({}, "median of pairs"),
        ({"protocol": 2}, "median of pairs"),
        ({"protocol": 3}, "mean of the rounds"),
    ],
)
def test_speeds_are_told_by_what_their_protocol_takes(
    tmp_path: Path, protocol: dict[str, int], estimate: str
) -> None:
    given = {"cpu": "a CPU", "runtime": "onnxruntime", "layout": "tokens"}
    settings = {**given, "threads": 1, "batch_size": 16, **protocol}
    results = ReproductionStore(tmp_path, "variants")
    results.finish(results.begin("speed", settings, {}, keep=False))
    notes = "\n".join(rendering.notes(published_table("variants"), results))
    assert f"; {estimate} with its 95 % interval;" in notes


def test_a_finished_timing_stays_until_it_is_measured_again(tmp_path: Path) -> None:
    results = ReproductionStore(tmp_path, "variants")
    first = results.begin("speed", {"batch_size": 1}, {}, keep=False)
    results.finish(first)
    second = results.begin("speed", {"batch_size": 1}, {}, keep=False)
    assert results.runs == [first, second]
    assert results.begin("speed", {"batch_size": 1}, {}, keep=False) is second  # not finished yet
    results.finish(second)
    assert results.runs == [second]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ('{"version": 1}', "cannot be read"), ("table", "holds ablation")],
)
def test_a_damaged_or_foreign_folder_is_refused(tmp_path: Path, content: str, message: str) -> None:
    if content == "table":
        content = json.dumps({"version": 1, "table": "ablation", "runs": []})
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=message):
        ReproductionStore(tmp_path, "grafting")
    assert (tmp_path / "results.json").read_text() == content


def test_two_commands_do_not_fill_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with ReproductionStore(folder, "grafting").lock():
        second = ReproductionStore(folder, "grafting").lock()
        with pytest.raises(InputError, match="another levit-search reproduce fills it"):
            second.__enter__()
    with ReproductionStore(folder, "grafting").lock():
        pass


def test_a_row_that_fails_is_named_and_the_others_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(network: Any, *_: Any) -> tuple[None, Training]:
        if isinstance(network, Graft) and network.donor is None:
            raise TrialError("the loss became nan in epoch 1")
        return None, Training(50.0, 100.0, 1.0, (Epoch(1, 1.0, 50.0, 1.0),))

    monkeypatch.setattr(trainings, "train_network", train)
    monkeypatch.setattr(trainings, "top1_percent", lambda *_: 50.0)
    results, _ = run(request(tmp_path, "grafting", ("accuracy",)), tmp_path / "out")
    assert results.failures() == {"accuracy: graft-0-12": "the loss became nan in epoch 1"}
    assert list(results.runs[0].rows) == list(GRAFTS)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "- graft-0-12 failed: the loss became nan in epoch 1" in text


@pytest.mark.parametrize("threads", [1, 2])
def test_components_are_timed_in_microseconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """Whichever clock counts; the pair's two figures have its ratio."""
    from levit_search.latency import Probe
    from levit_search.latency.protocol import Round, Samples, measurement

    timing = LatencyConfig(threads=threads, seconds=0.01, rounds=1)
    pair = [{"cpu": 2.0, "wall": 4.0, "single": 4.0}, {"cpu": 3.0, "wall": 6.0, "single": 6.0}]
    rounds = [Round([pair] * 6, [1, 1], 0.0, 0.01)] * 2
    samples = Samples(rounds, "tokens", "", None, {"runtimes": {"onnxruntime": "0"}})
    found = measurement(timing, samples, 2.0 * threads)
    monkeypatch.setattr(Probe, "time_graphs", lambda *_: [found])
    results, _ = run(request(tmp_path, "blocks", ("speed",), latency=timing), tmp_path / "out")
    row = results.runs[0].rows["MLP"]
    assert row["deit_us"] == 2000 * threads
    assert row["levit_us"] == pytest.approx(3000 * threads)
    assert row["levit_to_deit"] == pytest.approx(1.5)


@pytest.mark.parametrize("name", [*GRAFTS, "ablation-base", "ablation-A2", "ablation-A4"])
def test_rows_are_fitted_to_the_data_and_scaled(tmp_path: Path, name: str) -> None:
    table = published_table("ablation" if name in ABLATIONS else "grafting")
    row = next(row for row in table.rows if row.name == name)
    changes = {"data.name": "digits", "data.image_size": 32}
    from levit_search.data import describe

    config = training(tmp_path, **changes)
    network = row_network(row, table, config, describe(config.data), 0.25)
    assert isinstance(network, Graft | Levit)
    assert (network.image_size, network.in_channels, network.num_classes) == (32, 1, 10)
    if isinstance(network, Graft):
        assert network.grid in (8, None)
        assert network.trunk is None or network.trunk.embed_dim == 96
        assert network.donor is None or network.donor.width_scale == 0.25
    else:
        assert network.grids[0] == (8, 8)
        assert network.stages[0].embed_dim == 32
        assert network.distillation == (name != "ablation-A4")  # Table 5 trains with a teacher


def test_timm_networks_are_trained_at_full_width_only(tmp_path: Path) -> None:
    from levit_search.baseline import Baseline
    from levit_search.data import describe

    table = published_table("variants")
    row = next(row for row in table.rows if row.name == "EfficientNet-B0")
    config = training(tmp_path)
    info = describe(config.data)
    assert row_network(row, table, config, info, 0.25) is None
    network = row_network(row, table, config, info, 1)
    assert isinstance(network, Baseline)
    logits = network.build().eval()(torch.zeros(2, 1, 16, 16))
    assert logits.shape == (2, 10)


@pytest.mark.slow
def test_speeds_are_measured_against_the_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With small networks in the rows' places, through the real probe."""
    small = architecture.scaled(
        architecture.fitted(
            architecture.published("LeViT-128S"), image_size=32, in_channels=3, num_classes=10
        ),
        0.25,
    )
    larger = architecture.scaled(small, 4)
    networks = {"graft-0-12": small, "graft-4-0": larger}
    monkeypatch.setattr(measuring, "load_network", lambda name: networks.get(name, small))
    results, _ = run(request(tmp_path, "grafting", ("speed",)), tmp_path / "out")
    rows = results.runs[0].rows
    assert list(rows) == list(GRAFTS)
    assert rows["graft-0-12"]["speed_ratio"] == pytest.approx(1, rel=0.5)
    assert rows["graft-4-0"]["speed_ratio"] < 0.7
    low, high = rows["graft-4-0"]["speed_ratio_ci95"]
    assert low <= rows["graft-4-0"]["speed_ratio"] <= high
    text = (tmp_path / "out" / "table.md").read_text()
    assert "paper V100 x" in text
    assert "onnxruntime" in text


def test_the_folded_layers_of_table_6_are_the_papers() -> None:
    """Widths, heads and channels as the table's head gives them."""
    for block, width, heads, key_dim in (
        (deit_layer(), 192, 3, 64),
        (levit_layer(), 256, 4, 32),
    ):
        assert isinstance(block, Block)
        core = block.attention.core
        assert (core.num_heads, core.key_dim) == (heads, key_dim)
        assert block.attention.projection.linear.out_features == width
    model = fold(build(architecture.published("LeViT-256")))
    assert sum(isinstance(module, torch.nn.BatchNorm1d) for module in model.modules()) == 0


# --- accuracies over seeds


def trained(seed: int, lr: float, percent: float, curve: tuple[float, ...] = ()) -> dict[str, Any]:
    points = [{"epoch": e, "val_top1_percent": each} for e, each in enumerate(curve, start=1)]
    figures = {"test_top1_percent": percent, "val_top1_percent": percent, "curve": points}
    return {"seed": seed, "lr": lr, **figures, "training_seconds": 1.0}


def accuracies(rows: dict[str, list[dict[str, Any]]], lrs: tuple[float, ...] = (1e-3,)) -> Run:
    found = {name: {"trainings": each} for name, each in rows.items()}
    return Run("accuracy", {"lrs": list(lrs), "seed": 0}, {}, found)


def test_all_learning_rates_are_tried_by_the_first_seed_and_the_best_is_used() -> None:
    lrs = (1e-3, 3e-3)
    found = accuracies({"a": [trained(0, 1e-3, 70.0)]}, lrs)
    jobs = [tuple(job) for job in lacking(found, ["a", "b"], [0, 1], lrs)]
    assert jobs == [("b", 0, 1e-3), ("a", 0, 3e-3), ("b", 0, 3e-3)]
    found.rows["a"]["trainings"].append(trained(0, 3e-3, 72.0))
    assert chosen_lr(found.rows["a"]["trainings"], lrs, 0) == 3e-3
    jobs = [tuple(job) for job in lacking(found, ["a", "b"], [0, 1], lrs)]
    assert jobs == [("b", 0, 1e-3), ("b", 0, 3e-3), ("a", 1, 3e-3)]
    found.rows["a"]["trainings"].append(trained(1, 3e-3, 74.0))
    assert summary(found, "a")["test_top1_percent"] == 73.0
    assert summary(found, "a")["test_top1_sd"] == pytest.approx(2**0.5)
    assert summary(found, "b") == {}


def test_a_learning_rate_that_fails_is_not_taken() -> None:
    failed = {"seed": 0, "lr": 3e-3, "failed": "the loss became nan"}
    assert chosen_lr([trained(0, 1e-3, 20.0), failed], (1e-3, 3e-3), 0) == 1e-3
    assert chosen_lr([failed], (3e-3,), 0) is None


def test_an_interval_is_student_s() -> None:
    """Of 1, 2 and 3 the half width is 4.303 times the standard deviation over the root of 3."""
    found = interval([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.points, found.seeds) == (2.0, 3)
    assert found.high - found.points == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert interval([]) is None
    one = interval([1.0])
    assert one is not None
    assert one.verdict(1.0) == "cannot be told"


@pytest.mark.parametrize(
    ("points", "paper", "verdict"),
    [
        ((-2.0, -2.1, -1.9), -15.4, "holds"),
        ((2.0, 2.1, 1.9), -15.4, "reversed"),
        ((-1.0, 1.0, 0.3), -15.4, "cannot be told"),
    ],
)
def test_a_verdict_is_of_the_sign_alone(
    tmp_path: Path, points: tuple[float, ...], paper: float, verdict: str
) -> None:
    base = [trained(seed, 1e-3, 80.0 + seed) for seed in range(3)]
    row = [trained(seed, 1e-3, 80.0 + seed + each) for seed, each in enumerate(points)]
    found = accuracies({"ablation-base": base, "ablation-A1": row})
    apart = difference(found, "ablation-A1", "ablation-base")
    assert apart is not None
    assert apart.verdict(paper) == verdict
    store = ReproductionStore(tmp_path, "ablation")
    store.runs = [found]
    table = published_table("ablation")
    here = rendering.as_rows(table, store)[1]["here"]
    assert here["verdict"] == verdict
    assert here["paper_difference_points"] == -15.4
    _, cells = rendering.cells(table, store, ("accuracy",))
    assert cells[1][-1] == verdict
    assert f"({apart.low:+.2f} to {apart.high:+.2f})" in cells[1][-3]


def test_whom_grafts_follow_is_told_by_the_distance_of_curves() -> None:
    vit, resnet = (10.0, 20.0, 60.0), (50.0, 55.0, 58.0)
    middle = (49.0, 50.0, 60.5)
    rows = {name: [] for name in GRAFTS}
    for seed in range(3):
        for name in GRAFTS:
            curve = {"graft-0-12": vit, "graft-4-0": resnet}.get(name, middle)
            shifted = tuple(each + 0.01 * seed for each in curve)
            rows[name].append(trained(seed, 1e-3, shifted[-1], shifted))
    early, late, best = claims(published_table("grafting"), accuracies(rows))
    assert early.difference.points == pytest.approx(39 - 1)
    assert late.difference.points == pytest.approx(2.5 - 0.5)
    assert best.difference.points == pytest.approx(0.5)
    assert [each.verdict for each in (early, late, best)] == ["holds"] * 3
    assert claims(published_table("ablation"), accuracies({})) == []


def test_a_run_of_an_earlier_release_is_read_as_one_seed(tmp_path: Path) -> None:
    row = {"test_top1_percent": 80.0, "val_top1_percent": 81.0, "curve": []}
    settings = {"seed": 3, "train": {"lr": 0.01}}
    run_of = {"columns": "accuracy", "settings": settings, "environment": {}, "finished": "now"}
    content = {"version": 1, "table": "grafting", "runs": [{**run_of, "rows": {"graft-2-6": row}}]}
    (tmp_path / "results.json").write_text(json.dumps(content))
    (found,) = ReproductionStore(tmp_path, "grafting").runs
    assert by_seed(found, "graft-2-6") == {3: {"seed": 3, "lr": 0.01, **row}}
