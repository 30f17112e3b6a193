"""Networks on a terminal: the block diagram as a table with bars, layers as a tree with sums."""

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING

from levit_search.architecture import Architecture
from levit_search.cost import Cost, LayerCost, cost
from levit_search.drawing.diagram import amount, blocks, rows
from levit_search.drawing.svg import AMBER, SKY
from levit_search.image_size import image_shape

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_ASCII = str.maketrans({"×": "x", "→": ">"})


class Listing:
    """The block diagram of a network, for rich to print.

    Bars are as long as the terminal has room for, and ASCII where it must; their colours can be
    read on black and on white.

    Args:
        network: of either family.
        title: the network's name, if it has one; its summary otherwise.
        note: what else is known of it, below the table.
    """

    def __init__(self, network: Architecture, title: str = "", note: str = "") -> None:
        self.network, self.title, self.note = network, title or network.summary(), note

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> Iterator["RenderableType"]:
        from rich.table import Table
        from rich.text import Text

        network, drawn = self.network, rows(blocks(self.network))
        plain = _ASCII if options.ascii_only else {}
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for head in ("block", "map", "FLOPs", "%", "", "params", "%", ""):
            right = head not in ("block", "")
            table.add_column(head, justify="right" if right else "left", no_wrap=right)
        full = max(max(row.flops_share, row.params_share) for row in drawn)
        # In two lines a block where one would leave no room for bars.
        shapes = max(len(row.block.shape) for row in drawn)
        left = options.max_width - shapes - 2 * 6 - 2 * 4 - 7  # two figures, their shares, the gaps
        for between, least in (("  ", 8), ("\n    ", 4)):
            texts = [(row.title, row.block.detail) for row in drawn]
            labels = [f"  {between.join(filter(None, text))}" for text in texts]
            longest = max(len(line) for label in labels for line in label.split("\n"))
            room = (left - longest) // 2
            if room >= least:
                break
        room = max(4, min(24, room))  # of a full bar
        size = "×".join(map(str, image_shape(network)))
        table.add_row("image", size.translate(plain))
        stage = ""
        for row, label in zip(drawn, labels, strict=True):
            if row.block.stage != stage:
                stage = row.block.stage
                table.add_row(Text(stage, style="bold"))
            cells: list[str | Text] = [label.translate(plain), row.block.shape.translate(plain)]
            figures = (row.flops, row.flops_share, SKY), (row.params, row.params_share, AMBER)
            for value, part, style in figures if row.flops or row.params else ():
                bar = _bar(room * part / full, options.ascii_only)
                cells += [amount(value), f"{100 * part:.1f}", Text(bar, style=style)]
            table.add_row(*cells)
        total = cost(network)
        told = f"{amount(total.flops)} FLOPs, {amount(total.params)} parameters"
        yield Text(f"{self.title}: {told}", style="bold")
        yield table
        note = "n ×: figures and bars are sums over n equal blocks. One multiply-add is one FLOP."
        yield Text(note.translate(plain))
        if self.note:
            yield Text(self.note)

    def text(self, width: int = 100) -> str:
        """As plain text of at most so many columns, where they are enough."""
        from rich.console import Console

        file = StringIO()
        Console(file=file, width=width, highlight=False).print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _bar(length: float, is_ascii: bool) -> str:
    """A bar in eighths of a character, or in whole ones; anything at all has the smallest."""
    if length <= 0:
        return ""
    if is_ascii:
        return "#" * max(1, round(length))
    eighths = max(1, round(8 * length))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


@dataclass
class Node:
    """A module and everything in it; an entry of a list carries its index, as in ``blocks.1``."""

    name: str
    cost: Cost
    children: list["Node"] = field(default_factory=list)


def tree(name: str, layers: Iterable[LayerCost]) -> Node:
    """The tree of ``layers``, in their order, under a root called ``name``.

    A layer may have others below it; its own figures are then part of its node's sum.
    """
    root = Node(name, Cost(0, 0, 0))
    for layer in layers:
        nodes = [root]
        for part in _parts(layer.name):
            below = nodes[-1].children
            if all(child.name != part for child in below):
                below.append(Node(part, Cost(0, 0, 0)))
            nodes.append(next(child for child in below if child.name == part))
        for node in nodes:
            node.cost = Cost(*map(operator.add, node.cost, layer[1:]))
    return root


@dataclass(frozen=True)
class Guides:
    """What stands before a name for each level above it; all four are equally wide."""

    space: str
    line: str
    fork: str
    end: str


ASCII_GUIDES = Guides("   ", "|  ", "+- ", "`- ")
LINE_GUIDES = Guides("   ", "│  ", "├─ ", "└─ ")


def lines(root: Node, guides: Guides = LINE_GUIDES) -> Iterator[tuple[str, Cost]]:
    """The tree from the root down, each node as its name behind guides, with its figures."""
    yield root.name, root.cost
    for child in root.children:
        is_last = child is root.children[-1]
        ahead, further = (guides.end, guides.space) if is_last else (guides.fork, guides.line)
        for name, figures in lines(child, guides):
            yield ahead + name, figures
            ahead = further


def _parts(name: str) -> list[str]:
    """``stages.0.blocks.1.mlp`` as ``stages.0``, ``blocks.1``, ``mlp``.

    What has a number already keeps a node of its own: ``layer2.1`` is ``layer2``, ``layer2.1``.
    """
    parts: list[str] = []
    for part in name.split("."):
        if part.isdigit() and parts and parts[-1][-1].isdigit():
            parts.append(f"{parts[-1]}.{part}")
        elif part.isdigit() and parts:
            parts[-1] += f".{part}"
        else:
            parts.append(part)
    return parts
