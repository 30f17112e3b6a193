"""Ray Tune's loop: our Searcher, our scheduler, and what Tune is told to leave out.

Tune starts workers and keeps them, puts them on nodes and notices their death. What to try and what
to stop is decided elsewhere, and nothing of what Tune writes down is read again.

Tune's own retries (``max_failures``) are not used: they lose a trial whose worker dies while it is
handed from one trial to the next. The desk gives the work of a dead worker to another.
"""

import logging
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from levit_search.search.ray_desk import Desk
from levit_search.search.ray_nodes import Seat, variables
from levit_search.search.ray_worker import Order, ordered, unpack

_WORD_S = 0.05  # most drivers have their word ready at once


def run(desk: Desk, order: Order, seat: Seat, workers: int) -> None:
    """Do the work that is put on the desk, until that is closed.

    Raises:
        Exception: whatever Tune ends with before.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # deaths are told by events
    with (
        tempfile.TemporaryDirectory(prefix="levit-search-tune-") as folder,
        variables(_settings(workers)),
    ):
        # Not by a Tuner, which would write all of this down to be gone on with.
        tune.run(
            tune.with_resources(ordered(order), seat),
            name="search",
            storage_path=folder,
            search_alg=Turns(desk),
            scheduler=Forwarding(desk),
            stop=Closing(desk),
            num_samples=-1,
            reuse_actors=True,
            raise_on_failed_trial=False,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
            callbacks=[Forgetful()],
            verbose=0,
        )


def _settings(workers: int) -> dict[str, str]:
    """What Tune takes from the environment alone."""
    return {
        # Tune would start one worker after another, each of which takes seconds.
        "TUNE_MAX_PENDING_TRIALS_PG": str(workers),
        # Nobody reads its records of all trials, which take ever longer to write.
        "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_RESULT_BUFFER_LENGTH": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
    }


class Turns(Searcher):
    """Suggests turns, as many at once as there should be workers."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk
        self._open: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        if self._desk.is_closed:
            return Searcher.FINISHED
        if len(self._open) >= self._desk.workers_wanted:
            return None
        self._open.add(trial_id)
        return {"settled_ms": self._desk.settled_ms}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        del result, error
        self._open.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept: the study's storage has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept."""


class Forwarding(TrialScheduler):
    """Forwards what workers tell and ask to the desk, and the driver's words to them."""

    def __init__(self, desk: Desk) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._desk = desk

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        del tune_controller
        desk, turn = self._desk, trial.trial_id
        events = unpack(result["told"])
        is_over = any(
            event.trial is not None and event.kind in ("done", "failed") for event in events
        )
        if result["asks"] and not is_over:
            desk.ready(turn, result["is_new"])
        for event in events:
            desk.tell(turn, event)
        if is_over:
            return str(TrialScheduler.STOP)
        patience_s = _WORD_S if result["asks_anew"] else 0.0
        word: Any = None
        if result["asks"]:
            task = desk.take(turn, patience_s)
            word = None if task is None else asdict(task)
        elif desk.waits_at_rung(turn):
            word = desk.answered(turn, patience_s)
        if word is not None:
            trial.temporary_state.ray_actor.word.remote(word)
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        del tune_controller
        self._desk.bury(trial.trial_id, _reason(trial))

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Tune starts what is pending anyway; going through all trials for one takes long."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None: ...

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None: ...

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None: ...

    def debug_string(self) -> str:
        return "decided by the search"


class Closing(Stopper):
    """Stops everything once the desk is closed."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        del trial_id, result
        return self._desk.is_closed

    def stop_all(self) -> bool:
        return self._desk.is_closed

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes it down with the experiment


class Forgetful(tune.Callback):
    """Keeps Tune from remembering what was told."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        del iteration, trials, trial, info
        result.pop("told", None)


def _reason(trial: Any) -> str:
    """Why a worker died, out of what Ray says at length."""
    said = Path(trial.error_file).read_text("utf-8", "replace")
    found = re.search(r"dead because (its .*? has died)|is unavailable", said)
    if found is None:
        reason = said.strip().splitlines()[-1][:300]
    else:
        reason = found[1] or "it cannot be reached"
    return f"the worker on {trial.node_ip or 'a node'} died: {reason}"
