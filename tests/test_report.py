"""What a report says of a study, and that the page holds nothing but itself."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import levit_search as ls
from levit_search import table
from levit_search.architecture import published
from levit_search.audit.front_confidence import Accuracies, Reevaluation
from levit_search.errors import InputError
from levit_search.report import contents, report_of_run, write_report
from levit_search.report.contents import grouped
from levit_search.report.details import details
from levit_search.significance import wilson_percent
from levit_search.study import Record, Study, StudyConfig
from tests.conftest import ROOT, Cli
from tests.networks import tiny_space

CHANGES: dict[str, Any] = {
    "storage": "journal",
    "latency.method": "predicted",
    "targets": {"pi": "ssh://someone@secret.example"},
    "objectives": ["top1_percent", "latency_ms", "latency_ms@pi"],
}


@pytest.fixture(scope="module")
def make() -> Any:
    """``make`` of benchmarks/made_study.py."""
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


def test_contents_are_json_and_have_every_trial(study: Study, document: dict[str, Any]) -> None:
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    records = study.records()
    assert [trial["trial"] for trial in document["trials"]] == [r.trial for r in records]
    assert sum(document["summary"]["counts"].values()) == len(records)
    assert {"complete", "stopped", "failed"} <= {t["outcome"] for t in document["trials"]}


def test_the_front_is_that_of_the_table(study: Study, document: dict[str, Any]) -> None:
    front = table.front(study.records(), study.config.objectives)
    assert {t["trial"] for t in document["trials"] if t["on_front"]} == {r.trial for r in front}


def test_each_target_and_count_has_a_tab_with_its_own_best(document: dict[str, Any]) -> None:
    assert [tab["figure"] for tab in document["tabs"]] == [
        "latency_ms",
        "latency_ms@pi",
        "flops",
        "params",
    ]
    values = {trial["trial"]: trial["values"] for trial in document["trials"]}
    for tab in document["tabs"]:
        best = [values[trial] for trial in tab["front"]]
        costs = [row[tab["figure"]] for row in best]
        assert costs == sorted(costs)
        accuracies = [row["top1_percent"] for row in best]
        assert accuracies == sorted(accuracies)


def test_choices_say_what_the_network_is(study: Study, document: dict[str, Any]) -> None:
    slots = document["slots"]
    for trial, record in zip(document["trials"], study.records(), strict=True):
        if record.architecture is None or trial["choices"] is None:
            continue
        chosen = dict(zip(slots, trial["choices"], strict=True))
        stages = len(record.architecture.stages)  # type: ignore[union-attr]
        assert slots["num_stages"][chosen["num_stages"]] == stages
        assert (chosen["stages.2.embed_dim"] is None) == (stages < 3)


def test_importance_names_what_decides_and_is_left_out_for_few(
    make: Callable[..., Study], document: dict[str, Any], tmp_path: Path
) -> None:
    shares = document["importance"]["latency_ms"]
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    depths = {name for name in shares if name.endswith("depth") or name == "num_stages"}
    assert sum(shares[name] for name in depths) > 0.5  # the made-up latency counts blocks
    few = make(tmp_path / "few", ls.read_space("levit", CHANGES), 12)
    assert contents(few)["importance"] == {}


def test_a_repeat_stands_once_in_pictures(document: dict[str, Any]) -> None:
    repeats = [trial for trial in document["trials"] if trial["reused_from"] is not None]
    assert all(not trial["curve"] and not trial["on_front"] for trial in repeats)


def test_predictions_are_beside_what_was_measured(study: Study, document: dict[str, Any]) -> None:
    values = {record.trial: record.values for record in study.records()}
    assert document["prediction"]
    for predicted, measured, trial in document["prediction"]:
        assert predicted == pytest.approx(values[trial]["latency_predicted_ms"], rel=1e-5)
        assert measured == pytest.approx(values[trial]["latency_ms"], rel=1e-5)


def test_the_knee_comes_first_and_picks_next(study: Study) -> None:
    stopped = next(r.trial for r in study.records() if r.is_stopped)
    found = contents(study, [f"trial={stopped}"])
    assert found["chosen"][1] == stopped
    first = found["details"][str(found["chosen"][0])]
    assert first["picked_as"] == ["knee of the front"]
    assert found["chosen"][0] == ls.pick(study, "knee").trial


@pytest.mark.parametrize("choice", ["trial=9999", "trial=", "best"])
def test_a_pick_that_is_none_is_refused(study: Study, choice: str) -> None:
    with pytest.raises(InputError, match=re.escape(choice)):
        contents(study, [choice])


def test_a_study_without_a_complete_trial_is_refused(tmp_path: Path) -> None:
    from levit_search.study import config_of

    study = Study.create(tmp_path / "new", config_of(tiny_space(), Path("space")), ["test"])
    with pytest.raises(InputError, match="none complete"):
        write_report(study)
    assert report_of_run(study, pytest.fail) is None  # type: ignore[arg-type]
    assert not (study.folder / "report.html").exists()


def test_accuracies_of_an_audit_are_the_spread(study: Study) -> None:
    record = next(r for r in study.records() if r.state == "complete")
    percent = record.values["top1_percent"]
    seeds = {s: Reevaluation(percent - s, 70.0, 100, 100, 1.0) for s in (1, 2)}
    assert record.architecture is not None
    known = {record.architecture.id: Accuracies(Reevaluation(percent, 69.0, 100, 100, 0.0), seeds)}
    row = details(record, known)["figures"][0]
    assert (row["low"], row["high"]) == (percent - 2, percent)
    assert "test 70.00 ± 0.00 % (2 seeds)" in row["spread"]
    assert "audit" in details(record, {})["figures"][0]["spread"]


def test_accuracies_have_the_interval_of_their_images(
    study: Study, document: dict[str, Any]
) -> None:
    values = {record.trial: record.values for record in study.records()}
    found = {trial["trial"]: trial["accuracy"] for trial in document["trials"]}
    known = {number for number, accuracy in found.items() if accuracy is not None}
    assert known == {number for number in values if "top1_percent" in values[number]}
    for number in known:
        ends = [found[number]["low"], found[number]["high"]]
        assert ends == pytest.approx(wilson_percent(values[number]["top1_percent"], 288), rel=1e-6)
    assert [accuracy["vs_best"] for accuracy in found.values() if accuracy].count("best") == 1
    number = document["chosen"][0]
    row = document["details"][str(number)]["figures"][0]
    assert [row["low"], row["high"]] == pytest.approx([found[number]["low"], found[number]["high"]])
    assert "(binomial, 288 images of val)" in row["spread"] and "audit" in row["spread"]


def test_seeds_of_an_audit_widen_the_interval_of_an_accuracy(study: Study) -> None:
    record = next(r for r in study.records() if r.state == "complete")
    percent = record.values["top1_percent"]
    own = ls.verdict(study).by_trial[record.trial]
    seeds = {1: Reevaluation(0.0, 70.0, 100, 100, 1.0)}
    assert record.architecture is not None
    known = {record.architecture.id: Accuracies(None, seeds)}
    row = details(record, known, own)["figures"][0]
    assert (row["low"], row["high"]) == (0.0, own.high_percent)
    assert own.low_percent < percent < own.high_percent


@pytest.mark.parametrize("kind", ["guessing", "cost_alone"])
def test_a_page_says_first_what_little_its_accuracies_are_worth(
    make: Callable[..., Study], tmp_path: Path, kind: str
) -> None:
    study = make(tmp_path / "study", ls.read_space("levit", CHANGES), 30)
    storage, study_id = study.open_storage()
    guess, images = (95.0, 288) if kind == "guessing" else (10.0, 20)
    data = {**study.attributes()["data"], "guess_percent": guess, "val_images": images}
    storage.set_study_user_attr(study_id, "data", data)
    said = contents(study)["verdict"]
    assert said["kind"] == kind and said["text"]
    assert bool(said["advice"]) == (kind == "guessing")


def test_an_older_study_has_a_page_without_intervals(
    make: Callable[..., Study], tmp_path: Path
) -> None:
    study = make(tmp_path / "study", ls.read_space("levit", CHANGES), 30)
    storage, study_id = study.open_storage()
    storage.set_study_user_attr(study_id, "data", {})
    document = contents(study)
    assert document["verdict"]["kind"] == "unknown"
    assert all(trial["accuracy"] is None for trial in document["trials"])
    assert "release" in document["verdict"]["text"]
    assert write_report(study).is_file()


def test_reasons_that_differ_in_numbers_are_one_group() -> None:
    def failed(trial: int, reason: str) -> Record:
        return Record(trial, "failed", None, {}, reason, None, 0.0, {})

    reasons = ["no room: 12 MB of 64", "no room: 7 MB of 64", "gone", "no room: 1,200 MB of 64"]
    found = grouped([(failed(i, reason), "failed") for i, reason in enumerate(reasons)])
    assert [(g["reason"], g["count"]) for g in found] == [("no room: … MB of 64", 3), ("gone", 1)]
    assert found[0]["trials"] == [0, 1, 3]


def test_published_figures_are_for_imagenet_alone(document: dict[str, Any]) -> None:
    from levit_search.report.contents import _published_figures

    assert document["published"] == []
    rows = {row["name"]: row["values"] for row in _published_figures(published("LeViT-256"))}
    assert rows["LeViT-256"] == {"top1_percent": 81.6, "flops": 1120e6, "params": 18.9e6}
    assert rows["graft-3-3"]["flops"] == (3385 + 1130) * 1e6
    assert "flops" not in rows["EfficientNet-B0"]


def test_contents_leave_out_where_trials_are_kept_and_how_targets_are_reached(
    document: dict[str, Any],
) -> None:
    assert document["settings"].keys() <= {"train", "teacher", "search", "limits", "architecture"}


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}", {}))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.scripts:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)


MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(1)> & \u2028 <!-- ]]>"


def parsed(text: str) -> _Elements:
    found = _Elements()
    found.feed(text)
    return found


def test_what_a_study_says_stays_data(study: Study, document: dict[str, Any]) -> None:
    from levit_search.report.page import page

    hostile = {
        **document,
        "folder": MARKUP,
        "data": {**document["data"], "class_names": [MARKUP, "{{script}}"]},
        "failures": [{"outcome": "failed", "reason": MARKUP, "count": 1, "trials": [0]}],
        "study": "a</title><b>",
    }
    found = parsed(page(study, hostile))
    assert [a.get("type") for a, _ in found.scripts] == ["application/json", None]
    assert not [tag for tag, _ in found.tags if tag in ("img", "b", "iframe", "object")]
    read = json.loads(found.scripts[0][1])
    assert read["data"]["class_names"] == [MARKUP, "{{script}}"]
    assert read["failures"][0]["reason"] == MARKUP


def test_the_page_fetches_nothing_and_runs_its_own_scripts_only(study: Study) -> None:
    found = parsed(write_report(study).read_text("utf-8"))
    policy = next(a["content"] for t, a in found.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    for _, text in found.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not re.search(r"unsafe-eval|script-src[^;]*unsafe|https?:", policy)
    for _, attributes in found.tags:
        for name in ("src", "href", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:"))


def test_figures_read_as_in_the_other_tables(study: Study) -> None:
    found = parsed(write_report(study).read_text("utf-8"))
    shown = json.loads(found.scripts[0][1])
    for trial, record in zip(shown["trials"], study.records(), strict=True):
        for name, text in trial["texts"].items():
            assert text == table.figure(name, record.values[name])


def test_the_command_writes_the_page_and_says_where(study: Study, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = cli("report", str(study.folder), "--out", str(out), "--pick", "trial=3")
    assert (result.returncode, result.stdout.strip()) == (0, str(out))
    assert out.stat().st_size < 8e6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "hmtl"], "did you mean 'html'"),
        (["--pick", "trial=9999"], "trial=9999"),
        (["--out", "."], "is a folder"),
        (["--format", "png", "--open"], "--open"),
    ],
)
def test_the_command_refuses_what_is_wrong_in_a_line(
    study: Study, cli: Cli, arguments: list[str], message: str
) -> None:
    result = cli("report", study.folder, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]


def test_an_interrupted_run_leaves_a_report(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    page = study.folder / "report.html"
    page.unlink(missing_ok=True)
    monkeypatch.setattr("levit_search.search.search", interrupted)
    config: StudyConfig = study.config
    with pytest.raises(KeyboardInterrupt):
        ls.run(config, study.folder, progress=False)
    assert page.is_file()


def test_a_report_that_cannot_be_written_is_said_in_a_line(
    make: Callable[..., Study], tmp_path: Path
) -> None:
    study = make(tmp_path / "study", ls.read_space("levit", CHANGES), 6)
    (study.folder / "report.html").mkdir()
    said: list[str] = []
    assert report_of_run(study, said.append) is None
    assert len(said) == 1
    assert "report.html" in said[0]


def test_a_run_ends_with_its_report_and_tells_of_it(
    study: Study, monkeypatch: pytest.MonkeyPatch, cli: Cli, space_file: Callable[..., Path]
) -> None:
    from levit_search.search.callbacks import Summary

    kinds = ("evaluated", "stopped", "failed", "reused", "infeasible", "taken")
    summary = Summary(str(study.folder), dict.fromkeys(kinds, 1), 1.0, 2.0, [], "of the test")
    monkeypatch.setattr("levit_search.search.begin", lambda *_: study)
    monkeypatch.setattr("levit_search.search.search", lambda *_, **__: summary)
    page = study.folder / "report.html"
    page.unlink(missing_ok=True)
    result = cli("run", space_file())
    assert (result.returncode, page.is_file()) == (0, True)
    assert f"Report: {page}" in result.stderr
    assert "report.html" in result.stdout
    assert f"levit-search report {study.folder} --open" in result.stdout
    shown = json.loads(parsed(page.read_text("utf-8")).scripts[0][1])
    assert len(shown["trials"]) == len(study.records())
