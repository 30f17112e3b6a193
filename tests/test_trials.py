"""What a search keeps of its trials in memory."""

import sys

from levit_search.architecture import Architecture
from levit_search.search.trials import SearchStatus
from levit_search.study import Record


def record(network: Architecture, curve: list[dict[str, float]]) -> Record:
    evaluation = {
        "values": {"top1_percent": 1 / 3, "flops": 2.0},
        "latency": {"ratio_ci95": [0.9, 1.1]},
        "training": {"curve": curve},
        "seconds": 2.0,
    }
    return Record(3, "complete", network, evaluation["values"], None, None, 2.0, evaluation)


def test_a_status_gives_back_what_it_was_told(tiny: Architecture) -> None:
    told = record(tiny, [{"epoch": 1, "train_loss": 0.1 + 0.2}])
    status = SearchStatus(("top1_percent", "flops"), [told])
    assert status.records == [told]
    assert status.known == {tiny.id: told}
    assert status.front == [told]
    assert status.counts["evaluated"] == 1
    assert {**status.known[tiny.id].evaluation} == told.evaluation


def test_a_learning_curve_is_kept_in_a_fifth_of_its_room(tiny: Architecture) -> None:
    curve = [{"epoch": n, "train_loss": n / 7, "val_top1_percent": n / 3} for n in range(100)]
    plain = sum(map(sys.getsizeof, curve)) + sum(
        sys.getsizeof(value) for point in curve for value in point.values()
    )
    [kept] = SearchStatus(("top1_percent", "flops"), [record(tiny, curve)]).records
    room = sum(map(sys.getsizeof, vars(kept.evaluation).values()))
    assert kept.evaluation["training"]["curve"] == curve
    assert room < plain / 5
