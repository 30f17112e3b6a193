"""The scripts of the fidelity study and of the teachers' table, on hand-made results."""

import csv
import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.stats

from levit_search.errors import InputError, TrialError
from levit_search.study import StudyConfig, read_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def script(name: str) -> Any:
    """A module out of ``benchmarks/``."""
    module: ModuleType = importlib.import_module(name)
    return module


@pytest.fixture
def config() -> StudyConfig:
    return read_config(ROOT / "spaces" / "levit-fashion.yaml")


def row(network: str, flops: float, seed: int, schedule: int, epoch: int, top1: float) -> str:
    return f"{network},{flops / 2},{flops},{seed},{schedule},{epoch},1.0,{top1},{epoch * 2.0}"


def curves_file(folder: Path, *rows: str) -> Path:
    path = folder / "curves.csv"
    head = "network,params,flops,seed,schedule_epochs,epoch,train_loss,val_top1_percent,seconds"
    path.write_text("\n".join((head, *rows)) + "\n")
    return path


def four_networks(folder: Path) -> Path:
    """By FLOPs a, b, c, d; the truth after three epochs puts b above c, after one below."""
    finals = {"a": (1e6, [60, 65, 70.0]), "b": (2e6, [61, 70, 80.0])}
    finals |= {"c": (3e6, [66, 68, 75.0]), "d": (4e6, [70, 80, 90.0])}
    rows = [
        row(network, flops, seed, 3, epoch + 1, accuracy + seed)
        for seed in (0, 1)
        for network, (flops, curve) in finals.items()
        for epoch, accuracy in enumerate(curve)
    ]
    rows += [row(network, flops, 0, 1, 1, -flops) for network, (flops, _) in finals.items()]
    return curves_file(folder, *rows)


def test_tau_and_rho_of_samples_are_scipys() -> None:
    fidelity = script("fidelity")
    chance = np.random.default_rng(0)
    a, b = chance.integers(6, size=(2, 12)).astype(float)
    rows = chance.integers(12, size=(20, 12))

    taus = [scipy.stats.kendalltau(a[i], b[i]).statistic for i in rows]
    rhos = [scipy.stats.spearmanr(a[i], b[i]).statistic for i in rows]

    np.testing.assert_allclose(fidelity.taus(a, b, rows), taus)
    np.testing.assert_allclose(fidelity.rhos(a, b, rows), rhos)


def test_samples_of_equal_figures_have_no_tau() -> None:
    fidelity = script("fidelity")
    equal, other = np.ones(3), np.arange(3.0)

    assert np.isnan(fidelity.tau(equal, other))
    assert np.isnan(fidelity.rhos(equal, other, np.arange(3)[None])).all()


def test_agreement_of_rungs_and_schedules_of_their_own(tmp_path: Path) -> None:
    fidelity = script("fidelity")

    found = fidelity.report(fidelity.read_curves(four_networks(tmp_path)))

    # Of six pairs of networks one, b and c, has the other order after the first epoch.
    assert found["agreement"]["epoch 1 of 3"]["tau"] == pytest.approx(4 / 6)
    assert found["agreement"]["FLOPs"]["tau"] == pytest.approx(4 / 6)
    assert found["agreement"]["1 epoch"]["tau"] == pytest.approx(-4 / 6)
    assert set(found["agreement"]) == {"epoch 1 of 3", "1 epoch", "params", "FLOPs"}
    own = found["differences"][0]
    assert (own["of"], own["to"]) == ("1 epoch", "epoch 1 of 3")
    assert own["tau"] == pytest.approx(-8 / 6)


def test_seed_noise(tmp_path: Path) -> None:
    fidelity = script("fidelity")

    noise = fidelity.report(fidelity.read_curves(four_networks(tmp_path)))["noise"]

    assert noise["networks"] == 4
    assert noise["seeds"] == [0, 1]
    # The second seed is one point above everywhere.
    assert noise["sd"] == pytest.approx([0.5**0.5] * 3)
    assert noise["tau"] == pytest.approx(1)
    assert noise["other_seed"]["epoch 1 of 3"] == pytest.approx({"same": 4 / 6, "other": 4 / 6})


def test_without_other_seeds_there_is_no_noise(tmp_path: Path) -> None:
    fidelity, shown = script("fidelity"), script("fidelity_shown")
    rows = [row(n, 1e6 * i, 0, 2, e, 50 + e + i) for i, n in enumerate("abc", 1) for e in (1, 2)]

    found = fidelity.report(fidelity.read_curves(curves_file(tmp_path, *rows)))

    assert found["noise"] is None
    assert found["fronts_across_seeds"] == {}
    assert "Seed noise" not in shown.as_markdown(found)


def test_worth_of_a_front() -> None:
    fidelity = script("fidelity")
    flops = {"a": 1e6, "b": 1e7, "c": 1e7, "d": 1e8}
    truth = {"a": 70.0, "b": 80.0, "c": 78.0, "d": 90.0}

    same = fidelity.front_worth(truth, truth, flops)
    # c is taken for the better one of b and c, and d for worse than both.
    found = fidelity.front_worth({"a": 60, "b": 70, "c": 75, "d": 74}, truth, flops)

    assert (same["members"], same["recall"], same["hypervolume_share"]) == (3, 1, 1)
    assert same["regret_points"] == 0
    assert (found["members"], found["true_members"]) == (2, 3)
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["regret_points"] == pytest.approx((0 + 2 + 12) / 3)
    assert found["worst_regret_points"] == pytest.approx(12)
    # From guessing one of ten, an error of 0.9, and 1.1e8 FLOPs.
    last = math.log10(1.1)
    true = 0.6 + 0.7 + 0.8 * last
    assert found["hypervolume_share"] == pytest.approx((0.6 + 0.68 * (1 + last)) / true)


def test_epochs_that_a_front_costs() -> None:
    fidelity = script("fidelity")
    worth = {"networks": 10, "members": 2}

    def share(name: str) -> float:
        return float(fidelity.with_epochs(name, worth, 9)["epochs_share"])

    assert share("epoch 3 of 9") == pytest.approx((10 * 3 + 2 * 6) / 90)
    assert share("3 epochs") == pytest.approx((10 * 3 + 2 * 9) / 90)
    assert share("params") == pytest.approx(2 * 9 / 90)
    assert share("9 epochs") == pytest.approx(1)


def test_table_and_figure(tmp_path: Path) -> None:
    fidelity, shown = script("fidelity"), script("fidelity_shown")
    curves = fidelity.read_curves(four_networks(tmp_path))
    document = fidelity.report(curves)

    table = shown.as_markdown(document)

    assert "| epoch 1 of 3 | 4 | 0.667 |" in table
    assert "Two seeds of the longest schedule agree by a tau of 1.000" in table
    assert "- epoch 1 of 3: finds 3 of the true front's 3 members" in table
    assert shown.draw(curves, document).startswith(b"<?xml")
    json.dumps(document)


def test_report_without_curves_is_refused(tmp_path: Path) -> None:
    fidelity = script("fidelity")

    with pytest.raises(InputError, match="train first"):
        fidelity.read_curves(tmp_path / "curves.csv")
    with pytest.raises(InputError, match="fewer than three"):
        fidelity.read_curves(curves_file(tmp_path, row("a", 1e6, 0, 1, 1, 50)))


def test_the_subspace_belongs_to_the_space(config: StudyConfig) -> None:
    script_ = script("short_schedule")

    members = script_.subspace(config)

    assert len({member.id for member in members}) == 96
    order = script_.shuffled(members)
    assert order != members
    assert order == script_.shuffled(members)
    few = script_.spread(order)
    assert len({member.id for member in few}) == 16
    assert few == script_.spread(members)
    quarters = np.quantile([member.flops for member in members], (0.25, 0.5, 0.75))
    found = np.searchsorted(quarters, [member.flops for member in few])
    assert np.bincount(found).tolist() == [4, 4, 4, 4]


def test_the_order_of_jobs(config: StudyConfig) -> None:
    script_ = script("short_schedule")
    setup = script_.setup_of(config, 6000, 9)

    jobs = list(script_.jobs_of(setup, script_.shuffled(script_.subspace(config))))

    assert len({job.key for job in jobs}) == len(jobs) == 96 + 32 + 2 * 96
    assert [(j.seed, j.epochs) for j in jobs[:96]] == [(0, 9)] * 96
    assert [(j.seed, j.epochs) for j in jobs[96:128]] == [(1, 9)] * 16 + [(2, 9)] * 16
    few = {job.network.id for job in jobs[96:128]}
    assert {job.network.id for job in jobs[128:160]} == few
    assert {(j.seed, j.epochs) for j in jobs[128:]} == {(0, 1), (0, 3)}


def test_what_has_been_trained_is_not_trained_again(config: StudyConfig, tmp_path: Path) -> None:
    script_ = script("short_schedule")
    setup = script_.setup_of(config, 6000, 2)
    member = script_.subspace(config)[0]
    job = next(job for job in script_.jobs_of(setup, [member]) if job.epochs == 2)
    file = tmp_path / "curves.csv"

    script_.append(file, script_.rows_of(member, job, [(1, 2.0, 50.0, 1.0), (2, 1.0, 60.0, 2.0)]))
    assert script_.finished(script_.read_rows(file)) == {(member.id, 0, 2)}
    script_.append(file, script_.rows_of(member, job._replace(seed=1), [(1, 2.0, 51.5, 1.0)]))

    rows = list(csv.DictReader(file.open()))
    assert [(r["seed"], r["epoch"], float(r["val_top1_percent"])) for r in rows] == [
        ("0", "1", 50.0),
        ("0", "2", 60.0),
        ("1", "1", 51.5),
    ]
    assert tuple(rows[0]) == script_.COLUMNS
    assert {name: int(rows[0][name]) for name in script_.FACTORS} == member.factors


def test_curves_of_other_settings_are_refused(config: StudyConfig, tmp_path: Path) -> None:
    script_ = script("short_schedule")
    settings = script_.settings_of(config, script_.setup_of(config, 6000, 9))
    other = script_.settings_of(config, script_.setup_of(config, 5000, 9))

    script_.keep_settings(tmp_path, settings)
    script_.keep_settings(tmp_path, settings)
    script_.keep_teacher(tmp_path, {"id": "first"})
    script_.keep_teacher(tmp_path, {"id": "first"})
    with pytest.raises(InputError, match=r"data\.train_images was 6000, here 5000"):
        script_.keep_settings(tmp_path, other)
    with pytest.raises(InputError, match="teacher first, here it is second"):
        script_.keep_teacher(tmp_path, {"id": "second"})

    kept = json.loads((tmp_path / "settings.json").read_text())
    assert kept["settings"] == settings
    assert len(kept["sessions"]) == 2


def test_curves_without_settings_are_refused(config: StudyConfig, tmp_path: Path) -> None:
    script_ = script("short_schedule")
    curves_file(tmp_path)

    with pytest.raises(InputError, match=r"without settings\.json"):
        script_.keep_settings(tmp_path, {})


def test_wrong_settings_end_with_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script_ = script("short_schedule")
    monkeypatch.setattr(sys, "argv", ["short_schedule.py", "report", "--folder", str(tmp_path)])

    assert script_.main() == 2
    assert "no such file" in capsys.readouterr().err


def half(number: int) -> float:
    """A job for a worker."""
    if number == 0:
        raise TrialError("none left")
    return number / 2


def test_jobs_are_carried_out_and_failures_are_results() -> None:
    job_pool = script("job_pool")

    found = dict(job_pool.carried_out(half, [4, 0, 6], 1))

    assert (found[4], found[6]) == (2.0, 3.0)
    assert isinstance(found[0], TrialError)


def test_no_job_is_started_when_the_time_is_up() -> None:
    job_pool = script("job_pool")

    assert list(job_pool.carried_out(half, [4, 6], 1, minutes=0)) == []


def teachers_document(script_: Any, setup: Any) -> dict[str, Any]:
    accuracies = {(None, "none"): (70.0, 71.0, 72.0), ("small", "soft"): (72.0, 73.1, 73.9)}
    runs = [
        {
            "teacher": teacher,
            "distillation": kind,
            "seed": seed,
            "seconds": 10.0,
            "val_top1_percent": accuracy,
            "test_top1_percent": accuracy - 1,
        }
        for (teacher, kind), values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    return {
        "settings": setup.model_dump(mode="json"),
        "sessions": [{"cpu": "a CPU", "packages": {"torch": "2"}, "revision": "r"}],
        "student": {"params": 250000, "flops": 2e6},
        "teachers": {"small": {"params": 150000, "val_top1_percent": 85.0}},
        "runs": runs,
    }


def test_gains_of_teachers_are_paired_by_seed(config: StudyConfig) -> None:
    script_ = script("teachers")
    document = teachers_document(script_, script_.setup_of(config, 6000, 9))

    plain, taught = script_.rows_of(document)
    table = script_.as_markdown(document)

    assert plain["val_gain_points"] == {}
    assert taught["val_gain_points"]["mean"] == pytest.approx(2.0)
    assert taught["val_gain_points"]["sd"] == pytest.approx(0.1)
    assert taught["val_gain_points"]["half_interval"] == pytest.approx(4.3027 * 0.1 / 3**0.5, 1e-3)
    assert "| small | 0.15 | 85.00 | soft | 3 | 73.00 ± 0.95 | +2.00 ± 0.10 |" in table
    assert "Soft distillation from the small teacher helps: +2.00 points on test" in table


def test_results_of_teachers_are_gone_on_with(config: StudyConfig, tmp_path: Path) -> None:
    script_ = script("teachers")
    setup = script_.setup_of(config, 6000, 9)
    document = teachers_document(script_, setup)
    (tmp_path / "results.json").write_text(json.dumps(document))

    assert script_.begun(tmp_path, setup)["runs"] == document["runs"]
    with pytest.raises(InputError, match=r"train\.epochs was 9, here 8"):
        script_.begun(tmp_path, script_.setup_of(config, 6000, 8))
