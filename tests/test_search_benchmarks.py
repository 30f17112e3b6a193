"""The benchmarks of the search: recorded curves replayed, and the driver's own cost."""

from pathlib import Path

import numpy as np
import pytest

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
