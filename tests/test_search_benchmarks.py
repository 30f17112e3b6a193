"""The benchmarks of the search: recorded curves replayed, and the driver's own cost."""

import json
from pathlib import Path

import numpy as np
import pytest

from levit_search.recipe import TeacherConfig
from levit_search.study import StudyConfig, parse_settings, read_config
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_every_network_of_the_table_is_in_its_space() -> None:
    from replay import short_schedule_table, table_config

    table = short_schedule_table()
    space = table_config(table, {}).space()
    assert space.size() == len(table.curves) == 96
    for network in table.networks.values():
        values = space.encode(network)
        assert values is not None
        assert space.decode(values) == network
        assert len(table.curves[network.id]) == len(table.seconds[network.id]) == table.epochs


@pytest.mark.parametrize("changes", [{}, {"sampler": "tpe"}, {"reduction": None}])
def test_a_replayed_search_pays_no_epoch_twice(changes: dict[str, object]) -> None:
    from replay import OBJECTIVES, short_schedule_table
    from search_quality import replay

    table = short_schedule_table()
    acts, _ = replay(table, OBJECTIVES, 0, changes, most=60)
    at: dict[str, int] = {}
    spent = 0
    for network, epoch in acts:
        assert epoch > at.get(network, 0)
        spent += epoch - at.get(network, 0)
        at[network] = epoch
    assert 60 <= spent < 60 + 9
    assert set(at.values()) <= ({9} if "reduction" in changes else {1, 3, 9})


def test_the_worth_of_all_networks_is_one_and_of_few_less() -> None:
    from replay import short_schedule_table
    from search_quality import exported
    from search_quality_shown import Worth, at

    worth = Worth(exported(short_schedule_table(), "flops"))
    whole = worth.steps([(place, 9) for place in range(96)], "epochs")
    assert at(whole, np.array([8.0, 96 * 9])) == pytest.approx([0.0, 1.0])
    partly = worth.steps([(0, 1), (1, 9), (0, 9), (2, 3)], "epochs")
    ends, shares = partly
    assert ends.tolist() == [10, 18], "only what was trained to the end counts, when it was"
    assert 0 <= shares[0] <= shares[1] < 1
    assert at(partly, np.array([9.0, 10.0, 17.0, 18.0])).tolist() == [0, *shares[[0, 0, 1]]]
    by_seconds, _ = worth.steps([(0, 1), (0, 9)], "seconds")
    assert by_seconds[0] == pytest.approx(short_schedule_table().seconds[_first()][-1])


@pytest.mark.parametrize(
    "searcher", ["random", "cheapest, then random", "synchronous halving, batches of 24"]
)
def test_simple_searchers_pay_no_epoch_twice_and_know_accuracies_from_costs(searcher: str) -> None:
    import peers
    from replay import short_schedule_table
    from search_quality import exported

    given = exported(short_schedule_table(), "flops")
    in_int8 = [float(each[-1]) - 0.1 for each in given["accuracy"]]
    given["objectives"] = ("top1_percent", "top1_int8_percent", "flops")
    given["costs"] = {"top1_int8_percent": in_int8, **given["costs"]}
    table = peers.Table(given)
    error, error_in_int8, flops = table.figures(3, 9)
    assert error_in_int8 == pytest.approx(error + 0.001)
    assert 10**flops == pytest.approx(given["costs"]["flops"][3])
    run = peers.searched((given, searcher, 0), float("inf"))
    assert run is not None
    at: dict[int, int] = {}
    for network, epoch in run["acts"]:
        assert epoch > at.get(network, 0)
        at[network] = epoch
    if searcher.startswith("cheapest"):
        assert run["acts"][0][0] == int(np.argmin(given["costs"]["flops"]))


def _first() -> str:
    from replay import short_schedule_table

    return next(iter(short_schedule_table().networks))


def test_the_stored_trials_of_the_overhead_are_a_study_that_goes_on(tmp_path: Path) -> None:
    import overhead

    study = overhead.filled(tmp_path / "s", overhead.config_of("journal", "random", None), 20)
    assert len(study.records()) == 20
    assert len(overhead.ours(study, 20, 3)) == 3
    assert len(study.records()) >= 24
    assert len(overhead.bare(study, "random", 2)) == 2


def test_copied_trials_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import overhead

    monkeypatch.setattr(overhead, "_WRITTEN", 5)
    study = overhead.filled(tmp_path / "s", overhead.config_of(None, "random", None), 15)
    records = study.records()
    assert [record.trial for record in records] == list(range(15))
    for record, copied in zip(records[:5], records[5:10], strict=True):
        assert (record.architecture, record.values) == (copied.architecture, copied.values)


def test_the_regression_beside_a_supernet_never_saw_the_network_it_predicts() -> None:
    from rank_study_shown import _left_out

    features = {str(n): [float(n % 2), float(n % 5), float(n)] for n in range(12)}
    truth = {name: 80 + a + 0.5 * b for name, (a, b, _) in features.items()}
    assert _left_out(features, truth) == pytest.approx(truth), "what is linear it finds exactly"
    other = {**truth, "3": 0.0}
    assert _left_out(features, other)["3"] == pytest.approx(truth["3"])
    assert _left_out(features, other)["4"] != pytest.approx(truth["4"])


def test_the_table_of_the_supernet_s_ranking_is_that_of_its_figures() -> None:
    from rank_study_shown import as_markdown, document_of

    folder = ROOT / "studies" / "supernet"
    assert as_markdown(document_of(folder)) == (folder / "table.md").read_text()


def test_the_card_of_a_table_tells_what_its_trainings_are_like(tmp_path: Path) -> None:
    import search_table
    import search_table_shown

    networks = search_table.networks_of(_sampled().space(), tmp_path)[:40]
    rng = np.random.default_rng(0)
    for place, network in enumerate(networks):
        for seed in (0, 1, 2) if place % 4 == 0 else (0,):
            width = network.stages[0].embed_dim
            curve = [60 + width / 8 - 20 / epoch + rng.normal(0, 0.1) for epoch in range(1, 10)]
            seconds = [5.0 * epoch for epoch in range(1, 10)]
            found = search_table.Trained(curve, seconds, curve[-1] - 0.1)
            job = search_table.Job("", network, seed)
            row = search_table.row_of(job, found)
            search_table.append(tmp_path / "trainings.csv", search_table.TRAININGS, [row])
    settings = {"flops_limit": 8e6, "drawn_with_seed": 0, "int8_format": "u8"}
    settings |= {"data": {"train_images": 4000, "val_share": 0.05}}
    told = {"settings": settings, "sessions": [{"cpu": "a machine"}]}
    (tmp_path / "settings.json").write_text(json.dumps(told))
    document = search_table_shown.document_of(tmp_path)
    assert (document["networks"], document["trainings"]) == (40, 60)
    assert document["networks_with_all_seeds"] == 10
    factors = document["r2_of_single_factors"]
    assert max(factors, key=lambda name: factors[name]) == "stages.0.embed_dim"
    assert factors["stages.0.embed_dim"] > 0.95
    assert document["r2_of_a_linear_model"] > 0.9
    assert document["noise_of_a_seed"] == pytest.approx(0.1, rel=0.6)
    assert document["drop_in_int8"]["median"] == pytest.approx(0.1)
    card = search_table_shown.as_markdown(document)
    assert "40 networks" in card
    assert "a machine" in card
    reader = card.partition("```python\n")[2].partition("```")[0]
    assert len(reader.strip().splitlines()) <= 13


def test_quarters_of_a_table_have_all_seeds_wherever_it_ends() -> None:
    import search_table
    import short_schedule
    from replay import _config

    setup = short_schedule.Setup(
        data=_config().data, train=_config().train, teacher=_teacher(), teacher_seed=0
    )
    networks = list(range(24))
    jobs = list(search_table.jobs_of(setup, networks))  # type: ignore[arg-type]
    assert len(jobs) == 36
    assert sum(job.seed == 0 for job in jobs[:12]) == 8
    assert sorted((job.network, job.seed) for job in jobs) == sorted(
        {(job.network, job.seed) for job in jobs}
    )


def _sampled() -> StudyConfig:
    import search_table
    from short_schedule import SPACE

    return read_config(SPACE, parse_settings([*search_table.CHANGES]))


def _teacher() -> TeacherConfig:
    found = _sampled().teacher
    assert found is not None
    return found
