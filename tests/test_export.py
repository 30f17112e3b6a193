"""A network handed over: what is written, that it is checked, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import yaml

import levit_search as ls
import levit_search.batches
from levit_search import export as exports
from levit_search.batches.batch import MemoryBatches
from levit_search.errors import InputError, LevitSearchError
from levit_search.export import ExportOptions, Retraining, card, module, package, verification
from levit_search.export.verification import Remeasurement
from levit_search.search import driver
from levit_search.significance import UNJUDGED, Verdict, wilson_percent
from levit_search.study import Study
from tests.conftest import Cli, needs
from tests.engines import HereEngine, run
from tests.networks import tiny_description, tiny_space

UNPROBED = ExportOptions(probe=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Three networks, trained and timed for real; nobody changes it."""
    folder = tmp_path_factory.mktemp("searched")
    path = folder / "tiny.yaml"
    space = tiny_space(
        objectives=["top1_percent", "latency_ms"],
        latency={"seconds": 0.2, "rounds": 4, "reference": tiny_description()},
    )
    path.write_text(yaml.safe_dump(space))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(driver, "make_engine", HereEngine)
        _, searched = run(path, folder / "s", **{"search.trials": 3})
    return searched


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written and not read again, which takes seconds and has tests of its own."""

    def compared(_folder: Path, names: list[str], *_: object) -> dict[str, float]:
        return dict.fromkeys(names, 0.0)

    monkeypatch.setattr(verification, "compared", compared)


@pytest.mark.parametrize("also", [pytest.param("torch-export", marks=pytest.mark.slow), "openvino"])
def test_every_file_answers_like_the_trained_network_and_stands_in_the_card(
    also: str, study: Study, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    if also == "openvino":
        needs("openvino")
    record = exports.pick(study, "accurate")
    out = tmp_path / "out"
    done = cli(
        "export",
        study.folder,
        "--pick",
        "accurate",
        "--no-probe",
        "--out",
        out,
        "--json",
        "--also",
        also,
    )
    assert done.returncode == 0, done.stderr
    assert "reading model.onnx in a clean process" in done.stderr
    written = json.loads(done.stdout)
    assert list(written)[:4] == ["dir", "files", "parity_max_abs_diff", "latency_ms"]
    assert written["dir"] == str(out)
    names = {path.name for path in out.iterdir()}
    assert {name.rstrip("/") for name in written["files"]} == names
    assert names <= set(package._NAMES)
    assert set(written["parity"]) == set(verification.READABLE) & names
    programs = {"torch-export": "model.pt2", "openvino": "model.openvino.xml"}
    assert set(verification.READABLE) - names <= {"timm", *programs.values()} - {programs[also]}
    for name, difference in written["parity"].items():
        assert difference <= verification.READABLE[name].tolerance
    assert written["parity_max_abs_diff"] == max(written["parity"].values())
    assert written["val_top1_percent"] == pytest.approx(record.values["top1_percent"])
    text = (out / "README.md").read_text()
    percent = written["test_top1_percent"]
    low, high = wilson_percent(percent, 360)
    spread = f"{low:.2f} to {high:.2f} % (95 %, binomial)"
    assert f"{percent:.2f} % | {spread} | 360 images" in text
    for name, difference in written["parity"].items():
        assert (f"{difference:.1e} |" if difference else "none |") in text, name
    assert not list(tmp_path.glob(".levit-search-*"))


@pytest.mark.slow
def test_a_file_that_is_another_network_is_an_error_and_nothing_is_left(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = module.module_source

    def changed(network: Any, names: Any) -> str:
        return honest(network.model_copy(update={"activation": "relu"}), names)

    monkeypatch.setattr(module, "module_source", changed)
    record = exports.pick(study, "knee")
    with pytest.raises(LevitSearchError, match=r"model\.py: its logits differ"):
        exports.export(study, record, tmp_path / "out", "knee", UNPROBED)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_that_cannot_be_read_is_an_error(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "module_source", lambda *_: "import levit_search\n")
    record = exports.pick(study, "knee")
    with pytest.raises(LevitSearchError, match=r"model\.py: cannot be read .*levit_search"):
        exports.export(study, record, tmp_path / "out", "knee", UNPROBED)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unread")
def test_data_that_changed_since_the_search_is_an_error(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = exports.pick(study, "accurate")
    reads = levit_search.batches.open_batches

    def renamed(config: Any) -> Any:
        """As where a class was renamed, so that it sorts last."""
        batches = reads(config)
        assert isinstance(batches, MemoryBatches)
        for split in ("train", "val", "test"):
            labels = batches.labels(split)
            labels[:] = (labels + 9) % 10
        return batches

    def without_a_class(config: Any) -> Any:
        batches = reads(config)
        batches.info = batches.info._replace(class_names=batches.info.class_names[1:])
        return batches

    monkeypatch.setattr(package, "open_batches", renamed)
    with pytest.raises(LevitSearchError, match=r"their classes, are others now"):
        exports.export(study, record, tmp_path / "out", "accurate", UNPROBED)
    monkeypatch.setattr(package, "open_batches", without_a_class)
    with pytest.raises(InputError, match="9 classes in 1 channels now"):
        exports.export(study, record, tmp_path / "out", "accurate", UNPROBED)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unread")
def test_a_folder_that_is_not_empty_is_refused_unless_forced(study: Study, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "model.pt2").write_text("of an earlier export")
    record = exports.pick(study, "fastest")
    with pytest.raises(InputError, match="is not empty; choose another --out, or --force"):
        exports.export(study, record, out, "fastest", UNPROBED)
    assert sorted(path.name for path in out.iterdir()) == ["model.pt2", "notes.txt"]
    exports.export(study, record, out, "fastest", replace(UNPROBED, force=True))
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "model.onnx").exists()
    assert not (out / "model.pt2").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        exports.export(study, record, tmp_path / "file", "fastest", replace(UNPROBED, force=True))


@pytest.mark.usefixtures("unread")
def test_what_no_export_wrote_is_not_deleted_even_when_forced(study: Study, tmp_path: Path) -> None:
    record, forced = exports.pick(study, "knee"), replace(UNPROBED, force=True)
    mine = tmp_path / "out" / "timm" / "__init__.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(InputError, match="timm: is a folder that no export made"):
        exports.export(study, record, tmp_path / "out", "knee", forced)
    assert list((tmp_path / "out").rglob("*")) == [mine.parent, mine]
    mine.rename(mine.with_name("config.json"))
    exports.export(study, record, tmp_path / "out", "knee", forced)
    assert not mine.with_name("config.json").exists() or "architecture" in json.loads(
        mine.with_name("config.json").read_text()
    )
    (tmp_path / "other" / "README.md").mkdir(parents=True)
    with pytest.raises(InputError, match=r"README\.md: is a folder that no export made"):
        exports.export(study, record, tmp_path / "other", "knee", forced)


@pytest.mark.usefixtures("unread")
def test_a_folder_that_is_there_stays_what_it_is(study: Study, tmp_path: Path) -> None:
    record = exports.pick(study, "knee")
    (tmp_path / "there").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "dangling").symlink_to("new/folder")
    for name in ("there", "new/folder"):
        link = tmp_path / ("link" if name == "there" else "dangling")
        written = exports.export(study, record, link, "knee", UNPROBED)
        assert link.is_symlink()
        assert written.dir == str(link)
        assert {path.name for path in (tmp_path / name).iterdir()} == {
            each.rstrip("/") for each in written.files
        }
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o777 == 0o755


@pytest.mark.usefixtures("unread")
def test_a_folder_that_others_filled_meanwhile_is_not_written_over(
    study: Study, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def fill(text: str, fraction: float | None) -> None:
        if text == "measuring accuracy on test":
            out.mkdir()
            (out / "README.md").write_text("theirs")

    with pytest.raises(InputError, match="is not empty"):
        exports.export(study, exports.pick(study, "knee"), out, "knee", UNPROBED, fill)
    assert (out / "README.md").read_text() == "theirs"
    assert list(tmp_path.rglob("*")) == [out, out / "README.md"]


@pytest.mark.usefixtures("unread")
def test_a_network_is_trained_again_with_seeds_and_only_once(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = exports.pick(study, "knee")
    asked = Retraining(epochs=2, seeds=2, changes={"train.lr": 4e-3})
    told: list[str] = []
    options = replace(UNPROBED, retraining=asked)

    def tell(text: str, fraction: float | None) -> None:
        told.append(text)

    written = exports.export(study, record, tmp_path / "out", "knee", options, tell)
    assert any("epoch 2/2" in text for text in told)
    found = written.retrained
    assert found is not None
    assert found["seeds"] == (0, 1)
    assert found["train_images"] > study.config.data.train_images  # all there are
    best = found["seeds"].index(found["seed"])
    assert found["val_top1_percent"][best] == max(found["val_top1_percent"])
    assert written.val_top1_percent == pytest.approx(found["val_top1_percent"][best])
    assert written.test_top1_percent == pytest.approx(found["test_top1_percent"][best])
    text = (tmp_path / "out" / "README.md").read_text()
    assert "top-1, test, over seeds" in text
    assert "trained again for this export, from fresh weights." in text
    assert "--pick knee --retrain --epochs 2 --seeds 2 --set train.lr=0.004` on" in text
    told.clear()
    again = exports.export(study, record, tmp_path / "again", "knee", options, tell)
    assert again.retrained == found
    assert not any("epoch" in text for text in told)
    other = replace(options, retraining=replace(asked, epochs=1, seeds=1))
    exports.export(study, record, tmp_path / "other", "knee", other, tell)
    assert any("epoch 1/1" in text for text in told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--retrain"], "--retrain: needs --epochs"),
        (["--epochs", 3], "--epochs: is for --retrain"),
        (["--set", "train.lr=0.1"], "--set: is for --retrain"),
        (["--retrain", "--epochs", 1, "--set", "search.seed=3"], "--set search.seed"),
        (["--retrain", "--epochs", 1, "--set", "data.image_size=32"], "data.image_size stay"),
        (["--retrain", "--epochs", 1, "--recipe", "leviathan"], "expected short or levit"),
        (["--retrain", "--epochs", 1, "--set", "train.lrr=1"], "unknown key 'lrr'"),
        (["--also", "openvin"], "did you mean"),
        (["--pick", "flops<=1,params<=1"], "the nearest is trial"),
    ],
)
def test_wrong_wishes_are_told_before_anything_is_done(
    options: list[Any], told: str, study: Study, cli: Cli
) -> None:
    done = cli("export", study.folder, *options)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert not (study.folder / "export").exists()


def test_a_study_without_a_finished_trial_has_nothing_to_pick(study: Study, tmp_path: Path) -> None:
    empty = Study.create(tmp_path / "s", study.config, ["test"])
    with pytest.raises(InputError, match="no finished trial"):
        exports.pick(empty, "knee")
    with pytest.raises(InputError, match="no finished trial"):
        exports.pick(empty, "flops<=1G")


def test_bounds_hold_together_and_reach_beyond_the_front(study: Study) -> None:
    complete = [r for r in study.records() if r.state == "complete" and r.reused_from is None]
    smallest = min(complete, key=lambda record: record.values["params"])
    picked = exports.pick(study, f"params<={smallest.values['params']},latency_ms<=1000")
    assert picked.values["params"] == smallest.values["params"]
    for bound in {record.values["flops"] for record in complete}:
        within = [record for record in complete if record.values["flops"] <= bound]
        best = max(record.values["top1_percent"] for record in within)
        assert exports.pick(study, f"flops<={bound}").values["top1_percent"] == best
    fastest = min(complete, key=lambda record: record.values["latency_ms"])
    assert exports.pick(study, "top1_percent>=0").trial == fastest.trial
    with pytest.raises(InputError, match="expected knee"):
        exports.pick(study, "flops<=nan")


def _again(before: tuple[float, float, float], now: tuple[float, float, float]) -> Remeasurement:
    def found(ratio: float, low: float, high: float) -> dict[str, Any]:
        return {"ratio_to_reference": ratio, "ratio_ci95": [low, high]}

    return Remeasurement("latency_ms", found(*before), found(*now))


def test_latencies_agree_within_their_intervals_or_six_percent() -> None:
    assert _again((1.0, 0.99, 1.01), (1.059, 1.058, 1.06)).agrees
    assert not _again((1.0, 0.99, 1.01), (1.07, 1.06, 1.08)).agrees
    assert _again((1.0, 0.9, 1.1), (1.15, 1.05, 1.25)).agrees
    assert not _again((1.07, 1.06, 1.08), (1.0, 0.99, 1.01)).agrees


def test_a_latency_is_told_to_be_outside_of_what_the_front_had_made_expect() -> None:
    within = replace(_again((1.0, 0.99, 1.01), (1.03, 1.02, 1.04)), repeats_percent=3.3)
    assert within.is_expected and within.compared() == "+3.0 % of the front's, within its ±3.3 %"
    outside = replace(_again((1.0, 0.99, 1.01), (0.96, 0.95, 0.97)), repeats_percent=3.3)
    assert outside.compared() == "-4.0 % of the front's, outside its ±3.3 %"
    assert outside.is_expected is False and outside.agrees
    assert outside.as_json()["is_expected"] is False
    wide = replace(_again((1.0, 0.99, 1.01), (1.07, 1.06, 1.08)), repeats_percent=8.0)
    assert wide.agrees, "what is expected agrees"
    once = _again((1.0, 0.99, 1.01), (1.07, 1.06, 1.08))
    assert once.is_expected is None and once.compared() == "+7.0 % of the search's"


@pytest.mark.usefixtures("unread")
def test_a_graph_that_is_slower_is_measured_twice_and_then_an_error(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = exports.pick(study, "knee")
    # On a busy machine the front's own repeats may be half of the latency apart.
    values = {**record.values, "latency_ms_repeats_percent": 3.0}
    record = replace(record, values=values)
    before = record.evaluation["latency"]
    slower = {
        **before,
        "ratio_to_reference": 1.5 * before["ratio_to_reference"],
        "ratio_ci95": [1.4 * before["ratio_ci95"][1], 1.6 * before["ratio_ci95"][1]],
    }
    seconds: list[float] = []

    class Slow:
        def __init__(self, config: Any, settled_ms: Any, fresh: bool) -> None:
            seconds.append(config.seconds)

        def __enter__(self) -> "Slow":
            return self

        def __exit__(self, *_: object) -> None: ...

        def measure_graph(self, *_: object) -> "Slow":
            return self

        def as_json(self) -> dict[str, Any]:
            return slower

    monkeypatch.setattr(verification, "Probe", Slow)
    out = tmp_path / "out"
    with pytest.raises(LevitSearchError, match=r"model\.onnx is not as fast as"):
        exports.export(study, record, out, "knee")
    assert seconds == [0.2, 0.4]
    assert "DOES NOT AGREE" in (out / "README.md").read_text()


@pytest.mark.usefixtures("unread")
def test_latencies_of_other_devices_are_told_but_not_compared(study: Study, tmp_path: Path) -> None:
    record = exports.pick(study, "knee")
    latency = record.evaluation["latency"]
    there = {**latency, "device": {**latency["device"], "cpu": "Phone|9 <b>"}}
    evaluation = {**record.evaluation, "latency": {**there, "ratio_to_reference": 50.0}}
    elsewhere = replace(record, evaluation=evaluation)
    written = exports.export(study, elsewhere, tmp_path / "out", "knee")
    (again,) = written.probed_again
    assert again["difference_percent"] is None
    assert "another device" in again["reason"]
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Phone\\|9 &lt;b&gt;" in text
    assert "<b>" not in text


@pytest.mark.usefixtures("unread")
def test_latencies_of_sections_that_the_study_does_not_have_are_left_out(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = exports.pick(study, "knee")
    weights = study.weights_of(record)
    targets = {"phone": record.evaluation["latency"]}
    taken = replace(record, evaluation={**record.evaluation, "targets": targets}, taken_from="s#1")
    config = study.config.model_copy(update={"objectives": ("top1_percent", "flops")})
    unmeasured = Study.create(tmp_path / "unmeasured", config, ["test"])
    monkeypatch.setattr(Study, "weights_of", lambda *_: weights)
    written = exports.export(unmeasured, taken, tmp_path / "out", "knee")
    assert written.probed_again == []
    assert "| latency" not in (tmp_path / "out" / "README.md").read_text()
    objectives = ("top1_percent", "latency_ms", "latency_ms@phone")
    update = {"targets": {"phone": study.config.latency}, "objectives": objectives}
    both = verification.latencies(study.config.model_copy(update=update), taken)
    assert [name for name, *_ in both] == [None, "phone"]
    assert [name for name, *_ in verification.latencies(study.config, taken)] == [None]


def test_a_graph_in_another_layout_is_not_compared(study: Study) -> None:
    found = exports.pick(study, "knee").evaluation["latency"]
    assert verification._incomparable(found, found, found["layout"]) is None
    reason = verification._incomparable({**found, "layout": "maps"}, found, "tokens")
    assert reason == "the study's is of the layout maps, this one of tokens"


def test_accuracies_have_a_spread_at_their_ends_too() -> None:
    z = NormalDist().inv_cdf(0.975)
    low, high = wilson_percent(90.0, 100_000)  # of many images as the normal distribution's
    assert (low + high) / 2 == pytest.approx(90.0, abs=0.01)
    assert high - low == pytest.approx(2 * 100 * z * math.sqrt(0.9 * 0.1 / 100_000), rel=1e-3)
    for percent in (0.0, 100.0):  # the ends of z^2 / (n + z^2)
        low, high = wilson_percent(percent, 50)
        assert high - low == pytest.approx(100 * z**2 / (50 + z**2))
        assert low <= percent <= high


@pytest.mark.usefixtures("unread")
def test_weights_no_better_than_guessing_are_said_to_be_so_at_the_top_of_the_card(
    study: Study, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = ("export", study.folder, "--pick", "accurate", "--no-probe", "--force", "--out")
    monkeypatch.setattr(package, "guess_percent", lambda _: 99.0)
    done = cli(*export, tmp_path / "out", "--json")
    notice = json.loads(done.stdout)["notice"]
    assert notice.startswith("These weights are no better than guessing, as far as 360 images of")
    assert done.returncode == 0
    assert f"levit-search: {notice}" in done.stderr
    text = (tmp_path / "out" / "README.md").read_text()
    assert "**These weights are no better than guessing" in text[: text.index("![block diagram]")]
    monkeypatch.setattr(package, "guess_percent", lambda _: 0.5)
    monkeypatch.setattr(package, "judged", lambda *_: UNJUDGED)
    done = cli(*export, tmp_path / "out", "--json")
    assert json.loads(done.stdout)["notice"] is None
    assert "guessing" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.usefixtures("unread")
def test_that_the_search_guesses_is_said_of_its_weights_and_not_of_those_trained_again(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "guess_percent", lambda _: 0.5)
    monkeypatch.setattr(package, "judged", lambda *_: Verdict("guessing", "No network is better."))
    with pytest.warns(UserWarning, match="No network is better"):
        written = ls.write_export(study, "accurate", tmp_path / "out", UNPROBED)
    assert written.notice == "Of the search: No network is better."
    again = ExportOptions(retraining=Retraining(epochs=1), probe=False)
    assert ls.write_export(study, "accurate", tmp_path / "again", again).notice is None


def test_foreign_text_means_nothing_in_a_card() -> None:
    assert card.text("a\udcff\x1b[31m") == "a\\\\xff\\\\x1b\\[31m"
    assert card.code("a\udcff") == "a\\xff"
    assert card.text("<script>x</script>") == "&lt;script&gt;x&lt;/script&gt;"
    assert card.text("a|b`c`\n[d](e)") == "a\\|b\\`c\\` \\[d\\](e)"
    assert card.code("a`|\nb") == "a'\\| b"


@pytest.mark.usefixtures("unread")
def test_the_call_from_python_takes_what_the_command_takes(study: Study, tmp_path: Path) -> None:
    written = ls.write_export(study, "accurate", tmp_path / "out", UNPROBED)
    assert Path(written.dir, "model.py").is_file()
    record = ls.pick(study, "accurate")
    asked = ExportOptions(retraining=Retraining(epochs=3))
    folder = exports.default_folder(study, record, asked)
    assert folder == study.folder / "export" / f"{record.architecture.id}-3-epochs"
