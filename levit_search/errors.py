"""What a user can cause: one root exception and the few leaves that build their own message."""

import difflib
import errno
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class LevitSearchError(Exception):
    """Anything a user can cause or mend; the CLI prints it without a traceback.

    ``exit_code`` is what the command ends with: 1 where something failed while running.
    """

    exit_code = 1


class InputError(LevitSearchError):
    """Wrong input: a file, a key, a value, a name or a device. Nothing has been started."""

    exit_code = 2


class UnknownNameError(InputError):
    """A name that is none of the known ones; the message gives the nearest spelling."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; {did_you_mean(name, known)}")


class BudgetError(LevitSearchError):
    """The search cannot go on: nothing that it proposes may be evaluated."""


GOES_ON = "what was finished is kept; once that is mended the same command goes on"
"""How a search that a disk, a server or the like has ended is gone on with."""


class TrialError(LevitSearchError):
    """One candidate failed; the reason is recorded on its trial and the search goes on."""


_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES}


def refused_by_disk(error: BaseException) -> str | None:
    """What a disk refused, as ``PATH: No space left on device``, if that is behind an error.

    Such a fault is none of a single candidate: it meets whatever comes next as well.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _REFUSALS:
            where = f"{seen.filename}: " if seen.filename is not None else ""
            return f"{where}{seen.strerror}"
        seen = seen.__cause__ or seen.__context__
    return None


def cut(text: str, length: int) -> str:
    """A text of at most ``length`` characters, its end left out if need be."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def first_line(error: BaseException) -> str:
    """What an error says first, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def in_one_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters; its kind where that is nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what keeps the block from writing to ``path`` into an error of the user's.

    Raises:
        InputError: the block met an OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


@contextmanager
def kept_by_checkpoint(folder: Path) -> Iterator[None]:
    """What cannot be written to a folder, of which a checkpoint there has all that it takes.

    Raises:
        TrialError: the block met an OSError; it says how to go on.
    """
    try:
        yield
    except OSError as error:
        raise TrialError(
            f"{folder}: cannot be written ({error.strerror or error}); the same command goes on "
            "from the checkpoint there"
        ) from error


_FEW = 40  # names that a message may list in full


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known spelling, then all of them: ``did you mean 'a'? Known: a, b``.

    Out of very many only the nearest few are shown, those first that begin alike.
    """
    names, folded = list(known), name.casefold()
    by_folded = {candidate.casefold(): candidate for candidate in names}

    def rank(candidate: str) -> tuple[float, int]:
        alike = difflib.SequenceMatcher(None, candidate, folded).ratio()
        pairs = zip(candidate, folded, strict=False)
        return -alike, -len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    close = difflib.get_close_matches(folded, by_folded, n=24, cutoff=0.5)
    near = [by_folded[spelling] for spelling in sorted(close, key=rank)[:6]]
    hint = f"did you mean {near[0]!r}? " if near else ""
    if len(names) <= _FEW:
        return f"{hint}Known: {', '.join(names)}"
    if not near:
        return f"none of the {len(names)} known is spelt alike"
    return f"{hint}Known: {', '.join(near)} and {len(names) - len(near)} others"
