"""A network as a block diagram after the paper's Figure 4, with what each block costs."""

from levit_search.diagram.drawing import description, sheet, svg
from levit_search.diagram.listing import Listing, terminal
from levit_search.diagram.outline import Block, Row, blocks, rows

__all__ = [
    "Block",
    "Listing",
    "Row",
    "blocks",
    "description",
    "rows",
    "sheet",
    "svg",
    "terminal",
]
