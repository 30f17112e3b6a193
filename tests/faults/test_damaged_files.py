"""Files that are read back, cut short, with a flipped bit, emptied, or of something else."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from levit_search import architecture
from levit_search.audit import AuditStore
from levit_search.audit.front_confidence import Accuracies, Reevaluation
from levit_search.audit.reevaluation import Reevaluator
from levit_search.distill import teacher as teachers
from levit_search.distill.store import Answer, Header, Store
from levit_search.drawing.weight_maps import read_weights
from levit_search.errors import LevitSearchError, TrialError
from levit_search.export import retraining
from levit_search.files import read_checksummed, remove_unfinished, write_checksummed
from levit_search.latency import Probe
from levit_search.latency.cache import Cache
from levit_search.latency.latency_model import BlockTable, Calibration, LatencyModel, Predictor
from levit_search.latency.protocol import Round, Samples
from levit_search.model import build, load_weights, save_weights
from levit_search.progress import no_progress
from levit_search.recipe import TeacherConfig
from levit_search.reproduce import ReproductionStore
from levit_search.study import Study, read_config
from levit_search.train import Checkpoint
from tests.conftest import Cli
from tests.faults.conftest import Account, Quoted
from tests.networks import tiny_description

NOTHING = None


@dataclass(frozen=True)
class Kind:
    """One kind of file: where a sound one is, and what is read of it.

    ``read`` gives something that compares equal as long as it is sound, or ``NOTHING``.
    """

    path: Path
    read: Callable[[], Any]


def latency(folder: Path) -> Kind:
    timing = [{"cpu": 2.0, "wall": 2.5, "single": 3.0}, {"cpu": 4.125, "wall": 5.0, "single": 6.0}]
    samples = Samples(
        [Round([timing] * 5, [1, 1], 0.1, 0.5)] * 4, "tokens", "", 10**7, {"cpu": "x"}
    )
    cache, key = Cache(folder), {"network": "a", "batch_size": 1}
    cache.keep(key, samples)
    return Kind(cache.path(key), lambda: cache.find(key, "cpu"))


def block_table(folder: Path) -> Kind:
    path = folder / "blocks.json"
    BlockTable("tokens", 1, 0.125, {f"block{n}": 0.1 * n for n in range(20)}).save(path)
    return Kind(path, lambda: BlockTable.load(path))


def predictor(folder: Path) -> Kind:
    path, table = folder / "predictor.json", BlockTable("tokens", 1)
    made = Predictor(table, [Calibration(f"n{n}", 1.0 + n, n, 2.0 + n) for n in range(8)])
    write_checksummed(path, made.as_json())
    model = LatencyModel.__new__(LatencyModel)
    model._file, model.table = path, table

    def read() -> Any:
        found = model._kept_predictor()
        return NOTHING if found is None else (found.calibration, found.scale)

    return Kind(path, read)


def weights(folder: Path) -> Kind:
    network = architecture.parse(tiny_description())
    path, model = folder / "w.safetensors", build(network)
    save_weights(model, path)

    def read() -> Any:
        found = build(network)
        load_weights(found, path)
        return [tensor.tolist() for tensor in found.state_dict().values()]

    return Kind(path, read)


def drawn_weights(folder: Path) -> Kind:
    path = weights(folder).path
    return Kind(path, lambda: {name: each.tolist() for name, each in read_weights(path).items()})


def checkpoint(folder: Path) -> Kind:
    made = Checkpoint(folder / "run.training.pt", "run")
    made.save({"model": {"weight": torch.arange(50.0)}, "curve": [[1, 0.5, 10.0, 2.0]]})

    def read() -> Any:
        state = made.load()
        return NOTHING if state is None else (state["model"]["weight"].tolist(), state["curve"])

    return Kind(made.path, read)


def teacher_files(folder: Path) -> dict[str, Kind]:
    config = TeacherConfig(name="regnety_002")
    (folder / "key.pt").write_bytes(np.random.default_rng(0).bytes(3000))
    card = {"id": "regnety_002-1", "val_top1_percent": 71.25, "params": 3}
    digest = teachers.file_digest(folder / "key.pt")
    write_checksummed(folder / "key.json", {**card, "sha256": digest})
    return {
        name: Kind(folder / f"key.{name}", lambda: teachers._kept(folder, "key", config))
        for name in ("json", "pt")
    }


def card(folder: Path) -> Kind:
    return teacher_files(folder)["json"]


def teacher_weights(folder: Path) -> Kind:
    return teacher_files(folder)["pt"]


def answer_store(folder: Path) -> tuple[Store, Callable[[], Any]]:
    header = Header("t", "digits", {"size": 16}, {"torch": "2"}, 0, "soft", 3.0, 3, 10, 5, 7)

    def opened() -> Store:
        made = Store(folder, header)
        made.prepare(1)
        return made

    def answer(step: int) -> Answer:
        chance = np.random.default_rng(step)
        shares = chance.random((5, 3)).astype(np.float16)
        return Answer(chance.integers(0, 10, (5, 3)).astype(np.uint16), shares)

    def read() -> Any:
        """All that it gives; what it lacks is asked for again, and is the same."""
        asked = []

        def ask(step: int) -> Answer:
            asked.append(step)
            return answer(step)

        store = opened()
        found = []
        for step in range(7):
            given = store.find(0, step) or store.fill(0, step, lambda step=step: ask(step))
            found.append([part.tolist() for part in given])
        return found

    read()
    return opened(), read


def answers(folder: Path) -> Kind:
    store, read = answer_store(folder)
    return Kind(store.folder / "epoch-00000.bin", read)


def answers_header(folder: Path) -> Kind:
    store, read = answer_store(folder)
    return Kind(store.folder / "header.json", read)


def training(folder: Path, name: str = "training.json") -> Kind:
    made = folder / "made"
    made.mkdir()
    save_weights(build(architecture.parse(tiny_description())), made / "model.safetensors")
    result = {"val_top1_percent": 91.5, "test_top1_percent": 90.25, "train_images": 9, "curve": []}
    write_checksummed(made / "training.json", result)

    def read() -> Any:
        # A damaged training is removed, so each is another copy.
        here = folder / "copy"
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(made, here)
        found = retraining._finished(here)
        assert (found is None) == (not any(here.iterdir())), "the next one starts in a free folder"
        return found

    return Kind(made / name, read)


def trained_again(folder: Path) -> Kind:
    return training(folder, "model.safetensors")


def audit(folder: Path) -> Kind:
    store = AuditStore(folder)
    found = [Reevaluation(percent, 90.0, 100, 100, 1.0) for percent in (90.5, 91.0)]
    store.networks["a"] = Accuracies(found[0], {1: found[1]})
    store.save({"rows": []})
    return Kind(folder / "audit.json", lambda: AuditStore(folder).networks)


def reproduction(folder: Path) -> Kind:
    results = ReproductionStore(folder, "ablation")
    results.begin("static", {"a": 1}, {"cpu": "x"}, keep=False).rows["A1"] = {"flops": 305.5}
    results.save()
    return Kind(folder / "results.json", lambda: ReproductionStore(folder, "ablation").runs)


def damages(sound: bytes, count: int, chance: np.random.Generator) -> list[tuple[str, bytes]]:
    """Ways in which a file may be damaged: each of a few, then flipped bits and cuts."""
    found = [
        ("emptied", b""),
        ("of something else", b"#!/bin/sh\necho no such file\n"),
        ("JSON of something else", b'{"a": [1, 2, 3]}'),
        ("JSON of another shape", b"[]"),
        ("deep JSON", b"[" * 100_000),
        ("overwritten with zeros", bytes(len(sound))),
        ("twice over", sound + sound),
    ]
    while len(found) < count:
        place = int(chance.integers(len(sound)))
        if len(found) % 3 == 0:
            found.append((f"cut at {place}", sound[:place]))
        else:
            flipped = bytearray(sound)
            flipped[place] ^= 1 << int(chance.integers(8))
            found.append((f"a bit flipped at {place}", bytes(flipped)))
    return found


KINDS: dict[str, list[Callable[[Path], Kind]]] = {
    "damaged-latency": [latency, block_table, predictor],
    "damaged-weights": [weights, drawn_weights, trained_again],
    "damaged-checkpoint": [checkpoint],
    "damaged-teacher": [card, teacher_weights, answers, answers_header],
    "damaged-results": [training, audit, reproduction],
}


@pytest.mark.parametrize(
    ("fault", "make"), [(fault, make) for fault, kinds in KINDS.items() for make in kinds]
)
def test_a_damaged_file_is_noticed_named_and_never_used(
    fault: str,
    make: Callable[[Path], Kind],
    tmp_path: Path,
    times: Callable[[int, int], int],
    account: Account,
) -> None:
    count, chance = times(45, 1000), np.random.default_rng(sum(make.__name__.encode()))
    kind = make(tmp_path)
    sound = kind.path.read_bytes()
    expected = kind.read()
    assert expected is not NOTHING
    lost = []
    for what, raw in damages(sound, count, chance):
        kind.path.write_bytes(raw)
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            try:
                found, told = kind.read(), ""
            except LevitSearchError as error:
                found, told = NOTHING, str(error)
        told += " ".join(str(warning.message) for warning in given)
        if found is not NOTHING and found != expected:
            lost.append(f"{make.__name__} {what}: a wrong value was used")
        is_named = kind.path.name in told or kind.path.parent.name in told
        if found is NOTHING and not is_named:
            lost.append(f"{make.__name__} {what}: not named in {told!r}")
        kind.path.write_bytes(sound)
        assert kind.read() == expected, "a sound file serves again"
    account(fault, count, lost)


def test_files_that_killed_writers_left_are_removed_and_those_of_live_ones_stay(
    tmp_path: Path, times: Callable[[int, int], int], account: Account
) -> None:
    write = (
        "import sys\nfrom pathlib import Path\nfrom levit_search.files import write_atomically\n"
        "while True: write_atomically(Path(sys.argv[1]), b'x' * 2_000_000)"
    )
    folder, lost, left = tmp_path / "checkpoints", [], 0
    folder.mkdir()
    (folder / ".mine.settings").touch()
    living = subprocess.Popen([sys.executable, "-c", write, str(folder / "living")])
    count = times(10, 100)
    chance = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number}.pt"
        writer = subprocess.Popen([sys.executable, "-c", write, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        left += len(list(folder.glob(f".{number}.pt.*")))
        remove_unfinished(tmp_path)
        if list(folder.glob(f".{number}.pt.*")):
            lost.append(f"a temporary file of writer {number} is left")
        if path.stat().st_size != 2_000_000:
            lost.append(f"the file of writer {number} is not whole")
    assert living.poll() is None, "a file that is being written is not taken away"
    living.kill()
    living.wait()
    remove_unfinished(tmp_path)
    assert (folder / ".mine.settings").exists()
    assert left > 0, "some were killed while they wrote"
    account("left-over-files", count, lost)


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) * 2 // 3] ^= 4
    path.write_bytes(raw)


def test_damaged_weights_are_named_with_the_way_out_and_the_rest_goes_on(
    cli: Cli, space_file: Callable[..., Path], tmp_path: Path, quoted: Quoted, account: Account
) -> None:
    space_file(search={"trials": 2, "sampler": "random"})
    assert cli("run", "tiny.yaml", "--study", "s").returncode == 0
    study = Study.open(tmp_path / "s")
    record = next(each for each in study.records() if each.is_evaluated)
    assert record.architecture is not None
    path, pick = study.weights(record.architecture.id), f"trial={record.trial}"
    lost = []
    _flip(path)
    message = (
        "…: damaged (its checksum is that of other weights); `levit-search export … --pick "
        "trial=… --retrain --epochs …` trains this network again"
    )
    refused = cli("export", "s", "--pick", pick)
    quoted(refused.stderr, message)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 2
    shown = cli("show", f"s#{record.trial}", "--format", "svg")
    quoted(shown.stderr, message)
    assert shown.returncode == 0 and "Attention biases" not in shown.stdout
    for command in ("report", "front"):
        if cli(command, "s").returncode != 0:
            lost.append(f"{command} fails")
    page = (tmp_path / "s" / "report.html").read_text()
    if "damaged (its checksum" not in page:
        lost.append("the report does not say that weights are damaged")
    examiner = Reevaluator(study.config, study.folder, {}, None)
    examiner.prepare(record.architecture, lambda text, fraction: None)
    with pytest.raises(TrialError) as failed:
        examiner.verify(record.architecture, lambda text, fraction: None)
    quoted(str(failed.value), "…: damaged (its checksum is that of other weights); …")
    left = path.with_name(".x.safetensors.a1b2c3d4.partial")
    left.touch()
    goes_on = cli("run", "tiny.yaml", "--study", "s", "--trials", 3)
    if goes_on.returncode != 0:
        lost.append("the search does not go on")
    if left.exists():
        lost.append("a temporary file of a killed writer is left")
    asked = retraining.Retraining(epochs=1)
    config = retraining.config_for(study, asked)
    trained, _ = retraining.retrained(study, record.architecture, config, 1, no_progress)
    load_weights(build(record.architecture), trained)
    account("damaged-weights", 1, lost)


def test_a_search_measures_again_what_is_damaged_in_the_cache_and_says_so(
    cli_process: Cli,
    space_file: Callable[..., Path],
    tmp_path: Path,
    quoted: Quoted,
    account: Account,
) -> None:
    """Warnings of a worker process come through to whoever runs the search."""
    latency = {"seconds": 0.1, "rounds": 1, "reference": tiny_description()}
    space = space_file(
        objectives=["latency_ms", "flops"],
        latency=latency,
        search={"trials": 2, "sampler": "random"},
    )
    with Probe(read_config(space, {}).latency) as probe:
        probe.settle_reference(architecture.parse(tiny_description()))
    (kept,) = (tmp_path / "cache" / "levit-search" / "latency").glob("*.json")
    _flip(kept)
    done = cli_process("run", "tiny.yaml", "--study", "s")
    said = quoted(done.stderr, "…: damaged (…); the network is measured again")
    assert kept.name in said
    lost = [] if done.returncode == 0 else ["the search does not go on"]
    read_checksummed(kept)  # written anew
    account("damaged-latency", 1, lost)
