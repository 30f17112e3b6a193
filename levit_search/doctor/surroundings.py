"""Targets and data sets that can be used now."""

import os
from pathlib import Path
from shlex import quote

from levit_search.data import DataConfig
from levit_search.doctor.finding import Finding, fail, ok, warn
from levit_search.errors import InputError, LevitSearchError
from levit_search.image_size import size_text

_TARGET_S = 12.0
_OURS = ("cpu",)
"""What has to be there; other names of ours are of machines that this one may not be."""


def targets() -> list[Finding]:
    """Each name of ``targets.yaml`` and of plug-ins, and our own ones together."""
    from levit_search.latency.discovery import discover
    from levit_search.latency.targets import known_names, read_targets, target_files

    try:
        named = read_targets()
    except LevitSearchError as error:
        files = ", ".join(str(path) for path in target_files() if path.is_file())
        breaks = "every command that measures"
        return [fail("targets", "targets.yaml", str(error), breaks, f"mend or remove {files}")]
    findings = []
    away = []
    for row in discover(named, _TARGET_S, lambda _: None):
        if row.reachable:
            assert row.device is not None
            told = f"reached: {row.device['cpu']}, {row.device['cores']} core(s)"
            if row.name in named or row.name in _OURS:
                findings.append(ok("targets", row.name, told))
            continue
        reason = row.reason or "no answer"
        if row.name in _OURS:
            mend = "mend the runtimes above"
            findings.append(fail("targets", row.name, reason, "every probe on this machine", mend))
        elif row.name in named:
            findings.append(
                warn(
                    "targets",
                    row.name,
                    reason,
                    f"probes and searches of target {row.name} fail",
                    f"see `levit-search targets`; it is named in {named[row.name].origin}",
                )
            )
        else:
            away.append(row.name)
    if away:
        others = [name for name in known_names({}) if name not in _OURS and name not in away]
        here = f"here: {', '.join(others)}; " if others else ""
        findings.append(ok("targets", "presets", f"{here}not on this machine: {', '.join(away)}"))
    return findings


def digits() -> list[Finding]:
    """The embedded set, which the default space takes."""
    from levit_search.data.sets import Digits

    images = len(Digits(DataConfig()).sources()["train"].labels)
    return [ok("data", "digits", f"{images:,} images")]


def fashion() -> list[Finding]:
    """Fashion-MNIST on this machine."""
    from levit_search.data.sets import fashion_root

    named = os.environ.get("LEVIT_SEARCH_DATA")
    if named and not Path(named).is_dir():
        return [
            warn(
                "data",
                "LEVIT_SEARCH_DATA",
                f"{named} is no folder",
                "data sets are looked for elsewhere",
                "unset LEVIT_SEARCH_DATA, or export the folder that has them",
            )
        ]
    root = fashion_root(DataConfig(name="fashion-mnist"))
    if root is not None:
        return [ok("data", "fashion-mnist", str(root))]
    told = "not here: it is downloaded when it is first used; or apt-get install "
    return [ok("data", "fashion-mnist", f"{told}dataset-fashion-mnist")]


def data_of(study: Path, config: DataConfig) -> list[Finding]:
    """The data set of the study in a folder."""
    from levit_search.data import describe

    try:
        found = describe(config)
    except InputError as error:
        breaks = "going on with the study, export and audit"
        folder, space = quote(str(study)), quote(str(study / "study.yaml"))
        mend = (
            f"put it back, or name its place: levit-search export {folder} --data DIR (or audit), "
            f"levit-search run {space} --study {folder} --set data.root=DIR"
        )
        return [fail("study", "data", str(error), breaks, mend)]
    shape = f"{found.num_classes} classes, {size_text(found.image_size)} px"
    return [ok("study", "data", f"{config.name}: {shape}")]
