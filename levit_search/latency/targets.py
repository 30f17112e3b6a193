"""How latency is measured and where: the ``latency`` section, targets and ``targets.yaml``.

A target is written inline (``cpu``, ``cuda``, ``ssh://user@host``, ``ray://resource`` or a mapping)
or has a name, in ``targets.yaml`` or by a plug-in. Such entries are partial ``latency`` sections
that make sense by themselves:

    pi: {target: ssh://pi@raspberrypi.local, threads: 4}
    graviton: {preset: paper-arm, target: {kind: ssh, host: graviton, python: /opt/bin/python3}}
    desk: ssh://me@desk
    box: {target: {kind: command, python: [docker, exec, -i, box, python3]}, runtime: openvino}

A ``command`` target starts what it names, and so may an ssh configuration, and a host's login; what
drives a Ray cluster can start anything on whoever joins it. A space file or a study folder may come
from anybody: what it brings is started only if the user has named it too, in a ``targets.yaml`` of
their own (in ``~/.config/levit-search`` or the working directory), by a plug-in that they
installed, or on the command line. A ``targets.yaml`` in the folder of a space file is part of what
came with it.
"""

import json
import os
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from levit_search import architecture, plugins
from levit_search.architecture import Architecture
from levit_search.configuration import Count, Frozen, read_yaml, validated
from levit_search.errors import InputError, did_you_mean
from levit_search.files import expanded
from levit_search.image_size import Sides, compact, sides
from levit_search.plugins import Plugin

Program = dict[str, object]
"""What of a target says what is started, as it is written in YAML."""


def _matching(pattern: str, kind: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{text!r} is no {kind}")
        return text

    return AfterValidator(check)


Name = Annotated[str, Field(min_length=1, max_length=200)]
# No option of ssh begins so, and nothing here means anything to a shell.
Host = Annotated[str, _matching(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*", "host name")]
User = Annotated[str, _matching(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*", "user name")]
Resource = Annotated[str, _matching(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*", "name of a Ray resource")]
# `env` starts it: neither an option (-S takes a whole command) nor a variable.
PythonPath = Annotated[Name, _matching(r"(?!-)[^=\x00-\x1f]+", "path of a Python")]


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

    @property
    def program(self) -> Program | None:
        """What it starts or joins; None where that is only what this machine or a host calls
        Python, ssh with the user's own settings, or the cluster that runs here."""
        return None


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
    host: Host
    user: User | None = None
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = None
    python: PythonPath = "python3"
    config_file: Annotated[Path, AfterValidator(from_anywhere)] | None = None
    """An ssh configuration to use instead of the user's own."""

    @property
    def address(self) -> str:
        user = f"{self.user}@" if self.user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host  # IPv6
        return f"ssh://{user}{host}" + (f":{self.port}" if self.port else "")

    @property
    def program(self) -> Program | None:
        named: Program = {}
        if self.config_file is not None:
            named["config_file"] = str(self.config_file)
        if not re.fullmatch(r"(python|pypy)[0-9.]*", self.python):  # which is a Python everywhere
            named |= {"host": self.host, "python": self.python}
        return named or None


class RayTarget(_Device):
    """A node of a Ray cluster that offers one unit of a custom resource, such as ``probe_arm``."""

    kind: Literal["ray"]
    resource: Resource
    cluster: Name = "auto"
    """The cluster's address; ``auto`` is the one that runs here or that RAY_ADDRESS names."""

    @property
    def address(self) -> str:
        return f"ray://{self.resource}"

    @property
    def program(self) -> Program | None:
        known = ("auto", os.environ.get("RAY_ADDRESS"))
        here = r"(ray://)?(127\.0\.0\.1|localhost|\[::1\]):\d+"
        if self.cluster in known or re.fullmatch(here, self.cluster):
            return None
        return {"cluster": self.cluster}


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

    @property
    def program(self) -> Program | None:
        return {"python": list(self.python), **({"env": dict(self.env)} if self.env else {})}


Target = Annotated[LocalTarget | SshTarget | RayTarget | CommandTarget, Field(discriminator="kind")]

Runtime = Literal["onnxruntime", "openvino", "torch", "torch-compiled"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

TORCH_RUNTIMES = ("torch", "torch-compiled")
_WITH_TORCH = " or ".join(TORCH_RUNTIMES)


def _check_batch_size(value: object) -> object:
    if value != "largest" and (type(value) is not int or not 1 <= value <= 2**20):
        raise ValueError(f"must be a number of images from 1, or largest, not {value!r}")
    return value


BatchSize = Annotated[int | Literal["largest"], BeforeValidator(_check_batch_size)]


def package_of(runtime: Runtime) -> str:
    """What has to be installed for a runtime."""
    return "torch" if runtime in TORCH_RUNTIMES else runtime


Int8Format = Literal["u8", "u8-reduced", "s8", "nncf", "nncf-reduced"]
OperatorGroup = Literal["stem", "linear", "classifier", "attention", "elementwise"]


class Int8Config(Frozen):
    """How networks are quantized to int8, by post-training quantization with calibration.

    Weights are signed, with a scale for each output channel. ``format`` says the rest: with ``u8``
    activations are unsigned, with ``s8`` signed, as ONNX Runtime quantizes them; ``nncf`` leaves it
    to NNCF, without its smoothing of activations and its correction of biases. ``-reduced`` gives
    weights 7 bits: CPUs without VNNI add two products of u8 and s8 in 16 bits, which overflow.
    ``auto`` measures on the target which is faster there, and whether it overflows.

    Activations have the range that they have on ``images`` of the training split (null: 128, or all
    where there are fewer); ``calibration: percentile`` leaves the 0.001 % farthest out.

    ``float_operators`` are left in float: ``stem`` (its convolutions), ``linear`` layers, the
    ``classifier``, the products of ``attention``, and what is ``elementwise`` (sums, scaling).
    """

    format: Literal["auto", "u8", "u8-reduced", "s8", "nncf", "nncf-reduced"] = "auto"
    calibration: Literal["minmax", "percentile"] = "minmax"
    images: Count | None = None
    float_operators: tuple[OperatorGroup, ...] = ("attention", "elementwise")

    @field_validator("float_operators")
    @classmethod
    def _in_order(cls, groups: tuple[OperatorGroup, ...]) -> tuple[OperatorGroup, ...]:
        return tuple(sorted(set(groups)))

    @model_validator(mode="after")
    def _check(self) -> "Int8Config":
        if {"stem", "linear", "classifier", "attention"} <= set(self.float_operators):
            raise ValueError("float_operators: leave nothing that multiplies in int8")
        if self.format.startswith("nncf") and self.calibration != "minmax":
            raise ValueError(f"calibration: {self.calibration} is ONNX Runtime's, not NNCF's")
        return self


class LatencyConfig(Frozen):
    """How latency is measured, or predicted.

    Up to ``seconds`` of timing are spent on a network, in about ``rounds`` rounds with fresh
    inference sessions (two at least); measuring ends earlier, after eight rounds, once the 95 %
    interval stays narrower than ``interval_percent`` of the ratio (from end to end).
    ``reference`` is the network that candidates are compared with, fitted to the images: a
    published name, a YAML file or a description. One about as fast as they are serves best.

    ``layout`` is that of the candidates' graphs: linear layers over tokens, or 1x1 convolutions
    over maps, with the same weights; ``fastest`` measures both. The reference is always measured in
    tokens. ``batch_size: largest`` is the largest power of two that fits a GPU.

    With ``method: predicted`` a search ranks candidates by the sum of their blocks' latencies,
    calibrated on ``calibration`` whole networks, and measures the front at its end.

    ``huge_pages`` lets the C library of a Linux target ask for memory in huge pages (where the
    system grants them on request): a network's time then depends less on where its memory happens
    to lie.

    A worker that says nothing for ``patience_s`` beyond the time that it measures is taken for
    stuck; slow devices may need longer to start and to build sessions.

    With ``precision: int8`` networks are quantized as ``int8`` says and measured against the
    reference in float, so that figures of both precisions are on one scale.

    Timings of an emulator are refused as an objective unless ``allow_emulated``.
    """

    target: Target = LocalTarget()
    method: Literal["measured", "predicted"] = "measured"
    runtime: Runtime = "onnxruntime"
    precision: Precision = "fp32"
    int8: Int8Config = Int8Config()
    threads: Count = 1
    batch_size: BatchSize = 1
    seconds: Annotated[float, Field(gt=0, le=600)] = 2.0
    rounds: Annotated[int, Field(strict=True, ge=1, le=100)] = 12
    interval_percent: Annotated[float, Field(ge=0)] = 2.0
    layout: Literal["tokens", "maps", "fastest"] = "tokens"
    reference: str | dict[str, object] = "LeViT-128S"
    calibration: Annotated[int, Field(strict=True, ge=4, le=200)] = 8
    huge_pages: bool = True
    patience_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    allow_emulated: bool = False

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        if data in ("predicted", "measured"):  # the short form, `latency: predicted`
            data = {"method": data}
        if isinstance(data, Mapping):
            try:
                data = resolved(data, {}, "target")
            except InputError as error:  # of which validation knows the place
                raise ValueError(str(error).removeprefix("target: ")) from None
            target = data.get("target")
            on_gpu = isinstance(target, Mapping) and target.get("device") == "cuda"
            if on_gpu and "runtime" not in data:
                data = {**data, "runtime": "torch"}
        return data

    @model_validator(mode="after")
    def _check(self) -> "LatencyConfig":
        on_gpu = self.target.device == "cuda"
        with_torch = self.runtime in TORCH_RUNTIMES
        if on_gpu and not with_torch:
            told = f"runtime: {self.runtime} runs on CPUs here; on a GPU use {_WITH_TORCH}"
            raise ValueError(told)
        if self.precision == "int8" and with_torch:
            told = f"precision: int8 needs runtime onnxruntime or openvino, not {self.runtime}"
            raise ValueError(told)
        if self.precision in ("fp16", "bf16") and not with_torch:
            told = f"precision: {self.precision} needs runtime {_WITH_TORCH}, not {self.runtime}"
            raise ValueError(told)
        if self.method == "predicted" and (with_torch or self.layout == "fastest"):
            raise ValueError(
                "method: predicted needs runtime onnxruntime or openvino, and layout tokens or maps"
            )
        if self.batch_size == "largest" and not on_gpu:
            raise ValueError("batch_size: largest is for GPUs; name a number")
        return self

    def reference_for(
        self, *, image_size: int | Sides, in_channels: int, num_classes: int
    ) -> Architecture:
        """The reference for images of ``image_size`` pixels: a side, or (height, width).

        Where its stem does not go with that size it is made for the nearest one that most stems do.

        Raises:
            InputError: there is no such network, or the images are too small for it.
        """
        sizes = {"in_channels": in_channels, "num_classes": num_classes}
        if isinstance(self.reference, str):
            network = architecture.load(self.reference)
        else:
            where = "latency.reference"
            at = {**sizes, "image_size": image_size}
            try:
                network = architecture.described(self.reference, at, where)
            except architecture.SizeError:
                at["image_size"] = architecture.DIVISIBLE_SIZE
                network = architecture.described(self.reference, at, where)
        try:
            return architecture.fitted(network, image_size=image_size, **sizes)
        except InputError:
            if min(image_sides := sides(image_size)) < 32:
                raise
            nearest = compact(*(32 * round(side / 32) for side in image_sides))
            return architecture.fitted(network, image_size=nearest, **sizes)

    def in_int8(self) -> "LatencyConfig":
        """The same section with networks in int8.

        Raises:
            InputError: its runtime has no int8.
        """
        if self.runtime in TORCH_RUNTIMES:
            raise InputError(
                f"runtime {self.runtime} has no int8; onnxruntime and openvino have, on CPUs"
            )
        return self.model_copy(update={"precision": "int8"})

    @property
    def clock(self) -> str:
        """Which clock counts: the GPU's own, the thread's CPU time where one runs, or wall time."""
        if self.target.device == "cuda":
            return "device"
        return "cpu" if self.threads == 1 else "wall"


def read_latency(
    section: Mapping[str, object], where: str, beside: Path | None = None
) -> LatencyConfig:
    """A ``latency`` section whose target may be a name from ``targets.yaml``.

    Args:
        section: as written; what it leaves out comes from the target, then from the defaults.
        where: for messages.
        beside: a folder whose ``targets.yaml`` counts too.

    Raises:
        InputError: the section says something wrong, or the target is unknown.
    """
    return validated(LatencyConfig, resolved(section, read_targets(beside), where), where)


# Batch, threads and precision of the paper's speed columns (section 5.2 and table 3).
_ON_GPU = {"batch_size": "largest", "precision": "fp16"}
_ON_CPU = {"batch_size": 16, "threads": 1}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper-gpu": {"target": {"kind": "local", "device": "cuda"}, **_ON_GPU},
    "paper-intel": {"target": {"kind": "local"}, **_ON_CPU},
    "paper-arm": {"target": {"kind": "local", "machine": "aarch64"}, **_ON_CPU},
}

_INLINE = ("cpu", "cuda")
_FORMS = ("ssh://[user@]host[:port]", "ray://resource")


@dataclass(frozen=True)
class NamedTarget:
    """An entry of ``targets.yaml``, or a target that another distribution plugs in.

    An entry point of ``levit_search.targets`` (see :mod:`levit_search.plugins`) is what an entry of
    ``targets.yaml`` is, a partial ``latency`` section or a target alone, or a function without
    arguments that returns it:

        BENCH = {"target": {"kind": "ssh", "host": "bench.example.org"}, "threads": 4}

        def bench():
            return {"target": f"ssh://{os.environ['BENCH_HOST']}", "runtime": "openvino"}
    """

    entry: object
    """As it was written, well or not; or the plug-in, loaded when it is used or listed."""
    file: Path | None = None
    """Where it was written; none for a plug-in."""

    @property
    def origin(self) -> str:
        """Where it comes from, as messages begin."""
        return self.entry.origin if isinstance(self.entry, Plugin) else str(self.file)


def target_files(beside: Path | None = None) -> list[Path]:
    """Where ``targets.yaml`` is looked for; a name in a later one counts.

    That is ``~/.config/levit-search``, the working directory and ``beside``, a space file's folder.
    """
    config = Path(os.environ.get("XDG_CONFIG_HOME") or expanded("~/.config")) / "levit-search"
    folders = [config, Path(), *([beside] if beside else [])]
    return [folder / "targets.yaml" for folder in dict.fromkeys(folders)]


def read_targets(beside: Path | None = None) -> dict[str, NamedTarget]:
    """The named targets that can be used here: plugged in, then from all of :func:`target_files`.

    A file's name counts more than a plug-in's, and our own more than a plug-in's. An entry is
    checked when it is used: a wrong one is no matter to those who use another.

    Raises:
        InputError: a file holds no YAML mapping.
    """
    plugged = plugins.installed("levit_search.targets").items()
    found = {name: NamedTarget(plugin) for name, plugin in plugged if not _is_own(name)}
    for path in target_files(beside):
        with suppress(PermissionError):  # the home directory of somebody else has none
            if path.is_file():
                entries = read_yaml(path).items()
                found |= {str(name): NamedTarget(entry, path) for name, entry in entries}
    return found


def known_names(named: Mapping[str, NamedTarget]) -> list[str]:
    """Everything a target can be called: our own names, then those of plug-ins and files."""
    return list(dict.fromkeys([*_INLINE, *PRESETS, *named]))


def resolved(
    latency: Mapping[str, object], named: Mapping[str, NamedTarget], where: str
) -> dict[str, object]:
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
    target = latency.get("target", "cpu")
    if isinstance(target, int) and not isinstance(target, bool):  # YAML's reading of such a name
        target = str(target)
    if not isinstance(target, str):
        _check_form(target, where)
        return {**latency}
    given = _entry(target, named) if target in named else _own(target, named, where)
    return {**given, **latency, "target": given["target"]}


def _check_form(target: object, where: str) -> None:
    if isinstance(target, Mapping):
        if "kind" not in target:
            raise InputError(f"{where}: target.kind: is required; known: local, ssh, ray, command")
    elif not isinstance(target, BaseModel):
        raise InputError(
            f"{where}: target: expected a name, {', '.join(_FORMS)} or a mapping, not {target!r}"
        )


def _entry(name: str, named: Mapping[str, NamedTarget]) -> Mapping[str, Any]:
    """A named target's section, checked by itself, so that a message names the file to mend."""
    where = f"{named[name].origin}: {name}"
    if _is_own(name):
        raise InputError(f"{where}: this name means something by itself; choose another")
    entry = named[name].entry
    if isinstance(entry, Plugin):
        plugin, entry = entry, entry.load()
        if callable(entry):
            with plugin.explained("fails"):
                entry = entry()
    if not isinstance(entry, Mapping | str):
        raise InputError(f"{where}: expected a target or a mapping with one, not {entry!r}")
    section: Mapping[str, Any] = {"target": entry} if isinstance(entry, str) else entry
    preset_name = section.get("preset")
    preset: Mapping[str, Any] = {}
    if preset_name is not None:
        if not (isinstance(preset_name, str) and preset_name in PRESETS):
            known = did_you_mean(str(preset_name), PRESETS)
            raise InputError(f"{where}: unknown preset {preset_name!r}; {known}")
        preset = PRESETS[preset_name]
    section = {**preset, **{key: each for key, each in section.items() if key != "preset"}}
    target = section.get("target", "cpu")
    if isinstance(target, str):
        if target in named and not _is_own(target):
            raise InputError(f"{where}: its target is another name, {target!r}")
        own = _own(target, {}, where)
        section, target = {**own, **section}, own["target"]
    _check_form(target, where)
    # A preset's device and machine hold for any target that does not say otherwise.
    asked = {key: value for key, value in preset.get("target", {}).items() if key != "kind"}
    section = {**section, "target": {**asked, **target, "name": name}}
    validated(LatencyConfig, section, where)
    return section


def _is_own(name: str) -> bool:
    """Whether it is no name for an entry of ``targets.yaml``."""
    return name in _INLINE or name in PRESETS or "://" in name


def _own(text: str, named: Mapping[str, NamedTarget], where: str) -> Mapping[str, Any]:
    """The section that a preset or an inline form stands for."""
    if text in PRESETS:
        preset = PRESETS[text]
        return {**preset, "target": {**preset["target"], "name": text}}
    if text in _INLINE:
        return {"target": {"kind": "local", "device": text}}
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "ray":
        return {"target": {"kind": "ray", "resource": rest}}
    if not separator or scheme != "ssh":
        known = did_you_mean(text, [*known_names(named), *_FORMS])
        raise InputError(f"{where}: unknown target {text!r}; {known}")
    found = re.fullmatch(r"(?:(.*)@)?(?:\[([^]]*)\]|([^:@]*))(?::([0-9]{1,5}))?", rest)
    host = found and (found[2] or found[3])
    if found is None or not host:
        raise InputError(f"{where}: {text}: expected {_FORMS[0]}, IPv6 as [host]")
    target = {"kind": "ssh", "host": host}
    if found[1] is not None:
        target["user"] = found[1]
    return {"target": {**target, "port": int(found[4])} if found[4] else target}


def check_programs(
    sections: Mapping[str, LatencyConfig], where: str, changes: Mapping[str, object] | None = None
) -> None:
    """Make sure that the user has named all that a file's targets start here.

    Args:
        sections: of the file, by the places of their keys in it.
        where: the file, for messages.
        changes: values by dotted key that the user has put over those in the file.

    Raises:
        InputError: the file starts something else; the message has the entry that would allow it.
    """
    given = list(_written(changes))
    for key, section in sections.items():
        program = section.target.program
        if program is None or all(part in given for part in program.items()) or _is_named(program):
            continue
        if "cluster" in program:
            named = json.dumps(program["cluster"])
            deed = f"join the Ray cluster {named}, which may run anything here"
        elif "config_file" in program:
            deed = f"start {json.dumps(['ssh', '-F', program['config_file']])} on this machine"
        else:
            host = f"host {program['host']}" if "host" in program else "this machine"
            deed = f"start {json.dumps(program['python'])} on {host}"
        written = section.target.model_dump(mode="json", exclude_defaults=True)
        raise InputError(
            f"{where}: {key}.target would {deed}, as you have not named it yourself;\n"
            f"if you know it, add to {target_files()[0]} the line"
            f"   {section.target.name or 'mine'}: {json.dumps({'target': written})}"
        )


def _written(node: object) -> Iterator[tuple[str, object]]:
    """Keys and values at all depths of what was written, with paths as targets have them."""
    if isinstance(node, Mapping):
        for dotted, value in node.items():
            key = str(dotted).rpartition(".")[2]
            if key == "config_file" and isinstance(value, str):
                yield key, str(from_anywhere(Path(value)))
            elif key == "python" and isinstance(value, list) and value:
                yield key, list(command_from_anywhere(tuple(map(str, value))))
            else:
                yield key, value
            yield from _written(value)


def _is_named(program: Program) -> bool:
    """Whether an entry of the user's own files or a plug-in starts the same."""
    named = read_targets()
    for name in sorted(named, key=lambda name: isinstance(named[name].entry, Plugin)):
        with suppress(InputError):  # of no matter to those who use another
            section = validated(LatencyConfig, resolved({"target": name}, named, name), name)
            if section.target.program == program:
                return True
    return False
