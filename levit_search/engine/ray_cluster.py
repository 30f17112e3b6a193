"""The Ray cluster of a search: joined or started, what its nodes offer, and who works where."""

import contextlib
import math
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray as typed_in_part
from ray.tune import PlacementGroupFactory
from ray.util.placement_group import placement_group, placement_group_table

from levit_search.engine import ray_guard
from levit_search.errors import BudgetError, InputError, first_line
from levit_search.escaping import encodable
from levit_search.latency.ray_node import hush, join, knock
from levit_search.study import EngineConfig

ray: Any = typed_in_part

_KNOCK_S, _GONE_S = 2.0, 30.0
_GOES_ON = "what was finished is kept, and the same command goes on once there is one"
_STORE_BYTES = 100 * 1024**2  # tasks and results are small
_FREED_S = 2.0
_SLACK = 1e-6  # resources are decimal fractions


def connect(engine: EngineConfig) -> "tuple[contextlib.ExitStack, Placement]":
    """Be a driver of the cluster that is meant.

    Without an address anywhere, a Ray of our own starts on this machine. It ends with this process,
    even if that is killed. A process that is a driver already stays one.

    Returns:
        What undoes that, and the place of each worker.

    Raises:
        InputError: there is no such cluster, Ray does not take this process's arguments, a worker
            claims nothing, or more than any node has.
        BudgetError: a Ray of our own did not start.
    """
    for name in ("CPU", "GPU"):
        if name in engine.resources:
            raise InputError(f"engine.resources: {name} is claimed by engine.{name.lower()}s")
    wanted = {"CPU": engine.cpus, "GPU": engine.gpus, **engine.resources}
    claimed = {name: amount for name, amount in wanted.items() if amount > 0}
    if not claimed:
        raise InputError("engine: a worker must claim something of cpus, gpus or resources")
    with _driver(engine) as undo:
        offered = [node["Resources"] for node in _alive()]
        if not any(_times(claimed, each) for each in offered):
            raise InputError(
                f"engine: a worker claims {_shown(claimed, claimed)}, and no node of the Ray "
                f"cluster at {ray.get_runtime_context().gcs_address} has that (they have: "
                f"{'; '.join(sorted({_shown(each, claimed) for each in offered}))})"
            )
        return undo.pop_all(), Placement(claimed, engine.placement)


def _driver(engine: EngineConfig) -> contextlib.ExitStack:
    """Be a driver of the cluster; what is returned undoes that."""
    wrong = next((each for each in sys.argv if each != encodable(each)), None)
    if wrong is not None:
        raise InputError(
            f"engine ray: Ray takes no argument but in UTF-8, as {wrong} is not; rename it, or "
            "name it by a link"
        )
    address = engine.address or os.environ.get("RAY_ADDRESS")
    if address is not None and address.startswith("ray://"):
        raise InputError(
            f"engine.address: {address!r} is for Ray's client, which cannot drive a search; run it "
            "on a node of the cluster and give host:port of the head (6379 unless told otherwise)"
        )
    undo = contextlib.ExitStack()
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if engine.address not in (None, "auto", here):
            raise InputError(
                f"engine.address: {engine.address!r} is another Ray cluster than {here!r}, which "
                "this process is connected to"
            )
        return undo
    if address is None:
        undo.enter_context(_own_ray(math.ceil(engine.jobs * engine.cpus)))
        return undo
    try:
        join(address)
    except ConnectionError as error:
        raise InputError(f"engine.address: {error}") from None
    undo.callback(ray.shutdown)
    return undo


@contextlib.contextmanager
def _own_ray(cpus: int) -> Iterator[None]:
    """A Ray on this machine; after half a minute, as where that is too busy, it is given up.

    Raises:
        BudgetError: it did not start.
    """
    mark = uuid.uuid4().hex
    guard = subprocess.Popen(
        [sys.executable, ray_guard.__file__, mark], stdin=subprocess.PIPE, start_new_session=True
    )
    settings = {
        ray_guard.MARK: mark,
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_AUTH_MODE": None,  # Ray sets it, and with it no other cluster could be joined later
    }
    try:
        with variables(settings):
            try:
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    object_store_memory=_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                )
            except Exception as error:  # Ray raises nothing more particular
                raise BudgetError(
                    f"Ray did not start on this machine ({first_line(error)}); the same command "
                    "goes on"
                ) from None
            hush()
            yield
            ray.shutdown()
    finally:
        guard.communicate()  # the end of its input; it ends what is left


def _alive() -> list[Mapping[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _times(claimed: Mapping[str, float], offered: Mapping[str, float]) -> int:
    """How many workers a node could serve."""
    return int(min(offered.get(name, 0) / amount + _SLACK for name, amount in claimed.items()))


def _shown(resources: Mapping[str, float], claimed: Mapping[str, float]) -> str:
    """Those that a user has named or might name."""
    own = {
        name: amount
        for name, amount in sorted(resources.items())
        if name in claimed
        or not (name.startswith("node:") or name in ("memory", "object_store_memory"))
    }
    return ", ".join(f"{name} {amount:g}" for name, amount in own.items()) or "nothing"


@contextlib.contextmanager
def variables(wanted: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables for the time being; with None one keeps its value, if it has any."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if value is not None})
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def watch_head(tell: Callable[[str], None], is_over: Callable[[], bool]) -> threading.Event:
    """Begin to watch the cluster's head; what is returned is set, and told of, once it is gone.

    One that is restarted comes back; after 60 s without one Ray ends this process without a word.
    """
    address = ray.get_runtime_context().gcs_address
    is_gone = threading.Event()

    def watch() -> None:
        heard = time.monotonic()
        while not is_over():
            time.sleep(_KNOCK_S)
            try:
                knock(address)
                heard = time.monotonic()
            except OSError as error:
                if time.monotonic() - heard > _GONE_S:
                    is_gone.set()
                    why = error.strerror or str(error)
                    tell(f"the Ray cluster at {address} is gone ({why}); {_GOES_ON}")
                    return

    threading.Thread(target=watch, daemon=True).start()
    return is_gone


def death(said: str, node: str | None) -> str:
    """What is told of a worker that died, out of what Ray says of that at length.

    Args:
        said: by Ray.
        node: the address of its node, as far as that is known otherwise.
    """
    why = re.search(r"dead because (its .*? has died)|is unavailable", said)
    reason = said.strip().splitlines()[-1][:300] if why is None else why[1]
    where = re.search(r"^\s*ip: (\S+)$", said, re.MULTILINE)
    place = where[1] if where is not None else node or "a node"
    return f"the worker on {place} died: {reason or 'it cannot be reached'}"


class Placement(PlacementGroupFactory):
    """Where a worker goes: a placement group on one node, chosen when Tune asks for it.

    Ray's strategies are about the parts of one placement group. Here each worker is a group, and
    goes where ``placement`` has it in view of the others: PACK to the node with most of them,
    SPREAD to the one with fewest, STRICT_SPREAD never to one that has any. The first two are wishes
    only: a node that is busy with the work of others is not waited for. Ray has no public argument
    for that; a label selector would wait.
    """

    def __init__(self, claimed: Mapping[str, float], placement: str) -> None:
        super().__init__([dict(claimed)], "STRICT_PACK")
        self._placement = placement
        self._search = f"levit-search-{uuid.uuid4().hex[:8]}"

    def to_placement_group(self) -> Any:
        workers, target = self._target()
        options: dict[str, object] = {} if target is None else {"_soft_target_node_id": target}
        if self._placement == "STRICT_SPREAD" and workers:
            options["bundle_label_selector"] = [{"ray.io/node-id": f"!in({','.join(workers)})"}]
        # The name tells where it should go, since Tune copies this object for each trial.
        name = f"{self._search}/{target or ''}/{uuid.uuid4().hex[:8]}"
        return placement_group(self.bundles, self.strategy, name, **options)

    def _target(self) -> tuple[Counter[str], str | None]:
        """How many workers each node has, and the node where another should go, if any."""
        deadline = time.monotonic() + _FREED_S
        while True:
            workers = self._workers()
            room = {node["NodeID"]: _times(self.bundles[0], node["Resources"]) for node in _alive()}
            with_room = [node for node in sorted(room) if room[node] > workers[node]]
            match self._placement:
                case "PACK":
                    return workers, max(with_room, key=lambda node: workers[node], default=None)
                case "SPREAD":
                    return workers, min(with_room, key=lambda node: workers[node], default=None)
            free = [node for node in with_room if not workers[node]]
            if free or time.monotonic() > deadline:
                return workers, free[0] if free else None
            time.sleep(0.1)  # the place of a worker that has died shows as taken for a moment

    def _workers(self) -> Counter[str]:
        """How many workers of this search each node has, or is to have."""
        workers: Counter[str] = Counter()
        for group in placement_group_table().values():
            search, _, rest = group["name"].partition("/")
            if search == self._search and group["state"] != "REMOVED":
                nodes = [node for node in group["bundles_to_node_id"].values() if node]
                node = nodes[0] if nodes else rest.partition("/")[0]
                workers.update([node] if node else [])
        return workers
