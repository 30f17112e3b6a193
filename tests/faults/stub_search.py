"""``levit-search`` whose workers only pretend to train: ``python -m`` this module ``run ...``.

The command, the driver, the worker processes and the storage are the real ones. An evaluation takes
``PACE_S`` an epoch, leaves a checkpoint at rungs, where it goes on after a kill, and weights.
"""

import os
import time
from pathlib import Path
from typing import Any

from levit_search.architecture import Architecture
from levit_search.cli import main
from levit_search.engine.interface import Engine, Settled
from levit_search.engine.local import LocalEngine
from levit_search.files import write_atomically
from levit_search.search import driver
from levit_search.study import Study, StudyConfig
from tests.engine_stubs import Found
from tests.engines import CurveEngine

PACE_S = float(os.environ.get("LEVIT_SEARCH_PACE_S", "0.03"))
EPOCHS, RUNGS = 6, (2, 4)


class Evaluator:
    """See the module; accuracies are made from the network alone."""

    def __init__(
        self,
        config: StudyConfig,
        folder: Path,
        settled: Settled,
        cores: frozenset[int] | None = None,
    ) -> None:
        self._folder, self._rungs = folder / "checkpoints", set(config.rung_epochs)
        self._epochs = config.train.epochs

    def prepare(self, sample: Architecture, progress: Any) -> dict[str, Any]:
        progress("getting ready", None)
        time.sleep(float(os.environ.get("LEVIT_SEARCH_PREPARES_S", "0")))
        return {"settled_ms": {}, "device": {}, "teacher": {}}

    def evaluate(self, network: Architecture, progress: Any, decide: Any) -> Found:
        self._folder.mkdir(exist_ok=True)
        checkpoint = self._folder / f"{network.id}.training.pt"
        weights = self._folder / f"{network.id}.safetensors"
        begun = int(checkpoint.read_text()) if checkpoint.exists() else 0
        curve: list[dict[str, float]] = []
        for epoch in range(1, self._epochs + 1):
            if epoch > begun:
                time.sleep(PACE_S)
                progress("training", epoch / self._epochs)
            accuracy = CurveEngine.accuracy(network, epoch)
            curve.append({"epoch": epoch, "val_top1_percent": accuracy, "seconds": float(epoch)})
            if epoch in self._rungs:
                if epoch > begun:
                    write_atomically(checkpoint, str(epoch))
                if not decide(epoch, {"top1_percent": accuracy}):
                    return Found({}, {"curve": curve})
        write_atomically(checkpoint, str(self._epochs))
        write_atomically(weights, network.id)
        return Found({"top1_percent": curve[-1]["val_top1_percent"]}, {"curve": curve})

    def verify(self, network: Architecture, progress: Any, decide: Any = None) -> Found:
        raise AssertionError("nothing here is predicted")

    def remeasure(self, networks: Any, progress: Any) -> list[Found]:
        raise AssertionError("nothing here is measured")

    def close(self) -> None: ...


def make_engine(study: Study, sample: Architecture, settled: Settled) -> Engine:
    evaluator = "tests.faults.stub_search:Evaluator"
    if study.config.engine.kind == "ray":
        from levit_search.engine.ray import RayEngine

        return RayEngine(study, sample, settled, evaluator)
    return LocalEngine(study, sample, settled, evaluator)


if __name__ == "__main__":
    driver.make_engine = make_engine
    main()
