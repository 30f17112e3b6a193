"""Data sets, teachers and targets that other installed distributions bring, by entry points.

A distribution names them in its ``pyproject.toml``, and whoever installs it uses the names:

    [project.entry-points."levit_search.data"]
    spirals = "my_package:Spirals"          # data: {name: spirals}

    [project.entry-points."levit_search.teachers"]
    my_net = "my_package:build_net"         # teacher: {name: my_net}

    [project.entry-points."levit_search.targets"]
    bench = "my_package:BENCH"              # latency: {target: bench}

What each entry point has to be is told by :class:`levit_search.data.DataSet`,
:class:`levit_search.distill.teacher_network.BuildTeacher` and
:class:`levit_search.latency.targets.NamedTarget`.

Names consist of letters, digits, ``_``, ``.`` and ``-``; others are no plug-ins. Our own names, and
those in a user's ``targets.yaml``, keep their meaning whatever is installed; a name that two
distributions bring is an error once it is used. Nothing of a plug-in is imported before that.
"""

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from levit_search.errors import InputError, LevitSearchError, cut

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Group = Literal["levit_search.data", "levit_search.teachers", "levit_search.targets"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LONGEST = 300  # of a cause that a message gives


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed distribution; its module is imported by :meth:`load`."""

    entry: "EntryPoint"
    distribution: str
    version: str
    rivals: tuple[str, ...] = ()
    """Other distributions that bring the name too."""

    def __str__(self) -> str:
        return f"{self.origin}: {self.entry.name}"

    @property
    def origin(self) -> str:
        """Where it comes from, as messages begin."""
        return f"plug-in {self.brought_by} ({self.entry.group})"

    @property
    def brought_by(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}"

    def identity(self) -> dict[str, str]:
        """What changes with the plug-in: its distribution and version, as JSON."""
        return {"distribution": self.distribution, "version": self.version}

    def load(self) -> object:
        """What the entry point stands for.

        Raises:
            InputError: it cannot be imported, or another distribution brings the name too.
        """
        if self.rivals:
            others = " and by ".join(self.rivals)
            raise InputError(f"{self}: is brought by {others} too; uninstall all but one")
        with self.explained("cannot be loaded"):
            try:
                return self.entry.load()
            except SystemExit as error:
                raise ImportError(f"its module exits ({error})") from error

    def load_callable(self) -> Callable[..., Any]:
        """What the entry point stands for, where that has to be called.

        Raises:
            InputError: as :meth:`load`, or it is nothing to call.
        """
        found = self.load()
        if not callable(found):
            raise self.wrong("expected something to call", found)
        return found

    @contextmanager
    def explained(self, failure: str) -> Iterator[None]:
        """Whatever the plug-in's code raises becomes an InputError with the cause in one line.

        Errors of ours go through: a plug-in that raises InputError speaks to the user itself.
        """
        try:
            yield
        except LevitSearchError:
            raise
        except Exception as error:  # the code of others raises whatever it likes
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"{self}: {failure} ({cut(cause, _LONGEST)})") from error

    def wrong(self, expected: str, found: object) -> InputError:
        """The error for what a plug-in gives instead of something else."""
        return InputError(f"{self}: {expected}, not {cut(' '.join(repr(found).split()), _LONGEST)}")


def installed(group: Group) -> dict[str, Plugin]:
    """The plug-ins of a group by name, in alphabetical order; nothing of them is imported."""
    from importlib.metadata import distributions  # a tenth of a second, which --help does not have

    seen: set[str] = set()
    found: dict[str, Plugin] = {}
    for distribution in distributions():
        # Only what names the group is read any further: metadata of others is no matter to us.
        if group not in (distribution.read_text("entry_points.txt") or ""):
            continue
        name, version = distribution.name or "?", distribution.version or "?"
        normalized = re.sub(r"[-_.]+", "-", name).lower()
        if normalized in seen:  # installed twice: the first on the path counts
            continue
        seen.add(normalized)
        try:
            entries = distribution.entry_points.select(group=group)
        except Exception as error:  # each Python raises its own kinds at lines that are no entries
            message = f"the entry points of {name} {version} cannot be read ({error})"
            warnings.warn(message, stacklevel=2)
            continue
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                plugin = Plugin(entry, name, version)
                first = found.setdefault(entry.name, plugin)
                if first is not plugin:
                    rivals = (*first.rivals, plugin.brought_by)
                    found[entry.name] = dataclasses.replace(first, rivals=rivals)
    return dict(sorted(found.items()))
