"""What a person reads while a search runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from levit_search import architecture
from levit_search.search.callbacks import SearchProgress
from levit_search.search.trials import SearchStatus
from levit_search.study import Record, Study, read_config
from tests.networks import tiny_description


def test_lines_name_the_unit_of_every_figure(
    space_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objectives = ["top1_percent", "flops", "params", "activations"]
    changes = {"objectives": objectives, "train.epochs": 3}
    study = Study.create(tmp_path / "s", read_config(space_file(), changes), ["test"])
    values = {"top1_percent": 71.234, "flops": 12.34e6, "params": 0.251e6, "activations": 98_700.0}
    done = Record(
        trial=0,
        state="complete",
        architecture=architecture.parse(tiny_description()),
        values=values,
        reason=None,
        reused_from=None,
        seconds=1.0,
        evaluation={"values": values},
    )
    rung = {"epoch": 1, "top1_percent": 40.0, "goes_on": False}
    stopped = replace(done, state="pruned", rungs=(rung,), reason="stopped at epoch 1 of 3")
    with SearchProgress(study) as progress:
        for record in (done, stopped):
            progress.on_trial_complete(record, SearchStatus(objectives, [record]), None)
    first, second = capsys.readouterr().err.splitlines()
    assert "top1_percent 71.23, 12.34 M FLOPs, 0.251 M params, 0.0987 M activations" in first
    assert "stopped at epoch 1 of 3: top1_percent 40.00" in second
