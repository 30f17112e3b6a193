"""A second record of a study's trials beside its storage, from which a lost one is made again.

``backup.jsonl`` is only ever appended to, by the driver. Each line begins with a checksum of the
rest and is one of

- the study: its name in the storage, configuration and distributions, as of the latest session;
- an attribute of the study, or a note with a running trial: written before the storage is, so that
  only that of the very last line may be missing there;
- a trial as it began, or as it ended: written once the storage has it, so that only the latest may
  be missing here.

What differs between the two in any other way was damaged.
"""

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levit_search.errors import InputError
from levit_search.files import write_atomically

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

NAME = "backup.jsonl"

_LINE = re.compile(rb'\{"crc32":"([0-9a-f]{8})",(.*\})\n', re.DOTALL)
_MERGED = ("params", "user_attrs", "system_attrs")

_TRIAL: dict[str, type] = {"trial": int, "state": str, **dict.fromkeys(_MERGED, dict)}
_SHAPES: tuple[dict[str, type], ...] = (
    {"study": str, "config": dict, "distributions": dict},
    {"attribute": str, "value": object},
    {"trial": int, "note": str, "value": object},
    {**_TRIAL, **dict.fromkeys(("values", "started", "ended"), object)},
)
"""Of all lines: their keys, and what stands there."""


@dataclass(frozen=True)
class Pending:
    """The last line, where it says something that the storage may not have yet."""

    key: str
    value: Any
    before: Any
    """What was there until then; None if nothing was."""
    trial: int | None = None
    """Whose note it is; None: it is an attribute of the study."""


@dataclass
class Kept:
    """What a backup holds. Finished trials are left in the file; see :meth:`Backup.ended`."""

    size: int = 0
    """Of its whole lines, in bytes."""
    is_torn: bool = False
    """Whether a killed writer left half a line at the end."""
    broken: list[int] = field(default_factory=list)
    """Lines that are not what was written, from 1."""
    study: dict[str, Any] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    ended: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of each finished trial by its number: where its line begins, and the checksum of it."""
    running: dict[int, dict[str, Any]] = field(default_factory=dict)
    pending: Pending | None = None

    @property
    def has_trials(self) -> bool:
        """Whether any trial is in it."""
        return bool(self.ended or self.running)


class Backup:
    """The backup in a study folder, which need not be there."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def read(self) -> Kept:
        """All of it, whatever its state.

        Raises:
            InputError: the file cannot be read.
        """
        kept = Kept()
        if self.path.exists() and not self.path.is_file():  # a pipe or a device may have no end
            raise InputError(f"{self.path}: is no regular file")
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):
                        kept.is_torn = True
                        break
                    text = _whole(line)
                    body = None if text is None else _ours(text)
                    if text is None or body is None:
                        kept.broken.append(number)
                        kept.pending = None
                    else:
                        _enter(kept, body, zlib.crc32(text))
                    kept.size += len(line)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from None
        return kept

    def ended(self, kept: Kept, number: int) -> dict[str, Any]:
        """A finished trial that :meth:`read` found."""
        with self.path.open("rb") as file:
            file.seek(kept.ended[number][0])
            text = _whole(file.readline())
        assert text is not None
        body: dict[str, Any] = json.loads(text)
        return body

    def append(self, bodies: Iterable[Mapping[str, Any]], at: int | None = None) -> None:
        """Add lines; they have reached the disk on return.

        Args:
            bodies: one of each.
            at: where whole lines end; what comes after is cut off. None is the end of the file.

        Raises:
            OSError: they could not be written, and are not there.
        """
        raw = b"".join(map(_line, bodies))
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

    def rewrite(self, bodies: Iterable[Mapping[str, Any]]) -> None:
        """Put these lines in the place of all that is there."""
        write_atomically(self.path, b"".join(map(_line, bodies)))


def study_body(
    name: str, config: Mapping[str, Any], distributions: Mapping[str, str]
) -> dict[str, Any]:
    """A line about the study.

    Args:
        name: in the storage.
        config: the whole configuration, as plain data.
        distributions: of all parameters, as Optuna's JSON.
    """
    return {"study": name, "config": dict(config), "distributions": dict(distributions)}


def trial_body(trial: "FrozenTrial") -> dict[str, Any]:
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


def trial_of(
    body: Mapping[str, Any], distributions: Mapping[str, "BaseDistribution"]
) -> "FrozenTrial":
    """The trial of a line, to be written to a storage."""
    from optuna.trial import TrialState, create_trial

    trial = create_trial(
        state=TrialState[body["state"]],
        values=body["values"],
        params=body["params"],
        distributions={name: distributions[name] for name in body["params"]},
        user_attrs=body["user_attrs"],
        system_attrs=body["system_attrs"],
    )
    trial.number = body["trial"]
    trial.datetime_start = _local(body["started"])
    trial.datetime_complete = _local(body["ended"])
    return trial


def lines_of(
    study: Mapping[str, Any], attributes: Mapping[str, Any], trials: Iterable["FrozenTrial"]
) -> Iterator[Mapping[str, Any]]:
    """All lines of a backup that is made from a storage.

    Args:
        study: see :func:`study_body`.
        attributes: those of the study that are ours.
        trials: all of them.
    """
    yield study
    for key, value in attributes.items():
        yield {"attribute": key, "value": value}
    for trial in trials:
        if trial.state.is_finished() or trial.state.name == "RUNNING":
            yield trial_body(trial)


def missing_lines(kept: Kept, trials: Iterable["FrozenTrial"]) -> list[Mapping[str, Any]]:
    """What a kill kept from being written to a backup."""
    return [
        trial_body(trial)
        for trial in trials
        if (trial.state.is_finished() and trial.number not in kept.ended)
        or (trial.state.name == "RUNNING" and trial.number not in kept.running)
    ]


def lost_trials(
    backup: Backup, kept: Kept, trials: Sequence["FrozenTrial"]
) -> tuple[list[int], list[int]]:
    """The numbers of finished trials that a storage does not have, or not as they were.

    What other tools added to them does not count.

    Args:
        backup: of the study.
        kept: what it held before the trials were read.
        trials: of the storage.
    """
    by_number = {trial.number: trial for trial in trials}
    missing = sorted(kept.ended.keys() - by_number.keys())
    changed = []
    for number in sorted(kept.ended.keys() & by_number.keys()):
        stored = trial_body(by_number[number])
        is_same = zlib.crc32(_text(stored)) == kept.ended[number][1]
        if not is_same and not _agrees(backup.ended(kept, number), stored):
            changed.append(number)
    return missing, changed


def lost_rest(
    kept: Kept, trials: Sequence["FrozenTrial"], attributes: Mapping[str, Any]
) -> list[str]:
    """What else a storage does not have as it was: running trials and attributes, in words.

    Args:
        kept: what the backup holds; no driver is at work.
        trials: of the storage.
        attributes: of the study in the storage.
    """
    lost = []
    by_number = {trial.number: trial for trial in trials}
    pending = kept.pending
    if kept.study is not None:
        spelt = kept.study["distributions"]
        lost += [f"the ranges of trial {n} are changed" for n in _other_ranges(trials, spelt)]
    for number in kept.running:
        if number not in by_number:
            lost.append(f"running trial {number} is missing")
        elif not is_as_begun(kept, by_number[number]):
            lost.append(f"running trial {number} is changed")
    wanted = dict(kept.attributes)
    if pending is not None and pending.trial is None:
        _undo(wanted, attributes, pending)
    for key, value in wanted.items():
        if key not in attributes or _text(attributes[key]) != _text(value):
            lost.append(f"attribute {key!r} is changed")
    return lost


def is_as_begun(kept: Kept, trial: "FrozenTrial") -> bool:
    """Whether a storage's trial, ended or not, agrees with the running one of a backup.

    Args:
        kept: what the backup holds, this trial among those that run.
        trial: of the storage.
    """
    pending, body, stored = kept.pending, kept.running[trial.number], trial_body(trial)
    wanted = {part: dict(body[part]) for part in _MERGED} | {"started": body["started"]}
    if pending is not None and pending.trial == trial.number:
        _undo(wanted["user_attrs"], stored["user_attrs"], pending)
    for key, value in wanted["user_attrs"].items():  # a backup that was cut off has fewer rungs
        known = stored["user_attrs"].get(key)
        if isinstance(value, list) and isinstance(known, list) and known[: len(value)] == value:
            wanted["user_attrs"][key] = known
    return _agrees(wanted, stored)


def put_aside(path: Path, companions: tuple[str, ...] = ()) -> Path:
    """Rename a file, and those that belong to it; returns its new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for end in companions:
        companion = path.with_name(f"{path.name}{end}")
        if companion.exists():
            companion.rename(f"{aside}{end}")
    return path.rename(aside)


def _other_ranges(
    trials: Iterable["FrozenTrial"], distributions: Mapping[str, str]
) -> Iterator[int]:
    from optuna.distributions import json_to_distribution

    wanted = {name: json_to_distribution(text) for name, text in distributions.items()}
    for trial in trials:
        if any(wanted.get(name) != each for name, each in trial.distributions.items()):
            yield trial.number


def _undo(wanted: dict[str, Any], stored: Mapping[str, Any], pending: Pending) -> None:
    """Take back what the storage need not have yet."""
    if _text(stored.get(pending.key)) == _text(pending.before):
        wanted.pop(pending.key)


def _agrees(wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    for key, value in wanted.items():
        found = stored[key]
        if key in _MERGED:
            found = {name: found[name] for name in value if name in found}
        if _text(found) != _text(value):
            return False
    return True


def _enter(kept: Kept, body: dict[str, Any], checksum: int) -> None:
    kept.pending = None
    if "study" in body:
        kept.study = body
    elif "attribute" in body:
        key, value = body["attribute"], body["value"]
        kept.pending = Pending(key, value, kept.attributes.get(key))
        kept.attributes[key] = value
    elif "note" in body:
        number, key, value = body["trial"], body["note"], body["value"]
        if number in kept.running:
            notes = kept.running[number]["user_attrs"]
            kept.pending = Pending(key, value, notes.get(key), number)
            notes[key] = value
    elif body["state"] == "RUNNING":
        kept.running[body["trial"]] = body
    else:
        kept.running.pop(body["trial"], None)
        kept.ended[body["trial"]] = kept.size, checksum


def _whole(line: bytes) -> bytes | None:
    """The JSON text of a line; None where it is not as it was written."""
    found = _LINE.fullmatch(line)
    if found is None or int(found[1], 16) != zlib.crc32(found[2]):
        return None
    return b"{" + found[2]


def _ours(text: bytes) -> dict[str, Any] | None:
    """What a line says; None where nobody but a stranger would have written it."""
    try:
        body: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        return None
    for shape in _SHAPES:
        if body.keys() == shape.keys():
            return body if all(isinstance(body[key], shape[key]) for key in shape) else None
    return None


def _line(body: Mapping[str, Any]) -> bytes:
    text = _text(body)[1:]
    return b'{"crc32":"%08x",%s\n' % (zlib.crc32(text), text)


def _text(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _utc(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(timezone.utc).isoformat()


def _local(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).astimezone().replace(tzinfo=None)
