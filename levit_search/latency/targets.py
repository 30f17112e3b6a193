"""Where latency is measured: targets, the paper's settings, and ``targets.yaml``.

A target is written inline (``cpu``, ``cuda``, ``ssh://user@host``, ``ray://resource`` or a mapping)
or has a name, in ``targets.yaml`` or by a plug-in. Such entries are partial ``latency`` sections
that make sense by themselves:

    pi: {target: ssh://pi@raspberrypi.local, threads: 4}
    graviton: {preset: paper-arm, target: {kind: ssh, host: graviton, python: /opt/bin/python3}}
    desk: ssh://me@desk
    box: {target: {kind: command, python: [docker, exec, -i, box, python3]}, runtime: openvino}
"""

import os
import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from levit_search import plugins
from levit_search.configuration import Frozen, read_yaml, validated
from levit_search.errors import InputError, did_you_mean
from levit_search.plugins import Plugin

FILE = "targets.yaml"

Name = Annotated[str, Field(min_length=1, max_length=200)]

# No option of ssh begins so, and nothing here means anything to a shell.
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")
_RESOURCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")
# `env` starts it: neither an option (-S takes a whole command) nor a variable.
_PYTHON = re.compile(r"(?!-)[^=\x00-\x1f]+")


def _matching(pattern: re.Pattern[str], kind: str) -> AfterValidator:
    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(f"{text!r} is no {kind}")
        return text

    return AfterValidator(check)


def from_anywhere(path: Path) -> Path:
    """A path that means the same in every working directory; ``~`` is left to be filled in."""
    return path if str(path).startswith("~") else path.absolute()


def command_from_anywhere(words: tuple[str, ...]) -> tuple[str, ...]:
    """A command whose program, where it is a path, is an absolute one."""
    program, *arguments = words
    return (str(from_anywhere(Path(program))) if "/" in program else program, *arguments)


class _Device(Frozen):
    """What all targets say: on which device of theirs networks run, and what it has to be."""

    name: Annotated[str, Field(max_length=80)] | None = None
    """What it is called; none: its address."""
    device: Literal["cpu", "cuda"] = "cpu"
    machine: Annotated[str, Field(min_length=1)] | None = None
    """The machine that it must be, such as ``aarch64``; none: any."""

    @property
    @abstractmethod
    def address(self) -> str:
        """Where it is, in the inline form where there is one."""

    @property
    def label(self) -> str:
        """What messages and results call it."""
        return self.name or self.address


class LocalTarget(_Device):
    """This machine."""

    kind: Literal["local"] = "local"

    @property
    def address(self) -> str:
        return self.device


class SshTarget(_Device):
    """A machine that the system's OpenSSH reaches without a password, by the user's own settings.

    ``host`` may be an alias of ``~/.ssh/config``. The device needs Python, numpy and a runtime.
    """

    kind: Literal["ssh"]
    host: Annotated[str, _matching(_HOST, "host name")]
    user: Annotated[str, _matching(_USER, "user name")] | None = None
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = None
    python: Annotated[Name, _matching(_PYTHON, "path of a Python")] = "python3"
    config_file: Annotated[Path, AfterValidator(from_anywhere)] | None = None
    """An ssh configuration to use instead of the user's own."""

    @property
    def address(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host  # IPv6
        return f"ssh://{user}{host}" + (f":{self.port}" if self.port else "")


class RayTarget(_Device):
    """A node of a Ray cluster that offers one unit of a custom resource, such as ``probe_arm``."""

    kind: Literal["ray"]
    resource: Annotated[str, _matching(_RESOURCE, "name of a Ray resource")]
    cluster: Name = "auto"
    """The cluster's address; ``auto`` is the one that runs here or that RAY_ADDRESS names."""

    @property
    def address(self) -> str:
        return f"ray://{self.resource}"


class CommandTarget(_Device):
    """Whatever Python a command of this machine starts: in a container, a chroot, an emulator."""

    kind: Literal["command"]
    python: Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(command_from_anywhere)]
    """The command and its arguments, such as ``[docker, exec, -i, box, python3]``."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of that command, beside our own."""

    @property
    def address(self) -> str:
        return f"command {Path(self.python[0]).name}"


Target = Annotated[LocalTarget | SshTarget | RayTarget | CommandTarget, Field(discriminator="kind")]

# Batch, threads and precision of the paper's speed columns (section 5.2 and table 3).
PRESETS: dict[str, dict[str, Any]] = {
    "paper-gpu": {
        "target": {"kind": "local", "device": "cuda"},
        "batch_size": "largest",
        "precision": "fp16",
    },
    "paper-intel": {"target": {"kind": "local"}, "batch_size": 16, "threads": 1},
    "paper-arm": {
        "target": {"kind": "local", "machine": "aarch64"},
        "batch_size": 16,
        "threads": 1,
    },
}

_INLINE = {
    "cpu": {"kind": "local", "device": "cpu"},
    "cuda": {"kind": "local", "device": "cuda"},
}

_KINDS = ("local", "ssh", "ray", "command")

_FORMS = ("ssh://[user@]host[:port]", "ray://resource")


@dataclass(frozen=True)
class NamedTarget:
    """An entry of ``targets.yaml`` as it was written, well or not, and where."""

    entry: object
    file: Path

    def read(self) -> object:
        """The entry, unchecked."""
        return self.entry

    @property
    def origin(self) -> str:
        """Where it comes from, as messages begin."""
        return str(self.file)


@dataclass(frozen=True)
class PluggedTarget:
    """A target that another distribution plugs in; see :mod:`levit_search.plugins`.

    An entry point of ``levit_search.targets`` is what an entry of ``targets.yaml`` is, a partial
    ``latency`` section or a target alone, or a function without arguments that returns it:

        BENCH = {"target": {"kind": "ssh", "host": "bench.example.org"}, "threads": 4}

        def bench():
            return {"target": f"ssh://{os.environ['BENCH_HOST']}", "runtime": "openvino"}

    It is loaded when it is used or listed.
    """

    plugin: Plugin

    def read(self) -> object:
        """The entry, unchecked.

        Raises:
            InputError: it cannot be loaded, or its function fails.
        """
        found = self.plugin.load()
        if callable(found):
            with self.plugin.explained("fails"):
                return found()
        return found

    @property
    def origin(self) -> str:
        """Where it comes from, as messages begin."""
        return self.plugin.origin


Named = NamedTarget | PluggedTarget


def target_files(beside: Path | None = None) -> list[Path]:
    """Where ``targets.yaml`` is looked for; a name in a later one counts.

    That is ``~/.config/levit-search``, the working directory and ``beside``, a space file's folder.
    """
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "levit-search"
    folders = [config, Path(), *([beside] if beside else [])]
    return [folder / FILE for folder in dict.fromkeys(folders)]


def read_targets(beside: Path | None = None) -> dict[str, Named]:
    """The named targets that can be used here: plugged in, then from all of :func:`target_files`.

    A file's name counts more than a plug-in's, and our own more than a plug-in's. An entry is
    checked when it is used: a wrong one is no matter to those who use another.

    Raises:
        InputError: a file holds no YAML mapping.
    """
    plugged = {
        name: PluggedTarget(plugin)
        for name, plugin in plugins.installed("levit_search.targets").items()
        if not _is_own(name)
    }
    return plugged | {
        str(name): NamedTarget(entry, path)
        for path in target_files(beside)
        if path.is_file()
        for name, entry in read_yaml(path).items()
    }


def known_names(named: Mapping[str, Named]) -> list[str]:
    """Everything a target can be called: our own names, then those of plug-ins and files."""
    return list(dict.fromkeys([*_INLINE, *PRESETS, *named]))


def resolved(latency: Mapping[str, Any], named: Mapping[str, Named], where: str) -> dict[str, Any]:
    """A ``latency`` section whose target stands there in full.

    What the section says itself counts more than what the named target says, and that more than
    its preset.

    Args:
        latency: as written.
        named: what :func:`read_targets` gave.
        where: for messages.

    Raises:
        InputError: the target is unknown or malformed.
    """
    section = dict(latency)
    target = section.get("target", "cpu")
    if isinstance(target, int) and not isinstance(target, bool):  # YAML's reading of such a name
        target = str(target)
    if not isinstance(target, str):
        _check_form(target, where)
        return section
    given = _entry(target, named) if target in named else _own(target, named, where)
    return {**given, **section, "target": given["target"]}


def _check_form(target: object, where: str) -> None:
    if isinstance(target, Mapping):
        if "kind" not in target:
            raise InputError(f"{where}: target.kind: is required; known: {', '.join(_KINDS)}")
    elif not isinstance(target, BaseModel):
        raise InputError(
            f"{where}: target: expected a name, {', '.join(_FORMS)} or a mapping, not {target!r}"
        )


def _entry(name: str, named: Mapping[str, Named]) -> dict[str, Any]:
    """A named target's section, checked by itself, so that a message names the file to mend."""
    from levit_search.latency.protocol import LatencyConfig  # which needs this module

    where = f"{named[name].origin}: {name}"
    if _is_own(name):
        raise InputError(f"{where}: this name means something by itself; choose another")
    entry = named[name].read()
    if not isinstance(entry, Mapping | str):
        raise InputError(f"{where}: expected a target or a mapping with one, not {entry!r}")
    given = {"target": entry} if isinstance(entry, str) else dict(entry)
    preset = _preset(given.pop("preset", None), where)
    section = {**preset, **given}
    target = section.get("target", "cpu")
    if isinstance(target, str):
        if target in named and not _is_own(target):
            raise InputError(f"{where}: its target is another name, {target!r}")
        own = _own(target, {}, where)
        section = {**own, **section}
        target = own["target"]
    _check_form(target, where)
    # A preset's device and machine hold for any target that does not say otherwise.
    asked = {key: value for key, value in preset.get("target", {}).items() if key != "kind"}
    section["target"] = {**asked, **target, "name": name}
    validated(LatencyConfig, section, where)
    return section


def _is_own(name: str) -> bool:
    """Whether it is no name for an entry of ``targets.yaml``."""
    return name in _INLINE or name in PRESETS or "://" in name


def _preset(name: object, where: str) -> dict[str, Any]:
    if name is None:
        return {}
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"{where}: unknown preset {name!r}; {did_you_mean(str(name), PRESETS)}")
    return PRESETS[name]


def _own(text: str, named: Mapping[str, Named], where: str) -> dict[str, Any]:
    """The section that a preset or an inline form stands for."""
    if text in PRESETS:
        preset = PRESETS[text]
        return {**preset, "target": {**preset["target"], "name": text}}
    scheme, separator, rest = text.partition("://")
    if text in _INLINE:
        return {"target": dict(_INLINE[text])}
    if separator and scheme == "ssh":
        return {"target": _ssh(rest, f"{where}: {text}")}
    if separator and scheme == "ray":
        return {"target": {"kind": "ray", "resource": rest}}
    known = [*known_names(named), *_FORMS]
    raise InputError(f"{where}: unknown target {text!r}; {did_you_mean(text, known)}")


def _ssh(rest: str, where: str) -> dict[str, Any]:
    user, at, host = rest.rpartition("@")
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*))(?::([0-9]{1,5}))?", host)
    name = found and (found[1] or found[2])
    if found is None or not name:
        raise InputError(f"{where}: expected ssh://[user@]host[:port], IPv6 as [host]")
    target: dict[str, Any] = {"kind": "ssh", "host": name}
    if at:
        target["user"] = user
    if found[3]:
        target["port"] = int(found[3])
    return target
