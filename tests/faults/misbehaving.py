"""The probe's own worker, which misbehaves at some of its jobs.

Started as a target's Python: ``python misbehaving.py PLAN BOOTSTRAP...``, it runs the worker that
it is sent. ``PLAN`` is a text file of moods, one a line: each job, of whichever worker, takes the
first one away. The last one stays.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

PLAN = Path(sys.argv[1])


def mood() -> str:
    first, *rest = PLAN.read_text().split("\n")
    if rest:
        PLAN.write_text("\n".join(rest))
    return first


def raw(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def changed(message: dict[str, Any], name: str) -> dict[str, Any]:
    """A lie by name; what ``KEY=JSON`` says takes the place of that key, in timings as well."""
    key, _, value = name.partition("=")
    value = json.loads(value)
    if key in ("cpu", "wall", "single"):
        for cycle in message.get("cycles", []):
            cycle[-1][key] = value
    if key in message:
        message[key] = value
    return message


def misbehave(how: str, message: dict[str, Any]) -> None:
    """Answer a job with ``message``, or rather not."""
    line = json.dumps(message).encode() + b"\n"
    match how:
        case "sound":
            raw(line)
        case "slow":
            time.sleep(0.3)
            raw(line)
        case "hang":
            time.sleep(600)
        case "half a line, then hang":
            raw(line[: len(line) // 2])
            time.sleep(600)
        case "half a line, then die":
            raw(line[: len(line) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        case "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            sys.stderr.write("no luck\n" * 1000)
            sys.stderr.flush()
            os._exit(3)
        case "drown":
            while True:
                raw(b"x" * 1_000_000)
        case "chatter":
            while True:
                raw(b"hello\n" * 10_000)
        case "long line":
            raw(b'{"event": "round", "cycles": "' + b"x" * 10_000_000 + b'"}\n')
        case "not UTF-8":
            raw(b"\xff\xfe\x00\n")
        case "deep":
            raw(b"[" * 100_000 + b"\n")
        case "list":
            raw(b"[1, 2]\n")
        case "no event":
            raw(b"{}\n")
        case "event of another kind":
            raw(b'{"event": {"a": 1}}\n')
        case "nothing but an event":
            raw(b'{"event": "round"}\n')
        case "error without a message":
            raw(b'{"event": "error"}\n')
        case "error of many lines":
            raw(json.dumps({"event": "error", "message": "a\nb\n" * 10_000}).encode() + b"\n")
        case "answer twice":
            raw(line + line)
        case "answer of another job":
            raw(json.dumps({**message, "job": 0}).encode() + b"\n")
        case "one network fewer":
            for cycle in message.get("cycles", []):
                cycle.pop()
            raw(json.dumps(message).encode() + b"\n")
        case "no rounds":
            raw(json.dumps({**message, "cycles": [], "bytes": None}).encode() + b"\n")
        case _:
            raw(json.dumps(changed(message, how)).encode() + b"\n")


def main() -> None:
    pipe = sys.stdin.buffer
    source = pipe.read(int(pipe.readline()))
    # As the bootstrap runs it, but for what becomes of its answers.
    names: dict[str, Any] = {"__name__": "worker"}
    exec(compile(source, "worker.py", "exec"), names)

    def write(message: dict[str, Any]) -> None:
        ready = message["event"] == "ready"
        how = mood() if not ready or PLAN.with_suffix(".ready").exists() else "sound"
        misbehave(how, message)

    names["write"] = write
    # The memory of a network is taken in a process started as we were; this one's does here.
    names["_peak_in_new_process"] = lambda job: {"event": "peak", "bytes": 10_000_000}
    names["main"]()


if __name__ == "__main__":
    main()
