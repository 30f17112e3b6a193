"""How the text of a stand-alone module is put together.

A template is the code that it becomes. A line that ends with ``#? flag`` stands only where the flag
is set, ``#? not flag`` only where it is not; ``$name`` is filled in. So no class carries branches
that its network never takes.
"""

import re
from collections.abc import Sequence, Set
from string import Template

LINE_LENGTH = 100

_MARK = re.compile(r"(?:^|  )#\? (not )?(\w+)$")


def part(text: str, flags: Set[str], **values: object) -> str:
    """One of the texts below with the lines that belong to a network, and its values filled in.

    Args:
        text: with marks and names to fill in.
        flags: those that are set.
        values: of the names, by name.
    """
    lines = []
    for line in text.strip("\n").splitlines():
        found = _MARK.search(line)
        if found is None:
            lines.append(line)
        elif (found[2] in flags) != bool(found[1]):
            lines.append(line[: found.start()])
    return Template("\n".join(lines)).substitute(values)


def laid_out(opening: str, items: Sequence[str], closing: str, indent: int = 0) -> list[str]:
    """A call or a tuple in one line where it fits behind ``indent`` columns, else item by item."""
    line = f"{opening}{', '.join(items)}{closing}"
    if indent + len(line) <= LINE_LENGTH:
        return [line]
    return [opening, *[f"    {item}," for item in items], closing]


def indented(lines: Sequence[str], columns: int) -> str:
    """Lines behind ``columns`` blanks as one text."""
    return "\n".join(f"{' ' * columns}{line}" for line in lines)


def in_turn(steps: Sequence[str]) -> list[str]:
    """Expressions that each read the map that the one before gives, the last one returned."""
    return [*[f"x_bchw = {step}" for step in steps[:-1]], f"return {steps[-1]}"]


def quoted(text: str) -> str:
    """A string literal of one line, in double quotes unless that takes more backslashes."""
    escaped = repr("'" + text)  # an apostrophe makes repr choose double quotes where it can
    if escaped[0] == '"':
        return '"' + escaped[2:]
    inside = escaped[3:-1].replace("\\'", "'")  # without the apostrophe put first, and its escape
    if text.count('"') > text.count("'"):
        return "'" + inside.replace("'", "\\'") + "'"
    return '"' + inside.replace('"', '\\"') + '"'
