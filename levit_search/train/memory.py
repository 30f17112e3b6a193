"""Memory that is too small for a network: one that fails, and never the search."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from levit_search.errors import TrialError

# What torch and Python say with a RuntimeError where there is no memory for it.
_SAID = ("DefaultCPUAllocator", "std::bad_alloc", "can't start new thread")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the host's memory was too small; torch has no type for the host's."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _SAID)
    )


@contextmanager
def out_of_memory_as_trial_error(note: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Raise want of memory within the block as a :class:`TrialError` that says so.

    Args:
        note: further words on it, asked for when it happens.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["the host's"])[0][:200]
        raise TrialError(f"out of memory{note()} ({reason})") from error
