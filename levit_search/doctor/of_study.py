"""A study folder: whether all that it holds is whole, and whether somebody is at work on it."""

import json
from collections import Counter
from pathlib import Path

from levit_search.doctor.finding import Finding, fail, ok, warn
from levit_search.doctor.surroundings import data_of
from levit_search.errors import InputError
from levit_search.printable import quoted
from levit_search.sealed import DamagedFileError, check_weights, read_bounded, read_sealed
from levit_search.study import Record, Study

_SHOWN = 3  # damaged files that are named


def study(folder: Path) -> list[Finding]:
    """Settings, trials, weights and files of a study, and its data."""
    try:
        opened = Study.open(folder)
    except InputError as error:
        told, way = _told_and_way(error, "name the folder of a study, or put its study.yaml back")
        return [fail("study", "settings", told, "every command on this study", way)]
    busy = _is_busy(folder)
    findings = [
        ok("study", "settings", f"{opened.config.name}, objectives {_listed(opened)}"),
        ok("study", "at work", "a search is at work on it" if busy else "nobody"),
    ]
    records: list[Record] = []
    try:
        if not busy:  # the look through the file would get into its way
            opened.place.check_file()
        records = opened.records()
    except InputError as error:
        told, way = _told_and_way(error, _way_to_trials(opened))
        findings.append(fail("study", "trials", told, "going on, and every reading command", way))
    else:
        states = Counter(record.state for record in records)
        shown = ", ".join(f"{count} {state}" for state, count in states.items()) or "none yet"
        findings.append(ok("study", "trials", f"{shown}; {opened.place} is whole"))
        findings += _weights(opened, records)
    findings += _supernet(opened)
    return [*findings, *_files(folder, busy), *data_of(folder, opened.config.data)]


def _told_and_way(error: InputError, otherwise: str) -> tuple[str, str]:
    """A message apart from the command at its end, if it has one."""
    told, _, command = str(error).rpartition(": ")
    return (told, command) if command.startswith("levit-search ") else (str(error), otherwise)


def _way_to_trials(opened: Study) -> str:
    if opened.place.file is None:
        return "see that the server runs, and takes this address and password"
    return f"levit-search restore {quoted(str(opened.folder))}"


def _listed(opened: Study) -> str:
    return ", ".join(opened.config.objectives)


def _is_busy(folder: Path) -> bool:
    """Whether a driver holds the folder's lock."""
    from filelock import FileLock, Timeout

    if not (folder / ".lock").is_file():
        return False
    try:
        with FileLock(folder / ".lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # read-only: nobody can be at work
        return False


def _weights(opened: Study, records: list[Record]) -> list[Finding]:
    """Those of the networks that were trained to the end."""
    if not opened.config.is_trained:
        return []
    missing, damaged, whole = [], [], 0
    for record in records:
        if not record.is_evaluated or record.architecture is None:
            continue
        path = opened.weights(record.architecture.id)
        try:
            check_weights(read_bounded(path))
            whole += 1
        except FileNotFoundError:
            missing.append(record.trial)
        except (OSError, DamagedFileError) as error:
            damaged.append(f"trial {record.trial} ({error})")
    if not missing and not damaged:
        return [ok("study", "weights", f"those of {whole} networks are whole")]
    told = [f"{whole} whole"]
    if damaged:
        more = f" and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
        told.append(f"damaged: {', '.join(damaged[:_SHOWN])}{more}")
    if missing:
        shown = ", ".join(map(str, missing[:_SHOWN]))
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        told.append(f"missing: trial {shown}{more}")
    return [
        (fail if damaged else warn)(
            "study",
            "weights",
            "; ".join(told),
            "export and audit of these networks fail; the search itself goes on",
            f"levit-search export {quoted(str(opened.folder))} --pick trial=N --retrain --epochs E",
        )
    ]


def _supernet(opened: Study) -> list[Finding]:
    """The weights that candidates inherit, where they do."""
    folder = opened.folder / "supernet"
    if not opened.config.shares_weights:
        return []
    if not (folder / "card.json").exists():
        return [ok("study", "supernet", "is not trained yet; `run` trains it")]
    try:
        card = read_sealed(folder / "card.json")
        check_weights(read_bounded(folder / "weights.safetensors"))
        told = f"{card['params']:,} weights, {card['epochs']} epochs; they are whole"
        return [ok("study", "supernet", told)]
    except (OSError, DamagedFileError, LookupError, TypeError, ValueError) as error:
        return [
            fail(
                "study",
                "supernet",
                f"{folder}: damaged ({error})",
                "the search does not go on; what was verified is not touched",
                f"remove {folder}: the next run trains it again",
            )
        ]


def _files(folder: Path, busy: bool) -> list[Finding]:
    findings = []
    path = folder / "environment.json"
    try:
        count = len(json.loads(path.read_bytes())["sessions"])
        told = "1 session" if count == 1 else f"{count} sessions"
        findings.append(ok("study", "environment", f"{told} of `run`"))
    except FileNotFoundError:
        findings.append(ok("study", "environment", "no session is noted"))
    except (OSError, ValueError, LookupError, TypeError):
        findings.append(
            warn(
                "study",
                "environment",
                f"{path}: damaged",
                "nobody will know where earlier sessions ran",
                "nothing: the next run keeps it aside and begins another",
            )
        )
    left = [] if busy else [*folder.rglob(".*.partial")]
    if left:
        told = f"{len(left)} left by a writer that was killed, such as {left[0].name}"
        findings.append(ok("study", "unfinished files", f"{told}; the next run removes them"))
    return findings
