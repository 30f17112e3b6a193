"""A worker on a node of a Ray cluster that offers a custom resource."""

import contextlib
import re
from typing import Any

from levit_search.errors import TrialError
from levit_search.latency import ray_relay
from levit_search.latency.ray_connection import first_line, join
from levit_search.latency.targets import RayTarget

# A node that offers the resource may be busy with another probe for so long.
_SCHEDULE_S = 120.0
_LINE_S = 5.0
_NOT_CUSTOM = ("CPU", "GPU", "memory", "object_store_memory")


class RayPipe:
    """The streams of a worker that Ray starts where ``target.resource`` is.

    Raises:
        TrialError: there is no cluster, no node offers the resource, or all that do are busy.
    """

    def __init__(self, target: RayTarget, arguments: list[str], env: dict[str, str]) -> None:
        import ray as typed_in_part
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        ray: Any = typed_in_part
        self._ray = ray
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
        ray.cloudpickle.register_pickle_by_value(ray_relay)
        # Outside of the placement group of whatever trial we may be running in.
        outside: Any = PlacementGroupSchedulingStrategy
        remote = ray.remote(
            num_cpus=0,
            resources={target.resource: 1},
            max_concurrency=4,
            scheduling_strategy=outside(placement_group=None),
        )
        self._relay = remote(ray_relay.Relay).remote(arguments, env)
        try:
            ray.get(self._relay.__ray_ready__.remote(), timeout=_SCHEDULE_S)
        except ray.exceptions.GetTimeoutError:
            ray.kill(self._relay)
            raise TrialError(
                f"{where}: every node with {target.resource!r} was busy for {_SCHEDULE_S:.0f} s"
            ) from None
        except ray.exceptions.RayError as error:
            raise TrialError(f"{where}: {first_line(error)}") from None

    def write(self, data: bytes) -> None:
        # Calls of one actor start in order, but several run at once: wait for each.
        with contextlib.suppress(self._ray.exceptions.RayError):  # the output tells of the end
            self._ray.get(self._relay.write.remote(data), timeout=_SCHEDULE_S)

    def read_line(self, patience_s: float) -> bytes | None:
        while patience_s > 0:
            part_s = min(_LINE_S, patience_s)
            try:
                line: bytes | None = self._ray.get(
                    self._relay.read_line.remote(part_s), timeout=part_s + 60
                )
            except self._ray.exceptions.GetTimeoutError:
                return None
            except self._ray.exceptions.RayError as error:
                self._died = first_line(error)
                return b""
            if line is not None:
                return line
            patience_s -= part_s
        return None

    _died = ""

    def is_running(self) -> bool:
        return not self._died and self._ray.is_initialized()

    def last_words(self) -> str:
        if self._died:
            return f"its node or the process there is gone ({self._died})"
        try:
            words: str = self._ray.get(self._relay.last_words.remote(), timeout=10)
        except (self._ray.exceptions.RayError, TimeoutError) as error:
            return f"the worker ended ({first_line(error)})"
        return words

    def close(self) -> None:
        if not self._ray.is_initialized():
            return  # left before us, which ends the worker; asking would start a cluster
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(self._relay.close.remote(), timeout=10)
        self._ray.kill(self._relay)
