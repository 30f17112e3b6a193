"""The checks, in the order in which they are shown."""

import tempfile
from functools import partial
from pathlib import Path

from levit_search.doctor import disks, installation, machine, of_study, runtimes, surroundings
from levit_search.doctor.finding import Check
from levit_search.files import user_cache

_STUDIES = Path("studies")
_CHILD_S = installation.CHILD_S + 5
_STUDY_S = 120.0  # thousands of trials with their weights


def all_checks(study: Path | None) -> list[Check]:
    """Everything there is to look at.

    Args:
        study: the folder of a study to look at as well; without one its disk is where studies
            begin, below the working directory.
    """
    checks = [
        Check("installation", "python", installation.python),
        Check("installation", "levit-search", installation.package),
        Check("installation", "packages", installation.packages),
        Check("installation", "imports", installation.imports, _CHILD_S),
        Check("runtimes", "torch", runtimes.runtimes, _CHILD_S),
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
        Check("targets", "targets", surroundings.targets, 30.0),
        Check("data", "digits", surroundings.digits, 30.0),
        Check("data", "fashion-mnist", surroundings.fashion),
        Check(
            "disk",
            "studies",
            partial(
                disks.folder,
                "studies",
                study if study is not None else _STUDIES,
                "run, and whatever else writes to a study",
                "choose another folder by --study DIR",
                locks=True,
            ),
        ),
        Check(
            "disk",
            "cache",
            partial(
                disks.folder,
                "cache",
                user_cache(),
                "probes, teachers and downloads, which keep their results there",
                "export XDG_CACHE_HOME=DIR",
                locks=False,
            ),
        ),
        Check(
            "disk",
            "temporary",
            partial(
                disks.folder,
                "temporary",
                Path(tempfile.gettempdir()),
                "probes, exports and Ray",
                "export TMPDIR=DIR",
                locks=False,
            ),
        ),
    ]
    if study is not None:
        checks.append(Check("study", "study", partial(of_study.study, study), _STUDY_S))
    return checks
