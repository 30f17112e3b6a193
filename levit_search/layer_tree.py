"""Layers with dotted names as a tree, every node with the sum of what is below it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from levit_search.cost import Cost, LayerCost


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
