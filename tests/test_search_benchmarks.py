"""The benchmarks of the search: recorded curves replayed, and the driver's own cost."""

from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_every_network_of_the_table_is_in_its_space() -> None:
    from replay import Table, table_config

    table = Table()
    space = table_config(table.epochs, {}).space()
    assert space.size() == len(table.curves) == 96
    for network in table.networks.values():
        values = space.encode(network)
        assert values is not None
        assert space.decode(values) == network
        assert len(table.curves[network.id]) == table.epochs


def test_a_replayed_search_spends_what_it_says_and_nothing_twice() -> None:
    import search_quality

    trail = search_quality.ours(trials=12)(0, 10_000)
    networks = [network for _, network in trail]
    assert len(networks) == len(set(networks)) <= 12
    epochs = [spent for spent, _ in trail]
    assert epochs == sorted(epochs)
    assert 9 * len(networks) <= epochs[-1] <= 9 * 12
    whole = search_quality.ours(trials=5, reduction=None)(0, 10_000)
    assert [spent for spent, _ in whole] == [9, 18, 27, 36, 45]


def test_the_worth_of_all_networks_is_one_and_of_few_less() -> None:
    from search_quality import Worth, at, reached, table

    worth = Worth(table())
    networks = list(table().curves)
    assert worth(networks) == pytest.approx(1.0)
    assert 0 < worth(networks[:3]) < 1
    steps = [(9, 0.5), (18, 0.8)]
    assert [at(steps, epochs) for epochs in (8, 9, 17, 100)] == [0.0, 0.5, 0.5, 0.8]
    assert reached(steps, 0.6) == 18
    assert reached(steps, 0.9) is None


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
