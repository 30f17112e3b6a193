"""Networks on a terminal: the block diagram as a table with bars, layers as a tree with sums."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from levit_search.architecture import Architecture
from levit_search.cost import Cost, LayerCost, cost
from levit_search.drawing.diagram import Row, amount, blocks, rows
from levit_search.drawing.svg import AMBER, SKY
from levit_search.image_size import image_shape

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

_BLUE, _ORANGE = SKY, AMBER  # which can be read on black and on white
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_ASCII = str.maketrans({"×": "x", "→": ">"})


class Listing:
    """The block diagram of a network, for rich to print.

    Bars are as long as the terminal has room for, and ASCII where it must.

    Args:
        network: of either family.
        title: the network's name, if it has one; its summary otherwise.
    """

    def __init__(self, network: Architecture, title: str = "") -> None:
        self.network, self.title = network, title or network.summary()

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
        labels, room = _labels(drawn, options.max_width)
        size = "×".join(map(str, image_shape(network)))
        table.add_row("image", size.translate(plain))
        stage = ""
        for row, label in zip(drawn, labels, strict=True):
            if row.block.stage != stage:
                stage = row.block.stage
                table.add_row(Text(stage, style="bold"))
            cells: list[str | Text] = [label.translate(plain), row.block.shape.translate(plain)]
            for value, part, style in _figures(row):
                bar = _bar(room * part / full, options.ascii_only)
                cells += [amount(value), f"{100 * part:.1f}", Text(bar, style=style)]
            table.add_row(*cells)
        total = cost(network)
        figures = f"{amount(total.flops)} FLOPs, {amount(total.params)} parameters"
        yield Text(f"{self.title}: {figures}", style="bold")
        yield table
        note = "n ×: figures and bars are sums over n equal blocks. One multiply-add is one FLOP."
        yield Text(note.translate(plain))

    def text(self, width: int = 100) -> str:
        """As plain text of at most so many columns, where they are enough."""
        from io import StringIO

        from rich.console import Console

        file = StringIO()
        Console(file=file, width=width, highlight=False).print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _labels(drawn: list[Row], width: int) -> tuple[list[str], int]:
    """The first column, in two lines a block where one would leave no room for bars, and how long
    a full bar may be."""
    shapes = max(len(row.block.shape) for row in drawn)
    left = width - shapes - 2 * 6 - 2 * 4 - 7  # two figures, their shares, the gaps
    for between, least in (("  ", 8), ("\n    ", 4)):
        labels = [f"  {between.join(filter(None, (row.title, row.block.detail)))}" for row in drawn]
        longest = max(len(line) for label in labels for line in label.split("\n"))
        room = (left - longest) // 2
        if room >= least:
            break
    return labels, max(4, min(24, room))


def _figures(row: Row) -> tuple[tuple[int, float, str], ...]:
    if not row.flops and not row.params:
        return ()
    return (row.flops, row.flops_share, _BLUE), (row.params, row.params_share, _ORANGE)


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
        node = root
        _add(node, layer)
        for part in _parts(layer.name):
            child = next((child for child in node.children if child.name == part), None)
            if child is None:
                child = Node(part, Cost(0, 0, 0))
                node.children.append(child)
            node = child
            _add(node, layer)
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
    yield from _below(root, "", guides)


def _below(node: Node, before: str, guides: Guides) -> Iterator[tuple[str, Cost]]:
    for child in node.children:
        last = child is node.children[-1]
        yield before + (guides.end if last else guides.fork) + child.name, child.cost
        yield from _below(child, before + (guides.space if last else guides.line), guides)


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


def _add(node: Node, layer: LayerCost) -> None:
    node.cost = Cost(*(above + own for above, own in zip(node.cost, layer[1:], strict=True)))
