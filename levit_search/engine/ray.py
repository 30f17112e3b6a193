"""Workers on the nodes of a Ray cluster, by Ray Tune: each candidate is one of its trials.

The driver of the search runs on one of the nodes; Tune's loop is a thread of its process. All nodes
need this package, in the same version, and see the study's folder under the same path, on a file
system that they share. A study goes on by its own storage: nothing that Tune writes down is read.

In three things this is not as usual, each for a reason that ``tests/test_ray_engine.py`` shows:

- A trial that is done is held open until there is another for its worker. Of the workers without a
  trial Tune keeps a single one, and a new one takes seconds to import torch and to prepare.
- A candidate that is stopped at a rung is told so and ends by itself: Tune's ``STOP`` would end it
  without its curve and its figures, which the study keeps.
- A candidate whose worker died is suggested once more. Tune's own ``max_failures`` loses a trial
  whose worker dies while it is handed over, and would repeat one that is held open.
"""

import contextlib
import functools
import logging
import os
import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray as typed_in_part
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from levit_search.architecture import Architecture
from levit_search.engine import ray_cluster, tasks
from levit_search.engine.interface import Event, Settled, settled_in
from levit_search.engine.tasks import Evaluates, Task, TaskEngine
from levit_search.errors import InputError, first_line
from levit_search.study import Study, StudyConfig

ray: Any = typed_in_part

_END_S, _WORKER_END_S = 20.0, 5.0
# So many workers in a row that die without a task are no accident: before and after one prepared.
_MOST_DEATHS_BEFORE, _MOST_DEATHS = 2, 3
_BEAT_S = 1.0  # a worker speaks at least so often, so that progress is seen
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.02, 0.5  # between two steps of a worker that waits
_TUNE_VARIABLES = {  # what Tune takes from the environment alone
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints on stdout, and that is for results
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # three files for each trial
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # a record of all trials, which takes ever longer to write
}


class CandidateSearcher(TaskEngine, Searcher):
    """Suggests what the driver of a search has submitted, one task for each worker that is free.

    Here the driver's thread and Tune's meet: tasks and answers about rungs go one way, events the
    other. As many trials are open as there should be workers; a suggestion without a task starts
    one, which only prepares. The task of a worker that died comes first.

    Args:
        settled: what was settled before; may be empty.
        workers: how many there should be, once the first has prepared.
    """

    def __init__(self, settled: Settled, workers: int) -> None:
        super().__init__()
        self.is_closed = self._is_prepared = False
        self.workers_wanted = 1
        self._settled, self._workers = settled, workers
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._waiting: deque[Task] = deque()  # for a free worker
        self._assigned: deque[Task] = deque()  # to a worker that Tune is about to hand over
        self._trials: dict[str, Task | None] = {}  # Tune's that are open, by id
        self._free: set[str] = set()  # those of them that are done
        self._at_rung: dict[int, Any] = {}  # workers that wait for an answer, by candidate
        self._deaths = 0

    # The driver's side

    def has_room(self) -> bool:
        with self._changed:
            return len(self._waiting) < len(self._free)

    def give(self, task: Task) -> None:
        with self._changed:
            self._waiting.append(task)

    def answer(self, trial: int, goes_on: bool) -> None:
        with self._changed:
            actor = self._at_rung.pop(trial, None)
        if actor is not None:  # it may have died since it asked
            actor.answer.remote(goes_on)

    def events(self, patience_s: float) -> list[Event]:
        with self._changed:
            self._changed.wait_for(lambda: self._events, patience_s)
            events = list(self._events)
            self._events.clear()
            return events

    def close(self) -> None:
        self.is_closed = True

    # Tune's side

    def suggest(self, trial_id: str) -> Any:
        with self._changed:
            if self.is_closed:
                return Searcher.FINISHED
            if not self._assigned and len(self._trials) >= self.workers_wanted:
                return None
            task = self._trials[trial_id] = self._assigned.popleft() if self._assigned else None
            return {"task": task and asdict(task), "settled": self._settled}

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        del result, error
        self._trials.pop(trial_id, None)

    def told(self, trial_id: str, events: Sequence[Event], actor: Any) -> bool:
        """Note what a worker, ``actor``, told since its last step.

        Returns:
            Whether its trial ends, since there is another for it.
        """
        with self._changed:
            for event in events:
                self._note(trial_id, event, actor)
            if self.is_closed or trial_id not in self._free or not self._waiting:
                return self.is_closed
            self._free.discard(trial_id)
            self._assigned.append(self._waiting.popleft())
            return True

    def _note(self, trial_id: str, event: Event, actor: Any) -> None:
        is_first = not self._is_prepared
        match event.kind, event.trial:
            case "rung", int(candidate):
                self._at_rung[candidate] = actor
            case "failed", None:
                self.workers_wanted -= 1
                if not is_first:
                    event = replace(event, content={**event.content, "wrong_input": False})
            case "done", None:
                self._deaths = 0
                if self._trials.get(trial_id) is None:
                    self._free.add(trial_id)
                if is_first:
                    self._is_prepared, self.workers_wanted = True, self._workers
                    self._settled = settled_in(event.content)
            case "done" | "failed", _:
                self._trials[trial_id] = None
                self._free.add(trial_id)
        # Of preparations, the first one is told.
        if is_first or event.trial is not None or event.kind in ("failed", "warning"):
            self._put(event)

    def bury(self, trial_id: str, reason: str) -> None:
        """A worker has died: its task is done once more, by another."""
        with self._changed:
            self._free.discard(trial_id)
            task = self._trials.pop(trial_id, None)
            if self.is_closed:
                return
            if task is not None:
                self._at_rung.pop(task.trial, None)
                told = task.note_death(reason)
                if told.kind != "failed":
                    self._waiting.appendleft(task)
                self._put(told)
                return
            self._deaths += 1
            most = _MOST_DEATHS if self._is_prepared else _MOST_DEATHS_BEFORE
            if self.workers_wanted and self._deaths >= most:
                self.fail(reason)

    def bury_all(self, reason: str) -> None:
        """All workers are gone."""
        with self._changed:
            self._waiting.extendleft(reversed(self._assigned))
            self._assigned.clear()
            for trial_id in [each for each, task in self._trials.items() if task] or [""]:
                self.bury(trial_id, reason)
            self._trials.clear()
            self._free.clear()

    def fail(self, reason: str) -> None:
        """There will be no more workers."""
        with self._changed:
            self.workers_wanted = 0
            self._put(Event("failed", None, reason, content={"wrong_input": False}))

    def _put(self, event: Event) -> None:
        self._events.append(event)
        self._changed.notify_all()


class DriverScheduler(FIFOScheduler):
    """Lets a trial go on until the searcher has another for its worker."""

    def __init__(self, searcher: CandidateSearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        del tune_controller
        is_over = self._searcher.told(trial.trial_id, result["events"], result["actor"])
        return str(TrialScheduler.STOP if is_over else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        del tune_controller
        said = Path(trial.error_file).read_text("utf-8", "replace")
        self._searcher.bury(trial.trial_id, ray_cluster.death(said, trial.node_ip))

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Tune starts what is pending anyway; this ends it all once the searcher is closed."""
        if self._searcher.is_closed:
            for trial in list(tune_controller.get_live_trials()):
                tune_controller.stop_trial(trial)


class RayEngine(CandidateSearcher):
    """Up to ``engine.jobs`` workers on a cluster, as many as its nodes have room for.

    The first worker prepares alone; the others begin with what it found. Nodes may come and go. A
    trial whose worker or node dies goes on from its checkpoint with another one, once.

    It is made as by :func:`levit_search.engine.make_engine`; ``evaluator`` says where
    workers find what they do their work with, a :class:`levit_search.engine.tasks.Evaluates`.

    Raises:
        InputError: there is no such cluster, or none of its nodes can serve a worker.
    """

    def __init__(
        self,
        study: Study,
        sample: Architecture,
        settled: Settled,
        evaluator: str = tasks.EVALUATOR,
    ) -> None:
        engine = study.config.engine
        super().__init__(settled, engine.jobs)
        self._connection, placement = ray_cluster.connect(engine)
        folder = study.folder.absolute()
        trainable = tune.with_parameters(
            Worker,
            make=functools.partial(_evaluator, study.config, folder, evaluator),
            sample=sample,
            working_folder=Path.cwd(),
        )
        self._loop = threading.Thread(
            target=self._run, args=[trainable, placement], daemon=True, name="ray-tune"
        )
        self._loop.start()
        self._is_gone = ray_cluster.watch_head(self.fail, lambda: self.is_closed)

    def close(self) -> None:
        super().close()
        if self._is_gone.is_set():  # whatever is asked of Ray now waits for it
            threading.Thread(target=self._connection.close, daemon=True).start()
            return
        self._loop.join(_END_S)
        self._connection.close()

    def _run(self, trainable: type[tune.Trainable], placement: ray_cluster.Placement) -> None:
        """Tune's loop, again where it gives up, as where a node is short of memory."""
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # deaths are told by events
        with (
            tempfile.TemporaryDirectory(prefix="levit-search-tune-") as folder,
            ray_cluster.variables(_TUNE_VARIABLES),
        ):
            while not self.is_closed and self.workers_wanted:
                try:
                    # Not by a Tuner, which would write down the searcher, to be gone on with.
                    tune.run(
                        trainable,
                        storage_path=folder,
                        search_alg=self,
                        scheduler=DriverScheduler(self),
                        resources_per_trial=placement,
                        num_samples=-1,
                        max_concurrent_trials=self._workers,
                        reuse_actors=True,
                        raise_on_failed_trial=False,
                        trial_dirname_creator=lambda trial: trial.trial_id,
                        verbose=0,
                    )
                except Exception as error:
                    self.bury_all(f"Ray Tune ended: {first_line(error)}")


class Worker(tune.Trainable):
    """Prepares, and then carries out the task of each trial of Tune's, if it has one.

    Tune calls :meth:`step` again and again. The work is done by a thread, so that a step can end
    with whatever there is to tell, and after a while in any case.
    """

    def setup(  # type: ignore[override]  # as by tune.with_parameters
        self,
        config: Mapping[str, Any],
        make: Callable[[Settled], Evaluates],
        sample: Architecture,
        working_folder: Path,
    ) -> None:
        """Begin to prepare; ``make`` is given what was settled before."""
        self._working_folder = working_folder
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._last, self._last_at = "", 0.0  # kind of the event that was told last, and when
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._begin(config["task"])
        queues = self._tasks.get, self._answers.get
        work = (lambda: make(config["settled"]), sample, self._tell, *queues)
        self._thread = threading.Thread(target=tasks.work, args=work, daemon=True)
        self._thread.start()

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        self._begin(new_config["task"])
        if new_config["task"] is None:
            self._tell(Event("done", None))  # it has prepared for another trial
        return True

    def answer(self, goes_on: bool) -> None:
        """Pass on what the driver decided at a rung; called between two steps."""
        self._last = ""
        self._answers.put(goes_on)

    def step(self) -> dict[str, Any]:
        """Work for a while, or until there is more to tell than progress.

        One that could not prepare has nothing to tell any more; its failure ends the search.
        """
        with self._changed:
            if self._last in ("rung", "done", "failed"):  # what it waits for comes between steps
                pause_s = max(_LEAST_PAUSE_S, time.monotonic() - self._last_at)
                self._changed.wait(min(pause_s, _MOST_PAUSE_S))
            else:
                self._changed.wait_for(
                    lambda: self._events and self._events[-1].kind != "progress", _BEAT_S
                )
            events, self._events = self._events, []
        if events:
            self._last, self._last_at = events[-1].kind, time.monotonic()
        return {"events": events, "actor": ray.get_runtime_context().current_actor}

    def cleanup(self) -> None:
        """End in good order if free; whatever else there is ends with this process."""
        if self._last in ("done", "failed"):
            self._tasks.put(None)
            self._thread.join(_WORKER_END_S)

    def _begin(self, task: Mapping[str, Any] | None) -> None:
        with contextlib.suppress(OSError):
            os.chdir(self._working_folder)  # Tune has gone to a folder of its own
        self._last = ""
        if task is not None:
            self._tasks.put(Task(**task))

    def _tell(self, event: Event) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()


def _evaluator(config: StudyConfig, folder: Path, evaluator: str, settled: Settled) -> Evaluates:
    """Make what does the work on a node, which has to see the study's folder."""
    if not (folder / "study.yaml").is_file():
        raise InputError(
            f"the node {ray.util.get_node_ip_address()} does not see the study's folder {folder}; "
            "a search on several machines needs it on a file system that they share"
        )
    return tasks.evaluator_maker(evaluator, config, folder)(settled, None)
