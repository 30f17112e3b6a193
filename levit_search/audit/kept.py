"""``audit.json``: what was measured of each network, kept so that no training is done twice."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from levit_search.errors import InputError
from levit_search.files import read_checksummed, write_atomically, write_checksummed

VERSION = 1


@dataclass
class Accuracies:
    """One network's top-1 on val and test, ``{val_top1_percent, test_top1_percent, ...}`` each."""

    stored: dict[str, Any] | None = None
    """Of the weights that the search left."""
    seeds: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Of trainings with other seeds."""

    def val_percents(self) -> list[float]:
        """On val, by seed."""
        return [self.seeds[seed]["val_top1_percent"] for seed in sorted(self.seeds)]

    def test_percents(self) -> list[float]:
        """On test, by seed."""
        return [self.seeds[seed]["test_top1_percent"] for seed in sorted(self.seeds)]

    def as_json(self) -> dict[str, Any]:
        seeds = {str(seed): self.seeds[seed] for seed in sorted(self.seeds)}
        return {"stored": self.stored, "seeds": seeds}


class Kept:
    """The audit files of a study folder.

    Args:
        folder: of the study.

    Raises:
        InputError: there is an ``audit.json`` that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.networks: dict[str, Accuracies] = {}
        """By id."""
        try:
            raw = read_checksummed(self._path)
            version = raw["version"]
            if version == VERSION:
                self.networks = {
                    name: Accuracies(
                        found["stored"], {int(seed): f for seed, f in found["seeds"].items()}
                    )
                    for name, found in raw["networks"].items()
                }
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self._path}: cannot be read ({error}); remove it to audit anew"
            ) from None
        if version != VERSION:
            raise InputError(
                f"{self._path}: version {version!r} is not {VERSION}, the one this release reads; "
                "remove it to audit anew"
            )

    @property
    def _path(self) -> Path:
        return self.folder / "audit.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the files against another audit; a search may go on meanwhile.

        Raises:
            InputError: there is one, or the folder cannot be written.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / ".audit.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"{self.folder}: another levit-search audit is at work on this study"
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            yield
        finally:
            lock.release()

    def save(self, figures: Mapping[str, Any]) -> None:
        """Write ``audit.json``: ``figures`` and what was measured of each network.

        Raises:
            InputError: it cannot be written.
        """
        networks = {name: found.as_json() for name, found in self.networks.items()}
        try:
            write_checksummed(self._path, {"version": VERSION, **figures, "networks": networks})
        except OSError as error:
            raise self._unwritable(error) from None

    def write(self, name: str, content: str | bytes) -> None:
        """Write another file of the audit.

        Raises:
            InputError: it cannot be written.
        """
        try:
            write_atomically(self.folder / name, content)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.folder}: cannot be written ({error.strerror or error})")
