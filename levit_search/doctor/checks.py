"""All checks, in the order in which they are shown, and those of targets, data and studies."""

import json
import os
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from shlex import quote

from levit_search.data import DataConfig, describe
from levit_search.data.sets import Digits, fashion_root
from levit_search.doctor import Check, Finding, fail, installation, machine, ok, warn
from levit_search.errors import InputError, LevitSearchError
from levit_search.escaping import quoted
from levit_search.files import (
    DamagedFileError,
    check_weights,
    read_bounded,
    read_checksummed,
    user_cache,
)
from levit_search.image_size import size_text
from levit_search.latency.discovery import discover
from levit_search.latency.targets import read_targets, target_files
from levit_search.study import Record, Study

_STEPS_S = installation.STEPS_S + 5
_STUDY_S = 120.0  # thousands of trials with their weights
_TARGET_S = 12.0
_OURS = "cpu"
"""What has to be there; other names of ours are of machines that this one may not be."""
_SHOWN = 3  # damaged files that are named


def all_checks(study: Path | None) -> list[Check]:
    """Everything there is to look at.

    Args:
        study: the folder of a study to look at as well; without one its disk is where studies
            begin, below the working directory.
    """
    at, writes = study or Path("studies"), "run, and whatever else writes to a study"
    another = "choose another folder by --study DIR"
    studies = partial(machine.folder, at, writes, another, locks=True)
    kept = "probes, teachers and downloads, which keep their results there"
    cache = partial(machine.folder, user_cache(), kept, "export XDG_CACHE_HOME=DIR")
    place = Path(tempfile.gettempdir())
    temporary = partial(machine.folder, place, "probes, exports and Ray", "export TMPDIR=DIR")
    checks = [
        Check("installation", "python", installation.python),
        Check("installation", "levit-search", installation.package),
        Check("installation", "packages", installation.packages),
        Check("installation", "imports", installation.imports, _STEPS_S),
        Check("runtimes", "torch", installation.runtimes, _STEPS_S),
        Check("machine", "cores", machine.cores),
        Check("machine", "governor", machine.governor),
        Check("machine", "memory", machine.memory),
        Check("machine", "shared memory", machine.shared_memory),
        Check("machine", "open files", machine.files_limit),
        Check("machine", "clock", machine.clock),
        Check("machine", "probe locks", machine.probe_locks),
        Check("machine", "network", machine.network),
        Check("machine", "settings", machine.settings),
        Check("machine", "terminal", machine.terminal),
        Check("targets", "targets", targets, 30.0),
        Check("data", "digits", digits, 30.0),
        Check("data", "fashion-mnist", fashion),
        Check("disk", "studies", studies),
        Check("disk", "cache", cache),
        Check("disk", "temporary", temporary),
    ]
    if study is not None:
        checks.append(Check("study", "study", partial(study_folder, study), _STUDY_S))
    return checks


def targets() -> list[Finding]:
    """Each name of ``targets.yaml`` and of plug-ins, and our own ones together."""
    try:
        named = read_targets()
    except LevitSearchError as error:
        files = ", ".join(str(path) for path in target_files() if path.is_file())
        mend = f"mend or remove {files}"
        return [fail(str(error), "every command that measures", mend, "targets.yaml")]
    findings = []
    here: list[str] = []
    away: list[str] = []
    for row in discover(named, _TARGET_S, lambda _: None):
        name, reason = row.name, row.reason or "no answer"
        if name not in named and name != _OURS:
            (here if row.reachable else away).append(name)
        elif row.device is not None:
            told = f"reached: {row.device['cpu']}, {row.device['cores']} core(s)"
            findings.append(ok(told, name))
        elif name == _OURS:
            mend = "mend the runtimes above"
            findings.append(fail(reason, "every probe on this machine", mend, name))
        else:
            breaks = f"probes and searches of target {name} fail"
            mend = f"see `levit-search targets`; it is named in {named[name].origin}"
            findings.append(warn(reason, breaks, mend, name))
    if away:
        others = f"here: {', '.join(here)}; " if here else ""
        findings.append(ok(f"{others}not on this machine: {', '.join(away)}", "presets"))
    return findings


def digits() -> Finding:
    """The embedded set, which the default space takes."""
    images = len(Digits(DataConfig()).sources()["train"].labels)
    return ok(f"{images:,} images")


def fashion() -> Finding:
    """Fashion-MNIST on this machine."""
    named = os.environ.get("LEVIT_SEARCH_DATA")
    if named and not Path(named).is_dir():
        breaks = "data sets are looked for elsewhere"
        mend = "unset LEVIT_SEARCH_DATA, or export the folder that has them"
        return warn(f"{named} is no folder", breaks, mend, "LEVIT_SEARCH_DATA")
    root = fashion_root(DataConfig(name="fashion-mnist"))
    way = "it is downloaded when it is first used; or apt-get install dataset-fashion-mnist"
    return ok(f"not here: {way}" if root is None else str(root))


def study_folder(folder: Path) -> list[Finding]:
    """Settings, trials, weights and files of a study, and its data: whether all that it holds is
    whole, and whether somebody is at work on it."""
    try:
        study = Study.open(folder)
    except InputError as error:
        told, way = _told_and_way(error, "name the folder of a study, or put its study.yaml back")
        return [fail(told, "every command on this study", way, "settings")]
    busy = _is_busy(folder)
    objectives = ", ".join(study.config.objectives)
    findings = [
        ok(f"{study.config.name}, objectives {objectives}", "settings"),
        ok("a search is at work on it" if busy else "nobody", "at work"),
    ]
    try:
        if not busy:  # the look through the file would get into its way
            study.place.check_file()
        records = study.records()
    except InputError as error:
        otherwise = f"levit-search restore {quoted(str(folder))}"
        if study.place.file is None:
            otherwise = "see that the server runs, and takes this address and password"
        told, way = _told_and_way(error, otherwise)
        findings.append(fail(told, "going on, and every reading command", way, "trials"))
    else:
        states = Counter(record.state for record in records)
        shown = ", ".join(f"{count} {state}" for state, count in states.items()) or "none yet"
        findings.append(ok(f"{shown}; {study.place} is whole", "trials"))
        if study.config.is_trained:
            findings.append(_weights(study, records))
    if study.config.shares_weights:
        findings.append(_supernet(study))
    findings.append(_sessions(folder))
    left = [] if busy else [*folder.rglob(".*.partial")]
    if left:
        told = f"{len(left)} left by a writer that was killed, such as {left[0].name}"
        findings.append(ok(f"{told}; the next run removes them", "unfinished files"))
    return [*findings, data_of(folder, study.config.data)]


def _told_and_way(error: InputError, otherwise: str) -> tuple[str, str]:
    """A message apart from the command at its end, if it has one."""
    told, _, command = str(error).rpartition(": ")
    return (told, command) if command.startswith("levit-search ") else (str(error), otherwise)


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


def _weights(study: Study, records: list[Record]) -> Finding:
    """Those of the networks that were trained to the end."""
    missing, damaged, whole = [], [], 0
    for record in records:
        if not record.is_evaluated or record.architecture is None:
            continue
        path = study.weights(record.architecture.id)
        try:
            check_weights(read_bounded(path))
            whole += 1
        except FileNotFoundError:
            missing.append(str(record.trial))
        except (OSError, DamagedFileError) as error:
            damaged.append(f"trial {record.trial} ({error})")
    if not missing and not damaged:
        return ok(f"those of {whole} networks are whole", "weights")
    told = [f"{whole} whole"]
    for what, those in (("damaged: ", damaged), ("missing: trial ", missing)):
        if those:
            more = f" and {len(those) - _SHOWN} more" if len(those) > _SHOWN else ""
            told.append(f"{what}{', '.join(those[:_SHOWN])}{more}")
    command = f"levit-search export {quoted(str(study.folder))} --pick trial=N --retrain --epochs E"
    return (fail if damaged else warn)(
        "; ".join(told),
        "export and audit of these networks fail; the search itself goes on",
        command,
        "weights",
    )


def _supernet(study: Study) -> Finding:
    """The weights that candidates inherit."""
    folder = study.folder / "supernet"
    if not (folder / "card.json").exists():
        return ok("is not trained yet; `run` trains it", "supernet")
    try:
        card = read_checksummed(folder / "card.json")
        check_weights(read_bounded(folder / "weights.safetensors"))
        told = f"{card['params']:,} weights, {card['epochs']} epochs; they are whole"
        return ok(told, "supernet")
    except (OSError, DamagedFileError, LookupError, TypeError, ValueError) as error:
        breaks = "the search does not go on; what was verified is not touched"
        mend = f"remove {folder}: the next run trains it again"
        return fail(f"{folder}: damaged ({error})", breaks, mend, "supernet")


def _sessions(folder: Path) -> Finding:
    """Where a study's sessions ran, as far as that is noted."""
    path = folder / "environment.json"
    try:
        count = len(json.loads(path.read_bytes())["sessions"])
    except FileNotFoundError:
        return ok("no session is noted", "environment")
    except (OSError, ValueError, LookupError, TypeError):
        breaks = "nobody will know where earlier sessions ran"
        mend = "nothing: the next run keeps it aside and begins another"
        return warn(f"{path}: damaged", breaks, mend, "environment")
    return ok(f"{'1 session' if count == 1 else f'{count} sessions'} of `run`", "environment")


def data_of(study: Path, config: DataConfig) -> Finding:
    """The data set of the study in a folder."""
    try:
        found = describe(config)
    except InputError as error:
        breaks = "going on with the study, export and audit"
        folder, space = quote(str(study)), quote(str(study / "study.yaml"))
        mend = (
            f"put it back, or name its place: levit-search export {folder} --data DIR (or audit), "
            f"levit-search run {space} --study {folder} --set data.root=DIR"
        )
        return fail(str(error), breaks, mend, "data")
    shape = f"{found.num_classes} classes, {size_text(found.image_size)} px"
    return ok(f"{config.name}: {shape}", "data")
