"""A second record of a study's trials beside its storage, from which a lost one is made again.

``backup.jsonl`` is only ever appended to, by the driver. Each line begins with a checksum of the
rest and is one of

- the study: its name in the storage, configuration and distributions, as of the latest session;
- an attribute of the study, or a note with a running trial: written before the storage is, so that
  only that of the very last line may be missing there, and is written again;
- a trial as it began, or as it ended: written once the storage has it, so that only the latest may
  be missing here.

What differs between the two in any other way was damaged.
"""

import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_search.errors import InputError
from levit_search.files import write_atomically

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from levit_search.study.config import StudyConfig

NAME = "backup.jsonl"

_LINE = re.compile(rb'\{"crc32":"([0-9a-f]{8})",(.*\})\n', re.DOTALL)
_MERGED = ("params", "user_attrs", "system_attrs")
"""Parts of a trial to which other tools may add."""

_TRIAL: dict[str, type] = {"trial": int, "state": str, **dict.fromkeys(_MERGED, dict)}
_SHAPES: tuple[dict[str, type], ...] = (
    {"study": str, "config": dict, "distributions": dict},
    {"attribute": str, "value": object},
    {"trial": int, "note": str, "value": object},
    {**_TRIAL, **dict.fromkeys(("values", "started", "ended"), object)},
)
"""Of all lines: their keys, and what stands there."""

Line = Mapping[str, Any]
"""What a line says, without the checksum."""


@dataclass
class BackupContents:
    """What a backup holds, and how a storage differs from it."""

    size: int = 0
    """Of its whole lines, in bytes."""
    is_torn: bool = False
    """Whether a killed writer left half a line at the end."""
    broken: list[int] = field(default_factory=list)
    """Lines that are not what was written, from 1."""
    study: Line | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    finished: dict[int, Line] = field(default_factory=dict)
    """Each finished trial by its number."""
    running: dict[int, Line] = field(default_factory=dict)
    """Each running trial, with its notes."""
    pending: Line | None = None
    """The last line, where it is an attribute or a note, which the storage need not have yet."""

    @property
    def has_trials(self) -> bool:
        """Whether any trial is in it."""
        return bool(self.finished or self.running)

    def add(self, line: Line) -> None:
        """Take in the next line."""
        self.pending = None
        if "study" in line:
            self.study = line
        elif "attribute" in line:
            self.attributes[line["attribute"]] = line["value"]
            self.pending = line
        elif "note" in line:
            if line["trial"] in self.running:
                self.running[line["trial"]]["user_attrs"][line["note"]] = line["value"]
                self.pending = line
        elif line["state"] == "RUNNING":
            self.running[line["trial"]] = line
        else:
            self.running.pop(line["trial"], None)
            self.finished[line["trial"]] = line

    def missing(self, trials: Iterable["FrozenTrial"], attributes: Mapping[str, Any]) -> list[Line]:
        """Lines of a storage's trials that a kill or a cut kept from being here.

        Attributes of the study and notes of running trials are among them only where the file may
        have been cut: ours are here before they are there, so that those alone are another tool's.
        """
        trials = list(trials)
        lines = [
            trial_line(trial)
            for trial in trials
            if (trial.state.is_finished() and trial.number not in self.finished)
            or (trial.state.name == "RUNNING" and trial.number not in self.running)
        ]
        notes = [
            ({"trial": trial.number, "note": key, "value": value}, began.get(key))
            for trial in trials
            if trial.state.name == "RUNNING" and trial.number in self.running
            for began in [self.running[trial.number]["user_attrs"]]
            for key, value in trial.user_attrs.items()
            if key not in began or _json(began[key]) != _json(value)
        ]
        if not (lines or self.is_torn or any(has_more(n["value"], was) for n, was in notes)):
            return []
        unknown = {key: each for key, each in attributes.items() if key not in self.attributes}
        return [*_attribute_lines(unknown), *lines, *(note for note, _ in notes)]

    def lost(
        self, trials: Sequence["FrozenTrial"], attributes: Mapping[str, Any] | None = None
    ) -> list[str]:
        """What a storage does not have, or not as it was, in words.

        What other tools added to it does not count. ``attributes`` are the study's there; None
        while a search may be at work, where only finished trials can be compared.
        """
        stored = {trial.number: trial for trial in trials}
        told = [f"trial {n} is missing" for n in sorted(self.finished.keys() - stored.keys())]
        for number in sorted(self.finished.keys() & stored.keys()):
            wanted, found = self.finished[number], trial_line(stored[number])
            if wanted != found and not _agrees(wanted, found):
                told.append(f"trial {number} is changed")
        if attributes is None:
            return told
        if (ranges := self.ranges()) is not None:
            told += [
                f"the ranges of trial {trial.number} are changed"
                for trial in trials
                if not trial.distributions.items() <= ranges.items()
            ]
        for number in self.running:
            if number not in stored:
                told.append(f"running trial {number} is missing")
            elif not self.is_as_begun(stored[number]):
                told.append(f"running trial {number} is changed")
        told += [
            f"attribute {key!r} is changed"
            for key, value in self.attributes.items()
            if key not in attributes or _json(attributes[key]) != _json(value)
        ]
        return told

    def ranges(self) -> "dict[str, BaseDistribution] | None":
        """Of all parameters, by name; None where no line about the study is whole."""
        from optuna.distributions import json_to_distribution

        if self.study is None:
            return None
        return {key: json_to_distribution(it) for key, it in self.study["distributions"].items()}

    def is_as_begun(self, trial: "FrozenTrial") -> bool:
        """Whether a storage's trial, ended or not, agrees with the running one here."""
        line, stored = self.running[trial.number], trial_line(trial)
        wanted = {part: line[part] for part in ("params", "system_attrs", "started")}
        known = stored["user_attrs"]
        notes = {
            key: known[key] if has_more(known.get(key), value) else value
            for key, value in line["user_attrs"].items()
        }
        return _agrees({**wanted, "user_attrs": notes}, stored)


class Backup:
    """The backup in a study folder, which need not be there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def read(self) -> BackupContents:
        """All of it, whatever its state.

        Raises:
            InputError: the file cannot be read.
        """
        found = BackupContents()
        if self.path.exists() and not self.path.is_file():  # a pipe or a device may have no end
            raise InputError(f"{self.path}: is no regular file")
        try:
            with self.path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    if not raw.endswith(b"\n"):  # the storage has what the line before says
                        found.is_torn, found.pending = True, None
                        break
                    line = _read(raw)
                    if line is None:
                        found.broken.append(number)
                        found.pending = None
                    else:
                        found.add(line)
                    found.size += len(raw)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from None
        return found

    def append(self, lines: Iterable[Line], at: int | None = None) -> None:
        """Add lines; they have reached the disk on return.

        Args:
            lines: what each says.
            at: where whole lines end; what comes after is cut off. None is the end of the file.

        Raises:
            OSError: they could not be written, and are not there.
        """
        raw = b"".join(map(_sealed, lines))
        mode = "r+b" if self.path.exists() else "w+b"
        # A buffer would write the rest, as the file is closed, into the room that is made here.
        with self.path.open(mode, buffering=0) as file:
            end = file.seek(0, os.SEEK_END) if at is None else at
            file.truncate(end)
            file.seek(end)
            try:
                rest = memoryview(raw)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise

    def rewrite(
        self, study: Line, attributes: Mapping[str, Any], trials: Iterable["FrozenTrial"]
    ) -> None:
        """Put the study's line, its attributes and all trials in the place of what is here."""
        lines = [study, *_attribute_lines(attributes), *BackupContents().missing(trials, {})]
        write_atomically(self.path, b"".join(map(_sealed, lines)))


def study_line(
    name: str, config: "StudyConfig", distributions: Mapping[str, "BaseDistribution"]
) -> Line:
    """A line about the study, by its name in the storage."""
    from optuna.distributions import distribution_to_json

    spelt = {key: distribution_to_json(each) for key, each in distributions.items()}
    return {"study": name, "config": config.model_dump(mode="json"), "distributions": spelt}


def _attribute_lines(attributes: Mapping[str, Any]) -> list[Line]:
    return [{"attribute": key, "value": value} for key, value in attributes.items()]


def trial_line(trial: "FrozenTrial") -> Line:
    """A line about a trial, as it is now."""
    return {
        "trial": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "started": _utc(trial.datetime_start),
        "ended": _utc(trial.datetime_complete),
    }


def trial_of(line: Line, distributions: Mapping[str, "BaseDistribution"]) -> "FrozenTrial":
    """The trial of a line, to be written to a storage."""
    from optuna.trial import TrialState, create_trial

    trial = create_trial(
        state=TrialState[line["state"]],
        values=line["values"],
        params=line["params"],
        distributions={name: distributions[name] for name in line["params"]},
        user_attrs=line["user_attrs"],
        system_attrs=line["system_attrs"],
    )
    trial.datetime_start, trial.datetime_complete = _local(line["started"]), _local(line["ended"])
    return trial


def has_more(known: object, value: object) -> bool:
    """Whether a storage knows of further rungs than a backup, which was cut off."""
    if isinstance(known, list) and isinstance(value, list):
        return known[: len(value)] == value
    return False


def put_aside(path: Path, companions: tuple[str, ...] = ()) -> Path:
    """Rename a file, and those that belong to it; returns its new path."""
    aside = unused(path, "damaged")
    for end in companions:
        companion = path.with_name(f"{path.name}{end}")
        if companion.exists():
            companion.rename(f"{aside}{end}")
    return path.rename(aside)


def unused(path: Path, word: str) -> Path:
    """The first of ``PATH.WORD-1``, ``PATH.WORD-2`` ... that is not there."""
    places = (path.with_name(f"{path.name}.{word}-{number}") for number in itertools.count(1))
    return next(place for place in places if not place.exists())


def _agrees(wanted: Line, stored: Line) -> bool:
    """Whether a trial has all that it should, whatever others added to it."""
    for key, value in wanted.items():
        found = stored[key]
        if key in _MERGED:
            found = {name: found[name] for name in value if name in found}
        if _json(found) != _json(value):
            return False
    return True


def _read(raw: bytes) -> Line | None:
    """What a line says; None where it is not as it was written, or a stranger wrote it."""
    found = _LINE.fullmatch(raw)
    if found is None or int(found[1], 16) != zlib.crc32(found[2]):
        return None
    try:
        line: Line = json.loads(b"{" + found[2])
    except (ValueError, RecursionError):
        return None
    for shape in _SHAPES:
        if line.keys() == shape.keys():
            return line if all(isinstance(line[key], shape[key]) for key in shape) else None
    return None


def _sealed(line: Line) -> bytes:
    text = _json(line)[1:]
    return b'{"crc32":"%08x",%s\n' % (zlib.crc32(text), text)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _utc(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(timezone.utc).isoformat()


def _local(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).astimezone().replace(tzinfo=None)
