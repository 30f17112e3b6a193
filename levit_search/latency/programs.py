"""Programs that a target starts, and whose word counts for them.

A ``command`` target starts what it names, and so may an ssh configuration, and a host's login; what
drives a Ray cluster can start anything on whoever joins it. A space file or a study folder may come
from anybody: what it brings is started only if the user has named it too, in a
``targets.yaml`` of their own (in ``~/.config/levit-search`` or the working directory), by a plug-in
that they installed, or on the command line. A ``targets.yaml`` in the folder of a space file is
part of what came with it.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from levit_search.configuration import validated
from levit_search.errors import InputError
from levit_search.latency.targets import (
    CommandTarget,
    LatencyConfig,
    NamedTarget,
    RayTarget,
    SshTarget,
    Target,
    command_from_anywhere,
    from_anywhere,
    read_targets,
    resolved,
    target_files,
)

Program = dict[str, Any]
"""What of a target says what is started, as it is written in YAML."""


# Whatever a host calls so is a Python.
_A_PYTHON = re.compile(r"(python|pypy)[0-9.]*")
_HERE = re.compile(r"(ray://)?(127\.0\.0\.1|localhost|\[::1\]):\d+")


def started(target: Target) -> Program | None:
    """What a target starts or joins; None where that is only what this machine or a host calls
    Python, ssh with the user's own settings, or the cluster that runs here."""
    if isinstance(target, CommandTarget):
        return {
            "python": list(target.python),
            **({"env": dict(target.env)} if target.env else {}),
        }
    if isinstance(target, SshTarget):
        named: Program = {}
        if target.config_file is not None:
            named["config_file"] = str(target.config_file)
        if not _A_PYTHON.fullmatch(target.python):
            named |= {"host": target.host, "python": target.python}
        return named or None
    if isinstance(target, RayTarget) and not _HERE.fullmatch(target.cluster):
        known = ("auto", os.environ.get("RAY_ADDRESS"))
        return {"cluster": target.cluster} if target.cluster not in known else None
    return None


def check_programs(
    sections: Mapping[str, LatencyConfig], where: str, changes: Mapping[str, Any] | None = None
) -> None:
    """Make sure that the user has named all that a file's targets start here.

    Args:
        sections: of the file, by the places of their keys in it.
        where: the file, for messages.
        changes: values by dotted key that the user has put over those in the file.

    Raises:
        InputError: the file starts something else; the message has the entry that would allow it.
    """
    for key, section in sections.items():
        program = started(section.target)
        if program is None or _is_given(program, changes or {}) or _is_named(program):
            continue
        shown = json.dumps(
            {
                "target": section.target.model_dump(mode="json", exclude_defaults=True)
                | {"kind": section.target.kind}
            }
        )
        raise InputError(
            f"{where}: {key}.target would {_deed(program)}, as you have not named it yourself;\n"
            f"if you know it, add to {target_files()[0]} the line"
            f"   {section.target.name or 'mine'}: {shown}"
        )


def _deed(program: Program) -> str:
    if "cluster" in program:
        return f"join the Ray cluster {json.dumps(program['cluster'])}, which may run anything here"
    if "config_file" in program:
        return f"start {json.dumps(['ssh', '-F', program['config_file']])} on this machine"
    where = f"host {program['host']}" if "host" in program else "this machine"
    return f"start {json.dumps(program['python'])} on {where}"


def _is_given(program: Program, changes: Mapping[str, Any]) -> bool:
    """Whether all of a program was written on the command line."""
    given = list(_written(dict(changes)))
    return all((key, value) in given for key, value in program.items())


def _written(node: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values at all depths, with paths as targets have them."""
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
    files_first = sorted(named, key=lambda name: not isinstance(named[name], NamedTarget))
    for name in files_first:
        try:
            section = validated(LatencyConfig, resolved({"target": name}, named, name), name)
        except InputError:  # of no matter to those who use another
            continue
        if started(section.target) == program:
            return True
    return False
