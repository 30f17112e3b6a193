"""Connecting this process to a Ray cluster that is there already."""

import logging
import os
import re
import socket
import threading
from typing import Any

_CONNECT_S = 10.0
_CONNECTING = threading.Lock()  # ray.init is not for two threads at once


def join(address: str | None) -> None:
    """Become a driver of a cluster; a process that is one already stays where it is.

    Args:
        address: ``host:port`` of the cluster's head or ``ray://host:port``; None is that of
            RAY_ADDRESS, or whatever runs on this machine.

    Raises:
        ConnectionError: there is none; the message says where it was looked for.
    """
    import ray as typed_in_part

    ray: Any = typed_in_part
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
    """Keep Ray from telling of nodes that fail on stdout, which is for results."""
    import ray as typed_in_part

    ray: Any = typed_in_part
    ray._private.worker._worker_logs_enabled = False


def knock(address: str) -> None:
    """See whether anything listens at a cluster's address: Ray itself would try for minutes.

    Raises:
        OSError: nothing does.
    """
    found = re.fullmatch(r"(?:ray://)?\[?(?P<host>[^/]+?)\]?:(?P<port>\d+)", address)
    if found is not None:
        socket.create_connection((found["host"], int(found["port"])), timeout=_CONNECT_S).close()


def first_line(error: BaseException) -> str:
    """What Ray says in its first line; what follows are hints about its logs."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
