"""The Python that runs this, and what is installed in it."""

import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from levit_search.doctor.child import carried_out
from levit_search.doctor.finding import Finding, fail, ok, warn
from levit_search.latency.worker import UNKNOWN, distribution
from levit_search.printable import quoted
from levit_search.version import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_OLDEST = (3, 10)
_NAME = "levit-search"
_PIP = "python -m pip"
CHILD_S = 60.0
"""For torch and all that needs it; a busy machine takes a while."""

# Modules that are imported somewhere, by the distribution that brings them; torch and what needs it
# are tried with a network, see :mod:`levit_search.doctor.runtimes`.
_MODULES = {
    "numpy": "numpy",
    "pandas": "pandas",
    "pydantic": "pydantic",
    "PyYAML": "yaml",
    "rich": "rich",
    "typer": "typer",
    "filelock": "filelock",
    "pillow": "PIL.Image",
    "sqlalchemy": "sqlalchemy",
    "optuna": "optuna",
    "scikit-learn": "sklearn.datasets",
    "onnx": "onnx",
    "plotly": "plotly.graph_objects",
    "matplotlib": "matplotlib.figure",
    "resvg-py": "resvg_py",
    "ray": "ray",
}

# What an extra is for.
_EXTRAS = {
    "intel": "OpenVINO as a probe's runtime",
    "dashboard": "the live page",
    "tensorboard": "run --tensorboard",
    "data": "data sets of Hugging Face and WebDataset",
    "postgres": "a PostgreSQL server as storage",
    "mysql": "a MySQL server as storage",
}


def python() -> list[Finding]:
    """Which Python this is."""
    version = ".".join(map(str, sys.version_info[:3]))
    found = f"{version} at {sys.executable}"
    if sys.version_info < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        return [
            fail(
                "installation",
                "python",
                found,
                "this package does not run",
                f"install Python {oldest} or newer, and this package with it",
            )
        ]
    if sys.maxsize < 2**32:
        return [
            fail(
                "installation",
                "python",
                f"{found}, 32 bits",
                "torch has no such build",
                "install a Python of 64 bits",
            )
        ]
    return [ok("installation", "python", f"{found} ({platform.platform(terse=True)})")]


def package() -> list[Finding]:
    """Where this package is, and whether pip knows of it."""
    where = Path(__file__).parents[1]
    try:
        known = metadata.version(_NAME)
    except metadata.PackageNotFoundError:
        return [
            fail(
                "installation",
                _NAME,
                f"{__version__} in {where}, not installed",
                "the bounds of packages are not known",
                f"{_PIP} install -e {quoted(str(where.parent))}",
            )
        ]
    if known != __version__:
        return [
            warn(
                "installation",
                _NAME,
                f"{__version__} in {where}, installed as {known}",
                "bounds of packages may be those of another release",
                f"{_PIP} install -e {quoted(str(where.parent))}",
            )
        ]
    return [ok("installation", _NAME, f"{__version__} in {where}")]


def packages() -> list[Finding]:
    """Versions beside what this package asks for, and which extras are there."""
    from packaging.requirements import Requirement

    wrong: list[str] = []
    wanted_again: list[Requirement] = []
    lacking: dict[str, list[str]] = {name: [] for name in _EXTRAS}
    count = 0
    others: list[str] = []
    for line in _required():
        wanted = Requirement(line)
        extra = _extra_of(wanted)
        if extra == "dev" or (extra is None and wanted.marker and not wanted.marker.evaluate()):
            continue
        found = _installed(wanted.name)
        if found is None:
            if extra is not None:
                lacking.setdefault(extra, []).append(wanted.name)
                continue
            wrong.append(f"{wanted.name} is missing")
        else:
            count += 1
            name, version = found
            if name != wanted.name:
                others.append(f"{name} {version} for {wanted.name}")
                wanted.name = name
            if version == UNKNOWN or wanted.specifier.contains(version, prereleases=True):
                continue
            wrong.append(f"{wanted.name} is {version}, not {wanted.specifier}")
        wanted.marker = None
        wanted_again.append(wanted)
    told = "".join(f"; {each}" for each in others)
    findings = [ok("installation", "packages", f"{count} as asked for{told}")]
    if wrong:
        names = " ".join(f"'{each}'" for each in wanted_again)
        mend = f"{_PIP} install {names}"
        breaks = "whatever needs them"
        findings = [fail("installation", "packages", "; ".join(wrong), breaks, mend)]
    there = [name for name, absent in lacking.items() if not absent]
    away = [name for name, absent in lacking.items() if absent]
    extras = ", ".join(there) or "none"
    if away:
        told_of = ", ".join(f"{name} ({_EXTRAS.get(name, 'more')})" for name in away)
        extras += f"; not installed: {told_of}; pip install '{_NAME}[{','.join(away)}]'"
    return [*findings, ok("installation", "extras", extras)]


def imports() -> list[Finding]:
    """Whether everything imports but torch and what needs it."""
    modules = {name: each for name, each in _MODULES.items() if _installed(name) is not None}
    steps = carried_out(list(modules.values()), CHILD_S)
    broken = [name for name, module in modules.items() if not steps[module].is_ok]
    if not broken:
        return [ok("installation", "imports", f"all {len(modules)} packages import")]
    return [
        fail(
            "installation",
            name,
            f"{found[1]} does not import: {steps[modules[name]].text}",
            "whatever needs it",
            f"{_PIP} install --force-reinstall {found[0]}",
        )
        for name in broken
        if (found := _installed(name)) is not None
    ]


def _extra_of(wanted: "Requirement") -> str | None:
    found = re.search(r"extra == ['\"]([\w-]+)", str(wanted.marker or ""))
    return found[1] if found else None


def _required() -> list[str]:
    try:
        return metadata.requires(_NAME) or []
    except metadata.PackageNotFoundError:  # which is a finding of its own
        return []


def _installed(name: str) -> tuple[str, str] | None:
    """A distribution and its version, or another's that brings the same module."""
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        module = _MODULES.get(name, name.replace("-", "_"))
        return distribution(module.partition(".")[0])
