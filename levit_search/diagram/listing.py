"""The block diagram as a table for the terminal, with bars of FLOPs and params."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from levit_search.architecture import Architecture
from levit_search.cost import cost
from levit_search.diagram.outline import Row, amount, blocks, rows
from levit_search.image_size import image_shape
from levit_search.palette import AMBER, SKY

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

_BLUE, _ORANGE = SKY, AMBER  # which can be read on black and on white
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_ASCII = str.maketrans({"×": "x", "→": ">"})


class Listing:
    """A network's rows; bars are as long as the terminal has room for, and ASCII where it must."""

    def __init__(self, network: Architecture, title: str) -> None:
        self.network, self.title = network, title

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
        labels = [f"  {between.join(filter(None, _words(row)))}" for row in drawn]
        longest = max(len(line) for label in labels for line in label.split("\n"))
        room = (left - longest) // 2
        if room >= least:
            break
    return labels, max(4, min(24, room))


def _words(row: Row) -> tuple[str, str]:
    return row.title, row.block.detail


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


def terminal(network: Architecture, title: str = "") -> Listing:
    """The diagram of one network for rich to print.

    Args:
        network: of either family.
        title: the network's name, if it has one; its summary otherwise.
    """
    return Listing(network, title or network.summary())
