"""Workers on the nodes of a Ray cluster, through Ray Tune.

The driver of the search runs on one of the nodes; Tune's loop is a thread of its process. All nodes
need this package, in the same version, and see the study's folder under the same path, on a file
system that they share. A trial whose worker or node dies goes on from its checkpoint there, once.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import ray

from levit_search.architecture import Architecture
from levit_search.baseline import BaselineConfig
from levit_search.latency.ray_connection import first_line, knock
from levit_search.search import ray_nodes, ray_tune
from levit_search.search.engine import Event
from levit_search.search.ray_desk import Desk, Do, Task
from levit_search.search.ray_nodes import Seat
from levit_search.search.ray_worker import Order
from levit_search.search.worker import EVALUATOR
from levit_search.study import Study

_END_S = 20.0
_KNOCK_S = 2.0
# A head that is restarted comes back; after 60 s without one Ray ends this process without a word.
_GONE_S = 30.0
_GOES_ON = "what was finished is kept, and the same command goes on once there is one"


class RayEngine:
    """Up to ``engine.jobs`` workers on a cluster, as many as its nodes have room for.

    The first worker prepares alone; the others begin with what it found. Nodes may come and go.

    Args:
        study: evaluated networks' weights go into its folder.
        sample: any network of its space.
        settled_ms: the reference's latency by id, where an earlier session settled it.
        evaluator: ``module:attribute`` of what workers do their work with; see
            :class:`levit_search.search.worker.Evaluates`.

    Raises:
        InputError: there is no such cluster, or none of its nodes can serve a worker.
    """

    def __init__(
        self,
        study: Study,
        sample: Architecture,
        settled_ms: dict[str, float],
        evaluator: str = EVALUATOR,
    ) -> None:
        self._engine = study.config.engine
        self._claim = ray_nodes.claim(self._engine)
        self._connection = ray_nodes.connect(self._engine)
        try:
            ray_nodes.check_claim(self._claim)
        except BaseException:
            self._connection.close()
            raise
        self._desk = Desk(settled_ms, self._engine.jobs)
        order = Order(
            config=study.config.model_dump(mode="json"),
            folder=str(study.folder.absolute()),
            working_folder=str(Path.cwd()),
            sample=sample.model_dump(mode="json"),
            evaluator=evaluator,
        )
        self._is_gone = False
        self._loop = threading.Thread(target=self._run, args=[order], daemon=True, name="ray-tune")
        self._loop.start()
        address = ray.get_runtime_context().gcs_address
        threading.Thread(target=self._watch, args=[address], daemon=True).start()

    def has_room(self) -> bool:
        return self._desk.has_room()

    def submit(
        self, trial: int, network: Architecture | BaselineConfig, taught: bool = True
    ) -> None:
        do: Do = "evaluate" if taught else "evaluate_untaught"
        self._desk.give(Task(do, trial, [network.model_dump(mode="json")]))

    def verify(self, trial: int, network: Architecture) -> None:
        self._desk.give(Task("verify", trial, [network.model_dump(mode="json")]))

    def remeasure(self, trial: int, networks: Sequence[Architecture | BaselineConfig]) -> None:
        described = [each.model_dump(mode="json") for each in networks]
        self._desk.give(Task("remeasure", trial, described))

    def answer(self, trial: int, goes_on: bool) -> None:
        self._desk.answer(trial, goes_on)

    def events(self, patience_s: float) -> list[Event]:
        return self._desk.events(patience_s)

    def close(self) -> None:
        self._desk.close()
        if self._is_gone:  # whatever is asked of Ray now waits for it
            threading.Thread(target=self._connection.close, daemon=True).start()
            return
        self._loop.join(_END_S)
        self._connection.close()

    def _watch(self, address: str) -> None:
        """End the search where the head does not come back."""
        heard = time.monotonic()
        while not self._desk.is_closed:
            time.sleep(_KNOCK_S)
            try:
                knock(address)
            except OSError as error:
                if time.monotonic() - heard > _GONE_S:
                    self._is_gone = True
                    why = error.strerror or str(error)
                    self._desk.fail(f"the Ray cluster at {address} is gone ({why}); {_GOES_ON}")
                    return
            else:
                heard = time.monotonic()

    def _run(self, order: Order) -> None:
        """Tune's loop gives up on some of Ray's errors, such as a node short of memory."""
        while not self._desk.is_closed and (self._desk.workers_wanted or self._desk.is_prepared):
            seat = Seat(self._claim, self._engine.placement)
            try:
                ray_tune.run(self._desk, order, seat, self._engine.jobs)
            except Exception as error:
                self._desk.bury_all(f"Ray Tune ended: {first_line(error)}")
