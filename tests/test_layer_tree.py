"""Dotted layer names as a tree with sums."""

from levit_search import architecture
from levit_search.cost import LayerCost, cost, layers
from levit_search.drawing.listing import ASCII_GUIDES, LINE_GUIDES, Node, lines, tree

ROWS = [
    LayerCost("stem.convs.0", 1, 10, 100),
    LayerCost("stages.0.blocks.0.mlp", 2, 20, 200),
    LayerCost("stages.0.blocks.1.attention.qkv", 3, 30, 300),
    LayerCost("stages.1.blocks.0.mlp", 4, 40, 400),
    LayerCost("head", 5, 50, 500),
]


def test_an_index_stays_with_the_name_of_its_list() -> None:
    assert [name for name, _ in lines(tree("net", ROWS), ASCII_GUIDES)] == [
        "net",
        "+- stem",
        "|  `- convs.0",
        "+- stages.0",
        "|  +- blocks.0",
        "|  |  `- mlp",
        "|  `- blocks.1",
        "|     `- attention",
        "|        `- qkv",
        "+- stages.1",
        "|  `- blocks.0",
        "|     `- mlp",
        "`- head",
    ]


def test_a_numbered_stage_holds_its_numbered_blocks() -> None:
    rows = [LayerCost(f"layer2.{block}.conv1", 1, 10, 100) for block in range(2)]
    figures = dict(lines(tree("net", rows), ASCII_GUIDES))
    assert figures["`- layer2"] == (2, 20, 200)
    assert figures["   +- layer2.0"] == figures["   `- layer2.1"] == (1, 10, 100)


def test_every_node_holds_the_sum_of_the_layers_below_it() -> None:
    figures = dict(lines(tree("net", ROWS)))
    assert figures["net"] == (15, 150, 1500)
    assert figures["├─ stages.0"] == (5, 50, 500)
    assert figures["│  └─ blocks.1"] == (3, 30, 300)
    assert figures["└─ head"] == (5, 50, 500)


def test_a_layer_above_others_adds_its_own_figures_to_its_node() -> None:
    rows = [LayerCost("block", 1, 1, 1), LayerCost("block.proj", 2, 2, 2)]
    block = tree("net", rows).children[0]
    assert block.cost == (3, 3, 3)
    assert [child.cost for child in block.children] == [(2, 2, 2)]


def test_a_name_that_begins_with_an_index_stands_alone() -> None:
    (node,) = tree("net", [LayerCost("0.weight", 1, 0, 0)]).children
    assert (node.name, node.children[0].name) == ("0", "weight")


def test_both_kinds_of_guides_have_equal_widths() -> None:
    widths = {
        len(guide) for guides in (ASCII_GUIDES, LINE_GUIDES) for guide in vars(guides).values()
    }
    assert widths == {3}


def test_a_published_network_reads_by_stage_and_block() -> None:
    network = architecture.published("LeViT-128S")
    root = tree("total", layers(network))
    assert root.cost == cost(network)
    top = "stem stages.0 shrinks.0 stages.1 shrinks.1 stages.2 head head_dist"
    assert [node.name for node in root.children] == top.split()
    assert [node.name for node in root.children[3].children] == ["blocks.0", "blocks.1", "blocks.2"]
    check_sums(root)


def check_sums(node: Node) -> None:
    for child in node.children:
        check_sums(child)
    if node.children:
        sums = tuple(map(sum, zip(*(child.cost for child in node.children), strict=True)))
        assert node.cost == sums
