"""The commands as a user meets them: stdout, stderr and exit code."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from levit_search import architecture
from levit_search.cli import searching
from levit_search.cost import cost
from levit_search.errors import InputError
from levit_search.search import driver
from levit_search.significance import interval_text, wilson_percent
from tests.conftest import ROOT, Cli, command
from tests.engines import StubEngine
from tests.networks import SMALL_REGNETY, tiny_description, tiny_space


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A finished study with a teacher and real probes, and what ``run --json`` printed."""
    folder = tmp_path_factory.mktemp("searched")
    space = tiny_space(
        objectives=["top1_percent", "latency_ms"],
        latency={"seconds": 0.1, "rounds": 2, "reference": tiny_description()},
        teacher={
            "name": "regnety_002",
            "options": SMALL_REGNETY,
            "recipe": {"epochs": 1, "batch_size": 64, "threads": 1},
        },
        train={"epochs": 8, "batch_size": 32, "lr": 5.0e-3, "threads": 1, "device": "cpu"},
        search={"trials": 3},
        storage=None,
    )
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space))
    done = subprocess.run(
        command("run", path, "--study", folder / "study", "--json"),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr
    return folder / "study", json.loads(done.stdout)


def test_run_prints_one_json_document_and_fills_the_folder(
    searched: tuple[Path, dict[str, object]],
) -> None:
    study, printed = searched
    assert list(printed) == ["study", "trials", "seconds", "hypervolume", "verdict", "front"]
    trials = printed["trials"]
    assert isinstance(trials, dict)
    assert list(trials)[:4] == ["complete", "pruned", "failed", "reused"]
    assert trials["complete"] - trials["reused"] == trials["evaluated"] - trials["stopped"]
    front = printed["front"]
    assert isinstance(front, list)
    keys = ["trial", "id", "top1_percent", "latency_ms", "flops", "params"]
    assert [key for key in front[0] if key in keys] == keys
    network = architecture.parse(front[0]["architecture"])
    assert network.id == front[0]["id"]
    assert (front[0]["params"], front[0]["flops"]) == cost(network)[:2]
    names = {path.name for path in study.iterdir()}
    assert {
        "study.yaml",
        "environment.json",
        "study.db",
        "trials.csv",
        "front.csv",
        "report.html",
        "checkpoints",
        "teacher",
    } <= names
    rows = list(csv.DictReader((study / "trials.csv").open()))
    assert len(rows) == sum(printed["trials"][k] for k in ("complete", "pruned", "failed"))  # type: ignore[index]
    assert all(float(row["ratio_ci95_low"]) > 0 for row in rows if row["state"] == "complete")


def test_front_comes_in_every_format(searched: tuple[Path, dict[str, object]], cli: Cli) -> None:
    study, printed = searched
    assert json.loads(cli("front", study, "--format", "json").stdout) == printed["front"]
    count = len(printed["front"])  # type: ignore[arg-type]
    assert len(cli("front", study, "--format", "csv").stdout.splitlines()) == count + 1
    assert len(cli("front", study, "--format", "markdown").stdout.splitlines()) == count + 2
    assert "latency ms" in cli("front", study).stdout


def test_export_writes_a_network_that_loads_and_says_so(
    searched: tuple[Path, dict[str, object]], cli: Cli, tmp_path: Path
) -> None:
    study, printed = searched
    best_of = ["export", study, "--pick", "accurate", "--out", tmp_path / "best", "--no-probe"]
    done = cli(*best_of, "--json")
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert list(written)[:4] == ["dir", "files", "parity_max_abs_diff", "latency_ms"]
    assert written["parity_max_abs_diff"] <= 1e-4
    network = architecture.load(str(tmp_path / "best" / "architecture.yaml"))
    best = max(printed["front"], key=lambda row: row["top1_percent"])  # type: ignore[attr-defined, arg-type, index]
    assert network.id == best["id"]
    weights = load_file(tmp_path / "best" / "model.safetensors")
    trained = sum(t.numel() for n, t in weights.items() if "running" not in n and "num_b" not in n)
    assert trained == best["params"]
    card = (tmp_path / "best" / "README.md").read_text()
    assert f"{best['top1_percent']:.2f} %" in card
    again = cli(*best_of)
    assert again.returncode == 2
    assert "is not empty" in again.stderr


@pytest.mark.parametrize(
    ("pick", "told"),
    [
        ("latency_ms<=0.000001", "the nearest is trial"),
        ("kne", "expected knee, accurate, fastest"),
        ("latency_ms<=fast", "expected knee, accurate, fastest"),
        ("trial=77", "no finished trial '77'"),
    ],
)
def test_a_pick_that_nothing_satisfies_is_explained(
    pick: str, told: str, searched: tuple[Path, dict[str, object]], cli: Cli
) -> None:
    done = cli("export", searched[0], "--pick", pick)
    assert done.returncode == 2
    assert told in done.stderr


def test_a_finished_study_is_not_searched_again(
    searched: tuple[Path, dict[str, object]], cli: Cli
) -> None:
    study, printed = searched
    done = cli("run", study.parent / "space.yaml", "--study", study, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["front"] == printed["front"]


def test_count_gives_the_published_figures_as_json(cli: Cli) -> None:
    done = cli("count", "LeViT-128S", "LeViT-384", "--json")
    rows = json.loads(done.stdout)
    assert [(row["name"], row["params"], row["flops"]) for row in rows] == [
        ("LeViT-128S", 7_777_058, 305_108_946),
        ("LeViT-384", 39_128_836, 2_352_935_380),
    ]
    assert list(rows[0]) == ["name", "id", "params", "flops", "activations"]
    by_layer = json.loads(cli("count", "LeViT-128S", "--by-layer", "--json").stdout)[0]
    assert sum(layer["flops"] for layer in by_layer["layers"]) == by_layer["flops"]


def test_count_and_help_never_import_torch() -> None:
    script = (
        "import sys; from levit_search.cli import main; sys.argv[1:] = {!r}\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {{'torch', 'timm', 'ray', 'onnxruntime', 'pandas'}} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr)"
    )
    for arguments in (["count", "LeViT-256"], ["--help"], ["space", "levit", "--sample", "5"]):
        done = subprocess.run(
            [sys.executable, "-c", script.format(arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.stderr.strip().endswith("set()"), done.stderr


def test_counting_a_network_of_ours_imports_few_modules() -> None:
    script = (
        "import sys; from levit_search.cli import main; sys.argv[1:] = ['count', 'LeViT-256']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "ours = sorted(name for name in sys.modules if name.partition('.')[0] == 'levit_search')\n"
        "print(*ours, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    modules = done.stderr.split()
    assert "levit_search.cost" in modules
    assert len(modules) <= 25, modules


def test_space_describes_a_space(cli: Cli, space_file: Callable[..., Path]) -> None:
    done = cli("space", space_file(limits={"flops": 130_000}), "--sample", "400", "--json")
    found = json.loads(done.stdout)
    assert found["size"] == 14
    assert 0 < found["feasible_share"] < 1
    assert found["slots"]["stages.1.embed_dim"] == [16, 24, 32]
    assert found["costs"]["flops"]["max"] <= 130_000


def test_a_space_whose_data_is_not_here_is_described_and_that_is_said(cli: Cli) -> None:
    done = cli("space", "photos", "--sample", "20", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["samples"] == 20
    assert "data.root: is required" in done.stderr
    assert done.stderr.strip().endswith("shown for 3 channels and 1000 classes")
    assert cli("space", "levit", "--sample", "20").stderr == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 90), ("90s", 90), ("30m", 1800), ("2h30m", 9000), ("1.5h", 5400), ("0.5", 0.5)),
        *(("1h30", 5400), ("1h5", 3900), ("2m30", 150), ("1h30m20", 5420), ("1h30s", 3630)),
    ],
)
def test_a_time_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert searching._seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "0s", "-5", "h", "1h90", "2m90", "1.5h30", "1h1.5", "1 h", "1d", "1:30", "1m1h"),
        *("inf", "nan", "1e3", "\N{ARABIC-INDIC DIGIT THREE}m", "9" * 400, f"{'9' * 400}h"),
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a time such as 90s, 30m or 2h30m"):
        searching._seconds(text)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of pictures that was made from elsewhere, with relative paths."""
    folder = tmp_path_factory.mktemp("pictured")
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label, name in enumerate(("dark", "light")):
            place = folder / "set #1" / part / name
            place.mkdir(parents=True)
            for index in range(40):
                pixels = rng.integers(128 * label, 128 * label + 128, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    space = tiny_space(data={"name": "folder", "image_size": 16}, search={"trials": 2})
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    done = subprocess.run(
        command("run", "space.yaml", "--study", "study", "--set", "data.root=set #1"),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr
    return folder / "study"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("front", "{}"),
        ("report", "{}"),
        ("export", "{}", "--out", "out"),
        ("audit", "{}", "--seeds", "1"),
        ("restore", "{}", "--force"),
        ("show", "{}#0"),
        ("count", "{}#0"),
        ("run", "{}/study.yaml", "--study", "{}"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_on_a_study_does_not_depend_on_the_working_directory(
    arguments: tuple[str, ...], pictured: Path, cli: Cli
) -> None:
    done = cli(*(argument.format(pictured) for argument in arguments))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_data_that_was_moved_is_named_anew(pictured: Path, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(pictured, tmp_path / "s", ignore=shutil.ignore_patterns("audit*"))
    settings = (tmp_path / "s" / "study.yaml").read_text()
    gone = settings.replace("set #1", "gone")
    assert gone != settings
    (tmp_path / "s" / "study.yaml").write_text(gone)
    (tmp_path / "new").symlink_to(pictured.parent / "set #1")
    for words in (["export", "s", "--no-probe", "--out", "out"], ["audit", "s", "--no-retrain"]):
        done = cli(*words)
        assert done.returncode == 2
        assert done.stderr.strip().endswith("lies elsewhere now, name the place by --data DIR")
        assert cli(*words, "--data", "new").returncode == 0
    assert cli("report", "s", "--data", "new").returncode == 0
    assert (tmp_path / "s" / "study.yaml").read_text() == gone, "these only read"
    done = cli("run", "s/study.yaml", "--study", "s", "--set", "data.root=new")
    assert done.returncode == 0, done.stderr
    again = yaml.safe_load((tmp_path / "s" / "study.yaml").read_text())
    assert again["data"]["root"] == str(tmp_path / "new")


def test_the_published_networks_are_inside_the_imagenet_space(cli: Cli) -> None:
    found = json.loads(cli("space", "levit-imagenet", "--sample", "20", "--json").stdout)
    assert found["published"] == list(architecture.LEVITS)


def test_probe_prints_the_contract(
    cli: Cli, tmp_path: Path, tiny: architecture.Architecture
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    done = cli("probe", "tiny.yaml", "--seconds", "0.1", "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)[0]
    contract = (
        "name id target runtime batch_size threads precision latency_ms throughput_ips "
        "ratio_to_reference ratio_ci95 pairs seconds"
    )
    assert set(contract.split()) <= set(row)
    assert row["id"] == tiny.id
    assert row["latency_ms"] > 0


def test_train_prints_the_contract_and_keeps_the_network(
    cli: Cli, tmp_path: Path, tiny: architecture.Architecture
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    options = ("--data", "digits", "--epochs", 2, "--teacher", "none", "--final", "--out", "kept")
    done = cli("train", "tiny.yaml", *options, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["id"] == tiny.id
    assert len(result["curve"]) == result["epochs"] == 2
    assert 0 < result["test_top1_percent"] < 100
    assert result["val_top1_percent"] == result["curve"][-1]["val_top1_percent"]
    assert load_file(tmp_path / "kept" / "model.safetensors")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["run", "levitt"], "did you mean 'levit'?"),
        (["run", "levit", "--trails", "3"], "--trials"),
        (["rnu", "levit"], "run"),
        (["run", "levit", "--set", "train.epochz=3"], "did you mean 'epochs'?"),
        (["run", "levit", "--set", "train.epochs=0"], "train.epochs: input should be greater"),
        (["run", "levit", "--set", "data.name=digit"], "did you mean 'digits'?"),
        (["run", "levit", "--set", "data.name=folder"], "data.root: is required"),
        (["run", "levit", "--set", "limits.flops=10"], "flops over the limit of 10"),
        (["run", "levit", "--set", "architecture.stem.layers=5"], "too small for the stem"),
        (["run", "levit", "--set", "architecture.stages.0.dept=5"], "did you mean 'depth'?"),
        (["run", "levit", "--set", "objectives=[flops]"], "two or more different objectives"),
        (["run", "levit", "--set", "data.image_size=big"], "data.image_size"),
        (["run", "levit", "--time", "soon"], "90s, 30m or 2h30m"),
        (["run", "levit", "--time", "1h90"], "--time 1h90: expected a time such as 90s, 30m"),
        (["run", "levit", "--set", "start=[LeViT-128S]"], "made for 224 px, the data has 16"),
        (["run", "x" * 3000], "unknown space"),
        (["count", "LeVit-256"], "did you mean 'LeViT-256'?"),
        (["count", "a#b"], "no such study folder"),
        (["front", "nowhere"], "no such study folder"),
        (["probe", "LeViT-128S", "--target", "gpu"], "did you mean 'cpu'?"),
        (
            ["run", "levit", "--set", "data.image_size=64x96"],
            "expected one number or [rows, columns]",
        ),
        (["run", "levit", "--set", "data.image_size=[2,64]"], "2x64 px is out of reach; expected"),
        (
            ["run", "levit", "--set", "data.image_size=[16,22]"],
            "16x22 px is no multiple of the stem",
        ),
        (["train", "LeViT-128S", "--image-size", "32x"], "--image-size: expected pixels, or HxW"),
        (
            ["train", "LeViT-128S", "--image-size", "32x50"],
            "fitted to 32x50 px: image_size: 32x50 px",
        ),
        (["train", "LeViT-128S", "--data", "mnist"], "did you mean 'torch/mnist'?"),
    ],
)
def test_bad_input_gets_one_line_and_exit_2(
    arguments: list[str], told: str, cli: Cli, tmp_path: Path
) -> None:
    done = cli(*arguments)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_a_process_prints_and_exits_as_its_command_says(cli_process: Cli) -> None:
    """All the rest runs in this process; this one sees what only a process of its own can show."""
    done = cli_process("count", "LeViT-128S", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["name"] == "LeViT-128S"
    wrong = cli_process("count", "LeVit-256")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    (line,) = wrong.stderr.splitlines()
    assert line.startswith("levit-search: ") and "did you mean 'LeViT-256'?" in line


@pytest.mark.slow
def test_an_unknown_teacher_is_wrong_input_before_any_trial(
    cli: Cli, space_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = space_file(teacher={"name": "regnety_003"})
    done = cli("run", path, "--study", "s")
    assert done.returncode == 2
    assert "unknown teacher 'regnety_003'" in done.stderr
    assert "regnety_002" in done.stderr
    assert (
        not (tmp_path / "s" / "trials.csv").exists()
        or "complete" not in (tmp_path / "s" / "trials.csv").read_text()
    )


def test_ctrl_c_says_how_to_go_on(space_file: Callable[..., Path], tmp_path: Path) -> None:
    """As from a terminal, to all processes."""
    path = space_file(search={"trials": 50}, train={"epochs": 50, "threads": 1})
    # What ignores the signal (a shell's background jobs do) hands that down to its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command("run", path, "--study", tmp_path / "s"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    try:
        while not (tmp_path / "s" / "worker-1.log").exists():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    assert "Traceback" not in errors


def test_reproduce_prints_one_json_document_and_writes_the_table(cli: Cli, tmp_path: Path) -> None:
    done = cli("reproduce", "ablation", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["table"] == "ablation"
    by_name = {row["name"]: row for row in document["rows"]}
    assert by_name["ablation-A1"]["paper"]["params_m"] == 1.2
    assert by_name["ablation-A1"]["here"]["params"] == 1_214_614
    assert by_name["ablation-A6"]["here"]["flops"] == 312_203_018
    folder = tmp_path / "studies" / "ablation"
    names = {"results.json", "study.yaml", "table.csv", "table.md"}
    assert {path.name for path in folder.iterdir() if path.name != ".lock"} == names
    assert yaml.safe_load((folder / "study.yaml").read_text())["reproduces"] == "ablation"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grafts"], "unknown table 'grafts'; did you mean 'grafting'?"),
        (["grafting", "--columns", "static,sped"], "'sped'; did you mean 'speed'?"),
        (["blocks", "--columns", "static"], "'static'; Known: speed"),
        (["grafting", "--layout", "map"], "unknown value 'map'; did you mean 'maps'?"),
        (["grafting", "--batch-size", "0"], "batch_size: must be a number of images from 1"),
        (["grafting", "--data", "mnist"], "did you mean 'torch/mnist'?"),
        (
            ["grafting", "--columns", "accuracy", "--width-scale", "0"],
            "greater than or equal to 0.01",
        ),
        (["grafting", "--set", "limits.flops=1M"], "only data, train, teacher and latency"),
        (["blocks", "--layout", "maps"], "blocks are timed over tokens"),
        (
            ["grafting", "--columns", "accuracy", "--image-size", "30"],
            "cannot bring a map of 30x30",
        ),
    ],
)
def test_reproduce_refuses_bad_input_and_writes_nothing(
    cli: Cli, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = cli("reproduce", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.glob("studies/*/results.json"))


def test_a_search_at_chance_says_so_first_and_ends_with_1(
    cli: Cli, space_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Guessing(StubEngine):
        data: ClassVar = {
            "id": "made-up",
            "train_images": 256,
            "val_images": 288,
            "test_images": 360,
            "num_classes": 10,
            "guess_percent": 10.1,
            "mirrored": True,
        }

        @staticmethod
        def accuracy(network: architecture.Architecture) -> float:
            return 8 + int(network.id[:4], 16) / 65536 * 6

    monkeypatch.setattr(driver, "make_engine", Guessing)
    done = cli("run", space_file(), "--study", "s")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    told = done.stdout[: done.stdout.index("Pareto front of s")]
    assert told.startswith("No network is better than guessing, as far as 288 images of val tell")
    for key in ("train.epochs", "train.donor_weights", "train.hflip=false", "data.image_size"):
        assert key in told
    page = (tmp_path / "s" / "report.html").read_text("utf-8")
    assert '"kind":"guessing","text":"No network is better than guessing' in page
    again = cli("run", space_file(), "--study", "s", "--json")
    verdict = json.loads(again.stdout)["verdict"]
    assert (again.returncode, verdict["kind"], verdict["val_images"]) == (1, "guessing", 288)
    shown = cli("front", "s")
    assert (shown.returncode, shown.stdout.startswith("No network is better")) == (0, True)
    for format in ("csv", "json", "markdown"):
        shown = cli("front", "s", "--format", format)
        assert shown.returncode == 0
        assert "No network is better" in shown.stderr and "guessing" not in shown.stdout


def test_each_accuracy_on_a_front_has_its_interval(
    searched: tuple[Path, dict[str, object]], cli: Cli
) -> None:
    study, printed = searched
    rows = printed["front"]
    assert isinstance(rows, list)
    assert printed["verdict"]["kind"] in ("better_than_guessing", "cost_alone")  # type: ignore[index]
    for row in rows:
        low, high = row["top1_percent_ci95"]
        assert [low, high] == list(wilson_percent(row["top1_percent"], row["val_images"]))
        assert row["val_images"] == 288
    assert [row["vs_best"] for row in rows].count("best") == 1
    texts = [interval_text(*row["top1_percent_ci95"]) for row in rows]
    for format in ("table", "markdown"):
        shown = cli("front", study, "--format", format).stdout
        assert "95 % interval" in shown and "vs best" in shown
        assert all(text in shown for text in texts)
    assert "not told apart" in " ".join(cli("front", study).stdout.split())
    listed = list(csv.DictReader(cli("front", study, "--format", "csv").stdout.splitlines()))
    assert [float(row["top1_percent_ci95_low"]) for row in listed] == [
        row["top1_percent_ci95"][0] for row in rows
    ]
    assert [row["vs_best"] for row in listed] == [row["vs_best"] for row in rows]


def test_a_training_ends_with_the_interval_of_its_accuracies(
    cli: Cli, tmp_path: Path, tiny: architecture.Architecture
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    options = ("--data", "digits", "--epochs", 1, "--teacher", "none", "--final")
    line = cli("train", "tiny.yaml", *options).stdout
    result = json.loads(cli("train", "tiny.yaml", *options, "--json").stdout)
    for split in ("val", "test"):
        percent, ends = result[f"{split}_top1_percent"], result[f"{split}_top1_percent_ci95"]
        assert ends == list(wilson_percent(percent, result[f"{split}_images"]))
        assert f"{split} {percent:.2f} % ({interval_text(*ends)} %)" in line


def test_pictures_of_ones_own_are_learnt_without_a_teacher_that_nobody_asked_for(
    cli: Cli, tmp_path: Path, tiny: architecture.Architecture, flowers: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny.to_yaml())
    options = ("--data", "folder", "--set", f"data.root={flowers}", "--epochs", 1)
    done = cli("train", "tiny.yaml", *options)
    assert done.returncode == 0, done.stderr
    assert "teacher" not in done.stdout + done.stderr
    taught = cli("train", "tiny.yaml", *options, "--set", "teacher.name=resnet10t")
    assert "teacher resnet10t: epoch 1/" in taught.stdout + taught.stderr


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    for part, count in (("train", 7), ("val", 2)):
        for name in ("daisy", "tulip"):
            folder = tmp_path / "flowers" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "flowers"


def test_data_shows_what_is_in_a_folder(cli, flowers):
    (flowers / "train" / "daisy" / "notes.txt").write_text("?")
    (flowers / "train" / "daisy" / "0.png").write_bytes(b"?")
    done = cli("data", "flowers")
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 10
    assert lines[0].startswith(f"folder {flowers}: 2 classes, fingerprint ")
    assert lines[1] == "train: 13 pictures; 6 of daisy to 7 of tulip"
    assert lines[2] == "test: 4 pictures; 2 of each class"
    assert (
        f"unreadable: 1 (the first: {flowers}/train/daisy/0.png: not an image), left out"
        in (lines[3])
    )
    assert "all 30x20; shown at 16 px" in lines[4]
    assert lines[-1] == "left out, no pictures: 1 .txt"


def test_data_takes_settings_and_gives_json(cli, flowers):
    given = "--set", "data.in_channels=1", "--set", "data.image_size=24"
    found = json.loads(cli("data", flowers, *given, "--json").stdout)
    assert (found["in_channels"], found["image_size"], found["coloured"]) == (1, 24, 18)
    assert found["counts"] == {"train": [7, 7], "test": [2, 2]}
    assert json.loads(cli("data", flowers, "--json").stdout)["fingerprint"] == found["fingerprint"]


def test_data_shows_a_set_by_its_name(cli):
    done = cli("data", "digits")
    assert done.returncode == 0
    assert "train: 1,797 pictures" in done.stdout and "mirroring off" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["digit"], "unknown data set 'digit'"),
        (["/nowhere/flowers"], "/nowhere/flowers: is no folder"),
        (["flowers/train/daisy/0.png"], "is no folder; expected one of images"),
        (["flowers/train"], "has no folder train/"),
        (["flowers", "--set", "data.ground=blue"], "'blue' is none; expected white, grey, black"),
        (["flowers", "--set", "data.integer_range=[5]"], "[5] is none; expected [value of black,"),
        (["flowers", "--set", "data.float_range=[2,1]"], "expected [value of black, value of"),
        (["flowers", "--set", "data.in_channels=2"], "unknown value 2; Known: 1, 3"),
        (["flowers", "--set", "data.groun=1"], "unknown key 'groun'"),
        (["flowers", "--set", "train.lr=1"], "--set train.lr: this command knows keys of data"),
        (["digits", "--set", "data.in_channels=3"], "data.in_channels: 3, but digits has 1"),
    ],
)
def test_data_tells_a_mistake_in_a_line(arguments, reason, cli, flowers):
    done = cli("data", *arguments)
    assert done.returncode == 2 and not done.stdout
    assert reason in done.stderr and len(done.stderr.splitlines()) == 1


def test_data_with_too_much_that_is_unreadable_is_shown_and_ends_with_2(cli, flowers):
    for number in range(3):
        (flowers / "train" / "tulip" / f"{number}.png").write_bytes(b"?")
    done = cli("data", flowers, "--set", "data.max_unreadable=2")
    assert done.returncode == 2 and "unreadable: 3" in done.stdout
    assert "data.max_unreadable: more than 2 images" in done.stderr
