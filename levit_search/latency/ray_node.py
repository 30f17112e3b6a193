"""Workers on nodes of a Ray cluster that offer a custom resource, and joining such a cluster."""

import contextlib
import logging
import os
import re
import socket
import sys
import threading
from typing import Any

from levit_search.errors import TrialError, first_line
from levit_search.latency import process_pipe
from levit_search.latency.process_pipe import ProcessPipe, last_line
from levit_search.latency.targets import RayTarget

_CONNECT_S = 10.0
_CONNECTING = threading.Lock()  # ray.init is not for two threads at once
# A node that offers the resource may be busy with another probe for so long.
_SCHEDULE_S = 120.0
_NOT_CUSTOM = ("CPU", "GPU", "memory", "object_store_memory")


class NodePipe(ProcessPipe):
    """The worker's process, on its node, whose Python may have nothing of this package.

    Args:
        arguments: of the node's own Python.
        env: variables beside the node's.
    """

    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        if not os.environ.get("CUDA_VISIBLE_DEVICES"):
            # Older Rays hide a GPU from whoever claims none.
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        super().__init__([sys.executable, *arguments], env, _told_of_signal)


def _told_of_signal(code: int, errors: list[str]) -> str | None:
    last = last_line(errors) or "no message"
    return f"the worker ended with signal {-code} ({last})" if code < 0 else None


class RayPipe:
    """A :class:`NodePipe` that Ray starts where ``target.resource`` is, used from here like one.

    Raises:
        TrialError: there is no cluster, no node offers the resource, or all that do are busy.
    """

    def __init__(self, target: RayTarget, arguments: list[str], env: dict[str, str]) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._ray, self._died = _ray(), ""
        ray = self._ray
        where = f"probe on {target.label}"
        try:
            join(None if target.cluster == "auto" else target.cluster)
        except ConnectionError as error:
            raise TrialError(f"{where}: {error}") from None
        offered = sorted(name for name in ray.cluster_resources() if name not in _NOT_CUSTOM)
        if target.resource not in offered:
            # Beside what the nodes were given, Ray lists them and the parts of placement groups.
            own = [name for name in offered if not re.match(r"node:|.*_group_", name)]
            raise TrialError(
                f"{where}: no node of the cluster at {ray.get_runtime_context().gcs_address} "
                f"offers the custom resource {target.resource!r} "
                f"(offered: {', '.join(own) or 'none'})"
            )
        for module in (process_pipe, sys.modules[__name__]):
            ray.cloudpickle.register_pickle_by_value(module)
        # Outside of the placement group of whatever trial we may be running in.
        outside: Any = PlacementGroupSchedulingStrategy
        remote = ray.remote(
            num_cpus=0,
            resources={target.resource: 1},
            max_concurrency=4,  # closed while a line is waited for
            scheduling_strategy=outside(placement_group=None),
        )
        self._node = remote(NodePipe).remote(arguments, env)
        try:
            ray.get(self._node.__ray_ready__.remote(), timeout=_SCHEDULE_S)
        except ray.exceptions.GetTimeoutError:
            ray.kill(self._node)
            raise TrialError(
                f"{where}: every node with {target.resource!r} was busy for {_SCHEDULE_S:.0f} s"
            ) from None
        except ray.exceptions.RayError as error:
            raise TrialError(f"{where}: {first_line(error)}") from None

    def write(self, data: bytes) -> None:
        # Calls of one actor start in order, but several run at once: wait for each.
        with contextlib.suppress(self._ray.exceptions.RayError):  # the output tells of the end
            self._ray.get(self._node.write.remote(data), timeout=_SCHEDULE_S)

    def read_line(self, patience_s: float) -> bytes | None:
        asked = self._node.read_line.remote(patience_s)
        try:
            line: bytes | None = self._ray.get(asked, timeout=patience_s)
        except self._ray.exceptions.GetTimeoutError:
            return None
        except self._ray.exceptions.RayError as error:
            self._died = first_line(error)
            return b""
        return line

    def is_running(self) -> bool:
        return not self._died and self._ray.is_initialized()

    def last_words(self) -> str:
        if self._died:
            return f"its node or the process there is gone ({self._died})"
        try:
            words: str = self._ray.get(self._node.last_words.remote(), timeout=10)
        except (self._ray.exceptions.RayError, TimeoutError) as error:
            return f"the worker ended ({first_line(error)})"
        return words

    def close(self) -> None:
        self._died = self._died or "closed"
        if not self._ray.is_initialized():
            return  # left before us, which ends the worker; asking would start a cluster
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(self._node.close.remote(), timeout=10)
        self._ray.kill(self._node)


def _ray() -> Any:
    """Ray, which is typed in part; it takes a second to import."""
    import ray

    return ray


def join(address: str | None) -> None:
    """Become a driver of a cluster; a process that is one already stays where it is.

    Args:
        address: ``host:port`` of the cluster's head or ``ray://host:port``; None is that of
            RAY_ADDRESS, or whatever runs on this machine.

    Raises:
        ConnectionError: there is none; the message says where it was looked for.
    """
    ray = _ray()
    with _CONNECTING:
        if ray.is_initialized():
            return
        address = address or os.environ.get("RAY_ADDRESS", "auto")
        try:
            knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ConnectionError(
                f"no Ray cluster at {address!r} ({first_line(error)}); start one by `ray start`, "
                "or name it in RAY_ADDRESS"
            ) from None
        hush()


def hush() -> None:
    """Keep Ray from telling of nodes that fail on stdout, which is for results.

    No setting of Ray's does; a test kills a node and looks at stdout.
    """
    ray = _ray()
    ray._private.worker._worker_logs_enabled = False


def knock(address: str) -> None:
    """See whether anything listens at a cluster's address: Ray itself would try for minutes.

    Raises:
        OSError: nothing does.
    """
    found = re.fullmatch(r"(?:ray://)?\[?(?P<host>[^/]+?)\]?:(?P<port>\d+)", address)
    if found is not None:
        socket.create_connection((found["host"], int(found["port"])), timeout=_CONNECT_S).close()
