"""Training that diverges, has no memory, or whose clock jumps."""

import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from levit_search import architecture
from levit_search.architecture import Architecture
from levit_search.batches import open_batches
from levit_search.distill import obtain_teacher
from levit_search.errors import TrialError
from levit_search.study import Record, Study, read_config
from levit_search.train import Checkpoint, fit, train_network
from tests.conftest import ROOT, command
from tests.faults.conftest import Account, Quoted
from tests.networks import SMALL_REGNETY, tiny_description, tiny_space

FAKE_CLOCK = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
MOST_S = 120.0

TRAIN: dict[str, Any] = {"epochs": 2, "batch_size": 64, "threads": 1, "device": "cpu"}


@pytest.fixture
def space(tmp_path: Path) -> Callable[..., Path]:
    def write(**sections: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(tiny_space(**sections)))
        return path

    return write


def _wrong(what: str, attempt: Callable[[], object], told: str) -> list[str]:
    try:
        found = attempt()
    except TrialError as error:
        is_told = re.search(told, str(error)) is not None and "\n" not in str(error)
        return [] if is_told else [f"{what}: said {error}"]
    return [f"{what}: came to {found}"]


def test_training_that_diverges_fails_with_its_reason(
    tiny: Architecture,
    space: Callable[..., Path],
    tmp_path: Path,
    times: Callable[[int, int], int],
    quoted: Quoted,
    account: Account,
) -> None:
    config = read_config(space(train=TRAIN), {})
    batches, chance = open_batches(config.data), np.random.default_rng(0)
    network = architecture.parse(tiny_description())
    lost, said = [], r"the loss became (nan|inf) in epoch|answers on val are no finite numbers"
    count = times(10, 100)
    for number in range(count):
        recipe = config.train.model_copy(update={"lr": float(10 ** chance.uniform(8, 30))})
        checkpoint = Checkpoint(tmp_path / f"{number}.pt", "run")
        lost += _wrong(
            f"learning rate {recipe.lr:g}",
            lambda recipe=recipe, number=number, checkpoint=checkpoint: train_network(
                network, batches, recipe, number, None, checkpoint=checkpoint
            )[1],
            said,
        )
        if checkpoint.path.exists():
            lost.append(f"learning rate {recipe.lr:g}: left a checkpoint")
    steps = batches.steps(config.train)
    for number in range(count):
        step = int(chance.integers(2 * steps)) if number else 2 * steps - 1  # the very last one
        lost += _wrong(
            f"endless gradient in step {step}",
            lambda step=step: _with_endless_gradient(network, batches, config.train, step),
            said,
        )
    with pytest.raises(TrialError) as failed:
        train_network(network, batches, config.train.model_copy(update={"lr": 1e30}), 0, None)
    quoted(str(failed.value), "the loss became … in epoch …; a lower learning rate may help")
    with pytest.raises(TrialError) as failed:
        _with_endless_gradient(network, batches, config.train, 2 * steps - 1)
    quoted(
        str(failed.value),
        "the network's answers on val are no finite numbers; a lower learning rate may help where "
        "it has just been trained",
    )
    account("nan-training", 2 * count, lost)


def _with_endless_gradient(
    network: Architecture, batches: Any, recipe: Any, bad_step: int
) -> object:
    """Train at a usual rate; the gradients of one step are infinite."""
    from levit_search.model import build

    torch.manual_seed(0)
    model = build(network)
    seen = 0

    def spoilt(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += 1
        return gradient * float("inf") if seen == bad_step + 1 else gradient

    next(model.parameters()).register_hook(spoilt)
    usual = recipe.model_copy(update={"lr": 5e-3})
    return fit(model, batches, usual, 0).val_top1_percent


def test_a_teacher_that_diverges_is_named(
    space: Callable[..., Path], tmp_path: Path, quoted: Quoted, account: Account
) -> None:
    recipe = {"epochs": 2, "batch_size": 64, "threads": 1, "device": "cpu"}
    teacher = {"name": "regnety_002", "options": SMALL_REGNETY, "recipe": recipe}
    hard = {**TRAIN, "distillation": "hard"}
    config = read_config(space(train=hard, teacher=teacher), {})
    assert config.teaching is not None
    steep = config.teaching.recipe.model_copy(update={"lr": 1e30})  # more than a file may ask for
    teaching = config.teaching.model_copy(update={"recipe": steep})
    batches = open_batches(config.data)
    with pytest.raises(TrialError) as failed:
        obtain_teacher(teaching, config.data, batches, config.train, tmp_path / "t", 0)
    quoted(
        str(failed.value),
        "teacher …: the loss became … in epoch …; a lower learning rate may help (teacher.recipe)",
    )
    lost = [str(path) for path in tmp_path.rglob("*") if path.suffix in (".pt", ".json")]
    account("nan-training", 1, lost)


class Running:
    """A search in a process of its own, and what it says."""

    def __init__(self, folder: Path, log: Path, env: dict[str, str], *arguments: object) -> None:
        self._log = log
        with log.open("w") as lines:
            self.process = subprocess.Popen(
                command("run", *arguments),
                stdout=subprocess.DEVNULL,
                stderr=lines,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            )

    def said(self) -> str:
        return self._log.read_text()

    def until(self, pattern: str) -> None:
        """Wait until it has said something, or has ended."""
        deadline = time.monotonic() + MOST_S
        while not re.search(pattern, self.said()) and self.process.poll() is None:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def end(self) -> int:
        return self.process.wait(MOST_S)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def start(env: dict[str, str], *arguments: object) -> Running:
        made.append(Running(tmp_path, tmp_path / f"log-{len(made)}", env, *arguments))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.wait()


def _workers(driver: int) -> list[int]:
    """The processes that a driver has started which have torch loaded."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == driver and "libtorch_cpu" in (entry / "maps").read_text():
                found.append(int(entry.name))
        except OSError:  # it ended just now
            continue
    return found


def _evaluated(folder: Path) -> list[Record]:
    return [record for record in Study.open(folder).records() if record.reused_from is None]


def test_a_trial_without_memory_fails_and_the_next_one_goes_on(
    running: Callable[..., Running],
    space: Callable[..., Path],
    tmp_path: Path,
    quoted: Quoted,
    account: Account,
) -> None:
    # Attention over 256 tokens of 256 images: pieces of 64 MB and more, which no free list has.
    stage = {"depth": {"range": [1, 4]}, "embed_dim": 16, "num_heads": 1, "key_dim": 8}
    stage["embed_dim"] = {"choices": [8, 16, 24, 32]}
    space(
        data={"name": "digits", "image_size": 64, "train_images": 256},
        architecture={"num_stages": 1, "stem": {"kind": "conv", "layers": 2}, "stages": [stage]},
        train={**TRAIN, "epochs": 1, "batch_size": 256},
        search={"trials": 6, "sampler": "random"},
    )
    search = running({}, "tiny.yaml", "--study", "s")
    search.until(r"trial \d+: top1")
    (worker,) = _workers(search.process.pid)
    pages = int(Path(f"/proc/{worker}/statm").read_text().split()[0])
    _, hard = resource.prlimit(worker, resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + (40 << 20)
    resource.prlimit(worker, resource.RLIMIT_AS, (limit, hard))
    search.until(r"failed: ")
    resource.prlimit(worker, resource.RLIMIT_AS, (hard, hard))
    lost = []
    # One step of training may leave all networks guessing: then a search that is done ends with 1.
    code = search.end()
    if code != 0 and not (code == 1 and "Report: " in search.said()):
        lost.append("the search ended")
    said = quoted(search.said(), "trial … failed: out of memory…")
    records = _evaluated(tmp_path / "s")
    failed = [record for record in records if record.state == "failed"]
    lost += [f"trial {r.trial}: {r.reason}" for r in failed if "out of memory" not in str(r.reason)]
    last = max(records, key=lambda record: record.trial)
    if last.state != "complete":
        lost.append(f"the last trial is {last.state} after {said}")
    for record in records:
        assert record.architecture is not None
        weights = tmp_path / "s" / "checkpoints" / f"{record.architecture.id}.safetensors"
        if weights.exists() != (record.state == "complete"):
            lost.append(f"trial {record.trial} is {record.state}: weights are {weights.exists()}")
    account("out-of-memory", len(failed), lost)


@pytest.mark.skipif(FAKE_CLOCK is None, reason="libfaketime is not installed (apt: faketime)")
def test_a_clock_that_jumps_costs_nothing(
    running: Callable[..., Running],
    space: Callable[..., Path],
    tmp_path: Path,
    account: Account,
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    env = {
        "LD_PRELOAD": str(FAKE_CLOCK),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    space(train={**TRAIN, "rungs": [1]}, search={"trials": 5, "sampler": "random"})
    search = running(env, "tiny.yaml", "--study", "s", "--time", "20m")
    for trial, jump in ((0, "+1y"), (1, "-1y"), (2, "-2y")):
        search.until(rf"trial {trial}\b")
        clock.write_text(f"{jump}\n")
    lost = []
    if search.end() != 0:
        lost.append(f"the search ended: {search.said()}")
    clock.write_text("+0\n")
    again = running(env, "tiny.yaml", "--study", "s", "--time", "20m", "--trials", 6)
    if again.end() != 0:
        lost.append(f"the search did not go on: {again.said()}")
    records = _evaluated(tmp_path / "s")
    done = [record for record in records if record.state != "failed"]
    if len(done) < 6:
        lost.append(f"{len(done)} of 6 networks were evaluated")
    for record in done:
        seconds = [record.seconds]
        if record.evaluation.get("training"):
            seconds += [point["seconds"] for point in record.evaluation["training"]["curve"]]
        if not all(0 <= each < MOST_S for each in seconds):
            lost.append(f"trial {record.trial} took {seconds} s")
    years = {str(record.finished)[:4] for record in records}
    assert len(years) >= 3, "the clock has jumped"
    account("clock-jumps", 3, lost)
