"""Steps in a process of their own, see :mod:`levit_search.doctor.steps`, and how they ended."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from levit_search.latency.process_pipe import exit_name

_PROGRAM = """
import sys
sys.path = [place for place in sys.path if place]
import json
sys.path += [place for place in json.loads(sys.argv.pop(1)) if place and place not in sys.path]
from levit_search.doctor.steps import main
main()
"""


@dataclass(frozen=True)
class Step:
    """How one ended: ``text`` is what it told, or why it failed."""

    is_ok: bool
    text: str
    needs: str | None = None
    """The step without which it was not tried."""


def carried_out(steps: Sequence[str], limit_s: float) -> dict[str, Step]:
    """Carry steps out one after another.

    Args:
        steps: modules and names, as their program takes them.
        limit_s: for all of them together.

    Returns:
        How each ended, those that were not reached included.
    """
    # Not by -m, which would import what lies in the working directory first.
    command = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), *steps]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        told, complaints = process.communicate(timeout=limit_s)
        end = f"the process ended with {exit_name(process.returncode)}"
        last = complaints.strip().rpartition("\n")[2]
        end = f"{end}: {last[:200]}" if last else end
    except subprocess.TimeoutExpired:
        process.kill()
        told, _ = process.communicate()
        end = f"not done after {limit_s:g} s"
    found: dict[str, Step] = {}
    for line in told.splitlines():
        try:
            answer = json.loads(line)
        except ValueError:  # half a line of a process that was killed
            continue
        name = answer["step"]
        if "needs" in answer:
            found[name] = Step(False, f"not tried without {answer['needs']}", answer["needs"])
        else:
            found[name] = Step(answer.get("ok", False), answer.get("text", end))
    blamed = next((name for name in reversed(found)), None)
    for name in steps:
        found.setdefault(name, Step(False, f"not reached ({end})", blamed))
    return found
