"""The front and its near rivals, measured again together at a search's end."""

import json
import math
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from levit_search import architecture as architectures
from levit_search import table
from levit_search.architecture import Architecture
from levit_search.engine.interface import Event, Settled
from levit_search.errors import BudgetError, InputError
from levit_search.latency.protocol import repeat_sd, repeats_percent
from levit_search.latency.worker import PROTOCOL
from levit_search.search import Summary, driver, search
from levit_search.search.callbacks import Callback
from levit_search.search.final_evaluation import near_rivals
from levit_search.study import REMEASURED, Record, Study, backup, read_config, with_measured
from levit_search.study.record import check_remeasured
from levit_search.study.restore import restore
from tests.conftest import Cli
from tests.engines import PredictingEngine, StubEngine, remeasured, run
from tests.networks import tiny_description

OBJECTIVES = ("top1_percent", "latency_ms")
MEASURED = {"objectives": [*OBJECTIVES], "search": {"sampler": "random"}}


class LuckyEngine(StubEngine):
    """Networks as good as they are slow; a search measures some of them too fast by luck."""

    rounds: ClassVar[list[list[str]]]
    failing: ClassVar[dict[str, str]] = {}
    """What cannot be measured again, and why; under ``all`` why nothing can."""

    def __init__(self, study: Study, sample: Architecture, settled: Settled) -> None:
        super().__init__(study, sample, settled)
        type(self).rounds = []

    @classmethod
    def true_ms(cls, network: Architecture) -> float:
        return 1 + (cls.accuracy(network) - 50) / 40

    @classmethod
    def searched_ms(cls, network: Architecture) -> float:
        return cls.true_ms(network) * (0.7 if int(network.id[8], 16) < 4 else 1.0)

    def submit(self, trial: int, network: Architecture, taught: bool = True) -> None:
        super().submit(trial, network)
        ms = self.searched_ms(network)
        content = self._events[-1].content
        content["latency"] = remeasured(ms)["latency"]
        content["values"]["latency_ms"] = ms

    def remeasured_ms(self, network: Architecture) -> float:
        return self.true_ms(network)

    def remeasure(self, trial: int, networks: Sequence[Architecture]) -> None:
        super().remeasure(trial, networks)
        if trial < 0:
            return
        self.rounds.append([network.id for network in networks])
        if "all" in self.failing:
            self._events[-1] = Event("failed", trial, self.failing["all"])
            return
        results = self._events[-1].content["results"]
        for place, network in enumerate(networks):
            if network.id in self.failing:
                results[place] = {"failed": self.failing[network.id]}


@pytest.fixture
def lucky(monkeypatch: pytest.MonkeyPatch) -> type[LuckyEngine]:
    monkeypatch.setattr(driver, "make_engine", LuckyEngine)
    monkeypatch.setattr(LuckyEngine, "failing", {})
    return LuckyEngine


class Telling(Callback):
    def __init__(self) -> None:
        self.told: list[str] = []

    def on_progress(self, text: str, fraction: float | None) -> None:
        self.told.append(text)


def id_of(record: Record) -> str:
    assert record.architecture is not None
    return record.architecture.id


def front_of(study: Study) -> list[Record]:
    return table.front(study.records(), study.config.objectives)


def on_front(study: Study) -> set[str]:
    return {id_of(record) for record in front_of(study)}


def front_by_search(study: Study) -> set[str]:
    """The front as the search's own figures have it."""
    storage, study_id = study.open_storage()
    records = []
    for trial in storage.get_all_trials(study_id):
        if trial.state.name == "COMPLETE" and "reused_from" not in trial.user_attrs:
            values = trial.user_attrs["evaluation"]["values"]
            records.append((trial.user_attrs["architecture_id"], values))
    return {
        name
        for name, own in records
        if not any(
            other["top1_percent"] >= own["top1_percent"]
            and other["latency_ms"] <= own["latency_ms"]
            and other != own
            for _, other in records
        )
    }


def test_a_lucky_network_loses_its_luck_and_with_it_what_it_kept_from_the_front(
    lucky: type[LuckyEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    summary, study = run(space_file(**MEASURED), tmp_path / "s", **{"search.trials": 30})
    before, after = front_by_search(study), on_front(study)
    assert after - before, "what lucky ones had dominated comes onto the front"
    assert {id_of(record) for record in summary.front} == after
    everything = [name for names in lucky.rounds for name in names]
    assert len(everything) == len(set(everything)), "each is measured again once"
    assert before <= set(lucky.rounds[0]), "the whole front, in one go"
    assert len(lucky.rounds) > 1 and after <= set(everything), "and what came onto it then"
    for record in front_of(study):
        assert record.architecture is not None
        true_ms = LuckyEngine.true_ms(record.architecture)
        searched_ms = LuckyEngine.searched_ms(record.architecture)
        assert record.values["latency_ms"] == true_ms
        assert record.values["latency_search_ms"] == record.estimates["latency_ms"] == searched_ms
        assert record.values["latency_ms_repeats_percent"] == pytest.approx(1.96 * math.sqrt(2))
    noted = study.attributes()
    kept = [noted[f"{REMEASURED}{name}"] for name in everything]
    assert all(each["protocol"] == PROTOCOL and each["finished"] for each in kept)


def test_what_was_measured_again_is_not_when_the_search_goes_on(
    lucky: type[LuckyEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(**MEASURED)
    run(path, tmp_path / "s", **{"search.trials": 12})
    first = {name for names in lucky.rounds for name in names}
    summary, study = run(path, tmp_path / "s", **{"search.trials": 12})
    assert summary.stopped_because == "the budget was used up before"
    assert {name for names in lucky.rounds for name in names} == first, "no engine was made"
    _, study = run(path, tmp_path / "s", **{"search.trials": 40})
    second = {name for names in lucky.rounds for name in names}
    assert second, "these trials bring new networks onto the front"
    assert not second & first
    assert on_front(study) <= first | second


def test_a_finished_study_of_an_earlier_release_is_measured_again_by_the_next_run(
    lucky: type[LuckyEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(**MEASURED, storage=None)
    _, study = run(path, tmp_path / "s", **{"search.trials": 12})
    forget(study)
    assert on_front(study) == front_by_search(study)
    assert all("latency_search_ms" not in record.values for record in study.records())
    assert "± %" not in table.markdown(front_of(study), OBJECTIVES)
    assert table.latency_legend(front_of(study), OBJECTIVES) == ""
    summary, study = run(path, tmp_path / "s", **{"search.trials": 12})
    assert lucky.evaluated == []
    assert all("latency_search_ms" in record.values for record in front_of(study))
    assert summary.stopped_because == "the budget was used up before"


def forget(study: Study) -> None:
    """As a release before left it."""
    with closing(sqlite3.connect(study.folder / "study.db")) as database, database:
        database.execute(f"DELETE FROM study_user_attributes WHERE key LIKE '{REMEASURED}%'")
    log = study.folder / backup.NAME
    lines = [each for each in log.read_text().splitlines() if f'"{REMEASURED}' not in each]
    log.write_text("".join(f"{line}\n" for line in lines))


def test_a_finished_study_whose_device_is_gone_keeps_its_front(
    lucky: type[LuckyEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unprepared(LuckyEngine):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            content = {"wrong_input": True}
            self._events = [Event("failed", None, "no route to host", content=content)]

    path = space_file(**MEASURED, storage=None)
    _, study = run(path, tmp_path / "s", **{"search.trials": 12})
    forget(study)
    monkeypatch.setattr(driver, "make_engine", Unprepared)
    with pytest.warns(UserWarning, match="the front is not measured again: no route to host"):
        summary, _ = run(path, tmp_path / "s", **{"search.trials": 12})
    assert {id_of(record) for record in summary.front} == front_by_search(study)


def test_a_failure_keeps_the_searchs_figures_and_the_next_start_tries_again(
    lucky: type[LuckyEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = space_file(**MEASURED)
    monkeypatch.setattr(lucky, "failing", {"all": "the board is gone"})
    with pytest.warns(UserWarning, match=r"not measured again: .*the board is gone; the search's"):
        summary, study = run(path, tmp_path / "s", **{"search.trials": 12})
    assert {id_of(record) for record in summary.front} == front_by_search(study)
    assert summary.stopped_because == "the budget is used up"
    monkeypatch.setattr(lucky, "failing", {})
    run(path, tmp_path / "s", **{"search.trials": 12})
    assert all("latency_search_ms" in record.values for record in front_of(study))


def test_one_network_that_fails_keeps_its_figures_beside_the_others(
    lucky: type[LuckyEngine],
    space_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = space_file(**MEASURED, storage=None)
    _, study = run(path, tmp_path / "s", **{"search.trials": 12})
    one = lucky.rounds[0][0]
    forget(study)
    monkeypatch.setattr(lucky, "failing", {one: "no memory"})
    with pytest.warns(UserWarning, match=r"1 network of the front .*: no memory"):
        run(path, tmp_path / "s", **{"search.trials": 12})
    found = {id_of(record): record.values for record in study.records()}
    assert "latency_search_ms" not in found[one]
    others = {name for names in lucky.rounds for name in names} - {one}
    assert others and all("latency_search_ms" in found[name] for name in others)


def test_a_full_disk_ends_the_search(
    lucky: type[LuckyEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    class Full(LuckyEngine):
        def remeasure(self, trial: int, networks: Sequence[Architecture]) -> None:
            if trial < 0:
                super().remeasure(trial, networks)
                return
            content = {"refused_by_disk": "latency: No space left on device"}
            self._busy = True
            self._events.append(Event("failed", trial, "OSError", content=content))

    study = Study.create(tmp_path / "s", read_config(space_file(**MEASURED)), ["test"])
    with pytest.raises(BudgetError, match=r"^latency: No space left on device; what was finished"):
        search(study, engine=Full)


def test_ctrl_c_ends_it_at_once_and_the_next_start_does_it(
    lucky: type[LuckyEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    asked, closed = list[int](), list[int]()

    class Slow(LuckyEngine):
        """Never comes to an end with it."""

        def remeasure(self, trial: int, networks: Sequence[Architecture]) -> None:
            if trial < 0:
                super().remeasure(trial, networks)
                return
            asked.append(trial)
            self._events.append(Event("progress", trial, "measuring"))

        def close(self) -> None:
            closed.append(1)

    path = space_file(**MEASURED)
    config = read_config(path, {"search.trials": 12})
    study, telling = Study.create(tmp_path / "s", config, ["test"]), Telling()
    summary = search(study, [telling], None, Slow, lambda: "measuring" in telling.told)
    assert (len(asked), len(closed)) == (1, 1)
    assert summary.is_interrupted
    assert on_front(study) == front_by_search(study)
    run(path, tmp_path / "s", **{"search.trials": 12})
    assert all("latency_search_ms" in record.values for record in front_of(study))


def test_it_is_told_how_many_are_measured_again_and_what_became_of_them(
    lucky: type[LuckyEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    study = Study.create(
        tmp_path / "s", read_config(space_file(**MEASURED), {"search.trials": 30}), ["test"]
    )
    telling = Telling()
    search(study, [telling])
    count = len(lucky.rounds[0])
    assert f"{count} networks of the front and near to it: measured again" in telling.told
    assert any(text.startswith("measured again: ") for text in telling.told)


def test_a_network_over_the_limit_after_all_leaves_the_front(
    lucky: type[LuckyEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(limits={"latency_ms": 1.4}, **MEASURED)
    _, study = run(path, tmp_path / "s", **{"search.trials": 30})
    assert all(record.values["latency_ms"] <= 1.4 for record in front_of(study))
    over = [record for record in study.records() if "latency_search_ms" in record.values]
    over = [record for record in over if record.state == "pruned"]
    assert over, "this seed has networks that were lucky to be within the limit"
    assert all("over the limit of 1.4" in (record.reason or "") for record in over)
    assert all(record.values["latency_search_ms"] <= 1.4 for record in over)


def test_another_trial_of_the_network_has_what_the_search_found() -> None:
    record, found = made(0, 70, 1.0), {**remeasured(1.3), "protocol": 3, "finished": "today"}
    network = record.architecture
    assert network is not None
    attributes = {f"{REMEASURED}{network.id}": found}
    again = with_measured(record, attributes, None)
    assert (again.values["latency_ms"], again.values["latency_search_ms"]) == (1.3, 1.0)
    assert again.evaluation["latency"] == found["latency"]
    assert again.estimates["latency_ms"] == 1.0
    assert again.own_evaluation == {**record.evaluation, "targets": {}}
    assert with_measured(again, attributes, None) == again
    newer = {**found, **remeasured(1.2)}
    once_more = with_measured(again, {f"{REMEASURED}{network.id}": newer}, None)
    values = once_more.values
    assert (values["latency_ms"], values["latency_search_ms"]) == (1.2, 1.0)
    over = with_measured(record, attributes, 1.25)
    assert (over.state, over.reason) == ("pruned", "latency_ms 1.3 over the limit of 1.25")


def test_latencies_of_further_targets_are_measured_again_too() -> None:
    found = {
        "values": {"latency_ms@pi": 13.0, "latency_p95_ms@pi": 15.0},
        "latency": None,
        "targets": {"pi": remeasured(13.0)["latency"]},
        "protocol": 3,
        "finished": "today",
    }
    values = {"top1_percent": 70.0, "latency_ms@pi": 10.0, "latency_p95_ms@pi": 11.0}
    evaluation = {"latency": None, "targets": {"pi": remeasured(10.0)["latency"]}}
    record = replace(made(0, 70, 1.0), values=values, evaluation=evaluation)
    again = with_measured(record, {f"{REMEASURED}{id_of(record)}": found}, None)
    assert again.values["latency_ms@pi"] == 13.0
    assert again.values["latency_search_ms@pi"] == 10.0
    assert again.values["latency_ms_repeats_percent@pi"] == pytest.approx(1.96 * math.sqrt(2))
    assert again.estimates["latency_p95_ms@pi"] == 11.0
    heads = table.markdown([again], ("top1_percent", "latency_ms@pi")).splitlines()[0]
    assert "| latency ms @pi | ± % @pi | in search ms @pi |" in heads
    assert table.latency_legend([again], ("top1_percent", "latency_ms@pi"))
    assert table.latency_legend([again], ("top1_percent", "flops")) == "", "it has no such columns"
    near = replace(record, trial=1, values={**values, "latency_ms@pi": 10.1})
    objectives = ("top1_percent", "latency_ms@pi")
    assert near_rivals([record, near], objectives, 8) == [near]


def test_trials_that_are_taken_over_bring_what_was_measured_again(
    lucky: type[LuckyEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(**MEASURED)
    _, source = run(path, tmp_path / "a", **{"search.trials": 12})
    study = Study.create(tmp_path / "b", read_config(path, {"search.trials": 1}), ["test"])
    search(study, take_from=source.folder)
    theirs = {id_of(r): r.values for r in source.records() if "latency_search_ms" in r.values}
    ours = {id_of(r): r.values for r in study.records()}
    assert theirs
    for name, values in theirs.items():
        if name in ours:
            assert ours[name] == values
    assert theirs.keys() & ours.keys()


def test_what_was_predicted_and_verified_is_taken_over_as_verified(
    space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "make_engine", PredictingEngine)
    path = space_file(objectives=[*OBJECTIVES], latency={"method": "predicted"})
    _, source = run(path, tmp_path / "a", **{"search.trials": 12})
    study = Study.create(tmp_path / "b", read_config(path, {"search.trials": 1}), ["test"])
    search(study, take_from=source.folder)
    ours = {id_of(r): r.values for r in study.records()}
    verified = [record for record in source.records() if "verified" in record.evaluation]
    assert any("latency_search_ms" not in record.values for record in verified)
    for record in verified:
        assert record.architecture is not None
        assert ours[id_of(record)]["latency_ms"] == PredictingEngine.true_ms(record.architecture)
        assert ours[id_of(record)] == record.values


def test_a_restored_study_has_what_was_measured_again(
    lucky: type[LuckyEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    _, study = run(space_file(**MEASURED), tmp_path / "s", **{"search.trials": 12})
    before = [record.values for record in study.records()]
    (study.folder / "study.journal").unlink()
    restore(study.folder, False, lambda *_: None)
    assert [record.values for record in study.records()] == before
    assert all("latency_search_ms" in record.values for record in front_of(study))


def test_tables_show_both_latencies_and_say_what_they_are(
    lucky: type[LuckyEngine], space_file: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    from levit_search.report.contents import contents

    _, study = run(space_file(**MEASURED), tmp_path / "s", **{"search.trials": 12})
    best = front_of(study)
    assert "| latency ms | ± % | in search ms |" in table.markdown(best, OBJECTIVES)
    record, told = best[0], table.as_json(best[0])
    for name in ("latency_search_ms", "latency_ms_repeats_percent"):
        assert told[name] == record.values[name]
        assert name in table.as_csv(best).splitlines()[0].split(",")
    shown = cli("front", str(study.folder)).stdout
    assert "± %" in shown and "in search ms" in shown
    assert "another measurement is expected within" in " ".join(shown.split())
    document = contents(study)
    assert "another measurement is expected within" in document["latency_legend"]
    figures = document["details"][str(best[0].trial)]["figures"]
    assert {"latency_search_ms", "latency_ms_repeats_percent"} <= {f["figure"] for f in figures}


def made(trial: int, top1_percent: float, ms: float, half_percent: float = 1.0) -> Record:
    found = remeasured(ms, half_percent)
    evaluation = {"latency": found["latency"]}
    values = {"top1_percent": top1_percent, "latency_ms": ms}
    network = architectures.parse(tiny_description())
    return Record(trial, "complete", network, values, None, None, 0.0, evaluation)


def test_near_rivals_miss_the_front_by_no_more_than_the_noise() -> None:
    # The noise is sqrt(2) times the half width of 2.2 %: 3.1 %.
    front = [made(0, 70, 1.0), made(1, 80, 2.0)]
    near, far = made(2, 70, 1.03, 2.2), made(3, 69.9, 1.04, 2.2)
    same_accuracy, noisy = made(4, 79, 2.05, 2.2), made(5, 78, 2.2, half_percent=8.0)
    records = [*front, far, noisy, same_accuracy, near]
    rivals = [record.trial for record in near_rivals(records, OBJECTIVES, 8)]
    assert len(near_rivals(records, OBJECTIVES, 2)) == 2
    missed = {2: math.log10(1.03), 4: math.log10(2.05 / 2), 5: math.log10(1.1)}
    noise = {
        r.trial: math.log10(1 + repeats_percent(r.evaluation["latency"]) / 100) for r in records
    }
    assert rivals == sorted(missed, key=lambda trial: missed[trial] / noise[trial])


def test_no_rival_is_near_by_accuracy_or_counts_or_an_estimate() -> None:
    records = [made(0, 70, 1.0), made(1, 69.99, 1.5)]
    assert near_rivals(records, OBJECTIVES, 8) == []
    assert near_rivals(records, ("top1_percent",), 8) == []
    assert near_rivals([], OBJECTIVES, 8) == []
    predicted = made(2, 70, 1.01)
    predicted.evaluation["latency"]["method"] = "predicted"  # type: ignore[index]
    assert near_rivals([*records, predicted], OBJECTIVES, 8) == []


def test_a_latency_repeats_as_its_interval_says_and_no_better_than_passes_do() -> None:
    def of(ms: float, half_percent: float) -> float:
        return repeats_percent(remeasured(ms, half_percent)["latency"])

    least = 100 * math.sqrt(2) * 1.96 * repeat_sd(1.0)
    assert of(1.0, 0.1) == of(50.0, 0.2) == of(0.2, 0.1) == pytest.approx(least)
    assert of(1.0, 5.0) == pytest.approx(math.sqrt(2) * 5.0)
    assert repeats_percent({"latency_ms": 1.0}) == of(1.0, 0.0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"protocol": "3"}, "protocol"),
        ({"values": {"latency_ms": -1.0}}, "values.latency_ms"),
        ({"values": {"top1_percent": 99.0}}, "top1_percent"),
        ({"values": {"latency_ms@pi": 1.0}}, "latency_ms@pi"),
        ({"latency": None}, "latency_ms"),
        ({"latency": remeasured(1.0)["latency"] | {"ratio_ci95": [1.0]}}, "ratio_ci95"),
        ({"targets": 3}, "targets"),
        ({"finished": 3}, "finished"),
    ],
)
def test_what_was_measured_again_is_checked_when_it_is_read(
    change: dict[str, Any], told: str
) -> None:
    known = {"latency_ms": 1.0, "top1_percent": 70.0}
    sound = {**remeasured(1.1), "protocol": 3, "finished": "2025-01-01T00:00:00"}
    check_remeasured(json.loads(json.dumps(sound)), known, "trial 3")
    with pytest.raises(InputError, match=rf"^trial 3: remeasured: .*{told}.*not what a search"):
        check_remeasured({**sound, **change}, known, "trial 3")


def test_a_summary_is_that_of_the_new_figures(
    lucky: type[LuckyEngine], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    found: Summary = run(space_file(**MEASURED), tmp_path / "s", **{"search.trials": 12})[0]
    again = Study.open(tmp_path / "s")
    assert [r.values for r in found.front] == [r.values for r in front_of(again)]
    rows = (again.folder / "front.csv").read_text().splitlines()
    assert len(rows) == 1 + len(found.front)
